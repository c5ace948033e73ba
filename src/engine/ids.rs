//! Identifiers and units. Newtypes, so that an index is never taken for a size.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds on the node's boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This instant plus `d`, saturating.
    pub fn after(self, d: Duration) -> Time {
        Time(
            self.0
                .saturating_add(d.as_nanos().min(u64::MAX as u128) as u64),
        )
    }

    /// Time passed since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A node of the resource, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u8);

/// A volume of the resource, as written in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub u16);

/// Identity of a volume's data: random, with ancestry kept beside it. Zero = just created.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of metadata that was just created: no data yet.
    pub const FRESH: Generation = Generation(0);

    /// True for just created metadata.
    pub fn is_fresh(self) -> bool {
        self == Generation::FRESH
    }
}

/// A reign as primary. Ordered by counter, then node, then the random part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    pub counter: u64,
    pub node: NodeId,
    pub random: u32,
}

impl Term {
    /// Before the first promotion.
    pub const ZERO: Term = Term {
        counter: 0,
        node: NodeId(0),
        random: 0,
    };
}

/// One connection between two incarnations of a data plane. Zero = not agreed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// A transport connection, numbered by the driver, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A front-end request. The driver chooses it; it is free again after `Action::Complete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// A disk or metadata operation, numbered by the engine, never reused in one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// An operator command, numbered by the driver; answered by `Action::CommandDone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// A payload buffer that the driver owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Buffer {
    /// The buffer of a front-end request; valid from `Event::Request` to `Action::Complete`.
    Request(RequestId),
    /// A payload received from the peer; valid from `Event::Message` to `Action::Release`.
    Received(u32),
    /// One of `Config::resync_buffers` buffers of `Config::resync_chunk` bytes that the driver
    /// allocates at start and the engine hands out to itself.
    Resync(u32),
}

/// A byte range of a volume. Multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u64,
    pub len: u32,
}

impl Span {
    pub fn new(start: u64, len: u32) -> Span {
        Span { start, len }
    }

    /// First byte after the span.
    pub fn end(self) -> u64 {
        self.start + u64::from(self.len)
    }

    pub fn overlaps(self, other: Span) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:08x}", self.counter, self.node.0, self.random)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
