//! Looks through the state directory, and through the volume groups of this host, for what killed or
//! abandoned runs left, says of each thing what it is and what completes it, and does what is safe.
//!
//! Every folder is looked at and changed under its lock; one that is in use is passed over. Safe is what
//! the next run would do by itself, or what no run would ever look at again: nothing that would have to
//! be sent twice is removed unless the operator says so.

use super::replicas::{check_identity, find_replica};
use crate::digest::Hasher;
use crate::disk::raw::{Access, RawDisk};
use crate::disk::{guard, identity};
use crate::error::{Context, Error, Kind, Result};
use crate::format::journal::Belongs;
use crate::format::manifest::About;
use crate::format::stream::{Frame, Message};
use crate::lvm;
use crate::receiver::{self, Walk};
use crate::ring::Choice;
use crate::state::manifest::{self, Damage, Manifest};
use crate::state::{Files, HAVE, HostFiles, JOURNAL, Lock, MANIFEST, NEXT, ReplicaRecord, Side, SourceRecord, Stage, StateDir};
use serde::Serialize;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What kind of thing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A commit was cut while the journal was written onto the replica.
    Applying,
    /// A journal that holds a whole generation which is not committed yet.
    SealedJournal,
    /// A journal of a generation that was cut while it was received.
    UnfinishedJournal,
    /// A journal that no run will use.
    StrayJournal,
    /// The first copy was cut.
    Initializing,
    /// The manifest is not trusted, or lost: the next run reads the replica.
    Reread,
    /// A manifest whose installation was cut.
    HalfInstalled,
    /// A generation that was sent and of whose commit nothing was heard.
    Unacknowledged,
    /// A draft of a manifest that no run will use.
    StrayDraft,
    /// What the other side listed, for a session that is over.
    Listing,
    /// A file that was to replace another.
    Beside,
    /// The working folder of a verification that was killed.
    Verification,
    /// A pair's folder in which no pair came to be.
    NoPair,
    /// A pair that was never copied to its end.
    NeverCommitted,
    /// The device that a record names is gone, or is another one now.
    DeviceGone,
    /// A record that cannot be read.
    Damaged,
    /// A snapshot of a source, made for a run that was killed.
    Snapshot,
}

/// What `--fix` does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cure {
    /// Nothing that would be safe.
    None,
    /// Completes the commit, as a receiver does at its start.
    Recover,
    /// Completes the installation of the manifest.
    Install,
    /// Removes this file.
    Remove,
    /// Removes this file where the operator gives the received data up.
    GiveUp,
    /// Removes the whole folder.
    RemoveFolder,
    /// Removes the snapshot.
    RemoveSnapshot(lvm::Leftover),
}

/// Something that a run left.
#[derive(Clone, Debug, Serialize)]
pub struct Leftover {
    /// What kind of thing.
    pub what: What,
    /// Where it is.
    pub place: PathBuf,
    /// How large it is.
    pub bytes: u64,
    /// What it is and how it came about.
    pub story: String,
    /// What completes or removes it.
    pub remedy: String,
    /// Whether `--fix` sees to it.
    pub fixable: bool,
    #[serde(skip)]
    cure: Cure,
}

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

/// One half of a relationship.
struct Ward<'a> {
    state: &'a StateDir,
    side: Side,
    relationship: Uuid,
    folder: PathBuf,
    treatment: Treatment,
    choice: Choice,
}

