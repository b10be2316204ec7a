//! One attempt: locks, opens, connects the two ends wherever they are, and runs the line.
//!
//! | SRC | DST | sender runs | receiver runs |
//! |---|---|---|---|
//! | here | here | this thread | a second thread, over memory |
//! | here | there | this thread | `blockferry receiver --stdio` there |
//! | here | `blockferry://…` | this thread | the daemon there |
//! | there | here | `blockferry sender --stdio` there | this thread |

use super::delivery::{Delivery, Errand, Host, Pair, known};
use super::link::stall_argument;
use super::place::{Place, absolute};
use super::reading::{Origin, Snapshots, When};
use super::replicas::HostReplicas;
use super::replicate::{Half, Opened, Report};
use super::sources::passing_record;
use super::way::{carry, carry_scrub};
use crate::digest::Algorithm;
use crate::error::{Context, Error, Kind, Result};
use crate::format::stream::{Counts, Mode, Purpose};
use crate::limits::GREETING_TIMEOUT;
use crate::progress::Progress;
use crate::receiver;
use crate::ring::Choice;
use crate::sender::{self, Compress, Outcome, Pass, Shards};
use crate::state::{HostFiles, Lock, Side, SourceRecord};
use crate::transport::stream::Stream;
use crate::transport::{Terms, Wire};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

/// What one attempt is about.
#[derive(Clone, Debug)]
pub struct Job {
    /// The volume.
    pub source: Place,
    /// Where it goes, and what is asked for.
    pub errand: Errand,
    /// Whether and how the source is snapshotted.
    pub snapshots: Snapshots,
    /// What this host brings along.
    pub host: Host,
}

type OnDifference<'a> = dyn FnMut(Range<u64>) + Send + 'a;

/// Brings DST to what SRC is now, or (purpose `Plan`) finds out what that would take.
pub fn clone(job: &Job, here: &Progress, there: &Progress, on_difference: &mut OnDifference<'_>) -> Result<Report> {
    match (&job.source, &job.errand.target) {
        (Place::Local(source), target) => {
            let delivery = Delivery { errand: job.errand.clone(), here, there };
            let origin = Origin::find(source)?;
            let half = Half::open(&job.host, &origin, Pair::of(&job.host.state, &origin.path, target)?, &delivery.errand, None)?;
            with_source(job, &origin, half, &delivery, |pass| carry(&job.host, &delivery, pass), on_difference)
        }
        (Place::Receiver { .. }, _) => {
            Err(Error::new(Kind::Usage, "a replica of a receiver is no source: name its device on its own host"))
        }
        (Place::Remote { host, path }, Place::Local(target)) => pull(job, host, path, target, here),
        (Place::Remote { .. }, Place::Remote { .. } | Place::Receiver { .. }) => {
            Err(Error::new(Kind::Usage, "SRC and DST are both on other hosts: run blockferry on one of them"))
        }
    }
}

/// Reads both and reports what differs; remembers and writes nothing.
pub fn verify(job: &Job, here: &Progress, there: &Progress, on_difference: &mut OnDifference<'_>) -> Result<Report> {
    let Place::Local(source) = &job.source else {
        return Err(Error::new(Kind::Usage, "verify reads SRC on this host: run it on the host of the source"));
    };
    let origin = Origin::find(source)?;
    let pair = Pair::of(&job.host.state, &origin.path, &job.errand.target)?;
    let errand = Errand { purpose: Purpose::Verify, compress: Some(Compress::None), ..job.errand.clone() };
    let delivery = Delivery { errand, here, there };
    in_passing(job, &origin, &pair.target, &delivery, |pass| carry(&job.host, &delivery, pass), on_difference)
}

/// Compares the replica with what was replicated to it, by the digests of the last generation that lie here: neither is
/// the source read nor a snapshot made, and what is written to the source meanwhile is no difference.
pub fn scrub(host: &Host, source: &Path, delivery: &Delivery<'_>, on_difference: &mut OnDifference<'_>) -> Result<Report> {
    let target = &delivery.errand.target;
    let never =
        || Error::new(Kind::Failed, format!("{} was never replicated to {target}: there is nothing to compare with", source.display()));
    let found = known(&host.state, source, target)?.filter(|record| record.generation > 0).ok_or_else(never)?;
    let files = host.state.files(Side::Sources, &found.relationship)?;
    let _lock = Lock::take(files.folder(), &format!("the pair {} → {target}", source.display()))?;
    // Read again under the lock: a run may have moved the cursor meanwhile.
    let record = SourceRecord::load(&files)?.ok_or_else(never)?;
    let pair = Pair::of(&host.state, &record.source.path, target)?;
    let part = delivery.errand.part;
    let mut scrub = sender::Scrub { files: &files, record: &record, target: &pair.target, part, progress: delivery.here, on_difference };
    carry_scrub(host, delivery, &mut scrub).map(Report::from)
}

/// Makes the snapshot and runs a pass with it.
fn with_source(
    job: &Job,
    origin: &Origin,
    mut half: Half,
    delivery: &Delivery<'_>,
    run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    on_difference: &mut OnDifference<'_>,
) -> Result<Report> {
    let result = origin.open(&job.host.state, &job.snapshots, half.changed_bytes(), job.host.choice).and_then(|mut reading| {
        let result = Opened::whole(&mut reading, &delivery.errand).and_then(|opened| half.pass(delivery, opened, on_difference, run));
        reading.close(result)
    });
    half.settle(&delivery.errand, result)
}

