//! The connections to the peer: the one in use, and those that are ending.
//!
//! A link stays here until nothing of it is in the ring. The engine hears of its end once, unless
//! it asked for the end itself. Received payloads lie in the pool, which belongs to this module;
//! the engine holds a slot from the frame's event until it releases it, also beyond the end of
//! the link.

use std::os::fd::OwnedFd;
use std::time::Duration;

use lockstep_transport::frame::QueueError;
use lockstep_transport::link::{Link, LinkError, LinkEvent};
use lockstep_transport::payloads::{PayloadPool, PoolConfig, PoolError};
use lockstep_transport::tcp::{TcpConfig, TcpLink};
use lockstep_transport::wire::WireError;

use rustix::mm::{Advice, madvise};

use super::buffers::Memory;
use super::ring::{Owner, Ring};
use super::wire::{from_wire, to_wire};
use crate::engine::{Buffer, Envelope, Event, LinkId, LinkLoss, Message};

/// How long the last frames before a goodbye may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Slots for received data: most are for blocks of a sync and usual writes, some for the largest
/// writes. With all in use the peer is slowed down.
const POOL: PoolConfig = PoolConfig {
    small_slots: 256,
    small_size: 128 << 10,
    large_slots: 32,
};

struct Entry {
    id: LinkId,
    owner: Owner,
    link: TcpLink,
    features: u64,
    /// A goodbye is queued: the frames so far get a chance to leave.
    goodbye: bool,
    /// The engine knows that the link has ended.
    ended: bool,
    /// The link itself has come to its end, its last frames included.
    over: bool,
}

/// All links of a resource.
pub struct Links {
    entries: Vec<Entry>,
    pool: PayloadPool,
    /// Number of the next link.
    next: u32,
    send_buffer: usize,
    scratch: Vec<LinkEvent>,
}

impl Links {
    /// No link yet. `send_buffer` bounds the bytes that are queued on one.
    pub fn new(send_buffer: usize) -> Result<Links, PoolError> {
        let pool = PayloadPool::new(POOL)?;
        touch(&pool);
        Ok(Links {
            entries: Vec::new(),
            pool,
            next: 1,
            send_buffer,
            scratch: Vec::new(),
        })
    }

    /// Takes over a connection whose transport handshake is done.
    /// `features` were agreed in it.
    pub fn add(
        &mut self,
        ring: &mut Ring,
        socket: OwnedFd,
        low_water: Option<u32>,
        features: u64,
    ) -> LinkId {
        let id = LinkId(u64::from(self.next));
        let owner = Owner(Owner::LINK + self.next);
        self.next += 1;
        let config = TcpConfig {
            send_buffer: self.send_buffer,
            low_water,
        };
        let mut link = TcpLink::new(socket, config);
        link.start(&mut ring.port(owner));
        self.entries.push(Entry {
            id,
            owner,
            link,
            features,
            goodbye: false,
            ended: false,
            over: false,
        });
        id
    }

    /// Links that the engine may use.
    pub fn open(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.ended).count()
    }

    /// True when every link has come to its end: the last frames have left, or will never.
    pub fn all_over(&self) -> bool {
        self.entries.iter().all(|entry| entry.over)
    }

    /// Queues a frame; it leaves at the next `pump`.
    pub fn send(&mut self, id: LinkId, envelope: Envelope, data: &[u8], events: &mut Vec<Event>) {
        let Some(entry) = self.entry(id) else { return };
        entry.goodbye |= matches!(envelope.message, Message::Goodbye { .. });
        match entry.link.queue(&to_wire(envelope, entry.features), data) {
            // A link that has ended says so by itself.
            Ok(_) | Err(QueueError::Closed) => {}
            Err(QueueError::Full) => entry.fail(LinkLoss::Protocol("send queue overflow"), events),
            Err(QueueError::Invalid(error)) => {
                tracing::error!(%error, "the engine made a frame that cannot be sent");
                entry.fail(LinkLoss::Protocol(name(&error)), events);
            }
        }
    }

    /// Ends a link at the engine's request.
    pub fn close(&mut self, id: LinkId) {
        let Some(entry) = self.entry(id) else { return };
        entry.ended = true;
        if entry.goodbye {
            entry.link.finish(FAREWELL);
        } else {
            entry.link.close();
        }
    }

    fn entry(&mut self, id: LinkId) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.id == id && !entry.ended)
    }

    /// Takes a completion of one of the links.
    pub fn on_completion(
        &mut self,
        ring: &mut Ring,
        (owner, token, result, flags): (Owner, u32, i32, u32),
        events: &mut Vec<Event>,
    ) {
        let found = self.entries.iter_mut().find(|entry| entry.owner == owner);
        let Some(entry) = found else { return };
        let mut port = ring.port(owner);
        let pool = &mut self.pool;
        let news = &mut self.scratch;
        entry
            .link
            .on_completion(&mut port, pool, token, result, flags, news);
        entry.report(pool, news, events);
    }

    /// Submits what is possible, and forgets links that have come to their end.
    pub fn pump(&mut self, ring: &mut Ring, events: &mut Vec<Event>) {
        for entry in &mut self.entries {
            let mut port = ring.port(entry.owner);
            entry
                .link
                .pump(&mut port, &mut self.pool, &mut self.scratch);
            entry.report(&mut self.pool, &mut self.scratch, events);
        }
        self.entries.retain(|entry| !entry.link.drained());
    }

    /// The buffer of a received payload.
    pub fn memory(&self, slot: u32) -> Option<Memory> {
        let (start, len) = self.pool.raw(slot).ok()?;
        Some(Memory { start, len })
    }

    /// The engine is done with a payload.
    pub fn release(&mut self, slot: u32) {
        if let Err(error) = self.pool.release(slot) {
            tracing::error!(%error, "the engine released a payload twice");
        }
    }
}

