//! Where an NBD export listens may be somebody else's: that keeps no node from replicating.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use crate::node::{PATIENCE, Ran, send_signal};
use crate::pair::{Front, Pair, Plan, role, status, synced, wait_replaced, wait_status};

/// A process that has the listener, and nobody else.
fn holder(listener: impl Into<std::os::fd::OwnedFd>) -> Child {
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::from(listener.into()));
    command.spawn().expect("starts")
}

fn end(mut child: Child) {
    child.kill().expect("ends");
    child.wait().expect("ends");
}

fn reason(pair: &Pair, name: &str) -> String {
    let now = status(pair.node(name));
    let reason = now["devices"][0]["reason"].as_str().unwrap_or_default();
    reason.to_owned()
}

/// The reason is in the status and the refusal, with the place and its owner.
fn names(text: &str, place: &str, owner: &Child) {
    let owner = format!("sleep ({})", owner.id());
    assert!(text.contains(place) && text.contains(&owner), "{text}");
}

#[test]
fn a_taken_socket_keeps_no_secondary_from_replicating() {
    let pair = Pair::files(Plan::default());
    let owner = holder(UnixListener::bind(pair.socket("beta")).expect("binds"));
    let pair = pair.start().sync();
    names(&reason(&pair, "beta"), "beta.nbd", &owner);
    // It gets every write, and is in the way of nothing but its own promotion.
    pair.nbd("alpha").write(0, &[7; 8192]).expect("writes");
    synced(&pair.alpha);
    pair.assert_identical();
    pair.alpha.run(&["secondary", "r0"]).ok();
    let Ran { err, .. } = pair.beta.run(&["primary", "r0"]).failed(3, "beta.nbd");
    names(&err, "beta.nbd", &owner);
    assert_eq!(role(&pair.beta), "Secondary");
    // Free again, it is taken by itself, and at the order.
    end(owner);
    pair.beta.run(&["primary", "r0"]).ok();
    assert_eq!(reason(&pair, "beta"), "");
    let mut nbd = pair.nbd("beta");
    assert_eq!(nbd.read(0, 8192).expect("reads"), [7; 8192]);
    // What serves outlives its agent, and is found by the next one.
    let mut pair = pair;
    pair.beta.end_agent("KILL");
    pair.beta.start_agent();
    nbd.write(0, &[8; 512]).expect("goes on");
    drop(nbd);
    pair.beta.run(&["secondary", "r0"]).ok();
    pair.beta.run(&["primary", "r0"]).ok();
    pair.nbd("beta").write(0, &[9; 512]).expect("writes");
}

#[test]
fn a_taken_port_is_tried_again() {
    let pair = Pair::files(Plan {
        front: Front::Tcp,
        ..Plan::default()
    });
    let uri = pair.uri("beta");
    let place = uri.trim_start_matches("nbd://").trim_end_matches("/r0");
    let owner = holder(TcpListener::bind(place).expect("binds"));
    let pair = pair.start().sync();
    names(&reason(&pair, "beta"), place, &owner);
    end(owner);
    wait_status(&pair.beta, "listens", PATIENCE, |now| {
        let device = &now["devices"][0];
        device["listening"] == true && device["reason"].is_null()
    });
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.beta.run(&["primary", "r0"]).ok();
}

#[test]
fn a_socket_that_cannot_be_made_is_a_failure_and_said_so() {
    let mut pair = Pair::files(Plan::default());
    let text = pair.configuration().replace("beta.nbd", "missing/beta.nbd");
    std::fs::write(&pair.beta.config, text).expect("config");
    pair = pair.start().sync();
    assert!(reason(&pair, "beta").contains("missing/beta.nbd"));
    pair.alpha.run(&["secondary", "r0"]).ok();
    let failed = pair.beta.run(&["primary", "r0"]);
    failed.failed(1, "missing/beta.nbd");
    assert_eq!(role(&pair.beta), "Secondary");
    std::fs::create_dir(pair.dir.path().join("missing")).expect("folder");
    pair.beta.run(&["primary", "r0"]).ok();
}

/// The place is lost to somebody else while the data plane is dead, and won back.
#[test]
fn a_primary_that_lost_its_place_is_primary_again_when_it_is_free() {
    let pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[7; 4096]).expect("writes");
    let plane = pair.alpha.plane("r0").expect("runs");
    std::fs::remove_file(pair.socket("alpha")).expect("removes");
    let owner = holder(UnixListener::bind(pair.socket("alpha")).expect("binds"));
    send_signal(plane, "KILL");
    wait_replaced(&pair.alpha, plane);
    wait_status(&pair.alpha, "says why", PATIENCE, |now| {
        let reason = now["devices"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("alpha.nbd") && now["role"] == "Secondary"
    });
    end(owner);
    wait_status(&pair.alpha, "is primary again", PATIENCE, |now| {
        now["role"] == "Primary"
    });
    let read = pair.nbd("alpha").read(0, 4096).expect("reads");
    assert_eq!(read, [7; 4096]);
}
