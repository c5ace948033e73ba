//! Promotion, demotion, orderly leaving.
//!
//! | peer                              | promotion without force                        |
//! |-----------------------------------|------------------------------------------------|
//! | connected, Primary                | refused, with force too                        |
//! | connected, Secondary              | allowed when the peer agrees (its term counts) |
//! | unreachable, recorded as outdated | allowed                                        |
//! | unreachable, on record with voter | allowed                                        |
//! | unreachable otherwise             | refused: not proven current                    |
//!
//! and the disk must be UpToDate (or Consistent where the table says allowed while unreachable).
//! Force overrides the state of the data and the missing proof, never a connected primary.
//! Where there is a third voter, every promotion needs its vote besides, with force too, and only
//! what the voter has on record proves anything about an unreachable peer.
//! Two nodes that ask each other at the same time compare their terms: the higher one wins.

use std::time::Duration;

use super::action::{Action, Notice};
use super::event::{Ground, Vote};
use super::ids::{CommandId, LinkId, Term, Time};
use super::message::Message;
use super::reason::{LinkLoss, Refusal};
use super::resource::{Engine, Quiesce, broken};
use super::status::{DiskState, Role};
use super::volume::Volume;

/// How long the peer may take to answer a question of a command.
const ANSWER: Duration = Duration::from_secs(5);

/// A change of role, or the orderly end of a connection, under way.
#[derive(Clone, Debug)]
pub(super) struct RoleChange {
    /// Whom the end is told; nobody asked for the end of a reign that was overtaken.
    pub(super) command: Option<CommandId>,
    pub(super) deadline: Time,
    pub(super) step: Step,
}

/// A promotion that has got past the questions about this node's data.
#[derive(Clone, Debug)]
pub(super) struct Bid {
    term: Term,
    force: bool,
    vote: Option<Vote>,
}

/// What the change waits for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Promotion: the end of a handshake.
    Meeting { force: bool, ground: Ground },
    /// Promotion: the peer's answer.
    Asking(Bid),
    /// Promotion: writes of the former primary that are on their way to the disk.
    Draining(Bid),
    /// Promotion: flushes of volumes with unflushed writes.
    Flushing { bid: Bid, left: usize },
    /// Promotion: the superblocks, and the record of new generations.
    Storing {
        versions: Vec<u64>,
        renegotiate: bool,
    },
    /// Demotion: open requests, then durability everywhere.
    Finishing { shutdown: bool },
    /// Demotion: the superblocks.
    Retiring { versions: Vec<u64>, shutdown: bool },
    /// Leaving: the peer's, or our own, record of being outdated.
    Outdating { versions: Vec<u64>, told: bool },
    /// Shutdown: flushes, then the last state of the superblocks.
    Closing {
        left: usize,
        versions: Option<Vec<u64>>,
    },
}

impl Step {
    /// Whether a promotion can still be given up without a trace on disk.
    pub(super) fn is_question(&self) -> bool {
        use Step::{Asking, Draining, Flushing, Meeting};
        matches!(
            self,
            Meeting { .. } | Asking(_) | Draining(_) | Flushing { .. }
        )
    }
}

impl RoleChange {
    /// Whether the peer was asked something.
    pub(super) fn waits_for_peer(&self) -> bool {
        matches!(
            self.step,
            Step::Asking(_) | Step::Outdating { told: true, .. }
        )
    }
}

/// A promotion of the peer that was agreed to and is being recorded.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) link: LinkId,
    pub(super) term: Term,
    pub(super) versions: Vec<u64>,
}

impl Engine {
    fn change(&mut self, command: CommandId, step: Step) {
        self.begin_change(Some(command), step);
    }

    fn begin_change(&mut self, command: Option<CommandId>, step: Step) {
        let deadline = self.now.after(ANSWER);
        self.change = Some(RoleChange {
            command,
            deadline,
            step,
        });
        self.progress = true;
    }

    fn set_step(&mut self, step: Step) {
        if let Some(change) = self.change.as_mut() {
            change.step = step;
        }
        self.progress = true;
    }

