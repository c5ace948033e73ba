//! Heartbeat: `ha.cf`, `haresources`, `authkeys` and the scripts beside them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::cluster::Facility;
use super::super::diagnostic::{Diagnostic, DiagnosticKind, shown};
use super::super::options::duration_text;
use super::super::source::SourceMap;
use super::super::syntax::Word;
use super::words::Source;

/// What the folder says.
#[derive(Debug, Default)]
pub struct Files {
    pub conf: Option<HaConf>,
    /// Lines of `haresources`.
    pub groups: Vec<Group>,
    /// `exports` lies beside them.
    pub exports: Option<PathBuf>,
}

/// `ha.cf`.
#[derive(Debug, Default)]
pub struct HaConf {
    pub nodes: Vec<String>,
    pub keepalive: Option<Duration>,
    pub warntime: Option<Duration>,
    pub deadtime: Option<Duration>,
    pub initdead: Option<Duration>,
    /// Peers whose addresses are named; without one they were reached by multicast.
    pub peers: Vec<IpAddr>,
    /// Interface of the first medium.
    pub interface: Option<String>,
    pub failback: bool,
    pub ping: Vec<IpAddr>,
    pub watchdog: Option<PathBuf>,
    pub facility: Option<Facility>,
}

/// A line of `haresources`: what moves together.
#[derive(Debug)]
pub struct Group {
    pub node: Word,
    /// `FILE:LINE`.
    pub place: String,
    pub elements: Vec<Element>,
}

/// A resource of a group.
#[derive(Debug)]
pub enum Element {
    Address {
        address: IpAddr,
        prefix: Option<u8>,
        dev: Option<String>,
    },
    /// `drbddisk`, with the name if it is given.
    Drbd(Option<String>),
    Filesystem {
        device: String,
        dir: PathBuf,
        fstype: String,
        options: Option<String>,
    },
    Mail(String),
    /// The NFS server, by whatever script.
    Nfs,
    /// An init script of the system.
    Unit(String),
    /// A script of the administrator, with its arguments.
    Script {
        name: String,
        command: String,
    },
}

/// Reads the folder. Errors are appended to `errors`.
pub fn read(
    sources: &mut SourceMap,
    folder: &Path,
    notes: &mut Vec<String>,
    errors: &mut Vec<Diagnostic>,
) -> Files {
    let mut files = Files::default();
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
    if let Some(path) = there("ha.cf") {
        match Source::read(sources, &path, "ha.cf") {
            Ok(source) => files.conf = Some(ha_cf(source, notes, errors)),
            Err(error) => errors.push(error),
        }
    }
    match Source::read(sources, &folder.join("haresources"), "haresources") {
        Ok(source) => files.groups = haresources(source, folder, notes, errors),
        Err(error) => errors.push(error),
    }
    if let Some(path) = there("authkeys") {
        match Source::read(sources, &path, "authkeys") {
            Ok(source) => authkeys(source, notes, errors),
            Err(error) => errors.push(error),
        }
    }
    files.exports = there("exports");
    files
}

