//! The fixed newstyle handshake of one connection, as a state machine without I/O.
//!
//! ```text
//!   greeting sent -> Flags -> Options --EXPORT_NAME, GO--> transmission
//!                               | ^                   (Step::Agreed)
//!              too long an option v |
//!                             Discard        ABORT -> Step::Ended
//! ```
//!
//! The owner calls [`Handshake::step`] with the bytes received and not yet consumed until it asks
//! for more. What cannot be answered (wrong magic, absurd lengths, unknown flags) ends the
//! connection with a typed reason; everything else gets an answer and the haggling goes on.

use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, Agreed, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES,
    Export, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, Greeting, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, MAX_STRING, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO,
    OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReply, REP_ACK, REP_ERR_INVALID,
    REP_ERR_POLICY, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
    REP_SERVER,
};

/// Option data up to this many bytes is read. A name, a context and some hundred queries fit;
/// the receive buffer of a connection must hold it and a header.
pub const MAX_OPTION_DATA: usize = 16 << 10;

/// Longer option data up to this is skipped and answered with "too big"; beyond it the client
/// is taken for garbage.
pub const MAX_SKIPPED_DATA: usize = 1 << 20;

/// Options that a client may send before it must have decided. Real ones need fewer than ten.
const MAX_OPTIONS: u32 = 128;

/// What a client is told.
#[derive(Clone, Copy, Debug)]
pub enum Offer<'a> {
    /// The export can be used; reads and writes up to `max_request` bytes are taken.
    Open {
        export: &'a Export,
        max_request: u32,
    },
    /// Whatever is asked for, the answer is this sentence.
    Refused(&'a str),
}

/// Why a handshake cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("unknown client flags {0:#x}")]
    UnknownFlags(u32),
    #[error("option magic is wrong")]
    BadMagic,
    #[error("option data of {0} bytes")]
    Absurd(u32),
    #[error("an option other than EXPORT_NAME without fixed newstyle")]
    NotFixed,
    #[error("EXPORT_NAME that cannot be granted")]
    ExportName,
    #[error("more than {MAX_OPTIONS} options")]
    TooMany,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The input holds no whole piece; call again with more behind it.
    More,
    /// This many bytes are done with; call again.
    Consumed(usize),
    /// As above, and transmission begins after them.
    Agreed(usize, Agreed),
    /// As above, and the client wants to leave: close once everything is sent.
    Ended(usize),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Flags,
    Options,
    /// Skipping the data of an option that gets "too big".
    Discard {
        option: u32,
        left: usize,
    },
}

/// The handshake of one connection.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    fixed: bool,
    no_zeroes: bool,
    agreed: Agreed,
    options: u32,
}

