//! Metadata on a file of its own: the whole disk is data, and the two fail separately.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::disks::SmallFs;
use crate::load::Load;
use crate::node::send_signal;
use crate::pair::{
    Meta, Pair, Plan, amount, connected, disk_state, noise, status, synced, text, tool,
    wait_replaced, wait_status,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn plan(meta: Meta) -> Plan {
    Plan {
        meta,
        ..Plan::default()
    }
}

#[test]
fn all_of_the_disk_is_data_and_a_crash_costs_what_differs() {
    for meta in [Meta::File, Meta::Indexed] {
        let mut pair = Pair::files(plan(meta));
        // Nothing of Lockstep is written to the data disk: what is at its end stays.
        let end = pair.plan.size - 65536;
        let disk = pair.disk("alpha");
        let file = File::options().write(true).open(&disk).expect("opens");
        file.write_all_at(&noise(65536, 5), end).expect("writes");
        for node in [&mut pair.alpha, &mut pair.beta] {
            node.run(&["create-md", "r0"]).ok();
            node.run(&["dump-md", "r0"]).ok();
            node.start_agent();
        }
        connected(&pair.alpha);
        pair.alpha.run(&["primary", "r0", "--force"]).ok();
        synced(&pair.alpha);
        let size = status(&pair.alpha)["devices"][0]["size"].as_u64();
        assert_eq!(size, Some(pair.plan.size / 1024));
        let mut nbd = pair.nbd("alpha");
        assert_eq!(nbd.size, pair.plan.size);
        assert!(nbd.read(end, 65536).expect("reads") == noise(65536, 5));
        nbd.write(pair.plan.size - 4096, &[7; 4096])
            .expect("writes the last block");
        // A data plane is killed, then the whole node, and the peer goes on.
        let load = Load::start(&pair.socket("alpha"), 16 * MIB, 40);
        load.progress(100);
        let plane = pair.alpha.plane("r0").expect("runs");
        send_signal(plane, "KILL");
        wait_replaced(&pair.alpha, plane);
        load.progress(100);
        connected(&pair.alpha);
        synced(&pair.alpha);
        pair.alpha.crash();
        let history = load.finish();
        wait_status(&pair.beta, "alpha is lost", SOON, |now| {
            now["connections"][0]["connection-state"] != "Connected"
        });
        pair.beta.run(&["primary", "r0", "--force"]).ok();
        let mut nbd = pair.nbd("beta");
        history.verify(&mut nbd);
        nbd.write(32 * MIB, &noise(MIB as usize, 6))
            .expect("writes");
        let before = amount(&pair.beta, "sent");
        pair.alpha.start_agent();
        connected(&pair.beta);
        synced(&pair.beta);
        let sent = amount(&pair.beta, "sent") - before;
        println!("sent {sent} KiB");
        assert!((1024..8 * 1024).contains(&sent), "{sent} KiB for 1 MiB");
        history.verify(&mut nbd);
        pair.assert_identical();
        assert_eq!(
            std::fs::metadata(&disk).expect("stat").len(),
            pair.plan.size
        );
    }
}

#[test]
fn metadata_that_cannot_be_written_detaches_the_disk() {
    let fs = SmallFs::new(16 * MIB);
    let meta = fs.disk(MIB);
    let pair = Pair::in_sync(Plan {
        files: [("alpha-0.meta", meta.clone())].into(),
        ..plan(Meta::File)
    });
    pair.nbd("alpha")
        .write(8 * MIB, &noise(MIB as usize, 7))
        .expect("writes");
    // The blocks of the log's ring get no room any more; until they are written, nobody looks.
    tool(
        "fallocate",
        "util-linux",
        &[
            "--punch-hole",
            "--offset=8192",
            "--length=28672",
            text(&meta),
        ],
    )
    .ok();
    fs.fill();
    // Extents that the log does not cover yet: each is noted in it first.
    let mut nbd = pair.nbd("alpha");
    for extent in 0..15 {
        nbd.write(extent * 4 * MIB, &noise(4096, extent + 70))
            .expect("a write goes on");
    }
    wait_status(&pair.alpha, "detached with a reason", SOON, |now| {
        disk_state(now) == "Diskless" && now["devices"][0]["reason"].is_string()
    });
    for extent in 0..15 {
        let found = nbd.read(extent * 4 * MIB, 4096).expect("a read goes on");
        assert!(found == noise(4096, extent + 70), "extent {extent}");
    }
    drop(nbd);
    // What the node missed while it could note nothing is copied.
    fs.clear();
    let node = &pair.alpha;
    node.run(&["secondary", "r0"]).ok();
    node.run(&["attach", "r0"]).ok();
    synced(node);
    pair.assert_identical();
    // Without its metadata a disk is not a copy, whatever its data are.
    node.run(&["detach", "r0"]).ok();
    File::create(&meta).expect("empties");
    let refused = node.run(&["attach", "r0"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    File::options()
        .write(true)
        .open(&meta)
        .and_then(|file| file.set_len(MIB))
        .expect("grows");
    let refused = node.run(&["attach", "r0"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    node.run(&["create-md", "r0"]).ok();
    node.run(&["attach", "r0"]).ok();
    synced(&pair.alpha);
    pair.alpha.run(&["primary", "r0"]).ok();
    let found = pair.nbd("alpha").read(9 * MIB - 4096, 4096).expect("reads");
    assert!(found == noise(MIB as usize, 7)[MIB as usize - 4096..]);
    pair.assert_identical();
}

/// Metadata that needs more room than an index has is made only on a device of its own, and is not
/// attached as an index either.
#[test]
fn an_index_has_room_for_so_much() {
    let large = Plan {
        size: 300 << 30,
        ..plan(Meta::Indexed)
    };
    let pair = Pair::files(large);
    let meta = pair.meta_of("alpha", 0);
    let file = File::options().write(true).open(&meta).expect("opens");
    file.set_len(256 * MIB).expect("grows");
    let create = ["create-md", "r0", "--max-peers", "15"];
    let refused = pair.alpha.run(&create).failed(3, "134217728 bytes");
    assert!(refused.err.contains("without an index"), "{refused:?}");
    let whole = pair.configuration().replace(".meta[0]", ".meta");
    std::fs::write(&pair.alpha.config, whole).expect("config");
    pair.alpha.run(&create).ok();
    std::fs::write(&pair.alpha.config, pair.configuration()).expect("config");
    let mut pair = pair;
    pair.alpha.start_agent();
    let refused = pair.alpha.run(&["attach", "r0"]);
    let refused = refused.failed(3, "134217728 bytes");
    assert!(refused.err.contains("without an index"), "{refused:?}");
}

#[test]
fn metadata_that_does_not_belong_here_is_refused() {
    let pair = Pair::files(plan(Meta::File));
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["create-md", "r0"]).ok();
    }
    let (own, other) = (pair.meta_of("alpha", 0), pair.meta_of("beta", 0));
    let good = std::fs::read(&own).expect("reads");
    // A second time only by force, wherever the metadata is; and never where there is no room.
    pair.alpha.run(&["create-md", "r0"]).failed(3, ".meta");
    assert!(good == std::fs::read(&own).expect("reads"), "unchanged");
    let file = File::options().write(true).open(&own).expect("opens");
    file.set_len(16 * 1024).expect("truncates");
    pair.alpha
        .run(&["create-md", "r0", "--force"])
        .failed(3, "this volume needs");
    // The other node's, or metadata of a disk of another size.
    std::fs::copy(&other, &own).expect("copies");
    let mut pair = pair;
    pair.alpha.start_agent();
    wait_status(&pair.alpha, "named", SOON, |now| {
        let reason = now["devices"][0]["reason"].as_str().unwrap_or("");
        disk_state(now) == "Diskless" && reason.contains("node")
    });
    std::fs::write(&own, &good).expect("restores");
    let disk = File::options()
        .write(true)
        .open(pair.disk("alpha"))
        .expect("opens");
    disk.set_len(32 * MIB).expect("truncates");
    let refused = pair.alpha.run(&["attach", "r0"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.err.contains("other sizes"), "{refused:?}");
    disk.set_len(pair.plan.size).expect("grows");
    pair.alpha.run(&["attach", "r0"]).ok();
    // A slot that this version does not have is refused with its place.
    let text = pair.configuration().replace(".meta;", ".meta[1];");
    std::fs::write(&pair.alpha.config, text).expect("config");
    let ran = pair.alpha.run(&["check"]).failed(10, "lockstep.conf:");
    assert!(ran.err.contains("[0]"), "what works is named: {ran:?}");
}
