//! How a volume is divided: extents (the unit of comparing), blocks inside them (the unit of
//! sending) and chunks around them (the unit of I/O). Pure arithmetic; the last of each may be short.

use crate::error::{Error, Kind, Result};
use crate::limits::*;
use std::ops::Range;

/// Number of an extent within its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentIndex(pub u64);

impl std::fmt::Display for ExtentIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a volume and of its extents, both in bytes; valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    volume_bytes: u64,
    extent_bytes: u32,
}

impl Geometry {
    /// Refuses an extent size that is no power of two in 4 KiB…4 MiB, volumes that are empty or beyond 1 EiB, and more
    /// extents than [`VOLUME_EXTENTS_MAX`].
    pub fn new(volume_bytes: u64, extent_bytes: u32) -> Result<Geometry> {
        if !extent_bytes.is_power_of_two() || !(EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&extent_bytes) {
            return Err(Error::new(Kind::Usage, format!("extent size {extent_bytes} is not a power of two from 4 KiB to 4 MiB")));
        }
        if volume_bytes == 0 || volume_bytes > VOLUME_BYTES_MAX {
            return Err(Error::new(Kind::Refused, format!("a volume of {volume_bytes} bytes cannot be replicated")));
        }
        let geometry = Geometry { volume_bytes, extent_bytes };
        if geometry.extents() > VOLUME_EXTENTS_MAX {
            let hint = "a larger --extent-size makes fewer of it";
            let message = format!("a volume of {volume_bytes} bytes has too many extents of {extent_bytes} bytes: {hint}");
            return Err(Error::new(Kind::Refused, message));
        }
        Ok(geometry)
    }

    /// Bytes of the volume.
    pub fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Bytes of a full extent.
    pub fn extent_bytes(&self) -> usize {
        self.extent_bytes as usize
    }

    /// Number of extents, the short last one included.
    pub fn extents(&self) -> u64 {
        self.volume_bytes.div_ceil(u64::from(self.extent_bytes))
    }

    /// Blocks of a full extent.
    pub fn blocks_per_extent(&self) -> usize {
        self.extent_bytes() / BLOCK_BYTES
    }

    /// Byte offset of an extent.
    pub fn offset(&self, extent: ExtentIndex) -> u64 {
        extent.0 * u64::from(self.extent_bytes)
    }

    /// Bytes of this extent: only the last may be short. Zero beyond the end.
    pub fn bytes_of(&self, extent: ExtentIndex) -> usize {
        let left = self.volume_bytes.saturating_sub(self.offset(extent));
        left.min(u64::from(self.extent_bytes)) as usize
    }

    /// Blocks of this extent, the short last one included.
    pub fn blocks_of(&self, extent: ExtentIndex) -> usize {
        self.bytes_of(extent).div_ceil(BLOCK_BYTES)
    }

    /// Bytes of block `block` of `extent`.
    pub fn block_bytes(&self, extent: ExtentIndex, block: usize) -> usize {
        self.bytes_of(extent).saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES)
    }

    /// Bytes of an I/O chunk: 1 MiB, or one extent where that is larger.
    pub fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES.max(self.extent_bytes())
    }

    /// The extents that lie wholly or partly in a byte range.
    pub fn extents_touching(&self, bytes: Range<u64>) -> Range<u64> {
        let size = u64::from(self.extent_bytes);
        bytes.start / size..bytes.end.min(self.volume_bytes).div_ceil(size)
    }

    /// The extents that lie wholly in a byte range; the short last extent counts when the range reaches the end.
    pub fn extents_within(&self, bytes: Range<u64>) -> Range<u64> {
        let size = u64::from(self.extent_bytes);
        let first = bytes.start.div_ceil(size);
        let end = if bytes.end >= self.volume_bytes { self.extents() } else { bytes.end / size };
        first..end.max(first)
    }

    /// The byte range of a range of extents.
    pub fn bytes_range(&self, extents: Range<u64>) -> Range<u64> {
        let size = u64::from(self.extent_bytes);
        extents.start * size..(extents.end * size).min(self.volume_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_too_many_extents_is_refused_with_the_way_out() {
        assert!(Geometry::new(VOLUME_EXTENTS_MAX << 22, EXTENT_BYTES_MAX).is_ok());
        assert!(Geometry::new(VOLUME_BYTES_MAX, EXTENT_BYTES_MAX).is_err());
        assert!(Geometry::new(VOLUME_EXTENTS_MAX * 4096, 4096).is_ok());
        let said = Geometry::new(VOLUME_EXTENTS_MAX * 4096 + 1, 4096).unwrap_err().chain();
        assert!(said.contains("--extent-size"), "{said}");
    }

    #[test]
    fn the_last_extent_and_block_may_be_short() {
        let geometry = Geometry::new(3 * 65536 + 4096 + 512, 65536).unwrap();
        assert_eq!(geometry.extents(), 4);
        assert_eq!(geometry.bytes_of(ExtentIndex(2)), 65536);
        assert_eq!(geometry.bytes_of(ExtentIndex(3)), 4608);
        assert_eq!(geometry.bytes_of(ExtentIndex(4)), 0);
        assert_eq!(geometry.blocks_of(ExtentIndex(3)), 2);
        assert_eq!(geometry.block_bytes(ExtentIndex(3), 1), 512);
    }

    #[test]
    fn a_range_touches_more_extents_than_it_holds() {
        let geometry = Geometry::new(10 * 65536 - 512, 65536).unwrap();
        assert_eq!(geometry.extents_touching(1..65537), 0..2);
        assert_eq!(geometry.extents_within(1..3 * 65536), 1..3);
        assert_eq!(geometry.extents_within(9 * 65536..10 * 65536 - 512), 9..10);
        assert_eq!(geometry.extents_within(100..200), 1..1);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Geometry::new(1 << 30, 65537).is_err());
        assert!(Geometry::new(1 << 30, 2048).is_err());
        assert!(Geometry::new(1 << 30, 8 << 20).is_err());
        assert!(Geometry::new(0, 65536).is_err());
        assert!(Geometry::new(u64::MAX, 65536).is_err());
    }
}
