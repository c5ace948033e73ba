//! The disk's own limit: a file through io_uring with O_DIRECT and nothing in between.
//!
//! [`RawDisk`] owns ring and buffers. `drive` drains the ring; after an error requests may still be
//! in flight, so dropping waits for them before the buffers go.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::OFlags;

use crate::drive::Lane;
use crate::error::BenchError;
use crate::plan::{Case, noise};

/// A page: the alignment that O_DIRECT asks for.
#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

const PAGE: usize = 4096;

/// A file, opened for the requests of one case.
pub struct RawDisk {
    ring: IoUring,
    file: File,
    case: Case,
    /// One block per slot.
    buffers: Vec<Page>,
    in_flight: usize,
}

/// Creates a file whose blocks have all been written, so that no request finds a hole. None is
/// zero either: a sync may turn those into holes.
pub fn create(path: &Path, size: u64) -> Result<(), BenchError> {
    let mut file = File::create_new(path).map_err(BenchError::at(path))?;
    let chunk = noise(1 << 20);
    let mut left = size;
    while left > 0 {
        let count = left.min(chunk.len() as u64);
        file.write_all(&chunk[..count as usize])
            .map_err(BenchError::at(path))?;
        left -= count;
    }
    file.sync_all().map_err(BenchError::at(path))
}

fn open(path: &Path) -> Result<File, BenchError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path)
        .map_err(BenchError::at(path))
}

/// So many blocks of the case's size.
fn blocks(case: Case, count: u32) -> Vec<Page> {
    let block: Vec<Page> = noise(case.bs as usize)
        .chunks_exact(PAGE)
        .map(|bytes| {
            let mut page = Page([0; PAGE]);
            page.0.copy_from_slice(bytes);
            page
        })
        .collect();
    block.repeat(count as usize)
}

impl RawDisk {
    pub fn open(path: &Path, case: Case) -> Result<RawDisk, BenchError> {
        Ok(RawDisk {
            ring: IoUring::new(case.iodepth.next_power_of_two())
                .map_err(BenchError::io("io_uring"))?,
            file: open(path)?,
            case,
            buffers: blocks(case, case.iodepth),
            in_flight: 0,
        })
    }

    fn reap(&mut self) -> Result<Option<usize>, BenchError> {
        let Some(entry) = self.ring.completion().next() else {
            return Ok(None);
        };
        self.in_flight -= 1;
        match entry.result() {
            count if count == self.case.bs as i32 => Ok(Some(entry.user_data() as usize)),
            // A short transfer is as good as an error for a figure.
            count => Err(BenchError::Request {
                errno: count.min(0).abs(),
            }),
        }
    }

    fn entry(&mut self, slot: usize, offset: u64) -> squeue::Entry {
        let first = slot * self.case.bs as usize / PAGE;
        let buffer = self.buffers[first..].as_mut_ptr().cast::<u8>();
        let file = types::Fd(self.file.as_raw_fd());
        let entry = if self.case.rw.writes() {
            opcode::Write::new(file, buffer, self.case.bs)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(file, buffer, self.case.bs)
                .offset(offset)
                .build()
        };
        entry.user_data(slot as u64)
    }
}

impl Lane for RawDisk {
    fn queue(&mut self, slot: usize, offset: u64) -> Result<(), BenchError> {
        let entry = self.entry(slot, offset);
        // SAFETY: the buffer belongs to this slot alone, which the caller does not use again
        // before its completion; buffers and file live as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|full| BenchError::Io {
            what: "io_uring".into(),
            source: std::io::Error::other(full),
        })?;
        self.in_flight += 1;
        Ok(())
    }

    fn take(&mut self) -> Result<usize, BenchError> {
        loop {
            self.ring
                .submit_and_wait(1)
                .map_err(BenchError::io("io_uring"))?;
            if let Some(slot) = self.reap()? {
                return Ok(slot);
            }
        }
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        self.reap()
    }
}

