//! What a run is made of: named scenarios, and the plan that a seed draws from one.

use std::time::Duration;

use lockstep::engine::pace::Limits;
use lockstep::engine::{Protocol, Sabotage, Timeouts};
use lockstep::failover::Lease;

use crate::node::EXTENT;
use crate::rng::Rng;
use crate::schedule::{Instant, MICRO, MILLI, SECOND};

/// How often each thing happens, relative to the others. Zero: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weights {
    /// The data plane is killed; its agent lives.
    pub kill: u32,
    /// Agent and data plane are killed.
    pub kill_agent: u32,
    pub power_one: u32,
    pub power_both: u32,
    pub pause: u32,
    /// A connection breaks; both ends are told.
    pub link_drop: u32,
    /// A connection breaks; one end or nobody is told.
    pub half_open: u32,
    pub cut_one_way: u32,
    pub partition: u32,
    pub disk_error: u32,
    pub slow_disk: u32,
    /// A metadata write is lost or misdirected.
    pub metadata: u32,
    /// A data write is lost or misdirected, without a word.
    pub silent: u32,
    /// Operator: hand the primary role to the other node.
    pub switch: u32,
    /// Operator: promote a node that should be refused.
    pub intrude: u32,
    pub disconnect: u32,
    pub detach: u32,
    pub invalidate: u32,
    /// Operator: pause syncs, or let them go on.
    pub hold: u32,
    /// Operator: compare the copies, with or without a repair.
    pub verify: u32,
    /// Operator: promote by force while the other node cannot be asked.
    pub force: u32,
    /// The run begins with a first sync, and a slow one.
    pub first_sync: u32,
    /// Nothing but an inspection of both disks.
    pub inspect: u32,
    /// Per thousand promotions that a voter allowed: the operator thinks better of it at once.
    pub retreat: u32,
    /// The agent alone ends and comes back. This and what follows: only where there is a witness.
    pub agent: u32,
    pub witness_restart: u32,
    /// The witness restarts without its record, or with an old copy of it.
    pub witness_loss: u32,
    /// The heartbeat path between the nodes is cut, apart from the replication link.
    pub heart_cut: u32,
    /// A node and the witness lose each other.
    pub witness_cut: u32,
}

/// A named mix.
pub struct Scenario {
    pub name: &'static str,
    /// What happens, as a sentence.
    pub story: &'static str,
    pub weights: Weights,
}

const NONE: Weights = Weights {
    kill: 0,
    kill_agent: 0,
    power_one: 0,
    power_both: 0,
    pause: 0,
    link_drop: 0,
    half_open: 0,
    cut_one_way: 0,
    partition: 0,
    disk_error: 0,
    slow_disk: 0,
    metadata: 0,
    silent: 0,
    switch: 0,
    intrude: 0,
    disconnect: 0,
    detach: 0,
    invalidate: 0,
    hold: 0,
    verify: 0,
    force: 0,
    first_sync: 0,
    inspect: 2,
    retreat: 0,
    agent: 0,
    witness_restart: 0,
    witness_loss: 0,
    heart_cut: 0,
    witness_cut: 0,
};

/// Where things fail, the voters do, too.
const SHAKY: Weights = Weights {
    agent: 1,
    witness_restart: 1,
    witness_loss: 1,
    heart_cut: 1,
    witness_cut: 1,
    ..NONE
};

