//! Processes that stop without dying, and a peer that lives but does not finish writes.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::node::send_signal;
use crate::pair::{Pair, Plan, connected, link_state, role, synced, wait_status};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_stopped_secondary_delays_a_write_by_six_seconds_at_most() {
    // Default timeouts: that is what the promise is about.
    let pair = Pair::in_sync(Plan {
        net: String::new(),
        ..Plan::default()
    });
    let mut nbd = pair.nbd("alpha");
    let load = Load::start(&pair.socket("alpha"), 16 * MIB, 3);
    load.progress(50);
    let plane = pair.beta.plane("r0").expect("runs");
    send_signal(plane, "STOP");
    let begin = Instant::now();
    nbd.write(32 * MIB, &[1; 4096]).expect("writes");
    let took = begin.elapsed();
    load.progress(50);
    println!("the write took {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    wait_status(&pair.alpha, "the peer is dropped", SOON, |now| {
        link_state(now) != "Connected"
    });
    send_signal(plane, "CONT");
    connected(&pair.alpha);
    synced(&pair.alpha);
    let history = load.finish();
    assert!(
        history.slowest < Duration::from_secs(6),
        "{:?}",
        history.slowest
    );
    assert_eq!(history.reconnects, 0);
    assert_eq!(pair.beta.plane("r0"), Some(plane), "it was never restarted");
    history.verify(&mut nbd);
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn a_stopped_primary_goes_on_where_it_was() {
    let pair = Pair::in_sync(Plan::default());
    for pause in [Duration::from_millis(300), Duration::from_secs(8)] {
        let load = Load::start(&pair.socket("alpha"), 16 * MIB, 4);
        load.progress(50);
        let plane = pair.alpha.plane("r0").expect("runs");
        send_signal(plane, "STOP");
        std::thread::sleep(pause);
        // Its agent still answers, in bounded time, and the peer does not take the role.
        let begin = Instant::now();
        pair.alpha.run(&["status", "r0"]).ok();
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(role(&pair.beta), "Secondary");
        send_signal(plane, "CONT");
        load.progress(50);
        let history = load.finish();
        assert_eq!(history.reconnects, 0);
        assert_eq!(
            pair.alpha.plane("r0"),
            Some(plane),
            "it was never restarted"
        );
        connected(&pair.alpha);
        synced(&pair.alpha);
        history.verify(&mut pair.nbd("alpha"));
        pair.assert_identical();
    }
}

#[test]
fn a_stopped_agent_stops_nothing() {
    let pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 16 * MIB, 5);
    let agent = pair.alpha.agent().expect("runs");
    send_signal(agent, "STOP");
    load.progress(300);
    send_signal(agent, "CONT");
    load.progress(50);
    assert_eq!(role(&pair.alpha), "Primary");
    load.finish().verify(&mut pair.nbd("alpha"));
}

#[test]
fn a_peer_whose_disk_hangs_is_dropped_after_timeout_times_ko_count() {
    let frozen = crate::disks::FrozenDisk::new(64 << 20);
    let pair = Pair::in_sync(Plan {
        // Pings may take long, so that a busy machine does not end the connection before.
        net: "timeout 10; ko-count 3; ping-timeout 50; connect-int 2;".to_owned(),
        files: [("beta.img", frozen.image())].into(),
        ..Plan::default()
    });
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &[1; 4096]).expect("writes");
    frozen.freeze();
    let begin = Instant::now();
    nbd.write(MIB, &[2; 4096]).expect("writes");
    let took = begin.elapsed();
    println!("the write took {took:?}");
    // timeout 1 s x ko-count 3: not earlier, since pings are answered, and not much later.
    assert!(took > Duration::from_millis(2500), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    wait_status(&pair.alpha, "the reason is shown", SOON, |now| {
        let reason = now["connections"][0]["reason"].as_str().unwrap_or("");
        link_state(now) != "Connected" && !reason.is_empty()
    });
    frozen.thaw();
    connected(&pair.alpha);
    synced(&pair.alpha);
    assert_eq!(nbd.read(MIB, 4096).expect("reads"), [2; 4096]);
    pair.assert_identical();
}
