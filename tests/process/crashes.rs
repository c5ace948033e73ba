//! kill -9: of one data plane, of a whole node, and what the return of a node costs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::load::Load;
use crate::node::send_signal;
use crate::pair::{
    Pair, Plan, amount, connected, disk_state, link_state, noise, random, role, status, synced,
    wait_replaced, wait_status,
};

const MIB: u64 = 1 << 20;
/// A killed data plane serves again within this; the product aims at 2 s on a quiet machine.
const RECOVERY: Duration = Duration::from_secs(20);

#[test]
fn a_killed_data_plane_comes_back_under_its_clients() {
    let pair = Pair::in_sync(Plan::default());
    let load = Load::start(&pair.socket("alpha"), 32 * MIB, 1);
    for _ in 0..3 {
        load.progress(200);
        let plane = pair.alpha.plane("r0").expect("runs");
        send_signal(plane, "KILL");
        wait_replaced(&pair.alpha, plane);
    }
    load.progress(200);
    // The peer's data plane as well: the primary goes on.
    let plane = pair.beta.plane("r0").expect("runs");
    send_signal(plane, "KILL");
    load.progress(200);
    wait_replaced(&pair.beta, plane);
    synced(&pair.alpha);
    let history = load.finish();
    assert!(history.reconnects >= 3, "{}", history.reconnects);
    assert!(history.slowest < RECOVERY, "{:?}", history.slowest);
    history.verify(&mut pair.nbd("alpha"));
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn a_client_of_the_world_reconnects() {
    let pair = Pair::in_sync(Plan::default());
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=r0,reconnect-delay=30",
        pair.socket("alpha").display()
    );
    let mut client = Command::new("timeout")
        .args(["120", "qemu-io", "--image-opts", &options])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("coreutils are there");
    let mut commands = client.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(client.stdout.take().expect("a pipe"));
    // One at a time: it looks for the next one only when more input arrives.
    let mut tell = |command: &str, answer: &str| {
        writeln!(commands, "{command}").expect("is told");
        let mut said = String::new();
        while !said.contains(answer) {
            let more = answers.read_line(&mut said).expect("speaks");
            let failed = said.contains("rror") || said.contains("failed");
            assert!(more > 0 && !failed, "{command}: {said}");
        }
    };
    tell("write -P 1 0 64k", "wrote 65536/65536");
    let plane = pair.alpha.plane("r0").expect("runs");
    send_signal(plane, "KILL");
    tell("write -P 2 64k 64k", "wrote 65536/65536");
    tell("read -P 1 0 64k", "read 65536/65536");
    drop(commands);
    assert!(client.wait().expect("ends").success());
    wait_replaced(&pair.alpha, plane);
    assert_eq!(pair.nbd("alpha").read(65536, 512).expect("reads"), [2; 512]);
}

#[test]
fn takeover_and_return_copy_only_what_differs() {
    let mut pair = Pair::in_sync(Plan {
        size: 512 * MIB,
        ..Plan::default()
    });
    // 192 MiB freshly written: the activity log covers them at the crash.
    let mut nbd = pair.nbd("alpha");
    for chunk in 0..192 {
        nbd.write(chunk * MIB, &noise(MIB as usize, chunk + 1))
            .expect("writes");
    }
    let load = Load::start(&pair.socket("alpha"), 64 * MIB, 2);
    load.progress(100);
    pair.alpha.crash();
    let history = load.finish();
    wait_status(&pair.beta, "alpha gone", RECOVERY, |status| {
        link_state(status) != "Connected"
    });
    pair.beta.run(&["primary", "r0"]).failed(3, "not reachable");
    pair.beta.run(&["primary", "r0", "--force"]).ok();
    let mut nbd = pair.nbd("beta");
    history.verify(&mut nbd);
    for chunk in 0..8 {
        nbd.write((200 + 7 * chunk) * MIB, &noise(MIB as usize, 1000 + chunk))
            .expect("writes");
    }
    let before = amount(&pair.beta, "sent");
    pair.alpha.start_agent();
    connected(&pair.beta);
    synced(&pair.beta);
    let sent = amount(&pair.beta, "sent") - before;
    println!("sent {sent} KiB");
    assert!(
        sent >= 8 * 1024,
        "only {sent} KiB sent: what differs is more"
    );
    assert!(sent <= 40 * 1024, "{sent} KiB sent");
    assert_eq!(role(&pair.alpha), "Secondary");
    history.verify(&mut nbd);
    pair.assert_identical();
}

