//! Front ends: what applications see as a disk.
//!
//! A target lives on the reactor's thread and ring. It owns the payload buffers of its requests;
//! a tag's buffer belongs to the engine from `TargetEvent::Request` until [`Target::complete`].

pub mod nbd;
pub mod processes;
pub mod ublk;

use std::net::SocketAddr;

use lockstep_transport::ring::{RingFull, Submitter};
use serde::{Deserialize, Serialize};

use crate::engine::{IoFailure, Op};

/// What a target tells the reactor.
#[derive(Debug)]
pub enum TargetEvent {
    /// A request; `tag` is its own until completed. Ranges are checked against the device size,
    /// multiples of 512, at most `MAX_DATA` bytes for reads and writes and 64 MiB otherwise.
    Request { tag: u32, op: Op },
    /// The target has ended and holds no submission any more.
    Stopped,
}

/// Largest read or write that a target hands on; larger ones are split or not advertised.
pub const MAX_DATA: u32 = 1 << 20;

/// Who uses a front end, as far as the front end itself can know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// A process of this machine, by its number.
    Process(u32),
    /// Somebody on the network.
    Address(SocketAddr),
    /// The system does not say.
    Unknown,
}

/// A front end of one volume.
pub trait Target {
    /// Largest number of tags in use at once; tags are below it.
    fn depth(&self) -> u32;

    /// Puts the first submissions on the ring.
    fn start(&mut self, ring: &mut dyn Submitter) -> Result<(), RingFull>;

    /// Takes a completion of one of this target's submissions.
    fn on_completion(
        &mut self,
        ring: &mut dyn Submitter,
        token: u32,
        result: i32,
        flags: u32,
        events: &mut Vec<TargetEvent>,
    );

    /// The payload buffer of a tag, 4096-aligned: holds the data of a write, takes the data of a read.
    fn buffer(&mut self, tag: u32) -> &mut [u8];

    /// Ends a request.
    fn complete(&mut self, ring: &mut dyn Submitter, tag: u32, result: Result<(), IoFailure>);

    /// Whether somebody uses the volume through it. A block device's openers are known to the
    /// kernel alone: it says no.
    fn in_use(&self) -> bool {
        false
    }

    /// Who does, for a message.
    fn clients(&self) -> Vec<Client> {
        Vec::new()
    }

    /// Begins to end the target; `TargetEvent::Stopped` follows from a later completion or from
    /// this call.
    fn stop(&mut self, ring: &mut dyn Submitter, events: &mut Vec<TargetEvent>);
}
