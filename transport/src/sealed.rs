//! Authenticated datagrams: heartbeats between nodes, and votes.
//!
//! Layout, little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `LSHB` |
//! | 4 | version, 1 |
//! | 5 | kind, the caller's |
//! | 6 | number of the sender; 255 = the witness |
//! | 7 | number of the path, which has sessions and a sequence of its own |
//! | 8..16 | identity of the cluster ([`Key::cluster`]) |
//! | 16..24 | session of the sender: random, new with every start |
//! | 24..32 | session of the receiver as the sender knows it; 0 = not at all |
//! | 32..40 | sequence, from 1 in every session |
//! | 40..42 | length of the body |
//! | 42.. | body; then zeroes, where the datagram is a probe for the path's largest packet |
//! | last 16 | keyed BLAKE3 of everything before, cut to 16 bytes |
//!
//! A datagram counts when it names the receiver's present session, comes from the sender's present
//! session or from one not seen before, and is the first with its sequence. What names no session
//! or an old one of the receiver is a *greeting*: genuine perhaps, or a recording, so nothing is
//! believed of it; it is answered, and the answer tells the other side the session. A session that
//! was followed by another does not come back, so recordings of it are worth nothing.

use std::collections::VecDeque;

use thiserror::Error;

const MAGIC: [u8; 4] = *b"LSHB";
/// Version of the layout.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER: usize = 42;
const TAG: usize = 16;
/// Largest body: a datagram stays below what UDP carries.
pub const MAX_BODY: usize = 32 << 10;
/// The number of a witness in the header.
pub const WITNESS: u8 = 255;
/// Ended sessions that are remembered.
const RETIRED: usize = 32;

/// What two sides share, and the name of the cluster that follows from it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    secret: [u8; 32],
    cluster: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:016x})", self.cluster)
    }
}

impl Key {
    /// The key with which the nodes of a cluster know each other's heartbeats.
    pub fn of_nodes(cluster_key: &[u8]) -> Key {
        Key {
            secret: blake3::derive_key("lockstep 2026 heartbeat v1", cluster_key),
            cluster: Key::name(cluster_key),
        }
    }

    /// The key that the nodes share with a witness, which learns nothing else of the cluster.
    pub fn of_witness(cluster_key: &[u8]) -> Key {
        Key {
            secret: blake3::derive_key("lockstep 2026 witness v1", cluster_key),
            cluster: Key::name(cluster_key),
        }
    }

    /// What a witness has been told.
    pub fn from_parts(cluster: u64, secret: [u8; 32]) -> Key {
        Key { secret, cluster }
    }

    fn name(cluster_key: &[u8]) -> u64 {
        let name = blake3::derive_key("lockstep 2026 cluster name v1", cluster_key);
        u64::from_le_bytes(name[..8].try_into().unwrap_or_default())
    }

    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    fn tag(&self, bytes: &[u8]) -> [u8; TAG] {
        let hash = blake3::keyed_hash(&self.secret, bytes);
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hash.as_bytes()[..TAG]);
        tag
    }
}

/// Why a datagram is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reject {
    #[error("no datagram of lockstep")]
    Foreign,
    #[error("version {0} is not spoken here")]
    Version(u8),
    #[error("of another cluster ({0:016x})")]
    OtherCluster(u64),
    #[error("lengths do not fit")]
    Length,
    #[error("not authentic: the keys differ, or it was changed on its way")]
    Forged,
    #[error("seen before")]
    Replayed,
}

/// The header of a datagram whose authenticity is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub sender: u8,
    pub path: u8,
    pub cluster: u64,
    from: u64,
    to: u64,
    sequence: u64,
    body: u16,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let part = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    part.map_or(0, u64::from_le_bytes)
}

/// Reads the header, for whoever has several keys to choose from.
pub fn peek(bytes: &[u8]) -> Result<Header, Reject> {
    if bytes.get(..4) != Some(&MAGIC[..]) {
        return Err(Reject::Foreign);
    }
    let header = match bytes.get(..HEADER) {
        Some(header) if bytes.len() >= HEADER + TAG => header,
        _ => return Err(Reject::Length),
    };
    if header[4] != VERSION {
        return Err(Reject::Version(header[4]));
    }
    Ok(Header {
        kind: header[5],
        sender: header[6],
        path: header[7],
        cluster: word(header, 8),
        from: word(header, 16),
        to: word(header, 24),
        sequence: word(header, 32),
        body: u16::from_le_bytes([header[40], header[41]]),
    })
}

/// A datagram that was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub kind: u8,
    pub body: &'a [u8],
    /// It may be a recording: answer it, and believe nothing of it.
    pub greeting: bool,
    /// The sender has started anew since the last one.
    pub restarted: bool,
    pub sequence: u64,
}

