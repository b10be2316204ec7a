//! Names the content of a chunk: the digest of each extent and of each of its blocks, in one pass.

use crate::digest::{Digest, Hasher};
use crate::disk::scan::RawChunk;
use crate::extent::{ExtentIndex, Geometry};

/// A chunk whose content has names. Only such a chunk can be compared and framed.
#[derive(Debug)]
pub struct HashedChunk {
    raw: RawChunk,
    names: Names,
}

/// The digests of a chunk; kept from chunk to chunk to spare allocations.
#[derive(Debug, Default)]
pub struct Names {
    extents: Vec<Digest>,
    blocks: Vec<Digest>,
    scratch: Vec<Digest>,
}

/// One extent of a hashed chunk.
#[derive(Clone, Copy, Debug)]
pub struct HashedExtent<'a> {
    /// Which one.
    pub index: ExtentIndex,
    /// Its bytes.
    pub data: &'a [u8],
    /// Its digest.
    pub digest: Digest,
    /// Its blocks' digests.
    pub blocks: &'a [Digest],
}

impl HashedChunk {
    /// Hashes a chunk; `names` lends its memory.
    pub fn new(raw: RawChunk, geometry: &Geometry, hasher: &Hasher, mut names: Names) -> HashedChunk {
        names.extents.clear();
        names.blocks.clear();
        for extent in raw.data().chunks(geometry.extent_bytes()) {
            names.extents.push(hasher.extent(extent, &mut names.scratch));
            names.blocks.extend_from_slice(&names.scratch);
        }
        HashedChunk { raw, names }
    }

    /// The extents in order.
    pub fn extents(&self, geometry: &Geometry) -> impl Iterator<Item = HashedExtent<'_>> {
        let first = self.raw.offset / geometry.extent_bytes() as u64;
        let per_extent = geometry.blocks_per_extent();
        self.raw.data().chunks(geometry.extent_bytes()).zip(&self.names.extents).enumerate().map(move |(at, (data, digest))| HashedExtent {
            index: ExtentIndex(first + at as u64),
            data,
            digest: *digest,
            blocks: &self.names.blocks[at * per_extent..((at + 1) * per_extent).min(self.names.blocks.len())],
        })
    }

    /// The chunk and the memory, to be used again.
    pub fn into_parts(self) -> (RawChunk, Names) {
        (self.raw, self.names)
    }
}
