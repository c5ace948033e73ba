//! States with DRBD's names, and the picture of the engine that `status` shows.

use std::ops::Range;
use std::sync::Arc;

use super::ids::{NodeId, Term, VolumeId};
use super::reason::Refusal;

/// DRBD's roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    Secondary,
    /// Of a peer that is not connected.
    Unknown,
}

/// DRBD's disk states, ordered from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskState {
    Diskless,
    Attaching,
    Failed,
    Negotiating,
    /// Mid-sync or never synced: never promoted without force.
    Inconsistent,
    /// Valid but known to be old.
    Outdated,
    /// Of a peer that is not connected.
    DUnknown,
    /// A valid point in time; not known whether it is current.
    Consistent,
    UpToDate,
}

/// DRBD 9's connection states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// Not connected and not trying; `reason` says why.
    StandAlone,
    Disconnecting,
    Unconnected,
    Timeout,
    BrokenPipe,
    NetworkFailure,
    ProtocolError,
    Connecting,
    Connected,
}

/// DRBD 9's replication states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicationState {
    Off,
    WFBitMapS,
    WFBitMapT,
    Established,
    SyncSource,
    SyncTarget,
    PausedSyncS,
    PausedSyncT,
    /// This node compares its copy with the peer's, or the peer does.
    VerifyS,
    VerifyT,
}

/// Where an online verify stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifyState {
    /// None since the disk was attached.
    #[default]
    Idle,
    /// It compares, or repairs what it found.
    Running,
    Done,
    /// The connection or a disk was lost on the way; the next one goes on from there.
    Stopped,
}

macro_rules! names {
    ($type:ident: $($name:ident),+) => {
        impl $type {
            /// Every state, worst first where there is an order.
            pub const ALL: &'static [$type] = &[$($type::$name),+];

            /// The state's name, spelled as DRBD does.
            pub fn name(self) -> &'static str {
                match self { $($type::$name => stringify!($name)),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names!(Role: Primary, Secondary, Unknown);
names!(DiskState: Diskless, Attaching, Failed, Negotiating, Inconsistent, Outdated, DUnknown, Consistent, UpToDate);
names!(ConnectionState: StandAlone, Disconnecting, Unconnected, Timeout, BrokenPipe, NetworkFailure, ProtocolError, Connecting, Connected);
names!(ReplicationState: Off, WFBitMapS, WFBitMapT, Established, SyncSource, SyncTarget, PausedSyncS, PausedSyncT, VerifyS, VerifyT);
names!(VerifyState: Idle, Running, Done, Stopped);

/// What `status` shows of a resource.
#[derive(Clone, Debug)]
pub struct ResourceStatus {
    pub role: Role,
    pub term: Term,
    /// Requests that only the peer can serve wait: a disk is on its way back to this primary.
    pub suspended: bool,
    pub devices: Vec<DeviceStatus>,
    pub connection: ConnectionStatus,
}

/// One volume on this node. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    pub volume: VolumeId,
    pub disk: DiskState,
    pub size: u64,
    pub read: u64,
    pub written: u64,
    pub al_writes: u64,
    pub bm_writes: u64,
    pub upper_pending: u32,
    pub lower_pending: u32,
    /// Current generation, base toward the peer and ancestry, for `show-gi` and split brain.
    pub current: u64,
    pub base: u64,
    pub history: Vec<u64>,
}

/// The connection to the peer.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    pub peer: NodeId,
    pub state: ConnectionState,
    pub peer_role: Role,
    /// Why it is down or refused.
    pub reason: Option<Refusal>,
    /// How the last link ended.
    pub last_loss: Option<super::reason::LinkLoss>,
    pub peer_devices: Vec<PeerDeviceStatus>,
}

/// A volume's replication to the peer. Amounts in bytes.
#[derive(Clone, Debug)]
pub struct PeerDeviceStatus {
    pub volume: VolumeId,
    pub replication: ReplicationState,
    pub peer_disk: DiskState,
    pub received: u64,
    pub sent: u64,
    pub out_of_sync: u64,
    pub pending: u32,
    pub unacked: u32,
    /// While a sync or verify runs: bytes done and to do since its start.
    pub sync_done: u64,
    pub sync_total: u64,
    /// Syncs are paused by order of this node's operator, by its agent so that another one goes
    /// first, by the peer.
    pub paused_by_user: bool,
    pub paused_for_another: bool,
    pub paused_by_peer: bool,
    pub verify: VerifyStatus,
}

/// What online verify has found; kept until the next one begins afresh. Amounts in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyStatus {
    pub state: VerifyState,
    /// How far it has come, or came.
    pub at: u64,
    /// Ranges that differ and are not repaired.
    pub found: Arc<Vec<Range<u64>>>,
    /// Ranges that were written to whenever they were looked at.
    pub skipped: Arc<Vec<Range<u64>>>,
    pub repaired: u64,
}
