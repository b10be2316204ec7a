//! What a schedule promises of a replica's age, and when it has broken its word.
//!
//! Without an `rpo` of its own a job promises what its trigger does. A generation of the moment `s` is to be
//! replaced by the run of the next tick `n` behind `s`; half an interval later that is late, and two intervals
//! later a case for somebody. With even ticks that is a lag of 1.5 and of 3 intervals, the default `rpo` and twice of
//! it. Ticks are not always even: of `Mon..Fri 09..17:00` the generation of Friday 17:00 is as it should be until
//! Monday 09:00, whatever one and a half hours would say, and on Monday at 09:30 it is late, whatever one and a half
//! weekends would say. A window moves `n` to its next opening, and what a job may add to a start
//! (`random_delay`, `quiet_wait_max`) is added.

use crate::agent::book::JobBook;
use crate::agent::config::{Job, Trigger};
use crate::limits::CONTINUOUS_INTERVAL_MIN;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::time::Duration;

/// Lags from which a replica is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// A warning beyond this many milliseconds.
    pub warning_ms: u64,
    /// Critical beyond this many.
    pub critical_ms: u64,
}

/// How old a replica of the moment `since_ms` may become. `None`: nothing was promised.
pub fn limits(job: &Job, book: &JobBook, since_ms: u64, zone: &TimeZone) -> Option<Limits> {
    if let Some(rpo) = job.rpo {
        let warning_ms = millis(rpo);
        return Some(Limits { warning_ms, critical_ms: warning_ms.saturating_mul(2) });
    }
    let since = timestamp(since_ms)?;
    let interval = interval(job, book, since_ms, zone)?;
    let tick = match &job.trigger {
        Trigger::Calendar(calendar) => calendar.next_after(since, zone)?,
        _ => since.checked_add(interval).ok()?,
    };
    let start = job.window.map_or(Some(tick), |window| window.opening(tick, zone))?;
    let wait = if job.quiet_after.is_zero() { Duration::ZERO } else { job.quiet_wait_max };
    let allowed = Duration::try_from(start.duration_since(since)).ok()?.saturating_add(job.random_delay).saturating_add(wait);
    let after = |factor: u32| millis(allowed.saturating_add(interval.saturating_mul(factor) / 2));
    Some(Limits { warning_ms: after(1), critical_ms: after(4) })
}

/// The time from one run to the next behind a moment. `None` where no clock starts runs.
pub fn interval(job: &Job, book: &JobBook, since_ms: u64, zone: &TimeZone) -> Option<Duration> {
    match &job.trigger {
        Trigger::Calendar(calendar) => calendar.interval_at(timestamp(since_ms)?, zone),
        Trigger::Every(interval) => Some(*interval),
        // From end to start: how long a pass takes is known of the last one only.
        Trigger::Continuous(pause) => Some(pause.saturating_add(last_run(book)).max(CONTINUOUS_INTERVAL_MIN)),
        Trigger::After(_) | Trigger::Manual => None,
    }
}

/// Whether a clock starts the job's runs.
pub fn is_scheduled(job: &Job) -> bool {
    matches!(job.trigger, Trigger::Calendar(_) | Trigger::Every(_) | Trigger::Continuous(_))
}

/// How long the last run took.
pub fn last_run(book: &JobBook) -> Duration {
    let took = book.last.as_ref().map_or(0, |last| last.finished_ms.saturating_sub(last.started_ms));
    Duration::from_millis(took)
}

/// Milliseconds since 1970 as an instant, if it is one of our days.
pub fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()
}

