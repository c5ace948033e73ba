//! The source of a sync: walks the dirty bitmap, copies or compares block by block, finishes.
//!
//! A block is *claimed* first: from then on no application write may start over it, and it is
//! read only when those under way have ended at the peer too (rule 9). Where the target is the
//! primary, its writes come from there: see `retake`. The claim ends with the target's answer; its bits are cleared when a later flush of the target has made it durable
//! (rule 2).

use std::collections::{BTreeMap, VecDeque};

use super::action::{Action, Notice};
use super::bitmap::Bitmap;
use super::event::IoOutcome;
use super::ids::{Buffer, CommandId, Span, Time, VolumeId};
use super::message::{Digest, Message, SyncResult, WriteKind};
use super::pace::{Admit, Claim, Limits, Pace};
use super::reason::Refusal;
use super::resource::{Engine, Pending, broken};
use super::status::{DiskState, ReplicationState};

/// See [`Engine::checkpoint`]; 24 MiB of blocks of 1 MiB.
const CHECKPOINT_CHUNKS: u64 = 24;
/// The longest hole that goes as one message, where the target can give blocks back; others write
/// the zeroes, and get them in pieces of the usual length. No write starts over it meanwhile.
const HOLE: u32 = 64 << 20;
/// What a hole counts for the pace: a message and its answer.
const HOLE_COSTS: u32 = 4096;
/// Data that is shorter is read together with the hole behind it, bytes.
const SHORT_READ: u64 = 64 << 10;
/// The smallest hole, the unit of the dirty bitmap.
const LEAST_HOLE: u32 = 4096;

/// Where a claimed block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for application writes over it to end, and for a buffer.
    Claimed,
    /// Being read, or asked for whether it begins with a hole.
    Reading,
    /// Sent as data, or as a hash.
    Sent,
}

/// A block on its way.
#[derive(Clone, Copy, Debug)]
struct Block {
    span: Span,
    compare: bool,
    /// It may begin with a hole, so the disk is asked first; of data, so many bytes are taken.
    probe: Option<u32>,
    stage: Stage,
    claim: Claim,
}

/// What there is to send.
#[derive(Debug)]
enum Scope {
    /// The blocks of the dirty bitmap.
    Dirty,
    /// Ranges that a verify has found, for a copy that stays in use.
    Ranges(VecDeque<Span>),
}

/// A running sync of one volume, source side.
#[derive(Debug)]
pub(super) struct Sync {
    scope: Scope,
    cursor: u64,
    blocks: BTreeMap<u64, Block>,
    /// `SyncDone` was sent, or waits for the record that the peer is about to be current.
    finish: Finish,
    copied: u64,
    compared: u64,
    total: u64,
    pace: Pace,
    /// When the pace lets the next block go.
    wake: Option<Time>,
    /// The disk is known to have no hole from the last probe up to here.
    dense_until: u64,
    /// Bytes answered since the target was last asked to make all durable.
    unflushed: u64,
    /// Place in the transfer log of the block that was answered last.
    last_sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    NotYet,
    /// The superblock must first stop saying that the peer is outdated.
    Recording(u64),
    Sent,
}

impl Sync {
    pub(super) fn new(total: u64, pace: Pace) -> Sync {
        Sync {
            scope: Scope::Dirty,
            cursor: 0,
            blocks: BTreeMap::new(),
            finish: Finish::NotYet,
            copied: 0,
            compared: 0,
            total,
            pace,
            wake: None,
            dense_until: 0,
            unflushed: 0,
            last_sent: 0,
        }
    }

    /// The repair of some ranges of a copy that stays in use.
    pub(super) fn of_ranges(spans: Vec<Span>, pace: Pace) -> Sync {
        let total = spans.iter().map(|span| u64::from(span.len)).sum();
        Sync {
            scope: Scope::Ranges(spans.into()),
            ..Sync::new(total, pace)
        }
    }

    pub(super) fn is_repair(&self) -> bool {
        matches!(self.scope, Scope::Ranges(_))
    }

    /// Whether every range of a repair was sent and answered.
    pub(super) fn is_sent(&self) -> bool {
        let empty = matches!(&self.scope, Scope::Ranges(left) if left.is_empty());
        empty && self.blocks.is_empty()
    }

    /// Up to where the transfer log must be durable for all that was answered to be so.
    pub(super) fn last_sent(&self) -> u64 {
        self.last_sent
    }

