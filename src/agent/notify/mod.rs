//! Whom to tell of what: that runs fail or work again, that a replica is too far behind, that it differs, that somebody
//! has to decide something.
//!
//! What goes on for long is told thinly: of each event of a job the first three times, then once a day; `recovered`
//! ends that count. What waits for an operator goes on with each run that passes it over. What is to be told stands in the job's book before it is sent, and leaves it once it was: a crash
//! may tell something twice and loses nothing. A way that fails is a line of the log; it is tried again with the job's
//! next run. Nothing here ever fails a run.

mod message;
mod queue;
mod way;

pub use message::time;
pub use queue::{Told, Untold, note};

use super::book::{JobBook, Shelf, VerifyBook};
use super::config::{Job, Occasion};
use super::outcome::{Failure, Leg, LegResult, RunReport};
use crate::error::{Kind, Result};
use crate::log;

/// Something that somebody may want to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub what: Occasion,
    /// In words.
    pub message: String,
    /// The run that came to it, where one did.
    pub run_id: Option<String>,
    /// The exit code of what went wrong.
    pub exit: Option<u8>,
    /// What is over with it: told as for the first time when it comes again.
    pub ends: Vec<Occasion>,
}

impl Event {
    /// A replica is further behind than twice the job's `rpo`. To be said at each look at it: what is said again within
    /// the hour counts once.
    pub fn lag_critical(message: impl Into<String>) -> Event {
        Event { what: Occasion::LagCritical, message: message.into(), run_id: None, exit: None, ends: Vec::new() }
    }

    fn failure(what: Occasion, message: String, failure: &Failure) -> Event {
        Event { what, message, run_id: None, exit: Some(failure.exit), ends: Vec::new() }
    }
}

/// What a run says to be told: `before` and `after` are the job's book as they were around it.
pub fn events_of(before: &JobBook, after: &JobBook, report: &RunReport) -> Vec<Event> {
    match &report.failure {
        Some(failure) if passes(failure) => Vec::new(),
        Some(failure) if needs_operator(failure) => vec![of_run(Occasion::OperatorNeeded, failure.message.clone(), failure.exit, report)],
        Some(failure) => vec![of_run(Occasion::Failed, failure.message.clone() + &next_try(after), failure.exit, report)],
        None => events_of_legs(before, after, report),
    }
}

/// What waits for an operator is told apart from what is tried again by itself, and neither hides the other: while a leg
/// waits, another may fail and recover.
fn events_of_legs(before: &JobBook, after: &JobBook, report: &RunReport) -> Vec<Event> {
    let failing = || report.legs.iter().filter_map(|leg| Some((leg, leg.result.failure()?)));
    let (mut operator, other): (Vec<Failing<'_>>, Vec<Failing<'_>>) =
        failing().filter(|(_, failure)| !passes(failure)).partition(|(_, failure)| needs_operator(failure));
    // A run by schedule passes over what waits: it goes on all the same.
    operator.extend(report.legs.iter().filter_map(|leg| waiting(leg, after)));
    let is_over = other.is_empty() && !failing().any(|(_, failure)| passes(failure));
    let mut events = Vec::new();
    if let Some((leg, failure)) = operator.first() {
        let more = if operator.len() > 1 { format!("; and {} more", operator.len() - 1) } else { String::new() };
        let message = format!("{}{}{more}", place(leg), failure.message);
        events.push(of_run(Occasion::OperatorNeeded, message, failure.exit, report));
    }
    if let Some((leg, first)) = other.first() {
        let what = match other.len() {
            1 => format!("{}{}", place(leg), first.message),
            number => format!("{number} of {} transfers failed; the first, {}{}", report.legs.len(), place(leg), first.message),
        };
        let exit = report.verdict().map_or(first.exit, |verdict| verdict.exit);
        let ends = if operator.is_empty() { vec![Occasion::OperatorNeeded] } else { Vec::new() };
        events.push(Event { ends, ..of_run(Occasion::Failed, what + &next_try(after), exit, report) });
    }
    match (is_over, operator.is_empty()) {
        (true, true) => events.extend(recovered(before, after, report)),
        (true, false) if report.legs.iter().any(|leg| came_back(leg, before)) || is_told(before) && report.legs.iter().any(is_well) => {
            let message = "every replica is current again but what waits for an operator".to_owned();
            let run_id = Some(report.run_id.clone());
            events.push(Event { what: Occasion::Recovered, message, run_id, exit: None, ends: vec![Occasion::Failed] });
        }
        _ => {}
    }
    events
}

