//! Limits by the hour: one rate, or a list of windows of which the first open one decides.
//!
//! Worked example: `[{ days = "Mon..Fri", from = "08:00", to = "18:00", limit = "20MiB/s" }, { limit = "1GiB/s" }]`
//! is 20 MiB/s on a Tuesday at noon, and 1 GiB/s from 18:00 on. Where no entry is open there is no limit.

use super::days::Days;
use super::window::{DayTime, Window};
use crate::limits::{BANDWIDTH_CHANGES_MAX, BANDWIDTH_ENTRIES_MAX};
use crate::settings::Rate;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Which limit holds when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
struct Entry {
    window: Window,
    limit: Rate,
}

/// What a file says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<Days>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<DayTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<DayTime>,
    limit: Rate,
}

impl TryFrom<Keys> for Entry {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Entry, String> {
        Ok(Entry { window: Window::new(keys.days, keys.from, keys.to)?, limit: keys.limit })
    }
}

impl From<Entry> for Keys {
    fn from(entry: Entry) -> Keys {
        let (days, from, to) = entry.window.keys();
        Keys { days, from, to, limit: entry.limit }
    }
}

impl From<Rate> for Table {
    fn from(limit: Rate) -> Table {
        let window = Window::default();
        Table { entries: vec![Entry { window, limit }] }
    }
}

impl Table {
    /// Whether it never limits anything.
    pub fn is_unlimited(&self) -> bool {
        self.entries.iter().all(|entry| entry.limit == Rate::Unlimited)
    }

    /// What holds at an instant.
    pub fn limit_at(&self, at: Timestamp, zone: &TimeZone) -> Rate {
        self.entries.iter().find(|entry| entry.window.is_open(at, zone)).map_or(Rate::Unlimited, |entry| entry.limit)
    }

    /// When another limit than now will hold, looking at most `BANDWIDTH_CHANGES_MAX` borders of windows ahead: where
    /// none of them changes it, the last of them, as a time to ask again. `None` where it never changes.
    pub fn next_change(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let now = self.limit_at(at, zone);
        let mut then = at;
        for _ in 0..BANDWIDTH_CHANGES_MAX {
            then = self.entries.iter().filter_map(|entry| entry.window.next_change(then, zone)).min()?;
            if self.limit_at(then, zone) != now {
                break;
            }
        }
        Some(then)
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.entries[..] {
            [Entry { window, limit }] if *window == Window::default() => limit.serialize(serializer),
            entries => entries.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        deserializer.deserialize_any(RateOrList)
    }
}

/// By hand, because serde's untagged enums forget what was wrong and where.
struct RateOrList;

impl<'de> Visitor<'de> for RateOrList {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rate such as \"20MiB/s\", or a list of { days, from, to, limit }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Table, E> {
        text.parse::<Rate>().map(Table::from).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Table, A::Error> {
        let entries = Vec::<Entry>::deserialize(SeqAccessDeserializer::new(list))?;
        if entries.len() > BANDWIDTH_ENTRIES_MAX {
            return Err(de::Error::custom(format!("{} entries of bandwidth: {BANDWIDTH_ENTRIES_MAX} at most", entries.len())));
        }
        Ok(Table { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::{berlin, time};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        bandwidth: Table,
    }

    fn table(text: &str) -> Table {
        crate::settings::parse::<File>(&format!("bandwidth = {text}"), "f.toml").unwrap().bandwidth
    }

    const OFFICE: &str = r#"[ { days = "Mon..Fri", from = "08:00", to = "18:00", limit = "20MiB/s" }, { limit = "unlimited" } ]"#;

    #[test]
    fn the_first_open_entry_decides_until_it_closes() {
        let table = table(OFFICE);
        let at = |text: &str| {
            let at = time(text);
            (table.limit_at(at, &berlin()).to_string(), table.next_change(at, &berlin()))
        };
        assert_eq!(at("2026-11-24 12:00"), ("20MiB/s".to_owned(), Some(time("2026-11-24 18:00"))));
        assert_eq!(at("2026-11-24 18:00"), ("unlimited".to_owned(), Some(time("2026-11-25 08:00"))));
        assert_eq!(at("2026-11-27 19:00"), ("unlimited".to_owned(), Some(time("2026-11-30 08:00"))));
    }

    #[test]
    fn a_limit_that_never_changes_says_so() {
        for text in ["\"20MiB/s\"", "\"unlimited\"", "[]"] {
            assert_eq!(table(text).next_change(time("2026-11-24 12:00"), &berlin()), None, "{text}");
        }
        assert!(table("\"unlimited\"").is_unlimited() && Table::default().is_unlimited());
        assert!(!table(OFFICE).is_unlimited());
        let same = table(r#"[ { from = "08:00", to = "18:00", limit = "1MiB/s" }, { limit = "1MiB/s" } ]"#);
        assert!(same.next_change(time("2026-11-24 12:00"), &berlin()).unwrap() > time("2027-03-01 00:00"));
    }

    #[test]
    fn what_is_shown_is_what_was_written() {
        for text in ["\"20MiB/s\"", OFFICE, r#"[ { from = "22:00", limit = "1MiB/s" } ]"#] {
            let file = File { bandwidth: table(text) };
            let shown = toml::to_string(&file).unwrap();
            assert_eq!(crate::settings::parse::<File>(&shown, "shown").unwrap(), file, "{shown}");
        }
        assert_eq!(toml::to_string(&File { bandwidth: table("\"20MiB/s\"") }).unwrap(), "bandwidth = \"20MiB/s\"\n");
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let said = |text: &str| crate::settings::parse::<File>(text, "f.toml").unwrap_err().chain();
        let list = |entry: &str| said(&format!("bandwidth = [\n {{ limit = \"1MiB/s\" }},\n {entry} ]"));
        assert!(list("{ form = \"08:00\", limit = \"1MiB/s\" }").starts_with("f.toml:3: unknown field `form`"));
        assert!(list("{ from = \"8\", limit = \"1MiB/s\" }").starts_with("f.toml:3: \"8\" is no time of day"));
        assert!(list("{ days = \"workdays\", limit = \"1MiB/s\" }").contains("names no days"));
        assert!(list("{ from = \"08:00\", to = \"08:00\", limit = \"1MiB/s\" }").contains("the same time"));
        assert!(said("\nbandwidth = \"fast\"").starts_with("f.toml:2: \"fast\" is no rate"));
        assert!(said("bandwidth = 5").contains("a rate such as \"20MiB/s\", or a list"));
    }
}
