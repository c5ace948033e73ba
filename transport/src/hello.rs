//! The handshake of a fresh connection, before it carries frames. Sans-IO.
//!
//! The driver sends what [`Handshake::output`] gives, reads at most [`Handshake::wants`] bytes and
//! passes them to [`Handshake::input`], until that says [`Progress::Done`] or fails. It never reads
//! more than is wanted, because frames may follow at once. After a failure it still sends the
//! output, which tells the other side why, and closes. It also limits the time that all of this
//! may take.
//!
//! With a shared secret both sides prove that they know it, over everything that was said before
//! (so that nobody in between can lower version or features). The listener proves nothing to a
//! dialer that has not. Without a secret on both sides anybody may connect; with a secret on one
//! side only, nobody. The secret authenticates the start of a connection; it does not protect the
//! bytes that follow from an attacker on the network. The bytes are described in `WIRE.md`, which
//! is part of the documentation of [`crate::wire`].

use crate::body::Cursor;
use crate::wire::{BodyFault, MAX_NODES, VERSION};

/// "LKHS", the same in all versions.
const MAGIC: u32 = u32::from_le_bytes(*b"LKHS");
/// Bytes before a message's body.
const PREFIX_LEN: usize = 12;
/// Longest body; bounds what an unknown peer can make us store.
const MAX_BODY: usize = 512;
/// Longest resource name, bytes.
pub const MAX_NAME: usize = 128;
const NONCE_LEN: usize = 32;
const PROOF_LEN: usize = 32;

const MESSAGE_HELLO: u8 = 1;
const MESSAGE_PROOF: u8 = 2;
const MESSAGE_VERDICT: u8 = 3;

const FLAG_SECRET: u8 = 1;
const WELCOME: u8 = 0;

/// Separates this use of the secret from any other.
const KEY_CONTEXT: &str = "lockstep 2026-11 replication link peer authentication";

/// Who opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Dialer,
    Listener,
}

impl Direction {
    fn code(self) -> u8 {
        match self {
            Direction::Dialer => 0,
            Direction::Listener => 1,
        }
    }

    fn other(self) -> Direction {
        match self {
            Direction::Dialer => Direction::Listener,
            Direction::Listener => Direction::Dialer,
        }
    }
}

/// Key made from the secret that the nodes share. Never shown.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// `None` when `secret` is empty: that is no secret.
    pub fn new(secret: &[u8]) -> Option<Secret> {
        (!secret.is_empty()).then(|| Secret(blake3::derive_key(KEY_CONTEXT, secret)))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What this node says about itself and expects of the other.
#[derive(Clone, Debug)]
pub struct HelloConfig {
    pub direction: Direction,
    /// Resource name, 1 to [`MAX_NAME`] bytes.
    pub resource: String,
    pub node: u8,
    pub peer: u8,
    pub secret: Option<Secret>,
    /// Feature bits that this node can use.
    pub features: u64,
    /// Random and never used before.
    pub nonce: [u8; NONCE_LEN],
}

/// What both sides settled on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub version: u16,
    /// Bits that both sides have.
    pub features: u64,
}

/// Why one side does not want the connection; travels as a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("resource names differ")]
    Resource,
    #[error("node ids do not match the configuration")]
    Node,
    #[error("no common protocol version")]
    Version,
    #[error("shared secrets differ")]
    Authentication,
    #[error("there is a connection already, or none is wanted now")]
    Busy,
    #[error("both sides dialed or both listened")]
    Direction,
    #[error("handshake is malformed")]
    Malformed,
    #[error("reason {0}")]
    Other(u8),
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Refusal::Resource => 1,
            Refusal::Node => 2,
            Refusal::Version => 3,
            Refusal::Authentication => 4,
            Refusal::Busy => 5,
            Refusal::Direction => 6,
            Refusal::Malformed => 7,
            Refusal::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Refusal {
        match code {
            1 => Refusal::Resource,
            2 => Refusal::Node,
            3 => Refusal::Version,
            4 => Refusal::Authentication,
            5 => Refusal::Busy,
            6 => Refusal::Direction,
            7 => Refusal::Malformed,
            code => Refusal::Other(code),
        }
    }
}