impl Ward<'_> {
    fn visit(&self, diagnosis: &mut Diagnosis) -> Result<()> {
        let Some(held) = lock(&self.folder, diagnosis)? else { return Ok(()) };
        let found = self.look()?;
        let Some(cut) = found.iter().find(|found| self.treatment.fix && found.cure == Cure::Recover).cloned() else {
            treat(found, &self.folder, self.treatment, diagnosis);
            return Ok(());
        };
        // A recovery takes the lock itself; who comes between has recovered before it did anything else.
        drop(held);
        let recovered = self.recover();
        let Some(_held) = lock(&self.folder, diagnosis)? else { return Ok(()) };
        let found = self.look()?;
        match recovered {
            Err(error) => diagnosis.failures.push(error.chain()),
            Ok(()) if found.iter().any(|left| left.what == cut.what) => {
                diagnosis.failures.push(format!("{} is as it was", cut.place.display()))
            }
            Ok(()) => diagnosis.fixed.push(cut),
        }
        treat(found, &self.folder, self.treatment, diagnosis);
        Ok(())
    }

    /// Completes what a crash cut, without the sender (I5). The device must be the one that was paired.
    fn recover(&self) -> Result<()> {
        let (mut site, record) = find_replica(self.state, &self.relationship.to_string(), self.choice)?;
        check_identity(&record, &identity::of(&record.target.path)?)?;
        guard::not_in_use(&record.target.path)?;
        let disk = site.open_disk(true)?.ok_or_else(|| Error::new(Kind::Refused, format!("{} is gone", site.name())))?;
        receiver::recover(&*site, disk).map(drop)
    }

    fn look(&self) -> Result<Vec<Leftover>> {
        match self.side {
            Side::Sources => self.look_at_source(),
            Side::Replicas => self.look_at_replica(),
        }
    }

    fn look_at_replica(&self) -> Result<Vec<Leftover>> {
        let files = HostFiles::new(&self.folder);
        let record = match ReplicaRecord::load(&files) {
            Ok(Some(record)) => record,
            Ok(None) => return self.no_record(),
            Err(error) => return Ok(vec![self.damaged(&error)]),
        };
        let mut found = self.strays()?;
        let again = format!("run the clone of {} to {} again", record.source, record.target.path.display());
        found.extend(device_gone(&self.folder, &record));
        let journal = self.folder.join(JOURNAL);
        match &record.stage {
            Stage::Applying { generation, .. } => {
                let story = format!(
                    "generation {generation} of {} was cut while its journal was written onto {}: until that is completed it is neither generation",
                    record.source,
                    record.target.path.display()
                );
                let remedy = format!("`blockferry doctor --fix` completes it here, without the source; or {again}");
                found.push(leftover(What::Applying, &journal, story, &remedy, Cure::Recover));
                return Ok(found);
            }
            Stage::Initializing => {
                let story = format!("the first copy of {} to {} is not complete", record.source, record.target.path.display());
                found.push(leftover(What::Initializing, &self.folder, story, &format!("{again}: it goes on where it was cut"), Cure::None));
                return Ok(found);
            }
            Stage::Clean => {}
        }
        let hasher = Hasher::new(record.algorithm, &record.secret);
        let fits = |about: &About| about.sealed && about.generation == record.generation && about.root == record.root;
        let has = |name| Manifest::open(&files, name, &hasher, Damage::Refuse).map(|found| found.is_some_and(|found| fits(found.about())));
        let (base_fits, next_fits) = (has(MANIFEST)?, has(NEXT)?);
        if journal.exists() {
            found.push(self.look_at_journal(&journal, &record, &again)?);
        }
        if record.rehash || !base_fits && !next_fits {
            let why = if record.rehash { "is not to be trusted" } else { "is lost" };
            let story = format!("the manifest of {} {why}", record.target.path.display());
            let remedy = format!("{again}: it reads the replica anew and sends only what differs");
            found.push(leftover(What::Reread, &self.folder.join(MANIFEST), story, &remedy, Cure::None));
        }
        if !record.rehash && !base_fits && next_fits {
            found.push(self.half_installed(Cure::Recover));
        } else if self.folder.join(NEXT).exists() {
            found.push(self.stray_draft());
        }
        Ok(found)
    }

    fn look_at_journal(&self, path: &Path, record: &ReplicaRecord, again: &str) -> Result<Leftover> {
        let next = record.generation + 1;
        let remedy = format!("{again}: it goes on from there; `blockferry doctor --fix --drop-journals` gives it up instead");
        Ok(match read_journal(path, record, self.choice)? {
            Contents::Stray => {
                let story = format!("a journal that does not continue generation {} of {}", record.generation, record.source);
                leftover(What::StrayJournal, path, story, "", Cure::Remove)
            }
            _ if record.rehash => {
                let story = format!(
                    "a journal of generation {next} of {}, which the next run will not use because it reads the replica anew",
                    record.source
                );
                leftover(What::UnfinishedJournal, path, story, &remedy, Cure::GiveUp)
            }
            Contents::Sealed => {
                let story = format!(
                    "all of generation {next} of {} has arrived but is not committed; {} is exactly generation {}",
                    record.source,
                    record.target.path.display(),
                    record.generation
                );
                let remedy = format!("`blockferry doctor --fix` commits it here, without the source; or {again}");
                leftover(What::SealedJournal, path, story, &remedy, Cure::Recover)
            }
            Contents::Open { frames } => {
                let story = format!(
                    "generation {next} of {} was cut after {frames} frames; {} is exactly generation {}",
                    record.source,
                    record.target.path.display(),
                    record.generation
                );
                leftover(What::UnfinishedJournal, path, story, &remedy, Cure::GiveUp)
            }
        })
    }

    fn look_at_source(&self) -> Result<Vec<Leftover>> {
        let files = HostFiles::new(&self.folder);
        let record = match SourceRecord::load(&files) {
            Ok(Some(record)) => record,
            Ok(None) => return self.no_record(),
            Err(error) => return Ok(vec![self.damaged(&error)]),
        };
        let mut found = self.strays()?;
        let again = format!("run the clone of {} to {} again", record.source.path.display(), record.target);
        if let Some(story) = source_gone(&record) {
            let remedy = format!("if it is gone for good: rm -r {}", self.folder.display());
            found.push(leftover(What::DeviceGone, &self.folder, story, &remedy, Cure::None));
        }
        let hasher = Hasher::new(record.algorithm, &record.secret);
        let about = |name| Manifest::open(&files, name, &hasher, Damage::Unknown).map(|found| found.map(|found| *found.about()));
        let fits = |about: &About| about.sealed && about.generation == record.generation && about.root == record.root;
        let base_fits = about(MANIFEST)?.is_some_and(|base| fits(&base));
        match about(NEXT)? {
            Some(next) if next.sealed && next.generation == record.generation + 1 => {
                let story = format!(
                    "generation {} of {} was sent to {}; whether it was committed is not known here",
                    next.generation,
                    record.source.path.display(),
                    record.target
                );
                found.push(leftover(
                    What::Unacknowledged,
                    &self.folder.join(NEXT),
                    story,
                    &format!("{again}: it asks the receiver, and where the commit stands nothing of it is sent again"),
                    Cure::None,
                ));
            }
            Some(next) if !base_fits && fits(&next) => found.push(self.half_installed(Cure::Install)),
            _ if self.folder.join(NEXT).exists() => found.push(self.stray_draft()),
            _ => {}
        }
        if record.generation == 0 {
            let story = format!("the first copy of {} to {} was never acknowledged", record.source.path.display(), record.target);
            let remedy = format!("{again}; if it is not wanted any more: rm -r {}", self.folder.display());
            found.push(leftover(What::NeverCommitted, &self.folder, story, &remedy, Cure::None));
        }
        Ok(found)
    }

    /// A folder without a record. Without its secret nothing in it can be used any more; only a journal
    /// may be proof that there was a record once.
    fn no_record(&self) -> Result<Vec<Leftover>> {
        if names(&self.folder)?.iter().any(|name| name == JOURNAL) {
            let story = "a journal without the record it belongs to: the record was removed".to_owned();
            let remedy = format!("restore the record from a backup; or remove what is useless without it: rm -r {}", self.folder.display());
            return Ok(vec![leftover(What::Damaged, &self.folder, story, &remedy, Cure::None)]);
        }
        let story = "a folder in which no pair came to be: the run that made it was killed before it wrote a record".to_owned();
        Ok(vec![leftover(What::NoPair, &self.folder, story, "", Cure::RemoveFolder)])
    }

    fn damaged(&self, error: &Error) -> Leftover {
        let remedy = format!("restore it from a backup, or forget the pair: rm -r {}", self.folder.display());
        leftover(What::Damaged, &self.folder.join(crate::state::RECORD), error.chain(), &remedy, Cure::None)
    }

    fn half_installed(&self, cure: Cure) -> Leftover {
        let story = "the manifest of the committed generation is installed half-way".to_owned();
        leftover(What::HalfInstalled, &self.folder.join(NEXT), story, "the next clone completes it, or `blockferry doctor --fix`", cure)
    }

    fn stray_draft(&self) -> Leftover {
        leftover(
            What::StrayDraft,
            &self.folder.join(NEXT),
            "the draft of a manifest that no run will go on with".to_owned(),
            "",
            Cure::Remove,
        )
    }

    /// Files that only a running session has a use for.
    fn strays(&self) -> Result<Vec<Leftover>> {
        let stray = |name: String| {
            let path = self.folder.join(&name);
            if name == HAVE {
                let story = "what the other side listed, for a session that is over".to_owned();
                return Some(leftover(What::Listing, &path, story, "", Cure::Remove));
            }
            let story = format!("a new {} that was to replace the old one when its run was killed", name.strip_suffix(".new")?);
            Some(leftover(What::Beside, &path, story, "", Cure::Remove))
        };
        Ok(names(&self.folder)?.into_iter().filter_map(stray).collect())
    }
}

