//! Two hosts and a switch between them, made of network namespaces, and what happens to networks: cables are
//! pulled, packets vanish, a link is slow, a connection is reset, a host is gone.
//!
//! ```text
//! source (10.77.0.1) eth0 ──── s │ switch │ r ──── eth0 (10.77.0.2) replica
//! ```
//!
//! The kernels hold a mebibyte or two of a connection and no more: one of 32 MiB, as a host with much memory has,
//! would take in a whole run for a receiver that stands still, which then commits it when it wakes.
//!
//! A pulled cable is pulled at the switch, as between two real hosts: neither end sees its own carrier go. Names
//! carry the process id, so that what a killed test left is known by its dead owner and removed by the next.

use crate::receiver::Host;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The address of the replica's host, and the port its receiver listens on.
const REPLICA: &str = "10.77.0.2:7420";

/// One of the two hosts.
#[derive(Clone, Copy)]
pub enum Side {
    Source,
    Replica,
}

impl Side {
    fn letter(self) -> char {
        match self {
            Side::Source => 's',
            Side::Replica => 'r',
        }
    }
}

/// Whether this process may make hosts. In CI a missing tool or root is a failure, not a reason to skip.
pub fn is_possible(test: &str) -> bool {
    let has = |tool: &str| Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let missing: Vec<&str> = ["ip", "tc", "nft"].into_iter().filter(|tool| !has(tool)).collect();
    let why = match nix::unistd::geteuid().is_root() {
        false => "network namespaces need root".to_owned(),
        true if !missing.is_empty() => format!("{} missing (packages iproute2 and nftables)", missing.join(", ")),
        true => return true,
    };
    assert!(std::env::var_os("CI").is_none(), "{test}: {why}, and CI has to have it");
    eprintln!("{test}: SKIPPED, {why}");
    false
}

/// The two hosts. They and what runs on them are gone with it.
pub struct Bed {
    prefix: String,
}

impl Bed {
    pub fn new() -> Bed {
        remove_leftovers();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let bed = Bed { prefix: format!("bf-{}-{}-", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)) };
        let switch = bed.switch();
        run("ip", &["netns", "add", &switch]);
        run("ip", &["-n", &switch, "link", "add", "br0", "up", "type", "bridge"]);
        bed.add_host(Side::Source);
        bed.add_host(Side::Replica);
        bed
    }

    fn switch(&self) -> String {
        format!("{}x", self.prefix)
    }

    fn name(&self, side: Side) -> String {
        format!("{}{}", self.prefix, side.letter())
    }

    fn add_host(&self, side: Side) {
        let (switch, host, port) = (self.switch(), self.name(side), side.letter().to_string());
        let number = match side {
            Side::Source => 1,
            Side::Replica => 2,
        };
        // A host that comes back has the same card.
        let (address, card) = (format!("10.77.0.{number}/24"), format!("02:00:00:00:00:0{number}"));
        run("ip", &["netns", "add", &host]);
        run("ip", &["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host]);
        run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        run("ip", &["-n", &host, "link", "set", "eth0", "address", &card]);
        run("ip", &["-n", &host, "addr", "add", &address, "dev", "eth0"]);
        run("ip", &["-n", &host, "link", "set", "lo", "up"]);
        run("ip", &["-n", &host, "link", "set", "eth0", "up"]);
        for (queue, bytes) in [("tcp_rmem", "4096 131072 524288"), ("tcp_wmem", "4096 16384 1048576")] {
            run("ip", &["netns", "exec", &host, "sh", "-c", &format!("echo {bytes} >/proc/sys/net/ipv4/{queue}")]);
        }
    }

    /// Where processes of a side run.
    pub fn host(&self, side: Side) -> Host {
        let through = ["ip", "netns", "exec", &self.name(side)].map(str::to_owned).to_vec();
        Host { through, listen: REPLICA.to_owned() }
    }

    /// From now on every packet is lost, without a word, in both directions.
    pub fn part(&self) {
        for side in [Side::Source, Side::Replica] {
            self.filter(side, "policy drop;", "");
        }
    }

    /// From now on whoever sends over a connection to the receiver is told that it does not exist.
    pub fn reset(&self) {
        // Not the resets themselves: they have to arrive.
        self.filter(Side::Source, "", "tcp sport 7420 tcp flags & rst == 0 reject with tcp reset");
        self.filter(Side::Replica, "", "tcp dport 7420 tcp flags & rst == 0 reject with tcp reset");
    }

    /// Packets pass again.
    pub fn heal(&self) {
        for side in [Side::Source, Side::Replica] {
            run("ip", &["netns", "exec", &self.name(side), "nft", "delete table inet fault"]);
        }
    }

    fn filter(&self, side: Side, policy: &str, rule: &str) {
        let table = format!("table inet fault {{\nchain in {{\ntype filter hook input priority 0; {policy}\n{rule}\n}}\n}}\n");
        let mut nft = Command::new("ip");
        let file = format!("/dev/shm/{}{}.nft", self.prefix, side.letter());
        fs::write(&file, table).expect("a rule set");
        let status = nft.args(["netns", "exec", &self.name(side), "nft", "-f", &file]).status().expect("nft runs");
        let _ = fs::remove_file(&file);
        assert!(status.success(), "nft refuses the rule");
    }

    /// Pulls a side's cable at the switch.
    pub fn pull(&self, side: Side) {
        run("ip", &["-n", &self.switch(), "link", "set", &side.letter().to_string(), "down"]);
    }

    /// Plugs it in again.
    pub fn plug(&self, side: Side) {
        run("ip", &["-n", &self.switch(), "link", "set", &side.letter().to_string(), "up"]);
    }

    /// Takes a host's own interface down: its routes are gone with it.
    pub fn down(&self, side: Side) {
        run("ip", &["-n", &self.name(side), "link", "set", "eth0", "down"]);
    }

    /// Takes it up again.
    pub fn up(&self, side: Side) {
        run("ip", &["-n", &self.name(side), "link", "set", "eth0", "up"]);
    }

    /// Both directions carry this much and no more: `10mbit`. As many packets wait as several connections have on their way at
    /// the least: where it is fewer, BBR takes the link for some of them and leaves others to retransmissions that back off.
    pub fn slow(&self, rate: &str) {
        for port in ["s", "r"] {
            let words = ["qdisc", "replace", "dev", port, "root", "tbf", "rate", rate, "burst", "16kb", "limit", "96kb"];
            run("tc", &[&["-n", &self.switch()], &words[..]].concat());
        }
    }

    /// A host is gone, as if its power was: nobody hears a word. Whoever ran on it is the caller's to end.
    pub fn vanish(&self, side: Side) {
        self.pull(side);
        run("ip", &["netns", "del", &self.name(side)]);
        run("ip", &["-n", &self.switch(), "link", "del", &side.letter().to_string()]);
    }

    /// It is there again.
    pub fn appear(&self, side: Side) {
        self.add_host(side);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in [self.name(Side::Source), self.name(Side::Replica), self.switch()] {
            remove(&name);
        }
    }
}

/// Bytes that came over the cable to the host of this process.
pub fn carried(process: u32) -> u64 {
    let table = fs::read_to_string(format!("/proc/{process}/net/dev")).unwrap_or_default();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Waits for an event, which has to come.
pub fn wait_until(what: &str, mut event: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !event() {
        assert!(Instant::now() < end, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Removes hosts whose test was killed, and what still runs on them.
fn remove_leftovers() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("bf-").and_then(|rest| rest.split('-').next()).map(str::to_owned);
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output() else { return };
    for process in String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|word| word.parse().ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|cause| panic!("{program}: {cause}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
