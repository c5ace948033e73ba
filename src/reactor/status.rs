//! The data plane's picture as JSON, in the shape of `drbdsetup status --json`.

use std::ops::Range;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::counters::{Measure, Percentiles};
use super::progress::mean;
use super::reason::{Names, of_loss, of_refusal};
use crate::agent::protocol::{Finished, FrontEnd, Run, ServeConfig, Transition};
use crate::engine::{
    ConnectionState, ConnectionStatus, DeviceStatus, DiskState, Generation, LinkLoss, Notice,
    PeerDeviceStatus, Refusal, ReplicationState, ResourceStatus, VerifyStatus,
};
use crate::failover::Copy;

/// What the reactor knows about a volume besides the engine's picture.
#[derive(Clone, Debug, Default)]
pub struct VolumeFacts {
    /// Distributions in the order of `Measure::ALL`.
    pub latencies: [Percentiles; 4],
    /// The front end takes requests.
    pub serving: bool,
    /// Why it does not, when it should.
    pub front_failure: Option<String>,
    /// A client has the export open; of a block device only the agent can find out.
    pub open: bool,
    /// An NBD export has its socket.
    pub listening: bool,
    /// What happened to its early users.
    pub front_note: Option<String>,
    /// How the disk failed before it was detached.
    pub disk_failure: Option<DiskFailure>,
    /// Bytes per second of the running sync or verify.
    pub rate: u64,
}

/// How a disk failed.
#[derive(Clone, Copy, Debug)]
pub struct DiskFailure {
    pub errno: i32,
    /// A file of it was found shorter than when it was attached.
    pub shorter: bool,
}

/// Everything that a status shows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub engine: ResourceStatus,
    /// Number of the last notice that led here.
    pub notices: u64,
    /// In the order of the configured volumes.
    pub volumes: Vec<VolumeFacts>,
}

/// A notice of the engine as a step of a state, if it is one.
pub fn transition(notice: &Notice) -> Option<Transition> {
    Some(match notice {
        Notice::Role { to, .. } => Transition::Role { to: to.to_string() },
        Notice::PeerRole { to } => Transition::PeerRole { to: to.to_string() },
        Notice::Disk { volume, to, .. } => Transition::Disk {
            volume: volume.0,
            to: to.to_string(),
        },
        Notice::PeerDisk { volume, to } => Transition::PeerDisk {
            volume: volume.0,
            to: to.to_string(),
        },
        Notice::Connection { to, .. } => Transition::Connection { to: to.to_string() },
        Notice::Replication { volume, to } => Transition::Replication {
            volume: volume.0,
            to: to.to_string(),
        },
        Notice::DiskError { .. }
        | Notice::Paused { .. }
        | Notice::SyncDone { .. }
        | Notice::VerifyDone { .. }
        | Notice::Repaired { .. }
        | Notice::NewGeneration { .. }
        | Notice::SplitBrain { .. } => return None,
    })
}

/// The totals in a notice of the engine, if it is about an end; `ran` is how long it took.
pub fn finished(notice: &Notice, ran: Duration) -> Option<Finished> {
    let (volume, bytes, run) = match notice {
        Notice::SyncDone {
            volume,
            copied,
            compared,
        } => {
            let run = Run::Resync {
                copied: kib(*copied),
                equal: kib(*compared),
            };
            (volume, copied + compared, run)
        }
        Notice::VerifyDone {
            volume,
            complete,
            checked,
            found,
            skipped,
        } => {
            let run = Run::Verify {
                complete: *complete,
                compared: kib(*checked),
                found: kib(*found),
                skipped: kib(*skipped),
            };
            (volume, *checked, run)
        }
        Notice::Repaired { volume, bytes } => {
            let repaired = kib(*bytes);
            (volume, *bytes, Run::Repair { repaired })
        }
        _ => return None,
    };
    Some(Finished {
        volume: volume.0,
        run,
        seconds: (ran.as_secs_f64() * 10.0).round() / 10.0,
        rate_kib_s: kib(mean(bytes, ran)),
    })
}

/// Ranges of a verify that a status lists.
const SHOWN_RANGES: usize = 4096;

/// KiB, as all amounts are shown.
fn kib(bytes: u64) -> u64 {
    bytes / 1024
}

