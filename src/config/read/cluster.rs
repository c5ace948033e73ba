//! The `cluster` section.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::super::cluster::{Arbiter, Facility, FenceCommand, NodePath, Notify, Witness};
use super::super::diagnostic::{DiagnosticKind, shown};
use super::super::model::Spanned;
use super::super::options::Settings;
use super::super::schema::Section;
use super::super::source::Span;
use super::super::syntax::{Item, Word};
use super::Reader;

/// What a fence command may take unless it is told.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// In seconds: a lease, which is longer, has its range too.
const MAX_WATCHDOG: u64 = 240;

/// Where mail goes unless it is told.
const SENDMAIL: &str = "/usr/sbin/sendmail";

/// `cluster`.
#[derive(Debug, Default)]
pub struct DraftCluster {
    pub key_file: Option<Spanned<PathBuf>>,
    pub nodes: BTreeMap<String, DraftNode>,
    pub heartbeat: Settings,
    pub arbiter: Option<Spanned<Arbiter>>,
    pub watchdog: Option<DraftWatchdog>,
    pub notify: Vec<Notify>,
    /// Something in it was refused.
    pub faulty: bool,
    heartbeat_at: Option<Span>,
    notify_at: Option<Span>,
}

/// `node NAME`.
#[derive(Debug)]
pub struct DraftNode {
    pub name: Spanned<String>,
    pub node_id: Option<Spanned<u8>>,
    pub paths: Vec<NodePath>,
}

/// `watchdog`.
#[derive(Debug, PartialEq)]
pub struct DraftWatchdog {
    pub device: Spanned<PathBuf>,
    pub timeout: Option<Spanned<Duration>>,
}

