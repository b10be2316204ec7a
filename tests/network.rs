//! Two hosts on a network that fails: every run either completes, or ends with exit 4 on both sides by the
//! stall limit, and the next one sends only the rest. Real processes on hosts of their own (network namespaces),
//! where one is to give up with a short stall limit. A fault begins when so many bytes have crossed, never after a sleep.

#[path = "rig/daemon.rs"]
mod daemon;
#[path = "rig/hosts.rs"]
mod hosts;
#[path = "rig/loops.rs"]
mod loops;
#[path = "rig/receiver.rs"]
mod receiver;

use daemon::Daemon;
use hosts::{Bed, Side, carried, is_possible, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receiver::{Agent, Receiver, Running, end};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// Stall limits of the sender and of the receiver that a busy peer's pulses, which come every two seconds, keep also on a machine
/// whose disk takes a while for a sync.
const SHORT: [&str; 2] = ["15s", "15s"];
/// Where a run is to live, also on a machine that stands still for a while.
const LONG: [&str; 2] = ["60s", "60s"];
/// Longer than a right end takes on a busy machine, and less than by the default limit of two minutes.
const IN_TIME: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// A volume that takes 24 seconds at the pace below: there is time for a fault in the middle, also where the test
/// has to wait for its turn on a busy machine.
const VOLUME: usize = 12 * MIB;
const PACE: [&str; 2] = ["--bandwidth", "512KiB/s"];
/// A link on which a megabyte takes longer than `SHORT`: twenty seconds and more.
const SLOW: &str = "400kbit";

/// A source and a replica on two hosts.
struct Story {
    agent: Agent,
    receiver: Receiver,
    /// The sender's stall limit.
    stall: &'static str,
    image: PathBuf,
    replica: PathBuf,
    bed: Bed,
}

impl Story {
    /// Nothing was copied yet.
    fn new(test: &str) -> Option<Story> {
        Story::over(test, None, SHORT)
    }

    /// The same with a device as the replica, where there is one, and these stall limits of the sender and the receiver.
    fn over(test: &str, device: Option<&Path>, [stall, stall_there]: [&'static str; 2]) -> Option<Story> {
        if !is_possible(test) {
            return None;
        }
        let bed = Bed::new();
        let agent = Agent::at(bed.host(Side::Source));
        let mut rest = format!("stall_timeout = \"{stall_there}\"\n{}", agent.entry("prod1", "*", "\"push\", \"verify\""));
        let receiver = match device {
            Some(path) => {
                rest += &format!("[[replica]]\nname = \"db\"\ndevice = {{ path = \"{}\" }}\n", path.display());
                Receiver::start_at(bed.host(Side::Replica), &[], &rest)
            }
            None => Receiver::start_at(bed.host(Side::Replica), &["db"], &rest),
        };
        let replica = device.map_or_else(|| receiver.image("db"), Path::to_owned);
        let image = agent.folder.path().join("volume");
        fs::write(&image, noise(1, VOLUME)).unwrap();
        Some(Story { agent, receiver, stall, image, replica, bed })
    }

    /// A run that something happens to.
    fn start(&self, more: &[&str]) -> Running {
        self.start_with(self.stall, more)
    }

    fn start_with(&self, stall: &str, more: &[&str]) -> Running {
        let fixed = ["--json", "--stall-timeout", stall];
        self.agent.start_pass("clone", &self.image, &self.receiver, "db", &[&fixed, more].concat())
    }

    /// A run to which nothing happens and that has to succeed, however long a sync takes; its summary.
    #[track_caller]
    fn completes(&self, more: &[&str]) -> Value {
        let [patient, _] = LONG;
        self.is_done(self.start_with(patient, more))
    }

    #[track_caller]
    fn is_done(&self, run: Running) -> Value {
        let summary = summary(&run.wait());
        self.is_same();
        summary
    }

    /// A first copy, and then another content: the next run has everything to send, through the journal.
    fn copied_and_changed(&self) -> Vec<u8> {
        self.completes(&[]);
        let old = fs::read(&self.image).unwrap();
        self.change(2);
        old
    }

    fn change(&self, seed: u64) {
        let file = fs::File::options().write(true).open(&self.image).unwrap();
        file.write_all_at(&noise(seed, VOLUME), 0).and_then(|()| file.sync_all()).unwrap();
    }

    /// Starts a paced run and returns when this much of it has crossed.
    fn start_and_wait(&self, bytes: usize) -> Running {
        let before = carried(self.receiver.process());
        let mut run = self.start(&PACE);
        let crossed = || carried(self.receiver.process()) >= before + bytes as u64;
        wait_until("enough of a run has crossed", || crossed() || run.is_over());
        assert!(!run.is_over(), "the run was over before anything happened to it:\n{}", self.receiver.log());
        run
    }

    #[track_caller]
    fn is_same(&self) {
        assert!(fs::read(&self.image).unwrap() == fs::read(&self.replica).unwrap(), "the replica differs from the volume");
    }

    #[track_caller]
    fn holds(&self, content: &[u8]) {
        assert!(fs::read(&self.replica).unwrap() == content, "the replica is no longer the generation it was");
    }

    /// Waits for the receiver's line about a session that failed for this reason, which has to come in time.
    #[track_caller]
    fn session_ends(&self, reason: &str) {
        let end = Instant::now() + IN_TIME;
        while !self.failures().iter().any(|line| line.contains(reason)) {
            assert!(Instant::now() < end, "no session failed with {reason:?}:\n{}", self.receiver.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn failures(&self) -> Vec<String> {
        let log = self.receiver.log();
        log.lines().filter(|line| line.contains("result=failed exit=4")).map(str::to_owned).collect()
    }

    /// The network works again: the next run sends what did not come, and nothing else.
    #[track_caller]
    fn the_rest_follows(&self, came: usize) {
        let summary = self.completes(&[]);
        let sent = count(&summary, "plain_bytes");
        assert!(sent > 0 && sent <= VOLUME - came, "{sent} bytes were sent, {came} of {VOLUME} had come before");
    }
}

#[track_caller]
fn summary(output: &Output) -> Value {
    let (code, said) = end(output);
    assert_eq!(code, Some(0), "{said}");
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    lines.into_iter().find(|line| line["type"] == "summary").unwrap_or_else(|| panic!("no summary: {said}"))
}

fn count(summary: &Value, key: &str) -> usize {
    summary[key].as_u64().unwrap_or_else(|| panic!("no {key} in {summary}")) as usize
}

/// The run gave up, in time, for this reason.
#[track_caller]
fn gives_up(run: Running, reason: &str) {
    let begun = Instant::now();
    let (code, said) = end(&run.wait());
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains(reason), "{said}");
    assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    content
}

const NOTHING_MOVED: &str = "moved no byte and got no work done for 15 seconds";

/// On a slow machine it lasts longer, and TCP waits longer still before it tries again: the stall limit is no short one here.
#[test]
fn a_partition_of_a_second_costs_a_second() {
    let Some(story) = Story::over("a_partition_of_a_second_costs_a_second", None, LONG) else { return };
    fs::write(&story.image, noise(1, VOLUME / 2)).unwrap();
    let run = story.start_and_wait(VOLUME / 6);
    story.bed.part();
    std::thread::sleep(Duration::from_secs(1));
    story.bed.heal();
    let summary = summary(&run.wait());
    assert_eq!(count(&summary, "generation"), 1);
    story.is_same();
    assert!(story.failures().is_empty(), "{}", story.receiver.log());
}

#[test]
fn a_longer_partition_ends_both_sides_and_the_next_run_sends_the_rest() {
    let Some(story) = Story::new("a_longer_partition_ends_both_sides_and_the_next_run_sends_the_rest") else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 3);
    story.bed.part();
    gives_up(run, NOTHING_MOVED);
    story.session_ends(NOTHING_MOVED);
    story.holds(&old);
    // Nobody answers: that is exit 4 as well, soon.
    let begun = Instant::now();
    let (code, said) = end(&story.start(&[]).wait());
    assert!(code == Some(4) && said.contains("connect to"), "{said}");
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    story.holds(&old);
    story.bed.heal();
    story.the_rest_follows(VOLUME / 6);
}

#[test]
fn a_first_copy_over_a_partition_goes_on_where_it_was() {
    let Some(story) = Story::new("a_first_copy_over_a_partition_goes_on_where_it_was") else { return };
    let run = story.start_and_wait(VOLUME / 3);
    story.bed.part();
    gives_up(run, NOTHING_MOVED);
    story.session_ends(NOTHING_MOVED);
    story.bed.heal();
    story.the_rest_follows(VOLUME / 6);
}

#[test]
fn a_cable_that_is_pulled_and_an_interface_that_goes_down_are_noticed() {
    let Some(story) = Story::new("a_cable_that_is_pulled_and_an_interface_that_goes_down_are_noticed") else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 4);
    story.bed.pull(Side::Source);
    gives_up(run, NOTHING_MOVED);
    story.session_ends(NOTHING_MOVED);
    story.bed.plug(Side::Source);
    // Half open: the sender's own interface is gone, the receiver's is there.
    let run = story.start_and_wait(VOLUME / 4);
    story.bed.down(Side::Source);
    gives_up(run, "");
    wait_until("the second session ends, too", || story.failures().len() == 2);
    story.holds(&old);
    story.bed.up(Side::Source);
    story.the_rest_follows(VOLUME / 3);
}

#[test]
fn a_receiver_that_stands_still_is_given_up_and_serves_on_when_it_wakes() {
    let Some(story) = Story::new("a_receiver_that_stands_still_is_given_up_and_serves_on_when_it_wakes") else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 3);
    story.receiver.signal(Signal::SIGSTOP);
    gives_up(run, NOTHING_MOVED);
    story.receiver.signal(Signal::SIGCONT);
    story.session_ends("");
    story.holds(&old);
    story.the_rest_follows(VOLUME / 6);
}

#[test]
fn a_sender_that_stands_still_is_given_up_and_its_next_run_goes_on() {
    let Some(story) = Story::new("a_sender_that_stands_still_is_given_up_and_its_next_run_goes_on") else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 3);
    let process = Pid::from_raw(run.process() as i32);
    kill(process, Signal::SIGSTOP).unwrap();
    story.session_ends(NOTHING_MOVED);
    story.holds(&old);
    kill(process, Signal::SIGCONT).unwrap();
    gives_up(run, "");
    story.the_rest_follows(VOLUME / 6);
}

