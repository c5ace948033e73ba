//! How fast a sync may go: a hard cap, and a controller that takes what disk and link can give
//! while nobody else wants it and steps back as soon as the application does.
//!
//! Pure: it is told when blocks are claimed and done and when application requests begin and end,
//! and says how many bytes may be claimed now, or when to ask again. One [`Pace`] belongs to the
//! running sync of one volume; one [`Load`] to the resource, whose volumes share link and host.
//!
//! The rules, in order:
//!
//! 1. *Cap* (`resync-rate`, `c-max-rate`): a schedule that each block moves on by its length. What
//!    was missed is made up for at most [`CREDIT`], and no more than that is in flight beyond what
//!    the path holds, because it all arrives at once when the path comes back from a stall. A block
//!    takes at most [`STEP`] of the cap. So any two seconds hold it within 5 %, here and at the peer.
//! 2. *Fixed rate* (`c-plan-ahead 0`): nothing but the cap counts.
//! 3. *Application idle* for [`CALM`]: bytes in flight up to the measured rate times (the shortest
//!    answer seen + `c-delay-target`), or `c-fill-target`. The queue that this builds is what a
//!    first application request finds in front of it.
//! 4. *Application active*: in its pauses ([`GAP`] after its last request ended) as much as keeps
//!    the path busy without a queue, in blocks that take no longer than the application's own
//!    requests do.
//! 5. *Floor* (`c-min-rate`): whatever the application does, this much goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::{RequestId, Time};

/// Time that the cap's schedule may make up for.
const CREDIT: Duration = Duration::from_millis(40);
/// The longest that one block may take of the cap.
const STEP: Duration = Duration::from_millis(20);
/// Pause of the application after which it counts as idle.
const CALM: Duration = Duration::from_secs(1);
/// Pause of the application that a block may be slipped into.
const GAP: Duration = Duration::from_millis(3);
/// In flight before anything was measured.
const FIRST_WINDOW: u64 = 1 << 20;
/// No window is smaller: one block must fit.
const MIN_WINDOW: u64 = 64 << 10;
/// Blocks while the application is active are at least this long.
const MIN_BLOCK: u64 = 16 << 10;
/// Progress beside a busy application when nothing is set, bytes per second.
const FLOOR: u64 = 10 << 20;
/// No block is longer.
const MAX_BLOCK: u64 = 1 << 20;
/// All blocks are multiples of this, the unit of the dirty bitmap.
const UNIT: u64 = 4096;

/// What the administrator sets. Bytes and bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The lowest of `resync-rate` and `c-max-rate`; none = what disk and link give.
    pub cap: Option<u64>,
    /// `c-min-rate`: goes on however busy the application is; 0 = nothing is guaranteed; none =
    /// [`FLOOR`], but at most a quarter of what the path gives.
    pub floor: Option<u64>,
    /// `c-plan-ahead`: how long a measurement of the path counts; zero = fixed rate, without
    /// regard for the application.
    pub plan_ahead: Duration,
    /// `c-delay-target`: the queue that a sync may build while the application is idle.
    pub delay_target: Duration,
    /// `c-fill-target`: bytes in flight while the application is idle; 0 = by `delay_target`.
    pub fill_target: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cap: None,
            floor: None,
            plan_ahead: Duration::from_secs(2),
            delay_target: Duration::from_millis(100),
            fill_target: 0,
        }
    }
}

/// A request of the application, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Of a front end here.
    Request(RequestId),
    /// A write that the peer sent, by its item number.
    PeerWrite(u64),
    /// A read that the peer asked for, by its id.
    PeerRead(u64),
}

/// What the application does, as far as this node sees it: its own requests, and on a secondary
/// those that the peer sends.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Requests under way and when they began.
    open: BTreeMap<Work, Time>,
    last: Option<Time>,
    /// Shortest recent time from begin to end of a request; rises by an eighth with each request
    /// so that it follows a path that has become slower.
    typical: Option<Duration>,
}

impl Load {
    /// A request arrived.
    pub fn begin(&mut self, now: Time, work: Work) {
        self.open.insert(work, now);
        self.last = Some(now);
    }

