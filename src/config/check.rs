//! Clashes: things that two resources, or two volumes, of one host cannot share. And the warning
//! about connections without a key.
//!
//! How the sections for failover fit together is checked in `check/failover.rs`.
//!
//! Only the text is looked at: two names of one device (a symbolic link) are found when the second
//! is opened exclusively.

mod failover;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::agent::protocol::FrontEnd;

use super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES};
use super::model::{Config, Host, Resource};
use super::place::clean;
use super::source::Span;

pub use failover::{failover, manual};

/// A thing that a host has once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Thing {
    Minor(u32),
    /// A device or file, of data or metadata.
    Storage(PathBuf),
    /// A TCP port on an address.
    Listener(SocketAddr),
    /// A Unix socket that one volume's NBD server listens on.
    Socket(PathBuf),
}

impl Thing {
    fn name(&self) -> String {
        match self {
            Thing::Minor(minor) => format!("device minor {minor}"),
            Thing::Storage(path) => format!("disk {}", path.display()),
            Thing::Listener(address) => format!("address {address}"),
            Thing::Socket(path) => format!("socket {}", path.display()),
        }
    }
}

/// Who uses a thing.
#[derive(Clone, Debug)]
struct Use {
    user: String,
    span: Span,
}

/// Finds all clashes. Empty = none.
pub fn clashes(config: &Config) -> Vec<Diagnostic> {
    let mut checker = Checker {
        config,
        seen: HashMap::new(),
        reported: Vec::new(),
        errors: Vec::new(),
    };
    for resource in &config.resources {
        if checker.errors.len() >= MAX_MESSAGES {
            break;
        }
        let [first, second] = &resource.hosts;
        if first.address == second.address {
            let kind = DiagnosticKind::SameAddress {
                resource: resource.name.value.clone(),
                address: second.address.value.to_string(),
            };
            checker.error(kind, second.address.span);
        } else if first.address.value.is_ipv4() != second.address.value.is_ipv4() {
            let kind = DiagnosticKind::AddressFamilies {
                resource: resource.name.value.clone(),
                first: first.address.value.to_string(),
                second: second.address.value.to_string(),
            };
            checker.error(kind, second.address.span);
        }
        for host in &resource.hosts {
            checker.host(resource, host);
        }
    }
    checker.errors
}

/// Resources that any host could replicate with.
pub fn unauthenticated(config: &Config) -> Vec<Diagnostic> {
    config
        .resources
        .iter()
        .filter(|resource| resource.is_unauthenticated())
        .map(|resource| {
            let kind = DiagnosticKind::Unauthenticated {
                resource: resource.name.value.clone(),
            };
            Diagnostic::new(kind).at(config.sources.locate(resource.name.span))
        })
        .collect()
}

struct Checker<'a> {
    config: &'a Config,
    /// By host name and thing.
    seen: HashMap<(String, Thing), Use>,
    /// Pairs of places that were reported: a value that both hosts inherit clashes on both.
    reported: Vec<(Span, Span)>,
    errors: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn error(&mut self, kind: DiagnosticKind, span: Span) {
        self.errors
            .push(Diagnostic::new(kind).at(self.config.sources.locate(span)));
    }

    fn host(&mut self, resource: &Resource, host: &Host) {
        let name = &resource.name.value;
        let by = |user: String, span| Use { user, span };
        let replication = by(format!("resource {name}"), host.address.span);
        self.take(host, Thing::Listener(host.address.value), replication);
        for volume in &host.volumes {
            let user = format!("volume {name}/{}", volume.number);
            self.front(host, &volume.front, by(user.clone(), volume.front.span));
            self.not_own(resource, host, &volume.disk, volume.disk.span);
            let data = Thing::Storage(clean(&volume.disk));
            self.take(host, data, by(user.clone(), volume.disk.span));
            if let Some(path) = volume.meta_path() {
                self.not_own(resource, host, path, volume.meta.span);
                let user = format!("metadata of volume {name}/{}", volume.number);
                let meta = Thing::Storage(clean(path));
                self.take(host, meta, by(user, volume.meta.span));
            }
        }
    }

    /// A resource cannot keep its data on a device that it provides itself.
    fn not_own(&mut self, resource: &Resource, host: &Host, path: &Path, span: Span) {
        let path = clean(path);
        let is_own = |front: &FrontEnd| match front {
            FrontEnd::Ublk { minor } => ["/dev/ublkb", "/dev/drbd"]
                .iter()
                .any(|stem| path.as_os_str() == format!("{stem}{minor}").as_str()),
            FrontEnd::NbdUnix { .. } | FrontEnd::NbdTcp { .. } => false,
        };
        if host.volumes.iter().any(|volume| is_own(&volume.front)) {
            self.error_once(
                DiagnosticKind::OwnDevice {
                    resource: resource.name.value.clone(),
                    path: path.display().to_string(),
                },
                span,
            );
        }
    }

    /// Reports what both hosts inherit once.
    fn error_once(&mut self, kind: DiagnosticKind, span: Span) {
        if !self.reported.contains(&(span, span)) {
            self.reported.push((span, span));
            self.error(kind, span);
        }
    }

    fn front(&mut self, host: &Host, front: &FrontEnd, by: Use) {
        let thing = match front {
            FrontEnd::Ublk { minor } => Thing::Minor(*minor),
            FrontEnd::NbdUnix { path, .. } => Thing::Socket(clean(path.as_ref())),
            FrontEnd::NbdTcp { address, .. } => match address.parse() {
                Ok(address) => Thing::Listener(address),
                // The reader takes nothing else.
                Err(_) => return,
            },
        };
        self.take(host, thing, by);
    }

    /// Notes a use under each name of the host; reports the first clash.
    fn take(&mut self, host: &Host, thing: Thing, by: Use) {
        let clash = self.note(host, &thing, &by);
        if let Some(other) = clash {
            self.clash(host, &thing, &by, &other);
        }
    }

    fn note(&mut self, host: &Host, thing: &Thing, by: &Use) -> Option<Use> {
        let mut other = None;
        for name in &host.names {
            let key = (name.value.clone(), thing.clone());
            match self.seen.get(&key) {
                Some(first) => other = other.or_else(|| Some(first.clone())),
                None => {
                    self.seen.insert(key, by.clone());
                }
            }
        }
        other
    }

    fn clash(&mut self, host: &Host, thing: &Thing, by: &Use, other: &Use) {
        if self.reported.contains(&(by.span, other.span)) {
            return;
        }
        self.reported.push((by.span, other.span));
        let first = self.config.sources.locate(other.span);
        let kind = DiagnosticKind::Clash {
            what: thing.name(),
            host: host.name().to_owned(),
            user: by.user.clone(),
            other: other.user.clone(),
            first: format!("{}:{}:{}", first.file, first.line, first.column),
        };
        self.error(kind, by.span);
    }
}
