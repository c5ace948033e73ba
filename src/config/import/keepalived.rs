//! Keepalived: VRRP instances, their addresses, checks and notify scripts. Virtual servers and
//! everything else that does not follow the data is told and left out.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::super::diagnostic::{Diagnostic, DiagnosticKind, shown};
use super::super::options::{NumberFault, parse_number};
use super::super::read::split_prefix;
use super::super::schema::Unit;
use super::super::source::{SourceMap, Span};
use super::super::syntax::Word;
use super::words::Source;

/// What a file says.
#[derive(Debug, Default)]
pub struct Vrrp {
    pub mail: Vec<String>,
    pub scripts: Vec<Script>,
    pub instances: Vec<Instance>,
    /// The folder of the module in an `rsyncd.conf` beside the file.
    pub copied: Option<PathBuf>,
    /// `FILE`.
    pub place: String,
}

/// `vrrp_script NAME`.
#[derive(Debug)]
pub struct Script {
    pub name: String,
    pub command: String,
    /// Milliseconds.
    pub interval: Option<u64>,
    pub timeout: Option<u64>,
    pub rise: Option<u32>,
    pub fall: Option<u32>,
}

/// `vrrp_instance NAME`.
#[derive(Debug, Default)]
pub struct Instance {
    pub name: String,
    pub place: String,
    pub master: bool,
    pub nopreempt: bool,
    pub interface: Option<String>,
    pub source: Option<IpAddr>,
    pub peers: Vec<IpAddr>,
    pub addresses: Vec<Address>,
    pub track_scripts: Vec<String>,
    pub track_interfaces: Vec<String>,
    pub notify_master: Option<String>,
    pub notify_backup: Option<String>,
    /// Scripts for other transitions.
    pub notify: Vec<String>,
}

/// An address that moves.
#[derive(Debug)]
pub struct Address {
    pub address: IpAddr,
    /// Keepalived adds a bare address as a single host.
    pub prefix: u8,
    pub dev: Option<String>,
}

/// A statement: its words and what stands in braces after them.
struct Node {
    words: Vec<Word>,
    body: Option<Vec<Node>>,
}

impl Node {
    fn head(&self) -> &str {
        self.words.first().map_or("", |word| word.text.as_str())
    }

    fn span(&self) -> Span {
        self.words.first().map(|word| word.span).unwrap_or_default()
    }

    fn body(&self) -> &[Node] {
        self.body.as_deref().unwrap_or_default()
    }

    /// Everything in braces, in order.
    fn items(&self) -> impl Iterator<Item = &Word> {
        self.body().iter().flat_map(|node| &node.words)
    }
}

/// Reads a file. Errors are appended to `errors`.
pub fn read(
    sources: &mut SourceMap,
    path: &Path,
    notes: &mut Vec<String>,
    errors: &mut Vec<Diagnostic>,
) -> Vrrp {
    let mut vrrp = Vrrp {
        place: path.display().to_string(),
        ..Vrrp::default()
    };
    match Source::read(sources, path, "keepalived.conf") {
        Ok(mut source) => {
            let lines = source.lines(&['#', '!']);
            let nodes = tree(&mut source, lines);
            for node in &nodes {
                top(&mut source, &mut vrrp, node, notes);
            }
            known_scripts(&mut source, &vrrp, &nodes);
            errors.append(&mut source.errors);
        }
        Err(error) => errors.push(error),
    }
    let beside = path.with_file_name("rsyncd.conf");
    if beside.is_file() {
        match Source::read(sources, &beside, "rsyncd.conf") {
            Ok(source) => vrrp.copied = rsync_module(source, notes, errors),
            Err(error) => errors.push(error),
        }
    }
    vrrp
}

/// Lines to statements. Braces are words of their own or end a word.
fn tree(source: &mut Source<'_>, lines: Vec<Vec<Word>>) -> Vec<Node> {
    let mut open: Vec<(Node, Vec<Node>)> = Vec::new();
    let mut level: Vec<Node> = Vec::new();
    for line in lines {
        let mut words: Vec<Word> = Vec::new();
        for word in line.into_iter().flat_map(split_braces) {
            if word.is("{") {
                let head = Node {
                    words: std::mem::take(&mut words),
                    body: None,
                };
                if head.words.is_empty() {
                    source.error(DiagnosticKind::NamelessSection, word.span);
                }
                open.push((head, std::mem::take(&mut level)));
            } else if word.is("}") {
                if !words.is_empty() {
                    level.push(Node {
                        words: std::mem::take(&mut words),
                        body: None,
                    });
                }
                match open.pop() {
                    Some((head, before)) => {
                        let body = std::mem::replace(&mut level, before);
                        level.push(Node {
                            body: Some(body),
                            ..head
                        });
                    }
                    None => source.error(DiagnosticKind::UnexpectedClose, word.span),
                }
            } else {
                words.push(word);
            }
        }
        if !words.is_empty() {
            level.push(Node { words, body: None });
        }
    }
    if let Some((head, _)) = open.last() {
        let kind = DiagnosticKind::UnclosedSection {
            section: shown(head.head()),
            before: None,
        };
        source.error(kind, head.span());
    }
    // What stands in an open section was read, and says nothing more once that is told.
    match open.is_empty() {
        true => level,
        false => Vec::new(),
    }
}

