//! The typed configuration: what a file says after inheritance, defaults and checks.
//!
//! Nothing here needs another look at the file. Values that a clash can name keep their place
//! ([`Spanned`]); two configurations are equal when they say the same, wherever it is written.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::agent::protocol::FrontEnd;

use super::cluster::Cluster;
use super::diagnostic::Diagnostic;
use super::failover::Failover;
pub use super::options::{
    DataPath, DiskOptions, GlobalOptions, HandlerOptions, NetOptions, Protocol,
};
pub use super::place::MetaDisk;
use super::source::{SourceMap, Span};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    pub value: T,
    pub span: Span,
}

impl<T> Spanned<T> {
    /// `value` as written at `span`.
    pub fn new(value: T, span: Span) -> Spanned<T> {
        Spanned { value, span }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Spanned<T>) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub global: GlobalOptions,
    pub cluster: Cluster,
    /// In the order of the file.
    pub resources: Vec<Resource>,
    /// What does not prevent its use.
    pub warnings: Vec<Diagnostic>,
    /// Who has the third vote was said, not assumed.
    pub(super) arbiter_written: bool,
    pub(super) sources: SourceMap,
}

impl PartialEq for Config {
    fn eq(&self, other: &Config) -> bool {
        self.global == other.global
            && self.cluster == other.cluster
            && self.resources == other.resources
    }
}

/// One resource: volumes that share one connection, one write order and one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: Spanned<String>,
    pub net: NetOptions,
    pub handlers: HandlerOptions,
    /// The two hosts, in the order of the file. They have the same volume numbers.
    pub hosts: [Host; 2],
    /// What is started where the data is; `None` = promoted by hand.
    pub failover: Option<Failover>,
    /// Key file of the cluster, for a resource without a secret.
    pub(super) key_file: Option<PathBuf>,
}

impl Resource {
    /// Whether the agent starts it by itself.
    pub fn start_policy(&self) -> StartPolicy {
        self.failover
            .as_ref()
            .map(|failover| failover.start_policy)
            .unwrap_or_default()
    }
}

/// Whether the agent starts a resource by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartPolicy {
    /// When the agent starts.
    #[default]
    Auto,
    /// By `up`.
    Manual,
}

/// A host of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// At least one; the first is used in messages.
    pub names: Vec<Spanned<String>>,
    /// 0 to 15.
    pub node_id: u8,
    /// Where it listens, and the other dials.
    pub address: Spanned<SocketAddr>,
    /// By number, ascending; at least one.
    pub volumes: Vec<Volume>,
}

impl Host {
    /// The name used in messages.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", |name| name.as_str())
    }

    /// True if the host has this volume.
    pub fn has_volume(&self, number: u16) -> bool {
        self.volumes.iter().any(|volume| volume.number == number)
    }

    /// True if the host has this name.
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.value == name)
    }
}

/// A volume as one host has it.
#[derive(Clone, Debug)]
pub struct Volume {
    pub number: u16,
    /// How applications reach it.
    pub front: Spanned<FrontEnd>,
    /// Block device or regular file that holds the data.
    pub disk: Spanned<PathBuf>,
    pub meta: Spanned<MetaDisk>,
    pub options: DiskOptions,
    /// Where `resync-after` stands.
    pub(super) after_at: Option<Span>,
}

impl PartialEq for Volume {
    fn eq(&self, other: &Volume) -> bool {
        let said = |v: &Volume| {
            let (front, disk, meta) = (v.front.clone(), v.disk.clone(), v.meta.clone());
            (v.number, front, disk, meta, v.options.clone())
        };
        said(self) == said(other)
    }
}

impl Eq for Volume {}

impl Volume {
    /// Path of the metadata's own device or file; `None` if it is inside the data device.
    pub fn meta_path(&self) -> Option<&Path> {
        match &self.meta.value {
            MetaDisk::Internal => None,
            MetaDisk::External { path, .. } => Some(path),
        }
    }

    /// The metadata is on an index of a device.
    pub fn meta_is_indexed(&self) -> bool {
        matches!(self.meta.value, MetaDisk::External { indexed: true, .. })
    }
}
