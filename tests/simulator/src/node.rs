//! One data node: its disks, its process (the driver of one engine), and what outlives the
//! process in the agent's memory.

use std::collections::{BTreeMap, VecDeque};

use lockstep::engine::{
    Buffer, Config, Digest, Engine, Event, Generation, IoId, MetaOp, RequestId, ResourceStatus,
    Session, Span, Superblock, Term, Time, VolumeImage,
};
use lockstep::failover::Memory;

use crate::agent::Agent;
use crate::disk::{Disk, OpId, SECTOR};
use crate::meta;
use crate::network::Payload;
use crate::oracle::{Moment, WriteId};
use crate::schedule::Instant;

/// Bytes per activity-log extent.
pub const EXTENT: u64 = 4 << 20;

/// What a front-end request wants. Ranges in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Read,
    Write { fua: bool },
    Zeroes { unmap: bool, fua: bool },
    Discard,
    Flush,
}

/// A request inside the engine.
#[derive(Clone, Debug)]
pub struct Request {
    pub volume: usize,
    pub wish: Wish,
    pub start: u64,
    pub count: u64,
    pub submitted: Moment,
    /// Set for everything that changes data.
    pub write: Option<WriteId>,
    pub data: Vec<u64>,
    /// The peer was connected when the engine completed it. The lease may hold it back since then.
    pub connected: bool,
}

/// A payload from the peer and what fenced its frame.
#[derive(Clone)]
pub struct Received {
    pub payload: Payload,
    pub session: Session,
    pub term: Term,
    /// A sync block rather than a replicated write.
    pub sync: bool,
}

/// Where a data write came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An application on this node, or unknown (zeroes).
    Local,
    /// The peer, in this session.
    Peer { session: Session, sync: bool },
}

/// The last frame that carried data of a block (4 KiB, a bit of the bitmap) to the peer.
#[derive(Clone, Copy, Debug)]
pub struct Carrier {
    /// The sending process.
    pub node: usize,
    pub incarnation: u32,
    pub session: Session,
    /// A sync block, or the question whether it differs, rather than a replicated write.
    pub sync: bool,
}

/// What an operation in flight on a disk is for.
pub enum Target {
    Read {
        io: IoId,
        buffer: Buffer,
        hash: Option<Digest>,
        note_zeroes: bool,
    },
    /// Where the range begins with a hole; the disk may be one that cannot tell.
    Probe {
        io: IoId,
        dense: bool,
    },
    Write {
        io: IoId,
        origin: Origin,
        start: u64,
        stamps: Vec<u64>,
    },
    Flush {
        io: IoId,
    },
    Meta,
}

/// A volume's metadata operations: one after the other.
#[derive(Default)]
pub struct MetaQueue {
    pub waiting: VecDeque<(IoId, MetaOp)>,
    pub current: Option<MetaWork>,
}

/// The metadata operation under way.
pub struct MetaWork {
    pub io: IoId,
    pub op: MetaOp,
    pub steps: VecDeque<meta::Step>,
    pub failed: Option<i32>,
}

/// The data plane's process.
pub struct Process {
    pub engine: Engine,
    pub incarnation: u32,
    pub want_link: bool,
    pub serving: bool,
    pub requests: BTreeMap<RequestId, Request>,
    /// Completions and the opening of the front end, held back because the lease has ended.
    pub held: Vec<RequestId>,
    pub opens: bool,
    pub received: Vec<Option<Received>>,
    pub resync: Vec<Vec<u64>>,
    pub ios: BTreeMap<(usize, OpId), Target>,
    pub meta: Vec<MetaQueue>,
    pub stores: Vec<Option<meta::Store>>,
    /// Slot tables durable on disk, and on their way there.
    pub logged: Vec<Vec<u32>>,
    pub logging: Vec<Option<Vec<u32>>>,
    /// Commands whose answer somebody waits for.
    pub commands: BTreeMap<u64, Purpose>,
    /// The promotion under way was asked with force.
    pub forcing: bool,
    /// The last promotion was a forced one.
    pub forced: bool,
    /// Session that the engine accepted last, and the oldest request that was open then.
    pub session: Session,
    pub session_link: usize,
    pub session_from: Moment,
    /// Replicated writes that landed in a session, by volume and sector.
    pub landed: BTreeMap<(usize, u64), (Session, u64)>,
    pub status: ResourceStatus,
    /// In the event under way the engine learnt, or decided, that its link is gone.
    pub parted: bool,
    pub established: bool,
    pub tick_at: Option<Instant>,
    next_request: u32,
    next_command: u64,
}

/// Why a command was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Attach(usize),
    Primary,
    Other,
}

impl Process {
    pub fn new(config: Config, incarnation: u32) -> Process {
        let volumes = config.volumes.len();
        let chunk = config.resync_chunk as usize / SECTOR as usize;
        let resync = vec![vec![0; chunk]; config.resync_buffers as usize];
        let engine = Engine::new(config);
        let status = engine.status();
        Process {
            engine,
            incarnation,
            want_link: false,
            serving: false,
            requests: BTreeMap::new(),
            held: Vec::new(),
            opens: false,
            received: Vec::new(),
            resync,
            ios: BTreeMap::new(),
            meta: (0..volumes).map(|_| MetaQueue::default()).collect(),
            stores: (0..volumes).map(|_| None).collect(),
            logged: vec![Vec::new(); volumes],
            logging: vec![None; volumes],
            commands: BTreeMap::new(),
            forcing: false,
            forced: false,
            session: Session::default(),
            session_link: usize::MAX,
            session_from: 0,
            landed: BTreeMap::new(),
            status,
            parted: false,
            established: false,
            tick_at: None,
            next_request: 0,
            next_command: 0,
        }
    }

