//! A resource as one of its hosts sees it: what the agent starts a data plane with.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::agent::protocol::{ResyncOptions, ServeConfig, ServeVolume};

use super::diagnostic::{Diagnostic, DiagnosticKind};
use super::model::{Config, DiskOptions, Host, MetaDisk, Resource, Volume};

/// A key file is a line of text.
const MAX_KEY_FILE: u64 = 4096;

/// One resource from one of its hosts.
#[derive(Clone, Copy, Debug)]
pub struct LocalResource<'a> {
    pub resource: &'a Resource,
    /// This host.
    pub own: &'a Host,
    /// The other one.
    pub peer: &'a Host,
}

impl Config {
    /// A resource by its name.
    pub fn resource(&self, name: &str) -> Result<&Resource, Diagnostic> {
        self.resources
            .iter()
            .find(|resource| resource.name.value == name)
            .ok_or_else(|| {
                let names = self.resources.iter().map(|r| r.name.as_str());
                let kind = DiagnosticKind::NoSuchResource {
                    resource: super::diagnostic::shown(name),
                    known: listed(names).unwrap_or_else(|| "no resources".to_owned()),
                };
                Diagnostic::new(kind).suggest(name, self.resources.iter().map(|r| r.name.as_str()))
            })
    }

    /// The resources that have a host of this name, as it sees them.
    pub fn resources_of<'a>(
        &'a self,
        node: &str,
    ) -> impl Iterator<Item = LocalResource<'a>> + use<'a> {
        let node = node.to_owned();
        self.resources
            .iter()
            .filter_map(move |resource| resource.for_node(&node).ok())
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    (!names.is_empty()).then(|| names.join(", "))
}

impl Resource {
    /// The resource as host `node` sees it.
    pub fn for_node(&self, node: &str) -> Result<LocalResource<'_>, Diagnostic> {
        let [first, second] = &self.hosts;
        let (own, peer) = if first.is_named(node) {
            (first, second)
        } else if second.is_named(node) {
            (second, first)
        } else {
            let names = self.hosts.iter().flat_map(|host| &host.names);
            let kind = DiagnosticKind::NoSuchHost {
                resource: self.name.value.clone(),
                node: super::diagnostic::shown(node),
                hosts: listed(names.map(|name| name.as_str())).unwrap_or_default(),
            };
            return Err(Diagnostic::new(kind));
        };
        Ok(LocalResource {
            resource: self,
            own,
            peer,
        })
    }

    /// True if neither a secret nor a key file protects its connection.
    pub fn is_unauthenticated(&self) -> bool {
        self.net.shared_secret.is_none() && self.key_file.is_none()
    }

    /// The key of the connection: the secret, else the contents of the cluster's key file; empty
    /// if there is neither. Reads the file: not a thing for a hot path.
    pub fn key(&self) -> Result<String, Diagnostic> {
        match (&self.net.shared_secret, &self.key_file) {
            (Some(secret), _) => Ok(secret.clone()),
            (None, Some(path)) => read_key(path),
            (None, None) => Ok(String::new()),
        }
    }
}

/// First line of a key file that only its owner can read.
pub fn read_key(path: &Path) -> Result<String, Diagnostic> {
    let fail = |fault: String| {
        Diagnostic::new(DiagnosticKind::KeyFile {
            file: path.display().to_string(),
            fault,
        })
    };
    let seen = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if !seen.is_file() {
        return Err(fail("not a regular file".to_owned()));
    }
    let file = File::open(path).map_err(|error| fail(error.to_string()))?;
    // Of what was opened, not of what the name means by now.
    let meta = file.metadata().map_err(|error| fail(error.to_string()))?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(fail(
            "readable or writable by others than its owner".to_owned(),
        ));
    }
    let mut text = String::new();
    file.take(MAX_KEY_FILE)
        .read_to_string(&mut text)
        .map_err(|error| fail(error.to_string()))?;
    match text.lines().next().map(str::trim) {
        Some(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(fail("it is empty".to_owned())),
    }
}

impl LocalResource<'_> {
    /// The configuration of the data plane; `key` is [`Resource::key`].
    pub fn serve_config(&self, key: String) -> ServeConfig {
        let net = &self.resource.net;
        let millis = |time: std::time::Duration| time.as_millis() as u64;
        ServeConfig {
            resource: self.resource.name.value.clone(),
            node: self.own.node_id,
            peer: self.peer.node_id,
            node_name: self.own.name().to_owned(),
            peer_name: self.peer.name().to_owned(),
            protocol: net.protocol.letter(),
            address: self.own.address.value.to_string(),
            peer_address: self.peer.address.value.to_string(),
            shared_secret: key.into(),
            ping_interval: millis(net.ping_interval),
            ping_timeout: millis(net.ping_timeout),
            timeout: millis(net.timeout),
            ko_count: net.ko_count,
            connect_interval: millis(net.connect_interval),
            al_extents: self.al_extents(),
            csums: net.csums_alg.is_some() && !net.csums_after_crash_only,
            guarded: self.resource.handlers.before_resync_target.is_some(),
            verify_alg: net.verify_alg.clone().unwrap_or_default(),
            verify_repair: net.verify_repair,
            votes: false,
            send_buffer: u32::try_from(net.send_buffer).unwrap_or(u32::MAX),
            volumes: self.own.volumes.iter().map(serve_volume).collect(),
        }
    }

    /// Slots of each volume's activity log: the same for all volumes, 67 to 65534.
    pub fn al_extents(&self) -> u16 {
        let extents = self.own.volumes.first().map_or(0, |v| v.options.al_extents);
        u16::try_from(extents).unwrap_or(u16::MAX)
    }

    /// A volume by its number.
    pub fn volume(&self, number: u16) -> Option<&Volume> {
        self.own
            .volumes
            .iter()
            .find(|volume| volume.number == number)
    }
}

fn serve_volume(volume: &Volume) -> ServeVolume {
    ServeVolume {
        volume: volume.number,
        front: volume.front.value.clone(),
        internal_meta: volume.meta.value == MetaDisk::Internal,
        indexed_meta: volume.meta_is_indexed(),
        resync: resync_options(&volume.options),
        cookie: 0,
    }
}

fn resync_options(options: &DiskOptions) -> ResyncOptions {
    let millis = |time: std::time::Duration| time.as_millis() as u64;
    ResyncOptions {
        rate: options.resync_rate,
        max_rate: options.max_rate,
        min_rate: options.min_rate,
        plan_ahead: millis(options.plan_ahead),
        delay_target: millis(options.delay_target),
        fill_target: options.fill_target,
    }
}
