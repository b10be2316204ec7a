//! From what is known of a volume at a receiver to how it is.

use super::code::Reasons;
use super::promise::{self, Limits};
use super::{Around, Code, Data, Level, Pair, PairHealth, Reason};
use crate::agent::book::JobBook;
use crate::agent::config::Job;
use crate::agent::outcome::Failure;
use crate::error::Kind;
use crate::limits::FAILURES_CRITICAL;
use crate::settings::about_duration;
use std::time::Duration;

/// What brings a job's replicas up to date by hand.
pub(super) fn run_command(job: &Job) -> String {
    format!("blockferry run {}", job.name)
}

/// How a pair is; what is wrong with it is added to the job's reasons.
pub(super) fn judge(job: &Job, book: &JobBook, pair: &Pair, around: &Around, reasons: &mut Reasons) -> PairHealth {
    let leg = book.leg(&pair.source, &pair.receiver, &pair.replica);
    let record = pair.record.as_ref();
    let committed = record.filter(|record| record.generation > 0);
    let current = committed.zip(pair.current.as_ref()).filter(|(record, current)| record.generation == current.generation);
    let unchanged_ms = current.map(|(_, current)| current.unchanged_ms);
    let since_ms = committed.map(|record| record.source_time_ms.max(unchanged_ms.unwrap_or(0)));
    let limits = since_ms.and_then(|since| promise::limits(job, book, since, &around.zone));
    // A clock that was put back makes no replica newer than now.
    let lag_ms = since_ms.map(|since| around.now_ms.saturating_sub(since));
    let failure = leg.and_then(|leg| leg.failure.as_ref());
    let mut own = Reasons::default();
    let place = format!("{} to {}", pair.source.display(), pair.receiver);
    if let Some(why) = &pair.unreadable {
        own.add(Code::StateUnreadable, Level::Unknown, format!("{place}: {why}"), None);
    } else {
        match (record, committed) {
            (_, Some(_)) => own.0.extend(lag_reason(job, book, &place, lag_ms, limits, around)),
            (Some(_), None) => {
                let message = format!("{place}: the first copy is not complete; the next run goes on from where it was");
                own.add(Code::FirstCopyUnfinished, Level::Warning, message, Some(run_command(job)));
            }
            (None, None) => {
                let message = format!("{place}: there is no replica yet");
                own.add(Code::NeverCopied, Level::Warning, message, Some(run_command(job)));
            }
        }
    }
    own.0.extend(leg.zip(failure).map(|(leg, failure)| failure_reason(job, &place, failure, leg.failures, limits.is_some())));
    let behind = match (lag_ms, limits) {
        (Some(lag), Some(limits)) => lag > limits.warning_ms,
        _ => failure.is_some(),
    };
    let data = match (record, committed) {
        _ if pair.unreadable.is_some() => Data::Unknown,
        _ if failure.is_some_and(|failure| failure.kind() == Kind::Operator) => Data::Diverged,
        (_, Some(_)) if behind => Data::Behind,
        (_, Some(_)) => Data::Current,
        (Some(_), None) => Data::FirstCopyUnfinished,
        (None, None) => Data::NeverCopied,
    };
    let health = own.0.iter().map(|reason| reason.level).max().unwrap_or(Level::Ok);
    reasons.0.append(&mut own.0);
    PairHealth {
        source: pair.source.clone(),
        receiver: pair.receiver.clone(),
        replica: pair.replica.clone(),
        relationship: record.map(|record| record.relationship),
        data,
        health,
        generation: record.map_or(0, |record| record.generation),
        source_time_ms: committed.map(|record| record.source_time_ms),
        unchanged_ms,
        lag_ms,
        limits: limits.into(),
        last_error: failure.cloned(),
        failures: leg.map_or(0, |leg| leg.failures),
    }
}

fn lag_reason(job: &Job, book: &JobBook, place: &str, lag_ms: Option<u64>, limits: Option<Limits>, around: &Around) -> Option<Reason> {
    let (lag, limits) = (lag_ms?, limits?);
    if lag <= limits.warning_ms {
        return None;
    }
    let is_critical = lag > limits.critical_ms;
    let (code, level, limit) = match is_critical {
        true => (Code::LagCritical, Level::Critical, limits.critical_ms),
        false => (Code::LagWarning, Level::Warning, limits.warning_ms),
    };
    let command = if book.is_paused(around.now_ms) { format!("blockferry resume {}", job.name) } else { run_command(job) };
    let message = format!("{place}: {} behind, beyond {}", span(lag), span(limit));
    Some(Reason { code, level, message, command: Some(command) })
}

/// A transfer that failed. What is tried again by itself becomes an alarm by its lag; where no lag is promised, by the
/// number of failures.
pub(super) fn failure_reason(job: &Job, place: &str, failure: &Failure, failures: u32, has_limits: bool) -> Reason {
    let reason = |code, level, command| Reason { code, level, message: format!("{place}: {}", failure.message), command };
    // A receiver knows of no jobs, and says where a pair's ends go.
    let named = named_command(&failure.message).map(|command| command.replace("SRC DST", &job.name));
    match failure.kind() {
        Kind::Operator => reason(Code::OperatorNeeded, Level::Critical, named.or_else(|| Some(format!("blockferry plan {}", job.name)))),
        Kind::Differs => reason(Code::VerifyMismatch, Level::Critical, Some(format!("blockferry verify --repair {}", job.name))),
        Kind::Usage => reason(Code::Refused, Level::Critical, named.or_else(|| Some("blockferry config check".to_owned()))),
        _ if !failure.is_transient() => {
            reason(Code::Refused, Level::Critical, named.or_else(|| Some(format!("blockferry plan {}", job.name))))
        }
        kind => {
            let level = if !has_limits && failures >= FAILURES_CRITICAL { Level::Critical } else { Level::Warning };
            let command = match kind {
                Kind::Storage => "blockferry doctor".to_owned(),
                _ => run_command(job),
            };
            reason(Code::Failing, level, named.or(Some(command)))
        }
    }
}

/// The command that a message names between backticks: it knows the way out better than a table of codes.
fn named_command(message: &str) -> Option<String> {
    let at = message.rfind("`blockferry ")?;
    let command = &message[at + 1..];
    Some(command[..command.find('`')?].to_owned())
}

fn span(ms: u64) -> String {
    about_duration(Duration::from_millis(ms))
}
