//! Verbs that need the configuration alone: `dump`, `check`, `keygen`.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use crate::agent::failover::Managed;
use crate::agent::plan::{DiskPlan, Plan, Upkeep};
use crate::agent::protocol::{ErrorKind, ErrorReply, ServeConfig, Target};
use crate::config::{
    Arbiter, Config, Diagnostic, Failover, LocalResource, Spanned, StartPolicy, default_path, dump,
    read_key,
};
use crate::engine::NodeId;
use crate::failover::Lease;
use crate::failover::membership::Timing;
use crate::failover::pulse::{PathConfig, PulseConfig};

use super::{Global, Outcome, text};

/// Where the key is kept unless the configuration names another file.
pub const KEY_FILE: &str = "/etc/lockstep/cluster.key";
/// Bytes of a fresh key before it is written as text.
const KEY_BYTES: usize = 32;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the effective configuration with every default
    Dump {
        /// Only this resource
        #[arg(value_name = "RES|all", default_value = "all")]
        target: String,
    },
    /// Check the configuration: grammar, values, clashes of ports, addresses and devices
    Check,
    /// Make the key with which nodes know each other; copy it to the other nodes
    Keygen {
        /// Replace a key that is there
        #[arg(long)]
        rotate: bool,
    },
}

/// Carries out `verb`.
pub fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::Dump { target } => show(global, &target),
        Verb::Check => check(global),
        Verb::Keygen { rotate } => keygen(global, rotate),
    }
}

/// The configuration that this command line means.
fn load(global: &Global) -> Result<Config, ErrorReply> {
    let path = match &global.config {
        Some(path) => path.clone(),
        None => default_path().map_err(|note| config_error(&[note]))?,
    };
    Config::load(&path).map_err(|notes| config_error(&notes))
}

/// The resources of this node. Reads the configuration anew.
pub fn plans(global: &Global) -> Result<Vec<Plan>, ErrorReply> {
    let config = load(global)?;
    let node = global.node();
    let plans: Result<Vec<Plan>, ErrorReply> = config
        .resources_of(&node)
        .map(|local| plan(&config, &local))
        .collect();
    let plans = plans?;
    match config.resources.first() {
        // Not a node of this configuration: a misspelt --node, or a host name that has changed.
        Some(resource) if plans.is_empty() => match resource.for_node(&node) {
            Err(note) => Err(config_error(&[note])),
            Ok(_) => Ok(plans),
        },
        _ => Ok(plans),
    }
}

