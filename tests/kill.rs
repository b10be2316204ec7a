//! kill -9 of the real binary at every durable step of both sides (T3): afterwards the replica is some
//! committed generation, or is completed to one without its source; a second run completes the pass, and
//! nothing is left over. A fail point that no scenario reaches is a failure: it would prove nothing.
#![cfg(feature = "failpoints")]

#[path = "rig/stand.rs"]
mod ferry;

use blockferry::attempt::find_replica;
use blockferry::failpoint;
use blockferry::receiver;
use blockferry::ring::Choice;
use blockferry::state::{Stage, StateDir};
use ferry::{Dice, Ferry, assert_same, change_image, make_image};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

const VOLUME_BYTES: u64 = (12 << 20) + 4096 + 512;
/// Small extents: several manifest pages on a small volume.
const OPTIONS: &[&str] = &["--extent-size=16K"];
const OCCURRENCES_MAX: u32 = 3;

/// What runs when the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    FirstLocal,
    IncrementLocal,
    /// The run before was killed when the receiver had committed and the sender did not know.
    LostAck,
    /// The operator distrusts the manifest.
    Rehash,
    FirstPush(Side),
    IncrementPush(Side),
    /// The sender dies when it has sent everything; the receiver saves what came, and dies of that.
    FirstCut,
    IncrementCut,
}

/// Which of two processes has the fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

/// Who completes what the kill cut: the next run, the library, or the operator's command.
#[derive(Clone, Copy, Debug)]
enum Aftermath {
    Rerun,
    Recover,
    Doctor,
}

/// One pair, used again and again: each kill is followed by a run that completes it.
struct Story {
    ferry: Ferry,
    dice: Dice,
    scenario: Scenario,
    /// What the replica holds by the last commit, and what the run under test brings.
    held: PathBuf,
    next: PathBuf,
    generation: u64,
}

impl Story {
    fn new(scenario: Scenario) -> Story {
        let ferry = Ferry::new();
        let mut dice = Dice(scenario_seed(scenario));
        make_image(&ferry.source, VOLUME_BYTES, &mut dice);
        let (held, next) = (ferry.at("held.img"), ferry.at("next.img"));
        let mut story = Story { ferry, dice, scenario, held, next, generation: 0 };
        if !story.is_first() {
            story.rerun();
        }
        story
    }

    fn is_first(&self) -> bool {
        matches!(self.scenario, Scenario::FirstLocal | Scenario::FirstPush(_) | Scenario::FirstCut)
    }

    fn is_cut(&self) -> bool {
        matches!(self.scenario, Scenario::FirstCut | Scenario::IncrementCut)
    }

    fn is_push(&self) -> bool {
        matches!(self.scenario, Scenario::FirstPush(_) | Scenario::IncrementPush(_) | Scenario::FirstCut | Scenario::IncrementCut)
    }

    fn state_there(&self) -> PathBuf {
        if self.is_push() { self.ferry.there.clone() } else { self.ferry.here.clone() }
    }

    /// The clone that the scenario is about, with nothing that kills it.
    fn command(&self, options: &[&str]) -> std::process::Command {
        let options: Vec<&str> = OPTIONS.iter().chain(options).copied().collect();
        if self.is_push() { self.ferry.push(&options, "") } else { self.ferry.local(&options) }
    }

    /// Completes the pair and proves it.
    fn rerun(&mut self) {
        self.ferry.run(self.command(&[])).succeeds();
        if self.is_push() {
            assert_eq!(self.ferry.status_there(), Some(0));
        }
        assert_same(&self.ferry.source, &self.ferry.target, "after the rerun");
        let (generation, stage) = self.ferry.generation(&self.state_there());
        assert!(generation > self.generation && stage == "clean", "generation {generation} {stage} after {}", self.generation);
        self.generation = generation;
        self.ferry.nothing_is_left(&self.ferry.here);
        if self.is_push() {
            self.ferry.nothing_is_left(&self.ferry.there);
        }
        fs::copy(&self.ferry.source, &self.held).expect("a copy");
    }

    /// Forgets the pair: a first copy needs a new one.
    fn start_over(&mut self) {
        let gone = |path: &PathBuf| fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
        [&self.ferry.here, &self.ferry.there, &self.ferry.target].into_iter().for_each(|path| drop(gone(path)));
        self.generation = 0;
    }

    /// Runs up to the fail point. `false`: it was not reached, and the run went through.
    fn dies(&mut self, point: &str) -> bool {
        if self.is_first() {
            self.start_over();
        } else {
            change_image(&self.ferry.source, &mut self.dice);
        }
        if self.scenario == Scenario::LostAck {
            let mut lost = self.command(&[]);
            lost.env("BLOCKFERRY_FAILPOINT", "sender.acknowledged");
            assert!(self.ferry.run(lost).was_killed());
            self.generation += 1;
            assert_eq!(self.ferry.generation(&self.state_there()).0, self.generation);
            fs::copy(&self.ferry.source, &self.held).expect("a copy");
            change_image(&self.ferry.source, &mut self.dice);
        }
        fs::copy(&self.ferry.source, &self.next).expect("a copy");
        let options: &[&str] = if self.scenario == Scenario::Rehash { &["--resync"] } else { &[] };
        let (sender, receiver) = match self.scenario {
            Scenario::FirstPush(Side::Receiver) | Scenario::IncrementPush(Side::Receiver) => ("", point),
            Scenario::FirstCut | Scenario::IncrementCut => ("sender.next-sealed", point),
            _ => (point, ""),
        };
        let mut command = self.command(options);
        if !receiver.is_empty() {
            command = self.ferry.push(OPTIONS, receiver);
        }
        if !sender.is_empty() {
            command.env("BLOCKFERRY_FAILPOINT", sender);
        }
        let run = self.ferry.run(command);
        let dead = if receiver.is_empty() { run.was_killed() } else { self.ferry.status_there() == Some(128 + 9) };
        if self.is_push() {
            self.ferry.status_there();
        }
        if !dead && !self.is_cut() {
            run.succeeds();
            assert_same(&self.ferry.source, &self.ferry.target, "after a run that was not killed");
        }
        dead
    }

