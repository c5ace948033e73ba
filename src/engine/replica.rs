//! The secondary's side: applies the peer's writes and sync blocks in an order that keeps it
//! causally closed (rule 5), makes them durable when asked, and answers reads.
//!
//! Items are numbered as they arrive. Writes wait in a queue: for a barrier until everything
//! before it is on disk, for the durable note that unflushed writes exist, and for the end of an
//! overlapping item. What is queued when the link breaks is still written: it may have been
//! acknowledged as received.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::action::{Action, Notice};
use super::ids::{Buffer, Generation, LinkId, Span, Time};
use super::message::{AckKind, Message, SyncResult, WriteKind};
use super::pace;
use super::reason::LinkLoss;
use super::resource::{Engine, Pending, Quiesce, broken};
use super::status::{DiskState, ReplicationState, Role};
use super::volume::OwnDisk;

/// Reads of the peer that may wait, for each volume: the largest depth of a block device's queue.
/// Whoever asks for more does not wait for answers, and would fill the memory.
pub(super) const WAITING_READS: usize = 4096;

/// What an item does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Write {
        sequence: u64,
        ack: AckKind,
    },
    Sync {
        id: u64,
    },
    Compare {
        id: u64,
        hash: [u8; 32],
        scratch: u32,
    },
}

/// A write, sync block or comparison of the peer.
#[derive(Clone, Copy, Debug)]
struct Item {
    link: LinkId,
    volume: usize,
    span: Span,
    kind: WriteKind,
    fua: bool,
    buffer: Option<Buffer>,
    work: Work,
}

/// In the queue.
#[derive(Clone, Copy, Debug)]
enum Queued {
    Item(u64, Item),
    Barrier,
}

/// A flush that the peer asked for.
#[derive(Clone, Debug)]
struct PeerFlush {
    link: LinkId,
    /// The peer's name for it; the next session uses it again.
    flush: u64,
    /// Ours.
    number: u64,
    /// Items up to this number must have ended.
    after: u64,
    /// Volumes whose disk flush is outstanding; empty until started.
    outstanding: usize,
    started: bool,
    ok: bool,
    /// Sync blocks that become durable with it.
    synced: Vec<(usize, Span)>,
}

/// A read that the peer asked for.
#[derive(Clone, Copy, Debug)]
struct PeerRead {
    link: LinkId,
    id: u64,
    volume: usize,
    span: Span,
    /// Items up to this number must have ended: the peer's application may have been told that
    /// they are done.
    after: u64,
}

/// A sync that the source has finished; the generation is adopted when all is durable.
#[derive(Clone, Copy, Debug)]
struct Adoption {
    link: LinkId,
    generation: Generation,
    after: u64,
    stage: Adopting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adopting {
    Draining,
    Flushing,
    Storing(u64),
}

/// What a sync onto this node has brought so far, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    copied: u64,
    equal: u64,
}

/// State of the secondary's side.
pub(super) struct Replica {
    queue: VecDeque<Queued>,
    running: BTreeMap<u64, Item>,
    /// Numbers of items that have not ended.
    open: BTreeSet<u64>,
    next_item: u64,
    flushes: VecDeque<PeerFlush>,
    next_flush: u64,
    /// Sync blocks written since the last flush began.
    synced: Vec<(usize, Span)>,
    adoptions: BTreeMap<usize, Adoption>,
    /// By volume, for the line that a finished sync leaves.
    brought: BTreeMap<usize, Brought>,
    /// Reads of the peer that wait for the writes before them, or for a buffer.
    waiting_reads: VecDeque<PeerRead>,
    /// When the last write ended; after a quiet while the note of unflushed writes is cleared.
    last_write: Time,
    clearing: Clearing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearing {
    Idle,
    /// A flush runs, started when the given item number was the next.
    Flushing(u64),
}

/// Quiet time after which a secondary flushes and clears its note of unflushed writes.
const QUIET: std::time::Duration = std::time::Duration::from_millis(500);

impl Replica {
    pub(super) fn new() -> Replica {
        Replica {
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            open: BTreeSet::new(),
            next_item: 1,
            flushes: VecDeque::new(),
            next_flush: 1,
            synced: Vec::new(),
            adoptions: BTreeMap::new(),
            brought: BTreeMap::new(),
            waiting_reads: VecDeque::new(),
            last_write: Time(0),
            clearing: Clearing::Idle,
        }
    }

