//! What a client of the daemon gets: replicas by name, as far as its grants go, one session each.
//!
//! This is the border between what a peer says and what this host does: a peer's word chooses among
//! the configured names and nothing else. It never reaches a path, and another replica's record is out
//! of its reach even if it knows that record's number.

use super::config::{Grant, Operation, ReceiverConfig};
use super::sessions::Asked;
use crate::attempt::HostReplicas;
use crate::disk::{Disk, identity};
use crate::error::{Error, Kind, Result};
use crate::format::stream::{Hello, Purpose};
use crate::identity::Identity;
use crate::limits::REPLICA_WAIT;
use crate::receiver::{Apply, Replicas, Site};
use crate::state::journals::Room;
use crate::state::{Files, Lock};
use crate::transport::stream::Deadline;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Which replicas have a session, and whose.
#[derive(Debug, Default)]
pub struct Busy {
    all: Mutex<BTreeMap<String, String>>,
    given_back: Condvar,
}

/// A replica that this session has to itself; dropped = given back.
struct Taken {
    busy: Arc<Busy>,
    replica: String,
    /// The same against other processes: sessions that come through ssh.
    lock: Option<Lock>,
}

impl Busy {
    /// A session that has just committed ends in a moment, which the run right behind it would run into: that is waited for.
    fn take(self: &Arc<Busy>, replica: &str, client: &Client) -> Result<Taken> {
        let all = self.all();
        let in_use = |all: &mut BTreeMap<String, String>| all.contains_key(replica);
        let (mut all, _) = self.given_back.wait_timeout_while(all, REPLICA_WAIT, in_use).unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = all.get(replica) {
            return Err(Error::new(Kind::Locked, format!("the replica {replica} is in use by a session of {owner}: wait for it")));
        }
        all.insert(replica.to_owned(), format!("{} from {}", client.name, client.from));
        Ok(Taken { busy: Arc::clone(self), replica: replica.to_owned(), lock: None })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // The lock file first: who is woken takes it next.
        self.lock = None;
        self.busy.all().remove(&self.replica);
        self.busy.given_back.notify_all();
    }
}

/// Who a session is with.
#[derive(Clone, Debug)]
pub struct Client {
    /// How the log calls it.
    pub name: String,
    /// Its address.
    pub from: String,
    /// What it may do.
    pub grants: Vec<Grant>,
}

/// The replicas as one client may see them.
pub struct Served {
    config: Arc<ReceiverConfig>,
    client: Client,
    busy: Arc<Busy>,
    host: HostReplicas,
    deadline: Deadline,
    asked: Asked,
}

impl Served {
    /// For one session; its deadline ends when the client has introduced itself.
    pub fn new(
        config: Arc<ReceiverConfig>,
        client: Client,
        busy: Arc<Busy>,
        host: HostReplicas,
        deadline: Deadline,
        asked: Asked,
    ) -> Served {
        Served { config, client, busy, host, deadline, asked }
    }

    /// What the client asked for: a replica and an operation, for the log.
    pub fn asked(&self) -> (String, &'static str) {
        match self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some((replica, Operation::Push)) => (replica, "push"),
            Some((replica, Operation::Verify)) => (replica, "verify"),
            None => (String::new(), "none"),
        }
    }
}

