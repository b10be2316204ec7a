//! Calendars as systemd writes them (systemd.time(7)): `*-*-* *:0/15`, `Mon..Fri 03:00`, `*-*-01 02:00:00`,
//! `*-*~1` (the last day of the month), `daily`, `Sun 03:00 Europe/Berlin`.
//!
//! What `systemd-analyze calendar` says of an expression holds here as well, but for the hours in which clocks are
//! put (`schedule::pattern`) and fractions of a second, which are refused.

use super::days::Days;
use super::pattern::{Pattern, Set};
use crate::settings::by_text;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Instants that come again and again, as a person wrote them down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    text: String,
    pattern: Pattern,
    /// Where it names one.
    zone: Option<TimeZone>,
}

by_text!(Calendar);

impl Calendar {
    pub(super) fn new(text: &str, pattern: Pattern) -> Calendar {
        Calendar { text: text.to_owned(), pattern, zone: None }
    }

    /// The first tick behind an instant. `zone` counts where the calendar names none. `None`: it never
    /// comes again.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.pattern.next_after(after, self.zone.as_ref().unwrap_or(zone))
    }

    /// The time between the next two ticks behind an instant: what a schedule promises.
    pub fn interval_at(&self, at: Timestamp, zone: &TimeZone) -> Option<std::time::Duration> {
        let first = self.next_after(at, zone)?;
        self.next_after(first, zone)?.duration_since(first).try_into().ok()
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Calendar {
    type Err = String;

    fn from_str(text: &str) -> Result<Calendar, String> {
        let wrong = |what: String| format!("\"{text}\" is no calendar: {what}: write *:0/15, Mon..Fri 03:00 or daily (systemd.time(7))");
        let mut words: Vec<&str> = text.split_whitespace().collect();
        if words.len() >= 5 {
            return Err(wrong(format!("{} words; cron = \"…\" takes what cron does", words.len())));
        }
        let zone = match words[..] {
            [_, .., last] if last.starts_with(|letter: char| letter.is_ascii_alphabetic()) => {
                words.pop();
                Some(TimeZone::get(last).map_err(|error| wrong(error.to_string()))?)
            }
            _ => None,
        };
        let pattern = parse(&words).map_err(wrong)?;
        Ok(Calendar { text: text.to_owned(), pattern, zone })
    }
}

/// systemd's words for common calendars.
const SHORTHANDS: [(&str, &str, &str); 12] = [
    ("minutely", "*-*-*", "*:*:00"),
    ("hourly", "*-*-*", "*:00:00"),
    ("daily", "*-*-*", "00:00:00"),
    ("weekly", "Mon", "00:00:00"),
    ("monthly", "*-*-01", "00:00:00"),
    ("quarterly", "*-01,04,07,10-01", "00:00:00"),
    ("semiannually", "*-01,07-01", "00:00:00"),
    ("semi-annually", "*-01,07-01", "00:00:00"),
    ("biannually", "*-01,07-01", "00:00:00"),
    ("bi-annually", "*-01,07-01", "00:00:00"),
    ("yearly", "*-01-01", "00:00:00"),
    ("annually", "*-01-01", "00:00:00"),
];

/// `[WEEKDAYS] [DATE] [TIME]`, at least one of them.
fn parse(words: &[&str]) -> Result<Pattern, String> {
    if let [word] = words
        && let Some((_, date, time)) = SHORTHANDS.iter().find(|(name, _, _)| word.eq_ignore_ascii_case(name))
    {
        return parse(&[date, time]);
    }
    let (mut pattern, mut rest) = (Pattern::midnight(), words);
    if let [days, more @ ..] = rest
        && days.starts_with(|letter: char| letter.is_ascii_alphabetic())
    {
        pattern.weekdays = days.parse::<Days>()?;
        rest = more;
    }
    if let [date, more @ ..] = rest
        && !date.contains(':')
    {
        parse_date(date, &mut pattern)?;
        rest = more;
    }
    if let [time, more @ ..] = rest {
        parse_time(time, &mut pattern)?;
        rest = more;
    }
    match (words, rest) {
        ([], _) => Err("it is empty".to_owned()),
        (_, [word, ..]) => Err(format!("\"{word}\" is too much")),
        _ => Ok(pattern),
    }
}

/// `YEAR-MONTH-DAY`, `MONTH-DAY`; `~` before the day counts it from the end of the month.
fn parse_date(text: &str, pattern: &mut Pattern) -> Result<(), String> {
    let wrong = || format!("\"{text}\" is no date");
    let (before, day) = match text.split_once('~') {
        Some((before, day)) => {
            pattern.from_end = true;
            (before, day)
        }
        None => text.rsplit_once('-').ok_or_else(wrong)?,
    };
    let (year, month) = before.split_once('-').unwrap_or(("*", before));
    if month.contains('-') {
        return Err(wrong());
    }
    if year != "*" {
        let year = numbers(year, 0..=2199, false)?.into_iter().map(full_year).collect::<Option<_>>();
        pattern.years = Some(year.ok_or_else(|| format!("\"{before}\": years go from 1970 to 2199"))?);
    }
    pattern.months = set(month, 1..=12, false)?;
    // The last days of a month are those that every month has.
    pattern.days = if pattern.from_end { set(day, 1..=28, true)? } else { set(day, 1..=31, false)? };
    Ok(())
}

/// Years of two digits are those around 2000.
fn full_year(year: u16) -> Option<i16> {
    let full = match year {
        0..=69 => year + 2000,
        70..=99 => year + 1900,
        _ => year,
    };
    i16::try_from(full).ok().filter(|year| *year >= 1970)
}

/// `HOUR:MINUTE` or `HOUR:MINUTE:SECOND`.
fn parse_time(text: &str, pattern: &mut Pattern) -> Result<(), String> {
    let mut parts = text.split(':');
    let (Some(hour), Some(minute)) = (parts.next(), parts.next()) else { return Err(format!("\"{text}\" is no time of day")) };
    pattern.hours = set(hour, 0..=23, false)?;
    pattern.minutes = set(minute, 0..=59, false)?;
    pattern.seconds = parts.next().map_or(Ok(pattern.seconds), |second| set(second, 0..=59, false))?;
    parts.next().map_or(Ok(()), |_| Err(format!("\"{text}\" is no time of day")))
}

fn set(text: &str, bounds: RangeInclusive<u16>, down: bool) -> Result<Set, String> {
    let numbers = if text == "*" { bounds.collect() } else { numbers(text, bounds, down)? };
    Ok(numbers.into_iter().filter_map(|number| u8::try_from(number).ok()).collect())
}

/// `1,2`, `1..5`, `1/2`, `1..5/2`. Days from the end of a month are gone through downwards: `~7/2` is the
/// seventh, fifth, third and last.
fn numbers(text: &str, bounds: RangeInclusive<u16>, down: bool) -> Result<Vec<u16>, String> {
    let wrong = |part: &str, what: &str| format!("\"{part}\" {what}");
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| digits.parse::<u16>().ok()).flatten();
        let number = number.ok_or_else(|| wrong(digits, "is no number"))?;
        let outside = || format!("{number} is not from {} to {}", bounds.start(), bounds.end());
        bounds.contains(&number).then_some(number).ok_or_else(outside)
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        if part.starts_with('*') {
            return Err(wrong(part, "is not how it repeats: 0/5 is every fifth"));
        }
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                (range, Some(step.parse::<u16>().ok().filter(|step| *step > 0).ok_or_else(|| wrong(part, "repeats nothing"))?))
            }
            None => (part, None),
        };
        let (first, last) = match (range.split_once(".."), step) {
            (Some((first, last)), _) => (number(first)?, number(last)?),
            (None, Some(_)) if down => (*bounds.start(), number(range)?),
            (None, Some(_)) => (number(range)?, *bounds.end()),
            (None, None) => (number(range)?, number(range)?),
        };
        let step_by = step.unwrap_or(1);
        let is_open = !range.contains("..");
        if first > last || (is_open && step.is_some_and(|step| last - first < step)) {
            return Err(wrong(part, "goes nowhere"));
        }
        let count = (last - first) / step_by;
        all.extend((0..=count).map(|at| if down { last - at * step_by } else { first + at * step_by }));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::{known_zone, six_ticks};

    #[test]
    fn it_ticks_when_systemd_does() {
        if known_zone("Europe/London").is_none() {
            return;
        }
        let mut lines = 0;
        for line in include_str!("../../tests/golden/calendar.txt").lines().filter(|line| !line.starts_with('#')) {
            let (zone, rest) = line.split_once(" | ").expect("a zone");
            let (text, ticks) = rest.split_once(" =>").expect("ticks");
            lines += 1;
            let Some(zone) = known_zone(zone) else { continue };
            match text.parse::<Calendar>() {
                Ok(calendar) => assert_eq!(six_ticks(|at| calendar.next_after(at, &zone)), ticks.trim(), "{line}"),
                Err(said) => assert_eq!(ticks, " refused", "{said}"),
            }
        }
        assert!(lines > 80);
    }

    #[test]
    fn a_mistake_is_explained() {
        for (text, said) in [
            ("*:*/5", "0/5 is every fifth"),
            ("*/15 * * * *", "5 words; cron = "),
            ("25:00", "25 is not from 0 to 23"),
            ("fortnightly", "names no days"),
            ("daily daily", "daily"),
            ("12:30:15.5", "\"15.5\" is no number"),
            ("", "it is empty"),
            ("1960-1-1", "years go from 1970 to 2199"),
        ] {
            let error = text.parse::<Calendar>().unwrap_err();
            assert!(error.contains(said) && error.contains("systemd.time(7)"), "{text}: {error}");
        }
    }
}