    /// It ended; one that is not open is ignored.
    pub fn end(&mut self, now: Time, work: Work) {
        let Some(began) = self.open.remove(&work) else {
            return;
        };
        let took = now.since(began);
        self.last = Some(now);
        self.typical = Some(match self.typical {
            None => took,
            Some(typical) => took.min(typical + typical / 8),
        });
    }

    /// Whether the application counts as idle.
    pub(super) fn is_calm(&self, now: Time) -> bool {
        self.quiet(now).is_some_and(|quiet| quiet >= CALM)
    }

    /// How long the application has been quiet; none = it is not.
    fn quiet(&self, now: Time) -> Option<Duration> {
        self.open
            .is_empty()
            .then(|| self.last.map_or(Duration::MAX, |last| now.since(last)))
    }
}

/// The answer of [`Pace::admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// A block of at most this many bytes, a multiple of 4096.
    Now(u32),
    /// Ask again at this time, or when something has ended before.
    At(Time),
    /// Ask again when a block or a request has ended.
    Later,
}

/// When a block was claimed; handed back when it is done.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    at: Time,
    bytes: u64,
    delivered: u64,
    /// Nothing but the path held the sync back.
    full: bool,
}

/// A schedule of bytes per second that can be behind by a bounded time.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    next: Time,
}

impl Schedule {
    /// When the next byte may go.
    fn due(&self, now: Time) -> Time {
        Time(self.next.0.max(now.0.saturating_sub(nanos(CREDIT))))
    }

    fn take(&mut self, now: Time, bytes: u64, rate: u64) {
        self.next = self.due(now).after(at_rate(bytes, rate));
    }
}

/// The pace of one running sync.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    limits: Limits,
    cap: Schedule,
    floor: Schedule,
    in_flight: u64,
    delivered: u64,
    /// Best rate seen lately, bytes per second, and when it was last looked at. It falls, by half
    /// in each `plan_ahead`, only while the sync uses all that the path gives: less was asked for
    /// otherwise.
    best: Option<(u64, Time)>,
    /// Shortest time from claim to answer.
    shortest: Option<Duration>,
}

impl Pace {
    pub fn new(limits: Limits, now: Time) -> Pace {
        let schedule = Schedule { next: now };
        Pace {
            limits,
            cap: schedule,
            floor: schedule,
            in_flight: 0,
            delivered: 0,
            best: None,
            shortest: None,
        }
    }

    /// Takes new limits; they count from now on.
    pub fn set_limits(&mut self, limits: Limits, now: Time) {
        self.limits = limits;
        self.cap.next = now;
        self.floor.next = now;
    }

    /// Bytes claimed and not done.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The rate that disk and link were last seen to give, bytes per second.
    pub fn measured(&self) -> Option<u64> {
        self.best.map(|(rate, _)| rate)
    }

    /// Whether a block may be claimed now.
    pub fn admit(&self, now: Time, load: &Load) -> Admit {
        let longest = match self.limits.cap {
            Some(cap) => {
                let due = self.cap.due(now);
                if due > now {
                    return Admit::At(due);
                }
                let step = in_time(cap, STEP).clamp(UNIT, MAX_BLOCK);
                let window = in_time(cap, self.shortest.unwrap_or_default() + CREDIT);
                if self.in_flight > 0 && self.in_flight + step > window {
                    return Admit::Later;
                }
                step
            }
            None => u64::MAX,
        };
        match self.controlled(now, load) {
            Admit::Now(bytes) => block(u64::from(bytes).min(longest)),
            other => other,
        }
    }

    /// Rules 2 to 5.
    fn controlled(&self, now: Time, load: &Load) -> Admit {
        if self.limits.plan_ahead.is_zero() {
            return block(u64::MAX);
        }
        if load.is_calm(now) {
            return self.fill(self.idle_window(), self.long_block());
        }
        let short = self.short_block(load);
        let gap = match load.quiet(now) {
            Some(quiet) if quiet >= GAP => self.fill(self.path().max(short), short),
            Some(quiet) => Admit::At(now.after(GAP - quiet)),
            None => Admit::Later,
        };
        match (gap, self.floor_due(now)) {
            (Admit::Now(bytes), _) => Admit::Now(bytes),
            (_, Some(due)) if due <= now => self.fill(self.idle_window(), short),
            (Admit::At(gap), Some(due)) => Admit::At(gap.min(due)),
            (Admit::Later, Some(due)) => Admit::At(due),
            (gap, None) => gap,
        }
    }