/// `name{` is two words.
fn split_braces(word: Word) -> Vec<Word> {
    if word.quoted || !word.text.contains(['{', '}']) {
        return vec![word];
    }
    let mut parts = Vec::new();
    let mut from = 0;
    let part = |from: usize, to: usize| Word {
        text: word.text.get(from..to).unwrap_or("").to_owned(),
        quoted: false,
        span: word.span.part(from, to),
    };
    for (at, _) in word.text.match_indices(['{', '}']) {
        if from < at {
            parts.push(part(from, at));
        }
        parts.push(part(at, at + 1));
        from = at + 1;
    }
    if from < word.text.len() {
        parts.push(part(from, word.text.len()));
    }
    parts
}

/// Sections that have nothing to do with an address that follows data.
const OTHER_SECTIONS: [&str; 12] = [
    "virtual_server",
    "virtual_server_group",
    "real_server",
    "static_ipaddress",
    "static_routes",
    "static_rules",
    "track_file",
    "vrrp_track_file",
    "vrrp_track_process",
    "vrrp_track_bfd",
    "bfd_instance",
    "include",
];

fn top(source: &mut Source<'_>, vrrp: &mut Vrrp, node: &Node, notes: &mut Vec<String>) {
    match node.head() {
        "global_defs" => globals(source, vrrp, node, notes),
        "vrrp_script" => script(source, vrrp, node, notes),
        "vrrp_instance" => instance(source, vrrp, node, notes),
        "vrrp_sync_group" => {
            let place = source.place(node.span());
            notes.push(format!(
                "{place}: `vrrp_sync_group`: all instances become one resource, whose addresses \
                 move together anyway"
            ));
        }
        other if OTHER_SECTIONS.contains(&other) => {
            let place = source.place(node.span());
            notes.push(format!("{place}: `{other}`: left out"));
        }
        _ => {
            let mut known = vec![
                "global_defs",
                "vrrp_script",
                "vrrp_instance",
                "vrrp_sync_group",
            ];
            known.extend(OTHER_SECTIONS);
            if let Some(word) = node.words.first() {
                source.unknown(word, &known);
            }
        }
    }
}

fn globals(source: &mut Source<'_>, vrrp: &mut Vrrp, node: &Node, notes: &mut Vec<String>) {
    for item in node.body() {
        let place = source.place(item.span());
        match item.head() {
            "notification_email" => {
                let to = item.items().map(|word| word.text.clone());
                vrrp.mail.extend(to);
                notes.push(format!(
                    "{place}: `notification_email`: every transition is told, through sendmail"
                ));
            }
            "router_id" | "enable_script_security" | "script_user" => {}
            "notification_email_from"
            | "smtp_server"
            | "smtp_connect_timeout"
            | "smtp_alert"
            | "smtp_helo_name" => notes.push(format!(
                "{place}: `{}`: left out: mail goes through sendmail, which has its own settings",
                item.head()
            )),
            other => notes.push(format!("{place}: `{}`: left out", shown(other))),
        }
    }
}

fn script(source: &mut Source<'_>, vrrp: &mut Vrrp, node: &Node, notes: &mut Vec<String>) {
    let Some(name) = source.value(&node.words, 1, "a name").cloned() else {
        return;
    };
    let mut script = Script {
        name: name.text.clone(),
        command: String::new(),
        interval: None,
        timeout: None,
        rise: None,
        fall: None,
    };
    for item in node.body() {
        let place = source.place(item.span());
        match item.head() {
            "script" => {
                if let Some(word) = source.value(&item.words, 1, "a command") {
                    script.command = words_from(&item.words, 1, word);
                }
            }
            "interval" => script.interval = number(source, item, Unit::Seconds),
            "timeout" => script.timeout = number(source, item, Unit::Seconds),
            "rise" => script.rise = count(source, item),
            "fall" => script.fall = count(source, item),
            "weight" => notes.push(format!(
                "{place}: `weight`: left out: a check that fails moves the resource, there are no \
                 priorities"
            )),
            "user" | "init_fail" => {
                notes.push(format!("{place}: `{}`: left out", item.head()));
            }
            _ => {
                let known = [
                    "script",
                    "interval",
                    "timeout",
                    "rise",
                    "fall",
                    "weight",
                    "user",
                    "init_fail",
                ];
                if let Some(word) = item.words.first() {
                    source.unknown(word, &known);
                }
            }
        }
    }
    if script.command.is_empty() {
        let kind = DiagnosticKind::MissingValue {
            option: "vrrp_script".to_owned(),
            needs: "`script`".to_owned(),
        };
        return source.error(kind, name.span);
    }
    vrrp.scripts.push(script);
}

