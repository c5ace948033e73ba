//! Engine messages as packets of the wire, and back.
//!
//! The two mirror each other one to one. States travel as their position in the engine's lists;
//! whatever has no meaning for the engine is a [`Meaningless`], which costs the link.

use lockstep_transport::body::{FEATURE_DISCARD, Lanes, WireBitmap, WireState, WireVolume};
use lockstep_transport::packet::{self, Packet};
use lockstep_transport::wire;

use crate::engine::{
    AckKind, BitmapChunk, Digest, DiskState, Envelope, Generation, Message, NodeId, NodeState,
    Protocol, Role, Session, Span, SyncResult, Term, VerifyResult, VolumeId, VolumeState,
    WriteKind,
};

/// A packet that is well formed and still makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Meaningless(pub &'static str);

const PROTOCOLS: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

/// Position of `value` in `list`. The lists are complete and short.
fn code<T: PartialEq>(list: &[T], value: &T) -> u8 {
    let position = list.iter().position(|entry| entry == value);
    position.map_or(u8::MAX, |index| index as u8)
}

fn named<T: Copy>(list: &[T], code: u8, what: &'static str) -> Result<T, Meaningless> {
    list.get(usize::from(code))
        .copied()
        .ok_or(Meaningless(what))
}

fn put_term(term: Term) -> wire::Term {
    wire::Term {
        counter: term.counter,
        node: term.node.0,
        random: term.random,
    }
}

fn take_term(term: wire::Term) -> Term {
    Term {
        counter: term.counter,
        node: NodeId(term.node),
        random: term.random,
    }
}

fn put_span(span: Span) -> wire::Span {
    wire::Span {
        start: span.start,
        len: span.len,
    }
}

fn take_span(span: wire::Span) -> Span {
    Span::new(span.start, span.len)
}

fn put_write(kind: WriteKind) -> packet::WriteKind {
    match kind {
        WriteKind::Data => packet::WriteKind::Data,
        WriteKind::Zeroes { unmap } => packet::WriteKind::Zeroes { unmap },
    }
}

fn take_write(kind: packet::WriteKind) -> WriteKind {
    match kind {
        packet::WriteKind::Data => WriteKind::Data,
        packet::WriteKind::Zeroes { unmap } => WriteKind::Zeroes { unmap },
    }
}

fn put_ack(kind: AckKind) -> packet::AckKind {
    match kind {
        AckKind::Received => packet::AckKind::Received,
        AckKind::Written => packet::AckKind::Written,
        AckKind::Failed => packet::AckKind::Failed,
    }
}

fn take_ack(kind: packet::AckKind) -> AckKind {
    match kind {
        packet::AckKind::Received => AckKind::Received,
        packet::AckKind::Written => AckKind::Written,
        packet::AckKind::Failed => AckKind::Failed,
    }
}

fn put_sync(kind: SyncResult) -> packet::SyncResult {
    match kind {
        SyncResult::Written => packet::SyncResult::Written,
        SyncResult::Equal => packet::SyncResult::Equal,
        SyncResult::Differs => packet::SyncResult::Differs,
        SyncResult::Failed => packet::SyncResult::Failed,
    }
}

fn take_sync(kind: packet::SyncResult) -> SyncResult {
    match kind {
        packet::SyncResult::Written => SyncResult::Written,
        packet::SyncResult::Equal => SyncResult::Equal,
        packet::SyncResult::Differs => SyncResult::Differs,
        packet::SyncResult::Failed => SyncResult::Failed,
    }
}

fn put_verify(result: VerifyResult) -> packet::VerifyResult {
    match result {
        VerifyResult::Equal => packet::VerifyResult::Equal,
        VerifyResult::Differs => packet::VerifyResult::Differs,
        VerifyResult::Busy => packet::VerifyResult::Busy,
        VerifyResult::Failed => packet::VerifyResult::Failed,
    }
}

fn take_verify(result: packet::VerifyResult) -> VerifyResult {
    match result {
        packet::VerifyResult::Equal => VerifyResult::Equal,
        packet::VerifyResult::Differs => VerifyResult::Differs,
        packet::VerifyResult::Busy => VerifyResult::Busy,
        packet::VerifyResult::Failed => VerifyResult::Failed,
    }
}