/// How a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("refused the peer: {0}")]
    Refused(Refusal),
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refusal),
    /// The configuration cannot be put into a message.
    #[error("resource name or node id cannot be sent")]
    Config,
}

/// What a call of [`Handshake::input`] led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    /// Send the output that is left; then the connection carries frames.
    Done(Agreed),
}

/// What is awaited.
///
/// ```text
/// Hello -> Proof -> Verdict -> Done
///   +--------+---------+-----> Failed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Hello,
    Proof(Agreed),
    Verdict(Agreed),
    Done(Agreed),
    Failed(HelloError),
}

/// One side of a handshake.
#[derive(Debug)]
pub struct Handshake {
    config: HelloConfig,
    phase: Phase,
    /// Bytes of the message that is coming in.
    incoming: Vec<u8>,
    output: Vec<u8>,
    own_hello: Vec<u8>,
    peer_hello: Vec<u8>,
}

impl Handshake {
    /// A handshake on a connection that nothing has been sent or received on.
    pub fn new(config: HelloConfig) -> Result<Handshake, HelloError> {
        let name = config.resource.len();
        if name == 0 || name > MAX_NAME || config.node >= MAX_NODES || config.peer >= MAX_NODES {
            return Err(HelloError::Config);
        }
        let mut handshake = Handshake {
            own_hello: encode_hello(&config),
            config,
            phase: Phase::Hello,
            incoming: Vec::with_capacity(PREFIX_LEN + MAX_BODY),
            output: Vec::new(),
            peer_hello: Vec::new(),
        };
        if handshake.config.direction == Direction::Dialer {
            handshake.say_hello();
        }
        Ok(handshake)
    }

    /// Bytes to send now.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// How many bytes may be read now; 0 when the handshake is over.
    pub fn wants(&self) -> usize {
        match self.phase {
            Phase::Done(_) | Phase::Failed(_) => 0,
            Phase::Hello | Phase::Proof(_) | Phase::Verdict(_) => {
                let body = body_len(&self.incoming).unwrap_or(0);
                (PREFIX_LEN + body).saturating_sub(self.incoming.len())
            }
        }
    }

    /// Takes bytes that were read, at most [`Handshake::wants`]; more are a malformed handshake.
    pub fn input(&mut self, bytes: &[u8]) -> Result<Progress, HelloError> {
        if bytes.len() > self.wants() {
            return Err(self.refuse(Refusal::Malformed));
        }
        self.incoming.extend_from_slice(bytes);
        if self.wants() == 0 && !self.is_over() {
            let message = std::mem::take(&mut self.incoming);
            let done = decode_message(&message)
                .and_then(|(kind, body)| self.message(kind, &message, body));
            if let Err(error) = done {
                return Err(match error {
                    HelloError::Refused(refusal) => self.refuse(refusal),
                    other => self.fail(other),
                });
            }
        }
        match self.phase {
            Phase::Done(agreed) => Ok(Progress::Done(agreed)),
            Phase::Failed(error) => Err(error),
            Phase::Hello | Phase::Proof(_) | Phase::Verdict(_) => Ok(Progress::More),
        }
    }

    /// Ends the handshake from this side, unless it is over, and leaves a message that says why in
    /// the output. Returns how it ended.
    pub fn refuse(&mut self, refusal: Refusal) -> HelloError {
        if !self.is_over() {
            put_message(&mut self.output, MESSAGE_VERDICT, &[refusal.code()]);
        }
        self.fail(HelloError::Refused(refusal))
    }

