//! Between two processes: a receiver daemon on loopback, with TLS.

#[path = "../../tests/rig/receiver.rs"]
#[allow(dead_code)]
mod receiver;

use crate::measure::{alternate, installed, peak_kib, run, shell, wait_and_watch};
use crate::table::Goal;
use crate::volume::Volume;
use crate::{Bench, data, setting, words};
use blockferry::limits::LINGER;
use receiver::{Agent, PROGRAM, Receiver};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Agents that send as fast as they can, and MiB of each.
const FAST: (usize, usize) = (48, 64);
/// Agents that share a link, unless `BENCH_AGENTS` says otherwise: paced, so that all are there at once.
const PACED: (usize, usize) = (200, 16);
const PACE: &str = "--bandwidth=2MiB/s";

pub fn rows(bench: &mut Bench) {
    if bench.table.wants(&["P4", "P7", "P8", "P13"]) {
        let (a, b) = (bench.volume("a", 1), bench.volume("b", 2));
        let target = bench.volume("target", 3);
        bench.guarded("P7", |bench| first_copies(bench, &a, &b, &target));
    }
    if bench.table.wants(&["P10"]) {
        bench.guarded("P10", |bench| many(bench, FAST, "as fast as they can", &[]));
        let paced = (setting("BENCH_AGENTS", PACED.0), PACED.1);
        bench.guarded("P10", |bench| many(bench, paced, "2 MiB/s each", &[PACE]));
    }
}

/// A receiver that serves this device, and its one agent.
struct Pair {
    agent: Agent,
    receiver: Receiver,
}

impl Pair {
    fn over(target: &Path) -> Pair {
        let agent = Agent::new();
        let kind = if target.starts_with("/dev") { "path" } else { "file" };
        let replica = format!("[[replica]]\nname = \"bench\"\noverwrite = true\ndevice = {{ {kind} = \"{}\" }}\n", target.display());
        let receiver = Receiver::start(&[], &(agent.entry("bench", "bench", "\"push\", \"verify\"") + &replica));
        Pair { agent, receiver }
    }

    fn clone(&self, source: &str, options: &[&str]) -> Vec<String> {
        let (state, pin) = (self.agent.state.path().display().to_string(), self.receiver.pin.to_string());
        let to = format!("blockferry://{}/bench", self.receiver.address);
        words(&[&[PROGRAM, "-q", "--state-dir", &state, "clone", "--snapshot=never", "--pin", &pin], options, &[source, &to]].concat())
    }

    /// Both ends begin anew.
    fn forget(&self) {
        for (state, side) in [(self.agent.state.path(), "sources"), (&self.receiver.state(), "replicas")] {
            for pair in fs::read_dir(state.join(side)).into_iter().flatten().flatten() {
                let _ = fs::remove_dir_all(pair.path());
            }
        }
    }
}

fn first_copies(bench: &mut Bench, a: &Volume, b: &Volume, target: &Volume) {
    let pair = Pair::over(target.path());
    let fresh = |volume: &Volume| {
        pair.forget();
        volume.forget();
        shell("sync");
    };
    let auto = pair.clone(&a.word(), &[]);
    if bench.table.wants(&["P7"]) {
        let (goal, what) = (Goal::AtMost(1.2), "clone over TLS, --compress auto, time / slower of local clone, zstd -1 -T2");
        if installed("zstd") {
            let local = bench.clone("state", &b.word(), &target.word(), &["--overwrite"]);
            let zstd = format!("zstd -q -1 -T2 <{} >/dev/null", b.word());
            let figures = alternate(
                bench.slow_rounds(),
                || {
                    fresh(a);
                    run(&auto).seconds
                },
                || {
                    bench.forget("state");
                    fresh(b);
                    let copied = run(&local).seconds;
                    shell(&zstd).seconds.max(copied)
                },
            );
            bench.table.figures("P7", what, goal, figures);
        } else {
            bench.table.skipped("P7", what, goal, "zstd is not installed");
        }
    }
    if bench.table.wants(&["P13"]) {
        let goal = Goal::AtLeast(2.0);
        let kinds: [(&str, &[&str]); 5] = [
            ("zstd 1", &["--compress=1"]),
            ("zstd 1, two shards", &["--compress=1", "--shards=2", "--connections=1"]),
            ("zstd 1, two shards and connections", &["--compress=1", "--shards=2"]),
            ("auto", &["--compress=auto"]),
            ("auto, two connections", &["--compress=auto", "--connections=2"]),
        ];
        for (name, options) in kinds {
            let what = format!("clone over TLS, {name}, speed / dd | zstd -1 -T2 | zstd -d | dd");
            if !installed("zstd") {
                bench.table.skipped("P13", what, goal, "zstd is not installed");
                continue;
            }
            let ours = pair.clone(&a.word(), options);
            let (from, to) = (b.word(), target.word());
            let line = format!(
                "dd if={from} bs=1M iflag=direct status=none | zstd -q -1 -T2 | zstd -q -d | dd of={to} bs=1M iflag=fullblock oflag=direct conv=fsync,notrunc status=none"
            );
            let figures = alternate(
                bench.slow_rounds(),
                || {
                    fresh(a);
                    1.0 / run(&ours).seconds
                },
                || {
                    fresh(b);
                    1.0 / shell(&line).seconds
                },
            );
            bench.table.figures("P13", what, goal, figures);
        }
    }
    if bench.table.wants(&["P8"]) {
        fresh(a);
        let daemon = Pair::over(&bench.path("fresh.img"));
        let command = daemon.clone(&a.word(), &[]);
        let mut child = Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn().expect("the agent starts");
        let agent = wait_and_watch(&mut child);
        let receiver = peak_kib(daemon.receiver.process()).unwrap_or(0);
        bench.table.figure("P8", "peak memory of the agent, first copy over TLS, MiB", Goal::AtMost(16.0), agent as f64 / 1024.0);
        bench.table.figure("P8", "peak memory of the receiver, the same, MiB", Goal::AtMost(16.0), receiver as f64 / 1024.0);
        let _ = fs::remove_file(bench.path("fresh.img"));
    }
    if bench.table.wants(&["P4"]) {
        over_a_link(bench);
    }
}