impl Handshake {
    /// Begins a handshake: appends the greeting.
    pub fn begin(out: &mut Vec<u8>) -> Handshake {
        let greeting = Greeting {
            magic: GREETING_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).into(),
        };
        out.extend_from_slice(greeting.as_bytes());
        Handshake {
            state: State::Flags,
            fixed: false,
            no_zeroes: false,
            agreed: Agreed::default(),
            options: 0,
        }
    }

    /// Takes one piece from the front of `input` and appends the answer to `out`.
    pub fn step(
        &mut self,
        offer: Offer<'_>,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        match self.state {
            State::Flags => self.flags(input),
            State::Options => self.option(offer, input, out),
            State::Discard { option, left } => {
                let taken = left.min(input.len());
                if taken == 0 {
                    return Ok(Step::More);
                }
                if taken < left {
                    self.state = State::Discard {
                        option,
                        left: left - taken,
                    };
                } else {
                    self.state = State::Options;
                    refuse(out, option, REP_ERR_TOO_BIG, "the option is too long");
                }
                Ok(Step::Consumed(taken))
            }
        }
    }

    fn flags(&mut self, input: &[u8]) -> Result<Step, HandshakeError> {
        let Some(bytes) = input.first_chunk::<4>() else {
            return Ok(Step::More);
        };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return Err(HandshakeError::UnknownFlags(flags));
        }
        self.fixed = flags & CLIENT_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        self.state = State::Options;
        Ok(Step::Consumed(4))
    }

    fn option(
        &mut self,
        offer: Offer<'_>,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        let Ok((header, rest)) = OptionHeader::ref_from_prefix(input) else {
            return Ok(Step::More);
        };
        if header.magic.get() != OPTION_MAGIC {
            return Err(HandshakeError::BadMagic);
        }
        let (option, length) = (header.option.get(), header.length.get());
        if !self.fixed && option != OPT_EXPORT_NAME {
            return Err(HandshakeError::NotFixed);
        }
        let size = length as usize;
        if size > MAX_SKIPPED_DATA {
            return Err(HandshakeError::Absurd(length));
        }
        if size <= MAX_OPTION_DATA && rest.len() < size {
            return Ok(Step::More);
        }
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(HandshakeError::TooMany);
        }
        let before = size_of::<OptionHeader>();
        if size > MAX_OPTION_DATA {
            if option == OPT_EXPORT_NAME {
                return Err(HandshakeError::ExportName);
            }
            self.state = State::Discard { option, left: size };
            return Ok(Step::Consumed(before));
        }
        let data = rest.get(..size).unwrap_or_default();
        self.answer(offer, option, data, before + size, out)
    }

    /// Answers one whole option; `end` is where it ends in the input.
    fn answer(
        &mut self,
        offer: Offer<'_>,
        option: u32,
        data: &[u8],
        end: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        match option {
            OPT_EXPORT_NAME => return self.export_name(offer, data, end, out),
            OPT_ABORT => {
                push(out, option, REP_ACK, &[]);
                return Ok(Step::Ended(end));
            }
            OPT_LIST => list(offer, data, out),
            OPT_INFO | OPT_GO => {
                if self.info(offer, option, data, out) && option == OPT_GO {
                    return Ok(Step::Agreed(end, self.agreed));
                }
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                push(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY => refuse(out, option, REP_ERR_INVALID, "no data belongs here"),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.meta_context(offer, option, data, out);
            }
            // STARTTLS among them: encryption is not offered here.
            _ => refuse(out, option, REP_ERR_UNSUP, "the option is not supported"),
        }
        Ok(Step::Consumed(end))
    }

    /// EXPORT_NAME has no way to say no but to close the connection.
    fn export_name(
        &self,
        offer: Offer<'_>,
        data: &[u8],
        end: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        let Offer::Open { export, .. } = offer else {
            return Err(HandshakeError::ExportName);
        };
        if !names(export, data) {
            return Err(HandshakeError::ExportName);
        }
        out.extend_from_slice(&export.size.to_be_bytes());
        let flags = export.transmission_flags(self.agreed.structured);
        out.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Agreed(end, self.agreed))
    }

    /// Answers INFO or GO; true when it was granted.
    fn info(&self, offer: Offer<'_>, option: u32, data: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((name, wanted)) = parse_info(data) else {
            refuse(out, option, REP_ERR_INVALID, "the lengths do not add up");
            return false;
        };
        let Some((export, max_request)) = granted(offer, option, name, out) else {
            return false;
        };
        let mut item = Vec::with_capacity(16);
        item.extend_from_slice(&INFO_EXPORT.to_be_bytes());
        item.extend_from_slice(&export.size.to_be_bytes());
        let flags = export.transmission_flags(self.agreed.structured);
        item.extend_from_slice(&flags.to_be_bytes());
        push(out, option, REP_INFO, &item);
        for kind in [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE] {
            // However often it was asked for, one answer is enough.
            if !wanted.chunks_exact(2).any(|w| w == kind.to_be_bytes()) {
                continue;
            }
            item.clear();
            item.extend_from_slice(&kind.to_be_bytes());
            match kind {
                INFO_NAME => item.extend_from_slice(export.name.as_bytes()),
                INFO_DESCRIPTION => item.extend_from_slice(export.description.as_bytes()),
                _ => {
                    for size in export.block_sizes(max_request) {
                        item.extend_from_slice(&size.to_be_bytes());
                    }
                }
            }
            push(out, option, REP_INFO, &item);
        }
        push(out, option, REP_ACK, &[]);
        true
    }

    fn meta_context(&mut self, offer: Offer<'_>, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // A new selection replaces the old one even when it fails.
            self.agreed.allocation = false;
        }
        if !self.agreed.structured {
            refuse(out, option, REP_ERR_INVALID, "needs structured replies");
            return;
        }
        let Some((name, matched)) = parse_queries(data, set) else {
            refuse(out, option, REP_ERR_INVALID, "the lengths do not add up");
            return;
        };
        if granted(offer, option, name, out).is_none() {
            return;
        }
        if matched {
            let id = if set { ALLOCATION_CONTEXT_ID } else { 0 };
            let mut item = Vec::with_capacity(4 + ALLOCATION_CONTEXT.len());
            item.extend_from_slice(&id.to_be_bytes());
            item.extend_from_slice(ALLOCATION_CONTEXT);
            push(out, option, REP_META_CONTEXT, &item);
            self.agreed.allocation |= set;
        }
        push(out, option, REP_ACK, &[]);
    }
}

