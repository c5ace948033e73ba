//! Front-end requests on the primary: admission, both legs, completion (rule 1).
//!
//! A write waits, in the order of arrival, until nothing that it overlaps is under way, the
//! peer's copy is known to follow or to be recorded as left behind (rule 6), and its extents are
//! in the activity log (rule 4). Then both legs start at once. It completes when the protocol's
//! promise holds, and is forgotten when both legs have ended.

use super::action::Action;
use super::activity_log::{Acquire, LastWrite};
use super::config::Protocol;
use super::event::{Op, Request};
use super::ids::{Buffer, RequestId, Span, Time};
use super::message::{AckKind, Message, WriteKind};
use super::pace::Work;
use super::reason::IoFailure;
use super::resource::{Engine, Pending, broken};
use super::status::{DiskState, Role};
use super::transfer::Kind;
use super::volume::OwnDisk;

/// Progress of one leg of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// Takes no part.
    Absent,
    Running,
    /// The peer has the payload in memory.
    Received,
    Done,
    /// Failed, or the link broke: that copy lacks the write.
    Lost,
}

impl Leg {
    fn ended(self) -> bool {
        matches!(self, Leg::Absent | Leg::Done | Leg::Lost)
    }
}

/// Where a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// Its extents are in a log transaction on its way.
    Logging(u64),
    Running,
}

/// A write, zeroing or discard.
#[derive(Clone, Debug)]
pub(super) struct Write {
    request: RequestId,
    pub(super) volume: usize,
    pub(super) span: Span,
    kind: WriteKind,
    fua: bool,
    pub(super) stage: Stage,
    completed: bool,
    local: Leg,
    pub(super) peer: Leg,
    errno: i32,
    /// The range is durable on the peer and stays tracked until the local leg has ended.
    tracked: Option<u32>,
}

/// A read; tried locally first.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadRequest {
    request: RequestId,
    volume: usize,
    span: Span,
    remote: bool,
}

/// A flush.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushRequest {
    request: RequestId,
    volume: usize,
    local: Leg,
    peer: Leg,
}

impl Engine {
    pub(super) fn on_request(&mut self, request: Request) {
        let Some(volume) = self.index(request.volume) else {
            return self.complete(request.id, Err(IoFailure::BadRequest));
        };
        if self.role != Role::Primary || !self.serving {
            return self.complete(request.id, Err(IoFailure::NotPrimary));
        }
        self.load.begin(self.now, Work::Request(request.id));
        if self.holds(volume) {
            return self.hold(request);
        }
        let key = self.next_key;
        self.next_key += 1;
        match request.op {
            Op::Read { span } => {
                if self.valid(volume, span) {
                    let read = ReadRequest {
                        request: request.id,
                        volume,
                        span,
                        remote: false,
                    };
                    self.start_read(key, read);
                } else {
                    self.complete(request.id, Err(IoFailure::BadRequest));
                }
            }
            Op::Flush => self.start_flush(key, request.id, volume),
            Op::Write { span, fua } => {
                self.queue_write(key, request.id, volume, span, WriteKind::Data, fua);
            }
            Op::WriteZeroes { span, unmap, fua } => {
                let kind = WriteKind::Zeroes { unmap };
                self.queue_write(key, request.id, volume, span, kind, fua);
            }
            // Both copies must read the same afterwards, so a discard is a zeroing that may
            // give the blocks back (rule 11).
            Op::Discard { span } => {
                let kind = WriteKind::Zeroes { unmap: true };
                self.queue_write(key, request.id, volume, span, kind, false);
            }
        }
    }

    fn valid(&self, volume: usize, span: Span) -> bool {
        span.len > 0
            && span.start.is_multiple_of(512)
            && span.len.is_multiple_of(512)
            && span
                .start
                .checked_add(u64::from(span.len))
                .is_some_and(|end| end <= self.volumes[volume].size)
    }

    pub(super) fn complete(&mut self, request: RequestId, result: Result<(), IoFailure>) {
        self.load.end(self.now, Work::Request(request));
        self.out.push(Action::Complete { request, result });
    }

