//! Completions pass while the node's lease lasts.
//!
//! The agent writes the end of the lease into a word of the memory that it shares with the data
//! plane ([`LeaseWord`]); the word is read, with a fresh clock, for every completion. What comes
//! too late is held: it goes on when the lease is renewed, and fails when another node reigns.
//! Failures pass at any time. Without votes the word is not looked at.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};

use crate::clock;
use crate::engine::{IoFailure, RequestId, Time};

/// Bytes of the shared memory that are mapped; the word is one of its header.
const MAPPED: usize = 4096;
/// Place of the word, in words: the last of the table's header.
pub const WORD: usize = 3;
/// How often a held completion is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The end of a lease in shared memory: nanoseconds of the boot-time clock; 0 = there is none.
pub struct LeaseWord {
    page: NonNull<AtomicU64>,
}

// SAFETY: shared memory that is only touched through atomics.
unsafe impl Send for LeaseWord {}

impl LeaseWord {
    /// Maps the header of the memory that a data plane gets.
    pub fn open(memory: &OwnedFd) -> io::Result<LeaseWord> {
        let file = File::from(memory.try_clone()?);
        if file.metadata()?.len() < MAPPED as u64 {
            file.set_len(MAPPED as u64)?;
        }
        // SAFETY: a new shared mapping at an address of the kernel's choice, of memory that is at
        // least as long; nobody shrinks it.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                MAPPED,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                file.as_fd(),
                0,
            )
        }?;
        let page = NonNull::new(address.cast::<AtomicU64>());
        let page = page.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(LeaseWord { page })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping is longer than `WORD` words and lives as long as `self`.
        unsafe { self.page.add(WORD).as_ref() }
    }

    /// The lease lasts until then.
    pub fn set(&self, until: Option<Time>) {
        let until = until.map_or(0, |time| time.0);
        self.word().store(until, Ordering::Release);
    }

    pub fn until(&self) -> Time {
        Time(self.word().load(Ordering::Acquire))
    }
}

impl Drop for LeaseWord {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the mapping any more. A failure would leak it.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), MAPPED) };
    }
}

/// How a request ended.
pub type Completed = (RequestId, Result<(), IoFailure>);

/// See the module's description.
#[derive(Default)]
pub struct Gate {
    /// None: there are no votes.
    lease: Option<LeaseWord>,
    held: Vec<Completed>,
}

impl Gate {
    /// Completions pass while the lease in this word lasts.
    pub fn leased(lease: LeaseWord) -> Gate {
        Gate {
            lease: Some(lease),
            held: Vec::new(),
        }
    }

    fn lasts(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_none_or(|lease| clock::now() < lease.until())
    }

    /// Gives back what may pass now.
    pub fn pass(&mut self, completed: Completed) -> Option<Completed> {
        if completed.1.is_err() || self.lasts() {
            return Some(completed);
        }
        self.held.push(completed);
        None
    }

    /// What was held and may pass now.
    pub fn renewed(&mut self) -> Vec<Completed> {
        match !self.held.is_empty() && self.lasts() {
            true => std::mem::take(&mut self.held),
            false => Vec::new(),
        }
    }

    /// Another node reigns: what was held has not happened.
    pub fn deposed(&mut self) -> Vec<Completed> {
        let held = std::mem::take(&mut self.held);
        let failed = Err(IoFailure::NotPrimary);
        held.into_iter()
            .map(|(request, _)| (request, failed))
            .collect()
    }

    /// Completions wait for the lease.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// When to look again.
    pub fn next_deadline(&self, now: Time) -> Option<Time> {
        self.holds().then(|| now.after(LOOK_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn completions_pass_while_the_lease_lasts() {
        let memory = memfd_create("lease-test", MemfdFlags::CLOEXEC).unwrap();
        let agent = LeaseWord::open(&memory).unwrap();
        let mut gate = Gate::leased(LeaseWord::open(&memory).unwrap());
        let [first, second] = [1, 2].map(|n| (RequestId(n), Ok(())));
        let failed = (RequestId(3), Err(IoFailure::Disk(5)));
        assert_eq!(gate.pass(first), None, "no lease yet");
        assert_eq!(gate.pass(failed), Some(failed));
        assert!(gate.renewed().is_empty() && gate.holds());
        agent.set(Some(clock::now().after(Duration::from_secs(60))));
        assert_eq!(gate.renewed(), [first]);
        assert_eq!(gate.pass(second), Some(second));
        agent.set(Some(clock::now()));
        assert_eq!(gate.pass(second), None);
        assert_eq!(gate.deposed(), [(RequestId(2), Err(IoFailure::NotPrimary))]);
        assert_eq!(gate.next_deadline(Time(5)), None);
    }

    #[test]
    fn without_votes_nothing_is_held() {
        let mut gate = Gate::default();
        let done = (RequestId(1), Ok(()));
        assert_eq!(gate.pass(done), Some(done));
    }
}
