//! The change log (`--log-file`): a line for each replica that a run was about: what changed where, how much, and how it
//! ended. For people and grep; programs read the history.
//!
//! The file is opened anew for each run, so that logrotate may move it away at any time and needs to tell nobody. It is
//! not synced: a crash may cost its last lines, and nothing is decided by them.

use super::notify::time;
use super::outcome::{LegResult, RunReport};
use crate::error::{Context, Kind, Result};
use crate::log;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A replica that a run was about.
#[derive(Debug)]
pub struct Change<'a> {
    /// When the run ended: milliseconds since 1970.
    pub at_ms: u64,
    /// What names the run, job and receiver where there are any: `[("job", "db"), …]`.
    pub names: Vec<(&'static str, &'a str)>,
    /// The volume.
    pub source: String,
    /// What its replica is called.
    pub replica: &'a str,
    /// What became of it.
    pub result: &'a LegResult,
    /// How long it took.
    pub seconds: f64,
}

/// Adds the lines of a run of a job. A log that cannot be written fails nothing.
pub fn add_run(file: &Path, report: &RunReport) {
    add(file, &lines_of(report));
}

/// Adds one line.
pub fn add_change(file: &Path, change: &Change<'_>) {
    add(file, &line(change));
}

fn add(file: &Path, lines: &str) {
    if let Err(error) = append(file, lines) {
        log::warning(error.chain());
    }
}

fn append(file: &Path, lines: &str) -> Result<()> {
    // One write: the lines of two processes do not mix.
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(file);
    opened.and_then(|mut opened| opened.write_all(lines.as_bytes())).context(Kind::Failed, || format!("add to the log {}", file.display()))
}

fn lines_of(report: &RunReport) -> String {
    let mut lines = String::new();
    for leg in &report.legs {
        let names = vec![("run", report.run_id.as_str()), ("job", report.job.as_str()), ("receiver", leg.receiver.as_str())];
        let source = leg.source.display().to_string();
        let (at_ms, replica, result, seconds) = (report.finished_ms, leg.replica.as_str(), &leg.result, leg.seconds);
        lines.push_str(&line(&Change { at_ms, names, source, replica, result, seconds }));
    }
    if let Some(failure) = &report.failure {
        let seconds = report.finished_ms.saturating_sub(report.started_ms) as f64 / 1000.0;
        let (at, run, job) = (time(report.finished_ms), word(&report.run_id), word(&report.job));
        let (exit, reason) = (failure.exit, &failure.message);
        let _ = writeln!(lines, "{at} run={run} job={job} result=failed exit={exit} seconds={seconds:.1} reason={reason:?}");
    }
    lines
}

fn line(change: &Change<'_>) -> String {
    let mut line = time(change.at_ms);
    let source = [("source", change.source.as_str()), ("replica", change.replica)];
    for (key, value) in change.names.iter().chain(&source) {
        let _ = write!(line, " {key}={}", word(value));
    }
    let (amounts, reason) = match change.result {
        LegResult::Committed { generation, mode, amounts, .. } => {
            let _ = write!(line, " result=committed generation={generation} mode={mode}");
            (Some(amounts), None)
        }
        LegResult::Idle { generation } => {
            let _ = write!(line, " result=idle generation={generation}");
            (None, None)
        }
        LegResult::Planned { amounts } => {
            line.push_str(" result=planned");
            (Some(amounts), None)
        }
        LegResult::Failed { failure } => {
            let _ = write!(line, " result=failed exit={}", failure.exit);
            (None, Some(&failure.message))
        }
        LegResult::PassedOver { why } => {
            line.push_str(" result=passed-over");
            (None, Some(why))
        }
    };
    if let Some(a) = amounts {
        let _ = write!(
            line,
            " read={} changed_extents={} sent={} wire={} written={} healed_extents={}",
            a.read_bytes, a.changed_extents, a.plain_bytes, a.wire_bytes, a.written_bytes, a.healed_extents
        );
    }
    let _ = write!(line, " seconds={:.1}", change.seconds);
    if let Some(reason) = reason {
        let _ = write!(line, " reason={reason:?}");
    }
    line.push('\n');
    line
}

/// A value that is one word of the line, whatever is in it.
fn word(value: &str) -> String {
    let plain = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '"' | '=' | '\\');
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::outcome::{Amounts, Cause, Failure, Leg};

    fn report() -> RunReport {
        let leg = |receiver: &str, result| Leg {
            source: "vg0/db".into(),
            receiver: receiver.into(),
            replica: "the db".into(),
            relationship: None,
            result,
            seconds: 1.25,
        };
        let amounts =
            Amounts { read_bytes: 100, changed_extents: 3, plain_bytes: 50, wire_bytes: 20, written_bytes: 50, ..Amounts::default() };
        let committed = LegResult::Committed { generation: 7, source_time_ms: 1, mode: "journal".into(), amounts };
        let failed = LegResult::Failed { failure: Failure { exit: 4, message: "no route\nto \"dr2\"".into() } };
        let legs = vec![leg("dr1", committed), leg("dr2", failed), leg("dr3", LegResult::Idle { generation: 6 })];
        RunReport {
            run_id: "r7".into(),
            job: "db".into(),
            cause: Cause::Schedule,
            started_ms: 1_700_000_000_000,
            finished_ms: 1_700_000_002_000,
            legs,
            failure: None,
        }
    }

    #[test]
    fn a_line_says_what_changed_where_and_how_much() {
        let lines = lines_of(&report());
        let expected = "\
2023-11-14T22:13:22Z run=r7 job=db receiver=dr1 source=vg0/db replica=\"the db\" result=committed generation=7 mode=journal read=100 changed_extents=3 sent=50 wire=20 written=50 healed_extents=0 seconds=1.2
2023-11-14T22:13:22Z run=r7 job=db receiver=dr2 source=vg0/db replica=\"the db\" result=failed exit=4 seconds=1.2 reason=\"no route\\nto \\\"dr2\\\"\"
2023-11-14T22:13:22Z run=r7 job=db receiver=dr3 source=vg0/db replica=\"the db\" result=idle generation=6 seconds=1.2
";
        assert_eq!(lines, expected);
        let none = RunReport { legs: Vec::new(), failure: Some(Failure { exit: 9, message: "no room".into() }), ..report() };
        assert_eq!(lines_of(&none), "2023-11-14T22:13:22Z run=r7 job=db result=failed exit=9 seconds=2.0 reason=\"no room\"\n");
    }

    #[test]
    fn a_log_that_was_moved_away_begins_anew_and_one_that_cannot_be_written_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (file, old) = (folder.path().join("log"), folder.path().join("log.1"));
        add_run(&file, &report());
        add_run(&file, &report());
        std::fs::rename(&file, &old).unwrap();
        add_run(&file, &report());
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&old), lines(&file)), (6, 3));
        add_run(folder.path(), &report());
    }
}
