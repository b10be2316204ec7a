//! agent.toml as it is typed: what may stand where. [`Job`](super::Job) is what is meant by it.

use super::span::Span;
use crate::digest::Algorithm;
use crate::lvm::{CowSize, Room};
use crate::pin::Pin;
use crate::schedule::{Calendar, Cron, Table, Window};
use crate::sender::{Compress, Shards};
use crate::settings::Size;
use crate::transport::lanes::Connections;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One file: agent.toml, or one of conf.d.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// The state directory; `--state-dir` goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Runs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runs: Option<usize>,
    /// Where figures are given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// What holds for every job that does not say otherwise.
    #[serde(default, skip_serializing_if = "Defaults::is_empty")]
    pub defaults: Defaults,
    /// Where replicas are.
    #[serde(default, rename = "receiver", skip_serializing_if = "Vec::is_empty")]
    pub receivers: Vec<ReceiverEntry>,
    /// What is replicated.
    #[serde(default, rename = "job", skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobEntry>,
}

/// Where figures are given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// `ADDRESS:PORT` of the exporter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// A file for the textfile collector of node_exporter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub textfile: Option<PathBuf>,
}

/// A host that holds replicas, and the way to it: one of `address`, `ssh` and `local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverEntry {
    /// How jobs call it.
    pub name: String,
    /// `HOST` or `HOST:PORT` of a receiver daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its key; without one the key that pairing wrote down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// `user@host`, reached through ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// The remote shell and its options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsh: Option<String>,
    /// How blockferry is called there, options included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_program: Option<String>,
    /// This host itself: replicas are paths.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
}

/// A volume and what its replica is called at the receivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeEntry {
    /// A device, an image file, or a logical volume as `vg/name`.
    pub source: PathBuf,
    /// A name at a receiver daemon, a path elsewhere.
    pub replica: String,
    /// Read at each run, be it idle or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_too: Option<bool>,
}

/// What `[defaults]` may say for every job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// How hard to compress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
    /// Threads that read, compare and compress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
    /// Connections to a receiver daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Time for a connection, and again for its handshake, which has ten seconds at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Span>,
    /// Time without progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_timeout: Option<Span>,
    /// When a failed run is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryEntry>,
    /// How much of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Table>,
    /// Transfers of a run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<usize>,
    /// One catch-up after downtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Spread over so much time, the same every time on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_delay: Option<Span>,
    /// Volumes are read at each run, be they idle or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_too: Option<bool>,
    /// How snapshots are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotEntry>,
    /// Whom to tell of what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NotifyEntry>,
}

impl Defaults {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Defaults::default()
    }
}

/// What is replicated, when, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobEntry {
    /// A label; the identity of what is replicated is the pair's own.
    pub name: String,
    /// Names of receivers.
    pub receivers: Vec<String>,
    /// What is snapshotted at one time.
    pub volumes: Vec<VolumeEntry>,
    /// A calendar as systemd writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Calendar>,
    /// A calendar as cron writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    /// From the start of one run to that of the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// Passes back to back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continuous: bool,
    /// Time between the passes of a continuous job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Span>,
    /// `replica:NAME`: after each commit of a replica of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// One catch-up after downtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Spread over so much time, the same every time on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_delay: Option<Span>,
    /// When runs may begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// How far behind a replica may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Span>,
    /// How hard to compress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
    /// Threads that read, compare and compress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
    /// Connections to a receiver daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Extent size of new pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent_size: Option<Size>,
    /// Digest of new pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Algorithm>,
    /// Transfers of a run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<usize>,
    /// Wait until the volumes were idle for so long …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_after: Option<Span>,
    /// … at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_wait_max: Option<Span>,
    /// Volumes are read at each run, be they idle or not; a volume may say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_too: Option<bool>,
    /// Time for a connection, and again for its handshake, which has ten seconds at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Span>,
    /// Time without progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout: Option<Span>,
    /// When a failed run is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryEntry>,
    /// How much of the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Table>,
    /// How snapshots are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotEntry>,
    /// What runs around the snapshot.
    #[serde(default, rename = "hook", skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookEntry>,
    /// When replicas are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyEntry>,
    /// Whom to tell of what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NotifyEntry>,
}

/// How snapshots are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotEntry {
    /// Whether.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<SnapshotWhen>,
    /// Room for a classic one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<CowSize>,
    /// What the volume group keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_vg_free: Option<Room>,
    /// What follows an overflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_overflow: Option<OnOverflow>,
}

/// Whether a source is read from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotWhen {
    /// A logical volume in use is.
    Auto,
    /// Always; an error where the source is no logical volume.
    Always,
    /// Never: the source is known to be quiet.
    Never,
}

/// What follows an overflowed snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverflow {
    /// The run fails.
    #[default]
    Fail,
    /// One more try at once, with twice the room.
    RetryLarger,
}

/// When a failed run is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryEntry {
    /// After the first failure.
    pub initial: Span,
    /// At most.
    pub max: Span,
    /// Share of it that is random.
    #[serde(default)]
    pub jitter: f64,
}

/// A program around the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookEntry {
    /// The program and its arguments.
    pub run: Vec<String>,
    /// Time for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Whether its failure ends the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
}

/// Whether a hook's failure ends the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// It does.
    #[default]
    Abort,
    /// It is told, and the run goes on.
    Warn,
}

/// When replicas are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyEntry {
    /// A calendar as systemd writes it.
    pub schedule: Calendar,
    /// How much of it each time: `1/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
}

/// What somebody may want to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Occasion {
    /// A run failed, and is tried again by itself.
    Failed,
    /// What had been told is over.
    Recovered,
    /// A replica is further behind than twice the job's `rpo`.
    LagCritical,
    /// A verification found differences.
    VerifyMismatch,
    /// Nothing helps but somebody who decides or repairs something.
    OperatorNeeded,
}

/// Whom to tell of what: one of `exec`, `webhook` and `mail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifyEntry {
    /// Of what.
    pub on: Vec<Occasion>,
    /// A program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
    /// A URL that gets JSON posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// An address that the local sendmail knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<String>,
}
