//! The seam between a receiving session and the world: where a replica's device and its files are.
//! The host's answer is `attempt::replicas`; the crash tests answer with simulated storage.

use crate::disk::Disk;
use crate::error::Result;
use crate::format::stream::Hello;
use crate::identity::Identity;
use crate::state::Files;
use crate::state::journals::Room;

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

    /// Where it is, or was, or would be.
    fn journal_place(&self) -> String;

    /// Makes an empty journal; one that is there is removed.
    fn make_journal(&self) -> Result<Box<dyn Disk>>;

    /// Removes the journal if there is one. Durable when this returns.
    fn remove_journal(&self) -> Result<()>;

    /// The same for one that nobody believes any more: a crash may bring it back.
    fn discard_journal(&self) -> Result<()>;

    /// How much the journal of a volume of this size may grow now.
    fn journal_room(&self, volume_bytes: u64) -> Result<Room>;

    /// What an operator can do where that is not enough.
    fn more_room(&self) -> String;

    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}
