//! The NBD protocol's numbers and wire structs, and the rules that need no state: what an export
//! advertises and which requests it accepts. No I/O.
//!
//! All integers on the wire are big-endian.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::engine::{IoFailure, Span};

/// First eight bytes of the greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting, and the magic of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Magic of every answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of the server.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Handshake flags of the client.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Options of the handshake.
pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// Answers to options.
pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// Kinds of information in an answer to INFO and GO.
pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub const TRANSMIT_HAS_FLAGS: u16 = 1 << 0;
pub const TRANSMIT_READ_ONLY: u16 = 1 << 1;
pub const TRANSMIT_SEND_FLUSH: u16 = 1 << 2;
pub const TRANSMIT_SEND_FUA: u16 = 1 << 3;
pub const TRANSMIT_SEND_TRIM: u16 = 1 << 5;
pub const TRANSMIT_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const TRANSMIT_SEND_DF: u16 = 1 << 7;
pub const TRANSMIT_CAN_MULTI_CONN: u16 = 1 << 8;

/// Commands of the transmission phase.
pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flags.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;

/// Structured replies.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;
pub const REPLY_NONE: u16 = 0;
pub const REPLY_OFFSET_DATA: u16 = 1;
pub const REPLY_BLOCK_STATUS: u16 = 5;
pub const REPLY_ERROR: u16 = (1 << 15) + 1;

/// The one metadata context, and the number under which it is selected.
pub const ALLOCATION_CONTEXT: &[u8] = b"base:allocation";
pub const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Longest string that the protocol allows (export name, description, message).
pub const MAX_STRING: usize = 4096;

/// Largest read or write that is accepted: the protocol's customary limit, which clients assume
/// when they do not ask. The server splits it.
pub const MAX_REQUEST: u32 = 32 << 20;

/// Zeroes and trims are cut at multiples of this, so that no part spans more activity-log extents
/// than the engine takes at once.
pub const CUT: u64 = 64 << 20;

/// Block size in bytes that clients are advised to use: a page, the unit of most disks.
const PREFERRED_BLOCK: u32 = 4096;

/// The greeting.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Greeting {
    pub magic: U64,
    pub option_magic: U64,
    pub flags: U16,
}

/// Header of an option.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    pub magic: U64,
    pub option: U32,
    pub length: U32,
}

/// Header of an answer to an option.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReply {
    pub magic: U64,
    pub option: U32,
    pub kind: U32,
    pub length: U32,
}

/// Header of a request; 28 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    pub magic: U32,
    pub flags: U16,
    pub command: U16,
    pub cookie: U64,
    pub offset: U64,
    pub length: U32,
}

/// A reply as the base protocol has it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    pub magic: U32,
    pub error: U32,
    pub cookie: U64,
}

/// Header of a chunk of a structured reply.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    pub magic: U32,
    pub flags: U16,
    pub kind: U16,
    pub cookie: U64,
    pub length: U32,
}

/// An error as it goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReplyError {
    Permission = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Shutdown = 108,
}

impl ReplyError {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The sentence that goes with it in a structured reply.
    pub fn message(self) -> &'static str {
        match self {
            ReplyError::Permission => "the export is read-only",
            ReplyError::Io => "no copy of the data could serve the request",
            ReplyError::Invalid => "the request is malformed, misaligned or out of range",
            ReplyError::NoSpace => "the request reaches past the end of the device",
            ReplyError::Shutdown => "this node is not primary any more",
        }
    }
}

impl From<IoFailure> for ReplyError {
    fn from(failure: IoFailure) -> ReplyError {
        match failure {
            IoFailure::NotPrimary => ReplyError::Shutdown,
            IoFailure::NoData | IoFailure::Disk(_) => ReplyError::Io,
            IoFailure::BadRequest => ReplyError::Invalid,
        }
    }
}

/// What is exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// At most 4096 bytes. The empty name of a client means this export, too.
    pub name: String,
    /// For people; at most 4096 bytes.
    pub description: String,
    /// Bytes; a multiple of `min_block`.
    pub size: u64,
    /// Smallest and alignment unit of requests in bytes: a power of two from 512 to 4096.
    pub min_block: u32,
    /// Blocks can be given back by a trim.
    pub discard: bool,
    pub read_only: bool,
}