/// The words from `index` on as one command.
fn words_from(words: &[Word], index: usize, first: &Word) -> String {
    if first.quoted {
        return first.text.clone();
    }
    let rest: Vec<&str> = words.iter().skip(index).map(|w| w.text.as_str()).collect();
    rest.join(" ")
}

fn number(source: &mut Source<'_>, item: &Node, unit: Unit) -> Option<u64> {
    let [head, ..] = item.words.as_slice() else {
        return None;
    };
    let word = source.value(&item.words, 1, "a number")?;
    match parse_number(&word.text, unit) {
        Ok(number) => Some(number),
        Err(NumberFault::Form | NumberFault::Overflow) => {
            source.bad(head, word, "a number");
            None
        }
    }
}

fn count(source: &mut Source<'_>, item: &Node) -> Option<u32> {
    number(source, item, Unit::Count).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

fn instance(source: &mut Source<'_>, vrrp: &mut Vrrp, node: &Node, notes: &mut Vec<String>) {
    let Some(name) = source.value(&node.words, 1, "a name") else {
        return;
    };
    let mut instance = Instance {
        name: name.text.clone(),
        place: source.place(node.span()),
        ..Instance::default()
    };
    for item in node.body() {
        instance_item(source, &mut instance, item, notes);
    }
    vrrp.instances.push(instance);
}

/// Words of an instance that have no counterpart and need none.
const INSTANCE_SILENT: [&str; 14] = [
    "virtual_router_id",
    "version",
    "use_vmac",
    "vmac_xmit_base",
    "debug",
    "garp_master_delay",
    "garp_master_repeat",
    "garp_master_refresh",
    "garp_master_refresh_repeat",
    "garp_lower_prio_delay",
    "garp_lower_prio_repeat",
    "accept",
    "dont_track_primary",
    "native_ipv6",
];

/// Words of an instance that are told.
const INSTANCE_TOLD: [(&str, &str); 12] = [
    (
        "priority",
        "there are no priorities: the copy of the data and the vote decide",
    ),
    (
        "advert_int",
        "heartbeats come every 250 ms, and takeover after the lease of 3 s (`heartbeat`)",
    ),
    (
        "authentication",
        "its password, of which Keepalived used the first 8 characters, is left out: a key is made",
    ),
    (
        "preempt_delay",
        "left out: `failback when-stable` has its own time",
    ),
    ("mcast_src_ip", "left out: heartbeats are unicast"),
    ("smtp_alert", "left out: `notify` tells of every transition"),
    ("virtual_routes", "left out: use a `run` step"),
    ("virtual_rules", "left out: use a `run` step"),
    ("track_file", "left out: use the `check` of a `service`"),
    ("track_process", "left out: use the `check` of a `service`"),
    ("track_bfd", "left out"),
    ("no_accept", "left out"),
];

const INSTANCE_WORDS: [&str; 17] = [
    "state",
    "interface",
    "nopreempt",
    "preempt",
    "unicast_src_ip",
    "unicast_peer",
    "virtual_ipaddress",
    "virtual_ipaddress_excluded",
    "track_script",
    "track_interface",
    "notify",
    "notify_master",
    "notify_backup",
    "notify_fault",
    "notify_stop",
    "notify_deleted",
    "notify_master_rx_lower_pri",
];

fn instance_item(
    source: &mut Source<'_>,
    instance: &mut Instance,
    item: &Node,
    notes: &mut Vec<String>,
) {
    let place = source.place(item.span());
    let head = item.head();
    match head {
        "nopreempt" => instance.nopreempt = true,
        "preempt" => {}
        "unicast_peer" => {
            for node in item.body() {
                instance.peers.extend(ip(source, &node.words, 0));
            }
        }
        "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
            for node in item.body() {
                let address = virtual_address(source, &node.words, &place, notes);
                instance.addresses.extend(address);
            }
        }
        "track_script" => {
            let names = item.body().iter().filter_map(|node| node.words.first());
            instance.track_scripts.extend(names.map(|w| w.text.clone()));
        }
        "track_interface" => {
            let names = item.body().iter().filter_map(|node| node.words.first());
            instance
                .track_interfaces
                .extend(names.map(|w| w.text.clone()));
        }
        "unicast_src_ip" => {
            if source.value(&item.words, 1, "an IP address").is_some() {
                instance.source = ip(source, &item.words, 1);
            }
        }
        _ if INSTANCE_SILENT.contains(&head) => {}
        _ => {
            if let Some((_, text)) = INSTANCE_TOLD.iter().find(|(known, _)| *known == head) {
                return notes.push(format!("{place}: `{head}`: {text}"));
            }
            if !INSTANCE_WORDS.contains(&head) {
                let mut known: Vec<&str> = INSTANCE_WORDS.to_vec();
                known.extend(INSTANCE_TOLD.iter().map(|(name, _)| *name));
                known.extend(INSTANCE_SILENT);
                if let Some(word) = item.words.first() {
                    source.unknown(word, &known);
                }
                return;
            }
            valued(source, instance, item, notes);
        }
    }
}

