//! What is refused through the binary: each with exit code 8, the reason and the way out, and with the
//! target as it was.

use crate::ferry::{Ended, Ferry, equal, noise, traces};
use crate::loops::{Loop, Mounted, is_root, run};
use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

const MIB: usize = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain text")
}

/// Refused, with and without JSON, and nothing of the pair remains.
#[track_caller]
fn refused(ferry: &Ferry, arguments: &[&str], words: &[&str]) -> Ended {
    let ended = ferry.run(arguments);
    ended.says(8, words);
    assert_eq!(ended.stderr.lines().count(), 1, "one line says it: {}", ended.stderr);
    let json = ferry.json(arguments);
    assert_eq!(json.code, Some(8));
    let error = json.of_type("error").remove(0);
    assert_eq!(error["kind"], "refused");
    words.iter().for_each(|word| assert!(error["message"].as_str().unwrap().contains(word)));
    ended
}

fn nothing_is_remembered(ferry: &Ferry) {
    for side in ["sources", "replicas"] {
        let left: Vec<_> = fs::read_dir(ferry.path("state").join(side)).unwrap().collect();
        assert!(left.is_empty(), "{side}: {left:?}");
    }
}

/// A device without a file system's signature has nothing on it that would tell: the pair does.
#[test]
fn the_ends_of_a_pair_are_not_swapped_by_mistake() {
    if !is_root("loop devices") {
        return;
    }
    let ferry = Ferry::new();
    let content = noise(1, MIB);
    let (from, to) = (ferry.image("from", &content), ferry.image("to", &noise(2, MIB)));
    let (from, to) = (Loop::over(Path::new(&from), 512), Loop::over(Path::new(&to), 512));
    ferry.run(&["clone", text(&from.0), text(&to.0)]).says(0, &[]);
    let newer = noise(3, MIB);
    fs::write(&from.0, &newer).unwrap();
    for more in ["--io=auto", "--dry-run"] {
        refused(&ferry, &["clone", text(&to.0), text(&from.0), more], &["is a source", "Are SRC and DST swapped?", "--overwrite"]);
    }
    assert_eq!(fs::read(&from.0).unwrap(), newer);
    // Whoever means it says so.
    ferry.run(&["clone", text(&to.0), text(&from.0), "--overwrite"]).says(0, &[]);
    assert_eq!(fs::read(&from.0).unwrap(), content);
}

#[test]
fn a_mounted_device_is_refused_whatever_is_said() {
    if !is_root("mounts") {
        return;
    }
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, 16 * MIB));
    let target = ferry.hole("target", 16 << 20);
    run("mkfs.ext4", &["-q", "-F", &target]);
    let (device, at) = (Loop::over(Path::new(&target), 512), ferry.path("mount"));
    fs::create_dir(&at).unwrap();
    let _mounted = Mounted::new(&device.0, &at);
    for name in [text(&device.0), &target] {
        let way_out = format!("is mounted at {0}", at.display());
        refused(&ferry, &["clone", &source, name, "--overwrite"], &[&way_out, "unmount it first (umount "]);
    }
    nothing_is_remembered(&ferry);
    // As a source it is read, with a warning.
    let copy = ferry.name("copy");
    let ended = ferry.run(&["clone", text(&device.0), &copy]);
    ended.says(0, &["is mounted at", "what arrives then mixes moments"]);
}

#[test]
fn a_device_that_somebody_holds_is_refused() {
    if !is_root("loop devices") {
        return;
    }
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, 4 * MIB));
    let file = ferry.hole("target", 4 << 20);
    let device = Loop::over(Path::new(&file), 512);
    // Written through the file, the device's users would see other content than its cache.
    refused(&ferry, &["clone", &source, &file], &[&format!("is part of {}", device.0.display()), "losetup -d"]);
    // O_EXCL, as a mount, LVM or another blockferry has it.
    let held = File::options().read(true).write(true).custom_flags(0o200).open(&device.0).unwrap();
    refused(&ferry, &["clone", &source, text(&device.0)], &["is claimed by another program (fuser -v "]);
    nothing_is_remembered(&ferry);
    drop(held);
    ferry.clone(&source, text(&device.0), &[]);
}

