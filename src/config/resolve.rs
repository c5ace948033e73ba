//! Draft to model: inheritance (`common`, resource, volume, host), implicit volume 0, derived node
//! ids, and what a resource must have.
//!
//! **Node ids.** If neither host has one, here or in `cluster`, they are derived, as the same on
//! both hosts: the host whose address has the higher CRC-32 (IEEE, of the text `IP:PORT` in its
//! canonical form) is 0, the other 1; equal sums are ordered by the text. One id alone is an error.

mod members;

use std::collections::{BTreeSet, HashMap};

use super::cluster::Cluster;
use super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES};
use super::failover::{Failover, Monitor, MonitorOptions, StopLadder};
use super::model::{
    Config, DiskOptions, GlobalOptions, HandlerOptions, Host, MetaDisk, NetOptions, Resource,
    Spanned, Volume,
};
use super::read::{Draft, DraftFailover, DraftHost, DraftResource, DraftVolume, Layer};
use super::source::{SourceMap, Span};

/// Makes the model. Errors are appended to `errors`; a resource with one is left out.
pub fn resolve(sources: SourceMap, draft: Draft, errors: &mut Vec<Diagnostic>) -> Config {
    let arbiter_written = draft.cluster.arbiter.is_some();
    let cluster = members::resolve(&sources, draft.cluster, errors);
    let mut resolver = Resolver {
        sources: &sources,
        common: &draft.common,
        cluster: &cluster,
        errors,
    };
    let global = GlobalOptions::resolve(&[&draft.global]);
    let mut resources: Vec<Resource> = Vec::new();
    let mut names: HashMap<&str, Span> = HashMap::new();
    for draft in &draft.resources {
        if resolver.errors.len() >= MAX_MESSAGES {
            break;
        }
        if let Some(first) = names.insert(&draft.name, draft.name.span) {
            let kind = DiagnosticKind::Duplicate {
                what: format!("resource {}", draft.name.value),
                first: resolver.place(first),
            };
            resolver.error(kind, draft.name.span);
        }
        // What was refused in a faulty one would be reported as missing.
        if !draft.faulty {
            resources.extend(resolver.resource(draft));
        }
    }
    Config {
        global,
        cluster,
        resources,
        warnings: draft.warnings,
        arbiter_written,
        sources,
    }
}

struct Resolver<'a> {
    sources: &'a SourceMap,
    common: &'a Layer,
    cluster: &'a Cluster,
    errors: &'a mut Vec<Diagnostic>,
}

