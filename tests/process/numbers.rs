//! What a data plane may cost.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::nbd::Nbd;
use crate::pair::{Pair, Plan, connected, disk_state, status, synced, wait_status};

const GIB: u64 = 1 << 30;

/// KiB of a line of `/proc/PID/FILE` such as `Rss: 12 kB`.
fn kib(line: &str) -> Option<u64> {
    line.split_whitespace().nth(1)?.parse().ok()
}

/// KiB resident in the process, and in the mappings that are too large to be anything but its
/// I/O buffers (8 MiB and more, anonymous and private).
fn resident(pid: u32) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut all, mut buffers, mut buffer) = (0, 0, false);
    for line in maps.lines() {
        if let Some(("Size", _)) = line.split_once(':') {
            buffer = buffer && kib(line) >= Some(8 * 1024);
        } else if let Some(("Rss", _)) = line.split_once(':') {
            let rss = kib(line).expect("a number");
            all += rss;
            buffers += if buffer { rss } else { 0 };
        } else if line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            // A header: range, rights, offset, device, inode, path if any.
            buffer = line.split_whitespace().count() == 5;
        }
    }
    (all, buffers)
}

#[test]
fn a_data_plane_stays_small() {
    let pair = Pair::in_sync(Plan {
        size: GIB,
        ..Plan::default()
    });
    let load = Load::start(&pair.socket("alpha"), GIB / 2, 13);
    load.progress(2000);
    load.finish();
    for node in [&pair.alpha, &pair.beta] {
        let (all, buffers) = resident(node.plane("r0").expect("runs"));
        println!(
            "{}: {all} KiB resident, {buffers} KiB of them buffers",
            node.name
        );
        assert!(
            all - buffers < 64 * 1024,
            "{all} KiB resident, {buffers} of them buffers"
        );
    }
}

#[test]
fn fifteen_tebibytes_attach_in_five_seconds() {
    let limit = Duration::from_secs(5);
    let mut pair = Pair::files(Plan {
        size: 15 << 40,
        ..Plan::default()
    });
    let begin = Instant::now();
    pair.alpha.run(&["create-md", "r0"]).ok();
    println!("create-md: {:?}", begin.elapsed());
    pair.beta.run(&["create-md", "r0"]).ok();
    let begin = Instant::now();
    pair.alpha.start_agent();
    wait_status(&pair.alpha, "attached", limit * 4, |now| {
        disk_state(now) == "Inconsistent"
    });
    let took = begin.elapsed();
    println!("agent, data plane and attach: {took:?}");
    assert!(took < limit, "{took:?}");
    let shown = status(&pair.alpha)["devices"][0]["size"]
        .as_u64()
        .expect("a size");
    assert!(shown > (15 << 30) - (1 << 20), "{shown} KiB");
    pair.alpha.run(&["primary", "r0", "--force"]).ok();
    let mut nbd: Nbd = pair.nbd("alpha");
    for part in 0..8 {
        let at = nbd.size / 4096 / 8 * part * 4096;
        nbd.write(at, &[part as u8 + 1; 4096]).expect("writes");
        assert_eq!(nbd.read(at, 4096).expect("reads"), [part as u8 + 1; 4096]);
    }
    // Once more with history, after a crash.
    pair.alpha.crash();
    let begin = Instant::now();
    pair.alpha.start_agent();
    wait_status(&pair.alpha, "attached", limit * 4, |now| {
        !["", "Diskless", "Attaching"].contains(&disk_state(now))
    });
    let took = begin.elapsed();
    println!("after a crash: {took:?}");
    assert!(took < limit, "{took:?}");
    // 32 MiB of bitmap memory per TiB and peer, and 64 MiB beside it.
    let (all, buffers) = resident(pair.alpha.plane("r0").expect("runs"));
    println!("{all} KiB resident, {buffers} KiB in large mappings");
    assert!(
        all < (15 * 32 + 64) * 1024 + 128 * 1024,
        "{all} KiB resident"
    );
}

#[test]
fn a_pair_is_connected_soon_after_its_start() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.alpha.run(&["down", "r0"]).ok();
    pair.beta.run(&["down", "r0"]).ok();
    pair.beta.end_agent("TERM");
    pair.alpha.end_agent("TERM");
    pair.alpha.start_agent();
    let begin = Instant::now();
    pair.beta.start_agent();
    connected(&pair.alpha);
    synced(&pair.beta);
    println!("connected after {:?}", begin.elapsed());
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn an_empty_tebibyte_is_in_sync_in_half_a_minute_and_takes_no_room() {
    let begin = Instant::now();
    let pair = Pair::started(Plan {
        size: 1 << 40,
        ..Plan::default()
    });
    connected(&pair.alpha);
    pair.alpha.run(&["primary", "r0", "--force"]).ok();
    let sync = Instant::now();
    let limit = ["wait-sync", "r0", "--timeout", "120"];
    pair.alpha.run(&limit).ok();
    let took = sync.elapsed();
    eprintln!("synced in {took:?}, all in {:?}", begin.elapsed());
    assert!(took < Duration::from_secs(30), "{took:?}");
    for name in ["alpha", "beta"] {
        let disk = std::fs::metadata(pair.disk(name)).expect("a disk");
        let room = std::os::unix::fs::MetadataExt::blocks(&disk) * 512;
        assert!(room < 1 << 30, "{name} takes {room} bytes");
    }
    assert_eq!(crate::pair::amount(&pair.alpha, "sent"), 0);
}
