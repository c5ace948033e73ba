//! Every word of the grammar, as data: where it stands, what it takes, its range and default, and
//! whether this version acts on it.
//!
//! A word that is parsed works, or is refused by name: [`Support::NotYet`] and [`Support::Only`]
//! are refusals, and [`Support::NoEffect`] is kept for what has no meaning here, with the reason.
//! To switch an option on, remove `.not_yet()` and add its field in `options.rs`; a test compares
//! the two.

mod failover;

use std::fmt;

/// A place where words can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    Top,
    Global,
    Common,
    Resource,
    Host,
    Volume,
    Net,
    Disk,
    Options,
    Startup,
    Handlers,
    /// DRBD 8.3: its words are looked up in `net`, then `disk`, then `options`.
    Syncer,
    Cluster,
    ClusterNode,
    Heartbeat,
    Witness,
    Notify,
    Failover,
    /// `service` and `run`.
    Service,
    Monitor,
    StopLadder,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Section::Top => "the top level",
            Section::Global => "`global`",
            Section::Common => "`common`",
            Section::Resource => "`resource`",
            Section::Host => "`on`",
            Section::Volume => "`volume`",
            Section::Net => "`net`",
            Section::Disk => "`disk`",
            Section::Options => "`options`",
            Section::Startup => "`startup`",
            Section::Handlers => "`handlers`",
            Section::Syncer => "`syncer`",
            Section::Cluster => "`cluster`",
            Section::ClusterNode => "`node`",
            Section::Heartbeat => "`heartbeat`",
            Section::Witness => "`witness`",
            Section::Notify => "`notify`",
            Section::Failover => "`failover`",
            Section::Service => "`service` or `run`",
            Section::Monitor => "`monitor`",
            Section::StopLadder => "`stop-ladder`",
        })
    }
}

/// What this version does with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It acts as documented.
    Implemented,
    /// These values describe what this version does; others are refused.
    Only(&'static [&'static str]),
    /// Accepted; it has no meaning here, for this reason.
    NoEffect(&'static str),
    /// Refused by name.
    NotYet,
}

/// The unit of a bare number. Values are kept in the finest unit of their kind: bytes for sizes,
/// milliseconds for times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    Bytes,
    /// 512 bytes.
    Sectors,
    /// KiB per second; kept in bytes per second.
    KibPerSecond,
    Seconds,
    /// 0.1 s.
    Tenths,
    Milliseconds,
}

impl Unit {
    /// How many of the finest unit one of this is.
    pub fn factor(self) -> u64 {
        match self {
            Unit::Count | Unit::Bytes | Unit::Milliseconds => 1,
            Unit::Sectors => 512,
            Unit::KibPerSecond => 1024,
            Unit::Seconds => 1000,
            Unit::Tenths => 100,
        }
    }

    /// True for times.
    pub fn is_time(self) -> bool {
        matches!(self, Unit::Seconds | Unit::Tenths | Unit::Milliseconds)
    }

    /// For messages, with a leading blank.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Count => "",
            Unit::Bytes => " bytes",
            Unit::Sectors => " sectors of 512 bytes",
            Unit::KibPerSecond => " KiB/s",
            Unit::Seconds => " seconds",
            Unit::Tenths => " tenths of a second",
            Unit::Milliseconds => " milliseconds",
        }
    }
}

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `yes` or `no`; bare = yes; `no-NAME` = no.
    Flag { default: bool },
    /// In `unit`; outside of the range refused, or with `clamp` moved to its end with a warning.
    Number {
        unit: Unit,
        min: u64,
        max: u64,
        default: Option<u64>,
        clamp: bool,
    },
    /// One of these words, in any case; the first is the default.
    Choice(&'static [&'static str]),
    /// One of these words, in any case; unset by default.
    Name(&'static [&'static str]),
    /// Any text of at most `max` characters; unset by default.
    Text { max: usize },
    /// Days of the week and a time; unset by default.
    Schedule,
    /// A resource or a volume of one; unset by default.
    After,
    /// One or more words, kept as written.
    Words,
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub section: Section,
    pub name: &'static str,
    pub kind: Kind,
    pub support: Support,
}

impl Spec {
    const fn new(section: Section, name: &'static str, kind: Kind) -> Spec {
        Spec {
            section,
            name,
            kind,
            support: Support::Implemented,
        }
    }

