//! The cluster: two nodes, the wire, the applications, and the queue that drives them.
//!
//! `World` owns everything. An event is taken from the queue, given to an engine, and the
//! engine's actions are carried out in order; carrying one out only ever adds events to the queue,
//! so nothing is re-entered. How they are carried out is in `storage`, `wire` and `frontend`;
//! checks on the way live in `checks`, faults in `faults`, the operator in `operator`.

use std::collections::BTreeMap;

use lockstep::engine::{
    Action, Buffer, Command, CommandId, Config, DiskState, Event, Generation, NodeId, Notice,
    RequestId, VolumeId, VoteMode,
};

use crate::agent::Wanted;
use crate::atlas::Atlas;
use crate::checks::BIT_SECTORS;
use crate::client::Client;
use crate::coverage::{Coverage, row};
use crate::datagrams::{Letter, Paths};
use crate::disk::{DiskFault, DiskOp, OpId, Pages, SECTOR};
use crate::meta;
use crate::network::Network;
use crate::node::{Carrier, Node, Purpose, Target};
use crate::oracle::{Check, Oracle, Violation};
use crate::rng::Rng;
use crate::scenario::{Options, Plan};
use crate::schedule::{Instant, SECOND, Schedule};
use crate::verify::LastVerify;
use crate::witness::{Found, Witness};

/// Virtual time that the cluster has to recover after the faults have stopped. The largest volume
/// compared with the fewest and smallest buffers over the slowest wire and disks takes 280 s.
pub const LIVENESS_LIMIT: Instant = 480 * SECOND;
/// Events after which a run is given up: the engine talks to itself.
const EVENT_LIMIT: u64 = 2_000_000;

/// What the queue holds.
pub enum Happening {
    /// A node's process starts (again).
    Start {
        node: usize,
    },
    Tick {
        node: usize,
        incarnation: u32,
        at: Instant,
    },
    Disk {
        node: usize,
        volume: usize,
        op: OpId,
    },
    Arrive {
        link: usize,
        direction: usize,
    },
    Up {
        link: usize,
        side: usize,
    },
    /// A side learns that its link broke.
    Broken {
        link: usize,
        side: usize,
    },
    Dial,
    Client {
        node: usize,
        volume: usize,
        incarnation: u32,
    },
    Operator,
    Fault,
    Resume {
        node: usize,
    },
    Heal {
        directions: [bool; 2],
    },
    /// A datagram arrives.
    Letter {
        from: usize,
        to: usize,
        letter: Letter,
    },
    /// An agent that ended alone starts again.
    StartAgent {
        node: usize,
        start: u32,
    },
    AgentTick {
        node: usize,
        start: u32,
    },
    AgentStored {
        node: usize,
        start: u32,
        version: u64,
    },
    /// What an engine wants to have recorded reaches its agent.
    Wanted {
        node: usize,
        start: u32,
        wanted: Wanted,
    },
    /// The witness starts (again).
    Witness {
        start: u32,
        found: Found,
    },
    WitnessStored {
        start: u32,
        version: u64,
    },
    /// A process dies (decided earlier, between two actions).
    Die {
        node: usize,
        incarnation: u32,
    },
    /// The faults stop.
    Calm,
}

/// Which part of the run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Safety,
    Liveness { until: Instant },
}

/// One run.
pub struct World {
    pub options: Options,
    pub plan: Plan,
    pub rng: Rng,
    pub schedule: Schedule<Happening>,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub clients: Vec<Vec<Client>>,
    pub witness: Witness,
    pub paths: Paths,
    pub atlas: Atlas,
    pub oracle: Oracle,
    pub coverage: Coverage,
    pub phase: Phase,
    pub requests_left: u32,
    /// Generation of each volume at the last completed write.
    pub truth: Vec<Option<Generation>>,
    /// The generation that each one was made from, by volume.
    pub lineage: Vec<BTreeMap<Generation, Generation>>,
    /// By volume and block.
    pub carried: Vec<Vec<Option<Carrier>>>,
    pub trace: String,
    pub dialing: bool,
    /// Of a run with silent faults.
    pub last_verify: LastVerify,
    compared: bool,
    actions: Vec<Action>,
}

