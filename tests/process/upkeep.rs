//! What the agents do about the copies by themselves: results that are kept, handlers, and verifies
//! at a time of the week.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, send_signal, wait_until};
use crate::pair::{Pair, Plan, connected, noise, status, synced, wait_replaced, wait_status};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// Changes a disk past its data plane.
fn plant(disk: &Path, offset: u64) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk)
        .expect("opens");
    file.write_all_at(&[77], offset).expect("writes");
    file.sync_all().expect("syncs");
}

fn verify_of(node: &Node) -> Value {
    status(node)["connections"][0]["peer_devices"][0]["verify"].clone()
}

fn file(pair: &Pair, name: &str) -> String {
    fs::read_to_string(pair.dir.path().join(name)).unwrap_or_default()
}

/// A pair with these handlers, in which `$DIR` is the directory of the test.
fn with_handlers(words: &str) -> Pair {
    let mut pair = Pair::files(Plan::default());
    let dir = pair.dir.path().display().to_string();
    let words = words.replace("$DIR", &dir);
    pair.reconfigure(|plan| plan.more = format!("handlers {{ {words} }}"));
    pair.start().sync()
}

#[test]
fn the_result_of_a_verify_outlives_data_plane_and_agent() {
    let mut pair = Pair::in_sync(Plan::default());
    plant(&pair.disk("beta"), 8 * MIB);
    let ran = pair.alpha.run(&["verify", "r0", "--wait"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let kept = |verify: &Value| {
        assert_eq!(verify["state"], "done", "{verify:#}");
        assert_eq!(verify["found-kib"], 4);
        assert_eq!(verify["ranges"], json!([{ "start": 8192, "length": 4 }]));
        assert_eq!(verify["algorithm"], "crc32c");
        let ended = verify["ended"].as_str().unwrap_or_default();
        assert!(ended.contains('T') && ended.ends_with('Z'), "{ended}");
        assert!(verify["compared-kib"].as_u64() > Some(60 << 10));
    };
    wait_until("it is kept", || verify_of(&pair.alpha)["ended"].is_string());
    kept(&verify_of(&pair.alpha));
    let plane = pair.alpha.plane("r0").expect("runs");
    send_signal(plane, "KILL");
    wait_replaced(&pair.alpha, plane);
    connected(&pair.alpha);
    kept(&verify_of(&pair.alpha));
    pair.alpha.crash();
    pair.alpha.start_agent();
    kept(&verify_of(&pair.alpha));
    connected(&pair.alpha);
    synced(&pair.alpha);
    let report = pair.alpha.run(&["report", "r0"]).ok();
    assert!(report.contains("4 KiB differ"), "{report}");
    // Taken down, it can still be read.
    pair.alpha.run(&["down", "r0"]).ok();
    kept(&verify_of(&pair.alpha));
    pair.alpha.run(&["up", "r0"]).ok();
    connected(&pair.alpha);
    // A sync of everything mends what was found.
    pair.beta.run(&["invalidate", "r0"]).ok();
    wait_status(&pair.alpha, "mended", SOON, |now| {
        let verify = &now["connections"][0]["peer_devices"][0]["verify"];
        verify["found-kib"] == 0 && verify["ranges"] == json!([])
    });
    synced(&pair.alpha);
    // And a new run says something new.
    pair.alpha.run(&["verify", "r0", "--wait"]).ok();
    assert_eq!(verify_of(&pair.alpha)["found-kib"], 0);
}

#[test]
fn a_resync_of_what_was_found_takes_it_off_the_list() {
    let pair = Pair::in_sync(Plan::default());
    plant(&pair.disk("beta"), 8 * MIB);
    plant(&pair.disk("beta"), 16 * MIB);
    assert_eq!(pair.alpha.run(&["verify", "r0", "--wait"]).code, 1);
    pair.beta.run(&["disconnect", "r0"]).ok();
    let mut nbd = pair.nbd("alpha");
    nbd.write(8 * MIB, &[5; 4096]).expect("writes");
    nbd.flush().expect("flushes");
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.beta);
    synced(&pair.beta);
    wait_status(&pair.alpha, "one is left", SOON, |now| {
        let verify = &now["connections"][0]["peer_devices"][0]["verify"];
        verify["ranges"] == json!([{ "start": 16 << 10, "length": 4 }])
    });
}

#[test]
fn a_handler_runs_to_its_end_before_a_sync_overwrites_the_first_block() {
    let pair = with_handlers(
        "before-resync-target \"sleep 2; cmp -n 8388608 $DIR/beta.img $DIR/before && \
         echo $DRBD_RESOURCE/$DRBD_VOLUME >>$DIR/before.log\"; \
         after-resync-target \"echo $LOCKSTEP_HANDLER $LOCKSTEP_ROLE >>$DIR/after.log\";",
    );
    // The first sync made a copy whole that was not: there was nothing to keep.
    assert_eq!(file(&pair, "before.log"), "");
    wait_until("the end of the first sync is told", || {
        file(&pair, "after.log") == "after-resync-target Secondary\n"
    });
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &noise(MIB as usize, 1)).expect("writes");
    nbd.flush().expect("flushes");
    pair.beta.run(&["disconnect", "r0"]).ok();
    fs::copy(pair.disk("beta"), pair.dir.path().join("before")).expect("copies");
    nbd.write(MIB / 2, &noise(MIB as usize, 2)).expect("writes");
    nbd.flush().expect("flushes");
    pair.beta.run(&["connect", "r0"]).ok();
    wait_status(&pair.beta, "waits", SOON, |now| {
        let link = &now["connections"][0];
        let reason = link["reason"].as_str().unwrap_or_default();
        link["connection-state"] == "Unconnected" && reason.contains("before-resync-target")
    });
    // Writes go on here, and reach the copy only afterwards.
    nbd.write(4 * MIB, &noise(4096, 3)).expect("writes");
    pair.beta
        .run(&["wait-connect", "r0", "--timeout", "60"])
        .ok();
    synced(&pair.beta);
    assert_eq!(file(&pair, "before.log"), "r0/0\n", "{}", pair.beta.log());
    wait_until("its end is told", || {
        file(&pair, "after.log").lines().count() == 2
    });
    drop(nbd);
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.assert_identical();
}