/// What a directive of `ha.cf` becomes.
#[derive(Clone, Copy)]
enum Means {
    Time(Timer),
    Node,
    /// A medium: an interface, and what follows.
    Multicast,
    Unicast,
    Serial,
    Ping,
    PingGroup,
    Failback,
    Facility,
    Watchdog,
    /// Told with this text.
    Told(&'static str),
    /// Needs no word.
    Silent,
    /// `crm` and `pacemaker`: `haresources` counts only without.
    Manager,
}

#[derive(Clone, Copy)]
enum Timer {
    Keepalive,
    Warn,
    Dead,
    Init,
}

const LOGS: &str = "left out: everything is written to standard error, for the journal";
const STONITH: &str = "left out: choose `--vote fence=COMMAND` to have the other node fenced";
const FORMAT: &str = "left out: heartbeats have one format, with their own protection";
const PLACE: &str = "left out: the agent's thread for heartbeats has a high priority by itself";

/// Every directive of Heartbeat 3.
const DIRECTIVES: &[(&str, Means)] = &[
    ("keepalive", Means::Time(Timer::Keepalive)),
    ("warntime", Means::Time(Timer::Warn)),
    ("deadtime", Means::Time(Timer::Dead)),
    ("initdead", Means::Time(Timer::Init)),
    (
        "deadping",
        Means::Told("left out: `monitor` counts missing answers (`fall`)"),
    ),
    ("node", Means::Node),
    ("bcast", Means::Multicast),
    ("mcast", Means::Multicast),
    ("mcast6", Means::Multicast),
    ("ucast", Means::Unicast),
    ("ucast6", Means::Unicast),
    ("serial", Means::Serial),
    ("baud", Means::Told("left out: heartbeats go over UDP only")),
    (
        "udpport",
        Means::Told("left out: each `path` has its own port"),
    ),
    ("ping", Means::Ping),
    ("ping_group", Means::PingGroup),
    ("hbaping", Means::Told("left out: there is no such monitor")),
    ("auto_failback", Means::Failback),
    ("nice_failback", Means::Failback),
    ("logfacility", Means::Facility),
    ("watchdog", Means::Watchdog),
    ("stonith", Means::Told(STONITH)),
    ("stonith_host", Means::Told(STONITH)),
    (
        "respawn",
        Means::Told("left out: monitors and the vote are built in; other programs are systemd's"),
    ),
    ("apiauth", Means::Silent),
    ("logfile", Means::Told(LOGS)),
    ("debugfile", Means::Told(LOGS)),
    ("use_logd", Means::Silent),
    ("conn_logd_time", Means::Silent),
    ("debug", Means::Silent),
    ("log_badpack", Means::Silent),
    ("syslogmsgfmt", Means::Silent),
    ("coredumps", Means::Silent),
    (
        "autojoin",
        Means::Told("left out: members are those that are written down"),
    ),
    ("realtime", Means::Told(PLACE)),
    ("rtprio", Means::Told(PLACE)),
    ("memreserve", Means::Told(PLACE)),
    ("hbgenmethod", Means::Told(FORMAT)),
    ("uuidfrom", Means::Told(FORMAT)),
    ("msgfmt", Means::Told(FORMAT)),
    ("compression", Means::Told(FORMAT)),
    ("compression_threshold", Means::Told(FORMAT)),
    ("traditional_compression", Means::Told(FORMAT)),
    ("max_rexmit_delay", Means::Told(FORMAT)),
    ("hopfudge", Means::Told(FORMAT)),
    ("cluster", Means::Silent),
    ("crm", Means::Manager),
    ("pacemaker", Means::Manager),
    ("crm_daemon_dir", Means::Silent),
    ("crmd_spawns_pengine", Means::Silent),
    ("env", Means::Silent),
    ("use_apphbd", Means::Silent),
    (
        "quorum_server",
        Means::Told("left out: `--vote witness=NAME@ADDRESS:PORT` is the third vote"),
    ),
];

fn ha_cf(mut source: Source<'_>, notes: &mut Vec<String>, errors: &mut Vec<Diagnostic>) -> HaConf {
    let mut conf = HaConf::default();
    for line in source.lines(&['#']) {
        let Some(head) = line.first() else { continue };
        let known = DIRECTIVES.iter().find(|(name, _)| *name == head.text);
        let Some((_, means)) = known else {
            let names: Vec<&str> = DIRECTIVES.iter().map(|(name, _)| *name).collect();
            source.unknown(head, &names);
            continue;
        };
        if !matches!(means, Means::Silent) && source.value(&line, 1, "a value").is_none() {
            continue;
        }
        directive(&mut source, &mut conf, *means, &line, notes);
    }
    errors.append(&mut source.errors);
    conf
}

fn directive(
    source: &mut Source<'_>,
    conf: &mut HaConf,
    means: Means,
    line: &[Word],
    notes: &mut Vec<String>,
) {
    let [head, first, rest @ ..] = line else {
        return;
    };
    let mut note = |text: &str| {
        let place = source.place(head.span);
        notes.push(format!("{place}: `{}`: {text}", shown(&told(line))));
    };
    match means {
        Means::Silent => {}
        Means::Told(text) => note(text),
        Means::Time(timer) => {
            let Some(time) = time(&first.text) else {
                return source.bad(head, first, "a time, as in 2, 1.5 or 1500ms");
            };
            note(&timer_note(timer, time));
            *timer_of(conf, timer) = Some(time);
        }
        Means::Node => conf
            .nodes
            .extend(line.iter().skip(1).map(|word| word.text.clone())),
        Means::Multicast => {
            note("heartbeats are unicast: `--address` says where each node hears them");
            conf.interface.get_or_insert(first.text.clone());
        }
        Means::Unicast => {
            conf.interface.get_or_insert(first.text.clone());
            match rest.first().map(|word| word.text.parse()) {
                Some(Ok(address)) => conf.peers.push(address),
                _ => {
                    let word = rest.first().unwrap_or(first);
                    source.bad(head, word, "an interface and the IP address of a node");
                }
            }
        }
        Means::Serial => note("left out: heartbeats go over UDP only; use a second network"),
        Means::Ping | Means::PingGroup => {
            let skip = usize::from(matches!(means, Means::PingGroup));
            for word in line.iter().skip(1 + skip) {
                match word.text.parse() {
                    Ok(address) => conf.ping.push(address),
                    Err(_) => source.bad(head, word, "an IP address"),
                }
            }
        }
        Means::Failback => match first.text.as_str() {
            "on" | "true" | "yes" | "y" | "1" => {
                note(
                    "the node of `haresources` gets the resource back only when it has been up \
                     to date and well for five minutes (`failback when-stable 5m`)",
                );
                conf.failback = true;
            }
            "off" | "false" | "no" | "n" | "0" | "legacy" => {}
            _ => source.bad(head, first, "`on`, `off` or `legacy`"),
        },
        Means::Facility => match Facility::named(&first.text) {
            Some(facility) => {
                note("events go there (`notify`), the log goes to the journal");
                conf.facility = Some(facility);
            }
            None => note("left out: events can go to user, daemon, syslog and local0 to local7"),
        },
        Means::Watchdog => {
            note("it is armed before a promotion, and fires before the lease ends");
            conf.watchdog = Some(PathBuf::from(&first.text));
        }
        Means::Manager => {
            if matches!(
                first.text.as_str(),
                "on" | "yes" | "true" | "y" | "1" | "respawn"
            ) {
                note("Pacemaker's resources are not read, and `haresources` was not used with it");
            }
        }
    }
}

fn told(line: &[Word]) -> String {
    let words: Vec<&str> = line.iter().map(|word| word.text.as_str()).collect();
    words.join(" ")
}

fn timer_of(conf: &mut HaConf, timer: Timer) -> &mut Option<Duration> {
    match timer {
        Timer::Keepalive => &mut conf.keepalive,
        Timer::Warn => &mut conf.warntime,
        Timer::Dead => &mut conf.deadtime,
        Timer::Init => &mut conf.initdead,
    }
}

fn timer_note(timer: Timer, time: Duration) -> String {
    let text = duration_text(time.as_millis() as u64);
    match timer {
        Timer::Keepalive => format!("`interval {text}`; 250ms is the default here"),
        Timer::Warn => format!("`warn-after {text}`: then a path is shown as late"),
        Timer::Dead => format!(
            "`lease {text}`: a silent owner is replaced when its lease has ended, and not before \
             the vote agrees. Without it takeover comes after 3 s"
        ),
        Timer::Init => format!("`boot-wait {text}`"),
    }
}

/// `10`, `1.5`, `1500ms`.
fn time(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" | "sec" => 1000.0,
        "ms" | "msec" => 1.0,
        "us" | "usec" => 0.001,
        _ => return None,
    };
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number: f64 = plain.then(|| number.parse().ok())??;
    let millis = (number * factor).round();
    (1.0..=86_400_000.0)
        .contains(&millis)
        .then(|| Duration::from_millis(millis as u64))
}

