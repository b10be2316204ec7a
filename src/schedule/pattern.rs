//! Which instants a calendar names: sets of years, months, days, hours, minutes and seconds, and a search
//! through them. Both spellings of calendars ([`super::calendar`], [`super::cron`]) end here.
//!
//! Clocks that are put forward or back decide what a time of day means. A calendar that names its hours (03:00
//! every day) ticks once for each time it names: at the jump where that time is jumped over, and at
//! the first of the two where it is shown twice. A calendar of every hour (`*:0/15`) follows what the
//! clocks show: nothing in the hour that is not there, twice in the one that comes twice. (systemd leaves the
//! first one out that night and stands still for the repeated hour; a backup should do neither.)

use super::days::Days;
use crate::limits::CALENDAR_YEARS_AHEAD;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Timestamp, ToSpan};
use std::collections::BTreeSet;

/// Some numbers below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(pub u64);

impl Set {
    /// All from the first to the last.
    pub fn range(first: u8, last: u8) -> Set {
        (first..=last).collect()
    }

    fn contains(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    /// The first that is not below `from`.
    fn next(self, from: u8) -> Option<u8> {
        let rest = self.0.checked_shr(u32::from(from)).unwrap_or(0);
        (rest != 0).then(|| from + rest.trailing_zeros() as u8) // at most 63
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Set {
        Set(numbers.into_iter().fold(0, |set, number| set | 1 << number))
    }
}

/// The instants of a calendar. Seconds are the finest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub weekdays: Days,
    /// `None`: every year.
    pub years: Option<BTreeSet<i16>>,
    pub months: Set,
    pub days: Set,
    /// Days count from the end of the month: 1 is the last.
    pub from_end: bool,
    /// A day of the week or a day of the month is enough: the rule of cron where both are named.
    pub either_day: bool,
    pub hours: Set,
    pub minutes: Set,
    pub seconds: Set,
}

impl Pattern {
    /// Every day at midnight: what is left out means that.
    pub fn midnight() -> Pattern {
        Pattern {
            weekdays: Days::ALL,
            years: None,
            months: Set::range(1, 12),
            days: Set::range(1, 31),
            from_end: false,
            either_day: false,
            hours: Set::range(0, 0),
            minutes: Set::range(0, 0),
            seconds: Set::range(0, 0),
        }
    }

    /// The first tick behind an instant, on the clocks of a zone. `None`: it never comes again.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        // From one change of the clocks to the next they tick evenly.
        let mut here = after;
        let mut from = Timestamp::from_second(after.as_nanosecond().div_euclid(1_000_000_000) as i64 + 1).ok()?; // a timestamp's range
        let last_year = zone.to_datetime(after).year().saturating_add(CALENDAR_YEARS_AHEAD);
        loop {
            let (offset, change) = (zone.to_offset(here), zone.following(here).next().map(|change| change.timestamp()));
            if let Some(tick) = self.next_even(from, offset, change, zone, last_year) {
                return Some(tick);
            }
            let change = change.filter(|change| offset.to_datetime(*change).year() <= last_year)?;
            if self.ticks_within(offset.to_datetime(change), zone.to_datetime(change)) {
                return Some(change);
            }
            (here, from) = (change, change);
        }
    }

    /// The first tick from `from` on and before the clocks are put.
    fn next_even(&self, from: Timestamp, offset: Offset, change: Option<Timestamp>, zone: &TimeZone, last_year: i16) -> Option<Timestamp> {
        let mut local = offset.to_datetime(from);
        loop {
            let tick = self.next_civil(local, last_year)?;
            let at = offset.to_timestamp(tick).ok().filter(|at| change.is_none_or(|change| *at < change))?;
            if self.is_hourly() || !is_second_showing(tick, at, zone) {
                return Some(at);
            }
            local = tick.checked_add(1.second()).ok()?;
        }
    }

    /// Whether a tick is jumped over by clocks that are put forward from one time to another.
    fn ticks_within(&self, from: DateTime, to: DateTime) -> bool {
        !self.is_hourly() && from < to && self.next_civil(from, to.year()).is_some_and(|tick| tick < to)
    }

    fn is_hourly(&self) -> bool {
        self.hours == Set::range(0, 23)
    }

    /// The first tick from a time on, as a calendar on the wall has it.
    fn next_civil(&self, from: DateTime, last_year: i16) -> Option<DateTime> {
        let mut date = from.date();
        loop {
            date = self.next_date(date, last_year)?;
            let start = if date == from.date() { from.time() } else { Time::midnight() };
            if let Some(time) = self.next_time(start) {
                return Some(date.to_datetime(time));
            }
            date = date.tomorrow().ok()?;
        }
    }

