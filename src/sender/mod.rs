//! One snapshot in, one delta out: scan → hasher → comparer → packer → framer.
//!
//! [`send`] is one of the two functions that know the order. The cursor (`record`) moves only after
//! the receiver's Ack; the manifest it will then describe (`manifest.next`) is durable before End is
//! sent, so that a lost acknowledgement costs a handshake and no data.

mod bookmark;
mod comparer;
mod effort;
mod framer;
mod handshake;
mod hasher;
mod level;
mod look;
mod packer;
mod scrub;

pub use effort::Exertion;
pub use level::Bottleneck;
pub use packer::Compress;
pub use scrub::{Scrub, scrub};

use crate::digest::Hasher;
use crate::disk::Disk;
use crate::disk::scan::{Piece, Scan};
use crate::error::{Error, Kind, Result, Within};
use crate::extent::{ExtentIndex, Geometry};
use crate::failpoint;
use crate::format::manifest::About;
use crate::format::stream::{Ack, Begin, Counts, End, Message, Mode, Purpose};
use crate::limits::NEED_ROUNDS_MAX;
use crate::part::Part;
use crate::progress::{Phase, Progress, Witness};
use crate::state::manifest::Draft;
use crate::state::{Files, HAVE, SourceRecord};
use crate::transport::Wire;
use bookmark::HaveView;
use comparer::{Verdict, compare, mark_all_blocks};
use framer::{Framer, single};
use handshake::Agreed;
use hasher::{HashedChunk, HashedExtent, Names};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Bytes of the volume between two Mark frames: what a remote progress bar moves by.
const MARK_BYTES: u64 = 64 << 20;

/// What a pass is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Replicate, plan or verify.
    pub purpose: Purpose,
    /// How hard to compress.
    pub compress: Compress,
    /// The operator allows an unknown target's content to be overwritten.
    pub overwrite: bool,
    /// The receiver shall hash its replica anew.
    pub resync: bool,
    /// When the snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
    /// Which extents a verification looks at.
    pub part: Part,
}

/// When the source's watch is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// A chunk was read: a cheap look.
    Reading,
    /// Everything was read and is about to be sealed: the last word.
    Sealing,
}

/// What a pass works with.
pub struct Pass<'a> {
    /// The snapshot.
    pub source: &'a mut dyn Disk,
    /// The relationship's folder at the sender.
    pub files: &'a dyn Files,
    /// The relationship; its cursor moves when the receiver committed.
    pub record: &'a mut SourceRecord,
    /// How the receiver knows the replica: a path or a configured name.
    pub target: &'a str,
    /// What to do.
    pub order: Order,
    /// Asked whether the snapshot is still whole: at every chunk, and before anything is sealed.
    pub watch: &'a mut dyn FnMut(Watch) -> Result<()>,
    /// Where to count, and whether to stop.
    pub progress: &'a Progress,
    /// Told each range of bytes that differs (verify and plan).
    pub on_difference: &'a mut dyn FnMut(Range<u64>),
}

/// What a pass came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The receiver's commit; none for plan and verify.
    pub ack: Option<Ack>,
    /// How the receiver took it.
    pub mode: Mode,
    /// What was counted here.
    pub counts: Counts,
    /// An earlier run had been committed without our knowing; its generation was adopted first.
    pub adopted: Option<u64>,
    /// How hard the blocks were compressed; none where none were sent.
    pub exertion: Option<Exertion>,
}

/// Runs one pass over `wire`. On an error the receiver is told why, and what it holds stays usable.
pub fn send(pass: &mut Pass<'_>, wire: &mut Wire) -> Result<Outcome> {
    let result = run(pass, wire);
    // What the receiver listed is of no use after the session, however it ended; the first failure counts.
    let removed = pass.files.discard(HAVE);
    match result.and_then(|outcome| removed.map(|()| outcome)) {
        Err(error) if error.kind() == Kind::Transient => Err(wire.explain(error)),
        Err(error) => {
            wire.abort(&error);
            Err(error)
        }
        done => done,
    }
}

