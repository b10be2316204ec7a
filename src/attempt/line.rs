//! One attempt: locks, opens, connects the two ends wherever they are, and runs the line.
//!
//! | SRC | DST | sender runs | receiver runs |
//! |---|---|---|---|
//! | here | here | this thread | a second thread, over memory |
//! | here | there | this thread | `blockferry receiver --stdio` there |
//! | here | `blockferry://…` | this thread | the daemon there |
//! | there | here | `blockferry sender --stdio` there | this thread |

use super::link::Remote;
use super::now_ms;
use super::place::{Place, absolute};
use super::reading::{Origin, Snapshots, When};
use super::receivers;
use super::replicas::HostReplicas;
use super::sources::{Source, Wishes, passing_record, relationship_of_target};
use crate::digest::Algorithm;
use crate::disk::identity;
use crate::error::{Context, Error, Kind, Result};
use crate::format::stream::{Ack, Counts, Mode, Purpose};
use crate::pin::Pin;
use crate::progress::Progress;
use crate::receiver::{self, Received};
use crate::ring::Choice;
use crate::sender::{self, Compress, Order, Outcome, Pass};
use crate::state::{HostFiles, Lock, StateDir};
use crate::transport::stream::Stream;
use crate::transport::{Wire, memory};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

/// What one attempt is about.
#[derive(Clone, Debug)]
pub struct Job {
    /// The volume.
    pub source: Place,
    /// The replica.
    pub target: Place,
    /// Replicate, plan or verify.
    pub purpose: Purpose,
    /// Hash the replica anew and send what differs.
    pub resync: bool,
    /// The target's unknown content may be lost.
    pub overwrite: bool,
    /// How hard to compress; `None` chooses by where the target is.
    pub compress: Option<Compress>,
    /// Extent size of a new pair.
    pub extent_bytes: Option<u32>,
    /// Digest of a new pair.
    pub algorithm: Option<Algorithm>,
    /// How to reach other hosts.
    pub remote: Remote,
    /// The key of the receiver daemon, where it was typed.
    pub pin: Option<Pin>,
    /// Which engine moves the bytes.
    pub choice: Choice,
    /// Whether and how the source is snapshotted.
    pub snapshots: Snapshots,
    /// What we remember.
    pub state: StateDir,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The receiver's commit; none for plan and verify.
    pub ack: Option<Ack>,
    /// How the delta was taken.
    pub mode: Mode,
    /// What the sender counted.
    pub counts: Counts,
    /// A generation whose acknowledgement had been lost was adopted first.
    pub adopted: Option<u64>,
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Report {
        Report { ack: outcome.ack, mode: outcome.mode, counts: outcome.counts, adopted: outcome.adopted }
    }
}

type OnDifference<'a> = dyn FnMut(Range<u64>) + Send + 'a;

impl Job {
    fn order(&self, compress: Compress) -> Order {
        Order { purpose: self.purpose, compress, overwrite: self.overwrite, resync: self.resync, source_time_ms: now_ms() }
    }

    fn wishes(&self) -> Wishes {
        Wishes { extent_bytes: self.extent_bytes, algorithm: self.algorithm }
    }
}

