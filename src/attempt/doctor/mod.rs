//! Looks through the state directory, and through the volume groups of this host, for what killed or
//! abandoned runs left, says of each thing what it is and what completes it, and does what is safe.
//!
//! Every folder is looked at and changed under its lock; one that is in use is passed over. Safe is what
//! the next run would do by itself, or what no run would ever look at again: nothing that would have to
//! be sent twice is removed unless the operator says so.

mod leftover;
mod replica;
mod source;
mod ward;

pub use leftover::{Leftover, What};

use crate::digest::Hasher;
use crate::error::{Context, Kind, Result};
use crate::lvm;
use crate::ring::Choice;
use crate::state::manifest::{self, Damage};
use crate::state::{Files, HostFiles, Lock, Side, SourceRecord, StateDir, journals};
use leftover::{Cure, leftover, names};
use std::path::Path;
use ward::Ward;

/// What the operator allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Treatment {
    /// Do what is safe.
    pub fix: bool,
    /// Give up what unfinished journals hold: it is sent again.
    pub drop_journals: bool,
}

/// What was found, and what was done about it.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// What is left, after any fixing.
    pub leftovers: Vec<Leftover>,
    /// What was completed or removed.
    pub fixed: Vec<Leftover>,
    /// What could not be completed, and why.
    pub failures: Vec<String>,
    /// Folders that were passed over because a run has them.
    pub busy: Vec<String>,
}

/// Looks through the whole state directory.
pub fn examine(state: &StateDir, treatment: Treatment, choice: Choice) -> Result<Diagnosis> {
    let mut diagnosis = Diagnosis::default();
    for side in [Side::Sources, Side::Replicas] {
        for relationship in state.relationships(side)? {
            let ward = Ward { state, side, relationship, folder: state.folder(side, &relationship), treatment, choice };
            ward.visit(&mut diagnosis)?;
        }
    }
    verifications(state, treatment, &mut diagnosis)?;
    snapshots(treatment, &mut diagnosis);
    Ok(diagnosis)
}

/// Snapshots of ours whose process is gone.
fn snapshots(treatment: Treatment, diagnosis: &mut Diagnosis) {
    let found = match lvm::leftovers(None) {
        Ok(found) => found,
        // Without lvm2, or without root, no run of ours has made any.
        Err(error) if error.kind() == Kind::Usage => return,
        Err(error) => return diagnosis.failures.push(error.chain()),
    };
    for dead in found.into_iter().filter(|found| !found.owner_lives) {
        let story = format!("the snapshot {} of {}, made for a run that was killed", dead.label(), dead.volume);
        let (place, bytes) = (Path::new("/dev").join(dead.label()), dead.bytes);
        let remedy = "`blockferry doctor --fix` removes it, and so does the next clone of a logical volume";
        let found = Leftover { bytes, ..leftover(What::Snapshot, &place, story, remedy, Cure::RemoveSnapshot(dead)) };
        treat(vec![found], &place, treatment, diagnosis);
    }
}

/// The working folders of verifications: a live one holds its lock.
fn verifications(state: &StateDir, treatment: Treatment, diagnosis: &mut Diagnosis) -> Result<()> {
    for name in names(state.path())?.into_iter().filter(|name| name.starts_with("verify-")) {
        let folder = state.path().join(name);
        let Some(_lock) = lock(&folder, diagnosis)? else { continue };
        let story = "the working folder of a verification that was killed".to_owned();
        let found = vec![leftover(What::Verification, &folder, story, "", Cure::RemoveFolder)];
        treat(found, &folder, treatment, diagnosis);
    }
    Ok(())
}

fn lock(folder: &Path, diagnosis: &mut Diagnosis) -> Result<Option<Lock>> {
    match Lock::take(folder, &folder.display().to_string()) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == Kind::Locked => {
            diagnosis.busy.push(error.chain());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Does what is allowed, and lists the rest.
fn treat(found: Vec<Leftover>, folder: &Path, treatment: Treatment, diagnosis: &mut Diagnosis) {
    for found in found {
        let done = match &found.cure {
            Cure::Remove if treatment.fix => remove(folder, &found),
            Cure::GiveUp if treatment.fix && treatment.drop_journals => remove(folder, &found),
            Cure::RemoveFolder if treatment.fix => {
                std::fs::remove_dir_all(folder).context(Kind::Storage, || format!("remove {}", folder.display()))
            }
            Cure::Install if treatment.fix => install(folder),
            Cure::RemoveSnapshot(dead) if treatment.fix => lvm::remove_leftover(dead),
            _ => {
                diagnosis.leftovers.push(found);
                continue;
            }
        };
        match done {
            Ok(()) => diagnosis.fixed.push(found),
            Err(error) => {
                diagnosis.failures.push(error.chain());
                diagnosis.leftovers.push(found);
            }
        }
    }
}

fn remove(folder: &Path, found: &Leftover) -> Result<()> {
    if matches!(found.what, What::StrayJournal | What::UnfinishedJournal) {
        return journals::remove(&HostFiles::new(folder));
    }
    let name = found.place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    HostFiles::new(folder).remove(name)
}

fn install(folder: &Path) -> Result<()> {
    let files = HostFiles::new(folder);
    let Some(record) = SourceRecord::load(&files)? else { return Ok(()) };
    let hasher = Hasher::new(record.algorithm, &record.secret);
    manifest::load(&files, record.generation, &record.root, &record.geometry()?, &hasher, Damage::Refuse).map(drop)
}
