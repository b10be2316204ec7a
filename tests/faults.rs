//! Devices and file systems that fail (T6): never reported as committed, the reason is the right one, and
//! the next run heals.

#[path = "rig/daemon.rs"]
mod daemon;
#[path = "rig/stand.rs"]
mod ferry;
#[path = "rig/loops.rs"]
mod loops;

use daemon::Daemon;
use ferry::{Dice, Ferry, Run, assert_same, change_image, make_image};
use loops::{Loop, is_root, run};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const VOLUME_BYTES: u64 = 16 << 20;
/// A block in the middle of the volume, away from the samples that every session takes first and last.
const BAD_BLOCK: u64 = 1234;

/// A source image and a replica on a device; the base image is what the device stands on.
struct Bed {
    ferry: Ferry,
    base: PathBuf,
    dice: Dice,
}

impl Bed {
    fn new(test: &str) -> Option<Bed> {
        if !is_root(test) || !daemon::is_installed(test) {
            return None;
        }
        let ferry = Ferry::new();
        let mut dice = Dice(test.len() as u64);
        make_image(&ferry.source, VOLUME_BYTES, &mut dice);
        let base = ferry.at("base.img");
        File::create(&base).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a base image");
        Some(Bed { ferry, base, dice })
    }

    /// Makes sure that the bad block has to be written, and its extent read: only one block of it changes.
    fn change(&mut self) {
        change_image(&self.ferry.source, &mut self.dice);
        let mut block = [0; 4096];
        self.dice.fill(&mut block);
        let file = File::options().write(true).open(&self.ferry.source).expect("the source");
        let mut extent = vec![0; 64 << 10];
        let start = BAD_BLOCK / 16 * (64 << 10);
        File::open(&self.base).and_then(|base| base.read_exact_at(&mut extent, start)).expect("the replica");
        file.write_all_at(&extent, start).and_then(|()| file.write_all_at(&block, BAD_BLOCK * 4096)).expect("the source");
    }

    fn clone_to(&self, device: &Path) -> Run {
        let mut command = self.ferry.program(&self.ferry.here, &["clone", "--json"]);
        command.arg(&self.ferry.source).arg(device);
        self.ferry.run(command)
    }

    /// A first generation on a device without faults.
    fn first(&self) {
        let device = Daemon::plain(&self.base);
        self.clone_to(device.path()).succeeds();
        self.is_equal();
    }

    /// The device works again: the next run brings everything to its end.
    fn heals(&self) -> Run {
        let device = Daemon::plain(&self.base);
        let healed = self.clone_to(device.path());
        healed.succeeds();
        device.stop();
        self.is_equal();
        let left = self.ferry.doctor(&self.ferry.here, &[]);
        assert!(left.lines("leftover").iter().all(|left| left["what"] == "device-gone"), "{}", left.out);
        healed
    }

    #[track_caller]
    fn is_equal(&self) {
        assert_same(&self.ferry.source, &self.base, "source and device");
    }

    #[track_caller]
    fn is_generation(&self, generation: u64, stage: &str) {
        let found = self.ferry.generation(&self.ferry.here);
        assert!(found.0 == generation && found.1.starts_with(stage), "{found:?} instead of {generation} {stage}");
    }
}

