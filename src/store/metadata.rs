//! The planner: turns the engine's metadata operations into block writes and flushes.
//!
//! Pure and stateful, one per attached volume. It owns the in-memory picture of the metadata (the
//! superblock last written, the slot table, the page sums) from recovery until detach; the driver
//! owns the steps from [`Metadata::plan`] until it has carried them out, one after the other.
//!
//! Whatever subset of a plan's writes is on disk after a crash, torn at any sector, recovery
//! finds the state before or after the operation (FORMAT.md has the argument).

use thiserror::Error;

use super::bitmap::{Flux, Grouping, MAX_GROUPS, Sums, mark, marked};
use super::layout::{BLOCK, Layout};
use super::log::{self, BLOCKS, MAX_SLOTS};
use super::superblock::{self, Contents, MAX_HISTORY};
use crate::engine::{BITMAP_PAGE_BYTES, LogTransaction, MetaOp, NodeId, Superblock};

/// One thing for the driver to do on the metadata device.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// `offset` and length are multiples of 4096 bytes.
    Write { offset: u64, bytes: Vec<u8> },
    /// Everything written before is durable afterwards.
    Flush,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Write { offset, bytes } => write!(f, "Write({offset}+{})", bytes.len()),
            Step::Flush => f.write_str("Flush"),
        }
    }
}

/// Why an operation cannot be carried out. Nothing was written and nothing has changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("an earlier metadata operation failed; the disk must be detached")]
    Failed,
    #[error("{0} history generations; there is room for {MAX_HISTORY}")]
    History(usize),
    #[error("{peers} peer records; the metadata has room for {room}")]
    Peers { peers: usize, room: u8 },
    #[error("bitmap slot {slot}; the metadata has room for {room}")]
    Slot { slot: u8, room: u8 },
    #[error("bitmap page {page} of {bytes} bytes; there are {pages} pages of {BITMAP_PAGE_BYTES}")]
    Page { page: u32, bytes: usize, pages: u32 },
    #[error("an activity log of {0} slots; the log ring describes {MAX_SLOTS}")]
    LogSlots(usize),
}

/// Which copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    Primary,
    Second,
}

impl Copy {
    fn other(self) -> Copy {
        match self {
            Copy::Primary => Copy::Second,
            Copy::Second => Copy::Primary,
        }
    }

    /// Where this copy lies.
    pub fn offset(self, layout: &Layout) -> u64 {
        match self {
            Copy::Primary => layout.super_offset(),
            Copy::Second => layout.second_offset(),
        }
    }
}

/// What the planner knows about the log ring.
#[derive(Clone, Debug)]
pub(super) struct LogState {
    /// Newest transaction; when `proven` is false the highest number that was seen.
    pub number: u64,
    pub table: Vec<u32>,
    /// The ring proves `table`. Otherwise the next transaction rewrites the whole ring.
    pub proven: bool,
}

/// The metadata of one attached volume.
#[derive(Clone, Debug)]
pub struct Metadata {
    pub(super) layout: Layout,
    pub(super) id: u64,
    pub(super) sequence: u64,
    pub(super) superblock: Superblock,
    /// The copy that must survive: the other one is always written first.
    pub(super) trusted: Copy,
    pub(super) sums: Sums,
    /// Groups found damaged at recovery. They are never marked as in flux: a crash must leave
    /// their sums wrong, because the pages that were not written again are still bad.
    pub(super) unsound: Flux,
    pub(super) log: LogState,
    pub(super) failed: bool,
}

/// How to write fresh metadata: `wipe`, then make `zero` read as zeroes, then `write`.
#[derive(Clone, Debug)]
pub struct Format {
    /// Makes older superblocks invalid, so that a crash leaves no metadata rather than a mixture.
    pub wipe: Vec<Step>,
    /// The bitmap.
    pub zero: std::ops::Range<u64>,
    pub write: Vec<Step>,
}

impl Metadata {
    /// Fresh metadata: no data yet, an empty log, an all-zero bitmap. `id` must be random.
    pub fn create(layout: Layout, id: u64, node: NodeId) -> (Metadata, Format) {
        let superblock = Superblock::fresh(node, usize::from(layout.max_peers()));
        Metadata::create_with(layout, id, superblock)
    }

