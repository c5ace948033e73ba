//! The verified write load: what every block must contain, remembered while it is written.
//!
//! A block's content follows from its number and a stamp that no other write has, so that a block
//! read later says which write it came from, and damage shows wherever it is. The [`Ledger`]
//! remembers per block the last acknowledged stamp, and the stamp of a write whose fate is open.
//! Stamp 0 is what [`lay_out`] puts on a disk before the story begins.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::front::{Front, FrontError, Place};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks per write when a disk is laid out.
const LAY_OUT: usize = 256;
/// Blocks per request where blocks are written or read in a row.
const RUN: u64 = 32;
/// Writers at once: within the connections that an export takes.
const WRITERS: u64 = 8;
/// First bytes of every block that the demo writes.
const MAGIC: &[u8; 8] = b"LOCKDEMO";
/// Magic, number and stamp.
const HEADER: usize = 24;

/// Fills the first `bytes` of a disk with blocks of stamp 0. `progress` is told how many bytes are
/// done, and ends the work by failing.
pub fn lay_out<E: From<io::Error>>(
    disk: &File,
    bytes: u64,
    mut progress: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let mut data = vec![0; BLOCK * LAY_OUT];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(data.len() as u64) as usize;
        let part = &mut data[..length];
        for (block, content) in (at / BLOCK as u64..).zip(part.chunks_exact_mut(BLOCK)) {
            fill(content, block, 0);
        }
        disk.write_all_at(part, at)?;
        at += length as u64;
        progress(at)?;
    }
    Ok(disk.sync_data()?)
}

/// What is known about one block. Stamps of writes begin at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    acknowledged: u64,
    /// Begun and not acknowledged, so the block may hold it or not; 0 if there is none.
    open: u64,
}

/// What was written where.
pub struct Ledger {
    entries: Mutex<Vec<Entry>>,
    stamps: AtomicU64,
    acknowledged: AtomicU64,
}

