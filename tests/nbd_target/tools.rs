//! Real clients. One that is not installed is a failure, not a test passed.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Server, Setup};

/// Runs a client; it must succeed.
fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = output(program, package, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?}:\n{out}\n{err}"
    );
    out
}

fn output(program: &str, package: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["120", program])
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.code() != Some(127))
        .unwrap_or_else(|| panic!("{program} cannot be run; install the package {package}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not repeat at any block size.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn nbdinfo_sees_the_export() {
    for server in [
        Server::unix(Setup::default()),
        Server::tcp(Setup::default()),
    ] {
        let json = run("nbdinfo", "libnbd-bin", &["--json", &server.place.uri()]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["protocol"], "newstyle-fixed");
        assert_eq!(json["structured"], true);
        let export = &json["exports"][0];
        assert_eq!(export["export-name"], "r0");
        assert_eq!(export["description"], "a disk in memory");
        assert_eq!(export["export-size"], 64 << 20);
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        let can = [
            "can_df",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ];
        for flag in can {
            assert_eq!(export[flag], true, "{flag}");
        }
        for flag in [
            "can_cache",
            "can_fast_zero",
            "is_read_only",
            "is_rotational",
        ] {
            assert_eq!(export[flag], false, "{flag}");
        }
        let map = run("nbdinfo", "libnbd-bin", &["--map", &server.place.uri()]);
        let fields: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(fields, ["0", "67108864", "0", "data"]);
        let list = run("nbdinfo", "libnbd-bin", &["--list", &server.place.uri()]);
        assert!(list.contains("export=\"r0\""), "{list}");
    }
}

#[test]
fn nbdinfo_is_told_where_the_primary_is() {
    let reason = "r0 is secondary on beta; the primary is alpha";
    let server = Server::unix(Setup {
        refusal: Some(reason),
        ..Setup::default()
    });
    let uri = server.place.uri();
    for argument in ["--size", "--list"] {
        let output = output("nbdinfo", "libnbd-bin", &[argument, &uri]);
        assert!(!output.status.success());
        let message = text(&output.stderr);
        let refused = ["policy", "server replied with error"];
        assert!(
            refused.iter().any(|words| message.contains(words)),
            "{message}"
        );
    }
    // This one repeats the server's words.
    let output = output("qemu-img", "qemu-utils", &["info", &uri]);
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert!(message.contains(reason), "{message}");
}

#[test]
fn nbdcopy_copies_there_and_back() {
    for (depth, server) in [(64, true), (3, false)].map(|(depth, unix)| {
        let setup = Setup {
            depth,
            ..Setup::default()
        };
        (
            depth,
            if unix {
                Server::unix(setup)
            } else {
                Server::tcp(setup)
            },
        )
    }) {
        let (from, to) = (server.path().join("from"), server.path().join("to"));
        let content = noise(64 << 20);
        std::fs::write(&from, &content).unwrap();
        let uri = server.place.uri();
        run("nbdcopy", "libnbd-bin", &["--flush", arg(&from), &uri]);
        assert!(server.with(|state| state.disk == content), "depth {depth}");
        run("nbdcopy", "libnbd-bin", &[&uri, arg(&to)]);
        assert!(std::fs::read(&to).unwrap() == content, "depth {depth}");
        assert!(server.with(|state| state.deepest) <= depth as usize);
    }
}

#[test]
fn nbdcopy_survives_a_ring_that_is_often_full() {
    let server = Server::unix(Setup {
        refuse_every: Some(3),
        ..Setup::default()
    });
    let from = server.path().join("from");
    let content = noise(64 << 20);
    std::fs::write(&from, &content).unwrap();
    let arguments = ["--request-size=2097152", arg(&from), &server.place.uri()];
    run("nbdcopy", "libnbd-bin", &arguments);
    assert!(server.with(|state| state.disk == content));
}

#[test]
fn fio_verifies_what_it_wrote() {
    for server in [
        Server::unix(Setup::default()),
        Server::tcp(Setup::default()),
    ] {
        let uri = format!("--uri={}", server.place.uri());
        // Blocks of one size and alignment each: overlapping requests in flight at once would
        // have no defined outcome.
        for size in ["--bs=1536", "--bs=4k", "--bs=2560k"] {
            let arguments = [
                "--name=verify",
                "--ioengine=nbd",
                "--rw=randrw",
                "--iodepth=32",
                "--size=64m",
                "--io_size=48m",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_state_save=0",
                "--fsync=50",
                "--randseed=7",
                "--allow_file_create=0",
                size,
                &uri,
            ];
            run("fio", "fio", &arguments);
        }
        let flushes = |log: &[lockstep::engine::Op]| {
            log.iter()
                .filter(|op| **op == lockstep::engine::Op::Flush)
                .count()
        };
        assert!(server.with(|state| flushes(&state.log)) > 0);
    }
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    let setup = Setup {
        size: 256 << 20,
        ..Setup::default()
    };
    let server = Server::unix(setup);
    let uri = server.place.uri();
    let commands = [
        "write -P 0x5a 0 40M",
        "write -f -P 0x77 1000k 3M",
        "read -P 0x77 1000k 3M",
        "write -z 8M 100M",
        "write -z -u -f 2M 1M",
        "discard 0 512k",
        "flush",
        "read -P 0x5a 4M 4M",
        "read -P 0 8M 100M",
        "read -P 0 0 512k",
    ];
    let mut arguments = vec!["-t", "none", "-f", "raw"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let out = run("qemu-io", "qemu-utils", &arguments);
    assert!(!out.contains("failed") && !out.contains("rror"), "{out}");
    assert!(server.with(|state| state.disk[3 << 20] == 0x77 && state.disk[2 << 20] == 0));
}

#[test]
fn qemu_img_converts_and_compares() {
    let server = Server::tcp(Setup::default());
    let from = server.path().join("from");
    std::fs::write(&from, noise(64 << 20)).unwrap();
    let uri = server.place.uri();
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", arg(&from), &uri];
    run("qemu-img", "qemu-utils", &convert);
    let compare = ["compare", "-f", "raw", "-F", "raw", arg(&from), &uri];
    let out = run("qemu-img", "qemu-utils", &compare);
    assert!(out.contains("identical"), "{out}");
}
