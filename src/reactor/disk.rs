//! Disk operations of the engine, through the ring.
//!
//! An operation is a [`Job`]: one entry in the ring at a time, continued after a short transfer.
//! The job's buffer belongs to the engine, which keeps it until the outcome, and the outcome
//! comes only when the ring names the buffer no more: nothing here gives up on an entry early.
//!
//! How each promise is kept:
//! - FUA is `RWF_DSYNC` on the write: on a block device the kernel turns it into a FUA write or
//!   a write and a cache flush, whichever the device has; on a file it syncs the written range.
//! - A flush is `fdatasync`, which on a block device flushes its volatile cache.
//! - Zeroes and discards are `fallocate` (zero-range, punch-hole), which works for files and
//!   block devices; a disk that has neither gets zeroes written. A discard therefore always
//!   reads as zeroes afterwards, so that two copies stay equal.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};
use lockstep_transport::ring::Submitter;
use rustix::fs::{FallocateFlags, SeekFrom, seek};
use rustix::io::Errno;

use super::backing::Backing;
use super::buffers::{Memory, Region};
use super::slab::Slab;
use crate::engine::{Digest, IoId, IoOutcome, Span, Time};

/// Bytes of zeroes written by one entry where the disk has no better way.
const ZERO_CHUNK: u32 = 1 << 20;

/// Times an entry that ended with EINTR or EAGAIN is put on the ring again before its operation
/// counts as failed.
const MAX_RETRIES: u8 = 100;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Read {
        span: Span,
        memory: Memory,
        /// Zeroes are an outcome of their own.
        note_zeroes: bool,
    },
    /// Asks the file system whether a range begins with a hole.
    Probe {
        span: Span,
    },
    /// Reads and answers with the hash.
    Hash {
        span: Span,
        memory: Memory,
        digest: Digest,
    },
    Write {
        span: Span,
        memory: Memory,
        fua: bool,
    },
    Zeroes {
        span: Span,
        unmap: bool,
        fua: bool,
    },
    Flush,
}

impl Work {
    /// True when it could make a file longer, or leave it as short as somebody made it.
    fn changes(&self) -> bool {
        matches!(self, Work::Write { .. } | Work::Zeroes { .. })
    }

    /// True when the buffer holds the range.
    fn fits(&self) -> bool {
        match self {
            Work::Read { span, memory, .. }
            | Work::Hash { span, memory, .. }
            | Work::Write { span, memory, .. } => span.len <= memory.len,
            Work::Probe { .. } | Work::Zeroes { .. } | Work::Flush => true,
        }
    }
}

/// An ended operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub io: IoId,
    /// Index of the volume.
    pub volume: usize,
    pub work: Work,
    pub outcome: IoOutcome,
    pub started: Time,
}

/// How a disk makes a range read as zeroes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroPath {
    PunchHole,
    ZeroRange,
    Write,
}

impl ZeroPath {
    fn next(self) -> ZeroPath {
        match self {
            ZeroPath::PunchHole => ZeroPath::ZeroRange,
            ZeroPath::ZeroRange | ZeroPath::Write => ZeroPath::Write,
        }
    }
}

/// The data device of a volume, opened with O_DIRECT.
#[derive(Debug)]
struct Disk {
    fd: OwnedFd,
    backing: Backing,
    /// First byte of the data area.
    start: u64,
    /// What has worked or not been tried so far, with and without unmap.
    zero_path: std::cell::Cell<[ZeroPath; 2]>,
}

#[derive(Debug)]
enum Step {
    /// The transfer, the hole or the zeroes.
    Body,
    /// The flush that makes zeroes stable.
    Sync,
}

#[derive(Debug)]
struct Job {
    io: IoId,
    volume: usize,
    disk: Rc<Disk>,
    work: Work,
    started: Time,
    step: Step,
    /// Bytes done.
    done: u32,
    zero_path: ZeroPath,
    retries: u8,
}

/// The disks of all volumes and what is in flight on them.
pub struct Disks {
    disks: Vec<Option<Rc<Disk>>>,
    jobs: Slab<Job>,
    /// Jobs that found the ring full.
    waiting: VecDeque<u32>,
    zeroes: Region,
}

