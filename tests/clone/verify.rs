//! `verify` reads both sides and says exactly what differs; `--repair` sends exactly that.

use crate::ferry::{BLOCK, Ferry, change_blocks, edit, equal, noise, traces};

const MIB: usize = 1 << 20;

/// Four places: two neighbouring blocks, one alone, a zeroed extent, the short last block.
fn damaged() -> (Ferry, String, String, Vec<(u64, u64)>) {
    let ferry = Ferry::new();
    let bytes = 4 * MIB + 1000;
    let (source, target) = (ferry.image("source", &noise(1, bytes)), ferry.name("target"));
    ferry.clone(&source, &target, &[]);
    change_blocks(&target, [10, 11, 500, 1024]);
    edit(&target, 2 << 20, &[0; 65536]);
    let block = BLOCK as u64;
    (ferry, source, target, vec![(10 * block, 2 * block), (500 * block, block), (2 << 20, 65536), (1024 * block, 1000)])
}

#[test]
fn every_differing_range_is_reported_and_nothing_is_written() {
    let (ferry, source, target, ranges) = damaged();
    let before = traces(&target);
    let ended = ferry.json(&["verify", &source, &target]);
    assert_eq!(ended.code, Some(7));
    let told: Vec<(u64, u64)> =
        ended.of_type("difference").iter().map(|line| (line["offset"].as_u64().unwrap(), line["bytes"].as_u64().unwrap())).collect();
    assert_eq!(told, ranges);
    let summary = ended.of_type("summary").remove(0);
    let bytes: u64 = ranges.iter().map(|range| range.1).sum();
    assert_eq!((&summary["differing_ranges"], &summary["differing_bytes"]), (&4.into(), &bytes.into()));
    assert_eq!((&summary["differing_extents"], &summary["repaired"]), (&4.into(), &false.into()));
    assert_eq!(traces(&target), before);

    let text = ferry.run(&["verify", &source, &target]);
    text.says(7, &["4 extents differ", "in 4 ranges; `blockferry verify --repair` sends just that"]);
    assert!(text.stdout.starts_with("differs: 8192 bytes at 0xa000 (extent 0)\n"), "{}", text.stdout);
    // A look remembers nothing.
    let mut left: Vec<_> = std::fs::read_dir(ferry.path("state")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "replicas", "sources"]);
}

#[test]
fn a_repair_sends_what_differs_and_nothing_else() {
    for way in ["", "there:"] {
        let (ferry, source, target, ranges) = damaged();
        let remote = ferry.remote();
        let there = format!("{way}{target}");
        let mut arguments = vec!["verify", &source, &there, "--repair"];
        if !way.is_empty() {
            // The pair is made anew over there: an old copy is taken on.
            arguments.extend(remote.iter().map(String::as_str));
            let found = ferry.json(&[&arguments[..3], &arguments[4..]].concat());
            assert_eq!((found.code, found.of_type("difference").len()), (Some(7), 4));
            continue;
        }
        let ended = ferry.json(&arguments);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.of_type("difference").len(), ranges.len());
        let repair = ended.of_type("summary").pop().unwrap();
        let blocks: u64 = ranges.iter().map(|range| range.1.div_ceil(BLOCK as u64)).sum();
        assert_eq!((&repair["command"], &repair["sent_blocks"]), (&"repair".into(), &blocks.into()));
        equal(&source, &target);
        let again = ferry.run(&["verify", &source, &target]);
        assert_eq!(again.code, Some(0));
        assert!(again.stdout.contains(": equal; read 4.00 MiB of the source"), "{}", again.stdout);
    }
}

#[test]
fn a_replica_over_the_link_is_verified_and_repaired() {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 2 * MIB)), ferry.name("target"));
    let (remote, there) = (ferry.remote(), format!("there:{target}"));
    let options: Vec<&str> = remote.iter().map(String::as_str).collect();
    ferry.clone(&source, &there, &options);
    assert_eq!(ferry.run(&[&["verify", &source, &there], options.as_slice()].concat()).code, Some(0));
    change_blocks(&target, [7]);
    let ended = ferry.json(&[&["verify", &source, &there, "--repair"], options.as_slice()].concat());
    assert_eq!((ended.code, &ended.of_type("summary")[1]["sent_blocks"]), (Some(0), &1.into()));
    equal(&source, &target);
}

