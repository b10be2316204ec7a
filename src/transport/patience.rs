//! How long a peer may go without getting on. Pure: it is told what happened and how long it took.
//!
//! What counts is progress, never duration: a block of bytes moved in either direction, or a pulse whose work is larger
//! than that of any before. A peer that pulses and does nothing is given up like one that is silent; one that
//! hashes a device for a day and says so every two seconds is not. What is counted is the time of our waits, all of them
//! since the last progress: not the time that we are busy ourselves, nor that in which this host stood still.

use super::Turn;
use crate::limits::{BLOCK_BYTES, TURN_COUNTED};
use std::time::Duration;

/// The clock of one connection.
#[derive(Debug, Default)]
pub struct Patience {
    limit: Option<Duration>,
    /// Waited since the last progress.
    waited: Duration,
    /// Bytes that came since: less than a block is a trickle and no progress.
    trickle: usize,
    /// Waited since the last of them.
    silent: Duration,
    /// The most work that a pulse told of.
    work: u64,
}

impl Patience {
    /// From now on the peer is given up after this long without progress; `None`: never, as it is at first.
    pub fn set(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// The peer got on.
    pub fn progress(&mut self) {
        (self.waited, self.trickle) = (Duration::ZERO, 0);
    }

    /// A turn of waiting came to this.
    pub fn turned(&mut self, turn: Turn, took: Duration) {
        let took = took.min(TURN_COUNTED);
        (self.waited, self.silent) = (self.waited + took, self.silent + took);
        match turn {
            Turn::Sent | Turn::Paced => self.progress(),
            Turn::Received(bytes) | Turn::Coming(bytes) => {
                self.trickle += bytes;
                self.silent = Duration::ZERO;
            }
            Turn::Closed | Turn::Nothing => {}
        }
    }

    /// The peer pulsed; `bytes` of what came were its pulse and are no progress by themselves.
    pub fn pulsed(&mut self, work: u64, bytes: usize) {
        self.trickle = self.trickle.saturating_sub(bytes);
        if work > self.work {
            self.work = work;
            self.progress();
        }
    }

    /// The limit, where it is over. Asked when the pulses among what came are taken out.
    pub fn lost(&mut self) -> Option<Duration> {
        if self.trickle >= BLOCK_BYTES {
            (self.waited, self.trickle) = (self.silent, 0);
        }
        self.limit.filter(|limit| self.waited >= *limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);
    const TURN: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        let mut patience = Patience::default();
        wait(&mut patience, 1000);
        assert_eq!(patience.lost(), None);
        patience.set(Some(LIMIT));
        patience.progress();
        patience
    }

    /// So many seconds without anything.
    fn wait(patience: &mut Patience, seconds: u64) {
        (0..seconds).for_each(|_| patience.turned(Turn::Nothing, TURN));
    }

    #[test]
    fn silence_is_lost_and_work_that_grows_is_not() {
        let mut busy = patience();
        wait(&mut busy, 119);
        assert_eq!(busy.lost(), None);
        wait(&mut busy, 1);
        assert_eq!(busy.lost(), Some(LIMIT));
        let mut busy = patience();
        for hour in 0..24 * 30 {
            busy.turned(Turn::Received(40), TURN);
            busy.pulsed(hour + 1, 40);
            wait(&mut busy, 119);
            assert_eq!(busy.lost(), None);
        }
    }

    #[test]
    fn pulses_without_work_and_a_trickle_are_lost() {
        let (mut idle, mut trickle) = (patience(), patience());
        idle.pulsed(7, 40);
        for _ in 0..120 {
            assert_eq!((idle.lost(), trickle.lost()), (None, None));
            // More bytes than a block, all of them pulses of the same work or less.
            (0..3).for_each(|_| idle.turned(Turn::Received(40), TURN / 3));
            (0..3).for_each(|less| idle.pulsed(7 - less, 40));
            trickle.turned(Turn::Received(1), TURN);
        }
        wait(&mut idle, 1);
        assert_eq!((idle.lost(), trickle.lost()), (Some(LIMIT), Some(LIMIT)));
    }

    #[test]
    fn a_slow_link_is_not_lost() {
        let (mut slow, mut taking) = (patience(), patience());
        for _ in 0..100 {
            slow.turned(Turn::Received(BLOCK_BYTES), TURN);
            taking.turned(Turn::Sent, TURN);
            wait(&mut slow, 99);
            wait(&mut taking, 99);
            assert_eq!((slow.lost(), taking.lost()), (None, None));
        }
        // From the last of the bytes on, not from when they are counted.
        slow.turned(Turn::Received(BLOCK_BYTES), TURN);
        wait(&mut slow, 119);
        assert_eq!(slow.lost(), None);
        wait(&mut slow, 1);
        assert_eq!(slow.lost(), Some(LIMIT));
    }

    #[test]
    fn a_host_that_stood_still_blames_no_peer_for_it() {
        let mut patience = patience();
        (0..119).for_each(|_| patience.turned(Turn::Nothing, LIMIT));
        assert_eq!(patience.lost(), None);
    }
}