    const fn not_yet(self) -> Spec {
        Spec {
            support: Support::NotYet,
            ..self
        }
    }

    const fn only(self, values: &'static [&'static str]) -> Spec {
        Spec {
            support: Support::Only(values),
            ..self
        }
    }

    const fn no_effect(self, reason: &'static str) -> Spec {
        Spec {
            support: Support::NoEffect(reason),
            ..self
        }
    }

    const fn clamped(self) -> Spec {
        let kind = match self.kind {
            Kind::Number {
                unit,
                min,
                max,
                default,
                ..
            } => Kind::Number {
                unit,
                min,
                max,
                default,
                clamp: true,
            },
            other => other,
        };
        Spec { kind, ..self }
    }
}

const fn flag(section: Section, name: &'static str, default: bool) -> Spec {
    Spec::new(section, name, Kind::Flag { default })
}

const fn number(
    section: Section,
    name: &'static str,
    unit: Unit,
    [min, default, max]: [u64; 3],
) -> Spec {
    let kind = Kind::Number {
        unit,
        min,
        max,
        default: Some(default),
        clamp: false,
    };
    Spec::new(section, name, kind)
}

/// A limit that does not apply unless it is written.
const fn cap(section: Section, name: &'static str, unit: Unit, [min, max]: [u64; 2]) -> Spec {
    let kind = Kind::Number {
        unit,
        min,
        max,
        default: None,
        clamp: false,
    };
    Spec::new(section, name, kind)
}

/// What an online verify can hash with; the first is the default.
pub const VERIFY_ALGS: &[&str] = &["crc32c", "xxh3", "sha1", "md5", "sha256"];

/// Names of hashes that may clear dirty bits. Whichever it is, blocks are compared by BLAKE3.
const STRONG_ALGS: &[&str] = &["blake3", "sha256", "sha1", "md5", "xxh3"];

