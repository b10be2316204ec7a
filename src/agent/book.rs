//! What the agent remembers: of each job when it ran and what became of it, of each pair up to which
//! moment its replica is known to be current.
//!
//! ```text
//! STATE/agent/jobs/<name>/            lock  book.json      a job's schedule and outcomes
//! STATE/sources/<relationship>/       current.json         what goes with the pair, whatever its job is called
//! ```
//!
//! All of it is replaced as a whole and may be lost: a lost book costs a run at once, a lost `current.json` a
//! snapshot that finds nothing changed. What is replicated up to where is the record's word alone (src/state).

use super::config::Occasion;
use super::notify::{Told, Untold};
use super::outcome::Failure;
use crate::error::{Context, Error, Kind, Result};
use crate::limits::BOOK_LOCK_TIMEOUT;
use crate::state::{Files, HostFiles, Lock, Side, StateDir};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

/// Version of the files here. A later version is not read: an older program must not shorten it.
const VERSION: u32 = 1;
const BOOK: &str = "book.json";
const CURRENT: &str = "current.json";

/// What is remembered of a job. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobBook {
    /// Version of this file.
    pub(super) version: u32,
    /// The run that is under way, or was when its process ended: true while the job's lock is held.
    #[serde(default)]
    pub running: Option<Running>,
    /// Since when the run under way waits for its volumes to be idle.
    #[serde(default)]
    pub quiet_since_ms: Option<u64>,
    /// The last run that ended.
    #[serde(default)]
    pub last: Option<LastRun>,
    /// When the last run began in which every replica became current.
    #[serde(default)]
    pub last_success_ms: Option<u64>,
    /// Runs since then that failed.
    #[serde(default)]
    pub failures: u32,
    /// When the next run is due by schedule or back-off; `None` where nothing is to come by itself.
    #[serde(default)]
    pub next_due_ms: Option<u64>,
    /// Why then: `schedule`, `retry`, `window`, …
    #[serde(default)]
    pub next_why: Option<String>,
    /// Ticks that passed while a run was under way, since the first.
    #[serde(default)]
    pub skipped_ticks: u64,
    /// When the agent first had this job on its schedule: ticks before that were never promised.
    #[serde(default)]
    pub scheduled_since_ms: Option<u64>,
    /// When the last run was begun by the schedule, as the agent that decided it saw the clock.
    #[serde(default)]
    pub served_ms: Option<u64>,
    /// The run that the agent's own end cut short: the next start takes it up whatever the schedule says.
    #[serde(default)]
    pub unfinished: Option<String>,
    /// The run that an operator asked to stop.
    #[serde(default)]
    pub aborted: Option<String>,
    /// Epoch and generation of the replica this job comes after, as its last pass found them.
    #[serde(default)]
    pub commit: Option<String>,
    /// Set while an operator has stopped the schedule.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// The volumes at their receivers, as the last run found them.
    #[serde(default)]
    pub legs: Vec<LegBook>,
    /// Rounds of scheduled verification.
    #[serde(default)]
    pub verify: VerifyBook,
    /// How often each event came since it was last over.
    #[serde(default)]
    pub told: BTreeMap<Occasion, Told>,
    /// What is to be told and has not been.
    #[serde(default)]
    pub untold: Vec<Untold>,
}

/// A run that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its name in logs and on snapshots.
    pub run_id: String,
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub started_ms: u64,
}

/// A run that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Its name in logs and in the history.
    pub run_id: String,
    /// From …
    pub started_ms: u64,
    /// … to.
    pub finished_ms: u64,
    /// What ended it, where it failed.
    pub failure: Option<Failure>,
}

/// An operator's word that the schedule is to stand still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Since when.
    pub since_ms: u64,
    /// Until when; `None`: until somebody resumes it.
    pub until_ms: Option<u64>,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// A volume at a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegBook {
    /// The volume as the configuration names it.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// What the replica is called there.
    pub replica: String,
    /// When it was last tried.
    pub tried_ms: u64,
    /// What became of that; `None`: it became current.
    pub failure: Option<Failure>,
    /// Tries in a row that failed.
    pub failures: u32,
    /// What was tried: where to, with which key, from which generation. While it is the same, a failure that waits for an
    /// operator is not tried again by schedule.
    #[serde(default)]
    pub tried: String,
}

