//! How far syncs and verifies are, while they run and when they have ended.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::node::{Node, wait_until};
use crate::pair::{Pair, Plan, status, synced, wait_status};

const SOON: Duration = Duration::from_secs(60);

fn peer(now: &Value) -> &Value {
    &now["connections"][0]["peer_devices"][0]
}

/// A verb that goes on until it is killed, and what it prints.
struct Stream {
    child: Child,
    path: PathBuf,
}

impl Stream {
    fn begin(pair: &Pair, node: &Node, words: &[&str]) -> Stream {
        let path = pair.dir.path().join(format!("{}.stream", node.name));
        let out = File::create(&path).expect("creates");
        let child = node.command(words).stdout(out).spawn().expect("starts");
        Stream { child, path }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).expect("reads")
    }

    /// The lines with that word, once there are any.
    fn lines(&self, word: &str) -> Vec<String> {
        wait_until(word, || self.text().contains(word));
        let text = self.text();
        let of = text.lines().filter(|line| line.contains(word));
        of.map(str::to_owned).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_has_ended_leaves_one_line_with_totals() {
    let pair = Pair::in_sync(Plan {
        net: "timeout 9; connect-int 1; csums-alg sha256;".to_owned(),
        ..Plan::default()
    });
    let size = status(&pair.alpha)["devices"][0]["size"].clone();
    let [alpha, beta] = [&pair.alpha, &pair.beta].map(|node| {
        let stream = Stream::begin(&pair, node, &["events"]);
        stream.lines("exists -");
        stream
    });
    pair.beta.run(&["invalidate", "r0"]).ok();
    for (stream, node) in [(&alpha, &pair.alpha), (&beta, &pair.beta)] {
        let lines = stream.lines("resync:");
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = &lines[0];
        assert!(line.starts_with("change peer-device name:r0 "), "{line}");
        let totals = format!(" volume:0 resync:done copied-kib:0 equal-kib:{size} seconds:");
        assert!(line.contains(&totals), "{line}");
        assert!(line.contains(" rate-kib-s:"), "{line}");
        let logged = format!("in sync; 0 KiB copied, {size} KiB found equal, in ");
        // One of the first sync, whose disks were equal too, and one of this one.
        assert_eq!(node.log().matches(&logged).count(), 2, "{}", node.log());
    }
    synced(&pair.alpha);
    pair.beta.run(&["verify", "r0", "--wait"]).ok();
    let lines = beta.lines("verify:");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let totals = format!(" verify:done compared-kib:{size} found-kib:0 skipped-kib:0 seconds:");
    assert!(lines[0].contains(&totals), "{lines:?}");
}

#[test]
fn both_sides_show_how_fast_a_sync_is_and_when_it_ends() {
    let pair = Pair::in_sync(Plan::default());
    for node in [&pair.alpha, &pair.beta] {
        let cap = ["disk-options", "r0", "--resync-rate=4M"];
        node.run(&cap).ok();
    }
    // Holes are not copied, and no cap holds them up.
    let mut nbd = pair.nbd("alpha");
    for mib in 0..63 {
        nbd.write(mib << 20, &vec![5; 1 << 20]).expect("writes");
    }
    nbd.flush().expect("flushes");
    let watched = Stream::begin(&pair, &pair.beta, &["status", "--watch"]);
    pair.beta.run(&["invalidate", "r0"]).ok();
    let number = |node: &Node, key: &str| peer(&status(node))[key].as_u64();
    let both = [&pair.alpha, &pair.beta];
    // Within a few seconds; blocks become durable, and count, some at a time.
    let at_cap = |now: &Value| {
        let of = |key: &str| peer(now)[key].as_u64().unwrap_or_default();
        let (rate, left) = (of("rate-kib-s"), of("total-kib") - of("done-kib"));
        let seconds = left.checked_div(rate).unwrap_or_default();
        (3000..=5500).contains(&rate) && of("eta-s").abs_diff(seconds) <= 1
    };
    for node in both {
        wait_status(node, "goes at its cap", SOON, |now| {
            let done = peer(now)["done-kib"].as_u64().unwrap_or_default();
            done > 12 << 10 && at_cap(now)
        });
    }
    pair.alpha.run(&["pause-sync", "r0"]).ok();
    for node in both {
        wait_status(node, "is paused", SOON, |now| {
            let state = peer(now)["replication-state"].as_str();
            state.is_some_and(|state| state.starts_with("PausedSync"))
        });
        assert_eq!(number(node, "rate-kib-s"), Some(0));
        assert!(number(node, "done-kib").is_some());
        assert_eq!(number(node, "eta-s"), None);
    }
    // Longer than the sync has run: the mean since its beginning would be wrong from here on.
    std::thread::sleep(Duration::from_secs(5));
    pair.alpha.run(&["resume-sync", "r0"]).ok();
    for node in both {
        wait_status(node, "goes on", SOON, |now| {
            let rate = peer(now)["rate-kib-s"].as_u64().unwrap_or_default();
            assert!(rate == 0 || at_cap(now), "{}", peer(now));
            rate > 0
        });
    }
    let lines = watched.lines("r0/0 alpha SyncTarget: ");
    assert!(lines[0].contains("MiB/s, 00:00:"), "{lines:?}");
    assert!(watched.lines("PausedSyncT").len() < 4, "{}", watched.text());
    for node in both {
        node.run(&["disk-options", "r0", "--resync-rate=1G"]).ok();
    }
    synced(&pair.alpha);
}
