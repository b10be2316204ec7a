//! What a run can leave, how it is told, and what would cure it.

use crate::error::{Context, Kind, Result};
use crate::lvm;
use serde::Serialize;
use std::path::{Path, PathBuf};

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
pub(super) enum Cure {
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
    pub(super) cure: Cure,
}

/// Something left, as it is told.
pub(super) fn leftover(what: What, place: &Path, story: String, remedy: &str, cure: Cure) -> Leftover {
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
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).context(Kind::Failed, || format!("read {}", folder.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}
