//! Verification of a job's replicas: each is compared with what was replicated to it, by the digests that lie here.
//! Nothing is snapshotted and no source is read, so that a volume in use gives no false alarm. What was found stands in the
//! job's book, whoever asked: it is critical until all of it was compared without a difference, or repaired.

use super::bench::Bench;
use super::book::{Shelf, VerifyBook};
use super::config::{Job, Receiver, Volume};
use super::notify;
use super::outcome::Failure;
use super::route::{Route, routes};
use crate::attempt::{self, Delivery, Errand, Host, Report};
use crate::error::{Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::part::{Part, Slice};
use crate::progress::Progress;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a comparison of one replica came to.
#[derive(Debug)]
pub struct Compared<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Where its replica is.
    pub receiver: &'a Receiver,
    /// What was counted, or why it could not be compared. Differences are no error here.
    pub result: Result<Report>,
}

/// Compares one replica, or the part of it that the errand names; `told` hears each range that differs.
pub fn compare<'a>(
    host: &Host,
    route: &Route<'a>,
    part: Part,
    (here, there): (&Progress, &Progress),
    told: &mut (dyn FnMut(Range<u64>) + Send),
) -> Compared<'a> {
    let errand = Errand { part, ..route.errand(Purpose::Verify, false) };
    let delivery = Delivery { errand, here, there };
    let result = attempt::scrub(host, &route.volume.source, &delivery, told);
    Compared { volume: route.volume, receiver: route.receiver, result }
}

