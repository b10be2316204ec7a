//! The promise of this program, attacked: after any crash, cut or flipped bit the replica is exactly a
//! committed generation, or its journal completes it to the next.
//!
//! Every test that draws lots prints its seed with the command that repeats it. `BLOCKFERRY_POINTS`
//! sets how many lots a story draws (10 000 by default); a night's run takes millions.

#[path = "rig/line.rs"]
mod line;
#[path = "rig/sim.rs"]
mod sim;

use blockferry::digest::{Algorithm, Hasher};
use blockferry::limits::PAGE_EXTENTS;
use blockferry::receiver::Apply;
use blockferry::state::{MANIFEST, Stage};
use line::{Fault, Generation, Pair, Plan, content};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sim::{DEVICE, Random};
use std::collections::HashSet;
use std::sync::Arc;

const EXTENT: usize = 8192;
/// 24 extents of two blocks and a tail of one block and one sector.
const VOLUME: usize = 24 * EXTENT + 4096 + 512;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// How many lots a story draws.
fn points(default: u64) -> u64 {
    number("BLOCKFERRY_POINTS", default)
}

fn first_seed() -> u64 {
    number("BLOCKFERRY_SEED", 1)
}

/// Says where a story was when it panicked, and how to go there again.
struct Lot {
    test: &'static str,
    seed: u64,
    place: String,
}

impl Drop for Lot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}: {}\nrepeat: BLOCKFERRY_SEED={} BLOCKFERRY_POINTS=1 cargo test --test crash {}",
                self.test, self.place, self.seed, self.test
            );
        }
    }
}

/// Huge pages make each of the many short sessions zero megabytes it never uses.
fn hurry() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

// ---------------------------------------------------------------------------------------------
// Crash points

/// A situation in which one more run is made, and dies.
struct Story {
    test: &'static str,
    /// Both sides before the run.
    before: Pair,
    plan: Plan,
    /// What the volume is by the time of the run after the crash, where that is something else.
    later: Option<Vec<u8>>,
    /// What a recovered replica may be, beside what the run makes of it.
    allowed: Vec<Generation>,
}

impl Story {
    /// From a replica that is up to date, or was never made.
    fn new(test: &'static str, before: Pair) -> Story {
        hurry();
        let before = before.settle();
        let committed = before.replica_record().is_some_and(|record| record.stage == Stage::Clean);
        let allowed = if committed { vec![before.generation()] } else { Vec::new() };
        Story { test, before, plan: Plan::default(), later: None, allowed }
    }

    /// Crashes at every operation of either side, many times with different luck.
    fn crash_everywhere(mut self) {
        let whole = self.before.fork();
        finish(&whole);
        self.allowed.push(whole.generation());
        let operations = [whole.replica.operations(), whole.source.operations()];
        let seeds = points(10_000).div_ceil(operations.iter().sum());
        let (mut seen, mut drawn) = (HashSet::new(), 0);
        for (side, count) in operations.into_iter().enumerate() {
            for operation in 0..=count {
                let died = self.before.fork();
                if side == 0 {
                    died.replica.die_at(operation)
                } else {
                    died.source.die_at(operation)
                }
                died.run(&self.plan);
                for seed in first_seed()..first_seed() + seeds {
                    let mut random = Random(seed << 20 | operation << 1 | side as u64);
                    let place = format!("power cut at the {} before operation {operation} of {count}", ["replica", "source"][side]);
                    let lot = Lot { test: self.test, seed, place };
                    let both = random.below(4) == 0;
                    let replica = if side == 0 || both { died.replica.crash(&mut random) } else { died.replica.settle() };
                    let source = if side == 1 || both { died.source.crash(&mut random) } else { died.source.settle() };
                    // At times only the process dies, and the power goes while the next one cleans up.
                    let killed = random.below(4) == 0;
                    let replica = if killed { died.replica.fork() } else { replica };
                    drawn += 1;
                    let remains = (replica.fingerprint(), source.fingerprint(), killed);
                    let after = Pair { source, replica };
                    if seen.insert(remains) {
                        self.check(after, &mut random);
                    } else if after.replica.content("journal").is_some() {
                        // The same remains, but another second cut.
                        self.check_second_cut(&after, &mut random);
                    }
                    drop(lot);
                }
            }
        }
        println!(
            "{}: {drawn} crash points at {} operations, {} different remains checked",
            self.test,
            operations[0] + operations[1],
            seen.len()
        );
    }

    fn check(&self, after: Pair, random: &mut Random) {
        let cursor = after.source_record().expect("a source record").generation;
        // An increment straight onto the device has a number it goes on from, though no generation.
        let committed = after.replica_record().map_or(0, |record| record.generation);
        assert!(cursor <= committed, "I3: the cursor {cursor} runs ahead of the commit {committed}");

        let again = self.check_second_cut(&after, random);
        self.check_recovers(&after);

        // And once more, in the middle of the next run.
        if random.below(4) == 0 {
            let side = if random.coin() { &again.replica } else { &again.source };
            side.die_at(random.below(40));
            again.run(&self.plan);
            let again = Pair { source: again.source.crash(random), replica: again.replica.crash(random) };
            self.check_recovers(&again);
            finish(&again);
        }
        if let Some(later) = &self.later {
            after.write_volume(later.clone());
        }
        finish(&after);
    }

