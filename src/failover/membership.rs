//! Whether the peer is there: round trips over every path.
//!
//! Both nodes send a beat over every path once per interval. A beat names the last beat of the
//! other side that came over this path, so a path counts as up only while both directions work;
//! what a node hears without being heard is not enough. Beats of the replication link count as a
//! path. The peer is *dead* when no path has made a round trip for [`Timing::dead_after`].
//!
//! Every [`PROBE_EVERY`]th beat is as long as the largest packet of the path; when those do not
//! come back while small ones do, the path swallows large packets.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::Time;

/// One beat in this many is a probe for large packets.
pub const PROBE_EVERY: u64 = 16;
/// Probes without an answer that make a path a narrow one.
const PROBES_LOST: u64 = 3;
/// Beats that are remembered to be answered.
const REMEMBERED: usize = 128;
/// Beats over which loss is counted.
const LOSS_WINDOW: u32 = 64;
/// Per cent of beats lost from which a path is a lossy one.
const LOSSY: u32 = 5;

/// When beats are sent, and what their absence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub interval: Duration,
    pub warn_after: Duration,
    pub dead_after: Duration,
}

/// What a beat says about the path. Rides in the body of a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// Sequence of the last beat that came over this path; 0 = none yet.
    pub sequence: u64,
    /// How long ago that was, in microseconds.
    pub delay_us: u64,
    /// The same of the last probe.
    pub probe: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// Nothing has come back since the start.
    Waiting,
    Up,
    /// A round trip is overdue.
    Late,
    /// Round trips come, but many beats do not.
    Lossy,
    /// Small packets pass, large ones do not.
    Narrow,
    Down,
}

impl std::fmt::Display for PathState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PathState::Waiting => "waiting",
            PathState::Up => "up",
            PathState::Late => "late",
            PathState::Lossy => "lossy",
            PathState::Narrow => "narrow",
            PathState::Down => "down",
        })
    }
}

#[derive(Clone, Debug, Default)]
struct Path {
    sent: VecDeque<(u64, Time)>,
    /// When the last of our beats left that was answered.
    round: Option<Time>,
    rtt: Option<Duration>,
    /// Their last beat, and when it came.
    theirs: Option<(u64, Time)>,
    their_probe: u64,
    /// Our last probe, the last that was answered, and how many since were not.
    probe: u64,
    probes_lost: u64,
    /// Which of their last beats came, newest in the lowest bit.
    window: u64,
    counted: u32,
}

impl Path {
    fn state(&self, timing: &Timing, now: Time) -> PathState {
        let Some(round) = self.round else {
            return PathState::Waiting;
        };
        let past = now.since(round);
        if past >= timing.dead_after {
            PathState::Down
        } else if past >= timing.warn_after {
            PathState::Late
        } else if self.probes_lost >= PROBES_LOST {
            PathState::Narrow
        } else if self.loss() >= LOSSY {
            PathState::Lossy
        } else {
            PathState::Up
        }
    }

    /// Per cent of their beats that did not come.
    fn loss(&self) -> u32 {
        if self.counted < 16 {
            return 0;
        }
        let counted = self.counted.min(LOSS_WINDOW);
        let came = match counted {
            64 => self.window.count_ones(),
            n => (self.window & ((1 << n) - 1)).count_ones(),
        };
        100 * (counted - came) / counted
    }

    fn count(&mut self, sequence: u64) {
        let step = match self.theirs {
            Some((last, _)) if sequence > last => sequence - last,
            // Out of order: it fills its gap.
            Some((last, _)) if last - sequence < 64 => {
                self.window |= 1 << (last - sequence);
                return;
            }
            Some(_) => return,
            None => 1,
        };
        self.window = if step < 64 { self.window << step } else { 0 } | 1;
        self.counted = self
            .counted
            .saturating_add(u32::try_from(step).unwrap_or(LOSS_WINDOW))
            .min(LOSS_WINDOW);
    }
}

/// What `cluster status` shows of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPicture {
    pub state: PathState,
    pub rtt: Option<Duration>,
    /// Since the last round trip began.
    pub age: Option<Duration>,
    pub loss_percent: u32,
}

/// See the module's description. Paths are numbered as they are configured.
#[derive(Clone, Debug)]
pub struct Membership {
    timing: Timing,
    paths: Vec<Path>,
    started: Time,
    replication: Option<Time>,
}

