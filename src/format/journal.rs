//! The journal file, version 1: the receiver's durable copy of one delta (docs/format/journal.md).
//!
//! A 4 KiB header that names what the delta belongs to, then the frames as they came. Each sync pads
//! with zeros to the next 4 KiB, so that a byte that was synced is never written again. A Seal frame
//! ends a complete delta.

use super::codec::crc;
use super::stream::{self, Header};
use crate::digest::{Algorithm, Digest, checksum};
use crate::error::{Error, Result};
use crate::extent::Geometry;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Format version.
pub const VERSION: u16 = 1;
/// Bytes of the header, and the alignment of every sync.
pub const ALIGN_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"BFjournl";
const HEAD_BYTES: usize = size_of::<Head>();
const _: () = assert!(HEAD_BYTES == 96);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    algorithm: u8,
    reserved: u8,
    extent_bytes: U32,
    volume_bytes: U64,
    relationship: [u8; 16],
    epoch: [u8; 16],
    base_generation: U64,
    base_root: [u8; 16],
    reserved_tail: [u8; 12],
    crc: U32,
}

/// What a journal belongs to: it may only be applied onto exactly this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belongs {
    /// The relationship.
    pub relationship: Uuid,
    /// The epoch of its base.
    pub epoch: Uuid,
    /// The generation under the delta.
    pub base_generation: u64,
    /// Its root.
    pub base_root: Digest,
    /// Size of volume and extents.
    pub geometry: Geometry,
    /// How content is named.
    pub algorithm: Algorithm,
}

impl Belongs {
    /// The first 4 KiB of the file.
    pub fn encode(&self) -> [u8; ALIGN_BYTES] {
        let mut head = Head {
            magic: MAGIC,
            version: U16::new(VERSION),
            algorithm: self.algorithm as u8,
            reserved: 0,
            extent_bytes: U32::new(self.geometry.extent_bytes() as u32),
            volume_bytes: U64::new(self.geometry.volume_bytes()),
            relationship: *self.relationship.as_bytes(),
            epoch: *self.epoch.as_bytes(),
            base_generation: U64::new(self.base_generation),
            base_root: self.base_root.0,
            reserved_tail: [0; 12],
            crc: U32::ZERO,
        };
        head.crc = U32::new(crc(&head.as_bytes()[..HEAD_BYTES - 4]));
        let mut block = [0; ALIGN_BYTES];
        block[..HEAD_BYTES].copy_from_slice(head.as_bytes());
        block
    }

    /// Reads the first 4 KiB of the file.
    pub fn decode(block: &[u8]) -> Result<Belongs> {
        let damaged = |how: &str| Error::malformed(format!("damaged journal header: {how}"));
        let (head, _) = Head::read_from_prefix(block).map_err(|_| damaged("it ends too early"))?;
        if head.magic != MAGIC {
            return Err(damaged("it does not begin with the journal mark"));
        }
        if crc(&block[..HEAD_BYTES - 4]) != head.crc.get() {
            return Err(damaged("its CRC does not match"));
        }
        if head.version.get() != VERSION {
            return Err(damaged(&format!("version {} is not known here", head.version)));
        }
        Ok(Belongs {
            relationship: Uuid::from_bytes(head.relationship),
            epoch: Uuid::from_bytes(head.epoch),
            base_generation: head.base_generation.get(),
            base_root: Digest(head.base_root),
            geometry: Geometry::new(head.volume_bytes.get(), head.extent_bytes.get())?,
            algorithm: Algorithm::from_wire(head.algorithm).ok_or_else(|| damaged("unknown digest algorithm"))?,
        })
    }
}

/// Where a padded position continues.
pub fn align(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGN_BYTES as u64)
}

/// What lies at a position of the journal.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame begins here.
    Frame(Header),
    /// Zeros up to the next 4 KiB.
    Padding,
}

/// Looks at the bytes at a position. `None`: too few to tell. An error: damage, or the torn tail. A frame begins with its
/// mark, so that one zero tells padding; there may be no more of it than one, before the next frame.
pub fn item(bytes: &[u8]) -> Result<Option<Item>> {
    if bytes.first() == Some(&0) {
        return Ok(Some(Item::Padding));
    }
    Ok(stream::header(bytes)?.map(Item::Frame))
}

/// The check over all frames of a journal, in order: a lost, doubled or swapped frame changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Frames so far.
    pub frames: u64,
    /// Check so far.
    pub value: u64,
}

impl Chain {
    /// Adds the next frame.
    pub fn add(&mut self, header: &Header) {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.value.to_le_bytes());
        bytes[8..].copy_from_slice(&header.crc.to_le_bytes());
        self.value = checksum(&bytes);
        self.frames += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belongs() -> Belongs {
        Belongs {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            base_generation: 3,
            base_root: Digest([4; 16]),
            geometry: Geometry::new(1 << 30, 65536).unwrap(),
            algorithm: Algorithm::Xxh3,
        }
    }

    #[test]
    fn the_header_reads_back_and_no_flipped_bit_passes() {
        let block = belongs().encode();
        assert_eq!(Belongs::decode(&block).unwrap(), belongs());
        for bit in 0..HEAD_BYTES * 8 {
            let mut broken = block;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Belongs::decode(&broken).is_err(), "bit {bit}");
        }
    }
}
