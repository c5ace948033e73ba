//! The part of a node's agent that votes: the product's [`Seat`], what it keeps durably, and what
//! the data plane has from it.
//!
//! The seat lives and dies with the agent. Its memory becomes durable with a delay and outlives
//! everything. The data plane reads from a page until when completions pass; the page outlives the
//! agent, and so do the questions that the data plane has put.

use std::collections::VecDeque;

use lockstep::engine::{Generation, Term, Time};
use lockstep::failover::{Input, Memory, Output, Record, Seat};

use crate::rng::Rng;
use crate::schedule::Instant;

/// A record that the engine wants: volume, generation, and the term under which.
pub type Wanted = (usize, Generation, Term);

/// See the module's description.
pub struct Agent {
    pub seat: Option<Seat>,
    /// Tells its lives apart.
    pub start: u32,
    memory: Memory,
    /// Nothing was ever stored.
    blank: bool,
    storing: VecDeque<(u64, Memory)>,
    pub tick_at: Option<Instant>,
    /// What arrived while the node was stopped.
    pub inbox: VecDeque<Input>,
    /// What the seat has said and is not done yet.
    pub outbox: VecDeque<Output>,
    /// It is being done.
    pub busy: bool,
    /// Until when completions pass, on the node's clock.
    pub page: Option<Time>,
    /// The reign that the data plane was given.
    pub term: Option<Term>,
    /// The incarnation of the data plane for which a vote is asked.
    pub asking: Option<u32>,
    /// What the data plane wants to have recorded.
    pub wanted: Vec<Wanted>,
    /// When the last of that reaches the agent.
    pub handed_at: Instant,
}

impl Agent {
    pub fn new(memory: Memory, blank: bool) -> Agent {
        Agent {
            seat: None,
            start: 0,
            memory,
            blank,
            storing: VecDeque::new(),
            tick_at: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            busy: false,
            page: None,
            term: None,
            asking: None,
            wanted: Vec::new(),
            handed_at: 0,
        }
    }

    pub fn alive(&self) -> bool {
        self.seat.is_some()
    }

    /// What its voter has on record, or had.
    pub fn record(&self) -> &Record {
        self.seat
            .as_ref()
            .map_or(&self.memory.record, |seat| seat.record())
    }

    /// What its voter has on record durably.
    pub fn durable(&self) -> &Record {
        &self.memory.record
    }

    /// What a seat starts with: the memory, and whether there is none.
    pub fn remembered(&self) -> (Memory, bool) {
        (self.memory.clone(), self.blank)
    }

    pub fn store(&mut self, version: u64, memory: Memory) {
        self.storing.push_back((version, memory));
    }

    /// Everything up to a version is durable.
    pub fn stored(&mut self, version: u64) {
        while let Some((_, memory)) = self.storing.pop_front_if(|(v, _)| *v <= version) {
            self.memory = memory;
            self.blank = false;
        }
    }

    /// The agent ends; of what was on its way to the disk the first versions may have arrived.
    pub fn die(&mut self, rng: &mut Rng) {
        let landed = rng.below(self.storing.len() as u64 + 1) as usize;
        if let Some((version, _)) = landed.checked_sub(1).and_then(|n| self.storing.get(n)) {
            self.stored(*version);
        }
        self.storing.clear();
        self.inbox.clear();
        self.outbox.clear();
        self.tick_at = None;
        self.asking = None;
        self.seat = None;
    }

    /// The data plane has ended, and with it what it wanted to know.
    pub fn vacate(&mut self) {
        self.wanted.clear();
    }

    /// The data plane reigns no more.
    pub fn dethrone(&mut self) {
        self.term = None;
        self.wanted.clear();
    }
}
