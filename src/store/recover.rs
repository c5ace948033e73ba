//! Recovery: reads a volume's metadata and rebuilds the engine's picture of it.
//!
//! Pure but for the reads, which the caller supplies ([`ReadAt`]): the device in production, a
//! simulated disk in tests. Whatever cannot be proven is taken as dirty: a group of bitmap pages
//! with a wrong sum, an unreadable page, every extent when the log ring has a gap.

use thiserror::Error;

use super::bitmap::{Flux, Grouping, MAX_GROUPS, Sums, is_zero, mark, marked};
use super::layout::{BLOCK, Layout, LayoutError, Placement};
use super::log::{self, BLOCKS, LogFault, LogRecovery, MAX_SLOTS};
use super::metadata::{Copy, LogState, Metadata, Step};
use super::superblock::{self, Contents, CopyFault};
use crate::engine::{BITMAP_PAGE_BYTES, LogTransaction, Superblock, VolumeImage};

/// Bytes of bitmap read at a time.
const READ: usize = 1 << 20;
const PAGE: u64 = BITMAP_PAGE_BYTES as u64;
const PAGE_BITS: u64 = PAGE * 8;
const PAGE_WORDS: usize = BITMAP_PAGE_BYTES / 8;

/// Reads from the metadata device.
pub trait ReadAt {
    /// Fills `buf` from `offset`; both are multiples of 4096. Errors are errno values.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), i32>;

    /// The first offset, not before `offset`, that may hold anything but zeroes; `None` when only
    /// zeroes follow. A device that cannot tell keeps the default.
    fn next_data(&mut self, offset: u64) -> Option<u64> {
        Some(offset)
    }
}

/// What the caller knows about the disk.
#[derive(Clone, Copy, Debug)]
pub struct Medium {
    pub placement: Placement,
    /// Logical block size of the data device, bytes.
    pub logical_block: u32,
    /// The data device may lose completed writes until they are flushed.
    pub volatile_cache: bool,
    /// The data device can give blocks back that read as zeroes afterwards.
    pub discard: bool,
}

/// Why a disk cannot be attached.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecoverError {
    #[error("the metadata device is too small to hold metadata")]
    TooSmall,
    #[error(
        "no Lockstep metadata: looked at offsets {primary} and {second}; either none was created, \
         or the device has changed its size since (internal metadata lies at its end)"
    )]
    NoMetadata { primary: u64, second: u64 },
    #[error("both copies of the superblock are unusable: primary: {primary}; second: {second}")]
    BothUnusable {
        primary: CopyFault,
        second: CopyFault,
    },
    #[error("the {copy:?} copy of the superblock must not be used: {fault}")]
    Refused { copy: Copy, fault: CopyFault },
    #[error("the two copies of the superblock belong to different metadata ({0:016x}, {1:016x})")]
    Identities(u64, u64),
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl RecoverError {
    /// Whether the disk could not be read, rather than what is on it cannot be used.
    pub fn is_failure(&self) -> bool {
        let unreadable = |fault: &CopyFault| matches!(fault, CopyFault::Unreadable(_));
        match self {
            RecoverError::BothUnusable { primary, second } => {
                unreadable(primary) || unreadable(second)
            }
            RecoverError::Refused { fault, .. } => unreadable(fault),
            RecoverError::TooSmall
            | RecoverError::NoMetadata { .. }
            | RecoverError::Identities(..)
            | RecoverError::Layout(_) => false,
        }
    }

    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            RecoverError::NoMetadata { .. } => {
                "`lockstep create-md` makes metadata on a new disk; one whose size has changed \
                 must first get its old size back"
            }
            RecoverError::Layout(LayoutError::IndexTooSmall { .. }) => NO_INDEX,
            RecoverError::TooSmall | RecoverError::Layout(_) => {
                "give the disk its old size back, or name a larger one in the configuration"
            }
            RecoverError::Refused { fault, .. } => match fault {
                CopyFault::Version(_) | CopyFault::Features(_) => {
                    "use a version of Lockstep that is at least as new as the one that wrote it"
                }
                CopyFault::Resized { .. } => {
                    "give the disk its old size back, or name the right one in the configuration"
                }
                CopyFault::Field(_)
                | CopyFault::Unreadable(_)
                | CopyFault::Absent
                | CopyFault::Checksum
                | CopyFault::Misdirected { .. } => DAMAGED,
            },
            RecoverError::BothUnusable { .. } | RecoverError::Identities(..) => DAMAGED,
        }
    }
}

