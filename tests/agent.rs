//! The agent on real processes: a host with volumes, receivers on loopback, schedules of seconds. What happens to it
//! here is what happens in years: receivers go away and come back, the agent is killed, jobs are renamed, people stop
//! what runs. Chance is seeded: `BLOCKFERRY_SEED=N cargo test --test agent` repeats a run.

#[path = "rig/keeper.rs"]
mod keeper;
#[path = "rig/loops.rs"]
mod loops;
#[path = "rig/receiver.rs"]
mod receiver;

use blockferry::agent::book::JobBook;
use blockferry::state::{HostFiles, Side, SourceRecord};
use keeper::{Keeper, edit};
use loops::Loop;
use nix::sys::signal::Signal;
use receiver::Receiver;
use std::fs;
use std::io::{Seek, SeekFrom};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const BOTH: &str = "\"push\", \"verify\"";
const QUICK: &str = "[defaults]\nretry = { initial = \"1s\", max = \"4s\", jitter = 0.2 }\n";
/// What takes longer hangs, also on a busy machine. The stall limit, which ends a transfer that nobody stops, is longer.
const HANGS: Duration = Duration::from_secs(60);

/// Seeded chance.
struct Dice(u64);

impl Dice {
    fn new(test: &str) -> Dice {
        let seed = std::env::var("BLOCKFERRY_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| blockferry::attempt::now_ms() % 1_000_000);
        println!("{test}: BLOCKFERRY_SEED={seed}");
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes.div_ceil(8)).flat_map(|_| self.roll(u64::MAX).to_le_bytes()).take(bytes).collect()
    }

    /// Writes something somewhere.
    fn change(&mut self, volume: &Path) {
        let blocks = fs::File::open(volume).and_then(|mut file| file.seek(SeekFrom::End(0))).expect("a volume") / 4096;
        let (at, bytes) = (self.roll(blocks) * 4096, self.noise(4096));
        edit(volume, at, &bytes);
    }
}

#[track_caller]
fn equal(a: impl AsRef<Path>, b: impl AsRef<Path>) {
    let (left, right) = (fs::read(&a).expect("a volume"), fs::read(&b).expect("a replica"));
    assert!(left == right, "{} and {} differ", a.as_ref().display(), b.as_ref().display());
}

fn failing_exit(book: &JobBook, receiver: &str) -> Option<u8> {
    book.legs.iter().filter(|leg| leg.receiver == receiver).find_map(|leg| leg.failure.as_ref()).map(|failure| failure.exit)
}

/// Stops the job's run by `abort`. Whether that ended it: it may have come to its own end just then.
fn stops(keeper: &Keeper, job: &str) -> bool {
    let began = Instant::now();
    let (mut code, mut said) = keeper.run(&["abort", job]);
    // An agent that is too busy to answer stops the run all the same, and then the book tells of it.
    let was_busy = code == Some(4);
    while code == Some(4) && began.elapsed() < HANGS {
        (code, said) = keeper.run(&["abort", job]);
    }
    assert!(code == Some(0) && began.elapsed() < HANGS, "{code:?} after {:?}: {said}", began.elapsed());
    let exit = keeper.book(job).last.and_then(|last| last.failure).map(|failure| failure.exit);
    said.contains("stopped; what came is kept") || was_busy && exit == Some(130)
}

/// The pairs of a host: how many, and the generation of the one with this source.
fn pairs(keeper: &Keeper, source: &str) -> (usize, u64) {
    let state = &keeper.host.state;
    let all = state.relationships(Side::Sources).expect("pairs");
    let load = |pair| SourceRecord::load(&HostFiles::new(&state.folder(Side::Sources, pair))).ok().flatten();
    let path = fs::canonicalize(keeper.path(source)).expect("a volume");
    let found = all.iter().filter_map(load).find(|record| record.source.path == path).map_or(0, |record| record.generation);
    (all.len(), found)
}

