//! Every order of events that two nodes and a witness can meet, within small bounds.
//!
//! The seats and the voter are the product's. A clock of few steps stands for time: it moves
//! while anybody is busy with something else, so a node that is not called for a while is a
//! stopped one. Datagrams arrive in any order, twice, or never; what a seat stores becomes durable
//! at any time; a voter restarts. How far each search goes is in its [`Bounds`]: one datagram is on
//! its way at a time, so what is answered late is lost, and what comes doubled comes late. The test
//! prints how many states that are. Many datagrams, more restarts and long runs are the simulator's.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use lockstep::engine::{Generation, NodeId, Term, Time, VolumeId};
use lockstep::failover::{
    Answer, Copy, Input, Known, Lease, Memory, Other, Output, Question, Record, Seat, SeatConfig,
    Voter, VoterConfig,
};
use stateright::{Checker, Model, Property};

/// The only volume.
const VOLUME: VolumeId = VolumeId(0);
/// Where the third voter is, beside nodes 0 and 1.
const WITNESS: u8 = 2;
/// The generation that everybody has at the start, and the one that a reign records.
const FIRST: Generation = Generation(1);
const SECOND: Generation = Generation(2);
/// A step of the clock.
const STEP: u64 = 1_000;
/// Length of a lease.
const LEASE: u64 = 2 * STEP;
/// When the search begins. The voters have run for long enough to be past their first wait.
const BEGIN: u64 = 4 * LEASE;

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Steps of the clock.
    steps: u64,
    /// Datagrams on their way; one more pushes the oldest out, which is lost.
    datagrams: usize,
    /// Datagrams that arrive twice.
    doubled: u8,
    /// Requests for the vote.
    votes: u8,
    /// Restarts: of node 0, node 1 (with their data planes), the witness.
    restarts: [u8; 3],
    /// Orderly ends of a reign, and writes that the other node lacks.
    releases: u8,
    degrades: u8,
}

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mail {
    from: u8,
    to: u8,
    letter: Letter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Letter {
    Ask {
        id: u64,
        known: Known,
        question: Question,
    },
    Reply {
        id: u64,
        answer: Answer,
    },
}

/// A node: agent and data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    seat: Seat,
    memory: Memory,
    /// Not durable yet.
    storing: Vec<(u64, Memory)>,
    /// Generation of its copy.
    copy: Generation,
    /// Its reign, as its data plane knows it, and until when completions pass.
    reign: Option<Term>,
    page: Option<Time>,
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cluster {
    now: u64,
    nodes: [Node; 2],
    witness: Voter,
    mail: Vec<Mail>,
    doubled: u8,
    votes: u8,
    restarts: [u8; 3],
    /// Generation under which the last write was completed.
    truth: Generation,
    wrong: Option<&'static str>,
    reigns: u8,
    releases: u8,
    degrades: u8,
    /// Somebody did.
    restarted: bool,
    /// The data planes are connected and compare their copies.
    connected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Time passes.
    Clock,
    /// A node's agent gets its turn.
    Turn(usize),
    /// A datagram arrives, and perhaps once more later.
    Arrive {
        mail: usize,
        again: bool,
    },
    /// What a node stores is durable.
    Durable(usize),
    /// A node asks for the vote.
    Vote(usize),
    /// The primary completes a write that the other node lacks, once that is on record.
    Degrade(usize),
    /// The primary steps down in order.
    Release(usize),
    Restart(usize),
}

fn lease() -> Lease {
    Lease {
        length: Duration::from_nanos(LEASE),
        margin: Duration::ZERO,
    }
}

fn seat(me: usize, memory: Memory, now: u64) -> Seat {
    let config = SeatConfig {
        me: NodeId(me as u8),
        peer: NodeId(1 - me as u8),
        lease: lease(),
        beat: Duration::from_nanos(STEP),
        retry: Duration::from_nanos(STEP),
        patience: Duration::from_nanos(2 * STEP),
    };
    Seat::start(config, memory, false, Time(now))
}

fn voter(record: Record, now: u64) -> Voter {
    let config = VoterConfig {
        nodes: [NodeId(0), NodeId(1)],
        lease: lease(),
    };
    Voter::start(config, record, false, Time(now))
}

impl Cluster {
    fn new(bounds: &Bounds) -> Cluster {
        let mut record = Record::blank(9);
        record.data.count = 1;
        record.data.generations = [(VOLUME, FIRST)].into();
        let started = 0;
        let node = |me| {
            let memory = Memory {
                record: record.clone(),
                seen: [None; 2],
            };
            Node {
                seat: seat(me, memory.clone(), started),
                memory,
                storing: Vec::new(),
                copy: FIRST,
                reign: None,
                page: None,
                asked: false,
            }
        };
        Cluster {
            now: BEGIN,
            nodes: [node(0), node(1)],
            witness: voter(record.clone(), started),
            mail: Vec::new(),
            doubled: bounds.doubled,
            votes: bounds.votes,
            restarts: bounds.restarts,
            truth: FIRST,
            wrong: None,
            reigns: 0,
            releases: bounds.releases,
            degrades: bounds.degrades,
            restarted: false,
            connected: false,
        }
    }

    /// The peer is asked and has the same: that outweighs what one voter has on record.
    fn agreed(&self) -> bool {
        self.connected && self.nodes[0].copy == self.nodes[1].copy
    }

    fn serves(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.reign.is_some() && n.page.is_some_and(|until| Time(self.now) < until)
    }

    fn give(&mut self, node: usize, input: Input, room: usize) {
        let leased = self.serves(node);
        let mut out = Vec::new();
        let n = &mut self.nodes[node];
        n.seat.handle(Time(self.now), input, &mut out);
        n.page = n.seat.serves_until();
        for output in out {
            self.carry(node, output, leased, room);
        }
    }

    fn carry(&mut self, node: usize, output: Output, leased: bool, room: usize) {
        let n = &mut self.nodes[node];
        match output {
            Output::Ask {
                to,
                id,
                known,
                question,
            } => {
                let to = match to {
                    Other::Peer => 1 - node as u8,
                    Other::Third => WITNESS,
                };
                let letter = Letter::Ask {
                    id,
                    known,
                    question,
                };
                self.post(node as u8, to, letter, room);
            }
            Output::Reply { id, answer } => {
                let letter = Letter::Reply { id, answer };
                self.post(node as u8, 1 - node as u8, letter, room);
            }
            Output::Store { version, memory } => {
                n.storing.push((version, memory));
                if self.restarts[node] == 0 {
                    // No restart will tell when this became durable.
                    self.durable(node, room);
                }
            }
            Output::Voted { vote, .. } => {
                n.asked = false;
                // The data plane is promoted if its copy is the one on record.
                let current = vote.recorded == [Some(n.copy)];
                if current || self.agreed() {
                    let n = &mut self.nodes[node];
                    n.reign = Some(vote.term);
                    self.reigns += 1;
                    if n.copy != self.truth {
                        self.wrong = Some("an old copy was promoted");
                    }
                } else {
                    self.give(node, Input::Release, room);
                }
            }
            Output::Denied(_) => n.asked = false,
            Output::Recorded { generation, .. } => {
                n.copy = generation;
                self.truth = generation;
            }
            Output::Deposed { term } => {
                n.reign = None;
                if leased && term.node != NodeId(node as u8) {
                    self.wrong = Some("a node was deposed while its lease lasted");
                }
            }
        }
    }

    fn post(&mut self, from: u8, to: u8, letter: Letter, room: usize) {
        let greeting = matches!(
            &letter,
            Letter::Ask {
                question: Question::Hello,
                ..
            }
        );
        if greeting && !self.restarted {
            // Nobody needs to hear it yet.
            return;
        }
        let mail = Mail { from, to, letter };
        self.mail.push(mail);
        if self.mail.len() > room {
            self.mail.remove(0);
        }
    }

    fn arrive(&mut self, mail: Mail, room: usize) {
        let Mail { from, to, letter } = mail;
        if to == WITNESS {
            if let Letter::Ask {
                id,
                known,
                question,
            } = letter
            {
                // Its record is durable before the answer leaves.
                let now = Time(self.now);
                let (answer, _) = self.witness.handle(now, NodeId(from), &known, &question);
                self.post(WITNESS, from, Letter::Reply { id, answer }, room);
            }
            return;
        }
        let input = match letter {
            Letter::Ask {
                id,
                known,
                question,
            } => Input::Asked {
                id,
                known,
                question,
            },
            Letter::Reply { id, answer } => Input::Answered {
                from: match from {
                    WITNESS => Other::Third,
                    _ => Other::Peer,
                },
                id,
                answer,
            },
        };
        self.give(usize::from(to), input, room);
    }

    fn durable(&mut self, node: usize, room: usize) {
        if let Some((version, memory)) = self.nodes[node].storing.pop() {
            self.nodes[node].storing.clear();
            self.nodes[node].memory = memory;
            self.give(node, Input::Stored { version }, room);
        }
    }

    fn vote(&mut self, node: usize, random: u32, room: usize) {
        self.nodes[node].asked = true;
        let copy = Copy {
            volume: VOLUME,
            current: self.nodes[node].copy,
            ancestry: Vec::new(),
            agreed: self.agreed(),
        };
        let input = Input::Vote {
            again: None,
            copies: vec![copy],
            force: false,
            random,
        };
        self.give(node, input, room);
    }

    fn restart(&mut self, voter_index: usize) {
        self.restarts[voter_index] -= 1;
        self.restarted = true;
        if voter_index == usize::from(WITNESS) {
            self.witness = voter(self.witness.record().clone(), self.now);
            return;
        }
        let n = &mut self.nodes[voter_index];
        n.seat = seat(voter_index, n.memory.clone(), self.now);
        n.storing.clear();
        n.reign = None;
        n.page = None;
        n.asked = false;
    }

    /// Nothing fails any more: does a node come to reign whose copy is the current one?
    fn recovers(&self) -> bool {
        let mut c = self.clone();
        c.connected = true;
        let room = usize::MAX;
        for round in 0..24 {
            for _ in 0..8 {
                for node in 0..2 {
                    c.durable(node, room);
                }
                for mail in std::mem::take(&mut c.mail) {
                    c.arrive(mail, room);
                }
            }
            if (0..2).any(|n| c.serves(n) && c.nodes[n].copy == c.truth) {
                return true;
            }
            c.now += STEP;
            for node in 0..2 {
                c.give(node, Input::Tick, room);
                let free = c.nodes[node].reign.is_none() && !c.nodes[node].asked;
                // One after the other, as operators with patience do.
                if free && round % 4 == 2 * node as u64 {
                    c.vote(node, 100 + round as u32, room);
                }
            }
        }
        false
    }
}

struct Search {
    bounds: Bounds,
}

impl Model for Search {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        vec![Cluster::new(&self.bounds)]
    }

    fn actions(&self, c: &Cluster, steps: &mut Vec<Step>) {
        if c.wrong.is_some() {
            return;
        }
        if c.now < BEGIN + self.bounds.steps * STEP {
            steps.push(Step::Clock);
        }
        for mail in 0..c.mail.len() {
            steps.push(Step::Arrive { mail, again: false });
            if c.doubled > 0 {
                steps.push(Step::Arrive { mail, again: true });
            }
        }
        for (index, n) in c.nodes.iter().enumerate() {
            if n.seat.next_deadline().is_some_and(|at| at.0 <= c.now) {
                steps.push(Step::Turn(index));
            }
            if !n.storing.is_empty() {
                steps.push(Step::Durable(index));
            }
            if c.votes > 0 && n.reign.is_none() && !n.asked {
                steps.push(Step::Vote(index));
            }
            if c.serves(index) && c.degrades > 0 {
                steps.push(Step::Degrade(index));
            }
            if n.reign.is_some() && c.releases > 0 {
                steps.push(Step::Release(index));
            }
        }
        // A start is told from others by its time.
        for voter in 0..3 {
            if c.restarts[voter] > 0 && c.now > BEGIN {
                steps.push(Step::Restart(voter));
            }
        }
    }

    fn next_state(&self, before: &Cluster, step: Step) -> Option<Cluster> {
        let room = self.bounds.datagrams;
        let mut c = before.clone();
        match step {
            Step::Clock => c.now += STEP,
            Step::Turn(node) => c.give(node, Input::Tick, room),
            Step::Arrive { mail, again } => {
                let mail = if again {
                    c.doubled -= 1;
                    c.mail[mail].clone()
                } else {
                    c.mail.remove(mail)
                };
                c.arrive(mail, room);
            }
            Step::Durable(node) => c.durable(node, room),
            Step::Vote(node) => {
                c.votes -= 1;
                c.vote(node, u32::from(c.votes), room);
            }
            Step::Degrade(node) => {
                c.degrades -= 1;
                let term = c.nodes[node].reign?;
                let input = Input::Record {
                    volume: VOLUME,
                    generation: SECOND,
                    term,
                };
                c.give(node, input, room);
            }
            Step::Release(node) => {
                c.releases -= 1;
                c.nodes[node].reign = None;
                c.give(node, Input::Release, room);
            }
            Step::Restart(voter) => c.restart(voter),
        }
        (c != *before).then_some(c)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one owner", |_, c: &Cluster| !(c.serves(0) && c.serves(1))),
            Property::always("nothing wrong", |_, c: &Cluster| c.wrong.is_none()),
            Property::always("progress", |_, c: &Cluster| left_out(c) || c.recovers()),
            Property::sometimes("two reigns", |_, c: &Cluster| c.reigns > 1),
            Property::sometimes("degraded", |_, c: &Cluster| c.truth == SECOND),
        ]
    }
}

