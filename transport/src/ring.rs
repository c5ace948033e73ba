//! How a link or a front end puts work on the ring that it shares with everybody else.

use io_uring::squeue;

/// The submission queue has no room even after a submit; the caller keeps its work and tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("submission queue is full")]
pub struct RingFull;

/// One owner's view of the shared ring.
///
/// The entry's `user_data` is overwritten. Its completions come back to the same owner with
/// `token`, the result and the flags of the completion entry.
pub trait Submitter {
    /// Queues `entry`.
    ///
    /// The caller keeps every buffer, address and descriptor that the entry names valid until
    /// its last completion has been handed back.
    fn submit(&mut self, entry: squeue::Entry, token: u32) -> Result<(), RingFull>;
}