    /// The power goes once more, in the middle of the recovery.
    fn check_second_cut(&self, after: &Pair, random: &mut Random) -> Pair {
        let again = after.fork();
        again.replica.die_at(random.below(24));
        let _ = again.recover();
        let again = Pair { source: again.source.settle(), replica: again.replica.crash(random) };
        self.check_recovers(&again);
        again
    }

    /// Whatever is found is completed, and then it is a generation byte for byte, as its record says.
    fn check_recovers(&self, after: &Pair) {
        let found = after.recover().unwrap_or_else(|error| panic!("the replica cannot be recovered: {}", error.chain()));
        let Some(number) = found else {
            let stage = after.replica_record().map(|record| record.stage);
            assert!(stage.is_none_or(|stage| stage == Stage::Initializing), "a committed replica counts as none");
            let direct = self.before.replica.applies_directly();
            assert!(direct || self.allowed.len() == 1, "I2: a replica that had a generation has none");
            return;
        };
        let now = after.generation();
        assert_eq!(number, now.number);
        // A run after the one that was watched commits the same content under the next number.
        let last = self.allowed.last().map(|last| Generation { number: last.number + 1, ..last.clone() });
        let fits = self.allowed.iter().chain(&last).find(|generation| generation.number == number && generation.content == now.content);
        let fits = fits.unwrap_or_else(|| panic!("I2: the replica says it is generation {number}, and is not"));
        let record = after.replica_record().expect("a replica record");
        // The root covers the size: that of a volume that grows is made anew over the same content.
        let grew = record.volume_bytes != self.before.replica_record().map_or(record.volume_bytes, |before| before.volume_bytes);
        assert!(record.rehash || grew || fits.root == now.root, "I1: the root does not name the content");
        assert_eq!(record.stage, Stage::Clean);
    }
}

/// A clean run. A replica with planted rot may be refused when a sample meets it; then the lot is drawn again.
fn finish(pair: &Pair) {
    let mut ran = pair.run(&Plan::default());
    for _ in 0..60 {
        if ran.ended_well() || !ran.why().contains("is not what was replicated there") {
            break;
        }
        ran = pair.run(&Plan::default());
    }
    assert!(ran.ended_well(), "a clean run failed: {}", ran.why());
    pair.assert_alike();
}

/// A replica of generation 2.
fn replicated(seed: u64) -> Pair {
    let pair = Pair::new(content(VOLUME, seed), EXTENT as u32, Algorithm::Xxh3);
    pair.run_clean();
    let pair = changed(pair.settle(), seed + 1000);
    pair.run_clean();
    pair.settle()
}

/// Changes single blocks, zeroes some ranges, and touches the short tail.
fn changed(pair: Pair, seed: u64) -> Pair {
    let mut random = Random(seed);
    let mut content = Vec::clone(&pair.volume());
    let extent = pair.source_record().expect("a source record").extent_bytes as usize;
    for _ in 0..6 {
        let block = random.below(content.len() as u64 / 4096) as usize * 4096;
        random.fill(&mut content[block..block + 4096]);
    }
    for extents in [1..3, 7..8, 12..15] {
        let start = (extents.start + random.below(8) as usize) * extent;
        content[start..start + extents.len() * extent].fill(0);
    }
    let tail = content.len() - 300;
    random.fill(&mut content[tail..]);
    pair.write_volume(content);
    pair.settle()
}

/// Sends in several frames: 48 extents of four blocks.
fn large(seed: u64) -> Pair {
    Pair::new(content(48 * 4 * 4096, seed), 4 * 4096, Algorithm::Blake3)
}

/// A run that is cut after this part of what a whole one says.
fn cut_at(pair: Pair, percent: u64) -> Pair {
    let said = pair.fork().run(&Plan::default()).forth.len() as u64;
    let ran = pair.run(&Plan { forth: Fault { cut: Some(said * percent / 100), ..Fault::default() }, ..Plan::default() });
    assert!(!ran.ended_well(), "a cut run does not end well");
    pair.settle()
}

/// Its increments go straight onto the device.
fn direct(pair: Pair) -> Pair {
    pair.replica.set_apply(Apply::Direct);
    pair
}

macro_rules! stories {
    ($($name:ident: $before:expr, later $later:expr;)*) => { $(
        #[test]
        fn $name() {
            let mut story = Story::new(stringify!($name), $before);
            story.later = $later;
            story.crash_everywhere();
        }
    )* };
}

