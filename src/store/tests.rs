//! Properties of the pure half on a simulated disk: crashes at every step, damage everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::bitmap::page_sum;
use super::log::{self, BLOCKS, MAX_SLOTS};
use super::superblock::{self, Contents};
use super::*;
use crate::engine::{
    BITMAP_PAGE_BYTES, Generation, LogTransaction, MetaOp, NodeId, PeerRecord, Session, Superblock,
    Term,
};

const SECTOR: usize = 512;
const FREE: u32 = LogTransaction::FREE;

/// A disk with a volatile cache, torn at sectors by a crash.
#[derive(Clone, Default)]
pub struct MemDisk {
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    cached: Vec<(u64, [u8; SECTOR])>,
    unreadable: BTreeSet<u64>,
}

impl MemDisk {
    fn run(&mut self, step: &Step) {
        match step {
            Step::Write { offset, bytes } => {
                assert!(offset % 4096 == 0 && bytes.len() % 4096 == 0);
                for (i, s) in bytes.chunks_exact(SECTOR).enumerate() {
                    let at = offset / SECTOR as u64 + i as u64;
                    self.cached.push((at, s.try_into().unwrap()));
                }
            }
            Step::Flush => self.sectors.extend(self.cached.drain(..)),
        }
    }

    fn run_all(&mut self, steps: &[Step]) {
        steps.iter().for_each(|s| self.run(s));
    }

    /// Every sector in the cache survives or does not, as `luck` says.
    fn crash(&mut self, mut luck: impl FnMut() -> bool) {
        for (at, s) in self.cached.drain(..) {
            if luck() {
                self.sectors.insert(at, s);
            }
        }
    }

    fn flip(&mut self, offset: u64, bit: usize) {
        let sector = self
            .sectors
            .entry(offset / SECTOR as u64 + (bit / 4096) as u64);
        let bytes = sector.or_insert([0; SECTOR]);
        bytes[bit % 4096 / 8] ^= 1 << (bit % 8);
    }

    fn block(&self, offset: u64) -> Vec<u8> {
        let first = offset / SECTOR as u64;
        let sectors = (first..first + 8).map(|s| self.sectors.get(&s));
        sectors.flat_map(|s| *s.unwrap_or(&[0; SECTOR])).collect()
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.run_all(&[Step::Write { offset, bytes }, Step::Flush]);
    }
}

