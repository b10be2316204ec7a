//! One owner at a time: an advisory lock on a file that names its holder. The kernel lets go of it
//! when the process ends, however it ends, so no crash leaves a lock behind.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::STOP_POLL;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// A held lock; dropped = released.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder, or says which process has it (`Kind::Locked`).
    pub fn take(folder: &Path, what: &str) -> Result<Lock> {
        let path = folder.join("lock");
        let place = || format!("lock {}", path.display());
        // Not truncated on opening: until the lock is ours, the holder's pid stands in it.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).context(Kind::Failed, place)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process".to_owned() } else { format!("process {}", holder.trim()) };
                return Err(Error::new(Kind::Locked, format!("{what} is in use by {holder}: wait for it, or stop it with `kill`")));
            }
            Err(TryLockError::Error(error)) => return Err(error).context(Kind::Failed, place),
        }
        file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes())).context(Kind::Failed, place)?;
        Ok(Lock { _file: file })
    }
}

impl Lock {
    /// Takes a lock that is only ever held for a moment: waits, at most `limit`.
    pub fn wait(folder: &Path, what: &str, limit: Duration) -> Result<Lock> {
        let began = Instant::now();
        loop {
            match Lock::take(folder, what) {
                Err(error) if error.kind() == Kind::Locked && began.elapsed() < limit => std::thread::sleep(STOP_POLL / 10),
                other => return other,
            }
        }
    }

    /// The process that holds the lock of a folder, if one does. The kernel's list is asked: a lock that is tried is
    /// held for an instant, which would turn away the run that begins just then.
    pub fn holder(folder: &Path) -> Option<u32> {
        let mut file = File::open(folder.join("lock")).ok()?;
        let inode = file.metadata().ok()?.ino();
        let mut written = String::new();
        file.read_to_string(&mut written).ok()?;
        let holder = written.trim().parse().ok()?;
        std::fs::read_to_string("/proc/locks").ok()?.lines().any(|line| is_flock_of(line, inode, holder)).then_some(holder)
    }
}

/// `5: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`: a process and an inode. Of the device nothing is believed: some file
/// systems (btrfs, overlayfs) tell `stat` another one. Who wrote its number into the file and holds an inode of this
/// number is the one.
fn is_flock_of(line: &str, inode: u64, holder: u32) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    // A process that waits has an arrow behind the number of the lock it waits for.
    let [_, "FLOCK", _, "WRITE", process, place, ..] = words[..] else { return false };
    process.parse() == Ok(holder) && place.rsplit(':').next().and_then(|number| number.parse().ok()) == Some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::take(folder.path(), "replica x").unwrap();
        let refused = Lock::take(folder.path(), "replica x").unwrap_err();
        assert_eq!(refused.kind(), Kind::Locked);
        assert!(refused.to_string().contains(&std::process::id().to_string()));
        assert_eq!(Lock::holder(folder.path()), Some(std::process::id()));
        assert!(Lock::wait(folder.path(), "replica x", Duration::from_millis(50)).is_err());
        drop(held);
        assert_eq!(Lock::holder(folder.path()), None);
        Lock::wait(folder.path(), "replica x", Duration::ZERO).unwrap();
    }

    #[test]
    fn who_asks_for_the_holder_keeps_nobody_from_becoming_it() {
        let folder = tempfile::tempdir().unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    Lock::holder(folder.path());
                }
            });
            let taken: Vec<bool> = (0..500).map(|_| Lock::take(folder.path(), "replica x").is_ok()).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(taken.iter().filter(|taken| !**taken).count(), 0);
        });
    }
}
