//! `blockferry status`: the jobs and how they are, then the pairs that are remembered here.

mod jobs;
mod pairs;

use super::arguments::{Common, StatusOptions};
use super::configured::Configured;
use super::output::Output;
use super::signals;
use crate::agent::health::{Level, Look};
use crate::error::Result;
use crate::limits::STOP_POLL;
use jiff::tz::TimeZone;
use serde_json::json;
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Shows it once, or again and again until a signal comes.
pub fn run(common: &Common, options: &StatusOptions, output: &Output) -> Result<()> {
    let (zone, warning) = crate::settings::local_time_zone();
    warning.iter().for_each(|word| output.warn(word));
    let Some(seconds) = options.watch else { return show(common, options, output, &zone) };
    let stop = signals::stop_flag()?;
    loop {
        if !output.json && std::io::stdout().is_terminal() {
            // Home, and whatever stood below it.
            super::output::print("\x1b[H\x1b[2J");
        }
        show(common, options, output, &zone)?;
        let next = Instant::now() + Duration::from_secs(u64::from(seconds));
        while Instant::now() < next {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(STOP_POLL.min(next.saturating_duration_since(Instant::now())));
        }
        output.text("");
    }
}

fn show(common: &Common, options: &StatusOptions, output: &Output, zone: &TimeZone) -> Result<()> {
    let configured = Configured::find(common, options.config.as_deref())?;
    let look = Look::now(&configured.shelf, &configured.jobs(&options.jobs)?, zone)?;
    jobs::show(&look, zone, output);
    // Who asks for a job asks for nothing else.
    if options.jobs.is_empty() {
        let has_pairs = !look.sources.is_empty() || !look.replicas.is_empty();
        if has_pairs && !look.jobs.is_empty() {
            output.text("");
        }
        pairs::show(&look, configured.shelf.state(), zone, output);
        // Without a configuration there is none that a book could be missing from.
        look.strangers.iter().filter(|_| configured.config.is_some()).for_each(|reason| note(reason, output));
        look.unreadable.iter().for_each(|reason| note(reason, output));
    }
    let worst = look.jobs.iter().map(|job| job.health.health).chain(look.unreadable.iter().map(|reason| reason.level)).max();
    output.line(|| {
        json!({
            "type": "summary", "command": "status", "health": worst.unwrap_or(Level::Ok), "agent_pid": look.agent,
            "jobs": look.jobs.len(), "sources": look.sources.len(), "replicas": look.replicas.len(),
        })
    });
    Ok(())
}

fn note(reason: &crate::agent::health::Reason, output: &Output) {
    output.line(|| json!({"type": "note", "code": reason.code, "level": reason.level, "message": reason.message}));
    output.text(format!("{}: {}", reason.code, reason.message));
}
