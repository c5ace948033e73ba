//! The connection to the peer: frames in and out, liveness.
//!
//! A link goes through these stages:
//!
//! 1. *Draining*: writes of an older session, or a generation that follows them, are still on
//!    their way to the disk; nothing is said before they have ended (rule 7).
//! 2. *Greeting*: both send `State`; when something in it changes it is sent again with a higher
//!    round. With both states each side computes the verdicts, stores the pending session and
//!    sends `Agree`.
//! 3. After both `Agree`: what a sync source must record (and the session) is stored, then
//!    `Stored` is sent. Having sent and got it, what a sync target must record is stored, its
//!    bitmap is sent, then `Ready`.
//! 4. *Replicating* from the moment `Ready` was sent and received. On a primary every write
//!    admitted from then on goes to the peer; earlier ones are in the bitmap.

use std::time::Duration;

use super::action::{Action, Notice};
use super::greeting::Greeting;
use super::ids::{Buffer, CommandId, LinkId, NodeId, Session, Term, Time};
use super::message::{Envelope, Message};
use super::reason::{LinkLoss, Refusal};
use super::resource::{Engine, broken};
use super::status::{ConnectionState, DiskState, ReplicationState, Role};
use super::verify::Question;

/// Silence after which a ping is sent while an answer is owed.
const OWED_SILENCE: Duration = Duration::from_secs(1);
/// Unanswered ping times after that until the link is dropped.
const PING_TIMES: u32 = 6;
/// Age of the oldest entry of the transfer log after which the peer is asked to flush.
const FLUSH_AGE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Stage {
    Draining,
    Greeting(Box<Greeting>),
    Replicating,
}

/// A transport connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) session: Session,
    pub(super) stage: Stage,
    pub(super) nonce: u64,
    pub(super) since: Time,
    pub(super) last_received: Time,
    pub(super) last_ping: Option<Time>,
    /// Since when the peer owes an answer.
    pub(super) owed_since: Option<Time>,
    pub(super) frames_sent: u64,
    pub(super) frames_received: u64,
    /// Frames of older terms are refused.
    pub(super) floor: Term,
    pub(super) peer_role: Role,
}

impl Link {
    pub(super) fn replicating(&self) -> bool {
        matches!(self.stage, Stage::Replicating)
    }
}

impl Engine {
    // ---- up and down ----

    pub(super) fn on_connect(&mut self, command: CommandId, discard_my_data: bool) {
        if discard_my_data && self.role == Role::Primary {
            return self.refuse(command, Refusal::IsPrimary);
        }
        self.discard_my_data = discard_my_data;
        self.standing.refusal = None;
        if !self.standing.wanted {
            self.standing.wanted = true;
            self.publish_connection(ConnectionState::Connecting);
        }
        self.out.push(Action::WantLink { want: true });
        self.done(command);
    }

    /// Gives up the connection until told otherwise.
    pub(super) fn stand_alone(&mut self, refusal: Option<Refusal>) {
        self.standing.wanted = false;
        self.standing.refusal = refusal;
        self.drop_link(LinkLoss::Local);
        self.out.push(Action::WantLink { want: false });
        self.publish_connection(ConnectionState::StandAlone);
    }

    pub(super) fn on_link_up(&mut self, id: LinkId, peer: NodeId) {
        if !self.standing.wanted || peer != self.config.peer || self.shut_down {
            self.out.push(Action::CloseLink { link: id });
            return;
        }
        if self.link.is_some() {
            self.drop_link(LinkLoss::Replaced);
        }
        self.link = Some(Link {
            id,
            session: Session::default(),
            stage: Stage::Draining,
            nonce: self.fresh_id(),
            since: self.now,
            last_received: self.now,
            last_ping: None,
            owed_since: None,
            frames_sent: 0,
            frames_received: 0,
            floor: Term::ZERO,
            peer_role: Role::Unknown,
        });
        self.progress = true;
    }

