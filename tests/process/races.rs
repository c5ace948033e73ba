//! Two administrators at the same moment.

use std::process::{Command, Output, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::node::{Node, Ran};
use crate::pair::{Pair, Plan, connected, role, runs};

/// Starts `command` when both sides are ready; when that was, and what came of it.
fn start_together(barrier: &Barrier, mut command: Command) -> (Instant, Ran) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    barrier.wait();
    let at = Instant::now();
    let child = command.spawn().expect("starts");
    let output: Output = child.wait_with_output().expect("ends");
    (at, output.into())
}

/// `primary` on both nodes; how far apart they were started, and what each said.
fn promote_both(alpha: &Node, beta: &Node) -> (Duration, [Ran; 2]) {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| start_together(&barrier, beta.command(&["primary", "r0"])));
        let (at, mine) = start_together(&barrier, alpha.command(&["primary", "r0"]));
        let (other_at, theirs) = other.join().expect("starts");
        let apart = at.max(other_at) - at.min(other_at);
        (apart, [mine, theirs])
    })
}

#[test]
fn of_two_promotions_at_once_exactly_one_succeeds() {
    let pair = Pair::in_sync(Plan {
        size: 16 << 20,
        // The default timeouts: a busy machine must not part the two.
        net: String::new(),
        ..Plan::default()
    });
    pair.alpha.run(&["secondary", "r0"]).ok();
    let (wanted, mut counted, mut tried) = (runs(50), 0, 0);
    let (mut won, mut failures) = ([0, 0], 0);
    while counted < wanted {
        tried += 1;
        assert!(
            tried < 20 * wanted + 100,
            "the machine never starts two within 1 ms"
        );
        connected(&pair.alpha);
        let (apart, ran) = promote_both(&pair.alpha, &pair.beta);
        let both = [&pair.alpha, &pair.beta];
        let codes = ran.each_ref().map(|ran| ran.code);
        let roles = both.map(role);
        let winner = match (codes, roles.each_ref().map(String::as_str)) {
            ([0, 3], ["Primary", "Secondary"]) => Some(0),
            ([3, 0], ["Secondary", "Primary"]) => Some(1),
            _ => None,
        };
        if apart < Duration::from_millis(1) || winner.is_none() {
            counted += 1;
        }
        match winner {
            Some(node) => won[node] += 1,
            None => {
                failures += 1;
                println!("run {tried}, {apart:?} apart: {roles:?}, {ran:#?}");
            }
        }
        for node in both {
            node.run(&["secondary", "r0"]).ok();
        }
    }
    println!("promotions: tried {tried}, won by alpha and beta {won:?}");
    println!("promotions: runs {counted} failures {failures}");
    assert_eq!(failures, 0, "of {counted}");
}
