//! One behaviour suite for everything that claims to be a disk: raw devices and files through both
//! engines, and memory.

#[path = "rig/loops.rs"]
mod loops;

use blockferry::disk::ram::RamDisk;
use blockferry::disk::raw::{Access, RawDisk};
use blockferry::disk::{self, Action, AlignedBuf, Disk, Pool, Request, Run};
use blockferry::ring::Choice;
use loops::{Loop, is_root};
use std::fs;
use std::path::Path;

const CHUNK: usize = 1 << 20;

fn buffer(bytes: usize) -> AlignedBuf {
    AlignedBuf::new(bytes).expect("memory for a buffer")
}

/// Bytes that tell their place on the disk.
fn pattern(offset: u64, into: &mut [u8]) {
    for (i, byte) in into.iter_mut().enumerate() {
        let at = offset + i as u64;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8 | 1;
    }
}

fn read(disk: &mut dyn Disk, offset: u64, bytes: usize) -> Vec<u8> {
    disk::read(disk, buffer(bytes), offset, bytes).expect("a read")[..bytes].to_vec()
}

fn write(disk: &mut dyn Disk, offset: u64, bytes: usize) {
    let mut full = buffer(bytes);
    pattern(offset, &mut full);
    disk::perform(disk, Action::Write(full, vec![Run { at: 0, offset, bytes }])).expect("a write");
}

fn expect_pattern(disk: &mut dyn Disk, offset: u64, bytes: usize) {
    let mut expected = vec![0; bytes];
    pattern(offset, &mut expected);
    assert!(read(disk, offset, bytes) == expected, "{bytes} bytes at {offset:#x} of {} differ", disk.name());
}

/// Scattered pieces of one buffer, backwards, go out and come back in one request each.
fn scattered_runs_round_trip(disk: &mut dyn Disk) {
    let runs: Vec<Run> = (0..200u64).map(|i| Run { at: i as usize * 4096, offset: (250 - i) * 4096, bytes: 4096 }).collect();
    let mut full = buffer(CHUNK);
    runs.iter().for_each(|run| pattern(run.offset, &mut full[run.at..run.at + run.bytes]));
    let written = disk::perform(disk, Action::Write(full, runs.clone())).expect("a scattered write").expect("its buffer");
    let mut seen = disk::perform(disk, Action::Read(buffer(CHUNK), runs.clone())).expect("a scattered read").expect("its buffer");
    assert!(written[..200 * 4096] == seen[..200 * 4096]);
    seen.fill(0);
    expect_pattern(disk, 51 * 4096, 200 * 4096);
}

/// The last bytes of a disk are reached whatever its size, and next to aligned neighbours.
fn the_tail_round_trips(disk: &mut dyn Disk) {
    let tail = disk.bytes() % CHUNK as u64;
    let start = disk.bytes() - tail;
    write(disk, start - 8192, 8192);
    write(disk, start, tail as usize);
    expect_pattern(disk, start - 8192, 8192 + tail as usize);
    write(disk, 4096 + 100, 333);
    expect_pattern(disk, 4096 + 100, 333);
}

fn zeroing_reads_zeros_and_keeps_the_size(disk: &mut dyn Disk) {
    let size = disk.bytes();
    write(disk, 0, 2 * CHUNK);
    for (offset, bytes) in [(65536, CHUNK as u64), (4096, 512), (0, 0)] {
        disk::perform(disk, Action::Zero { offset, bytes }).expect("zeroing");
        assert!(read(disk, offset, bytes as usize).iter().all(|byte| *byte == 0));
    }
    expect_pattern(disk, 8192, 65536 - 8192);
    expect_pattern(disk, 65536 + CHUNK as u64, 4096);
    let tail = size - 512;
    disk::perform(disk, Action::Zero { offset: tail, bytes: 512 }).expect("zeroing the tail");
    assert_eq!(disk.bytes(), size);
    assert!(read(disk, tail, 512).iter().all(|byte| *byte == 0));
}

/// Beyond the end is an error for each action, the buffer comes back, and the disk goes on.
fn beyond_the_end_is_an_error_that_returns_the_buffer(disk: &mut dyn Disk) {
    let end = disk.bytes();
    let over = || vec![Run { at: 0, offset: 0, bytes: 4096 }, Run { at: 4096, offset: end - 512, bytes: 1024 }];
    let actions =
        [Action::Read(buffer(8192), over()), Action::Write(buffer(8192), over()), Action::Zero { offset: end - 512, bytes: 1024 }];
    for (token, action) in actions.into_iter().enumerate() {
        disk.submit(Request { token: token as u64, action }).expect("queueing");
        let done = disk.wait().expect("waiting").expect("a completion");
        assert_eq!(done.token, token as u64);
        assert!(done.result.is_err(), "action {token}");
        assert_eq!(done.buffer.is_some(), token < 2);
    }
    assert_eq!(disk.bytes(), end);
    assert!(disk.wait().expect("waiting for nothing").is_none());
}

