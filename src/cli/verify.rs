//! `blockferry verify SRC DST` and `blockferry verify JOB`.

use super::arguments::{Common, VerifyOptions};
use super::bar::Bar;
use super::clone::{job, terms, warn_if_live};
use super::configured::Configured;
use super::output::{Output, differs};
use super::signals;
use crate::agent::book::Shelf;
use crate::agent::config::{AGENT_TOML, AgentConfig};
use crate::agent::outcome::Failure;
use crate::agent::route::{Route, routes};
use crate::agent::verify::{Compared, compare, note_by_hand, verdict};
use crate::attempt::{self, Errand, Host, Report};
use crate::error::{Context, Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::limits::EXTENT_BYTES_DEFAULT;
use crate::part::Part;
use crate::progress::Progress;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Compares; with `--repair` sends what differs.
pub fn run(common: &Common, options: &VerifyOptions, output: &Output) -> Result<()> {
    let part = part(options)?;
    if part != Part::Full {
        // The seed repeats a sample.
        output.text(format!("comparing a {part}"));
    }
    match &options.dst {
        Some(dst) => of_pair(common, options, dst, part, output),
        None => of_job(common, options, part, output),
    }
}

fn part(options: &VerifyOptions) -> Result<Part> {
    Ok(match (options.sample, options.slice) {
        (Some(extents), _) => {
            let seed = match options.seed {
                Some(seed) => seed,
                None => getrandom::u64().context(Kind::Failed, || "ask the system for random numbers")?,
            };
            Part::Sample { extents, seed }
        }
        (None, Some(slice)) => Part::Slice(slice),
        (None, None) => Part::Full,
    })
}

/// What differs, told range by range.
struct Told<'a> {
    output: &'a Output,
    extent_bytes: u64,
    ranges: u64,
    bytes: u64,
    /// What every JSON line says beside the range, and every line of text in front of it.
    of: Vec<(&'static str, String)>,
}

impl Told<'_> {
    fn range(&mut self, range: Range<u64>) {
        let bytes = range.end - range.start;
        self.ranges += 1;
        self.bytes += bytes;
        let (first, last) = (range.start / self.extent_bytes, (range.end - 1) / self.extent_bytes);
        let extents = if first == last { format!("extent {first}") } else { format!("extents {first} to {last}") };
        self.output.line(|| {
            let mut line = json!({"type": "difference", "offset": range.start, "bytes": bytes, "first_extent": first, "last_extent": last});
            self.of.iter().for_each(|(key, value)| line[*key] = Value::from(value.as_str()));
            line
        });
        self.output.text(format!("differs: {bytes} bytes at {:#x} ({extents})", range.start));
    }

    fn summary(&self, from: &str, to: &str, part: Part, report: &Report, repaired: bool, began: Instant) {
        self.output.line(|| {
            let mut line = json!({
                "type": "summary", "command": "verify", "source": from, "target": to, "part": part.to_string(),
                "read_bytes": report.counts.read_bytes, "differing_extents": report.counts.changed_extents,
                "differing_ranges": self.ranges, "differing_bytes": self.bytes,
                "repaired": repaired, "seconds": began.elapsed().as_secs_f64(),
            });
            self.of.iter().for_each(|(key, value)| line[*key] = Value::from(value.as_str()));
            line
        });
    }
}

fn of_pair(common: &Common, options: &VerifyOptions, dst: &attempt::Place, part: Part, output: &Output) -> Result<()> {
    let mut job = job(common, &options.src, dst, None, &options.snapshot, &options.remote)?;
    warn_if_live(&job, output);
    job.errand.part = part;
    let stop = signals::stop_flag()?;
    let (here, there) = (Progress::new(stop.clone()), Progress::new(stop));
    let began = Instant::now();
    let extent_bytes = u64::from(job.errand.extent_bytes.unwrap_or(EXTENT_BYTES_DEFAULT));
    let mut told = Told { output, extent_bytes, ranges: 0, bytes: 0, of: Vec::new() };
    let bar = Bar::show(output, &here, &there);
    let report = attempt::verify(&job, &here, &there, &mut |range| told.range(range));
    drop(bar);
    let report = report?;
    let (from, to) = (options.src.to_string(), dst.to_string());
    let (extents, read) = (report.counts.changed_extents, report.counts.read_bytes);
    told.summary(&from, &to, part, &report, false, began);
    if extents == 0 {
        output.text(format!("{from} = {to}: equal; read {} of the source, took {:.2} s", HumanBytes(read), began.elapsed().as_secs_f64()));
        return Ok(());
    }
    let message = format!("{from} ≠ {to}: {extents} extents differ, {} in {} ranges", HumanBytes(told.bytes), told.ranges);
    if !options.repair {
        return Err(differs(format!("{message}; `blockferry verify --repair` sends just that")));
    }
    output.text(&message);
    job.errand.resync = true;
    let began = Instant::now();
    let bar = Bar::show(output, &here, &there);
    let report = attempt::clone(&job, &here, &there, &mut |_| {});
    drop(bar);
    output.summary("repair", &from, &to, &report?, began.elapsed());
    Ok(())
}

