//! A simulated disk.
//!
//! Data sectors hold a 64-bit stamp (the identity of the write that put it there) instead of 512
//! bytes, in sparse pages, so that a volume costs little; the metadata area holds real bytes,
//! because the store's encoders write it and its recovery reads it.
//!
//! Life of a write: submitted -> in flight -> completed. A completed write is seen by reads at
//! once. With a volatile cache it is *stable* (survives power loss) only after a flush that was
//! submitted after its completion, or when it carried FUA. Power loss keeps a random part of what
//! was in flight or cached, torn at sectors. The death of the process that submitted a write
//! changes nothing for the write: it still lands, and until then the disk is busy.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use lockstep::engine::Digest;

use crate::rng::{Rng, mix};

/// Bytes per sector, the unit of tearing.
pub const SECTOR: u64 = 512;
/// What a zeroed sector holds.
pub const ZERO: u64 = 0;
/// Sectors per sparse page.
const PAGE: usize = 256;
/// In a cached write: this sector was overtaken by a later stable write.
const SUPERSEDED: u64 = u64::MAX;

/// A sparse array of stamps.
#[derive(Clone)]
pub struct Pages {
    fill: u64,
    pages: Vec<Option<Box<[u64; PAGE]>>>,
    sectors: u64,
}

impl Pages {
    /// `sectors` sectors that all hold `fill`.
    pub fn new(sectors: u64, fill: u64) -> Pages {
        Pages {
            fill,
            pages: vec![None; sectors.div_ceil(PAGE as u64) as usize],
            sectors,
        }
    }

    pub fn get(&self, sector: u64) -> u64 {
        let (page, at) = (sector as usize / PAGE, sector as usize % PAGE);
        self.pages[page].as_ref().map_or(self.fill, |p| p[at])
    }

    pub fn set(&mut self, sector: u64, stamp: u64) {
        let (page, at) = (sector as usize / PAGE, sector as usize % PAGE);
        let fill = self.fill;
        self.pages[page].get_or_insert_with(|| Box::new([fill; PAGE]))[at] = stamp;
    }

    pub fn write(&mut self, start: u64, stamps: &[u64]) {
        let mut done = 0;
        while done < stamps.len() {
            let sector = start as usize + done;
            let (page, at) = (sector / PAGE, sector % PAGE);
            let n = (PAGE - at).min(stamps.len() - done);
            let fill = self.fill;
            let target = self.pages[page].get_or_insert_with(|| Box::new([fill; PAGE]));
            target[at..at + n].copy_from_slice(&stamps[done..done + n]);
            done += n;
        }
    }

    pub fn read(&self, start: u64, count: u64) -> Vec<u64> {
        let mut out = Vec::with_capacity(count as usize);
        let mut sector = start as usize;
        let end = (start + count) as usize;
        while sector < end {
            let (page, at) = (sector / PAGE, sector % PAGE);
            let n = (PAGE - at).min(end - sector);
            match &self.pages[page] {
                Some(p) => out.extend_from_slice(&p[at..at + n]),
                None => out.resize(out.len() + n, self.fill),
            }
            sector += n;
        }
        out
    }

    /// Sectors whose stamps differ, ascending.
    pub fn difference(&self, other: &Pages) -> Vec<u64> {
        let mut out = Vec::new();
        for (index, (a, b)) in self.pages.iter().zip(&other.pages).enumerate() {
            if a.is_none() && b.is_none() && self.fill == other.fill {
                continue;
            }
            if let (Some(a), Some(b)) = (a, b)
                && a == b
            {
                continue;
            }
            for at in 0..PAGE {
                let left = a.as_ref().map_or(self.fill, |p| p[at]);
                let right = b.as_ref().map_or(other.fill, |p| p[at]);
                let sector = (index * PAGE + at) as u64;
                if left != right && sector < self.sectors {
                    out.push(sector);
                }
            }
        }
        out
    }
}

/// Stand-in for a hash of the stamps: 256 bits; that of CRC32C has so few that collisions happen.
pub fn hash(digest: Digest, stamps: &[u64]) -> [u8; 32] {
    let mut out = strong_hash(stamps);
    if digest == Digest::Crc32c {
        out[1..].fill(0);
        out[0] &= 7;
    }
    out
}

fn strong_hash(stamps: &[u64]) -> [u8; 32] {
    let mut lanes = [stamps.len() as u64, 1, 2, 3];
    for stamp in stamps {
        let h = mix(lanes[0] ^ stamp);
        lanes = [
            lanes[1] ^ h,
            mix(lanes[2].wrapping_add(*stamp)),
            lanes[3] ^ h.rotate_left(17),
            h.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        ];
    }
    let mut out = [0; 32];
    for (chunk, lane) in out.chunks_exact_mut(8).zip(lanes) {
        chunk.copy_from_slice(&mix(lane).to_le_bytes());
    }
    out
}

