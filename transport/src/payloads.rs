//! Receive buffers for data, allocated once and named by slot number.
//!
//! One pool serves all links of a resource. A slot is free, or it belongs to whoever took it until
//! it is released: the link while it is being filled, then the receiver of the frame. While the
//! kernel fills a slot or writes it to disk nobody may hold a reference into it; the pool gives
//! out pointers for that, which stay valid as long as the pool.
//!
//! Slots come in two sizes, so that many small writes do not need many large buffers: small ones
//! are tried first where they suffice, large ones serve as a reserve.

use std::ptr::{NonNull, null_mut};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::wire::MAX_DATA;

/// Number of a buffer in its pool.
pub type Slot = u32;

/// Every slot starts on a multiple of this, as O_DIRECT wants it.
pub const SLOT_ALIGN: usize = 4096;
/// More slots than any configuration needs; keeps sizes far from overflow.
const MAX_SLOTS: u32 = 1 << 16;

/// How many slots of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    pub small_slots: u32,
    /// Bytes, a multiple of 4096, at most `MAX_DATA`.
    pub small_size: u32,
    /// Slots of `MAX_DATA` bytes; at least one.
    pub large_slots: u32,
}

/// Why a pool could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("payload pool: sizes out of range")]
    Config,
    #[error("payload pool: cannot map memory: {0}")]
    Map(Errno),
}

/// A slot that is not in use, or does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("payload slot {0} is not in use")]
pub struct BadSlot(pub Slot);

/// The buffers.
#[derive(Debug)]
pub struct PayloadPool {
    base: NonNull<u8>,
    len: usize,
    config: PoolConfig,
    free_small: Vec<Slot>,
    free_large: Vec<Slot>,
    used: Vec<bool>,
}

// SAFETY: the pool is the only owner of its mapping, which no thread is tied to.
unsafe impl Send for PayloadPool {}

impl PayloadPool {
    /// Maps the memory of all slots. It becomes resident when it is touched, or at once where the
    /// process locks its memory.
    pub fn new(config: PoolConfig) -> Result<PayloadPool, PoolError> {
        let slots = config.small_slots.checked_add(config.large_slots);
        let sizes_ok = config.small_size > 0
            && config.small_size <= MAX_DATA
            && (config.small_size as usize).is_multiple_of(SLOT_ALIGN)
            && config.large_slots > 0;
        let Some(slots) = slots.filter(|slots| sizes_ok && *slots <= MAX_SLOTS) else {
            return Err(PoolError::Config);
        };
        let len = config.small_slots as usize * config.small_size as usize
            + config.large_slots as usize * MAX_DATA as usize;
        // SAFETY: a new private mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap_anonymous(
                null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(PoolError::Map)?;
        let base = NonNull::new(base.cast()).ok_or(PoolError::Map(Errno::NOMEM))?;
        Ok(PayloadPool {
            base,
            len,
            config,
            free_small: (0..config.small_slots).rev().collect(),
            free_large: (config.small_slots..slots).rev().collect(),
            used: vec![false; slots as usize],
        })
    }

    /// A free slot of at least `len` bytes.
    pub fn take(&mut self, len: u32) -> Option<Slot> {
        let small = if len <= self.config.small_size {
            self.free_small.pop()
        } else {
            None
        };
        let slot = match small {
            Some(slot) => slot,
            None if len <= MAX_DATA => self.free_large.pop()?,
            None => return None,
        };
        if let Some(used) = self.used.get_mut(slot as usize) {
            *used = true;
        }
        Some(slot)
    }

    /// Makes a slot free again. No operation on it is in flight any more.
    pub fn release(&mut self, slot: Slot) -> Result<(), BadSlot> {
        match self.used.get_mut(slot as usize) {
            Some(used) if *used => *used = false,
            _ => return Err(BadSlot(slot)),
        }
        if slot < self.config.small_slots {
            self.free_small.push(slot);
        } else {
            self.free_large.push(slot);
        }
        Ok(())
    }

    /// Slots in use.
    pub fn in_use(&self) -> usize {
        self.used.len() - self.free_small.len() - self.free_large.len()
    }

