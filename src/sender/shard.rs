//! One shard: the sender's line from read to frame on one thread, with a ring, buffers and a zstd context of its own.
//!
//! Shards of a pass claim segments of the volume one after the other. What they have in common is small: the book
//! (what the receiver holds, and the draft of the next manifest), locked for the comparison of a chunk, and the wire,
//! which one of them has and the others hand packed frames to. Reading, hashing and packing, which are the time, run
//! side by side. Nothing of it is seen by the receiver but the order of frames, which says nothing. The first error of
//! a shard ends the others at their next chunk.

use super::at_the_source;
use super::bookmark::HaveView;
use super::comparer::{Verdict, compare};
use super::framer::{Framer, single};
use super::hasher::{HashedChunk, HashedExtent, Names};
use super::packer::Compress;
use crate::digest::Hasher;
use crate::disk::scan::{Piece, Scan};
use crate::error::{Error, Result};
use crate::extent::Geometry;
use crate::format::stream::Message;
use crate::limits::{SHARDS_AUTO_MAX, SHARDS_MAX};
use crate::progress::Progress;
use crate::settings::Several;
use crate::state::manifest::Draft;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes of the volume between two Mark frames: what a remote progress bar moves by.
const MARK_BYTES: u64 = 64 << 20;

/// How many shards a pass has. `auto`: one for every two cores where blocks are packed, one where they travel as they are,
/// since reading and hashing are as fast as a disk already.
pub type Shards = Several<SHARDS_MAX>;

/// How many those are.
pub fn shard_count(shards: Shards, compress: Compress) -> usize {
    match shards {
        Shards::Count(count) => count.get(),
        Shards::Auto if compress == Compress::None => 1,
        // On two cores the second shard takes what the wire, the receiver beside it or the source's own users need.
        Shards::Auto => (std::thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2).clamp(1, SHARDS_AUTO_MAX),
    }
}

/// What the receiver holds, and what it will.
pub struct Book {
    /// What is believed of it now.
    pub have: HaveView,
    /// The manifest of the generation that is sent.
    pub draft: Draft,
}

/// What the shards of a pass have in common.
pub struct Line<'a> {
    /// The volume's.
    pub geometry: Geometry,
    /// The relationship's.
    pub hasher: &'a Hasher,
    /// Where to count, and whether to stop.
    pub progress: &'a Progress,
    book: Mutex<Book>,
    scanned: AtomicU64,
    halted: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl<'a> Line<'a> {
    /// Before the first shard begins.
    pub fn new(geometry: Geometry, hasher: &'a Hasher, progress: &'a Progress, book: Book) -> Line<'a> {
        let (scanned, halted, failure) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        Line { geometry, hasher, progress, book: Mutex::new(book), scanned, halted, failure }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard failed: the others end soon. The first failure is the one to report; those that it caused come later.
    pub fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.halted.store(true, Relaxed);
    }

    /// Whether a shard failed.
    pub fn failed(&self) -> bool {
        self.halted.load(Relaxed)
    }

    /// After the last shard: the draft, or the first failure.
    pub fn finish(self) -> Result<Draft> {
        match self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(self.book.into_inner().unwrap_or_else(PoisonError::into_inner).draft),
        }
    }

    /// Sends what differs in the segments that `scan` claims. Ends early, and well, where another shard failed.
    pub fn run(&self, scan: &mut Scan<'_>, framer: &mut Framer<'_>, watch: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut work = Work::default();
        while !self.failed() {
            let asked = Instant::now();
            let Some(piece) = scan.next_piece().map_err(at_the_source)? else { break };
            framer.effort.read(asked.elapsed());
            self.progress.stop_if_asked()?;
            watch()?;
            let bytes = piece.bytes(&self.geometry);
            framer.outlet().worked(bytes)?;
            match piece {
                Piece::Hole(extents) => self.hole(extents, framer, &mut work)?,
                Piece::Chunk(raw) => {
                    let chunk = HashedChunk::new(raw, &self.geometry, self.hasher, std::mem::take(&mut work.names));
                    self.chunk(&chunk, framer, &mut work)?;
                    let (raw, lent) = chunk.into_parts();
                    work.names = lent;
                    scan.recycle(raw);
                }
            }
            let before = self.scanned.fetch_add(bytes, Relaxed);
            self.progress.scanned_bytes.fetch_add(bytes, Relaxed);
            if before / MARK_BYTES != (before + bytes) / MARK_BYTES {
                framer.outlet().put(&Message::Mark(before + bytes))?;
            }
        }
        framer.finish()
    }

    fn hole(&self, extents: Range<u64>, framer: &mut Framer<'_>, work: &mut Work) -> Result<()> {
        work.ranges.clear();
        {
            let mut book = self.book();
            let Book { have, draft } = &mut *book;
            have.not_zero(Some(draft.base()), extents.clone(), &mut work.ranges)?;
            draft.set_zeros(extents)?;
        }
        work.ranges.drain(..).try_for_each(|range| framer.zero(range))
    }

    fn chunk(&self, chunk: &HashedChunk, framer: &mut Framer<'_>, work: &mut Work) -> Result<()> {
        let Work { verdicts, bitmaps, bitmap, .. } = work;
        verdicts.clear();
        bitmaps.clear();
        {
            let mut book = self.book();
            for extent in chunk.extents(&self.geometry) {
                verdicts.push(judge(&extent, &mut book, bitmap)?);
                bitmaps.push_bitmap(bitmap);
            }
        }
        for (at, extent) in chunk.extents(&self.geometry).enumerate() {
            match verdicts[at] {
                Verdict::Unchanged => {}
                Verdict::Zero => framer.zero(single(extent.index))?,
                Verdict::Changed => framer.changed(&extent, bitmaps.bitmap(at))?,
            }
        }
        Ok(())
    }
}

/// What has to travel of an extent; the draft learns what it will be.
fn judge(extent: &HashedExtent<'_>, book: &mut Book, bitmap: &mut Vec<u8>) -> Result<Verdict> {
    let Book { have, draft } = book;
    let zero = have.zero_entry(extent.index).digest;
    let held = have.entry(Some(draft.base()), extent.index)?;
    bitmap.clear();
    let verdict = compare(extent, &held, zero, bitmap);
    draft.set(extent.index, &extent.digest, extent.blocks)?;
    Ok(verdict)
}

/// Memory of a shard, kept from chunk to chunk.
#[derive(Default)]
struct Work {
    names: Names,
    ranges: Vec<Range<u64>>,
    verdicts: Vec<Verdict>,
    bitmap: Vec<u8>,
    bitmaps: Bitmaps,
}

/// The block bitmaps of a chunk's extents, one behind the other.
#[derive(Default)]
struct Bitmaps {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Bitmaps {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push_bitmap(&mut self, bitmap: &[u8]) {
        self.bytes.extend_from_slice(bitmap);
        self.ends.push(self.bytes.len());
    }

    fn bitmap(&self, at: usize) -> &[u8] {
        &self.bytes[at.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[at]]
    }
}
