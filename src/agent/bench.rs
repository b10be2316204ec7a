//! What all runs of this process have in common, and what they are busy with.

use super::book::Shelf;
use super::config::Job;
use crate::attempt::Host;
use crate::progress::Progress;
use crate::ring::Choice;
use crate::transport::pace::Limiter;
use crate::transport::{Pace, Terms};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Where runs are done.
#[derive(Debug)]
pub struct Bench {
    /// What is remembered of jobs.
    pub shelf: Shelf,
    /// Which engine moves the bytes.
    pub choice: Choice,
    /// What is under way.
    pub board: Board,
    /// A first copy may take the place of what its target holds: a person said so for this one run.
    pub overwrite: bool,
    /// Idle volumes are snapshotted and read like others: a person said so for this one run.
    pub idle_too: bool,
    /// Where each run adds its lines, if anywhere.
    pub change_log: Option<PathBuf>,
}

impl Bench {
    /// With this state.
    pub fn new(shelf: Shelf, choice: Choice) -> Bench {
        Bench { shelf, choice, board: Board::default(), overwrite: false, idle_too: false, change_log: None }
    }

    /// What this host brings along for a run of this job; its transfers share the job's limit of bandwidth.
    pub fn host(&self, job: &Job) -> Host {
        let pace = Pace::new([Limiter::new(job.bandwidth.clone())]);
        let terms = Terms { connect: job.connect_timeout, stall: job.stall_timeout, pace };
        Host { state: self.shelf.state().clone(), choice: self.choice, terms }
    }
}

/// The transfers under way, for whoever shows them.
#[derive(Debug, Default)]
pub struct Board(Mutex<Vec<Arc<Transfer>>>);

/// One transfer under way.
#[derive(Debug)]
pub struct Transfer {
    /// The job.
    pub job: String,
    /// The volume.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// The replica's name there.
    pub replica: String,
    /// What is counted here.
    pub here: Arc<Progress>,
    /// What the receiver counts where it runs in this process.
    pub there: Arc<Progress>,
    /// Since when.
    pub began: Instant,
}

impl Board {
    /// What is under way now.
    pub fn transfers(&self) -> Vec<Arc<Transfer>> {
        self.list().clone()
    }

    /// A transfer begins; it is under way until what is given back is dropped.
    pub fn begin(&self, transfer: Transfer) -> Entry<'_> {
        let transfer = Arc::new(transfer);
        self.list().push(Arc::clone(&transfer));
        Entry { board: self, transfer }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Transfer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transfer's place on the board.
pub struct Entry<'a> {
    board: &'a Board,
    /// The transfer.
    pub transfer: Arc<Transfer>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.board.list().retain(|other| !Arc::ptr_eq(other, &self.transfer));
    }
}
