//! What the demo tells while it runs: numbered steps, lines below them, and progress bars.
//!
//! On a terminal a bar is redrawn in place and ends as a line. Elsewhere only the line is printed,
//! so that a log stays readable.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::text;

/// Steps of the story, for their numbers.
const STEPS: u32 = 9;
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
        text::line(&format!("              {line}"));
    }

    /// A bar from 0 to `total` of `unit`, labelled with what goes on.
    pub fn bar(&self, label: &str, total: u64, unit: &'static str) -> Bar {
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if self.live {
                ProgressDrawTarget::stdout_with_hz(REDRAWS)
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let template = "              {msg} [{bar:30}] {pos}/{len} {prefix}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_owned());
        bar.set_prefix(unit);
        Bar { bar }
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
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
