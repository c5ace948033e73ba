//! The model of the `cluster` section: who the members are, how they hear of each other, and who
//! decides when they do not.
//!
//! [`Heartbeat::settle`] is the one place where the times are derived from each other and checked
//! against each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{Host, Spanned};
use super::options::{Settings, option_struct};
use super::schema::Section;

/// Completions stop this long before a lease ends: what a late check, the way of a completion and
/// two clocks that run apart may take together.
const MARGIN: Duration = Duration::from_millis(500);

/// As the range of the option.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// As the range of the option.
const MAX_WARN: Duration = Duration::from_secs(60);

/// The `cluster` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Key of heartbeats and votes, and of the connections that have no `shared-secret`.
    pub key_file: Option<PathBuf>,
    pub heartbeat: Heartbeat,
    /// By name, which is one of the names of a host.
    pub nodes: BTreeMap<String, ClusterNode>,
    pub arbiter: Arbiter,
    /// Armed before a promotion.
    pub watchdog: Option<Watchdog>,
    /// Who hears of transitions, in the order of the file.
    pub notify: Vec<Notify>,
}

impl Cluster {
    /// The member that is this host of a resource.
    pub fn node_of(&self, host: &Host) -> Option<&ClusterNode> {
        host.names
            .iter()
            .find_map(|name| self.nodes.get(&name.value))
    }
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    pub name: Spanned<String>,
    /// 0 to 15.
    pub node_id: Spanned<u8>,
    /// Where it hears heartbeats. The first path of one node leads to the first of the other, the
    /// second to the second.
    pub paths: Vec<NodePath>,
}

/// One way to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePath {
    /// Of a UDP socket.
    pub address: Spanned<SocketAddr>,
    /// Interface that the socket is bound to.
    pub dev: Option<String>,
}

/// Who has the vote when the two nodes cannot agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Arbiter {
    /// The operator: nothing is promoted by itself.
    #[default]
    Manual,
    /// Nobody: a node that hears nothing of the other takes over. Can split.
    UnsafeTwoNode,
    /// A third process.
    Witness(Witness),
    /// A command that makes sure that the other node has stopped.
    Fence(FenceCommand),
}

impl Arbiter {
    /// True if a node may be promoted without the operator.
    pub fn is_automatic(&self) -> bool {
        !matches!(self, Arbiter::Manual)
    }
}

/// `witness NAME { address IP:PORT; }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub name: Spanned<String>,
    pub address: Spanned<SocketAddr>,
}

/// `fence-command "..." [timeout T]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceCommand {
    /// For `/bin/sh -c`. Exit code 0 says that the other node has stopped.
    pub command: String,
    /// After this long it has failed.
    pub timeout: Duration,
}

/// `watchdog DEVICE [timeout T]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    pub device: Spanned<PathBuf>,
    /// Whole seconds, as the devices count.
    pub timeout: Duration,
}

/// Where events are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notify {
    /// A command for `/bin/sh -c`.
    Exec(String),
    /// A message to `to`, given to a program in the manner of sendmail.
    Mail {
        to: String,
        via: PathBuf,
    },
    /// A request to an `http://` URL.
    Webhook(String),
    Syslog(Facility),
}

/// A facility of syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility {
    pub name: &'static str,
    pub code: u8,
}

impl Facility {
    /// All that can be named.
    pub const ALL: [Facility; 11] = [
        Facility::new("user", 1),
        Facility::new("daemon", 3),
        Facility::new("syslog", 5),
        Facility::new("local0", 16),
        Facility::new("local1", 17),
        Facility::new("local2", 18),
        Facility::new("local3", 19),
        Facility::new("local4", 20),
        Facility::new("local5", 21),
        Facility::new("local6", 22),
        Facility::new("local7", 23),
    ];

    const fn new(name: &'static str, code: u8) -> Facility {
        Facility { name, code }
    }

    /// The facility of this name.
    pub fn named(name: &str) -> Option<Facility> {
        Facility::ALL.into_iter().find(|known| known.name == name)
    }
}

option_struct! {
    /// The times of heartbeats and leases, checked against each other.
    Heartbeat in Section::Heartbeat;
    /// Between two heartbeats on a path, and two renewals of the lease.
    interval: Duration = "interval",
    /// A path without an answer for this long is shown as late.
    warn_after: Duration = "warn-after",
    /// A node without an answer on any path for this long counts as silent.
    dead_after: Duration = "dead-after",
    /// How long a grant lasts; a silent owner is replaced when it has ended.
    lease: Duration = "lease",
    /// After its start a node waits this long for the other before it asks for a vote alone.
    boot_wait: Duration = "boot-wait",
}

