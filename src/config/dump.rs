//! The effective configuration, with every default, as text in the same grammar and as JSON.
//!
//! The text says all that the model holds: parsed again, it gives an equal [`Config`].

mod failover;

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use crate::agent::protocol::FrontEnd;

use super::lexer::quote;
use super::model::{Config, Host, MetaDisk, Resource, StartPolicy, Volume};
use super::options::{Value, default_value, write_value};
use super::place::{write_device, write_meta};
use super::schema::{self, Section, Spec, Support};

impl StartPolicy {
    fn word(self) -> &'static str {
        match self {
            StartPolicy::Auto => "auto",
            StartPolicy::Manual => "manual",
        }
    }
}

/// The options that a dump shows, with their values. What has no effect is left out.
fn effective(resource: &Resource, section: Section) -> Vec<(&'static Spec, Value)> {
    let disk = resource.hosts.iter().flat_map(|host| &host.volumes).next();
    schema::options(section)
        .iter()
        .filter(|spec| matches!(spec.support, Support::Implemented | Support::Only(_)))
        .filter_map(|spec| {
            let own = match section {
                Section::Net => resource.net.get(spec.name),
                Section::Disk => disk.and_then(|volume| volume.options.get(spec.name)),
                _ => None,
            };
            let value = own.or_else(|| match spec.support {
                Support::Only(_) => default_value(spec),
                _ => None,
            })?;
            Some((spec, value))
        })
        .collect()
}

/// The sections of options that a resource has.
const SECTIONS: [(Section, &str); 3] = [
    (Section::Net, "net"),
    (Section::Disk, "disk"),
    (Section::Options, "options"),
];

/// Text with indentation.
#[derive(Default)]
struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn line(&mut self, line: &str) {
        let indent = self.depth * 4;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    fn section(&mut self, head: &str, body: impl FnOnce(&mut Writer)) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
        body(self);
        self.depth -= 1;
        self.line("}");
    }
}

/// The configuration as text. Holds the secrets, as the file does.
pub fn text(config: &Config) -> String {
    let mut writer = Writer::default();
    writer.section("cluster", |w| failover::write_cluster(w, &config.cluster));
    for resource in &config.resources {
        writer.section(&format!("resource {}", quote(&resource.name)), |w| {
            write_resource(w, resource);
        });
    }
    writer.text
}

fn write_resource(writer: &mut Writer, resource: &Resource) {
    for (section, name) in SECTIONS {
        writer.section(name, |w| {
            for (spec, value) in effective(resource, section) {
                w.line(&format!("{} {};", spec.name, write_value(spec, &value)));
            }
        });
    }
    for host in &resource.hosts {
        let names: Vec<String> = host.names.iter().map(|name| quote(name)).collect();
        writer.section(&format!("on {}", names.join(" ")), |w| {
            w.line(&format!("address {} {};", family(host), host.address.value));
            w.line(&format!("node-id {};", host.node_id));
            for volume in &host.volumes {
                w.section(&format!("volume {}", volume.number), |w| {
                    w.line(&format!("device {};", quote(&write_device(&volume.front))));
                    w.line(&format!("disk {};", quote(&volume.disk.to_string_lossy())));
                    w.line(&format!("meta-disk {};", write_meta(&volume.meta)));
                });
            }
        });
    }
    match &resource.failover {
        Some(section) => {
            writer.section("failover", |w| failover::write_failover(w, section));
        }
        None => writer.line("# no failover section: start-policy auto, promoted by hand"),
    }
}

fn family(host: &Host) -> &'static str {
    if host.address.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    }
}

/// The configuration as JSON. Sizes are in bytes, times in milliseconds. Holds the secrets.
pub fn json(config: &Config) -> Json {
    json!({
        "cluster": failover::json_cluster(&config.cluster),
        "resources": config.resources.iter().map(json_resource).collect::<Vec<_>>(),
    })
}

fn json_resource(resource: &Resource) -> Json {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(resource.name.value));
    for (section, name) in SECTIONS {
        let options: Map<String, Json> = effective(resource, section)
            .into_iter()
            .map(|(spec, value)| (spec.name.to_owned(), json_value(value)))
            .collect();
        object.insert(name.to_owned(), Json::Object(options));
    }
    let hosts: Vec<Json> = resource.hosts.iter().map(json_host).collect();
    object.insert("hosts".to_owned(), Json::Array(hosts));
    let failover = failover::json_failover(resource);
    object.insert("failover".to_owned(), failover);
    Json::Object(object)
}

fn json_value(value: Value) -> Json {
    match value {
        Value::Flag(flag) => json!(flag),
        Value::Number(number) => json!(number),
        Value::Text(text) => json!(text),
    }
}

fn json_host(host: &Host) -> Json {
    let names: Vec<&str> = host.names.iter().map(|name| name.as_str()).collect();
    json!({
        "names": names,
        "node-id": host.node_id,
        "address": host.address.value.to_string(),
        "volumes": host.volumes.iter().map(json_volume).collect::<Vec<_>>(),
    })
}

fn json_volume(volume: &Volume) -> Json {
    let minor = match volume.front.value {
        FrontEnd::Ublk { minor } => Some(minor),
        FrontEnd::NbdUnix { .. } | FrontEnd::NbdTcp { .. } => None,
    };
    let meta = match &volume.meta.value {
        MetaDisk::Internal => "internal".into(),
        MetaDisk::External { path, .. } => path.to_string_lossy(),
    };
    json!({
        "volume": volume.number,
        "device": write_device(&volume.front),
        "minor": minor,
        "disk": volume.disk.to_string_lossy(),
        "meta-disk": meta,
    })
}