    /// Whether everything received has ended on disk.
    pub(super) fn is_drained(&self) -> bool {
        self.open.is_empty()
    }

    /// Number of the item that was received last.
    pub(super) fn last_item(&self) -> u64 {
        self.next_item - 1
    }

    /// Whether a write, sync block or comparison over the range has not ended.
    fn is_over(&self, volume: usize, span: Span) -> bool {
        let over = |item: &Item| item.volume == volume && item.span.overlaps(span);
        self.running.values().any(over)
            || self.queue.iter().any(|queued| match queued {
                Queued::Item(_, item) => over(item),
                Queued::Barrier => false,
            })
    }

    pub(super) fn ended_up_to(&self, number: u64) -> bool {
        self.open.first().is_none_or(|first| *first > number)
    }
}

impl Engine {
    /// A frame with a write. The payload is in `buffer`.
    pub(super) fn on_peer_write(
        &mut self,
        (link, sequence, ack): (LinkId, u64, AckKind),
        (volume, span, kind, fua): (usize, Span, WriteKind, bool),
        buffer: Option<Buffer>,
    ) {
        self.volumes[volume].counters.received += buffer.map_or(0, |_| u64::from(span.len));
        if ack == AckKind::Received && self.volumes[volume].has_disk() {
            self.send(
                Message::WriteAck {
                    sequence,
                    kind: AckKind::Received,
                },
                None,
            );
        }
        let work = Work::Write { sequence, ack };
        self.enqueue(Item {
            link,
            volume,
            span,
            kind,
            fua,
            buffer,
            work,
        });
    }

    /// Whether something of the peer over the range is on its way to the disk.
    pub(super) fn replica_over(&self, volume: usize, span: Span) -> bool {
        self.replica.is_over(volume, span)
    }

    /// Whether a sync block may not be applied, because this primary writes over it. It keeps its
    /// bits and comes again.
    fn refuse_block(&mut self, id: u64, volume: usize, span: Span) -> bool {
        let refused = self.write_under_way(volume, span);
        if refused {
            let kind = SyncResult::Failed;
            self.send(Message::SyncAck { id, kind }, None);
        }
        refused
    }

    /// A sync block from the source.
    pub(super) fn on_sync_write(
        &mut self,
        link: LinkId,
        id: u64,
        (volume, span, kind): (usize, Span, WriteKind),
        buffer: Option<Buffer>,
    ) {
        self.volumes[volume].counters.received += buffer.map_or(0, |_| u64::from(span.len));
        if self.refuse_block(id, volume, span) {
            if let Some(buffer) = buffer {
                self.out.push(Action::Release { buffer });
            }
            return;
        }
        let work = Work::Sync { id };
        self.enqueue(Item {
            link,
            volume,
            span,
            kind,
            fua: false,
            buffer,
            work,
        });
    }

    /// The source asks whether our block is the same.
    pub(super) fn on_sync_compare(
        &mut self,
        link: LinkId,
        id: u64,
        (volume, span): (usize, Span),
        hash: [u8; 32],
    ) {
        if self.refuse_block(id, volume, span) {
            return;
        }
        let work = Work::Compare {
            id,
            hash,
            scratch: u32::MAX,
        };
        let kind = WriteKind::Data;
        self.enqueue(Item {
            link,
            volume,
            span,
            kind,
            fua: false,
            buffer: None,
            work,
        });
    }

    fn enqueue(&mut self, item: Item) {
        self.verify_touched(item.volume, item.span);
        let number = self.replica.next_item;
        self.replica.next_item += 1;
        self.replica.open.insert(number);
        if let Work::Write { .. } = item.work {
            self.load.begin(self.now, pace::Work::PeerWrite(number));
        }
        self.replica.queue.push_back(Queued::Item(number, item));
        self.progress = true;
    }

