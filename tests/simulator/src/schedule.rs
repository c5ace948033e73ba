//! The event queue: virtual time, and a tie-break that makes a run reproducible.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Nanoseconds since the start of the run. Nodes see them through their own clocks.
pub type Instant = u64;

/// One microsecond in the unit of [`Instant`].
pub const MICRO: Instant = 1_000;
/// One millisecond.
pub const MILLI: Instant = 1_000_000;
/// One second.
pub const SECOND: Instant = 1_000_000_000;

struct Entry<E> {
    at: Instant,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Events by time; events of the same instant leave in the order in which they were added.
pub struct Schedule<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Instant,
    added: u64,
}

impl<E> Schedule<E> {
    pub fn new() -> Schedule<E> {
        Schedule {
            heap: BinaryHeap::new(),
            now: 0,
            added: 0,
        }
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    /// Adds an event; an instant in the past means now.
    pub fn at(&mut self, at: Instant, event: E) {
        self.added += 1;
        self.heap.push(Reverse(Entry {
            at: at.max(self.now),
            order: self.added,
            event,
        }));
    }

    pub fn after(&mut self, delay: Instant, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Takes the next event and moves time forward to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_leave_in_order_of_arrival() {
        let mut schedule = Schedule::new();
        for (at, name) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b')] {
            schedule.at(at, name);
        }
        let order: String = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, "abcd");
        assert_eq!(schedule.now(), 5);
        schedule.at(2, 'e');
        assert_eq!(schedule.pop(), Some('e'));
        assert_eq!(schedule.now(), 5, "time never runs backwards");
    }
}