    fn end_change(&mut self, result: Result<(), Refusal>) {
        if let Some(change) = self.change.take() {
            if let Some(command) = change.command {
                self.out.push(Action::CommandDone { command, result });
            }
            self.progress = true;
        }
    }

    fn stored(&self, versions: &[u64]) -> bool {
        versions
            .iter()
            .zip(&self.volumes)
            .all(|(version, volume)| volume.stored(*version))
    }

    // ---- promotion ----

    pub(super) fn on_primary(&mut self, command: CommandId, force: bool, ground: Ground) {
        if self.role == Role::Primary {
            return self.done(command);
        }
        if self.change.is_some() || self.grant.is_some() {
            let peer = self.grant.is_some();
            return self.refuse(
                command,
                if peer {
                    Refusal::PeerPromotes
                } else {
                    Refusal::Busy
                },
            );
        }
        self.change(command, Step::Meeting { force, ground });
    }

    /// Why this node may not be promoted, as far as its own data and the peer's role tell.
    fn unpromotable(&self, force: bool, ground: &Ground) -> Option<Refusal> {
        let connected = self.replicating().is_some();
        if connected && self.peer_role() == Role::Primary {
            return Some(Refusal::PeerIsPrimary);
        }
        let vote = self.vote_of(ground);
        if self.has_voter() {
            match vote {
                None => return Some(Refusal::NoVote),
                Some(vote) if vote.term <= self.term => return Some(Refusal::StaleTerm),
                Some(_) => {}
            }
        }
        let lenient = broken!(self, PromoteInconsistent);
        self.volumes.iter().enumerate().find_map(|(index, v)| {
            let volume = v.id;
            let peer_good = connected && v.peer_disk == DiskState::UpToDate;
            let proven = (connected && v.compared)
                || self.proven(index, vote)
                || *ground == Ground::Recovered
                || broken!(self, TrustOwnUptodate);
            match v.disk {
                DiskState::UpToDate | DiskState::Consistent if proven || force => None,
                DiskState::UpToDate | DiskState::Consistent if self.has_voter() => {
                    Some(Refusal::NotRecorded { volume })
                }
                DiskState::UpToDate | DiskState::Consistent => Some(Refusal::NotProvenCurrent),
                DiskState::Outdated if force => None,
                DiskState::Outdated => Some(Refusal::DiskOutdated { volume }),
                // Data that is being synced is never the better choice while its source is there.
                DiskState::Inconsistent if (force && !peer_good) || lenient => None,
                DiskState::Inconsistent => Some(Refusal::DiskInconsistent { volume }),
                _ => Some(Refusal::NoDisk { volume }),
            }
        })
    }

    /// Whether a copy is provably the newest although the peer cannot be asked. With a third
    /// voter its record alone counts: what this node knows of the peer may be overtaken.
    fn proven(&self, index: usize, vote: Option<&Vote>) -> bool {
        let v = &self.volumes[index];
        if !self.has_voter() {
            return v.proven_current();
        }
        let recorded = vote.and_then(|vote| vote.recorded.get(index).copied().flatten());
        recorded == Some(v.superblock.current)
    }

    /// Drives the role change; called until nothing moves.
    pub(super) fn settle_role(&mut self) {
        self.settle_grant();
        let Some(change) = self.change.clone() else {
            return;
        };
        match change.step {
            Step::Meeting { force, ground } => self.meet(force, &ground),
            Step::Asking(_) => {}
            Step::Draining(bid) => {
                if self.replica.is_drained() || broken!(self, PromoteWithoutDrain) {
                    self.flush_before_promotion(bid);
                }
            }
            Step::Flushing { bid, left: 0 } => self.store_promotion(&bid),
            Step::Flushing { .. } => {}
            Step::Storing {
                versions,
                renegotiate,
            } => {
                if self.stored(&versions) && self.volumes.iter().all(|v| v.mint.is_none()) {
                    self.end_storing(renegotiate);
                }
            }
            Step::Finishing { shutdown } => self.finish_reign(shutdown),
            Step::Retiring { versions, shutdown } => {
                if self.stored(&versions) {
                    self.become_secondary(shutdown);
                }
            }
            Step::Outdating { versions, told } => self.settle_outdating(&versions, told),
            Step::Closing { left: 0, versions } => self.close(versions),
            Step::Closing { .. } => {}
        }
    }

