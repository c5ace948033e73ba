//! Random packets for property tests.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::body::*;
use crate::packet::{AckKind, Envelope, Packet, SyncResult, VerifyResult, WriteKind};
use crate::wire::{MAX_DATA, MAX_LANES, MAX_SPAN, SECTOR, Span, Term};

/// Largest data of a random packet, to keep the tests quick.
const MAX_TEST_DATA: u32 = 128 * SECTOR;

/// The data that goes with a packet: reproducible noise of the right length.
pub fn data_for(packet: &Packet, seed: u64) -> Vec<u8> {
    let len = match packet {
        Packet::Write { kind, span, .. } | Packet::SyncWrite { kind, span, .. }
            if *kind == WriteKind::Data =>
        {
            span.len
        }
        Packet::ReadReply { id, ok: true } => (*id % 128 + 1) as u32 * SECTOR,
        _ => 0,
    };
    noise(len as usize, seed)
}

/// `len` reproducible random bytes.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

pub fn term() -> impl Strategy<Value = Term> {
    (any::<u64>(), 0..16_u8, any::<u32>()).prop_map(|(counter, node, random)| Term {
        counter,
        node,
        random,
    })
}

fn span(longest: u32) -> impl Strategy<Value = Span> {
    (0..1_u64 << 50, 1..=longest / SECTOR).prop_map(|(sector, sectors)| Span {
        start: sector * u64::from(SECTOR),
        len: sectors * SECTOR,
    })
}

fn write() -> impl Strategy<Value = (WriteKind, Span)> {
    let without_data = any::<bool>().prop_map(|unmap| WriteKind::Zeroes { unmap });
    prop_oneof![
        (Just(WriteKind::Data), span(MAX_TEST_DATA)),
        (without_data, span(MAX_SPAN)),
    ]
}

fn peer() -> impl Strategy<Value = WirePeer> {
    (0..16_u8, any::<[u64; 4]>()).prop_map(|(node, [base, session, session_pending, dirty])| {
        WirePeer {
            node,
            base,
            session,
            session_pending,
            dirty_bits: dirty,
        }
    })
}

fn volume() -> impl Strategy<Value = WireVolume> {
    (
        any::<[u64; 7]>(),
        any::<u32>(),
        0..DISK_STATES,
        vec(any::<u64>(), 0..=MAX_HISTORY),
        any::<[bool; 3]>(),
        vec(peer(), 0..=MAX_PEERS),
    )
        .prop_map(|(numbers, logical_block, disk, history, flags, peers)| {
            let [
                capacity,
                agreed_size,
                current,
                base,
                dirty_bits,
                session,
                pending,
            ] = numbers;
            WireVolume {
                volume: 0,
                capacity,
                agreed_size,
                logical_block,
                disk,
                current,
                base,
                history,
                dirty_bits,
                crashed_primary: flags[0],
                want_full: flags[1],
                discard: flags[2],
                session,
                session_pending: pending,
                peers,
            }
        })
}

fn state() -> impl Strategy<Value = WireState> {
    (
        any::<u32>(),
        (0..16_u8, 0..ROLES, 0..PROTOCOLS),
        term(),
        any::<u64>(),
        any::<bool>(),
        vec(volume(), 0..4),
    )
        .prop_map(
            |(round, (node, role, protocol), term, nonce, discard, volumes)| WireState {
                round,
                node,
                role,
                term,
                nonce,
                protocol,
                discard_my_data: discard,
                volumes: (0..)
                    .zip(volumes)
                    .map(|(volume, state)| WireVolume { volume, ..state })
                    .collect(),
            },
        )
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 2 => Just(u64::MAX), 1 => any::<u64>()]
}

fn bitmap() -> impl Strategy<Value = WireBitmap> {
    (
        any::<u16>(),
        any::<u32>(),
        vec((word(), word()), 1..=MAX_WORDS),
        any::<bool>(),
    )
        .prop_map(|(volume, index, pairs, suspects)| WireBitmap {
            volume,
            index,
            words: pairs.iter().map(|(word, _)| *word).collect(),
            suspects: pairs
                .iter()
                .filter(|_| suspects)
                .map(|(word, mask)| word & mask)
                .collect(),
        })
}

fn ack() -> impl Strategy<Value = AckKind> {
    prop_oneof![Just(AckKind::Received), Just(AckKind::Written)]
}

