//! Wire messages, codec and links of lockstep's replication protocol. Knows no engine.

pub mod body;
pub mod frame;
pub mod hello;
mod inbound;
pub mod link;
mod outbound;
pub mod packet;
pub mod payloads;
pub mod ring;
pub mod sealed;
pub mod simlink;
pub mod socket;
pub mod tcp;
pub mod wire;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod strategies;
