//! The replication state machine of one resource on one node.
//!
//! [`Engine::handle`] takes an [`Event`] and the current time and appends [`Action`]s. It does no
//! I/O, reads no clock, starts no thread and draws no randomness (identifiers come from a seeded
//! sequence), so the same code runs in the reactor, in the simulator and in unit tests, and a
//! recorded run replays to the same actions.
//!
//! The engine never touches payload bytes: it names buffers ([`Buffer`]) that its driver owns.

mod action;
mod activity_log;
mod bitmap;
mod config;
mod disks;
mod event;
mod greeting;
mod handshake;
mod hold;
mod ids;
mod link;
mod message;
pub mod pace;
mod persist;
mod picture;
mod ranges;
mod reason;
mod repair;
mod replica;
mod requests;
mod resource;
mod retake;
mod roles;
#[cfg(feature = "sabotage")]
mod sabotage;
mod status;
mod sync;
mod transfer;
mod verify;
mod volume;
mod vote;

pub use action::{Action, Notice, Shape};
pub use config::{Config, Protocol, Timeouts, VoteMode};
pub use event::{Command, Event, Ground, IoOutcome, Op, Request, VerifyScope, Vote};
pub use hold::PauseCause;
pub use ids::{
    Buffer, CommandId, Generation, IoId, LinkId, NodeId, RequestId, Session, Span, Term, Time,
    VolumeId,
};
pub use message::{
    AckKind, BitmapChunk, Digest, Envelope, Message, NodeState, SyncResult, VerifyResult,
    VolumeState, WriteKind,
};
pub use persist::{
    BITMAP_PAGE_BYTES, LogTransaction, MetaOp, PeerRecord, SlotChange, Superblock, VolumeImage,
};
pub use reason::{IoFailure, LinkLoss, Refusal};
pub use resource::Engine;
pub(crate) use resource::broken;
#[cfg(feature = "sabotage")]
pub use sabotage::Sabotage;
pub use status::{
    ConnectionState, ConnectionStatus, DeviceStatus, DiskState, PeerDeviceStatus, ReplicationState,
    ResourceStatus, Role, VerifyState, VerifyStatus,
};

#[cfg(test)]
mod pair;