#[test]
fn a_host_that_vanishes_is_given_up_and_comes_back_with_what_it_had() {
    let Some(mut story) = Story::new("a_host_that_vanishes_is_given_up_and_comes_back_with_what_it_had") else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 3);
    story.bed.vanish(Side::Replica);
    story.receiver.kill();
    gives_up(run, "");
    story.holds(&old);
    story.bed.appear(Side::Replica);
    story.receiver.restart();
    // A power cut costs what no sync had made durable: with a journal this small, maybe all.
    story.the_rest_follows(0);
}

/// The sender's own limit would end it far later.
#[test]
fn a_reset_ends_a_run_at_once_and_the_other_side_within_its_limit() {
    let test = "a_reset_ends_a_run_at_once_and_the_other_side_within_its_limit";
    let Some(story) = Story::over(test, None, ["2min", "15s"]) else { return };
    let old = story.copied_and_changed();
    let run = story.start_and_wait(VOLUME / 3);
    story.bed.reset();
    gives_up(run, "connection");
    // Who says nothing meanwhile is told nothing.
    story.session_ends("");
    story.holds(&old);
    story.bed.heal();
    story.the_rest_follows(VOLUME / 6);
}

#[test]
fn a_slow_link_is_used_whole_and_a_limit_below_it_holds() {
    let Some(story) = Story::over("a_slow_link_is_used_whole_and_a_limit_below_it_holds", None, LONG) else { return };
    story.bed.slow("10mbit");
    let mut seeds = 3..;
    // Two megabytes are 17 Mbit, and what frames and packets add. A busy machine may take longer a few times.
    let mut takes = |limit: &str, expected: std::ops::Range<f64>| {
        let mut times = Vec::new();
        while !times.iter().any(|took| *took < expected.end) {
            assert!(times.len() < 5, "2 MiB over 10 Mbit/s with {limit} took {times:?} seconds");
            fs::write(&story.image, noise(seeds.next().unwrap(), 2 * MIB)).unwrap();
            let begun = Instant::now();
            story.completes(&["--bandwidth", limit]);
            times.push(begun.elapsed().as_secs_f64());
        }
        assert!(times.iter().all(|took| *took >= expected.start), "2 MiB over 10 Mbit/s with {limit} took {times:?} seconds");
    };
    takes("100MiB/s", 1.5..5.0);
    takes("4Mbit/s", 3.8..8.0);
    assert!(story.failures().is_empty(), "{}", story.receiver.log());
}

