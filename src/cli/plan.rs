//! `blockferry plan JOB…`: what a run would snapshot, send and remove, and why.

use super::arguments::{Common, PlanOptions};
use super::bars::Bars;
use super::output::Output;
use super::when::{local, moments};
use super::{jobs, run, signals};
use crate::agent::bench::Bench;
use crate::agent::outcome::{Cause, Failure, joint_exit};
use crate::agent::plan::{self, Plan, Prospect, Would};
use crate::attempt::Foreseen;
use crate::error::{Error, Result};
use crate::settings::local_time_zone;
use indicatif::HumanBytes;
use serde_json::json;
use std::sync::Arc;

/// Plans the jobs one after the other.
pub fn run(common: &Common, options: &PlanOptions, output: &Output) -> Result<()> {
    let (config, shelf) = jobs::open(common, &options.jobs.config)?;
    let jobs = jobs::named(&config, &options.jobs)?;
    let stop = signals::stop_flag()?;
    let bench = Arc::new(Bench::new(shelf, common.io.into()));
    let cause = if options.scheduled { Cause::Schedule } else { Cause::Request };
    let mut failures = Vec::new();
    for job in &jobs {
        let bars = Bars::show(output, &bench);
        let plan = plan::plan(&bench, job, cause, !options.brief, &stop);
        drop(bars);
        match plan {
            Ok(plan) => {
                show(output, &job.name, &plan);
                failures.extend(verdict(&plan).map(|failure| (job.name.clone(), failure)));
            }
            Err(error) => failures.push((job.name.clone(), Failure::from(&error))),
        }
    }
    run::verdict(&failures, jobs.len())
}

fn show(output: &Output, job: &str, plan: &Plan) {
    for hook in &plan.hooks {
        output.line(|| json!({"type": "hook", "job": job, "run": hook}));
        output.text(format!("{job}: calls `{hook}` around the snapshots"));
    }
    for (source, how) in &plan.volumes {
        let (word, bytes) = match how {
            Ok(Foreseen::AsItIs) => ("is read as it is, without a snapshot".to_owned(), None),
            Ok(Foreseen::Snapshot { cow_bytes: 0 }) => ("is read from a thin snapshot".to_owned(), Some(0)),
            Ok(Foreseen::Snapshot { cow_bytes }) => (format!("is read from a snapshot of {}", HumanBytes(*cow_bytes)), Some(*cow_bytes)),
            Err(error) => (format!("cannot be read: {}", error.chain()), None),
        };
        output.line(|| {
            let error = how.as_ref().err().map(Error::chain);
            json!({"type": "volume", "job": job, "source": source, "snapshot_bytes": bytes, "error": error})
        });
        output.text(format!("{}: {word}", source.display()));
    }
    for leg in &plan.legs {
        output.line(|| {
            let mut line = serde_json::to_value(leg).unwrap_or_default();
            (line["type"], line["job"]) = (json!("leg"), json!(job));
            moments(&mut line);
            line
        });
        output.text(format!("{} → {} at {}: {}", leg.source.display(), leg.replica, leg.receiver, words(leg)));
    }
    for snapshot in &plan.removed {
        output.line(|| json!({"type": "removed", "job": job, "snapshot": snapshot}));
        output.text(format!("{snapshot} is removed: a run that died left it"));
    }
    output.line(|| {
        let count = |is: fn(&Would) -> bool| plan.legs.iter().filter(|leg| is(&leg.would)).count();
        json!({
            "type": "summary", "command": "plan", "job": job,
            "send": count(|would| matches!(would, Would::Send { .. })), "idle": count(|would| *would == Would::Idle),
            "pass_over": count(|would| matches!(would, Would::PassOver { .. })),
            "fail": count(|would| matches!(would, Would::Fail { .. })),
        })
    });
    if plan.legs.iter().all(|leg| leg.would == Would::Idle) {
        output.text(format!("{job}: nothing to do"));
    }
}

fn words(leg: &Prospect) -> String {
    let since = match leg.source_time_ms {
        Some(ms) => format!("what changed since generation {} of {}", leg.base_generation, local(ms, &local_time_zone().0)),
        None => "a first copy".to_owned(),
    };
    match &leg.would {
        Would::Send { amounts: None } => since,
        Would::Send { amounts: Some(amounts) } => format!(
            "{since}: {} extents differ, would send {} blocks ({})",
            amounts.changed_extents,
            amounts.sent_blocks,
            HumanBytes(amounts.plain_bytes)
        ),
        Would::Idle => format!("generation {} is current (nothing was written since)", leg.base_generation),
        Would::PassOver { why } => format!("is passed over: {why}"),
        Would::Fail { failure } => format!("{since}: would fail: {}", failure.message),
    }
}

/// What a run would fail with, as things are now.
fn verdict(plan: &Plan) -> Option<Failure> {
    let failures: Vec<&Failure> = plan.legs.iter().filter_map(|leg| leg.would.failure()).collect();
    let (first, exit) = (failures.first()?, joint_exit(&failures, plan.legs.len())?);
    Some(Failure { exit, message: format!("{} of {} transfers would fail: {}", failures.len(), plan.legs.len(), first.message) })
}
