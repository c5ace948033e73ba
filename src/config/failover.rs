//! The model of the `failover` section of a resource: what is started where the data is.
//!
//! Steps are started in the order of the file and stopped in the reverse order.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{Spanned, StartPolicy};
use super::options::{Field, Value, option_struct};
use super::schema::Section;

/// The `failover` section of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failover {
    pub start_policy: StartPolicy,
    /// Name of the host that gets the resource when both could have it.
    pub preferred: Option<Spanned<String>>,
    pub failback: Failback,
    /// In the order in which they are started.
    pub steps: Vec<Spanned<Step>>,
    pub monitor: Option<Monitor>,
    /// Resources of one group have the same hosts and move together.
    pub group: Option<Spanned<String>>,
    pub stop_ladder: StopLadder,
}

impl Failover {
    /// True if it says more than when the data plane is started.
    pub fn acts(&self) -> bool {
        *self
            != Failover {
                start_policy: self.start_policy,
                ..Failover::default()
            }
    }
}

/// Whether a resource returns to the preferred host by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failback {
    #[default]
    Never,
    /// When that host has been up to date and healthy for this long.
    WhenStable(Duration),
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Mount(Mount),
    Vip(Vip),
    /// Something that clients use: when it cannot be kept up, the resource moves.
    Service(Service),
    /// A job that must run beside the data only: kept up, but nothing moves for it.
    Run(Service),
}

impl Step {
    /// The word that begins the step in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Step::Mount(_) => "mount",
            Step::Vip(_) => "vip",
            Step::Service(_) => "service",
            Step::Run(_) => "run",
        }
    }

    /// What it is called on the command line; no two steps of a resource have the same.
    pub fn name(&self) -> String {
        match self {
            Step::Mount(mount) => mount.dir.display().to_string(),
            Step::Vip(vip) => vip.address.to_string(),
            Step::Service(service) | Step::Run(service) => service.name.clone(),
        }
    }
}

/// `mount DIR volume N fstype T options O fsck auto|no|force`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub dir: PathBuf,
    pub volume: u16,
    /// `auto`: whatever is found on the volume.
    pub fstype: String,
    /// As for `mount -o`.
    pub options: String,
    pub fsck: Fsck,
}

/// Whether a file system is checked before it is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsck {
    /// As the file system itself asks for it.
    #[default]
    Auto,
    No,
    /// Always, in full.
    Force,
}

impl Fsck {
    pub(super) const WORDS: [&str; 3] = ["auto", "no", "force"];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Fsck::Auto => "auto",
            Fsck::No => "no",
            Fsck::Force => "force",
        }
    }

    pub(super) fn named(word: &str) -> Option<Fsck> {
        [Fsck::Auto, Fsck::No, Fsck::Force]
            .into_iter()
            .find(|fsck| fsck.word() == word)
    }
}

/// `vip ADDRESS/PREFIX dev INTERFACE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    pub address: IpAddr,
    pub prefix: u8,
    pub dev: String,
}

/// `service NAME { ... }` and `run NAME { ... }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub control: Control,
    /// For `/bin/sh -c`: exit code 0 says that it works. Without one, a unit is asked of systemd
    /// and commands are trusted.
    pub check: Option<String>,
    pub options: CheckOptions,
}

/// How a service is started and stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Each for `/bin/sh -c`.
    Commands { start: String, stop: String },
    /// A unit of systemd.
    Unit(String),
}

option_struct! {
    /// How a service is looked after.
    CheckOptions in Section::Service;
    /// Between two checks.
    interval: Duration = "interval",
    /// A check that takes longer has failed.
    timeout: Duration = "timeout",
    /// Good checks in a row that make it well again.
    rise: u32 = "rise",
    /// Bad checks in a row that make it fail.
    fall: u32 = "fall",
    /// Times that it is started again in place before the resource moves.
    restarts: u32 = "restarts",
}

/// `monitor { ... }`: what must be reachable here for the resource to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    pub ping: Vec<IpAddr>,
    pub interfaces: Vec<String>,
    pub options: MonitorOptions,
}

option_struct! {
    /// How a monitor looks.
    MonitorOptions in Section::Monitor;
    /// Between two looks.
    interval: Duration = "interval",
    /// Bad looks in a row that make a thing lost.
    fall: u32 = "fall",
    /// Good looks in a row that bring it back.
    rise: u32 = "rise",
}

option_struct! {
    /// How long each way of stopping may take.
    StopLadder in Section::StopLadder;
    /// For the stop commands of all steps together.
    services: Duration = "services",
    /// For users of a mount after SIGTERM.
    term: Duration = "term",
    /// For users of a mount after SIGKILL.
    kill: Duration = "kill",
    /// What is done about a mount that is still in use.
    then: LastResort = "then",
}

impl StopLadder {
    /// The longest time that all of it takes.
    pub fn total(&self) -> Duration {
        self.services + self.term + self.kill
    }
}

/// The end of a stop ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastResort {
    /// The device fails what is still asked of it, and the mount is detached.
    FailIo,
    /// This node resets itself.
    Fence,
}

impl Field for LastResort {
    fn read(value: Option<&Value>) -> LastResort {
        match value {
            Some(Value::Text(text)) if text == "fence" => LastResort::Fence,
            _ => LastResort::FailIo,
        }
    }

    fn write(&self) -> Option<Value> {
        let text = match self {
            LastResort::FailIo => "fail-io",
            LastResort::Fence => "fence",
        };
        Some(Value::Text(text.to_owned()))
    }
}
