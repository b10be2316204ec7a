//! The ticks of a calendar with this host's delay: stable for a host and a job, and shorter than the time to the
//! next tick, so that the order of moments is that of ticks.

use super::backoff::fraction;
use super::{View, ms, ms_of, stamp};
use crate::agent::config::Job;
use crate::limits::TICKS_COUNTED_MAX;
use crate::schedule::Calendar;
use jiff::tz::TimeZone;
use std::time::Duration;

/// A tick and the moment at which its run is due here.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// The calendar's instant.
    pub at_ms: u64,
    /// How much later this host begins.
    pub delay_ms: u64,
    /// The two together.
    pub on_time_ms: u64,
}

/// A job's calendar as this host follows it.
pub struct Ticks<'a> {
    calendar: &'a Calendar,
    zone: &'a TimeZone,
    random_delay: Duration,
    /// This host's and job's part of a delay, from 0 to 1.
    part: f64,
}

impl<'a> Ticks<'a> {
    /// Of a job that has a calendar.
    pub fn of(job: &Job, calendar: &'a Calendar, view: &View<'a>) -> Ticks<'a> {
        Ticks { calendar, zone: view.zone, random_delay: job.random_delay, part: part(job, view) }
    }

    /// What this host and job get of a delay.
    pub fn spread(job: &Job, view: &View<'_>, delay: Duration) -> u64 {
        ms(delay.mul_f64(part(job, view)))
    }

    /// The first tick behind an instant.
    pub fn after(&self, at_ms: u64) -> Option<Tick> {
        let tick = self.calendar.next_after(stamp(at_ms), self.zone)?;
        let mut delay = Duration::ZERO;
        if !self.random_delay.is_zero() {
            let gap = self.calendar.interval_at(tick - jiff::SignedDuration::from_millis(1), self.zone);
            delay = gap.map_or(self.random_delay, |gap| self.random_delay.min(gap)).mul_f64(self.part);
        }
        let (at_ms, delay_ms) = (ms_of(tick), ms(delay));
        Some(Tick { at_ms, delay_ms, on_time_ms: at_ms.saturating_add(delay_ms) })
    }

    /// Whether there are two ticks behind one instant and up to another.
    pub fn more_than_one(&self, from_ms: u64, to_ms: u64) -> bool {
        let second = self.after(from_ms).and_then(|first| self.after(first.at_ms));
        second.is_some_and(|second| second.at_ms <= to_ms)
    }

    /// Ticks whose moments lie behind one instant and up to another; no more are counted than a limit.
    pub fn count(&self, from_ms: u64, to_ms: u64) -> u64 {
        let passed = |tick: &Tick| tick.on_time_ms <= to_ms;
        let first = self.after(from_ms).filter(passed);
        let all = std::iter::successors(first, |tick| self.after(tick.at_ms).filter(passed));
        all.take(TICKS_COUNTED_MAX).count() as u64
    }
}

fn part(job: &Job, view: &View<'_>) -> f64 {
    fraction(view.host, &[&job.name])
}
