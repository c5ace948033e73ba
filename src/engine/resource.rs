//! The engine's entry points and the order in which it works.
//!
//! `handle` first *applies* the event to the piece of state that it concerns, then *settles*: every
//! wait is a condition that is looked at again until nothing moves any more. So no transition
//! needs to know who waits for it.

use std::collections::{BTreeMap, VecDeque};

use super::action::{Action, Notice};
use super::config::Config;
use super::disks::Handover;
use super::event::{Command, Event, IoOutcome, Request};
use super::ids::{CommandId, Generation, IoId, LinkId, Term, Time, VolumeId};
use super::link::Link;
use super::message::Message;
use super::pace::Load;
use super::persist::SlotChange;
use super::reason::{LinkLoss, Refusal};
use super::replica::Replica;
use super::requests::{FlushRequest, ReadRequest, Write};
use super::retake::Retake;
use super::roles::{Grant, RoleChange};
use super::status::{ConnectionState, DiskState, ReplicationState, Role};
use super::transfer::Transfer;
use super::verify::Question;
use super::volume::{OwnDisk, Volume};

/// Rounds of settling after one event; each makes progress, so reaching this is a defect.
const MAX_ROUNDS: u32 = 1000;

/// What an outstanding disk or metadata operation is for.
#[derive(Debug)]
pub(super) enum Pending {
    /// Local leg of a write; the key, and its number in the volume.
    LocalWrite {
        key: u64,
        number: u64,
    },
    LocalRead {
        key: u64,
    },
    /// Local leg of an application flush.
    LocalFlush {
        key: u64,
        covers: u64,
    },
    /// A flush for ourselves.
    OwnFlush {
        covers: u64,
    },
    Superblock {
        version: u64,
    },
    Log {
        number: u64,
        changes: Vec<SlotChange>,
    },
    Pages {
        pages: Vec<u32>,
    },
    /// A write of the peer.
    PeerWrite {
        item: u64,
    },
    /// Flush on the peer's behalf.
    PeerFlush {
        number: u64,
    },
    /// A read for the peer.
    PeerRead {
        link: LinkId,
        id: u64,
        len: u32,
        buffer: u32,
    },
    /// Source of a sync: does the block begin with a hole?
    SyncProbe {
        id: u64,
    },
    /// Source of a sync: block read (or read and hashed).
    SyncRead {
        id: u64,
        buffer: u32,
    },
    /// Target of a sync: hash for comparison.
    SyncHash {
        item: u64,
    },
    /// A block of a verify that this node runs.
    VerifyRead {
        id: u64,
        buffer: u32,
    },
    /// A block that a verify of the peer asks about.
    VerifyHash {
        question: Question,
        buffer: u32,
    },
    /// A flush of the disk between two steps of something larger.
    Quiesce(Quiesce),
}

/// What a quiescing flush belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiesce {
    /// The end of a sync at its target, in the session of this link.
    Adopt(LinkId),
    /// Clearing the note of unflushed writes.
    Note,
    /// Promotion, demotion or shutdown.
    Role,
    /// An orderly detach.
    Close,
    /// Taking over from a primary that has left its disk, with this generation.
    Handover(Generation),
}

/// Why there is no connection although one was wanted, and the last loss.
#[derive(Default)]
pub(super) struct Standing {
    pub(super) wanted: bool,
    pub(super) refusal: Option<Refusal>,
    pub(super) last_loss: Option<LinkLoss>,
}

