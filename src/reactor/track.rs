//! The table of ranges in flight, in memory that outlives this process.
//!
//! The agent makes the memory (a memfd) and hands it to every data plane of the resource in turn.
//! After a crash of the process alone the page cache and the disk's own cache are intact, so the
//! copies can differ only in the ranges that the table names; they then replace the activity log.
//!
//! The writer may be killed between any two stores. A slot's range is stored before its `used`
//! word, and `used` is cleared before the range changes, so whatever a successor reads is a range
//! that was tracked. `exact` says whether the table is complete; it is off until the engine says
//! otherwise.
//!
//! Layout, all words little-endian u64: magic, boot, exact, reserved; then per slot: used (volume
//! plus 1, or 0), start, length, reserved.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags};

use crate::engine::{Span, VolumeId};

const MAGIC: u64 = u64::from_le_bytes(*b"LKTRACK1");

/// Ranges that fit: more than requests, received writes and sync blocks in flight together.
const SLOTS: usize = 16 << 10;

const WORDS_PER_ENTRY: usize = 4;

/// Words of the header and of every slot.
const WORDS: usize = WORDS_PER_ENTRY * (SLOTS + 1);

const BOOT: usize = 1;
const EXACT: usize = 2;

/// What an earlier process left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// All ranges that may differ, if the table was complete and of this boot.
    ranges: Option<Vec<(VolumeId, Span)>>,
}

impl Leftover {
    /// The ranges of one volume, `None` when the table says nothing reliable.
    pub fn of(&self, volume: VolumeId) -> Option<Vec<Span>> {
        let ranges = self.ranges.as_ref()?;
        let mine = ranges.iter().filter(|(owner, _)| *owner == volume);
        Some(mine.map(|(_, span)| *span).collect())
    }
}

/// The mapped table.
pub struct TrackTable {
    words: NonNull<AtomicU64>,
    /// The engine named a slot that does not exist: the table is not complete any more.
    overflowed: bool,
    /// Some volume has not got its disk yet.
    waiting: bool,
    /// What the engine said last; nothing is in flight at first.
    engine_exact: bool,
}

// SAFETY: the mapping is shared memory that is only touched through atomics, from one thread at
// a time; it is made on one thread and then moved to the ring's.
unsafe impl Send for TrackTable {}

impl TrackTable {
    /// Maps the agent's memory, reads what an earlier process left, and begins a new, empty table
    /// that is not exact.
    pub fn open(memory: OwnedFd, boot: u64) -> io::Result<(TrackTable, Leftover)> {
        let file = File::from(memory);
        let bytes = (WORDS * size_of::<u64>()) as u64;
        let old = file.metadata()?.len();
        if old < bytes {
            file.set_len(bytes)?;
        }
        // SAFETY: a new shared mapping at an address of the kernel's choice; the file is at least
        // as long, and only data planes of this resource, one at a time, have it.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                WORDS * size_of::<u64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &file,
                0,
            )
        }?;
        let words = NonNull::new(address.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let table = TrackTable {
            words,
            overflowed: false,
            waiting: true,
            engine_exact: true,
        };
        let leftover = if old >= bytes {
            table.read(boot)
        } else {
            Leftover::default()
        };
        table.begin(boot);
        Ok((table, leftover))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `WORDS` words and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), WORDS) }
    }

    fn slot(&self, slot: usize) -> &[AtomicU64] {
        let start = WORDS_PER_ENTRY * (slot + 1);
        &self.words()[start..start + WORDS_PER_ENTRY]
    }

    fn read(&self, boot: u64) -> Leftover {
        let word = |index: usize| self.words()[index].load(Ordering::Acquire);
        if word(0) != MAGIC || word(BOOT) != boot || word(EXACT) != 1 {
            return Leftover::default();
        }
        let mut ranges = Vec::new();
        for index in 0..SLOTS {
            let slot = self.slot(index);
            let used = slot[0].load(Ordering::Acquire);
            if used == 0 {
                continue;
            }
            let start = slot[1].load(Ordering::Relaxed);
            let len = slot[2].load(Ordering::Relaxed);
            match (u16::try_from(used - 1), u32::try_from(len)) {
                (Ok(volume), Ok(len)) if start.checked_add(u64::from(len)).is_some() => {
                    ranges.push((VolumeId(volume), Span::new(start, len)));
                }
                // Not written by us: nothing in here can be believed.
                _ => return Leftover::default(),
            }
        }
        Leftover {
            ranges: Some(ranges),
        }
    }

    fn begin(&self, boot: u64) {
        self.words()[EXACT].store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        for index in 0..SLOTS {
            self.slot(index)[0].store(0, Ordering::Relaxed);
        }
        self.words()[BOOT].store(boot, Ordering::Relaxed);
        self.words()[0].store(MAGIC, Ordering::Release);
    }

    /// Notes that `span` may differ. The slot is free.
    pub fn track(&mut self, slot: u32, volume: VolumeId, span: Span) {
        let index = slot as usize;
        if index >= SLOTS {
            self.overflow();
            return;
        }
        let slot = self.slot(index);
        slot[0].store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        slot[1].store(span.start, Ordering::Relaxed);
        slot[2].store(u64::from(span.len), Ordering::Relaxed);
        slot[0].store(u64::from(volume.0) + 1, Ordering::Release);
    }

    /// Frees the slot.
    pub fn untrack(&mut self, slot: u32) {
        let index = slot as usize;
        if index < SLOTS {
            self.slot(index)[0].store(0, Ordering::Release);
        }
    }

    /// The engine says whether the table is complete.
    pub fn exact(&mut self, exact: bool) {
        self.engine_exact = exact;
        self.store_exact();
    }

    /// Every volume has had its disk attached: the engine knows what the predecessor left.
    pub fn all_attached(&mut self) {
        self.waiting = false;
        self.store_exact();
    }

    fn store_exact(&mut self) {
        let exact = self.engine_exact && !self.waiting && !self.overflowed;
        self.words()[EXACT].store(u64::from(exact), Ordering::Release);
    }

    fn overflow(&mut self) {
        if !self.overflowed {
            tracing::warn!(slots = SLOTS, "more ranges in flight than the table holds");
        }
        self.overflowed = true;
        self.store_exact();
    }
}