/// One side of a path between two.
#[derive(Clone, Debug)]
pub struct Sealer {
    key: Key,
    me: u8,
    path: u8,
    own: u64,
    sequence: u64,
    theirs: Option<u64>,
    /// It has named ours: it is no recording.
    proved: bool,
    /// Highest sequence of their session, and which of the 64 up to it were seen.
    highest: u64,
    window: u64,
    retired: VecDeque<u64>,
}

impl Sealer {
    /// `session` is random and not 0.
    pub fn new(key: Key, me: u8, path: u8, session: u64) -> Sealer {
        Sealer {
            key,
            me,
            path,
            own: session.max(1),
            sequence: 0,
            theirs: None,
            proved: false,
            highest: 0,
            window: 0,
            retired: VecDeque::new(),
        }
    }

    /// The sequence of the last datagram made.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The other side has told its session.
    pub fn met(&self) -> bool {
        self.proved
    }

    /// A datagram with `body`, filled up with zeroes to `size` bytes where it is smaller.
    ///
    /// A body of more than [`MAX_BODY`] bytes is refused: none.
    pub fn seal(&mut self, kind: u8, body: &[u8], size: usize) -> Option<Vec<u8>> {
        if body.len() > MAX_BODY || size > MAX_BODY {
            return None;
        }
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(size.max(HEADER + body.len() + TAG));
        bytes.extend(MAGIC);
        bytes.extend([VERSION, kind, self.me, self.path]);
        for word in [
            self.key.cluster,
            self.own,
            self.theirs.unwrap_or(0),
            self.sequence,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend((body.len() as u16).to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().max(size.saturating_sub(TAG)), 0);
        let tag = self.key.tag(&bytes);
        bytes.extend(tag);
        Some(bytes)
    }

    /// Takes a datagram of the other side.
    pub fn open<'a>(&mut self, bytes: &'a [u8]) -> Result<Opened<'a>, Reject> {
        let header = peek(bytes)?;
        if header.cluster != self.key.cluster {
            return Err(Reject::OtherCluster(header.cluster));
        }
        let (signed, tag) = bytes.split_at(bytes.len() - TAG);
        // Compared in constant time by `blake3::Hash`.
        let (mut ours, mut given) = ([0; 32], [0; 32]);
        ours[..TAG].copy_from_slice(&self.key.tag(signed));
        given[..TAG].copy_from_slice(tag);
        if blake3::Hash::from_bytes(ours) != blake3::Hash::from_bytes(given) {
            return Err(Reject::Forged);
        }
        let body = signed
            .get(HEADER..HEADER + usize::from(header.body))
            .ok_or(Reject::Length)?;
        let greeting = header.to != self.own;
        let restarted = self.admit(&header, greeting)?;
        Ok(Opened {
            kind: header.kind,
            body,
            greeting,
            restarted,
            sequence: header.sequence,
        })
    }

    /// Checks sessions and sequence; whether the other side has started anew.
    fn admit(&mut self, header: &Header, greeting: bool) -> Result<bool, Reject> {
        if self.retired.contains(&header.from) {
            return Err(Reject::Replayed);
        }
        if self.theirs == Some(header.from) && (self.proved || greeting) {
            return self.first(header.sequence).map(|()| false);
        }
        if greeting {
            // Nothing proves that it is new; its session is named in the answer all the same,
            // and what answers that is.
            self.greet(header.from);
            return Ok(false);
        }
        self.follow(header.from, header.sequence);
        Ok(true)
    }

    /// Names a session in answers that nothing has proved yet; a proved one stays.
    fn greet(&mut self, session: u64) {
        if !self.proved {
            self.theirs = Some(session);
            (self.highest, self.window) = (0, 0);
        }
    }

    fn follow(&mut self, session: u64, sequence: u64) {
        let old = self.theirs.replace(session);
        if let Some(old) = old.filter(|old| self.proved && *old != session) {
            if self.retired.len() == RETIRED {
                self.retired.pop_front();
            }
            self.retired.push_back(old);
        }
        self.proved = true;
        self.highest = sequence;
        self.window = 1;
    }

    fn first(&mut self, sequence: u64) -> Result<(), Reject> {
        if sequence > self.highest {
            let step = sequence - self.highest;
            self.window = if step < 64 { self.window << step } else { 0 } | 1;
            self.highest = sequence;
            return Ok(());
        }
        let age = self.highest - sequence;
        if sequence == 0 || age >= 64 || self.window >> age & 1 == 1 {
            return Err(Reject::Replayed);
        }
        self.window |= 1 << age;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Sealer, Sealer) {
        let key = Key::of_nodes(b"secret");
        (
            Sealer::new(key.clone(), 0, 0, 11),
            Sealer::new(key, 1, 0, 22),
        )
    }

    fn meet(a: &mut Sealer, b: &mut Sealer) {
        for _ in 0..2 {
            let hello = a.seal(1, b"x", 0).unwrap();
            b.open(&hello).unwrap();
            let hello = b.seal(1, b"x", 0).unwrap();
            a.open(&hello).unwrap();
        }
        assert!(a.met() && b.met());
    }

    #[test]
    fn two_sides_meet_with_greetings_and_then_believe_each_other() {
        let (mut a, mut b) = pair();
        let hello = a.seal(1, b"x", 0).unwrap();
        assert!(b.open(&hello).unwrap().greeting);
        let answer = b.seal(1, b"y", 0).unwrap();
        let opened = a.open(&answer).unwrap();
        assert!(!opened.greeting && opened.restarted);
        assert_eq!(opened.body, b"y");
        let next = a.seal(2, b"z", 0).unwrap();
        let opened = b.open(&next).unwrap();
        assert_eq!(
            (opened.greeting, opened.kind, opened.body),
            (false, 2, &b"z"[..])
        );
    }

    #[test]
    fn nothing_counts_twice_and_order_does_not_matter() {
        let (mut a, mut b) = pair();
        meet(&mut a, &mut b);
        let sent: Vec<_> = (0..5u8).map(|n| a.seal(1, &[n], 0).unwrap()).collect();
        for at in [4, 0, 2, 1, 3] {
            assert!(!b.open(&sent[at]).unwrap().greeting);
            assert_eq!(b.open(&sent[at]), Err(Reject::Replayed));
        }
        for _ in 0..100 {
            let next = a.seal(1, b"", 0).unwrap();
            b.open(&next).unwrap();
        }
        assert_eq!(b.open(&sent[4]), Err(Reject::Replayed), "too old to tell");
    }

    #[test]
    fn a_restart_is_followed_and_recordings_of_the_life_before_are_not() {
        let (mut a, mut b) = pair();
        meet(&mut a, &mut b);
        let recorded = a.seal(1, b"old", 0).unwrap();
        let mut anew = Sealer::new(Key::of_nodes(b"secret"), 0, 0, 33);
        meet(&mut anew, &mut b);
        assert_eq!(b.open(&recorded), Err(Reject::Replayed));
        // The receiver starts anew as well: what was sent to its life before is a greeting.
        let to_old = anew.seal(1, b"to the life before", 0).unwrap();
        let mut fresh = Sealer::new(Key::of_nodes(b"secret"), 1, 0, 44);
        assert!(fresh.open(&recorded).unwrap().greeting);
        assert!(fresh.open(&to_old).unwrap().greeting);
        meet(&mut anew, &mut fresh);
        let next = anew.seal(1, b"now", 0).unwrap();
        assert!(!fresh.open(&next).unwrap().greeting);
    }

    #[test]
    fn other_keys_clusters_and_versions_are_told_apart() {
        let (mut a, mut b) = pair();
        let mut sent = a.seal(1, b"x", 0).unwrap();
        let mut stranger = Sealer::new(Key::of_nodes(b"other"), 1, 0, 5);
        let cluster = Key::of_nodes(b"secret").cluster();
        assert_eq!(stranger.open(&sent), Err(Reject::OtherCluster(cluster)));
        let mut witness = Sealer::new(Key::of_witness(b"secret"), WITNESS, 0, 5);
        assert_eq!(witness.open(&sent), Err(Reject::Forged));
        sent[4] = 9;
        assert_eq!(b.open(&sent), Err(Reject::Version(9)));
        assert_eq!(b.open(b"GET / HTTP/1.1"), Err(Reject::Foreign));
        assert_eq!(b.open(&sent[..20]), Err(Reject::Length));
    }

    #[test]
    fn a_probe_is_as_long_as_it_should_be() {
        let (mut a, mut b) = pair();
        let sent = a.seal(1, b"x", 1400).unwrap();
        assert_eq!(sent.len(), 1400);
        assert_eq!(b.open(&sent).unwrap().body, b"x");
        assert!(a.seal(1, &vec![0; MAX_BODY + 1], 0).is_none());
    }

    proptest! {
        #[test]
        fn a_changed_datagram_is_never_taken(
            at in 0usize..1000, flip in 1u8..=255, body in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let (mut a, mut b) = pair();
            meet(&mut a, &mut b);
            let mut sent = a.seal(1, &body, 0).unwrap();
            let at = at % sent.len();
            sent[at] ^= flip;
            prop_assert!(b.open(&sent).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut b) = pair();
            prop_assert!(b.open(&bytes).is_err());
        }
    }
}
