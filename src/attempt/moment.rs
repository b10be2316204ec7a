//! Several sources as they are at one moment: their snapshots are made one right after the other.
//!
//! LVM makes one snapshot at a time. Everything that can be asked before (who died, what there is room for) is asked
//! before the first, and everything that can wait (where the devices are, opening them) is done after the last: between two
//! snapshots lies one `lvcreate`, a fraction of a second. What must not change in between is held still by a hook.
//!
//! The volume groups are locked meanwhile: of two runs each gets its room and its moment as a whole. After a crash the
//! kernel has let go of the locks, and the snapshots are found by their tags.

use super::now_ms;
use super::reading::{Origin, Reading, Snapshots, Still, remove_what_died};
use super::upstream::{Held, hold};
use crate::error::{Error, Kind, Result};
use crate::limits::{GROUP_LOCK_TIMEOUT, STOP_POLL};
use crate::lvm::{Prepared, Snapshot, Volume};
use crate::ring::Choice;
use crate::state::{Lock, StateDir};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A source that is to be read.
pub struct Wanted<'a> {
    /// Which.
    pub origin: &'a Origin,
    /// Whether and how a snapshot of it is made.
    pub snapshots: &'a Snapshots,
    /// What its last increment changed.
    pub changed_bytes: Option<u64>,
    /// It lies still: it is read without a snapshot, as long as this says so.
    pub still: Option<Still>,
}

impl Wanted<'_> {
    /// The volume to snapshot, if one is to be.
    fn volume(&self) -> Result<Option<&Volume>> {
        if self.still.is_some() { Ok(None) } else { self.origin.wants(self.snapshots.when) }
    }
}

/// Opens all of them as they are at one moment. One that fails hurts none of the others: the results are in the order of
/// `wanted`. An error of the whole: the moment did not come.
pub fn open_all(state: &StateDir, wanted: &[Wanted<'_>], run_id: &str, choice: Choice, stop: &AtomicBool) -> Result<Vec<Result<Reading>>> {
    if wanted.iter().any(|one| one.origin.may_have_snapshots(one.snapshots.when)) {
        remove_what_died();
    }
    let _groups = lock_groups(state, wanted, stop)?;
    let mut promised = BTreeMap::new();
    let mut ready = |one: &Wanted<'_>| Ok((hold(state, &one.origin.path)?, prepare(one, run_id, &mut promised)?));
    let prepared: Vec<Result<(Option<Held>, Option<Prepared>)>> = wanted.iter().map(&mut ready).collect();
    // Before lvm2 makes any of them, so that a replica never seems younger than it is.
    let taken_ms = now_ms();
    type Made = Result<(Option<Held>, Option<Snapshot>)>;
    let make = |(held, prepared): (Option<Held>, Option<Prepared>)| Ok((held, prepared.map(Prepared::make).transpose()?));
    let made: Vec<Made> = prepared.into_iter().map(|one| one.and_then(make)).collect();
    let open = |(one, made): (&Wanted<'_>, Made)| {
        let (held, snapshot) = made?;
        let reading = match (snapshot, &one.still) {
            (Some(snapshot), _) => Reading::of_snapshot(snapshot.locate()?, taken_ms, choice),
            (None, Some(still)) => one.origin.read_still(Arc::clone(still), choice),
            (None, None) => one.origin.read_as_it_is(choice),
        };
        reading.map(|reading| reading.of(held))
    };
    Ok(wanted.iter().zip(made).map(open).collect())
}

fn prepare(one: &Wanted<'_>, run_id: &str, promised: &mut BTreeMap<String, u64>) -> Result<Option<Prepared>> {
    let Some(volume) = one.volume()? else { return Ok(None) };
    let promised = promised.entry(volume.vg().to_owned()).or_default();
    let prepared = Prepared::new(volume, &one.snapshots.policy, one.changed_bytes, *promised, run_id)?;
    *promised += prepared.cow_bytes();
    Ok(Some(prepared))
}

/// In the order of their names, as everybody does: two runs never wait for each other.
fn lock_groups(state: &StateDir, wanted: &[Wanted<'_>], stop: &AtomicBool) -> Result<Vec<Lock>> {
    let group = |one: &Wanted<'_>| one.volume().ok().flatten().map(|volume| volume.vg().to_owned());
    let groups: BTreeSet<String> = wanted.iter().filter_map(group).collect();
    let until = Instant::now() + GROUP_LOCK_TIMEOUT;
    let lock = |vg: String| {
        let folder = state.group(&vg)?;
        loop {
            match Lock::take(&folder, &format!("volume group {vg}, for snapshots,")) {
                Err(_) if stop.load(Ordering::Relaxed) => {
                    return Err(Error::new(Kind::Interrupted, format!("stopped while waiting for the snapshots of volume group {vg}")));
                }
                Err(error) if error.kind() == Kind::Locked && Instant::now() < until => std::thread::sleep(STOP_POLL),
                other => return other,
            }
        }
    };
    groups.into_iter().map(lock).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_without_snapshots_are_opened_each_with_a_result_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let (there, away) = (folder.path().join("there"), folder.path().join("away"));
        std::fs::write(&there, [1; 8192]).unwrap();
        std::fs::write(&away, [1; 8192]).unwrap();
        let origins = [&away, &there].map(|path| Origin::find(path).unwrap());
        std::fs::remove_file(&away).unwrap();
        let snapshots = Snapshots::default();
        let wanted: Vec<Wanted<'_>> =
            origins.iter().map(|origin| Wanted { origin, snapshots: &snapshots, changed_bytes: None, still: None }).collect();
        let stop = Arc::<AtomicBool>::default();
        let opened = open_all(&state, &wanted, "r1", Choice::Blocking, &stop).unwrap();
        assert!(opened[0].is_err() && opened[1].as_ref().is_ok_and(|reading| reading.bytes() == 8192 && !reading.is_snapshot()));
    }
}