impl World {
    pub fn new(seed: u64, options: &Options, weights: &[u32]) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, options, weights);
        let synced = plan.synced;
        let mut nodes = Vec::new();
        for id in 0..2 {
            let fill = if synced { 1 } else { 1 + id as u64 };
            let disks = (0..plan.volumes)
                .map(|_| meta::new_disk(plan.sectors, fill, plan.volatile[id], id, synced))
                .collect();
            let offset = rng.range(1, 1_000) * SECOND;
            let ppm = rng.range(0, 400) as i64 - 200;
            nodes.push(Node::new(id, disks, offset, ppm));
        }
        let witness = Self::first_records(&plan, &mut nodes, &rng);
        let base = (0..plan.volumes)
            .map(|_| Pages::new(plan.sectors, 1))
            .collect();
        let clients = (0..2)
            .map(|_| {
                (0..plan.volumes)
                    .map(|_| Client::new(rng.fork(), plan.sectors))
                    .collect()
            })
            .collect();
        let mut oracle = Oracle::new(options.protocol, base);
        oracle.votes = options.voter;
        World {
            network: Network::new(plan.network_latency),
            oracle,
            witness,
            paths: Paths::default(),
            atlas: Atlas::new(rng.fork()),
            truth: vec![None; plan.volumes],
            lineage: vec![BTreeMap::new(); plan.volumes],
            carried: vec![vec![None; plan.sectors.div_ceil(BIT_SECTORS) as usize]; plan.volumes],
            requests_left: plan.requests,
            options: options.clone(),
            schedule: Schedule::new(),
            coverage: Coverage::default(),
            phase: Phase::Safety,
            trace: String::new(),
            dialing: false,
            last_verify: LastVerify::default(),
            compared: false,
            actions: Vec::new(),
            nodes,
            clients,
            plan,
            rng,
        }
    }

    /// Runs to the end and returns what was wrong.
    pub fn run(&mut self) -> Vec<Violation> {
        let story = format!("{}: {}", self.plan.scenario.name, self.plan.scenario.story);
        self.note(None, "scenario", || story);
        self.schedule.at(0, Happening::Start { node: 0 });
        self.schedule
            .at(self.rng.below(SECOND), Happening::Start { node: 1 });
        if self.options.voter {
            let found = Found::Kept;
            self.schedule.at(0, Happening::Witness { start: 0, found });
        }
        self.schedule.at(2 * SECOND, Happening::Operator);
        self.schedule.at(3 * SECOND, Happening::Fault);
        self.schedule.at(self.plan.length, Happening::Calm);
        let mut events = 0;
        while let Some(happening) = self.schedule.pop() {
            self.apply(happening);
            events += 1;
            if let Phase::Liveness { until } = self.phase {
                if self.recovered() && self.wind_up() {
                    break;
                }
                if self.schedule.now() > until {
                    let text = format!("not recovered in time: {}", self.picture());
                    self.oracle.report(12, Check::Live, text);
                    break;
                }
            }
            if events > EVENT_LIMIT {
                let text = format!("no end of events: {}", self.picture());
                self.oracle.report(12, Check::Live, text);
                break;
            }
            if self.done_early() {
                break;
            }
        }
        self.oracle.violations.clone()
    }

    /// A run without sabotage stops at its first violation.
    fn done_early(&self) -> bool {
        match self.options.sabotage {
            None => !self.oracle.violations.is_empty(),
            Some(defect) => {
                let meant = |v| crate::sabotage::is_meant(defect, v);
                self.oracle.violations.iter().any(meant)
            }
        }
    }

    fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Start { node } => self.start(node),
            Happening::Tick {
                node,
                incarnation,
                at,
            } => self.tick(node, incarnation, at),
            Happening::Disk { node, volume, op } => self.disk_done(node, volume, op),
            Happening::Arrive { link, direction } => self.arrive(link, direction),
            Happening::Up { link, side } => self.link_up(link, side),
            Happening::Broken { link, side } => self.link_broken(link, side),
            Happening::Dial => self.dial(),
            Happening::Client {
                node,
                volume,
                incarnation,
            } => {
                self.client(node, volume, incarnation);
            }
            Happening::Operator => self.operate(),
            Happening::Fault => self.fault(),
            Happening::Resume { node } => self.resume(node),
            Happening::Heal { directions } => self.heal(directions),
            Happening::Letter { from, to, letter } => self.letter(from, to, letter),
            Happening::StartAgent { node, start } => self.agent_back(node, start),
            Happening::AgentTick { node, start } => self.agent_tick(node, start),
            Happening::AgentStored {
                node,
                start,
                version,
            } => self.agent_stored(node, start, version),
            Happening::Wanted {
                node,
                start,
                wanted,
            } => self.wanted(node, start, wanted),
            Happening::Witness { start, found } => self.start_witness(start, found),
            Happening::WitnessStored { start, version } => self.witness_stored(start, version),
            Happening::Die { node, incarnation } => {
                if self.is(node, incarnation) {
                    self.kill(node, self.plan.scenario.weights.kill_agent > 0);
                }
            }
            Happening::Calm => self.calm(),
        }
    }

    pub fn is(&self, node: usize, incarnation: u32) -> bool {
        self.nodes[node]
            .process
            .as_ref()
            .is_some_and(|p| p.incarnation == incarnation)
    }

    /// The engine's configuration for a new process.
    pub fn config(&mut self, node: usize) -> Config {
        let seed = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
        Config {
            node: NodeId(node as u8),
            peer: NodeId(1 - node as u8),
            volumes: (0..self.plan.volumes).map(|v| VolumeId(v as u16)).collect(),
            limits: (0..self.plan.volumes)
                .map(|volume| (VolumeId(volume as u16), self.plan.limits))
                .collect(),
            csums: self.plan.csums,
            guarded: self.plan.guarded,
            protocol: self.options.protocol,
            timeouts: self.plan.timeouts,
            vote: if self.options.voter {
                VoteMode::Voter
            } else {
                VoteMode::Operator
            },
            al_extents: self.plan.log_slots,
            resync_buffers: self.plan.resync_buffers,
            resync_chunk: self.plan.resync_chunk,
            max_unacked_bytes: self.plan.max_unacked,
            boot_id: self.nodes[node].boot,
            seed,
            sabotage: self.options.sabotage,
        }
    }

    // ---- driving an engine ----

    /// Gives an event to a node's engine and carries out what it answers.
    pub fn feed(&mut self, node: usize, event: Event) {
        if self.nodes[node].paused {
            self.nodes[node].inbox.push_back(event);
            return;
        }
        let now = self.nodes[node].clock(self.schedule.now());
        if self.nodes[node].process.is_none() {
            return;
        }
        self.note_received(node, &event);
        self.coverage.count(node, &event);
        if self.options.trace {
            self.trace_event(node, &event);
        }
        let mut actions = std::mem::take(&mut self.actions);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let incarnation = process.incarnation;
        process.parted = matches!(event, Event::LinkDown { link, .. } if link.0 as usize == process.session_link);
        process.engine.handle(now, event, &mut actions);
        let cut = self.kill_between(node, actions.len());
        let mut changed = false;
        for (index, action) in actions.drain(..).enumerate() {
            if Some(index) == cut {
                self.schedule.after(0, Happening::Die { node, incarnation });
                break;
            }
            changed |= matches!(action, Action::Publish(_) | Action::Serve { .. });
            self.perform(node, action);
        }
        self.actions = actions;
        if changed {
            self.refresh(node);
        }
        self.arm(node);
    }

    /// Where to cut a list of actions because the process dies in the middle.
    fn kill_between(&mut self, node: usize, actions: usize) -> Option<usize> {
        let possible = self.phase == Phase::Safety && self.plan.kill_in_step && actions > 1;
        if !possible || self.plan.scenario.weights.kill == 0 || !self.rng.chance(1) {
            return None;
        }
        if self.spared(node) {
            return None;
        }
        if !self.rng.chance(300) || !self.atlas.death() {
            return None;
        }
        self.note(Some(node), "fault", || {
            "dies between two actions".to_string()
        });
        Some(self.rng.below(actions as u64) as usize)
    }

    fn arm(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let Some(deadline) = process.engine.next_deadline() else {
            return;
        };
        let at = self.nodes[node].when(deadline).max(self.schedule.now() + 1);
        let incarnation = process.incarnation;
        if process
            .tick_at
            .is_none_or(|t| at < t || t <= self.schedule.now())
        {
            if let Some(process) = &mut self.nodes[node].process {
                process.tick_at = Some(at);
            }
            self.schedule.at(
                at,
                Happening::Tick {
                    node,
                    incarnation,
                    at,
                },
            );
        }
    }

    fn tick(&mut self, node: usize, incarnation: u32, at: Instant) {
        if !self.is(node, incarnation) {
            return;
        }
        if let Some(process) = &mut self.nodes[node].process {
            if process.tick_at != Some(at) {
                return;
            }
            process.tick_at = None;
        }
        self.feed(node, Event::Tick);
    }

    /// Reads the engine's state again after it announced a change.
    fn refresh(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.status = process.engine.status();
        self.coverage.state(node, &process.status);
        if self.options.trace {
            let line = row(&process.status);
            self.note(Some(node), "state", || line);
        }
        self.check_established(node);
    }

    /// The goal is reached: the last comparisons. True when they are done.
    fn wind_up(&mut self) -> bool {
        if !std::mem::replace(&mut self.compared, true) {
            self.finish();
        }
        self.plan.scenario.weights.silent == 0 || self.last_verify_done()
    }

    pub fn command(&mut self, node: usize, command: Command, purpose: Purpose) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let id = CommandId(process.command_id(purpose));
        self.feed(node, Event::Command { id, command });
    }

    // ---- actions ----

    fn perform(&mut self, node: usize, action: Action) {
        if self.options.trace {
            self.trace_action(node, &action);
        }
        match action {
            Action::Complete { request, result } => {
                let connected = self.connected(node);
                let process = self.nodes[node].process.as_mut();
                if let Some(open) = process.and_then(|p| p.requests.get_mut(&request)) {
                    open.connected = connected;
                }
                self.pass(node, request, result.is_ok());
            }
            Action::DiskRead {
                io,
                volume,
                span,
                buffer,
                note_zeroes,
            } => {
                self.read(
                    node,
                    volume,
                    span,
                    Target::Read {
                        io,
                        buffer,
                        hash: None,
                        note_zeroes,
                    },
                );
            }
            Action::DiskProbe { io, volume, span } => {
                let dense = self.plan.dense[node];
                self.read(node, volume, span, Target::Probe { io, dense });
            }
            Action::DiskHash {
                io,
                volume,
                span,
                buffer,
                digest,
            } => {
                self.read(
                    node,
                    volume,
                    span,
                    Target::Read {
                        io,
                        buffer,
                        hash: Some(digest),
                        note_zeroes: false,
                    },
                );
            }
            Action::DiskWrite {
                io,
                volume,
                span,
                buffer,
                fua,
            } => {
                self.write(node, io, volume, span, Some(buffer), fua);
            }
            Action::DiskZeroes {
                io,
                volume,
                span,
                unmap: _,
                fua,
            } => {
                self.write(node, io, volume, span, None, fua);
            }
            Action::DiskFlush { io, volume } => {
                let volume = usize::from(volume.0);
                self.submit(
                    node,
                    volume,
                    DiskOp::Flush,
                    DiskFault::None,
                    Target::Flush { io },
                );
            }
            Action::Meta { io, volume, op } => self.meta(node, usize::from(volume.0), io, op),
            Action::Send {
                link,
                envelope,
                payload,
            } => self.send(node, link, envelope, payload),
            Action::Copy { from, to, len } => {
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                if let Some(stamps) = process.stamps(from, len as usize / SECTOR as usize) {
                    process.fill(to, &stamps);
                }
            }
            Action::Release { buffer } => {
                if let (Buffer::Received(slot), Some(process)) =
                    (buffer, &mut self.nodes[node].process)
                {
                    process.received[slot as usize] = None;
                }
            }
            Action::WantLink { want } => self.want_link(node, want),
            Action::CloseLink { link } => self.close_link(node, link),
            Action::CommandDone { command, result } => {
                self.command_done(node, command.0, result);
            }
            Action::Serve { serve, term: _ } => self.serve(node, serve),
            Action::Shape { .. } => {}
            Action::DiskClosed { volume } => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.stores[usize::from(volume.0)] = None;
                }
            }
            Action::RecordAtVoter {
                volume,
                generation,
                term,
            } => {
                self.want_record(node, (usize::from(volume.0), generation, term));
            }
            Action::Track { slot, volume, span } => {
                let tracked = self.nodes[node].tracked.get_or_insert_default();
                tracked.slots.insert(slot, (usize::from(volume.0), span));
            }
            Action::Untrack { slot } => {
                self.nodes[node]
                    .tracked
                    .get_or_insert_default()
                    .slots
                    .remove(&slot);
            }
            Action::TrackExact { exact } => {
                self.nodes[node].tracked.get_or_insert_default().exact = exact;
            }
            Action::Publish(notice) => self.published(node, &notice),
        }
    }

    /// A completion goes to the application, a good one while the node's lease lasts; it waits
    /// for the voter's word as long as there may be a good one.
    pub fn pass(&mut self, node: usize, request: RequestId, ok: bool) {
        let leased = self.leased(node);
        let held = ok && !leased && self.nodes[node].agent.term.is_some();
        let ok = ok && (leased || held);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if held {
            return process.held.push(request);
        }
        if let Some(request) = process.requests.remove(&request) {
            self.completed(node, request, ok);
        } else {
            let text = format!("node {node} completed an unknown request");
            self.oracle.report(12, Check::Contract, text);
        }
    }

    fn published(&mut self, node: usize, notice: &Notice) {
        if let Notice::Disk {
            to: DiskState::Diskless,
            ..
        } = notice
        {
            self.nodes[node].left_alone = true;
        }
        self.note(Some(node), "notice", || format!("{notice:?}"));
        self.check_verify(node, notice);
    }
}