/// Brings DST to what SRC is now, or (purpose `Plan`) finds out what that would take.
pub fn clone(job: &Job, here: &Progress, there: &Progress, on_difference: &mut OnDifference<'_>) -> Result<Report> {
    match (&job.source, &job.target) {
        (Place::Local(source), Place::Local(target)) => {
            let target = absolute(target)?;
            refuse_same(&Origin::find(source)?.path, &target)?;
            let known = relationship_of_target(&job.state, &target)?;
            let label = target.display().to_string();
            let pair = Pair { label: &label, target: &label, known };
            with_source(job, source, &pair, |pass| local(job, pass, here, there), here, on_difference)
        }
        (Place::Local(source), Place::Remote { host, path }) => {
            let run = |pass: &mut Pass<'_>| push(job, pass, host, here);
            let label = format!("{host}:{path}");
            with_source(job, source, &Pair { label: &label, target: path, known: None }, run, here, on_difference)
        }
        (Place::Local(source), Place::Receiver { address, replica }) => {
            let run = |pass: &mut Pass<'_>| deliver(job, pass, address, here);
            let label = job.target.to_string();
            with_source(job, source, &Pair { label: &label, target: replica, known: None }, run, here, on_difference)
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
    let job = Job { purpose: Purpose::Verify, ..job.clone() };
    match (&job.source, &job.target) {
        (Place::Local(source), Place::Local(target)) => {
            let target = absolute(target)?;
            refuse_same(&Origin::find(source)?.path, &target)?;
            in_passing(&job, source, &target.display().to_string(), |pass| local(&job, pass, here, there), here, on_difference)
        }
        (Place::Local(source), Place::Remote { host, path }) => {
            in_passing(&job, source, path, |pass| push(&job, pass, host, here), here, on_difference)
        }
        (Place::Local(source), Place::Receiver { address, replica }) => {
            in_passing(&job, source, replica, |pass| deliver(&job, pass, address, here), here, on_difference)
        }
        _ => Err(Error::new(Kind::Usage, "verify reads SRC on this host: run it on the host of the source")),
    }
}

fn refuse_same(source: &Path, target: &Path) -> Result<()> {
    if target.exists()
        && let Some(reason) = identity::same(source, target)?
    {
        return Err(Error::new(Kind::Refused, format!("source and target are the same: {reason}")));
    }
    Ok(())
}

/// How the other end of a pair is called.
struct Pair<'a> {
    /// What the pair is remembered by here: HOST:PATH, or the path where it is local.
    label: &'a str,
    /// What the receiver is told: the path on its own host.
    target: &'a str,
    /// The relationship that the target's own record names.
    known: Option<uuid::Uuid>,
}

/// Opens the source's half of the pair and runs a pass with it.
fn with_source(
    job: &Job,
    path: &Path,
    pair: &Pair<'_>,
    run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    progress: &Progress,
    on_difference: &mut OnDifference<'_>,
) -> Result<Report> {
    let origin = Origin::find(path)?;
    let remember = job.purpose == Purpose::Replicate;
    let mut source = Source::open(&job.state, &origin.path, pair.label, pair.known, job.wishes(), remember)?;
    let compress = job.compress.unwrap_or(if matches!(job.target, Place::Local(_)) && matches!(job.source, Place::Local(_)) {
        Compress::None
    } else {
        Compress::Auto
    });
    let result = origin.open(&job.snapshots, source.record.changed_bytes, job.choice).and_then(|mut reading| {
        let (disk, mut watch) = reading.parts();
        let result = run(&mut Pass {
            source: disk,
            files: &source.files,
            record: &mut source.record,
            target: pair.target,
            order: job.order(compress),
            watch: &mut watch,
            progress,
            on_difference,
        });
        drop(watch);
        reading.close(result)
    });
    // A plan, or a refusal at the first contact, leaves nothing behind.
    let never_paired = source.is_new && source.record.generation == 0;
    let refused = matches!(&result, Err(error) if matches!(error.kind(), Kind::Refused | Kind::Usage | Kind::Operator | Kind::Snapshot));
    if never_paired && (refused || job.purpose != Purpose::Replicate) {
        source.forget();
    }
    result.map(Report::from)
}

/// Runs a pass that remembers nothing: its few files lie in a folder of their own until it ends.
fn in_passing(
    job: &Job,
    path: &Path,
    target: &str,
    run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    progress: &Progress,
    on_difference: &mut OnDifference<'_>,
) -> Result<Report> {
    let origin = Origin::find(path)?;
    let mut record = passing_record(&origin.path, target, job.wishes())?;
    let folder = job.state.path().join(format!("verify-{}", record.relationship));
    std::fs::create_dir(&folder).context(Kind::Failed, || format!("make {}", folder.display()))?;
    // Tells a live verification from what a killed one left.
    let _lock = Lock::take(&folder, "the verification")?;
    let files = HostFiles::new(&folder);
    let result = origin.open(&job.snapshots, None, job.choice).and_then(|mut reading| {
        let (disk, mut watch) = reading.parts();
        let result = run(&mut Pass {
            source: disk,
            files: &files,
            record: &mut record,
            target,
            order: job.order(Compress::None),
            watch: &mut watch,
            progress,
            on_difference,
        });
        drop(watch);
        reading.close(result)
    });
    let _ = std::fs::remove_dir_all(&folder);
    result.map(Report::from)
}

/// Both ends in this process.
fn local(job: &Job, pass: &mut Pass<'_>, here: &Progress, there: &Progress) -> Result<Outcome> {
    let (near, far) = memory::pair(&here.stop)?;
    let mut replicas = HostReplicas::new(job.state.clone(), job.choice);
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let mut wire = Wire::new(Box::new(far))?;
            receiver::receive(&mut wire, &mut replicas, there)
        });
        let sent = Wire::new(Box::new(near)).and_then(|mut wire| sender::send(pass, &mut wire));
        let received = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    better_of(sent, received)
}

