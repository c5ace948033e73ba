//! Style that a machine can check: what is banned, how long a file may be, and that the README
//! names folders that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files have become two things.
const MAX_LINES: usize = 1250;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn all(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for folder in folders {
        sources(&root().join(folder), &mut paths);
    }
    assert!(paths.len() > 10, "the folders hold sources");
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("source");
            (path, text)
        })
        .collect()
}

/// Product code: what stands before the tests of a file, in files that are not tests themselves.
fn product(path: &Path, text: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let test_file = name.contains("test")
        || ["pair.rs", "strategies.rs", "conformance.rs"].contains(&name)
        || path
            .components()
            .any(|c| c.as_os_str() == "conformance" || c.as_os_str() == "pair");
    if test_file {
        return None;
    }
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    Some(text[..end].to_owned())
}

fn found(banned: &[&str], folders: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in all(folders) {
        let Some(code) = product(&path, &text) else {
            continue;
        };
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("//") {
                continue;
            }
            hits.extend(
                banned
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}:{}: {word}", path.display(), number + 1)),
            );
        }
    }
    hits
}

#[test]
fn product_code_does_not_panic_on_purpose() {
    let banned = [
        ".unwrap()",
        ".expect(",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
    ];
    let hits = found(&banned, &["src", "transport/src"]);
    assert!(hits.is_empty(), "{hits:#?}");
}

#[test]
fn the_engine_knows_nothing_but_itself() {
    let banned = [
        "std::io",
        "std::fs",
        "std::net",
        "std::thread",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "crate::store",
        "crate::reactor",
        "crate::target",
        "crate::agent",
        "crate::config",
        "lockstep_transport",
        "getrandom",
    ];
    let hits = found(&banned, &["src/engine"]);
    assert!(hits.is_empty(), "{hits:#?}");
}

#[test]
fn unsafe_stays_at_the_edges() {
    let edges = [
        "src/reactor",
        "src/target/ublk",
        "src/target/nbd",
        "transport/src/tcp.rs",
        "transport/src/payloads.rs",
        "transport/src/conformance",
        "bench/src",
        "src/store/device.rs",
    ];
    for (path, text) in all(&["src", "transport/src", "bench/src", "tests/simulator"]) {
        let place = path
            .strip_prefix(root())
            .expect("inside")
            .display()
            .to_string();
        if edges.iter().any(|edge| place.starts_with(edge)) {
            continue;
        }
        let uses = text
            .lines()
            .any(|l| !l.trim_start().starts_with("//") && l.contains("unsafe {"));
        assert!(!uses, "{place} uses unsafe");
    }
}

#[test]
fn files_stay_readable() {
    for (path, text) in all(&["src", "transport/src", "bench/src", "tests"]) {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
        assert!(text.is_ascii(), "{} is not ASCII", path.display());
    }
}

#[test]
fn the_readme_names_what_exists() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README");
    for line in readme.lines().filter(|line| line.starts_with("| `")) {
        let name = line.split('`').nth(1).expect("a name");
        if name.ends_with('/') {
            assert!(root().join(name).is_dir(), "{name}");
        }
    }
    for link in [
        "src/store/FORMAT.md",
        "src/config/FAILOVER.md",
        "transport/WIRE.md",
    ] {
        assert!(
            readme.contains(link) && root().join(link).is_file(),
            "{link}"
        );
    }
}
