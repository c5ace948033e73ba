//! A node's disk operations: data, and the steps of metadata operations one after the other.

use lockstep::engine::{Buffer, Event, IoId, IoOutcome, MetaOp, Span, VolumeId};

use crate::disk::{DiskFault, DiskOp, DiskResult, EIO, OpId, SECTOR, ZERO, hash};
use crate::meta;
use crate::node::{MetaWork, Origin, Target};
use crate::oracle::Check;
use crate::world::{Happening, World};

impl World {
    pub fn read(&mut self, node: usize, volume: VolumeId, span: Span, target: Target) {
        let (start, count) = (span.start / SECTOR, u64::from(span.len) / SECTOR);
        let fault = self.atlas.data_fault(node, false);
        let op = DiskOp::Read { start, count };
        self.submit(node, usize::from(volume.0), op, fault, target);
    }

    pub fn write(
        &mut self,
        node: usize,
        io: IoId,
        volume: VolumeId,
        span: Span,
        buffer: Option<Buffer>,
        fua: bool,
    ) {
        let volume = usize::from(volume.0);
        let (start, count) = (span.start / SECTOR, u64::from(span.len) / SECTOR);
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let stamps = match buffer {
            Some(buffer) => process.stamps(buffer, count as usize),
            None => Some(vec![ZERO; count as usize]),
        };
        let Some(stamps) = stamps else {
            let text = format!("node {node} writes {span} from a buffer that is gone or short");
            return self.oracle.report(12, Check::Contract, text);
        };
        let (origin, term) = match buffer {
            Some(buffer) => process.origin(buffer),
            None => (Origin::Local, None),
        };
        self.check_write(node, volume, span, buffer, origin, term);
        let mut fault = DiskFault::None;
        if buffer.is_some() {
            fault = self.atlas.data_fault(node, true);
            if fault == DiskFault::None {
                fault = self
                    .atlas
                    .silent_fault(node, volume, start, count, self.plan.sectors);
            }
        }
        let op = DiskOp::Write {
            start,
            stamps: stamps.clone(),
            fua,
        };
        self.submit(
            node,
            volume,
            op,
            fault,
            Target::Write {
                io,
                origin,
                start,
                stamps,
            },
        );
    }

    pub fn submit(
        &mut self,
        node: usize,
        volume: usize,
        op: DiskOp,
        fault: DiskFault,
        target: Target,
    ) {
        let mean = self.plan.disk_latency * self.atlas.slow[node];
        let delay = self.rng.delay(mean);
        let n = &mut self.nodes[node];
        let Some(process) = &mut n.process else {
            return;
        };
        let id = n.disks[volume].submit(op, fault);
        process.ios.insert((volume, id), target);
        self.schedule.after(
            delay,
            Happening::Disk {
                node,
                volume,
                op: id,
            },
        );
    }

    pub fn disk_done(&mut self, node: usize, volume: usize, op: OpId) {
        let target = self.nodes[node]
            .process
            .as_mut()
            .and_then(|p| p.ios.remove(&(volume, op)));
        if let Some(Target::Write {
            origin,
            start,
            stamps,
            ..
        }) = &target
        {
            self.check_landing(node, volume, *origin, *start, stamps);
        }
        let Some(result) = self.nodes[node].disks[volume].complete(op, &mut self.rng) else {
            return;
        };
        let Some(target) = target else { return };
        let plain = match &result {
            DiskResult::Failed(errno) => IoOutcome::Failed(*errno),
            DiskResult::Done | DiskResult::Data(_) => IoOutcome::Done,
        };
        match target {
            Target::Read {
                io,
                buffer,
                hash: hashed,
                note_zeroes,
            } => {
                let mut outcome = plain;
                if let (DiskResult::Data(stamps), Some(process)) =
                    (&result, &mut self.nodes[node].process)
                {
                    process.fill(buffer, stamps);
                    if note_zeroes && stamps.iter().all(|stamp| *stamp == ZERO) {
                        outcome = IoOutcome::Zeroes;
                    }
                    if let Some(digest) = hashed {
                        outcome = IoOutcome::Hash(hash(digest, stamps));
                    }
                }
                self.feed(node, Event::Io { io, outcome });
            }
            Target::Probe { io, dense } => {
                let mut outcome = plain;
                if let DiskResult::Data(stamps) = &result {
                    outcome = begins(stamps, dense);
                }
                self.feed(node, Event::Io { io, outcome });
            }
            Target::Write { io, .. } | Target::Flush { io } => {
                self.feed(node, Event::Io { io, outcome: plain });
            }
            Target::Meta => self.meta_step_done(node, volume, plain),
        }
    }

