//! One owner at a time: an advisory lock on a file that names its holder. The kernel lets go of it
//! when the process ends, however it ends, so no crash leaves a lock behind.

use super::AGENT_POST;
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
    /// Takes the lock of a folder, or says which process has it (`Kind::Locked`) and how that is stopped.
    pub fn take(folder: &Path, what: &str) -> Result<Lock> {
        Lock::attempt(folder)?.ok_or_else(|| taken(folder, what, way_out(folder)))
    }

    /// The same for who knows better how the holder is stopped.
    pub fn take_or(folder: &Path, what: &str, way_out: &str) -> Result<Lock> {
        Lock::attempt(folder)?.ok_or_else(|| taken(folder, what, way_out))
    }

    /// Takes a lock that is only ever held for a moment: waits, at most `limit`.
    pub fn wait(folder: &Path, what: &str, limit: Duration) -> Result<Lock> {
        let began = Instant::now();
        loop {
            match Lock::attempt(folder)? {
                Some(lock) => return Ok(lock),
                None if began.elapsed() < limit => std::thread::sleep(STOP_POLL / 10),
                None => return Err(taken(folder, what, way_out(folder))),
            }
        }
    }

    /// `None`: somebody has it.
    fn attempt(folder: &Path) -> Result<Option<Lock>> {
        let path = folder.join("lock");
        let place = || format!("lock {}", path.display());
        // Not truncated on opening: until the lock is ours, the holder's pid stands in it.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).context(Kind::Failed, place)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).context(Kind::Failed, place),
        }
        file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes())).context(Kind::Failed, place)?;
        Ok(Some(Lock { _file: file }))
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

fn taken(folder: &Path, what: &str, way_out: &str) -> Error {
    let holder = std::fs::read_to_string(folder.join("lock")).unwrap_or_default();
    let holder = if holder.trim().is_empty() { "another process".to_owned() } else { format!("process {}", holder.trim()) };
    Error::new(Kind::Locked, format!("{what} is in use by {holder}: wait for it, or {way_out}"))
}

/// How the holder is stopped. A signal would end the agent where one run of its jobs is meant.
fn way_out(folder: &Path) -> &'static str {
    let holder = Lock::holder(folder);
    let is_agent = |above: &Path| holder.is_some() && Lock::holder(&above.join(AGENT_POST)) == holder;
    match folder.ancestors().any(is_agent) {
        true => "stop the agent's run with `blockferry abort JOB`",
        false => "stop it with `kill`",
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
    fn the_agent_is_never_to_be_killed_for_one_of_its_runs() {
        let state = tempfile::tempdir().unwrap();
        let [post, pair] = [AGENT_POST, "sources/a"].map(|name| state.path().join(name));
        [&post, &pair].iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let _held = Lock::take(&pair, "the pair").unwrap();
        let said = || Lock::take(&pair, "the pair").unwrap_err().to_string();
        assert!(said().ends_with("or stop it with `kill`"), "{}", said());
        let _agent = Lock::take(&post, "the agent").unwrap();
        assert!(said().ends_with("or stop the agent's run with `blockferry abort JOB`"), "{}", said());
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
