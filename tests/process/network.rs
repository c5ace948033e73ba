//! A cut link between two network namespaces that the test makes.
//!
//! The cut is silent, as a dead switch is: a node gets a false hardware address for its peer, so
//! its packets reach nobody. It works in each direction by itself and needs no kernel module
//! beside veth.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::load::Load;
use crate::node::wait_until;
use crate::pair::{
    Pair, Plan, connected, disk_state, link_state, role, status, synced, tool, wait_status,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(40);
const NOWHERE: &str = "02:00:00:00:00:fe";

/// One end of the cable.
#[derive(Clone)]
struct End {
    namespace: String,
    device: String,
    address: &'static str,
    hardware: &'static str,
}

/// Two namespaces with a cable between them; they go when this is dropped.
struct Cable {
    ends: [End; 2],
}

fn ip(arguments: &[&str]) {
    let ran = tool("ip", "iproute2", arguments);
    assert_eq!(
        ran.code,
        0,
        "`ip {}` failed; this test needs root, network namespaces and veth: {}",
        arguments.join(" "),
        ran.err
    );
}

impl Cable {
    fn new() -> Cable {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let end = |letter, address, hardware| End {
            namespace: format!("lockstep-{id}{letter}"),
            // At most 15 characters.
            device: format!("ls{id}{letter}"),
            address,
            hardware,
        };
        let ends = [
            end('a', "10.99.0.1", "02:00:00:00:00:01"),
            end('b', "10.99.0.2", "02:00:00:00:00:02"),
        ];
        let cable = Cable { ends };
        let [a, b] = &cable.ends;
        ip(&["netns", "add", &a.namespace]);
        ip(&["netns", "add", &b.namespace]);
        ip(&[
            "link",
            "add",
            &a.device,
            "netns",
            &a.namespace,
            "address",
            a.hardware,
            "type",
            "veth",
            "peer",
            "name",
            &b.device,
            "netns",
            &b.namespace,
            "address",
            b.hardware,
        ]);
        for end in &cable.ends {
            let address = format!("{}/24", end.address);
            ip(&[
                "-n",
                &end.namespace,
                "addr",
                "add",
                &address,
                "dev",
                &end.device,
            ]);
            ip(&["-n", &end.namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &end.namespace, "link", "set", &end.device, "up"]);
        }
        cable.mend();
        cable
    }

    /// Sends what goes from one end to `hardware`.
    fn aim(&self, from: usize, hardware: &str) {
        let (end, other) = (&self.ends[from], &self.ends[1 - from]);
        ip(&[
            "-n",
            &end.namespace,
            "neigh",
            "replace",
            other.address,
            "lladdr",
            hardware,
            "dev",
            &end.device,
            "nud",
            "permanent",
        ]);
    }

    /// What this end sends is lost.
    fn mute(&self, from: usize) {
        self.aim(from, NOWHERE);
    }

    fn cut(&self) {
        self.mute(0);
        self.mute(1);
    }

    fn mend(&self) {
        for from in 0..2 {
            self.aim(from, self.ends[1 - from].hardware);
        }
    }

    fn plan(&self) -> Plan {
        let address = |end: &End| format!("{}:7789", end.address);
        Plan {
            addresses: Some([address(&self.ends[0]), address(&self.ends[1])]),
            namespaces: Some([
                self.ends[0].namespace.clone(),
                self.ends[1].namespace.clone(),
            ]),
            ..Plan::default()
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            tool("ip", "iproute2", &["netns", "del", &end.namespace]);
        }
    }
}

fn cut_off(pair: &Pair) {
    for node in [&pair.alpha, &pair.beta] {
        wait_status(node, "the peer is lost", SOON, |now| {
            link_state(now) != "Connected"
        });
    }
}

#[test]
fn a_cut_link_delays_writes_briefly_and_forbids_a_second_primary() {
    let cable = Cable::new();
    let pair = Pair::in_sync(cable.plan());
    let load = Load::start(&pair.socket("alpha"), 16 * MIB, 9);
    load.progress(100);
    cable.cut();
    load.progress(100);
    cut_off(&pair);
    // Nothing proves that the isolated copy is current: asked twice, refused twice.
    for _ in 0..2 {
        let ran = pair
            .beta
            .run(&["primary", "r0"])
            .failed(3, "alpha is not reachable");
        assert!(
            ran.err.contains("--force") && ran.err.contains("lost"),
            "{ran:?}"
        );
        assert_eq!(role(&pair.beta), "Secondary");
    }
    assert!(
        pair.beta.run(&["primary", "r0"]).code == 3,
        "and a third time"
    );
    load.progress(100);
    cable.mend();
    connected(&pair.alpha);
    synced(&pair.alpha);
    let history = load.finish();
    assert_eq!(history.reconnects, 0);
    println!("slowest write {:?}", history.slowest);
    assert!(
        history.slowest < Duration::from_secs(6),
        "{:?}",
        history.slowest
    );
    history.verify(&mut pair.nbd("alpha"));
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn an_isolated_secondary_stays_refused_after_restarts() {
    let cable = Cable::new();
    let mut pair = Pair::in_sync(cable.plan());
    cable.cut();
    pair.nbd("alpha").write(0, &[1; 4096]).expect("writes");
    cut_off(&pair);
    pair.beta.run(&["primary", "r0"]).failed(3, "not reachable");
    pair.beta.crash();
    pair.beta.start_agent();
    wait_status(&pair.beta, "attached", SOON, |now| {
        !["", "Diskless"].contains(&disk_state(now))
    });
    for _ in 0..2 {
        pair.beta.run(&["primary", "r0"]).failed(3, "not reachable");
    }
    // Forced, it is the operator's risk; the healed link then shows the split brain.
    pair.beta.run(&["primary", "r0", "--force"]).ok();
    pair.nbd("beta").write(4096, &[2; 4096]).expect("writes");
    cable.mend();
    for node in [&pair.alpha, &pair.beta] {
        wait_status(node, "both refuse each other", SOON, |now| {
            link_state(now) == "StandAlone" && now["connections"][0]["reason"].is_string()
        });
        assert_eq!(role(node), "Primary");
    }
}

#[test]
fn a_node_that_knows_its_peer_to_be_outdated_is_promoted_alone() {
    // Whoever leaves in order, primary or secondary: the secondary is outdated from then on, and
    // the primary's superblock says so.
    for leaver in ["alpha", "beta"] {
        let cable = Cable::new();
        let mut pair = Pair::in_sync(cable.plan());
        pair.node(leaver).run(&["disconnect", "r0"]).ok();
        cut_off(&pair);
        pair.nbd("alpha").write(0, &[1; 4096]).expect("writes");
        pair.alpha.run(&["secondary", "r0"]).ok();
        cable.cut();
        assert_eq!(disk_state(&status(&pair.beta)), "Outdated", "{leaver}");
        for _ in 0..2 {
            pair.beta.run(&["primary", "r0"]).failed(3, "Outdated");
        }
        pair.alpha.run(&["primary", "r0"]).ok();
        pair.nbd("alpha").write(4096, &[2; 4096]).expect("writes");
        // The record outlives the processes.
        pair.alpha.run(&["secondary", "r0"]).ok();
        pair.alpha.crash();
        pair.alpha.start_agent();
        wait_status(&pair.alpha, "attached", SOON, |now| {
            !["", "Diskless"].contains(&disk_state(now))
        });
        pair.alpha.run(&["primary", "r0"]).ok();
        cable.mend();
        for node in [&pair.alpha, &pair.beta] {
            node.run(&["connect", "r0"]).ok();
        }
        connected(&pair.alpha);
        synced(&pair.alpha);
        pair.assert_identical();
    }
}

#[test]
fn a_link_that_is_cut_one_way_is_as_good_as_cut() {
    for mute in 0..2 {
        let cable = Cable::new();
        let pair = Pair::in_sync(cable.plan());
        let load = Load::start(&pair.socket("alpha"), 16 * MIB, 10 + mute as u64);
        load.progress(100);
        cable.mute(mute);
        load.progress(100);
        cut_off(&pair);
        pair.beta.run(&["primary", "r0"]).failed(3, "not reachable");
        cable.mend();
        connected(&pair.alpha);
        synced(&pair.alpha);
        let history = load.finish();
        assert_eq!(history.reconnects, 0);
        assert!(
            history.slowest < Duration::from_secs(6),
            "{mute}: {:?}",
            history.slowest
        );
        history.verify(&mut pair.nbd("alpha"));
        synced(&pair.alpha);
        pair.assert_identical();
    }
}

#[test]
fn a_link_that_flaps_ends_in_sync() {
    let cable = Cable::new();
    let pair = Pair::in_sync(cable.plan());
    let load = Load::start(&pair.socket("alpha"), 16 * MIB, 12);
    for pause in [200, 1200, 2500, 500] {
        load.progress(30);
        cable.cut();
        std::thread::sleep(Duration::from_millis(pause));
        cable.mend();
        std::thread::sleep(Duration::from_millis(pause));
    }
    let history = load.finish();
    wait_until("a link again", || {
        link_state(&status(&pair.alpha)) == "Connected"
    });
    synced(&pair.alpha);
    history.verify(&mut pair.nbd("alpha"));
    pair.assert_identical();
}
