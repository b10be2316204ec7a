//! Makes sense of what the last run left: the crash table of docs/RELIABILITY.md, read backwards.
//!
//! | record says | journal | what it means | what is done |
//! |---|---|---|---|
//! | clean g | none | nothing was under way | nothing |
//! | clean g | without a seal | receiving was cut | its frames are replayed into a draft: the overlay |
//! | clean g | with a seal | cut just before applying | committed now |
//! | applying g+1 | with a seal | cut while applying | applied again, committed |
//! | applying g+1 | damaged or gone | the replica is torn and cannot be completed here | an operator resyncs it |
//! | initializing | (none) | the first copy was cut | the manifest says what is there |

use super::committer::{self, Commit};
use super::journaler::{Journaler, Walk};
use super::prover::Prover;
use super::site::Site;
use super::target::Target;
use crate::digest::Hasher;
use crate::error::{Error, Kind, Result};
use crate::extent::Geometry;
use crate::format::journal::Belongs;
use crate::format::stream::{Frame, FrameKind, Message, Seal};
use crate::progress::Witness;
use crate::state::manifest::{self, Damage, Draft, Manifest};
use crate::state::{ReplicaRecord, Stage};

/// What a replica holds beside its committed generation.
pub enum Found {
    /// Nothing.
    Nothing(Option<Box<Manifest>>),
    /// An unfinished journal and the draft it makes.
    Overlay(Box<(Draft, Journaler)>),
}

/// What the journal of a replica must say to belong to its record.
pub fn belongs(record: &ReplicaRecord) -> Result<Belongs> {
    Ok(Belongs {
        relationship: record.relationship,
        epoch: record.epoch,
        base_generation: record.generation,
        base_root: record.root,
        geometry: record.geometry()?,
        algorithm: record.algorithm,
    })
}

/// Whether the record and the journal leave something to be completed before the replica is a whole generation.
pub fn is_applying(record: &ReplicaRecord) -> bool {
    matches!(record.stage, Stage::Applying { .. })
}

/// Completes an apply that a crash cut short. Afterwards the record says clean.
pub fn finish_applying(site: &dyn Site, record: &mut ReplicaRecord, target: &mut Target, witness: &mut dyn Witness) -> Result<()> {
    let Stage::Applying { generation, root, source_time_ms } = record.stage else { return Ok(()) };
    let torn = |cause: Error| {
        let message = format!(
            "{} lies between generation {} and {generation} and its journal cannot complete it; run `blockferry clone` again with --resync, which reads the replica and sends what differs",
            site.name(),
            record.generation
        );
        Error::because(Kind::Operator, message, cause)
    };
    make_durable(site, record)?;
    let journal =
        site.open_journal()?.ok_or_else(|| torn(Error::new(Kind::Operator, format!("the journal {} is gone", site.journal_place()))))?;
    let hasher = Hasher::new(record.algorithm, &record.secret);
    // A disk that cannot be read now may be read later; only damage is for the operator.
    let (found, walk) = Walk::open(journal).map_err(|error| if error.kind() == Kind::Storage { error } else { torn(error) })?;
    if found != belongs(record)? {
        return Err(torn(Error::new(Kind::Operator, "the journal belongs to something else")));
    }
    let commit = Commit { generation, root, source_time_ms };
    committer::apply(walk, &commit, target, record.geometry()?, &hasher, witness)
        .map_err(|error| if error.kind() == Kind::Failed { torn(error) } else { error })?;
    committer::finish(site, record, &commit, None, witness)
}

/// The process that wrote the record may have died before it was synced: what is read here may be in a
/// cache only. Before anything is done on its word (writing the device, installing a manifest, dropping a
/// journal) a power cut must no longer be able to bring the record before it back.
fn make_durable(site: &dyn Site, record: &ReplicaRecord) -> Result<()> {
    record.store(site.files())
}

/// Looks for an unfinished journal over a clean generation. One that is sealed is committed here.
pub fn find_overlay(site: &dyn Site, record: &mut ReplicaRecord, target: &mut Target, witness: &mut dyn Witness) -> Result<Found> {
    let geometry = record.geometry()?;
    let hasher = Hasher::new(record.algorithm, &record.secret);
    let base = manifest::load(site.files(), record.generation, &record.root, &geometry, &hasher, Damage::Refuse)?;
    let Some(journal) = site.open_journal()? else {
        // A link to nothing may be left of one.
        site.remove_journal()?;
        return Ok(Found::Nothing(base.map(Box::new)));
    };
    make_durable(site, record)?;
    let Some(base) = base else {
        // Without the manifest under it a journal says nothing; the device is still generation g.
        site.remove_journal()?;
        return Ok(Found::Nothing(None));
    };
    let mut walk = match Walk::open(journal) {
        Ok((found, walk)) if found == belongs(record)? => walk,
        Err(error) if error.kind() == Kind::Storage => return Err(error),
        // Torn while it was made, or made for a generation that is committed by now.
        _ => {
            site.remove_journal()?;
            return Ok(Found::Nothing(Some(Box::new(base))));
        }
    };
    let mut draft = Draft::new(site.files(), base)?;
    let seal = replay(&mut walk, &mut draft, geometry, &hasher, witness)?;
    match seal {
        Some(seal) if seal.root == draft.root()? && seal.generation == record.generation + 1 => {
            let commit = Commit { generation: seal.generation, root: seal.root, source_time_ms: seal.source_time_ms };
            // The process may have died between writing the seal and its sync: what is read here may still be
            // in a cache, and the apply must not begin on it.
            let mut journal = walk.into_disk();
            crate::disk::flush(&mut *journal)?;
            committer::commit_journal(site, record, &commit, draft, journal, target, witness)?;
            let base = manifest::load(site.files(), record.generation, &record.root, &geometry, &hasher, Damage::Refuse)?;
            Ok(Found::Nothing(base.map(Box::new)))
        }
        _ => {
            let (end, chain) = (walk.end(), walk.chain());
            let journal = Journaler::resume(walk.into_disk(), end, chain)?;
            Ok(Found::Overlay(Box::new((draft, journal))))
        }
    }
}

/// Enters every good frame into the draft. Damage ends the replay without an error: the replica was
/// not touched yet, so what is behind it is only sent again. Returns the seal where one closes it all.
fn replay(walk: &mut Walk, draft: &mut Draft, geometry: Geometry, hasher: &Hasher, witness: &mut dyn Witness) -> Result<Option<Seal>> {
    let mut prover = Prover::new(geometry, hasher)?;
    loop {
        let header = match walk.next_frame() {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == Kind::Failed => return Ok(None),
            Err(error) => return Err(error),
        };
        witness.worked(header.frame_bytes() as u64)?;
        let entered = walk.frame(&header).and_then(|frame| match frame {
            Frame::Data(data) => data.check(&geometry, &header).and_then(|()| prover.replay(&data, draft)),
            Frame::Message(Message::Zero { first, count }) => {
                let extents = committer::checked_range(&geometry, first, count)?;
                draft.set_zeros(extents)
            }
            Frame::Message(Message::Seal(seal)) if (seal.frames, seal.chain) == (walk.chain().frames, walk.chain().value) => Ok(()),
            _ => Err(Error::malformed("a frame that has no place in a journal")),
        });
        match entered {
            Ok(()) if header.kind == FrameKind::Seal => {
                return match walk.frame(&header)? {
                    Frame::Message(Message::Seal(seal)) => Ok(Some(seal)),
                    _ => Ok(None),
                };
            }
            Ok(()) => walk.done(&header),
            Err(error) if error.kind() == Kind::Failed => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
