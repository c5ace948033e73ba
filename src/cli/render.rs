//! Status for people, in the manner of `drbdadm status`: states that are as they should be are
//! left out, and every wait has its reason below it.

use std::fmt::Write;

use crate::agent::protocol::AUTHENTICATE;
use crate::agent::view::{ConnectionView, DeviceView, PeerDeviceView, ResourceView};

use super::progress;

/// How much is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Every key.
    pub verbose: bool,
    /// A bar for what runs, in place of its keys.
    pub bars: bool,
}

/// The text of all resources.
pub fn render(views: &[ResourceView], style: Style) -> String {
    let mut text = String::new();
    if views.is_empty() {
        text.push_str("no resources of this node are configured\n");
    }
    for (index, view) in views.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        resource(&mut text, view, style);
    }
    text
}

/// One line, indented by `depth` levels, from words that are not empty.
fn line(text: &mut String, depth: usize, words: &[String]) {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.is_empty())
        .collect();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{:1$}{2}", "", depth * 2, words.join(" "));
}

fn reason(text: &mut String, depth: usize, reason: Option<&String>) {
    if let Some(reason) = reason {
        for part in reason.lines() {
            line(text, depth, &[format!("reason: {part}")]);
        }
    }
}

fn only_if(shown: bool, word: String) -> String {
    if shown { word } else { String::new() }
}

fn resource(text: &mut String, view: &ResourceView, style: Style) {
    let verbose = style.verbose;
    let words = [
        view.name.clone(),
        only_if(verbose, format!("node-id:{}", view.node_id)),
        format!("role:{}", view.role),
        only_if(
            verbose || view.suspended,
            format!("suspended:{}", if view.suspended { "yes" } else { "no" }),
        ),
        only_if(verbose, format!("write-ordering:{}", view.write_ordering)),
        only_if(
            verbose && !view.term.is_empty(),
            format!("term:{}", view.term),
        ),
    ];
    line(text, 0, &words);
    reason(text, 1, view.reason.as_ref());
    let numbered = verbose || view.devices.len() > 1;
    for device in &view.devices {
        own_device(text, device, numbered, verbose);
    }
    for link in &view.connections {
        connection(text, link, numbered, style);
    }
}

fn own_device(text: &mut String, device: &DeviceView, numbered: bool, verbose: bool) {
    let words = [
        only_if(numbered, format!("volume:{}", device.volume)),
        only_if(
            verbose && device.minor >= 0,
            format!("minor:{}", device.minor),
        ),
        format!("disk:{}", device.disk_state),
        only_if(verbose, format!("device:{}", device.path)),
        only_if(
            verbose,
            format!("open:{}", if device.open { "yes" } else { "no" }),
        ),
    ];
    line(text, 1, &words);
    reason(text, 2, device.reason.as_ref());
    if verbose {
        let counters = [
            format!("size:{}", device.size),
            format!("read:{}", device.read),
            format!("written:{}", device.written),
            format!("al-writes:{}", device.al_writes),
            format!("bm-writes:{}", device.bm_writes),
            format!("upper-pending:{}", device.upper_pending),
            format!("lower-pending:{}", device.lower_pending),
            only_if(
                !device.data_path.is_empty(),
                format!("data-path:{}", device.data_path),
            ),
        ];
        line(text, 3, &counters);
    }
}

fn connection(text: &mut String, link: &ConnectionView, numbered: bool, style: Style) {
    let verbose = style.verbose;
    let up = link.connection_state == "Connected";
    let words = [
        link.name.clone(),
        only_if(verbose, format!("node-id:{}", link.peer_node_id)),
        only_if(
            verbose || !up,
            format!("connection:{}", link.connection_state),
        ),
        only_if(verbose || up, format!("role:{}", link.peer_role)),
        only_if(verbose, format!("transport:{}", link.transport)),
    ];
    line(text, 1, &words);
    reason(text, 2, link.reason.as_ref());
    if let Some(help) = &link.help {
        line(text, 2, &[format!("help: {help}")]);
    }
    if link.authenticated == Some(false) {
        let note = "note: unauthenticated: any host that reaches the port can replicate";
        line(text, 2, &[note.to_owned()]);
        line(text, 2, &[format!("help: {AUTHENTICATE}")]);
    }
    // What a peer that is not there holds is not known, and there is nothing to say about it.
    if up || verbose {
        for peer in &link.peer_devices {
            peer_device(text, peer, numbered, style);
        }
    }
}