/// A megabyte, which is one buffer of the sender, takes longer here than the stall limit. It once ended the run: nobody saw
/// that the bytes arrived.
#[test]
fn a_link_of_less_than_a_megabit_is_slow_and_not_dead() {
    let Some(story) = Story::over("a_link_of_less_than_a_megabit_is_slow_and_not_dead", None, SHORT) else { return };
    fs::write(&story.image, noise(5, MIB + MIB / 8)).unwrap();
    story.bed.slow(SLOW);
    story.is_done(story.start(&[]));
    assert!(story.failures().is_empty(), "{}", story.receiver.log());
}

/// Starts a run of three connections and returns when they carry it. The caller holds it back to some two megabytes a second: it
/// goes over them after four seconds and has a dozen left.
fn start_on_three(story: &Story, more: &[&str]) -> Running {
    fs::write(&story.image, noise(6, 3 * VOLUME)).unwrap();
    let mut run = story.start(&[&["--connections", "3"], more].concat());
    // The session, and each connection, is a thread.
    wait_until("the connections are open", || story.receiver.threads() >= 5 || run.is_over());
    std::thread::sleep(Duration::from_secs(1));
    assert!(!run.is_over(), "the run was over too soon to prove anything:\n{}", story.receiver.log());
    run
}

#[test]
fn several_connections_over_a_partition_are_given_up_together_and_go_on() {
    let Some(story) = Story::new("several_connections_over_a_partition_are_given_up_together_and_go_on") else { return };
    let run = start_on_three(&story, &["--bandwidth", "2MiB/s"]);
    story.bed.part();
    std::thread::sleep(Duration::from_secs(1));
    story.bed.heal();
    std::thread::sleep(Duration::from_millis(500));
    story.bed.part();
    gives_up(run, NOTHING_MOVED);
    story.session_ends(NOTHING_MOVED);
    story.bed.heal();
    let summary = story.completes(&["--connections", "3"]);
    let sent = count(&summary, "plain_bytes");
    assert!(sent > 0 && sent < 3 * VOLUME, "{sent}");
}

