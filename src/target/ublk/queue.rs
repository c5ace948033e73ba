//! The queue half: one hardware queue of a device, on a ring that it shares with others.
//!
//! Each tag has one command with the kernel or one request with the engine, never both:
//!
//! | state | who has the tag | leaves it by |
//! |---|---|---|
//! | idle | nobody yet | `start` sends the first fetch |
//! | fetching | the kernel | its completion: a request, or the end of the device |
//! | serving | the engine, with the tag's buffer and descriptor | `complete` commits and fetches |
//! | ended | nobody any more | - |
//!
//! The kernel copies the data of a write into the tag's buffer before it completes the fetch, and
//! the data of a read out of it at the commit. The descriptor area is written by the kernel only
//! while it has the tag. A fetch and its commits must come from one thread, the one that drives
//! the ring; opening may happen on another.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use libublk::sys;
use lockstep_transport::ring::{RingFull, Submitter};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::control::DeviceInfo;
use super::{MAX_RANGE, UblkError};
use crate::engine::{IoFailure, Op, Span};
use crate::target::{MAX_DATA, Target, TargetEvent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TagState {
    Idle,
    Fetching,
    /// Length of the request, bytes: what a success reports.
    Serving {
        bytes: u32,
    },
    Ended,
}

/// One volume's queue.
pub struct UblkQueue {
    id: u32,
    device: OwnedFd,
    descriptors: Mapping,
    buffers: Mapping,
    tags: Vec<TagState>,
    /// Commits for which the ring had no room, oldest first: tag and result.
    backlog: VecDeque<(u16, i32)>,
    /// Size of the volume, bytes.
    size: u64,
    stopping: bool,
    stopped: bool,
}

impl UblkQueue {
    /// Opens `/dev/ublkcN` and maps what the queue needs: the descriptors, and address space for
    /// one buffer of [`MAX_DATA`] bytes per tag, of which pages that were never used cost nothing.
    ///
    /// Tries again until `limit` while the node is not there yet or a predecessor has it open.
    pub fn open(info: &DeviceInfo, size: u64, limit: Duration) -> Result<UblkQueue, UblkError> {
        let id = info.id;
        // Larger requests would run into the buffer of the next tag.
        if info.queues != 1 || info.max_io_bytes > MAX_DATA {
            return Err(UblkError::Incompatible {
                id,
                queues: info.queues,
                max_io_bytes: info.max_io_bytes,
            });
        }
        let depth = usize::from(info.depth);
        let memory = |errno| UblkError::Memory { id, errno };
        let device = open_char_device(id, limit)?;
        let area = depth * size_of::<sys::ublksrv_io_desc>();
        // The driver insists on whole pages.
        let area = area.next_multiple_of(rustix::param::page_size());
        Ok(UblkQueue {
            id,
            descriptors: Mapping::of_device(&device, area).map_err(memory)?,
            buffers: Mapping::anonymous(depth * MAX_DATA as usize).map_err(memory)?,
            device,
            tags: vec![TagState::Idle; depth],
            backlog: VecDeque::with_capacity(depth),
            size,
            stopping: false,
            stopped: false,
        })
    }

    /// The volume has another size now; ranges of later requests are checked against it.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// The request that the kernel has put into the descriptor of `tag`.
    fn descriptor(&self, tag: u16) -> sys::ublksrv_io_desc {
        let base = self.descriptors.address.cast::<sys::ublksrv_io_desc>();
        // SAFETY: the area has one descriptor per tag, `tag` is below the depth (it indexes
        // `tags`), and the kernel does not write to it while the tag is ours. Volatile, because
        // the compiler knows no writer.
        unsafe { ptr::read_volatile(base.add(usize::from(tag))) }
    }

    fn buffer_address(&self, tag: u16) -> u64 {
        self.buffers.address as u64 + u64::from(tag) * u64::from(MAX_DATA)
    }

    fn entry(&self, op: u32, tag: u16, result: i32) -> squeue::Entry {
        let command = encode(tag, result, self.buffer_address(tag));
        opcode::UringCmd16::new(types::Fd(self.device.as_raw_fd()), op)
            .cmd(command)
            .build()
    }

    /// Answers a request and asks for the next one on its tag.
    fn commit(&mut self, ring: &mut dyn Submitter, tag: u16, result: i32) {
        self.flush_backlog(ring);
        self.tags[usize::from(tag)] = TagState::Fetching;
        let entry = self.entry(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
        if !self.backlog.is_empty() || ring.submit(entry, u32::from(tag)).is_err() {
            self.backlog.push_back((tag, result));
        }
    }

    fn flush_backlog(&mut self, ring: &mut dyn Submitter) {
        while let Some(&(tag, result)) = self.backlog.front() {
            let entry = self.entry(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
            if ring.submit(entry, u32::from(tag)).is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn request_arrived(
        &mut self,
        ring: &mut dyn Submitter,
        tag: u16,
        events: &mut Vec<TargetEvent>,
    ) {
        let descriptor = self.descriptor(tag);
        match translate(&descriptor, self.size) {
            Ok(_) if self.stopping => self.commit(ring, tag, -Errno::IO.raw_os_error()),
            Ok((op, bytes)) => {
                self.tags[usize::from(tag)] = TagState::Serving { bytes };
                let tag = u32::from(tag);
                events.push(TargetEvent::Request { tag, op });
            }
            Err(errno) => {
                tracing::warn!(
                    device = self.id,
                    op_flags = descriptor.op_flags,
                    start_sector = descriptor.start_sector,
                    sectors = descriptor.nr_sectors,
                    "refusing a ublk request: {errno}"
                );
                self.commit(ring, tag, -errno.raw_os_error());
            }
        }
    }

    /// Reports the end once the kernel and the engine have given every tag back.
    fn check_end(&mut self, events: &mut Vec<TargetEvent>) {
        let over = |state: &TagState| match state {
            TagState::Ended => true,
            TagState::Idle => self.stopping,
            TagState::Fetching | TagState::Serving { .. } => false,
        };
        if !self.stopped && self.tags.iter().all(over) {
            self.stopped = true;
            events.push(TargetEvent::Stopped);
        }
    }
}

/// A queue that is dropped before its end leaves its buffers mapped: commands with the kernel name
/// their addresses, and memory that came there later would be written to.
impl Drop for UblkQueue {
    fn drop(&mut self) {
        if self.tags.contains(&TagState::Fetching) {
            self.buffers.leak();
        }
    }
}

impl Target for UblkQueue {
    fn depth(&self) -> u32 {
        self.tags.len() as u32
    }

    /// Sends the first fetch of every tag. After `RingFull` a second call sends the rest.
    fn start(&mut self, ring: &mut dyn Submitter) -> Result<(), RingFull> {
        for tag in 0..self.tags.len() {
            if self.tags[tag] == TagState::Idle {
                let entry = self.entry(sys::UBLK_U_IO_FETCH_REQ, tag as u16, 0);
                ring.submit(entry, tag as u32)?;
                self.tags[tag] = TagState::Fetching;
            }
        }
        Ok(())
    }

    fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        token: u32,
        result: i32,
        _flags: u32,
        events: &mut Vec<TargetEvent>,
    ) {
        self.flush_backlog(ring);
        if self.tags.get(token as usize) != Some(&TagState::Fetching) {
            return;
        }
        let tag = token as u16;
        if result == sys::UBLK_IO_RES_OK as i32 {
            self.request_arrived(ring, tag, events);
            return;
        }
        // ENODEV is the regular end of a tag; anything else means that the kernel refused it.
        if result != sys::UBLK_IO_RES_ABORT {
            tracing::error!(device = self.id, tag, result, "ublk ended a tag");
        }
        self.tags[usize::from(tag)] = TagState::Ended;
        self.check_end(events);
    }

    fn buffer(&mut self, tag: u32) -> &mut [u8] {
        if tag as usize >= self.tags.len() {
            return &mut [];
        }
        let address = self.buffer_address(tag as u16) as *mut u8;
        // SAFETY: inside the mapping, which lives as long as `self`; one slice at a time, since
        // `self` is borrowed. The kernel reads or writes the buffer only while it has the tag.
        unsafe { std::slice::from_raw_parts_mut(address, MAX_DATA as usize) }
    }

    fn complete(&mut self, ring: &mut dyn Submitter, tag: u32, result: Result<(), IoFailure>) {
        let Some(&TagState::Serving { bytes }) = self.tags.get(tag as usize) else {
            return;
        };
        let result = match result {
            // Fits: at most `MAX_RANGE`.
            Ok(()) => bytes as i32,
            Err(failure) => -errno_of(failure).raw_os_error(),
        };
        self.commit(ring, tag as u16, result);
    }

    /// From here on new requests fail at once. The tags come back when the device is stopped
    /// through [`UblkControl`](super::UblkControl), which another thread may do at the same time;
    /// `Stopped` follows when the last request of the engine is completed too.
    fn stop(&mut self, ring: &mut dyn Submitter, events: &mut Vec<TargetEvent>) {
        self.stopping = true;
        self.flush_backlog(ring);
        self.check_end(events);
    }
}

/// The kernel's `ublksrv_io_cmd`.
fn encode(tag: u16, result: i32, address: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

/// Reads a descriptor: the operation and its length in bytes, or the error to answer with.
fn translate(descriptor: &sys::ublksrv_io_desc, size: u64) -> Result<(Op, u32), Errno> {
    let flag = |bit: u32| descriptor.op_flags & bit != 0;
    let fua = flag(sys::UBLK_IO_F_FUA);
    // The low byte is the operation.
    let span = |limit: u32| span_of(descriptor, size, limit);
    let op = match descriptor.op_flags & 0xff {
        sys::UBLK_IO_OP_READ => Op::Read {
            span: span(MAX_DATA)?,
        },
        sys::UBLK_IO_OP_WRITE => Op::Write {
            span: span(MAX_DATA)?,
            fua,
        },
        sys::UBLK_IO_OP_WRITE_ZEROES => Op::WriteZeroes {
            span: span(MAX_RANGE)?,
            unmap: !flag(sys::UBLK_IO_F_NOUNMAP),
            fua,
        },
        sys::UBLK_IO_OP_DISCARD => Op::Discard {
            span: span(MAX_RANGE)?,
        },
        sys::UBLK_IO_OP_FLUSH => return Ok((Op::Flush, 0)),
        _ => return Err(Errno::OPNOTSUPP),
    };
    Ok((op, descriptor.nr_sectors << 9))
}

fn span_of(descriptor: &sys::ublksrv_io_desc, size: u64, limit: u32) -> Result<Span, Errno> {
    let len = u64::from(descriptor.nr_sectors) << 9;
    let end = descriptor
        .start_sector
        .checked_mul(512)
        .and_then(|start| start.checked_add(len));
    match end {
        Some(end) if len > 0 && len <= u64::from(limit) && end <= size => {
            Ok(Span::new(end - len, len as u32))
        }
        _ => Err(Errno::IO),
    }
}

/// What the kernel is told. It knows a handful of errors; the rest would become "I/O error" there
/// too, except `EAGAIN`, which would make it try again.
fn errno_of(failure: IoFailure) -> Errno {
    match failure {
        IoFailure::NotPrimary | IoFailure::NoData => Errno::IO,
        IoFailure::BadRequest => Errno::INVAL,
        IoFailure::Disk(errno) => match Errno::from_raw_os_error(errno.clamp(1, 4095)) {
            known @ (Errno::NOSPC | Errno::OPNOTSUPP | Errno::NODATA | Errno::ILSEQ) => known,
            _ => Errno::IO,
        },
    }
}

fn open_char_device(id: u32, limit: Duration) -> Result<OwnedFd, UblkError> {
    let path = format!("/dev/ublkc{id}");
    let deadline = Instant::now() + limit;
    loop {
        match rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(device) => return Ok(device),
            Err(Errno::NOENT | Errno::BUSY | Errno::NXIO) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(errno) => return Err(UblkError::CharDevice { id, errno }),
        }
    }
}

/// A memory mapping, unmapped on drop.
struct Mapping {
    address: *mut c_void,
    len: usize,
}

// SAFETY: plain memory of the process; access goes through `UblkQueue`, which one thread owns.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The kernel's side of `device`, read-only.
    fn of_device(device: &OwnedFd, len: usize) -> Result<Mapping, Errno> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ,
                flags,
                device.as_fd(),
                u64::from(sys::UBLKSRV_CMD_BUF_OFFSET),
            )
        }?;
        Ok(Mapping { address, len })
    }

    /// Memory that reads as zeroes and takes no pages until it is written.
    fn anonymous(len: usize) -> Result<Mapping, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, access, flags) }?;
        Ok(Mapping { address, len })
    }

    /// Stays mapped until the process ends.
    fn leak(&mut self) {
        self.len = 0;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: our own mapping, and nothing refers to it any more: slices of it borrow the
        // queue, and commands with the kernel hold the pages themselves while they copy.
        let unmapped = unsafe { rustix::mm::munmap(self.address, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