    // ---- metadata ----

    pub fn meta(&mut self, node: usize, volume: usize, io: IoId, op: MetaOp) {
        if let MetaOp::Superblock(superblock) = &op {
            self.check_superblock(node, volume, superblock);
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.meta[volume].waiting.push_back((io, op));
        self.meta_next(node, volume);
    }

    /// Starts the next metadata operation when none is under way.
    fn meta_next(&mut self, node: usize, volume: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.meta[volume].current.is_some() {
            return;
        }
        let Some((io, op)) = process.meta[volume].waiting.pop_front() else {
            return;
        };
        if let MetaOp::Log(transaction) = &op {
            process.logging[volume] = Some(transaction.table.as_ref().clone());
        }
        let steps = process.stores[volume]
            .as_mut()
            .and_then(|store| store.plan(&op));
        let failed = steps.is_none().then_some(EIO);
        let steps = steps.unwrap_or_default();
        process.meta[volume].current = Some(MetaWork {
            io,
            op,
            steps,
            failed,
        });
        self.meta_step(node, volume);
    }

    fn meta_step(&mut self, node: usize, volume: usize) {
        let work = self.nodes[node]
            .process
            .as_mut()
            .and_then(|p| p.meta[volume].current.as_mut());
        let Some(work) = work else { return };
        let step = work.steps.pop_front().filter(|_| work.failed.is_none());
        let (op, fault) = match step {
            None => return self.meta_done(node, volume),
            Some(meta::Step::Flush) => (DiskOp::Flush, DiskFault::None),
            Some(meta::Step::Write { offset, bytes }) => {
                let fault = self
                    .atlas
                    .metadata_fault(node, offset, &meta::vital_blocks());
                (DiskOp::MetaWrite { offset, bytes }, fault)
            }
        };
        if fault != DiskFault::None {
            self.note(Some(node), "fault", || format!("metadata write: {fault:?}"));
        }
        self.submit(node, volume, op, fault, Target::Meta);
    }

    fn meta_step_done(&mut self, node: usize, volume: usize, outcome: IoOutcome) {
        if let (IoOutcome::Failed(errno), Some(process)) = (outcome, &mut self.nodes[node].process)
            && let Some(work) = &mut process.meta[volume].current
        {
            work.failed = Some(errno);
            if let Some(store) = &mut process.stores[volume] {
                store.failed();
            }
        }
        self.meta_step(node, volume);
    }

    fn meta_done(&mut self, node: usize, volume: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let Some(work) = process.meta[volume].current.take() else {
            return;
        };
        let outcome = work.failed.map_or(IoOutcome::Done, IoOutcome::Failed);
        let mut left = Vec::new();
        if let MetaOp::Log(transaction) = &work.op {
            process.logging[volume] = None;
            if work.failed.is_none() {
                let table = transaction.table.as_ref().clone();
                let before = std::mem::replace(&mut process.logged[volume], table);
                let now = &process.logged[volume];
                left = before.into_iter().filter(|e| !now.contains(e)).collect();
            }
        }
        self.check_evicted(node, volume, &left);
        self.meta_next(node, volume);
        self.feed(
            node,
            Event::Io {
                io: work.io,
                outcome,
            },
        );
    }
}

/// What a file system would say of the start of a range.
fn begins(stamps: &[u64], dense: bool) -> IoOutcome {
    let hole = !dense && stamps.first() == Some(&ZERO);
    let same = |stamp: &&u64| (**stamp == ZERO) == hole;
    let sectors = match dense {
        true => u64::MAX / SECTOR,
        false => stamps.iter().take_while(same).count() as u64,
    };
    let bytes = sectors * SECTOR;
    IoOutcome::Begins { hole, bytes }
}
