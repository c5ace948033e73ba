//! What is measured: the cases, and which offset each request of a case goes to.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// When a write counts as done; DRBD's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Protocol {
    /// On the local disk, and handed to the network.
    #[value(name = "A", alias = "a")]
    A,
    /// As A, and in the peer's memory.
    #[value(name = "B", alias = "b")]
    B,
    /// On both disks.
    #[value(name = "C", alias = "c")]
    C,
}

/// How the two nodes are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
}

/// The access pattern; fio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    #[value(name = "randwrite")]
    RandWrite,
    #[value(name = "randread")]
    RandRead,
    /// Sequential.
    Write,
    /// Sequential.
    Read,
}

impl Pattern {
    pub fn writes(self) -> bool {
        matches!(self, Pattern::RandWrite | Pattern::Write)
    }

    fn is_random(self) -> bool {
        matches!(self, Pattern::RandWrite | Pattern::RandRead)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pattern::RandWrite => "randwrite",
            Pattern::RandRead => "randread",
            Pattern::Write => "write",
            Pattern::Read => "read",
        })
    }
}

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub rw: Pattern,
    /// Bytes per request: a multiple of 4096.
    pub bs: u32,
    /// Requests in flight.
    pub iodepth: u32,
}

impl Case {
    /// The same with one request in flight: what the limit of a latency is made of.
    pub fn single(self) -> Case {
        Case { iodepth: 1, ..self }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}k-q{}", self.rw, self.bs / 1024, self.iodepth)
    }
}

/// Every combination, patterns outermost.
pub fn cases(rw: &[Pattern], bs: &[u32], iodepth: &[u32]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &rw in rw {
        for &bs in bs {
            for &iodepth in iodepth {
                let case = Case { rw, bs, iodepth };
                if !cases.contains(&case) {
                    cases.push(case);
                }
            }
        }
    }
    cases
}

/// Offsets for the requests of a case, endless.
pub struct Offsets {
    random: bool,
    bs: u64,
    blocks: u64,
    state: u64,
}

impl Offsets {
    /// Offsets below `size` bytes, which must hold at least one block.
    pub fn new(case: Case, size: u64) -> Offsets {
        let bs = u64::from(case.bs);
        Offsets {
            random: case.rw.is_random(),
            bs,
            blocks: (size / bs).max(1),
            state: 0,
        }
    }
}

impl Iterator for Offsets {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.state = self.state.wrapping_add(1);
        let number = if self.random {
            scramble(self.state)
        } else {
            self.state - 1
        };
        Some(number % self.blocks * self.bs)
    }
}

/// The output function of splitmix64: random enough for offsets and payloads, and repeatable.
pub fn scramble(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Bytes that do not compress, for payloads.
pub fn noise(length: usize) -> Vec<u8> {
    let words = (1..).map(|n| scramble(n).to_le_bytes());
    words.flatten().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn offsets_stay_inside_and_are_aligned() {
        let size = 10 * 4096 + 100;
        for rw in [
            Pattern::RandWrite,
            Pattern::RandRead,
            Pattern::Write,
            Pattern::Read,
        ] {
            let case = Case {
                rw,
                bs: 4096,
                iodepth: 1,
            };
            let offsets: Vec<u64> = Offsets::new(case, size).take(1000).collect();
            assert!(offsets.iter().all(|o| o % 4096 == 0 && o + 4096 <= size));
            assert_eq!(offsets.iter().collect::<HashSet<_>>().len(), 10);
            let sequential = offsets.windows(2).all(|w| w[1] == (w[0] + 4096) % 40960);
            assert_eq!(sequential, !rw.is_random());
        }
    }

    #[test]
    fn a_combination_that_is_asked_for_twice_is_measured_once() {
        let names: Vec<String> = cases(
            &[Pattern::RandWrite, Pattern::Write],
            &[4096, 131_072],
            &[1, 32, 1],
        )
        .iter()
        .map(Case::to_string)
        .collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[0], "randwrite-4k-q1");
        assert_eq!(names[7], "write-128k-q32");
    }
}
