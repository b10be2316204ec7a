//! One round of a run: the volumes as they are at one moment, and their way to the receivers.
//!
//! Hooks surround the snapshots and not the transfers: what a hook holds still goes on as soon as the last snapshot is
//! there, however slow the line is.

use super::bench::{Bench, Transfer};
use super::config::Job;
use super::hooks::{Around, Stack};
use super::idle::Counted;
use super::outcome::{Failure, LegResult};
use super::route::Route;
use crate::attempt::{self, Delivery, Host, Origin, Reading, Snapshots, Still, Wanted, changed_bytes, device_of, open_all};
use crate::error::{Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::progress::{Phase, Progress};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A source, and the routes by which it is to go: their numbers among those of the job.
#[derive(Clone, Debug)]
pub struct Load {
    /// The source as the configuration names it.
    pub source: PathBuf,
    /// Which routes.
    pub routes: Vec<usize>,
    /// What is done otherwise than the time before.
    pub again: Option<Again>,
    /// It lies still at this count: a snapshot of it is not needed.
    pub still: Option<Counted>,
}

/// Another try at once, and what is to be otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// A snapshot's store of so many bytes was not enough.
    MoreRoom(u64),
    /// What seemed to lie still was written to while it was read.
    WithSnapshot,
}

impl Load {
    /// The sources of these routes, each once.
    pub fn of(routes: &[Route<'_>], due: &[usize]) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        for route in due {
            let source = &routes[*route].volume.source;
            match loads.iter_mut().find(|load| load.source == *source) {
                Some(load) => load.routes.push(*route),
                None => loads.push(Load { source: source.clone(), routes: vec![*route], again: None, still: None }),
            }
        }
        loads
    }
}

/// A route's outcome.
#[derive(Debug)]
pub struct Landed {
    /// Which route.
    pub route: usize,
    /// What became of it.
    pub result: LegResult,
    /// How long it took.
    pub seconds: f64,
    /// Another try may help at once.
    pub again: Option<Again>,
    /// The receiver took it on: what was wrong before is over, however this ended.
    pub admitted: bool,
}

/// What a round works with.
pub struct Round<'a> {
    /// Where runs are done.
    pub bench: &'a Bench,
    /// The job.
    pub job: &'a Job,
    /// Its routes.
    pub routes: &'a [Route<'a>],
    /// The run.
    pub run_id: &'a str,
    /// Replicate, or find out what that would take.
    pub purpose: Purpose,
    /// What ends it.
    pub stop: &'a Arc<AtomicBool>,
}

/// A source that is open.
struct Laden {
    load: Load,
    origin: Origin,
    reading: Result<Reading>,
    /// What was counted before the snapshot was made.
    counted: Option<Counted>,
}

