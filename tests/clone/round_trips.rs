//! Random volumes, changes and ways: after every run the replica equals the source, and what travelled
//! is what a model counts that knows nothing of digests.

use crate::ferry::{BLOCK, Ferry, Summary, allocated, equal, noise, traces};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Where the two ends run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Local,
    Push,
    Pull,
}

/// What happens to the source between two runs.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    /// One byte in each of some blocks.
    Blocks(Vec<Index>),
    /// Random bytes over a range that begins and ends anywhere.
    Bytes(Index, Index),
    /// Zeros over a range that begins and ends anywhere.
    Zeros(Index, Index),
    /// Zeros over whole extents.
    ZeroExtents(Index, Index),
    Everything,
}

#[derive(Clone, Debug)]
struct Case {
    bytes: usize,
    extent_bytes: usize,
    /// Zeros in the first content; sparse: they are holes of the file.
    holes: Vec<(Index, Index)>,
    sparse: bool,
    changes: Vec<Change>,
    engine: &'static str,
    hash: &'static str,
    compress: &'static str,
    shards: &'static str,
    way: Way,
}

fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => 1..3 * BLOCK,
        2 => BLOCK..300_000usize,
        2 => (1usize..9 << 10).prop_map(|sectors| sectors * 512),
        2 => (1usize..4, 0..8195usize).prop_map(|(chunks, odd)| (chunks << 20) + odd - 1),
        1 => 4 << 20..(9usize << 20) + 7,
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Nothing),
        3 => prop::collection::vec(any::<Index>(), 1..40).prop_map(Change::Blocks),
        2 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Bytes(from, to)),
        3 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Zeros(from, to)),
        2 => any::<(Index, Index)>().prop_map(|(from, to)| Change::ZeroExtents(from, to)),
        1 => Just(Change::Everything),
    ]
}

fn any_case() -> impl Strategy<Value = Case> {
    let what = (any_size(), 12u32..23, prop::collection::vec(any::<(Index, Index)>(), 0..4), any::<bool>());
    let then = prop::collection::vec(any_change(), 1..4);
    let how = (
        prop::sample::select(vec!["uring", "blocking"]),
        prop::sample::select(vec!["xxh3", "xxh3", "blake3"]),
        (prop::sample::select(vec!["none", "auto", "-3", "7"]), prop::sample::select(vec!["auto", "1", "3"])),
        prop::sample::select(vec![Way::Local, Way::Local, Way::Push, Way::Pull]),
    );
    (what, then, how).prop_map(|((bytes, shift, holes, sparse), changes, (engine, hash, (compress, shards), way))| Case {
        bytes,
        extent_bytes: 1 << shift,
        holes,
        sparse,
        changes,
        engine,
        hash,
        compress,
        shards,
        way,
    })
}

/// The byte range between two points, in either order; never empty.
fn between(a: &Index, b: &Index, bytes: usize) -> Range<usize> {
    let (a, b) = (a.index(bytes), b.index(bytes));
    a.min(b)..a.max(b) + 1
}

impl Change {
    fn apply(&self, content: &mut [u8], extent_bytes: usize, seed: u64) {
        let bytes = content.len();
        match self {
            Change::Nothing => {}
            Change::Blocks(blocks) => blocks.iter().for_each(|block| {
                let at = block.index(bytes);
                content[at] ^= 0x55;
            }),
            Change::Bytes(from, to) => {
                let range = between(from, to, bytes);
                let fresh = noise(seed, range.len());
                content[range].copy_from_slice(&fresh);
            }
            Change::Zeros(from, to) => content[between(from, to, bytes)].fill(0),
            Change::ZeroExtents(from, to) => {
                let range = between(from, to, bytes.div_ceil(extent_bytes));
                content[range.start * extent_bytes..(range.end * extent_bytes).min(bytes)].fill(0);
            }
            Change::Everything => content.copy_from_slice(&noise(seed, bytes)),
        }
    }
}

/// What one run should count.
#[derive(Debug, Default, PartialEq, Eq)]
struct Amounts {
    changed_extents: u64,
    zero_extents: u64,
    sent_blocks: u64,
    plain_bytes: u64,
    written_bytes: u64,
}

impl Amounts {
    /// From what the replica holds to what the source is.
    fn between(held: &[u8], now: &[u8], extent_bytes: usize) -> Amounts {
        let mut amounts = Amounts::default();
        for (held, now) in held.chunks(extent_bytes).zip(now.chunks(extent_bytes)).filter(|(held, now)| held != now) {
            amounts.changed_extents += 1;
            if now.iter().all(|byte| *byte == 0) {
                amounts.zero_extents += 1;
                amounts.written_bytes += now.len() as u64;
                continue;
            }
            for (_, block) in held.chunks(BLOCK).zip(now.chunks(BLOCK)).filter(|(held, now)| held != now) {
                amounts.sent_blocks += 1;
                amounts.plain_bytes += block.len() as u64;
                amounts.written_bytes += block.len() as u64;
            }
        }
        amounts
    }

    fn told(summary: &Summary) -> Amounts {
        Amounts {
            changed_extents: summary.count("changed_extents"),
            zero_extents: summary.count("zero_extents"),
            sent_blocks: summary.count("sent_blocks"),
            plain_bytes: summary.count("plain_bytes"),
            written_bytes: summary.count("written_bytes"),
        }
    }
}

