//! A snapshot, from its making to its removal.
//!
//! It lives as long as its [`Snapshot`]: it is removed by [`Snapshot::remove`], or at the latest
//! when the value is dropped. After a crash it stays, and the next start finds it by its tags
//! ([`leftover`](super::leftover)).
//!
//! The file system is not frozen here: lvm2 freezes it itself for the moment of the snapshot, and
//! fails with EBUSY when somebody else already has.

use crate::error::{Error, Kind, Result, Within};
use crate::limits::{COW_EXTEND_PERCENT, POOL_PERCENT_MAX};
use crate::lvm::leftover::{OWNER_TAG, Owner, RUN_TAG, TAG, remove_own};
use crate::lvm::policy::Policy;
use crate::lvm::report::Lv;
use crate::lvm::volume::{Volume, row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// So much of a volume's name is in that of its snapshot …
const NAME_CHARS_MAX: usize = 60;
/// … with this many digits of a hash where it is longer.
const HASH_DIGITS: usize = 16;

/// How full a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fill {
    /// Per cent of the COW store, or of the fuller half (data, metadata) of the thin pool.
    pub percent: f64,
    /// It overflowed: what is read from it is an error, or wrong.
    pub invalid: bool,
}

/// A snapshot of ours. Removed when dropped.
pub struct Snapshot {
    volume: Volume,
    policy: Policy,
    name: String,
    path: PathBuf,
    /// Bytes of its COW store; none where it has no store of its own.
    room: Arc<AtomicU64>,
    removed: bool,
}

/// A snapshot that may be made: everything that asks lvm2 first is behind it, so that several can be made one right after
/// the other.
pub struct Prepared {
    volume: Volume,
    policy: Policy,
    run_id: String,
    cow_bytes: Option<u64>,
}

impl Prepared {
    /// Looks whether a snapshot can be made, and how large it is to be: classic with a COW store by `policy`, or thin
    /// when the volume is thin. `changed_bytes`: what changed between the last two snapshots, if that is known.
    /// `promised_bytes`: room of the group that is meant for others of the same moment.
    pub fn new(volume: &Volume, policy: &Policy, changed_bytes: Option<u64>, promised_bytes: u64, run_id: &str) -> Result<Prepared> {
        may_be_tagged(run_id)?;
        let lv = &volume.lv;
        let what = || format!("snapshot {}", lv.label());
        if lv.is_classic_snapshot() {
            return Err(Error::new(Kind::Snapshot, format!("{} is itself a snapshot of {}: replicate that one", lv.label(), lv.origin)));
        }
        if !lv.active {
            volume.tools.need_device_mapper()?;
            return Err(Error::new(Kind::Snapshot, format!("{0} is not active: `lvchange -ay {0}`", lv.label())));
        }
        let cow_bytes = if lv.is_thin() {
            pool_has_room(volume).within(what)?;
            None
        } else {
            let mut vg = volume.group()?;
            vg.free_bytes = vg.free_bytes.saturating_sub(promised_bytes);
            Some(policy.cow_bytes(lv.bytes, changed_bytes, &vg).within(what)?)
        };
        Ok(Prepared { volume: volume.clone(), policy: policy.clone(), run_id: run_id.to_owned(), cow_bytes })
    }

    /// What it takes of its volume group.
    pub fn cow_bytes(&self) -> u64 {
        self.cow_bytes.unwrap_or(0)
    }

    /// Makes it: one command of lvm2. [`Snapshot::locate`] finds its device.
    pub fn make(self) -> Result<Snapshot> {
        let Prepared { volume, policy, run_id, cow_bytes } = self;
        // From here on a failure removes what may have been made: the value exists before the snapshot.
        let name = snapshot_name(&volume.lv.name, &run_id);
        let snapshot =
            Snapshot { volume, policy, name, path: PathBuf::new(), room: Arc::new(cow_bytes.unwrap_or(0).into()), removed: false };
        snapshot.lvcreate(cow_bytes, &run_id).within(|| format!("snapshot {}", snapshot.volume.label()))?;
        Ok(snapshot)
    }
}

impl Snapshot {
    /// Makes a snapshot of one volume alone.
    pub fn create(volume: &Volume, policy: &Policy, changed_bytes: Option<u64>, run_id: &str) -> Result<Snapshot> {
        Prepared::new(volume, policy, changed_bytes, 0, run_id)?.make()?.locate()
    }

    /// Finds the device of a snapshot that was made just now.
    pub fn locate(mut self) -> Result<Snapshot> {
        let row = self.row().within(|| format!("snapshot {}", self.volume.label()))?;
        self.path = PathBuf::from(row.path);
        Ok(self)
    }

