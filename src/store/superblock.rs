//! The superblock: one 4 KiB block, big endian, kept in two copies.
//!
//! Every copy says where it belongs, and every sector of it ends with the checksum of the whole
//! block, so that a torn, flipped or misdirected copy is never taken, not even one that a second
//! torn write has completed by accident. Of two valid copies the higher sequence counts.

use thiserror::Error;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bitmap::{Flux, Grouping, MAX_GROUPS};
use super::layout::{BLOCK, Layout, MAX_PEERS, Placement};
use super::log;
use crate::engine::{Generation, NodeId, PeerRecord, Session, Superblock, Term};

/// First bytes of every superblock of every version.
pub const MAGIC: [u8; 8] = *b"LkStepMD";
/// Version of the format that this code writes.
pub const VERSION: u32 = 1;
/// Features without which a block must not be used; none so far.
pub const KNOWN_FEATURES: u32 = 0;
/// Generations that the history has room for.
pub const MAX_HISTORY: usize = 32;

const SECTORS: usize = 8;
const SECTOR: usize = 512;
/// Bytes of a sector before its checksum.
const SECTOR_PAYLOAD: usize = 508;

const FLAG_PRIMARY: u32 = 1;
const FLAG_INCONSISTENT: u32 = 2;
const FLAG_OUTDATED: u32 = 4;
const FLAG_UNFLUSHED: u32 = 8;
const FLAGS: u32 = FLAG_PRIMARY | FLAG_INCONSISTENT | FLAG_OUTDATED | FLAG_UNFLUSHED;

const PEER_KNOWN: u32 = 1;
const PEER_OUTDATED: u32 = 2;
const PEER_WANT_FULL: u32 = 4;
const PEER_FLAGS: u32 = PEER_KNOWN | PEER_OUTDATED | PEER_WANT_FULL;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPeer {
    flags: U32,
    reserved: [u8; 4],
    base: U64,
    session: U64,
    session_pending: U64,
    spare: [u8; 16],
}

/// The first [`SECTOR_PAYLOAD`] bytes of every sector; FORMAT.md explains every field.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    features: U32,
    compatible: U32,
    own_offset: U64,
    sequence: U64,
    id: U64,
    data_bytes: U64,
    meta_bytes: U64,
    usable: U64,
    super_offset: U64,
    log_offset: U64,
    bitmap_offset: U64,
    slot_bytes: U64,
    logical_block: U32,
    placement: u8,
    max_peers: u8,
    ring_blocks: u8,
    node: u8,
    log_slots: U16,
    group_count: U16,
    group_pages: U32,
    log_number: U64,
    flags: U32,
    history_count: u8,
    peer_count: u8,
    reserved_1: [u8; 2],
    agreed_size: U64,
    current: U64,
    term_counter: U64,
    term_random: U32,
    term_node: u8,
    reserved_2: [u8; 3],
    unflushed_boot: U64,
    /// Room for what a third voter or a lease may want to keep here.
    reserved_3: [u8; 64],
    history: [U64; MAX_HISTORY],
    peers: [RawPeer; MAX_PEERS as usize],
    flux: Flux,
    sums: [U32; MAX_GROUPS],
    tail: [u8; 740],
}

const _: () = assert!(size_of::<RawSuperblock>() == SECTORS * SECTOR_PAYLOAD);

/// Writes the checksum of all sectors' payloads to the end of every sector.
pub(super) fn seal(block: &mut [u8]) {
    let mut h = crc32fast::Hasher::new();
    for sector in block.chunks_exact(SECTOR) {
        h.update(&sector[..SECTOR_PAYLOAD]);
    }
    let crc = h.finalize().to_be_bytes();
    for sector in block.chunks_exact_mut(SECTOR) {
        sector[SECTOR_PAYLOAD..].copy_from_slice(&crc);
    }
}