#[test]
fn a_life_with_two_receivers_three_volumes_and_accidents() {
    let mut dice = Dice::new("a_life");
    let mut keeper = Keeper::new();
    let entry = keeper.host.entry("prod1", "*", BOTH);
    let one = Receiver::start(&["a", "b", "c"], &entry);
    let mut two = Receiver::start(&["a", "b"], &entry);
    // Real block devices where that is possible: each volume is a link to its loop device.
    let devices = loops::is_root("a_life_with_two_receivers_three_volumes_and_accidents");
    let mut attached = Vec::new();
    for (name, mib) in [("a", 1), ("b", 2), ("c", 3)] {
        let image = keeper.path(&if devices { format!("{name}.img") } else { name.to_owned() });
        fs::write(&image, dice.noise(mib << 20)).unwrap();
        if devices {
            let device = Loop::over(&image, 512);
            std::os::unix::fs::symlink(&device.0, keeper.path(name)).unwrap();
            attached.push(device);
        }
    }
    let receivers = [QUICK.to_owned(), Keeper::receiver("one", &one), Keeper::receiver("two", &two)].concat();
    let pair = keeper.job("pair", &["one", "two"], &["a", "b"], "every = \"1s\"");
    let solo = |name: &str| keeper.job(name, &["one"], &["c"], "continuous = true\npause = \"500ms\"");
    let (solo, single) = (solo("solo"), solo("single"));
    keeper.configure(&format!("{receivers}{pair}{solo}"));
    let check = |keeper: &Keeper, two: &Receiver| {
        for volume in ["a", "b"] {
            equal(keeper.path(volume), one.image(volume));
            equal(keeper.path(volume), two.image(volume));
        }
        equal(keeper.path("c"), one.image("c"));
    };
    keeper.start();
    keeper.wait_current("pair");
    keeper.wait_current("solo");
    check(&keeper, &two);
    for _ in 0..3 {
        let volume = ["a", "b", "c"][dice.roll(3) as usize];
        dice.change(&keeper.path(volume));
        keeper.wait_current(if volume == "c" { "solo" } else { "pair" });
        check(&keeper, &two);
    }

    // One receiver goes away: the other goes on, the failure is counted and has its code.
    assert_eq!(two.stop(), Some(0));
    // While nothing is written, nobody has to be reached.
    dice.change(&keeper.path("a"));
    keeper.wait("the job has failed three times", || keeper.book("pair").failures >= 3);
    let book = keeper.book("pair");
    assert_eq!((failing_exit(&book, "one"), failing_exit(&book, "two")), (None, Some(4)));
    dice.change(&keeper.path("a"));
    keeper.wait("the other receiver is current", || fs::read(keeper.path("a")).unwrap() == fs::read(one.image("a")).unwrap());
    two.restart_here("");
    keeper.wait_current("pair");
    assert_eq!((keeper.book("pair").failures, failing_exit(&keeper.book("pair"), "two")), (0, None));
    check(&keeper, &two);

    // The agent is killed at any moment.
    for _ in 0..3 {
        dice.change(&keeper.path("b"));
        std::thread::sleep(Duration::from_millis(dice.roll(700)));
        keeper.kill();
        dice.change(&keeper.path("c"));
        keeper.start();
        keeper.wait_current("pair");
        keeper.wait_current("solo");
        check(&keeper, &two);
    }

    // A job gets another name: the pair is the same, and goes on.
    let (number, generation) = pairs(&keeper, "c");
    keeper.configure(&format!("{receivers}{pair}{single}"));
    keeper.signal(Signal::SIGHUP);
    dice.change(&keeper.path("c"));
    keeper.wait_current("single");
    let after = pairs(&keeper, "c");
    assert!(after.0 == number && after.1 > generation, "{after:?} after {number} pairs and generation {generation}");
    check(&keeper, &two);
    // A configuration with a mistake changes nothing.
    keeper.configure("[[job]]\nname = 7\n");
    keeper.signal(Signal::SIGHUP);
    keeper.wait("the log names the mistake", || keeper.log().contains("the configuration stays as it was"));
    keeper.wait_current("pair");
    keeper.configure(&format!("{receivers}{pair}{single}"));

    // A pause holds, with an agent that runs, until it is over.
    let (code, said) = keeper.run(&["pause", "pair"]);
    assert_eq!(code, Some(0), "{said}");
    keeper.wait("the pause is seen", || keeper.seen("pair")["why"] == "paused" && keeper.seen("pair")["run"].is_null());
    let last = keeper.book("pair").last.unwrap().run_id;
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(keeper.book("pair").last.unwrap().run_id, last, "a paused job ran");
    let (code, said) = keeper.run(&["resume", "pair"]);
    assert_eq!(code, Some(0), "{said}");
    keeper.wait_current("pair");

    let (code, _) = keeper.stop();
    assert_eq!(code, Some(0));
    check(&keeper, &two);
}

