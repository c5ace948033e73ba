//! Several volumes in one resource: one order of writes, disks of their own, one resync each.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::disks::{FrozenDisk, SmallFs, dig_holes};
use crate::load::Load;
use crate::node::{send_signal, wait_until};
use crate::pair::{
    Pair, Plan, amount_of, connected, noise, role, runs, status, synced, wait_replaced, wait_status,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const BLOCK: u64 = 4096;

fn plan(volumes: u16) -> Plan {
    Plan {
        volumes,
        ..Plan::default()
    }
}

fn state_of(now: &Value, volume: usize) -> &str {
    now["devices"][volume]["disk-state"].as_str().unwrap_or("")
}

/// What a backing file holds at `offset`.
fn stored(disk: &Path, offset: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let disk = File::open(disk).expect("opens");
    disk.read_exact_at(&mut block, offset).expect("reads");
    block
}

/// A write waits on the secondary until the disk of another volume has what came before it.
#[test]
fn a_write_does_not_overtake_one_of_another_volume() {
    let frozen = FrozenDisk::new(64 * MIB);
    let pair = Pair::in_sync(Plan {
        // The default timeouts are longer than the disk is frozen.
        net: "protocol A;".to_owned(),
        files: [("beta.img", frozen.image())].into(),
        ..plan(2)
    });
    let (mut first, mut second) = (pair.nbd_of("alpha", 0), pair.nbd_of("alpha", 1));
    let disk = pair.disk_of("beta", 1);
    // Alone, a write of the second volume arrives.
    second.write(0, &[1; 4096]).expect("writes");
    wait_until("it arrives", || stored(&disk, 0) == [1; 4096]);
    frozen.freeze();
    first
        .write(0, &[2; 4096])
        .expect("completes before it arrives");
    second
        .write(0, &[3; 4096])
        .expect("completes before it arrives");
    // Long enough for a round trip many times over.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        stored(&disk, 0),
        [1; 4096],
        "the later write is there, the earlier one is not"
    );
    frozen.thaw();
    wait_until("both arrive", || stored(&disk, 0) == [3; 4096]);
    assert_eq!(stored(&pair.disk("beta"), 0), [2; 4096]);
    drop((first, second));
    pair.alpha.run(&["secondary", "r0"]).ok();
    synced(&pair.alpha);
    pair.assert_identical();
}

/// Writes numbered blocks to the volumes in turn, each after the one before is complete, until
/// the server is gone. Returns the number of completed writes.
fn numbered_writes(pair: &Pair, from: u64) -> u64 {
    let mut volumes: Vec<_> = (0..pair.plan.volumes)
        .map(|volume| pair.nbd_of("alpha", volume))
        .collect();
    let count = volumes.len() as u64;
    let mut number = from;
    loop {
        let nbd = &mut volumes[(number % count) as usize];
        let block = number.to_le_bytes().repeat(BLOCK as usize / 8);
        if nbd.write(number / count * BLOCK, &block).is_err() {
            return number;
        }
        number += 1;
    }
}