impl Export {
    /// The transmission flags. No FAST_ZERO and no CACHE: nothing here makes them true.
    ///
    /// CAN_MULTI_CONN holds because one engine serves all connections and its flush covers every
    /// write that was completed before, whoever sent it.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let mut flags = TRANSMIT_HAS_FLAGS | TRANSMIT_SEND_FLUSH | TRANSMIT_CAN_MULTI_CONN;
        flags |= if self.read_only {
            TRANSMIT_READ_ONLY
        } else {
            let trim = if self.discard { TRANSMIT_SEND_TRIM } else { 0 };
            TRANSMIT_SEND_FUA | trim | TRANSMIT_SEND_WRITE_ZEROES
        };
        if structured {
            flags |= TRANSMIT_SEND_DF;
        }
        flags
    }

    /// The block sizes that a client should keep to: minimum, preferred, maximum, in bytes.
    pub fn block_sizes(&self, max_request: u32) -> [u32; 3] {
        [
            self.min_block,
            PREFERRED_BLOCK.max(self.min_block),
            max_request,
        ]
    }
}

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies are structured.
    pub structured: bool,
    /// The client may ask for the allocation status of blocks.
    pub allocation: bool,
}

/// An accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Read,
    Write { fua: bool },
    WriteZeroes { unmap: bool, fua: bool },
    Trim { fua: bool },
    Flush,
    BlockStatus,
    Disconnect,
}

impl Work {
    /// First byte after the first part of `[from, end)` as it goes to the engine.
    pub fn cut(self, from: u64, end: u64) -> u64 {
        match self {
            Work::Read | Work::Write { .. } => {
                end.min(from.saturating_add(u64::from(crate::target::MAX_DATA)))
            }
            _ => end.min((from / CUT + 1).saturating_mul(CUT)),
        }
    }

    /// The first part of `[from, end)`.
    pub fn part(self, from: u64, end: u64) -> Span {
        // A part is at most CUT long, which fits 32 bits.
        Span::new(from, (self.cut(from, end) - from) as u32)
    }
}

impl RequestHeader {
    /// Bytes of payload that follow the header.
    pub fn payload(&self) -> u32 {
        if self.command.get() == CMD_WRITE {
            self.length.get()
        } else {
            0
        }
    }

    /// Judges a request; everything that it returns lies inside the device and is aligned.
    pub fn check(
        &self,
        export: &Export,
        agreed: Agreed,
        max_request: u32,
    ) -> Result<Work, ReplyError> {
        let flags = self.flags.get();
        let fua = flags & CMD_FLAG_FUA != 0;
        // FUA is allowed, if pointless, on every command.
        let (allowed, work) = match self.command.get() {
            CMD_READ if agreed.structured => (CMD_FLAG_DF, Work::Read),
            CMD_READ => (0, Work::Read),
            CMD_WRITE => (0, Work::Write { fua }),
            CMD_DISC => return Ok(Work::Disconnect),
            CMD_FLUSH => (0, Work::Flush),
            CMD_TRIM => (0, Work::Trim { fua }),
            CMD_WRITE_ZEROES => (
                CMD_FLAG_NO_HOLE,
                Work::WriteZeroes {
                    unmap: flags & CMD_FLAG_NO_HOLE == 0,
                    fua,
                },
            ),
            CMD_BLOCK_STATUS if agreed.allocation => (CMD_FLAG_REQ_ONE, Work::BlockStatus),
            _ => return Err(ReplyError::Invalid),
        };
        if flags & !(allowed | CMD_FLAG_FUA) != 0 {
            return Err(ReplyError::Invalid);
        }
        self.check_range(work, export, max_request)?;
        Ok(work)
    }

    fn check_range(&self, work: Work, export: &Export, max_request: u32) -> Result<(), ReplyError> {
        let (offset, length) = (self.offset.get(), self.length.get());
        let writes = matches!(
            work,
            Work::Write { .. } | Work::WriteZeroes { .. } | Work::Trim { .. }
        );
        if writes && export.read_only {
            return Err(ReplyError::Permission);
        }
        if work == Work::Flush {
            return if offset == 0 && length == 0 {
                Ok(())
            } else {
                Err(ReplyError::Invalid)
            };
        }
        if matches!(work, Work::Trim { .. }) && !export.discard {
            return Err(ReplyError::Invalid);
        }
        let block = u64::from(export.min_block);
        if length == 0 || !offset.is_multiple_of(block) || !u64::from(length).is_multiple_of(block)
        {
            return Err(ReplyError::Invalid);
        }
        if matches!(work, Work::Read | Work::Write { .. }) && length > max_request {
            return Err(ReplyError::Invalid);
        }
        let inside = offset
            .checked_add(u64::from(length))
            .is_some_and(|end| end <= export.size);
        match (inside, work) {
            (true, _) => Ok(()),
            (false, Work::Write { .. } | Work::WriteZeroes { .. }) => Err(ReplyError::NoSpace),
            (false, _) => Err(ReplyError::Invalid),
        }
    }
}

/// Appends a simple reply's header; data of a read follows it.
pub fn push_simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    let reply = SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.into(),
    };
    out.extend_from_slice(reply.as_bytes());
}