const fn choice(section: Section, name: &'static str, words: &'static [&'static str]) -> Spec {
    Spec::new(section, name, Kind::Choice(words))
}

const fn text(section: Section, name: &'static str, max: usize) -> Spec {
    Spec::new(section, name, Kind::Text { max })
}

const M: u64 = 1 << 20;
const NO_BOOT_WAIT: &str = "starting never waits for the peer; scripts use `wait-connect`";
const NO_CALLOUT: &str = "there is no kernel module to call";

use Section::{Disk, Global, Handlers, Net, Options, Startup};
use Unit::{Bytes, Count, KibPerSecond, Milliseconds, Seconds, Sectors, Tenths};

/// `global`.
const GLOBAL: &[Spec] = &[
    choice(Global, "usage-count", &["no", "yes", "ask"]).no_effect("nothing is ever reported"),
    number(Global, "minor-count", Count, [1, 32, 255]).no_effect("devices are made on demand"),
    number(Global, "dialog-refresh", Seconds, [0, 1, 600]).no_effect("no command has a dialog"),
    flag(Global, "disable-ip-verification", false)
        .no_effect("an address that is not this host's is seen when it is bound"),
    flag(Global, "udev-always-use-vnr", false).no_effect("links always carry the volume number"),
    number(Global, "cmd-timeout-short", Seconds, [1, 5, 900]).no_effect(NO_CALLOUT),
    number(Global, "cmd-timeout-medium", Seconds, [1, 121, 900]).no_effect(NO_CALLOUT),
    number(Global, "cmd-timeout-long", Seconds, [1, 600, 900]).no_effect(NO_CALLOUT),
    flag(Global, "drbd-links", false).only(&["no"]),
    number(Global, "max-parallel-resyncs", Count, [0, 0, 1024]),
];

/// `net`.
const NET: &[Spec] = &[
    choice(Net, "protocol", &["C", "B", "A"]),
    number(Net, "timeout", Tenths, [1, 60, 600]),
    number(Net, "connect-int", Seconds, [1, 10, 120]),
    number(Net, "ping-int", Seconds, [1, 10, 120]),
    number(Net, "ping-timeout", Tenths, [1, 5, 300]),
    number(Net, "ko-count", Count, [0, 7, 200]),
    number(Net, "sndbuf-size", Bytes, [0, 0, 128 * M]),
    // Any of the names means the one challenge that there is, keyed BLAKE3.
    Spec::new(
        Net,
        "cram-hmac-alg",
        Kind::Name(&["sha1", "sha256", "sha512", "md5"]),
    ),
    text(Net, "shared-secret", 63),
    choice(Net, "transport", &["tcp", "rdma", "lb-tcp"]).only(&["tcp"]),
    choice(Net, "data-path", &["auto", "copy", "zero-copy"]).only(&["auto", "copy"]),
    choice(Net, "latency-profile", &["balanced", "low", "throughput"]).not_yet(),
    number(Net, "max-epoch-size", Count, [1, 2048, 20_000]).not_yet(),
    number(Net, "max-buffers", Count, [32, 2048, 131_072]).not_yet(),
    number(Net, "unplug-watermark", Count, [1, 16, 131_072])
        .no_effect("nothing is plugged: requests are submitted in batches"),
    number(Net, "rcvbuf-size", Bytes, [0, 0, 128 * M]).not_yet(),
    flag(Net, "allow-two-primaries", false).only(&["no"]),
    choice(
        Net,
        "after-sb-0pri",
        &[
            "disconnect",
            "discard-younger-primary",
            "discard-older-primary",
            "discard-zero-changes",
            "discard-least-changes",
            "discard-local",
            "discard-remote",
        ],
    )
    .only(&["disconnect"]),
    choice(
        Net,
        "after-sb-1pri",
        &[
            "disconnect",
            "consensus",
            "discard-secondary",
            "violently-as0p",
            "call-pri-lost-after-sb",
        ],
    )
    .only(&["disconnect"]),
    choice(
        Net,
        "after-sb-2pri",
        &["disconnect", "violently-as0p", "call-pri-lost-after-sb"],
    )
    .only(&["disconnect"]),
    flag(Net, "always-asbp", false).only(&["no"]),
    choice(
        Net,
        "rr-conflict",
        &[
            "disconnect",
            "retry-connect",
            "violently",
            "call-pri-lost",
            "auto-discard",
        ],
    )
    .only(&["disconnect"]),
    text(Net, "data-integrity-alg", 63).not_yet(),
    flag(Net, "tcp-cork", true).no_effect("frames are gathered before they are sent"),
    choice(Net, "on-congestion", &["block", "pull-ahead", "disconnect"]).only(&["block"]),
    number(Net, "congestion-fill", Sectors, [0, 0, 20 * M]).not_yet(),
    number(Net, "congestion-extents", Count, [67, 1237, 65_534]).not_yet(),
    Spec::new(Net, "csums-alg", Kind::Name(STRONG_ALGS)),
    flag(Net, "csums-after-crash-only", false),
    choice(Net, "verify-alg", VERIFY_ALGS),
    Spec::new(Net, "verify-schedule", Kind::Schedule),
    flag(Net, "verify-repair", false),
    flag(Net, "use-rle", true).no_effect("the wire format compresses bitmaps by itself"),
    number(Net, "socket-check-timeout", Tenths, [0, 0, 300]).not_yet(),
    choice(
        Net,
        "fencing",
        &["dont-care", "resource-only", "resource-and-stonith"],
    )
    .only(&["dont-care"]),
    flag(Net, "allow-remote-read", true).only(&["yes"]),
    flag(Net, "load-balance-paths", false).only(&["no"]),
    flag(Net, "tls", false).only(&["no"]),
    text(Net, "tls-keyring", 255).not_yet(),
    text(Net, "tls-privkey", 255).not_yet(),
    text(Net, "tls-certificate", 255).not_yet(),
    number(Net, "rdma-ctrl-rcvbuf-size", Bytes, [0, 0, 128 * M]).not_yet(),
    number(Net, "rdma-ctrl-sndbuf-size", Bytes, [0, 0, 128 * M]).not_yet(),
    text(Net, "_name", 255).no_effect("a peer is named by its `on` section"),
];

/// `disk`.
const DISK: &[Spec] = &[
    choice(
        Disk,
        "on-io-error",
        &["detach", "pass_on", "call-local-io-error"],
    )
    .only(&["detach"]),
    number(Disk, "al-extents", Count, [67, 1237, 65_534]).clamped(),
    cap(Disk, "size", Sectors, [0, 32 << 40]).not_yet(),
    flag(Disk, "disk-barrier", false).only(&["no"]),
    flag(Disk, "disk-flushes", true).only(&["yes"]),
    flag(Disk, "disk-drain", true).only(&["yes"]),
    flag(Disk, "md-flushes", true).only(&["yes"]),
    cap(Disk, "resync-rate", KibPerSecond, [1, 8 * M]),
    Spec::new(Disk, "resync-after", Kind::After),
    flag(Disk, "al-updates", true).only(&["yes"]),
    flag(Disk, "discard-zeroes-if-aligned", true).not_yet(),
    flag(Disk, "disable-write-same", false).no_effect("write-same is never sent"),
    number(Disk, "c-plan-ahead", Tenths, [0, 20, 300]),
    number(Disk, "c-delay-target", Tenths, [1, 1, 100]),
    number(Disk, "c-fill-target", Sectors, [0, 0, M]),
    cap(Disk, "c-max-rate", KibPerSecond, [0, 4 * M]),
    cap(Disk, "c-min-rate", KibPerSecond, [0, 4 * M]),
    number(Disk, "disk-timeout", Tenths, [0, 0, 6000]).not_yet(),
    choice(
        Disk,
        "read-balancing",
        &[
            "prefer-local",
            "prefer-remote",
            "round-robin",
            "least-pending",
            "when-congested-remote",
            "32K-striping",
            "64K-striping",
            "128K-striping",
            "256K-striping",
            "512K-striping",
            "1M-striping",
        ],
    )
    .only(&["prefer-local"]),
    number(Disk, "rs-discard-granularity", Bytes, [0, 0, M]).not_yet(),
    flag(Disk, "bitmap", true).only(&["yes"]),
    number(Disk, "max-bio-bvecs", Count, [0, 0, 128]).no_effect("there are no bios here"),
    number(Disk, "block-size", Bytes, [512, 512, 4096]).not_yet(),
    cap(Disk, "discard-granularity", Bytes, [0, M]).not_yet(),
    number(Disk, "max-bio-size", Bytes, [4096, M, M]).not_yet(),
    flag(Disk, "resync-without-replication", false).only(&["no"]),
    flag(Disk, "peer-tiebreaker", true).not_yet(),
];

/// `options`.
const OPTIONS: &[Spec] = &[
    choice(
        Options,
        "on-no-data-accessible",
        &["io-error", "suspend-io"],
    )
    .only(&["io-error"]),
    flag(Options, "auto-promote", false).only(&["no"]),
    number(Options, "auto-promote-timeout", Tenths, [0, 20, 600])
        .no_effect("promotion is always an explicit command"),
    text(Options, "cpu-mask", 255).not_yet(),
    number(Options, "peer-ack-window", Sectors, [2048, 4096, 204_800]).not_yet(),
    number(Options, "peer-ack-delay", Milliseconds, [1, 100, 10_000]).not_yet(),
    number(Options, "twopc-timeout", Tenths, [50, 300, 600]).not_yet(),
    number(Options, "twopc-retry-timeout", Tenths, [1, 1, 50]).not_yet(),
    number(Options, "max-io-depth", Count, [4, 8000, 4 << 30]).not_yet(),
    text(Options, "quorum", 15).only(&["off"]),
    choice(Options, "on-no-quorum", &["suspend-io", "io-error"]).not_yet(),
    text(Options, "quorum-minimum-redundancy", 15).only(&["off"]),
    choice(
        Options,
        "on-suspended-primary-outdated",
        &["disconnect", "force-secondary"],
    )
    .only(&["disconnect"]),
    text(Options, "drbd8-api-compatibility", 255).no_effect(NO_CALLOUT),
];

/// `startup`.
const STARTUP: &[Spec] = &[
    number(Startup, "wfc-timeout", Seconds, [0, 0, 300_000]).no_effect(NO_BOOT_WAIT),
    number(Startup, "degr-wfc-timeout", Seconds, [0, 0, 300_000]).no_effect(NO_BOOT_WAIT),
    number(Startup, "outdated-wfc-timeout", Seconds, [0, 0, 300_000]).no_effect(NO_BOOT_WAIT),
    flag(Startup, "wait-after-sb", false).no_effect(NO_BOOT_WAIT),
    flag(Startup, "stacked-timeouts", false).no_effect(NO_BOOT_WAIT),
    Spec::new(Startup, "become-primary-on", Kind::Words)
        .no_effect("nothing is promoted at boot; DRBD 9 ignores it too"),
];

/// `handlers`.
const HANDLERS: &[Spec] = &[
    text(Handlers, "pri-on-incon-degr", 4096).not_yet(),
    text(Handlers, "pri-lost-after-sb", 4096).not_yet(),
    text(Handlers, "pri-lost", 4096).not_yet(),
    text(Handlers, "initial-split-brain", 4096).not_yet(),
    text(Handlers, "split-brain", 4096).not_yet(),
    text(Handlers, "fence-peer", 4096).not_yet(),
    text(Handlers, "unfence-peer", 4096).not_yet(),
    text(Handlers, "local-io-error", 4096).not_yet(),
    text(Handlers, "before-resync-target", 4096),
    text(Handlers, "after-resync-target", 4096),
    text(Handlers, "before-resync-source", 4096).not_yet(),
    text(Handlers, "out-of-sync", 4096),
    text(Handlers, "quorum-lost", 4096).not_yet(),
    text(Handlers, "disconnected", 4096).not_yet(),
];

/// Sections that hold options of their own.
pub const OPTION_SECTIONS: [Section; 10] = [
    Global,
    Net,
    Disk,
    Options,
    Startup,
    Handlers,
    Section::Heartbeat,
    Section::Service,
    Section::Monitor,
    Section::StopLadder,
];

/// The options of a section; empty for sections that hold no options.
pub fn options(section: Section) -> &'static [Spec] {
    match section {
        Section::Global => GLOBAL,
        Section::Net => NET,
        Section::Disk => DISK,
        Section::Options => OPTIONS,
        Section::Startup => STARTUP,
        Section::Handlers => HANDLERS,
        Section::Heartbeat => failover::HEARTBEAT,
        Section::Service => failover::SERVICE,
        Section::Monitor => failover::MONITOR,
        Section::StopLadder => failover::STOP_LADDER,
        _ => &[],
    }
}

