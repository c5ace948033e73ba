//! One connection: its socket, its buffers, and how it begins and ends.
//!
//! ```text
//!   Open --goodbye, ABORT, stop()--> Draining --all answered and sent--> over
//!     \                                 | deadline
//!      `--error, hang-up, deadline-> Cut'--the last submission is back--> over
//! ```
//!
//! At most one receive and one send are on the ring. The kernel may use the buffers that they
//! name until they come back, so a connection is dropped only when it is over.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, getpeername, shutdown, sockopt};

use super::handshake::{Handshake, HandshakeError, Offer, Step};
use super::outbox::Outbox;
use super::session::{BadMagic, MAX_BACKLOG, Need, Session, Staging, World};
use super::tags::Tags;
use crate::engine::IoFailure;
use crate::target::Client;

/// How long a client that has said goodbye may take to read its last replies.
const GOODBYE: Duration = Duration::from_secs(30);

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
pub enum Hangup {
    #[error("the client closed the connection")]
    Closed,
    #[error("socket error: {0}")]
    Socket(std::io::Error),
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("transmission: {0}")]
    Transmission(#[from] BadMagic),
    #[error("the deadline has passed")]
    Deadline,
    #[error("the client stalls while others wait for its buffers")]
    Stalled,
}

#[derive(Debug)]
enum Stage {
    Negotiating(Handshake),
    Serving(Session),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Open,
    /// Nothing more is read; what is under way is answered.
    Draining,
    /// The socket is shut down.
    Cut,
}

/// A receive on the ring.
#[derive(Clone, Copy, Debug)]
struct Receive {
    since: Instant,
    /// It goes to a tag's buffer, not to the staging buffer.
    payload: bool,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    stage: Stage,
    ending: Ending,
    staging: Staging,
    outbox: Outbox,
    receive: Option<Receive>,
    /// When the send on the ring began.
    send_since: Instant,
    deadline: Option<Instant>,
    /// Told why it cannot be served, instead of the server's offer.
    turned_away: Option<&'static str>,
}

impl Connection {
    /// Greets a client, which has until `deadline` to choose an export.
    pub fn new(
        socket: OwnedFd,
        deadline: Instant,
        turned_away: Option<&'static str>,
    ) -> Connection {
        let mut outbox = Outbox::new();
        let handshake = outbox.head(Handshake::begin);
        Connection {
            socket,
            stage: Stage::Negotiating(handshake),
            ending: Ending::Open,
            staging: Staging::new(),
            outbox,
            receive: None,
            send_since: deadline,
            deadline: Some(deadline),
            turned_away,
        }
    }

    /// Whether it counts as one of the served connections.
    pub fn is_admitted(&self) -> bool {
        self.turned_away.is_none()
    }

    /// Whether its client has the export open: chosen, and not yet given back.
    pub fn is_in_use(&self) -> bool {
        self.ending == Ending::Open && matches!(self.stage, Stage::Serving(_))
    }

