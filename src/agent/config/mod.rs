//! agent.toml: what this host replicates where and when. Three steps, three types: [`AgentFile`] is what
//! was typed, [`complete`] says what is in effect, [`Job`] is what is meant.

mod check;
mod doubts;
mod job;
mod load;
mod span;
mod typed;

pub use job::{Job, Receiver, Retry, Snapshotting, Trigger, Verify, Volume, Way};
pub use load::{AgentConfig, complete};
pub use span::Span;
pub use typed::{
    AgentFile, Defaults, HookEntry, JobEntry, Metrics, NotifyEntry, Occasion, OnError, OnOverflow, ReceiverEntry, RetryEntry,
    SnapshotEntry, SnapshotWhen, VerifyEntry, VolumeEntry,
};

/// Where it lies unless `--config` says otherwise; `conf.d/*.toml` beside it is merged.
pub const AGENT_TOML: &str = "/etc/blockferry/agent.toml";

/// A full one with comments: docs/examples/agent.toml.
pub const EXAMPLE: &str = include_str!("../../../docs/examples/agent.toml");
