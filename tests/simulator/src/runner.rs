//! Runs many seeds on all processors and prints their results in the order of the seeds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use crate::coverage::Coverage;
use crate::oracle::{Check, Violation};
use crate::sabotage;
use crate::scenario::Options;
use crate::world::World;

/// What to run.
pub struct Job {
    pub seeds: Range<u64>,
    pub options: Options,
    /// How often each scenario is drawn.
    pub weights: Vec<u32>,
}

struct Report {
    seed: u64,
    violations: Vec<Violation>,
    coverage: Coverage,
    trace: String,
}

fn run_seed(job: &Job, seed: u64) -> Report {
    let mut world = World::new(seed, &job.options, &job.weights);
    let violations = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(violations) => violations,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
                .unwrap_or_else(|| "panic".to_string());
            vec![Violation::new(
                13,
                Check::Contract,
                format!("panic: {text}"),
            )]
        }
    };
    Report {
        seed,
        violations: relevant(job, violations),
        coverage: std::mem::take(&mut world.coverage),
        trace: std::mem::take(&mut world.trace),
    }
}

/// With a planted defect only the check that is meant to find it counts, and only when it names
/// the rule that the defect breaks.
fn relevant(job: &Job, mut violations: Vec<Violation>) -> Vec<Violation> {
    if let Some(defect) = job.options.sabotage {
        violations.retain(|v| sabotage::is_meant(defect, v));
    }
    violations
}

/// Runs the job, prints, and returns the number of violations.
pub fn run(job: &Job) -> u64 {
    println!("first seed: {}", job.seeds.start);
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(job.seeds.start);
    let stop = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut coverage = Coverage::default();
    let (mut seeds, mut violations) = (0, 0);
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel::<Report>(64);
        for _ in 0..threads {
            let (send, next, stop) = (send.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= job.seeds.end || send.send(run_seed(job, seed)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let mut early: BTreeMap<u64, Report> = BTreeMap::new();
        let mut expected = job.seeds.start;
        for report in receive {
            early.insert(report.seed, report);
            while let Some(report) = early.remove(&expected) {
                expected += 1;
                if stop.load(Ordering::Relaxed) {
                    continue;
                }
                seeds += 1;
                print!("{}", report.trace);
                coverage.merge(&report.coverage);
                for violation in &report.violations {
                    println!("seed {}: {violation}", report.seed);
                }
                violations += report.violations.len() as u64;
                // A planted defect is found once.
                if job.options.sabotage.is_some() && violations > 0 {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    if job.seeds.end - job.seeds.start > 1 && job.options.sabotage.is_none() {
        print!("{}", coverage.print());
    }
    println!("seeds: {seeds}, violations: {violations}");
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep::engine::Protocol;

    #[test]
    fn a_seed_gives_the_same_bytes_every_time() {
        for (seed, protocol) in [(3, Protocol::C), (4, Protocol::A)] {
            let job = Job {
                seeds: seed..seed + 1,
                options: Options {
                    voter: seed == 4,
                    protocol,
                    scenario: None,
                    sabotage: None,
                    trace: true,
                },
                weights: crate::scenario::draw_weights(seed == 4),
            };
            let (first, second) = (run_seed(&job, seed), run_seed(&job, seed));
            assert!(first.trace.len() > 10_000);
            assert!(first.trace == second.trace, "seed {seed}");
        }
    }
}
