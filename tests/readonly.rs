//! `readonly = true`: a replica's device refuses writes between sessions, and is never in the way of what writes to it by right.

#[path = "rig/loops.rs"]
mod loops;
#[path = "rig/receiver.rs"]
mod receiver;

use loops::{Loop, is_root, run};
use receiver::{Agent, Receiver, end};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BYTES: usize = 4 << 20;

/// A receiver whose one replica is a loop device that refuses writes between sessions.
struct Stand {
    receiver: Receiver,
    agent: Agent,
    device: Loop,
    image: PathBuf,
}

impl Stand {
    fn new() -> Stand {
        let agent = Agent::new();
        let file = agent.folder.path().join("replica");
        File::create(&file).and_then(|file| file.set_len(BYTES as u64)).expect("an image");
        let device = Loop::over(&file, 512);
        let receiver = Receiver::start(&[], &rest(&agent, &device, "readonly = true"));
        let image = agent.image("volume", BYTES, 1);
        Stand { receiver, agent, device, image }
    }

    fn push(&self) -> (Option<i32>, String) {
        end(&self.agent.pass("clone", &self.image, &self.receiver, "db", &[]))
    }

    fn change(&self, seed: u8) {
        self.agent.image("volume", BYTES, seed);
    }

    fn refuses_writes(&self) -> bool {
        run("blockdev", &["--getro", self.name()]) == "1"
    }

    /// The receiver sees to it when the session is over, a moment after its client has heard so.
    fn comes_to_refuse_writes(&self) -> bool {
        let begun = Instant::now();
        while !self.refuses_writes() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.refuses_writes()
    }

