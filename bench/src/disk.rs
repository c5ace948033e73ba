//! The disk's own limit: a file through io_uring with O_DIRECT and nothing in between.
//!
//! [`RawDisk`] owns ring and buffers. `drive` drains the ring; after an error requests may still be
//! in flight, so dropping waits for them before the buffers go.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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

/// Creates a file whose blocks have all been written, so that no request finds a hole.
pub fn create(path: &Path, size: u64) -> Result<(), BenchError> {
    let mut file = File::create_new(path).map_err(BenchError::at(path))?;
    let chunk = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let count = left.min(chunk.len() as u64);
        file.write_all(&chunk[..count as usize])
            .map_err(BenchError::at(path))?;
        left -= count;
    }
    file.sync_all().map_err(BenchError::at(path))
}

impl RawDisk {
    pub fn open(path: &Path, case: Case) -> Result<RawDisk, BenchError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)
            .map_err(BenchError::at(path))?;
        let block: Vec<Page> = noise(case.bs as usize)
            .chunks_exact(PAGE)
            .map(|bytes| {
                let mut page = Page([0; PAGE]);
                page.0.copy_from_slice(bytes);
                page
            })
            .collect();
        Ok(RawDisk {
            ring: IoUring::new(case.iodepth.next_power_of_two())
                .map_err(BenchError::io("io_uring"))?,
            file,
            case,
            buffers: block.repeat(case.iodepth as usize),
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
