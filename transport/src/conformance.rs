//! What every transport must do, run against each of them.
//!
//! A [`Fixture`] makes connected links and drives them; [`StreamFixture`] adds a peer that can put
//! arbitrary bytes on the stream. The checks know neither sockets nor cables.

mod sim;
mod tcp;

use std::time::Duration;

use crate::frame::QueueError;
use crate::link::{Link, LinkError, LinkEvent};
use crate::packet::{AckKind, Envelope, Packet, WriteKind};
use crate::payloads::{PayloadPool, PoolConfig, Slot};
use crate::strategies::{data_for, noise};
use crate::wire::{HEADER_LEN, MAX_DATA, Span, Term, VERSION, WireError};

/// Send buffer of the links under test, bytes.
pub const SEND_BUFFER: usize = 4 << 20;
/// Longest a check waits for something to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Makes and drives links of one transport.
pub trait Fixture {
    fn pair(&mut self) -> (Side, Side);

    /// Pumps the sides once, in order, and hands over completions that are there. True when
    /// patience has run out since the last `pair` or `raw`.
    fn turn(&mut self, sides: &mut [&mut Side]) -> bool;
}

/// The far end of a link, without a link.
pub trait RawPeer {
    fn write(&mut self, bytes: &[u8]);
    /// Ends the stream in the orderly way.
    fn end(&mut self);
}

/// A transport whose bytes can be forged.
pub trait StreamFixture: Fixture {
    fn raw(&mut self) -> (Box<dyn RawPeer>, Side);
}

/// A link with its owner: pool, and everything that came.
pub struct Side {
    pub id: u32,
    pub link: Box<dyn Link>,
    pub pool: PayloadPool,
    pub events: Vec<LinkEvent>,
    /// Frames with their data.
    pub frames: Vec<(Envelope, Vec<u8>)>,
    pub closed: Option<LinkError>,
    /// Slots are kept in `held` instead of released.
    pub keep: bool,
    pub held: Vec<Slot>,
}

impl Side {
    pub fn new(id: u32, link: Box<dyn Link>) -> Side {
        let config = PoolConfig {
            small_slots: 4,
            small_size: 16 << 10,
            large_slots: 2,
        };
        Side {
            id,
            link,
            pool: PayloadPool::new(config).expect("pool"),
            events: Vec::new(),
            frames: Vec::new(),
            closed: None,
            keep: false,
            held: Vec::new(),
        }
    }

    /// Takes note of the events. Fails when anything follows the end.
    pub fn absorb(&mut self) {
        for event in std::mem::take(&mut self.events) {
            assert_eq!(self.closed, None, "{event:?} after the end");
            match event {
                LinkEvent::Closed(reason) => self.closed = Some(reason),
                LinkEvent::Frame { envelope, payload } => {
                    let data = payload.map_or(Vec::new(), |payload| {
                        let bytes = self.pool.bytes(payload.slot).expect("slot in use");
                        let data = bytes[..payload.len as usize].to_vec();
                        if self.keep {
                            self.held.push(payload.slot);
                        } else {
                            self.pool.release(payload.slot).expect("slot in use");
                        }
                        data
                    });
                    self.frames.push((envelope, data));
                }
            }
        }
    }

    fn queue(&mut self, frame: &(Envelope, Vec<u8>)) {
        self.link.queue(&frame.0, &frame.1).expect("queued");
    }
}

fn run_until(
    fixture: &mut dyn Fixture,
    sides: &mut [&mut Side],
    what: &str,
    mut done: impl FnMut(&[&mut Side]) -> bool,
) {
    while !done(sides) {
        assert!(!fixture.turn(sides), "timed out waiting for: {what}");
    }
}

fn envelope(frame: u64, packet: Packet) -> Envelope {
    Envelope {
        lane: 0,
        session: 0x1122_3344_5566_7788,
        term: Term {
            counter: 9,
            node: 1,
            random: 77,
        },
        frame,
        packet,
    }
}