/// All volumes of a job at all its receivers, each against what was replicated to it.
fn of_job(common: &Common, options: &VerifyOptions, part: Part, output: &Output) -> Result<()> {
    let configured = Configured::find(common, options.config.as_deref())?;
    let config = match configured.config {
        Some(config) => config,
        // For what it says: the file is not there.
        None => AgentConfig::load(Path::new(AGENT_TOML))?,
    };
    let job = config.job(&options.src.to_string()).map_err(|error| {
        let hint = format!("{} (a volume is compared with `blockferry verify SRC DST`)", error.chain());
        Error::new(Kind::Usage, hint)
    })?;
    let host = Host { state: configured.shelf.state().clone(), choice: common.io.into(), terms: terms(&options.remote) };
    let stop = signals::stop_flag()?;
    // What somebody else finds meanwhile is not taken back by what is compared now.
    let began = configured.shelf.read(&job.name)?.verify;
    let (mut all, mut whole, mut end) = (Vec::new(), true, Ok(()));
    for route in routes(job) {
        // What was found before is written down, whatever keeps the others from their turn.
        end = one_of_job(&host, &route, part, options.repair, &stop, output).and_then(|seen| {
            whole &= seen.whole;
            all.push(seen.compared);
            seen.end
        });
        if end.is_err() {
            whole = false;
            break;
        }
    }
    let failure = verdict(&all);
    // It was found, whether or not it can be written down.
    if let Err(error) = Shelf::open(&host.state).and_then(|shelf| note_by_hand(&shelf, job, &began, whole, failure.clone())) {
        output.warn(&format!("write down what was found: {}", error.chain()));
    }
    end?;
    match failure {
        None => Ok(()),
        Some(failure) if failure.kind() == Kind::Differs => {
            Err(differs(format!("{}; `blockferry verify --repair {}` sends it, with what its source has new", failure.message, job.name)))
        }
        Some(failure) => Err(failure.error()),
    }
}

/// What became of one replica of a job.
struct Seen<'a> {
    compared: Compared<'a>,
    /// All of it was compared, or read anew and repaired.
    whole: bool,
    /// What leaves no turn to the others: a stop, or a repair that failed.
    end: Result<()>,
}

fn one_of_job<'a>(host: &Host, route: &Route<'a>, part: Part, repairs: bool, stop: &Arc<AtomicBool>, output: &Output) -> Result<Seen<'a>> {
    let (from, to) = (route.volume.source.display().to_string(), route.place.to_string());
    let known = route.known(&host.state)?;
    let extent_bytes = u64::from(known.map_or(EXTENT_BYTES_DEFAULT, |record| record.extent_bytes));
    let of = vec![("job", route.job.name.clone()), ("source", from.clone()), ("target", to.clone())];
    let mut told = Told { output, extent_bytes, ranges: 0, bytes: 0, of };
    let (here, there) = (Progress::new(Arc::clone(stop)), Progress::new(Arc::clone(stop)));
    let began = Instant::now();
    let bar = Bar::show(output, &here, &there);
    let mut compared = compare(host, route, part, (&here, &there), &mut |range| told.range(range));
    drop(bar);
    let (mut whole, mut end) = (part == Part::Full && compared.result.is_ok(), Ok(()));
    match &mut compared.result {
        Ok(report) if report.counts.changed_extents == 0 => {
            told.summary(&from, &to, part, report, false, began);
            let (read, took) = (HumanBytes(report.counts.read_bytes), began.elapsed().as_secs_f64());
            output.text(format!("{to} is what was replicated from {from}: read {read}, took {took:.2} s"));
        }
        Ok(report) => {
            told.summary(&from, &to, part, report, false, began);
            let extents = report.counts.changed_extents;
            output.text(format!("{to} is not what was replicated from {from}: {extents} extents differ, {}", HumanBytes(told.bytes)));
            if repairs {
                end = repair(host, route, (&here, &there), output);
            }
            if repairs && end.is_ok() {
                (whole, report.counts.changed_extents) = (true, 0);
            }
        }
        Err(error) if error.kind() == Kind::Interrupted => end = Err(Failure::from(&*error).error()),
        Err(error) => output.warn(&format!("{from} to {to}: {}", error.chain())),
    }
    Ok(Seen { compared, whole, end })
}

/// The receiver reads its replica anew, and gets what differs from a snapshot that is made now.
fn repair(host: &Host, route: &Route<'_>, (here, there): (&Arc<Progress>, &Arc<Progress>), output: &Output) -> Result<()> {
    let (from, to) = (route.volume.source.display().to_string(), route.place.to_string());
    let errand = Errand { resync: true, ..route.errand(Purpose::Replicate, false) };
    let source = attempt::Place::Local(route.volume.source.clone());
    let pass = attempt::Job { source, errand, snapshots: route.job.snapshot.snapshots.clone(), host: host.clone() };
    let began = Instant::now();
    let bar = Bar::show(output, here, there);
    let report = attempt::clone(&pass, here, there, &mut |_| {});
    drop(bar);
    output.summary("repair", &from, &to, &report?, began.elapsed());
    Ok(())
}
