//! When a job is due next, and why: a function of its trigger, of what its book remembers and of the clock that
//! is handed in. Nothing here looks at a clock, sleeps or rolls dice, so a year of it is tried in a second
//! (`year`).
//!
//! A tick is answered by any run that began at or after it, whoever began it. From there follows the rest:
//! ticks that passed while nobody looked are one run (`persistent`) or none; those that passed while a run was
//! under way are skipped and counted; a retry lies between ticks and never holds one up.
//!
//! Clocks are put. Forwards, that is downtime. Backwards, what is remembered lies in the future: a calendar
//! leaves out the one tick that was answered before, and beyond that everything counts from the moment at which
//! the jump was noticed (`since_ms`), so that no clock that was once wrong by years silences a job.

mod backoff;
mod ticks;
mod verify;
#[cfg(test)]
mod year;

use super::book::JobBook;
use super::config::{Job, Trigger};
use super::outcome::{Cause, is_transient};
use crate::error::Kind;
use crate::limits::{CATCH_UP_SPREAD, CONTINUOUS_PAUSE_MIN};
use backoff::backoff_ms;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::time::Duration;
use ticks::Ticks;

pub use backoff::host_seed;
pub use verify::verify_due;

/// What a job's next run is reckoned with beside its own book.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Now.
    pub now_ms: u64,
    /// Since when somebody has looked at the schedule: the start of the agent, or the last jump of the clock. Who
    /// only wants a forecast says now.
    pub since_ms: u64,
    /// Where times of the day are meant.
    pub zone: &'a TimeZone,
    /// This host, for what is to differ from host to host: [`host_seed`].
    pub host: u64,
    /// Since when a commit of the replica waits that the job comes after.
    pub commit_ms: Option<u64>,
}

/// When, and why then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Milliseconds since 1970; in the past where it is high time. `None`: nothing comes by itself.
    pub at_ms: Option<u64>,
    /// Why then, or why never.
    pub why: Why,
    /// What the run is to be called.
    pub cause: Cause,
}

/// Why a run comes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A tick, or the interval is over.
    Schedule,
    /// Ticks passed while nobody looked.
    CatchUp,
    /// The last run failed, and trying again may help.
    Retry,
    /// The agent itself was stopped in the middle of the last run.
    Unfinished,
    /// The replica that it reads has a new generation.
    Commit,
    /// It was due before, and its window opens then.
    Window,
    /// An operator paused it; the pause ends then.
    Paused,
    /// It comes with the next commit of the replica that it reads.
    AwaitsCommit,
    /// A person or a timer starts it.
    Manual,
    /// Its calendar has no further tick.
    Over,
}

impl Why {
    /// As the book keeps it.
    pub fn name(self) -> &'static str {
        match self {
            Why::Schedule => "schedule",
            Why::CatchUp => "catch-up",
            Why::Retry => "retry",
            Why::Unfinished => "unfinished",
            Why::Commit => "commit",
            Why::Window => "window",
            Why::Paused => "paused",
            Why::AwaitsCommit => "awaits-commit",
            Why::Manual => "manual",
            Why::Over => "over",
        }
    }
}

impl Due {
    fn at(at_ms: u64, why: Why, cause: Cause) -> Due {
        Due { at_ms: Some(at_ms), why, cause }
    }

