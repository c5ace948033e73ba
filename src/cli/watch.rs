//! `status --watch`: on a terminal one picture that is redrawn in place, with a bar for every sync
//! and verify that runs. Elsewhere a log: the picture whenever a state has changed, and between,
//! now and then, a line for each that says how far it is.

use std::io::{IsTerminal, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::view::{ResourceView, VerifyView};

use super::client::full_status;
use super::render::{Style, render};
use super::{Global, Outcome, progress, text};

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);

/// Between two lines about the same sync in a log.
const CALM: Duration = Duration::from_secs(5);

/// Shows `target` until nobody looks any more.
pub fn watch(global: &Global, target: &str, verbose: bool) -> Outcome {
    let mut log = Log::default();
    let live = stdout().is_terminal();
    loop {
        let views = full_status(global, target)?;
        let is_read = if global.json {
            let value = serde_json::to_value(&views)
                .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))?;
            text::pretty(&value)
        } else if live {
            let style = Style {
                verbose,
                bars: true,
            };
            text::out(&redrawn(&render(&views, style)))
        } else {
            let lines = log.take(&views, verbose, Instant::now());
            match lines.is_empty() {
                true => is_open(),
                false => text::out(&lines),
            }
        };
        if !is_read {
            return Ok(());
        }
        sleep(REFRESH);
    }
}

/// A picture over the one before: each line clears its own rest and the last one what is below,
/// so that nothing flickers.
fn redrawn(picture: &str) -> String {
    let lines: String = { picture.lines() }
        .map(|line| format!("{line}\u{1b}[K\n"))
        .collect();
    format!("\u{1b}[H{lines}\u{1b}[J")
}

/// Whether somebody may still read what is printed: seldom enough is there something to print
/// that would tell.
fn is_open() -> bool {
    let out = stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // A failure says nothing about the reader.
    let _ = poll(&mut polled, Some(&now));
    !polled[0].revents().contains(PollFlags::ERR)
}

/// What a log has been told.
#[derive(Default)]
struct Log {
    picture: String,
    told: Option<Instant>,
}

impl Log {
    /// What is to be printed; empty when there is nothing new.
    fn take(&mut self, views: &[ResourceView], verbose: bool, now: Instant) -> String {
        let still: Vec<ResourceView> = views.iter().map(without_numbers).collect();
        let picture = render(&still, Style::default());
        if picture != self.picture {
            self.picture = picture;
            self.told = Some(now);
            let bars = false;
            return render(views, Style { verbose, bars });
        }
        if self.told.is_some_and(|told| now - told < CALM) {
            return String::new();
        }
        let lines: String = views.iter().flat_map(running).collect();
        if !lines.is_empty() {
            self.told = Some(now);
        }
        lines
    }
}

/// A line for every sync and verify of a resource.
fn running(view: &ResourceView) -> Vec<String> {
    let peers = { view.connections.iter() }
        .flat_map(|link| link.peer_devices.iter().map(move |peer| (link, peer)));
    peers
        .filter_map(|(link, peer)| {
            let words = progress::words(peer)?;
            let (name, volume, state) = (&view.name, peer.volume, &peer.replication_state);
            Some(format!("{name}/{volume} {} {state}: {words}\n", link.name))
        })
        .collect()
}

/// The states alone: what moves all the time is no change.
fn without_numbers(view: &ResourceView) -> ResourceView {
    let mut view = view.clone();
    for peer in view
        .connections
        .iter_mut()
        .flat_map(|link| &mut link.peer_devices)
    {
        peer.done = None;
        peer.rate_kib_s = None;
        peer.eta_s = None;
        peer.verify = VerifyView {
            state: std::mem::take(&mut peer.verify.state),
            ..VerifyView::default()
        };
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::view::{ConnectionView, PeerDeviceView};

    fn syncing(done: f64) -> Vec<ResourceView> {
        vec![ResourceView {
            name: "r0".to_owned(),
            role: "Primary".to_owned(),
            connections: vec![ConnectionView {
                name: "beta".to_owned(),
                connection_state: "Connected".to_owned(),
                peer_devices: vec![PeerDeviceView {
                    replication_state: "SyncSource".to_owned(),
                    peer_disk_state: "Inconsistent".to_owned(),
                    done: Some(done),
                    eta_s: Some(7),
                    ..PeerDeviceView::default()
                }],
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }]
    }

    #[test]
    fn a_log_has_pictures_of_changes_and_a_calm_line_between() {
        let mut log = Log::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let first = log.take(&syncing(1.0), false, at(0));
        assert!(first.starts_with("r0 role:Primary\n"), "{first}");
        assert!(first.contains("done:1.00"), "{first}");
        for second in 1..5 {
            assert_eq!(log.take(&syncing(2.0), false, at(second)), "");
        }
        let line = "r0/0 beta SyncSource: 5.00%, 00:00:07 left\n";
        assert_eq!(log.take(&syncing(5.0), false, at(5)), line);
        assert_eq!(log.take(&syncing(6.0), false, at(6)), "");
        let mut done = syncing(0.0);
        let peer = &mut done[0].connections[0].peer_devices[0];
        (peer.done, peer.eta_s) = (None, None);
        "Established".clone_into(&mut peer.replication_state);
        assert!(log.take(&done, false, at(7)).starts_with("r0 "));
        assert_eq!(log.take(&done, false, at(100)), "");
    }

    #[test]
    fn a_picture_is_drawn_over_the_one_before() {
        let drawn = redrawn("a\n  b\n");
        assert_eq!(drawn, "\u{1b}[Ha\u{1b}[K\n  b\u{1b}[K\n\u{1b}[J");
    }
}
