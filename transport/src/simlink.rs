//! A [`Link`] over an in-memory cable, for tests: no kernel, no clock, reproducible.
//!
//! [`cable`] gives the two ends and a [`Cable`] to tamper with the bytes in between. Bytes move
//! only in [`Link::pump`], one chunk of seeded random length in each direction per call, so every
//! split of the stream comes up. The bound of [`Link::finish`] counts pumps, one per millisecond.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use crate::frame::QueueError;
use crate::inbound::Inbound;
use crate::link::{Link, LinkError, LinkEvent, State};
use crate::outbound::Outbound;
use crate::packet::Envelope;
use crate::payloads::PayloadPool;
use crate::ring::Submitter;

/// Settings of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Bytes of each end's send buffers.
    pub send_buffer: usize,
    /// Bytes that the cable holds in each direction.
    pub capacity: usize,
    /// Longest chunk that moves at once, bytes; at least 1.
    pub max_chunk: usize,
    /// Seed of the chunk lengths.
    pub seed: u64,
}

/// One of the two ends; faults are named by the end that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    A,
    B,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Orderly,
    Reset,
}

/// One direction.
#[derive(Debug, Default)]
struct Stream {
    bytes: VecDeque<u8>,
    /// Bytes ever put in.
    written: u64,
    stop: Option<Stop>,
    /// Bit to flip, counted from the start of the stream.
    flip: Option<u64>,
    /// Number of bytes after which the stream ends.
    cut: Option<u64>,
}

impl Stream {
    /// Puts in as much of `bytes` as there is room for; how much.
    fn write(&mut self, bytes: &[u8], capacity: usize) -> usize {
        let room = capacity.saturating_sub(self.bytes.len());
        let count = bytes.len().min(room);
        for byte in bytes.iter().take(count) {
            if self.stop.is_some() {
                break;
            }
            let flip = self.flip.filter(|bit| bit / 8 == self.written);
            let mask = flip.map_or(0, |bit| 1 << (bit % 8));
            self.bytes.push_back(byte ^ mask);
            self.written += 1;
            if self.cut == Some(self.written) {
                self.stop = Some(Stop::Orderly);
            }
        }
        count
    }
}

#[derive(Debug)]
struct Shared {
    config: SimConfig,
    from_a: Stream,
    from_b: Stream,
    random: u64,
}

impl Shared {
    fn from(&mut self, end: End) -> &mut Stream {
        match end {
            End::A => &mut self.from_a,
            End::B => &mut self.from_b,
        }
    }

    /// Length of the next chunk (splitmix64).
    fn chunk(&mut self) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        1 + (mixed % self.config.max_chunk.max(1) as u64) as usize
    }
}

/// What is between the two ends.
#[derive(Clone, Debug)]
pub struct Cable(Rc<RefCell<Shared>>);

impl Cable {
    /// Flips one bit of the stream from `end`, counted from its start, when it passes.
    pub fn flip(&self, end: End, bit: u64) {
        self.0.borrow_mut().from(end).flip = Some(bit);
    }

    /// Ends the stream from `end` after its first `bytes` bytes.
    pub fn cut(&self, end: End, bytes: u64) {
        let mut shared = self.0.borrow_mut();
        let stream = shared.from(end);
        stream.cut = Some(bytes);
        if stream.written >= bytes {
            stream.stop = Some(Stop::Orderly);
        }
    }

    /// Puts bytes into the stream from `end`, beside what that end sends.
    pub fn inject(&self, end: End, bytes: &[u8]) {
        self.0.borrow_mut().from(end).write(bytes, usize::MAX);
    }
}

/// A cable with both its ends.
pub fn cable(config: SimConfig) -> (SimLink, SimLink, Cable) {
    let shared = Rc::new(RefCell::new(Shared {
        config,
        from_a: Stream::default(),
        from_b: Stream::default(),
        random: config.seed,
    }));
    let link = |end, peer| SimLink {
        shared: shared.clone(),
        end,
        peer,
        state: State::Open,
        inbound: Inbound::default(),
        inbox: Vec::new(),
        outbound: Outbound::new(config.send_buffer),
        pumps: 0,
    };
    (
        link(End::A, End::B),
        link(End::B, End::A),
        Cable(shared.clone()),
    )
}

