//! The third voter of `--nodes 3`: the product's [`Voter`] with a record that takes its time to
//! become durable, on a machine that restarts and loses its disk.
//!
//! What may happen to it is bounded by what the design promises. It restarts at any time. Its
//! record is lost, or comes back from an old copy, only while whoever reigned last is there, knows
//! all of what is lost and can tell it; and until it has, the atlas spares that node and its path.

use std::collections::VecDeque;

use lockstep::engine::{NodeId, Term, Time, VolumeId};
use lockstep::failover::{Answer, Data, Known, Memory, Question, Record, Voter, VoterConfig};

use crate::agent::Agent;
use crate::datagrams::{Letter, WITNESS};
use crate::meta::FIRST_GENERATION;
use crate::node::Node;
use crate::rng::Rng;
use crate::scenario::Plan;
use crate::schedule::{Instant, MILLI, SECOND};
use crate::world::{Happening, Phase, World};

/// What a restart of the witness finds of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Kept,
    Nothing,
    OldCopy,
}

/// An answer that waits for the record to be durable.
struct Reply {
    version: u64,
    to: usize,
    id: u64,
    answer: Answer,
}

/// See the module's description.
pub struct Witness {
    voter: Option<Voter>,
    /// Tells its lives apart.
    start: u32,
    /// Durable, and whether that is more than nothing.
    kept: Record,
    blank: bool,
    /// Everything that ever was durable.
    copies: Vec<Record>,
    /// The latest that ever was durable, whatever became of the disk.
    pub best: Record,
    /// On its way to the disk.
    storing: VecDeque<(u64, Record)>,
    version: u64,
    stored: u64,
    replies: VecDeque<Reply>,
    /// Its record is behind what this node has to tell it.
    needs: Option<(usize, Term, (Term, u64))>,
    clock_offset: u64,
    clock_ppm: i64,
}

impl Witness {
    /// Not started yet; both nodes have told it their first generations, if there are any.
    pub fn new(first: Record, blank: bool, rng: &mut Rng) -> Witness {
        Witness {
            voter: None,
            start: 0,
            blank,
            copies: vec![first.clone()],
            best: first.clone(),
            kept: first,
            storing: VecDeque::new(),
            version: 0,
            stored: 0,
            replies: VecDeque::new(),
            needs: None,
            clock_offset: rng.range(1, 1_000) * SECOND,
            clock_ppm: rng.range(0, 4_000) as i64 - 2_000,
        }
    }

    fn clock(&self, now: Instant) -> Time {
        let drift = i128::from(now) * i128::from(self.clock_ppm) / 1_000_000;
        Time((i128::from(now) + i128::from(self.clock_offset) + drift).max(0) as u64)
    }

    fn keep(&mut self, record: Record) {
        self.blank = false;
        self.best.term = self.best.term.max(record.term);
        self.best.data = self.best.data.later(&record.data).clone();
        self.copies.push(record.clone());
        self.kept = record;
    }

    /// It ends; of what was on its way to the disk the first changes may have arrived.
    fn die(&mut self, rng: &mut Rng) {
        self.voter = None;
        let landed = rng.below(self.storing.len() as u64 + 1);
        for _ in 0..landed {
            if let Some((_, record)) = self.storing.pop_front() {
                self.keep(record);
            }
        }
        self.storing.clear();
        self.replies.clear();
    }
}

impl World {
    /// What the voters begin with: both nodes have told the witness their first generations, if
    /// there are any. Draws nothing from the run's own numbers.
    pub fn first_records(plan: &Plan, nodes: &mut [Node], rng: &Rng) -> Witness {
        let mut rng = rng.clone().fork();
        let mut first = Record::blank(rng.next());
        if plan.synced {
            first.data.count = 1;
            let volumes = (0..plan.volumes).map(|v| VolumeId(v as u16));
            first.data.generations = volumes.map(|v| (v, FIRST_GENERATION)).collect();
        }
        for node in nodes {
            let mut memory = Memory::blank(rng.next());
            memory.record.data = first.data.clone();
            node.agent = Agent::new(memory, !plan.synced);
        }
        Witness::new(first, !plan.synced, &mut rng)
    }