/// Every scenario; a seed draws one unless `--scenario` names it.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "calm",
        story: "nothing fails while applications write on one node and then on the other",
        weights: Weights {
            verify: 6,
            switch: 4,
            slow_disk: 1,
            ..NONE
        },
    },
    Scenario {
        name: "links",
        story: "connections break, hang half-open, are cut one way and come back",
        weights: Weights {
            hold: 3,
            verify: 4,
            link_drop: 6,
            half_open: 4,
            cut_one_way: 3,
            partition: 3,
            disconnect: 2,
            slow_disk: 2,
            intrude: 1,
            ..SHAKY
        },
    },
    Scenario {
        name: "kills",
        story: "data planes are killed at any step, with their disk writes still in flight",
        weights: Weights {
            hold: 3,
            verify: 3,
            kill: 8,
            kill_agent: 4,
            link_drop: 2,
            slow_disk: 4,
            switch: 2,
            ..SHAKY
        },
    },
    Scenario {
        name: "power",
        story: "one or both nodes lose power, and with it what their disks had cached",
        weights: Weights {
            verify: 3,
            power_one: 7,
            power_both: 3,
            kill: 2,
            link_drop: 2,
            switch: 2,
            ..SHAKY
        },
    },
    Scenario {
        name: "takeover",
        story: "the primary goes away and an operator tries to go on with what is left",
        weights: Weights {
            verify: 3,
            kill_agent: 5,
            power_one: 4,
            partition: 4,
            switch: 6,
            intrude: 8,
            link_drop: 2,
            slow_disk: 3,
            ..SHAKY
        },
    },
    Scenario {
        name: "pauses",
        story: "processes stop for seconds and go on as if nothing had happened",
        weights: Weights {
            verify: 3,
            pause: 8,
            half_open: 3,
            link_drop: 2,
            switch: 3,
            intrude: 2,
            ..SHAKY
        },
    },
    Scenario {
        name: "disks",
        story: "disks report errors, are full, are detached and come back",
        weights: Weights {
            verify: 4,
            disk_error: 6,
            slow_disk: 3,
            detach: 5,
            invalidate: 2,
            kill: 2,
            link_drop: 3,
            ..SHAKY
        },
    },
    Scenario {
        name: "metadata",
        story: "a metadata write is lost or lands elsewhere, and then the node restarts",
        weights: Weights {
            metadata: 6,
            kill: 3,
            kill_agent: 3,
            power_one: 3,
            ..NONE
        },
    },
    Scenario {
        name: "force",
        story: "an operator promotes by force behind a cut link, and later decides who was wrong",
        weights: Weights {
            partition: 8,
            force: 8,
            switch: 4,
            link_drop: 2,
            kill: 2,
            disconnect: 2,
            ..SHAKY
        },
    },
    Scenario {
        name: "overtaken",
        story: "by force a node becomes primary for a moment behind the back of the real one",
        weights: Weights {
            partition: 6,
            force: 30,
            slow_disk: 6,
            kill: 1,
            ..SHAKY
        },
    },
    Scenario {
        name: "syncing",
        story: "applications write small blocks while a first sync takes its time",
        weights: Weights {
            hold: 3,
            verify: 3,
            first_sync: 1,
            link_drop: 1,
            kill: 1,
            ..NONE
        },
    },
    Scenario {
        name: "flapping",
        story: "connections and primaries are lost and replaced while disks are slow",
        weights: Weights {
            hold: 3,
            verify: 4,
            link_drop: 12,
            kill: 3,
            slow_disk: 6,
            force: 4,
            ..SHAKY
        },
    },
    Scenario {
        name: "storm",
        story: "everything that the protocol promises to survive, at once",
        weights: Weights {
            kill: 3,
            kill_agent: 2,
            power_one: 3,
            power_both: 1,
            pause: 2,
            link_drop: 4,
            half_open: 3,
            cut_one_way: 2,
            partition: 2,
            disk_error: 1,
            slow_disk: 3,
            metadata: 0,
            silent: 0,
            switch: 3,
            intrude: 3,
            disconnect: 2,
            detach: 2,
            invalidate: 1,
            verify: 3,
            force: 0,
            first_sync: 0,
            ..SHAKY
        },
    },
    Scenario {
        name: "deposed",
        story: "a primary is stopped or cut off until the voter names another, and comes back",
        weights: Weights {
            partition: 8,
            pause: 4,
            switch: 1,
            intrude: 20,
            kill: 1,
            retreat: 700,
            ..SHAKY
        },
    },
    Scenario {
        name: "witness",
        story: "the witness forgets, restarts and is cut off while nodes vanish and try their luck",
        weights: Weights {
            kill_agent: 2,
            power_one: 2,
            pause: 2,
            partition: 10,
            switch: 2,
            intrude: 25,
            retreat: 100,
            agent: 3,
            witness_restart: 8,
            witness_loss: 10,
            heart_cut: 3,
            witness_cut: 6,
            ..NONE
        },
    },
    Scenario {
        name: "silent",
        story: "disks lose or misplace data writes without a word; the last comparison finds it",
        weights: Weights { silent: 6, ..NONE },
    },
    Scenario {
        name: "verify",
        story: "the copies are compared and repaired again and again while everything happens",
        weights: Weights {
            verify: 60,
            link_drop: 1,
            kill: 1,
            pause: 1,
            slow_disk: 3,
            switch: 3,
            ..NONE
        },
    },
];

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Third voter present.
    pub voter: bool,
    pub protocol: Protocol,
    pub scenario: Option<usize>,
    pub sabotage: Option<Sabotage>,
    pub trace: bool,
}