    /// Bytes that were to do at the start.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn reads(&self, span: Span) -> bool {
        let reading = |block: &Block| block.stage == Stage::Reading;
        self.blocks
            .values()
            .any(|block| reading(block) && block.span.overlaps(span))
    }

    /// The next dirty range that is not claimed, at most `max` bytes, and whether to compare it.
    fn next_block(&self, bitmap: &Bitmap, max: u32, device_end: u64) -> Option<(Span, bool)> {
        if let Scope::Ranges(left) = &self.scope {
            let next = left.front()?;
            return Some((Span::new(next.start, next.len.min(max)), false));
        }
        let mut from = self.cursor;
        loop {
            match bitmap.next_run(from, max, device_end) {
                Some((span, _)) if self.claims(span) => from = span.end(),
                other => return other,
            }
        }
    }

    /// A block was claimed: the next one is behind it.
    fn pass(&mut self, span: Span) {
        self.cursor = span.end();
        if let Scope::Ranges(left) = &mut self.scope
            && let Some(next) = left.pop_front()
            && next.len > span.len
        {
            left.push_front(Span::new(span.end(), next.len - span.len));
        }
    }

    /// A block that was refused comes again. The bits of a sync stay, and bring it back.
    fn again(&mut self, span: Span) {
        if let Scope::Ranges(left) = &mut self.scope {
            left.push_back(span);
        }
    }

    /// Whether the answer about a hole is still to come; what follows depends on it.
    fn probes(&self) -> bool {
        self.blocks.values().any(|block| block.probe.is_some())
    }

    fn claims(&self, span: Span) -> bool {
        self.blocks.values().any(|block| block.span.overlaps(span))
    }
}

impl Engine {
    /// Whether a sync block holds the range.
    pub(super) fn sync_claims(&self, volume: usize, span: Span) -> bool {
        !broken!(self, ResyncOverwritesNewer)
            && self.volumes[volume]
                .sync
                .as_ref()
                .is_some_and(|sync| sync.claims(span))
    }

    /// Whether a write over the range may not start here: a sync block is claimed, or one of the
    /// peer is on its way to the disk.
    pub(super) fn sync_holds(&self, volume: usize, span: Span) -> bool {
        self.sync_claims(volume, span) || self.replica_over(volume, span)
    }

    /// Whether a sync block over the range is being read.
    pub(super) fn sync_reads(&self, volume: usize, span: Span) -> bool {
        !broken!(self, ResyncOverwritesNewer)
            && self.volumes[volume]
                .sync
                .as_ref()
                .is_some_and(|sync| sync.reads(span))
    }

    pub(super) fn settle_sync(&mut self) {
        for volume in 0..self.volumes.len() {
            let v = &self.volumes[volume];
            let repair = v.sync.as_ref().is_some_and(Sync::is_repair);
            if repair || v.replication == ReplicationState::SyncSource {
                self.start_claimed(volume);
                self.claim_more(volume);
                self.try_finish(volume);
            }
        }
    }

    fn claim_more(&mut self, volume: usize) {
        let limit = self.config.resync_buffers as usize;
        loop {
            let now = self.now;
            let v = &mut self.volumes[volume];
            let open = |sync: &&mut Sync| sync.finish == Finish::NotYet;
            let Some(sync) = v.sync.as_mut().filter(open) else {
                return;
            };
            sync.wake = None;
            if v.paused.any() || sync.blocks.len() >= limit || sync.probes() {
                return;
            }
            let chunk = self.config.resync_chunk;
            let Some((span, compare)) = sync.next_block(&v.bitmap, chunk, v.size) else {
                return;
            };
            let longest = match sync.pace.admit(now, &self.load) {
                Admit::Now(bytes) => bytes,
                Admit::At(at) => {
                    sync.wake = Some(at);
                    return;
                }
                Admit::Later => return,
            };
            let compare = (compare || self.config.csums) && !sync.is_repair();
            let gives_back = v.peer_disk_traits.is_some_and(|peer| peer.discard);
            let probe = !compare && !sync.is_repair() && span.start >= sync.dense_until;
            let span = match probe && gives_back && self.load.is_calm(now) {
                true => sync
                    .next_block(&v.bitmap, HOLE, v.size)
                    .map_or(span, |next| next.0),
                false => Span::new(span.start, span.len.min(longest)),
            };
            let bytes = if probe { HOLE_COSTS } else { span.len };
            let block = Block {
                span,
                compare,
                probe: probe.then_some(longest),
                stage: Stage::Claimed,
                claim: sync.pace.claim(now, &self.load, u64::from(bytes)),
            };
            let id = self.next_key;
            self.next_key += 1;
            sync.pass(span);
            sync.blocks.insert(id, block);
            self.start_block(volume, id);
        }
    }

