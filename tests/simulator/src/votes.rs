//! A node's agent and the third voter: leases, votes, and the questions of the engine.
//!
//! The agent renews the lease of a node that reigns. A completion passes only while the lease
//! lasts, and the front end opens only then; a node that comes back too late (it was stopped, or
//! cut off) waits for the voter's word: it goes on, or it is deposed.

use std::collections::VecDeque;

use lockstep::engine::{Command, DiskState, Event, Generation, Ground, Role, Term, VolumeId, Vote};

use crate::node::Purpose;
use crate::schedule::{Instant, MILLI, SECOND};
use crate::verify::in_step;
use crate::voter::{Ask, Copy, Denied, LEASE};
use crate::world::{Happening, World};

/// Time between two renewals.
const BEAT: Instant = 500 * MILLI;
/// Time after which a question is put again that could not leave the node.
const AGAIN: Instant = 100 * MILLI;

/// What an agent knows of the voter.
#[derive(Default)]
pub struct Seat {
    /// The term that it was given.
    pub term: Option<Term>,
    pub lease_end: Instant,
    /// The voter cannot be reached until then.
    pub away_until: Instant,
    /// A vote was asked for.
    asking: bool,
    questions: Questions,
}

/// A record that the engine wants: volume, generation, and the term under which.
pub type Question = (usize, Generation, Term);

/// The questions of an engine in their order, each on its way until it is answered.
#[derive(Default)]
struct Questions {
    waiting: VecDeque<Question>,
    /// The first is on its way.
    asked: bool,
}

impl Questions {
    fn put(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    /// The question that leaves now.
    fn next(&mut self) -> Option<Question> {
        if self.asked {
            return None;
        }
        let first = self.waiting.front().copied();
        self.asked = first.is_some();
        first
    }

    /// An answer; one to a question that was forgotten meanwhile changes nothing.
    fn answered(&mut self, question: Question) {
        if self.asked && self.waiting.front() == Some(&question) {
            self.waiting.pop_front();
            self.asked = false;
        }
    }

    fn forget(&mut self) {
        *self = Questions::default();
    }
}

impl Seat {
    /// The data plane has ended, and with it what it wanted to know; `agent`: the agent as well.
    pub fn vacate(&mut self, agent: bool) {
        self.asking = false;
        self.questions.forget();
        if agent {
            self.term = None;
            self.lease_end = 0;
        }
    }
}

/// An answer on its way from the voter to a node.
pub enum Answer {
    Vote(bool, Result<Vote, Denied>),
    Record(Question, Result<(), Term>),
}

impl World {
    /// Whether completions of a node pass. Without a voter there is no lease.
    pub fn leased(&self, node: usize) -> bool {
        !self.options.voter || self.schedule.now() < self.nodes[node].seat.lease_end
    }

    /// Whether a node really serves.
    pub fn reigns(&self, node: usize) -> bool {
        self.nodes[node].serving() && self.leased(node)
    }

    fn voter_away(&self, node: usize) -> bool {
        self.schedule.now() < self.nodes[node].seat.away_until
    }

    /// A node cannot reach the voter for a while.
    pub fn cut_off(&mut self, node: usize) {
        let length = self.rng.range(200, 9_000) * MILLI;
        self.note(Some(node), "fault", || {
            format!("the voter is away for {} ms", length / MILLI)
        });
        let until = self.schedule.now() + length;
        let seat = &mut self.nodes[node].seat;
        seat.away_until = seat.away_until.max(until);
    }

    fn answer_later(&mut self, node: usize, answer: Answer) {
        let delay = self.rng.delay(self.plan.network_latency);
        let incarnation = self.nodes[node].incarnations;
        self.schedule.after(
            delay,
            Happening::Voted {
                node,
                incarnation,
                answer,
            },
        );
    }

    /// What the voter has said reaches the node.
    pub fn voted(&mut self, node: usize, answer: Answer) {
        match answer {
            Answer::Vote(force, answer) => self.vote_done(node, force, answer),
            Answer::Record(question, result) => {
                self.nodes[node].seat.questions.answered(question);
                match result {
                    Ok(()) => {
                        let (volume, generation, _) = question;
                        let volume = VolumeId(volume as u16);
                        self.feed(node, Event::VoterRecorded { volume, generation });
                    }
                    Err(term) => self.depose(node, term),
                }
                self.ask_next(node);
            }
        }
    }

    // ---- leases ----

    /// The agent's regular look at its node.
    pub fn beat(&mut self, node: usize) {
        self.schedule.after(BEAT, Happening::Beat { node });
        let n = &self.nodes[node];
        if n.paused || !n.powered || self.voter_away(node) {
            return;
        }
        let Some(term) = n.seat.term else { return };
        let now = self.schedule.now();
        if let Err(later) = self.voter.renew(node, term, now) {
            return self.depose(node, later);
        }
        self.nodes[node].seat.lease_end = now + LEASE;
        self.lease_renewed(node);
        if !self.wants_lease(node) {
            self.voter.release(node, term);
            self.nodes[node].seat.vacate(true);
        }
    }

