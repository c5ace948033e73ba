//! Attaching, detaching and losing disks; the writes of metadata.

use std::time::Duration;

use super::action::{Action, Notice};
use super::activity_log::{ActivityLog, LastWrite};
use super::bitmap::{BIT_BYTES, Bitmap};
use super::ids::{CommandId, Generation, LinkId, Span, Time, VolumeId};
use super::message::Message;
use super::persist::{MetaOp, SlotChange, VolumeImage};
use super::reason::{LinkLoss, Refusal};
use super::resource::{Engine, Pending, Quiesce, broken};
use super::status::{DiskState, ReplicationState, Role};
use super::volume::{Closing, ClosingStep, LocalWrites, OwnDisk};

/// Bitmap pages written in one operation.
const PAGES_PER_WRITE: usize = 64;
/// How long an orderly detach may take before the disk is closed as it is.
const CLOSE: Duration = Duration::from_secs(5);

/// A generation of a primary without a disk that is to be stored here. Under it this copy alone
/// counts, so it takes its place in the order of the writes: what the primary's disk had when it
/// was left, A and B may have completed while it was still on its way to ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    link: LinkId,
    index: usize,
    generation: Generation,
    step: HandoverStep,
}

/// What a handover waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandoverStep {
    /// Items of the peer up to this number.
    Draining(u64),
    Flushing,
    /// This version of the superblock.
    Storing(u64),
}

impl Engine {
    // ---- attach ----

    pub(super) fn on_attach(&mut self, command: CommandId, id: VolumeId, image: VolumeImage) {
        let Some(index) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        if self.volumes[index].disk != DiskState::Diskless {
            return self.refuse(command, Refusal::AlreadyAttached { volume: id });
        }
        if self.volumes[index].closing.is_some() {
            return self.refuse(command, Refusal::Busy);
        }
        if self.role == Role::Primary {
            return self.begin_retake(command, index, Box::new(image));
        }
        if self.promoting() {
            // The promotion rests on the disks that it began with.
            return self.refuse(command, Refusal::Busy);
        }
        let agreed = image.superblock.agreed_size;
        if image.capacity < agreed {
            let (need, have) = (agreed, image.capacity);
            return self.refuse(
                command,
                Refusal::DiskTooSmall {
                    volume: id,
                    need,
                    have,
                },
            );
        }
        self.load(index, image);
        self.term = self.term.max(self.volumes[index].superblock.term);
        let node = self.config.node;
        let version = self.volumes[index].change(|superblock| superblock.node = node);
        self.tell_shape(index);
        self.attaching.push((command, index, version));
        self.progress = true;
    }

    /// Tells front ends what has changed for them.
    pub(super) fn tell_shape(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        let shape = v.shape();
        if v.told != Some(shape) {
            v.told = Some(shape);
            let volume = v.id;
            self.out.push(Action::Shape { volume, shape });
        }
    }

