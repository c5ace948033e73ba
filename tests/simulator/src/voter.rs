//! The third voter of `--nodes 3`: a stub that never fails, restarts or forgets.
//!
//! It keeps one compare-and-set record {owner, term, generations, lease}. A vote is given to one
//! node at a time: to nobody else before the owner's lease has ended, always under a later term,
//! and for the data only when nothing newer is on record. The record of a generation is taken
//! from the owner, under its term, and from nobody else. What the real one needs besides
//! (restarts, a blank or rolled-back record, its own clock) is not here: its lease ends in the
//! time of the run.

use lockstep::engine::{Generation, NodeId, Term, Vote};

use crate::schedule::{Instant, SECOND};

/// Length of a lease.
pub const LEASE: Instant = 3 * SECOND;

/// The record.
#[derive(Clone, Debug)]
pub struct Voter {
    owner: Option<usize>,
    term: Term,
    generations: Vec<Option<Generation>>,
    lease_end: Instant,
}

/// A node asks for the vote.
#[derive(Clone, Debug)]
pub struct Ask {
    pub node: usize,
    /// Its data plane died and shall go on: only if this reign is still the last one.
    pub again: Option<Term>,
    pub copies: Vec<Copy>,
    /// Force overrides what is on record about the data, and nothing else.
    pub force: bool,
}

/// What a node knows about its copy of a volume.
#[derive(Clone, Debug)]
pub struct Copy {
    pub current: Generation,
    /// Generations that it descends from.
    pub ancestry: Vec<Generation>,
    /// The peer seems to be connected and to have the same. It will be asked: two of three votes
    /// outweigh what is on record, but the word of one does not change it.
    pub agreed: bool,
}

/// Why there is no vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Another node's lease has not ended.
    Held,
    /// The reign that should go on is not the last one.
    Overtaken,
    /// A generation that this copy does not descend from is on record.
    NotRecorded,
}

impl Voter {
    /// A voter that both nodes have told their first generations, if they have any.
    pub fn new(volumes: usize, first: Option<Generation>) -> Voter {
        Voter {
            owner: None,
            term: Term::ZERO,
            generations: vec![first; volumes],
            lease_end: 0,
        }
    }

    fn reigns(&self, node: usize, term: Term) -> bool {
        self.owner == Some(node) && self.term == term
    }

    /// Names a new owner, or says why not.
    pub fn vote(&mut self, ask: &Ask, random: u32, now: Instant) -> Result<Vote, Denied> {
        if self.owner.is_some_and(|owner| owner != ask.node) && now < self.lease_end {
            return Err(Denied::Held);
        }
        if ask.again.is_some_and(|term| !self.reigns(ask.node, term)) {
            return Err(Denied::Overtaken);
        }
        // A copy that descends from the one on record has everything that it has.
        let current = |recorded: Option<Generation>, copy: &Copy| {
            recorded.is_some_and(|g| g == copy.current || copy.ancestry.contains(&g))
        };
        let mut pairs = self.generations.iter().zip(&ask.copies);
        if !ask.force && !pairs.all(|(g, copy)| copy.agreed || current(*g, copy)) {
            return Err(Denied::NotRecorded);
        }
        for (recorded, copy) in self.generations.iter_mut().zip(&ask.copies) {
            if current(*recorded, copy) {
                *recorded = Some(copy.current);
            }
        }
        self.owner = Some(ask.node);
        self.term = Term {
            counter: self.term.counter + 1,
            node: NodeId(ask.node as u8),
            random,
        };
        self.lease_end = now + LEASE;
        Ok(Vote {
            term: self.term,
            recorded: self.generations.clone(),
        })
    }

    /// The generation on record for a volume.
    pub fn recorded(&self, volume: usize) -> Option<Generation> {
        self.generations[volume]
    }

    /// Records a generation of the owner; the term of the new owner for anybody else.
    pub fn record(
        &mut self,
        node: usize,
        volume: usize,
        generation: Generation,
        term: Term,
    ) -> Result<(), Term> {
        if !self.reigns(node, term) {
            return Err(self.term);
        }
        self.generations[volume] = Some(generation);
        Ok(())
    }

