//! What a connection has to send: replies gather while one send is under way and leave together
//! with the next. Data is sent straight from the tags' buffers.

use std::ptr;

use super::tags::Tags;

/// A vector of the kernel's gather list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct IoVec {
    base: *const u8,
    length: usize,
}

/// The kernel's message header, the same on every 64-bit Linux.
#[repr(C)]
#[derive(Debug)]
pub struct MessageHeader {
    name: *const u8,
    name_length: u32,
    vectors: *const IoVec,
    count: usize,
    control: *const u8,
    control_length: usize,
    flags: u32,
}

#[derive(Clone, Copy, Debug)]
enum Segment {
    /// This many bytes of the headers.
    Head(usize),
    /// The first `length` bytes of a tag's buffer.
    Data { tag: u32, length: usize },
}

#[derive(Debug, Default)]
struct Batch {
    heads: Vec<u8>,
    segments: Vec<Segment>,
}

/// The replies of one connection.
///
/// From [`Outbox::launch`] until [`Outbox::landed`] the kernel reads the batch that flies, its
/// vectors and its tags' buffers: the outbox must stay where it is and alive.
#[derive(Debug)]
pub struct Outbox {
    waiting: Batch,
    flying: Batch,
    /// Bytes of `flying` that the socket has taken.
    sent: usize,
    vectors: Vec<IoVec>,
    header: MessageHeader,
    in_flight: bool,
}

// SAFETY: the pointers are only ever read by the kernel, for memory that this value or the tags
// of its server own; nothing in it is tied to a thread.
unsafe impl Send for Outbox {}

impl Outbox {
    pub fn new() -> Outbox {
        Outbox {
            waiting: Batch::default(),
            flying: Batch::default(),
            sent: 0,
            vectors: Vec::new(),
            header: MessageHeader {
                name: ptr::null(),
                name_length: 0,
                vectors: ptr::null(),
                count: 0,
                control: ptr::null(),
                control_length: 0,
                flags: 0,
            },
            in_flight: false,
        }
    }

    /// Adds what `write` appends.
    pub fn head<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let before = self.waiting.heads.len();
        let result = write(&mut self.waiting.heads);
        let added = self.waiting.heads.len() - before;
        match self.waiting.segments.last_mut() {
            _ if added == 0 => {}
            Some(Segment::Head(length)) => *length += added,
            _ => self.waiting.segments.push(Segment::Head(added)),
        }
        result
    }

    /// Adds data; the tag is freed when it has been sent.
    pub fn data(&mut self, tag: u32, length: usize) {
        self.waiting.segments.push(Segment::Data { tag, length });
    }

    /// Header bytes that wait; a client that does not read its replies makes them grow.
    pub fn backlog(&self) -> usize {
        self.waiting.heads.len()
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.segments.is_empty() && self.flying.segments.is_empty()
    }

    /// Whether the kernel has a batch.
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Prepares the next send and returns what the submission points at; `None` when there is
    /// nothing to send or a send is under way.
    pub fn launch(&mut self, tags: &Tags) -> Option<*const MessageHeader> {
        if self.in_flight {
            return None;
        }
        if self.flying.segments.is_empty() {
            std::mem::swap(&mut self.waiting, &mut self.flying);
        }
        if self.flying.segments.is_empty() {
            return None;
        }
        self.vectors.clear();
        let (mut head, mut skip) = (0, self.sent);
        for segment in &self.flying.segments {
            let (base, length) = match *segment {
                Segment::Head(length) => {
                    let bytes = self.flying.heads.get(head..head + length);
                    head += length;
                    (bytes.unwrap_or_default().as_ptr(), length)
                }
                Segment::Data { tag, length } => (tags.address(tag)?.cast_const(), length),
            };
            let skipped = skip.min(length);
            skip -= skipped;
            if skipped < length {
                self.vectors.push(IoVec {
                    // In bounds: fewer bytes than the segment has.
                    base: base.wrapping_add(skipped),
                    length: length - skipped,
                });
            }
        }
        self.header.vectors = self.vectors.as_ptr();
        self.header.count = self.vectors.len();
        self.in_flight = true;
        Some(&self.header)
    }

    /// The kernel is done with the send and has taken `count` bytes. Frees the tags once the
    /// whole batch is out; true if it is.
    pub fn landed(&mut self, count: usize, tags: &mut Tags) -> bool {
        self.in_flight = false;
        self.sent += count;
        let total: usize = self.flying.segments.iter().map(Segment::length).sum();
        if self.sent < total {
            return false;
        }
        self.sent = 0;
        self.flying.discard(tags);
        true
    }

    /// Drops everything that waits, and the batch that flew; only while the kernel has none.
    pub fn discard(&mut self, tags: &mut Tags) {
        debug_assert!(!self.in_flight);
        self.waiting.discard(tags);
        self.flying.discard(tags);
        self.sent = 0;
    }
}

impl Segment {
    fn length(&self) -> usize {
        match *self {
            Segment::Head(length) | Segment::Data { length, .. } => length,
        }
    }
}

impl Batch {
    fn discard(&mut self, tags: &mut Tags) {
        for segment in self.segments.drain(..) {
            if let Segment::Data { tag, .. } = segment {
                tags.release(tag);
            }
        }
        self.heads.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(outbox: &Outbox) -> Vec<u8> {
        let bytes = |vector: &IoVec| {
            // SAFETY: the vectors point into the outbox and the tags of the test.
            unsafe { std::slice::from_raw_parts(vector.base, vector.length) }.to_vec()
        };
        outbox.vectors.iter().flat_map(bytes).collect()
    }

    #[test]
    fn replies_gather_and_short_sends_go_on() {
        let mut tags = Tags::new(1).unwrap();
        let mut outbox = Outbox::new();
        assert!(outbox.launch(&tags).is_none());
        let tag = tags.take().unwrap();
        tags.buffer(tag)[..4].copy_from_slice(b"data");
        outbox.head(|out| out.extend_from_slice(b"one"));
        outbox.head(|out| out.extend_from_slice(b"two"));
        outbox.data(tag, 4);
        outbox.head(|out| out.extend_from_slice(b"three"));
        assert!(outbox.launch(&tags).is_some());
        assert_eq!(gathered(&outbox), b"onetwodatathree");
        assert_eq!(outbox.header.count, 3);
        outbox.head(|out| out.extend_from_slice(b"late"));
        assert!(outbox.launch(&tags).is_none());
        for (count, rest) in [(4, &b"wodatathree"[..]), (3, b"atathree"), (0, b"atathree")] {
            assert!(!outbox.landed(count, &mut tags));
            outbox.launch(&tags).unwrap();
            assert_eq!(gathered(&outbox), rest);
            assert_eq!(tags.take(), None);
        }
        assert!(outbox.landed(8, &mut tags));
        assert_eq!(tags.take(), Some(tag));
        outbox.launch(&tags).unwrap();
        assert_eq!(gathered(&outbox), b"late");
        assert!(outbox.landed(4, &mut tags));
        assert!(outbox.is_empty());
    }
}