    pub(super) fn on_link_down(&mut self, id: LinkId, reason: LinkLoss) {
        if self.link.as_ref().is_some_and(|link| link.id == id) {
            self.lose_link(reason);
        }
    }

    /// Closes the link from this side.
    pub(super) fn drop_link(&mut self, reason: LinkLoss) {
        if let Some(link) = &self.link {
            let link = link.id;
            self.out.push(Action::CloseLink { link });
            self.lose_link(reason);
        }
    }

    fn lose_link(&mut self, reason: LinkLoss) {
        self.link = None;
        self.standing.last_loss = Some(reason);
        self.end_transfer();
        self.end_replica_session();
        self.fail_remote_reads();
        self.change_lost_link();
        for index in 0..self.volumes.len() {
            self.abandon_sync(index);
            self.volumes[index].paused.forget_peer();
            self.volumes[index].compared = false;
            self.set_replication(index, ReplicationState::Off);
            self.set_peer_disk(index, DiskState::DUnknown);
        }
        if self.standing.wanted {
            self.publish_connection(ConnectionState::Connecting);
        }
        self.recheck = true;
        self.progress = true;
    }

    // ---- frames ----

    pub(super) fn send(&mut self, message: Message, payload: Option<(Buffer, u32)>) {
        let term = self.term;
        let Some(link) = self.link.as_mut() else {
            return;
        };
        link.frames_sent += 1;
        let envelope = Envelope {
            session: link.session,
            term,
            frame: link.frames_sent,
            message,
        };
        self.out.push(Action::Send {
            link: link.id,
            envelope,
            payload,
        });
    }

    pub(super) fn on_frame(&mut self, id: LinkId, envelope: Envelope, buffer: Option<Buffer>) {
        let used = self.accept_frame(id, envelope, buffer);
        if !used && let Some(buffer) = buffer {
            self.out.push(Action::Release { buffer });
        }
    }

    /// Returns whether the payload buffer was taken over.
    fn accept_frame(&mut self, id: LinkId, envelope: Envelope, buffer: Option<Buffer>) -> bool {
        let stale = broken!(self, StaleSession);
        let ignore_term = broken!(self, IgnoreTerm);
        let now = self.now;
        let known = self.term;
        let Some(link) = self.link.as_mut() else {
            return false;
        };
        if link.id != id && !stale {
            return false;
        }
        link.last_received = now;
        link.last_ping = None;
        link.frames_received += 1;
        let in_order = envelope.frame == link.frames_received;
        let in_session = envelope.session == link.session;
        let changes_data = matches!(envelope.message, Message::Write { .. });
        let floor = if changes_data { known } else { link.floor };
        if link.replicating() && !stale {
            if !in_order || !in_session {
                self.drop_link(LinkLoss::Protocol(
                    "frame of another session or out of order",
                ));
                return false;
            }
            if envelope.term < floor && !ignore_term {
                self.drop_link(LinkLoss::Protocol("frame of an older term"));
                return false;
            }
        }
        if link_is_replicating(&self.link) {
            self.follow_term(envelope.term);
            self.on_replication(id, envelope.message, buffer)
        } else {
            self.on_handshake(envelope.message);
            false
        }
    }

    /// The peer acts under a later term than we have seen.
    pub(super) fn follow_term(&mut self, term: Term) {
        // The term of a primary is what it was given a vote for.
        let own = self.role == Role::Primary && self.has_voter();
        if term > self.term && !own {
            self.term = term;
            for volume in &mut self.volumes {
                volume.change(|superblock| superblock.term = term);
            }
        }
    }

