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