/// An operation in flight, numbered per disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// What is written where.
#[derive(Clone, Debug)]
enum Payload {
    /// First sector and one stamp per sector.
    Data(u64, Vec<u64>),
    /// Byte offset in the metadata area, and bytes.
    Meta(u64, Vec<u8>),
}

impl Payload {
    fn is_meta(&self) -> bool {
        matches!(self, Payload::Meta(..))
    }

    /// Whether both are metadata blocks that begin with the same magic.
    fn like(&self, other: &Payload) -> bool {
        match (self, other) {
            (Payload::Meta(_, a), Payload::Meta(_, b)) => a.get(..4) == b.get(..4),
            _ => false,
        }
    }
}

/// A disk operation. Data ranges are in sectors, metadata offsets in bytes.
#[derive(Clone, Debug)]
pub enum DiskOp {
    Read {
        start: u64,
        count: u64,
    },
    Write {
        start: u64,
        stamps: Vec<u64>,
        fua: bool,
    },
    MetaWrite {
        offset: u64,
        bytes: Vec<u8>,
    },
    Flush,
}

/// What goes wrong with an operation, decided when it is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    None,
    /// Fails with this errno; a failed write leaves a random part of itself.
    Error(i32),
    /// Completes, nothing is written.
    Lost,
    /// Completes, but went to this sector (data) or byte offset (metadata) instead.
    Misdirected(u64),
}

struct InFlight {
    op: DiskOp,
    fault: DiskFault,
    /// Completion count at submission: what a flush covers.
    after: u64,
}

struct Cached {
    completed: u64,
    payload: Payload,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskResult {
    Done,
    Data(Vec<u64>),
    Failed(i32),
}

/// Errno of a medium error.
pub const EIO: i32 = 5;
/// Errno of a full disk (a sparse file without room).
pub const ENOSPC: i32 = 28;

/// One disk with its metadata area.
pub struct Disk {
    view: Pages,
    stable: Pages,
    meta_view: Vec<u8>,
    meta_stable: Vec<u8>,
    cached: Vec<Cached>,
    flight: BTreeMap<OpId, InFlight>,
    next: u64,
    completions: u64,
    /// Completed writes are lost at power loss until flushed.
    pub volatile: bool,
    /// Sectors that cannot be read until they are written again.
    unreadable: BTreeSet<u64>,
    /// The last metadata write, if the disk has dropped it or put it elsewhere.
    unnoticed: Option<Payload>,
}

impl Disk {
    /// A disk whose data sectors all hold `fill`, with an empty metadata area.
    pub fn new(sectors: u64, meta_bytes: u64, fill: u64, volatile: bool) -> Disk {
        Disk {
            view: Pages::new(sectors, fill),
            stable: Pages::new(sectors, fill),
            meta_view: vec![0; meta_bytes as usize],
            meta_stable: vec![0; meta_bytes as usize],
            cached: Vec::new(),
            flight: BTreeMap::new(),
            next: 0,
            completions: 0,
            volatile,
            unreadable: BTreeSet::new(),
            unnoticed: None,
        }
    }

    pub fn sectors(&self) -> u64 {
        self.view.sectors
    }

    /// What reads see.
    pub fn view(&self) -> &Pages {
        &self.view
    }

    /// What certainly survives power loss.
    pub fn stable(&self) -> &Pages {
        &self.stable
    }

    /// The metadata area as the next process would find it.
    pub fn meta(&self) -> Cow<'_, [u8]> {
        let mut area = Cow::Borrowed(&self.meta_view[..]);
        if let Some(Payload::Meta(offset, bytes)) = &self.unnoticed {
            write_bytes(area.to_mut(), *offset, bytes);
        }
        area
    }

    /// Operations of any process still in flight: while there are, nobody else can open the disk.
    pub fn busy(&self) -> bool {
        !self.flight.is_empty()
    }

    /// Puts bytes into the metadata area before the run starts.
    pub fn format(&mut self, offset: u64, bytes: &[u8]) {
        write_bytes(&mut self.meta_view, offset, bytes);
        write_bytes(&mut self.meta_stable, offset, bytes);
    }

    /// Makes a range unreadable until it is overwritten.
    pub fn damage(&mut self, start: u64, count: u64) {
        self.unreadable.extend(start..start + count);
    }

