//! What is read of a source: the device itself, or a snapshot made of it for this run.

use super::now_ms;
use super::upstream::{Held, hold};
use crate::disk::Disk;
use crate::disk::raw::{Access, RawDisk};
use crate::error::{Error, Kind, Result};
use crate::limits::SNAPSHOT_WATCH;
use crate::log;
use crate::lvm::{Policy, Prepared, Snapshot, Volume, leftovers, remove_leftover};
use crate::ring::Choice;
use crate::sender::Watch;
use crate::state::StateDir;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;
use uuid::Uuid;

/// Whether a snapshot is made of a source that can have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Of a logical volume that is in use.
    #[default]
    Auto,
    /// Always; an error where the source is no logical volume.
    Always,
    /// Never: the source is known to be quiet.
    Never,
}

/// How snapshots are made.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    /// Whether.
    pub when: When,
    /// How large, and what stays free.
    pub policy: Policy,
}

/// Whether this source will be read from a snapshot.
pub fn will_snapshot(source: &Path, snapshots: &Snapshots) -> bool {
    Origin::find(source).is_ok_and(|origin| origin.wants(snapshots.when).is_ok_and(|volume| volume.is_some()))
}

/// How a source would be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// As it is.
    AsItIs,
    /// From a snapshot.
    Snapshot {
        /// Bytes of its store; 0 for a thin one.
        cow_bytes: u64,
    },
}

/// How this source would be read now. An error: why no snapshot of it can be made.
pub fn foresee(source: &Path, snapshots: &Snapshots, changed_bytes: Option<u64>) -> Result<Foreseen> {
    let origin = Origin::find(source)?;
    match origin.wants(snapshots.when)? {
        None => RawDisk::open(&origin.path, Access::Read, Choice::Blocking).map(|_| Foreseen::AsItIs),
        Some(volume) => Prepared::new(volume, &snapshots.policy, changed_bytes, 0, "foreseen")
            .map(|prepared| Foreseen::Snapshot { cow_bytes: prepared.cow_bytes() }),
    }
}

/// Snapshots of ours whose process is gone, as `vg/lv`: the next run that makes one removes them.
pub fn dead_snapshots() -> Result<Vec<String>> {
    Ok(leftovers(None)?.iter().filter(|leftover| !leftover.owner_lives).map(|leftover| leftover.label()).collect())
}

/// A source found by its name.
pub struct Origin {
    /// Its device or file.
    pub path: PathBuf,
    volume: Option<Volume>,
}

impl Origin {
    /// A path, or `vg/lv`.
    pub fn find(name: &Path) -> Result<Origin> {
        let volume = match name.to_str() {
            Some(text) => Volume::find(text)?,
            None => None,
        };
        // A path that exists keeps its spelling; a name of lvm2 becomes its device.
        let path = match &volume {
            Some(volume) if !name.exists() => volume.path().to_owned(),
            _ => name.to_owned(),
        };
        Ok(Origin { path, volume })
    }

    /// The volume to snapshot, if one is to be.
    pub(super) fn wants(&self, when: When) -> Result<Option<&Volume>> {
        match (when, &self.volume) {
            (When::Always, None) => {
                let message = format!(
                    "{} is no logical volume, so no snapshot of it can be made: --snapshot never reads it as it is",
                    self.path.display()
                );
                Err(Error::new(Kind::Snapshot, message))
            }
            (When::Never, _) | (_, None) => Ok(None),
            (When::Always, Some(volume)) => Ok(Some(volume)),
            (When::Auto, Some(volume)) => Ok(volume.in_use().then_some(volume)),
        }
    }