impl Ledger {
    /// For a volume of `bytes` that is as it was laid out.
    pub fn new(bytes: u64) -> Ledger {
        let blocks = usize::try_from(bytes / BLOCK as u64).unwrap_or(0);
        Ledger {
            entries: Mutex::new(vec![Entry::default(); blocks]),
            stamps: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.entries().len() as u64
    }

    /// Writes acknowledged so far, in blocks.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Writes `count` blocks from `first` in one request, and remembers them.
    pub fn write(&self, front: &mut Front, first: u64, count: u64) -> Result<(), FrontError> {
        let stamp = self.stamps.fetch_add(count, Ordering::Relaxed);
        let mut data = vec![0; BLOCK * count as usize];
        for (index, block) in data.chunks_exact_mut(BLOCK).enumerate() {
            fill(block, first + index as u64, stamp + index as u64);
        }
        self.note(first, count, |entry, index| entry.open = stamp + index);
        front.write(first * BLOCK as u64, &data)?;
        self.note(first, count, |entry, index| {
            *entry = Entry {
                acknowledged: stamp + index,
                open: 0,
            };
        });
        self.acknowledged.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Writes `count` blocks from `first`, a row at a time.
    pub fn write_rows(&self, front: &mut Front, first: u64, count: u64) -> Result<(), FrontError> {
        let end = (first + count).min(self.blocks());
        let mut at = first;
        while at < end {
            let row = RUN.min(end - at);
            self.write(front, at, row)?;
            at += row;
        }
        Ok(())
    }

    /// Compares every block of the volume with what `read` finds. `progress` is told the number of blocks looked at.
    pub fn check<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        mut progress: impl FnMut(u64),
    ) -> Result<Verdict, E> {
        let entries = self.entries().clone();
        let mut verdict = Verdict::default();
        let mut expected = vec![0; BLOCK];
        let mut data = vec![0; BLOCK * RUN as usize];
        for (row, entries) in entries.chunks(RUN as usize).enumerate() {
            let first = row as u64 * RUN;
            let data = &mut data[..BLOCK * entries.len()];
            read(first * BLOCK as u64, data)?;
            for (index, (found, entry)) in data.chunks_exact(BLOCK).zip(entries).enumerate() {
                verdict.judge(first + index as u64, *entry, found, &mut expected);
            }
            progress(first + entries.len() as u64);
        }
        Ok(verdict)
    }

    fn note(&self, first: u64, count: u64, change: impl Fn(&mut Entry, u64)) {
        let mut entries = self.entries();
        let touched = entries.iter_mut().skip(first as usize);
        for (index, entry) in touched.take(count as usize).enumerate() {
            change(entry, index as u64);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Entries are whole at every moment, whatever became of a thread that held them.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a check found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Blocks looked at.
    pub checked: u64,
    /// Blocks that are neither as acknowledged nor as an open write would leave them.
    pub lost: u64,
    /// Open writes that are there.
    pub open_done: u64,
    /// Open writes that are not there.
    pub open_undone: u64,
    /// The first lost block in words.
    pub first: Option<String>,
}

impl Verdict {
    fn judge(&mut self, block: u64, entry: Entry, found: &[u8], expected: &mut [u8]) {
        self.checked += 1;
        if entry.open != 0 {
            fill(expected, block, entry.open);
            if found == expected {
                self.open_done += 1;
                return;
            }
            self.open_undone += 1;
        }
        fill(expected, block, entry.acknowledged);
        if found != expected {
            self.lost += 1;
            self.first.get_or_insert_with(|| {
                let wanted = entry.acknowledged;
                format!(
                    "block {block} should hold write {wanted}, holds {}",
                    told(found)
                )
            });
        }
    }
}

/// Makes the content of `block` after the write `stamp`.
fn fill(data: &mut [u8], block: u64, stamp: u64) {
    let (header, body) = data.split_at_mut(HEADER);
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&block.to_le_bytes());
    header[16..].copy_from_slice(&stamp.to_le_bytes());
    let mut random = Random::new(block ^ stamp.rotate_left(32));
    for word in body.chunks_mut(8) {
        let value = random.next().to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

/// What a block says about itself.
fn told(data: &[u8]) -> String {
    let number = |at: usize| {
        let bytes = data.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    if data.iter().all(|byte| *byte == 0) {
        return "zeroes".to_owned();
    }
    if !data.starts_with(MAGIC) {
        return "something foreign".to_owned();
    }
    let (block, stamp) = (number(8), number(16));
    let mut whole = vec![0; data.len()];
    fill(&mut whole, block, stamp);
    let damage = if whole == data { "" } else { ", damaged" };
    format!("write {stamp} of block {block}{damage}")
}

/// A small generator (splitmix64): content and places need variety, not secrecy.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Writers that write random blocks until they are stopped or a write fails. Each has blocks of
/// its own, so that the order of writes to a block is known.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<(), FrontError>>>,
}

impl Load {
    /// Opens the volume once per writer and begins.
    pub fn begin(place: &Place, ledger: &Arc<Ledger>) -> Result<Load, FrontError> {
        let fronts: Result<Vec<Front>, FrontError> = (0..WRITERS).map(|_| place.open()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let own = ledger.blocks() / WRITERS;
        let writers = (0..).zip(fronts?).map(|(writer, mut front)| {
            let (stop, ledger) = (Arc::clone(&stop), Arc::clone(ledger));
            std::thread::spawn(move || {
                let mut random = Random::new(writer);
                while !stop.load(Ordering::Relaxed) {
                    let block = random.next() % own.max(1) * WRITERS + writer;
                    ledger.write(&mut front, block, 1)?;
                }
                Ok(())
            })
        });
        Ok(Load {
            writers: writers.collect(),
            stop,
        })
    }

    /// All writers are at work.
    pub fn is_whole(&self) -> bool {
        self.writers.iter().all(|writer| !writer.is_finished())
    }

    /// No writer is at work any more.
    pub fn is_over(&self) -> bool {
        self.writers.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the writers; the first failed write. Waits as long as a write does.
    pub fn end(mut self) -> Result<(), FrontError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for writer in std::mem::take(&mut self.writers) {
            let ended = writer
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a writer panicked").into()));
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Load {
    /// The writers end by themselves.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    /// A disk as laid out, in memory.
    fn disk() -> Vec<u8> {
        let file = tempfile::tempfile().expect("file");
        lay_out(&file, SIZE, |_| io::Result::Ok(())).expect("lays out");
        let mut data = vec![0; SIZE as usize];
        file.read_exact_at(&mut data, 0).expect("reads");
        data
    }

    fn check(ledger: &Ledger, disk: &[u8]) -> Verdict {
        let read = |offset: u64, data: &mut [u8]| {
            data.copy_from_slice(&disk[offset as usize..][..data.len()]);
            io::Result::Ok(())
        };
        ledger.check(read, |_| {}).expect("reads")
    }

    fn put(disk: &mut [u8], block: u64, stamp: u64) {
        let at = block as usize * BLOCK;
        fill(&mut disk[at..at + BLOCK], block, stamp);
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let ledger = Ledger::new(SIZE);
        let mut disk = disk();
        assert_eq!(check(&ledger, &disk).lost, 0);
        ledger.note(7, 1, |entry, _| entry.acknowledged = 5);
        let verdict = check(&ledger, &disk);
        assert_eq!((verdict.checked, verdict.lost), (256, 1));
        let first = verdict.first.expect("told");
        assert_eq!(
            first,
            "block 7 should hold write 5, holds write 0 of block 7"
        );
        put(&mut disk, 7, 5);
        assert_eq!(check(&ledger, &disk).lost, 0);
        // Older, newer, of another block, damaged, foreign, or touched without an order.
        put(&mut disk, 7, 4);
        assert_eq!(check(&ledger, &disk).lost, 1);
        put(&mut disk, 7, 6);
        assert_eq!(check(&ledger, &disk).lost, 1);
        fill(&mut disk[7 * BLOCK..8 * BLOCK], 8, 5);
        assert!(
            check(&ledger, &disk)
                .first
                .is_some_and(|f| f.ends_with("write 5 of block 8"))
        );
        put(&mut disk, 7, 5);
        disk[8 * BLOCK - 1] ^= 1;
        assert!(
            check(&ledger, &disk)
                .first
                .is_some_and(|f| f.ends_with("damaged"))
        );
        disk[7 * BLOCK] ^= 1;
        assert!(
            check(&ledger, &disk)
                .first
                .is_some_and(|f| f.ends_with("foreign"))
        );
        put(&mut disk, 7, 5);
        put(&mut disk, 9, 1);
        assert_eq!(check(&ledger, &disk).lost, 1);
    }

    #[test]
    fn an_open_write_may_be_there_or_not() {
        let ledger = Ledger::new(SIZE);
        let mut disk = disk();
        ledger.note(3, 1, |entry, _| {
            *entry = Entry {
                acknowledged: 5,
                open: 9,
            };
        });
        put(&mut disk, 3, 5);
        let old = check(&ledger, &disk);
        assert_eq!((old.lost, old.open_done, old.open_undone), (0, 0, 1));
        put(&mut disk, 3, 9);
        let new = check(&ledger, &disk);
        assert_eq!((new.lost, new.open_done, new.open_undone), (0, 1, 0));
        put(&mut disk, 3, 7);
        assert_eq!(check(&ledger, &disk).lost, 1);
    }
}
