//! What is kept on disk about a volume, in the engine's terms. The store encodes it.

use super::ids::{Generation, NodeId, Session, Span, Term};

/// Bytes of one bitmap page: the unit of bitmap I/O; covers 32,768 bits = 128 MiB of data.
pub const BITMAP_PAGE_BYTES: usize = 4096;

/// What a superblock says about one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerRecord {
    /// The slot is in use.
    pub known: bool,
    /// The generation that the bitmap for this peer is relative to; zero = none.
    pub base: Generation,
    /// The peer's copy is recorded as older than this one.
    pub outdated: bool,
    /// A sync toward or from this peer must look at the whole device.
    pub want_full: bool,
    /// Last session that both sides had stored, and one that may have been.
    pub session: Session,
    pub session_pending: Session,
}

/// The contents of a volume's superblock that change while it is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub node: NodeId,
    /// Zero until the first connect or forced promotion.
    pub agreed_size: u64,
    pub current: Generation,
    /// Newest first; 32 at most.
    pub history: Vec<Generation>,
    /// Highest term this node has known for the resource.
    pub term: Term,
    /// This node is primary; found set at attach it means a crash, and the log counts.
    pub primary: bool,
    /// A sync onto this disk is unfinished, or it never held data.
    pub inconsistent: bool,
    /// A newer copy exists elsewhere.
    pub outdated: bool,
    /// As secondary, writes may sit in a volatile cache since the boot `unflushed_boot`.
    pub unflushed: bool,
    pub unflushed_boot: u64,
    /// Indexed by bitmap slot. Slot 0 is used with two data nodes; 15 at most.
    pub peers: Vec<PeerRecord>,
}

impl Superblock {
    /// The state of a disk that never held data, with room for `peers` peers.
    pub fn fresh(node: NodeId, peers: usize) -> Superblock {
        Superblock {
            node,
            agreed_size: 0,
            current: Generation::FRESH,
            history: Vec::new(),
            term: Term::ZERO,
            primary: false,
            inconsistent: true,
            outdated: false,
            unflushed: false,
            unflushed_boot: 0,
            peers: vec![PeerRecord::default(); peers],
        }
    }
}

/// One changed slot of the activity log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotChange {
    pub slot: u16,
    /// Extent of 4 MiB, or `LogTransaction::FREE`.
    pub extent: u32,
}

/// A batch of activity-log changes: one 4 KiB block of the on-disk ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTransaction {
    /// At most `MAX_CHANGES`.
    pub changes: Vec<SlotChange>,
    /// The whole slot table after the changes: the store takes from it the rolling context that
    /// lets recovery rebuild the table from the ring.
    pub table: std::sync::Arc<Vec<u32>>,
}

impl LogTransaction {
    /// Marks a slot without an extent.
    pub const FREE: u32 = u32::MAX;
    /// Slot changes that fit one transaction.
    pub const MAX_CHANGES: usize = 64;
}

/// A durable change of a volume's metadata.
#[derive(Clone, Debug)]
pub enum MetaOp {
    Superblock(Box<Superblock>),
    Log(LogTransaction),
    /// Pages of the bitmap of `slot` with their new contents (`BITMAP_PAGE_BYTES` each).
    Bitmap {
        slot: u8,
        pages: Vec<(u32, Box<[u8]>)>,
    },
}

/// A volume's metadata as recovered at attach, and what its disk can do.
#[derive(Clone, Debug)]
pub struct VolumeImage {
    pub superblock: Superblock,
    /// Usable bytes of the disk.
    pub capacity: u64,
    pub logical_block: u32,
    /// The disk may lose completed writes at power loss until they are flushed.
    pub volatile_cache: bool,
    /// Blocks can be given back by an operation after which they read as zeroes.
    pub discard: bool,
    /// Slot table recovered from the log ring.
    pub log: Vec<u32>,
    /// Bitmap of slot 0: 64 bits per word, bit 0 = lowest, 4 KiB per bit; unreadable or bad
    /// pages are all ones.
    pub bitmap: Vec<u64>,
    /// After a crash of the data process alone: the exact ranges that may differ from the peer,
    /// which then replace the log.
    pub in_flight: Option<Vec<Span>>,
}