    /// Opens what is to be read, with a snapshot where the policy asks for one: one source alone. Several of one moment:
    /// [`open_all`](super::open_all).
    pub fn open(&self, state: &StateDir, snapshots: &Snapshots, changed_bytes: Option<u64>, choice: Choice) -> Result<Reading> {
        if self.volume.is_some() {
            remove_what_died();
        }
        let held = hold(state, &self.path)?;
        // Before lvm2 is asked, so that a replica never seems younger than it is.
        let taken_ms = now_ms();
        let reading = match self.wants(snapshots.when)? {
            None => self.read_as_it_is(choice),
            Some(volume) => {
                let run = Uuid::now_v7().to_string();
                Reading::of_snapshot(Snapshot::create(volume, &snapshots.policy, changed_bytes, &run)?, taken_ms, choice)
            }
        };
        reading.map(|reading| reading.of(held))
    }

    /// Opens the source itself.
    pub(super) fn read_as_it_is(&self, choice: Choice) -> Result<Reading> {
        let taken_ms = now_ms();
        let disk = RawDisk::open(&self.path, Access::Read, choice)?;
        Ok(Reading { disk, taken_ms, path: self.path.clone(), choice, snapshot: None, still: None, _held: None })
    }

    /// Opens the source itself, which lies still.
    pub(super) fn read_still(&self, still: Still, choice: Choice) -> Result<Reading> {
        Ok(Reading { still: Some(still), ..self.read_as_it_is(choice)? })
    }

    /// Whether what died is looked for: nobody does where snapshots are out of the question.
    pub(super) fn may_have_snapshots(&self, when: When) -> bool {
        self.volume.is_some() && when != When::Never
    }
}

/// Snapshots of ours whose process is gone, or has given them up, are removed at each start: they take room and slow their volume
/// down, whether or not this run makes one of its own. One that somebody mounted to look at it is no
/// reason not to replicate.
pub(super) fn remove_what_died() {
    let dead = leftovers(None).map(|found| found.into_iter().filter(|leftover| !leftover.owner_lives).collect::<Vec<_>>());
    match dead {
        Ok(dead) => dead.iter().for_each(|leftover| match remove_leftover(leftover) {
            Ok(()) => log::info(format!("removed {}, left by an earlier run", leftover.label())),
            Err(error) => log::warning(format!("a snapshot of an earlier run stays: {}", error.chain())),
        }),
        Err(error) => log::warning(error.chain()),
    }
}

/// Whether a source is still as it was when the reading of it began.
pub type Still = Arc<dyn Fn() -> bool + Send + Sync>;

/// An open source. Its snapshot goes with it, at the latest when this is dropped.
pub struct Reading {
    /// What is read.
    pub disk: RawDisk,
    /// When what is read was as it is: milliseconds since 1970.
    pub taken_ms: u64,
    path: PathBuf,
    choice: Choice,
    snapshot: Option<Watched>,
    /// Read without a snapshot because it lies still: asked before anything is sealed.
    still: Option<Still>,
    /// The source is a replica of this host, which is held as long as it is read.
    _held: Option<Held>,
}

impl Reading {
    /// Of a snapshot, which is watched from now on.
    pub(super) fn of_snapshot(snapshot: Snapshot, taken_ms: u64, choice: Choice) -> Result<Reading> {
        let path = snapshot.path().to_owned();
        let disk = RawDisk::open(&path, Access::Read, choice)?;
        Ok(Reading { disk, taken_ms, path, choice, snapshot: Some(Watched::start(snapshot)), still: None, _held: None })
    }

    /// Of a replica of this host: as old as what it is a copy of. A snapshot of it needs it to be held no longer.
    pub(super) fn of(mut self, held: Option<Held>) -> Reading {
        if let Some(held) = held {
            self.taken_ms = held.source_time_ms;
            self._held = self.snapshot.is_none().then_some(held);
        }
        self
    }

    /// Bytes of its classic snapshot's store, which may grow; 0 where it has none.
    pub fn room(&self) -> Arc<AtomicU64> {
        self.snapshot.as_ref().map_or_else(Arc::default, |watched| watched.snapshot.room())
    }

    /// The device of its snapshot.
    pub fn snapshot_path(&self) -> Option<PathBuf> {
        self.snapshot.as_ref().map(|watched| watched.snapshot.path().to_owned())
    }

    /// Bytes of what is read.
    pub fn bytes(&self) -> u64 {
        self.disk.bytes()
    }

