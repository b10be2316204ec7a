//! What became of every run: a line each, oldest first, in a file that does not grow without end.
//!
//! ```text
//! STATE/agent/history.jsonl       the last runs
//! STATE/agent/history.jsonl.1     those before them, put aside when the file had grown to its bound
//! ```
//!
//! A line is one `write` and no sync: a power cut may take the last lines, never the truth about a replica, which is the
//! record's. What a crash left of a line is passed over, and the next line begins anew.

use super::book::Shelf;
use super::outcome::RunReport;
use crate::error::{Context, Kind, Result};
use crate::limits::{BOOK_LOCK_TIMEOUT, HISTORY_BYTES_MAX};
use crate::state::Lock;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const HISTORY: &str = "history.jsonl";

/// Adds a run. Several processes may do so.
pub fn append(shelf: &Shelf, report: &RunReport) -> Result<()> {
    let path = shelf.folder().join(HISTORY);
    let place = || format!("write {}", path.display());
    let _lock = Lock::wait(&shelf.folder(), "the history of runs", BOOK_LOCK_TIMEOUT)?;
    let mut line = serde_json::to_string(report).context(Kind::Failed, place)?;
    line.push('\n');
    append_line(&path, line, HISTORY_BYTES_MAX).context(Kind::Failed, place)
}

/// The runs that are remembered, oldest first; of this job, where one is named.
pub fn read(shelf: &Shelf, job: Option<&str>) -> Result<Vec<RunReport>> {
    let path = shelf.folder().join(HISTORY);
    let mut runs = Vec::new();
    for path in [aside(&path), path] {
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.context(Kind::Failed, || format!("read {}", path.display()))?,
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.context(Kind::Failed, || format!("read {}", path.display()))?;
            // Torn by a crash, or of a later version of this program.
            let Ok(run) = serde_json::from_slice::<RunReport>(&line) else { continue };
            if job.is_none_or(|job| run.job == job) {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

fn append_line(path: &Path, mut line: String, bytes_max: u64) -> std::io::Result<()> {
    let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let mut file = open()?;
    let mut bytes = file.metadata()?.len();
    if bytes > 0 && bytes + line.len() as u64 > bytes_max {
        std::fs::rename(path, aside(path))?;
        file = open()?;
        bytes = 0;
    }
    if bytes > 0 && last_byte(&mut file)? != b'\n' {
        line.insert(0, '\n');
    }
    file.write_all(line.as_bytes())
}

fn last_byte(file: &mut File) -> std::io::Result<u8> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last[0])
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Cause;
    use super::*;
    use crate::state::StateDir;

    fn run(job: &str, number: u64) -> RunReport {
        let run_id = number.to_string();
        RunReport {
            run_id,
            job: job.into(),
            cause: Cause::Request,
            started_ms: number,
            finished_ms: number,
            legs: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn a_line_that_a_crash_tore_costs_itself_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(&StateDir::open(&folder.path().join("state")).unwrap()).unwrap();
        assert_eq!(read(&shelf, None).unwrap(), []);
        append(&shelf, &run("db", 1)).unwrap();
        append(&shelf, &run("web", 2)).unwrap();
        let path = shelf.folder().join(HISTORY);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..40], b"\xff"].concat()).unwrap();
        append(&shelf, &run("db", 3)).unwrap();
        let numbers = |job| read(&shelf, job).unwrap().iter().map(|run| run.started_ms).collect::<Vec<_>>();
        assert_eq!(numbers(None), [1, 2, 3]);
        assert_eq!(numbers(Some("db")), [1, 3]);
    }

    #[test]
    fn the_file_stays_within_its_bound_and_keeps_the_last_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HISTORY);
        for number in 0..100 {
            append_line(&path, format!("{number:09}\n"), 95).unwrap();
        }
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        let both = text(&aside(&path)) + &text(&path);
        assert!(text(&path).len() <= 95 && text(&aside(&path)).len() <= 95);
        let expected: Vec<String> = (100 - both.lines().count()..100).map(|number| format!("{number:09}")).collect();
        assert!(both.lines().eq(expected.iter().map(String::as_str)) && expected.len() >= 9, "{both}");
    }
}
