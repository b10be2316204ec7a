//! Compares without sending: what a dry run and a verification do. Counts what would travel and
//! reports each range that differs.

use super::comparer::{Verdict, compare};
use super::framer::single;
use super::handshake::Agreed;
use super::hasher::{HashedChunk, HashedExtent, Names};
use super::{Outcome, Pass, Watch, at_the_source};
use crate::digest::{Digest, Hasher};
use crate::disk::scan::{Piece, Scan};
use crate::error::Result;
use crate::extent::Geometry;
use crate::format::stream::{Counts, End, ExtentLine, Message, run_bytes};
use crate::limits::BLOCK_BYTES;
use crate::part::bytes_of;
use crate::progress::{Phase, Witness};
use crate::transport::Wire;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// Scans the source and compares; ends the session with what was counted.
pub fn look(pass: &mut Pass<'_>, wire: &mut Wire, agreed: &mut Agreed, geometry: Geometry, hasher: &Hasher) -> Result<Outcome> {
    let mut base = agreed.base.take().filter(|_| agreed.uses_base);
    let all = 0..geometry.extents();
    let parts = agreed.parts.take();
    let parts = parts.as_deref().unwrap_or(std::slice::from_ref(&all));
    pass.progress.enter(Phase::Transfer, bytes_of(parts, &geometry));
    let mut scan = Scan::of(pass.source, geometry, parts)?;
    let mut done = 0;
    let mut found = Found::new(geometry, pass.on_difference);
    let mut names = Names::default();
    let mut bitmap = Vec::new();
    let mut ranges = Vec::new();
    while let Some(piece) = scan.next_piece().map_err(at_the_source)? {
        pass.progress.stop_if_asked()?;
        (pass.watch)(Watch::Reading)?;
        wire.worked(piece.bytes(&geometry))?;
        done += piece.bytes(&geometry);
        match piece {
            Piece::Hole(extents) => {
                ranges.clear();
                agreed.have.not_zero(base.as_mut(), extents, &mut ranges)?;
                ranges.drain(..).for_each(|range| found.zeros(range));
            }
            Piece::Chunk(raw) => {
                let chunk = HashedChunk::new(raw, &geometry, hasher, std::mem::take(&mut names));
                for extent in chunk.extents(&geometry) {
                    let zero = agreed.have.zero_entry(extent.index).digest;
                    let held = agreed.have.entry(base.as_mut(), extent.index)?;
                    match compare(&extent, &held, zero, &mut bitmap) {
                        Verdict::Unchanged => {}
                        Verdict::Zero => found.zeros(single(extent.index)),
                        Verdict::Changed => found.blocks(&extent, &bitmap),
                    }
                }
                let (raw, lent) = chunk.into_parts();
                names = lent;
                scan.recycle(raw);
            }
        }
        pass.progress.scanned_bytes.store(done, Relaxed);
    }
    let counts = found.close();
    (pass.watch)(Watch::Sealing)?;
    let counts = Counts { read_bytes: scan.read_bytes(), ..counts };
    // Where the ends are exchanged, the one who asked sits at the receiver.
    wire.put(&Message::End(End { generation: 0, root: Digest::UNKNOWN, counts }))?;
    wire.flush()?;
    Ok(Outcome { ack: None, mode: agreed.welcome.mode, counts, adopted: agreed.adopted, exertion: None })
}

/// What differs, neighbouring ranges joined before they are reported.
pub struct Found<'a> {
    geometry: Geometry,
    counts: Counts,
    report: &'a mut dyn FnMut(Range<u64>),
    open: Range<u64>,
}

impl<'a> Found<'a> {
    /// Nothing yet.
    pub fn new(geometry: Geometry, report: &'a mut dyn FnMut(Range<u64>)) -> Found<'a> {
        Found { geometry, counts: Counts::default(), report, open: 0..0 }
    }

    /// These extents, of which nothing closer is known.
    pub fn extents(&mut self, extents: Range<u64>) {
        self.counts.changed_extents += extents.end - extents.start;
        self.add(self.geometry.bytes_range(extents));
    }

    fn zeros(&mut self, extents: Range<u64>) {
        self.counts.changed_extents += extents.end - extents.start;
        self.counts.zero_extents += extents.end - extents.start;
        self.add(self.geometry.bytes_range(extents));
    }

    fn blocks(&mut self, extent: &HashedExtent<'_>, bitmap: &[u8]) {
        self.counts.changed_extents += 1;
        let line = ExtentLine { extent: extent.index, digest: extent.digest, bitmap };
        for run in line.runs() {
            let start = self.geometry.offset(extent.index) + (run.start * BLOCK_BYTES) as u64;
            let bytes = run_bytes(&self.geometry, extent.index, &run) as u64;
            self.counts.sent_blocks += run.len() as u64;
            self.counts.plain_bytes += bytes;
            self.add(start..start + bytes);
        }
    }

    fn add(&mut self, range: Range<u64>) {
        if self.open.end == range.start && !self.open.is_empty() {
            self.open.end = range.end;
        } else {
            self.tell();
            self.open = range;
        }
    }

    /// That was all: what was counted.
    pub fn close(mut self) -> Counts {
        self.tell();
        self.counts
    }

    fn tell(&mut self) {
        let range = std::mem::replace(&mut self.open, 0..0);
        if !range.is_empty() {
            (self.report)(range);
        }
    }
}
