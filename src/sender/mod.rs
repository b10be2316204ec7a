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
mod outlet;
mod packer;
mod scrub;
mod shard;

pub use effort::Exertion;
pub use level::Bottleneck;
pub use packer::Compress;
pub use scrub::{Scrub, scrub};
pub use shard::{Shards, shard_count};

use crate::digest::Hasher;
use crate::disk::Disk;
use crate::disk::scan::{Scan, Segments};
use crate::error::{Error, Kind, Result, Within};
use crate::extent::{ExtentIndex, Geometry};
use crate::failpoint;
use crate::format::manifest::About;
use crate::format::stream::{Ack, Begin, Counts, End, Message, Mode, Purpose};
use crate::limits::NEED_ROUNDS_MAX;
use crate::part::Part;
use crate::progress::{Alone, Phase, Progress, Witness};
use crate::state::manifest::Draft;
use crate::state::{Files, HAVE, SourceRecord};
use crate::transport::Wire;
use comparer::mark_all_blocks;
use effort::Effort;
use framer::Framer;
use handshake::Agreed;
use hasher::{HashedChunk, Names};
use outlet::{Handed, Outlet, Relay};
use shard::{Book, Line};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

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
    /// The same snapshot, opened once more for each further shard.
    pub further: &'a mut [Box<dyn Disk>],
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
        Purpose::Replicate => replicate(pass, wire, agreed, geometry, &hasher),
        Purpose::Plan | Purpose::Verify => look::look(pass, wire, &mut agreed, geometry, &hasher),
    }
}

/// Sends the differences, then waits for the commit.
fn replicate(pass: &mut Pass<'_>, wire: &mut Wire, agreed: Agreed, geometry: Geometry, hasher: &Hasher) -> Result<Outcome> {
    let generation = agreed.welcome.generation + 1;
    wire.put(&Message::Begin(Begin { generation, source_time_ms: pass.order.source_time_ms }))?;
    failpoint::reach("sender.begun");
    let base = agreed.base.ok_or_else(|| Error::new(Kind::Failed, "the base manifest vanished"))?;
    let book = Book { have: agreed.have, draft: Draft::new(pass.files, base)? };
    let sent_before = wire.sent_bytes();
    pass.progress.sent_bytes.store(0, Relaxed);
    let segments = Segments::new(geometry, 1 + pass.further.len());
    let mut scan = Scan::shared(pass.source, geometry, &segments)?;
    let line = Line::new(geometry, hasher, pass.progress, book);
    let compress = pass.order.compress;
    let watch = &mut *pass.watch;
    let Sent { mut counts, effort, mut read_bytes } = if pass.further.is_empty() {
        one_shard(&line, &mut scan, wire, compress, &mut || watch(Watch::Reading))
    } else {
        several_shards(&line, &mut scan, pass.further, &segments, wire, compress, &mut || watch(Watch::Reading))
    };
    let mut draft = line.finish()?;
    // The receiver proves the last frames while the draft is sealed here.
    wire.push()?;
    let about = About { generation, epoch: agreed.welcome.epoch, ..agreed.about };
    let mut rounds = 0;
    loop {
        watch(Watch::Sealing)?;
        let sealed = About { root: draft.root()?, ..about };
        draft.seal(sealed)?;
        failpoint::reach("sender.next-sealed");
        // From here on a crash loses nothing: the next handshake finds this generation committed and
        // adopts `manifest.next`, or not committed and starts over from the old manifest.
        counts = Counts { read_bytes, wire_bytes: wire.sent_bytes() - sent_before, ..counts };
        wire.put(&Message::End(End { generation, root: sealed.root, counts }))?;
        wire.flush()?;
        failpoint::reach("sender.end-sent");
        pass.progress.enter(Phase::Commit, geometry.volume_bytes());
        match wire.hear()? {
            Message::Ack(ack) if ack.generation == generation && ack.root == sealed.root => {
                failpoint::reach("sender.acknowledged");
                // A first copy says nothing about how much the source changes between two snapshots.
                let first = agreed.welcome.mode == Mode::Direct && !agreed.uses_base;
                pass.record.changed_bytes = (!first).then_some(counts.changed_extents * geometry.extent_bytes() as u64);
                adopt(pass.record, pass.files, draft, &sealed, pass.order.source_time_ms, &mut Alone)?;
                let (mode, adopted, exertion) = (agreed.welcome.mode, agreed.adopted, effort.exertion());
                return Ok(Outcome { ack: Some(ack), mode, counts, adopted, exertion });
            }
            Message::Need(extents) if rounds < NEED_ROUNDS_MAX => {
                rounds += 1;
                pass.progress.enter(Phase::Transfer, geometry.volume_bytes());
                let before = scan.read_bytes();
                let extents = extents.into_iter().map(ExtentIndex).filter(|extent| extent.0 < geometry.extents());
                let mut framer = Framer::new(wire, geometry, compress, pass.progress);
                send_whole(extents, &mut scan, &mut framer, &mut draft, hasher)?;
                counts.add(&framer.counts);
                read_bytes += scan.read_bytes() - before;
            }
            Message::Need(_) => {
                let message = "the receiver asked for the same extents again and again: its device does not keep what is written, or the source changes while it is read";
                return Err(Error::new(Kind::Failed, message));
            }
            _ => return Err(Error::malformed("the receiver answered the end of the pass with something else than its commit")),
        }
    }
}

