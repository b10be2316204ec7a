//! The replica's device with its buffers: writes are gathered into long ones and run ahead, reads come in
//! batches, and the first failure is the last word.

use crate::digest::is_zero;
use crate::disk::{Action, AlignedBuf, Completion, Disk, Pool, Request, Run};
use crate::error::{Context, Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::limits::{BLOCK_BYTES, WRITE_DEPTH};
use crate::progress::Witness;
use std::collections::HashMap;
use std::ops::Range;

/// Zeroing is asked for in pieces of this size, so that a slow device shows progress before a peer loses its
/// patience, and an interrupted run does not wait for a whole volume.
const ZERO_BYTES_MAX: u64 = 256 << 20;

/// Room for bytes on their way to the device, behind what is gathered there already.
pub struct Room {
    buffer: AlignedBuf,
    at: usize,
    /// What is gathered, in the order of the device.
    runs: Vec<Run>,
}

impl Room {
    /// The room itself.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[self.at..]
    }

    /// Where on the device the gathered bytes end.
    fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.offset + run.bytes as u64)
    }

    /// Takes up pieces of what was put into the room, which is that much smaller afterwards.
    fn add(&mut self, bytes: usize, runs: Vec<Run>) {
        for run in runs {
            let run = Run { at: self.at + run.at, ..run };
            match self.runs.last_mut() {
                Some(last) if last.offset + last.bytes as u64 == run.offset && last.at + last.bytes == run.at => last.bytes += run.bytes,
                _ => self.runs.push(run),
            }
        }
        // Only the last block of a volume is no multiple of a block; the next piece begins at one, for O_DIRECT.
        self.at = (self.at + bytes).next_multiple_of(BLOCK_BYTES).min(self.buffer.len());
    }
}

/// The device under a receiving session.
pub struct Target {
    disk: Box<dyn Disk>,
    pool: Pool,
    /// Writes that wait for more to go with them.
    gathered: Option<Room>,
    geometry: Geometry,
    /// What is in flight: the byte range by token, for messages.
    writing: HashMap<u64, Range<u64>>,
    token: u64,
    written_bytes: u64,
    failed: bool,
}

impl Target {
    /// Refuses a device that is smaller than the volume.
    pub fn new(disk: Box<dyn Disk>, geometry: Geometry) -> Result<Target> {
        if disk.bytes() < geometry.volume_bytes() {
            let short = geometry.volume_bytes() - disk.bytes();
            let message = format!(
                "{} has {} bytes, the volume {}: grow the replica by at least {short} bytes first",
                disk.name(),
                disk.bytes(),
                geometry.volume_bytes()
            );
            return Err(Error::new(Kind::Refused, message));
        }
        let pool = Pool::new(WRITE_DEPTH, geometry.chunk_bytes()).context(Kind::Failed, || "allocate write buffers")?;
        Ok(Target { disk, pool, gathered: None, geometry, writing: HashMap::new(), token: 0, written_bytes: 0, failed: false })
    }

    /// How messages call the device.
    pub fn name(&self) -> &str {
        self.disk.name()
    }

    /// The device itself, with nothing in flight.
    pub fn disk(&mut self) -> Result<&mut dyn Disk> {
        self.drain()?;
        Ok(&mut *self.disk)
    }

    /// Bytes written or zeroed so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Room for `bytes` bytes from `offset` on: behind what is gathered where they continue it and fit, or a buffer of
    /// their own. While it is out the device may only be read where nothing is gathered in it.
    pub fn room(&mut self, bytes: usize, offset: u64) -> Result<Room> {
        if self.gathered.as_ref().is_some_and(|room| room.at + bytes > room.buffer.len() || room.end() != offset) {
            self.write_gathered()?;
        }
        match self.gathered.take() {
            Some(room) => Ok(room),
            None => Ok(Room { buffer: self.buffer()?, at: 0, runs: Vec::new() }),
        }
    }

    /// A free buffer of a chunk's size; waits for a write to end where all are out.
    fn buffer(&mut self) -> Result<AlignedBuf> {
        loop {
            match self.pool.take() {
                Some(buffer) => return Ok(buffer),
                None => self.reap()?,
            }
        }
    }