    pub fn start_witness(&mut self, start: u32, found: Found) {
        if self.witness.voter.is_some() || self.witness.start != start {
            return;
        }
        let lost = if found == Found::Kept {
            None
        } else {
            self.can_tell_witness()
        };
        let witness = &mut self.witness;
        if lost.is_some() {
            witness.needs = lost;
            if found == Found::Nothing {
                witness.kept = Record::blank(self.rng.next());
                witness.blank = true;
                self.coverage.fault("witness blank");
            } else {
                let old = self.rng.below(witness.copies.len() as u64) as usize;
                witness.kept = witness.copies[old].clone();
                witness.blank = false;
                self.coverage.fault("witness restored");
            }
        }
        let config = VoterConfig {
            nodes: [NodeId(0), NodeId(1)],
            lease: self.plan.voting.lease,
        };
        let now = witness.clock(self.schedule.now());
        let voter = Voter::start(config, witness.kept.clone(), witness.blank, now);
        witness.voter = Some(voter.sabotaged(self.options.sabotage));
        witness.stored = witness.version;
        witness.start += 1;
        let kept = self.witness.kept.clone();
        self.note(None, "witness", || format!("starts with {kept:?}"));
    }

    /// The witness ends and comes back.
    pub fn restart_witness(&mut self, found: Found) {
        if self.witness.voter.is_none() {
            return;
        }
        self.note(None, "fault", || format!("the witness restarts: {found:?}"));
        self.witness.die(&mut self.rng);
        self.coverage.fault("witness restart");
        let start = self.witness.start;
        let delay = self.rng.delay(500 * MILLI).min(5 * SECOND);
        self.schedule
            .after(delay, Happening::Witness { start, found });
    }

    /// Who can tell the witness everything that counts, and what that is.
    fn can_tell_witness(&self) -> Option<(usize, Term, (Term, u64))> {
        if self.phase != Phase::Safety {
            return None;
        }
        let best = &self.witness.best;
        let records = || self.nodes.iter().map(|n| n.agent.record());
        let term = records().map(|r| r.term).fold(best.term, Term::max);
        let data = records().fold(&best.data, |data, r| Data::later(data, &r.data));
        let node = usize::from(term.node.0);
        let n = self.nodes.get(node)?;
        let now = self.schedule.now();
        let reaches =
            !self.paths.is_cut(node, WITNESS, now) && !self.paths.is_cut(WITNESS, node, now);
        let durable = n.agent.durable();
        let knows = durable.term == term && durable.data.version() == data.version();
        (n.agent.alive() && !n.paused && reaches && knows).then(|| (node, term, data.version()))
    }

    /// A node whose word the witness needs.
    pub fn spared(&self, node: usize) -> bool {
        self.witness.needs.is_some_and(|(n, ..)| n == node)
    }

    /// Whether nothing is lost on a path.
    pub fn calm_path(&self, from: usize, to: usize) -> bool {
        let spared = |node, other| other == WITNESS && self.spared(node);
        self.phase != Phase::Safety || spared(from, to) || spared(to, from)
    }

    /// A question reaches the witness.
    pub fn witness_asked(&mut self, from: usize, id: u64, known: &Known, question: &Question) {
        let witness = &mut self.witness;
        let now = witness.clock(self.schedule.now());
        let Some(voter) = &mut witness.voter else {
            return;
        };
        let (answer, changed) = voter.handle(now, NodeId(from as u8), known, question);
        let result = answer.result;
        let record = voter.record().clone();
        if witness
            .needs
            .is_some_and(|(_, term, data)| record.term >= term && record.data.version() >= data)
        {
            witness.needs = None;
        }
        if changed {
            witness.version += 1;
            witness.storing.push_back((witness.version, record));
            let (start, version) = (witness.start, witness.version);
            let delay = self.rng.delay(self.plan.voting.store_latency);
            self.schedule
                .after(delay, Happening::WitnessStored { start, version });
        }
        let witness = &mut self.witness;
        witness.replies.push_back(Reply {
            version: witness.version,
            to: from,
            id,
            answer,
        });
        if let Err(denied) = result {
            self.coverage.denied(&denied);
        }
        self.note(Some(from), "witness", || {
            format!("{question:?}: {result:?}")
        });
        self.witness_replies();
    }

    /// What was on its way to the witness's disk is there.
    pub fn witness_stored(&mut self, start: u32, version: u64) {
        if self.witness.start != start || self.witness.voter.is_none() {
            return;
        }
        // Changes arrive in their order.
        while let Some((done, record)) = self.witness.storing.pop_front_if(|(v, _)| *v <= version) {
            self.witness.stored = done;
            self.witness.keep(record);
        }
        self.witness_replies();
    }

    fn witness_replies(&mut self) {
        let stored = self.witness.stored;
        while let Some(reply) = self.witness.replies.pop_front_if(|r| r.version <= stored) {
            let Reply { to, id, answer, .. } = reply;
            self.post(WITNESS, to, Letter::Reply { id, answer });
        }
    }
}
