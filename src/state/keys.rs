//! This host's own key: made at first use, in a file that only its owner may read. Who holds the file is
//! this host to its peers; `blockferry` never sends it anywhere.

use super::files::sync_folder;
use crate::error::{Context, Error, Kind, Result};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Name of the key file in the state directory: Ed25519 as PKCS#8 (DER).
const KEY: &str = "key.pk8";

/// The host's private key as PKCS#8, made where there is none.
pub fn own_key(state: &Path) -> Result<Vec<u8>> {
    let path = state.join(KEY);
    match read(&path)? {
        Some(key) => Ok(key),
        None => {
            make(state, &path)?;
            // Another process may have been first: its key is the one that counts.
            read(&path)?.ok_or_else(|| Error::new(Kind::Failed, format!("{} vanished while it was made", path.display())))
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let place = || format!("read the key {}", path.display());
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(Kind::Failed, place)?,
    };
    if metadata.mode() & 0o077 != 0 {
        let message = format!(
            "the key {} can be read by others: make it your own again with `chmod 600`, or remove it and pair anew",
            path.display()
        );
        return Err(Error::new(Kind::Refused, message));
    }
    std::fs::read(path).map(Some).context(Kind::Failed, place)
}

/// Writes a new key beside its name and links it there: a name that exists has the whole key behind it.
fn make(state: &Path, path: &Path) -> Result<()> {
    let key = ring_crypto::signature::Ed25519KeyPair::generate_pkcs8(&ring_crypto::rand::SystemRandom::new())
        .map_err(|_| Error::new(Kind::Failed, "the system has no random numbers for a new key"))?;
    let beside = state.join(format!("{KEY}.{}-{:?}", std::process::id(), std::thread::current().id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(key.as_ref())?;
        file.sync_all()?;
        match std::fs::hard_link(&beside, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let made = write().context(Kind::Failed, || format!("make the key {}", path.display()));
    let _ = std::fs::remove_file(&beside);
    made?;
    // From here on a crash leaves the key under its name.
    sync_folder(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_may_read_it() {
        let state = tempfile::tempdir().unwrap();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| own_key(state.path()).unwrap())).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "all that ask at once get the same key");
        assert_eq!(own_key(state.path()).unwrap(), keys[0]);
        let path = state.path().join(KEY);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1, "nothing lies beside it");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refusal = own_key(state.path()).unwrap_err();
        assert_eq!(refusal.kind(), Kind::Refused);
        assert!(refusal.chain().contains("chmod 600"), "{}", refusal.chain());
    }
}