/// What one or several shards sent.
struct Sent {
    counts: Counts,
    effort: Effort,
    read_bytes: u64,
}

fn one_shard(
    line: &Line<'_>,
    scan: &mut Scan<'_>,
    outlet: &mut dyn Outlet,
    compress: Compress,
    watch: &mut dyn FnMut() -> Result<()>,
) -> Sent {
    let mut framer = Framer::new(outlet, line.geometry, compress, line.progress);
    line.run(scan, &mut framer, watch).unwrap_or_else(|error| line.fail(error));
    Sent { counts: framer.counts, effort: framer.effort, read_bytes: scan.read_bytes() }
}

/// One shard on this thread, which watches the snapshot, and one for each further disk.
fn several_shards(
    line: &Line<'_>,
    scan: &mut Scan<'_>,
    further: &mut [Box<dyn Disk>],
    segments: &Segments,
    wire: &mut Wire,
    compress: Compress,
    watch: &mut dyn FnMut() -> Result<()>,
) -> Sent {
    let relay = Relay::new();
    let (mut collector, handed) = outlet::relay(&relay, wire, further.len());
    std::thread::scope(|scope| {
        let beside = |disk: &mut Box<dyn Disk>, mut handed: Handed<'_>| {
            let mut scan = Scan::shared(&mut **disk, line.geometry, segments)?;
            Ok(one_shard(line, &mut scan, &mut handed, compress, &mut || Ok(())))
        };
        let start = |disk| {
            let handed = handed.clone();
            scope.spawn(move || beside(disk, handed))
        };
        let running: Vec<_> = further.iter_mut().map(start).collect();
        drop(handed);
        let mut sent = one_shard(line, scan, &mut collector, compress, watch);
        // Where a shard failed, the others notice at the latest when nobody takes their frames.
        if !line.failed() {
            collector.finish().unwrap_or_else(|error| line.fail(error));
        } else {
            drop(collector);
        }
        for shard in running {
            match shard.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Ok(other) => {
                    sent.counts.add(&other.counts);
                    sent.effort.add(&other.effort);
                    sent.read_bytes += other.read_bytes;
                }
                Err(error) => line.fail(error),
            }
        }
        sent
    })
}

/// Sends extents whole that the receiver asks for again.
fn send_whole(
    extents: impl Iterator<Item = ExtentIndex>,
    scan: &mut Scan<'_>,
    framer: &mut Framer<'_>,
    draft: &mut Draft,
    hasher: &Hasher,
) -> Result<()> {
    let (geometry, mut names, mut bitmap) = (framer.geometry(), Names::default(), Vec::new());
    for extent in extents {
        framer.stop_if_asked()?;
        framer.outlet().worked(geometry.bytes_of(extent) as u64)?;
        let chunk = HashedChunk::new(scan.extent(extent).map_err(at_the_source)?, &geometry, hasher, names);
        for extent in chunk.extents(&geometry) {
            mark_all_blocks(extent.blocks.len(), &mut bitmap);
            framer.changed(&extent, &bitmap)?;
            draft.set(extent.index, &extent.digest, extent.blocks)?;
        }
        let (raw, lent) = chunk.into_parts();
        names = lent;
        scan.recycle(raw);
    }
    framer.finish()
}

/// Moves the cursor: record first, then the manifest, which [`crate::state::manifest::load`] completes
/// from the draft where a crash comes between.
fn adopt(
    record: &mut SourceRecord,
    files: &dyn Files,
    draft: Draft,
    sealed: &About,
    source_time_ms: u64,
    witness: &mut dyn Witness,
) -> Result<()> {
    let moved = SourceRecord { epoch: sealed.epoch, generation: sealed.generation, root: sealed.root, source_time_ms, ..record.clone() };
    moved.store(files).within(|| "the replica is committed, but the cursor here is not (the next run finds out)")?;
    *record = moved;
    failpoint::reach("sender.cursor-recorded");
    draft.install(files, witness)?;
    Ok(())
}

/// A source that cannot be read is no fault of the replica or its journal, which `Storage` speaks of.
fn at_the_source(cause: Error) -> Error {
    match cause.kind() {
        Kind::Storage => Error::because(Kind::Failed, "read the source", cause),
        _ => cause,
    }
}
