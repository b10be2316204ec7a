//! A part of the day, also over midnight: `{ from = "20:00", to = "06:00" }`, on some `days` only.
//!
//! A window is a row of spans of time, one for each day on which it opens; `days` are those on which it
//! opens, so that `Fri` 20:00 to 06:00 ends on Saturday. Worked example of the days on which clocks are
//! put: 01:30 to 04:00 in Berlin lasts an hour and a half on the last Sunday in March and three and a half
//! in October. An end that the clocks jump over is the instant of the jump, and one that they show twice is
//! the first of the two; that keeps ends in order and spans apart. A window that lies in the jump as a whole
//! does not open that day.

use super::days::Days;
use crate::settings::by_text;
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A time of day in whole minutes, up to 24:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayTime {
    minutes: u16,
}

by_text!(DayTime);

impl DayTime {
    const MIDNIGHT: DayTime = DayTime { minutes: 0 };
    const END: DayTime = DayTime { minutes: 24 * 60 };

    fn on(self, date: Date) -> Option<DateTime> {
        date.at(0, 0, 0, 0).checked_add(i64::from(self.minutes).minutes()).ok()
    }
}

impl FromStr for DayTime {
    type Err = String;

    fn from_str(text: &str) -> Result<DayTime, String> {
        let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten();
        let parts = text.split_once(':').filter(|(hour, minute)| (1..=2).contains(&hour.len()) && minute.len() == 2);
        let parts = parts.and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
        let minutes = parts.filter(|(_, minute)| *minute < 60).map(|(hour, minute)| hour * 60 + minute);
        let time = minutes.map(|minutes| DayTime { minutes }).filter(|time| *time <= DayTime::END);
        time.ok_or_else(|| format!("\"{text}\" is no time of day: write 08:00, up to 24:00"))
    }
}

impl fmt::Display for DayTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

/// Times of the day, on some days or all. Empty means always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Keys")]
pub struct Window {
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<Days>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<DayTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<DayTime>,
}

/// What a file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    days: Option<Days>,
    from: Option<DayTime>,
    to: Option<DayTime>,
}

impl TryFrom<Keys> for Window {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Window, String> {
        Window::new(keys.days, keys.from, keys.to)
    }
}

/// Days ahead within which every window opens or closes: a week, and the days at its ends.
const DAYS_AHEAD: i32 = 9;

impl Window {
    /// Leave all out for always, `from` and `to` for whole days.
    pub fn new(days: Option<Days>, from: Option<DayTime>, to: Option<DayTime>) -> Result<Window, String> {
        if from.is_some() && from == to {
            return Err("from and to are the same time: leave both out for the whole day".to_owned());
        }
        Ok(Window { days, from, to })
    }

    /// Whether it never closes.
    pub fn is_always(&self) -> bool {
        let (from, to) = self.times();
        self.days.unwrap_or(Days::ALL) == Days::ALL && from == DayTime::MIDNIGHT && to == DayTime::END
    }

    /// Its days, and the times where it says any: what [`Window::new`] was given.
    pub fn keys(&self) -> (Option<Days>, Option<DayTime>, Option<DayTime>) {
        (self.days, self.from, self.to)
    }

    /// Whether it is open at an instant.
    pub fn is_open(&self, at: Timestamp, zone: &TimeZone) -> bool {
        self.opening(at, zone) == Some(at)
    }

    /// The instant itself where it is open, otherwise its next opening.
    pub fn opening(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.is_always() {
            return Some(at);
        }
        self.spans(at, zone).map(|(opens, _)| opens.max(at)).next()
    }

    /// When it opens or closes next, after this instant; never for one that is always open.
    pub fn next_change(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.is_always() {
            return None;
        }
        let (opens, mut closes) = self.spans(at, zone).next()?;
        if opens > at {
            return Some(opens);
        }
        // Spans that touch are one: a window of whole days does not close at midnight.
        for (opens, end) in self.spans(at, zone) {
            if opens <= closes {
                closes = closes.max(end);
            }
        }
        Some(closes)
    }

    fn times(&self) -> (DayTime, DayTime) {
        (self.from.unwrap_or(DayTime::MIDNIGHT), self.to.unwrap_or(DayTime::END))
    }

    /// The spans that end after `at`, in order; those that are empty left out.
    fn spans(&self, at: Timestamp, zone: &TimeZone) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let (today, days) = (zone.to_datetime(at).date(), self.days.unwrap_or(Days::ALL));
        let (from, to) = self.times();
        // Two days back: clocks may have been put by up to a day.
        let dates = (-2..=DAYS_AHEAD).filter_map(move |day| today.checked_add(day.days()).ok());
        dates.filter(move |date| days.contains(date.weekday())).filter_map(move |date| {
            let last = if to <= from { date.checked_add(1.day()).ok()? } else { date };
            let (opens, closes) = (instant(zone, from.on(date)?)?, instant(zone, to.on(last)?)?);
            (opens < closes && closes > at).then_some((opens, closes))
        })
    }
}