/// The resource as one JSON object. `connect_failure` says why the last attempt to connect
/// failed, while there is no connection.
pub fn render(config: &ServeConfig, snapshot: &Snapshot, connect_failure: Option<&str>) -> Value {
    let engine = &snapshot.engine;
    let names = Names {
        resource: &config.resource,
        peer: &config.peer_name,
    };
    let devices: Vec<Value> = engine
        .devices
        .iter()
        .map(|status| device(config, snapshot, status))
        .collect();
    let mut map = object(json!({
        "name": config.resource,
        "node-id": config.node,
        "role": engine.role.name(),
        "suspended": engine.suspended,
        "write-ordering": "flush",
        "term": engine.term.to_string(),
        "devices": devices,
        "connections": [connection(config, snapshot, names, connect_failure)],
    }));
    if engine.suspended {
        let reason = format!(
            "requests wait while a disk is taken back and {} is met anew",
            config.peer_name
        );
        map.insert("reason".to_owned(), json!(reason));
    }
    Value::Object(map)
}

fn device(config: &ServeConfig, snapshot: &Snapshot, status: &DeviceStatus) -> Value {
    let index = position(config, status.volume.0);
    let facts = index.and_then(|index| snapshot.volumes.get(index));
    let front = index.and_then(|index| config.volumes.get(index));
    let (minor, path) = front.map_or((-1, String::new()), |volume| front_name(&volume.front));
    let mut map = object(json!({
        "volume": status.volume.0,
        "minor": minor,
        "path": path,
        "disk-state": status.disk.name(),
        "size": kib(status.size),
        "read": kib(status.read),
        "written": kib(status.written),
        "al-writes": status.al_writes,
        "bm-writes": status.bm_writes,
        "upper-pending": status.upper_pending,
        "lower-pending": status.lower_pending,
        "open": facts.is_some_and(|facts| facts.open),
        "serving": facts.is_some_and(|facts| facts.serving),
        "data-path": "copy",
        "generations": {
            "current": format!("{:016X}", status.current),
            "base": format!("{:016X}", status.base),
            "history": status.history.iter().map(|id| format!("{id:016X}")).collect::<Vec<_>>(),
        },
    }));
    if let Some(facts) = facts {
        if minor < 0 {
            map.insert("listening".to_owned(), json!(facts.listening));
        }
        let latencies = Measure::ALL.iter().zip(facts.latencies);
        let latencies: Map<String, Value> = latencies
            .map(|((_, name), latency)| ((*name).to_owned(), percentiles(latency)))
            .collect();
        map.insert("latency_us".to_owned(), Value::Object(latencies));
        if let Some(reason) = device_reason(facts) {
            map.insert("reason".to_owned(), json!(reason));
        }
    }
    Value::Object(map)
}

/// What is wrong with a volume: its front end or its disk.
fn device_reason(facts: &VolumeFacts) -> Option<String> {
    let disk = facts.disk_failure.map(|DiskFailure { errno, shorter }| {
        if shorter {
            return "the disk was detached: its file is shorter than when it was attached, and \
                    what was there is lost; give it its old size, then `lockstep create-md --force` \
                    where the metadata was in it, and `lockstep attach`: the peer has the data"
                .to_owned();
        }
        let error = std::io::Error::from_raw_os_error(errno);
        format!("the disk failed and was detached: {error}; mend it, then `lockstep attach`")
    });
    let note = || facts.front_note.clone();
    facts.front_failure.clone().or(disk).or_else(note)
}

/// Index of a volume in the configuration.
fn position(config: &ServeConfig, volume: u16) -> Option<usize> {
    config
        .volumes
        .iter()
        .position(|entry| entry.volume == volume)
}

/// What a vote needs to know about this node's copies.
pub fn copies(engine: &ResourceStatus) -> Vec<Copy> {
    let current = |state| state == DiskState::UpToDate;
    let pairs = engine.devices.iter().zip(&engine.connection.peer_devices);
    let copy = |(device, peer): (&DeviceStatus, &PeerDeviceStatus)| {
        let ancestry = std::iter::once(device.base).chain(device.history.iter().copied());
        let follows = matches!(
            peer.replication,
            ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT
        );
        Copy {
            volume: device.volume,
            current: Generation(device.current),
            ancestry: ancestry.map(Generation).filter(|g| !g.is_fresh()).collect(),
            agreed: follows && current(device.disk) && current(peer.peer_disk),
        }
    };
    pairs.map(copy).collect()
}

/// Minor number (-1 without) and what applications open.
fn front_name(front: &FrontEnd) -> (i64, String) {
    match front {
        FrontEnd::Ublk { minor } => (i64::from(*minor), format!("/dev/ublkb{minor}")),
        FrontEnd::NbdUnix { path, export } => (-1, format!("nbd+unix:///{export}?socket={path}")),
        FrontEnd::NbdTcp { address, export } => (-1, format!("nbd://{address}/{export}")),
    }
}