    fn fail(&mut self, error: HelloError) -> HelloError {
        if let Phase::Failed(first) = self.phase {
            return first;
        }
        self.phase = Phase::Failed(error);
        error
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done(_) | Phase::Failed(_))
    }

    fn say_hello(&mut self) {
        self.output.extend_from_slice(&self.own_hello);
    }

    /// A complete message; `whole` with its prefix.
    fn message(&mut self, kind: u8, whole: &[u8], body: &[u8]) -> Result<(), HelloError> {
        match (kind, self.phase) {
            (MESSAGE_HELLO, Phase::Hello) => self.hello(whole, body),
            (MESSAGE_PROOF, Phase::Proof(agreed)) => self.proof(agreed, body),
            (MESSAGE_VERDICT, phase) => match (body, phase) {
                ([WELCOME], Phase::Verdict(agreed)) => {
                    if self.config.direction == Direction::Dialer {
                        put_message(&mut self.output, MESSAGE_VERDICT, &[WELCOME]);
                    }
                    self.phase = Phase::Done(agreed);
                    Ok(())
                }
                ([code], _) if *code != WELCOME => {
                    Err(HelloError::RefusedByPeer(Refusal::from_code(*code)))
                }
                _ => Err(HelloError::Refused(Refusal::Malformed)),
            },
            _ => Err(HelloError::Refused(Refusal::Malformed)),
        }
    }

    fn hello(&mut self, whole: &[u8], body: &[u8]) -> Result<(), HelloError> {
        let hello = PeerHello::decode(body).map_err(|_| HelloError::Refused(Refusal::Malformed))?;
        let agreed = judge(&self.config, &hello).map_err(HelloError::Refused)?;
        self.peer_hello = whole.to_vec();
        match self.config.direction {
            Direction::Dialer => {
                let proof = self.make_proof(Direction::Dialer);
                put_message(&mut self.output, MESSAGE_PROOF, proof.as_bytes());
            }
            Direction::Listener => self.say_hello(),
        }
        self.phase = Phase::Proof(agreed);
        Ok(())
    }

    fn proof(&mut self, agreed: Agreed, body: &[u8]) -> Result<(), HelloError> {
        let proof: [u8; PROOF_LEN] = body
            .try_into()
            .map_err(|_| HelloError::Refused(Refusal::Malformed))?;
        // Compared in constant time by `blake3::Hash`.
        if self.make_proof(self.config.direction.other()) != blake3::Hash::from_bytes(proof) {
            return Err(HelloError::Refused(Refusal::Authentication));
        }
        if self.config.direction == Direction::Listener {
            let own = self.make_proof(Direction::Listener);
            put_message(&mut self.output, MESSAGE_PROOF, own.as_bytes());
            put_message(&mut self.output, MESSAGE_VERDICT, &[WELCOME]);
        }
        self.phase = Phase::Verdict(agreed);
        Ok(())
    }

    /// What `prover` must send: a hash of both hellos, keyed with the secret if there is one.
    fn make_proof(&self, prover: Direction) -> blake3::Hash {
        let mut hasher = match &self.config.secret {
            Some(Secret(key)) => blake3::Hasher::new_keyed(key),
            None => blake3::Hasher::new(),
        };
        let (dialer, listener) = match self.config.direction {
            Direction::Dialer => (&self.own_hello, &self.peer_hello),
            Direction::Listener => (&self.peer_hello, &self.own_hello),
        };
        // The hellos carry their lengths, so the parts cannot be shifted against each other.
        hasher.update(&[prover.code()]);
        hasher.update(dialer);
        hasher.update(listener);
        hasher.finalize()
    }
}

/// The other side's hello.
struct PeerHello<'a> {
    min_version: u16,
    max_version: u16,
    features: u64,
    node: u8,
    peer: u8,
    direction: u8,
    has_secret: bool,
    resource: &'a [u8],
}

impl PeerHello<'_> {
    /// Bytes after the name belong to later versions.
    fn decode(body: &[u8]) -> Result<PeerHello<'_>, BodyFault> {
        let mut cursor = Cursor(body);
        let min_version = cursor.u16()?;
        let max_version = cursor.u16()?;
        let features = cursor.u64()?;
        let [node, peer, direction, flags] = cursor.array()?;
        cursor.array::<NONCE_LEN>()?;
        let len = usize::from(cursor.u8()?);
        Ok(PeerHello {
            min_version,
            max_version,
            features,
            node,
            peer,
            direction,
            has_secret: flags & FLAG_SECRET != 0,
            resource: cursor.bytes(len)?,
        })
    }
}

/// Whether the other side is the one that is expected. What is wrong is looked for from the most
/// telling to the least.
fn judge(config: &HelloConfig, hello: &PeerHello<'_>) -> Result<Agreed, Refusal> {
    let version = VERSION.min(hello.max_version);
    if version < VERSION.max(hello.min_version) {
        return Err(Refusal::Version);
    }
    if hello.resource != config.resource.as_bytes() {
        return Err(Refusal::Resource);
    }
    if hello.node != config.peer || hello.peer != config.node {
        return Err(Refusal::Node);
    }
    if hello.direction != config.direction.other().code() {
        return Err(Refusal::Direction);
    }
    if hello.has_secret != config.secret.is_some() {
        return Err(Refusal::Authentication);
    }
    Ok(Agreed {
        version,
        features: config.features & hello.features,
    })
}