/// Older spellings.
const RENAMED: &[(&str, &str)] = &[
    ("rate", "resync-rate"),
    ("after", "resync-after"),
    ("outdate-peer", "fence-peer"),
];

/// Options that older versions had in another section.
const MOVED: &[(Section, &str)] = &[(Disk, "fencing"), (Disk, "on-no-data-accessible")];

/// An option as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub spec: &'static Spec,
    /// Written as `no-NAME`.
    pub negated: bool,
}

/// Finds the option that `word` means in a section, with DRBD's older names and places.
pub fn find(section: Section, word: &str) -> Option<Found> {
    if let Some(found) = homes(section, word)
        .iter()
        .find_map(|home| find_in(*home, word))
    {
        return Some(found);
    }
    let plain = word.strip_prefix("no-")?;
    homes(section, plain)
        .iter()
        .find_map(|home| find_in(*home, plain))
        .filter(|found| matches!(found.spec.kind, Kind::Flag { .. }))
        .map(|found| Found {
            negated: true,
            ..found
        })
}

/// The sections in which a word of `section` is looked up.
fn homes(section: Section, word: &str) -> &'static [Section] {
    if section == Section::Syncer || MOVED.contains(&(section, word)) {
        return &[Net, Disk, Options];
    }
    match section {
        Section::Global => &[Global],
        Section::Net => &[Net],
        Section::Disk => &[Disk],
        Section::Options => &[Options],
        Section::Startup => &[Startup],
        Section::Handlers => &[Handlers],
        Section::Heartbeat => &[Section::Heartbeat],
        Section::Service => &[Section::Service],
        Section::Monitor => &[Section::Monitor],
        Section::StopLadder => &[Section::StopLadder],
        _ => &[],
    }
}

