//! Whether this host's clock was put, or nobody looked at it for a while: the clock of the day beside the one that
//! only counts, sleep included (CLOCK_BOOTTIME).

use crate::limits::{CLOCK_BACK_MIN, UNWATCHED_MIN};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The two clocks at one moment, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Since 1970.
    pub day_ms: u64,
    /// Since the start of the host.
    pub boot_ms: u64,
}

impl Clocks {
    /// As they stand.
    pub fn now() -> Clocks {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        Clocks { day_ms: crate::attempt::now_ms(), boot_ms: u64::try_from(boot.as_millis()).unwrap_or(0) }
    }
}

/// What made a schedule begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The clock was put by so many milliseconds.
    Put(i64),
    /// The host slept, or this process did not get to run, for so many milliseconds.
    Unwatched(u64),
}

impl Jump {
    /// What happened between two looks. A clock that a time server speeds up or slows down does not jump.
    pub fn between(before: Clocks, now: Clocks) -> Option<Jump> {
        let passed = now.boot_ms.saturating_sub(before.boot_ms);
        let put = now.day_ms as i64 - before.day_ms as i64 - passed as i64;
        let least = if put < 0 { CLOCK_BACK_MIN } else { UNWATCHED_MIN };
        if Duration::from_millis(put.unsigned_abs()) >= least {
            return Some(Jump::Put(put));
        }
        (Duration::from_millis(passed) >= UNWATCHED_MIN).then_some(Jump::Unwatched(passed))
    }

    /// What the log says of it.
    pub fn words(self) -> String {
        match self {
            Jump::Put(by) => {
                let way = if by < 0 { "back" } else { "forward" };
                format!("the clock was put {way} by {} s: schedules count from now", by.unsigned_abs() / 1000)
            }
            Jump::Unwatched(by) => format!("nothing ran here for {} s: what was due meanwhile comes once", by / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_what_the_counting_clock_does_not_know() {
        let before = Clocks { day_ms: 1_000_000, boot_ms: 50_000 };
        let after = |day: i64, boot: u64| Clocks { day_ms: (1_000_000 + day) as u64, boot_ms: 50_000 + boot };
        assert_eq!(Jump::between(before, after(200, 200)), None);
        // A time server that hurries.
        assert_eq!(Jump::between(before, after(1_900, 1_000)), None);
        assert_eq!(Jump::between(before, after(3_600_200, 200)), Some(Jump::Put(3_600_000)));
        assert_eq!(Jump::between(before, after(-999_800, 200)), Some(Jump::Put(-1_000_000)));
        // A step forward by some seconds makes nothing late.
        assert_eq!(Jump::between(before, after(30_000, 200)), None);
        assert_eq!(Jump::between(before, after(-2_000, 200)), Some(Jump::Put(-2_200)));
        // The lid was closed for two hours: both clocks went on.
        assert_eq!(Jump::between(before, after(7_200_000, 7_200_000)), Some(Jump::Unwatched(7_200_000)));
        assert!(Jump::Put(-5000).words().contains("back by 5 s"));
    }

    #[test]
    fn the_clocks_of_this_host_go() {
        let (first, second) = (Clocks::now(), Clocks::now());
        assert!(first.boot_ms > 0 && first.day_ms > 1_700_000_000_000 && second.boot_ms >= first.boot_ms);
    }
}
