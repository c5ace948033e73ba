//! The cluster: two nodes, the wire, the applications, and the queue that drives them.
//!
//! `World` owns everything. An event is taken from the queue, given to an engine, and the
//! engine's actions are carried out in order; carrying one out only ever adds events to the queue,
//! so nothing is re-entered. Checks on the way live in `checks`, faults in `faults`, the operator
//! in `operator`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use lockstep::engine::{
    Action, Buffer, Command, CommandId, Config, DiskState, Envelope, Event, Generation, IoOutcome,
    LinkId, LinkLoss, Message, MetaOp, NodeId, Notice, Op, RequestId, Span, Term, VolumeId,
    VoteMode,
};

use crate::atlas::Atlas;
use crate::checks::BIT_SECTORS;
use crate::client::Client;
use crate::coverage::{Coverage, row};
use crate::disk::{DiskFault, DiskOp, DiskResult, EIO, OpId, Pages, SECTOR, ZERO, hash};
use crate::meta;
use crate::network::{Delivery, Frame, Network};
use crate::node::{Carrier, MetaWork, Node, Origin, Purpose, Received, Request, Target, Wish};
use crate::oracle::{Check, Oracle, Outcome, Violation};
use crate::rng::Rng;
use crate::scenario::{Options, Plan};
use crate::schedule::{Instant, MICRO, MILLI, SECOND, Schedule};
use crate::voter::Voter;
use crate::votes::Answer;

