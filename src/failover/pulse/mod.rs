//! Heartbeats and leases: a thread of their own, so that nothing that a node does makes them late.
//!
//! The thread owns the sockets, the [`Membership`](super::membership::Membership) and the
//! [`Seat`](super::Seat) of every resource. It takes
//! [`Order`]s of the agent and gives [`News`]; how things are at any moment is in [`Picture`].
//! What has to be durable is written by a second thread, so that a slow disk delays no beat.
//! Deadlines are on the boot-time clock. The end of each lease is written into the memory that the
//! data plane looks at ([`LeaseWord`]) in the same step in which it is learned.

mod net;
mod run;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;

use super::membership::{PathPicture, Timing};
use super::report::NodeReport;
use super::seat::Input;
use super::voter::{Denied, Lease};
use crate::engine::{Generation, NodeId, Term, VolumeId, Vote};
use crate::reactor::lease::LeaseWord;

/// A path between the two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathConfig {
    pub own: SocketAddr,
    pub peer: SocketAddr,
}

/// What the thread is set up with.
#[derive(Clone, Debug)]
pub struct PulseConfig {
    /// The cluster's key.
    pub key: Vec<u8>,
    pub me: NodeId,
    pub peer: NodeId,
    pub paths: Vec<PathConfig>,
    pub witness: Option<SocketAddr>,
    pub timing: Timing,
    pub lease: Lease,
    /// Folder of the own votes' records.
    pub votes: PathBuf,
}

/// What the agent tells the thread.
pub enum Order {
    /// A resource whose reigns need votes. `reign`: its data plane reigns under this term since
    /// before this thread started, which has to be said first of all ([`Input::Resume`]).
    Add {
        resource: String,
        reign: Option<Term>,
    },
    /// The memory in which the data plane looks for its lease.
    Lease {
        resource: String,
        word: LeaseWord,
    },
    Give {
        resource: String,
        input: Input,
    },
    /// What the peer is told from now on.
    Say(NodeReport),
    /// Replication has heard from the peer.
    Replication(crate::engine::Time),
    /// The writer is done.
    Stored {
        resource: String,
        version: u64,
    },
}

/// What the thread tells the agent.
#[derive(Debug)]
pub enum News {
    Voted {
        resource: String,
        vote: Vote,
    },
    Denied {
        resource: String,
        denied: Denied,
    },
    Recorded {
        resource: String,
        volume: VolumeId,
        generation: Generation,
    },
    Deposed {
        resource: String,
        term: Term,
    },
    /// The peer has become reachable, or silent.
    Peer {
        alive: bool,
    },
}

/// One of the other voters of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoterPicture {
    /// Since its last answer.
    pub age: Option<Duration>,
    pub denied: Option<Denied>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeatPicture {
    pub reign: Option<Term>,
    pub lease_left: Option<Duration>,
    pub peer: VoterPicture,
    pub third: VoterPicture,
    pub doubts: bool,
}

/// How things are.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub alive: bool,
    /// For how long the peer has been dead.
    pub dead_for: Option<Duration>,
    pub paths: Vec<PathPicture>,
    /// Why a path has no socket, by its number.
    pub unbound: BTreeMap<usize, String>,
    pub peer: NodeReport,
    pub seats: BTreeMap<String, SeatPicture>,
    /// How late the thread woke: the worst of the last minute, and 99.9 % of all times.
    pub late_worst: Duration,
    pub late_p999: Duration,
    /// Datagrams that were not taken.
    pub rejected: u64,
}

/// Why there are no heartbeats.
#[derive(Debug, Error)]
pub enum PulseError {
    #[error("cannot start the heartbeat: {0}")]
    System(#[from] std::io::Error),
    #[error("the operating system gives no random numbers")]
    Random,
}

/// The agent's end.
#[derive(Clone)]
pub struct Pulse {
    orders: Sender<Order>,
    waker: Arc<std::os::fd::OwnedFd>,
    picture: Arc<Mutex<Picture>>,
}

impl Pulse {
    /// Starts the threads; they end with the process.
    pub fn start(config: PulseConfig, news: UnboundedSender<News>) -> Result<Pulse, PulseError> {
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let waker = Arc::new(waker.map_err(std::io::Error::from)?);
        let (orders, inbox) = channel();
        let pulse = Pulse {
            orders,
            waker,
            picture: Arc::default(),
        };
        let writer = run::writer(config.votes.clone(), pulse.clone())?;
        let thread = run::Thread::new(config, (inbox, news), pulse.clone(), writer)?;
        std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || thread.run())?;
        Ok(pulse)
    }

    /// Hands an order over.
    pub fn give(&self, order: Order) {
        if self.orders.send(order).is_ok() {
            // Full means that it is awake.
            let _ = rustix::io::write(&*self.waker, &1u64.to_ne_bytes());
        }
    }

    pub fn picture(&self) -> Picture {
        let picture = self.picture.lock();
        picture.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, picture: Picture) {
        let shown = self.picture.lock();
        *shown.unwrap_or_else(PoisonError::into_inner) = picture;
    }
}
