//! Makes, watches and removes the LVM snapshots that volumes are read from.
//!
//! - [`command`]: runs the lvm2 tools, with a time limit and their whole stderr in the error;
//! - [`report`]: reads what they print as JSON;
//! - [`volume`]: the logical volume behind a path or a name;
//! - [`policy`]: how much room a classic snapshot gets, and what the volume group keeps;
//! - [`snapshot`]: a snapshot from its making to its removal;
//! - [`leftover`]: what earlier runs left behind, and what this process could not remove.
//!
//! Ownership is by tag: what does not carry the tag `blockferry` is never touched, whatever its
//! name. After a crash the snapshot stays where it is and the next start finds it by that tag.

pub mod command;
pub mod leftover;
pub mod policy;
pub mod report;
pub mod snapshot;
pub mod volume;

#[cfg(test)]
mod fake;

pub use crate::settings::Share as Room;
pub use leftover::{Leftover, leftovers, remove_given_up, remove_leftover};
pub use policy::{CowSize, Policy};
pub use snapshot::{Fill, Prepared, Snapshot};
pub use volume::Volume;
