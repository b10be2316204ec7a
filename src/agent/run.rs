//! One run of a job, from its lock to its line in the history.
//!
//! | step | what a kill -9 right behind it leaves | who cleans it |
//! |---|---|---|
//! | the job's lock is taken | nothing: the kernel lets go of it | – |
//! | the book says *running* | a run without an outcome | the next run gives it its line in the history |
//! | waiting for quiet, looking who is idle | the same | – |
//! | snapshots are made | snapshots with our tags whose process is gone | the next run that makes one in any job, `clone`, `doctor --fix` |
//! | transfers | at each receiver a journal to go on from; the cursor of each pair stays with its last commit | the next run |
//! | a commit is acknowledged | a pair without its count: its volume is not taken for idle | the next run, with a snapshot |
//! | snapshots are removed, each as soon as its volume is through; one that stays is tried again each minute by an agent, and by the next run | – | – |
//! | the book has the outcome, and what is to be told | a run that is missing in the history only | nobody: `status` tells it from the book; the next run tells what is left |
//! | the history has its line | nothing | – |
//!
//! A daemon, a timer and a person come through the same lock: who is second gets [`Kind::Locked`].

use super::bench::Bench;
use super::book::{JobBook, Running};
use super::config::{Job, OnOverflow};
use super::idle::Counted;
use super::ledger::Tried;
use super::outcome::{Cause, Failure, Leg, LegResult, RunReport};
use super::quiet;
use super::round::{Again, Landed, Load, Round};
use super::route::{Route, passed_over, routes, tries};
use super::{changes, history, ledger, notify};
use crate::attempt::{device_of, now_ms};
use crate::error::{Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::log;
use crate::state::SourceRecord;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use uuid::Uuid;

/// Runs a job. What failed on the way is in the report; an error is that of a run that never began, or of what could not
/// be written down.
pub fn run(bench: &Bench, job: &Job, cause: Cause, stop: &Arc<AtomicBool>) -> Result<RunReport> {
    let _lock = bench.shelf.lock(&job.name)?;
    let run_id = Uuid::now_v7().to_string();
    let started_ms = now_ms();
    let running = Running { run_id: run_id.clone(), pid: std::process::id(), started_ms };
    let (dead, book) = bench.shelf.change(&job.name, |book| {
        let dead = ledger::open(book, running, &job.name, started_ms);
        (dead, book.clone())
    })?;
    if let Some(dead) = dead {
        remember(bench, &dead);
    }
    let routes = routes(job);
    let round = Round { bench, job, routes: &routes, run_id: &run_id, purpose: Purpose::Replicate, stop };
    let mut pass = Pass { round, book: &book, tried: Vec::new(), landed: Vec::new(), troubles: Vec::new() };
    let ended = pass.go(cause);
    let failure = ended.err().or_else(|| pass.trouble()).as_ref().map(Failure::from);
    let (legs, tried) = pass.legs(failure.as_ref());
    let report = RunReport { run_id: run_id.clone(), job: job.name.clone(), cause, started_ms, finished_ms: now_ms(), legs, failure };
    bench.shelf.change(&job.name, |after| {
        ledger::close(after, &report, &tried);
        let events = notify::events_of(&book, after, &report);
        notify::note(after, job, &events, report.finished_ms);
    })?;
    if let Some(file) = &bench.change_log {
        changes::add_run(file, &report);
    }
    remember(bench, &report);
    // After all that is to be remembered is: a way to tell it may take its time.
    if let Err(error) = notify::deliver(&bench.shelf, job) {
        log::error(format!("tell of job {}: {}", job.name, error.chain()));
    }
    Ok(report)
}

/// Adds a run to the history, which is for people: where that cannot be written, jobs run all the same.
fn remember(bench: &Bench, report: &RunReport) {
    if let Err(error) = history::append(&bench.shelf, report) {
        log::error(format!("remember run {} of job {}: {}", report.run_id, report.job, error.chain()));
    }
}

/// A run under way.
struct Pass<'a> {
    round: Round<'a>,
    book: &'a JobBook,
    /// What each route is tried with.
    tried: Vec<String>,
    landed: Vec<Landed>,
    /// What went wrong beside the transfers.
    troubles: Vec<Error>,
}

/// What was written to since the last run.
#[derive(Default)]
struct Look {
    /// Nothing since the snapshot of what the receivers have, with the routes for which that is so.
    idle: Vec<(Load, Counted)>,
    /// Nothing since that run was over.
    still: Vec<(PathBuf, Counted)>,
}

