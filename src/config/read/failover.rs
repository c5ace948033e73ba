//! The `failover` section of a resource.

use std::net::IpAddr;
use std::path::{Component, Path};

use super::super::diagnostic::{DiagnosticKind, shown};
use super::super::failover::{Control, Failback, Fsck, Mount, Service, Step, Vip};
use super::super::model::{Spanned, StartPolicy};
use super::super::options::Settings;
use super::super::schema::{self, Section};
use super::super::source::Span;
use super::super::syntax::{Item, Word};
use super::{DraftResource, Layer, Reader};
use crate::config::CheckOptions;

/// A day: what is not stable for that long will not be.
const MAX_STABLE: u64 = 24 * 60 * 60;

/// Names of units of systemd.
const MAX_UNIT: usize = 255;

/// `failover`.
#[derive(Debug)]
pub struct DraftFailover {
    pub start_policy: Option<Spanned<StartPolicy>>,
    pub preferred: Option<Spanned<String>>,
    pub failback: Option<Spanned<Failback>>,
    pub steps: Vec<Spanned<Step>>,
    pub monitor: Option<DraftMonitor>,
    pub group: Option<Spanned<String>>,
    pub stop_ladder: Settings,
    /// Of the word `failover`.
    span: Span,
    stop_ladder_at: Option<Span>,
}

/// `monitor`.
#[derive(Debug)]
pub struct DraftMonitor {
    pub ping: Vec<IpAddr>,
    pub interfaces: Vec<String>,
    pub settings: Settings,
    span: Span,
}