    pub(super) fn on_barrier(&mut self) {
        if !broken!(self, SkipEpochBarrier) {
            self.replica.queue.push_back(Queued::Barrier);
        }
    }

    pub(super) fn settle_replica(&mut self) {
        self.submit_items();
        self.start_peer_flushes();
        self.settle_adoptions();
        self.settle_peer_reads();
        self.settle_note();
    }

    fn submit_items(&mut self) {
        while let Some(front) = self.replica.queue.front().copied() {
            match front {
                Queued::Barrier => {
                    if !self.replica.running.is_empty() {
                        return;
                    }
                }
                Queued::Item(number, item) => {
                    if !self.may_start(&item) || !self.start_item(number, item) {
                        return;
                    }
                }
            }
            self.replica.queue.pop_front();
            self.progress = true;
        }
    }

    fn may_start(&mut self, item: &Item) -> bool {
        if self
            .replica
            .running
            .values()
            .any(|r| r.volume == item.volume && r.span.overlaps(item.span))
        {
            return false;
        }
        if matches!(item.work, Work::Write { .. }) && self.sync_reads(item.volume, item.span) {
            return false;
        }
        let boot = self.config.boot_id;
        let v = &mut self.volumes[item.volume];
        if !v.has_disk() || !v.volatile || matches!(item.work, Work::Compare { .. }) {
            return true;
        }
        if !v.superblock.unflushed || v.superblock.unflushed_boot != boot {
            v.change(|superblock| {
                superblock.unflushed = true;
                superblock.unflushed_boot = boot;
            });
            self.progress = true;
        }
        self.volumes[item.volume].all_stored()
    }

    /// Submits; false when a buffer is missing.
    fn start_item(&mut self, number: u64, mut item: Item) -> bool {
        let volume = item.volume;
        if !self.volumes[volume].has_disk() {
            self.end_item(number, item, Some(5), None);
            return true;
        }
        let id = self.volumes[volume].id;
        let span = item.span;
        if let Work::Compare { scratch, .. } = &mut item.work {
            let Some(buffer) = self.sync_buffers.pop() else {
                return false;
            };
            *scratch = buffer;
            let io = self.begin(volume, Pending::SyncHash { item: number });
            self.out.push(Action::DiskHash {
                io,
                volume: id,
                span,
                buffer: Buffer::Resync(buffer),
                digest: self.sync_digest(),
            });
        } else {
            let io = self.begin(volume, Pending::PeerWrite { item: number });
            let fua = item.fua && !broken!(self, ForgetFlush);
            self.out.push(match (item.kind, item.buffer) {
                (WriteKind::Data, Some(buffer)) => Action::DiskWrite {
                    io,
                    volume: id,
                    span,
                    buffer,
                    fua,
                },
                (WriteKind::Zeroes { unmap }, _) => Action::DiskZeroes {
                    io,
                    volume: id,
                    span,
                    unmap,
                    fua,
                },
                // A data frame always has its payload; the codec refuses others.
                (WriteKind::Data, None) => Action::DiskZeroes {
                    io,
                    volume: id,
                    span,
                    unmap: false,
                    fua,
                },
            });
        }
        self.replica.running.insert(number, item);
        true
    }

    pub(super) fn peer_write_done(&mut self, volume: usize, number: u64, failed: Option<i32>) {
        let Some(item) = self.replica.running.remove(&number) else {
            return;
        };
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        } else if let Work::Sync { .. } = item.work {
            self.replica.synced.push((volume, item.span));
            if broken!(self, InconsistentLate) {
                self.volumes[volume].change(|superblock| superblock.inconsistent = true);
            }
        }
        self.replica.last_write = self.now;
        self.end_item(number, item, failed, None);
    }

    pub(super) fn sync_hash_done(
        &mut self,
        volume: usize,
        number: u64,
        hash: Option<[u8; 32]>,
        failed: Option<i32>,
    ) {
        let Some(item) = self.replica.running.remove(&number) else {
            return;
        };
        if let Work::Compare { scratch, .. } = item.work {
            self.sync_buffers.push(scratch);
        }
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        self.end_item(number, item, failed, hash);
    }

