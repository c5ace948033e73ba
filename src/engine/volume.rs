//! One volume of the resource: its disk, its metadata in memory, and what is on its way to disk.

use std::collections::{BTreeSet, VecDeque};

use super::action::Shape;
use super::activity_log::ActivityLog;
use super::bitmap::Bitmap;
use super::hold::Paused;
use super::ids::{CommandId, Generation, NodeId, Time, VolumeId};
use super::pace::Limits;
use super::persist::{PeerRecord, Superblock};
use super::repair::Order;
use super::status::{DiskState, ReplicationState};
use super::sync::Sync;
use super::verify::Verify;

/// Generations kept as ancestry.
const HISTORY: usize = 32;

/// Local writes of a volume by number: which are on their way, and up to where a flush has made
/// them durable.
#[derive(Default)]
pub(super) struct LocalWrites {
    last: u64,
    in_flight: BTreeSet<u64>,
    pub(super) durable: u64,
}

impl LocalWrites {
    /// After a crash: writes of the former life may sit in the volatile cache. They count as
    /// write 1, which a flush has yet to make durable.
    pub(super) fn after_crash() -> LocalWrites {
        LocalWrites {
            last: 1,
            ..LocalWrites::default()
        }
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.in_flight.insert(self.last);
        self.last
    }

    /// A write completed. Without a volatile cache that makes it durable.
    pub(super) fn end(&mut self, number: u64, volatile: bool) {
        self.in_flight.remove(&number);
        if !volatile {
            self.durable = self.completed();
        }
    }

    /// Every write up to this number has completed: what a flush that starts now makes durable.
    pub(super) fn completed(&self) -> u64 {
        self.in_flight.first().map_or(self.last, |first| first - 1)
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }
}

/// A new generation that is not recorded everywhere yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mint {
    /// The third voter was asked to record it.
    Asked(Generation),
    /// This version of the superblock holds it; `counts`: once it is stored, the peer's copy is
    /// known to be left behind.
    Storing { version: u64, counts: bool },
}

/// The record of a generation that this node's own, lost disk lacks (rule 6, disk detached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnDisk {
    /// Takes part, or nothing was written without it.
    Current,
    /// The peer was asked to store this generation.
    Asked(Generation),
    /// The peer has stored it; the third voter was asked to record it.
    Recording(Generation),
    /// It is stored and recorded: the data is there, until a sync has brought it back.
    Left(Generation),
}

/// An orderly detach: the disk takes no part any more, its metadata is brought to an end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    pub(super) command: CommandId,
    /// A disk that does not answer is closed as it is.
    pub(super) deadline: Time,
    pub(super) step: ClosingStep,
}

/// What an orderly detach waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClosingStep {
    /// Operations under way, and the record that the peer's copy alone counts.
    Draining,
    Flushing,
    /// This version of the superblock, and every page of the bitmap.
    Storing(u64),
}

/// What front ends must know of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskTraits {
    pub(super) logical_block: u32,
    pub(super) discard: bool,
}

/// Counters for `status`, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) al_writes: u64,
    pub(super) bm_writes: u64,
    pub(super) sync_total: u64,
    pub(super) lower_pending: u32,
}

