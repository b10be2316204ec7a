//! What may be typed. The help texts here are the only place where options are described; the man page
//! is made from them.

use crate::attempt::{Place, Snapshots, When};
use crate::digest::Algorithm;
use crate::limits::{EXTENT_BYTES_DEFAULT, STALL_TIMEOUT_MIN};
use crate::lvm::{CowSize, Policy, Room};
use crate::part::{Slice, check_sample};
use crate::pin::Pin;
use crate::ring::Choice;
use crate::sender::{Compress, Shards};
use crate::settings::Rate;
use crate::transport::lanes::Connections;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Replicates block devices; the replica is always exactly some complete generation.
///
/// The first clone of a pair copies everything. Every later one reads the source, sends the 4 KiB blocks
/// that changed, and commits them as one new generation: a crash, a cut link or a power failure at any
/// instant leaves the old generation or completes the new one, never a mixture.
#[derive(Debug, Parser)]
#[command(name = "blockferry", version, max_term_width = 100)]
pub struct Arguments {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Where blockferry remembers its pairs [default: /var/lib/blockferry for root, else $XDG_STATE_HOME/blockferry]
    #[arg(long, global = true, value_name = "DIR", env = "BLOCKFERRY_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON lines: first a hello, last a summary and the exit code
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no summary; errors still appear
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Add a line to FILE for each replica: what changed, how much, and how it ended; logrotate may move it away
    #[arg(long, global = true, value_name = "FILE", env = "BLOCKFERRY_LOG_FILE")]
    pub log_file: Option<PathBuf>,
    /// Tell also what is decided on the way (on standard error, under systemd with levels for the journal)
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// How bytes are moved: io_uring where the kernel allows it, or threads that block
    #[arg(long, global = true, value_enum, default_value_t = Io::Auto)]
    pub io: Io,
}

/// The engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// io_uring, or blocking with a word about it
    Auto,
    /// io_uring or nothing
    Uring,
    /// pread and pwrite in a few threads
    Blocking,
}

