//! One closed loop for everything that is measured: a fixed number of requests in flight, a new
//! one for each that finishes. Product and limits go through the same loop, so that their
//! figures differ by what lies behind the [`Lane`] only.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::plan::{Case, Offsets};

/// Where requests go to. A slot is a request in flight, below the case's `iodepth`.
pub trait Lane {
    /// Takes a request; it may stay here until the next `take`.
    fn queue(&mut self, slot: usize, offset: u64) -> Result<(), BenchError>;

    /// Sends what is queued, then waits for a request to finish.
    fn take(&mut self) -> Result<usize, BenchError>;

    /// The next one that has finished, when that needs no wait.
    fn take_ready(&mut self) -> Result<Option<usize>, BenchError>;
}

/// Figures of one case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// All requests of the run, those outside the measured time included.
    pub requests: u64,
    pub iops: f64,
    pub mib_s: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// How long a case runs.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Before anything counts.
    pub warm_up: Duration,
    pub measured: Duration,
}

impl Span {
    /// Of a case that is to be measured for `seconds`: a tenth of it, but at least 0.2 s, is
    /// run before that.
    pub fn of_seconds(seconds: u32) -> Span {
        let measured = Duration::from_secs(u64::from(seconds));
        Span {
            warm_up: (measured / 10).max(Duration::from_millis(200)),
            measured,
        }
    }
}

/// Nanoseconds beyond which latencies are not told apart.
const LONGEST: u64 = 120_000_000_000;

/// Decimal digits that a latency keeps: finer than what a machine repeats.
const DIGITS: u8 = 3;

/// Latencies of the requests that finished within the measured time.
struct Tally {
    /// In nanoseconds.
    latencies: Histogram<u64>,
    begin: Instant,
    end: Instant,
    /// Requests within the measured time and outside.
    requests: u64,
}

impl Tally {
    fn new(span: Span) -> Tally {
        let begin = Instant::now() + span.warm_up;
        Tally {
            latencies: Histogram::new_with_max(LONGEST, DIGITS)
                .unwrap_or_else(|_| unreachable!("both bounds are allowed")),
            begin,
            end: begin + span.measured,
            requests: 0,
        }
    }

    fn finished(&mut self, started: Instant, now: Instant) {
        self.requests += 1;
        if now >= self.begin && now < self.end {
            self.latencies
                .saturating_record((now - started).as_nanos() as u64);
        }
    }

    fn figures(&self, bs: u32) -> Result<Figures, BenchError> {
        let histogram = &self.latencies;
        if histogram.is_empty() {
            return Err(BenchError::NothingMeasured);
        }
        let iops = histogram.len() as f64 / (self.end - self.begin).as_secs_f64();
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Figures {
            requests: self.requests,
            iops,
            mib_s: iops * f64::from(bs) / f64::from(1 << 20),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
        })
    }
}

/// Runs `case` over the first `size` bytes behind `lane`.
pub fn drive(
    lane: &mut dyn Lane,
    case: Case,
    size: u64,
    span: Span,
) -> Result<Figures, BenchError> {
    let mut offsets = Offsets::new(case, size);
    let mut tally = Tally::new(span);
    let mut started = vec![Instant::now(); case.iodepth as usize];
    let mut in_flight = 0;
    let mut idle: Vec<usize> = (0..started.len()).rev().collect();
    loop {
        let now = Instant::now();
        while now < tally.end
            && let Some(slot) = idle.pop()
            && let Some(offset) = offsets.next()
        {
            started[slot] = now;
            lane.queue(slot, offset)?;
            in_flight += 1;
        }
        if in_flight == 0 {
            return tally.figures(case.bs);
        }
        let mut next = Some(lane.take()?);
        let now = Instant::now();
        while let Some(slot) = next {
            tally.finished(started[slot], now);
            idle.push(slot);
            in_flight -= 1;
            next = lane.take_ready()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Pattern;
    use std::collections::VecDeque;

    /// Finishes requests in order, one per millisecond.
    struct Slow {
        queue: VecDeque<usize>,
        most: usize,
    }

    impl Lane for Slow {
        fn queue(&mut self, slot: usize, _offset: u64) -> Result<(), BenchError> {
            assert!(!self.queue.contains(&slot));
            self.queue.push_back(slot);
            self.most = self.most.max(self.queue.len());
            Ok(())
        }

        fn take(&mut self) -> Result<usize, BenchError> {
            std::thread::sleep(Duration::from_millis(1));
            Ok(self.queue.pop_front().unwrap())
        }

        fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
            Ok(None)
        }
    }

    fn run(span: Span) -> (Result<Figures, BenchError>, Slow) {
        let mut lane = Slow {
            queue: VecDeque::new(),
            most: 0,
        };
        let case = Case {
            rw: Pattern::RandWrite,
            bs: 4096,
            iodepth: 4,
        };
        (drive(&mut lane, case, 1 << 20, span), lane)
    }

    #[test]
    fn the_depth_is_kept_and_the_figures_fit_together() {
        let (figures, lane) = run(Span {
            warm_up: Duration::from_millis(20),
            measured: Duration::from_millis(200),
        });
        let figures = figures.unwrap();
        assert!(lane.queue.is_empty());
        assert_eq!(lane.most, 4);
        // A request waits for those before it: Little's law, whatever the machine does.
        let in_flight = figures.iops * figures.mean_us / 1e6;
        assert!((3.0..5.0).contains(&in_flight), "{figures:?}");
        assert!(figures.p50_us >= 4000.0 && figures.p50_us <= figures.max_us);
        assert!(figures.iops <= 1000.0);
    }

    #[test]
    fn a_time_too_short_for_one_request_gives_no_figures() {
        let (figures, _) = run(Span {
            warm_up: Duration::ZERO,
            measured: Duration::ZERO,
        });
        assert!(matches!(figures, Err(BenchError::NothingMeasured)));
    }
}
