//! The guards before a target is written: on real loop devices, mounts and signatures.

#[path = "rig/loops.rs"]
mod loops;

use blockferry::disk::raw::{Access, RawDisk};
use blockferry::disk::{guard, identity};
use blockferry::error::Kind;
use blockferry::ring::Choice;
use loops::{Loop, Mounted, is_root, run};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn blank(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).and_then(|file| file.set_len(16 << 20)).expect("an image file");
    path
}

fn make_ext4(path: &Path) {
    run("mkfs.ext4", &["-q", "-F", "-L", "shelf", path.to_str().expect("test paths are plain text")]);
}

/// An MBR with a signature and one Linux partition from sector 2048 on (sfdisk is not everywhere).
fn one_partition(path: &Path) {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&0xb10c_fe44_u32.to_le_bytes());
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&20480u32.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options().write(true).open(path).expect("an image file");
    std::os::unix::fs::FileExt::write_all_at(&file, &sector, 0).expect("a partition table");
}

#[test]
fn a_mounted_device_is_refused_under_every_name() {
    if !is_root("mounts") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, at) = (blank(folder.path(), "image"), folder.path().join("m o"));
    fs::create_dir(&at).unwrap();
    make_ext4(&file);
    let device = Loop::over(&file, 512);
    let _mounted = Mounted::new(&device.0, &at);
    for name in [&device.0, &file] {
        let refusal = guard::not_in_use(name).unwrap_err();
        assert_eq!(refusal.kind(), Kind::Refused);
        assert!(refusal.chain().contains(&format!("is mounted at {}", at.display())), "{}", refusal.chain());
        assert_eq!(guard::mounted_at(name).unwrap().as_deref(), at.to_str());
    }
    let refusal = RawDisk::open(&device.0, Access::Write, Choice::Auto).err().unwrap();
    assert_eq!(refusal.kind(), Kind::Refused);
    assert!(refusal.chain().contains("umount"), "{}", refusal.chain());
    RawDisk::open(&device.0, Access::Read, Choice::Auto).unwrap();
}