/// A write of `len` bytes as frame number `frame`, with its data.
fn write(frame: u64, len: u32) -> (Envelope, Vec<u8>) {
    let packet = Packet::Write {
        volume: 1,
        span: Span {
            start: frame * 4096,
            len,
        },
        kind: WriteKind::Data,
        fua: false,
        sequence: frame,
        ack: AckKind::Written,
    };
    (envelope(frame, packet), noise(len as usize, frame))
}

fn small(frame: u64) -> (Envelope, Vec<u8>) {
    (envelope(frame, Packet::Ping), Vec::new())
}

/// Control bodies, empty frames, and data of every size class, interleaved.
fn mix(first: u64, count: u64) -> Vec<(Envelope, Vec<u8>)> {
    let sizes = [512, 4096, 16 << 10, 64 << 10, 128 << 10, MAX_DATA];
    (first..first + count)
        .map(|frame| match frame % 5 {
            0 => small(frame),
            1 => {
                let verdicts = (0..64).map(|volume| (volume, 3)).collect();
                let packet = Packet::Agree {
                    round: frame as u32,
                    peer_round: 2,
                    verdicts,
                };
                (envelope(frame, packet), Vec::new())
            }
            2 => {
                let packet = Packet::ReadReply {
                    id: frame,
                    ok: true,
                };
                let data = data_for(&packet, frame);
                (envelope(frame, packet), data)
            }
            _ => write(frame, sizes[(frame / 2 % 6) as usize]),
        })
        .collect()
}