/// P4: one block in a hundred changed, over the link.
fn over_a_link(bench: &mut Bench) {
    let (goal, what) = (Goal::AtMost(0.8), "1 % of the blocks changed, over TLS, time / the delta peer's");
    let Ok(line) = std::env::var("BENCH_PEER_DELTA") else {
        return bench.table.skipped("P4", what, goal, "BENCH_PEER_DELTA names no command");
    };
    let (source, target, other) = (bench.path("src.img"), bench.path("dst.img"), bench.word("other.img"));
    data::write_volume(&source, bench.mib, 5).expect("room for the source");
    fs::copy(&source, &other).expect("room for the peer's copy");
    let _ = fs::remove_file(&target);
    let (pair, word) = (Pair::over(&target), source.display().to_string());
    let ours = pair.clone(&word, &[]);
    run(&ours);
    let round = std::cell::Cell::new(100);
    let line = format!("export SRC={word} DST={other}; {line}");
    // Ours reads past the page cache; what it holds of the source is the other's advantage.
    for (cold, which) in [(false, ""), (true, ", the source not in the page cache")] {
        let fresh = || {
            round.set(round.get() + 1);
            data::change(&source, bench.mib, round.get()).expect("the source changes");
            if cold {
                crate::volume::forget(&source);
            }
        };
        let we = || {
            fresh();
            run(&ours).seconds
        };
        let figures = alternate(bench.slow_rounds(), we, || {
            fresh();
            shell(&line).seconds
        });
        bench.table.figures("P4", what.to_owned() + which, goal, figures);
    }
}

/// P10: many agents on one receiver; each sends a small volume of noise.
fn many(bench: &mut Bench, (count, mib): (usize, usize), how: &str, options: &[&str]) {
    let agents: Vec<Agent> = (0..count).map(|_| Agent::new()).collect();
    let names: Vec<String> = (0..count).map(|at| format!("r{at}")).collect();
    let entries: String = agents.iter().zip(&names).map(|(agent, name)| agent.entry(&format!("a{name}"), name, "\"push\"")).collect();
    let receiver = Receiver::start(&names.iter().map(String::as_str).collect::<Vec<_>>(), &entries);
    let idle = peak_kib(receiver.process()).unwrap_or(0);
    let image = bench.path("small.img");
    data::write_volume(&image, mib, 6).expect("room for a small image");
    let mut running: Vec<_> = agents
        .iter()
        .zip(&names)
        .map(|(agent, name)| {
            let (pin, to) = (receiver.pin.to_string(), format!("blockferry://{}/{name}", receiver.address));
            let words = ["-q", "clone", "--snapshot=never", "--pin", &pin, image.to_str().expect("plain text"), &to];
            Command::new(PROGRAM)
                .arg("--state-dir")
                .arg(agent.state.path())
                .args(words)
                .args(options)
                .stdin(Stdio::null())
                .spawn()
                .expect("an agent")
        })
        .collect();
    // The thread that listens is none of them; the kernel's workers for a ring are threads as well.
    let mut most = 0;
    while most < count && running.iter_mut().any(|agent| matches!(agent.try_wait(), Ok(None))) {
        most = most.max(receiver.threads().saturating_sub(1).min(count));
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = running.iter_mut().filter_map(|agent| agent.wait().ok()).filter(|status| status.success()).count();
    assert_eq!(ended, count, "{}", receiver.log());
    let each = (peak_kib(receiver.process()).unwrap_or(0) - idle) as f64 / 1024.0 / most.max(1) as f64;
    bench.table.figure(
        "P10",
        format!("peak memory of a receiver, {count} agents, {how}, {most} at once, for each of these, MiB"),
        Goal::AtMost(8.0),
        each,
    );
    // Sessions linger for a moment after their agents: what is still there after that is a leak.
    let until = Instant::now() + LINGER + Duration::from_secs(8);
    while receiver.threads() > 4 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    bench.table.figure("P10", "threads that are left when they are gone", Goal::AtMost(4.0), receiver.threads() as f64);
}
