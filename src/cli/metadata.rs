//! Verbs about metadata. They work on the disks alone; the exclusive right to a disk keeps them
//! apart from a data plane that has it.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::agent::disks::refusal;
use crate::agent::plan::{DiskPlan, Plan};
use crate::agent::protocol::{ErrorKind, ErrorReply, Target};
use crate::engine::NodeId;
use crate::store::create::{Contents, CreateError, CreateOptions, CreateReport, Creation};
use crate::store::device::Disk;
use crate::store::dump::{Dump, dump};
use crate::store::probe::Signature;
use crate::store::{LayoutError, MAX_PEERS, Medium, NO_INDEX, Placement, RecoverError};

use super::offline::plans;
use super::{Global, Outcome, text};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write fresh metadata; refused on a disk that is in use or carries something known
    CreateMd {
        #[command(flatten)]
        of: Of,
        /// Although the disk carries something known: it is lost
        #[arg(long)]
        force: bool,
        /// Peers that the metadata has room for
        #[arg(long, value_name = "N", default_value_t = 1,
              value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PEERS)))]
        max_peers: u8,
    },
    /// Show the metadata
    DumpMd(Of),
}

#[derive(Args, Debug)]
pub struct Of {
    /// Resource, volume, or all
    #[arg(value_name = "RES|RES/VOL|all")]
    target: String,
}

/// Carries out `verb`.
pub fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::CreateMd {
            of,
            force,
            max_peers,
        } => create(
            disks(global, "create-md", &of.target)?,
            global.json,
            force,
            max_peers,
        ),
        Verb::DumpMd(of) => show(disks(global, "dump-md", &of.target)?, global.json),
    }
}

fn create(disks: Vec<Place>, json: bool, force: bool, max_peers: u8) -> Outcome {
    // Every disk is looked at before anything is written to one.
    let mut ready = Vec::new();
    for (plan, disk) in disks {
        let options = CreateOptions {
            data: disk.data.clone(),
            meta: disk.meta.clone(),
            indexed: disk.indexed,
            node: NodeId(plan.serve.node),
            max_peers,
            force,
        };
        let creation = Creation::prepare(&options).map_err(|error| create_refusal(&error))?;
        ready.push((format!("{}/{}", plan.name(), disk.volume), disk, creation));
    }
    let mut reports = Vec::new();
    for (name, disk, creation) in ready {
        let report = creation.write().map_err(|error| create_refusal(&error))?;
        if json {
            reports.push(json!({"volume": name, "created": report}));
        } else {
            tell(&name, &disk, &report);
        }
    }
    if json {
        text::pretty(&Value::Array(reports));
    }
    Ok(())
}

fn tell(name: &str, disk: &DiskPlan, report: &CreateReport) {
    for signature in &report.forced {
        text::line(&format!("{name}: overruled by --force: {signature}"));
    }
    let place = match &disk.meta {
        None => format!("at the end of {}", disk.data.display()),
        Some(meta) => format!("on {}", meta.display()),
    };
    text::line(&format!(
        "{name}: {} KiB of metadata written {place}; {} KiB usable",
        report.metadata_bytes / 1024,
        report.usable / 1024
    ));
}

fn create_refusal(error: &CreateError) -> ErrorReply {
    let (kind, help) = match error {
        CreateError::Open(error) => return refusal(error),
        CreateError::Signature {
            path,
            signatures,
            contents,
        } => {
            let help = in_the_way(path, signatures, *contents);
            return ErrorReply::new(ErrorKind::Refused, error, help);
        }
        CreateError::InUse { .. } => (
            ErrorKind::Refused,
            "unmount it or take it out of use; there is no option that overrides this",
        ),
        CreateError::Layout {
            source: LayoutError::IndexTooSmall { .. },
            ..
        } => (ErrorKind::Refused, NO_INDEX),
        CreateError::Layout { .. } => (
            ErrorKind::Refused,
            "use a larger disk, fewer --max-peers, or `meta-disk` on a device of its own",
        ),
        CreateError::Read { .. } | CreateError::Write { .. } => {
            (ErrorKind::Failed, "look for disk errors in the kernel log")
        }
        CreateError::Unverified { .. } | CreateError::Verify { .. } => {
            (ErrorKind::Failed, "do not use this disk")
        }
        CreateError::Random(_) => (ErrorKind::Failed, "try again when the system is up"),
    };
    ErrorReply::new(kind, error, help)
}