impl ReadAt for MemDisk {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        for (i, to) in buf.chunks_exact_mut(SECTOR).enumerate() {
            let at = offset / SECTOR as u64 + i as u64;
            if self.unreadable.contains(&at) {
                return Err(5);
            }
            to.copy_from_slice(self.sectors.get(&at).unwrap_or(&[0; SECTOR]));
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Option<u64> {
        let from = offset / SECTOR as u64;
        let data = self.sectors.range(from..).map(|(at, _)| *at).next();
        let bad = self.unreadable.range(from..).next().copied();
        data.into_iter()
            .chain(bad)
            .min()
            .map(|at| at * SECTOR as u64)
    }
}

/// 1.5 GiB and some: 13 bitmap pages, the last one partly used, 387 extents.
const DEVICE: u64 = (3 << 29) + (37 << 20) + 4096;

fn medium(device_bytes: u64) -> Medium {
    Medium {
        placement: Placement::Internal { device_bytes },
        logical_block: 512,
        volatile_cache: true,
        discard: true,
    }
}

fn fresh(peers: u8) -> (MemDisk, Metadata) {
    let layout = Layout::internal(DEVICE, peers, 512).unwrap();
    let (meta, format) = Metadata::create(layout, 0x1234_5678_9abc_def0, NodeId(1));
    let mut disk = MemDisk::default();
    disk.run_all(&format.wipe);
    disk.run_all(&format.write);
    (disk, meta)
}

fn log_op(table: &[u32]) -> MetaOp {
    MetaOp::Log(LogTransaction {
        changes: Vec::new(),
        table: Arc::new(table.to_vec()),
    })
}

fn padded(table: &[u32]) -> Vec<u32> {
    let mut t = table.to_vec();
    t.resize(MAX_SLOTS, FREE);
    t
}

prop_compose! {
    fn peer()(flags in any::<[bool; 3]>(), ids in any::<[u64; 3]>()) -> PeerRecord {
        PeerRecord {
            known: flags[0],
            base: Generation(ids[0]),
            outdated: flags[1],
            want_full: flags[2],
            session: Session(ids[1]),
            session_pending: Session(ids[2]),
        }
    }
}

prop_compose! {
    fn state(max_peers: usize)(
        node in 0u8..16,
        words in any::<[u64; 4]>(),
        history in prop::collection::vec(any::<u64>(), 0..=32),
        flags in any::<[bool; 4]>(),
        term in (0u8..16, any::<u32>()),
        peers in prop::collection::vec(peer(), 0..=max_peers),
    ) -> Superblock {
        Superblock {
            node: NodeId(node),
            agreed_size: words[0],
            current: Generation(words[1]),
            history: history.into_iter().map(Generation).collect(),
            term: Term { counter: words[2], node: NodeId(term.0), random: term.1 },
            primary: flags[0],
            inconsistent: flags[1],
            outdated: flags[2],
            unflushed: flags[3],
            unflushed_boot: words[3],
            peers,
        }
    }
}

/// An operation in the making: tables and bitmaps depend on what is there.
#[derive(Clone, Debug)]
enum Plan {
    Superblock(Superblock),
    Log(Vec<(u16, u32)>),
    Bitmap(Vec<(u32, u64)>),
}

fn plan() -> impl Strategy<Value = Plan> {
    let free_or = prop_oneof![1 => Just(FREE), 4 => 0u32..387];
    prop_oneof![
        state(2).prop_map(Plan::Superblock),
        prop::collection::vec((0u16..1500, free_or), 1..100).prop_map(Plan::Log),
        pages(6).prop_map(Plan::Bitmap),
    ]
}

/// Different pages with a seed each.
fn pages(most: usize) -> impl Strategy<Value = Vec<(u32, u64)>> {
    prop::collection::btree_map(0u32..13, any::<u64>(), 1..most)
        .prop_map(|pages| pages.into_iter().collect())
}

/// What an engine would hold in memory.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    superblock: Superblock,
    table: Vec<u32>,
    bitmap: Vec<u64>,
}

impl Model {
    fn of(r: &Recovered) -> Model {
        Model {
            superblock: r.image.superblock.clone(),
            table: padded(&r.image.log),
            bitmap: r.image.bitmap.clone(),
        }
    }

    fn apply(&mut self, plan: &Plan) -> MetaOp {
        match plan {
            Plan::Superblock(s) => {
                self.superblock = s.clone();
                MetaOp::Superblock(Box::new(s.clone()))
            }
            Plan::Log(changes) => {
                for &(slot, extent) in changes {
                    self.table[usize::from(slot)] = extent;
                }
                log_op(&self.table)
            }
            Plan::Bitmap(pages) => MetaOp::Bitmap {
                slot: 0,
                pages: pages
                    .iter()
                    .map(|&(p, seed)| (p, self.draw(p, seed)))
                    .collect(),
            },
        }
    }

    /// Fills a page of the model with a pattern, and returns its bytes.
    fn draw(&mut self, page: u32, seed: u64) -> Box<[u8]> {
        let last = self.bitmap.len() - 1;
        let mut bytes = Vec::with_capacity(BITMAP_PAGE_BYTES);
        for i in 0..512u64 {
            let at = page as usize * 512 + i as usize;
            let mut word = seed.wrapping_mul(i | 1) & seed.rotate_left(i as u32);
            if at >= last {
                word = 0;
            }
            if let Some(w) = self.bitmap.get_mut(at) {
                *w = word;
            }
            bytes.extend(word.to_le_bytes());
        }
        bytes.into()
    }

