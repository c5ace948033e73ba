//! What the command line says to the agent, and the agent to a data plane.
//!
//! Both are newline-delimited JSON over Unix stream sockets, one request and one or more replies
//! per line. File descriptors travel beside a line (SCM_RIGHTS).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::pace::Limits;
use crate::engine::{Generation, Term, VolumeId, Vote};
use crate::target::Client;

/// A request of the command line to the agent (`RUN_DIR/control.sock`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlRequest {
    /// `up`, `down`, `primary`, `status`, ...
    pub verb: String,
    /// Resource, `RES/VOL`, `RES:PEER` or `all`; empty for the node.
    #[serde(default)]
    pub target: String,
    /// Options of the verb: `force`, `timeout`, `discard-my-data`, ...
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// A reply of the agent, and of a data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The request is done; its result, null when there is nothing to say.
    Done(serde_json::Value),
    /// One item of a stream (`events`); more follow.
    Item(serde_json::Value),
    /// The request failed.
    Error(ErrorReply),
}

/// Why a request failed, with the exit code of the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// A stable word: see [`ErrorKind::name`].
    pub kind: String,
    /// What went wrong. May hold further lines (a marked place in the configuration).
    pub reason: String,
    /// What to do next.
    pub help: String,
    pub exit: u8,
}

impl ErrorReply {
    pub fn new(
        kind: ErrorKind,
        reason: impl std::fmt::Display,
        help: impl std::fmt::Display,
    ) -> ErrorReply {
        ErrorReply {
            kind: kind.name().to_owned(),
            reason: reason.to_string(),
            help: help.to_string(),
            exit: kind.exit(),
        }
    }
}

/// The ways in which a command ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Something outside did not work: a system call, a process.
    Failed,
    /// The request makes no sense.
    Usage,
    /// The state of the resource does not allow it.
    Refused,
    Timeout,
    /// No agent answers.
    Unreachable,
    Config,
}

impl ErrorKind {
    /// The word in `{"error":{"kind":...}}`.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Failed => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Refused => "refused",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Config => "config",
        }
    }

    /// The exit code of the command line.
    pub fn exit(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Refused => 3,
            ErrorKind::Timeout => 4,
            ErrorKind::Unreachable => 5,
            ErrorKind::Config => 10,
        }
    }
}

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every resource that this node has.
    All,
    Resource(String),
    Volume(String, u16),
    Peer(String, String),
}

impl Target {
    /// Reads `all`, `RES`, `RES/VOL` or `RES:PEER`.
    pub fn parse(text: &str) -> Result<Target, ErrorReply> {
        let bad = |why: &str| {
            ErrorReply::new(
                ErrorKind::Usage,
                format!("'{text}' names no resource: {why}"),
                "write RES, RES/VOLUME, RES:PEER or all",
            )
        };
        let word = |name: &str| !name.is_empty() && !name.contains(['/', ':', '\0', '\n']);
        if text == "all" {
            return Ok(Target::All);
        }
        if let Some((name, volume)) = text.split_once('/') {
            let volume = volume
                .parse::<u16>()
                .map_err(|_| bad("a volume is a number from 0 to 65535"))?;
            return if word(name) {
                Ok(Target::Volume(name.to_owned(), volume))
            } else {
                Err(bad("the name before the slash is not usable"))
            };
        }
        if let Some((name, peer)) = text.split_once(':') {
            return if word(name) && word(peer) {
                Ok(Target::Peer(name.to_owned(), peer.to_owned()))
            } else {
                Err(bad("resource and peer need a name each"))
            };
        }
        if word(text) {
            Ok(Target::Resource(text.to_owned()))
        } else {
            Err(bad("the name is empty or not usable"))
        }
    }

    /// Refuses one volume where `verb` is about all of a resource.
    pub fn of_resource(&self, verb: &str) -> Result<(), ErrorReply> {
        match self {
            Target::All | Target::Resource(_) | Target::Peer(..) => Ok(()),
            Target::Volume(..) => Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("{verb} concerns a whole resource, not one volume"),
                "leave out the volume",
            )),
        }
    }

    /// Refuses a connection where `verb` is about what this node has by itself.
    pub fn of_this_node(&self, verb: &str) -> Result<(), ErrorReply> {
        match self {
            Target::All | Target::Resource(_) | Target::Volume(..) => Ok(()),
            Target::Peer(..) => Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("{verb} concerns this node, not a connection"),
                "leave out the colon and the peer",
            )),
        }
    }

    /// The resource named; none for `all`.
    pub fn resource(&self) -> Option<&str> {
        match self {
            Target::All => None,
            Target::Resource(name) | Target::Volume(name, _) | Target::Peer(name, _) => Some(name),
        }
    }
}

