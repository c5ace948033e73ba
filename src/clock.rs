//! The clock that all deadlines are on.

use rustix::time::{ClockId, clock_gettime};

use crate::engine::Time;

/// Now on the boot-time clock, which counts while the machine sleeps and which nobody sets.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