    /// Whether a promotion has got past its questions about the data.
    pub(super) fn promoting(&self) -> bool {
        use Step::{Asking, Draining, Flushing, Storing};
        self.change.as_ref().is_some_and(|change| {
            matches!(
                change.step,
                Asking(_) | Draining(_) | Flushing { .. } | Storing { .. }
            )
        })
    }

    fn meet(&mut self, force: bool, ground: &Ground) {
        // A disk that is just being attached is compared in the handshake that follows.
        let meeting = self.link.as_ref().is_some_and(|link| !link.replicating());
        if meeting || !self.attaching.is_empty() {
            return;
        }
        if let Some(refusal) = self.unpromotable(force, ground) {
            return self.end_change(Err(refusal));
        }
        let vote = self.vote_of(ground).cloned();
        let term = match &vote {
            Some(vote) => vote.term,
            None => self.next_term(self.term),
        };
        let bid = Bid { term, force, vote };
        if self.replicating().is_some() {
            self.send(Message::Promote { term }, None);
            self.set_step(Step::Asking(bid));
        } else {
            self.set_step(Step::Draining(bid));
        }
    }

    /// A term of this node that is later than `term`.
    pub(super) fn next_term(&mut self, term: Term) -> Term {
        let random = self.fresh_id() as u32;
        Term {
            counter: term.counter + 1,
            node: self.config.node,
            random,
        }
    }

    /// The peer's answer to our question.
    pub(super) fn on_promote_reply(&mut self, asked: Term, granted: bool) {
        let bid = match &self.change {
            Some(RoleChange {
                step: Step::Asking(bid),
                ..
            }) if bid.term == asked => bid.clone(),
            // Too late: the command has given up, and the peer must know.
            _ if granted && self.role == Role::Secondary => {
                return self.send(Message::Demoted, None);
            }
            _ => return,
        };
        if granted {
            self.set_step(Step::Draining(bid));
        } else {
            self.end_change(Err(Refusal::PeerPromotes));
        }
    }

    /// Ends a promotion of which nothing is stored yet; a peer that has agreed is told.
    pub(super) fn give_up_promotion(&mut self, refusal: Refusal) {
        if self.replicating().is_some() {
            self.send(Message::Demoted, None);
        }
        self.end_change(Err(refusal));
    }

    fn flush_before_promotion(&mut self, bid: Bid) {
        let unflushed: Vec<usize> = (0..self.volumes.len())
            .filter(|v| self.volumes[*v].has_disk() && self.volumes[*v].superblock.unflushed)
            .collect();
        self.set_step(Step::Flushing {
            bid,
            left: unflushed.len(),
        });
        for volume in unflushed {
            self.quiesce(volume, Quiesce::Role);
        }
    }

    /// One of the flushes of a role change has ended.
    pub(super) fn role_flushed(&mut self, _volume: usize) {
        if let Some(Step::Flushing { left, .. } | Step::Closing { left, .. }) =
            self.change.as_mut().map(|change| &mut change.step)
        {
            *left = left.saturating_sub(1);
        }
    }

