//! One delivery: a snapshot's way to one receiver, what is asked of it, and what is remembered of it.

use super::link::Remote;
use super::place::{Place, absolute};
use super::sources::{self, Wishes, relationship_of_target};
use crate::digest::Algorithm;
use crate::disk::identity;
use crate::error::{Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::part::Part;
use crate::pin::Pin;
use crate::progress::Progress;
use crate::ring::Choice;
use crate::sender::{Compress, Order, Shards, shard_count};
use crate::state::{SourceRecord, StateDir};
use crate::transport::Terms;
use crate::transport::lanes::Connections;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What all attempts of this host have in common.
#[derive(Clone, Debug)]
pub struct Host {
    /// What we remember.
    pub state: StateDir,
    /// Which engine moves the bytes.
    pub choice: Choice,
    /// What connections to other hosts are held to.
    pub terms: Terms,
}

/// Where a volume is to arrive, and what is asked for on the way.
#[derive(Clone, Debug)]
pub struct Errand {
    /// The replica: `blockferry://…`, HOST:PATH, or a path of this host.
    pub target: Place,
    /// Replicate, find out what that would take (`Plan`), or verify.
    pub purpose: Purpose,
    /// Hash the replica anew and send what differs.
    pub resync: bool,
    /// The target's unknown content may be lost.
    pub overwrite: bool,
    /// How hard to compress; `None` chooses by where the target is.
    pub compress: Option<Compress>,
    /// Threads that read, compare and pack.
    pub shards: Shards,
    /// Connections to a receiver daemon that carry what is sent.
    pub connections: Connections,
    /// Extent size of a new pair.
    pub extent_bytes: Option<u32>,
    /// Digest of a new pair.
    pub algorithm: Option<Algorithm>,
    /// How other hosts are reached through a shell.
    pub remote: Remote,
    /// The key of the receiver daemon, where it was typed.
    pub pin: Option<Pin>,
    /// Which extents a verification looks at.
    pub part: Part,
}

/// One errand on its way.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// What it is about.
    pub errand: Errand,
    /// What is counted here, and the flag that stops this delivery.
    pub here: &'a Progress,
    /// What the receiver counts where it runs in this process.
    pub there: &'a Progress,
}

impl Errand {
    /// Replication to `target` with everything else as it is without an option.
    pub fn new(target: Place, remote: Remote) -> Errand {
        Errand {
            target,
            purpose: Purpose::Replicate,
            resync: false,
            overwrite: false,
            compress: None,
            shards: Shards::Auto,
            connections: Connections::Auto,
            extent_bytes: None,
            algorithm: None,
            remote,
            pin: None,
            part: Part::Full,
        }
    }

    fn compress(&self) -> Compress {
        self.compress.unwrap_or(match self.target {
            Place::Local(_) => Compress::None,
            Place::Remote { .. } | Place::Receiver { .. } => Compress::Auto,
        })
    }

    /// Shards of the pass. Only a replication has several.
    pub(super) fn shard_count(&self) -> usize {
        match self.purpose {
            Purpose::Replicate => shard_count(self.shards, self.compress()),
            Purpose::Plan | Purpose::Verify => 1,
        }
    }

    /// Connections that carry what is sent. `auto`: one for each shard that was asked for.
    pub(super) fn connection_count(&self) -> usize {
        match self.purpose {
            Purpose::Replicate => self.connections.told().or(self.shards.told()).unwrap_or(1),
            Purpose::Plan | Purpose::Verify => 1,
        }
    }

    /// What the sender is told. `taken_ms`: the moment of the snapshot.
    pub(super) fn order(&self, taken_ms: u64) -> Order {
        let compress = self.compress();
        Order { purpose: self.purpose, compress, overwrite: self.overwrite, resync: self.resync, source_time_ms: taken_ms, part: self.part }
    }

    pub(super) fn wishes(&self) -> Wishes {
        Wishes { extent_bytes: self.extent_bytes, algorithm: self.algorithm }
    }
}

/// How the other end of a pair is called.
pub(super) struct Pair {
    /// What the pair is remembered by here.
    pub label: String,
    /// What the receiver is told: the path on its own host, or its name for the replica.
    pub target: String,
    /// The relationship that a local target's own record names.
    pub known: Option<Uuid>,
}

