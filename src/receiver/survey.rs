//! Learns and tells what the replica holds: hashes the device where no manifest can say it, lists
//! digests to the sender, and takes samples before the first write.

use super::target::Target;
use crate::digest::{Digest, Hasher, is_zero};
use crate::disk::scan::{Piece, Scan};
use crate::error::{Context, Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::manifest::{PAGE_UNKNOWN, PAGE_ZERO, write_entry};
use crate::format::stream::{Have, Message};
use crate::limits::{HAVE_ENTRIES_MAX, PAGE_EXTENTS, SAMPLE_EXTENTS, SAMPLE_RANGES_MAX, SEED_SAMPLES};
use crate::progress::{Progress, Witness};
use crate::state::manifest::{Draft, Manifest};
use crate::transport::Wire;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// What is told each extent of a scanned device: its number, digest and blocks.
type Sink<'a> = dyn FnMut(Scanned<'_>) -> Result<()> + 'a;

/// A piece of a scanned device.
pub enum Scanned<'a> {
    /// A hole: these extents are zero.
    Zeros(std::ops::Range<u64>),
    /// An extent that was read.
    Extent(ExtentIndex, &'a Digest, &'a [Digest]),
}

impl Scanned<'_> {
    /// How much of the device it is.
    pub fn bytes(&self, geometry: &Geometry) -> u64 {
        match self {
            Scanned::Zeros(extents) => (extents.end - extents.start) * geometry.extent_bytes() as u64,
            Scanned::Extent(extent, ..) => geometry.bytes_of(*extent) as u64,
        }
    }
}

/// Reads and hashes the whole device.
pub fn hash_device(target: &mut Target, geometry: Geometry, hasher: &Hasher, progress: &Progress, sink: &mut Sink<'_>) -> Result<()> {
    let all = 0..geometry.extents();
    hash_parts(target, geometry, hasher, std::slice::from_ref(&all), progress, sink)
}

/// Reads and hashes these ranges of extents.
fn hash_parts(
    target: &mut Target,
    geometry: Geometry,
    hasher: &Hasher,
    parts: &[Range<u64>],
    progress: &Progress,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut scan = Scan::of(target.disk()?, geometry, parts)?;
    let mut blocks = Vec::new();
    let mut done = 0;
    while let Some(piece) = scan.next_piece()? {
        progress.stop_if_asked()?;
        match piece {
            Piece::Hole(extents) => {
                done += geometry.bytes_range(extents.clone()).end - geometry.bytes_range(extents.clone()).start;
                progress.scanned_bytes.store(done, Relaxed);
                sink(Scanned::Zeros(extents))?;
            }
            Piece::Chunk(chunk) => {
                done += chunk.bytes as u64;
                progress.scanned_bytes.store(done, Relaxed);
                let first = chunk.offset / geometry.extent_bytes() as u64;
                for (at, data) in chunk.data().chunks(geometry.extent_bytes()).enumerate() {
                    let digest = hasher.extent(data, &mut blocks);
                    sink(Scanned::Extent(ExtentIndex(first + at as u64), &digest, &blocks))?;
                }
                scan.recycle(chunk);
            }
        }
    }
    Ok(())
}

/// Fills a draft with what the device really holds.
pub fn draft_device(
    target: &mut Target,
    geometry: Geometry,
    hasher: &Hasher,
    progress: &Progress,
    draft: &mut Draft,
    witness: &mut dyn Witness,
) -> Result<()> {
    hash_device(target, geometry, hasher, progress, &mut |scanned| {
        witness.worked(scanned.bytes(&geometry))?;
        match scanned {
            Scanned::Zeros(extents) => draft.set_zeros(extents),
            Scanned::Extent(extent, digest, blocks) => draft.set(extent, digest, blocks),
        }
    })
}

/// Hashes the device and lists every digest as it comes; nothing is remembered.
pub fn list_device(wire: &mut Wire, target: &mut Target, geometry: Geometry, hasher: &Hasher, progress: &Progress) -> Result<()> {
    let all = 0..geometry.extents();
    list_parts(wire, target, geometry, hasher, std::slice::from_ref(&all), progress)
}

/// Hashes these ranges of extents and lists their digests as they come; nothing else is read.
pub fn list_parts(
    wire: &mut Wire,
    target: &mut Target,
    geometry: Geometry,
    hasher: &Hasher,
    parts: &[Range<u64>],
    progress: &Progress,
) -> Result<()> {
    let entry_bytes = 16 + 4 * geometry.blocks_per_extent();
    let per_frame = (crate::limits::PACK_BYTES / entry_bytes).clamp(1, HAVE_ENTRIES_MAX);
    let (mut first, mut entries) = (0, Vec::new());
    let mut entry = vec![0; entry_bytes];
    hash_parts(target, geometry, hasher, parts, progress, &mut |scanned| match scanned {
        Scanned::Zeros(extents) => {
            list_entries(wire, first, entry_bytes, &mut entries)?;
            first = extents.end;
            wire.put(&Message::Zero { first: extents.start, count: extents.end - extents.start })
        }
        Scanned::Extent(extent, digest, blocks) => {
            if extent.0 != first + (entries.len() / entry_bytes) as u64 {
                // Another part: a frame is about neighbours.
                list_entries(wire, first, entry_bytes, &mut entries)?;
            }
            if entries.is_empty() {
                first = extent.0;
            }
            write_entry(&mut entry, digest, blocks);
            entries.extend_from_slice(&entry);
            if entries.len() >= per_frame * entry_bytes {
                list_entries(wire, first, entry_bytes, &mut entries)?;
                wire.push()?;
            }
            wire.worked(geometry.bytes_of(extent) as u64)
        }
    })?;
    list_entries(wire, first, entry_bytes, &mut entries)?;
    wire.say(&Message::HaveEnd)
}

