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
use std::ops::Range;

/// Unpacks and proves the frames of one session.
pub struct Prover {
    geometry: Geometry,
    hasher: Hasher,
    unpacker: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
    blocks: Vec<Digest>,
    /// Extents of the frame at hand that are proven, with all their blocks' digests in `proven_blocks`.
    proven: Vec<(ExtentIndex, Digest, Range<usize>)>,
    proven_blocks: Vec<Digest>,
}

impl Prover {
    /// A prover for one relationship.
    pub fn new(geometry: Geometry, hasher: &Hasher) -> Result<Prover> {
        let unpacker = zstd::bulk::Decompressor::new().context(Kind::Failed, || "start zstd")?;
        Ok(Prover {
            geometry,
            hasher: hasher.clone(),
            unpacker,
            plain: Vec::new(),
            blocks: Vec::new(),
            proven: Vec::new(),
            proven_blocks: Vec::new(),
        })
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

    /// Proves a frame whose plain bytes are `plain`. Returns the extents that the replica's own content
    /// did not complete to their digest: they rotted, or they changed under us. An extent that came whole
    /// and does not match is damage on the way: an error. The draft learns of the frame only when all of
    /// it is proven, since a frame is kept or dropped as a whole: a draft that knew half of a dropped
    /// frame would claim, in the hints of a first copy, what was never written.
    ///
    /// `journaled`: the device does not hold what the draft says, the journal does. Single blocks of an
    /// extent that the journal changes already prove nothing against the device, and count as unproven.
    pub fn prove(
        &mut self,
        data: &Data<'_>,
        plain: &[u8],
        target: &mut Target,
        draft: &mut Draft,
        journaled: bool,
    ) -> Result<Vec<ExtentIndex>> {
        let (mut parted, mut unproven) = (Vec::new(), Vec::new());
        self.proven.clear();
        self.proven_blocks.clear();
        let mut at = 0;
        for line in data.lines() {
            let bytes = line.plain_bytes(&self.geometry);
            if line.is_whole(&self.geometry) {
                self.check_whole(&line, &plain[at..at + bytes])?;
                self.keep(&line);
            } else if journaled && draft.entry(line.extent)?.digest != draft.base().entry(line.extent)?.digest {
                unproven.push(line.extent);
            } else {
                parted.push((line, at));
            }
            at += bytes;
        }
        unproven.extend(self.complete(&parted, plain, target)?);
        if unproven.is_empty() {
            self.enter_proven(draft)?;
        }
        Ok(unproven)
    }

    fn keep(&mut self, line: &ExtentLine<'_>) {
        keep(&mut self.proven, &mut self.proven_blocks, line, &self.blocks);
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
    fn complete(&mut self, parted: &[(ExtentLine<'_>, usize)], plain: &[u8], target: &mut Target) -> Result<Vec<ExtentIndex>> {
        let extents: Vec<ExtentIndex> = parted.iter().map(|(line, _)| line.extent).collect();
        let mut unproven = Vec::new();
        let (geometry, hasher, blocks) = (self.geometry, &self.hasher, &mut self.blocks);
        let (proven, proven_blocks) = (&mut self.proven, &mut self.proven_blocks);
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
                keep(proven, proven_blocks, line, blocks);
            } else {
                unproven.push(extent);
            }
            Ok(())
        })?;
        Ok(unproven)
    }

    /// Enters a frame from the journal into the draft, without the replica: it was proven before it was
    /// written down, and the frame's check (or, for whole extents, the digest) says it is still that.
    /// All of it or nothing: the journal is cut before a torn frame, so the draft must not know its front.
    pub fn replay(&mut self, data: &Data<'_>, draft: &mut Draft) -> Result<()> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(data.plain_bytes, 0);
        let unpacked = self.unpack(data, &mut plain).and_then(|()| self.check_plain(data, &plain));
        let replayed = unpacked.and_then(|()| self.enter(data, &plain, draft));
        self.plain = plain;
        replayed
    }

    /// All of a frame or nothing: a frame whose last extent is torn is cut off the journal, and a draft that
    /// knew its first extents would call them held. They would neither be sent again nor lie in the journal.
    fn enter(&mut self, data: &Data<'_>, plain: &[u8], draft: &mut Draft) -> Result<()> {
        self.proven.clear();
        self.proven_blocks.clear();
        let mut at = 0;
        for line in data.lines() {
            let bytes = line.plain_bytes(&self.geometry);
            if line.is_whole(&self.geometry) {
                self.check_whole(&line, &plain[at..at + bytes])?;
            } else {
                self.fingerprints(&line, &plain[at..at + bytes], draft)?;
            }
            self.keep(&line);
            at += bytes;
        }
        self.enter_proven(draft)
    }

    /// The draft learns of the frame at hand.
    fn enter_proven(&self, draft: &mut Draft) -> Result<()> {
        let mut proven = self.proven.iter();
        proven.try_for_each(|(extent, digest, blocks)| draft.set(*extent, digest, &self.proven_blocks[blocks.clone()]))
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

fn keep(proven: &mut Vec<(ExtentIndex, Digest, Range<usize>)>, proven_blocks: &mut Vec<Digest>, line: &ExtentLine<'_>, blocks: &[Digest]) {
    let start = proven_blocks.len();
    proven_blocks.extend_from_slice(blocks);
    proven.push((line.extent, line.digest, start..proven_blocks.len()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::format::manifest::About;
    use crate::format::stream::{DataTable, Frame, decode, header};
    use crate::state::manifest::{Damage, Manifest};
    use crate::state::{HostFiles, MANIFEST};
    use uuid::Uuid;

    #[test]
    fn of_a_torn_frame_the_draft_learns_nothing() {
        let geometry = Geometry::new(1 << 20, 65536).unwrap();
        let hasher = Hasher::new(Algorithm::Xxh3, &[3; 192]);
        let (mut blocks, mut table, mut plain) = (Vec::new(), DataTable::new(&geometry), Vec::new());
        for extent in 4..7u8 {
            let content = vec![extent; 65536];
            table.push(ExtentIndex(extent.into()), &hasher.extent(&content, &mut blocks), &[0xff, 0xff]);
            plain.extend_from_slice(&content);
        }
        let mut frame = vec![0; table.payload_at() + plain.len()];
        frame[table.payload_at()..].copy_from_slice(&plain);
        let length = table.write(&mut frame, plain.len(), plain.len(), Encoding::Stored, true);
        frame[length - 100] ^= 1; // its end did not reach the disk

        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        let about = About {
            relationship: Uuid::nil(),
            epoch: Uuid::nil(),
            generation: 0,
            root: Digest::UNKNOWN,
            sealed: false,
            algorithm: Algorithm::Xxh3,
            geometry,
        };
        let mut draft = Draft::new(&files, Manifest::create(&files, MANIFEST, about, &hasher, Damage::Unknown).unwrap()).unwrap();
        let header = header(&frame).unwrap().unwrap();
        let Frame::Data(data) = decode(&header, &frame[crate::format::stream::HEADER_BYTES..length]).unwrap() else { panic!("no data") };
        Prover::new(geometry, &hasher).unwrap().replay(&data, &mut draft).unwrap_err();
        for extent in 4..7 {
            assert!(!draft.entry(ExtentIndex(extent)).unwrap().digest.is_known(), "extent {extent}");
        }
    }
}