    pub(super) fn load(&mut self, index: usize, image: VolumeImage) {
        let slots = self.config.al_extents;
        let primary = self.role == Role::Primary;
        let trust = broken!(self, TrustOwnUptodate);
        let boot = self.config.boot_id;
        let v = &mut self.volumes[index];
        v.superblock = image.superblock;
        (v.counters.sent, v.counters.received) = (0, 0);
        v.reset_versions();
        v.capacity = image.capacity;
        v.size = if v.superblock.agreed_size > 0 {
            v.superblock.agreed_size
        } else {
            image.capacity
        };
        v.logical_block = image.logical_block;
        v.discard = image.discard;
        v.volatile = image.volatile_cache;
        v.bitmap = Bitmap::new(v.size, image.bitmap);
        v.crashed = v.superblock.primary;
        v.local = if v.crashed {
            LocalWrites::after_crash()
        } else {
            LocalWrites::default()
        };
        if !primary {
            v.own_disk = OwnDisk::Current;
        }
        v.compared = false;
        v.log_in_flight = false;
        v.pages_in_flight = false;
        v.flushing = false;
        let log: &[u32] = if v.crashed { &image.log } else { &[] };
        v.log = ActivityLog::new(slots, log);
        v.log.note_all(LastWrite {
            local: v.local.last(),
            transfer: 0,
        });
        match image.in_flight {
            _ if !v.crashed => {}
            Some(spans) => spans
                .into_iter()
                .for_each(|span| v.bitmap.suspect_span(span)),
            None => {
                let extents: Vec<u32> = v.log.active().collect();
                extents
                    .into_iter()
                    .for_each(|extent| v.bitmap.suspect_extent(extent));
            }
        }
        let lost_cache = v.superblock.unflushed && v.superblock.unflushed_boot != boot;
        if lost_cache {
            v.superblock.inconsistent = true;
        }
        let proven = v.proven_current() || trust;
        // The peer may hold our generation unless a newer one was made since, or (base still set)
        // a sync toward it had not come to its end.
        let peer = v.peer();
        v.peer_current = peer.known && (peer.base.is_fresh() || !peer.outdated);
        let state = match () {
            () if v.superblock.inconsistent || v.superblock.current.is_fresh() => {
                DiskState::Inconsistent
            }
            () if v.superblock.outdated || primary => DiskState::Outdated,
            () if proven => DiskState::UpToDate,
            () => DiskState::Consistent,
        };
        self.set_disk(index, state);
    }

    pub(super) fn settle_attaches(&mut self) {
        let ready: Vec<(CommandId, usize, u64)> = self
            .attaching
            .iter()
            .filter(|(_, volume, version)| self.volumes[*volume].stored(*version))
            .copied()
            .collect();
        if ready.is_empty() {
            return;
        }
        self.attaching
            .retain(|(_, volume, version)| !self.volumes[*volume].stored(*version));
        for (command, volume, _) in ready {
            if self.volumes[volume].has_disk() {
                self.done(command);
            } else {
                self.refuse(command, Refusal::Metadata { errno: 5 });
            }
        }
        // The peer learns of the disk in a new handshake.
        if self.link.is_some() {
            self.drop_link(LinkLoss::Renegotiate);
        }
        self.progress = true;
    }

    // ---- detach and loss ----

    pub(super) fn on_detach(&mut self, command: CommandId, id: VolumeId) {
        let Some(index) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        if !self.volumes[index].has_disk() {
            return self.done(command);
        }
        if self.role == Role::Primary {
            let other =
                self.replicates(index) && self.volumes[index].peer_disk == DiskState::UpToDate;
            if !other {
                return self.refuse(command, Refusal::PeerNotUpToDate { volume: id });
            }
        }
        self.leave_disk(index);
        self.volumes[index].closing = Some(Closing {
            command,
            deadline: self.now.after(CLOSE),
            step: ClosingStep::Draining,
        });
    }

    /// A disk or metadata operation failed: `on-io-error detach`.
    pub(super) fn fail_disk(&mut self, index: usize, errno: i32) {
        let v = &self.volumes[index];
        if v.closing.is_some() {
            return self.close_disk(index);
        }
        if !v.has_disk() {
            return;
        }
        let id = v.id;
        self.publish(Notice::DiskError { volume: id, errno });
        self.set_disk(index, DiskState::Failed);
        self.lose_disk(index);
    }

    /// The disk is gone at once. Its outstanding operations still end on their own; the driver
    /// closes it when they have.
    fn lose_disk(&mut self, index: usize) {
        self.leave_disk(index);
        let volume = self.volumes[index].id;
        self.out.push(Action::DiskClosed { volume });
    }

