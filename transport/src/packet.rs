//! Messages as the rest of the program sees them: typed, and with what fences them.
//!
//! [`Packet`] mirrors the messages of the protocol one to one; roles, disk states, protocols and
//! verdicts stay numbers, since this crate knows no engine. A packet is put into the generic
//! [`Fields`] of a header and, for some kinds, a control body; reading goes the other way and then
//! back again: fields that a packet would not have been written with are refused, so each packet
//! has one encoding.

use crate::body::{
    Cursor, DIGESTS, DISK_STATES, Lanes, WireBitmap, WireState, decode_verdicts, encode_verdicts,
};
use crate::wire::{
    BodyFault, Carries, Fields, HEADER_LEN, Header, Kind, MAX_DATA, MAX_NODES, MAX_SPAN, SECTOR,
    Span, Term, WireError,
};

/// The write shall be durable when it is acknowledged as written.
const FLAG_FUA: u16 = 1;
/// Zeroes may be made by dropping the blocks.
const FLAG_UNMAP: u16 = 2;
/// Success, or granted.
const FLAG_OK: u16 = 4;
/// The receiver of a goodbye shall record itself as outdated.
const FLAG_OUTDATE: u16 = 8;

/// The meaning of a code: its place in the list of all.
fn from_code<T: Copy>(all: &[T], kind: Kind, value: u8) -> Result<T, WireError> {
    let meaning = all.get(usize::from(value)).copied();
    meaning.ok_or(WireError::Code { kind, value })
}

/// Which acknowledgement a write gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AckKind {
    Received = 0,
    Written = 1,
    Failed = 2,
}

impl AckKind {
    /// By code.
    const ALL: [AckKind; 3] = [AckKind::Received, AckKind::Written, AckKind::Failed];
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteKind {
    /// As many bytes as the span has follow.
    Data,
    Zeroes {
        unmap: bool,
    },
}

impl WriteKind {
    fn code(self) -> u8 {
        match self {
            WriteKind::Data => 0,
            WriteKind::Zeroes { .. } => 1,
        }
    }

    fn unmap(self) -> bool {
        matches!(self, WriteKind::Zeroes { unmap: true })
    }

    fn from_fields(fields: &Fields) -> Result<WriteKind, WireError> {
        match fields.code {
            0 => Ok(WriteKind::Data),
            1 => Ok(WriteKind::Zeroes {
                unmap: fields.flags & FLAG_UNMAP != 0,
            }),
            value => Err(WireError::Code {
                kind: fields.kind,
                value,
            }),
        }
    }
}

/// How the target dealt with a sync block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SyncResult {
    Written = 0,
    Equal = 1,
    Differs = 2,
    Failed = 3,
}

impl SyncResult {
    /// By code.
    const ALL: [SyncResult; 4] = [
        SyncResult::Written,
        SyncResult::Equal,
        SyncResult::Differs,
        SyncResult::Failed,
    ];
}

/// How a block of an online verify compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum VerifyResult {
    Equal = 0,
    Differs = 1,
    Busy = 2,
    Failed = 3,
}

impl VerifyResult {
    /// By code.
    const ALL: [VerifyResult; 4] = [
        VerifyResult::Equal,
        VerifyResult::Differs,
        VerifyResult::Busy,
        VerifyResult::Failed,
    ];
}

