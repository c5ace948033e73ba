//! A node's agent at work: leases, votes, and the questions of the engine.
//!
//! The seat keeps the lease of a node that reigns. A completion passes only while the lease lasts,
//! and the front end opens only then; a node that comes back too late (it was stopped, or cut off)
//! waits for the voters' word: it goes on, or it is deposed.

use lockstep::engine::{
    Command, DiskState, Event, Generation, Ground, NodeId, Role, Term, VolumeId,
};
use lockstep::failover::{Copy, Denied, Input, Other, Output, Seat, SeatConfig};

use crate::agent::Wanted;
use crate::datagrams::{Letter, WITNESS};
use crate::node::Purpose;
use crate::oracle::Check;
use crate::schedule::{Instant, MICRO, MILLI};
use crate::verify::in_step;
use crate::world::{Happening, World};

/// The longest that a question of the engine takes to its agent.
const HAND_OVER: Instant = MILLI;

impl World {
    /// Whether completions of a node pass. Without a voter there is no lease.
    pub fn leased(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        let lasts = |until| n.clock(self.schedule.now()) < until;
        !self.options.voter || n.agent.page.is_some_and(lasts)
    }

    /// Whether a node really serves.
    pub fn reigns(&self, node: usize) -> bool {
        self.nodes[node].serving() && self.leased(node)
    }

    // ---- life of the agent ----

    /// An agent starts, beside a data plane that it finds or before one that it will start.
    pub fn start_agent(&mut self, node: usize) {
        if !self.options.voter || self.nodes[node].agent.alive() {
            return;
        }
        let voting = &self.plan.voting;
        let config = SeatConfig {
            me: NodeId(node as u8),
            peer: NodeId(1 - node as u8),
            lease: voting.lease,
            beat: voting.beat,
            retry: voting.retry,
            patience: voting.patience,
        };
        let n = &mut self.nodes[node];
        let now = n.clock(self.schedule.now());
        let (memory, blank) = n.agent.remembered();
        n.agent.start += 1;
        let seat = Seat::start(config, memory, blank, now);
        n.agent.seat = Some(seat.sabotaged(self.options.sabotage));
        let (record, start) = (n.agent.record().clone(), n.agent.start);
        self.note(Some(node), "agent", || {
            format!("life {start} with {record:?}")
        });
        let own = (0..self.plan.volumes).filter_map(|v| self.nodes[node].superblock(v));
        let own = own.map(|s| s.term).max().unwrap_or(Term::ZERO);
        match self.nodes[node].agent.term {
            Some(term) if self.nodes[node].process.is_some() => {
                self.give(node, Input::Resume { term });
            }
            _ => self.give(node, Input::Reigned { term: own }),
        }
        for wanted in self.nodes[node].agent.wanted.clone() {
            self.give(node, put(wanted));
        }
    }

    /// The agent alone ends and comes back; the data plane goes on as long as its page says.
    pub fn restart_agent(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if !n.running() || !n.agent.alive() {
            return;
        }
        n.agent.die(&mut self.rng);
        let start = n.agent.start;
        self.note(Some(node), "fault", || {
            "the agent alone restarts".to_string()
        });
        self.coverage.fault("agent restart");
        let delay = self.rng.range(5, 2_500) * MILLI;
        self.schedule
            .after(delay, Happening::StartAgent { node, start });
    }

    /// The agent that ended alone starts again, unless the node ended meanwhile.
    pub fn agent_back(&mut self, node: usize, start: u32) {
        let n = &self.nodes[node];
        if n.agent.start == start && n.process.is_some() {
            self.start_agent(node);
        }
    }

    /// What arrived while the node was stopped.
    pub fn agent_resumes(&mut self, node: usize) {
        while !self.nodes[node].paused
            && let Some(input) = self.nodes[node].agent.inbox.pop_front()
        {
            self.give(node, input);
        }
        self.look_after(node);
    }