/// Scripts that came with Heartbeat and that we do not need, with the reason.
const AGENTS: &[(&str, &str)] = &[
    ("AudibleAlarm", "use `notify { exec ...; }`"),
    ("Delay", "steps wait for each other"),
    ("IPsrcaddr", "there is no such step; use a `run` step"),
    (
        "LVM",
        "the volume is on the replicated disk; use a `run` step",
    ),
    ("LinuxSCSI", "the replicated disk needs none"),
    ("Raid1", "the replicated disk needs none"),
    ("SendArp", "`vip` announces its address itself"),
    ("ServeRAID", "the replicated disk needs none"),
    ("WinPopup", "use `notify { exec ...; }`"),
    ("portblock", "`vip` is the last to come and the first to go"),
    ("db2", "use a `service` step"),
    ("OCF", "use a `service` step"),
];

fn haresources(
    mut source: Source<'_>,
    folder: &Path,
    notes: &mut Vec<String>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in source.lines(&['#']) {
        let mut words = line.iter();
        let Some(node) = words.next() else { continue };
        if source.value(&line, 1, "at least one resource").is_none() {
            continue;
        }
        let mut group = Group {
            node: node.clone(),
            place: source.place(node.span),
            elements: Vec::new(),
        };
        for word in words {
            let found = element(&mut source, folder, word, notes);
            group.elements.extend(found);
        }
        groups.push(group);
    }
    errors.append(&mut source.errors);
    groups
}

