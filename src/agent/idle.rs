//! Idle volumes: where nothing was written since the last snapshot, that generation is what a new one would be, and the
//! run is over for it without a snapshot, a read or a word to the receiver.
//!
//! The count that goes with a generation is taken *before* its snapshot: a write between the two is in the snapshot and
//! counts as one after it, which costs a needless pass and never a lost write. What is in the page cache is on no count:
//! before a volume is called idle it is written out, and what comes of that counts. Both counts are of one boot, of one
//! attachment of one device, and of a device that nobody writes to around the counter (`disk::writes`).
//!
//! A logical volume never gets there by itself: a snapshot changes what it maps to (`disk::writes`), and a file system that is
//! mounted is frozen and thawed for it, and writes both times. So the count at the end of each run is kept as well. Where it is still the same at the next one, the
//! volume lies *still*: it is read as it is, without a snapshot, and believed if the count has not moved when all of it was
//! read; else a snapshot is made after all. From then on the volume is idle.
//!
//! What is written past these counters (by another host to the same LUN, by a program that sends SCSI commands itself) is on
//! none of them: for such a volume the configuration says `idle_too = true`.
//!
//! A receiver is not asked. That its replica is gone or promoted is found by the next write, by verification, or by
//! `blockferry run --idle-too`.

use super::book::{Current, Shelf};
use crate::disk::writes;
use crate::error::Result;
use crate::state::SourceRecord;
use std::path::Path;

/// What was counted of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    boot_id: String,
    text: String,
}

impl Counted {
    /// Counts now; `None`: there is no count to rely on.
    pub fn now(device: &Path) -> Option<Counted> {
        let text = writes::count(device)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Counted { boot_id: boot_id.trim().to_owned(), text })
    }

    /// After all that the page cache holds of this device was written out.
    pub fn settled(device: &Path) -> Option<Counted> {
        writes::settle(device).ok()?;
        Counted::now(device)
    }

    /// Whether the source still is what the generation of this record holds.
    pub fn is_of(&self, current: Option<&Current>, record: &SourceRecord) -> bool {
        let same =
            |current: &Current| current.generation == record.generation && current.boot_id == self.boot_id && current.counted == self.text;
        record.generation > 0 && current.is_some_and(same)
    }

    /// Whether nothing was written since the run that made the record's generation was over.
    pub fn is_still(&self, current: Option<&Current>, record: &SourceRecord) -> bool {
        let same =
            |current: &Current| current.generation == record.generation && current.boot_id == self.boot_id && current.seen == self.text;
        record.generation > 0 && current.is_some_and(same)
    }

    /// Writes down that the source stood at this count when the snapshot of the record's generation was taken, and that it
    /// was still so at `unchanged_ms`. `seen`: what is counted now.
    pub fn keep(&self, shelf: &Shelf, record: &SourceRecord, seen: Option<&Counted>, unchanged_ms: u64) -> Result<()> {
        let seen = seen.filter(|seen| seen.boot_id == self.boot_id).map_or_else(String::new, |seen| seen.text.clone());
        let current = Current::new(record.generation, self.boot_id.clone(), self.text.clone(), seen, unchanged_ms);
        shelf.set_current(&record.relationship, current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(boot: &str, text: &str) -> Counted {
        Counted { boot_id: boot.into(), text: text.into() }
    }

    #[test]
    fn only_the_same_count_of_the_same_boot_and_generation_is_idle() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::write(&source, [1; 8192]).unwrap();
        let mut record = SourceRecord {
            relationship: uuid::Uuid::from_u128(1),
            epoch: uuid::Uuid::from_u128(2),
            generation: 3,
            root: crate::digest::Digest::UNKNOWN,
            source: crate::disk::identity::of(&source).unwrap(),
            target: "there:/r".into(),
            volume_bytes: 8192,
            extent_bytes: 65536,
            algorithm: crate::digest::Algorithm::Xxh3,
            secret: [0; crate::digest::SECRET_BYTES],
            source_time_ms: 5,
            changed_bytes: None,
        };
        let now = counted("boot", "written 7");
        let current = |generation| Current::new(generation, "boot".into(), "written 7".into(), "written 8".into(), 9);
        assert!(now.is_of(Some(&current(3)), &record));
        assert!(!now.is_of(None, &record) && !now.is_of(Some(&current(2)), &record));
        assert!(!counted("next boot", "written 7").is_of(Some(&current(3)), &record));
        assert!(!counted("boot", "written 8").is_of(Some(&current(3)), &record));
        assert!(counted("boot", "written 8").is_still(Some(&current(3)), &record) && !now.is_still(Some(&current(3)), &record));
        assert!(!counted("next boot", "written 8").is_still(Some(&current(3)), &record));
        record.generation = 0;
        assert!(!now.is_of(Some(&current(0)), &record));
        assert_eq!((Counted::now(&source), Counted::settled(&source)), (None, None));
    }
}
