//! The fixed header of every frame, its limits, and what can be wrong with one.
//!
//! [`Header`] is the checked form, [`RawHeader`] the bytes. A header that fails any check is a
//! [`WireError`]; whoever reads frames drops the link on the first one and delivers nothing
//! after it. [`crate::body`] gives the generic fields their meaning.
#![doc = include_str!("../WIRE.md")]

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "LKST", read as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LKST");
/// The frame format described here.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 88;
/// Most bytes of data in one frame. Receive buffers have this size, so a larger one could not be
/// received.
pub const MAX_DATA: u32 = 1 << 20;
/// Most bytes of a control body; bounds what is copied aside before its checksum is known.
pub const MAX_BODY: u32 = 64 << 10;
/// Longest range without data (zeroes, discard): 16 extents of the activity log.
pub const MAX_SPAN: u32 = 64 << 20;
/// Every range starts and ends on a multiple of this.
pub const SECTOR: u32 = 512;
/// Lanes that a barrier can speak of. Version 1 uses lane 0.
pub const MAX_LANES: usize = 8;
/// Nodes of a resource; ids are below this.
pub const MAX_NODES: u8 = 16;

/// What a frame says; one per message of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    State = 1,
    Agree = 2,
    Bitmap = 3,
    Stored = 4,
    Ready = 5,
    Write = 16,
    WriteAck = 17,
    Barrier = 18,
    Flush = 19,
    FlushAck = 20,
    Read = 21,
    ReadReply = 22,
    SyncWrite = 32,
    SyncCompare = 33,
    SyncAck = 34,
    SyncDone = 35,
    SyncAdopted = 36,
    PauseSync = 37,
    Verifying = 40,
    Verify = 41,
    VerifyAck = 42,
    Repair = 43,
    RepairDone = 44,
    Promote = 48,
    PromoteReply = 49,
    Demoted = 50,
    NewGeneration = 51,
    NewGenerationAck = 52,
    DiskState = 53,
    Goodbye = 64,
    Outdated = 65,
    Ping = 66,
    Pong = 67,
}

/// What may follow the header of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Nothing,
    /// A control body, at most [`MAX_BODY`] bytes, decoded by [`crate::body`].
    Body,
    /// Data of the volume, at most [`MAX_DATA`] bytes, or nothing.
    Data,
}

impl Kind {
    /// Every kind of version 1.
    pub const ALL: [Kind; 33] = [
        Kind::State,
        Kind::Agree,
        Kind::Bitmap,
        Kind::Stored,
        Kind::Ready,
        Kind::Write,
        Kind::WriteAck,
        Kind::Barrier,
        Kind::Flush,
        Kind::FlushAck,
        Kind::Read,
        Kind::ReadReply,
        Kind::SyncWrite,
        Kind::SyncCompare,
        Kind::SyncAck,
        Kind::SyncDone,
        Kind::SyncAdopted,
        Kind::PauseSync,
        Kind::Verifying,
        Kind::Verify,
        Kind::VerifyAck,
        Kind::Repair,
        Kind::RepairDone,
        Kind::Promote,
        Kind::PromoteReply,
        Kind::Demoted,
        Kind::NewGeneration,
        Kind::NewGenerationAck,
        Kind::DiskState,
        Kind::Goodbye,
        Kind::Outdated,
        Kind::Ping,
        Kind::Pong,
    ];

    /// The kind with this code.
    pub fn from_code(code: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == code)
    }

    /// What may follow its header.
    pub fn carries(self) -> Carries {
        match self {
            Kind::State
            | Kind::Agree
            | Kind::Bitmap
            | Kind::Barrier
            | Kind::SyncCompare
            | Kind::Verify => Carries::Body,
            Kind::Write | Kind::ReadReply | Kind::SyncWrite => Carries::Data,
            Kind::Stored
            | Kind::Ready
            | Kind::WriteAck
            | Kind::Flush
            | Kind::FlushAck
            | Kind::Read
            | Kind::SyncAck
            | Kind::SyncDone
            | Kind::SyncAdopted
            | Kind::PauseSync
            | Kind::Verifying
            | Kind::VerifyAck
            | Kind::Repair
            | Kind::RepairDone
            | Kind::Promote
            | Kind::PromoteReply
            | Kind::Demoted
            | Kind::NewGeneration
            | Kind::NewGenerationAck
            | Kind::DiskState
            | Kind::Goodbye
            | Kind::Outdated
            | Kind::Ping
            | Kind::Pong => Carries::Nothing,
        }
    }

    /// Most payload bytes a frame of this kind may announce.
    pub fn max_payload(self) -> u32 {
        match self.carries() {
            Carries::Nothing => 0,
            Carries::Body => MAX_BODY,
            Carries::Data => MAX_DATA,
        }
    }
}

/// A reign as primary, as it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Term {
    pub counter: u64,
    pub node: u8,
    pub random: u32,
}

/// A byte range of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    pub start: u64,
    pub len: u32,
}

