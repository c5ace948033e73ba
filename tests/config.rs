//! The configuration from outside: messages word by word, and what holds for every text.
//!
//! `tests/config/bad/NAME.conf` must be refused with exactly the messages in `NAME.txt`; with
//! `BLESS=1` in the environment the messages are written instead, to be read before they are kept.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep::config::{Config, DiagnosticKind, dump};
use proptest::prelude::*;

const PAIR: &str = "tests/config/pair.conf";
const CLUSTER: &str = "tests/config/cluster.conf";
const OLD: &str = "tests/config/include.d/old.res";

fn messages(path: &Path) -> String {
    match Config::load(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(errors) => errors.iter().map(|error| format!("{error}\n")).collect(),
    }
}

#[test]
fn bad_files_get_their_messages() {
    let mut names: Vec<PathBuf> = fs::read_dir("tests/config/bad")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "conf"))
        .collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    for path in names {
        let expected = path.with_extension("txt");
        let found = messages(&path);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        assert_eq!(
            found,
            fs::read_to_string(&expected).unwrap(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_message_has_its_parts() {
    for entry in fs::read_dir("tests/config/bad").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "conf") {
            continue;
        }
        for error in Config::load(&path).unwrap_err() {
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 4, "{text}");
            let place = format!("error: {}:", path.display());
            assert!(lines[0].starts_with(&place), "{text}");
            assert!(
                lines[2].trim_start().starts_with('|') && lines[2].contains('^'),
                "{text}"
            );
            assert!(
                lines[3].len() > "help: ".len() && lines[3].starts_with("help: "),
                "{text}"
            );
        }
    }
}

#[test]
fn the_example_is_read_whole() {
    let config = Config::load(Path::new(PAIR)).unwrap();
    let names: Vec<&str> = config.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["old", "web", "mail"]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let web = config.resource("web").unwrap();
    assert_eq!(
        web.net.shared_secret.as_deref(),
        Some("a \"quoted\" secret; with # and {braces}")
    );
    let local = web.for_node("beta").unwrap();
    assert_eq!(local.own.volumes[0].disk.value, Path::new("/dev/vg1/web"));
    assert_eq!((local.own.node_id, local.peer.node_id), (1, 0));
}

/// The dump of a file, which says the same as the file.
fn dumped(path: &str) -> String {
    let config = Config::load(Path::new(path)).unwrap_or_else(|errors| {
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("{}", messages.join("\n"))
    });
    let text = dump::text(&config);
    let again = Config::parse_str("dump", &text).unwrap_or_else(|errors| {
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("{}\n{text}", messages.join("\n"))
    });
    assert_eq!(config, again, "{text}");
    assert_eq!(text, dump::text(&again));
    assert_eq!(dump::json(&config), dump::json(&again));
    text
}

