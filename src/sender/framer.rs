//! Puts verdicts on the wire: zeros as merged ranges, changed blocks as packed runs.

use super::effort::Effort;
use super::hasher::HashedExtent;
use super::outlet::Outlet;
use super::packer::{Compress, PackedRun};
use crate::error::Result;
use crate::extent::{ExtentIndex, Geometry};
use crate::format::stream::{Counts, ExtentLine, Message};
use crate::progress::Progress;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// The last stage of the sender.
pub struct Framer<'a> {
    outlet: &'a mut dyn Outlet,
    geometry: Geometry,
    run: PackedRun,
    /// How hard runs are packed.
    pub effort: Effort,
    zeros: Range<u64>,
    progress: &'a Progress,
    /// What was sent so far.
    pub counts: Counts,
    sent_before: u64,
}

impl<'a> Framer<'a> {
    /// A framer onto this outlet.
    pub fn new(outlet: &'a mut dyn Outlet, geometry: Geometry, compress: Compress, progress: &'a Progress) -> Framer<'a> {
        let sent_before = outlet.sent_bytes();
        let effort = Effort::new(compress, outlet.waited());
        Framer { outlet, geometry, run: PackedRun::new(geometry), effort, zeros: 0..0, progress, counts: Counts::default(), sent_before }
    }

    /// The volume's.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// An error where somebody asked for an end.
    pub fn stop_if_asked(&self) -> Result<()> {
        self.progress.stop_if_asked()
    }

    /// The outlet, for other frames.
    pub fn outlet(&mut self) -> &mut dyn Outlet {
        self.outlet
    }

    /// Sends the marked blocks of an extent, soon.
    pub fn changed(&mut self, extent: &HashedExtent<'_>, bitmap: &[u8]) -> Result<()> {
        let plain_bytes = ExtentLine { extent: extent.index, digest: extent.digest, bitmap }.plain_bytes(&self.geometry);
        if !self.run.takes(extent.index, plain_bytes) {
            self.write_run()?;
        }
        let (blocks, bytes) = self.run.add(extent, bitmap);
        self.counts.changed_extents += 1;
        self.counts.sent_blocks += blocks;
        self.counts.plain_bytes += bytes;
        self.progress.changed_bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    /// Sends a range of zero extents, merged with its neighbours.
    pub fn zero(&mut self, extents: Range<u64>) -> Result<()> {
        let count = extents.end - extents.start;
        self.counts.changed_extents += count;
        self.counts.zero_extents += count;
        let bytes = self.geometry.bytes_range(extents.clone());
        self.progress.changed_bytes.fetch_add(bytes.end - bytes.start, Relaxed);
        if self.zeros.end == extents.start && !self.zeros.is_empty() {
            self.zeros.end = extents.end;
            return Ok(());
        }
        self.write_zeros()?;
        self.zeros = extents;
        Ok(())
    }

    fn write_zeros(&mut self) -> Result<()> {
        let zeros = std::mem::replace(&mut self.zeros, 0..0);
        if !zeros.is_empty() {
            self.outlet.put(&Message::Zero { first: zeros.start, count: zeros.end - zeros.start })?;
        }
        Ok(())
    }

    fn write_run(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let level = self.effort.level();
        let (run, mut made) = (&mut self.run, None);
        self.outlet.frame(run.frame_bound(), &mut |room| {
            let begun = Instant::now();
            let packed = run.write(room, level)?;
            made = Some((packed, begun.elapsed()));
            Ok(packed.frame_bytes)
        })?;
        if let Some((packed, took)) = made {
            self.effort.packed(&packed, level, took, self.outlet.waited());
        }
        self.count();
        Ok(())
    }

    fn count(&mut self) {
        let before = self.counts.wire_bytes;
        self.counts.wire_bytes = self.outlet.sent_bytes() - self.sent_before;
        self.progress.sent_bytes.fetch_add(self.counts.wire_bytes - before, Relaxed);
    }

    /// Sends everything gathered so far.
    pub fn finish(&mut self) -> Result<()> {
        self.write_zeros()?;
        self.write_run()?;
        self.count();
        Ok(())
    }
}

/// One extent's zero range.
pub fn single(extent: ExtentIndex) -> Range<u64> {
    extent.0..extent.0 + 1
}
