//! Values that are written as one word in a configuration file: read by their own `FromStr`, shown by
//! their own `Display`, so that a file and the command line understand the same.

use crate::settings::parse_duration;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A value written as the text it is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word<T>(pub T);

impl<T: fmt::Display> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Word<T>
where
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<T>, D::Error> {
        String::deserialize(deserializer)?.parse().map(Word).map_err(serde::de::Error::custom)
    }
}

/// A length of time: `10s`, `500ms`, `2min`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        parse_duration(text).map(Span)
    }
}

impl fmt::Display for Span {
    /// In the largest unit that states it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)];
        match units.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "{ms}ms"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        Word::deserialize(deserializer).map(|Word(span)| span)
    }
}

/// A number of bytes: `64K`, `4MiB`, `8GiB`; the units are powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// The units of bytes, the largest first.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
        let named = unit.trim().to_ascii_lowercase();
        let factor = UNITS.iter().find(|(name, _)| {
            let name = name.to_ascii_lowercase();
            name == named || !named.is_empty() && name.strip_suffix("ib").is_some_and(|letter| letter == named)
        });
        let bytes = factor.and_then(|(_, factor)| number.parse::<u64>().ok()?.checked_mul(*factor));
        bytes.map(Bytes).ok_or_else(|| format!("\"{text}\" is no size: a number and KiB, MiB, GiB or TiB"))
    }
}

impl fmt::Display for Bytes {
    /// In the largest unit that states it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit));
        let (name, unit) = exact.unwrap_or(("", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_they_may_be_typed() {
        for (text, bytes) in [("64K", 65536), ("64KiB", 65536), ("4m", 4 << 20), ("4096", 4096), ("8GiB", 8 << 30)] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!(read.0, bytes, "{text}");
            assert_eq!(read.to_string().parse::<Bytes>().unwrap(), read);
        }
        assert!("".parse::<Bytes>().is_err() && "5X".parse::<Bytes>().is_err() && "99999999TiB".parse::<Bytes>().is_err());
    }

    #[test]
    fn a_span_is_shown_as_it_may_be_typed() {
        for text in ["10s", "500ms", "2min", "1h", "1d", "90s", "0ms"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("120s".parse::<Span>().unwrap().to_string(), "2min");
        assert!("10 apples".parse::<Span>().is_err());
    }
}
