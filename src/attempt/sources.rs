//! The sender's half of a relationship: found again by what the source and the target are, or made.

use crate::digest::{Algorithm, Digest, SECRET_BYTES};
use crate::disk::identity::{self, Identity};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::EXTENT_BYTES_DEFAULT;
use crate::state::{HostFiles, Lock, RECORD, ReplicaRecord, Side, SourceRecord, StateDir};
use std::path::Path;
use uuid::Uuid;

/// What a new relationship is made with, and what an old one must have where it is named.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Bytes of an extent.
    pub extent_bytes: Option<u32>,
    /// How content is named.
    pub algorithm: Option<Algorithm>,
}

/// One half of a relationship, locked.
pub struct Source {
    /// Its record.
    pub record: SourceRecord,
    /// Its files.
    pub files: HostFiles,
    /// Made just now: nothing is lost if it goes again.
    pub is_new: bool,
    _lock: Lock,
}

impl Source {
    /// Finds or makes the relationship of this source and target. `known`: the target's own record says
    /// which relationship it belongs to. `snapshot_bytes`: the size of the snapshot where there is one already; the
    /// volume may have grown since. `remember`: what is found is written down; a dry run does not.
    pub fn open(
        state: &StateDir,
        path: &Path,
        target: &str,
        known: Option<Uuid>,
        wishes: Wishes,
        snapshot_bytes: Option<u64>,
        remember: bool,
    ) -> Result<Source> {
        let mut identity = identity::of(path)?;
        identity.bytes = snapshot_bytes.unwrap_or(identity.bytes);
        let _one_at_a_time = state.lock_pairs()?;
        forget_unborn(state)?;
        let found = find(state, |record| belongs(record, &identity) && (record.target == target || known == Some(record.relationship)))?;
        let is_new = found.is_none();
        let mut record = match found {
            Some(record) => record,
            None => new_record(&identity, target, wishes)?,
        };
        check_wishes(&record, wishes)?;
        if identity.bytes < record.volume_bytes {
            let message = format!(
                "{} shrank from {} to {} bytes: a volume that shrank is never replicated; pair it anew with another target",
                path.display(),
                record.volume_bytes,
                identity.bytes
            );
            return Err(Error::new(Kind::Refused, message));
        }
        let files = match record.generation {
            0 => state.files(Side::Sources, &record.relationship)?,
            // Whoever recorded a generation had made the folder durable before.
            _ => HostFiles::new(&state.folder(Side::Sources, &record.relationship)),
        };
        let lock = Lock::take(files.folder(), &format!("the pair {} → {target}", path.display()))?;
        // Read again under the lock: another run may have moved the cursor meanwhile.
        if let Some(current) = SourceRecord::load(&files)? {
            record = current;
        }
        let known = record.clone();
        record.volume_bytes = identity.bytes;
        record.target = target.to_owned();
        record.source = identity;
        // A record that says all of it already may be in a cache only, if who wrote it was killed and the power went
        // right after: then the generation before comes back, and the next handshake finds out.
        if remember && (record.generation == 0 || record != known) {
            record.store(&files)?;
        }
        Ok(Source { record, files, is_new, _lock: lock })
    }

    /// Forgets a relationship that never came to be.
    pub fn forget(self) {
        let _ = std::fs::remove_dir_all(self.files.folder());
    }
}