impl Membership {
    pub fn new(paths: usize, timing: Timing, now: Time) -> Membership {
        Membership {
            timing,
            paths: vec![Path::default(); paths],
            started: now,
            replication: None,
        }
    }

    /// What the next beat over a path says.
    pub fn echo(&self, path: usize, now: Time) -> Echo {
        let Some(path) = self.paths.get(path) else {
            return Echo::default();
        };
        let (sequence, at) = path.theirs.unwrap_or((0, now));
        Echo {
            sequence,
            delay_us: now.since(at).as_micros() as u64,
            probe: path.their_probe,
        }
    }

    /// A beat has left over a path.
    pub fn sent(&mut self, path: usize, sequence: u64, probe: bool, now: Time) {
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        if path.sent.len() == REMEMBERED {
            path.sent.pop_front();
        }
        path.sent.push_back((sequence, now));
        if probe {
            // Counted as lost until it is answered.
            path.probes_lost += u64::from(path.probe > 0);
            path.probe = sequence;
        }
    }

    /// A beat has come over a path; `restarted`: the first of a new life of the peer.
    pub fn heard(
        &mut self,
        path: usize,
        (sequence, probe, restarted): (u64, bool, bool),
        echo: &Echo,
        now: Time,
    ) {
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        if restarted {
            path.theirs = None;
            (path.window, path.counted, path.their_probe) = (0, 0, 0);
        }
        path.count(sequence);
        if path.theirs.is_none_or(|(last, _)| sequence > last) {
            path.theirs = Some((sequence, now));
        }
        if probe {
            path.their_probe = path.their_probe.max(sequence);
        }
        if echo.probe > 0 && echo.probe >= path.probe {
            path.probes_lost = 0;
        }
        let left = path.sent.iter().find(|(sent, _)| *sent == echo.sequence);
        if let Some(&(_, left)) = left {
            path.round = path.round.max(Some(left));
            let delay = Duration::from_micros(echo.delay_us);
            let trip = now.since(left).saturating_sub(delay);
            // As in RFC 6298: one part in eight.
            path.rtt = Some(path.rtt.map_or(trip, |rtt| rtt - rtt / 8 + trip / 8));
        }
    }

    /// The replication link has heard from the peer at this moment, in answer to what this node
    /// sent not long before.
    pub fn replication_heard(&mut self, at: Time) {
        self.replication = self.replication.max(Some(at));
    }

    /// When the last round trip over any path began.
    pub fn last_round(&self) -> Option<Time> {
        let paths = self.paths.iter().filter_map(|path| path.round);
        paths.chain(self.replication).max()
    }

    /// Whether some path has made a round trip of late.
    pub fn alive(&self, now: Time) -> bool {
        self.last_round()
            .is_some_and(|round| now.since(round) < self.timing.dead_after)
    }

    /// For how long the peer has been dead; none while it is alive.
    pub fn dead_for(&self, now: Time) -> Option<Duration> {
        if self.alive(now) {
            return None;
        }
        let since = match self.last_round() {
            Some(round) => round.after(self.timing.dead_after),
            None => self.started,
        };
        Some(now.since(since))
    }

    /// When [`Membership::alive`] changes by itself.
    pub fn next_deadline(&self, now: Time) -> Option<Time> {
        let end = self.last_round()?.after(self.timing.dead_after);
        (end > now).then_some(end)
    }

    pub fn picture(&self, path: usize, now: Time) -> Option<PathPicture> {
        let path = self.paths.get(path)?;
        Some(PathPicture {
            state: path.state(&self.timing, now),
            rtt: path.rtt,
            age: path.round.map(|round| now.since(round)),
            loss_percent: path.loss(),
        })
    }

