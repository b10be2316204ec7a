//! `blockferry history`: what became of the last runs.

use super::arguments::{Common, HistoryOptions};
use super::configured::Configured;
use super::output::Output;
use super::text::{aligned, wrapped};
use super::when::{local, moments};
use crate::agent::history;
use crate::agent::outcome::{LegResult, RunReport};
use crate::error::{Kind, Result};
use crate::settings::{about_duration, amount};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::time::Duration;

/// Shows them, the last one at the end.
pub fn run(common: &Common, options: &HistoryOptions, output: &Output) -> Result<()> {
    let configured = Configured::find(common, options.config.as_deref())?;
    let (zone, _) = crate::settings::local_time_zone();
    let mut runs = history::read(&configured.shelf, None)?;
    runs.retain(|run| options.jobs.is_empty() || options.jobs.contains(&run.job));
    runs.drain(..runs.len().saturating_sub(options.last));
    let failed = runs.iter().filter(|run| run.verdict().is_some()).count();
    runs.iter().for_each(|run| output.line(|| line(run)));
    output.line(|| json!({"type": "summary", "command": "history", "runs": runs.len(), "failed": failed}));
    if runs.is_empty() {
        let of = if options.jobs.is_empty() { String::new() } else { format!(" of {}", options.jobs.join(", ")) };
        output.text(format!("no run{of} is remembered in {}", configured.shelf.folder().display()));
        return Ok(());
    }
    let heads = ["STARTED", "JOB", "RESULT", "TOOK", "SENT", "CAUSE"].map(str::to_owned);
    let rows: Vec<[String; 6]> = runs.iter().map(|run| row(run, &zone)).collect();
    let lines = aligned(std::iter::once(&heads).chain(&rows));
    output.text(&lines[0]);
    for (run, line) in runs.iter().zip(&lines[1..]) {
        output.text(line);
        troubles(run).iter().for_each(|line| output.text(line));
    }
    Ok(())
}

fn row(run: &RunReport, zone: &TimeZone) -> [String; 6] {
    let result = match run.verdict() {
        None => "ok".to_owned(),
        // The process ended with the number of its signal, and a run of the agent with none.
        Some(failure) if failure.kind() == Kind::Interrupted => "stopped".to_owned(),
        Some(failure) => format!("exit {}", failure.exit),
    };
    let took = about_duration(Duration::from_millis(run.finished_ms.saturating_sub(run.started_ms)));
    let cause = json!(run.cause).as_str().unwrap_or_default().to_owned();
    [local(run.started_ms, zone), run.job.clone(), result, took, sent(run), cause]
}

/// What went over the wire, or that there was nothing to send.
fn sent(run: &RunReport) -> String {
    let sent = run.legs.iter().filter_map(|leg| match &leg.result {
        LegResult::Committed { amounts, .. } => Some(amounts.wire_bytes),
        _ => None,
    });
    let committed: Vec<u64> = sent.collect();
    let is_idle = run.legs.iter().any(|leg| matches!(leg.result, LegResult::Idle { .. }));
    match (committed.is_empty(), is_idle) {
        (false, _) => amount::about(committed.iter().sum()),
        (true, true) => "unchanged".to_owned(),
        (true, false) => "-".to_owned(),
    }
}

fn troubles(run: &RunReport) -> Vec<String> {
    let of_run = run.failure.iter().map(|failure| failure.message.clone());
    let of_legs = run.legs.iter().filter_map(|leg| {
        let place = format!("{} to {}", leg.source.display(), leg.receiver);
        match &leg.result {
            LegResult::Failed { failure } => Some(format!("{place}: {}", failure.message)),
            LegResult::PassedOver { why } => Some(format!("{place}: passed over: {why}")),
            _ => None,
        }
    });
    of_run.chain(of_legs).flat_map(|text| wrapped("  ! ", &text)).collect()
}

fn line(run: &RunReport) -> Value {
    let mut line = json!(run);
    line["type"] = "run".into();
    line["exit"] = run.verdict().map_or(0, |failure| failure.exit).into();
    moments(&mut line);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::outcome::{Amounts, Cause, Failure, Leg};
    use crate::cli::when::utc;

    fn report(results: Vec<LegResult>) -> RunReport {
        let leg = |result| Leg {
            source: "vg0/db".into(),
            receiver: "dr1".into(),
            replica: "db".into(),
            relationship: None,
            result,
            seconds: 1.0,
        };
        let legs = results.into_iter().map(leg).collect();
        RunReport { run_id: "r".into(), job: "db".into(), cause: Cause::CatchUp, started_ms: 0, finished_ms: 61_000, legs, failure: None }
    }

    fn committed(wire_bytes: u64) -> LegResult {
        let amounts = Amounts { wire_bytes, ..Amounts::default() };
        LegResult::Committed { generation: 2, source_time_ms: 1, mode: "journal".into(), amounts }
    }

    #[test]
    fn a_row_says_when_what_and_how_much() {
        let row = |results| row(&report(results), &TimeZone::UTC).join(" | ");
        assert_eq!(row(vec![committed(1 << 20), committed(1 << 19)]), "1970-01-01 00:00:00 UTC | db | ok | 1 min 1 s | 1.5 MiB | catch-up");
        assert!(row(vec![LegResult::Idle { generation: 2 }]).contains(" | unchanged | "));
        let failed = || LegResult::Failed { failure: Failure { exit: 4, message: "dr1 is away".into() } };
        assert!(row(vec![failed()]).contains(" | exit 4 | 1 min 1 s | - | "));
        assert!(row(vec![failed(), committed(0)]).contains(" | exit 3 | "));
        assert_eq!(troubles(&report(vec![failed(), committed(0)])), ["  ! vg0/db to dr1: dr1 is away"]);
        assert_eq!(line(&report(vec![committed(7)]))["legs"][0]["source_time"], utc(1));
    }
}