/// Runs a pass that remembers nothing: its few files lie in a folder of their own until it ends.
fn in_passing(
    job: &Job,
    origin: &Origin,
    target: &str,
    delivery: &Delivery<'_>,
    run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    on_difference: &mut OnDifference<'_>,
) -> Result<Report> {
    let mut record = passing_record(&origin.path, target, delivery.errand.wishes())?;
    let folder = job.host.state.path().join(format!("verify-{}", record.relationship));
    std::fs::create_dir(&folder).context(Kind::Failed, || format!("make {}", folder.display()))?;
    // Tells a live verification from what a killed one left.
    let _lock = Lock::take(&folder, "the verification")?;
    let files = HostFiles::new(&folder);
    let result = origin.open(&job.host.state, &job.snapshots, None, job.host.choice).and_then(|mut reading| {
        let order = delivery.errand.order(reading.taken_ms);
        let (disk, watch) = reading.parts();
        let result = run(&mut Pass {
            source: disk,
            further: &mut [],
            files: &files,
            record: &mut record,
            target,
            order,
            watch: &mut |when| watch.check(when),
            progress: delivery.here,
            on_difference,
        });
        reading.close(result)
    });
    let _ = std::fs::remove_dir_all(&folder);
    result.map(Report::from)
}

/// The sender on another host: the same line with the ends exchanged.
fn pull(job: &Job, host: &str, path: &str, target: &Path, progress: &Progress) -> Result<Report> {
    let target = absolute(target)?.display().to_string();
    let label = format!("{}:{target}", nix::unistd::gethostname().unwrap_or_default().to_string_lossy());
    let mut arguments = vec!["sender", "--stdio", "--target", &target, "--label", &label];
    let flags =
        [(job.errand.purpose == Purpose::Plan, "--dry-run"), (job.errand.overwrite, "--overwrite"), (job.errand.resync, "--resync")];
    arguments.extend(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag));
    let snapshot = match job.snapshots.when {
        When::Auto => "--snapshot=auto",
        When::Always => "--snapshot=always",
        When::Never => "--snapshot=never",
    };
    arguments.push(snapshot);
    let compress = job.errand.compress.map(|compress| format!("--compress={compress}"));
    let shards = format!("--shards={}", job.errand.shards);
    if job.errand.shards != Shards::Auto {
        arguments.push(&shards);
    }
    let extent = job.errand.extent_bytes.map(|bytes| format!("--extent-size={bytes}"));
    let hash = job.errand.algorithm.map(|algorithm| format!("--hash={}", if algorithm == Algorithm::Blake3 { "blake3" } else { "xxh3" }));
    arguments.extend([&compress, &extent, &hash].into_iter().flatten().map(String::as_str));
    let stall = stall_argument(&job.host.terms);
    arguments.extend(stall.as_deref());
    arguments.extend(["--", path]);
    let (link, wire) = job.errand.remote.connect(host, &arguments, job.host.choice, &job.host.terms, &progress.stop)?;
    let mut replicas = HostReplicas::new(job.host.state.clone(), job.host.choice);
    let received = wire.and_then(|mut wire| receiver::receive(&mut wire, &mut replicas, progress));
    let received = link.close(received)?;
    let mode = if received.ack.is_some_and(|ack| ack.generation > 1) { Mode::Journal } else { Mode::Direct };
    let counts = received.end.map_or_else(Counts::default, |end| end.counts);
    let mode = if job.errand.purpose == Purpose::Plan { Mode::Nothing } else { mode };
    Ok(Report { ack: received.ack, mode, counts, adopted: None, exertion: None })
}

/// The far end of a pull: sends `source` over standard input and output.
pub fn serve_sender(job: &Job, target: &str, label: &str, progress: &Progress) -> Result<Report> {
    let Place::Local(path) = &job.source else {
        return Err(Error::new(Kind::Usage, "the far end of a pull sends a path of its own host"));
    };
    let mut wire = stdio(job.host.choice, &job.host.terms, progress)?;
    let mut began = false;
    let run = |pass: &mut Pass<'_>| {
        began = true;
        sender::send(pass, &mut wire)
    };
    let pair = Pair { label: label.to_owned(), target: target.to_owned(), known: None };
    let delivery = Delivery { errand: job.errand.clone(), here: progress, there: progress };
    let result = Origin::find(path).and_then(|origin| {
        let half = Half::open(&job.host, &origin, pair, &delivery.errand, None)?;
        with_source(job, &origin, half, &delivery, run, &mut |_| {})
    });
    if let (Err(error), false) = (&result, began) {
        excuse(&mut wire, error);
    }
    result
}

/// Tells the other end why no session comes to be: a source that is absent or locked is its operator's
/// answer, not "the connection was closed".
pub fn excuse(wire: &mut Wire, error: &Error) {
    if wire.greet().is_ok() {
        wire.abort(error);
    }
}

/// A wire over standard input and output.
pub fn stdio(choice: Choice, terms: &Terms, progress: &Progress) -> Result<Wire> {
    let file = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map(std::fs::File::from).context(Kind::Failed, || "take over standard input and output")
    };
    let (reader, writer) = (file(std::io::stdin().as_fd())?, file(std::io::stdout().as_fd())?);
    let stream = Stream::new("the other end".to_owned(), reader, writer, choice, Arc::clone(&progress.stop))?;
    Wire::on_terms(Box::new(stream), terms, Some(GREETING_TIMEOUT))
}