/// The payload of a block, if the checksum at the end of every sector matches.
fn unseal(block: &[u8]) -> Option<Vec<u8>> {
    let sectors = block.chunks_exact(SECTOR);
    let (payloads, seals): (Vec<_>, Vec<_>) = sectors.map(|s| s.split_at(SECTOR_PAYLOAD)).unzip();
    let payload = payloads.concat();
    let crc = crc32fast::hash(&payload).to_be_bytes();
    let whole = seals.len() == SECTORS && seals.iter().all(|s| *s == crc);
    whole.then_some(payload)
}

/// Everything a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Grows with every write of a copy.
    pub sequence: u64,
    /// Random identity of the metadata, drawn when it was created.
    pub id: u64,
    pub layout: Layout,
    /// A log transaction that was complete when this copy was written.
    pub log_number: u64,
    pub superblock: Superblock,
    /// Groups whose sums do not count.
    pub flux: Flux,
    /// Group sums, as many as [`Grouping::count`] says.
    pub sums: Vec<u32>,
}

/// Why a copy of the superblock cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CopyFault {
    #[error("cannot be read (errno {0})")]
    Unreadable(i32),
    #[error("no Lockstep superblock there")]
    Absent,
    #[error("damaged: the checksum does not match")]
    Checksum,
    #[error("misdirected: it belongs at offset {recorded}")]
    Misdirected { recorded: u64 },
    #[error("format version {0}; this program knows version {VERSION}")]
    Version(u32),
    #[error("needs features {0:#x} that this program does not know")]
    Features(u32),
    #[error(
        "made for other sizes: data device {data_bytes}, metadata device {meta_bytes}, \
         logical block {logical_block}"
    )]
    Resized {
        data_bytes: u64,
        meta_bytes: u64,
        logical_block: u32,
    },
    #[error("sound checksum, but field {0} is impossible")]
    Field(&'static str),
}

impl CopyFault {
    /// The copy is sound, but not for this program or this device: the other copy, if older, must
    /// not be taken in its place.
    pub fn refuses(&self) -> bool {
        match self {
            CopyFault::Version(_)
            | CopyFault::Features(_)
            | CopyFault::Resized { .. }
            | CopyFault::Field(_) => true,
            CopyFault::Unreadable(_)
            | CopyFault::Absent
            | CopyFault::Checksum
            | CopyFault::Misdirected { .. } => false,
        }
    }
}

/// Encodes a copy that belongs at `own_offset`. Lists beyond what the format has room for are cut
/// (the planner refuses them before).
pub fn encode(c: &Contents, own_offset: u64) -> Vec<u8> {
    let mut raw = RawSuperblock::new_zeroed();
    raw.magic = MAGIC;
    raw.version.set(VERSION);
    raw.own_offset.set(own_offset);
    raw.sequence.set(c.sequence);
    raw.id.set(c.id);
    encode_layout(&mut raw, &c.layout);
    raw.log_number.set(c.log_number);
    encode_state(&mut raw, &c.superblock);
    raw.flux = c.flux;
    for (to, &from) in raw.sums.iter_mut().zip(&c.sums) {
        to.set(from);
    }
    let mut block = Vec::with_capacity(BLOCK as usize);
    for payload in raw.as_bytes().chunks_exact(SECTOR_PAYLOAD) {
        block.extend_from_slice(payload);
        block.extend_from_slice(&[0; SECTOR - SECTOR_PAYLOAD]);
    }
    seal(&mut block);
    block
}

fn encode_layout(raw: &mut RawSuperblock, l: &Layout) {
    let (placement, data, meta) = match l.placement() {
        Placement::Internal { device_bytes } => (0, device_bytes, device_bytes),
        Placement::External {
            data_bytes,
            meta_bytes,
        } => (1, data_bytes, meta_bytes),
    };
    raw.placement = placement;
    raw.data_bytes.set(data);
    raw.meta_bytes.set(meta);
    raw.usable.set(l.usable());
    raw.super_offset.set(l.super_offset());
    raw.log_offset.set(l.second_offset());
    raw.bitmap_offset.set(l.bitmap_range().start);
    raw.slot_bytes.set(l.slot_bytes());
    raw.logical_block.set(l.logical_block());
    raw.max_peers = l.max_peers();
    raw.ring_blocks = log::BLOCKS as u8;
    raw.log_slots.set(log::MAX_SLOTS as u16);
    let grouping = Grouping::new(l);
    raw.group_count.set(grouping.count() as u16);
    raw.group_pages.set(grouping.group_pages());
}

