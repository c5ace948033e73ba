//! Whole pairs on this machine: real agents and data planes, real disks (files), real NBD clients.
//!
//! [`pair`] makes a pair with directories, addresses and processes of its own, so tests run side
//! by side. Tests that need root, loop devices or network namespaces fail and say so where they
//! do not get them. `LOCKSTEP_RUNS` sets how often a race is repeated.

mod agents;
mod bad_input;
mod clients;
mod crashes;
mod disks;
mod divergence;
mod external;
mod failover;
mod load;
mod nbd;
mod network;
#[path = "../node/mod.rs"]
mod node;
mod numbers;
mod pair;
mod pauses;
mod places;
mod progress;
mod races;
mod syncs;
mod upkeep;
mod users;
mod verify;
mod volumes;
