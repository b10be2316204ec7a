//! Compares without sending: what a dry run and a verification do. Counts what would travel and
//! reports each range that differs.

use super::comparer::{Verdict, compare};
use super::framer::single;
use super::handshake::Agreed;
use super::hasher::{HashedChunk, HashedExtent, Names};
use super::{Outcome, Pass, Watch, at_the_source, stop_if_asked};
use crate::digest::{Digest, Hasher};
use crate::disk::scan::{Piece, Scan};
use crate::error::Result;
use crate::extent::Geometry;
use crate::format::stream::{Counts, End, ExtentLine, Message, run_bytes};
use crate::limits::BLOCK_BYTES;
use crate::progress::Witness;
use crate::transport::Wire;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// Scans the source and compares; ends the session with what was counted.
pub fn look(pass: &mut Pass<'_>, wire: &mut Wire, agreed: &mut Agreed, geometry: Geometry, hasher: &Hasher) -> Result<Outcome> {
    let mut base = agreed.base.take().filter(|_| agreed.uses_base);
    let mut scan = Scan::new(pass.source, geometry)?;
    let mut found = Found { geometry, counts: Counts::default(), report: pass.on_difference, open: 0..0 };
    let mut names = Names::default();
    let mut bitmap = Vec::new();
    let mut ranges = Vec::new();
    while let Some(piece) = scan.next_piece().map_err(at_the_source)? {
        stop_if_asked(pass.progress)?;
        (pass.watch)(Watch::Reading)?;
        wire.worked(piece.bytes(&geometry))?;
        match piece {
            Piece::Hole(extents) => {
                ranges.clear();
                agreed.have.not_zero(base.as_mut(), extents.clone(), &mut ranges)?;
                ranges.drain(..).for_each(|range| found.zeros(range));
                pass.progress.scanned_bytes.store(geometry.bytes_range(extents).end, Relaxed);
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
                pass.progress.scanned_bytes.store(chunk.end(), Relaxed);
                let (raw, lent) = chunk.into_parts();
                names = lent;
                scan.recycle(raw);
            }
        }
    }
    found.close();
    (pass.watch)(Watch::Sealing)?;
    let counts = Counts { read_bytes: scan.read_bytes(), ..found.counts };
    // Where the ends are exchanged, the one who asked sits at the receiver.
    wire.put(&Message::End(End { generation: 0, root: Digest::UNKNOWN, counts }))?;
    wire.flush()?;
    Ok(Outcome { ack: None, mode: agreed.welcome.mode, counts, adopted: agreed.adopted })
}

/// What differs, neighbouring ranges joined before they are reported.
struct Found<'a> {
    geometry: Geometry,
    counts: Counts,
    report: &'a mut dyn FnMut(Range<u64>),
    open: Range<u64>,
}

impl Found<'_> {
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
            self.close();
            self.open = range;
        }
    }

    fn close(&mut self) {
        let range = std::mem::replace(&mut self.open, 0..0);
        if !range.is_empty() {
            (self.report)(range);
        }
    }
}