    fn on_replication(&mut self, link: LinkId, message: Message, buffer: Option<Buffer>) -> bool {
        let volume = message.volume();
        let index = volume.map_or(Some(0), |id| self.index(id));
        let Some(index) = index else {
            self.drop_link(LinkLoss::Protocol("unknown volume"));
            return false;
        };
        if let Some(span) = message.span()
            && span.end() > self.volumes[index].size
            && self.volumes[index].has_disk()
        {
            self.drop_link(LinkLoss::Protocol("range outside the volume"));
            return false;
        }
        match message {
            Message::Write {
                span,
                kind,
                fua,
                sequence,
                ack,
                ..
            } => {
                if self.role == Role::Primary {
                    self.drop_link(LinkLoss::Protocol("write to a primary"));
                    return false;
                }
                self.on_peer_write((link, sequence, ack), (index, span, kind, fua), buffer);
                return true;
            }
            Message::SyncWrite { id, span, kind, .. } => {
                // A block of a repair comes to a copy that is in use.
                let expected = self.volumes[index].replication == ReplicationState::SyncTarget
                    || self.verifiable(index);
                if !expected {
                    self.drop_link(LinkLoss::Protocol("sync block outside a sync"));
                    return false;
                }
                self.on_sync_write(link, id, (index, span, kind), buffer);
                return true;
            }
            Message::SyncCompare { id, span, hash, .. } => {
                self.on_sync_compare(link, id, (index, span), hash);
            }
            Message::ReadReply { id, ok } => self.on_read_reply(id, ok, buffer),
            Message::WriteAck { sequence, kind } => self.on_write_ack(sequence, kind),
            Message::Barrier { .. } => self.on_barrier(),
            Message::Flush { flush } => self.on_peer_flush(link, flush),
            Message::FlushAck { flush, ok } => self.on_flush_ack(flush, ok),
            Message::Read { id, span, .. } => self.on_peer_read(link, id, index, span),
            Message::SyncAck { id, kind } => self.on_sync_ack(id, kind),
            Message::SyncDone { generation, .. } => self.on_sync_done(link, index, generation),
            Message::SyncAdopted { .. } => self.on_sync_adopted(index),
            Message::PauseSync { on, .. } => self.on_peer_pause(index, on),
            Message::Verifying { on, .. } => self.on_verifying(index, on),
            Message::Verify {
                id,
                span,
                digest,
                hash,
                ..
            } => self.on_question(Question {
                link,
                id,
                volume: index,
                span,
                digest,
                hash,
                after: 0,
            }),
            Message::VerifyAck { id, result } => self.on_verify_ack(id, result),
            Message::Repair { span, last, .. } => self.on_repair_asked(index, span, last),
            Message::RepairDone { .. } => self.batch_repaired(index),
            Message::Promote { term } => self.on_promote(link, term),
            Message::PromoteReply { term, granted } => self.on_promote_reply(term, granted),
            Message::Demoted => self.set_peer_role(Role::Secondary),
            Message::NewGeneration { generation, .. } => {
                self.on_new_generation(link, index, generation);
            }
            Message::NewGenerationAck { generation, .. } => {
                self.on_new_generation_ack(index, generation);
            }
            Message::DiskState { state, .. } => self.on_peer_disk_state(index, state),
            Message::Goodbye { outdate } => self.on_goodbye(outdate),
            Message::Outdated => self.on_peer_outdated(),
            Message::Ping => self.send(Message::Pong, None),
            Message::Pong => {}
            Message::State(_)
            | Message::Agree { .. }
            | Message::Stored
            | Message::Bitmap(_)
            | Message::Ready => self.drop_link(LinkLoss::Protocol("handshake inside replication")),
        }
        false
    }

    pub(super) fn peer_role(&self) -> Role {
        self.link
            .as_ref()
            .map_or(Role::Unknown, |link| link.peer_role)
    }

    pub(super) fn set_peer_role(&mut self, to: Role) {
        if let Some(link) = self.link.as_mut()
            && link.peer_role != to
        {
            link.peer_role = to;
            self.publish(Notice::PeerRole { to });
        }
    }

    // ---- liveness ----