impl From<Io> for Choice {
    fn from(io: Io) -> Choice {
        match io {
            Io::Auto => Choice::Auto,
            Io::Uring => Choice::Uring,
            Io::Blocking => Choice::Blocking,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy a volume to a replica; run again, send only what changed
    ///
    /// SRC and DST are block devices or image files, here or as HOST:PATH on another host (through ssh, one
    /// of the two); DST may also be blockferry://HOST/REPLICA or blockferry://HOST:PORT/REPLICA, a replica of a receiver. The target of a new pair must be free of data: --overwrite says that it may be lost; blocks
    /// that are equal already are found and kept. Interrupted at any point, the same command goes on from there.
    Clone(CloneOptions),
    /// Run jobs of agent.toml now: snapshot their volumes and replicate them
    ///
    /// Works with an agent or without one, and takes the same lock: exit 5 where the job is running already. A volume to
    /// which nothing was written since its last snapshot is left alone. Exit 3 where only some transfers failed, else
    /// the code of what failed.
    Run(RunOptions),
    /// Say what a run would snapshot, send and remove, and why; write nothing
    ///
    /// Volumes are read as they are now, without a snapshot, and compared with what their receivers hold: where somebody
    /// writes meanwhile, the figures are an estimate. Hooks are named and not called. Exits with what a run would.
    Plan(PlanOptions),
    /// Run the jobs of agent.toml when they are due
    ///
    /// SIGHUP reads the configuration again; SIGTERM stops every run at a point to go on from, and the next start goes
    /// on there.
    Agent(AgentConfigOption),
    /// Stop the run of a job at a point to go on from, and wait for its end
    ///
    /// The run may be the agent's or that of a command. What came is kept; the schedule goes on.
    Abort(AbortOptions),
    /// Let a job's schedule stand still
    ///
    /// A run under way goes on. `run JOB` by hand still works, `run --scheduled` and the agent do not start one.
    Pause(PauseOptions),
    /// Let a paused job's schedule go on
    Resume(ResumeOptions),
    /// Read both sides and compare; exit 7 where they differ
    ///
    /// `verify SRC DST` compares a volume with its replica as they are now: what was written to the volume since the
    /// last run differs, and is told. `verify JOB` compares every replica of a job with what was replicated to it, by
    /// the digests that are kept here: it makes no snapshot, does not read the volumes, and a volume in use is no
    /// reason for a difference.
    Verify(VerifyOptions),
    /// Show the jobs of agent.toml and how they are, and the pairs that are remembered here
    ///
    /// Of each job: its health and the reasons for it, how old its oldest replica is, what is going on, and the
    /// command to type next. It takes no lock and needs no agent. Exit 0 however the jobs are: any other code is that of
    /// a failure to look at them. `monitor` is the command whose exit code is the health.
    Status(StatusOptions),
    /// Show the runs of jobs, the last one at the end
    History(HistoryOptions),
    /// Print one line for Nagios and its kin; exit 0 ok, 1 warning, 2 critical, 3 unknown
    ///
    /// With the lag of each job as performance data, its limits beside it. Without a JOB the replicas of this host
    /// are looked at as well. It takes no lock and needs no agent, but must be allowed to read the state directory.
    Monitor(MonitorOptions),
    /// Print the figures for Prometheus once, or write them to a file for node_exporter
    ///
    /// An agent whose configuration has a `metrics` section gives them out by itself; this is for jobs that systemd or cron runs.
    Metrics(MetricsOptions),
    /// Distrust a replica's manifest: the next clone reads the replica anew and sends what differs
    Resync(ResyncOptions),
    /// Make a replica usable without its source: it begins a history of its own
    ///
    /// A commit that was cut is completed first, without the source. As long as nothing is written to the
    /// replica, the source takes the new history over by itself; after that an operator has to decide.
    Promote(PromoteOptions),
    /// Find what killed or abandoned runs left, and say what completes it
    ///
    /// Exit 0 where nothing is left over, 1 where something is. Pairs that a run is using are passed over.
    /// Nothing here is urgent: the next clone of a pair completes or cleans what is its own; doctor does it
    /// without the other side.
    Doctor(DoctorOptions),
    /// Look into a manifest file
    Manifest(ManifestOptions),
    /// Make two hosts known to each other
    ///
    /// `pair invite` at the receiver prints a token, `pair accept TOKEN` at the sending host hands it in: each then
    /// knows the other's key.
    Pair(PairOptions),
    /// Check configuration files, and print what is in effect or an example
    Config(ConfigOptions),
    /// The receiving end: serve the replicas of receiver.toml to paired hosts
    ///
    /// SIGTERM stops every session at a point to go on from; SIGHUP reads the configuration again.
    Receiver(ReceiverOptions),
    /// The sending end of a pull; run by the other side
    #[command(hide = true)]
    Sender(SenderOptions),
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Only these jobs
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
    /// The agent's configuration [default: /etc/blockferry/agent.toml where there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Look again every so many seconds until a signal comes
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub watch: Option<u32>,
}

/// Options of `history`.
#[derive(Debug, Args)]
pub struct HistoryOptions {
    /// Only these jobs, also those that are not configured any more
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
    /// The agent's configuration [default: /etc/blockferry/agent.toml where there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// No more runs than this
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub last: usize,
}

/// Options of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorOptions {
    /// Only these jobs
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
    /// The agent's configuration [default: /etc/blockferry/agent.toml where there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `metrics`.
#[derive(Debug, Args)]
pub struct MetricsOptions {
    /// The agent's configuration [default: /etc/blockferry/agent.toml where there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Replace this file, such as /var/lib/prometheus/node-exporter/blockferry.prom
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
}

/// How to reach another host.
#[derive(Debug, Args)]
pub struct RemoteOptions {
    /// The remote shell for HOST:PATH, options included
    #[arg(short = 'e', long, value_name = "COMMAND", default_value = "ssh", env = "BLOCKFERRY_RSH")]
    pub rsh: String,
    /// How blockferry is called on the other host, options included
    #[arg(long, value_name = "COMMAND", default_value = "blockferry")]
    pub remote_program: String,
    /// Give the other host up after this long without progress, 5s at least; a long run has no limit
    #[arg(long, value_name = "TIME", default_value = "2min", value_parser = stall)]
    pub stall_timeout: Duration,
    /// Move no more bytes to and from the other host than this, such as 20MiB/s or 100Mbit/s
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    pub bandwidth: Rate,
    /// The key of the receiver of blockferry://…; without it the one that pairing wrote down
    #[arg(long, value_name = "sha256:…")]
    pub pin: Option<Pin>,
}

/// How the source is read.
#[derive(Debug, Args)]
pub struct SnapshotOptions {
    /// Whether to read a snapshot of SRC, made for this run and removed after it: auto makes one of a logical volume in use
    #[arg(long, value_enum, default_value_t = SnapshotWhen::Auto, value_name = "WHEN")]
    pub snapshot: SnapshotWhen,
    /// Room for a classic snapshot: changed:2x (twice what changed last time), origin:10%, free:50% or fixed:8GiB
    #[arg(long, value_name = "POLICY")]
    pub snapshot_size: Option<CowSize>,
    /// What a snapshot leaves free in the volume group: 5% of it, or 8GiB
    #[arg(long, value_name = "ROOM")]
    pub snapshot_keep_free: Option<Room>,
}

/// Whether a snapshot is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SnapshotWhen {
    /// Of a logical volume in use
    Auto,
    /// Always; an error where SRC is no logical volume
    Always,
    /// Never: SRC is known to be quiet
    Never,
}

impl SnapshotOptions {
    /// The policy these words describe.
    pub fn policy(&self) -> Snapshots {
        let when = match self.snapshot {
            SnapshotWhen::Auto => When::Auto,
            SnapshotWhen::Always => When::Always,
            SnapshotWhen::Never => When::Never,
        };
        let mut policy = Policy::default();
        policy.size = self.snapshot_size.unwrap_or(policy.size);
        policy.min_vg_free = self.snapshot_keep_free.unwrap_or(policy.min_vg_free);
        Snapshots { when, policy }
    }
}

/// How a pass is run.
#[derive(Debug, Args)]
pub struct PassOptions {
    /// The target's content may be lost, or it may be taken from another source
    #[arg(long)]
    pub overwrite: bool,
    /// Read the replica anew instead of trusting its manifest, and send what differs
    #[arg(long)]
    pub resync: bool,
    /// Compare and say what would be sent; write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// auto, none or a zstd level (-7 to 19); what does not shrink is stored [default: none between two local places, else auto]
    #[arg(long, value_name = "HOW", allow_hyphen_values = true)]
    pub compress: Option<Compress>,
    /// Threads that read, compare and compress side by side: auto or a number from 1 to 16 [auto: one for every two cores, at most 4, where blocks are compressed, else 1]
    #[arg(long, value_name = "N", default_value_t = Shards::Auto)]
    pub shards: Shards,
    /// Connections to a receiver (blockferry://) that carry what is sent: auto or a number from 1 to 16; more than one on a link that one does not fill [auto: one, or one for each of --shards]
    #[arg(long, value_name = "N", default_value_t = Connections::Auto)]
    pub connections: Connections,
    /// Digest of a new pair: xxh3 with a random secret, or blake3
    #[arg(long, value_enum, value_name = "NAME")]
    pub hash: Option<Hash>,
    /// Extent size of a new pair, a power of two from 4K to 4M: what is compared at once
    #[arg(long, value_name = "SIZE", value_parser = size, help = format!("Extent size of a new pair, a power of two from 4K to 4M [default: {}K]", EXTENT_BYTES_DEFAULT >> 10))]
    pub extent_size: Option<u32>,
}

/// Options of `clone`.
#[derive(Debug, Args)]
pub struct CloneOptions {
    /// The volume: a block device, an image file, or HOST:PATH
    pub src: Place,
    /// The replica: a block device, an image file (made where it does not exist), HOST:PATH, or blockferry://HOST/REPLICA
    pub dst: Place,
    /// How the pass is run.
    #[command(flatten)]
    pub pass: PassOptions,
    /// How the source is read.
    #[command(flatten)]
    pub snapshot: SnapshotOptions,
    /// How to reach another host.
    #[command(flatten)]
    pub remote: RemoteOptions,
}

/// Where jobs are written down.
#[derive(Debug, Args)]
pub struct AgentConfigOption {
    /// What is replicated where and when; conf.d/*.toml beside it is merged
    #[arg(long, value_name = "FILE", default_value = crate::agent::config::AGENT_TOML)]
    pub config: PathBuf,
}

/// Which jobs.
#[derive(Debug, Args)]
pub struct JobsOption {
    /// Their names in agent.toml
    #[arg(value_name = "JOB", required_unless_present = "all", conflicts_with = "all")]
    pub jobs: Vec<String>,
    /// All of them, one after the other
    #[arg(long)]
    pub all: bool,
    /// Where jobs are written down.
    #[command(flatten)]
    pub config: AgentConfigOption,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// Which jobs.
    #[command(flatten)]
    pub jobs: JobsOption,
    /// For timers: pass over paused jobs and what waits for an operator
    #[arg(long)]
    pub scheduled: bool,
    /// Snapshot and read also what was not written to since the last run
    #[arg(long)]
    pub idle_too: bool,
    /// The content of targets that are new may be lost
    #[arg(long)]
    pub overwrite: bool,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct PlanOptions {
    /// Which jobs.
    #[command(flatten)]
    pub jobs: JobsOption,
    /// Say it from memory: read no volume and ask no receiver
    #[arg(long)]
    pub brief: bool,
    /// What a run by schedule would do: pass over what waits for an operator
    #[arg(long)]
    pub scheduled: bool,
}

/// Options of `pause`.
#[derive(Debug, Args)]
pub struct PauseOptions {
    /// The job's name in agent.toml
    pub job: String,
    /// End the pause by itself after this time, such as 2h or 1d
    #[arg(long = "for", value_name = "TIME", value_parser = crate::settings::parse_duration)]
    pub time: Option<Duration>,
    /// Why, for whoever looks at the job meanwhile
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Where jobs are written down.
    #[command(flatten)]
    pub config: AgentConfigOption,
}

/// Options of `abort`.
#[derive(Debug, Args)]
pub struct AbortOptions {
    /// The job's name in agent.toml
    pub job: String,
    /// Where jobs are written down.
    #[command(flatten)]
    pub config: AgentConfigOption,
}

/// Options of `resume`.
#[derive(Debug, Args)]
pub struct ResumeOptions {
    /// The job's name in agent.toml
    pub job: String,
    /// Where jobs are written down.
    #[command(flatten)]
    pub config: AgentConfigOption,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// The volume; or, without DST, a job of agent.toml
    #[arg(value_name = "SRC|JOB")]
    pub src: Place,
    /// The replica
    pub dst: Option<Place>,
    /// Compare N extents chosen by chance
    #[arg(long, value_name = "N", value_parser = sample, conflicts_with_all = ["slice", "full"])]
    pub sample: Option<u32>,
    /// Choose the same extents as an earlier sample did
    #[arg(long, value_name = "NUMBER", requires = "sample")]
    pub seed: Option<u64>,
    /// Compare one of T parts of the same size: 2/4 is the second of four
    #[arg(long, value_name = "N/T", conflicts_with = "full")]
    pub slice: Option<Slice>,
    /// Compare everything: what is done without --sample and --slice
    #[arg(long)]
    pub full: bool,
    /// Send what differs; the replica of a job gets what its source has new, too
    #[arg(long)]
    pub repair: bool,
    /// The agent's configuration [default: /etc/blockferry/agent.toml where there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the source is read.
    #[command(flatten)]
    pub snapshot: SnapshotOptions,
    /// How to reach another host.
    #[command(flatten)]
    pub remote: RemoteOptions,
}

/// Options of `resync`.
#[derive(Debug, Args)]
pub struct ResyncOptions {
    /// The replica: its path, or its relationship as `status` shows it
    pub replica: String,
    /// Throw away what was written since the promotion that the replica's message names
    #[arg(long, value_name = "EPOCH:GENERATION")]
    pub discard: Option<String>,
}

/// Options of `promote`.
#[derive(Debug, Args)]
pub struct PromoteOptions {
    /// The replica: its path, or its relationship as `status` shows it
    pub replica: String,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorOptions {
    /// Complete commits that were cut, and remove files and snapshots that no run will use
    #[arg(long)]
    pub fix: bool,
    /// Give up what unfinished journals hold, for its room: the next clone sends it again
    #[arg(long, requires = "fix")]
    pub drop_journals: bool,
}

/// Options of `manifest`.
#[derive(Debug, Args)]
pub struct ManifestOptions {
    /// What to do with it.
    #[command(subcommand)]
    pub action: ManifestAction,
}

/// What to do with a manifest.
#[derive(Debug, Subcommand)]
pub enum ManifestAction {
    /// Print what it says of itself and of its pages
    Show {
        /// The manifest file, in a pair's folder of the state directory
        file: PathBuf,
    },
    /// Check every page and the root; exit 7 where one is damaged
    Check {
        /// The manifest file; its record must lie beside it
        file: PathBuf,
    },
}

/// Options of `receiver`.
#[derive(Debug, Args)]
pub struct ReceiverOptions {
    /// Serve one session on standard input and output: what `clone` runs on the other host
    #[arg(long)]
    pub stdio: bool,
    /// Serve that session as this client of receiver.toml, by replica names and as far as its entry goes: the forced command of an ssh key
    #[arg(long, value_name = "NAME", requires = "stdio")]
    pub client: Option<String>,
    /// What is served, and to whom
    #[arg(long, value_name = "FILE", default_value = crate::serve::config::RECEIVER_TOML)]
    pub config: PathBuf,
    /// Give the sender up after this long without progress; without --stdio receiver.toml says it
    #[arg(long, value_name = "TIME", requires = "stdio", value_parser = stall)]
    pub stall_timeout: Option<Duration>,
}

/// Options of `pair`.
#[derive(Debug, Args)]
pub struct PairOptions {
    /// What to do.
    #[command(subcommand)]
    pub action: PairAction,
    /// The receiver's configuration, where there is one: its state directory, port and clients
    #[arg(long, global = true, value_name = "FILE", default_value = crate::serve::config::RECEIVER_TOML)]
    pub config: PathBuf,
}

/// What to do about pairs.
#[derive(Debug, Subcommand)]
pub enum PairAction {
    /// Print the name of this host's key; it is made at first use
    Key,
    /// At the receiver: print a token for one sending host
    Invite(InviteOptions),
    /// At the sending host: hand a token in
    Accept(AcceptOptions),
    /// Show who is paired with this host
    List,
    /// Forget a client or a receiver, or take open invitations back
    Revoke(RevokeOptions),
}

/// Options of `pair invite`.
#[derive(Debug, Args)]
pub struct InviteOptions {
    /// What the host may push to and verify; `*` stands for anything
    #[arg(long, value_name = "NAME")]
    pub replica: String,
    /// How long the token can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::settings::parse_duration)]
    pub expires: Duration,
    /// How the sending host reaches this one [default: this host's name, and the port of receiver.toml]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub address: Option<String>,
}

/// Options of `pair accept`.
#[derive(Debug, Args)]
pub struct AcceptOptions {
    /// What `pair invite` printed
    pub token: String,
    /// How the receiver is to call this host [default: its name]
    #[arg(long)]
    pub name: Option<String>,
}

/// Options of `pair revoke`.
#[derive(Debug, Args)]
pub struct RevokeOptions {
    /// A client's name or key, or a receiver's HOST:PORT, as `pair list` shows them
    #[arg(required_unless_present = "invites")]
    pub name: Option<String>,
    /// Take every open invitation back
    #[arg(long)]
    pub invites: bool,
}

/// Options of `config`.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    /// What to do with it.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Say what is wrong with it, or nothing
    Check(ConfigFile),
    /// Print a full one with comments
    Example(ConfigFile),
    /// Print what is in effect, defaults included
    Show(ConfigFile),
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// receiver.toml: what is served, and to whom
    #[arg(long, conflicts_with = "agent")]
    pub receiver: bool,
    /// agent.toml: what is replicated where and when; taken for granted where --receiver does not stand
    #[arg(long)]
    pub agent: bool,
    /// The file [default: /etc/blockferry/agent.toml or receiver.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `sender`.
#[derive(Debug, Args)]
pub struct SenderOptions {
    /// Serve one session on standard input and output
    #[arg(long, required = true)]
    pub stdio: bool,
    /// The target's path at the receiver
    #[arg(long)]
    pub target: String,
    /// What the pair is remembered by here
    #[arg(long)]
    pub label: String,
    /// The volume
    pub source: PathBuf,
    /// Give the receiver up after this long without progress
    #[arg(long, value_name = "TIME", default_value = "2min", value_parser = stall)]
    pub stall_timeout: Duration,
    /// How the pass is run.
    #[command(flatten)]
    pub pass: PassOptions,
    /// How the source is read.
    #[command(flatten)]
    pub snapshot: SnapshotOptions,
}

/// The digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hash {
    /// XXH3-128 with a random secret
    Xxh3,
    /// Keyed BLAKE3
    Blake3,
}

impl From<Hash> for Algorithm {
    fn from(hash: Hash) -> Algorithm {
        match hash {
            Hash::Xxh3 => Algorithm::Xxh3,
            Hash::Blake3 => Algorithm::Blake3,
        }
    }
}

fn sample(text: &str) -> Result<u32, String> {
    let extents = text.parse().map_err(|_| format!("\"{text}\" is no number of extents"))?;
    check_sample(extents).map(|()| extents)
}

/// A stall limit that a busy peer can keep.
fn stall(text: &str) -> Result<Duration, String> {
    let limit = crate::settings::parse_duration(text)?;
    if limit >= STALL_TIMEOUT_MIN { Ok(limit) } else { Err(format!("less than {} s", STALL_TIMEOUT_MIN.as_secs())) }
}

/// A size with K or M behind it.
fn size(text: &str) -> Result<u32, String> {
    let bytes = crate::settings::amount::parse_bytes(text).and_then(|bytes| u32::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| format!("\"{text}\" is no size: a number with K or M behind it"))?;
    crate::extent::Geometry::new(1, bytes).map(|_| bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn extent_sizes_are_powers_of_two_with_a_unit() {
        assert_eq!(size("64K"), Ok(65536));
        assert_eq!(size("4MiB"), Ok(4 << 20));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("5K").is_err() && size("8M").is_err() && size("K").is_err() && size("4G").is_err());
    }
}
