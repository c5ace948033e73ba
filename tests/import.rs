//! `import` through the real command: a how-to's files each, exit codes, what goes where.

mod node;

use std::path::{Path, PathBuf};

use node::{Node, Ran};
use tempfile::TempDir;

/// A copy of one folder of `tests/config/import`, and a node whose configuration will lie there.
fn copied(name: &str) -> (TempDir, Node) {
    let dir = tempfile::tempdir().expect("dir");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/import");
    for entry in std::fs::read_dir(from.join(name)).expect("fixtures") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copies");
    }
    let config = dir.path().join("lockstep.conf");
    let node = Node::new(dir.path(), "somebody", &config);
    (dir, node)
}

fn import(node: &Node, arguments: &[&str]) -> Ran {
    let mut line = vec!["import"];
    line.extend(arguments);
    node.run(&line)
}

/// What came out passes `check` for each of `names`.
fn checked(node: &Node, text: &str, names: &[&str]) {
    std::fs::write(&node.config, text).expect("writes");
    for name in names {
        let printed = node.run(&["check", "--node", name]).ok();
        assert!(printed.contains("1 resources, no errors"), "{printed}");
        assert!(!printed.contains("warning"), "{printed}");
    }
}

fn key_of(dir: &TempDir) -> PathBuf {
    dir.path().join("cluster.key")
}

#[test]
fn a_web_page_moves_once_its_resource_is_mended() {
    let (dir, node) = copied("web");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let res = path("web.res");
    let folder = dir.path().display().to_string();
    let arguments = ["drbd", &res, "heartbeat", &folder, "--vote", "manual"];
    let ran = import(&node, &arguments).failed(10, "web.res:2:5");
    assert!(ran.err.contains("web.res:6:49"), "{ran:?}");
    assert!(!key_of(&dir).exists());
    let text = std::fs::read_to_string(&res).expect("reads");
    let text = text.replace("diskinternal", "disk internal");
    std::fs::write(&res, text.replace("192.0.2.:", "192.0.2.7:")).expect("writes");
    let text = import(&node, &arguments).ok();
    checked(&node, &text, &["one.example.com", "two.example.com"]);
}

#[test]
fn an_nfs_server_is_asked_for_its_vote_and_addresses() {
    let (dir, node) = copied("nfs");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (common, res) = (path("global_common.conf"), path("files.res"));
    let folder = dir.path().display().to_string();
    let sources = ["drbd", &common, &res, "heartbeat", &folder];
    let ran = import(&node, &sources).failed(3, "3 things have to be chosen");
    assert!(ran.out.is_empty() && !key_of(&dir).exists(), "{ran:?}");
    let needs: Vec<&str> = ran
        .err
        .lines()
        .filter(|line| line.starts_with("need: "))
        .collect();
    assert_eq!(needs.len(), 3, "{needs:?}");
    let ran = node.run(&[&["import", "--json"], &sources[..]].concat());
    let error: serde_json::Value = serde_json::from_str(&ran.err).expect("json");
    assert_eq!((ran.code, &error["error"]["kind"]), (3, &"refused".into()));

    let mut arguments = sources.to_vec();
    arguments.extend(["--vote", "witness=third@192.0.2.3:7795"]);
    arguments.extend(["--address", "first=192.0.2.1:694"]);
    arguments.extend(["--address", "second=192.0.2.2:694"]);
    let ran = import(&node, &arguments);
    assert!(
        ran.err.contains("note: ") && !ran.out.contains("note: "),
        "{ran:?}"
    );
    let text = ran.ok();
    assert!(key_of(&dir).exists());
    checked(&node, &text, &["first", "second"]);
    // The key is kept, and so is everything else.
    let key = std::fs::read(key_of(&dir)).expect("key");
    assert_eq!(import(&node, &arguments).ok(), text);
    assert_eq!(std::fs::read(key_of(&dir)).expect("key"), key);
}

#[test]
fn a_copy_by_rsync_is_asked_for_its_disks() {
    let (dir, node) = copied("vrrp");
    let file = dir.path().join("keepalived.conf").display().to_string();
    let fence = ["--vote", "fence=/sbin/off"];
    let ran = import(&node, &[&["keepalived", &file], &fence[..]].concat());
    let ran = ran.failed(3, "need: --disk NODE=PATH");
    assert!(!ran.err.contains("need: --vote"), "{ran:?}");
    let mut arguments = vec!["keepalived", &file];
    arguments.extend(fence);
    arguments.extend(["--disk", "left=/dev/vdb", "--disk", "right=/dev/vdb"]);
    let text = import(&node, &arguments).ok();
    checked(&node, &text, &["left", "right"]);
    assert!(text.contains("fence-command \"/sbin/off\""), "{text}");
}

#[test]
fn sources_and_choices_are_checked() {
    let (dir, node) = copied("vrrp");
    let file = dir.path().join("keepalived.conf").display().to_string();
    import(&node, &[]).failed(2, "required");
    import(&node, &["x"]).failed(2, "of what program");
    import(&node, &["drbd"]).failed(2, "without what to read");
    import(&node, &["keepalived", &file, &file]).failed(2, "a second keepalived");
    import(&node, &["keepalived", &file, "--vote", "maybe"]).failed(2, "witness=NAME");
    import(&node, &["keepalived", &file, "--disk", "x"]).failed(2, "NODE=VALUE");
    import(&node, &["keepalived", "/none"]).failed(10, "cannot read /none");
}
