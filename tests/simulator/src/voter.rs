//! The third voter of `--nodes 3`: a stub that keeps one record and never fails.
//!
//! It records the generation of every volume for the owner of the highest term, and says whether
//! a node may be promoted on its word. The real one (leases, restarts, rollback) is not here.

use lockstep::engine::{Generation, Term};

/// The record.
#[derive(Clone, Debug)]
pub struct Voter {
    owner: Option<usize>,
    term: Term,
    generations: Vec<Option<Generation>>,
}

impl Voter {
    pub fn new(volumes: usize) -> Voter {
        Voter {
            owner: None,
            term: Term::ZERO,
            generations: vec![None; volumes],
        }
    }

    /// Records a generation; refused (no answer) for anybody who is not the newest owner.
    pub fn record(
        &mut self,
        node: usize,
        volume: usize,
        generation: Generation,
        term: Term,
    ) -> bool {
        if term < self.term || (self.owner.is_some_and(|owner| owner != node) && term == self.term)
        {
            return false;
        }
        self.owner = Some(node);
        self.term = term;
        self.generations[volume] = Some(generation);
        true
    }

    /// Whether a copy with these generations is the recorded one. A volume that was never
    /// recorded still has its first generation.
    pub fn grants(&self, generations: &[Option<Generation>]) -> bool {
        self.generations
            .iter()
            .zip(generations)
            .all(|(recorded, mine)| recorded.is_none() || recorded == mine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep::engine::NodeId;

    fn term(counter: u64, node: u8) -> Term {
        Term {
            counter,
            node: NodeId(node),
            random: 1,
        }
    }

    #[test]
    fn an_old_owner_cannot_record_and_an_old_copy_gets_no_grant() {
        let mut voter = Voter::new(1);
        assert!(voter.record(0, 0, Generation(5), term(1, 0)));
        assert!(voter.record(1, 0, Generation(6), term(2, 1)));
        assert!(!voter.record(0, 0, Generation(7), term(1, 0)));
        assert!(voter.grants(&[Some(Generation(6))]));
        assert!(!voter.grants(&[Some(Generation(5))]));
        assert!(!voter.grants(&[None]));
    }
}