/// The part of a header whose meaning depends on the kind. Fields that a kind does not use are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    pub kind: Kind,
    pub flags: u16,
    pub code: u8,
    pub code2: u8,
    pub volume: u16,
    pub span: Span,
    pub id: u64,
    pub aux: u64,
}

impl Fields {
    /// Fields of `kind`, the rest zero.
    pub fn new(kind: Kind) -> Fields {
        Fields {
            kind,
            flags: 0,
            code: 0,
            code2: 0,
            volume: 0,
            span: Span::default(),
            id: 0,
            aux: 0,
        }
    }

    pub(crate) fn flag(self, set: bool, flag: u16) -> Fields {
        let flags = if set { self.flags | flag } else { self.flags };
        Fields { flags, ..self }
    }

    pub(crate) fn code(self, code: u8) -> Fields {
        Fields { code, ..self }
    }

    pub(crate) fn code2(self, code2: u8) -> Fields {
        Fields { code2, ..self }
    }

    pub(crate) fn volume(self, volume: u16) -> Fields {
        Fields { volume, ..self }
    }

    pub(crate) fn span(self, span: Span) -> Fields {
        Fields { span, ..self }
    }

    pub(crate) fn id(self, id: u64) -> Fields {
        Fields { id, ..self }
    }

    pub(crate) fn aux(self, aux: u64) -> Fields {
        Fields { aux, ..self }
    }
}

/// A header that passed every check that needs no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub fields: Fields,
    pub lane: u8,
    pub session: u64,
    pub term: Term,
    /// Number of this frame on its lane, from 1.
    pub frame: u64,
    pub payload_len: u32,
    pub payload_crc: u32,
}

/// The bytes of a header.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    magic: U32,
    version: U16,
    kind: U16,
    flags: U16,
    lane: u8,
    term_node: u8,
    volume: U16,
    code: u8,
    code2: u8,
    term_random: U32,
    span_len: U32,
    session: U64,
    term_counter: U64,
    frame: U64,
    span_start: U64,
    id: U64,
    aux: U64,
    payload_len: U32,
    payload_crc: U32,
    reserved: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// Where the header's own checksum lies; it covers all bytes before it.
const CRC_OFFSET: usize = HEADER_LEN - 4;

impl Header {
    /// The header's bytes, with its checksum.
    pub fn encode(&self, version: u16) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader {
            magic: MAGIC.into(),
            version: version.into(),
            kind: (self.fields.kind as u16).into(),
            flags: self.fields.flags.into(),
            lane: self.lane,
            term_node: self.term.node,
            volume: self.fields.volume.into(),
            code: self.fields.code,
            code2: self.fields.code2,
            term_random: self.term.random.into(),
            span_len: self.fields.span.len.into(),
            session: self.session.into(),
            term_counter: self.term.counter.into(),
            frame: self.frame.into(),
            span_start: self.fields.span.start.into(),
            id: self.fields.id.into(),
            aux: self.fields.aux.into(),
            payload_len: self.payload_len.into(),
            payload_crc: self.payload_crc.into(),
            reserved: 0.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = header_crc(&raw).into();
        zerocopy::transmute!(raw)
    }

    /// Checks magic, checksum, version, kind, lane, node, frame number, reserved bytes and the
    /// payload's announced length, in this order.
    pub fn decode(bytes: &[u8; HEADER_LEN], version: u16) -> Result<Header, WireError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic.get() != MAGIC {
            return Err(WireError::Magic(raw.magic.get()));
        }
        if raw.header_crc.get() != header_crc(&raw) {
            return Err(WireError::HeaderChecksum);
        }
        if raw.version.get() != version {
            return Err(WireError::Version {
                got: raw.version.get(),
                want: version,
            });
        }
        let kind = Kind::from_code(raw.kind.get()).ok_or(WireError::UnknownKind(raw.kind.get()))?;
        if raw.reserved.get() != 0 {
            return Err(WireError::Fields { kind });
        }
        let header = Header {
            fields: Fields {
                kind,
                flags: raw.flags.get(),
                code: raw.code,
                code2: raw.code2,
                volume: raw.volume.get(),
                span: Span {
                    start: raw.span_start.get(),
                    len: raw.span_len.get(),
                },
                id: raw.id.get(),
                aux: raw.aux.get(),
            },
            lane: raw.lane,
            session: raw.session.get(),
            term: Term {
                counter: raw.term_counter.get(),
                node: raw.term_node,
                random: raw.term_random.get(),
            },
            frame: raw.frame.get(),
            payload_len: raw.payload_len.get(),
            payload_crc: raw.payload_crc.get(),
        };
        header.check()?;
        Ok(header)
    }

    /// The checks of both directions: what must hold whatever the kind's fields mean.
    pub fn check(&self) -> Result<(), WireError> {
        let kind = self.fields.kind;
        if usize::from(self.lane) >= MAX_LANES {
            return Err(WireError::Lane(self.lane));
        }
        if self.term.node >= MAX_NODES {
            return Err(WireError::Node(self.term.node));
        }
        if self.payload_len > kind.max_payload() {
            return Err(WireError::Length {
                kind,
                got: self.payload_len,
            });
        }
        if self.payload_len == 0 && self.payload_crc != 0 {
            return Err(WireError::Fields { kind });
        }
        Ok(())
    }
}

