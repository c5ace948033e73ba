//! What two engines say to each other. The reactor maps these to wire frames and back.

use super::config::Protocol;
use super::ids::{Generation, NodeId, Session, Span, Term, VolumeId};
use super::status::{DiskState, Role};

/// Which acknowledgement a write is answered with first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// The payload is in the peer's memory.
    Received,
    /// The write completed on the peer's disk (durable there if it asked for FUA).
    Written,
    /// The peer's disk failed the write or is gone.
    Failed,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Payload follows.
    Data,
    /// Afterwards the range reads as zeroes; a discard is a zeroing that may give blocks back.
    Zeroes { unmap: bool },
}

/// A volume as its node describes it in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    pub volume: VolumeId,
    /// Usable bytes of this node's disk; 0 when diskless.
    pub capacity: u64,
    /// Size agreed at an earlier connect; 0 = never.
    pub agreed_size: u64,
    /// Of this node's disk; of a primary, of the device in use.
    pub logical_block: u32,
    /// This node's disk can give blocks back that read as zeroes afterwards.
    pub discard: bool,
    pub disk: DiskState,
    pub current: Generation,
    /// The generation that this node's bitmap for the receiver is relative to; zero = none.
    pub base: Generation,
    /// Older generations, newest first.
    pub history: Vec<Generation>,
    pub dirty_bits: u64,
    /// This node was primary and did not stop cleanly.
    pub crashed_primary: bool,
    /// The next sync toward this node must be over the whole device.
    pub want_full: bool,
    /// Last session that both sides had stored, and one that may have been.
    pub session: Session,
    pub session_pending: Session,
}

/// First message of a handshake; sent again with a higher round when something in it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    pub round: u32,
    pub node: NodeId,
    pub role: Role,
    /// Highest term this node knows.
    pub term: Term,
    /// Random; both sides' nonces make the session.
    pub nonce: u64,
    pub protocol: Protocol,
    pub discard_my_data: bool,
    pub volumes: Vec<VolumeState>,
}

/// 512 words of 64 bits of a dirty bitmap, 4 KiB per bit; chunks without a set bit are not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapChunk {
    pub volume: VolumeId,
    /// Index of the chunk: its first bit is `index * 32768`.
    pub index: u32,
    pub words: Vec<u64>,
    /// Subset of `words` that is set only because the activity log covered it at a crash.
    /// Empty = none.
    pub suspects: Vec<u64>,
}