/// Which blocks of the replica's file may take room: written, and not punched since.
fn follow_room(room: &mut [bool], held: &[u8], now: &[u8], extent_bytes: usize) {
    let per_extent = extent_bytes / BLOCK;
    for (extent, (held, now)) in held.chunks(extent_bytes).zip(now.chunks(extent_bytes)).enumerate() {
        let zero = held != now && now.iter().all(|byte| *byte == 0);
        for (block, (held, now)) in held.chunks(BLOCK).zip(now.chunks(BLOCK)).enumerate().filter(|(_, (held, now))| held != now) {
            room[extent * per_extent + block] = !zero || held.len() < BLOCK && now.len() < BLOCK;
        }
    }
}

/// Writes a source whose zero blocks are holes or not.
fn write_source(path: &str, content: &[u8], sparse: bool) {
    let file = File::create(path).expect("a source");
    file.set_len(content.len() as u64).expect("its size");
    for (at, block) in content.chunks(BLOCK).enumerate() {
        if !sparse || block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (at * BLOCK) as u64).expect("a block");
        }
    }
}

fn follows(case: &Case) -> Result<(), TestCaseError> {
    let ferry = Ferry { engine: case.engine, ..Ferry::new() };
    let (source, target) = (ferry.name("source"), ferry.name("target"));
    let mut content = noise(1, case.bytes);
    case.holes.iter().for_each(|(from, to)| content[between(from, to, case.bytes)].fill(0));

    let (from, to) = match case.way {
        Way::Local => (source.clone(), target.clone()),
        Way::Push => (source.clone(), format!("there:{target}")),
        Way::Pull => (format!("there:{source}"), target.clone()),
    };
    let extent = case.extent_bytes.to_string();
    let compress = format!("--compress={}", case.compress);
    let remote = ferry.remote();
    let mut options = vec!["--extent-size", &extent, "--hash", case.hash, &compress, "--shards", case.shards];
    if case.way != Way::Local {
        options.extend(remote.iter().map(String::as_str));
    }

    let mut held = vec![0; case.bytes];
    let mut room = vec![false; case.bytes.div_ceil(BLOCK)];
    // A last run without a change, whatever came before.
    let changes = case.changes.iter().chain([&Change::Nothing]);
    for (step, change) in std::iter::once(&Change::Nothing).chain(changes).enumerate() {
        change.apply(&mut content, case.extent_bytes, step as u64 + 2);
        write_source(&source, &content, case.sparse);
        let before = (step > 0).then(|| traces(&target));
        let summary = ferry.clone(&from, &to, &options);
        equal(&source, &target);
        let expected = Amounts::between(&held, &content, case.extent_bytes);
        prop_assert_eq!(Amounts::told(&summary), expected, "step {}: {:?}", step, change);
        prop_assert_eq!(summary.count("generation"), step as u64 + 1);
        prop_assert!(summary.count("read_bytes") <= case.bytes as u64);
        if held == content && step > 0 {
            prop_assert_eq!(before, Some(traces(&target)), "step {} wrote to the replica", step);
        }
        follow_room(&mut room, &held, &content, case.extent_bytes);
        // Beside the data a file system may count a few blocks of its own for a scattered file.
        let room_bytes = room.iter().filter(|full| **full).count() * BLOCK + 4 * BLOCK;
        prop_assert!(allocated(&target) <= room_bytes as u64, "step {}: {} bytes for {}", step, allocated(&target), room_bytes);
        held.copy_from_slice(&content);
    }
    Ok(())
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { max_shrink_iters: 60, ..ProptestConfig::default() };
    config.failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions")));
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    /// A failure prints its smallest case and keeps its seed in `round_trips.proptest-regressions`, which
    /// is run first from then on. `PROPTEST_CASES=1000 cargo test --test clone every_volume` looks longer.
    #[test]
    fn every_volume_arrives_and_only_what_changed_travels(case in any_case()) {
        follows(&case)?;
    }
}

/// Zeros that begin and end at every place around the borders of blocks, extents and chunks.
#[test]
fn zero_runs_arrive_at_every_alignment() {
    for engine in ["uring", "blocking"] {
        let ferry = Ferry { engine, ..Ferry::new() };
        let bytes = (2 << 20) + 5 * BLOCK + 100;
        let (source, target) = (ferry.name("source"), ferry.name("target"));
        let mut held = vec![0; bytes];
        let edges = [
            0,
            1,
            511,
            512,
            4095,
            4096,
            65535,
            65536,
            65537,
            131_072,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 1,
            (2 << 20) + 4096,
            bytes - 1,
            bytes,
        ];
        for (step, (from, to)) in
            edges.iter().flat_map(|from| edges.iter().map(move |to| (*from, *to))).filter(|(from, to)| from < to).enumerate()
        {
            // Every fifth: all of them take a minute.
            if step % 5 != if engine == "uring" { 0 } else { 2 } {
                continue;
            }
            let mut content = noise(3, bytes);
            content[from..to].fill(0);
            write_source(&source, &content, step % 2 == 0);
            let summary = ferry.clone(&source, &target, &[]);
            equal(&source, &target);
            assert_eq!(Amounts::told(&summary), Amounts::between(&held, &content, 65536), "zeros from {from} to {to}");
            held = content;
        }
    }
}