fn put_volume(state: VolumeState) -> WireVolume {
    WireVolume {
        volume: state.volume.0,
        capacity: state.capacity,
        agreed_size: state.agreed_size,
        logical_block: state.logical_block,
        disk: code(DiskState::ALL, &state.disk),
        current: state.current.0,
        base: state.base.0,
        history: state.history.iter().map(|id| id.0).collect(),
        dirty_bits: state.dirty_bits,
        crashed_primary: state.crashed_primary,
        want_full: state.want_full,
        discard: state.discard,
        session: state.session.0,
        session_pending: state.session_pending.0,
        peers: Vec::new(),
    }
}

fn take_volume(wire: WireVolume) -> Result<VolumeState, Meaningless> {
    Ok(VolumeState {
        volume: VolumeId(wire.volume),
        capacity: wire.capacity,
        agreed_size: wire.agreed_size,
        logical_block: wire.logical_block,
        disk: named(DiskState::ALL, wire.disk, "disk state")?,
        current: Generation(wire.current),
        base: Generation(wire.base),
        history: wire.history.into_iter().map(Generation).collect(),
        dirty_bits: wire.dirty_bits,
        crashed_primary: wire.crashed_primary,
        want_full: wire.want_full,
        discard: wire.discard,
        session: Session(wire.session),
        session_pending: Session(wire.session_pending),
    })
}

fn put_state(state: NodeState, features: u64) -> WireState {
    let mut volumes: Vec<WireVolume> = state.volumes.into_iter().map(put_volume).collect();
    if features & FEATURE_DISCARD == 0 {
        volumes.iter_mut().for_each(|volume| volume.discard = false);
    }
    WireState {
        round: state.round,
        node: state.node.0,
        role: code(Role::ALL, &state.role),
        term: put_term(state.term),
        nonce: state.nonce,
        protocol: code(&PROTOCOLS, &state.protocol),
        discard_my_data: state.discard_my_data,
        volumes,
    }
}

fn take_state(wire: WireState) -> Result<NodeState, Meaningless> {
    let volumes = wire.volumes.into_iter().map(take_volume);
    Ok(NodeState {
        round: wire.round,
        node: NodeId(wire.node),
        role: named(Role::ALL, wire.role, "role")?,
        term: take_term(wire.term),
        nonce: wire.nonce,
        protocol: named(&PROTOCOLS, wire.protocol, "protocol")?,
        discard_my_data: wire.discard_my_data,
        volumes: volumes.collect::<Result<_, _>>()?,
    })
}

fn put_bitmap(chunk: BitmapChunk) -> WireBitmap {
    WireBitmap {
        volume: chunk.volume.0,
        index: chunk.index,
        words: chunk.words,
        suspects: chunk.suspects,
    }
}

fn take_bitmap(wire: WireBitmap) -> BitmapChunk {
    BitmapChunk {
        volume: VolumeId(wire.volume),
        index: wire.index,
        words: wire.words,
        suspects: wire.suspects,
    }
}

/// Features of the handshake that this version has.
pub const FEATURES: u64 = FEATURE_DISCARD;