/// The export, if the offer stands and `name` means it; otherwise the refusal is appended.
fn granted<'a>(
    offer: Offer<'a>,
    option: u32,
    name: &[u8],
    out: &mut Vec<u8>,
) -> Option<(&'a Export, u32)> {
    match offer {
        Offer::Open {
            export,
            max_request,
        } if names(export, name) => Some((export, max_request)),
        Offer::Open { .. } => {
            refuse(out, option, REP_ERR_UNKNOWN, "no export has this name");
            None
        }
        Offer::Refused(reason) => {
            refuse(out, option, REP_ERR_POLICY, reason);
            None
        }
    }
}

fn names(export: &Export, name: &[u8]) -> bool {
    name.is_empty() || name == export.name.as_bytes()
}

fn list(offer: Offer<'_>, data: &[u8], out: &mut Vec<u8>) {
    if !data.is_empty() {
        refuse(out, OPT_LIST, REP_ERR_INVALID, "no data belongs here");
        return;
    }
    match offer {
        Offer::Open { export, .. } => {
            // Names are at most MAX_STRING long.
            let mut item = (export.name.len() as u32).to_be_bytes().to_vec();
            item.extend_from_slice(export.name.as_bytes());
            item.extend_from_slice(export.description.as_bytes());
            push(out, OPT_LIST, REP_SERVER, &item);
            push(out, OPT_LIST, REP_ACK, &[]);
        }
        Offer::Refused(reason) => refuse(out, OPT_LIST, REP_ERR_POLICY, reason),
    }
}

/// Takes a string with its 32-bit length from the front.
fn take_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_STRING {
        return None;
    }
    rest.split_at_checked(length)
}

/// The name and the wanted kinds (two bytes each) of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = take_string(data)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    (kinds.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some((name, kinds))
}

/// The name, and whether the queries of a metadata option ask for the allocation context.
fn parse_queries(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let (name, rest) = take_string(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    // To list with no query is to ask for everything.
    let mut matched = count == 0 && !set;
    for _ in 0..count {
        let (query, after) = take_string(rest)?;
        matched |= query == ALLOCATION_CONTEXT || (!set && query == b"base:");
        rest = after;
    }
    rest.is_empty().then_some((name, matched))
}

fn push(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let reply = OptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        // Data is a name and a description at most.
        length: (data.len() as u32).into(),
    };
    out.extend_from_slice(reply.as_bytes());
    out.extend_from_slice(data);
}

fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, reason: &str) {
    push(out, option, kind, reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::target::nbd::protocol::{
        MAX_REQUEST, OPT_STARTTLS, TRANSMIT_CAN_MULTI_CONN, TRANSMIT_SEND_DF,
    };

    fn export() -> Export {
        Export {
            name: "r0".into(),
            description: "a test disk".into(),
            size: 1 << 20,
            min_block: 512,
            discard: true,
            read_only: false,
        }
    }

    struct Client {
        handshake: Handshake,
        export: Export,
        refusal: Option<&'static str>,
    }

    /// Kind and data of the answers, and what became of the connection.
    type Talk = (Vec<(u32, Vec<u8>)>, Result<Step, HandshakeError>);

    impl Client {
        fn new(flags: u32) -> Client {
            let mut out = Vec::new();
            let mut handshake = Handshake::begin(&mut out);
            assert_eq!(&out, b"NBDMAGICIHAVEOPT\x00\x03");
            let mut none = Vec::new();
            let export = export();
            let offer = Offer::Open {
                export: &export,
                max_request: MAX_REQUEST,
            };
            let step = handshake.step(offer, &flags.to_be_bytes(), &mut none);
            assert_eq!(step, Ok(Step::Consumed(4)));
            Client {
                handshake,
                export,
                refusal: None,
            }
        }

        fn raw(&mut self, mut input: &[u8]) -> (Vec<u8>, Result<Step, HandshakeError>) {
            let mut out = Vec::new();
            loop {
                let offer = match self.refusal {
                    Some(reason) => Offer::Refused(reason),
                    None => Offer::Open {
                        export: &self.export,
                        max_request: MAX_REQUEST,
                    },
                };
                match self.handshake.step(offer, input, &mut out) {
                    Ok(Step::Consumed(n)) => input = &input[n..],
                    other => return (out, other),
                }
            }
        }

        fn option(&mut self, option: u32, data: &[u8]) -> Talk {
            let (out, end) = self.raw(&encode(option, data));
            let mut answers = Vec::new();
            let mut rest = &out[..];
            while let Ok((reply, after)) = OptionReply::ref_from_prefix(rest) {
                assert_eq!(reply.magic.get(), OPTION_REPLY_MAGIC);
                assert_eq!(reply.option.get(), option);
                let (data, after) = after.split_at(reply.length.get() as usize);
                answers.push((reply.kind.get(), data.to_vec()));
                rest = after;
            }
            assert!(rest.is_empty());
            (answers, end)
        }

        fn kinds(&mut self, option: u32, data: &[u8]) -> Vec<u32> {
            let (answers, _) = self.option(option, data);
            answers.into_iter().map(|(kind, _)| kind).collect()
        }
    }

    fn encode(option: u32, data: &[u8]) -> Vec<u8> {
        let header = OptionHeader {
            magic: OPTION_MAGIC.into(),
            option: option.into(),
            length: (data.len() as u32).into(),
        };
        [header.as_bytes(), data].concat()
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text].concat()
    }

    fn info(name: &[u8], kinds: &[u16]) -> Vec<u8> {
        let mut data = string(name);
        data.extend((kinds.len() as u16).to_be_bytes());
        data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
        data
    }

    fn queries(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
        let mut data = string(name);
        data.extend((queries.len() as u32).to_be_bytes());
        data.extend(queries.iter().flat_map(|query| string(query)));
        data
    }

    #[test]
    fn go_describes_the_export_and_begins() {
        let mut client = Client::new(3);
        assert_eq!(client.kinds(OPT_STRUCTURED_REPLY, b""), [REP_ACK]);
        let kinds = [INFO_BLOCK_SIZE, INFO_NAME, INFO_DESCRIPTION, 99, INFO_NAME];
        let (answers, end) = client.option(OPT_GO, &info(b"r0", &kinds));
        assert!(matches!(
            end,
            Ok(Step::Agreed(
                _,
                Agreed {
                    structured: true,
                    allocation: false
                }
            ))
        ));
        let kinds: Vec<u32> = answers.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [REP_INFO, REP_INFO, REP_INFO, REP_INFO, REP_ACK]);
        let first = &answers[0].1;
        assert_eq!(&first[..10], b"\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00");
        let flags = u16::from_be_bytes([first[10], first[11]]);
        let both = TRANSMIT_SEND_DF | TRANSMIT_CAN_MULTI_CONN;
        assert_eq!(flags & both, both);
        assert_eq!(answers[1].1, b"\x00\x01r0");
        assert_eq!(answers[2].1, b"\x00\x02a test disk");
        assert_eq!(
            answers[3].1,
            b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00"
        );
    }

    #[test]
    fn info_and_unknown_names_keep_haggling() {
        let mut client = Client::new(3);
        assert_eq!(client.kinds(OPT_INFO, &info(b"", &[])), [REP_INFO, REP_ACK]);
        assert_eq!(
            client.kinds(OPT_GO, &info(b"other", &[])),
            [REP_ERR_UNKNOWN]
        );
        assert_eq!(client.kinds(OPT_STARTTLS, b""), [REP_ERR_UNSUP]);
        assert_eq!(client.kinds(4711, b"abc"), [REP_ERR_UNSUP]);
        let (answers, end) = client.option(OPT_LIST, b"");
        assert_eq!(
            answers[0],
            (REP_SERVER, b"\x00\x00\x00\x02r0a test disk".to_vec())
        );
        assert_eq!((answers[1].0, end), (REP_ACK, Ok(Step::More)));
        let (answers, end) = client.option(OPT_ABORT, b"");
        assert_eq!((answers[0].0, end), (REP_ACK, Ok(Step::Ended(16))));
    }

    #[test]
    fn wrong_lengths_are_invalid() {
        let mut client = Client::new(3);
        for option in [OPT_GO, OPT_INFO] {
            for data in [
                &b""[..],
                b"\x00",
                b"\x00\x00\x00\x09r0\x00\x00",
                b"\x00\x00\x00\x02r0\x00\x01",
            ] {
                assert_eq!(client.kinds(option, data), [REP_ERR_INVALID]);
            }
            let long = info(&[b'x'; MAX_STRING + 1], &[]);
            assert_eq!(client.kinds(option, &long), [REP_ERR_INVALID]);
        }
        assert_eq!(client.kinds(OPT_LIST, b"x"), [REP_ERR_INVALID]);
        assert_eq!(client.kinds(OPT_STRUCTURED_REPLY, b"x"), [REP_ERR_INVALID]);
        assert_eq!(
            client.kinds(OPT_LIST, &[0; MAX_OPTION_DATA + 1]),
            [REP_ERR_TOO_BIG]
        );
        assert_eq!(
            client.kinds(OPT_LIST, &[0; MAX_SKIPPED_DATA]),
            [REP_ERR_TOO_BIG]
        );
        let (_, end) = client.option(OPT_LIST, &[0; MAX_SKIPPED_DATA + 1]);
        assert_eq!(
            end,
            Err(HandshakeError::Absurd(MAX_SKIPPED_DATA as u32 + 1))
        );
    }

    #[test]
    fn contexts_are_listed_and_selected() {
        let mut client = Client::new(3);
        let alloc = queries(b"r0", &[b"qemu:dirty", ALLOCATION_CONTEXT]);
        assert_eq!(
            client.kinds(OPT_SET_META_CONTEXT, &alloc),
            [REP_ERR_INVALID]
        );
        assert_eq!(client.kinds(OPT_STRUCTURED_REPLY, b""), [REP_ACK]);
        let found = [REP_META_CONTEXT, REP_ACK];
        assert_eq!(
            client.kinds(OPT_LIST_META_CONTEXT, &queries(b"r0", &[])),
            found
        );
        assert_eq!(
            client.kinds(OPT_LIST_META_CONTEXT, &queries(b"", &[b"base:"])),
            found
        );
        assert_eq!(
            client.kinds(OPT_LIST_META_CONTEXT, &queries(b"r0", &[b"x:"])),
            [REP_ACK]
        );
        assert_eq!(
            client.kinds(OPT_SET_META_CONTEXT, &queries(b"no", &[])),
            [REP_ERR_UNKNOWN]
        );
        let (answers, _) = client.option(OPT_SET_META_CONTEXT, &alloc);
        assert_eq!(answers[0].1, b"\x00\x00\x00\x01base:allocation");
        let (_, end) = client.option(OPT_GO, &info(b"r0", &[]));
        assert!(matches!(
            end,
            Ok(Step::Agreed(
                _,
                Agreed {
                    allocation: true,
                    ..
                }
            ))
        ));
        // The last selection counts, even an empty or a broken one.
        assert_eq!(client.kinds(OPT_SET_META_CONTEXT, b"x"), [REP_ERR_INVALID]);
        let (_, end) = client.option(OPT_GO, &info(b"r0", &[]));
        assert!(matches!(
            end,
            Ok(Step::Agreed(
                _,
                Agreed {
                    allocation: false,
                    ..
                }
            ))
        ));
    }

    #[test]
    fn export_name_pads_only_for_old_clients() {
        for (flags, length) in [(0, 134), (1, 134), (3, 10)] {
            let mut client = Client::new(flags);
            let (out, end) = client.raw(&encode(OPT_EXPORT_NAME, b"r0"));
            assert_eq!(out.len(), length);
            assert!(matches!(end, Ok(Step::Agreed(18, _))));
            let (out, end) = client.raw(&encode(OPT_EXPORT_NAME, b"r1"));
            assert!(out.is_empty());
            assert_eq!(end, Err(HandshakeError::ExportName));
        }
        let (_, end) = Client::new(0).raw(&encode(OPT_LIST, b""));
        assert_eq!(end, Err(HandshakeError::NotFixed));
    }

    #[test]
    fn a_refusing_server_says_why() {
        let mut client = Client::new(3);
        client.refusal = Some("this node is secondary; the primary is alpha");
        assert_eq!(client.kinds(OPT_STRUCTURED_REPLY, b""), [REP_ACK]);
        let set = queries(b"r0", &[ALLOCATION_CONTEXT]);
        let asked = [
            (OPT_GO, info(b"r0", &[])),
            (OPT_INFO, info(b"", &[])),
            (OPT_LIST, Vec::new()),
            (OPT_SET_META_CONTEXT, set),
        ];
        for (option, data) in asked {
            let (answers, end) = client.option(option, &data);
            assert_eq!(end, Ok(Step::More));
            let text = client.refusal.unwrap().as_bytes().to_vec();
            assert_eq!(answers, [(REP_ERR_POLICY, text)]);
        }
        let (_, end) = client.raw(&encode(OPT_EXPORT_NAME, b"r0"));
        assert_eq!(end, Err(HandshakeError::ExportName));
    }

    #[test]
    fn garbage_ends_the_connection() {
        let mut out = Vec::new();
        let mut handshake = Handshake::begin(&mut out);
        let step = handshake.step(Offer::Refused(""), b"\xff\xff\xff\xff", &mut out);
        assert_eq!(step, Err(HandshakeError::UnknownFlags(u32::MAX)));
        let (_, end) = Client::new(3).raw(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(end, Err(HandshakeError::BadMagic));
        let many = encode(OPT_LIST, b"").repeat(129);
        let (_, end) = Client::new(3).raw(&many);
        assert_eq!(end, Err(HandshakeError::TooMany));
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let text = proptest::collection::vec(any::<u8>(), 0..64);
        prop_oneof![
            text.clone(),
            (0u32..13, text.clone()).prop_map(|(option, data)| encode(option, &data)),
            (6u32..8, proptest::collection::vec(0u16..5, 0..6))
                .prop_map(|(option, kinds)| encode(option, &info(b"r0", &kinds))),
            (9u32..11, text).prop_map(|(option, query)| encode(
                option,
                &queries(b"", &[&query, ALLOCATION_CONTEXT])
            )),
            Just(encode(OPT_STRUCTURED_REPLY, b"")),
        ]
    }

    proptest! {
        /// Any bytes: no panic, nothing consumed that is not there, and the same answers however
        /// the bytes are cut into receives.
        #[test]
        fn any_bytes_in_any_pieces(pieces in proptest::collection::vec(piece(), 0..12), cut in 1usize..40) {
            let bytes = pieces.concat();
            let (whole, end) = Client::new(3).raw(&bytes);
            let mut client = Client::new(3);
            let (mut kept, mut out, mut last) = (Vec::new(), Vec::new(), Ok(Step::More));
            'feed: for chunk in bytes.chunks(cut) {
                kept.extend_from_slice(chunk);
                loop {
                    let offer = Offer::Open { export: &client.export, max_request: MAX_REQUEST };
                    last = client.handshake.step(offer, &kept, &mut out);
                    match last {
                        Ok(Step::More) => break,
                        Ok(Step::Consumed(n)) => { kept.drain(..n); }
                        _ => break 'feed,
                    }
                }
            }
            prop_assert_eq!(whole, out);
            prop_assert_eq!(end, last);
        }
    }
}