impl Heartbeat {
    /// Completions stop this long before the lease ends.
    pub fn margin(&self) -> Duration {
        MARGIN.min(self.lease / 4)
    }

    /// How long after a renewal completions pass.
    pub fn serving(&self) -> Duration {
        self.lease - self.margin()
    }

    /// The times as written in `settings`; what is not written has its default, or follows what is
    /// written where the default would break a rule. `watchdog` is a timeout as written.
    pub(super) fn settle(settings: &Settings, watchdog: Option<Duration>) -> Heartbeat {
        let mut times = Heartbeat::resolve(&[settings]);
        let written = |name| settings.contains_key(name);
        let [warn, dead, lease] = ["warn-after", "dead-after", "lease"].map(written);
        if !written("interval") {
            // What lease and silence leave between them, where both are written.
            let room = times.serving().saturating_sub(times.dead_after);
            let between = if dead && room >= MIN_INTERVAL {
                room
            } else {
                times.lease / 8
            };
            for (there, limit) in [
                (warn, times.warn_after / 2),
                (dead, times.dead_after / 4),
                (lease, between),
            ] {
                if there {
                    times.interval = times.interval.min(limit);
                }
            }
            times.interval = whole_millis(times.interval.max(MIN_INTERVAL));
        }
        if !dead {
            times.dead_after = times.dead_after.max(times.interval * 4);
            if warn {
                times.dead_after = times.dead_after.max(times.warn_after * 2);
            }
            if lease {
                let most = times.serving().saturating_sub(times.interval);
                times.dead_after = whole_millis(times.dead_after.min(most));
            }
        }
        let fits = times.interval < times.warn_after && times.warn_after < times.dead_after;
        if !(warn || fits) {
            let between = (times.interval + times.dead_after) / 2;
            times.warn_after = whole_millis(between.min(MAX_WARN));
        }
        if !lease {
            let seconds = watchdog.map_or(Duration::ZERO, |timeout| timeout + 2 * MARGIN);
            times.lease = times.lease.max(times.dead_after * 2).max(seconds);
        }
        if !written("boot-wait") {
            times.boot_wait = times.boot_wait.max(times.dead_after);
        }
        times
    }

    /// The first rule that the times break, with the options that it is about.
    pub(super) fn fault(&self) -> Option<TimerFault> {
        let Heartbeat {
            interval,
            warn_after: warn,
            dead_after: dead,
            lease,
            boot_wait,
        } = *self;
        let need = dead + interval;
        if dead <= interval * 2 {
            Some(TimerFault::DeadTooShort { dead, interval })
        } else if warn <= interval {
            Some(TimerFault::WarnTooShort { warn, interval })
        } else if warn >= dead {
            Some(TimerFault::WarnTooLong { warn, dead })
        } else if lease < interval * 4 {
            Some(TimerFault::LeaseBelowBeats { lease, interval })
        } else if self.serving() < need {
            let margin = self.margin();
            Some(TimerFault::LeaseTooShort {
                lease,
                margin,
                need,
            })
        } else if boot_wait < dead {
            Some(TimerFault::BootTooShort { boot_wait, dead })
        } else {
            None
        }
    }

    /// The timeout of a watchdog that fires before completions stop: the longest, unless one is
    /// written. None can be shorter than a second.
    pub(super) fn watchdog(&self, written: Option<Duration>) -> Result<Duration, TimerFault> {
        let serving = self.serving();
        let longest = Duration::from_secs(serving.as_secs());
        let longest = if longest == serving {
            longest.saturating_sub(Duration::from_secs(1))
        } else {
            longest
        };
        let timeout = written.unwrap_or(longest.max(Duration::from_secs(1)));
        if timeout < serving {
            Ok(timeout)
        } else {
            Err(TimerFault::WatchdogTooLong {
                timeout,
                serving,
                lease: timeout + 2 * MARGIN,
            })
        }
    }
}