    fn next_date(&self, from: Date, last_year: i16) -> Option<Date> {
        let mut date = from;
        while date.year() <= last_year {
            if self.years.as_ref().is_some_and(|years| !years.contains(&date.year())) {
                date = Date::new(date.year() + 1, 1, 1).ok()?;
            } else if !self.months.contains(date.month() as u8) {
                date = date.last_of_month().tomorrow().ok()?;
            } else if self.has_day(date) {
                return Some(date);
            } else {
                date = date.tomorrow().ok()?;
            }
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let day = if self.from_end { date.days_in_month() - date.day() + 1 } else { date.day() };
        let (by_month, by_week) = (self.days.contains(day as u8), self.weekdays.contains(date.weekday()));
        if self.either_day { by_month || by_week } else { by_month && by_week }
    }

    fn next_time(&self, from: Time) -> Option<Time> {
        let (hour, minute, second) = (from.hour() as u8, from.minute() as u8, from.second() as u8);
        let first = (self.minutes.next(0)?, self.seconds.next(0)?);
        let within_hour = || {
            let within_minute = self.minutes.contains(minute).then(|| self.seconds.next(second)).flatten();
            within_minute.map(|second| (minute, second)).or_else(|| Some((self.minutes.next(minute + 1)?, first.1)))
        };
        let this_hour = self.hours.contains(hour).then(within_hour).flatten();
        let found = this_hour.map(|(minute, second)| (hour, minute, second));
        let (hour, minute, second) = found.or_else(|| Some((self.hours.next(hour + 1)?, first.0, first.1)))?;
        Time::new(hour as i8, minute as i8, second as i8, 0).ok()
    }
}

/// Whether the clocks showed this before: they were put back in between.
fn is_second_showing(civil: DateTime, at: Timestamp, zone: &TimeZone) -> bool {
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Fold { after, .. } => after.to_timestamp(civil).is_ok_and(|second| second == at),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::schedule::calendar::Calendar;
    use crate::schedule::testing::known_zone;
    use crate::schedule::testing::{berlin, time};
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    /// Its ticks of a span as the clocks of Berlin show them.
    fn ticks(text: &str, from: &str, to: &str) -> Vec<String> {
        let calendar: Calendar = text.parse().unwrap();
        let next = |at: &Timestamp| calendar.next_after(*at, &berlin()).filter(|tick| *tick <= time(to));
        std::iter::successors(next(&time(from)), next).map(|tick| berlin().to_datetime(tick).strftime("%d %H:%M").to_string()).collect()
    }

    #[test]
    fn a_named_hour_that_is_jumped_over_comes_at_the_jump_and_once() {
        assert_eq!(ticks("02:30", "2026-03-28 12:00", "2026-03-30 12:00"), ["29 03:00", "30 02:30"]);
        assert_eq!(ticks("2..3:0/30", "2026-03-29 00:00", "2026-03-29 12:00"), ["29 03:00", "29 03:30"]);
        assert_eq!(ticks("03:00", "2026-03-29 00:00", "2026-03-29 12:00"), ["29 03:00"]);
        assert_eq!(ticks("02:30", "2026-03-29 03:00", "2026-03-30 12:00"), ["30 02:30"]);
    }

    #[test]
    fn a_named_hour_that_comes_twice_counts_once() {
        assert_eq!(ticks("02:30", "2026-10-24 12:00", "2026-10-26 12:00"), ["25 02:30", "26 02:30"]);
        assert_eq!(ticks("2,3:00", "2026-10-25 00:00", "2026-10-25 12:00"), ["25 02:00", "25 03:00"]);
        assert_eq!(ticks("02:30", "2026-10-24 12:00", "2026-10-25 12:00").len(), 1);
    }

    #[test]
    fn every_hour_is_what_the_clocks_show() {
        let spring = ticks("*:0/30", "2026-03-29 01:00", "2026-03-29 03:30");
        assert_eq!(spring, ["29 01:30", "29 03:00", "29 03:30"]);
        let autumn = ticks("*:0/30", "2026-10-25 01:30", "2026-10-25 03:30");
        assert_eq!(autumn, ["25 02:00", "25 02:30", "25 02:00", "25 02:30", "25 03:00", "25 03:30"]);
    }

    #[test]
    fn a_year_has_the_ticks_that_it_should() {
        let count = |text: &str, zone: &TimeZone| {
            let calendar: Calendar = text.parse().unwrap();
            let (from, to) = ("2026-01-01T00:00:00", "2027-01-01T00:00:00");
            let at = |text: &str| zone.to_timestamp(text.parse().unwrap()).unwrap();
            // One second earlier, so that midnight of New Year counts.
            let first = at(from).checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
            let next = |tick: &Timestamp| calendar.next_after(*tick, zone).filter(|tick| *tick < at(to));
            std::iter::successors(next(&first), next).count()
        };
        for name in ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo"] {
            let Some(zone) = known_zone(name) else { continue };
            // Lord Howe puts its clocks by half an hour at two in the morning.
            for daily in ["daily", "01:45", "02:00", "02:15", "02:30", "03:00", "23:59"] {
                assert_eq!(count(daily, &zone), 365, "{daily} in {name}");
            }
            assert_eq!(count("*:0/15", &zone), 365 * 96, "{name}");
            assert_eq!(count("Mon..Fri 02:30", &zone), 261, "{name}");
            assert_eq!(count("*-*-31 02:30", &zone), 7, "{name}");
        }
    }

    proptest! {
        #[test]
        fn ticks_go_forward_and_none_is_passed_over(second in 0i64..2_000_000_000, skip in 0i64..200_000, which in 0usize..7) {
            let text = ["*:0/15", "02:30", "Mon..Fri 03:00", "*-*~1 02:15", "2/3:10", "Sun *-*-1..7 02:00:30", "*-3,10-* 2..3:0/20"][which];
            let calendar: Calendar = text.parse().unwrap();
            let at = Timestamp::from_second(second).unwrap();
            let tick = calendar.next_after(at, &berlin()).unwrap();
            prop_assert!(tick > at);
            // From anywhere before it the same tick is next.
            let between = Timestamp::from_second((second + skip).min(tick.as_second() - 1)).unwrap();
            prop_assert_eq!(calendar.next_after(between, &berlin()), Some(tick));
        }
    }
}
