//! The ring of activity-log transactions: encoding, and proof of the slot table at recovery.
//!
//! A transaction is one 4 KiB block: up to 64 slot changes and one of six chunks of the slot
//! table as it is after them. Transaction `n` lies in block `n % 7` and carries chunk `n % 6`, so
//! any six consecutive transactions tell the whole table while the seventh is being overwritten.
//!
//! Every 512-byte sector carries the transaction's number, the checksum of the whole transaction,
//! and a checksum of its own, keyed with the identity of the metadata and the sector's place. That
//! tells a torn write (sound sectors of two neighbouring laps: the transaction never completed and
//! its predecessor counts) from a damaged block (which may have been the newest: nothing is
//! proven), and two torn attempts at the same transaction never make up a whole one.

use thiserror::Error;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::BLOCK;
use crate::engine::{LogTransaction, SlotChange};

/// Blocks of the ring.
pub const BLOCKS: usize = 7;
/// Parts that the slot table is written in.
const CHUNKS: usize = 6;
/// Slots per part: what a block has room for.
const CHUNK_SLOTS: usize = 894;
/// Slots of the table on disk. Tables of the engine may be shorter: the rest is free.
pub const MAX_SLOTS: usize = CHUNKS * CHUNK_SLOTS;

const MAGIC: [u8; 4] = *b"LkAl";
const SECTORS: usize = 8;
const SECTOR: usize = 512;
/// Bytes of a sector before its number and checksums.
const SECTOR_PAYLOAD: usize = 496;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChange {
    slot: U16,
    extent: U32,
}

/// The payload of a transaction, before it is spread over the sectors.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTransaction {
    magic: [u8; 4],
    change_count: U16,
    chunk: U16,
    changes: [RawChange; LogTransaction::MAX_CHANGES],
    context: [U32; CHUNK_SLOTS],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSector {
    payload: [u8; SECTOR_PAYLOAD],
    number: U64,
    /// Over the payloads of all sectors.
    seal: U32,
    /// Over identity, place and this sector up to here.
    crc: U32,
}

const _: () = assert!(size_of::<RawTransaction>() == SECTORS * SECTOR_PAYLOAD);
const _: () = assert!(size_of::<RawSector>() == SECTOR);

impl RawSector {
    fn checksum(&self, id: u64, offset: u64) -> u32 {
        let mut h = crc32fast::Hasher::new();
        h.update(&id.to_be_bytes());
        h.update(&offset.to_be_bytes());
        h.update(&self.as_bytes()[..SECTOR - 4]);
        h.finalize()
    }
}

/// Encodes transaction `number`: `changes` (the first [`LogTransaction::MAX_CHANGES`]) and the
/// part of `table`, the table after the changes, whose turn it is. `offset` is the block's place
/// on the metadata device, `id` the identity of the metadata.
pub fn encode(id: u64, offset: u64, number: u64, changes: &[SlotChange], table: &[u32]) -> Vec<u8> {
    let changes = &changes[..changes.len().min(LogTransaction::MAX_CHANGES)];
    let chunk = (number % CHUNKS as u64) as usize;
    let mut raw = RawTransaction::new_zeroed();
    raw.magic = MAGIC;
    raw.change_count.set(changes.len() as u16);
    raw.chunk.set(chunk as u16);
    for (to, from) in raw.changes.iter_mut().zip(changes) {
        to.slot.set(from.slot);
        to.extent.set(from.extent);
    }
    let context = table.iter().copied().skip(chunk * CHUNK_SLOTS);
    let context = context.chain(std::iter::repeat(LogTransaction::FREE));
    for (to, from) in raw.context.iter_mut().zip(context) {
        to.set(from);
    }
    let seal = crc32fast::hash(raw.as_bytes());
    let mut block = Vec::with_capacity(BLOCK as usize);
    for (i, payload) in raw.as_bytes().chunks_exact(SECTOR_PAYLOAD).enumerate() {
        let mut sector = RawSector::new_zeroed();
        sector.payload.copy_from_slice(payload);
        sector.number.set(number);
        sector.seal.set(seal);
        let crc = sector.checksum(id, offset + (i * SECTOR) as u64);
        sector.crc.set(crc);
        block.extend_from_slice(sector.as_bytes());
    }
    block
}

/// What a ring block turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Whole(Transaction),
    /// Sectors of transaction `new` over those of `new - 7`, or over an earlier attempt at `new`:
    /// a write that never completed.
    Torn {
        new: u64,
    },
    /// Unreadable, damaged, foreign or misdirected. `highest` is the highest number that a sound
    /// sector carries; 0 = none.
    Bad {
        highest: u64,
    },
}

/// A decoded transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub number: u64,
    pub changes: Vec<SlotChange>,
    /// First slot of the context.
    pub first_slot: usize,
    pub context: Vec<u32>,
}

