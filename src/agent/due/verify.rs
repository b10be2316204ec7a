//! When the next slice of a job's replicas is to be verified. A tick is answered by any slice that ended after it, so that
//! downtime, a pause and a slice longer than its interval are one slice and no burst.

use super::{View, ms, ms_of, stamp};
use crate::agent::book::JobBook;
use crate::agent::config::Job;
use crate::agent::outcome::is_transient;

/// When the job's next slice is due; in the past where it is high time. `None`: never, or not while things are as they
/// are: the job is paused, or its replicas never were complete and there is nothing to compare.
pub fn verify_due(job: &Job, book: &JobBook, view: &View<'_>) -> Option<u64> {
    let verify = job.verify.as_ref().filter(|_| !book.is_paused(view.now_ms))?;
    book.last_success_ms?;
    let after = |at_ms: u64| verify.schedule.next_after(stamp(at_ms), view.zone).map(ms_of);
    let mut reference = book.verify.last_ms.or(book.scheduled_since_ms).unwrap_or(view.since_ms);
    if !job.persistent {
        reference = reference.max(view.since_ms);
    }
    if reference > view.now_ms {
        // The clock was put back, perhaps by years: everything counts from then.
        reference = view.since_ms.min(view.now_ms);
    }
    let failure = book.verify.failure.as_ref().filter(|failure| is_transient(failure.kind()));
    let retry = failure.map(|_| reference.saturating_add(ms(job.retry.max)));
    [after(reference), retry].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::super::year::{at, job, view};
    use super::*;
    use crate::agent::book::{Paused, VerifyBook};
    use crate::agent::outcome::Failure;

    const SUNDAYS: &str = "every = \"1h\"\n[job.verify]\nschedule = \"Sun 03:00\"\nslice = \"1/4\"";

    /// Known since a Monday, and current; the last slice ended then.
    fn book(last: Option<&str>, exit: u8) -> JobBook {
        let failure = (exit != 0).then(|| Failure { exit, message: "no".into() });
        let verify = VerifyBook { last_ms: last.map(at), failure, ..VerifyBook::default() };
        let known = at("2026-11-02 10:00");
        JobBook { scheduled_since_ms: Some(known), last_success_ms: Some(known), verify, ..JobBook::default() }
    }

    #[test]
    fn a_new_job_waits_for_its_first_tick_and_for_its_first_copy() {
        let (weekly, now) = (job(SUNDAYS), view("2026-11-02 11:00", "2026-11-02 10:00"));
        assert_eq!(verify_due(&weekly, &book(None, 0), &now), Some(at("2026-11-08 03:00")));
        assert_eq!(verify_due(&weekly, &JobBook { last_success_ms: None, ..book(None, 0) }, &now), None);
        assert_eq!(verify_due(&job("every = \"1h\""), &book(None, 0), &now), None);
    }

    #[test]
    fn ticks_of_downtime_are_one_slice_and_none_where_they_are_not_made_up_for() {
        // Down over two Sundays.
        let up = view("2026-11-24 12:00", "2026-11-24 12:00");
        let missed = book(Some("2026-11-08 03:20"), 0);
        let due = verify_due(&job(SUNDAYS), &missed, &up);
        assert!(due.is_some_and(|due| due <= up.now_ms), "{due:?}");
        assert_eq!(
            verify_due(&job(SUNDAYS), &book(Some("2026-11-24 12:30"), 0), &view("2026-11-24 12:31", "2026-11-24 12:00")),
            Some(at("2026-11-29 03:00"))
        );
        let fleeting = job(&SUNDAYS.replace("[job.verify]", "persistent = false\n[job.verify]"));
        assert_eq!(verify_due(&fleeting, &missed, &up), Some(at("2026-11-29 03:00")));
    }

    #[test]
    fn a_pause_holds_it_and_a_slice_longer_than_its_interval_skips_ticks() {
        let now = view("2026-11-24 12:00", "2026-11-20 12:00");
        let paused = Paused { since_ms: 0, until_ms: None, by: "root".into(), reason: None };
        let held = JobBook { paused: Some(paused), ..book(Some("2026-11-08 03:20"), 0) };
        assert_eq!(verify_due(&job(SUNDAYS), &held, &now), None);
        let quarters = job(&SUNDAYS.replace("Sun 03:00", "*:0/15"));
        assert_eq!(verify_due(&quarters, &book(Some("2026-11-24 11:59"), 0), &now), Some(at("2026-11-24 12:00")));
        assert_eq!(verify_due(&quarters, &book(Some("2026-11-24 12:00"), 0), &now), Some(at("2026-11-24 12:15")));
    }

    #[test]
    fn a_receiver_that_is_away_is_asked_again_before_the_next_tick_and_a_difference_waits_for_it() {
        let now = view("2026-11-24 12:00", "2026-11-20 12:00");
        let last = Some("2026-11-24 11:50");
        assert_eq!(verify_due(&job(SUNDAYS), &book(last, 4), &now), Some(at("2026-11-24 12:20")));
        for exit in [7, 8] {
            assert_eq!(verify_due(&job(SUNDAYS), &book(last, exit), &now), Some(at("2026-11-29 03:00")), "{exit}");
        }
    }

    #[test]
    fn a_clock_that_was_wrong_by_years_silences_nothing() {
        let now = view("2020-05-05 12:00", "2020-05-05 11:00");
        assert_eq!(verify_due(&job(SUNDAYS), &book(Some("2026-11-24 11:50"), 0), &now), Some(at("2020-05-10 03:00")));
    }
}
