//! Days of the week as systemd spells them: `Mon..Fri`, `Sat,Sun`, `Mon,Wed..Fri`.

use crate::settings::by_text;
use jiff::civil::Weekday;
use std::fmt;
use std::str::FromStr;

/// Some days of the week: bit 0 is Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u8);

by_text!(Days);

const NAMES: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Days {
    /// Every day.
    pub const ALL: Days = Days(0x7f);

    /// Whether this day is one of them.
    pub fn contains(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }

    /// These alone, counted from Monday = 0.
    pub(super) fn of(numbers: impl IntoIterator<Item = u8>) -> Days {
        Days(numbers.into_iter().fold(0, |days, number| days | 1 << (number % 7)))
    }
}

/// The number of a day by its name or the first three letters of it, from Monday = 0.
pub(super) fn number(name: &str) -> Option<u8> {
    let is = |full: &&str| name.eq_ignore_ascii_case(full) || name.eq_ignore_ascii_case(&full[..3]);
    NAMES.iter().position(is).and_then(|at| u8::try_from(at).ok())
}

impl FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Days, String> {
        let day = |name: &str| {
            number(name.trim()).ok_or_else(|| format!("\"{text}\" names no days: write Mon..Fri or Sat,Sun; \"{}\" is none", name.trim()))
        };
        let mut days = Days(0);
        for part in text.split(',') {
            let (first, last) = part.split_once("..").or_else(|| part.split_once('-')).unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // Sat..Mon goes over the end of the week.
            let count = (last + 7 - first) % 7;
            days.0 |= Days::of((0..=count).map(|step| first + step)).0;
        }
        Ok(days)
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |at: usize| self.0 & (1 << at) != 0;
        let (mut at, mut comma) = (0, "");
        while at < 7 {
            let run = (at..7).take_while(|day| has(*day)).count();
            match run {
                0 => {}
                1 => write!(f, "{comma}{}", &NAMES[at][..3])?,
                2 => write!(f, "{comma}{},{}", &NAMES[at][..3], &NAMES[at + 1][..3])?,
                _ => write!(f, "{comma}{}..{}", &NAMES[at][..3], &NAMES[at + run - 1][..3])?,
            }
            comma = if run > 0 { "," } else { comma };
            at += run.max(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_systemd_writes_them() {
        for (text, shown) in [
            ("Mon..Fri", "Mon..Fri"),
            ("Sat,Sun", "Sat,Sun"),
            ("Mon,Wed..Fri", "Mon,Wed..Fri"),
            ("sunday, TUE", "Tue,Sun"),
            ("Sat..Mon", "Mon,Sat,Sun"),
            ("Mon-Thu", "Mon..Thu"), // as older versions wrote it
            ("Thu", "Thu"),
        ] {
            assert_eq!(text.parse::<Days>().unwrap().to_string(), shown, "{text}");
        }
        assert!("Mon..Sun".parse::<Days>() == Ok(Days::ALL));
        assert!("Fri".parse::<Days>().unwrap().contains(Weekday::Friday));
        assert!(!"Fri".parse::<Days>().unwrap().contains(Weekday::Saturday));
    }

    #[test]
    fn what_is_no_day_is_named() {
        for text in ["", "Mon..", "weekend", "Mon,,Tue", "Mo"] {
            assert!(text.parse::<Days>().unwrap_err().contains("Mon..Fri"), "{text}");
        }
    }
}