/// Times that do not go together. All are shown in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerFault {
    /// One lost heartbeat would be a dead node.
    #[error(
        "`dead-after` ({} ms) is not more than twice `interval` ({} ms)",
        .dead.as_millis(), .interval.as_millis()
    )]
    DeadTooShort { dead: Duration, interval: Duration },
    /// Every path would be late.
    #[error(
        "`warn-after` ({} ms) is not longer than `interval` ({} ms)",
        .warn.as_millis(), .interval.as_millis()
    )]
    WarnTooShort { warn: Duration, interval: Duration },
    /// No path would be late before its node is silent.
    #[error(
        "`warn-after` ({} ms) is not shorter than `dead-after` ({} ms)",
        .warn.as_millis(), .dead.as_millis()
    )]
    WarnTooLong { warn: Duration, dead: Duration },
    /// A few lost renewals would end the lease.
    #[error(
        "`lease` ({} ms) is shorter than four times `interval` ({} ms)",
        .lease.as_millis(), .interval.as_millis()
    )]
    LeaseBelowBeats { lease: Duration, interval: Duration },
    /// A primary whose peer falls silent must find it out and renew its lease at the third voter
    /// before completions stop.
    #[error(
        "`lease` ({} ms) is too short: completions stop {} ms before its end, and `dead-after` \
         and one `interval` ({} ms) do not fit before that",
        .lease.as_millis(), .margin.as_millis(), .need.as_millis()
    )]
    LeaseTooShort {
        lease: Duration,
        margin: Duration,
        need: Duration,
    },
    /// A node that boots would call a peer silent that it has not waited for.
    #[error(
        "`boot-wait` ({} ms) is shorter than `dead-after` ({} ms)",
        .boot_wait.as_millis(), .dead.as_millis()
    )]
    BootTooShort { boot_wait: Duration, dead: Duration },
    /// It would fire when somebody else may write already.
    #[error(
        "a watchdog of {} ms is not shorter than `lease` minus its margin ({} ms)",
        .timeout.as_millis(), .serving.as_millis()
    )]
    WatchdogTooLong {
        timeout: Duration,
        serving: Duration,
        /// Long enough for this watchdog.
        lease: Duration,
    },
}

impl TimerFault {
    /// The options that it is about, the likeliest mistake first.
    pub(super) fn options(&self) -> [&'static str; 2] {
        match self {
            TimerFault::DeadTooShort { .. } => ["dead-after", "interval"],
            TimerFault::WarnTooShort { .. } => ["warn-after", "interval"],
            TimerFault::WarnTooLong { .. } => ["warn-after", "dead-after"],
            TimerFault::LeaseBelowBeats { .. } => ["lease", "interval"],
            TimerFault::LeaseTooShort { .. } => ["lease", "dead-after"],
            TimerFault::BootTooShort { .. } => ["boot-wait", "dead-after"],
            TimerFault::WatchdogTooLong { .. } => ["watchdog", "lease"],
        }
    }

    /// The way out.
    pub(super) fn help(&self) -> String {
        let ms = |time: Duration| time.as_millis();
        match *self {
            TimerFault::DeadTooShort { dead, interval } => format!(
                "write `dead-after` above {}ms, or `interval` below {}ms",
                ms(interval * 2),
                ms(dead / 2)
            ),
            TimerFault::WarnTooShort { interval, .. } => {
                format!("write `warn-after` above {}ms", ms(interval))
            }
            TimerFault::WarnTooLong { warn, dead } => format!(
                "write `warn-after` below {}ms, or `dead-after` above {}ms",
                ms(dead),
                ms(warn)
            ),
            TimerFault::LeaseBelowBeats { interval, .. } => {
                format!("write `lease` of at least {}ms", ms(interval * 4))
            }
            TimerFault::LeaseTooShort { need, .. } => {
                format!("write `lease` of at least {}ms", ms(lease_for(need)))
            }
            TimerFault::BootTooShort { dead, .. } => {
                format!("write `boot-wait` of at least {}ms", ms(dead))
            }
            TimerFault::WatchdogTooLong { lease, .. } => format!(
                "write `lease` of at least {}ms, or leave the watchdog out: none is shorter than \
                 a second",
                ms(lease)
            ),
        }
    }
}

/// Times are written in milliseconds.
fn whole_millis(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}

/// The shortest lease that leaves `need` before completions stop.
fn lease_for(need: Duration) -> Duration {
    // Three quarters of a short one are left, of a long one all but the margin.
    let short = (need.as_millis() as u64 * 4).div_ceil(3);
    Duration::from_millis(short).min(need + MARGIN)
}