/// What to do about something known on a disk.
fn in_the_way(path: &Path, signatures: &[Signature], contents: Contents) -> String {
    if signatures.iter().all(Signature::is_ours) {
        return "`lockstep dump-md` shows it; --force replaces it, and the node then takes its data \
                from the peer"
            .to_owned();
    }
    let clear = format!(
        "if nobody needs that any more, clear it with `wipefs -a {}` or repeat with --force",
        path.display()
    );
    match contents {
        Contents::Metadata => clear,
        Contents::Data { usable: None } => {
            "repeat with --force to replicate the disk as it is: its metadata has a disk of its own"
                .to_owned()
        }
        Contents::Data {
            usable: Some(bytes),
        } => format!(
            "{clear}; a file system that shall be kept must first be made smaller than {bytes} \
             bytes, or get a `meta-disk` of its own"
        ),
    }
}

fn show(disks: Vec<Place>, json: bool) -> Outcome {
    let mut all = Vec::new();
    let mut usable = Ok(());
    for (plan, disk) in disks {
        let found = look(&disk)?;
        if let Some(refused) = &found.refused {
            usable = usable.and(Err(no_metadata(&disk, refused)));
        }
        let mut value = serde_json::to_value(&found)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))?;
        let name = format!("{}/{}", plan.name(), disk.volume);
        if json {
            value["volume"] = json!(name);
            all.push(value);
        } else {
            text::line(&name);
            text::out(&tree(&value, 1));
        }
    }
    if json {
        text::pretty(&Value::Array(all));
    }
    usable
}

/// Metadata that cannot be used is a refusal, as at attach; a disk that cannot be read a failure.
fn no_metadata(disk: &DiskPlan, why: &RecoverError) -> ErrorReply {
    let place = disk.meta.as_ref().unwrap_or(&disk.data).display();
    let kind = match why.is_failure() {
        true => ErrorKind::Failed,
        false => ErrorKind::Refused,
    };
    ErrorReply::new(kind, format!("{place}: {why}"), why.help())
}

/// Reads the metadata of a volume, also while it is attached.
fn look(disk: &DiskPlan) -> Result<Dump, ErrorReply> {
    let open = |path| Disk::open_shared(path).map_err(|error| refusal(&error));
    let mut data = open(&disk.data)?;
    let mut meta = disk.meta.as_deref().map(open).transpose()?;
    let data_bytes = data.traits().bytes;
    let medium = Medium {
        placement: match &meta {
            None => Placement::Internal {
                device_bytes: data_bytes,
            },
            Some(meta) => Placement::External {
                data_bytes,
                meta_bytes: meta.traits().bytes,
            },
        },
        logical_block: data.traits().logical_block,
        volatile_cache: data.traits().volatile_cache,
        discard: data.traits().discard_zeroes,
    };
    dump(meta.as_mut().unwrap_or(&mut data), &medium).map_err(|error| no_metadata(disk, &error))
}

/// A value as indented lines.
fn tree(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let mut text = String::new();
    let lines = |map: &Map<String, Value>| {
        let mut text = String::new();
        for (key, value) in map {
            match value {
                Value::Null => {}
                Value::Object(_) => {
                    text.push_str(&format!("{indent}{key}:\n{}", tree(value, depth + 1)));
                }
                Value::Array(items) if items.iter().any(Value::is_object) => {
                    text.push_str(&format!("{indent}{key}:\n{}", tree(value, depth + 1)));
                }
                other => text.push_str(&format!("{indent}{key}: {}\n", word(other))),
            }
        }
        text
    };
    match value {
        Value::Object(map) => text.push_str(&lines(map)),
        Value::Array(items) => {
            for item in items {
                text.push_str(&tree(item, depth));
            }
        }
        other => text.push_str(&format!("{indent}{}\n", word(other))),
    }
    text
}

/// A value in one line.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// A volume's disks, with the resource that it belongs to.
type Place = (Plan, DiskPlan);

/// The disks of this node that `target` means.
fn disks(global: &Global, verb: &str, target: &str) -> Result<Vec<Place>, ErrorReply> {
    let target = Target::parse(target)?;
    target.of_this_node(verb)?;
    let mut found = Vec::new();
    for plan in plans(global)? {
        if target.resource().is_some_and(|name| name != plan.name()) {
            continue;
        }
        for disk in &plan.disks {
            let meant = match &target {
                Target::Volume(_, volume) => *volume == disk.volume,
                Target::All | Target::Resource(_) | Target::Peer(..) => true,
            };
            if meant {
                found.push((plan.clone(), disk.clone()));
            }
        }
    }
    if found.is_empty() {
        return Err(ErrorReply::new(
            ErrorKind::Usage,
            format!("{} has no such resource or volume", global.node()),
            "`lockstep dump` shows what the configuration says; is --node right?",
        ));
    }
    Ok(found)
}