    fn lvcreate(&self, cow_bytes: Option<u64>, run_id: &str) -> Result<()> {
        super::leftover::take_back(self.volume.vg(), &self.name);
        let (run, owner) = (format!("{RUN_TAG}{run_id}"), format!("{OWNER_TAG}{}", Owner::this_process()?));
        let size = cow_bytes.map(|bytes| format!("{bytes}b"));
        let origin = self.volume.label();
        // Read-only: nobody can replay a journal in it while it is being read.
        let mut args =
            vec!["lvcreate", "-qq", "-y", "-s", "-p", "r", "-n", &self.name, "--addtag", TAG, "--addtag", &run, "--addtag", &owner];
        match &size {
            Some(size) => args.extend(["-L", size]),
            None => args.extend(["-ay", "-K"]), // thin snapshots carry the flag "skip activation"
        }
        args.push(&origin);
        self.volume.tools.lvm(&args).map(drop)
    }

    /// `vg/lv` of the snapshot.
    pub fn label(&self) -> String {
        format!("{}/{}", self.volume.lv.vg, self.name)
    }

    /// Bytes of its COW store, which grows while it is watched; 0 for a thin one.
    pub fn room(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.room)
    }

    /// The device to read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How full it is now.
    pub fn fill(&self) -> Result<Fill> {
        let row = self.row()?;
        if !row.is_thin() {
            return Ok(Fill { percent: row.snap_percent.unwrap_or(0.0), invalid: row.invalid || !row.active });
        }
        Ok(Fill { percent: pool_percent(&self.volume.pool()?), invalid: !row.active })
    }

    /// One look while the snapshot is being read, every [`SNAPSHOT_WATCH`](crate::limits::SNAPSHOT_WATCH) or so: gives it more room
    /// when it needs some and the policy allows it. An overflow is an error.
    pub fn watch(&self) -> Result<Fill> {
        let fill = self.fill()?;
        self.judge(fill)?;
        if !self.volume.is_thin() && fill.percent >= COW_EXTEND_PERCENT && self.extend()? {
            return self.fill();
        }
        Ok(fill)
    }

    /// Gives a classic snapshot more room, if the policy and the volume group allow it.
    pub fn extend(&self) -> Result<bool> {
        if self.volume.is_thin() {
            return Ok(false);
        }
        let now = self.row()?.bytes;
        let Some(step) = self.policy.step_bytes(now, self.volume.bytes(), &self.volume.group()?) else { return Ok(false) };
        let label = self.label();
        let size = format!("+{step}b");
        self.volume.tools.lvm(&["lvextend", "-qq", "-y", "-L", &size, &label]).within(|| format!("extend snapshot {label}"))?;
        self.room.store(now + step, Ordering::Relaxed);
        Ok(true)
    }

    /// Whether all that was read from it is believed: to be called after the last read and before
    /// anything is sealed.
    pub fn check_valid(&self) -> Result<()> {
        self.judge(self.fill()?)
    }

    fn judge(&self, fill: Fill) -> Result<()> {
        if !fill.invalid {
            return Ok(());
        }
        let (label, origin) = (self.label(), self.volume.label());
        let way_out =
            "nothing was committed and the volume is unharmed; run again with a larger COW size, or when fewer writes are expected";
        Err(Error::new(Kind::Snapshot, format!("snapshot {label} of {origin} overflowed: {way_out}")))
    }

    fn row(&self) -> Result<Lv> {
        let label = self.label();
        let found = row(&*self.volume.tools, &self.volume.lv.vg, &self.name).within(|| format!("look at snapshot {label}"))?;
        found.ok_or_else(|| Error::new(Kind::Snapshot, format!("snapshot {label} has vanished: somebody removed it during the run")))
    }

    /// Removes it, and says so if that fails. It is tried again then as long as this process lives.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        remove_own(&*self.volume.tools, &self.volume.lv.vg, &self.name)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !self.removed {
            // Best effort on the way out of another failure: it is tried again, and the next start finds it by its tag.
            let _ = remove_own(&*self.volume.tools, &self.volume.lv.vg, &self.name);
        }
    }
}

fn pool_percent(pool: &Lv) -> f64 {
    pool.data_percent.unwrap_or(0.0).max(pool.metadata_percent.unwrap_or(0.0))
}

/// A snapshot makes the origin's next writes allocate: in a pool that is nearly full it would stop the origin.
fn pool_has_room(volume: &Volume) -> Result<()> {
    let pool = volume.pool()?;
    let percent = pool_percent(&pool);
    if percent <= POOL_PERCENT_MAX {
        return Ok(());
    }
    let label = pool.label();
    Err(Error::new(
        Kind::Snapshot,
        format!(
            "thin pool {label} is {percent:.1} % full (data {:.1} %, metadata {:.1} %): extend it with `lvextend {label}` first",
            pool.data_percent.unwrap_or(0.0),
            pool.metadata_percent.unwrap_or(0.0)
        ),
    ))
}

