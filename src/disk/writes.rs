//! What the kernel has counted of writes to a device: as long as the count stays as it is, so does the content.
//!
//! What is compared is text that holds all there is to say about it: which device this is (`diskseq` is another after each
//! attaching, whatever its name), its size, and the sectors written and discarded. Requests are not counted: a flush
//! without data is one. A write counts when it ends, so a count is only given while none is under way.
//!
//! Only devices that nobody can write around the counter have one: whole disks and their partitions, md, device mapper, and
//! loop devices together with the times of their file. An image file has none: what a writer maps into its memory changes
//! no time that we could go by.
//!
//! What is written to a whole disk does not count on its partitions, wherever it lands: a partition's text has its disk's
//! numbers too. Writes by hand of a DAX mount are stores of a processor, which nobody counts: such a device has no text.
//!
//! What device mapper maps may change under a device without a write to it: `lvconvert --merge` puts a snapshot's content back
//! into its origin from below. Then the table is another for a while, and with it the links in `slaves`: what is made anew has
//! another inode. So these are part of the text; a snapshot of ours changes them, too.

use super::stack::{Node, attribute, loop_file, whole_disk};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{EXTENT_BYTES_MIN, HELPER_TIMEOUT};
use crate::ring::ioctl;
use nix::libc;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;

/// Names of drivers whose devices are written through this kernel only.
const DISKS: [&str; 6] = ["sd", "nvme", "vd", "xvd", "mmcblk", "md"];

/// What was written to the device behind `path` so far. Equal texts of one boot: nothing was written in between. `None`:
/// nobody counts it, or a write is under way.
pub fn count(path: &Path) -> Option<String> {
    let Ok(Node::Device(number)) = Node::of(path) else { return None };
    let folder = number.folder();
    let disk = whole_disk(&folder).map_or_else(|| folder.clone(), |disk| disk.folder());
    let is_mapper = folder.join("dm").is_dir();
    // Where statistics are off, the numbers stand still and mean nothing. Device mapper of older kernels (6.1) counts and says
    // that it does not: there a read has to show it.
    (attribute(&disk, "queue/iostats")? == "1" || is_mapper && counts_reads(path, &folder)?).then_some(())?;
    (attribute(&disk, "queue/dax").as_deref() != Some("1")).then_some(())?;
    let stat = at_rest(&folder)?;
    let (seq, sectors) = (attribute(&disk, "diskseq")?, attribute(&folder, "size")?);
    let mut text = format!("device {number} seq {seq} size {sectors} written {} discarded {}", stat.written, stat.discarded);
    if disk != folder {
        let whole = at_rest(&disk)?;
        text += &format!(" disk written {} discarded {}", whole.written, whole.discarded);
    }
    if is_mapper {
        text += &below(&folder)?;
    } else if let Some(file) = loop_file(&folder) {
        text += &times(&file)?;
    } else {
        let name = disk.file_name()?.to_str()?;
        DISKS.iter().any(|driver| name.starts_with(driver)).then_some(())?;
    }
    Some(text)
}

/// A device's numbers, where no write is under way. They are read first: a write that begins after that is seen by the
/// next look.
fn at_rest(folder: &Path) -> Option<Stat> {
    let stat = Stat::parse(&attribute(folder, "stat")?)?;
    let under_way = attribute(folder, "inflight")?;
    (under_way.split_whitespace().nth(1)? == "0").then_some(stat)
}

/// The devices that a device of device mapper maps to now.
fn below(folder: &Path) -> Option<String> {
    let name = |entry: fs::DirEntry| Some(format!(" {}:{}", entry.file_name().to_str()?, entry.metadata().ok()?.ino()));
    let mut all = fs::read_dir(folder.join("slaves")).ok()?.flatten().map(name).collect::<Option<Vec<_>>>()?;
    all.sort();
    (!all.is_empty()).then(|| format!(" on{}", all.concat()))
}

/// Something that changes when the device or file is written to; good enough to wait for a quiet moment by.
pub fn stirring(path: &Path) -> Option<String> {
    match Node::of(path).ok()? {
        Node::Device(number) => {
            Stat::parse(&attribute(&number.folder(), "stat")?).map(|stat| format!("{} {}", stat.written, stat.discarded))
        }
        Node::File { .. } => times(path),
    }
}

/// Writes out what the page cache holds for a device and the file system on it: what is not on its way to the device is
/// not counted either. A device that does not answer is given up after a while, and the thread with it.
pub fn settle(path: &Path) -> Result<()> {
    let what = || format!("write out what is cached of {}", path.display());
    let file = File::open(path).context(Kind::Failed, what)?;
    let (done, waiting) = mpsc::channel();
    std::thread::spawn(move || done.send(ioctl::flush_buffers(&file)));
    let timeout = |_| Error::new(Kind::Failed, format!("{} took longer than {} s", what(), HELPER_TIMEOUT.as_secs()));
    waiting.recv_timeout(HELPER_TIMEOUT).map_err(timeout)?.context(Kind::Failed, what)
}

/// Whether a read moves the numbers.
fn counts_reads(path: &Path, folder: &Path) -> Option<bool> {
    let before = Stat::parse(&attribute(folder, "stat")?)?.read;
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    let mut bytes = vec![0; 2 * EXTENT_BYTES_MIN as usize];
    let at = bytes.as_ptr().align_offset(EXTENT_BYTES_MIN as usize);
    file.read_exact_at(bytes.get_mut(at..at + EXTENT_BYTES_MIN as usize)?, 0).ok()?;
    Some(Stat::parse(&attribute(folder, "stat")?)?.read != before)
}

fn times(file: &Path) -> Option<String> {
    let found = fs::metadata(file).ok()?;
    let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    Some(format!(" file {}:{} {}.{:09} {}.{:09}", found.dev(), found.ino(), modified.0, modified.1, changed.0, changed.1))
}

/// Sectors of a device's `stat` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    read: u64,
    written: u64,
    discarded: u64,
}

impl Stat {
    /// The kernel's Documentation/block/stat.rst: the third number is sectors read, the seventh written, the fourteenth discarded.
    fn parse(text: &str) -> Option<Stat> {
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Stat { read: *numbers.get(2)?, written: *numbers.get(6)?, discarded: *numbers.get(13)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_found_where_the_kernel_writes_them() {
        let text = "     812        0    63216      124       57       40      776       90        0      136      214        3        0     4096        0        9       12";
        assert_eq!(Stat::parse(text), Some(Stat { read: 63216, written: 776, discarded: 4096 }));
        // Before Linux 4.18 there were no discards: such a count cannot be relied on.
        assert_eq!(Stat::parse("1 2 3 4 5 6 7 8 9 10 11"), None);
        assert_eq!(Stat::parse("a b"), None);
    }

    #[test]
    fn an_image_file_has_no_count_and_yet_stirs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(count(file.path()), None);
        let before = stirring(file.path()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(file.path(), "x").unwrap();
        assert_ne!(stirring(file.path()).unwrap(), before);
        assert_eq!((count(Path::new("/dev/null")), stirring(Path::new("/no/such/file"))), (None, None));
    }
}
