//! What a run counts while it goes on, and the flag that stops it: written by the line, read by
//! whoever draws a bar, never a lock between them.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// What the run is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Opening, locking, shaking hands.
    Connect = 0,
    /// The receiver reads its replica to learn what it holds.
    Survey = 1,
    /// The source is read and differences travel.
    Transfer = 2,
    /// The journal is applied and flushed.
    Commit = 3,
}

impl Phase {
    /// The word a person sees.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Connect => "connecting",
            Phase::Survey => "surveying",
            Phase::Transfer => "copying",
            Phase::Commit => "committing",
        }
    }
}

/// Who wants to know that a long step gets on: the wire, whose peer waits for it.
pub trait Witness {
    /// This much more is done, in bytes of the volume, the device or the journal. An error: the peer is gone.
    fn worked(&mut self, bytes: u64) -> Result<()>;

    /// A step is done that is not counted in bytes and goes on whoever is gone: what is sealed will be committed.
    fn step(&mut self) {
        let _ = self.worked(1);
    }
}

/// Nobody waits for this step.
#[derive(Debug)]
pub struct Alone;

impl Witness for Alone {
    fn worked(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Shared counters of one run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set by the first SIGINT or SIGTERM: stop at a resumable point.
    pub stop: Arc<AtomicBool>,
    phase: AtomicU8,
    /// Bytes of the volume the phase is about.
    pub total_bytes: AtomicU64,
    /// Bytes of it done, holes included.
    pub scanned_bytes: AtomicU64,
    /// Bytes found to differ.
    pub changed_bytes: AtomicU64,
    /// Bytes put on the wire.
    pub sent_bytes: AtomicU64,
}

impl Progress {
    /// Counters at zero, with the caller's stop flag.
    pub fn new(stop: Arc<AtomicBool>) -> Arc<Progress> {
        Arc::new(Progress { stop, ..Progress::default() })
    }

    /// Enters a phase about `total_bytes`.
    pub fn enter(&self, phase: Phase, total_bytes: u64) {
        self.scanned_bytes.store(0, Relaxed);
        self.total_bytes.store(total_bytes, Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }

    /// The phase the run is in.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            1 => Phase::Survey,
            2 => Phase::Transfer,
            3 => Phase::Commit,
            _ => Phase::Connect,
        }
    }

    /// Whether somebody asked for an end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// An error where somebody asked for an end. A transport looks at the flag only while it waits, so whoever takes frames
    /// that never cease asks here between two of them.
    pub fn stop_if_asked(&self) -> Result<()> {
        if self.stopped() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
