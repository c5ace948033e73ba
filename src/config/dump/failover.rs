//! The sections `cluster` and `failover`, as text and as JSON.

use serde_json::{Map, Value as Json, json};

use super::super::cluster::{Arbiter, Cluster, ClusterNode, Heartbeat, Notify};
use super::super::failover::{Control, Failback, Failover, Monitor, Mount, Service, Step, Vip};
use super::super::lexer::{quote, quote_always};
use super::super::model::Resource;
use super::super::options::{Value, duration_text, write_value};
use super::super::schema::{self, Section};
use super::{Writer, json_value};

/// All options of a section, by the function that knows their values.
fn options(writer: &mut Writer, section: Section, get: impl Fn(&str) -> Option<Value>) {
    for spec in schema::options(section) {
        if let Some(value) = get(spec.name) {
            writer.option(spec, &value);
        }
    }
}

fn json_options(section: Section, get: impl Fn(&str) -> Option<Value>) -> Map<String, Json> {
    schema::options(section)
        .iter()
        .filter_map(|spec| Some((spec.name.to_owned(), json_value(get(spec.name)?))))
        .collect()
}

fn millis(time: std::time::Duration) -> u64 {
    time.as_millis() as u64
}

pub fn write_cluster(writer: &mut Writer, cluster: &Cluster) {
    if let Some(path) = &cluster.key_file {
        writer.line(&format!("key-file {};", quote(&path.to_string_lossy())));
    }
    // The times follow each other: they are written together.
    if !(writer.brief && cluster.heartbeat == Heartbeat::default()) {
        writer.section("heartbeat", |w| {
            for spec in schema::options(Section::Heartbeat) {
                if let Some(value) = cluster.heartbeat.get(spec.name) {
                    w.line(&format!("{} {};", spec.name, write_value(spec, &value)));
                }
            }
        });
    }
    for node in cluster.nodes.values() {
        writer.section(&format!("node {}", node.name.value), |w| {
            w.line(&format!("node-id {};", node.node_id.value));
            for path in &node.paths {
                let dev = path.dev.as_ref().map(|dev| format!(" dev {}", quote(dev)));
                let dev = dev.unwrap_or_default();
                w.line(&format!("path {}{dev};", path.address.value));
            }
        });
    }
    match &cluster.arbiter {
        Arbiter::Manual => writer.line("mode manual;"),
        Arbiter::UnsafeTwoNode => writer.line("mode unsafe-two-node;"),
        Arbiter::Witness(witness) => {
            writer.section(&format!("witness {}", witness.name.value), |w| {
                w.line(&format!("address {};", witness.address.value));
            });
        }
        Arbiter::Fence(fence) => writer.line(&format!(
            "fence-command {} timeout {};",
            quote_always(&fence.command),
            duration_text(millis(fence.timeout))
        )),
    }
    if let Some(watchdog) = &cluster.watchdog {
        writer.line(&format!(
            "watchdog {} timeout {};",
            quote(&watchdog.device.to_string_lossy()),
            duration_text(millis(watchdog.timeout))
        ));
    }
    if !cluster.notify.is_empty() {
        writer.section("notify", |w| {
            for sink in &cluster.notify {
                w.line(&notify(sink));
            }
        });
    }
}

fn notify(sink: &Notify) -> String {
    match sink {
        Notify::Exec(command) => format!("exec {};", quote_always(command)),
        Notify::Mail { to, via } => format!(
            "mail {} via {};",
            quote_always(to),
            quote_always(&via.to_string_lossy())
        ),
        Notify::Webhook(url) => format!("webhook {};", quote_always(url)),
        Notify::Syslog(facility) => format!("syslog {};", facility.name),
    }
}

pub fn json_cluster(cluster: &Cluster) -> Json {
    let nodes: Map<String, Json> = cluster
        .nodes
        .values()
        .map(|node| (node.name.value.clone(), json_node(node)))
        .collect();
    let mode = match &cluster.arbiter {
        Arbiter::Manual => "manual",
        Arbiter::UnsafeTwoNode => "unsafe-two-node",
        Arbiter::Witness(_) => "witness",
        Arbiter::Fence(_) => "fence-command",
    };
    let witness = match &cluster.arbiter {
        Arbiter::Witness(witness) => json!({
            "name": witness.name.value,
            "address": witness.address.value.to_string(),
        }),
        _ => Json::Null,
    };
    let fence = match &cluster.arbiter {
        Arbiter::Fence(fence) => json!({
            "command": fence.command,
            "timeout": millis(fence.timeout),
        }),
        _ => Json::Null,
    };
    let mut heartbeat = json_options(Section::Heartbeat, |name| cluster.heartbeat.get(name));
    let margin = json!(millis(cluster.heartbeat.margin()));
    heartbeat.insert("margin".to_owned(), margin);
    json!({
        "mode": mode,
        "key-file": cluster.key_file.as_ref().map(|path| path.to_string_lossy()),
        "heartbeat": heartbeat,
        "nodes": nodes,
        "witness": witness,
        "fence-command": fence,
        "watchdog": cluster.watchdog.as_ref().map(|watchdog| json!({
            "device": watchdog.device.to_string_lossy(),
            "timeout": millis(watchdog.timeout),
        })),
        "notify": cluster.notify.iter().map(json_notify).collect::<Vec<_>>(),
    })
}

fn json_node(node: &ClusterNode) -> Json {
    let paths = node.paths.iter().map(|path| {
        json!({
            "address": path.address.value.to_string(),
            "dev": path.dev,
        })
    });
    json!({
        "node-id": node.node_id.value,
        "paths": paths.collect::<Vec<_>>(),
    })
}