    /// Whether it is a snapshot, and not the source itself.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Whether it is read without a snapshot because it lies still.
    pub fn is_still(&self) -> bool {
        self.still.is_some()
    }

    /// The same once more, with a ring of its own.
    pub fn again(&self) -> Result<Box<dyn Disk>> {
        Ok(Box::new(RawDisk::open(&self.path, Access::Read, self.choice)?))
    }

    /// The device to read and the watch over it, to be used at the same time.
    pub fn parts(&mut self) -> (&mut RawDisk, Watching<'_>) {
        (&mut self.disk, Watching { snapshot: self.snapshot.as_ref(), still: self.still.as_ref() })
    }

    /// An overflowed snapshot is the cause behind every other error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        Watching { snapshot: self.snapshot.as_ref(), still: None }.explain(result)
    }

    /// Ends the reading of a snapshot that was for one: one that cannot be removed is an error.
    pub fn close<T>(self, result: Result<T>) -> Result<T> {
        let value = self.explain(result);
        let removed = self.remove();
        let value = value?;
        removed.map(|()| value)
    }

    /// Removes the snapshot, and says so if that fails.
    pub fn remove(self) -> Result<()> {
        let Reading { disk, snapshot, .. } = self;
        drop(disk);
        snapshot.map_or(Ok(()), Watched::remove)
    }
}

/// The watch over what is read, for any number of deliveries at once.
#[derive(Clone, Copy)]
pub struct Watching<'a> {
    snapshot: Option<&'a Watched>,
    still: Option<&'a Still>,
}

impl Watching<'_> {
    /// Whether what was read is still whole.
    pub fn check(&self, when: Watch) -> Result<()> {
        match self.still {
            Some(still) if when == Watch::Sealing && !still() => {
                Err(Error::new(Kind::Snapshot, "the volume was written to while it was read without a snapshot: nothing was committed"))
            }
            _ => self.snapshot.map_or(Ok(()), |snapshot| snapshot.check(when)),
        }
    }

    /// An overflowed snapshot is the cause behind every other error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        match (result, self.snapshot) {
            (Err(error), Some(snapshot)) => Err(snapshot.snapshot.check_valid().err().unwrap_or(error)),
            (result, _) => result,
        }
    }
}

/// A snapshot with a thread that looks at its fill and gives it more room in time, also while the
/// line waits for a slow link.
struct Watched {
    snapshot: Arc<Snapshot>,
    failed: Arc<OnceLock<(Kind, String)>>,
    watcher: Watcher,
}

/// The watching thread; it ends with this value.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Watched {
    fn start(snapshot: Snapshot) -> Watched {
        let (snapshot, failed, stop) = (Arc::new(snapshot), Arc::<OnceLock<(Kind, String)>>::default(), Arc::<AtomicBool>::default());
        let (watched, report, ended) = (Arc::clone(&snapshot), Arc::clone(&failed), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                sleep_unless_woken(&ended);
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = watched.watch() {
                    let _ = report.set((error.kind(), error.chain()));
                    return;
                }
            }
        });
        Watched { snapshot, failed, watcher: Watcher { stop, thread: Some(thread) } }
    }

    /// What the watch found is told to every delivery that asks.
    fn check(&self, when: Watch) -> Result<()> {
        if let Some((kind, failed)) = self.failed.get() {
            return Err(Error::new(*kind, failed.clone()));
        }
        match when {
            Watch::Reading => Ok(()),
            Watch::Sealing => self.snapshot.check_valid(),
        }
    }

    fn remove(self) -> Result<()> {
        let Watched { snapshot, watcher, .. } = self;
        drop(watcher);
        Arc::into_inner(snapshot).ok_or_else(|| Error::new(Kind::Failed, "the snapshot is still watched"))?.remove()
    }
}

fn sleep_unless_woken(ended: &AtomicBool) {
    let until = Instant::now() + SNAPSHOT_WATCH;
    while !ended.load(Ordering::Relaxed) {
        let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { return };
        std::thread::park_timeout(left);
    }
}
