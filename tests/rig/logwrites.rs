//! Reads a write log (the layout of the kernel's dm-log-writes, which QEMU's blklogwrites writes too) and
//! builds the device as a power cut could have left it.
//!
//! ```text
//! sector 0   magic u64 0x6a736677736872 · version u64 · entries u64 · sector bytes u32
//! then each  sector u64 · sectors u64 · flags u64 · bytes of a mark u64, padded to a sector; then the data,
//!            as long as the sectors say (none where the flag says that they were discarded)
//! ```
//!
//! An entry is written when its request is complete. So everything before a flush entry is durable, and
//! of what follows the last flush any subset may be, the last write of it torn at 512 bytes.

use super::ferry::Dice;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const SECTOR: u64 = 512;

/// One logged request.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Where on the device, in bytes.
    pub at: u64,
    pub bytes: u64,
    flags: u64,
    /// Where in the log the data lies.
    data_at: u64,
}

#[allow(dead_code)]
impl Entry {
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    fn is_durable_at_once(&self) -> bool {
        self.flags & FUA != 0
    }

    fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }
}

/// A log, parsed.
pub struct Log {
    file: File,
    pub entries: Vec<Entry>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Entries that the log has now, while its daemon runs. What is flushed is counted.
#[allow(dead_code)]
pub fn entries_so_far(path: &Path) -> usize {
    let mut head = [0; 32];
    File::open(path).and_then(|log| log.read_exact_at(&mut head, 0)).expect("a log");
    assert_eq!(number(&head, 0), MAGIC, "not a write log");
    number(&head, 16) as usize
}

impl Log {
    pub fn read(path: &Path) -> Log {
        let file = File::open(path).expect("a log");
        let count = entries_so_far(path);
        let mut at = SECTOR;
        let mut head = [0; 32];
        let entries = (0..count).map(|_| {
            file.read_exact_at(&mut head, at).expect("an entry");
            let (sector, sectors, flags, mark) = (number(&head, 0), number(&head, 8), number(&head, 16), number(&head, 24));
            let entry = Entry { at: sector * SECTOR, bytes: sectors * SECTOR, flags, data_at: at + SECTOR };
            let data = if entry.is_discard() { 0 } else { entry.bytes };
            at += SECTOR + data + mark.next_multiple_of(SECTOR);
            entry
        });
        let entries = entries.collect();
        Log { file, entries }
    }

    /// The last flush among the first `upto` entries: what lies before it is durable.
    pub fn last_flush(&self, upto: usize) -> usize {
        self.entries[..upto].iter().rposition(Entry::is_flush).map_or(0, |at| at + 1)
    }

    /// Entries after which a flush is complete.
    pub fn flushes(&self) -> Vec<usize> {
        (1..=self.entries.len()).filter(|upto| self.entries[upto - 1].is_flush()).collect()
    }

    /// Writes the first `bytes` of an entry onto a device.
    fn apply(&self, entry: &Entry, bytes: u64, device: &File) {
        let mut data = vec![0; bytes.min(entry.bytes) as usize];
        if data.is_empty() {
            return;
        }
        if !entry.is_discard() {
            self.file.read_exact_at(&mut data, entry.data_at).expect("the data of an entry");
        }
        device.write_all_at(&data, entry.at).expect("the rebuilt device");
    }

    /// Applies entries in their order, whole.
    pub fn replay(&self, range: std::ops::Range<usize>, device: &File) {
        self.entries[range].iter().for_each(|entry| self.apply(entry, entry.bytes, device));
    }

    /// A power cut after `upto` entries: all that was flushed, and a random subset of the rest, the last
    /// of it torn. The device holds what was flushed already.
    pub fn cut(&self, flushed: usize, upto: usize, dice: &mut Dice, device: &File) {
        let keep = dice.below(4);
        // Nothing, all, or one in two or three: the corners are where mistakes live.
        let mut kept: Vec<&Entry> = self.entries[flushed..upto]
            .iter()
            .filter(|entry| entry.bytes > 0)
            .filter(|entry| {
                let drawn = match keep {
                    0 => false,
                    1 => true,
                    share => dice.below(share) == 0,
                };
                drawn || entry.is_durable_at_once()
            })
            .collect();
        let torn = kept.pop();
        kept.into_iter().for_each(|entry| self.apply(entry, entry.bytes, device));
        if let Some(entry) = torn {
            let bytes = if entry.is_durable_at_once() { entry.bytes } else { dice.below(entry.bytes / SECTOR + 1) * SECTOR };
            self.apply(entry, bytes, device);
        }
    }
}
