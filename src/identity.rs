//! What names a device for good: found by [`crate::disk::identity`], remembered by the records.

use std::path::PathBuf;

/// What is remembered about a volume or replica.
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
