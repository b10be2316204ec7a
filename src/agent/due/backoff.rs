//! How long to wait after a failure, and what differs from host to host. Chance here is a hash: of the host and
//! the job where it is to stay the same, of the run too where it is to change.

use super::ms;
use crate::agent::config::Retry;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A number for this host: its machine-id, or its name where it has none.
pub fn host_seed() -> u64 {
    let id = std::fs::read("/etc/machine-id").ok().filter(|id| !id.is_empty());
    let name = || nix::unistd::gethostname().unwrap_or_default().into_encoded_bytes();
    xxh3_64(&id.unwrap_or_else(name))
}

/// From 0 up to but not including 1.
pub fn fraction(host: u64, words: &[&str]) -> f64 {
    let hash = xxh3_64_with_seed(words.join("\0").as_bytes(), host);
    // The 53 bits that a float holds.
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// The wait after so many failures in a row: doubled with each up to the longest, less a random part of it, so
/// that hosts whose receiver comes back do not arrive together.
pub fn backoff_ms(retry: &Retry, failures: u32, host: u64, job: &str, run: &str) -> u64 {
    let doublings = failures.saturating_sub(1).min(32);
    let full = ms(retry.initial).saturating_mul(1 << doublings).min(ms(retry.max));
    let less = retry.jitter * fraction(host, &[job, run]);
    (full as f64 * (1.0 - less)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn waits_double_up_to_the_longest_and_never_exceed_it() {
        let retry = Retry { initial: Duration::from_secs(30), max: Duration::from_secs(1800), jitter: 0.0 };
        let waits: Vec<u64> = (0..9).map(|failures| backoff_ms(&retry, failures, 1, "db", "r") / 1000).collect();
        assert_eq!(waits, [30, 30, 60, 120, 240, 480, 960, 1800, 1800]);
        assert_eq!(backoff_ms(&retry, u32::MAX, 1, "db", "r"), 1_800_000);
        let jittery = Retry { jitter: 0.3, ..retry };
        let waits: Vec<u64> = (0..200).map(|run| backoff_ms(&jittery, 1, 1, "db", &run.to_string())).collect();
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*least >= 21_000 && *least < 22_000 && *most <= 30_000 && *most > 29_000, "{least} {most}");
    }
}