/// Scheduled verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyBook {
    /// Slices done since the first.
    pub done: u64,
    /// When the last one ended.
    pub last_ms: Option<u64>,
    /// When every slice of a round had been compared without a difference.
    pub whole_ms: Option<u64>,
    /// What the last one ended with, where it failed; exit code 7 where it found differences.
    pub failure: Option<Failure>,
    /// A difference was found, and since then no round has compared all of it without one.
    #[serde(default)]
    pub differed: bool,
    /// Slices in a row without a difference …
    #[serde(default)]
    pub clean: u64,
    /// … while a round had so many.
    #[serde(default)]
    pub rounds: u32,
}

/// What is known of a pair beyond its record: how current the replica is while its source is idle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// Version of this file.
    version: u32,
    /// The generation all this speaks of; where the record has another, it is void.
    pub generation: u64,
    /// The boot in which the writes were counted.
    pub boot_id: String,
    /// What the kernel had counted before the snapshot of that generation was made.
    pub counted: String,
    /// What it had counted when the run was over; empty: nothing.
    #[serde(default)]
    pub seen: String,
    /// The last moment at which the source was still as that generation.
    pub unchanged_ms: u64,
}

impl Current {
    /// Of this generation, whose source stood at `counted` and is still like it at `unchanged_ms`.
    pub fn new(generation: u64, boot_id: String, counted: String, seen: String, unchanged_ms: u64) -> Current {
        Current { version: VERSION, generation, boot_id, counted, seen, unchanged_ms }
    }
}

impl JobBook {
    /// Whether an operator's pause holds now.
    pub fn is_paused(&self, now_ms: u64) -> bool {
        self.paused.as_ref().is_some_and(|paused| paused.until_ms.is_none_or(|until| now_ms < until))
    }

    /// The entry of a volume at a receiver.
    pub fn leg(&self, source: &std::path::Path, receiver: &str, replica: &str) -> Option<&LegBook> {
        self.legs.iter().find(|leg| leg.source == source && leg.receiver == receiver && leg.replica == replica)
    }
}

/// The books of all jobs.
#[derive(Clone, Debug)]
pub struct Shelf {
    state: StateDir,
}

impl Shelf {
    /// Of this state directory; makes the folder.
    pub fn open(state: &StateDir) -> Result<Shelf> {
        state.agent()?;
        Ok(Shelf { state: state.clone() })
    }

    /// The same for who only looks: nothing is made.
    pub fn look(state: &StateDir) -> Shelf {
        Shelf { state: state.clone() }
    }

    /// The state directory.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// The jobs that have a book, in the order of their names; also those that are no longer configured.
    pub fn jobs(&self) -> Result<Vec<String>> {
        let folder = self.folder().join("jobs");
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(Kind::Failed, || format!("read {}", folder.display()))?,
        };
        let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// What is remembered of a job; a new book where there is none.
    pub fn read(&self, job: &str) -> Result<JobBook> {
        let files = HostFiles::new(&self.folder().join("jobs").join(job));
        Ok(read(&files, BOOK, |book: &JobBook| book.version)?.unwrap_or_default())
    }

    /// Changes a job's book; durable when this returns. Several processes may do so: each change reads anew.
    pub fn change<T>(&self, job: &str, change: impl FnOnce(&mut JobBook) -> T) -> Result<T> {
        let _lock = Lock::wait(&self.folder(), "the agent's books", BOOK_LOCK_TIMEOUT)?;
        let files = HostFiles::new(&self.state.job(job)?);
        let mut book: JobBook = read(&files, BOOK, |book: &JobBook| book.version)?.unwrap_or_default();
        let result = change(&mut book);
        book.version = VERSION;
        write(&files, BOOK, &book)?;
        Ok(result)
    }

