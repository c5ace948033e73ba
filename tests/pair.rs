//! Two nodes on this machine, with real processes: how the agents keep their data planes.

mod node;

use std::fs::File;
use std::path::Path;

use node::{Node, own_addresses, send_signal, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// A pair with an NBD front end and addresses of its own, so that tests can run side by side.
struct Pair {
    dir: TempDir,
    alpha: Node,
    beta: Node,
}

fn host(dir: &Path, name: &str, address: &str, id: u8) -> String {
    let dir = dir.display();
    format!(
        "    on {name} {{
        address {address};
        node-id {id};
        volume 0 {{
            device nbd+unix:///r0?socket={dir}/{name}.nbd;
            disk {dir}/{name}.img;
            meta-disk internal;
        }}
    }}
"
    )
}

fn configuration(dir: &Path) -> String {
    let [alpha, beta] = own_addresses();
    format!(
        "resource r0 {{
    net {{ shared-secret \"a secret of the test\"; connect-int 1; timeout 9; }}
{}{}}}
",
        host(dir, "alpha", &alpha, 0),
        host(dir, "beta", &beta, 1)
    )
}

impl Pair {
    /// Metadata is there and both agents run.
    fn new() -> Pair {
        let dir = tempfile::tempdir().expect("dir");
        let config = dir.path().join("lockstep.conf");
        std::fs::write(&config, configuration(dir.path())).expect("config");
        let mut pair = Pair {
            alpha: Node::new(dir.path(), "alpha", &config),
            beta: Node::new(dir.path(), "beta", &config),
            dir,
        };
        for node in [&mut pair.alpha, &mut pair.beta] {
            let image = File::create(pair.dir.path().join(format!("{}.img", node.name)));
            image.expect("image").set_len(16 << 20).expect("size");
            node.run(&["create-md", "r0"]).ok();
            node.start_agent();
        }
        pair
    }

    /// As `new`, with alpha primary and both copies up to date.
    fn in_sync() -> Pair {
        let pair = Pair::new();
        pair.alpha
            .run(&["wait-connect", "r0", "--timeout", "60"])
            .ok();
        pair.alpha.run(&["primary", "r0", "--force"]).ok();
        pair.alpha.run(&["wait-sync", "r0", "--timeout", "60"]).ok();
        pair
    }
}

fn role(node: &Node) -> String {
    node.run(&["role", "r0"]).out.trim().to_owned()
}

fn status(node: &Node) -> Value {
    let text = node.run(&["status", "r0", "--json"]).ok();
    serde_json::from_str::<Value>(&text).expect("json")[0].clone()
}

#[test]
fn a_pair_comes_up_and_goes_down() {
    let mut pair = Pair::new();
    let (alpha, beta) = (&pair.alpha, &pair.beta);
    alpha.run(&["wait-connect", "r0", "--timeout", "60"]).ok();
    alpha
        .run(&["wait-sync", "r0", "--timeout", "300ms"])
        .failed(4, "not in sync");
    alpha.run(&["primary", "r0"]).failed(3, "Inconsistent");
    alpha.run(&["primary", "r0", "--force"]).ok();
    alpha.run(&["wait-sync", "all", "--timeout", "60"]).ok();
    assert_eq!(role(alpha), "Primary");
    assert_eq!(role(beta), "Secondary");
    assert_eq!(beta.run(&["cstate", "r0"]).ok(), "Connected\n");
    assert_eq!(beta.run(&["dstate", "r0"]).ok(), "UpToDate/UpToDate\n");
    beta.run(&["primary", "r0"]).failed(3, "rimary");
    assert!(
        alpha
            .run(&["status"])
            .ok()
            .starts_with("r0 role:Primary\n  disk:UpToDate\n")
    );
    let events = beta.run(&["events", "--now"]).ok();
    assert!(
        events.contains("exists resource name:r0 role:Secondary"),
        "{events}"
    );
    assert!(events.ends_with("exists -\n"), "{events}");
    // Each once more: they are idempotent.
    alpha.run(&["up", "r0"]).ok();
    alpha.run(&["connect", "r0:beta"]).ok();
    alpha.run(&["attach", "r0/0"]).ok();
    alpha
        .run(&["create-md", "r0", "--force"])
        .failed(3, "alpha.img");
    alpha.run(&["disconnect", "r0"]).ok();
    assert_eq!(alpha.run(&["cstate", "r0"]).ok(), "StandAlone\n");
    alpha.run(&["wait-connect", "r0"]).failed(3, "does not try");
    alpha.run(&["connect", "r0"]).ok();
    alpha.run(&["wait-connect", "r0", "--timeout", "60"]).ok();
    alpha.run(&["secondary", "r0"]).ok();
    alpha.run(&["down", "r0"]).ok();
    alpha.run(&["down", "r0"]).ok();
    alpha.run(&["primary", "r0"]).failed(3, "lockstep up r0");
    assert_eq!(pair.alpha.plane("r0"), None);
    assert_eq!(pair.alpha.end_agent("TERM").code(), Some(0));
    assert_eq!(pair.beta.end_agent("TERM").code(), Some(0));
    assert_eq!(pair.beta.plane("r0"), None);
}