/// A message; payload bytes travel beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Handshake, both ways.
    State(Box<NodeState>),
    /// I have computed the verdict from your round `peer_round` and mine, and have stored the
    /// pending session. `verdicts` holds one code per volume, as the sender sees it.
    Agree {
        round: u32,
        peer_round: u32,
        verdicts: Vec<(VolumeId, u8)>,
    },
    /// Part of the sync target's bitmap, before its `Ready`.
    Bitmap(BitmapChunk),
    /// The session is stored and so is what this side must record as sync source; the other side
    /// may now become sync target.
    Stored,
    /// What this side must record as sync target is stored and its bitmap sent; whatever follows
    /// is replication.
    Ready,
    /// A replicated write. `sequence` counts the writes of this session, from 1.
    Write {
        volume: VolumeId,
        span: Span,
        kind: WriteKind,
        fua: bool,
        sequence: u64,
        ack: AckKind,
    },
    WriteAck {
        sequence: u64,
        kind: AckKind,
    },
    /// Every write up to `sequence` must be complete on disk before any later one is submitted.
    Barrier {
        sequence: u64,
    },
    /// Make every write and sync block received so far durable.
    Flush {
        flush: u64,
    },
    FlushAck {
        flush: u64,
        ok: bool,
    },
    Read {
        id: u64,
        volume: VolumeId,
        span: Span,
    },
    /// Payload follows when `ok`.
    ReadReply {
        id: u64,
        ok: bool,
    },
    /// A block of a sync, source to target. Payload follows for `WriteKind::Data`.
    SyncWrite {
        id: u64,
        volume: VolumeId,
        span: Span,
        kind: WriteKind,
    },
    /// Is your block the same? BLAKE3 of the source's bytes.
    SyncCompare {
        id: u64,
        volume: VolumeId,
        span: Span,
        hash: [u8; 32],
    },
    SyncAck {
        id: u64,
        kind: SyncResult,
    },
    /// The source has nothing left to send and all of it is durable at the target.
    SyncDone {
        volume: VolumeId,
        generation: Generation,
        size: u64,
    },
    /// The target has durably adopted the generation.
    SyncAdopted {
        volume: VolumeId,
    },
    /// The sender's operator has paused syncs of the volume, or lets them go on.
    PauseSync {
        volume: VolumeId,
        on: bool,
    },
    /// The sender has begun or ended an online verify of the volume.
    Verifying {
        volume: VolumeId,
        on: bool,
    },
    /// Online verify: has your block this hash?
    Verify {
        id: u64,
        volume: VolumeId,
        span: Span,
        digest: Digest,
        hash: [u8; 32],
    },
    VerifyAck {
        id: u64,
        result: VerifyResult,
    },
    /// Send me this range of yours, which was found to differ; `last` ends the list.
    Repair {
        volume: VolumeId,
        span: Span,
        last: bool,
    },
    /// The ranges of the list have been sent and are durable at the receiver of this message.
    RepairDone {
        volume: VolumeId,
    },
    /// May I become primary with this term?
    Promote {
        term: Term,
    },
    PromoteReply {
        term: Term,
        granted: bool,
    },
    /// My role has changed (demotion).
    Demoted,
    /// The sender's primary data moved to this generation while connected (its own disk or the
    /// receiver's is leaving); the receiver stores it when its disk takes part.
    NewGeneration {
        volume: VolumeId,
        generation: Generation,
    },
    NewGenerationAck {
        volume: VolumeId,
        generation: Generation,
    },
    DiskState {
        volume: VolumeId,
        state: DiskState,
    },
    /// Orderly end of the link. `outdate`: the receiver shall record itself as outdated.
    Goodbye {
        outdate: bool,
    },
    /// The receiver has recorded that it is outdated.
    Outdated,
    Ping,
    Pong,
}

/// How the target dealt with a sync block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncResult {
    Written,
    /// `SyncCompare`: same bytes.
    Equal,
    /// `SyncCompare`: other bytes; send them.
    Differs,
    Failed,
}

/// How a block of a verify compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyResult {
    Equal,
    Differs,
    /// An application writes over it.
    Busy,
    /// It cannot be read.
    Failed,
}

/// What a range is hashed with. Shorter results are padded with zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Digest {
    /// For syncs: an equal hash clears dirty bits (rule 2).
    #[default]
    Blake3,
    Crc32c,
    Xxh3,
    Md5,
    Sha1,
    Sha256,
}

impl Digest {
    pub const ALL: [Digest; 6] = [
        Digest::Blake3,
        Digest::Crc32c,
        Digest::Xxh3,
        Digest::Md5,
        Digest::Sha1,
        Digest::Sha256,
    ];
}

/// A message with what fences it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Zero until agreed.
    pub session: Session,
    /// The reign that the sender acts under or follows.
    pub term: Term,
    /// Counts the frames that the sender has sent on this link's lane, from 1.
    pub frame: u64,
    pub message: Message,
}

impl Message {
    /// The volume that the message is about.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        match self {
            Message::Write { volume, .. }
            | Message::Read { volume, .. }
            | Message::SyncWrite { volume, .. }
            | Message::SyncCompare { volume, .. }
            | Message::SyncDone { volume, .. }
            | Message::SyncAdopted { volume }
            | Message::PauseSync { volume, .. }
            | Message::Verifying { volume, .. }
            | Message::Verify { volume, .. }
            | Message::Repair { volume, .. }
            | Message::RepairDone { volume }
            | Message::NewGeneration { volume, .. }
            | Message::NewGenerationAck { volume, .. }
            | Message::DiskState { volume, .. } => Some(*volume),
            _ => None,
        }
    }

    /// The range that the message is about.
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Message::Write { span, .. }
            | Message::Read { span, .. }
            | Message::SyncWrite { span, .. }
            | Message::SyncCompare { span, .. }
            | Message::Verify { span, .. }
            | Message::Repair { span, .. } => Some(*span),
            _ => None,
        }
    }
}
