//! What a run writes into its job's book: pure, so that every outcome can be tried.

use super::book::{JobBook, LastRun, LegBook, Running};
use super::outcome::{Cause, Failure, Leg, LegResult, RunReport};
use crate::error::Kind;

/// A run begins. Gives back the report of the run before it where that was killed: its lock is ours now, so it is dead.
pub fn open(book: &mut JobBook, running: Running, job: &str, now_ms: u64) -> Option<RunReport> {
    let dead = book.running.replace(running)?;
    let message = format!("process {} ended without a word: it was killed, or the host went down", dead.pid);
    let report = RunReport {
        run_id: dead.run_id,
        job: job.to_owned(),
        cause: Cause::Request,
        started_ms: dead.started_ms,
        finished_ms: now_ms,
        legs: Vec::new(),
        failure: Some(Failure { exit: Kind::Failed.exit_code(), message }),
    };
    note_last(book, &report);
    book.failures += 1;
    Some(report)
}

/// How a leg was tried.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// Where to, with which key, from which generation.
    pub with: String,
    /// The receiver took it on.
    pub admitted: bool,
}

/// A run ended. `tried`: how each of its legs was tried.
pub fn close(book: &mut JobBook, report: &RunReport, tried: &[Tried]) {
    book.running = None;
    note_last(book, report);
    let legs: Vec<LegBook> = report.legs.iter().zip(tried).filter_map(|(leg, tried)| entry(book, leg, tried, report.finished_ms)).collect();
    let all_current = report.failure.is_none() && legs.len() == report.legs.len() && legs.iter().all(|leg| leg.failure.is_none());
    if !report.legs.is_empty() {
        book.legs = legs;
    }
    match report.verdict() {
        _ if all_current => {
            book.last_success_ms = Some(report.started_ms);
            book.failures = 0;
        }
        Some(failure) if failure.kind() != Kind::Interrupted => book.failures += 1,
        _ => {}
    }
}

fn note_last(book: &mut JobBook, report: &RunReport) {
    let failure = report.verdict();
    book.last = Some(LastRun { run_id: report.run_id.clone(), started_ms: report.started_ms, finished_ms: report.finished_ms, failure });
}

