//! The NBD server: listener, connections, and the [`Target`] in front of the engine.
//!
//! Tokens carry what a completion is about in the upper half and the connection's slot in the
//! lower one. A slot is used again only when the ring holds nothing of its connection, so no
//! completion can be taken for another connection's.
//!
//! [`Target::complete`] cannot hand out requests, so what it makes possible (a waiting request
//! that finds its tags, the flush after a durable trim, the end of the server) is done at a "kick",
//! a no-op on the ring that comes back at once.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use lockstep_transport::ring::{RingFull, Submitter};
use rustix::net::{AddressFamily, SocketFlags, sockopt};

use super::connection::Connection;
use super::protocol::{Export, MAX_REQUEST, MAX_STRING};
use super::session::World;
use super::submit::{Queue, Timer};
use super::tags::{Owner, Tags};
use crate::engine::{IoFailure, Op};
use crate::target::{Client, MAX_DATA, Target, TargetEvent};

/// Connections that are served at once; nbdcopy takes 4 by default.
pub const MAX_CONNECTIONS: usize = 16;

/// Further connections that are told so at once; beyond them clients wait to be accepted, until
/// one of these has left or run into its deadline.
const TURNED_AWAY: usize = 4;

const SLOTS: usize = MAX_CONNECTIONS + TURNED_AWAY;

const TOO_MANY: &str = "all 16 connections of this export are in use";

/// Largest depth: the gather list of one send stays below the kernel's 1024 vectors.
pub const MAX_DEPTH: u32 = 256;

/// How long to wait before accepting again when that failed (no descriptors, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long to wait before submitting again when the ring was full and nothing else happens.
const RING_PAUSE: Duration = Duration::from_millis(1);

/// How long clients may take to read their last replies when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// What can be tuned.
#[derive(Clone, Copy, Debug)]
pub struct NbdOptions {
    /// Requests at the engine at once, each with [`MAX_DATA`] bytes of address space.
    pub depth: u32,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long a client may neither take its replies nor send its payload while others wait for
    /// the buffers that it keeps. Alone, it may take for ever.
    pub stall_timeout: Duration,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions {
            depth: 64,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum NbdSetupError {
    #[error("depth {0} is not between 1 and {MAX_DEPTH}")]
    Depth(u32),
    #[error("minimum block size {0} is not 512, 1024, 2048 or 4096")]
    MinBlock(u32),
    #[error("size {size} is not a multiple of the minimum block size {min_block}")]
    Size { size: u64, min_block: u32 },
    #[error("name or description is longer than {MAX_STRING} bytes")]
    TooLong,
    #[error("it has no listening socket")]
    NoSocket,
    #[error("cannot set up the server: {0}")]
    System(std::io::Error),
}

/// What a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Accept,
    Timer,
    Kick,
    Cancel,
    Receive(usize),
    Send(usize),
}

impl Token {
    fn encode(self) -> u32 {
        let (kind, slot) = match self {
            Token::Accept => (0, 0),
            Token::Timer => (1, 0),
            Token::Kick => (2, 0),
            Token::Cancel => (3, 0),
            Token::Receive(slot) => (4, slot),
            Token::Send(slot) => (5, slot),
        };
        // Slots are below SLOTS.
        kind << 16 | slot as u32
    }

