//! One of the three voters of a resource: a node's agent, or a witness.
//!
//! It keeps a compare-and-set record {term with owner, generations} and, in memory only, until
//! when the owner's lease lasts. Its promises:
//!
//! - A vote is given under a later term only, and while a lease that it granted or renewed lasts,
//!   to nobody but the owner.
//! - Generations are recorded by the owner under its term, and by nobody else.
//! - What it answers as done is durable first: the driver stores [`Voter::record`] whenever
//!   [`Voter::handle`] says that it changed, and answers afterwards.
//!
//! A voter that starts cannot know the lease that it had granted. It grants nothing until the
//! longest that it can have granted has ended, or it knows better: the recorded owner says that
//! this voter's last yes still counts ([`Known::leased`]), or both nodes have said whether it does.
//! Only what was said after the start tells that, and only who has had an answer since then
//! ([`Seen::started`]) says such a thing: datagrams of an earlier time prove nothing.
//!
//! A voter whose store is blank, or older than what a node has seen of it, is in *doubt*: it
//! votes for nobody until the recorded owner or both nodes have told it what they know. What two
//! nodes have forgotten together it cannot know: a witness restored from an old copy while the
//! owner is lost for good, too, is a double failure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::{Generation, NodeId, Term, Time, VolumeId, broken};

/// What is on record about the data. The later version counts, whoever keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Data {
    /// The reign that recorded it, and how often that reign had recorded by then.
    pub term: Term,
    pub count: u64,
    pub generations: BTreeMap<VolumeId, Generation>,
}

impl Data {
    /// Order of two versions.
    pub fn version(&self) -> (Term, u64) {
        (self.term, self.count)
    }

    /// The later one of two.
    pub fn later<'a>(&'a self, other: &'a Data) -> &'a Data {
        if other.version() > self.version() {
            other
        } else {
            self
        }
    }
}

/// What a voter keeps durably.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Identity of the store: random, new when a voter begins with nothing.
    pub store: u64,
    /// How often the record has changed in this store.
    pub edition: u64,
    /// The last reign; its node is the owner.
    pub term: Term,
    pub data: Data,
}

impl Record {
    /// A store that has just been made.
    pub fn blank(store: u64) -> Record {
        Record {
            store,
            edition: 0,
            term: Term::ZERO,
            data: Data {
                term: Term::ZERO,
                count: 0,
                generations: BTreeMap::new(),
            },
        }
    }

    /// Who reigns or reigned last.
    pub fn owner(&self) -> Option<NodeId> {
        (self.term != Term::ZERO).then_some(self.term.node)
    }
}

/// How far a voter's store was when a node last heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen {
    pub store: u64,
    pub edition: u64,
    /// Tells one start of the voter from the others: what its clock said then.
    pub started: u64,
}

/// What a node tells with every question: its own voter's record, and what it has seen of the
/// voter asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Known {
    pub term: Term,
    pub data: Data,
    pub seen: Option<Seen>,
    /// The node reigns, and the last yes of the voter asked still lets completions pass.
    pub leased: bool,
}

/// What a node knows about its copy of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Copy {
    pub volume: VolumeId,
    pub current: Generation,
    /// Generations that it descends from.
    pub ancestry: Vec<Generation>,
    /// The peer is connected and has the same. It will be asked: two of three voters outweigh
    /// what is on record, but the word of one does not change it.
    pub agreed: bool,
}

impl Copy {
    /// Whether this copy has everything that a copy of `recorded` has.
    pub fn descends(&self, recorded: Generation) -> bool {
        recorded == self.current || self.ancestry.contains(&recorded)
    }
}

/// A node asks for the vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The reign that shall begin.
    pub term: Term,
    /// The data plane died and shall go on: only if this reign is still the last one.
    pub again: Option<Term>,
    pub copies: Vec<Copy>,
    /// Overrides what is on record about the data, and doubt; never a lease or a later term.
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Question {
    /// Registers the node and asks for nothing.
    Hello,
    Vote(Ballot),
    Renew {
        term: Term,
    },
    Record {
        term: Term,
        data: Data,
    },
    Release {
        term: Term,
    },
}

/// Why a voter says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Denied {
    #[error("another node's lease lasts for {left_ms} ms more")]
    Held { left_ms: u64 },
    /// It has just started and may have granted a lease before.
    #[error("the voter has just started and waits for {left_ms} ms")]
    Starting { left_ms: u64 },
    #[error(
        "the voter's record is blank or was restored: it waits for the last owner or for both nodes"
    )]
    Doubt,
    /// The voter knows this later reign.
    #[error("a later reign is on record: number {} of node {}", .term.counter, .term.node.0)]
    Stale { term: Term },
    #[error("another node has been primary since")]
    Overtaken,
    #[error("a newer generation of the data is on record")]
    NotRecorded,
    /// The same reign has put something else on record since.
    #[error("a later record of the same reign is there")]
    Behind,
    /// The node itself is a candidate.
    #[error("that node asks for the vote itself")]
    Candidate,
    #[error("this node is none of the resource's")]
    Stranger,
    #[error("no voter has answered in time")]
    Silence,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    pub seen: Seen,
    pub term: Term,
    /// What is on record about the data, after the question.
    pub data: Data,
    pub result: Result<(), Denied>,
}

