//! What other threads tell the ring thread, and what it tells them.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;
use tokio::sync::{broadcast, oneshot, watch};

use super::attach::OpenedDisk;
use super::device::DeviceOrder;
use super::ring::Waker;
use super::status::Snapshot;
use crate::agent::protocol::{ErrorReply, ServeNotice, VoterSays};
use crate::engine::{Command, NodeId, VolumeId};

/// Notices that a slow listener may be behind before it misses some.
const NOTICE_BACKLOG: usize = 256;

/// How a request of the agent ended.
pub type Answer = Result<Value, ErrorReply>;

/// Where an answer goes. Nobody may be waiting any more.
pub type Reply = oneshot::Sender<Answer>;

/// An order to the ring thread.
pub enum Order {
    /// A command for the engine.
    Command {
        command: Command,
        reply: Reply,
    },
    /// Give up the role, unless somebody has an NBD export open. Whoever has is cut off with
    /// `force`, and otherwise named in the answer.
    Secondary {
        force: bool,
        reply: Reply,
    },
    /// A disk that was opened and read.
    Attach {
        volume: VolumeId,
        disk: Box<OpenedDisk>,
        reply: Reply,
    },
    /// A connection whose handshake is done.
    Link {
        socket: OwnedFd,
        peer: NodeId,
        /// TCP_NOTSENT_LOWAT in bytes.
        low_water: Option<u32>,
        /// What both sides have.
        features: u64,
        /// Answered when the link counts as up.
        taken: oneshot::Sender<()>,
    },
    /// The listening socket of a volume's NBD export.
    Listen {
        volume: VolumeId,
        listener: OwnedFd,
        reply: Reply,
    },
    Status {
        reply: oneshot::Sender<Snapshot>,
    },
    FlightRecorder {
        reply: oneshot::Sender<Vec<String>>,
    },
    /// The agent is about to make the queue settings of a volume's device.
    QueueFreezes {
        volume: VolumeId,
        reply: Reply,
    },
    /// It has made them.
    QueueConfirmed {
        volume: VolumeId,
        reply: Reply,
    },
    /// What the voters have answered.
    Voter(VoterSays),
    Device(DeviceOrder),
}

/// The sending side; one per thread that has orders.
#[derive(Clone)]
pub struct Orders {
    sender: Sender<Order>,
    waker: Waker,
}

impl Orders {
    /// Hands an order over and wakes the ring thread. The ring thread ends only with the process,
    /// so there is somebody to take it.
    pub fn send(&self, order: Order) {
        if self.sender.send(order).is_ok() {
            self.waker.wake();
        }
    }
}

/// The way to the ring thread.
pub fn orders(waker: Waker) -> (Orders, Receiver<Order>) {
    let (sender, receiver) = channel();
    (Orders { sender, waker }, receiver)
}

/// Whether connections are to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkWish {
    /// The engine wants a link.
    pub want: bool,
    /// It has one.
    pub up: bool,
}

/// The way from the ring thread.
pub struct Reports {
    /// Numbered from 1.
    pub notices: broadcast::Sender<(u64, ServeNotice)>,
    sent: u64,
    pub wish: watch::Sender<LinkWish>,
}

impl Reports {
    /// Nobody listens yet.
    pub fn new() -> Reports {
        Reports {
            notices: broadcast::channel(NOTICE_BACKLOG).0,
            sent: 0,
            wish: watch::channel(LinkWish::default()).0,
        }
    }

    /// Tells whoever listens.
    pub fn notice(&mut self, notice: ServeNotice) {
        self.sent += 1;
        // An error means that nobody listens.
        let _ = self.notices.send((self.sent, notice));
    }

    /// The number of the last notice.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}