/// What to do about metadata that does not fit an index.
pub const NO_INDEX: &str = "give the volume a metadata device or file of its own, and write it \
                            without an index: `meta-disk DEVICE`, which has no such limit";

const DAMAGED: &str = "look for disk errors in the kernel log; if the peer has the data, `lockstep \
                       create-md --force` makes the metadata anew, and all is synced from there";

/// What recovery found damaged; all empty when the metadata is intact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The copy that was not usable, and why. The next superblock write repairs it.
    pub copy: Option<(Copy, CopyFault)>,
    /// Why every extent counts as covered by the log (or, on a volume of more than
    /// [`Layout::max_al_extents`] extents, why the whole bitmap is dirty).
    pub log: Option<LogFault>,
    /// Groups of bitmap pages whose sum did not match: taken as all dirty.
    pub groups: Vec<u16>,
    /// Bitmap pages that could not be read.
    pub unreadable_pages: u32,
}

/// An attached volume's metadata.
#[derive(Debug)]
pub struct Recovered {
    pub image: VolumeImage,
    pub metadata: Metadata,
    pub damage: Damage,
}

/// Both copies as found; shared with the dump.
pub struct Copies {
    pub primary: Result<Contents, CopyFault>,
    pub second: Result<Contents, CopyFault>,
}

/// Reads and judges both copies of the superblock.
pub fn read_copies(disk: &mut impl ReadAt, medium: &Medium) -> Result<Copies, RecoverError> {
    let places = medium.placement;
    let primary = places.super_offset().ok_or(RecoverError::TooSmall)?;
    let second = places.log_offset().ok_or(RecoverError::TooSmall)?;
    let mut read = |offset| {
        let mut block = [0; BLOCK as usize];
        disk.read_at(offset, &mut block)
            .map_err(CopyFault::Unreadable)?;
        superblock::decode(&block, offset, places, medium.logical_block)
    };
    Ok(Copies {
        primary: read(primary),
        second: read(second),
    })
}

/// The copy that counts.
pub struct Chosen {
    pub copy: Copy,
    pub contents: Contents,
    /// What is wrong with the other one.
    pub other: Option<(Copy, CopyFault)>,
}

impl Copies {
    /// The valid copy with the higher sequence, unless the other one forbids it.
    pub fn choose(self, medium: &Medium) -> Result<Chosen, RecoverError> {
        let chosen = |copy, contents, other| {
            Ok(Chosen {
                copy,
                contents,
                other,
            })
        };
        match (self.primary, self.second) {
            (Ok(p), Ok(s)) if p.id != s.id => Err(RecoverError::Identities(p.id, s.id)),
            (Ok(p), Ok(s)) if s.sequence > p.sequence => chosen(Copy::Second, s, None),
            (Ok(p), Ok(_)) => chosen(Copy::Primary, p, None),
            (Err(fault), _) if fault.refuses() => Err(RecoverError::Refused {
                copy: Copy::Primary,
                fault,
            }),
            (_, Err(fault)) if fault.refuses() => Err(RecoverError::Refused {
                copy: Copy::Second,
                fault,
            }),
            (Ok(p), Err(fault)) => chosen(Copy::Primary, p, Some((Copy::Second, fault))),
            (Err(fault), Ok(s)) => chosen(Copy::Second, s, Some((Copy::Primary, fault))),
            (Err(CopyFault::Absent), Err(CopyFault::Absent)) => Err(RecoverError::NoMetadata {
                primary: medium.placement.super_offset().unwrap_or(0),
                second: medium.placement.log_offset().unwrap_or(0),
            }),
            (Err(primary), Err(second)) => Err(RecoverError::BothUnusable { primary, second }),
        }
    }
}

/// Reads the blocks of the log ring.
pub fn read_ring(disk: &mut impl ReadAt, id: u64, layout: &Layout) -> [log::Block; BLOCKS] {
    std::array::from_fn(|block| {
        let offset = layout.ring_offset(block);
        let mut bytes = [0; BLOCK as usize];
        let read = disk.read_at(offset, &mut bytes);
        log::decode(id, offset, read.is_ok().then_some(&bytes[..]))
    })
}