#[test]
fn source_and_target_may_not_be_the_same_under_two_names() {
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, MIB));
    let link = ferry.path("link");
    symlink(&source, &link).unwrap();
    let hard = ferry.path("hard");
    fs::hard_link(&source, &hard).unwrap();
    for other in [source.as_str(), text(&link), text(&hard)] {
        refused(&ferry, &["clone", &source, other, "--overwrite"], &["source and target are the same: ", "are the same file"]);
        refused(&ferry, &["verify", other, &source], &["are the same file"]);
    }
    if !is_root("loop devices") {
        return;
    }
    let device = Loop::over(Path::new(&source), 512);
    let alias = ferry.path("alias");
    symlink(&device.0, &alias).unwrap();
    refused(&ferry, &["clone", text(&device.0), text(&alias), "--overwrite"], &["are the same device"]);
    refused(&ferry, &["clone", text(&device.0), &source, "--overwrite"], &["lies on"]);
    refused(&ferry, &["clone", &source, text(&alias), "--overwrite"], &["lies on"]);
    nothing_is_remembered(&ferry);
    assert!(fs::read(&source).unwrap() == noise(1, MIB));
}

#[test]
fn a_replica_that_is_too_small_is_refused_with_the_bytes_that_are_missing() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 3 * MIB)), ferry.image("target", &noise(2, 2 * MIB)));
    refused(
        &ferry,
        &["clone", "--overwrite", &source, &target],
        &["has 2097152 bytes, the volume 3145728: grow the replica by at least 1048576 bytes first"],
    );
    nothing_is_remembered(&ferry);
    if is_root("loop devices") {
        let device = Loop::over(Path::new(&target), 512);
        refused(&ferry, &["clone", &source, text(&device.0)], &["by at least 1048576 bytes"]);
    }
}

#[test]
fn a_file_system_is_not_overwritten_at_first_use_unless_that_is_said() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 8 * MIB)), ferry.hole("target", 8 << 20));
    run("mkfs.ext4", &["-q", "-F", "-L", "shelf", &target]);
    let before = traces(&target);
    refused(&ferry, &["clone", &source, &target], &["holds an ext4 file system (label \"shelf\"): --overwrite if it may be lost"]);
    refused(&ferry, &["clone", &source, &target, "--dry-run"], &["holds an ext4 file system"]);
    assert_eq!(traces(&target), before);
    nothing_is_remembered(&ferry);
    ferry.clone(&source, &target, &["--overwrite"]);
    equal(&source, &target);
    // From now on it is a replica, and a source with a file system may make it one again.
    run("mkfs.ext4", &["-q", "-F", &source]);
    ferry.clone(&source, &target, &[]);
    equal(&source, &target);
}

#[test]
fn a_file_with_data_is_not_overwritten_unless_that_is_said() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, MIB)), ferry.image("target", &noise(2, MIB)));
    refused(&ferry, &["clone", &source, &target], &[&target, "exists and holds data: --overwrite if it may be lost"]);
    assert!(fs::read(&target).unwrap() == noise(2, MIB));
    nothing_is_remembered(&ferry);
    ferry.clone(&source, &target, &["--overwrite"]);
    equal(&source, &target);
}

#[test]
fn another_file_in_the_replicas_place_is_refused_and_can_be_taken_on() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, MIB)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    fs::rename(&target, ferry.path("old")).unwrap();
    ferry.image("target", &noise(2, MIB));
    refused(&ferry, &["clone", &source, &target], &["is not the device that was paired: it was file:", "clone to it with --overwrite"]);
    assert!(fs::read(&target).unwrap() == noise(2, MIB));
    // The way out that the message names is one.
    ferry.clone(&source, &target, &["--overwrite"]);
    equal(&source, &target);
    ferry.clone(&source, &target, &[]).sent_nothing();
}

#[test]
fn a_replica_that_is_gone_is_not_made_anew_silently() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, MIB)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    fs::remove_file(&target).unwrap();
    refused(&ferry, &["clone", &source, &target], &["is gone, but a record of it exists", "--overwrite"]);
    assert!(!Path::new(&target).exists());
    ferry.clone(&source, &target, &["--overwrite"]);
    equal(&source, &target);
}

#[test]
fn the_replica_of_another_source_is_refused_and_can_be_given_away() {
    let ferry = Ferry::new();
    let (one, two, target) = (ferry.image("one", &noise(1, MIB)), ferry.image("two", &noise(2, MIB)), ferry.name("target"));
    ferry.clone(&one, &target, &[]);
    refused(
        &ferry,
        &["clone", &two, &target],
        &["is the replica of", "(generation 1, relationship ", "--overwrite gives it to the new source and forgets the old"],
    );
    equal(&one, &target);
    ferry.clone(&two, &target, &["--overwrite"]);
    equal(&two, &target);
    // Now the first is the foreign one.
    refused(&ferry, &["clone", &one, &target], &["is the replica of", "/two"]);
}