fn element(
    source: &mut Source<'_>,
    folder: &Path,
    word: &Word,
    notes: &mut Vec<String>,
) -> Option<Element> {
    // A bare address, of either family.
    let first = word.text.split('/').next().unwrap_or_default();
    if first.parse::<IpAddr>().is_ok() {
        return address(source, word, &word.text);
    }
    let parts: Vec<&str> = word.text.split("::").collect();
    let (name, args) = parts.split_first()?;
    match *name {
        // What separates arguments also stands in addresses.
        "IPaddr" | "IPaddr2" | "IPv6addr" => address(source, word, &args.join("::")),
        "drbddisk" => Some(Element::Drbd(args.first().map(|name| (*name).to_owned()))),
        "Filesystem" => filesystem(source, word, args),
        "MailTo" => {
            if args.len() > 1 {
                let place = source.place(word.span);
                notes.push(format!("{place}: `MailTo`: its subject is left out"));
            }
            match args.first() {
                Some(to) => Some(Element::Mail((*to).to_owned())),
                None => missing(source, word, "an address"),
            }
        }
        _ => {
            if let Some((_, reason)) = AGENTS.iter().find(|(known, _)| known == name) {
                let place = source.place(word.span);
                notes.push(format!(
                    "{place}: `{}`: left out: {reason}",
                    shown(&word.text)
                ));
                return None;
            }
            script(source, folder, word, name, args, notes)
        }
    }
}

fn missing<T>(source: &mut Source<'_>, word: &Word, needs: &str) -> Option<T> {
    let kind = DiagnosticKind::MissingValue {
        option: shown(&word.text),
        needs: needs.to_owned(),
    };
    source.error(kind, word.span);
    None
}

/// `IP[/PREFIX[/INTERFACE[/BROADCAST]]]`, in any order after the prefix.
fn address(source: &mut Source<'_>, word: &Word, arg: &str) -> Option<Element> {
    let mut parts = arg.split('/');
    let address = parts.next().and_then(|ip| ip.parse::<IpAddr>().ok());
    let mut prefix = None;
    let mut dev = None;
    let mut fine = address.is_some();
    for part in parts {
        if part.is_empty() || part.parse::<IpAddr>().is_ok() {
            // A broadcast address follows from the prefix.
        } else if part.bytes().all(|b| b.is_ascii_digit()) && prefix.is_none() {
            prefix = part.parse::<u8>().ok();
            fine &= prefix.is_some();
        } else if dev.is_none() {
            // An alias is no interface of its own any more.
            dev = Some(part.split(':').next().unwrap_or(part).to_owned());
        } else {
            fine = false;
        }
    }
    match address {
        Some(address) if fine => Some(Element::Address {
            address,
            prefix,
            dev,
        }),
        _ => {
            source.bad(word, word, "NAME::IP/PREFIX/INTERFACE");
            None
        }
    }
}

/// `DEVICE::DIR[::TYPE[::OPTIONS]]`.
fn filesystem(source: &mut Source<'_>, word: &Word, args: &[&str]) -> Option<Element> {
    let (device, dir) = match args {
        [device, dir, ..] if dir.starts_with('/') => (*device, *dir),
        _ => return missing(source, word, "DEVICE::FOLDER::TYPE"),
    };
    let text = |index: usize| {
        let arg = args.get(index).filter(|arg| !arg.is_empty());
        arg.map(|arg| (*arg).to_owned())
    };
    Some(Element::Filesystem {
        device: device.to_owned(),
        dir: PathBuf::from(dir),
        fstype: text(2).unwrap_or_else(|| "auto".to_owned()),
        options: text(3),
    })
}

