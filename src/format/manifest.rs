//! The manifest file, version 1: the digest of every extent of one generation (docs/format/manifest.md).
//!
//! A 4 KiB header, a table with one 16-byte digest per page, and the pages: 256 entries of an extent's
//! digest and its blocks' fingerprints. A page's check is its digest in the table; the root is the
//! digest over the table. A page whose extents are all zero is only a mark in the table, so that a
//! sparse volume has a sparse manifest.

use super::codec::crc;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::limits::PAGE_EXTENTS;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Format version.
pub const VERSION: u16 = 1;
/// Bytes of the header; the table follows.
pub const HEADER_BYTES: usize = 4096;
/// Table entries hashed together on the way to the root.
pub const SLICE_PAGES: usize = 4096;

const MAGIC: [u8; 8] = *b"BFmanfst";
const HEAD_BYTES: usize = size_of::<Head>();
const _: () = assert!(HEAD_BYTES == 112);

/// In the table: nothing is known of this page.
pub const PAGE_UNKNOWN: Digest = Digest::UNKNOWN;
/// In the table: every extent of this page is zero; the page itself is not stored.
pub const PAGE_ZERO: Digest = Digest([0xff; 16]);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    algorithm: u8,
    sealed: u8,
    extent_bytes: U32,
    volume_bytes: U64,
    page_extents: U32,
    entry_bytes: U32,
    relationship: [u8; 16],
    epoch: [u8; 16],
    generation: U64,
    root: [u8; 16],
    reserved: [u8; 20],
    crc: U32,
}

/// What a manifest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The relationship.
    pub relationship: Uuid,
    /// The epoch of the generation.
    pub epoch: Uuid,
    /// The generation it describes.
    pub generation: u64,
    /// Its root; believed only when sealed.
    pub root: Digest,
    /// Whether the pages were complete and durable before this header was written.
    pub sealed: bool,
    /// How content is named.
    pub algorithm: Algorithm,
    /// Size of volume and extents.
    pub geometry: Geometry,
}

impl About {
    /// The first 4 KiB of the file.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let layout = Layout::new(&self.geometry);
        let mut head = Head {
            magic: MAGIC,
            version: U16::new(VERSION),
            algorithm: self.algorithm as u8,
            sealed: u8::from(self.sealed),
            extent_bytes: U32::new(self.geometry.extent_bytes() as u32),
            volume_bytes: U64::new(self.geometry.volume_bytes()),
            page_extents: U32::new(PAGE_EXTENTS as u32),
            entry_bytes: U32::new(layout.entry_bytes as u32),
            relationship: *self.relationship.as_bytes(),
            epoch: *self.epoch.as_bytes(),
            generation: U64::new(self.generation),
            root: self.root.0,
            reserved: [0; 20],
            crc: U32::ZERO,
        };
        head.crc = U32::new(crc(&head.as_bytes()[..HEAD_BYTES - 4]));
        let mut block = [0; HEADER_BYTES];
        block[..HEAD_BYTES].copy_from_slice(head.as_bytes());
        block
    }

    /// Reads the first 4 KiB of the file.
    pub fn decode(block: &[u8]) -> Result<About> {
        let damaged = |how: &str| Error::malformed(format!("damaged manifest header: {how}"));
        let (head, _) = Head::read_from_prefix(block).map_err(|_| damaged("it ends too early"))?;
        if head.magic != MAGIC {
            return Err(damaged("it does not begin with the manifest mark"));
        }
        if crc(&block[..HEAD_BYTES - 4]) != head.crc.get() {
            return Err(damaged("its CRC does not match"));
        }
        if head.version.get() != VERSION {
            return Err(damaged(&format!("version {} is not known here", head.version)));
        }
        let geometry = Geometry::new(head.volume_bytes.get(), head.extent_bytes.get())?;
        let layout = Layout::new(&geometry);
        if head.page_extents.get() as usize != PAGE_EXTENTS || head.entry_bytes.get() as usize != layout.entry_bytes || head.sealed > 1 {
            return Err(damaged("its page layout is not that of this version"));
        }
        Ok(About {
            relationship: Uuid::from_bytes(head.relationship),
            epoch: Uuid::from_bytes(head.epoch),
            generation: head.generation.get(),
            root: Digest(head.root),
            sealed: head.sealed == 1,
            algorithm: Algorithm::from_wire(head.algorithm).ok_or_else(|| damaged("unknown digest algorithm"))?,
            geometry,
        })
    }
}

