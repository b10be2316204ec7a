//! `blockferry run JOB…`: what the agent does by schedule, now and by hand or by a timer.

use super::arguments::{Common, RunOptions};
use super::bars::Bars;
use super::output::Output;
use super::when::local;
use super::{jobs, legs, signals};
use crate::agent::bench::Bench;
use crate::agent::outcome::{Cause, Failure, joint_exit};
use crate::agent::run;
use crate::attempt::now_ms;
use crate::error::{Error, Kind, Result};
use crate::settings::local_time_zone;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Runs the jobs one after the other. One that fails keeps none of the others from running; a signal does.
pub fn run(common: &Common, options: &RunOptions, output: &Output) -> Result<()> {
    let (config, shelf) = jobs::open(common, &options.jobs.config)?;
    let jobs = jobs::named(&config, &options.jobs)?;
    let stop = signals::stop_flag()?;
    let mut bench = Bench::new(shelf, common.io.into());
    (bench.overwrite, bench.idle_too) = (options.overwrite, options.idle_too);
    bench.change_log.clone_from(&common.log_file);
    let bench = Arc::new(bench);
    let cause = if options.scheduled { Cause::Schedule } else { Cause::Request };
    let mut failures: Vec<(String, Failure)> = Vec::new();
    for job in &jobs {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if let Some(word) = paused(&bench, &job.name)? {
            if options.scheduled {
                output.text(format!("{}: {word}; nothing was done", job.name));
                continue;
            }
            output.text(format!("{}: {word}; it is run because you ask for it", job.name));
        }
        let bars = Bars::show(output, &bench);
        let report = run::run(&bench, job, cause, &stop);
        drop(bars);
        let failure = match report {
            Ok(report) => {
                legs::show(output, "run", &report);
                report.verdict()
            }
            Err(error) => Some(Failure::from(&error)),
        };
        failures.extend(failure.map(|failure| (job.name.clone(), failure)));
    }
    verdict(&failures, jobs.len())
}

/// A word on a job's pause, while it holds.
fn paused(bench: &Bench, job: &str) -> Result<Option<String>> {
    let book = bench.shelf.read(job)?;
    Ok(book.paused.as_ref().filter(|_| book.is_paused(now_ms())).map(|paused| {
        let until = paused.until_ms.map_or_else(String::new, |until| format!(" until {}", local(until, &local_time_zone().0)));
        let reason = paused.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("paused by {}{until}{reason}", paused.by)
    }))
}

/// All the same: that code. Else some failed.
pub fn verdict(failures: &[(String, Failure)], jobs: usize) -> Result<()> {
    let Some((name, first)) = failures.first() else { return Ok(()) };
    if let Some((name, stopped)) = failures.iter().find(|(_, failure)| failure.kind() == Kind::Interrupted) {
        return Err(Error::new(Kind::Interrupted, format!("job {name}: {}", stopped.message)));
    }
    let all: Vec<&Failure> = failures.iter().map(|(_, failure)| failure).collect();
    let kind = joint_exit(&all, jobs).map_or(Kind::Failed, Kind::from_wire);
    let message = match failures.len() {
        1 => format!("job {name}: {}", first.message),
        number => format!("{number} of {jobs} jobs failed; the first, {name}: {}", first.message),
    };
    Err(Error::new(kind, message))
}
