//! A [`Link`] over a connected TCP socket, driven by the shared ring.
//!
//! # Who owns which bytes
//!
//! There are two send buffers: frames are appended to one while the other is with the kernel; one
//! send is in flight at a time, so bytes leave in order. There is one receive buffer of 256 KiB and
//! at most one receive in flight, either into that buffer or, for the rest of large data, straight
//! into the payload slot of the frame. Every buffer named by a submission belongs to the kernel
//! until the completion: the link neither moves nor reads it, and a link that is dropped before
//! [`Link::drained`] leaks these buffers (a payload slot then stays in use for ever).

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;
use rustix::net::{Shutdown, connect_unspec, shutdown, sockopt};

use crate::frame::QueueError;
use crate::inbound::Inbound;
use crate::link::{Link, LinkError, LinkEvent, State};
use crate::outbound::Outbound;
use crate::packet::Envelope;
use crate::payloads::PayloadPool;
use crate::ring::Submitter;

const TOKEN_RECV: u32 = 0;
const TOKEN_SEND: u32 = 1;
const TOKEN_TIMER: u32 = 2;
const TOKEN_OPTION: u32 = 3;

/// Size of the receive buffer: a few large frames or thousands of acknowledgements per completion.
const INBOX_LEN: usize = 256 << 10;
/// From this many missing bytes of data on, they are received straight into their slot; a shorter
/// rest is cheaper to copy than to receive by itself.
const DIRECT_MIN: usize = 32 << 10;

// Numbers of the socket interface that the ring takes as they are.
const MSG_WAITALL: i32 = 0x100;
const MSG_NOSIGNAL: i32 = 0x4000;
/// Wait for data before trying to receive.
const POLL_FIRST: u16 = 1;
const IPPROTO_TCP: u32 = 6;
const TCP_NOTSENT_LOWAT: u32 = 25;

/// Settings of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Bytes of each of the two send buffers; at least one frame fits in any case.
    pub send_buffer: usize,
    /// TCP_NOTSENT_LOWAT in bytes, where the kernel can set it through the ring (6.7).
    pub low_water: Option<u32>,
}

/// What the receive in flight fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    Inbox,
    Slot,
}

/// A small value that the kernel reads while a submission is in flight.
#[derive(Debug)]
struct Lent<T> {
    value: Box<T>,
    in_flight: bool,
}

/// A link over TCP.
#[derive(Debug)]
pub struct TcpLink {
    socket: OwnedFd,
    state: State,
    inbound: Inbound,
    inbox: Vec<u8>,
    /// Bytes of `inbox` that came and are not used yet: `inbox[start..end]`.
    unused: std::ops::Range<usize>,
    receiving: Receiving,
    /// The last receive left bytes in the socket.
    more_waits: bool,
    outbound: Outbound,
    sending: bool,
    /// Our direction of the stream is shut down.
    shut: bool,
    timer: Option<Lent<types::Timespec>>,
    option: Option<Lent<u32>>,
}

impl TcpLink {
    /// Takes over a connected socket whose handshake is done: the next byte that comes or leaves
    /// is the first one of a frame. All buffers are allocated here.
    pub fn new(socket: OwnedFd, config: TcpConfig) -> TcpLink {
        TcpLink {
            socket,
            state: State::Open,
            inbound: Inbound::default(),
            inbox: vec![0; INBOX_LEN],
            unused: 0..0,
            receiving: Receiving::No,
            more_waits: false,
            outbound: Outbound::new(config.send_buffer),
            sending: false,
            shut: false,
            timer: None,
            option: config.low_water.map(|bytes| Lent {
                value: Box::new(bytes),
                in_flight: false,
            }),
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_raw_fd())
    }

