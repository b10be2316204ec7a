//! Gathers changed blocks into one run that is compressed as a whole: long runs pack better than one
//! frame an extent.

use super::hasher::HashedExtent;
use crate::error::{Context, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::stream::{DataTable, Encoding, ExtentLine};
use crate::limits::PACK_BYTES;
use crate::settings::by_text;
use std::str::FromStr;

/// How hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compress {
    /// A level of our choice; what does not shrink is stored.
    Auto,
    /// Store everything.
    None,
    /// This zstd level; what does not shrink is stored.
    Level(i32),
}

by_text!(Compress);

/// The level of `auto`: the measured knee between speed and ratio.
const AUTO_LEVEL: i32 = 1;
/// Stored when compression saves less than this part.
const WORTH_PART: usize = 16;

impl Compress {
    fn level(self) -> Option<i32> {
        match self {
            Compress::Auto => Some(AUTO_LEVEL),
            Compress::None => None,
            Compress::Level(level) => Some(level),
        }
    }
}

impl std::fmt::Display for Compress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Compress::Auto => f.write_str("auto"),
            Compress::None => f.write_str("none"),
            Compress::Level(level) => level.fmt(f),
        }
    }
}

impl FromStr for Compress {
    type Err = String;

    fn from_str(text: &str) -> Result<Compress, String> {
        match text {
            "auto" => Ok(Compress::Auto),
            "none" => Ok(Compress::None),
            _ => match text.parse() {
                Ok(level) if (-7..=19).contains(&level) => Ok(Compress::Level(level)),
                _ => Err("takes auto, none or a zstd level from -7 to 19".to_owned()),
            },
        }
    }
}

/// A run of changed blocks with the table that says where they belong.
pub struct PackedRun {
    geometry: Geometry,
    table: DataTable,
    plain: Vec<u8>,
    whole: bool,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl PackedRun {
    /// An empty run.
    pub fn new(geometry: Geometry, compress: Compress) -> Result<PackedRun> {
        let compressor = compress.level().map(zstd::bulk::Compressor::new).transpose().context(Kind::Failed, || "start zstd")?;
        Ok(PackedRun { geometry, table: DataTable::new(&geometry), plain: Vec::with_capacity(PACK_BYTES), whole: true, compressor })
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether this extent's blocks still fit behind what is in it.
    pub fn takes(&self, extent: ExtentIndex, plain_bytes: usize) -> bool {
        self.table.takes(extent) && (self.plain.is_empty() || self.plain.len() + plain_bytes <= PACK_BYTES)
    }

    /// Adds the marked blocks of an extent. Returns how many blocks and bytes those are.
    pub fn add(&mut self, extent: &HashedExtent<'_>, bitmap: &[u8]) -> (u64, u64) {
        let mut padded = [0; crate::limits::EXTENT_BYTES_MAX as usize / crate::limits::BLOCK_BYTES / 8];
        padded[..bitmap.len()].copy_from_slice(bitmap);
        self.table.push(extent.index, &extent.digest, &padded);
        let line = ExtentLine { extent: extent.index, digest: extent.digest, bitmap };
        self.whole &= line.is_whole(&self.geometry);
        let (before, mut blocks) = (self.plain.len(), 0);
        for run in line.runs() {
            blocks += run.len() as u64;
            let end = (run.end * crate::limits::BLOCK_BYTES).min(extent.data.len());
            self.plain.extend_from_slice(&extent.data[run.start * crate::limits::BLOCK_BYTES..end]);
        }
        (blocks, (self.plain.len() - before) as u64)
    }

    /// Bytes of the largest frame this run can become.
    pub fn frame_bound(&self) -> usize {
        self.table.payload_at() + self.plain.len()
    }

    /// Writes the run as one frame into `frame` and empties it. Returns the frame's length.
    pub fn write(&mut self, frame: &mut [u8]) -> usize {
        let at = self.table.payload_at();
        // The room behind the table ends where compression would no longer be worth it, so that zstd
        // itself stops with "too small" on data that does not shrink.
        let worth = self.plain.len() - self.plain.len() / WORTH_PART;
        let packed = self.compressor.as_mut().and_then(|zstd| zstd.compress_to_buffer(&self.plain, &mut frame[at..at + worth]).ok());
        let (payload_bytes, encoding) = match packed {
            Some(bytes) => (bytes, Encoding::Zstd),
            None => {
                frame[at..at + self.plain.len()].copy_from_slice(&self.plain);
                (self.plain.len(), Encoding::Stored)
            }
        };
        let bytes = self.table.write(frame, self.plain.len(), payload_bytes, encoding, self.whole);
        self.table.clear();
        self.plain.clear();
        self.whole = true;
        bytes
    }
}
