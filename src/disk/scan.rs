//! Reads a device from front to back, several chunks ahead, and gives them out in order. Holes are
//! never read: they come as ranges. Several scans of one device may share it, segment by segment.

use super::{Action, Disk, Pool, Request, Run};
use crate::error::{Context, Error, Kind, Result};
use crate::extent::Geometry;
use crate::limits::{READ_DEPTH, READ_SPARE, SEGMENT_BYTES, SEGMENTS_A_SCAN};
use crate::ring::AlignedBuf;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes as they were read: extents from `offset` on, not looked at yet.
#[derive(Debug)]
pub struct RawChunk {
    /// Where the chunk begins on the volume: at an extent.
    pub offset: u64,
    /// How much of the buffer it is: whole extents, except at the end of the volume.
    pub bytes: usize,
    /// The data.
    pub buffer: AlignedBuf,
}

impl RawChunk {
    /// The data read.
    pub fn data(&self) -> &[u8] {
        &self.buffer[..self.bytes]
    }
}

/// The next piece of the volume.
#[derive(Debug)]
pub enum Piece {
    /// Something that was read.
    Chunk(RawChunk),
    /// These extents are a hole of the file: zero, without reading.
    Hole(Range<u64>),
}

impl Piece {
    /// How much of the volume it is.
    pub fn bytes(&self, geometry: &Geometry) -> u64 {
        match self {
            Piece::Chunk(raw) => raw.bytes as u64,
            Piece::Hole(extents) => {
                let range = geometry.bytes_range(extents.clone());
                range.end - range.start
            }
        }
    }
}

enum Slot {
    Hole(Range<u64>),
    Reading { offset: u64, bytes: usize, buffer: Option<AlignedBuf> },
}

/// The volume in segments, of which each scan that has a part in it takes the next. All of them together read
/// everything once.
#[derive(Debug)]
pub struct Segments {
    volume_bytes: u64,
    bytes: u64,
    next: Mutex<u64>,
}

impl Segments {
    /// For so many scans. A lone one has the volume as one segment.
    pub fn new(geometry: Geometry, scans: usize) -> Segments {
        let (volume_bytes, chunk) = (geometry.volume_bytes(), geometry.chunk_bytes() as u64);
        let part = volume_bytes / (scans as u64 * SEGMENTS_A_SCAN).max(1);
        let bytes = if scans <= 1 { volume_bytes } else { part.min(SEGMENT_BYTES).next_multiple_of(chunk).max(chunk) };
        Segments { volume_bytes, bytes, next: Mutex::new(0) }
    }

    /// The next segment, or as many of them as are a hole: a volume that is nearly empty is not cut into pieces.
    fn take(&self, disk: &mut dyn Disk) -> Result<Option<Range<u64>>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let from = *next;
        if from >= self.volume_bytes {
            return Ok(None);
        }
        let one = self.volume_bytes.min(from + self.bytes);
        let end = match disk.data_range(from)? {
            _ if one == self.volume_bytes => one,
            Some(data) => (data.start.min(self.volume_bytes) / self.bytes * self.bytes).max(one),
            None => self.volume_bytes,
        };
        *next = end;
        Ok(Some(from..end))
    }
}

/// A scan over a device.
pub struct Scan<'a> {
    disk: &'a mut dyn Disk,
    geometry: Geometry,
    pool: Pool,
    /// Where parts come from that were not named at the beginning.
    segments: Option<&'a Segments>,
    /// Position up to which reads are submitted.
    at: u64,
    /// Where the part that is read now ends, and the parts behind it, last first.
    part_end: u64,
    parts: Vec<Range<u64>>,
    /// Data from `at` on that is known to be no hole.
    data_end: u64,
    slots: VecDeque<Slot>,
    reading: usize,
    first_token: u64,
    read_bytes: u64,
}

impl<'a> Scan<'a> {
    /// A scan of the whole volume.
    pub fn new(disk: &'a mut dyn Disk, geometry: Geometry) -> Result<Scan<'a>> {
        let all = 0..geometry.extents();
        Scan::of(disk, geometry, std::slice::from_ref(&all))
    }

    /// A scan of these ranges of extents, which ascend and lie on the volume.
    pub fn of(disk: &'a mut dyn Disk, geometry: Geometry, extents: &[Range<u64>]) -> Result<Scan<'a>> {
        let parts = extents.iter().rev().map(|range| geometry.bytes_range(range.clone())).collect();
        Scan::make(disk, geometry, parts, None)
    }

    /// A scan of those segments that it comes to take.
    pub fn shared(disk: &'a mut dyn Disk, geometry: Geometry, segments: &'a Segments) -> Result<Scan<'a>> {
        Scan::make(disk, geometry, Vec::new(), Some(segments))
    }

    fn make(disk: &'a mut dyn Disk, geometry: Geometry, parts: Vec<Range<u64>>, segments: Option<&'a Segments>) -> Result<Scan<'a>> {
        let pool = Pool::new(READ_DEPTH + READ_SPARE, geometry.chunk_bytes()).context(Kind::Failed, || "allocate read buffers")?;
        Ok(Scan {
            disk,
            geometry,
            pool,
            segments,
            at: 0,
            part_end: 0,
            parts,
            data_end: 0,
            slots: VecDeque::new(),
            reading: 0,
            first_token: 0,
            read_bytes: 0,
        })
    }

