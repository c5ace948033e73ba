//! The transmission phase of one connection: requests in, parts to the engine, replies out.
//!
//! No I/O here: bytes come from the connection's [`Staging`], replies go to its [`Outbox`].
//!
//! A request larger than the engine takes is cut into parts, a tag each; the reply follows when
//! all parts have ended. Reads take all their tags at once, everything else one after the other:
//! a write's part goes to the engine as soon as its payload is in, so a long write needs no more
//! memory than there are free tags, and when there is none nothing is read from the socket.
//!
//! ```text
//!   Header -> Issue -> Header                   read, trim, zeroes, flush
//!   Header -> Issue -> Payload -> Issue ...     write, part by part
//!   Header -> Drain -> Header                   refused write: its payload is skipped
//!   Header -> Ended                             goodbye
//! ```

use zerocopy::FromBytes;

use super::outbox::Outbox;
use super::protocol::{
    Agreed, Export, REQUEST_MAGIC, ReplyError, RequestHeader, Work, push_block_status, push_done,
    push_error, push_read,
};
use super::tags::{Owner, Tags};
use crate::engine::{IoFailure, Op, Span};
use crate::target::TargetEvent;

/// Bytes that are received at once when no payload is expected: requests and small payloads of a
/// whole burst come with one system call; more would be resident for every connection.
pub const STAGING: usize = 64 << 10;

/// From this many missing bytes on, a payload is received straight into its buffer; below it,
/// copying is cheaper than a receive that cannot bring the next request with it.
const DIRECT: u32 = 32 << 10;

/// A client that does not read its replies is not read from beyond this many bytes of headers.
pub const MAX_BACKLOG: usize = 64 << 10;

/// Received bytes that nobody has looked at.
#[derive(Debug)]
pub struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub fn new() -> Staging {
        Staging {
            bytes: vec![0; STAGING].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    pub fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Where to receive, after moving what is left to the front.
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes have arrived in the room.
    pub fn received(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }
}

/// What a session works with.
pub struct World<'a> {
    pub export: &'a Export,
    pub max_request: u32,
    /// Slot of the connection.
    pub slot: usize,
    pub tags: &'a mut Tags,
    pub events: &'a mut Vec<TargetEvent>,
}

/// What a session needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// More bytes in the staging buffer.
    Bytes,
    /// `length` bytes at `at` of a tag's buffer, then [`Session::received`].
    Payload { tag: u32, at: u32, length: u32 },
    /// Tags; it is queued for them.
    Tags,
    /// That replies are sent.
    Room,
    /// Nothing: the client has said goodbye.
    Nothing,
}

/// The client has lost its place in the stream, or is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request magic is wrong: {0:#x}")]
pub struct BadMagic(u32);

/// A request that has not been answered.
#[derive(Debug)]
struct Pending {
    work: Work,
    cookie: u64,
    offset: u64,
    length: u32,
    /// Tags of a read in the order of its data; they are kept until the reply is sent.
    parts: Vec<u32>,
    /// Parts at the engine.
    outstanding: u32,
    /// More parts will follow.
    issuing: bool,
    /// The flush that makes a FUA trim durable is under way.
    flushing: bool,
    failure: Option<ReplyError>,
}

