//! A job as the agent sees it: its book as last read, what of it is under way, when it is due.

use crate::agent::book::{JobBook, Shelf, VerifyBook};
use crate::agent::config::{Job, Receiver, Trigger, Volume};
use crate::agent::due::{self, Due, View};
use crate::agent::outcome::{Cause, RunReport};
use crate::attempt;
use crate::error::{Error, Kind, Result};
use crate::limits::LOCKED_RETRY;
use crate::log;
use crate::state::{HostFiles, RECORD, ReplicaRecord, Side, StateDir};
use jiff::tz::TimeZone;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What tells one content of a replaced file from another.
type Stamp = (u64, i64, i64, u64);

/// A job on the agent's list.
pub struct Watched {
    /// What is to be done.
    pub job: Arc<Job>,
    /// Since when its schedule is looked at.
    pub since_ms: u64,
    /// Its book, as last read.
    pub book: JobBook,
    /// When it is due, as last reckoned.
    pub due: Due,
    /// When its next slice is to be verified, as last reckoned.
    verify_ms: Option<u64>,
    /// What of it goes on in this process.
    pub under_way: Option<UnderWay>,
    /// Somebody asked for a run.
    pub asked: bool,
    /// No sooner: somebody else runs it, or its book cannot be written.
    not_before: Option<Instant>,
    stamp: Option<Stamp>,
    /// The last run whose skipped ticks were counted.
    counted: Option<String>,
    was_paused: bool,
    /// What the log said of it last, so that it does not say so every second.
    said: Option<String>,
    upstream: Upstream,
}

/// What is done for a job, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A run, and what it is to be called.
    Run(Cause),
    /// The next slice of its replicas is compared.
    Verify,
}

/// A run or a verification in this process.
pub struct UnderWay {
    /// Ends it at a point to go on from.
    pub stop: Arc<AtomicBool>,
    /// When it was begun.
    pub started_ms: u64,
    /// Which of the two, and why.
    pub task: Task,
    /// An operator stopped it.
    pub aborted: bool,
    /// What of the replica that it reads was there when it began.
    commit: Option<String>,
    thread: JoinHandle<()>,
}

/// The replica that a job comes after.
#[derive(Default)]
struct Upstream {
    relationship: Option<Uuid>,
    stamp: Option<Stamp>,
    commit: Option<String>,
    since_ms: u64,
}

impl Watched {
    /// A job that is new on the list.
    pub fn new(job: Job, now_ms: u64) -> Watched {
        Watched {
            job: Arc::new(job),
            since_ms: now_ms,
            book: JobBook::default(),
            due: Due { at_ms: None, why: due::Why::Manual, cause: Cause::Schedule },
            verify_ms: None,
            under_way: None,
            asked: false,
            not_before: None,
            stamp: None,
            counted: None,
            was_paused: false,
            said: None,
            upstream: Upstream::default(),
        }
    }

    /// Looks at the book and at the replica before it, reckons, and writes down when the job is due.
    pub fn look(&mut self, shelf: &Shelf, now_ms: u64, zone: &TimeZone, host: u64) -> Result<()> {
        self.read_book(shelf, now_ms, zone, host)?;
        if let Trigger::After(name) = &self.job.trigger {
            self.upstream.look(shelf.state(), name, now_ms)?;
        }
        let paused = self.book.is_paused(now_ms);
        if self.was_paused && !paused {
            // Ticks of a pause are downtime.
            self.since_ms = now_ms;
        }
        self.was_paused = paused;
        if self.under_way.is_some() {
            return Ok(());
        }
        self.due = due::next(&self.job, &self.book, &self.view(now_ms, zone, host));
        self.verify_ms = due::verify_due(&self.job, &self.book, &self.view(now_ms, zone, host));
        let (at, why) = (self.due.at_ms, Some(self.due.why.name()));
        if self.book.next_due_ms != at || self.book.next_why.as_deref() != why {
            shelf.change(&self.job.name, |book| (book.next_due_ms, book.next_why) = (at, why.map(str::to_owned)))?;
            (self.book.next_due_ms, self.book.next_why) = (at, why.map(str::to_owned));
        }
        Ok(())
    }

