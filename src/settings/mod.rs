//! What every configuration file has in common: mistakes named with their line and what was meant, and
//! the words that stand for times, amounts, names and patterns.

pub mod amount;
mod several;

pub use amount::{Rate, Share, Size};
pub use several::Several;

use crate::error::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serializer};
use std::time::Duration;

/// Reads the text of a file called `name`.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| explain(&error, text, name))
}

/// File, line, what is wrong, and what was probably meant.
fn explain(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let meant = match quoted.next() {
        Some(wrong) if message.starts_with("unknown ") => {
            let near = quoted.map(|word| (distance(wrong, word), word)).min().filter(|(far, word)| *far <= 1 + word.len() / 4);
            near.map_or(String::new(), |(_, word)| format!(": did you mean `{word}`?"))
        }
        _ => String::new(),
    };
    Error::new(Kind::Usage, format!("{name}:{line}: {message}{meant}"))
}

/// Letters to insert, remove or change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.pop().unwrap_or_default()
}

/// Names appear in logs and on command lines.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with(['-', '.']) {
        return Ok(());
    }
    Err(format!("{what} name {name:?}: letters, digits, '.', '_' and '-' make a name, 64 at most"))
}

/// `*` stands for any characters, also none; everything else for itself. The name is a peer's word: each piece
/// of the pattern takes the nearest place, which is as good as any later one and never looks back. Trying every
/// place for every star takes n³ steps for three stars, minutes for a name of a few thousand letters.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let (pieces, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut name) = name.strip_prefix(head).and_then(|name| name.strip_suffix(tail)) else { return false };
    for piece in pieces.split('*') {
        let Some(at) = name.find(piece) else { return false };
        name = &name[at + piece.len()..];
    }
    true
}

/// `10s`, `500ms`, `2min`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[at..] {
        "ms" => 1,
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("\"{text}\" is no time: a number and ms, s, min, h or d")),
    };
    let number = text[..at].parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.map(Duration::from_millis).ok_or_else(|| format!("\"{text}\" is no time"))
}

/// The largest unit that states a time exactly, so that files show it as it was written.
pub fn write_duration(time: Duration) -> String {
    let ms = time.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

/// A time for people: its two largest units, such as `1 h 40 min`.
pub fn about_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(at) = units.iter().position(|(unit, _)| seconds >= *unit) else { return "0 s".to_owned() };
    let (unit, name) = units[at];
    let rest = units.get(at + 1).map(|(below, name)| (seconds % unit / below, name)).filter(|(count, _)| *count > 0);
    let rest = rest.map_or(String::new(), |(count, name)| format!(" {count} {name}"));
    format!("{} {name}{rest}", seconds / unit)
}

/// The zone in which times of day are meant, and a word to the operator where it is not known.
pub fn local_time_zone() -> (jiff::tz::TimeZone, Option<String>) {
    match jiff::tz::TimeZone::try_system() {
        Ok(zone) => (zone, None),
        Err(error) => (jiff::tz::TimeZone::UTC, Some(format!("the time zone of this host is not known ({error}): times of day are UTC"))),
    }
}

/// Makes files hold a type as what its `Display` writes and its `FromStr` reads.
macro_rules! by_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use by_text;

/// For `#[serde(with = …)]`.
pub mod duration {
    use super::*;

    /// Written in the largest unit that states it exactly, down to milliseconds.
    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&write_duration(*time))
    }

    /// Read by [`parse_duration`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_are_typed() {
        for text in ["10s", "500ms", "2min", "1h", "2d", "90s", "0ms"] {
            assert_eq!(write_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn people_read_two_units_of_a_time() {
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (6000, "1 h 40 min"), (3605, "1 h"), (90_000, "1 d 1 h")] {
            assert_eq!(about_duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in
            [("db-*", "db-data"), ("db-*", "db-"), ("*", ""), ("*", "x"), ("a*b*c", "aXbYc"), ("a*b*c", "abbc"), ("x", "x")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("db-*", "db"), ("db-*", "xdb-data"), ("a*b", "abc"), ("", "x"), ("x", "xy"), ("*é", "e"), ("aa*aa", "aaa")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn every_pattern_covers_what_trying_everything_covers() {
        fn tried(pattern: &str, name: &str) -> bool {
            let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
            let Some(name) = name.strip_prefix(head) else { return false };
            (0..=name.len()).any(|at| tried(rest, &name[at..]))
        }
        let words = |letters: &str, long: u32| -> Vec<String> {
            let letters: Vec<char> = letters.chars().collect();
            let word = |number: usize, length: u32| (0..length).map(|at| letters[number / letters.len().pow(at) % letters.len()]).collect();
            (0..=long)
                .flat_map(|length| (0..letters.len().pow(length)).map(move |number| (number, length)))
                .map(|(n, l)| word(n, l))
                .collect()
        };
        for pattern in words("ab*", 5) {
            for name in words("ab", 5) {
                assert_eq!(matches(&pattern, &name), tried(&pattern, &name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_long_name_is_compared_in_one_go() {
        let name = "-".repeat(4000);
        assert!(!matches("db*-*-*-*-*x", &name) && !matches("*-*-*-*-*x", &name) && matches("*-*-*-*-*", &name));
        assert!(!matches("*-*-*-x*-*", &name));
    }
}