#[test]
fn a_receiver_that_is_away_is_tried_ever_more_seldom_and_found_again() {
    let mut dice = Dice::new("a_receiver_that_is_away");
    let mut keeper = Keeper::new();
    let mut receiver = Receiver::start(&["a"], &keeper.host.entry("prod1", "*", BOTH));
    fs::write(keeper.path("a"), dice.noise(1 << 20)).unwrap();
    let job = keeper.job("rare", &["one"], &["a"], "every = \"1h\"");
    let slower = QUICK.replace("\"1s\"", "\"2s\"").replace("\"4s\"", "\"8s\"");
    keeper.configure(&format!("{slower}{}{job}", Keeper::receiver("one", &receiver)));
    keeper.start();
    // Its first run may be over already: the next is an hour away.
    keeper.wait_current_since("rare", 0);
    keeper.wait("the next run is an hour away", || {
        let book = keeper.book("rare");
        book.next_why.as_deref() == Some("schedule") && book.next_due_ms > book.last.map(|last| last.started_ms + 3_500_000)
    });
    receiver.stop();
    dice.change(&keeper.path("a"));
    // By hand, beside the agent: the same lock, the same book.
    let (code, said) = keeper.run(&["run", "rare"]);
    assert_eq!(code, Some(4), "{said}");
    // Whoever looks may miss a state on a busy machine, but sees some of them.
    let mut waits = std::collections::BTreeMap::new();
    keeper.wait("it has failed four times", || {
        let book = keeper.book("rare");
        let (Some(last), Some(due)) = (&book.last, book.next_due_ms) else { return false };
        if book.next_why.as_deref() == Some("retry") && due >= last.finished_ms && book.running.is_none() {
            waits.insert(book.failures, due - last.finished_ms);
        }
        waits.len() >= 2 && waits.keys().any(|failures| *failures >= 4)
    });
    for (failures, wait) in waits {
        let full = (2000 << (failures - 1)).min(8000);
        assert!((full * 8 / 10 - 1..=full).contains(&wait), "after {failures} failures {wait} ms");
    }
    receiver.restart_here("");
    keeper.wait("it is found again", || keeper.book("rare").failures == 0);
    keeper.wait("the schedule goes on", || keeper.book("rare").next_why.as_deref() == Some("schedule"));
    equal(keeper.path("a"), receiver.image("a"));
}