/// The replication state machine of one resource on one node.
pub struct Engine {
    pub(super) config: Config,
    pub(super) now: Time,
    ids: u128,
    next_io: u64,
    pub(super) ios: BTreeMap<IoId, (usize, Pending)>,
    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) volumes: Vec<Volume>,
    pub(super) next_key: u64,
    pub(super) writes: BTreeMap<u64, Write>,
    pub(super) reads: BTreeMap<u64, ReadRequest>,
    pub(super) flushes: BTreeMap<u64, FlushRequest>,
    pub(super) transfer: Transfer,
    pub(super) replica: Replica,
    pub(super) link: Option<Link>,
    pub(super) standing: Standing,
    pub(super) discard_my_data: bool,
    pub(super) change: Option<RoleChange>,
    /// The voter names another owner, under this term, and we have not stepped down yet.
    pub(super) deposed: Option<Term>,
    /// A promotion of the peer that is being recorded.
    pub(super) grant: Option<Grant>,
    /// The primary's request to record this copy as outdated.
    pub(super) farewell: Option<Vec<u64>>,
    /// Generations of a primary without a disk that are being stored here.
    pub(super) handovers: Vec<Handover>,
    pub(super) attaching: Vec<(CommandId, usize, u64)>,
    /// A disk on its way back to this primary, and requests that wait for the peer meanwhile.
    pub(super) retake: Option<Retake>,
    pub(super) held: Vec<Request>,
    pub(super) track_exact: bool,
    pub(super) serving: bool,
    pub(super) sync_buffers: Vec<u32>,
    /// What a verify of the peer asks.
    pub(super) questions: VecDeque<Question>,
    /// What the application does, for the pace of a sync.
    pub(super) load: Load,
    /// Something may have changed for writes that wait for completion.
    pub(super) recheck: bool,
    /// Settling must go around once more.
    pub(super) progress: bool,
    pub(super) shut_down: bool,
    pub(super) out: Vec<Action>,
}

impl Engine {
    /// A resource with no disk attached, no link and the role Secondary.
    pub fn new(config: Config) -> Engine {
        let volumes = config
            .volumes
            .iter()
            .map(|id| {
                let limits = config.limits.get(id).copied().unwrap_or_default();
                Volume::new(*id, config.node, limits)
            })
            .collect();
        Engine {
            now: Time(0),
            ids: config.seed,
            next_io: 1,
            ios: BTreeMap::new(),
            role: Role::Secondary,
            term: Term::ZERO,
            volumes,
            next_key: 1,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            flushes: BTreeMap::new(),
            transfer: Transfer::new(),
            replica: Replica::new(),
            link: None,
            standing: Standing::default(),
            discard_my_data: false,
            change: None,
            deposed: None,
            grant: None,
            farewell: None,
            handovers: Vec::new(),
            attaching: Vec::new(),
            retake: None,
            held: Vec::new(),
            track_exact: true,
            serving: false,
            questions: VecDeque::new(),
            sync_buffers: (0..config.resync_buffers).rev().collect(),
            load: Load::default(),
            recheck: false,
            progress: false,
            shut_down: false,
            out: Vec::new(),
            config,
        }
    }

