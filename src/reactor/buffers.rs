//! Memory that input and output use: allocated, touched and locked before the first request.
//!
//! A [`Region`] is never given back while the ring may name it: regions belong to the ring
//! thread, which ends only with its process.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, MlockAllFlags, ProtFlags};

/// Where a payload lies. A plain address: whoever made it says how long it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub start: *mut u8,
    /// Bytes.
    pub len: u32,
}

impl Memory {
    /// The buffer behind a slice.
    pub fn of(slice: &mut [u8]) -> Memory {
        Memory {
            start: slice.as_mut_ptr(),
            len: u32::try_from(slice.len()).unwrap_or(u32::MAX),
        }
    }

    /// The first `len` bytes; `None` when the buffer is shorter.
    pub fn first(self, len: u32) -> Option<Memory> {
        (len <= self.len).then_some(Memory {
            start: self.start,
            len,
        })
    }

    /// The bytes.
    ///
    /// # Safety
    /// The buffer is alive for `'a`, and neither the kernel nor anybody else writes it meanwhile.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start, self.len as usize) }
    }
}

/// An anonymous mapping, zeroed, page-aligned and present in memory.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Maps and touches `len` bytes.
    pub fn new(len: usize) -> io::Result<Region> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len.max(1),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        }?;
        let start = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Region { start, len })
    }

    /// `len` bytes at `offset`, if the region has them.
    pub fn part(&self, offset: usize, len: u32) -> Option<Memory> {
        let end = offset.checked_add(len as usize)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is inside the mapping.
        let start = unsafe { self.start.as_ptr().add(offset) };
        Some(Memory { start, len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and its user has seen the end of all input and
        // output before it drops the region. A failure would leak it, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len.max(1)) };
    }
}

/// The buffers that the engine names `Buffer::Resync`.
#[derive(Debug)]
pub struct ResyncPool {
    region: Region,
    count: u32,
    chunk: u32,
}

impl ResyncPool {
    /// `count` buffers of `chunk` bytes each.
    pub fn new(count: u32, chunk: u32) -> io::Result<ResyncPool> {
        Ok(ResyncPool {
            region: Region::new(count as usize * chunk as usize)?,
            count,
            chunk,
        })
    }

    /// Buffer `index`.
    pub fn buffer(&self, index: u32) -> Option<Memory> {
        if index >= self.count {
            return None;
        }
        self.region
            .part(index as usize * self.chunk as usize, self.chunk)
    }
}

/// Keeps what the process has and will get in memory, each page from its first touch on, and
/// tells the kernel that this process serves block I/O, so that its own allocations never wait
/// for writes to the device that it serves. Both need privileges; without them a note is logged.
pub fn protect_from_reclaim() {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(errno) = rustix::mm::mlockall(flags) {
        tracing::info!(%errno, "memory is not locked (CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK)");
    }
    if let Err(errno) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::info!(%errno, "not marked as serving block I/O (CAP_SYS_RESOURCE)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_outside_a_region_do_not_exist() {
        let region = Region::new(8192).unwrap();
        assert!(region.part(0, 8192).is_some());
        assert!(region.part(4096, 4097).is_none());
        assert!(region.part(usize::MAX, 1).is_none());
    }

    #[test]
    fn resync_buffers_are_aligned_and_apart() {
        let pool = ResyncPool::new(3, 8192).unwrap();
        let starts: Vec<usize> = (0..3)
            .map(|index| pool.buffer(index).unwrap().start as usize)
            .collect();
        assert!(starts.iter().all(|start| start % 4096 == 0));
        assert_eq!(starts[1] - starts[0], 8192);
        assert!(pool.buffer(3).is_none());
        assert!(pool.buffer(0).unwrap().first(8193).is_none());
    }
}