    fn store_promotion(&mut self, bid: &Bid) {
        let (term, force) = (bid.term, bid.force);
        let connected = self.replicating().is_some();
        let voter = self.has_voter();
        let mut versions = Vec::new();
        let mut unrecorded = Vec::new();
        let mut forced = false;
        for index in 0..self.volumes.len() {
            let generation = self.fresh_generation();
            let proven = connected || self.proven(index, bid.vote.as_ref());
            let v = &mut self.volumes[index];
            let doubtful = v.disk != DiskState::UpToDate || !proven;
            let size = v.size;
            // The mark of a crashed reign becomes that of the new one; whatever ends the old
            // one's business from here on, a sync above all, must not take it away.
            v.crashed = false;
            let mut version = v.change(|superblock| {
                superblock.term = term;
                superblock.primary = true;
                superblock.unflushed = false;
                superblock.outdated = false;
                superblock.inconsistent = false;
                if superblock.agreed_size == 0 {
                    superblock.agreed_size = size;
                }
            });
            if (force && doubtful) || v.superblock.current.is_fresh() {
                forced = true;
                v.new_generation(generation);
                version = v.change_peer(|peer| peer.outdated = true);
                // With a voter the first write moves on once more, and puts that on record: until
                // then what the voter had on record is as good.
                v.peer_current = voter;
                let volume = v.id;
                self.publish(Notice::NewGeneration { volume, generation });
            } else if voter && !self.proven(index, bid.vote.as_ref()) {
                // The peer has agreed: these are two of three votes.
                let current = self.volumes[index].superblock.current;
                unrecorded.push((index, current));
            }
            versions.push(version);
        }
        self.term = term;
        for (index, current) in unrecorded {
            self.record_at_voter(index, current);
        }
        self.set_step(Step::Storing {
            versions,
            renegotiate: forced && connected,
        });
    }

    fn end_storing(&mut self, renegotiate: bool) {
        if self.deposed.is_none() {
            return self.become_primary(renegotiate);
        }
        self.end_change(Err(Refusal::StaleTerm));
        self.step_down();
    }

    fn become_primary(&mut self, renegotiate: bool) {
        self.set_role(Role::Primary);
        for index in 0..self.volumes.len() {
            if self.volumes[index].has_disk() {
                self.set_disk(index, DiskState::UpToDate);
            }
            let v = &mut self.volumes[index];
            v.live_block = v.shape().logical_block;
        }
        self.serving = true;
        self.out.push(Action::Serve {
            serve: true,
            term: self.term,
        });
        self.end_change(Ok(()));
        if renegotiate {
            self.drop_link(LinkLoss::Renegotiate);
        }
    }

    fn set_role(&mut self, to: Role) {
        if self.role != to {
            let from = self.role;
            self.role = to;
            self.publish(Notice::Role { from, to });
        }
    }

    /// The peer wants to be primary.
    pub(super) fn on_promote(&mut self, link: LinkId, term: Term) {
        let mine = match &self.change {
            Some(RoleChange {
                step: Step::Asking(bid),
                ..
            }) => Some(bid.term),
            _ => None,
        };
        let busy = match &self.change {
            None => false,
            Some(change) => !matches!(change.step, Step::Asking(_) | Step::Meeting { .. }),
        };
        let refused = self.role == Role::Primary
            || busy
            || term <= self.term
            || mine.is_some_and(|mine| mine > term);
        if refused {
            return self.send(
                Message::PromoteReply {
                    term,
                    granted: false,
                },
                None,
            );
        }
        if self.change.is_some() {
            self.end_change(Err(Refusal::PeerPromotes));
        }
        self.term = term;
        let versions = self
            .volumes
            .iter_mut()
            .map(|v| v.change(|superblock| superblock.term = term))
            .collect();
        self.grant = Some(Grant {
            link,
            term,
            versions,
        });
        self.progress = true;
    }

    fn settle_grant(&mut self) {
        let Some(grant) = &self.grant else { return };
        if self.replicating() != Some(grant.link) {
            self.grant = None;
            return;
        }
        if self.stored(&grant.versions) && self.replica.is_drained() {
            let term = grant.term;
            self.grant = None;
            self.set_peer_role(Role::Primary);
            self.send(
                Message::PromoteReply {
                    term,
                    granted: true,
                },
                None,
            );
        }
    }

    // ---- demotion ----

    pub(super) fn on_secondary(&mut self, command: CommandId) {
        if self.change.is_some() {
            return self.refuse(command, Refusal::Busy);
        }
        if self.role == Role::Secondary {
            return self.done(command);
        }
        self.stop_serving();
        self.change(command, Step::Finishing { shutdown: false });
    }

    /// The end of a reign that nobody here asked for.
    pub(super) fn step_down(&mut self) {
        self.begin_change(None, Step::Finishing { shutdown: false });
    }

    pub(super) fn stop_serving(&mut self) {
        if std::mem::take(&mut self.serving) {
            self.out.push(Action::Serve {
                serve: false,
                term: self.term,
            });
        }
    }

