//! Wire messages, codec and links of lockstep's replication protocol. Knows no engine.

pub mod body;
pub mod frame;
pub mod link;
pub mod packet;
pub mod payloads;
pub mod ring;
pub mod wire;

#[cfg(test)]
mod strategies;