    /// Drops every medium error (the faults have stopped).
    pub fn repair(&mut self) {
        self.unreadable.clear();
    }

    pub fn submit(&mut self, op: DiskOp, fault: DiskFault) -> OpId {
        self.next += 1;
        let id = OpId(self.next);
        let after = self.completions;
        self.flight.insert(id, InFlight { op, fault, after });
        id
    }

    /// Ends an operation; `None` when power loss has ended it before.
    pub fn complete(&mut self, id: OpId, rng: &mut Rng) -> Option<DiskResult> {
        let InFlight { op, fault, after } = self.flight.remove(&id)?;
        let (mut payload, fua) = match op {
            DiskOp::Read { start, count } => return Some(self.read(start, count, fault)),
            DiskOp::Flush => {
                if let DiskFault::Error(errno) = fault {
                    return Some(DiskResult::Failed(errno));
                }
                self.flush(after);
                return Some(DiskResult::Done);
            }
            DiskOp::Write { start, stamps, fua } => (Payload::Data(start, stamps), fua),
            DiskOp::MetaWrite { offset, bytes } => (Payload::Meta(offset, bytes), false),
        };
        self.completions += 1;
        match fault {
            DiskFault::Error(errno) => {
                let torn = tear(payload, rng);
                self.apply(torn, false);
                return Some(DiskResult::Failed(errno));
            }
            DiskFault::Lost => {
                self.unnoticed = Some(payload).filter(Payload::is_meta);
                return Some(DiskResult::Done);
            }
            DiskFault::Misdirected(to) => {
                self.unnoticed = Some(payload.clone()).filter(Payload::is_meta);
                match &mut payload {
                    Payload::Data(start, _) => *start = to,
                    Payload::Meta(offset, _) => *offset = to,
                }
            }
            // A later block of the same kind shows the gap.
            DiskFault::None => self.unnoticed = self.unnoticed.take().filter(|u| !u.like(&payload)),
        }
        self.apply(vec![payload], fua || !self.volatile);
        Some(DiskResult::Done)
    }

    fn read(&mut self, start: u64, count: u64, fault: DiskFault) -> DiskResult {
        if let DiskFault::Error(errno) = fault {
            return DiskResult::Failed(errno);
        }
        if self.unreadable.range(start..start + count).next().is_some() {
            return DiskResult::Failed(EIO);
        }
        DiskResult::Data(self.view.read(start, count))
    }

    fn apply(&mut self, payloads: Vec<Payload>, stable: bool) {
        for payload in payloads {
            match &payload {
                Payload::Data(start, stamps) => {
                    self.view.write(*start, stamps);
                    for sector in *start..*start + stamps.len() as u64 {
                        if self.unreadable.is_empty() {
                            break;
                        }
                        self.unreadable.remove(&sector);
                    }
                }
                Payload::Meta(offset, bytes) => write_bytes(&mut self.meta_view, *offset, bytes),
            }
            if stable {
                self.supersede(&payload);
                self.settle(&payload);
            } else {
                self.cached.push(Cached {
                    completed: self.completions,
                    payload,
                });
            }
        }
    }

    /// A stable write takes the place of what the cache held for its sectors.
    fn supersede(&mut self, newer: &Payload) {
        for cached in &mut self.cached {
            match (&mut cached.payload, newer) {
                (Payload::Data(start, stamps), Payload::Data(from, new)) => {
                    let first = (*start).max(*from);
                    let end = (*start + stamps.len() as u64).min(from + new.len() as u64);
                    for sector in first..end {
                        stamps[(sector - *start) as usize] = SUPERSEDED;
                    }
                }
                (Payload::Meta(at, bytes), Payload::Meta(from, new)) => {
                    let first = (*at).max(*from);
                    let end = (*at + bytes.len() as u64).min(from + new.len() as u64);
                    for byte in first..end {
                        bytes[(byte - *at) as usize] = new[(byte - from) as usize];
                    }
                }
                _ => {}
            }
        }
    }

    fn settle(&mut self, payload: &Payload) {
        match payload {
            Payload::Data(start, stamps) => {
                for (sector, stamp) in (*start..).zip(stamps) {
                    if *stamp != SUPERSEDED {
                        self.stable.set(sector, *stamp);
                    }
                }
            }
            Payload::Meta(offset, bytes) => write_bytes(&mut self.meta_stable, *offset, bytes),
        }
    }

    /// Makes durable what the cache holds of the metadata.
    pub fn settle_meta(&mut self) {
        for entry in std::mem::take(&mut self.cached) {
            match entry.payload {
                Payload::Meta(..) => self.settle(&entry.payload),
                Payload::Data(..) => self.cached.push(entry),
            }
        }
    }