    /// Up to `window` bytes in flight, in blocks of at most `longest`.
    fn fill(&self, window: u64, longest: u64) -> Admit {
        if self.in_flight == 0 || self.in_flight + MIN_BLOCK <= window {
            let room = window.saturating_sub(self.in_flight).max(MIN_BLOCK);
            block(room.min(longest))
        } else {
            Admit::Later
        }
    }

    /// When the floor wants the next block; none = no floor.
    fn floor_due(&self, now: Time) -> Option<Time> {
        (self.floor_rate() > 0).then(|| self.floor.due(now))
    }

    fn floor_rate(&self) -> u64 {
        match (self.limits.floor, self.measured()) {
            (Some(floor), _) => floor,
            (None, Some(rate)) => FLOOR.min((rate / 4).max(1)),
            (None, None) => FLOOR,
        }
    }

    /// In flight that builds a queue as long as the administrator allows.
    fn idle_window(&self) -> u64 {
        if self.limits.fill_target > 0 {
            return self.limits.fill_target.max(MIN_WINDOW);
        }
        match (self.measured(), self.shortest) {
            (Some(rate), Some(shortest)) => {
                in_time(rate, shortest + self.limits.delay_target).max(FIRST_WINDOW)
            }
            _ => FIRST_WINDOW,
        }
    }

    /// In flight that keeps the path busy without a queue.
    fn path(&self) -> u64 {
        match (self.measured(), self.shortest) {
            (Some(rate), Some(shortest)) => in_time(rate, shortest).max(MIN_WINDOW),
            _ => MIN_WINDOW,
        }
    }

    /// A block that is a small part of the queue: the path's own delay shows only behind such.
    fn long_block(&self) -> u64 {
        match self.measured() {
            Some(rate) => in_time(rate, self.limits.delay_target / 10).max(MIN_WINDOW),
            None => MIN_WINDOW,
        }
    }

    /// A block that takes about as long as a request of the application.
    fn short_block(&self, load: &Load) -> u64 {
        match (self.measured(), load.typical) {
            (Some(rate), Some(typical)) => in_time(rate, typical).max(MIN_BLOCK),
            _ => MIN_BLOCK,
        }
    }

    /// A block of `bytes` was claimed.
    pub fn claim(&mut self, now: Time, load: &Load, bytes: u64) -> Claim {
        self.in_flight += bytes;
        if let Some(cap) = self.limits.cap {
            self.cap.take(now, bytes, cap);
        }
        let floor = self.floor_rate();
        if floor > 0 {
            // What went beyond the floor while the application was idle is not held against it.
            self.floor.take(now, bytes, floor);
            self.floor.next = self.floor.next.min(now.after(at_rate(bytes, floor)));
        }
        Claim {
            at: now,
            bytes,
            delivered: self.delivered,
            full: self.limits.cap.is_none() && load.is_calm(now),
        }
    }

    /// A claimed block was answered.
    pub fn done(&mut self, now: Time, claim: Claim) {
        self.in_flight -= claim.bytes.min(self.in_flight);
        self.delivered += claim.bytes;
        let took = now.since(claim.at);
        self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
        let sample = rate_of(self.delivered - claim.delivered, took);
        self.best = Some(match self.best {
            None => (sample, now),
            Some((best, since)) => {
                let lost = match claim.full {
                    true => part(best / 2, now.since(since), self.limits.plan_ahead),
                    false => 0,
                };
                (sample.max(best - lost), now)
            }
        });
    }
}

/// `whole` times `time` / `of`, at most `whole`.
fn part(whole: u64, time: Duration, of: Duration) -> u64 {
    let share = u128::from(whole) * time.as_nanos() / of.as_nanos().max(1);
    share.min(u128::from(whole)) as u64
}

/// Bytes per second.
fn rate_of(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    rate.min(u128::from(u64::MAX)) as u64
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos().min(u128::from(u64::MAX)) as u64
}

/// How long `bytes` take at `rate`.
fn at_rate(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
}

/// How many bytes go at `rate` in `time`.
fn in_time(rate: u64, time: Duration) -> u64 {
    (u128::from(rate) * time.as_nanos() / 1_000_000_000).min(u128::from(u64::MAX)) as u64
}

