//! Where the parts of a volume's metadata lie, computed from device sizes alone.
//!
//! The internal layout for one peer has the footprint of DRBD's flexible internal metadata, so a
//! device can change hands without moving data. All offsets are bytes relative to the device that
//! holds the metadata: for internal metadata the data device itself.

use std::ops::Range;

use thiserror::Error;

use super::log::{BLOCKS, MAX_SLOTS};
use crate::engine::BITMAP_PAGE_BYTES;

/// Bytes of a superblock, of a log block and of a bitmap page.
pub const BLOCK: u64 = 4096;
/// The log area: the second superblock copy and the ring.
pub const LOG_AREA: u64 = 32 * 1024;
/// Bytes of data behind one bit of the bitmap.
pub const BYTES_PER_BIT: u64 = 4096;
/// Bytes of data behind one activity-log extent.
pub const EXTENT: u64 = 4 << 20;
/// Bitmap slots that a layout can have room for.
pub const MAX_PEERS: u8 = 15;
/// Room for one volume on a metadata device that is divided by an index, as DRBD divides it.
pub const INDEX_BYTES: u64 = 128 << 20;
/// Largest volume: its bitmap is 32 GiB. More would overflow nothing, but nobody has tried.
pub const MAX_DATA: u64 = 1 << 50;

/// Data bytes that DRBD counts as one bitmap sector.
const BITMAP_SECTOR_COVERS: u64 = 16 << 20;
const SECTOR: u64 = 512;

/// Why a layout is impossible.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    #[error("the device has {bytes} bytes; its metadata and data need at least {needed}")]
    TooSmall { bytes: u64, needed: u64 },
    #[error("the metadata device has {bytes} bytes; this volume needs {needed}")]
    MetaTooSmall { bytes: u64, needed: u64 },
    #[error(
        "an index of a metadata device has room for {INDEX_BYTES} bytes; this volume needs {needed}"
    )]
    IndexTooSmall { needed: u64 },
    #[error("the device has {bytes} bytes; more than {MAX_DATA} are not supported")]
    TooLarge { bytes: u64 },
    #[error("room for {0} peers asked for; 1 to {MAX_PEERS} are possible")]
    Peers(u8),
    #[error("logical blocks of {0} bytes are not supported (512 to 4096, a power of two)")]
    LogicalBlock(u32),
}

/// Where the metadata is kept, with the sizes that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At the end of the data device.
    Internal { device_bytes: u64 },
    /// On a device of its own.
    External { data_bytes: u64, meta_bytes: u64 },
}

impl Placement {
    /// Size of the data device, bytes.
    pub fn data_bytes(self) -> u64 {
        match self {
            Placement::Internal { device_bytes } => device_bytes,
            Placement::External { data_bytes, .. } => data_bytes,
        }
    }

    /// Offset of the primary superblock; `None` when the device is too small for one.
    pub fn super_offset(self) -> Option<u64> {
        match self {
            Placement::Internal { device_bytes } => {
                let sb = (device_bytes / BLOCK).checked_sub(1)? * BLOCK;
                (sb > LOG_AREA).then_some(sb)
            }
            Placement::External { meta_bytes, .. } => (meta_bytes >= BLOCK + LOG_AREA).then_some(0),
        }
    }

    /// Offset of the log area, which starts with the second superblock copy.
    pub fn log_offset(self) -> Option<u64> {
        let sb = self.super_offset()?;
        match self {
            Placement::Internal { .. } => sb.checked_sub(LOG_AREA),
            Placement::External { .. } => Some(sb + BLOCK),
        }
    }
}

/// The places of all parts of one volume's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    placement: Placement,
    logical_block: u32,
    max_peers: u8,
    usable: u64,
    super_offset: u64,
    log_offset: u64,
    slot_bytes: u64,
}

impl Layout {
    /// Metadata at the end of the data device.
    pub fn internal(
        device_bytes: u64,
        max_peers: u8,
        logical_block: u32,
    ) -> Result<Layout, LayoutError> {
        Layout::new(
            Placement::Internal { device_bytes },
            max_peers,
            logical_block,
        )
    }

    /// Metadata on a device of its own.
    pub fn external(
        data_bytes: u64,
        meta_bytes: u64,
        max_peers: u8,
        logical_block: u32,
    ) -> Result<Layout, LayoutError> {
        Layout::new(
            Placement::External {
                data_bytes,
                meta_bytes,
            },
            max_peers,
            logical_block,
        )
    }

