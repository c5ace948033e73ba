//! What the demo tells while it runs: numbered steps, lines below them, and progress bars.
//!
//! On a terminal a bar is redrawn in place. Elsewhere a sync or verify prints a line now and then,
//! so that a log stays readable.

use std::cell::Cell;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::agent::view::PeerDeviceView;
use crate::cli::{progress, text};

/// Steps of the story, for their numbers.
const STEPS: u32 = 9;
/// Between two lines about a sync or verify in a log.
const CALM: Duration = Duration::from_secs(1);
/// Redraws per second: smooth enough, and cheap beside the load that is measured.
const REDRAWS: u8 = 10;

/// The narrator.
pub struct Story {
    begin: Instant,
    step: u32,
    live: bool,
}

impl Story {
    pub fn begin() -> Story {
        Story {
            begin: Instant::now(),
            step: 0,
            live: stdout().is_terminal(),
        }
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        let at = self.begin.elapsed().as_secs_f32();
        text::line(&format!("[{}/{STEPS}] {at:5.1} s  {title}", self.step));
    }

    /// A line of the step.
    pub fn say(&self, line: &str) {
        say(line);
    }

    /// A bar from 0 to `total` of `unit`, labelled with what goes on.
    pub fn bar(&self, label: &str, total: u64, unit: &'static str) -> Bar {
        let bar = self.drawn(total, "{pos}/{len} {prefix}");
        bar.set_message(label.to_owned());
        bar.set_prefix(unit);
        Bar { bar }
    }

    /// A bar for a sync or verify, labelled with what goes on.
    pub fn run(&self, label: &str) -> Run {
        // Empty until it is known of how much.
        let bar = self.drawn(1, "{prefix}");
        bar.set_message(label.to_owned());
        Run {
            bar: Bar { bar },
            label: label.to_owned(),
            live: self.live,
            told: Cell::new(None),
        }
    }

    fn drawn(&self, total: u64, figures: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if self.live {
                ProgressDrawTarget::stdout_with_hz(REDRAWS)
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let template = format!("              {{msg}} [{{bar:30}}] {figures}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

fn say(line: &str) {
    text::line(&format!("              {line}"));
}

/// A sync or verify under way.
pub struct Run {
    bar: Bar,
    label: String,
    live: bool,
    /// When a line was printed last.
    told: Cell<Option<Instant>>,
}

impl Run {
    /// How far it is; nothing is shown while nothing runs.
    pub fn at(&self, peer: &PeerDeviceView) {
        let (Some(words), Some(done)) = (progress::words(peer), peer.done_kib) else {
            return;
        };
        if self.live {
            self.bar.bar.set_length(peer.total_kib.unwrap_or(done));
            self.bar.bar.set_prefix(words);
            self.bar.at(done);
        } else if self.told.get().is_none_or(|told| told.elapsed() >= CALM) {
            self.told.set(Some(Instant::now()));
            say(&format!("{} {words}", self.label));
        }
    }
}

/// A bar under way. It disappears when dropped; the step says what came out.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