/// A leg and what is wrong with it.
type Failing<'a> = (&'a Leg, &'a Failure);

/// What a leg waits for, where it was passed over because of that.
fn waiting<'a>(leg: &'a Leg, after: &'a JobBook) -> Option<Failing<'a>> {
    let entry = after.leg(&leg.source, &leg.receiver, &leg.replica).filter(|_| matches!(leg.result, LegResult::PassedOver { .. }));
    entry?.failure.as_ref().filter(|failure| needs_operator(failure)).map(|failure| (leg, failure))
}

/// Whether a leg is current.
fn is_well(leg: &Leg) -> bool {
    matches!(leg.result, LegResult::Committed { .. } | LegResult::Idle { .. })
}

/// Whether somebody was told that runs fail, and not yet that they do so no more.
fn is_told(before: &JobBook) -> bool {
    before.told.contains_key(&Occasion::Failed)
}

/// Whether a leg is current that had failed and was tried again by itself.
fn came_back(leg: &Leg, before: &JobBook) -> bool {
    let failure = before.leg(&leg.source, &leg.receiver, &leg.replica).and_then(|entry| entry.failure.as_ref());
    is_well(leg) && failure.is_some_and(|failure| !needs_operator(failure) && !passes(failure))
}

/// That all is well, where it had not been.
fn recovered(before: &JobBook, after: &JobBook, report: &RunReport) -> Option<Event> {
    let waits = |result: &LegResult| matches!(result, LegResult::PassedOver { .. } | LegResult::Planned { .. });
    let all_well = after.legs.iter().all(|leg| leg.failure.is_none()) && !report.legs.iter().any(|leg| waits(&leg.result));
    let failed_before = before.failures > 0
        || before.last.as_ref().is_some_and(|last| last.failure.as_ref().is_some_and(|failure| !passes(failure)))
        || before.legs.iter().any(|leg| leg.failure.as_ref().is_some_and(|failure| !passes(failure)));
    let told = [Occasion::Failed, Occasion::LagCritical].iter().any(|what| before.told.contains_key(what));
    if !all_well || !(failed_before || told) {
        return None;
    }
    let message = match before.failures {
        0 | 1 => "every replica is current again".to_owned(),
        failures => format!("every replica is current again after {failures} runs that failed"),
    };
    let ends = vec![Occasion::Failed, Occasion::OperatorNeeded, Occasion::LagCritical];
    Some(Event { what: Occasion::Recovered, message, run_id: Some(report.run_id.clone()), exit: None, ends })
}

fn of_run(what: Occasion, message: String, exit: u8, report: &RunReport) -> Event {
    Event { what, message, run_id: Some(report.run_id.clone()), exit: Some(exit), ends: Vec::new() }
}

fn next_try(after: &JobBook) -> String {
    after.next_due_ms.map(|due| format!("; next try at {}", message::time(due))).unwrap_or_default()
}

fn place(leg: &Leg) -> String {
    format!("{} to {}: ", leg.source.display(), leg.receiver)
}

/// What a scheduled verification says to be told. One that could not reach its receiver says nothing: the job's runs
/// cannot either, and tell so.
pub fn events_of_verify(before: &VerifyBook, after: &VerifyBook) -> Vec<Event> {
    match &after.failure {
        Some(failure) if failure.kind() == Kind::Differs => {
            vec![Event::failure(Occasion::VerifyMismatch, failure.message.clone(), failure)]
        }
        Some(failure) if needs_operator(failure) => {
            let message = format!("replicas cannot be verified: {}", failure.message);
            vec![Event::failure(Occasion::OperatorNeeded, message, failure)]
        }
        None if after.whole_ms > before.whole_ms && before.differed => {
            let message = "every replica was compared as a whole, and no difference is left".to_owned();
            vec![Event { what: Occasion::Recovered, message, run_id: None, exit: None, ends: vec![Occasion::VerifyMismatch] }]
        }
        _ => Vec::new(),
    }
}

/// Writes down what is to be told of a job and tells it, together with what could not be told before. Where the book
/// is changed anyway, [`note`] in that same change loses nothing even to a crash in between.
pub fn tell(shelf: &Shelf, job: &Job, events: &[Event]) {
    let now_ms = crate::attempt::now_ms();
    if !events.is_empty()
        && let Err(error) = shelf.change(&job.name, |book| note(book, job, events, now_ms))
    {
        log::error(format!("write down what is to be told of job {}: {}", job.name, error.chain()));
    }
    if let Err(error) = deliver(shelf, job) {
        log::error(format!("tell of job {}: {}", job.name, error.chain()));
    }
}

