//! What `make fuzz` begins with and what it ever found, without a fuzzer: every input is replayed, and the seeds are
//! those that today's code makes.
//!
//! `BLOCKFERRY_BLESS=1 cargo test --test fuzz` writes the seeds anew: after a new format version, or a new choice in a
//! target's story.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code)]
mod targets;

use blockferry::digest::Digest;
use blockferry::format::codec::Writer;
use blockferry::format::stream::{self, *};
use blockferry::state::{RECORD, ReplicaRecord, SourceRecord};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use targets::sim::Store;

type Run = fn(&[u8]);

const TARGETS: [(&str, Run); 7] = [
    ("config", targets::config::run),
    ("journal", targets::journal::run),
    ("manifest", targets::manifest::run),
    ("record", targets::record::run),
    ("session", targets::session::run),
    ("stream", targets::stream::run),
    ("token", targets::token::run),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The sections of a golden file.
fn golden(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let (mut sections, mut bytes) = (Vec::new(), Vec::new());
    for line in fs::read_to_string(path).expect("a golden file").lines() {
        let Some((offset, hex)) = line.split_once("  ").filter(|_| !line.starts_with('#')) else { continue };
        bytes.resize(usize::from_str_radix(offset, 16).expect("an offset"), 0);
        match hex {
            "end" => sections.push(std::mem::take(&mut bytes)),
            _ => bytes.extend(hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))),
        }
    }
    sections
}

/// Behind the byte that says how the target takes them.
fn behind(first: u8, bytes: &[u8]) -> Vec<u8> {
    [&[first], bytes].concat()
}

/// A text without its comments: they teach a fuzzer nothing.
fn bare(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

fn records() -> [(&'static str, Vec<u8>); 2] {
    let (store, _) = targets::session::replicated();
    let replica = ReplicaRecord::load(&store).expect("a record").expect("a record");
    let source = SourceRecord {
        relationship: replica.relationship,
        epoch: replica.epoch,
        generation: 3,
        root: Digest([4; 16]),
        source: replica.target.clone(),
        target: "/replica".into(),
        volume_bytes: replica.volume_bytes,
        extent_bytes: replica.extent_bytes,
        algorithm: replica.algorithm,
        secret: replica.secret,
        source_time_ms: 8,
        changed_bytes: Some(4096),
    };
    let json = |store: &Store| {
        let content = store.content(RECORD).expect("it was stored");
        let line = content.iter().position(|byte| *byte == b'\n').expect("a first line");
        content[line + 1..].to_vec()
    };
    let other = Store::default();
    source.store(&other).expect("it can be stored");
    [("replica", behind(2, &json(&store))), ("source", behind(3, &json(&other)))]
}

fn seeds() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut seed = |name: &str, bytes: Vec<u8>| assert!(all.insert(name.to_owned(), bytes).is_none(), "{name} twice");
    seed("stream/greeting", behind(0, greeting().as_bytes()));
    for (at, bytes) in golden("lane-v1.hex").iter().enumerate() {
        seed(&format!("stream/lane-{at}"), behind(0, bytes));
    }
    for version in stream::VERSIONS {
        for (at, frame) in golden(&format!("stream-v{version}.hex")).into_iter().enumerate() {
            let kind = stream::header(&frame).expect("a golden frame").expect("a whole one").kind;
            let name = format!("{kind:?}-v{version}-{at}").to_lowercase();
            seed(&format!("stream/{name}"), behind(0, &frame));
            // The same as a body under a check that is made for it.
            let kind = targets::stream::KINDS.iter().position(|other| *other == kind).expect("every kind is listed") as u8;
            let body = &frame[HEADER_BYTES..];
            let head = [1, kind, 0, body.len() as u8, (body.len() >> 8) as u8];
            seed(&format!("stream/body-{name}"), [&head[..], body].concat());
        }
    }
    seed("manifest/golden", behind(1, &golden("manifest-v1.hex")[0][..5000]));
    // Data, a zero range, padding; a seal.
    seed("journal/sealed", vec![0, 0, 4, 0, 3, 3, 200, 3, 9, 2, 4, 1, 0, 0, 20, 1, 9, 7, 0]);
    seed("journal/unfinished", vec![0, 0, 0, 0, 3, 3, 200, 3, 9, 2]);
    seed("journal/cut", vec![0, 0, 0, 0, 3, 3, 200, 7, 0, 9, 0]);
    seed("journal/header", vec![3, 20, 1, 7, 0]);
    for (name, bytes) in records() {
        seed(&format!("record/{name}"), bytes);
    }
    seed("config/receiver", behind(0, bare(blockferry::serve::config::EXAMPLE).as_bytes()));
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/agent.toml");
    seed("config/agent", behind(1, bare(&fs::read_to_string(agent).expect("the example")).as_bytes()));
    let mut token = Writer::default();
    token.string("dr1.example:7420").raw(&[1; 32]).raw(&[2; 32]).string("db-*").u64(1_800_000_000_000);
    seed("token/whole", behind(1, &token.finish()));
    // From a clean replica: a delta of a part and two whole extents, zeros, the end; cut into pieces of 4096 bytes.
    let delta = [0, 0, 0, 1, 4, 0, 3, 1, 200, 1, 1, 0, 10, 3, 7, 3, 8, 6, 20, 2, 9];
    let tail = [0xff, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    seed("session/increment", [&[0], &delta[..], &tail].concat());
    seed("session/direct-increment", [&[4], &delta[..], &tail].concat());
    seed("session/first-copy", [&[2], &delta[..], &tail].concat());
    seed("session/onto-something", [&[3], &delta[..], &tail].concat());
    // Without its end; then the power goes, and the next session goes on.
    let cut = [0, 0, 0, 1, 8, 0, 3, 3, 200, 16];
    // What lies in the journal comes whole where it changes again.
    let rest = [0, 0, 0, 1, 4, 0, 3, 3, 201, 9];
    let power = [0xff, 0x0f, 7, 0, 0, 0, 0, 0, 0, 0, 3];
    seed("session/cut-and-on", [&[0], &cut[..], &power, &rest, &tail].concat());
    seed("session/survey", vec![0, 0, 11, 0, 0, 9]);
    seed("session/lies", vec![0, 6, 3, 0, 0, 1, 0, 2, 3, 3, 200, 9]);
    all
}

/// The files of a folder of inputs: target and name, and what is in each.
fn inputs(name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (target, _) in TARGETS {
        for entry in fs::read_dir(folder(name).join(target)).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let file = path.file_name().and_then(|file| file.to_str()).expect("plain names");
            all.insert(format!("{target}/{file}"), fs::read(&path).expect("an input"));
        }
    }
    all
}

#[test]
fn the_seeds_are_those_that_todays_code_makes() {
    let seeds = seeds();
    if std::env::var_os("BLOCKFERRY_BLESS").is_some() {
        let _ = fs::remove_dir_all(folder("seeds"));
        for (name, bytes) in &seeds {
            let path = folder("seeds").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, bytes).expect("a seed");
        }
    }
    let stored = inputs("seeds");
    assert_eq!(stored.keys().collect::<Vec<_>>(), seeds.keys().collect::<Vec<_>>(), "BLOCKFERRY_BLESS=1 writes them anew");
    for (name, bytes) in &seeds {
        assert!(stored[name] == *bytes, "{name} is another one today: BLOCKFERRY_BLESS=1 writes it anew");
    }
    let total: usize = seeds.values().map(Vec::len).sum();
    assert!(total < 256 << 10, "{total} bytes of seeds");
}

