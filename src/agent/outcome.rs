//! What became of a run: of each volume at each receiver, and of all of it as one exit code.

use crate::error::{Error, Kind};
use crate::format::stream::Mode;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// An error as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its exit code, which tells its kind.
    pub exit: u8,
    /// What a person reads.
    pub message: String,
}

impl Failure {
    /// What a caller may branch on.
    pub fn kind(&self) -> Kind {
        Kind::from_wire(self.exit)
    }

    /// The error again.
    pub fn error(&self) -> Error {
        Error::new(self.kind(), self.message.clone())
    }

    /// Whether trying again later may help by itself; what is left waits for an operator.
    pub fn is_transient(&self) -> bool {
        is_transient(self.kind())
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        Failure { exit: error.kind().exit_code(), message: error.chain() }
    }
}

/// Whether trying again later may help without anybody doing something.
pub fn is_transient(kind: Kind) -> bool {
    !matches!(kind, Kind::Operator | Kind::Refused | Kind::Usage | Kind::Differs)
}

/// The exit code of several: the one with which all of them failed, else that of a part. `None`: none failed.
pub fn joint_exit(failures: &[&Failure], of: usize) -> Option<u8> {
    let first = failures.first()?.exit;
    let alike = failures.len() == of && failures.iter().all(|failure| failure.exit == first);
    Some(if alike { first } else { Kind::Partial.exit_code() })
}

/// What started a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its time had come.
    Schedule,
    /// One time or several had passed while nothing ran here.
    CatchUp,
    /// An earlier failure.
    Retry,
    /// A person, or systemd.
    Request,
    /// A commit of the replica it reads.
    Commit,
}

/// A volume at a receiver after a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// The volume as the configuration names it.
    pub source: PathBuf,
    /// The receiver's name.
    pub receiver: String,
    /// What the replica is called there.
    pub replica: String,
    /// The pair, where it has come to be.
    pub relationship: Option<Uuid>,
    /// What became of it.
    #[serde(flatten)]
    pub result: LegResult,
    /// How long it took.
    pub seconds: f64,
}

/// What became of a volume at a receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum LegResult {
    /// A new generation.
    Committed {
        /// Its number.
        generation: u64,
        /// When its snapshot was taken.
        source_time_ms: u64,
        /// How it was taken in: `direct` or `journal`.
        mode: String,
        /// What was moved.
        #[serde(flatten)]
        amounts: Amounts,
    },
    /// Nothing had been written since the last generation: no snapshot was made.
    Idle {
        /// The generation that is current.
        generation: u64,
    },
    /// What a run would send (`plan`).
    Planned {
        /// What would be moved.
        #[serde(flatten)]
        amounts: Amounts,
    },
    /// It failed.
    Failed {
        /// How.
        #[serde(flatten)]
        failure: Failure,
    },
    /// It was not its turn: an operator is waited for, or only others were to be tried again.
    PassedOver {
        /// Why.
        why: String,
    },
}

/// What a pass moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Read of the source.
    pub read_bytes: u64,
    /// Extents that differed.
    pub changed_extents: u64,
    /// Blocks sent.
    pub sent_blocks: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// The same on the wire.
    pub wire_bytes: u64,
    /// Written at the receiver.
    pub written_bytes: u64,
    /// Extents that had rotted there and were healed.
    pub healed_extents: u64,
}

impl LegResult {
    /// What an attempt came to. `source_time_ms`: when its snapshot was taken.
    pub fn of(report: &crate::attempt::Report, source_time_ms: u64) -> LegResult {
        let counts = &report.counts;
        let mut amounts = Amounts {
            read_bytes: counts.read_bytes,
            changed_extents: counts.changed_extents,
            sent_blocks: counts.sent_blocks,
            plain_bytes: counts.plain_bytes,
            wire_bytes: counts.wire_bytes,
            ..Amounts::default()
        };
        let Some(ack) = &report.ack else { return LegResult::Planned { amounts } };
        (amounts.written_bytes, amounts.healed_extents) = (ack.written_bytes, ack.healed_extents);
        let mode = if report.mode == Mode::Direct { "direct" } else { "journal" };
        LegResult::Committed { generation: ack.generation, source_time_ms, mode: mode.to_owned(), amounts }
    }

