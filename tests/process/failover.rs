//! Takeover by itself: a witness votes, and whoever may reign does.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::node::{send_signal, wait_until};
use crate::pair::{Pair, Plan, connected, noise, role, status, synced, wait_status};

const LIMIT: Duration = Duration::from_secs(30);

/// A running witness; ends when dropped.
struct Witness(Child);

impl Witness {
    fn start(pair: &Pair) -> Witness {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(pair.dir.path().join("witness.log"))
            .expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args([
                "witness",
                "--listen",
                &pair.witness_address(),
                "--state-dir",
            ])
            .arg(pair.dir.path().join("gamma"))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("starts");
        Witness(child)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plan() -> Plan {
    Plan {
        cluster: true,
        ..Plan::default()
    }
}

/// Alpha reigns by vote and both copies are up to date.
fn reigning() -> (Pair, Witness) {
    let pair = Pair::files(plan());
    let witness = Witness::start(&pair);
    let pair = pair.start();
    connected(&pair.alpha);
    // The first sync has a source that somebody names.
    wait_until("both nodes are known to the witness", || {
        pair.alpha.run(&["primary", "r0", "--force"]).code == 0
    });
    synced(&pair.alpha);
    (pair, witness)
}

#[test]
fn the_peer_takes_over_with_every_write_and_the_old_primary_returns_as_secondary() {
    let (mut pair, _witness) = reigning();
    let data = noise(1 << 20, 3);
    pair.nbd("alpha").write(0, &data).expect("writes");
    let crashed = Instant::now();
    pair.alpha.crash();
    wait_status(&pair.beta, "beta reigns", LIMIT, |s| s["role"] == "Primary");
    println!("takeover after {:?}", crashed.elapsed());
    assert!(crashed.elapsed() < Duration::from_secs(15));
    let mut nbd = pair.nbd("beta");
    assert_eq!(nbd.read(0, data.len()).expect("reads"), data);
    nbd.write(4096, &data)
        .expect("writes alone, after the voters know");
    pair.alpha.start_agent();
    synced(&pair.beta);
    assert_eq!(role(&pair.alpha), "Secondary");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(role(&pair.beta), "Primary", "no failback");
    drop(nbd);
    pair.assert_identical();
}

#[test]
fn without_a_majority_nothing_completes_and_nobody_takes_over() {
    let (pair, witness) = reigning();
    drop(witness);
    let agent = pair.beta.agent().expect("runs");
    let plane = pair.beta.plane("r0").expect("runs");
    for pid in [agent, plane] {
        send_signal(pid, "STOP");
    }
    // Alone: neither the lease nor a new generation is to be had.
    let mut nbd = pair.nbd("alpha");
    let write = std::thread::spawn(move || {
        let begun = Instant::now();
        nbd.write(0, &[7; 4096]).expect("in the end");
        begun.elapsed()
    });
    std::thread::sleep(Duration::from_secs(8));
    assert!(!write.is_finished(), "a write completed without a majority");
    for pid in [agent, plane] {
        send_signal(pid, "CONT");
    }
    assert!(write.join().expect("no panic") > Duration::from_secs(7));
    assert_eq!(status(&pair.alpha)["role"], "Primary");
    assert_eq!(role(&pair.beta), "Secondary");
}

#[test]
fn a_paused_primary_wakes_into_the_reign_of_the_other() {
    let (pair, _witness) = reigning();
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &[1; 4096]).expect("writes");
    let pids = pair.alpha.processes();
    for pid in &pids {
        send_signal(*pid, "STOP");
    }
    wait_status(&pair.beta, "beta reigns", LIMIT, |s| s["role"] == "Primary");
    let mut other = pair.nbd("beta");
    other.write(0, &[2; 4096]).expect("writes");
    for pid in &pids {
        send_signal(*pid, "CONT");
    }
    let late = nbd.write(0, &[3; 4096]);
    assert!(late.is_err(), "a zombie's write was acknowledged");
    wait_status(&pair.alpha, "alpha has stepped down", LIMIT, |s| {
        s["role"] == "Secondary"
    });
    synced(&pair.beta);
    assert_eq!(other.read(0, 4096).expect("reads"), vec![2; 4096]);
}

#[test]
fn a_witness_that_restarts_disturbs_nobody() {
    let (pair, witness) = reigning();
    let term = status(&pair.alpha)["term"].clone();
    drop(witness);
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &[1; 4096]).expect("the peer's vote is enough");
    let _witness = Witness::start(&pair);
    for _ in 0..30 {
        nbd.write(0, &[2; 4096]).expect("writes");
        std::thread::sleep(Duration::from_millis(100));
    }
    let now = status(&pair.alpha);
    assert_eq!((&now["role"], &now["term"]), (&"Primary".into(), &term));
}

#[test]
fn an_agent_that_restarts_goes_on_with_the_reign_of_its_data_plane() {
    let (mut pair, _witness) = reigning();
    let term = status(&pair.alpha)["term"].clone();
    let mut nbd = pair.nbd("alpha");
    for _ in 0..3 {
        pair.alpha.end_agent("KILL");
        pair.alpha.start_agent();
        nbd.write(0, &[1; 4096]).expect("writes");
    }
    // Longer than every lease.
    std::thread::sleep(Duration::from_secs(3));
    nbd.write(0, &[2; 4096]).expect("writes");
    let now = status(&pair.alpha);
    assert_eq!((&now["role"], &now["term"]), (&"Primary".into(), &term));
    assert_eq!(role(&pair.beta), "Secondary");
}
