//! Where the journals of a host's replicas lie, how much they may take, and how one is made and removed.
//!
//! A journal lies in its replica's folder unless the configuration names another one. Then the replica's
//! folder has a link to it under the journal's name, and that link is the memory of its place: whoever opens
//! or removes a journal goes through it, so that a configuration that changes in between loses none.
//!
//! ```text
//! link made, folder synced         crash: a link to nothing, which counts as no journal
//! file made, its folder synced     crash: an empty journal, dropped as one that was torn while it was made
//! file removed, its folder synced  crash: a link to nothing
//! link removed, folder synced      crash: nothing is left
//! ```

use super::files::{Files, HostFiles, space, sync_folder};
use super::{JOURNAL, Side, StateDir, make_dir};
use crate::error::{Context, Kind, Result};
use crate::limits::{JOURNAL_RESERVE_BYTES, JOURNAL_RESERVE_PART};
use crate::settings::Share;
use crate::settings::amount::about;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What lies in a configured folder of journals: one of these for each relationship.
const SUFFIX: &str = ".journal";

/// What the configuration says of journals; the default is that of a host without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journals {
    /// Where they lie, if not beside their replicas' records.
    pub dir: Option<PathBuf>,
    /// Bytes that all of them together may take.
    pub max: Option<u64>,
    /// What stays free on the file system they lie on.
    pub reserve: Option<Share>,
    /// A configuration says so: where more room comes from is said in its words.
    pub configured: bool,
}

/// How much a journal may grow, and what bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may be written now.
    pub bytes: u64,
    /// How much there is, in words.
    pub bound: String,
}

/// Where the journal of the replica in this folder is, or would be.
pub fn place(folder: &Path) -> PathBuf {
    let name = folder.join(JOURNAL);
    std::fs::read_link(&name).unwrap_or(name)
}

/// Whether the folder has a link to a journal that is not there.
pub fn leads_nowhere(folder: &Path) -> bool {
    std::fs::read_link(folder.join(JOURNAL)).is_ok_and(|place| !place.exists())
}

/// Removes the journal of the replica in this folder, wherever it lies. Durable when this returns.
pub fn remove(files: &HostFiles) -> Result<()> {
    remove_elsewhere(files)?;
    files.remove(JOURNAL)
}

/// The same for one that nobody believes any more: a crash may bring it back, if it lies beside its replica's record.
pub fn discard(files: &HostFiles) -> Result<()> {
    remove_elsewhere(files)?;
    files.discard(JOURNAL)
}

/// Durable, whatever becomes of the link: no crash may leave a journal that its replica's folder does not lead to.
fn remove_elsewhere(files: &HostFiles) -> Result<()> {
    if let Ok(place) = std::fs::read_link(files.folder().join(JOURNAL))
        && let (Some(around), Some(name)) = (place.parent(), place.file_name().and_then(|name| name.to_str()))
    {
        HostFiles::new(around).remove(name)?;
        // From here on a crash leaves a link to nothing.
    }
    Ok(())
}

impl Journals {
    /// Removes the journal that is there and says where the next one is to be made; a link leads to it already.
    pub fn prepare(&self, files: &HostFiles) -> Result<PathBuf> {
        discard(files)?;
        let Some(dir) = &self.dir else { return Ok(files.folder().join(JOURNAL)) };
        make_dir(dir)?;
        let name = format!("{}{SUFFIX}", files.folder().file_name().unwrap_or_default().to_string_lossy());
        // One may lie there whose file system was away when its replica went on without it.
        HostFiles::new(dir).remove(&name)?;
        let (place, link) = (dir.join(name), files.folder().join(JOURNAL));
        std::os::unix::fs::symlink(&place, &link).context(Kind::Storage, || format!("make the link {}", link.display()))?;
        sync_folder(files.folder())?;
        // From here on a crash leaves no journal that its replica's folder does not lead to.
        Ok(place)
    }

