//! The operator: scripted, random, sometimes unreasonable in the safety phase; patient and
//! sensible in the liveness phase, where it mends what the faults have left behind.

use lockstep::engine::{
    Command, ConnectionState, DiskState, Ground, PauseCause, Refusal, Role, VolumeId,
};

use crate::node::Purpose;
use crate::scenario::Weights;
use crate::verify::in_step;
use crate::world::{Happening, Phase, World};

/// For which a node pauses syncs.
const CAUSES: [PauseCause; 2] = [PauseCause::User, PauseCause::Dependency];

impl World {
    /// The operator looks at the cluster and does one thing.
    pub fn operate(&mut self) {
        let pause = self.rng.delay(self.plan.operator_interval);
        self.schedule.after(pause, Happening::Operator);
        self.check_equal();
        if self.phase == Phase::Safety {
            self.experiment();
        } else {
            self.mend();
        }
    }

    fn connection(&self, node: usize) -> Option<ConnectionState> {
        self.nodes[node]
            .process
            .as_ref()
            .map(|p| p.status.connection.state)
    }

    fn reason(&self, node: usize) -> Option<&Refusal> {
        self.nodes[node]
            .process
            .as_ref()
            .and_then(|p| p.status.connection.reason.as_ref())
    }

    /// Asks for the primary role; where there is a voter, for its vote first.
    pub fn promote(&mut self, node: usize, force: bool) {
        let asked = |p: &crate::node::Process| p.commands.values().any(|c| *c == Purpose::Primary);
        if self.nodes[node].process.as_ref().is_some_and(asked) {
            // One question at a time: what the oracle permits depends on the force in it.
            return;
        }
        let refused = self.nodes[node].process.as_ref().is_some_and(|p| {
            p.status.connection.state == ConnectionState::Connected
                && p.status.connection.peer_role == Role::Primary
        });
        // No vote is asked for what the engine will refuse.
        if self.options.voter && !refused {
            return self.ask_vote(node, force, None);
        }
        self.ask_promotion(node, force, Ground::Operator);
    }

