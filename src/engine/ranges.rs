//! Sorted byte ranges that touch nowhere, in bounded memory.

use std::ops::Range;
use std::sync::Arc;

/// Ranges kept apart; beyond it the nearest neighbours become one, gap included.
const MAX_RANGES: usize = 65_536;

/// A set of bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// Shared with pictures of the state, which are cheap that way.
    sorted: Arc<Vec<Range<u64>>>,
}

impl Ranges {
    /// Adds a range; an empty one changes nothing.
    pub(super) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let sorted = Arc::make_mut(&mut self.sorted);
        let from = sorted.partition_point(|r| r.end < range.start);
        let to = sorted.partition_point(|r| r.start <= range.end);
        let start = sorted
            .get(from)
            .map_or(range.start, |r| r.start.min(range.start));
        let end = to.checked_sub(1).and_then(|last| sorted.get(last));
        let end = end.map_or(range.end, |r| r.end.max(range.end));
        let joined = if from < to { start..end } else { range };
        sorted.splice(from..to, [joined]);
        if sorted.len() > MAX_RANGES {
            join_nearest(sorted);
        }
    }

    /// Takes a range away.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let sorted = Arc::make_mut(&mut self.sorted);
        let from = sorted.partition_point(|r| r.end <= range.start);
        let to = sorted.partition_point(|r| r.start < range.end);
        if from >= to {
            return;
        }
        let head = sorted[from].start..range.start;
        let tail = range.end..sorted[to - 1].end;
        let left = [head, tail].into_iter().filter(|r| !r.is_empty());
        sorted.splice(from..to, left);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Bytes in all.
    pub(super) fn bytes(&self) -> u64 {
        self.sorted.iter().map(|r| r.end - r.start).sum()
    }

    pub(super) fn share(&self) -> Arc<Vec<Range<u64>>> {
        Arc::clone(&self.sorted)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.sorted.iter().cloned()
    }
}

/// Joins the two neighbours with the smallest gap.
fn join_nearest(sorted: &mut Vec<Range<u64>>) {
    let gap = |i: usize| sorted[i].start - sorted[i - 1].end;
    if let Some(at) = (1..sorted.len()).min_by_key(|i| gap(*i)) {
        let next = sorted.remove(at);
        sorted[at - 1].end = next.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &Ranges) -> Vec<Range<u64>> {
        ranges.iter().collect()
    }

    #[test]
    fn what_is_added_and_removed_is_what_a_set_of_bytes_holds() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut ranges = Ranges::default();
        let mut bytes = [false; 64];
        for _ in 0..4000 {
            let start = next(60);
            let range = start..start + next(5);
            let add = next(2) == 0;
            if add {
                ranges.add(range.clone());
            } else {
                ranges.remove(&range);
            }
            for at in range {
                bytes[at as usize] = add;
            }
            let held: u64 = bytes.iter().map(|held| u64::from(*held)).sum();
            assert_eq!(ranges.bytes(), held);
            for pair in list(&ranges).windows(2) {
                assert!(pair[0].end < pair[1].start, "{:?}", list(&ranges));
            }
            for range in ranges.iter() {
                assert!(range.clone().all(|at| bytes[at as usize]));
            }
        }
    }

    #[test]
    fn too_many_ranges_cost_precision_and_nothing_else() {
        let mut ranges = Ranges::default();
        for i in 0..MAX_RANGES as u64 + 10 {
            ranges.add(i * 8..i * 8 + 4);
        }
        assert_eq!(ranges.iter().count(), MAX_RANGES);
        assert!(ranges.bytes() >= (MAX_RANGES as u64 + 10) * 4);
    }
}
