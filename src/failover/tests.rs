//! Two seats and a witness with a network that delivers at once what it delivers.

use std::time::Duration;

use super::*;
use crate::engine::{Generation, NodeId, Term, Time, VolumeId};

const MS: u64 = 1_000_000;
const VOLUME: VolumeId = VolumeId(0);

fn lease() -> Lease {
    Lease {
        length: Duration::from_secs(3),
        margin: Duration::from_millis(500),
    }
}

fn voter_config() -> VoterConfig {
    VoterConfig {
        nodes: [NodeId(0), NodeId(1)],
        lease: lease(),
    }
}

fn seat_config(me: u8) -> SeatConfig {
    SeatConfig {
        me: NodeId(me),
        peer: NodeId(1 - me),
        lease: lease(),
        beat: Duration::from_millis(500),
        retry: Duration::from_millis(200),
        patience: Duration::from_secs(1),
    }
}

/// What came of a seat besides questions.
#[derive(Debug, Default)]
struct Heard {
    voted: Vec<(Term, Vec<Option<Generation>>)>,
    denied: Vec<Denied>,
    recorded: Vec<Generation>,
    deposed: Vec<Term>,
}

struct Cluster {
    now: Time,
    seats: [Seat; 2],
    memories: [Memory; 2],
    heard: [Heard; 2],
    witness: Voter,
    kept: Record,
    /// Nodes that reach each other, and those that reach the witness.
    pair: bool,
    reach: [bool; 2],
    down: [bool; 2],
}

impl Cluster {
    /// Everything is known to everybody: generation 5, nobody has reigned.
    fn new() -> Cluster {
        let now = Time(1_000 * MS);
        let mut memory = Memory::blank(1);
        memory.record.data.generations = [(VOLUME, Generation(5))].into();
        memory.record.data.count = 1;
        let record = Record {
            store: 9,
            ..memory.record.clone()
        };
        let mut cluster = Cluster {
            now,
            seats: [0, 1].map(|me| Seat::start(seat_config(me), memory.clone(), false, now)),
            memories: [memory.clone(), memory],
            heard: Default::default(),
            witness: Voter::start(voter_config(), record.clone(), false, now),
            kept: record,
            pair: true,
            reach: [true; 2],
            down: [false; 2],
        };
        cluster.run(100);
        cluster
    }

    fn restart_witness(&mut self, record: Record, blank: bool) {
        self.witness = Voter::start(voter_config(), record.clone(), blank, self.now);
        self.kept = record;
    }

    fn restart_seat(&mut self, node: usize) {
        let memory = self.memories[node].clone();
        self.seats[node] = Seat::start(seat_config(node as u8), memory, false, self.now);
    }

    /// Lets time pass.
    fn run(&mut self, ms: u64) {
        let end = Time(self.now.0 + ms * MS);
        while self.now < end {
            self.now = Time(self.now.0 + 50 * MS);
            for node in 0..2 {
                self.give(node, Input::Tick);
            }
        }
    }

    fn give(&mut self, node: usize, input: Input) {
        if self.down[node] {
            return;
        }
        let mut out = Vec::new();
        self.seats[node].handle(self.now, input, &mut out);
        for output in out {
            self.carry(node, output);
        }
    }

    fn carry(&mut self, node: usize, output: Output) {
        let heard = &mut self.heard[node];
        match output {
            Output::Ask {
                to: Other::Peer,
                id,
                known,
                question,
            } if self.pair => self.give(
                1 - node,
                Input::Asked {
                    id,
                    known,
                    question,
                },
            ),
            Output::Ask {
                to: Other::Third,
                id,
                known,
                question,
            } if self.reach[node] => {
                let from = NodeId(node as u8);
                let (answer, changed) = self.witness.handle(self.now, from, &known, &question);
                if changed {
                    self.kept = self.witness.record().clone();
                }
                let from = Other::Third;
                self.give(node, Input::Answered { from, id, answer });
            }
            Output::Ask { .. } => {}
            Output::Reply { id, answer } => {
                if self.pair {
                    let from = Other::Peer;
                    self.give(1 - node, Input::Answered { from, id, answer });
                }
            }
            Output::Store { version, memory } => {
                self.memories[node] = memory;
                self.give(node, Input::Stored { version });
            }
            Output::Voted { vote, .. } => heard.voted.push((vote.term, vote.recorded)),
            Output::Denied(denied) => heard.denied.push(denied),
            Output::Recorded { generation, .. } => heard.recorded.push(generation),
            Output::Deposed { term } => heard.deposed.push(term),
        }
    }

