//! Who is paired with whom: small lists in `STATE/pairing/`, replaced as a whole under a lock.
//!
//! ```text
//! STATE/pairing/   lock   receivers.json                 at the agent
//!                  lock   clients.json   invites.json    at the receiver
//! ```

use super::{Files, HostFiles, Lock, make_dir};
use crate::error::{Context, Kind, Result};
use crate::limits::CHANGE_LOCK_TIMEOUT;
use crate::pin::Pin;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A receiver and the key it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownReceiver {
    /// `HOST:PORT`.
    pub address: String,
    /// Its key.
    pub pin: Pin,
    /// When its token was accepted: milliseconds since 1970; 0 where that was not noted yet.
    #[serde(default)]
    pub paired_ms: u64,
}

/// A host that a token enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// How the log calls it.
    pub name: String,
    /// The key it has to prove.
    pub key: Pin,
    /// The replicas it may push to and verify; `*` stands for anything.
    pub replicas: Vec<String>,
    /// When: milliseconds since 1970.
    pub since_ms: u64,
}

/// A token that nobody has used yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Hash of its secret; the secret is in the token alone.
    pub secret_hash: String,
    /// The replicas it gives.
    pub replica: String,
    /// Until when: milliseconds since 1970.
    pub expires_ms: u64,
}

/// A kind of entry and the file its list lies in.
pub trait Entry: Serialize + DeserializeOwned {
    /// Name of the file.
    const FILE: &'static str;
}

impl Entry for KnownReceiver {
    const FILE: &'static str = "receivers.json";
}

impl Entry for Enrolled {
    const FILE: &'static str = "clients.json";
}

impl Entry for Invite {
    const FILE: &'static str = "invites.json";
}

fn folder(state: &Path) -> PathBuf {
    state.join("pairing")
}

/// The list as it is now; empty where there is no file.
pub fn list<E: Entry>(state: &Path) -> Result<Vec<E>> {
    let folder = folder(state);
    match HostFiles::new(&folder).read(E::FILE)? {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_slice(&text).context(Kind::Failed, || format!("read {}", folder.join(E::FILE).display())),
    }
}

/// Changes the list. What `change` does is durable when this returns; where it fails, nothing is changed.
pub fn change<E: Entry, T>(state: &Path, change: impl FnOnce(&mut Vec<E>) -> Result<T>) -> Result<T> {
    let folder = folder(state);
    make_dir(&folder)?;
    let _lock = Lock::wait(&folder, "the list of paired hosts", CHANGE_LOCK_TIMEOUT)?;
    let mut entries = list::<E>(state)?;
    let result = change(&mut entries)?;
    let text = serde_json::to_vec_pretty(&entries).context(Kind::Failed, || format!("write {}", E::FILE))?;
    HostFiles::new(&folder).replace(E::FILE, &text)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn changes_from_many_sides_all_arrive_and_a_failed_one_does_not() {
        let state = tempfile::tempdir().unwrap();
        let entry = |number: usize| KnownReceiver { address: format!("host{number}:7420"), pin: Pin::of(&[number as u8]), paired_ms: 7 };
        assert!(list::<KnownReceiver>(state.path()).unwrap().is_empty());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let state = state.path();
                scope.spawn(move || {
                    change(state, |all| {
                        all.push(entry(number));
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        let failed: Result<()> = change(state.path(), |all: &mut Vec<KnownReceiver>| {
            all.clear();
            Err(Error::new(Kind::Refused, "no"))
        });
        assert!(failed.is_err());
        let mut all: Vec<KnownReceiver> = list(state.path()).unwrap();
        all.sort_by(|a, b| a.address.cmp(&b.address));
        assert_eq!(all, (0..8).map(entry).collect::<Vec<_>>());
    }
}