/// The failure that stands for all of them: a difference first, then the first that could not be compared.
pub fn verdict(all: &[Compared<'_>]) -> Option<Failure> {
    let place = |one: &Compared<'_>| format!("{} at {}", one.volume.source.display(), one.receiver.name);
    let differ: Vec<(&Compared<'_>, u64)> = all
        .iter()
        .filter_map(|one| Some((one, one.result.as_ref().ok()?.counts.changed_extents)).filter(|(_, extents)| *extents > 0))
        .collect();
    if let Some((first, extents)) = differ.first() {
        let more = if differ.len() > 1 { format!("; {} replicas differ", differ.len()) } else { String::new() };
        let message = format!("the replica of {} differs from what was replicated to it in {extents} extents{more}", place(first));
        return Some(Failure { exit: Kind::Differs.exit_code(), message });
    }
    let failed = all.iter().find_map(|one| Some((one, one.result.as_ref().err()?)))?;
    Some(Failure { exit: failed.1.kind().exit_code(), message: format!("{}: {}", place(failed.0), failed.1.chain()) })
}

/// The slice whose turn it is.
pub fn next_slice(book: &VerifyBook, rounds: u32) -> Part {
    match rounds {
        0 | 1 => Part::Full,
        of => Part::Slice(Slice { number: (book.done % u64::from(of)) as u32 + 1, of }),
    }
}

/// The book after a slice of `rounds`. A difference counts the slice as done: the next one is looked at all the same.
/// A slice that could not be compared keeps its turn. All is compared once as many slices in a row as a round has were
/// without a difference, wherever in the round they began.
pub fn after(before: &VerifyBook, rounds: u32, failure: Option<Failure>, now_ms: u64) -> VerifyBook {
    let mut book = VerifyBook { last_ms: Some(now_ms), failure, ..before.clone() };
    if book.rounds != rounds {
        (book.rounds, book.clean) = (rounds, 0);
    }
    match &book.failure {
        None => {
            (book.done, book.clean) = (book.done + 1, book.clean + 1);
            if book.clean >= u64::from(rounds.max(1)) {
                (book.whole_ms, book.differed) = (Some(now_ms), false);
            }
        }
        Some(failure) if failure.kind() == Kind::Differs => {
            (book.done, book.clean, book.differed) = (book.done + 1, 0, true);
        }
        Some(_) => {}
    }
    book
}

/// The book after a verification that a person asked for. `whole`: all of every replica was compared, or read anew and
/// repaired. A part without a difference takes nothing back; what could not be compared was said to who asked.
pub fn after_hand(before: &VerifyBook, whole: bool, failure: Option<Failure>, now_ms: u64) -> VerifyBook {
    match failure {
        Some(failure) if failure.kind() == Kind::Differs => {
            VerifyBook { failure: Some(failure), differed: true, clean: 0, ..before.clone() }
        }
        None if whole => {
            let (now, clean) = (Some(now_ms), u64::from(before.rounds.max(1)));
            VerifyBook { last_ms: now, whole_ms: now, failure: None, differed: false, clean, ..before.clone() }
        }
        _ => before.clone(),
    }
}

/// Whether somebody else found a difference while this was being looked for, which began with that book: what was compared
/// before it takes nothing back.
fn is_news(began: &VerifyBook, now: &VerifyBook) -> bool {
    now.differed && now != began
}

/// Writes down what came of a verification that a person asked for, and tells whom it concerns. `began`: the book when it
/// began.
pub fn note_by_hand(shelf: &Shelf, job: &Job, began: &VerifyBook, whole: bool, failure: Option<Failure>) -> Result<()> {
    let now_ms = attempt::now_ms();
    shelf.change(&job.name, |book| {
        let before = std::mem::take(&mut book.verify);
        book.verify = after_hand(&before, whole && !is_news(began, &before), failure, now_ms);
        if book.verify != before {
            let events = notify::events_of_verify(&before, &book.verify);
            notify::note(book, job, &events, now_ms);
        }
    })?;
    notify::tell(shelf, job, &[]);
    Ok(())
}

/// Compares the next slice of a job's replicas, writes down what came of it, and tells whom it concerns.
///
/// To be called when the job's `verify.schedule` is due, reckoned from [`VerifyBook::last_ms`]. It takes the job's lock:
/// [`Kind::Locked`] while a run is under way, and then, as when it is stopped ([`Kind::Interrupted`]), the book stays as
/// it was and the slice is due still. Everything else is in the book that is given back: `failure` is exit code 7 where
/// differences were found, which somebody has been told of; a transient one may be tried again after the job's `retry`.
pub fn run_slice(bench: &Bench, job: &Job, stop: &Arc<AtomicBool>) -> Result<VerifyBook> {
    let (shelf, host) = (&bench.shelf, bench.host(job));
    let rounds = job.verify.as_ref().map_or(1, |verify| verify.rounds);
    let _lock = shelf.lock(&job.name)?;
    let before = shelf.read(&job.name)?.verify;
    let part = next_slice(&before, rounds);
    let mut all = Vec::new();
    for route in routes(job) {
        let (here, there) = (Progress::new(Arc::clone(stop)), Progress::new(Arc::clone(stop)));
        let one = compare(&host, &route, part, (&here, &there), &mut |_| {});
        if let Err(error) = &one.result
            && error.kind() == Kind::Interrupted
        {
            return Err(Error::new(Kind::Interrupted, format!("stopped while job {} was verified", job.name)));
        }
        all.push(one);
    }
    let (failure, now_ms) = (verdict(&all), attempt::now_ms());
    let book = shelf.change(&job.name, |book| {
        let was = book.verify.clone();
        book.verify = after(&was, rounds, failure, now_ms);
        if is_news(&before, &was) && !book.verify.differed {
            let VerifyBook { failure, whole_ms, .. } = was.clone();
            book.verify = VerifyBook { failure, whole_ms, differed: true, clean: 0, ..std::mem::take(&mut book.verify) };
        }
        let events = notify::events_of_verify(&was, &book.verify);
        notify::note(book, job, &events, now_ms);
        book.verify.clone()
    })?;
    notify::tell(shelf, job, &[]);
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(exit: u8) -> Option<Failure> {
        Some(Failure { exit, message: "x".into() })
    }

    fn number(book: &VerifyBook) -> u32 {
        match next_slice(book, 4) {
            Part::Slice(slice) => slice.number,
            part => panic!("{part}"),
        }
    }

    #[test]
    fn a_difference_that_was_found_meanwhile_is_news_and_one_that_was_known_is_not() {
        let (well, known) = (VerifyBook::default(), VerifyBook { differed: true, ..VerifyBook::default() });
        assert!(is_news(&well, &known));
        assert!(!is_news(&known, &known) && !is_news(&well, &well) && !is_news(&known, &well));
        assert!(is_news(&known, &VerifyBook { last_ms: Some(7), ..known.clone() }));
    }

    #[test]
    fn four_slices_in_a_row_are_the_whole_wherever_they_begin() {
        let mut book = VerifyBook::default();
        let mut numbers = Vec::new();
        for (at, exit) in [0, 7, 0, 0, 4, 0, 0, 0].into_iter().enumerate() {
            numbers.push(number(&book));
            book = after(&book, 4, if exit == 0 { None } else { failure(exit) }, at as u64);
            assert_eq!((book.whole_ms, book.differed), if at < 6 { (None, at > 0) } else { (Some(at as u64), false) }, "{at}");
        }
        assert_eq!(numbers, [1, 2, 3, 4, 1, 1, 2, 3], "what could not be compared keeps its turn");
        assert_eq!(next_slice(&book, 1), Part::Full);
    }

    #[test]
    fn a_person_who_compares_all_of_it_takes_a_difference_back_and_one_who_compares_a_part_does_not() {
        let differs = after(&VerifyBook::default(), 4, failure(7), 1);
        for (whole, exit) in [(false, 0), (true, 4), (false, 4)] {
            assert_eq!(after_hand(&differs, whole, failure(exit).filter(|_| exit != 0), 2), differs, "{whole} {exit}");
        }
        let clean = after_hand(&differs, true, None, 2);
        assert_eq!((clean.differed, &clean.failure, clean.whole_ms, clean.last_ms), (false, &None, Some(2), Some(2)));
        assert_eq!(number(&clean), number(&differs), "the schedule goes on where it was");
        // A finding is one, however little was compared.
        let found = after_hand(&clean, false, failure(7), 3);
        assert!(found.differed && found.failure == failure(7) && found.last_ms == Some(2), "{found:?}");
        assert!(after(&found, 4, None, 4).differed, "one slice of four takes nothing back");
    }

    #[test]
    fn another_number_of_rounds_begins_a_new_whole() {
        let mut book = VerifyBook::default();
        for at in 0..3 {
            book = after(&book, 4, None, at);
        }
        book = after(&book, 2, None, 3);
        assert_eq!(book.whole_ms, None);
        assert_eq!(after(&book, 2, None, 4).whole_ms, Some(4));
    }
}