impl Pair {
    /// The pair that `target` makes with a source of this host. Source and target must not be the same.
    pub fn of(state: &StateDir, source: &Path, target: &Place) -> Result<Pair> {
        let label = label(target)?;
        Ok(match target {
            Place::Local(_) => {
                refuse_same(source, Path::new(&label))?;
                let known = relationship_of_target(state, Path::new(&label))?;
                Pair { target: label.clone(), label, known }
            }
            Place::Remote { path, .. } => Pair { target: path.clone(), label, known: None },
            Place::Receiver { replica, .. } => Pair { target: replica.clone(), label, known: None },
        })
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

/// What a pair is remembered by at its source, as [`SourceRecord::target`]: `blockferry://HOST/REPLICA` and
/// HOST:PATH as they are written, a local path made absolute.
pub fn label(target: &Place) -> Result<String> {
    Ok(match target {
        Place::Local(path) => absolute(path)?.display().to_string(),
        other => other.to_string(),
    })
}

/// What is remembered of the pair, without a lock: its relationship, the last committed generation and when its
/// snapshot was taken. `None`: never replicated. A look while a run is on its way sees the generation before it;
/// nothing is made, and neither a missing source nor lvm2 is asked for anything.
pub fn known(state: &StateDir, source: &Path, target: &Place) -> Result<Option<SourceRecord>> {
    let path = device_of(source);
    // A target whose folder is away, a disk that is not plugged in, is looked for as it was written.
    let label = label(target).unwrap_or_else(|_| target.to_string());
    let relationship = match target {
        Place::Local(_) => relationship_of_target(state, Path::new(&label))?,
        Place::Remote { .. } | Place::Receiver { .. } => None,
    };
    let identity = identity::of(&path).ok();
    sources::find(state, |record| match &identity {
        Some(identity) => sources::belongs(record, identity) && (record.target == label || relationship == Some(record.relationship)),
        None => record.source.path == path && record.target == label,
    })
}

/// The name's device without a question to lvm2.
pub fn device_of(source: &Path) -> PathBuf {
    let device = Path::new("/dev").join(source);
    if !source.exists() && device.exists() { device } else { source.to_owned() }
}

/// What the next snapshot's size goes by when it feeds several deliveries: the most that one of them found
/// changed. `None`, a first copy's generous room, as soon as one has not been through an increment yet.
pub fn changed_bytes<'a>(state: &StateDir, source: &Path, targets: impl IntoIterator<Item = &'a Place>) -> Result<Option<u64>> {
    let mut most = None;
    for target in targets {
        match known(state, source, target)?.and_then(|record| record.changed_bytes) {
            Some(bytes) => most = most.max(Some(bytes)),
            None => return Ok(None),
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::sources::Source;

    #[test]
    fn a_pair_is_known_by_its_label_and_a_stranger_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let (source, other) = (folder.path().join("source"), folder.path().join("other"));
        std::fs::write(&source, [1; 8192]).unwrap();
        std::fs::write(&other, [1; 8192]).unwrap();
        let targets: Vec<Place> = ["blockferry://dr/db", "dr:/r", "dr:/s"].into_iter().map(|text| text.parse::<Place>().unwrap()).collect();
        for (target, changed) in targets.iter().zip([Some(7), Some(9), None]) {
            let label = label(target).unwrap();
            let mut half = Source::open(&state, &source, &label, None, Wishes::default(), None, true).unwrap();
            half.record.changed_bytes = changed;
            half.record.store(&half.files).unwrap();
            // The lock is held: a look does not mind.
            assert_eq!(known(&state, &source, target).unwrap(), Some(half.record.clone()));
            assert_eq!(known(&state, &other, target).unwrap(), None);
        }
        assert_eq!(changed_bytes(&state, &source, &targets[..2]).unwrap(), Some(9));
        assert_eq!(changed_bytes(&state, &source, &targets).unwrap(), None);
        // A source that is away is still known by its path.
        let away = std::fs::canonicalize(&source).unwrap();
        std::fs::remove_file(&source).unwrap();
        assert_eq!(known(&state, &away, &targets[0]).unwrap().map(|record| record.changed_bytes), Some(Some(7)));
        assert_eq!(std::fs::read_dir(state.path().join("sources")).unwrap().count(), 3);
    }
}