/// `lv.ferry.<end of the run's id>`, so that whoever lists volumes sees what it is.
fn snapshot_name(lv: &str, run_id: &str) -> String {
    let lv = shortened(lv);
    let end: String = run_id.chars().filter(char::is_ascii_alphanumeric).collect();
    let end = &end[end.len().saturating_sub(12)..]; // ASCII, so any index is a boundary
    format!("{lv}.ferry.{end}")
}

/// A long name is cut, since device-mapper names end at 127. What is left is told apart by a hash of all of it: volumes whose
/// names differ at their ends only are snapshotted by the same run, and each removes its own.
fn shortened(lv: &str) -> String {
    if lv.chars().count() <= NAME_CHARS_MAX {
        return lv.to_owned();
    }
    let kept: String = lv.chars().take(NAME_CHARS_MAX - HASH_DIGITS - 1).collect();
    format!("{kept}.{:0HASH_DIGITS$x}", xxh3_64(lv.as_bytes()))
}

fn may_be_tagged(run_id: &str) -> Result<()> {
    let fits = (1..=64).contains(&run_id.len()) && run_id.chars().all(|c| c.is_ascii_alphanumeric() || "_+.-".contains(c));
    if fits && run_id.contains(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("`{run_id}` cannot name a run: letters, digits and _ + . - only, at most 64")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::fake::{Fake, Row};
    use crate::lvm::leftover::{leftovers_with, remove_given_up_with};
    use std::sync::atomic::AtomicBool;

    const RUN: &str = "01999999-aaaa-7bbb-8ccc-0123456789ab";

    fn classic() -> Arc<Fake> {
        Fake::new(500, &[Row::new("db")])
    }

    fn thin(pool_percent: &str) -> Arc<Fake> {
        let pool = Row { percent: pool_percent.to_owned(), attr: "twi-aot---".to_owned(), ..Row::new("pool") };
        Fake::new(500, &[pool, Row { pool: "pool".to_owned(), attr: "Vwi-a-t---".to_owned(), ..Row::new("db") }])
    }

    fn create(fake: &Arc<Fake>) -> Result<Snapshot> {
        Snapshot::create(&fake.volume("db"), &Policy::default(), None, RUN)
    }

    #[test]
    fn a_classic_snapshot_is_made_with_tags_and_a_size_and_removed() {
        let fake = classic();
        let snapshot = create(&fake).unwrap();
        assert_eq!(snapshot.path(), Path::new("/dev/vg/db.ferry.0123456789ab"));
        let made = fake.changes().remove(0);
        assert!(
            made.starts_with("lvcreate -qq -y -s -p r -n db.ferry.0123456789ab --addtag blockferry --addtag blockferry.run=01999999-"),
            "{made}"
        );
        assert!(made.contains("--addtag blockferry.owner=") && made.ends_with("b vg/db"), "{made}");
        snapshot.remove().unwrap();
        assert_eq!(fake.names(), ["db"]);
    }

    #[test]
    fn a_thin_snapshot_is_activated_against_its_flag_and_has_no_size() {
        let fake = thin("40.00");
        let snapshot = create(&fake).unwrap();
        let made = fake.changes().remove(0);
        assert!(made.ends_with(" -ay -K vg/db") && !made.contains(" -L "), "{made}");
        assert_eq!(snapshot.fill().unwrap(), Fill { percent: 40.0, invalid: false });
        assert!(!snapshot.extend().unwrap());
    }

    #[test]
    fn dropping_a_snapshot_removes_it() {
        let fake = classic();
        drop(create(&fake).unwrap());
        assert_eq!(fake.names(), ["db"]);
    }

    #[test]
    fn a_snapshot_made_by_a_command_that_then_failed_is_removed() {
        let fake = classic();
        let volume = fake.volume("db");
        fake.fail_once("lvs -qq --reportformat json --units b --nosuffix", "no answer");
        let error = Snapshot::create(&volume, &Policy::default(), None, RUN).map(drop).unwrap_err();
        assert!(error.chain().contains("no answer"));
        assert_eq!(fake.names(), ["db"]);
    }

    #[test]
    fn a_full_pool_gets_no_snapshot() {
        let error = create(&thin("95.10")).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Snapshot);
        assert!(error.chain().contains("thin pool vg/pool is 95.1 % full"), "{}", error.chain());
    }

    #[test]
    fn a_group_without_room_gets_no_snapshot() {
        let fake = Fake::new(51, &[Row::new("db")]);
        let error = create(&fake).map(drop).unwrap_err();
        assert!(error.chain().starts_with("snapshot vg/db: a snapshot needs"), "{}", error.chain());
        assert!(fake.changes().is_empty());
    }

    #[test]
    fn snapshots_and_sleeping_volumes_are_refused_with_the_way_out() {
        let fake = classic();
        fake.change("db", |row| row.inactive = true);
        assert!(create(&fake).map(drop).unwrap_err().chain().contains("lvchange -ay vg/db"));
        fake.change("db", |row| row.attr = "swi-a-s---".to_owned());
        assert!(create(&fake).map(drop).unwrap_err().chain().contains("itself a snapshot"));
    }

    #[test]
    fn watching_gives_a_filling_snapshot_more_room() {
        let fake = classic();
        let snapshot = create(&fake).unwrap();
        fake.change("db.ferry.0123456789ab", |row| row.percent = "49.00".to_owned());
        snapshot.watch().unwrap();
        assert_eq!(fake.changes().len(), 1);
        fake.change("db.ferry.0123456789ab", |row| row.percent = "50.00".to_owned());
        snapshot.watch().unwrap();
        assert!(fake.changes()[1].starts_with("lvextend -qq -y -L +"), "{:?}", fake.changes());
    }

    #[test]
    fn an_overflow_is_an_error_of_its_own() {
        let fake = classic();
        let snapshot = create(&fake).unwrap();
        snapshot.check_valid().unwrap();
        fake.change("db.ferry.0123456789ab", |row| row.invalid = true);
        for error in [snapshot.check_valid().unwrap_err(), snapshot.watch().map(drop).unwrap_err()] {
            assert_eq!(error.kind(), Kind::Snapshot);
            assert!(error.chain().contains("overflowed: nothing was committed"), "{}", error.chain());
        }
    }

    #[test]
    fn a_snapshot_that_somebody_removed_is_an_error_and_no_panic() {
        let fake = classic();
        let snapshot = create(&fake).unwrap();
        fake.lose("db.ferry.0123456789ab");
        assert!(snapshot.check_valid().unwrap_err().chain().contains("has vanished"));
        snapshot.remove().unwrap();
    }

    #[test]
    fn a_snapshot_held_open_for_a_moment_is_tried_again() {
        let fake = classic();
        let snapshot = create(&fake).unwrap();
        fake.fail_once("lvremove", "Logical volume vg/db.ferry.0123456789ab in use.");
        snapshot.remove().unwrap();
        assert_eq!(fake.names(), ["db"]);
    }

    /// Both were `xxx….ferry.<run>` once: the second could not be made, and its end removed the first.
    #[test]
    fn volumes_whose_long_names_begin_alike_have_a_snapshot_each_in_one_run() {
        let names = ["a", "b"].map(|end| format!("{}{end}", "x".repeat(60)));
        let fake = Fake::new(500, &[Row::new(&names[0]), Row::new(&names[1])]);
        let create = |name: &String| Snapshot::create(&fake.volume(name), &Policy::default(), None, RUN).unwrap();
        let (one, other) = (create(&names[0]), create(&names[1]));
        other.remove().unwrap();
        assert_eq!(fake.names()[2..], *std::slice::from_ref(&one.name));
        one.remove().unwrap();
        assert_eq!(fake.names(), names);
    }

    /// The list of what was given up is one for the process: this is the only test that puts something there.
    #[test]
    fn a_snapshot_that_could_not_be_removed_is_tried_again_while_its_owner_lives() {
        let fake = classic();
        let (go, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        assert!(remove_given_up_with(&*fake, &go).is_empty());
        let snapshot = create(&fake).unwrap();
        assert!(leftovers_with(&*fake, None).unwrap()[0].owner_lives);
        fake.fail_once("lvremove", "no permission");
        assert!(snapshot.remove().unwrap_err().chain().contains("no permission"));
        assert!(!leftovers_with(&*fake, None).unwrap()[0].owner_lives, "the next run of this very process would leave it");
        fake.fail_once("lvremove", "no permission");
        assert!(remove_given_up_with(&*fake, &go)[0].1.is_err());
        assert!(remove_given_up_with(&*fake, &stop).is_empty(), "who stops waits for none");
        remove_given_up_with(&*fake, &go).remove(0).1.unwrap();
        assert_eq!(fake.names(), ["db"]);
        assert!(remove_given_up_with(&*fake, &go).is_empty());
    }

    #[test]
    fn names_stay_within_what_device_mapper_takes() {
        assert_eq!(snapshot_name(&"x".repeat(127), RUN).len(), 60 + ".ferry.".len() + 12);
        assert_eq!(snapshot_name(&"x".repeat(60), RUN), format!("{}.ferry.0123456789ab", "x".repeat(60)));
        assert_eq!(snapshot_name("db", "r1"), "db.ferry.r1");
        for id in ["", "-", "a b", "a,b", "ä", &"x".repeat(65)] {
            assert!(may_be_tagged(id).is_err(), "{id}");
        }
    }
}
