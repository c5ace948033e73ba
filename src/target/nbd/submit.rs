//! The server's way to the ring: submissions that found it full, and a timer.
//!
//! The timer is a timerfd with a read on the ring, because the owner of a shared ring chooses
//! `user_data` and a timeout that cannot be named cannot be cancelled either: the read is ended by
//! letting the timer fire. It is armed only while there is something to wait for.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use lockstep_transport::ring::Submitter;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Submissions in their order, some of them still waiting for room in the ring.
#[derive(Debug, Default)]
pub struct Queue {
    backlog: VecDeque<(squeue::Entry, u32)>,
    on_ring: u32,
}

impl Queue {
    /// Submits an entry, now or with a later [`Queue::retry`].
    pub fn push(&mut self, ring: &mut dyn Submitter, entry: squeue::Entry, token: u32) {
        self.backlog.push_back((entry, token));
        self.retry(ring);
    }

    /// Submits what waits, as far as there is room.
    pub fn retry(&mut self, ring: &mut dyn Submitter) {
        while let Some((entry, token)) = self.backlog.front() {
            if ring.submit(entry.clone(), *token).is_err() {
                return;
            }
            self.on_ring += 1;
            self.backlog.pop_front();
        }
    }

    /// Whether something waits for room.
    pub fn is_stuck(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// A completion has come.
    pub fn completed(&mut self) {
        debug_assert!(self.on_ring > 0, "a completion that nobody asked for");
        self.on_ring = self.on_ring.saturating_sub(1);
    }

    /// Whether the ring holds something.
    pub fn is_on_ring(&self) -> bool {
        self.on_ring > 0
    }
}

/// A timer whose expiry is a completion.
#[derive(Debug)]
pub struct Timer {
    descriptor: OwnedFd,
    /// Where the kernel writes how often it expired; nobody reads it.
    count: Box<u64>,
    armed: Option<Instant>,
    reading: bool,
}

impl Timer {
    pub fn new() -> rustix::io::Result<Timer> {
        Ok(Timer {
            descriptor: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            count: Box::new(0),
            armed: None,
            reading: false,
        })
    }

    /// The read that completes at expiry, unless it is on its way already.
    pub fn read(&mut self) -> Option<squeue::Entry> {
        if self.reading {
            return None;
        }
        self.reading = true;
        let fd = types::Fd(self.descriptor.as_raw_fd());
        let into: *mut u64 = &mut *self.count;
        Some(opcode::Read::new(fd, into.cast(), size_of::<u64>() as u32).build())
    }

    /// Whether its read has to come back.
    pub fn is_reading(&self) -> bool {
        self.reading
    }

    /// The read has come back.
    pub fn expired(&mut self) {
        self.reading = false;
        self.armed = None;
    }

    /// Expires at `deadline` at the latest.
    pub fn arm(&mut self, deadline: Instant) {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // Zero would disarm it.
        let delay = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let setting = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: delay.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &setting) {
            Ok(_) => self.armed = Some(deadline),
            // Only invalid arguments can fail here; without the timer, deadlines are not kept.
            Err(error) => tracing::error!(%error, "nbd timer"),
        }
    }

    /// Keeps what the kernel may still write to alive for ever.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.count));
    }
}