    /// Whether the peer owes an answer.
    fn owed(&self) -> bool {
        let Some(link) = &self.link else { return false };
        !link.replicating()
            || !self.transfer.unacked.is_empty()
            || self.transfer.flush_under_way()
            || link.last_ping.is_some()
            || self.waits_for_peer()
    }

    /// Notes since when something is owed: silence before that means nothing.
    pub(super) fn settle_owed(&mut self) {
        let (owed, now) = (self.owed(), self.now);
        if let Some(link) = self.link.as_mut() {
            link.owed_since = owed.then(|| link.owed_since.unwrap_or(now));
        }
    }

    /// When a ping is due, and when silence ends the link.
    fn silence_deadlines(&self) -> Option<(Time, Option<Time>)> {
        let link = self.link.as_ref()?;
        let Some(owed) = link.owed_since else {
            let quiet = link.last_received.max(link.since);
            return Some((quiet.after(self.config.timeouts.ping_interval), None));
        };
        let start = link.last_received.max(owed);
        let ping = link
            .last_ping
            .unwrap_or(start)
            .max(start)
            .after(OWED_SILENCE);
        let limit = OWED_SILENCE + self.config.timeouts.ping_timeout * PING_TIMES;
        Some((ping, Some(start.after(limit))))
    }

    fn ko_deadline(&self) -> Option<Time> {
        let timeouts = &self.config.timeouts;
        let limit = timeouts.timeout * timeouts.ko_count;
        (timeouts.ko_count > 0).then_some(())?;
        self.oldest_unacked().map(|since| since.after(limit))
    }

    fn handshake_deadline(&self) -> Option<Time> {
        let link = self.link.as_ref().filter(|link| !link.replicating())?;
        Some(link.since.after(self.config.timeouts.handshake))
    }

    /// When the peer is to be asked to make the transfer log durable.
    fn flush_deadline(&self) -> Option<Time> {
        if self.replicating().is_none() || self.transfer.flush_under_way() {
            return None;
        }
        self.transfer.oldest().map(|since| since.after(FLUSH_AGE))
    }

    pub(super) fn check_deadlines(&mut self) {
        self.check_change_deadline();
        let due = |deadline: Option<Time>| deadline.is_some_and(|deadline| self.now >= deadline);
        let Some((ping, silence)) = self.silence_deadlines() else {
            return;
        };
        if due(self.handshake_deadline()) {
            return self.drop_link(LinkLoss::HandshakeTimeout);
        }
        if due(silence) {
            return self.drop_link(LinkLoss::PingTimeout);
        }
        if due(self.ko_deadline()) {
            return self.drop_link(LinkLoss::KoCount);
        }
        let flush = due(self.flush_deadline()) || self.transfer.is_long();
        if self.now >= ping {
            self.send(Message::Ping, None);
            let now = self.now;
            if let Some(link) = self.link.as_mut() {
                link.last_ping = Some(now);
            }
        }
        if flush {
            self.want_peer_flush();
        }
    }

    /// When `Event::Tick` is wanted next.
    pub fn next_deadline(&self) -> Option<Time> {
        let (ping, silence) = self.silence_deadlines().unzip();
        [
            self.change_deadline(),
            self.note_deadline(),
            self.retake_deadline(),
            self.closing_deadline(),
            ping,
            silence.flatten(),
            self.handshake_deadline(),
            self.ko_deadline(),
            self.flush_deadline(),
            self.pace_deadline(),
            self.verify_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the link's stage is the handshake, for `status`.
    pub(super) fn connection_state(&self) -> ConnectionState {
        match &self.link {
            Some(link) if link.replicating() => ConnectionState::Connected,
            Some(_) => ConnectionState::Connecting,
            None if self.standing.wanted => ConnectionState::Connecting,
            None => ConnectionState::StandAlone,
        }
    }
}

fn link_is_replicating(link: &Option<Link>) -> bool {
    link.as_ref().is_some_and(Link::replicating)
}