fn block(bytes: u64) -> Admit {
    let whole = (bytes / UNIT * UNIT).clamp(UNIT, MAX_BLOCK);
    Admit::Now(whole as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000_000;

    fn capped(mib: u64) -> Limits {
        Limits {
            cap: Some(mib * MIB),
            ..Limits::default()
        }
    }

    /// A path that answers after `latency` and gives `rate`, one block after the other; returns
    /// when each block was claimed and its length. `late` delays every wake-up.
    fn run(
        pace: &mut Pace,
        load: &Load,
        span: Duration,
        path: (u64, Duration),
        late: Duration,
    ) -> Vec<(Time, u64)> {
        let (rate, latency) = path;
        let mut now = Time(SECOND);
        let end = now.after(span);
        let mut free = now;
        let mut flying: Vec<(Time, Claim)> = Vec::new();
        let mut log = Vec::new();
        while now < end {
            flying.sort_by_key(|(at, _)| *at);
            while flying.first().is_some_and(|(at, _)| *at <= now) {
                let (_, claim) = flying.remove(0);
                pace.done(now, claim);
            }
            let next = flying.first().map(|(at, _)| *at);
            match pace.admit(now, load) {
                Admit::Now(bytes) => {
                    let claim = pace.claim(now, load, u64::from(bytes));
                    free = free.max(now).after(at_rate(u64::from(bytes), rate));
                    flying.push((free.after(latency), claim));
                    log.push((now, u64::from(bytes)));
                }
                Admit::At(at) => now = next.map_or(at.after(late), |next| next.min(at.after(late))),
                Admit::Later => now = next.expect("a block is under way"),
            }
        }
        log
    }

    fn fast() -> (u64, Duration) {
        (4096 * MIB, Duration::from_micros(200))
    }

    #[test]
    fn any_two_seconds_keep_the_cap_within_five_percent() {
        for late in [0, 1, 20].map(Duration::from_millis) {
            for mib in [1, 10, 50, 500] {
                let mut pace = Pace::new(capped(mib), Time(SECOND));
                let log = run(
                    &mut pace,
                    &Load::default(),
                    Duration::from_secs(6),
                    fast(),
                    late,
                );
                for start in (SECOND..5 * SECOND).step_by(100_000_000) {
                    let window = Time(start)..Time(start + 2 * SECOND);
                    let bytes: u64 = log
                        .iter()
                        .filter(|(at, _)| window.contains(at))
                        .map(|(_, n)| n)
                        .sum();
                    let ratio = bytes as f64 / (2 * mib * MIB) as f64;
                    assert!(
                        (0.95..=1.05).contains(&ratio),
                        "{mib} MiB/s, late {late:?}: {ratio}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_stall_held_up_does_not_break_the_cap_when_it_arrives() {
        for mib in [1, 10, 50, 500] {
            let mut pace = Pace::new(capped(mib), Time(SECOND));
            let load = Load::default();
            let step = Duration::from_millis(1);
            let stall = Time(4 * SECOND)..Time(6 * SECOND);
            let mut flying: Vec<Claim> = Vec::new();
            let mut answered: Vec<(Time, u64)> = Vec::new();
            let mut now = Time(SECOND);
            while now < Time(10 * SECOND) {
                if !stall.contains(&now) {
                    for claim in flying.drain(..) {
                        pace.done(now, claim);
                        answered.push((now, claim.bytes));
                    }
                }
                while let Admit::Now(bytes) = pace.admit(now, &load) {
                    flying.push(pace.claim(now, &load, u64::from(bytes)));
                }
                now = now.after(step);
            }
            for start in (SECOND..8 * SECOND).step_by(10_000_000) {
                let window = Time(start)..Time(start + 2 * SECOND);
                let inside = answered.iter().filter(|(at, _)| window.contains(at));
                let bytes: u64 = inside.map(|(_, n)| n).sum();
                let ratio = bytes as f64 / (2 * mib * MIB) as f64;
                assert!(ratio <= 1.05, "{mib} MiB/s: {ratio}");
            }
        }
    }

    #[test]
    fn a_new_cap_counts_at_once() {
        let mut pace = Pace::new(capped(1), Time(SECOND));
        run(
            &mut pace,
            &Load::default(),
            Duration::from_secs(1),
            fast(),
            Duration::ZERO,
        );
        pace.set_limits(capped(100), Time(2 * SECOND));
        assert!(matches!(
            pace.admit(Time(2 * SECOND), &Load::default()),
            Admit::Now(_)
        ));
    }

    #[test]
    fn an_idle_application_leaves_the_whole_path() {
        for (rate, latency) in [
            (12 * MIB, 20),
            (117 * MIB, 1),
            (500 * MIB, 1),
            (3000 * MIB, 1),
        ] {
            let path = (rate, Duration::from_millis(latency));
            let mut pace = Pace::new(Limits::default(), Time(SECOND));
            let log = run(
                &mut pace,
                &Load::default(),
                Duration::from_secs(4),
                path,
                Duration::ZERO,
            );
            let bytes: u64 = log.iter().map(|(_, n)| n).sum();
            assert!(bytes as f64 > 0.95 * 4.0 * rate as f64, "{rate}: {bytes}");
            // What a first request of the application would find before it.
            let queue = at_rate(pace.in_flight(), rate);
            assert!(
                queue <= Duration::from_millis(100 + 2 * latency + 10),
                "{rate}: {queue:?}"
            );
        }
    }

    #[test]
    fn a_busy_application_leaves_the_floor() {
        let mut load = Load::default();
        load.begin(Time(0), Work::PeerWrite(1));
        for (floor, expected) in [(Some(2 * MIB), 2 * MIB), (None, 10 * MIB)] {
            let limits = Limits {
                floor,
                ..Limits::default()
            };
            let mut pace = Pace::new(limits, Time(SECOND));
            let log = run(
                &mut pace,
                &load,
                Duration::from_secs(4),
                fast(),
                Duration::ZERO,
            );
            let bytes: u64 = log.iter().map(|(_, n)| n).sum();
            let ratio = bytes as f64 / (4 * expected) as f64;
            assert!((0.95..=1.05).contains(&ratio), "{floor:?}: {ratio}");
        }
        let none = Limits {
            floor: Some(0),
            ..Limits::default()
        };
        let pace = Pace::new(none, Time(SECOND));
        assert_eq!(pace.admit(Time(9 * SECOND), &load), Admit::Later);
    }

    #[test]
    fn a_pause_of_the_application_is_used_and_its_end_is_the_end() {
        let mut load = Load::default();
        load.begin(Time(0), Work::PeerWrite(1));
        load.end(Time(SECOND), Work::PeerWrite(1));
        let none = Limits {
            floor: Some(0),
            ..Limits::default()
        };
        let pace = Pace::new(none, Time(SECOND));
        let gap = Time(SECOND).after(GAP);
        assert_eq!(pace.admit(Time(SECOND), &load), Admit::At(gap));
        assert!(matches!(pace.admit(gap, &load), Admit::Now(_)));
        load.begin(gap, Work::PeerWrite(2));
        assert_eq!(pace.admit(gap, &load), Admit::Later);
    }

    #[test]
    fn a_fixed_rate_has_no_regard_for_the_application() {
        let mut load = Load::default();
        load.begin(Time(0), Work::PeerWrite(1));
        let limits = Limits {
            plan_ahead: Duration::ZERO,
            ..capped(50)
        };
        let mut pace = Pace::new(limits, Time(SECOND));
        let log = run(
            &mut pace,
            &load,
            Duration::from_secs(4),
            fast(),
            Duration::ZERO,
        );
        let bytes: u64 = log.iter().map(|(_, n)| n).sum();
        assert!((0.95..=1.05).contains(&(bytes as f64 / (200 * MIB) as f64)));
    }

    #[test]
    fn an_idle_time_above_the_floor_is_not_held_against_it() {
        let mut pace = Pace::new(Limits::default(), Time(SECOND));
        run(
            &mut pace,
            &Load::default(),
            Duration::from_secs(4),
            fast(),
            Duration::ZERO,
        );
        let mut load = Load::default();
        let now = Time(5 * SECOND);
        load.begin(now, Work::PeerWrite(1));
        let soon = now.after(Duration::from_millis(200));
        assert!(pace.floor_due(now).is_some_and(|due| due <= soon));
    }
}
