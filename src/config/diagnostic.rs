//! What is wrong with a configuration: a typed kind, where it stands, and what to do.
//!
//! The plain rendering is stable, scripts may read it:
//!
//! ```text
//! error: FILE:LINE:COLUMN: reason
//!   12 | the line
//!      |     ^^^^
//! help: what to do
//! ```

use std::fmt;

use super::cluster::TimerFault;
use super::source::Location;
use crate::agent::protocol;

/// Messages of one run: what follows is rarely about another mistake, and each costs a look at
/// its line.
pub const MAX_MESSAGES: usize = 20;

/// Characters of one source line that a message shows at most.
const SHOWN_COLUMNS: usize = 160;
/// Characters of one word that a message shows at most.
const SHOWN_WORD: usize = 60;

/// A shorter word is not looked for at the beginning of another: `on` begins many.
const MIN_GLUED: usize = 4;

/// Whether the configuration can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but the administrator should know.
    Warning,
}

/// One message about a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong; its `Display` is the reason, without place and help.
    pub kind: Box<DiagnosticKind>,
    /// Where; `None` when no place in a file is meant.
    pub location: Option<Box<Location>>,
    /// A known word that was probably meant.
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// A message without a place.
    pub fn new(kind: DiagnosticKind) -> Diagnostic {
        Diagnostic {
            kind: Box::new(kind),
            location: None,
            suggestion: None,
        }
    }

    /// With its place.
    pub fn at(self, location: Location) -> Diagnostic {
        Diagnostic {
            location: Some(Box::new(location)),
            ..self
        }
    }

    /// With the word among `known` that is nearest to `word`, if one is near enough.
    pub fn suggest<'a>(self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        Diagnostic {
            suggestion: suggestion(word, known),
            ..self
        }
    }

    /// Error or warning.
    pub fn severity(&self) -> Severity {
        match *self.kind {
            DiagnosticKind::Unauthenticated { .. }
            | DiagnosticKind::Clamped { .. }
            | DiagnosticKind::ManualFailover { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// The next step, one line.
    pub fn help(&self) -> String {
        match &self.suggestion {
            Some(word) => format!("did you mean `{word}`?"),
            None => self.kind.help(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: ")?;
        if let Some(location) = &self.location {
            let file = printable(&location.file);
            write!(f, "{file}:{}:{}: ", location.line, location.column)?;
        }
        writeln!(f, "{}", self.kind)?;
        if let Some(location) = &self.location {
            write_excerpt(f, location)?;
        }
        write!(f, "help: {}", self.help())
    }
}

/// The source line and a marker under the place.
fn write_excerpt(f: &mut fmt::Formatter<'_>, location: &Location) -> fmt::Result {
    let column = location.column.saturating_sub(1);
    // A long line is shown around its place.
    let first = column.saturating_sub(SHOWN_COLUMNS / 2);
    let shown: String = location
        .text
        .chars()
        .skip(first)
        .take(SHOWN_COLUMNS)
        .collect();
    let blank: String = shown
        .chars()
        .take(column - first)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    let pad = (column - first).saturating_sub(shown.chars().count());
    let room = shown.chars().count().saturating_sub(column - first).max(1);
    let number = location.line.to_string();
    writeln!(f, "  {number} | {}", printable(&shown))?;
    writeln!(
        f,
        "  {:gutter$} | {blank}{:pad$}{}",
        "",
        "",
        "^".repeat(location.width.min(room)),
        gutter = number.len(),
    )
}

/// Control characters would act on the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
        .collect()
}

/// A word as shown in a message: printable and not endless.
pub fn shown(word: &str) -> String {
    let mut text: String = printable(word).chars().take(SHOWN_WORD).collect();
    if word.chars().count() > SHOWN_WORD {
        text.push_str("...");
    }
    text
}

/// What was probably meant: a known word misspelt, or one without the blank after it.
fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(near) = nearest(word, known.iter().copied()) {
        return Some(near.to_owned());
    }
    known
        .into_iter()
        .filter(|candidate| candidate.len() >= MIN_GLUED)
        .filter_map(|candidate| Some((candidate, word.strip_prefix(candidate)?)))
        .max_by_key(|(candidate, _)| candidate.len())
        .map(|(candidate, rest)| shown(&format!("{candidate} {rest}")))
}

/// The word among `known` that is nearest to `word`: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if length > SHOWN_WORD {
        return None;
    }
    let limit = (length / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`; case is
/// ignored and `_` counts as `-`.
fn edit_distance(a: &str, b: &str) -> usize {
    let fold = |text: &str| -> Vec<char> {
        text.chars()
            .map(|c| {
                if c == '_' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let (a, b) = (fold(a), fold(b));
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y))
                .min(above[j + 1] + 1)
                .min(row[j] + 1);
            let swapped = i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y;
            if swapped {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

/// What is wrong with an `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// Neither an IPv4 nor an IPv6 address.
    #[error("not an IP address")]
    Ip,
    /// No `:PORT`.
    #[error("no port")]
    NoPort,
    /// Not 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    Port,
    /// `ipv4` with an IPv6 address or the reverse.
    #[error("address is not of the family written before it")]
    Family,
    /// 0.0.0.0 or ::; the peer could not reach it.
    #[error("the peer cannot reach an unspecified address")]
    Unspecified,
    /// Multicast or broadcast.
    #[error("a multicast or broadcast address belongs to no host")]
    NotUnicast,
}

/// What is wrong with a `device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// Neither a device path, `minor N` nor an NBD URI.
    #[error("not a device")]
    Form,
    /// The number is missing, or too large for a minor.
    #[error("minor is not a number from 0 to 1048575")]
    Minor,
    /// The path and `minor N` name different minors.
    #[error("path and `minor` disagree")]
    MinorMismatch,
    /// No `socket=PATH` in an `nbd+unix` URI.
    #[error("no `?socket=/PATH`")]
    Socket,
    /// The socket path is relative.
    #[error("socket path is not absolute")]
    SocketRelative,
    /// No `HOST:PORT` after `nbd://`.
    #[error("no IP:PORT after `nbd://`")]
    NbdAddress,
    /// The export name has characters that would need escapes.
    #[error("export name has other characters than letters, digits and `._-`")]
    Export,
}