    /// A node with this generation asks for the vote.
    fn vote(&mut self, node: usize, current: u64, force: bool) -> Result<Term, Denied> {
        let input = Input::Vote {
            again: None,
            copies: vec![Copy {
                volume: VOLUME,
                current: Generation(current),
                ancestry: Vec::new(),
                agreed: false,
            }],
            force,
            random: 7,
        };
        self.heard[node] = Heard::default();
        self.give(node, input);
        for _ in 0..40 {
            if let Some((term, _)) = self.heard[node].voted.first() {
                return Ok(*term);
            }
            if let Some(denied) = self.heard[node].denied.first() {
                return Err(*denied);
            }
            self.run(50);
        }
        panic!("no answer");
    }

    fn serves(&self, node: usize) -> bool {
        self.seats[node]
            .serves_until()
            .is_some_and(|until| self.now < until)
    }

    fn record(&mut self, node: usize, generation: u64, term: Term) {
        let generation = Generation(generation);
        let input = Input::Record {
            volume: VOLUME,
            generation,
            term,
        };
        self.give(node, input);
        self.run(300);
    }
}

#[test]
fn a_reign_lasts_as_long_as_one_other_voter_is_reached() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    assert_eq!(c.heard[0].voted[0].1, [Some(Generation(5))]);
    c.run(10_000);
    assert!(c.serves(0));
    c.reach = [false; 2];
    c.run(10_000);
    assert!(c.serves(0), "the peer renews");
    c.pair = false;
    c.run(2_400);
    assert!(c.serves(0));
    c.run(300);
    assert!(!c.serves(0), "the margin before the end of the lease");
    assert_eq!(c.seats[0].reign(), Some(term));
    c.reach[0] = true;
    c.run(600);
    assert!(c.serves(0), "nobody has asked meanwhile");
}

#[test]
fn nobody_else_is_elected_before_the_lease_has_ended() {
    let mut c = Cluster::new();
    let first = c.vote(0, 5, false).expect("free");
    assert!(matches!(c.vote(1, 5, true), Err(Denied::Held { .. })));
    c.run(300);
    assert!(c.serves(0) && c.heard[0].deposed.is_empty(), "undisturbed");
    // The first is cut off from both.
    c.pair = false;
    c.reach[0] = false;
    let cut = c.now;
    let second = loop {
        match c.vote(1, 5, false) {
            Ok(term) => break term,
            Err(Denied::Held { .. } | Denied::Silence) => {
                assert!(!c.serves(0) || c.now.0 < cut.0 + 3_000 * MS)
            }
            Err(other) => panic!("{other}"),
        }
        c.run(100);
    };
    assert!(second > first && !c.serves(0));
    assert!(c.now.since(cut) < Duration::from_secs(4));
    c.reach[0] = true;
    c.run(600);
    assert_eq!(c.heard[0].deposed, [second]);
    assert_eq!(c.seats[0].reign(), None);
}

#[test]
fn a_released_reign_makes_way_at_once() {
    let mut c = Cluster::new();
    c.vote(0, 5, false).expect("free");
    c.run(1_000);
    c.give(0, Input::Release);
    c.run(100);
    assert!(c.vote(1, 5, false).is_ok());
}

#[test]
fn a_record_counts_with_two_voters_and_bars_copies_that_lack_it() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    c.record(0, 6, term);
    assert_eq!(c.heard[0].recorded, [Generation(6)]);
    // The peer's voter was enough.
    c.reach = [false; 2];
    c.record(0, 7, term);
    assert_eq!(c.heard[0].recorded, [Generation(6), Generation(7)]);
    c.down[0] = true;
    c.reach = [true; 2];
    c.run(5_000);
    assert_eq!(c.vote(1, 6, false), Err(Denied::NotRecorded));
    assert!(c.vote(1, 6, true).is_ok(), "force");
    assert_eq!(c.heard[1].voted[0].1, [Some(Generation(7))]);
}