    /// From here on the disk takes no part.
    fn leave_disk(&mut self, index: usize) {
        let id = self.volumes[index].id;
        let source = self.volumes[index].replication == ReplicationState::SyncSource;
        self.set_disk(index, DiskState::Diskless);
        let was_shared = self.volumes[index].peer_disk == DiskState::UpToDate;
        self.abandon_sync(index);
        if source {
            // The target stays inconsistent and has nobody to sync from.
            self.set_replication(index, ReplicationState::Established);
        } else if self.volumes[index].replication == ReplicationState::SyncTarget {
            self.publish_shown(index);
        }
        // A record under way died with the disk; nothing rests on it any more.
        self.volumes[index].mint = None;
        if self.replicating().is_some() {
            self.send(
                Message::DiskState {
                    volume: id,
                    state: DiskState::Diskless,
                },
                None,
            );
            // A disk that was still a sync target had been left before.
            let counted = self.volumes[index].own_disk == OwnDisk::Current;
            if self.role == Role::Primary && was_shared && counted {
                self.leave_own_disk(index);
            }
        } else if self.handshake_committed() {
            // The peer was told of a disk that is not there any more.
            self.drop_link(LinkLoss::Renegotiate);
        }
        self.recheck = true;
        self.progress = true;
    }

    /// The primary goes on with the peer's disk alone: the peer stores a generation that our own
    /// disk does not have, before any write completes (rule 6).
    pub(super) fn leave_own_disk(&mut self, index: usize) {
        let generation = self.fresh_generation();
        let v = &mut self.volumes[index];
        v.own_disk = OwnDisk::Asked(generation);
        v.peer_current = true;
        let volume = v.id;
        self.send(Message::NewGeneration { volume, generation }, None);
    }

    /// The connected primary has lost its disk: ours holds the data from now on. A copy that is
    /// just being recorded as outdated does not.
    pub(super) fn on_new_generation(&mut self, link: LinkId, index: usize, generation: Generation) {
        let v = &self.volumes[index];
        if v.disk != DiskState::UpToDate || v.superblock.outdated {
            return;
        }
        self.handovers.push(Handover {
            link,
            index,
            generation,
            step: HandoverStep::Draining(self.replica.last_item()),
        });
        self.progress = true;
    }

    pub(super) fn settle_handovers(&mut self) {
        let mut handovers = std::mem::take(&mut self.handovers);
        handovers.retain_mut(|handover| self.settle_handover(handover));
        self.handovers = handovers;
    }

    /// Takes the next step of a handover; false when there is none left.
    fn settle_handover(&mut self, handover: &mut Handover) -> bool {
        let Handover {
            link,
            index,
            generation,
            step,
        } = *handover;
        // What was received before has failed, or another reign begins.
        let void = self.volumes[index].disk != DiskState::UpToDate
            || self.role == Role::Primary
            || self.promoting();
        let done = match step {
            _ if void => true,
            HandoverStep::Draining(after) if self.replica.ended_up_to(after) => {
                handover.step = HandoverStep::Flushing;
                self.quiesce(index, Quiesce::Handover(generation));
                false
            }
            HandoverStep::Storing(version) if self.volumes[index].stored(version) => {
                if self.replicating() == Some(link) {
                    let volume = self.volumes[index].id;
                    self.send(Message::NewGenerationAck { volume, generation }, None);
                }
                true
            }
            _ => false,
        };
        self.progress |= done;
        !done
    }

    /// Everything that the primary's own disk had is durable here.
    fn handover_flushed(&mut self, index: usize, generation: Generation) {
        let flushed = |h: &&mut Handover| {
            (h.index, h.generation, h.step) == (index, generation, HandoverStep::Flushing)
        };
        let Some(handover) = self.handovers.iter_mut().find(flushed) else {
            return;
        };
        let v = &mut self.volumes[index];
        v.new_generation(generation);
        let version = v.change_peer(|peer| {
            peer.outdated = true;
            peer.want_full = true;
        });
        v.peer_current = false;
        handover.step = HandoverStep::Storing(version);
    }

