//! A writer keeps changing the source while runs go back to back and are killed every second or less (T9).
//! After every kill the replica is some generation, by its own word; at the end one clean run, and both
//! sides are equal. 20 seconds, two minutes in CI, or `BLOCKFERRY_THRASH_SECONDS`.

#[path = "rig/stand.rs"]
mod ferry;

use blockferry::attempt::find_replica;
use blockferry::digest::Hasher;
use blockferry::extent::ExtentIndex;
use blockferry::ring::Choice;
use blockferry::state::manifest::{self, Damage, Manifest};
use blockferry::state::{ReplicaRecord, Stage, StateDir};
use ferry::{Dice, Ferry, assert_same, make_image, seed};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const VOLUME_BYTES: u64 = 256 << 20;

fn seconds() -> u64 {
    let default = if std::env::var_os("CI").is_some() { 120 } else { 20 };
    std::env::var("BLOCKFERRY_THRASH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Writes single blocks and short runs, some of them zero, until it is told to stop.
fn keep_writing(path: &Path, mut dice: Dice, stop: &AtomicBool) {
    let file = File::options().write(true).open(path).expect("the source");
    let mut run = vec![0; 32 << 10];
    while !stop.load(Ordering::Relaxed) {
        let bytes = 4096 * (1 + dice.below(8)) as usize;
        match dice.below(5) {
            0 => run[..bytes].fill(0),
            _ => dice.fill(&mut run[..bytes]),
        }
        let at = dice.below((VOLUME_BYTES - bytes as u64) / 4096) * 4096;
        file.write_all_at(&run[..bytes], at).expect("the source");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Every extent of the device has the digest that the committed manifest gives it, and the manifest the
/// root that the record gives it.
fn agrees_with_its_record(record: &ReplicaRecord, files: &dyn blockferry::state::Files, target: &Path) {
    let geometry = record.geometry().expect("a geometry");
    let hasher = Hasher::new(record.algorithm, &record.secret);
    let loaded: Option<Manifest> =
        manifest::load(files, record.generation, &record.root, &geometry, &hasher, Damage::Refuse).expect("a manifest");
    let mut manifest = loaded.expect("the manifest of the committed generation");
    manifest.check().expect("every page is sound");
    assert_eq!(manifest.root().expect("a root"), record.root);
    let device = fs::read(target).expect("the replica");
    let mut blocks = Vec::new();
    for extent in (0..geometry.extents()).map(ExtentIndex) {
        let at = geometry.offset(extent) as usize;
        let digest = hasher.extent(&device[at..at + geometry.bytes_of(extent)], &mut blocks);
        assert_eq!(digest, manifest.entry(extent).expect("an entry").digest, "extent {extent} of generation {}", record.generation);
    }
}

/// What was found after a kill.
#[derive(Default, Debug)]
struct Tally {
    runs: u32,
    killed: u32,
    applying: u32,
    journals: u32,
    generations: u64,
}

#[test]
fn a_thrashed_pair_is_always_some_generation_and_ends_equal() {
    let mut dice = Dice(seed("thrash"));
    let ferry = Ferry::new();
    make_image(&ferry.source, VOLUME_BYTES, &mut dice);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds());
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let (source, own) = (ferry.source.clone(), Dice(dice.roll()));
        scope.spawn(|| {
            let source = source;
            keep_writing(&source, own, &stop)
        });
        while Instant::now() < end {
            // A loaded host may need longer than any patience for a first copy, which keeps nothing when both
            // ends are killed within its first checkpoint: then one run is let through.
            let spared = tally.generations == 0 && begun.elapsed().as_secs() > seconds() / 3;
            run_and_kill(&ferry, &mut dice, &mut tally, spared);
            check(&ferry, &mut dice, &mut tally);
        }
    });
    eprintln!("{tally:?}");
    assert!(tally.killed > 0 && tally.generations > 0, "{tally:?}");
    ferry.run(ferry.push(&[], "")).succeeds();
    assert_eq!(ferry.status_there(), Some(0));
    assert_same(&ferry.source, &ferry.target, "after the last, clean run");
    ferry.nothing_is_left(&ferry.here);
    ferry.nothing_is_left(&ferry.there);
}

/// The writer ends also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One push, killed somewhere: the sender, the receiver, or both at once, as a power cut of a host would.
fn run_and_kill(ferry: &Ferry, dice: &mut Dice, tally: &mut Tally, spared: bool) {
    let mut command: Command = ferry.push(&[], "");
    // The error is among the JSON lines, a panic beside them.
    let words = [ferry.at("thrash.out"), ferry.at("thrash.err")];
    let [out, err] = words.each_ref().map(|path| File::create(path).unwrap());
    // A group of its own: all of the run and nothing else can be killed at once.
    let mut child = command.process_group(0).stdout(out).stderr(err).spawn().expect("the binary runs");
    let group = Pid::from_raw(child.id() as i32);
    tally.runs += 1;
    let patience = if spared { Duration::from_secs(600) } else { Duration::from_millis(100 + dice.below(1400)) };
    match ferry::wait(&mut child, patience) {
        Some(status) => {
            // A live source may differ between two reads of an extent that is sent again: that is no success, and no harm.
            let said = words.map(|path| fs::read_to_string(path).unwrap()).concat();
            assert!(status.success() || said.contains("source changes while it is read"), "{status}: {said}");
        }
        None => {
            tally.killed += 1;
            if dice.below(2) == 0 {
                let _ = killpg(group, Signal::SIGKILL);
            } else {
                // Only the sender: the receiver sees a cut, saves what came, and ends by itself.
                let _ = child.kill();
                ferry.status_there();
            }
            let _ = child.wait();
        }
    }
    wait_for_group(group);
}

/// Waits until no process of the run is left.
fn wait_for_group(group: Pid) {
    let end = Instant::now() + Duration::from_secs(60);
    while killpg(group, None).is_ok() {
        assert!(Instant::now() < end, "a process of the run does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check(ferry: &Ferry, dice: &mut Dice, tally: &mut Tally) {
    if dice.below(3) == 0 {
        let fixed = ferry.doctor(&ferry.there, &["--fix"]);
        assert_eq!(fixed.lines("summary")[0]["failures"], serde_json::json!([]), "{}", fixed.out);
    }
    let state = StateDir::open(&ferry.there).expect("a state directory");
    let Ok((site, record)) = find_replica(&state, ferry.target.to_str().expect("plain text"), Choice::Auto) else { return };
    tally.journals += u32::from(matches!(site.open_journal(), Ok(Some(_))));
    match record.stage {
        Stage::Clean => {
            assert!(record.generation >= tally.generations, "generation {} after {}", record.generation, tally.generations);
            tally.generations = record.generation;
            agrees_with_its_record(&record, site.files(), &ferry.target);
        }
        // Left to the next run, or to the next doctor.
        Stage::Applying { generation, .. } => {
            tally.applying += 1;
            assert!(generation > tally.generations);
        }
        Stage::Initializing => assert_eq!(tally.generations, 0),
    }
}
