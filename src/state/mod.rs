//! What we remember on disk, and when it is safe.
//!
//! ```text
//! STATE/lock                      held while a pair is found or made
//! STATE/sources/<relationship>/   lock record manifest manifest.next have      at the sender
//! STATE/replicas/<relationship>/  lock record manifest manifest.next journal   at the receiver
//! ```
//!
//! Journals may lie elsewhere ([`journals`]); then `journal` is a link.
//!
//! `record` is the truth: what else lies beside it is believed as far as the record says.

mod files;
pub mod journals;
pub mod keys;
mod lock;
pub mod manifest;
pub mod pairing;
mod record;

pub use files::{Files, HostFiles, StateFile};
pub use lock::Lock;
pub use record::{Promotion, ReplicaRecord, SourceRecord, Stage};

use crate::error::{Context, Kind, Result};
use crate::limits::PAIR_LOCK_TIMEOUT;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Name of the record in a relationship's folder.
pub const RECORD: &str = "record";
/// Name of the committed manifest.
pub const MANIFEST: &str = "manifest";
/// Name of the next generation's manifest pages.
pub const NEXT: &str = "manifest.next";
/// Name of the sender's copy of what the receiver listed.
pub const HAVE: &str = "have";
/// Name of the receiver's journal.
pub const JOURNAL: &str = "journal";

/// The folder whose lock is the agent's, below the state directory.
const AGENT_POST: &str = "agent/daemon";

/// Name of the file that says which relationship a served replica is.
const SERVED_AS: &str = "relationship";

/// Which half of a relationship a folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The sender's half.
    Sources,
    /// The receiver's half.
    Replicas,
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Opens the directory, making it (mode 0700) where it does not exist.
    pub fn open(root: &Path) -> Result<StateDir> {
        for side in [Side::Sources, Side::Replicas] {
            make_dir(&side_path(root, side))?;
        }
        Ok(StateDir { root: root.to_owned() })
    }

    /// `/var/lib/blockferry` for root, `$XDG_STATE_HOME/blockferry` (or `~/.local/state/blockferry`) otherwise.
    pub fn default_path() -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            return "/var/lib/blockferry".into();
        }
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
        let base = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from).or_else(home);
        base.unwrap_or_else(|| ".".into()).join("blockferry")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The relationships that have a folder on this side, in a stable order.
    pub fn relationships(&self, side: Side) -> Result<Vec<Uuid>> {
        let path = side_path(&self.root, side);
        let entries = std::fs::read_dir(&path).context(Kind::Failed, || format!("read {}", path.display()))?;
        let mut all: Vec<Uuid> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        all.sort();
        Ok(all)
    }

    /// One process at a time looks for a pair or makes one: between the folder and its first record nobody else may
    /// take it for what a crash left.
    pub fn lock_pairs(&self) -> Result<Lock> {
        Lock::wait(&self.root, "the list of pairs", PAIR_LOCK_TIMEOUT)
    }

    /// The folder that stands for a replica the daemon serves under this name: its lock, and which
    /// relationship it is.
    pub fn served(&self, replica: &str) -> Result<PathBuf> {
        let folder = self.root.join("served").join(replica);
        make_dir(&folder)?;
        Ok(folder)
    }

    /// The folder that stands for a volume group while snapshots are made in it: it holds a lock and nothing else.
    pub fn group(&self, vg: &str) -> Result<PathBuf> {
        let folder = self.root.join("groups").join(vg);
        make_dir(&folder)?;
        Ok(folder)
    }

    /// Which relationship a replica of this name was last served as.
    pub fn served_as(&self, replica: &str) -> Option<Uuid> {
        crate::settings::check_name("replica", replica).ok()?;
        let files = HostFiles::new(&self.root.join("served").join(replica));
        std::str::from_utf8(&files.read(SERVED_AS).ok()??).ok()?.trim().parse().ok()
    }

    /// Writes that down, for who names the replica as receiver.toml does. Losing it costs nothing: the next session
    /// writes it again.
    pub fn note_served(&self, replica: &str, relationship: &Uuid) -> Result<()> {
        if self.served_as(replica) == Some(*relationship) {
            return Ok(());
        }
        HostFiles::new(&self.served(replica)?).replace(SERVED_AS, relationship.to_string().as_bytes())
    }

    /// The folder whose lock says which process is the agent.
    pub fn agent_post(&self) -> Result<PathBuf> {
        let folder = self.root.join(AGENT_POST);
        make_dir(&folder)?;
        Ok(folder)
    }

    /// The agent's folder.
    pub fn agent(&self) -> Result<PathBuf> {
        let folder = self.root.join("agent");
        make_dir(&folder)?;
        Ok(folder)
    }

    /// The folder of a job, whose name is checked by the configuration: its lock and its book.
    pub fn job(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("agent/jobs").join(name);
        make_dir(&folder)?;
        Ok(folder)
    }

    /// The folder of a relationship; not made here.
    pub fn folder(&self, side: Side, relationship: &Uuid) -> PathBuf {
        side_path(&self.root, side).join(relationship.to_string())
    }

    /// The files of a relationship; makes its folder. From here on no crash takes the folder away from around them.
    pub fn files(&self, side: Side, relationship: &Uuid) -> Result<HostFiles> {
        let folder = self.folder(side, relationship);
        make_dir(&folder)?;
        // Who made it may have been killed before its name was durable.
        files::sync_folder(&side_path(&self.root, side))?;
        files::sync_folder(&self.root)?;
        Ok(HostFiles::new(&folder))
    }
}

fn side_path(root: &Path, side: Side) -> PathBuf {
    root.join(match side {
        Side::Sources => "sources",
        Side::Replicas => "replicas",
    })
}

/// Makes a folder (mode 0700) and those above it. A name is durable once the folder around it is synced: else a
/// power cut could take a whole relationship away, records that were synced in it included.
fn make_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let around = path.parent().filter(|around| !around.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.parent().is_some() {
        make_dir(around)?;
    }
    let hint = || format!("make the state directory {} (--state-dir chooses another)", path.display());
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // Another process was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.context(Kind::Failed, hint)?,
    }
    files::sync_folder(around)
}
