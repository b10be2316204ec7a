//! A source that is a replica of this host, for chains: read between two commits and never in the middle of one.
//!
//! Whoever reads it holds the lock that a receiving session takes, as long as the device itself is read; where it is
//! read through a snapshot, as long as that is made. A session that comes meanwhile is told that the replica is in use,
//! and its agent tries again.

use crate::disk::identity;
use crate::error::{Error, Kind, Result};
use crate::limits::UPSTREAM_WAIT;
use crate::state::{HostFiles, Lock, ReplicaRecord, Side, Stage, StateDir};
use std::path::Path;
use uuid::Uuid;

/// A replica that holds still.
#[derive(Debug)]
pub struct Held {
    /// When its content was its source's: what a copy of it is as old as.
    pub source_time_ms: u64,
    _lock: Lock,
}

/// The relationship of a replica of this host: by its name at the receiver daemon, its device or file, or its own uuid.
pub fn replica_named(state: &StateDir, name: &str) -> Result<Option<Uuid>> {
    let by_name = state.served_as(name);
    let identity = identity::of(Path::new(name)).ok();
    for relationship in state.relationships(Side::Replicas)? {
        let Some(record) = ReplicaRecord::load(&HostFiles::new(&state.folder(Side::Replicas, &relationship)))? else { continue };
        let by_identity = identity.as_ref().is_some_and(|identity| identity.stable == record.target.stable);
        if by_name == Some(relationship) || by_identity || name.parse() == Ok(relationship) || record.target.path == Path::new(name) {
            return Ok(Some(relationship));
        }
    }
    Ok(None)
}

/// Lets a source hold still where it is a replica that is remembered here. `None`: it is no replica, or a promoted one,
/// which is a volume like any other.
pub fn hold(state: &StateDir, source: &Path) -> Result<Option<Held>> {
    let Ok(identity) = identity::of(source) else { return Ok(None) };
    for relationship in state.relationships(Side::Replicas)? {
        let folder = state.folder(Side::Replicas, &relationship);
        let load = || ReplicaRecord::load(&HostFiles::new(&folder));
        if load()?.is_none_or(|record| record.target.stable != identity.stable || record.promotion.is_some()) {
            continue;
        }
        let what = format!("{}, the replica that is to be read,", source.display());
        let lock = Lock::wait(&folder, &what, UPSTREAM_WAIT)?;
        // Read again under the lock: a session may have ended just now.
        let Some(record) = load()? else { return Ok(None) };
        let later = match record.stage {
            Stage::Clean => return Ok(Some(Held { source_time_ms: record.source_time_ms, _lock: lock })),
            Stage::Initializing => "its first copy is not complete".to_owned(),
            Stage::Applying { generation, .. } => {
                format!("its generation {generation} is applied in part; the next session or `blockferry doctor --fix` completes it")
            }
        };
        let message = format!("{} is a replica that is no whole generation now: {later}; it is read when it is one", source.display());
        return Err(Error::new(Kind::Transient, message));
    }
    Ok(None)
}