    fn wants_lease(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.recover_role
            || n.seat.asking
            || n.process.as_ref().is_some_and(|p| {
                p.status.role == Role::Primary
                    || p.commands.values().any(|c| *c == Purpose::Primary)
            })
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
        if self.nodes[node].recover_role && !self.nodes[node].serving() {
            self.recover_reign(node);
        }
    }

    /// The voter names another: what was held back fails, and the engine steps down.
    fn depose(&mut self, node: usize, term: Term) {
        let seat = &mut self.nodes[node].seat;
        if seat.term.is_some_and(|own| own > term) {
            // About an earlier reign.
            return;
        }
        seat.term = None;
        seat.lease_end = 0;
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
        let copies = self.copies(node);
        let seat = &mut self.nodes[node].seat;
        if seat.asking || copies.is_empty() {
            return;
        }
        if self.voter_away(node) {
            return self.note(Some(node), "vote", || "the voter is away".to_string());
        }
        self.nodes[node].seat.asking = true;
        let ask = Ask {
            node,
            again,
            copies,
            force,
        };
        let (random, now) = (self.rng.next() as u32, self.schedule.now());
        let answer = self.voter.vote(&ask, random, now);
        if answer.is_ok() {
            // Counted from the question, as the node has to.
            self.nodes[node].seat.lease_end = now + LEASE;
        }
        self.note(Some(node), "vote", || format!("{answer:?}"));
        self.answer_later(node, Answer::Vote(force, answer));
    }

    fn vote_done(&mut self, node: usize, force: bool, answer: Result<Vote, Denied>) {
        self.nodes[node].seat.asking = false;
        match answer {
            Ok(vote) => {
                // Others may have reigned since.
                self.fail_held(node);
                self.nodes[node].seat.term = Some(vote.term);
                self.ask_promotion(node, force, Ground::Voter(vote));
            }
            Err(_) => {
                self.nodes[node].recover_role = false;
                self.abandon(node);
            }
        }
    }

    /// The data plane died, its agent did not: the reign goes on if it is still the last one.
    pub fn recover_reign(&mut self, node: usize) {
        let again = self.nodes[node].seat.term;
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
            .map(|(device, peer)| {
                let ancestry = std::iter::once(device.base).chain(device.history.iter().copied());
                Copy {
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

    /// The engine wants a generation recorded.
    pub fn question(&mut self, node: usize, volume: usize, generation: Generation, term: Term) {
        let questions = &mut self.nodes[node].seat.questions;
        questions.put((volume, generation, term));
        self.ask_next(node);
    }

    fn ask_next(&mut self, node: usize) {
        let Some(question) = self.nodes[node].seat.questions.next() else {
            return;
        };
        let delay = self.rng.delay(self.plan.network_latency);
        let incarnation = self.nodes[node].incarnations;
        self.schedule.after(
            delay,
            Happening::Ballot {
                node,
                incarnation,
                question,
            },
        );
    }

    /// A question reaches the voter, or could not leave. One on its way arrives although the
    /// process that put it has died.
    pub fn ballot(&mut self, node: usize, incarnation: u32, question: Question) {
        if self.voter_away(node) {
            if self.is(node, incarnation) {
                let happening = Happening::Ballot {
                    node,
                    incarnation,
                    question,
                };
                self.schedule.after(AGAIN, happening);
            }
            return;
        }
        let (volume, generation, term) = question;
        let result = self.voter.record(node, volume, generation, term);
        self.note(Some(node), "vote", || {
            format!("record of volume {volume}: {generation} under {term}: {result:?}")
        });
        if self.is(node, incarnation) {
            self.answer_later(node, Answer::Record(question, result));
        }
    }

    /// The agents of both nodes begin to look after them.
    pub fn start_beats(&mut self) {
        for node in 0..2 {
            let first = SECOND + node as Instant * 50 * MILLI;
            self.schedule.at(first, Happening::Beat { node });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_is_on_its_way_at_a_time_also_one_that_an_answer_brings() {
        let [a, b, c] = [1, 2, 3].map(|g| (0, Generation(g), Term::ZERO));
        let mut questions = Questions::default();
        questions.put(a);
        assert_eq!(questions.next(), Some(a));
        questions.answered(a);
        // The engine asks when it hears the answer, and then the agent goes on.
        questions.put(b);
        assert_eq!(questions.next(), Some(b));
        assert_eq!(questions.next(), None);
        questions.put(c);
        assert_eq!(questions.next(), None);
        questions.answered(b);
        assert_eq!(questions.next(), Some(c));
        questions.forget();
        questions.put(b);
        assert_eq!(questions.next(), Some(b));
        questions.answered(c);
        assert_eq!(questions.next(), None);
    }
}