    /// The layout for devices of the sizes in `placement`.
    pub fn new(
        placement: Placement,
        max_peers: u8,
        logical_block: u32,
    ) -> Result<Layout, LayoutError> {
        if !(1..=MAX_PEERS).contains(&max_peers) {
            return Err(LayoutError::Peers(max_peers));
        }
        let block = u64::from(logical_block);
        if !block.is_power_of_two() || !(SECTOR..=BLOCK).contains(&block) {
            return Err(LayoutError::LogicalBlock(logical_block));
        }
        let data = placement.data_bytes();
        if data > MAX_DATA {
            return Err(LayoutError::TooLarge { bytes: data });
        }
        // DRBD: one sector of bitmap per started 16 MiB of the device, rounded up to 4 KiB.
        let sectors = (data / SECTOR * SECTOR).div_ceil(BITMAP_SECTOR_COVERS);
        let slot_bytes = (sectors * SECTOR).next_multiple_of(BLOCK).max(BLOCK);
        let bitmaps = slot_bytes * u64::from(max_peers);
        let overhead = bitmaps + LOG_AREA + BLOCK;
        let (bytes, needed) = match placement {
            Placement::Internal { device_bytes } => (device_bytes, overhead + BLOCK),
            Placement::External { data_bytes, .. } => (data_bytes, BLOCK),
        };
        let too_small = LayoutError::TooSmall { bytes, needed };
        if bytes < needed {
            return Err(too_small);
        }
        if let Placement::External { meta_bytes, .. } = placement
            && meta_bytes < overhead
        {
            return Err(LayoutError::MetaTooSmall {
                bytes: meta_bytes,
                needed: overhead,
            });
        }
        let super_offset = placement.super_offset().ok_or(too_small)?;
        let log_offset = placement.log_offset().ok_or(too_small)?;
        let end = match placement {
            Placement::Internal { .. } => log_offset.checked_sub(bitmaps).ok_or(too_small)?,
            Placement::External { data_bytes, .. } => data_bytes,
        };
        Ok(Layout {
            placement,
            logical_block,
            max_peers,
            usable: end / block * block,
            super_offset,
            log_offset,
            slot_bytes,
        })
    }

