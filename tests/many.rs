//! Fifty agents at once onto fifty replicas of one receiver: real processes. All commit, each costs the daemon a
//! bounded piece of memory, and nothing of them is left when they are gone.

#[path = "rig/receiver.rs"]
mod receiver;

use receiver::{Agent, Receiver, Running, end};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const AGENTS: usize = 50;
const BYTES: usize = 2 << 20;
/// What a session may cost the receiver: the goal P10 of docs/PERFORMANCE.md.
const SESSION_KIB_MAX: u64 = 8 << 10;
/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(120);

fn status(process: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().trim_end_matches(" kB").parse().ok()).expect("a figure")
}

fn descriptors(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Noise: nothing of it shrinks.
fn image(agent: &Agent, seed: u64) -> PathBuf {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    let path = agent.folder.path().join("volume");
    fs::write(&path, (0..BYTES / 8).flat_map(|_| next()).collect::<Vec<u8>>()).unwrap();
    path
}

#[test]
fn fifty_agents_at_once_commit_and_leave_nothing_behind() {
    let agents: Vec<Agent> = (0..AGENTS).map(|_| Agent::new()).collect();
    let names: Vec<String> = (0..AGENTS).map(|at| format!("r{at}")).collect();
    let rest: String = agents.iter().zip(&names).map(|(agent, name)| agent.entry(&format!("a{name}"), name, "\"push\"")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // With the narrow one the first run alone takes eight seconds, and longer the more have come.
    let [narrow, wide] = ["bandwidth = \"256KiB/s\"\n", ""].map(|limit| format!("handshake_timeout = \"60s\"\n{limit}{rest}"));
    let mut receiver = Receiver::start(&names, &narrow);
    let process = receiver.process();
    let (idle_kib, idle_threads, idle_files) = (status(process, "VmHWM:"), receiver.threads(), descriptors(process));

    let mut peaks = Vec::new();
    for round in 1..=3 {
        if round > 1 {
            let reloads = || receiver.log().matches("configuration reloaded").count();
            let (before, until) = (reloads(), Instant::now() + HANGS);
            receiver.reconfigure(&names, &narrow);
            while reloads() == before {
                assert!(Instant::now() < until, "{}", receiver.log());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let images: Vec<PathBuf> = agents.iter().enumerate().map(|(at, agent)| image(agent, (round * 1000 + at) as u64)).collect();
        let start =
            |at: usize| -> Running { agents[at].start_pass("clone", &images[at], &receiver, names[at], &["--bandwidth", "512KiB/s"]) };
        let running: Vec<Running> = (0..AGENTS).map(start).collect();
        let until = Instant::now() + HANGS;
        let mut most = 0;
        while most < AGENTS {
            most = most.max(receiver.threads() - idle_threads);
            assert!(Instant::now() < until, "only {most} sessions were there at once");
            std::thread::sleep(Duration::from_millis(5));
        }
        receiver.reconfigure(&names, &wide);
        for (at, run) in running.into_iter().enumerate() {
            let (code, said) = end(&run.wait());
            assert_eq!(code, Some(0), "agent {at}: {said}");
            assert!(fs::read(&images[at]).unwrap() == fs::read(receiver.image(names[at])).unwrap(), "replica {at} differs");
        }
        peaks.push(status(process, "VmHWM:"));
    }

    // A session lingers for a moment after its agent; what is there after that is a leak.
    let until = Instant::now() + HANGS;
    while receiver.threads() > idle_threads || descriptors(process) > idle_files {
        let (threads, files) = (receiver.threads(), descriptors(process));
        assert!(Instant::now() < until, "{threads} threads of {idle_threads} and {files} descriptors of {idle_files} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    let committed = receiver.log().lines().filter(|line| line.contains("result=committed")).count();
    assert_eq!(committed, 3 * AGENTS, "{}", receiver.log());
    let each: Vec<u64> = peaks.iter().map(|peak| (peak - idle_kib) / AGENTS as u64).collect();
    eprintln!(
        "peak memory of the receiver for each of {AGENTS} agents, KiB: first copies {}, increments {} and {}",
        each[0], each[1], each[2]
    );
    assert!(each.iter().all(|kib| *kib <= SESSION_KIB_MAX), "{each:?} KiB");
    // The third round needs no more than the second did: nothing adds up.
    assert!(peaks[2] <= peaks[1] + (AGENTS as u64 * SESSION_KIB_MAX) / 8, "{peaks:?} KiB");
    assert_eq!(receiver.stop(), Some(0));
}
