//! Online verify: compares the copies of a volume that is in use, and lists what differs.
//!
//! The node that was asked runs the pass: it hashes a block, asks the peer whether its own has the
//! same hash, and goes on. Nothing is locked; a difference counts only if no write can explain it:
//!
//! - The runner begins with a block when no write over it is on its way here, and forgets what it
//!   has seen when one begins, or comes in, before the answer is there. The peer hashes its block
//!   when everything that was sent before the question has ended on its disk.
//! - Where the runner is the secondary, the peer's own writes reach it before the peer's answer
//!   does, because both travel on one stream; the peer answers *busy* where a write over the
//!   block has not ended on both sides.
//!
//! Blocks that differ, or were written to, are looked at in smaller parts, down to [`LEAF`]. A
//! part that is written to [`TRIES`] times is passed over, and looked at again when the rest is
//! done. No hash of a verify, weak or strong, clears a dirty bit (rule 2).
//!
//! A repair copies what differs from one side to the other, in blocks that exclude writes as those
//! of a sync do: see [`super::repair`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::action::{Action, Notice};
use super::event::VerifyScope;
use super::ids::{Buffer, CommandId, LinkId, NodeId, Span, Time, VolumeId};
use super::message::{Digest, Message, VerifyResult};
use super::pace::{Admit, Claim, Limits, Pace};
use super::ranges::Ranges;
use super::reason::{LinkLoss, Refusal};
use super::repair::Repair;
use super::resource::{Engine, Pending, broken};
use super::status::{DiskState, ReplicationState, Role, VerifyState, VerifyStatus};

/// The smallest part that is looked at on its own, the unit of the dirty bitmap.
const LEAF: u32 = 4096;
/// A larger block that differs is looked at in so many parts.
const PARTS: u32 = 16;
/// Times that a part is looked at while it is written to.
const TRIES: u8 = 5;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(20);

/// Questions of the peer that may wait, for each volume: twice the leaves of the blocks that it
/// looks at in one go. Whoever asks more does not wait for answers, and would fill the memory.
pub(super) const QUESTIONS: usize = 8192;

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until this time, and until no write over it is under way.
    Waiting(Time),
    Hashing,
    /// The peer was asked.
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    span: Span,
    stage: Stage,
    tries: u8,
    /// A write over it began since it was hashed.
    touched: bool,
    claim: Claim,
}

/// A pass under way.
#[derive(Debug)]
struct Run {
    digest: Digest,
    repair_from: Option<NodeId>,
    cursor: u64,
    /// Parts of blocks, and what was passed over before.
    parts: Vec<Span>,
    /// What was passed over is being looked at again.
    again: bool,
    blocks: BTreeMap<u64, Block>,
    pace: Pace,
    /// When the pace lets the next block go.
    wake: Option<Time>,
}

/// What is known of the differences between the copies of a volume.
#[derive(Debug, Default)]
pub(super) struct Verify {
    state: VerifyState,
    start: u64,
    stop: u64,
    /// Where the last pass ended; see [`Verify::position`] for one that runs.
    at: u64,
    checked: u64,
    pub(super) found: Ranges,
    skipped: Ranges,
    pub(super) repaired: u64,
    run: Option<Run>,
    pub(super) repair: Option<Repair>,
    /// The peer runs one.
    by_peer: bool,
}

/// A question of the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) link: LinkId,
    pub(super) id: u64,
    pub(super) volume: usize,
    pub(super) span: Span,
    pub(super) digest: Digest,
    pub(super) hash: [u8; 32],
    /// Items up to this number must have ended.
    pub(super) after: u64,
}

impl Verify {
    /// The state that replication shows while a verify runs.
    pub(super) fn shown(&self) -> Option<ReplicationState> {
        match self.state {
            VerifyState::Running => Some(ReplicationState::VerifyS),
            _ => self.by_peer.then_some(ReplicationState::VerifyT),
        }
    }

    /// Bytes looked at and in all, while it runs.
    pub(super) fn progress(&self) -> Option<(u64, u64)> {
        self.run.as_ref()?;
        Some((self.position() - self.start, self.stop - self.start))
    }

    pub(super) fn status(&self) -> VerifyStatus {
        VerifyStatus {
            state: self.state,
            at: self.position(),
            found: self.found.share(),
            skipped: self.skipped.share(),
            repaired: self.repaired,
        }
    }

