//! Metadata operations, through the ring.
//!
//! Operations of one volume run one after the other: the store plans an operation only when its
//! predecessor is on disk, and each of its steps starts when the step before has ended. Volumes
//! run beside each other. The token of a volume's entry is the volume's index, since each has at
//! most one in the ring.
//!
//! A plan's bytes are copied to an aligned staging buffer of the volume, piece by piece; it is
//! written to only while no entry names it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};
use lockstep_transport::ring::Submitter;
use rustix::io::Errno;

use super::backing::Backing;
use super::buffers::{Memory, Region};
use crate::engine::{IoId, IoOutcome, MetaOp};
use crate::store::{Metadata, Step};

/// Bytes of metadata written by one entry.
const STAGING: u32 = 64 << 10;

/// `RWF_DSYNC` of the kernel's interface.
const RWF_DSYNC: i32 = 0x2;

/// The operation that is being carried out.
#[derive(Debug)]
struct Active {
    io: IoId,
    /// Steps not begun.
    steps: VecDeque<Step>,
    /// The step in the ring.
    step: Running,
    /// A write of this plan has ended without being durable.
    unflushed: bool,
}

#[derive(Debug)]
enum Running {
    /// Bytes from `done` on are still to be written. `durable`: with the write itself.
    Write {
        offset: u64,
        bytes: Vec<u8>,
        done: usize,
        durable: bool,
    },
    Flush,
}

struct Volume {
    metadata: Metadata,
    backing: Backing,
    fd: OwnedFd,
    staging: Region,
    queue: VecDeque<(IoId, MetaOp)>,
    active: Option<Active>,
    /// Its next entry found the ring full.
    waiting: bool,
    /// No further operation is taken; the volume goes when the active one has ended.
    closing: bool,
}

/// The metadata of all volumes.
pub struct Metas {
    volumes: Vec<Option<Volume>>,
}

fn failed(errno: Errno) -> IoOutcome {
    IoOutcome::Failed(errno.raw_os_error())
}

impl Metas {
    /// No metadata yet for any of `volumes` volumes.
    pub fn new(volumes: usize) -> Metas {
        Metas {
            volumes: (0..volumes).map(|_| None).collect(),
        }
    }

    /// Whether the metadata of volume `index` is in a file that has been made shorter.
    pub fn is_shorter(&self, index: usize) -> bool {
        let volume = self.volumes.get(index).and_then(Option::as_ref);
        volume.is_some_and(|volume| volume.backing.is_shorter(&volume.fd))
    }

    /// Gives volume `index` its recovered metadata and the device that it lies on, opened with
    /// O_DIRECT.
    pub fn attach(&mut self, index: usize, metadata: Metadata, fd: OwnedFd) -> io::Result<()> {
        let staging = Region::new(STAGING as usize)?;
        if let Some(slot) = self.volumes.get_mut(index) {
            *slot = Some(Volume {
                metadata,
                backing: Backing::of(&fd),
                fd,
                staging,
                queue: VecDeque::new(),
                active: None,
                waiting: false,
                closing: false,
            });
        }
        Ok(())
    }

    /// True while volume `index` has its metadata, that of a closing one included.
    pub fn has(&self, index: usize) -> bool {
        self.volumes.get(index).is_some_and(Option::is_some)
    }

    /// Forgets the metadata of volume `index`; the device is closed when the operation in flight
    /// has ended.
    pub fn close(&mut self, index: usize) {
        if let Some(slot) = self.volumes.get_mut(index) {
            match slot {
                Some(volume) if volume.active.is_some() => volume.closing = true,
                _ => *slot = None,
            }
        }
    }

    /// Queues an operation. Ended ones are appended to `out`.
    pub fn start(
        &mut self,
        ring: &mut dyn Submitter,
        index: usize,
        (io, op): (IoId, MetaOp),
        out: &mut Vec<(IoId, IoOutcome)>,
    ) {
        match self.volumes.get_mut(index).and_then(Option::as_mut) {
            Some(volume) if !volume.closing => {
                volume.queue.push_back((io, op));
                if volume.active.is_none() {
                    volume.go_on(ring, index as u32, out);
                }
            }
            _ => out.push((io, failed(Errno::NXIO))),
        }
    }

    /// Puts entries on the ring that found it full.
    pub fn retry(&mut self, ring: &mut dyn Submitter) {
        for (index, slot) in self.volumes.iter_mut().enumerate() {
            if let Some(volume) = slot
                && volume.waiting
            {
                volume.submit(ring, index as u32);
            }
        }
    }

    /// True while an entry waits for room in the ring.
    pub fn wants_room(&self) -> bool {
        self.volumes.iter().flatten().any(|volume| volume.waiting)
    }

    /// Takes the completion of a volume's entry.
    pub fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        token: u32,
        result: i32,
        out: &mut Vec<(IoId, IoOutcome)>,
    ) {
        let Some(slot) = self.volumes.get_mut(token as usize) else {
            return;
        };
        if let Some(volume) = slot {
            volume.ended(result, out);
            volume.go_on(ring, token, out);
            if volume.closing && volume.active.is_none() {
                *slot = None;
            }
        }
    }
}