stories! {
    a_crash_during_an_increment_leaves_the_old_generation_or_leads_to_the_new:
        changed(replicated(10), 20), later None;
    a_crash_during_an_increment_of_many_frames_does_too: {
        let pair = large(11);
        pair.run_clean();
        pair.write_volume(content(pair.volume().len(), 12));
        pair.settle()
    }, later None;
    a_crash_during_the_first_copy_never_leaves_a_replica_that_claims_to_be_whole:
        Pair::new(content(VOLUME, 1), EXTENT as u32, Algorithm::Xxh3), later None;
    a_crash_during_a_first_copy_that_goes_on_after_a_cut_with_newer_data_leaves_no_false_hint: {
        let pair = cut_at(large(2), 60);
        pair.write_volume(content(pair.volume().len(), 3));
        pair.settle()
    }, later Some(content(48 * 4 * 4096, 2));
    a_crash_during_a_first_copy_onto_an_older_copy_leaves_no_false_hint: {
        let pair = large(4);
        pair.replica.put(DEVICE, pair.volume());
        changed(pair, 5)
    }, later Some(content(48 * 4 * 4096, 4));
    a_crash_after_a_cut_with_a_newer_source_completes_the_journal_or_drops_it:
        changed(cut_at(changed(replicated(30), 31), 60), 32), later None;
    a_crash_after_a_cut_of_many_frames_completes_the_journal_or_drops_it: {
        let pair = large(33);
        pair.run_clean();
        pair.write_volume(content(pair.volume().len(), 34));
        changed(cut_at(pair.settle(), 70), 35)
    }, later None;
    a_crash_while_a_lost_acknowledgement_is_found_out_loses_nothing: {
        let pair = changed(replicated(40), 41);
        pair.run(&Plan { back: Fault { lose_ack: true, ..Fault::default() }, ..Plan::default() });
        changed(pair.settle(), 42)
    }, later None;
    a_crash_while_a_lost_manifest_is_read_anew_loses_nothing: {
        let pair = changed(replicated(50), 51);
        pair.replica.lose("manifest");
        pair.settle()
    }, later None;
    a_crash_with_the_senders_manifest_lost_and_a_journal_unfinished_loses_nothing: {
        let pair = changed(cut_at(changed(replicated(60), 61), 60), 62);
        pair.source.lose("manifest");
        pair.settle()
    }, later None;
    a_crash_while_the_volume_grows_loses_nothing: {
        let pair = replicated(70);
        let mut longer = Vec::clone(&pair.volume());
        longer.extend(content(5 * EXTENT + 512, 71));
        let mut device = Vec::clone(&pair.device().expect("a replica"));
        device.resize(longer.len(), 0);
        pair.replica.put(DEVICE, device.into());
        pair.write_volume(longer);
        pair.settle()
    }, later None;
    a_crash_while_rot_is_healed_loses_nothing: {
        let pair = replicated(80);
        let mut newer = Vec::clone(&pair.volume());
        newer[9 * EXTENT..9 * EXTENT + 4096].copy_from_slice(&content(4096, 81));
        pair.write_volume(newer);
        pair.replica.flip(DEVICE, ((9 * EXTENT + 5000) * 8) as u64);
        pair.settle()
    }, later None;
    a_crash_when_nothing_changed_loses_nothing: replicated(90), later None;
    a_crash_during_a_direct_increment_is_never_called_clean_and_the_next_run_completes_it:
        direct(changed(replicated(500), 501)), later None;
    a_crash_during_a_direct_increment_of_many_frames_leaves_no_false_hint: {
        // The source goes back to what it was before the run that died.
        let pair = large(502);
        pair.run_clean();
        pair.write_volume(content(pair.volume().len(), 503));
        direct(pair.settle())
    }, later Some(content(48 * 4 * 4096, 502));
    a_crash_while_a_direct_increment_goes_on_after_a_cut_leaves_no_false_hint: {
        let pair = large(504);
        pair.run_clean();
        pair.write_volume(content(pair.volume().len(), 505));
        changed(cut_at(direct(pair.settle()), 60), 506)
    }, later Some(content(48 * 4 * 4096, 505));
    a_crash_while_an_unfinished_journal_gives_way_to_a_direct_increment_loses_nothing:
        direct(changed(cut_at(changed(replicated(507), 508), 60), 509)), later None;
    a_crash_while_a_lost_acknowledgement_of_a_direct_increment_is_found_out_loses_nothing: {
        let pair = direct(changed(replicated(513), 514));
        pair.run(&Plan { back: Fault { lose_ack: true, ..Fault::default() }, ..Plan::default() });
        changed(pair.settle(), 515)
    }, later None;
    a_crash_during_a_direct_increment_onto_a_grown_volume_loses_nothing: {
        let pair = replicated(516);
        let mut longer = Vec::clone(&pair.volume());
        longer.extend(content(5 * EXTENT + 512, 517));
        let mut device = Vec::clone(&pair.device().expect("a replica"));
        device.resize(longer.len(), 0);
        pair.replica.put(DEVICE, device.into());
        pair.write_volume(longer);
        direct(pair.settle())
    }, later None;
}