fn find_in(section: Section, word: &str) -> Option<Found> {
    let name = RENAMED
        .iter()
        .find(|(old, _)| *old == word)
        .map_or(word, |(_, new)| new);
    options(section)
        .iter()
        .find(|spec| spec.name == name)
        .map(|spec| Found {
            spec,
            negated: false,
        })
}

/// What follows a word that is not an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Up to this many values and `;`.
    Statement(usize),
    /// Up to this many values and `{ ... }`.
    Section(usize),
    /// Either.
    Both(usize),
}

impl Shape {
    /// The most values that may follow.
    pub fn words(self) -> usize {
        match self {
            Shape::Statement(words) | Shape::Section(words) | Shape::Both(words) => words,
        }
    }
}

/// A word that is not an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    pub section: Section,
    pub word: &'static str,
    pub shape: Shape,
    pub supported: bool,
}

const ANY: usize = usize::MAX;

const fn is(section: Section, word: &'static str, shape: Shape) -> Structure {
    Structure {
        section,
        word,
        shape,
        supported: true,
    }
}

const fn not_yet(section: Section, word: &'static str, shape: Shape) -> Structure {
    Structure {
        section,
        word,
        shape,
        supported: false,
    }
}

/// All words that are not options.
pub const STRUCTURE: &[Structure] = &[
    is(Section::Top, "global", Shape::Section(0)),
    is(Section::Top, "common", Shape::Section(0)),
    is(Section::Top, "resource", Shape::Section(1)),
    is(Section::Top, "cluster", Shape::Section(0)),
    is(Section::Top, "include", Shape::Statement(1)),
    is(Section::Common, "net", Shape::Section(0)),
    is(Section::Common, "disk", Shape::Section(0)),
    is(Section::Common, "options", Shape::Section(0)),
    is(Section::Common, "startup", Shape::Section(0)),
    is(Section::Common, "handlers", Shape::Section(0)),
    is(Section::Common, "syncer", Shape::Section(0)),
    is(Section::Common, "protocol", Shape::Statement(1)),
    not_yet(Section::Common, "proxy", Shape::Section(0)),
    is(Section::Resource, "net", Shape::Section(0)),
    is(Section::Resource, "disk", Shape::Both(1)),
    is(Section::Resource, "options", Shape::Section(0)),
    is(Section::Resource, "startup", Shape::Section(0)),
    is(Section::Resource, "handlers", Shape::Section(0)),
    is(Section::Resource, "syncer", Shape::Section(0)),
    is(Section::Resource, "protocol", Shape::Statement(1)),
    is(Section::Resource, "device", Shape::Statement(3)),
    is(Section::Resource, "meta-disk", Shape::Statement(2)),
    is(Section::Resource, "flexible-meta-disk", Shape::Statement(1)),
    is(Section::Resource, "volume", Shape::Section(1)),
    is(Section::Resource, "on", Shape::Section(ANY)),
    is(Section::Resource, "failover", Shape::Section(0)),
    not_yet(Section::Resource, "floating", Shape::Section(2)),
    not_yet(Section::Resource, "stacked-on-top-of", Shape::Section(1)),
    not_yet(Section::Resource, "connection", Shape::Section(1)),
    not_yet(Section::Resource, "connection-mesh", Shape::Section(0)),
    not_yet(Section::Resource, "template-file", Shape::Statement(1)),
    not_yet(Section::Resource, "proxy", Shape::Section(0)),
    not_yet(Section::Resource, "_this_host", Shape::Section(0)),
    not_yet(Section::Resource, "_remote_host", Shape::Section(0)),
    is(Section::Host, "device", Shape::Statement(3)),
    is(Section::Host, "disk", Shape::Statement(1)),
    is(Section::Host, "meta-disk", Shape::Statement(2)),
    is(Section::Host, "flexible-meta-disk", Shape::Statement(1)),
    is(Section::Host, "address", Shape::Statement(2)),
    is(Section::Host, "node-id", Shape::Statement(1)),
    is(Section::Host, "volume", Shape::Section(1)),
    not_yet(Section::Host, "options", Shape::Section(0)),
    not_yet(Section::Host, "proxy", Shape::Section(ANY)),
    is(Section::Volume, "device", Shape::Statement(3)),
    is(Section::Volume, "disk", Shape::Both(1)),
    is(Section::Volume, "meta-disk", Shape::Statement(2)),
    is(Section::Volume, "flexible-meta-disk", Shape::Statement(1)),
    not_yet(Section::Volume, "tiebreaker", Shape::Statement(1)),
    is(Section::Cluster, "mode", Shape::Statement(1)),
    is(Section::Cluster, "key-file", Shape::Statement(1)),
    is(Section::Cluster, "node", Shape::Section(1)),
    is(Section::Cluster, "heartbeat", Shape::Section(0)),
    is(Section::Cluster, "witness", Shape::Section(1)),
    is(Section::Cluster, "fence-command", Shape::Statement(3)),
    is(Section::Cluster, "watchdog", Shape::Statement(3)),
    is(Section::Cluster, "notify", Shape::Section(0)),
    is(Section::ClusterNode, "node-id", Shape::Statement(1)),
    is(Section::ClusterNode, "path", Shape::Statement(3)),
    is(Section::Witness, "address", Shape::Statement(2)),
    is(Section::Notify, "exec", Shape::Statement(1)),
    is(Section::Notify, "mail", Shape::Statement(3)),
    is(Section::Notify, "webhook", Shape::Statement(1)),
    is(Section::Notify, "syslog", Shape::Statement(1)),
    is(Section::Failover, "start-policy", Shape::Statement(1)),
    is(Section::Failover, "preferred", Shape::Statement(1)),
    is(Section::Failover, "failback", Shape::Statement(2)),
    is(Section::Failover, "mount", Shape::Statement(9)),
    is(Section::Failover, "vip", Shape::Statement(3)),
    is(Section::Failover, "service", Shape::Section(1)),
    is(Section::Failover, "run", Shape::Section(1)),
    is(Section::Failover, "monitor", Shape::Section(0)),
    is(Section::Failover, "group", Shape::Statement(1)),
    is(Section::Failover, "stop-ladder", Shape::Section(0)),
    is(Section::Service, "start", Shape::Statement(1)),
    is(Section::Service, "stop", Shape::Statement(1)),
    is(Section::Service, "check", Shape::Statement(1)),
    is(Section::Service, "unit", Shape::Statement(1)),
    is(Section::Monitor, "ping", Shape::Statement(ANY)),
    is(Section::Monitor, "interface", Shape::Statement(ANY)),
];