/// How a pair without a key gets one: for `check`, `status` and the log.
pub const AUTHENTICATE: &str = "`lockstep keygen` makes a key: name it on both nodes in \
                                `cluster { key-file PATH; }`, or write `shared-secret` in `net`; \
                                then `lockstep adjust all`";

/// A secret that no log shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SharedSecret(String);

impl From<String> for SharedSecret {
    fn from(secret: String) -> SharedSecret {
        SharedSecret(secret)
    }
}

impl std::ops::Deref for SharedSecret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// What the agent hands to a data plane when it starts (first line on descriptor 3's socket).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeConfig {
    pub resource: String,
    pub node: u8,
    pub peer: u8,
    #[serde(default)]
    pub node_name: String,
    pub peer_name: String,
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// Own and peer's `address`, `IP:PORT`.
    pub address: String,
    pub peer_address: String,
    /// Key of the connection's authentication; empty = unauthenticated.
    pub shared_secret: SharedSecret,
    /// Milliseconds.
    pub ping_interval: u64,
    pub ping_timeout: u64,
    pub timeout: u64,
    pub ko_count: u32,
    pub connect_interval: u64,
    pub al_extents: u16,
    /// Every block of a sync is compared before it is copied.
    #[serde(default)]
    pub csums: bool,
    /// A sync onto this node waits until the agent approves it.
    #[serde(default)]
    pub guarded: bool,
    /// A name that `verify-alg` takes.
    #[serde(default)]
    pub verify_alg: String,
    #[serde(default)]
    pub verify_repair: bool,
    /// Reigns and new generations need the voters' word, and completions a lease.
    #[serde(default)]
    pub votes: bool,
    /// `sndbuf-size`, bytes on their way to the peer; 0 = chosen by the data plane.
    pub send_buffer: u32,
    pub volumes: Vec<ServeVolume>,
}

impl ServeConfig {
    /// This configuration with those options of `other` that can change while it is in use. The
    /// secret, and what a socket is made with, hold from the next connection on.
    pub fn with_options_of(&self, other: &ServeConfig) -> ServeConfig {
        ServeConfig {
            shared_secret: other.shared_secret.clone(),
            ping_interval: other.ping_interval,
            ping_timeout: other.ping_timeout,
            timeout: other.timeout,
            ko_count: other.ko_count,
            connect_interval: other.connect_interval,
            guarded: other.guarded,
            verify_alg: other.verify_alg.clone(),
            verify_repair: other.verify_repair,
            volumes: self
                .volumes
                .iter()
                .map(|v| v.with_options_of(other))
                .collect(),
            ..self.clone()
        }
    }
}

/// One volume of a data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeVolume {
    pub volume: u16,
    pub front: FrontEnd,
    /// Metadata inside the data device, or on a device of its own.
    pub internal_meta: bool,
    /// On an index of that device, with the room of one.
    #[serde(default)]
    pub indexed_meta: bool,
    #[serde(default)]
    pub resync: ResyncOptions,
    /// What the driver keeps with the block device of this volume, so that the agent's record of
    /// it is never taken for another's. A device with the volume's minor and this cookie whose
    /// server died is recovered; one with another cookie is somebody else's.
    #[serde(default)]
    pub cookie: u64,
}

impl ServeVolume {
    fn with_options_of(&self, config: &ServeConfig) -> ServeVolume {
        let same = |other: &&ServeVolume| other.volume == self.volume;
        ServeVolume {
            resync: config.volumes.iter().find(same).unwrap_or(self).resync,
            ..self.clone()
        }
    }
}

/// The options of a volume that say how fast a sync of it from here may go. Bytes, bytes per
/// second, and milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncOptions {
    /// Of this and `max_rate` the lower counts.
    pub rate: Option<u64>,
    /// 0 = no limit.
    pub max_rate: Option<u64>,
    pub min_rate: Option<u64>,
    pub plan_ahead: u64,
    pub delay_target: u64,
    pub fill_target: u64,
}