/// What is wrong; the text of each variant says what it means.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiagnosticKind {
    // Files.
    #[error("cannot read {file}: {error}")]
    Unreadable { file: String, error: String },
    #[error("no configuration file: neither {0} nor {1} exists")]
    NoFile(String, String),
    #[error("the file is not UTF-8 text")]
    NotUtf8,
    #[error("included file {file} cannot be read: {error}")]
    IncludeUnreadable { file: String, error: String },
    #[error("{file} includes itself")]
    IncludeCycle { file: String },
    #[error("files include each other more than {limit} levels deep")]
    IncludeTooDeep { limit: usize },
    #[error("`include` inside a section")]
    IncludeNested,

    // Words and structure.
    #[error("string without its closing quote")]
    UnterminatedString,
    #[error("character {0:?} cannot stand here")]
    BadCharacter(char),
    #[error("missing `;` after `{after}`")]
    MissingSemicolon { after: String },
    #[error("`}}` without an open section")]
    UnexpectedClose,
    #[error("section `{section}` is not closed")]
    UnclosedSection {
        section: String,
        /// Line before which the `}` seems to be missing.
        before: Option<usize>,
    },
    #[error("`{{` without the name of a section before it")]
    NamelessSection,
    #[error("sections are nested more than {limit} deep")]
    TooDeep { limit: usize },

    // Statements.
    #[error("unknown statement `{word}` in {section}")]
    Unknown { word: String, section: String },
    #[error("`{word}` cannot stand in {section}")]
    Misplaced {
        word: String,
        section: String,
        belongs: String,
    },
    #[error("`{what}` is not supported by this version")]
    NotSupported { what: String },
    #[error("`{option} {value}` is not supported by this version")]
    ValueNotSupported {
        option: String,
        value: String,
        works: String,
    },
    #[error("`{word}` is a section: `{{` expected")]
    NeedsSection { word: String },
    #[error("`{word}` is not a section: value and `;` expected")]
    NotSection { word: String },
    #[error("`{option}` needs {needs}")]
    MissingValue { option: String, needs: String },
    #[error("unexpected `{word}` after `{option}`")]
    ExtraWord { option: String, word: String },
    #[error("{what} is given twice, first at {first}")]
    Duplicate { what: String, first: String },

    // Values.
    #[error("`{option}`: `{value}` is not {expected}")]
    BadValue {
        option: String,
        value: String,
        expected: String,
    },
    #[error("`{option}`: {value} is out of range: {min} to {max}{unit}")]
    OutOfRange {
        option: String,
        value: String,
        min: String,
        max: String,
        unit: String,
    },
    #[error("`{option}`: `{value}` is not one of {choices}")]
    BadChoice {
        option: String,
        value: String,
        choices: String,
    },
    #[error("`{option}` is longer than {max} characters")]
    TooLong { option: String, max: usize },
    #[error("bad address `{value}`: {fault}")]
    BadAddress { value: String, fault: AddressFault },
    #[error("bad device `{value}`: {fault}")]
    BadDevice { value: String, fault: DeviceFault },
    #[error("`{option}`: path `{path}` is not absolute")]
    RelativePath { option: String, path: String },
    #[error("bad name `{name}`")]
    BadName { name: String },
    #[error("path of the socket is {length} bytes long, the kernel allows {max}")]
    SocketPathTooLong { length: usize, max: usize },

    // What a resource must have.
    #[error("resource {resource}: {count} `on` sections, two are needed")]
    HostCount { resource: String, count: usize },
    #[error("host {host} of resource {resource} has no `{what}`")]
    MissingStatement {
        resource: String,
        host: String,
        what: &'static str,
    },
    #[error("volume {volume} on host {host} of resource {resource} has no `{what}`")]
    MissingInVolume {
        resource: String,
        host: String,
        volume: u16,
        what: &'static str,
    },
    #[error("resource {resource}: `volume` sections mixed with a bare `{word}`")]
    MixedVolumes { resource: String, word: String },
    #[error("resource {resource}: host {host} has no volume {volume}")]
    VolumeMissing {
        resource: String,
        host: String,
        volume: u16,
    },
    #[error("resource {resource}: `node-id` is missing on host {host}")]
    NodeIdMissing { resource: String, host: String },
    #[error("resource {resource}: hosts {first} and {second} both have node-id {id}")]
    NodeIdClash {
        resource: String,
        first: String,
        second: String,
        id: u8,
    },
    #[error("host {host} has node-id {id} here and {cluster} in the `cluster` section")]
    NodeIdDiffers { host: String, id: u8, cluster: u8 },
    #[error("resource {resource}: `timeout` ({timeout} ms) is not below `{other}` ({limit} ms)")]
    TimeoutOrder {
        resource: String,
        timeout: u64,
        other: &'static str,
        limit: u64,
    },
    #[error("resource {resource}: volumes have different `al-extents`")]
    AlExtentsDiffer { resource: String },
    #[error("resource {resource}: `cram-hmac-alg` without `shared-secret`")]
    SecretMissing { resource: String },

    // Failover.
    #[error("a second answer to who has the third vote, the first is at {first}")]
    TwoVotes { first: String },
    #[error("witness {name} has no `address`")]
    WitnessAddress { name: String },
    #[error("witness {name} is one of the nodes")]
    WitnessIsNode { name: String },
    #[error("node {name} of the cluster has no `node-id`")]
    NodeWithoutId { name: String },
    #[error("nodes {first} and {second} of the cluster both have node-id {id}")]
    SameNodeId {
        first: String,
        second: String,
        id: u8,
    },
    #[error("{0}")]
    Timers(TimerFault),
    #[error("address {address} is used twice: by {user}, and by {other} at {first}")]
    AddressTaken {
        address: String,
        user: String,
        other: String,
        first: String,
    },
    #[error("address {address} is that of {owner}: an address that moves is nobody's own")]
    VipIsHost { address: String, owner: String },
    #[error("resource {resource}: host {host} is no `node` of the cluster")]
    NotMember { resource: String, host: String },
    #[error("resource {resource}: node {host} has no `path`")]
    NoPath { resource: String, host: String },
    #[error(
        "resource {resource}: the paths of nodes {first} and {second} do not lead to each other"
    )]
    PathsDiffer {
        resource: String,
        first: String,
        second: String,
    },
    #[error("resource {resource}: `preferred {node}` is not one of its hosts")]
    PreferredUnknown {
        resource: String,
        node: String,
        hosts: String,
    },
    #[error("resource {resource}: `failback when-stable` without `preferred`")]
    FailbackNowhere { resource: String },
    #[error("resource {resource}: there is no volume {volume} to mount")]
    MountVolume { resource: String, volume: u16 },
    #[error("resource {resource}: volume {volume} is an NBD export, which cannot be mounted")]
    MountNbd { resource: String, volume: u16 },
    #[error("group {group}: resources {first} and {second} have different hosts")]
    GroupHosts {
        group: String,
        first: String,
        second: String,
    },
    #[error("group {group}: resources {first} and {second} prefer different hosts")]
    GroupPreferred {
        group: String,
        first: String,
        second: String,
    },
    #[error("`{name}` needs `start` and `stop`, or `unit` alone")]
    ServiceControl { name: String },
    #[error("`monitor` looks at nothing")]
    EmptyMonitor,

    // Clashes.
    #[error("{what} is used twice on host {host}: by {user}, and by {other} at {first}")]
    Clash {
        what: String,
        host: String,
        user: String,
        other: String,
        first: String,
    },
    #[error("resource {resource}: both hosts have the address {address}")]
    SameAddress { resource: String, address: String },
    #[error("resource {resource}: {first} and {second} cannot reach each other")]
    AddressFamilies {
        resource: String,
        first: String,
        second: String,
    },
    #[error("`resync-after {after}`: {what}")]
    AfterUnknown { after: String, what: String },
    #[error("`resync-after` goes in a circle: {names}")]
    AfterCircle { names: String },
    #[error("resource {resource}: {path} is a device that the resource itself provides")]
    OwnDevice { resource: String, path: String },

    // Questions that the configuration cannot answer.
    #[error("no resource {resource} in the configuration")]
    NoSuchResource { resource: String, known: String },
    #[error("resource {resource} has no host {node}")]
    NoSuchHost {
        resource: String,
        node: String,
        hosts: String,
    },
    #[error("key file {file}: {fault}")]
    KeyFile { file: String, fault: String },

    // Warnings.
    #[error("resource {resource} has a `failover` section and there is no third vote")]
    ManualFailover { resource: String },
    #[error("resource {resource} is unauthenticated: any host that reaches the port can replicate")]
    Unauthenticated { resource: String },
    #[error("`{option}`: {value} is out of range, {used} is used")]
    Clamped {
        option: String,
        value: String,
        used: String,
    },
}

