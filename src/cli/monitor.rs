//! `blockferry monitor`: one line as monitoring plug-ins print it, and their exit codes.

use super::arguments::{Common, MonitorOptions};
use super::configured::Configured;
use super::output::{Output, print};
use crate::agent::config::AGENT_TOML;
use crate::agent::health::{Health, Level, Look, Reason, promoted};
use crate::error::{Error, Kind, Result};
use serde_json::json;
use std::collections::BTreeSet;

/// Prints the line; the exit code is the health. What keeps it from looking is unknown, never an alarm and never well.
pub fn run(common: &Common, options: &MonitorOptions, output: &Output) -> u8 {
    let (level, text, figures) = judge(common, options).unwrap_or_else(|error| (Level::Unknown, error.chain(), Vec::new()));
    let code = level.nagios();
    if output.json {
        output.line(|| json!({"type": "summary", "command": "monitor", "health": level, "message": text, "performance": figures}));
        output.line(|| json!({"type": "exit", "code": code}));
    } else {
        let figures = if figures.is_empty() { String::new() } else { format!(" | {}", figures.join(" ")) };
        print(&format!("BLOCKFERRY {} - {}{figures}", level.word().to_uppercase(), one_line(&text)));
    }
    code
}

fn judge(common: &Common, options: &MonitorOptions) -> Result<(Level, String, Vec<String>)> {
    let configured = Configured::find(common, options.config.as_deref())?;
    let (zone, _) = crate::settings::local_time_zone();
    let look = Look::now(&configured.shelf, &configured.jobs(&options.jobs)?, &zone)?;
    let mut others: Vec<Reason> = Vec::new();
    if options.jobs.is_empty() {
        others.extend(look.replicas.iter().filter_map(promoted));
        others.extend(look.unreadable.iter().cloned());
        if look.jobs.is_empty() && look.replicas.is_empty() && look.unreadable.is_empty() {
            let message = format!(
                "nothing to look at: no job in {AGENT_TOML} (--config names another file), no replica in {}",
                configured.shelf.state().path().display()
            );
            return Err(Error::new(Kind::Usage, message));
        }
    }
    let healths: Vec<&Health> = look.jobs.iter().map(|job| &job.health).collect();
    let level = healths.iter().map(|health| health.health).chain(others.iter().map(|reason| reason.level)).max().unwrap_or(Level::Ok);
    Ok((level, words(&healths, &others, look.replicas.len()), healths.iter().map(|health| figure(health)).collect()))
}

/// The worst first. A message that several jobs share is said once.
fn words(healths: &[&Health], others: &[Reason], replicas: usize) -> String {
    let of_jobs = healths.iter().flat_map(|health| health.reasons.iter().map(|reason| (Some(health.job.as_str()), reason)));
    let mut troubles: Vec<(Option<&str>, &Reason)> =
        of_jobs.chain(others.iter().map(|reason| (None, reason))).filter(|(_, reason)| reason.level > Level::Ok).collect();
    troubles.sort_by_key(|(_, reason)| std::cmp::Reverse(reason.level));
    let mut said = BTreeSet::new();
    troubles.retain(|(_, reason)| said.insert(&reason.message));
    if troubles.is_empty() {
        let oldest = healths.iter().filter_map(|health| Some((health.lag_ms?, &health.job))).max();
        let oldest = oldest.map_or(String::new(), |(ms, job)| format!(", the oldest replica is {} old ({job})", span(ms)));
        return match (healths.len(), replicas) {
            (0, 1) => "1 replica".to_owned(),
            (0, replicas) => format!("{replicas} replicas"),
            (1, _) => format!("1 job{oldest}"),
            (jobs, _) => format!("{jobs} jobs{oldest}"),
        };
    }
    let say = |(job, reason): &(Option<&str>, &Reason)| {
        format!("{}{}: {}", job.map_or(String::new(), |job| format!("{job} ")), reason.code, reason.message)
    };
    troubles.iter().map(say).collect::<Vec<_>>().join("; ")
}

/// `'db'=7800s;5400;10800;0`: seconds of lag, and the limits where there are some.
fn figure(health: &Health) -> String {
    let seconds = |ms: Option<u64>| ms.map_or(String::new(), |ms| (ms / 1000).to_string());
    let lag = health.lag_ms.map_or("U".to_owned(), |ms| format!("{}s", ms / 1000));
    format!("'{}'={lag};{};{};0", health.job, seconds(health.limits.lag_warning_ms), seconds(health.limits.lag_critical_ms))
}

fn span(ms: u64) -> String {
    crate::settings::about_duration(std::time::Duration::from_millis(ms))
}

/// A bar would begin the figures, a second line is for others.
fn one_line(text: &str) -> String {
    text.replace('|', "/").split_whitespace().collect::<Vec<_>>().join(" ")
}