    fn flush(&mut self, covered: u64) {
        let cached = std::mem::take(&mut self.cached);
        for entry in cached {
            if entry.completed <= covered {
                self.settle(&entry.payload);
            } else {
                self.cached.push(entry);
            }
        }
    }

    /// A disk that loses the very last metadata write before a crash, or puts it where it shows
    /// nothing of its kind to be missing, cannot be told from one that was never asked: no format
    /// on that disk alone survives it. So a write is missing only when a later one lands; what a
    /// misplaced one has overwritten stays overwritten.
    pub fn land_unnoticed(&mut self) {
        if let Some(payload) = self.unnoticed.take() {
            self.apply(vec![payload], true);
        }
    }

    /// The machine loses power: the cache and what was in flight survive in part.
    pub fn power_loss(&mut self, rng: &mut Rng) {
        self.land_unnoticed();
        let cached = std::mem::take(&mut self.cached);
        let flight = std::mem::take(&mut self.flight);
        let keep = rng.below(5) as u32 * 250;
        for entry in cached {
            self.lose(entry.payload, keep, rng);
        }
        for (_, InFlight { op, .. }) in flight {
            match op {
                DiskOp::Write { start, stamps, .. } => {
                    self.lose(Payload::Data(start, stamps), keep, rng);
                }
                DiskOp::MetaWrite { offset, bytes } => {
                    self.lose(Payload::Meta(offset, bytes), keep, rng);
                }
                DiskOp::Read { .. } | DiskOp::Flush => {}
            }
        }
        self.view = self.stable.clone();
        self.meta_view.clone_from(&self.meta_stable);
    }

    fn lose(&mut self, payload: Payload, keep: u32, rng: &mut Rng) {
        if rng.chance(keep) {
            self.settle(&payload);
        } else if rng.chance(200) {
            for part in tear(payload, rng) {
                self.settle(&part);
            }
        }
    }
}

/// A random part of a write, cut at sectors.
fn tear(payload: Payload, rng: &mut Rng) -> Vec<Payload> {
    let mut parts = Vec::new();
    match payload {
        Payload::Data(start, stamps) => {
            for (sector, stamp) in (start..).zip(stamps) {
                if rng.chance(500) {
                    parts.push(Payload::Data(sector, vec![stamp]));
                }
            }
        }
        Payload::Meta(offset, bytes) => {
            for (index, part) in bytes.chunks(SECTOR as usize).enumerate() {
                if rng.chance(500) {
                    parts.push(Payload::Meta(offset + index as u64 * SECTOR, part.to_vec()));
                }
            }
        }
    }
    parts
}

