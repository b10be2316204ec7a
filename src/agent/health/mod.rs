//! How a job is: one number (its lag), one level, the reasons for it, and what to type next. Pure: what is known
//! comes in, with the time; `look` gathers it.
//!
//! Lag is now minus the moment up to which the replica is known to hold what its source held: the moment of the last
//! committed generation's snapshot, or, of a volume that nothing was written to since, the last look that found
//! it so.

mod code;
mod judge;
mod look;
mod pairs;
mod promise;
#[cfg(test)]
mod table;

pub use code::{Code, Level, Reason};
pub use judge::{assess, promoted};
pub use look::{Look, Seen};
pub use promise::{Limits, interval, is_scheduled};

use crate::agent::book::Current;
use crate::agent::outcome::Failure;
use crate::state::SourceRecord;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::path::PathBuf;
use uuid::Uuid;

/// What is known of a volume at a receiver.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// The volume as the configuration names it.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// What the replica is called there.
    pub replica: String,
    /// The source's half of the pair, where it has come to be.
    pub record: Option<SourceRecord>,
    /// Up to when the source is known to be unchanged.
    pub current: Option<Current>,
    /// Why the two above could not be read.
    pub unreadable: Option<String>,
}

/// What is known beside the job's book.
#[derive(Clone, Debug)]
pub struct Around {
    /// Now: milliseconds since 1970.
    pub now_ms: u64,
    /// Where times of day are meant.
    pub zone: TimeZone,
    /// The process that has the job's lock.
    pub runner: Option<u32>,
    /// The process that keeps the schedules, if there is one.
    pub agent: Option<u32>,
}

/// What the job is to its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It sends its host's volumes.
    Source,
    /// It hands on a replica of its host.
    Relay,
}

/// How far the data is. The later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Data {
    /// As new as was promised.
    Current,
    /// Older than was promised; where nothing was, the last try failed.
    Behind,
    /// The first copy is not complete.
    FirstCopyUnfinished,
    /// Nothing has been committed, or begun.
    NeverCopied,
    /// The replica has a history of its own.
    Diverged,
    /// It cannot be read.
    Unknown,
}

impl Data {
    /// The words for people.
    pub fn words(self) -> &'static str {
        match self {
            Data::Current => "current",
            Data::Behind => "behind",
            Data::FirstCopyUnfinished => "first copy unfinished",
            Data::NeverCopied => "never copied",
            Data::Diverged => "diverged",
            Data::Unknown => "unknown",
        }
    }
}

/// What is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Activity {
    /// Nothing, and nothing is planned.
    Idle,
    /// The next run has its time.
    Waiting {
        /// When.
        until_ms: u64,
        /// Why then.
        why: Option<String>,
    },
    /// A run failed, and is tried again.
    Retrying {
        /// When.
        until_ms: u64,
    },
    /// A run waits for its volumes to be idle.
    QuietWait {
        /// Its process.
        pid: u32,
        /// Since when it waits.
        since_ms: Option<u64>,
    },
    /// A run is under way.
    Running {
        /// Its process.
        pid: u32,
        /// Since when.
        since_ms: Option<u64>,
    },
    /// An operator stopped the schedule.
    Paused {
        /// Until when, where it ends by itself.
        until_ms: Option<u64>,
        /// Who did.
        by: String,
        /// Why.
        reason: Option<String>,
    },
}

/// How a job is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// The job.
    pub job: String,
    /// What it is to its volumes.
    pub role: Role,
    /// The worst of its pairs.
    pub data: Data,
    /// What is going on.
    pub activity: Activity,
    /// The worst of its reasons.
    pub health: Level,
    /// The worst first.
    pub reasons: Vec<Reason>,
    /// The largest lag of its pairs.
    pub lag_ms: Option<u64>,
    /// What that pair is allowed.
    #[serde(flatten)]
    pub limits: OptionalLimits,
    /// What the last run, or one of its transfers, failed with.
    pub last_error: Option<Failure>,
    /// What to type next, where there is something to do.
    pub next_command: Option<String>,
    /// Its volumes at its receivers.
    pub pairs: Vec<PairHealth>,
}

/// How a volume at a receiver is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairHealth {
    /// The volume as the configuration names it.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// What the replica is called there.
    pub replica: String,
    /// The pair.
    pub relationship: Option<Uuid>,
    /// How far its data is.
    pub data: Data,
    /// The worst of its reasons.
    pub health: Level,
    /// The committed generation; 0 for none.
    pub generation: u64,
    /// When its snapshot was taken.
    pub source_time_ms: Option<u64>,
    /// The last moment at which the source was still like that.
    pub unchanged_ms: Option<u64>,
    /// Now minus the later of the two.
    pub lag_ms: Option<u64>,
    /// What is allowed.
    #[serde(flatten)]
    pub limits: OptionalLimits,
    /// What the last try failed with.
    pub last_error: Option<Failure>,
    /// Tries in a row that failed.
    pub failures: u32,
}

/// Limits as two keys that are null where nothing was promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OptionalLimits {
    /// A warning beyond this many milliseconds.
    pub lag_warning_ms: Option<u64>,
    /// Critical beyond this many.
    pub lag_critical_ms: Option<u64>,
}

impl From<Option<Limits>> for OptionalLimits {
    fn from(limits: Option<Limits>) -> OptionalLimits {
        OptionalLimits { lag_warning_ms: limits.map(|limits| limits.warning_ms), lag_critical_ms: limits.map(|limits| limits.critical_ms) }
    }
}

impl Health {
    /// The reason that the level comes from, if it is not all well.
    pub fn worst(&self) -> Option<&Reason> {
        self.reasons.first().filter(|reason| reason.level > Level::Ok)
    }

    /// Whether a reason of this code is among them.
    pub fn has(&self, code: Code) -> bool {
        self.reasons.iter().any(|reason| reason.code == code)
    }
}