/// What lies in a journal.
enum Contents {
    /// It is of another generation, or was torn while it was made.
    Stray,
    /// It goes this far.
    Open { frames: u64 },
    /// It is whole.
    Sealed,
}

fn read_journal(path: &Path, record: &ReplicaRecord, choice: Choice) -> Result<Contents> {
    let expected = Belongs {
        relationship: record.relationship,
        epoch: record.epoch,
        base_generation: record.generation,
        base_root: record.root,
        geometry: record.geometry()?,
        algorithm: record.algorithm,
    };
    let mut walk = match Walk::open(Box::new(RawDisk::open(path, Access::Read, choice)?)) {
        Ok((found, walk)) if found == expected => walk,
        Err(error) if error.kind() != Kind::Failed => return Err(error),
        _ => return Ok(Contents::Stray),
    };
    loop {
        let header = match walk.next_frame() {
            Ok(Some(header)) => header,
            Err(error) if error.kind() != Kind::Failed => return Err(error),
            _ => return Ok(Contents::Open { frames: walk.chain().frames }),
        };
        match walk.frame(&header) {
            Ok(Frame::Message(Message::Seal(seal))) if (seal.frames, seal.chain) == (walk.chain().frames, walk.chain().value) => {
                return Ok(Contents::Sealed);
            }
            Ok(_) => walk.done(&header),
            Err(_) => return Ok(Contents::Open { frames: walk.chain().frames }),
        }
    }
}

