//! Waiting for a quiet moment: until nothing was written to any volume of a job for a while, at most so long.

use crate::attempt::device_of;
use crate::disk::writes::stirring;
use crate::error::{Error, Kind, Result};
use crate::limits::QUIET_POLL;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Nothing was written for that long.
    Came,
    /// The longest wait was over first: the run goes on all the same.
    DidNotCome,
}

/// Waits until nothing was written to any of these for `quiet`, at most `limit`.
pub fn wait(sources: &[PathBuf], quiet: Duration, limit: Duration, stop: &AtomicBool) -> Result<Quiet> {
    if quiet.is_zero() {
        return Ok(Quiet::Came);
    }
    let look = || sources.iter().map(|source| stirring(&device_of(source))).collect::<Vec<_>>();
    let began = Instant::now();
    let (mut seen, mut since) = (look(), began);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "stopped while waiting for a quiet moment"));
        }
        let now = Instant::now();
        if now - since >= quiet {
            return Ok(Quiet::Came);
        }
        if now - began >= limit {
            return Ok(Quiet::DidNotCome);
        }
        std::thread::sleep(QUIET_POLL.min(quiet - (now - since)).min(limit - (now - began)));
        let next = look();
        if next != seen {
            (seen, since) = (next, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SHORT: Duration = Duration::from_millis(300);

    #[test]
    fn a_file_that_is_left_alone_is_quiet_and_one_that_is_not_is_waited_for_no_longer_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        std::fs::write(&file, "x").unwrap();
        let stop = Arc::<AtomicBool>::default();
        let sources = [file.clone()];
        assert_eq!(wait(&sources, Duration::ZERO, SHORT, &stop).unwrap(), Quiet::Came);
        let began = Instant::now();
        assert_eq!(wait(&sources, SHORT, SHORT * 100, &stop).unwrap(), Quiet::Came);
        assert!(began.elapsed() >= SHORT);
        // One of three tries: a file system that stands still makes the file a quiet one.
        let did_not_come = || {
            let over = Arc::<AtomicBool>::default();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        std::fs::write(&file, "y").unwrap();
                        std::thread::sleep(SHORT / 20);
                    }
                });
                let came = wait(&sources, SHORT * 15, SHORT * 18, &stop);
                over.store(true, Ordering::Relaxed);
                came.unwrap() == Quiet::DidNotCome
            })
        };
        assert!((0..3).any(|_| did_not_come()));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(wait(&sources, SHORT, SHORT, &stop).unwrap_err().kind(), Kind::Interrupted);
    }
}