#[test]
fn a_secondary_that_crashes_gets_what_it_missed() {
    let mut pair = Pair::in_sync(Plan {
        size: 256 * MIB,
        ..Plan::default()
    });
    pair.nbd("alpha")
        .write(0, &noise(MIB as usize, 3))
        .expect("writes");
    pair.beta.crash();
    let mut nbd = pair.nbd("alpha");
    for chunk in 0..4 {
        nbd.write((64 + chunk) * MIB, &noise(MIB as usize, chunk + 40))
            .expect("writes");
    }
    let before = amount(&pair.alpha, "sent");
    pair.beta.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    let sent = amount(&pair.alpha, "sent") - before;
    println!("sent {sent} KiB for 4096 KiB");
    assert!((4096..12 * 1024).contains(&sent), "{sent} KiB sent");
    pair.assert_identical();
}

#[test]
fn a_bitmap_resync_sends_little_more_than_is_dirty() {
    let pair = Pair::in_sync(Plan {
        size: 512 * MIB,
        ..Plan::default()
    });
    pair.beta.run(&["disconnect", "r0"]).ok();
    let mut nbd = pair.nbd("alpha");
    let (mut state, mut dirty) = (99, std::collections::BTreeSet::new());
    for _ in 0..400 {
        state = random(state);
        let offset = state % (480 * MIB / 65536) * 65536;
        nbd.write(offset, &noise(65536, state)).expect("writes");
        dirty.insert(offset);
    }
    nbd.flush().expect("flushes");
    let bytes = dirty.len() as u64 * 64;
    assert_eq!(amount(&pair.alpha, "out-of-sync"), bytes);
    let before = amount(&pair.alpha, "sent");
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.alpha);
    synced(&pair.alpha);
    let sent = amount(&pair.alpha, "sent") - before;
    println!("sent {sent} KiB for {bytes} KiB");
    assert!(
        sent >= bytes && sent <= bytes * 3 / 2,
        "{sent} KiB sent for {bytes} KiB"
    );
    pair.assert_identical();
}

#[test]
fn a_resync_that_is_killed_on_either_side_goes_on() {
    let mut pair = Pair::in_sync(Plan {
        size: 256 * MIB,
        ..Plan::default()
    });
    for victim in ["alpha", "beta"] {
        pair.beta.run(&["disconnect", "r0"]).ok();
        let mut nbd = pair.nbd("alpha");
        for chunk in 0..128 {
            nbd.write(chunk * MIB, &noise(MIB as usize, chunk + 5000))
                .expect("writes");
        }
        pair.beta.run(&["connect", "r0"]).ok();
        wait_status(&pair.beta, "a sync begins", RECOVERY, |now| {
            disk_state(now) == "Inconsistent" || disk_state(now) == "UpToDate"
        });
        let plane = pair.node(victim).plane("r0").expect("runs");
        send_signal(plane, "KILL");
        wait_replaced(pair.node(victim), plane);
        wait_status(&pair.alpha, "primary again", RECOVERY, |now| {
            now["role"] == "Primary"
        });
        connected(&pair.alpha);
        synced(&pair.alpha);
        pair.assert_identical();
    }
    // A copy in the middle of a sync is not promoted, however little is missing.
    let mut tries = 0;
    while tries == 0 || disk_state(&status(&pair.beta)) != "Inconsistent" {
        // The sync may come to its end before this test gets round to the crash.
        tries += 1;
        assert!(tries < 20, "every sync is over before the source is killed");
        if tries > 1 {
            pair.alpha.start_agent();
            connected(&pair.alpha);
            synced(&pair.alpha);
        }
        pair.beta.run(&["invalidate", "r0"]).ok();
        wait_status(&pair.beta, "a sync begins", RECOVERY, |now| {
            disk_state(now) == "Inconsistent"
        });
        pair.alpha.crash();
    }
    pair.beta.run(&["primary", "r0"]).failed(3, "Inconsistent");
}