    pub(super) fn on_limits(&mut self, command: CommandId, id: VolumeId, limits: Limits) {
        let Some(volume) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        let now = self.now;
        let v = &mut self.volumes[volume];
        v.limits = limits;
        if let Some(sync) = v.sync.as_mut() {
            sync.pace.set_limits(limits, now);
        }
        self.limit_verify(volume, limits);
        self.done(command);
    }

    /// When the pace of some sync lets its next block go.
    pub(super) fn pace_deadline(&self) -> Option<Time> {
        let syncs = self.volumes.iter().filter_map(|v| v.sync.as_ref());
        syncs.filter_map(|sync| sync.wake).min()
    }

    fn start_claimed(&mut self, volume: usize) {
        let Some(sync) = self.volumes[volume].sync.as_ref() else {
            return;
        };
        let claimed: Vec<u64> = sync
            .blocks
            .iter()
            .filter(|(_, block)| block.stage == Stage::Claimed)
            .map(|(id, _)| *id)
            .collect();
        for id in claimed {
            self.start_block(volume, id);
        }
    }

    fn start_block(&mut self, volume: usize, id: u64) {
        let Some(block) = self.block(volume, id) else {
            return;
        };
        let written =
            self.write_under_way(volume, block.span) || self.replica_over(volume, block.span);
        if written && !broken!(self, ResyncOverwritesNewer) {
            return;
        }
        if block.probe.is_some() {
            self.set_stage(volume, id, Stage::Reading);
            let io = self.begin(volume, Pending::SyncProbe { id });
            let (volume, span) = (self.volumes[volume].id, block.span);
            return self.out.push(Action::DiskProbe { io, volume, span });
        }
        // A buffer is held only while the disk fills it, so that two nodes that sync from each
        // other cannot starve each other.
        let Some(buffer) = self.sync_buffers.pop() else {
            return;
        };
        self.set_stage(volume, id, Stage::Reading);
        let io = self.begin(volume, Pending::SyncRead { id, buffer });
        let (vol, span) = (self.volumes[volume].id, block.span);
        let buffer = Buffer::Resync(buffer);
        self.out.push(if block.compare {
            Action::DiskHash {
                io,
                volume: vol,
                span,
                buffer,
                digest: self.sync_digest(),
            }
        } else {
            Action::DiskRead {
                io,
                volume: vol,
                span,
                buffer,
                note_zeroes: true,
            }
        });
    }

    /// The disk has said what the block begins with: a hole goes as one message, of data a block
    /// of the usual length is read. The rest is free again.
    pub(super) fn sync_probed(&mut self, volume: usize, id: u64, outcome: IoOutcome) {
        let now = self.now;
        self.progress = true;
        let chunk = u64::from(self.config.resync_chunk);
        let Some(sync) = self.volumes[volume].sync.as_mut() else {
            return;
        };
        let Some(block) = sync.blocks.get_mut(&id) else {
            return;
        };
        let Some(longest) = block.probe.take() else {
            return;
        };
        let start = block.span.start;
        let usual = u64::from(longest).min(chunk - start % chunk);
        let (hole, keep) = match outcome {
            IoOutcome::Failed(errno) => {
                self.drop_block(volume, id);
                return self.fail_disk(volume, errno);
            }
            IoOutcome::Begins { hole: true, bytes } if bytes >= u64::from(LEAST_HOLE) => {
                (true, bytes.min(u64::from(block.span.len)))
            }
            IoOutcome::Begins { hole: false, bytes } => {
                sync.dense_until = start.saturating_add(bytes);
                (false, usual.min(bytes.max(SHORT_READ)))
            }
            _ => (false, usual),
        };
        let whole = keep - keep % u64::from(LEAST_HOLE);
        let len = u64::from(block.span.len).min(whole.max(u64::from(LEAST_HOLE)));
        block.span = Span::new(start, len as u32);
        block.stage = Stage::Claimed;
        sync.cursor = sync.cursor.min(block.span.end());
        let block = *block;
        if hole {
            self.set_stage(volume, id, Stage::Sent);
            return self.send_zeroes(volume, id, block.span);
        }
        sync.pace.done(now, block.claim);
        let claim = sync.pace.claim(now, &self.load, len);
        if let Some(block) = sync.blocks.get_mut(&id) {
            block.claim = claim;
        }
        self.start_block(volume, id);
    }

    /// Zeroes are made at the target; where it can, it gives the blocks back (rule 11).
    fn send_zeroes(&mut self, volume: usize, id: u64, span: Span) {
        let message = Message::SyncWrite {
            id,
            volume: self.volumes[volume].id,
            span,
            kind: WriteKind::Zeroes { unmap: true },
        };
        self.send(message, None);
        if broken!(self, ClearBitOnSend) {
            self.clear_synced(volume, span);
        }
    }

