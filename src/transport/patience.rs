//! How long a peer may go without getting on. Pure: it is told what happened and what time it is.
//!
//! What counts is progress, never duration: bytes moved in either direction, or a pulse whose work is larger
//! than that of any before. A peer that pulses and does nothing is given up like one that is silent; one that
//! hashes a device for a day and says so every two seconds is not. The time that we are busy ourselves is not
//! the peer's: the clock runs while we wait.

use super::Turn;
use crate::limits::BLOCK_BYTES;
use std::time::{Duration, Instant};

/// The clock of one connection.
#[derive(Debug)]
pub struct Patience {
    limit: Option<Duration>,
    since: Instant,
    /// Bytes that came since, the last of them when: less than a block is a trickle and no progress.
    trickle: usize,
    heard: Instant,
    /// The most work that a pulse told of.
    work: u64,
}

impl Patience {
    /// Endless until a limit is set.
    pub fn endless(now: Instant) -> Patience {
        Patience { limit: None, since: now, trickle: 0, heard: now, work: 0 }
    }

    /// From now on the peer is given up after this long without progress.
    pub fn set(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// A wait begins.
    pub fn begin(&mut self, now: Instant) {
        (self.since, self.trickle) = (now, 0);
    }

    /// A turn of waiting came to this.
    pub fn turned(&mut self, turn: Turn, now: Instant) {
        match turn {
            Turn::Sent | Turn::Paced => self.begin(now),
            Turn::Received(bytes) | Turn::Coming(bytes) => {
                self.trickle += bytes;
                self.heard = now;
            }
            Turn::Closed | Turn::Nothing => {}
        }
    }

    /// The peer pulsed; `bytes` of what came were its pulse and are no progress by themselves.
    pub fn pulsed(&mut self, work: u64, bytes: usize, now: Instant) {
        self.trickle = self.trickle.saturating_sub(bytes);
        if work > self.work {
            self.work = work;
            self.begin(now);
        }
    }

    /// The limit, where it is over. Asked when the pulses among what came are taken out.
    pub fn lost(&mut self, now: Instant) -> Option<Duration> {
        if self.trickle >= BLOCK_BYTES {
            self.begin(self.heard);
        }
        self.limit.filter(|limit| now.saturating_duration_since(self.since) >= *limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    /// Seconds after the beginning.
    fn at(begin: Instant, seconds: u64) -> Instant {
        begin + Duration::from_secs(seconds)
    }

    fn patience(begin: Instant) -> Patience {
        let mut patience = Patience::endless(begin);
        assert_eq!(patience.lost(at(begin, 1 << 20)), None);
        patience.set(Some(LIMIT));
        patience
    }

    #[test]
    fn silence_is_lost_and_work_that_grows_is_not() {
        let begin = Instant::now();
        let mut busy = patience(begin);
        assert_eq!((busy.lost(at(begin, 119)), busy.lost(at(begin, 120))), (None, Some(LIMIT)));
        for hour in 0..24 * 30 {
            busy.turned(Turn::Received(40), at(begin, hour * 100));
            busy.pulsed(hour + 1, 40, at(begin, hour * 100));
            assert_eq!(busy.lost(at(begin, hour * 100 + 99)), None);
        }
    }

    #[test]
    fn pulses_without_work_and_a_trickle_are_lost() {
        let begin = Instant::now();
        let (mut idle, mut trickle) = (patience(begin), patience(begin));
        idle.pulsed(7, 40, begin);
        for second in 0..120 {
            // More bytes than a block, all of them pulses of the same work or less.
            (0..3).for_each(|_| idle.turned(Turn::Received(40), at(begin, second)));
            (0..3).for_each(|more| idle.pulsed(7 - more, 40, at(begin, second)));
            trickle.turned(Turn::Received(1), at(begin, second));
            assert_eq!((idle.lost(at(begin, second)), trickle.lost(at(begin, second))), (None, None));
        }
        assert_eq!((idle.lost(at(begin, 120)), trickle.lost(at(begin, 120))), (Some(LIMIT), Some(LIMIT)));
    }

    #[test]
    fn a_slow_link_is_not_lost() {
        let begin = Instant::now();
        let (mut slow, mut taking) = (patience(begin), patience(begin));
        for second in (0..10_000).step_by(100) {
            slow.turned(Turn::Received(BLOCK_BYTES), at(begin, second));
            taking.turned(Turn::Sent, at(begin, second));
            assert_eq!((slow.lost(at(begin, second + 99)), taking.lost(at(begin, second + 99))), (None, None));
        }
    }
}