impl DiagnosticKind {
    /// The next step, one line.
    fn help(&self) -> String {
        use DiagnosticKind as K;
        let fixed = match self {
            K::Unreadable { .. } => {
                "check the path and its permissions, or name another with -c FILE"
            }
            K::NoFile(..) => "write one of them, or name another with -c FILE",
            K::NotUtf8 => "save the file as UTF-8",
            K::IncludeUnreadable { .. } => "create the file, or write a glob: no match is no error",
            K::IncludeCycle { .. } | K::IncludeTooDeep { .. } => "remove one of the includes",
            K::IncludeNested => "move it out of the section: `include` stands at the top level",
            K::UnterminatedString => "close the string with `\"` on the same line",
            K::BadCharacter(_) => "remove it, or put the word in double quotes",
            K::MissingSemicolon { .. } => "every statement ends with `;`",
            K::UnexpectedClose => "remove it, or look for a section closed too early above",
            K::UnclosedSection { .. } => "add the missing `}` at its end",
            K::NamelessSection => "write the section's name before the `{`",
            K::TooDeep { .. } => "look for missing `}` above",
            K::Unknown { .. } => "remove it, or check its spelling",
            K::NeedsSection { .. } => "write `{` ... `}` after it",
            K::NotSection { .. } => "write a value and `;` after it; or is a `;` missing above?",
            K::ExtraWord { .. } => "remove it; a value with blanks stands in double quotes",
            K::Duplicate { .. } => "remove one of the two",
            K::OutOfRange { .. } => "choose a value in the range",
            K::TooLong { .. } => "shorten it",
            K::BadAddress { .. } => {
                "write `address IP:PORT;`, as in 10.0.0.1:7789 or [fd00::1]:7789"
            }
            K::BadDevice { .. } => {
                "write /dev/ublkbN, /dev/drbdN, minor N, nbd+unix:///EXPORT?socket=/PATH \
                 or nbd://IP:PORT/EXPORT"
            }
            K::RelativePath { .. } => "write the path from the root: it begins with `/`",
            K::BadName { .. } => {
                "use at most 64 letters, digits and `._-`, not beginning with `.` or `-`"
            }
            K::SocketPathTooLong { .. } => "choose a shorter path, such as one below /run",
            K::HostCount { .. } => "this version replicates between exactly two `on HOST { ... }`",
            K::MissingStatement { .. } | K::MissingInVolume { .. } => {
                "add it here, or at the level of the resource for both hosts"
            }
            K::MixedVolumes { .. } => "move the bare statements into `volume 0 { ... }`",
            K::VolumeMissing { .. } => "both hosts have the same volumes",
            K::NodeIdMissing { .. } => "give `node-id` on both hosts or on none",
            K::NodeIdClash { .. } => "give each host an id of its own",
            K::NodeIdDiffers { .. } => "give one id only, or the same in both places",
            K::TimeoutOrder { .. } => "`timeout` must be shorter than `connect-int` and `ping-int`",
            K::AlExtentsDiffer { .. } => "give the same `al-extents` to all volumes of a resource",
            K::SecretMissing { .. } => {
                "add `shared-secret \"...\";`, or `cluster { key-file PATH; }`, \
                 or remove `cram-hmac-alg`"
            }
            K::TwoVotes { .. } => "keep one of `witness`, `fence-command` and `mode`",
            K::WitnessAddress { .. } => "write `address IP:PORT;` in it",
            K::WitnessIsNode { .. } => "let it run on a third machine, and give it its own name",
            K::NodeWithoutId { .. } => "write `node-id N;` in it, from 0 to 15",
            K::SameNodeId { .. } => "give each node an id of its own",
            K::VipIsHost { .. } => "choose an address that no host has by itself",
            K::NotMember { .. } => "add `node NAME { node-id N; path IP:PORT; }` to `cluster`",
            K::NoPath { .. } => "add `path IP:PORT;`, better two over different networks",
            K::PathsDiffer { .. } => {
                "give both nodes as many, in one order: the first of one leads to the first of the \
                 other, with an address of the same family"
            }
            K::FailbackNowhere { .. } => "add `preferred HOST;`, or write `failback never;`",
            K::MountVolume { .. } => "name a volume that the resource has",
            K::MountNbd { .. } => {
                "leave the `mount` out, or make it a block device: `device /dev/ublkbN;`"
            }
            K::GroupHosts { .. } => "resources of one group have the same hosts",
            K::GroupPreferred { .. } => "resources of one group prefer one host",
            K::ServiceControl { .. } => {
                "write `start \"...\"; stop \"...\";`, or `unit NAME.service;`"
            }
            K::EmptyMonitor => "write `ping ADDRESS;` or `interface NAME;` in it",
            K::ManualFailover { .. } => {
                "add `witness` or `fence-command` to `cluster`; or write `mode manual;`: \
                 it then moves by command alone"
            }
            K::AddressTaken { .. } => "give each its own port",
            K::Clash { .. } => "give each its own",
            K::SameAddress { .. } => "give each host its own IP address or port",
            K::AddressFamilies { .. } => "write two IPv4 addresses or two IPv6 addresses",
            K::OwnDevice { .. } => {
                "`disk` and `meta-disk` name what lies below, `device` what applications open"
            }
            K::AfterUnknown { .. } => {
                "name a resource of this file, or one volume of it: `resync-after RES/VOL`"
            }
            K::AfterCircle { .. } => "take one of these `resync-after` out",
            K::KeyFile { .. } => {
                "a key file is a regular file, mode 0600, that begins with the key"
            }
            K::Unauthenticated { .. } => protocol::AUTHENTICATE,
            K::Clamped { .. } => "write the value that is used",
            _ => "",
        };
        match self {
            K::UnclosedSection {
                before: Some(line), ..
            } => format!("add the missing `}}` before line {line}"),
            K::Misplaced { belongs, .. } => belongs.clone(),
            K::NotSupported { .. } => "remove it, or put `skip` before it".to_owned(),
            K::ValueNotSupported { option, works, .. } => {
                format!("`{option}` can be {works}; or remove it")
            }
            K::MissingValue { option, needs } => format!("write `{option}` with {needs}, then `;`"),
            K::Timers(fault) => fault.help(),
            K::PreferredUnknown { hosts, .. } => format!("its hosts are {hosts}"),
            K::BadValue { expected, .. } => format!("write {expected}"),
            K::BadChoice { choices, .. } => format!("write one of {choices}"),
            K::NoSuchResource { known, .. } => format!("the configuration has {known}"),
            K::NoSuchHost { hosts, .. } => {
                format!("its hosts are {hosts}; name one with --node, or rename the `on` section")
            }
            _ => fixed.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, column: usize, width: usize) -> Location {
        Location {
            file: "f.conf".to_owned(),
            line: 12,
            column,
            text: text.to_owned(),
            width,
        }
    }

    #[test]
    fn the_plain_form_is_stable() {
        let message = Diagnostic::new(DiagnosticKind::NotSupported {
            what: "tls".to_owned(),
        })
        .at(at("\ttls yes;", 2, 3));
        assert_eq!(
            message.to_string(),
            "error: f.conf:12:2: `tls` is not supported by this version\n  12 | \ttls yes;\n\
             \x20    | \t^^^\n\
             help: remove it, or put `skip` before it"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_its_place_and_controls_are_hidden() {
        let text = format!("{}\u{1b}[31mbad{}", "x".repeat(5000), "y".repeat(5000));
        let message = Diagnostic::new(DiagnosticKind::UnexpectedClose).at(at(&text, 5006, 3));
        let rendered = message.to_string();
        assert!(rendered.lines().all(|line| line.len() < 200), "{rendered}");
        assert!(!rendered.contains('\u{1b}'));
        let lines: Vec<&str> = rendered.lines().collect();
        let column = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][column..column + 3], "bad");
    }

    #[test]
    fn the_nearest_word_is_suggested_and_nothing_else() {
        let known = ["ping-int", "ping-timeout", "protocol"];
        assert_eq!(nearest("pingint", known), Some("ping-int"));
        assert_eq!(nearest("ping_int", known), Some("ping-int"));
        assert_eq!(nearest("porotcol", known), Some("protocol"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(edit_distance("ab", "ba"), 1);
        let glued = suggestion("protocolxyzzy", known);
        assert_eq!(glued.as_deref(), Some("protocol xyzzy"));
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
