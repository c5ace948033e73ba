//! The effective configuration, with every default, as text in the same grammar and as JSON.
//!
//! The text says all that the model holds: parsed again, it gives an equal [`Config`]. So does
//! [`brief`], which leaves out what is not different from a default.

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

/// Options with their values.
type Options = Vec<(&'static Spec, Value)>;

/// The options that a dump shows, with their values. What has no effect is left out, and what
/// differs between the volumes stands there.
fn effective(resource: &Resource, section: Section) -> Options {
    shown(section, |name| match section {
        Section::Net => resource.net.get(name),
        Section::Disk => common(resource, name),
        Section::Handlers => resource.handlers.get(name),
        _ => None,
    })
}

fn shown(section: Section, value: impl Fn(&str) -> Option<Value>) -> Options {
    schema::options(section)
        .iter()
        .filter(|spec| matches!(spec.support, Support::Implemented | Support::Only(_)))
        .filter_map(|spec| {
            let value = value(spec.name).or_else(|| match spec.support {
                Support::Only(_) => default_value(spec),
                _ => None,
            })?;
            Some((spec, value))
        })
        .collect()
}

/// The value of an option of `disk` that all volumes share.
fn common(resource: &Resource, name: &str) -> Option<Value> {
    let volumes = resource.hosts.iter().flat_map(|host| &host.volumes);
    let mut values = volumes.map(|volume| volume.options.get(name));
    let first = values.next()?;
    values
        .all(|other| other == first)
        .then_some(first)
        .flatten()
}

/// The options of a volume that it does not share with all others.
fn own(resource: &Resource, volume: &Volume) -> Options {
    let own = shown(Section::Disk, |name| volume.options.get(name));
    let differs = |(spec, value): &(&Spec, Value)| {
        matches!(spec.support, Support::Implemented)
            && common(resource, spec.name).as_ref() != Some(value)
    };
    own.into_iter().filter(differs).collect()
}

/// The sections of options that a resource has.
const SECTIONS: [(Section, &str); 4] = [
    (Section::Net, "net"),
    (Section::Disk, "disk"),
    (Section::Handlers, "handlers"),
    (Section::Options, "options"),
];

/// Text with indentation.
#[derive(Default)]
struct Writer {
    text: String,
    depth: usize,
    /// Defaults and empty sections are left out.
    brief: bool,
}

impl Writer {
    fn line(&mut self, line: &str) {
        let indent = self.depth * 4;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    fn options(&mut self, options: Options) {
        for (spec, value) in options {
            self.option(spec, &value);
        }
    }

    fn section(&mut self, head: &str, body: impl FnOnce(&mut Writer)) {
        let before = self.text.len();
        self.line(&format!("{head} {{"));
        let empty = self.text.len();
        self.depth += 1;
        body(self);
        self.depth -= 1;
        if self.brief && self.text.len() == empty {
            self.text.truncate(before);
        } else {
            self.line("}");
        }
    }

    /// An option, unless it is a default that is left out.
    fn option(&mut self, spec: &Spec, value: &Value) {
        if !(self.brief && default_value(spec).as_ref() == Some(value)) {
            self.line(&format!("{} {};", spec.name, write_value(spec, value)));
        }
    }
}

/// The configuration as text. Holds the secrets, as the file does.
pub fn text(config: &Config) -> String {
    write(config, Writer::default())
}

/// The configuration as somebody would write it, without what goes without saying.
pub fn brief(config: &Config) -> String {
    let writer = Writer {
        brief: true,
        ..Writer::default()
    };
    write(config, writer)
}

fn write(config: &Config, mut writer: Writer) -> String {
    writer.section("global", |w| {
        w.options(shown(Section::Global, |name| config.global.get(name)));
    });
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
        writer.section(name, |w| w.options(effective(resource, section)));
    }
    for host in &resource.hosts {
        let names: Vec<String> = host.names.iter().map(|name| quote(name)).collect();
        writer.section(&format!("on {}", names.join(" ")), |w| {
            w.line(&format!("address {} {};", family(host), host.address.value));
            w.line(&format!("node-id {};", host.node_id));
            match host.volumes.as_slice() {
                [only] if only.number == 0 && w.brief => write_volume(w, resource, only),
                volumes => {
                    for volume in volumes {
                        let head = format!("volume {}", volume.number);
                        w.section(&head, |w| write_volume(w, resource, volume));
                    }
                }
            }
        });
    }
    match &resource.failover {
        Some(section) => {
            writer.section("failover", |w| failover::write_failover(w, section));
        }
        None if writer.brief => {}
        None => writer.line("# no failover section: start-policy auto, promoted by hand"),
    }
}

fn write_volume(writer: &mut Writer, resource: &Resource, volume: &Volume) {
    writer.line(&format!("device {};", quote(&write_device(&volume.front))));
    writer.line(&format!("disk {};", quote(&volume.disk.to_string_lossy())));
    writer.line(&format!("meta-disk {};", write_meta(&volume.meta)));
    let own = own(resource, volume);
    if !own.is_empty() {
        writer.section("disk", |w| w.options(own));
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
        "global": json_options(shown(Section::Global, |name| config.global.get(name))),
        "cluster": failover::json_cluster(&config.cluster),
        "resources": config.resources.iter().map(json_resource).collect::<Vec<_>>(),
    })
}

fn json_resource(resource: &Resource) -> Json {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(resource.name.value));
    for (section, name) in SECTIONS {
        let options = json_options(effective(resource, section));
        object.insert(name.to_owned(), options);
    }
    let host = |host| json_host(resource, host);
    let hosts: Vec<Json> = resource.hosts.iter().map(host).collect();
    object.insert("hosts".to_owned(), Json::Array(hosts));
    let failover = failover::json_failover(resource);
    object.insert("failover".to_owned(), failover);
    Json::Object(object)
}

fn json_options(options: Options) -> Json {
    let named = options.into_iter();
    let named = named.map(|(spec, value)| (spec.name.to_owned(), json_value(value)));
    Json::Object(named.collect())
}

fn json_value(value: Value) -> Json {
    match value {
        Value::Flag(flag) => json!(flag),
        Value::Number(number) => json!(number),
        Value::Text(text) => json!(text),
    }
}

fn json_host(resource: &Resource, host: &Host) -> Json {
    let volume = |volume| json_volume(resource, volume);
    let names: Vec<&str> = host.names.iter().map(|name| name.as_str()).collect();
    json!({
        "names": names,
        "node-id": host.node_id,
        "address": host.address.value.to_string(),
        "volumes": host.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}

fn json_volume(resource: &Resource, volume: &Volume) -> Json {
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
        // What it does not share with the other volumes.
        "options": json_options(own(resource, volume)),
    })
}