    /// What an operator can do where there is not enough room.
    pub fn more_room(&self) -> &'static str {
        if self.configured {
            "make room there; or, in receiver.toml, let journals lie elsewhere (journal.dir), take more (journal.max) or leave less free (journal.reserve)"
        } else {
            "make room there, or choose another --state-dir"
        }
    }

    /// How much the journal of the replica in this folder may grow. What others write meanwhile is not known: a
    /// session asks again after each window.
    pub fn room(&self, state: &StateDir, folder: &Path, volume_bytes: u64) -> Result<Room> {
        let linked = std::fs::read_link(folder.join(JOURNAL)).ok();
        let dir = linked.as_deref().and_then(Path::parent).or(self.dir.as_deref()).unwrap_or(folder);
        make_dir(dir)?;
        let space = space(dir)?;
        // Of a small volume the deltas are small too.
        let least = JOURNAL_RESERVE_BYTES.min(volume_bytes / JOURNAL_RESERVE_PART);
        let reserve = self.reserve.map_or(least, |share| share.of(space.total));
        let by_reserve = space.free.saturating_sub(reserve);
        if let Some(max) = self.max {
            let taken = taken(state)?;
            if max.saturating_sub(taken) < by_reserve {
                let bound = format!("all journals together take {} of the {} that journal.max allows", about(taken), about(max));
                return Ok(Room { bytes: max.saturating_sub(taken), bound });
            }
        }
        let bound = format!("{} has {} free, of which {} stay free", dir.display(), about(space.free), about(reserve));
        Ok(Room { bytes: by_reserve, bound })
    }

    /// Journals in the configured folder that no replica of this state directory leads to.
    pub fn strays(&self, state: &StateDir) -> Result<Vec<PathBuf>> {
        let Some(entries) = self.dir.as_deref().and_then(|dir| std::fs::read_dir(dir).ok()) else { return Ok(Vec::new()) };
        let known: Vec<PathBuf> = folders(state)?.iter().map(|folder| place(folder)).collect();
        let journals = entries.flatten().map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(SUFFIX));
        let mut strays: Vec<PathBuf> = journals.filter(|path| !known.contains(path)).collect();
        strays.sort();
        Ok(strays)
    }
}

fn folders(state: &StateDir) -> Result<Vec<PathBuf>> {
    Ok(state.relationships(Side::Replicas)?.iter().map(|relationship| state.folder(Side::Replicas, relationship)).collect())
}

/// Bytes that the journals of all replicas take, wherever each lies.
fn taken(state: &StateDir) -> Result<u64> {
    let bytes = |folder: &PathBuf| std::fs::metadata(folder.join(JOURNAL)).map_or(0, |found| found.blocks() * 512);
    Ok(folders(state)?.iter().map(bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn state() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        (folder, state)
    }

    #[test]
    fn a_journal_is_found_and_removed_where_it_lies_whatever_the_configuration_says_by_then() {
        let (folder, state) = state();
        let files = state.files(Side::Replicas, &Uuid::from_u128(1)).unwrap();
        let there = Journals { dir: Some(folder.path().join("journals")), ..Journals::default() };
        let made = there.prepare(&files).unwrap();
        assert!(leads_nowhere(files.folder()));
        std::fs::write(&made, [1; 5000]).unwrap();
        assert_eq!(place(files.folder()), made);
        assert_eq!(std::fs::read(files.folder().join(JOURNAL)).unwrap().len(), 5000);
        assert!(taken(&state).unwrap() >= 5000);
        assert_eq!(there.strays(&state).unwrap(), Vec::<PathBuf>::new());
        let here = Journals::default().prepare(&files).unwrap();
        assert!(!made.exists() && here == files.folder().join(JOURNAL) && std::fs::read_link(&here).is_err());
    }

    #[test]
    fn a_journal_that_nothing_leads_to_is_a_stray() {
        let (folder, state) = state();
        let dir = folder.path().join("journals");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("x.journal"), "x").unwrap();
        std::fs::write(dir.join("of somebody else"), "x").unwrap();
        let journals = Journals { dir: Some(dir.clone()), ..Journals::default() };
        assert_eq!(journals.strays(&state).unwrap(), [dir.join("x.journal")]);
    }

    #[test]
    fn the_smaller_of_what_is_free_and_what_is_allowed_bounds_a_journal() {
        let (_folder, state) = state();
        let files = state.files(Side::Replicas, &Uuid::from_u128(1)).unwrap();
        let room = |journals: Journals| journals.room(&state, files.folder(), 1 << 30).unwrap();
        let all = room(Journals::default());
        assert!(all.bytes > 0 && all.bound.contains("16.0 MiB stay free"), "{all:?}");
        let none = room(Journals { reserve: Some(Share::Bytes(1 << 60)), ..Journals::default() });
        assert_eq!(none.bytes, 0);
        let some = room(Journals { max: Some(4096), ..Journals::default() });
        assert!(some.bytes == 4096 && some.bound.contains("journal.max"), "{some:?}");
        std::fs::write(files.folder().join(JOURNAL), [1; 5000]).unwrap();
        assert_eq!(room(Journals { max: Some(4096), ..Journals::default() }).bytes, 0);
        assert!(room(Journals { reserve: Some(Share::Percent(99)), ..Journals::default() }).bytes < all.bytes);
    }
}