impl Default for ResyncOptions {
    fn default() -> ResyncOptions {
        let limits = Limits::default();
        ResyncOptions {
            rate: limits.cap,
            max_rate: None,
            min_rate: limits.floor,
            plan_ahead: limits.plan_ahead.as_millis() as u64,
            delay_target: limits.delay_target.as_millis() as u64,
            fill_target: limits.fill_target,
        }
    }
}

impl ResyncOptions {
    /// Names of the options in the configuration, all in `disk`.
    pub const NAMES: [&str; 6] = [
        "resync-rate",
        "c-max-rate",
        "c-min-rate",
        "c-plan-ahead",
        "c-delay-target",
        "c-fill-target",
    ];

    /// Sets an option by its name; false if it is none of [`ResyncOptions::NAMES`].
    pub fn set(&mut self, name: &str, value: u64) -> bool {
        match name {
            "resync-rate" => self.rate = Some(value),
            "c-max-rate" => self.max_rate = Some(value),
            "c-min-rate" => self.min_rate = Some(value),
            "c-plan-ahead" => self.plan_ahead = value,
            "c-delay-target" => self.delay_target = value,
            "c-fill-target" => self.fill_target = value,
            _ => return false,
        }
        true
    }
}

impl From<ResyncOptions> for Limits {
    fn from(options: ResyncOptions) -> Limits {
        let max_rate = options.max_rate.filter(|rate| *rate > 0);
        Limits {
            cap: options.rate.into_iter().chain(max_rate).min(),
            floor: options.min_rate,
            plan_ahead: Duration::from_millis(options.plan_ahead),
            delay_target: Duration::from_millis(options.delay_target),
            fill_target: options.fill_target,
        }
    }
}

/// What an operator says about a verify.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
pub struct VerifyOptions {
    /// Bytes.
    pub start: Option<u64>,
    pub stop: Option<u64>,
    /// As the configuration's `verify-repair`.
    pub repair: bool,
    /// Name of the node whose data counts; none = the primary.
    pub from: Option<String>,
}

/// How applications reach a volume.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FrontEnd {
    Ublk { minor: u32 },
    NbdUnix { path: String, export: String },
    NbdTcp { address: String, export: String },
}

impl FrontEnd {
    /// What applications open: a device, or the URI of an export.
    pub fn path(&self) -> String {
        match self {
            FrontEnd::Ublk { minor } => format!("/dev/ublkb{minor}"),
            FrontEnd::NbdUnix { path, export } => format!("nbd+unix:///{export}?socket={path}"),
            FrontEnd::NbdTcp { address, export } => format!("nbd://{address}/{export}"),
        }
    }
}

/// A request of the agent to a data plane (`RUN_DIR/RES.serve.sock`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum ServeRequest {
    Configure(Box<ServeConfig>),
    /// A configuration that differs in options that can change while it is in use.
    Adjust(Box<ServeConfig>),
    /// Descriptors beside the line: data device, then metadata device if external, both opened
    /// exclusively.
    Attach {
        volume: u16,
    },
    Detach {
        volume: u16,
    },
    /// Descriptor beside the line: the listening socket of the volume's NBD export. Without one
    /// the data plane serves nobody there, and replicates all the same.
    Listen {
        volume: u16,
    },
    Connect {
        discard_my_data: bool,
    },
    Disconnect,
    Primary {
        force: bool,
        /// The data plane was primary and died under the agent's eyes: the same reign goes on.
        recovered: bool,
        /// What the voters have said, where there are any.
        #[serde(default)]
        vote: Option<Box<Vote>>,
    },
    /// Refused while a client has an NBD export open: the answer is then a list of [`InUse`], and
    /// nothing has changed. Not with `force`, which cuts clients off.
    Secondary {
        #[serde(default)]
        force: bool,
    },
    Invalidate {
        volume: u16,
    },
    PauseSync {
        volume: u16,
        on: bool,
    },
    /// Lets another sync go before those of the volume, for so long at most: an agent that lives
    /// says it again in time. 0 = they may go on.
    HoldSync {
        volume: u16,
        millis: u64,
    },
    /// What comes before a sync onto the volume is done.
    Approve {
        volume: u16,
    },
    Verify {
        volume: u16,
        #[serde(flatten)]
        scope: VerifyOptions,
    },
    Status,
    /// Makes sure that a connected peer still answers.
    Probe,
    /// What a vote needs to know: a list of `failover::Copy`.
    Copies,
    Voter(VoterSays),
    /// The last events and actions of the engine, as lines.
    FlightRecorder,
    /// Streams notices as `Reply::Item` until the socket closes, a picture after every change.
    Events,
    /// The agent is about to set them, for which the kernel empties the device's queue: the data
    /// plane fails changing requests from here on, until they are set.
    QueueFreezes {
        volume: u16,
    },
    /// The agent has set `stable_writes` and the scheduler of the volume's block device.
    QueueConfirmed {
        volume: u16,
    },
    /// Clean end; the process exits after the reply.
    Shutdown,
}