fn percentiles(latency: Percentiles) -> Value {
    json!({
        "count": latency.count,
        "p50": latency.p50,
        "p99": latency.p99,
        "p999": latency.p999,
        "max": latency.max,
    })
}

fn connection(
    config: &ServeConfig,
    snapshot: &Snapshot,
    names: Names<'_>,
    connect_failure: Option<&str>,
) -> Value {
    let status = &snapshot.engine.connection;
    let peers: Vec<Value> = status
        .peer_devices
        .iter()
        .map(|peer| peer_device(config, snapshot, peer))
        .collect();
    let mut map = object(json!({
        "peer-node-id": status.peer.0,
        "name": config.peer_name,
        "connection-state": status.state.name(),
        "peer-role": status.peer_role.name(),
        "transport": "tcp",
        "tls": false,
        "authenticated": !config.shared_secret.is_empty(),
        "peer_devices": peers,
    }));
    if let Some((reason, help)) = connection_reason(status, names, connect_failure) {
        map.insert("reason".to_owned(), json!(reason));
        if let Some(help) = help {
            map.insert("help".to_owned(), json!(help));
        }
    }
    match status.reason {
        Some(Refusal::SplitBrain { .. }) => {
            map.insert("split-brain".to_owned(), json!(true));
        }
        Some(Refusal::AsksFirst { volume }) => {
            map.insert("asks-before-sync".to_owned(), json!(volume.0));
        }
        _ => {}
    }
    Value::Object(map)
}

/// Why the connection is not up: a refusal of the data, else what the last attempt met, else how
/// the last link ended.
fn connection_reason(
    status: &ConnectionStatus,
    names: Names<'_>,
    connect_failure: Option<&str>,
) -> Option<(String, Option<String>)> {
    if let Some(refusal) = &status.reason {
        let reason = of_refusal(refusal, names);
        return Some((reason.reason, Some(reason.help)));
    }
    if status.state == ConnectionState::Connected {
        return None;
    }
    if let Some(failure) = connect_failure {
        return Some((failure.to_owned(), None));
    }
    match status.last_loss.as_ref()? {
        // That order was overtaken by another one.
        LinkLoss::Local if status.state != ConnectionState::StandAlone => None,
        loss => Some((of_loss(loss, names), None)),
    }
}

fn peer_device(config: &ServeConfig, snapshot: &Snapshot, status: &PeerDeviceStatus) -> Value {
    let size = snapshot
        .engine
        .devices
        .iter()
        .find(|device| device.volume == status.volume)
        .map_or(0, |device| device.size);
    let mut map = object(json!({
        "volume": status.volume.0,
        "replication-state": status.replication.name(),
        "peer-disk-state": status.peer_disk.name(),
        "resync-suspended": suspended(status),
        "received": kib(status.received),
        "sent": kib(status.sent),
        "out-of-sync": status.out_of_sync.div_ceil(1024),
        "pending": status.pending,
        "unacked": status.unacked,
        "percent-in-sync": percent(size.saturating_sub(status.out_of_sync), size),
        "verify": verify(&status.verify),
    }));
    if let Some(reason) = pause_reason(config, status) {
        map.insert("reason".to_owned(), json!(reason));
    }
    if status.sync_total > 0 {
        let rate = position(config, status.volume.0)
            .and_then(|index| snapshot.volumes.get(index))
            .map_or(0, |facts| facts.rate);
        sync_progress(&mut map, status, rate);
    }
    Value::Object(map)
}

/// Who holds syncs back, in DRBD's words.
fn suspended(status: &PeerDeviceStatus) -> String {
    let causes = [
        (status.paused_by_user, "user"),
        (status.paused_by_peer, "peer"),
        (status.paused_for_another, "dependency"),
    ];
    let words = causes.into_iter().filter(|(on, _)| *on);
    let words: Vec<&str> = words.map(|(_, word)| word).collect();
    match words.is_empty() {
        true => "no".to_owned(),
        false => words.join(","),
    }
}

