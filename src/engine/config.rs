//! What the engine must know about its resource. The agent makes it from the configuration file.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::{NodeId, VolumeId};
use super::pace::Limits;

/// When a write counts (the table of completion promises is in the README).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Local completion; queued for the peer.
    A,
    /// Local completion and received by the peer.
    B,
    /// Completed on both disks.
    C,
}

/// Who may allow a promotion and must know a new generation before it is relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    /// The operator is the vote; the node's own superblock is the record.
    Operator,
    /// A third voter keeps {owner, term, generations, lease}. Every promotion needs its vote
    /// (`Ground::Voter`), every new generation its record (`Action::RecordAtVoter`, answered by
    /// `Event::VoterRecorded` or `Event::Deposed`).
    Voter,
}

/// Liveness limits of the link. Defaults are DRBD's.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Idle time after which a ping is sent (`ping-int`, 10 s).
    pub ping_interval: Duration,
    /// How long an answer to a ping may take (`ping-timeout`, 0.5 s). The link is dropped after
    /// one second of silence plus six of these while something is owed, so that one late answer
    /// does not cost the link.
    pub ping_timeout: Duration,
    /// `timeout` (6 s): times `ko_count` is how long a peer that still answers pings may take to
    /// finish a write.
    pub timeout: Duration,
    /// `ko-count` (7); 0 switches the rule off.
    pub ko_count: u32,
    /// How long a handshake may take once the transport is up, reading and storing included; a
    /// silent peer is noticed much earlier.
    pub handshake: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_millis(500),
            timeout: Duration::from_secs(6),
            ko_count: 7,
            handshake: Duration::from_secs(60),
        }
    }
}

/// The engine's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeId,
    pub peer: NodeId,
    pub volumes: Vec<VolumeId>,
    /// How fast a sync from here may go; volumes that are not named have the defaults.
    pub limits: BTreeMap<VolumeId, Limits>,
    /// A sync from here compares every block before it copies it (`csums-alg`).
    pub csums: bool,
    /// Syncs onto this node have to be approved: see [`super::hold`].
    pub guarded: bool,
    pub protocol: Protocol,
    pub timeouts: Timeouts,
    pub vote: VoteMode,
    /// Slots of each volume's activity log (extents of 4 MiB that may be written without a
    /// metadata write).
    pub al_extents: u16,
    /// Number of `Buffer::Resync` buffers.
    pub resync_buffers: u32,
    /// Size of each, bytes; a multiple of 4096, at most 1 MiB.
    pub resync_chunk: u32,
    /// Bytes that may be on their way to the peer without its acknowledgement; further writes
    /// wait (bounds the send queue, rule 12).
    pub max_unacked_bytes: u64,
    /// Identifies the boot of this machine: volatile caches survive a crash of the process only
    /// while this stays the same.
    pub boot_id: u64,
    /// Seed of the identifier sequence; from the operating system's generator in production.
    pub seed: u128,
    /// A deliberate defect.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<super::Sabotage>,
}
