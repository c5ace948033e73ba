//! What goes wrong: deaths and restarts of nodes, stops, the wire, the disks; and the end of all
//! that, when the liveness phase begins.

use std::collections::BTreeMap;

use lockstep::engine::{Command, DiskState, Ground, VolumeId};

use crate::datagrams::WITNESS;
use crate::network::Frame;
use crate::node::{Process, Purpose, Tracked};
use crate::oracle::{Check, Outcome};
use crate::schedule::{MICRO, MILLI, SECOND};
use crate::witness::Found;
use crate::world::{Happening, LIVENESS_LIMIT, Phase, World};

impl World {
    // ---- life of a process ----

    /// A node's agent starts its data plane: opens the disks, recovers, attaches, connects.
    pub fn start(&mut self, node: usize) {
        let n = &self.nodes[node];
        if n.process.is_some() || !n.powered {
            return;
        }
        self.start_agent(node);
        let n = &self.nodes[node];
        if n.busy() {
            // The predecessor's writes are still in flight: exclusive open fails.
            return self.schedule.after(5 * MILLI, Happening::Start { node });
        }
        self.check_dirty("at a restart");
        self.check_causal(node);
        let config = self.config(node);
        let n = &mut self.nodes[node];
        n.incarnations += 1;
        let incarnation = n.incarnations;
        let exact: Vec<_> = (0..self.plan.volumes)
            .map(|v| self.exact(node, v))
            .collect();
        let n = &mut self.nodes[node];
        n.tracked = Some(Tracked::default());
        n.process = Some(Process::new(config, incarnation));
        self.note(Some(node), "start", || format!("incarnation {incarnation}"));
        for (volume, exact) in exact.into_iter().enumerate() {
            self.attach(node, volume, exact);
        }
        self.command(
            node,
            Command::Connect {
                discard_my_data: false,
            },
            Purpose::Other,
        );
        if self.nodes[node].recover_role {
            match self.options.voter {
                true => self.recover_reign(node),
                false => self.ask_promotion(node, false, Ground::Operator),
            }
        }
    }

    /// Recovers a volume's metadata and gives the disk to the engine.
    pub fn attach(
        &mut self,
        node: usize,
        volume: usize,
        exact: Option<Vec<lockstep::engine::Span>>,
    ) {
        self.nodes[node].disks[volume].land_unnoticed();
        // As the product does before it reads.
        self.nodes[node].disks[volume].settle_meta();
        let found = crate::meta::recover(&self.nodes[node].disks[volume]);
        let forced = self.nodes[node].forced.remove(&volume);
        if let Ok((image, _)) = &found
            && forced == Some(image.superblock.current)
        {
            // The force is on record although nobody was told: what comes of it was asked for.
            let other_serves = self.nodes[1 - node].serving();
            self.oracle.forced(node, other_serves);
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        match found {
            Ok((mut image, store)) => {
                image.in_flight = exact;
                process.logged[volume].clone_from(&image.log);
                process.stores[volume] = Some(store);
                let id = VolumeId(volume as u16);
                let command = Command::Attach {
                    volume: id,
                    image: Box::new(image),
                };
                self.command(node, command, Purpose::Attach(volume));
            }
            Err(reason) => {
                let text = format!("node {node} volume {volume}: metadata is gone: {reason}");
                self.oracle.report(4, Check::Contract, text);
            }
        }
    }

    /// The data plane dies; with its agent when `agent`.
    pub fn kill(&mut self, node: usize, agent: bool) {
        let Some(process) = self.nodes[node].process.take() else {
            return;
        };
        // A data plane that dies while its agent is away finds one that knows nothing of it.
        let agent = agent || self.options.voter && !self.nodes[node].agent.alive();
        self.note(Some(node), "kill", || format!("agent {agent}"));
        self.end_process(node, process, agent);
        self.agent_resumes(node);
        for link in self.open_links(node) {
            self.network.links[link].closed[node] = true;
            if self.rng.chance(400) {
                self.network.truncate(link, node, &mut self.rng);
            }
            self.put(link, node, Frame::Close);
        }
        self.redial();
        self.check_dirty("after a kill");
        let delay = self.rng.range(5, 2_500) * MILLI;
        self.schedule.after(delay, Happening::Start { node });
    }

    /// The operator takes a node down, writes new metadata on its disks and starts it again.
    pub fn recreate(&mut self, node: usize) {
        self.kill(node, true);
        for disk in &mut self.nodes[node].disks {
            crate::meta::create_again(disk, node);
        }
    }

    fn end_process(&mut self, node: usize, process: Process, agent: bool) {
        self.oracle.died(node, process.incarnation);
        let n = &mut self.nodes[node];
        n.agent.vacate();
        if agent {
            n.agent.die(&mut self.rng);
            n.agent.page = None;
            n.agent.term = None;
        }
        n.paused = false;
        n.inbox.clear();
        n.disks.iter_mut().for_each(|disk| disk.land_unnoticed());
        n.recover_role = !agent && (process.serving || n.recover_role);
        if agent {
            n.tracked = None;
        }
        let keep = self.plan.reissue && n.recover_role;
        if keep {
            n.orphans.extend(process.requests.into_values());
        } else {
            self.abandon(node);
            for id in process.requests.into_values().filter_map(|r| r.write) {
                self.oracle.end(id, Outcome::Unknown);
            }
        }
    }

    fn open_links(&self, node: usize) -> Vec<usize> {
        let links = &self.network.links;
        (0..links.len())
            .filter(|l| links[*l].up[node] && !links[*l].closed[node])
            .collect()
    }

    /// A node loses power and comes back later.
    pub fn power_cut(&mut self, node: usize) {
        self.note(Some(node), "fault", || "power cut".to_string());
        if let Some(process) = self.nodes[node].process.take() {
            self.end_process(node, process, true);
        }
        self.abandon(node);
        let n = &mut self.nodes[node];
        n.agent.die(&mut self.rng);
        n.agent.page = None;
        n.agent.dethrone();
        n.recover_role = false;
        n.tracked = None;
        n.paused = false;
        n.boot += 1;
        for disk in &mut n.disks {
            disk.power_loss(&mut self.rng);
        }
        self.oracle.power_lost(node);
        for link in self.open_links(node) {
            self.network.links[link].closed[node] = true;
            self.network.truncate(link, node, &mut self.rng);
        }
        self.redial();
        self.check_dirty("after a power cut");
        let delay = self.rng.range(50, 6_000) * MILLI;
        self.schedule.after(delay, Happening::Start { node });
    }

    /// A stopped process goes on.
    pub fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        self.note(Some(node), "resume", String::new);
        let incarnation = self.nodes[node].incarnations;
        while self.is(node, incarnation)
            && let Some(event) = self.nodes[node].inbox.pop_front()
        {
            self.feed(node, event);
        }
        self.feed(node, lockstep::engine::Event::Tick);
        self.agent_resumes(node);
    }