/// A volume.
pub(super) struct Volume {
    pub(super) id: VolumeId,
    pub(super) disk: DiskState,
    pub(super) peer_disk: DiskState,
    pub(super) replication: ReplicationState,
    pub(super) capacity: u64,
    pub(super) size: u64,
    pub(super) logical_block: u32,
    pub(super) discard: bool,
    /// What the peer said of its disk when it last had one.
    pub(super) peer_disk_traits: Option<DiskTraits>,
    /// Block size of the device in use, while primary.
    pub(super) live_block: u32,
    /// What front ends were last told.
    pub(super) told: Option<Shape>,
    pub(super) volatile: bool,
    pub(super) superblock: Superblock,
    /// Version of `superblock` in memory, on disk, and on its way.
    version: u64,
    durable: u64,
    pub(super) writing: Option<u64>,
    pub(super) bitmap: Bitmap,
    pub(super) pages_in_flight: bool,
    /// Somebody waits for set bits to be on disk.
    pub(super) save_bitmap: bool,
    /// Bytes synced since their bits were last stored.
    pub(super) cleared: u64,
    pub(super) log: ActivityLog,
    pub(super) log_in_flight: bool,
    pub(super) local: LocalWrites,
    /// Somebody waits for local durability; a flush is under way.
    pub(super) flush_wanted: bool,
    pub(super) flushing: bool,
    /// Keys of writes that are not submitted yet, oldest first.
    pub(super) waiting: VecDeque<u64>,
    /// Was primary and did not stop cleanly; not yet compared.
    pub(super) crashed: bool,
    pub(super) mint: Option<Mint>,
    /// The peer may hold the current generation: it must be moved on before a write that the
    /// peer lacks completes.
    pub(super) peer_current: bool,
    pub(super) own_disk: OwnDisk,
    pub(super) closing: Option<Closing>,
    /// In this session the generation of this disk was compared with the peer's.
    pub(super) compared: bool,
    pub(super) sync: Option<Sync>,
    pub(super) paused: Paused,
    /// The next sync onto this volume need not be asked about; see [`super::hold`].
    pub(super) approved: bool,
    pub(super) verify: Verify,
    /// Ranges to be sent for a repair.
    pub(super) order: Order,
    /// Of a sync from here.
    pub(super) limits: Limits,
    pub(super) counters: Counters,
}

impl Volume {
    /// A volume without a disk.
    pub(super) fn new(id: VolumeId, node: NodeId, limits: Limits) -> Volume {
        Volume {
            id,
            disk: DiskState::Diskless,
            peer_disk: DiskState::DUnknown,
            replication: ReplicationState::Off,
            capacity: 0,
            size: 0,
            logical_block: 512,
            discard: false,
            peer_disk_traits: None,
            live_block: 512,
            told: None,
            volatile: true,
            superblock: Superblock::fresh(node, 1),
            version: 0,
            durable: 0,
            writing: None,
            bitmap: Bitmap::new(0, Vec::new()),
            pages_in_flight: false,
            save_bitmap: false,
            cleared: 0,
            log: ActivityLog::new(1, &[]),
            log_in_flight: false,
            local: LocalWrites::default(),
            flush_wanted: false,
            flushing: false,
            waiting: VecDeque::new(),
            crashed: false,
            mint: None,
            peer_current: false,
            own_disk: OwnDisk::Current,
            closing: None,
            compared: false,
            sync: None,
            paused: Paused::default(),
            approved: false,
            verify: Verify::default(),
            order: Order::default(),
            limits,
            counters: Counters::default(),
        }
    }

    /// Whether a disk is attached and working.
    pub(super) fn has_disk(&self) -> bool {
        self.disk >= DiskState::Inconsistent
    }

    /// Whether metadata can be written: also to a disk that is being closed in order.
    pub(super) fn has_metadata(&self) -> bool {
        self.has_disk() || self.closing.is_some()
    }

    /// Whether the primary's writes go to its own disk: it counts, or is on its way to it.
    pub(super) fn takes_writes(&self) -> bool {
        self.disk == DiskState::UpToDate
            || (self.has_disk() && self.replication == ReplicationState::SyncTarget)
    }

    /// What applications may be offered: blocks that are whole on both disks, and discard where
    /// both give blocks back (rule 11). A peer that was never met limits nothing; one that cannot
    /// serve the device in use is refused when it comes.
    pub(super) fn shape(&self) -> Shape {
        let peer = self.peer_disk_traits;
        Shape {
            bytes: self.size,
            logical_block: self.logical_block.max(peer.map_or(0, |p| p.logical_block)),
            discard: self.discard && peer.is_none_or(|p| p.discard),
        }
    }

    /// The generation of the data that this node works with: of its own disk, or of the peer's.
    pub(super) fn data_generation(&self) -> Generation {
        match self.own_disk {
            OwnDisk::Asked(generation)
            | OwnDisk::Recording(generation)
            | OwnDisk::Left(generation)
                if !self.has_disk() =>
            {
                generation
            }
            _ => self.superblock.current,
        }
    }