/// A message without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    State(Box<WireState>),
    Agree {
        round: u32,
        peer_round: u32,
        /// Volume and verdict code.
        verdicts: Vec<(u16, u8)>,
    },
    Bitmap(WireBitmap),
    Stored,
    Ready,
    Write {
        volume: u16,
        span: Span,
        kind: WriteKind,
        fua: bool,
        sequence: u64,
        /// `Received` or `Written`.
        ack: AckKind,
    },
    WriteAck {
        sequence: u64,
        kind: AckKind,
    },
    Barrier {
        sequence: u64,
        lanes: Lanes,
    },
    Flush {
        flush: u64,
    },
    FlushAck {
        flush: u64,
        ok: bool,
    },
    Read {
        id: u64,
        volume: u16,
        span: Span,
    },
    /// Data follows when `ok`.
    ReadReply {
        id: u64,
        ok: bool,
    },
    SyncWrite {
        id: u64,
        volume: u16,
        span: Span,
        kind: WriteKind,
    },
    SyncCompare {
        id: u64,
        volume: u16,
        span: Span,
        hash: [u8; 32],
    },
    SyncAck {
        id: u64,
        kind: SyncResult,
    },
    SyncDone {
        volume: u16,
        generation: u64,
        /// Bytes.
        size: u64,
    },
    SyncAdopted {
        volume: u16,
    },
    PauseSync {
        volume: u16,
        on: bool,
    },
    Verifying {
        volume: u16,
        on: bool,
    },
    Verify {
        id: u64,
        volume: u16,
        span: Span,
        /// Below [`DIGESTS`].
        digest: u8,
        hash: [u8; 32],
    },
    VerifyAck {
        id: u64,
        result: VerifyResult,
    },
    Repair {
        volume: u16,
        span: Span,
        last: bool,
    },
    RepairDone {
        volume: u16,
    },
    Promote {
        term: Term,
    },
    PromoteReply {
        term: Term,
        granted: bool,
    },
    Demoted,
    NewGeneration {
        volume: u16,
        generation: u64,
    },
    NewGenerationAck {
        volume: u16,
        generation: u64,
    },
    DiskState {
        volume: u16,
        state: u8,
    },
    Goodbye {
        outdate: bool,
    },
    Outdated,
    Ping,
    Pong,
}

/// A packet with what fences it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub lane: u8,
    pub session: u64,
    pub term: Term,
    /// Number of the frame on its lane, from 1.
    pub frame: u64,
    pub packet: Packet,
}