/// Why a sync that there is does not go on.
fn pause_reason(config: &ServeConfig, status: &PeerDeviceStatus) -> Option<String> {
    let (resource, peer) = (&config.resource, &config.peer_name);
    let resume = format!("`lockstep resume-sync {resource}`");
    let waits = [ReplicationState::PausedSyncS, ReplicationState::PausedSyncT];
    if !waits.contains(&status.replication) {
        None
    } else if status.paused_by_user {
        Some(format!("the sync is paused here; {resume} lets it go on"))
    } else if status.paused_for_another {
        Some("the sync waits until another one on this node has ended".to_owned())
    } else if status.paused_by_peer {
        Some(format!(
            "the sync is paused by the peer; {resume} on {peer} lets it go on, unless it waits \
             there for another one"
        ))
    } else {
        None
    }
}

/// The result of online verify, amounts and places in KiB.
fn verify(status: &VerifyStatus) -> Value {
    let bytes = |ranges: &[Range<u64>]| ranges.iter().map(|r| r.end - r.start).sum::<u64>();
    let shown: Vec<Value> = { status.found.iter() }
        .take(SHOWN_RANGES)
        .map(|range| json!({ "start": kib(range.start), "length": kib(range.end - range.start) }))
        .collect();
    json!({
        "state": status.state.name().to_lowercase(),
        "at": kib(status.at),
        "found-kib": kib(bytes(&status.found)),
        "skipped-kib": kib(bytes(&status.skipped)),
        "repaired-kib": kib(status.repaired),
        "ranges": shown,
        "ranges-left-off": status.found.len().saturating_sub(SHOWN_RANGES),
    })
}

/// How far the running sync or verify is. Without a rate, as while it is paused, nobody knows how
/// much time is left.
fn sync_progress(map: &mut Map<String, Value>, status: &PeerDeviceStatus, rate: u64) {
    let done = percent(status.sync_done, status.sync_total);
    map.insert("done".to_owned(), json!(done));
    map.insert("done-kib".to_owned(), json!(kib(status.sync_done)));
    map.insert("total-kib".to_owned(), json!(kib(status.sync_total)));
    map.insert("rate-kib-s".to_owned(), json!(kib(rate)));
    let left = status.sync_total.saturating_sub(status.sync_done);
    if rate > 0 {
        map.insert("eta-s".to_owned(), json!(left.div_ceil(rate)));
    }
}

