//! The paths between voters: questions and answers as datagrams, which are lost, late, doubled and
//! overtaken, also by those of another life of their sender.
//!
//! The path between the two nodes is their heartbeat path: it can be cut together with the
//! replication link or apart from it, and every path in one direction alone.

use lockstep::failover::{Answer, Input, Known, Other, Question};

use crate::schedule::{Instant, MILLI};
use crate::world::{Happening, World};

/// Where the third voter is, beside nodes 0 and 1.
pub const WITNESS: usize = 2;

/// What a datagram carries.
#[derive(Clone)]
pub enum Letter {
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

/// How the paths are.
#[derive(Default)]
pub struct Paths {
    /// What leaves earlier does not arrive, by sender and receiver.
    cut_until: [[Instant; 3]; 3],
}

impl Paths {
    /// Nothing passes from one to the other before then.
    pub fn cut(&mut self, from: usize, to: usize, until: Instant) {
        let path = &mut self.cut_until[from][to];
        *path = until.max(*path);
    }

    pub fn is_cut(&self, from: usize, to: usize, now: Instant) -> bool {
        now < self.cut_until[from][to]
    }

    pub fn heal(&mut self) {
        *self = Paths::default();
    }
}

impl World {
    /// Cuts both directions between two places.
    pub fn cut_path(&mut self, a: usize, b: usize) {
        let length = self.rng.range(200, 9_000) * MILLI;
        let until = self.schedule.now() + length;
        self.note(None, "fault", || {
            format!("path {a} - {b} cut for {} ms", length / MILLI)
        });
        self.paths.cut(a, b, until);
        self.paths.cut(b, a, until);
        self.coverage.fault("path cut");
    }

    /// Cuts one direction between two places.
    pub fn cut_path_one_way(&mut self, from: usize, to: usize) {
        let length = self.rng.range(200, 9_000) * MILLI;
        self.note(None, "fault", || {
            format!("path {from} > {to} cut for {} ms", length / MILLI)
        });
        self.paths.cut(from, to, self.schedule.now() + length);
        self.coverage.fault("path cut one way");
    }

    /// Sends a datagram.
    pub fn post(&mut self, from: usize, to: usize, letter: Letter) {
        let now = self.schedule.now();
        let voting = &self.plan.voting;
        let (loss, twice, late) = if self.calm_path(from, to) {
            (0, 0, 0)
        } else {
            (voting.loss, voting.doubled, voting.late)
        };
        let latency = voting.latency;
        let mut copies = 1;
        while copies < 3 && self.rng.chance(twice) {
            copies += 1;
        }
        for _ in 0..copies {
            if self.rng.chance(loss) || self.paths.is_cut(from, to, now) {
                continue;
            }
            let mut delay = self.rng.delay(latency);
            if self.rng.chance(late) {
                delay += self.rng.range(200, 8_000) * MILLI;
            }
            let letter = letter.clone();
            self.schedule
                .after(delay, Happening::Letter { from, to, letter });
        }
    }

    /// A datagram arrives.
    pub fn letter(&mut self, from: usize, to: usize, letter: Letter) {
        if to == WITNESS {
            if let Letter::Ask {
                id,
                known,
                question,
            } = letter
            {
                self.witness_asked(from, id, &known, &question);
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
                from: if from == WITNESS {
                    Other::Third
                } else {
                    Other::Peer
                },
                id,
                answer,
            },
        };
        self.give(to, input);
    }
}