    // ---- driving the seat ----

    /// Gives an input to a node's seat and carries out what it answers, in order.
    pub fn give(&mut self, node: usize, input: Input) {
        let leased = self.leased(node);
        let n = &mut self.nodes[node];
        if n.paused {
            return n.agent.inbox.push_back(input);
        }
        let now = n.clock(self.schedule.now());
        let Some(seat) = &mut n.agent.seat else {
            return;
        };
        let mut out = Vec::new();
        seat.handle(now, input, &mut out);
        n.agent.page = seat.serves_until();
        self.check_deposed(node, leased, &out);
        let agent = &mut self.nodes[node].agent;
        agent.outbox.extend(out);
        if std::mem::replace(&mut agent.busy, true) {
            return;
        }
        while let Some(output) = self.nodes[node].agent.outbox.pop_front() {
            self.carry(node, output);
        }
        self.nodes[node].agent.busy = false;
        if self.leased(node) {
            self.lease_renewed(node);
        }
        self.check_lease();
        self.arm_agent(node);
    }

    fn arm_agent(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let Some(deadline) = n.agent.seat.as_ref().and_then(Seat::next_deadline) else {
            return;
        };
        let now = self.schedule.now();
        let at = n.when(deadline).max(now + MICRO);
        if n.agent.tick_at.is_none_or(|t| at < t || t <= now) {
            n.agent.tick_at = Some(at);
            let start = n.agent.start;
            self.schedule.at(at, Happening::AgentTick { node, start });
        }
    }

    /// The agent's regular look at its node.
    pub fn agent_tick(&mut self, node: usize, start: u32) {
        let now = self.schedule.now();
        let agent = &mut self.nodes[node].agent;
        if agent.start != start || agent.tick_at != Some(now) {
            return;
        }
        agent.tick_at = None;
        if !self.nodes[node].paused {
            self.look_after(node);
        }
    }

    fn look_after(&mut self, node: usize) {
        let agent = &self.nodes[node].agent;
        let reigns = agent.seat.as_ref().is_some_and(|s| s.reign().is_some());
        if reigns && !self.wants_lease(node) {
            self.nodes[node].agent.dethrone();
            self.fail_held(node);
            self.give(node, Input::Release);
        }
        self.give(node, Input::Tick);
        if self.nodes[node].recover_role && !self.nodes[node].serving() {
            self.recover_reign(node);
        }
    }

    fn carry(&mut self, node: usize, output: Output) {
        match output {
            Output::Ask {
                to,
                id,
                known,
                question,
            } => {
                let to = if to == Other::Third {
                    WITNESS
                } else {
                    1 - node
                };
                let letter = Letter::Ask {
                    id,
                    known,
                    question,
                };
                self.post(node, to, letter);
            }
            Output::Reply { id, answer } => {
                if let Err(denied) = answer.result {
                    self.coverage.denied(&denied);
                }
                self.post(node, 1 - node, Letter::Reply { id, answer });
            }
            Output::Store { version, memory } => {
                let agent = &mut self.nodes[node].agent;
                agent.store(version, memory);
                let start = agent.start;
                let delay = self.rng.delay(self.plan.voting.store_latency);
                let stored = Happening::AgentStored {
                    node,
                    start,
                    version,
                };
                self.schedule.after(delay, stored);
            }
            Output::Voted { force, vote } => self.vote_done(node, force, Ground::Voter(vote)),
            Output::Denied(denied) => self.vote_denied(node, denied),
            Output::Recorded { volume, generation } => {
                self.note(Some(node), "vote", || {
                    format!("{volume} {generation} recorded")
                });
                self.coverage.fault("generation recorded");
                let wanted = &mut self.nodes[node].agent.wanted;
                let done = |w: &Wanted| (w.0, w.1) == (usize::from(volume.0), generation);
                if let Some(index) = wanted.iter().position(done) {
                    wanted.remove(index);
                }
                self.feed(node, Event::VoterRecorded { volume, generation });
            }
            Output::Deposed { term } => {
                self.coverage.fault("deposed");
                self.depose(node, term);
            }
        }
    }

