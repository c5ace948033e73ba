//! Online verify and repair, and syncs that are held back or cut off, seen from outside: the disks
//! are changed behind the data planes' backs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::Load;
use crate::node::wait_until;
use crate::pair::{Pair, Plan, amount, connected, noise, status, synced, wait_status};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// Writes to a disk past its data plane, and makes sure that a direct read sees it.
fn plant(disk: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(disk).expect("opens");
    file.write_all_at(bytes, offset).expect("writes");
    file.sync_all().expect("syncs");
}

fn peer(now: &Value) -> &Value {
    &now["connections"][0]["peer_devices"][0]
}

/// Usable bytes of the volume.
fn size(pair: &Pair) -> u64 {
    status(&pair.alpha)["devices"][0]["size"]
        .as_u64()
        .expect("a size")
        * 1024
}

#[test]
fn what_differs_is_found_under_load_and_repaired_in_use() {
    let pair = Pair::in_sync(Plan::default());
    let end = size(&pair);
    // The load keeps to the first half; what is planted lies in the second, and at its edges.
    let load = Load::start(&pair.socket("alpha"), 16 * MIB, 1);
    let [mine, theirs] = ["alpha", "beta"].map(|name| pair.disk(name));
    plant(&theirs, 40 * MIB + 77, &[1]);
    plant(&theirs, 48 * MIB, &vec![2; 4 << 20]);
    plant(&mine, 52 * MIB, &[3; 4096]);
    plant(&mine, end - 1, &[4]);
    load.progress(500);
    let ran = pair
        .beta
        .run(&["verify", "r0", "--wait", "--timeout", "120"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.out.contains("r0/0: 4108 KiB differ"), "{}", ran.out);
    let now = status(&pair.beta);
    let verify = &peer(&now)["verify"];
    let range = |start: u64, length: u64| json!({ "start": start / 1024, "length": length / 1024 });
    let found = [
        range(40 * MIB, 4096),
        range(48 * MIB, (4 * MIB) + 4096),
        range(end - 4096, 4096),
    ];
    assert_eq!(verify["ranges"], json!(found));
    assert_eq!(verify["state"], "done");
    // Repaired from the primary while it is written to; nothing is out of use meanwhile.
    let repair = ["verify", "r0/0", "--repair", "--wait", "--timeout", "120"];
    let out = pair.alpha.run(&repair).ok();
    assert!(out.contains("0 KiB differ, 4108 KiB repaired"), "{out}");
    let log = pair.beta.log();
    assert!(log.contains("4108 KiB repaired") || pair.alpha.log().contains("4108 KiB repaired"));
    assert!(!log.contains("Inconsistent -> UpToDate") || log.matches("-> UpToDate").count() == 1);
    let history = load.finish();
    history.verify(&mut pair.nbd("alpha"));
    pair.alpha.run(&["secondary", "r0"]).ok();
    synced(&pair.alpha);
    pair.assert_identical();
    pair.alpha.run(&["verify", "r0", "--wait"]).ok();
}

#[test]
fn the_side_with_the_good_data_can_be_named() {
    let pair = Pair::in_sync(Plan::default());
    let mut nbd = pair.nbd("alpha");
    nbd.write(8 * MIB, &[7; 8192]).expect("writes");
    nbd.flush().expect("flushes");
    plant(&pair.disk("alpha"), 8 * MIB, &[9; 512]);
    let from = ["verify", "r0", "--repair", "--from", "beta", "--wait"];
    pair.alpha.run(&from).ok();
    assert_eq!(nbd.read(8 * MIB, 512).expect("reads"), [7; 512]);
    pair.assert_identical();
    let nobody = ["verify", "r0", "--repair", "--from", "gamma"];
    pair.alpha.run(&nobody).failed(2, "has no node gamma");
    // With two secondaries neither copy counts more.
    drop(nbd);
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.alpha
        .run(&["verify", "r0", "--repair"])
        .failed(3, "no node of r0 is primary");
    pair.beta.run(&["disconnect", "r0"]).ok();
    pair.alpha.run(&["verify", "r0"]).failed(3, "not connected");
}

#[test]
fn a_sync_is_held_back_until_both_sides_let_it_go() {
    let pair = Pair::in_sync(Plan::default());
    pair.beta.run(&["disconnect", "r0"]).ok();
    pair.nbd("alpha")
        .write(0, &vec![5; 2 << 20])
        .expect("writes");
    pair.alpha.run(&["pause-sync", "r0"]).ok();
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.beta);
    wait_status(&pair.beta, "is held back", SOON, |now| {
        peer(now)["replication-state"] == "PausedSyncT" && peer(now)["resync-suspended"] == "peer"
    });
    let now = status(&pair.alpha);
    assert_eq!(peer(&now)["replication-state"], "PausedSyncS");
    assert_eq!(peer(&now)["resync-suspended"], "user");
    let reason = peer(&now)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("lockstep resume-sync r0"), "{reason}");
    assert!(amount(&pair.alpha, "out-of-sync") >= 1024);
    pair.alpha.run(&["resume-sync", "r0"]).ok();
    synced(&pair.alpha);
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.assert_identical();
}

#[test]
fn a_sync_that_compares_first_sends_only_what_differs() {
    let pair = Pair::in_sync(Plan {
        net: "timeout 9; connect-int 1; csums-alg sha256;".to_owned(),
        ..Plan::default()
    });
    pair.nbd("alpha")
        .write(0, &vec![5; 8 << 20])
        .expect("writes");
    let before = amount(&pair.alpha, "sent");
    pair.beta.run(&["invalidate", "r0"]).ok();
    synced(&pair.beta);
    let sent = amount(&pair.alpha, "sent") - before;
    assert!(sent < 1024, "{sent} KiB sent although nothing differed");
}

/// A full sync of which both nodes die in the middle goes on where it was, but for what neither
/// could know to be durable.
#[test]
fn a_sync_goes_on_after_both_nodes_have_died_in_it() {
    const DIRTY: u64 = 384 * MIB;
    let mut pair = Pair::in_sync(Plan {
        size: 512 * MIB,
        ..Plan::default()
    });
    let mut nbd = pair.nbd("alpha");
    for at in (0..DIRTY).step_by(MIB as usize) {
        nbd.write(at, &noise(MIB as usize, at)).expect("writes");
    }
    nbd.flush().expect("flushes");
    drop(nbd);
    let slow = ["disk-options", "r0", "--resync-rate=60M"];
    pair.alpha.run(&slow).ok();
    let sent = |pair: &Pair| amount(&pair.alpha, "sent") * 1024;
    let before = sent(&pair);
    pair.beta.run(&["invalidate", "r0"]).ok();
    wait_until("most is sent", || sent(&pair) - before > 3 * DIRTY / 4);
    let first = sent(&pair) - before;
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.crash();
        node.start_agent();
    }
    synced(&pair.alpha);
    let all = first + sent(&pair);
    assert!(all <= DIRTY + 64 * MIB, "{first} and {} sent", all - first);
    pair.assert_identical();
}
