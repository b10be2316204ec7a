//! The jobs: a row for each, and below it what is wrong and what to type.

use crate::agent::health::{Activity, Health, Look, PairHealth, Seen};
use crate::agent::outcome::Failure;
use crate::cli::output::Output;
use crate::cli::text::{aligned, wrapped};
use crate::cli::when::{local, moments, soon, utc_or_null};
use crate::settings::about_duration;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::time::Duration;

/// Shows them all.
pub fn show(look: &Look, zone: &TimeZone, output: &Output) {
    for job in &look.jobs {
        output.line(|| line(job));
    }
    if output.json || look.jobs.is_empty() {
        return;
    }
    let heads = ["JOB", "HEALTH", "DATA", "LAG", "NOW"].map(str::to_owned);
    let rows: Vec<[String; 5]> = look.jobs.iter().map(|job| row(&job.health, look.now_ms, zone)).collect();
    let lines = aligned(std::iter::once(&heads).chain(&rows));
    output.text(&lines[0]);
    for (job, line) in look.jobs.iter().zip(&lines[1..]) {
        output.text(line);
        details(job, zone).iter().for_each(|line| output.text(line));
    }
}

fn row(health: &Health, now_ms: u64, zone: &TimeZone) -> [String; 5] {
    let lag = health.lag_ms.map_or("-".to_owned(), lag);
    [health.job.clone(), health.health.word().to_owned(), health.data.words().to_owned(), lag, now(&health.activity, now_ms, zone)]
}

fn now(activity: &Activity, now_ms: u64, zone: &TimeZone) -> String {
    let since = |since: &Option<u64>| since.map_or(String::new(), |since| format!(" since {}", soon(since, now_ms, zone)));
    let at = |ms: u64| if ms <= now_ms { "now".to_owned() } else { soon(ms, now_ms, zone) };
    match activity {
        Activity::Idle => "idle".to_owned(),
        Activity::Waiting { until_ms, .. } => format!("next run {}", at(*until_ms)),
        Activity::Retrying { until_ms } => format!("retry {}", at(*until_ms)),
        Activity::QuietWait { since_ms, .. } => format!("waits for quiet{}", since(since_ms)),
        Activity::Running { since_ms, .. } => format!("running{}", since(since_ms)),
        Activity::Paused { until_ms: None, .. } => "paused".to_owned(),
        Activity::Paused { until_ms: Some(until), .. } => format!("paused until {}", soon(*until, now_ms, zone)),
    }
}

fn details(job: &Seen, zone: &TimeZone) -> Vec<String> {
    let health = &job.health;
    let mut lines: Vec<String> = health.pairs.iter().flat_map(|pair| wrapped("  ", &of_pair(pair, health.pairs.len() > 1, zone))).collect();
    for reason in &health.reasons {
        lines.extend(wrapped("  ! ", &format!("{}: {}", reason.code, reason.message)));
    }
    // What failed as a whole, where no transfer and no reason tells it better.
    let is_told = |error: &Failure| {
        health.pairs.iter().any(|pair| pair.last_error.is_some())
            || health.reasons.iter().any(|reason| reason.message.contains(&error.message))
    };
    if let Some(error) = health.last_error.as_ref().filter(|error| !is_told(error)) {
        lines.extend(wrapped("  ! ", &format!("last error (exit {}): {}", error.exit, error.message)));
    }
    lines.extend(health.next_command.iter().map(|command| format!("  → {command}")));
    lines
}

fn of_pair(pair: &PairHealth, with_lag: bool, zone: &TimeZone) -> String {
    let place = format!("{} → {}:{}", pair.source.display(), pair.receiver, pair.replica);
    let Some(source_time) = pair.source_time_ms else { return format!("{place}: {}", pair.data.words()) };
    let unchanged = pair.unchanged_ms.filter(|at| *at > source_time);
    let unchanged = unchanged.map_or(String::new(), |at| format!(", unchanged until {}", local(at, zone)));
    let behind = if with_lag { pair.lag_ms.map_or(String::new(), |ms| format!(", lag {}", lag(ms))) } else { String::new() };
    format!("{place}: generation {} of {}{unchanged}{behind}", pair.generation, local(source_time, zone))
}

fn lag(ms: u64) -> String {
    about_duration(Duration::from_millis(ms))
}

/// The JSON line. Times are written for programs, spans stay milliseconds.
fn line(job: &Seen) -> Value {
    let (book, mut line) = (&job.book, json!(job.health));
    line["type"] = "job".into();
    moments(&mut line);
    line["last_run"] = book.last.as_ref().map_or(Value::Null, |last| {
        json!({
            "run_id": last.run_id, "started": utc_or_null(Some(last.started_ms)), "finished": utc_or_null(Some(last.finished_ms)),
            "exit": last.failure.as_ref().map_or(0, |failure| failure.exit),
        })
    });
    line["last_success"] = utc_or_null(book.last_success_ms);
    line["failures"] = book.failures.into();
    line["next_run"] = utc_or_null(book.next_due_ms);
    line["skipped_ticks"] = book.skipped_ticks.into();
    line["verify"] =
        json!({"last": utc_or_null(book.verify.last_ms), "whole": utc_or_null(book.verify.whole_ms), "done": book.verify.done});
    line
}
