//! Split brain: made, refused, shown and resolved, all through the command line.

use std::time::Duration;

use crate::pair::{Pair, Plan, amount, connected, role, status, synced, wait_status};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn generations(pair: &Pair, name: &str) -> String {
    let state = status(pair.node(name));
    let current = &state["devices"][0]["generations"]["current"];
    current.as_str().expect("a generation").to_owned()
}

/// Both nodes have been primary without each other, and have written.
fn diverged() -> Pair {
    let pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[1; 65536]).expect("writes");
    pair.alpha.run(&["disconnect", "r0", "--force"]).ok();
    pair.beta.run(&["disconnect", "r0", "--force"]).ok();
    pair.beta.run(&["primary", "r0", "--force"]).ok();
    pair.nbd("alpha").write(MIB, &[2; 65536]).expect("writes");
    pair.nbd("beta").write(MIB, &[3; 65536]).expect("writes");
    pair.nbd("beta")
        .write(2 * MIB, &[4; 65536])
        .expect("writes");
    pair
}

#[test]
fn split_brain_is_refused_shown_and_resolved() {
    let pair = diverged();
    let (mine, theirs) = (generations(&pair, "alpha"), generations(&pair, "beta"));
    assert_ne!(mine, theirs);
    pair.beta.run(&["secondary", "r0"]).ok();
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["connect", "r0"]).ok();
    }
    for node in [&pair.alpha, &pair.beta] {
        wait_status(node, "split brain with both histories", SOON, |now| {
            let link = &now["connections"][0];
            let reason = link["reason"].as_str().unwrap_or("").to_uppercase();
            link["connection-state"] == "StandAlone"
                && reason.contains("SPLIT BRAIN")
                && reason.contains(&mine)
                && reason.contains(&theirs)
                && link["help"]
                    .as_str()
                    .is_some_and(|help| help.contains("--discard-my-data"))
        });
    }
    // Nothing was overwritten, and the primary goes on.
    assert_eq!(
        pair.nbd("alpha").read(MIB, 65536).expect("reads"),
        [2; 65536]
    );
    // Once more without a decision: refused once more.
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["connect", "r0"]).ok();
    }
    wait_status(&pair.alpha, "refused again", SOON, |now| {
        now["connections"][0]["connection-state"] == "StandAlone"
            && now["connections"][0]["split-brain"] == true
    });
    pair.alpha
        .run(&["wait-connect", "r0", "--timeout", "9"])
        .failed(3, "--discard-my-data");
    assert!(
        pair.alpha
            .run(&["status"])
            .ok()
            .contains("--discard-my-data")
    );
    // A primary does not give up its data.
    pair.alpha
        .run(&["connect", "r0", "--discard-my-data"])
        .failed(3, "primary");
    let before = amount(&pair.alpha, "sent");
    pair.beta.run(&["connect", "r0", "--discard-my-data"]).ok();
    pair.alpha.run(&["connect", "r0"]).ok();
    connected(&pair.alpha);
    synced(&pair.alpha);
    let sent = amount(&pair.alpha, "sent") - before;
    println!("sent {sent} KiB");
    // 64 KiB differ at 1 MiB and 64 KiB at 2 MiB: not the whole disk is copied.
    assert!(sent < 16 * 1024, "{sent} KiB");
    assert_eq!(
        (role(&pair.alpha), role(&pair.beta)),
        ("Primary".into(), "Secondary".into())
    );
    let mut nbd = pair.nbd("alpha");
    assert_eq!(nbd.read(0, 65536).expect("reads"), [1; 65536]);
    assert_eq!(nbd.read(MIB, 65536).expect("reads"), [2; 65536]);
    assert_eq!(nbd.read(2 * MIB, 65536).expect("reads"), [0; 65536]);
    pair.assert_identical();
}

#[test]
fn two_primaries_that_meet_again_both_go_on_apart() {
    let pair = diverged();
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["connect", "r0"]).ok();
    }
    for node in [&pair.alpha, &pair.beta] {
        wait_status(node, "refused with a reason", SOON, |now| {
            let link = &now["connections"][0];
            link["connection-state"] == "StandAlone" && link["reason"].is_string()
        });
        assert_eq!(role(node), "Primary");
    }
    pair.nbd("alpha").write(3 * MIB, &[5; 512]).expect("writes");
    pair.nbd("beta").write(3 * MIB, &[6; 512]).expect("writes");
}

#[test]
fn disks_that_never_had_anything_in_common_are_not_synced() {
    let pair = Pair::in_sync(Plan::default());
    let mut other = Pair::in_sync(Plan::default());
    other.alpha.run(&["secondary", "r0"]).ok();
    // Beta's disk of another pair is put in beta's place here.
    pair.beta.run(&["down", "r0"]).ok();
    assert_eq!(other.beta.end_agent("TERM").code(), Some(0));
    std::fs::copy(other.disk("beta"), pair.disk("beta")).expect("copies");
    let before = std::fs::read(pair.disk("beta")).expect("reads");
    pair.beta.run(&["up", "r0"]).ok();
    wait_status(&pair.alpha, "refused with a reason", SOON, |now| {
        let link = &now["connections"][0];
        link["connection-state"] == "StandAlone"
            && link["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("in common"))
    });
    let after = std::fs::read(pair.disk("beta")).expect("reads");
    assert!(
        before[..60 << 20] == after[..60 << 20],
        "nothing is written"
    );
}