    /// The state of replication as it is shown.
    pub(super) fn shown_replication(&self) -> ReplicationState {
        match self.replication {
            // Blocks that are still on their way are taken, and dropped.
            ReplicationState::SyncTarget if !self.has_disk() => ReplicationState::Established,
            ReplicationState::SyncSource if self.paused.any() => ReplicationState::PausedSyncS,
            ReplicationState::SyncTarget if self.paused.any() => ReplicationState::PausedSyncT,
            state => self.verify.shown().unwrap_or(state),
        }
    }

    /// The peer's record in the superblock.
    pub(super) fn peer(&self) -> PeerRecord {
        self.superblock.peers.first().copied().unwrap_or_default()
    }

    /// Changes the superblock; returns the version whose durability means that it is stored.
    pub(super) fn change(&mut self, edit: impl FnOnce(&mut Superblock)) -> u64 {
        edit(&mut self.superblock);
        self.version += 1;
        self.version
    }

    /// Changes the peer's record.
    pub(super) fn change_peer(&mut self, edit: impl FnOnce(&mut PeerRecord)) -> u64 {
        self.change(|superblock| {
            if superblock.peers.is_empty() {
                superblock.peers.push(PeerRecord::default());
            }
            edit(&mut superblock.peers[0]);
        })
    }

    /// Whether version `version` of the superblock is on disk. Without a disk nothing is awaited.
    pub(super) fn stored(&self, version: u64) -> bool {
        self.durable >= version || !self.has_metadata()
    }

    /// Whether everything in the superblock is on disk.
    pub(super) fn all_stored(&self) -> bool {
        self.stored(self.version)
    }

    /// Version that a write of the superblock would store now, when there is something to store.
    pub(super) fn unstored(&self) -> Option<u64> {
        (self.version > self.durable && self.writing.is_none() && self.has_metadata())
            .then_some(self.version)
    }

    /// A superblock write has ended well.
    pub(super) fn superblock_stored(&mut self, version: u64) {
        self.durable = self.durable.max(version);
        self.writing = None;
    }

    /// The disk was attached: what it holds is stored.
    pub(super) fn reset_versions(&mut self) {
        self.version = 0;
        self.durable = 0;
        self.writing = None;
    }

    /// Moves to a new generation; the old one becomes the base of the peer's bitmap, or ancestry
    /// when there is a base already.
    pub(super) fn new_generation(&mut self, generation: Generation) -> u64 {
        let old = self.superblock.current;
        let base = self.peer().base;
        if base.is_fresh() {
            self.change_peer(|peer| peer.base = old);
        } else {
            self.remember(old);
        }
        self.change(|superblock| superblock.current = generation)
    }

    /// The ancestry of that data, newest first.
    pub(super) fn ancestry(&self) -> Vec<Generation> {
        let own = self.superblock.current;
        let left = self.data_generation() != own && !self.superblock.history.contains(&own);
        let history = self.superblock.history.iter().copied();
        left.then_some(own)
            .into_iter()
            .chain(history)
            .take(HISTORY)
            .collect()
    }

    /// Adds a generation to the ancestry.
    pub(super) fn remember(&mut self, generation: Generation) {
        if generation.is_fresh() || self.superblock.history.contains(&generation) {
            return;
        }
        self.change(|superblock| {
            superblock.history.insert(0, generation);
            superblock.history.truncate(HISTORY);
        });
    }

    /// Both copies hold the current generation: the base becomes ancestry.
    pub(super) fn drop_base(&mut self) -> u64 {
        let base = self.peer().base;
        self.remember(base);
        self.change_peer(|peer| {
            peer.base = Generation::FRESH;
            peer.outdated = false;
            peer.want_full = false;
        })
    }

    /// Whether this copy is provably the newest although the peer cannot be asked: the peer's is
    /// recorded as older, or there never was one.
    pub(super) fn proven_current(&self) -> bool {
        let peer = self.peer();
        !self.superblock.current.is_fresh() && (peer.outdated || !peer.known)
    }
}