/// Three pieces of a megabyte share a link on which each of them takes longer than the stall limit. It is the link that is slow
/// before, too: a limit of the sender's own would cut the pieces into smaller ones.
#[test]
fn several_connections_on_a_link_that_became_slow_are_slow_and_not_dead() {
    let test = "several_connections_on_a_link_that_became_slow_are_slow_and_not_dead";
    let Some(story) = Story::over(test, None, SHORT) else { return };
    story.bed.slow("16mbit");
    let mut run = start_on_three(&story, &[]);
    story.bed.slow(SLOW);
    std::thread::sleep(Duration::from_secs(30));
    assert!(!run.is_over(), "{}", story.receiver.log());
    story.bed.slow("1gbit");
    let summary = summary(&run.wait());
    assert_eq!(count(&summary, "generation"), 1);
    story.is_same();
    assert!(story.failures().is_empty(), "{}", story.receiver.log());
}

#[test]
fn a_commit_whose_link_is_gone_happens_and_the_next_run_adopts_it() {
    let test = "a_commit_whose_link_is_gone_happens_and_the_next_run_adopts_it";
    if !loops::is_root(test) || !daemon::is_installed(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::File::create(&base).and_then(|file| file.set_len(VOLUME as u64)).unwrap();
    // A disk that needs four seconds to apply.
    let device = Daemon::slow(&base, 3 << 20);
    let Some(story) = Story::over(test, Some(device.path()), SHORT) else { return };
    story.copied_and_changed();
    let record = fs::read_dir(story.receiver.state().join("replicas")).unwrap().next().unwrap().unwrap().path().join("record");
    let is_applying = || fs::read_to_string(&record).is_ok_and(|text| text.contains("applying"));
    let (mut tries, mut generation) = (1, 2);
    let run = loop {
        let mut run = story.start(&[]);
        wait_until("the commit begins", || is_applying() || run.is_over());
        story.bed.pull(Side::Replica);
        if is_applying() {
            break run;
        }
        // On a machine that stood still just then it is tried again, with another content.
        assert!(tries < 3, "the link went too late to prove anything, three times");
        story.bed.plug(Side::Replica);
        run.wait();
        story.receiver.wait_for(&format!("result=committed generation={generation}"));
        generation = count(&story.completes(&[]), "generation") + 1;
        story.change(generation as u64);
        tries += 1;
    };
    story.receiver.wait_for(&format!("result=committed generation={generation}"));
    gives_up(run, NOTHING_MOVED);
    story.is_same();
    story.bed.plug(Side::Replica);
    let summary = story.completes(&[]);
    assert_eq!((count(&summary, "adopted_generation"), count(&summary, "plain_bytes")), (generation, 0), "{summary}");
}

#[test]
fn what_a_killed_test_left_is_removed_by_the_next() {
    if !is_possible("what_a_killed_test_left_is_removed_by_the_next") {
        return;
    }
    // No process has this number: it is above the kernel's largest.
    let left = "bf-4194305-0-s";
    assert!(std::process::Command::new("ip").args(["netns", "add", left]).status().unwrap().success());
    let mut sleeper = std::process::Command::new("ip").args(["netns", "exec", left, "sleep", "600"]).spawn().unwrap();
    // It is in there when it has become what it was to start; or another test has removed it already.
    let name = format!("/proc/{}/comm", sleeper.id());
    let sleeps = || fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep");
    wait_until("something runs on the host", || sleeps() || sleeper.try_wait().unwrap().is_some());
    let _bed = Bed::new();
    assert!(!Path::new("/run/netns").join(left).exists(), "the namespace is still there");
    // What ran in it was ended, too: this does not wait ten minutes.
    assert!(!sleeper.wait().unwrap().success());
}
