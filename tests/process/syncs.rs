//! The order of syncs on a node: `resync-after` and `max-parallel-resyncs`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, wait_until};
use crate::pair::{Pair, Plan, connected, noise, status, synced, wait_status};

const SOON: Duration = Duration::from_secs(60);

fn after(rules: &[(u16, &str)]) -> Plan {
    let words = |rule: &str| format!("disk {{ resync-after {rule}; }}");
    Plan {
        volumes: 3,
        more: "disk { resync-rate 1M; }".to_owned(),
        volume_words: { rules.iter() }
            .map(|(volume, rule)| (*volume, words(rule)))
            .collect(),
        ..Plan::default()
    }
}

/// A pair whose three volumes have to be synced to beta, slowly.
fn behind(plan: Plan) -> Pair {
    let pair = Pair::in_sync(plan);
    pair.beta.run(&["disconnect", "r0"]).ok();
    for volume in 0..3 {
        let mut nbd = pair.nbd_of("alpha", volume);
        nbd.write(0, &noise(12 << 20, 7)).expect("writes");
        nbd.flush().expect("flushes");
    }
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.beta);
    pair
}

fn hurry(pair: &Pair) {
    pair.alpha
        .run(&["disk-options", "r0", "--resync-rate=1G"])
        .ok();
}

fn peer(now: &Value, volume: usize) -> &Value {
    &now["connections"][0]["peer_devices"][volume]
}

fn replication(now: &Value) -> Vec<&str> {
    (0..3)
        .map(|volume| {
            peer(now, volume)["replication-state"]
                .as_str()
                .unwrap_or("")
        })
        .collect()
}

fn becomes(node: &Node, states: [&str; 3]) {
    wait_status(node, &states.join(" "), SOON, |now| {
        replication(now) == states
    });
}

#[test]
fn syncs_go_one_after_the_other_and_what_waits_says_for_what() {
    let mut pair = behind(after(&[(1, "r0/2"), (0, "r0/1")]));
    let order = ["PausedSyncS", "PausedSyncS", "SyncSource"];
    becomes(&pair.alpha, order);
    becomes(&pair.beta, ["PausedSyncT", "PausedSyncT", "SyncTarget"]);
    let now = status(&pair.alpha);
    for volume in [0, 1] {
        let peer = peer(&now, volume);
        let causes = peer["resync-suspended"].as_str().unwrap_or_default();
        assert!(causes.contains("dependency"), "{peer:#}");
        let reason = peer["reason"].as_str().unwrap_or_default();
        assert!(
            reason.contains("waits until that of r0/2 has ended"),
            "{reason}"
        );
    }
    // An operator holds back the one that all others wait for: it is still before them.
    pair.alpha.run(&["pause-sync", "r0/2"]).ok();
    becomes(&pair.alpha, ["PausedSyncS"; 3]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(replication(&status(&pair.alpha)), ["PausedSyncS"; 3]);
    pair.alpha.run(&["resume-sync", "r0/2"]).ok();
    becomes(&pair.alpha, order);
    // Another order, at once.
    pair.reconfigure(|plan| {
        plan.volume_words = after(&[(2, "r0/0")]).volume_words;
    });
    for node in [&pair.alpha, &pair.beta] {
        let report = node.run(&["adjust", "r0"]).ok();
        assert!(report.contains("resync-after"), "{report}");
    }
    becomes(&pair.alpha, ["SyncSource", "SyncSource", "PausedSyncS"]);
    hurry(&pair);
    synced(&pair.alpha);
    let now = status(&pair.alpha);
    for volume in 0..3 {
        assert_eq!(peer(&now, volume)["resync-suspended"], "no", "{now:#}");
    }
    let log = pair.alpha.log();
    let at = |volume: u16| {
        log.rfind(&format!("volume {volume}: in sync"))
            .expect("ended")
    };
    assert!(at(2) > at(0));
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.assert_identical();
}

#[test]
fn so_many_run_at_once_and_the_next_goes_on_when_one_is_cut_off() {
    let mut pair = behind(Plan {
        top: "global { max-parallel-resyncs 2; }\n".to_owned(),
        ..after(&[])
    });
    becomes(&pair.alpha, ["SyncSource", "SyncSource", "PausedSyncS"]);
    let now = status(&pair.beta);
    let reason = peer(&now, 2)["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("max-parallel-resyncs 2"), "{reason}");
    // What an operator holds back takes no place.
    pair.beta.run(&["pause-sync", "r0/1"]).ok();
    becomes(&pair.alpha, ["SyncSource", "PausedSyncS", "SyncSource"]);
    pair.beta.run(&["resume-sync", "r0/1"]).ok();
    becomes(&pair.beta, ["SyncTarget", "SyncTarget", "PausedSyncT"]);
    // However it ends.
    pair.beta.run(&["detach", "r0/0"]).ok();
    let begin = Instant::now();
    wait_status(&pair.alpha, "goes on", SOON, |now| {
        replication(now)[1..] == ["SyncSource"; 2]
    });
    println!("went on after {:?}", begin.elapsed());
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    pair.reconfigure(|plan| plan.top = "global { max-parallel-resyncs 1; }\n".to_owned());
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["adjust", "r0"]).ok();
    }
    wait_status(&pair.alpha, "one at a time", SOON, |now| {
        replication(now)[1..] == ["SyncSource", "PausedSyncS"]
    });
}

#[test]
fn without_an_agent_nothing_waits_for_ever() {
    let mut pair = behind(after(&[(1, "r0/0"), (2, "r0/0")]));
    let order = ["SyncSource", "PausedSyncS", "PausedSyncS"];
    becomes(&pair.alpha, order);
    becomes(&pair.beta, ["SyncTarget", "PausedSyncT", "PausedSyncT"]);
    pair.alpha.end_agent("KILL");
    pair.beta.end_agent("KILL");
    let freed = |node: &Node| node.log().contains("no agent holds the sync back any more");
    wait_until("both let go", || freed(&pair.alpha) && freed(&pair.beta));
    // The next ones order it anew.
    pair.alpha.start_agent();
    pair.beta.start_agent();
    becomes(&pair.alpha, order);
    // A data plane that dies forgets the pause, and its successor is told.
    let plane = pair.beta.plane("r0").expect("runs");
    crate::node::send_signal(plane, "KILL");
    crate::pair::wait_replaced(&pair.beta, plane);
    connected(&pair.beta);
    becomes(&pair.alpha, order);
    hurry(&pair);
    synced(&pair.alpha);
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.assert_identical();
}
