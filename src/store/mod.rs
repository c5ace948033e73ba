//! The metadata of a volume on disk, and the disk behind it.
//!
//! What a volume must remember across crashes is a superblock (identities, flags, checksums of
//! the bitmap), a ring of activity-log transactions and one bitmap per peer. This module has
//!
//! - pure code, shared by the reactor and the simulator: [`Layout`] (where things lie),
//!   [`Metadata`] (turns [`MetaOp`](crate::engine::MetaOp)s into [`Step`]s) and [`recover()`]
//!   (rebuilds the engine's picture through [`ReadAt`]);
//! - the disk edge, used by the agent and the command line: [`device`] (opens disks so that
//!   nobody else can), [`probe`] (what is on a disk and who holds it), [`create`] and [`dump`].
//!
//! The life of a volume's metadata: [`create::Creation`] writes it; an attach opens the disk,
//! calls [`recover()`] and hands the [`VolumeImage`](crate::engine::VolumeImage) to the engine;
//! from then on every operation of the engine is planned by the [`Metadata`] and carried out by
//! the driver, one at a time; a detach drops it. The format is described in [`format`](mod@format).

mod bitmap;
pub mod create;
pub mod device;
pub mod dump;
mod layout;
mod log;
mod metadata;
pub mod probe;
mod recover;
mod superblock;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;

pub mod format {
    #![doc = include_str!("FORMAT.md")]
}

pub use layout::{BLOCK, EXTENT, LOG_AREA, Layout, LayoutError, MAX_PEERS, Placement};
pub use log::LogFault;
pub use metadata::{Copy, Format, Metadata, PlanError, Step};
pub use recover::{
    Damage, Medium, NO_INDEX, ReadAt, RecoverError, Recovered, adopt, read_superblock, recover,
};
pub use superblock::{CopyFault, VERSION};