#[test]
fn a_sync_does_not_begin_when_its_handler_fails_and_there_is_a_way_on() {
    let mut pair = with_handlers("before-resync-target \"test -e $DIR/ready || exit 7\";");
    let behind = |pair: &Pair| {
        pair.beta.run(&["disconnect", "r0"]).ok();
        pair.nbd("alpha").write(0, &[5; 4096]).expect("writes");
        pair.beta.run(&["connect", "r0"]).ok();
    };
    let refused = |node: &Node| {
        wait_status(node, "refused", SOON, |now| {
            let link = &now["connections"][0];
            let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
            text("connection-state") == "StandAlone"
                && text("reason").contains("ended with exit status: 7")
                && text("help").contains("lockstep connect r0")
        });
    };
    behind(&pair);
    refused(&pair.beta);
    assert_eq!(status(&pair.beta)["devices"][0]["disk-state"], "Outdated");
    let ran = pair.beta.run(&["wait-connect", "r0", "--timeout", "20"]);
    ran.failed(3, "the sync onto this node does not begin");
    // It is tried again with every order to connect, and by the next agent and data plane.
    pair.beta.run(&["connect", "r0"]).ok();
    refused(&pair.beta);
    let failures = |pair: &Pair| pair.beta.log().matches("handler failed").count();
    wait_until("twice", || failures(&pair) == 2);
    pair.beta.end_agent("KILL");
    pair.beta.start_agent();
    wait_until("three times", || failures(&pair) == 3);
    refused(&pair.beta);
    fs::write(pair.dir.path().join("ready"), "").expect("writes");
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.beta);
    synced(&pair.beta);
    // Without the handler nothing waits; the change counts at once.
    fs::remove_file(pair.dir.path().join("ready")).expect("removes");
    behind(&pair);
    refused(&pair.beta);
    pair.reconfigure(|plan| plan.more.clear());
    let report = pair.beta.run(&["adjust", "r0"]).ok();
    assert!(report.contains("handlers"), "{report}");
    pair.beta.run(&["connect", "r0"]).ok();
    connected(&pair.beta);
    synced(&pair.beta);
}

#[test]
fn differences_are_told_to_the_handler_for_them() {
    let pair = with_handlers(
        "out-of-sync \"echo $DRBD_RESOURCE/$DRBD_VOLUME $LOCKSTEP_FOUND_KIB >>$DIR/oos.log\";",
    );
    pair.alpha.run(&["verify", "r0", "--wait"]).ok();
    plant(&pair.disk("beta"), 8 * MIB);
    assert_eq!(pair.alpha.run(&["verify", "r0", "--wait"]).code, 1);
    wait_until("told", || !file(&pair, "oos.log").is_empty());
    assert_eq!(file(&pair, "oos.log"), "r0/0 4\n");
    assert!(pair.alpha.log().contains("handler ended with exit code 0"));
}

/// A time zone in which it is 02:59 and so many seconds now.
fn zone(seconds: u64) -> String {
    let day = std::time::UNIX_EPOCH.elapsed().expect("a time").as_secs() % 86_400;
    let local = 2 * 3600 + 59 * 60 + seconds;
    // What a zone of this form adds to its own time gives UTC; it lies within a day.
    let west = (day + 86_400 - local) % 86_400;
    format!("TST{}:{:02}:{:02}", west / 3600, west / 60 % 60, west % 60)
}

