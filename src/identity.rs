//! What is remembered about a device, so that it is found again under any name. `disk::identity`
//! reads it off the system; the records of `state` keep it.

use std::path::PathBuf;

/// A volume's or replica's device as it was when it was paired.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// An id that does not change with the device's name.
    pub stable: String,
    /// The canonical path it had.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// A block device, not an image file.
    pub is_device: bool,
}
