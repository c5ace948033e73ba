//! The command line from outside: exit codes, messages, bad input.

mod node;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use node::{Node, own_addresses};
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
    let [alpha, beta] = own_addresses();
    let dir = dir.display();
    format!(
        "resource r0 {{
    device nbd+unix:///r0?socket={dir}/nbd.sock;
    disk {dir}/alpha.img;
    meta-disk internal;
    on alpha {{ address {alpha}; node-id 0; }}
    on beta {{ address {beta}; node-id 1; disk {dir}/beta.img; }}
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

#[test]
fn what_failover_asks_for_is_not_started_without_it() {
    let (dir, mut alpha) = alpha();
    let good = configuration(dir.path());
    let managed = good.replace("    on alpha", "    failover { group g; }\n    on alpha");
    std::fs::write(&alpha.config, &managed).expect("writes");
    alpha.run(&["check"]).ok();
    std::fs::File::create(dir.path().join("alpha.img"))
        .and_then(|file| file.set_len(16 << 20))
        .expect("disk");
    alpha.run(&["create-md", "r0"]).ok();
    alpha.start_agent();
    let ran = alpha.run(&["up", "r0"]).failed(3, "not in this version");
    assert!(ran.err.contains("`failover`"), "{ran:?}");
    let fence = "cluster { fence-command \"/bin/true\"; }\n";
    std::fs::write(&alpha.config, format!("{fence}{good}")).expect("writes");
    alpha
        .run(&["up", "r0"])
        .failed(3, "`fence-command`: not in this");
    // Votes begin with the agent.
    let witness = "cluster { witness gamma { address 127.0.0.3:17795; } }\n";
    std::fs::write(&alpha.config, format!("{witness}{good}")).expect("writes");
    alpha.run(&["up", "r0"]).failed(3, "restart the agent");
    std::fs::write(&alpha.config, &good).expect("writes");
    alpha.run(&["up", "r0"]).ok();
}

#[test]
fn configuration_errors_exit_10_with_place_and_suggestion() {
    let (dir, alpha) = alpha();
    let good = configuration(dir.path());
    for (bad, place, hint) in [
        (
            good.replace("disk ", "dsik "),
            ":3:5",
            "did you mean `disk`?",
        ),
        (good.replace("node-id 0", "node-id x"), ":5:", "help: "),
        (
            good.trim_end().trim_end_matches('}').to_owned(),
            ":1:",
            "help: ",
        ),
        (
            good.replace(":7789; node-id 1", "; node-id 1"),
            ":6:",
            "help: ",
        ),
    ] {
        std::fs::write(&alpha.config, &bad).expect("writes");
        for verb in [&["check"][..], &["dump"], &["create-md", "r0"], &["agent"]] {
            let ran = alpha.run(verb).failed(10, place);
            assert!(ran.err.contains(hint), "{hint} is not in {ran:?}");
            assert!(ran.err.contains(" | "), "no marked line in {ran:?}");
        }
    }
    assert!(!alpha.run_dir.exists(), "nothing is written");
    std::fs::remove_file(&alpha.config).expect("removes");
    alpha.run(&["check"]).failed(10, "lockstep.conf");
}

#[test]
fn a_host_that_is_not_in_the_configuration_is_told_which_are() {
    let (dir, _alpha) = alpha();
    let gamma = Node::new(dir.path(), "gamma", &dir.path().join("lockstep.conf"));
    for verb in [&["agent"][..], &["create-md", "r0"]] {
        let ran = gamma.run(verb).failed(10, "gamma");
        assert!(ran.err.contains("alpha"), "{ran:?}");
    }
    // The file itself is sound, wherever it is looked at.
    gamma.run(&["check"]).ok();
}

#[test]
fn what_nobody_reads_any_more_ends() {
    let (_dir, mut alpha) = alpha();
    alpha.start_agent();
    for verb in [&["events"][..], &["status", "--watch"]] {
        let mut command = alpha.command(verb);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut stream = child.stdout.take().expect("piped");
        let mut first = [0; 3];
        stream.read_exact(&mut first).expect("prints");
        drop(stream);
        // Something to print.
        alpha.run(&["down", "r0"]).ok();
        alpha.run(&["up", "r0"]);
        let mut ended = None;
        node::wait_until("it ends", || {
            ended = child.try_wait().expect("waits");
            ended.is_some()
        });
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{verb:?}");
    }
}

#[test]
fn a_pair_without_a_key_is_told_how_to_get_one() {
    let (_dir, mut alpha) = alpha();
    let tells = |text: &str| {
        ["unauthenticated", "lockstep keygen", "lockstep adjust"]
            .iter()
            .all(|part| text.contains(part))
    };
    let checked = alpha.run(&["check"]).ok();
    assert!(tells(&checked), "{checked}");
    alpha.start_agent();
    node::wait_until("status says it", || tells(&alpha.run(&["status"]).ok()));
    assert!(tells(&alpha.log()), "{}", alpha.log());
}

#[test]
fn counters_are_shown_on_request() {
    let (_dir, mut alpha) = alpha();
    alpha.start_agent();
    for (options, shown) in [
        (&[][..], false),
        (&["--verbose"], true),
        (&["--statistics"], true),
        (&["--verbose", "--statistics"], true),
    ] {
        let words = [&["status"], options].concat();
        let text = alpha.run(&words).ok();
        assert_eq!(text.contains("upper-pending:"), shown, "{words:?}: {text}");
    }
}

#[test]
fn check_and_dump_say_what_counts() {
    let (dir, alpha) = alpha();
    let checked = alpha.run(&["check"]).ok();
    assert!(checked.contains("unauthenticated"), "{checked}");
    let text = alpha.run(&["dump"]).ok();
    assert!(text.contains("protocol C;"), "{text}");
    // What is printed is a configuration again, and says the same.
    let again = dir.path().join("again.conf");
    std::fs::write(&again, &text).expect("writes");
    let copy = Node::new(dir.path(), "alpha", &again);
    assert_eq!(copy.run(&["dump"]).ok(), text);
    let json: serde_json::Value =
        serde_json::from_str(&alpha.run(&["dump", "r0", "--json"]).ok()).expect("json");
    assert_eq!(json["resources"][0]["name"], "r0");
    alpha.run(&["dump", "r9"]).failed(2, "r9");
}

#[test]
fn metadata_is_created_once_and_shown() {
    let (dir, alpha) = alpha();
    alpha.run(&["create-md", "r0"]).failed(1, "alpha.img");
    let disk = dir.path().join("alpha.img");
    std::fs::write(&disk, []).expect("creates");
    alpha.run(&["create-md", "r0"]).failed(3, "at least");
    let file = std::fs::File::options()
        .write(true)
        .open(&disk)
        .expect("opens");
    file.set_len(16 << 20).expect("size");
    alpha
        .run(&["dump-md", "r0"])
        .failed(3, "no Lockstep metadata");
    assert!(alpha.run(&["create-md", "r0"]).ok().contains("usable"));
    let before = std::fs::read(&disk).expect("reads");
    let again = alpha.run(&["create-md", "r0"]).failed(3, "offset");
    assert!(
        again.err.contains("--force") && !again.err.contains("wipefs"),
        "no other tool knows our metadata: {again:?}"
    );
    assert!(
        before == std::fs::read(&disk).expect("reads"),
        "nothing is written"
    );
    alpha.run(&["create-md", "r0/0", "--force"]).ok();
    let shown = alpha.run(&["dump-md", "r0", "--json"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("json");
    assert_eq!(shown[0]["contents"]["node_id"], 0);
    alpha.run(&["create-md", "r0/7"]).failed(2, "no such");
    alpha
        .run(&["create-md", "r0", "--max-peers", "16"])
        .failed(2, "16");
}

#[test]
fn a_file_system_is_not_overwritten_without_force() {
    let (dir, alpha) = alpha();
    let disk = dir.path().join("alpha.img");
    let mut image = vec![0; 16 << 20];
    // The mark of an ext4 superblock.
    image[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&disk, &image).expect("writes");
    let ran = alpha.run(&["create-md", "r0"]).failed(3, "ext");
    assert!(ran.err.contains("1080"), "the offset is named: {ran:?}");
    assert!(
        image == std::fs::read(&disk).expect("reads"),
        "nothing is written"
    );
    alpha.run(&["create-md", "r0", "--force"]).ok();
}

#[test]
fn nothing_is_written_to_one_volume_when_another_is_refused() {
    let (dir, alpha) = alpha();
    let here = dir.path().display();
    let volume = |number: u8, meta: &str| {
        format!(
            "volume {number} {{ device nbd+unix:///{number}?socket={here}/{number}.sock; \
             disk {here}/{number}.img; meta-disk {meta}; }}\n"
        )
    };
    let [own, peer] = own_addresses();
    let hosts = format!("on alpha {{ address {own}; }} on beta {{ address {peer}; }}");
    let volumes = volume(0, "internal") + &volume(1, &format!("{here}/1.meta"));
    let text = format!("resource r0 {{ {hosts} {volumes} }}\n");
    std::fs::write(&alpha.config, text).expect("config");
    let empty = vec![0; 16 << 20];
    let mut ext4 = empty.clone();
    ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    for (name, image) in [("0.img", &empty), ("1.img", &ext4), ("1.meta", &empty)] {
        std::fs::write(dir.path().join(name), image).expect("writes");
    }
    let ran = alpha.run(&["create-md", "r0"]).failed(3, "ext");
    assert!(
        ran.err.contains("as it is") && !ran.err.contains("smaller"),
        "metadata elsewhere costs a file system nothing: {ran:?}"
    );
    for (name, image) in [("0.img", &empty), ("1.img", &ext4), ("1.meta", &empty)] {
        let now = std::fs::read(dir.path().join(name)).expect("reads");
        assert!(now == *image, "{name} was written");
    }
    alpha.run(&["create-md", "r0", "--force"]).ok();
    assert!(std::fs::read(dir.path().join("1.img")).expect("reads") == ext4);
}

#[test]
fn keys_are_private_and_not_replaced_by_accident() {
    use std::os::unix::fs::PermissionsExt;

    let (dir, alpha) = alpha();
    let key = dir.path().join("cluster.key");
    let cluster = format!("cluster {{ key-file {}; mode manual; }}\n", key.display());
    let text = cluster + &configuration(dir.path());
    std::fs::write(&alpha.config, text).expect("writes");
    alpha.run(&["check"]).failed(10, "cluster.key");
    alpha.run(&["keygen"]).ok();
    let first = std::fs::read_to_string(&key).expect("reads");
    assert_eq!(first.trim().len(), 64);
    let mode = std::fs::metadata(&key).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let checked = alpha.run(&["check"]).ok();
    assert!(!checked.contains("unauthenticated"), "{checked}");
    alpha.run(&["keygen"]).failed(3, "exists");
    assert_eq!(first, std::fs::read_to_string(&key).expect("reads"));
    alpha.run(&["keygen", "--rotate"]).ok();
    assert_ne!(first, std::fs::read_to_string(&key).expect("reads"));
    let open = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(&key, open).expect("chmod");
    alpha.run(&["check"]).failed(10, "cluster.key");
}
