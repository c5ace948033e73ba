//! How far syncs and verifies are, while they run and when they have ended.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;

use crate::node::{Node, wait_until};
use crate::pair::{Pair, Plan, status, synced};

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