/// The image file is made before its record. A crash in between left a file that nobody knew of, and a source that
/// had grown by then was told to grow it first.
#[test]
fn a_crash_before_the_first_record_is_in_nobodys_way() {
    hurry();
    let before = Pair::new(content(VOLUME, 520), EXTENT as u32, Algorithm::Xxh3).settle();
    let mut orphans = 0;
    for operation in 0..24 {
        let died = before.fork();
        died.replica.die_at(operation);
        died.run(&Plan::default());
        for seed in first_seed()..first_seed() + 20 {
            let place = format!("power cut at the replica before operation {operation}");
            let _lot = Lot { test: "a_crash_before_the_first_record_is_in_nobodys_way", seed, place };
            let after = Pair { source: died.source.settle(), replica: died.replica.crash(&mut Random(seed << 8 | operation)) };
            if after.replica_record().is_some() {
                continue;
            }
            orphans += u32::from(after.device().is_some_and(|device| !device.is_empty()));
            after.write_volume(content(VOLUME + 5 * EXTENT, 521));
            finish(&after);
        }
    }
    assert!(orphans > 0, "no crash left a file without a record");
}

// ---------------------------------------------------------------------------------------------
// The wire: cut, and lied on

fn cuts(direction_bytes: &[u8], random: &mut Random, count: u64) -> Vec<u64> {
    let mut all: Vec<u64> = line::frames(direction_bytes)
        .iter()
        .flat_map(|(start, end)| [*start, *end])
        .flat_map(|at| [at - 1, at, at + 1])
        .map(|at| at as u64)
        .collect();
    all.extend((0..count).map(|_| random.below(direction_bytes.len() as u64)));
    all.sort();
    all.dedup();
    all
}

fn cut_everywhere(test: &'static str, before: &Pair) {
    hurry();
    let whole = before.fork().run(&Plan::default());
    assert!(whole.ended_well(), "{}", whole.why());
    let seed = first_seed();
    let mut random = Random(seed);
    for cut in cuts(&whole.forth, &mut random, points(10_000) / 10) {
        let lot = Lot { test, seed, place: format!("cut after {cut} bytes of the sender") };
        let pair = before.fork();
        let first = pair.run(&Plan { forth: Fault { cut: Some(cut), ..Fault::default() }, ..Plan::default() });
        let pair = pair.settle();
        let rerun = pair.run_clean();
        let again: Vec<u64> = rerun.extents_sent(u64::MAX).intersection(&first.extents_sent(cut)).copied().collect();
        assert!(again.is_empty(), "extents that had arrived were sent again: {again:?}");
        drop(lot);
    }
    for cut in cuts(&whole.back, &mut random, points(10_000) / 30) {
        let lot = Lot { test, seed, place: format!("cut after {cut} bytes of the receiver") };
        let pair = before.fork();
        pair.run(&Plan { back: Fault { cut: Some(cut), ..Fault::default() }, ..Plan::default() });
        pair.settle().run_clean();
        drop(lot);
    }
}

#[test]
fn a_cut_increment_goes_on_without_sending_again_what_arrived() {
    let pair = large(100);
    pair.run_clean();
    pair.write_volume(content(pair.volume().len(), 101));
    cut_everywhere("a_cut_increment_goes_on_without_sending_again_what_arrived", &changed(pair, 102));
}

#[test]
fn a_cut_first_copy_goes_on_without_sending_again_what_arrived() {
    cut_everywhere("a_cut_first_copy_goes_on_without_sending_again_what_arrived", &changed(large(103), 104));
}

#[test]
fn a_lost_acknowledgement_costs_a_handshake_and_no_data() {
    for first_copy in [false, true] {
        let pair = if first_copy { large(110) } else { changed(replicated(111), 112) };
        let ran = pair.run(&Plan { back: Fault { lose_ack: true, ..Fault::default() }, ..Plan::default() });
        assert!(ran.sent.is_err() && ran.received.is_ok(), "{}", ran.why());
        let committed = pair.generation();
        let rerun = pair.settle().run_clean();
        assert_eq!(rerun.sent.as_ref().expect("it ended well").adopted, Some(committed.number));
        assert!(rerun.extents_sent(u64::MAX).is_empty());
    }
}

/// Runs until it ends well, with a resync as soon as an error asks for one.
fn heal(pair: &Pair) {
    let mut plan = Plan::default();
    let mut said = Vec::new();
    for _ in 0..4 {
        let ran = pair.run(&plan);
        if ran.ended_well() {
            return pair.assert_alike();
        }
        plan.resync |= ran.asks_for_resync();
        said.push(ran.why());
    }
    panic!("it does not come right again: {said:#?}");
}

/// After damage: what claims to be clean is one of these, and a clean run brings the rest.
fn check_damaged(pair: &Pair, allowed: &[Generation]) {
    let recovered = pair.recover();
    let clean = pair.replica_record().is_some_and(|record| record.stage == Stage::Clean);
    if clean && recovered.is_ok() {
        let now = pair.generation();
        assert!(
            allowed.iter().any(|generation| generation.content == now.content),
            "a replica that claims to be clean is nothing that was committed"
        );
    }
    heal(pair);
}