    fn end_item(&mut self, number: u64, item: Item, failed: Option<i32>, hash: Option<[u8; 32]>) {
        self.replica.open.remove(&number);
        self.load.end(self.now, pace::Work::PeerWrite(number));
        if let Some(buffer) = item.buffer {
            self.out.push(Action::Release { buffer });
        }
        self.progress = true;
        if self.replicating() != Some(item.link) {
            return;
        }
        // The blocks of a repair are not part of a sync.
        let syncs = self.volumes[item.volume].replication == ReplicationState::SyncTarget;
        let mut unwatched = Brought::default();
        let brought = match syncs {
            true => self.replica.brought.entry(item.volume).or_default(),
            false => &mut unwatched,
        };
        let bytes = u64::from(item.span.len);
        let message = match item.work {
            Work::Write { sequence, .. } => {
                let kind = if failed.is_some() {
                    AckKind::Failed
                } else {
                    AckKind::Written
                };
                Message::WriteAck { sequence, kind }
            }
            Work::Sync { id } => {
                let kind = if failed.is_some() {
                    SyncResult::Failed
                } else {
                    brought.copied += bytes;
                    SyncResult::Written
                };
                Message::SyncAck { id, kind }
            }
            Work::Compare {
                id, hash: wanted, ..
            } => {
                let equal = hash == Some(wanted);
                if equal {
                    brought.equal += bytes;
                    self.replica.synced.push((item.volume, item.span));
                }
                let kind = match (failed, equal) {
                    (Some(_), _) => SyncResult::Failed,
                    (None, true) => SyncResult::Equal,
                    (None, false) => SyncResult::Differs,
                };
                Message::SyncAck { id, kind }
            }
        };
        self.send(message, None);
    }

    // ---- flushes for the peer ----

    pub(super) fn on_peer_flush(&mut self, link: LinkId, flush: u64) {
        let after = self.replica.last_item();
        let number = self.replica.next_flush;
        self.replica.next_flush += 1;
        let request = PeerFlush {
            link,
            flush,
            number,
            after,
            outstanding: 0,
            started: false,
            ok: true,
            synced: Vec::new(),
        };
        self.replica.flushes.push_back(request);
        self.progress = true;
    }

    fn start_peer_flushes(&mut self) {
        for index in 0..self.replica.flushes.len() {
            let (started, after) = {
                let flush = &self.replica.flushes[index];
                (flush.started, flush.after)
            };
            if started || !self.replica.ended_up_to(after) {
                continue;
            }
            let number = self.replica.flushes[index].number;
            let synced = std::mem::take(&mut self.replica.synced);
            let disks: Vec<usize> = (0..self.volumes.len())
                .filter(|v| self.volumes[*v].has_disk())
                .collect();
            let skip = broken!(self, ForgetFlush);
            let count = if skip { 0 } else { disks.len() };
            let flush = &mut self.replica.flushes[index];
            flush.started = true;
            flush.outstanding = count;
            flush.synced = synced;
            for volume in disks.into_iter().take(count) {
                let io = self.begin(volume, Pending::PeerFlush { number });
                let id = self.volumes[volume].id;
                self.out.push(Action::DiskFlush { io, volume: id });
            }
            self.progress = true;
        }
        self.answer_peer_flushes();
    }

    pub(super) fn peer_flush_done(&mut self, volume: usize, number: u64, failed: Option<i32>) {
        let mut flushes = self.replica.flushes.iter_mut();
        if let Some(flush) = flushes.find(|f| f.number == number) {
            flush.outstanding = flush.outstanding.saturating_sub(1);
            flush.ok &= failed.is_none();
        }
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        self.answer_peer_flushes();
    }

    fn answer_peer_flushes(&mut self) {
        while let Some(flush) = self
            .replica
            .flushes
            .pop_front_if(|f| f.started && f.outstanding == 0)
        {
            self.progress = true;
            if flush.ok {
                for (volume, span) in flush.synced {
                    if self.volumes[volume].has_disk() {
                        self.clear_synced(volume, span);
                    }
                }
            }
            if self.replicating() == Some(flush.link) {
                self.send(
                    Message::FlushAck {
                        flush: flush.flush,
                        ok: flush.ok,
                    },
                    None,
                );
            }
        }
    }