#[test]
fn what_runs_is_stopped_in_every_phase_and_goes_on_from_there() {
    let mut dice = Dice::new("what_runs_is_stopped");
    let mut keeper = Keeper::new();
    let receiver = Receiver::start(&["a", "b"], &keeper.host.entry("prod1", "*", BOTH));
    fs::write(keeper.path("a"), dice.noise(2 << 20)).unwrap();
    fs::write(keeper.path("b"), dice.noise(1 << 20)).unwrap();
    // Somebody listens, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("[[receiver]]\nname = \"mute\"\naddress = \"{}\"\npin = \"{}\"\n", mute.local_addr().unwrap(), receiver.pin);
    // Forty seconds for the volume of one, ten for what the other gets.
    let slow = "bandwidth = [{ limit = \"50KiB/s\" }]\n";
    let slower = "bandwidth = [{ limit = \"25KiB/s\" }]\n";
    let configure = |keeper: &Keeper, limit: &str, limit_of_commits: &str| {
        let jobs = [
            keeper.job("slow", &["one"], &["a"], &format!("every = \"1h\"\n{limit}")),
            keeper.job("waits", &["mute"], &["a"], ""),
            keeper.job("commits", &["one"], &["b"], &format!("every = \"1h\"\n{limit_of_commits}")),
        ];
        keeper.configure(&format!("{QUICK}{mute}{}{}", Keeper::receiver("one", &receiver), jobs.concat()));
    };
    configure(&keeper, slow, "");
    keeper.start();
    let stopped = |keeper: &Keeper, job: &str| {
        assert!(stops(keeper, job), "{job} was not stopped:\n{}", keeper.log());
        let book = keeper.book(job);
        assert_eq!(book.last.unwrap().failure.unwrap().exit, 130);
        assert!(book.running.is_none());
    };

    // While it copies; a second run of it never begins.
    keeper.wait("it copies", || keeper.phase("slow") == "copying");
    let (code, said) = keeper.run(&["run", "slow"]);
    assert!(code == Some(5) && said.contains("in use by process") && said.contains("blockferry abort slow"), "{code:?} {said}");
    stopped(&keeper, "slow");
    keeper.wait("it waits for its schedule", || keeper.seen("slow")["why"] == "schedule" && keeper.seen("slow")["run"].is_null());
    let (code, said) = keeper.run(&["abort", "slow"]);
    assert!(code == Some(0) && said.contains("no run is under way"), "{said}");

    // While it connects: it gives up by itself after a while, which may be now.
    let stops_connecting = (0..5).any(|_| {
        keeper.ask_for_run("waits");
        keeper.wait("it connects", || keeper.phase("waits") == "connecting");
        stops(&keeper, "waits")
    });
    assert!(stops_connecting, "{}", keeper.log());

    // The agent's own end: what was stopped is taken up by the next start, without waiting for the hour.
    keeper.ask_for_run("slow");
    keeper.wait("it copies again", || keeper.phase("slow") == "copying");
    let (code, time) = keeper.stop();
    assert!(code == Some(0) && time < HANGS, "{code:?} {time:?}");
    assert!(keeper.book("slow").unfinished.is_some());
    configure(&keeper, "", "");
    keeper.start();
    keeper.wait("it is finished", || {
        let book = keeper.book("slow");
        book.unfinished.is_none() && book.last_success_ms.is_some()
    });
    equal(keeper.path("a"), receiver.image("a"));

    // While it commits: what is left to send fits into the connection of a receiver that stands still, its answer does not come.
    let asked = keeper.ask_for_run("commits");
    keeper.wait_current_since("commits", asked);
    configure(&keeper, "", slower);
    keeper.signal(Signal::SIGHUP);
    keeper.wait("the limit is known", || keeper.log().contains("configuration reloaded"));
    edit(&keeper.path("b"), 0, &dice.noise(256 << 10));
    keeper.ask_for_run("commits");
    keeper.wait("it copies, slowly", || keeper.phase("commits") == "copying");
    receiver.signal(Signal::SIGSTOP);
    keeper.wait("it commits", || keeper.phase("commits") == "committing");
    stopped(&keeper, "commits");
    receiver.signal(Signal::SIGCONT);
    configure(&keeper, "", "");
    keeper.signal(Signal::SIGHUP);
    let asked = keeper.ask_for_run("commits");
    keeper.wait_current_since("commits", asked);
    equal(keeper.path("b"), receiver.image("b"));

    // A run by hand is stopped by a signal, and its process says what the books say.
    keeper.stop();
    configure(&keeper, slow, "");
    edit(&keeper.path("a"), 0, &dice.noise(2 << 20));
    let mut command = keeper.begin(&["run", "slow"]);
    keeper.wait("it runs", || keeper.shelf().runner("slow") == Some(command.id()) && keeper.book("slow").running.is_some());
    std::thread::sleep(Duration::from_millis(dice.roll(1500)));
    stopped(&keeper, "slow");
    assert_eq!(command.wait().unwrap().code(), Some(130));
    let (_, said) = keeper.run(&["history", "slow", "--last", "1"]);
    assert!(said.contains("stopped"), "{said}");
    configure(&keeper, "", "");
    // The receiver may still be making durable what came of the one before.
    keeper.wait("the next run is done", || {
        let (code, said) = keeper.run(&["run", "slow"]);
        let taken = code == Some(5) && said.contains("in use by a session");
        assert!(taken || code == Some(0), "{code:?} {said}");
        !taken
    });
    equal(keeper.path("a"), receiver.image("a"));
}