    /// Who is at the other end.
    pub fn client(&self) -> Client {
        if sockopt::socket_domain(&self.socket) == Ok(AddressFamily::UNIX) {
            return match sockopt::socket_peercred(&self.socket) {
                Ok(peer) => Client::Process(peer.pid.as_raw_nonzero().get().unsigned_abs()),
                Err(_) => Client::Unknown,
            };
        }
        let peer = getpeername(&self.socket).ok().flatten();
        let address = peer.and_then(|peer| peer.try_into().ok());
        address.map_or(Client::Unknown, Client::Address)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Works on what has been received; the next receive, if there is to be one.
    pub fn next_receive(
        &mut self,
        refusal: Option<&str>,
        world: &mut World<'_>,
    ) -> Option<squeue::Entry> {
        if self.receive.is_some() || self.ending != Ending::Open {
            return None;
        }
        let need = match self.advance(refusal, world) {
            Ok(need) => need,
            Err(reason) => {
                self.cut(&reason, world.tags, world.slot);
                return None;
            }
        };
        let fd = types::Fd(self.socket.as_raw_fd());
        let entry = match need {
            Need::Bytes => {
                let room = self.staging.room();
                // At most STAGING bytes.
                let length = room.len() as u32;
                opcode::Recv::new(fd, room.as_mut_ptr(), length).build()
            }
            Need::Payload { tag, at, length } => {
                // In bounds: `at + length` is at most the part's length.
                let base = world.tags.address(tag)?.wrapping_add(at as usize);
                opcode::Recv::new(fd, base, length)
                    .flags(RecvFlags::WAITALL.bits() as i32)
                    .build()
            }
            Need::Tags | Need::Room | Need::Nothing => return None,
        };
        self.receive = Some(Receive {
            since: Instant::now(),
            payload: matches!(need, Need::Payload { .. }),
        });
        Some(entry)
    }

    fn advance(&mut self, refusal: Option<&str>, world: &mut World<'_>) -> Result<Need, Hangup> {
        loop {
            let handshake = match &mut self.stage {
                Stage::Negotiating(handshake) => handshake,
                Stage::Serving(session) => {
                    let need = session.advance(&mut self.staging, &mut self.outbox, world)?;
                    if need == Need::Nothing {
                        self.ending = Ending::Draining;
                        self.deadline = Some(Instant::now() + GOODBYE);
                    }
                    return Ok(need);
                }
            };
            if self.outbox.backlog() > MAX_BACKLOG {
                return Ok(Need::Room);
            }
            let offer = match self.turned_away.or(refusal) {
                Some(reason) => Offer::Refused(reason),
                None => Offer::Open {
                    export: world.export,
                    max_request: world.max_request,
                },
            };
            let staging = &mut self.staging;
            match self
                .outbox
                .head(|out| handshake.step(offer, staging.data(), out))?
            {
                Step::More => return Ok(Need::Bytes),
                Step::Consumed(count) => staging.consume(count),
                Step::Agreed(count, agreed) => {
                    staging.consume(count);
                    self.stage = Stage::Serving(Session::new(agreed));
                    self.deadline = None;
                }
                Step::Ended(count) => {
                    staging.consume(count);
                    self.ending = Ending::Draining;
                    return Ok(Need::Nothing);
                }
            }
        }
    }

    /// The receive has come back.
    pub fn received(&mut self, result: i32, tags: &mut Tags, slot: usize) {
        let Some(receive) = self.receive.take() else {
            return;
        };
        if self.ending != Ending::Open {
            return;
        }
        match u32::try_from(result) {
            Ok(0) => self.cut(&Hangup::Closed, tags, slot),
            Ok(count) => match &mut self.stage {
                Stage::Serving(session) if receive.payload => session.received(count),
                _ => self.staging.received(count as usize),
            },
            Err(_) if is_transient(result) => {}
            Err(_) => self.cut(&socket_error(result), tags, slot),
        }
    }

    /// The next send, if there is something to send and none is under way.
    pub fn next_send(&mut self, tags: &Tags) -> Option<squeue::Entry> {
        if self.ending == Ending::Cut {
            return None;
        }
        let header = self.outbox.launch(tags)?;
        self.send_since = Instant::now();
        let fd = types::Fd(self.socket.as_raw_fd());
        let flags = SendFlags::NOSIGNAL.bits();
        Some(opcode::SendMsg::new(fd, header.cast()).flags(flags).build())
    }

    /// The send has come back.
    pub fn sent(&mut self, result: i32, tags: &mut Tags, slot: usize) {
        let count = usize::try_from(result).unwrap_or(0);
        self.outbox.landed(count, tags);
        if result < 0 && !is_transient(result) && self.ending != Ending::Cut {
            self.cut(&socket_error(result), tags, slot);
        }
    }

    /// A part of a request has ended; `true` when a flush has to follow with the same tag.
    pub fn part_done(
        &mut self,
        request: usize,
        tag: u32,
        result: Result<(), IoFailure>,
        tags: &mut Tags,
    ) -> bool {
        match &mut self.stage {
            Stage::Serving(session) => {
                session.part_done(request, tag, result, &mut self.outbox, tags)
            }
            Stage::Negotiating(_) => false,
        }
    }

    /// Reads no more, answers what is under way until `deadline`.
    pub fn drain(&mut self, deadline: Instant, tags: &mut Tags, slot: usize) {
        if self.ending == Ending::Open {
            self.ending = Ending::Draining;
            tags.forget_waiter(slot);
            // Brings back the receive. It fails only if the connection is gone already.
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
        if self.ending != Ending::Cut {
            self.deadline = Some(deadline);
        }
    }

    /// Ends the connection as fast as the ring gives back what it has.
    pub fn cut(&mut self, reason: &Hangup, tags: &mut Tags, slot: usize) {
        tracing::debug!(slot, %reason, "nbd connection ends");
        self.ending = Ending::Cut;
        self.deadline = None;
        tags.forget_waiter(slot);
        // Brings back receive and send. It fails only if the connection is gone already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Cuts a connection whose deadline has passed, or which keeps buffers from others while
    /// its client takes longer than `patience`.
    pub fn check_time(&mut self, now: Instant, patience: Duration, tags: &mut Tags, slot: usize) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.cut(&Hangup::Deadline, tags, slot);
        } else if tags.contended() && self.ending != Ending::Cut {
            let payload = match &self.stage {
                Stage::Serving(session) => session.holds_buffer(),
                Stage::Negotiating(_) => false,
            };
            let receiving = self.receive.filter(|_| payload).map(|r| r.since);
            let sending = self.outbox.in_flight().then_some(self.send_since);
            let stalled = |since: Option<Instant>| {
                since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
            };
            if stalled(receiving) || stalled(sending) {
                self.cut(&Hangup::Stalled, tags, slot);
            }
        }
    }

    /// Whether nothing is left to do and the ring holds nothing of it.
    pub fn is_over(&self) -> bool {
        if self.receive.is_some() || self.outbox.in_flight() {
            return false;
        }
        match (self.ending, &self.stage) {
            (Ending::Open, _) => false,
            (Ending::Cut, _) => true,
            (Ending::Draining, Stage::Negotiating(_)) => self.outbox.is_empty(),
            (Ending::Draining, Stage::Serving(session)) => {
                self.outbox.is_empty() && session.is_settled()
            }
        }
    }

    /// Gives back the tags of a connection that is over and closes its socket.
    pub fn close(mut self, tags: &mut Tags, slot: usize) {
        if let Stage::Serving(session) = &mut self.stage {
            session.release(tags);
        }
        self.outbox.discard(tags);
        tags.orphan(slot);
    }
}

/// Whether a receive or send that came back so can simply be done again.
fn is_transient(result: i32) -> bool {
    use rustix::io::Errno;
    [Errno::INTR, Errno::AGAIN]
        .iter()
        .any(|errno| errno.raw_os_error() == -result)
}

fn socket_error(result: i32) -> Hangup {
    Hangup::Socket(std::io::Error::from_raw_os_error(-result))
}