    fn view<'a>(&self, now_ms: u64, zone: &'a TimeZone, host: u64) -> View<'a> {
        let waits = self.upstream.commit.is_some() && self.upstream.commit != self.book.commit;
        View { now_ms, since_ms: self.since_ms, zone, host, commit_ms: waits.then_some(self.upstream.since_ms) }
    }

    /// Others write it too: a pause, a run by hand or by a timer.
    fn read_book(&mut self, shelf: &Shelf, now_ms: u64, zone: &TimeZone, host: u64) -> Result<()> {
        let stamp = stamp(&shelf.folder().join("jobs").join(&self.job.name).join("book.json"));
        let is_first = self.book.scheduled_since_ms.is_none();
        if stamp == self.stamp && !is_first {
            return Ok(());
        }
        self.book = shelf.read(&self.job.name)?;
        if self.book.scheduled_since_ms.is_none() {
            shelf.change(&self.job.name, |book| book.scheduled_since_ms = Some(now_ms))?;
            self.book.scheduled_since_ms = Some(now_ms);
        }
        // Read before the content: a change in between is seen with the next look.
        self.stamp = stamp;
        let last = self.book.last.as_ref().map(|last| last.run_id.clone());
        if self.counted != last {
            let is_news = self.counted.is_some();
            self.counted = last;
            if let (true, Some(last)) = (is_news, &self.book.last) {
                let skipped = due::skipped(&self.job, last.started_ms, last.finished_ms, &self.view(now_ms, zone, host));
                if skipped > 0 {
                    self.book.skipped_ticks += skipped;
                    shelf.change(&self.job.name, |book| book.skipped_ticks += skipped)?;
                    log::warning(format!("job {}: its run took longer than its interval: {skipped} passed over", self.job.name));
                }
            }
        }
        Ok(())
    }

    /// Whether this is news for the log; `None`: all is well again.
    pub fn is_news(&mut self, words: Option<&str>) -> bool {
        let is_news = words.is_some() && self.said.as_deref() != words;
        self.said = words.map(str::to_owned);
        is_news
    }

    /// What is to begin. A run comes before a verification, which makes nothing current.
    pub fn wants(&self, now_ms: u64) -> Option<Task> {
        if self.under_way.is_some() || self.not_before.is_some_and(|time| Instant::now() < time) {
            return None;
        }
        if self.asked {
            return Some(Task::Run(Cause::Request));
        }
        if self.due.is_now(now_ms) {
            return Some(Task::Run(self.due.cause));
        }
        self.verify_ms.is_some_and(|at| at <= now_ms).then_some(Task::Verify)
    }

    /// When the oldest of its replicas was last current; 0 where one never was.
    pub fn oldest_ms(&self, state: &StateDir) -> u64 {
        let legs = self.job.volumes.iter().flat_map(|volume| self.job.receivers.iter().map(move |receiver| (volume, receiver)));
        let known = |(volume, receiver): (&Volume, &Receiver)| attempt::known(state, &volume.source, &self.job.place(volume, receiver));
        legs.map(known).map(|known| known.ok().flatten().map_or(0, |record| record.source_time_ms)).min().unwrap_or(0)
    }

    /// It begins in this thread.
    pub fn began(&mut self, stop: Arc<AtomicBool>, started_ms: u64, task: Task, thread: JoinHandle<()>) {
        self.asked &= task == Task::Verify;
        let commit = self.upstream.commit.clone();
        self.under_way = Some(UnderWay { stop, started_ms, task, aborted: false, commit, thread });
    }

    /// Its run ended. `stopping`: the agent is about to end, so the next one takes it up again.
    pub fn ended(&mut self, shelf: &Shelf, result: &Result<RunReport>, stopping: bool) -> Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let _ = under_way.thread.join();
        self.not_before = None;
        match result {
            Ok(report) => {
                let interrupted = report.verdict().is_some_and(|failure| failure.kind() == Kind::Interrupted);
                let cut = stopping && interrupted && !under_way.aborted;
                let answers = under_way.task != Task::Run(Cause::Retry);
                shelf.change(&self.job.name, |book| {
                    if answers {
                        book.served_ms = Some(under_way.started_ms);
                    }
                    book.unfinished = cut.then(|| report.run_id.clone());
                    book.commit = under_way.commit.or(book.commit.take());
                })
            }
            Err(error) => {
                self.wait_after(error);
                Ok(())
            }
        }
    }

    /// Its verification ended; what came of it is in the book.
    pub fn verified(&mut self, shelf: &Shelf, result: &Result<VerifyBook>, now_ms: u64) -> Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let _ = under_way.thread.join();
        self.not_before = None;
        match result {
            Ok(_) => Ok(()),
            // The slice keeps its turn. Who stopped it does not want it again before the next tick; the agent's own end does.
            Err(error) if error.kind() == Kind::Interrupted && under_way.aborted => {
                shelf.change(&self.job.name, |book| book.verify.last_ms = Some(now_ms))
            }
            Err(error) => {
                self.wait_after(error);
                Ok(())
            }
        }
    }

    /// What left nothing in the book is tried again, but not at once.
    fn wait_after(&mut self, error: &Error) {
        let wait = if error.kind() == Kind::Locked { LOCKED_RETRY } else { self.job.retry.initial.max(Duration::from_secs(1)) };
        self.not_before = Some(Instant::now() + wait);
    }

    /// Asks its run or verification to stop. Whether there is one.
    pub fn stop_run(&mut self, aborted: bool) -> bool {
        let Some(under_way) = &mut self.under_way else { return false };
        under_way.aborted |= aborted;
        under_way.stop.store(true, Ordering::Relaxed);
        true
    }
}

