//! A small deterministic generator (xoshiro256**, seeded through splitmix64).
//!
//! Own code instead of a library: a seed must give the same run for as long as the repository
//! exists, whatever a dependency changes.

/// The generator. Cloning it forks the same sequence.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator that depends on `seed` alone.
    pub fn new(seed: u64) -> Rng {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            mix(x)
        };
        Rng {
            state: [next(), next(), next(), next()],
        }
    }

    pub fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `low..high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// True with probability `per_mille` / 1000.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// A positive delay with mean about `mean` and a long tail (up to 16 times the mean).
    pub fn delay(&mut self, mean: u64) -> u64 {
        let spread = self.range(mean / 4, mean.max(1) * 5 / 4);
        match self.below(64) {
            0 => spread * 16,
            1..=4 => spread * 4,
            _ => spread,
        }
        .max(1)
    }

    /// One of `items`; the first when there is nothing to choose from.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len() as u64) as usize)
    }

    /// Index into `weights`, each chosen in proportion to its weight.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut left = self.below(total);
        for (index, weight) in weights.iter().enumerate() {
            if left < u64::from(*weight) {
                return index;
            }
            left -= u64::from(*weight);
        }
        0
    }

    /// An independent generator for a part of the world.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }
}

/// The finaliser of splitmix64: spreads every input bit over the output.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences() {
        let (mut a, mut b, mut c) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let left: Vec<u64> = (0..100).map(|_| a.next()).collect();
        let right: Vec<u64> = (0..100).map(|_| b.next()).collect();
        let other: Vec<u64> = (0..100).map(|_| c.next()).collect();
        assert_eq!(left, right);
        assert_ne!(left, other);
    }

    #[test]
    fn draws_stay_in_their_range_and_reach_both_ends() {
        let mut rng = Rng::new(1);
        let draws: Vec<u64> = (0..1000).map(|_| rng.range(3, 6)).collect();
        assert_eq!(draws.iter().min(), Some(&3));
        assert_eq!(draws.iter().max(), Some(&5));
        assert_eq!(rng.weighted(&[0, 5, 0]), 1);
    }
}
