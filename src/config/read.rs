//! Syntax tree to draft: every statement is recognised and its value checked on its own.
//!
//! The draft has the shape of the file: nothing is inherited yet and anything may be missing.
//! [`super::resolve`] makes the model from it.

mod cluster;
mod failover;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::agent::protocol::FrontEnd;

use super::diagnostic::{
    AddressFault, DeviceFault, Diagnostic, DiagnosticKind, MAX_MESSAGES, shown,
};
use super::model::{MetaDisk, Spanned};
use super::options::{NumberFault, Settings, parse_number, parse_option};
use super::place::{MAX_SOCKET_PATH, MetaPlace, parse_address, parse_device, parse_meta};
use super::schema::{self, MODULE_VERSION, Section, Shape, Unit};
use super::source::{SourceMap, Span};
use super::syntax::{Item, Word};
pub use cluster::{DraftCluster, DraftNode, DraftWatchdog};
pub use failover::{DraftFailover, split_prefix};

/// Node ids: the formats have room for 16 nodes.
pub const MAX_NODE_ID: u8 = 15;

/// Longest name of a resource or host: part of file names and frames.
const MAX_NAME: usize = 64;

/// Longest command and the like.
const MAX_TEXT: usize = 4096;

/// Longest name of a network interface.
const MAX_INTERFACE: usize = 15;

/// Values of a statement by the words before them.
type Pairs<'i> = BTreeMap<&'static str, &'i Word>;

/// The options that one level of the file sets.
#[derive(Debug, Default)]
pub struct Layer {
    pub net: Settings,
    pub disk: Settings,
    pub handlers: Settings,
    /// Those of all other sections.
    other: Settings,
}

impl Layer {
    fn settings(&mut self, section: Section) -> &mut Settings {
        match section {
            Section::Net => &mut self.net,
            Section::Disk => &mut self.disk,
            Section::Handlers => &mut self.handlers,
            _ => &mut self.other,
        }
    }
}

/// `volume N`, or the bare `device`, `disk` and `meta-disk`.
#[derive(Debug, Default)]
pub struct DraftVolume {
    pub device: Option<Spanned<FrontEnd>>,
    pub disk: Option<Spanned<PathBuf>>,
    pub meta: Option<Spanned<MetaDisk>>,
    pub options: Settings,
    /// Of a `volume` section.
    section: Option<Span>,
}

/// The volumes of one level, with the first bare statement that stands for volume 0.
#[derive(Debug, Default)]
pub struct DraftVolumes {
    pub volumes: BTreeMap<u16, DraftVolume>,
    pub bare: Option<Word>,
    pub explicit: bool,
}

/// `on HOST`.
#[derive(Debug)]
pub struct DraftHost {
    pub names: Vec<Spanned<String>>,
    pub address: Option<Spanned<SocketAddr>>,
    pub node_id: Option<Spanned<u8>>,
    pub volumes: DraftVolumes,
    /// Of the head of the section.
    pub span: Span,
}

/// `resource NAME`.
#[derive(Debug)]
pub struct DraftResource {
    pub name: Spanned<String>,
    pub layer: Layer,
    pub volumes: DraftVolumes,
    pub hosts: Vec<DraftHost>,
    pub failover: Option<DraftFailover>,
    /// Something in it was refused: what is missing may have been written.
    pub faulty: bool,
}

/// A whole file and its includes.
#[derive(Debug, Default)]
pub struct Draft {
    pub global: Settings,
    pub common: Layer,
    pub resources: Vec<DraftResource>,
    pub cluster: DraftCluster,
    pub warnings: Vec<Diagnostic>,
}

/// Reads a tree. Errors are appended to `errors`; reading ends when there are many.
pub fn read(sources: &SourceMap, items: &[Item], errors: &mut Vec<Diagnostic>) -> Draft {
    let mut reader = Reader {
        sources,
        errors,
        warnings: Vec::new(),
        global: None,
        common: None,
        cluster: None,
    };
    let mut draft = Draft::default();
    reader.each(items, Section::Top, &mut |reader, item| {
        reader.top(&mut draft, item);
    });
    draft.warnings = reader.warnings;
    draft
}