    // ---- writes ----

    fn queue_write(
        &mut self,
        key: u64,
        request: RequestId,
        volume: usize,
        span: Span,
        kind: WriteKind,
        fua: bool,
    ) {
        if !self.valid(volume, span) {
            return self.complete(request, Err(IoFailure::BadRequest));
        }
        let write = Write {
            request,
            volume,
            span,
            kind,
            fua,
            stage: Stage::Waiting,
            completed: false,
            local: Leg::Absent,
            peer: Leg::Absent,
            errno: 0,
            tracked: None,
        };
        self.writes.insert(key, write);
        self.volumes[volume].waiting.push_back(key);
    }

    /// Admits what can start, and completes what a change elsewhere has released.
    pub(super) fn settle_writes(&mut self) {
        for volume in 0..self.volumes.len() {
            if !self.volumes[volume].waiting.is_empty() {
                self.admit(volume);
            }
        }
        if std::mem::take(&mut self.recheck) {
            let keys: Vec<u64> = self.writes.keys().copied().collect();
            for key in keys {
                self.try_complete(key);
            }
            let keys: Vec<u64> = self.flushes.keys().copied().collect();
            for key in keys {
                self.try_complete_flush(key);
            }
        }
    }

    fn admit(&mut self, volume: usize) {
        let waiting = std::mem::take(&mut self.volumes[volume].waiting);
        let mut passed: Vec<Span> = Vec::new();
        let mut still = std::collections::VecDeque::new();
        for key in waiting {
            let Some(write) = self.writes.get(&key) else {
                continue;
            };
            let span = write.span;
            let free = !passed.iter().any(|p| p.overlaps(span));
            if !(free && self.advance(key)) {
                passed.push(span);
                still.push_back(key);
            }
        }
        self.volumes[volume].waiting = still;
    }

    /// Moves a waiting write on; true when it waits no longer.
    fn advance(&mut self, key: u64) -> bool {
        let Some(write) = self.writes.get(&key).cloned() else {
            return true;
        };
        if self.holds(write.volume) {
            return false;
        }
        if let Stage::Logging(number) = write.stage {
            if !self.volumes[write.volume].log.is_durable(number)
                && self.volumes[write.volume].has_disk()
            {
                return false;
            }
            return self.recheck_and_submit(key, &write);
        }
        if self.role != Role::Primary || !self.serving {
            self.writes.remove(&key);
            self.complete(write.request, Err(IoFailure::NotPrimary));
            return true;
        }
        if !self.reachable(write.volume) {
            self.writes.remove(&key);
            self.complete(write.request, Err(IoFailure::NoData));
            return true;
        }
        if self.overlaps_running(&write, key) || self.sync_holds(write.volume, write.span) {
            return false;
        }
        if !self.may_submit(&write) {
            return false;
        }
        match self.acquire_extents(&write) {
            Acquire::Hot => self.recheck_and_submit(key, &write),
            Acquire::AfterTransaction(number) => {
                self.progress = true;
                if let Some(write) = self.writes.get_mut(&key) {
                    write.stage = Stage::Logging(number);
                }
                if broken!(self, SkipAl) {
                    return self.recheck_and_submit(key, &write);
                }
                false
            }
            Acquire::Unsettled => {
                self.want_settled(write.volume);
                false
            }
            Acquire::Full => false,
        }
    }

    /// Takes hold of the log extents; a diskless primary needs none.
    fn acquire_extents(&mut self, write: &Write) -> Acquire {
        let durable = self.transfer.durable();
        let early = broken!(self, EarlyEvict);
        let volume = &mut self.volumes[write.volume];
        if !volume.has_disk() {
            return Acquire::Hot;
        }
        let (bitmap, local) = (&volume.bitmap, volume.local.durable);
        volume.log.acquire(write.span, |extent, last: LastWrite| {
            early
                || (last.local <= local
                    && last.transfer <= durable
                    && !bitmap.extent_unsaved(extent))
        })
    }

