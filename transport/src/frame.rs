//! Sans-IO framing: bytes in, packets out.
//!
//! [`FrameReader`] is fed the byte stream in pieces of any size. Headers and control bodies are
//! collected inside; data goes to a buffer of the caller, either copied from the stream
//! ([`FrameReader::advance`]) or received straight into it ([`FrameReader::direct`]). A frame
//! comes out only after its last byte was there and its checksums were right. The first violation
//! ends the reader: it gives the same error for ever and delivers nothing more.

use std::ops::Range;

use crate::packet::{Envelope, Packet};
use crate::wire::{Carries, HEADER_LEN, Header, MAX_BODY, MAX_DATA, MAX_LANES, VERSION, WireError};

/// What the reader has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The input is used up; feed more.
    More,
    /// Data of this many bytes follows: supply a buffer of at least that size from now on, until
    /// the frame comes out.
    Data(u32),
    /// A complete frame. Its data is the first `data_len` bytes of the buffer.
    Frame { envelope: Envelope, data_len: u32 },
}

/// Where the reader is in the stream.
#[derive(Debug)]
enum Phase {
    Header {
        have: usize,
    },
    Body {
        header: Header,
    },
    Data {
        header: Header,
        packet: Packet,
        have: usize,
        crc: crc32fast::Hasher,
    },
    Broken(WireError),
}