impl Disks {
    /// No disk yet for any of `volumes` volumes.
    pub fn new(volumes: usize) -> std::io::Result<Disks> {
        Ok(Disks {
            disks: (0..volumes).map(|_| None).collect(),
            jobs: Slab::default(),
            waiting: VecDeque::new(),
            zeroes: Region::new(ZERO_CHUNK as usize)?,
        })
    }

    /// Gives volume `index` its disk; data begins at byte `start`.
    pub fn attach(&mut self, index: usize, fd: OwnedFd, start: u64) {
        if let Some(slot) = self.disks.get_mut(index) {
            *slot = Some(Rc::new(Disk {
                backing: Backing::of(&fd),
                fd,
                start,
                zero_path: std::cell::Cell::new([ZeroPath::ZeroRange, ZeroPath::PunchHole]),
            }));
        }
    }

    /// Forgets the disk of volume `index`; it is closed when its last operation has ended.
    pub fn close(&mut self, index: usize) {
        if let Some(slot) = self.disks.get_mut(index) {
            *slot = None;
        }
    }

    /// Whether the disk of volume `index` is a file that has been made shorter.
    pub fn is_shorter(&self, index: usize) -> bool {
        let disk = self.disks.get(index).and_then(Option::as_ref);
        disk.is_some_and(|disk| disk.is_shorter())
    }

    /// Begins an operation. One that cannot begin ends at once, in `out`.
    pub fn start(
        &mut self,
        ring: &mut dyn Submitter,
        now: Time,
        (io, volume, work): (IoId, usize, Work),
        out: &mut Vec<Finished>,
    ) {
        let disk = self.disks.get(volume).and_then(Clone::clone);
        let (Some(disk), true) = (disk, work.fits()) else {
            out.push(Finished {
                io,
                volume,
                work,
                outcome: IoOutcome::Failed(Errno::NXIO.raw_os_error()),
                started: now,
            });
            return;
        };
        if work.changes() && disk.is_shorter() {
            out.push(Finished {
                io,
                volume,
                work,
                outcome: IoOutcome::Failed(Errno::IO.raw_os_error()),
                started: now,
            });
            return;
        }
        if let Work::Probe { span } = work {
            out.push(Finished {
                io,
                volume,
                work,
                outcome: disk.probe(span),
                started: now,
            });
            return;
        }
        let unmap = matches!(work, Work::Zeroes { unmap: true, .. });
        let zero_path = disk.zero_path.get()[usize::from(unmap)];
        let token = self.jobs.insert(Job {
            io,
            volume,
            disk,
            work,
            started: now,
            step: Step::Body,
            done: 0,
            zero_path,
            retries: 0,
        });
        self.submit(ring, token);
    }

    /// Puts jobs on the ring that found it full.
    pub fn retry(&mut self, ring: &mut dyn Submitter) {
        for _ in 0..self.waiting.len() {
            if let Some(token) = self.waiting.pop_front() {
                self.submit(ring, token);
            }
        }
    }

    /// True while a job waits for room in the ring.
    pub fn wants_room(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn submit(&mut self, ring: &mut dyn Submitter, token: u32) {
        let zeroes = self.zeroes.part(0, ZERO_CHUNK);
        let Some(entry) = self
            .jobs
            .get_mut(token)
            .and_then(|job| zeroes.map(|zeroes| job.entry(zeroes)))
        else {
            return;
        };
        if ring.submit(entry, token).is_err() {
            self.waiting.push_back(token);
        }
    }

    /// Takes the completion of a job's entry.
    pub fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        token: u32,
        result: i32,
        out: &mut Vec<Finished>,
    ) {
        let Some(job) = self.jobs.get_mut(token) else {
            return;
        };
        match job.advance(result) {
            None => self.submit(ring, token),
            Some(outcome) => {
                if let Some(job) = self.jobs.remove(token) {
                    out.push(Finished {
                        io: job.io,
                        volume: job.volume,
                        work: job.work,
                        outcome,
                        started: job.started,
                    });
                }
            }
        }
    }
}

/// A pointer moved by `done` bytes, and the bytes left.
fn rest(span: Span, memory: Memory, done: u32) -> (*mut u8, u32, u64) {
    // SAFETY: `done` is at most `span.len`, and `Disks::start` checked that against the buffer.
    let start = unsafe { memory.start.add(done as usize) };
    (start, span.len - done, span.start + u64::from(done))
}

