//! From what is known to how it is: the job around its pairs.

use super::code::Reasons;
use super::pairs::{self, run_command};
use super::promise::{self, last_run, timestamp};
use super::{Activity, Around, Code, Data, Health, Level, Pair, PairHealth, Reason, Role};
use crate::agent::book::JobBook;
use crate::agent::config::{Job, Trigger};
use crate::agent::outcome::Failure;
use crate::error::Kind;
use crate::settings::about_duration;
use crate::state::ReplicaRecord;
use uuid::Uuid;

/// How a job is. `book`: what is remembered of it, or why that cannot be read. `pairs`: its volumes at its receivers.
pub fn assess(job: &Job, book: Result<&JobBook, &str>, pairs: &[Pair], around: &Around) -> Health {
    let none = JobBook::default();
    let known = book.unwrap_or(&none);
    let mut reasons = Reasons::default();
    if let Err(why) = book {
        reasons.add(Code::StateUnreadable, Level::Unknown, why.to_owned(), None);
    }
    let pairs: Vec<PairHealth> = pairs.iter().map(|pair| pairs::judge(job, known, pair, around, &mut reasons)).collect();
    judge_runs(job, known, &pairs, around, &mut reasons);
    judge_verification(job, known, &pairs, around, &mut reasons);
    let activity = activity(known, around);
    if matches!(activity, Activity::Running { .. } | Activity::QuietWait { .. }) {
        // What a run would mend is being mended.
        reasons.drop_command(&run_command(job));
    }
    let reasons = reasons.sorted();
    let oldest = pairs.iter().filter(|pair| pair.lag_ms.is_some()).max_by_key(|pair| pair.lag_ms);
    let health = reasons.first().map_or(Level::Ok, |reason| reason.level);
    Health {
        job: job.name.clone(),
        role: if matches!(job.trigger, Trigger::After(_)) { Role::Relay } else { Role::Source },
        data: pairs.iter().map(|pair| pair.data).max().unwrap_or(Data::NeverCopied),
        activity,
        health,
        lag_ms: oldest.and_then(|pair| pair.lag_ms),
        limits: oldest.map(|pair| pair.limits).unwrap_or_default(),
        last_error: last_error(known, &pairs),
        next_command: reasons.iter().filter(|reason| reason.level > Level::Ok).find_map(|reason| reason.command.clone()),
        reasons,
        pairs,
    }
}

/// The reason that a promoted replica of this host is. Its source's host has one of its own.
pub fn promoted(record: &ReplicaRecord) -> Option<Reason> {
    let promotion = record.promotion?;
    let path = record.target.path.display();
    Some(Reason {
        code: Code::Promoted,
        level: Level::Warning,
        message: format!(
            "{path} was promoted from generation {}: its source is not followed until it takes the new history over or `blockferry resync --discard {}:{} {path}` gives that up",
            promotion.from_generation, record.epoch, record.generation
        ),
        command: None,
    })
}

fn judge_runs(job: &Job, book: &JobBook, pairs: &[PairHealth], around: &Around, reasons: &mut Reasons) {
    let paused = book.is_paused(around.now_ms);
    if let (Some(pause), true) = (&book.paused, paused) {
        let why = pause.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let until = pause.until_ms.map_or("until somebody resumes it".to_owned(), |until| format!("until {}", clock(until, around)));
        let message = format!("paused by {} {until}{why}", pause.by);
        reasons.add(Code::Paused, Level::Ok, message, Some(format!("blockferry resume {}", job.name)));
    }
    if let (Some(running), None) = (&book.running, around.runner) {
        let message = format!("run {} (process {}) ended without a word: the next one goes on from there", running.run_id, running.pid);
        reasons.add(Code::RunDied, Level::Warning, message, Some("blockferry doctor".to_owned()));
    }
    // The failure of a run as a whole: a hook, a snapshot. That of its transfers has been said already.
    let failure = book.last.as_ref().and_then(|last| last.failure.as_ref());
    if let Some(failure) = failure.filter(|_| pairs.iter().all(|pair| pair.last_error.is_none())) {
        let has_limits = pairs.iter().any(|pair| pair.limits.lag_warning_ms.is_some());
        reasons.0.push(pairs::failure_reason(job, "the last run", failure, book.failures, has_limits));
    }
    if around.agent.is_none() && promise::is_scheduled(job) && !paused {
        let message = "jobs have schedules, but no agent runs that keeps them".to_owned();
        reasons.add(Code::AgentNotRunning, Level::Warning, message, Some("systemctl start blockferry-agent".to_owned()));
    }
    if let Some(last) = book.last.as_ref().filter(|_| !matches!(job.trigger, Trigger::Continuous(_)))
        && let Some(interval) = promise::interval(job, book, last.started_ms, &around.zone)
        && last_run(book) > interval
    {
        let message = format!(
            "the last run took {} and the schedule leaves it {}; {} ticks were skipped since the first run",
            about_duration(last_run(book)),
            about_duration(interval),
            book.skipped_ticks
        );
        reasons.add(Code::RunsTooLong, Level::Warning, message, None);
    }
}

