//! What lies beside a replica, and what its journal holds.

use super::leftover::{Cure, Leftover, What, leftover};
use super::ward::Ward;
use crate::digest::Hasher;
use crate::disk::identity;
use crate::disk::raw::{Access, RawDisk};
use crate::error::{Kind, Result};
use crate::format::manifest::About;
use crate::format::stream::{Frame, Message};
use crate::receiver::{self, Walk};
use crate::ring::Choice;
use crate::state::manifest::{Damage, Manifest};
use crate::state::{HostFiles, MANIFEST, NEXT, ReplicaRecord, Stage, journals};
use std::path::Path;

impl Ward<'_> {
    pub(super) fn look_at_replica(&self) -> Result<Vec<Leftover>> {
        let files = HostFiles::new(&self.folder);
        let record = match ReplicaRecord::load(&files) {
            Ok(Some(record)) => record,
            Ok(None) => return self.no_record(),
            Err(error) => return Ok(vec![self.damaged(&error)]),
        };
        let mut found = self.strays()?;
        let again = format!("run the clone of {} to {} again", record.source, record.target.path.display());
        found.extend(device_gone(&self.folder, &record));
        let journal = journals::place(&self.folder);
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
                let what = match record.generation {
                    0 => "the first copy".to_owned(),
                    last => format!("an increment over generation {last}, straight onto the device, of the copy"),
                };
                let story = format!("{what} of {} to {} is not complete", record.source, record.target.path.display());
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
        } else if journals::leads_nowhere(&self.folder) {
            let story = format!(
                "a link to the journal {}, which is not there: its run was killed as it made or removed it, or its file system is not mounted",
                journal.display()
            );
            let remedy = format!(
                "mount it if there is one; {again}: it goes on without that journal; `blockferry doctor --fix --drop-journals` gives it up"
            );
            found.push(leftover(What::StrayJournal, &journal, story, &remedy, Cure::GiveUp));
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
    let expected = receiver::belongs(record)?;
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