    /// Renews the lease of the owner, also an ended one that nobody else has taken.
    pub fn renew(&mut self, node: usize, term: Term, now: Instant) -> Result<(), Term> {
        if !self.reigns(node, term) {
            return Err(self.term);
        }
        self.lease_end = now + LEASE;
        Ok(())
    }

    /// The owner has stopped.
    pub fn release(&mut self, node: usize, term: Term) {
        if self.reigns(node, term) {
            self.lease_end = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(node: usize, current: u64, ancestry: &[u64]) -> Ask {
        Ask {
            node,
            again: None,
            copies: vec![Copy {
                current: Generation(current),
                ancestry: ancestry.iter().map(|g| Generation(*g)).collect(),
                agreed: false,
            }],
            force: false,
        }
    }

    fn voter() -> Voter {
        Voter::new(1, Some(Generation(5)))
    }

    #[test]
    fn nobody_else_is_named_before_the_lease_has_ended() {
        let mut voter = voter();
        let first = voter.vote(&ask(0, 5, &[]), 1, 10).expect("free");
        assert_eq!(first.recorded, [Some(Generation(5))]);
        let mut other = ask(1, 5, &[]);
        other.force = true;
        assert_eq!(voter.vote(&other, 2, 9 + LEASE), Err(Denied::Held));
        assert_eq!(voter.renew(0, first.term, 20), Ok(()));
        assert_eq!(voter.vote(&other, 2, 10 + LEASE), Err(Denied::Held));
        voter.release(0, first.term);
        let second = voter.vote(&other, 2, 21).expect("released");
        assert!(second.term > first.term);
        assert_eq!(voter.renew(0, first.term, 22), Err(second.term));
        voter.release(0, first.term);
        assert_eq!(voter.vote(&ask(0, 5, &[]), 3, 23), Err(Denied::Held));
    }

    #[test]
    fn an_old_owner_cannot_record_and_an_old_copy_gets_no_vote() {
        let mut voter = voter();
        let first = voter.vote(&ask(0, 5, &[]), 1, 0).expect("free");
        assert_eq!(voter.record(0, 0, Generation(6), first.term), Ok(()));
        assert_eq!(
            voter.vote(&ask(1, 5, &[]), 2, LEASE),
            Err(Denied::NotRecorded)
        );
        let second = voter.vote(&ask(1, 7, &[6, 5]), 2, LEASE).expect("newer");
        assert_eq!(second.recorded, [Some(Generation(7))]);
        let refused = voter.record(0, 0, Generation(8), first.term);
        assert_eq!(refused, Err(second.term));
    }

    #[test]
    fn force_gets_a_reign_but_not_the_word_that_the_copy_is_current() {
        let mut voter = voter();
        let mut old = ask(1, 4, &[]);
        old.force = true;
        let vote = voter.vote(&old, 1, 0).expect("forced");
        assert_eq!(vote.recorded, [Some(Generation(5))]);
    }

    #[test]
    fn a_reign_goes_on_only_as_the_last_one() {
        let mut voter = voter();
        let first = voter.vote(&ask(0, 5, &[]), 1, 0).expect("free");
        let mut again = ask(0, 5, &[]);
        again.again = Some(first.term);
        let second = voter.vote(&again, 2, 1).expect("its own lease");
        voter.release(0, second.term);
        voter.vote(&ask(1, 5, &[]), 3, 2).expect("released");
        again.again = Some(second.term);
        assert_eq!(voter.vote(&again, 4, 2 * LEASE), Err(Denied::Overtaken));
    }

    #[test]
    fn two_of_three_votes_move_the_record() {
        let mut voter = voter();
        let mut both = ask(0, 9, &[]);
        assert_eq!(voter.vote(&both, 1, 0), Err(Denied::NotRecorded));
        both.copies[0].agreed = true;
        let vote = voter.vote(&both, 1, 0).expect("the peer will be asked");
        assert_eq!(vote.recorded, [Some(Generation(5))]);
        assert_eq!(voter.record(0, 0, Generation(9), vote.term), Ok(()));
        assert!(voter.vote(&ask(0, 9, &[]), 2, 1).is_ok());
        assert!(Voter::new(1, None).vote(&ask(0, 5, &[]), 1, 0).is_err());
    }
}
