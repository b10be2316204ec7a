//! A look at the state directory: gathers what [`assess`] judges. It takes no lock and waits for nobody; a run that
//! is under way is seen as it was before its commit.

use super::judge::assess;
use super::{Around, Code, Health, Level, Pair, Reason};
use crate::agent::book::{JobBook, Shelf};
use crate::agent::config::Job;
use crate::attempt;
use crate::error::{Error, Result};
use crate::state::{HostFiles, ReplicaRecord, Side, SourceRecord};
use jiff::tz::TimeZone;
use uuid::Uuid;

/// All that can be seen of this host.
#[derive(Clone, Debug)]
pub struct Look {
    /// When it was: milliseconds since 1970.
    pub now_ms: u64,
    /// The process that keeps the schedules.
    pub agent: Option<u32>,
    /// The jobs, in the order of the configuration.
    pub jobs: Vec<Seen>,
    /// Jobs that have a book and are not configured any more.
    pub strangers: Vec<Reason>,
    /// What this host sends.
    pub sources: Vec<SourceRecord>,
    /// What this host holds.
    pub replicas: Vec<ReplicaRecord>,
    /// Records that cannot be read.
    pub unreadable: Vec<Reason>,
}

/// A job and how it is.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was looked at: milliseconds since 1970.
    pub now_ms: u64,
    /// What is remembered of it; empty where that cannot be read.
    pub book: JobBook,
    /// How it is.
    pub health: Health,
    /// The half of each of its pairs that is kept here.
    pub records: Vec<Option<SourceRecord>>,
}

impl Look {
    /// Looks now. `zone`: where times of day are meant.
    pub fn now(shelf: &Shelf, jobs: &[Job], zone: &TimeZone) -> Result<Look> {
        Look::at(shelf, jobs, zone, attempt::now_ms())
    }

    /// The same with the time given.
    pub fn at(shelf: &Shelf, jobs: &[Job], zone: &TimeZone, now_ms: u64) -> Result<Look> {
        let agent = agent_pid(shelf);
        let seen = jobs.iter().map(|job| see(shelf, job, Around { now_ms, zone: zone.clone(), runner: shelf.runner(&job.name), agent }));
        let seen = seen.collect();
        let mut unreadable = Vec::new();
        let sources = records(shelf, Side::Sources, SourceRecord::load, &mut unreadable)?;
        let replicas = records(shelf, Side::Replicas, ReplicaRecord::load, &mut unreadable)?;
        let names = shelf.jobs()?.into_iter().filter(|name| jobs.iter().all(|job| job.name != *name));
        let strangers = names.map(|name| stranger(shelf, &name)).collect();
        Ok(Look { now_ms, agent, jobs: seen, strangers, sources, replicas, unreadable })
    }
}

/// The process of the agent that keeps the schedules of this state directory.
pub fn agent_pid(shelf: &Shelf) -> Option<u32> {
    crate::agent::daemon::process(shelf)
}

fn see(shelf: &Shelf, job: &Job, around: Around) -> Seen {
    let book = shelf.read(&job.name).map_err(|error| error.chain());
    let pairs: Vec<Pair> = job
        .receivers
        .iter()
        .flat_map(|receiver| job.volumes.iter().map(move |volume| (volume, receiver)))
        .map(|(volume, receiver)| {
            let pair =
                Pair { source: volume.source.clone(), receiver: receiver.name.clone(), replica: volume.replica.clone(), ..Pair::default() };
            let record = attempt::known(shelf.state(), &volume.source, &job.place(volume, receiver));
            let both = record.and_then(|record| {
                let current = record.as_ref().map(|record| shelf.current(&record.relationship)).transpose()?.flatten();
                Ok((record, current))
            });
            match both {
                Ok((record, current)) => Pair { record, current, ..pair },
                Err(error) => Pair { unreadable: Some(error.chain()), ..pair },
            }
        })
        .collect();
    let health = assess(job, book.as_ref().map_err(String::as_str), &pairs, &around);
    Seen { now_ms: around.now_ms, book: book.unwrap_or_default(), health, records: pairs.into_iter().map(|pair| pair.record).collect() }
}

fn stranger(shelf: &Shelf, name: &str) -> Reason {
    let folder = shelf.folder().join("jobs").join(name);
    let message = format!("job {name} is in no configuration any more; what is remembered of it may go: rm -r {}", folder.display());
    Reason { code: Code::NotConfigured, level: Level::Ok, message, command: None }
}

/// The records of one side. One that cannot be read hides none of the others.
fn records<T>(shelf: &Shelf, side: Side, load: fn(&dyn crate::state::Files) -> Result<Option<T>>, bad: &mut Vec<Reason>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for relationship in shelf.state().relationships(side)? {
        match load(&HostFiles::new(&shelf.state().folder(side, &relationship))) {
            Ok(record) => all.extend(record),
            Err(error) => bad.push(unreadable(&relationship, &error)),
        }
    }
    Ok(all)
}

fn unreadable(relationship: &Uuid, error: &Error) -> Reason {
    let message = format!("relationship {relationship}: {}", error.chain());
    Reason { code: Code::StateUnreadable, level: Level::Unknown, message, command: None }
}