impl Entry {
    /// Ends the link for a reason of ours.
    fn fail(&mut self, reason: LinkLoss, events: &mut Vec<Event>) {
        self.link.close();
        self.lost(reason, events);
    }

    fn lost(&mut self, reason: LinkLoss, events: &mut Vec<Event>) {
        if !self.ended {
            self.ended = true;
            let link = self.id;
            events.push(Event::LinkDown { link, reason });
        }
    }

    /// Turns what the link said into events. After its end frames are dropped.
    fn report(
        &mut self,
        pool: &mut PayloadPool,
        news: &mut Vec<LinkEvent>,
        events: &mut Vec<Event>,
    ) {
        for event in news.drain(..) {
            match event {
                LinkEvent::Closed(error) => {
                    self.over = true;
                    self.lost(loss(&error), events);
                }
                LinkEvent::Frame { envelope, payload } => {
                    let slot = payload.map(|payload| payload.slot);
                    match from_wire(envelope) {
                        Ok(envelope) if !self.ended => events.push(Event::Message {
                            link: self.id,
                            envelope,
                            buffer: slot.map(Buffer::Received),
                        }),
                        other => {
                            if let Err(error) = other {
                                self.fail(LinkLoss::Protocol(error.0), events);
                            }
                            if let Some(slot) = slot {
                                // In use: the link has just handed it over.
                                let _ = pool.release(slot);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Makes the pool's memory present, so that no frame waits for a page.
fn touch(pool: &PayloadPool) {
    let (start, len) = pool.region();
    // SAFETY: the range is a private mapping of the pool; its pages are made present, and their
    // contents stay what they are.
    let done = unsafe { madvise(start.cast(), len, Advice::LinuxPopulateWrite) };
    if let Err(errno) = done {
        tracing::info!(%errno, "payload memory becomes present at its first use (Linux 5.14)");
    }
}

/// How a link ended, in the engine's terms.
fn loss(error: &LinkError) -> LinkLoss {
    match error {
        LinkError::Local | LinkError::Unfinished => LinkLoss::Local,
        LinkError::Peer | LinkError::Truncated => LinkLoss::Closed,
        LinkError::Wire(error) => {
            tracing::warn!(%error, "link dropped");
            LinkLoss::Protocol(name(error))
        }
        LinkError::Os(errno) => LinkLoss::Network(*errno),
    }
}

/// What is wrong with a frame, without the numbers, which are logged.
fn name(error: &WireError) -> &'static str {
    match error {
        WireError::Magic(_) => "not a frame",
        WireError::HeaderChecksum => "checksum of a frame header",
        WireError::PayloadChecksum { .. } => "checksum of a frame's data",
        WireError::Version { .. } => "version of a frame",
        WireError::UnknownKind(_) => "unknown kind of frame",
        WireError::Lane(_) => "lane of a frame",
        WireError::Node(_) => "node id in a frame",
        WireError::Order { .. } => "order of frames",
        WireError::Length { .. } => "length of a frame",
        WireError::Span { .. } => "range in a frame",
        WireError::Fields { .. } => "reserved field of a frame",
        WireError::Code { .. } => "code in a frame",
        WireError::Body { .. } => "body of a frame",
    }
}
