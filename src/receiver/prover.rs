//! Proves every extent of a Data frame before anything of it is kept: the extent is put together from
//! what the replica holds and the blocks that came, and believed only if its digest matches.

use super::target::Target;
use crate::digest::{Digest, Hasher};
use crate::disk::Run;
use crate::error::{Context, Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::stream::{Data, Encoding, ExtentLine, run_bytes};
use crate::limits::BLOCK_BYTES;
use crate::state::manifest::Draft;

/// Unpacks and proves the frames of one session.
pub struct Prover {
    geometry: Geometry,
    hasher: Hasher,
    unpacker: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
    blocks: Vec<Digest>,
    proven: Proven,
}

/// The names of a frame's proven extents, one after the other.
#[derive(Default)]
struct Proven {
    /// Which, what it is called, and how many blocks it has.
    extents: Vec<(ExtentIndex, Digest, usize)>,
    blocks: Vec<Digest>,
}

impl Proven {
    fn add(&mut self, extent: ExtentIndex, digest: Digest, blocks: &[Digest]) {
        self.extents.push((extent, digest, blocks.len()));
        self.blocks.extend_from_slice(blocks);
    }

    fn clear(&mut self) {
        self.extents.clear();
        self.blocks.clear();
    }
}

impl Prover {
    /// A prover for one relationship.
    pub fn new(geometry: Geometry, hasher: &Hasher) -> Result<Prover> {
        let unpacker = zstd::bulk::Decompressor::new().context(Kind::Failed, || "start zstd")?;
        Ok(Prover { geometry, hasher: hasher.clone(), unpacker, plain: Vec::new(), blocks: Vec::new(), proven: Proven::default() })
    }

    /// Unpacks a frame's payload into the front of `room`; the size is our header's word, never zstd's.
    pub fn unpack(&mut self, data: &Data<'_>, room: &mut [u8]) -> Result<()> {
        let room = room.get_mut(..data.plain_bytes).ok_or_else(|| malformed(data, "its payload is larger than a chunk"))?;
        match data.encoding {
            Encoding::Stored => room.copy_from_slice(data.payload),
            Encoding::Zstd => {
                let bytes =
                    self.unpacker.decompress_to_buffer(data.payload, room).map_err(|_| malformed(data, "its payload does not unpack"))?;
                if bytes != room.len() {
                    return Err(malformed(data, "its payload unpacks to less than it says"));
                }
            }
        }
        Ok(())
    }

    /// Proves a frame whose plain bytes are `plain`. Returns the extents that the replica's own content did
    /// not complete to their digest: they rotted, or they changed under us. An extent that came whole and
    /// does not match is damage on the way: an error.
    ///
    /// Nothing is entered into the draft here: a frame of which one extent fails is not kept at all, and
    /// what the draft says must never be more than what is kept. [`Prover::enter_proven`] does it then.
    ///
    /// `journaled` is the draft of a pass whose earlier frames are not on the device yet: an extent that they
    /// change cannot be completed from the device, since at the apply those frames come first.
    pub fn prove(&mut self, data: &Data<'_>, plain: &[u8], target: &mut Target, journaled: Option<&mut Draft>) -> Result<Vec<ExtentIndex>> {
        let mut parted = Vec::new();
        let mut at = 0;
        self.proven.clear();
        for line in data.lines() {
            let bytes = line.plain_bytes(&self.geometry);
            if line.is_whole(&self.geometry) {
                self.check_whole(&line, &plain[at..at + bytes])?;
                self.proven.add(line.extent, line.digest, &self.blocks);
            } else {
                parted.push((line, at));
            }
            at += bytes;
        }
        let mut unproven = overlaid(&parted, journaled)?;
        self.complete(&parted, plain, target, &mut unproven)?;
        Ok(unproven)
    }

    /// Enters the frame that was just proven, and is kept, into the draft.
    pub fn enter_proven(&mut self, draft: &mut Draft) -> Result<()> {
        let mut from = 0;
        for (extent, digest, blocks) in self.proven.extents.drain(..) {
            draft.set(extent, &digest, &self.proven.blocks[from..from + blocks])?;
            from += blocks;
        }
        Ok(())
    }

    /// Proves an extent that came whole; its blocks' digests are in `self.blocks` afterwards.
    fn check_whole(&mut self, line: &ExtentLine<'_>, plain: &[u8]) -> Result<()> {
        if self.hasher.extent(plain, &mut self.blocks) == line.digest {
            return Ok(());
        }
        Err(Error::new(
            Kind::Failed,
            format!("extent {} does not have the digest it came with: damaged on the way, nothing of it was written", line.extent),
        ))
    }

    /// Proves the extents of which only some blocks came.
    fn complete(
        &mut self,
        parted: &[(ExtentLine<'_>, usize)],
        plain: &[u8],
        target: &mut Target,
        unproven: &mut Vec<ExtentIndex>,
    ) -> Result<()> {
        let extents: Vec<ExtentIndex> = parted.iter().map(|(line, _)| line.extent).filter(|extent| !unproven.contains(extent)).collect();
        let (geometry, hasher, blocks, proven) = (self.geometry, &self.hasher, &mut self.blocks, &mut self.proven);
        target.read_extents(&extents, &mut |extent, held| {
            // Extents of a frame are in order, so each is found by its number.
            let Ok(found) = parted.binary_search_by_key(&extent, |(line, _)| line.extent) else { return Ok(()) };
            let (line, start) = &parted[found];
            let mut from = *start;
            for run in line.runs() {
                let bytes = run_bytes(&geometry, extent, &run);
                held[run.start * BLOCK_BYTES..][..bytes].copy_from_slice(&plain[from..from + bytes]);
                from += bytes;
            }
            if hasher.extent(held, blocks) == line.digest {
                proven.add(extent, line.digest, blocks);
            } else {
                unproven.push(extent);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Enters a frame from the journal into the draft, without the replica: it was proven before it was
    /// written down, and the frame's check (or, for whole extents, the digest) says it is still that.
    pub fn replay(&mut self, data: &Data<'_>, draft: &mut Draft) -> Result<()> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(data.plain_bytes, 0);
        let replayed = self.unpack(data, &mut plain).and_then(|()| self.enter(data, &plain, draft));
        self.plain = plain;
        replayed
    }

    fn enter(&mut self, data: &Data<'_>, plain: &[u8], draft: &mut Draft) -> Result<()> {
        let mut at = 0;
        for line in data.lines() {
            let bytes = line.plain_bytes(&self.geometry);
            if line.is_whole(&self.geometry) {
                self.check_whole(&line, &plain[at..at + bytes])?;
            } else {
                self.fingerprints(&line, &plain[at..at + bytes], draft)?;
            }
            draft.set(line.extent, &line.digest, &self.blocks)?;
            at += bytes;
        }
        Ok(())
    }

    /// The blocks' names after a partial change: the old ones, and new ones where blocks came. Only
    /// their fingerprints are kept, so the old ones are given by theirs.
    fn fingerprints(&mut self, line: &ExtentLine<'_>, plain: &[u8], draft: &mut Draft) -> Result<()> {
        self.blocks.clear();
        let held = draft.entry(line.extent)?;
        for block in 0..self.geometry.blocks_of(line.extent) {
            let mut digest = Digest::UNKNOWN;
            digest.0[..4].copy_from_slice(&held.fingerprint(block).to_le_bytes());
            self.blocks.push(digest);
        }
        let mut at = 0;
        for block in line.runs().flatten() {
            let bytes = self.geometry.block_bytes(line.extent, block);
            self.blocks[block] = self.hasher.digest(&plain[at..at + bytes]);
            at += bytes;
        }
        Ok(())
    }

    /// Checks what of a frame can be checked without the replica: for applying a journal.
    pub fn check_plain(&mut self, data: &Data<'_>, plain: &[u8]) -> Result<()> {
        let mut at = 0;
        for line in data.lines() {
            let bytes = line.plain_bytes(&self.geometry);
            if line.is_whole(&self.geometry) {
                self.check_whole(&line, &plain[at..at + bytes])?;
            }
            at += bytes;
        }
        Ok(())
    }
}

/// The extents that a journal's earlier frames leave other than the device has them.
fn overlaid(parted: &[(ExtentLine<'_>, usize)], journaled: Option<&mut Draft>) -> Result<Vec<ExtentIndex>> {
    let Some(draft) = journaled else { return Ok(Vec::new()) };
    let mut changed = Vec::new();
    for (line, _) in parted {
        if draft.entry(line.extent)?.digest != draft.base().entry(line.extent)?.digest {
            changed.push(line.extent);
        }
    }
    Ok(changed)
}

/// Where the blocks of a frame belong on the device, neighbours joined.
pub fn device_runs(data: &Data<'_>, geometry: &Geometry) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    for line in data.lines() {
        for blocks in line.runs() {
            let offset = geometry.offset(line.extent) + (blocks.start * BLOCK_BYTES) as u64;
            let bytes = run_bytes(geometry, line.extent, &blocks);
            match runs.last_mut() {
                Some(last) if last.offset + last.bytes as u64 == offset => last.bytes += bytes,
                _ => runs.push(Run { at, offset, bytes }),
            }
            at += bytes;
        }
    }
    runs
}

fn malformed(data: &Data<'_>, how: &str) -> Error {
    let extent = data.lines().next().map_or(0, |line| line.extent.0);
    Error::malformed(format!("malformed Data frame at extent {extent}: {how}"))
}