/// Of two ends of one session, the one that knows why it failed.
fn better_of(sent: Result<Outcome>, received: Result<Received>) -> Result<Outcome> {
    match (sent, received) {
        (Err(_), Err(cause)) if !cause.is_from_peer() && !matches!(cause.kind(), Kind::Transient | Kind::Interrupted) => Err(cause),
        (Err(echo), Err(cause)) if echo.is_from_peer() => Err(cause),
        (sent, _) => sent,
    }
}

/// The receiver on another host.
fn push(job: &Job, pass: &mut Pass<'_>, host: &str, progress: &Progress) -> Result<Outcome> {
    let (link, stream) = job.remote.connect(host, &["receiver", "--stdio"], job.choice, &progress.stop)?;
    let result = Wire::new(Box::new(stream)).and_then(|mut wire| sender::send(pass, &mut wire));
    link.close(result)
}

/// A receiver daemon.
fn deliver(job: &Job, pass: &mut Pass<'_>, address: &str, progress: &Progress) -> Result<Outcome> {
    let mut wire = receivers::wire(&job.state, address, job.pin, job.choice, progress)?;
    match sender::send(pass, &mut wire) {
        // A signal that stopped the receiver is none to us: the next try may find it running again.
        Err(error) if error.is_from_peer() && error.kind() == Kind::Interrupted && !progress.stopped() => {
            Err(error.with_kind(Kind::Transient))
        }
        other => other,
    }
}

/// The sender on another host: the same line with the ends exchanged.
fn pull(job: &Job, host: &str, path: &str, target: &Path, progress: &Progress) -> Result<Report> {
    let target = absolute(target)?.display().to_string();
    let label = format!("{}:{target}", nix::unistd::gethostname().unwrap_or_default().to_string_lossy());
    let mut arguments = vec!["sender", "--stdio", "--target", &target, "--label", &label];
    let flags = [(job.purpose == Purpose::Plan, "--dry-run"), (job.overwrite, "--overwrite"), (job.resync, "--resync")];
    arguments.extend(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag));
    let snapshot = match job.snapshots.when {
        When::Auto => "--snapshot=auto",
        When::Always => "--snapshot=always",
        When::Never => "--snapshot=never",
    };
    arguments.push(snapshot);
    let compress = job.compress.map(|compress| format!("--compress={compress}"));
    let extent = job.extent_bytes.map(|bytes| format!("--extent-size={bytes}"));
    let hash = job.algorithm.map(|algorithm| format!("--hash={}", if algorithm == Algorithm::Blake3 { "blake3" } else { "xxh3" }));
    arguments.extend([&compress, &extent, &hash].into_iter().flatten().map(String::as_str));
    arguments.extend(["--", path]);
    let (link, stream) = job.remote.connect(host, &arguments, job.choice, &progress.stop)?;
    let mut replicas = HostReplicas::new(job.state.clone(), job.choice);
    let received = Wire::new(Box::new(stream)).and_then(|mut wire| receiver::receive(&mut wire, &mut replicas, progress));
    let received = link.close(received)?;
    let mode = if received.ack.is_some_and(|ack| ack.generation > 1) { Mode::Journal } else { Mode::Direct };
    let counts = received.end.map_or_else(Counts::default, |end| end.counts);
    Ok(Report { ack: received.ack, mode: if job.purpose == Purpose::Plan { Mode::Nothing } else { mode }, counts, adopted: None })
}

/// The far end of a pull: sends `source` over standard input and output.
pub fn serve_sender(job: &Job, target: &str, label: &str, progress: &Progress) -> Result<Report> {
    let Place::Local(path) = &job.source else {
        return Err(Error::new(Kind::Usage, "the far end of a pull sends a path of its own host"));
    };
    let mut wire = stdio(job.choice, progress)?;
    let mut began = false;
    let run = |pass: &mut Pass<'_>| {
        began = true;
        sender::send(pass, &mut wire)
    };
    let result = with_source(job, path, &Pair { label, target, known: None }, run, progress, &mut |_| {});
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
pub fn stdio(choice: Choice, progress: &Progress) -> Result<Wire> {
    let file = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map(std::fs::File::from).context(Kind::Failed, || "take over standard input and output")
    };
    let (reader, writer) = (file(std::io::stdin().as_fd())?, file(std::io::stdout().as_fd())?);
    let stream = Stream::new("the other end".to_owned(), reader, writer, choice, Arc::clone(&progress.stop))?;
    Wire::new(Box::new(stream))
}