fn header_crc(raw: &RawHeader) -> u32 {
    let (covered, _) = raw.as_bytes().split_at(CRC_OFFSET);
    crc32fast::hash(covered)
}

/// Why a frame was refused. The link it came from is not used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a frame: magic {0:#010x}")]
    Magic(u32),
    #[error("frame header: wrong checksum")]
    HeaderChecksum,
    #[error("{kind:?} frame: wrong payload checksum")]
    PayloadChecksum { kind: Kind },
    #[error("frame of version {got}, agreed on {want}")]
    Version { got: u16, want: u16 },
    #[error("unknown frame kind {0}")]
    UnknownKind(u16),
    #[error("lane {0} does not exist")]
    Lane(u8),
    #[error("node id {0} is out of range")]
    Node(u8),
    #[error("frame {got} on lane {lane}, expected {want}")]
    Order { lane: u8, got: u64, want: u64 },
    #[error("{kind:?} frame: payload of {got} bytes")]
    Length { kind: Kind, got: u32 },
    #[error("{kind:?} frame: bad range {start}+{len}")]
    Span { kind: Kind, start: u64, len: u32 },
    #[error("{kind:?} frame: a field that must be zero is not")]
    Fields { kind: Kind },
    #[error("{kind:?} frame: code {value} is out of range")]
    Code { kind: Kind, value: u8 },
    #[error("{kind:?} frame: {fault}")]
    Body { kind: Kind, fault: BodyFault },
}

/// What is wrong with a control body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    #[error("body ends early")]
    Short,
    #[error("{0} bytes after the end of the body")]
    Trailing(usize),
    #[error("too many {what}: {got}")]
    Count { what: &'static str, got: usize },
    #[error("{what} is out of range")]
    Value { what: &'static str },
    #[error("volume {0} occurs twice")]
    Duplicate(u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            fields: Fields {
                flags: 0x0102,
                code: 3,
                code2: 4,
                volume: 0x0506,
                span: Span {
                    start: 0x0708_090a_0b0c_0d0e,
                    len: 0x0f10_1112,
                },
                id: 0x1314_1516_1718_191a,
                aux: 0x1b1c_1d1e_1f20_2122,
                ..Fields::new(Kind::Write)
            },
            lane: 0,
            session: 0x2324_2526_2728_292a,
            term: Term {
                counter: 0x2b2c_2d2e_2f30_3132,
                node: 5,
                random: 0x3334_3536,
            },
            frame: 0x3738_393a_3b3c_3d3e,
            payload_len: 0x1000,
            payload_crc: 0x4344_4546,
        }
    }

    /// The bytes of a known header, offset by offset: the format does not move by accident.
    #[test]
    fn layout_is_the_documented_one() {
        let bytes = header().encode(VERSION);
        let at = |offset: usize, expected: &[u8]| {
            assert_eq!(
                &bytes[offset..offset + expected.len()],
                expected,
                "{offset}"
            );
        };
        at(0, b"LKST");
        at(4, &[1, 0, 16, 0, 0x02, 0x01, 0, 5, 0x06, 0x05, 3, 4]);
        at(16, &[0x36, 0x35, 0x34, 0x33, 0x12, 0x11, 0x10, 0x0f]);
        at(24, &0x2324_2526_2728_292a_u64.to_le_bytes());
        at(32, &0x2b2c_2d2e_2f30_3132_u64.to_le_bytes());
        at(40, &0x3738_393a_3b3c_3d3e_u64.to_le_bytes());
        at(48, &0x0708_090a_0b0c_0d0e_u64.to_le_bytes());
        at(56, &0x1314_1516_1718_191a_u64.to_le_bytes());
        at(64, &0x1b1c_1d1e_1f20_2122_u64.to_le_bytes());
        at(72, &[0x00, 0x10, 0, 0, 0x46, 0x45, 0x44, 0x43, 0, 0, 0, 0]);
        at(84, &crc32fast::hash(&bytes[..84]).to_le_bytes());
        assert_eq!(Header::decode(&bytes, VERSION), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = header().encode(VERSION);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, VERSION).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn limits_hold_behind_a_valid_checksum() {
        let refused = |change: fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Header::decode(&header.encode(VERSION), VERSION).expect_err("refused")
        };
        let kind = Kind::Write;
        assert_eq!(refused(|h| h.lane = 8), WireError::Lane(8));
        assert_eq!(refused(|h| h.term.node = 16), WireError::Node(16));
        assert_eq!(
            refused(|h| h.payload_len = MAX_DATA + 1),
            WireError::Length {
                kind,
                got: MAX_DATA + 1
            }
        );
        assert_eq!(refused(|h| h.payload_len = 0), WireError::Fields { kind });
        assert_eq!(
            Header::decode(&header().encode(2), 1),
            Err(WireError::Version { got: 2, want: 1 })
        );
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind as u16), Some(kind));
        }
        assert_eq!(Kind::from_code(0), None);
    }
}