    fn decode(token: u32) -> Option<Token> {
        let slot = (token & 0xffff) as usize;
        match token >> 16 {
            0 => Some(Token::Accept),
            1 => Some(Token::Timer),
            2 => Some(Token::Kick),
            3 => Some(Token::Cancel),
            4 => Some(Token::Receive(slot)),
            5 => Some(Token::Send(slot)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Waiting for the engine, the clients and the ring.
    Stopping,
    Stopped,
}

/// An NBD server for one export.
#[derive(Debug)]
pub struct NbdServer {
    export: Export,
    /// Why everybody is refused, if so.
    refusal: Option<String>,
    options: NbdOptions,
    max_request: u32,
    listener: Option<OwnedFd>,
    /// Connections come over TCP.
    tcp: bool,
    tags: Tags,
    connections: Vec<Option<Box<Connection>>>,
    queue: Queue,
    timer: Timer,
    accepting: bool,
    /// When to try again to accept.
    accept_at: Option<Instant>,
    kicked: bool,
    /// Durable trims whose flush goes to the engine at the next kick.
    flushes: VecDeque<(u32, Owner)>,
    phase: Phase,
}

impl NbdServer {
    /// Serves `export` to whoever connects to `listener`.
    pub fn new(
        listener: OwnedFd,
        export: Export,
        options: NbdOptions,
    ) -> Result<NbdServer, NbdSetupError> {
        let Export {
            size, min_block, ..
        } = export;
        if !(1..=MAX_DEPTH).contains(&options.depth) {
            return Err(NbdSetupError::Depth(options.depth));
        }
        if !min_block.is_power_of_two() || !(512..=4096).contains(&min_block) {
            return Err(NbdSetupError::MinBlock(min_block));
        }
        if !size.is_multiple_of(u64::from(min_block)) {
            return Err(NbdSetupError::Size { size, min_block });
        }
        if export.name.len() > MAX_STRING || export.description.len() > MAX_STRING {
            return Err(NbdSetupError::TooLong);
        }
        NbdServer::build(listener, export, None, options)
    }

    /// Tells whoever connects to `listener` why the export cannot be had here, for a node that is
    /// not primary. Makes no request and has no buffer.
    ///
    /// `reason` is for people and best names the node to go to.
    pub fn refusing(listener: OwnedFd, reason: &str) -> Result<NbdServer, NbdSetupError> {
        if reason.len() > MAX_STRING {
            return Err(NbdSetupError::TooLong);
        }
        let export = Export {
            name: String::new(),
            description: String::new(),
            size: 0,
            min_block: 512,
            discard: true,
            read_only: true,
        };
        let options = NbdOptions {
            depth: 0,
            ..NbdOptions::default()
        };
        NbdServer::build(listener, export, Some(reason.to_owned()), options)
    }

    fn build(
        listener: OwnedFd,
        export: Export,
        refusal: Option<String>,
        options: NbdOptions,
    ) -> Result<NbdServer, NbdSetupError> {
        let system = |errno: rustix::io::Errno| NbdSetupError::System(errno.into());
        // The ring would hand out "try again" instead of waiting.
        rustix::io::ioctl_fionbio(&listener, false).map_err(system)?;
        let family = sockopt::socket_domain(&listener).map_err(system)?;
        Ok(NbdServer {
            export,
            refusal,
            options,
            max_request: MAX_REQUEST.min(options.depth.saturating_mul(MAX_DATA)),
            listener: Some(listener),
            tcp: family != AddressFamily::UNIX,
            tags: Tags::new(options.depth).map_err(system)?,
            connections: (0..SLOTS).map(|_| None).collect(),
            queue: Queue::default(),
            timer: Timer::new().map_err(system)?,
            accepting: false,
            accept_at: None,
            kicked: false,
            flushes: VecDeque::new(),
            phase: Phase::Running,
        })
    }

    /// Connections that are open, those that are being turned away included.
    pub fn connections(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    /// Connections whose client has the export open.
    fn using(&self) -> impl Iterator<Item = &Connection> {
        let open = self.connections.iter().flatten().map(Box::as_ref);
        open.filter(|connection| connection.is_in_use())
    }

    fn push(&mut self, ring: &mut dyn Submitter, entry: squeue::Entry, token: Token) {
        self.queue.push(ring, entry, token.encode());
    }

    /// The accept that is to be on the ring, if it is not.
    fn next_accept(&mut self) -> Option<squeue::Entry> {
        let full = self.connections.iter().all(Option::is_some);
        let listener = self.listener.as_ref()?;
        if self.accepting || full || self.accept_at.is_some() || self.phase != Phase::Running {
            return None;
        }
        self.accepting = true;
        let fd = types::Fd(listener.as_raw_fd());
        Some(
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(SocketFlags::CLOEXEC.bits() as i32)
                .build(),
        )
    }

    fn accepted(&mut self, result: i32) -> Option<usize> {
        use rustix::io::Errno;
        self.accepting = false;
        if result < 0 {
            let again = [Errno::INTR, Errno::CONNABORTED, Errno::CANCELED];
            if self.phase == Phase::Running && !again.iter().any(|e| e.raw_os_error() == -result) {
                let error = std::io::Error::from_raw_os_error(-result);
                tracing::warn!(%error, "nbd: cannot accept a connection");
                self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
            }
            return None;
        }
        // SAFETY: the kernel has just made this descriptor for our accept; nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        if self.phase != Phase::Running {
            return None;
        }
        if self.tcp {
            // Replies must not wait for each other; a vanished client must be noticed some day.
            // Both are improvements only.
            let _ = sockopt::set_tcp_nodelay(&socket, true);
            let _ = sockopt::set_socket_keepalive(&socket, true);
        }
        let admitted = self.connections.iter().flatten();
        let admitted = admitted.filter(|c| c.is_admitted()).count();
        let turned_away = (admitted >= MAX_CONNECTIONS).then_some(TOO_MANY);
        let deadline = Instant::now() + self.options.handshake_timeout;
        let slot = self.connections.iter().position(Option::is_none)?;
        let connection = Connection::new(socket, deadline, turned_away);
        *self.connections.get_mut(slot)? = Some(Box::new(connection));
        Some(slot)
    }

    /// Lets a connection go on: work on what it has received, receive more, send, end.
    fn pump(&mut self, ring: &mut dyn Submitter, slot: usize, events: &mut Vec<TargetEvent>) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else {
            return;
        };
        let mut world = World {
            export: &self.export,
            max_request: self.max_request,
            slot,
            tags: &mut self.tags,
            events,
        };
        let receive = connection.next_receive(self.refusal.as_deref(), &mut world);
        if let Some(entry) = receive {
            self.queue.push(ring, entry, Token::Receive(slot).encode());
        }
        self.send(ring, slot);
    }

    /// Sends what a connection has to send, and drops it when it is over.
    fn send(&mut self, ring: &mut dyn Submitter, slot: usize) {
        let Some(entry) = self.connections.get_mut(slot) else {
            return;
        };
        let Some(connection) = entry else {
            return;
        };
        if let Some(entry) = connection.next_send(&self.tags) {
            self.queue.push(ring, entry, Token::Send(slot).encode());
        }
        if connection.is_over()
            && let Some(connection) = entry.take()
        {
            connection.close(&mut self.tags, slot);
            let tags = &mut self.tags;
            self.flushes.retain(|(tag, owner)| {
                if owner.slot == slot {
                    tags.release(*tag);
                }
                owner.slot != slot
            });
        }
    }

    /// Deadlines and everything else that depends on time.
    fn check_time(&mut self, ring: &mut dyn Submitter) {
        let now = Instant::now();
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
        }
        for slot in 0..self.connections.len() {
            if let Some(Some(connection)) = self.connections.get_mut(slot) {
                connection.check_time(now, self.options.stall_timeout, &mut self.tags, slot);
                self.send(ring, slot);
            }
        }
    }

    /// Hands on the flushes that follow durable trims.
    fn kick_done(&mut self, events: &mut Vec<TargetEvent>) {
        self.kicked = false;
        for (tag, owner) in self.flushes.drain(..) {
            self.tags.hand_on(tag, owner);
            events.push(TargetEvent::Request { tag, op: Op::Flush });
        }
    }

    fn kick(&mut self, ring: &mut dyn Submitter) {
        if !self.kicked {
            self.kicked = true;
            self.push(ring, opcode::Nop::new().build(), Token::Kick);
        }
    }

    /// What has to hold after every completion.
    fn settle(&mut self, ring: &mut dyn Submitter, events: &mut Vec<TargetEvent>) {
        self.queue.retry(ring);
        while let Some(slot) = self.tags.next_waiter() {
            self.pump(ring, slot, events);
        }
        if self.phase != Phase::Running {
            self.settle_stop(ring, events);
            return;
        }
        self.rearm(ring);
    }

    /// Keeps accept and timer going.
    fn rearm(&mut self, ring: &mut dyn Submitter) {
        if let Some(entry) = self.next_accept() {
            self.push(ring, entry, Token::Accept);
        }
        if let Some(at) = self.accept_at {
            self.timer.arm(at);
        }
        if self.tags.contended() {
            self.timer.arm(Instant::now() + self.options.stall_timeout);
        }
        for deadline in self
            .connections
            .iter()
            .flatten()
            .filter_map(|c| c.deadline())
        {
            self.timer.arm(deadline);
        }
        if self.queue.is_stuck() {
            self.timer.arm(Instant::now() + RING_PAUSE);
        }
        if let Some(entry) = self.timer.read() {
            self.push(ring, entry, Token::Timer);
        }
    }

    fn settle_stop(&mut self, ring: &mut dyn Submitter, events: &mut Vec<TargetEvent>) {
        if self.phase == Phase::Stopped {
            return;
        }
        if self.connections() > 0 || self.queue.is_stuck() {
            self.rearm(ring);
            return;
        }
        if !self.accepting {
            self.listener = None;
        }
        if self.timer.is_reading() {
            self.timer.arm(Instant::now());
        }
        if !self.queue.is_on_ring() && self.tags.with_engine() == 0 {
            self.phase = Phase::Stopped;
            events.push(TargetEvent::Stopped);
        }
    }
}

impl Target for NbdServer {
    fn depth(&self) -> u32 {
        self.options.depth
    }

