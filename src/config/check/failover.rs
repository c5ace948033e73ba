//! How `cluster` and `failover` fit together, and what they share with the rest: nodes, addresses,
//! volumes, groups.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::agent::protocol::FrontEnd;

use super::super::cluster::{Arbiter, ClusterNode};
use super::super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES};
use super::super::failover::{Failback, Failover, Mount, Step, Vip};
use super::super::model::{Config, Resource};
use super::super::source::Span;
use super::Use;

/// Finds all faults. Empty = none.
pub fn failover(config: &Config) -> Vec<Diagnostic> {
    let mut checker = Checker {
        config,
        errors: Vec::new(),
    };
    checker.nodes();
    checker.addresses();
    let mut vips = HashMap::new();
    let mut mounts = HashMap::new();
    let mut groups: HashMap<&str, (&Resource, &Failover)> = HashMap::new();
    for resource in &config.resources {
        if checker.errors.len() >= MAX_MESSAGES {
            break;
        }
        let Some(failover) = &resource.failover else {
            continue;
        };
        checker.members(resource);
        checker.preferred(resource, failover);
        for step in &failover.steps {
            match &step.value {
                Step::Mount(mount) => checker.mount(resource, mount, step.span, &mut mounts),
                Step::Vip(vip) => checker.vip(resource, vip, step.span, &mut vips),
                Step::Service(_) | Step::Run(_) => {}
            }
        }
        if let Some(group) = &failover.group {
            match groups.get(group.as_str()) {
                Some(first) => checker.group(first, (resource, failover), group.span),
                None => {
                    groups.insert(group, (resource, failover));
                }
            }
        }
    }
    checker.errors
}

/// Resources that are configured to move, where nobody said who lets them.
pub fn manual(config: &Config) -> Vec<Diagnostic> {
    let told = config.arbiter_written;
    config
        .resources
        .iter()
        .filter(|resource| resource.failover.as_ref().is_some_and(|f| f.acts()) && !told)
        .map(|resource| {
            let kind = DiagnosticKind::ManualFailover {
                resource: resource.name.value.clone(),
            };
            Diagnostic::new(kind).at(config.sources.locate(resource.name.span))
        })
        .collect()
}

