//! What lies on what: partitions, device mapper, md and loop devices, as sysfs tells it.

use crate::error::{Context, Kind, Result};
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Nodes of one stack that are looked at; sysfs has no cycles, this only bounds the walk.
const NODES_MAX: usize = 4096;

/// Major and minor number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    major: u64,
    minor: u64,
}

impl Number {
    fn from_rdev(rdev: u64) -> Number {
        Number { major: nix::sys::stat::major(rdev), minor: nix::sys::stat::minor(rdev) }
    }

    /// Its folder in sysfs, under its real place, so that a partition's parent is its disk.
    pub(super) fn folder(self) -> PathBuf {
        let link = PathBuf::from(format!("/sys/dev/block/{self}"));
        fs::canonicalize(&link).unwrap_or(link)
    }

    /// How people call it.
    pub(super) fn name(self) -> String {
        let folder = self.folder();
        if let Some(name) = attribute(&folder, "dm/name") {
            return format!("/dev/mapper/{name}");
        }
        // sysfs writes the slashes of names such as cciss/c0d0 as exclamation marks.
        folder.file_name().map_or_else(|| self.to_string(), |name| format!("/dev/{}", name.to_string_lossy().replace('!', "/")))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Number {
    type Err = std::num::ParseIntError;

    /// `254:3`, as in sysfs and mountinfo.
    fn from_str(text: &str) -> std::result::Result<Number, Self::Err> {
        let (major, minor) = text.trim().split_once(':').unwrap_or((text, ""));
        Ok(Number { major: major.parse()?, minor: minor.parse()? })
    }
}

/// Whether a block device zeroes a range at a word; what does not say so has to be written.
pub(super) fn zeroes_cheaply(path: &Path) -> bool {
    let Ok(Node::Device(number)) = Node::of(path) else { return false };
    let folder = number.folder();
    // A partition has the queue of its disk.
    let most = attribute(&folder, "queue/write_zeroes_max_bytes").or_else(|| attribute(folder.parent()?, "queue/write_zeroes_max_bytes"));
    most.is_some_and(|most| most != "0")
}

/// The device mapper's name of the first device that holds its bytes up: itself, or one that it lies on.
pub(super) fn suspended(path: &Path) -> Option<String> {
    let node = Node::of(path).ok()?;
    std::iter::once(node).chain(node.below()).find_map(|node| match node {
        Node::Device(number) if attribute(&number.folder(), "dm/suspended").as_deref() == Some("1") => {
            attribute(&number.folder(), "dm/name")
        }
        _ => None,
    })
}

/// Something that holds bytes, under the kernel's own name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Device(Number),
    File { device: u64, inode: u64 },
}

impl Node {
    /// What a path leads to.
    pub(super) fn of(path: &Path) -> Result<Node> {
        let missing = || format!("look at {}", path.display());
        fs::metadata(path).context(Kind::Usage, missing).map(|found| Node::from_metadata(&found))
    }

    pub(super) fn from_metadata(found: &fs::Metadata) -> Node {
        if found.file_type().is_block_device() {
            Node::Device(Number::from_rdev(found.rdev()))
        } else {
            Node::File { device: found.dev(), inode: found.ino() }
        }
    }

    /// Everything its bytes lie in: the disk of a partition, the members of a dm or md device, the file of a loop.
    pub(super) fn below(self) -> Vec<Node> {
        walk(self, |node| match node {
            Node::File { .. } => Vec::new(),
            Node::Device(number) => {
                let folder = number.folder();
                let file = loop_file(&folder).and_then(|file| Node::of(&file).ok());
                linked(&folder, "slaves").into_iter().chain(whole_disk(&folder)).map(Node::Device).chain(file).collect()
            }
        })
    }

    /// Everything that lies in it: partitions, dm and md devices, loop devices.
    pub(super) fn above(self) -> Vec<Node> {
        let loops = loops();
        walk(self, |node| {
            let on_it = loops.iter().filter(|(_, file)| *file == node).map(|(number, _)| *number);
            let inside = match node {
                Node::File { .. } => Vec::new(),
                Node::Device(number) => {
                    let folder = number.folder();
                    linked(&folder, "holders").into_iter().chain(partitions(&folder)).collect()
                }
            };
            on_it.chain(inside).map(Node::Device).collect()
        })
    }
}

/// All nodes reached by taking `step` again and again, without the start.
fn walk(start: Node, step: impl Fn(Node) -> Vec<Node>) -> Vec<Node> {
    let mut found = vec![start];
    let mut next = 0;
    while next < found.len() && found.len() < NODES_MAX {
        for node in step(found[next]) {
            if !found.contains(&node) {
                found.push(node);
            }
        }
        next += 1;
    }
    found.split_off(1)
}

/// A sysfs attribute, unless it is missing or empty.
pub(super) fn attribute(folder: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(folder.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number of a device that has this folder.
fn number(folder: &Path) -> Option<Number> {
    attribute(folder, "dev")?.parse().ok()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The devices in `slaves/` or `holders/`.
fn linked(folder: &Path, list: &str) -> Vec<Number> {
    entries(&folder.join(list)).filter_map(|entry| number(&entry)).collect()
}

fn partitions(folder: &Path) -> Vec<Number> {
    entries(folder).filter(|entry| entry.join("partition").exists()).filter_map(|entry| number(&entry)).collect()
}

/// The disk that a partition is part of.
pub(super) fn whole_disk(folder: &Path) -> Option<Number> {
    attribute(folder, "partition")?;
    number(folder.parent()?)
}

/// The file or device under a loop device.
pub(super) fn loop_file(folder: &Path) -> Option<PathBuf> {
    attribute(folder, "loop/backing_file").map(PathBuf::from)
}

/// Every loop device in use, and what it lies on.
fn loops() -> Vec<(Number, Node)> {
    let in_use = |folder: PathBuf| Some((number(&folder)?, Node::of(&loop_file(&folder)?).ok()?));
    entries(Path::new("/sys/block")).filter_map(in_use).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!("254:3\n".parse::<Number>().unwrap().to_string(), "254:3");
        assert!("254".parse::<Number>().is_err());
        assert!("a:b".parse::<Number>().is_err());
    }

    #[test]
    fn a_walk_ends_where_steps_lead_back() {
        let node = |inode| Node::File { device: 1, inode };
        let circle = |at: Node| match at {
            Node::File { inode, .. } => vec![node((inode + 1) % 3)],
            Node::Device(_) => Vec::new(),
        };
        assert_eq!(walk(node(0), circle), [node(1), node(2)]);
    }
}
