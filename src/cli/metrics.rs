//! `lockstep metrics`: what `status` knows, as OpenMetrics text.
//!
//! Names are part of the interface and stand in the README. Amounts are in bytes and seconds. A
//! state is a family of series, one for each that it may have, of which one is 1.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::view::{ConnectionView, DeviceView, PeerDeviceView, ResourceView};

use super::client::status;
use super::{Global, Outcome, text};

type Labels = Vec<(String, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

const ROLES: &[&str] = &["Primary", "Secondary", "Unknown"];
const LINKS: &[&str] = &["StandAlone", "Unconnected", "Connecting", "Connected"];
const DISKS: &[&str] = &[
    "Diskless",
    "Failed",
    "Inconsistent",
    "Outdated",
    "DUnknown",
    "Consistent",
    "UpToDate",
];
const REPLICATION: &[&str] = &[
    "Off",
    "WFBitMapS",
    "WFBitMapT",
    "Established",
    "SyncSource",
    "SyncTarget",
    "PausedSyncS",
    "PausedSyncT",
    "VerifyS",
    "VerifyT",
];
/// Names of percentiles in the status, as quantiles.
const QUANTILES: [(&str, &str); 4] = [
    ("p50", "0.5"),
    ("p99", "0.99"),
    ("p999", "0.999"),
    ("max", "1"),
];

/// Carries out the verb.
pub fn run(global: &Global) -> Outcome {
    let views = status(global, "all")?;
    let exposed =
        expose(&views).map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))?;
    text::out(&exposed);
    Ok(())
}

/// The text for these resources.
fn expose(views: &[ResourceView]) -> Result<String, std::fmt::Error> {
    let metrics = Metrics::new();
    for view in views {
        metrics.resource(view);
    }
    let mut text = String::new();
    encode(&mut text, &metrics.registry)?;
    Ok(text)
}

fn and(labels: &Labels, more: &[(&str, &str)]) -> Labels {
    let more = more
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    labels.iter().cloned().chain(more).collect()
}

fn bytes(kib: u64) -> f64 {
    kib as f64 * 1024.0
}

fn set(gauges: &Gauges, labels: &Labels, value: f64) {
    gauges.get_or_create(labels).set(value);
}

fn count(counters: &Counters, labels: &Labels, value: u64) {
    counters.get_or_create(labels).inc_by(value);
}