struct Reader<'a> {
    sources: &'a SourceMap,
    errors: &'a mut Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Sections that may stand once.
    global: Option<Span>,
    common: Option<Span>,
    cluster: Option<Span>,
}

impl Reader<'_> {
    fn error(&mut self, kind: DiagnosticKind, span: Span) {
        self.errors
            .push(Diagnostic::new(kind).at(self.sources.locate(span)));
    }

    /// `FILE:LINE:COLUMN`, for messages that name a second place.
    fn place(&self, span: Span) -> String {
        let at = self.sources.locate(span);
        format!("{}:{}:{}", at.file, at.line, at.column)
    }

    /// Calls `visit` for every item. A missing `;` glues a statement to what follows on the next
    /// line: it is reported here and the two are taken apart, so that it costs one message.
    fn each(&mut self, items: &[Item], section: Section, visit: &mut dyn FnMut(&mut Self, &Item)) {
        for item in items {
            if self.errors.len() >= MAX_MESSAGES {
                return;
            }
            let mut rest = item.clone();
            while let Some(cut) = self.glued(section, &rest) {
                let after = rest.args[..cut].last().unwrap_or(&rest.head);
                let kind = DiagnosticKind::MissingSemicolon {
                    after: shown(&after.text),
                };
                self.error(kind, after.span.after());
                let mut words = rest.args.split_off(cut).into_iter();
                let body = rest.body.take();
                visit(self, &rest);
                let Some(head) = words.next() else { break };
                rest = Item {
                    head,
                    args: words.collect(),
                    body,
                };
            }
            visit(self, &rest);
        }
    }

    /// If an item cannot be one statement and has a line break, the number of values before it.
    fn glued(&self, section: Section, item: &Item) -> Option<usize> {
        let (words, takes_body) = match schema::structure(section, &item.head.text) {
            Some(known) => (
                known.shape.words(),
                !matches!(known.shape, Shape::Statement(_)),
            ),
            None => {
                let found = schema::find(section, &item.head.text)?;
                let many = found.spec.kind == schema::Kind::Words;
                (if many { usize::MAX } else { 1 }, false)
            }
        };
        if item.args.len() <= words && (takes_body || item.body.is_none()) {
            return None;
        }
        let mut line = self.sources.line(item.head.span);
        for (index, word) in item.args.iter().enumerate() {
            let next = self.sources.line(word.span);
            if next != line {
                return Some(index);
            }
            line = next;
        }
        None
    }

    /// Checks a word that is not an option: known here, supported, with or without a body. Returns
    /// false after reporting what is wrong.
    fn accept(&mut self, section: Section, item: &Item) -> bool {
        let word = &item.head;
        let known = match schema::structure(section, &word.text) {
            Some(known) if !word.quoted => known,
            _ => {
                self.unknown(section, word);
                return false;
            }
        };
        let name = known.word.to_owned();
        let kind = match (known.shape, &item.body) {
            _ if !known.supported => DiagnosticKind::NotSupported { what: name },
            (Shape::Statement(_), Some(_)) => DiagnosticKind::NotSection { word: name },
            (Shape::Section(_), None) => DiagnosticKind::NeedsSection { word: name },
            (shape, _) => match item.args.get(shape.words()) {
                None => return true,
                Some(extra) => {
                    let kind = DiagnosticKind::ExtraWord {
                        option: name,
                        word: shown(&extra.text),
                    };
                    self.error(kind, extra.span);
                    return false;
                }
            },
        };
        self.error(kind, word.span);
        false
    }

    fn unknown(&mut self, section: Section, word: &Word) {
        if word.text == "include" {
            return self.error(DiagnosticKind::IncludeNested, word.span);
        }
        let elsewhere = schema::sections_of(&word.text);
        let at = self.sources.locate(word.span);
        let diagnostic = if elsewhere.is_empty() {
            let kind = DiagnosticKind::Unknown {
                word: shown(&word.text),
                section: section.to_string(),
            };
            Diagnostic::new(kind).suggest(&word.text, schema::words(section))
        } else {
            let names: Vec<String> = elsewhere.iter().map(Section::to_string).collect();
            Diagnostic::new(DiagnosticKind::Misplaced {
                word: shown(&word.text),
                section: section.to_string(),
                belongs: format!("it belongs in {}", names.join(" or ")),
            })
        };
        self.errors.push(diagnostic.at(at));
    }

    /// The one value of a statement.
    fn one<'i>(&mut self, item: &'i Item, needs: &str) -> Option<&'i Word> {
        let word = item.args.first();
        if word.is_none() {
            let kind = DiagnosticKind::MissingValue {
                option: item.head.text.clone(),
                needs: needs.to_owned(),
            };
            self.error(kind, item.head.span);
        }
        word
    }

    /// Reports a second statement of a kind, unless it says the same.
    fn set<T: PartialEq>(&mut self, what: &str, slot: &mut Option<Spanned<T>>, new: Spanned<T>) {
        match slot {
            Some(old) if *old != new => {
                let kind = DiagnosticKind::Duplicate {
                    what: what.to_owned(),
                    first: self.place(old.span),
                };
                self.error(kind, new.span);
            }
            _ => *slot = Some(new),
        }
    }

    fn once(&mut self, seen: Option<Span>, item: &Item) -> Option<Span> {
        if let Some(first) = seen {
            let kind = DiagnosticKind::Duplicate {
                what: format!("section `{}`", item.head.text),
                first: self.place(first),
            };
            self.error(kind, item.head.span);
        }
        Some(item.head.span)
    }

    fn top(&mut self, draft: &mut Draft, item: &Item) {
        // There is no module whose version could be wrong.
        if item.head.text.starts_with(MODULE_VERSION) && item.body.is_none() {
            return;
        }
        if !self.accept(Section::Top, item) {
            return;
        }
        let body = item.body.as_deref().unwrap_or_default();
        match item.head.text.as_str() {
            "global" => {
                self.global = self.once(self.global, item);
                let mut layer = Layer::default();
                self.options(body, Section::Global, &mut layer);
                draft.global = layer.other;
            }
            "common" => {
                self.common = self.once(self.common, item);
                self.each(body, Section::Common, &mut |reader, item| {
                    reader.common(&mut draft.common, item);
                });
            }
            "cluster" => {
                let before = self.errors.len();
                self.cluster = self.once(self.cluster, item);
                self.each(body, Section::Cluster, &mut |reader, item| {
                    reader.cluster(&mut draft.cluster, item);
                });
                draft.cluster.faulty |= self.errors.len() > before;
            }
            "resource" => {
                if let Some(name) = self.one(item, "a name") {
                    let resource = self.resource(name, body);
                    draft.resources.push(resource);
                }
            }
            // `include` was taken by the parser; one that it refused was reported there.
            _ => {}
        }
    }

    /// The options of a section.
    fn options(&mut self, items: &[Item], section: Section, layer: &mut Layer) {
        self.each(items, section, &mut |reader, item| {
            reader.option_of(section, item, layer);
        });
    }

    /// The options of a section that has nothing else.
    fn settings(&mut self, items: &[Item], section: Section) -> Settings {
        let mut layer = Layer::default();
        self.options(items, section, &mut layer);
        layer.other
    }

    fn option_of(&mut self, section: Section, item: &Item, layer: &mut Layer) {
        // Newer versions of DRBD print what they do not know under this name.
        if item.head.is("_unknown") {
            return;
        }
        match schema::find(section, &item.head.text).filter(|_| !item.head.quoted) {
            Some(found) => self.option(item, found, layer),
            None => self.unknown(section, &item.head),
        }
    }

    fn option(&mut self, item: &Item, found: schema::Found, layer: &mut Layer) {
        let spec = found.spec;
        let setting = match parse_option(self.sources, item, found, &mut self.warnings) {
            Ok(Some(setting)) => setting,
            Ok(None) => return,
            Err(error) => return self.errors.push(error),
        };
        let settings = layer.settings(spec.section);
        match settings.get(spec.name) {
            Some(old) if old.value != setting.value => {
                let kind = DiagnosticKind::Duplicate {
                    what: format!("`{}`", spec.name),
                    first: self.place(old.span),
                };
                self.error(kind, setting.span);
            }
            _ => {
                settings.insert(spec.name, setting);
            }
        }
    }

    /// A word of `common`, most of which can also stand in `resource`.
    fn common(&mut self, layer: &mut Layer, item: &Item) {
        if self.accept(Section::Common, item) {
            self.shared(layer, item);
        }
    }

    /// The option sections and `protocol`.
    fn shared(&mut self, layer: &mut Layer, item: &Item) {
        let body = item.body.as_deref().unwrap_or_default();
        match item.head.text.as_str() {
            "net" => self.options(body, Section::Net, layer),
            "disk" => self.options(body, Section::Disk, layer),
            "options" => self.options(body, Section::Options, layer),
            "startup" => self.options(body, Section::Startup, layer),
            "handlers" => self.options(body, Section::Handlers, layer),
            "syncer" => self.options(body, Section::Syncer, layer),
            "protocol" => {
                if let Some(found) = schema::find(Section::Net, "protocol") {
                    self.option(item, found, layer);
                }
            }
            _ => {}
        }
    }

    fn choice(&mut self, option: &str, word: &Word, choices: &[&str]) {
        let kind = DiagnosticKind::BadChoice {
            option: option.to_owned(),
            value: shown(&word.text),
            choices: choices.join(", "),
        };
        let diagnostic = Diagnostic::new(kind)
            .at(self.sources.locate(word.span))
            .suggest(&word.text, choices.iter().copied());
        self.errors.push(diagnostic);
    }

    fn resource(&mut self, name: &Word, body: &[Item]) -> DraftResource {
        let before = self.errors.len();
        self.name(name);
        let mut resource = DraftResource {
            name: Spanned::new(name.text.clone(), name.span),
            layer: Layer::default(),
            volumes: DraftVolumes::default(),
            hosts: Vec::new(),
            failover: None,
            faulty: false,
        };
        self.each(body, Section::Resource, &mut |reader, item| {
            reader.resource_item(&mut resource, item);
        });
        resource.faulty = self.errors.len() > before;
        resource
    }

    fn resource_item(&mut self, resource: &mut DraftResource, item: &Item) {
        if !self.accept(Section::Resource, item) {
            return;
        }
        let body = item.body.as_deref().unwrap_or_default();
        match item.head.text.as_str() {
            "on" => self.host(resource, item, body),
            "failover" => self.failover(resource, item, body),
            "disk" if item.body.is_some() => match item.args.first() {
                None => self.shared(&mut resource.layer, item),
                Some(extra) => {
                    let kind = DiagnosticKind::ExtraWord {
                        option: "disk".to_owned(),
                        word: shown(&extra.text),
                    };
                    self.error(kind, extra.span);
                }
            },
            "device" | "disk" | "meta-disk" | "flexible-meta-disk" | "volume" => {
                self.volume_item(&mut resource.volumes, item);
            }
            _ => self.shared(&mut resource.layer, item),
        }
    }

    fn host(&mut self, resource: &mut DraftResource, item: &Item, body: &[Item]) {
        if self.one(item, "the name of a host").is_none() {
            return;
        }
        let mut host = DraftHost {
            names: Vec::new(),
            address: None,
            node_id: None,
            volumes: DraftVolumes::default(),
            span: item.span(),
        };
        for word in &item.args {
            self.name(word);
            let known = resource
                .hosts
                .iter()
                .flat_map(|host| &host.names)
                .chain(&host.names)
                .find(|name| name.value == word.text);
            if let Some(first) = known.map(|name| name.span) {
                let kind = DiagnosticKind::Duplicate {
                    what: format!("host {}", shown(&word.text)),
                    first: self.place(first),
                };
                self.error(kind, word.span);
            }
            host.names.push(Spanned::new(word.text.clone(), word.span));
        }
        self.each(body, Section::Host, &mut |reader, item| {
            reader.host_item(&mut host, item);
        });
        resource.hosts.push(host);
    }

    fn host_item(&mut self, host: &mut DraftHost, item: &Item) {
        if !self.accept_address_proxy(item) || !self.accept(Section::Host, item) {
            return;
        }
        match item.head.text.as_str() {
            "address" => {
                if let Some(address) = self.address(item) {
                    self.set("`address`", &mut host.address, address);
                }
            }
            "node-id" => {
                if let Some(id) = self.node_id(item) {
                    self.set("`node-id`", &mut host.node_id, id);
                }
            }
            _ => self.volume_item(&mut host.volumes, item),
        }
    }

    /// `address A:P via proxy ...` is refused by its own name.
    fn accept_address_proxy(&mut self, item: &Item) -> bool {
        let via = item.args.iter().find(|word| word.is("via"));
        match via {
            Some(word) if item.head.is("address") => {
                let what = "via proxy".to_owned();
                self.error(DiagnosticKind::NotSupported { what }, word.span);
                false
            }
            _ => true,
        }
    }

    fn address(&mut self, item: &Item) -> Option<Spanned<SocketAddr>> {
        let first = self.one(item, "IP:PORT")?;
        let (family, word) = match item.args.get(1) {
            Some(second) => (Some(first), second),
            None => (None, first),
        };
        match family.map(|family| family.text.as_str()) {
            None | Some("ipv4" | "ipv6") => {}
            Some("sdp" | "ssocks" | "sci") => {
                let what = format!("address {}", first.text);
                self.error(DiagnosticKind::NotSupported { what }, first.span);
                return None;
            }
            Some(_) => {
                self.choice("address", first, &["ipv4", "ipv6"]);
                return None;
            }
        }
        match parse_address(family.map(|family| family.text.as_str()), &word.text) {
            Ok(address) => Some(Spanned::new(address, word.span)),
            Err(fault) => {
                self.bad_address(word, fault);
                None
            }
        }
    }

    fn bad_address(&mut self, word: &Word, fault: AddressFault) {
        let value = shown(&word.text);
        self.error(DiagnosticKind::BadAddress { value, fault }, word.span);
    }

    fn node_id(&mut self, item: &Item) -> Option<Spanned<u8>> {
        let word = self.one(item, "a number from 0 to 15")?;
        let digits = word.text.bytes().all(|b| b.is_ascii_digit());
        match word.text.parse::<u8>() {
            Ok(id) if digits && id <= MAX_NODE_ID => Some(Spanned::new(id, word.span)),
            _ => {
                self.bad("node-id", word, "a number from 0 to 15");
                None
            }
        }
    }

    /// `volume N {}` or one of the bare statements that stand for volume 0.
    fn volume_item(&mut self, volumes: &mut DraftVolumes, item: &Item) {
        if !item.head.is("volume") {
            volumes.bare.get_or_insert_with(|| item.head.clone());
            let volume = volumes.volumes.entry(0).or_default();
            return self.volume_statement(volume, item);
        }
        volumes.explicit = true;
        let Some(word) = self.one(item, "a number from 0 to 65535") else {
            return;
        };
        let Some(number) = self.volume_number("volume", word) else {
            return;
        };
        let volume = volumes.volumes.entry(number).or_default();
        if let Some(first) = volume.section {
            let kind = DiagnosticKind::Duplicate {
                what: format!("volume {number}"),
                first: self.place(first),
            };
            return self.error(kind, word.span);
        }
        volume.section = Some(word.span);
        let body = item.body.as_deref().unwrap_or_default();
        self.each(body, Section::Volume, &mut |reader, item| {
            if reader.accept(Section::Volume, item) {
                reader.volume_statement(volume, item);
            }
        });
    }

    fn volume_number(&mut self, option: &str, word: &Word) -> Option<u16> {
        let digits = word.text.bytes().all(|b| b.is_ascii_digit());
        match word.text.parse::<u16>() {
            Ok(number) if digits => Some(number),
            _ => {
                self.bad(option, word, "a number from 0 to 65535");
                None
            }
        }
    }

    fn volume_statement(&mut self, volume: &mut DraftVolume, item: &Item) {
        match item.head.text.as_str() {
            "device" => {
                if let Some(device) = self.device(item) {
                    self.set("`device`", &mut volume.device, device);
                }
            }
            "disk" => match &item.body {
                Some(body) => {
                    let mut layer = Layer::default();
                    std::mem::swap(&mut layer.disk, &mut volume.options);
                    self.options(body, Section::Disk, &mut layer);
                    volume.options = layer.disk;
                }
                None => {
                    if let Some(disk) = self.disk(item) {
                        self.set("`disk`", &mut volume.disk, disk);
                    }
                }
            },
            "meta-disk" | "flexible-meta-disk" => {
                if let Some(meta) = self.meta(item) {
                    self.set("`meta-disk`", &mut volume.meta, meta);
                }
            }
            _ => {}
        }
    }

    fn device(&mut self, item: &Item) -> Option<Spanned<FrontEnd>> {
        self.one(item, "a device")?;
        let words: Vec<&str> = item.args.iter().map(|word| word.text.as_str()).collect();
        let last = item.args.last()?;
        let span = item.args.first()?.span.to(last.span);
        match parse_device(&words) {
            Ok(FrontEnd::NbdUnix { path, .. }) if path.len() > MAX_SOCKET_PATH => {
                let kind = DiagnosticKind::SocketPathTooLong {
                    length: path.len(),
                    max: MAX_SOCKET_PATH,
                };
                self.error(kind, span);
                None
            }
            Ok(front) => Some(Spanned::new(front, span)),
            Err(fault) => {
                self.bad_device(&words, fault, span);
                None
            }
        }
    }

    fn bad_device(&mut self, words: &[&str], fault: DeviceFault, span: Span) {
        let value = shown(&words.join(" "));
        self.error(DiagnosticKind::BadDevice { value, fault }, span);
    }

    fn disk(&mut self, item: &Item) -> Option<Spanned<PathBuf>> {
        if item.args.first().is_some_and(|word| word.is("none")) {
            let what = "disk none".to_owned();
            self.error(DiagnosticKind::NotSupported { what }, item.span());
            return None;
        }
        self.path(item)
    }

    /// An absolute path.
    fn path(&mut self, item: &Item) -> Option<Spanned<PathBuf>> {
        let word = self.one(item, "a path")?;
        self.absolute(item, &word.text, word.span)
            .map(|path| Spanned::new(path, word.span))
    }

    fn absolute(&mut self, item: &Item, path: &str, span: Span) -> Option<PathBuf> {
        if path.starts_with('/') && !path.contains('\0') {
            return Some(PathBuf::from(path));
        }
        let kind = DiagnosticKind::RelativePath {
            option: item.head.text.clone(),
            path: shown(path),
        };
        self.error(kind, span);
        None
    }

    fn meta(&mut self, item: &Item) -> Option<Spanned<MetaDisk>> {
        let first = self.one(item, "`internal`, a device or DEVICE[INDEX]")?;
        let words: Vec<&str> = item.args.iter().map(|word| word.text.as_str()).collect();
        let span = item
            .args
            .last()
            .map_or(first.span, |last| first.span.to(last.span));
        match parse_meta(&words) {
            MetaPlace::Internal => Some(Spanned::new(MetaDisk::Internal, span)),
            MetaPlace::Device(path, index @ (None | Some(0))) => {
                let path = self.absolute(item, &path, span)?;
                let indexed = index.is_some();
                Some(Spanned::new(MetaDisk::External { path, indexed }, span))
            }
            MetaPlace::Device(path, Some(_)) => {
                let kind = DiagnosticKind::ValueNotSupported {
                    option: "meta-disk".to_owned(),
                    value: shown(&words.join(" ")),
                    works: format!("internal, {path} or {path}[0]", path = shown(&path)),
                };
                self.error(kind, span);
                None
            }
            MetaPlace::Bad => {
                let kind = DiagnosticKind::BadValue {
                    option: "meta-disk".to_owned(),
                    value: shown(&words.join(" ")),
                    expected: "`internal`, a device or DEVICE[INDEX]".to_owned(),
                };
                self.error(kind, span);
                None
            }
        }
    }

    /// The `KEY VALUE` pairs that follow the first `fixed` values of a statement.
    fn pairs<'i>(
        &mut self,
        item: &'i Item,
        fixed: usize,
        keys: &[&'static str],
    ) -> Option<Pairs<'i>> {
        let mut pairs: Pairs<'i> = BTreeMap::new();
        let mut words = item.args.iter().skip(fixed);
        while let Some(word) = words.next() {
            let Some(key) = keys.iter().find(|key| word.is(key)) else {
                self.choice(&item.head.text, word, keys);
                return None;
            };
            let Some(value) = words.next() else {
                let kind = DiagnosticKind::MissingValue {
                    option: (*key).to_owned(),
                    needs: "a value".to_owned(),
                };
                self.error(kind, word.span);
                return None;
            };
            if let Some(first) = pairs.insert(key, value) {
                let kind = DiagnosticKind::Duplicate {
                    what: format!("`{key}`"),
                    first: self.place(first.span),
                };
                self.error(kind, word.span);
                return None;
            }
        }
        Some(pairs)
    }

    /// Reports a value that is not what it should be.
    fn bad(&mut self, option: &str, word: &Word, expected: &str) {
        let kind = DiagnosticKind::BadValue {
            option: option.to_owned(),
            value: shown(&word.text),
            expected: expected.to_owned(),
        };
        self.error(kind, word.span);
    }

    /// A time from `min` to `max` seconds; a bare number is in seconds.
    fn time(&mut self, option: &str, word: &Word, [min, max]: [u64; 2]) -> Option<Duration> {
        match parse_number(&word.text, Unit::Seconds) {
            Ok(millis) if (min * 1000..=max * 1000).contains(&millis) => {
                Some(Duration::from_millis(millis))
            }
            Ok(_) | Err(NumberFault::Overflow) => {
                let kind = DiagnosticKind::OutOfRange {
                    option: option.to_owned(),
                    value: shown(&word.text),
                    min: min.to_string(),
                    max: max.to_string(),
                    unit: Unit::Seconds.name().to_owned(),
                };
                self.error(kind, word.span);
                None
            }
            Err(NumberFault::Form) => {
                self.bad(
                    option,
                    word,
                    "a number, with `ms`, `s`, `m` or `h` if need be",
                );
                None
            }
        }
    }

    /// A text that is not empty, such as a command.
    fn text(&mut self, option: &str, word: &Word) -> Option<String> {
        if word.text.chars().count() > MAX_TEXT {
            let option = option.to_owned();
            let max = MAX_TEXT;
            self.error(DiagnosticKind::TooLong { option, max }, word.span);
        } else if word.text.trim().is_empty() || word.text.contains('\0') {
            self.bad(option, word, "a text");
        } else {
            return Some(word.text.clone());
        }
        None
    }

    /// The name of a network interface, as the kernel takes it.
    fn interface(&mut self, option: &str, word: &Word) -> Option<String> {
        let name = word.text.as_str();
        let fine = (1..=MAX_INTERFACE).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
            && !matches!(name, "." | "..");
        if fine {
            return Some(name.to_owned());
        }
        self.bad(option, word, "the name of a network interface");
        None
    }

    /// Checks the name of a resource or host.
    fn name(&mut self, word: &Word) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name = word.text.as_str();
        let fine = !name.is_empty()
            && name.len() <= MAX_NAME
            && name.chars().all(plain)
            && !name.starts_with(['.', '-'])
            && name != "all";
        if !fine {
            let name = shown(name);
            self.error(DiagnosticKind::BadName { name }, word.span);
        }
        fine
    }
}