fn io_packet() -> impl Strategy<Value = Packet> {
    prop_oneof![
        (any::<u16>(), write(), any::<bool>(), any::<u64>(), ack()).prop_map(
            |(volume, (kind, span), fua, sequence, ack)| Packet::Write {
                volume,
                span,
                kind,
                fua,
                sequence,
                ack
            }
        ),
        (any::<u64>(), prop_oneof![ack(), Just(AckKind::Failed)])
            .prop_map(|(sequence, kind)| Packet::WriteAck { sequence, kind }),
        (any::<u64>(), vec(any::<u64>(), 1..=MAX_LANES)).prop_map(|(sequence, last)| {
            let lanes = Lanes::new(&last).expect("one to eight lanes");
            Packet::Barrier { sequence, lanes }
        }),
        any::<u64>().prop_map(|flush| Packet::Flush { flush }),
        (any::<u64>(), any::<bool>()).prop_map(|(flush, ok)| Packet::FlushAck { flush, ok }),
        (any::<u64>(), any::<u16>(), span(MAX_DATA)).prop_map(|(id, volume, span)| Packet::Read {
            id,
            volume,
            span
        }),
        (any::<u64>(), any::<bool>()).prop_map(|(id, ok)| Packet::ReadReply { id, ok }),
    ]
}

fn sync_packet() -> impl Strategy<Value = Packet> {
    let result = prop::sample::select(vec![
        SyncResult::Written,
        SyncResult::Equal,
        SyncResult::Differs,
        SyncResult::Failed,
    ]);
    prop_oneof![
        (any::<u64>(), any::<u16>(), write()).prop_map(|(id, volume, (kind, span))| {
            Packet::SyncWrite {
                id,
                volume,
                span,
                kind,
            }
        }),
        (
            any::<u64>(),
            any::<u16>(),
            span(MAX_DATA),
            any::<[u8; 32]>()
        )
            .prop_map(|(id, volume, span, hash)| Packet::SyncCompare {
                id,
                volume,
                span,
                hash
            }),
        (any::<u64>(), result).prop_map(|(id, kind)| Packet::SyncAck { id, kind }),
        (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(volume, generation, size)| {
            Packet::SyncDone {
                volume,
                generation,
                size,
            }
        }),
        any::<u16>().prop_map(|volume| Packet::SyncAdopted { volume }),
    ]
}

fn verify_packet() -> impl Strategy<Value = Packet> {
    let result = prop::sample::select(vec![
        VerifyResult::Equal,
        VerifyResult::Differs,
        VerifyResult::Busy,
        VerifyResult::Failed,
    ]);
    let question = (
        any::<u64>(),
        any::<u16>(),
        span(MAX_DATA),
        0..DIGESTS,
        any::<[u8; 32]>(),
    );
    prop_oneof![
        any::<(u16, bool)>().prop_map(|(volume, on)| Packet::PauseSync { volume, on }),
        any::<(u16, bool)>().prop_map(|(volume, on)| Packet::Verifying { volume, on }),
        question.prop_map(|(id, volume, span, digest, hash)| Packet::Verify {
            id,
            volume,
            span,
            digest,
            hash,
        }),
        (any::<u64>(), result).prop_map(|(id, result)| Packet::VerifyAck { id, result }),
        (any::<u16>(), span(MAX_SPAN), any::<bool>())
            .prop_map(|(volume, span, last)| Packet::Repair { volume, span, last }),
        any::<u16>().prop_map(|volume| Packet::RepairDone { volume }),
    ]
}

fn state_packet() -> impl Strategy<Value = Packet> {
    let verdicts = vec(any::<u8>(), 0..=MAX_VOLUMES);
    let bare = vec![
        Packet::Stored,
        Packet::Ready,
        Packet::Demoted,
        Packet::Outdated,
        Packet::Ping,
        Packet::Pong,
    ];
    prop_oneof![
        state().prop_map(|state| Packet::State(Box::new(state))),
        (any::<u32>(), any::<u32>(), verdicts).prop_map(|(round, peer_round, codes)| {
            Packet::Agree {
                round,
                peer_round,
                verdicts: (0..).zip(codes).collect(),
            }
        }),
        bitmap().prop_map(Packet::Bitmap),
        prop::sample::select(bare),
        term().prop_map(|term| Packet::Promote { term }),
        (term(), any::<bool>()).prop_map(|(term, granted)| Packet::PromoteReply { term, granted }),
        (any::<u16>(), any::<u64>())
            .prop_map(|(volume, generation)| Packet::NewGeneration { volume, generation }),
        (any::<u16>(), any::<u64>())
            .prop_map(|(volume, generation)| Packet::NewGenerationAck { volume, generation }),
        (any::<u16>(), 0..DISK_STATES)
            .prop_map(|(volume, state)| Packet::DiskState { volume, state }),
        any::<bool>().prop_map(|outdate| Packet::Goodbye { outdate }),
    ]
}

/// Any envelope that may be sent, its frame number still to be set.
pub fn envelope() -> impl Strategy<Value = Envelope> {
    let packet = prop_oneof![io_packet(), sync_packet(), verify_packet(), state_packet()];
    (any::<u64>(), term(), packet).prop_map(|(session, term, packet)| Envelope {
        lane: 0,
        session,
        term,
        frame: 1,
        packet,
    })
}
