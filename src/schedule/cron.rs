//! Calendars as crontab(5) writes them: five fields, `@daily` and the like. Where both a day of the month and
//! a day of the week are named, either is enough; a field that begins with `*` names none.

use super::calendar::Calendar;
use super::days::{self, Days};
use super::pattern::{Pattern, Set};
use crate::settings::by_text;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::str::FromStr;

/// A calendar in cron's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron(Calendar);

by_text!(Cron);

impl Cron {
    /// As [`Calendar::next_after`].
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.0.next_after(after, zone)
    }
}

impl From<Cron> for Calendar {
    fn from(cron: Cron) -> Calendar {
        cron.0
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

impl FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Cron, String> {
        let wrong = |what: String| format!("\"{text}\" is no line of cron: {what}: write */15 * * * * or @daily (crontab(5))");
        let nickname = NICKNAMES.iter().find(|(name, _)| text.trim().eq_ignore_ascii_case(name));
        let fields: Vec<&str> = nickname.map_or(text, |(_, line)| line).split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(wrong(format!("{} fields and not five", fields.len())));
        };
        let pattern = parse(minute, hour, day, month, weekday).map_err(wrong)?;
        Ok(Cron(Calendar::new(text, pattern)))
    }
}

fn parse(minute: &str, hour: &str, day: &str, month: &str, weekday: &str) -> Result<Pattern, String> {
    let plain = |_: &str| None;
    let named_month = |name: &str| MONTHS.iter().position(|month| name.eq_ignore_ascii_case(month)).map(|at| at as u8 + 1); // of twelve
    // Cron counts from Sunday = 0, and takes 7 for it as well.
    let named_day = |name: &str| days::number(name).filter(|_| name.len() == 3).map(|from_monday| (from_monday + 1) % 7);
    let weekdays = field(weekday, 0, 7, &named_day)?;
    let is_star = |field: &str| field.starts_with('*');
    Ok(Pattern {
        weekdays: Days::of((0..=7).filter(|number| weekdays.0 & (1 << number) != 0).map(|from_sunday| from_sunday + 6)),
        months: field(month, 1, 12, &named_month)?,
        days: field(day, 1, 31, &plain)?,
        either_day: !is_star(day) && !is_star(weekday),
        hours: field(hour, 0, 23, &plain)?,
        minutes: field(minute, 0, 59, &plain)?,
        ..Pattern::midnight()
    })
}

/// `*`, `5`, `1-5`, `*/15`, `10-40/5`, `10/5` (from ten on), and lists of them.
fn field(text: &str, least: u8, most: u8, named: &dyn Fn(&str) -> Option<u8>) -> Result<Set, String> {
    let number = |word: &str| {
        let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| word.parse::<u8>().ok()).flatten().or_else(|| named(word));
        let number = number.filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("\"{word}\" is not from {least} to {most}"))
    };
    let mut set = Set::default();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                (range, Some(step.parse::<u8>().ok().filter(|step| *step > 0).ok_or_else(|| format!("\"{part}\" repeats nothing"))?))
            }
            None => (part, None),
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*", _) => (least, most),
            (_, Some((first, last))) => (number(first)?, number(last)?),
            (_, None) if step.is_some() => (number(range)?, most),
            (_, None) => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(format!("\"{part}\" goes nowhere"));
        }
        set.0 |= (first..=last).step_by(usize::from(step.unwrap_or(1))).collect::<Set>().0;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::six_ticks;

    #[test]
    fn it_ticks_when_cron_does() {
        let mut lines = 0;
        for line in include_str!("../../tests/golden/cron.txt").lines().filter(|line| !line.starts_with('#')) {
            let (text, ticks) = line.split_once(" => ").expect("ticks");
            lines += 1;
            match text.parse::<Cron>() {
                Ok(cron) => assert_eq!(six_ticks(|at| cron.next_after(at, &TimeZone::UTC)), ticks, "{line}"),
                Err(said) => assert!(ticks == "refused" && said.contains("crontab(5)"), "{said}"),
            }
        }
        assert!(lines > 35);
    }
}
