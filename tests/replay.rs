//! Power cuts at any instant, on a real block device (T5): every write of the binary, and of the file
//! system under its state, is logged; the device is rebuilt as a cut at some point could have left it, and
//! the next start must reach a committed generation byte for byte.
//!
//! `BLOCKFERRY_POINTS=n` chooses how many points are tried, `BLOCKFERRY_SEED=n` which.

#[path = "rig/daemon.rs"]
mod daemon;
#[path = "rig/stand.rs"]
mod ferry;
#[path = "rig/logwrites.rs"]
mod logwrites;
#[path = "rig/loops.rs"]
mod loops;

use daemon::Daemon;
use ferry::{Dice, Ferry, assert_same, change_image, make_image, seed};
use logwrites::{Log, entries_so_far};
use loops::{Loop, Mounted, is_root, run};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const VOLUME_BYTES: u64 = 6 << 20;
const SHELF_BYTES: u64 = 48 << 20;
const GENERATIONS: usize = 4;

fn points(default: usize) -> usize {
    std::env::var("BLOCKFERRY_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Points of a log to cut at: as many flushes as instants between, spread by the dice.
fn choose(log: &Log, from: usize, count: usize, dice: &mut Dice) -> Vec<usize> {
    let flushes: Vec<usize> = log.flushes().into_iter().filter(|at| *at >= from).collect();
    let mut chosen: Vec<usize> = (0..count)
        .map(|turn| match turn % 2 {
            0 if !flushes.is_empty() => flushes[dice.below(flushes.len() as u64) as usize],
            _ => from + dice.below((log.entries.len() - from) as u64 + 1) as usize,
        })
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// The source's versions and the point of the log at which the run that brought each had ended.
struct History {
    versions: Vec<PathBuf>,
    committed_at: Vec<usize>,
}

/// Copies the next version of the source to the bench, as the run under test will send it.
fn next_version(ferry: &Ferry, history: &mut History, dice: &mut Dice) {
    if history.versions.is_empty() {
        make_image(&ferry.source, VOLUME_BYTES, dice);
    } else {
        change_image(&ferry.source, dice);
    }
    let version = ferry.at(&format!("version{}.img", history.versions.len() + 1));
    fs::copy(&ferry.source, &version).expect("a copy");
    history.versions.push(version);
}

fn history() -> History {
    History { versions: Vec::new(), committed_at: Vec::new() }
}

/// State directory and replica lie on one logged file system: both are from the same instant, as after a
/// power cut.
#[test]
fn a_power_cut_at_any_write_leaves_a_generation_on_the_shelf() {
    if !is_root("write logs") || !daemon::is_installed("write logs") {
        return;
    }
    let mut dice = Dice(seed("replay"));
    let mut ferry = Ferry::new();
    let (base, start, log_file, shelf) = (ferry.at("shelf.img"), ferry.at("start.img"), ferry.at("log"), ferry.at("shelf"));
    fs::create_dir(&shelf).unwrap();
    File::create(&base).and_then(|file| file.set_len(SHELF_BYTES)).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", base.to_str().unwrap()]);
    run("cp", &["--sparse=always", base.to_str().unwrap(), start.to_str().unwrap()]);
    (ferry.here, ferry.target) = (shelf.join("state"), shelf.join("replica.img"));

    let mut history = history();
    let device = Daemon::logging(&base, &log_file);
    {
        let _mounted = Mounted::new(device.path(), &shelf);
        for _ in 0..GENERATIONS {
            next_version(&ferry, &mut history, &mut dice);
            ferry.run(ferry.local(&["--extent-size=16K"])).succeeds();
            // No sync from here: exit 0 alone has to mean that the generation stays.
            history.committed_at.push(entries_so_far(&log_file));
        }
    }
    device.stop();
    let log = Log::read(&log_file);
    let chosen = choose(&log, 0, points(60), &mut dice);
    eprintln!("{} entries, {} flushes, {} points", log.entries.len(), log.flushes().len(), chosen.len());

    // Grows from point to point; each cut works on a copy.
    let (durable, cut) = (ferry.at("durable.img"), ferry.at("cut.img"));
    fs::rename(&start, &durable).unwrap();
    let durable_file = File::options().write(true).open(&durable).unwrap();
    let mut flushed = 0;
    let mut outcomes = [0; GENERATIONS + 1];
    for (turn, upto) in chosen.into_iter().enumerate() {
        let last = log.last_flush(upto);
        log.replay(flushed..last, &durable_file);
        flushed = last;
        run("cp", &["--sparse=always", durable.to_str().unwrap(), cut.to_str().unwrap()]);
        log.cut(flushed, upto, &mut dice, &File::options().write(true).open(&cut).unwrap());
        let promised = history.committed_at.iter().filter(|at| **at <= upto).count();
        outcomes[after_a_cut(&ferry, &history, &cut, &shelf, upto, promised, turn % 2 == 0)] += 1;
    }
    eprintln!("points by the generation they recovered to: {outcomes:?}");
}

/// Starts on the rebuilt shelf; gives the generation that was found. `by_hand`: the operator recovers
/// first, without the source.
fn after_a_cut(ferry: &Ferry, history: &History, cut: &Path, shelf: &Path, upto: usize, promised: usize, by_hand: bool) -> usize {
    let device = Loop::over(cut, 512);
    let _mounted = Mounted::new(&device.0, shelf);
    let when = format!("cut after entry {upto}, {promised} promised");
    if by_hand {
        let fixed = ferry.doctor(&ferry.here, &["--fix"]);
        assert!(fixed.lines("summary").iter().all(|line| line["failures"] == serde_json::json!([])), "{when}: {}{}", fixed.out, fixed.err);
    }
    let (generation, stage) = ferry.generation(&ferry.here);
    let generation = generation as usize;
    assert!(generation >= promised && generation <= promised + 1, "{when}: generation {generation} {stage}");
    if stage == "clean" {
        assert_same(&history.versions[generation - 1], &ferry.target, &format!("{when}: generation {generation}"));
    } else {
        let may_be =
            if generation == 0 { stage == "none" || stage.starts_with("initializing") } else { !by_hand && stage.starts_with("applying") };
        assert!(may_be, "{when}: generation {generation} {stage}");
    }
    let rerun = ferry.run(ferry.local(if generation == 0 { &["--extent-size=16K"] } else { &[] }));
    assert!(rerun.status.success(), "{when}: {}{}", rerun.out, rerun.err);
    assert_same(&ferry.source, &ferry.target, &format!("{when}: after the rerun"));
    ferry.nothing_is_left(&ferry.here);
    generation
}

/// The log lies under the replica alone: when a run has ended well, what was flushed is the source.
#[test]
fn what_is_flushed_when_a_run_ends_is_the_source() {
    if !is_root("write logs") || !daemon::is_installed("write logs") {
        return;
    }
    let mut dice = Dice(seed("replay"));
    let mut ferry = Ferry::new();
    let (base, log_file, rebuilt) = (ferry.at("base.img"), ferry.at("log"), ferry.at("rebuilt.img"));
    File::create(&base).and_then(|file| file.set_len(VOLUME_BYTES)).unwrap();
    let device = Daemon::logging(&base, &log_file);
    ferry.target = device.path().to_owned();
    let mut history = history();
    for _ in 0..GENERATIONS {
        next_version(&ferry, &mut history, &mut dice);
        ferry.run(ferry.local(&[])).succeeds();
        history.committed_at.push(entries_so_far(&log_file));
    }
    device.stop();
    let log = Log::read(&log_file);
    for (version, upto) in history.versions.iter().zip(&history.committed_at) {
        for _ in 0..points(40).div_ceil(GENERATIONS) {
            let file = File::create(&rebuilt).unwrap();
            file.set_len(VOLUME_BYTES).unwrap();
            let flushed = log.last_flush(*upto);
            log.replay(0..flushed, &file);
            log.cut(flushed, *upto, &mut dice, &file);
            assert_same(version, &rebuilt, &format!("committed after entry {upto}"));
        }
    }
}

/// While a journal is applied, record and journal do not change: with the state directory as it was when
/// that began, a cut at any write of the apply is completed to the new generation.
#[cfg(feature = "failpoints")]
#[test]
fn a_power_cut_while_applying_is_completed_from_the_journal() {
    use blockferry::state::{HostFiles, ReplicaRecord, Side, StateDir};
    if !is_root("write logs") || !daemon::is_installed("write logs") {
        return;
    }
    let mut dice = Dice(seed("replay"));
    let mut ferry = Ferry::new();
    let (base, log_file, rebuilt, saved) = (ferry.at("base.img"), ferry.at("log"), ferry.at("rebuilt.img"), ferry.at("saved"));
    File::create(&base).and_then(|file| file.set_len(VOLUME_BYTES)).unwrap();
    let device = Daemon::logging(&base, &log_file);
    ferry.target = device.path().to_owned();
    let mut history = history();
    next_version(&ferry, &mut history, &mut dice);
    ferry.run(ferry.local(&["--extent-size=16K"])).succeeds();
    next_version(&ferry, &mut history, &mut dice);
    let mut cut = ferry.local(&[]);
    cut.env("BLOCKFERRY_FAILPOINT", "receiver.applying-recorded");
    assert!(ferry.run(cut).was_killed());
    let began = entries_so_far(&log_file);
    run("cp", &["-a", ferry.here.to_str().unwrap(), saved.to_str().unwrap()]);
    ferry.run(ferry.local(&[])).succeeds();
    device.stop();

    let log = Log::read(&log_file);
    assert!(log.entries.len() > began, "the apply left no trace in the log");
    let mut torn = 0;
    for upto in choose(&log, began, points(60), &mut dice) {
        let file = File::create(&rebuilt).unwrap();
        file.set_len(VOLUME_BYTES).unwrap();
        let flushed = log.last_flush(upto);
        log.replay(0..flushed, &file);
        log.cut(flushed, upto, &mut dice, &file);
        torn += usize::from(history.versions.iter().all(|version| ferry::first_difference(version, &rebuilt).is_some()));
        let device = Loop::over(&rebuilt, 512);
        fs::remove_dir_all(&ferry.here).unwrap();
        run("cp", &["-a", saved.to_str().unwrap(), ferry.here.to_str().unwrap()]);
        // The rebuilt device is another one for the guard; it stands for the one that was paired.
        let state = StateDir::open(&ferry.here).unwrap();
        let relationship = state.relationships(Side::Replicas).unwrap()[0];
        let files = HostFiles::new(&state.folder(Side::Replicas, &relationship));
        let mut record = ReplicaRecord::load(&files).unwrap().unwrap();
        record.target = blockferry::disk::identity::of(&device.0).unwrap();
        record.store(&files).unwrap();
        let fixed = ferry.doctor(&ferry.here, &["--fix"]);
        assert_eq!(fixed.lines("summary")[0]["failures"], serde_json::json!([]), "cut after entry {upto}: {}", fixed.out);
        assert_eq!(ferry.generation(&ferry.here), (2, "clean".to_owned()), "cut after entry {upto}");
        assert_same(&history.versions[1], &rebuilt, &format!("cut after entry {upto}"));
    }
    eprintln!("{torn} of the points left a torn device");
    assert!(torn > 0, "no cut came in the middle of the apply");
}
