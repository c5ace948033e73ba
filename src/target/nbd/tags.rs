//! Tags and their payload buffers, and who has which.
//!
//! A tag is free, or a session has it (a payload is being received into its buffer, or a reply is
//! being sent from it), or the engine has it (from `TargetEvent::Request` to `complete`). The
//! engine's tag outlives the connection that asked: it is then an orphan and only waits to be
//! freed. Whoever finds too few free tags queues; tags are handed out in that order and a request
//! takes all that it needs to get on in one go, so nobody waits while holding some and no two
//! connections can wait for each other.
//!
//! # Memory
//!
//! All buffers are one anonymous mapping of depth x [`MAX_DATA`] bytes that is never touched as a
//! whole: a page becomes resident when a request first uses it, huge pages are refused, and the
//! tag freed last is used first, so a load of few small requests keeps a few pages. A process
//! that locks its memory must do so with `MCL_ONFAULT`, or it locks all of it.

use std::collections::VecDeque;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::target::MAX_DATA;

const BUFFER: usize = MAX_DATA as usize;

/// The request that a tag belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Slot of the connection.
    pub slot: usize,
    /// Index of the request in its session.
    pub request: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    Session,
    Engine(Option<Owner>),
}

/// The buffers, page-aligned.
#[derive(Debug)]
struct Pool {
    /// `None` when there is no buffer at all.
    base: Option<NonNull<u8>>,
    count: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Pool {}

impl Pool {
    fn new(count: usize) -> rustix::io::Result<Pool> {
        if count == 0 {
            return Ok(Pool { base: None, count });
        }
        let bytes = count * BUFFER;
        // SAFETY: a new private mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // SAFETY: this range was just mapped; the advice changes no content. A kernel without
        // huge pages refuses it, which is as good.
        let _ = unsafe { madvise(base, bytes, Advice::LinuxNoHugepage) };
        Ok(Pool {
            base: NonNull::new(base.cast()),
            count,
        })
    }

    /// Address of a buffer of [`BUFFER`] bytes.
    fn address(&self, index: usize) -> Option<*mut u8> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the index was just checked, so the offset stays inside the mapping.
        self.base
            .map(|base| unsafe { base.as_ptr().add(index * BUFFER) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(base) = self.base {
            // SAFETY: exactly what was mapped, and no reference into it outlives this value.
            let _ = unsafe { munmap(base.as_ptr().cast(), self.count * BUFFER) };
        }
    }
}

/// All tags of a server.
#[derive(Debug)]
pub struct Tags {
    pool: Pool,
    holders: Vec<Holder>,
    free: Vec<u32>,
    /// Connections that wait, with the number of tags that each needs.
    waiters: VecDeque<(usize, usize)>,
    /// The connection that may pass the others in the queue: it was first.
    turn: Option<usize>,
    with_engine: u32,
}

impl Tags {
    pub fn new(depth: u32) -> rustix::io::Result<Tags> {
        let count = depth as usize;
        Ok(Tags {
            pool: Pool::new(count)?,
            holders: vec![Holder::Nobody; count],
            free: (0..depth).rev().collect(),
            waiters: VecDeque::new(),
            turn: None,
            with_engine: 0,
        })
    }

    /// Tags at the engine.
    pub fn with_engine(&self) -> u32 {
        self.with_engine
    }

    /// Whether `need` tags can be taken for `slot` now; otherwise it is queued.
    pub fn ready(&mut self, slot: usize, need: usize) -> bool {
        let first = self.turn == Some(slot) || self.waiters.is_empty();
        if first && self.free.len() >= need {
            self.turn = None;
            return true;
        }
        if self.turn == Some(slot) {
            self.turn = None;
            self.waiters.push_front((slot, need));
        } else if !self.waiters.iter().any(|(waiting, _)| *waiting == slot) {
            self.waiters.push_back((slot, need));
        }
        false
    }

    /// Takes a tag for a session; [`Tags::ready`] has promised it.
    pub fn take(&mut self) -> Option<u32> {
        let tag = self.free.pop()?;
        self.set(tag, Holder::Session);
        Some(tag)
    }

    /// Passes a session's tag to the engine.
    pub fn hand_on(&mut self, tag: u32, owner: Owner) {
        self.set(tag, Holder::Engine(Some(owner)));
        self.with_engine += 1;
    }

    /// Takes a tag back from the engine: `None` if it did not have it, otherwise the owner that
    /// is still there. The tag is the session's again, and free if there is no owner.
    pub fn take_back(&mut self, tag: u32) -> Option<Option<Owner>> {
        let Some(Holder::Engine(owner)) = self.holders.get(tag as usize).copied() else {
            return None;
        };
        self.with_engine -= 1;
        self.set(tag, Holder::Session);
        if owner.is_none() {
            self.release(tag);
        }
        Some(owner)
    }

