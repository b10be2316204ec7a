//! A job as it is meant: every default filled in, every name found.

use super::typed::{HookEntry, JobEntry, NotifyEntry, OnOverflow, ReceiverEntry, SnapshotWhen, VolumeEntry};
use crate::attempt::{Errand, Place, Remote, Snapshots, When};
use crate::digest::Algorithm;
use crate::lvm::Policy;
use crate::pin::Pin;
use crate::schedule::{Calendar, Table, Window};
use crate::sender::{Compress, Shards};
use crate::transport::lanes::Connections;
use std::path::PathBuf;
use std::time::Duration;

/// What is replicated, when, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// A label.
    pub name: String,
    /// Where replicas are.
    pub receivers: Vec<Receiver>,
    /// What is snapshotted at one time.
    pub volumes: Vec<Volume>,
    /// What starts a run.
    pub trigger: Trigger,
    /// One catch-up after downtime.
    pub persistent: bool,
    /// Starts are spread over so much time.
    pub random_delay: Duration,
    /// When runs may begin.
    pub window: Option<Window>,
    /// How far behind a replica may be, where that was said.
    pub rpo: Option<Duration>,
    /// How hard to compress.
    pub compress: Option<Compress>,
    /// Threads that read, compare and compress.
    pub shards: Shards,
    /// Connections to a receiver daemon.
    pub connections: Connections,
    /// Extent size of new pairs.
    pub extent_bytes: Option<u32>,
    /// Digest of new pairs.
    pub algorithm: Option<Algorithm>,
    /// Transfers at once.
    pub max_concurrent: usize,
    /// Wait until the volumes were idle for so long …
    pub quiet_after: Duration,
    /// … at most this long.
    pub quiet_wait_max: Duration,
    /// Time for a connection.
    pub connect_timeout: Duration,
    /// Time without progress.
    pub stall_timeout: Duration,
    /// When a failed run is tried again.
    pub retry: Retry,
    /// How much of the line, and when.
    pub bandwidth: Table,
    /// How snapshots are made.
    pub snapshot: Snapshotting,
    /// What runs around the snapshot.
    pub hooks: Vec<HookEntry>,
    /// When replicas are compared.
    pub verify: Option<Verify>,
    /// Whom to tell of what.
    pub notify: Vec<NotifyEntry>,
}

/// A volume and what its replica is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// A device, an image file, or a logical volume as `vg/name`.
    pub source: PathBuf,
    /// A name at a receiver daemon, a path elsewhere.
    pub replica: String,
    /// Read at each run, since not all that is written to it is counted here.
    pub idle_too: bool,
}

/// A host that holds replicas.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// How jobs call it.
    pub name: String,
    /// How it is reached.
    pub way: Way,
}

/// The way to a receiver.
#[derive(Clone, Debug)]
pub enum Way {
    /// A daemon.
    Daemon {
        /// `HOST` or `HOST:PORT`.
        address: String,
        /// Its key; without one the key that pairing wrote down.
        pin: Option<Pin>,
    },
    /// A remote shell.
    Shell {
        /// `user@host`.
        host: String,
        /// The shell and the program there.
        remote: Remote,
    },
    /// This host itself.
    Local,
}

/// What starts a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A calendar, in systemd's spelling or cron's.
    Calendar(Calendar),
    /// An interval from start to start.
    Every(Duration),
    /// The end of the last run, and a pause.
    Continuous(Duration),
    /// A commit of this replica of this host.
    After(String),
    /// A person or a timer.
    Manual,
}

/// When a failed run is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// After the first failure.
    pub initial: Duration,
    /// At most.
    pub max: Duration,
    /// Share of it that is random.
    pub jitter: f64,
}

/// How snapshots are made.
#[derive(Clone, Debug, Default)]
pub struct Snapshotting {
    /// Whether, and how large.
    pub snapshots: Snapshots,
    /// What follows an overflow.
    pub on_overflow: OnOverflow,
}

/// When replicas are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// On these days and times.
    pub schedule: Calendar,
    /// The replica is covered in so many rounds.
    pub rounds: u32,
}

impl Job {
    /// From an entry that [`complete`](super::complete) has been over and [`check`](super::check) found sound.
    pub(super) fn from_entry(entry: &JobEntry, receivers: &[ReceiverEntry]) -> Result<Job, String> {
        let span = |span: Option<super::span::Span>| span.map_or(Duration::ZERO, |span| span.0);
        let retry = entry.retry.ok_or("no retry")?;
        let named = |name: &String| {
            let found = receivers.iter().find(|receiver| receiver.name == *name);
            found.ok_or_else(|| format!("there is no [[receiver]] called \"{name}\"")).and_then(Receiver::from_entry)
        };
        Ok(Job {
            name: entry.name.clone(),
            receivers: entry.receivers.iter().map(named).collect::<Result<_, _>>()?,
            volumes: entry.volumes.iter().map(|volume| Volume::from_entry(volume, entry)).collect(),
            trigger: trigger(entry)?,
            persistent: entry.persistent.unwrap_or(true),
            random_delay: span(entry.random_delay),
            window: entry.window,
            rpo: entry.rpo.map(|span| span.0),
            compress: entry.compress,
            shards: entry.shards.unwrap_or_default(),
            connections: entry.connections.unwrap_or_default(),
            extent_bytes: entry.extent_size.map(|size| extent_bytes(size.0)).transpose()?,
            algorithm: entry.hash,
            max_concurrent: entry.max_concurrent.unwrap_or(1),
            quiet_after: span(entry.quiet_after),
            quiet_wait_max: span(entry.quiet_wait_max),
            connect_timeout: span(entry.connect_timeout),
            stall_timeout: span(entry.stall_timeout),
            retry: Retry { initial: retry.initial.0, max: retry.max.0, jitter: retry.jitter },
            bandwidth: entry.bandwidth.clone().unwrap_or_default(),
            snapshot: snapshotting(entry),
            hooks: entry.hooks.clone(),
            verify: entry.verify.as_ref().map(verify).transpose()?,
            notify: entry.notify.clone(),
        })
    }

