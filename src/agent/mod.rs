//! Decides what is replicated where: one attempt from the lock to the summary.

mod attempt;
pub mod config;
mod daemon;
pub mod doctor;
mod link;
pub mod pairing;
mod place;
mod reading;
mod receivers;
mod replicas;
mod served;
mod sources;

pub use attempt::{Job, Report, clone, excuse, serve_sender, stdio, verify};
pub use daemon::{Daemon, serve_one};
pub use link::Remote;
pub use place::Place;
pub use reading::{Snapshots, When, will_snapshot};
pub use receivers::own_key;
pub use replicas::{HostReplicas, find_replica};

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