/// The first relationship that fits.
pub fn find(state: &StateDir, fits: impl Fn(&SourceRecord) -> bool) -> Result<Option<SourceRecord>> {
    for relationship in state.relationships(Side::Sources)? {
        let found = SourceRecord::load(&HostFiles::new(&state.folder(Side::Sources, &relationship)))?;
        if found.as_ref().is_some_and(&fits) {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether a record is one of this source. An image file may be written anew under its name; a device is the
/// one it is.
pub fn belongs(record: &SourceRecord, identity: &Identity) -> bool {
    record.source.stable == identity.stable || !identity.is_device && record.source.path == identity.path
}

/// Removes the folders of runs that ended between making them and their first record: no later run would find
/// them again. A dry run that is alive has no record either, but holds its lock.
fn forget_unborn(state: &StateDir) -> Result<()> {
    for relationship in state.relationships(Side::Sources)? {
        let folder = state.folder(Side::Sources, &relationship);
        if !folder.join(RECORD).exists()
            && let Ok(_lock) = Lock::take(&folder, "the pair")
            && !folder.join(RECORD).exists()
        {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

fn new_record(identity: &Identity, target: &str, wishes: Wishes) -> Result<SourceRecord> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).context(Kind::Failed, || "ask the system for a random secret")?;
    Ok(SourceRecord {
        relationship: Uuid::now_v7(),
        epoch: Uuid::now_v7(),
        generation: 0,
        root: Digest::UNKNOWN,
        source: identity.clone(),
        target: target.to_owned(),
        volume_bytes: identity.bytes,
        extent_bytes: wishes.extent_bytes.unwrap_or(EXTENT_BYTES_DEFAULT),
        algorithm: wishes.algorithm.unwrap_or(Algorithm::Xxh3),
        secret,
        source_time_ms: 0,
        changed_bytes: None,
    })
}

/// A record for one look that remembers nothing.
pub fn passing_record(path: &Path, target: &str, wishes: Wishes) -> Result<SourceRecord> {
    new_record(&identity::of(path)?, target, wishes)
}

fn check_wishes(record: &SourceRecord, wishes: Wishes) -> Result<()> {
    let fixed = |what: &str, has: String| {
        Err(Error::new(Kind::Usage, format!("this pair was made with {what} {has}, which cannot change: leave the option out")))
    };
    match wishes {
        Wishes { extent_bytes: Some(bytes), .. } if bytes != record.extent_bytes => {
            fixed("extents of", format!("{} bytes", record.extent_bytes))
        }
        Wishes { algorithm: Some(algorithm), .. } if algorithm != record.algorithm => {
            fixed("the digest", format!("{:?}", record.algorithm))
        }
        _ => Ok(()),
    }
}

/// The relationship that a local target's own record names, if there is one.
pub fn relationship_of_target(state: &StateDir, target: &Path) -> Result<Option<Uuid>> {
    let Ok(identity) = identity::of(target) else { return Ok(None) };
    for relationship in state.relationships(Side::Replicas)? {
        let files = HostFiles::new(&state.folder(Side::Replicas, &relationship));
        if ReplicaRecord::load(&files)?.is_some_and(|record| record.target.stable == identity.stable) {
            return Ok(Some(relationship));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A power cut right after the folder's name was durable, before anything in it was.
    #[test]
    fn a_folder_in_which_no_pair_came_to_be_goes_with_the_next_run_unless_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let source = folder.path().join("source");
        std::fs::write(&source, [1; 8192]).unwrap();
        let [empty, dead, dry] = [1, 2, 3].map(|id| state.files(Side::Sources, &Uuid::from_u128(id)).unwrap());
        drop(Lock::take(dead.folder(), "the pair").unwrap());
        let _held = Lock::take(dry.folder(), "the pair").unwrap();
        let _half = Source::open(&state, &source, "there:/r", None, Wishes::default(), None, true).unwrap();
        assert_eq!([empty, dead, dry].map(|files| files.folder().exists()), [false, false, true]);
        assert_eq!(state.relationships(Side::Sources).unwrap().len(), 2);
    }

    #[test]
    fn pairs_that_are_made_at_once_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let source = folder.path().join("source");
        std::fs::write(&source, [1; 8192]).unwrap();
        std::thread::scope(|scope| {
            for at in 0..16 {
                let (state, source) = (&state, &source);
                scope.spawn(move || {
                    Source::open(state, source, &format!("there:/{at}"), None, Wishes::default(), None, true).map(drop).unwrap()
                });
            }
        });
        assert_eq!(state.relationships(Side::Sources).unwrap().len(), 16);
    }
}