    pub fn heal(&mut self, directions: [bool; 2]) {
        let now = self.schedule.now();
        for delivery in self.network.heal(directions, now) {
            self.deliver(delivery);
        }
        self.redial();
    }

    // ---- the next fault ----

    /// Draws a fault and sets the time of the one after it.
    pub fn fault(&mut self) {
        if self.phase != Phase::Safety {
            return;
        }
        let next = self.rng.delay(self.plan.fault_interval);
        self.schedule.after(next, Happening::Fault);
        let node = self.rng.below(2) as usize;
        let w = &self.plan.scenario.weights;
        let votes = u32::from(self.options.voter);
        let choice = self.rng.weighted(&[
            w.kill,
            w.kill_agent,
            w.power_one,
            w.power_both,
            w.pause,
            w.link_drop,
            w.half_open,
            w.cut_one_way,
            w.partition,
            w.disk_error,
            w.slow_disk,
            w.metadata,
            w.silent,
            w.inspect,
            w.agent * votes,
            w.witness_restart * votes,
            w.witness_loss * votes,
            w.heart_cut * votes,
            w.witness_cut * votes,
        ]);
        // Faults that take a node from the witness while it needs that node's word.
        let spared = matches!(choice, 1 | 2 | 4 | 14 | 18) && self.spared(node);
        if spared || choice == 3 && (self.spared(0) || self.spared(1)) {
            return;
        }
        match choice {
            0 | 1 => {
                if self.atlas.death() {
                    self.kill(node, choice == 1);
                }
            }
            2 => {
                if self.atlas.death() {
                    self.power_cut(node);
                }
            }
            3 => {
                if self.atlas.blackout() {
                    self.power_cut(0);
                    self.power_cut(1);
                }
            }
            4 => self.pause(node),
            5 => self.break_link([true; 2]),
            6 => {
                let told = [self.rng.chance(400), self.rng.chance(400)];
                self.break_link(told);
            }
            7 => self.cut_one_way(node),
            8 => self.part(node),
            9 => self.break_disk(),
            10 => self.slow_disk(node),
            11 => {
                self.atlas.spoil_metadata(node);
            }
            12 => {
                self.atlas.spoil_data();
            }
            13 => self.inspect(),
            14 => self.restart_agent(node),
            15 => self.restart_witness(Found::Kept),
            16 => {
                let nothing = self.rng.chance(400);
                let found = if nothing {
                    Found::Nothing
                } else {
                    Found::OldCopy
                };
                self.restart_witness(found);
            }
            17 => self.lose_path(node, 1 - node),
            _ => self.lose_path(node, WITNESS),
        }
    }