/// Appends the header of the only chunk of a structured reply; `length` bytes follow it.
pub fn push_chunk(out: &mut Vec<u8>, cookie: u64, kind: u16, length: u32) {
    let chunk = ChunkHeader {
        magic: STRUCTURED_REPLY_MAGIC.into(),
        flags: REPLY_FLAG_DONE.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        length: length.into(),
    };
    out.extend_from_slice(chunk.as_bytes());
}

/// Appends the reply to a request that failed.
pub fn push_error(out: &mut Vec<u8>, agreed: Agreed, cookie: u64, error: ReplyError) {
    if !agreed.structured {
        push_simple(out, cookie, error.code());
        return;
    }
    let message = error.message().as_bytes();
    // The messages are constants, far shorter than the 16 bits allow.
    push_chunk(out, cookie, REPLY_ERROR, 6 + message.len() as u32);
    out.extend_from_slice(&error.code().to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// Appends the reply to a request that succeeded and has no data.
pub fn push_done(out: &mut Vec<u8>, agreed: Agreed, cookie: u64) {
    if agreed.structured {
        push_chunk(out, cookie, REPLY_NONE, 0);
    } else {
        push_simple(out, cookie, 0);
    }
}

/// Appends what comes before the data of a read.
pub fn push_read(out: &mut Vec<u8>, agreed: Agreed, cookie: u64, offset: u64, length: u32) {
    if agreed.structured {
        // At most MAX_REQUEST + 8: no overflow.
        push_chunk(out, cookie, REPLY_OFFSET_DATA, length + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        push_simple(out, cookie, 0);
    }
}

/// Appends a block status: all of it allocated data, because nobody here knows better.
pub fn push_block_status(out: &mut Vec<u8>, cookie: u64, length: u32) {
    push_chunk(out, cookie, REPLY_BLOCK_STATUS, 12);
    out.extend_from_slice(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Agreed = Agreed {
        structured: true,
        allocation: true,
    };
    const NONE: Agreed = Agreed {
        structured: false,
        allocation: false,
    };

    fn export() -> Export {
        Export {
            name: "r0".into(),
            description: String::new(),
            size: 1 << 30,
            min_block: 512,
            discard: true,
            read_only: false,
        }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: 7.into(),
            offset: offset.into(),
            length: length.into(),
        }
    }

    #[test]
    fn wire_structs_have_the_protocol_s_sizes() {
        assert_eq!(size_of::<Greeting>(), 18);
        assert_eq!(size_of::<OptionHeader>(), 16);
        assert_eq!(size_of::<OptionReply>(), 20);
        assert_eq!(size_of::<RequestHeader>(), 28);
        assert_eq!(size_of::<SimpleReply>(), 16);
        assert_eq!(size_of::<ChunkHeader>(), 20);
        assert_eq!(&GREETING_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn requests_are_judged() {
        use ReplyError::{Invalid, NoSpace};
        let end = 1u64 << 30;
        type Row = (u16, u16, u64, u32, Agreed, Result<Work, ReplyError>);
        let table: &[Row] = &[
            (CMD_READ, 0, 0, 512, NONE, Ok(Work::Read)),
            (CMD_READ, CMD_FLAG_FUA, 0, 512, NONE, Ok(Work::Read)),
            (CMD_READ, CMD_FLAG_DF, 0, 512, ALL, Ok(Work::Read)),
            (CMD_READ, CMD_FLAG_DF, 0, 512, NONE, Err(Invalid)),
            (CMD_READ, 0, 0, 0, NONE, Err(Invalid)),
            (CMD_READ, 0, 0, 513, NONE, Err(Invalid)),
            (CMD_READ, 0, 100, 512, NONE, Err(Invalid)),
            (CMD_READ, 0, 0, MAX_REQUEST, NONE, Ok(Work::Read)),
            (CMD_READ, 0, 0, MAX_REQUEST + 512, NONE, Err(Invalid)),
            (CMD_READ, 0, end - 512, 512, NONE, Ok(Work::Read)),
            (CMD_READ, 0, end - 512, 1024, NONE, Err(Invalid)),
            (CMD_READ, 0, u64::MAX - 511, 512, NONE, Err(Invalid)),
            (CMD_WRITE, 0, 0, 512, NONE, Ok(Work::Write { fua: false })),
            (
                CMD_WRITE,
                CMD_FLAG_FUA,
                0,
                512,
                NONE,
                Ok(Work::Write { fua: true }),
            ),
            (CMD_WRITE, 0, end, 512, NONE, Err(NoSpace)),
            (CMD_WRITE, CMD_FLAG_NO_HOLE, 0, 512, NONE, Err(Invalid)),
            (CMD_FLUSH, 0, 0, 0, NONE, Ok(Work::Flush)),
            (CMD_FLUSH, 0, 0, 512, NONE, Err(Invalid)),
            (
                CMD_TRIM,
                CMD_FLAG_FUA,
                0,
                1 << 30,
                NONE,
                Ok(Work::Trim { fua: true }),
            ),
            (CMD_TRIM, 0, end, 512, NONE, Err(Invalid)),
            (
                CMD_WRITE_ZEROES,
                0,
                0,
                512,
                NONE,
                Ok(Work::WriteZeroes {
                    unmap: true,
                    fua: false,
                }),
            ),
            (
                CMD_WRITE_ZEROES,
                CMD_FLAG_NO_HOLE | CMD_FLAG_FUA,
                0,
                512,
                NONE,
                Ok(Work::WriteZeroes {
                    unmap: false,
                    fua: true,
                }),
            ),
            (CMD_WRITE_ZEROES, 1 << 4, 0, 512, NONE, Err(Invalid)),
            (CMD_WRITE_ZEROES, 0, end - 512, 1024, NONE, Err(NoSpace)),
            (
                CMD_BLOCK_STATUS,
                CMD_FLAG_REQ_ONE,
                0,
                512,
                ALL,
                Ok(Work::BlockStatus),
            ),
            (CMD_BLOCK_STATUS, 0, 0, 512, NONE, Err(Invalid)),
            (5, 0, 0, 512, ALL, Err(Invalid)),
            (8, 0, 0, 512, ALL, Err(Invalid)),
            (CMD_DISC, 0, 9, 9, NONE, Ok(Work::Disconnect)),
        ];
        for (command, flags, offset, length, agreed, expected) in table {
            let verdict =
                request(*command, *flags, *offset, *length).check(&export(), *agreed, MAX_REQUEST);
            assert_eq!(verdict, *expected, "{command} {flags} {offset} {length}");
        }
    }

    #[test]
    fn a_read_only_export_takes_no_change() {
        let export = Export {
            read_only: true,
            ..export()
        };
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            let verdict = request(command, 0, 0, 512).check(&export, ALL, MAX_REQUEST);
            assert_eq!(verdict, Err(ReplyError::Permission));
        }
        let flags = export.transmission_flags(true);
        assert_eq!(flags & TRANSMIT_READ_ONLY, TRANSMIT_READ_ONLY);
        assert_eq!(flags & (TRANSMIT_SEND_TRIM | TRANSMIT_SEND_WRITE_ZEROES), 0);
    }

    #[test]
    fn trim_is_offered_and_taken_only_where_blocks_are_given_back() {
        for discard in [true, false] {
            let export = Export {
                discard,
                ..export()
            };
            let offered = export.transmission_flags(true) & TRANSMIT_SEND_TRIM != 0;
            let verdict = request(CMD_TRIM, 0, 0, 512).check(&export, ALL, MAX_REQUEST);
            assert_eq!((offered, verdict.is_ok()), (discard, discard));
        }
    }

    #[test]
    fn a_larger_minimum_block_is_enforced() {
        let export = Export {
            min_block: 4096,
            ..export()
        };
        let small = request(CMD_READ, 0, 0, 512).check(&export, ALL, MAX_REQUEST);
        assert_eq!(small, Err(ReplyError::Invalid));
        let shifted = request(CMD_READ, 0, 512, 4096).check(&export, ALL, MAX_REQUEST);
        assert_eq!(shifted, Err(ReplyError::Invalid));
    }

    proptest! {
        /// Whatever the bytes say, what is accepted is inside the device, aligned, and falls into
        /// parts that the engine takes.
        #[test]
        fn accepted_requests_are_sound(bytes: [u8; 28], command in 0u16..9, near in 0u64..(2 << 30), structured: bool) {
            let mut header = RequestHeader::read_from_bytes(&bytes).unwrap();
            header.command = command.into();
            header.flags = (header.flags.get() & 0x1f).into();
            header.offset = (near & !511).into();
            header.length = (header.length.get() & !511).into();
            let agreed = Agreed { structured, allocation: structured };
            let export = export();
            let Ok(work) = header.check(&export, agreed, MAX_REQUEST) else { return Ok(()) };
            if matches!(work, Work::Flush | Work::Disconnect) { return Ok(()) }
            let end = header.offset.get() + u64::from(header.length.get());
            prop_assert!(end <= export.size);
            let mut at = header.offset.get();
            while at < end {
                let part = work.part(at, end);
                prop_assert!(part.len > 0 && part.len.is_multiple_of(512));
                prop_assert!(part.end() <= end);
                prop_assert!((part.end() - 1) / CUT == part.start / CUT || part.len <= crate::target::MAX_DATA);
                at = part.end();
            }
        }
    }
}