impl Pass<'_> {
    fn go(&mut self, cause: Cause) -> Result<()> {
        let Round { bench, job, routes, stop, .. } = self.round;
        let known = routes.iter().map(|route| route.known(bench.shelf.state())).collect::<Result<Vec<_>>>()?;
        self.tried = tries(routes, &known, bench.shelf.state())?;
        let mut due = Vec::new();
        for (route, why) in passed_over(routes, &self.tried, self.book, cause).into_iter().enumerate() {
            match why {
                Some(why) => self.land(route, LegResult::PassedOver { why }),
                None => due.push(route),
            }
        }
        let Look { idle, still } = if bench.idle_too { Look::default() } else { self.look(&due, &known)? };
        due.retain(|route| !idle.iter().any(|(load, _)| load.routes.contains(route)));
        let mut loads = Load::of(routes, &due);
        if loads.is_empty() {
            return Ok(());
        }
        for load in &mut loads {
            load.still = still.iter().find(|(source, _)| load.source == *source).map(|(_, counted)| counted.clone());
        }
        let sources: Vec<PathBuf> = job.volumes.iter().map(|volume| volume.source.clone()).collect();
        // That it does not come is no failure: a snapshot is as good then, only larger to hold.
        if !job.quiet_after.is_zero() {
            let waits = |since: Option<u64>| self.round.bench.shelf.change(&job.name, |book| book.quiet_since_ms = since);
            waits(Some(now_ms()))?;
            let waited = quiet::wait(&sources, job.quiet_after, job.quiet_wait_max, stop);
            waits(None)?;
            waited?;
        }
        let landed = self.round.go(loads, &idle, &mut self.troubles)?;
        self.landed.extend(landed);
        self.again()
    }

    /// Looks at what was counted of each source; what is idle has landed.
    fn look(&mut self, due: &[usize], known: &[Option<SourceRecord>]) -> Result<Look> {
        let shelf = &self.round.bench.shelf;
        let mut look = Look::default();
        // Of one source, whatever is said of it anywhere holds: its counters cannot be believed for another replica.
        let volume = |route: &usize| self.round.routes[*route].volume;
        let doubted = |source: &Path| due.iter().map(volume).any(|volume| volume.idle_too && volume.source == source);
        let may_be_idle: Vec<usize> = due.iter().copied().filter(|route| !doubted(&volume(route).source)).collect();
        for load in Load::of(self.round.routes, &may_be_idle) {
            let device = device_of(&load.source);
            let Some(counted) = Counted::now(&device) else { continue };
            let (mut idle, mut still) = (Vec::new(), 0);
            for route in load.routes.iter().copied() {
                let Some(record) = &known[route] else { continue };
                let is_well = self.round.routes[route].entry(self.book).is_none_or(|entry| entry.failure.is_none());
                let current = shelf.current(&record.relationship)?;
                if is_well && counted.is_of(current.as_ref(), record) {
                    idle.push((route, record));
                } else if is_well && counted.is_still(current.as_ref(), record) {
                    still += 1;
                }
            }
            let now = now_ms();
            // The page cache is written out only of what seems to be left alone: elsewhere the snapshot does it.
            if idle.is_empty() && still == 0 || Counted::settled(&device).as_ref() != Some(&counted) {
                continue;
            }
            if still > 0 && still + idle.len() == load.routes.len() {
                look.still.push((load.source.clone(), counted.clone()));
            }
            for (route, record) in &idle {
                counted.keep(shelf, record, Some(&counted), now)?;
                let result = LegResult::Idle { generation: record.generation };
                self.landed.push(Landed { route: *route, result, seconds: 0.0, again: None, admitted: true });
            }
            if !idle.is_empty() {
                let routes = idle.iter().map(|(route, _)| *route).collect();
                look.idle.push((Load { routes, ..load }, counted));
            }
        }
        Ok(look)
    }

    /// One more try, at once, for what overflowed or was written to.
    fn again(&mut self) -> Result<()> {
        let larger = self.round.job.snapshot.on_overflow == OnOverflow::RetryLarger;
        let again = |landed: &Landed| match landed.again? {
            Again::MoreRoom(_) if !larger => None,
            again => Some((landed.route, again)),
        };
        let again: Vec<(usize, Again)> = self.landed.iter().filter_map(again).collect();
        let routes: Vec<usize> = again.iter().map(|(route, _)| *route).collect();
        let mut loads = Load::of(self.round.routes, &routes);
        for load in &mut loads {
            load.again = again.iter().find(|(route, _)| load.routes.contains(route)).map(|(_, again)| *again);
        }
        if !loads.is_empty() {
            let landed = self.round.go(loads, &[], &mut self.troubles)?;
            self.landed.extend(landed);
        }
        Ok(())
    }

    /// What ended the run as a whole although every route has its result: a stop, or what went wrong beside the transfers.
    fn trouble(&mut self) -> Option<Error> {
        let interrupted = |failure: &Failure| failure.kind() == Kind::Interrupted;
        let stopped = self.landed.iter().filter_map(|landed| landed.result.failure()).find(|failure| interrupted(failure));
        stopped.map(Failure::error).or_else(|| self.troubles.drain(..).next())
    }

    fn land(&mut self, route: usize, result: LegResult) {
        self.landed.push(Landed { route, result, seconds: 0.0, again: None, admitted: false });
    }

    /// The legs in the order of the configuration, and what each was tried with. What never had its turn says why.
    fn legs(self, failure: Option<&Failure>) -> (Vec<Leg>, Vec<Tried>) {
        let routes = self.round.routes;
        let state = self.round.bench.shelf.state();
        let mut landed: Vec<Option<Landed>> = routes.iter().map(|_| None).collect();
        // A later landing of the same route counts: it was tried again, or was not idle after all.
        for one in self.landed {
            let at = one.route;
            landed[at] = Some(one);
        }
        let mut tried = self.tried;
        tried.resize(routes.len(), String::new());
        let admitted = landed.iter().map(|landed| landed.as_ref().is_some_and(|landed| landed.admitted));
        let tried = tried.into_iter().zip(admitted).map(|(with, admitted)| Tried { with, admitted }).collect();
        let why = failure.map_or_else(String::new, |failure| failure.message.clone());
        let leg = |(route, landed): (&Route<'_>, Option<Landed>)| {
            let known = route.known(state).ok().flatten();
            let (result, seconds) = match landed {
                Some(landed) => (landed.result, landed.seconds),
                None => (LegResult::PassedOver { why: why.clone() }, 0.0),
            };
            route.leg(known.as_ref(), result, seconds)
        };
        (routes.iter().zip(landed).map(leg).collect(), tried)
    }
}
