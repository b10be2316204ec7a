//! One half of a relationship under its lock: what lies in its folder, and its recovery.

use super::leftover::{Cure, Leftover, What, leftover, names};
use super::{Diagnosis, Treatment, lock, treat};
use crate::attempt::replicas::find_replica;
use crate::disk::guard;
use crate::error::{Error, Kind, Result};
use crate::receiver;
use crate::ring::Choice;
use crate::state::{HAVE, JOURNAL, NEXT, Side, StateDir, journals};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// One half of a relationship.
pub(super) struct Ward<'a> {
    pub(super) state: &'a StateDir,
    pub(super) side: Side,
    pub(super) relationship: Uuid,
    pub(super) folder: PathBuf,
    pub(super) treatment: Treatment,
    pub(super) choice: Choice,
}

impl Ward<'_> {
    pub(super) fn visit(&self, diagnosis: &mut Diagnosis) -> Result<()> {
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
        let (mut site, _) = find_replica(self.state, &self.relationship.to_string(), self.choice)?;
        guard::not_in_use(Path::new(site.name()))?;
        let disk = site.open_disk(true)?.ok_or_else(|| Error::new(Kind::Refused, format!("{} is gone", site.name())))?;
        receiver::recover(&*site, disk).map(drop)
    }

    fn look(&self) -> Result<Vec<Leftover>> {
        match self.side {
            Side::Sources => self.look_at_source(),
            Side::Replicas => self.look_at_replica(),
        }
    }

    /// A folder without a record. Without its secret nothing in it can be used any more; only a journal
    /// may be proof that there was a record once.
    pub(super) fn no_record(&self) -> Result<Vec<Leftover>> {
        if names(&self.folder)?.iter().any(|name| name == JOURNAL) {
            let story = "a journal without the record it belongs to: the record was removed".to_owned();
            let place = Some(journals::place(&self.folder)).filter(|place| !place.starts_with(&self.folder));
            let elsewhere = place.map_or(String::new(), |place| format!(" {}", place.display()));
            let remedy = format!(
                "restore the record from a backup; or remove what is useless without it: rm -r {}{elsewhere}",
                self.folder.display()
            );
            return Ok(vec![leftover(What::Damaged, &self.folder, story, &remedy, Cure::None)]);
        }
        let story = "a folder in which no pair came to be: the run that made it was killed before it wrote a record".to_owned();
        Ok(vec![leftover(What::NoPair, &self.folder, story, "", Cure::RemoveFolder)])
    }

    pub(super) fn damaged(&self, error: &Error) -> Leftover {
        let remedy = format!("restore it from a backup, or forget the pair: rm -r {}", self.folder.display());
        leftover(What::Damaged, &self.folder.join(crate::state::RECORD), error.chain(), &remedy, Cure::None)
    }

    pub(super) fn half_installed(&self, cure: Cure) -> Leftover {
        let story = "the manifest of the committed generation is installed half-way".to_owned();
        leftover(What::HalfInstalled, &self.folder.join(NEXT), story, "the next clone completes it, or `blockferry doctor --fix`", cure)
    }

    pub(super) fn stray_draft(&self) -> Leftover {
        leftover(
            What::StrayDraft,
            &self.folder.join(NEXT),
            "the draft of a manifest that no run will go on with".to_owned(),
            "",
            Cure::Remove,
        )
    }

    /// Files that only a running session has a use for.
    pub(super) fn strays(&self) -> Result<Vec<Leftover>> {
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
