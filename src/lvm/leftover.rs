//! What earlier runs left behind, and how it is told from what is not ours.
//!
//! | tag | meaning |
//! |---|---|
//! | `blockferry` | made by this program; nothing without it is ever removed |
//! | `blockferry.run=<id>` | the run it was made for |
//! | `blockferry.owner=<boot>:<pid>:<start>` | the process that removes it; once that is gone, anybody of us may |
//!
//! The owner is why two runs at once do not remove each other's snapshots: between making a snapshot
//! and opening it, nothing else shows that it is needed. A snapshot that its owner could not remove is
//! given up: nobody needs it, so a process that lives on tries again as if its owner were gone.

use crate::error::{Context, Error, Kind, Result, Within};
use crate::limits::{REMOVE_PAUSE, REMOVE_TRIES};
use crate::lvm::command::{Lvm2, Tools};
use crate::lvm::report::Lv;
use crate::lvm::volume::{row, rows};
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Every snapshot of ours has it.
pub const TAG: &str = "blockferry";
pub(super) const RUN_TAG: &str = "blockferry.run=";
pub(super) const OWNER_TAG: &str = "blockferry.owner=";

/// Snapshots of this process that it could not remove, as `vg/lv`. A run that is tried again with more room makes its name once
/// more: see [`take_back`].
static GIVEN_UP: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn given_up() -> MutexGuard<'static, BTreeSet<String>> {
    GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A snapshot with our tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its volume group.
    pub vg: String,
    /// Its name.
    pub name: String,
    /// Its volume, as `vg/lv`.
    pub volume: String,
    /// The room it takes: its COW store, or for a thin one its virtual size.
    pub bytes: u64,
    /// The run it was made for.
    pub run: Option<String>,
    /// The process that made it still runs and has not given it up; it will remove it itself.
    pub owner_lives: bool,
}

impl Leftover {
    fn of(lv: &Lv) -> Leftover {
        let given_up = given_up().contains(&lv.label());
        Leftover {
            vg: lv.vg.clone(),
            name: lv.name.clone(),
            volume: format!("{}/{}", lv.vg, lv.origin),
            bytes: lv.bytes,
            run: lv.tag_value(RUN_TAG).map(str::to_owned),
            owner_lives: !given_up && lv.tag_value(OWNER_TAG).is_some_and(Owner::lives),
        }
    }

    /// `vg/lv`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }
}

/// All snapshots of ours but those of the run `except_run`. Those whose owner lives are no rubbish.
pub fn leftovers(except_run: Option<&str>) -> Result<Vec<Leftover>> {
    leftovers_with(&Lvm2, except_run)
}

pub(super) fn leftovers_with(tools: &dyn Tools, except_run: Option<&str>) -> Result<Vec<Leftover>> {
    let found = rows(tools, &format!("lv_tags={TAG}")).within(|| "look for snapshots of earlier runs")?;
    Ok(found
        .iter()
        .filter(|lv| is_ours(lv))
        .map(Leftover::of)
        .filter(|it| except_run.is_none() || it.run.as_deref() != except_run)
        .collect())
}

/// Removes what an earlier run left, unless its process still lives.
pub fn remove_leftover(leftover: &Leftover) -> Result<()> {
    if leftover.owner_lives {
        return Err(Error::new(Kind::Locked, format!("snapshot {} belongs to a run that is still active", leftover.label())));
    }
    remove_ours(&Lvm2, &leftover.vg, &leftover.name)?;
    given_up().remove(&leftover.label());
    Ok(())
}

/// Removes a snapshot that this process made. One that cannot be removed is given up.
pub(super) fn remove_own(tools: &dyn Tools, vg: &str, name: &str) -> Result<()> {
    let removed = remove_ours(tools, vg, name);
    if removed.is_err() {
        given_up().insert(format!("{vg}/{name}"));
    }
    removed
}

/// A snapshot of this name is about to be made, which is another than the one that was given up: lvm2 would refuse a second.
pub(super) fn take_back(vg: &str, name: &str) {
    given_up().remove(&format!("{vg}/{name}"));
}

/// Tries again to remove what this process had given up: each with what came of it. lvm2 is not asked where there is nothing, and
/// no more once `stop` is set: who stops does not wait for one after the other.
pub fn remove_given_up(stop: &AtomicBool) -> Vec<(String, Result<()>)> {
    remove_given_up_with(&Lvm2, stop)
}

pub(super) fn remove_given_up_with(tools: &dyn Tools, stop: &AtomicBool) -> Vec<(String, Result<()>)> {
    // Nobody waits for lvm2 with the list in his hands.
    let all: Vec<String> = given_up().iter().cloned().collect();
    let again = |label: String| {
        let (vg, name) = label.split_once('/')?;
        let removed = remove_ours(tools, vg, name);
        if removed.is_ok() {
            given_up().remove(&label);
        }
        Some((label, removed))
    };
    all.into_iter().take_while(|_| !stop.load(Ordering::Relaxed)).filter_map(again).collect()
}

/// Removes a snapshot of ours; one that is gone already is fine, one that is not ours is an error.
pub(super) fn remove_ours(tools: &dyn Tools, vg: &str, name: &str) -> Result<()> {
    let label = format!("{vg}/{name}");
    let what = || format!("remove snapshot {label}");
    let Some(lv) = row(tools, vg, name).within(what)? else { return Ok(()) };
    if !is_ours(&lv) {
        return Err(Error::new(Kind::Refused, format!("{label} is not a snapshot with the tag {TAG}: left alone")));
    }
    // The tag is asked for again under lvm2's own lock.
    let select = format!("lv_uuid={} && lv_tags={TAG}", lv.uuid);
    let mut tries = 1;
    loop {
        match tools.lvm(&["lvremove", "-qq", "-y", "-f", "-S", &select, &label]) {
            Ok(_) => return Ok(()),
            Err(error) if tries >= REMOVE_TRIES || !is_in_use(&error) => return Err(error).within(what),
            Err(_) => thread::sleep(REMOVE_PAUSE), // udev looks into every device that changed
        }
        tries += 1;
    }
}