fn json_notify(sink: &Notify) -> Json {
    match sink {
        Notify::Exec(command) => json!({ "exec": command }),
        Notify::Mail { to, via } => json!({ "mail": to, "via": via.to_string_lossy() }),
        Notify::Webhook(url) => json!({ "webhook": url }),
        Notify::Syslog(facility) => json!({ "syslog": facility.name }),
    }
}

pub fn write_failover(writer: &mut Writer, failover: &Failover) {
    writer.line(&format!("start-policy {};", failover.start_policy.word()));
    if let Some(node) = &failover.preferred {
        writer.line(&format!("preferred {};", node.value));
    }
    writer.line(&match failover.failback {
        Failback::Never => "failback never;".to_owned(),
        Failback::WhenStable(time) => {
            format!("failback when-stable {};", duration_text(millis(time)))
        }
    });
    for step in &failover.steps {
        write_step(writer, &step.value);
    }
    if let Some(monitor) = &failover.monitor {
        writer.section("monitor", |w| write_monitor(w, monitor));
    }
    if let Some(group) = &failover.group {
        writer.line(&format!("group {};", group.value));
    }
    writer.section("stop-ladder", |w| {
        options(w, Section::StopLadder, |name| {
            failover.stop_ladder.get(name)
        });
    });
}

fn write_step(writer: &mut Writer, step: &Step) {
    match step {
        Step::Mount(mount) => writer.line(&format!(
            "mount {} volume {} fstype {} options {} fsck {};",
            quote(&mount.dir.to_string_lossy()),
            mount.volume,
            quote(&mount.fstype),
            quote(&mount.options),
            mount.fsck.word()
        )),
        Step::Vip(vip) => writer.line(&format!(
            "vip {}/{} dev {};",
            vip.address,
            vip.prefix,
            quote(&vip.dev)
        )),
        Step::Service(service) | Step::Run(service) => {
            let head = format!("{} {}", step.kind(), service.name);
            writer.section(&head, |w| write_service(w, service));
        }
    }
}

fn write_service(writer: &mut Writer, service: &Service) {
    match &service.control {
        Control::Commands { start, stop } => {
            writer.line(&format!("start {};", quote_always(start)));
            writer.line(&format!("stop {};", quote_always(stop)));
        }
        Control::Unit(unit) => writer.line(&format!("unit {};", quote(unit))),
    }
    if let Some(check) = &service.check {
        writer.line(&format!("check {};", quote_always(check)));
    }
    options(writer, Section::Service, |name| service.options.get(name));
}

fn write_monitor(writer: &mut Writer, monitor: &Monitor) {
    for address in &monitor.ping {
        writer.line(&format!("ping {address};"));
    }
    for interface in &monitor.interfaces {
        writer.line(&format!("interface {};", quote(interface)));
    }
    options(writer, Section::Monitor, |name| monitor.options.get(name));
}

/// `managed` says whether there is a section.
pub fn json_failover(resource: &Resource) -> Json {
    let start_policy = resource.start_policy().word();
    let Some(failover) = &resource.failover else {
        return json!({ "managed": false, "start-policy": start_policy });
    };
    let when_stable = match failover.failback {
        Failback::Never => None,
        Failback::WhenStable(time) => Some(millis(time)),
    };
    json!({
        "managed": true,
        "start-policy": start_policy,
        "preferred": failover.preferred.as_ref().map(|node| &node.value),
        "failback-when-stable": when_stable,
        "steps": failover.steps.iter().map(|step| json_step(&step.value)).collect::<Vec<_>>(),
        "monitor": failover.monitor.as_ref().map(json_monitor),
        "group": failover.group.as_ref().map(|group| &group.value),
        "stop-ladder": json_options(Section::StopLadder, |name| failover.stop_ladder.get(name)),
    })
}

fn json_step(step: &Step) -> Json {
    match step {
        Step::Mount(Mount {
            dir,
            volume,
            fstype,
            options,
            fsck,
        }) => json!({
            "step": "mount",
            "dir": dir.to_string_lossy(),
            "volume": volume,
            "fstype": fstype,
            "options": options,
            "fsck": fsck.word(),
        }),
        Step::Vip(Vip {
            address,
            prefix,
            dev,
        }) => json!({
            "step": "vip",
            "address": address.to_string(),
            "prefix": prefix,
            "dev": dev,
        }),
        Step::Service(service) | Step::Run(service) => json_service(step.kind(), service),
    }
}

fn json_service(kind: &str, service: &Service) -> Json {
    let mut object = json_options(Section::Service, |name| service.options.get(name));
    let (start, stop, unit) = match &service.control {
        Control::Commands { start, stop } => (Some(start), Some(stop), None),
        Control::Unit(unit) => (None, None, Some(unit)),
    };
    for (key, value) in [
        ("step", json!(kind)),
        ("name", json!(service.name)),
        ("start", json!(start)),
        ("stop", json!(stop)),
        ("unit", json!(unit)),
        ("check", json!(service.check)),
    ] {
        object.insert(key.to_owned(), value);
    }
    Json::Object(object)
}

fn json_monitor(monitor: &Monitor) -> Json {
    let mut object = json_options(Section::Monitor, |name| monitor.options.get(name));
    let ping: Vec<String> = monitor.ping.iter().map(ToString::to_string).collect();
    object.insert("ping".to_owned(), json!(ping));
    object.insert("interface".to_owned(), json!(monitor.interfaces));
    Json::Object(object)
}
