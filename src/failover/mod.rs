//! Who may be primary: votes, leases, and the node's side of both.
//!
//! Three voters keep one record per resource: the two nodes and a third. Whoever wants to reign
//! needs two of them, itself included, and so does every new generation of the data. Both parts
//! are pure state machines: [`Voter`] is a voter, the same on a node and in a witness; [`Seat`] is
//! what a node's agent knows and asks. Their driver owns clock, sockets and files.

mod enrol;
pub mod letter;
pub mod manager;
pub mod membership;
pub mod pulse;
pub mod report;
mod seat;
mod slots;
mod voter;
pub mod witness;

pub use seat::{Input, Memory, Other, Output, Seat, SeatConfig};
pub use voter::{
    Answer, Ballot, Copy, Data, Denied, Known, Lease, Question, Record, Seen, Voter, VoterConfig,
};

#[cfg(test)]
mod tests;