    /// What compared blocks are hashed with.
    pub(super) fn sync_digest(&self) -> Digest {
        match broken!(self, WeakHashClears) {
            true => Digest::Crc32c,
            false => Digest::Blake3,
        }
    }

    fn block(&self, volume: usize, id: u64) -> Option<Block> {
        self.volumes[volume].sync.as_ref()?.blocks.get(&id).copied()
    }

    fn set_stage(&mut self, volume: usize, id: u64, stage: Stage) {
        if let Some(block) = self.volumes[volume]
            .sync
            .as_mut()
            .and_then(|sync| sync.blocks.get_mut(&id))
        {
            block.stage = stage;
        }
    }

    fn drop_block(&mut self, volume: usize, id: u64) {
        let now = self.now;
        if let Some(sync) = self.volumes[volume].sync.as_mut()
            && let Some(block) = sync.blocks.remove(&id)
        {
            sync.pace.done(now, block.claim);
        }
        self.progress = true;
    }

    pub(super) fn sync_read_done(
        &mut self,
        volume: usize,
        (id, buffer): (u64, u32),
        outcome: IoOutcome,
    ) {
        // The sync may have ended meanwhile: then there is no such block any more.
        if let Some(block) = self.block(volume, id) {
            self.set_stage(volume, id, Stage::Sent);
            match outcome {
                IoOutcome::Failed(errno) => {
                    self.drop_block(volume, id);
                    self.fail_disk(volume, errno);
                }
                IoOutcome::Zeroes => self.send_zeroes(volume, id, block.span),
                IoOutcome::Hash(hash) if block.compare => {
                    self.send_block(volume, id, block, buffer, Some(hash));
                }
                _ => self.send_block(volume, id, block, buffer, None),
            }
        }
        // The bytes have been taken by `Send`.
        self.sync_buffers.push(buffer);
        self.progress = true;
    }

    fn send_block(
        &mut self,
        volume: usize,
        id: u64,
        block: Block,
        buffer: u32,
        hash: Option<[u8; 32]>,
    ) {
        let v = &mut self.volumes[volume];
        let (vol, span) = (v.id, block.span);
        if let Some(hash) = hash {
            let message = Message::SyncCompare {
                id,
                volume: vol,
                span,
                hash,
            };
            return self.send(message, None);
        }
        v.counters.sent += u64::from(span.len);
        let message = Message::SyncWrite {
            id,
            volume: vol,
            span,
            kind: WriteKind::Data,
        };
        self.send(message, Some((Buffer::Resync(buffer), span.len)));
        if broken!(self, ClearBitOnSend) {
            self.clear_synced(volume, span);
        }
    }

    pub(super) fn on_sync_ack(&mut self, id: u64, result: SyncResult) {
        let Some(volume) = (0..self.volumes.len()).find(|v| {
            self.block(*v, id)
                .is_some_and(|block| block.stage == Stage::Sent)
        }) else {
            return;
        };
        let Some(block) = self.block(volume, id) else {
            return;
        };
        match result {
            SyncResult::Differs => return self.copy_block(volume, id),
            SyncResult::Written | SyncResult::Equal => {
                if let Some(sync) = self.volumes[volume].sync.as_mut() {
                    let len = u64::from(block.span.len);
                    if result == SyncResult::Equal {
                        sync.compared += len;
                    } else {
                        sync.copied += len;
                    }
                }
                if broken!(self, FinishBeforeFlush) {
                    self.clear_synced(volume, block.span);
                }
                let position = self.transfer.push_sync(volume, block.span, self.now);
                let (limit, flushing) = (self.checkpoint(), self.transfer.flush_under_way());
                let bytes = self.config.resync_chunk.min(block.span.len);
                if let Some(sync) = self.volumes[volume].sync.as_mut() {
                    sync.last_sent = position;
                    sync.unflushed += u64::from(bytes);
                    if sync.unflushed >= limit && !flushing {
                        sync.unflushed = 0;
                        self.want_peer_flush();
                    }
                }
            }
            SyncResult::Failed => {
                // The target reports its disk separately; the bits stay.
                if let Some(sync) = self.volumes[volume].sync.as_mut() {
                    sync.again(block.span);
                }
            }
        }
        self.drop_block(volume, id);
    }

    /// The compared block differs: read it again, to be copied.
    fn copy_block(&mut self, volume: usize, id: u64) {
        if let Some(block) = self.volumes[volume]
            .sync
            .as_mut()
            .and_then(|sync| sync.blocks.get_mut(&id))
        {
            block.compare = false;
            block.stage = Stage::Claimed;
        }
        self.progress = true;
    }