fn write_bytes(area: &mut [u8], offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    area[start..start + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &mut Disk, start: u64, stamps: &[u64], fua: bool, rng: &mut Rng) {
        let op = DiskOp::Write {
            start,
            stamps: stamps.to_vec(),
            fua,
        };
        let id = disk.submit(op, DiskFault::None);
        assert_eq!(disk.complete(id, rng), Some(DiskResult::Done));
    }

    fn flush(disk: &mut Disk, rng: &mut Rng) {
        let id = disk.submit(DiskOp::Flush, DiskFault::None);
        assert_eq!(disk.complete(id, rng), Some(DiskResult::Done));
    }

    #[test]
    fn flushed_and_fua_writes_survive_every_power_loss() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(64, 4096, 1, true);
            write(&mut disk, 0, &[10; 8], false, &mut rng);
            flush(&mut disk, &mut rng);
            write(&mut disk, 8, &[11; 8], true, &mut rng);
            write(&mut disk, 8, &[12; 4], false, &mut rng);
            disk.power_loss(&mut rng);
            assert_eq!(disk.view().read(0, 8), vec![10; 8]);
            assert!(disk.view().read(8, 4).iter().all(|s| [11, 12].contains(s)));
            assert_eq!(disk.view().read(12, 4), vec![11; 4]);
        }
    }

    #[test]
    fn unflushed_writes_are_lost_kept_or_torn() {
        let mut seen = [false; 3];
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(64, 4096, 1, true);
            write(&mut disk, 0, &[10; 8], false, &mut rng);
            disk.power_loss(&mut rng);
            let kept = disk.view().read(0, 8).iter().filter(|s| **s == 10).count();
            seen[match kept {
                0 => 0,
                8 => 1,
                _ => 2,
            }] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn an_older_cached_write_never_overtakes_a_stable_one() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(64, 4096, 1, true);
            write(&mut disk, 0, &[10; 8], false, &mut rng);
            write(&mut disk, 4, &[11; 4], true, &mut rng);
            disk.power_loss(&mut rng);
            assert_eq!(disk.view().read(4, 4), vec![11; 4]);
        }
    }

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_submitted() {
        let mut rng = Rng::new(3);
        let mut disk = Disk::new(64, 4096, 1, true);
        let id = disk.submit(DiskOp::Flush, DiskFault::None);
        write(&mut disk, 0, &[10; 8], false, &mut rng);
        disk.complete(id, &mut rng);
        assert_eq!(disk.stable().get(0), 1);
        assert_eq!(disk.view().get(0), 10);
    }

    #[test]
    fn in_flight_writes_keep_the_disk_busy_and_land_later() {
        let mut rng = Rng::new(3);
        let mut disk = Disk::new(64, 4096, 1, false);
        let op = DiskOp::Write {
            start: 3,
            stamps: vec![9],
            fua: false,
        };
        let id = disk.submit(op, DiskFault::None);
        assert!(disk.busy() && disk.view().get(3) == 1);
        disk.complete(id, &mut rng);
        assert!(!disk.busy() && disk.stable().get(3) == 9);
        assert_eq!(disk.complete(id, &mut rng), None);
    }

    #[test]
    fn faults_do_what_they_say() {
        let mut rng = Rng::new(3);
        let mut disk = Disk::new(64, 4096, 1, false);
        let op = |start| DiskOp::Write {
            start,
            stamps: vec![9; 8],
            fua: false,
        };
        let id = disk.submit(op(0), DiskFault::Lost);
        assert_eq!(disk.complete(id, &mut rng), Some(DiskResult::Done));
        assert_eq!(disk.view().get(0), 1);
        let id = disk.submit(op(0), DiskFault::Misdirected(16));
        assert_eq!(disk.complete(id, &mut rng), Some(DiskResult::Done));
        assert_eq!((disk.view().get(0), disk.view().get(16)), (1, 9));
        let id = disk.submit(op(0), DiskFault::Error(ENOSPC));
        assert_eq!(
            disk.complete(id, &mut rng),
            Some(DiskResult::Failed(ENOSPC))
        );
        disk.damage(40, 1);
        let read = DiskOp::Read {
            start: 36,
            count: 8,
        };
        let id = disk.submit(read.clone(), DiskFault::None);
        assert_eq!(disk.complete(id, &mut rng), Some(DiskResult::Failed(EIO)));
        write(&mut disk, 40, &[5], false, &mut rng);
        let id = disk.submit(read, DiskFault::None);
        assert!(matches!(
            disk.complete(id, &mut rng),
            Some(DiskResult::Data(_))
        ));
    }

    #[test]
    fn a_lost_or_misplaced_metadata_write_is_missing_once_a_later_one_lands() {
        let mut rng = Rng::new(3);
        for fault in [DiskFault::Lost, DiskFault::Misdirected(8192)] {
            for (later, missing) in [
                (None, false),
                (Some(*b"logs"), true),
                (Some(*b"supr"), false),
            ] {
                let mut disk = Disk::new(64, 16384, 1, false);
                let mut meta = |offset, magic: [u8; 4], fault| {
                    let bytes = [magic.to_vec(), vec![7; 508]].concat();
                    let id = disk.submit(DiskOp::MetaWrite { offset, bytes }, fault);
                    assert_eq!(disk.complete(id, &mut rng), Some(DiskResult::Done));
                };
                meta(4096, *b"logs", fault);
                if let Some(magic) = later {
                    meta(0, magic, DiskFault::None);
                }
                disk.land_unnoticed();
                assert_eq!(disk.meta()[4096] == 0, missing, "{fault:?} {later:?}");
                assert_eq!(disk.meta()[8192] == 0, fault == DiskFault::Lost);
            }
        }
    }

    #[test]
    fn differences_and_hashes_see_every_sector() {
        let (mut a, b) = (Pages::new(1000, 1), Pages::new(1000, 1));
        assert!(a.difference(&b).is_empty());
        a.set(999, 2);
        a.set(256, 1);
        assert_eq!(a.difference(&b), vec![999]);
        assert_eq!(
            Pages::new(3, 1).difference(&Pages::new(3, 2)),
            vec![0, 1, 2]
        );
        assert_ne!(strong_hash(&[1, 2]), strong_hash(&[2, 1]));
        assert_ne!(strong_hash(&[1]), strong_hash(&[1, 0]));
        assert_eq!(strong_hash(&[4, 5]), strong_hash(&[4, 5]));
    }
}
