//! The disk's own limit: a file through io_uring with O_DIRECT and nothing in between.
//!
//! [`Requests`] owns ring and buffers, for one file ([`RawDisk`]) or two ([`RawPair`]). `drive`
//! drains the ring.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_uring::{IoUring, opcode, types};
use rustix::fs::OFlags;

use crate::drive::Lane;
use crate::error::BenchError;
use crate::plan::{Case, noise};

/// A page: the alignment that O_DIRECT asks for.
#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

const PAGE: usize = 4096;

/// A ring with the buffers that its requests use, all of one size. Requests may still be in flight
/// after an error, so dropping waits for them before the buffers go: it stands before the files in
/// what owns both.
struct Requests {
    ring: IoUring,
    /// One block per place.
    buffers: Vec<Page>,
    /// Bytes of a block.
    bs: u32,
    in_flight: usize,
}

impl Requests {
    fn new(case: Case, places: u32) -> Result<Requests, BenchError> {
        Ok(Requests {
            ring: IoUring::new(places.next_power_of_two()).map_err(BenchError::io("io_uring"))?,
            buffers: blocks(case, places),
            bs: case.bs,
            in_flight: 0,
        })
    }

    /// Queues a request between a block of `file` and the buffer at `place`, which is named `tag`
    /// when it ends. No request that has not ended uses that buffer.
    fn push(
        &mut self,
        (file, offset): (&File, u64),
        write: bool,
        place: usize,
        tag: usize,
    ) -> Result<(), BenchError> {
        let first = place * self.bs as usize / PAGE;
        let buffer = self.buffers[first..].as_mut_ptr().cast::<u8>();
        let file = types::Fd(file.as_raw_fd());
        let entry = if write {
            opcode::Write::new(file, buffer, self.bs)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(file, buffer, self.bs)
                .offset(offset)
                .build()
        };
        // SAFETY: nobody else uses the buffer before the completion, as this function asks;
        // buffers and files live as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(tag as u64)) };
        pushed.map_err(|full| BenchError::Io {
            what: "io_uring".into(),
            source: std::io::Error::other(full),
        })?;
        self.in_flight += 1;
        Ok(())
    }

    /// The tag of a request that has ended.
    fn reap(&mut self) -> Result<Option<usize>, BenchError> {
        let Some(entry) = self.ring.completion().next() else {
            return Ok(None);
        };
        self.in_flight -= 1;
        match entry.result() {
            count if count == self.bs as i32 => Ok(Some(entry.user_data() as usize)),
            // A short transfer is as good as an error for a figure.
            count => Err(BenchError::Request {
                errno: count.min(0).abs(),
            }),
        }
    }

    /// Submits what is queued and waits for an end.
    fn wait(&mut self) -> Result<(), BenchError> {
        let ended = self.ring.submit_and_wait(1);
        ended.map(|_| ()).map_err(BenchError::io("io_uring"))
    }
}

impl Drop for Requests {
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

/// A file, opened for the requests of one case.
pub struct RawDisk {
    requests: Requests,
    file: File,
    case: Case,
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
            requests: Requests::new(case, case.iodepth)?,
            file: open(path)?,
            case,
        })
    }
}

impl Lane for RawDisk {
    fn queue(&mut self, slot: usize, offset: u64) -> Result<(), BenchError> {
        let write = self.case.rw.writes();
        self.requests.push((&self.file, offset), write, slot, slot)
    }

    fn take(&mut self) -> Result<usize, BenchError> {
        loop {
            self.requests.wait()?;
            if let Some(slot) = self.take_ready()? {
                return Ok(slot);
            }
        }
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        self.requests.reap()
    }
}

/// Two files that are used at the same rate: the second is written with what was read from the
/// first, or, where the case reads, both are read. Files of one physical disk share what it gives.
pub struct RawPair {
    /// A buffer per slot for each file.
    requests: Requests,
    files: [File; 2],
    case: Case,
    slots: Vec<PairSlot>,
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
            requests: Requests::new(case, 2 * case.iodepth)?,
            files: [open(&paths[0])?, open(&paths[1])?],
            case,
            slots: vec![PairSlot::default(); case.iodepth as usize],
        })
    }

    /// Queues a request of `slot` to the file with this index.
    fn push(&mut self, slot: usize, index: usize) -> Result<(), BenchError> {
        let copies = self.case.rw.writes();
        // What is copied stays in its buffer.
        let place = if copies { 2 * slot } else { 2 * slot + index };
        let block = (&self.files[index], self.slots[slot].offset);
        self.requests
            .push(block, copies && index == 1, place, 2 * slot + index)
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
            self.requests.wait()?;
            if let Some(slot) = self.take_ready()? {
                return Ok(slot);
            }
        }
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        while let Some(tag) = self.requests.reap()? {
            let (slot, index) = (tag / 2, tag % 2);
            self.slots[slot].left -= 1;
            if self.slots[slot].left == 0 {
                return Ok(Some(slot));
            }
            if self.case.rw.writes() && index == 0 {
                self.push(slot, 1)?;
            }
        }
        Ok(None)
    }
}