    /// As [`Metadata::create`], with the state given.
    pub fn create_with(layout: Layout, id: u64, superblock: Superblock) -> (Metadata, Format) {
        let blank = |copy: Copy| Step::Write {
            offset: copy.offset(&layout),
            bytes: vec![0; BLOCK as usize],
        };
        let wipe = vec![blank(Copy::Second), blank(Copy::Primary), Step::Flush];
        let sums = Sums::zero(Grouping::new(&layout));
        let sound = [0; MAX_GROUPS / 8];
        let (meta, write) = Metadata::create_around(layout, id, superblock, sums, sound);
        let zero = layout.bitmap_range();
        (meta, Format { wipe, zero, write })
    }

    /// Around a bitmap with these sums: the steps write the ring, then the superblocks, the
    /// primary one last.
    pub(super) fn create_around(
        layout: Layout,
        id: u64,
        superblock: Superblock,
        sums: Sums,
        unsound: Flux,
    ) -> (Metadata, Vec<Step>) {
        let mut meta = Metadata {
            layout,
            id,
            sequence: 0,
            superblock,
            trusted: Copy::Primary,
            sums,
            unsound,
            log: LogState {
                number: 0,
                table: Vec::new(),
                proven: false,
            },
            failed: false,
        };
        let mut write = Vec::new();
        meta.rewrite_ring(vec![LogTransaction::FREE; MAX_SLOTS], &mut write);
        meta.write_superblocks(&mut write);
        (meta, write)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The superblock as of the last planned operation.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The steps that make `op` durable. The driver carries them out in order, each one only
    /// after the one before has completed, reports the operation done after the last, and plans
    /// the next operation of the volume only then. An empty plan is done at once.
    pub fn plan(&mut self, op: &MetaOp) -> Result<Vec<Step>, PlanError> {
        if self.failed {
            return Err(PlanError::Failed);
        }
        let mut steps = Vec::new();
        match op {
            MetaOp::Superblock(superblock) => {
                self.check_superblock(superblock)?;
                self.superblock = (**superblock).clone();
                self.write_superblocks(&mut steps);
            }
            MetaOp::Log(transaction) => self.plan_log(&transaction.table, &mut steps)?,
            MetaOp::Bitmap { slot, pages } => self.plan_bitmap(*slot, pages, &mut steps)?,
        }
        Ok(steps)
    }

    /// A step of the last plan failed: the disk holds the state before or after the operation,
    /// and nobody knows which. Every further plan is refused, so that no later write can build on
    /// either; the driver reports the failure, the engine detaches, and an attach recovers.
    pub fn failed(&mut self) {
        self.failed = true;
    }

    fn check_superblock(&self, s: &Superblock) -> Result<(), PlanError> {
        let room = self.layout.max_peers();
        if s.history.len() > MAX_HISTORY {
            return Err(PlanError::History(s.history.len()));
        }
        if s.peers.len() > usize::from(room) {
            let peers = s.peers.len();
            return Err(PlanError::Peers { peers, room });
        }
        Ok(())
    }

    /// Both copies, the trusted one last.
    fn write_superblocks(&mut self, steps: &mut Vec<Step>) {
        let flux = [0; MAX_GROUPS / 8];
        self.sequence += 1;
        steps.push(self.copy_step(self.trusted.other(), flux));
        steps.push(Step::Flush);
        steps.push(self.copy_step(self.trusted, flux));
        steps.push(Step::Flush);
    }

    fn copy_step(&self, copy: Copy, flux: Flux) -> Step {
        let offset = copy.offset(&self.layout);
        let contents = Contents {
            sequence: self.sequence,
            id: self.id,
            layout: self.layout,
            log_number: if self.log.proven { self.log.number } else { 0 },
            superblock: self.superblock.clone(),
            flux,
            sums: self.sums.groups().to_vec(),
        };
        Step::Write {
            offset,
            bytes: superblock::encode(&contents, offset),
        }
    }

    /// Writes what differs between the table on disk and `table`; the operation's own list of
    /// changes is the engine's view of the same and is not needed. More changes than fit one
    /// block take several, each complete before the next.
    fn plan_log(&mut self, table: &[u32], steps: &mut Vec<Step>) -> Result<(), PlanError> {
        if table.len() > MAX_SLOTS {
            return Err(PlanError::LogSlots(table.len()));
        }
        if !self.log.proven {
            // The sums first: they may be what says that everything is dirty.
            self.write_superblocks(steps);
            let mut whole = vec![LogTransaction::FREE; MAX_SLOTS];
            whole[..table.len()].copy_from_slice(table);
            self.rewrite_ring(whole, steps);
            return Ok(());
        }
        let changes = log::diff(&self.log.table, table);
        for part in changes.chunks(LogTransaction::MAX_CHANGES) {
            for c in part {
                self.log.table[usize::from(c.slot)] = c.extent;
            }
            self.log.number += 1;
            let (number, table) = (self.log.number, &self.log.table);
            let offset = self.layout.ring_offset((number % BLOCKS as u64) as usize);
            let bytes = log::encode(self.id, offset, number, part, table);
            steps.push(Step::Write { offset, bytes });
            steps.push(Step::Flush);
        }
        Ok(())
    }

    /// Seven transactions without changes. Their numbers are not next to any that may still lie
    /// in the ring, so a crash before the last one leaves a ring that proves nothing.
    fn rewrite_ring(&mut self, table: Vec<u32>, steps: &mut Vec<Step>) {
        let first = self.log.number + BLOCKS as u64 + 1;
        for number in first..first + BLOCKS as u64 {
            let offset = self.layout.ring_offset((number % BLOCKS as u64) as usize);
            let bytes = log::encode(self.id, offset, number, &[], &table);
            steps.push(Step::Write { offset, bytes });
        }
        steps.push(Step::Flush);
        self.log = LogState {
            number: first + BLOCKS as u64 - 1,
            table,
            proven: true,
        };
    }

    /// The less trusted copy with the groups marked as in flux, the pages, the trusted copy with
    /// the new sums. Both copies say the same about everything but the sums, so that losing
    /// either costs nothing.
    fn plan_bitmap(
        &mut self,
        slot: u8,
        pages: &[(u32, Box<[u8]>)],
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanError> {
        let room = self.layout.max_peers();
        if slot >= room {
            return Err(PlanError::Slot { slot, room });
        }
        let count = self.layout.pages();
        let bad =
            |(page, bytes): &&(u32, Box<[u8]>)| *page >= count || bytes.len() != BITMAP_PAGE_BYTES;
        if let Some((page, bytes)) = pages.iter().find(bad) {
            return Err(PlanError::Page {
                page: *page,
                bytes: bytes.len(),
                pages: count,
            });
        }
        if pages.is_empty() {
            return Ok(());
        }
        let mut flux = [0; MAX_GROUPS / 8];
        for (page, _) in pages {
            let group = self.sums.grouping().group_of(slot, *page);
            if !marked(&self.unsound, group) {
                mark(&mut flux, group);
            }
        }
        self.sequence += 1;
        steps.push(self.copy_step(self.trusted.other(), flux));
        steps.push(Step::Flush);
        self.write_pages(slot, pages, steps);
        steps.push(Step::Flush);
        self.sequence += 1;
        steps.push(self.copy_step(self.trusted, [0; MAX_GROUPS / 8]));
        steps.push(Step::Flush);
        Ok(())
    }

    /// Pages in the order given; neighbours share a write of at most 1 MiB.
    fn write_pages(&mut self, slot: u8, pages: &[(u32, Box<[u8]>)], steps: &mut Vec<Step>) {
        const MAX_WRITE: usize = 1 << 20;
        let start = self.layout.slot_offset(slot);
        for (page, content) in pages {
            self.sums.set(slot, *page, content);
            let at = start + u64::from(*page) * BITMAP_PAGE_BYTES as u64;
            match steps.last_mut() {
                Some(Step::Write { offset, bytes })
                    if *offset + bytes.len() as u64 == at && bytes.len() < MAX_WRITE =>
                {
                    bytes.extend_from_slice(content);
                }
                _ => steps.push(Step::Write {
                    offset: at,
                    bytes: content.to_vec(),
                }),
            }
        }
    }
}