/// A span in milliseconds.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::book::LastRun;
    use crate::agent::config::AgentConfig;

    fn job(lines: &str) -> Job {
        let text = format!(
            "[[receiver]]\nname = \"dr1\"\naddress = \"dr1\"\n[[job]]\nname = \"db\"\nreceivers = [\"dr1\"]\n{lines}\nvolumes = [{{ source = \"/dev/a\", replica = \"a\" }}]\n"
        );
        AgentConfig::parse(&[("a.toml".into(), text)]).unwrap().jobs.remove(0)
    }

    /// `warning critical`, as moments of the clock in Berlin.
    fn late(lines: &str, since: &str) -> String {
        late_with(&JobBook::default(), lines, since)
    }

    fn late_with(book: &JobBook, lines: &str, since: &str) -> String {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let since = zone.to_timestamp(since.parse::<jiff::civil::DateTime>().unwrap()).unwrap();
        let since_ms = since.as_millisecond() as u64;
        let Some(limits) = limits(&job(lines), book, since_ms, &zone) else { return "never".to_owned() };
        let show = |ms: u64| zone.to_datetime(timestamp(since_ms + ms).unwrap()).strftime("%a %H:%M:%S").to_string();
        format!("{}, {}", show(limits.warning_ms), show(limits.critical_ms))
    }

    #[test]
    fn late_is_half_an_interval_behind_the_next_tick_and_very_late_two() {
        // 2026-11-27 is a Friday. Every line: what the job says, the moment of its generation, when it is late.
        for (lines, since, expected) in [
            ("every = \"1h\"", "2026-11-27 12:00", "Fri 13:30:00, Fri 15:00:00"),
            ("schedule = \"hourly\"", "2026-11-27 12:00", "Fri 13:30:00, Fri 15:00:00"),
            // A snapshot that was late changes nothing about the next tick.
            ("schedule = \"hourly\"", "2026-11-27 12:10", "Fri 13:30:00, Fri 15:00:00"),
            ("cron = \"0 * * * *\"", "2026-11-27 12:00", "Fri 13:30:00, Fri 15:00:00"),
            // Over the weekend nothing is due; on Monday it is soon.
            ("schedule = \"Mon..Fri 09..17:00\"", "2026-11-27 17:00", "Mon 09:30:00, Mon 11:00:00"),
            // The hour before a day's pause.
            ("schedule = \"Mon..Fri 03:00\"", "2026-11-27 03:00", "Mon 15:00:00, Wed 03:00:00"),
            // Clocks are put back that night: 25 hours to the next tick, and a day to the one behind it.
            ("schedule = \"03:00\"", "2026-10-24 03:00", "Sun 15:00:00, Tue 03:00:00"),
            // The window is closed at 06:00; the next run is at its opening.
            ("every = \"1h\"\nwindow = { from = \"20:00\", to = \"06:00\" }", "2026-11-27 05:30", "Fri 20:30:00, Fri 22:00:00"),
            ("every = \"1h\"\nrandom_delay = \"60s\"", "2026-11-27 12:00", "Fri 13:31:00, Fri 15:01:00"),
            ("every = \"1h\"\nquiet_after = \"5s\"\nquiet_wait_max = \"2min\"", "2026-11-27 12:00", "Fri 13:32:00, Fri 15:02:00"),
            ("continuous = true\npause = \"1min\"", "2026-11-27 12:00", "Fri 12:07:30, Fri 12:15:00"),
            ("rpo = \"10min\"\nschedule = \"hourly\"", "2026-11-27 12:00", "Fri 12:10:00, Fri 12:20:00"),
            ("rpo = \"10min\"", "2026-11-27 12:00", "Fri 12:10:00, Fri 12:20:00"),
            ("", "2026-11-27 12:00", "never"),
            ("after = \"replica:a\"", "2026-11-27 12:00", "never"),
            ("schedule = \"2026-11-01 12:00\"", "2026-11-27 12:00", "never"),
        ] {
            assert_eq!(late(lines, since), expected, "{lines}, {since}");
        }
    }

    #[test]
    fn passes_back_to_back_may_take_as_long_as_the_last_one_did() {
        let last = LastRun { run_id: "r".into(), started_ms: 0, finished_ms: 19 * 60_000, failure: None };
        let book = JobBook { last: Some(last), ..JobBook::default() };
        let lines = "continuous = true\npause = \"1min\"";
        assert_eq!(late_with(&book, lines, "2026-11-27 12:00"), "Fri 12:30:00, Fri 13:00:00");
    }
}
