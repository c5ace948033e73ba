//! What the reactor needs of a transport, and nothing about how it is done.
//!
//! # Life of a link
//!
//! The reactor makes a link from a connection whose handshake is done and owns it until the end.
//! [`Link::start`] puts it to work; from then on each completion of one of its submissions goes to
//! [`Link::on_completion`], and after each batch of work [`Link::pump`] submits what has become
//! possible: queued frames, and reception that waited for a free payload buffer.
//!
//! A link ends by itself (the peer left, an error, a violation of the wire format) or by
//! [`Link::close`] or [`Link::finish`]. It then reports [`LinkEvent::Closed`] exactly once, as the
//! last event. The kernel may still be using the link's buffers at that time: **the link is dropped
//! only after [`Link::drained`] has become true**. A link that is dropped earlier leaks the buffers
//! that are in use, rather than freeing memory that the kernel may write to.
//!
//! # Payloads
//!
//! Received data lies in a slot of the [`PayloadPool`], which the reactor owns and passes to the
//! calls that may need it. The slot in [`LinkEvent::Frame`] belongs to the receiver of the event
//! from then on, beyond the end of the link, until [`PayloadPool::release`]. When no slot is free
//! reception stops until a `pump` finds one: the peer is slowed down.

use std::time::Duration;

use crate::frame::QueueError;
use crate::packet::Envelope;
use crate::payloads::{PayloadPool, Slot};
use crate::ring::Submitter;
use crate::wire::WireError;

/// Received data: the first `len` bytes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    pub slot: Slot,
    pub len: u32,
}

/// What a link tells its owner.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A complete frame whose checksums were right.
    Frame {
        envelope: Envelope,
        payload: Option<Payload>,
    },
    /// The link has ended; nothing follows.
    Closed(LinkError),
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// This side asked for it.
    #[error("closed by this node")]
    Local,
    /// `finish` could not hand over what was queued in the time it was given.
    #[error("peer did not take the last frames in time")]
    Unfinished,
    /// The peer ended the stream between two frames.
    #[error("closed by the peer")]
    Peer,
    /// The stream ended inside a frame.
    #[error("connection ended inside a frame")]
    Truncated,
    #[error("protocol violation: {0}")]
    Wire(#[from] WireError),
    /// A transport error, by errno.
    #[error("connection failed: {}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

/// A connection that carries frames in order, or ends.
pub trait Link {
    /// Starts reception. Called once, before anything else.
    fn start(&mut self, ring: &mut dyn Submitter);

    /// Queues a frame; `data` is copied at once. It leaves at the next `pump`. Returns the bytes
    /// queued. After an error nothing of this frame was queued.
    fn queue(&mut self, envelope: &Envelope, data: &[u8]) -> Result<usize, QueueError>;

    /// Bytes queued and not yet taken over by the transport.
    fn queued(&self) -> usize;

    /// Bytes that can be queued before [`QueueError::Full`], header and data together; a control
    /// body counts with its upper limit.
    fn room(&self) -> usize;

    /// Submits what is possible. Appends frames that waited for a payload slot.
    fn pump(
        &mut self,
        ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        events: &mut Vec<LinkEvent>,
    );

    /// A completion of one of this link's submissions. Tokens of others are ignored.
    fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        token: u32,
        result: i32,
        flags: u32,
        events: &mut Vec<LinkEvent>,
    );

    /// Ends the link at once, unsent frames with it. The peer sees a broken connection.
    fn close(&mut self);

    /// Ends the link after the frames queued so far have left and the peer has closed its side, or
    /// after `bound`. Frames that still arrive are discarded.
    fn finish(&mut self, bound: Duration);

    /// True when the link has ended and none of its submissions is in flight: it may be dropped.
    fn drained(&self) -> bool;
}

/// How far a link is.
///
/// ```text
/// Open --finish--> Finishing --+
///   |                          +--> Ended, then reported
///   +--------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// Hands over what was queued, then waits for the peer to close.
    Finishing {
        bound: Duration,
    },
    /// `reported` once the owner has been told.
    Ended {
        reason: LinkError,
        reported: bool,
    },
}

impl State {
    /// Ends the link, unless it has ended before: the first reason counts. True if it is news.
    pub fn end(&mut self, reason: LinkError) -> bool {
        let news = !self.has_ended();
        if news {
            *self = State::Ended {
                reason,
                reported: false,
            };
        }
        news
    }

    pub fn finish(&mut self, bound: Duration) {
        if *self == State::Open {
            *self = State::Finishing { bound };
        }
    }

    /// Tells the owner of the end, once.
    pub fn report(&mut self, events: &mut Vec<LinkEvent>) {
        if let State::Ended { reason, reported } = self
            && !*reported
        {
            *reported = true;
            events.push(LinkEvent::Closed(*reason));
        }
    }

    /// What the loss of the connection means: nothing bad to a link that is finishing and has
    /// `nothing_to_send` any more.
    pub fn loss(&self, nothing_to_send: bool, reason: LinkError) -> LinkError {
        match self {
            State::Finishing { .. } if nothing_to_send => LinkError::Local,
            State::Finishing { .. } | State::Open | State::Ended { .. } => reason,
        }
    }

    pub fn is_finishing(&self) -> bool {
        matches!(self, State::Finishing { .. })
    }

    pub fn has_ended(&self) -> bool {
        matches!(self, State::Ended { .. })
    }

    pub fn is_reported(&self) -> bool {
        matches!(self, State::Ended { reported: true, .. })
    }
}
