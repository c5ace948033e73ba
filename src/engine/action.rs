//! What the engine tells its driver to do. Actions are carried out in the order given.

use super::ids::{Buffer, CommandId, Generation, IoId, LinkId, RequestId, Span, Term, VolumeId};
use super::message::{Digest, Envelope};
use super::persist::MetaOp;
use super::reason::{IoFailure, LinkLoss, Refusal};
use super::status::{ConnectionState, DiskState, ReplicationState, Role};

/// Something worth an event line (`lockstep events`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Role {
        from: Role,
        to: Role,
    },
    PeerRole {
        to: Role,
    },
    Disk {
        volume: VolumeId,
        from: DiskState,
        to: DiskState,
    },
    PeerDisk {
        volume: VolumeId,
        to: DiskState,
    },
    /// The disk failed with this errno and is detached.
    DiskError {
        volume: VolumeId,
        errno: i32,
    },
    Connection {
        to: ConnectionState,
        reason: Option<Refusal>,
        loss: Option<LinkLoss>,
    },
    Replication {
        volume: VolumeId,
        to: ReplicationState,
    },
    /// No sync runs, but one would be held back from now on, or would not be any more.
    Paused {
        volume: VolumeId,
        on: bool,
    },
    /// A sync has ended well, told by both sides; bytes copied and found equal.
    SyncDone {
        volume: VolumeId,
        copied: u64,
        compared: u64,
    },
    /// An online verify ended, at its end or before; bytes looked at, different and passed over.
    VerifyDone {
        volume: VolumeId,
        complete: bool,
        checked: u64,
        found: u64,
        skipped: u64,
    },
    /// Ranges that a verify had found are equal again; bytes.
    Repaired {
        volume: VolumeId,
        bytes: u64,
    },
    NewGeneration {
        volume: VolumeId,
        generation: Generation,
    },
    SplitBrain {
        volume: VolumeId,
    },
}

/// What a volume looks like to applications: what both copies can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Usable size in bytes.
    pub bytes: u64,
    /// Smallest unit of a request, bytes.
    pub logical_block: u32,
    /// Discarded blocks are given back.
    pub discard: bool,
}

/// An instruction to the driver.
#[derive(Debug)]
pub enum Action {
    /// Ends a front-end request. For reads the data is in its buffer.
    Complete {
        request: RequestId,
        result: Result<(), IoFailure>,
    },
    /// Fills the first `span.len` bytes of `buffer`. With `note_zeroes` the outcome is
    /// `IoOutcome::Zeroes` when there is nothing else in them.
    DiskRead {
        io: IoId,
        volume: VolumeId,
        span: Span,
        buffer: Buffer,
        note_zeroes: bool,
    },
    /// Where does the range begin with a hole, or with data? Answered with `IoOutcome::Begins`.
    DiskProbe {
        io: IoId,
        volume: VolumeId,
        span: Span,
    },
    /// Fills `buffer` and answers with `IoOutcome::Hash`.
    DiskHash {
        io: IoId,
        volume: VolumeId,
        span: Span,
        buffer: Buffer,
        digest: Digest,
    },
    DiskWrite {
        io: IoId,
        volume: VolumeId,
        span: Span,
        buffer: Buffer,
        fua: bool,
    },
    /// Afterwards the range reads as zeroes.
    DiskZeroes {
        io: IoId,
        volume: VolumeId,
        span: Span,
        unmap: bool,
        fua: bool,
    },
    DiskFlush {
        io: IoId,
        volume: VolumeId,
    },
    /// Answered when the change is durable. Operations of one volume are carried out one after
    /// the other, in order.
    Meta {
        io: IoId,
        volume: VolumeId,
        op: MetaOp,
    },
    /// Queues a frame on the link. Bytes of `payload` (the first `len`) are taken at once: the
    /// buffer may be reused when the next action is carried out.
    Send {
        link: LinkId,
        envelope: Envelope,
        payload: Option<(Buffer, u32)>,
    },
    /// Copies the first `len` bytes of one buffer to another.
    Copy {
        from: Buffer,
        to: Buffer,
        len: u32,
    },
    /// Ends the buffer of a received payload.
    Release {
        buffer: Buffer,
    },
    /// Whether the driver shall keep trying to connect (dial or listen).
    WantLink {
        want: bool,
    },
    /// Drop the link at once, unsent frames with it, except that frames queued before with
    /// `Message::Goodbye` should get a chance to leave.
    CloseLink {
        link: LinkId,
    },
    CommandDone {
        command: CommandId,
        result: Result<(), Refusal>,
    },
    /// The front end of every volume may be opened (`true`) or must be gone (`false`). The driver
    /// carries it out on its own; requests that still come are answered with an error.
    Serve {
        serve: bool,
        term: Term,
    },
    /// What front ends of a volume are made with is now known or has changed.
    Shape {
        volume: VolumeId,
        shape: Shape,
    },
    /// Detach is complete: close the disk.
    DiskClosed {
        volume: VolumeId,
    },
    /// Ask the third voter to record the generation of a volume under our term. The driver puts
    /// these questions in order, each until it is answered.
    RecordAtVoter {
        volume: VolumeId,
        generation: Generation,
        term: Term,
    },
    /// Notes in the agent's shared memory, before the next action, that `span` may differ between
    /// the copies; after a crash of the data process alone these ranges replace the log.
    Track {
        slot: u32,
        volume: VolumeId,
        span: Span,
    },
    Untrack {
        slot: u32,
    },
    /// Whether the tracked ranges are all that may differ beyond what the disk's bitmap says.
    TrackExact {
        exact: bool,
    },
    Publish(Notice),
}