    /// The wait for the log may have seen the link come or go: look again, then start both legs.
    fn recheck_and_submit(&mut self, key: u64, write: &Write) -> bool {
        if let Some(write) = self.writes.get_mut(&key) {
            // The extents are held from here on, whatever happens next.
            write.stage = Stage::Logging(0);
        }
        let failure = match self.reachable(write.volume) {
            false => Some(IoFailure::NoData),
            true => self.deposed.map(|_| IoFailure::NotPrimary),
        };
        if let Some(failure) = failure {
            self.writes.remove(&key);
            self.volumes[write.volume].log.release(write.span);
            self.complete(write.request, Err(failure));
            return true;
        }
        if !self.may_submit(write)
            || self.overlaps_running(write, key)
            || self.sync_holds(write.volume, write.span)
        {
            return false;
        }
        self.submit(key);
        true
    }

    /// Whether some copy can take I/O.
    fn reachable(&self, volume: usize) -> bool {
        let v = &self.volumes[volume];
        v.disk == DiskState::UpToDate
            || (self.replicates(volume) && v.peer_disk == DiskState::UpToDate)
    }

    fn overlaps_running(&self, write: &Write, key: u64) -> bool {
        self.writes.range(..key).any(|(_, other)| {
            other.volume == write.volume
                && other.stage == Stage::Running
                && !other.completed
                && other.span.overlaps(write.span)
        }) || self.writes.range(key + 1..).any(|(_, other)| {
            other.volume == write.volume
                && other.stage == Stage::Running
                && !other.completed
                && other.span.overlaps(write.span)
        })
    }

    /// Rule 6 and the limits of the send queue.
    fn may_submit(&mut self, write: &Write) -> bool {
        let volume = write.volume;
        if self.replicates(volume) {
            let bytes = self.transfer.unacked_bytes;
            let room =
                bytes == 0 || bytes + u64::from(write.span.len) <= self.config.max_unacked_bytes;
            if !self.transfer.has_room() {
                self.want_peer_flush();
            }
            return room && self.transfer.has_room() && self.own_disk_recorded(volume);
        }
        if self.volumes[volume].peer_current {
            self.begin_mint(volume);
            return false;
        }
        true
    }

    /// Whether writes that this node's own disk lacks may complete.
    fn own_disk_recorded(&self, volume: usize) -> bool {
        let v = &self.volumes[volume];
        v.disk == DiskState::UpToDate || matches!(v.own_disk, OwnDisk::Left(_))
    }

    fn submit(&mut self, key: u64) {
        let Some(mut write) = self.writes.remove(&key) else {
            return;
        };
        let volume = write.volume;
        let mut last = LastWrite::default();
        write.stage = Stage::Running;
        self.progress = true;
        self.verify_touched(volume, write.span);
        if self.replicates(volume) {
            let (position, track) = self.transfer.push_write(key, volume, write.span, self.now);
            last.transfer = position;
            write.peer = Leg::Running;
            let id = self.volumes[volume].id;
            self.out.push(Action::Track {
                slot: track,
                volume: id,
                span: write.span,
            });
            self.send_write(key, &write);
        } else {
            self.mark_dirty(volume, write.span);
        }
        if self.volumes[volume].takes_writes() {
            let number = self.volumes[volume].local.begin();
            last.local = number;
            write.local = Leg::Running;
            let io = self.begin(volume, Pending::LocalWrite { key, number });
            let id = self.volumes[volume].id;
            let (span, fua) = (write.span, write.fua);
            self.out.push(match write.kind {
                WriteKind::Data => {
                    let buffer = Buffer::Request(write.request);
                    Action::DiskWrite {
                        io,
                        volume: id,
                        span,
                        buffer,
                        fua,
                    }
                }
                WriteKind::Zeroes { unmap } => Action::DiskZeroes {
                    io,
                    volume: id,
                    span,
                    unmap,
                    fua,
                },
            });
        }
        self.volumes[volume].counters.written += u64::from(write.span.len);
        self.volumes[volume].log.note(write.span, last);
        self.writes.insert(key, write);
        self.try_complete(key);
    }

