//! The data plane of one resource: turns completions into engine events and engine actions into
//! ring entries.

mod buffers;
mod counters;
mod disk;
mod lines;
mod links;
mod meta;
pub mod reason;
mod recorder;
mod ring;
mod slab;
mod status;
mod track;
mod wire;