fn flip_the_wire(test: &'static str, before: &Pair, lots: u64) {
    hurry();
    let whole = before.fork();
    let ran = whole.run(&Plan::default());
    let mut allowed = vec![whole.generation()];
    allowed.extend(before.replica_record().map(|_| before.generation()));
    for seed in first_seed()..first_seed() + lots {
        let mut random = Random(seed);
        let forth = random.below(4) > 0;
        let flip = random.below(8 * if forth { ran.forth.len() } else { ran.back.len() } as u64);
        let _lot = Lot { test, seed, place: format!("bit {flip} of the {}", if forth { "sender" } else { "receiver" }) };
        let fault = Fault { flip: Some(flip), ..Fault::default() };
        // Without the end of its greeting line the receiver would be waited for as long as it takes.
        if !forth && ran.back[flip as usize / 8] == b'\n' && (flip as usize / 8) < 64 {
            continue;
        }
        let plan = if forth { Plan { forth: fault, ..Plan::default() } } else { Plan { back: fault, ..Plan::default() } };
        let pair = before.fork();
        pair.run(&plan);
        check_damaged(&pair.settle(), &allowed);
    }
}

#[test]
fn a_flipped_bit_on_the_wire_of_an_increment_never_reaches_a_generation() {
    let before = changed(replicated(120), 121);
    flip_the_wire("a_flipped_bit_on_the_wire_of_an_increment_never_reaches_a_generation", &before, points(10_000) / 3);
}

#[test]
fn a_flipped_bit_on_the_wire_of_a_first_copy_never_reaches_a_generation() {
    let before = large(122);
    flip_the_wire("a_flipped_bit_on_the_wire_of_a_first_copy_never_reaches_a_generation", &before, points(10_000) / 5);
}

/// Flips bits of this file of a side, then runs.
fn flip_a_file(test: &'static str, before: &Pair, replica: bool, name: &str, lots: u64) {
    hurry();
    let side = |pair: &Pair| if replica { pair.replica.clone() } else { pair.source.clone() };
    let bits = 8 * side(before).content(name).unwrap_or_else(|| panic!("{name} is not there: {:?}", side(before).names())).len() as u64;
    let whole = before.fork();
    whole.run_clean();
    let mut allowed = vec![whole.generation(), before.generation()];
    let recovered = before.fork();
    recovered.recover().expect("nothing is damaged yet");
    allowed.push(recovered.generation());
    for seed in first_seed()..first_seed() + lots {
        let flip = Random(seed).below(bits);
        let _lot = Lot { test, seed, place: format!("bit {flip} of {name} at the {}", if replica { "replica" } else { "source" }) };
        let pair = before.fork();
        side(&pair).flip(name, flip);
        check_damaged(&pair, &allowed);
    }
}

#[test]
fn a_flipped_bit_in_an_unfinished_journal_never_reaches_a_generation() {
    let before = changed(cut_at(changed(replicated(130), 131), 60), 132);
    flip_a_file("a_flipped_bit_in_an_unfinished_journal_never_reaches_a_generation", &before, true, "journal", points(10_000) / 5);
}

#[test]
fn a_flipped_bit_in_a_manifest_never_reaches_a_generation() {
    let before = changed(replicated(140), 141);
    for replica in [true, false] {
        flip_a_file("a_flipped_bit_in_a_manifest_never_reaches_a_generation", &before, replica, "manifest", points(10_000) / 8);
    }
}

#[test]
fn a_flipped_bit_in_the_senders_next_manifest_never_reaches_a_generation() {
    let pair = changed(replicated(150), 151);
    pair.run(&Plan { back: Fault { lose_ack: true, ..Fault::default() }, ..Plan::default() });
    let before = changed(pair.settle(), 152);
    flip_a_file(
        "a_flipped_bit_in_the_senders_next_manifest_never_reaches_a_generation",
        &before,
        false,
        "manifest.next",
        points(10_000) / 10,
    );
}

#[test]
fn a_flipped_bit_in_the_receivers_next_manifest_never_reaches_a_generation() {
    let pair = changed(replicated(160), 161);
    // Dies while it applies: the sealed draft is needed to finish.
    let before = (0..200).map(|operation| {
        let pair = pair.fork();
        pair.replica.die_at(operation);
        pair.run(&Plan::default());
        pair.settle()
    });
    let before = before.into_iter().find(|pair| pair.replica_record().is_some_and(|record| matches!(record.stage, Stage::Applying { .. })));
    let test = "a_flipped_bit_in_the_receivers_next_manifest_never_reaches_a_generation";
    flip_the_next(test, &before.expect("a run applies"));
}