/// The envelope as it leaves, to a peer with whom `features` were agreed. There is one lane, so a barrier speaks of that one.
pub fn to_wire(envelope: Envelope, features: u64) -> packet::Envelope {
    let packet = match envelope.message {
        Message::State(state) => Packet::State(Box::new(put_state(*state, features))),
        Message::Agree {
            round,
            peer_round,
            verdicts,
        } => Packet::Agree {
            round,
            peer_round,
            verdicts: verdicts
                .into_iter()
                .map(|(id, code)| (id.0, code))
                .collect(),
        },
        Message::Bitmap(chunk) => Packet::Bitmap(put_bitmap(chunk)),
        Message::Stored => Packet::Stored,
        Message::Ready => Packet::Ready,
        Message::Write {
            volume,
            span,
            kind,
            fua,
            sequence,
            ack,
        } => Packet::Write {
            volume: volume.0,
            span: put_span(span),
            kind: put_write(kind),
            fua,
            sequence,
            ack: put_ack(ack),
        },
        Message::WriteAck { sequence, kind } => Packet::WriteAck {
            sequence,
            kind: put_ack(kind),
        },
        Message::Barrier { sequence } => Packet::Barrier {
            sequence,
            lanes: Lanes::single(sequence),
        },
        Message::Flush { flush } => Packet::Flush { flush },
        Message::FlushAck { flush, ok } => Packet::FlushAck { flush, ok },
        Message::Read { id, volume, span } => Packet::Read {
            id,
            volume: volume.0,
            span: put_span(span),
        },
        Message::ReadReply { id, ok } => Packet::ReadReply { id, ok },
        Message::SyncWrite {
            id,
            volume,
            span,
            kind,
        } => Packet::SyncWrite {
            id,
            volume: volume.0,
            span: put_span(span),
            kind: put_write(kind),
        },
        Message::SyncCompare {
            id,
            volume,
            span,
            hash,
        } => Packet::SyncCompare {
            id,
            volume: volume.0,
            span: put_span(span),
            hash,
        },
        Message::SyncAck { id, kind } => Packet::SyncAck {
            id,
            kind: put_sync(kind),
        },
        Message::SyncDone {
            volume,
            generation,
            size,
        } => Packet::SyncDone {
            volume: volume.0,
            generation: generation.0,
            size,
        },
        Message::SyncAdopted { volume } => Packet::SyncAdopted { volume: volume.0 },
        Message::PauseSync { volume, on } => Packet::PauseSync {
            volume: volume.0,
            on,
        },
        Message::Verifying { volume, on } => Packet::Verifying {
            volume: volume.0,
            on,
        },
        Message::Verify {
            id,
            volume,
            span,
            digest,
            hash,
        } => Packet::Verify {
            id,
            volume: volume.0,
            span: put_span(span),
            digest: code(&Digest::ALL, &digest),
            hash,
        },
        Message::VerifyAck { id, result } => Packet::VerifyAck {
            id,
            result: put_verify(result),
        },
        Message::Repair { volume, span, last } => Packet::Repair {
            volume: volume.0,
            span: put_span(span),
            last,
        },
        Message::RepairDone { volume } => Packet::RepairDone { volume: volume.0 },
        Message::Promote { term } => Packet::Promote {
            term: put_term(term),
        },
        Message::PromoteReply { term, granted } => Packet::PromoteReply {
            term: put_term(term),
            granted,
        },
        Message::Demoted => Packet::Demoted,
        Message::NewGeneration { volume, generation } => Packet::NewGeneration {
            volume: volume.0,
            generation: generation.0,
        },
        Message::NewGenerationAck { volume, generation } => Packet::NewGenerationAck {
            volume: volume.0,
            generation: generation.0,
        },
        Message::DiskState { volume, state } => Packet::DiskState {
            volume: volume.0,
            state: code(DiskState::ALL, &state),
        },
        Message::Goodbye { outdate } => Packet::Goodbye { outdate },
        Message::Outdated => Packet::Outdated,
        Message::Ping => Packet::Ping,
        Message::Pong => Packet::Pong,
    };
    packet::Envelope {
        lane: 0,
        session: envelope.session.0,
        term: put_term(envelope.term),
        frame: envelope.frame,
        packet,
    }
}