    /// The first byte that is not looked at yet.
    fn position(&self) -> u64 {
        let Some(run) = &self.run else { return self.at };
        if run.again {
            return self.stop;
        }
        let blocks = run.blocks.values().map(|block| block.span.start);
        let parts = run.parts.iter().map(|part| part.start);
        blocks.chain(parts).fold(run.cursor, u64::min)
    }
}

impl Run {
    /// The next block of at most `longest` bytes.
    fn next(&mut self, stop: u64, skipped: &mut Ranges, longest: u32) -> Option<Span> {
        if self.parts.is_empty() && self.cursor >= stop && self.blocks.is_empty() && !self.again {
            self.again = true;
            self.parts = std::mem::take(skipped).iter().flat_map(leaves).collect();
            self.parts.reverse();
        }
        if let Some(part) = self.parts.pop() {
            return Some(part);
        }
        let left = u32::try_from(stop.saturating_sub(self.cursor)).unwrap_or(u32::MAX);
        let span = Span::new(self.cursor, left.min(longest));
        self.cursor += u64::from(span.len);
        (span.len > 0).then_some(span)
    }

    /// Ends the look at a block.
    fn take(&mut self, id: u64, now: Time) -> Option<Block> {
        let block = self.blocks.remove(&id)?;
        self.pace.done(now, block.claim);
        Some(block)
    }

    /// Whether nothing is left to look at.
    fn is_over(&self, stop: u64, skipped: &Ranges) -> bool {
        let more = !self.again && !skipped.is_empty();
        self.blocks.is_empty() && self.parts.is_empty() && self.cursor >= stop && !more
    }
}

/// A range in pieces that are looked at on their own.
fn leaves(range: std::ops::Range<u64>) -> impl Iterator<Item = Span> {
    let end = range.end;
    range
        .step_by(LEAF as usize)
        .map(move |start| Span::new(start, u64::from(LEAF).min(end - start) as u32))
}

/// A block in smaller parts; none when it is a leaf.
fn split(span: Span) -> Vec<Span> {
    if span.len <= LEAF {
        return Vec::new();
    }
    let part = (span.len / PARTS).next_multiple_of(LEAF);
    (span.start..span.end())
        .step_by(part as usize)
        .map(|start| Span::new(start, u64::from(part).min(span.end() - start) as u32))
        .collect()
}

impl Engine {
    pub(super) fn on_verify(&mut self, command: CommandId, id: VolumeId, scope: VerifyScope) {
        let Some(volume) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        if let Some(refusal) = self.verify_refusal(volume, &scope) {
            return self.refuse(command, refusal);
        }
        let now = self.now;
        let v = &mut self.volumes[volume];
        let known = &mut v.verify;
        let resume = (scope.start.is_none() && known.state == VerifyState::Stopped)
            .then_some(known.at)
            .filter(|at| *at < v.size);
        if resume.is_none() {
            *known = Verify::default();
        }
        let start = resume.or(scope.start).unwrap_or(0);
        let first = start - start % u64::from(LEAF);
        known.state = VerifyState::Running;
        known.start = first;
        known.stop = scope.stop.unwrap_or(v.size).min(v.size);
        known.checked = 0;
        known.run = Some(Run {
            digest: scope.digest,
            repair_from: scope.repair_from,
            cursor: first,
            parts: Vec::new(),
            again: false,
            blocks: BTreeMap::new(),
            pace: Pace::new(v.limits, now),
            wake: None,
        });
        self.tell_verify(volume, true);
        self.done(command);
        self.progress = true;
    }

    fn verify_refusal(&self, volume: usize, scope: &VerifyScope) -> Option<Refusal> {
        let v = &self.volumes[volume];
        let id = v.id;
        let range_is_empty = scope.start.unwrap_or(0) >= scope.stop.unwrap_or(v.size).min(v.size);
        if !v.has_disk() {
            return Some(Refusal::NoDisk { volume: id });
        }
        if self.replicating().is_none() {
            return Some(Refusal::NotConnected);
        }
        if v.disk != DiskState::UpToDate {
            return Some(Refusal::DiskInconsistent { volume: id });
        }
        if v.peer_disk != DiskState::UpToDate {
            return Some(Refusal::PeerNotUpToDate { volume: id });
        }
        if v.verify.shown().is_some() {
            return Some(Refusal::VerifyRuns { volume: id });
        }
        if !self.verifiable(volume) {
            return Some(Refusal::Busy);
        }
        range_is_empty.then_some(Refusal::EmptyRange { volume: id })
    }