    /// A sync block is durable at the target.
    pub(super) fn clear_synced(&mut self, volume: usize, span: Span) {
        let partial = broken!(self, PartialClear);
        let checkpoint = self.checkpoint();
        let v = &mut self.volumes[volume];
        v.bitmap.clear_span(span, v.size, partial);
        if !v.sync.as_ref().is_some_and(Sync::is_repair) {
            v.verify.found.remove(&(span.start..span.end()));
        }
        // A hole costs little to be made again.
        v.cleared += u64::from(self.config.resync_chunk.min(span.len));
        if v.cleared >= checkpoint {
            // What a restart would not know to be synced would be sent again.
            v.cleared = 0;
            v.save_bitmap = true;
            self.progress = true;
        }
    }

    /// Bytes of a sync after which the target is asked to make them durable, and after which
    /// either side stores that they are in sync: at most twice that, and what is in flight, is
    /// sent again after a crash.
    fn checkpoint(&self) -> u64 {
        u64::from(self.config.resync_chunk) * CHECKPOINT_CHUNKS
    }

    /// The peer lacks a write: what was sent of this range does not count.
    pub(super) fn sync_touched(&mut self, volume: usize, span: Span) {
        if let Some(sync) = self.volumes[volume].sync.as_mut() {
            sync.cursor = sync.cursor.min(span.start);
        }
    }

    /// Nothing left to send: make it durable, say so, and let the target adopt the generation.
    fn try_finish(&mut self, volume: usize) {
        let v = &self.volumes[volume];
        let Some(sync) = v.sync.as_ref() else { return };
        if sync.is_repair() || !sync.blocks.is_empty() {
            return;
        }
        if v.bitmap.count() > 0 {
            // Either blocks wait to be durable, or the cursor has passed some that were marked
            // since: go around again.
            if !self.transfer.is_empty() {
                self.want_peer_flush();
            } else if sync.cursor > 0 {
                self.rewind(volume);
            }
            return;
        }
        match sync.finish {
            Finish::NotYet => {
                // From here on the target may hold the current generation: every write that it
                // lacks needs a new one.
                let version = self.volumes[volume].change_peer(|peer| {
                    peer.outdated = false;
                    peer.want_full = false;
                });
                self.volumes[volume].peer_current = true;
                self.set_finish(volume, Finish::Recording(version));
            }
            Finish::Recording(version) if v.stored(version) && v.mint.is_none() => {
                let generation = v.superblock.current;
                let (id, size) = (v.id, v.size);
                self.set_finish(volume, Finish::Sent);
                self.send(
                    Message::SyncDone {
                        volume: id,
                        generation,
                        size,
                    },
                    None,
                );
            }
            Finish::Recording(_) | Finish::Sent => {}
        }
    }

    fn rewind(&mut self, volume: usize) {
        if let Some(sync) = self.volumes[volume].sync.as_mut() {
            sync.cursor = 0;
            // Marked after the finish began: the target has to be synced again before it counts.
            sync.finish = Finish::NotYet;
        }
        self.progress = true;
    }

    fn set_finish(&mut self, volume: usize, finish: Finish) {
        if let Some(sync) = self.volumes[volume].sync.as_mut() {
            sync.finish = finish;
        }
        self.progress = true;
    }

    /// The target has durably adopted the generation.
    pub(super) fn on_sync_adopted(&mut self, volume: usize) {
        let v = &mut self.volumes[volume];
        let Some(sync) = v.sync.as_ref().filter(|sync| sync.finish == Finish::Sent) else {
            return;
        };
        let (copied, compared) = (sync.copied, sync.compared);
        v.sync = None;
        v.drop_base();
        let id = v.id;
        self.set_replication(volume, ReplicationState::Established);
        self.set_peer_disk(volume, DiskState::UpToDate);
        self.clear_crash_flag(volume);
        self.publish(Notice::SyncDone {
            volume: id,
            copied,
            compared,
        });
        self.recheck = true;
        self.progress = true;
    }

    /// The link is gone, or a disk. Buffers that the disk still fills come back on their own.
    pub(super) fn abandon_sync(&mut self, volume: usize) {
        self.volumes[volume].sync = None;
        self.progress = true;
    }

    pub(super) fn set_replication(&mut self, volume: usize, to: ReplicationState) {
        let v = &mut self.volumes[volume];
        if v.replication != to {
            v.replication = to;
            self.publish_shown(volume);
        }
    }
}
