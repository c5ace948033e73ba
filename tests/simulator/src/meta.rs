//! The store's encoders and recovery over a simulated disk.

use std::collections::VecDeque;

use lockstep::engine::{
    Generation, MetaOp, NodeId, PeerRecord, Session, Superblock, Term, VolumeImage,
};
use lockstep::store::{
    BLOCK, Format, LOG_AREA, Layout, Medium, Metadata, Placement, ReadAt, Step as StoreStep,
    read_superblock, recover as read,
};

use crate::disk::{Disk, SECTOR};

/// Room for the bitmap of one peer of any simulated volume.
const BITMAP_BYTES: u64 = 4 * BLOCK;
/// The metadata area: both superblocks, the log ring, the bitmap.
const META_BYTES: u64 = BLOCK + LOG_AREA + BITMAP_BYTES;
/// Generation of volumes that are in sync when a run starts.
pub const FIRST_GENERATION: Generation = Generation(0x10C5);

/// One thing to do on the metadata area.
pub enum Step {
    Write { offset: u64, bytes: Vec<u8> },
    Flush,
}

impl From<StoreStep> for Step {
    fn from(step: StoreStep) -> Step {
        match step {
            StoreStep::Write { offset, bytes } => Step::Write { offset, bytes },
            StoreStep::Flush => Step::Flush,
        }
    }
}

/// The metadata planner of an attached volume.
pub struct Store {
    metadata: Metadata,
}

impl Store {
    /// The steps of an operation; `None` when the store refuses it.
    pub fn plan(&mut self, op: &MetaOp) -> Option<VecDeque<Step>> {
        let steps = self.metadata.plan(op).ok()?;
        Some(steps.into_iter().map(Step::from).collect())
    }

    /// A step failed.
    pub fn failed(&mut self) {
        self.metadata.failed();
    }
}

fn layout(data_bytes: u64) -> Option<Layout> {
    Layout::external(data_bytes, META_BYTES, 1, SECTOR as u32).ok()
}

/// A disk with metadata: fresh, or in sync with its peer in an earlier life.
pub fn new_disk(sectors: u64, fill: u64, volatile: bool, node: usize, synced: bool) -> Disk {
    let mut disk = Disk::new(sectors, META_BYTES, fill, volatile);
    let Some(layout) = layout(sectors * SECTOR) else {
        return disk;
    };
    let identity = 77 + node as u64;
    let (_, format) = if synced {
        Metadata::create_with(layout, identity, synced_superblock(node, sectors * SECTOR))
    } else {
        Metadata::create(layout, identity, NodeId(node as u8))
    };
    write_format(&mut disk, format);
    disk
}

/// New metadata on a disk that keeps its data.
pub fn create_again(disk: &mut Disk, node: usize) {
    if let Some(layout) = layout(disk.sectors() * SECTOR) {
        let (_, format) = Metadata::create(layout, 99 + node as u64, NodeId(node as u8));
        write_format(disk, format);
    }
}

fn write_format(disk: &mut Disk, format: Format) {
    for step in format.write {
        if let StoreStep::Write { offset, bytes } = step {
            disk.format(offset, &bytes);
        }
    }
}

fn synced_superblock(node: usize, bytes: u64) -> Superblock {
    Superblock {
        node: NodeId(node as u8),
        agreed_size: bytes,
        current: FIRST_GENERATION,
        history: Vec::new(),
        term: Term {
            counter: 1,
            node: NodeId(0),
            random: 1,
        },
        primary: false,
        inconsistent: false,
        outdated: false,
        unflushed: false,
        unflushed_boot: 0,
        peers: vec![PeerRecord {
            known: true,
            session: Session(1),
            ..PeerRecord::default()
        }],
    }
}

/// Byte offsets of the blocks that must survive one lost or misplaced write: both superblock
/// copies and the log ring.
pub fn vital_blocks() -> Vec<u64> {
    (0..(BLOCK + LOG_AREA) / BLOCK).map(|n| n * BLOCK).collect()
}

struct Area<'a>(&'a [u8]);

impl ReadAt for Area<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        let start = offset as usize;
        let bytes = self
            .0
            .get(start..start + buf.len())
            .ok_or(crate::disk::EIO)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

fn medium(disk: &Disk) -> Medium {
    Medium {
        placement: Placement::External {
            data_bytes: disk.sectors() * SECTOR,
            meta_bytes: META_BYTES,
        },
        logical_block: SECTOR as u32,
        discard: true,
        volatile_cache: disk.volatile,
    }
}

/// Recovers a volume's metadata as an attach would; the reason when it is refused.
pub fn recover(disk: &Disk) -> Result<(VolumeImage, Store), String> {
    let found = read(&mut Area(&disk.meta()), &medium(disk)).map_err(|e| e.to_string())?;
    let store = Store {
        metadata: found.metadata,
    };
    Ok((found.image, store))
}

/// The superblock that counts, without reading the rest.
pub fn superblock(disk: &Disk) -> Option<Superblock> {
    read_superblock(&mut Area(&disk.meta()), &medium(disk)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_disks_are_recovered_as_they_were_made() {
        for synced in [false, true] {
            let disk = new_disk(48 * 1024, 1, true, 1, synced);
            let (image, _) = recover(&disk).expect("sound metadata");
            assert_eq!(image.capacity, 24 << 20);
            assert_eq!(image.superblock.current.is_fresh(), !synced);
            assert_eq!(image.superblock.inconsistent, !synced);
            assert!(image.log.iter().all(|e| *e == u32::MAX));
            assert!(image.bitmap.iter().all(|w| *w == 0));
        }
        assert!(recover(&Disk::new(1024, META_BYTES, 1, true)).is_err());
    }
}