    /// Takes the job for one run (`Kind::Locked` where another has it): systemd's timers, a person and the
    /// agent all come through here.
    pub fn lock(&self, job: &str) -> Result<Lock> {
        Lock::take_or(&self.state.job(job)?, &format!("job {job}"), &format!("stop it with `blockferry abort {job}`"))
    }

    /// The process that runs the job now.
    pub fn runner(&self, job: &str) -> Option<u32> {
        Lock::holder(&self.folder().join("jobs").join(job))
    }

    /// The agent's folder.
    pub fn folder(&self) -> PathBuf {
        self.state.path().join("agent")
    }

    /// What is known of a pair beyond its record.
    pub fn current(&self, relationship: &Uuid) -> Result<Option<Current>> {
        let files = HostFiles::new(&self.state.folder(Side::Sources, relationship));
        read(&files, CURRENT, |current: &Current| current.version)
    }

    /// Writes that down.
    pub fn set_current(&self, relationship: &Uuid, current: Current) -> Result<()> {
        let files = HostFiles::new(&self.state.folder(Side::Sources, relationship));
        write(&files, CURRENT, &current)
    }
}

fn read<T: DeserializeOwned>(files: &HostFiles, name: &str, version: impl Fn(&T) -> u32) -> Result<Option<T>> {
    let place = || files.folder().join(name).display().to_string();
    let Some(text) = files.read(name)? else { return Ok(None) };
    let wrong = || format!("read {} (it may be removed: the next run begins a new one)", place());
    let value: T = serde_json::from_slice(&text).context(Kind::Failed, wrong)?;
    match version(&value) {
        VERSION => Ok(Some(value)),
        other => Err(Error::new(Kind::Refused, format!("{} is of version {other}; this program reads {VERSION}", place()))),
    }
}

fn write<T: Serialize>(files: &HostFiles, name: &str, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).context(Kind::Failed, || format!("write {name}"))?;
    files.replace(name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        (folder, Shelf::open(&state).unwrap())
    }

    #[test]
    fn changes_from_many_sides_all_arrive() {
        let (_folder, shelf) = shelf();
        assert_eq!(shelf.read("db").unwrap(), JobBook::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| shelf.change("db", |book| book.skipped_ticks += 1).unwrap());
            }
        });
        assert_eq!(shelf.read("db").unwrap().skipped_ticks, 8);
        assert_eq!(shelf.jobs().unwrap(), ["db"]);
    }

    #[test]
    fn a_pause_ends_when_its_time_is_over() {
        let paused = |until_ms| Paused { since_ms: 1, until_ms, by: "root".into(), reason: None };
        let book = |until_ms| JobBook { paused: Some(paused(until_ms)), ..JobBook::default() };
        assert!(book(None).is_paused(u64::MAX) && book(Some(10)).is_paused(9) && !book(Some(10)).is_paused(10));
        assert!(!JobBook::default().is_paused(0));
    }

    #[test]
    fn a_damaged_book_says_what_to_do_and_a_later_one_is_left_alone() {
        let (_folder, shelf) = shelf();
        shelf.change("db", |_| ()).unwrap();
        let path = shelf.folder().join("jobs/db/book.json");
        std::fs::write(&path, "{\"version\": 7}").unwrap();
        assert!(shelf.change("db", |_| ()).unwrap_err().chain().contains("is of version 7"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"version\": 7}");
        std::fs::write(&path, "{").unwrap();
        assert!(shelf.read("db").unwrap_err().chain().contains("it may be removed"));
    }

    #[test]
    fn one_run_of_a_job_at_a_time() {
        let (_folder, shelf) = shelf();
        let held = shelf.lock("db").unwrap();
        let refused = shelf.lock("db").unwrap_err();
        assert!(refused.kind() == Kind::Locked && refused.to_string().ends_with("or stop it with `blockferry abort db`"), "{refused}");
        assert_eq!(shelf.runner("db"), Some(std::process::id()));
        shelf.lock("web").unwrap();
        drop(held);
        assert_eq!(shelf.runner("db"), None);
    }
}
