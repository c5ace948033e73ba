//! Every page of `kernel-notes` names its probe and a test that exists.

use std::fs;
use std::path::Path;

/// Lines that a page must have, each with something behind the colon.
const LINES: [&str; 4] = ["First version:", "Probe:", "Without it:", "Proven by:"];

fn check(root: &Path, text: &str) -> Result<(), String> {
    for name in LINES {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.next().map(str::trim).unwrap_or_default();
        if value.is_empty() {
            return Err(format!("no line '{name}'"));
        }
        if lines.next().is_some() {
            return Err(format!("two lines '{name}'"));
        }
        if name == "Proven by:" {
            proof_exists(root, value)?;
        }
    }
    Ok(())
}

/// `path "quoted step"` or `path test_name`: the file exists and contains the name.
fn proof_exists(root: &Path, proof: &str) -> Result<(), String> {
    let (path, rest) = proof
        .split_once(' ')
        .ok_or("a proof is a path and a name")?;
    let name = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    };
    let name = name.filter(|name| !name.is_empty()).ok_or("no name")?;
    let file = fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))?;
    match file.contains(name) {
        true => Ok(()),
        false => Err(format!("{path} has no '{name}'")),
    }
}

#[test]
fn kernel_notes_name_probe_and_proof() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = 0;
    for entry in fs::read_dir(root.join("kernel-notes")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name == "README.md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if let Err(problem) = check(root, &text) {
            panic!("{}: {problem}", path.display());
        }
        pages += 1;
    }
    assert!(pages > 0);
}

#[test]
fn the_check_finds_what_is_missing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |proof: &str| {
        format!("First version: 6.0\nProbe: a bit\nWithout it: refused\nProven by: {proof}\n")
    };
    let good = page("tests/kernel_notes.rs the_check_finds_what_is_missing");
    assert_eq!(check(root, &good), Ok(()));
    assert!(check(root, &good.replace("Probe", "Prob")).is_err());
    assert!(check(root, &good.replace("a bit", "")).is_err());
    assert!(check(root, &page("tests/no-such-file name")).is_err());
    // Put together here, or the file would contain it.
    let absent = ["no_such", "_test"].concat();
    assert!(check(root, &page(&format!("tests/kernel_notes.rs {absent}"))).is_err());
}
