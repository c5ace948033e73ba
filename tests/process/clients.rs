//! Set up by the book, and used through the clients that administrators have.

use crate::node::wait_until;
use crate::pair::{Front, Pair, Plan, amount, noise, role, status, synced, text, tool};

const MIB: u64 = 1 << 20;

#[test]
fn real_clients_on_the_primary_and_none_on_the_secondary() {
    real_clients(Front::Unix);
}

#[test]
fn real_clients_over_tcp() {
    real_clients(Front::Tcp);
}

fn real_clients(front: Front) {
    let pair = Pair::in_sync(Plan {
        front,
        ..Plan::default()
    });
    let uri = pair.uri("alpha");
    let info = tool("nbdinfo", "libnbd-bin", &["--json", &uri]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).expect("json");
    let size = info["exports"][0]["export-size"].as_u64().expect("a size");
    assert_eq!(
        Some(size / 1024),
        status(&pair.alpha)["devices"][0]["size"].as_u64()
    );
    for flag in ["can_flush", "can_fua", "can_trim", "can_zero"] {
        assert_eq!(info["exports"][0][flag], true, "{flag}");
    }

    // A whole image there and back.
    let image = pair.dir.path().join("image");
    let content = noise(24 * MIB as usize, 1);
    std::fs::write(&image, &content).expect("image");
    tool("nbdcopy", "libnbd-bin", &["--flush", text(&image), &uri]).ok();
    let back = pair.dir.path().join("back");
    tool("nbdcopy", "libnbd-bin", &[&uri, text(&back)]).ok();
    let back = std::fs::read(&back).expect("reads");
    assert_eq!(back.len() as u64, size);
    assert!(back[..content.len()] == content, "what came back differs");

    // All kinds of requests.
    let script = [
        "write -P 0x5a 1m 3m",
        "write -f -P 0x5b 5m 64k",
        "write -z 2m 1m",
        "discard 8m 1m",
        "read -P 0x5a 1m 1m",
        "read -P 0 2m 1m",
        "read -P 0x5b 5m 64k",
        "read -P 0 8m 1m",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(script.iter().flat_map(|line| ["-c", line]));
    arguments.push(&uri);
    let ran = tool("qemu-io", "qemu-utils", &arguments).ok();
    assert!(!ran.contains("failed"), "{ran}");

    let job = [
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--iodepth=16",
        "--offset=32M",
        "--size=16M",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
        "--verify_fatal=1",
        "--fsync=64",
    ];
    tool("fio", "fio", &job).ok();

    let state = status(&pair.alpha);
    assert!(
        state["devices"][0]["written"].as_u64() >= Some(24 * 1024),
        "{state:#}"
    );
    assert!(amount(&pair.alpha, "sent") >= 24 * 1024, "{state:#}");
    assert!(amount(&pair.beta, "received") >= 24 * 1024);
    wait_until("nothing is pending", || amount(&pair.alpha, "pending") == 0);
    pair.assert_identical();

    // The secondary refuses, and says where the primary is.
    let refused = tool("nbdinfo", "libnbd-bin", &["--size", &pair.uri("beta")]);
    assert_ne!(refused.code, 0);
    let refused = tool("qemu-img", "qemu-utils", &["info", &pair.uri("beta")]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.err.contains("not primary") && refused.err.contains("alpha"),
        "{refused:?}"
    );
}

#[test]
fn roles_change_hands_in_order() {
    let pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha").write(0, &[7; 8192]).expect("writes");
    pair.beta
        .run(&["primary", "r0"])
        .failed(3, "alpha is primary");
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.beta.run(&["primary", "r0"]).ok();
    let mut nbd = pair.nbd("beta");
    assert_eq!(nbd.read(0, 8192).expect("reads"), [7; 8192]);
    nbd.write(4096, &[8; 4096]).expect("writes");
    assert_eq!(
        (role(&pair.alpha), role(&pair.beta)),
        ("Secondary".into(), "Primary".into())
    );
    synced(&pair.beta);
    pair.assert_identical();
}

#[test]
fn every_protocol_replicates() {
    for protocol in ["A", "B", "C"] {
        let pair = Pair::in_sync(Plan {
            net: format!("protocol {protocol}; timeout 9; connect-int 1;"),
            size: 32 * MIB,
            ..Plan::default()
        });
        let job = [
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", pair.uri("alpha")),
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--size=8M",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--fsync=32",
            "--end_fsync=1",
        ];
        tool("fio", "fio", &job).ok();
        wait_until("nothing is pending", || amount(&pair.alpha, "pending") == 0);
        // Under A the last writes may still be on their way; leaving in order waits for them.
        pair.alpha.run(&["secondary", "r0"]).ok();
        synced(&pair.alpha);
        pair.assert_identical();
    }
}