fn encode_state(raw: &mut RawSuperblock, s: &Superblock) {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    raw.node = s.node.0;
    raw.flags.set(
        flag(s.primary, FLAG_PRIMARY)
            | flag(s.inconsistent, FLAG_INCONSISTENT)
            | flag(s.outdated, FLAG_OUTDATED)
            | flag(s.unflushed, FLAG_UNFLUSHED),
    );
    raw.agreed_size.set(s.agreed_size);
    raw.current.set(s.current.0);
    raw.term_counter.set(s.term.counter);
    raw.term_random.set(s.term.random);
    raw.term_node = s.term.node.0;
    raw.unflushed_boot.set(s.unflushed_boot);
    raw.history_count = s.history.len().min(MAX_HISTORY) as u8;
    for (to, from) in raw.history.iter_mut().zip(&s.history) {
        to.set(from.0);
    }
    raw.peer_count = s.peers.len().min(usize::from(MAX_PEERS)) as u8;
    for (to, from) in raw.peers.iter_mut().zip(&s.peers) {
        to.flags.set(
            flag(from.known, PEER_KNOWN)
                | flag(from.outdated, PEER_OUTDATED)
                | flag(from.want_full, PEER_WANT_FULL),
        );
        to.base.set(from.base.0);
        to.session.set(from.session.0);
        to.session_pending.set(from.session_pending.0);
    }
}

/// Decodes the copy read at `own_offset` of devices with the sizes in `placement`.
pub fn decode(
    bytes: &[u8],
    own_offset: u64,
    placement: Placement,
    logical_block: u32,
) -> Result<Contents, CopyFault> {
    if !bytes.starts_with(&MAGIC) {
        return Err(CopyFault::Absent);
    }
    let payload = unseal(bytes).ok_or(CopyFault::Checksum)?;
    let raw = checked(&payload, own_offset)?;
    let layout = decode_layout(raw, placement, logical_block)?;
    let groups = usize::from(raw.group_count.get());
    Ok(Contents {
        sequence: raw.sequence.get(),
        id: raw.id.get(),
        log_number: raw.log_number.get(),
        superblock: decode_state(raw)?,
        flux: raw.flux,
        sums: raw.sums.iter().take(groups).map(|s| s.get()).collect(),
        layout,
    })
}

/// Place, version, features. Magic, checksum and place mean the same in every version.
fn checked(payload: &[u8], own_offset: u64) -> Result<&RawSuperblock, CopyFault> {
    let raw = RawSuperblock::ref_from_bytes(payload).map_err(|_| CopyFault::Checksum)?;
    if raw.own_offset.get() != own_offset {
        let recorded = raw.own_offset.get();
        return Err(CopyFault::Misdirected { recorded });
    }
    if raw.version.get() != VERSION {
        return Err(CopyFault::Version(raw.version.get()));
    }
    match raw.features.get() & !KNOWN_FEATURES {
        0 => Ok(raw),
        unknown => Err(CopyFault::Features(unknown)),
    }
}

