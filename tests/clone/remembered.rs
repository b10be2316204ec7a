//! What is remembered between runs: how it is shown, and what its loss costs.

use crate::ferry::{Ferry, change_blocks, edit, equal, noise, traces};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: usize = 1 << 20;

fn paired(bytes: usize) -> (Ferry, String, String) {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, bytes)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    (ferry, source, target)
}

/// Every file under a folder with what a write or a replacement would change. The lock names its last
/// holder; that is all it is for.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut everything(&path));
            found.insert(path, Default::default());
        } else if path.file_name().unwrap() != "lock" {
            let about = fs::metadata(&path).unwrap();
            let content = fs::read(&path).unwrap();
            found.insert(path, (about.ino(), about.mtime(), about.mtime_nsec(), content));
        }
    }
    found
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

#[test]
fn a_dry_run_tells_the_amounts_and_writes_nothing() {
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, 2 * MIB));
    let target = ferry.name("target");
    let plan = ferry.clone(&source, &target, &["-n"]);
    assert_eq!((plan.count("sent_blocks"), &plan.0["command"], &plan.0["generation"]), (512, &"plan".into(), &serde_json::Value::Null));
    assert!(!Path::new(&target).exists());
    assert!(everything(&ferry.path("state")).keys().all(|path| path.ends_with("sources") || path.ends_with("replicas")));

    ferry.clone(&source, &target, &[]);
    change_blocks(&source, [1, 2, 400]);
    edit(&source, 1 << 20, &[0; 65536]);
    let before = (everything(&ferry.path("state")), traces(&target));
    let plan = ferry.clone(&source, &target, &["--dry-run"]);
    assert_eq!((plan.count("sent_blocks"), plan.count("zero_extents")), (3, 1));
    assert!(ferry.run(&["clone", &source, &target, "-n"]).stdout.contains("would send 3 blocks"));
    assert!((everything(&ferry.path("state")), traces(&target)) == before, "a dry run wrote");

    // What it said is what happens.
    let done = ferry.clone(&source, &target, &[]);
    assert_eq!((done.count("sent_blocks"), done.count("zero_extents")), (3, 1));
}

/// The source grew: the size is remembered by the run that copies, not by the one that looks.
#[test]
fn a_dry_run_of_a_volume_that_grew_moves_nothing() {
    let (ferry, source, target) = paired(MIB);
    fs::write(&source, noise(1, 2 * MIB)).unwrap();
    fs::File::options().write(true).open(&target).unwrap().set_len(2 << 20).unwrap();
    let before = (everything(&ferry.path("state")), traces(&target));
    ferry.clone(&source, &target, &["-n"]);
    assert!((everything(&ferry.path("state")), traces(&target)) == before, "a dry run wrote");
}