/// A leg's entry after this run; `None`: it has never been tried.
fn entry(book: &JobBook, leg: &Leg, tried: &Tried, now_ms: u64) -> Option<LegBook> {
    let before = book.leg(&leg.source, &leg.receiver, &leg.replica);
    let failures = before.map_or(0, |before| before.failures);
    let (failure, failures) = match &leg.result {
        LegResult::PassedOver { .. } | LegResult::Planned { .. } => return before.cloned(),
        LegResult::Committed { .. } | LegResult::Idle { .. } => (None, 0),
        // Stopped by a person: nothing new is wrong, and what was wrong before still is, unless the receiver took this on.
        LegResult::Failed { failure } if failure.kind() == Kind::Interrupted => {
            let before = before.and_then(|before| before.failure.clone()).filter(|_| !tried.admitted);
            (before.or_else(|| Some(failure.clone())), failures)
        }
        LegResult::Failed { failure } => (Some(failure.clone()), failures + 1),
    };
    Some(LegBook {
        source: leg.source.clone(),
        receiver: leg.receiver.clone(),
        replica: leg.replica.clone(),
        tried_ms: now_ms,
        failure,
        failures,
        tried: tried.with.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(name: &str, result: LegResult) -> Leg {
        Leg { source: name.into(), receiver: "dr".into(), replica: name.into(), relationship: None, result, seconds: 0.0 }
    }

    fn failed(exit: u8) -> LegResult {
        LegResult::Failed { failure: Failure { exit, message: "no".into() } }
    }

    fn ran(book: &mut JobBook, started_ms: u64, results: Vec<LegResult>) {
        ran_as_far(book, started_ms, results, false);
    }

    fn ran_as_far(book: &mut JobBook, started_ms: u64, results: Vec<LegResult>, admitted: bool) {
        let legs: Vec<Leg> = results.into_iter().enumerate().map(|(at, result)| leg(&at.to_string(), result)).collect();
        let tried: Vec<Tried> = legs.iter().map(|leg| Tried { with: leg.replica.clone(), admitted }).collect();
        let report = RunReport {
            run_id: "r".into(),
            job: "db".into(),
            cause: Cause::Schedule,
            started_ms,
            finished_ms: started_ms + 1,
            legs,
            failure: None,
        };
        close(book, &report, &tried);
    }

    fn idle() -> LegResult {
        LegResult::Idle { generation: 1 }
    }

    fn passed() -> LegResult {
        LegResult::PassedOver { why: "waits".into() }
    }

    #[test]
    fn failures_are_counted_by_leg_and_by_job_until_all_is_current() {
        let mut book = JobBook::default();
        ran(&mut book, 10, vec![idle(), failed(4)]);
        ran(&mut book, 20, vec![idle(), failed(4)]);
        assert_eq!((book.failures, book.legs[1].failures, book.last_success_ms), (2, 2, None));
        assert_eq!(book.last.as_ref().unwrap().failure.as_ref().unwrap().exit, Kind::Partial.exit_code());
        ran(&mut book, 30, vec![idle(), idle()]);
        assert_eq!((book.failures, book.legs[1].failures, book.last_success_ms), (0, 0, Some(30)));
    }

    #[test]
    fn a_run_that_passed_over_what_waits_is_no_success() {
        let mut book = JobBook::default();
        ran(&mut book, 10, vec![idle(), failed(6)]);
        ran(&mut book, 20, vec![idle(), passed()]);
        assert_eq!((book.failures, book.last_success_ms), (1, None));
        assert_eq!((book.legs[1].failure.as_ref().unwrap().exit, book.legs[1].tried_ms), (6, 11));
        // What was well when it was passed over is well.
        ran(&mut book, 30, vec![idle(), idle()]);
        ran(&mut book, 40, vec![failed(4), passed()]);
        ran(&mut book, 50, vec![idle(), passed()]);
        assert_eq!((book.failures, book.last_success_ms), (0, Some(50)));
    }

    #[test]
    fn a_stop_is_no_failure_and_cures_none() {
        let mut book = JobBook::default();
        ran(&mut book, 10, vec![failed(130), failed(4)]);
        assert_eq!(book.failures, 1);
        ran(&mut book, 20, vec![failed(130), failed(130)]);
        assert_eq!((book.failures, book.legs[0].failures, book.legs[1].failures), (1, 0, 1));
        assert_eq!(book.legs[1].failure.as_ref().unwrap().exit, 4);
    }

    #[test]
    fn a_refusal_is_over_when_the_receiver_takes_the_transfer_on_whatever_ends_that() {
        let mut book = JobBook::default();
        let exit = |book: &JobBook| book.legs[0].failure.as_ref().map(|failure| failure.exit);
        ran(&mut book, 10, vec![failed(8)]);
        ran(&mut book, 20, vec![failed(130)]);
        assert_eq!(exit(&book), Some(8), "it was stopped before anybody could refuse it");
        ran_as_far(&mut book, 30, vec![failed(130)], true);
        assert_eq!((exit(&book), book.last_success_ms), (Some(130), None));
    }

    #[test]
    fn a_killed_run_gets_its_line_from_the_next() {
        let running = |run_id: &str| Running { run_id: run_id.into(), pid: 7, started_ms: 10 };
        let mut book = JobBook::default();
        assert_eq!(open(&mut book, running("a"), "db", 10), None);
        let dead = open(&mut book, running("b"), "db", 20).unwrap();
        assert_eq!((dead.run_id.as_str(), dead.finished_ms, book.failures), ("a", 20, 1));
        assert!(book.last.as_ref().unwrap().failure.as_ref().unwrap().message.contains("process 7"));
        assert_eq!(book.running.as_ref().unwrap().run_id, "b");
    }
}
