//! A volume's way to one receiver: what is asked for on it, and whether it is its turn.

use super::book::{JobBook, LegBook};
use super::config::{Job, Receiver, Volume, Way};
use super::outcome::{Cause, Leg, LegResult};
use crate::attempt::{self, Errand, Place, Remote};
use crate::error::{Kind, Result};
use crate::format::stream::Purpose;
use crate::sender::Compress;
use crate::state::pairing::{self, KnownReceiver};
use crate::state::{SourceRecord, StateDir};
use crate::transport::tcp;
use std::collections::BTreeSet;

/// A volume of a job and one of its receivers.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// The job.
    pub job: &'a Job,
    /// What is read.
    pub volume: &'a Volume,
    /// Who takes it.
    pub receiver: &'a Receiver,
    /// The replica.
    pub place: Place,
}

/// All ways of a job: volume by volume.
pub fn routes(job: &Job) -> Vec<Route<'_>> {
    let of_volume = |volume| job.receivers.iter().map(move |receiver| Route { job, volume, receiver, place: job.place(volume, receiver) });
    job.volumes.iter().flat_map(of_volume).collect()
}

impl<'a> Route<'a> {
    /// What is asked for.
    pub fn errand(&self, purpose: Purpose, overwrite: bool) -> Errand {
        let (remote, pin) = match &self.receiver.way {
            Way::Daemon { pin, .. } => (Remote { shell: String::new(), program: String::new() }, *pin),
            Way::Shell { remote, .. } => (remote.clone(), None),
            Way::Local => (Remote { shell: String::new(), program: String::new() }, None),
        };
        // Between two places of one host nothing is gained by what was not asked for.
        let compress = match (&self.place, self.job.compress) {
            (Place::Local(_), Some(Compress::Auto)) => None,
            (_, compress) => compress,
        };
        Errand {
            purpose,
            overwrite,
            compress,
            shards: self.job.shards,
            connections: self.job.connections,
            extent_bytes: self.job.extent_bytes,
            algorithm: self.job.algorithm,
            pin,
            ..Errand::new(self.place.clone(), remote)
        }
    }

    /// What is remembered of the pair; `None`: it has never been replicated.
    pub fn known(&self, state: &StateDir) -> Result<Option<SourceRecord>> {
        attempt::known(state, &self.volume.source, &self.place)
    }

    /// Its entry in the job's book.
    pub fn entry<'b>(&self, book: &'b JobBook) -> Option<&'b LegBook> {
        book.leg(&self.volume.source, &self.receiver.name, &self.volume.replica)
    }

    /// Where to, with which key, from which generation: what decides whether a try is the same as the one before.
    /// `paired`: the receivers that this host is paired with; to be paired anew is a change, be the key the same or not.
    pub fn tried(&self, known: Option<&SourceRecord>, paired: &[KnownReceiver]) -> String {
        let pin = match &self.receiver.way {
            Way::Daemon { pin: Some(pin), .. } => format!(" {pin}"),
            Way::Daemon { address, pin: None } => {
                let address = tcp::with_port(address);
                let receiver = paired.iter().find(|receiver| receiver.address == address);
                receiver.map_or_else(String::new, |receiver| format!(" {} since {}", receiver.pin, receiver.paired_ms))
            }
            Way::Shell { .. } | Way::Local => String::new(),
        };
        format!("{}{pin} from generation {}", self.place, known.map_or(0, |record| record.generation))
    }

    /// What became of it.
    pub fn leg(&self, known: Option<&SourceRecord>, result: LegResult, seconds: f64) -> Leg {
        Leg {
            source: self.volume.source.clone(),
            receiver: self.receiver.name.clone(),
            replica: self.volume.replica.clone(),
            relationship: known.map(|record| record.relationship),
            result,
            seconds,
        }
    }
}