/// A statement with one value.
fn valued(source: &mut Source<'_>, instance: &mut Instance, item: &Node, notes: &mut Vec<String>) {
    let place = source.place(item.span());
    let Some(value) = source.value(&item.words, 1, "a value") else {
        return;
    };
    let command = words_from(&item.words, 1, value);
    match item.head() {
        "state" => match value.text.as_str() {
            "MASTER" => instance.master = true,
            "BACKUP" => {}
            _ => {
                if let Some(head) = item.words.first() {
                    source.bad(head, value, "MASTER or BACKUP");
                }
            }
        },
        "interface" => instance.interface = Some(value.text.clone()),
        "notify_master" => {
            notes.push(format!(
                "{place}: `notify_master`: the start of a `run` step, after the mount. If it copies \
                 to the other node, take the step out: the replicated disk does that"
            ));
            instance.notify_master = Some(command);
        }
        "notify_backup" => {
            notes.push(format!(
                "{place}: `notify_backup`: the stop of that step, before the unmount, and not run \
                 on a node that was no master"
            ));
            instance.notify_backup = Some(command);
        }
        head => {
            notes.push(format!(
                "{place}: `{head}`: called on every transition (`notify`), with what has happened in \
                 its environment"
            ));
            if !instance.notify.contains(&command) {
                instance.notify.push(command);
            }
        }
    }
}

fn ip(source: &mut Source<'_>, words: &[Word], index: usize) -> Option<IpAddr> {
    let word = words.get(index)?;
    match word.text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let head = words.first().unwrap_or(word);
            source.bad(head, word, "an IP address");
            None
        }
    }
}

/// `ADDRESS[/PREFIX] [dev IF] [brd A] [scope S] [label L]`.
fn virtual_address(
    source: &mut Source<'_>,
    words: &[Word],
    place: &str,
    notes: &mut Vec<String>,
) -> Option<Address> {
    let first = words.first()?;
    let found = match first.text.parse::<IpAddr>() {
        Ok(address) => {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            Some((address, prefix))
        }
        Err(_) => split_prefix(&first.text),
    };
    let Some((address, prefix)) = found else {
        source.bad(first, first, "ADDRESS or ADDRESS/PREFIX");
        return None;
    };
    let dev = words
        .iter()
        .position(|word| word.is("dev"))
        .and_then(|at| words.get(at + 1))
        .map(|word| word.text.clone());
    if words
        .iter()
        .any(|word| word.is("label") || word.is("scope"))
    {
        notes.push(format!(
            "{place}: label and scope of {address} are left out"
        ));
    }
    Some(Address {
        address,
        prefix,
        dev,
    })
}

/// A tracked script must be there.
fn known_scripts(source: &mut Source<'_>, vrrp: &Vrrp, nodes: &[Node]) {
    let names: Vec<&str> = vrrp.scripts.iter().map(|s| s.name.as_str()).collect();
    let tracked = nodes
        .iter()
        .filter(|node| node.head() == "vrrp_instance")
        .flat_map(Node::body)
        .filter(|item| item.head() == "track_script")
        .flat_map(Node::body)
        .filter_map(|node| node.words.first());
    for word in tracked {
        if !names.contains(&word.text.as_str()) {
            source.unknown(word, &names);
        }
    }
}

/// The folder of the first module: that is where the data is.
fn rsync_module(
    mut source: Source<'_>,
    notes: &mut Vec<String>,
    errors: &mut Vec<Diagnostic>,
) -> Option<PathBuf> {
    let mut found = None;
    for line in source.lines(&['#', ';']) {
        let [name, equals, path, ..] = line.as_slice() else {
            continue;
        };
        if !(name.is("path") && equals.is("=")) || found.is_some() {
            continue;
        }
        let path = PathBuf::from(&path.text);
        let place = source.place(name.span);
        notes.push(format!(
            "{place}: {} was copied by rsync; it is now on the replicated disk. Move what is in it \
             there once, and stop rsync and what watches the folder",
            path.display()
        ));
        found = Some(path);
    }
    errors.append(&mut source.errors);
    found
}