/// Far more entries than the ring has, from the buffers of a pool; every token comes back once.
fn requests_beyond_the_queue_all_complete(disk: &mut dyn Disk) {
    let mut pool = Pool::new(8, 256 << 10).expect("a pool");
    for write in [true, false] {
        let runs_of = |buffer: u64| (0..64u64).map(move |i| Run { at: i as usize * 4096, offset: (buffer * 64 + i) * 4096, bytes: 4096 });
        for token in 0..8 {
            let mut full = pool.take().expect("a buffer");
            if write {
                runs_of(token).for_each(|run| pattern(run.offset, &mut full[run.at..run.at + run.bytes]));
            }
            let runs = runs_of(token).collect();
            let action = if write { Action::Write(full, runs) } else { Action::Read(full, runs) };
            disk.submit(Request { token, action }).expect("queueing");
        }
        for token in 8..400 {
            disk.submit(Request { token, action: Action::Read(buffer(4096), vec![Run { at: 0, offset: CHUNK as u64 * 3, bytes: 4096 }]) })
                .expect("queueing");
        }
        let mut seen = vec![false; 400];
        while let Some(done) = disk.wait().expect("waiting") {
            let moved = if done.token < 8 { 256 << 10 } else { 4096 };
            assert_eq!(done.result.expect("a transfer"), moved);
            assert!(!std::mem::replace(&mut seen[done.token as usize], true), "token {} came twice", done.token);
            if done.token < 8 {
                pool.put(done.buffer.expect("its buffer"));
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }
    expect_pattern(disk, 0, 2 * CHUNK);
}

/// Everything above, on one disk.
fn behaves(disk: &mut dyn Disk) {
    scattered_runs_round_trip(disk);
    the_tail_round_trips(disk);
    zeroing_reads_zeros_and_keeps_the_size(disk);
    beyond_the_end_is_an_error_that_returns_the_buffer(disk);
    requests_beyond_the_queue_all_complete(disk);
    disk::flush(disk).expect("a flush");
}

/// Writes that were submitted before a drop are on the disk after it.
fn a_drop_waits_for_what_is_in_flight(open: impl Fn() -> RawDisk) {
    let mut disk = open();
    for token in 0..40u64 {
        let mut full = buffer(64 << 10);
        let offset = token * (64 << 10);
        pattern(offset, &mut full);
        let runs = (0..16u64).map(|i| Run { at: i as usize * 4096, offset: offset + i * 4096, bytes: 4096 }).collect();
        disk.submit(Request { token, action: Action::Write(full, runs) }).expect("queueing");
    }
    drop(disk);
    expect_pattern(&mut open(), 0, 40 * (64 << 10));
}

/// A new image file whose size is no multiple of anything large.
fn image(folder: &Path, bytes: u64) -> std::path::PathBuf {
    let path = folder.join("image");
    let file = fs::File::create(&path).expect("an image file");
    file.set_len(bytes).expect("its size");
    path
}

fn on_a_file(folder: &Path, choice: Choice) {
    let path = image(folder, 4 * CHUNK as u64 + 4096 + 1000);
    behaves(&mut RawDisk::open(&path, Access::Write, choice).expect("an image file opens"));
    a_drop_waits_for_what_is_in_flight(|| RawDisk::open(&path, Access::Write, choice).expect("an image file opens"));
}

fn on_loops(choice: Choice) {
    if !is_root("loop devices as disks") {
        return;
    }
    for sector in [512, 4096] {
        let folder = tempfile::tempdir().expect("a folder");
        let device = Loop::over(&image(folder.path(), 4 * CHUNK as u64 + 12288), sector);
        let open = || RawDisk::open(&device.0, Access::Write, choice).expect("a loop device opens");
        let mut disk = open();
        assert_eq!((disk.logical_block(), disk.is_direct()), (sector, true));
        behaves(&mut disk);
        assert!(disk.resize(8 * CHUNK as u64).is_err(), "a device has the size it has");
        drop(disk);
        a_drop_waits_for_what_is_in_flight(open);
    }
}

#[test]
fn memory_behaves_like_a_disk() {
    behaves(&mut RamDisk::new("ram", vec![0; 4 * CHUNK + 4096 + 1000]));
}

#[test]
fn a_file_behaves_like_a_disk_over_io_uring() {
    on_a_file(tempfile::tempdir().unwrap().path(), Choice::Uring);
}

#[test]
fn a_file_behaves_like_a_disk_over_threads() {
    on_a_file(tempfile::tempdir().unwrap().path(), Choice::Blocking);
}

#[test]
fn a_file_system_without_direct_io_serves_too() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    on_a_file(folder.path(), Choice::Uring);
    on_a_file(folder.path(), Choice::Blocking);
}

#[test]
fn loop_devices_behave_like_disks_over_io_uring() {
    on_loops(Choice::Uring);
}

#[test]
fn loop_devices_behave_like_disks_over_threads() {
    on_loops(Choice::Blocking);
}

#[test]
fn a_new_image_is_a_private_hole_that_can_grow_and_never_replaces_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    let mut disk = RawDisk::create(&path, 3 * CHUNK as u64, Choice::Auto).unwrap();
    assert_eq!(disk.data_range(0).unwrap(), None);
    write(&mut disk, 1 << 20, 65536);
    disk::flush(&mut disk).unwrap();
    assert_eq!(disk.data_range(0).unwrap(), Some(1 << 20..(1 << 20) + 65536));
    assert_eq!(disk.data_range((1 << 20) + 65536).unwrap(), None);
    disk.resize(5 * CHUNK as u64).unwrap();
    assert_eq!(disk.bytes(), 5 * CHUNK as u64);
    write(&mut disk, 4 * CHUNK as u64, 4096);
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap()) & 0o777, 0o600);
    let error = RawDisk::create(&path, 4096, Choice::Auto).err().unwrap();
    assert_eq!(error.kind(), blockferry::error::Kind::Refused);
    assert_eq!(fs::metadata(&path).unwrap().len(), 5 * CHUNK as u64);
}

#[test]
fn what_is_no_disk_is_named() {
    for (path, kind) in [("/", blockferry::error::Kind::Usage), ("/dev/null", blockferry::error::Kind::Usage)] {
        let error = RawDisk::open(Path::new(path), Access::Read, Choice::Blocking).err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(error.chain().starts_with(path), "{}", error.chain());
    }
}