/// The device is torn here, so it is recovered before it is looked at.
fn flip_the_next(test: &'static str, before: &Pair) {
    let recovered = before.fork();
    recovered.recover().expect("nothing is damaged yet");
    let lots = points(10_000) / 10;
    for (name, journal) in [("manifest.next", false), ("journal", true)] {
        let bits = 8 * before.replica.content(name).expect("it is applying").len() as u64;
        for seed in first_seed()..first_seed() + lots {
            let flip = Random(seed).below(bits);
            let _lot = Lot { test, seed, place: format!("bit {flip} of {name}") };
            let pair = before.fork();
            pair.replica.flip(name, flip);
            let result = pair.recover();
            assert!(journal || result.is_ok(), "the journal alone completes the device");
            if result.is_ok() {
                assert!(pair.device() == recovered.device(), "a damaged journal was applied");
            }
            heal(&pair);
        }
    }
}

#[test]
fn a_resync_sends_exactly_what_differs() {
    hurry();
    let test = "a_resync_sends_exactly_what_differs";
    let before = replicated(170);
    for seed in first_seed()..first_seed() + points(10_000) / 50 {
        let _lot = Lot { test, seed, place: "planted rot".into() };
        let mut random = Random(seed);
        let pair = before.fork();
        let blocks: HashSet<u64> = (0..1 + random.below(5)).map(|_| random.below(VOLUME as u64 / 512) * 512 / 4096).collect();
        for block in &blocks {
            pair.replica.flip(DEVICE, block * 4096 * 8 + random.below(512 * 8));
        }
        let ran = pair.run(&Plan { resync: true, ..Plan::default() });
        assert!(ran.ended_well(), "{}", ran.why());
        pair.assert_alike();
        let volume = pair.volume();
        let extent_of = |block: &u64| *block as usize * 4096 / EXTENT;
        let is_zero = |block: &&u64| volume.chunks(EXTENT).nth(extent_of(block)).is_some_and(blockferry::digest::is_zero);
        assert_eq!(ran.extents_sent(u64::MAX), blocks.iter().map(|block| extent_of(block) as u64).collect());
        let zeros = blocks.iter().filter(is_zero).count();
        assert_eq!(ran.sent.expect("it ended well").counts.sent_blocks, (blocks.len() - zeros) as u64);
    }
}

#[test]
fn foreign_bytes_in_a_sampled_extent_refuse_the_session_and_nothing_is_written() {
    let pair = changed(replicated(180), 181);
    pair.replica.flip(DEVICE, 77);
    let before = pair.device();
    let ran = pair.run(&Plan::default());
    assert!(ran.asks_for_resync() && !ran.ended_well(), "{}", ran.why());
    assert!(pair.device() == before);
    heal(&pair);
}

#[test]
fn blocks_sent_over_an_unfinished_journal_are_proven_against_what_it_will_make() {
    // An extent changes in block 0, which lies in the journal of a cut run. Then block 0 goes back and
    // block 1 changes, and the sender lost its manifest: if it compares with the base alone, it sends
    // block 1 alone, and the journal would bring back block 0.
    let pair = replicated(190);
    let base = pair.volume();
    let edit = |block: usize, seed: u64, on: &[u8]| {
        let mut content = on.to_vec();
        content[block * 4096..(block + 1) * 4096].copy_from_slice(&line::content(4096, seed));
        content
    };
    // The last extent that changes closes no frame: the cut comes behind the whole frame, before End.
    pair.write_volume(edit(20, 191, &base));
    let said = pair.fork().run(&Plan::default()).forth;
    let end = line::frames(&said).last().expect("an End frame").0 as u64;
    pair.run(&Plan { forth: Fault { cut: Some(end), ..Fault::default() }, ..Plan::default() });
    let pair = pair.settle();
    assert!(pair.replica.content("journal").is_some(), "the frame is kept");
    pair.write_volume(edit(21, 192, &base));
    pair.source.lose("manifest");
    pair.run_clean();
}

#[test]
fn a_frame_that_is_refused_leaves_no_trace_in_the_hints_of_a_first_copy() {
    // Two extents travel in one frame; the second arrives damaged. The first was not written either.
    let pair = Pair::new(content(4 * EXTENT, 200), EXTENT as u32, Algorithm::Xxh3);
    let ran = pair.fork().run(&Plan::default());
    let (start, end) = *line::frames(&ran.forth).iter().max_by_key(|(start, end)| end - start).expect("a Data frame");
    assert!(end - start > EXTENT);
    pair.run(&Plan { forth: Fault { flip: Some(end as u64 * 8 - 80), ..Fault::default() }, ..Plan::default() });
    pair.settle().run_clean();
}