impl Pending {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

#[derive(Clone, Copy, Debug)]
enum Incoming {
    Header,
    /// The request's parts from byte `at` of the device on are to be handed to the engine.
    Issue {
        request: usize,
        at: u64,
    },
    /// The payload of a write's part is coming in.
    Payload {
        request: usize,
        tag: u32,
        span: Span,
        filled: u32,
    },
    /// The payload of a refused write is skipped.
    Drain {
        left: u32,
        cookie: u64,
        error: ReplyError,
    },
    Ended,
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub struct Session {
    agreed: Agreed,
    incoming: Incoming,
    requests: Vec<Option<Pending>>,
    free: Vec<usize>,
}

impl Session {
    pub fn new(agreed: Agreed) -> Session {
        Session {
            agreed,
            incoming: Incoming::Header,
            requests: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Goes as far as bytes, tags and the client's appetite for replies allow.
    pub fn advance(
        &mut self,
        staging: &mut Staging,
        outbox: &mut Outbox,
        world: &mut World<'_>,
    ) -> Result<Need, BadMagic> {
        loop {
            let need = match self.incoming {
                _ if outbox.backlog() > MAX_BACKLOG => Some(Need::Room),
                Incoming::Header => self.header(staging, outbox, world)?,
                Incoming::Issue { request, at } => self.issue(request, at, world),
                Incoming::Payload { .. } => self.payload(staging, world),
                Incoming::Drain { .. } => self.drain(staging, outbox),
                Incoming::Ended => Some(Need::Nothing),
            };
            if let Some(need) = need {
                return Ok(need);
            }
        }
    }

    fn header(
        &mut self,
        staging: &mut Staging,
        outbox: &mut Outbox,
        world: &World<'_>,
    ) -> Result<Option<Need>, BadMagic> {
        let Ok((header, _)) = RequestHeader::read_from_prefix(staging.data()) else {
            return Ok(Some(Need::Bytes));
        };
        if header.magic.get() != REQUEST_MAGIC {
            return Err(BadMagic(header.magic.get()));
        }
        staging.consume(size_of::<RequestHeader>());
        let cookie = header.cookie.get();
        match header.check(world.export, self.agreed, world.max_request) {
            Ok(Work::Disconnect) => self.incoming = Incoming::Ended,
            Ok(Work::BlockStatus) => {
                outbox.head(|out| push_block_status(out, cookie, header.length.get()));
            }
            Ok(work) => {
                let request = self.admit(work, &header);
                self.incoming = Incoming::Issue {
                    request,
                    at: header.offset.get(),
                };
            }
            Err(error) => {
                self.incoming = Incoming::Drain {
                    left: header.payload(),
                    cookie,
                    error,
                };
            }
        }
        Ok(None)
    }

    fn admit(&mut self, work: Work, header: &RequestHeader) -> usize {
        let pending = Pending {
            work,
            cookie: header.cookie.get(),
            offset: header.offset.get(),
            length: header.length.get(),
            parts: Vec::new(),
            outstanding: 0,
            issuing: true,
            flushing: false,
            failure: None,
        };
        let index = self.free.pop().unwrap_or(self.requests.len());
        match self.requests.get_mut(index) {
            Some(entry) => *entry = Some(pending),
            None => self.requests.push(Some(pending)),
        }
        index
    }

    /// Hands on the next part, or all of a read; for a write, prepares to receive it.
    fn issue(&mut self, request: usize, at: u64, world: &mut World<'_>) -> Option<Need> {
        let Some(Some(pending)) = self.requests.get_mut(request) else {
            self.incoming = Incoming::Header;
            return None;
        };
        let (work, end) = (pending.work, pending.end());
        let need = match work {
            Work::Read => pending.length.div_ceil(crate::target::MAX_DATA) as usize,
            _ => 1,
        };
        if !world.tags.ready(world.slot, need) {
            return Some(Need::Tags);
        }
        let mut at = at;
        for _ in 0..need {
            let Some(tag) = world.tags.take() else {
                return Some(Need::Tags);
            };
            let span = work.part(at, end);
            at = span.end();
            let op = match work {
                Work::Read => {
                    pending.parts.push(tag);
                    Op::Read { span }
                }
                Work::WriteZeroes { unmap, fua } => Op::WriteZeroes { span, unmap, fua },
                Work::Trim { .. } => Op::Discard { span },
                Work::Flush | Work::BlockStatus | Work::Disconnect => Op::Flush,
                Work::Write { .. } => {
                    self.incoming = Incoming::Payload {
                        request,
                        tag,
                        span,
                        filled: 0,
                    };
                    return None;
                }
            };
            pending.hand_on(request, tag, op, world);
        }
        self.issued(request, at);
        None
    }

    /// Everything before byte `at` is with the engine.
    fn issued(&mut self, request: usize, at: u64) {
        self.incoming = Incoming::Header;
        if let Some(Some(pending)) = self.requests.get_mut(request) {
            pending.issuing = at < pending.end();
            if pending.issuing {
                self.incoming = Incoming::Issue { request, at };
            }
        }
    }

    fn payload(&mut self, staging: &mut Staging, world: &mut World<'_>) -> Option<Need> {
        let Incoming::Payload {
            request,
            tag,
            span,
            filled,
        } = &mut self.incoming
        else {
            return None;
        };
        let (request, tag, span) = (*request, *tag, *span);
        let data = staging.data();
        let missing = span.len - *filled;
        let count = data.len().min(missing as usize);
        let into = world.tags.buffer(tag).get_mut(*filled as usize..);
        if let Some((into, data)) = into
            .and_then(|into| into.get_mut(..count))
            .zip(data.get(..count))
        {
            into.copy_from_slice(data);
        }
        staging.consume(count);
        *filled += count as u32;
        let missing = span.len - *filled;
        if missing >= DIRECT {
            return Some(Need::Payload {
                tag,
                at: *filled,
                length: missing,
            });
        }
        if missing > 0 {
            return Some(Need::Bytes);
        }
        if let Some(Some(pending)) = self.requests.get_mut(request) {
            let fua = matches!(pending.work, Work::Write { fua: true });
            pending.hand_on(request, tag, Op::Write { span, fua }, world);
        }
        self.issued(request, span.end());
        None
    }

    fn drain(&mut self, staging: &mut Staging, outbox: &mut Outbox) -> Option<Need> {
        let Incoming::Drain {
            left,
            cookie,
            error,
        } = &mut self.incoming
        else {
            return None;
        };
        let count = staging.data().len().min(*left as usize);
        staging.consume(count);
        *left -= count as u32;
        if *left > 0 {
            return Some(Need::Bytes);
        }
        let (cookie, error) = (*cookie, *error);
        outbox.head(|out| push_error(out, self.agreed, cookie, error));
        self.incoming = Incoming::Header;
        None
    }

    /// `count` bytes asked for with [`Need::Payload`] are in the buffer.
    pub fn received(&mut self, count: u32) {
        if let Incoming::Payload { span, filled, .. } = &mut self.incoming {
            *filled = (*filled + count).min(span.len);
        }
    }

    /// Whether a payload is on its way into a buffer.
    pub fn holds_buffer(&self) -> bool {
        matches!(self.incoming, Incoming::Payload { .. })
    }

    /// The engine has ended a part. When it was the last, the reply goes to the outbox; `true`
    /// when instead a flush has to follow, with the same tag and owner.
    pub fn part_done(
        &mut self,
        request: usize,
        tag: u32,
        result: Result<(), IoFailure>,
        outbox: &mut Outbox,
        tags: &mut Tags,
    ) -> bool {
        let Some(entry) = self.requests.get_mut(request) else {
            return false;
        };
        let Some(pending) = entry else {
            return false;
        };
        pending.outstanding -= 1;
        if let Err(failure) = result {
            pending.failure.get_or_insert(failure.into());
        }
        let last = !pending.issuing && pending.outstanding == 0;
        let durable = pending.flushing || pending.failure.is_some();
        if last && pending.work == (Work::Trim { fua: true }) && !durable {
            pending.flushing = true;
            pending.outstanding = 1;
            return true;
        }
        if pending.work != Work::Read {
            tags.release(tag);
        }
        if last && let Some(pending) = entry.take() {
            self.free.push(request);
            pending.reply(self.agreed, outbox, tags);
        }
        false
    }

    /// Whether no request waits for an answer but one that was only partly received.
    pub fn is_settled(&self) -> bool {
        self.requests.iter().flatten().all(|p| p.issuing)
    }

    /// Gives back every tag that is not at the engine.
    pub fn release(&mut self, tags: &mut Tags) {
        if let Incoming::Payload { tag, .. } = self.incoming {
            tags.release(tag);
        }
        self.incoming = Incoming::Ended;
        for pending in self.requests.drain(..).flatten() {
            // The engine's are not freed by this: they become orphans.
            pending.parts.iter().for_each(|tag| tags.release(*tag));
        }
    }
}

impl Pending {
    fn hand_on(&mut self, request: usize, tag: u32, op: Op, world: &mut World<'_>) {
        self.outstanding += 1;
        let owner = Owner {
            slot: world.slot,
            request,
        };
        world.tags.hand_on(tag, owner);
        world.events.push(TargetEvent::Request { tag, op });
    }

    fn reply(self, agreed: Agreed, outbox: &mut Outbox, tags: &mut Tags) {
        if let Some(error) = self.failure {
            self.parts.iter().for_each(|tag| tags.release(*tag));
            outbox.head(|out| push_error(out, agreed, self.cookie, error));
            return;
        }
        if self.work != Work::Read {
            outbox.head(|out| push_done(out, agreed, self.cookie));
            return;
        }
        outbox.head(|out| push_read(out, agreed, self.cookie, self.offset, self.length));
        let mut at = self.offset;
        for tag in &self.parts {
            let part = self.work.part(at, self.end());
            outbox.data(*tag, part.len as usize);
            at = part.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::target::MAX_DATA;
    use crate::target::nbd::protocol::{CMD_READ, CMD_TRIM, CMD_WRITE};

    struct Bench {
        session: Session,
        staging: Staging,
        outbox: Outbox,
        tags: Tags,
        export: Export,
        events: Vec<TargetEvent>,
        input: Vec<u8>,
    }

    impl Bench {
        fn new(depth: u32) -> Bench {
            Bench {
                session: Session::new(Agreed {
                    structured: true,
                    allocation: true,
                }),
                staging: Staging::new(),
                outbox: Outbox::new(),
                tags: Tags::new(depth).unwrap(),
                export: Export {
                    name: String::new(),
                    description: String::new(),
                    size: 1 << 30,
                    min_block: 512,
                    discard: true,
                    read_only: false,
                },
                events: Vec::new(),
                input: Vec::new(),
            }
        }

        /// Feeds bytes; what cannot be taken now is kept for the next call.
        fn feed(&mut self, bytes: &[u8]) -> Result<Need, BadMagic> {
            self.input.extend_from_slice(bytes);
            loop {
                let need = self.session.advance(
                    &mut self.staging,
                    &mut self.outbox,
                    &mut World {
                        export: &self.export,
                        max_request: MAX_DATA * 2,
                        slot: 0,
                        tags: &mut self.tags,
                        events: &mut self.events,
                    },
                )?;
                if self.input.is_empty() {
                    return Ok(need);
                }
                let count = match need {
                    Need::Bytes => {
                        let room = self.staging.room();
                        let count = room.len().min(self.input.len());
                        room[..count].copy_from_slice(&self.input[..count]);
                        self.staging.received(count);
                        count
                    }
                    Need::Payload { tag, at, length } => {
                        let count = self.input.len().min(length as usize);
                        let into = &mut self.tags.buffer(tag)[at as usize..];
                        into[..count].copy_from_slice(&self.input[..count]);
                        self.session.received(count as u32);
                        count
                    }
                    other => return Ok(other),
                };
                self.input.drain(..count);
            }
        }

        fn ops(&mut self) -> Vec<(u32, Op)> {
            let events = self.events.drain(..);
            events
                .map(|event| match event {
                    TargetEvent::Request { tag, op } => (tag, op),
                    TargetEvent::Stopped => panic!("a session does not stop"),
                })
                .collect()
        }

        /// Ends a part; the owner when a flush has to follow.
        fn end(&mut self, tag: u32, result: Result<(), IoFailure>) -> Option<Owner> {
            let owner = self.tags.take_back(tag).flatten().unwrap();
            let (outbox, tags) = (&mut self.outbox, &mut self.tags);
            self.session
                .part_done(owner.request, tag, result, outbox, tags)
                .then_some(owner)
        }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: 1.into(),
            offset: offset.into(),
            length: length.into(),
        };
        header.as_bytes().to_vec()
    }

    #[test]
    fn a_write_is_cut_and_answered_once() {
        let mut bench = Bench::new(2);
        let mut bytes = request(CMD_WRITE, 1, 512, MAX_DATA + 512);
        bytes.extend((0..MAX_DATA + 512).map(|at| (at >> 9) as u8));
        assert_eq!(bench.feed(&bytes), Ok(Need::Bytes));
        let ops = bench.ops();
        let write = |start, len| Op::Write {
            span: Span::new(start, len),
            fua: true,
        };
        assert_eq!(ops[0].1, write(512, MAX_DATA));
        assert_eq!(ops[1].1, write(512 + u64::from(MAX_DATA), 512));
        assert_eq!(bench.tags.buffer(ops[0].0)[1024], 2);
        assert_eq!(bench.tags.buffer(ops[1].0)[0], (MAX_DATA >> 9) as u8);
        assert_eq!(bench.end(ops[1].0, Err(IoFailure::NotPrimary)), None);
        assert!(bench.outbox.is_empty() && !bench.session.is_settled());
        assert_eq!(bench.end(ops[0].0, Ok(())), None);
        assert!(bench.session.is_settled());
        assert!(bench.outbox.backlog() > 20, "an error chunk");
    }

    #[test]
    fn without_a_tag_nothing_more_is_read() {
        let mut bench = Bench::new(1);
        let mut bytes = request(CMD_READ, 0, 0, 512);
        bytes.extend(request(CMD_READ, 0, 512, 512));
        assert_eq!(bench.feed(&bytes), Ok(Need::Tags));
        let (tag, _) = bench.ops()[0];
        bench.end(tag, Err(IoFailure::NoData));
        assert_eq!(bench.tags.next_waiter(), Some(0));
        assert_eq!(bench.feed(b""), Ok(Need::Bytes));
        assert_eq!(bench.ops().len(), 1);
    }

    #[test]
    fn a_durable_trim_is_followed_by_a_flush() {
        let mut bench = Bench::new(4);
        assert_eq!(
            bench.feed(&request(CMD_TRIM, 1, 32 << 20, 64 << 20)),
            Ok(Need::Bytes)
        );
        let ops = bench.ops();
        let spans = [Span::new(32 << 20, 32 << 20), Span::new(64 << 20, 32 << 20)];
        assert_eq!(ops[0].1, Op::Discard { span: spans[0] });
        assert_eq!(ops[1].1, Op::Discard { span: spans[1] });
        assert_eq!(bench.end(ops[1].0, Ok(())), None);
        let owner = bench.end(ops[0].0, Ok(())).unwrap();
        assert!(bench.outbox.is_empty());
        bench.tags.hand_on(ops[0].0, owner);
        assert_eq!(bench.end(ops[0].0, Ok(())), None);
        assert_eq!(bench.outbox.backlog(), 20);
    }

    #[test]
    fn an_ended_connection_leaves_no_tag_behind() {
        let mut bench = Bench::new(4);
        let mut bytes = request(CMD_READ, 0, 0, 2 * MAX_DATA);
        bytes.extend(request(CMD_WRITE, 0, 0, MAX_DATA));
        bytes.extend([0; 100]);
        bench.feed(&bytes).unwrap();
        let ops = bench.ops();
        bench.end(ops[0].0, Ok(()));
        bench.session.release(&mut bench.tags);
        bench.tags.orphan(0);
        assert_eq!(bench.tags.with_engine(), 1);
        assert_eq!(bench.tags.take_back(ops[1].0), Some(None));
        let count = std::iter::from_fn(|| bench.tags.take()).count();
        assert_eq!(count, 4);
    }

    #[test]
    fn a_wrong_magic_is_the_end() {
        let mut bench = Bench::new(1);
        assert_eq!(bench.feed(&[0; 28]), Err(BadMagic(0)));
    }

    proptest! {
        /// Any requests with any payloads, ended in any order: no panic, no tag lost.
        #[test]
        fn any_stream(words in proptest::collection::vec((0u16..9, 0u16..20, 0u64..8, 0u32..6, any::<bool>()), 1..40), tail: Vec<u8>) {
            let mut bench = Bench::new(3);
            let lengths = [0, 512, 4096, 100_000, MAX_DATA, 2 * MAX_DATA];
            for (command, flags, place, length, ok) in words {
                let length = lengths[length as usize];
                let mut bytes = request(command, flags, place * 300_032, length);
                if command == CMD_WRITE { bytes.resize(28 + length as usize, 7) }
                bench.feed(&bytes).unwrap();
                loop {
                    let need = bench.feed(&[]).unwrap();
                    let ops = bench.ops();
                    for (tag, _) in &ops {
                        let result = if ok { Ok(()) } else { Err(IoFailure::Disk(5)) };
                        if let Some(owner) = bench.end(*tag, result) {
                            bench.tags.hand_on(*tag, owner);
                            bench.end(*tag, Ok(()));
                        }
                    }
                    bench.outbox.discard(&mut bench.tags);
                    if need == Need::Nothing { return Ok(()) }
                    bench.tags.next_waiter();
                    if ops.is_empty() { break }
                }
            }
            let _ = bench.feed(&tail);
            bench.session.release(&mut bench.tags);
            bench.tags.orphan(0);
            for tag in 0..3 { bench.tags.take_back(tag); }
            bench.outbox.discard(&mut bench.tags);
            prop_assert_eq!(std::iter::from_fn(|| bench.tags.take()).count(), 3);
        }
    }
}
