//! How bad it is, and why: the stable words of `status`, `monitor`, metrics and notifications.
//! docs/OPERATING.md says of each code what it means and what to do.

use serde::{Serialize, Serializer};
use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It will need somebody before long.
    Warning,
    /// It cannot be told. Worse than a warning: it may be hiding anything.
    Unknown,
    /// It needs somebody now.
    Critical,
}

impl Level {
    /// The exit code of a monitoring plug-in, which is also the value of the metric.
    pub fn nagios(self) -> u8 {
        match self {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Unknown => 3,
        }
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Unknown => "unknown",
            Level::Critical => "critical",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Declares the codes, their words, and the list of all of them in one place.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why. Once released a word is never changed: alarms are built on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The word.
            pub fn word(self) -> &'static str {
                match self { $(Code::$name => $word,)+ }
            }
        }
    };
}

codes! {
    /// A promoted or diverged replica: nothing goes on until somebody decides.
    OperatorNeeded = "operator-needed",
    /// A guard, a key, a permission or the configuration says no, and would again.
    Refused = "refused",
    /// Verification found a replica to differ from its source.
    VerifyMismatch = "verify-mismatch",
    /// A replica is further behind than twice what is allowed.
    LagCritical = "lag-critical",
    /// A book or a record cannot be read.
    StateUnreadable = "state-unreadable",
    /// A replica is further behind than is allowed.
    LagWarning = "lag-warning",
    /// Runs fail; they are tried again.
    Failing = "failing",
    /// A volume has no replica at one of its receivers yet.
    NeverCopied = "never-copied",
    /// A first copy began and is not complete.
    FirstCopyUnfinished = "first-copy-unfinished",
    /// The process of the last run ended without a word.
    RunDied = "run-died",
    /// Jobs have schedules, and nothing runs that would keep them.
    AgentNotRunning = "agent-not-running",
    /// The last run took longer than the schedule leaves it: ticks are skipped.
    RunsTooLong = "runs-too-long",
    /// A slice of verification failed without a finding.
    VerifyFailing = "verify-failing",
    /// A slice of verification should have ended.
    VerifyOverdue = "verify-overdue",
    /// A replica of this host was promoted: its source is not followed.
    Promoted = "promoted",
    /// An operator stopped the schedule.
    Paused = "paused",
    /// There is a book of a job that is not configured any more.
    NotConfigured = "not-configured",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// One reason of a state of health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What it is.
    pub code: Code,
    /// How bad.
    pub level: Level,
    /// A sentence for people.
    pub message: String,
    /// What to type next, where there is one thing to type.
    pub command: Option<String>,
}

/// Reasons as they are found.
#[derive(Default)]
pub(super) struct Reasons(pub Vec<Reason>);

impl Reasons {
    /// One more.
    pub fn add(&mut self, code: Code, level: Level, message: String, command: Option<String>) {
        self.0.push(Reason { code, level, message, command });
    }

    /// A command that is under way already is none to type.
    pub fn drop_command(&mut self, command: &str) {
        self.0.iter_mut().filter(|reason| reason.command.as_deref() == Some(command)).for_each(|reason| reason.command = None);
    }

    /// The worst first; of equals in the order of the codes, which is that of urgency.
    pub fn sorted(mut self) -> Vec<Reason> {
        self.0.sort_by(|a, b| b.level.cmp(&a.level).then(a.code.cmp(&b.code)));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_kebab_case_and_each_is_said_once() {
        let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for word in words {
            assert!(word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-') && !word.starts_with('-'), "{word}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_worse_than_a_warning_and_better_than_an_alarm() {
        assert!(Level::Ok < Level::Warning && Level::Warning < Level::Unknown && Level::Unknown < Level::Critical);
    }
}