impl Packet {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.fields().kind
    }

    /// The header fields of the packet.
    pub fn fields(&self) -> Fields {
        let new = Fields::new;
        match *self {
            Packet::State(_) => new(Kind::State),
            Packet::Agree {
                round, peer_round, ..
            } => new(Kind::Agree).id(round.into()).aux(peer_round.into()),
            Packet::Bitmap(_) => new(Kind::Bitmap),
            Packet::Stored => new(Kind::Stored),
            Packet::Ready => new(Kind::Ready),
            Packet::Write {
                volume,
                span,
                kind,
                fua,
                sequence,
                ack,
            } => blocks(Kind::Write, sequence, volume, span)
                .code(kind.code())
                .flag(kind.unmap(), FLAG_UNMAP)
                .flag(fua, FLAG_FUA)
                .code2(ack as u8),
            Packet::WriteAck { sequence, kind } => {
                new(Kind::WriteAck).id(sequence).code2(kind as u8)
            }
            Packet::Barrier { sequence, .. } => new(Kind::Barrier).id(sequence),
            Packet::Flush { flush } => new(Kind::Flush).id(flush),
            Packet::FlushAck { flush, ok } => new(Kind::FlushAck).id(flush).flag(ok, FLAG_OK),
            Packet::Read { id, volume, span } => blocks(Kind::Read, id, volume, span),
            Packet::ReadReply { id, ok } => new(Kind::ReadReply).id(id).flag(ok, FLAG_OK),
            Packet::SyncWrite {
                id,
                volume,
                span,
                kind,
            } => blocks(Kind::SyncWrite, id, volume, span)
                .code(kind.code())
                .flag(kind.unmap(), FLAG_UNMAP),
            Packet::SyncCompare {
                id, volume, span, ..
            } => blocks(Kind::SyncCompare, id, volume, span),
            Packet::SyncAck { id, kind } => new(Kind::SyncAck).id(id).code(kind as u8),
            Packet::SyncDone {
                volume,
                generation,
                size,
            } => new(Kind::SyncDone).volume(volume).id(generation).aux(size),
            Packet::SyncAdopted { volume } => new(Kind::SyncAdopted).volume(volume),
            Packet::PauseSync { volume, on } => {
                new(Kind::PauseSync).volume(volume).flag(on, FLAG_OK)
            }
            Packet::Verifying { volume, on } => {
                new(Kind::Verifying).volume(volume).flag(on, FLAG_OK)
            }
            Packet::Verify {
                id,
                volume,
                span,
                digest,
                ..
            } => blocks(Kind::Verify, id, volume, span).code(digest),
            Packet::VerifyAck { id, result } => new(Kind::VerifyAck).id(id).code(result as u8),
            Packet::Repair { volume, span, last } => {
                blocks(Kind::Repair, 0, volume, span).flag(last, FLAG_OK)
            }
            Packet::RepairDone { volume } => new(Kind::RepairDone).volume(volume),
            Packet::Promote { term } => with_term(Kind::Promote, term),
            Packet::PromoteReply { term, granted } => {
                with_term(Kind::PromoteReply, term).flag(granted, FLAG_OK)
            }
            Packet::Demoted => new(Kind::Demoted),
            Packet::NewGeneration { volume, generation } => {
                new(Kind::NewGeneration).volume(volume).id(generation)
            }
            Packet::NewGenerationAck { volume, generation } => {
                new(Kind::NewGenerationAck).volume(volume).id(generation)
            }
            Packet::DiskState { volume, state } => new(Kind::DiskState).volume(volume).code(state),
            Packet::Goodbye { outdate } => new(Kind::Goodbye).flag(outdate, FLAG_OUTDATE),
            Packet::Outdated => new(Kind::Outdated),
            Packet::Ping => new(Kind::Ping),
            Packet::Pong => new(Kind::Pong),
        }
    }

    /// Checks `fields` and `body` and makes the packet of them. `body` is empty for kinds without
    /// a control body; data is not looked at, only its announced length.
    pub fn decode(fields: &Fields, payload_len: u32, body: &[u8]) -> Result<Packet, WireError> {
        let kind = fields.kind;
        let packet = match kind.carries() {
            Carries::Body => {
                decode_body(fields, body).map_err(|fault| WireError::Body { kind, fault })?
            }
            Carries::Nothing | Carries::Data => decode_fields(fields)?,
        };
        if packet.fields() != *fields {
            return Err(WireError::Fields { kind });
        }
        packet.check(payload_len)?;
        Ok(packet)
    }

    /// Checks ranges, codes and the length of the payload, for sender and receiver alike.
    pub fn check(&self, payload_len: u32) -> Result<(), WireError> {
        let fields = self.fields();
        let kind = fields.kind;
        let longest = match *self {
            Packet::Write { kind, .. } | Packet::SyncWrite { kind, .. }
                if kind != WriteKind::Data =>
            {
                Some(MAX_SPAN)
            }
            Packet::Repair { .. } => Some(MAX_SPAN),
            Packet::Write { .. }
            | Packet::SyncWrite { .. }
            | Packet::SyncCompare { .. }
            | Packet::Verify { .. }
            | Packet::Read { .. } => Some(MAX_DATA),
            _ => None,
        };
        if longest.is_some_and(|longest| !span_is_good(fields.span, longest)) {
            let Span { start, len } = fields.span;
            return Err(WireError::Span { kind, start, len });
        }
        let expected = match *self {
            Packet::Write { kind, span, .. } | Packet::SyncWrite { kind, span, .. } => {
                payload_len == if kind == WriteKind::Data { span.len } else { 0 }
            }
            Packet::ReadReply { ok, .. } => {
                ok == (payload_len > 0)
                    && payload_len.is_multiple_of(SECTOR)
                    && payload_len <= MAX_DATA
            }
            _ => payload_len <= kind.max_payload(),
        };
        if !expected {
            let got = payload_len;
            return Err(WireError::Length { kind, got });
        }
        match *self {
            Packet::Write {
                ack: AckKind::Failed,
                ..
            } => Err(WireError::Code {
                kind,
                value: AckKind::Failed as u8,
            }),
            Packet::DiskState { state: value, .. } if value >= DISK_STATES => {
                Err(WireError::Code { kind, value })
            }
            Packet::Verify { digest: value, .. } if value >= DIGESTS => {
                Err(WireError::Code { kind, value })
            }
            Packet::Promote { term } | Packet::PromoteReply { term, .. }
                if term.node >= MAX_NODES =>
            {
                Err(WireError::Node(term.node))
            }
            _ => Ok(()),
        }
    }

    /// Appends the control body, for kinds that have one.
    fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let done = match self {
            Packet::State(state) => state.encode(out),
            Packet::Agree { verdicts, .. } => encode_verdicts(verdicts, out),
            Packet::Bitmap(bitmap) => bitmap.encode(out),
            Packet::Barrier { lanes, .. } => {
                lanes.encode(out);
                Ok(())
            }
            Packet::SyncCompare { hash, .. } | Packet::Verify { hash, .. } => {
                out.extend_from_slice(hash);
                Ok(())
            }
            _ => Ok(()),
        };
        let kind = self.kind();
        done.map_err(|fault| WireError::Body { kind, fault })
    }
}