/// Lengths that belong together; the configuration checks them against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub length: Duration,
    /// Completions stop this long before the end.
    pub margin: Duration,
}

impl Lease {
    /// Clocks of two nodes may run apart by one part in this.
    const DRIFT: u32 = 100;

    /// Until a voter that has just started may have a lease outstanding.
    pub fn hold(&self) -> Duration {
        self.length + self.length / Lease::DRIFT + self.margin
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VoterConfig {
    pub nodes: [NodeId; 2],
    pub lease: Lease,
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Voter {
    config: VoterConfig,
    record: Record,
    /// Nobody but the owner gets a vote before.
    lease_until: Time,
    started: Time,
    /// Nodes that have said what they know, since the start or since the doubt began.
    heard: BTreeSet<NodeId>,
    /// No lease of an earlier start is unknown to it.
    settled: bool,
    doubt: bool,
    /// What nodes had seen that led to doubt: it does so once.
    excused: BTreeMap<NodeId, Seen>,
    #[cfg(feature = "sabotage")]
    sabotage: Option<crate::engine::Sabotage>,
}

impl Voter {
    /// A voter that starts with what it has stored; `blank`: it had nothing.
    pub fn start(config: VoterConfig, record: Record, blank: bool, now: Time) -> Voter {
        Voter {
            config,
            lease_until: Time(0),
            started: now,
            heard: BTreeSet::new(),
            settled: false,
            doubt: blank,
            excused: BTreeMap::new(),
            record,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }

    /// The same voter with a deliberate defect; only in the simulator.
    #[cfg(feature = "sabotage")]
    pub fn sabotaged(mut self, defect: Option<crate::engine::Sabotage>) -> Voter {
        self.sabotage = defect;
        self
    }

    #[cfg(feature = "sabotage")]
    fn broken(&self, defect: crate::engine::Sabotage) -> bool {
        self.sabotage == Some(defect)
    }

    /// It never had a record and minds nothing (a planted defect).
    fn careless(&self) -> bool {
        self.doubt && broken!(self, BlankWitnessGrants)
    }

    /// What has to be durable.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How far it is, for those whom it answers.
    pub fn seen(&self) -> Seen {
        Seen {
            store: self.record.store,
            edition: self.record.edition,
            started: self.started.0,
        }
    }

    /// It cannot say what is current.
    pub fn doubts(&self) -> bool {
        self.doubt
    }

    /// Until when nobody but the owner gets a vote.
    pub fn lease_until(&self) -> Time {
        self.lease_until
    }

    /// Lengths of leases from now on.
    pub fn set_lease(&mut self, lease: Lease) {
        self.config.lease = lease;
    }

    /// The lease of the owner lasts at least until then: this voter's own node reigns.
    pub fn extend(&mut self, until: Time) {
        self.lease_until = self.lease_until.max(until);
    }

    /// The owner needs its lease no longer: this voter's own node has stopped.
    pub fn end_lease(&mut self, now: Time) {
        self.lease_until = self.lease_until.min(now);
    }

    /// Answers a question. `true`: the record has changed and must be durable before the answer
    /// leaves.
    pub fn handle(
        &mut self,
        now: Time,
        from: NodeId,
        known: &Known,
        question: &Question,
    ) -> (Answer, bool) {
        let before = self.record.clone();
        if self.config.nodes.contains(&from) {
            self.register(now, from, known);
        }
        let result = match question {
            _ if !self.config.nodes.contains(&from) => Err(Denied::Stranger),
            Question::Hello => Ok(()),
            Question::Vote(ballot) => self.vote(now, from, ballot),
            Question::Renew { term } => self.renew(now, from, *term),
            Question::Record { term, data } => self.write(now, from, *term, data),
            Question::Release { term } => {
                if self.record.term == *term {
                    self.end_lease(now);
                }
                Ok(())
            }
        };
        let kept = self.record.term == before.term && broken!(self, WitnessForgets);
        let changed = self.record != before && !kept;
        if changed {
            self.record.edition += 1;
        }
        let answer = Answer {
            seen: self.seen(),
            term: self.record.term,
            data: self.record.data.clone(),
            result,
        };
        (answer, changed)
    }

    /// Takes what another voter has on record. A node's own record names only reigns that two
    /// voters have given. `true`: the record has changed.
    pub fn hear(&mut self, now: Time, term: Term, data: &Data) -> bool {
        let before = self.record.clone();
        self.adopt(now, term, data);
        let changed = self.record != before;
        self.record.edition += u64::from(changed);
        changed
    }

    fn adopt(&mut self, now: Time, term: Term, data: &Data) {
        if term > self.record.term {
            self.record.term = term;
            // Whoever has it may have a lease from the others.
            self.extend(now.after(self.config.lease.length));
        }
        if data.version() > self.record.data.version() {
            self.record.data = data.clone();
        }
    }

    /// A node tells what it knows and what it has seen of this voter.
    fn register(&mut self, now: Time, from: NodeId, known: &Known) {
        if let Some(seen) = known.seen.filter(|seen| self.contradicts(*seen)) {
            let new = self.excused.insert(from, seen) != Some(seen);
            if new && !self.doubt {
                self.doubt = true;
                self.heard.clear();
            }
        }
        self.adopt(now, known.term, &known.data);
        if known
            .seen
            .is_some_and(|seen| seen.started == self.started.0)
        {
            self.heard.insert(from);
            if known.leased && self.record.owner() == Some(from) {
                self.extend(now.after(self.config.lease.length));
                self.settled = true;
            }
        }
        self.settle(now);
    }

    /// A node has seen more of this voter than it has itself: its record was lost or restored.
    fn contradicts(&self, seen: Seen) -> bool {
        let record = &self.record;
        seen.store != record.store || seen.edition > record.edition
    }

    /// Ends the wait after a start, and the doubt, where enough is known.
    fn settle(&mut self, now: Time) {
        let both = self
            .config
            .nodes
            .iter()
            .all(|node| self.heard.contains(node));
        let owner = self.record.owner();
        let incumbent = owner.is_some_and(|owner| self.heard.contains(&owner));
        let hold = now.since(self.started) >= self.config.lease.hold();
        self.settled |= both || hold;
        self.doubt &= !(both || incumbent && self.settled);
    }

    fn vote(&mut self, now: Time, from: NodeId, ballot: &Ballot) -> Result<(), Denied> {
        self.check(now, from, ballot)?;
        self.record.term = ballot.term;
        self.extend(now.after(self.config.lease.length));
        Ok(())
    }

    /// Whether it would give its vote.
    pub fn check(&self, now: Time, from: NodeId, ballot: &Ballot) -> Result<(), Denied> {
        let term = ballot.term;
        let own = self.record.term;
        if term.node != from {
            return Err(Denied::Stale { term: own });
        }
        if term == own {
            // Asked again: the answer was lost.
            return Ok(());
        }
        if self.careless() {
            return Ok(());
        }
        if self.doubt && !ballot.force {
            return Err(Denied::Doubt);
        }
        self.starting(now)?;
        let lasts = now < self.lease_until && !broken!(self, DoubleLease);
        if own.node != from && lasts {
            return Err(held(self.lease_until.since(now)));
        }
        if term < own || term.counter == own.counter {
            return Err(Denied::Stale { term: own });
        }
        if ballot.again.is_some_and(|again| again != own) {
            return Err(Denied::Overtaken);
        }
        if !ballot.force && !self.current(&ballot.copies) {
            return Err(Denied::NotRecorded);
        }
        Ok(())
    }

    /// Whether copies have everything that is on record.
    fn current(&self, copies: &[Copy]) -> bool {
        copies.iter().all(|copy| {
            let recorded = self.record.data.generations.get(&copy.volume);
            copy.agreed || recorded.is_some_and(|&recorded| copy.descends(recorded))
        })
    }

    /// Refuses until no lease of an earlier start can last.
    fn starting(&self, now: Time) -> Result<(), Denied> {
        let (past, hold) = (now.since(self.started), self.config.lease.hold());
        if self.settled || past >= hold || broken!(self, VoterForgets) {
            return Ok(());
        }
        let left_ms = (hold - past).as_millis() as u64 + 1;
        Err(Denied::Starting { left_ms })
    }

    fn renew(&mut self, now: Time, from: NodeId, term: Term) -> Result<(), Denied> {
        let own = self.record.term;
        if term != own || term.node != from {
            return Err(Denied::Stale { term: own });
        }
        if self.doubt {
            return Err(Denied::Doubt);
        }
        self.starting(now)?;
        self.extend(now.after(self.config.lease.length));
        Ok(())
    }

    fn write(&mut self, now: Time, from: NodeId, term: Term, data: &Data) -> Result<(), Denied> {
        self.renew(now, from, term)?;
        if data.version() > self.record.data.version() {
            self.record.data = data.clone();
        }
        // What an earlier life of the owner's agent has put here it may not know yet.
        if self.record.data == *data {
            Ok(())
        } else {
            Err(Denied::Behind)
        }
    }
}

fn held(left: Duration) -> Denied {
    Denied::Held {
        left_ms: left.as_millis() as u64 + 1,
    }
}