/// Everything that a seed decides at the start.
pub struct Plan {
    pub scenario: &'static Scenario,
    pub volumes: usize,
    /// Sectors of each volume.
    pub sectors: u64,
    pub volatile: [bool; 2],
    pub log_slots: u16,
    pub resync_buffers: u32,
    pub resync_chunk: u32,
    /// Of syncs.
    pub limits: Limits,
    /// The disk cannot tell where its holes are.
    pub dense: [bool; 2],
    /// Syncs compare before they copy.
    pub csums: bool,
    /// Syncs onto a node have to be approved.
    pub guarded: bool,
    pub max_unacked: u64,
    pub timeouts: Timeouts,
    pub network_latency: Instant,
    pub disk_latency: Instant,
    pub fault_interval: Instant,
    pub operator_interval: Instant,
    /// Length of the safety phase.
    pub length: Instant,
    /// Requests that the applications make in all.
    pub requests: u32,
    /// Per thousand events: the node is killed between two actions.
    pub kill_in_step: bool,
    /// The volumes were in sync before the run.
    pub synced: bool,
    /// The front end keeps requests for the next data plane.
    pub reissue: bool,
    pub voting: Voting,
}

/// How the voters of a run are set up, and what their paths are like.
#[derive(Debug)]
pub struct Voting {
    pub lease: Lease,
    pub beat: Duration,
    pub retry: Duration,
    pub patience: Duration,
    /// Mean delay of a datagram, and of a record on its way to a disk.
    pub latency: Instant,
    pub store_latency: Instant,
    /// Per thousand datagrams: lost, doubled, seconds late.
    pub loss: u32,
    pub doubled: u32,
    pub late: u32,
}

impl Voting {
    fn draw(rng: &mut Rng) -> Voting {
        let millis = |rng: &mut Rng, low, high| Duration::from_millis(rng.range(low, high));
        let length = millis(rng, 1_000, 5_000);
        let (beat, margin) = (length / 6, length / 6);
        Voting {
            lease: Lease { length, margin },
            retry: beat.min(millis(rng, 100, 400)),
            beat,
            patience: millis(rng, 500, 2_000),
            latency: *rng
                .pick(&[50 * MICRO, MILLI, 5 * MILLI, 20 * MILLI])
                .unwrap_or(&MILLI),
            store_latency: *rng.pick(&[50 * MICRO, MILLI, 10 * MILLI]).unwrap_or(&MILLI),
            loss: *rng.pick(&[0, 10, 100, 300]).unwrap_or(&0),
            doubled: *rng.pick(&[0, 20, 200]).unwrap_or(&0),
            late: *rng.pick(&[0, 5, 50]).unwrap_or(&0),
        }
    }
}