impl Reader<'_> {
    pub(super) fn failover(&mut self, resource: &mut DraftResource, item: &Item, body: &[Item]) {
        let first = resource.failover.as_ref().map(|section| section.span);
        let span = self.once(first, item).unwrap_or(item.head.span);
        let mut draft = DraftFailover {
            start_policy: None,
            preferred: None,
            failback: None,
            steps: Vec::new(),
            monitor: None,
            group: None,
            stop_ladder: Settings::new(),
            span,
            stop_ladder_at: None,
        };
        self.each(body, Section::Failover, &mut |reader, item| {
            if reader.accept(Section::Failover, item) {
                reader.failover_item(&mut draft, item);
            }
        });
        resource.failover = Some(draft);
    }

    fn failover_item(&mut self, draft: &mut DraftFailover, item: &Item) {
        let body = item.body.as_deref().unwrap_or_default();
        match item.head.text.as_str() {
            "start-policy" => self.start_policy(draft, item),
            "preferred" => {
                if let Some(name) = self.named(item) {
                    self.set("`preferred`", &mut draft.preferred, name);
                }
            }
            "group" => {
                if let Some(name) = self.named(item) {
                    self.set("`group`", &mut draft.group, name);
                }
            }
            "failback" => {
                if let Some(failback) = self.failback(item) {
                    let new = Spanned::new(failback, item.span());
                    self.set("`failback`", &mut draft.failback, new);
                }
            }
            "monitor" => self.monitor(draft, item, body),
            "stop-ladder" => {
                draft.stop_ladder_at = self.once(draft.stop_ladder_at, item);
                draft.stop_ladder = self.settings(body, Section::StopLadder);
            }
            "mount" => {
                let step = self.mount(item).map(Step::Mount);
                self.step(draft, item, step);
            }
            "vip" => {
                let step = self.vip(item).map(Step::Vip);
                self.step(draft, item, step);
            }
            "service" => {
                let step = self.service(item, body).map(Step::Service);
                self.step(draft, item, step);
            }
            _ => {
                let step = self.service(item, body).map(Step::Run);
                self.step(draft, item, step);
            }
        }
    }

    fn start_policy(&mut self, draft: &mut DraftFailover, item: &Item) {
        let Some(word) = self.one(item, "`auto` or `manual`") else {
            return;
        };
        let policy = match word.text.as_str() {
            "auto" => StartPolicy::Auto,
            "manual" => StartPolicy::Manual,
            _ => return self.choice("start-policy", word, &["auto", "manual"]),
        };
        let new = Spanned::new(policy, item.span());
        self.set("`start-policy`", &mut draft.start_policy, new);
    }

    /// The one value of a statement, a name.
    fn named(&mut self, item: &Item) -> Option<Spanned<String>> {
        let word = self.one(item, "a name")?;
        self.name(word)
            .then(|| Spanned::new(word.text.clone(), word.span))
    }

    /// `failback never` or `failback when-stable T`.
    fn failback(&mut self, item: &Item) -> Option<Failback> {
        let word = self.one(item, "`never` or `when-stable TIME`")?;
        let rest = item.args.get(1);
        match (word.text.as_str(), rest) {
            ("never", None) => Some(Failback::Never),
            ("never", Some(extra)) => {
                let kind = DiagnosticKind::ExtraWord {
                    option: "failback never".to_owned(),
                    word: shown(&extra.text),
                };
                self.error(kind, extra.span);
                None
            }
            ("when-stable", Some(time)) => {
                let time = self.time("when-stable", time, [1, MAX_STABLE])?;
                Some(Failback::WhenStable(time))
            }
            ("when-stable", None) => {
                let kind = DiagnosticKind::MissingValue {
                    option: "failback when-stable".to_owned(),
                    needs: "a time".to_owned(),
                };
                self.error(kind, word.span);
                None
            }
            _ => {
                self.choice("failback", word, &["never", "when-stable"]);
                None
            }
        }
    }

    /// Adds a step whose name no other has.
    fn step(&mut self, draft: &mut DraftFailover, item: &Item, step: Option<Step>) {
        let Some(step) = step else { return };
        let name = step.name();
        if let Some(first) = draft.steps.iter().find(|other| other.name() == name) {
            let kind = DiagnosticKind::Duplicate {
                what: format!("step {}", shown(&name)),
                first: self.place(first.span),
            };
            self.error(kind, item.span());
        }
        draft.steps.push(Spanned::new(step, item.span()));
    }

    fn mount(&mut self, item: &Item) -> Option<Mount> {
        let word = self.one(item, "a folder")?;
        let dir = self.absolute(item, &word.text, word.span)?;
        if !is_mount_point(&dir) {
            self.bad("mount", word, "a folder below `/`, without `..`");
            return None;
        }
        let pairs = self.pairs(item, 1, &["volume", "fstype", "options", "fsck"])?;
        let volume = match pairs.get("volume") {
            Some(word) => self.volume_number("volume", word)?,
            None => 0,
        };
        let fstype = self.mount_word(&pairs, "fstype", "auto")?;
        let options = self.mount_word(&pairs, "options", "defaults")?;
        let fsck = match pairs.get("fsck") {
            Some(word) => match Fsck::named(&word.text) {
                Some(fsck) => fsck,
                None => {
                    self.choice("fsck", word, &Fsck::WORDS);
                    return None;
                }
            },
            None => Fsck::default(),
        };
        Some(Mount {
            dir: dir.components().collect(),
            volume,
            fstype,
            options,
            fsck,
        })
    }

    /// A word that becomes an argument of `mount`.
    fn mount_word(&mut self, pairs: &super::Pairs, key: &str, default: &str) -> Option<String> {
        let Some(word) = pairs.get(key) else {
            return Some(default.to_owned());
        };
        let text = self.text(key, word)?;
        if text.starts_with('-') || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.bad(key, word, "one word as `mount` takes it");
            return None;
        }
        Some(text)
    }

    /// `vip ADDRESS/PREFIX dev IF`.
    fn vip(&mut self, item: &Item) -> Option<Vip> {
        let word = self.one(item, "ADDRESS/PREFIX")?;
        let expected = "ADDRESS/PREFIX, as in 10.0.0.100/24 or fd00::100/64";
        let Some((address, prefix)) = split_prefix(&word.text) else {
            self.bad("vip", word, expected);
            return None;
        };
        let max: u8 = if address.is_ipv4() { 32 } else { 128 };
        if !(1..=max).contains(&prefix) {
            let kind = DiagnosticKind::OutOfRange {
                option: "vip".to_owned(),
                value: format!("prefix {prefix}"),
                min: "1".to_owned(),
                max: max.to_string(),
                unit: " bits".to_owned(),
            };
            self.error(kind, word.span);
            return None;
        }
        if address.is_unspecified() || address.is_multicast() || is_edge(address, prefix) {
            self.bad("vip", word, "the address of a host");
            return None;
        }
        let pairs = self.pairs(item, 1, &["dev"])?;
        let Some(dev) = pairs.get("dev") else {
            let kind = DiagnosticKind::MissingValue {
                option: "vip".to_owned(),
                needs: "ADDRESS/PREFIX dev INTERFACE".to_owned(),
            };
            self.error(kind, item.span());
            return None;
        };
        let dev = self.interface("dev", dev)?;
        Some(Vip {
            address,
            prefix,
            dev,
        })
    }

    fn service(&mut self, item: &Item, body: &[Item]) -> Option<Service> {
        let before = self.errors.len();
        let name = self.named(item)?;
        let mut layer = Layer::default();
        let mut texts: [Option<Spanned<String>>; 4] = Default::default();
        let [start, stop, check, unit] = &mut texts;
        self.each(body, Section::Service, &mut |reader, item| {
            if schema::structure(Section::Service, &item.head.text).is_none() {
                return reader.option_of(Section::Service, item, &mut layer);
            }
            if !reader.accept(Section::Service, item) {
                return;
            }
            let what = item.head.text.as_str();
            let Some(new) = reader.command(item) else {
                return;
            };
            let slot = match what {
                "start" => &mut *start,
                "stop" => &mut *stop,
                "check" => &mut *check,
                _ => &mut *unit,
            };
            reader.set(&format!("`{what}`"), slot, new);
        });
        let [start, stop, check, unit] = texts;
        if self.errors.len() > before {
            return None;
        }
        let control = match (start, stop, unit) {
            (Some(start), Some(stop), None) => Control::Commands {
                start: start.value,
                stop: stop.value,
            },
            (None, None, Some(unit)) => Control::Unit(self.unit(unit)?),
            _ => {
                let kind = DiagnosticKind::ServiceControl {
                    name: name.value.clone(),
                };
                self.error(kind, name.span);
                return None;
            }
        };
        Some(Service {
            name: name.value,
            control,
            check: check.map(|check| check.value),
            options: CheckOptions::resolve(&[&layer.other]),
        })
    }

    /// The one value of a statement, a command.
    fn command(&mut self, item: &Item) -> Option<Spanned<String>> {
        let word = self.one(item, "a text in double quotes")?;
        let text = self.text(&item.head.text, word)?;
        Some(Spanned::new(text, word.span))
    }

    fn unit(&mut self, unit: Spanned<String>) -> Option<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let name = unit.value.as_str();
        if name.len() <= MAX_UNIT && name.chars().all(plain) && !name.starts_with('-') {
            return Some(unit.value);
        }
        let kind = DiagnosticKind::BadValue {
            option: "unit".to_owned(),
            value: shown(name),
            expected: "the name of a systemd unit".to_owned(),
        };
        self.error(kind, unit.span);
        None
    }

    fn monitor(&mut self, draft: &mut DraftFailover, item: &Item, body: &[Item]) {
        let first = draft.monitor.as_ref().map(|monitor| monitor.span);
        let span = self.once(first, item).unwrap_or(item.head.span);
        let before = self.errors.len();
        let (mut ping, mut interfaces) = (Vec::new(), Vec::new());
        let mut layer = Layer::default();
        self.each(body, Section::Monitor, &mut |reader, item| {
            if schema::structure(Section::Monitor, &item.head.text).is_none() {
                return reader.option_of(Section::Monitor, item, &mut layer);
            }
            if !reader.accept(Section::Monitor, item) || reader.one(item, "a value").is_none() {
                return;
            }
            for word in &item.args {
                if item.head.is("ping") {
                    ping.extend(reader.ping(word));
                } else {
                    interfaces.extend(reader.interface("interface", word));
                }
            }
        });
        if ping.is_empty() && interfaces.is_empty() && self.errors.len() == before {
            self.error(DiagnosticKind::EmptyMonitor, span);
        }
        draft.monitor = Some(DraftMonitor {
            ping,
            interfaces,
            settings: layer.other,
            span,
        });
    }

    fn ping(&mut self, word: &Word) -> Option<IpAddr> {
        match word.text.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
            _ => {
                self.bad("ping", word, "the IP address of a host");
                None
            }
        }
    }
}

/// True for a folder in which something can be mounted without covering the system.
fn is_mount_point(dir: &Path) -> bool {
    dir.components().count() > 1 && !dir.components().any(|part| part == Component::ParentDir)
}

/// `ADDRESS/PREFIX`.
pub fn split_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix = digits.then(|| prefix.parse().unwrap_or(u8::MAX))?;
    Some((address.parse().ok()?, prefix))
}

/// True for the first and last address of an IPv4 network, which belong to no host.
fn is_edge(address: IpAddr, prefix: u8) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let bits = u32::from(address) & host;
    prefix < 31 && (bits == 0 || bits == host)
}
