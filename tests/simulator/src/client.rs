//! Applications: what they ask of a serving node.
//!
//! One application per node and volume. It keeps a few requests in flight and prefers a handful
//! of hot spots, so that requests overlap, extents are shared and the activity log has to turn
//! over.

use crate::disk::SECTOR;
use crate::node::{EXTENT, Wish};
use crate::rng::Rng;
use crate::schedule::{Instant, MICRO, MILLI};

/// Sectors of the largest data request.
const LARGEST: u64 = 256;

/// One application.
pub struct Client {
    rng: Rng,
    /// Sectors of the volume.
    sectors: u64,
    hot: Vec<u64>,
    pub in_flight_max: usize,
    /// Mean pause between two requests inside a burst.
    think: Instant,
    /// Reads per thousand requests.
    reads: u32,
}

/// A request as the application makes it.
pub struct Ask {
    pub wish: Wish,
    pub start: u64,
    pub count: u64,
}

impl Client {
    pub fn new(mut rng: Rng, sectors: u64) -> Client {
        let hot = (0..rng.range(2, 6))
            .map(|_| rng.below(sectors - LARGEST))
            .collect();
        let think = *rng
            .pick(&[200 * MICRO, MILLI, 5 * MILLI, 40 * MILLI])
            .unwrap_or(&MILLI);
        Client {
            hot,
            sectors,
            in_flight_max: rng.range(1, 12) as usize,
            think,
            reads: rng.range(100, 500) as u32,
            rng,
        }
    }

    /// Time until the application asks again.
    pub fn pause(&mut self) -> Instant {
        if self.rng.chance(40) {
            return self.rng.range(100 * MILLI, 3_000 * MILLI);
        }
        self.rng.delay(self.think)
    }

    pub fn ask(&mut self) -> Ask {
        let rng = &mut self.rng;
        if rng.chance(60) {
            return Ask {
                wish: Wish::Flush,
                start: 0,
                count: 0,
            };
        }
        let wish = if rng.chance(self.reads) {
            Wish::Read
        } else {
            match rng.below(20) {
                0 => Wish::Zeroes {
                    unmap: rng.chance(500),
                    fua: rng.chance(200),
                },
                1 => Wish::Discard,
                _ => Wish::Write {
                    fua: rng.chance(120),
                },
            }
        };
        let count = match rng.below(10) {
            0..=2 => rng.range(1, 8),
            3..=6 => 8,
            7 => rng.range(1, 5) * 8,
            8 => rng.range(1, 64),
            _ => rng.range(1, LARGEST + 1),
        };
        let start = self.place(count);
        Ask { wish, start, count }
    }

    fn place(&mut self, count: u64) -> u64 {
        let rng = &mut self.rng;
        let start = match rng.below(10) {
            0..=5 => {
                let hot = rng.pick(&self.hot).copied().unwrap_or(0);
                let start = hot + rng.below(32);
                if rng.chance(600) {
                    start / 8 * 8
                } else {
                    start
                }
            }
            // Across the border of two extents.
            6 => {
                let extents = self.sectors * SECTOR / EXTENT;
                let border = rng.range(1, extents.max(2)) * EXTENT / SECTOR;
                border.saturating_sub(rng.below(count + 1))
            }
            _ => rng.below(self.sectors) / 8 * 8,
        };
        start.min(self.sectors - count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_inside_the_volume() {
        let sectors = 8 * EXTENT / SECTOR;
        let mut client = Client::new(Rng::new(4), sectors);
        let mut kinds = [0; 5];
        for _ in 0..5_000 {
            let ask = client.ask();
            assert!(ask.start + ask.count <= sectors);
            kinds[match ask.wish {
                Wish::Read => 0,
                Wish::Write { .. } => 1,
                Wish::Zeroes { .. } => 2,
                Wish::Discard => 3,
                Wish::Flush => 4,
            }] += 1;
        }
        assert!(kinds.iter().all(|n| *n > 20), "{kinds:?}");
    }
}