    // ---- the end of a sync ----

    pub(super) fn on_sync_done(&mut self, link: LinkId, volume: usize, generation: Generation) {
        let after = self.replica.last_item();
        let adoption = Adoption {
            link,
            generation,
            after,
            stage: Adopting::Draining,
        };
        self.replica.adoptions.insert(volume, adoption);
        self.progress = true;
    }

    fn settle_adoptions(&mut self) {
        let all: Vec<(usize, Adoption)> = self
            .replica
            .adoptions
            .iter()
            .map(|(v, a)| (*v, *a))
            .collect();
        for (volume, mut adoption) in all {
            if self.replicating() != Some(adoption.link) || !self.volumes[volume].has_disk() {
                self.replica.adoptions.remove(&volume);
                continue;
            }
            match adoption.stage {
                Adopting::Draining if self.replica.ended_up_to(adoption.after) => {
                    adoption.stage = Adopting::Flushing;
                    self.replica.adoptions.insert(volume, adoption);
                    if broken!(self, FinishBeforeFlush) {
                        self.adopt_flushed(volume, adoption.link);
                        continue;
                    }
                    self.quiesce(volume, Quiesce::Adopt(adoption.link));
                }
                Adopting::Storing(version) if self.volumes[volume].stored(version) => {
                    self.replica.adoptions.remove(&volume);
                    self.adopted(volume);
                }
                _ => {}
            }
        }
    }

    /// The flush before an adoption is done: one durable step to the new generation.
    pub(super) fn adopt_flushed(&mut self, volume: usize, link: LinkId) {
        let Some(mut adoption) = self.replica.adoptions.get(&volume).copied() else {
            return;
        };
        if adoption.stage != Adopting::Flushing || adoption.link != link {
            return;
        }
        let primary = self.role == Role::Primary;
        let v = &mut self.volumes[volume];
        let old = v.superblock.current;
        if old != adoption.generation {
            v.remember(old);
        }
        // Every block that either side had marked was copied or found equal, and is durable now.
        v.bitmap.clear_all();
        v.drop_base();
        let generation = adoption.generation;
        let version = v.change(|superblock| {
            superblock.current = generation;
            superblock.inconsistent = false;
            superblock.outdated = false;
            superblock.primary = primary;
            // The note is about the peer's writes, and all of them are flushed.
            superblock.unflushed &= !primary;
        });
        adoption.stage = Adopting::Storing(version);
        self.replica.adoptions.insert(volume, adoption);
        self.progress = true;
    }

    fn adopted(&mut self, volume: usize) {
        let id = self.volumes[volume].id;
        self.volumes[volume].crashed = false;
        self.volumes[volume].peer_current = true;
        self.volumes[volume].own_disk = OwnDisk::Current;
        self.set_disk(volume, DiskState::UpToDate);
        self.set_replication(volume, ReplicationState::Established);
        let brought = self.replica.brought.remove(&volume).unwrap_or_default();
        self.publish(Notice::SyncDone {
            volume: id,
            copied: brought.copied,
            compared: brought.equal,
        });
        self.send(Message::SyncAdopted { volume: id }, None);
    }

    /// The source has lost its disk, or a write: what it said about the end of its sync is void.
    pub(super) fn abandon_adoption(&mut self, volume: usize) {
        self.replica.adoptions.remove(&volume);
    }

    // ---- reads for the peer ----

    pub(super) fn on_peer_read(&mut self, link: LinkId, id: u64, volume: usize, span: Span) {
        if self.replica.waiting_reads.len() >= WAITING_READS * self.volumes.len() {
            let what = "more reads than can be under way";
            return self.drop_link(LinkLoss::Protocol(what));
        }
        self.load.begin(self.now, pace::Work::PeerRead(id));
        let after = self.replica.last_item();
        self.replica.waiting_reads.push_back(PeerRead {
            link,
            id,
            volume,
            span,
            after,
        });
        self.progress = true;
    }

