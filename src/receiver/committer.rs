//! Turns a sealed delta into the next generation, in the one order that leaves no torn replica.
//!
//! ```text
//! journal synced with its seal      crash: clean g, sealed journal     → commits at the next start
//! manifest.next sealed              crash: the same
//! record: applying g+1              crash: applied again from the journal
//! blocks written, device flushed    crash: the same (writing twice is harmless)
//! manifest.next installed           crash: the same, installed again
//! record: clean g+1                 crash: g+1 is committed; the journal is left over
//! journal removed
//! ```

use super::journaler::{Journaler, Walk};
use super::prover::{Prover, device_runs};
use super::site::Site;
use super::target::Target;
use crate::digest::{Digest, Hasher};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result, Within};
use crate::extent::Geometry;
use crate::failpoint;
use crate::format::manifest::About;
use crate::format::stream::{Frame, Message, Seal};
use crate::progress::Witness;
use crate::state::manifest::{self, Damage, Draft};
use crate::state::{ReplicaRecord, Stage};
use std::ops::Range;

/// The generation that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub generation: u64,
    /// Its root.
    pub root: Digest,
    /// When its snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
}

/// A range of extents from outside, if it lies within the volume.
pub fn checked_range(geometry: &Geometry, first: u64, count: u64) -> Result<Range<u64>> {
    match first.checked_add(count) {
        Some(end) if count > 0 && end <= geometry.extents() => Ok(first..end),
        _ => Err(Error::malformed(format!("malformed Zero frame: extents {first} and {count} more are not on the volume"))),
    }
}

fn about(record: &ReplicaRecord, commit: &Commit) -> Result<About> {
    Ok(About {
        relationship: record.relationship,
        epoch: record.epoch,
        generation: commit.generation,
        root: commit.root,
        sealed: true,
        algorithm: record.algorithm,
        geometry: record.geometry()?,
    })
}

/// Seals a journal and commits it.
pub fn seal_and_commit(
    site: &dyn Site,
    record: &mut ReplicaRecord,
    commit: &Commit,
    draft: Draft,
    journal: Journaler,
    target: &mut Target,
    witness: &mut dyn Witness,
) -> Result<()> {
    let seal = Seal { generation: commit.generation, root: commit.root, frames: 0, chain: 0, source_time_ms: commit.source_time_ms };
    let journal = journal.seal(seal)?;
    witness.step();
    failpoint::reach("receiver.journal-synced");
    commit_journal(site, record, commit, draft, journal, target, witness)
}

/// Commits a sealed journal whose draft makes the root it claims.
pub fn commit_journal(
    site: &dyn Site,
    record: &mut ReplicaRecord,
    commit: &Commit,
    mut draft: Draft,
    journal: Box<dyn Disk>,
    target: &mut Target,
    witness: &mut dyn Witness,
) -> Result<()> {
    let hasher = Hasher::new(record.algorithm, &record.secret);
    draft.seal(about(record, commit)?)?;
    witness.step();
    failpoint::reach("receiver.next-sealed");
    let applying = Stage::Applying { generation: commit.generation, root: commit.root, source_time_ms: commit.source_time_ms };
    let begun = ReplicaRecord { stage: applying, ..record.clone() };
    begun.store(site.files())?;
    witness.step();
    *record = begun;
    failpoint::reach("receiver.applying-recorded");
    let (_, walk) = Walk::open(journal)?;
    apply(walk, commit, target, record.geometry()?, &hasher, witness)?;
    finish(site, record, commit, Some(draft), witness)
}