    fn send_write(&mut self, key: u64, write: &Write) {
        if std::mem::take(&mut self.transfer.barrier_due) {
            let sequence = self.transfer.last_sequence();
            self.send(Message::Barrier { sequence }, None);
        }
        let sequence = self.transfer.take_sequence();
        self.transfer.unacked.insert(sequence, (key, self.now));
        self.transfer.unacked_bytes += u64::from(write.span.len);
        let ack = match self.config.protocol {
            Protocol::B => AckKind::Received,
            Protocol::A | Protocol::C => AckKind::Written,
        };
        // The promise of a FUA write reaches the peer's medium under protocol C, and where the
        // peer's is the only copy.
        let fua = write.fua && self.peer_must_keep(write.volume);
        let message = Message::Write {
            volume: self.volumes[write.volume].id,
            span: write.span,
            kind: write.kind,
            fua,
            sequence,
            ack,
        };
        let payload = (write.kind == WriteKind::Data)
            .then_some((Buffer::Request(write.request), write.span.len));
        self.volumes[write.volume].counters.sent += payload.map_or(0, |(_, len)| u64::from(len));
        self.send(message, payload);
    }

    pub(super) fn local_write_done(
        &mut self,
        volume: usize,
        key: u64,
        number: u64,
        failed: Option<i32>,
    ) {
        let volatile = self.volumes[volume].volatile;
        self.volumes[volume].local.end(number, volatile);
        if let Some(write) = self.writes.get_mut(&key) {
            write.local = if failed.is_some() {
                Leg::Lost
            } else {
                Leg::Done
            };
            write.errno = failed.unwrap_or(write.errno);
            if let Some(track) = write.tracked.take() {
                self.untrack(track);
            }
        }
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        self.try_complete(key);
        self.progress = true;
    }

    /// The peer reports on a write.
    pub(super) fn on_write_ack(&mut self, sequence: u64, kind: AckKind) {
        let Some((key, _)) = self.transfer.unacked.get(&sequence).copied() else {
            return;
        };
        let Some(write) = self.writes.get_mut(&key) else {
            return;
        };
        let (volume, span) = (write.volume, write.span);
        write.peer = match kind {
            AckKind::Received => Leg::Received,
            AckKind::Written => Leg::Done,
            AckKind::Failed => Leg::Lost,
        };
        if kind != AckKind::Received {
            self.transfer.unacked.remove(&sequence);
            self.transfer.unacked_bytes -= u64::from(span.len);
        }
        if kind == AckKind::Written && broken!(self, PartialClear) {
            self.clear_synced(volume, span);
        }
        if kind == AckKind::Failed {
            self.peer_lacks(volume, span);
        }
        self.try_complete(key);
        self.progress = true;
    }

    /// A range of a write is not in flight any more.
    fn untrack(&mut self, track: u32) {
        self.transfer.free_track(track);
        self.out.push(Action::Untrack { slot: track });
    }

    /// A range that the peer's copy lacks from now on.
    pub(super) fn peer_lacks(&mut self, volume: usize, span: Span) {
        self.transfer.void_syncs(volume, span);
        self.abandon_adoption(volume);
        self.mark_dirty(volume, span);
        self.sync_touched(volume, span);
    }

    /// Whether it is recorded that the peer's copy alone counts; an error when it will not be.
    fn left_to_peer(&self, volume: usize) -> Result<bool, IoFailure> {
        match self.volumes[volume].own_disk {
            OwnDisk::Left(_) => Ok(true),
            OwnDisk::Recording(_) if self.deposed.is_some() => Err(IoFailure::NotPrimary),
            OwnDisk::Asked(_) | OwnDisk::Recording(_) if self.replicates(volume) => Ok(false),
            OwnDisk::Asked(_) | OwnDisk::Recording(_) | OwnDisk::Current => Err(IoFailure::NoData),
        }
    }