impl Envelope {
    /// Appends the whole frame to `out`: header, then control body or `data`. `out` is unchanged
    /// when the frame breaks a limit.
    pub fn encode(&self, version: u16, data: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        let done = self.append(version, data, out);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    fn append(&self, version: u16, data: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        let fields = self.packet.fields();
        let kind = fields.kind;
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        if kind.carries() == Carries::Body && !data.is_empty() {
            let got = length(data.len());
            return Err(WireError::Length { kind, got });
        }
        let header_at = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        let payload_at = out.len();
        self.packet.encode_body(out)?;
        out.extend_from_slice(data);
        self.packet.check(length(out.len() - payload_at))?;
        let payload = out.get(payload_at..).unwrap_or(&[]);
        let header = Header {
            fields,
            lane: self.lane,
            session: self.session,
            term: self.term,
            frame: self.frame,
            payload_len: payload.len() as u32,
            payload_crc: crc32fast::hash(payload),
        };
        header.check()?;
        if let Some(place) = out.get_mut(header_at..payload_at) {
            place.copy_from_slice(&header.encode(version));
        }
        Ok(())
    }

    /// The envelope of a checked header and the packet decoded from it.
    pub(crate) fn new(header: &Header, packet: Packet) -> Envelope {
        Envelope {
            lane: header.lane,
            session: header.session,
            term: header.term,
            frame: header.frame,
            packet,
        }
    }
}

/// Fields of a kind that names a range of a volume.
fn blocks(kind: Kind, id: u64, volume: u16, span: Span) -> Fields {
    Fields::new(kind).id(id).volume(volume).span(span)
}

/// Fields of a kind that carries a term beside the fencing one.
fn with_term(kind: Kind, term: Term) -> Fields {
    Fields::new(kind)
        .id(term.counter)
        .code(term.node)
        .aux(term.random.into())
}

fn span_is_good(span: Span, longest: u32) -> bool {
    let sector = u64::from(SECTOR);
    span.len > 0
        && span.len <= longest
        && span.len.is_multiple_of(SECTOR)
        && span.start.is_multiple_of(sector)
        && span.start.checked_add(u64::from(span.len)).is_some()
}

/// Kinds without a control body. Numbers that are cut short here make the comparison with the
/// packet's own fields fail.
fn decode_fields(fields: &Fields) -> Result<Packet, WireError> {
    let Fields {
        kind,
        volume,
        span,
        id,
        aux,
        ..
    } = *fields;
    let ok = fields.flags & FLAG_OK != 0;
    let term = Term {
        counter: id,
        node: fields.code,
        random: aux as u32,
    };
    Ok(match kind {
        Kind::Stored => Packet::Stored,
        Kind::Ready => Packet::Ready,
        Kind::Write => Packet::Write {
            volume,
            span,
            kind: WriteKind::from_fields(fields)?,
            fua: fields.flags & FLAG_FUA != 0,
            sequence: id,
            ack: from_code(&AckKind::ALL, kind, fields.code2)?,
        },
        Kind::WriteAck => Packet::WriteAck {
            sequence: id,
            kind: from_code(&AckKind::ALL, kind, fields.code2)?,
        },
        Kind::Flush => Packet::Flush { flush: id },
        Kind::FlushAck => Packet::FlushAck { flush: id, ok },
        Kind::Read => Packet::Read { id, volume, span },
        Kind::ReadReply => Packet::ReadReply { id, ok },
        Kind::SyncWrite => Packet::SyncWrite {
            id,
            volume,
            span,
            kind: WriteKind::from_fields(fields)?,
        },
        Kind::SyncAck => Packet::SyncAck {
            id,
            kind: from_code(&SyncResult::ALL, kind, fields.code)?,
        },
        Kind::SyncDone => Packet::SyncDone {
            volume,
            generation: id,
            size: aux,
        },
        Kind::SyncAdopted => Packet::SyncAdopted { volume },
        Kind::PauseSync => Packet::PauseSync { volume, on: ok },
        Kind::Verifying => Packet::Verifying { volume, on: ok },
        Kind::VerifyAck => Packet::VerifyAck {
            id,
            result: from_code(&VerifyResult::ALL, kind, fields.code)?,
        },
        Kind::Repair => Packet::Repair {
            volume,
            span,
            last: ok,
        },
        Kind::RepairDone => Packet::RepairDone { volume },
        Kind::Promote => Packet::Promote { term },
        Kind::PromoteReply => Packet::PromoteReply { term, granted: ok },
        Kind::Demoted => Packet::Demoted,
        Kind::NewGeneration => Packet::NewGeneration {
            volume,
            generation: id,
        },
        Kind::NewGenerationAck => Packet::NewGenerationAck {
            volume,
            generation: id,
        },
        Kind::DiskState => Packet::DiskState {
            volume,
            state: fields.code,
        },
        Kind::Goodbye => Packet::Goodbye {
            outdate: fields.flags & FLAG_OUTDATE != 0,
        },
        Kind::Outdated => Packet::Outdated,
        Kind::Ping => Packet::Ping,
        Kind::Pong => Packet::Pong,
        Kind::State
        | Kind::Agree
        | Kind::Bitmap
        | Kind::Barrier
        | Kind::SyncCompare
        | Kind::Verify => return Err(WireError::Fields { kind }),
    })
}

/// Kinds with a control body.
fn decode_body(fields: &Fields, body: &[u8]) -> Result<Packet, BodyFault> {
    Ok(match fields.kind {
        Kind::State => Packet::State(Box::new(WireState::decode(body)?)),
        Kind::Agree => Packet::Agree {
            round: fields.id as u32,
            peer_round: fields.aux as u32,
            verdicts: decode_verdicts(body)?,
        },
        Kind::Bitmap => Packet::Bitmap(WireBitmap::decode(body)?),
        Kind::Barrier => Packet::Barrier {
            sequence: fields.id,
            lanes: Lanes::decode(body)?,
        },
        Kind::SyncCompare => Packet::SyncCompare {
            id: fields.id,
            volume: fields.volume,
            span: fields.span,
            hash: decode_hash(body)?,
        },
        Kind::Verify => Packet::Verify {
            id: fields.id,
            volume: fields.volume,
            span: fields.span,
            digest: fields.code,
            hash: decode_hash(body)?,
        },
        _ => return Err(BodyFault::Trailing(body.len())),
    })
}

fn decode_hash(body: &[u8]) -> Result<[u8; 32], BodyFault> {
    let mut cursor = Cursor(body);
    let hash = cursor.array()?;
    cursor.end()?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{FrameReader, Step};
    use crate::strategies::{data_for, envelope};
    use crate::wire::VERSION;

    /// What a reader makes of `bytes` when they come all at once: frames, their data, the error.
    fn read(mut input: &[u8]) -> (Vec<(Envelope, Vec<u8>)>, Option<WireError>) {
        let mut reader = FrameReader::new();
        let mut frames = Vec::new();
        let mut buffer = vec![0; MAX_DATA as usize];
        let mut len = 0;
        loop {
            match reader.advance(&mut input, (len > 0).then_some(&mut buffer[..])) {
                Ok(Step::More) => return (frames, None),
                Ok(Step::Data(bytes)) => len = bytes as usize,
                Ok(Step::Frame { envelope, data_len }) => {
                    assert_eq!(data_len as usize, len);
                    frames.push((envelope, buffer[..len].to_vec()));
                    len = 0;
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_packet_comes_back_as_it_was(envelope in envelope()) {
            let data = data_for(&envelope.packet, 7);
            let mut bytes = Vec::new();
            let first = Envelope { frame: 1, ..envelope };
            first.encode(VERSION, &data, &mut bytes).expect("encodes");
            prop_assert_eq!(read(&bytes), (vec![(first, data)], None));
        }

        /// Behind valid checksums any field may hold anything: refused, or written back the same.
        #[test]
        fn hostile_fields_are_refused_or_mean_one_thing(
            envelope in envelope(),
            at in 8..72_usize,
            value: u8,
        ) {
            let data = data_for(&envelope.packet, 7);
            let mut bytes = Vec::new();
            let first = Envelope { frame: 1, ..envelope };
            first.encode(VERSION, &data, &mut bytes).expect("encodes");
            bytes[at] = value;
            let crc = crc32fast::hash(&bytes[..84]);
            bytes[84..88].copy_from_slice(&crc.to_le_bytes());
            if let (frames, None) = read(&bytes) {
                for (frame, data) in frames {
                    let mut again = Vec::new();
                    frame.encode(VERSION, &data, &mut again).expect("encodes");
                    prop_assert_eq!(&again, &bytes);
                }
            }
        }

        /// The same for control bodies.
        #[test]
        fn hostile_bodies_are_refused_or_mean_one_thing(
            kind in prop::sample::select(vec![
                Kind::State, Kind::Agree, Kind::Bitmap, Kind::Barrier, Kind::SyncCompare,
                Kind::Verify,
            ]),
            envelope in envelope(),
            body in prop::collection::vec(any::<u8>(), 0..300),
            at: prop::sample::Index,
            value: u8,
        ) {
            let fields = Fields { kind, ..Fields::new(kind) };
            let check = |body: &[u8]| {
                if let Ok(packet) = Packet::decode(&fields, body.len() as u32, body) {
                    let mut again = Vec::new();
                    packet.encode_body(&mut again).expect("encodes");
                    assert_eq!(again, body);
                }
            };
            check(&body);
            let mut own = Vec::new();
            envelope.packet.encode_body(&mut own).expect("encodes");
            if !own.is_empty() {
                let at = at.index(own.len());
                own[at] = value;
                check(&own);
            }
        }

        #[test]
        fn random_bytes_never_make_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let (frames, error) = read(&bytes);
            prop_assert!(frames.is_empty());
            prop_assert_eq!(error.is_some(), bytes.len() >= HEADER_LEN);
        }
    }

    fn write(span: Span, kind: WriteKind) -> Packet {
        Packet::Write {
            volume: 0,
            span,
            kind,
            fua: false,
            sequence: 1,
            ack: AckKind::Written,
        }
    }

    #[test]
    fn spans_and_lengths_are_checked() {
        let ok =
            |start, len, kind, payload| write(Span { start, len }, kind).check(payload).is_ok();
        assert!(ok(0, 512, WriteKind::Data, 512));
        assert!(ok(0, MAX_DATA, WriteKind::Data, MAX_DATA));
        assert!(!ok(0, MAX_DATA + 512, WriteKind::Data, MAX_DATA + 512));
        assert!(!ok(0, 0, WriteKind::Data, 0));
        assert!(!ok(0, 1024, WriteKind::Data, 512));
        assert!(!ok(256, 512, WriteKind::Data, 512));
        assert!(!ok(0, 513, WriteKind::Data, 513));
        assert!(!ok(u64::MAX - 511, 512, WriteKind::Data, 512));
        assert!(ok(0, MAX_SPAN, WriteKind::Zeroes { unmap: true }, 0));
        assert!(!ok(0, MAX_SPAN + 512, WriteKind::Zeroes { unmap: true }, 0));
        assert!(!ok(0, 512, WriteKind::Zeroes { unmap: true }, 512));
        let reply = |ok, len| Packet::ReadReply { id: 1, ok }.check(len).is_ok();
        assert!(reply(true, 4096) && reply(false, 0));
        assert!(!reply(true, 0) && !reply(false, 512) && !reply(true, 100));
    }

    #[test]
    fn a_refused_frame_leaves_nothing_behind() {
        let mut out = vec![1, 2, 3];
        let envelope = Envelope {
            lane: 0,
            session: 1,
            term: Term::default(),
            frame: 1,
            packet: write(Span { start: 0, len: 512 }, WriteKind::Data),
        };
        assert!(envelope.encode(VERSION, &[0; 100], &mut out).is_err());
        assert_eq!(out, [1, 2, 3]);
    }
}