/// Percent with two decimals; an empty whole is complete.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 100.0;
    }
    (part as f64 / whole as f64 * 10_000.0).floor() / 100.0
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::agent::protocol::ServeVolume;
    use crate::engine::{DiskState, Generation, NodeId, Role, Term, VerifyState, VolumeId};

    /// A configuration to test with.
    pub fn config() -> ServeConfig {
        ServeConfig {
            resource: "r0".to_owned(),
            node: 0,
            peer: 1,
            node_name: "alpha".to_owned(),
            peer_name: "beta".to_owned(),
            protocol: 'C',
            address: "127.0.0.1:7789".to_owned(),
            peer_address: "127.0.0.1:7790".to_owned(),
            shared_secret: Default::default(),
            ping_interval: 10_000,
            ping_timeout: 500,
            timeout: 6_000,
            ko_count: 7,
            connect_interval: 10_000,
            al_extents: 1237,
            csums: false,
            guarded: false,
            verify_alg: "crc32c".to_owned(),
            verify_repair: false,
            votes: false,
            send_buffer: 0,
            volumes: vec![ServeVolume {
                volume: 4,
                front: FrontEnd::Ublk { minor: 9 },
                internal_meta: true,
                indexed_meta: false,
                resync: Default::default(),
                cookie: 0,
            }],
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            notices: 0,
            engine: ResourceStatus {
                role: Role::Primary,
                term: Term::ZERO,
                suspended: false,
                devices: vec![DeviceStatus {
                    volume: VolumeId(4),
                    disk: DiskState::UpToDate,
                    size: 1 << 20,
                    read: 4096,
                    written: 8192,
                    al_writes: 3,
                    bm_writes: 0,
                    upper_pending: 1,
                    lower_pending: 0,
                    current: 0xab,
                    base: 0,
                    history: vec![1],
                }],
                connection: ConnectionStatus {
                    peer: NodeId(1),
                    state: ConnectionState::Connected,
                    peer_role: Role::Secondary,
                    reason: None,
                    last_loss: None,
                    peer_devices: vec![PeerDeviceStatus {
                        volume: VolumeId(4),
                        replication: ReplicationState::SyncSource,
                        peer_disk: DiskState::Inconsistent,
                        received: 0,
                        sent: 2048,
                        out_of_sync: 1 << 19,
                        pending: 0,
                        unacked: 0,
                        sync_done: 1 << 18,
                        sync_total: 3 << 18,
                        paused_by_user: true,
                        paused_for_another: false,
                        paused_by_peer: false,
                        verify: VerifyStatus {
                            state: VerifyState::Done,
                            at: 1 << 20,
                            found: vec![4096..12_288; 1].into(),
                            ..VerifyStatus::default()
                        },
                    }],
                },
            },
            volumes: vec![VolumeFacts {
                serving: true,
                rate: 128 << 10,
                ..VolumeFacts::default()
            }],
        }
    }

    #[test]
    fn every_key_that_administrators_know_is_there() {
        let status = render(&config(), &snapshot(), None);
        for key in [
            "name",
            "node-id",
            "role",
            "suspended",
            "write-ordering",
            "term",
        ] {
            assert!(status.get(key).is_some(), "{key}");
        }
        let device = &status["devices"][0];
        for key in [
            "volume",
            "disk-state",
            "al-writes",
            "bm-writes",
            "upper-pending",
            "open",
        ] {
            assert!(device.get(key).is_some(), "{key}");
        }
        assert_eq!(device["minor"], 9);
        assert_eq!(device["path"], "/dev/ublkb9");
        assert_eq!(
            (&device["size"], &device["written"]),
            (&json!(1024), &json!(8))
        );
        assert_eq!(device["latency_us"]["peer"]["p99"], 0);
        let peer = &status["connections"][0]["peer_devices"][0];
        assert_eq!(peer["replication-state"], "SyncSource");
        assert_eq!(peer["out-of-sync"], 512);
        assert_eq!(peer["percent-in-sync"], 50.0);
        assert_eq!(peer["done"], 33.33);
        assert_eq!(
            (&peer["done-kib"], &peer["total-kib"]),
            (&json!(256), &json!(768))
        );
        assert_eq!(peer["rate-kib-s"], 128);
        assert_eq!(peer["eta-s"], 4);
        assert_eq!(peer["resync-suspended"], "user");
        let verify = &peer["verify"];
        assert_eq!(
            (&verify["state"], &verify["at"]),
            (&json!("done"), &json!(1024))
        );
        assert_eq!(
            (&verify["found-kib"], &verify["skipped-kib"]),
            (&json!(8), &json!(0))
        );
        assert_eq!(verify["ranges"], json!([{ "start": 4, "length": 8 }]));
        assert!(status["connections"][0].get("reason").is_none());
    }

    #[test]
    fn what_does_not_move_has_no_time_left() {
        let mut snapshot = snapshot();
        snapshot.volumes[0].rate = 0;
        let status = render(&config(), &snapshot, None);
        let peer = &status["connections"][0]["peer_devices"][0];
        assert_eq!(
            (&peer["rate-kib-s"], &peer["done"]),
            (&json!(0), &json!(33.33))
        );
        assert!(peer.get("eta-s").is_none());
    }

    #[test]
    fn requests_that_are_held_have_a_reason() {
        let mut snapshot = snapshot();
        let status = render(&config(), &snapshot, None);
        assert!(status["suspended"] == false && status.get("reason").is_none());
        snapshot.engine.suspended = true;
        let status = render(&config(), &snapshot, None);
        assert_eq!(status["suspended"], true);
        assert!(
            status["reason"]
                .as_str()
                .is_some_and(|r| r.contains("disk"))
        );
    }

    #[test]
    fn the_most_telling_reason_is_shown() {
        let mut snapshot = snapshot();
        let link = &mut snapshot.engine.connection;
        link.state = ConnectionState::Connecting;
        link.last_loss = Some(LinkLoss::PingTimeout);
        let reason = |snapshot: &Snapshot, failure| {
            let status = render(&config(), snapshot, failure);
            status["connections"][0]["reason"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        };
        assert!(reason(&snapshot, None).contains("silent"));
        assert_eq!(reason(&snapshot, Some("no route")), "no route");
        snapshot.engine.connection.reason = Some(Refusal::SplitBrain {
            volume: VolumeId(4),
            mine: vec![Generation(1)],
            theirs: vec![Generation(2)],
        });
        assert!(reason(&snapshot, Some("no route")).contains("split brain"));
        // What was ordered before is no reason once it was ordered to connect.
        let link = &mut snapshot.engine.connection;
        link.reason = None;
        link.last_loss = Some(LinkLoss::Local);
        assert_eq!(reason(&snapshot, None), "");
        snapshot.engine.connection.state = ConnectionState::StandAlone;
        assert!(reason(&snapshot, None).contains("lockstep connect"));
    }
}