/// Takes a byte stream apart into frames.
#[derive(Debug)]
pub struct FrameReader {
    phase: Phase,
    header: [u8; HEADER_LEN],
    /// Control body so far; allocated once.
    body: Vec<u8>,
    /// Number of the next frame of each lane.
    next: [u64; MAX_LANES],
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader::new()
    }
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new() -> FrameReader {
        FrameReader {
            phase: Phase::Header { have: 0 },
            header: [0; HEADER_LEN],
            body: Vec::with_capacity(MAX_BODY as usize),
            next: [1; MAX_LANES],
        }
    }

    /// Uses bytes from the front of `input`, up to the end of the next frame at most.
    ///
    /// `data` is the buffer for the data of the current frame, once [`Step::Data`] has asked for
    /// one. Without it, that step is repeated and nothing is used.
    pub fn advance(
        &mut self,
        input: &mut &[u8],
        mut data: Option<&mut [u8]>,
    ) -> Result<Step, WireError> {
        loop {
            let progress = match &self.phase {
                Phase::Broken(error) => return Err(*error),
                Phase::Header { .. } => self.take_header(input),
                Phase::Body { .. } => self.take_body(input),
                Phase::Data { header, .. } => match data.as_deref_mut() {
                    None => return Ok(Step::Data(header.payload_len)),
                    Some(buffer) => self.take_data(input, buffer),
                },
            };
            match progress {
                Ok(None) => {}
                Ok(Some(step)) => return Ok(step),
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Which bytes of the current frame's data have not come yet; `None` outside of data.
    pub fn missing(&self) -> Option<Range<usize>> {
        match &self.phase {
            Phase::Data { header, have, .. } => Some(*have..header.payload_len as usize),
            Phase::Header { .. } | Phase::Body { .. } | Phase::Broken(_) => None,
        }
    }

    /// Accounts for `count` bytes that were received straight into the frame's buffer, at the
    /// front of [`FrameReader::missing`].
    pub fn direct(&mut self, count: usize, data: &[u8]) -> Result<Step, WireError> {
        let Phase::Data { have, crc, .. } = &mut self.phase else {
            return match self.phase {
                Phase::Broken(error) => Err(error),
                _ => Ok(Step::More),
            };
        };
        let came = data.get(*have..have.saturating_add(count)).unwrap_or(&[]);
        crc.update(came);
        *have += came.len();
        match self.finish_data() {
            Ok(step) => Ok(step.unwrap_or(Step::More)),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// True between two frames: a stream that ends here is not cut off.
    pub fn at_boundary(&self) -> bool {
        matches!(self.phase, Phase::Header { have: 0 })
    }

    fn broken(&mut self, error: WireError) -> WireError {
        self.phase = Phase::Broken(error);
        error
    }

    fn take_header(&mut self, input: &mut &[u8]) -> Result<Option<Step>, WireError> {
        let Phase::Header { have } = &mut self.phase else {
            return Ok(None);
        };
        let room = self.header.get_mut(*have..).unwrap_or(&mut []);
        *have += copy_front(input, room);
        if *have < HEADER_LEN {
            return Ok(Some(Step::More));
        }
        let header = Header::decode(&self.header, VERSION)?;
        self.check_order(&header)?;
        match header.fields.kind.carries() {
            Carries::Body => {
                self.body.clear();
                self.phase = Phase::Body { header };
                Ok(None)
            }
            Carries::Nothing | Carries::Data => {
                let packet = Packet::decode(&header.fields, header.payload_len, &[])?;
                if header.payload_len == 0 {
                    return Ok(Some(self.deliver(&header, packet)));
                }
                self.phase = Phase::Data {
                    header,
                    packet,
                    have: 0,
                    crc: crc32fast::Hasher::new(),
                };
                Ok(None)
            }
        }
    }

    /// Frames of a lane are numbered without a gap, so that none is lost, doubled or replayed
    /// from another connection unnoticed.
    fn check_order(&mut self, header: &Header) -> Result<(), WireError> {
        let Some(next) = self.next.get_mut(usize::from(header.lane)) else {
            return Err(WireError::Lane(header.lane));
        };
        if header.frame != *next {
            return Err(WireError::Order {
                lane: header.lane,
                got: header.frame,
                want: *next,
            });
        }
        *next += 1;
        Ok(())
    }

    fn take_body(&mut self, input: &mut &[u8]) -> Result<Option<Step>, WireError> {
        let Phase::Body { header } = self.phase else {
            return Ok(None);
        };
        let missing = header.payload_len as usize - self.body.len();
        let (front, rest) = input.split_at(missing.min(input.len()));
        self.body.extend_from_slice(front);
        *input = rest;
        if front.len() < missing {
            return Ok(Some(Step::More));
        }
        let kind = header.fields.kind;
        if crc32fast::hash(&self.body) != header.payload_crc {
            return Err(WireError::PayloadChecksum { kind });
        }
        let packet = Packet::decode(&header.fields, header.payload_len, &self.body)?;
        Ok(Some(self.deliver(&header, packet)))
    }

    fn take_data(
        &mut self,
        input: &mut &[u8],
        buffer: &mut [u8],
    ) -> Result<Option<Step>, WireError> {
        let Phase::Data {
            header, have, crc, ..
        } = &mut self.phase
        else {
            return Ok(None);
        };
        let Some(room) = buffer.get_mut(*have..header.payload_len as usize) else {
            // Too small a buffer is none.
            return Ok(Some(Step::Data(header.payload_len)));
        };
        let came = copy_front(input, room);
        crc.update(room.get(..came).unwrap_or(&[]));
        *have += came;
        Ok(Some(self.finish_data()?.unwrap_or(Step::More)))
    }

    /// The frame, if its data is complete.
    fn finish_data(&mut self) -> Result<Option<Step>, WireError> {
        let Phase::Data {
            header,
            packet,
            have,
            crc,
        } = &self.phase
        else {
            return Ok(None);
        };
        if *have < header.payload_len as usize {
            return Ok(None);
        }
        if crc.clone().finalize() != header.payload_crc {
            let kind = header.fields.kind;
            return Err(WireError::PayloadChecksum { kind });
        }
        let (header, packet) = (*header, packet.clone());
        Ok(Some(self.deliver(&header, packet)))
    }

    fn deliver(&mut self, header: &Header, packet: Packet) -> Step {
        self.phase = Phase::Header { have: 0 };
        let data_len = match header.fields.kind.carries() {
            Carries::Data => header.payload_len,
            Carries::Nothing | Carries::Body => 0,
        };
        Step::Frame {
            envelope: Envelope::new(header, packet),
            data_len,
        }
    }
}

/// Moves bytes from the front of `input` to the front of `room`; how many.
fn copy_front(input: &mut &[u8], room: &mut [u8]) -> usize {
    let count = room.len().min(input.len());
    let (front, rest) = input.split_at(count);
    if let Some(room) = room.get_mut(..count) {
        room.copy_from_slice(front);
    }
    *input = rest;
    count
}

/// Why a frame was not queued. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The bound of the send buffer. What was queued before is not affected.
    #[error("send buffer is full")]
    Full,
    /// The link has ended or is ending.
    #[error("link is closed")]
    Closed,
    #[error("frame cannot be sent: {0}")]
    Invalid(WireError),
}

/// Appends frames to a contiguous buffer, up to a bound.
#[derive(Debug)]
pub struct FrameWriter {
    buffer: Vec<u8>,
    limit: usize,
    next: [u64; MAX_LANES],
}

/// Longest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_DATA as usize;

impl FrameWriter {
    /// A writer at the start of a stream. `limit` bytes (at least one frame's worth) are reserved
    /// now and never exceeded.
    pub fn new(limit: usize) -> FrameWriter {
        let limit = limit.max(MAX_FRAME);
        FrameWriter {
            buffer: Vec::with_capacity(limit),
            limit,
            next: [1; MAX_LANES],
        }
    }

    /// Appends a frame; `data` is copied at once. Returns the bytes appended.
    pub fn append(&mut self, envelope: &Envelope, data: &[u8]) -> Result<usize, QueueError> {
        let lane = envelope.lane;
        let next = self
            .next
            .get_mut(usize::from(lane))
            .ok_or(QueueError::Invalid(WireError::Lane(lane)))?;
        if envelope.frame != *next {
            return Err(QueueError::Invalid(WireError::Order {
                lane,
                got: envelope.frame,
                want: *next,
            }));
        }
        // The bound of a body stands in for its length, so that the buffer never grows.
        let longest = match envelope.packet.kind().carries() {
            Carries::Nothing => 0,
            Carries::Body => MAX_BODY as usize,
            Carries::Data => data.len(),
        };
        let before = self.buffer.len();
        if before + HEADER_LEN + longest > self.limit {
            return Err(QueueError::Full);
        }
        envelope
            .encode(VERSION, data, &mut self.buffer)
            .map_err(QueueError::Invalid)?;
        *next += 1;
        Ok(self.buffer.len() - before)
    }

    /// Bytes appended and not taken yet.
    pub fn queued(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes that can still be appended before [`QueueError::Full`].
    pub fn room(&self) -> usize {
        self.limit - self.buffer.len()
    }

    /// Exchanges the filled buffer for `empty`, which is cleared and becomes the one to fill.
    pub fn swap(&mut self, empty: &mut Vec<u8>) {
        empty.clear();
        empty.reserve(self.limit);
        std::mem::swap(&mut self.buffer, empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategies::noise;
    use crate::wire::{Kind, Term};

    fn envelope(frame: u64, packet: Packet) -> Envelope {
        Envelope {
            lane: 0,
            session: 1,
            term: Term::default(),
            frame,
            packet,
        }
    }

    fn reply(frame: u64) -> Envelope {
        envelope(frame, Packet::ReadReply { id: 1, ok: true })
    }

    #[test]
    fn a_broken_reader_stays_broken() {
        let mut bytes = Vec::new();
        let ping = envelope(1, Packet::Ping);
        ping.encode(VERSION, &[], &mut bytes).expect("encodes");
        let mut reader = FrameReader::new();
        let error = Err(WireError::Magic(0));
        assert_eq!(reader.advance(&mut &[0; HEADER_LEN][..], None), error);
        assert_eq!(reader.advance(&mut &bytes[..], None), error);
        assert_eq!(reader.direct(0, &[]), error);
        assert!(!reader.at_boundary());
    }

    #[test]
    fn data_may_come_half_copied_and_half_direct() {
        let data = noise(4096, 1);
        for damage in [false, true] {
            let mut bytes = Vec::new();
            reply(1)
                .encode(VERSION, &data, &mut bytes)
                .expect("encodes");
            let mut reader = FrameReader::new();
            let mut input = &bytes[..HEADER_LEN + 1000];
            assert_eq!(reader.advance(&mut input, None), Ok(Step::Data(4096)));
            let mut small = [0; 100];
            let asked_again = reader.advance(&mut input, Some(&mut small));
            assert_eq!(asked_again, Ok(Step::Data(4096)), "buffer too small");
            let mut buffer = vec![0; 4096];
            assert_eq!(
                reader.advance(&mut input, Some(&mut buffer)),
                Ok(Step::More)
            );
            assert_eq!(reader.missing(), Some(1000..4096));
            buffer[1000..3000].copy_from_slice(&data[1000..3000]);
            assert_eq!(reader.direct(2000, &buffer), Ok(Step::More));
            buffer[3000..].copy_from_slice(&data[3000..]);
            if damage {
                buffer[4095] ^= 1;
            }
            let outcome = reader.direct(1096, &buffer);
            if damage {
                let kind = Kind::ReadReply;
                assert_eq!(outcome, Err(WireError::PayloadChecksum { kind }));
            } else {
                let envelope = reply(1);
                let data_len = 4096;
                assert_eq!(outcome, Ok(Step::Frame { envelope, data_len }));
                assert_eq!(buffer, data);
            }
        }
    }

    #[test]
    fn the_writer_never_grows_and_keeps_its_count_when_full() {
        let mut writer = FrameWriter::new(0);
        let data = vec![0; MAX_DATA as usize];
        let capacity = writer.room();
        assert_eq!(writer.append(&reply(1), &data), Ok(MAX_FRAME));
        let ping = envelope(2, Packet::Ping);
        assert_eq!(writer.append(&ping, &[]), Err(QueueError::Full));
        let mut out = Vec::new();
        writer.swap(&mut out);
        assert_eq!((out.len(), out.capacity()), (MAX_FRAME, capacity));
        assert_eq!(writer.append(&ping, &[]), Ok(HEADER_LEN));
        writer.swap(&mut out);
        assert_eq!((out.len(), out.capacity()), (HEADER_LEN, capacity));
        let lane = Envelope { lane: 9, ..ping };
        let error = QueueError::Invalid(WireError::Lane(9));
        assert_eq!(writer.append(&lane, &[]), Err(error));
    }
}