    /// What the replica is now, as its record says. Before anything was completed.
    fn check_as_killed(&self) {
        let state = StateDir::open(&self.state_there()).expect("the state directory");
        let Some(record) =
            find_replica(&state, self.ferry.target.to_str().expect("plain text"), Choice::Auto).ok().map(|(_, record)| record)
        else {
            return assert_eq!(self.generation, 0, "the record is gone");
        };
        match record.stage {
            Stage::Clean => self.check_content(record.generation, "as it was killed"),
            Stage::Applying { generation, .. } => assert_eq!(generation, self.generation + 1),
            Stage::Initializing => assert_eq!(self.generation, 0),
        }
    }

    fn check_content(&self, generation: u64, when: &str) {
        let expected = match generation.checked_sub(self.generation) {
            Some(0) => &self.held,
            Some(1) => &self.next,
            _ => panic!("generation {generation} {when}, it was {}", self.generation),
        };
        assert_same(expected, &self.ferry.target, &format!("generation {generation} {when}"));
    }

    /// Completes what was cut without the source (I5), and proves what came of it.
    fn complete(&self, aftermath: Aftermath) {
        let state = self.state_there();
        match aftermath {
            Aftermath::Rerun => return,
            Aftermath::Doctor => {
                let fixed = self.ferry.doctor(&state, &["--fix"]);
                let failures = &fixed.lines("summary")[0]["failures"];
                assert_eq!(failures, &serde_json::json!([]), "{}", fixed.out);
                assert!(fixed.lines("leftover").iter().all(|left| left["fixable"] == false), "{}", fixed.out);
            }
            Aftermath::Recover => {
                let state = StateDir::open(&state).expect("the state directory");
                let Ok((mut site, _)) = find_replica(&state, self.ferry.target.to_str().expect("plain text"), Choice::Auto) else { return };
                let disk = site.open_disk(true).expect("the replica opens").expect("the replica exists");
                receiver::recover(&*site, disk).expect("recovery");
            }
        }
        let (generation, stage) = self.ferry.generation(&state);
        match stage.as_str() {
            "clean" | "clean, to be read anew by the next clone" => self.check_content(generation, "recovered"),
            "none" => assert_eq!(self.generation, 0),
            _ => assert!(stage.starts_with("initializing") && self.generation == 0, "{stage}"),
        }
    }
}

fn scenario_seed(scenario: Scenario) -> u64 {
    format!("{scenario:?}").bytes().fold(3, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte))
}

/// Kills at every point the scenario reaches, with every aftermath in turn; returns the points' names.
fn kill_everywhere(scenario: Scenario) -> BTreeSet<&'static str> {
    let mut story = Story::new(scenario);
    let mut reached = BTreeSet::new();
    let mut kills = 0;
    for name in failpoint::ALL {
        for occurrence in 1..=OCCURRENCES_MAX {
            let point = format!("{name}:{occurrence}");
            let died = |story: &mut Story, aftermath: Aftermath| {
                STEP.set(format!("{scenario:?} {point} {aftermath:?}"));
                let died = story.dies(&point);
                if died {
                    story.check_as_killed();
                    story.complete(aftermath);
                }
                story.rerun();
                died
            };
            if !died(&mut story, Aftermath::Rerun) {
                break;
            }
            died(&mut story, if kills % 2 == 0 { Aftermath::Recover } else { Aftermath::Doctor });
            kills += 1;
            reached.insert(*name);
        }
    }
    eprintln!("{scenario:?}: {kills} places, each killed twice; {} names", reached.len());
    reached
}

thread_local! {
    /// What is under way, for the message of a failure.
    static STEP: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

#[test]
fn a_kill_at_any_durable_step_leaves_a_generation_and_nothing_else() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        STEP.with_borrow(|step| eprintln!("killed at: {step}"));
        quiet(info);
    }));
    use Scenario::*;
    let scenarios = [
        FirstLocal,
        IncrementLocal,
        LostAck,
        Rehash,
        FirstPush(Side::Sender),
        FirstPush(Side::Receiver),
        IncrementPush(Side::Sender),
        IncrementPush(Side::Receiver),
        FirstCut,
        IncrementCut,
    ];
    let reached: BTreeSet<&str> = std::thread::scope(|scope| {
        let all: Vec<_> = scenarios
            .chunks(4)
            .map(|part| scope.spawn(|| part.iter().flat_map(|one| kill_everywhere(*one)).collect::<BTreeSet<_>>()))
            .collect();
        all.into_iter().flat_map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let never: Vec<_> = failpoint::ALL.iter().filter(|name| !reached.contains(**name)).collect();
    assert!(never.is_empty(), "no scenario reaches {never:?}");
}