    fn promise_kept(&self, write: &Write) -> Result<bool, IoFailure> {
        let v = &self.volumes[write.volume];
        let local = match write.local {
            Leg::Running | Leg::Received => {
                broken!(self, AckBeforeLocal) && write.peer != Leg::Running
            }
            // What a disk wrote that has been lost since, or is still being synced, does not count.
            Leg::Done if v.disk == DiskState::UpToDate => true,
            Leg::Done | Leg::Absent | Leg::Lost => match write.peer {
                Leg::Done => self.left_to_peer(write.volume)?,
                Leg::Running | Leg::Received => false,
                Leg::Absent | Leg::Lost => return Err(IoFailure::Disk(write.errno)),
            },
        };
        let peer = match (write.peer, self.config.protocol) {
            (Leg::Done, _)
            | (Leg::Running | Leg::Received, Protocol::A)
            | (Leg::Received, Protocol::B) => true,
            (Leg::Running | Leg::Received, _) => broken!(self, AckBeforePeer),
            // The record that this write needs will not be made.
            (Leg::Absent | Leg::Lost, _) if local && v.peer_current && self.deposed.is_some() => {
                return Err(IoFailure::NotPrimary);
            }
            (Leg::Absent | Leg::Lost, _) => !v.peer_current,
        };
        Ok(local && peer)
    }

