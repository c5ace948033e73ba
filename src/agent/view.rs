//! The status that `lockstep status --json` prints: DRBD's shape and names.
//!
//! A data plane makes it from the engine's picture; the agent adds what only it knows (reasons of
//! a resource that does not run) and the command line renders it. Keys that an older reader does
//! not know are kept in `more`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::protocol::Transition;

/// One resource on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ResourceView {
    pub name: String,
    pub node_id: u8,
    pub role: String,
    pub suspended: bool,
    pub write_ordering: String,
    pub term: String,
    /// Why the resource waits, or what was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub devices: Vec<DeviceView>,
    pub connections: Vec<ConnectionView>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One volume. Amounts in KiB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DeviceView {
    pub volume: u16,
    /// Number of the block device; -1 for other front ends.
    pub minor: i64,
    /// What applications open.
    pub path: String,
    pub disk_state: String,
    pub size: u64,
    pub read: u64,
    pub written: u64,
    pub al_writes: u64,
    pub bm_writes: u64,
    pub upper_pending: u64,
    pub lower_pending: u64,
    /// Somebody has it open.
    pub open: bool,
    /// The front end takes requests.
    pub serving: bool,
    /// An NBD export has its listening socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listening: Option<bool>,
    pub data_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The connection to one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ConnectionView {
    pub peer_node_id: u8,
    pub name: String,
    pub connection_state: String,
    pub peer_role: String,
    pub transport: String,
    pub tls: bool,
    /// Whether both sides prove that they know a key; unknown while the resource is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about the reason, where it does not say so itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The volume whose sync waits for the handler before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asks_before_sync: Option<u16>,
    #[serde(rename = "peer_devices")]
    pub peer_devices: Vec<PeerDeviceView>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A volume's replication to one peer. Amounts in KiB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PeerDeviceView {
    pub volume: u16,
    pub replication_state: String,
    pub peer_disk_state: String,
    pub resync_suspended: String,
    pub received: u64,
    pub sent: u64,
    pub out_of_sync: u64,
    pub pending: u64,
    pub unacked: u64,
    pub percent_in_sync: f64,
    /// Of the running sync or verify, in percent and as amounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_kib_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub verify: VerifyView,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What online verify has found. Amounts in KiB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct VerifyView {
    /// `idle`, `running`, `done` or `stopped`.
    pub state: String,
    pub at: u64,
    pub found_kib: u64,
    pub skipped_kib: u64,
    pub repaired_kib: u64,
    /// When it ended, with what it compared, and how much; of one that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_kib: Option<u64>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl PeerDeviceView {
    /// A sync has begun and not ended, whether it goes on or is held back.
    pub fn syncs(&self) -> bool {
        let states = ["SyncSource", "SyncTarget", "PausedSyncS", "PausedSyncT"];
        states.contains(&self.replication_state.as_str())
    }

    /// Nothing is being copied: the copies get every write, whether they are compared or not.
    fn follows(&self) -> bool {
        let states = ["Established", "VerifyS", "VerifyT"];
        states.contains(&self.replication_state.as_str())
    }
}

impl ResourceView {
    /// Takes one step of a state.
    pub fn step(&mut self, step: &Transition) {
        let set = |state: &mut String, to: &String| state.clone_from(to);
        match step {
            Transition::Role { to } => set(&mut self.role, to),
            Transition::PeerRole { to } => {
                let links = self.connections.iter_mut();
                links.for_each(|link| set(&mut link.peer_role, to));
            }
            Transition::Connection { to } => {
                let links = self.connections.iter_mut();
                links.for_each(|link| set(&mut link.connection_state, to));
            }
            Transition::Disk { volume, to } => {
                let devices = self.devices.iter_mut();
                let of = devices.filter(|device| device.volume == *volume);
                of.for_each(|device| set(&mut device.disk_state, to));
            }
            Transition::PeerDisk { volume, to } => {
                let of = self.peer_devices(*volume);
                of.for_each(|peer| set(&mut peer.peer_disk_state, to));
            }
            Transition::Replication { volume, to } => {
                let of = self.peer_devices(*volume);
                of.for_each(|peer| set(&mut peer.replication_state, to));
            }
        }
    }

    pub fn peer_devices(&mut self, volume: u16) -> impl Iterator<Item = &mut PeerDeviceView> {
        let all = self
            .connections
            .iter_mut()
            .flat_map(|l| &mut l.peer_devices);
        all.filter(move |peer| peer.volume == volume)
    }

    /// Leaves out every other volume.
    pub fn keep_volume(&mut self, volume: u16) {
        self.devices.retain(|device| device.volume == volume);
        for link in &mut self.connections {
            link.peer_devices.retain(|peer| peer.volume == volume);
        }
    }

    /// Another sync goes before that of the volume.
    pub fn is_held(&self, volume: u16) -> bool {
        let mut peers = self.connections.iter().flat_map(|link| &link.peer_devices);
        let held = |peer: &PeerDeviceView| {
            peer.resync_suspended
                .split(',')
                .any(|cause| cause == "dependency")
        };
        peers.any(|peer| peer.volume == volume && held(peer))
    }

    /// The volume that a sync is about to begin onto, once the handler before it has ended.
    pub fn asks_before_sync(&self) -> Option<u16> {
        self.connections
            .iter()
            .find_map(|link| link.asks_before_sync)
    }

    pub fn peer_device(&self, volume: u16) -> Option<&PeerDeviceView> {
        let mut peers = self.connections.iter().flat_map(|link| &link.peer_devices);
        peers.find(|peer| peer.volume == volume)
    }

    /// KiB.
    pub fn size(&self, volume: u16) -> u64 {
        let mut devices = self.devices.iter();
        let device = devices.find(|device| device.volume == volume);
        device.map_or(0, |device| device.size)
    }

    /// Every connection is up.
    pub fn connected(&self) -> bool {
        !self.connections.is_empty()
            && self
                .connections
                .iter()
                .all(|c| c.connection_state == "Connected")
    }

    /// Every copy of every volume is up to date and nothing is being copied.
    pub fn in_sync(&self) -> bool {
        self.connected()
            && self.devices.iter().all(|d| d.disk_state == "UpToDate")
            && self
                .connections
                .iter()
                .flat_map(|c| &c.peer_devices)
                .all(|p| p.follows() && p.peer_disk_state == "UpToDate")
    }

    /// The first connection that has given up, with its reason.
    pub fn standing_alone(&self) -> Option<&ConnectionView> {
        self.connections
            .iter()
            .find(|c| c.connection_state == "StandAlone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let text = r#"{"name":"r0","devices":[{"volume":1,"latency_us":{"write":{"p50":9}}}]}"#;
        let view: ResourceView = serde_json::from_str(text).expect("parses");
        assert_eq!(view.devices[0].volume, 1);
        let value = serde_json::to_value(&view).expect("serialises");
        assert_eq!(value["devices"][0]["latency_us"]["write"]["p50"], 9);
        assert_eq!(value["devices"][0]["disk-state"], "");
        assert!(value.get("reason").is_none());
    }
}
