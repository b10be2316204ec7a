//! Amounts of bytes and bytes a second as people write them: `8GiB`, `20MiB/s`, `unlimited`.

use super::by_text;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

const UNITS: [(&str, u64); 5] = [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Bytes with a unit: `8GiB`, `512MiB`, `64K`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

by_text!(Size);

/// A part of a whole: `5%` of it, or `8GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Per cent of the whole.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

by_text!(Share);

impl Share {
    /// Bytes of this share of a whole.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Share::Percent(percent) => (u128::from(whole) * u128::from(percent) / 100) as u64, // percent is at most 100, so it fits
            Share::Bytes(bytes) => bytes,
        }
    }
}

/// Bytes a second, or as many as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// No limit.
    Unlimited,
    /// Bytes a second.
    PerSecond(NonZeroU64),
}

by_text!(Rate);

/// Bytes in the largest unit that states them exactly.
pub fn exact(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}"),
    }
}

/// Bytes for people: one decimal.
pub fn about(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Whole bytes in units of 1024; `K` and `KiB` are the same. `None` for anything else.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Digits, and what stands behind them.
fn split(text: &str) -> (&str, &str) {
    let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    (number, unit.trim())
}

/// What lines are sold in: `100Mbit/s` are 12.5 million bytes a second.
fn parse_bits(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let eighths = match unit {
        "kbit" => 125,
        "Mbit" => 125_000,
        "Gbit" => 125_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(eighths)
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        parse_bytes(text).map(Size).ok_or_else(|| format!("\"{text}\" is no size: write 8GiB, 512MiB or 64KiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&exact(self.0))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let share = match text.strip_suffix('%') {
            Some(number) => number.trim().parse().ok().filter(|percent| *percent <= 100).map(Share::Percent),
            None => parse_bytes(text).map(Share::Bytes),
        };
        share.ok_or_else(|| format!("\"{text}\" is no amount of room: write 5% or 8GiB"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Percent(percent) => write!(f, "{percent}%"),
            Share::Bytes(bytes) => f.write_str(&exact(*bytes)),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "unlimited" {
            return Ok(Rate::Unlimited);
        }
        let amount = text.strip_suffix("/s").and_then(|amount| parse_bits(amount).or_else(|| parse_bytes(amount)));
        // A rate of nothing would be a run that never ends.
        let amount = amount.and_then(NonZeroU64::new);
        amount.map(Rate::PerSecond).ok_or_else(|| format!("\"{text}\" is no rate: write 20MiB/s, 100Mbit/s or unlimited"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Unlimited => f.write_str("unlimited"),
            Rate::PerSecond(bytes) => {
                let amount = exact(bytes.get());
                // A bare number would leave open what is counted.
                let unit = if amount.ends_with('B') { "" } else { "B" };
                write!(f, "{amount}{unit}/s")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_was_typed() {
        for text in ["8GiB", "1536MiB", "1000", "0", "2TiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["20MiB/s", "unlimited", "1000B/s", "1GiB/s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["10%", "0%", "5GiB"] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
        assert_eq!(("10%".parse::<Share>().unwrap().of(u64::MAX), Share::Bytes(7).of(1)), (u64::MAX / 10, 7));
        assert_eq!("64K".parse(), Ok(Size(65536)));
        assert_eq!("100Mbit/s".parse::<Rate>().unwrap().to_string(), "12500000B/s");
    }

    #[test]
    fn nonsense_is_refused_with_examples() {
        for text in ["", "8PB", "-1", "1.5GiB", "GiB", "99999999PiB"] {
            assert!(text.parse::<Size>().unwrap_err().contains("8GiB"), "{text}");
        }
        for text in ["", "101%", "-1%", "ten%", "10%%"] {
            assert!(text.parse::<Share>().unwrap_err().contains("write 5% or 8GiB"), "{text}");
        }
        for text in ["", "0/s", "20MiB", "0MiB/s", "20mbit/s", "Unlimited", "99999999999999999Gbit/s"] {
            assert!(text.parse::<Rate>().unwrap_err().contains("20MiB/s"), "{text}");
        }
    }

    #[test]
    fn files_hold_them_as_text() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct File {
            size: Size,
            rate: Rate,
        }
        let text = "size = \"8GiB\"\nrate = \"20MiB/s\"\n";
        let file: File = crate::settings::parse(text, "f").unwrap();
        assert_eq!(toml::to_string(&file).unwrap(), text);
        let said = crate::settings::parse::<File>("size = \"8GiB\"\nrate = \"fast\"\n", "f.toml").unwrap_err().chain();
        assert!(said.starts_with("f.toml:2: \"fast\" is no rate"), "{said}");
    }
}
