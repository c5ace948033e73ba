//! Options of the sections below `cluster` and `failover`.

use super::Section::{Heartbeat, Monitor, Service, StopLadder};
use super::Unit::{Count, Milliseconds};
use super::{Spec, choice, number};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;

/// `heartbeat`. How these must stand to each other is checked where they are resolved.
pub const HEARTBEAT: &[Spec] = &[
    number(Heartbeat, "interval", Milliseconds, [20, 250, 10 * SECOND]),
    number(Heartbeat, "warn-after", Milliseconds, [30, 500, MINUTE]),
    number(
        Heartbeat,
        "dead-after",
        Milliseconds,
        [50, SECOND, 2 * MINUTE],
    ),
    number(
        Heartbeat,
        "lease",
        Milliseconds,
        [200, 3 * SECOND, 5 * MINUTE],
    ),
    number(
        Heartbeat,
        "boot-wait",
        Milliseconds,
        [50, 10 * SECOND, 10 * MINUTE],
    ),
];

/// `service` and `run`.
pub const SERVICE: &[Spec] = &[
    number(
        Service,
        "interval",
        Milliseconds,
        [100, 10 * SECOND, 60 * MINUTE],
    ),
    number(
        Service,
        "timeout",
        Milliseconds,
        [100, 5 * SECOND, 10 * MINUTE],
    ),
    number(Service, "rise", Count, [1, 1, 100]),
    number(Service, "fall", Count, [1, 2, 100]),
    number(Service, "restarts", Count, [0, 3, 100]),
];

/// `monitor`.
pub const MONITOR: &[Spec] = &[
    number(Monitor, "interval", Milliseconds, [100, SECOND, MINUTE]),
    number(Monitor, "fall", Count, [1, 3, 100]),
    number(Monitor, "rise", Count, [1, 3, 100]),
];

/// `stop-ladder`.
pub const STOP_LADDER: &[Spec] = &[
    number(
        StopLadder,
        "services",
        Milliseconds,
        [100, 15 * SECOND, 10 * MINUTE],
    ),
    number(
        StopLadder,
        "term",
        Milliseconds,
        [0, 5 * SECOND, 5 * MINUTE],
    ),
    number(
        StopLadder,
        "kill",
        Milliseconds,
        [0, 5 * SECOND, 5 * MINUTE],
    ),
    choice(StopLadder, "then", &["fail-io", "fence"]),
];