impl Round<'_> {
    /// Runs it; what comes back is in no order. An error: nothing was done, for no volume.
    ///
    /// `idle`: what had not been written to when the round began. A hook may have made something write to it (a check
    /// point of a data base), and then it belongs to this moment like the others.
    pub fn go(&self, loads: Vec<Load>, idle: &[(Load, Counted)], troubles: &mut Vec<Error>) -> Result<Vec<Landed>> {
        let mut landed = Vec::new();
        let laden = self.moment(loads, idle, &mut landed)?;
        let host = self.bench.host(self.job);
        // A volume is read once for all its receivers that take it at the same time.
        let width = laden.iter().map(|laden| laden.load.routes.len()).max().unwrap_or(1).clamp(1, self.job.max_concurrent);
        let workers = (self.job.max_concurrent / width).clamp(1, laden.len().max(1));
        let at_once = self.job.max_concurrent / workers;
        let queue = Mutex::new(laden.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut done = (Vec::new(), Vec::new());
            while let Some(laden) = next() {
                self.carry(&host, laden, at_once, &mut done.0, &mut done.1);
            }
            done
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                let (done, errors) = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                landed.extend(done);
                troubles.extend(errors);
            }
        });
        Ok(landed)
    }

    /// Opens every source as it is at one moment, between its hooks. One that is not found has landed already.
    fn moment(&self, loads: Vec<Load>, idle: &[(Load, Counted)], landed: &mut Vec<Landed>) -> Result<Vec<Laden>> {
        let mut hooks = Stack::new(&self.job.hooks, self.around()?);
        hooks.pre(self.stop)?;
        let stirred = |(load, counted): &&(Load, Counted)| Counted::settled(&device_of(&load.source)).as_ref() != Some(counted);
        let stirred: Vec<Load> = idle.iter().filter(stirred).map(|(load, _)| load.clone()).collect();
        let mut found = Vec::new();
        for load in loads.into_iter().chain(stirred) {
            match Origin::find(&load.source) {
                Ok(origin) => found.push((load, origin)),
                Err(error) => landed.extend(load.routes.iter().map(|route| failed(*route, &error, 0.0, None))),
            }
        }
        let snapshots: Vec<Snapshots> = found.iter().map(|(load, _)| self.snapshots(load)).collect();
        // Before the snapshots: what is written in between is in them, and counts as written after them.
        let counted: Vec<Option<Counted>> = found.iter().map(|(_, origin)| Counted::now(&origin.path)).collect();
        let mut wanted = Vec::new();
        for ((load, origin), snapshots) in found.iter().zip(&snapshots) {
            let places = load.routes.iter().map(|route| &self.routes[*route].place);
            let changed_bytes = changed_bytes(self.bench.shelf.state(), &load.source, places)?;
            wanted.push(Wanted { origin, snapshots, changed_bytes, still: still(load, origin) });
        }
        let opened = open_all(self.bench.shelf.state(), &wanted, self.run_id, self.bench.choice, self.stop)?;
        drop(wanted);
        let snapshots: Vec<PathBuf> = opened.iter().flatten().filter_map(|reading| reading.snapshot_path()).collect();
        hooks.post(&snapshots)?;
        let all = found.into_iter().zip(opened).zip(counted);
        Ok(all.map(|(((load, origin), reading), counted)| Laden { load, origin, reading, counted }).collect())
    }

    /// What hooks are told.
    fn around(&self) -> Result<Around> {
        let (mut volumes, mut generations) = (Vec::new(), Vec::new());
        for volume in &self.job.volumes {
            let routes = self.routes.iter().filter(|route| route.volume == volume);
            let mut last = 0;
            for route in routes {
                last = last.max(route.known(self.bench.shelf.state())?.map_or(0, |record| record.generation));
            }
            volumes.push(device_of(&volume.source));
            generations.push(last + 1);
        }
        let dry_run = self.purpose == Purpose::Plan;
        Ok(Around { job: self.job.name.clone(), run_id: self.run_id.to_owned(), volumes, generations, dry_run })
    }

    /// How this source is snapshotted. A plan writes nothing, so it reads the source itself.
    fn snapshots(&self, load: &Load) -> Snapshots {
        let mut snapshots = self.job.snapshot.snapshots.clone();
        if self.purpose == Purpose::Plan {
            snapshots.when = attempt::When::Never;
        }
        if let Some(Again::MoreRoom(bytes)) = load.again {
            snapshots.policy = snapshots.policy.larger(bytes);
        }
        snapshots
    }

    /// Delivers one source to its receivers.
    fn carry(&self, host: &Host, laden: Laden, at_once: usize, landed: &mut Vec<Landed>, troubles: &mut Vec<Error>) {
        let Laden { load, origin, reading, counted } = laden;
        let began = Instant::now();
        let reading = match reading {
            Ok(_) if self.stop.load(Ordering::Relaxed) => Err(Error::new(Kind::Interrupted, "stopped before this transfer began")),
            reading => reading,
        };
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => return landed.extend(load.routes.iter().map(|route| failed(*route, &error, 0.0, None))),
        };
        let (taken_ms, room, is_still) = (reading.taken_ms, reading.room(), reading.is_still());
        let entries: Vec<_> = load.routes.iter().map(|route| self.bench.board.begin(self.transfer(&self.routes[*route]))).collect();
        let transfers: Vec<Arc<Transfer>> = entries.iter().map(|entry| Arc::clone(&entry.transfer)).collect();
        let deliveries: Vec<Delivery<'_>> = load
            .routes
            .iter()
            .zip(&transfers)
            .map(|(route, transfer)| Delivery {
                errand: self.routes[*route].errand(self.purpose, self.bench.overwrite),
                here: &transfer.here,
                there: &transfer.there,
            })
            .collect();
        let replicated = attempt::replicate(host, &origin, reading, &deliveries, at_once);
        let seconds = began.elapsed().as_secs_f64();
        troubles.extend(replicated.removed.err());
        for ((route, transfer), result) in load.routes.iter().zip(&transfers).zip(replicated.deliveries) {
            match result {
                Err(error) => {
                    let admitted = matches!(transfer.here.phase(), Phase::Transfer | Phase::Commit);
                    landed.push(Landed { admitted, ..failed(*route, &error, seconds, again(&error, &room, is_still)) });
                }
                Ok(report) => {
                    let result = LegResult::of(&report, taken_ms);
                    troubles.extend(self.note_current(*route, &result, counted.as_ref(), &origin, taken_ms).err());
                    landed.push(Landed { route: *route, result, seconds, again: None, admitted: true });
                }
            }
        }
    }

    fn transfer(&self, route: &Route<'_>) -> Transfer {
        Transfer {
            job: self.job.name.clone(),
            source: route.volume.source.clone(),
            receiver: route.receiver.name.clone(),
            replica: route.volume.replica.clone(),
            here: Progress::new(Arc::clone(self.stop)),
            there: Progress::new(Arc::clone(self.stop)),
            began: Instant::now(),
        }
    }

    /// What was counted goes with the generation that was committed, and no other.
    fn note_current(&self, route: usize, result: &LegResult, counted: Option<&Counted>, origin: &Origin, taken_ms: u64) -> Result<()> {
        let (LegResult::Committed { generation, .. }, Some(counted)) = (result, counted) else { return Ok(()) };
        match self.routes[route].known(self.bench.shelf.state())? {
            Some(record) if record.generation == *generation => {
                counted.keep(&self.bench.shelf, &record, Counted::now(&origin.path).as_ref(), taken_ms)
            }
            _ => Ok(()),
        }
    }
}

/// The question whether a source still lies as it did, where a snapshot is not needed as long as it does. After the hooks:
/// what they made somebody write counts.
fn still(load: &Load, origin: &Origin) -> Option<Still> {
    let (counted, device) = (load.still.clone()?, origin.path.clone());
    let still: Still = Arc::new(move || Counted::settled(&device).as_ref() == Some(&counted));
    still().then_some(still)
}

fn failed(route: usize, error: &Error, seconds: f64, again: Option<Again>) -> Landed {
    Landed { route, result: LegResult::Failed { failure: Failure::from(error) }, seconds, again, admitted: false }
}

/// A snapshot with a store that failed while it was read has overflowed, or somebody removed it.
fn again(error: &Error, room: &AtomicU64, is_still: bool) -> Option<Again> {
    match (error.kind(), is_still, room.load(Ordering::Relaxed)) {
        (Kind::Snapshot, true, _) => Some(Again::WithSnapshot),
        (Kind::Snapshot, false, bytes) if bytes > 0 => Some(Again::MoreRoom(bytes)),
        _ => None,
    }
}