    pub(super) fn on_new_generation_ack(&mut self, index: usize, generation: Generation) {
        if self.volumes[index].own_disk != OwnDisk::Asked(generation) {
            return;
        }
        // Ours is one vote short of a majority that leaves this disk behind.
        if self.has_voter() && !broken!(self, DetachUnrecorded) {
            self.volumes[index].own_disk = OwnDisk::Recording(generation);
            self.record_at_voter(index, generation);
        } else {
            self.volumes[index].own_disk = OwnDisk::Left(generation);
        }
        self.recheck = true;
        self.progress = true;
    }

    // ---- orderly detach ----

    /// Brings the metadata of disks that were detached to an end, so that the next attach knows
    /// what it would otherwise have to suppose: nothing is unflushed, every set bit is stored, and
    /// the log of a primary does not count once the peer has recorded that its copy alone does.
    pub(super) fn settle_closings(&mut self) {
        for index in 0..self.volumes.len() {
            let Some(closing) = self.volumes[index].closing else {
                continue;
            };
            if self.now >= closing.deadline {
                self.close_disk(index);
                continue;
            }
            match closing.step {
                ClosingStep::Draining => {
                    let asked = self.replicates(index)
                        && matches!(
                            self.volumes[index].own_disk,
                            OwnDisk::Asked(_) | OwnDisk::Recording(_)
                        );
                    let busy = self.ios.values().any(|(volume, _)| *volume == index);
                    if !asked && !busy {
                        self.set_closing(index, ClosingStep::Flushing);
                        self.quiesce(index, Quiesce::Close);
                    }
                }
                ClosingStep::Flushing => {}
                ClosingStep::Storing(version) => {
                    let v = &self.volumes[index];
                    if v.stored(version) && !v.bitmap.unsaved() && !v.pages_in_flight {
                        self.close_disk(index);
                    }
                }
            }
        }
    }

    fn set_closing(&mut self, index: usize, step: ClosingStep) {
        if let Some(closing) = self.volumes[index].closing.as_mut() {
            closing.step = step;
        }
        self.progress = true;
    }

    /// Everything that was written to the disk is durable.
    fn closing_flushed(&mut self, index: usize) {
        if self.volumes[index].closing.is_none() {
            return;
        }
        let left = matches!(self.volumes[index].own_disk, OwnDisk::Left(_));
        let reigns = self.role == Role::Primary;
        let v = &mut self.volumes[index];
        v.save_bitmap = true;
        let version = v.change(|superblock| {
            superblock.unflushed = false;
            superblock.primary &= !(reigns && left);
        });
        self.set_closing(index, ClosingStep::Storing(version));
    }

    fn close_disk(&mut self, index: usize) {
        if let Some(closing) = self.volumes[index].closing.take() {
            let volume = self.volumes[index].id;
            self.out.push(Action::DiskClosed { volume });
            self.done(closing.command);
            self.progress = true;
        }
    }

    /// When a disk that is being closed is given up.
    pub(super) fn closing_deadline(&self) -> Option<Time> {
        let closing = self.volumes.iter().filter_map(|v| v.closing);
        closing.map(|closing| closing.deadline).min()
    }

    /// The peer's disk has changed state while connected.
    pub(super) fn on_peer_disk_state(&mut self, index: usize, state: DiskState) {
        self.set_peer_disk(index, state);
        if state == DiskState::Diskless {
            self.abandon_sync(index);
            self.abandon_adoption(index);
            if matches!(
                self.volumes[index].replication,
                ReplicationState::SyncSource | ReplicationState::SyncTarget
            ) {
                self.set_replication(index, ReplicationState::Established);
            }
            self.end_volume_transfer(index);
        }
        self.recheck = true;
        self.progress = true;
    }

    pub(super) fn on_invalidate(&mut self, command: CommandId, id: VolumeId) {
        let Some(index) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        if !self.volumes[index].has_disk() {
            return self.refuse(command, Refusal::NoDisk { volume: id });
        }
        if self.role == Role::Primary {
            return self.refuse(command, Refusal::IsPrimary);
        }
        if self.replicating().is_none() {
            return self.refuse(command, Refusal::NotConnected);
        }
        if self.volumes[index].peer_disk != DiskState::UpToDate {
            return self.refuse(command, Refusal::PeerNotUpToDate { volume: id });
        }
        let v = &mut self.volumes[index];
        v.change_peer(|peer| peer.want_full = true);
        let version = v.change(|superblock| superblock.inconsistent = true);
        self.set_disk(index, DiskState::Inconsistent);
        self.attaching.push((command, index, version));
    }