fn judge_verification(job: &Job, book: &JobBook, pairs: &[PairHealth], around: &Around, reasons: &mut Reasons) {
    let command = || Some(format!("blockferry verify {}", job.name));
    if let Some(failure) = &book.verify.failure {
        let message = format!("the last verification: {}", failure.message);
        match failure.kind() {
            Kind::Differs => {
                reasons.add(Code::VerifyMismatch, Level::Critical, message, Some(format!("blockferry verify --repair {}", job.name)))
            }
            _ => reasons.add(Code::VerifyFailing, Level::Warning, message, command()),
        }
    }
    if book.verify.differed && book.verify.failure.as_ref().is_none_or(|failure| failure.kind() != Kind::Differs) {
        // The next slice is of another part: that it is clean takes nothing back.
        let message = "a slice of verification found differences, and since then not all of it was compared without one".to_owned();
        reasons.add(Code::VerifyMismatch, Level::Critical, message, Some(format!("blockferry verify --repair {}", job.name)));
    }
    let Some(verify) = &job.verify else { return };
    // Before the first slice the pairs themselves say since when there is something to verify.
    let first_pair = pairs.iter().filter(|pair| pair.generation > 0).filter_map(|pair| created_ms(pair.relationship?)).min();
    let Some(since_ms) = book.verify.last_ms.or(first_pair) else { return };
    let due = || {
        let since = timestamp(since_ms)?;
        let tick = verify.schedule.next_after(since, &around.zone)?;
        let interval = verify.schedule.interval_at(since, &around.zone)?;
        tick.checked_add(interval / 2).ok()
    };
    if due().is_some_and(|due| due.as_millisecond() < i64::try_from(around.now_ms).unwrap_or(i64::MAX)) {
        let last = book.verify.last_ms.map_or("never".to_owned(), |last| clock(last, around));
        let message = format!("a slice of verification is overdue ({}); the last one ended: {last}", verify.schedule);
        reasons.add(Code::VerifyOverdue, Level::Warning, message, command());
    }
}

/// When a pair was made: its name says so.
fn created_ms(relationship: Uuid) -> Option<u64> {
    let (seconds, nanos) = relationship.get_timestamp()?.to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}

fn activity(book: &JobBook, around: &Around) -> Activity {
    if let Some(pid) = around.runner {
        let since_ms = book.running.as_ref().map(|running| running.started_ms);
        // A wait that is older than the run is that of one that was killed in it.
        return match book.quiet_since_ms.filter(|quiet| since_ms.is_some_and(|started| *quiet >= started)) {
            Some(quiet) => Activity::QuietWait { pid, since_ms: Some(quiet) },
            None => Activity::Running { pid, since_ms },
        };
    }
    if let (Some(pause), true) = (&book.paused, book.is_paused(around.now_ms)) {
        return Activity::Paused { until_ms: pause.until_ms, by: pause.by.clone(), reason: pause.reason.clone() };
    }
    match (book.next_due_ms, book.next_why.as_deref()) {
        (Some(until_ms), Some("retry")) => Activity::Retrying { until_ms },
        (Some(until_ms), why) => Activity::Waiting { until_ms, why: why.map(str::to_owned) },
        (None, _) => Activity::Idle,
    }
}

/// The last run's word, or that of a transfer that has failed since.
fn last_error(book: &JobBook, pairs: &[PairHealth]) -> Option<Failure> {
    let of_run = book.last.as_ref().and_then(|last| last.failure.clone());
    of_run.or_else(|| pairs.iter().find_map(|pair| pair.last_error.clone()))
}

fn clock(ms: u64, around: &Around) -> String {
    timestamp(ms).map_or_else(|| "?".to_owned(), |at| at.to_zoned(around.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string())
}