    /// Every part is `before`'s or `after`'s: the superblock as a whole, the log by slot (an
    /// operation may take several transactions), the bitmap by sector.
    fn between(&self, before: &Model, after: &Model) {
        let either = [&before.superblock, &after.superblock];
        assert!(either.contains(&&self.superblock));
        for (i, e) in self.table.iter().enumerate() {
            assert!([before.table[i], after.table[i]].contains(e), "slot {i}");
        }
        for (i, s) in self.bitmap.chunks(64).enumerate() {
            let at = |m: &'_ Model| m.bitmap.chunks(64).nth(i).unwrap().to_vec();
            assert!(s == at(before) || s == at(after), "sector {i}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Power cuts at every kind of place, again and again: what recovery finds is the state
    /// before or after the interrupted operation, and never counts as damage.
    #[test]
    fn crashes_leave_before_or_after(
        cycles in prop::collection::vec(
            (prop::collection::vec(plan(), 1..12), any::<prop::sample::Index>(), any::<u64>()),
            1..6,
        ),
    ) {
        let (mut disk, mut meta) = fresh(2);
        let mut model = Model::of(&recover(&mut disk.clone(), &medium(DEVICE)).unwrap());
        for (plans, cut, mut luck) in cycles {
            let (last, done) = plans.split_last().unwrap();
            for p in done {
                let op = model.apply(p);
                disk.run_all(&meta.plan(&op).unwrap());
            }
            let before = model.clone();
            let op = model.apply(last);
            let steps = meta.plan(&op).unwrap();
            let cut = cut.index(steps.len() + 1);
            disk.run_all(&steps[..cut]);
            disk.crash(|| {
                luck = luck.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                luck >> 63 == 1
            });
            let found = recover(&mut disk, &medium(DEVICE)).unwrap();
            prop_assert!(found.damage.log.is_none(), "{:?}", found.damage);
            prop_assert!(found.damage.groups.is_empty(), "{:?}", found.damage);
            let now = Model::of(&found);
            if cut == steps.len() {
                prop_assert_eq!(&now, &model);
            }
            now.between(&before, &model);
            model = now;
            meta = found.metadata;
        }
    }

    /// One fault of any kind in the ring after any stream of transactions: no active extent is
    /// ever missing.
    #[test]
    fn log_faults_lose_no_extent(
        streams in prop::collection::vec(
            prop::collection::vec((0u16..5364, 0u32..387), 1..64), 1..20),
        lost in any::<prop::sample::Index>(),
        fault in 0..6,
        block in 0..BLOCKS,
        bit in 0usize..32768,
    ) {
        let (mut disk, mut meta) = fresh(1);
        let layout = *meta.layout();
        let lost = lost.index(streams.len());
        let mut table = vec![FREE; MAX_SLOTS];
        for (i, changes) in streams.iter().enumerate() {
            changes.iter().for_each(|&(slot, e)| table[usize::from(slot)] = e);
            let steps = meta.plan(&log_op(&table)).unwrap();
            // A write that the disk forgot; losing the very last one leaves no trace.
            if !(fault == 0 && i == lost && i + 1 < streams.len()) {
                disk.run_all(&steps);
            }
        }
        let place = layout.ring_offset(block);
        match fault {
            0 => {}
            1 => disk.flip(place, bit),
            2 => { disk.unreadable.insert(place / 512 + (bit % 8) as u64); }
            3 => {
                // Misdirected: another block's contents.
                let bytes = disk.block(layout.ring_offset(block + 1 + bit % 6));
                disk.put(place, &bytes);
            }
            4 => disk.put(place, &[0; 4096]),
            _ => {
                // One foreign sector.
                let mut bytes = disk.block(place);
                bytes[512..1024].fill(0x5a);
                disk.put(place, &bytes);
            }
        }
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        let active: BTreeSet<u32> = table.into_iter().filter(|e| *e != FREE).collect();
        let covered: BTreeSet<u32> = found.image.log.iter().copied().collect();
        prop_assert!(active.is_subset(&covered), "{:?}", found.damage.log);
        // After the next transaction the ring is whole again.
        let mut meta = found.metadata;
        disk.unreadable.clear();
        disk.run_all(&meta.plan(&log_op(&[7, FREE, 9])).unwrap());
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        prop_assert_eq!(found.damage.log, None);
        prop_assert_eq!(found.image.log, vec![7, FREE, 9]);
    }

    /// Damaged bitmap pages only ever add dirty bits, also after further writes and a crash.
    #[test]
    fn bitmap_faults_lose_no_bit(
        pages in prop::collection::vec((0u32..13, any::<u64>()), 1..20),
        fault in 0..4,
        page in 0u64..13,
        bit in 0usize..32768,
        later in pages(4),
        cut in 0usize..8,
    ) {
        let (mut disk, mut meta) = fresh(1);
        let mut model = Model::of(&recover(&mut disk.clone(), &medium(DEVICE)).unwrap());
        for p in pages {
            let op = model.apply(&Plan::Bitmap(vec![p]));
            disk.run_all(&meta.plan(&op).unwrap());
        }
        let slot = meta.layout().slot_offset(0);
        let place = slot + page * 4096;
        match fault {
            0 => disk.flip(place, bit),
            1 => { disk.unreadable.insert(place / 512); }
            2 => {
                let other = slot + (page + 1) % 13 * 4096;
                let (a, b) = (disk.block(place), disk.block(other));
                disk.put(place, &b);
                disk.put(other, &a);
            }
            _ => disk.put(place, &[0; 4096]),
        }
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        let superset = |big: &[u64], small: &[u64]| big.iter().zip(small).all(|(b, s)| b & s == *s);
        prop_assert!(superset(&found.image.bitmap, &model.bitmap));
        prop_assert!(fault > 1 || found.damage.groups.len() == 1);
        let mut meta = found.metadata;
        let truth = model.bitmap;
        let mut model = Model { bitmap: found.image.bitmap, ..model };
        let op = model.apply(&Plan::Bitmap(later));
        let steps = meta.plan(&op).unwrap();
        disk.run_all(&steps[..cut.min(steps.len())]);
        disk.crash(|| false);
        disk.unreadable.clear();
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        let least: Vec<u64> =
            truth.iter().zip(&model.bitmap).map(|(a, b)| a & b).collect();
        prop_assert!(superset(&found.image.bitmap, &least));
    }

    #[test]
    fn superblocks_round_trip(
        superblock in state(15),
        words in any::<[u64; 3]>(),
        flux in any::<[u8; 32]>(),
        sum in any::<u32>(),
    ) {
        let layout = Layout::internal(1 << 40, 15, 4096).unwrap();
        let count = super::bitmap::Grouping::new(&layout).count();
        let mut marks = [0; 64];
        marks[16..48].copy_from_slice(&flux);
        let contents = Contents {
            sequence: words[0],
            id: words[1],
            layout,
            log_number: words[2],
            superblock,
            flux: marks,
            sums: (0..count as u32).map(|i| sum.wrapping_mul(i)).collect(),
        };
        let bytes = superblock::encode(&contents, 8192);
        let found = superblock::decode(&bytes, 8192, layout.placement(), 4096);
        prop_assert_eq!(found, Ok(contents));
        let found = superblock::decode(&bytes, 4096, layout.placement(), 4096);
        prop_assert_eq!(found, Err(CopyFault::Misdirected { recorded: 8192 }));
    }

    /// Arbitrary bytes, with a sound checksum or not, are refused or decoded, without a panic.
    #[test]
    fn foreign_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let place = Placement::Internal { device_bytes: DEVICE };
        prop_assert!(superblock::decode(&bytes, 0, place, 512).is_err());
        let block = log::decode(1, 0, Some(&bytes));
        prop_assert_eq!(block, log::Block::Bad { highest: 0 });
        let mut block = bytes;
        block.resize(4096, 0);
        block[..8].copy_from_slice(&superblock::MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_be_bytes());
        block[12..24].fill(0);
        superblock::seal(&mut block);
        prop_assert!(superblock::decode(&block, 0, place, 512).is_err());
    }
}

#[test]
fn fresh_metadata_is_intact_and_empty() {
    for peers in [1, 15] {
        let (mut disk, _) = fresh(peers);
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        assert_eq!(found.damage, Damage::default());
        assert!(found.image.log.is_empty());
        assert!(found.image.bitmap.iter().all(|w| *w == 0));
        assert_eq!(
            found.image.bitmap.len() as u64,
            found.image.capacity.div_ceil(64 * 4096)
        );
        assert_eq!(found.image.superblock.peers.len(), usize::from(peers));
        assert!(found.image.superblock.inconsistent);
        assert!(found.image.superblock.current.is_fresh());
    }
}

/// Any flipped bit of a copy is found, the other copy serves, and the next write repairs it.
#[test]
fn every_flipped_superblock_bit_is_found() {
    let (disk, meta) = fresh(1);
    let layout = *meta.layout();
    let offset = layout.super_offset();
    let block = disk.block(offset);
    for bit in 0..32768 {
        let mut bad = block.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(
            superblock::decode(&bad, offset, layout.placement(), 512).is_err(),
            "{bit}"
        );
    }
    for copy in [Copy::Primary, Copy::Second] {
        let mut disk = disk.clone();
        disk.flip(copy.offset(&layout), 9000);
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        assert_eq!(found.damage.copy, Some((copy, CopyFault::Checksum)));
        let mut meta = found.metadata;
        let op = MetaOp::Superblock(Box::new(found.image.superblock));
        let steps = meta.plan(&op).unwrap();
        let first =
            matches!(steps[0], Step::Write { offset, .. } if offset == copy.offset(&layout));
        assert!(first, "the damaged copy is written first");
        disk.run_all(&steps);
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        assert_eq!(found.damage, Damage::default());
    }
}

#[test]
fn every_flipped_log_and_page_bit_is_found() {
    let table: Vec<u32> = (0..900).collect();
    let block = log::encode(3, 8192, 12, &[], &table);
    let page: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    for bit in 0..32768 {
        let flipped = |bytes: &[u8]| {
            let mut b = bytes.to_vec();
            b[bit / 8] ^= 1 << (bit % 8);
            b
        };
        let found = log::decode(3, 8192, Some(&flipped(&block)));
        assert!(matches!(found, log::Block::Bad { .. }), "{bit}");
        assert_ne!(page_sum(5, &flipped(&page)), page_sum(5, &page));
        assert_ne!(page_sum(5, &flipped(&[0; 4096])), 0);
    }
    for (id, offset) in [(3, 4096), (4, 8192)] {
        let found = log::decode(id, offset, Some(&block));
        assert_eq!(found, log::Block::Bad { highest: 0 });
    }
    for len in [0, 1, 511, 512, 4095] {
        let found = log::decode(3, 8192, Some(&block[..len]));
        assert!(matches!(found, log::Block::Bad { .. }));
    }
}

#[test]
fn other_sizes_versions_and_empty_disks_are_refused() {
    let (mut disk, meta) = fresh(1);
    let mut none = MemDisk::default();
    let found = recover(&mut none, &medium(DEVICE));
    assert!(matches!(found, Err(RecoverError::NoMetadata { .. })));
    assert_eq!(
        recover(&mut none, &medium(9000)).err(),
        Some(RecoverError::TooSmall)
    );
    // The last partial block does not move the superblock, but the size is another.
    let found = recover(&mut disk.clone(), &medium(DEVICE + 512));
    assert!(matches!(
        found,
        Err(RecoverError::Refused {
            fault: CopyFault::Resized { .. },
            ..
        })
    ));
    let found = recover(&mut disk.clone(), &medium(DEVICE + 4096));
    assert!(matches!(found, Err(RecoverError::NoMetadata { .. })));
    // A newer version in one copy must not be overruled by the other, older one.
    let offset = meta.layout().second_offset();
    let mut block = disk.block(offset);
    block[11] = 2;
    superblock::seal(&mut block);
    disk.put(offset, &block);
    let fault = CopyFault::Version(2);
    let copy = Copy::Second;
    let found = recover(&mut disk.clone(), &medium(DEVICE)).err();
    assert_eq!(found, Some(RecoverError::Refused { copy, fault }));
    disk.put(meta.layout().super_offset(), &[0; 4096]);
    block[40] ^= 1;
    disk.put(offset, &block);
    let found = recover(&mut disk, &medium(DEVICE));
    assert!(matches!(found, Err(RecoverError::BothUnusable { .. })));
}

#[test]
fn impossible_operations_are_refused() {
    let (_, mut meta) = fresh(1);
    let page = |n: u32, len: usize| vec![(n, vec![0; len].into_boxed_slice())];
    let bitmap = |slot, pages| MetaOp::Bitmap { slot, pages };
    let refused = [
        bitmap(1, page(0, 4096)),
        bitmap(0, page(1000, 4096)),
        bitmap(0, page(0, 512)),
        log_op(&vec![FREE; MAX_SLOTS + 1]),
        MetaOp::Superblock(Box::new(Superblock {
            history: vec![Generation(1); 33],
            ..meta.superblock().clone()
        })),
        MetaOp::Superblock(Box::new(Superblock {
            peers: vec![PeerRecord::default(); 2],
            ..meta.superblock().clone()
        })),
    ];
    for op in &refused {
        assert!(meta.plan(op).is_err());
    }
    assert_eq!(meta.plan(&bitmap(0, vec![])), Ok(vec![]));
    assert_eq!(meta.plan(&log_op(&[])), Ok(vec![]));
    meta.failed();
    assert_eq!(meta.plan(&log_op(&[1])), Err(PlanError::Failed));
}

/// The whole bitmap dirty, page by page: bits that stand for no data stay clear.
#[test]
fn damage_sets_no_bit_beyond_the_volume() {
    let (mut disk, meta) = fresh(1);
    let layout = *meta.layout();
    for page in 0..u64::from(layout.pages()) {
        disk.put(layout.slot_offset(0) + page * 4096, &[0xff; 4096]);
    }
    let found = recover(&mut disk, &medium(DEVICE)).unwrap();
    assert_eq!(found.damage.groups.len() as u32, layout.pages());
    let set: u64 = found
        .image
        .bitmap
        .iter()
        .map(|w| u64::from(w.count_ones()))
        .sum();
    assert_eq!(set, layout.bits());
}

/// Metadata around a bitmap that was there before: dirty bits stay, nothing counts as damaged, and
/// the place of the older superblock is written last.
#[test]
fn adopted_bitmaps_keep_their_bits() {
    let (mut disk, meta) = fresh(1);
    let layout = *meta.layout();
    let state = meta.superblock().clone();
    disk.put(layout.slot_offset(0), &[0x81; 4096]);
    let unreadable = layout.slot_offset(0) + 3 * 4096;
    disk.unreadable.insert(unreadable / 512);
    let (_, steps) = adopt(&mut disk, layout, 99, state);
    let last = steps.iter().rev().find_map(|s| match s {
        Step::Write { offset, .. } => Some(*offset),
        Step::Flush => None,
    });
    assert_eq!(last, Some(layout.super_offset()));
    disk.run_all(&steps);
    for readable in [false, true] {
        if readable {
            disk.unreadable.clear();
        }
        let found = recover(&mut disk, &medium(DEVICE)).unwrap();
        assert_eq!(
            found.damage.groups,
            [3],
            "only the page that could not be read"
        );
        assert!(
            found.image.bitmap[..512]
                .iter()
                .all(|w| *w == 0x8181_8181_8181_8181)
        );
        assert!(
            found.image.bitmap[3 * 512..4 * 512]
                .iter()
                .all(|w| *w == u64::MAX)
        );
        assert!(found.image.bitmap[4 * 512..].iter().all(|w| *w == 0));
    }
}

/// A volume with more extents than the log has slots, whose log proves nothing after a crash as
/// primary: everything is dirty, and stays so through crashes until its pages are written.
#[test]
fn large_volumes_without_log_are_all_dirty() {
    const LARGE: u64 = 30 << 30;
    let layout = Layout::internal(LARGE, 1, 512).unwrap();
    assert!(layout.extents() > u32::from(Layout::max_al_extents()));
    let (mut meta, format) = Metadata::create(layout, 5, NodeId(0));
    let mut disk = MemDisk::default();
    disk.run_all(&format.write);
    let primary = Superblock {
        primary: true,
        ..meta.superblock().clone()
    };
    disk.run_all(&meta.plan(&MetaOp::Superblock(Box::new(primary))).unwrap());
    disk.run_all(&meta.plan(&log_op(&[1, 7000])).unwrap());
    disk.flip(layout.ring_offset(2), 77);
    let found = recover(&mut disk, &medium(LARGE)).unwrap();
    let dirty = |r: &Recovered| -> u64 {
        r.image
            .bitmap
            .iter()
            .map(|w| u64::from(w.count_ones()))
            .sum()
    };
    assert_eq!((found.image.log.len(), dirty(&found)), (0, layout.bits()));
    let clean = MetaOp::Bitmap {
        slot: 0,
        pages: vec![(0, vec![0; 4096].into_boxed_slice())],
    };
    for ops in [vec![log_op(&[3])], vec![log_op(&[3]), clean]] {
        let mut meta = found.metadata.clone();
        let steps: Vec<Step> = ops.iter().flat_map(|op| meta.plan(op).unwrap()).collect();
        for cut in 0..=steps.len() {
            let mut disk = disk.clone();
            disk.run_all(&steps[..cut]);
            disk.crash(|| true);
            let found = recover(&mut disk, &medium(LARGE)).unwrap();
            // The page counts as written when the last superblock write is on disk.
            let cleaned = ops.len() == 2 && cut + 1 >= steps.len();
            let expected = layout.bits() - if cleaned { 32768 } else { 0 };
            assert_eq!(dirty(&found), expected, "after {cut} of {steps:?}");
        }
    }
}

/// Makes the image of the fixture: every kind of operation, on the smallest device.
fn fixture() -> (MemDisk, u64) {
    let device = 14 * 4096 + 512;
    let layout = Layout::internal(device, 1, 512).unwrap();
    let (mut meta, format) = Metadata::create(layout, 0x0102_0304_0506_0708, NodeId(3));
    let mut disk = MemDisk::default();
    disk.run_all(&format.write);
    let state = Superblock {
        node: NodeId(3),
        agreed_size: 4096,
        current: Generation(0x1111),
        history: vec![Generation(0x2222), Generation(0x3333)],
        term: Term {
            counter: 7,
            node: NodeId(2),
            random: 99,
        },
        primary: true,
        inconsistent: false,
        outdated: true,
        unflushed: true,
        unflushed_boot: 0x4444,
        peers: vec![PeerRecord {
            known: true,
            base: Generation(0x5555),
            outdated: true,
            want_full: false,
            session: Session(0x6666),
            session_pending: Session(0x7777),
        }],
    };
    let mut page = vec![0; 4096].into_boxed_slice();
    page[0] = 0b101;
    let ops = [
        MetaOp::Superblock(Box::new(state)),
        log_op(&[0, FREE, 0]),
        log_op(&[FREE, 0]),
        MetaOp::Bitmap {
            slot: 0,
            pages: vec![(0, page)],
        },
    ];
    for op in &ops {
        disk.run_all(&meta.plan(op).unwrap());
    }
    (disk, device)
}

/// Metadata of version 1 as written by the first release still opens, and is still written.
#[test]
fn version_1_is_stable() {
    const IMAGE: &[u8] = include_bytes!("fixtures/v1-internal.img");
    let (made, device) = fixture();
    let made: Vec<u8> = (0..14).flat_map(|b| made.block(b * 4096)).collect();
    assert!(made == IMAGE, "the encoders no longer write version 1");
    let mut disk = MemDisk::default();
    disk.put(0, IMAGE);
    let found = recover(&mut disk, &medium(device)).unwrap();
    assert_eq!(found.damage, Damage::default());
    let s = &found.image.superblock;
    assert_eq!(
        (s.node, s.agreed_size, s.current),
        (NodeId(3), 4096, Generation(0x1111))
    );
    assert_eq!(s.history, [Generation(0x2222), Generation(0x3333)]);
    assert_eq!(
        s.term,
        Term {
            counter: 7,
            node: NodeId(2),
            random: 99
        }
    );
    assert!(s.primary && !s.inconsistent && s.outdated && s.unflushed);
    assert_eq!(s.peers[0].session_pending, Session(0x7777));
    assert_eq!(found.image.log, [FREE, 0]);
    assert_eq!(found.image.bitmap, [0b101]);
}