    /// What was on its way to the agent's file is there.
    pub fn agent_stored(&mut self, node: usize, start: u32, version: u64) {
        let agent = &mut self.nodes[node].agent;
        if agent.start == start && agent.alive() {
            agent.stored(version);
            self.give(node, Input::Stored { version });
        }
    }

    // ---- leases ----

    fn wants_lease(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.recover_role
            || n.agent.asking.is_some()
            || self.is_primary(node)
            || n.process
                .as_ref()
                .is_some_and(|p| p.commands.values().any(|c| *c == Purpose::Primary))
    }

    fn lease_renewed(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let held = std::mem::take(&mut process.held);
        let opens = std::mem::take(&mut process.opens);
        for request in held {
            self.pass(node, request, true);
        }
        if opens {
            self.serve(node, true);
        }
    }

    /// The voters name another: what was held back fails, and the engine steps down.
    fn depose(&mut self, node: usize, term: Term) {
        let agent = &mut self.nodes[node].agent;
        if agent.term.is_some_and(|own| own > term) {
            // About an earlier reign.
            return;
        }
        agent.dethrone();
        self.nodes[node].recover_role = false;
        self.abandon(node);
        self.fail_held(node);
        self.feed(node, Event::Deposed { term });
    }

    fn fail_held(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.opens = false;
        for request in std::mem::take(&mut process.held) {
            self.pass(node, request, false);
        }
    }

    // ---- votes ----

    /// Asks for the vote; with it goes the promotion.
    pub fn ask_vote(&mut self, node: usize, force: bool, again: Option<Term>) {
        if self.is_primary(node) && self.nodes[node].agent.term.is_some() {
            // It waits for its lease.
            return;
        }
        let copies = self.copies(node);
        let n = &mut self.nodes[node];
        let free = n.agent.seat.as_ref().is_some_and(|seat| !seat.asking());
        if !free || copies.is_empty() {
            return;
        }
        n.agent.asking = n.process.as_ref().map(|p| p.incarnation);
        self.note(Some(node), "vote", || {
            format!("asks, again {again:?}, force {force}")
        });
        let random = self.rng.next() as u32;
        let input = Input::Vote {
            again,
            copies,
            force,
            random,
        };
        self.give(node, input);
    }

    fn vote_done(&mut self, node: usize, force: bool, ground: Ground) {
        let Ground::Voter(vote) = ground.clone() else {
            return;
        };
        self.note(Some(node), "vote", || format!("{vote:?}"));
        self.coverage.fault("voted");
        // Others may have reigned since.
        self.fail_held(node);
        let agent = &mut self.nodes[node].agent;
        agent.term = Some(vote.term);
        // The next data plane asks for itself.
        if let Some(incarnation) = agent.asking.take()
            && self.is(node, incarnation)
        {
            if self.is_primary(node) {
                // Under an earlier reign.
                self.feed(node, Event::Deposed { term: vote.term });
            }
            self.ask_promotion(node, force, ground);
        }
    }

    fn is_primary(&self, node: usize) -> bool {
        let process = self.nodes[node].process.as_ref();
        process.is_some_and(|p| p.status.role == Role::Primary)
    }

    fn vote_denied(&mut self, node: usize, denied: Denied) {
        self.note(Some(node), "vote", || format!("denied: {denied:?}"));
        self.nodes[node].agent.asking = None;
        let again = match denied {
            Denied::Silence | Denied::Starting { .. } | Denied::Candidate | Denied::Doubt => true,
            Denied::Held { .. }
            | Denied::Stale { .. }
            | Denied::Overtaken
            | Denied::NotRecorded
            | Denied::Behind
            | Denied::Stranger => false,
        };
        if !again {
            self.nodes[node].recover_role = false;
            self.abandon(node);
        }
    }

