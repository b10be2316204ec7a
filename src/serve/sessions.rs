//! The connections that are open, each with a stop flag of its own: so that a client whose rights are taken away
//! loses its session at the next point to go on from, and nobody else does.

use super::config::Operation;
use crate::pin::Pin;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a session asked for: a replica and an operation. Nothing yet at first.
pub type Asked = Arc<Mutex<Option<(String, Operation)>>>;

/// One connection.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// Ends its waits.
    pub stop: Arc<AtomicBool>,
    /// Whether its client lost its rights meanwhile.
    pub revoked: Arc<AtomicBool>,
    /// What it is about.
    pub asked: Asked,
    /// The key it proved to hold.
    pin: Option<Pin>,
}

/// Those that are open, by their numbers.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<BTreeMap<u64, Connection>>);

impl Sessions {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection begins.
    pub fn begin(&self, number: u64) -> Connection {
        self.all().entry(number).or_default().clone()
    }

    /// It proved to hold this key: from now on it goes by that key's rights.
    pub fn proved(&self, number: u64, pin: Pin) {
        if let Some(connection) = self.all().get_mut(&number) {
            connection.pin = Some(pin);
        }
    }

    /// It is over.
    pub fn end(&self, number: u64) {
        self.all().remove(&number);
    }

    /// Asks every connection to stop.
    pub fn stop_all(&self) {
        self.all().values().for_each(|connection| connection.stop.store(true, Ordering::Relaxed));
    }

    /// Asks those to stop whose key no longer gives what they are about.
    pub fn revoke(&self, may: impl Fn(&Pin, Option<(&str, Operation)>) -> bool) {
        // Asked without the lock: an answer may take a look at the disk.
        let open: Vec<Connection> = self.all().values().filter(|one| one.pin.is_some()).cloned().collect();
        for connection in open {
            let asked = connection.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let asked = asked.as_ref().map(|(replica, operation)| (replica.as_str(), *operation));
            if connection.pin.is_some_and(|pin| !may(&pin, asked)) {
                connection.revoked.store(true, Ordering::Relaxed);
                connection.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_lost_its_rights_is_stopped() {
        let sessions = Sessions::default();
        let (kept, lost, shaking) = (sessions.begin(1), sessions.begin(2), sessions.begin(3));
        sessions.proved(1, Pin::of(b"1"));
        sessions.proved(2, Pin::of(b"2"));
        *lost.asked.lock().unwrap() = Some(("db".into(), Operation::Push));
        sessions.revoke(|pin, asked| *pin == Pin::of(b"1") && asked.is_none());
        let stopped = |connection: &Connection| connection.stop.load(Ordering::Relaxed);
        assert_eq!([&kept, &lost, &shaking].map(stopped), [false, true, false]);
        assert!(lost.revoked.load(Ordering::Relaxed) && !kept.revoked.load(Ordering::Relaxed));
        sessions.end(1);
        sessions.stop_all();
        assert_eq!([&kept, &shaking].map(stopped), [false, true]);
    }
}
