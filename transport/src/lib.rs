//! Wire messages, codec and links of lockstep's replication protocol. Knows no engine.

pub mod ring;