#[test]
fn without_another_voter_nothing_is_recorded() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    (c.pair, c.reach) = (false, [false; 2]);
    c.record(0, 6, term);
    assert!(c.heard[0].recorded.is_empty());
    c.reach[0] = true;
    c.run(600);
    assert_eq!(c.heard[0].recorded, [Generation(6)]);
}

#[test]
fn a_witness_that_restarts_keeps_the_lease_that_it_had_granted() {
    let mut c = Cluster::new();
    c.vote(0, 5, false).expect("free");
    // Only the witness knows that the first still reigns, and it has forgotten.
    c.pair = false;
    c.run(4_000);
    assert!(c.serves(0));
    c.reach[0] = false;
    c.restart_witness(c.kept.clone(), false);
    let restarted = c.now;
    while c.vote(1, 5, false).is_err() {
        c.run(50);
    }
    assert!(!c.serves(0));
    assert!(c.now.since(restarted) >= lease().hold());
}

#[test]
fn a_witness_that_restarts_does_not_stop_the_owner() {
    let mut c = Cluster::new();
    c.vote(0, 5, false).expect("free");
    c.down[1] = true;
    c.run(3_000);
    assert!(c.serves(0));
    c.restart_witness(c.kept.clone(), false);
    for _ in 0..100 {
        c.run(50);
        assert!(c.serves(0));
    }
}

#[test]
fn a_restored_witness_makes_no_old_grant() {
    let mut c = Cluster::new();
    let old = c.kept.clone();
    let first = c.vote(0, 5, false).expect("free");
    c.record(0, 6, first);
    // The peer has been told of none of it.
    c.down[0] = true;
    c.run(4_000);
    c.restart_witness(old, false);
    c.run(10_000);
    let refused = c.vote(1, 5, false);
    assert!(refused.is_err(), "{refused:?}");
    c.down[0] = false;
    c.run(600);
    assert_eq!(c.witness.record().data.generations[&VOLUME], Generation(6));
    assert!(!c.witness.doubts());
}

#[test]
fn a_blank_witness_waits_for_both_nodes() {
    let mut c = Cluster::new();
    c.down[0] = true;
    c.run(4_000);
    c.restart_witness(Record::blank(77), true);
    c.run(10_000);
    assert_eq!(c.vote(1, 5, false), Err(Denied::Doubt));
    assert!(c.vote(1, 5, true).is_ok(), "an operator's word");
    c.give(1, Input::Release);
    c.down[0] = false;
    c.run(600);
    assert!(c.vote(0, 5, false).is_ok());
}

#[test]
fn a_seat_that_restarts_helps_nobody_against_the_lease_that_it_renewed() {
    let mut c = Cluster::new();
    c.vote(0, 5, false).expect("free");
    c.reach = [false; 2];
    c.run(4_000);
    assert!(c.serves(0), "the peer alone renews");
    c.restart_seat(1);
    c.pair = false;
    c.reach[1] = true;
    while c.vote(1, 5, false).is_err() {
        assert!(c.now.0 < 60_000 * MS);
        c.run(50);
    }
    assert!(!c.serves(0));
}

#[test]
fn an_agent_that_restarts_beside_its_data_plane_goes_on_with_the_reign() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    c.run(1_000);
    c.restart_seat(0);
    c.give(0, Input::Resume { term });
    c.run(1_000);
    assert!(c.serves(0));
    c.record(0, 6, term);
    assert_eq!(c.heard[0].recorded, [Generation(6)]);
}

/// What node `node` would tell the witness now.
fn known(c: &Cluster, node: usize, seen: Option<Seen>) -> Known {
    let record = c.seats[node].record();
    Known {
        term: record.term,
        data: record.data.clone(),
        seen,
        leased: false,
    }
}

