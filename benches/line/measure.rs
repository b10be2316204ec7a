//! Runs commands and says what they took; alternates two of them, so that a machine that slows down
//! slows both.

use crate::table::Figures;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What a run took.
pub struct Spent {
    pub seconds: f64,
    /// In user mode, all threads together.
    pub user_seconds: f64,
    pub printed: String,
}

/// Whether a program is there.
pub fn installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

fn user_seconds() -> f64 {
    let spent = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel knows what its processes used");
    spent.user_time().num_microseconds() as f64 / 1e6
}

/// Runs a command that has to succeed.
pub fn run(words: &[String]) -> Spent {
    let (before, began) = (user_seconds(), Instant::now());
    let Output { status, stdout, stderr } =
        Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output().unwrap_or_else(|cause| panic!("{words:?}: {cause}"));
    let seconds = began.elapsed().as_secs_f64();
    assert!(status.success(), "{words:?}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Spent { seconds, user_seconds: user_seconds() - before, printed: String::from_utf8_lossy(&stdout).into_owned() }
}

/// The same for a line of shell.
pub fn shell(line: &str) -> Spent {
    run(&["sh".into(), "-c".into(), line.into()])
}

/// KiB that a process had at most so far.
pub fn peak_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Waits for a child and looks at its memory now and then: the peak, in KiB.
pub fn wait_and_watch(child: &mut Child) -> u64 {
    let mut peak = 0;
    loop {
        peak = peak.max(peak_kib(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().expect("a child of ours") {
            assert!(status.success(), "a run that was watched failed");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ratios of two measurements, round by round in turn; every second round begins with the other one.
pub fn alternate(rounds: usize, mut ours: impl FnMut() -> f64, mut other: impl FnMut() -> f64) -> Figures {
    let round = |at: usize| {
        if at.is_multiple_of(2) {
            let we = ours();
            we / other()
        } else {
            let they = other();
            ours() / they
        }
    };
    Figures::of((0..rounds).map(round).collect())
}
