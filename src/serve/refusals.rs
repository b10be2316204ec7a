//! What the log says of strangers: the first few of a minute each get their line, the others a number, so that
//! whoever knocks ten thousand times fills no disk. Pure: it is told the time.

use crate::limits::{REFUSALS_LOGGED, REFUSALS_WINDOW};
use std::time::Instant;

/// Refusals of the minute that runs.
#[derive(Debug)]
pub struct Refusals {
    since: Instant,
    said: u32,
    unsaid: u64,
    last: String,
}

impl Refusals {
    /// None so far.
    pub fn new(now: Instant) -> Refusals {
        Refusals { since: now, said: 0, unsaid: 0, last: String::new() }
    }

    /// One more, from there. Whether it gets a line of its own.
    pub fn one(&mut self, from: &str, now: Instant) -> bool {
        if self.said == 0 && self.unsaid == 0 {
            self.since = now;
        }
        if self.said < REFUSALS_LOGGED {
            self.said += 1;
            return true;
        }
        self.unsaid += 1;
        self.last = from.to_owned();
        false
    }

    /// At the end of a minute: the line for those that got none.
    pub fn summary(&mut self, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.since) < REFUSALS_WINDOW {
            return None;
        }
        let (unsaid, last) = (std::mem::take(&mut self.unsaid), std::mem::take(&mut self.last));
        (self.since, self.said) = (now, 0);
        (unsaid > 0).then(|| format!("refused {unsaid} more in the last minute, the last from={last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_costs_a_few_lines_a_minute_and_is_counted() {
        let begin = Instant::now();
        let mut refusals = Refusals::new(begin);
        let mut lines = 0;
        let mut summaries = Vec::new();
        // A hundred a second for three minutes.
        for tick in 0..18_000u64 {
            let now = begin + Duration::from_millis(10 * tick);
            summaries.extend(refusals.summary(now));
            lines += u32::from(refusals.one(&format!("192.0.2.{}", tick % 256), now));
        }
        assert_eq!((lines, summaries.len()), (3 * REFUSALS_LOGGED, 2));
        assert!(summaries[0].starts_with(&format!("refused {} more", 6000 - u64::from(REFUSALS_LOGGED))), "{summaries:?}");
        let later = begin + Duration::from_secs(600);
        assert!(refusals.summary(later).is_some() && refusals.summary(later + REFUSALS_WINDOW).is_none());
        assert!(refusals.one("192.0.2.1", later + REFUSALS_WINDOW));
    }
}