/// One series for each state; one that this list does not know has its own.
fn state(gauges: &Gauges, labels: &Labels, known: &[&str], now: &str) {
    let unknown = Some(now).filter(|now| !known.contains(now));
    for state in known.iter().copied().chain(unknown) {
        set(
            gauges,
            &and(labels, &[("state", state)]),
            f64::from(u8::from(state == now)),
        );
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ident = $name:literal $(in $unit:ident)?, $help:literal;)*) => {
        /// Every family, by its field.
        struct Metrics {
            registry: Registry,
            $($field: $kind,)*
        }

        impl Metrics {
            fn new() -> Metrics {
                let mut registry = Registry::with_prefix("lockstep");
                $(
                    let $field = $kind::default();
                    let unit: Option<Unit> = None $(.or(Some(Unit::$unit)))?;
                    match unit {
                        Some(unit) => {
                            registry.register_with_unit($name, $help, unit, $field.clone());
                        }
                        None => registry.register($name, $help, $field.clone()),
                    }
                )*
                Metrics { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    role: Gauges = "resource_role", "Role of this node";
    suspended: Gauges = "resource_suspended", "Requests are held";
    link: Gauges = "connection_state", "State of the connection to the peer";
    peer_role: Gauges = "connection_peer_role", "Role of the peer";
    disk: Gauges = "device_disk_state", "State of the disk of this node";
    size: Gauges = "device_size" in Bytes, "Size of the device";
    open: Gauges = "device_open", "Somebody has it open";
    read: Counters = "device_read" in Bytes, "Read by applications since attach";
    written: Counters = "device_written" in Bytes, "Written by applications since attach";
    al_writes: Counters = "device_al_writes", "Metadata writes for the activity log";
    bm_writes: Counters = "device_bm_writes", "Metadata writes for the bitmap";
    upper_pending: Gauges = "device_upper_pending", "Writes of applications under way";
    lower_pending: Gauges = "device_lower_pending", "Operations of the disk under way";
    latency: Gauges = "device_latency" in Seconds, "Quantiles of latencies since attach";
    samples: Counters = "device_latency_samples", "Operations that the quantiles are about";
    peer_disk: Gauges = "peer_device_disk_state", "State of the disk of the peer";
    replication: Gauges = "peer_device_replication_state", "State of the replication";
    sent: Counters = "peer_device_sent" in Bytes, "Data sent to the peer since attach";
    received: Counters = "peer_device_received" in Bytes, "Data received from the peer since attach";
    out_of_sync: Gauges = "peer_device_out_of_sync" in Bytes, "What is to be synced";
    pending: Gauges = "peer_device_pending", "Requests that the peer has not answered";
    unacked: Gauges = "peer_device_unacked", "Writes that the peer has not acknowledged";
    held: Gauges = "peer_device_resync_suspended", "A sync is or would be held back";
    done: Gauges = "peer_device_sync_done" in Ratios, "How far a running sync or verify is";
    rate: Gauges = "peer_device_sync_rate_bytes_per_second", "How fast it is";
    verify_running: Gauges = "peer_device_verify_running", "A verify of this node runs";
    verify_found: Gauges = "peer_device_verify_found" in Bytes, "What the last verify found different";
    verify_skipped: Gauges = "peer_device_verify_skipped" in Bytes, "What was in use all the time";
    verify_repaired: Gauges = "peer_device_verify_repaired" in Bytes, "What was repaired of it";
    verify_end: Gauges = "peer_device_verify_end_timestamp" in Seconds, "When it ended";
}

impl Metrics {
    fn resource(&self, view: &ResourceView) {
        let labels: Labels = vec![("resource".to_owned(), view.name.clone())];
        state(&self.role, &labels, ROLES, &view.role);
        set(
            &self.suspended,
            &labels,
            f64::from(u8::from(view.suspended)),
        );
        for device in &view.devices {
            self.device(&labels, device);
        }
        for link in &view.connections {
            self.connection(&and(&labels, &[("peer", &link.name)]), link);
        }
    }

    fn device(&self, labels: &Labels, device: &DeviceView) {
        let labels = and(labels, &[("volume", &device.volume.to_string())]);
        state(&self.disk, &labels, DISKS, &device.disk_state);
        set(&self.size, &labels, bytes(device.size));
        set(&self.open, &labels, f64::from(u8::from(device.open)));
        count(&self.read, &labels, device.read.saturating_mul(1024));
        count(&self.written, &labels, device.written.saturating_mul(1024));
        count(&self.al_writes, &labels, device.al_writes);
        count(&self.bm_writes, &labels, device.bm_writes);
        set(&self.upper_pending, &labels, device.upper_pending as f64);
        set(&self.lower_pending, &labels, device.lower_pending as f64);
        let latencies = device.more.get("latency_us").and_then(Value::as_object);
        for (of, latency) in latencies.into_iter().flatten() {
            let labels = and(&labels, &[("of", of)]);
            count(
                &self.samples,
                &labels,
                latency["count"].as_u64().unwrap_or_default(),
            );
            for (key, quantile) in QUANTILES {
                let micros = latency[key].as_f64().unwrap_or_default();
                set(
                    &self.latency,
                    &and(&labels, &[("quantile", quantile)]),
                    micros / 1e6,
                );
            }
        }
    }

    fn connection(&self, labels: &Labels, link: &ConnectionView) {
        state(&self.link, labels, LINKS, &link.connection_state);
        state(&self.peer_role, labels, ROLES, &link.peer_role);
        for peer in &link.peer_devices {
            let volume = peer.volume.to_string();
            self.peer_device(&and(labels, &[("volume", &volume)]), peer);
        }
    }

    fn peer_device(&self, labels: &Labels, peer: &PeerDeviceView) {
        state(&self.peer_disk, labels, DISKS, &peer.peer_disk_state);
        state(
            &self.replication,
            labels,
            REPLICATION,
            &peer.replication_state,
        );
        count(&self.sent, labels, peer.sent.saturating_mul(1024));
        count(&self.received, labels, peer.received.saturating_mul(1024));
        set(&self.out_of_sync, labels, bytes(peer.out_of_sync));
        set(&self.pending, labels, peer.pending as f64);
        set(&self.unacked, labels, peer.unacked as f64);
        let held = !matches!(peer.resync_suspended.as_str(), "" | "no");
        set(&self.held, labels, f64::from(u8::from(held)));
        // What does not run has no series.
        if let Some(done) = peer.done {
            set(&self.done, labels, done / 100.0);
            set(
                &self.rate,
                labels,
                bytes(peer.rate_kib_s.unwrap_or_default()),
            );
        }
        let verify = &peer.verify;
        let running = verify.state == "running";
        set(&self.verify_running, labels, f64::from(u8::from(running)));
        if matches!(verify.state.as_str(), "" | "idle") {
            return;
        }
        set(&self.verify_found, labels, bytes(verify.found_kib));
        set(&self.verify_skipped, labels, bytes(verify.skipped_kib));
        set(&self.verify_repaired, labels, bytes(verify.repaired_kib));
        let ended = verify
            .ended
            .as_ref()
            .and_then(|text| text.parse::<Timestamp>().ok());
        if let Some(ended) = ended {
            set(&self.verify_end, labels, ended.as_second() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> ResourceView {
        serde_json::from_value(json!({
            "name": "r0", "role": "Primary",
            "devices": [{
                "volume": 1, "disk-state": "UpToDate", "size": 4, "written": 8, "open": true,
                "latency_us": { "write": { "count": 9, "p50": 100, "p99": 2_000, "p999": 0, "max": 0 } },
            }],
            "connections": [{
                "name": "beta", "connection-state": "Connected", "peer-role": "Secondary",
                "peer_devices": [{
                    "volume": 1, "replication-state": "SyncSource", "peer-disk-state": "Odd",
                    "resync-suspended": "dependency", "out-of-sync": 2, "done": 50.0, "rate-kib-s": 3,
                    "verify": { "state": "done", "found-kib": 4, "ended": "1970-01-01T00:01:40Z" },
                }],
            }],
        }))
        .expect("a view")
    }

    #[test]
    fn every_amount_is_in_bytes_and_seconds() {
        let text = expose(&[sample()]).expect("text");
        let device = r#"resource="r0",volume="1""#;
        let peer = r#"resource="r0",peer="beta",volume="1""#;
        for line in [
            r#"lockstep_resource_role{resource="r0",state="Primary"} 1.0"#.to_owned(),
            r#"lockstep_resource_role{resource="r0",state="Secondary"} 0.0"#.to_owned(),
            format!("lockstep_device_size_bytes{{{device}}} 4096.0"),
            format!("lockstep_device_written_bytes_total{{{device}}} 8192"),
            format!(
                r#"lockstep_device_latency_seconds{{{device},of="write",quantile="0.99"}} 0.002"#
            ),
            format!("lockstep_peer_device_out_of_sync_bytes{{{peer}}} 2048.0"),
            format!("lockstep_peer_device_sync_done_ratios{{{peer}}} 0.5"),
            format!(r#"lockstep_peer_device_disk_state{{{peer},state="Odd"}} 1.0"#),
            format!("lockstep_peer_device_resync_suspended{{{peer}}} 1.0"),
            format!("lockstep_peer_device_verify_found_bytes{{{peer}}} 4096.0"),
            format!("lockstep_peer_device_verify_end_timestamp_seconds{{{peer}}} 100.0"),
        ] {
            assert!(text.contains(&format!("{line}\n")), "no {line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(expose(&[]).expect("text").ends_with("# EOF\n"));
    }
}