    /// Bytes read so far; holes do not count.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Gives a chunk's buffer back.
    pub fn recycle(&mut self, chunk: RawChunk) {
        self.pool.put(chunk.buffer);
    }

    /// The next piece in the order of the volume; `None` at its end.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        self.read_ahead()?;
        while let Some(Slot::Reading { buffer: None, .. }) = self.slots.front() {
            self.reap()?;
        }
        let Some(slot) = self.slots.pop_front() else { return Ok(None) };
        self.first_token += 1;
        Ok(Some(match slot {
            Slot::Hole(extents) => Piece::Hole(extents),
            Slot::Reading { offset, bytes, buffer: Some(buffer) } => Piece::Chunk(RawChunk { offset, bytes, buffer }),
            Slot::Reading { .. } => return Err(Error::new(Kind::Failed, "a read was given out before it was done")),
        }))
    }

    /// Submits reads up to the depth: before the caller looks at a chunk, the next is on its way.
    fn read_ahead(&mut self) -> Result<()> {
        while self.reading < READ_DEPTH {
            if self.at >= self.part_end {
                let Some(part) = self.next_part()? else { break };
                (self.at, self.part_end, self.data_end) = (part.start, part.end, 0);
            }
            if self.at >= self.data_end && self.skip_hole()? {
                continue;
            }
            let Some(buffer) = self.pool.take() else { break };
            let end = self.data_end.min(self.part_end);
            let bytes = (end - self.at).min(self.geometry.chunk_bytes() as u64) as usize;
            let token = self.first_token + self.slots.len() as u64;
            let run = Run { at: 0, offset: self.at, bytes };
            self.disk.submit(Request { token, action: Action::Read(buffer, vec![run]) })?;
            self.slots.push_back(Slot::Reading { offset: self.at, bytes, buffer: None });
            self.reading += 1;
            self.at += bytes as u64;
        }
        Ok(())
    }

    /// What is read after the part at hand.
    fn next_part(&mut self) -> Result<Option<Range<u64>>> {
        match (self.parts.pop(), self.segments) {
            (None, Some(segments)) => segments.take(self.disk),
            (part, _) => Ok(part),
        }
    }

    /// Finds the next data and, before it, a hole of whole extents. `true`: look again, `at` moved.
    fn skip_hole(&mut self) -> Result<bool> {
        let volume_bytes = self.geometry.volume_bytes();
        let data = self.disk.data_range(self.at)?.unwrap_or(volume_bytes..volume_bytes);
        let hole = self.geometry.extents_within(self.at..data.start.min(self.part_end));
        let hole_bytes = self.geometry.bytes_range(hole.clone());
        self.data_end = self.geometry.bytes_range(self.geometry.extents_touching(self.at..data.end.max(self.at + 1))).end;
        if hole.is_empty() {
            return Ok(false);
        }
        self.slots.push_back(Slot::Hole(hole));
        self.at = hole_bytes.end;
        Ok(true)
    }

    fn reap(&mut self) -> Result<()> {
        let done = self.disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a read vanished"))?;
        let at = done.token.wrapping_sub(self.first_token) as usize;
        let Some(Slot::Reading { offset, bytes, buffer }) = self.slots.get_mut(at) else {
            return Err(Error::new(Kind::Failed, "a read came back that nobody asked for"));
        };
        let (offset, bytes) = (*offset, *bytes);
        *buffer = done.buffer;
        self.reading -= 1;
        let name = self.disk.name();
        done.result.context(Kind::Storage, || format!("read {bytes} bytes at {offset:#x} of {name}"))?;
        self.read_bytes += bytes as u64;
        Ok(())
    }

    /// Reads one extent out of order, after the scan: for extents the receiver asks for again.
    pub fn extent(&mut self, extent: crate::extent::ExtentIndex) -> Result<RawChunk> {
        let (offset, bytes) = (self.geometry.offset(extent), self.geometry.bytes_of(extent));
        let buffer = self.pool.take().ok_or_else(|| Error::new(Kind::Failed, "no read buffer is free"))?;
        let buffer = super::read(self.disk, buffer, offset, bytes)?;
        self.read_bytes += bytes as u64;
        Ok(RawChunk { offset, bytes, buffer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::ram::RamDisk;

    #[test]
    fn chunks_and_holes_cover_the_volume_once_and_in_order() {
        for (bytes, data) in [(7 << 20, vec![0, 99, 3_000_000]), (65536 * 5 + 512, vec![65536 * 5 + 100]), (4096, vec![])] {
            let mut content = vec![0; bytes];
            data.iter().for_each(|at: &usize| content[*at] = 7);
            let geometry = Geometry::new(bytes as u64, 65536).unwrap();
            let mut disk = RamDisk::new("ram", content.clone());
            let mut scan = Scan::new(&mut disk, geometry).unwrap();
            let mut at = 0;
            while let Some(piece) = scan.next_piece().unwrap() {
                match piece {
                    Piece::Hole(extents) => {
                        let range = geometry.bytes_range(extents);
                        assert_eq!(range.start, at);
                        assert!(content[range.start as usize..range.end as usize].iter().all(|byte| *byte == 0));
                        at = range.end;
                    }
                    Piece::Chunk(chunk) => {
                        assert_eq!(chunk.offset, at);
                        assert_eq!(chunk.data(), &content[at as usize..at as usize + chunk.bytes]);
                        at += chunk.bytes as u64;
                        scan.recycle(chunk);
                    }
                }
            }
            assert_eq!(at, bytes as u64);
        }
    }

    #[test]
    fn parts_are_read_and_nothing_between_them() {
        let content: Vec<u8> = (0..40 * 65536 + 512).map(|at| if (10..20).contains(&(at / 65536)) { 0 } else { 7 }).collect();
        let geometry = Geometry::new(content.len() as u64, 65536).unwrap();
        let wanted = [0..1, 3..21, 25..26, 39..41];
        let mut disk = RamDisk::new("ram", content.clone());
        let mut scan = Scan::of(&mut disk, geometry, &wanted).unwrap();
        let mut seen: Vec<u64> = Vec::new();
        while let Some(piece) = scan.next_piece().unwrap() {
            match piece {
                Piece::Hole(extents) => {
                    let range = geometry.bytes_range(extents.clone());
                    assert!(content[range.start as usize..range.end as usize].iter().all(|byte| *byte == 0));
                    seen.extend(extents);
                }
                Piece::Chunk(chunk) => {
                    let at = chunk.offset as usize;
                    assert_eq!(chunk.data(), &content[at..at + chunk.bytes]);
                    seen.extend(geometry.extents_touching(chunk.offset..chunk.offset + chunk.bytes as u64));
                    scan.recycle(chunk);
                }
            }
        }
        assert_eq!(seen, wanted.into_iter().flatten().collect::<Vec<u64>>());
    }

    #[test]
    fn scans_that_share_a_volume_cover_it_once_together() {
        for (bytes, data) in [(37 << 20, vec![0, 99, 3_000_000, 20 << 20]), (65536 * 500 + 512, vec![65536 * 400 + 100]), (4096, vec![])] {
            let mut content = vec![0; bytes];
            data.iter().for_each(|at: &usize| content[*at] = 7);
            let geometry = Geometry::new(bytes as u64, 65536).unwrap();
            let mut disks: Vec<RamDisk> = (0..3).map(|_| RamDisk::new("ram", content.clone())).collect();
            let segments = Segments::new(geometry, 3);
            let mut scans: Vec<Scan<'_>> = disks.iter_mut().map(|disk| Scan::shared(disk, geometry, &segments).unwrap()).collect();
            let mut covered = vec![0u8; geometry.extents() as usize];
            let mut open = true;
            while open {
                open = false;
                for scan in &mut scans {
                    let Some(piece) = scan.next_piece().unwrap() else { continue };
                    open = true;
                    let extents = match piece {
                        Piece::Hole(extents) => extents,
                        Piece::Chunk(chunk) => {
                            assert_eq!(chunk.data(), &content[chunk.offset as usize..chunk.offset as usize + chunk.bytes]);
                            let extents = geometry.extents_touching(chunk.offset..chunk.offset + chunk.bytes as u64);
                            scan.recycle(chunk);
                            extents
                        }
                    };
                    extents.for_each(|extent| covered[extent as usize] += 1);
                }
            }
            assert!(covered.iter().all(|times| *times == 1), "{covered:?}");
        }
    }
}
