//! Control bodies: what follows the header of `State`, `Agree`, `Bitmap`, `Barrier`,
//! `SyncCompare` and `Verify` frames.
//!
//! Decoding checks every count before it allocates and accepts nothing after the end. Encoding
//! applies the same limits, so that what one side can send the other can read.

use crate::wire::{BodyFault, MAX_LANES, MAX_NODES, Term};

/// Volumes of a resource that a body can describe.
pub const MAX_VOLUMES: usize = 64;
/// Older generations per volume.
pub const MAX_HISTORY: usize = 32;
/// Records about other nodes per volume: everybody but the sender.
pub const MAX_PEERS: usize = 15;
/// Words of 64 bits in a bitmap chunk.
pub const MAX_WORDS: usize = 512;
/// Codes of a role, in the order Primary, Secondary, Unknown.
pub const ROLES: u8 = 3;
/// Codes of a disk state, in DRBD's order from Diskless to UpToDate.
pub const DISK_STATES: u8 = 9;
/// Codes of what a verify hashes with: BLAKE3, CRC32C, XXH3, MD5, SHA-1, SHA-256.
pub const DIGESTS: u8 = 6;
/// Codes of a replication protocol: A, B, C.
pub const PROTOCOLS: u8 = 3;

/// What a node has stored about another one than the receiver. Version 1 senders with two data
/// nodes have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WirePeer {
    pub node: u8,
    pub base: u64,
    pub session: u64,
    pub session_pending: u64,
    pub dirty_bits: u64,
}

/// A volume as its node describes it in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireVolume {
    pub volume: u16,
    /// Bytes.
    pub capacity: u64,
    /// Bytes.
    pub agreed_size: u64,
    /// Bytes.
    pub logical_block: u32,
    /// Below [`DISK_STATES`].
    pub disk: u8,
    pub current: u64,
    pub base: u64,
    /// Newest first, at most [`MAX_HISTORY`].
    pub history: Vec<u64>,
    pub dirty_bits: u64,
    pub crashed_primary: bool,
    pub want_full: bool,
    /// Only where both sides have [`FEATURE_DISCARD`].
    pub discard: bool,
    pub session: u64,
    pub session_pending: u64,
    /// At most [`MAX_PEERS`].
    pub peers: Vec<WirePeer>,
}

/// Body of `State`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireState {
    pub round: u32,
    pub node: u8,
    /// Below [`ROLES`].
    pub role: u8,
    pub term: Term,
    pub nonce: u64,
    /// Below [`PROTOCOLS`].
    pub protocol: u8,
    pub discard_my_data: bool,
    /// At most [`MAX_VOLUMES`], each once.
    pub volumes: Vec<WireVolume>,
}

/// Body of `Bitmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireBitmap {
    pub volume: u16,
    /// Index of the chunk: its first bit is `index * 32768`.
    pub index: u32,
    /// 1 to [`MAX_WORDS`] words.
    pub words: Vec<u64>,
    /// Empty, or as many words as `words` with no bit that is not set there.
    pub suspects: Vec<u64>,
}

/// Number of the last frame that the sender put on each lane before a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    count: u8,
    last: [u64; MAX_LANES],
}

impl Lanes {
    /// One lane.
    pub fn single(last: u64) -> Lanes {
        let mut lanes = Lanes {
            count: 1,
            last: [0; MAX_LANES],
        };
        lanes.last[0] = last;
        lanes
    }

    /// One entry per lane; 1 to [`MAX_LANES`] of them.
    pub fn new(last: &[u64]) -> Option<Lanes> {
        let mut lanes = Lanes::single(0);
        if last.is_empty() {
            return None;
        }
        lanes.last.get_mut(..last.len())?.copy_from_slice(last);
        lanes.count = last.len() as u8;
        Some(lanes)
    }

    /// The entries, by lane.
    pub fn last(&self) -> &[u64] {
        self.last.get(..usize::from(self.count)).unwrap_or(&[])
    }
}