#[test]
fn verify_works_without_any_pair() {
    let ferry = Ferry::new();
    let (one, two) = (ferry.image("one", &noise(1, MIB)), ferry.image("two", &noise(1, MIB)));
    assert_eq!(ferry.run(&["verify", &one, &two]).code, Some(0));
    change_blocks(&two, [0]);
    assert_eq!(ferry.run(&["verify", &one, &two]).code, Some(7));
    ferry.run(&["verify", &one, &ferry.name("three")]).says(8, &["three does not exist"]);
    assert_eq!(ferry.run(&["status"]).stdout.lines().count(), 1);
}

/// `(offset, bytes)` of each difference that was told.
fn told(ended: &crate::ferry::Ended) -> Vec<(u64, u64)> {
    ended.of_type("difference").iter().map(|line| (line["offset"].as_u64().unwrap(), line["bytes"].as_u64().unwrap())).collect()
}

#[test]
fn slices_together_read_everything_once_and_find_what_a_full_look_finds() {
    let (ferry, source, target, ranges) = damaged();
    let (mut found, mut read) = (Vec::new(), 0);
    for number in 1..=4 {
        let ended = ferry.json(&["verify", &source, &target, "--slice", &format!("{number}/4")]);
        let summary = ended.of_type("summary").remove(0);
        assert_eq!(summary["part"], format!("slice {number}/4"));
        read += summary["read_bytes"].as_u64().unwrap();
        let these = told(&ended);
        assert_eq!(ended.code, Some(if these.is_empty() { 0 } else { 7 }));
        found.extend(these);
    }
    assert_eq!((found, read), (ranges, 4 * MIB as u64 + 1000));
    ferry.run(&["verify", &source, &target, "--slice", "5/4"]).says(2, &["2/4 is the second of four"]);
    ferry.run(&["verify", &source, &target, "--slice", "1/4", "--sample", "3"]).says(2, &["cannot be used with"]);
}

#[test]
fn a_sample_reads_its_extents_alone_and_its_seed_repeats_it() {
    let (ferry, source, target, _) = damaged();
    let (remote, there) = (ferry.remote(), format!("there:{target}"));
    let options: Vec<&str> = remote.iter().map(String::as_str).collect();
    let sample = |extents: &str, seed: &str, target: &str, options: &[&str]| {
        let ended = ferry.json(&[&["verify", &source, target, "--sample", extents, "--seed", seed], options].concat());
        let read = ended.of_type("summary")[0]["read_bytes"].as_u64().unwrap();
        (told(&ended), read)
    };
    let some = sample("20", "7", &target, &[]);
    assert!((19 * 65536..=20 * 65536).contains(&some.1), "{}", some.1);
    assert_eq!(some, sample("20", "7", &target, &[]));
    assert_eq!(some, sample("20", "7", &there, &options), "the other host reads the same extents");
    assert_ne!(some.0, sample("20", "8", &target, &[]).0);
    assert_eq!(sample("5000", "1", &target, &[]).0.len(), 4, "a sample of everything is everything");
    let printed = ferry.run(&["verify", &source, &target, "--sample", "1"]);
    assert!(printed.stdout.starts_with("comparing a sample of 1 extents, seed "), "{}", printed.stdout);
}

#[test]
fn an_older_receiver_is_verified_as_a_whole_and_refused_in_parts() {
    let (ferry, source, target, ranges) = damaged();
    let (remote, there) = (ferry.remote(), format!("there:{target}"));
    // Greets as the version before did.
    let old = ferry.path("old.sh");
    std::fs::write(
        &old,
        format!("{} \"$@\" | {{ read -r program version word range; echo \"$program $version $word 1-2\"; exec cat; }}\n", remote[3]),
    )
    .unwrap();
    let options = ["--rsh", &remote[1], "--remote-program", &format!("sh {}", old.display())];
    let whole = ferry.json(&[&["verify", &source, &there][..], &options].concat());
    assert_eq!((whole.code, told(&whole)), (Some(7), ranges));
    let part = ferry.run(&[&["verify", &source, &there, "--slice", "1/4"][..], &options].concat());
    part.says(8, &["speaks stream version 2 and can only be verified as a whole"]);
}

/// A job with one volume and two local receivers, replicated once.
fn job() -> (Ferry, String, [String; 2], String) {
    let ferry = Ferry::new();
    let source = ferry.image("source", &noise(1, 4 * MIB + 1000));
    let targets = [ferry.name("one"), ferry.name("two/replica")];
    std::fs::create_dir(ferry.path("two")).unwrap();
    targets.iter().for_each(|target| {
        ferry.clone(&source, target, &[]);
    });
    let job = |name: &str, target: &str| {
        format!("[[job]]\nname = \"{name}\"\nreceivers = [\"here\"]\nvolumes = [{{ source = \"{source}\", replica = \"{target}\" }}]\n")
    };
    let text = format!("[[receiver]]\nname = \"here\"\nlocal = true\n{}{}", job("db", &targets[0]), job("web", &targets[1]));
    std::fs::write(ferry.path("agent.toml"), text).unwrap();
    let config = ferry.name("agent.toml");
    (ferry, source, targets, config)
}