/// Init scripts of the NFS server.
const NFS_SERVERS: [&str; 6] = [
    "nfs",
    "nfsserver",
    "nfs-server",
    "nfs-kernel-server",
    "nfslock",
    "killnfs",
];

/// A script beside the files is the administrator's, any other an init script of the system.
fn script(
    source: &Source<'_>,
    folder: &Path,
    word: &Word,
    name: &str,
    args: &[&str],
    notes: &mut Vec<String>,
) -> Option<Element> {
    let place = source.place(word.span);
    let file = ["", "resource.d"]
        .iter()
        .map(|below| folder.join(below).join(name))
        .find(|path| path.is_file());
    let text = file
        .as_deref()
        .and_then(|path| fs::read_to_string(path).ok());
    if NFS_SERVERS.contains(&name) || text.as_deref().is_some_and(restarts_nfs) {
        notes.push(format!(
            "{place}: `{name}`: replaced by a step that starts and stops the NFS server, with its \
             state on the volume; nothing is killed"
        ));
        return Some(Element::Nfs);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if name.is_empty() || !name.chars().all(plain) {
        notes.push(format!(
            "{place}: `{}`: left out: not the name of a script",
            shown(&word.text)
        ));
        return None;
    }
    let Some(file) = file else {
        notes.push(format!(
            "{place}: `{name}`: taken as the systemd unit {name}.service"
        ));
        return Some(Element::Unit(name.to_owned()));
    };
    let file = fs::canonicalize(&file).unwrap_or(file);
    let mut command = quoted(&file.to_string_lossy());
    for arg in args {
        command.push(' ');
        command.push_str(&quoted(arg));
    }
    notes.push(format!(
        "{place}: `{name}`: called where it lies, {}, with `start` and `stop`: it must be there on \
         both nodes, and has no check",
        file.display()
    ));
    Some(Element::Script {
        name: name.to_owned(),
        command,
    })
}

/// A word for a shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// True for a script that kills or restarts the NFS server.
fn restarts_nfs(text: &str) -> bool {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let has = |names: &[&str]| words.iter().any(|word| names.contains(word));
            let server = words.iter().any(|word| {
                word.ends_with("nfsd") || NFS_SERVERS.iter().any(|n| word.ends_with(n))
            });
            server
                && has(&[
                    "killall",
                    "pkill",
                    "kill",
                    "service",
                    "systemctl",
                    "start",
                    "restart",
                ])
        })
}

/// Nothing of it is carried over, but a mistake in it is told.
fn authkeys(mut source: Source<'_>, notes: &mut Vec<String>, errors: &mut Vec<Diagnostic>) {
    let lines = source.lines(&['#']);
    for line in &lines {
        let Some(head) = line.first() else { continue };
        let number = head.text.parse::<u8>().is_ok_and(|n| (1..=15).contains(&n));
        if head.is("auth") {
            source.value(line, 1, "the number of a key");
        } else if !number {
            source.unknown(head, &["auth"]);
        } else if let Some(method) = source.value(line, 1, "crc, md5 or sha1")
            && !["crc", "md5", "sha1"].contains(&method.text.as_str())
        {
            source.bad(head, method, "crc, md5 or sha1");
        }
    }
    if let Some(first) = lines.first().and_then(|line| line.first()) {
        let place = source.place(first.span);
        notes.push(format!("{place}: the keys are left out: a new one is made"));
    }
    errors.append(&mut source.errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_spelling() {
        for (text, millis) in [
            ("2", 2000),
            ("1.5", 1500),
            ("1500ms", 1500),
            ("30s", 30_000),
            ("2000us", 2),
        ] {
            assert_eq!(time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "x", "-1", "0", "1e9", "5 s", "1.2.3", "inf"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn scripts_that_restart_the_nfs_server_are_known() {
        assert!(restarts_nfs("for i in 1 2; do\n killall -9 nfsd\ndone\n"));
        assert!(restarts_nfs("/sbin/service nfs start"));
        assert!(restarts_nfs("systemctl restart nfs-kernel-server"));
        assert!(!restarts_nfs("# killall nfsd\necho nfs is not touched\n"));
        assert!(!restarts_nfs("service httpd start"));
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("/etc/ha.d/x"), "/etc/ha.d/x");
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
    }
}