/// Reads a body front to back.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BodyFault> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BodyFault::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], BodyFault> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(BodyFault::Short)?;
        self.0 = rest;
        Ok(head)
    }

    pub fn u8(&mut self) -> Result<u8, BodyFault> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, BodyFault> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, BodyFault> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, BodyFault> {
        self.array().map(u64::from_le_bytes)
    }

    /// `count` numbers; `count` was checked by the caller.
    fn u64s(&mut self, count: usize) -> Result<Vec<u64>, BodyFault> {
        if self.0.len() < count * 8 {
            return Err(BodyFault::Short);
        }
        (0..count).map(|_| self.u64()).collect()
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u8, what: &'static str) -> Result<u8, BodyFault> {
        let value = self.u8()?;
        (value < limit)
            .then_some(value)
            .ok_or(BodyFault::Value { what })
    }

    fn count(&mut self, max: usize, what: &'static str) -> Result<usize, BodyFault> {
        limit(usize::from(self.u8()?), max, what)
    }

    pub fn end(self) -> Result<(), BodyFault> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(BodyFault::Trailing(more)),
        }
    }
}

fn limit(got: usize, max: usize, what: &'static str) -> Result<usize, BodyFault> {
    if got > max {
        return Err(BodyFault::Count { what, got });
    }
    Ok(got)
}

fn require(condition: bool, what: &'static str) -> Result<(), BodyFault> {
    condition.then_some(()).ok_or(BodyFault::Value { what })
}