    fn start(&mut self, ring: &mut dyn Submitter) -> Result<(), RingFull> {
        self.rearm(ring);
        self.queue.retry(ring);
        // What found no room is tried again at the next call; with nothing at all on the ring
        // there would be none.
        if self.queue.is_on_ring() {
            Ok(())
        } else {
            Err(RingFull)
        }
    }

    fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        token: u32,
        result: i32,
        _flags: u32,
        events: &mut Vec<TargetEvent>,
    ) {
        let Some(token) = Token::decode(token) else {
            debug_assert!(false, "token {token:#x} is not ours");
            return;
        };
        self.queue.completed();
        match token {
            Token::Accept => {
                if let Some(slot) = self.accepted(result) {
                    self.pump(ring, slot, events);
                }
            }
            Token::Timer => {
                self.timer.expired();
                self.check_time(ring);
            }
            Token::Kick => self.kick_done(events),
            Token::Cancel => {}
            Token::Receive(slot) => {
                if let Some(Some(connection)) = self.connections.get_mut(slot) {
                    connection.received(result, &mut self.tags, slot);
                }
                self.pump(ring, slot, events);
            }
            Token::Send(slot) => {
                if let Some(Some(connection)) = self.connections.get_mut(slot) {
                    connection.sent(result, &mut self.tags, slot);
                }
                self.pump(ring, slot, events);
            }
        }
        self.settle(ring, events);
    }