    /// Whether both copies take part in everything, so that they must be equal.
    pub(super) fn verifiable(&self, volume: usize) -> bool {
        let v = &self.volumes[volume];
        self.replicating().is_some()
            && v.replication == ReplicationState::Established
            && v.disk == DiskState::UpToDate
            && v.peer_disk == DiskState::UpToDate
    }

    /// Peer and events learn that a verify of this node begins or has ended.
    fn tell_verify(&mut self, volume: usize, on: bool) {
        if self.replicating().is_some() {
            let id = self.volumes[volume].id;
            self.send(Message::Verifying { volume: id, on }, None);
            self.publish_shown(volume);
        }
    }

    /// The state that is shown has changed, not what is done.
    pub(super) fn publish_shown(&mut self, volume: usize) {
        let v = &self.volumes[volume];
        let (volume, to) = (v.id, v.shown_replication());
        self.publish(Notice::Replication { volume, to });
    }

    pub(super) fn on_verifying(&mut self, volume: usize, on: bool) {
        self.volumes[volume].verify.by_peer = on;
        self.publish_shown(volume);
    }

    pub(super) fn settle_verify(&mut self) {
        for volume in 0..self.volumes.len() {
            if !self.verifiable(volume) {
                self.volumes[volume].verify.by_peer = false;
                self.stop_verify(volume);
            } else if self.volumes[volume].verify.run.is_some() {
                self.start_waiting(volume);
                self.take_more(volume);
                self.end_pass(volume);
            }
        }
    }

    /// A copy does not take part any more: the pass, or its repair, ends here.
    fn stop_verify(&mut self, volume: usize) {
        let known = &mut self.volumes[volume].verify;
        if known.state != VerifyState::Running {
            return;
        }
        known.at = known.position();
        known.state = VerifyState::Stopped;
        known.run = None;
        self.report_verify(volume, false);
        self.tell_verify(volume, false);
    }

    fn take_more(&mut self, volume: usize) {
        let limit = self.config.resync_buffers as usize;
        loop {
            let now = self.now;
            let chunk = self.config.resync_chunk;
            let known = &mut self.volumes[volume].verify;
            let Some(run) = known.run.as_mut() else {
                return;
            };
            run.wake = None;
            if run.blocks.len() >= limit || run.is_over(known.stop, &known.skipped) {
                return;
            }
            let longest = match run.pace.admit(now, &self.load) {
                Admit::Now(bytes) => bytes.min(chunk),
                Admit::At(at) => {
                    run.wake = Some(at);
                    return;
                }
                Admit::Later => return,
            };
            let Some(span) = run.next(known.stop, &mut known.skipped, longest) else {
                return;
            };
            let block = Block {
                span,
                stage: Stage::Waiting(now),
                tries: 0,
                touched: false,
                claim: run.pace.claim(now, &self.load, u64::from(span.len)),
            };
            let id = self.next_key;
            self.next_key += 1;
            run.blocks.insert(id, block);
            self.start_look(volume, id);
        }
    }