impl Job {
    /// The next entry.
    fn entry(&self, zeroes: Memory) -> squeue::Entry {
        let fd = types::Fd(self.disk.fd.as_raw_fd());
        if matches!(self.step, Step::Sync) {
            return sync(fd);
        }
        match self.work {
            Work::Read { span, memory, .. } | Work::Hash { span, memory, .. } => {
                let (start, len, offset) = rest(span, memory, self.done);
                opcode::Read::new(fd, start, len)
                    .offset(self.disk.start + offset)
                    .build()
            }
            Work::Write { span, memory, fua } => {
                let (start, len, offset) = rest(span, memory, self.done);
                opcode::Write::new(fd, start, len)
                    .offset(self.disk.start + offset)
                    .rw_flags(if fua { RWF_DSYNC } else { 0 })
                    .build()
            }
            Work::Zeroes { span, .. } => {
                let offset = self.disk.start + span.start + u64::from(self.done);
                let len = span.len - self.done;
                let mode = match self.zero_path {
                    ZeroPath::PunchHole => FallocateFlags::PUNCH_HOLE,
                    ZeroPath::ZeroRange => FallocateFlags::ZERO_RANGE,
                    ZeroPath::Write => {
                        return opcode::Write::new(fd, zeroes.start, len.min(zeroes.len))
                            .offset(offset)
                            .build();
                    }
                } | FallocateFlags::KEEP_SIZE;
                opcode::Fallocate::new(fd, u64::from(len))
                    .offset(offset)
                    .mode(mode.bits() as i32)
                    .build()
            }
            // A probe has no entry: it ends as it starts.
            Work::Flush | Work::Probe { .. } => sync(fd),
        }
    }

    /// Takes a result; the outcome, or `None` when another entry must follow.
    fn advance(&mut self, result: i32) -> Option<IoOutcome> {
        if result < 0 {
            return self.failed(-result);
        }
        if matches!(self.step, Step::Sync) {
            return Some(IoOutcome::Done);
        }
        match self.work {
            Work::Read {
                span,
                memory,
                note_zeroes: true,
            } => match self.moved(result, span) {
                Some(()) => Some(look(memory.first(span.len))),
                None => self.stuck(result),
            },
            Work::Read { span, .. } | Work::Write { span, .. } => match self.moved(result, span) {
                Some(()) => Some(IoOutcome::Done),
                None => self.stuck(result),
            },
            Work::Hash {
                span,
                memory,
                digest,
            } => match self.moved(result, span) {
                Some(()) => Some(hash(digest, memory.first(span.len))),
                None => self.stuck(result),
            },
            Work::Zeroes { span, fua, .. } => {
                if self.zero_path == ZeroPath::Write && self.moved(result, span).is_none() {
                    return self.stuck(result);
                }
                if fua {
                    self.step = Step::Sync;
                    return None;
                }
                Some(IoOutcome::Done)
            }
            Work::Flush | Work::Probe { .. } => Some(IoOutcome::Done),
        }
    }

    /// Counts transferred bytes; `Some` when the span is complete.
    fn moved(&mut self, result: i32, span: Span) -> Option<()> {
        self.done = span.len.min(self.done.saturating_add(result as u32));
        (self.done == span.len).then_some(())
    }

    /// A transfer that is not complete goes on, unless it moved nothing: the end of the disk.
    fn stuck(&self, result: i32) -> Option<IoOutcome> {
        (result == 0).then_some(IoOutcome::Failed(Errno::IO.raw_os_error()))
    }

    fn failed(&mut self, errno: i32) -> Option<IoOutcome> {
        let is = |other: Errno| other.raw_os_error() == errno;
        if (is(Errno::INTR) || is(Errno::AGAIN)) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return None;
        }
        if let Work::Zeroes { unmap, .. } = self.work
            && matches!(self.step, Step::Body)
            && self.zero_path != ZeroPath::Write
            && (is(Errno::OPNOTSUPP) || is(Errno::NOSYS) || is(Errno::INVAL))
        {
            self.zero_path = self.zero_path.next();
            // EINVAL may come from this range alone; the others are the disk's last word.
            if !is(Errno::INVAL) {
                let mut known = self.disk.zero_path.get();
                known[usize::from(unmap)] = self.zero_path;
                self.disk.zero_path.set(known);
            }
            return None;
        }
        Some(IoOutcome::Failed(errno))
    }
}