    fn buffer(&mut self, tag: u32) -> &mut [u8] {
        self.tags.buffer(tag)
    }

    fn complete(&mut self, ring: &mut dyn Submitter, tag: u32, result: Result<(), IoFailure>) {
        let Some(owner) = self.tags.take_back(tag) else {
            debug_assert!(false, "tag {tag} is not at the engine");
            return;
        };
        if let Some(owner) = owner
            && let Some(Some(connection)) = self.connections.get_mut(owner.slot)
        {
            if connection.part_done(owner.request, tag, result, &mut self.tags) {
                self.flushes.push_back((tag, owner));
            }
            self.send(ring, owner.slot);
        }
        self.queue.retry(ring);
        // Without an accept on the ring the slots were full, or the server is stopping.
        if self.tags.can_serve() || !self.flushes.is_empty() || !self.accepting {
            self.kick(ring);
        }
        if self.queue.is_stuck() {
            self.timer.arm(Instant::now() + RING_PAUSE);
        }
    }

    fn in_use(&self) -> bool {
        self.using().next().is_some()
    }

    fn clients(&self) -> Vec<Client> {
        self.using().map(Connection::client).collect()
    }

    fn stop(&mut self, ring: &mut dyn Submitter, events: &mut Vec<TargetEvent>) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Stopping;
        self.accept_at = None;
        if let Some(listener) = self.listener.as_ref().filter(|_| self.accepting) {
            // Not shutdown(): the socket may be somebody else's as well.
            let by = types::CancelBuilder::fd(types::Fd(listener.as_raw_fd())).all();
            self.push(ring, opcode::AsyncCancel2::new(by).build(), Token::Cancel);
        }
        let deadline = Instant::now() + STOP_GRACE;
        for slot in 0..self.connections.len() {
            if let Some(Some(connection)) = self.connections.get_mut(slot) {
                connection.drain(deadline, &mut self.tags, slot);
                self.send(ring, slot);
            }
        }
        self.settle(ring, events);
    }
}

