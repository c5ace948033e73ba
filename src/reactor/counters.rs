//! The data plane's own measurements: how long operations took, per volume.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::engine::Time;

/// Longest time that is told apart, microseconds; longer ones count as this.
const LONGEST_US: u64 = 60_000_000;

/// Writes on their way to the peer whose times are kept; more are not measured.
const MAX_UNACKED: usize = 16 << 10;

/// A latency distribution with a relative error of 1 %.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

/// What is shown of a distribution. Microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    fn new() -> Option<Latency> {
        Histogram::new_with_bounds(1, LONGEST_US, 2)
            .ok()
            .map(Latency)
    }

    fn record(&mut self, begin: Time, end: Time) {
        let micros = (end.since(begin).as_micros() as u64).max(1);
        self.0.saturating_record(micros);
    }

    fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.0.len(),
            p50: self.0.value_at_quantile(0.5),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Front-end write, from the request to its completion.
    Write,
    /// Front-end read.
    Read,
    /// Write on the local disk.
    Local,
    /// Write sent to the peer, until its acknowledgement.
    Peer,
}

impl Measure {
    /// Everything that is measured, with its name in `latency_us`.
    pub const ALL: [(Measure, &'static str); 4] = [
        (Measure::Write, "write"),
        (Measure::Read, "read"),
        (Measure::Local, "local"),
        (Measure::Peer, "peer"),
    ];
}

/// A write that the peer has not acknowledged.
#[derive(Debug)]
struct Unacked {
    sequence: u64,
    volume: usize,
    sent: Time,
}

/// The measurements of all volumes.
#[derive(Debug)]
pub struct Counters {
    /// Per volume, in the order of `Measure::ALL`; empty when memory was short at start.
    latencies: Vec<Vec<Latency>>,
    /// In the order of their sequence numbers.
    unacked: VecDeque<Unacked>,
}

impl Counters {
    /// Zero for each of `volumes` volumes.
    pub fn new(volumes: usize) -> Counters {
        let one = || Measure::ALL.iter().filter_map(|_| Latency::new()).collect();
        Counters {
            latencies: (0..volumes).map(|_| one()).collect(),
            unacked: VecDeque::with_capacity(MAX_UNACKED),
        }
    }

    /// Counts an operation on the volume with this index.
    pub fn record(&mut self, volume: usize, measure: Measure, begin: Time, end: Time) {
        let latencies = self.latencies.get_mut(volume);
        if let Some(latency) = latencies.and_then(|all| all.get_mut(measure as usize)) {
            latency.record(begin, end);
        }
    }

    /// A write leaves for the peer. Sequence numbers rise within a session; a lower one than
    /// before begins a new session, whose predecessor's writes are forgotten.
    pub fn sent(&mut self, sequence: u64, volume: usize, now: Time) {
        let newest = self.unacked.back().map_or(0, |last| last.sequence);
        if sequence <= newest {
            self.unacked.clear();
        }
        if self.unacked.len() < MAX_UNACKED {
            self.unacked.push_back(Unacked {
                sequence,
                volume,
                sent: now,
            });
        }
    }

    /// The peer acknowledged a write; only the first acknowledgement of a write counts.
    pub fn acked(&mut self, sequence: u64, now: Time) {
        let found = self
            .unacked
            .binary_search_by_key(&sequence, |write| write.sequence);
        if let Some(write) = found.ok().and_then(|index| self.unacked.remove(index)) {
            self.record(write.volume, Measure::Peer, write.sent, now);
        }
    }

    /// The distributions of the volume with this index.
    pub fn percentiles(&self, volume: usize) -> [Percentiles; 4] {
        Measure::ALL.map(|(measure, _)| {
            let latencies = self.latencies.get(volume);
            latencies
                .and_then(|all| all.get(measure as usize))
                .map(Latency::percentiles)
                .unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Time {
        Time(micros * 1000)
    }

    #[test]
    fn latencies_are_per_volume_and_measure() {
        let mut counters = Counters::new(2);
        for micros in 1..=100 {
            counters.record(1, Measure::Write, at(0), at(micros));
        }
        counters.record(9, Measure::Write, at(0), at(1));
        let [write, read, ..] = counters.percentiles(1);
        assert_eq!((write.count, write.p50, write.max), (100, 50, 100));
        assert_eq!(read, Percentiles::default());
        assert_eq!(counters.percentiles(0)[0].count, 0);
    }

    #[test]
    fn an_acknowledgement_counts_once_and_only_in_its_session() {
        let mut counters = Counters::new(1);
        for sequence in 1..=3 {
            counters.sent(sequence, 0, at(10 * sequence));
        }
        counters.acked(2, at(60));
        counters.acked(2, at(90));
        counters.acked(7, at(90));
        let peer = counters.percentiles(0)[Measure::Peer as usize];
        assert_eq!((peer.count, peer.max), (1, 40));
        counters.sent(1, 0, at(100));
        counters.acked(3, at(200));
        assert_eq!(counters.percentiles(0)[Measure::Peer as usize].count, 1);
    }
}