/// The envelope as the engine sees it.
pub fn from_wire(envelope: packet::Envelope) -> Result<Envelope, Meaningless> {
    if envelope.lane != 0 {
        return Err(Meaningless("lane"));
    }
    let message = match envelope.packet {
        Packet::State(state) => Message::State(Box::new(take_state(*state)?)),
        Packet::Agree {
            round,
            peer_round,
            verdicts,
        } => {
            let verdicts = verdicts.into_iter();
            Message::Agree {
                round,
                peer_round,
                verdicts: verdicts.map(|(id, code)| (VolumeId(id), code)).collect(),
            }
        }
        Packet::Bitmap(chunk) => Message::Bitmap(take_bitmap(chunk)),
        Packet::Stored => Message::Stored,
        Packet::Ready => Message::Ready,
        Packet::Write {
            volume,
            span,
            kind,
            fua,
            sequence,
            ack,
        } => Message::Write {
            volume: VolumeId(volume),
            span: take_span(span),
            kind: take_write(kind),
            fua,
            sequence,
            ack: take_ack(ack),
        },
        Packet::WriteAck { sequence, kind } => Message::WriteAck {
            sequence,
            kind: take_ack(kind),
        },
        Packet::Barrier { sequence, lanes } => {
            if lanes != Lanes::single(sequence) {
                return Err(Meaningless("barrier over several lanes"));
            }
            Message::Barrier { sequence }
        }
        Packet::Flush { flush } => Message::Flush { flush },
        Packet::FlushAck { flush, ok } => Message::FlushAck { flush, ok },
        Packet::Read { id, volume, span } => Message::Read {
            id,
            volume: VolumeId(volume),
            span: take_span(span),
        },
        Packet::ReadReply { id, ok } => Message::ReadReply { id, ok },
        Packet::SyncWrite {
            id,
            volume,
            span,
            kind,
        } => Message::SyncWrite {
            id,
            volume: VolumeId(volume),
            span: take_span(span),
            kind: take_write(kind),
        },
        Packet::SyncCompare {
            id,
            volume,
            span,
            hash,
        } => Message::SyncCompare {
            id,
            volume: VolumeId(volume),
            span: take_span(span),
            hash,
        },
        Packet::SyncAck { id, kind } => Message::SyncAck {
            id,
            kind: take_sync(kind),
        },
        Packet::SyncDone {
            volume,
            generation,
            size,
        } => Message::SyncDone {
            volume: VolumeId(volume),
            generation: Generation(generation),
            size,
        },
        Packet::SyncAdopted { volume } => Message::SyncAdopted {
            volume: VolumeId(volume),
        },
        Packet::PauseSync { volume, on } => Message::PauseSync {
            volume: VolumeId(volume),
            on,
        },
        Packet::Verifying { volume, on } => Message::Verifying {
            volume: VolumeId(volume),
            on,
        },
        Packet::Verify {
            id,
            volume,
            span,
            digest,
            hash,
        } => Message::Verify {
            id,
            volume: VolumeId(volume),
            span: take_span(span),
            digest: named(&Digest::ALL, digest, "digest")?,
            hash,
        },
        Packet::VerifyAck { id, result } => Message::VerifyAck {
            id,
            result: take_verify(result),
        },
        Packet::Repair { volume, span, last } => Message::Repair {
            volume: VolumeId(volume),
            span: take_span(span),
            last,
        },
        Packet::RepairDone { volume } => Message::RepairDone {
            volume: VolumeId(volume),
        },
        Packet::Promote { term } => Message::Promote {
            term: take_term(term),
        },
        Packet::PromoteReply { term, granted } => Message::PromoteReply {
            term: take_term(term),
            granted,
        },
        Packet::Demoted => Message::Demoted,
        Packet::NewGeneration { volume, generation } => Message::NewGeneration {
            volume: VolumeId(volume),
            generation: Generation(generation),
        },
        Packet::NewGenerationAck { volume, generation } => Message::NewGenerationAck {
            volume: VolumeId(volume),
            generation: Generation(generation),
        },
        Packet::DiskState { volume, state } => Message::DiskState {
            volume: VolumeId(volume),
            state: named(DiskState::ALL, state, "disk state")?,
        },
        Packet::Goodbye { outdate } => Message::Goodbye { outdate },
        Packet::Outdated => Message::Outdated,
        Packet::Ping => Message::Ping,
        Packet::Pong => Message::Pong,
    };
    Ok(Envelope {
        session: Session(envelope.session),
        term: take_term(envelope.term),
        frame: envelope.frame,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans() -> impl Strategy<Value = Span> {
        (0..1u64 << 40, 1..=2048u32).prop_map(|(start, len)| Span::new(start * 512, len * 512))
    }

    fn terms() -> impl Strategy<Value = Term> {
        (any::<u64>(), 0..16u8, any::<u32>()).prop_map(|(counter, node, random)| Term {
            counter,
            node: NodeId(node),
            random,
        })
    }

    fn volumes() -> impl Strategy<Value = VolumeId> {
        any::<u16>().prop_map(VolumeId)
    }

    fn generations() -> impl Strategy<Value = Generation> {
        any::<u64>().prop_map(Generation)
    }

    fn kinds() -> impl Strategy<Value = WriteKind> {
        prop_oneof![
            Just(WriteKind::Data),
            any::<bool>().prop_map(|unmap| WriteKind::Zeroes { unmap }),
        ]
    }

    fn disks() -> impl Strategy<Value = DiskState> {
        prop::sample::select(DiskState::ALL)
    }

    fn volume_states() -> impl Strategy<Value = VolumeState> {
        let numbers = prop::array::uniform7(any::<u64>());
        let history = prop::collection::vec(generations(), 0..5);
        let flags = any::<(u16, u32, bool, bool, bool)>();
        (numbers, history, disks(), flags).prop_map(|(numbers, history, disk, flags)| {
            let [
                capacity,
                agreed_size,
                current,
                base,
                dirty_bits,
                session,
                pending,
            ] = numbers;
            VolumeState {
                volume: VolumeId(flags.0),
                capacity,
                agreed_size,
                logical_block: flags.1,
                disk,
                current: Generation(current),
                base: Generation(base),
                history,
                dirty_bits,
                crashed_primary: flags.2,
                want_full: flags.3,
                discard: flags.4,
                session: Session(session),
                session_pending: Session(pending),
            }
        })
    }

    fn states() -> impl Strategy<Value = Message> {
        let role = prop::sample::select(Role::ALL);
        let protocol = prop::sample::select(PROTOCOLS.to_vec());
        let volumes = prop::collection::vec(volume_states(), 0..3);
        let rest = any::<(u32, u64, bool)>();
        (0..16u8, role, terms(), protocol, volumes, rest).prop_map(
            |(node, role, term, protocol, volumes, (round, nonce, discard_my_data))| {
                Message::State(Box::new(NodeState {
                    round,
                    node: NodeId(node),
                    role,
                    term,
                    nonce,
                    protocol,
                    discard_my_data,
                    volumes,
                }))
            },
        )
    }

    fn handshakes() -> impl Strategy<Value = Message> {
        let verdicts = prop::collection::vec((volumes(), any::<u8>()), 0..4);
        let words = prop::collection::vec(any::<u64>(), 1..512);
        prop_oneof![
            states(),
            (any::<u32>(), any::<u32>(), verdicts).prop_map(|(round, peer_round, verdicts)| {
                Message::Agree {
                    round,
                    peer_round,
                    verdicts,
                }
            }),
            (volumes(), any::<u32>(), words, any::<bool>()).prop_map(
                |(volume, index, words, suspects)| {
                    let suspects = if suspects { words.clone() } else { Vec::new() };
                    Message::Bitmap(BitmapChunk {
                        volume,
                        index,
                        words,
                        suspects,
                    })
                }
            ),
            Just(Message::Stored),
            Just(Message::Ready),
        ]
    }

    fn replication() -> impl Strategy<Value = Message> {
        let ack = prop::sample::select(vec![AckKind::Received, AckKind::Written]);
        let any_ack =
            prop::sample::select(vec![AckKind::Received, AckKind::Written, AckKind::Failed]);
        let write = (
            volumes(),
            spans(),
            kinds(),
            any::<bool>(),
            any::<u64>(),
            ack,
        );
        prop_oneof![
            write.prop_map(|(volume, span, kind, fua, sequence, ack)| Message::Write {
                volume,
                span,
                kind,
                fua,
                sequence,
                ack,
            }),
            (any::<u64>(), any_ack)
                .prop_map(|(sequence, kind)| Message::WriteAck { sequence, kind }),
            any::<u64>().prop_map(|sequence| Message::Barrier { sequence }),
            any::<u64>().prop_map(|flush| Message::Flush { flush }),
            any::<(u64, bool)>().prop_map(|(flush, ok)| Message::FlushAck { flush, ok }),
            (any::<u64>(), volumes(), spans()).prop_map(|(id, volume, span)| Message::Read {
                id,
                volume,
                span
            }),
            any::<(u64, bool)>().prop_map(|(id, ok)| Message::ReadReply { id, ok }),
        ]
    }

    fn syncs() -> impl Strategy<Value = Message> {
        let results = vec![
            SyncResult::Written,
            SyncResult::Equal,
            SyncResult::Differs,
            SyncResult::Failed,
        ];
        prop_oneof![
            (any::<u64>(), volumes(), spans(), kinds()).prop_map(|(id, volume, span, kind)| {
                Message::SyncWrite {
                    id,
                    volume,
                    span,
                    kind,
                }
            }),
            (any::<u64>(), volumes(), spans(), any::<[u8; 32]>()).prop_map(
                |(id, volume, span, hash)| Message::SyncCompare {
                    id,
                    volume,
                    span,
                    hash,
                }
            ),
            (any::<u64>(), prop::sample::select(results))
                .prop_map(|(id, kind)| Message::SyncAck { id, kind }),
            (volumes(), generations(), any::<u64>()).prop_map(|(volume, generation, size)| {
                Message::SyncDone {
                    volume,
                    generation,
                    size,
                }
            }),
            volumes().prop_map(|volume| Message::SyncAdopted { volume }),
        ]
    }

    fn verifies() -> impl Strategy<Value = Message> {
        let results = vec![
            VerifyResult::Equal,
            VerifyResult::Differs,
            VerifyResult::Busy,
            VerifyResult::Failed,
        ];
        let digests = prop::sample::select(Digest::ALL.to_vec());
        let question = (any::<u64>(), volumes(), spans(), digests, any::<[u8; 32]>());
        prop_oneof![
            (volumes(), any::<bool>()).prop_map(|(volume, on)| Message::PauseSync { volume, on }),
            (volumes(), any::<bool>()).prop_map(|(volume, on)| Message::Verifying { volume, on }),
            question.prop_map(|(id, volume, span, digest, hash)| Message::Verify {
                id,
                volume,
                span,
                digest,
                hash,
            }),
            (any::<u64>(), prop::sample::select(results))
                .prop_map(|(id, result)| Message::VerifyAck { id, result }),
            (volumes(), spans(), any::<bool>()).prop_map(|(volume, span, last)| Message::Repair {
                volume,
                span,
                last
            }),
            volumes().prop_map(|volume| Message::RepairDone { volume }),
        ]
    }

    fn roles() -> impl Strategy<Value = Message> {
        prop_oneof![
            terms().prop_map(|term| Message::Promote { term }),
            (terms(), any::<bool>())
                .prop_map(|(term, granted)| Message::PromoteReply { term, granted }),
            Just(Message::Demoted),
            (volumes(), generations())
                .prop_map(|(volume, generation)| Message::NewGeneration { volume, generation }),
            (volumes(), generations())
                .prop_map(|(volume, generation)| Message::NewGenerationAck { volume, generation }),
            (volumes(), disks()).prop_map(|(volume, state)| Message::DiskState { volume, state }),
            any::<bool>().prop_map(|outdate| Message::Goodbye { outdate }),
            Just(Message::Outdated),
            Just(Message::Ping),
            Just(Message::Pong),
        ]
    }

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let message = prop_oneof![handshakes(), replication(), syncs(), verifies(), roles()];
        (any::<u64>(), terms(), any::<u64>(), message).prop_map(
            |(session, term, frame, message)| Envelope {
                session: Session(session),
                term,
                frame,
                message,
            },
        )
    }

    proptest! {
        #[test]
        fn every_message_survives_the_way(envelope in envelopes()) {
            prop_assert_eq!(from_wire(to_wire(envelope.clone(), FEATURES)), Ok(envelope));
        }
    }

    proptest! {
        #[test]
        fn a_peer_without_the_feature_hears_nothing_of_discard(message in states()) {
            let envelope = Envelope {
                session: Session(1),
                term: Term::ZERO,
                frame: 1,
                message,
            };
            let Packet::State(sent) = to_wire(envelope, 0).packet else { panic!("a state") };
            prop_assert!(sent.volumes.iter().all(|volume| !volume.discard));
        }
    }

    #[test]
    fn codes_without_a_meaning_are_refused() {
        let envelope = |packet| packet::Envelope {
            lane: 0,
            session: 1,
            term: wire::Term::default(),
            frame: 1,
            packet,
        };
        let state = Packet::DiskState {
            volume: 0,
            state: DiskState::ALL.len() as u8,
        };
        assert_eq!(from_wire(envelope(state)), Err(Meaningless("disk state")));
        let barrier = Packet::Barrier {
            sequence: 1,
            lanes: Lanes::single(2),
        };
        assert!(from_wire(envelope(barrier)).is_err());
        let mut lane = envelope(Packet::Ping);
        lane.lane = 1;
        assert_eq!(from_wire(lane), Err(Meaningless("lane")));
    }
}