fn run(pass: &mut Pass<'_>, wire: &mut Wire) -> Result<Outcome> {
    let geometry = pass.record.geometry()?;
    let hasher = Hasher::new(pass.record.algorithm, &pass.record.secret);
    pass.progress.enter(Phase::Connect, geometry.volume_bytes());
    let mut agreed = handshake::shake_hands(pass, wire, geometry, &hasher)?;
    pass.progress.enter(Phase::Transfer, geometry.volume_bytes());
    match pass.order.purpose {
        Purpose::Replicate => replicate(pass, wire, &mut agreed, geometry, &hasher),
        Purpose::Plan | Purpose::Verify => look::look(pass, wire, &mut agreed, geometry, &hasher),
    }
}

/// Sends the differences, then waits for the commit.
fn replicate(pass: &mut Pass<'_>, wire: &mut Wire, agreed: &mut Agreed, geometry: Geometry, hasher: &Hasher) -> Result<Outcome> {
    let generation = agreed.welcome.generation + 1;
    wire.put(&Message::Begin(Begin { generation, source_time_ms: pass.order.source_time_ms }))?;
    failpoint::reach("sender.begun");
    let base = agreed.base.take().ok_or_else(|| Error::new(Kind::Failed, "the base manifest vanished"))?;
    let mut draft = Draft::new(pass.files, base)?;
    let mut scan = Scan::new(pass.source, geometry)?;
    let mut framer = Framer::new(wire, geometry, pass.order.compress, pass.progress);
    let mut names = Names::default();
    let mut bitmap = Vec::new();
    let mut ranges = Vec::new();
    let mut marked = 0;

    loop {
        let asked = Instant::now();
        let Some(piece) = scan.next_piece().map_err(at_the_source)? else { break };
        framer.effort.read(asked.elapsed());
        stop_if_asked(pass.progress)?;
        (pass.watch)(Watch::Reading)?;
        framer.wire().worked(piece.bytes(&geometry))?;
        let end = match piece {
            Piece::Hole(extents) => {
                ranges.clear();
                agreed.have.not_zero(Some(draft.base()), extents.clone(), &mut ranges)?;
                ranges.drain(..).try_for_each(|range| framer.zero(range))?;
                draft.set_zeros(extents.clone())?;
                geometry.bytes_range(extents).end
            }
            Piece::Chunk(raw) => {
                let chunk = HashedChunk::new(raw, &geometry, hasher, std::mem::take(&mut names));
                for extent in chunk.extents(&geometry) {
                    send_if_changed(&extent, &mut agreed.have, &mut draft, &mut framer, &mut bitmap)?;
                    draft.set(extent.index, &extent.digest, extent.blocks)?;
                }
                let end = chunk.end();
                let (raw, lent) = chunk.into_parts();
                names = lent;
                scan.recycle(raw);
                end
            }
        };
        pass.progress.scanned_bytes.store(end, Relaxed);
        if end - marked >= MARK_BYTES {
            marked = end;
            framer.wire().put(&Message::Mark(end))?;
        }
    }
    framer.finish()?;
    // The receiver proves the last frames while the draft is sealed here.
    framer.wire().push()?;
    let about = About { generation, epoch: agreed.welcome.epoch, ..agreed.about };
    let mut rounds = 0;
    loop {
        (pass.watch)(Watch::Sealing)?;
        let sealed = About { root: draft.root()?, ..about };
        draft.seal(sealed)?;
        failpoint::reach("sender.next-sealed");
        // From here on a crash loses nothing: the next handshake finds this generation committed and
        // adopts `manifest.next`, or not committed and starts over from the old manifest.
        framer.counts.read_bytes = scan.read_bytes();
        let end = End { generation, root: sealed.root, counts: framer.counts };
        framer.wire().put(&Message::End(end))?;
        framer.wire().flush()?;
        failpoint::reach("sender.end-sent");
        pass.progress.enter(Phase::Commit, geometry.volume_bytes());
        match framer.wire().hear()? {
            Message::Ack(ack) if ack.generation == generation && ack.root == sealed.root => {
                failpoint::reach("sender.acknowledged");
                // A first copy says nothing about how much the source changes between two snapshots.
                let first = agreed.welcome.mode == Mode::Direct && !agreed.uses_base;
                pass.record.changed_bytes = (!first).then_some(framer.counts.changed_extents * geometry.extent_bytes() as u64);
                adopt(pass.record, pass.files, draft, &sealed, pass.order.source_time_ms)?;
                return Ok(Outcome {
                    ack: Some(ack),
                    mode: agreed.welcome.mode,
                    counts: framer.counts,
                    adopted: agreed.adopted,
                    exertion: framer.effort.exertion(),
                });
            }
            Message::Need(extents) if rounds < NEED_ROUNDS_MAX => {
                rounds += 1;
                pass.progress.enter(Phase::Transfer, geometry.volume_bytes());
                for extent in extents.into_iter().map(ExtentIndex).filter(|extent| extent.0 < geometry.extents()) {
                    stop_if_asked(pass.progress)?;
                    let chunk =
                        HashedChunk::new(scan.extent(extent).map_err(at_the_source)?, &geometry, hasher, std::mem::take(&mut names));
                    for extent in chunk.extents(&geometry) {
                        mark_all_blocks(extent.blocks.len(), &mut bitmap);
                        framer.changed(&extent, &bitmap)?;
                        draft.set(extent.index, &extent.digest, extent.blocks)?;
                    }
                    let (raw, lent) = chunk.into_parts();
                    names = lent;
                    scan.recycle(raw);
                }
                framer.finish()?;
            }
            Message::Need(_) => {
                let message = "the receiver asked for the same extents again and again: its device does not keep what is written, or the source changes while it is read";
                return Err(Error::new(Kind::Failed, message));
            }
            _ => return Err(Error::malformed("the receiver answered the end of the pass with something else than its commit")),
        }
    }
}