    /// Gives room back that was not used.
    pub fn put(&mut self, room: Room) {
        if room.runs.is_empty() {
            self.pool.put(room.buffer);
        } else {
            self.gathered = Some(room);
        }
    }

    /// Writes pieces of the first `bytes` bytes of a room: one that more may continue together with that, at the latest
    /// before whatever reads, zeroes or flushes the device; scattered ones at once.
    pub fn write(&mut self, mut room: Room, bytes: usize, runs: Vec<Run>) -> Result<()> {
        self.check()?;
        self.written_bytes += runs.iter().map(|run| run.bytes as u64).sum::<u64>();
        room.add(bytes, runs);
        let whole = room.at == room.buffer.len() || room.runs.len() > 1;
        self.gathered = Some(room);
        if whole { self.write_gathered() } else { Ok(()) }
    }

    /// Starts the gathered writes.
    pub fn write_gathered(&mut self) -> Result<()> {
        let Some(room) = self.gathered.take() else { return Ok(()) };
        let range = room.runs.first().map_or(0, |run| run.offset)..room.end();
        self.submit(range, Action::Write(room.buffer, room.runs))
    }

    /// Starts to make a range of extents read as zeros. Where zeros would have to be written, only what is
    /// not zero yet is. Zeroing may take hours: what is done of it is told; that nobody listens ends nothing.
    pub fn zero(&mut self, extents: Range<u64>, witness: &mut dyn Witness) -> Result<()> {
        self.write_gathered()?;
        if self.disk.zeroes_cheaply() {
            return self.zero_all(extents, witness);
        }
        let batch = (self.pool.buffer_bytes() / self.geometry.extent_bytes()).max(1) * WRITE_DEPTH;
        let mut at = extents.start;
        while at < extents.end {
            let end = (at + batch as u64).min(extents.end);
            let looked_at: Vec<ExtentIndex> = (at..end).map(ExtentIndex).collect();
            let mut filled: Vec<Range<u64>> = Vec::new();
            self.read_extents(&looked_at, &mut |extent, data| {
                match filled.last_mut() {
                    _ if is_zero(data) => {}
                    Some(last) if last.end == extent.0 => last.end += 1,
                    _ => filled.push(extent.0..extent.0 + 1),
                }
                Ok(())
            })?;
            filled.into_iter().try_for_each(|range| self.zero_all(range, witness))?;
            let _ = witness.worked((end - at) * self.geometry.extent_bytes() as u64);
            at = end;
        }
        Ok(())
    }

    fn zero_all(&mut self, extents: Range<u64>, witness: &mut dyn Witness) -> Result<()> {
        let bytes = self.geometry.bytes_range(extents);
        let mut at = bytes.start;
        while at < bytes.end {
            let piece = (bytes.end - at).min(ZERO_BYTES_MAX);
            while self.writing.len() >= WRITE_DEPTH {
                self.reap()?;
                let _ = witness.worked(piece);
            }
            self.written_bytes += piece;
            self.submit(at..at + piece, Action::Zero { offset: at, bytes: piece })?;
            at += piece;
        }
        Ok(())
    }

    fn submit(&mut self, range: Range<u64>, action: Action) -> Result<()> {
        self.check()?;
        // The kernel keeps no order between requests: a block that is written twice (an extent sent again)
        // must not meet its older content in flight.
        if self.writing.values().any(|other| other.start < range.end && range.start < other.end) {
            self.wait_for_all()?;
        }
        self.token += 1;
        self.writing.insert(self.token, range);
        self.disk.submit(Request { token: self.token, action })
    }

    /// After a failed write or flush nothing on this device counts any more in this attempt.
    fn check(&self) -> Result<()> {
        if self.failed { Err(Error::new(Kind::Storage, format!("{} failed before in this run", self.disk.name()))) } else { Ok(()) }
    }

    fn reap(&mut self) -> Result<()> {
        self.check()?;
        let done = self.disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a request to the replica vanished"))?;
        self.finish(done)
    }

