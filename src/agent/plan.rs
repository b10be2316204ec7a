//! What a run would do, and why: for a person who wants to know before it does. Nothing is written, no hook is called, no
//! snapshot is made: what is measured is read from the source as it is now, and so is an estimate where somebody writes.

use super::bench::Bench;
use super::config::Job;
use super::hooks::{Around, Stack};
use super::idle::Counted;
use super::outcome::{Amounts, Cause, Failure, LegResult};
use super::round::{Load, Round};
use super::route::{Route, passed_over, routes, tries};
use crate::attempt::{Foreseen, changed_bytes, dead_snapshots, device_of, foresee};
use crate::error::Result;
use crate::format::stream::Purpose;
use crate::state::SourceRecord;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a run would do.
#[derive(Debug)]
pub struct Plan {
    /// The hooks it would call, as one could type them.
    pub hooks: Vec<String>,
    /// How it would read its volumes; or why it cannot.
    pub volumes: Vec<(PathBuf, Result<Foreseen>)>,
    /// What would become of each volume at each receiver.
    pub legs: Vec<Prospect>,
    /// Snapshots of runs that died, which it would remove.
    pub removed: Vec<String>,
}

/// A volume's way to a receiver.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prospect {
    /// The volume as the configuration names it.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// What the replica is called there.
    pub replica: String,
    /// The generation that is there, 0 for none.
    pub base_generation: u64,
    /// When the snapshot of that generation was taken: milliseconds since 1970.
    pub source_time_ms: Option<u64>,
    /// What would become of it.
    #[serde(flatten)]
    pub would: Would,
}

/// What a run would do with a volume at a receiver.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "would")]
pub enum Would {
    /// Send what changed; how much, where that was measured.
    Send {
        /// What would be moved.
        #[serde(flatten)]
        amounts: Option<Amounts>,
    },
    /// Leave it: nothing was written since.
    Idle,
    /// Pass it over.
    PassOver {
        /// Why.
        why: String,
    },
    /// Fail, as things are now.
    Fail {
        /// How.
        #[serde(flatten)]
        failure: Failure,
    },
}

impl Would {
    /// How it would fail, if it would.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Would::Fail { failure } => Some(failure),
            _ => None,
        }
    }
}

/// Plans a run of this job that is started by `cause`. `measure`: read the volumes and ask the receivers.
pub fn plan(bench: &Bench, job: &Job, cause: Cause, measure: bool, stop: &Arc<AtomicBool>) -> Result<Plan> {
    let state = bench.shelf.state();
    let (book, routes) = (bench.shelf.read(&job.name)?, routes(job));
    let known = routes.iter().map(|route| route.known(state)).collect::<Result<Vec<_>>>()?;
    let tried = tries(&routes, &known, state)?;
    let mut would: Vec<Would> = Vec::new();
    for ((route, known), why) in routes.iter().zip(&known).zip(passed_over(&routes, &tried, &book, cause)) {
        would.push(match why {
            Some(why) => Would::PassOver { why },
            None if !bench.idle_too && seems_idle(bench, route, known.as_ref())? => Would::Idle,
            None => Would::Send { amounts: None },
        });
    }
    let due: Vec<usize> = (0..routes.len()).filter(|at| matches!(would[*at], Would::Send { .. })).collect();
    if measure {
        let round = Round { bench, job, routes: &routes, run_id: "plan", purpose: Purpose::Plan, stop };
        for landed in round.go(Load::of(&routes, &due), &[], &mut Vec::new())? {
            would[landed.route] = match landed.result {
                LegResult::Failed { failure } => Would::Fail { failure },
                other => Would::Send { amounts: other.amounts().copied() },
            };
        }
    }
    let mut volumes = Vec::new();
    for load in Load::of(&routes, &due) {
        let places = load.routes.iter().map(|route| &routes[*route].place);
        let changed = changed_bytes(state, &load.source, places)?;
        volumes.push((load.source.clone(), foresee(&load.source, &job.snapshot.snapshots, changed)));
    }
    let hooks = if due.is_empty() { Vec::new() } else { Stack::new(&job.hooks, Around::default()).names() };
    let removed = if volumes.iter().any(|(_, how)| matches!(how, Ok(Foreseen::Snapshot { .. }))) { dead_snapshots()? } else { Vec::new() };
    let legs = routes.iter().zip(known).zip(would).map(|((route, known), would)| prospect(route, known, would)).collect();
    Ok(Plan { hooks, volumes, legs, removed })
}

/// As far as can be told without writing the page cache out.
fn seems_idle(bench: &Bench, route: &Route<'_>, known: Option<&SourceRecord>) -> Result<bool> {
    let Some(record) = known.filter(|_| !route.volume.idle_too) else { return Ok(false) };
    let Some(counted) = Counted::now(&device_of(&route.volume.source)) else { return Ok(false) };
    Ok(counted.is_of(bench.shelf.current(&record.relationship)?.as_ref(), record))
}

fn prospect(route: &Route<'_>, known: Option<SourceRecord>, would: Would) -> Prospect {
    let base_generation = known.as_ref().map_or(0, |record| record.generation);
    Prospect {
        source: route.volume.source.clone(),
        receiver: route.receiver.name.clone(),
        replica: route.volume.replica.clone(),
        base_generation,
        source_time_ms: known.filter(|_| base_generation > 0).map(|record| record.source_time_ms),
        would,
    }
}