/// What this version does not carry out of what is configured for a resource.
fn unsupported(config: &Config, local: &LocalResource<'_>) -> Option<&'static str> {
    let cluster = &config.cluster;
    if let Some(failover) = &local.resource.failover {
        let plain = Failover {
            start_policy: failover.start_policy,
            preferred: failover.preferred.clone(),
            ..Failover::default()
        };
        if *failover != plain {
            return Some("`failover` with steps, groups, monitors or failback");
        }
    }
    match cluster.arbiter {
        Arbiter::Fence(_) => Some("`fence-command`"),
        Arbiter::UnsafeTwoNode => Some("`mode unsafe-two-node`"),
        _ if cluster.watchdog.is_some() => Some("`watchdog`"),
        _ if !cluster.notify.is_empty() => Some("`notify`"),
        Arbiter::Witness(_) | Arbiter::Manual => None,
    }
}

/// How the agent takes over by itself, where it does.
fn managed(config: &Config, local: &LocalResource<'_>) -> Option<Managed> {
    let failover = local.resource.failover.as_ref()?;
    let automatic = matches!(config.cluster.arbiter, Arbiter::Witness(_));
    let own = |name: &Spanned<String>| local.own.names.iter().any(|own| own.value == name.value);
    (automatic && failover.start_policy == StartPolicy::Auto).then(|| Managed {
        preferred_is_me: failover.preferred.as_ref().map(own),
        boot_wait: config.cluster.heartbeat.boot_wait,
    })
}

/// The heartbeats of this node, where votes are needed. `votes`: folder of its own votes.
pub fn pulse(global: &Global, votes: PathBuf) -> Result<Option<PulseConfig>, ErrorReply> {
    let config = load(global)?;
    let cluster = &config.cluster;
    let Arbiter::Witness(witness) = &cluster.arbiter else {
        return Ok(None);
    };
    let name = global.node();
    let refused = |reason: String, help: &str| ErrorReply::new(ErrorKind::Config, reason, help);
    let Some(me) = cluster.nodes.get(&name) else {
        return Err(refused(
            format!("this node, {name}, has no `node` in the `cluster` section"),
            "write one with its node-id and paths, or name the node with --node",
        ));
    };
    let others: Vec<_> = cluster
        .nodes
        .values()
        .filter(|node| node.name != me.name)
        .collect();
    let [peer] = others[..] else {
        return Err(refused(
            "votes are for clusters of two nodes in this version".to_owned(),
            "leave one other `node` in the `cluster` section",
        ));
    };
    let Some(key_file) = &cluster.key_file else {
        return Err(refused(
            "a cluster with a witness needs a `key-file`".to_owned(),
            "`lockstep keygen` makes one; copy it to the other node",
        ));
    };
    let key = read_key(key_file).map_err(|note| config_error(&[note]))?;
    let paths = me
        .paths
        .iter()
        .zip(&peer.paths)
        .map(|(own, peer)| PathConfig {
            own: own.address.value,
            peer: peer.address.value,
        });
    let times = &cluster.heartbeat;
    Ok(Some(PulseConfig {
        key: key.into_bytes(),
        me: NodeId(me.node_id.value),
        peer: NodeId(peer.node_id.value),
        paths: paths.collect(),
        witness: Some(witness.address.value),
        timing: Timing {
            interval: times.interval,
            warn_after: times.warn_after,
            dead_after: times.dead_after,
        },
        lease: Lease {
            length: times.lease,
            margin: times.margin(),
        },
        votes,
    }))
}

fn plan(config: &Config, local: &LocalResource<'_>) -> Result<Plan, ErrorReply> {
    let key = local.resource.key().map_err(|note| config_error(&[note]))?;
    let disks = local.own.volumes.iter().map(|volume| DiskPlan {
        volume: volume.number,
        data: volume.disk.value.clone(),
        meta: volume.meta_path().map(Path::to_path_buf),
        indexed: volume.meta_is_indexed(),
    });
    Ok(Plan {
        unsupported: unsupported(config, local),
        serve: ServeConfig {
            votes: matches!(config.cluster.arbiter, Arbiter::Witness(_)),
            ..local.serve_config(key)
        },
        disks: disks.collect(),
        auto: local.resource.start_policy() == StartPolicy::Auto,
        managed: managed(config, local),
        upkeep: Upkeep {
            after: { local.own.volumes.iter() }
                .filter_map(|volume| Some((volume.number, volume.options.resync_after.clone()?)))
                .collect(),
            max_syncs: config.global.max_syncs,
            schedule: local.resource.net.verify_schedule,
            handlers: local.resource.handlers.clone(),
        },
    })
}

/// Messages about the configuration as one error. Each but the first brings its own `error:` and
/// each but the last its own `help:`.
pub fn config_error(notes: &[Diagnostic]) -> ErrorReply {
    let texts: Vec<String> = notes.iter().map(Diagnostic::to_string).collect();
    let whole = texts.join("\n");
    let whole = whole.strip_prefix("error: ").unwrap_or(&whole);
    let help = notes.last().map(Diagnostic::help).unwrap_or_default();
    let reason = whole
        .strip_suffix(&format!("\nhelp: {help}"))
        .unwrap_or(whole);
    ErrorReply::new(ErrorKind::Config, reason, help)
}

fn show(global: &Global, target: &str) -> Outcome {
    let target = Target::parse(target)?;
    target.of_resource("dump")?;
    target.of_this_node("dump")?;
    let mut config = load(global)?;
    if let Some(name) = target.resource() {
        config
            .resource(name)
            .map_err(|note| ErrorReply::new(ErrorKind::Usage, &note.kind, note.help()))?;
        config
            .resources
            .retain(|resource| resource.name.value == name);
    }
    if global.json {
        text::pretty(&dump::json(&config));
    } else {
        text::out(&dump::text(&config));
    }
    Ok(())
}

fn check(global: &Global) -> Outcome {
    let config = load(global)?;
    let node = global.node();
    for resource in &config.resources {
        // A key that cannot be read keeps every connection of the resource from being made.
        if resource.for_node(&node).is_ok() {
            resource.key().map_err(|note| config_error(&[note]))?;
        }
    }
    if global.json {
        let warnings: Vec<String> = config.warnings.iter().map(Diagnostic::to_string).collect();
        text::pretty(&json!({"resources": config.resources.len(), "warnings": warnings}));
        return Ok(());
    }
    for warning in &config.warnings {
        text::line(&warning.to_string());
    }
    text::line(&format!("{} resources, no errors", config.resources.len()));
    Ok(())
}

fn keygen(global: &Global, rotate: bool) -> Outcome {
    let path = key_path(global)?;
    let key = fresh_key()?;
    if let Err(error) = make_key(&path, &key, rotate) {
        return Err(match error.kind() {
            IoKind::AlreadyExists => ErrorReply::new(
                ErrorKind::Refused,
                format!("{} exists", path.display()),
                "the nodes may be using it: --rotate replaces it, then copy it to the other nodes",
            ),
            _ => ErrorReply::new(
                ErrorKind::Failed,
                format!("cannot write {}: {error}", path.display()),
                "run this as root; does the folder exist?",
            ),
        });
    }
    if global.json {
        text::pretty(&json!({"key-file": path}));
    } else {
        text::line(&format!(
            "{} written; copy it to the other nodes, readable for root alone",
            path.display()
        ));
    }
    Ok(())
}

/// A new key, as text.
pub fn fresh_key() -> Result<String, ErrorReply> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("no random numbers: {error}"),
            "try again when the system is up",
        )
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a key file; one that is there is replaced only on request.
pub fn make_key(path: &Path, key: &str, replace: bool) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    let written = write_key(path, &draft, key, replace);
    if written.is_err() {
        // A draft that was left over stands in the way of the next try.
        let _ = fs::remove_file(&draft);
    }
    written
}

/// The key file of the configuration, if there is one that can be read.
fn key_path(global: &Global) -> Result<PathBuf, ErrorReply> {
    if global.config.is_none() && default_path().is_err() {
        return Ok(PathBuf::from(KEY_FILE));
    }
    let named = load(global)?.cluster.key_file;
    Ok(named.unwrap_or_else(|| PathBuf::from(KEY_FILE)))
}

/// Writes the key whole or not at all, for root alone.
fn write_key(path: &Path, draft: &Path, key: &str, replace: bool) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if !replace && path.symlink_metadata().is_ok() {
        return Err(IoKind::AlreadyExists.into());
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(draft)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    if replace {
        fs::rename(draft, path)
    } else {
        // Unlike a rename, a link never replaces a key that appeared meanwhile.
        fs::hard_link(draft, path)?;
        fs::remove_file(draft)
    }
}