#[test]
fn a_killed_data_plane_comes_back_with_its_role() {
    let pair = Pair::in_sync();
    for _ in 0..2 {
        let plane = pair.alpha.plane("r0").expect("runs");
        send_signal(plane, "KILL");
        wait_until("another data plane", || {
            pair.alpha.plane("r0").is_some_and(|now| now != plane)
        });
        wait_until("primary again", || role(&pair.alpha) == "Primary");
        pair.alpha.run(&["wait-sync", "r0", "--timeout", "60"]).ok();
    }
    let plane = pair.beta.plane("r0").expect("runs");
    send_signal(plane, "KILL");
    wait_until("the peer is back", || {
        pair.beta.plane("r0").is_some_and(|now| now != plane)
    });
    pair.alpha.run(&["wait-sync", "r0", "--timeout", "60"]).ok();
    assert_eq!(role(&pair.beta), "Secondary");
}

#[test]
fn data_planes_outlive_their_agent() {
    let mut pair = Pair::in_sync();
    let plane = pair.alpha.plane("r0");
    pair.alpha.end_agent("KILL");
    assert_eq!(pair.beta.run(&["cstate", "r0"]).ok(), "Connected\n");
    pair.alpha.start_agent();
    wait_until("taken over", || role(&pair.alpha) == "Primary");
    assert_eq!(pair.alpha.plane("r0"), plane);
    assert_eq!(pair.alpha.end_agent("USR2").code(), Some(0));
    pair.alpha.start_agent();
    wait_until("taken over", || role(&pair.alpha) == "Primary");
    assert_eq!(pair.alpha.plane("r0"), plane);
    // The new agent keeps it as the old one did.
    send_signal(plane.expect("runs"), "KILL");
    wait_until("primary again", || {
        pair.alpha.plane("r0") != plane && role(&pair.alpha) == "Primary"
    });
    assert_eq!(pair.alpha.end_agent("TERM").code(), Some(0));
    assert_eq!(pair.alpha.plane("r0"), None);
}

#[test]
fn a_bad_resource_does_not_keep_others_from_starting() {
    let mut pair = Pair::new();
    pair.alpha.end_agent("TERM");
    let dir = pair.dir.path();
    let broken = configuration(dir)
        .replace("r0", "r1")
        .replace(".img", ".missing")
        .replace(".nbd", ".nbd1");
    let both = std::fs::read_to_string(&pair.alpha.config).expect("config") + &broken;
    std::fs::write(&pair.alpha.config, &both).expect("config");
    pair.alpha.start_agent();
    pair.alpha
        .run(&["wait-connect", "r0", "--timeout", "60"])
        .ok();
    wait_until("the reason is shown", || {
        let text = pair.alpha.run(&["status", "r1"]).out;
        text.contains("disk:Diskless") && text.contains("reason: ") && text.contains(".missing")
    });
    pair.alpha.run(&["attach", "r1"]).failed(1, ".missing");
    pair.alpha.run(&["up", "r1"]).failed(1, ".missing");
}

#[test]
fn changed_configuration_is_taken_in_as_far_as_it_goes() {
    let pair = Pair::new();
    let (alpha, dir) = (&pair.alpha, pair.dir.path());
    assert_eq!(alpha.run(&["adjust"]).ok(), "");
    let changed = std::fs::read_to_string(&pair.alpha.config)
        .expect("config")
        .replace("timeout 9", "protocol A; timeout 8");
    let new = configuration(dir)
        .replace("r0", "r1")
        .replace(".nbd", ".nbd1");
    let new = new.replace(".img", ".img1");
    std::fs::write(&alpha.config, changed + &new).expect("config");
    let dry = alpha.run(&["adjust", "--dry-run"]).ok();
    assert!(
        dry.contains("r0: changed (protocol, timeout, ko-count): needs down and up"),
        "{dry}"
    );
    assert!(dry.contains("r1: new: started"), "{dry}");
    alpha.run(&["status", "r1"]).failed(2, "r1");
    alpha.run(&["adjust"]).failed(3, "r0 (protocol, timeout");
    alpha.run(&["status", "r1"]).ok();
    alpha.run(&["down", "r0"]).ok();
    alpha.run(&["up", "r0"]).ok();
    assert_eq!(alpha.run(&["adjust", "r0"]).ok(), "");
    // What can change while it runs is taken over.
    let plane = alpha.plane("r0");
    let text = std::fs::read_to_string(&alpha.config).expect("config");
    std::fs::write(&alpha.config, text.replace("timeout 8", "timeout 7")).expect("config");
    alpha.run(&["adjust"]).ok();
    let dry = alpha.run(&["adjust", "--dry-run"]).ok();
    assert!(dry.contains("r0: unchanged"), "{dry}");
    assert_eq!(alpha.plane("r0"), plane);
    std::fs::write(&alpha.config, "resource {").expect("config");
    alpha.run(&["adjust"]).failed(10, "lockstep.conf:1:");
    assert_eq!(status(alpha)["name"], "r0");
}