    fn settle_peer_reads(&mut self) {
        while let Some(read) = self.replica.waiting_reads.front().copied() {
            let PeerRead {
                link,
                id,
                volume,
                span,
                after,
            } = read;
            if self.replicating() != Some(link) {
                self.replica.waiting_reads.pop_front();
                self.load.end(self.now, pace::Work::PeerRead(id));
                continue;
            }
            if !self.replica.ended_up_to(after) {
                return;
            }
            let readable = self.volumes[volume].disk == DiskState::UpToDate
                && span.len <= self.config.resync_chunk;
            if !readable {
                self.replica.waiting_reads.pop_front();
                self.load.end(self.now, pace::Work::PeerRead(id));
                self.send(Message::ReadReply { id, ok: false }, None);
                continue;
            }
            let Some(buffer) = self.sync_buffers.pop() else {
                return;
            };
            self.replica.waiting_reads.pop_front();
            let io = self.begin(
                volume,
                Pending::PeerRead {
                    link,
                    id,
                    len: span.len,
                    buffer,
                },
            );
            let volume = self.volumes[volume].id;
            self.out.push(Action::DiskRead {
                note_zeroes: false,
                io,
                volume,
                span,
                buffer: Buffer::Resync(buffer),
            });
        }
    }

    pub(super) fn peer_read_done(
        &mut self,
        volume: usize,
        (link, id): (LinkId, u64),
        (len, buffer): (u32, u32),
        failed: Option<i32>,
    ) {
        self.load.end(self.now, pace::Work::PeerRead(id));
        if self.replicating() == Some(link) {
            let payload = failed.is_none().then_some((Buffer::Resync(buffer), len));
            self.send(
                Message::ReadReply {
                    id,
                    ok: failed.is_none(),
                },
                payload,
            );
        }
        self.sync_buffers.push(buffer);
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        self.progress = true;
    }

    // ---- the note of unflushed writes ----

    /// After a quiet while everything is flushed and the note cleared, so that a power loss of an
    /// idle secondary costs nothing.
    fn settle_note(&mut self) {
        let noted = self
            .volumes
            .iter()
            .any(|v| v.superblock.unflushed && v.has_disk());
        if !noted || self.replica.clearing != Clearing::Idle || !self.replica.is_drained() {
            return;
        }
        if self.now.since(self.replica.last_write) < QUIET {
            return;
        }
        self.replica.clearing = Clearing::Flushing(self.replica.next_item);
        for volume in 0..self.volumes.len() {
            if self.volumes[volume].has_disk() {
                self.quiesce(volume, Quiesce::Note);
            }
        }
    }

    /// When the note could be cleared.
    pub(super) fn note_deadline(&self) -> Option<Time> {
        let noted = self
            .volumes
            .iter()
            .any(|v| v.superblock.unflushed && v.has_disk());
        (noted && self.replica.clearing == Clearing::Idle && self.replica.is_drained())
            .then(|| self.replica.last_write.after(QUIET))
    }

    /// A quiescing flush of the volume has ended well.
    pub(super) fn note_flushed(&mut self, last: bool) {
        if let Clearing::Flushing(at) = self.replica.clearing
            && last
        {
            self.replica.clearing = Clearing::Idle;
            if self.replica.next_item == at {
                for volume in &mut self.volumes {
                    if volume.superblock.unflushed && volume.has_disk() {
                        volume.change(|superblock| superblock.unflushed = false);
                    }
                }
                self.progress = true;
            } else {
                self.replica.last_write = self.now;
            }
        }
    }

    /// The session that items of a link belong to is over; see the module text for why the queue
    /// is kept.
    pub(super) fn end_replica_session(&mut self) {
        self.replica.adoptions.clear();
        self.replica.synced.clear();
        // The next session's sync counts from its own beginning, as its source does.
        self.replica.brought.clear();
        // Nobody waits for their answers; the disk flushes under way end on their own.
        self.replica.flushes.clear();
    }
}