/// Virtual time that the cluster has to recover after the faults have stopped.
pub const LIVENESS_LIMIT: Instant = 240 * SECOND;
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
    /// The voter's answer arrives at a node.
    Voted {
        node: usize,
        incarnation: u32,
        answer: Answer,
    },
    /// A question of a node arrives at the voter.
    Ballot {
        node: usize,
        incarnation: u32,
        question: (usize, Generation, Term),
    },
    /// A node's agent renews its lease.
    Beat {
        node: usize,
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
    pub voter: Voter,
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
            voter: Voter::new(plan.volumes, synced.then_some(meta::FIRST_GENERATION)),
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
            self.start_beats();
        }
        self.schedule.at(2 * SECOND, Happening::Operator);
        self.schedule.at(3 * SECOND, Happening::Fault);
        self.schedule.at(self.plan.length, Happening::Calm);
        let mut events = 0;
        while let Some(happening) = self.schedule.pop() {
            self.apply(happening);
            events += 1;
            if let Phase::Liveness { until } = self.phase {
                if self.recovered() {
                    self.finish();
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

    /// Adds a line to the trace. Columns: time in seconds, node, kind, text.
    pub fn note(&mut self, node: Option<usize>, kind: &str, text: impl FnOnce() -> String) {
        if self.options.trace {
            let now = self.schedule.now();
            let who = node.map_or("-".to_string(), |n| n.to_string());
            let (whole, micros) = (now / SECOND, now % SECOND / MICRO);
            let _ = writeln!(
                self.trace,
                "{whole:>4}.{micros:06} {who} {kind:<9} {}",
                text()
            );
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
            Happening::Voted {
                node,
                incarnation,
                answer,
            } => {
                if self.is(node, incarnation) {
                    self.voted(node, answer);
                }
            }
            Happening::Ballot {
                node,
                incarnation,
                question,
            } => self.ballot(node, incarnation, question),
            Happening::Beat { node } => self.beat(node),
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
        self.coverage.count(node, &event);
        if self.options.trace {
            self.trace_event(node, &event);
        }
        let mut actions = std::mem::take(&mut self.actions);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let incarnation = process.incarnation;
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
            Action::Complete { request, result } => self.pass(node, request, result.is_ok()),
            Action::DiskRead {
                io,
                volume,
                span,
                buffer,
            } => {
                self.read(
                    node,
                    volume,
                    span,
                    Target::Read {
                        io,
                        buffer,
                        hash: false,
                    },
                );
            }
            Action::DiskHash {
                io,
                volume,
                span,
                buffer,
            } => {
                self.read(
                    node,
                    volume,
                    span,
                    Target::Read {
                        io,
                        buffer,
                        hash: true,
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
                self.question(node, usize::from(volume.0), generation, term);
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
        let held = ok && !leased && self.nodes[node].seat.term.is_some();
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
    }

    fn read(&mut self, node: usize, volume: VolumeId, span: Span, target: Target) {
        let (start, count) = (span.start / SECTOR, u64::from(span.len) / SECTOR);
        let fault = self.atlas.data_fault(node, false);
        let op = DiskOp::Read { start, count };
        self.submit(node, usize::from(volume.0), op, fault, target);
    }

    fn write(
        &mut self,
        node: usize,
        io: lockstep::engine::IoId,
        volume: VolumeId,
        span: Span,
        buffer: Option<Buffer>,
        fua: bool,
    ) {
        let volume = usize::from(volume.0);
        let (start, count) = (span.start / SECTOR, u64::from(span.len) / SECTOR);
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let stamps = match buffer {
            Some(buffer) => process.stamps(buffer, count as usize),
            None => Some(vec![ZERO; count as usize]),
        };
        let Some(stamps) = stamps else {
            let text = format!("node {node} writes {span} from a buffer that is gone or short");
            return self.oracle.report(12, Check::Contract, text);
        };
        let (origin, term) = match buffer {
            Some(buffer) => process.origin(buffer),
            None => (Origin::Local, None),
        };
        self.check_write(node, volume, span, buffer, origin, term);
        let mut fault = DiskFault::None;
        if buffer.is_some() {
            fault = self.atlas.data_fault(node, true);
            if fault == DiskFault::None {
                fault = self
                    .atlas
                    .silent_fault(node, volume, start, count, self.plan.sectors);
            }
        }
        let op = DiskOp::Write {
            start,
            stamps: stamps.clone(),
            fua,
        };
        self.submit(
            node,
            volume,
            op,
            fault,
            Target::Write {
                io,
                origin,
                start,
                stamps,
            },
        );
    }

    fn submit(&mut self, node: usize, volume: usize, op: DiskOp, fault: DiskFault, target: Target) {
        let mean = self.plan.disk_latency * self.atlas.slow[node];
        let delay = self.rng.delay(mean);
        let n = &mut self.nodes[node];
        let Some(process) = &mut n.process else {
            return;
        };
        let id = n.disks[volume].submit(op, fault);
        process.ios.insert((volume, id), target);
        self.schedule.after(
            delay,
            Happening::Disk {
                node,
                volume,
                op: id,
            },
        );
    }

    fn disk_done(&mut self, node: usize, volume: usize, op: OpId) {
        let target = self.nodes[node]
            .process
            .as_mut()
            .and_then(|p| p.ios.remove(&(volume, op)));
        if let Some(Target::Write {
            origin,
            start,
            stamps,
            ..
        }) = &target
        {
            self.check_landing(node, volume, *origin, *start, stamps);
        }
        let Some(result) = self.nodes[node].disks[volume].complete(op, &mut self.rng) else {
            return;
        };
        let Some(target) = target else { return };
        let plain = match &result {
            DiskResult::Failed(errno) => IoOutcome::Failed(*errno),
            DiskResult::Done | DiskResult::Data(_) => IoOutcome::Done,
        };
        match target {
            Target::Read {
                io,
                buffer,
                hash: hashed,
            } => {
                let mut outcome = plain;
                if let (DiskResult::Data(stamps), Some(process)) =
                    (&result, &mut self.nodes[node].process)
                {
                    process.fill(buffer, stamps);
                    if hashed {
                        outcome = IoOutcome::Hash(hash(stamps));
                    }
                }
                self.feed(node, Event::Io { io, outcome });
            }
            Target::Write { io, .. } | Target::Flush { io } => {
                self.feed(node, Event::Io { io, outcome: plain });
            }
            Target::Meta => self.meta_step_done(node, volume, plain),
        }
    }

    // ---- metadata ----

    fn meta(&mut self, node: usize, volume: usize, io: lockstep::engine::IoId, op: MetaOp) {
        if let MetaOp::Superblock(superblock) = &op {
            self.check_superblock(node, volume, superblock);
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.meta[volume].waiting.push_back((io, op));
        self.meta_next(node, volume);
    }

    /// Starts the next metadata operation when none is under way.
    fn meta_next(&mut self, node: usize, volume: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.meta[volume].current.is_some() {
            return;
        }
        let Some((io, op)) = process.meta[volume].waiting.pop_front() else {
            return;
        };
        if let MetaOp::Log(transaction) = &op {
            process.logging[volume] = Some(transaction.table.as_ref().clone());
        }
        let steps = process.stores[volume]
            .as_mut()
            .and_then(|store| store.plan(&op));
        let failed = steps.is_none().then_some(EIO);
        let steps = steps.unwrap_or_default();
        process.meta[volume].current = Some(MetaWork {
            io,
            op,
            steps,
            failed,
        });
        self.meta_step(node, volume);
    }

    fn meta_step(&mut self, node: usize, volume: usize) {
        let work = self.nodes[node]
            .process
            .as_mut()
            .and_then(|p| p.meta[volume].current.as_mut());
        let Some(work) = work else { return };
        let step = work.steps.pop_front().filter(|_| work.failed.is_none());
        let (op, fault) = match step {
            None => return self.meta_done(node, volume),
            Some(meta::Step::Flush) => (DiskOp::Flush, DiskFault::None),
            Some(meta::Step::Write { offset, bytes }) => {
                let fault = self
                    .atlas
                    .metadata_fault(node, offset, &meta::vital_blocks());
                (DiskOp::MetaWrite { offset, bytes }, fault)
            }
        };
        if fault != DiskFault::None {
            self.note(Some(node), "fault", || format!("metadata write: {fault:?}"));
        }
        self.submit(node, volume, op, fault, Target::Meta);
    }

    fn meta_step_done(&mut self, node: usize, volume: usize, outcome: IoOutcome) {
        if let (IoOutcome::Failed(errno), Some(process)) = (outcome, &mut self.nodes[node].process)
            && let Some(work) = &mut process.meta[volume].current
        {
            work.failed = Some(errno);
            if let Some(store) = &mut process.stores[volume] {
                store.failed();
            }
        }
        self.meta_step(node, volume);
    }

    fn meta_done(&mut self, node: usize, volume: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let Some(work) = process.meta[volume].current.take() else {
            return;
        };
        let outcome = work.failed.map_or(IoOutcome::Done, IoOutcome::Failed);
        let mut left = Vec::new();
        if let MetaOp::Log(transaction) = &work.op {
            process.logging[volume] = None;
            if work.failed.is_none() {
                let table = transaction.table.as_ref().clone();
                let before = std::mem::replace(&mut process.logged[volume], table);
                let now = &process.logged[volume];
                left = before.into_iter().filter(|e| !now.contains(e)).collect();
            }
        }
        self.check_evicted(node, volume, &left);
        self.meta_next(node, volume);
        self.feed(
            node,
            Event::Io {
                io: work.io,
                outcome,
            },
        );
    }

    // ---- network ----

    fn send(
        &mut self,
        node: usize,
        link: LinkId,
        envelope: Envelope,
        payload: Option<(Buffer, u32)>,
    ) {
        let link = link.0 as usize;
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        if self
            .network
            .links
            .get(link)
            .is_none_or(|l| l.closed[node] || !l.up[node])
        {
            return;
        }
        let payload = match payload {
            None => None,
            Some((buffer, len)) => match process.stamps(buffer, len as usize / SECTOR as usize) {
                Some(stamps) => Some(Rc::from(stamps)),
                None => {
                    let text =
                        format!("node {node} sends {len} bytes of {buffer:?}: gone or short");
                    return self.oracle.report(12, Check::Contract, text);
                }
            },
        };
        if matches!(envelope.message, Message::Ready) {
            self.check_session(node, link);
        }
        self.learn_session(node, link, envelope.session);
        self.note_carrier(node, &envelope);
        let frame = Frame::Message(Box::new(envelope), payload);
        self.put(link, node, frame);
    }

    /// Puts a frame on the wire.
    pub fn put(&mut self, link: usize, direction: usize, frame: Frame) {
        let now = self.schedule.now();
        if let Some(delivery) = self
            .network
            .send(link, direction, frame, now, &mut self.rng)
        {
            self.deliver(delivery);
        }
    }

    pub fn deliver(&mut self, delivery: Delivery) {
        let Delivery {
            link,
            direction,
            at,
        } = delivery;
        self.schedule.at(at, Happening::Arrive { link, direction });
    }

    fn arrive(&mut self, link: usize, direction: usize) {
        let side = 1 - direction;
        let Some(frame) = self.network.arrive(link, direction) else {
            return;
        };
        let state = &self.network.links[link];
        // A driver may have read frames before it was told to close their link.
        let late = state.closed[side] && self.nodes[side].process.is_some() && self.rng.chance(300);
        if state.closed[side] && !late {
            if !self.network.links[link].closed[direction] {
                self.put(link, side, Frame::Close);
            }
            return;
        }
        match frame {
            Frame::Close if late => {}
            Frame::Close => {
                self.network.links[link].closed[side] = true;
                let reason = LinkLoss::Closed;
                self.feed(
                    side,
                    Event::LinkDown {
                        link: LinkId(link as u64),
                        reason,
                    },
                );
                self.redial();
            }
            Frame::Message(envelope, payload) => {
                self.learn_session(side, link, envelope.session);
                let Some(process) = &mut self.nodes[side].process else {
                    return;
                };
                let buffer = payload.map(|payload| {
                    let incarnation = process.incarnation;
                    let sync = matches!(envelope.message, Message::SyncWrite { .. });
                    if matches!(envelope.message, Message::Write { .. }) && !late {
                        payload
                            .iter()
                            .for_each(|s| self.oracle.received(*s, incarnation));
                    }
                    let (session, term) = (envelope.session, envelope.term);
                    process.keep(Received {
                        payload,
                        session,
                        term,
                        sync,
                    })
                });
                let link = LinkId(link as u64);
                self.feed(
                    side,
                    Event::Message {
                        link,
                        envelope: *envelope,
                        buffer,
                    },
                );
            }
        }
    }

    fn want_link(&mut self, node: usize, want: bool) {
        if let Some(process) = &mut self.nodes[node].process {
            process.want_link = want;
        }
        self.redial();
    }

    /// Makes sure that an attempt to connect is on its way while one is wanted.
    pub fn redial(&mut self) {
        if !self.dialing {
            self.dialing = true;
            let back_off = self.rng.range(20, 600) * MILLI;
            self.schedule.after(back_off, Happening::Dial);
        }
    }

    /// The lower node dials.
    fn dial(&mut self) {
        self.dialing = false;
        let wants = |n: &Node| n.process.as_ref().is_some_and(|p| p.want_link);
        if !wants(&self.nodes[0]) {
            return;
        }
        if self.network.current(0).is_some() {
            return;
        }
        let ready = wants(&self.nodes[1]) && self.nodes.iter().all(|n| !n.paused);
        if !ready || !self.network.reachable() {
            return self.redial();
        }
        let now = self.schedule.now();
        let mean = self.plan.network_latency;
        let up_at = [now + self.rng.delay(mean), now + self.rng.delay(mean)];
        let link = self.network.open(up_at);
        for (side, at) in up_at.into_iter().enumerate() {
            self.schedule.at(at, Happening::Up { link, side });
        }
    }

    fn link_up(&mut self, link: usize, side: usize) {
        let dead = self.network.links[link].dead || self.network.links[link].closed[side];
        let wanted = self.nodes[side]
            .process
            .as_ref()
            .is_some_and(|p| p.want_link);
        if dead || !wanted {
            self.network.links[link].closed[side] = true;
            self.put(link, side, Frame::Close);
            return self.redial();
        }
        self.network.links[link].up[side] = true;
        let peer = NodeId(1 - side as u8);
        self.feed(
            side,
            Event::LinkUp {
                link: LinkId(link as u64),
                peer,
            },
        );
    }

    fn link_broken(&mut self, link: usize, side: usize) {
        let state = &mut self.network.links[link];
        if state.up[side] && !state.closed[side] {
            state.closed[side] = true;
            let reason = LinkLoss::Network(104);
            self.feed(
                side,
                Event::LinkDown {
                    link: LinkId(link as u64),
                    reason,
                },
            );
        }
        self.network.links[link].closed[side] = true;
        self.redial();
    }

    fn close_link(&mut self, node: usize, link: LinkId) {
        let link = link.0 as usize;
        if self.network.links.get(link).is_none_or(|l| l.closed[node]) {
            return;
        }
        self.network.links[link].closed[node] = true;
        if self.rng.chance(300) {
            // Unsent frames go with the connection; deliveries of theirs find an empty queue.
            self.network.truncate(link, node, &mut self.rng);
        }
        self.put(link, node, Frame::Close);
        self.redial();
    }

    // ---- front end ----

    pub fn serve(&mut self, node: usize, serve: bool) {
        let leased = self.leased(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.opens = serve && !leased;
        if process.opens {
            return;
        }
        let was = std::mem::replace(&mut process.serving, serve);
        if !serve || was {
            return;
        }
        process.status = process.engine.status();
        self.check_promotion(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.forced = std::mem::take(&mut process.forcing);
        self.nodes[node].forced.clear();
        self.wake_clients(node);
        self.abandon(1 - node);
        self.reissue(node);
    }

    /// Lets the applications of a serving node go to work; they stop when their requests are used
    /// up.
    pub fn wake_clients(&mut self, node: usize) {
        if !self.nodes[node].serving() {
            return;
        }
        let incarnation = self.nodes[node].incarnations;
        for volume in 0..self.plan.volumes {
            let pause = self.clients[node][volume].pause();
            self.schedule.after(
                pause,
                Happening::Client {
                    node,
                    volume,
                    incarnation,
                },
            );
        }
    }

    /// Requests that a dead data plane left behind will never be answered.
    pub fn abandon(&mut self, node: usize) {
        for request in std::mem::take(&mut self.nodes[node].orphans) {
            if let Some(id) = request.write {
                self.oracle.end(id, Outcome::Unknown);
            }
        }
    }

    fn reissue(&mut self, node: usize) {
        for mut request in std::mem::take(&mut self.nodes[node].orphans) {
            if let Some(id) = request.write {
                self.oracle.resubmit(id, node);
            }
            request.submitted = self.oracle.tick();
            self.hand_in(node, request);
        }
    }

    fn client(&mut self, node: usize, volume: usize, incarnation: u32) {
        if !self.is(node, incarnation) || !self.nodes[node].serving() || self.requests_left == 0 {
            return;
        }
        let client = &mut self.clients[node][volume];
        let pause = client.pause();
        self.schedule.after(
            pause,
            Happening::Client {
                node,
                volume,
                incarnation,
            },
        );
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let open = process
            .requests
            .values()
            .filter(|r| r.volume == volume)
            .count();
        if open >= client.in_flight_max {
            return;
        }
        let ask = client.ask();
        self.requests_left -= 1;
        let (start, count) = (ask.start, ask.count);
        let write = match ask.wish {
            Wish::Write { fua } => Some(self.oracle.submit(node, volume, start, count, false, fua)),
            Wish::Zeroes { fua, .. } => {
                Some(self.oracle.submit(node, volume, start, count, true, fua))
            }
            Wish::Discard => Some(self.oracle.submit(node, volume, start, count, true, false)),
            Wish::Read | Wish::Flush => None,
        };
        let stamp = write.map_or(ZERO, crate::oracle::stamp_of);
        let request = Request {
            volume,
            wish: ask.wish,
            start,
            count,
            submitted: self.oracle.tick(),
            write,
            data: vec![stamp; count as usize],
        };
        self.hand_in(node, request);
    }

    fn hand_in(&mut self, node: usize, request: Request) {
        let span = Span::new(request.start * SECTOR, (request.count * SECTOR) as u32);
        let op = match request.wish {
            Wish::Read => Op::Read { span },
            Wish::Write { fua } => Op::Write { span, fua },
            Wish::Zeroes { unmap, fua } => Op::WriteZeroes { span, unmap, fua },
            Wish::Discard => Op::Discard { span },
            Wish::Flush => Op::Flush,
        };
        let volume = VolumeId(request.volume as u16);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let id = process.request_id();
        process.requests.insert(id, request);
        let event = Event::Request(lockstep::engine::Request { id, volume, op });
        self.feed(node, event);
    }

    // ---- description ----

    /// Both nodes in one line.
    pub fn picture(&self) -> String {
        let mut parts = Vec::new();
        for node in &self.nodes {
            let text = match &node.process {
                Some(process) => {
                    let c = &process.status.connection;
                    let disks: Vec<String> = process
                        .status
                        .devices
                        .iter()
                        .zip(&c.peer_devices)
                        .map(|(d, p)| format!("{}/{} {}", d.disk, p.peer_disk, p.replication))
                        .collect();
                    let open = process.requests.len();
                    format!(
                        "node {} {} {} [{}] open {open} reason {:?}",
                        node.id,
                        process.status.role,
                        c.state,
                        disks.join(", "),
                        c.reason
                    )
                }
                None => format!("node {} down", node.id),
            };
            parts.push(text);
        }
        parts.push(format!(
            "requests to make {}, disks busy {:?}, wire idle {}",
            self.requests_left,
            [self.nodes[0].busy(), self.nodes[1].busy()],
            self.network.idle()
        ));
        parts.join("; ")
    }

    fn trace_event(&mut self, node: usize, event: &Event) {
        let text = match event {
            Event::Message { link, envelope, .. } => {
                let message = brief(&envelope.message);
                format!(
                    "link {} session {:x} term {} {message}",
                    link.0, envelope.session.0, envelope.term
                )
            }
            Event::Command {
                id,
                command: Command::Attach { volume, image },
            } => {
                format!("command {} attach {volume} {:?}", id.0, image.superblock)
            }
            other => format!("{other:?}"),
        };
        self.note(Some(node), "event", || text);
    }

    fn trace_action(&mut self, node: usize, action: &Action) {
        let text = match action {
            Action::Publish(_)
            | Action::Release { .. }
            | Action::Track { .. }
            | Action::Untrack { .. } => return,
            Action::Send { link, envelope, .. } => {
                let message = brief(&envelope.message);
                format!(
                    "send on {} session {:x} term {} {message}",
                    link.0, envelope.session.0, envelope.term
                )
            }
            Action::Meta { io, volume, op } => match op {
                MetaOp::Superblock(s) => format!("superblock {io:?} {volume} {s:?}"),
                MetaOp::Log(t) => format!("log {io:?} {volume} {:?}", t.changes),
                MetaOp::Bitmap { pages, .. } => {
                    let pages: Vec<u32> = pages.iter().map(|p| p.0).collect();
                    format!("bitmap {io:?} {volume} {pages:?}")
                }
            },
            other => format!("{other:?}"),
        };
        self.note(Some(node), "action", || text);
    }
}

/// A message without the words of a bitmap.
fn brief(message: &Message) -> String {
    match message {
        Message::Bitmap(chunk) => format!("Bitmap {} {}", chunk.volume, chunk.index),
        Message::SyncCompare {
            id, volume, span, ..
        } => format!("SyncCompare {id} {volume} {span}"),
        other => format!("{other:?}"),
    }
}