impl Upstream {
    /// Whether the replica of this name has another commit than at the last look.
    fn look(&mut self, state: &StateDir, name: &str, now_ms: u64) -> Result<()> {
        if self.relationship.is_none() {
            self.relationship = attempt::replica_named(state, name)?;
        }
        let Some(relationship) = self.relationship else { return Ok(()) };
        let folder = state.folder(Side::Replicas, &relationship);
        let stamp = stamp(&folder.join(RECORD));
        if stamp.is_none() {
            // Paired anew.
            *self = Upstream { commit: self.commit.take(), since_ms: self.since_ms, ..Upstream::default() };
            return Ok(());
        }
        if stamp == self.stamp {
            return Ok(());
        }
        self.stamp = stamp;
        let record = ReplicaRecord::load(&HostFiles::new(&folder))?;
        let commit = record.filter(|record| record.generation > 0).map(|record| format!("{}:{}", record.epoch, record.generation));
        if commit != self.commit {
            (self.commit, self.since_ms) = (commit, now_ms);
        }
        Ok(())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}

/// What the log says of a run.
pub fn story(job: &str, result: &Result<RunReport>) -> (log::Level, String) {
    let report = match result {
        Ok(report) => report,
        Err(error) if error.kind() == Kind::Locked => return (log::Level::Info, format!("job {job}: {}", locked(error))),
        Err(error) => return (log::Level::Error, format!("job {job}: {}", error.chain())),
    };
    let seconds = report.finished_ms.saturating_sub(report.started_ms) as f64 / 1000.0;
    let mut words: Vec<String> = Vec::new();
    for leg in &report.legs {
        words.push(format!("{} to {}: {}", leg.source.display(), leg.receiver, outcome(&leg.result)));
    }
    let head = format!("job {job}: run {} of {seconds:.1} s", report.run_id);
    match report.verdict() {
        None => (log::Level::Info, format!("{head}: {}", words.join("; "))),
        Some(failure) if failure.kind() == Kind::Interrupted => (log::Level::Info, format!("{head} was stopped: {}", words.join("; "))),
        Some(failure) if report.failure.is_some() => {
            (log::Level::Error, format!("{head} failed with exit {}: {}", failure.exit, failure.message))
        }
        Some(failure) => (log::Level::Error, format!("{head} failed with exit {}: {}", failure.exit, words.join("; "))),
    }
}

/// What the log says of a verification.
pub fn story_of_verify(job: &str, result: &Result<VerifyBook>) -> (log::Level, String) {
    match result {
        Err(error) if error.kind() == Kind::Locked => (log::Level::Info, format!("job {job}: verification: {}", locked(error))),
        Err(error) if error.kind() == Kind::Interrupted => (log::Level::Info, format!("job {job}: {}", error.chain())),
        Err(error) => (log::Level::Error, format!("job {job}: verification: {}", error.chain())),
        Ok(book) => match &book.failure {
            Some(failure) => (log::Level::Error, format!("job {job}: verification failed with exit {}: {}", failure.exit, failure.message)),
            None if book.rounds > 1 => {
                let slice = book.done.saturating_sub(1) % u64::from(book.rounds) + 1;
                (log::Level::Info, format!("job {job}: verified slice {slice}/{} of its replicas: no difference", book.rounds))
            }
            None => (log::Level::Info, format!("job {job}: verified its replicas: no difference")),
        },
    }
}

fn locked(error: &Error) -> String {
    format!("{}; it is asked for again in {} s", error.chain(), LOCKED_RETRY.as_secs())
}

fn outcome(result: &crate::agent::outcome::LegResult) -> String {
    use crate::agent::outcome::LegResult::*;
    match result {
        Committed { generation, amounts, .. } => {
            format!("generation {generation}, {} blocks sent, {} bytes on the wire", amounts.sent_blocks, amounts.wire_bytes)
        }
        Idle { generation } => format!("nothing written since generation {generation}"),
        Planned { .. } => "planned".to_owned(),
        Failed { failure } => failure.message.clone(),
        PassedOver { why } => format!("passed over: {why}"),
    }
}
