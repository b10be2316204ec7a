//! Named instants at which a test may kill this process, to see what a crash right there leaves.
//!
//! Compiled to nothing without the `failpoints` feature. With it, `BLOCKFERRY_FAILPOINT=name` or
//! `name:N` ends the process with SIGKILL the first or N-th time the instant is reached: no
//! destructor runs, as in a real crash.

/// Every instant, in the order of one run; the tests go through this list.
pub const ALL: &[&str] = &[
    "receiver.record-created",
    "receiver.direct-checkpoint-flushed",
    "receiver.direct-checkpoint-installed",
    "receiver.journal-created",
    "receiver.journal-checkpoint",
    "sender.begun",
    "sender.next-sealed",
    "sender.end-sent",
    "receiver.journal-synced",
    "receiver.next-sealed",
    "receiver.applying-recorded",
    "receiver.apply-halfway",
    "receiver.applied",
    "receiver.device-flushed",
    "manifest.install-halfway",
    "manifest.installed",
    "receiver.committed",
    "receiver.journal-dropped",
    "sender.acknowledged",
    "sender.cursor-recorded",
    "record.written-beside",
    "record.renamed",
];

/// The process may die here.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_name: &'static str) {}

/// The process may die here.
#[cfg(feature = "failpoints")]
pub fn reach(name: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static SEEN: AtomicU32 = AtomicU32::new(0);
    debug_assert!(ALL.contains(&name), "{name} is missing in failpoint::ALL");
    let Ok(wanted) = std::env::var("BLOCKFERRY_FAILPOINT") else { return };
    let (wanted, count) = wanted.split_once(':').map_or((wanted.as_str(), 1), |(name, count)| (name, count.parse().unwrap_or(1)));
    if wanted == name && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == count {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}
