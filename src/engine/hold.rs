//! What holds a sync back: orders of an operator and of the agent, here or at the peer, and the
//! question that comes before a sync onto a copy that is still whole.
//!
//! A *pause* stops the copying of blocks and nothing else: writes go on to both copies. Either side
//! may pause, for several causes at once; the peer is told only whether there is any, before it may
//! send the first block.
//!
//! A *guarded* node is asked before a sync makes its copy inconsistent, so that its agent can keep
//! the last consistent state elsewhere. Writes of the peer would spoil that state just as blocks
//! do, so there is no connection meanwhile: the handshake is refused before anything is recorded,
//! and made again when the agent approves. A copy that is inconsistent already has nothing to keep,
//! and a primary that takes its disk back would lose the only copy that it works with: neither asks.

use super::action::Notice;
use super::ids::{CommandId, VolumeId};
use super::message::Message;
use super::reason::Refusal;
use super::resource::Engine;
use super::status::{DiskState, ReplicationState, Role};

/// Why this node pauses a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PauseCause {
    /// An operator has said so.
    User,
    /// The agent lets another sync go first.
    Dependency,
}

/// Who holds syncs of a volume back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paused {
    user: bool,
    dependency: bool,
    peer: bool,
    /// What the peer was told last, on this link.
    told: bool,
}

impl Paused {
    /// Whether this node does.
    pub(super) fn here(self) -> bool {
        self.user || self.dependency
    }

    pub(super) fn any(self) -> bool {
        self.here() || self.peer
    }

    pub(super) fn by_peer(self) -> bool {
        self.peer
    }

    /// The link is gone, and with it what either side was told.
    pub(super) fn forget_peer(&mut self) {
        self.peer = false;
        self.told = false;
    }

    pub(super) fn by(self, cause: PauseCause) -> bool {
        match cause {
            PauseCause::User => self.user,
            PauseCause::Dependency => self.dependency,
        }
    }

    fn set(&mut self, cause: PauseCause, on: bool) {
        match cause {
            PauseCause::User => self.user = on,
            PauseCause::Dependency => self.dependency = on,
        }
    }
}

impl Engine {
    pub(super) fn on_pause(
        &mut self,
        command: CommandId,
        id: VolumeId,
        (cause, on): (PauseCause, bool),
    ) {
        let Some(volume) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        let paused = &mut self.volumes[volume].paused;
        if paused.by(cause) != on {
            paused.set(cause, on);
            self.publish_pause(volume);
        }
        if self.replicating().is_some() {
            self.tell_pause(volume);
        }
        self.progress = true;
        self.done(command);
    }

    /// The peer learns whether syncs are paused here, unless it knows.
    pub(super) fn tell_pause(&mut self, volume: usize) {
        let v = &mut self.volumes[volume];
        let on = v.paused.here();
        if std::mem::replace(&mut v.paused.told, on) != on {
            let volume = v.id;
            self.send(Message::PauseSync { volume, on }, None);
        }
    }

    pub(super) fn on_peer_pause(&mut self, volume: usize, on: bool) {
        self.volumes[volume].paused.peer = on;
        self.publish_pause(volume);
        self.progress = true;
    }

    fn publish_pause(&mut self, volume: usize) {
        let v = &self.volumes[volume];
        let syncs = [ReplicationState::SyncSource, ReplicationState::SyncTarget];
        if syncs.contains(&v.replication) {
            return self.publish_shown(volume);
        }
        let (volume, on) = (v.id, v.paused.any());
        self.publish(Notice::Paused { volume, on });
    }

    /// Whether a sync onto the volume has to be approved first.
    pub(super) fn asks_first(&self, volume: usize) -> bool {
        let v = &self.volumes[volume];
        let whole = v.disk > DiskState::Inconsistent;
        self.config.guarded && whole && !v.approved && self.role != Role::Primary
    }

    /// The agent has done what it wanted to do before a sync onto the volume.
    pub(super) fn on_approve(&mut self, command: CommandId, id: VolumeId) {
        let Some(volume) = self.index(id) else {
            return self.refuse(command, Refusal::UnknownVolume { volume: id });
        };
        // Otherwise something else has been ordered since.
        if self.standing.refusal == Some(Refusal::AsksFirst { volume: id }) {
            self.volumes[volume].approved = true;
            return self.on_connect(command, self.discard_my_data);
        }
        self.done(command);
    }
}