/// What each route is tried with: see [`Route::tried`].
pub fn tries(routes: &[Route<'_>], known: &[Option<SourceRecord>], state: &StateDir) -> Result<Vec<String>> {
    let paired = pairing::list(state.path())?;
    Ok(routes.iter().zip(known).map(|(route, known)| route.tried(known.as_ref(), &paired)).collect())
}

/// Which ways are passed over in this run, and why.
///
/// A person is always obeyed. By itself, what waits for an operator is left alone until what is tried changed: another
/// place, key or generation. And where only some failed, only they are tried again: with all volumes of their receiver,
/// since these belong to one moment.
pub fn passed_over(routes: &[Route<'_>], tried: &[String], book: &JobBook, cause: Cause) -> Vec<Option<String>> {
    let waits = |route: &Route<'_>, tried: &String| {
        let entry = route.entry(book)?;
        let failure = entry.failure.as_ref().filter(|failure| matches!(failure.kind(), Kind::Operator | Kind::Refused))?;
        (cause != Cause::Request && entry.tried == *tried)
            .then(|| format!("waits for an operator, then `blockferry run {}`: {}", route.job.name, failure.message))
    };
    let waiting: Vec<Option<String>> = routes.iter().zip(tried).map(|(route, tried)| waits(route, tried)).collect();
    let failed = |(route, waits): (&Route<'_>, &Option<String>)| {
        let is_due = waits.is_none() && route.entry(book).is_none_or(|entry| entry.failure.is_some());
        is_due.then(|| route.receiver.name.clone())
    };
    let behind: BTreeSet<String> = routes.iter().zip(&waiting).filter_map(failed).collect();
    let only_these = cause == Cause::Retry && !behind.is_empty();
    let decide = |(route, waits): (&Route<'_>, Option<String>)| match waits {
        None if only_these && !behind.contains(&route.receiver.name) => Some("only what failed is tried again".to_owned()),
        other => other,
    };
    routes.iter().zip(waiting).map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::super::config::AgentConfig;
    use super::super::outcome::Failure;
    use super::*;
    use crate::pin::Pin;

    const JOB: &str = r#"
        [[receiver]]
        name = "a"
        address = "a.example"
        [[receiver]]
        name = "b"
        local = true
        [[job]]
        name = "db"
        receivers = ["a", "b"]
        volumes = [{ source = "/dev/vg0/data", replica = "data" }, { source = "/dev/vg0/log", replica = "log" }]
    "#;

    fn entry(source: &str, receiver: &str, exit: Option<u8>, tried: &str) -> LegBook {
        let failure = exit.map(|exit| Failure { exit, message: "because".into() });
        let replica = source.rsplit('/').next().unwrap().to_owned();
        LegBook { source: source.into(), receiver: receiver.into(), replica, tried_ms: 1, failure, failures: 1, tried: tried.into() }
    }

    /// What is passed over, as `data a`, `data b`, `log a`, `log b`: with the first letter of the reason, or a dash.
    fn decide(entries: &[(&str, &str, Option<u8>)], cause: Cause) -> String {
        let config = AgentConfig::parse(&[("a.toml".into(), JOB.into())]).unwrap();
        let routes = routes(&config.jobs[0]);
        let tried: Vec<String> = routes.iter().map(|route| route.tried(None, &[])).collect();
        let mut book = JobBook::default();
        for (volume, receiver, exit) in entries {
            let source = format!("/dev/vg0/{volume}");
            let at = routes.iter().position(|route| route.volume.replica == *volume && route.receiver.name == *receiver).unwrap();
            book.legs.push(entry(&source, receiver, *exit, &tried[at]));
        }
        let letter = |why: Option<String>| why.map_or('-', |why| why.chars().next().unwrap());
        passed_over(&routes, &tried, &book, cause).into_iter().map(letter).collect()
    }

    #[test]
    fn what_waits_for_an_operator_waits_until_somebody_asks() {
        let entries = [("data", "a", Some(6)), ("data", "b", None), ("log", "a", Some(8)), ("log", "b", Some(4))];
        assert_eq!(decide(&entries, Cause::Schedule), "w-w-");
        assert_eq!(decide(&entries, Cause::Commit), "w-w-");
        assert_eq!(decide(&entries, Cause::Request), "----");
    }

    #[test]
    fn a_retry_is_for_the_receivers_that_are_behind_with_all_their_volumes() {
        let entries = [("data", "a", Some(4)), ("data", "b", None), ("log", "a", None), ("log", "b", None)];
        assert_eq!(decide(&entries, Cause::Retry), "-o-o");
        assert_eq!(decide(&entries, Cause::Schedule), "----");
        // Never tried counts as behind; where nothing is, the run as a whole had failed.
        assert_eq!(decide(&entries[1..], Cause::Retry), "-o-o");
        let well = [("data", "a", None), ("data", "b", None), ("log", "a", None), ("log", "b", None)];
        assert_eq!(decide(&well, Cause::Retry), "----");
        let waiting = [("data", "a", Some(6)), ("data", "b", Some(4)), ("log", "a", None), ("log", "b", None)];
        assert_eq!(decide(&waiting, Cause::Retry), "w-o-");
    }

    #[test]
    fn another_key_another_place_or_another_generation_is_another_try() {
        let parse = |text: &str| AgentConfig::parse(&[("a.toml".into(), text.into())]).unwrap();
        let (one, other) = (parse(JOB), parse(&JOB.replace("a.example", "c.example")));
        let tried = |config: &AgentConfig| routes(&config.jobs[0])[0].tried(None, &[]);
        assert_ne!(tried(&one), tried(&other));
        // Paired anew: the receiver knows this host's key now, which changes nothing here.
        let paired = |paired_ms| KnownReceiver { address: "a.example:7420".into(), pin: Pin::of(&[1]), paired_ms };
        let since = |paired: KnownReceiver| routes(&one.jobs[0])[0].tried(None, &[paired]);
        assert_ne!(since(paired(1)), since(paired(2)));
        let routes = routes(&one.jobs[0]);
        let now: Vec<String> = routes.iter().map(|route| route.tried(None, &[])).collect();
        let book = JobBook { legs: vec![entry("/dev/vg0/data", "a", Some(8), &tried(&other))], ..JobBook::default() };
        assert_eq!(passed_over(&routes, &now, &book, Cause::Schedule)[0], None);
    }
}
