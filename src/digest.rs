//! What content is called: keyed 128-bit digests of extents and 32-bit fingerprints of their blocks.
//!
//! A block's digest is XXH3-128 (<https://github.com/Cyan4973/xxHash>, xxh3 with a custom secret) or
//! keyed BLAKE3 cut to 128 bits; an extent's digest is the same function over its blocks' digests, and
//! a block's fingerprint is the low 32 bits of its digest. One pass over the data gives both. The
//! secret is the relationship's own, so that nobody who writes to a volume can prepare two blocks
//! that collide.

use crate::limits::BLOCK_BYTES;
use std::fmt;
use std::sync::OnceLock;

/// Bytes of a relationship's hash secret: what XXH3's long-input loop consumes.
pub const SECRET_BYTES: usize = 192;

/// A relationship's random hash secret.
pub type Secret = [u8; SECRET_BYTES];

/// 128 bits that name a content. All zero means "unknown".
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable,
)]
#[repr(C)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The content is not known.
    pub const UNKNOWN: Digest = Digest([0; 16]);

    /// The low 32 bits, little-endian.
    pub fn fingerprint(&self) -> u32 {
        u32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Whether this names any content at all.
    pub fn is_known(&self) -> bool {
        *self != Digest::UNKNOWN
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The hash function of a relationship.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Algorithm {
    /// XXH3-128 with the relationship's secret.
    Xxh3 = 1,
    /// BLAKE3 keyed with the first 32 bytes of the secret, cut to 128 bits.
    Blake3 = 2,
}

impl Algorithm {
    /// The algorithm with this number in a format.
    pub fn from_wire(code: u8) -> Option<Algorithm> {
        match code {
            1 => Some(Algorithm::Xxh3),
            2 => Some(Algorithm::Blake3),
            _ => None,
        }
    }
}

/// Which code computes XXH3 over a long input. Both give the same digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    /// The best this CPU has, chosen at run time (twox-hash).
    Best,
    /// What the compiler was told to assume (xxhash-rust; SSE2 on x86-64).
    Portable,
}

/// `BLOCKFERRY_VECTORS=portable` is for support: it takes run-time vector code out of the picture.
fn vectors() -> Vectors {
    static CHOICE: OnceLock<Vectors> = OnceLock::new();
    *CHOICE.get_or_init(|| match std::env::var("BLOCKFERRY_VECTORS").as_deref() {
        Ok("portable") => Vectors::Portable,
        _ => Vectors::Best,
    })
}

/// Below this length XXH3 has no vector loop and the two crates do the same work.
const LONG_INPUT_BYTES: usize = 241;

fn xxh3(secret: &Secret, data: &[u8], vectors: Vectors) -> Digest {
    let value = if vectors == Vectors::Best && data.len() >= LONG_INPUT_BYTES {
        // Fails only for secrets below 136 bytes; ours has 192.
        twox_hash::XxHash3_128::oneshot_with_secret(secret, data).expect("the secret has 192 bytes")
    } else {
        xxhash_rust::xxh3::xxh3_128_with_secret(data, secret)
    };
    Digest(value.to_le_bytes())
}

/// Unkeyed 64-bit check of a frame's body: finds damage, proves nothing about content.
pub fn checksum(data: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(data)
}

/// Hashes blocks and extents of one relationship.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    secret: Box<Secret>,
    vectors: Vectors,
    zero_block: Digest,
}

impl Hasher {
    /// A hasher for this relationship's algorithm and secret.
    pub fn new(algorithm: Algorithm, secret: &Secret) -> Hasher {
        let mut hasher = Hasher { algorithm, secret: Box::new(*secret), vectors: vectors(), zero_block: Digest::UNKNOWN };
        hasher.zero_block = hasher.digest(&[0; BLOCK_BYTES]);
        hasher
    }

    /// The digest of any bytes: a block, a manifest page, a list of digests. Never `UNKNOWN`.
    pub fn digest(&self, data: &[u8]) -> Digest {
        let digest = match self.algorithm {
            Algorithm::Xxh3 => xxh3(&self.secret, data, self.vectors),
            Algorithm::Blake3 => {
                let mut key = [0; 32];
                key.copy_from_slice(&self.secret[..32]);
                let mut short = [0; 16];
                short.copy_from_slice(&blake3::keyed_hash(&key, data).as_bytes()[..16]);
                Digest(short)
            }
        };
        // One content in 2^128 would be called "unknown"; it gets the neighbouring name.
        if digest.is_known() { digest } else { Digest([1; 16]) }
    }

    /// The digest of one extent; `blocks` receives the digest of each of its 4 KiB blocks.
    pub fn extent(&self, data: &[u8], blocks: &mut Vec<Digest>) -> Digest {
        blocks.clear();
        blocks.extend(data.chunks(BLOCK_BYTES).map(|block| self.digest(block)));
        self.over(blocks)
    }

    /// The digest over digests: an extent from its blocks, a root from its pages.
    pub fn over(&self, digests: &[Digest]) -> Digest {
        self.digest(zerocopy::IntoBytes::as_bytes(digests))
    }

    /// The digest of an extent of `bytes` zeros; `blocks` receives its blocks' digests.
    pub fn zero_extent(&self, bytes: usize, blocks: &mut Vec<Digest>) -> Digest {
        blocks.clear();
        blocks.resize(bytes / BLOCK_BYTES, self.zero_block);
        if !bytes.is_multiple_of(BLOCK_BYTES) {
            blocks.push(self.digest(&[0; BLOCK_BYTES][..bytes % BLOCK_BYTES]));
        }
        self.over(blocks)
    }
}

impl fmt::Debug for Hasher {
    /// The secret stays out of every log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Whether every byte is zero. The compiler turns the fold into vector code; 4 KiB steps leave early.
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(BLOCK_BYTES).all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        std::array::from_fn(|i| (i * 37 + 11) as u8)
    }

    #[test]
    fn the_vector_code_gives_the_digest_of_the_reference() {
        let data: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for bytes in (0..2100).chain([4095, 4096, 4097, 65536, 70_000]) {
            let best = xxh3(&secret(), &data[..bytes], Vectors::Best);
            assert_eq!(best, xxh3(&secret(), &data[..bytes], Vectors::Portable), "{bytes} bytes");
        }
    }

    #[test]
    fn a_zero_extent_is_named_without_reading_it() {
        for algorithm in [Algorithm::Xxh3, Algorithm::Blake3] {
            let hasher = Hasher::new(algorithm, &secret());
            for bytes in [512, 4096, 4608, 65536] {
                let (mut named, mut read) = (Vec::new(), Vec::new());
                assert_eq!(hasher.zero_extent(bytes, &mut named), hasher.extent(&vec![0; bytes], &mut read));
                assert_eq!(named, read);
            }
        }
    }

    #[test]
    fn another_secret_gives_other_digests() {
        let mut other = secret();
        other[5] ^= 1;
        for algorithm in [Algorithm::Xxh3, Algorithm::Blake3] {
            let (a, b) = (Hasher::new(algorithm, &secret()), Hasher::new(algorithm, &other));
            assert_ne!(a.digest(&[7; 4096]), b.digest(&[7; 4096]));
        }
    }

    #[test]
    fn one_set_bit_is_not_zero() {
        let mut data = vec![0; 3 * BLOCK_BYTES + 17];
        assert!(is_zero(&data));
        for at in [0, 4095, 4096, data.len() - 1] {
            data[at] = 0x80;
            assert!(!is_zero(&data));
            data[at] = 0;
        }
    }
}