#[test]
fn every_seed_and_every_find_is_withstood() {
    let all: Vec<(String, Vec<u8>)> = inputs("seeds").into_iter().chain(inputs("regressions")).collect();
    assert!(all.len() >= TARGETS.len());
    for (name, bytes) in all {
        let (target, _) = name.split_once('/').expect("a target and a name");
        let (_, run) = TARGETS.iter().find(|(known, _)| *known == target).expect("a target");
        println!("{name}");
        run(&bytes);
    }
}

/// A target whose seeds go astray at the first byte would find nothing.
#[test]
fn the_seeds_reach_what_they_are_for() {
    let seeds = seeds();
    let text = |name: &str| String::from_utf8(seeds[name][1..].to_vec()).expect("text");
    let receiver = blockferry::serve::config::ReceiverConfig::parse(&text("config/receiver"), "seed").expect("a valid one");
    assert!(receiver.replicas.len() > 2);
    blockferry::agent::config::AgentConfig::parse(&[("seed".to_owned(), text("config/agent"))]).expect("a valid one");
    for name in ["session/increment", "session/direct-increment", "session/first-copy"] {
        assert_eq!(targets::session::committed(&seeds[name]), 1, "{name}");
    }
    assert_eq!(targets::session::committed(&seeds["session/cut-and-on"]), 1);
    assert_eq!(targets::session::committed(&seeds["session/lies"]), 0);
}

/// Some bytes that no seed has: the fuzzers' stories hold for any.
#[test]
fn arbitrary_bytes_are_withstood() {
    let mut random = targets::sim::Random(1);
    for (target, run) in TARGETS {
        for _ in 0..if ["session", "journal"].contains(&target) { 60 } else { 1000 } {
            let mut bytes = vec![0; random.below(400) as usize];
            random.fill(&mut bytes);
            // The first bytes choose what is told: small ones are choices more often.
            bytes.iter_mut().for_each(|byte| *byte = if random.coin() { *byte % 16 } else { *byte });
            run(&bytes);
        }
    }
}
