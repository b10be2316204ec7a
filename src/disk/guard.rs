//! What is checked before a target is opened for writing. Each refusal says what to do about it.
//!
//! The kernel's own exclusive open refuses most of this too, but without a reason, and it knows
//! nothing of image files.

use super::stack::{Node, Number};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{HELPER_OUTPUT_BYTES, HELPER_TIMEOUT};
use crate::program::{self, Call, How};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Refuses a device or file that is mounted, swapped to, or part of another device.
pub fn not_in_use(path: &Path) -> Result<()> {
    holder(path)?.map_or(Ok(()), |reason| Err(Error::new(Kind::Refused, reason)))
}

/// Who uses a device or file, and how to end that.
pub(super) fn holder(path: &Path) -> Result<Option<String>> {
    let node = Node::of(path)?;
    let above = node.above();
    let name = path.display();
    if let Some((at, through)) = mount_of(node, &above)? {
        return Ok(Some(format!("{name} is mounted at {}{through}: unmount it first (umount {})", at.display(), at.display())));
    }
    if let Some((area, through)) = swap_of(node, &above) {
        return Ok(Some(format!("{name} is swap space{through}: end that first (swapoff {})", area.display())));
    }
    // Partitions by themselves hold nothing; whether they mean something is the signature's question.
    let holders = above.iter().filter_map(|node| match node {
        Node::Device(number) if !number.folder().join("partition").exists() => Some(*number),
        _ => None,
    });
    Ok(holders.into_iter().next().map(|number| {
        let device = number.name();
        let end = if super::stack::loop_file(&number.folder()).is_some() { "losetup -d" } else { "dmsetup info, lvs or mdadm --detail" };
        format!("{name} is part of {device}: release it first, or name {device} instead ({end} {device})")
    }))
}

/// Where a device, or something that lies on it, is mounted: for warnings about a live source.
pub fn mounted_at(path: &Path) -> Result<Option<String>> {
    let node = Node::of(path)?;
    Ok(mount_of(node, &node.above())?.map(|(at, _)| at.display().to_string()))
}

/// " through /dev/x" where not the thing itself is meant.
fn through(node: Node, meant: Node) -> String {
    match node {
        Node::Device(number) if node != meant => format!(" through {}", number.name()),
        _ => String::new(),
    }
}

fn mount_of(node: Node, above: &[Node]) -> Result<Option<(PathBuf, String)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context(Kind::Failed, || "read /proc/self/mountinfo")?;
    let found = mounts(&text).into_iter().find_map(|mount| {
        let used = std::iter::once(&node).chain(above).find(|candidate| mount.is_of(**candidate))?;
        Some((mount.at, through(*used, node)))
    });
    Ok(found)
}

fn swap_of(node: Node, above: &[Node]) -> Option<(PathBuf, String)> {
    // No /proc/swaps: a kernel without swap.
    let text = fs::read_to_string("/proc/swaps").ok()?;
    swap_areas(&text).into_iter().find_map(|area| {
        let swap = Node::of(&area).ok()?;
        let used = std::iter::once(&node).chain(above).find(|candidate| **candidate == swap)?;
        Some((area, through(*used, node)))
    })
}

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: Option<Number>,
    at: PathBuf,
    source: PathBuf,
}

impl Mount {
    fn is_of(&self, node: Node) -> bool {
        let Node::Device(number) = node else { return false };
        // btrfs mounts under an invented number, but names its device.
        self.number == Some(number) || self.source.starts_with("/dev/") && Node::of(&self.source).is_ok_and(|source| source == node)
    }
}

/// Reads mountinfo (proc(5)): `36 35 98:0 /root /at options [tags…] - type source options`.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let number = front.next()?.parse().ok();
        let at = unescaped(front.nth(1)?);
        Some(Mount { number, at: at.into(), source: unescaped(back.split(' ').nth(1)?).into() })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Reads /proc/swaps: a heading, then one area a line, its path first.