struct Checker<'a> {
    config: &'a Config,
    errors: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    fn error(&mut self, kind: DiagnosticKind, span: Span) {
        self.errors
            .push(Diagnostic::new(kind).at(self.config.sources.locate(span)));
    }

    fn place(&self, span: Span) -> String {
        let at = self.config.sources.locate(span);
        format!("{}:{}:{}", at.file, at.line, at.column)
    }

    /// Ids and names of the members.
    fn nodes(&mut self) {
        let cluster = &self.config.cluster;
        let mut ids: HashMap<u8, &str> = HashMap::new();
        for node in cluster.nodes.values() {
            if let Some(first) = ids.insert(node.node_id.value, &node.name) {
                let kind = DiagnosticKind::SameNodeId {
                    first: first.to_owned(),
                    second: node.name.value.clone(),
                    id: node.node_id.value,
                };
                self.error(kind, node.node_id.span);
            }
        }
        if let Arbiter::Witness(witness) = &cluster.arbiter
            && cluster.nodes.contains_key(&witness.name.value)
        {
            let name = witness.name.value.clone();
            self.error(DiagnosticKind::WitnessIsNode { name }, witness.name.span);
        }
    }

    /// No path, witness or connection has the address of another.
    fn addresses(&mut self) {
        let mut taken: HashMap<SocketAddr, Use> = HashMap::new();
        // These were compared with each other already.
        for (address, by) in connections(self.config) {
            taken.entry(address).or_insert(by);
        }
        for (address, by) in members(self.config) {
            let Some(other) = taken.get(&address) else {
                taken.insert(address, by);
                continue;
            };
            let kind = DiagnosticKind::AddressTaken {
                address: address.to_string(),
                user: by.user,
                other: other.user.clone(),
                first: self.place(other.span),
            };
            self.error(kind, by.span);
        }
    }

    /// Both hosts are members that can hear each other. By hand it works without.
    fn members(&mut self, resource: &Resource) {
        let cluster = &self.config.cluster;
        if !cluster.arbiter.is_automatic() {
            return;
        }
        let mut nodes: Vec<&ClusterNode> = Vec::new();
        for host in &resource.hosts {
            let span = host.names.first().map_or(resource.name.span, |n| n.span);
            let (resource, host_name) = (resource.name.value.clone(), host.name().to_owned());
            match cluster.node_of(host) {
                None => {
                    let kind = DiagnosticKind::NotMember {
                        resource,
                        host: host_name,
                    };
                    self.error(kind, span);
                }
                Some(node) if node.paths.is_empty() => {
                    let kind = DiagnosticKind::NoPath {
                        resource,
                        host: host_name,
                    };
                    self.error(kind, node.name.span);
                }
                Some(node) => nodes.push(node),
            }
        }
        let [first, second] = nodes.as_slice() else {
            return;
        };
        let families = |node: &ClusterNode| -> Vec<bool> {
            let paths = node.paths.iter();
            paths.map(|path| path.address.value.is_ipv4()).collect()
        };
        if families(first) != families(second) {
            let kind = DiagnosticKind::PathsDiffer {
                resource: resource.name.value.clone(),
                first: first.name.value.clone(),
                second: second.name.value.clone(),
            };
            self.error(kind, second.name.span);
        }
    }

    fn preferred(&mut self, resource: &Resource, failover: &Failover) {
        let name = resource.name.value.clone();
        match &failover.preferred {
            Some(node) if resource.hosts.iter().all(|host| !host.is_named(node)) => {
                let hosts: Vec<&str> = resource.hosts.iter().map(|host| host.name()).collect();
                let kind = DiagnosticKind::PreferredUnknown {
                    resource: name,
                    node: node.value.clone(),
                    hosts: hosts.join(", "),
                };
                self.error(kind, node.span);
            }
            None if failover.failback != Failback::Never => {
                let kind = DiagnosticKind::FailbackNowhere { resource: name };
                self.error(kind, resource.name.span);
            }
            _ => {}
        }
    }

    fn mount(
        &mut self,
        resource: &'a Resource,
        mount: &Mount,
        span: Span,
        taken: &mut HashMap<(&'a str, PathBuf), Use>,
    ) {
        let mut faults = Vec::new();
        for host in &resource.hosts {
            let volume = host.volumes.iter().find(|v| v.number == mount.volume);
            let name = resource.name.value.clone();
            faults.extend(match volume.map(|volume| &volume.front.value) {
                None => Some(DiagnosticKind::MountVolume {
                    resource: name,
                    volume: mount.volume,
                }),
                Some(FrontEnd::NbdUnix { .. } | FrontEnd::NbdTcp { .. }) => {
                    Some(DiagnosticKind::MountNbd {
                        resource: name,
                        volume: mount.volume,
                    })
                }
                Some(FrontEnd::Ublk { .. }) => None,
            });
            let by = Use {
                user: format!("resource {}", resource.name.value),
                span,
            };
            for name in &host.names {
                let key = (name.as_str(), mount.dir.clone());
                match taken.get(&key) {
                    Some(other) if other.span != span => faults.push(DiagnosticKind::Clash {
                        what: format!("mount point {}", mount.dir.display()),
                        host: host.name().to_owned(),
                        user: by.user.clone(),
                        other: other.user.clone(),
                        first: self.place(other.span),
                    }),
                    Some(_) => {}
                    None => {
                        taken.insert(key, by.clone());
                    }
                }
            }
        }
        // Both hosts have the same fault.
        if let Some(kind) = faults.into_iter().next() {
            self.error(kind, span);
        }
    }

    fn vip(
        &mut self,
        resource: &Resource,
        vip: &Vip,
        span: Span,
        taken: &mut HashMap<IpAddr, Use>,
    ) {
        let by = Use {
            user: format!("resource {}", resource.name.value),
            span,
        };
        let address = vip.address.to_string();
        if let Some(other) = taken.insert(vip.address, by.clone()) {
            let kind = DiagnosticKind::AddressTaken {
                address,
                user: by.user,
                other: other.user,
                first: self.place(other.span),
            };
            return self.error(kind, span);
        }
        let owner = connections(self.config)
            .into_iter()
            .chain(members(self.config))
            .find(|(own, _)| own.ip() == vip.address);
        // On one machine everything may have the loopback address.
        if let Some((_, owner)) = owner
            && !vip.address.is_loopback()
        {
            let owner = owner.user;
            self.error(DiagnosticKind::VipIsHost { address, owner }, span);
        }
    }

    fn group(
        &mut self,
        first: &(&Resource, &Failover),
        second: (&Resource, &Failover),
        span: Span,
    ) {
        let group = second.1.group.as_ref().map_or("", |group| group.as_str());
        let names = |resource: &Resource| {
            let mut names: Vec<String> = resource
                .hosts
                .iter()
                .map(|host| host.name().to_owned())
                .collect();
            names.sort();
            names
        };
        let group = group.to_owned();
        let (one, other) = (first.0.name.value.clone(), second.0.name.value.clone());
        if names(first.0) != names(second.0) {
            let kind = DiagnosticKind::GroupHosts {
                group,
                first: one,
                second: other,
            };
            self.error(kind, span);
        } else if let (Some(a), Some(b)) = (&first.1.preferred, &second.1.preferred)
            && a != b
        {
            let kind = DiagnosticKind::GroupPreferred {
                group,
                first: one,
                second: other,
            };
            self.error(kind, span);
        }
    }
}

/// The addresses that hosts of resources listen on.
fn connections(config: &Config) -> Vec<(SocketAddr, Use)> {
    let mut found = Vec::new();
    for resource in &config.resources {
        for host in &resource.hosts {
            let user = format!("resource {} on {}", resource.name.value, host.name());
            let span = host.address.span;
            found.push((host.address.value, Use { user, span }));
            for volume in &host.volumes {
                if let FrontEnd::NbdTcp { address, .. } = &volume.front.value
                    && let Ok(address) = address.parse()
                {
                    let number = volume.number;
                    let user = format!("volume {}/{number}", resource.name.value);
                    let span = volume.front.span;
                    found.push((address, Use { user, span }));
                }
            }
        }
    }
    found
}

/// The addresses of paths and of the witness.
fn members(config: &Config) -> Vec<(SocketAddr, Use)> {
    let mut found = Vec::new();
    for node in config.cluster.nodes.values() {
        for path in &node.paths {
            let user = format!("a path of node {}", node.name.value);
            let span = path.address.span;
            found.push((path.address.value, Use { user, span }));
        }
    }
    if let Arbiter::Witness(witness) = &config.cluster.arbiter {
        let user = format!("witness {}", witness.name.value);
        let span = witness.address.span;
        found.push((witness.address.value, Use { user, span }));
    }
    found
}
