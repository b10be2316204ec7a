//! The host's replicas: where a sender's target is, whether it may have it, and what lies beside it.

use super::now_ms;
use super::place::absolute;
use crate::disk::identity::{self, Identity};
use crate::disk::raw::{Access, RawDisk};
use crate::disk::{Disk, guard, readonly};
use crate::error::{Context, Error, Kind, Result};
use crate::format::stream::{Hello, Purpose};
use crate::limits::REPLICA_WAIT;
use crate::log;
use crate::receiver::{Apply, Replicas, Site, promotion};
use crate::ring::Choice;
use crate::state::journals::{self, Journals, Room};
use crate::state::{Files, HostFiles, Lock, MANIFEST, NEXT, RECORD, ReplicaRecord, Side, SourceRecord, StateDir};
use std::path::{Path, PathBuf};

/// Targets named by their path: for local clones and for `receiver --stdio`, whose caller already has
/// the rights of this user.
pub struct HostReplicas {
    state: StateDir,
    choice: Choice,
    journals: Journals,
    apply: Apply,
    readonly: bool,
}

impl HostReplicas {
    /// Replicas remembered in this state directory.
    pub fn new(state: StateDir, choice: Choice) -> HostReplicas {
        HostReplicas { state, choice, journals: Journals::default(), apply: Apply::Auto, readonly: false }
    }

    /// How increments reach the replicas that are found from here on, and whether their devices refuse writes
    /// between sessions.
    pub fn treat(&mut self, apply: Apply, readonly: bool) {
        (self.apply, self.readonly) = (apply, readonly);
    }

    /// The same with journals as a configuration has them.
    pub fn with_journals(self, journals: Journals) -> HostReplicas {
        HostReplicas { journals, ..self }
    }

    /// What is remembered of a relationship, if anything.
    pub fn record(&self, relationship: &uuid::Uuid) -> Result<Option<ReplicaRecord>> {
        ReplicaRecord::load(&HostFiles::new(&self.state.folder(Side::Replicas, relationship)))
    }

    /// Takes a configured replica for this process. The name is one of the configuration's: it makes a folder.
    pub fn lock_name(&self, replica: &str) -> Result<Lock> {
        Lock::wait(&self.state.served(replica)?, &format!("the replica {replica}"), REPLICA_WAIT)
    }

    /// Remembers what a configured replica's name stands for.
    pub fn note_name(&self, replica: &str, relationship: &uuid::Uuid) -> Result<()> {
        self.state.note_served(replica, relationship)
    }

    /// Refuses a target that is another relationship's replica; with --overwrite that one is given up.
    fn check_claims(&self, hello: &Hello, identity: &Identity) -> Result<()> {
        for relationship in self.state.relationships(Side::Replicas)? {
            let files = HostFiles::new(&self.state.folder(Side::Replicas, &relationship));
            let Some(record) = ReplicaRecord::load(&files)? else { continue };
            if relationship == hello.relationship || record.target.stable != identity.stable {
                continue;
            }
            if !hello.overwrite {
                let message = format!(
                    "{} is the replica of {} (generation {}, relationship {relationship}), not of {}: --overwrite gives it to the new source and forgets the old",
                    identity.path.display(),
                    record.source,
                    record.generation,
                    hello.source
                );
                return Err(Error::new(Kind::Refused, message));
            }
            check_not_promoted(&record)?;
            if hello.purpose == Purpose::Replicate {
                let _lock = Lock::take(files.folder(), &format!("the replica {}", identity.path.display()))?;
                journals::remove(&files)?;
                let _ = std::fs::remove_dir_all(files.folder());
            }
        }
        Ok(())
    }
}

