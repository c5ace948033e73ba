//! Keeps injected faults inside what the protocol promises to survive, so that every violation is
//! a defect.
//!
//! - Errors of data reads and writes hit one node's disk per run, and only while the other copy
//!   is up to date.
//! - A disk loses or misplaces one metadata write per run, on a superblock copy or a log block.
//! - Data writes are lost or misplaced only in runs without any other fault; they end with a
//!   comparison, which has to find them.
//! - Both nodes lose power together only once; nodes are killed a limited number of times, so
//!   that something gets done in between.

use std::collections::BTreeSet;

use crate::disk::{DiskFault, EIO, ENOSPC};
use crate::rng::Rng;

/// What may still happen in this run.
pub struct Atlas {
    rng: Rng,
    /// The only node whose disk reports errors.
    pub weak_node: usize,
    deaths_left: u32,
    blackouts_left: u32,
    /// Per node: data operations that fail next.
    failing: [u32; 2],
    /// Per node: a metadata write is to be lost or misplaced; and whether there was one.
    metadata: [bool; 2],
    metadata_done: [bool; 2],
    silent: [u32; 2],
    /// Sectors whose stored contents a silent fault has made wrong, as (volume, sector).
    pub spoiled: BTreeSet<(usize, u64)>,
    /// Factor on the disk latency of each node.
    pub slow: [u64; 2],
}

impl Atlas {
    pub fn new(mut rng: Rng) -> Atlas {
        Atlas {
            weak_node: rng.below(2) as usize,
            deaths_left: rng.range(1, 7) as u32,
            blackouts_left: 1,
            failing: [0; 2],
            metadata: [false; 2],
            metadata_done: [false; 2],
            silent: [0; 2],
            spoiled: BTreeSet::new(),
            slow: [1; 2],
            rng,
        }
    }

    /// May a process die now?
    pub fn death(&mut self) -> bool {
        let allowed = self.deaths_left > 0;
        self.deaths_left = self.deaths_left.saturating_sub(1);
        allowed
    }

    /// May both nodes lose power now?
    pub fn blackout(&mut self) -> bool {
        std::mem::take(&mut self.blackouts_left) > 0
    }

    /// The weak node's next data operations fail.
    pub fn break_disk(&mut self) -> usize {
        self.failing[self.weak_node] = self.rng.range(1, 4) as u32;
        self.weak_node
    }

    /// One metadata write of a node goes wrong, once per run.
    pub fn spoil_metadata(&mut self, node: usize) -> bool {
        let allowed = !self.metadata_done[node];
        self.metadata[node] |= allowed;
        self.metadata_done[node] = true;
        allowed
    }

    /// The next data writes of a node go wrong in silence.
    pub fn spoil_data(&mut self) -> usize {
        self.silent[self.weak_node] = self.rng.range(1, 3) as u32;
        self.weak_node
    }

    /// Faults stop.
    pub fn calm(&mut self) {
        self.failing = [0; 2];
        self.metadata = [false; 2];
        self.silent = [0; 2];
        self.slow = [1; 2];
    }

    /// The fate of a data read or write (not of zeroing, which leaves no stamp).
    pub fn data_fault(&mut self, node: usize, write: bool) -> DiskFault {
        if self.failing[node] == 0 || !self.rng.chance(500) {
            return DiskFault::None;
        }
        self.failing[node] -= 1;
        DiskFault::Error(if write && self.rng.chance(300) {
            ENOSPC
        } else {
            EIO
        })
    }

    /// The fate of a data write in a run that ends with a comparison.
    pub fn silent_fault(
        &mut self,
        node: usize,
        volume: usize,
        start: u64,
        count: u64,
        sectors: u64,
    ) -> DiskFault {
        if self.silent[node] == 0 || !self.rng.chance(300) {
            return DiskFault::None;
        }
        self.silent[node] -= 1;
        self.spoiled
            .extend((start..start + count).map(|s| (volume, s)));
        if self.rng.chance(500) {
            return DiskFault::Lost;
        }
        let to = self.rng.below(sectors - count);
        self.spoiled.extend((to..to + count).map(|s| (volume, s)));
        DiskFault::Misdirected(to)
    }

    /// The fate of a write of a superblock copy or a log block; `blocks` are the byte offsets of
    /// all of these.
    pub fn metadata_fault(&mut self, node: usize, offset: u64, blocks: &[u64]) -> DiskFault {
        if !self.metadata[node] || !blocks.contains(&offset) || !self.rng.chance(300) {
            return DiskFault::None;
        }
        self.metadata[node] = false;
        match self.rng.pick(blocks) {
            Some(to) if *to != offset && self.rng.chance(500) => DiskFault::Misdirected(*to),
            _ => DiskFault::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_only_has_data_errors() {
        let mut atlas = Atlas::new(Rng::new(2));
        let weak = atlas.break_disk();
        let failed = |atlas: &mut Atlas, node| {
            (0..200)
                .filter(|_| atlas.data_fault(node, true) != DiskFault::None)
                .count()
        };
        assert_eq!(failed(&mut atlas, 1 - weak), 0);
        assert!((1..4).contains(&failed(&mut atlas, weak)));
        atlas.break_disk();
        atlas.calm();
        assert_eq!(failed(&mut atlas, weak), 0);
    }

    #[test]
    fn a_disk_loses_one_metadata_write_per_run() {
        let mut atlas = Atlas::new(Rng::new(2));
        assert!(atlas.spoil_metadata(0) && !atlas.spoil_metadata(0));
        let hit = (0..100).filter(|_| atlas.metadata_fault(0, 0, &[0, 4096]) != DiskFault::None);
        assert_eq!(hit.count(), 1);
        assert_eq!(atlas.metadata_fault(1, 0, &[0, 4096]), DiskFault::None);
    }

    #[test]
    fn silent_faults_remember_what_they_spoiled() {
        let mut atlas = Atlas::new(Rng::new(2));
        let node = atlas.spoil_data();
        let mut hits = 0;
        for start in 0..200 {
            if atlas.silent_fault(node, 0, start, 1, 1000) != DiskFault::None {
                hits += 1;
                assert!(atlas.spoiled.contains(&(0, start)));
            }
        }
        assert!((1..3).contains(&hits));
    }
}