impl Drop for NbdServer {
    /// A server that is dropped before it has stopped leaves the kernel what it may still use.
    fn drop(&mut self) {
        if !self.queue.is_on_ring() {
            return;
        }
        tracing::error!("nbd server dropped before it stopped; its buffers stay");
        std::mem::forget(std::mem::take(&mut self.connections));
        self.tags.leak();
        self.timer.leak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::nbd::listen_tcp;

    fn build(
        size: u64,
        min_block: u32,
        depth: u32,
        name: &str,
    ) -> Result<NbdServer, NbdSetupError> {
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let export = Export {
            name: name.to_owned(),
            description: String::new(),
            size,
            min_block,
            discard: true,
            read_only: false,
        };
        let options = NbdOptions {
            depth,
            ..NbdOptions::default()
        };
        NbdServer::new(listener, export, options)
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let long = "x".repeat(MAX_STRING + 1);
        assert!(build(4096, 512, 1, "r0").is_ok());
        assert!(matches!(
            build(4096, 512, 0, ""),
            Err(NbdSetupError::Depth(0))
        ));
        assert!(matches!(
            build(4096, 512, 257, ""),
            Err(NbdSetupError::Depth(257))
        ));
        assert!(matches!(
            build(4096, 256, 1, ""),
            Err(NbdSetupError::MinBlock(256))
        ));
        assert!(matches!(
            build(9216, 3072, 1, ""),
            Err(NbdSetupError::MinBlock(3072))
        ));
        assert!(matches!(
            build(4608, 4096, 1, ""),
            Err(NbdSetupError::Size { .. })
        ));
        assert!(matches!(
            build(4096, 512, 1, &long),
            Err(NbdSetupError::TooLong)
        ));
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let refusing = NbdServer::refusing(listener, &long);
        assert!(matches!(refusing, Err(NbdSetupError::TooLong)));
    }

    #[test]
    fn a_server_can_be_built_on_one_thread_and_run_on_another() {
        fn assert_send<T: Send>(_: &T) {}
        assert_send(&build(4096, 512, 1, "").unwrap());
    }

    #[test]
    fn tokens_come_back_as_they_were() {
        let mut seen = std::collections::HashSet::new();
        let slots = (0..SLOTS).flat_map(|slot| [Token::Receive(slot), Token::Send(slot)]);
        let fixed = [Token::Accept, Token::Timer, Token::Kick, Token::Cancel];
        for token in slots.chain(fixed) {
            assert_eq!(Token::decode(token.encode()), Some(token));
            assert!(seen.insert(token.encode()));
        }
        assert_eq!(Token::decode(u32::MAX), None);
    }
}