#[test]
fn status_shows_both_halves_of_a_pair() {
    let ferry = Ferry::new();
    let nothing = ferry.run(&["status"]);
    assert_eq!(
        (nothing.code, nothing.stdout),
        (Some(0), format!("no pairs in {}: `blockferry clone SRC DST` makes one\n", ferry.name("state")))
    );
    let (source, target) = (ferry.image("source", &noise(1, MIB)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    let text = ferry.run(&["status"]).stdout;
    assert!(text.contains(&format!("source  {source} → {target}: generation 1 of 20")), "{text}");
    assert!(text.contains(&format!("replica {target} ← {source}: generation 1 of 20")) && text.contains(", clean\n"), "{text}");

    let json = ferry.json(&["status"]);
    let (sender, receiver) = (json.of_type("source").remove(0), json.of_type("replica").remove(0));
    assert_eq!(
        (&sender["source"], &sender["target"], &sender["generation"]),
        (&source.as_str().into(), &target.as_str().into(), &1.into())
    );
    assert_eq!((&receiver["target"], &receiver["generation"], &receiver["stage"]), (&target.as_str().into(), &1.into(), &"clean".into()));
    assert_eq!(sender["relationship"], receiver["relationship"]);
    assert_eq!(receiver["state"].as_str().map(PathBuf::from), Some(ferry.pair("state", "replicas")));
}

#[test]
fn resync_reads_the_replica_anew_and_sends_what_differs() {
    let (ferry, source, target) = paired(4 * MIB);
    change_blocks(&target, [5, 900]);
    // By its path, or as status calls it.
    let relationship = ferry.pair("state", "replicas").file_name().unwrap().to_str().unwrap().to_owned();
    for name in [&target, &relationship] {
        let said = ferry.run(&["resync", name]);
        assert_eq!((said.code, said.stdout), (Some(0), format!("{target}: the next clone reads it anew and sends what differs\n")));
    }
    assert!(ferry.run(&["status"]).stdout.contains("clean, to be read anew by the next clone"));
    assert_eq!(ferry.clone(&source, &target, &[]).count("sent_blocks"), 2);
    equal(&source, &target);
    change_blocks(&target, [77]);
    assert_eq!(ferry.clone(&source, &target, &["--resync"]).count("sent_blocks"), 1);
    equal(&source, &target);
    ferry.run(&["resync", "/no/such"]).says(2, &["/no/such is no replica that", "`blockferry status` lists them"]);
}

#[test]
fn a_manifest_is_shown_and_damage_to_it_is_found() {
    let (ferry, _, _) = paired(40 * MIB);
    for side in ["sources", "replicas"] {
        let file = ferry.pair("state", side).join("manifest");
        let name = file.to_str().unwrap();
        let shown = ferry.json(&["manifest", "show", name]).of_type("manifest").remove(0);
        assert_eq!(
            (&shown["generation"], &shown["sealed"], &shown["extents"], &shown["pages"]),
            (&1.into(), &true.into(), &640.into(), &3.into())
        );
        assert!(ferry.run(&["manifest", "show", name]).stdout.contains("generation   1 (sealed)"));
        assert_eq!(ferry.json(&["manifest", "check", name]).summary().0["root"], shown["root"]);

        let good = fs::read(&file).unwrap();
        for at in [good.len() / 2, good.len() - 5000] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            let ended = ferry.run(&["manifest", "check", name]);
            assert_eq!(ended.code, Some(7), "byte {at}: {ended:?}");
            assert_eq!(ferry.json(&["manifest", "check", name]).code, Some(7));
        }
        fs::write(&file, good).unwrap();
    }
    let foreign = ferry.image("foreign", &noise(1, 10_000));
    ferry.run(&["manifest", "show", &foreign]).says(2, &["is no manifest of blockferry, or its header is damaged"]);
    ferry.run(&["manifest", "show", "/no/such"]).says(2, &["/no/such does not exist"]);
    ferry.run(&["manifest", "check", &foreign]).says(2, &["no record lies beside"]);
}

/// A lost manifest costs a re-read or an exchange of digests. Of a damaged one the sender sends again what
/// the page described (256 extents); the receiver stops before it writes, and says how to go on.
#[test]
fn a_lost_or_damaged_manifest_costs_no_data() {
    for side in ["sources", "replicas"] {
        for damage in [false, true] {
            let (ferry, source, target) = paired(40 * MIB);
            let manifest = ferry.pair("state", side).join("manifest");
            if damage {
                let mut content = fs::read(&manifest).unwrap();
                let at = content.len() - 6000;
                content[at] ^= 0x10;
                fs::write(&manifest, content).unwrap();
            } else {
                fs::remove_file(&manifest).unwrap();
            }
            change_blocks(&source, [1, 1000, 2047]);
            let stops = damage && side == "replicas";
            if stops {
                let before = traces(&target);
                ferry.run(&["clone", &source, &target]).says(1, &["of the manifest is damaged", "run again with --resync"]);
                assert_eq!(traces(&target), before);
            }
            let summary = ferry.clone(&source, &target, if stops { &["--resync"] } else { &[] });
            let (sent, page_blocks) = (summary.count("sent_blocks"), 256 * 16);
            let most = if damage && side == "sources" { 3 + page_blocks } else { 3 };
            assert!((3..=most).contains(&sent), "{side}, damaged: {damage}: {sent} blocks");
            assert_eq!(summary.count("generation"), 2);
            equal(&source, &target);
            ferry.clone(&source, &target, &[]).sent_nothing();
        }
    }
}

/// The sender's memory is as before a run whose acknowledgement never came: only what changed since travels.
#[test]
fn a_lost_acknowledgement_costs_no_data() {
    let (ferry, source, target) = paired(8 * MIB);
    let (sources, kept) = (ferry.path("state").join("sources"), ferry.path("kept"));
    copy_folder(&sources, &kept);
    change_blocks(&source, 0..500);
    assert_eq!(ferry.clone(&source, &target, &[]).count("generation"), 2);
    copy_folder(&kept, &sources);
    let again = ferry.clone(&source, &target, &[]);
    again.sent_nothing();
    assert_eq!(again.count("generation"), 3);
    copy_folder(&kept, &sources);
    change_blocks(&source, [3]);
    assert_eq!(ferry.clone(&source, &target, &[]).count("sent_blocks"), 1);
    equal(&source, &target);
}

/// The sender's whole state is gone: the target is taken on again as any old copy.
#[test]
fn a_lost_state_directory_costs_a_look_and_no_data() {
    for gone in [&["sources"][..], &["sources", "replicas"]] {
        let (ferry, source, target) = paired(4 * MIB);
        gone.iter().for_each(|side| fs::remove_dir_all(ferry.path("state").join(side)).unwrap());
        change_blocks(&source, [1, 2]);
        assert_eq!(ferry.run(&["clone", &source, &target]).code, Some(8));
        assert_eq!(ferry.clone(&source, &target, &["--overwrite"]).count("sent_blocks"), 2);
        equal(&source, &target);
    }
}

#[test]
fn a_pair_keeps_the_extents_and_the_digest_it_was_made_with() {
    let (ferry, source, target) = paired(MIB);
    ferry.run(&["clone", &source, &target, "--extent-size", "4K"]).says(2, &["this pair was made with extents of 65536 bytes"]);
    ferry.run(&["clone", &source, &target, "--hash", "blake3"]).says(2, &["this pair was made with the digest"]);
    ferry.clone(&source, &target, &["--extent-size", "64K", "--hash", "xxh3"]).sent_nothing();
}

/// The same image under another name, and the same target: the pair is found by what they are.
#[test]
fn a_pair_is_found_under_other_names() {
    let (ferry, source, target) = paired(MIB);
    std::os::unix::fs::symlink(&source, ferry.path("alias")).unwrap();
    std::os::unix::fs::symlink(&target, ferry.path("other")).unwrap();
    let summary = ferry.clone(&ferry.name("alias"), &ferry.name("other"), &[]);
    summary.sent_nothing();
    assert_eq!(summary.count("generation"), 2);
}