    /// Everything the application was told must be durable on both sides, or recorded as
    /// differing, before the mark of a reign is removed.
    fn finish_reign(&mut self, shutdown: bool) {
        if self.requests_open() {
            return;
        }
        let mut ready = self.transfer.is_empty() || self.replicating().is_none();
        for index in 0..self.volumes.len() {
            let v = &self.volumes[index];
            let flushed = !v.has_disk() || v.local.durable >= v.local.last();
            if !flushed || !self.metadata_stored(index) {
                ready = false;
                self.want_settled(index);
            }
        }
        if !ready {
            return self.want_peer_flush();
        }
        let versions = self
            .volumes
            .iter_mut()
            .map(|v| {
                v.crashed = false;
                v.change(|superblock| superblock.primary = false)
            })
            .collect();
        self.set_step(Step::Retiring { versions, shutdown });
    }

    fn become_secondary(&mut self, shutdown: bool) {
        self.set_role(Role::Secondary);
        // The voters answer a reign, and this one is over.
        self.drop_questions();
        self.doubt_copies();
        if self.replicating().is_some() {
            self.send(Message::Demoted, None);
        }
        if shutdown {
            self.begin_close();
        } else {
            self.end_change(Ok(()));
        }
    }

    // ---- leaving ----

    pub(super) fn on_disconnect(&mut self, command: CommandId) {
        if self.change.is_some() {
            return self.refuse(command, Refusal::Busy);
        }
        self.standing.wanted = false;
        if self.replicating().is_none() {
            self.stand_alone(None);
            return self.done(command);
        }
        match (self.role, self.peer_role()) {
            (Role::Primary, _) => {
                // The secondary records that it falls behind, so that nobody promotes it by
                // mistake; its answer lets us record the same.
                self.send(Message::Goodbye { outdate: true }, None);
                self.change(
                    command,
                    Step::Outdating {
                        versions: Vec::new(),
                        told: true,
                    },
                );
            }
            (_, Role::Primary) => self.outdate_self(command),
            _ => {
                self.send(Message::Goodbye { outdate: false }, None);
                self.stand_alone(None);
                self.done(command);
            }
        }
    }

    fn outdate_self(&mut self, command: CommandId) {
        let versions = self.outdate_copies();
        self.change(
            command,
            Step::Outdating {
                versions,
                told: false,
            },
        );
    }

    /// Records that the peer's copies go on without ours. Where the peer has none, or one that
    /// is still being synced from ours, ours is the data.
    fn outdate_copies(&mut self) -> Vec<u64> {
        let outdate = |v: &mut Volume| {
            let behind = v.peer_disk == DiskState::UpToDate;
            v.change(|superblock| superblock.outdated |= behind && !superblock.inconsistent)
        };
        self.volumes.iter_mut().map(outdate).collect()
    }

    /// Tells the peer which of our copies are recorded as outdated.
    fn tell_outdated(&mut self) {
        self.mark_outdated();
        let outdated = |v: &&Volume| v.disk == DiskState::Outdated;
        let volumes: Vec<_> = self.volumes.iter().filter(outdated).map(|v| v.id).collect();
        for volume in volumes {
            let state = DiskState::Outdated;
            self.send(Message::DiskState { volume, state }, None);
        }
        self.send(Message::Outdated, None);
    }

    fn settle_outdating(&mut self, versions: &[u64], told: bool) {
        if self.replicating().is_none() {
            self.mark_outdated();
            self.stand_alone(None);
            return self.end_change(Ok(()));
        }
        if !told && self.stored(versions) {
            self.tell_outdated();
            self.send(Message::Goodbye { outdate: false }, None);
            self.stand_alone(None);
            self.end_change(Ok(()));
        }
    }

    fn mark_outdated(&mut self) {
        for index in 0..self.volumes.len() {
            let v = &self.volumes[index];
            if v.superblock.outdated && v.disk > DiskState::Outdated {
                self.set_disk(index, DiskState::Outdated);
            }
        }
    }

