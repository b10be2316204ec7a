//! Block devices that refuse writes (BLKROSET): between runs nobody writes to a replica by mistake.
//!
//! The flag is the kernel's and lasts until the device is gone: a reboot, or the deactivation of a logical
//! volume, forgets it. It stops programs and mounts, not somebody with root who means it.

use crate::error::{Context, Kind, Result};
use crate::ring::ioctl;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Whether a block device refuses writes. An image file has no such flag.
pub fn is_set(path: &Path) -> Result<bool> {
    match device(path)? {
        Some(device) => ioctl::is_read_only(&device).context(Kind::Failed, || format!("ask whether {} is read-only", path.display())),
        None => Ok(false),
    }
}

/// Makes a block device refuse writes, or take them. Of an image file nothing is changed.
pub fn set(path: &Path, read_only: bool) -> Result<()> {
    let Some(device) = device(path)? else { return Ok(()) };
    let (what, option) = if read_only { ("read-only", "--setro") } else { ("writable", "--setrw") };
    let hint = || format!("make {} {what} (as `blockdev {option} {}` does; it takes root)", path.display(), path.display());
    ioctl::set_read_only(&device, read_only).context(Kind::Refused, hint)
}

/// Opened for reading, which claims nothing and works on a device that refuses writes.
fn device(path: &Path) -> Result<Option<File>> {
    let what = || format!("open {}", path.display());
    let found = std::fs::metadata(path).context(Kind::Failed, what)?;
    if !found.file_type().is_block_device() {
        return Ok(None);
    }
    File::open(path).context(Kind::Refused, what).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_file_has_no_such_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        set(file.path(), true).unwrap();
        assert!(!is_set(file.path()).unwrap());
        assert!(set(Path::new("/no such device"), true).is_err());
    }
}