/// One end of a cable.
#[derive(Debug)]
pub struct SimLink {
    shared: Rc<RefCell<Shared>>,
    end: End,
    peer: End,
    state: State,
    inbound: Inbound,
    /// Bytes that came and are not used yet.
    inbox: Vec<u8>,
    outbound: Outbound,
    /// Pumps since the link began to finish.
    pumps: u128,
}

impl SimLink {
    fn end(&mut self, reason: LinkError) {
        if self.state.end(reason) {
            let mut shared = self.shared.borrow_mut();
            shared.from(self.end).stop = Some(Stop::Reset);
        }
    }

    fn lost(&mut self, reason: LinkError) {
        let nothing_to_send = self.outbound.queued() == 0;
        self.end(self.state.loss(nothing_to_send, reason));
    }

    fn send(&mut self) {
        let mut shared = self.shared.borrow_mut();
        let capacity = shared.config.capacity;
        let chunk = shared.chunk();
        let front = self.outbound.front();
        if front.is_empty() && self.state.is_finishing() {
            shared.from(self.end).stop.get_or_insert(Stop::Orderly);
        }
        let front = front.get(..chunk).unwrap_or(front);
        let count = shared.from(self.end).write(front, capacity);
        self.outbound.sent(count);
    }

    fn receive(&mut self, pool: &mut PayloadPool, events: &mut Vec<LinkEvent>) {
        let mut stop = None;
        if self.inbox.is_empty() {
            let mut shared = self.shared.borrow_mut();
            let chunk = shared.chunk();
            let stream = shared.from(self.peer);
            if stream.bytes.is_empty() || stream.stop == Some(Stop::Reset) {
                stop = stream.stop;
            } else {
                let count = chunk.min(stream.bytes.len());
                self.inbox.extend(stream.bytes.drain(..count));
            }
        }
        match stop {
            Some(Stop::Reset) => self.lost(LinkError::Os(Errno::CONNRESET.raw_os_error())),
            Some(Stop::Orderly) if self.inbound.at_boundary() => self.lost(LinkError::Peer),
            Some(Stop::Orderly) => self.lost(LinkError::Truncated),
            None if self.state.is_finishing() => self.inbox.clear(),
            None => match self.inbound.feed(&self.inbox, pool, events) {
                Ok(used) => {
                    self.inbox.drain(..used);
                }
                Err(error) => self.end(error.into()),
            },
        }
    }
}

impl Link for SimLink {
    fn start(&mut self, _ring: &mut dyn Submitter) {}

    fn queue(&mut self, envelope: &Envelope, data: &[u8]) -> Result<usize, QueueError> {
        if self.state != State::Open {
            return Err(QueueError::Closed);
        }
        self.outbound.queue(envelope, data)
    }

    fn queued(&self) -> usize {
        self.outbound.queued()
    }

    fn room(&self) -> usize {
        self.outbound.room()
    }

    fn pump(
        &mut self,
        _ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        events: &mut Vec<LinkEvent>,
    ) {
        if !self.state.has_ended() {
            self.send();
            self.receive(pool, events);
        }
        if let State::Finishing { bound } = self.state {
            self.pumps += 1;
            if self.pumps > bound.as_millis() {
                self.end(LinkError::Unfinished);
            }
        }
        if self.state.has_ended() {
            self.inbound.abandon(pool);
        }
        self.state.report(events);
    }

    fn on_completion(
        &mut self,
        _ring: &mut dyn Submitter,
        _pool: &mut PayloadPool,
        _token: u32,
        _result: i32,
        _flags: u32,
        _events: &mut Vec<LinkEvent>,
    ) {
        // Nothing is ever submitted.
    }

    fn close(&mut self) {
        self.end(LinkError::Local);
    }

    fn finish(&mut self, bound: Duration) {
        self.state.finish(bound);
    }

    fn drained(&self) -> bool {
        self.state.is_reported() && !self.inbound.holds_slot()
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.end(LinkError::Local);
    }
}