/// After a reboot a name may be another device's: what a receiver does without its sender finds the replica where it is
/// today, and leaves alone what has its old name.
#[test]
fn a_replica_whose_device_has_another_name_today_is_found_there() {
    if !is_root("loop devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = |arguments: &[&str]| {
        let state = folder.path().join("state");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_blockferry"));
        let output = command.arg("--state-dir").arg(state).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let source = blank(folder.path(), "source");
    fs::write(&source, vec![7; 16 << 20]).unwrap();
    let (replica, other) = (blank(folder.path(), "replica"), blank(folder.path(), "other"));
    let old = Loop::over(&replica, 512);
    let old_name = text(&old.0);
    let (code, said) = program(&["clone", "--snapshot=never", &text(&source), &old_name]);
    assert_eq!(code, Some(0), "{said}");
    drop(old);
    // Another test may take the name for a while.
    let attach = || std::process::Command::new("losetup").args([&old_name, &text(&other)]).status().unwrap().success();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !attach() {
        assert!(std::time::Instant::now() < until, "{old_name} never became free");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let _taken = Loop(old_name.clone().into());
    let today = Loop::over(&replica, 512);
    let (code, said) = program(&["promote", &old_name]);
    assert!(code == Some(8) && said.contains("is not the device that was paired"), "{code:?} {said}");
    let (code, said) = program(&["promote", &text(&today.0)]);
    assert!(code == Some(0) && said.contains(&text(&today.0)), "{code:?} {said}");
}

#[test]
fn a_file_under_a_loop_device_is_refused_and_the_device_is_free() {
    if !is_root("loop devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = blank(folder.path(), "image");
    guard::not_in_use(&file).unwrap();
    let device = Loop::over(&file, 512);
    let refusal = guard::not_in_use(&file).unwrap_err().chain();
    assert!(refusal.contains(&format!("losetup -d {}", device.0.display())), "{refusal}");
    guard::not_in_use(&device.0).unwrap();
    assert_eq!(guard::mounted_at(&device.0).unwrap(), None);
    let claimed = RawDisk::open(&device.0, Access::Write, Choice::Auto).unwrap();
    let refusal = RawDisk::open(&device.0, Access::Write, Choice::Auto).err().unwrap();
    assert!(refusal.chain().contains("claimed by another program"), "{}", refusal.chain());
    drop(claimed);
}

#[test]
fn the_same_bytes_are_recognised_under_two_names() {
    if !is_root("loop devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, other, link) = (blank(folder.path(), "image"), blank(folder.path(), "other"), folder.path().join("link"));
    let (device, second) = (Loop::over(&file, 512), Loop::over(&other, 512));
    std::os::unix::fs::symlink(&device.0, &link).unwrap();
    let same = |a: &Path, b: &Path| identity::same(a, b).unwrap();
    assert!(same(&device.0, &link).unwrap().contains("are the same device"));
    assert!(same(&file, &device.0).unwrap().contains("lies on"));
    assert!(same(&link, &file).unwrap().contains("lies on"));
    assert_eq!(same(&device.0, &second.0), None);
    assert_eq!(same(&device.0, &other), None);
    let known = identity::of(&link).unwrap();
    assert_eq!((known.bytes, known.is_device, &known.path), (16 << 20, true, &device.0));
    assert!(known.stable.starts_with("loop:"), "{}", known.stable);
    assert!(known.stable.ends_with("/image"), "{}", known.stable);
}

#[test]
fn a_file_system_is_found_and_a_blank_target_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (used, free) = (blank(folder.path(), "used"), blank(folder.path(), "free"));
    make_ext4(&used);
    let refusal = guard::no_signature(&used).unwrap_err();
    assert_eq!(refusal.kind(), Kind::Refused);
    let expected = format!("{} holds an ext4 file system (label \"shelf\"): --overwrite if it may be lost", used.display());
    assert_eq!(refusal.chain(), expected);
    guard::no_signature(&free).unwrap();
    assert_eq!(guard::no_signature(&folder.path().join("missing")).unwrap_err().kind(), Kind::Refused);
}

/// A disk is in use when one of its partitions is; the partition's bytes are the disk's.
#[test]
fn a_mounted_partition_holds_its_disk() {
    if !is_root("partitions") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, at) = (blank(folder.path(), "image"), folder.path().join("mount"));
    fs::create_dir(&at).unwrap();
    one_partition(&file);
    let device = Loop::over(&file, 512);
    let part = PathBuf::from(format!("{}p1", device.0.display()));
    if !part.exists() {
        // A kernel that cannot read MBRs takes partitions from partx.
        run("partx", &["-a", device.0.to_str().unwrap()]);
    }
    guard::not_in_use(&device.0).unwrap();
    let table = guard::no_signature(&device.0).unwrap_err().chain();
    assert!(table.contains("holds a partition table (dos)"), "{table}");
    guard::no_signature(&part).unwrap();
    make_ext4(&part);
    let _mounted = Mounted::new(&part, &at);
    let refusal = guard::not_in_use(&device.0).unwrap_err().chain();
    assert!(refusal.contains(&format!("through {}", part.display())), "{refusal}");
    assert!(guard::not_in_use(&file).is_err());
    assert!(identity::same(&part, &device.0).unwrap().unwrap().contains("lies on"));
    assert!(identity::same(&part, &file).unwrap().unwrap().contains("lies on"));
    let id = identity::of(&part).unwrap().stable;
    assert!(id.starts_with("partuuid:") || id.starts_with("path:"), "{id}");
}

/// A volume on device mapper: the disk below is held, and the volume lies on it.
#[test]
fn a_device_under_device_mapper_is_held_by_it() {
    if !is_root("device mapper") {
        return;
    }
    struct Mapped(String);
    impl Drop for Mapped {
        fn drop(&mut self) {
            let _ = std::process::Command::new("dmsetup").args(["remove", &self.0]).status();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::over(&blank(folder.path(), "image"), 512);
    let name = format!("bf-guard-{}", std::process::id());
    let table = format!("0 8192 linear {} 0", device.0.display());
    let made = std::process::Command::new("dmsetup").args(["create", &name, "--uuid", &format!("BF-{name}"), "--table", &table]).output();
    if !made.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no device mapper here ({made:?})");
        return;
    }
    let mapped = Mapped(name);
    let volume = PathBuf::from(format!("/dev/mapper/{}", mapped.0));
    let refusal = guard::not_in_use(&device.0).unwrap_err().chain();
    assert!(refusal.contains(&format!("is part of {}", volume.display())), "{refusal}");
    if !volume.exists() {
        // Without udev the node is made by dmsetup itself.
        run("dmsetup", &["mknodes"]);
    }
    assert!(identity::same(&device.0, &volume).unwrap().unwrap().contains("lies on"));
    assert_eq!(identity::of(&volume).unwrap().stable, format!("BF-{}", mapped.0));
}