impl Volume {
    /// Nothing of this volume is in the ring: submits the running step, or begins the next
    /// operation.
    fn go_on(&mut self, ring: &mut dyn Submitter, token: u32, out: &mut Vec<(IoId, IoOutcome)>) {
        if self.active.is_some() {
            self.submit(ring, token);
            return;
        }
        while let Some((io, op)) = self.queue.pop_front() {
            if self.backing.is_shorter(&self.fd) {
                self.metadata.failed();
                out.push((io, failed(Errno::IO)));
                continue;
            }
            match self.metadata.plan(&op) {
                Ok(steps) => {
                    let mut steps = VecDeque::from(steps);
                    match next_step(&mut steps, false) {
                        Some(step) => {
                            self.active = Some(Active {
                                io,
                                steps,
                                step,
                                unflushed: false,
                            });
                            self.submit(ring, token);
                            return;
                        }
                        None => out.push((io, IoOutcome::Done)),
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "metadata operation refused");
                    out.push((io, failed(Errno::IO)));
                }
            }
        }
    }

    fn submit(&mut self, ring: &mut dyn Submitter, token: u32) {
        let Some(entry) = self.entry() else { return };
        self.waiting = ring.submit(entry, token).is_err();
    }

    /// The entry of the running step.
    fn entry(&self) -> Option<squeue::Entry> {
        let fd = types::Fd(self.fd.as_raw_fd());
        match &self.active.as_ref()?.step {
            Running::Flush => Some(
                opcode::Fsync::new(fd)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build(),
            ),
            Running::Write {
                offset,
                bytes,
                done,
                durable,
            } => {
                let rest = bytes.get(*done..)?;
                let piece = rest.get(..rest.len().min(STAGING as usize))?;
                let staging = self.stage(piece)?;
                let entry = opcode::Write::new(fd, staging.start, staging.len)
                    .offset(offset + *done as u64)
                    .rw_flags(if *durable { RWF_DSYNC } else { 0 });
                Some(entry.build())
            }
        }
    }

    fn stage(&self, piece: &[u8]) -> Option<Memory> {
        let staging = self.staging.part(0, piece.len() as u32)?;
        // SAFETY: the staging buffer is at least that long, and no entry names it: this volume
        // has none in the ring.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), staging.start, piece.len()) };
        Some(staging)
    }

    /// The running entry has ended: moves on within the operation, or ends it.
    fn ended(&mut self, result: i32, out: &mut Vec<(IoId, IoOutcome)>) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        let again = result == -Errno::INTR.raw_os_error() || result == -Errno::AGAIN.raw_os_error();
        let errno = match &mut active.step {
            _ if again => None,
            _ if result < 0 => Some(-result),
            // The device ends inside its metadata.
            Running::Write { .. } if result == 0 => Some(Errno::IO.raw_os_error()),
            Running::Write { done, .. } => {
                *done += result as usize;
                None
            }
            Running::Flush => {
                active.unflushed = false;
                None
            }
        };
        if let Some(errno) = errno {
            self.metadata.failed();
            out.push((active.io, IoOutcome::Failed(errno)));
            return;
        }
        let more = match &active.step {
            Running::Write { bytes, done, .. } => *done < bytes.len(),
            Running::Flush => false,
        };
        if !more && !again {
            active.unflushed |= matches!(active.step, Running::Write { durable: false, .. });
            match next_step(&mut active.steps, active.unflushed) {
                Some(step) => active.step = step,
                None => {
                    out.push((active.io, IoOutcome::Done));
                    return;
                }
            }
        }
        self.active = Some(active);
    }
}