/// An NBD export whose clients keep the node primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InUse {
    pub volume: u16,
    pub clients: Vec<Client>,
}

/// What the voters have answered to a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub enum VoterSays {
    /// To [`ServeNotice::RecordAtVoter`].
    Recorded {
        volume: VolumeId,
        generation: Generation,
    },
    /// Another reigns.
    Deposed { term: Term },
}

/// One item of the stream that `ServeRequest::Events` begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServeNotice {
    /// The block device of a volume has appeared. The agent makes its queue settings and answers
    /// with `ServeRequest::QueueConfirmed`; until then the data plane takes no write.
    DeviceStarted { volume: u16, minor: u32 },
    /// The data plane has let go of the block device: it can be deleted.
    DeviceStopped { volume: u16, minor: u32 },
    /// A state has changed: one for each step, in the order in which they were taken.
    Transition(Transition),
    /// A generation has to be on record before writes go on that the peer lacks.
    RecordAtVoter {
        volume: VolumeId,
        generation: Generation,
        term: Term,
    },
    /// A sync, verify or repair has ended.
    Finished(Finished),
    /// Something else has happened; what, for the log.
    Happened(String),
    /// The picture of `ServeRequest::Status` after everything that was told before.
    Picture(serde_json::Value),
}

/// One step of a state. Names of states are DRBD's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Transition {
    Role { to: String },
    PeerRole { to: String },
    Disk { volume: u16, to: String },
    PeerDisk { volume: u16, to: String },
    Connection { to: String },
    Replication { volume: u16, to: String },
}

/// Totals of a sync, verify or repair. Amounts in KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finished {
    pub volume: u16,
    pub run: Run,
    /// How long it ran, pauses not counted.
    pub seconds: f64,
    /// Mean over that time.
    pub rate_kib_s: u64,
}

/// What has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    Resync {
        copied: u64,
        equal: u64,
    },
    Verify {
        /// It came to its end, or was stopped before.
        complete: bool,
        compared: u64,
        found: u64,
        skipped: u64,
    },
    Repair {
        repaired: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_sent_but_never_shown() {
        let secret = SharedSecret::from("hush".to_owned());
        assert_eq!(serde_json::to_value(&secret).unwrap(), "hush");
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn targets() {
        assert_eq!(Target::parse("all"), Ok(Target::All));
        assert_eq!(Target::parse("r0"), Ok(Target::Resource("r0".into())));
        assert_eq!(Target::parse("r0/3"), Ok(Target::Volume("r0".into(), 3)));
        let peer = Target::Peer("r0".into(), "beta".into());
        assert_eq!(peer.resource(), Some("r0"));
        assert_eq!(Target::parse("r0:beta"), Ok(peer));
        for bad in [
            "", "/", "r0/", "r0/x", "r0/65536", ":b", "r0:", "/0", "a:b:c",
        ] {
            let error = Target::parse(bad).expect_err(bad);
            assert_eq!((error.kind.as_str(), error.exit), ("usage", 2), "{bad}");
        }
    }

    #[test]
    fn every_kind_has_its_exit_code() {
        let kinds = [
            (ErrorKind::Failed, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::Refused, 3),
            (ErrorKind::Timeout, 4),
            (ErrorKind::Unreachable, 5),
            (ErrorKind::Config, 10),
        ];
        for (kind, exit) in kinds {
            let reply = ErrorReply::new(kind, "why", "what next");
            assert_eq!((reply.kind.as_str(), reply.exit), (kind.name(), exit));
        }
    }
}