    /// Promotes the replica, once the session that was last has let go of it.
    fn promote(&self) -> (Option<i32>, String) {
        let begun = Instant::now();
        loop {
            let (code, said) = end(&self.receiver.run(&["promote", self.name()]));
            if code != Some(5) || begun.elapsed() > Duration::from_secs(60) {
                return (code, said);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn name(&self) -> &str {
        self.device.0.to_str().expect("plain text")
    }

    fn is_like_the_volume(&self) -> bool {
        fs::read(&self.device.0).expect("the replica") == fs::read(&self.image).expect("the volume")
    }
}

fn rest(agent: &Agent, device: &Loop, more: &str) -> String {
    let replica = format!("[[replica]]\nname = \"db\"\ndevice = {{ path = \"{}\" }}\n{more}\n", device.0.display());
    agent.entry("prod1", "*", "\"push\", \"verify\"") + &replica
}

/// Whether the kernel takes a write to the device.
fn takes_a_write(device: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let first = fs::read(device).expect("the device")[..512].to_vec();
    File::options().write(true).open(device).and_then(|file| file.write_all_at(&first, 0).and_then(|()| file.sync_all())).is_ok()
}

#[test]
fn a_replica_refuses_writes_between_sessions_and_takes_those_of_its_source() {
    if !is_root("loop devices") {
        return;
    }
    let mut stand = Stand::new();
    assert!(!stand.refuses_writes(), "a device without a record is not ours to guard");
    for seed in 1..4 {
        stand.change(seed);
        assert_eq!(stand.push().0, Some(0));
        assert!(stand.comes_to_refuse_writes() && !takes_a_write(&stand.device.0) && stand.is_like_the_volume());
    }
    assert_eq!(end(&stand.agent.pass("verify", &stand.image, &stand.receiver, "db", &[])).0, Some(0));
    assert!(stand.comes_to_refuse_writes());
    // What a reboot forgets comes back with the receiver, and with a reload.
    run("blockdev", &["--setrw", stand.name()]);
    assert_eq!(stand.receiver.stop(), Some(0));
    stand.receiver.restart_here("");
    assert!(stand.refuses_writes());
    run("blockdev", &["--setrw", stand.name()]);
    stand.receiver.reconfigure(&[], &rest(&stand.agent, &stand.device, "readonly = true"));
    stand.receiver.wait_for("configuration reloaded");
    assert!(stand.refuses_writes());
}

#[test]
fn somebody_elses_write_to_a_guarded_replica_is_refused_with_the_way_out() {
    if !is_root("loop devices") {
        return;
    }
    let stand = Stand::new();
    assert_eq!(stand.push().0, Some(0));
    assert!(stand.comes_to_refuse_writes());
    let local = stand.agent.run(&["clone", "--overwrite", stand.image.to_str().expect("plain text"), stand.name()]);
    let (code, said) = end(&local);
    assert_eq!(code, Some(8), "{said}");
    assert!(said.contains(&format!("blockdev --setrw {}", stand.name())) && said.contains("readonly = true"), "{said}");
    assert!(stand.is_like_the_volume());
}

#[test]
fn a_promoted_replica_takes_writes_until_it_follows_its_source_again() {
    if !is_root("loop devices") {
        return;
    }
    let mut stand = Stand::new();
    assert_eq!(stand.push().0, Some(0));
    assert!(stand.comes_to_refuse_writes());
    let (code, said) = stand.promote();
    assert_eq!(code, Some(0), "{said}");
    assert!(!stand.refuses_writes() && takes_a_write(&stand.device.0));
    assert_eq!(stand.receiver.stop(), Some(0));
    stand.receiver.restart_here("");
    assert!(!stand.refuses_writes(), "{}", stand.receiver.log());
    // Nothing was changed: the source goes on, and the guard is back.
    stand.change(2);
    assert_eq!(stand.push().0, Some(0));
    assert!(stand.comes_to_refuse_writes() && stand.is_like_the_volume());
}

/// Killed between the generations with the device writable; another reboot's worth later it refuses writes.
#[cfg(feature = "failpoints")]
#[test]
fn what_a_crash_left_is_completed_on_a_device_that_refuses_writes() {
    if !is_root("loop devices") {
        return;
    }
    for by_doctor in [false, true] {
        let mut stand = Stand::new();
        assert_eq!(stand.push().0, Some(0));
        stand.change(2);
        assert_eq!(stand.receiver.stop(), Some(0));
        stand.receiver.restart_here("receiver.apply-halfway");
        assert_eq!(stand.push().0, Some(4));
        stand.receiver.wait_for_death();
        assert!(!stand.refuses_writes() && !stand.is_like_the_volume());
        run("blockdev", &["--setro", stand.name()]);
        if by_doctor {
            let (_, said) = end(&stand.receiver.run(&["doctor", "--fix"]));
            assert!(said.contains("done:"), "{said}");
        } else {
            stand.receiver.restart_here("");
        }
        assert!(stand.comes_to_refuse_writes() && stand.is_like_the_volume(), "{by_doctor}");
    }
}

/// An increment straight onto the device, and what is said of it until it is whole.
#[cfg(feature = "failpoints")]
#[test]
fn a_direct_increment_that_was_cut_is_initializing_until_the_next_run_completes_it() {
    if !is_root("loop devices") {
        return;
    }
    for failpoint in ["receiver.device-flushed", "receiver.next-sealed"] {
        let mut stand = Stand::new();
        assert_eq!(stand.push().0, Some(0));
        stand.change(2);
        assert_eq!(stand.receiver.stop(), Some(0));
        stand.receiver.configure(&[], &rest(&stand.agent, &stand.device, "apply = \"direct\"\nreadonly = true"));
        stand.receiver.restart_here(failpoint);
        stand.receiver.wait_for("it is no complete generation and cannot be promoted");
        assert_eq!(stand.push().0, Some(4), "{failpoint}");
        stand.receiver.wait_for_death();
        stand.receiver.restart_here("");
        let (_, said) = end(&stand.receiver.run(&["status"]));
        assert!(said.contains("initializing: an increment straight onto the device"), "{said}");
        let (_, said) = end(&stand.receiver.run(&["doctor"]));
        assert!(said.contains("an increment over generation 1, straight onto the device"), "{said}");
        let (code, said) = stand.promote();
        assert!(code == Some(6) && said.contains("only its source can complete it"), "{said}");
        assert!(stand.refuses_writes(), "what is no generation is not to be written to either");
        let (code, said) = stand.push();
        assert!(code == Some(0) && said.contains("generation 2 (changes, straight onto the device)"), "{said}");
        assert!(stand.comes_to_refuse_writes() && stand.is_like_the_volume());
        let (code, said) = stand.promote();
        assert_eq!(code, Some(0), "{said}");
    }
}
