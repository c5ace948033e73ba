//! How far a sync or verify is, for people: a bar, and the same in words.

use std::time::Duration;

use indicatif::{FormattedDuration, HumanBytes};

use crate::agent::view::PeerDeviceView;

/// Characters of a bar between its brackets.
const WIDTH: usize = 30;

/// `43.21% 1.20 GiB of 2.90 GiB, 118.00 MiB/s, 00:00:14 left`; none when nothing runs.
pub fn words(peer: &PeerDeviceView) -> Option<String> {
    let kib = |amount: u64| HumanBytes(amount.saturating_mul(1024));
    let done = peer.done?;
    let mut text = format!("{done:.2}%");
    if let (Some(done), Some(total)) = (peer.done_kib, peer.total_kib) {
        text.push_str(&format!(" {} of {}", kib(done), kib(total)));
    }
    if is_paused(peer) {
        text.push_str(", paused");
        return Some(text);
    }
    // In the first second there is none.
    if let Some(rate) = peer.rate_kib_s.filter(|rate| *rate > 0) {
        text.push_str(&format!(", {}/s", kib(rate)));
    }
    if let Some(seconds) = peer.eta_s {
        let left = FormattedDuration(Duration::from_secs(seconds));
        text.push_str(&format!(", {left} left"));
    }
    Some(text)
}

fn is_paused(peer: &PeerDeviceView) -> bool {
    peer.replication_state.starts_with("Paused")
}

/// `[=======>      ]` and the words; none when nothing runs.
pub fn bar(peer: &PeerDeviceView) -> Option<String> {
    let words = words(peer)?;
    let part = peer.done.unwrap_or_default().clamp(0.0, 100.0) / 100.0;
    let filled = (part * WIDTH as f64) as usize;
    let head = if filled < WIDTH { ">" } else { "" };
    let bar = "=".repeat(filled) + head;
    Some(format!("[{bar:WIDTH$}] {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> PeerDeviceView {
        PeerDeviceView {
            replication_state: "SyncTarget".to_owned(),
            done: Some(50.0),
            done_kib: Some(1536),
            total_kib: Some(3072),
            rate_kib_s: Some(512),
            eta_s: Some(3),
            ..PeerDeviceView::default()
        }
    }

    #[test]
    fn what_runs_says_how_far_it_is_and_when_it_ends() {
        let expected = "50.00% 1.50 MiB of 3.00 MiB, 512.00 KiB/s, 00:00:03 left";
        assert_eq!(words(&running()).as_deref(), Some(expected));
        assert_eq!(
            bar(&running()),
            Some(format!("[===============>              ] {expected}"))
        );
        assert_eq!(words(&PeerDeviceView::default()), None);
        assert_eq!(bar(&PeerDeviceView::default()), None);
    }

    #[test]
    fn what_is_paused_has_no_rate() {
        let mut peer = running();
        "PausedSyncT".clone_into(&mut peer.replication_state);
        peer.rate_kib_s = Some(0);
        peer.eta_s = None;
        let expected = "50.00% 1.50 MiB of 3.00 MiB, paused";
        assert_eq!(words(&peer).as_deref(), Some(expected));
    }

    #[test]
    fn a_bar_is_as_wide_as_every_other() {
        for done in [-1.0, 0.0, 0.01, 99.99, 100.0, 101.0] {
            let mut peer = running();
            peer.done = Some(done);
            let text = bar(&peer).unwrap_or_default();
            assert_eq!(text.find(']'), Some(WIDTH + 1), "{text}");
        }
    }
}