#[test]
fn a_verify_begins_at_its_time_on_one_node_of_the_pair() {
    let mut pair = Pair::in_sync(Plan {
        net: "timeout 9; connect-int 1; verify-schedule \"daily 03:00\"; verify-alg xxh3;"
            .to_owned(),
        ..Plan::default()
    });
    plant(&pair.disk("beta"), 8 * MIB);
    let zone = zone(50);
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.end_agent("KILL");
        node.variables = vec![("TZ".to_owned(), zone.clone())];
        node.start_agent();
    }
    let report = pair.alpha.run(&["report"]).ok();
    assert!(report.contains("next verify: "), "{report}");
    assert!(report.contains("03:00"), "{report}");
    let found = |node: &Node| verify_of(node)["found-kib"] == 4;
    wait_until("it is time", || found(&pair.alpha));
    let begun = |node: &Node| node.log().matches("verify begun by schedule").count();
    assert_eq!((begun(&pair.alpha), begun(&pair.beta)), (1, 0));
    assert_eq!(verify_of(&pair.alpha)["algorithm"], "xxh3");
    assert_eq!(verify_of(&pair.beta)["state"], "idle");
    // The agents come back within the hour: this time was seen to.
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.end_agent("KILL");
        node.start_agent();
    }
    connected(&pair.alpha);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((begun(&pair.alpha), begun(&pair.beta)), (1, 0));
}

/// Name with labels, and value, of every sample; the text must be OpenMetrics as a scraper reads
/// it.
fn samples(text: &str) -> Vec<(String, f64)> {
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.pop(), Some("# EOF"), "{text}");
    let mut families: Vec<(&str, &str)> = Vec::new();
    let mut samples = Vec::new();
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let [kind, name, rest] = words.as_slice() else {
                panic!("{line}");
            };
            assert!(matches!(*kind, "HELP" | "TYPE" | "UNIT"), "{line}");
            if *kind == "TYPE" {
                assert!(
                    families.iter().all(|(known, _)| known != name),
                    "twice: {line}"
                );
                families.push((name, rest));
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect(line);
        let (family, kind) = families.last().expect("a type first");
        let base = name.split('{').next().unwrap_or(name);
        let expected = match *kind {
            "counter" => format!("{family}_total"),
            _ => (*family).to_owned(),
        };
        assert_eq!(base, expected, "{line}");
        let value: f64 = value.parse().expect(line);
        assert!(
            samples.iter().all(|(known, _)| known != name),
            "twice: {line}"
        );
        samples.push((name.to_owned(), value));
    }
    samples
}

#[test]
fn metrics_say_what_status_says() {
    let pair = Pair::in_sync(Plan::default());
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &[5; 65_536]).expect("writes");
    nbd.flush().expect("flushes");
    plant(&pair.disk("beta"), 8 * MIB);
    assert_eq!(pair.alpha.run(&["verify", "r0", "--wait"]).code, 1);
    wait_until("it is kept", || verify_of(&pair.alpha)["ended"].is_string());
    let samples = samples(&pair.alpha.run(&["metrics"]).ok());
    let value = |name: &str| {
        let found = samples.iter().find(|(sample, _)| sample == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
            .1
    };
    let device = r#"{resource="r0",volume="0"}"#;
    let peer = r#"{resource="r0",peer="beta",volume="0"}"#;
    let now = status(&pair.alpha);
    let size = now["devices"][0]["size"].as_f64().expect("a size") * 1024.0;
    assert_eq!(value(&format!("lockstep_device_size_bytes{device}")), size);
    assert_eq!(
        value(&format!("lockstep_device_written_bytes_total{device}")),
        65_536.0
    );
    assert_eq!(value(&format!("lockstep_device_open{device}")), 1.0);
    assert_eq!(
        value(r#"lockstep_resource_role{resource="r0",state="Primary"}"#),
        1.0
    );
    assert_eq!(
        value(r#"lockstep_connection_state{resource="r0",peer="beta",state="Connected"}"#),
        1.0
    );
    assert_eq!(
        value(&format!("lockstep_peer_device_verify_found_bytes{peer}")),
        4096.0
    );
    assert_eq!(
        value(&format!("lockstep_peer_device_out_of_sync_bytes{peer}")),
        0.0
    );
    let ended = value(&format!(
        "lockstep_peer_device_verify_end_timestamp_seconds{peer}"
    ));
    let seconds = std::time::UNIX_EPOCH
        .elapsed()
        .expect("a time")
        .as_secs_f64();
    assert!(
        (0.0..600.0).contains(&(seconds - ended)),
        "{ended} {seconds}"
    );
    let latency =
        r#"lockstep_device_latency_seconds{resource="r0",volume="0",of="write",quantile="1"}"#;
    assert!(value(latency) > 0.0);
    // What belongs to a fault report.
    let report = pair.alpha.run(&["report", "r0", "--flight-recorder"]).ok();
    assert!(report.contains("  flight recorder"), "{report}");
    assert!(report.contains("action complete"), "{report}");
    assert!(report.contains("verify:done"), "{report}");
    let report = pair.alpha.run(&["report", "r0", "--json"]).ok();
    let report: Value = serde_json::from_str(&report).expect("json");
    let verify = &report[0]["volumes"][0]["verify"];
    assert_eq!(verify["result"]["found-kib"], 4, "{report:#}");
    assert!(report[0]["volumes"][0]["sync"]["copied-kib"].as_u64() > Some(0));
}
