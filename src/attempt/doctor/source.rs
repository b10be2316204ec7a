//! What lies beside a source: how far its cursor came, and whether the device is still there.

use super::leftover::{Cure, Leftover, What, leftover};
use super::ward::Ward;
use crate::digest::Hasher;
use crate::disk::identity;
use crate::error::Result;
use crate::format::manifest::About;
use crate::state::manifest::{Damage, Manifest};
use crate::state::{HostFiles, MANIFEST, NEXT, SourceRecord};

impl Ward<'_> {
    pub(super) fn look_at_source(&self) -> Result<Vec<Leftover>> {
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
