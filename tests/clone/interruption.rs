//! Interrupted at any point, the next run of the pair sends only what is missing.
//!
//! The test carries the link itself, so that the interruption comes at a known byte and never after a
//! sleep.

use crate::ferry::{BLOCK, Ended, Ferry, blocks_in_common, equal, noise};
use crate::link::Link;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("a signal");
}

/// Waits for the end of a run, then lets go of its link: the other end shares its standard error, so
/// that what was said is complete only when both are gone.
fn end(mut child: Child, link: &mut Link) -> Ended {
    wait_for_end(&mut child);
    link.cut();
    Ended::of(child.wait_with_output().expect("what it said"))
}

fn wait_for_end(child: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the run does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nobody works on a pair.
fn wait_until_free(folder: &Path) {
    let file = File::open(folder.join("lock")).expect("a lock file");
    let deadline = Instant::now() + Duration::from_secs(240);
    while file.try_lock().is_err() {
        assert!(Instant::now() < deadline, "{} stays locked", folder.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a run is stopped while the link stalls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// The first SIGINT; what is under way goes through.
    Sigint,
    /// The same by SIGTERM.
    Sigterm,
    /// The sender is gone at once, in the middle of a frame.
    Kill,
    /// The link breaks.
    Cut,
}

struct Story {
    ferry: Ferry,
    source: String,
    target: String,
}

impl Story {
    fn new(bytes: usize) -> Story {
        let ferry = Ferry::new();
        Story { source: ferry.image("source", &noise(1, bytes)), target: ferry.name("target"), ferry }
    }

    fn there(&self) -> String {
        format!("there:{}", self.target)
    }

    /// Options of a run over an ordinary link. Stored, so that bytes on the link are bytes of the volume.
    fn options(&self) -> Vec<String> {
        [self.ferry.remote(), vec!["--compress=none".to_owned()]].concat()
    }

    fn run(&self) -> crate::ferry::Summary {
        let options = self.options();
        self.ferry.clone(&self.source, &self.there(), &options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn start_over(&self, link: &Link) -> Child {
        let options = self.ferry.remote_through(&link.shell);
        let there = self.there();
        let arguments = ["clone", &self.source, &there, "--compress=none"].into_iter().chain(options.iter().map(String::as_str));
        self.ferry.start(&arguments.collect::<Vec<_>>())
    }

    /// A run that is stopped once this much passed.
    fn interrupt(&self, bytes: usize, by: By) {
        let mut link = Link::stalling_after(&self.ferry, bytes);
        let child = self.start_over(&link);
        link.wait();
        match by {
            By::Sigint | By::Sigterm => {
                let (sent, code) = if by == By::Sigint { (Signal::SIGINT, 130) } else { (Signal::SIGTERM, 143) };
                signal(&child, sent);
                link.go_on();
                end(child, &mut link).says(code, &["stopped by a signal"]);
            }
            By::Kill => {
                signal(&child, Signal::SIGKILL);
                assert_eq!(end(child, &mut link).code, None);
            }
            By::Cut => {
                link.cut();
                end(child, &mut link).says(4, &["blockferry: "]);
            }
        }
        wait_until_free(&self.ferry.pair("remote", "replicas"));
    }
}

#[test]
fn a_first_copy_goes_on_where_it_was_stopped() {
    for by in [By::Sigint, By::Sigterm, By::Kill, By::Cut] {
        let story = Story::new(16 * MIB + 1000);
        let blocks = (16 * MIB / BLOCK + 1) as u64;
        story.interrupt(9 * MIB, by);
        let there = blocks_in_common(&story.source, &story.target);
        assert!(there > (7 * MIB / BLOCK) as u64 && there < blocks, "{by:?}: {there} of {blocks} blocks had come");
        let summary = story.run();
        assert_eq!(summary.count("sent_blocks"), blocks - there, "{by:?}");
        assert_eq!((summary.count("generation"), &summary.0["mode"]), (1, &"direct".into()));
        equal(&story.source, &story.target);
        story.run().sent_nothing();
    }
}

#[test]
fn an_increment_goes_on_where_it_was_stopped_and_the_replica_waits_for_all_of_it() {
    for by in [By::Sigint, By::Kill, By::Cut] {
        let story = Story::new(16 * MIB);
        story.run();
        let generation = fs::read(&story.source).unwrap();
        fs::write(&story.source, noise(2, 16 * MIB)).unwrap();
        story.interrupt(9 * MIB, by);
        assert!(fs::read(&story.target).unwrap() == generation, "{by:?}: the replica is no longer its generation");

        // What the journal holds, less its tables and padding, is what need not travel again.
        let blocks = (16 * MIB / BLOCK) as u64;
        let kept = fs::metadata(story.ferry.pair("remote", "replicas").join("journal")).unwrap().len() / BLOCK as u64;
        assert!(kept > (7 * MIB / BLOCK) as u64, "{by:?}: the journal kept {kept} blocks");
        let summary = story.run();
        let sent = summary.count("sent_blocks");
        assert!((blocks..blocks + 40).contains(&(sent + kept)), "{by:?}: {sent} sent again, {kept} kept, {blocks} in all");
        assert_eq!((summary.count("generation"), &summary.0["mode"]), (2, &"journal".into()));
        equal(&story.source, &story.target);
        assert!(!story.ferry.pair("remote", "replicas").join("journal").exists(), "the journal is dropped");
        story.run().sent_nothing();
    }
}

/// The source moved on between the cut and the next run: what is held is compared with what is now.
#[test]
fn a_newer_source_after_a_cut_costs_what_is_missing_and_what_changed_since() {
    let story = Story::new(16 * MIB);
    story.run();
    fs::write(&story.source, noise(2, 16 * MIB)).unwrap();
    story.interrupt(9 * MIB, By::Kill);
    let kept = fs::metadata(story.ferry.pair("remote", "replicas").join("journal")).unwrap().len() / BLOCK as u64;
    // One block in each of ten extents that the journal holds: such an extent travels whole.
    crate::ferry::change_blocks(&story.source, (0..10).map(|extent| extent * 16));
    let sent = story.run().count("sent_blocks");
    let missing = (16 * MIB / BLOCK) as u64 - kept;
    assert!((missing + 160..missing + 200).contains(&sent), "{sent} sent, {missing} missing");
    equal(&story.source, &story.target);
}

/// The receiver is killed: what it had made durable (each 64 MiB of journal) need not come again.
#[test]
fn a_killed_receiver_keeps_what_its_journal_had_synced() {
    let story = Story::new(80 * MIB);
    story.run();
    let generation = fs::read(&story.source).unwrap();
    fs::write(&story.source, noise(2, 80 * MIB)).unwrap();
    let mut link = Link::stalling_after(&story.ferry, 76 * MIB);
    let child = story.start_over(&link);
    link.wait();
    let folder = story.ferry.pair("remote", "replicas");
    // It takes what is still in pipes and buffers before it waits for more.
    let deadline = Instant::now() + Duration::from_secs(240);
    while fs::metadata(folder.join("journal")).map_or(0, |found| found.len()) < 66 * MIB as u64 {
        assert!(Instant::now() < deadline, "the journal stays short");
        std::thread::sleep(Duration::from_millis(5));
    }
    let receiver: i32 = fs::read_to_string(folder.join("lock")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(receiver), Signal::SIGKILL).unwrap();
    link.cut();
    end(child, &mut link).says(4, &["blockferry: "]);
    wait_until_free(&folder);
    assert!(fs::read(&story.target).unwrap() == generation);
    let sent = story.run().count("sent_blocks");
    assert!(sent <= (17 * MIB / BLOCK) as u64, "{sent} blocks sent again");
    equal(&story.source, &story.target);
}

/// Both ends die together: nothing was promised yet, and nothing is broken.
#[test]
fn a_killed_local_run_is_completed_by_the_next() {
    for first in [true, false] {
        // On a busy machine a run may be over before it is met.
        assert!((0..3).any(|_| is_killed_in_the_middle_and_completed(first)), "{first}");
    }
}

/// Kills a local run, a first copy or an increment, once it has written something, and has the next one complete it. Whether it was
/// alive until then.
fn is_killed_in_the_middle_and_completed(first: bool) -> bool {
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 64 * MIB)), ferry.name("target"));
    if !first {
        ferry.clone(&source, &target, &[]);
        fs::write(&source, noise(2, 64 * MIB)).unwrap();
    }
    let mut child = ferry.start(&["clone", &source, &target]);
    let growing = || match first {
        true => fs::metadata(&target).is_ok() && crate::ferry::allocated(&target) > 4 * MIB as u64,
        false => fs::metadata(ferry.pair("state", "replicas").join("journal")).is_ok_and(|found| found.len() > 4 * MIB as u64),
    };
    while !growing() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill(); // it may have ended
    let killed = child.wait().expect("its end").code().is_none();
    ferry.clone(&source, &target, &[]);
    equal(&source, &target);
    ferry.clone(&source, &target, &[]).sent_nothing();
    killed
}

/// The remote shell waits for a link that moves nothing. The first signal gives it a few seconds, the
/// second none.
#[test]
fn a_second_signal_ends_at_once() {
    let mut took = Vec::new();
    // On a busy machine both may come at once, and count as one.
    while !took.iter().any(|time| *time < Duration::from_secs(3)) {
        assert!(took.len() < 3, "it took {took:?}");
        let story = Story::new(16 * MIB);
        let mut link = Link::stalling_after(&story.ferry, 9 * MIB);
        let mut child = story.start_over(&link);
        link.wait();
        signal(&child, Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(700));
        let second = Instant::now();
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGINT);
        wait_for_end(&mut child);
        took.push(second.elapsed());
        assert_eq!(end(child, &mut link).code, Some(130));
    }
}

/// Found by reading: the run waited for the remote shell, and that for a dead link, for ever.
#[test]
fn one_signal_is_enough_on_a_dead_link() {
    let story = Story::new(16 * MIB);
    let mut link = Link::stalling_after(&story.ferry, 9 * MIB);
    let child = story.start_over(&link);
    link.wait();
    signal(&child, Signal::SIGINT);
    end(child, &mut link).says(130, &["stopping at a point to go on from; a second signal ends at once", "stopped by a signal"]);
}

/// Found by hand: Ctrl-C on a terminal reaches the remote shell too; that its end closed the connection
/// was reported as a failure of the network (exit 4).
#[test]
fn ctrl_c_that_ends_the_remote_shell_too_is_no_failure_of_the_network() {
    let story = Story::new(16 * MIB);
    let mut link = Link::stalling_after(&story.ferry, 9 * MIB);
    let child = story.start_over(&link);
    link.wait();
    // As ssh does it: the shell is gone with the same signal, the receiver on its own host only sees the cut.
    signal(&child, Signal::SIGINT);
    link.cut();
    end(child, &mut link).says(130, &["stopped by a signal"]);
    wait_until_free(&story.ferry.pair("remote", "replicas"));
    story.run();
    equal(&story.source, &story.target);
}

/// The other end was told to stop, not this one: the caller may try again.
#[test]
fn a_receiver_that_is_stopped_is_a_transient_failure_here() {
    let story = Story::new(16 * MIB);
    let mut link = Link::stalling_after(&story.ferry, 9 * MIB);
    let child = story.start_over(&link);
    link.wait();
    let receiver: i32 = fs::read_to_string(story.ferry.pair("remote", "replicas").join("lock")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(receiver), Signal::SIGTERM).unwrap();
    wait_until_free(&story.ferry.pair("remote", "replicas"));
    link.go_on();
    end(child, &mut link).says(4, &["blockferry: "]);
    story.run();
    equal(&story.source, &story.target);
}

/// `clone --json | head -1`: the progress lines of a long run find their reader gone.
#[test]
fn progress_that_nobody_reads_does_not_disturb_the_run() {
    let story = Story::new(16 * MIB);
    let mut link = Link::stalling_after(&story.ferry, 9 * MIB);
    let options = story.ferry.remote_through(&link.shell);
    let there = story.there();
    let arguments = ["clone", &story.source, &there, "--json"].into_iter().chain(options.iter().map(String::as_str));
    let mut child = story.ferry.start(&arguments.collect::<Vec<_>>());
    link.wait();
    drop(child.stdout.take());
    // The next progress line is due within a second.
    std::thread::sleep(Duration::from_millis(1500));
    link.go_on();
    let ended = end(child, &mut link);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    equal(&story.source, &story.target);
}