impl HostReplicas {
    /// Refuses a target that is replicated from here: the two ends of a pair were swapped, or it becomes the middle of a
    /// chain, which somebody has to say.
    fn check_no_source(&self, identity: &Identity) -> Result<()> {
        for relationship in self.state.relationships(Side::Sources)? {
            let files = HostFiles::new(&self.state.folder(Side::Sources, &relationship));
            let Some(record) = SourceRecord::load(&files)? else { continue };
            if record.source.stable == identity.stable {
                let (path, target) = (identity.path.display(), &record.target);
                let message = format!(
                    "{path} is a source: it is replicated to {target}. Are SRC and DST swapped? --overwrite if its content may be lost"
                );
                return Err(Error::new(Kind::Refused, message));
            }
        }
        Ok(())
    }
}

/// The device must be the one that was paired.
pub(super) fn check_identity(record: &ReplicaRecord, identity: &Identity) -> Result<()> {
    if record.target.stable == identity.stable {
        return Ok(());
    }
    let message = format!(
        "{} is not the device that was paired: it was {}, now it is {}. Name the right device; or, if this one is to be the replica now, clone to it with --overwrite",
        identity.path.display(),
        record.target.stable,
        identity.stable
    );
    Err(Error::new(Kind::Refused, message))
}

/// A mistyped device must not become a file in memory that is lost with the next boot.
fn check_makeable(path: &Path) -> Result<()> {
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
        let message =
            format!("{} does not exist, and no image file is made in /dev: `lsblk` shows how devices are called now", path.display());
        return Err(Error::new(Kind::Refused, message));
    }
    Ok(())
}

/// What was written since a promotion is thrown away only under its own name, never in passing (I6).
fn check_not_promoted(record: &ReplicaRecord) -> Result<()> {
    if record.promotion.is_none() {
        return Ok(());
    }
    let (path, name) = (record.target.path.display(), promotion::name_of(record));
    let message = format!(
        "{path} was promoted: --overwrite does not give that up. On the replica's host: `blockferry resync --discard {name} {path}`"
    );
    Err(Error::new(Kind::Operator, message))
}

/// Gives up what was paired. The record goes first: without it nothing of the rest is believed.
fn forget(files: &HostFiles) -> Result<()> {
    files.remove(RECORD)?;
    journals::remove(files)?;
    [NEXT, MANIFEST].into_iter().try_for_each(|name| files.remove(name))
}

/// A target without a record may only be taken when nothing on it can be missed.
fn check_first_use(path: &Path, identity: &Identity, choice: Choice) -> Result<()> {
    guard::no_signature(path)?;
    if identity.is_device {
        return Ok(());
    }
    let mut file = RawDisk::open(path, Access::Read, choice)?;
    if identity.bytes > 0 && file.data_range(0)?.is_some() {
        let message =
            format!("{} exists and holds data: --overwrite if it may be lost (blocks that are equal already are kept)", path.display());
        return Err(Error::new(Kind::Refused, message));
    }
    Ok(())
}