/// Reads the superblock that counts, and nothing else.
pub fn read_superblock(
    disk: &mut impl ReadAt,
    medium: &Medium,
) -> Result<Superblock, RecoverError> {
    let chosen = read_copies(disk, medium)?.choose(medium)?;
    Ok(chosen.contents.superblock)
}

/// Reads all metadata. Nothing is written.
///
/// The caller flushes the metadata device before: after a mere crash of the process, the last
/// writes may be readable and still not be durable, and nobody must act on a state that a power
/// cut can take back.
pub fn recover(disk: &mut impl ReadAt, medium: &Medium) -> Result<Recovered, RecoverError> {
    let Chosen {
        copy: trusted,
        contents,
        other: copy,
    } = read_copies(disk, medium)?.choose(medium)?;
    let layout = contents.layout;
    let ring = read_ring(disk, contents.id, &layout);
    let (log, table, log_fault) = judge_log(&layout, log::recover(&ring, contents.log_number));
    let mut bitmap = BitmapReader::new(&layout);
    for slot in 0..layout.max_peers() {
        bitmap.read_slot(disk, slot);
    }
    let groups = bitmap.judge(&contents);
    if !log.proven && contents.superblock.primary && table.is_empty() {
        bitmap.fill_all();
    }
    let damage = Damage {
        copy,
        log: log_fault,
        groups,
        unreadable_pages: bitmap.unreadable.len() as u32,
    };
    let image = VolumeImage {
        superblock: contents.superblock.clone(),
        capacity: layout.usable(),
        logical_block: layout.logical_block(),
        volatile_cache: medium.volatile_cache,
        discard: medium.discard,
        log: table,
        bitmap: bitmap.words,
        in_flight: None,
    };
    let metadata = Metadata {
        layout,
        id: contents.id,
        sequence: contents.sequence,
        superblock: contents.superblock,
        trusted,
        sums: bitmap.sums,
        unsound: bitmap.unsound,
        log,
        failed: false,
    };
    Ok(Recovered {
        image,
        metadata,
        damage,
    })
}

/// Metadata around a bitmap that is on the disk already, where `layout` has it (DRBD's, whose log
/// has been applied to it): the steps write everything but the bitmap, the superblock at the
/// primary place last. Unreadable pages count as all dirty. `id` must be random.
pub fn adopt(
    disk: &mut impl ReadAt,
    layout: Layout,
    id: u64,
    superblock: Superblock,
) -> (Metadata, Vec<Step>) {
    let mut bitmap = BitmapReader::new(&layout);
    for slot in 0..layout.max_peers() {
        bitmap.read_slot(disk, slot);
    }
    for (slot, page) in std::mem::take(&mut bitmap.unreadable) {
        bitmap.fill(slot, page);
    }
    Metadata::create_around(layout, id, superblock, bitmap.sums, bitmap.unsound)
}

/// The planner's and the engine's view of the log. Without proof every extent is in the table, or,
/// where it has no room for so many, none: then the bitmap must say it.
fn judge_log(layout: &Layout, found: LogRecovery) -> (LogState, Vec<u32>, Option<LogFault>) {
    let unproven = |number, fault| {
        let state = LogState {
            number,
            table: vec![LogTransaction::FREE; MAX_SLOTS],
            proven: false,
        };
        let room = layout.extents() as usize <= MAX_SLOTS;
        let covered = if room { layout.extents() } else { 0 };
        (state, (0..covered).collect(), Some(fault))
    };
    match found {
        LogRecovery::Incomplete { highest, fault } => unproven(highest, fault),
        LogRecovery::Complete { newest, table } => {
            let beyond = |e: &u32| *e != LogTransaction::FREE && *e >= layout.extents();
            if let Some(&extent) = table.iter().find(|e| beyond(e)) {
                return unproven(newest, LogFault::Extent { extent });
            }
            let used = table.iter().rposition(|e| *e != LogTransaction::FREE);
            let image = table[..used.map_or(0, |last| last + 1)].to_vec();
            let state = LogState {
                number: newest,
                table,
                proven: true,
            };
            (state, image, None)
        }
    }
}

/// Gathers slot 0's words and every slot's sums.
struct BitmapReader<'a> {
    layout: &'a Layout,
    words: Vec<u64>,
    sums: Sums,
    unreadable: Vec<(u8, u32)>,
    unsound: Flux,
}