/// Progress is tried from one state in so many.
const SAMPLE: u64 = 64;

fn left_out(c: &Cluster) -> bool {
    let mut hasher = DefaultHasher::new();
    c.hash(&mut hasher);
    !hasher.finish().is_multiple_of(SAMPLE)
}

/// Searches to the end; what is expected must have happened on some way.
fn search(name: &str, bounds: Bounds, expected: &[&'static str]) {
    let began = Instant::now();
    let checker = Search { bounds }.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:?}, {bounds:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed(),
    );
    for property in ["one owner", "nothing wrong", "progress"] {
        checker.assert_no_discovery(property);
    }
    for property in expected {
        checker.assert_any_discovery(property);
    }
}

/// One after the other: each fills memory by itself.
#[test]
fn no_order_of_events_gives_two_owners_or_an_old_copy() {
    let bounds = Bounds {
        steps: 2,
        datagrams: 1,
        doubled: 0,
        votes: 2,
        restarts: [0; 3],
        releases: 0,
        degrades: 0,
    };
    let undisturbed = Bounds {
        doubled: 1,
        releases: 1,
        degrades: 1,
        ..bounds
    };
    search(
        "reigns follow each other",
        undisturbed,
        &["two reigns", "degraded"],
    );
    let witness = Bounds {
        votes: 3,
        restarts: [0, 0, 1],
        ..bounds
    };
    search("the witness restarts", witness, &["two reigns"]);
    let node = Bounds {
        degrades: 1,
        restarts: [0, 1, 0],
        ..bounds
    };
    search("a node restarts", node, &["degraded"]);
}
