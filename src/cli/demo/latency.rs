//! How long single writes take under each protocol.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::front::{Front, FrontError};
use super::load::{BLOCK, Random};

/// Longer than any write that succeeds, in microseconds.
const LONGEST: u64 = 60_000_000;
/// Writes before anything is measured: connections and caches warm up.
const WARM_UP: u64 = 50;

/// Latency percentiles in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    pub writes: u64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
}

/// Writes random blocks of 4 KiB one after the other for `time`.
pub fn measure(front: &mut Front, time: Duration) -> Result<Latency, FrontError> {
    let blocks = (front.size()? / BLOCK as u64).max(1);
    let mut random = Random::new(blocks);
    let data = vec![0x5a; BLOCK];
    let mut write = || front.write(random.next() % blocks * BLOCK as u64, &data);
    for _ in 0..WARM_UP {
        write()?;
    }
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST, 3)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let sent = Instant::now();
        write()?;
        let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(LONGEST);
        histogram.saturating_record(took);
    }
    Ok(Latency {
        writes: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
    })
}