/// Refuses a volume that occurs twice. At most [`MAX_VOLUMES`] are compared.
fn unique(volumes: impl Iterator<Item = u16> + Clone) -> Result<(), BodyFault> {
    for (index, volume) in volumes.clone().enumerate() {
        if volumes.clone().take(index).any(|other| other == volume) {
            return Err(BodyFault::Duplicate(volume));
        }
    }
    Ok(())
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

const STATE_DISCARD_MY_DATA: u8 = 1;
const VOLUME_CRASHED_PRIMARY: u8 = 1;
const VOLUME_WANT_FULL: u8 = 2;
const VOLUME_DISCARD: u8 = 4;

/// Feature bit of the handshake: `State` says of each volume whether its disk can give blocks
/// back that read as zeroes afterwards.
pub const FEATURE_DISCARD: u64 = 1;

impl WireState {
    fn check(&self) -> Result<(), BodyFault> {
        require(self.node < MAX_NODES, "node")?;
        require(self.term.node < MAX_NODES, "term's node")?;
        require(self.role < ROLES, "role")?;
        require(self.protocol < PROTOCOLS, "protocol")?;
        limit(self.volumes.len(), MAX_VOLUMES, "volumes")?;
        unique(self.volumes.iter().map(|volume| volume.volume))?;
        self.volumes.iter().try_for_each(WireVolume::check)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), BodyFault> {
        self.check()?;
        out.extend_from_slice(&self.round.to_le_bytes());
        let flags = if self.discard_my_data {
            STATE_DISCARD_MY_DATA
        } else {
            0
        };
        out.extend_from_slice(&[self.node, self.role, self.protocol, flags]);
        out.extend_from_slice(&self.nonce.to_le_bytes());
        out.extend_from_slice(&self.term.counter.to_le_bytes());
        out.extend_from_slice(&self.term.random.to_le_bytes());
        out.extend_from_slice(&[self.term.node, self.volumes.len() as u8, 0, 0]);
        for volume in &self.volumes {
            volume.encode(out);
        }
        Ok(())
    }

    pub(crate) fn decode(body: &[u8]) -> Result<WireState, BodyFault> {
        let mut cursor = Cursor(body);
        let round = cursor.u32()?;
        let [node, role, protocol, flags] = cursor.array()?;
        require(flags & !STATE_DISCARD_MY_DATA == 0, "flags")?;
        let nonce = cursor.u64()?;
        let counter = cursor.u64()?;
        let random = cursor.u32()?;
        let term = Term {
            counter,
            node: cursor.u8()?,
            random,
        };
        let count = cursor.count(MAX_VOLUMES, "volumes")?;
        require(cursor.u16()? == 0, "reserved bytes")?;
        let volumes = (0..count)
            .map(|_| WireVolume::decode(&mut cursor))
            .collect::<Result<_, _>>()?;
        cursor.end()?;
        let state = WireState {
            round,
            node,
            role,
            term,
            nonce,
            protocol,
            discard_my_data: flags & STATE_DISCARD_MY_DATA != 0,
            volumes,
        };
        state.check()?;
        Ok(state)
    }
}

impl WireVolume {
    fn check(&self) -> Result<(), BodyFault> {
        require(self.disk < DISK_STATES, "disk state")?;
        limit(self.history.len(), MAX_HISTORY, "old generations")?;
        limit(self.peers.len(), MAX_PEERS, "peers")?;
        require(
            self.peers.iter().all(|peer| peer.node < MAX_NODES),
            "peer's node",
        )
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        if self.crashed_primary {
            flags |= VOLUME_CRASHED_PRIMARY;
        }
        if self.want_full {
            flags |= VOLUME_WANT_FULL;
        }
        if self.discard {
            flags |= VOLUME_DISCARD;
        }
        out.extend_from_slice(&self.volume.to_le_bytes());
        out.extend_from_slice(&[self.disk, flags]);
        out.extend_from_slice(&self.logical_block.to_le_bytes());
        put_u64s(
            out,
            &[
                self.capacity,
                self.agreed_size,
                self.current,
                self.base,
                self.dirty_bits,
                self.session,
                self.session_pending,
            ],
        );
        out.extend_from_slice(&[self.history.len() as u8, self.peers.len() as u8, 0, 0]);
        put_u64s(out, &self.history);
        for peer in &self.peers {
            out.extend_from_slice(&[peer.node, 0, 0, 0]);
            put_u64s(
                out,
                &[
                    peer.base,
                    peer.session,
                    peer.session_pending,
                    peer.dirty_bits,
                ],
            );
        }
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<WireVolume, BodyFault> {
        let volume = cursor.u16()?;
        let [disk, flags] = cursor.array()?;
        let known = VOLUME_CRASHED_PRIMARY | VOLUME_WANT_FULL | VOLUME_DISCARD;
        require(flags & !known == 0, "volume flags")?;
        let logical_block = cursor.u32()?;
        let capacity = cursor.u64()?;
        let agreed_size = cursor.u64()?;
        let current = cursor.u64()?;
        let base = cursor.u64()?;
        let dirty_bits = cursor.u64()?;
        let session = cursor.u64()?;
        let session_pending = cursor.u64()?;
        let history = cursor.count(MAX_HISTORY, "old generations")?;
        let peers = cursor.count(MAX_PEERS, "peers")?;
        require(cursor.u16()? == 0, "reserved bytes")?;
        Ok(WireVolume {
            volume,
            capacity,
            agreed_size,
            logical_block,
            disk,
            current,
            base,
            history: cursor.u64s(history)?,
            dirty_bits,
            crashed_primary: flags & VOLUME_CRASHED_PRIMARY != 0,
            want_full: flags & VOLUME_WANT_FULL != 0,
            discard: flags & VOLUME_DISCARD != 0,
            session,
            session_pending,
            peers: (0..peers)
                .map(|_| WirePeer::decode(cursor))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl WirePeer {
    fn decode(cursor: &mut Cursor<'_>) -> Result<WirePeer, BodyFault> {
        let node = cursor.below(MAX_NODES, "peer's node")?;
        require(cursor.array()? == [0; 3], "reserved bytes")?;
        Ok(WirePeer {
            node,
            base: cursor.u64()?,
            session: cursor.u64()?,
            session_pending: cursor.u64()?,
            dirty_bits: cursor.u64()?,
        })
    }
}

/// Verdicts of `Agree`: one code per volume, which only the receiver's decision table can judge.
pub(crate) fn encode_verdicts(verdicts: &[(u16, u8)], out: &mut Vec<u8>) -> Result<(), BodyFault> {
    limit(verdicts.len(), MAX_VOLUMES, "verdicts")?;
    unique(verdicts.iter().map(|(volume, _)| *volume))?;
    out.extend_from_slice(&[verdicts.len() as u8, 0, 0, 0]);
    for (volume, code) in verdicts {
        out.extend_from_slice(&volume.to_le_bytes());
        out.extend_from_slice(&[*code, 0]);
    }
    Ok(())
}

pub(crate) fn decode_verdicts(body: &[u8]) -> Result<Vec<(u16, u8)>, BodyFault> {
    let mut cursor = Cursor(body);
    let count = cursor.count(MAX_VOLUMES, "verdicts")?;
    require(cursor.array()? == [0; 3], "reserved bytes")?;
    let mut verdicts = Vec::with_capacity(count);
    for _ in 0..count {
        verdicts.push((cursor.u16()?, cursor.u8()?));
        require(cursor.u8()? == 0, "reserved bytes")?;
    }
    cursor.end()?;
    unique(verdicts.iter().map(|(volume, _)| *volume))?;
    Ok(verdicts)
}

impl Lanes {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_u64s(out, &[u64::from(self.count)]);
        put_u64s(out, self.last());
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Lanes, BodyFault> {
        let mut cursor = Cursor(body);
        let count = cursor.count(MAX_LANES, "lanes")?;
        require(cursor.array()? == [0; 7], "reserved bytes")?;
        let last = cursor.u64s(count)?;
        cursor.end()?;
        Lanes::new(&last).ok_or(BodyFault::Value { what: "lanes" })
    }
}

/// A run of a bitmap: the two upper bits of its 16-bit tag are the sort, the rest is the number
/// of words.
const RUN_SORT_SHIFT: u16 = 14;
const RUN_COUNT_MASK: u16 = (1 << RUN_SORT_SHIFT) - 1;

/// Sorts of runs in a bitmap body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Zeroes = 0,
    Ones = 1,
    Literal = 2,
}

impl Run {
    fn of(word: u64) -> Run {
        match word {
            0 => Run::Zeroes,
            u64::MAX => Run::Ones,
            _ => Run::Literal,
        }
    }
}

impl WireBitmap {
    fn check(&self) -> Result<(), BodyFault> {
        limit(self.words.len(), MAX_WORDS, "bitmap words")?;
        require(!self.words.is_empty(), "number of bitmap words")?;
        if self.suspects.is_empty() {
            return Ok(());
        }
        require(self.suspects.len() == self.words.len(), "suspect words")?;
        let mut pairs = self.words.iter().zip(&self.suspects);
        require(
            pairs.all(|(words, suspects)| suspects & !words == 0),
            "suspect bit",
        )
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), BodyFault> {
        self.check()?;
        out.extend_from_slice(&self.volume.to_le_bytes());
        out.extend_from_slice(&(self.words.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        let suspects = u32::from(!self.suspects.is_empty());
        out.extend_from_slice(&suspects.to_le_bytes());
        encode_words(&self.words, out);
        encode_words(&self.suspects, out);
        Ok(())
    }

    pub(crate) fn decode(body: &[u8]) -> Result<WireBitmap, BodyFault> {
        let mut cursor = Cursor(body);
        let volume = cursor.u16()?;
        let count = limit(usize::from(cursor.u16()?), MAX_WORDS, "bitmap words")?;
        let index = cursor.u32()?;
        let with_suspects = cursor.u32()?;
        require(with_suspects <= 1, "flags")?;
        let bitmap = WireBitmap {
            volume,
            index,
            words: decode_words(&mut cursor, count)?,
            suspects: decode_words(&mut cursor, count * with_suspects as usize)?,
        };
        cursor.end()?;
        bitmap.check()?;
        Ok(bitmap)
    }
}

/// Run-length encodes `words`; at most 10 bytes per word.
fn encode_words(words: &[u64], out: &mut Vec<u8>) {
    for run in words.chunk_by(|a, b| Run::of(*a) == Run::of(*b)) {
        let sort = run.first().map_or(Run::Zeroes, |word| Run::of(*word));
        let tag = (sort as u16) << RUN_SORT_SHIFT | run.len() as u16;
        out.extend_from_slice(&tag.to_le_bytes());
        if sort == Run::Literal {
            put_u64s(out, run);
        }
    }
}

/// Runs that make up exactly `count` words, each as long as it can be.
fn decode_words(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<u64>, BodyFault> {
    let mut words = Vec::with_capacity(count);
    let mut previous = None;
    while words.len() < count {
        let tag = cursor.u16()?;
        let sort = match tag >> RUN_SORT_SHIFT {
            0 => Run::Zeroes,
            1 => Run::Ones,
            2 => Run::Literal,
            _ => return Err(BodyFault::Value { what: "bitmap run" }),
        };
        let len = usize::from(tag & RUN_COUNT_MASK);
        require(
            len > 0 && len <= count - words.len() && previous != Some(sort),
            "bitmap run",
        )?;
        previous = Some(sort);
        match sort {
            Run::Zeroes => words.resize(words.len() + len, 0),
            Run::Ones => words.resize(words.len() + len, u64::MAX),
            Run::Literal => words.extend(cursor.u64s(len)?),
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(number: u16) -> WireVolume {
        WireVolume {
            volume: number,
            capacity: 1,
            agreed_size: 2,
            logical_block: 512,
            disk: DISK_STATES - 1,
            current: 3,
            base: 4,
            history: vec![5; MAX_HISTORY],
            dirty_bits: 6,
            crashed_primary: true,
            want_full: true,
            discard: true,
            session: 7,
            session_pending: 8,
            peers: vec![
                WirePeer {
                    node: 15,
                    base: 9,
                    session: 10,
                    session_pending: 11,
                    dirty_bits: 12
                };
                MAX_PEERS
            ],
        }
    }

    fn state(volumes: Vec<WireVolume>) -> WireState {
        WireState {
            round: 1,
            node: 1,
            role: 0,
            term: Term::default(),
            nonce: 2,
            protocol: 2,
            discard_my_data: true,
            volumes,
        }
    }

    #[test]
    fn the_largest_state_fits_a_body() {
        let largest = state((0..MAX_VOLUMES as u16).map(volume).collect());
        let mut out = Vec::new();
        largest.encode(&mut out).expect("encodes");
        assert!(out.len() <= crate::wire::MAX_BODY as usize, "{}", out.len());
        assert_eq!(WireState::decode(&out), Ok(largest));
    }

    #[test]
    fn too_many_of_anything_is_refused_by_the_sender() {
        let refused = |state: WireState| state.encode(&mut Vec::new()).expect_err("refused");
        let many = (0..=MAX_VOLUMES as u16).map(volume).collect();
        assert!(matches!(refused(state(many)), BodyFault::Count { .. }));
        assert_eq!(
            refused(state(vec![volume(3), volume(3)])),
            BodyFault::Duplicate(3)
        );
        let mut long = volume(0);
        long.history.push(1);
        assert!(matches!(
            refused(state(vec![long])),
            BodyFault::Count { .. }
        ));
    }

    #[test]
    fn a_sparse_bitmap_is_short_and_a_dense_one_bounded() {
        let encoded = |words: Vec<u64>| {
            let mut out = Vec::new();
            let bitmap = WireBitmap {
                volume: 1,
                index: 2,
                suspects: words.clone(),
                words,
            };
            bitmap.encode(&mut out).expect("encodes");
            assert_eq!(WireBitmap::decode(&out), Ok(bitmap));
            out.len()
        };
        let mut one = vec![0; MAX_WORDS];
        one[300] = 1;
        assert_eq!(encoded(one), 12 + 2 * (3 * 2 + 8));
        assert_eq!(encoded(vec![u64::MAX; MAX_WORDS]), 12 + 2 * 2);
        let worst = (0..MAX_WORDS as u64).map(|i| i % 2).collect();
        assert_eq!(encoded(worst), 12 + 2 * (512 * 2 + 256 * 8));
    }

    #[test]
    fn a_run_beyond_the_end_is_refused() {
        let mut body = Vec::new();
        body.extend_from_slice(&[0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&5_u16.to_le_bytes());
        assert_eq!(
            WireBitmap::decode(&body),
            Err(BodyFault::Value { what: "bitmap run" })
        );
    }
}