    /// Whether the path counts as up for what is sent over one path only.
    pub fn usable(&self, path: usize, now: Time) -> bool {
        self.picture(path, now)
            .is_some_and(|picture| !matches!(picture.state, PathState::Waiting | PathState::Down))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn timing() -> Timing {
        Timing {
            interval: Duration::from_millis(250),
            warn_after: Duration::from_millis(500),
            dead_after: Duration::from_secs(1),
        }
    }

    /// Two nodes with one path; `there` and `back` say whether a beat arrives.
    struct Two {
        now: Time,
        nodes: [Membership; 2],
        sequence: u64,
    }

    impl Two {
        fn new() -> Two {
            let now = Time(MS);
            Two {
                now,
                nodes: [(); 2].map(|()| Membership::new(1, timing(), now)),
                sequence: 0,
            }
        }

        fn beats(&mut self, count: u64, arrives: impl Fn(usize, u64, bool) -> bool) {
            for _ in 0..count {
                self.sequence += 1;
                let sequence = self.sequence;
                let probe = sequence.is_multiple_of(PROBE_EVERY);
                for from in 0..2 {
                    let echo = self.nodes[from].echo(0, self.now);
                    self.nodes[from].sent(0, sequence, probe, self.now);
                    if arrives(from, sequence, probe) {
                        let at = self.now.after(Duration::from_millis(2));
                        let beat = (sequence, probe, false);
                        self.nodes[1 - from].heard(0, beat, &echo, at);
                    }
                }
                self.now = self.now.after(timing().interval);
            }
        }

        fn state(&self, node: usize) -> PathState {
            self.nodes[node].picture(0, self.now).unwrap().state
        }
    }

    #[test]
    fn a_peer_that_answers_is_alive_until_it_has_been_silent_for_long_enough() {
        let mut two = Two::new();
        assert_eq!(two.state(0), PathState::Waiting);
        assert!(!two.nodes[0].alive(two.now));
        two.beats(20, |_, _, _| true);
        assert_eq!(two.state(0), PathState::Up);
        let rtt = two.nodes[0].picture(0, two.now).unwrap().rtt.unwrap();
        assert!(rtt <= Duration::from_millis(4), "{rtt:?}");
        two.beats(2, |_, _, _| false);
        assert_eq!(two.state(0), PathState::Late);
        assert!(two.nodes[0].alive(two.now));
        let due = two.nodes[0].next_deadline(two.now).unwrap();
        assert!(two.nodes[0].alive(Time(due.0 - 1)) && !two.nodes[0].alive(due));
        two.beats(4, |_, _, _| false);
        assert_eq!(two.state(0), PathState::Down);
        assert!(two.nodes[0].dead_for(two.now).is_some());
        two.beats(3, |_, _, _| true);
        assert_eq!(two.nodes[0].dead_for(two.now), None);
    }

    #[test]
    fn one_way_is_no_way_for_both_sides() {
        let mut two = Two::new();
        two.beats(20, |_, _, _| true);
        two.beats(8, |from, _, _| from == 0);
        assert!(!two.nodes[0].alive(two.now), "it is not heard");
        assert!(!two.nodes[1].alive(two.now), "it hears, and is not heard");
    }

    #[test]
    fn loss_below_a_third_kills_nobody_and_is_shown() {
        let mut two = Two::new();
        for round in 0..100 {
            // Never more than two in a row.
            two.beats(1, |from, n, _| {
                !(n + from as u64 + round % 2).is_multiple_of(4)
            });
            if round > 5 {
                assert!(two.nodes[0].alive(two.now), "round {round}");
            }
        }
        assert_eq!(two.state(0), PathState::Lossy);
    }

    #[test]
    fn a_path_that_swallows_large_packets_is_narrow() {
        let mut two = Two::new();
        two.beats(40, |_, _, _| true);
        two.beats(5 * PROBE_EVERY, |_, _, probe| !probe);
        assert_eq!(two.state(0), PathState::Narrow);
        assert!(two.nodes[0].alive(two.now));
        two.beats(2 * PROBE_EVERY, |_, _, _| true);
        assert_eq!(two.state(0), PathState::Up);
    }

    #[test]
    fn replication_counts_as_a_path() {
        let mut two = Two::new();
        two.beats(10, |_, _, _| true);
        two.beats(10, |_, _, _| false);
        assert!(!two.nodes[0].alive(two.now));
        let now = two.now;
        two.nodes[0].replication_heard(now);
        assert!(two.nodes[0].alive(now));
    }

    #[test]
    fn a_peer_that_has_started_anew_is_counted_anew() {
        let mut two = Two::new();
        two.beats(200, |_, _, _| true);
        let now = two.now;
        let node = &mut two.nodes[0];
        node.heard(0, (1, false, true), &Echo::default(), now);
        assert_eq!(node.echo(0, now).sequence, 1);
        assert_eq!(node.picture(0, now).unwrap().loss_percent, 0);
    }
}
