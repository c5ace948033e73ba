//! Lockstep: a replicated block device in userspace.
//!
//! The path of a write: [`target`] -> [`reactor`] -> [`engine`] -> [`store`] and the transport
//! crate -> [`reactor`] -> [`target`]. The engine is a pure state machine; everything around it
//! turns completions into its events and its actions into system calls.

pub mod agent;
pub mod cli;
mod clock;
pub mod config;
pub mod engine;
pub mod failover;
pub mod reactor;
pub mod store;
pub mod target;