impl Replicas for Served {
    fn find(&mut self, hello: &Hello) -> Result<Box<dyn Site>> {
        self.deadline.clear();
        let name = hello.target.as_str();
        let operation = if hello.purpose == Purpose::Verify { Operation::Verify } else { Operation::Push };
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), operation));
        let (verb, word) = if operation == Operation::Push { ("push to", "push") } else { ("verify", "verify") };
        // One answer for what is not there and for what is not allowed: nobody learns names by asking.
        let allowed = self.client.grants.iter().any(|grant| grant.covers(name, operation));
        let Some(entry) = self.config.replica(name).filter(|_| allowed) else {
            let message = format!(
                "{} may not {verb} a replica {name:?} here: its entry in receiver.toml needs a replica of that name and op \"{word}\"",
                self.client.name
            );
            return Err(Error::new(Kind::Refused, message));
        };
        // It is remembered, and `status` prints it on a terminal that obeys escape sequences.
        if hello.source.chars().any(char::is_control) {
            return Err(Error::new(Kind::Refused, format!("{:?} is no name for a source: it has control characters", hello.source)));
        }
        if hello.overwrite && !entry.overwrite {
            let message = format!(
                "--overwrite is not obeyed for the replica {name}: its entry in receiver.toml says whether it may be (overwrite = true)"
            );
            return Err(Error::new(Kind::Refused, message));
        }
        let mut taken = self.busy.take(name, &self.client)?;
        taken.lock = Some(self.host.lock_name(name)?);
        let path = entry.device.path();
        if !path.exists() && !entry.device.is_made() {
            return Err(Error::new(
                Kind::Refused,
                format!("the device {} of replica {name} does not exist: make it first", path.display()),
            ));
        }
        if let Some(record) = self.host.record(&hello.relationship)?
            && record.target.path != path
            && identity::of(&path).map(|identity| identity.stable != record.target.stable).unwrap_or(true)
        {
            return Err(Error::new(
                Kind::Refused,
                format!("the relationship {} is that of another replica than {name}", hello.relationship),
            ));
        }
        self.host.treat(entry.apply, entry.readonly);
        let site = self.host.find(&Hello { target: path.display().to_string(), ..hello.clone() })?;
        if hello.purpose == Purpose::Replicate {
            self.host.note_name(name, &hello.relationship)?;
        }
        Ok(Box::new(ServedSite { site, _taken: taken }))
    }
}

/// A host's site that stays taken as long as it is open.
struct ServedSite {
    site: Box<dyn Site>,
    _taken: Taken,
}

impl Site for ServedSite {
    fn name(&self) -> &str {
        self.site.name()
    }

    fn files(&self) -> &dyn Files {
        self.site.files()
    }

    fn open_disk(&mut self, write: bool) -> Result<Option<Box<dyn Disk>>> {
        self.site.open_disk(write)
    }

    fn make_disk(&mut self, bytes: u64) -> Result<Box<dyn Disk>> {
        self.site.make_disk(bytes)
    }

    fn identity(&self) -> Result<Identity> {
        self.site.identity()
    }

    fn apply(&self) -> Apply {
        self.site.apply()
    }

    fn open_journal(&self) -> Result<Option<Box<dyn Disk>>> {
        self.site.open_journal()
    }

    fn journal_place(&self) -> String {
        self.site.journal_place()
    }

    fn make_journal(&self) -> Result<Box<dyn Disk>> {
        self.site.make_journal()
    }

    fn remove_journal(&self) -> Result<()> {
        self.site.remove_journal()
    }

    fn discard_journal(&self) -> Result<()> {
        self.site.discard_journal()
    }

    fn journal_room(&self, volume_bytes: u64) -> Result<Room> {
        self.site.journal_room(volume_bytes)
    }

    fn more_room(&self) -> String {
        self.site.more_room()
    }

    fn now_ms(&self) -> u64 {
        self.site.now_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn who_comes_right_behind_a_session_waits_for_its_end_and_not_for_long() {
        let (busy, client) = (Arc::<Busy>::default(), |from: &str| Client { name: "prod1".into(), from: from.into(), grants: Vec::new() });
        let first = busy.take("db", &client("a")).unwrap();
        let _other = busy.take("web", &client("b")).unwrap();
        let mut first = Some(first);
        // One of three tries: on a machine that stands still just then it waits for longer than is meant.
        let second = (0..3).find_map(|_| {
            let held = first.take().unwrap_or_else(|| busy.take("db", &client("a")).unwrap());
            std::thread::scope(|scope| {
                let behind = scope.spawn(|| busy.take("db", &client("c")));
                std::thread::sleep(Duration::from_millis(50));
                drop(held);
                behind.join().unwrap().ok()
            })
        });
        let _second = second.unwrap();
        let begun = Instant::now();
        let refused = busy.take("db", &client("d")).err().unwrap();
        assert!(refused.kind() == Kind::Locked && refused.chain().contains("in use by a session of prod1 from c"), "{}", refused.chain());
        assert!(begun.elapsed() >= REPLICA_WAIT);
    }
}