fn decode_layout(
    raw: &RawSuperblock,
    found: Placement,
    logical_block: u32,
) -> Result<Layout, CopyFault> {
    let recorded = match raw.placement {
        0 => Placement::Internal {
            device_bytes: raw.data_bytes.get(),
        },
        1 => Placement::External {
            data_bytes: raw.data_bytes.get(),
            meta_bytes: raw.meta_bytes.get(),
        },
        _ => return Err(CopyFault::Field("placement")),
    };
    let made_for = Layout::new(recorded, raw.max_peers, raw.logical_block.get())
        .map_err(|_| CopyFault::Field("layout"))?;
    let mut expected = RawSuperblock::new_zeroed();
    encode_layout(&mut expected, &made_for);
    let same = expected.usable == raw.usable
        && expected.super_offset == raw.super_offset
        && expected.log_offset == raw.log_offset
        && expected.bitmap_offset == raw.bitmap_offset
        && expected.slot_bytes == raw.slot_bytes
        && expected.group_count == raw.group_count
        && expected.group_pages == raw.group_pages
        && expected.ring_blocks == raw.ring_blocks
        && expected.log_slots == raw.log_slots;
    if !same {
        return Err(CopyFault::Field("layout"));
    }
    // A metadata device may be larger or smaller than it was, as long as everything still fits.
    let data_same = recorded.data_bytes() == found.data_bytes();
    let now = Layout::new(found, raw.max_peers, logical_block).ok();
    match now.filter(|now| data_same && now.usable() == made_for.usable()) {
        Some(now) => Ok(now),
        None => Err(CopyFault::Resized {
            data_bytes: raw.data_bytes.get(),
            meta_bytes: raw.meta_bytes.get(),
            logical_block: raw.logical_block.get(),
        }),
    }
}

fn decode_state(raw: &RawSuperblock) -> Result<Superblock, CopyFault> {
    let flags = raw.flags.get();
    if flags & !FLAGS != 0 {
        return Err(CopyFault::Field("flags"));
    }
    let history = raw.history.get(..usize::from(raw.history_count));
    let history = history.ok_or(CopyFault::Field("history_count"))?;
    let peers = raw.peers.get(..usize::from(raw.peer_count));
    let peers = peers.ok_or(CopyFault::Field("peer_count"))?;
    if peers.iter().any(|p| p.flags.get() & !PEER_FLAGS != 0) {
        return Err(CopyFault::Field("peer flags"));
    }
    Ok(Superblock {
        node: NodeId(raw.node),
        agreed_size: raw.agreed_size.get(),
        current: Generation(raw.current.get()),
        history: history.iter().map(|g| Generation(g.get())).collect(),
        term: Term {
            counter: raw.term_counter.get(),
            node: NodeId(raw.term_node),
            random: raw.term_random.get(),
        },
        primary: flags & FLAG_PRIMARY != 0,
        inconsistent: flags & FLAG_INCONSISTENT != 0,
        outdated: flags & FLAG_OUTDATED != 0,
        unflushed: flags & FLAG_UNFLUSHED != 0,
        unflushed_boot: raw.unflushed_boot.get(),
        peers: peers.iter().map(decode_peer).collect(),
    })
}

fn decode_peer(raw: &RawPeer) -> PeerRecord {
    let flags = raw.flags.get();
    PeerRecord {
        known: flags & PEER_KNOWN != 0,
        base: Generation(raw.base.get()),
        outdated: flags & PEER_OUTDATED != 0,
        want_full: flags & PEER_WANT_FULL != 0,
        session: Session(raw.session.get()),
        session_pending: Session(raw.session_pending.get()),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The table in FORMAT.md.
    #[test]
    fn fields_are_where_the_format_says() {
        let documented = [
            (offset_of!(RawSuperblock, version), 8),
            (offset_of!(RawSuperblock, own_offset), 20),
            (offset_of!(RawSuperblock, usable), 60),
            (offset_of!(RawSuperblock, logical_block), 100),
            (offset_of!(RawSuperblock, log_slots), 108),
            (offset_of!(RawSuperblock, log_number), 116),
            (offset_of!(RawSuperblock, flags), 124),
            (offset_of!(RawSuperblock, agreed_size), 132),
            (offset_of!(RawSuperblock, current), 140),
            (offset_of!(RawSuperblock, unflushed_boot), 164),
            (offset_of!(RawSuperblock, history), 236),
            (offset_of!(RawSuperblock, peers), 492),
            (offset_of!(RawSuperblock, flux), 1212),
            (offset_of!(RawSuperblock, sums), 1276),
            (offset_of!(RawSuperblock, tail), 3324),
            (size_of::<RawPeer>(), 48),
        ];
        for (found, written) in documented {
            assert_eq!(found, written);
        }
    }
}
