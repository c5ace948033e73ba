//! How fast the sync or verify of a volume goes, and for how long it has run: no clock, no I/O.
//!
//! The rate is a mean over about the last ten seconds, in which a measurement counts the less the
//! older it is. So it follows a changed cap within seconds, and single blocks, flushes and pauses
//! do not make it, and the time that is left, jump.

use std::time::Duration;

use crate::engine::{ReplicationState, Time};

/// After this time a measurement counts 1/e of what it did.
const MEMORY: Duration = Duration::from_secs(10);

/// Seconds, a little faded, that make a rate.
const ENOUGH: f64 = 0.9;

/// Between two measurements. Syncs advance in steps, and each look costs a picture of the engine.
pub const EVERY: Duration = Duration::from_millis(500);

/// A mean rate that forgets. Bytes and seconds fade alike, so that it is right from the first
/// measurement on, and exactly the rate of what is steady.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    bytes: f64,
    seconds: f64,
}

impl Rate {
    /// `bytes` were done in the last `span`.
    pub fn add(&mut self, bytes: u64, span: Duration) {
        let span = span.as_secs_f64();
        if span <= 0.0 {
            return;
        }
        let memory = MEMORY.as_secs_f64();
        let kept = (-span / memory).exp();
        // What was spread over the span has faded by this much at its end.
        let fresh = memory * (1.0 - kept);
        self.bytes = self.bytes * kept + bytes as f64 / span * fresh;
        self.seconds = self.seconds * kept + fresh;
    }

    /// Bytes per second; 0 in the first second, when it would be a guess.
    pub fn per_second(&self) -> u64 {
        if self.seconds < ENOUGH {
            return 0;
        }
        (self.bytes / self.seconds) as u64
    }
}

/// Bytes per second of what took `ran`.
pub fn mean(bytes: u64, ran: Duration) -> u64 {
    // A few blocks may take no time that is worth a word.
    let seconds = ran.as_secs_f64().max(0.001);
    (bytes as f64 / seconds) as u64
}

/// What runs on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    Nothing,
    Sync,
    Verify,
}

/// The sync or verify of one volume, running or just ended.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    running: Running,
    /// Held back by an operator.
    paused: bool,
    /// Up to when `ran` counts.
    at: Time,
    ran: Duration,
    /// Bytes done, and when that was seen.
    seen: Option<(Time, u64)>,
    rate: Rate,
}

impl Progress {
    pub fn new() -> Progress {
        Progress {
            running: Running::Nothing,
            paused: false,
            at: Time(0),
            ran: Duration::ZERO,
            seen: None,
            rate: Rate::default(),
        }
    }

    /// The volume's replication has come to this state.
    pub fn state(&mut self, now: Time, to: ReplicationState) {
        let (running, paused) = match to {
            ReplicationState::SyncSource | ReplicationState::SyncTarget => (Running::Sync, false),
            ReplicationState::PausedSyncS | ReplicationState::PausedSyncT => (Running::Sync, true),
            ReplicationState::VerifyS => (Running::Verify, false),
            _ => (Running::Nothing, false),
        };
        self.count(now);
        if running != self.running && running != Running::Nothing {
            self.ran = Duration::ZERO;
            self.rate = Rate::default();
        }
        // A pause is not measured. The rate before it is the best guess at the rate after it.
        self.seen = None;
        (self.running, self.paused) = (running, paused);
    }

    fn count(&mut self, now: Time) {
        if self.moves() {
            self.ran += now.since(self.at);
        }
        self.at = now;
    }

    /// Whether it runs and is not held back.
    pub fn moves(&self) -> bool {
        self.running != Running::Nothing && !self.paused
    }

    /// So many bytes are done by now.
    pub fn sample(&mut self, now: Time, done: u64) {
        if !self.moves() {
            return;
        }
        match self.seen {
            None => self.seen = Some((now, done)),
            Some((at, before)) if now > at => {
                // Blocks that were written to meanwhile have to be done again.
                self.rate.add(done.saturating_sub(before), now.since(at));
                self.seen = Some((now, done));
            }
            Some(_) => {}
        }
    }

