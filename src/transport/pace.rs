//! Limits on how fast bytes move: one for the process, shared by all its connections, and maybe one more for a
//! client. Every byte on the wire counts, in both directions: what is sent waits before it goes, what came lets the
//! next bytes wait, and the peer's kernel does the rest.
//!
//! `Bucket` is pure: it is told the time and says how long to wait. A wait is short (see [`Pace::piece`]), so that
//! a signal, a pulse or another limit is never kept waiting by it.

use crate::limits::{BLOCK_BYTES, PACE_BURST, PACE_RECHECK, TRANSMIT_BYTES};
use crate::schedule::Table;
use crate::settings::{Rate, local_time_zone};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pieces a second that a limit is cut into.
const PIECES_PER_SECOND: u64 = 20;

/// When the bytes of one limit may move: in the order in which they ask, none before its time.
#[derive(Debug)]
struct Bucket {
    /// When all that was let through has moved.
    free_at: Instant,
}

impl Bucket {
    /// Time to wait before this many more bytes may move. What was not used for a while is kept for a moment only.
    fn take(&mut self, bytes: usize, rate: Rate, now: Instant) -> Duration {
        let Rate::PerSecond(rate) = rate else {
            self.free_at = now;
            return Duration::ZERO;
        };
        let earliest = now.checked_sub(PACE_BURST).unwrap_or(now);
        let starts = self.free_at.max(earliest);
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(rate.get());
        self.free_at = starts + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        starts.saturating_duration_since(now)
    }
}

#[derive(Debug)]
struct State {
    table: Table,
    rate: Rate,
    /// When the clock was asked which rate holds.
    asked: Option<Instant>,
    bucket: Bucket,
}

/// One limit, by the hour or always, that connections share.
#[derive(Debug)]
pub struct Limiter(Mutex<State>);

impl Limiter {
    /// A limiter that goes by this table and the clock of this host.
    pub fn new(table: Table) -> Arc<Limiter> {
        let bucket = Bucket { free_at: Instant::now() };
        Arc::new(Limiter(Mutex::new(State { table, rate: Rate::Unlimited, asked: None, bucket })))
    }

    /// Another table from now on; connections that wait notice with their next piece.
    pub fn set(&self, table: Table) {
        let mut state = self.state();
        (state.table, state.asked) = (table, None);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&self, now: Instant) -> Rate {
        let mut state = self.state();
        if state.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= PACE_RECHECK) {
            state.asked = Some(now);
            state.rate = if state.table.is_unlimited() {
                Rate::Unlimited
            } else {
                state.table.limit_at(jiff::Timestamp::now(), &local_time_zone().0)
            };
        }
        state.rate
    }

    fn take(&self, bytes: usize, now: Instant) -> Duration {
        let rate = self.rate(now);
        self.state().bucket.take(bytes, rate, now)
    }
}

/// The limits of one connection.
#[derive(Clone, Debug, Default)]
pub struct Pace(Vec<Arc<Limiter>>);

impl Pace {
    /// As fast as all of these allow.
    pub fn new(limiters: impl IntoIterator<Item = Arc<Limiter>>) -> Pace {
        Pace(limiters.into_iter().collect())
    }

    /// Time to wait before this many bytes move.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        self.0.iter().map(|limiter| limiter.take(bytes, now)).max().unwrap_or_default()
    }

    /// How many bytes to move at once: what is over in a twentieth of a second. `None`: there is no limit.
    pub fn piece(&self, now: Instant) -> Option<usize> {
        let rates = self.0.iter().filter_map(|limiter| match limiter.rate(now) {
            Rate::Unlimited => None,
            Rate::PerSecond(rate) => Some(rate.get()),
        });
        rates.min().map(|rate| usize::try_from(rate / PIECES_PER_SECOND).unwrap_or(usize::MAX).clamp(BLOCK_BYTES, TRANSMIT_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    /// Moves bytes as fast as the bucket lets them, and says how long it took.
    fn run(bucket: &mut Bucket, rate: Rate, pieces: usize, bytes: usize, begin: Instant) -> Duration {
        let mut now = begin;
        for _ in 0..pieces {
            now += bucket.take(bytes, rate, now);
        }
        now - begin
    }

    #[test]
    fn sixteen_mebibytes_a_second_are_sixteen_mebibytes_a_second() {
        let begin = Instant::now() + Duration::from_secs(100);
        let mut bucket = Bucket { free_at: begin };
        let took = run(&mut bucket, rate("16MiB/s"), 640, 100 << 10, begin);
        let meant = Duration::from_secs_f64(639.0 * 100.0 / 16384.0);
        assert!(took.abs_diff(meant) < Duration::from_millis(1), "{took:?}");
    }

    #[test]
    fn an_idle_hour_buys_a_moment_and_no_more() {
        let begin = Instant::now() + Duration::from_secs(4000);
        let mut bucket = Bucket { free_at: begin - Duration::from_secs(3600) };
        let took = run(&mut bucket, rate("1MiB/s"), 1024, 10 << 10, begin);
        let meant = Duration::from_secs_f64(1023.0 * 10.0 / 1024.0) - PACE_BURST;
        assert!(took.abs_diff(meant) < Duration::from_millis(1), "{took:?}");
    }

    #[test]
    fn a_limit_that_is_lifted_is_gone_at_once() {
        let now = Instant::now() + Duration::from_secs(100);
        let mut bucket = Bucket { free_at: now };
        assert_eq!(bucket.take(1 << 20, rate("1KiB/s"), now), Duration::ZERO);
        assert_eq!(bucket.take(1, rate("1KiB/s"), now), Duration::from_secs(1024));
        assert_eq!(bucket.take(1 << 30, Rate::Unlimited, now), Duration::ZERO);
        assert_eq!(bucket.take(1, rate("1KiB/s"), now), Duration::ZERO);
    }

    #[test]
    fn the_narrowest_of_two_limits_counts_and_sharers_wait_for_each_other() {
        let (process, client) = (Limiter::new(Table::from(rate("40MiB/s"))), Limiter::new(Table::from(rate("1MiB/s"))));
        let (wide, narrow) = (Pace::new([process.clone()]), Pace::new([process.clone(), client.clone()]));
        let now = Instant::now() + Duration::from_secs(100);
        assert_eq!((Pace::default().piece(now), wide.piece(now), narrow.piece(now)), (None, Some(TRANSMIT_BYTES), Some((1 << 20) / 20)));
        assert_eq!(Pace::default().take(usize::MAX, now), Duration::ZERO);
        // Past what an idle moment gave.
        narrow.take(40 << 20, now);
        let seconds = |wait: Duration| wait.as_secs_f64().round();
        assert_eq!((seconds(wide.take(0, now)), seconds(narrow.take(0, now))), (1.0, 40.0));
        client.set(Table::default());
        assert_eq!(seconds(narrow.take(0, now)), 1.0);
    }
}