    fn try_complete(&mut self, key: u64) {
        let Some(write) = self.writes.get(&key) else {
            return;
        };
        if write.stage != Stage::Running {
            return;
        }
        let (volume, span, request) = (write.volume, write.span, write.request);
        if !write.completed {
            let result = match self.promise_kept(write) {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let lacking = matches!(write.peer, Leg::Absent | Leg::Lost);
                    if lacking && self.volumes[volume].peer_current {
                        self.begin_mint(volume);
                    }
                    return;
                }
                Err(failure) => Err(failure),
            };
            if matches!(write.peer, Leg::Running | Leg::Received) {
                self.transfer.barrier_due = true;
            }
            if let Some(write) = self.writes.get_mut(&key) {
                write.completed = true;
            }
            self.complete(request, result);
            self.progress = true;
        }
        let Some(write) = self.writes.get(&key) else {
            return;
        };
        if write.local.ended() && write.peer.ended() {
            self.writes.remove(&key);
            self.volumes[volume].log.release(span);
            self.progress = true;
        }
    }

    /// Whether an application write that overlaps is under way, up to the peer's ack (rule 9).
    pub(super) fn write_under_way(&self, volume: usize, span: Span) -> bool {
        self.writes.values().any(|write| {
            write.volume == volume && write.stage == Stage::Running && write.span.overlaps(span)
        })
    }

    /// Whether requests of the front ends are still open.
    pub(super) fn requests_open(&self) -> bool {
        !self.writes.is_empty()
            || !self.reads.is_empty()
            || !self.flushes.is_empty()
            || !self.held.is_empty()
    }

    /// Whether requests of a volume are under way; those that wait for admission are not.
    pub(super) fn volume_io_open(&self, volume: usize) -> bool {
        let written = |w: &Write| w.volume == volume && w.stage == Stage::Running;
        self.writes.values().any(written)
            || self.reads.values().any(|read| read.volume == volume)
            || self.flushes.values().any(|flush| flush.volume == volume)
    }

    /// Writes that wait hold no extents any more: the log is another one.
    pub(super) fn forget_extents(&mut self, volume: usize) {
        for write in self.writes.values_mut() {
            if write.volume == volume && write.stage != Stage::Running {
                write.stage = Stage::Waiting;
            }
        }
    }

    /// Whether what is promised to be stable must be so on the peer.
    fn peer_must_keep(&self, volume: usize) -> bool {
        self.config.protocol == Protocol::C || self.volumes[volume].disk != DiskState::UpToDate
    }

    /// The link is gone: writes on their way are not known to be on the peer (rule 3).
    pub(super) fn end_transfer(&mut self) {
        let forget = broken!(self, NoDirtyOnLinkLoss);
        let (entries, keys, waiters) = self.transfer.end();
        let durable_there = self.writes.values_mut().filter_map(|write| {
            let track = write.tracked.take()?;
            Some((write.volume, write.span, track))
        });
        let mut tracked: Vec<(usize, Span, u32)> = durable_there.collect();
        tracked.extend(entries.iter().filter_map(|entry| match entry.kind {
            Kind::Write { track, .. } => Some((entry.volume, entry.span, track)),
            Kind::Sync => None,
        }));
        for (volume, span, track) in tracked {
            if !forget {
                self.mark_dirty(volume, span);
            }
            self.out.push(Action::Untrack { slot: track });
        }
        for key in keys {
            if let Some(write) = self.writes.get_mut(&key) {
                write.peer = Leg::Lost;
            }
        }
        for key in waiters {
            if let Some(flush) = self.flushes.get_mut(&key) {
                flush.peer = Leg::Lost;
            }
        }
        for volume in &mut self.volumes {
            volume.log.forget_transfers();
        }
        self.recheck = true;
        self.progress = true;
    }

    /// The peer's disk of one volume is gone, and with it what was not durable there. Its
    /// acknowledgements of writes still under way come on their own.
    pub(super) fn end_volume_transfer(&mut self, volume: usize) {
        for entry in self.transfer.end_volume(volume) {
            if let Kind::Write { track, .. } = entry.kind {
                self.mark_dirty(volume, entry.span);
                self.untrack(track);
            }
        }
        self.volumes[volume].log.forget_transfers();
        self.recheck = true;
        self.progress = true;
    }

    // ---- reads ----

    fn start_read(&mut self, key: u64, mut read: ReadRequest) {
        let volume = read.volume;
        let id = self.volumes[volume].id;
        let buffer = Buffer::Request(read.request);
        if self.volumes[volume].disk == DiskState::UpToDate && !read.remote {
            self.volumes[volume].counters.read += u64::from(read.span.len);
            let io = self.begin(volume, Pending::LocalRead { key });
            self.out.push(Action::DiskRead {
                note_zeroes: false,
                io,
                volume: id,
                span: read.span,
                buffer,
            });
        } else if self.replicates(volume) && self.volumes[volume].peer_disk == DiskState::UpToDate {
            read.remote = true;
            self.send(
                Message::Read {
                    id: key,
                    volume: id,
                    span: read.span,
                },
                None,
            );
        } else {
            return self.complete(read.request, Err(IoFailure::NoData));
        }
        self.reads.insert(key, read);
    }

    pub(super) fn local_read_done(&mut self, volume: usize, key: u64, failed: Option<i32>) {
        let Some(mut read) = self.reads.remove(&key) else {
            return;
        };
        let Some(errno) = failed else {
            return self.complete(read.request, Ok(()));
        };
        self.fail_disk(volume, errno);
        read.remote = true;
        self.start_read(key, read);
    }

    /// The peer answers a read; the payload must get into the request's buffer.
    pub(super) fn on_read_reply(&mut self, id: u64, ok: bool, buffer: Option<Buffer>) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        match buffer {
            Some(buffer) if ok => {
                let to = Buffer::Request(read.request);
                self.out.push(Action::Copy {
                    from: buffer,
                    to,
                    len: read.span.len,
                });
                self.complete(read.request, Ok(()));
            }
            _ => self.complete(read.request, Err(IoFailure::NoData)),
        }
        self.progress = true;
    }

    pub(super) fn remote_reads_open(&self) -> bool {
        self.reads.values().any(|read| read.remote)
    }

    /// Reads that waited for the peer fail: there is no other copy.
    pub(super) fn fail_remote_reads(&mut self) {
        let keys: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, read)| read.remote)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(read) = self.reads.remove(&key) {
                self.complete(read.request, Err(IoFailure::NoData));
            }
        }
    }

    // ---- flushes ----

    fn start_flush(&mut self, key: u64, request: RequestId, volume: usize) {
        let mut flush = FlushRequest {
            request,
            volume,
            local: Leg::Absent,
            peer: Leg::Absent,
        };
        let id = self.volumes[volume].id;
        if self.volumes[volume].takes_writes() && !broken!(self, ForgetFlush) {
            flush.local = Leg::Running;
            let covers = self.volumes[volume].local.completed();
            let io = self.begin(volume, Pending::LocalFlush { key, covers });
            self.out.push(Action::DiskFlush { io, volume: id });
        }
        if self.peer_must_keep(volume) && self.replicates(volume) {
            flush.peer = Leg::Running;
            if let Some(id) = self.transfer.flush(Some(key), true) {
                self.send(Message::Flush { flush: id }, None);
            }
        } else if !self.replicates(volume) && self.volumes[volume].bitmap.count() > 0 {
            flush.peer = Leg::Lost;
        }
        self.flushes.insert(key, flush);
        self.try_complete_flush(key);
    }

    pub(super) fn local_flush_done(
        &mut self,
        volume: usize,
        key: Option<u64>,
        covers: u64,
        failed: Option<i32>,
    ) {
        let v = &mut self.volumes[volume];
        if key.is_none() {
            v.flushing = false;
        }
        if failed.is_none() {
            v.local.durable = v.local.durable.max(covers);
        }
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        if let Some(key) = key {
            if let Some(flush) = self.flushes.get_mut(&key) {
                flush.local = if failed.is_some() {
                    Leg::Lost
                } else {
                    Leg::Done
                };
            }
            self.try_complete_flush(key);
        }
        self.progress = true;
    }

    /// The peer answers a flush: what it covers is durable there.
    pub(super) fn on_flush_ack(&mut self, flush: u64, ok: bool) {
        let Some((waiters, entries)) = self.transfer.flush_done(flush, ok) else {
            return;
        };
        for entry in entries {
            match entry.kind {
                Kind::Write { key, track } => match self.writes.get_mut(&key) {
                    // Should this process die now, the write may never reach our own disk.
                    Some(write) if write.local == Leg::Running => write.tracked = Some(track),
                    _ => self.untrack(track),
                },
                Kind::Sync => self.clear_synced(entry.volume, entry.span),
            }
        }
        for key in waiters {
            if let Some(flush) = self.flushes.get_mut(&key) {
                flush.peer = if ok { Leg::Done } else { Leg::Lost };
            }
            self.try_complete_flush(key);
        }
        self.progress = true;
    }

    fn try_complete_flush(&mut self, key: u64) {
        let Some(flush) = self.flushes.get(&key).copied() else {
            return;
        };
        let v = &self.volumes[flush.volume];
        if !flush.local.ended() || !flush.peer.ended() {
            return;
        }
        let here = flush.local == Leg::Done && v.disk == DiskState::UpToDate;
        // What the flush promises, the peer's copy lacks: it must not be promotable.
        let lacking = here && flush.peer == Leg::Lost && v.peer_current && v.bitmap.count() > 0;
        if lacking && self.deposed.is_none() {
            return self.begin_mint(flush.volume);
        }
        let result = match flush.peer {
            _ if lacking => Err(IoFailure::NotPrimary),
            _ if here => Ok(()),
            Leg::Done => match self.left_to_peer(flush.volume) {
                Ok(true) => Ok(()),
                Ok(false) => return,
                Err(failure) => Err(failure),
            },
            _ => Err(IoFailure::NoData),
        };
        self.flushes.remove(&key);
        self.complete(flush.request, result);
        self.progress = true;
    }

    /// Asks the peer to make durable what it has received, for our own needs.
    pub(super) fn want_peer_flush(&mut self) {
        if self.replicating().is_none()
            || self.transfer.flush_under_way()
            || self.transfer.is_empty()
        {
            return;
        }
        if let Some(id) = self.transfer.flush(None, false) {
            self.send(Message::Flush { flush: id }, None);
        }
    }

    /// When the oldest write without the peer's ack was sent.
    pub(super) fn oldest_unacked(&self) -> Option<Time> {
        self.transfer.oldest_unacked()
    }
}