/// `RWF_DSYNC` of the kernel's interface.
const RWF_DSYNC: i32 = 0x2;

fn sync(fd: types::Fd) -> squeue::Entry {
    opcode::Fsync::new(fd)
        .flags(types::FsyncFlags::DATASYNC)
        .build()
}

impl Disk {
    fn is_shorter(&self) -> bool {
        self.backing.is_shorter(&self.fd)
    }

    /// What the file system says of the start of a range. One that cannot tell, as block devices
    /// cannot, says that there are no holes.
    fn probe(&self, span: Span) -> IoOutcome {
        let from = self.start + span.start;
        let (hole, until) = match seek(&self.fd, SeekFrom::Data(from)) {
            Ok(data) if data > from => (true, data),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => (true, u64::MAX),
            Ok(_) => (
                false,
                seek(&self.fd, SeekFrom::Hole(from)).unwrap_or(u64::MAX),
            ),
            Err(_) => (false, u64::MAX),
        };
        let bytes = until.saturating_sub(from);
        IoOutcome::Begins { hole, bytes }
    }
}

/// The outcome of a read that may have found nothing but zeroes.
fn look(memory: Option<Memory>) -> IoOutcome {
    const ZEROES: [u8; 4096] = [0; 4096];
    let Some(memory) = memory else {
        return IoOutcome::Failed(Errno::INVAL.raw_os_error());
    };
    // SAFETY: the read into this buffer has ended, and the engine leaves it alone until the
    // outcome.
    let bytes = unsafe { memory.bytes() };
    match { bytes.chunks(ZEROES.len()) }.all(|part| *part == ZEROES[..part.len()]) {
        true => IoOutcome::Zeroes,
        false => IoOutcome::Done,
    }
}