fn peer_device(text: &mut String, peer: &PeerDeviceView, numbered: bool, style: Style) {
    let Style { verbose, bars } = style;
    let keys = |value: Option<String>| value.filter(|_| !bars).unwrap_or_default();
    let resting = matches!(peer.replication_state.as_str(), "Established" | "Off");
    let words = [
        only_if(numbered, format!("volume:{}", peer.volume)),
        only_if(
            verbose || !resting,
            format!("replication:{}", peer.replication_state),
        ),
        format!("peer-disk:{}", peer.peer_disk_state),
        keys(peer.done.map(|done| format!("done:{done:.2}"))),
        keys(peer.rate_kib_s.map(|rate| format!("rate-kib-s:{rate}"))),
        keys(peer.eta_s.map(|seconds| format!("eta-s:{seconds}"))),
        only_if(
            verbose,
            format!("resync-suspended:{}", peer.resync_suspended),
        ),
    ];
    line(text, 2, &words);
    if let Some(bar) = progress::bar(peer).filter(|_| bars) {
        line(text, 3, &[bar]);
    }
    reason(text, 3, peer.reason.as_ref());
    let verify = &peer.verify;
    if verbose || !matches!(verify.state.as_str(), "" | "idle") {
        let words = [
            format!("verify:{}", verify.state),
            format!("at:{}", verify.at),
            format!("found-kib:{}", verify.found_kib),
            format!("skipped-kib:{}", verify.skipped_kib),
            format!("repaired-kib:{}", verify.repaired_kib),
        ];
        line(text, 3, &words);
    }
    if verbose {
        let counters = [
            format!("received:{}", peer.received),
            format!("sent:{}", peer.sent),
            format!("out-of-sync:{}", peer.out_of_sync),
            format!("pending:{}", peer.pending),
            format!("unacked:{}", peer.unacked),
            format!("percent-in-sync:{:.2}", peer.percent_in_sync),
        ];
        line(text, 4, &counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Style = Style {
        verbose: false,
        bars: false,
    };
    const VERBOSE: Style = Style {
        verbose: true,
        bars: false,
    };

    fn sample() -> ResourceView {
        ResourceView {
            name: "r0".to_owned(),
            role: "Primary".to_owned(),
            devices: vec![DeviceView {
                disk_state: "UpToDate".to_owned(),
                path: "/dev/ublkb0".to_owned(),
                ..DeviceView::default()
            }],
            connections: vec![ConnectionView {
                name: "beta".to_owned(),
                connection_state: "Connected".to_owned(),
                peer_role: "Secondary".to_owned(),
                peer_devices: vec![PeerDeviceView {
                    replication_state: "Established".to_owned(),
                    peer_disk_state: "UpToDate".to_owned(),
                    ..PeerDeviceView::default()
                }],
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }
    }

    #[test]
    fn a_healthy_resource_is_four_short_lines() {
        let expected = "r0 role:Primary\n  disk:UpToDate\n  beta role:Secondary\n    \
                        peer-disk:UpToDate\n";
        assert_eq!(render(&[sample()], SHORT), expected);
    }

    #[test]
    fn a_running_sync_shows_its_progress() {
        let mut view = sample();
        let peer = &mut view.connections[0].peer_devices[0];
        peer.replication_state = "SyncSource".to_owned();
        peer.peer_disk_state = "Inconsistent".to_owned();
        peer.done = Some(12.345);
        let text = render(&[view], SHORT);
        let expected = "    replication:SyncSource peer-disk:Inconsistent done:12.35\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_bar_takes_the_place_of_the_keys() {
        let mut view = sample();
        let peer = &mut view.connections[0].peer_devices[0];
        peer.replication_state = "VerifyS".to_owned();
        (peer.done, peer.rate_kib_s) = (Some(50.0), Some(1024));
        let bars = true;
        let text = render(&[view], Style { bars, ..SHORT });
        let expected = "    replication:VerifyS peer-disk:UpToDate\n      \
                        [===============>              ] 50.00%, 1.00 MiB/s\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn what_waits_says_why() {
        let mut view = sample();
        view.role = "Secondary".to_owned();
        view.devices[0].reason = Some("disk is gone".to_owned());
        view.connections[0].connection_state = "StandAlone".to_owned();
        view.connections[0].reason = Some("split brain".to_owned());
        view.connections[0].help = Some("decide".to_owned());
        let expected = "r0 role:Secondary\n  disk:UpToDate\n    reason: disk is gone\n  \
                        beta connection:StandAlone\n    reason: split brain\n    help: decide\n";
        assert_eq!(render(&[view], SHORT), expected);
    }

    #[test]
    fn a_pair_without_a_key_says_so_once() {
        let mut view = sample();
        view.connections[0].authenticated = Some(true);
        assert!(!render(&[view.clone()], VERBOSE).contains("unauthenticated"));
        view.connections[0].authenticated = Some(false);
        let text = render(&[view], SHORT);
        assert_eq!(text.matches("unauthenticated").count(), 1, "{text}");
        for command in ["lockstep keygen", "lockstep adjust"] {
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn verbose_shows_counters_and_volumes() {
        let text = render(&[sample(), sample()], VERBOSE);
        assert!(
            text.contains("volume:0 minor:0 disk:UpToDate device:/dev/ublkb0"),
            "{text}"
        );
        assert!(text.contains("out-of-sync:0"), "{text}");
        assert_eq!(text.matches("role:Primary").count(), 2);
    }
}
