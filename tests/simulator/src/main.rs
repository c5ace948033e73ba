//! Whole Lockstep clusters in one process, in virtual time, with seeded faults.
//!
//! A run has a safety phase, in which links, disks, processes and clocks misbehave within what
//! the protocol promises to survive, and a liveness phase, in which the faults stop and the
//! cluster has to recover. The engines, the metadata encoders and the recovery are the real ones,
//! and so are the seats and the voter of [`agent`] and [`witness`]; everything else is a model:
//! [`disk`], [`network`], [`datagrams`], [`node`], [`client`], [`operator`]. The [`oracle`] judges. A run depends on the commit and the seed, on nothing else.

mod agent;
mod atlas;
mod checks;
mod client;
mod coverage;
mod datagrams;
mod disk;
mod faults;
mod frontend;
mod meta;
mod network;
mod node;
mod operator;
mod oracle;
mod rng;
mod runner;
mod sabotage;
mod scenario;
mod schedule;
mod storage;
mod trace;
mod verify;
mod votes;
mod wire;
mod witness;
mod world;

use std::ops::Range;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use lockstep::engine::Protocol;

use crate::runner::Job;
use crate::scenario::{Options, SCENARIOS};

/// Seeds of a run without `--seeds`.
const DEFAULT_SEEDS: u64 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolName {
    #[value(name = "A", alias = "a")]
    A,
    #[value(name = "B", alias = "b")]
    B,
    #[value(name = "C", alias = "c")]
    C,
}

/// Runs simulated clusters and prints every rule that they break.
#[derive(Debug, Parser)]
#[command(name = "lockstep-sim", version)]
struct Arguments {
    /// Seeds A to B, B excluded; fresh ones when absent.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// So many fresh seeds.
    #[arg(long, value_name = "N", conflicts_with = "seeds", default_value_t = DEFAULT_SEEDS, value_parser = clap::value_parser!(u64).range(1..))]
    seeds_count: u64,
    /// One seed.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "seeds_count"])]
    seed: Option<u64>,
    /// Prints a line per event and action (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// 2 data nodes, or 3: two data nodes and a witness; 2, or what the planted defect needs.
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3))]
    nodes: Option<u8>,
    /// Replication protocol; C, or what the planted defect needs.
    #[arg(long, value_name = "A|B|C")]
    protocol: Option<ProtocolName>,
    /// One scenario instead of a mix; `list` prints them.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Switches a planted defect on; `list` prints them.
    #[arg(long, value_name = "NAME|list")]
    sabotage: Option<String>,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (a, b) = text.split_once("..").ok_or("expected A..B")?;
    let number = |s: &str| s.parse::<u64>().map_err(|e| format!("{s:?}: {e}"));
    let (a, b) = (number(a)?, number(b)?);
    if a < b {
        Ok(a..b)
    } else {
        Err(format!("{a}..{b} holds no seed"))
    }
}

/// Seeds that nobody has used before: from the clock, spaced so that runs do not overlap.
fn fresh_seeds(count: u64) -> Range<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = now.map_or(0, |d| d.as_micros() as u64);
    first..first + count
}

fn fail(text: &str) -> ExitCode {
    eprintln!("lockstep-sim: {text}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut plant = None;
    match arguments.sabotage.as_deref() {
        Some("list") => {
            print!("{}", sabotage::list());
            return ExitCode::SUCCESS;
        }
        Some(name) => match sabotage::by_name(name) {
            Some(defect) => plant = Some(sabotage::plant(defect)),
            None => return fail(&format!("no planted defect {name:?}; try --sabotage list")),
        },
        None => {}
    }
    let mut scenario = None;
    match arguments.scenario.as_deref() {
        Some("list") => {
            SCENARIOS
                .iter()
                .for_each(|s| println!("{:<9} {}", s.name, s.story));
            return ExitCode::SUCCESS;
        }
        Some(name) => match scenario::by_name(name) {
            Some(index) => scenario = Some(index),
            None => return fail(&format!("no scenario {name:?}; try --scenario list")),
        },
        None => {}
    }
    let protocol = match arguments.protocol {
        Some(ProtocolName::A) => Protocol::A,
        Some(ProtocolName::B) => Protocol::B,
        Some(ProtocolName::C) => Protocol::C,
        None => plant.as_ref().map_or(Protocol::C, |p| p.protocol),
    };
    let seeds = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(range)) => range,
        (None, None) => fresh_seeds(arguments.seeds_count),
    };
    let voter = match arguments.nodes {
        Some(nodes) => nodes == 3,
        None => plant.as_ref().is_some_and(|p| p.voter),
    };
    let options = Options {
        voter,
        protocol,
        scenario,
        sabotage: plant.as_ref().map(|p| p.defect),
        trace: arguments.trace,
    };
    let weights = match &plant {
        Some(plant) => SCENARIOS
            .iter()
            .map(|s| u32::from(plant.scenarios.contains(&s.name)))
            .collect(),
        None => scenario::draw_weights(voter),
    };
    if runner::run(&Job {
        seeds,
        options,
        weights,
    }) == 0
    {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        assert_eq!(parse_range("3..7"), Ok(3..7));
        for bad in ["3", "7..3", "3..3", "a..b", "-1..4"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
