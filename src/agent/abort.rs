//! Stops the run of a job, whoever runs it: the agent is asked, a command gets the signal that Ctrl-C sends. Both stop
//! at a point to go on from; then it is said where the job stands.

use super::book::{JobBook, Shelf};
use super::daemon::{self, socket};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::STOP_POLL;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};

/// What came of it.
#[derive(Debug)]
pub enum Aborted {
    /// No run was under way.
    Nothing,
    /// The run ended: the book as it left it.
    Ended(Box<JobBook>),
}

/// Stops the job's run and waits for its end. `stop` ends the waiting, not the stopping.
pub fn abort(shelf: &Shelf, job: &str, stop: &AtomicBool) -> Result<Aborted> {
    let Some(pid) = shelf.runner(job) else { return nobody(shelf, job) };
    let (run_id, asked_before) = shelf.change(job, |book| {
        let run_id = book.running.as_ref().map(|running| running.run_id.clone());
        let asked_before = run_id.is_some() && book.aborted == run_id;
        book.aborted.clone_from(&run_id);
        (run_id, asked_before)
    })?;
    if daemon::process(shelf) == Some(pid) {
        let question = socket::Question::Abort { job: job.to_owned() };
        let gone =
            || Error::new(Kind::Transient, format!("the agent (process {pid}) does not answer on its socket: ask again, or stop it"));
        socket::ask(shelf, &question)?.ok_or_else(gone)?;
    } else if !asked_before {
        // A second signal would end it at once, not at a point to go on from.
        signal(job, pid)?;
    }
    loop {
        let is_over = match shelf.runner(job) {
            None => true,
            Some(other) if other != pid => true,
            // The agent runs the job again: what was to stop has ended.
            Some(_) => run_id.is_some() && shelf.read(job)?.running.is_none_or(|running| Some(running.run_id) != run_id),
        };
        if is_over {
            return Ok(Aborted::Ended(Box::new(shelf.read(job)?)));
        }
        if stop.load(Ordering::Relaxed) {
            let message = format!("the run of {job} in process {pid} has not ended yet; it is asked to and will");
            return Err(Error::new(Kind::Interrupted, message));
        }
        std::thread::sleep(STOP_POLL);
    }
}

/// Asks the process that holds the job's lock, which the kernel has just named, to stop. By the signal whose exit code is
/// that of a stopped run in the books, too.
fn signal(job: &str, pid: u32) -> Result<()> {
    let process = i32::try_from(pid).map(Pid::from_raw).context(Kind::Failed, || format!("process {pid} is no process"))?;
    match kill(process, Signal::SIGINT) {
        // It ended in between.
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        other => other.context(Kind::Failed, || format!("stop process {pid}, which runs job {job}")),
    }
}

/// No process that we can see runs it. One of another container may: its lock is all that is seen of it.
fn nobody(shelf: &Shelf, job: &str) -> Result<Aborted> {
    match shelf.lock(job) {
        Err(error) if error.kind() == Kind::Locked && shelf.runner(job).is_none() => {
            let message =
                format!("job {job} is locked by a process that is not seen from here: it runs in another container; stop it there");
            Err(Error::new(Kind::Locked, message))
        }
        Err(error) if error.kind() != Kind::Locked => Err(error),
        _ => Ok(Aborted::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::book::Running;
    use crate::state::StateDir;

    fn shelf(folder: &std::path::Path) -> Shelf {
        Shelf::open(&StateDir::open(folder).unwrap()).unwrap()
    }

    #[test]
    fn nothing_under_way_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(folder.path());
        assert!(matches!(abort(&shelf, "db", &AtomicBool::new(false)).unwrap(), Aborted::Nothing));
        // A run that was killed left its words in the book, and no lock.
        let running = Running { run_id: "r".into(), pid: std::process::id(), started_ms: 1 };
        shelf.change("db", |book| book.running = Some(running)).unwrap();
        assert!(matches!(abort(&shelf, "db", &AtomicBool::new(false)).unwrap(), Aborted::Nothing));
    }

    #[test]
    fn only_the_holder_of_the_lock_is_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(folder.path());
        let held = shelf.lock("db").unwrap();
        // The file names somebody else, as one of another container would.
        std::fs::write(shelf.folder().join("jobs/db/lock"), "1\n").unwrap();
        let refused = abort(&shelf, "db", &AtomicBool::new(false)).unwrap_err();
        assert!(refused.chain().contains("not seen from here"), "{refused}");
        drop(held);
        assert!(matches!(abort(&shelf, "db", &AtomicBool::new(false)).unwrap(), Aborted::Nothing));
    }
}
