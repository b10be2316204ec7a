//! One owner at a time; the second learns who is at work.

use crate::ferry::{Ferry, noise};
use std::fs::{self, File};
use std::path::Path;

/// Holds a lock as a running process would.
fn hold(folder: &Path) -> File {
    let path = folder.join("lock");
    fs::write(&path, "4242\n").expect("a lock file");
    let file = File::options().read(true).write(true).open(path).expect("a lock file");
    file.lock().expect("the lock");
    file
}

#[test]
fn the_second_run_exits_5_and_names_the_first() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 100_000)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    for side in ["sources", "replicas"] {
        let held = hold(&ferry.pair("state", side));
        let ended = ferry.run(&["clone", &source, &target]);
        ended.says(5, &["is in use by process 4242: wait for it, or stop it with `kill`"]);
        assert_eq!(ferry.json(&["clone", &source, &target]).of_type("error")[0]["kind"], "locked");
        if side == "replicas" {
            ferry.run(&["resync", &target]).says(5, &["process 4242"]);
        }
        drop(held);
    }
    ferry.clone(&source, &target, &[]).sent_nothing();
}

/// Two real runs at once: one of them wins, and the replica is right.
#[test]
fn of_two_runs_at_once_one_is_turned_away() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 24 << 20)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    let runs = [ferry.start(&["clone", &source, &target, "--resync"]), ferry.start(&["clone", &source, &target, "--resync"])];
    let codes: Vec<Option<i32>> = runs.map(|run| run.wait_with_output().expect("its end").status.code()).into();
    assert!(codes.contains(&Some(0)) && codes.iter().all(|code| matches!(code, Some(0 | 5))), "{codes:?}");
}