impl Replicas for HostReplicas {
    fn find(&mut self, hello: &Hello) -> Result<Box<dyn Site>> {
        let path = absolute(Path::new(&hello.target))?;
        let folder = self.state.folder(Side::Replicas, &hello.relationship);
        let replicate = hello.purpose == Purpose::Replicate;
        let identity = path.exists().then(|| identity::of(&path)).transpose()?;
        let mut lock = None;
        let remembered = folder.join(RECORD);
        if remembered.try_exists().context(Kind::Storage, || format!("look for {}", remembered.display()))? {
            lock = Some(Lock::take(&folder, &format!("the replica {}", path.display()))?);
        }
        let files = HostFiles::new(&folder);
        let mut record = ReplicaRecord::load(&files)?;
        let mut made = replicate && record.is_none();
        if identity.is_none() {
            check_makeable(&path)?;
        }
        if let (Some(identity), true) = (&identity, hello.purpose != Purpose::Verify) {
            self.check_claims(hello, identity)?;
            if replicate {
                guard::not_in_use(&path)?;
            }
            if let Some(old) = record.as_ref().filter(|record| replicate && hello.overwrite && record.target.stable != identity.stable) {
                check_not_promoted(old)?;
                forget(&files)?;
                (record, made) = (None, true);
            }
            match &record {
                Some(record) => check_identity(record, identity)?,
                None if !hello.overwrite => {
                    self.check_no_source(identity)?;
                    check_first_use(&path, identity, self.choice)?;
                }
                None => {}
            }
        }
        // A device is never made anew: one that is away may come back.
        if let (true, None, Some(old)) = (replicate && hello.overwrite, &identity, record.filter(|record| !record.target.is_device)) {
            check_not_promoted(&old)?;
            forget(&files)?;
            made = true;
        }
        if replicate && lock.is_none() {
            self.state.files(Side::Replicas, &hello.relationship)?;
            lock = Some(Lock::take(&folder, &format!("the replica {}", path.display()))?);
        }
        let (state, journals) = (self.state.clone(), self.journals.clone());
        let name = path.display().to_string();
        Ok(Box::new(HostSite {
            name,
            path,
            files,
            state,
            journals,
            apply: self.apply,
            guarded: self.readonly,
            lifts: self.readonly,
            choice: self.choice,
            made,
            _lock: lock,
        }))
    }
}

/// The site of a replica whose record is in this state directory, found by its device, path or relationship: for what the
/// receiver does without a sender. A device is opened where it is today, and never under a name that is another's by now.
pub fn find_replica(state: &StateDir, name: &str, choice: Choice) -> Result<(Box<dyn Site>, ReplicaRecord)> {
    let identity = identity::of(Path::new(name)).ok();
    let unknown = || {
        Error::new(Kind::Usage, format!("{name} is no replica that {} knows of: `blockferry status` lists them", state.path().display()))
    };
    let relationship = relationship_named(state, name, identity.as_ref())?.ok_or_else(unknown)?;
    let folder = state.folder(Side::Replicas, &relationship);
    let lock = Lock::take(&folder, &format!("the replica {name}"))?;
    // Who had the lock until now may have committed: what was read without it is old.
    let record = ReplicaRecord::load(&HostFiles::new(&folder))?.ok_or_else(unknown)?;
    let path = match identity {
        Some(found) if found.stable == record.target.stable => found.path,
        _ => record.target.path.clone(),
    };
    if path.try_exists().context(Kind::Storage, || format!("look for {}", path.display()))? {
        check_identity(&record, &identity::of(&path)?)?;
    }
    let site = HostSite {
        name: path.display().to_string(),
        path,
        files: HostFiles::new(&folder),
        state: state.clone(),
        // Without a sender a journal is completed or removed where it lies, and none is made.
        journals: Journals::default(),
        apply: Apply::Auto,
        // A device that refuses writes takes them while what a crash left is completed, and refuses them again.
        guarded: false,
        lifts: true,
        choice,
        made: false,
        _lock: Some(lock),
    };
    Ok((Box::new(site), record))
}