    /// What is asked of a receiver for a volume: replication, with all that the job says of it.
    pub fn errand(&self, volume: &Volume, receiver: &Receiver) -> Errand {
        let (remote, pin) = match &receiver.way {
            Way::Daemon { pin, .. } => (Remote::default(), *pin),
            Way::Shell { remote, .. } => (remote.clone(), None),
            Way::Local => (Remote::default(), None),
        };
        let (extent_bytes, algorithm) = (self.extent_bytes, self.algorithm);
        let (shards, connections) = (self.shards, self.connections);
        Errand {
            compress: self.compress,
            shards,
            connections,
            extent_bytes,
            algorithm,
            pin,
            ..Errand::new(self.place(volume, receiver), remote)
        }
    }

    /// Where a volume's replica at a receiver is.
    pub fn place(&self, volume: &Volume, receiver: &Receiver) -> Place {
        match &receiver.way {
            Way::Daemon { address, .. } => Place::Receiver { address: address.clone(), replica: volume.replica.clone() },
            Way::Shell { host, .. } => Place::Remote { host: host.clone(), path: volume.replica.clone() },
            Way::Local => Place::Local(PathBuf::from(&volume.replica)),
        }
    }
}

impl Volume {
    fn from_entry(volume: &VolumeEntry, job: &JobEntry) -> Volume {
        let idle_too = volume.idle_too.or(job.idle_too).unwrap_or(false);
        Volume { source: volume.source.clone(), replica: volume.replica.clone(), idle_too }
    }
}

impl Receiver {
    fn from_entry(entry: &ReceiverEntry) -> Result<Receiver, String> {
        let way = match (&entry.address, &entry.ssh, entry.local) {
            (Some(address), None, false) => Way::Daemon { address: address.clone(), pin: entry.pin },
            (None, Some(host), false) => {
                let shell = entry.rsh.clone().unwrap_or_else(|| "ssh".to_owned());
                let program = entry.remote_program.clone().unwrap_or_else(|| "blockferry".to_owned());
                Way::Shell { host: host.clone(), remote: Remote { shell, program } }
            }
            (None, None, true) => Way::Local,
            _ => return Err(format!("receiver \"{}\": one of address, ssh and local says how it is reached", entry.name)),
        };
        Ok(Receiver { name: entry.name.clone(), way })
    }
}

fn trigger(entry: &JobEntry) -> Result<Trigger, String> {
    let mut all = Vec::new();
    all.extend(entry.schedule.clone().map(Trigger::Calendar));
    all.extend(entry.cron.clone().map(|cron| Trigger::Calendar(cron.into())));
    all.extend(entry.every.map(|span| Trigger::Every(span.0)));
    all.extend(entry.continuous.then(|| Trigger::Continuous(entry.pause.map_or(Duration::ZERO, |span| span.0))));
    if let Some(after) = &entry.after {
        let name = after.strip_prefix("replica:").filter(|name| !name.is_empty());
        all.push(Trigger::After(name.ok_or_else(|| format!("after = \"{after}\" is not of the form \"replica:NAME\""))?.to_owned()));
    }
    match all.len() {
        0 => Ok(Trigger::Manual),
        1 => Ok(all.remove(0)),
        _ => Err("only one of schedule, cron, every, continuous and after says when it runs".to_owned()),
    }
}

fn extent_bytes(bytes: u64) -> Result<u32, String> {
    let bytes = u32::try_from(bytes).map_err(|_| "extent_size is too large".to_owned())?;
    crate::extent::Geometry::new(1, bytes).map(|_| bytes).map_err(|error| format!("extent_size: {error}"))
}

fn snapshotting(entry: &JobEntry) -> Snapshotting {
    let typed = entry.snapshot.clone().unwrap_or_default();
    let when = match typed.when {
        None | Some(SnapshotWhen::Auto) => When::Auto,
        Some(SnapshotWhen::Always) => When::Always,
        Some(SnapshotWhen::Never) => When::Never,
    };
    let mut policy = Policy::default();
    policy.size = typed.size.unwrap_or(policy.size);
    policy.min_vg_free = typed.min_vg_free.unwrap_or(policy.min_vg_free);
    Snapshotting { snapshots: Snapshots { when, policy }, on_overflow: typed.on_overflow.unwrap_or_default() }
}

fn verify(entry: &super::typed::VerifyEntry) -> Result<Verify, String> {
    let rounds = match entry.slice.as_deref() {
        None => Some(1),
        Some(slice) => slice.strip_prefix("1/").and_then(|rounds| rounds.parse().ok()).filter(|rounds| (1..=10_000).contains(rounds)),
    };
    let wrong = || format!("verify: slice = \"{}\" is not of the form \"1/4\"", entry.slice.clone().unwrap_or_default());
    Ok(Verify { schedule: entry.schedule.clone(), rounds: rounds.ok_or_else(wrong)? })
}