fn device_gone(folder: &Path, record: &ReplicaRecord) -> Option<Leftover> {
    let path = &record.target.path;
    let story = match identity::of(path) {
        Ok(now) if now.stable == record.target.stable => return None,
        Ok(now) => format!(
            "{} was the replica of {}, but is another device now: it was {}, it is {}",
            path.display(),
            record.source,
            record.target.stable,
            now.stable
        ),
        Err(_) => format!("{}, the replica of {}, is gone", path.display(), record.source),
    };
    let remedy = format!("attach it again; if it is gone for good: rm -r {}", folder.display());
    Some(leftover(What::DeviceGone, folder, story, &remedy, Cure::None))
}

/// An image file may be written anew under its name; a device is the one it is.
fn source_gone(record: &SourceRecord) -> Option<String> {
    let path = &record.source.path;
    match identity::of(path) {
        Ok(now) if now.stable == record.source.stable || !record.source.is_device => None,
        Ok(now) => Some(format!(
            "{}, the source of {}, is another device now: it was {}, it is {}",
            path.display(),
            record.target,
            record.source.stable,
            now.stable
        )),
        Err(_) => Some(format!("{}, the source of {}, is gone", path.display(), record.target)),
    }
}

/// Does what is allowed, and lists the rest.
fn treat(found: Vec<Leftover>, folder: &Path, treatment: Treatment, diagnosis: &mut Diagnosis) {
    for found in found {
        let done = match &found.cure {
            Cure::Remove if treatment.fix => remove(folder, &found.place),
            Cure::GiveUp if treatment.fix && treatment.drop_journals => remove(folder, &found.place),
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

fn remove(folder: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    HostFiles::new(folder).remove(name)
}

fn install(folder: &Path) -> Result<()> {
    let files = HostFiles::new(folder);
    let Some(record) = SourceRecord::load(&files)? else { return Ok(()) };
    let hasher = Hasher::new(record.algorithm, &record.secret);
    manifest::load(&files, record.generation, &record.root, &record.geometry()?, &hasher, Damage::Refuse).map(drop)
}

fn leftover(what: What, place: &Path, story: String, remedy: &str, cure: Cure) -> Leftover {
    let remedy = if remedy.is_empty() { "`blockferry doctor --fix` removes it" } else { remedy };
    let fixable = !matches!(cure, Cure::None | Cure::GiveUp);
    Leftover { what, place: place.to_owned(), bytes: bytes_of(place), story, remedy: remedy.to_owned(), fixable, cure }
}

/// Bytes of a file, or of the files in a folder.
fn bytes_of(place: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    match names(place) {
        Ok(names) => names.iter().map(|name| size(&place.join(name))).sum(),
        Err(_) => size(place),
    }
}

/// What lies in a folder, in a stable order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).context(Kind::Failed, || format!("read {}", folder.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}