    /// Frees a session's tag.
    pub fn release(&mut self, tag: u32) {
        if self.holders.get(tag as usize) == Some(&Holder::Session) {
            self.set(tag, Holder::Nobody);
            self.free.push(tag);
        }
    }

    /// Forgets a connection: its tags at the engine become orphans.
    pub fn orphan(&mut self, slot: usize) {
        for holder in &mut self.holders {
            if matches!(holder, Holder::Engine(Some(owner)) if owner.slot == slot) {
                *holder = Holder::Engine(None);
            }
        }
        self.forget_waiter(slot);
    }

    /// Takes a connection out of the queue.
    pub fn forget_waiter(&mut self, slot: usize) {
        self.waiters.retain(|(waiting, _)| *waiting != slot);
        if self.turn == Some(slot) {
            self.turn = None;
        }
    }

    /// Whether somebody waits for a tag.
    pub fn contended(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether the first in the queue could go on.
    pub fn can_serve(&self) -> bool {
        self.waiters
            .front()
            .is_some_and(|(_, need)| self.free.len() >= *need)
    }

    /// The first in the queue, if there is enough for it; it must be served at once.
    pub fn next_waiter(&mut self) -> Option<usize> {
        if !self.can_serve() {
            return None;
        }
        let (slot, _) = self.waiters.pop_front()?;
        self.turn = Some(slot);
        Some(slot)
    }

    /// Address of a tag's buffer of [`MAX_DATA`] bytes; valid as long as this value.
    pub fn address(&self, tag: u32) -> Option<*mut u8> {
        self.pool.address(tag as usize)
    }

    /// A tag's buffer; empty for a tag that does not exist.
    ///
    /// Not to be called while the kernel has the buffer, that is for a session's tag that is
    /// named by a submission.
    pub fn buffer(&mut self, tag: u32) -> &mut [u8] {
        match self.address(tag) {
            // SAFETY: BUFFER bytes of the mapping, zero-filled by the kernel at first touch,
            // borrowed for as long as `self` is, and no two tags overlap.
            Some(base) => unsafe { std::slice::from_raw_parts_mut(base, BUFFER) },
            None => &mut [],
        }
    }

    /// Keeps the buffers mapped for ever, because the kernel may still use them.
    pub fn leak(&mut self) {
        self.pool.base = None;
    }

    fn set(&mut self, tag: u32, holder: Holder) {
        if let Some(entry) = self.holders.get_mut(tag as usize) {
            *entry = holder;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        slot: 3,
        request: 1,
    };

    #[test]
    fn buffers_are_aligned_apart_and_start_as_zeroes() {
        let mut tags = Tags::new(3).unwrap();
        for tag in 0..3 {
            let buffer = tags.buffer(tag);
            assert_eq!(buffer.as_ptr().align_offset(4096), 0);
            assert_eq!((buffer.len(), buffer[BUFFER - 1]), (BUFFER, 0));
            buffer.fill(tag as u8 + 1);
        }
        for tag in 0..3 {
            assert!(tags.buffer(tag).iter().all(|byte| *byte == tag as u8 + 1));
        }
        assert!(tags.buffer(3).is_empty());
    }

    #[test]
    fn the_queue_is_fair_and_all_or_nothing() {
        let mut tags = Tags::new(2).unwrap();
        assert!(tags.ready(0, 2));
        let held = [tags.take().unwrap(), tags.take().unwrap()];
        assert_eq!(tags.take(), None);
        assert!(!tags.ready(1, 2));
        assert!(!tags.ready(2, 1));
        tags.release(held[0]);
        // One is free, but the first in the queue needs two and is not passed.
        assert_eq!(tags.next_waiter(), None);
        assert!(!tags.ready(0, 1));
        tags.release(held[1]);
        assert_eq!(tags.next_waiter(), Some(1));
        assert!(tags.ready(1, 2));
        let tag = tags.take().unwrap();
        assert_eq!(tags.next_waiter(), Some(2));
        assert!(tags.ready(2, 1));
        tags.take().unwrap();
        tags.forget_waiter(0);
        assert!(!tags.contended());
        tags.release(tag);
        tags.release(tag);
        assert_eq!(tags.free.len(), 1);
    }

    #[test]
    fn orphans_come_back_to_nobody() {
        let mut tags = Tags::new(1).unwrap();
        let tag = tags.take().unwrap();
        tags.hand_on(tag, OWNER);
        tags.orphan(OWNER.slot);
        tags.release(tag);
        assert_eq!((tags.with_engine(), tags.free.len()), (1, 0));
        assert_eq!(tags.take_back(tag), Some(None));
        assert_eq!((tags.with_engine(), tags.free.len()), (0, 1));
        assert_eq!(tags.take_back(tag), None);
        assert_eq!(tags.take_back(9), None);
    }
}