/// Tells what waits in the job's book. What fails stays there.
pub fn deliver(shelf: &Shelf, job: &Job) -> Result<()> {
    let waiting = shelf.read(&job.name)?.untold;
    if waiting.is_empty() {
        return Ok(());
    }
    let mut told = Vec::new();
    let mut failed: Vec<&str> = Vec::new();
    for untold in &waiting {
        // A way that the configuration does not name any more is no way.
        let Some(entry) = job.notify.iter().find(|entry| way::key(entry) == untold.way) else {
            told.push(untold);
            continue;
        };
        if failed.contains(&untold.way.as_str()) {
            continue; // it would only take its time limit again
        }
        match way::send(entry, &message::Message::of(&job.name, untold)) {
            Ok(()) => told.push(untold),
            Err(error) => {
                failed.push(&untold.way);
                log::warning(format!(
                    "tell {} that job {} {}: {}; tried again with its next run",
                    way::name(entry),
                    job.name,
                    untold.what.verb(),
                    error.chain()
                ));
            }
        }
    }
    if told.is_empty() {
        return Ok(());
    }
    // From here on a crash leaves them told; before it they are told once more.
    shelf.change(&job.name, |book| book.untold.retain(|untold| !told.contains(&untold)))
}

fn needs_operator(failure: &Failure) -> bool {
    matches!(failure.kind(), Kind::Operator | Kind::Refused | Kind::Usage)
}