fn encode_hello(config: &HelloConfig) -> Vec<u8> {
    let mut body = Vec::with_capacity(MAX_BODY);
    body.extend_from_slice(&VERSION.to_le_bytes());
    body.extend_from_slice(&VERSION.to_le_bytes());
    body.extend_from_slice(&config.features.to_le_bytes());
    let flags = if config.secret.is_some() {
        FLAG_SECRET
    } else {
        0
    };
    let direction = config.direction.code();
    body.extend_from_slice(&[config.node, config.peer, direction, flags]);
    body.extend_from_slice(&config.nonce);
    body.push(config.resource.len() as u8);
    body.extend_from_slice(config.resource.as_bytes());
    let mut message = Vec::with_capacity(PREFIX_LEN + body.len());
    put_message(&mut message, MESSAGE_HELLO, &body);
    message
}

/// Appends a message. `body` is at most `MAX_BODY` bytes.
fn put_message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&(body.len() as u16).to_le_bytes());
    let crc = message_crc(out.get(start..).unwrap_or(&[]), body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// Checksum over the first 8 bytes of the prefix and the body.
fn message_crc(prefix: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(prefix);
    hasher.update(body);
    hasher.finalize()
}

/// Length of the body, once the prefix is there. What is too long counts as none: the message is
/// then refused at the end of its prefix.
fn body_len(message: &[u8]) -> Option<usize> {
    let [low, high] = message.first_chunk::<PREFIX_LEN>()?.get(6..8)? else {
        return None;
    };
    let len = usize::from(u16::from_le_bytes([*low, *high]));
    (len <= MAX_BODY).then_some(len)
}

/// Kind and body of a complete message.
fn decode_message(message: &[u8]) -> Result<(u8, &[u8]), HelloError> {
    let decode = || {
        let mut cursor = Cursor(message);
        let magic = cursor.u32()?;
        let kind = cursor.u8()?;
        let reserved = cursor.u8()?;
        let len = cursor.u16()?;
        let crc = cursor.u32()?;
        let body = cursor.bytes(usize::from(len))?;
        let prefix = message.get(..8).unwrap_or(&[]);
        let good = magic == MAGIC && reserved == 0 && message_crc(prefix, body) == crc;
        cursor.end()?;
        Ok::<_, BodyFault>((good, kind, body))
    };
    match decode() {
        Ok((true, kind, body)) => Ok((kind, body)),
        Ok((false, ..)) | Err(_) => Err(HelloError::Refused(Refusal::Malformed)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Agreed = Agreed {
        version: 1,
        features: 0b0100,
    };

    fn config(direction: Direction, secret: &str) -> HelloConfig {
        let (node, peer) = match direction {
            Direction::Dialer => (0, 1),
            Direction::Listener => (1, 0),
        };
        HelloConfig {
            direction,
            resource: "r0".into(),
            node,
            peer,
            secret: Secret::new(secret.as_bytes()),
            features: if node == 0 { 0b0110 } else { 0b1100 },
            nonce: [node + 7; NONCE_LEN],
        }
    }

    fn dialer(secret: &str) -> HelloConfig {
        config(Direction::Dialer, secret)
    }

    fn listener(secret: &str) -> HelloConfig {
        config(Direction::Listener, secret)
    }

    type Ending = Result<Progress, HelloError>;

    /// Moves output to the other side, reading only what is wanted, until neither says more.
    /// `tamper` sees each piece with the number of bytes that went before it in that direction.
    fn converse(
        dialer: HelloConfig,
        listener: HelloConfig,
        mut tamper: impl FnMut(Direction, usize, &mut [u8]),
    ) -> (Ending, Ending) {
        let new = |config| Handshake::new(config).expect("config");
        let mut sides = [new(dialer), new(listener)];
        let mut endings = [Ok(Progress::More); 2];
        let mut pending: [Vec<u8>; 2] = Default::default();
        let mut passed = [0, 0];
        loop {
            let mut moved = false;
            for (from, to) in [(0, 1), (1, 0)] {
                let mut output = sides[from].output();
                let direction = [Direction::Dialer, Direction::Listener][from];
                tamper(direction, passed[from], &mut output);
                passed[from] += output.len();
                pending[to].extend(output);
                let count = sides[to].wants().min(pending[to].len());
                if count > 0 {
                    moved = true;
                    let bytes: Vec<_> = pending[to].drain(..count).collect();
                    endings[to] = sides[to].input(&bytes);
                }
            }
            if !moved {
                return (endings[0], endings[1]);
            }
        }
    }

    fn honest(dialer: HelloConfig, listener: HelloConfig) -> (Ending, Ending) {
        converse(dialer, listener, |_, _, _| {})
    }

    fn refused(refusal: Refusal) -> (Ending, Ending) {
        (
            Err(HelloError::RefusedByPeer(refusal)),
            Err(HelloError::Refused(refusal)),
        )
    }

    #[test]
    fn matching_sides_agree_with_and_without_a_secret() {
        let done = Ok(Progress::Done(PLAIN));
        assert_eq!(honest(dialer(""), listener("")), (done, done));
        assert_eq!(honest(dialer("s"), listener("s")), (done, done));
    }

    #[test]
    fn both_sides_learn_the_reason_of_a_refusal() {
        let authentication = refused(Refusal::Authentication);
        assert_eq!(honest(dialer("a"), listener("b")), authentication);
        assert_eq!(honest(dialer("a"), listener("")), authentication);
        assert_eq!(honest(dialer(""), listener("b")), authentication);
        let other_name = HelloConfig {
            resource: "r1".into(),
            ..dialer("s")
        };
        assert_eq!(
            honest(other_name, listener("s")),
            refused(Refusal::Resource)
        );
        let stranger = HelloConfig {
            node: 2,
            ..dialer("s")
        };
        assert_eq!(honest(stranger, listener("s")), refused(Refusal::Node));
        let elsewhere = HelloConfig {
            peer: 2,
            ..dialer("s")
        };
        assert_eq!(honest(elsewhere, listener("s")), refused(Refusal::Node));
    }

    #[test]
    fn the_owner_may_refuse_and_the_peer_is_told() {
        let mut listener = Handshake::new(listener("s")).expect("config");
        let mut dialer = Handshake::new(dialer("s")).expect("config");
        assert_eq!(
            listener.refuse(Refusal::Busy),
            HelloError::Refused(Refusal::Busy)
        );
        let output = listener.output();
        let (prefix, body) = output.split_at(PREFIX_LEN);
        assert_eq!(dialer.input(prefix), Ok(Progress::More));
        assert_eq!(
            dialer.input(body),
            Err(HelloError::RefusedByPeer(Refusal::Busy))
        );
        assert_eq!((dialer.wants(), listener.wants()), (0, 0));
    }

    #[test]
    fn other_versions_are_refused_and_longer_hellos_are_not() {
        let hello = |min: u16, max: u16, more: usize| {
            let own = encode_hello(&dialer(""));
            let mut body = own[PREFIX_LEN..].to_vec();
            body[..2].copy_from_slice(&min.to_le_bytes());
            body[2..4].copy_from_slice(&max.to_le_bytes());
            body.resize(body.len() + more, 9);
            let mut message = Vec::new();
            put_message(&mut message, MESSAGE_HELLO, &body);
            let mut listener = Handshake::new(listener("")).expect("config");
            let (prefix, body) = message.split_at(PREFIX_LEN);
            listener.input(prefix).expect("prefix");
            listener.input(body)
        };
        assert_eq!(hello(1, 1, 0), Ok(Progress::More));
        assert_eq!(hello(0, 7, 40), Ok(Progress::More));
        for (min, max) in [(2, 3), (0, 0), (3, 2)] {
            let version = Err(HelloError::Refused(Refusal::Version));
            assert_eq!(hello(min, max, 0), version, "{min}-{max}");
        }
    }

    /// Our own messages sent back to us, and the proof of one connection on another.
    #[test]
    fn reflections_and_replays_do_not_authenticate() {
        let mut victim = Handshake::new(listener("s")).expect("config");
        let mut reflected = encode_hello(&listener("s"));
        let body = reflected.split_off(PREFIX_LEN);
        victim.input(&reflected).expect("prefix");
        assert_eq!(victim.input(&body), Err(HelloError::Refused(Refusal::Node)));

        let mut recorded = Vec::new();
        let record = |from, _, bytes: &mut [u8]| {
            if from == Direction::Dialer {
                recorded.extend_from_slice(bytes);
            }
        };
        let (near, _) = converse(dialer("s"), listener("s"), record);
        assert_eq!(near, Ok(Progress::Done(PLAIN)));
        let fresh = HelloConfig {
            nonce: [99; NONCE_LEN],
            ..listener("s")
        };
        let mut victim = Handshake::new(fresh).expect("config");
        let mut rest = recorded.as_slice();
        let ending = loop {
            let (now, later) = rest.split_at(victim.wants());
            rest = later;
            match victim.input(now) {
                Ok(Progress::More) => {}
                ending => break ending,
            }
        };
        assert_eq!(ending, Err(HelloError::Refused(Refusal::Authentication)));
    }

    /// A listener without the secret that returns the dialer's own proof.
    #[test]
    fn an_echoed_proof_does_not_authenticate() {
        let mut victim = Handshake::new(dialer("s")).expect("config");
        let mut feed = |bytes: &[u8]| {
            let (prefix, body) = bytes.split_at(PREFIX_LEN);
            victim.input(prefix).expect("prefix");
            let progress = victim.input(body);
            (progress, victim.output())
        };
        let (progress, mut said) = feed(&encode_hello(&listener("unknown")));
        assert_eq!(progress, Ok(Progress::More));
        let proof = said.split_off(said.len() - PREFIX_LEN - PROOF_LEN);
        let refused = Err(HelloError::Refused(Refusal::Authentication));
        assert_eq!(feed(&proof).0, refused);
    }

    /// A changed byte anywhere, with checksums made good again, lets neither side succeed with
    /// anything but what both asked for.
    #[test]
    fn tampering_is_noticed() {
        let hello_len = encode_hello(&dialer("s")).len();
        for target in [Direction::Dialer, Direction::Listener] {
            for at in 0..hello_len {
                let (near, far) = converse(dialer("s"), listener("s"), |from, before, bytes| {
                    if from == target && before == 0 && bytes.len() >= hello_len {
                        bytes[at] ^= 4;
                        let crc = message_crc(&bytes[..8], &bytes[PREFIX_LEN..hello_len]);
                        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
                    }
                });
                // A byte of the checksum itself was mended again.
                let mended = (8..12).contains(&at);
                let done = |ending| matches!(ending, Ok(Progress::Done(_)));
                assert_eq!(done(near), mended, "byte {at}");
                assert_eq!(done(far), mended, "byte {at}");
            }
        }
    }

    #[test]
    fn configurations_that_cannot_be_sent_are_refused() {
        for resource in ["".to_string(), "x".repeat(MAX_NAME + 1)] {
            let config = HelloConfig {
                resource,
                ..dialer("")
            };
            assert_eq!(Handshake::new(config).err(), Some(HelloError::Config));
        }
        let config = HelloConfig {
            node: MAX_NODES,
            ..dialer("")
        };
        assert_eq!(Handshake::new(config).err(), Some(HelloError::Config));
        assert!(Secret::new(b"").is_none());
        assert_eq!(format!("{:?}", Secret::new(b"x")), "Some(Secret(..))");
    }

    proptest! {
        #[test]
        fn random_input_never_completes(
            bytes in prop::collection::vec(any::<u8>(), 1..1200),
            good_magic: bool,
            listens: bool,
        ) {
            let config = if listens { listener("s") } else { dialer("s") };
            let mut handshake = Handshake::new(config).expect("config");
            let mut bytes = bytes;
            if good_magic && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && handshake.wants() > 0 {
                prop_assert!(handshake.wants() <= MAX_BODY.max(PREFIX_LEN));
                let (now, later) = rest.split_at(handshake.wants().min(rest.len()));
                rest = later;
                prop_assert!(!matches!(handshake.input(now), Ok(Progress::Done(_))));
            }
        }
    }
}