    fn start_waiting(&mut self, volume: usize) {
        let Some(run) = &self.volumes[volume].verify.run else {
            return;
        };
        let waits = |block: &Block| matches!(block.stage, Stage::Waiting(_));
        let ids: Vec<u64> = { run.blocks.iter() }
            .filter(|(_, block)| waits(block))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.start_look(volume, id);
        }
    }

    fn look(&mut self, volume: usize, id: u64) -> Option<&mut Block> {
        let run = self.volumes[volume].verify.run.as_mut()?;
        run.blocks.get_mut(&id)
    }

    fn start_look(&mut self, volume: usize, id: u64) {
        let now = self.now;
        let Some(block) = self.look(volume, id).copied() else {
            return;
        };
        if !matches!(block.stage, Stage::Waiting(until) if until <= now) {
            return;
        }
        if self.write_under_way(volume, block.span) || self.replica_over(volume, block.span) {
            return self.spoilt(volume, id);
        }
        let Some(buffer) = self.sync_buffers.pop() else {
            return;
        };
        if let Some(block) = self.look(volume, id) {
            block.stage = Stage::Hashing;
            block.touched = false;
        }
        let v = &self.volumes[volume];
        let digest = v
            .verify
            .run
            .as_ref()
            .map_or_else(Digest::default, |run| run.digest);
        let (vol, span) = (v.id, block.span);
        let io = self.begin(volume, Pending::VerifyRead { id, buffer });
        self.out.push(Action::DiskHash {
            io,
            volume: vol,
            span,
            buffer: Buffer::Resync(buffer),
            digest,
        });
    }

    pub(super) fn verify_read_done(
        &mut self,
        volume: usize,
        (id, buffer): (u64, u32),
        hash: Option<[u8; 32]>,
        failed: Option<i32>,
    ) {
        self.sync_buffers.push(buffer);
        self.progress = true;
        if let Some(errno) = failed {
            return self.fail_disk(volume, errno);
        }
        let vol = self.volumes[volume].id;
        let Some(run) = self.volumes[volume].verify.run.as_mut() else {
            return;
        };
        let digest = run.digest;
        let (Some(block), Some(hash)) = (run.blocks.get_mut(&id), hash) else {
            return;
        };
        if block.touched {
            return self.spoilt(volume, id);
        }
        block.stage = Stage::Asked;
        let span = block.span;
        let message = Message::Verify {
            id,
            volume: vol,
            span,
            digest,
            hash,
        };
        self.send(message, None);
    }

    pub(super) fn on_verify_ack(&mut self, id: u64, result: VerifyResult) {
        let asked = |block: &Block| block.stage == Stage::Asked;
        let all = 0..self.volumes.len();
        let Some((volume, block)) = all.into_iter().find_map(|volume| {
            let block = self.look(volume, id).copied()?;
            asked(&block).then_some((volume, block))
        }) else {
            return;
        };
        self.progress = true;
        match result {
            VerifyResult::Busy => return self.spoilt(volume, id),
            VerifyResult::Differs if block.touched => return self.spoilt(volume, id),
            VerifyResult::Differs => {
                let parts = split(block.span);
                let known = &mut self.volumes[volume].verify;
                if !parts.is_empty() {
                    return self.split_block(volume, id, parts);
                }
                known.found.add(block.span.start..block.span.end());
            }
            VerifyResult::Failed => {
                let known = &mut self.volumes[volume].verify;
                known.skipped.add(block.span.start..block.span.end());
            }
            VerifyResult::Equal => {}
        }
        self.end_block(volume, id);
    }

    /// A write has come between: again, in parts if it can be.
    fn spoilt(&mut self, volume: usize, id: u64) {
        let now = self.now;
        let Some(block) = self.look(volume, id) else {
            return;
        };
        let span = block.span;
        let parts = split(span);
        if !parts.is_empty() {
            return self.split_block(volume, id, parts);
        }
        block.tries += 1;
        block.stage = Stage::Waiting(now.after(PAUSE));
        if block.tries >= TRIES {
            self.volumes[volume]
                .verify
                .skipped
                .add(span.start..span.end());
            self.end_block(volume, id);
        }
    }

    fn split_block(&mut self, volume: usize, id: u64, parts: Vec<Span>) {
        let now = self.now;
        if let Some(run) = self.volumes[volume].verify.run.as_mut()
            && run.take(id, now).is_some()
        {
            run.parts.extend(parts.into_iter().rev());
        }
        self.progress = true;
    }

    fn end_block(&mut self, volume: usize, id: u64) {
        let now = self.now;
        let known = &mut self.volumes[volume].verify;
        if let Some(run) = known.run.as_mut()
            && let Some(block) = run.take(id, now)
        {
            known.checked += u64::from(block.span.len);
        }
        self.progress = true;
    }

    /// An application write begins, or one of the peer came in: what was seen of the range does
    /// not count.
    pub(super) fn verify_touched(&mut self, volume: usize, span: Span) {
        if let Some(run) = self.volumes[volume].verify.run.as_mut() {
            for block in run.blocks.values_mut() {
                block.touched |= block.span.overlaps(span);
            }
        }
    }

    fn end_pass(&mut self, volume: usize) {
        let known = &mut self.volumes[volume].verify;
        let (stop, skipped) = (known.stop, &known.skipped);
        let Some(run) = known.run.take_if(|run| run.is_over(stop, skipped)) else {
            return;
        };
        known.at = known.stop;
        self.report_verify(volume, true);
        let found = !self.volumes[volume].verify.found.is_empty();
        match run.repair_from.filter(|_| found) {
            Some(from) => self.begin_repair(volume, from),
            None => self.end_verify(volume),
        }
    }

    /// Nothing is left to compare or to repair.
    pub(super) fn end_verify(&mut self, volume: usize) {
        self.volumes[volume].verify.state = VerifyState::Done;
        self.tell_verify(volume, false);
        self.progress = true;
    }

    fn report_verify(&mut self, volume: usize, complete: bool) {
        let v = &self.volumes[volume];
        let notice = Notice::VerifyDone {
            volume: v.id,
            complete,
            checked: v.verify.checked,
            found: v.verify.found.bytes(),
            skipped: v.verify.skipped.bytes(),
        };
        self.publish(notice);
    }

    /// Limits have changed.
    pub(super) fn limit_verify(&mut self, volume: usize, limits: Limits) {
        let now = self.now;
        if let Some(run) = self.volumes[volume].verify.run.as_mut() {
            run.pace.set_limits(limits, now);
        }
    }

    /// When the next block may go, or one that waits is due.
    pub(super) fn verify_deadline(&self) -> Option<Time> {
        let runs = self.volumes.iter().filter_map(|v| v.verify.run.as_ref());
        let due = |block: &Block| match block.stage {
            Stage::Waiting(until) if until > self.now => Some(until),
            _ => None,
        };
        runs.flat_map(|run| {
            run.wake
                .into_iter()
                .chain(run.blocks.values().filter_map(due))
        })
        .min()
    }

    /// Whether the peer owes the answer to a question.
    pub(super) fn verify_waits(&self) -> bool {
        let runs = self.volumes.iter().filter_map(|v| v.verify.run.as_ref());
        { runs }.any(|run| run.blocks.values().any(|block| block.stage == Stage::Asked))
    }

    // ---- the peer's side ----

    pub(super) fn on_question(&mut self, mut question: Question) {
        if self.questions.len() >= QUESTIONS * self.volumes.len() {
            let what = "more questions of a verify than can be under way";
            return self.drop_link(LinkLoss::Protocol(what));
        }
        question.after = self.replica.last_item();
        self.questions.push_back(question);
        self.progress = true;
    }

    pub(super) fn settle_questions(&mut self) {
        while let Some(question) = self.questions.front().copied() {
            let Question {
                id, volume, span, ..
            } = question;
            if self.replicating() != Some(question.link) {
                self.questions.pop_front();
                continue;
            }
            if !self.replica.ended_up_to(question.after) {
                return;
            }
            let busy = self.role == Role::Primary && self.write_under_way(volume, span);
            let readable = self.volumes[volume].disk == DiskState::UpToDate
                && span.len <= self.config.resync_chunk;
            if busy || !readable {
                self.questions.pop_front();
                let result = if readable {
                    VerifyResult::Busy
                } else {
                    VerifyResult::Failed
                };
                self.send(Message::VerifyAck { id, result }, None);
                continue;
            }
            let Some(buffer) = self.sync_buffers.pop() else {
                return;
            };
            self.questions.pop_front();
            let vol = self.volumes[volume].id;
            let io = self.begin(volume, Pending::VerifyHash { question, buffer });
            self.out.push(Action::DiskHash {
                io,
                volume: vol,
                span,
                buffer: Buffer::Resync(buffer),
                digest: question.digest,
            });
        }
    }

    pub(super) fn question_hashed(
        &mut self,
        volume: usize,
        (question, buffer): (Question, u32),
        hash: Option<[u8; 32]>,
        failed: Option<i32>,
    ) {
        self.sync_buffers.push(buffer);
        self.progress = true;
        if let Some(errno) = failed {
            self.fail_disk(volume, errno);
        }
        let result = match hash {
            None => VerifyResult::Failed,
            Some(hash) if hash == question.hash => VerifyResult::Equal,
            Some(_) if broken!(self, VerifySkipsDifferences) => VerifyResult::Equal,
            Some(_) => VerifyResult::Differs,
        };
        if self.replicating() == Some(question.link) {
            self.send(
                Message::VerifyAck {
                    id: question.id,
                    result,
                },
                None,
            );
        }
    }
}
