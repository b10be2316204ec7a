//! Memory is bounded and does not grow with the volume.

use crate::ferry::{Ended, Ferry, allocated, edit, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const TIB: u64 = 1 << 40;
const RSS_MAX_KIB: u64 = 64 << 10;

/// Runs to the end; the peak of its resident memory in KiB, as the kernel keeps it for this program
/// alone (`ru_maxrss` would count the test's own size at the fork).
fn watched(ferry: &Ferry, arguments: &[&str]) -> (Ended, u64) {
    let mut child = ferry.start(arguments);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("a child").is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak = line.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(1));
    }
    (Ended::of(child.wait_with_output().expect("what it said")), peak)
}

#[test]
fn a_tebibyte_of_holes_is_cloned_in_little_memory() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.hole("source", TIB), ferry.name("target"));
    let places: Vec<u64> = (0..8).map(|at| at * (TIB / 8) + at * 12_288).chain([TIB - (512 << 10)]).collect();
    places.iter().for_each(|at| edit(&source, *at, &noise(*at + 1, 512 << 10)));

    let (ended, peak) = watched(&ferry, &["clone", &source, &target, "--json"]);
    let first = ended.summary();
    // Each piece touches at most one extent more than it is long.
    let most = places.len() as u64 * (576 << 10);
    assert!(first.count("read_bytes") <= most, "{first:?}");
    assert_eq!(first.count("sent_blocks"), places.len() as u64 * 128);
    assert!(peak > 0 && peak < RSS_MAX_KIB, "the first copy took {peak} KiB");
    assert!(allocated(&target) <= most, "{} bytes", allocated(&target));
    assert_eq!(fs::metadata(&target).unwrap().len(), TIB);

    edit(&source, TIB / 2 + (3 << 30), &noise(7, 4096));
    let (ended, peak_again) = watched(&ferry, &["clone", &source, &target, "--json"]);
    assert_eq!(ended.summary().count("sent_blocks"), 1);
    assert!(peak_again > 0 && peak_again < RSS_MAX_KIB, "the increment took {peak_again} KiB");

    let (from, to) = (File::open(&source).unwrap(), File::open(&target).unwrap());
    for at in places.into_iter().chain([TIB / 2 + (3 << 30)]) {
        let (mut wanted, mut found) = (vec![0; 512 << 10], vec![1; 512 << 10]);
        from.read_exact_at(&mut wanted, at).unwrap();
        to.read_exact_at(&mut found, at).unwrap();
        assert!(wanted == found, "{at:#x} differs");
    }
    eprintln!("peak memory: {peak} KiB for the first copy, {peak_again} KiB for the increment");
}

/// Data this time: ten times what may be resident.
#[test]
fn many_bytes_pass_through_little_memory() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.name("source"), ferry.name("target"));
    let file = File::create(&source).unwrap();
    let piece = noise(1, 8 << 20);
    (0..24).for_each(|at| file.write_all_at(&piece, at * (8 << 20)).unwrap());
    drop(file);
    let (ended, peak) = watched(&ferry, &["clone", &source, &target, "--json"]);
    assert_eq!(ended.summary().count("plain_bytes"), 192 << 20);
    assert!(peak > 0 && peak < RSS_MAX_KIB, "192 MiB took {peak} KiB");
}