    /// Ends the link; the first reason counts. The connection is reset, which also ends the
    /// submissions in flight.
    fn end(&mut self, reason: LinkError) {
        if !self.state.end(reason) {
            return;
        }
        // Each of these can fail only on a connection that is already gone.
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        if connect_unspec(&self.socket).is_err() {
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }

    /// Ends the link because the stream or the socket did.
    fn lost(&mut self, reason: LinkError) {
        let nothing_to_send = self.outbound.queued() == 0;
        self.end(self.state.loss(nothing_to_send, reason));
    }

    /// Uses what is in the inbox.
    fn parse(&mut self, pool: &mut PayloadPool, events: &mut Vec<LinkEvent>) {
        if self.state != State::Open {
            self.unused = 0..0;
            return;
        }
        let input = self.inbox.get(self.unused.clone()).unwrap_or(&[]);
        match self.inbound.feed(input, pool, events) {
            Ok(used) => self.unused.start += used,
            Err(error) => self.end(error.into()),
        }
    }

    /// Submits a receive, unless bytes are left for which there was no slot.
    fn receive(&mut self, ring: &mut dyn Submitter, pool: &PayloadPool) {
        if self.state.has_ended() || self.receiving != Receiving::No || !self.unused.is_empty() {
            return;
        }
        let target = match self.inbound.target(pool) {
            Ok(target) => target.filter(|target| target.len >= DIRECT_MIN),
            Err(_) => return self.end(LinkError::Os(Errno::FAULT.raw_os_error())),
        };
        let finishing = self.state != State::Open;
        let (start, len, flags, what) = match target {
            // WAITALL: one completion for the whole rest.
            Some(target) if !finishing => (target.start, target.len, MSG_WAITALL, Receiving::Slot),
            _ => (self.inbox.as_mut_ptr(), INBOX_LEN, 0, Receiving::Inbox),
        };
        // An attempt on an empty socket is work for nothing.
        let poll_first = if self.more_waits { 0 } else { POLL_FIRST };
        let entry = opcode::Recv::new(self.fd(), start, len as u32)
            .flags(flags)
            .ioprio(poll_first)
            .build();
        if ring.submit(entry, TOKEN_RECV).is_ok() {
            self.receiving = what;
        }
    }

    fn received(&mut self, result: i32, pool: &mut PayloadPool, events: &mut Vec<LinkEvent>) {
        let into = std::mem::replace(&mut self.receiving, Receiving::No);
        let count = match usize::try_from(result) {
            Ok(0) if self.inbound.at_boundary() => return self.lost(LinkError::Peer),
            Ok(0) => return self.lost(LinkError::Truncated),
            Ok(count) => count,
            Err(_) if is_transient(result) => return,
            Err(_) => return self.lost(LinkError::Os(result.wrapping_neg())),
        };
        match into {
            Receiving::Inbox => {
                self.unused = 0..count.min(INBOX_LEN);
                self.parse(pool, events);
            }
            Receiving::Slot if self.state == State::Open => {
                if let Err(error) = self.inbound.received(count, pool, events) {
                    self.end(error.into());
                }
            }
            Receiving::Slot | Receiving::No => {}
        }
    }

    /// Submits a send of what is queued.
    fn send(&mut self, ring: &mut dyn Submitter) {
        if self.sending || self.state.has_ended() {
            return;
        }
        let fd = self.fd();
        let front = self.outbound.front();
        if front.is_empty() {
            return self.end_of_stream();
        }
        let len = u32::try_from(front.len()).unwrap_or(u32::MAX);
        // WAITALL: the kernel goes on by itself after a part.
        let entry = opcode::Send::new(fd, front.as_ptr(), len)
            .flags(MSG_NOSIGNAL | MSG_WAITALL)
            .build();
        self.sending = ring.submit(entry, TOKEN_SEND).is_ok();
    }

    /// Everything has left: a link that is finishing says so to the peer.
    fn end_of_stream(&mut self) {
        if self.state.is_finishing() && !self.shut {
            self.shut = true;
            if let Err(error) = shutdown(&self.socket, Shutdown::Write) {
                self.lost(LinkError::Os(error.raw_os_error()));
            }
        }
    }

    fn was_sent(&mut self, result: i32) {
        self.sending = false;
        match usize::try_from(result) {
            Ok(count) => self.outbound.sent(count),
            Err(_) if is_transient(result) => {}
            Err(_) => self.lost(LinkError::Os(result.wrapping_neg())),
        }
    }

    /// Starts the clock of a link that is finishing.
    fn arm_timer(&mut self, ring: &mut dyn Submitter) {
        let State::Finishing { bound } = self.state else {
            return;
        };
        let timer = self.timer.get_or_insert_with(|| Lent {
            value: Box::new(types::Timespec::from(bound)),
            in_flight: false,
        });
        if !timer.in_flight {
            let entry = opcode::Timeout::new(&*timer.value).build();
            timer.in_flight = ring.submit(entry, TOKEN_TIMER).is_ok();
        }
    }

    /// Sets the low-water mark; a kernel that cannot just keeps more unsent bytes.
    fn set_option(&mut self, ring: &mut dyn Submitter) {
        let fd = self.fd();
        let Some(option) = &mut self.option else {
            return;
        };
        let entry = opcode::SetSockOpt::new(
            fd,
            IPPROTO_TCP,
            TCP_NOTSENT_LOWAT,
            (&raw const *option.value).cast(),
            size_of::<u32>() as u32,
        )
        .build();
        option.in_flight = ring.submit(entry, TOKEN_OPTION).is_ok();
    }

    /// Submits what is possible and, at the end, tidies up.
    fn go_on(
        &mut self,
        ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        events: &mut Vec<LinkEvent>,
    ) {
        self.send(ring);
        self.arm_timer(ring);
        self.receive(ring, pool);
        if self.state.has_ended() && self.receiving != Receiving::Slot {
            self.inbound.abandon(pool);
        }
        self.state.report(events);
    }

    fn in_flight(&self) -> bool {
        self.sending
            || self.receiving != Receiving::No
            || self.timer.as_ref().is_some_and(|timer| timer.in_flight)
            || self.option.as_ref().is_some_and(|option| option.in_flight)
    }
}

/// Errors after which the same submission is simply made again.
fn is_transient(result: i32) -> bool {
    let errno = Errno::from_raw_os_error(result.wrapping_neg());
    errno == Errno::INTR || errno == Errno::AGAIN
}

impl Link for TcpLink {
    fn start(&mut self, ring: &mut dyn Submitter) {
        self.set_option(ring);
        // Reception starts with the first pump: it needs the pool.
    }

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
        ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        events: &mut Vec<LinkEvent>,
    ) {
        if !self.unused.is_empty() {
            self.parse(pool, events);
        }
        self.go_on(ring, pool, events);
    }

    fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        pool: &mut PayloadPool,
        token: u32,
        result: i32,
        flags: u32,
        events: &mut Vec<LinkEvent>,
    ) {
        match token {
            TOKEN_RECV if self.receiving != Receiving::No => {
                self.more_waits = cqueue::sock_nonempty(flags);
                self.received(result, pool, events);
            }
            TOKEN_SEND if self.sending => self.was_sent(result),
            TOKEN_TIMER => {
                self.timer = None;
                self.end(LinkError::Unfinished);
            }
            TOKEN_OPTION => self.option = None,
            _ => return,
        }
        self.go_on(ring, pool, events);
    }

    fn close(&mut self) {
        self.end(LinkError::Local);
    }

    fn finish(&mut self, bound: Duration) {
        self.state.finish(bound);
    }

    fn drained(&self) -> bool {
        self.state.is_reported() && !self.in_flight() && !self.inbound.holds_slot()
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.end(LinkError::Local);
        if self.in_flight() {
            // The kernel may still read or write these.
            std::mem::forget(std::mem::take(&mut self.inbox));
            self.outbound.leak();
            std::mem::forget(self.timer.take());
            std::mem::forget(self.option.take());
        }
    }
}