    /// Whether a run may begin now.
    pub fn is_now(&self, now_ms: u64) -> bool {
        self.why != Why::Paused && self.at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// When the job is due. While a run of it is under way the answer means nothing.
pub fn next(job: &Job, book: &JobBook, view: &View<'_>) -> Due {
    if book.is_paused(view.now_ms) {
        let until_ms = book.paused.as_ref().and_then(|paused| paused.until_ms);
        return Due { at_ms: until_ms, why: Why::Paused, cause: Cause::Schedule };
    }
    let planned = [unfinished(book, view), tick(job, book, view), retry(job, book, view)];
    match planned.into_iter().flatten().min_by_key(|due| due.at_ms) {
        Some(due) => in_window(job, due, view),
        None => Due { at_ms: None, why: silence(&job.trigger), cause: Cause::Schedule },
    }
}

/// The ticks that passed between the start and the end of a run: nothing will answer them.
pub fn skipped(job: &Job, started_ms: u64, finished_ms: u64, view: &View<'_>) -> u64 {
    match &job.trigger {
        Trigger::Calendar(calendar) => Ticks::of(job, calendar, view).count(started_ms, finished_ms),
        Trigger::Every(every) => finished_ms.saturating_sub(started_ms) / ms(*every).max(1),
        Trigger::Continuous(_) | Trigger::After(_) | Trigger::Manual => 0,
    }
}

fn silence(trigger: &Trigger) -> Why {
    match trigger {
        Trigger::After(_) => Why::AwaitsCommit,
        Trigger::Manual => Why::Manual,
        _ => Why::Over,
    }
}

/// Runs begin inside the window. What is late is asked for now: it may have closed meanwhile.
fn in_window(job: &Job, due: Due, view: &View<'_>) -> Due {
    let (Some(window), Some(at_ms)) = (&job.window, due.at_ms) else { return due };
    let from = stamp(at_ms.max(view.now_ms));
    match window.opening(from, view.zone) {
        Some(opens) if opens > from => Due::at(ms_of(opens), Why::Window, due.cause),
        Some(_) => due,
        None => Due { at_ms: None, why: Why::Over, cause: due.cause },
    }
}

/// A run that the agent's own end cut short is taken up again, whatever the schedule says.
fn unfinished(book: &JobBook, view: &View<'_>) -> Option<Due> {
    let last = book.last.as_ref()?;
    let cut = book.unfinished.as_ref() == Some(&last.run_id);
    cut.then(|| Due::at(view.since_ms.min(view.now_ms), Why::Unfinished, Cause::CatchUp))
}

fn retry(job: &Job, book: &JobBook, view: &View<'_>) -> Option<Due> {
    let last = book.last.as_ref().filter(|_| job.trigger != Trigger::Manual && may_retry(book))?;
    let base = if last.finished_ms > view.now_ms { view.since_ms } else { last.finished_ms };
    let wait = backoff_ms(&job.retry, book.failures, view.host, &job.name, &last.run_id);
    Some(Due::at(base.saturating_add(wait), Why::Retry, Cause::Retry))
}

/// Whether trying again may help where nobody does anything. One that was stopped waits for its next tick.
fn may_retry(book: &JobBook) -> bool {
    let Some(failure) = book.last.as_ref().and_then(|last| last.failure.as_ref()) else { return false };
    let helps = |kind: Kind| is_transient(kind) && kind != Kind::Interrupted;
    match failure.kind() {
        Kind::Partial => book.legs.iter().filter_map(|leg| leg.failure.as_ref()).any(|failure| helps(failure.kind())),
        kind => helps(kind),
    }
}

/// The start that answered all ticks before it. The tick is remembered beside the run: a clock that is put back
/// by a moment just after it must not bring it again.
fn answered(book: &JobBook) -> Option<u64> {
    book.last.as_ref().map(|last| last.started_ms).max(book.served_ms)
}

fn tick(job: &Job, book: &JobBook, view: &View<'_>) -> Option<Due> {
    match &job.trigger {
        Trigger::Calendar(calendar) => calendar_tick(&Ticks::of(job, calendar, view), job, book, view),
        Trigger::Every(every) => Some(interval_tick(job, ms(*every).max(1), book, view)),
        Trigger::Continuous(pause) => Some(next_pass(job, *pause, book, view)?),
        Trigger::After(_) => {
            let at = view.commit_ms?.saturating_add(Ticks::spread(job, view, job.random_delay));
            Some(Due::at(at, Why::Commit, Cause::Commit))
        }
        Trigger::Manual => None,
    }
}

fn calendar_tick(ticks: &Ticks<'_>, job: &Job, book: &JobBook, view: &View<'_>) -> Option<Due> {
    let first_seen = book.scheduled_since_ms.unwrap_or(view.since_ms).min(view.now_ms);
    let mut reference = answered(book).unwrap_or(first_seen);
    if reference > view.now_ms && ticks.more_than_one(view.since_ms, reference) {
        reference = view.since_ms;
    }
    let finished = book.last.as_ref().map_or(0, |last| last.finished_ms);
    let under_way = if finished > view.now_ms { 0 } else { finished };
    let forgotten = if job.persistent { 0 } else { view.since_ms };
    // No on-time moment is later than its tick by more than the random delay: this only saves steps.
    let passed = under_way.max(forgotten).saturating_sub(ms(job.random_delay)).saturating_sub(1);
    let mut tick = ticks.after(reference.max(passed))?;
    while tick.on_time_ms <= under_way && under_way > 0 || tick.on_time_ms < forgotten {
        tick = ticks.after(tick.at_ms)?;
    }
    Some(on_time(tick.on_time_ms, tick.delay_ms, view))
}

fn interval_tick(job: &Job, every: u64, book: &JobBook, view: &View<'_>) -> Due {
    let delay = Ticks::spread(job, view, job.random_delay.min(Duration::from_millis(every)));
    let Some(started) = answered(book) else {
        let first_seen = book.scheduled_since_ms.unwrap_or(view.since_ms).min(view.now_ms);
        return Due::at(first_seen.max(view.since_ms).saturating_add(delay), Why::Schedule, Cause::Schedule);
    };
    if started > view.now_ms {
        return Due::at(view.since_ms.saturating_add(every), Why::Schedule, Cause::Schedule);
    }
    // Those that came while the run was under way are skipped, and without persistence those before we looked.
    let finished = book.last.as_ref().map_or(0, |last| last.finished_ms).min(view.now_ms);
    let forgotten = if job.persistent { 0 } else { view.since_ms };
    let passed = finished.max(forgotten).saturating_sub(started) / every;
    on_time(started.saturating_add(every.saturating_mul(passed + 1)), delay, view)
}

/// At its time, or where that passed while nobody looked: as soon as somebody does, spread as ticks are.
fn on_time(at_ms: u64, delay_ms: u64, view: &View<'_>) -> Due {
    if at_ms >= view.since_ms {
        return Due::at(at_ms, Why::Schedule, Cause::Schedule);
    }
    Due::at(view.since_ms.saturating_add(delay_ms.min(ms(CATCH_UP_SPREAD))), Why::CatchUp, Cause::CatchUp)
}

/// The pass after the last one. One that failed is the back-off's; one that was stopped, or of which everything waits for
/// an operator, is looked at as seldom as the longest back-off.
fn next_pass(job: &Job, pause: Duration, book: &JobBook, view: &View<'_>) -> Option<Due> {
    let Some(last) = &book.last else {
        return Some(Due::at(view.since_ms.saturating_add(Ticks::spread(job, view, job.random_delay)), Why::Schedule, Cause::Schedule));
    };
    let mut wait = ms(pause.max(CONTINUOUS_PAUSE_MIN));
    if may_retry(book) {
        return None;
    }
    // Where one of several waits, the others go on at their pace.
    let failed_whole = last.failure.as_ref().is_some_and(|failure| failure.kind() != Kind::Partial);
    if failed_whole || !book.legs.is_empty() && book.legs.iter().all(|leg| leg.failure.is_some()) {
        wait = wait.max(ms(job.retry.max));
    }
    let base = if last.finished_ms > view.now_ms { view.since_ms } else { last.finished_ms };
    Some(Due::at(base.saturating_add(wait), Why::Schedule, Cause::Schedule))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time of ours as jiff's; one beyond its years is its last.
fn stamp(at_ms: u64) -> Timestamp {
    i64::try_from(at_ms).ok().and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or(Timestamp::MAX)
}

fn ms_of(stamp: Timestamp) -> u64 {
    u64::try_from(stamp.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::year::{NIGHTLY, QUARTERS, at, job, ran, view};
    use super::*;
    use crate::agent::book::{LegBook, Paused};
    use crate::agent::outcome::Failure;

    fn failed(mut book: JobBook, exit: u8, failures: u32) -> JobBook {
        let last = book.last.as_mut().unwrap();
        last.failure = Some(Failure { exit, message: "no".into() });
        book.failures = failures;
        book
    }

    fn is(due: Due, time: &str, why: Why) {
        assert_eq!((due.at_ms.map(stamp), due.why), (Some(stamp(at(time))), why));
    }

    #[test]
    fn a_tick_is_answered_by_any_run_that_began_after_it() {
        let nightly = job(NIGHTLY);
        let now = view("2026-11-24 12:00", "2026-11-20 00:00");
        is(next(&nightly, &ran("2026-11-24 02:30", "2026-11-24 02:40"), &now), "2026-11-25 02:30", Why::Schedule);
        // By hand before the tick: the tick comes all the same.
        is(next(&nightly, &ran("2026-11-24 01:30", "2026-11-24 01:40"), &now), "2026-11-24 02:30", Why::Schedule);
        // Never run: the first tick since the job is known.
        let new = JobBook { scheduled_since_ms: Some(at("2026-11-24 11:00")), ..JobBook::default() };
        is(next(&nightly, &new, &now), "2026-11-25 02:30", Why::Schedule);
    }

    #[test]
    fn downtime_is_one_run_or_none() {
        let book = ran("2026-11-20 02:30", "2026-11-20 02:40");
        let up = view("2026-11-24 12:00", "2026-11-24 12:00");
        is(next(&job(NIGHTLY), &book, &up), "2026-11-24 12:00", Why::CatchUp);
        is(next(&job(&format!("{NIGHTLY}\npersistent = false")), &book, &up), "2026-11-25 02:30", Why::Schedule);
        let every = "every = \"6h\"";
        is(next(&job(every), &book, &up), "2026-11-24 12:00", Why::CatchUp);
        is(next(&job(&format!("{every}\npersistent = false")), &book, &up), "2026-11-24 14:30", Why::Schedule);
    }

    #[test]
    fn a_long_run_skips_its_ticks_and_they_are_counted() {
        for trigger in [QUARTERS, "every = \"15min\""] {
            let (job, now) = (job(trigger), view("2026-11-24 12:50", "2026-11-20 00:00"));
            is(next(&job, &ran("2026-11-24 12:00", "2026-11-24 12:50"), &now), "2026-11-24 13:00", Why::Schedule);
            assert_eq!(skipped(&job, at("2026-11-24 12:00"), at("2026-11-24 12:50"), &now), 3, "{trigger}");
            assert_eq!(skipped(&job, at("2026-11-24 12:00"), at("2026-11-24 12:05"), &now), 0, "{trigger}");
        }
    }

    #[test]
    fn a_failure_is_tried_again_between_ticks_and_holds_none_up() {
        let (nightly, now) = (job(NIGHTLY), view("2026-11-24 02:31", "2026-11-20 00:00"));
        let book = ran("2026-11-24 02:30", "2026-11-24 02:31");
        let wait = |failures| {
            let due = next(&nightly, &failed(book.clone(), 4, failures), &now);
            assert_eq!((due.why, due.cause), (Why::Retry, Cause::Retry));
            (due.at_ms.unwrap() - at("2026-11-24 02:31")) / 1000
        };
        assert!((21..=30).contains(&wait(1)) && (42..=60).contains(&wait(2)) && (1260..=1800).contains(&wait(30)));
        // The next tick comes before a long back-off.
        let quarters = job(QUARTERS);
        is(next(&quarters, &failed(book.clone(), 4, 30), &now), "2026-11-24 02:45", Why::Schedule);
        for waits in [6, 8, 2, 130] {
            is(next(&nightly, &failed(book.clone(), waits, 1), &now), "2026-11-25 02:30", Why::Schedule);
        }
        // Of several volumes one may be helped.
        let leg = |exit| LegBook {
            source: "vg0/db".into(),
            receiver: "dr1".into(),
            replica: "db".into(),
            tried_ms: 0,
            failure: Some(Failure { exit, message: "no".into() }),
            failures: 1,
            tried: String::new(),
        };
        let partial = |legs: Vec<LegBook>| next(&nightly, &JobBook { legs, ..failed(book.clone(), 3, 1) }, &now).why;
        assert_eq!((partial(vec![leg(6), leg(4)]), partial(vec![leg(6), leg(8)])), (Why::Retry, Why::Schedule));
        assert_eq!(next(&job(""), &failed(book, 4, 1), &now).why, Why::Manual);
    }

    #[test]
    fn ticks_and_retries_wait_for_the_window() {
        let hourly = job("schedule = \"hourly\"\nwindow = { from = \"20:00\", to = \"06:00\" }");
        let book = ran("2026-11-24 05:00", "2026-11-24 05:59");
        let now = view("2026-11-24 05:59", "2026-11-20 00:00");
        is(next(&hourly, &book, &now), "2026-11-24 20:00", Why::Window);
        let retry = next(&hourly, &failed(book, 4, 7), &now);
        is(retry, "2026-11-24 20:00", Why::Window);
        // Due inside, but all places were taken until it closed.
        let late = view("2026-11-24 06:10", "2026-11-20 00:00");
        is(next(&hourly, &ran("2026-11-24 03:00", "2026-11-24 03:10"), &late), "2026-11-24 20:00", Why::Window);
        let evening = view("2026-11-24 20:10", "2026-11-20 00:00");
        is(next(&hourly, &ran("2026-11-24 20:00", "2026-11-24 20:10"), &evening), "2026-11-24 21:00", Why::Schedule);
    }

    #[test]
    fn a_random_delay_is_the_same_every_time_and_shorter_than_the_interval() {
        let quarters = job(&format!("{QUARTERS}\nrandom_delay = \"2h\""));
        let now = view("2026-11-24 12:00", "2026-11-20 00:00");
        let delay = |host: u64| {
            let first = next(&quarters, &ran("2026-11-24 12:00", "2026-11-24 12:00"), &View { host, ..now.clone() }).at_ms.unwrap();
            let from = stamp(first).as_second().rem_euclid(900);
            // The run that answers it ends after the next tick, but before that one's moment: it is not skipped.
            let mut book = ran("2026-11-24 12:00", "2026-11-24 12:00");
            let last = book.last.as_mut().unwrap();
            (last.started_ms, last.finished_ms) = (first, first + 899_000);
            let then = View { host, now_ms: first + 899_000, ..now.clone() };
            assert_eq!(next(&quarters, &book, &then).at_ms, Some(first + 900_000));
            from
        };
        let all: std::collections::BTreeSet<i64> = (0..20).map(delay).collect();
        assert!(all.len() > 15, "{all:?}");
    }

    #[test]
    fn an_operators_pause_comes_before_everything() {
        let paused = |until: Option<&str>| Paused { since_ms: 0, until_ms: until.map(at), by: "root".into(), reason: None };
        let book = |until| JobBook { paused: Some(paused(until)), ..ran("2026-11-20 02:30", "2026-11-20 02:40") };
        let now = view("2026-11-24 12:00", "2026-11-24 12:00");
        let held = next(&job(NIGHTLY), &book(None), &now);
        assert_eq!((held.at_ms, held.why, held.is_now(u64::MAX)), (None, Why::Paused, false));
        let until = next(&job(NIGHTLY), &book(Some("2026-11-24 13:00")), &now);
        is(until, "2026-11-24 13:00", Why::Paused);
        assert!(!until.is_now(at("2026-11-24 14:00")));
        is(next(&job(NIGHTLY), &book(Some("2026-11-24 11:00")), &now), "2026-11-24 12:00", Why::CatchUp);
    }

    #[test]
    fn passes_follow_each_other_after_a_pause_and_failures_slow_them_down() {
        let continuous = job("continuous = true\npause = \"10s\"");
        let now = view("2026-11-24 12:00", "2026-11-24 11:00");
        let book = ran("2026-11-24 11:58", "2026-11-24 12:00");
        is(next(&continuous, &book, &now), "2026-11-24 12:00:10", Why::Schedule);
        assert_eq!(next(&continuous, &failed(book.clone(), 4, 1), &now).why, Why::Retry);
        is(next(&continuous, &failed(book, 8, 1), &now), "2026-11-24 12:30", Why::Schedule);
        is(next(&continuous, &JobBook::default(), &now), "2026-11-24 11:00", Why::Schedule);
        // Without a pause it still does not spin.
        let book = ran("2026-11-24 11:58", "2026-11-24 12:00");
        assert!(next(&job("continuous = true"), &book, &now).at_ms.unwrap() > now.now_ms);
    }

    #[test]
    fn a_chained_job_comes_with_the_commit_and_a_cut_run_is_taken_up_at_once() {
        let chained = job("after = \"replica:db\"");
        let now = view("2026-11-24 12:00", "2026-11-24 11:00");
        let book = ran("2026-11-24 11:58", "2026-11-24 11:59");
        assert_eq!(next(&chained, &book, &now).why, Why::AwaitsCommit);
        let commit = next(&chained, &book, &View { commit_ms: Some(now.now_ms), ..now.clone() });
        assert_eq!((commit.why, commit.is_now(now.now_ms)), (Why::Commit, true));
        let cut = failed(JobBook { unfinished: Some("run".into()), ..book }, 130, 0);
        is(next(&chained, &cut, &now), "2026-11-24 11:00", Why::Unfinished);
    }

    #[test]
    fn a_clock_that_was_put_back_repeats_no_tick_and_loses_no_day() {
        let nightly = job(NIGHTLY);
        let book = ran("2026-11-24 02:30", "2026-11-24 02:35");
        // By an hour: the tick was answered.
        is(next(&nightly, &book, &view("2026-11-24 01:45", "2026-11-24 01:40")), "2026-11-25 02:30", Why::Schedule);
        // By years: everything counts from the jump.
        let years = view("2020-05-05 12:00", "2020-05-05 11:00");
        is(next(&nightly, &book, &years), "2020-05-06 02:30", Why::Schedule);
        is(next(&job("every = \"1h\""), &book, &years), "2020-05-05 12:00", Why::Schedule);
        assert!(next(&nightly, &failed(book, 4, 1), &years).at_ms.unwrap() < at("2020-05-05 11:01"));
        // By a moment, between the decision and the run's own look at the clock.
        let mut early = ran("2026-11-24 02:29:59", "2026-11-24 02:35");
        early.served_ms = Some(at("2026-11-24 02:30"));
        is(next(&nightly, &early, &view("2026-11-24 02:36", "2026-11-20 00:00")), "2026-11-25 02:30", Why::Schedule);
    }
}