fn error_at(iotype: &str) -> String {
    format!(r#""iotype":"{iotype}","errno":5,"sector":{}"#, BAD_BLOCK * 8)
}

#[test]
fn a_bad_sector_under_a_first_copy_is_named_and_nothing_is_committed() {
    let Some(mut bed) = Bed::new("bad sectors") else { return };
    bed.change();
    let device = Daemon::failing(&bed.base, &error_at("write"));
    let failed = bed.clone_to(device.path());
    failed.fails(&[10], &["apply extent", device.path().to_str().unwrap(), "Input/output error"]);
    bed.is_generation(0, "initializing");
    drop(device);
    bed.heals();
    bed.is_generation(1, "clean");
}

#[test]
fn a_bad_sector_while_applying_is_named_and_the_next_run_completes() {
    let Some(mut bed) = Bed::new("bad sectors") else { return };
    bed.first();
    bed.change();
    let device = Daemon::failing(&bed.base, &error_at("write"));
    let failed = bed.clone_to(device.path());
    failed.fails(&[10], &["apply extent", device.path().to_str().unwrap(), "Input/output error"]);
    bed.is_generation(1, "applying");
    // As long as the device is bad, no run and no doctor calls it complete.
    bed.clone_to(device.path()).fails(&[10], &["apply extent", "Input/output error"]);
    assert_ne!(bed.ferry.doctor(&bed.ferry.here, &["--fix"]).code(), 0);
    bed.is_generation(1, "applying");
    drop(device);
    bed.heals();
    // The second is completed first, and the run brings a third.
    bed.is_generation(3, "clean");
}

#[test]
fn an_unreadable_sector_of_the_replica_is_named_and_nothing_is_written() {
    let Some(mut bed) = Bed::new("bad sectors") else { return };
    bed.first();
    let held = bed.ferry.at("held.img");
    fs::copy(&bed.base, &held).unwrap();
    bed.change();
    let device = Daemon::failing(&bed.base, &error_at("read"));
    let failed = bed.clone_to(device.path());
    failed.fails(&[10], &["read ", "0x", "of the replica", device.path().to_str().unwrap(), "Input/output error"]);
    bed.is_generation(1, "clean");
    drop(device);
    assert_same(&held, &bed.base, "generation 1");
    bed.heals();
}

/// The exit code 10 is the replica's: an operator who reads it must not go and look at the wrong host.
#[test]
fn an_unreadable_sector_of_the_source_is_not_the_replicas_fault() {
    let Some(bed) = Bed::new("bad sectors") else { return };
    let target = bed.ferry.at("replica.img");
    let clone = |device: &Path| {
        let mut command = bed.ferry.program(&bed.ferry.here, &["clone", "--json"]);
        command.arg(device).arg(&target);
        bed.ferry.run(command)
    };
    fs::copy(&bed.ferry.source, &bed.base).unwrap();
    clone(Daemon::plain(&bed.base).path()).succeeds();
    let held = bed.ferry.at("held.img");
    fs::copy(&target, &held).unwrap();
    let mut dice = Dice(7);
    change_image(&bed.base, &mut dice);
    let device = Daemon::failing(&bed.base, &error_at("read"));
    let failed = clone(device.path());
    failed.fails(&[1], &["read", "source", device.path().to_str().unwrap(), "0x400000", "Input/output error"]);
    bed.is_generation(1, "clean");
    assert_same(&held, &target, "generation 1");
    drop(device);
    clone(Daemon::plain(&bed.base).path()).succeeds();
    assert_same(&bed.base, &target, "healed");
}

/// The kernel reports a lost write once; a second flush would succeed and lie.
#[test]
fn a_failed_flush_is_final_although_the_next_one_would_succeed() {
    let Some(mut bed) = Bed::new("failing flushes") else { return };
    let once = r#""iotype":"flush","errno":5,"once":true"#;
    let device = Daemon::failing(&bed.base, once);
    bed.clone_to(device.path()).fails(&[10], &["flush", device.path().to_str().unwrap(), "Input/output error"]);
    bed.is_generation(0, "initializing");
    drop(device);
    bed.heals();
    bed.change();
    let device = Daemon::failing(&bed.base, once);
    bed.clone_to(device.path()).fails(&[10], &["flush", device.path().to_str().unwrap(), "Input/output error"]);
    bed.is_generation(1, "applying");
    // The same device, which says that all is well now: the journal is written onto it again.
    bed.clone_to(device.path()).succeeds();
    bed.is_equal();
    drop(device);
    bed.change();
    bed.heals();
}

#[test]
fn a_device_that_vanishes_while_it_is_written_is_not_committed() {
    let Some(mut bed) = Bed::new("vanishing devices") else { return };
    for first in [true, false] {
        let generation = bed.ferry.generation(&bed.ferry.here).0;
        // Slow enough to be caught in the middle, the apply of the few changes as well.
        let mut device = Daemon::slow(&bed.base, if first { 1 << 20 } else { 128 << 10 });
        let before = fs::metadata(&bed.base).unwrap().blocks();
        let mut command = bed.ferry.program(&bed.ferry.here, &["clone", "--json"]);
        command.arg(&bed.ferry.source).arg(device.path());
        let out = bed.ferry.at("vanish.err");
        let said = File::create(&out).unwrap();
        let mut child = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        // An event and no clock: part of it has arrived, and the link below is too slow for the rest.
        let end = Instant::now() + Duration::from_secs(240);
        let begun = |held: u64| if first { held > before + 2048 } else { bed.ferry.generation(&bed.ferry.here).1.starts_with("applying") };
        while !begun(fs::metadata(&bed.base).unwrap().blocks()) {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&out).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
        device.kill();
        let status = ferry::wait(&mut child, Duration::from_secs(240)).expect("the run ends when the device is gone");
        let said = fs::read_to_string(&out).unwrap();
        assert!([Some(1), Some(10)].contains(&status.code()), "{status}: {said}");
        assert!(said.contains(device.path().to_str().unwrap()), "{said}");
        let (found, stage) = bed.ferry.generation(&bed.ferry.here);
        assert_eq!(found, generation, "{stage}");
        assert!(first || stage.starts_with("applying"), "{stage}");
        drop(device);
        bed.heals();
        bed.change();
    }
}

#[test]
fn a_slow_device_just_works() {
    let Some(bed) = Bed::new("slow devices") else { return };
    let device = Daemon::slow(&bed.base, 8 << 20);
    bed.clone_to(device.path()).succeeds();
    device.stop();
    bed.is_equal();
    bed.is_generation(1, "clean");
}

/// Fills a file system up to this many bytes.
fn leave_room(at: &Path, ballast: &Path, bytes: u64) {
    let all = nix::sys::statvfs::statvfs(at).unwrap();
    let free = all.blocks_available() as u64 * all.fragment_size() as u64;
    fs::write(ballast, vec![1; free.saturating_sub(bytes) as usize]).unwrap();
}

/// A small file system of its own; unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path, bytes: u64) -> Small {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "blockferry-test", at.to_str().unwrap()]);
        Small(at.to_owned())
    }

    fn grow(&self, bytes: u64) {
        run("mount", &["-o", &format!("remount,size={bytes}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_journal_leaves_the_generation_and_says_what_is_needed() {
    if !is_root("small file systems") {
        return;
    }
    let ferry = Ferry::new();
    let mut dice = Dice(11);
    make_image(&ferry.source, VOLUME_BYTES, &mut dice);
    let small = Small::new(&ferry.here, 40 << 20);
    ferry.run(ferry.local(&[])).succeeds();
    // What else lies there leaves little room.
    let ballast = ferry.here.join("ballast");
    leave_room(&ferry.here, &ballast, 2 << 20);
    let held = ferry.at("held.img");
    fs::copy(&ferry.target, &held).unwrap();
    let mut all = vec![0; VOLUME_BYTES as usize];
    dice.fill(&mut all);
    fs::write(&ferry.source, &all).unwrap();
    let failed = ferry.run(ferry.local(&[]));
    failed.fails(&[10], &["journal", "make room", "--dry-run", &ferry.here.display().to_string(), "needs at least"]);
    let (generation, stage) = ferry.generation(&ferry.here);
    assert_eq!((generation, stage.as_str()), (1, "clean"));
    assert_same(&held, &ferry.target, "generation 1");
    small.grow(128 << 20);
    ferry.run(ferry.local(&[])).succeeds();
    assert_same(&ferry.source, &ferry.target, "with room");
    assert_eq!(ferry.generation(&ferry.here).0, 2);
    fs::remove_file(&ballast).unwrap();
    ferry.nothing_is_left(&ferry.here);
}

/// Every amount of room that is not enough: the journal may fill the disk in any of its writes, and so
/// may the manifest and the record behind it.
#[test]
fn no_amount_of_missing_room_loses_a_generation() {
    if !is_root("small file systems") {
        return;
    }
    let ferry = Ferry::new();
    let mut dice = Dice(12);
    make_image(&ferry.source, 4 << 20, &mut dice);
    let _small = Small::new(&ferry.here, 24 << 20);
    ferry.run(ferry.local(&[])).succeeds();
    let ballast = ferry.here.join("ballast");
    let (mut held, mut before) = (ferry.at("held.img"), 1);
    let next = ferry.at("next.img");
    let mut failures = 0;
    for pages in (0..64).step_by(3).chain([80, 120, 200, 260, 280, 290, 300, 310, 320, 400]) {
        fs::copy(&ferry.source, &held).unwrap();
        change_image(&ferry.source, &mut dice);
        fs::copy(&ferry.source, &next).unwrap();
        leave_room(&ferry.here, &ballast, pages * 4096);
        let tried = ferry.run(ferry.local(&[]));
        if tried.status.success() {
            fs::remove_file(&ballast).unwrap();
        } else {
            failures += 1;
            tried.fails(&[10], &[&ferry.here.display().to_string(), "No space left"]);
            let shown = ferry.generation(&ferry.here);
            fs::remove_file(&ballast).unwrap();
            if shown.1 == "clean" {
                let expected = if shown.0 == before { &held } else { &next };
                assert_same(expected, &ferry.target, &format!("generation {} with {pages} pages of room", shown.0));
            }
            ferry.run(ferry.local(&[])).succeeds();
        }
        assert_same(&ferry.source, &ferry.target, &format!("after {pages} pages of room"));
        ferry.nothing_is_left(&ferry.here);
        before = ferry.generation(&ferry.here).0;
        held = ferry.at("held.img");
    }
    assert!(failures > 5, "only {failures} runs had too little room");
}

#[test]
fn a_full_file_system_under_a_sparse_replica_is_named() {
    if !is_root("small file systems") {
        return;
    }
    let mut ferry = Ferry::new();
    let mut dice = Dice(13);
    make_image(&ferry.source, VOLUME_BYTES, &mut dice);
    // ext4 and O_DIRECT, as a replica has it.
    let disk = ferry.at("small.img");
    File::create(&disk).and_then(|file| file.set_len(64 << 20)).unwrap();
    run("mkfs.ext4", &["-q", "-F", disk.to_str().unwrap()]);
    let device = Loop::over(&disk, 512);
    let at = ferry.at("small");
    fs::create_dir(&at).unwrap();
    let mounted = loops::Mounted::new(&device.0, &at);
    let ballast = at.join("ballast");
    leave_room(&at, &ballast, 4 << 20);
    ferry.target = at.join("replica.img");
    ferry.run(ferry.local(&[])).fails(&[10], &["apply extent", &ferry.target.display().to_string(), "No space left on device"]);
    let (generation, stage) = ferry.generation(&ferry.here);
    assert!(generation == 0 && stage.starts_with("initializing"), "{generation} {stage}");
    fs::remove_file(&ballast).unwrap();
    ferry.run(ferry.local(&[])).succeeds();
    assert_same(&ferry.source, &ferry.target, "with room");
    ferry.nothing_is_left(&ferry.here);
    drop(mounted);
}