/// Statements about the version of DRBD's kernel module: there is none here.
pub const MODULE_VERSION: &str = "require-drbd-module-version-";

/// The word of a section that is not an option.
pub fn structure(section: Section, word: &str) -> Option<&'static Structure> {
    STRUCTURE
        .iter()
        .find(|known| known.section == section && known.word == word)
}

/// All words that can stand in a section, for suggestions.
pub fn words(section: Section) -> Vec<&'static str> {
    let homes: &[Section] = match section {
        Section::Syncer => &[Net, Disk, Options],
        _ => &[section],
    };
    let structure = STRUCTURE
        .iter()
        .filter(|known| known.section == section)
        .map(|known| known.word);
    let options = homes.iter().flat_map(|home| options(*home));
    structure.chain(options.map(|spec| spec.name)).collect()
}

/// The sections in which a word could stand, for the message about one that stands elsewhere.
pub fn sections_of(word: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = STRUCTURE
        .iter()
        .filter(|known| known.word == word)
        .map(|known| known.section)
        .chain(
            OPTION_SECTIONS
                .into_iter()
                .filter(|section| find(*section, word).is_some()),
        )
        .collect();
    sections.sort();
    sections.dedup();
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for section in OPTION_SECTIONS {
            let specs = options(section);
            for (index, spec) in specs.iter().enumerate() {
                assert_eq!(spec.section, section, "{}", spec.name);
                assert!(
                    specs[..index].iter().all(|other| other.name != spec.name),
                    "{} is there twice",
                    spec.name
                );
                if let Kind::Number {
                    min,
                    max,
                    default,
                    unit,
                    ..
                } = spec.kind
                {
                    assert!(min <= max, "{}", spec.name);
                    assert!(default.is_none_or(|value| (min..=max).contains(&value)));
                    assert!(max.checked_mul(unit.factor()).is_some(), "{}", spec.name);
                }
            }
        }
    }

    #[test]
    fn old_names_and_places_are_found() {
        let name =
            |section, word| find(section, word).map(|found| (found.spec.name, found.negated));
        assert_eq!(name(Section::Syncer, "rate"), Some(("resync-rate", false)));
        assert_eq!(
            name(Section::Syncer, "verify-alg"),
            Some(("verify-alg", false))
        );
        assert_eq!(name(Section::Syncer, "cpu-mask"), Some(("cpu-mask", false)));
        assert_eq!(name(Disk, "no-md-flushes"), Some(("md-flushes", true)));
        assert_eq!(name(Disk, "no-al-extents"), None);
        assert_eq!(name(Disk, "fencing"), Some(("fencing", false)));
        assert_eq!(
            name(Disk, "on-no-data-accessible"),
            Some(("on-no-data-accessible", false))
        );
        assert_eq!(name(Handlers, "outdate-peer"), Some(("fence-peer", false)));
        assert_eq!(name(Net, "al-extents"), None);
    }

    #[test]
    fn a_word_knows_its_sections() {
        assert_eq!(sections_of("ping-int"), [Net]);
        assert_eq!(sections_of("address"), [Section::Host, Section::Witness]);
        assert_eq!(sections_of("nonsense"), []);
    }
}
