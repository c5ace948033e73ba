//! What the driver tells the engine.

use serde::{Deserialize, Serialize};

use super::config::Timeouts;
use super::hold::PauseCause;
use super::ids::{
    Buffer, CommandId, Generation, IoId, LinkId, NodeId, RequestId, Span, Term, VolumeId,
};
use super::message::{Digest, Envelope};
use super::pace::Limits;
use super::persist::VolumeImage;
use super::reason::LinkLoss;

/// A front-end operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read {
        span: Span,
    },
    /// Data is in `Buffer::Request`.
    Write {
        span: Span,
        fua: bool,
    },
    /// Afterwards the range reads as zeroes. `unmap` allows the disk to drop the blocks.
    WriteZeroes {
        span: Span,
        unmap: bool,
        fua: bool,
    },
    Discard {
        span: Span,
    },
    Flush,
}

/// A request from a front end. Ranges lie inside the device, are multiples of 512 bytes and span
/// at most 16 activity-log extents (64 MiB); data requests fit their buffer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub id: RequestId,
    pub volume: VolumeId,
    pub op: Op,
}

/// How a disk or metadata operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOutcome {
    Done,
    /// `DiskHash` only: the hash of the range.
    Hash([u8; 32]),
    /// `DiskRead` with `note_zeroes` only: the range is all zeroes.
    Zeroes,
    /// `DiskProbe` only: so many bytes from the start of the range are a hole, or else data; they
    /// may reach beyond its end.
    Begins {
        hole: bool,
        bytes: u64,
    },
    /// Errno of the failure.
    Failed(i32),
}

/// The third voter's word that this node may be primary: while the lease lasts it names nobody
/// else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// The new reign; later than every earlier one.
    pub term: Term,
    /// The generation on record for each volume, in the order of the configuration. A copy of
    /// another one is promoted by force only.
    pub recorded: Vec<Option<Generation>>,
}

/// What a promotion rests on besides this node's own record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The operator's word.
    Operator,
    /// A vote of the third voter.
    Voter(Vote),
    /// The agent has watched throughout: this node was primary, only its data process died, and
    /// the same reign goes on.
    Recovered,
}

/// What a verify looks at, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyScope {
    /// First byte; none = where the last one was stopped, or the beginning.
    pub start: Option<u64>,
    /// Byte after the last; none = the end of the device.
    pub stop: Option<u64>,
    pub digest: Digest,
    /// Afterwards what differs is copied from this node to the other.
    pub repair_from: Option<NodeId>,
}

/// What an operator (through the agent) asks for.
#[derive(Debug)]
pub enum Command {
    /// The driver has opened and read the disk of a volume.
    Attach {
        volume: VolumeId,
        image: Box<VolumeImage>,
    },
    Detach {
        volume: VolumeId,
    },
    Connect {
        discard_my_data: bool,
    },
    Disconnect,
    Primary {
        force: bool,
        ground: Ground,
    },
    Secondary,
    /// Declares the local data bad: full sync from the peer.
    Invalidate {
        volume: VolumeId,
    },
    /// Other liveness limits, from now on.
    Timeouts(Timeouts),
    /// Pauses syncs of a volume, in either direction, or lets them go on as far as this cause is
    /// concerned.
    PauseSync {
        volume: VolumeId,
        cause: PauseCause,
        on: bool,
    },
    /// Makes sure that the peer is still there: a connection on which it does not answer ends in
    /// time, although nothing is waited for.
    Probe,
    /// Whether syncs onto this node have to be approved: see [`super::hold`].
    Guard(bool),
    /// The sync onto this volume that was asked about may begin: connect again.
    Approve {
        volume: VolumeId,
    },
    /// Begins an online verify, run by this node.
    Verify {
        volume: VolumeId,
        scope: VerifyScope,
    },
    /// How fast a sync from here may go; a running one goes on with it.
    Limits {
        volume: VolumeId,
        limits: Limits,
    },
    /// Clean end: flush, demote, leave; the engine accepts nothing afterwards.
    Shutdown,
}

/// Everything that can happen to a resource.
#[derive(Debug)]
pub enum Event {
    Request(Request),
    /// Completion of an action that carried this id.
    Io {
        io: IoId,
        outcome: IoOutcome,
    },
    /// A transport connection to `peer` is up and authenticated. A newer link replaces the older.
    LinkUp {
        link: LinkId,
        peer: NodeId,
    },
    LinkDown {
        link: LinkId,
        reason: LinkLoss,
    },
    /// A frame arrived; `buffer` is present when it carried payload.
    Message {
        link: LinkId,
        envelope: Envelope,
        buffer: Option<Buffer>,
    },
    Command {
        id: CommandId,
        command: Command,
    },
    /// Answer to `Action::RecordAtVoter`.
    VoterRecorded {
        volume: VolumeId,
        generation: Generation,
    },
    /// The other answer of the voter, also to the renewal of a lease: it names another owner,
    /// under this later term.
    Deposed {
        term: Term,
    },
    /// Time has reached `Engine::next_deadline`.
    Tick,
}