impl Resolver<'_> {
    fn error(&mut self, kind: DiagnosticKind, span: Span) {
        self.errors
            .push(Diagnostic::new(kind).at(self.sources.locate(span)));
    }

    fn place(&self, span: Span) -> String {
        let at = self.sources.locate(span);
        format!("{}:{}:{}", at.file, at.line, at.column)
    }

    fn resource(&mut self, draft: &DraftResource) -> Option<Resource> {
        let name = &draft.name;
        let [first, second] = draft.hosts.as_slice() else {
            let kind = DiagnosticKind::HostCount {
                resource: name.value.clone(),
                count: draft.hosts.len(),
            };
            let span = draft.hosts.get(2).map_or(name.span, |host| host.span);
            self.error(kind, span);
            return None;
        };
        let net = NetOptions::resolve(&[&draft.layer.net, &self.common.net]);
        let fine = self.net_is_sound(draft, &net);
        // Which volume a bare statement was meant for is not known.
        if !self.not_mixed(draft) {
            return None;
        }
        let ids = self.node_ids(draft, first, second);
        let (first, second) = (self.host(draft, first), self.host(draft, second));
        let (mut first, mut second) = (first?, second?);
        (first.node_id, second.node_id) = ids?;
        if !self.same_volumes(draft, &first, &second) || !fine {
            return None;
        }
        Some(Resource {
            name: name.clone(),
            net,
            handlers: HandlerOptions::resolve(&[&draft.layer.handlers, &self.common.handlers]),
            hosts: [first, second],
            failover: draft.failover.as_ref().map(failover),
            key_file: self.cluster.key_file.clone(),
        })
    }

    /// Explicit and implicit volumes do not go together in one resource.
    fn not_mixed(&mut self, draft: &DraftResource) -> bool {
        let mut levels = draft
            .hosts
            .iter()
            .map(|host| &host.volumes)
            .chain([&draft.volumes]);
        let explicit = levels.clone().any(|level| level.explicit);
        match levels.find_map(|level| level.bare.as_ref()) {
            Some(word) if explicit => {
                let kind = DiagnosticKind::MixedVolumes {
                    resource: draft.name.value.clone(),
                    word: word.text.clone(),
                };
                self.error(kind, word.span);
                false
            }
            _ => true,
        }
    }

    fn net_is_sound(&mut self, draft: &DraftResource, net: &NetOptions) -> bool {
        let resource = &draft.name.value;
        let span = |name: &str| {
            [&draft.layer.net, &self.common.net]
                .iter()
                .find_map(|layer| layer.get(name))
                .map(|setting| setting.span)
        };
        let mut faults = Vec::new();
        for (other, limit) in [
            ("connect-int", net.connect_interval),
            ("ping-int", net.ping_interval),
        ] {
            if net.timeout >= limit {
                let kind = DiagnosticKind::TimeoutOrder {
                    resource: resource.clone(),
                    timeout: net.timeout.as_millis() as u64,
                    other,
                    limit: limit.as_millis() as u64,
                };
                faults.push((kind, span("timeout").or(span(other))));
            }
        }
        let keyless = net.shared_secret.is_none() && self.cluster.key_file.is_none();
        if net.cram_hmac_alg.is_some() && keyless {
            let resource = resource.clone();
            let kind = DiagnosticKind::SecretMissing { resource };
            faults.push((kind, span("cram-hmac-alg")));
        }
        let fine = faults.is_empty();
        for (kind, span) in faults {
            self.error(kind, span.unwrap_or(draft.name.span));
        }
        fine
    }

    /// The ids of the two hosts.
    fn node_ids(
        &mut self,
        draft: &DraftResource,
        first: &DraftHost,
        second: &DraftHost,
    ) -> Option<(u8, u8)> {
        let (a, b) = (self.written_id(first), self.written_id(second));
        let missing = match (a?, b?) {
            (Some(a), Some(b)) if a == b => {
                let kind = DiagnosticKind::NodeIdClash {
                    resource: draft.name.value.clone(),
                    first: name_of(first),
                    second: name_of(second),
                    id: a,
                };
                self.error(
                    kind,
                    second.node_id.as_ref().map_or(second.span, |id| id.span),
                );
                return None;
            }
            (Some(a), Some(b)) => return Some((a, b)),
            (None, None) => {
                // A missing address is reported where the host is made.
                let text = |host: &DraftHost| host.address.as_ref().map(|a| a.value.to_string());
                return Some(derived_ids(&text(first)?, &text(second)?));
            }
            (None, Some(_)) => first,
            (Some(_), None) => second,
        };
        let kind = DiagnosticKind::NodeIdMissing {
            resource: draft.name.value.clone(),
            host: name_of(missing),
        };
        self.error(kind, missing.span);
        None
    }

    /// The id written in the `on` section or in `cluster`; `None` if the two differ.
    fn written_id(&mut self, host: &DraftHost) -> Option<Option<u8>> {
        let own = host.node_id.as_ref();
        let cluster = host
            .names
            .iter()
            .find_map(|name| self.cluster.nodes.get(&name.value))
            .map(|node| &node.node_id);
        match (own, cluster) {
            (Some(own), Some(cluster)) if own != cluster => {
                let kind = DiagnosticKind::NodeIdDiffers {
                    host: name_of(host),
                    id: own.value,
                    cluster: cluster.value,
                };
                self.error(kind, own.span);
                None
            }
            (own, cluster) => Some(own.or(cluster).map(|id| id.value)),
        }
    }

    /// A host without its id.
    fn host(&mut self, draft: &DraftResource, host: &DraftHost) -> Option<Host> {
        let numbers: BTreeSet<u16> = draft
            .volumes
            .volumes
            .keys()
            .chain(host.volumes.volumes.keys())
            .copied()
            .collect();
        let missing = |what| DiagnosticKind::MissingStatement {
            resource: draft.name.value.clone(),
            host: name_of(host),
            what,
        };
        if numbers.is_empty() {
            self.error(missing("device"), host.span);
        }
        let address = match &host.address {
            Some(address) => Some(address.clone()),
            None => {
                self.error(missing("address"), host.span);
                None
            }
        };
        let count = numbers.len();
        let volumes: Vec<Volume> = numbers
            .into_iter()
            .filter_map(|number| self.volume(draft, host, number))
            .collect();
        if volumes.is_empty() || volumes.len() < count {
            return None;
        }
        Some(Host {
            names: host.names.clone(),
            node_id: 0,
            address: address?,
            volumes,
        })
    }

    /// A volume of a host, each value from the host's level, else from the resource's.
    fn volume(&mut self, draft: &DraftResource, host: &DraftHost, number: u16) -> Option<Volume> {
        let empty = DraftVolume::default();
        let near = host.volumes.volumes.get(&number).unwrap_or(&empty);
        let far = draft.volumes.volumes.get(&number).unwrap_or(&empty);
        let device = near.device.as_ref().or(far.device.as_ref()).cloned();
        let disk = near.disk.as_ref().or(far.disk.as_ref()).cloned();
        let meta = near.meta.as_ref().or(far.meta.as_ref()).cloned();
        for (what, there) in [("device", device.is_some()), ("disk", disk.is_some())] {
            if !there {
                let kind = DiagnosticKind::MissingInVolume {
                    resource: draft.name.value.clone(),
                    host: name_of(host),
                    volume: number,
                    what,
                };
                self.error(kind, host.span);
            }
        }
        let layers = [
            &near.options,
            &far.options,
            &draft.layer.disk,
            &self.common.disk,
        ];
        let options = DiskOptions::resolve(&layers);
        let after = layers.iter().find_map(|layer| layer.get("resync-after"));
        let after_at = after.map(|setting| setting.span);
        let disk = disk?;
        Some(Volume {
            number,
            front: device?,
            // DRBD 9 has the same default.
            meta: meta.unwrap_or(Spanned::new(MetaDisk::Internal, disk.span)),
            disk,
            options,
            after_at,
        })
    }

    fn same_volumes(&mut self, draft: &DraftResource, first: &Host, second: &Host) -> bool {
        let mut fine = true;
        for (host, other) in [(first, second), (second, first)] {
            for volume in &other.volumes {
                if host.volumes.iter().any(|own| own.number == volume.number) {
                    continue;
                }
                let kind = DiagnosticKind::VolumeMissing {
                    resource: draft.name.value.clone(),
                    host: host.name().to_owned(),
                    volume: volume.number,
                };
                self.error(kind, volume.disk.span);
                fine = false;
            }
        }
        // The activity log has one size in the data plane of a resource.
        let sizes: BTreeSet<u32> = first
            .volumes
            .iter()
            .chain(&second.volumes)
            .map(|volume| volume.options.al_extents)
            .collect();
        if sizes.len() > 1 {
            let kind = DiagnosticKind::AlExtentsDiffer {
                resource: draft.name.value.clone(),
            };
            self.error(kind, draft.name.span);
            fine = false;
        }
        fine
    }
}

