//! When the keeper tries again what did not work: always after a pause that is bounded.

use std::time::Duration;

use tokio::time::Instant;

/// Between attempts to get the role back; the peer needs a moment to see the old link die.
const REGAIN_EVERY: Duration = Duration::from_millis(200);
/// How long it is tried: requests queued in a block device must not wait for ever.
const REGAIN_LIMIT: Duration = Duration::from_secs(30);
/// First and longest pause before a data plane that keeps dying is started again, and how long
/// it must live for the pause to shrink back.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LONGEST: Duration = Duration::from_secs(30);
const STABLE_AFTER: Duration = Duration::from_secs(20);
/// First and longest pause before the socket of an NBD export is tried again.
const LISTEN_FIRST: Duration = Duration::from_millis(500);
const LISTEN_LONGEST: Duration = Duration::from_secs(15);

/// When a data plane that died is started again.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    pub at: Option<Instant>,
    started: Instant,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            pause: Duration::ZERO,
            at: None,
            started: Instant::now(),
        }
    }
}

impl Backoff {
    pub fn started(&mut self) {
        self.started = Instant::now();
        self.at = None;
    }

    /// Sets the next attempt; the first one after a stable life comes at once.
    pub fn schedule(&mut self) -> Duration {
        if self.started.elapsed() >= STABLE_AFTER {
            self.pause = Duration::ZERO;
        }
        let pause = self.pause;
        self.at = Some(Instant::now() + pause);
        self.pause = (pause * 2).clamp(RESTART_FIRST, RESTART_LONGEST);
        pause
    }
}

/// The way back to the role that a dead data plane had.
#[derive(Clone, Debug)]
pub struct Regain {
    /// This agent has watched the data plane die; otherwise an agent before it has ended.
    pub watched: bool,
    /// Next attempt, and the end of all attempts.
    pub at: Instant,
    until: Instant,
}

impl Regain {
    pub fn begin(watched: bool) -> Regain {
        let now = Instant::now();
        Regain {
            watched,
            at: now,
            until: now + REGAIN_LIMIT,
        }
    }

    /// Sets the next attempt; false when it has been tried for long enough.
    pub fn again(&mut self) -> bool {
        let now = Instant::now();
        self.at = now + REGAIN_EVERY;
        now < self.until
    }
}

/// When sockets that could not be made are tried again.
#[derive(Debug, Default)]
pub struct Relisten {
    pause: Duration,
    pub at: Option<Instant>,
}

impl Relisten {
    /// Sets the next attempt, if one is needed.
    pub fn schedule(&mut self, needed: bool) {
        self.pause = match needed {
            true => (self.pause * 2).clamp(LISTEN_FIRST, LISTEN_LONGEST),
            false => Duration::ZERO,
        };
        self.at = needed.then(|| Instant::now() + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound_while_a_data_plane_keeps_dying() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.schedule()).collect();
        assert_eq!(pauses[0], Duration::ZERO, "the first restart comes at once");
        assert_eq!(pauses[1], RESTART_FIRST);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[11], RESTART_LONGEST);
        backoff.started = Instant::now() - STABLE_AFTER;
        assert_eq!(
            backoff.schedule(),
            Duration::ZERO,
            "it has lived long enough"
        );
    }

    #[test]
    fn sockets_are_tried_again_at_longer_and_longer_pauses() {
        let mut relisten = Relisten::default();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            relisten.schedule(true);
            assert!(relisten.at.is_some() && relisten.pause >= last);
            last = relisten.pause;
        }
        assert_eq!(last, LISTEN_LONGEST);
        relisten.schedule(false);
        assert!(relisten.at.is_none() && relisten.pause.is_zero());
    }
}