impl Reader<'_> {
    pub(super) fn cluster(&mut self, draft: &mut DraftCluster, item: &Item) {
        if !self.accept(Section::Cluster, item) {
            return;
        }
        let body = item.body.as_deref().unwrap_or_default();
        match item.head.text.as_str() {
            "key-file" => {
                if let Some(path) = self.path(item) {
                    self.set("`key-file`", &mut draft.key_file, path);
                }
            }
            "heartbeat" => {
                draft.heartbeat_at = self.once(draft.heartbeat_at, item);
                draft.heartbeat = self.settings(body, Section::Heartbeat);
            }
            "node" => self.node(draft, item, body),
            "mode" => {
                let new = self.mode(item);
                self.arbiter(draft, item, new);
            }
            "witness" => {
                let new = self.witness(item, body);
                self.arbiter(draft, item, new);
            }
            "fence-command" => {
                let new = self.fence_command(item);
                self.arbiter(draft, item, new);
            }
            "watchdog" => self.watchdog(draft, item),
            "notify" => {
                draft.notify_at = self.once(draft.notify_at, item);
                self.each(body, Section::Notify, &mut |reader, item| {
                    if reader.accept(Section::Notify, item) {
                        draft.notify.extend(reader.notify(item));
                    }
                });
            }
            _ => {}
        }
    }

    fn node(&mut self, draft: &mut DraftCluster, item: &Item, body: &[Item]) {
        let Some(name) = self.one(item, "the name of a host") else {
            return;
        };
        let mut node = DraftNode {
            name: Spanned::new(name.text.clone(), name.span),
            node_id: None,
            paths: Vec::new(),
        };
        if let Some(first) = draft.nodes.get(&name.text) {
            let kind = DiagnosticKind::Duplicate {
                what: format!("node {}", shown(&name.text)),
                first: self.place(first.name.span),
            };
            self.error(kind, name.span);
        }
        self.each(body, Section::ClusterNode, &mut |reader, item| {
            if !reader.accept(Section::ClusterNode, item) {
                return;
            }
            match item.head.text.as_str() {
                "node-id" => {
                    if let Some(new) = reader.node_id(item) {
                        reader.set("`node-id`", &mut node.node_id, new);
                    }
                }
                _ => node.paths.extend(reader.node_path(item)),
            }
        });
        if self.name(name) {
            draft.nodes.insert(name.text.clone(), node);
        }
    }

    /// `path IP:PORT [dev IF]`.
    fn node_path(&mut self, item: &Item) -> Option<NodePath> {
        self.one(item, "IP:PORT")?;
        let pairs = self.pairs(item, 1, &["dev"])?;
        let dev = match pairs.get("dev") {
            Some(word) => Some(self.interface("dev", word)?),
            None => None,
        };
        let plain = Item {
            args: item.args.iter().take(1).cloned().collect(),
            ..item.clone()
        };
        let address = self.address(&plain)?;
        Some(NodePath { address, dev })
    }

    fn mode(&mut self, item: &Item) -> Option<Arbiter> {
        let word = self.one(item, "`manual` or `unsafe-two-node`")?;
        match word.text.as_str() {
            "manual" => Some(Arbiter::Manual),
            "unsafe-two-node" => Some(Arbiter::UnsafeTwoNode),
            _ => {
                self.choice("mode", word, &["manual", "unsafe-two-node"]);
                None
            }
        }
    }

    fn witness(&mut self, item: &Item, body: &[Item]) -> Option<Arbiter> {
        let name = self.one(item, "a name")?;
        let mut address = None;
        self.each(body, Section::Witness, &mut |reader, item| {
            if reader.accept(Section::Witness, item)
                && let Some(new) = reader.address(item)
            {
                reader.set("`address`", &mut address, new);
            }
        });
        if address.is_none() {
            let kind = DiagnosticKind::WitnessAddress {
                name: shown(&name.text),
            };
            self.error(kind, name.span);
        }
        self.name(name).then_some(Arbiter::Witness(Witness {
            name: Spanned::new(name.text.clone(), name.span),
            address: address?,
        }))
    }

    fn fence_command(&mut self, item: &Item) -> Option<Arbiter> {
        let word = self.one(item, "a command in double quotes")?;
        let command = self.text("fence-command", word)?;
        let pairs = self.pairs(item, 1, &["timeout"])?;
        let timeout = match pairs.get("timeout") {
            Some(word) => self.time("timeout", word, [1, 600])?,
            None => FENCE_TIMEOUT,
        };
        Some(Arbiter::Fence(FenceCommand { command, timeout }))
    }

    /// There is one third vote.
    fn arbiter(&mut self, draft: &mut DraftCluster, item: &Item, new: Option<Arbiter>) {
        let Some(new) = new else { return };
        match &draft.arbiter {
            Some(first) if first.value != new => {
                let first = self.place(first.span);
                self.error(DiagnosticKind::TwoVotes { first }, item.span());
            }
            _ => draft.arbiter = Some(Spanned::new(new, item.span())),
        }
    }

    fn watchdog(&mut self, draft: &mut DraftCluster, item: &Item) {
        let Some(word) = self.one(item, "a device") else {
            return;
        };
        let Some(device) = self.absolute(item, &word.text, word.span) else {
            return;
        };
        let Some(pairs) = self.pairs(item, 1, &["timeout"]) else {
            return;
        };
        let mut timeout = None;
        if let Some(word) = pairs.get("timeout") {
            match self.time("timeout", word, [1, MAX_WATCHDOG]) {
                // The devices count in seconds.
                Some(time) if time.subsec_millis() == 0 => {
                    timeout = Some(Spanned::new(time, word.span));
                }
                Some(_) => return self.bad("timeout", word, "a whole number of seconds"),
                None => return,
            }
        }
        let new = DraftWatchdog {
            device: Spanned::new(device, word.span),
            timeout,
        };
        match &draft.watchdog {
            Some(first) if *first != new => {
                let kind = DiagnosticKind::Duplicate {
                    what: "`watchdog`".to_owned(),
                    first: self.place(first.device.span),
                };
                self.error(kind, item.span());
            }
            _ => draft.watchdog = Some(new),
        }
    }

    fn notify(&mut self, item: &Item) -> Option<Notify> {
        let what = item.head.text.as_str();
        match what {
            "exec" => {
                let word = self.one(item, "a command in double quotes")?;
                Some(Notify::Exec(self.text(what, word)?))
            }
            "mail" => {
                let word = self.one(item, "an address")?;
                let to = self.text(what, word)?;
                // It becomes an argument of a program and the line of a header.
                if to.starts_with('-') || to.contains(|c: char| c.is_control() || c == ' ') {
                    self.bad(what, word, "an address");
                    return None;
                }
                let pairs = self.pairs(item, 1, &["via"])?;
                let via = match pairs.get("via") {
                    Some(word) => self.absolute(item, &word.text, word.span)?,
                    None => PathBuf::from(SENDMAIL),
                };
                Some(Notify::Mail { to, via })
            }
            "webhook" => {
                let word = self.one(item, "an http:// URL")?;
                self.webhook(word)
            }
            _ => {
                let names = Facility::ALL.map(|facility| facility.name);
                let word = self.one(item, "a facility")?;
                match Facility::named(&word.text) {
                    Some(facility) => Some(Notify::Syslog(facility)),
                    None => {
                        self.choice(what, word, &names);
                        None
                    }
                }
            }
        }
    }

    fn webhook(&mut self, word: &Word) -> Option<Notify> {
        let rest = word.text.strip_prefix("http://");
        let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or("");
        let fine = !host.is_empty()
            && word.text.len() <= super::MAX_TEXT
            && word.text.chars().all(|c| c.is_ascii_graphic());
        if word.text.starts_with("https://") {
            let kind = DiagnosticKind::ValueNotSupported {
                option: "webhook".to_owned(),
                value: shown(&word.text),
                works: "an http:// URL, or `exec` with curl".to_owned(),
            };
            self.error(kind, word.span);
            return None;
        }
        if !fine {
            self.bad("webhook", word, "an http:// URL");
            return None;
        }
        Some(Notify::Webhook(word.text.clone()))
    }
}