/// Which replica is meant: the one on this device, before one that is called so. A record that cannot be read hides none
/// of the others.
fn relationship_named(state: &StateDir, name: &str, identity: Option<&Identity>) -> Result<Option<uuid::Uuid>> {
    let (mut called, mut unreadable) = (None, None);
    for relationship in state.relationships(Side::Replicas)? {
        match ReplicaRecord::load(&HostFiles::new(&state.folder(Side::Replicas, &relationship))) {
            Ok(Some(record)) => {
                if identity.is_some_and(|identity| identity.stable == record.target.stable) {
                    return Ok(Some(relationship));
                }
                if name.parse() == Ok(relationship) || record.target.path == Path::new(name) {
                    called = called.or(Some(relationship));
                }
            }
            Ok(None) => {}
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    match (called, unreadable) {
        (None, Some(error)) => Err(error),
        (called, _) => Ok(called),
    }
}

/// A path on this host with its folder of files.
struct HostSite {
    name: String,
    path: PathBuf,
    files: HostFiles,
    state: StateDir,
    journals: Journals,
    apply: Apply,
    /// The device refuses writes when this goes, unless it was promoted.
    guarded: bool,
    /// A device that refuses writes may be made to take them.
    lifts: bool,
    choice: Choice,
    /// The folder may be ours alone: it goes again when no record came into it.
    made: bool,
    _lock: Option<Lock>,
}

impl Drop for HostSite {
    fn drop(&mut self) {
        if self.made && matches!(self.files.folder().join(RECORD).try_exists(), Ok(false)) {
            let _ = std::fs::remove_dir_all(self.files.folder());
        }
        // Without a record the device is nobody's replica, and not ours to guard.
        let record = if self.guarded { ReplicaRecord::load(&self.files).ok().flatten() } else { None };
        if let Some(Err(error)) = record.map(|record| guard_device(&record, &self.path)) {
            log::warning(error.chain());
        }
    }
}

/// Makes the device of a replica refuse writes; one that was promoted takes them.
fn guard_device(record: &ReplicaRecord, path: &Path) -> Result<()> {
    if record.promotion.is_some() {
        return Ok(());
    }
    check_identity(record, &identity::of(path)?)?;
    readonly::set(path, true)
}

/// The same for the replica on this device, if it is one, as it is between sessions.
pub fn guard_replica(state: &StateDir, path: &Path, choice: Choice) -> Result<()> {
    match find_replica(state, &path.display().to_string(), choice) {
        Ok((_site, record)) => guard_device(&record, path),
        // A session has it, which does the same at its end; or nothing was ever copied to it.
        Err(error) if matches!(error.kind(), Kind::Locked | Kind::Usage) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Site for HostSite {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn open_disk(&mut self, write: bool) -> Result<Option<Box<dyn Disk>>> {
        if !self.path.exists() {
            return Ok(None);
        }
        if write && self.lifts && readonly::is_set(&self.path)? {
            readonly::set(&self.path, false)?;
            self.guarded = true;
        }
        let access = if write { Access::Write } else { Access::Read };
        Ok(Some(Box::new(RawDisk::open(&self.path, access, self.choice)?)))
    }

    fn make_disk(&mut self, bytes: u64) -> Result<Box<dyn Disk>> {
        Ok(Box::new(RawDisk::create(&self.path, bytes, self.choice)?))
    }

    fn identity(&self) -> Result<Identity> {
        identity::of(&self.path)
    }

    fn apply(&self) -> Apply {
        self.apply
    }

    fn open_journal(&self) -> Result<Option<Box<dyn Disk>>> {
        let path = journals::place(self.files.folder());
        if !path.try_exists().context(Kind::Storage, || format!("look for the journal {}", path.display()))? {
            return Ok(None);
        }
        Ok(Some(Box::new(RawDisk::open(&path, Access::Write, self.choice)?)))
    }

    fn journal_place(&self) -> String {
        journals::place(self.files.folder()).display().to_string()
    }

    fn make_journal(&self) -> Result<Box<dyn Disk>> {
        let place = self.journals.prepare(&self.files)?;
        let made = match place.parent() == Some(self.files.folder()) {
            true => RawDisk::create_unnamed(&place, self.choice),
            // No sync of this replica's folder would make its name durable.
            false => RawDisk::create(&place, 0, self.choice),
        };
        Ok(Box::new(made?))
    }

    fn remove_journal(&self) -> Result<()> {
        journals::remove(&self.files)
    }

    fn discard_journal(&self) -> Result<()> {
        journals::discard(&self.files)
    }

    fn journal_room(&self, volume_bytes: u64) -> Result<Room> {
        self.journals.room(&self.state, self.files.folder(), volume_bytes)
    }

    fn more_room(&self) -> String {
        self.journals.more_room().to_owned()
    }

    fn now_ms(&self) -> u64 {
        now_ms()
    }
}