fn hash(digest: Digest, memory: Option<Memory>) -> IoOutcome {
    match memory {
        // SAFETY: the read into this buffer has ended, and the engine leaves it alone until the
        // outcome.
        Some(memory) => IoOutcome::Hash(super::digest::of(digest, unsafe { memory.bytes() })),
        None => IoOutcome::Failed(Errno::INVAL.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::ring::{Completion, Owner, Ring, waker};
    use rustix::fs::{Mode, OFlags};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    const KIB: usize = 1024;

    struct Bench {
        ring: Ring,
        disks: Disks,
        memory: Region,
        file: tempfile::NamedTempFile,
        next: u64,
    }

    impl Bench {
        fn new(size: u64, flags: OFlags) -> Bench {
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            file.as_file().set_len(size).unwrap();
            let fd = rustix::fs::open(file.path(), flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let mut disks = Disks::new(2).unwrap();
            disks.attach(0, fd, 0);
            Bench {
                ring: Ring::new(&waker().unwrap()).unwrap(),
                disks,
                memory: Region::new(512 * KIB).unwrap(),
                file,
                next: 0,
            }
        }

        fn direct() -> Bench {
            Bench::new(1 << 20, OFlags::RDWR | OFlags::DIRECT)
        }

        fn run(&mut self, volume: usize, work: Work) -> IoOutcome {
            self.next += 1;
            let mut out = Vec::new();
            let id = IoId(self.next);
            self.disks.start(
                &mut self.ring.port(Owner::DISK),
                Time(0),
                (id, volume, work),
                &mut out,
            );
            while out.is_empty() {
                let mut seen: Vec<Completion> = Vec::new();
                self.ring
                    .wait(Some(Duration::from_secs(10)), &mut seen)
                    .unwrap();
                for done in seen {
                    let mut port = self.ring.port(done.owner);
                    self.disks
                        .on_completion(&mut port, done.token, done.result, &mut out);
                }
            }
            assert_eq!(out[0].io, id);
            assert!(self.disks.jobs.get_mut(0).is_none());
            out[0].outcome
        }

        fn memory(&self, offset: usize, len: u32) -> Memory {
            self.memory.part(offset, len).unwrap()
        }

        fn fill(&self, offset: usize, len: u32, byte: u8) -> Memory {
            let memory = self.memory(offset, len);
            // SAFETY: nothing is in flight on the region.
            unsafe { std::ptr::write_bytes(memory.start, byte, len as usize) };
            memory
        }

        fn content(&self) -> Vec<u8> {
            std::fs::read(self.file.path()).unwrap()
        }
    }

    #[test]
    fn what_was_written_is_read_and_hashed() {
        let mut bench = Bench::direct();
        let span = Span::new(8192, 16384);
        let memory = bench.fill(0, 16384, 0xa5);
        for fua in [false, true] {
            let done = bench.run(0, Work::Write { span, memory, fua });
            assert_eq!(done, IoOutcome::Done);
        }
        assert_eq!(bench.run(0, Work::Flush), IoOutcome::Done);
        let target = bench.fill(65536, 16384, 0);
        let done = bench.run(
            0,
            Work::Read {
                span,
                memory: target,
                note_zeroes: false,
            },
        );
        assert_eq!(done, IoOutcome::Done);
        // SAFETY: the read has ended.
        assert!(unsafe { target.bytes() }.iter().all(|byte| *byte == 0xa5));
        let expected = *blake3::hash(&[0xa5u8; 16384]).as_bytes();
        let done = bench.run(
            0,
            Work::Hash {
                span,
                memory: target,
                digest: Digest::Blake3,
            },
        );
        assert_eq!(done, IoOutcome::Hash(expected));
        assert!(bench.content()[..8192].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn zeroes_read_as_zeroes_by_every_path() {
        for path in [ZeroPath::PunchHole, ZeroPath::ZeroRange, ZeroPath::Write] {
            let mut bench = Bench::direct();
            let memory = bench.fill(0, 256 * 1024, 0xff);
            let span = Span::new(0, 256 * 1024);
            bench.run(
                0,
                Work::Write {
                    span,
                    memory,
                    fua: false,
                },
            );
            let disk = bench.disks.disks[0].clone().unwrap();
            disk.zero_path.set([path; 2]);
            let span = Span::new(4096, 100 * 1024);
            for fua in [false, true] {
                let done = bench.run(
                    0,
                    Work::Zeroes {
                        span,
                        unmap: true,
                        fua,
                    },
                );
                assert_eq!(done, IoOutcome::Done, "{path:?}");
            }
            let content = bench.content();
            let (start, end) = (4096, 4096 + 100 * KIB);
            assert!(
                content[start..end].iter().all(|byte| *byte == 0),
                "{path:?}"
            );
            assert!(content[..start].iter().all(|byte| *byte == 0xff));
            assert!(content[end..256 * KIB].iter().all(|byte| *byte == 0xff));
        }
    }

    #[test]
    fn a_disk_without_fallocate_gets_zeroes_written() {
        let bench = Bench::direct();
        let memory = bench.memory(0, 4096);
        let disk = bench.disks.disks[0].clone().unwrap();
        let mut job = Job {
            io: IoId(1),
            volume: 0,
            disk: disk.clone(),
            work: Work::Zeroes {
                span: Span::new(0, 4096),
                unmap: true,
                fua: false,
            },
            started: Time(0),
            step: Step::Body,
            done: 0,
            zero_path: ZeroPath::PunchHole,
            retries: 0,
        };
        assert_eq!(job.advance(-Errno::OPNOTSUPP.raw_os_error()), None);
        assert_eq!(job.advance(-Errno::OPNOTSUPP.raw_os_error()), None);
        assert_eq!(job.zero_path, ZeroPath::Write);
        assert_eq!(
            job.entry(memory).get_opcode(),
            u32::from(opcode::Write::CODE)
        );
        assert_eq!(disk.zero_path.get(), [ZeroPath::ZeroRange, ZeroPath::Write]);
        let failed = job.advance(-Errno::NOSPC.raw_os_error());
        assert_eq!(failed, Some(IoOutcome::Failed(Errno::NOSPC.raw_os_error())));
    }

    #[test]
    fn a_short_transfer_goes_on_and_the_end_of_the_disk_is_an_error() {
        let bench = Bench::direct();
        let mut job = Job {
            io: IoId(1),
            volume: 0,
            disk: bench.disks.disks[0].clone().unwrap(),
            work: Work::Read {
                span: Span::new(0, 8192),
                memory: bench.memory(0, 8192),
                note_zeroes: false,
            },
            started: Time(0),
            step: Step::Body,
            done: 0,
            zero_path: ZeroPath::Write,
            retries: 0,
        };
        assert_eq!(job.advance(4096), None);
        assert_eq!(job.advance(-Errno::AGAIN.raw_os_error()), None);
        assert_eq!(job.done, 4096);
        assert_eq!(
            job.advance(0),
            Some(IoOutcome::Failed(Errno::IO.raw_os_error()))
        );
        assert_eq!(job.advance(4096), Some(IoOutcome::Done));
    }

    #[test]
    fn errors_carry_their_errno_and_write_nothing() {
        let mut bench = Bench::new(1 << 20, OFlags::RDONLY | OFlags::DIRECT);
        let memory = bench.fill(0, 4096, 1);
        let span = Span::new(0, 4096);
        let done = bench.run(
            0,
            Work::Write {
                span,
                memory,
                fua: false,
            },
        );
        assert_eq!(done, IoOutcome::Failed(Errno::BADF.raw_os_error()));
        let beyond = Span::new(1 << 20, 4096);
        let done = bench.run(
            0,
            Work::Read {
                span: beyond,
                memory,
                note_zeroes: false,
            },
        );
        assert_eq!(done, IoOutcome::Failed(Errno::IO.raw_os_error()));
        let done = bench.run(1, Work::Flush);
        assert_eq!(done, IoOutcome::Failed(Errno::NXIO.raw_os_error()));
        let long = Span::new(0, 8192);
        let done = bench.run(
            0,
            Work::Read {
                span: long,
                memory,
                note_zeroes: false,
            },
        );
        assert_eq!(done, IoOutcome::Failed(Errno::NXIO.raw_os_error()));
        assert!(bench.content().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_file_that_was_made_shorter_is_not_made_longer_again() {
        let mut bench = Bench::direct();
        let memory = bench.fill(0, 4096, 1);
        let span = Span::new((1 << 20) - 4096, 4096);
        let write = Work::Write {
            span,
            memory,
            fua: false,
        };
        let zeroes = Work::Zeroes {
            span,
            unmap: false,
            fua: false,
        };
        assert_eq!(bench.run(0, write), IoOutcome::Done);
        bench.file.as_file().set_len(1 << 19).unwrap();
        assert!(bench.disks.is_shorter(0) && !bench.disks.is_shorter(1));
        let failed = IoOutcome::Failed(Errno::IO.raw_os_error());
        assert_eq!(bench.run(0, write), failed);
        assert_eq!(bench.run(0, zeroes), failed);
        assert_eq!(bench.content().len(), 1 << 19);
    }

    #[test]
    fn holes_and_zeroes_are_told_from_data() {
        let mut bench = Bench::new(16 << 20, OFlags::RDWR);
        bench
            .file
            .as_file()
            .write_all_at(&[7; 8192], 4 << 20)
            .unwrap();
        let probe = |start, len| Work::Probe {
            span: Span::new(start, len),
        };
        let begins = |hole, bytes| IoOutcome::Begins { hole, bytes };
        assert_eq!(bench.run(0, probe(0, 8 << 20)), begins(true, 4 << 20));
        assert_eq!(bench.run(0, probe(4 << 20, 4096)), begins(false, 8192));
        assert_eq!(bench.run(0, probe(1 << 20, 4096)), begins(true, 3 << 20));
        let IoOutcome::Begins { hole: true, bytes } = bench.run(0, probe(5 << 20, 4096)) else {
            panic!("a hole up to the end");
        };
        assert!(bytes >= 11 << 20);
        let mut read = |start, note_zeroes| {
            let memory = bench.memory(0, 8192);
            let span = Span::new(start, 8192);
            bench.run(
                0,
                Work::Read {
                    span,
                    memory,
                    note_zeroes,
                },
            )
        };
        assert_eq!(read(0, true), IoOutcome::Zeroes);
        assert_eq!(read(0, false), IoOutcome::Done);
        assert_eq!(read((4 << 20) + 4096, true), IoOutcome::Done);
    }
}