/// Takes in what is asked for: ranges that ascend, also from frame to frame, and lie on the volume.
pub fn add_parts(parts: &mut Vec<Range<u64>>, ranges: Vec<Range<u64>>, geometry: &Geometry) -> Result<()> {
    if parts.len() + ranges.len() > SAMPLE_RANGES_MAX {
        return Err(Error::malformed("the sender asks for too many parts"));
    }
    for range in ranges {
        if parts.last().is_some_and(|last| range.start < last.end) || range.end > geometry.extents() {
            return Err(Error::malformed("the sender asks for parts that do not ascend or do not lie on the volume"));
        }
        parts.push(range);
    }
    Ok(())
}

fn list_entries(wire: &mut Wire, first: u64, entry_bytes: usize, entries: &mut Vec<u8>) -> Result<()> {
    if !entries.is_empty() {
        wire.put_bytes(&Have { first_extent: first, entry_bytes, entries }.encode())?;
        entries.clear();
    }
    Ok(())
}

/// Lists everything a manifest knows. The caller ends the list.
pub fn list_manifest(wire: &mut Wire, manifest: &mut Manifest) -> Result<()> {
    let (layout, geometry) = (manifest.layout(), manifest.about().geometry);
    for page in 0..layout.pages {
        let extents = layout.extents(&geometry, page);
        match manifest.page_digest(page)? {
            PAGE_UNKNOWN => continue,
            PAGE_ZERO => wire.put(&Message::Zero { first: extents.start, count: extents.end - extents.start })?,
            _ => {
                let mut entries = Vec::with_capacity(PAGE_EXTENTS * layout.entry_bytes);
                for extent in extents.clone() {
                    entries.extend_from_slice(manifest.entry(ExtentIndex(extent))?.bytes());
                }
                list_entries(wire, extents.start, layout.entry_bytes, &mut entries)?;
            }
        }
    }
    Ok(())
}

/// Lists what an unfinished journal changes over its base: digests alone, since such an extent has to
/// travel whole if it changed again.
pub fn list_overlay(wire: &mut Wire, draft: &mut Draft) -> Result<()> {
    let (layout, geometry) = (draft.base().layout(), draft.base().about().geometry);
    let mut from = 0;
    while let Some(page) = draft.changed_page(from)? {
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for extent in layout.extents(&geometry, page) {
            let held = draft.base().entry(ExtentIndex(extent))?.digest;
            let digest = draft.entry(ExtentIndex(extent))?.digest;
            if digest == held {
                list_entries(wire, run.0, 16, &mut run.1)?;
                continue;
            }
            if run.1.is_empty() {
                run.0 = extent;
            }
            run.1.extend_from_slice(&digest.0);
        }
        list_entries(wire, run.0, 16, &mut run.1)?;
        from = page + 1;
    }
    Ok(())
}

/// Digests of extents spread over a device that has no record. `false`: all of them are zero.
pub fn list_samples(wire: &mut Wire, target: &mut Target, geometry: Geometry, hasher: &Hasher) -> Result<bool> {
    let count = geometry.extents().min(SEED_SAMPLES as u64);
    let samples: Vec<ExtentIndex> = (0..count).map(|at| ExtentIndex((2 * at + 1) * geometry.extents() / (2 * count))).collect();
    let mut found = Vec::new();
    let mut blocks = Vec::new();
    target.read_extents(&samples, &mut |extent, data| {
        if !is_zero(data) {
            found.push((extent, hasher.extent(data, &mut blocks)));
        }
        Ok(())
    })?;
    for (extent, digest) in &found {
        list_entries(wire, extent.0, 16, &mut digest.0.to_vec())?;
    }
    Ok(!found.is_empty())
}

/// Re-hashes the first, the last and a few random extents before the first write of a session: finds
/// swapped devices and writes by others. Extents the manifest does not know are passed over.
pub fn check_samples(target: &mut Target, manifest: &mut Manifest, hasher: &Hasher) -> Result<()> {
    let extents = manifest.about().geometry.extents();
    let mut samples = vec![ExtentIndex(0), ExtentIndex(extents - 1)];
    for _ in 0..SAMPLE_EXTENTS {
        let random = getrandom::u64().context(Kind::Failed, || "ask the system for random numbers")?;
        samples.push(ExtentIndex(random % extents));
    }
    samples.sort();
    samples.dedup();
    let mut known = Vec::new();
    for extent in samples {
        let digest = manifest.entry(extent)?.digest;
        if digest.is_known() {
            known.push((extent, digest));
        }
    }
    let wanted: Vec<ExtentIndex> = known.iter().map(|(extent, _)| *extent).collect();
    let mut blocks = Vec::new();
    let mut foreign = None;
    target.read_extents(&wanted, &mut |extent, data| {
        let digest = hasher.extent(data, &mut blocks);
        if known.iter().any(|(known, expected)| *known == extent && *expected != digest) {
            foreign.get_or_insert(extent);
        }
        Ok(())
    })?;
    match foreign {
        None => Ok(()),
        Some(extent) => {
            let message = format!(
                "extent {extent} of {} is not what was replicated there: somebody else wrote to it, or it is another device. Nothing was written. `blockferry verify SRC DST` shows what differs; `blockferry verify --repair SRC DST` sends just that",
                target.name()
            );
            Err(Error::new(Kind::Refused, message))
        }
    }
}