#[test]
fn a_job_is_compared_with_what_was_replicated_and_not_with_its_volume() {
    let (ferry, source, [target, _], config) = job();
    // Written to since: no difference, and not read.
    change_blocks(&source, 0..500);
    let ended = ferry.json(&["verify", "db", "--config", &config]);
    assert_eq!((ended.code, told(&ended).len()), (Some(0), 0), "{ended:?}");
    let before = traces(&target);
    change_blocks(&target, [10, 11, 1024]);
    edit(&target, 2 << 20, &[0; 65536]);
    let changed = traces(&target);
    assert_ne!(before, changed);
    let ended = ferry.json(&["verify", "db", "--config", &config]);
    assert_eq!(ended.code, Some(7));
    // What lies here are extents' digests: an extent is what differs.
    assert_eq!(told(&ended), [(0, 65536), (2 << 20, 65536), (4 << 20, 1000)]);
    assert_eq!(traces(&target), changed, "nothing was written");
    let text = ferry.run(&["verify", "db", "--config", &config, "--slice", "1/4"]);
    text.says(
        7,
        &["differs from what was replicated to it in 1 extents; `blockferry verify --repair db` sends it, with what its source has new"],
    );
    assert_eq!(ferry.run(&["verify", "web", "--config", &config]).code, Some(0), "the other job's replica is what it was");

    let ended = ferry.json(&["verify", "db", "--config", &config, "--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    equal(&source, &target);
    assert_eq!(ferry.run(&["verify", "db", "--config", &config]).code, Some(0));
}

#[test]
fn what_a_person_finds_is_critical_until_all_of_it_was_compared_or_repaired() {
    let (ferry, _, [target, _], config) = job();
    let verify = |more: &[&str]| ferry.run(&[&["verify", "db", "--config", &config][..], more].concat()).code;
    let is_critical = |what: bool| {
        let ended = ferry.run(&["monitor", "db", "--config", &config]);
        assert_eq!(ended.stdout.contains("verify-mismatch"), what, "{ended:?}");
    };
    assert_eq!(verify(&[]), Some(0));
    is_critical(false);
    let whole = std::fs::read(&target).unwrap();
    edit(&target, 2 << 20, &[0; 65536]);
    assert_eq!(verify(&["--slice", "1/4"]), Some(0), "it lies in another part");
    is_critical(false);
    assert_eq!(verify(&["--slice", "3/4"]), Some(7));
    is_critical(true);
    assert_eq!(verify(&["--slice", "1/4"]), Some(0));
    is_critical(true);
    assert_eq!(verify(&["--slice", "3/4", "--repair"]), Some(0), "a repair reads all of it anew");
    is_critical(false);

    edit(&target, 0, &[0; 65536]);
    assert_eq!(verify(&[]), Some(7));
    is_critical(true);
    edit(&target, 0, &whole[..65536]);
    assert_eq!(verify(&[]), Some(0));
    is_critical(false);
}

#[test]
fn a_job_without_a_replica_and_a_name_without_a_job_are_told_apart() {
    let (ferry, source, [target, _], config) = job();
    ferry.run(&["verify", "dv", "--config", &config]).says(2, &["there is no job \"dv\"; there is db, web", "verify SRC DST"]);
    std::fs::remove_dir_all(ferry.path("state")).unwrap();
    ferry.run(&["verify", "db", "--config", &config]).says(1, &["was never replicated to", &target, &source]);
}

#[test]
fn a_replica_that_went_on_without_us_is_no_difference_but_a_failure() {
    let (ferry, source, [target, _], config) = job();
    let sources = ferry.path("state/sources");
    // The sender's memory is a day old.
    let saved = ferry.path("saved");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).status().unwrap().success());
    };
    copy(&sources, &saved);
    change_blocks(&source, [3]);
    ferry.clone(&source, &target, &[]);
    std::fs::remove_dir_all(&sources).unwrap();
    copy(&saved, &sources);
    ferry.run(&["verify", "db", "--config", &config]).says(1, &["the replica is at generation 2, and this host knows of 1"]);
}