    /// Refuses metadata that would reach from an index of its device into the next one.
    pub fn fits_index(&self) -> Result<(), LayoutError> {
        let range = self.metadata_range();
        let needed = range.end - range.start;
        match needed <= INDEX_BYTES {
            true => Ok(()),
            false => Err(LayoutError::IndexTooSmall { needed }),
        }
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Logical block size of the data device, bytes.
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Bitmap slots.
    pub fn max_peers(&self) -> u8 {
        self.max_peers
    }

    /// Bytes of the data device that hold data.
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Offset of the primary superblock.
    pub fn super_offset(&self) -> u64 {
        self.super_offset
    }

    /// Offset of the second superblock copy: the first block of the log area.
    pub fn second_offset(&self) -> u64 {
        self.log_offset
    }

    /// Offset of a block of the log ring.
    pub fn ring_offset(&self, block: usize) -> u64 {
        self.log_offset + BLOCK * (1 + (block % BLOCKS) as u64)
    }

    /// Bytes of one bitmap slot, a multiple of the page size.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Offset of the bitmap of `slot`. Internal slots grow downward from the log, so that slot 0
    /// stays where it is whatever the number of slots.
    pub fn slot_offset(&self, slot: u8) -> u64 {
        let slot = u64::from(slot);
        match self.placement {
            Placement::Internal { .. } => self.log_offset - (slot + 1) * self.slot_bytes,
            Placement::External { .. } => self.log_offset + LOG_AREA + slot * self.slot_bytes,
        }
    }

    /// The bytes of all bitmap slots together.
    pub fn bitmap_range(&self) -> Range<u64> {
        let len = self.slot_bytes * u64::from(self.max_peers);
        let start = match self.placement {
            Placement::Internal { .. } => self.log_offset - len,
            Placement::External { .. } => self.log_offset + LOG_AREA,
        };
        start..start + len
    }

    /// Everything the metadata occupies.
    pub fn metadata_range(&self) -> Range<u64> {
        let bitmap = self.bitmap_range();
        let start = bitmap.start.min(self.super_offset);
        start..bitmap.end.max(self.super_offset + BLOCK)
    }

    /// Bitmap pages of one slot.
    pub fn pages(&self) -> u32 {
        (self.slot_bytes / BITMAP_PAGE_BYTES as u64) as u32
    }

    /// Bits that stand for data; the rest of a slot is zero.
    pub fn bits(&self) -> u64 {
        self.usable.div_ceil(BYTES_PER_BIT)
    }

    /// Activity-log extents of the volume.
    pub fn extents(&self) -> u32 {
        self.usable.div_ceil(EXTENT) as u32
    }

    /// Slots that the log ring can describe; `al_extents` is clamped to it.
    pub const fn max_al_extents() -> u16 {
        MAX_SLOTS as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (device bytes, start of the bitmap, its length) as DRBD's own tool chose them for v08
    /// flexible internal metadata.
    const DRBD_V08: &[(u64, u64, u64)] = &[
        (104_857_600, 104_816_640, 4_096),
        (4_294_967_296, 4_294_799_360, 131_072),
        (4_300_000_256, 4_299_825_152, 135_168),
        (4_563_402_752, 4_563_226_624, 139_264),
        (17_179_869_184, 17_179_308_032, 524_288),
        (17_179_873_280, 17_179_308_032, 528_384),
        (17_196_646_400, 17_196_081_152, 528_384),
        (1_099_511_627_776, 1_099_478_036_480, 33_554_432),
        (1_099_528_404_992, 1_099_494_809_600, 33_558_528),
    ];

    #[test]
    fn internal_footprint_is_drbds() {
        for &(device, start, len) in DRBD_V08 {
            for block in [512, 4096] {
                let l = Layout::internal(device, 1, block).unwrap();
                assert_eq!(l.bitmap_range(), start..start + len, "{device}");
                assert_eq!(l.usable(), start);
                assert_eq!(l.super_offset(), device / BLOCK * BLOCK - BLOCK);
                assert_eq!(l.second_offset(), l.super_offset() - LOG_AREA);
                assert_eq!(l.slot_offset(0), start);
                assert!(l.slot_bytes() * 8 >= l.bits());
            }
        }
    }

    #[test]
    fn more_peers_keep_slot_0_in_place() {
        let one = Layout::internal(1 << 30, 1, 512).unwrap();
        let many = Layout::internal(1 << 30, 15, 512).unwrap();
        assert_eq!(one.slot_offset(0), many.slot_offset(0));
        assert_eq!(many.slot_offset(14), many.bitmap_range().start);
        assert_eq!(many.usable(), many.bitmap_range().start);
    }

    #[test]
    fn parts_do_not_overlap() {
        for peers in 1..=MAX_PEERS {
            let external = Layout::external(10 << 30, 64 << 20, peers, 512).unwrap();
            let internal = Layout::internal(10 << 30, peers, 512).unwrap();
            for l in [external, internal] {
                let mut parts = vec![(l.super_offset(), BLOCK), (l.second_offset(), BLOCK)];
                parts.extend((0..BLOCKS).map(|b| (l.ring_offset(b), BLOCK)));
                parts.extend((0..peers).map(|s| (l.slot_offset(s), l.slot_bytes())));
                parts.sort_unstable();
                assert!(parts.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0));
                let last = parts[parts.len() - 1];
                assert_eq!(l.metadata_range(), parts[0].0..last.0 + last.1);
            }
            assert_eq!(external.usable(), 10 << 30);
        }
    }

    #[test]
    fn impossible_layouts_are_refused() {
        let small = Layout::internal(40 * 1024, 1, 512);
        assert!(matches!(small, Err(LayoutError::TooSmall { .. })));
        assert!(Layout::internal(44 * 1024, 1, 512).is_ok());
        assert_eq!(
            Layout::internal(1 << 30, 0, 512),
            Err(LayoutError::Peers(0))
        );
        assert_eq!(
            Layout::internal(1 << 30, 16, 512),
            Err(LayoutError::Peers(16))
        );
        assert_eq!(
            Layout::internal(1 << 30, 1, 8192),
            Err(LayoutError::LogicalBlock(8192))
        );
        let meta = Layout::external(1 << 30, 64 * 1024, 1, 512);
        assert!(matches!(meta, Err(LayoutError::MetaTooSmall { .. })));
        let huge = Layout::internal(MAX_DATA + 4096, 1, 512);
        assert!(matches!(huge, Err(LayoutError::TooLarge { .. })));
        for bytes in 0..60_000 {
            // Must not panic, whatever the size.
            let _ = Layout::internal(bytes, 1, 512).map(|l| assert!(l.usable() > 0));
        }
    }
}
