//! The agent comes and goes; the data planes and their I/O do not notice.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::node::{Node, PATIENCE, send_signal, wait_until};
use crate::pair::{
    Pair, Plan, amount, connected, disk_state, link_state, role, status, synced, wait_replaced,
    wait_status,
};

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
        // A second on a quiet machine would be a timer that nobody needs to wait for.
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
fn after_an_orderly_end_the_last_to_leave_starts_alone() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[9; 4096]).expect("writes");
    assert_eq!(pair.alpha.end_agent("TERM").code(), Some(0));
    assert_eq!(pair.beta.end_agent("TERM").code(), Some(0));
    pair.alpha.start_agent();
    wait_status(&pair.alpha, "outdated", PATIENCE, |now| {
        disk_state(now) == "Outdated"
    });
    pair.alpha.run(&["primary", "r0"]).failed(3, "Outdated");
    pair.alpha.end_agent("TERM");
    pair.beta.start_agent();
    wait_status(&pair.beta, "attached", PATIENCE, |now| {
        disk_state(now) == "Consistent" || disk_state(now) == "UpToDate"
    });
    pair.beta.run(&["primary", "r0"]).ok();
    pair.nbd("beta").write(4096, &[8; 4096]).expect("writes");
    pair.alpha.start_agent();
    connected(&pair.beta);
    synced(&pair.beta);
    assert!(amount(&pair.beta, "sent") < 8 * 1024);
    pair.assert_identical();
}

#[test]
fn nodes_that_leave_at_the_same_time_are_equal_when_they_are_back() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[9; 4096]).expect("writes");
    pair.alpha.run(&["secondary", "r0"]).ok();
    std::thread::scope(|scope| {
        for node in [&mut pair.alpha, &mut pair.beta] {
            scope.spawn(|| assert_eq!(node.end_agent("TERM").code(), Some(0)));
        }
    });
    pair.alpha.start_agent();
    pair.beta.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    assert_eq!(amount(&pair.alpha, "sent") + amount(&pair.beta, "sent"), 0);
    pair.beta.run(&["primary", "r0"]).ok();
    pair.assert_identical();
}

#[test]
fn sigterm_under_load_keeps_what_is_in_use() {
    let mut pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 32 * MIB, 8);
    load.progress(100);
    let ended = pair.alpha.end_agent("TERM");
    assert_eq!(ended.code(), Some(3), "{}", pair.alpha.log());
    load.progress(100);
    // The use is ended by force, and under load.
    pair.alpha.start_agent();
    pair.alpha.run(&["secondary", "--force", "r0"]).ok();
    let ended = pair.alpha.end_agent("TERM");
    let history = load.finish();
    assert_eq!(ended.code(), Some(0), "{}", pair.alpha.log());
    assert!(pair.alpha.processes().is_empty());
    // The peer has every write, and both have it on record: no force is needed.
    pair.beta.run(&["primary", "r0"]).ok();
    history.verify(&mut pair.nbd("beta"));
}

/// What `lockstep events` of a node says while it runs.
struct Events {
    follower: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Events {
    /// Begins after the first picture.
    fn of(node: &Node) -> Events {
        let mut follower = node
            .command(&["events"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let output = follower.stdout.take().expect("piped");
        let mut lines = BufReader::new(output).lines();
        while lines.next().expect("a picture").expect("UTF-8") != "exists -" {}
        Events { follower, lines }
    }

    /// Values of `key` in changes of `object`, up to the first line that contains `last`.
    fn values(&mut self, object: &str, key: &str, last: &str) -> Vec<String> {
        let mut values = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.expect("UTF-8");
            let mut words = line.split(' ');
            if words.nth(1) == Some(object) {
                let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
                values.extend(value.map(str::to_owned));
            }
            if line.contains(last) {
                return values;
            }
        }
        panic!("no {last} after {values:?}");
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

#[test]
fn events_tell_every_step_in_order() {
    let pair = Pair::in_sync(Plan::default());
    // A data plane is heard from its first step on.
    let mut events = Events::of(&pair.beta);
    pair.beta.run(&["down", "r0"]).ok();
    assert_eq!(
        events.values("device", "disk", " disk:Diskless"),
        ["Outdated", "Diskless"]
    );
    pair.beta.run(&["up", "r0"]).ok();
    let steps = events.values("device", "disk", " disk:UpToDate");
    assert!(
        steps.len() > 1 && steps.last().is_some_and(|last| last == "UpToDate"),
        "{steps:?}"
    );
    let first = ["Consistent", "Outdated", "Inconsistent"];
    assert!(first.contains(&steps[0].as_str()), "{steps:?}");
    synced(&pair.alpha);
    let mut events = Events::of(&pair.alpha);
    for verb in ["secondary", "primary", "secondary", "primary"] {
        pair.alpha.run(&[verb, "r0"]).ok();
    }
    // A disk fails between two pictures: it is never seen so.
    let disk = File::options()
        .write(true)
        .open(pair.disk("alpha"))
        .expect("opens");
    disk.set_len(8 << 20).expect("truncates");
    pair.nbd("alpha").read(16 << 20, 4096).expect("goes on");
    let mut steps = Vec::new();
    while steps.len() < 4 {
        steps.extend(events.values("resource", "role", " role:"));
    }
    assert_eq!(steps, ["Secondary", "Primary", "Secondary", "Primary"]);
    let steps = events.values("device", "disk", " disk:Diskless");
    assert_eq!(steps, ["Failed", "Diskless"]);
}

#[test]
fn options_are_taken_over_while_the_resource_runs() {
    let pair = Pair::in_sync(Plan::default());
    let planes = [pair.alpha.plane("r0"), pair.beta.plane("r0")];
    let mut text = pair.configuration();
    let mut with = |from: &str, to: &str| {
        assert!(text.contains(from));
        text = text.replace(from, to);
        std::fs::write(&pair.alpha.config, &text).expect("config");
    };
    with("a secret of the test", "another secret");
    let said = pair.alpha.run(&["adjust", "r0", "--dry-run"]).ok();
    assert!(said.contains("shared-secret"), "{said}");
    pair.alpha.run(&["adjust", "r0"]).ok();
    // It holds from the next connection on, and then for both or for none.
    assert_eq!(link_state(&status(&pair.alpha)), "Connected");
    pair.alpha.run(&["disconnect", "r0"]).ok();
    pair.alpha.run(&["connect", "r0"]).ok();
    wait_status(&pair.alpha, "the secrets differ", PATIENCE, |now| {
        let reason = now["connections"][0]["reason"].as_str().unwrap_or("");
        reason.contains("secret")
    });
    pair.beta.run(&["adjust", "r0"]).ok();
    connected(&pair.alpha);
    pair.alpha.run(&["wait-sync", "r0", "--timeout", "60"]).ok();
    with(
        "timeout 9; connect-int 1;",
        "timeout 12; connect-int 2; ko-count 3;",
    );
    pair.alpha.run(&["adjust", "all"]).ok();
    // What cannot change is named, and nothing of it is done.
    with("timeout 12;", "timeout 12; protocol A;");
    pair.alpha.run(&["adjust", "r0"]).failed(3, "protocol");
    assert_eq!([pair.alpha.plane("r0"), pair.beta.plane("r0")], planes);
    assert_eq!(role(&pair.alpha), "Primary");
}