#[test]
fn what_was_said_before_a_start_proves_nothing_after_it() {
    let mut c = Cluster::new();
    let before = Some(c.witness.seen());
    let greeting = known(&c, 0, before);
    c.vote(0, 5, false).expect("free");
    c.pair = false;
    c.run(4_000);
    assert!(c.serves(0), "the witness alone renews");
    c.reach[0] = false;
    c.restart_witness(c.kept.clone(), false);
    // A greeting from before the reign arrives late.
    let (now, owner) = (c.now, NodeId(0));
    c.witness.handle(now, owner, &greeting, &Question::Hello);
    c.run(600);
    assert!(c.serves(0));
    let refused = c.vote(1, 5, true);
    assert!(
        matches!(refused, Err(Denied::Starting { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_restored_witness_renews_no_reign_whose_lease_is_long_over() {
    let mut c = Cluster::new();
    let first = c.vote(0, 5, false).expect("free");
    let old = c.kept.clone();
    (c.pair, c.reach[0]) = (false, false);
    c.run(4_000);
    let second = c.vote(1, 5, false).expect("the lease is over");
    // Everything that the witness learnt since is gone, and the first is back before the second.
    c.reach[1] = false;
    c.restart_witness(old, false);
    c.reach[0] = true;
    c.run(1_500);
    assert!(c.serves(1) && !c.serves(0), "{first:?} {second:?}");
    c.reach[1] = true;
    c.run(1_000);
    assert!(c.serves(1));
    assert_eq!(c.heard[0].deposed, [second]);
}

#[test]
fn a_vote_that_stands_alone_deposes_nobody_while_the_lease_lasts() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    c.reach[0] = false;
    c.run(4_000);
    assert!(c.serves(0), "the peer renews");
    // A question for the vote that the other node has long given up reaches the witness.
    let ballot = Ballot {
        term: Term {
            counter: term.counter + 1,
            node: NodeId(1),
            random: 1,
        },
        again: None,
        copies: Vec::new(),
        force: false,
    };
    let (told, seen) = (known(&c, 1, None), c.witness.seen());
    let question = Question::Vote(ballot);
    let (answer, _) = c.witness.handle(c.now, NodeId(1), &told, &question);
    assert_eq!(answer.result, Ok(()));
    assert_ne!(answer.seen, seen);
    c.reach[0] = true;
    c.run(5_000);
    assert!(c.serves(0) && c.heard[0].deposed.is_empty());
    c.pair = false;
    c.run(4_000);
    assert_eq!(c.heard[0].deposed.len(), 1, "its lease is over now");
}

#[test]
fn an_answer_to_an_earlier_life_of_the_agent_confirms_nothing() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    let (told, now) = (known(&c, 0, None), c.now);
    let (answer, _) = c.witness.handle(now, NodeId(0), &told, &Question::Hello);
    (c.pair, c.reach) = (false, [false; 2]);
    c.run(4_000);
    c.restart_seat(0);
    c.give(0, Input::Resume { term });
    for id in 0..1_000 {
        let (from, answer) = (Other::Third, answer.clone());
        c.give(0, Input::Answered { from, id, answer });
    }
    assert!(!c.serves(0));
}

#[test]
fn a_record_that_another_has_overtaken_is_not_taken_for_done() {
    let mut c = Cluster::new();
    let term = c.vote(0, 5, false).expect("free");
    let told = known(&c, 0, Some(c.witness.seen()));
    // From an earlier life of the agent, whose data plane has dropped it.
    let record = |generation| Question::Record {
        term,
        data: Data {
            term,
            count: 1,
            generations: [(VOLUME, Generation(generation))].into(),
        },
    };
    for (generation, result) in [(6, Ok(())), (6, Ok(())), (7, Err(Denied::Behind))] {
        let question = record(generation);
        let (answer, _) = c.witness.handle(c.now, NodeId(0), &told, &question);
        assert_eq!(answer.result, result);
    }
    c.record(0, 7, term);
    assert_eq!(c.heard[0].recorded, [Generation(7)]);
    c.run(1_500);
    assert_eq!(c.witness.record().data.generations[&VOLUME], Generation(7));
}