fn swap_areas(swaps: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_ascii_whitespace().next().map(|path| unescaped(path).into());
    swaps.lines().skip(1).filter_map(path).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes in paths as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Refuses a target that holds a file system, a partition table, a volume of LVM and so on.
pub fn no_signature(path: &Path) -> Result<()> {
    // blkid answers "nothing found" also when it may not read: only a readable target is believed blank.
    File::open(path).context(Kind::Refused, || format!("look for data on {}", path.display()))?;
    let (code, output) = blkid(path)?;
    match verdict(code, &output) {
        Verdict::Blank => Ok(()),
        Verdict::Holds(what) => Err(refused(path, &format!("holds {what}: --overwrite if it may be lost"))),
        Verdict::Ambiguous => {
            Err(refused(path, "holds signatures of several kinds of data: see `wipefs` on it; --overwrite if it may be lost"))
        }
        Verdict::Unknown => {
            Err(refused(path, &format!("could not be examined (blkid ended with {code}): --overwrite if its content may be lost")))
        }
    }
}

fn refused(path: &Path, what: &str) -> Error {
    Error::new(Kind::Refused, format!("{} {what}", path.display()))
}

/// Runs blkid; its exit code and output.
fn blkid(path: &Path) -> Result<(i32, String)> {
    let what = || format!("look for data on {} with blkid (package util-linux; --overwrite does without)", path.display());
    let program = program::find("blkid").unwrap_or_else(|| "blkid".into());
    let arguments = [OsStr::new("-p"), OsStr::new("-o"), OsStr::new("export"), OsStr::new("--"), path.as_os_str()];
    let ended = Call::new(&program, arguments, HELPER_TIMEOUT, HELPER_OUTPUT_BYTES).env("LC_ALL", "C").run();
    let ended = ended.context(Kind::Refused, what)?;
    match ended.how {
        How::Exited(status) => Ok((status.code().unwrap_or(-1), String::from_utf8_lossy(&ended.output).into_owned())),
        _ => Err(Error::new(Kind::Refused, format!("{}: no answer within {} seconds", what(), HELPER_TIMEOUT.as_secs()))),
    }
}

/// What blkid's answer means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Blank,
    Holds(String),
    Ambiguous,
    Unknown,
}

/// Exit codes as in blkid(8): 0 found something, 2 nothing, 8 ambivalent. For a blank partition it
/// finds the entry in the partition table around it, which is no content.
fn verdict(code: i32, output: &str) -> Verdict {
    let value = |key: &str| output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match code {
        0 => match (value("TYPE"), value("PTTYPE")) {
            (Some(kind), _) => Verdict::Holds(content(kind, value("USAGE"), value("LABEL"))),
            (None, Some(table)) => Verdict::Holds(format!("a partition table ({table})")),
            (None, None) => Verdict::Blank,
        },
        2 => Verdict::Blank,
        8 => Verdict::Ambiguous,
        _ => Verdict::Unknown,
    }
}

fn content(kind: &str, usage: Option<&str>, label: Option<&str>) -> String {
    let label = label.map(|label| format!(" (label \"{label}\")")).unwrap_or_default();
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    match usage {
        Some("filesystem") => format!("{article} {kind} file system{label}"),
        _ => format!("data of the kind {kind}{label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
60 27 0:50 /@home /home\\040of\\134all rw - btrfs /dev/no\\040such rw
garbage
";

    #[test]
    fn mountinfo_gives_device_place_and_source() {
        let mounts = mounts(MOUNTINFO);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1], Mount { number: "254:0".parse().ok(), at: "/".into(), source: "/dev/vda".into() });
        assert_eq!(mounts[2].at, Path::new("/home of\\all"));
        assert_eq!(mounts[2].source, Path::new("/dev/no such"));
        assert!(mounts[1].is_of(Node::Device("254:0".parse().unwrap())));
        assert!(!mounts[1].is_of(Node::Device("254:1".parse().unwrap())));
    }

    #[test]
    fn swap_areas_come_without_the_heading() {
        let text = "Filename\t\t\tType\t\tSize\tUsed\tPriority\n/dev/dm-1   partition\t8\t0\t-2\n/swap\\040file file 8 0 -3\n";
        assert_eq!(swap_areas(text), [Path::new("/dev/dm-1"), Path::new("/swap file")]);
        assert!(swap_areas("Filename Type Size Used Priority\n").is_empty());
    }

    #[test]
    fn an_escape_that_is_none_stays() {
        assert_eq!(unescaped("a\\04"), "a\\04");
        assert_eq!(unescaped("\\999\\"), "\\999\\");
    }

    #[test]
    fn what_blkid_found_is_named() {
        let ext4 = "DEVNAME=/dev/vg0/r\nLABEL=x\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\n";
        assert_eq!(verdict(0, ext4), Verdict::Holds("an ext4 file system (label \"x\")".into()));
        assert_eq!(verdict(0, "TYPE=LVM2_member\nUSAGE=raid\n"), Verdict::Holds("data of the kind LVM2_member".into()));
        assert_eq!(verdict(0, "PTUUID=1\nPTTYPE=gpt\n"), Verdict::Holds("a partition table (gpt)".into()));
        assert_eq!(verdict(0, "PART_ENTRY_SCHEME=gpt\nPART_ENTRY_TYPE=83\n"), Verdict::Blank);
        assert_eq!(verdict(2, ""), Verdict::Blank);
        assert_eq!(verdict(8, ""), Verdict::Ambiguous);
        assert_eq!(verdict(4, ""), Verdict::Unknown);
    }
}