impl Drop for RawDisk {
    fn drop(&mut self) {
        while self.in_flight > 0 && self.ring.submit_and_wait(1).is_ok() {
            self.in_flight -= self.ring.completion().count();
        }
        if self.in_flight > 0 {
            // The kernel may still write into them.
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
    }
}

/// Two files that are used at the same rate: the second is written with what was read from the
/// first, or, where the case reads, both are read. Files of one physical disk share what it gives.
pub struct RawPair {
    ring: IoUring,
    files: [File; 2],
    case: Case,
    /// A block per slot for each file.
    buffers: Vec<Page>,
    slots: Vec<PairSlot>,
    in_flight: usize,
}

#[derive(Clone, Copy, Default)]
struct PairSlot {
    offset: u64,
    /// Requests that have not ended, those to come included.
    left: u8,
}

impl RawPair {
    /// With `case.rw` reading, both are read.
    pub fn open(paths: &[PathBuf; 2], case: Case) -> Result<RawPair, BenchError> {
        Ok(RawPair {
            ring: IoUring::new((2 * case.iodepth).next_power_of_two())
                .map_err(BenchError::io("io_uring"))?,
            files: [open(&paths[0])?, open(&paths[1])?],
            case,
            buffers: blocks(case, 2 * case.iodepth),
            slots: vec![PairSlot::default(); case.iodepth as usize],
            in_flight: 0,
        })
    }

    /// Queues a request of `slot` to the file with this index.
    fn push(&mut self, slot: usize, index: usize) -> Result<(), BenchError> {
        let copies = self.case.rw.writes();
        // What is copied stays in its buffer.
        let place = if copies { 2 * slot } else { 2 * slot + index };
        let first = place * self.case.bs as usize / PAGE;
        let buffer = self.buffers[first..].as_mut_ptr().cast::<u8>();
        let file = types::Fd(self.files[index].as_raw_fd());
        let offset = self.slots[slot].offset;
        let entry = if copies && index == 1 {
            opcode::Write::new(file, buffer, self.case.bs)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(file, buffer, self.case.bs)
                .offset(offset)
                .build()
        };
        let entry = entry.user_data((2 * slot + index) as u64);
        // SAFETY: the buffer belongs to this slot and file alone, or to this slot whose read has
        // ended; the caller does not use the slot again before its end; buffers and files live as
        // long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|full| BenchError::Io {
            what: "io_uring".into(),
            source: std::io::Error::other(full),
        })?;
        self.in_flight += 1;
        Ok(())
    }

    fn reap(&mut self) -> Result<Option<usize>, BenchError> {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return Ok(None);
            };
            self.in_flight -= 1;
            if entry.result() != self.case.bs as i32 {
                return Err(BenchError::Request {
                    errno: entry.result().min(0).abs(),
                });
            }
            let (slot, index) = (entry.user_data() as usize / 2, entry.user_data() % 2);
            self.slots[slot].left -= 1;
            if self.slots[slot].left == 0 {
                return Ok(Some(slot));
            }
            if self.case.rw.writes() && index == 0 {
                self.push(slot, 1)?;
            }
        }
    }
}

impl Lane for RawPair {
    fn queue(&mut self, slot: usize, offset: u64) -> Result<(), BenchError> {
        self.slots[slot] = PairSlot { offset, left: 2 };
        self.push(slot, 0)?;
        match self.case.rw.writes() {
            true => Ok(()),
            false => self.push(slot, 1),
        }
    }

    fn take(&mut self) -> Result<usize, BenchError> {
        loop {
            self.ring
                .submit_and_wait(1)
                .map_err(BenchError::io("io_uring"))?;
            if let Some(slot) = self.reap()? {
                return Ok(slot);
            }
        }
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        self.reap()
    }
}

impl Drop for RawPair {
    fn drop(&mut self) {
        while self.in_flight > 0 && self.ring.submit_and_wait(1).is_ok() {
            self.in_flight -= self.ring.completion().count();
        }
        if self.in_flight > 0 {
            // The kernel may still write into them.
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
    }
}
