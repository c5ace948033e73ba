//! The in-memory cable.

use io_uring::squeue;

use crate::conformance::{Fixture, RawPeer, SEND_BUFFER, Side, StreamFixture};
use crate::link::Link;
use crate::ring::{RingFull, Submitter};
use crate::simlink::{Cable, End, SimConfig, SimLink, cable};

/// Pumps before patience runs out.
const MAX_TURNS: u32 = 2_000_000;

struct NoRing;

impl Submitter for NoRing {
    fn submit(&mut self, _entry: squeue::Entry, _token: u32) -> Result<(), RingFull> {
        panic!("a simulated link submits nothing")
    }
}

struct Sim {
    seed: u64,
    max_chunk: usize,
    turns: u32,
}

impl Sim {
    fn new(max_chunk: usize) -> Sim {
        Sim {
            seed: 1,
            max_chunk,
            turns: 0,
        }
    }

    fn cable(&mut self) -> (SimLink, SimLink, Cable) {
        self.seed += 1;
        self.turns = 0;
        cable(SimConfig {
            send_buffer: SEND_BUFFER,
            capacity: 2 * self.max_chunk + 1,
            max_chunk: self.max_chunk,
            seed: self.seed,
        })
    }
}

impl Fixture for Sim {
    fn pair(&mut self) -> (Side, Side) {
        let (a, b, _) = self.cable();
        (Side::new(0, Box::new(a)), Side::new(1, Box::new(b)))
    }

    fn turn(&mut self, sides: &mut [&mut Side]) -> bool {
        for side in sides {
            side.link
                .pump(&mut NoRing, &mut side.pool, &mut side.events);
            side.absorb();
        }
        self.turns += 1;
        self.turns > MAX_TURNS
    }
}

/// End A of a cable whose link stays idle; bytes are put into the cable directly.
struct Forger {
    cable: Cable,
    written: u64,
    _end: SimLink,
}

impl RawPeer for Forger {
    fn write(&mut self, bytes: &[u8]) {
        self.cable.inject(End::A, bytes);
        self.written += bytes.len() as u64;
    }

    fn end(&mut self) {
        self.cable.cut(End::A, self.written);
    }
}

impl StreamFixture for Sim {
    fn raw(&mut self) -> (Box<dyn RawPeer>, Side) {
        let (a, b, cable) = self.cable();
        let peer = Forger {
            cable,
            written: 0,
            _end: a,
        };
        (Box::new(peer), Side::new(1, Box::new(b)))
    }
}

mod large_chunks {
    crate::conformance::conforms!(super::Sim::new(100_000));
}

mod small_chunks {
    crate::conformance::conforms!(super::Sim::new(300));
}

/// The cable's own faults: a bit flipped and a stream cut on the way between two links.
#[test]
fn faults_on_the_cable() {
    for cut in [false, true] {
        let mut sim = Sim::new(1000);
        let (mut a, b, cable) = sim.cable();
        let frame = crate::conformance::write(1, 4096);
        a.queue(&frame.0, &frame.1).expect("queued");
        if cut {
            cable.cut(End::A, 2000);
        } else {
            cable.flip(End::A, 2000 * 8 + 3);
        }
        let (mut a, mut b) = (Side::new(0, Box::new(a)), Side::new(1, Box::new(b)));
        while !(a.link.drained() && b.link.drained()) {
            assert!(!sim.turn(&mut [&mut a, &mut b]));
        }
        assert!(b.frames.is_empty());
        let expected = if cut {
            "connection ended inside a frame"
        } else {
            "protocol violation: Write frame: wrong payload checksum"
        };
        assert_eq!(b.closed.expect("closed").to_string(), expected);
    }
}