fn failover(draft: &DraftFailover) -> Failover {
    let monitor = draft.monitor.as_ref().map(|monitor| Monitor {
        ping: monitor.ping.clone(),
        interfaces: monitor.interfaces.clone(),
        options: MonitorOptions::resolve(&[&monitor.settings]),
    });
    Failover {
        start_policy: value_of(&draft.start_policy),
        preferred: draft.preferred.clone(),
        failback: value_of(&draft.failback),
        steps: draft.steps.clone(),
        monitor,
        group: draft.group.clone(),
        stop_ladder: StopLadder::resolve(&[&draft.stop_ladder]),
    }
}

/// What is written, else the default.
fn value_of<T: Copy + Default>(written: &Option<Spanned<T>>) -> T {
    written.as_ref().map(|w| w.value).unwrap_or_default()
}

fn name_of(host: &DraftHost) -> String {
    host.names
        .first()
        .map(|name| name.value.clone())
        .unwrap_or_default()
}

/// The ids of two hosts that have none, by their addresses; see the module.
fn derived_ids(first: &str, second: &str) -> (u8, u8) {
    let key = |text: &str| (crc32fast::hash(text.as_bytes()), text.to_owned());
    if key(first) >= key(second) {
        (0, 1)
    } else {
        (1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_do_not_depend_on_the_order_of_the_file() {
        for (a, b) in [
            ("10.0.0.1:7789", "10.0.0.2:7789"),
            ("10.0.0.1:7789", "10.0.0.1:7790"),
            ("[::1]:1", "[::1]:2"),
        ] {
            let (first, second) = derived_ids(a, b);
            assert_ne!(first, second);
            assert_eq!(derived_ids(b, a), (second, first));
        }
        // Both nodes must agree across versions: the rule is part of the interface.
        // CRC-32 0x0D225999 and 0x8BB62B37.
        assert_eq!(derived_ids("10.0.0.1:7789", "10.0.0.2:7789"), (1, 0));
    }
}