    /// A path between voters is cut, one way or both.
    fn lose_path(&mut self, a: usize, b: usize) {
        match self.rng.below(4) {
            0 => self.cut_path_one_way(a, b),
            1 => self.cut_path_one_way(b, a),
            _ => self.cut_path(a, b),
        }
    }

    /// The primary stops for longer now and then; a stopped node is never shut down cleanly.
    fn pause(&mut self, node: usize) {
        if !self.nodes[node].running() {
            return;
        }
        self.note(Some(node), "fault", || "pause".to_string());
        self.nodes[node].paused = true;
        let length = self.rng.delay(2 * SECOND).min(20 * SECOND);
        self.schedule.after(length, Happening::Resume { node });
    }

    fn break_link(&mut self, told: [bool; 2]) {
        let Some(link) = self.network.current(0).or(self.network.current(1)) else {
            return;
        };
        self.note(None, "fault", || format!("link {link} lost, told {told:?}"));
        self.network.kill(link);
        for side in (0..2).filter(|s| told[*s]) {
            let delay = self.rng.delay(5 * MILLI);
            self.schedule.after(delay, Happening::Broken { link, side });
        }
    }

    /// The nodes lose each other, mostly on every path, and one of them now and then the witness
    /// too.
    fn part(&mut self, node: usize) {
        self.cut([true; 2]);
        if !self.options.voter {
            return;
        }
        if self.rng.chance(700) {
            self.cut_path(0, 1);
        }
        if self.rng.chance(500) && !self.spared(node) {
            self.cut_path(node, WITNESS);
        }
    }

    /// Nothing passes from one node to the other, now and then on no path.
    fn cut_one_way(&mut self, node: usize) {
        self.cut([node == 0, node == 1]);
        if self.options.voter && self.rng.chance(500) {
            self.cut_path_one_way(node, 1 - node);
        }
    }

    fn cut(&mut self, directions: [bool; 2]) {
        self.note(None, "fault", || format!("cut {directions:?}"));
        for (direction, cut) in directions.into_iter().enumerate() {
            self.network.cut[direction] |= cut;
        }
        let length = self.rng.range(20, 12_000) * MILLI;
        self.schedule.after(length, Happening::Heal { directions });
    }

    /// Errors begin on the weak node, while the other copy is good.
    fn break_disk(&mut self) {
        if !self
            .nodes
            .iter()
            .all(|n| n.process.as_ref().is_some_and(|p| p.established))
        {
            return;
        }
        let node = self.atlas.break_disk();
        if self.rng.chance(500) {
            let sectors = self.plan.sectors;
            let volume = self.rng.below(self.plan.volumes as u64) as usize;
            let start = self.rng.below(sectors - 64);
            self.nodes[node].disks[volume].damage(start, 64);
        }
        self.note(Some(node), "fault", || "disk errors".to_string());
    }

    fn slow_disk(&mut self, node: usize) {
        self.atlas.slow[node] = *self.rng.pick(&[1, 3, 20, 200]).unwrap_or(&1);
        let factor = self.atlas.slow[node];
        self.note(Some(node), "fault", || {
            format!("disk {factor} times slower")
        });
    }

    /// Looks at both disks from outside.
    fn inspect(&mut self) {
        self.check_dirty("at an inspection");
        self.check_causal(0);
        self.check_causal(1);
        self.check_equal();
    }

    // ---- liveness ----

    /// The faults stop; everything broken is mended.
    pub fn calm(&mut self) {
        self.note(None, "phase", || "faults stop".to_string());
        self.phase = Phase::Liveness {
            until: self.schedule.now() + LIVENESS_LIMIT,
        };
        self.check_dirty("when the faults stop");
        self.atlas.calm();
        self.requests_left = self.requests_left.min(40) + 10;
        for node in 0..2 {
            self.wake_clients(node);
        }
        self.heal([true; 2]);
        self.paths.heal();
        // A connection that died unnoticed is found by the engines' own pings.
        for node in 0..2 {
            self.nodes[node].disks.iter_mut().for_each(|d| d.repair());
            self.resume(node);
            self.schedule.after(MICRO, Happening::Start { node });
        }
    }

    /// Counts of disks by state, for the operator.
    pub fn disk_states(&self, node: usize) -> BTreeMap<usize, DiskState> {
        let Some(process) = &self.nodes[node].process else {
            return BTreeMap::new();
        };
        process
            .status
            .devices
            .iter()
            .enumerate()
            .map(|(v, d)| (v, d.disk))
            .collect()
    }
}
