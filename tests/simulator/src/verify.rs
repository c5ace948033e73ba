//! Online verify in the simulator: the operator's orders, the check that nothing is invented, and
//! the last verify of a run whose disks have lost writes without a word.

use std::collections::BTreeSet;

use lockstep::engine::{
    Command, Digest, NodeId, Notice, ReplicationState, VerifyScope, VerifyState, VolumeId,
};

use crate::disk::SECTOR;
use crate::node::Purpose;
use crate::oracle::Check;
use crate::schedule::SECOND;
use crate::world::{Happening, World};

/// Sectors of the smallest block that a verify looks at.
const LEAF: u64 = 4096 / SECTOR;

/// Whether the copies follow each other; a verify changes nothing about that.
pub fn in_step(state: ReplicationState) -> bool {
    matches!(
        state,
        ReplicationState::Established | ReplicationState::VerifyS | ReplicationState::VerifyT
    )
}

/// Whether the copy is being synced, or waits for that.
pub fn is_target(state: ReplicationState) -> bool {
    matches!(
        state,
        ReplicationState::SyncTarget | ReplicationState::PausedSyncT
    )
}

/// The last verify of a run, of one volume after the other.
#[derive(Debug, Default)]
pub struct LastVerify {
    /// The volume whose turn it is.
    volume: usize,
    /// Whether it was ordered, and by whom it is run.
    runner: Option<usize>,
    /// Blocks that differ, before the repair.
    expected: BTreeSet<u64>,
}

impl World {
    /// The operator has a volume compared, as a whole or in part, with or without a repair.
    pub fn verify(&mut self, node: usize, volume: VolumeId) {
        let size = self.plan.sectors * SECTOR;
        let part = self.rng.chance(400);
        let start = part.then(|| self.rng.below(size));
        let repair = self.rng.chance(400).then(|| self.rng.below(2) as u8);
        self.order(node, volume, start, repair);
    }

    fn order(&mut self, node: usize, volume: VolumeId, start: Option<u64>, repair: Option<u8>) {
        let scope = VerifyScope {
            start,
            stop: None,
            digest: Digest::Sha256,
            repair_from: repair.map(NodeId),
        };
        self.command(node, Command::Verify { volume, scope }, Purpose::Other);
    }

    /// A verify has ended: a difference that no fault explains was invented.
    pub fn check_verify(&mut self, node: usize, notice: &Notice) {
        let Notice::VerifyDone {
            volume,
            found,
            complete,
            ..
        } = notice
        else {
            return;
        };
        if self.plan.scenario.weights.silent > 0 {
            if *complete && self.last_verify.runner == Some(node) {
                self.check_found(node, usize::from(volume.0));
            }
        } else if *found > 0 {
            let text = format!("a verify of node {node} finds differences on volume {volume}");
            self.oracle.report(4, Check::Compare, text);
        }
    }

    /// The last verify has found just what differs.
    fn check_found(&mut self, node: usize, volume: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let status = process.engine.status();
        let Some(peer) = status.connection.peer_devices.get(volume) else {
            return;
        };
        let found: BTreeSet<u64> = { peer.verify.found.iter() }
            .flat_map(|range| range.start / 4096..range.end.div_ceil(4096))
            .collect();
        let expected = &self.last_verify.expected;
        let missed = expected.difference(&found).next();
        let invented = found.difference(expected).next();
        let text = match (missed, invented) {
            (Some(block), _) => format!("the verify missed block {block} of volume {volume}"),
            (_, Some(block)) => format!("the verify invented block {block} of volume {volume}"),
            (None, None) => return,
        };
        self.oracle.report(4, Check::Compare, text);
    }

    /// Drives the last verify; true when every volume was verified and repaired.
    pub fn last_verify_done(&mut self) -> bool {
        let volume = self.last_verify.volume;
        if volume >= self.plan.volumes {
            return true;
        }
        if let Some(runner) = self.last_verify.runner {
            match self.verify_state(runner, volume) {
                Some(VerifyState::Running) => return false,
                Some(VerifyState::Done) => {
                    if let Some(sector) = self.differing(volume).first() {
                        let text = format!("volume {volume} sector {sector} was not repaired");
                        self.oracle.report(4, Check::Compare, text);
                    }
                    self.last_verify = LastVerify {
                        volume: volume + 1,
                        ..LastVerify::default()
                    };
                    return self.last_verify_done();
                }
                _ => {}
            }
        }
        let runner = self.rng.below(2) as usize;
        let from = self.rng.below(2) as u8;
        let differing = self.differing(volume);
        self.last_verify.expected = differing.iter().map(|sector| sector / LEAF).collect();
        self.last_verify.runner = Some(runner);
        // Anew, wherever an earlier one was stopped.
        self.order(runner, VolumeId(volume as u16), Some(0), Some(from));
        self.schedule.after(SECOND, Happening::Operator);
        false
    }

    fn verify_state(&self, node: usize, volume: usize) -> Option<VerifyState> {
        let status = self.nodes[node].process.as_ref()?.engine.status();
        let peer = status.connection.peer_devices.get(volume)?;
        Some(peer.verify.state)
    }

    fn differing(&self, volume: usize) -> Vec<u64> {
        let [a, b] = [0, 1].map(|n: usize| self.nodes[n].disks[volume].view());
        a.difference(b)
    }
}