    // ---- metadata ----

    pub(super) fn settle_metadata(&mut self) {
        for index in 0..self.volumes.len() {
            self.write_log(index);
            self.write_superblock(index);
            self.write_pages(index);
            self.own_flush(index);
        }
    }

    fn write_superblock(&mut self, index: usize) {
        let Some(version) = self.volumes[index].unstored() else {
            return;
        };
        self.volumes[index].writing = Some(version);
        let superblock = Box::new(self.volumes[index].superblock.clone());
        let io = self.begin(index, Pending::Superblock { version });
        let volume = self.volumes[index].id;
        self.out.push(Action::Meta {
            io,
            volume,
            op: MetaOp::Superblock(superblock),
        });
    }

    pub(super) fn superblock_done(&mut self, index: usize, version: u64, failed: Option<i32>) {
        if self.volumes[index].writing != Some(version) {
            return;
        }
        self.volumes[index].writing = None;
        match failed {
            None => self.volumes[index].superblock_stored(version),
            Some(errno) => self.fail_disk(index, errno),
        }
        self.progress = true;
    }

    fn write_log(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        if v.log_in_flight || !v.has_disk() {
            return;
        }
        let Some((number, transaction)) = v.log.next_transaction() else {
            return;
        };
        v.log_in_flight = true;
        v.counters.al_writes += 1;
        let changes = transaction.changes.clone();
        let volume = v.id;
        let io = self.begin(index, Pending::Log { number, changes });
        self.out.push(Action::Meta {
            io,
            volume,
            op: MetaOp::Log(transaction),
        });
    }

    pub(super) fn log_done(
        &mut self,
        index: usize,
        number: u64,
        changes: &[SlotChange],
        failed: Option<i32>,
    ) {
        self.volumes[index].log_in_flight = false;
        match failed {
            None => self.volumes[index].log.transaction_done(number, changes),
            Some(errno) => self.fail_disk(index, errno),
        }
        self.progress = true;
    }

    fn write_pages(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        if !v.save_bitmap || v.pages_in_flight || !v.has_metadata() {
            return;
        }
        let pages = v.bitmap.take_pages(PAGES_PER_WRITE, true);
        if pages.is_empty() {
            v.save_bitmap = false;
            return;
        }
        v.pages_in_flight = true;
        v.counters.bm_writes += pages.len() as u64;
        let volume = v.id;
        let numbers = pages.iter().map(|(page, _)| *page).collect();
        let io = self.begin(index, Pending::Pages { pages: numbers });
        self.out.push(Action::Meta {
            io,
            volume,
            op: MetaOp::Bitmap { slot: 0, pages },
        });
    }

    pub(super) fn pages_done(&mut self, index: usize, pages: &[u32], failed: Option<i32>) {
        let v = &mut self.volumes[index];
        v.pages_in_flight = false;
        if let Some(errno) = failed {
            pages.iter().for_each(|page| v.bitmap.return_page(*page));
            self.fail_disk(index, errno);
        }
        self.progress = true;
    }

    /// Whether set bits and superblock of a volume are all on disk.
    pub(super) fn metadata_stored(&self, index: usize) -> bool {
        let v = &self.volumes[index];
        !v.has_disk() || (v.all_stored() && !v.bitmap.unsaved() && !v.pages_in_flight)
    }

    /// Makes extents of the log leavable: local flush, flush of the peer, bitmap pages.
    pub(super) fn want_settled(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        v.flush_wanted = v.local.durable < v.local.last();
        if v.bitmap.unsaved() && !v.save_bitmap {
            v.save_bitmap = true;
            self.progress = true;
        }
        self.own_flush(index);
        self.want_peer_flush();
    }

