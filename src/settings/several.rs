//! How many of something to use side by side: `auto`, or a number from 1 to a bound.

use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// As many as pay, or so many, `MOST` at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Several<const MOST: usize> {
    /// As many as pay.
    #[default]
    Auto,
    /// So many.
    Count(NonZeroUsize),
}

impl<const MOST: usize> Several<MOST> {
    fn of(count: usize) -> Option<Several<MOST>> {
        NonZeroUsize::new(count).filter(|count| count.get() <= MOST).map(Several::Count)
    }

    /// The number that was asked for, if one was.
    pub fn told(self) -> Option<usize> {
        match self {
            Several::Auto => None,
            Several::Count(count) => Some(count.get()),
        }
    }
}

impl<const MOST: usize> fmt::Display for Several<MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Several::Auto => f.write_str("auto"),
            Several::Count(count) => count.fmt(f),
        }
    }
}

impl<const MOST: usize> FromStr for Several<MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Several<MOST>, String> {
        let told = || text.parse().ok().and_then(Several::of);
        if text == "auto" { Ok(Several::Auto) } else { told().ok_or_else(|| format!("takes auto or a number from 1 to {MOST}")) }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Word(String),
    Number(u64),
}

impl<'de, const MOST: usize> Deserialize<'de> for Several<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Several<MOST>, D::Error> {
        let expected = format!("auto or a number from 1 to {MOST}");
        match Written::deserialize(deserializer)? {
            Written::Word(word) => word.parse().map_err(|_| D::Error::invalid_value(Unexpected::Str(&word), &expected.as_str())),
            Written::Number(number) => usize::try_from(number)
                .ok()
                .and_then(Several::of)
                .ok_or_else(|| D::Error::invalid_value(Unexpected::Unsigned(number), &expected.as_str())),
        }
    }
}

impl<const MOST: usize> Serialize for Several<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Several::Auto => serializer.serialize_str("auto"),
            Several::Count(count) => serializer.serialize_u64(count.get() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        shards: Several<16>,
    }

    #[test]
    fn a_number_within_its_bounds_or_auto_and_nothing_else() {
        let read = |value: &str| toml::from_str::<File>(&format!("shards = {value}"));
        assert_eq!(read("\"auto\"").unwrap().shards, Several::Auto);
        assert_eq!((read("16").unwrap().shards.told(), "16".parse::<Several<16>>().unwrap().told()), (Some(16), Some(16)));
        for wrong in ["0", "17", "-1", "\"many\"", "true"] {
            assert!(read(wrong).is_err(), "{wrong}");
            assert!(wrong.parse::<Several<16>>().is_err(), "{wrong}");
        }
        assert!(read("17").unwrap_err().to_string().contains("auto or a number from 1 to 16"));
    }
}
