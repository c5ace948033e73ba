//! From what the sources say to the model, and to what has to be asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::agent::protocol::FrontEnd;

use super::super::cluster::{Cluster, ClusterNode, Heartbeat, NodePath, Notify, Watchdog};
use super::super::diagnostic::{Diagnostic, DiagnosticKind, shown};
use super::super::failover::{
    CheckOptions, Control, Failback, Failover, Fsck, Monitor, MonitorOptions, Mount, Service, Step,
    Vip,
};
use super::super::model::{
    Config, DiskOptions, HandlerOptions, Host, MetaDisk, NetOptions, Resource, Spanned, Volume,
};
use super::super::options::{Setting, Settings, Value};
use super::super::place::parse_device;
use super::super::schema::{self, Kind, Section};
use super::super::source::{SourceMap, Span};
use super::heartbeat::{Element, Files, Group, HaConf};
use super::keepalived::{Script, Vrrp};
use super::{Failure, Request, nfs};

/// Port of connections that no source names.
const REPLICATION_PORT: u16 = 7789;
/// Port of heartbeats that nobody chose.
const HEARTBEAT_PORT: u16 = 7794;
/// `failback` where the old stack went back at once.
const STABLE: Duration = Duration::from_secs(300);
/// Program that sends mail.
const SENDMAIL: &str = "/usr/sbin/sendmail";
/// Interface of an address that names none, if no other is known.
const INTERFACE: &str = "eth0";

/// A finished model without its key.
#[derive(Clone, Debug)]
pub struct Built {
    pub config: Config,
    pub notes: Vec<String>,
}

/// The steps of one resource by their kind: they are started in this order.
#[derive(Default)]
struct Plan {
    mounts: Vec<Mount>,
    services: Vec<Step>,
    vips: Vec<Vip>,
    preferred: Option<String>,
    failback: Failback,
    ping: Vec<IpAddr>,
    interfaces: Vec<String>,
}

/// See the module's description.
pub struct Builder<'a> {
    request: &'a Request,
    config: Config,
    /// Of the files that are not DRBD's.
    sources: SourceMap,
    notes: Vec<String>,
    needs: Vec<String>,
    errors: Vec<Diagnostic>,
    /// By the place of the resource in the configuration.
    plans: BTreeMap<usize, Plan>,
    /// Where nodes hear heartbeats by what the sources say.
    heard: BTreeMap<String, IpAddr>,
    /// The sources name no address for heartbeats.
    ask_addresses: bool,
    times: Settings,
    watchdog: Option<PathBuf>,
    notify: Vec<Notify>,
}

fn here<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Span::default())
}