    /// Applies one event and appends what must be done, in order.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.apply(event);
        let mut rounds = 0;
        loop {
            self.progress = false;
            self.settle();
            rounds += 1;
            if !self.progress || rounds > MAX_ROUNDS {
                break;
            }
        }
        debug_assert!(rounds <= MAX_ROUNDS, "settling does not end");
        out.append(&mut self.out);
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.on_request(request),
            Event::Io { io, outcome } => self.on_io(io, outcome),
            Event::LinkUp { link, peer } => self.on_link_up(link, peer),
            Event::LinkDown { link, reason } => self.on_link_down(link, reason),
            Event::Message {
                link,
                envelope,
                buffer,
            } => self.on_frame(link, envelope, buffer),
            Event::Command { id, command } => self.on_command(id, command),
            Event::VoterRecorded { volume, generation } => {
                self.on_voter_recorded(volume, generation);
            }
            Event::Deposed { term } => self.on_deposed(term),
            Event::Tick => {}
        }
    }

    fn settle(&mut self) {
        self.check_deadlines();
        self.settle_metadata();
        self.settle_mints();
        self.settle_attaches();
        self.settle_closings();
        self.settle_retake();
        self.settle_handovers();
        self.settle_replica();
        self.settle_handshake();
        self.settle_deposed();
        self.settle_role();
        self.settle_writes();
        self.settle_verify();
        self.settle_questions();
        self.settle_repair();
        self.settle_sync();
        self.settle_tracking();
        self.settle_owed();
    }

    fn on_command(&mut self, id: CommandId, command: Command) {
        if self.shut_down {
            return self.refuse(id, Refusal::ShuttingDown);
        }
        match command {
            Command::Attach { volume, image } => self.on_attach(id, volume, *image),
            Command::Detach { volume } => self.on_detach(id, volume),
            Command::Connect { discard_my_data } => self.on_connect(id, discard_my_data),
            Command::Disconnect => self.on_disconnect(id),
            Command::Primary { force, ground } => self.on_primary(id, force, ground),
            Command::Secondary => self.on_secondary(id),
            Command::Invalidate { volume } => self.on_invalidate(id, volume),
            Command::Probe => {
                if self.replicating().is_some() {
                    self.send(Message::Ping, None);
                }
                self.done(id);
            }
            Command::PauseSync { volume, cause, on } => self.on_pause(id, volume, (cause, on)),
            Command::Guard(on) => {
                self.config.guarded = on;
                self.done(id);
            }
            Command::Approve { volume } => self.on_approve(id, volume),
            Command::Verify { volume, scope } => self.on_verify(id, volume, scope),
            Command::Timeouts(timeouts) => {
                self.config.timeouts = timeouts;
                self.done(id);
            }
            Command::Limits { volume, limits } => self.on_limits(id, volume, limits),
            Command::Shutdown => self.on_shutdown(id),
        }
    }

    fn on_io(&mut self, io: IoId, outcome: IoOutcome) {
        let Some((volume, pending)) = self.ios.remove(&io) else {
            return;
        };
        self.volumes[volume].counters.lower_pending -= 1;
        let failed = match outcome {
            IoOutcome::Failed(errno) => Some(errno),
            _ => None,
        };
        let hash = match outcome {
            IoOutcome::Hash(hash) => Some(hash),
            _ => None,
        };
        match pending {
            Pending::LocalWrite { key, number } => {
                self.local_write_done(volume, key, number, failed)
            }
            Pending::LocalRead { key } => self.local_read_done(volume, key, failed),
            Pending::LocalFlush { key, covers } => {
                self.local_flush_done(volume, Some(key), covers, failed);
            }
            Pending::OwnFlush { covers } => self.local_flush_done(volume, None, covers, failed),
            Pending::Superblock { version } => self.superblock_done(volume, version, failed),
            Pending::Log { number, changes } => self.log_done(volume, number, &changes, failed),
            Pending::Pages { pages } => self.pages_done(volume, &pages, failed),
            Pending::PeerWrite { item } => self.peer_write_done(volume, item, failed),
            Pending::PeerFlush { number } => self.peer_flush_done(volume, number, failed),
            Pending::PeerRead {
                link,
                id,
                len,
                buffer,
            } => self.peer_read_done(volume, (link, id), (len, buffer), failed),
            Pending::SyncProbe { id } => self.sync_probed(volume, id, outcome),
            Pending::SyncRead { id, buffer } => {
                self.sync_read_done(volume, (id, buffer), outcome);
            }
            Pending::SyncHash { item } => self.sync_hash_done(volume, item, hash, failed),
            Pending::VerifyRead { id, buffer } => {
                self.verify_read_done(volume, (id, buffer), hash, failed);
            }
            Pending::VerifyHash { question, buffer } => {
                self.question_hashed(volume, (question, buffer), hash, failed);
            }
            Pending::Quiesce(purpose) => self.quiesce_done(volume, purpose, failed),
        }
    }

    /// Registers an operation; the caller emits the action with the id.
    pub(super) fn begin(&mut self, volume: usize, pending: Pending) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.volumes[volume].counters.lower_pending += 1;
        self.ios.insert(io, (volume, pending));
        io
    }

    /// The next identifier of the seeded sequence (SplitMix64 over the low half, mixed with the
    /// high half); never zero.
    pub(super) fn fresh_id(&mut self) -> u64 {
        loop {
            let low = (self.ids as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
            self.ids = (self.ids & !u128::from(u64::MAX)) | u128::from(low);
            let mut z = low ^ (self.ids >> 64) as u64;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            if z != 0 {
                return z;
            }
        }
    }

    pub(super) fn fresh_generation(&mut self) -> Generation {
        Generation(self.fresh_id())
    }

    pub(super) fn index(&self, id: VolumeId) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.id == id)
    }

    pub(super) fn publish(&mut self, notice: Notice) {
        self.out.push(Action::Publish(notice));
    }

    pub(super) fn refuse(&mut self, command: CommandId, refusal: Refusal) {
        self.out.push(Action::CommandDone {
            command,
            result: Err(refusal),
        });
    }

    pub(super) fn done(&mut self, command: CommandId) {
        self.out.push(Action::CommandDone {
            command,
            result: Ok(()),
        });
    }

    /// Whether the peer owes answers besides acknowledgements of writes and flushes.
    pub(super) fn waits_for_peer(&self) -> bool {
        self.change.as_ref().is_some_and(RoleChange::waits_for_peer)
            || self.remote_reads_open()
            || self.verify_waits()
            || self
                .volumes
                .iter()
                .any(|v| v.sync.is_some() || v.replication == ReplicationState::SyncTarget)
            || self
                .volumes
                .iter()
                .any(|v| matches!(v.own_disk, OwnDisk::Asked(_)))
    }

    pub(super) fn set_disk(&mut self, volume: usize, to: DiskState) {
        let v = &mut self.volumes[volume];
        let from = v.disk;
        if from != to {
            v.disk = to;
            let id = v.id;
            self.progress = true;
            self.publish(Notice::Disk {
                volume: id,
                from,
                to,
            });
        }
    }

    pub(super) fn set_peer_disk(&mut self, volume: usize, to: DiskState) {
        let v = &mut self.volumes[volume];
        if v.peer_disk != to {
            v.peer_disk = to;
            let id = v.id;
            self.publish(Notice::PeerDisk { volume: id, to });
        }
    }

    pub(super) fn publish_connection(&mut self, to: ConnectionState) {
        let reason = self.standing.refusal.clone();
        let loss = self.standing.last_loss.clone();
        self.publish(Notice::Connection { to, reason, loss });
    }

    /// The id of the link when it carries replication.
    pub(super) fn replicating(&self) -> Option<LinkId> {
        self.link
            .as_ref()
            .filter(|link| link.replicating())
            .map(|link| link.id)
    }

    /// Whether writes of this volume go to the peer.
    pub(super) fn replicates(&self, volume: usize) -> bool {
        self.replicating().is_some()
            && self.volumes[volume].peer_disk >= DiskState::Inconsistent
            && self.volumes[volume].peer_disk != DiskState::DUnknown
    }

    /// Whether a deliberate defect is switched on; always false outside the simulator.
    #[cfg(feature = "sabotage")]
    pub(super) fn broken(&self, defect: super::Sabotage) -> bool {
        self.config.sabotage == Some(defect)
    }
}

/// `broken!(self, Variant)`: whether a planted defect is on; the constant `false` without the
/// feature.
macro_rules! broken {
    ($engine:expr, $defect:ident) => {{
        #[cfg(feature = "sabotage")]
        {
            $engine.broken(crate::engine::Sabotage::$defect)
        }
        #[cfg(not(feature = "sabotage"))]
        {
            let _ = &$engine;
            false
        }
    }};
}
pub(crate) use broken;