    /// An answer of the engine to a command.
    pub fn command_done(&mut self, node: usize, command: u64, result: Result<(), Refusal>) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let purpose = process.commands.remove(&command);
        let refused = result.is_err();
        if let (Some(Purpose::Attach(volume)), true) = (purpose, refused) {
            process.stores[volume] = None;
        }
        let forced = purpose == Some(Purpose::Primary) && process.forced;
        self.note(Some(node), "answer", || {
            format!("command {command} {purpose:?} {result:?}")
        });
        let retreat = match purpose {
            Some(Purpose::Primary) if forced => 600,
            Some(Purpose::Primary) if self.options.voter => self.plan.scenario.weights.retreat,
            _ => 0,
        };
        if retreat > 0 && !refused && self.phase == Phase::Safety && self.rng.chance(retreat) {
            // Second thoughts, before anything was written.
            self.command(node, Command::Secondary, Purpose::Other);
        }
        if purpose == Some(Purpose::Primary) && refused {
            self.nodes[node].recover_role = false;
            self.nodes[node].forced.clear();
            self.abandon(node);
            if let Some(process) = &mut self.nodes[node].process {
                process.forcing = false;
            }
        }
    }

    // ---- safety phase ----

    fn experiment(&mut self) {
        let up: Vec<usize> = (0..2).filter(|n| self.nodes[*n].running()).collect();
        let Some(node) = self.rng.pick(&up).copied() else {
            return;
        };
        let serving = up.iter().copied().find(|n| self.nodes[*n].serving());
        self.reconnect(node);
        let Some(primary) = serving else {
            // Fresh volumes need force once.
            let fresh = (0..self.plan.volumes)
                .all(|v| self.nodes[node].generation(v).is_some_and(|g| g.is_fresh()));
            let first = self.truth.iter().all(Option::is_none) && !self.plan.synced && fresh;
            let forced =
                first && node == 0 || self.plan.scenario.weights.force > 0 && self.rng.chance(250);
            return self.promote(node, forced);
        };
        let w: Weights = self.plan.scenario.weights;
        let choice = self.rng.weighted(&[
            30,
            w.switch,
            w.intrude,
            w.disconnect,
            w.detach,
            w.invalidate,
            w.force,
            w.verify,
            w.hold,
        ]);
        let volume = VolumeId(self.rng.below(self.plan.volumes as u64) as u16);
        match choice {
            0 => self.reattach(node),
            1 => self.switch(primary),
            2 => self.promote(1 - primary, false),
            3 => self.command(node, Command::Disconnect, Purpose::Other),
            4 => self.detach(node, volume),
            5 if node != primary && self.copy_is_good(primary) => {
                self.command(node, Command::Invalidate { volume }, Purpose::Other);
            }
            6 => self.force(primary),
            7 => self.verify(node, volume),
            8 => {
                let on = self.rng.chance(500);
                let cause = *self.rng.pick(&CAUSES).unwrap_or(&PauseCause::User);
                self.command(
                    node,
                    Command::PauseSync { volume, cause, on },
                    Purpose::Other,
                );
            }
            _ => {}
        }
    }

    /// Demotes the primary and promotes the other node.
    fn switch(&mut self, primary: usize) {
        self.command(primary, Command::Secondary, Purpose::Other);
        if self.rng.chance(700) && self.nodes[1 - primary].running() {
            self.promote(1 - primary, false);
        }
    }

    /// Force behind a cut: from here on, a loss is what the operator asked for.
    fn force(&mut self, primary: usize) {
        let other = 1 - primary;
        if self.connection(other) == Some(ConnectionState::Connected) || !self.network.cut[0] {
            return;
        }
        self.promote(other, true);
    }

    fn detach(&mut self, node: usize, volume: VolumeId) {
        if self.copy_is_good(0) && self.copy_is_good(1) {
            self.command(node, Command::Detach { volume }, Purpose::Other);
        }
    }

    /// Every volume of a node is up to date.
    fn copy_is_good(&self, node: usize) -> bool {
        let states = self.disk_states(node);
        !states.is_empty() && states.values().all(|d| *d == DiskState::UpToDate)
    }

    /// Every volume's copy at the connected peer is up to date.
    fn peer_is_good(&self, node: usize) -> bool {
        self.nodes[node].process.as_ref().is_some_and(|p| {
            let mut peers = p.status.connection.peer_devices.iter();
            peers.all(|d| d.peer_disk == DiskState::UpToDate)
        })
    }

    fn reconnect(&mut self, node: usize) {
        if self.connection(node) == Some(ConnectionState::StandAlone) && self.rng.chance(500) {
            self.rejoin(node, false);
        }
    }

    fn rejoin(&mut self, node: usize, discard: bool) {
        if let (false, Some(Refusal::AsksFirst { volume })) = (discard, self.reason(node)) {
            let volume = *volume;
            return self.command(node, Command::Approve { volume }, Purpose::Other);
        }
        if discard {
            self.command(node, Command::Disconnect, Purpose::Other);
            self.oracle.discarded(node);
        }
        self.command(
            node,
            Command::Connect {
                discard_my_data: discard,
            },
            Purpose::Other,
        );
    }

    /// Gives detached disks back.
    fn reattach(&mut self, node: usize) {
        for (volume, state) in self.disk_states(node) {
            let idle = !self.nodes[node].disks[volume].busy();
            let closed = self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|p| p.stores[volume].is_none());
            if state == DiskState::Diskless && idle && closed {
                self.attach(node, volume, None);
            }
        }
    }

    // ---- liveness phase ----

    /// Syncs that were paused go on.
    fn let_go(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let status = process.engine.status();
        for peer in status.connection.peer_devices {
            let (volume, on) = (peer.volume, false);
            let held = [peer.paused_by_user, peer.paused_for_another];
            for (cause, _) in CAUSES.into_iter().zip(held).filter(|(_, held)| *held) {
                let resume = Command::PauseSync { volume, cause, on };
                self.command(node, resume, Purpose::Other);
            }
        }
    }

    fn mend(&mut self) {
        for node in 0..2 {
            self.reattach(node);
            self.let_go(node);
        }
        let serving: Vec<usize> = (0..2).filter(|n| self.nodes[*n].serving()).collect();
        if serving.len() == 2 {
            // Two histories: the second node gives way.
            self.command(1, Command::Secondary, Purpose::Other);
            return;
        }
        if let Some(node) = serving.first().copied()
            && self
                .disk_states(node)
                .values()
                .any(|d| *d == DiskState::Diskless)
            && !self.peer_is_good(node)
        {
            // A primary takes a disk back from its peer's copy only.
            return self.command(node, Command::Secondary, Purpose::Other);
        }
        if self.resolve(serving.first().copied()) {
            return;
        }
        for node in 0..2 {
            if self.connection(node) == Some(ConnectionState::StandAlone) {
                self.rejoin(node, false);
            }
        }
        if serving.is_empty() {
            self.choose_primary();
        }
    }

    /// Ends a disagreement about the data. True when something was done.
    fn resolve(&mut self, serving: Option<usize>) -> bool {
        let reasons = [self.reason(0).cloned(), self.reason(1).cloned()];
        let split = reasons
            .iter()
            .flatten()
            .any(|r| matches!(r, Refusal::SplitBrain { .. }));
        if split {
            let loser = serving.map_or(1, |s| 1 - s);
            self.rejoin(loser, true);
            self.rejoin(1 - loser, false);
            return true;
        }
        let no_source = |r: &Refusal| matches!(r, Refusal::NoSource { .. });
        if serving.is_none() && reasons.iter().flatten().any(no_source) {
            // The newer copy lost its cache with the power. An older whole one is left, or one
            // that was half synced from it: then the newer one has the most. Or the last copies
            // of two volumes lost theirs on different nodes.
            let good = |n: usize| {
                let states = self.disk_states(n);
                let good = states.values().filter(|d| **d > DiskState::Inconsistent);
                good.count()
            };
            let whole = (0..2).find(|n| good(*n) == self.plan.volumes);
            let newest = || (0..2).find(|n| self.was_source(*n));
            let best = || {
                let power = self
                    .oracle
                    .nodes
                    .iter()
                    .any(|history| history.power_lost > 0);
                (0..2)
                    .filter(|n| power && self.nodes[*n].running())
                    .max_by_key(|n| good(*n))
            };
            if let Some(node) = whole.or_else(newest).or_else(best) {
                self.promote(node, true);
                self.rejoin(0, false);
                self.rejoin(1, false);
                return true;
            }
        }
        let unrelated = |r: &Refusal| matches!(r, Refusal::UnrelatedData { .. });
        if reasons.iter().flatten().any(unrelated) {
            // Both began by force without each other. Only new metadata ends that.
            let loser = serving.map_or(1, |s| 1 - s);
            self.oracle.discarded(loser);
            self.recreate(loser);
            self.rejoin(1 - loser, false);
            return true;
        }
        let stale = reasons.iter().flatten().any(|r| {
            matches!(
                r,
                Refusal::StaleTerm
                    | Refusal::PrimaryIsOlder { .. }
                    | Refusal::BothPrimary
                    | Refusal::NoSource { .. }
            )
        });
        if let (true, Some(node)) = (stale, serving) {
            self.command(node, Command::Secondary, Purpose::Other);
            return true;
        }
        false
    }

    /// A node's record says of every volume that the other copy is the older one.
    fn was_source(&self, node: usize) -> bool {
        (0..self.plan.volumes).all(|volume| {
            self.nodes[node]
                .superblock(volume)
                .is_some_and(|s| s.peers.first().is_some_and(|p| p.outdated))
        })
    }

    fn choose_primary(&mut self) {
        let synced = (0..2).all(|n| {
            self.nodes[n].process.as_ref().is_some_and(|p| {
                p.status.connection.state == ConnectionState::Connected
                    && p.status
                        .connection
                        .peer_devices
                        .iter()
                        .all(|d| in_step(d.replication))
            })
        });
        let node = if synced {
            self.rng.below(2) as usize
        } else {
            0
        };
        // A volume that never held data needs force once; the first one may have been cut short
        // between two volumes.
        let fresh = (0..self.plan.volumes)
            .any(|v| (0..2).all(|n| self.nodes[n].generation(v).is_some_and(|g| g.is_fresh())));
        let connected = self.connection(node) == Some(ConnectionState::Connected);
        if connected {
            self.promote(node, fresh);
        }
    }
}
