//! Looks once a minute at how far behind replicas are, and tells whoever is to be told; tries again to remove snapshots that
//! stayed. In a thread of its own: a program or a mail host that takes its time holds no schedule up.

use crate::agent::book::Shelf;
use crate::agent::config::Job;
use crate::agent::health::{Code, Look};
use crate::agent::notify::{Event, tell};
use crate::limits::{ALARM_INTERVAL, STOP_POLL};
use crate::log;
use crate::lvm;
use jiff::tz::TimeZone;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The jobs as they are configured now, for those who look beside the deciding thread.
pub type Listed = Arc<Mutex<Vec<Job>>>;

/// The jobs of this moment.
pub fn listed(jobs: &Listed) -> Vec<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Looks until `stop`.
pub fn watch(shelf: &Shelf, jobs: &Listed, zone: &TimeZone, stop: &AtomicBool) {
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(STOP_POLL);
        if looked.elapsed() >= ALARM_INTERVAL {
            looked = Instant::now();
            look(shelf, &listed(jobs), zone);
            remove_what_stayed(stop);
        }
    }
}

/// A snapshot that its run could not remove takes room and slows its volume down: the run that is to come may be a day
/// away. That it stays was told when its run ended.
fn remove_what_stayed(stop: &AtomicBool) {
    for (label, removed) in lvm::remove_given_up(stop) {
        match removed {
            Ok(()) => log::info(format!("removed {label}, which its run could not remove")),
            Err(error) => log::debug(|| error.chain()),
        }
    }
}

/// One look. What is said again and again is thinned in the book, and a run that makes all well ends it.
fn look(shelf: &Shelf, jobs: &[Job], zone: &TimeZone) {
    let look = match Look::now(shelf, jobs, zone) {
        Ok(look) => look,
        Err(error) => return log::error(format!("look at the jobs: {}", error.chain())),
    };
    for (job, seen) in jobs.iter().zip(&look.jobs) {
        let late = seen.health.reasons.iter().find(|reason| reason.code == Code::LagCritical);
        if let Some(reason) = late {
            tell(shelf, job, &[Event::lag_critical(&*reason.message)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::{AgentConfig, Occasion};
    use crate::digest::{Algorithm, Digest, SECRET_BYTES};
    use crate::disk::identity;
    use crate::state::{SourceRecord, StateDir};
    use uuid::Uuid;

    #[test]
    fn a_replica_too_far_behind_is_told_once_and_not_at_each_look() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(&StateDir::open(&folder.path().join("state")).unwrap()).unwrap();
        let said = folder.path().join("said");
        let text = format!(
            "[[receiver]]\nname = \"here\"\nlocal = true\n[[job]]\nname = \"db\"\nreceivers = [\"here\"]\nrpo = \"1min\"\nvolumes = [{{ source = \"{0}/a\", replica = \"{0}/b\" }}]\n[[job.notify]]\non = [\"lag-critical\"]\nexec = [\"/bin/sh\", \"-c\", \"echo told >> {1}\"]\n",
            folder.path().display(),
            said.display()
        );
        let jobs = AgentConfig::parse(&[("a.toml".into(), text)]).unwrap().jobs;
        // Replicated long ago, and not since.
        std::fs::write(folder.path().join("a"), [1; 8192]).unwrap();
        let state = shelf.state().clone();
        let place = jobs[0].place(&jobs[0].volumes[0], &jobs[0].receivers[0]);
        let record = SourceRecord {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 1,
            root: Digest::UNKNOWN,
            source: identity::of(&folder.path().join("a")).unwrap(),
            target: crate::attempt::label(&place).unwrap(),
            volume_bytes: 8192,
            extent_bytes: 65536,
            algorithm: Algorithm::Xxh3,
            secret: [0; SECRET_BYTES],
            source_time_ms: 1,
            changed_bytes: None,
        };
        record.store(&state.files(crate::state::Side::Sources, &record.relationship).unwrap()).unwrap();
        for _ in 0..3 {
            look(&shelf, &jobs, &TimeZone::UTC);
        }
        assert_eq!(std::fs::read_to_string(said).unwrap(), "told\n");
        assert!(shelf.read("db").unwrap().told.contains_key(&Occasion::LagCritical));
    }
}