/// Somebody has it open for a moment. A mount is no such moment and not worth waiting for.
fn is_in_use(error: &Error) -> bool {
    let text = error.chain();
    (text.contains(" in use") || text.contains("Device or resource busy")) && !text.contains("filesystem in use")
}

/// Only snapshots: somebody's volume that happens to carry the tag is none of our business.
fn is_ours(lv: &Lv) -> bool {
    lv.has_tag(TAG) && !lv.origin.is_empty()
}

/// A process, so that its number cannot be mistaken for a later one's.
pub(super) struct Owner;

impl Owner {
    pub(super) fn this_process() -> Result<String> {
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| Error::new(Kind::Failed, "/proc is not readable"))?;
        Ok(format!("{}:{pid}:{started}", boot_id()?))
    }

    /// Whether the process of this tag still runs. What cannot be read is nobody.
    fn lives(tag: &str) -> bool {
        let mut parts = tag.splitn(3, ':');
        let (Some(boot), Some(pid), Some(start)) = (parts.next(), parts.next(), parts.next()) else { return false };
        boot_id().is_ok_and(|now| now == boot) && pid.parse().ok().and_then(started).is_some_and(|now| now == start)
    }
}

fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(file).context(Kind::Failed, || format!("read {file}"))?.trim().to_owned())
}

/// Field 22 of /proc/PID/stat: when the process began. The name before it may hold anything.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let dead = matches!(*fields.first()?, "Z" | "X"); // killed, and its parent has not looked yet
    if dead { None } else { fields.get(19).map(|field| (*field).to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::fake::{Fake, Row};

    fn snapshot(name: &str, tags: &str) -> Row {
        Row { origin: "db".to_owned(), tags: tags.to_owned(), ..Row::new(name) }
    }

    #[test]
    fn only_tagged_snapshots_are_ours() {
        let tagged_volume = Row { tags: TAG.to_owned(), ..Row::new("db") };
        let fake = Fake::new(
            0,
            &[
                tagged_volume,
                snapshot("old", "blockferry,blockferry.run=r1"),
                snapshot("blockferry", "nightly"),
                snapshot("x", "blockferry.run=r1"),
            ],
        );
        let found = leftovers_with(&*fake, None).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].label().as_str(), found[0].volume.as_str(), found[0].run.as_deref()), ("vg/old", "vg/db", Some("r1")));
        for name in ["db", "blockferry", "x"] {
            assert_eq!(remove_ours(&*fake, "vg", name).unwrap_err().kind(), Kind::Refused, "{name}");
        }
        remove_ours(&*fake, "vg", "old").unwrap();
        assert_eq!(fake.names(), ["db", "blockferry", "x"]);
    }

    #[test]
    fn the_own_run_is_left_out() {
        let fake = Fake::new(
            0,
            &[snapshot("a", "blockferry,blockferry.run=r1"), snapshot("b", "blockferry,blockferry.run=r2"), snapshot("c", "blockferry")],
        );
        let names: Vec<String> = leftovers_with(&*fake, Some("r2")).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["a", "c"]);
    }

    /// Names were cut without a hash once: what such a version left is found all the same.
    #[test]
    fn the_tag_alone_says_what_is_ours_whatever_its_name() {
        let cut = format!("{}.ferry.0123456789ab", "x".repeat(60));
        let fake = Fake::new(0, &[snapshot(&cut, "blockferry,blockferry.run=r1")]);
        let found = leftovers_with(&*fake, None).unwrap();
        assert_eq!(found[0].name, cut);
        remove_ours(&*fake, "vg", &found[0].name).unwrap();
        assert_eq!(fake.names(), [] as [String; 0]);
    }

    #[test]
    fn what_is_gone_is_removed() {
        remove_ours(&*Fake::new(0, &[]), "vg", "old").unwrap();
    }

    #[test]
    fn a_failure_that_waiting_does_not_cure_is_told_at_once() {
        for words in ["no permission", "Logical volume vg/old contains a filesystem in use."] {
            let fake = Fake::new(0, &[snapshot("old", TAG)]);
            fake.fail_once("lvremove", words);
            assert_eq!(remove_ours(&*fake, "vg", "old").unwrap_err().chain(), format!("remove snapshot vg/old: {words}"));
        }
    }

    #[test]
    fn a_living_owner_keeps_its_snapshot() {
        let me = Owner::this_process().unwrap();
        assert!(Owner::lives(&me));
        let fake = Fake::new(0, &[snapshot("now", &format!("blockferry,{OWNER_TAG}{me}"))]);
        let found = leftovers_with(&*fake, None).unwrap();
        assert!(found[0].owner_lives);
        assert_eq!(remove_leftover(&found[0]).unwrap_err().kind(), Kind::Locked);
    }

    #[test]
    fn a_number_that_another_process_has_now_is_no_owner() {
        let me = Owner::this_process().unwrap();
        let (process, start) = me.rsplit_once(':').unwrap();
        let other_boot = me.replacen(|c: char| c.is_ascii_hexdigit(), "g", 1);
        for tag in [format!("{process}:{start}1"), other_boot, "".to_owned(), "x:y".to_owned(), process.to_owned()] {
            assert!(!Owner::lives(&tag), "{tag}");
        }
    }
}
