//! Why the demo fails.

use std::io;
use std::process::ExitStatus;

use thiserror::Error;

use super::front::FrontError;
use crate::target::ublk::{RecordError, UblkError};

/// What ends the story early: a broken promise, or something that the demo needs and lacks.
#[derive(Debug, Error)]
pub enum Fault {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{what}: {source}")]
    Front { what: String, source: FrontError },
    #[error("`lockstep --node {node} {verb}` ends with {status}: {reason}")]
    Verb {
        node: &'static str,
        verb: String,
        status: ExitStatus,
        reason: String,
    },
    #[error("{node} gives no status: {reason}")]
    Status { node: &'static str, reason: String },
    #[error("{node}'s status says nothing about {what}")]
    Unsaid {
        node: &'static str,
        what: &'static str,
    },
    #[error("the agent of {node} ended with {status}: {last_words}")]
    AgentEnded {
        node: &'static str,
        status: ExitStatus,
        last_words: String,
    },
    #[error("not within {seconds} s: {what}")]
    Late { what: String, seconds: u64 },
    #[error("{folder} is not empty")]
    FolderTaken { folder: String },
    #[error("{folder} is too long a path for sockets in it; choose a shorter --dir")]
    FolderTooLong { folder: String },
    #[error("{folder} has {free_mib} MiB free; the demo needs {needed_mib}")]
    NoSpace {
        folder: String,
        free_mib: u64,
        needed_mib: u64,
    },
    #[error("the operating system gives no random numbers")]
    Random,
    #[error("block devices left behind: {0}")]
    Devices(#[from] UblkError),
    #[error("block devices left behind: {0}")]
    Records(#[from] RecordError),
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// A promise of the product that did not hold.
#[derive(Debug, Error)]
pub enum Broken {
    #[error("{lost} of {checked} blocks are not as acknowledged on {node}; the first: {first}")]
    Lost {
        node: &'static str,
        lost: u64,
        checked: u64,
        first: String,
    },
    #[error("a write failed while both nodes were well: {0}")]
    WriteFailed(FrontError),
    #[error("{0} writes of the killed node were acknowledged after the other had taken over")]
    LateAcknowledgement(u64),
    #[error("{copied_kib} KiB were copied to the node that came back; {limit_kib} would do")]
    CopiedTooMuch { copied_kib: u64, limit_kib: u64 },
    #[error("{copied_kib} KiB were copied to the node that came back; {changed_kib} had changed")]
    CopiedTooLittle { copied_kib: u64, changed_kib: u64 },
    #[error("the online verify was {state} at {at_kib} KiB and found {found_kib} KiB that differ")]
    Verify {
        state: String,
        at_kib: u64,
        found_kib: u64,
    },
    #[error("the two disks differ in {blocks} blocks, first at byte {first}")]
    DisksDiffer { blocks: u64, first: u64 },
}

impl Fault {
    /// Makes the fault of a system call out of its error, for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Fault {
        let what = what.into();
        |source| Fault::Io { what, source }
    }

    /// The same for a request to a volume.
    pub fn front(what: impl Into<String>) -> impl FnOnce(FrontError) -> Fault {
        let what = what.into();
        |source| Fault::Front { what, source }
    }
}
