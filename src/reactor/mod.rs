//! The data plane of one resource: `lockstep serve RES`.
//!
//! Two threads. The *ring thread* ([`run`]) owns the engine and everything on the way of a write:
//! front ends, disks, metadata, links, buffers, all on one io_uring. The *control thread*
//! ([`control`]) talks with the agent and makes connections to the peer; it hands orders over
//! through a channel and a wake-up, and hears back through channels ([`orders`]).
//!
//! ```text
//! front end --request--> engine --action--> disk, metadata, link --completion--> engine
//!     ^                     |
//!     +------complete-------+
//! ```

mod attach;
mod backing;
mod buffers;
mod connect;
mod control;
mod counters;
mod device;
mod digest;
mod disk;
mod fronts;
mod holds;
pub mod lease;
mod lines;
mod links;
mod meta;
mod orders;
mod progress;
pub mod reason;
mod recorder;
mod ring;
mod root;
mod run;
mod serve;
mod slab;
mod status;
mod track;
mod wire;

pub use serve::{ServeError, serve};