impl<'a> Builder<'a> {
    pub fn new(
        request: &'a Request,
        drbd: Config,
        sources: SourceMap,
        notes: Vec<String>,
    ) -> Builder<'a> {
        let mut builder = Builder {
            request,
            config: drbd,
            sources,
            notes,
            needs: Vec::new(),
            errors: Vec::new(),
            plans: BTreeMap::new(),
            heard: BTreeMap::new(),
            ask_addresses: false,
            times: Settings::new(),
            watchdog: None,
            notify: Vec::new(),
        };
        let mut devices = Vec::new();
        for resource in &builder.config.resources {
            for host in &resource.hosts {
                let ip = host.address.value.ip();
                builder.heard.insert(host.name().to_owned(), ip);
            }
            for volume in &resource.hosts[0].volumes {
                if let FrontEnd::Ublk { minor } = volume.front.value {
                    devices.push(format!(
                        "resource {}: volume {} is /dev/ublkb{minor} now, not /dev/drbd{minor}",
                        resource.name.value, volume.number
                    ));
                }
            }
        }
        builder.notes.extend(devices);
        let told = builder.config.warnings.drain(..).map(|warning| {
            let place = warning.location.as_deref();
            let place = place.map(|at| format!("{}:{}: ", at.file, at.line));
            format!("{}{}", place.unwrap_or_default(), warning.kind)
        });
        builder.notes.extend(told);
        builder
    }

    fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// What Heartbeat's files say.
    pub fn heartbeat(&mut self, files: Files) {
        let conf = files.conf.unwrap_or_default();
        self.addresses_of(&conf);
        self.times_of(&conf);
        self.watchdog = conf.watchdog.clone();
        self.notify.extend(conf.facility.map(Notify::Syslog));
        for group in &files.groups {
            if let Some(index) = self.resource_of(group, &conf) {
                self.group(group, &conf, index);
            }
        }
        if let Some(exports) = files.exports {
            let dirs: Vec<PathBuf> = self
                .plans
                .values()
                .flat_map(|plan| plan.mounts.iter().map(|mount| mount.dir.clone()))
                .collect();
            for dir in dirs {
                self.notes.extend(nfs::exports(&exports, &dir));
            }
        }
    }

    /// Heartbeats were multicast, or went to addresses that are some node's or not.
    fn addresses_of(&mut self, conf: &HaConf) {
        if conf.nodes.is_empty() {
            return;
        }
        if conf.nodes.len() > 2 {
            self.note(format!(
                "`node`: {} are named; a resource is on two, those of its disks",
                conf.nodes.len()
            ));
        }
        let known = self.heard.values().any(|ip| conf.peers.contains(ip));
        if !known {
            self.ask_addresses = true;
        }
    }

    /// Each time that Heartbeat was told, unless it does not fit into ours.
    fn times_of(&mut self, conf: &HaConf) {
        for (name, time) in [
            ("interval", conf.keepalive),
            ("warn-after", conf.warntime),
            ("lease", conf.deadtime),
            ("boot-wait", conf.initdead),
        ] {
            let Some(time) = time else { continue };
            let millis = time.as_millis() as u64;
            let range = schema::find(Section::Heartbeat, name).map(|found| found.spec.kind);
            let Some(Kind::Number { min, max, .. }) = range else {
                continue;
            };
            if !(min..=max).contains(&millis) {
                self.note(format!(
                    "`{name}` of {millis}ms is left out: it can be {min}ms to {max}ms"
                ));
                continue;
            }
            let setting = Setting {
                value: Value::Number(millis),
                span: Span::default(),
            };
            self.times.insert(name, setting);
        }
        for name in ["warn-after", "boot-wait", "lease", "interval"] {
            match Heartbeat::settle(&self.times, None).fault() {
                None => return,
                Some(fault) => {
                    if self.times.remove(name).is_some() {
                        self.note(format!("{fault}: `{name}` is left out"));
                    }
                }
            }
        }
    }

    /// The resource that a line of `haresources` is about; `None` if it is about none, or about
    /// one that lacks something which is asked for.
    fn resource_of(&mut self, group: &Group, conf: &HaConf) -> Option<usize> {
        let mut name = None;
        let mut device = None;
        for element in &group.elements {
            match element {
                Element::Drbd(Some(wanted)) => name = Some(wanted.as_str()),
                Element::Drbd(None) if self.config.resources.len() == 1 => return Some(0),
                Element::Filesystem { device: path, .. } => {
                    if let Some((index, _)) = self.find_device(path) {
                        return Some(index);
                    }
                    device = minor_of(path).or(device);
                }
                _ => {}
            }
        }
        let known = |resource: &Resource| Some(resource.name.as_str()) == name;
        if let Some(index) = self.config.resources.iter().position(known) {
            return Some(index);
        }
        if name.is_none() && device.is_none() {
            self.note(format!(
                "{}: left out: nothing in this line is on a replicated disk",
                group.place
            ));
            return None;
        }
        let names: Vec<String> = match conf.nodes.is_empty() {
            true => vec![group.node.text.clone()],
            false => conf.nodes.clone(),
        };
        let name = name.unwrap_or("r0");
        self.note(format!(
            "{}: no file of DRBD describes {name}: it is made anew; or name the file: `drbd FILE`",
            group.place
        ));
        self.make_resource(name, device, &names)
    }

    /// The volume behind a device of DRBD.
    fn find_device(&self, device: &str) -> Option<(usize, u16)> {
        let by_res = device.strip_prefix("/dev/drbd/by-res/");
        if let Some(path) = by_res {
            let (name, volume) = path.split_once('/').unwrap_or((path, "0"));
            let volume = volume.parse().ok()?;
            let known = |resource: &Resource| resource.name.value == name;
            let index = self.config.resources.iter().position(known)?;
            return Some((index, volume));
        }
        let minor = minor_of(device)?;
        for (index, resource) in self.config.resources.iter().enumerate() {
            for volume in &resource.hosts[0].volumes {
                if volume.front.value == (FrontEnd::Ublk { minor }) {
                    return Some((index, volume.number));
                }
            }
        }
        None
    }

    fn group(&mut self, group: &Group, conf: &HaConf, index: usize) {
        let resource = &self.config.resources[index];
        let resource_name = resource.name.value.clone();
        let node = &group.node;
        if resource.hosts.iter().all(|host| !host.is_named(&node.text)) {
            let hosts: Vec<&str> = resource.hosts.iter().map(|host| host.name()).collect();
            let kind = DiagnosticKind::NoSuchHost {
                resource: resource_name,
                node: shown(&node.text),
                hosts: hosts.join(", "),
            };
            let at = self.sources.locate(node.span);
            self.errors.push(Diagnostic::new(kind).at(at));
            return;
        }
        let mut plan = self.plans.remove(&index).unwrap_or_default();
        plan.preferred = Some(node.text.clone());
        if conf.failback {
            plan.failback = Failback::WhenStable(STABLE);
        }
        plan.ping.extend(conf.ping.iter().copied());
        let mut early_address = false;
        let mut wants_nfs = false;
        for element in &group.elements {
            match element {
                Element::Address {
                    address,
                    prefix,
                    dev,
                } => {
                    early_address |= plan.mounts.is_empty() && plan.services.is_empty();
                    let vip = self.vip(group, conf, *address, *prefix, dev.as_deref());
                    plan.vips.push(vip);
                }
                Element::Drbd(_) => {}
                Element::Filesystem {
                    device,
                    dir,
                    fstype,
                    options,
                } => match self.find_device(device) {
                    Some((found, volume)) if found == index => plan.mounts.push(Mount {
                        dir: dir.clone(),
                        volume,
                        fstype: fstype.clone(),
                        options: options.clone().unwrap_or_else(|| "defaults".to_owned()),
                        fsck: Fsck::Auto,
                    }),
                    _ => self.note(format!(
                        "{}: `Filesystem` of {}: left out: it is no volume of {resource_name}",
                        group.place,
                        shown(device)
                    )),
                },
                Element::Mail(to) => self.mail(to),
                Element::Nfs => wants_nfs = true,
                Element::Unit(name) => plan.services.push(Step::Service(Service {
                    name: name.clone(),
                    control: Control::Unit(format!("{name}.service")),
                    check: None,
                    options: CheckOptions::default(),
                })),
                Element::Script { name, command } => {
                    plan.services.push(Step::Service(Service {
                        name: name.clone(),
                        control: Control::Commands {
                            start: format!("{command} start"),
                            stop: format!("{command} stop"),
                        },
                        check: None,
                        options: CheckOptions::default(),
                    }));
                }
            }
        }
        if wants_nfs {
            match plan.mounts.first() {
                Some(mount) => plan.services.push(Step::Service(nfs::service(&mount.dir))),
                None => self.note(format!(
                    "{}: the NFS server is left out: nothing is mounted that it could export",
                    group.place
                )),
            }
        }
        if early_address && !(plan.mounts.is_empty() && plan.services.is_empty()) {
            self.note(format!(
                "{}: the address comes last and goes first: it never answers without its service",
                group.place
            ));
        }
        self.plans.insert(index, plan);
    }

    fn vip(
        &mut self,
        group: &Group,
        conf: &HaConf,
        address: IpAddr,
        prefix: Option<u8>,
        dev: Option<&str>,
    ) -> Vip {
        let prefix = prefix.unwrap_or_else(|| {
            let prefix = if address.is_ipv4() { 24 } else { 64 };
            self.notes.push(format!(
                "{}: {address} has no prefix: /{prefix} is taken, check it",
                group.place
            ));
            prefix
        });
        let dev = dev.map_or_else(
            || {
                let dev = conf.interface.as_deref().unwrap_or(INTERFACE).to_owned();
                self.notes.push(format!(
                    "{}: {address} has no interface: {dev} is taken, check it",
                    group.place
                ));
                dev
            },
            str::to_owned,
        );
        Vip {
            address,
            prefix,
            dev,
        }
    }

    fn mail(&mut self, to: &str) {
        let mail = Notify::Mail {
            to: to.to_owned(),
            via: PathBuf::from(SENDMAIL),
        };
        if !self.notify.contains(&mail) {
            self.notify.push(mail);
        }
    }

    /// What Keepalived's file says.
    pub fn keepalived(&mut self, vrrp: Vrrp) {
        for to in &vrrp.mail {
            self.mail(to);
        }
        let Some(first) = vrrp.instances.first() else {
            self.note(format!("{}: no `vrrp_instance`: nothing moves", vrrp.place));
            return;
        };
        let local = first.source;
        let peer = first.peers.first().copied();
        let index = match self.config.resources.len() {
            0 => {
                let names = self.chosen_names();
                self.ips_of(&names, local, peer);
                self.make_resource(&plain(&first.name), None, &names)
            }
            count => {
                if count > 1 {
                    let name = self.config.resources[0].name.value.clone();
                    self.note(format!(
                        "{}: the addresses go with resource {name}: move them if that is wrong",
                        first.place
                    ));
                }
                if self.heard.values().all(|ip| Some(*ip) != peer) {
                    self.ask_addresses = true;
                }
                Some(0)
            }
        };
        let Some(index) = index else { return };
        self.instances(&vrrp, index, local);
    }

    /// Names of nodes that the administrator has used.
    fn chosen_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let addresses = self.request.addresses.iter().map(|(name, _)| name);
        for name in addresses.chain(self.request.disks.iter().map(|(name, _)| name)) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Which of the two nodes has which of the two addresses.
    fn ips_of(&mut self, names: &[String], local: Option<IpAddr>, peer: Option<IpAddr>) {
        let (Some(local), Some(peer), [first, second, ..]) = (local, peer, names) else {
            // Without names it is the names that are asked for first.
            self.ask_addresses = local.is_none() || peer.is_none();
            return;
        };
        let chosen = |name: &str| self.chosen_address(name).map(|address| address.ip());
        let swapped = chosen(first) == Some(peer)
            || chosen(second) == Some(local)
            || *second == self.request.node;
        let (local_name, peer_name) = if swapped {
            (second.clone(), first.clone())
        } else {
            (first.clone(), second.clone())
        };
        if chosen(first).is_none() || chosen(second).is_none() {
            self.note(format!(
                "{local} is taken as the address of {local_name}, {peer} as that of {peer_name}: \
                 `--address` says otherwise"
            ));
        }
        self.heard.insert(local_name, local);
        self.heard.insert(peer_name, peer);
    }

    fn chosen_address(&self, name: &str) -> Option<SocketAddr> {
        let mut chosen = self.request.addresses.iter();
        chosen
            .find(|(node, _)| node == name)
            .map(|(_, address)| *address)
    }

    fn instances(&mut self, vrrp: &Vrrp, index: usize, local: Option<IpAddr>) {
        let mut plan = self.plans.remove(&index).unwrap_or_default();
        if let Some(dir) = &vrrp.copied
            && plan.mounts.is_empty()
        {
            plan.mounts.push(Mount {
                dir: dir.clone(),
                volume: 0,
                fstype: "auto".to_owned(),
                options: "defaults".to_owned(),
                fsck: Fsck::Auto,
            });
        }
        if plan.mounts.is_empty() {
            self.note(format!(
                "{}: nothing says where the data is mounted: add `mount FOLDER volume 0;` as the \
                 first step",
                vrrp.place
            ));
        }
        let master = vrrp.instances.iter().find(|instance| instance.master);
        let node = master.and_then(|_| {
            let mut heard = self.heard.iter();
            heard
                .find(|(_, ip)| Some(**ip) == local)
                .map(|(n, _)| n.clone())
        });
        match node {
            Some(node) if vrrp.instances.iter().all(|instance| !instance.nopreempt) => {
                self.note(format!(
                    "{}: {node} is the preferred node and gets the resource back only when it has \
                     been up to date and well for five minutes",
                    vrrp.place
                ));
                plan.preferred = Some(node);
                plan.failback = Failback::WhenStable(STABLE);
            }
            _ => self.note(format!(
                "{}: a node that returns stays secondary (`failback never`), as with `nopreempt`",
                vrrp.place
            )),
        }
        for script in &vrrp.scripts {
            let tracked = |instance: &super::keepalived::Instance| {
                instance.track_scripts.contains(&script.name)
            };
            if vrrp.instances.iter().any(tracked) {
                let service = self.checked(vrrp, script);
                plan.services.push(Step::Service(service));
            }
        }
        for instance in &vrrp.instances {
            self.instance(instance, &mut plan);
        }
        self.plans.insert(index, plan);
    }

    /// A check alone: what it looks at is started by somebody else.
    fn checked(&mut self, vrrp: &Vrrp, script: &Script) -> Service {
        self.note(format!(
            "{}: `vrrp_script {}` is the check of a step that starts and stops nothing: let it \
             start and stop the service as well (`start`, `stop` or `unit`)",
            vrrp.place, script.name
        ));
        let defaults = CheckOptions::default();
        let time = |millis: Option<u64>, default: Duration| match millis {
            Some(millis) => Duration::from_millis(millis.clamp(100, 600_000)),
            None => default,
        };
        // Keepalived's own default.
        let interval = time(script.interval, Duration::from_secs(1));
        let count = |count: Option<u32>, default: u32| count.unwrap_or(default).clamp(1, 100);
        if script.fall.is_none() {
            self.note(format!(
                "{}: it must fail twice in a row (`fall 2`), not once",
                vrrp.place
            ));
        }
        Service {
            name: plain(&script.name),
            control: Control::Commands {
                start: "true".to_owned(),
                stop: "true".to_owned(),
            },
            check: Some(script.command.clone()),
            options: CheckOptions {
                interval,
                timeout: time(script.timeout, interval),
                rise: count(script.rise, defaults.rise),
                fall: count(script.fall, defaults.fall),
                restarts: 0,
            },
        }
    }

    fn instance(&mut self, instance: &super::keepalived::Instance, plan: &mut Plan) {
        let name = plain(&instance.name);
        if instance.notify_master.is_some() || instance.notify_backup.is_some() {
            let command =
                |command: &Option<String>| command.clone().unwrap_or_else(|| "true".to_owned());
            plan.services.push(Step::Run(Service {
                name: format!("{name}-master"),
                control: Control::Commands {
                    start: command(&instance.notify_master),
                    stop: command(&instance.notify_backup),
                },
                check: None,
                options: CheckOptions::default(),
            }));
        }
        for command in &instance.notify {
            let exec = Notify::Exec(command.clone());
            if !self.notify.contains(&exec) {
                self.notify.push(exec);
            }
        }
        plan.interfaces.extend(instance.track_interfaces.clone());
        for address in &instance.addresses {
            let dev = address.dev.clone().or(instance.interface.clone());
            plan.vips.push(Vip {
                address: address.address,
                prefix: address.prefix,
                dev: dev.unwrap_or_else(|| INTERFACE.to_owned()),
            });
        }
    }

    /// A resource that no source describes; `None` when something must be chosen first.
    fn make_resource(&mut self, name: &str, minor: Option<u32>, names: &[String]) -> Option<usize> {
        let mut names: Vec<String> = names.to_vec();
        for name in self.chosen_names() {
            if names.len() < 2 && !names.contains(&name) {
                names.push(name);
            }
        }
        for missing in names.len()..2 {
            let which = ["one node", "the other node"][missing.min(1)];
            self.need(format!(
                "--disk NODE=PATH    # NODE the name of {which} (`uname -n`), PATH its disk for the \
                 data"
            ));
            if self.ask_addresses {
                self.need("--address NODE=ADDRESS:PORT    # where that node is heard".to_owned());
            }
        }
        let mut hosts = Vec::new();
        for (id, node) in names.iter().take(2).enumerate() {
            let disk = self.request.disks.iter().find(|(name, _)| name == node);
            let disk = disk.map(|(_, path)| path.clone());
            if disk.is_none() {
                self.need(format!("--disk {node}=PATH"));
            }
            let address = self.path_of(node);
            let (Some(disk), Some(address)) = (disk, address) else {
                continue;
            };
            let minor = minor.unwrap_or_else(|| self.free_minor());
            hosts.push(host(node, id as u8, address.ip(), minor, disk));
        }
        let hosts: Result<[Host; 2], Vec<Host>> = hosts.try_into();
        let hosts = hosts.ok()?;
        self.config.resources.push(Resource {
            name: here(name.to_owned()),
            net: NetOptions::default(),
            hosts,
            handlers: HandlerOptions::default(),
            failover: None,
            key_file: None,
        });
        Some(self.config.resources.len() - 1)
    }

    fn free_minor(&self) -> u32 {
        let used = |minor: u32| {
            self.config
                .resources
                .iter()
                .flat_map(|resource| &resource.hosts[0].volumes)
                .any(|volume| volume.front.value == FrontEnd::Ublk { minor })
        };
        (0..).find(|minor| !used(*minor)).unwrap_or(0)
    }

    fn need(&mut self, need: String) {
        if !self.needs.contains(&need) {
            self.needs.push(need);
        }
    }

    /// Where a node hears heartbeats. Asked for if nobody says it.
    fn path_of(&mut self, node: &str) -> Option<SocketAddr> {
        let chosen = self.chosen_address(node).or_else(|| {
            let ip = self.heard.get(node).filter(|_| !self.ask_addresses)?;
            Some(SocketAddr::new(*ip, HEARTBEAT_PORT))
        });
        if chosen.is_none() {
            self.need(format!("--address {node}=ADDRESS:PORT"));
        }
        chosen
    }

    /// The whole configuration, or what has to be chosen.
    pub fn finish(mut self) -> Result<Built, Failure> {
        if !self.errors.is_empty() {
            return Err(Failure::Wrong(self.errors));
        }
        let moves = self.request.heartbeat.is_some() || self.request.keepalived.is_some();
        if moves && self.request.vote.is_none() {
            self.needs.insert(
                0,
                "--vote witness=NAME@ADDRESS:PORT|fence=COMMAND|manual|unsafe-two-node".to_owned(),
            );
        }
        if let Some(vote) = &self.request.vote {
            self.config.cluster.arbiter = vote.clone();
        }
        if moves || self.request.vote.is_some() {
            self.members();
        }
        self.finish_plans();
        self.finish_cluster();
        if !self.needs.is_empty() {
            return Err(Failure::Needs {
                needs: self.needs,
                notes: self.notes,
            });
        }
        self.unknown_nodes()?;
        Ok(Built {
            config: self.config,
            notes: self.notes,
        })
    }

    /// A choice for a node that there is not is a misspelt one; a disk for a resource that has its
    /// own is told.
    fn unknown_nodes(&mut self) -> Result<(), Failure> {
        let Some(resource) = self.config.resources.first() else {
            return Ok(());
        };
        let addresses = self.request.addresses.iter().map(|(name, _)| name);
        let chosen = addresses.chain(self.request.disks.iter().map(|(name, _)| name));
        let hosts = || self.config.resources.iter().flat_map(|r| &r.hosts);
        for name in chosen {
            if hosts().any(|host| host.is_named(name)) {
                continue;
            }
            let known: Vec<&str> = hosts().map(Host::name).collect();
            let kind = DiagnosticKind::NoSuchHost {
                resource: resource.name.value.clone(),
                node: shown(name),
                hosts: known.join(", "),
            };
            let unknown = Diagnostic::new(kind).suggest(name, known);
            return Err(Failure::Wrong(vec![unknown]));
        }
        for (name, disk) in &self.request.disks {
            let mut volumes = hosts()
                .filter(|host| host.is_named(name))
                .flat_map(|host| &host.volumes);
            if volumes.all(|volume| volume.disk.value != *disk) {
                self.notes.push(format!(
                    "--disk {name}={}: left out: the sources name its disk",
                    disk.display()
                ));
            }
        }
        Ok(())
    }

    /// The nodes of all resources.
    fn members(&mut self) {
        let hosts: Vec<(String, u8)> = self
            .config
            .resources
            .iter()
            .flat_map(|resource| &resource.hosts)
            .map(|host| (host.name().to_owned(), host.node_id))
            .collect();
        let connections: Vec<SocketAddr> = self
            .config
            .resources
            .iter()
            .flat_map(|resource| &resource.hosts)
            .map(|host| host.address.value)
            .collect();
        for (name, id) in hosts {
            if self.config.cluster.nodes.contains_key(&name) {
                continue;
            }
            let Some(mut address) = self.path_of(&name) else {
                continue;
            };
            if connections.contains(&address) {
                address.set_port(HEARTBEAT_PORT);
                self.note(format!(
                    "{name} hears heartbeats at {address}: the port chosen is that of a connection"
                ));
            }
            let node = ClusterNode {
                name: here(name.clone()),
                node_id: here(id),
                paths: vec![NodePath {
                    address: here(address),
                    dev: None,
                }],
            };
            self.config.cluster.nodes.insert(name, node);
        }
    }

    fn finish_plans(&mut self) {
        for (index, plan) in std::mem::take(&mut self.plans) {
            let mounts = plan.mounts.into_iter().map(Step::Mount);
            let vips = plan.vips.into_iter().map(Step::Vip);
            let steps = mounts.chain(plan.services).chain(vips).map(here).collect();
            let watched = !(plan.ping.is_empty() && plan.interfaces.is_empty());
            let monitor = watched.then_some(Monitor {
                ping: plan.ping,
                interfaces: plan.interfaces,
                options: MonitorOptions::default(),
            });
            self.config.resources[index].failover = Some(Failover {
                preferred: plan.preferred.map(here),
                failback: plan.failback,
                steps,
                monitor,
                ..Failover::default()
            });
        }
    }

    fn finish_cluster(&mut self) {
        let heartbeat = Heartbeat::settle(&self.times, None);
        if let Some(device) = self.watchdog.take() {
            match heartbeat.watchdog(None) {
                Ok(timeout) => {
                    let device = here(device);
                    self.config.cluster.watchdog = Some(Watchdog { device, timeout });
                }
                Err(fault) => self.note(format!("{fault}: it is left out")),
            }
        }
        self.config.cluster = Cluster {
            heartbeat,
            notify: std::mem::take(&mut self.notify),
            ..std::mem::take(&mut self.config.cluster)
        };
    }
}