/// What an operator did himself is no news to him: a stop, or a second run beside the first.
fn passes(failure: &Failure) -> bool {
    matches!(failure.kind(), Kind::Interrupted | Kind::Locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::book::{LastRun, LegBook};
    use crate::agent::outcome::Cause;

    fn run(results: &[(&str, u8)]) -> (JobBook, RunReport) {
        let failure = |exit: &u8| (*exit != 0).then(|| Failure { exit: *exit, message: format!("no {exit}") });
        let leg = |(receiver, exit): &(&str, u8)| Leg {
            source: "vg0/db".into(),
            receiver: (*receiver).into(),
            replica: "db".into(),
            relationship: None,
            result: failure(exit).map_or(LegResult::Idle { generation: 3 }, |failure| LegResult::Failed { failure }),
            seconds: 0.0,
        };
        let legs: Vec<Leg> = results.iter().map(leg).collect();
        let book = |leg: &Leg| LegBook {
            source: leg.source.clone(),
            receiver: leg.receiver.clone(),
            replica: "db".into(),
            tried_ms: 1,
            failure: leg.result.failure().cloned(),
            failures: 0,
            tried: String::new(),
        };
        let books = legs.iter().map(book).collect();
        let report =
            RunReport { run_id: "r".into(), job: "db".into(), cause: Cause::Schedule, started_ms: 1, finished_ms: 2, legs, failure: None };
        let last = LastRun { run_id: "r".into(), started_ms: 1, finished_ms: 2, failure: report.verdict() };
        let failures = u32::from(last.failure.is_some());
        let mut after = JobBook::default();
        (after.last, after.failures, after.legs) = (Some(last), failures, books);
        (after, report)
    }

    fn told(before: &JobBook, results: &[(&str, u8)]) -> (Vec<Occasion>, Vec<Event>) {
        let (after, report) = run(results);
        let events = events_of(before, &after, &report);
        (events.iter().map(|event| event.what).collect(), events)
    }

    #[test]
    fn a_failure_is_told_with_what_failed_and_recovery_once() {
        use Occasion::*;
        let never = JobBook::default();
        assert_eq!(told(&never, &[("dr1", 0)]).0, []);
        let (whats, events) = told(&never, &[("dr1", 0), ("dr2", 4)]);
        assert_eq!((whats.as_slice(), events[0].message.as_str(), events[0].exit), (&[Failed][..], "vg0/db to dr2: no 4", Some(3)));
        let failed = run(&[("dr1", 4)]).0;
        assert_eq!(told(&failed, &[("dr1", 4)]).0, [Failed]);
        assert_eq!(told(&failed, &[("dr1", 0)]).0, [Recovered]);
        assert_eq!(told(&run(&[("dr1", 0)]).0, &[("dr1", 0)]).0, []);
    }

    #[test]
    fn what_waits_for_an_operator_is_told_apart_from_what_comes_back_by_itself() {
        use Occasion::*;
        let never = JobBook::default();
        assert_eq!(told(&never, &[("dr1", 6)]).0, [OperatorNeeded]);
        assert_eq!(told(&never, &[("dr1", 8), ("dr2", 4)]).0, [OperatorNeeded, Failed]);
    }

    /// The first leg waits for an operator and is passed over; the others end with these codes.
    fn told_while_one_waits(before: &JobBook, others: &[(&str, u8)]) -> (JobBook, Vec<Event>) {
        let (mut after, mut report) = run(&[&[("dr1", 0)][..], others].concat());
        report.legs[0].result = LegResult::PassedOver { why: "waits for an operator".into() };
        after.legs[0].failure = Some(Failure { exit: 6, message: "promoted".into() });
        let events = events_of(before, &after, &report);
        (after, events)
    }

    #[test]
    fn what_waits_is_said_with_each_run_that_passes_it_over_and_hides_nothing() {
        use Occasion::*;
        let whats = |events: &[Event]| events.iter().map(|event| event.what).collect::<Vec<_>>();
        // The others do not make the job well, and it is no news that they are.
        let (waits, events) = told_while_one_waits(&run(&[("dr1", 6), ("dr2", 0)]).0, &[("dr2", 0)]);
        assert_eq!((whats(&events).as_slice(), events[0].message.as_str()), (&[OperatorNeeded][..], "vg0/db to dr1: promoted"));
        let (fails, events) = told_while_one_waits(&waits, &[("dr2", 4), ("dr3", 0)]);
        assert_eq!((whats(&events).as_slice(), events[1].message.as_str()), (&[OperatorNeeded, Failed][..], "vg0/db to dr2: no 4"));
        let (well, events) = told_while_one_waits(&fails, &[("dr2", 0), ("dr3", 0)]);
        assert_eq!((whats(&events).as_slice(), events[1].ends.as_slice()), (&[OperatorNeeded, Recovered][..], &[Failed][..]));
        assert_eq!(whats(&told_while_one_waits(&well, &[("dr2", 0), ("dr3", 0)]).1), [OperatorNeeded]);
        // Who stopped the other one knows that.
        assert_eq!(whats(&told_while_one_waits(&waits, &[("dr2", 5)]).1), [OperatorNeeded]);
        // Somebody saw to it while the other still fails: should it come again, that is a first time.
        let (_, events) = told(&fails, &[("dr1", 0), ("dr2", 4)]);
        assert_eq!((events[0].what, events[0].ends.as_slice()), (Failed, &[OperatorNeeded][..]));
    }

    #[test]
    fn the_first_failure_that_is_tried_again_is_told_and_not_the_one_that_waits() {
        let (_, events) = told(&JobBook::default(), &[("dr1", 8), ("dr2", 4), ("dr3", 4)]);
        assert_eq!(events[0].message, "vg0/db to dr1: no 8");
        assert_eq!(events[1].message, "2 of 3 transfers failed; the first, vg0/db to dr2: no 4");
    }

    #[test]
    fn what_an_operator_did_himself_is_no_event() {
        let never = JobBook::default();
        assert_eq!(told(&never, &[("dr1", 130)]).0, []);
        assert_eq!(told(&never, &[("dr1", 5)]).0, []);
        let mut stopped = run(&[("dr1", 130)]).0;
        stopped.failures = 0;
        assert_eq!(told(&stopped, &[("dr1", 0)]).0, []);
    }

    #[test]
    fn a_lag_that_was_told_is_over_with_the_next_good_run() {
        let mut before = JobBook::default();
        before.told.insert(Occasion::LagCritical, Told { count: 1, ..Told::default() });
        let (_, events) = told(&before, &[("dr1", 0)]);
        assert!(events[0].what == Occasion::Recovered && events[0].ends.contains(&Occasion::LagCritical));
    }

    #[test]
    fn a_difference_is_told_and_is_over_when_all_was_compared() {
        let differs =
            VerifyBook { failure: Some(Failure { exit: 7, message: "2 extents".into() }), differed: true, ..VerifyBook::default() };
        assert_eq!(events_of_verify(&VerifyBook::default(), &differs)[0].what, Occasion::VerifyMismatch);
        let slice = VerifyBook { failure: None, ..differs.clone() };
        assert_eq!(events_of_verify(&differs, &slice), []);
        let whole = VerifyBook { whole_ms: Some(9), differed: false, ..slice.clone() };
        assert_eq!(events_of_verify(&slice, &whole)[0].ends, [Occasion::VerifyMismatch]);
        let away = VerifyBook { failure: Some(Failure { exit: 4, message: "no route".into() }), ..VerifyBook::default() };
        assert_eq!(events_of_verify(&VerifyBook::default(), &away), []);
    }
}
