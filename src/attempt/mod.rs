//! One attempt from the lock to the summary: finds both ends, reads the source through a snapshot, and
//! runs the line between them.

mod delivery;
pub mod doctor;
mod line;
mod link;
mod moment;
mod place;
mod reading;
mod receivers;
mod replicas;
mod replicate;
mod sources;
mod upstream;
mod way;

pub use delivery::{Delivery, Errand, Host, changed_bytes, device_of, known, label};
pub use line::{Job, clone, excuse, scrub, serve_sender, stdio, verify};
pub use link::Remote;
pub use moment::{Wanted, open_all};
pub use place::Place;
pub use reading::{Foreseen, Origin, Reading, Snapshots, Still, When, dead_snapshots, foresee, will_snapshot};
pub use receivers::{connect, own_key};
pub use replicas::{HostReplicas, find_replica, guard_replica};
pub use replicate::{Replicated, Report, replicate};
pub use upstream::replica_named;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