/// Limits of a sync: mostly none, or such that the largest volume is synced in time.
fn limits(rng: &mut Rng) -> Limits {
    let mut limits = Limits::default();
    if rng.chance(300) {
        limits.cap = Some(rng.range(1, 30) << 20);
    }
    if rng.chance(300) {
        limits.floor = Some(rng.range(0, 4) << 20);
    }
    if rng.chance(150) {
        limits.plan_ahead = Duration::ZERO;
    }
    if rng.chance(150) {
        limits.fill_target = rng.range(64, 4096) << 10;
    }
    limits
}

impl Plan {
    pub fn draw(rng: &mut Rng, options: &Options, weights: &[u32]) -> Plan {
        let scenario = match options.scenario {
            Some(index) => &SCENARIOS[index],
            None => &SCENARIOS[rng.weighted(weights)],
        };
        let extents = rng.range(
            6,
            if scenario.weights.first_sync > 0 {
                10
            } else {
                25
            },
        );
        let slow = scenario.weights.first_sync > 0;
        let short = rng.chance(600);
        let millis = |rng: &mut Rng, low, high| Duration::from_millis(rng.range(low, high));
        let timeouts = if short {
            Timeouts {
                ping_interval: millis(rng, 200, 2_000),
                ping_timeout: millis(rng, 100, 500),
                timeout: millis(rng, 500, 3_000),
                ko_count: rng.range(2, 7) as u32,
                handshake: millis(rng, 1_000, 4_000),
            }
        } else {
            Timeouts::default()
        };
        Plan {
            scenario,
            volumes: 1 + usize::from(rng.chance(300)),
            sectors: extents * EXTENT / 512,
            volatile: [rng.chance(700), rng.chance(700)],
            log_slots: rng.range(3, 12) as u16,
            resync_buffers: if slow { 2 } else { rng.range(2, 9) as u32 },
            resync_chunk: if slow {
                32_768
            } else {
                32_768 << rng.range(0, 6)
            },
            limits: limits(rng),
            dense: [rng.chance(400), rng.chance(400)],
            csums: rng.chance(200),
            max_unacked: 1 << rng.range(16, 25),
            timeouts,
            network_latency: *rng
                .pick(&[50 * MICRO, 200 * MICRO, 2 * MILLI, 30 * MILLI])
                .unwrap_or(&MILLI),
            disk_latency: *rng
                .pick(&[20 * MICRO, 100 * MICRO, MILLI, 10 * MILLI])
                .unwrap_or(&MILLI),
            fault_interval: rng.range(200, 4_000) * MILLI,
            operator_interval: rng.range(100, 1_500) * MILLI,
            length: rng.range(8, 40) * SECOND,
            requests: rng.range(60, 500) as u32,
            kill_in_step: rng.chance(300),
            // A sync would copy what a silent fault has spoiled.
            synced: !slow && rng.chance(850) || scenario.weights.silent > 0,
            reissue: rng.chance(500),
            guarded: rng.chance(150),
            voting: Voting::draw(&mut Rng::new(rng.clone().next())),
        }
    }
}

/// Default weights of the scenarios for a draw.
pub fn draw_weights(voter: bool) -> Vec<u32> {
    SCENARIOS
        .iter()
        .map(|s| match s.name {
            "calm" => 1,
            "storm" => 4,
            "silent" => 1,
            "deposed" => 3 * u32::from(voter),
            "witness" => 4 * u32::from(voter),
            _ => 2,
        })
        .collect()
}

/// Index of a scenario by name.
pub fn by_name(name: &str) -> Option<usize> {
    SCENARIOS.iter().position(|s| s.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_scenario_does_something() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            assert_eq!(by_name(scenario.name), Some(index));
            assert!(!scenario.story.is_empty());
        }
        assert_eq!(by_name("nothing"), None);
        assert_eq!(draw_weights(true).len(), SCENARIOS.len());
    }
}
