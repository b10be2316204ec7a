//! `blockferry pause JOB` and `blockferry resume JOB`: on the books, so that they hold with an agent or without one.

use super::arguments::{Common, PauseOptions, ResumeOptions};
use super::jobs;
use super::output::Output;
use super::when::{local, moments};
use crate::agent::book::Paused;
use crate::attempt::now_ms;
use crate::error::Result;
use crate::settings::local_time_zone;
use serde_json::json;

/// The schedule stands still; a run under way goes on.
pub fn pause(common: &Common, options: &PauseOptions, output: &Output) -> Result<()> {
    let (config, shelf) = jobs::open(common, &options.config)?;
    let job = config.job(&options.job)?;
    let since_ms = now_ms();
    let span = options.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let until_ms = span.map(|span| since_ms.saturating_add(span));
    let paused = Paused { since_ms, until_ms, by: who(), reason: options.reason.clone() };
    shelf.change(&job.name, |book| book.paused = Some(paused.clone()))?;
    output.line(|| {
        let mut line = json!({"type": "summary", "command": "pause", "job": job.name, "paused": paused});
        moments(&mut line);
        line
    });
    let until = until_ms
        .map_or_else(|| format!("until `blockferry resume {}`", job.name), |until| format!("until {}", local(until, &local_time_zone().0)));
    let running = shelf.runner(&job.name).map_or_else(String::new, |pid| format!("; the run of process {pid} goes on"));
    output.text(format!("{}: paused {until}{running}", job.name));
    Ok(())
}

/// The schedule goes on.
pub fn resume(common: &Common, options: &ResumeOptions, output: &Output) -> Result<()> {
    let (config, shelf) = jobs::open(common, &options.config)?;
    let job = config.job(&options.job)?;
    let now = now_ms();
    let was_paused = shelf.change(&job.name, |book| {
        let was = book.is_paused(now);
        book.paused = None;
        was
    })?;
    output.line(|| json!({"type": "summary", "command": "resume", "job": job.name, "was_paused": was_paused}));
    output.text(format!("{}: {}", job.name, if was_paused { "goes on" } else { "was not paused" }));
    Ok(())
}

/// Who typed it: the login name behind sudo, where there is one.
fn who() -> String {
    let from = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let own = || nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    from("SUDO_USER").or_else(own).unwrap_or_else(|| format!("uid {}", nix::unistd::getuid()))
}