    /// The data plane died, its agent did not: the reign goes on if it is still the last one.
    pub fn recover_reign(&mut self, node: usize) {
        let again = self.nodes[node].agent.term;
        let busy = self.nodes[node]
            .process
            .as_ref()
            .is_none_or(|p| p.commands.values().any(|c| *c == Purpose::Primary));
        if again.is_some() && !busy {
            self.ask_vote(node, false, again);
        }
    }

    fn copies(&self, node: usize) -> Vec<Copy> {
        let Some(process) = self.nodes[node]
            .process
            .as_ref()
            .filter(|_| !self.nodes[node].paused)
        else {
            return Vec::new();
        };
        let status = process.engine.status();
        let pairs = status.devices.iter().zip(&status.connection.peer_devices);
        pairs
            .enumerate()
            .map(|(volume, (device, peer))| {
                let ancestry = std::iter::once(device.base).chain(device.history.iter().copied());
                Copy {
                    volume: VolumeId(volume as u16),
                    current: Generation(device.current),
                    ancestry: ancestry.map(Generation).filter(|g| !g.is_fresh()).collect(),
                    agreed: in_step(peer.replication)
                        && (device.disk, peer.peer_disk)
                            == (DiskState::UpToDate, DiskState::UpToDate),
                }
            })
            .collect()
    }

    /// Gives the engine the command to become primary.
    pub fn ask_promotion(&mut self, node: usize, force: bool, ground: Ground) {
        if let Some(process) = &mut self.nodes[node].process {
            process.forcing = force;
        }
        self.command(node, Command::Primary { force, ground }, Purpose::Primary);
    }

    // ---- records ----

    /// The engine wants a generation recorded; its agent hears of it.
    pub fn want_record(&mut self, node: usize, wanted: Wanted) {
        self.nodes[node].agent.wanted.push(wanted);
        let start = self.nodes[node].agent.start;
        // One after the other: a stream leads from the data plane to its agent.
        let delay = self.rng.below(HAND_OVER);
        let agent = &mut self.nodes[node].agent;
        agent.handed_at = agent.handed_at.max(self.schedule.now() + delay);
        let at = agent.handed_at;
        let happening = Happening::Wanted {
            node,
            start,
            wanted,
        };
        self.schedule.at(at, happening);
    }

    /// An agent that has started meanwhile has been told everything.
    pub fn wanted(&mut self, node: usize, start: u32, wanted: Wanted) {
        if self.nodes[node].agent.start == start {
            self.give(node, put(wanted));
        }
    }

    // ---- checks ----

    /// While a lease lasts nobody else can have been given the reign: nobody deposes its owner.
    fn check_deposed(&mut self, node: usize, leased: bool, out: &[Output]) {
        let other = out.iter().find_map(|output| match output {
            Output::Deposed { term } if usize::from(term.node.0) != node => Some(*term),
            _ => None,
        });
        if let Some(term) = other.filter(|_| leased) {
            let text = format!("node {node} is deposed by term {term} while its lease lasts");
            self.oracle.report(6, Check::Lease, text);
        }
    }

    /// Completions of one node pass at a time.
    pub fn check_lease(&mut self) {
        let passes = |node: usize| {
            let n = &self.nodes[node];
            let open = |p: &crate::node::Process| p.serving || !p.requests.is_empty();
            n.running() && n.process.as_ref().is_some_and(open) && self.leased(node)
        };
        if self.options.voter && passes(0) && passes(1) {
            let terms = [0, 1].map(|n: usize| self.nodes[n].agent.term);
            let text = format!("both nodes serve under a lease: terms {terms:?}");
            self.oracle.report(6, Check::Lease, text);
        }
    }
}

fn put((volume, generation, term): Wanted) -> Input {
    Input::Record {
        volume: VolumeId(volume as u16),
        generation,
        term,
    }
}
