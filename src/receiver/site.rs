//! The seam between a receiving session and the world: where a replica's device and its files are.
//! The host's answer is `attempt::replicas`; the crash tests answer with simulated storage.

use crate::disk::Disk;
use crate::error::Result;
use crate::format::stream::Hello;
use crate::identity::Identity;
use crate::settings::by_text;
use crate::state::Files;
use crate::state::journals::Room;
use std::fmt;
use std::str::FromStr;

/// Finds the replica a sender asks for.
pub trait Replicas {
    /// Checks that this sender may have this replica, takes its lock and gives its site. Nothing is
    /// written but the replica's folder.
    fn find(&mut self, hello: &Hello) -> Result<Box<dyn Site>>;
}

/// How increments reach a replica. A first copy goes straight onto its device in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Apply {
    /// As is best: through the journal.
    #[default]
    Auto,
    /// Through the journal: the replica is a complete generation, or is completed to one without its source.
    Journal,
    /// Straight onto the device, without room for a journal: while a pass is under way, and after one that was
    /// cut, the replica is no complete generation.
    Direct,
}

by_text!(Apply);

impl FromStr for Apply {
    type Err = String;

    fn from_str(text: &str) -> Result<Apply, String> {
        match text {
            "auto" => Ok(Apply::Auto),
            "journal" => Ok(Apply::Journal),
            "direct" => Ok(Apply::Direct),
            "snapshot" => Err("apply = \"snapshot\" is not built yet: auto, journal or direct".to_owned()),
            other => Err(format!("\"{other}\" is no way to apply increments: auto, journal or direct")),
        }
    }
}

impl fmt::Display for Apply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Apply::Auto => "auto",
            Apply::Journal => "journal",
            Apply::Direct => "direct",
        })
    }
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

    /// How increments are to reach the device.
    fn apply(&self) -> Apply;

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
