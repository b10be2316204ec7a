//! Loop devices of both sector sizes as source and as target.

use crate::ferry::{BLOCK, Ferry, change_blocks, edit, noise};
use crate::loops::{Loop, is_root};
use std::fs;

const BYTES: usize = (6 << 20) + 3 * 4096;

fn text(device: &Loop) -> String {
    device.0.to_str().expect("test paths are plain text").to_owned()
}

#[test]
fn loop_devices_follow_each_other() {
    if !is_root("loop devices as source and target") {
        return;
    }
    for (sectors, engine, odd) in [((512, 4096), "uring", 0), ((4096, 512), "blocking", 0), ((512, 512), "blocking", 3 * 512)] {
        let ferry = Ferry { engine, ..Ferry::new() };
        ferry.image("source", &noise(1, BYTES + odd));
        ferry.hole("target", (BYTES + odd) as u64);
        let (from, to) = (Loop::over(&ferry.path("source"), sectors.0), Loop::over(&ferry.path("target"), sectors.1));
        let (source, target) = (text(&from), text(&to));
        let equal = || assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap(), "{source} {target} differ");

        let first = ferry.clone(&source, &target, &[]);
        assert_eq!(first.count("plain_bytes"), (BYTES + odd) as u64);
        equal();
        ferry.clone(&source, &target, &[]).sent_nothing();
        change_blocks(&source, [0, 17, 18, 1000]);
        let some = ferry.clone(&source, &target, &[]);
        assert_eq!((some.count("sent_blocks"), some.count("written_bytes")), (4, 4 * BLOCK as u64));
        equal();
        edit(&source, 1 << 20, &vec![0; 1 << 20]);
        let zeros = ferry.clone(&source, &target, &[]);
        assert_eq!((zeros.count("zero_extents"), zeros.count("sent_blocks")), (16, 0));
        equal();
        assert_eq!(ferry.run(&["verify", &source, &target]).code, Some(0));
    }
}

#[test]
fn a_device_and_a_file_follow_each_other() {
    if !is_root("loop devices as source and target") {
        return;
    }
    let ferry = Ferry::new();
    ferry.image("volume", &noise(1, BYTES));
    let device = Loop::over(&ferry.path("volume"), 4096);
    let (source, copy) = (text(&device), ferry.name("copy"));
    ferry.clone(&source, &copy, &[]);
    assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
    ferry.hole("blank", BYTES as u64 + 8192);
    let larger = Loop::over(&ferry.path("blank"), 512);
    // The copy's size is no multiple of the larger device's, nor does it fill it.
    ferry.clone(&copy, &text(&larger), &[]);
    assert!(fs::read(&copy).unwrap() == fs::read(&larger.0).unwrap()[..BYTES]);
}
