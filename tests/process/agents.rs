//! The agent comes and goes; the data planes and their I/O do not notice.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::node::{send_signal, wait_until};
use crate::pair::{Pair, Plan, connected, role, status, synced, wait_replaced};

const MIB: u64 = 1 << 20;

#[test]
fn a_killed_agent_is_replaced_while_writes_go_on() {
    let mut pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 32 * MIB, 6);
    let planes = [pair.alpha.plane("r0"), pair.beta.plane("r0")];
    for _ in 0..3 {
        load.progress(100);
        pair.alpha.end_agent("KILL");
        pair.beta.end_agent("KILL");
        load.progress(100);
        pair.alpha.run(&["status"]).failed(5, "no agent answers");
        pair.alpha.start_agent();
        pair.beta.start_agent();
        assert_eq!(planes, [pair.alpha.plane("r0"), pair.beta.plane("r0")]);
        wait_until("taken over", || role(&pair.alpha) == "Primary");
    }
    let history = load.finish();
    assert_eq!(history.reconnects, 0, "the front end never went away");
    assert!(
        history.slowest < Duration::from_secs(5),
        "{:?}",
        history.slowest
    );
    // The next agent gives orders and supervises.
    pair.alpha.run(&["disconnect", "r0"]).ok();
    pair.alpha.run(&["connect", "r0"]).ok();
    connected(&pair.alpha);
    synced(&pair.alpha);
    let plane = pair.alpha.plane("r0").expect("runs");
    send_signal(plane, "KILL");
    wait_replaced(&pair.alpha, plane);
    wait_until("primary again", || role(&pair.alpha) == "Primary");
    synced(&pair.alpha);
    history.verify(&mut pair.nbd("alpha"));
    pair.assert_identical();
}

#[test]
fn an_agent_that_leaves_on_purpose_leaves_the_data_planes() {
    let mut pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 32 * MIB, 7);
    load.progress(50);
    let plane = pair.alpha.plane("r0");
    assert_eq!(pair.alpha.end_agent("USR2").code(), Some(0));
    load.progress(50);
    pair.alpha.start_agent();
    assert_eq!(pair.alpha.plane("r0"), plane);
    wait_until("taken over", || role(&pair.alpha) == "Primary");
    assert_eq!(load.finish().reconnects, 0);
}

#[test]
fn sigterm_takes_everything_down_in_order() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[9; 65536]).expect("writes");
    for name in ["alpha", "beta"] {
        let node = if name == "alpha" {
            &mut pair.alpha
        } else {
            &mut pair.beta
        };
        let begin = Instant::now();
        assert_eq!(node.end_agent("TERM").code(), Some(0), "{}", node.log());
        println!("{name}: down in {:?}", begin.elapsed());
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert!(node.processes().is_empty(), "{:?}", node.processes());
        assert_eq!(node.plane("r0"), None);
        assert!(!node.run_dir.join("control.sock").exists());
        assert!(!node.run_dir.join("r0.serve.sock").exists());
    }
    // After an orderly end both know that they are equal: nothing is copied at the return.
    pair.beta.start_agent();
    pair.alpha.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    for node in [&pair.alpha, &pair.beta] {
        let state = status(node);
        assert_eq!(state["role"], "Secondary");
        assert_eq!(
            state["connections"][0]["peer_devices"][0]["sent"], 0,
            "{state:#}"
        );
    }
    pair.beta.run(&["primary", "r0"]).ok();
    assert_eq!(pair.nbd("beta").read(0, 512).expect("reads"), [9; 512]);
}

#[test]
fn sigterm_ends_an_agent_whose_peer_is_stopped() {
    let mut pair = Pair::in_sync(Plan::default());
    let plane = pair.beta.plane("r0").expect("runs");
    send_signal(plane, "STOP");
    let begin = Instant::now();
    let ended = pair.alpha.end_agent("TERM");
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(ended.code(), Some(0));
    assert!(pair.alpha.processes().is_empty());
    send_signal(plane, "CONT");
}

#[test]
fn sigterm_under_load_ends_everything() {
    let mut pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 32 * MIB, 8);
    load.progress(100);
    let ended = pair.alpha.end_agent("TERM");
    let history = load.finish();
    assert_eq!(ended.code(), Some(0), "{}", pair.alpha.log());
    assert!(pair.alpha.processes().is_empty());
    // Nothing tells the peer that it is the only one to go on, until the other one is back.
    pair.beta
        .run(&["primary", "r0"])
        .failed(3, "alpha is not reachable");
    pair.alpha.start_agent();
    connected(&pair.beta);
    pair.beta.run(&["primary", "r0"]).ok();
    history.verify(&mut pair.nbd("beta"));
}