#[test]
fn a_dump_says_the_same_and_has_every_default() {
    let text = dumped(PAIR);
    for line in [
        "ko-count 7;",
        "ping-timeout 250ms;",
        "al-extents 1237;",
        "after-sb-0pri disconnect;",
        "lease 3s;",
        "mode manual;",
        "services 15s;",
        "# no failover section: start-policy auto, promoted by hand",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

#[test]
fn a_dump_has_every_default_of_failover() {
    let text = dumped(CLUSTER);
    for line in [
        "warn-after 300ms;",
        "boot-wait 10s;",
        "path [fd00::1]:7794 dev eth1;",
        "address 10.0.0.3:7795;",
        "watchdog /dev/watchdog0 timeout 1s;",
        "mail \"ops@example.com\" via \"/usr/sbin/sendmail\";",
        "mount /srv/mail volume 0 fstype auto options defaults fsck auto;",
        "failback when-stable 300s;",
        "restarts 0;",
        "restarts 3;",
        "then fence;",
        "then fail-io;",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    let json = dump::json(&Config::load(Path::new(CLUSTER)).unwrap());
    assert_eq!(json["cluster"]["mode"], "witness");
    assert_eq!(json["cluster"]["heartbeat"]["margin"], 500);
    let web = &json["resources"][0]["failover"];
    assert_eq!(web["steps"][1]["step"], "service");
    assert_eq!(web["steps"][1]["timeout"], 3000);
    assert_eq!(web["failback-when-stable"], 300_000);
    assert_eq!(web["managed"], true);
}

#[test]
fn equality_sees_a_difference() {
    let config = Config::load(Path::new(PAIR)).unwrap();
    let text = dump::text(&config).replacen("ko-count 7", "ko-count 6", 1);
    assert_ne!(config, Config::parse_str("dump", &text).unwrap());
}

#[test]
fn an_included_file_is_named_in_messages() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.res"), "\n  resorce x { }\n").unwrap();
    let main = dir.path().join("main.conf");
    fs::write(&main, "include \"*.res\";\n").unwrap();
    let errors = Config::load(&main).unwrap_err();
    assert!(matches!(*errors[0].kind, DiagnosticKind::Unknown { .. }));
    let place = errors[0].location.as_ref().unwrap();
    assert!(place.file.ends_with("a.res"), "{}", place.file);
    assert_eq!((place.line, place.column), (2, 3));
    assert_eq!(errors[0].help(), "did you mean `resource`?");
}

/// What is done to a good file.
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize, usize),
    Insert(usize, String),
    /// Copies a piece to another place.
    Copy(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let word = prop_oneof![
        "[a-z-]{0,9}",
        "[ -~]{0,4}",
        "\\PC{0,3}",
        prop::sample::select(vec![
            "{",
            "}",
            ";",
            "\"",
            "#",
            "\n",
            "skip ",
            "volume 1 {",
            "on x {",
            "net {",
            "0",
            "4294967296K",
            "[0]",
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![
        (any::<usize>(), 0..40usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        (any::<usize>(), word).prop_map(|(at, text)| Edit::Insert(at, text)),
        (any::<usize>(), 0..120usize, any::<usize>())
            .prop_map(|(from, len, to)| Edit::Copy(from, len, to)),
    ]
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        let size = chars.len() + 1;
        match edit {
            Edit::Remove(at, len) => {
                let at = at % size;
                chars.drain(at..(at + len).min(size - 1));
            }
            Edit::Insert(at, text) => {
                chars.splice(at % size..at % size, text.chars());
            }
            Edit::Copy(from, len, to) => {
                let from = from % size;
                let piece: Vec<char> = chars[from..(from + len).min(size - 1)].to_vec();
                chars.splice(to % size..to % size, piece);
            }
        }
    }
    chars.into_iter().collect()
}

/// A text is read or refused with messages that can be shown; what is read survives a dump.
fn survives(text: &str) {
    match Config::parse_str("fuzz", text) {
        Ok(config) => {
            let dumped = dump::text(&config);
            let again = Config::parse_str("dump", &dumped);
            assert_eq!(Ok(&config), again.as_ref(), "{text}\n---\n{dumped}");
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                let text = error.to_string();
                assert!(
                    text.starts_with("error: ") && text.contains("\nhelp: "),
                    "{text}"
                );
                assert!(
                    !text
                        .chars()
                        .any(|c| c.is_control() && c != '\n' && c != '\t'),
                    "{text:?}"
                );
            }
        }
    }
}

/// The include is taken out: it would read the same files in every case.
fn example() -> String {
    let pair = fs::read_to_string(PAIR)
        .unwrap()
        .replace("include \"include.d/*.res\";", "");
    pair + &fs::read_to_string(OLD).unwrap()
}

#[test]
fn the_text_that_is_mutated_is_good() {
    assert!(Config::parse_str("example", &example()).is_ok());
    survives(&example());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_words_never_panic(words in prop::collection::vec(
        prop::sample::select(vec![
            "resource", "r0", "on", "alpha", "beta", "{", "}", ";", "net", "disk", "volume", "0",
            "device", "/dev/ublkb0", "address", "10.0.0.1:7789", "meta-disk", "internal", "skip",
            "cluster", "node", "node-id", "common", "global", "failover", "\"", "\n", "protocol",
            "C", "syncer", "include",
        ]), 0..80)) {
        survives(&words.join(" "));
    }

    #[test]
    fn mutated_files_never_panic_and_dump_to_themselves(
        edits in prop::collection::vec(edit(), 0..5),
    ) {
        survives(&apply(&example(), &edits));
        survives(&apply(&fs::read_to_string(CLUSTER).unwrap(), &edits));
    }

    #[test]
    fn options_survive_a_dump(
        protocol in "[abcABC]",
        timeout in 100..5000u64,
        ko_count in 0..=200u32,
        buffer in 0..=(128u64 << 20),
        secret in "[ -~\\PC\t]{1,63}",
        extents in 67..=65534u32,
        minor in 0..1_048_576u32,
        volume in any::<u16>(),
    ) {
        let quoted = secret.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!(
            "resource r {{ net {{ protocol {protocol}; timeout {timeout}ms; ko-count {ko_count}; \
             sndbuf-size {buffer}; shared-secret \"{quoted}\"; }} disk {{ al-extents {extents}; }} \
             volume {volume} {{ device minor {minor}; disk /d; }} \
             on a {{ address 10.0.0.1:1; }} on b {{ address 10.0.0.2:1; }} }}"
        );
        let config = Config::parse_str("f", &text).unwrap();
        let net = &config.resources[0].net;
        prop_assert_eq!(net.shared_secret.as_deref(), Some(secret.as_str()));
        prop_assert_eq!(net.timeout.as_millis() as u64, timeout);
        prop_assert_eq!(net.send_buffer, buffer);
        survives(&text);
    }
}