    fn finish(&mut self, done: Completion) -> Result<()> {
        if let Some(buffer) = done.buffer {
            self.pool.put(buffer);
        }
        let range = self.writing.remove(&done.token).unwrap_or(0..0);
        self.failed |= done.result.is_err();
        // One request may carry several runs; which of them failed is not told.
        let place = || {
            let size = self.geometry.extent_bytes() as u64;
            let (first, last) = (range.start / size, range.end.saturating_sub(1) / size);
            let extents = if first >= last { format!("extent {first}") } else { format!("extents {first} to {last}") };
            format!("apply {extents} at {:#x} on {}", range.start, self.disk.name())
        };
        done.result.context(Kind::Storage, place)?;
        Ok(())
    }

    /// Waits for everything gathered and in flight.
    pub fn drain(&mut self) -> Result<()> {
        let gathered = self.write_gathered();
        self.wait_for_all().and(gathered)
    }

    fn wait_for_all(&mut self) -> Result<()> {
        let mut first = Ok(());
        while !self.writing.is_empty() {
            match self.disk.wait()? {
                Some(done) => {
                    let finished = self.finish(done);
                    if first.is_ok() {
                        first = finished;
                    }
                }
                None => self.writing.clear(),
            }
        }
        first.and_then(|()| self.check())
    }

    /// Makes everything written durable. From here on a crash keeps it.
    pub fn flush(&mut self) -> Result<()> {
        self.drain()?;
        let flushed = crate::disk::flush(&mut *self.disk);
        self.failed |= flushed.is_err();
        flushed
    }

    /// Reads whole extents, in batches of as many as the pool holds, and shows each to `look`.
    pub fn read_extents(&mut self, extents: &[ExtentIndex], look: &mut dyn FnMut(ExtentIndex, &mut [u8]) -> Result<()>) -> Result<()> {
        self.drain()?;
        let per_buffer = (self.pool.buffer_bytes() / self.geometry.extent_bytes()).max(1);
        // One buffer may be out: the frame that is being proven lies in it.
        for batch in extents.chunks(per_buffer * (WRITE_DEPTH - 1)) {
            let parts: Vec<&[ExtentIndex]> = batch.chunks(per_buffer).collect();
            for (token, part) in parts.iter().enumerate() {
                let buffer = self.pool.take().ok_or_else(|| Error::new(Kind::Failed, "no buffer is free"))?;
                let size = self.geometry.extent_bytes();
                let run = |(at, extent): (usize, &ExtentIndex)| Run {
                    at: at * size,
                    offset: self.geometry.offset(*extent),
                    bytes: self.geometry.bytes_of(*extent),
                };
                let runs = part.iter().enumerate().map(run).collect();
                self.disk.submit(Request { token: token as u64, action: Action::Read(buffer, runs) })?;
            }
            let mut result = Ok(());
            for _ in &parts {
                let done = self.disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a read of the replica vanished"))?;
                let part = parts.get(done.token as usize).copied().unwrap_or_default();
                let mut buffer = done.buffer.ok_or_else(|| Error::new(Kind::Failed, "a read came back without its buffer"))?;
                if result.is_ok() {
                    let place = || {
                        let at = |extent: Option<&ExtentIndex>| extent.map_or(0, |extent| self.geometry.offset(*extent));
                        let (first, last) = (at(part.first()), at(part.last()));
                        let extents = if first == last {
                            format!("the extent at {first:#x}")
                        } else {
                            format!("extents between {first:#x} and {last:#x}")
                        };
                        format!("read {extents} of the replica {}", self.disk.name())
                    };
                    result = done.result.map(|_| ()).context(Kind::Storage, place);
                }
                for (at, extent) in part.iter().enumerate() {
                    if result.is_ok() {
                        let start = at * self.geometry.extent_bytes();
                        result = look(*extent, &mut buffer[start..start + self.geometry.bytes_of(*extent)]);
                    }
                }
                self.pool.put(buffer);
            }
            result?;
        }
        Ok(())
    }
}