#[test]
fn a_source_that_shrank_is_refused() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 2 * MIB)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    let before = traces(&target);
    ferry.image("source", &noise(1, MIB));
    refused(&ferry, &["clone", &source, &target], &["shrank from 2097152 to 1048576 bytes: a volume that shrank is never replicated"]);
    assert_eq!(traces(&target), before);
}

/// What a crash left that came between an image file and its record; a dry run leaves it as it is.
#[test]
fn an_image_file_that_is_one_hole_is_as_good_as_none() {
    for bytes in [0, 1 << 20, 3 << 20] {
        let ferry = Ferry::new();
        let (source, target) = (ferry.image("source", &noise(1, 2 * MIB + 700)), ferry.hole("target", bytes));
        ferry.json(&["clone", "--dry-run", &source, &target]).summary();
        assert_eq!(fs::metadata(&target).unwrap().len(), bytes);
        ferry.clone(&source, &target, &[]);
        assert!(fs::read(&target).unwrap().starts_with(&fs::read(&source).unwrap()));
    }
}

#[test]
fn a_volume_that_grew_waits_until_its_replica_did() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 2 * MIB + 700)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    let mut content = noise(1, 2 * MIB + 700);
    content.extend(noise(2, MIB));
    ferry.image("source", &content);
    let missing = format!("grow the replica by at least {MIB} bytes first");
    for _ in 0..2 {
        refused(&ferry, &["clone", &source, &target], &[&missing]);
    }
    File::options().write(true).open(&target).unwrap().set_len(content.len() as u64).unwrap();
    let summary = ferry.clone(&source, &target, &[]);
    equal(&source, &target);
    // What was there is not sent again: only the block that the old end cut, and what is new.
    assert_eq!(summary.count("sent_blocks"), (content.len() - 2 * MIB).div_ceil(4096) as u64);
    assert_eq!(summary.count("generation"), 2);
    ferry.clone(&source, &target, &[]).sent_nothing();
}

/// Writes by somebody else are found by samples before the first write: all of a small replica's extents are some.
#[test]
fn a_replica_that_somebody_else_wrote_to_is_refused() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 128 << 10)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    crate::ferry::change_blocks(&target, [3, 20]);
    crate::ferry::change_blocks(&source, [9]);
    refused(
        &ferry,
        &["clone", &source, &target],
        &["is not what was replicated there", "Nothing was written", "`blockferry verify --repair SRC DST`"],
    );
    let repaired = ferry.json(&["verify", &source, &target, "--repair"]);
    assert_eq!(repaired.code, Some(0));
    equal(&source, &target);
    ferry.clone(&source, &target, &[]).sent_nothing();
}

/// Found by hand: the name of a device that is not there made a file in memory, and the copy was "done".
#[test]
fn a_mistyped_device_is_no_new_file_in_memory() {
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, MIB));
    let target = format!("/dev/no-such-disk-{}", std::process::id());
    for options in [&["clone", &source, &target][..], &["clone", &source, &target, "--overwrite"], &["clone", &source, &target, "-n"]] {
        refused(&ferry, options, &["does not exist, and no image file is made in /dev: `lsblk` shows"]);
    }
    assert!(!Path::new(&target).exists());
    nothing_is_remembered(&ferry);
}

/// What a promoted replica holds is thrown away under its own name only, not in passing.
#[test]
fn overwrite_does_not_take_a_promoted_replica() {
    let ferry = Ferry::new();
    let (one, two, target) = (ferry.image("one", &noise(1, MIB)), ferry.image("two", &noise(2, MIB)), ferry.name("target"));
    ferry.clone(&one, &target, &[]);
    assert_eq!(ferry.run(&["promote", &target]).code, Some(0));
    crate::ferry::change_blocks(&target, [5]);
    let before = traces(&target);
    let way_out = "`blockferry resync --discard ";
    ferry.run(&["clone", &two, &target, "--overwrite"]).says(6, &["was promoted: --overwrite does not give that up", way_out]);
    ferry.run(&["clone", &one, &target, "--overwrite"]).says(6, &["was promoted", way_out]);
    assert_eq!(traces(&target), before);
}
