//! What the datagrams of [`lockstep_transport::sealed`] carry.
//!
//! Bodies are postcard (serde's compact binary form). What arrives is bounded by the datagram and
//! read without trust: anything that does not fit is an error, and nothing follows from it.

use serde::{Deserialize, Serialize};

use super::voter::{Answer, Known, Question};
use crate::engine::NodeId;

/// Longest name of a resource that is taken from another host.
const MAX_NAME: usize = 255;
/// Volumes of a resource, and generations in the ancestry of one, that are taken.
const MAX_LIST: usize = 64;

/// Kinds of datagrams.
pub mod kind {
    /// A heartbeat between two nodes.
    pub const BEAT: u8 = 1;
    /// A question to a voter, and its answer.
    pub const ASK: u8 = 2;
    pub const ANSWER: u8 = 3;
    /// A witness does not know the cluster, or does again after [`ENROL`]. Not sealed.
    pub const UNKNOWN: u8 = 4;
    /// A node introduces its cluster to a witness. Not sealed.
    pub const ENROL: u8 = 5;
    /// A heartbeat as long as the path's largest packet.
    pub const PROBE: u8 = 6;
}

/// A question to a voter of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub id: u64,
    pub resource: String,
    pub terms: Terms,
    pub known: Known,
    pub question: Question,
}

/// What a witness has to know about a resource; nodes tell it with every question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub nodes: [NodeId; 2],
    pub lease_ms: u32,
    pub margin_ms: u32,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub id: u64,
    pub resource: String,
    pub answer: Answer,
}

/// Why a body is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LetterError {
    #[error("the body makes no sense")]
    Garbled,
    #[error("the body is larger than a datagram")]
    TooLong,
    #[error("more volumes or names than there can be")]
    Unbounded,
}

/// Bytes of a body.
pub fn write<T: Serialize>(letter: &T) -> Result<Vec<u8>, LetterError> {
    postcard::to_stdvec(letter).map_err(|_| LetterError::TooLong)
}

/// Reads a body.
pub fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, LetterError> {
    match postcard::take_from_bytes(bytes) {
        Ok((letter, [])) => Ok(letter),
        _ => Err(LetterError::Garbled),
    }
}

impl Ask {
    pub fn read(bytes: &[u8]) -> Result<Ask, LetterError> {
        let ask: Ask = read(bytes)?;
        let copies = match &ask.question {
            Question::Vote(ballot) => &ballot.copies[..],
            _ => &[],
        };
        let data = match &ask.question {
            Question::Record { data, .. } => data.generations.len(),
            _ => 0,
        };
        let lists = [copies.len(), data, ask.known.data.generations.len()];
        let ancestry = copies.iter().map(|copy| copy.ancestry.len());
        if ask.resource.len() > MAX_NAME || lists.into_iter().chain(ancestry).any(|n| n > MAX_LIST)
        {
            return Err(LetterError::Unbounded);
        }
        Ok(ask)
    }
}

impl Reply {
    pub fn read(bytes: &[u8]) -> Result<Reply, LetterError> {
        let reply: Reply = read(bytes)?;
        if reply.resource.len() > MAX_NAME || reply.answer.data.generations.len() > MAX_LIST {
            return Err(LetterError::Unbounded);
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::Term;
    use crate::failover::{Ballot, Copy, Data, Record};

    fn ask(question: Question) -> Ask {
        let data = Record::blank(1).data;
        Ask {
            id: 7,
            resource: "r0".to_owned(),
            terms: Terms {
                nodes: [NodeId(0), NodeId(1)],
                lease_ms: 3000,
                margin_ms: 500,
            },
            known: Known {
                term: Term::ZERO,
                data,
                seen: None,
                leased: false,
            },
            question,
        }
    }

    fn copies(volumes: u16) -> Vec<Copy> {
        let copy = |volume| Copy {
            volume: crate::engine::VolumeId(volume),
            current: crate::engine::Generation(u64::MAX),
            ancestry: vec![crate::engine::Generation(u64::MAX); 2],
            agreed: true,
        };
        (0..volumes).map(copy).collect()
    }

    fn ballot(volumes: u16) -> Question {
        Question::Vote(Ballot {
            term: Term::ZERO,
            again: None,
            copies: copies(volumes),
            force: true,
        })
    }

    #[test]
    fn letters_survive_the_way_and_the_largest_fits() {
        for question in [Question::Hello, ballot(1), ballot(64)] {
            let sent = ask(question);
            let bytes = write(&sent).unwrap();
            assert!(bytes.len() < lockstep_transport::sealed::MAX_BODY);
            assert_eq!(Ask::read(&bytes), Ok(sent));
        }
        let many = write(&ask(ballot(65))).unwrap();
        assert_eq!(Ask::read(&many), Err(LetterError::Unbounded));
        let mut data = Record::blank(1).data;
        data.term.counter = u64::MAX;
        let mut longer = write(&data).unwrap();
        longer.push(0);
        assert_eq!(read::<Data>(&longer), Err(LetterError::Garbled));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Ask::read(&bytes);
            let _ = Reply::read(&bytes);
        }
    }
}