/// Whether write `number` is in what a promoted node serves.
fn is_there(pair: &Pair, name: &str, number: u64) -> bool {
    let count = u64::from(pair.plan.volumes);
    let mut nbd = pair.nbd_of(name, (number % count) as u16);
    let block = nbd
        .read(number / count * BLOCK, BLOCK as usize)
        .expect("reads");
    block == number.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// After a crash of the primary the peer has a prefix of what was written to all volumes: under A
/// the end may be missing, never something in the middle.
#[test]
fn a_crash_leaves_a_prefix_of_the_writes_to_all_volumes() {
    for protocol in ["A", "C"] {
        let mut pair = Pair::in_sync(Plan {
            net: format!("protocol {protocol}; timeout 9; connect-int 1;"),
            ..plan(3)
        });
        let mut next = 1;
        for round in 0..runs(2) as u64 {
            let written = std::thread::scope(|scope| {
                let (planes, agent) = (pair.alpha.plane("r0"), pair.alpha.agent());
                let begin = next;
                let writer = {
                    let pair = &pair;
                    scope.spawn(move || numbered_writes(pair, begin))
                };
                std::thread::sleep(Duration::from_millis(600 + 170 * round));
                for pid in [agent, planes].into_iter().flatten() {
                    send_signal(pid, "KILL");
                }
                writer.join().expect("the writer's own checks")
            });
            pair.alpha.crash();
            assert!(written > next + 30, "only {} writes", written - next);
            wait_status(&pair.beta, "alpha is lost", SOON, |now| {
                now["connections"][0]["connection-state"] != "Connected"
            });
            pair.beta.run(&["primary", "r0", "--force"]).ok();
            let missing = (1..=written).find(|number| !is_there(&pair, "beta", *number));
            let first = missing.unwrap_or(written + 1);
            println!("protocol {protocol}: {written} completed, {first} is the first missing");
            if let Some(beyond) = (first + 1..=written).find(|n| is_there(&pair, "beta", *n)) {
                panic!("write {first} is missing, and the later {beyond} is there");
            }
            // `written` itself was not completed: it may be there or not.
            assert!(protocol == "A" || first >= written, "{first} of {written}");
            pair.alpha.start_agent();
            connected(&pair.beta);
            synced(&pair.beta);
            pair.assert_identical();
            pair.beta.run(&["secondary", "r0"]).ok();
            pair.alpha.run(&["primary", "r0"]).ok();
            next = written + 1;
            // What was lost is written again, so that the prefix is whole for the next round.
            let count = u64::from(pair.plan.volumes);
            for number in first..=written {
                let block = number.to_le_bytes().repeat(BLOCK as usize / 8);
                let mut nbd = pair.nbd_of("alpha", (number % count) as u16);
                nbd.write(number / count * BLOCK, &block).expect("writes");
            }
        }
    }
}

/// One volume lives on the peer's disk while the other goes on with both copies.
#[test]
fn one_volume_without_its_disk_leaves_the_other_alone() {
    for (victim, image) in [("alpha", "alpha-1.img"), ("beta", "beta-1.img")] {
        let fs = SmallFs::new(160 * MIB);
        let disk = fs.disk(64 * MIB);
        let pair = Pair::in_sync(Plan {
            files: [(image, disk.clone())].into(),
            ..plan(2)
        });
        for volume in 0..2 {
            let mut nbd = pair.nbd_of("alpha", volume);
            nbd.write(20 * MIB, &noise(MIB as usize, 3))
                .expect("writes");
        }
        dig_holes(&disk);
        fs.fill();
        // Under load on the other volume, writes and reads of the one go on.
        let load = Load::start(&pair.socket("alpha"), 16 * MIB, 21);
        let mut nbd = pair.nbd_of("alpha", 1);
        for chunk in 0..16 {
            let at = 30 * MIB + chunk * 65536;
            nbd.write(at, &noise(65536, at)).expect("a write goes on");
        }
        nbd.flush().expect("a flush goes on");
        for chunk in 0..16 {
            let at = 30 * MIB + chunk * 65536;
            assert!(nbd.read(at, 65536).expect("a read goes on") == noise(65536, at));
        }
        assert!(nbd.read(20 * MIB, MIB as usize).expect("reads") == noise(MIB as usize, 3));
        drop(nbd);
        load.progress(50);
        wait_status(pair.node(victim), "one disk is gone", SOON, |now| {
            state_of(now, 1) == "Diskless" && now["devices"][1]["reason"].is_string()
        });
        assert_eq!(state_of(&status(pair.node(victim)), 0), "UpToDate");
        assert_eq!(role(&pair.alpha), "Primary");
        let history = load.finish();
        assert_eq!(history.reconnects, 0, "{victim}");
        // There is room again: only what it missed is copied, and only of this volume.
        fs.clear();
        let source = if victim == "alpha" {
            &pair.beta
        } else {
            &pair.alpha
        };
        let sent = [0, 1].map(|volume| amount_of(source, volume, "sent"));
        pair.alpha.run(&["secondary", "r0"]).ok();
        pair.node(victim).run(&["attach", "r0/1"]).ok();
        synced(&pair.alpha);
        let grown = [0, 1].map(|volume| amount_of(source, volume, "sent") - sent[volume]);
        println!("{victim}: KiB sent for each volume: {grown:?}");
        assert_eq!(grown[0], 0, "the other volume had all");
        assert!((1024..8 * 1024).contains(&grown[1]), "{grown:?} KiB");
        pair.alpha.run(&["primary", "r0"]).ok();
        history.verify(&mut pair.nbd("alpha"));
        pair.assert_identical();
    }
}

#[test]
fn each_volume_is_resynced_by_its_own_bitmap() {
    let pair = Pair::in_sync(plan(2));
    pair.beta.run(&["disconnect", "r0"]).ok();
    let dirty = [48, 160].map(|count| count * 64);
    for (volume, kib) in dirty.iter().enumerate() {
        let mut nbd = pair.nbd_of("alpha", volume as u16);
        for chunk in 0..kib / 64 {
            // Every fourth 64 KiB.
            let at = chunk * 4 * 65536;
            nbd.write(at, &noise(65536, at + volume as u64 + 1))
                .expect("writes");
        }
        nbd.flush().expect("flushes");
        assert_eq!(amount_of(&pair.alpha, volume, "out-of-sync"), *kib);
    }
    let before = [0, 1].map(|volume| amount_of(&pair.alpha, volume, "sent"));
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.alpha);
    synced(&pair.alpha);
    for (volume, kib) in dirty.iter().enumerate() {
        let sent = amount_of(&pair.alpha, volume, "sent") - before[volume];
        println!("volume {volume}: sent {sent} KiB for {kib} KiB");
        assert!(
            (*kib..=kib * 3 / 2).contains(&sent),
            "volume {volume}: {sent} KiB sent for {kib} KiB"
        );
        assert_eq!(amount_of(&pair.alpha, volume, "out-of-sync"), 0);
    }
    pair.assert_identical();
}

#[test]
fn a_killed_data_plane_serves_all_its_volumes_again() {
    let pair = Pair::in_sync(plan(2));
    let loads = [0, 1].map(|volume| {
        let socket = pair.socket_of("alpha", volume);
        Load::start(&socket, 32 * MIB, 30 + u64::from(volume))
    });
    for name in ["alpha", "beta"] {
        loads.iter().for_each(|load| load.progress(100));
        let plane = pair.node(name).plane("r0").expect("runs");
        send_signal(plane, "KILL");
        wait_replaced(pair.node(name), plane);
        loads.iter().for_each(|load| load.progress(100));
        connected(&pair.alpha);
        synced(&pair.alpha);
    }
    let histories = loads.map(Load::finish);
    synced(&pair.alpha);
    for (volume, history) in histories.iter().enumerate() {
        history.verify(&mut pair.nbd_of("alpha", volume as u16));
    }
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.beta.run(&["primary", "r0"]).ok();
    for (volume, history) in histories.iter().enumerate() {
        history.verify(&mut pair.nbd_of("beta", volume as u16));
    }
    pair.assert_identical();
}