#[test]
fn a_frame_with_rot_under_it_leaves_no_trace_in_the_hints_of_a_first_copy() {
    // A first copy was cut. Extents 2 and 3 change by a block each and travel in one frame; 2 rotted, so
    // the frame is dropped until it is asked for again, and the connection goes before that.
    let pair = cut_at(large(210), 60);
    let mut newer = Vec::clone(&pair.volume());
    for extent in [2, 3] {
        newer[extent * 16384..extent * 16384 + 4096].copy_from_slice(&content(4096, 211 + extent as u64));
    }
    pair.write_volume(newer);
    pair.replica.flip(DEVICE, (2 * 16384 + 8000) * 8);
    // A sample may meet the rot before the frame does: then the lot is drawn again.
    let met = (0..60).any(|_| {
        let ran = pair.run(&Plan { back: Fault { cut: Some(0), ..Fault::default() }, ..Plan::default() });
        assert!(!ran.ended_well());
        let said = pair.fork().run(&Plan::default()).forth;
        let data = line::frames(&said).into_iter().find(|(start, end)| end - start > 4096);
        let Some((_, end)) = data else { return false };
        let ran = pair.run(&Plan { forth: Fault { cut: Some(end as u64), ..Fault::default() }, ..Plan::default() });
        ran.received.is_err() && !ran.why().contains("is not what was replicated there")
    });
    assert!(met, "the frame never met the rot");
    finish(&pair.settle());
}

/// Increments straight onto the device; a frame of zeros covers a page of the manifest and ends in one that rotted. What
/// the draft says of the first was never written, and must not become a hint of the next run.
#[test]
fn a_draft_that_is_ahead_of_the_device_is_never_made_durable() {
    const PAGE_BYTES: usize = PAGE_EXTENTS * 4096;
    let pair = direct(Pair::new(content(5 * PAGE_BYTES, 220), 4096, Algorithm::Xxh3));
    pair.run_clean();
    let mut newer = Vec::clone(&pair.volume());
    // More than a frame: the generation is given up before the zeros come.
    newer[..PAGE_BYTES].copy_from_slice(&content(PAGE_BYTES, 221));
    newer[PAGE_BYTES..2 * PAGE_BYTES + 5 * 4096].fill(0);
    // Where the manifest has an extent of the third page, of those whose content is nowhere else.
    let record = pair.replica_record().expect("a committed replica");
    let hasher = Hasher::new(record.algorithm, &record.secret);
    let manifest = pair.replica.content(MANIFEST).expect("a manifest");
    let place_of = |extent: usize| {
        let digest = hasher.extent(&newer[extent * 4096..(extent + 1) * 4096], &mut Vec::new());
        let mut places = manifest.windows(16).enumerate().filter(|(_, bytes)| *bytes == digest.0).map(|(at, _)| at);
        places.next().filter(|_| places.next().is_none())
    };
    let place = (2 * PAGE_EXTENTS + 100..3 * PAGE_EXTENTS).find_map(place_of).expect("an extent like no other");
    pair.write_volume(newer);
    // A sample may meet the rot before the frames do: then the lot is drawn again.
    let met = (0..200).find_map(|_| {
        let rotten = pair.fork();
        rotten.replica.flip(MANIFEST, place as u64 * 8);
        let ran = rotten.run(&Plan::default());
        assert!(!ran.ended_well(), "rot is noticed");
        let begun = rotten.replica_record().is_some_and(|record| record.stage == Stage::Initializing);
        begun.then(|| rotten.settle())
    });
    let met = met.expect("no run came as far as to write");
    let ran = met.run(&Plan::default());
    let resync = if ran.ended_well() { ran } else { met.run(&Plan { resync: true, ..Plan::default() }) };
    assert!(resync.ended_well(), "{}", resync.why());
    met.assert_alike();
}

// ---------------------------------------------------------------------------------------------
// Everything at once, against a model

/// What may happen between two runs, or to one.
#[derive(Clone, Debug)]
enum Action {
    Write(u64),
    WriteBack,
    Run,
    Cut {
        permille: u64,
        by_source: bool,
    },
    Crash {
        operation: u64,
        at_source: bool,
        seed: u64,
    },
    LoseManifest {
        at_source: bool,
    },
    SwapDevice(u64),
    FlipReplica(u64),
    Resync,
    /// Increments go straight onto the device from now on, or through the journal.
    Apply(bool),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => any::<u64>().prop_map(Action::Write),
        2 => Just(Action::WriteBack),
        3 => Just(Action::Run),
        3 => (0..1000u64, any::<bool>()).prop_map(|(permille, by_source)| Action::Cut { permille, by_source }),
        6 => (0..70u64, any::<bool>(), any::<u64>()).prop_map(|(operation, at_source, seed)| Action::Crash { operation, at_source, seed }),
        1 => any::<bool>().prop_map(|at_source| Action::LoseManifest { at_source }),
        1 => any::<u64>().prop_map(Action::SwapDevice),
        1 => any::<u64>().prop_map(Action::FlipReplica),
        1 => Just(Action::Resync),
        2 => any::<bool>().prop_map(Action::Apply),
    ]
}

/// The little that has to be known to say what the replica must be.
struct Model {
    pair: Pair,
    /// What the replica was at its last whole generation, and what it may have become since.
    candidates: Vec<Arc<Vec<u8>>>,
    generation: u64,
    /// Somebody else wrote to the replica: until a resync, only refusals and honest claims are asked for.
    foreign: bool,
    /// What the volume was before its last change.
    earlier: Arc<Vec<u8>>,
    /// A pass may have gone straight onto the device: one that was cut leaves no generation.
    was_direct: bool,
}

