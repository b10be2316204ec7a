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
    /// The level that ends the pass soonest; what does not shrink is stored.
    Auto,
    /// Store everything.
    None,
    /// This zstd level; what does not shrink is stored.
    Level(i32),
}

by_text!(Compress);

/// Stored when compression saves less than this part.
const WORTH_PART: usize = 16;

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

type Compressor = zstd::bulk::Compressor<'static>;

/// A run of changed blocks with the table that says where they belong.
pub struct PackedRun {
    geometry: Geometry,
    table: DataTable,
    plain: Vec<u8>,
    whole: bool,
    zstd: Option<(i32, Compressor)>,
}

/// What became of a run.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Bytes of the frame.
    pub frame_bytes: usize,
    /// Bytes of the blocks in it.
    pub plain_bytes: usize,
    /// What is left of them.
    pub payload_bytes: usize,
}

impl PackedRun {
    /// An empty run.
    pub fn new(geometry: Geometry) -> PackedRun {
        PackedRun { geometry, table: DataTable::new(&geometry), plain: Vec::with_capacity(PACK_BYTES), whole: true, zstd: None }
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

    /// Writes the run as one frame into `frame` and empties it. `None` stores it as it is.
    pub fn write(&mut self, frame: &mut [u8], level: Option<i32>) -> Result<Packed> {
        let at = self.table.payload_at();
        let plain_bytes = self.plain.len();
        // The room behind the table ends where compression would no longer be worth it, so that zstd
        // itself stops with "too small" on data that does not shrink.
        let worth = plain_bytes - plain_bytes / WORTH_PART;
        let packed = match level {
            Some(level) => compressor(&mut self.zstd, level)?.compress_to_buffer(&self.plain, &mut frame[at..at + worth]).ok(),
            None => None,
        };
        let (payload_bytes, encoding) = match packed {
            Some(bytes) => (bytes, Encoding::Zstd),
            None => {
                frame[at..at + plain_bytes].copy_from_slice(&self.plain);
                (plain_bytes, Encoding::Stored)
            }
        };
        let frame_bytes = self.table.write(frame, plain_bytes, payload_bytes, encoding, self.whole);
        self.table.clear();
        self.plain.clear();
        self.whole = true;
        Ok(Packed { frame_bytes, plain_bytes, payload_bytes })
    }
}

/// The one context, at this level: made at its first use, moved where the level changed.
fn compressor(zstd: &mut Option<(i32, Compressor)>, level: i32) -> Result<&mut Compressor> {
    let (now, context) = match zstd.take() {
        Some(zstd) => zstd,
        None => (level, Compressor::new(level).context(Kind::Failed, || "start zstd")?),
    };
    let (now, context) = zstd.insert((now, context));
    if *now != level {
        context.set_compression_level(level).context(Kind::Failed, || format!("set zstd to level {level}"))?;
        *now = level;
    }
    Ok(context)
}
