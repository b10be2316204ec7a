//! What waits to be told, and how often something was: both stand in the job's book.

use super::{Event, way};
use crate::agent::book::JobBook;
use crate::agent::config::{Job, Occasion};
use crate::limits::{NOTIFY_AGAIN, NOTIFY_AT_ONCE, NOTIFY_LAG_PAUSE, NOTIFY_TEXT_BYTES, NOTIFY_WAITING_MAX};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often an event of a job came since it was last over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// So many times.
    pub count: u64,
    /// The last time.
    pub last_ms: u64,
    /// When it was last put up to be told.
    pub told_ms: u64,
}

/// Something to be told on one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// What it is.
    pub what: Occasion,
    /// In words.
    pub message: String,
    /// The run that came to it.
    #[serde(default)]
    pub run_id: Option<String>,
    /// The exit code of what went wrong.
    #[serde(default)]
    pub exit: Option<u8>,
    /// The how many-eth time it is.
    pub count: u64,
    /// When it was: milliseconds since 1970.
    pub at_ms: u64,
    /// On which way, as the configuration has it.
    pub way: String,
}

/// Writes down what is to be told: counts the events and puts up those whose turn it is on every way that asks for
/// them. Pure; the caller makes the book durable.
pub fn note(book: &mut JobBook, job: &Job, events: &[Event], now_ms: u64) {
    for event in events {
        event.ends.iter().for_each(|what| {
            book.told.remove(what);
        });
        let count = match event.what {
            Occasion::Recovered => 1,
            what => {
                let told = book.told.entry(what).or_default();
                if !counts(told, what, now_ms) {
                    continue;
                }
                (told.count, told.last_ms) = (told.count + 1, now_ms);
                if told.count > NOTIFY_AT_ONCE && !over(told.told_ms, NOTIFY_AGAIN, now_ms) {
                    continue;
                }
                told.told_ms = now_ms;
                told.count
            }
        };
        for entry in job.notify.iter().filter(|entry| entry.on.contains(&event.what)) {
            let way = way::key(entry);
            // What waits already is old news: the same event is told once, as it is now.
            book.untold.retain(|untold| untold.what != event.what || untold.way != way);
            let (message, run_id) = (shortened(&event.message), event.run_id.clone());
            book.untold.push(Untold { what: event.what, message, run_id, exit: event.exit, count, at_ms: now_ms, way });
        }
        let surplus = book.untold.len().saturating_sub(NOTIFY_WAITING_MAX);
        book.untold.drain(..surplus);
    }
}

/// A lag is looked at every minute and is the same lag within the hour.
fn counts(told: &Told, what: Occasion, now_ms: u64) -> bool {
    what != Occasion::LagCritical || told.count == 0 || over(told.last_ms, NOTIFY_LAG_PAUSE, now_ms)
}

/// Whether so much time has passed. A clock that was set back counts as passed: told too often is better than never.
fn over(since_ms: u64, time: Duration, now_ms: u64) -> bool {
    now_ms < since_ms || u128::from(now_ms - since_ms) >= time.as_millis()
}

fn shortened(text: &str) -> String {
    if text.len() <= NOTIFY_TEXT_BYTES {
        return text.to_owned();
    }
    let at = (0..=NOTIFY_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::AgentConfig;

    fn job() -> Job {
        let text = r#"
            [[receiver]]
            name = "here"
            local = true
            [[job]]
            name = "db"
            receivers = ["here"]
            volumes = [{ source = "/srv/a.img", replica = "/srv/b.img" }]
            [[job.notify]]
            on = ["failed", "recovered", "lag-critical"]
            exec = ["/bin/page"]
            [[job.notify]]
            on = ["failed"]
            mail = "root"
        "#;
        AgentConfig::parse(&[("a.toml".into(), text.into())]).unwrap().jobs.remove(0)
    }

    fn event(what: Occasion, ends: &[Occasion]) -> Event {
        Event { what, message: "x".into(), run_id: None, exit: None, ends: ends.to_vec() }
    }

    const HOUR: u64 = 3_600_000;

    /// The hours at which an event that comes every hour is told.
    fn hours(what: Occasion, all: std::ops::Range<u64>) -> Vec<u64> {
        let (job, mut book) = (job(), JobBook::default());
        let mut told = Vec::new();
        for hour in all {
            book.untold.clear();
            note(&mut book, &job, &[event(what, &[])], (1000 + hour) * HOUR);
            if !book.untold.is_empty() {
                told.push(hour);
            }
        }
        told
    }

    #[test]
    fn what_goes_on_is_told_three_times_and_then_daily() {
        assert_eq!(hours(Occasion::Failed, 0..80), [0, 1, 2, 26, 50, 74]);
        assert_eq!(hours(Occasion::VerifyMismatch, 0..3), [] as [u64; 0], "nobody asked for it");
    }

    #[test]
    fn recovery_is_always_told_and_ends_the_count() {
        let (job, mut book) = (job(), JobBook::default());
        for round in 0..3 {
            for time in 0..5 {
                book.untold.clear();
                note(&mut book, &job, &[event(Occasion::Failed, &[])], round * 100 + time);
                assert_eq!(book.untold.len(), if time < 3 { 2 } else { 0 }, "round {round}, time {time}");
            }
            note(&mut book, &job, &[event(Occasion::Recovered, &[Occasion::Failed])], round * 100 + 50);
            assert_eq!((book.untold.len(), book.untold[0].what), (1, Occasion::Recovered));
        }
    }

    #[test]
    fn a_lag_that_is_looked_at_every_minute_is_one_lag_an_hour() {
        let (job, mut book) = (job(), JobBook::default());
        for minute in 0..59 {
            note(&mut book, &job, &[event(Occasion::LagCritical, &[])], 1000 * HOUR + minute * 60_000);
        }
        assert_eq!(book.told[&Occasion::LagCritical].count, 1);
        note(&mut book, &job, &[event(Occasion::LagCritical, &[])], 1001 * HOUR);
        assert_eq!(book.told[&Occasion::LagCritical].count, 2);
    }

    #[test]
    fn what_waits_is_bounded_and_the_last_word_counts() {
        let (job, mut book) = (job(), JobBook::default());
        for time in 0..3 {
            let long = Event { message: format!("{time}{}", "ä".repeat(NOTIFY_TEXT_BYTES)), ..event(Occasion::Failed, &[]) };
            note(&mut book, &job, &[long], time);
        }
        assert_eq!(book.untold.len(), 2);
        assert!(book.untold.iter().all(|untold| untold.message.starts_with("2ä") && untold.message.len() <= NOTIFY_TEXT_BYTES + 3));
        assert_eq!(book.untold[0].count, 3);
    }
}