impl Model {
    fn new() -> Model {
        let pair = large(300);
        let earlier = pair.volume();
        Model { pair, candidates: Vec::new(), generation: 0, foreign: false, earlier, was_direct: false }
    }

    fn run(&mut self, plan: &Plan) {
        self.candidates.push(self.pair.volume());
        let ran = self.pair.run(plan);
        if ran.ended_well() {
            let (source, replica) = (self.pair.source_record().expect("a record"), self.pair.replica_record().expect("a record"));
            assert_eq!((source.generation, source.root), (replica.generation, replica.root));
            assert!(replica.generation > self.generation, "a run that ends well makes a generation");
            self.foreign &= !plan.resync;
            // A side that dies in its very last step has ended well, and not yet tidied up.
            let dead = self.pair.source.is_dead() || self.pair.replica.is_dead();
            if !self.foreign && !dead {
                self.pair.assert_alike();
            }
        } else if !self.foreign && !self.pair.source.is_dead() && !self.pair.replica.is_dead() {
            let was_cut = plan.forth.cut.is_some() || plan.back.cut.is_some();
            assert!(was_cut, "nothing was wrong, and yet: {}", ran.why());
        }
    }

    /// After everything that happens: recover, and look whether the replica is what it says.
    fn check(&mut self) {
        let Some(number) = self.pair.recover().expect("nothing here damages a journal") else {
            assert!(self.generation == 0 || self.was_direct, "a replica that was whole is not");
            let record = self.pair.replica_record();
            assert!(record.is_none_or(|record| record.stage == Stage::Initializing), "it says that it is whole");
            return;
        };
        let record = self.pair.replica_record().expect("a record");
        assert!(number >= self.generation, "generations go forward");
        assert!(self.pair.source_record().expect("a record").generation <= number, "the cursor runs ahead");
        let now = self.pair.device().expect("a device");
        assert!(self.foreign || self.candidates.contains(&now), "the replica is no generation at all");
        assert_eq!((record.stage, record.generation), (Stage::Clean, number));
        (self.generation, self.candidates) = (number, vec![now]);
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Write(seed) => {
                self.earlier = self.pair.volume();
                self.pair = changed(self.pair.settle(), *seed);
            }
            Action::WriteBack => {
                let earlier = std::mem::replace(&mut self.earlier, self.pair.volume());
                self.pair.write_volume(Vec::clone(&earlier));
            }
            Action::Run => self.run(&Plan::default()),
            Action::Resync => self.run(&Plan { resync: true, ..Plan::default() }),
            Action::Apply(direct) => {
                self.pair.replica.set_apply(if *direct { Apply::Direct } else { Apply::Auto });
                self.was_direct |= *direct;
            }
            Action::Cut { permille, by_source } => {
                let whole = self.pair.fork().run(&Plan::default());
                let said = if *by_source { &whole.forth } else { &whole.back };
                let fault = Fault { cut: Some(said.len() as u64 * permille / 1000), ..Fault::default() };
                let plan = if *by_source { Plan { forth: fault, ..Plan::default() } } else { Plan { back: fault, ..Plan::default() } };
                self.run(&plan);
            }
            Action::Crash { operation, at_source, seed } => {
                let side = if *at_source { &self.pair.source } else { &self.pair.replica };
                side.die_at(*operation);
                self.run(&Plan::default());
                let mut random = Random(*seed);
                self.pair = match at_source {
                    true => Pair { source: self.pair.source.crash(&mut random), replica: self.pair.replica.settle() },
                    false => Pair { source: self.pair.source.settle(), replica: self.pair.replica.crash(&mut random) },
                };
            }
            Action::LoseManifest { at_source } => if *at_source { &self.pair.source } else { &self.pair.replica }.lose("manifest"),
            Action::SwapDevice(seed) => {
                if let Some(device) = self.pair.device() {
                    self.foreign = true;
                    self.pair.replica.put(DEVICE, Arc::new(content(device.len(), *seed)));
                }
            }
            Action::FlipReplica(bit) => {
                if let Some(device) = self.pair.device().filter(|device| !device.is_empty()) {
                    self.foreign = true;
                    self.pair.replica.flip(DEVICE, bit % (8 * device.len() as u64));
                }
            }
        }
        self.pair = self.pair.settle();
        self.check();
    }
}

#[test]
fn whatever_happens_the_replica_is_what_the_model_says() {
    hurry();
    let test = "whatever_happens_the_replica_is_what_the_model_says";
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&first_seed().to_le_bytes());
    let _lot = Lot { test, seed: first_seed(), place: "the actions stand above".into() };
    let config = Config { cases: (points(10_000) / 50).max(1) as u32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let result = runner.run(&proptest::collection::vec(action(), 1..24), |actions| {
        let mut model = Model::new();
        actions.iter().for_each(|action| model.act(action));
        let plan = Plan { resync: model.foreign, ..Plan::default() };
        model.run(&plan);
        model.pair.assert_alike();
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