/// Where things lie in the file; all from the geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of an entry: digest and fingerprints.
    pub entry_bytes: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Number of pages.
    pub pages: u64,
}

impl Layout {
    /// The layout for a volume.
    pub fn new(geometry: &Geometry) -> Layout {
        let entry_bytes = 16 + 4 * geometry.blocks_per_extent();
        Layout { entry_bytes, page_bytes: PAGE_EXTENTS * entry_bytes, pages: geometry.extents().div_ceil(PAGE_EXTENTS as u64) }
    }

    /// Offset of a page's table entry.
    pub fn table_at(&self, page: u64) -> u64 {
        HEADER_BYTES as u64 + 16 * page
    }

    /// Offset of a page.
    pub fn page_at(&self, page: u64) -> u64 {
        self.table_at(self.pages).next_multiple_of(HEADER_BYTES as u64) + page * self.page_bytes as u64
    }

    /// The page an extent is on, and its entry there.
    pub fn place(&self, extent: ExtentIndex) -> (u64, usize) {
        (extent.0 / PAGE_EXTENTS as u64, (extent.0 % PAGE_EXTENTS as u64) as usize)
    }

    /// The extents of a page.
    pub fn extents(&self, geometry: &Geometry, page: u64) -> std::ops::Range<u64> {
        let first = page * PAGE_EXTENTS as u64;
        first..(first + PAGE_EXTENTS as u64).min(geometry.extents())
    }
}

/// One entry: what an extent is called, and what its blocks look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The extent's digest, maybe unknown.
    pub digest: Digest,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads an entry from its bytes in a page.
    pub fn new(bytes: &'a [u8]) -> Entry<'a> {
        let mut digest = Digest::UNKNOWN;
        digest.0.copy_from_slice(&bytes[..16]);
        Entry { digest, bytes }
    }

    /// The entry as it lies in its page.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The fingerprint of a block; 0 where none is known.
    pub fn fingerprint(&self, block: usize) -> u32 {
        match self.bytes.get(16 + 4 * block..20 + 4 * block) {
            Some(bytes) => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            None => 0,
        }
    }
}

/// Writes an entry from the digests of an extent and of its blocks.
pub fn write_entry(entry: &mut [u8], digest: &Digest, blocks: &[Digest]) {
    entry[..16].copy_from_slice(&digest.0);
    let (used, unused) = entry[16..].split_at_mut(4 * blocks.len());
    used.chunks_exact_mut(4).zip(blocks).for_each(|(bytes, block)| bytes.copy_from_slice(&block.fingerprint().to_le_bytes()));
    unused.fill(0);
}

/// The root from the digests of the table's slices: `SLICE_PAGES` entries each, the last maybe fewer.
pub fn root_of<'a>(hasher: &Hasher, geometry: &Geometry, slices: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut sizes = [0; 16];
    sizes[..8].copy_from_slice(&geometry.volume_bytes().to_le_bytes());
    sizes[8..].copy_from_slice(&(geometry.extent_bytes() as u64).to_le_bytes());
    let all: Vec<Digest> = std::iter::once(hasher.digest(&sizes)).chain(slices.copied()).collect();
    hasher.over(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_reads_back_and_no_flipped_bit_passes() {
        let about = About {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 3,
            root: Digest([4; 16]),
            sealed: true,
            algorithm: Algorithm::Blake3,
            geometry: Geometry::new(1 << 30, 65536).unwrap(),
        };
        let block = about.encode();
        assert_eq!(About::decode(&block).unwrap(), about);
        for bit in 0..HEAD_BYTES * 8 {
            let mut broken = block;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(About::decode(&broken).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn pages_follow_the_table_without_overlap() {
        for bytes in [512, 1 << 30, 64 << 40] {
            let geometry = Geometry::new(bytes, 65536).unwrap();
            let layout = Layout::new(&geometry);
            assert!(layout.page_at(0) >= layout.table_at(layout.pages));
            assert_eq!(layout.page_at(1) - layout.page_at(0), layout.page_bytes as u64);
        }
    }
}
