//! Which device this is, whatever its name is today: what pairing remembers, and how two names for
//! the same bytes are told.
//!
//! `/dev/sdb` may be another disk after a reboot. The kernel's own ids (device-mapper uuid, world wide
//! name, serial number) move with the device; a path is the last resort.

use super::stack::{Node, Number, attribute, loop_file, whole_disk};
use crate::error::{Context, Kind, Result};
pub use crate::identity::Identity;
use crate::ring::ioctl;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The identity of a block device or image file.
pub fn of(path: &Path) -> Result<Identity> {
    let what = || format!("identify {}", path.display());
    let canonical = fs::canonicalize(path).context(Kind::Usage, what)?;
    let found = fs::metadata(&canonical).context(Kind::Usage, what)?;
    match Node::from_metadata(&found) {
        Node::Device(number) => {
            let bytes = File::open(&canonical).and_then(|file| ioctl::device_bytes(&file)).context(Kind::Refused, what)?;
            Ok(Identity { stable: device_id(number, &canonical), path: canonical, bytes, is_device: true })
        }
        Node::File { inode, .. } => {
            let stable = format!("file:{inode}:{}", canonical.display());
            Ok(Identity { stable, path: canonical, bytes: found.len(), is_device: false })
        }
    }
}

/// The best id this device has.
fn device_id(number: Number, path: &Path) -> String {
    let folder = number.folder();
    if let Some(disk) = whole_disk(&folder) {
        return partition_id(number, disk, path);
    }
    if let Some(file) = loop_file(&folder) {
        return loop_id(&file, attribute(&folder, "loop/offset").as_deref());
    }
    hardware_id(|name| attribute(&folder, name)).unwrap_or_else(|| format!("path:{}", path.display()))
}

/// The ids that sysfs may have, the most reliable first. `read` gives an attribute that is there and not empty.
fn hardware_id(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let known = [
        ("dm/uuid", ""),
        ("dm/name", "dm-name:"),
        ("md/uuid", "md:"),
        ("wwid", "wwid:"),
        ("device/wwid", "wwid:"),
        ("serial", "serial:"),
        ("device/serial", "serial:"),
    ];
    known.iter().find_map(|(name, prefix)| read(name).map(|id| format!("{prefix}{id}")))
}

/// The table's own id for a partition where the kernel tells it, else its number on its disk.
fn partition_id(number: Number, disk: Number, path: &Path) -> String {
    let folder = number.folder();
    let uuid = attribute(&folder, "uevent").and_then(|text| uevent_value(&text, "PARTUUID").map(str::to_owned));
    if let Some(uuid) = uuid {
        return format!("partuuid:{uuid}");
    }
    match (hardware_id(|name| attribute(&disk.folder(), name)), attribute(&folder, "partition")) {
        (Some(disk), Some(part)) => format!("{disk}:part{part}"),
        _ => format!("path:{}", path.display()),
    }
}

/// A line of a uevent file: `KEY=value`.
fn uevent_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).filter(|value| !value.is_empty())
}

/// A loop device is the file under it; its number is chance.
fn loop_id(file: &Path, offset: Option<&str>) -> String {
    let canonical = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let inode = fs::metadata(&canonical).map_or_else(|_| "?".to_owned(), |found| found.ino().to_string());
    let part = offset.filter(|offset| *offset != "0").map(|offset| format!("@{offset}")).unwrap_or_default();
    format!("loop:{inode}:{}{part}", canonical.display())
}

/// Why writing to one of these would change the other: `None` where it would not.
pub fn same(a: &Path, b: &Path) -> Result<Option<String>> {
    let (node_a, node_b) = (Node::of(a)?, Node::of(b)?);
    let (name_a, name_b) = (a.display(), b.display());
    if node_a == node_b {
        let kind = if matches!(node_a, Node::Device(_)) { "device" } else { "file" };
        return Ok(Some(format!("{name_a} and {name_b} are the same {kind}")));
    }
    if node_a.below().contains(&node_b) {
        return Ok(Some(format!("{name_a} lies on {name_b}")));
    }
    if node_b.below().contains(&node_a) {
        return Ok(Some(format!("{name_b} lies on {name_a}")));
    }
    // Two paths to one disk have different device numbers but one world wide name.
    let world_wide = |node: Node| match node {
        Node::Device(number) => Some(device_id(number, Path::new(""))).filter(|id| id.starts_with("wwid:")),
        Node::File { .. } => None,
    };
    Ok(world_wide(node_a)
        .filter(|id| world_wide(node_b).as_ref() == Some(id))
        .map(|id| format!("{name_a} and {name_b} are paths to one disk ({id})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_reliable_id_wins() {
        let lv = |name: &str| (name == "dm/uuid" || name == "dm/name").then(|| "LVM-abc".to_owned());
        assert_eq!(hardware_id(lv).as_deref(), Some("LVM-abc"));
        let nvme = |name: &str| (name == "wwid" || name == "device/serial").then(|| "eui.1".to_owned());
        assert_eq!(hardware_id(nvme).as_deref(), Some("wwid:eui.1"));
        assert_eq!(hardware_id(|_| None), None);
    }

    #[test]
    fn a_uevent_line_is_found_by_its_whole_key() {
        let text = "DEVNAME=sda1\nPARTN=1\nPARTUUID=aa-01\nPARTNAME=\n";
        assert_eq!(uevent_value(text, "PARTUUID"), Some("aa-01"));
        assert_eq!(uevent_value(text, "PART"), None);
        assert_eq!(uevent_value(text, "PARTNAME"), None);
    }

    #[test]
    fn a_file_keeps_its_identity_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("image"), folder.path().join("link"));
        fs::write(&file, [0; 5000]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let identity = of(&link).unwrap();
        assert_eq!(identity, of(&file).unwrap());
        assert_eq!((identity.bytes, identity.is_device), (5000, false));
        assert!(identity.stable.starts_with("file:"));
        assert!(same(&file, &link).unwrap().unwrap().contains("are the same file"));
        fs::write(folder.path().join("other"), [0; 5000]).unwrap();
        assert_eq!(same(&file, &folder.path().join("other")).unwrap(), None);
    }
}