fn bytes_of(frames: &[(Envelope, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (envelope, data) in frames {
        envelope.encode(VERSION, data, &mut bytes).expect("encodes");
    }
    bytes
}

/// Frames come whole and in order, both ways at once.
pub fn order(fixture: &mut dyn Fixture) {
    let (mut a, mut b) = fixture.pair();
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    for round in 0..6 {
        for frame in mix(1 + round * 10, 10) {
            a.queue(&frame);
            from_a.push(frame);
        }
        for frame in mix(1 + round * 7, 7) {
            b.queue(&frame);
            from_b.push(frame);
        }
        run_until(fixture, &mut [&mut a, &mut b], "the mix", |sides| {
            sides[0].frames.len() >= from_b.len() && sides[1].frames.len() >= from_a.len()
        });
    }
    assert!(a.frames == from_b && b.frames == from_a);
    assert_eq!((a.closed, b.closed), (None, None));
    assert_eq!((a.link.queued(), b.link.queued()), (0, 0));
    assert_eq!((a.pool.in_use(), b.pool.in_use()), (0, 0));
    end(fixture, &mut a, &mut b);
}

/// A receiver without free slots stops the stream; released slots let it go on, with nothing lost.
pub fn backpressure(fixture: &mut dyn Fixture) {
    let (mut a, mut b) = fixture.pair();
    b.keep = true;
    let frames: Vec<_> = (1..=20).map(|frame| write(frame, 64 << 10)).collect();
    frames.iter().for_each(|frame| a.queue(frame));
    run_until(fixture, &mut [&mut a, &mut b], "two frames", |sides| {
        sides[1].frames.len() >= 2
    });
    for _ in 0..300 {
        fixture.turn(&mut [&mut a, &mut b]);
    }
    assert_eq!(b.frames.len(), 2, "there are two large slots");
    while b.frames.len() < frames.len() {
        let seen = b.frames.len();
        let slot = b.held.remove(0);
        b.pool.release(slot).expect("held");
        run_until(fixture, &mut [&mut a, &mut b], "one more frame", |sides| {
            sides[1].frames.len() > seen
        });
        assert_eq!(b.frames.len(), seen + 1);
    }
    assert!(b.frames == frames);
    end(fixture, &mut a, &mut b);
}

/// The send buffer is bounded; a refused frame can be queued again later.
pub fn bounded_queue(fixture: &mut dyn Fixture) {
    let (mut a, mut b) = fixture.pair();
    let frames: Vec<_> = (1..=100).map(|frame| write(frame, 128 << 10)).collect();
    let mut queued = 0;
    while queued < frames.len() {
        let (envelope, data) = &frames[queued];
        match a.link.queue(envelope, data) {
            Ok(bytes) => {
                assert_eq!(bytes, HEADER_LEN + data.len());
                queued += 1;
            }
            Err(error) => {
                assert_eq!(error, QueueError::Full);
                assert!(a.link.room() < HEADER_LEN + data.len());
                assert!(a.link.queued() <= 2 * SEND_BUFFER);
                fixture.turn(&mut [&mut a, &mut b]);
            }
        }
    }
    run_until(fixture, &mut [&mut a, &mut b], "all frames", |sides| {
        sides[1].frames.len() >= frames.len()
    });
    assert!(b.frames == frames);
    // A gap in the numbers is a mistake of the sender that never reaches the peer.
    let error = WireError::Order {
        lane: 0,
        got: 200,
        want: 101,
    };
    let (envelope, data) = small(200);
    assert_eq!(
        a.link.queue(&envelope, &data),
        Err(QueueError::Invalid(error))
    );
    end(fixture, &mut a, &mut b);
}

/// Closes `a` and waits until both sides may be dropped.
fn end(fixture: &mut dyn Fixture, a: &mut Side, b: &mut Side) {
    a.link.close();
    run_until(fixture, &mut [a, b], "the end of both links", |sides| {
        sides.iter().all(|side| side.link.drained())
    });
    assert_eq!(a.closed, Some(LinkError::Local));
    assert!(b.closed.is_some());
    for side in [a, b] {
        let (envelope, data) = small(1);
        assert_eq!(side.link.queue(&envelope, &data), Err(QueueError::Closed));
        assert_eq!(side.pool.in_use(), side.held.len());
    }
}

/// `close` ends both links in the middle of the traffic, once, and frees what they held.
pub fn close(fixture: &mut dyn Fixture) {
    for frames_first in [0, 1, 3] {
        let (mut a, mut b) = fixture.pair();
        mix(1, 12).iter().for_each(|frame| a.queue(frame));
        mix(1, 12).iter().for_each(|frame| b.queue(frame));
        run_until(fixture, &mut [&mut a, &mut b], "some frames", |sides| {
            sides[1].frames.len() >= frames_first
        });
        end(fixture, &mut a, &mut b);
        assert!(b.frames == mix(1, 12)[..b.frames.len()]);
    }
}

/// `finish` lets everything leave first; the peer gets all of it and then an orderly end.
pub fn finish(fixture: &mut dyn Fixture) {
    let (mut a, mut b) = fixture.pair();
    let mut frames = mix(1, 20);
    frames.push((envelope(21, Packet::Goodbye { outdate: true }), Vec::new()));
    frames.iter().for_each(|frame| a.queue(frame));
    a.link.finish(PATIENCE);
    let (late, data) = small(22);
    assert_eq!(a.link.queue(&late, &data), Err(QueueError::Closed));
    // What the other side still sends is discarded.
    mix(1, 3).iter().for_each(|frame| b.queue(frame));
    run_until(fixture, &mut [&mut a, &mut b], "the end", |sides| {
        sides.iter().all(|side| side.closed.is_some())
    });
    assert!(b.frames == frames);
    assert!(a.frames.is_empty());
    assert_eq!(a.closed, Some(LinkError::Local));
    assert_eq!(b.closed, Some(LinkError::Peer));
    assert_eq!((a.pool.in_use(), b.pool.in_use()), (0, 0));
}

/// `finish` toward a peer that never closes ends after its bound.
pub fn finish_is_bounded(fixture: &mut dyn StreamFixture) {
    let (_peer, mut side) = fixture.raw();
    side.queue(&small(1));
    side.link.finish(Duration::from_millis(50));
    run_until(fixture, &mut [&mut side], "the bound", |sides| {
        sides[0].link.drained()
    });
    assert_eq!(side.closed, Some(LinkError::Unfinished));
}

/// A new connection starts from frame 1 with the same pools.
pub fn reconnect(fixture: &mut dyn Fixture) {
    let mut pools = None;
    for _ in 0..3 {
        let (mut a, mut b) = fixture.pair();
        if let Some((pool_a, pool_b)) = pools.take() {
            (a.pool, b.pool) = (pool_a, pool_b);
        }
        let frames = mix(1, 8);
        frames.iter().for_each(|frame| a.queue(frame));
        run_until(fixture, &mut [&mut a, &mut b], "the frames", |sides| {
            sides[1].frames.len() >= frames.len()
        });
        assert!(b.frames == frames);
        end(fixture, &mut b, &mut a);
        pools = Some((a.pool, b.pool));
    }
}

/// Feeds `bytes`, ends the stream, and returns what was delivered and why the link ended.
fn outcome(fixture: &mut dyn StreamFixture, bytes: &[u8]) -> (Vec<(Envelope, Vec<u8>)>, LinkError) {
    let (mut peer, mut side) = fixture.raw();
    peer.write(bytes);
    peer.end();
    run_until(fixture, &mut [&mut side], "the end", |sides| {
        sides[0].link.drained()
    });
    assert_eq!(side.pool.in_use(), 0);
    (side.frames, side.closed.expect("reported"))
}

/// A flipped bit anywhere in a frame drops the link; the frames before it are delivered, it and
/// those after it are not.
pub fn flipped_bits(fixture: &mut dyn StreamFixture) {
    let compare = Packet::SyncCompare {
        id: 4,
        volume: 1,
        span: Span { start: 0, len: 512 },
        hash: [0x5a; 32],
    };
    let victims = [write(2, 512), (envelope(2, compare), Vec::new()), small(2)];
    let before = [small(1)];
    let after = bytes_of(&[write(3, 512)]);
    for victim in victims {
        let victim = bytes_of(&[victim]);
        for bit in 0..victim.len() * 8 {
            let mut bytes = bytes_of(&before);
            let start = bytes.len();
            bytes.extend_from_slice(&victim);
            bytes.extend_from_slice(&after);
            bytes[start + bit / 8] ^= 1 << (bit % 8);
            let (frames, reason) = outcome(fixture, &bytes);
            assert_eq!(frames, before, "bit {bit}");
            assert!(matches!(reason, LinkError::Wire(_)), "bit {bit}: {reason}");
        }
    }
}

/// A flipped bit in data that is received straight into its slot.
pub fn flipped_bits_in_large_data(fixture: &mut dyn StreamFixture) {
    let good = bytes_of(&[write(1, MAX_DATA), small(2)]);
    let frame = HEADER_LEN + MAX_DATA as usize;
    for at in (HEADER_LEN..frame).step_by(97_003).chain([frame - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        let (frames, reason) = outcome(fixture, &bytes);
        assert_eq!(frames, [], "byte {at}");
        assert!(matches!(
            reason,
            LinkError::Wire(WireError::PayloadChecksum { .. })
        ));
    }
    let (frames, reason) = outcome(fixture, &good);
    assert!(frames == [write(1, MAX_DATA), small(2)]);
    assert_eq!(reason, LinkError::Peer);
}

/// A stream that ends inside a frame delivers the frames before it.
pub fn truncated(fixture: &mut dyn StreamFixture) {
    let frames = [small(1), write(2, 512), write(3, 200 << 10)];
    let bytes = bytes_of(&frames);
    let ends: Vec<_> = (1..=frames.len())
        .map(|count| bytes_of(&frames[..count]).len())
        .collect();
    let interesting = (0..ends[1] + HEADER_LEN + 2).chain((ends[1]..bytes.len()).step_by(9973));
    for len in interesting.chain([bytes.len() - 1, bytes.len()]) {
        let complete = ends.iter().filter(|end| **end <= len).count();
        let (got, reason) = outcome(fixture, &bytes[..len]);
        assert!(got == frames[..complete], "{len} bytes");
        let expected = if len == 0 || ends.contains(&len) {
            LinkError::Peer
        } else {
            LinkError::Truncated
        };
        assert_eq!(reason, expected, "{len} bytes");
    }
}

/// Garbage, a length beyond the limit, a number out of turn: refused by what is wrong with them.
pub fn forged(fixture: &mut dyn StreamFixture) {
    for seed in 0..20 {
        let (frames, reason) = outcome(fixture, &noise(5000, seed));
        assert_eq!(frames, []);
        assert!(matches!(reason, LinkError::Wire(WireError::Magic(_))));
    }
    let forge = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = bytes_of(&[write(1, 4096), small(2)]);
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut check = |change: &dyn Fn(&mut [u8])| {
        let (frames, reason) = outcome(fixture, &forge(change));
        assert_eq!(frames, []);
        match reason {
            LinkError::Wire(error) => error,
            other => panic!("{other}"),
        }
    };
    let too_long = check(&|bytes| bytes[72..76].fill(0xff));
    assert!(matches!(too_long, WireError::Length { got: u32::MAX, .. }));
    let unlike_span = check(&|bytes| bytes[73] = 0x20);
    assert!(matches!(unlike_span, WireError::Length { got: 0x2000, .. }));
    let twice = check(&|bytes| bytes[40] = 2);
    assert!(matches!(
        twice,
        WireError::Order {
            got: 2,
            want: 1,
            ..
        }
    ));
    let odd = check(&|bytes| bytes[48] = 1);
    assert!(matches!(odd, WireError::Span { .. }));
    let unknown = check(&|bytes| bytes[6] = 200);
    assert_eq!(unknown, WireError::UnknownKind(200));
    let version = check(&|bytes| bytes[4] = 2);
    assert!(matches!(version, WireError::Version { got: 2, want: 1 }));
    let reserved = check(&|bytes| bytes[80] = 1);
    assert!(matches!(reserved, WireError::Fields { .. }));
}

/// Closing while data is on its way into a slot gives the slot back once the kernel is done.
pub fn close_inside_data(fixture: &mut dyn StreamFixture) {
    let (mut peer, mut side) = fixture.raw();
    peer.write(&bytes_of(&[write(1, MAX_DATA)])[..300 << 10]);
    run_until(fixture, &mut [&mut side], "the slot", |sides| {
        sides[0].pool.in_use() == 1
    });
    for _ in 0..20 {
        fixture.turn(&mut [&mut side]);
    }
    side.link.close();
    assert!(!side.link.drained());
    run_until(fixture, &mut [&mut side], "the end", |sides| {
        sides[0].link.drained()
    });
    assert_eq!(side.pool.in_use(), 0);
    assert_eq!(side.closed, Some(LinkError::Local));
    assert_eq!(side.frames, []);
}

/// One test per check that a transport must pass.
macro_rules! checks {
    ($fixture:expr; $($check:ident),+ $(,)?) => {
        $(
            #[test]
            fn $check() {
                crate::conformance::$check(&mut $fixture);
            }
        )+
    };
}

/// All of them, for a transport whose bytes can be forged.
macro_rules! conforms {
    ($fixture:expr) => {
        crate::conformance::checks!(
            $fixture;
            order,
            backpressure,
            bounded_queue,
            close,
            finish,
            finish_is_bounded,
            reconnect,
            flipped_bits,
            flipped_bits_in_large_data,
            truncated,
            forged,
            close_inside_data,
        );
    };
}

use {checks, conforms};