impl Drop for TrackTable {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the mapping any more. A failure would leak it.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), WORDS * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    const BOOT_ID: u64 = 77;

    fn memory() -> OwnedFd {
        memfd_create("track-test", MemfdFlags::CLOEXEC).unwrap()
    }

    fn again(memory: &OwnedFd, boot: u64) -> Leftover {
        TrackTable::open(memory.try_clone().unwrap(), boot)
            .unwrap()
            .1
    }

    /// A table with two ranges, left by a process that ended without a word.
    fn crashed(exact: bool) -> OwnedFd {
        let memory = memory();
        let (mut table, leftover) = TrackTable::open(memory.try_clone().unwrap(), BOOT_ID).unwrap();
        assert_eq!(leftover, Leftover::default());
        table.all_attached();
        table.exact(exact);
        table.track(0, VolumeId(0), Span::new(4096, 512));
        table.track(1, VolumeId(0), Span::new(0, 512));
        table.track(7, VolumeId(3), Span::new(1 << 40, 1 << 20));
        table.untrack(1);
        memory
    }

    #[test]
    fn a_successor_reads_the_ranges_in_flight_once() {
        let memory = crashed(true);
        let leftover = again(&memory, BOOT_ID);
        assert_eq!(leftover.of(VolumeId(0)), Some(vec![Span::new(4096, 512)]));
        assert_eq!(
            leftover.of(VolumeId(3)),
            Some(vec![Span::new(1 << 40, 1 << 20)])
        );
        assert_eq!(leftover.of(VolumeId(9)), Some(Vec::new()));
        assert_eq!(again(&memory, BOOT_ID), Leftover::default());
    }

    #[test]
    fn nothing_is_believed_of_another_boot_or_an_inexact_table() {
        assert_eq!(again(&crashed(true), BOOT_ID + 1), Leftover::default());
        assert_eq!(again(&crashed(false), BOOT_ID), Leftover::default());
    }

    #[test]
    fn a_slot_beyond_the_table_makes_it_inexact_for_good() {
        let memory = memory();
        let (mut table, _) = TrackTable::open(memory.try_clone().unwrap(), BOOT_ID).unwrap();
        table.all_attached();
        table.track(SLOTS as u32, VolumeId(0), Span::new(0, 512));
        table.exact(true);
        assert_eq!(again(&memory, BOOT_ID), Leftover::default());
    }

    #[test]
    fn nothing_is_believed_of_a_process_that_had_not_got_its_disks() {
        let memory = memory();
        let (mut table, _) = TrackTable::open(memory.try_clone().unwrap(), BOOT_ID).unwrap();
        table.exact(true);
        assert_eq!(again(&memory, BOOT_ID), Leftover::default());
    }

    #[test]
    fn foreign_bytes_are_not_believed() {
        let memory = crashed(true);
        let offset = (8 * WORDS_PER_ENTRY * 3) as u64;
        rustix::io::pwrite(&memory, &u64::MAX.to_le_bytes(), offset).unwrap();
        assert_eq!(again(&memory, BOOT_ID), Leftover::default());
    }
}
