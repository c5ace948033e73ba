//! The command line from outside: exit codes, messages, bad input.

mod node;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use node::Node;
use tempfile::TempDir;

/// A configuration of one resource with a file as disk, and node `alpha` of it.
fn alpha() -> (TempDir, Node) {
    let dir = tempfile::tempdir().expect("dir");
    let config = dir.path().join("lockstep.conf");
    std::fs::write(&config, configuration(dir.path())).expect("config");
    let node = Node::new(dir.path(), "alpha", &config);
    (dir, node)
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "resource r0 {{
    device nbd+unix:///r0?socket={dir}/nbd.sock;
    disk {dir}/alpha.img;
    meta-disk internal;
    startup {{ }}
    on alpha {{ address 127.0.0.1:17789; node-id 0; }}
    on beta {{ address 127.0.0.2:17789; node-id 1; disk {dir}/beta.img; }}
}}
"
    )
}

#[test]
fn without_an_agent_the_exit_code_is_5() {
    let (_dir, alpha) = alpha();
    for verb in [
        &["status"][..],
        &["primary", "r0"],
        &["events"],
        &["wait-connect", "r0", "--timeout", "1"],
    ] {
        alpha.run(verb).failed(5, "no agent answers");
    }
    let ran = alpha.run(&["status", "--json"]);
    assert_eq!(ran.code, 5);
    let error: serde_json::Value = serde_json::from_str(&ran.err).expect("json");
    assert_eq!(error["error"]["kind"], "unreachable");
    assert!(error["error"]["help"].is_string());
}

#[test]
fn usage_errors_exit_2() {
    let (_dir, alpha) = alpha();
    alpha.run(&[]).failed(2, "no verb");
    alpha.run(&["statsu"]).failed(2, "statsu");
    alpha.run(&["primary"]).failed(2, "required");
    alpha
        .run(&["primary", "r0", "--forse"])
        .failed(2, "--forse");
    alpha
        .run(&["switchover", "r0"])
        .failed(2, "not in this version");
    assert!(alpha.run(&["--help"]).ok().contains("primary"));
    assert!(!alpha.run(&["--help"]).ok().contains("switchover"));
}

#[test]
fn a_socket_path_that_is_too_long_is_named() {
    let (dir, _alpha) = alpha();
    let deep = dir.path().join("x".repeat(120));
    std::fs::create_dir(&deep).expect("dir");
    let node = Node::new(&deep, "alpha", &dir.path().join("lockstep.conf"));
    node.run(&["agent"]).failed(1, "socket path");
    node.run(&["status"]).failed(1, "socket path");
}

#[test]
fn a_second_agent_is_refused_and_a_stale_socket_is_not_in_the_way() {
    let (_dir, mut alpha) = alpha();
    alpha.start_agent();
    alpha.run(&["agent"]).failed(3, "another agent");
    alpha.end_agent("KILL");
    assert!(alpha.run_dir.join("control.sock").exists());
    alpha.start_agent();
    assert_eq!(alpha.end_agent("TERM").code(), Some(0));
    alpha.run(&["status"]).failed(5, "no agent answers");
}

#[test]
fn the_control_socket_survives_nonsense() {
    let (_dir, mut alpha) = alpha();
    alpha.start_agent();
    let path = alpha.run_dir.join("control.sock");
    let endless = vec![b'x'; 200_000];
    let nested = "[".repeat(60_000) + "\n";
    let lines: [&[u8]; 6] = [
        b"\n",
        b"garbage\n",
        b"{\"verb\":7}\n",
        b"{\"verb\":\"nonsense\",\"target\":\"r0\"}\n",
        nested.as_bytes(),
        &endless,
    ];
    for line in lines {
        let mut stream = UnixStream::connect(&path).expect("connects");
        // The agent may close before it has taken everything.
        let _ = stream.write_all(line);
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.contains(r#""kind":"usage""#), "{answer}");
    }
    let mut halves = UnixStream::connect(&path).expect("connects");
    halves.write_all(b"{\"verb\":").expect("writes");
    drop(halves);
    alpha.run(&["status"]).ok();
}