fn host(name: &str, id: u8, ip: IpAddr, minor: u32, disk: PathBuf) -> Host {
    Host {
        names: vec![here(name.to_owned())],
        node_id: id,
        address: here(SocketAddr::new(ip, REPLICATION_PORT)),
        volumes: vec![Volume {
            number: 0,
            front: here(FrontEnd::Ublk { minor }),
            disk: here(disk),
            meta: here(MetaDisk::Internal),
            options: DiskOptions::default(),
            after_at: None,
        }],
    }
}

/// The minor in the name of a device of DRBD.
fn minor_of(device: &str) -> Option<u32> {
    let bare = device.strip_prefix("/dev/drbd/");
    match bare.and_then(|number| number.parse().ok()) {
        Some(minor) => Some(minor),
        None => match parse_device(&[device]) {
            Ok(FrontEnd::Ublk { minor }) if device.starts_with("/dev/drbd") => Some(minor),
            _ => None,
        },
    }
}

/// A name that can be one of ours.
fn plain(name: &str) -> String {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name
        .chars()
        .map(|c| if fine(c) { c } else { '-' })
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    match name.get(..name.len().min(40)) {
        Some(name) if !name.is_empty() && name != "all" => name.to_owned(),
        _ => "r0".to_owned(),
    }
}