    /// Bytes per second.
    pub fn rate(&self) -> u64 {
        if self.moves() {
            self.rate.per_second()
        } else {
            0
        }
    }

    /// How long it has run, without pauses, up to now or to its end; what follows counts anew.
    pub fn lap(&mut self, now: Time) -> Duration {
        self.count(now);
        std::mem::take(&mut self.ran)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    /// A sync that has done `rate` bytes per second up to `ms`, looked at twice a second.
    fn steady(rate: u64, ms: u64) -> Progress {
        let mut progress = Progress::new();
        progress.state(at(0), ReplicationState::SyncSource);
        for now in (0..=ms).step_by(500) {
            progress.sample(at(now), rate * now / 1000);
        }
        progress
    }

    fn within(rate: u64, low: u64, high: u64) {
        assert!((low..=high).contains(&rate), "{rate}");
    }

    #[test]
    fn a_steady_rate_is_shown_as_it_is_from_the_first_second_on() {
        assert_eq!(steady(64 * MIB, 500).rate(), 0);
        for ms in [1_000, 5_000, 500_000] {
            within(steady(64 * MIB, ms).rate(), 64 * MIB - 1, 64 * MIB);
        }
    }

    #[test]
    fn a_changed_cap_counts_after_seconds_however_long_it_went_before() {
        let mut progress = steady(100 * MIB, 3_600_000);
        let done = 360_000 * MIB;
        let mut last = progress.rate();
        for ms in (500..=30_000).step_by(500) {
            progress.sample(at(3_600_000 + ms), done + 10 * MIB * ms / 1000);
            let rate = progress.rate();
            assert!(rate < last && last - rate < last / 10, "{last} to {rate}");
            last = rate;
        }
        within(last, 10 * MIB, 15 * MIB);
    }

    #[test]
    fn steps_do_not_make_the_rate_jump() {
        let mut progress = Progress::new();
        progress.state(at(0), ReplicationState::SyncTarget);
        let mut rates = Vec::new();
        for ms in (0..=60_000).step_by(500) {
            // 20 MiB at once, every second.
            progress.sample(at(ms), ms / 1000 * 20 * MIB);
            if ms > 20_000 {
                rates.push(progress.rate());
            }
        }
        rates
            .iter()
            .for_each(|rate| within(*rate, 19 * MIB, 21 * MIB));
    }

    #[test]
    fn a_stall_ends_in_a_low_rate() {
        let mut progress = steady(100 * MIB, 60_000);
        progress.sample(at(120_000), 6_000 * MIB);
        within(progress.rate(), 0, MIB);
    }

    #[test]
    fn a_pause_is_neither_measured_nor_counted() {
        let mut progress = steady(10 * MIB, 10_000);
        progress.state(at(10_000), ReplicationState::PausedSyncS);
        progress.sample(at(300_000), 100 * MIB);
        assert_eq!(progress.rate(), 0);
        progress.state(at(600_000), ReplicationState::SyncSource);
        progress.sample(at(600_000), 100 * MIB);
        within(progress.rate(), 10 * MIB - 1, 10 * MIB);
        progress.sample(at(602_000), 120 * MIB);
        within(progress.rate(), 10 * MIB - 1, 10 * MIB);
        progress.state(at(605_000), ReplicationState::Established);
        assert_eq!(progress.lap(at(900_000)), Duration::from_secs(15));
    }

    #[test]
    fn each_run_is_measured_for_itself() {
        let mut progress = steady(100 * MIB, 10_000);
        progress.state(at(10_000), ReplicationState::Off);
        assert_eq!(progress.rate(), 0);
        progress.state(at(20_000), ReplicationState::VerifyS);
        progress.sample(at(20_000), 0);
        progress.sample(at(21_000), MIB);
        within(progress.rate(), MIB - 1, MIB);
        // A repair follows the pass.
        assert_eq!(progress.lap(at(21_000)), Duration::from_secs(1));
        assert_eq!(progress.lap(at(24_000)), Duration::from_secs(3));
        // What a run has done again is not taken for a rate.
        progress.sample(at(25_000), 0);
        assert!(progress.rate() < MIB);
    }
}