#[test]
fn a_byte_that_changes_behind_the_receivers_back_is_found_by_schedule_and_told() {
    let mut dice = Dice::new("a_byte");
    let mut keeper = Keeper::new();
    let receiver = Receiver::start(&["a"], &keeper.host.entry("prod1", "*", BOTH));
    fs::write(keeper.path("a"), dice.noise(2 << 20)).unwrap();
    let (told, changes) = (keeper.path("told"), keeper.path("changes.log"));
    let tell = format!(
        "[[job.notify]]\non = [\"verify-mismatch\"]\nexec = [\"/bin/sh\", \"-c\", \"echo $BLOCKFERRY_EVENT $BLOCKFERRY_EXIT >> {}\"]\n",
        told.display()
    );
    let verify = format!("every = \"1h\"\n[job.verify]\nschedule = \"*:*:0/2\"\nslice = \"1/2\"\n{tell}");
    let job = keeper.job("db", &["one"], &["a"], &verify);
    keeper.configure(&format!("{QUICK}{}{job}", Keeper::receiver("one", &receiver)));
    keeper.start_with(&["--log-file", changes.to_str().unwrap()]);
    keeper.wait("both slices are clean", || keeper.book("db").verify.whole_ms.is_some());
    assert!(fs::read_to_string(&changes).unwrap().contains("db"), "the agent's run is in its change log");
    keeper.wait("the log names both", || ["1/2", "2/2"].iter().all(|slice| keeper.log().contains(&format!("verified slice {slice}"))));
    assert!(!told.exists(), "something was told while all was well");

    let at = dice.roll(2 << 20);
    let was = fs::read(receiver.image("a")).unwrap()[at as usize];
    edit(&receiver.image("a"), at, &[was ^ 1]);
    keeper.wait("a slice finds it", || keeper.book("db").verify.failure.is_some_and(|failure| failure.exit == 7));
    keeper.wait("it is told", || fs::read_to_string(&told).is_ok_and(|told| told.starts_with("verify-mismatch 7\n")));
    // The clean slice after it takes nothing back.
    keeper.wait("the other slice is clean", || keeper.book("db").verify.failure.is_none());
    let (code, said) = keeper.run(&["monitor"]);
    assert!(code == Some(2) && said.contains("verify-mismatch"), "{code:?} {said}");
    let (_, said) = keeper.run(&["status", "--json"]);
    assert!(said.contains("\"verify-mismatch\""), "{said}");

    // As it was: a whole round without a difference ends it.
    edit(&receiver.image("a"), at, &[was]);
    keeper.wait("a whole round is clean again", || !keeper.book("db").verify.differed);
    let (code, said) = keeper.run(&["pause", "db"]);
    assert_eq!(code, Some(0), "{said}");
    keeper.wait("the pause is seen", || keeper.seen("db")["why"] == "paused" && keeper.seen("db")["run"].is_null());
    let done = keeper.book("db").verify.done;
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(keeper.book("db").verify.done, done, "a paused job was verified");
    let (code, said) = keeper.run(&["resume", "db"]);
    assert_eq!(code, Some(0), "{said}");

    // A receiver that stands still: the agent's end does not wait for it. One that waits takes the ten seconds of the
    // handshake every time, a busy machine only now and then.
    for turn in 1..=3 {
        receiver.signal(Signal::SIGSTOP);
        keeper.wait("a verification waits", || keeper.seen("db")["run"]["verifies"] == true);
        let (code, time) = keeper.stop();
        receiver.signal(Signal::SIGCONT);
        assert!(code == Some(0) && time < HANGS, "{code:?} {time:?}");
        if time < Duration::from_secs(8) {
            break;
        }
        assert!(turn < 3, "{time:?}:\n{}", keeper.log());
        keeper.start();
    }
    equal(keeper.path("a"), receiver.image("a"));
}

#[test]
fn a_chain_follows_each_commit_and_keeps_the_age_of_its_source() {
    let mut dice = Dice::new("a_chain");
    // The middle host has a receiver and an agent with one state directory.
    let mut source = Keeper::new();
    let middle = Receiver::start(&["a"], &source.host.entry("prod1", "*", BOTH));
    let mut chained = Keeper::with_state(&middle);
    let last = Receiver::start(&["a"], &chained.host.entry("middle", "*", BOTH));
    fs::write(source.path("a"), dice.noise(1 << 20)).unwrap();
    source.configure(&format!(
        "{QUICK}{}{}",
        Keeper::receiver("middle", &middle),
        source.job("first", &["middle"], &["a"], "every = \"1h\"")
    ));
    let volume = format!("{{ source = \"{}\", replica = \"a\" }}", middle.image("a").display());
    let second = format!("[[job]]\nname = \"second\"\nreceivers = [\"last\"]\nvolumes = [{volume}]\nafter = \"replica:a\"\n");
    chained.configure(&format!("{QUICK}{}{second}", Keeper::receiver("last", &last)));
    chained.start();
    source.start();
    for _ in 0..3 {
        chained.wait("the end of the chain is like its source", || {
            fs::read(source.path("a")).ok() == fs::read(last.image("a")).ok() && chained.book("second").running.is_none()
        });
        // What the last replica is as old as is when the source was snapshotted, not when the middle was read.
        let times = |state: &blockferry::state::StateDir| {
            let pair = state.relationships(Side::Sources).unwrap()[0];
            SourceRecord::load(&HostFiles::new(&state.folder(Side::Sources, &pair))).unwrap().unwrap().source_time_ms
        };
        chained.wait("the cursor is written", || times(&source.host.state) == times(&chained.host.state));
        chained.wait("it waits for the next commit", || chained.book("second").next_why.as_deref() == Some("awaits-commit"));
        dice.change(&source.path("a"));
        source.ask_for_run("first");
    }
    assert_eq!((source.stop().0, chained.stop().0), (Some(0), Some(0)));
}