fn send_if_changed(
    extent: &HashedExtent<'_>,
    have: &mut HaveView,
    draft: &mut Draft,
    framer: &mut Framer<'_>,
    bitmap: &mut Vec<u8>,
) -> Result<()> {
    let zero = have.zero_entry(extent.index).digest;
    let held = have.entry(Some(draft.base()), extent.index)?;
    match compare(extent, &held, zero, bitmap) {
        Verdict::Unchanged => Ok(()),
        Verdict::Zero => framer.zero(single(extent.index)),
        Verdict::Changed => framer.changed(extent, bitmap),
    }
}

/// Moves the cursor: record first, then the manifest, which [`crate::state::manifest::load`] completes
/// from the draft where a crash comes between.
fn adopt(record: &mut SourceRecord, files: &dyn Files, draft: Draft, sealed: &About, source_time_ms: u64) -> Result<()> {
    let moved = SourceRecord { epoch: sealed.epoch, generation: sealed.generation, root: sealed.root, source_time_ms, ..record.clone() };
    moved.store(files).within(|| "the replica is committed, but the cursor here is not (the next run finds out)")?;
    *record = moved;
    failpoint::reach("sender.cursor-recorded");
    draft.install(files)?;
    Ok(())
}

/// A source that cannot be read is no fault of the replica or its journal, which `Storage` speaks of.
fn at_the_source(cause: Error) -> Error {
    match cause.kind() {
        Kind::Storage => Error::because(Kind::Failed, "read the source", cause),
        _ => cause,
    }
}

fn stop_if_asked(progress: &Progress) -> Result<()> {
    if progress.stopped() { Err(crate::transport::stream::interrupted()) } else { Ok(()) }
}