    fn own_flush(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        if !v.flush_wanted || v.flushing || !v.has_disk() {
            return;
        }
        v.flush_wanted = false;
        let covers = v.local.completed();
        if covers <= v.local.durable {
            return;
        }
        v.flushing = true;
        let volume = v.id;
        let io = self.begin(index, Pending::OwnFlush { covers });
        self.out.push(Action::DiskFlush { io, volume });
    }

    /// Flushes the disk as one step of something larger.
    pub(super) fn quiesce(&mut self, index: usize, purpose: Quiesce) {
        let io = self.begin(index, Pending::Quiesce(purpose));
        let volume = self.volumes[index].id;
        self.out.push(Action::DiskFlush { io, volume });
    }

    pub(super) fn quiesce_done(&mut self, index: usize, purpose: Quiesce, failed: Option<i32>) {
        if let Some(errno) = failed {
            self.fail_disk(index, errno);
        }
        match purpose {
            Quiesce::Adopt(link) if failed.is_none() => self.adopt_flushed(index, link),
            Quiesce::Adopt(_) => {}
            Quiesce::Note => {
                let last = !self
                    .ios
                    .values()
                    .any(|(_, p)| matches!(p, Pending::Quiesce(Quiesce::Note)));
                self.note_flushed(last);
            }
            Quiesce::Role => self.role_flushed(index),
            Quiesce::Close if failed.is_none() => self.closing_flushed(index),
            Quiesce::Close => {}
            Quiesce::Handover(generation) if failed.is_none() => {
                self.handover_flushed(index, generation);
            }
            Quiesce::Handover(_) => {}
        }
        self.progress = true;
    }

    // ---- rest ----

    /// The crash that the superblock records has been dealt with.
    pub(super) fn clear_crash_flag(&mut self, index: usize) {
        let v = &mut self.volumes[index];
        if v.crashed && v.bitmap.count() == 0 {
            v.crashed = false;
            if self.role == Role::Secondary {
                v.change(|superblock| superblock.primary = false);
            }
        }
    }

    // ---- the table of ranges in flight ----

    /// The tracked ranges replace the log after a crash of this process only while the bitmap on
    /// disk has every bit that memory has.
    pub(super) fn settle_tracking(&mut self) {
        // After a sync all bits are clear again, and nothing else would ever store the pages.
        let connected = self.replicating().is_some();
        for v in &mut self.volumes {
            let settled = connected && v.has_disk() && v.bitmap.count() == 0;
            // The target stores them once its new generation is, which `UpToDate` follows.
            let synced = v.disk == DiskState::UpToDate && v.peer_disk == DiskState::UpToDate;
            let stale = v.bitmap.unsaved() || (synced && v.bitmap.outlived());
            if settled && stale && !v.save_bitmap {
                v.save_bitmap = true;
                self.progress = true;
            }
        }
        self.tell_exactness();
    }

    /// A range that the copies do not share from now on; the agent knows before the next action.
    pub(super) fn mark_dirty(&mut self, index: usize, span: Span) {
        self.volumes[index].bitmap.set_span(span);
        self.tell_exactness();
    }

    fn tell_exactness(&mut self) {
        // A lost disk counts: what it has not stored, it will not tell at its next attach.
        let exact = !self
            .volumes
            .iter()
            .any(|v| v.bitmap.unsaved() || v.pages_in_flight);
        if exact != self.track_exact {
            self.track_exact = exact;
            self.out.push(Action::TrackExact { exact });
        }
    }

    /// Bytes that may differ from the peer.
    pub(super) fn out_of_sync(&self, index: usize) -> u64 {
        let v = &self.volumes[index];
        if v.has_disk() && v.superblock.current.is_fresh() {
            // Never synced: the bits begin with the first sync.
            return v.size;
        }
        (v.bitmap.count() * BIT_BYTES).min(v.size)
    }
}
