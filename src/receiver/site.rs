//! The seam between a receiving session and the world: where a replica's device and its files are.
//! The host's answer is `attempt::replicas`; the crash tests answer with simulated storage.

use crate::disk::Disk;
use crate::error::Result;
use crate::format::stream::Hello;
use crate::identity::Identity;
use crate::state::Files;

/// Finds the replica a sender asks for.
pub trait Replicas {
    /// Checks that this sender may have this replica, takes its lock and gives its site. Nothing is
    /// written but the replica's folder.
    fn find(&mut self, hello: &Hello) -> Result<Box<dyn Site>>;
}

/// One replica: its folder of files, its journal, its device. Dropped = unlocked.
pub trait Site: Send {
    /// How messages call the replica.
    fn name(&self) -> &str;

    /// Its record, manifests and so on.
    fn files(&self) -> &dyn Files;

    /// Opens the device for reading, and for writing when `write`. `None`: it does not exist yet and
    /// would be made.
    fn open_disk(&mut self, write: bool) -> Result<Option<Box<dyn Disk>>>;

    /// Makes the target (an image file), all zero.
    fn make_disk(&mut self, bytes: u64) -> Result<Box<dyn Disk>>;

    /// The stable identity of the device as it is now.
    fn identity(&self) -> Result<Identity>;

    /// Opens the journal. `None`: there is none.
    fn open_journal(&self) -> Result<Option<Box<dyn Disk>>>;

    /// Makes an empty journal.
    fn make_journal(&self) -> Result<Box<dyn Disk>>;

    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}