impl<'a> BitmapReader<'a> {
    fn new(layout: &'a Layout) -> BitmapReader<'a> {
        BitmapReader {
            layout,
            // Zeroed by the allocator: pages of memory are touched only where bits are set.
            words: vec![0; layout.bits().div_ceil(64) as usize],
            sums: Sums::zero(Grouping::new(layout)),
            unreadable: Vec::new(),
            unsound: [0; MAX_GROUPS / 8],
        }
    }

    fn read_slot(&mut self, disk: &mut impl ReadAt, slot: u8) {
        let start = self.layout.slot_offset(slot);
        let end = start + self.layout.slot_bytes();
        let mut buf = vec![0; READ.min((end - start) as usize)];
        let mut at = start;
        while let Some(data) = disk.next_data(at).filter(|&data| data < end) {
            at = data.max(at) / PAGE * PAGE;
            let len = READ.min((end - at) as usize);
            let page = ((at - start) / PAGE) as u32;
            let whole = disk.read_at(at, &mut buf[..len]).is_ok();
            for (i, bytes) in buf[..len].chunks_exact_mut(BITMAP_PAGE_BYTES).enumerate() {
                let page = page + i as u32;
                if whole || disk.read_at(at + i as u64 * PAGE, bytes).is_ok() {
                    self.set(slot, page, bytes);
                } else {
                    self.unreadable.push((slot, page));
                }
            }
            at += len as u64;
        }
    }

    fn set(&mut self, slot: u8, page: u32, bytes: &[u8]) {
        if is_zero(bytes) {
            return;
        }
        self.sums.set(slot, page, bytes);
        if slot == 0 {
            self.store(page, bytes);
        }
    }

    /// Copies a page into the words, without the bits that stand for no data.
    fn store(&mut self, page: u32, bytes: &[u8]) {
        let start = page as usize * PAGE_WORDS;
        let words = self.words.iter_mut().skip(start);
        for (word, bytes) in words.zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let tail = self.layout.bits() % 64;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }

    /// Compares the sums with the superblock's and makes all dirty what does not match. The sums
    /// in memory become those of what the engine is told, not of what is on disk: later page
    /// writes can then never make a damaged group look sound.
    fn judge(&mut self, contents: &Contents) -> Vec<u16> {
        let grouping = *self.sums.grouping();
        let mut bad: Vec<u16> = (0..grouping.count())
            .filter(|&g| !marked(&contents.flux, g))
            .filter(|&g| self.sums.groups().get(g) != contents.sums.get(g))
            .map(|g| g as u16)
            .collect();
        for (slot, page) in self.unreadable.clone() {
            let group = grouping.group_of(slot, page);
            if marked(&contents.flux, group) {
                self.fill(slot, page);
            } else {
                bad.push(group as u16);
            }
        }
        bad.sort_unstable();
        bad.dedup();
        for &group in &bad {
            let (slot, pages) = grouping.pages_of(usize::from(group));
            pages.for_each(|page| self.fill(slot, page));
        }
        bad
    }

    /// Makes every page all dirty, durably with the next write of the superblock: the sums on
    /// disk then match no page that was not written since.
    fn fill_all(&mut self) {
        for slot in 0..self.layout.max_peers() {
            (0..self.layout.pages()).for_each(|page| self.fill(slot, page));
        }
    }

    /// Makes a page all dirty.
    fn fill(&mut self, slot: u8, page: u32) {
        let bytes = all_dirty(self.layout, page);
        let group = self.sums.grouping().group_of(slot, page);
        mark(&mut self.unsound, group);
        self.sums.set(slot, page, &bytes);
        if slot == 0 {
            self.store(page, &bytes);
        }
    }
}

/// A bitmap page with every bit set that stands for data.
fn all_dirty(layout: &Layout, page: u32) -> Vec<u8> {
    let before = u64::from(page) * PAGE_BITS;
    let bits = layout.bits().saturating_sub(before).min(PAGE_BITS) as usize;
    let mut bytes = vec![0; BITMAP_PAGE_BYTES];
    bytes[..bits / 8].fill(0xff);
    if !bits.is_multiple_of(8) {
        bytes[bits / 8] = (1 << (bits % 8)) - 1;
    }
    bytes
}