    /// Start and size of a slot in use, for the kernel. Valid as long as the pool; the owner of
    /// the slot keeps references out while an operation is in flight.
    pub fn raw(&self, slot: Slot) -> Result<(*mut u8, u32), BadSlot> {
        let used = self.used.get(slot as usize).copied().unwrap_or(false);
        if !used {
            return Err(BadSlot(slot));
        }
        let small = self.config.small_slots;
        let (offset, size) = if slot < small {
            let size = self.config.small_size;
            (slot as usize * size as usize, size)
        } else {
            let before = small as usize * self.config.small_size as usize;
            (
                before + (slot - small) as usize * MAX_DATA as usize,
                MAX_DATA,
            )
        };
        // SAFETY: `offset` is inside the mapping: the slot exists, since it is in use.
        Ok((unsafe { self.base.as_ptr().add(offset) }, size))
    }

    /// The bytes of a slot in use. No operation of the kernel on it may be in flight.
    pub fn bytes(&self, slot: Slot) -> Result<&[u8], BadSlot> {
        let (start, len) = self.raw(slot)?;
        // SAFETY: the range is mapped, initialised (zeroes at least) and lives as long as `self`;
        // a mutable reference to it needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(start, len as usize) })
    }

    /// The bytes of a slot in use, to write. No operation of the kernel on it may be in flight.
    pub fn bytes_mut(&mut self, slot: Slot) -> Result<&mut [u8], BadSlot> {
        let (start, len) = self.raw(slot)?;
        // SAFETY: as in `bytes`, and `&mut self` excludes other references.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, len as usize) })
    }

    /// The whole memory, for registration with the kernel.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.len)
    }
}

impl Drop for PayloadPool {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        // A failure leaks the mapping, which harms nobody.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PayloadPool {
        PayloadPool::new(PoolConfig {
            small_slots: 2,
            small_size: 4096,
            large_slots: 1,
        })
        .expect("pool")
    }

    #[test]
    fn small_slots_first_then_the_reserve_then_nothing() {
        let mut pool = pool();
        let slots: Vec<_> = std::iter::from_fn(|| pool.take(512)).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert_eq!(pool.in_use(), 3);
        pool.release(0).expect("in use");
        assert_eq!(pool.take(4097), None);
        pool.release(2).expect("in use");
        assert_eq!(pool.take(4097), Some(2));
        assert_eq!(pool.take(MAX_DATA + 1), None);
    }

    #[test]
    fn a_slot_is_released_once_and_used_only_while_taken() {
        let mut pool = pool();
        assert_eq!(pool.release(0), Err(BadSlot(0)));
        assert_eq!(pool.bytes(7), Err(BadSlot(7)));
        let slot = pool.take(1).expect("free");
        pool.release(slot).expect("in use");
        assert_eq!(pool.release(slot), Err(BadSlot(slot)));
        assert_eq!(pool.raw(slot), Err(BadSlot(slot)));
    }

    #[test]
    fn slots_are_aligned_and_do_not_overlap() {
        let mut pool = pool();
        for slot in 0..3_u8 {
            assert_eq!(pool.take(1), Some(u32::from(slot)));
            pool.bytes_mut(u32::from(slot))
                .expect("taken")
                .fill(slot + 1);
        }
        for slot in 0..3_u8 {
            let bytes = pool.bytes(u32::from(slot)).expect("taken");
            assert!((bytes.as_ptr() as usize).is_multiple_of(SLOT_ALIGN));
            assert!(bytes.iter().all(|byte| *byte == slot + 1));
        }
        assert_eq!(pool.bytes(2).expect("taken").len(), MAX_DATA as usize);
    }

    #[test]
    fn senseless_sizes_are_refused() {
        let make = |small_slots, small_size, large_slots| {
            PayloadPool::new(PoolConfig {
                small_slots,
                small_size,
                large_slots,
            })
            .map(|_| ())
        };
        assert_eq!(make(1, 1000, 1), Err(PoolError::Config));
        assert_eq!(make(1, 0, 1), Err(PoolError::Config));
        assert_eq!(make(1, 2 * MAX_DATA, 1), Err(PoolError::Config));
        assert_eq!(make(1, 4096, 0), Err(PoolError::Config));
        assert_eq!(make(u32::MAX, 4096, 1), Err(PoolError::Config));
        assert_eq!(make(0, 4096, 1), Ok(()));
    }
}
