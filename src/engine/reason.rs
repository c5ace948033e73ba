//! Typed reasons. Text is made only in `Display`.

use std::fmt;

use super::ids::{Generation, VolumeId};

/// Why a front-end request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// This node is not primary.
    NotPrimary,
    /// No copy of the data can be reached.
    NoData,
    /// The disk reported this errno and no other copy helped.
    Disk(i32),
    /// Outside the device, not aligned or too large.
    BadRequest,
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkLoss {
    /// The peer or the network closed it.
    Closed,
    /// Errno of the socket.
    Network(i32),
    /// Nothing arrived in time.
    PingTimeout,
    /// The peer answered pings but did not finish a write in `timeout` x `ko-count`.
    KoCount,
    HandshakeTimeout,
    /// A frame was damaged or made no sense; what is wrong with it.
    Protocol(&'static str),
    /// A newer link of the same peer took over.
    Replaced,
    /// The peer said goodbye.
    Goodbye,
    /// We asked for it.
    Local,
    /// A disk was attached or replaced: the handshake is done again.
    Renegotiate,
    /// Both nodes are primary, and the voters have ended the earlier reign.
    OtherReign,
}

/// Why a command or a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The connected peer is primary.
    PeerIsPrimary,
    /// The peer asked first, or with the higher term.
    PeerPromotes,
    /// Peer unreachable and nothing proves that this copy is current.
    NotProvenCurrent,
    DiskInconsistent {
        volume: VolumeId,
    },
    DiskOutdated {
        volume: VolumeId,
    },
    NoDisk {
        volume: VolumeId,
    },
    /// The third voter has not said that this node may be primary.
    NoVote,
    /// The voter knows another generation than this disk.
    NotRecorded {
        volume: VolumeId,
    },
    /// Not while this node is primary.
    IsPrimary,
    /// Not on a secondary.
    NotPrimary,
    NotConnected,
    PeerNotUpToDate {
        volume: VolumeId,
    },
    AlreadyAttached {
        volume: VolumeId,
    },
    UnknownVolume {
        volume: VolumeId,
    },
    /// A handshake or another role change is running and did not end in time.
    Busy,
    /// The link broke while the peer was asked.
    LinkLost,
    /// Both nodes wrote without each other.
    SplitBrain {
        volume: VolumeId,
        mine: Vec<Generation>,
        theirs: Vec<Generation>,
    },
    /// The two disks never had anything in common.
    UnrelatedData {
        volume: VolumeId,
        mine: Generation,
        theirs: Generation,
    },
    /// Both are primary.
    BothPrimary,
    /// The primary holds the older data.
    PrimaryIsOlder {
        volume: VolumeId,
    },
    /// A primary, or a vote, of an older term than the one that we know.
    StaleTerm,
    PeerTooSmall {
        volume: VolumeId,
        need: u64,
        have: u64,
    },
    DiskTooSmall {
        volume: VolumeId,
        need: u64,
        have: u64,
    },
    ProtocolMismatch,
    BlockSizeMismatch {
        volume: VolumeId,
    },
    VolumeMismatch,
    /// Neither side has usable data to sync from.
    NoSource {
        volume: VolumeId,
    },
    /// A sync onto the volume is about to begin: the agent has to approve it.
    AsksFirst {
        volume: VolumeId,
    },
    Metadata {
        errno: i32,
    },
    VerifyRuns {
        volume: VolumeId,
    },
    /// Nothing of the volume lies in the range that was given.
    EmptyRange {
        volume: VolumeId,
    },
    ShuttingDown,
    Unsupported(&'static str),
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoFailure::NotPrimary => f.write_str("this node is not primary"),
            IoFailure::NoData => f.write_str("no copy of the data can be reached"),
            IoFailure::Disk(errno) => write!(f, "disk error (errno {errno})"),
            IoFailure::BadRequest => f.write_str("request outside the device or misaligned"),
        }
    }
}
