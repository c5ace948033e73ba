//! The io_uring of one resource.
//!
//! One thread creates, fills and drains it. Everybody who puts work on it has an [`Owner`]
//! number; `user_data` is bit 63 (set: never a value that the kernel or a library makes up) |
//! owner << 32 | token, so a completion finds its way back without a table.
//!
//! Buffers, addresses and descriptors that an entry names belong to its submitter, who keeps them
//! until the last completion of that entry has been handed out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use lockstep_transport::ring::{RingFull, Submitter};
use rustix::event::{EventfdFlags, eventfd};

/// Entries of the submission queue. A wake-up that makes more than this costs one extra submit.
const SQ_ENTRIES: u32 = 1024;

/// Entries of the completion queue. Multishot receives and completions of all owners must fit
/// between two wake-ups; beyond it the kernel keeps them on a list, which is slower but safe.
const CQ_ENTRIES: u32 = 8 * SQ_ENTRIES;

/// Set in the `user_data` of every entry of ours.
const OURS: u64 = 1 << 63;

/// Somebody with work on the ring; below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u32);

impl Owner {
    /// The ring's own wake-up read.
    const WAKE: Owner = Owner(0);
    /// Data I/O of all volumes.
    pub const DISK: Owner = Owner(1);
    /// Metadata I/O of all volumes.
    pub const META: Owner = Owner(2);
    /// Front ends: this plus the volume's index.
    pub const FRONT: u32 = 1 << 8;
    /// Links: this plus a number that is not reused.
    pub const LINK: u32 = 1 << 24;
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub owner: Owner,
    pub token: u32,
    /// Non-negative result or negative errno.
    pub result: i32,
    pub flags: u32,
}

fn pack(owner: Owner, token: u32) -> u64 {
    OURS | u64::from(owner.0) << 32 | u64::from(token)
}

fn unpack(user_data: u64) -> (Owner, u32) {
    (Owner(((user_data & !OURS) >> 32) as u32), user_data as u32)
}

/// Ends the ring thread's sleep from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// The ring thread's current or next sleep ends.
    pub fn wake(&self) {
        // The counter can only be full when the thread has been woken 2^64 times and never ran.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The ring and its wake-up descriptor.
pub struct Ring {
    uring: IoUring,
    wake: Arc<OwnedFd>,
    /// Where the kernel stores the wake-up counter; boxed, because the read in flight names it.
    counter: Box<u64>,
    wake_armed: bool,
}

/// How a ring is set up, best first.
fn build() -> io::Result<IoUring> {
    let best = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_taskrun_flag()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    // DEFER_TASKRUN came with 6.1, TASKRUN_FLAG with 5.19, SUBMIT_ALL with 5.18.
    match best {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
        other => return other,
    }
    let cooperative = IoUring::builder()
        .setup_submit_all()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    match cooperative {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
        other => return other,
    }
    IoUring::builder()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES)
}

impl Ring {
    /// Makes the ring; the calling thread is the only one that may use it.
    pub fn new(waker: &Waker) -> io::Result<Ring> {
        let uring = build()?;
        let params = uring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring of Linux 5.11 or later is needed",
            ));
        }
        Ok(Ring {
            uring,
            wake: waker.0.clone(),
            counter: Box::new(0),
            wake_armed: false,
        })
    }

    /// The ring as one owner sees it.
    pub fn port(&mut self, owner: Owner) -> Port<'_> {
        Port { ring: self, owner }
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<(), RingFull> {
        for attempt in 0..2 {
            // SAFETY: whoever submits keeps what the entry names valid until its last completion
            // has been handed back; that is the contract of `Submitter`.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            if attempt == 0 && self.uring.submit().is_err() {
                break;
            }
        }
        Err(RingFull)
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let buffer = std::ptr::from_mut(&mut *self.counter).cast::<u8>();
        let entry = opcode::Read::new(types::Fd(self.wake.as_raw_fd()), buffer, 8)
            .build()
            .user_data(pack(Owner::WAKE, 0));
        self.wake_armed = self.push(&entry).is_ok();
    }

    /// Submits what is queued, waits for a completion, a wake-up or the end of `timeout`
    /// (`None` = for ever), and moves all completions into `out`.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.arm_wake();
        let ready = !self.uring.completion().is_empty();
        let want = usize::from(!ready && timeout != Some(Duration::ZERO));
        let done = match timeout {
            Some(limit) if want == 1 => {
                let limit = types::Timespec::from(limit);
                let args = types::SubmitArgs::new().timespec(&limit);
                self.uring.submitter().submit_with_args(want, &args)
            }
            _ => self.uring.submit_and_wait(want),
        };
        if let Err(error) = done {
            use rustix::io::Errno;
            let expected = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN];
            if !expected
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
            {
                return Err(error);
            }
        }
        self.collect(out);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Completion>) {
        for entry in self.uring.completion() {
            let entry: cqueue::Entry = entry;
            let (owner, token) = unpack(entry.user_data());
            if owner == Owner::WAKE {
                self.wake_armed = false;
                continue;
            }
            out.push(Completion {
                owner,
                token,
                result: entry.result(),
                flags: entry.flags(),
            });
        }
    }
}

/// A waker, made before the ring thread starts so that both sides have it.
pub fn waker() -> io::Result<Waker> {
    // Blocking on purpose: the ring parks its read, and nobody else reads.
    let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
    Ok(Waker(Arc::new(fd)))
}

/// One owner's view of the ring.
pub struct Port<'a> {
    ring: &'a mut Ring,
    owner: Owner,
}

impl Submitter for Port<'_> {
    fn submit(&mut self, entry: squeue::Entry, token: u32) -> Result<(), RingFull> {
        let entry = entry.user_data(pack(self.owner, token));
        self.ring.push(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn user_data_keeps_owner_and_token() {
        for owner in [
            Owner::WAKE,
            Owner::DISK,
            Owner(Owner::LINK + 77),
            Owner((1 << 31) - 1),
        ] {
            for token in [0, 1, u32::MAX] {
                assert_eq!(unpack(pack(owner, token)), (owner, token));
                assert_ne!(pack(owner, token) & OURS, 0);
            }
        }
    }

    #[test]
    fn more_entries_than_the_queue_holds_all_complete() {
        let mut ring = Ring::new(&waker().unwrap()).unwrap();
        let count = SQ_ENTRIES * 3;
        for token in 0..count {
            let mut port = ring.port(Owner::DISK);
            port.submit(opcode::Nop::new().build(), token).unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < count as usize {
            ring.wait(Some(Duration::from_secs(5)), &mut seen).unwrap();
        }
        seen.sort_by_key(|completion| completion.token);
        assert!(seen.iter().enumerate().all(|(index, completion)| {
            completion.owner == Owner::DISK && completion.token == index as u32
        }));
    }

    #[test]
    fn a_wait_ends_at_its_timeout() {
        let mut ring = Ring::new(&waker().unwrap()).unwrap();
        let begin = Instant::now();
        let mut out = Vec::new();
        ring.wait(Some(Duration::from_millis(30)), &mut out)
            .unwrap();
        assert!(out.is_empty());
        assert!(begin.elapsed() >= Duration::from_millis(30));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn another_thread_ends_the_wait_every_time() {
        let waker = waker().unwrap();
        let mut ring = Ring::new(&waker).unwrap();
        for _ in 0..3 {
            let other = waker.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                other.wake();
            });
            let begin = Instant::now();
            ring.wait(Some(Duration::from_secs(30)), &mut Vec::new())
                .unwrap();
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread.join().unwrap();
        }
    }
}