/// Writes every block of a sealed journal onto the device and flushes it. Safe to repeat. A witness that went
/// away changes nothing: what is sealed will be committed.
pub fn apply(
    mut walk: Walk,
    commit: &Commit,
    target: &mut Target,
    geometry: Geometry,
    hasher: &Hasher,
    witness: &mut dyn Witness,
) -> Result<()> {
    let mut prover = Prover::new(geometry, hasher)?;
    while let Some(header) = walk.next_frame()? {
        let _ = witness.worked(header.frame_bytes() as u64);
        match walk.frame(&header)? {
            Frame::Data(data) => {
                data.check(&geometry, &header)?;
                let runs = device_runs(&data, &geometry);
                let mut room = target.room(data.plain_bytes, runs.first().map_or(0, |run| run.offset))?;
                prover.unpack(&data, room.bytes())?;
                prover.check_plain(&data, &room.bytes()[..data.plain_bytes])?;
                target.write(room, data.plain_bytes, runs)?;
                failpoint::reach("receiver.apply-halfway");
            }
            // A later frame may bring blocks of the same extents: order matters within a journal.
            Frame::Message(Message::Zero { first, count }) => {
                target.drain()?;
                target.zero(checked_range(&geometry, first, count)?, witness)?;
                target.drain()?;
            }
            Frame::Message(Message::Seal(seal)) => {
                let same = (seal.frames, seal.chain) == (walk.chain().frames, walk.chain().value);
                if !same || seal.root != commit.root || seal.generation != commit.generation {
                    return Err(Error::malformed("the journal's seal does not close it"));
                }
                failpoint::reach("receiver.applied");
                target.flush()?;
                failpoint::reach("receiver.device-flushed");
                return Ok(());
            }
            _ => return Err(Error::malformed("a frame that has no place in a journal")),
        }
        walk.done(&header);
    }
    Err(Error::malformed("the journal has no seal"))
}

/// The device is flushed: brings manifest and record to the new generation and drops the journal.
/// Without a draft at hand (after a crash) the sealed one on disk is installed.
pub fn finish(site: &dyn Site, record: &mut ReplicaRecord, commit: &Commit, draft: Option<Draft>, witness: &mut dyn Witness) -> Result<()> {
    witness.step();
    let geometry = record.geometry()?;
    let manifest = match draft {
        Some(draft) => Some(draft.install(site.files(), witness)?),
        None => manifest::load(
            site.files(),
            commit.generation,
            &commit.root,
            &geometry,
            &Hasher::new(record.algorithm, &record.secret),
            Damage::Refuse,
        )?,
    };
    witness.step();
    record_commit(site, record, commit, manifest.is_none())?;
    witness.step();
    drop(manifest);
    // A journal that a crash brings back belongs to the generation before, and goes then.
    site.discard_journal().within(|| "the generation is committed; its journal is left over")?;
    failpoint::reach("receiver.journal-dropped");
    Ok(())
}

/// The commit record: from here on the replica is this generation. `manifest_lost`: the device is, but
/// its manifest has to be read anew.
pub fn record_commit(site: &dyn Site, record: &mut ReplicaRecord, commit: &Commit, manifest_lost: bool) -> Result<()> {
    let committed = ReplicaRecord {
        generation: commit.generation,
        root: commit.root,
        stage: Stage::Clean,
        rehash: manifest_lost,
        source_time_ms: commit.source_time_ms,
        committed_time_ms: site.now_ms(),
        ..record.clone()
    };
    committed.store(site.files())?;
    *record = committed;
    failpoint::reach("receiver.committed");
    Ok(())
}

/// Commits a pass that wrote straight to the device, or one in which nothing changed.
pub fn commit_direct(
    site: &dyn Site,
    record: &mut ReplicaRecord,
    commit: &Commit,
    mut draft: Draft,
    target: &mut Target,
    witness: &mut dyn Witness,
) -> Result<()> {
    target.flush()?;
    witness.step();
    failpoint::reach("receiver.device-flushed");
    draft.seal(about(record, commit)?)?;
    witness.step();
    failpoint::reach("receiver.next-sealed");
    // From here on a crash leaves a sealed draft of this generation; the record decides whether it counts.
    record_commit(site, record, commit, false)?;
    witness.step();
    if draft.install(site.files(), witness).is_err() {
        return Err(Error::new(
            Kind::Storage,
            "the generation is committed, but its manifest could not be installed; the next run does it",
        ));
    }
    Ok(())
}