    /// The peer has recorded that it is outdated, where it has said so of its disks.
    pub(super) fn on_peer_outdated(&mut self) {
        for v in &mut self.volumes {
            if v.peer_disk == DiskState::Outdated {
                v.change_peer(|peer| peer.outdated = true);
            }
        }
        if let Some(RoleChange {
            step: Step::Outdating { told: true, .. },
            ..
        }) = self.change
        {
            self.stand_alone(None);
            self.end_change(Ok(()));
        }
    }

    /// The primary leaves and asks us to record that our copy falls behind.
    pub(super) fn on_goodbye(&mut self, outdate: bool) {
        if !outdate {
            return self.drop_link(LinkLoss::Goodbye);
        }
        self.farewell = Some(self.outdate_copies());
        self.progress = true;
    }

    /// Answers the farewell when the record is stored.
    pub(super) fn settle_farewell(&mut self) {
        let Some(versions) = &self.farewell else {
            return;
        };
        if self.replicating().is_none() {
            self.farewell = None;
        } else if self.stored(versions) {
            self.farewell = None;
            self.tell_outdated();
            self.progress = true;
        }
    }

    // ---- shutdown ----

    pub(super) fn on_shutdown(&mut self, command: CommandId) {
        if self.change.is_some() {
            return self.refuse(command, Refusal::Busy);
        }
        if self.role == Role::Primary {
            self.stop_serving();
            self.change(command, Step::Finishing { shutdown: true });
        } else {
            self.change(
                command,
                Step::Closing {
                    left: 0,
                    versions: None,
                },
            );
            self.begin_close();
        }
    }

    fn begin_close(&mut self) {
        let disks: Vec<usize> = (0..self.volumes.len())
            .filter(|v| self.volumes[*v].has_disk())
            .collect();
        self.set_step(Step::Closing {
            left: disks.len(),
            versions: None,
        });
        for volume in disks {
            self.volumes[volume].save_bitmap = true;
            self.quiesce(volume, Quiesce::Role);
        }
    }

    fn close(&mut self, versions: Option<Vec<u64>>) {
        if !self.replica.is_drained() {
            return;
        }
        let connected = self.replicating().is_some();
        match versions {
            None => {
                // The last to leave is the one that may start alone.
                if connected {
                    self.outdate_copies();
                }
                let flushed = |v: &mut Volume| v.change(|superblock| superblock.unflushed = false);
                let versions = self.volumes.iter_mut().map(flushed).collect();
                self.set_step(Step::Closing {
                    left: 0,
                    versions: Some(versions),
                });
            }
            Some(versions) => {
                let saved = (0..self.volumes.len()).all(|v| self.metadata_stored(v));
                if !self.stored(&versions) || !saved {
                    return;
                }
                if connected {
                    if self.volumes.iter().any(|v| v.superblock.outdated) {
                        self.tell_outdated();
                    }
                    self.send(Message::Goodbye { outdate: false }, None);
                }
                self.standing.wanted = false;
                self.shut_down = true;
                self.stand_alone(None);
                self.end_change(Ok(()));
            }
        }
    }

    // ---- time ----

    /// The link broke while the peer was asked.
    pub(super) fn change_lost_link(&mut self) {
        if let Some(RoleChange {
            step: Step::Asking(_),
            ..
        }) = self.change
        {
            self.end_change(Err(Refusal::LinkLost));
        }
    }

    pub(super) fn check_change_deadline(&mut self) {
        let Some(change) = &self.change else { return };
        if self.now < change.deadline {
            return;
        }
        match change.step {
            Step::Meeting { .. } | Step::Asking(_) => self.end_change(Err(Refusal::Busy)),
            Step::Outdating { told: true, .. } => {
                // It did not answer: it is not recorded, and the next write moves on without it.
                self.stand_alone(None);
                self.end_change(Ok(()));
            }
            _ => {}
        }
    }

    pub(super) fn change_deadline(&self) -> Option<Time> {
        let change = self.change.as_ref()?;
        let waits = matches!(
            change.step,
            Step::Meeting { .. } | Step::Asking(_) | Step::Outdating { told: true, .. }
        );
        waits.then_some(change.deadline)
    }
}