/// When the clocks of a zone show this for the first time, or jump over it.
pub(super) fn instant(zone: &TimeZone, civil: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    match ambiguous.offset() {
        // Read with the offset of before, a time that was jumped over lies behind the jump.
        AmbiguousOffset::Gap { before, .. } => {
            let behind = before.to_timestamp(civil).ok()?;
            zone.preceding(behind.checked_add(1.nanosecond()).ok()?).next().map(|transition| transition.timestamp())
        }
        _ => ambiguous.earlier().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::{berlin, time};

    fn window(days: &str, from: &str, to: &str) -> Window {
        let days = (!days.is_empty()).then(|| days.parse().unwrap());
        Window::new(days, Some(from.parse().unwrap()), Some(to.parse().unwrap())).unwrap()
    }

    /// How long it is open, beginning with the next opening.
    fn minutes_open(window: &Window, at: &str) -> i64 {
        let opens = window.opening(time(at), &berlin()).unwrap();
        let closes = window.next_change(opens, &berlin()).unwrap();
        (closes.as_second() - opens.as_second()) / 60
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_opens() {
        let night = window("Fri", "20:00", "06:00");
        let open = |at: &str| night.is_open(time(at), &berlin());
        assert!(!open("2026-11-27 19:59") && open("2026-11-27 20:00"));
        assert!(open("2026-11-28 05:59") && !open("2026-11-28 06:00"));
        assert!(!open("2026-11-26 23:00") && !open("2026-11-27 05:00"));
        assert_eq!(night.opening(time("2026-11-28 06:00"), &berlin()), Some(time("2026-12-04 20:00")));
        assert_eq!(night.next_change(time("2026-11-27 23:00"), &berlin()), Some(time("2026-11-28 06:00")));
    }

    #[test]
    fn whole_days_do_not_close_at_midnight() {
        let weekend = Window::new(Some("Sat,Sun".parse().unwrap()), None, None).unwrap();
        assert_eq!(weekend.opening(time("2026-11-25 12:00"), &berlin()), Some(time("2026-11-28 00:00")));
        assert_eq!(weekend.next_change(time("2026-11-28 12:00"), &berlin()), Some(time("2026-11-30 00:00")));
        assert_eq!(minutes_open(&weekend, "2026-10-22 00:00"), 49 * 60);
        assert!(Window::default().is_always() && Window::default().next_change(time("2026-11-28 12:00"), &berlin()).is_none());
    }

    #[test]
    fn windows_keep_their_order_on_the_days_on_which_clocks_are_put() {
        for (from, to, march, october) in [
            ("01:30", "04:00", 90, 210),
            ("02:30", "03:15", 15, 105), // from the jump on; from the first 02:30 on
            ("01:00", "02:30", 60, 90),
            ("20:00", "06:00", 540, 660),
        ] {
            let window = window("", from, to);
            // The night of the change begins on the evening before.
            let over_midnight = from == "20:00";
            let (spring, autumn) = if over_midnight { ("2026-03-28", "2026-10-24") } else { ("2026-03-29", "2026-10-25") };
            let hour = if over_midnight { "12:00" } else { "00:30" };
            assert_eq!(minutes_open(&window, &format!("{spring} {hour}")), march, "{from}");
            assert_eq!(minutes_open(&window, &format!("{autumn} {hour}")), october, "{from}");
        }
        // It lies in the hour that is not there.
        let lost = window("", "02:15", "02:45");
        assert_eq!(lost.opening(time("2026-03-29 00:00"), &berlin()), Some(time("2026-03-30 02:15")));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["8", "8:0", "24:01", "12:60", "-1:00", "+1:00", "08:00:00", "noon", "", ":"] {
            assert!(text.parse::<DayTime>().unwrap_err().contains("write 08:00"), "{text}");
        }
        assert_eq!("8:05".parse::<DayTime>().unwrap().to_string(), "08:05");
        assert!(toml::from_str::<Window>("from = \"08:00\"\nto = \"08:00\"").is_err());
        assert!(toml::from_str::<Window>("form = \"08:00\"").is_err());
        let text = "days = \"Mon..Fri\"\nfrom = \"20:00\"\nto = \"06:00\"\n";
        assert_eq!(toml::to_string(&toml::from_str::<Window>(text).unwrap()).unwrap(), text);
    }
}
