//! What blocks are hashed with: BLAKE3 where bits depend on it (rule 2), and the choices of
//! `verify-alg`.

use md5::Digest as _;

use crate::engine::Digest;

/// The hash of `bytes`, followed by zeroes where it is shorter.
pub fn of(digest: Digest, bytes: &[u8]) -> [u8; 32] {
    match digest {
        Digest::Blake3 => *blake3::hash(bytes).as_bytes(),
        Digest::Crc32c => padded(&crc32c::crc32c(bytes).to_le_bytes()),
        Digest::Xxh3 => padded(&xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes()),
        Digest::Md5 => padded(&md5::Md5::digest(bytes)),
        Digest::Sha1 => padded(&sha1::Sha1::digest(bytes)),
        Digest::Sha256 => padded(&sha2::Sha256::digest(bytes)),
    }
}

/// The choices of `verify-alg` by their names.
pub fn of_name(name: &str) -> Option<Digest> {
    Some(match name {
        "crc32c" => Digest::Crc32c,
        "xxh3" => Digest::Xxh3,
        "md5" => Digest::Md5,
        "sha1" => Digest::Sha1,
        "sha256" => Digest::Sha256,
        _ => return None,
    })
}

fn padded(hash: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hash) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_configuration_is_a_digest() {
        for name in crate::config::VERIFY_ALGS {
            assert!(of_name(name).is_some(), "{name}");
        }
    }

    /// Published test vectors: RFC 3720 B.4, RFC 1321 A.5, FIPS 180-2 B.1 and A.1, and the
    /// reference implementations of XXH3 (of nothing) and BLAKE3.
    #[test]
    fn every_digest_is_the_one_it_is_called() {
        let hex = |digest, bytes: &[u8], len: usize| {
            let hash = of(digest, bytes);
            assert!(hash[len..].iter().all(|byte| *byte == 0));
            let text: Vec<String> = hash[..len]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            text.concat()
        };
        assert_eq!(hex(Digest::Crc32c, &[0; 32], 4), "aa36918a");
        assert_eq!(
            hex(Digest::Md5, b"abc", 16),
            "900150983cd24fb0d6963f7d28e17f72"
        );
        assert_eq!(
            hex(Digest::Sha1, b"abc", 20),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            hex(Digest::Sha256, b"abc", 32),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(Digest::Blake3, b"abc", 32),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
        assert_eq!(
            hex(Digest::Xxh3, b"", 16),
            "7f498d4624c30160d8984701d306aa99"
        );
    }
}
