//! How a cluster introduces itself to a witness that does not know it.
//!
//! A witness needs the key that the cluster's nodes derive for it ([`Key::of_witness`]), and
//! nothing else of them. It can be given the cluster's key file; otherwise it takes the key from
//! the first node that comes, over an X25519 exchange: who only listens learns nothing. Who sits
//! between the two and changes packets could take the witness's place at this moment, as with the
//! first connection of ssh: where that is to be excluded the witness is given the key file.
//!
//! Datagrams, not sealed: `LSHB`, version, kind, two zeroes, then
//!
//! | kind | what |
//! |---|---|
//! | unknown | cluster (8 bytes), public key of the witness (32; zeroes: introductions are refused) |
//! | enrol | cluster (8), public key of the node (32), of the witness (32), key (32, xor the exchange), tag (16) |

use lockstep_transport::sealed::{Key, VERSION};
use x25519_dalek::{PublicKey, StaticSecret};

use super::letter::kind;

const MAGIC: &[u8; 4] = b"LSHB";
const HEAD: usize = 8;
const TAG: usize = 16;

/// Bytes that two sides alone know after an exchange: a pad for the key, and a key for the tag.
fn exchanged(own: &StaticSecret, other: &PublicKey) -> Option<([u8; 32], [u8; 32])> {
    let shared = own.diffie_hellman(other);
    let derive = |what| blake3::derive_key(what, shared.as_bytes());
    shared.was_contributory().then(|| {
        (
            derive("lockstep 2026 enrol pad v1"),
            derive("lockstep 2026 enrol tag v1"),
        )
    })
}

fn head(kind: u8) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([VERSION, kind, 0, 0]);
    bytes
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn is(bytes: &[u8], wanted: u8, length: usize) -> bool {
    bytes.len() == length && bytes.starts_with(&head(wanted))
}

/// A witness that does not know `cluster` says so.
pub fn unknown(cluster: u64, public: Option<&PublicKey>) -> Vec<u8> {
    let mut bytes = head(kind::UNKNOWN);
    bytes.extend(cluster.to_le_bytes());
    bytes.extend(public.map_or([0; 32], PublicKey::to_bytes));
    bytes
}

/// Reads [`unknown`]: the cluster, and the public key where introductions are taken.
pub fn read_unknown(bytes: &[u8]) -> Option<(u64, Option<PublicKey>)> {
    if !is(bytes, kind::UNKNOWN, HEAD + 8 + 32) {
        return None;
    }
    let public: [u8; 32] = array(bytes, HEAD + 8)?;
    let public = (public != [0; 32]).then(|| PublicKey::from(public));
    Some((u64::from_le_bytes(array(bytes, HEAD)?), public))
}

/// A node hands the witness its key. `random` is used once.
pub fn enrol(key: &Key, witness: &PublicKey, random: [u8; 32]) -> Option<Vec<u8>> {
    let own = StaticSecret::from(random);
    let (pad, tag) = exchanged(&own, witness)?;
    let mut bytes = head(kind::ENROL);
    bytes.extend(key.cluster().to_le_bytes());
    bytes.extend(PublicKey::from(&own).to_bytes());
    bytes.extend(witness.to_bytes());
    bytes.extend(key.secret().iter().zip(pad).map(|(a, b)| a ^ b));
    let hash = blake3::keyed_hash(&tag, &bytes);
    bytes.extend(&hash.as_bytes()[..TAG]);
    Some(bytes)
}

/// Reads [`enrol`] as the witness with this secret.
pub fn read_enrol(bytes: &[u8], own: &StaticSecret) -> Option<Key> {
    const LENGTH: usize = HEAD + 8 + 3 * 32 + TAG;
    if !is(bytes, kind::ENROL, LENGTH) {
        return None;
    }
    let (signed, given) = bytes.split_at(LENGTH - TAG);
    let node = PublicKey::from(array::<32>(bytes, HEAD + 8)?);
    let meant: [u8; 32] = array(bytes, HEAD + 40)?;
    if meant != PublicKey::from(own).to_bytes() {
        return None;
    }
    let (pad, tag) = exchanged(own, &node)?;
    // Nobody gains by guessing a tag bit by bit here: the key is the sender's own choice.
    if given != &blake3::keyed_hash(&tag, signed).as_bytes()[..TAG] {
        return None;
    }
    let mut secret: [u8; 32] = array(bytes, HEAD + 72)?;
    for (byte, pad) in secret.iter_mut().zip(pad) {
        *byte ^= pad;
    }
    Some(Key::from_parts(
        u64::from_le_bytes(array(bytes, HEAD)?),
        secret,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_gets_the_key_and_nobody_who_listens() {
        let own = StaticSecret::from([7; 32]);
        let public = PublicKey::from(&own);
        let key = Key::of_witness(b"a key");
        let asked = unknown(key.cluster(), Some(&public));
        let (cluster, offered) = read_unknown(&asked).unwrap();
        assert_eq!((cluster, offered), (key.cluster(), Some(public)));
        let sent = enrol(&key, &public, [9; 32]).unwrap();
        assert_eq!(read_enrol(&sent, &own), Some(key.clone()));
        let plain = sent.windows(32).any(|part| part == key.secret());
        assert!(!plain);
        assert_eq!(read_enrol(&sent, &StaticSecret::from([8; 32])), None);
        for at in 0..sent.len() {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            assert_eq!(read_enrol(&changed, &own), None, "byte {at}");
            assert_eq!(read_enrol(&sent[..at], &own), None);
        }
        let refuses = unknown(5, None);
        assert_eq!(read_unknown(&refuses), Some((5, None)));
    }
}