    pub fn request_id(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub fn command_id(&mut self, purpose: Purpose) -> u64 {
        self.next_command += 1;
        self.commands.insert(self.next_command, purpose);
        self.next_command
    }

    /// Keeps a payload until the engine releases it.
    pub fn keep(&mut self, received: Received) -> Buffer {
        let slot = match self.received.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.received.push(None);
                self.received.len() - 1
            }
        };
        self.received[slot] = Some(received);
        Buffer::Received(slot as u32)
    }

    /// First `count` stamps of a buffer; `None` when there is no such buffer or it is shorter.
    pub fn stamps(&self, buffer: Buffer, count: usize) -> Option<Vec<u64>> {
        let all: &[u64] = match buffer {
            Buffer::Request(id) => &self.requests.get(&id)?.data,
            Buffer::Received(slot) => &self.received.get(slot as usize)?.as_ref()?.payload,
            Buffer::Resync(slot) => self.resync.get(slot as usize)?,
        };
        all.get(..count).map(<[u64]>::to_vec)
    }

    /// Puts stamps into a buffer. A request's buffer may be gone: the request was completed.
    pub fn fill(&mut self, buffer: Buffer, stamps: &[u64]) {
        let target: &mut [u64] = match buffer {
            Buffer::Request(id) => match self.requests.get_mut(&id) {
                Some(request) => &mut request.data,
                None => return,
            },
            Buffer::Resync(slot) => &mut self.resync[slot as usize],
            Buffer::Received(_) => return,
        };
        let n = stamps.len().min(target.len());
        target[..n].copy_from_slice(&stamps[..n]);
    }

    /// What fenced the payload in a buffer.
    pub fn origin(&self, buffer: Buffer) -> (Origin, Option<Term>) {
        let Buffer::Received(slot) = buffer else {
            return (Origin::Local, None);
        };
        match self.received.get(slot as usize).and_then(Option::as_ref) {
            Some(r) => {
                let origin = Origin::Peer {
                    session: r.session,
                    sync: r.sync,
                };
                (origin, Some(r.term))
            }
            None => (Origin::Local, None),
        }
    }
}

/// The agent's memory of ranges in flight.
#[derive(Clone, Debug, Default)]
pub struct Tracked {
    pub slots: BTreeMap<u32, (usize, Span)>,
    pub exact: bool,
}

/// A node.
pub struct Node {
    pub id: usize,
    pub disks: Vec<Disk>,
    pub process: Option<Process>,
    pub incarnations: u32,
    pub powered: bool,
    pub paused: bool,
    /// Events that arrived while the process was stopped.
    pub inbox: VecDeque<Event>,
    pub boot: u64,
    /// The agent lives since before the last data plane: it keeps `tracked` and recovers.
    pub tracked: Option<Tracked>,
    /// The data plane served when it died and the agent wants that back.
    pub recover_role: bool,
    /// A volume lost its disk while the others went on.
    pub left_alone: bool,
    /// Requests that the kernel keeps for the next data plane.
    pub orphans: Vec<Request>,
    /// Generations, by volume, that a promotion by force was storing when its process ended.
    pub forced: BTreeMap<usize, Generation>,
    /// The agent's place among the voters.
    pub agent: Agent,
    clock_offset: u64,
    clock_ppm: i64,
}

impl Node {
    pub fn new(id: usize, disks: Vec<Disk>, clock_offset: u64, clock_ppm: i64) -> Node {
        Node {
            id,
            disks,
            process: None,
            incarnations: 0,
            powered: true,
            paused: false,
            inbox: VecDeque::new(),
            boot: 1,
            tracked: None,
            recover_role: false,
            left_alone: false,
            orphans: Vec::new(),
            forced: BTreeMap::new(),
            agent: Agent::new(Memory::blank(id as u64), true),
            clock_offset,
            clock_ppm,
        }
    }

    /// The node's clock at a moment of the run.
    pub fn clock(&self, now: Instant) -> Time {
        let drift = i128::from(now) * i128::from(self.clock_ppm) / 1_000_000;
        Time((i128::from(now) + i128::from(self.clock_offset) + drift).max(0) as u64)
    }

    /// When the node's clock shows `time`; never too early.
    pub fn when(&self, time: Time) -> Instant {
        let local = i128::from(time.0) - i128::from(self.clock_offset);
        let scaled = local * 1_000_000 / (1_000_000 + i128::from(self.clock_ppm));
        (scaled + 2).max(0) as Instant
    }

    pub fn running(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    pub fn serving(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.serving)
    }

    /// What recovery would find on a volume's disk now.
    pub fn recover(&self, volume: usize) -> Option<VolumeImage> {
        meta::recover(&self.disks[volume])
            .ok()
            .map(|(image, _)| image)
    }

    pub fn superblock(&self, volume: usize) -> Option<Superblock> {
        meta::superblock(&self.disks[volume])
    }

    /// Whether the copy is, after its own record, unfit for promotion.
    pub fn unfit(&self, volume: usize) -> Option<&'static str> {
        let superblock = self.superblock(volume)?;
        if superblock.inconsistent
            || (superblock.unflushed && superblock.unflushed_boot != self.boot)
        {
            Some("Inconsistent")
        } else if superblock.outdated {
            Some("Outdated")
        } else {
            None
        }
    }

    /// The generation on a volume's disk.
    pub fn generation(&self, volume: usize) -> Option<Generation> {
        self.superblock(volume).map(|s| s.current)
    }

    /// Whether any disk has operations in flight.
    pub fn busy(&self) -> bool {
        self.disks.iter().any(Disk::busy)
    }
}