/// Takes the next step. A write that is followed by a flush, with nothing else to flush, is made
/// durable by itself, which saves the flush of the whole cache.
fn next_step(steps: &mut VecDeque<Step>, unflushed: bool) -> Option<Running> {
    match steps.pop_front()? {
        Step::Flush => Some(Running::Flush),
        Step::Write { offset, bytes } => {
            let durable = !unflushed && matches!(steps.front(), Some(Step::Flush));
            if durable {
                steps.pop_front();
            }
            Some(Running::Write {
                offset,
                bytes,
                done: 0,
                durable,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Generation, LogTransaction, NodeId, Superblock};
    use crate::reactor::ring::{Completion, Owner, Ring, waker};
    use crate::store::{Layout, Medium, Placement, ReadAt, recover};
    use rustix::fs::{Mode, OFlags};
    use std::sync::Arc;
    use std::time::Duration;

    const SIZE: u64 = 64 << 20;
    const BLOCK: u32 = 4096;

    /// A file with fresh metadata, and its ring.
    struct Bench {
        ring: Ring,
        metas: Metas,
        file: tempfile::NamedTempFile,
    }

    struct Reader<'a>(&'a std::fs::File);

    impl ReadAt for Reader<'_> {
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
            use std::os::unix::fs::FileExt;
            self.0.read_exact_at(buf, offset).map_err(|_| 5)
        }
    }

    fn write_plain(file: &std::fs::File, steps: Vec<Step>) {
        use std::os::unix::fs::FileExt;
        for step in steps {
            if let Step::Write { offset, bytes } = step {
                file.write_all_at(&bytes, offset).unwrap();
            }
        }
    }

    impl Bench {
        fn new(flags: OFlags) -> Bench {
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            file.as_file().set_len(SIZE).unwrap();
            let layout = Layout::internal(SIZE, 1, BLOCK).unwrap();
            let (metadata, format) = Metadata::create(layout, 7, NodeId(0));
            write_plain(file.as_file(), format.write);
            let fd = rustix::fs::open(file.path(), flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let mut metas = Metas::new(1);
            metas.attach(0, metadata, fd).unwrap();
            Bench {
                ring: Ring::new(&waker().unwrap()).unwrap(),
                metas,
                file,
            }
        }

        /// Starts all operations at once and collects their ends in order.
        fn run(&mut self, ops: Vec<MetaOp>) -> Vec<(IoId, IoOutcome)> {
            let mut out = Vec::new();
            let count = ops.len();
            for (id, op) in ops.into_iter().enumerate() {
                let mut port = self.ring.port(Owner::META);
                self.metas
                    .start(&mut port, 0, (IoId(id as u64), op), &mut out);
            }
            while out.len() < count {
                let mut seen: Vec<Completion> = Vec::new();
                self.ring
                    .wait(Some(Duration::from_secs(10)), &mut seen)
                    .unwrap();
                for done in seen {
                    let mut port = self.ring.port(done.owner);
                    self.metas
                        .on_completion(&mut port, done.token, done.result, &mut out);
                }
            }
            out
        }

        fn recovered(&self) -> crate::engine::VolumeImage {
            let medium = Medium {
                placement: Placement::Internal { device_bytes: SIZE },
                logical_block: BLOCK,
                volatile_cache: false,
                discard: false,
            };
            recover(&mut Reader(self.file.as_file()), &medium)
                .unwrap()
                .image
        }

        fn superblock(&self, current: u64) -> Superblock {
            let mut superblock = self.recovered().superblock;
            superblock.current = Generation(current);
            superblock
        }
    }

    #[test]
    fn operations_end_in_order_and_are_recovered() {
        let mut bench = Bench::new(OFlags::RDWR | OFlags::DIRECT);
        let mut table = vec![LogTransaction::FREE; 64];
        table[3] = 9;
        let log = LogTransaction {
            changes: vec![crate::engine::SlotChange { slot: 3, extent: 9 }],
            table: Arc::new(table),
        };
        let mut page = vec![0u8; 4096].into_boxed_slice();
        page[0] = 0b101;
        let ops = vec![
            MetaOp::Superblock(Box::new(bench.superblock(0xabc))),
            MetaOp::Log(log),
            MetaOp::Bitmap {
                slot: 0,
                pages: vec![(0, page)],
            },
            MetaOp::Superblock(Box::new(bench.superblock(0xdef))),
        ];
        let ended = bench.run(ops);
        let expected: Vec<_> = (0..4).map(|id| (IoId(id), IoOutcome::Done)).collect();
        assert_eq!(ended, expected);
        let image = bench.recovered();
        assert_eq!(image.superblock.current, Generation(0xdef));
        assert!(image.log.contains(&9));
        assert_eq!(image.bitmap[0], 0b101);
    }

    #[test]
    fn after_a_failed_write_everything_fails() {
        let mut bench = Bench::new(OFlags::RDONLY | OFlags::DIRECT);
        let superblock = bench.superblock(0xabc);
        let op = || MetaOp::Superblock(Box::new(superblock.clone()));
        let ended = bench.run(vec![op(), op()]);
        assert_eq!(ended[0].1, failed(Errno::BADF));
        assert_eq!(ended[1].1, failed(Errno::IO));
        assert_ne!(bench.recovered().superblock.current, Generation(0xabc));
    }

    #[test]
    fn a_lone_write_before_a_flush_carries_it() {
        let write = |offset| Step::Write {
            offset,
            bytes: vec![0; 4096],
        };
        let mut steps = VecDeque::from(vec![write(0), write(4096), Step::Flush]);
        let first = next_step(&mut steps, false);
        assert!(matches!(first, Some(Running::Write { durable: false, .. })));
        let second = next_step(&mut steps, true);
        assert!(matches!(
            second,
            Some(Running::Write { durable: false, .. })
        ));
        assert!(matches!(next_step(&mut steps, true), Some(Running::Flush)));
        let mut steps = VecDeque::from(vec![write(0), Step::Flush]);
        let only = next_step(&mut steps, false);
        assert!(matches!(only, Some(Running::Write { durable: true, .. })));
        assert!(next_step(&mut steps, false).is_none());
    }
}