/// Decodes the block read at `offset`. `bytes` is `None` when it could not be read.
pub fn decode(id: u64, offset: u64, bytes: Option<&[u8]>) -> Block {
    let mut payload = Vec::with_capacity(SECTORS * SECTOR_PAYLOAD);
    let mut tags = Vec::with_capacity(SECTORS);
    let sectors = bytes.unwrap_or_default().chunks_exact(SECTOR);
    for (i, bytes) in sectors.enumerate().take(SECTORS) {
        let Ok(sector) = RawSector::ref_from_bytes(bytes) else {
            continue;
        };
        if sector.crc.get() == sector.checksum(id, offset + (i * SECTOR) as u64) {
            payload.extend_from_slice(&sector.payload);
            tags.push((sector.number.get(), sector.seal.get()));
        }
    }
    let new = tags.iter().map(|t| t.0).max().unwrap_or(0);
    let bad = Block::Bad { highest: new };
    let whole = (new, crc32fast::hash(&payload));
    if tags.len() != SECTORS {
        bad
    } else if tags.iter().all(|t| *t == whole) {
        let raw = RawTransaction::ref_from_bytes(&payload).ok();
        let transaction = raw.and_then(|raw| parse(new, raw));
        transaction.map_or(bad, Block::Whole)
    } else if tags
        .iter()
        .all(|t| t.0 == new || t.0 == new.wrapping_sub(BLOCKS as u64))
    {
        Block::Torn { new }
    } else {
        bad
    }
}

fn parse(number: u64, raw: &RawTransaction) -> Option<Transaction> {
    let chunk = usize::from(raw.chunk.get());
    if raw.magic != MAGIC || chunk as u64 != number % CHUNKS as u64 {
        return None;
    }
    let changes = raw.changes.get(..usize::from(raw.change_count.get()))?;
    let changes: Vec<SlotChange> = changes
        .iter()
        .map(|c| SlotChange {
            slot: c.slot.get(),
            extent: c.extent.get(),
        })
        .collect();
    if changes.iter().any(|c| usize::from(c.slot) >= MAX_SLOTS) {
        return None;
    }
    Some(Transaction {
        number,
        changes,
        first_slot: chunk * CHUNK_SLOTS,
        context: raw.context.iter().map(|e| e.get()).collect(),
    })
}

/// Why the ring does not prove the slot table.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LogFault {
    #[error("block {block} of the log ring is unreadable or damaged")]
    Damaged { block: usize },
    #[error("block {block} of the log ring does not hold transaction {expected}")]
    Gap { block: usize, expected: u64 },
    #[error("the log ring ends at transaction {newest}, but {known} was complete before")]
    Stale { newest: u64, known: u64 },
    #[error("the log names extent {extent}, which the volume does not have")]
    Extent { extent: u32 },
}

/// What the log ring says about the slot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecovery {
    /// The table after transaction `newest`; always [`MAX_SLOTS`] long.
    Complete { newest: u64, table: Vec<u32> },
    /// Nothing is proven: every extent of the volume counts as covered. `highest` is the highest
    /// number seen in any sound sector.
    Incomplete { highest: u64, fault: LogFault },
}

/// Rebuilds the slot table. `known` is a transaction that is known to have completed: a ring that
/// ends earlier has lost something.
pub fn recover(blocks: &[Block; BLOCKS], known: u64) -> LogRecovery {
    let numbers = blocks.iter().map(|b| match b {
        Block::Whole(t) => t.number,
        Block::Torn { new } => *new,
        Block::Bad { highest } => *highest,
    });
    let highest = numbers.max().unwrap_or(0).max(known);
    prove(blocks, known).map_or_else(
        |fault| LogRecovery::Incomplete { highest, fault },
        |(newest, table)| LogRecovery::Complete { newest, table },
    )
}

fn prove(blocks: &[Block; BLOCKS], known: u64) -> Result<(u64, Vec<u32>), LogFault> {
    let whole = blocks.iter().filter_map(|b| match b {
        Block::Whole(t) => Some(t.number),
        Block::Torn { .. } | Block::Bad { .. } => None,
    });
    let newest = whole.max().unwrap_or(0);
    if newest < known || newest < BLOCKS as u64 {
        return Err(LogFault::Stale { newest, known });
    }
    let mut table = vec![LogTransaction::FREE; MAX_SLOTS];
    for expected in newest - (BLOCKS as u64 - 1)..=newest {
        let block = (expected % BLOCKS as u64) as usize;
        match &blocks[block] {
            Block::Whole(t) if t.number == expected => replay(t, &mut table),
            Block::Whole(_) => return Err(LogFault::Gap { block, expected }),
            // The block that comes next: its write did not complete.
            Block::Torn { new } if *new == newest + 1 => {}
            Block::Torn { .. } => return Err(LogFault::Gap { block, expected }),
            Block::Bad { .. } => return Err(LogFault::Damaged { block }),
        }
    }
    Ok((newest, table))
}

/// Applies a transaction: its context is the table after its changes.
fn replay(t: &Transaction, table: &mut [u32]) {
    for (to, &extent) in table.iter_mut().skip(t.first_slot).zip(&t.context) {
        *to = extent;
    }
    for c in &t.changes {
        if let Some(to) = table.get_mut(usize::from(c.slot)) {
            *to = c.extent;
        }
    }
}

/// The changes that make `to` out of `from`; slots beyond a table's end are free.
pub fn diff(from: &[u32], to: &[u32]) -> Vec<SlotChange> {
    let free = LogTransaction::FREE;
    let at = |table: &[u32], slot: usize| table.get(slot).copied().unwrap_or(free);
    (0..from.len().max(to.len()))
        .filter(|&slot| at(from, slot) != at(to, slot))
        .map(|slot| SlotChange {
            slot: slot as u16,
            extent: at(to, slot),
        })
        .collect()
}
