//! `blockferry abort JOB`: stops the job's run, and says where it stands.

use super::arguments::{AbortOptions, Common};
use super::output::Output;
use super::when::{local, utc_or_null};
use super::{jobs, signals};
use crate::agent::abort::{Aborted, abort};
use crate::error::{Kind, Result};
use crate::settings::local_time_zone;
use serde_json::json;

/// Stops the run and waits for its end.
pub fn run(common: &Common, options: &AbortOptions, output: &Output) -> Result<()> {
    let (config, shelf) = jobs::open(common, &options.config)?;
    let name = &options.job;
    // A job that was taken off the list may still run.
    if shelf.runner(name).is_none() {
        config.job(name)?;
    }
    let stop = signals::stop_flag()?;
    let (was_running, book) = match abort(&shelf, name, &stop)? {
        Aborted::Nothing => (false, shelf.read(name)?),
        Aborted::Ended(book) => (true, *book),
    };
    let failure = book.last.as_ref().and_then(|last| last.failure.as_ref()).filter(|_| was_running);
    let stopped = failure.is_some_and(|failure| failure.kind() == Kind::Interrupted);
    output.line(|| {
        json!({
            "type": "summary", "command": "abort", "job": name, "was_running": was_running, "stopped": stopped,
            "message": failure.map(|failure| &failure.message), "last_success": utc_or_null(book.last_success_ms),
        })
    });
    if !was_running {
        output.text(format!("{name}: no run is under way"));
        return Ok(());
    }
    let what = match failure {
        _ if stopped => "stopped; what came is kept, and the next run goes on from there".to_owned(),
        None => "its run ended before it could be stopped".to_owned(),
        Some(failure) => format!("its run ended with exit {}: {}", failure.exit, failure.message),
    };
    output.text(format!("{name}: {what}"));
    let (zone, _) = local_time_zone();
    let current = book.last_success_ms.map_or_else(|| "never yet".to_owned(), |at| local(at, &zone));
    output.text(format!("  all replicas were last current: {current}; the schedule goes on, `blockferry pause {name}` holds it"));
    Ok(())
}