    /// What was moved, or would be.
    pub fn amounts(&self) -> Option<&Amounts> {
        match self {
            LegResult::Committed { amounts, .. } | LegResult::Planned { amounts } => Some(amounts),
            _ => None,
        }
    }

    /// The failure, if it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            LegResult::Failed { failure } => Some(failure),
            _ => None,
        }
    }
}

/// A run that ended: the line of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Name of the run: in logs, on snapshots, in hooks.
    pub run_id: String,
    /// The job.
    pub job: String,
    /// What started it.
    pub cause: Cause,
    /// From: milliseconds since 1970.
    pub started_ms: u64,
    /// To.
    pub finished_ms: u64,
    /// The volumes at their receivers.
    pub legs: Vec<Leg>,
    /// What ended the run as a whole, where something did.
    pub failure: Option<Failure>,
}

impl RunReport {
    /// The failure of the run as one: its own, or that of its volumes. All the same: theirs; else some failed.
    pub fn verdict(&self) -> Option<Failure> {
        if self.failure.is_some() {
            return self.failure.clone();
        }
        let failed: Vec<(&Leg, &Failure)> = self.legs.iter().filter_map(|leg| Some((leg, leg.result.failure()?))).collect();
        let (leg, first) = failed.first()?;
        let exit = joint_exit(&failed.iter().map(|(_, failure)| *failure).collect::<Vec<_>>(), self.legs.len())?;
        let place = format!("{} to {}", leg.source.display(), leg.receiver);
        let message = match failed.len() {
            1 => format!("{place}: {}", first.message),
            number => format!("{number} of {} transfers failed; the first, {place}: {}", self.legs.len(), first.message),
        };
        Some(Failure { exit, message })
    }

    /// Whether some of what failed may be helped by trying again later.
    pub fn may_retry(&self) -> bool {
        let failures = self.failure.iter().chain(self.legs.iter().filter_map(|leg| leg.result.failure()));
        failures.into_iter().any(|failure| failure.is_transient() && failure.kind() != Kind::Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(exits: &[u8]) -> RunReport {
        let leg = |exit: &u8| Leg {
            source: "vg0/db".into(),
            receiver: "dr1".into(),
            replica: "db".into(),
            relationship: None,
            result: match exit {
                0 => LegResult::Idle { generation: 3 },
                exit => LegResult::Failed { failure: Failure { exit: *exit, message: "no".into() } },
            },
            seconds: 0.0,
        };
        let legs = exits.iter().map(leg).collect();
        RunReport { run_id: "r".into(), job: "db".into(), cause: Cause::Request, started_ms: 1, finished_ms: 2, legs, failure: None }
    }

    #[test]
    fn the_code_of_a_run_says_whether_all_or_some_failed() {
        let exit = |exits: &[u8]| run(exits).verdict().map(|failure| failure.exit);
        assert_eq!(exit(&[0, 0]), None);
        assert_eq!(exit(&[4, 4]), Some(4));
        assert_eq!(exit(&[6]), Some(6));
        assert_eq!(exit(&[0, 6]), Some(3));
        assert_eq!(exit(&[4, 6]), Some(3));
        assert_eq!(run(&[0, 6]).verdict().unwrap().message, "vg0/db to dr1: no");
        assert!(run(&[0, 4]).may_retry() && !run(&[6, 8]).may_retry());
    }

    #[test]
    fn a_report_survives_its_line() {
        let run = run(&[0, 4]);
        let line = serde_json::to_string(&run).unwrap();
        assert!(line.contains(r#""result":"idle","generation":3"#), "{line}");
        assert_eq!(serde_json::from_str::<RunReport>(&line).unwrap(), run);
    }
}
