//! `lockstep demo` as a user runs it: the last line, the exit code, and what is left behind.

mod node;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::{Ran, send_signal, wait_until};
use tempfile::TempDir;

fn demo(words: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.arg("demo").args(words).arg("--dir").arg(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(words: &[&str], dir: &Path) -> Ran {
    demo(words, dir).output().expect("starts").into()
}

fn last_line(ran: &Ran) -> &str {
    ran.out.lines().last().unwrap_or_default()
}

/// Processes whose command line names a path in `dir`.
fn processes(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let wanted = dir.as_os_str().as_bytes();
        command.windows(wanted.len()).any(|part| part == wanted)
    })
    .collect()
}

fn nothing_is_left(dir: &TempDir) {
    assert_eq!(processes(dir.path()), Vec::<u32>::new());
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
}

/// The figures of a `demo: PASS` line.
fn figures(line: &str) -> BTreeMap<&str, u64> {
    let rest = line.strip_prefix("demo: PASS ").expect(line);
    let pairs = rest
        .split(' ')
        .map(|pair| pair.split_once('=').expect(line));
    pairs
        .map(|(key, value)| (key, value.parse().expect(line)))
        .collect()
}

#[test]
fn the_story_holds() {
    let dir = tempfile::tempdir().expect("dir");
    let ran = run(&["--size", "64M"], dir.path());
    assert_eq!(ran.code, 0, "{ran:?}");
    let figures = figures(last_line(&ran));
    let keys: Vec<&str> = figures.keys().copied().collect();
    let expected = [
        "acked",
        "lost",
        "resynced_kib",
        "takeover_ms",
        "verified_kib",
    ];
    assert_eq!(keys, expected, "{ran:?}");
    assert_eq!(figures["lost"], 0);
    // The 8 MiB of the survivor, and load before it.
    assert!(figures["acked"] > 2048 + 100, "{figures:?}");
    assert!(figures["resynced_kib"] >= 8 << 10, "{figures:?}");
    assert!(figures["resynced_kib"] < 32 << 10, "{figures:?}");
    // The disk without its metadata.
    assert!(
        (63 << 10..64 << 10).contains(&figures["verified_kib"]),
        "{figures:?}"
    );
    assert!(figures["takeover_ms"] > 0, "{figures:?}");
    // The product's own verify, and how far syncs and verify are: a log has that too.
    let told = |parts: &[&str]| {
        let holds = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(ran.out.lines().any(holds), "{parts:?} in {ran:?}");
    };
    told(&["online verify"]);
    let compared = format!("{} KiB in ", figures["verified_kib"]);
    told(&[&compared, "s: 0 KiB differ, 0 KiB skipped"]);
    told(&["% ", " of ", "iB"]);
    for protocol in ["A ", "B ", "C "] {
        let told = ran
            .out
            .lines()
            .any(|line| line.trim_start().starts_with(protocol));
        assert!(told, "no latency of {protocol}in {ran:?}");
    }
    assert!(
        !ran.out.contains('\u{1b}'),
        "a log needs no cursor movements"
    );
    nothing_is_left(&dir);
}

#[test]
fn an_interrupted_demo_cleans_up() {
    for (signal, sign) in [("INT", "[1/"), ("TERM", "[2/")] {
        let dir = tempfile::tempdir().expect("dir");
        let seen = dir.path().with_extension("out");
        let out = fs::File::create(&seen).expect("creates");
        let mut child = demo(&["--size", "32M"], dir.path())
            .stdout(out)
            .spawn()
            .expect("starts");
        let told = || fs::read_to_string(&seen).unwrap_or_default();
        wait_until("the story begins", || told().contains(sign));
        std::thread::sleep(Duration::from_millis(300));
        send_signal(child.id(), signal);
        let status = child.wait().expect("ends");
        let text = told();
        fs::remove_file(&seen).expect("removes");
        assert_eq!(status.code(), Some(1), "{text}");
        assert_eq!(
            text.lines().last(),
            Some("demo: FAIL interrupted"),
            "{text}"
        );
        nothing_is_left(&dir);
    }
}

#[test]
fn bad_input_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().expect("dir");
    run(&["--size", "12"], dir.path()).failed(2, "32M to 64G");
    run(&["--size", "1T"], dir.path()).failed(2, "unknown unit");
    let file = dir.path().join("precious");
    fs::write(&file, "data").expect("writes");
    let ran = run(&[], dir.path());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(last_line(&ran).starts_with("demo: FAIL "), "{ran:?}");
    assert!(last_line(&ran).contains("not empty"), "{ran:?}");
    assert_eq!(fs::read(&file).expect("there"), b"data");
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
}
