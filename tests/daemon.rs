//! The receiver as a daemon, with real processes on loopback: who comes in, what they may do, how it
//! stops and starts again.

#[path = "rig/receiver.rs"]
mod receiver;

use nix::sys::signal::Signal;
use receiver::{Agent, Receiver, end};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const BOTH: &str = "\"push\", \"verify\"";
/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(120);

#[test]
fn a_clone_to_a_daemon_goes_on_from_what_is_there() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db"], &agent.entry("prod1", "d*", BOTH));
    let image = agent.image("volume", 3 << 20, 1);
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(&image).unwrap(), fs::read(receiver.image("db")).unwrap());
    let log = receiver.wait_for("result=committed generation=1");
    assert!(log.contains("session client=prod1 from=127.0.0.1:") && log.contains("replica=\"db\" op=push received="), "{log}");

    let mut content = fs::read(&image).unwrap();
    content[1 << 20..(1 << 20) + 4096].fill(9);
    fs::write(&image, &content).unwrap();
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("generation 2") && said.contains("sent 1 blocks"), "{said}");
    assert_eq!(content, fs::read(receiver.image("db")).unwrap());
    let (code, said) = end(&agent.pass("verify", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
    receiver.wait_for("op=verify");
    // The receiver's own commands find what the daemon keeps.
    let (code, said) = end(&receiver.run(&["status"]));
    assert!(code == Some(0) && said.contains("generation 2"), "{said}");
}

#[test]
fn a_stranger_and_an_impostor_are_refused_with_exit_8() {
    let (agent, stranger) = (Agent::new(), Agent::new());
    let receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = stranger.image("volume", 1 << 20, 1);
    let (code, said) = end(&stranger.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(8), "{said}");
    assert!(said.contains(&stranger.pin.to_string()) && said.contains("pair accept"), "{said}");
    receiver.wait_for(&format!("has the key {}, which is not paired", stranger.pin));
    // The right agent, and a receiver with another key than the pinned one.
    let target = format!("blockferry://{}/db", receiver.address);
    let (code, said) = end(&agent.run(&["clone", image.to_str().unwrap(), &target, "--pin", &stranger.pin.to_string()]));
    assert_eq!(code, Some(8), "{said}");
    assert!(said.contains(&receiver.pin.to_string()) && said.contains("is pinned for it"), "{said}");
    receiver.wait_for("expects another key");
    // And no pin at all.
    let (code, said) = end(&agent.run(&["clone", image.to_str().unwrap(), &target]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("pair accept TOKEN") && said.contains("--pin"), "{said}");
    assert!(!receiver.image("db").exists());
}

#[test]
fn a_client_gets_what_its_entry_says_and_learns_no_names() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db", "web"], &agent.entry("prod1", "db", "\"verify\""));
    let image = agent.image("volume", 1 << 20, 1);
    let (code, not_allowed) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(8), "{not_allowed}");
    let (code, other) = end(&agent.pass("clone", &image, &receiver, "web", &[]));
    assert_eq!(code, Some(8), "{other}");
    let (code, absent) = end(&agent.pass("clone", &image, &receiver, "xyz", &[]));
    assert_eq!(code, Some(8), "{absent}");
    assert_eq!(other.replace("web", "…"), absent.replace("xyz", "…"), "what exists and what does not sound the same");
    let (code, path) = end(&agent.pass("clone", &image, &receiver, "../db.img", &[]));
    assert_eq!(code, Some(8), "{path}");
    assert!(!receiver.image("db").exists() && !receiver.image("web").exists());
    assert_eq!(fs::read_dir(receiver.state().join("replicas")).unwrap().count(), 0, "nothing is left of a refusal");
}

#[test]
fn what_is_there_is_only_given_up_where_the_configuration_says_so() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    fs::write(receiver.image("db"), vec![7; 1 << 20]).unwrap();
    let image = agent.image("volume", 1 << 20, 1);
    for more in [&[][..], &["--overwrite"]] {
        let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", more));
        assert_eq!(code, Some(8), "{said}");
        assert!(said.contains("overwrite"), "{said}");
    }
    assert_eq!(fs::read(receiver.image("db")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn a_reload_lets_new_clients_in_and_a_bad_one_changes_nothing() {
    let (agent, second) = (Agent::new(), Agent::new());
    let first = agent.entry("prod1", "*", BOTH);
    let receiver = Receiver::start(&["db"], &first);
    let image = second.image("volume", 1 << 20, 1);
    receiver.reconfigure(&["db"], &format!("{first}clints = 1\n"));
    let log = receiver.wait_for("stays as it was");
    assert!(log.contains("receiver.toml:7:"), "{log}");
    assert_eq!(end(&second.pass("clone", &image, &receiver, "db", &[])).0, Some(8));
    receiver.reconfigure(&["db"], &(first + &second.entry("prod2", "*", BOTH)));
    receiver.wait_for("configuration reloaded");
    let (code, said) = end(&second.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_stopped_daemon_ends_clean_and_goes_on_after_a_restart() {
    let agent = Agent::new();
    let mut receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", 1 << 20, 1);
    assert_eq!(end(&agent.pass("clone", &image, &receiver, "db", &[])).0, Some(0));
    let _silent = TcpStream::connect(&receiver.address).unwrap();
    let pin = receiver.pin;
    assert_eq!(receiver.stop(), Some(0), "{}", receiver.log());
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(4), "{said}");
    receiver.restart();
    assert_eq!(receiver.pin, pin, "the key is kept");
    assert!(receiver.is_alive());
    // Another port is another place to the agent; what counts is that the replica is still the one it was.
    let (code, said) = end(&agent.pass("verify", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_configuration_is_checked_shown_and_explained() {
    let agent = Agent::new();
    let example = agent.run(&["config", "example", "--receiver"]);
    let file = agent.folder.path().join("receiver.toml");
    fs::write(&file, &example.stdout).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(end(&agent.run(&["config", "check", "--receiver", "--config", file])), (Some(0), String::new()));
    let (code, shown) = end(&agent.run(&["config", "show", "--receiver", "--config", file]));
    assert!(code == Some(0) && shown.contains("sessions_max = 256"), "{shown}");
    fs::write(file, "listn = \"x\"\n").unwrap();
    let (code, said) = end(&agent.run(&["config", "check", "--receiver", "--config", file]));
    assert_eq!(code, Some(2));
    assert!(said.contains("receiver.toml:1: unknown field `listn`") && said.contains("did you mean `listen`?"), "{said}");
}

/// Everything behind `pair`: the receiver invites, the agent accepts, and the token is worth nothing then.
#[test]
fn a_token_pairs_two_hosts_once() {
    let (agent, thief) = (Agent::new(), Agent::new());
    let receiver = Receiver::start(&["db", "web"], "");
    let image = agent.image("volume", 1 << 20, 1);
    let invited = receiver.run(&["pair", "invite", "--replica", "d*", "--address", &receiver.address]);
    let token = String::from_utf8(invited.stdout).unwrap().trim().to_owned();
    let (code, said) = end(&agent.run(&["pair", "accept", &token, "--name", "prod1"]));
    assert_eq!(code, Some(0), "{said}");
    let log = receiver.wait_for("paired client=prod1");
    assert!(log.contains(&agent.pin.to_string()) && log.contains("replicas=d*"), "{log}");
    // The pin was written down: none is typed.
    let target = |replica: &str| format!("blockferry://{}/{replica}", receiver.address);
    let image = image.to_str().unwrap();
    let (code, said) = end(&agent.run(&["clone", image, &target("db")]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(end(&agent.run(&["clone", image, &target("web")])).0, Some(8), "only what was invited to");
    // Without an open invitation a strange key does not come through the handshake; with one, the old secret does not.
    let (code, said) = end(&thief.run(&["pair", "accept", &token, "--name", "thief"]));
    assert!(code == Some(8) && said.contains("does not know this host's key"), "{said}");
    receiver.run(&["pair", "invite", "--replica", "web", "--address", &receiver.address]);
    let (code, said) = end(&thief.run(&["pair", "accept", &token, "--name", "thief"]));
    assert!(code == Some(8) && said.contains("this token is used"), "{said}");
    receiver.wait_for("refused pairing");
    let (code, said) = end(&receiver.run(&["pair", "list"]));
    assert!(code == Some(0) && said.contains("client   prod1") && said.contains("invited  web") && !said.contains("thief"), "{said}");
    // Invited once more, under whatever name: it may do more, and is called what it was.
    receiver.run(&["pair", "revoke", "--invites"]);
    let invited = receiver.run(&["pair", "invite", "--replica", "web", "--address", &receiver.address]);
    let token = String::from_utf8(invited.stdout).unwrap().trim().to_owned();
    let (code, said) = end(&agent.run(&["pair", "accept", &token, "--name", "host7"]));
    assert!(code == Some(0) && said.contains("knows this host as prod1 already") && said.contains("as prod1: "), "{said}");
    assert_eq!(end(&agent.run(&["clone", image, &target("web")])).0, Some(0));
    assert_eq!(end(&receiver.run(&["pair", "revoke", "prod1"])).0, Some(0));
    let (code, said) = end(&agent.run(&["clone", image, &target("db")]));
    assert!(code == Some(8) && said.contains("does not know this host's key"), "{said}");
}

#[test]
fn an_expired_token_and_one_taken_back_open_nothing() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db"], "");
    let invite = |time: &str| {
        let invited = receiver.run(&["pair", "invite", "--replica", "db", "--expires", time, "--address", &receiver.address]);
        String::from_utf8(invited.stdout).unwrap().trim().to_owned()
    };
    let late = invite("1ms");
    let (code, said) = end(&agent.run(&["pair", "accept", &late]));
    assert!(code == Some(8) && said.contains("expired"), "{said}");
    let revoked = invite("1h");
    assert_eq!(end(&receiver.run(&["pair", "revoke", "--invites"])).0, Some(0));
    let (code, said) = end(&agent.run(&["pair", "accept", &revoked]));
    assert_eq!(code, Some(8), "{said}");
    let (code, said) = end(&agent.run(&["pair", "accept", &revoked[..80]]));
    assert!(code == Some(2) && said.contains("no whole token"), "{said}");
    let (code, said) = end(&receiver.run(&["pair", "list"]));
    assert!(code == Some(0) && said.is_empty(), "{said}");
}

/// An ssh key whose command is forced: whatever the client asks to run, it gets this.
#[test]
fn a_forced_command_serves_names_and_not_paths() {
    let agent = Agent::new();
    let entry = "[[client]]\nname = \"prod1\"\nallow = [{ replica = \"db\" }]\n";
    let receiver = Receiver::start(&["db", "web"], entry);
    let image = agent.image("volume", 1 << 20, 1);
    let image = image.to_str().unwrap();
    let clone = |client: &str, target: &str| {
        let config = receiver.state().with_file_name("receiver.toml");
        let forced = format!("exec {} receiver --stdio --client {client} --config {}", receiver::PROGRAM, config.display());
        end(&agent.run(&["clone", image, &format!("dr1:{target}"), "--rsh", &format!("sh -c '{forced}'")]))
    };
    let (code, said) = clone("prod1", "db");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(image).unwrap(), fs::read(receiver.image("db")).unwrap());
    let elsewhere = agent.folder.path().join("elsewhere");
    for target in ["web", "xyz", elsewhere.to_str().unwrap(), receiver.image("web").to_str().unwrap()] {
        let (code, said) = clone("prod1", target);
        assert!(code == Some(8) && said.contains("may not push to"), "{said}");
    }
    assert!(!elsewhere.exists() && !receiver.image("web").exists());
    let (code, said) = clone("prod2", "db");
    assert!(code == Some(8) && said.contains("there is no client"), "{said}");
}

/// Stopped in the middle, as a host that hangs: its kernel still answers, and nothing else does.
#[test]
fn a_receiver_that_hangs_is_given_up_and_the_next_run_goes_on() {
    let agent = Agent::new();
    let receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
    let image = agent.image("volume", 32 << 20, 1);
    std::thread::scope(|scope| {
        // Half a minute of copying, so that the receiver hangs in the middle of it; and a limit that a busy machine keeps.
        let limits = ["--bandwidth", "1MiB/s", "--compress", "none", "--stall-timeout", "30s"];
        let (agent, image, receiver) = (&agent, &image, &receiver);
        let clone = scope.spawn(move || end(&agent.pass("clone", image, receiver, "db", &limits)));
        let until = Instant::now() + HANGS;
        while !fs::metadata(receiver.image("db")).is_ok_and(|found| found.blocks() > 0) {
            assert!(Instant::now() < until && !clone.is_finished(), "{}", receiver.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        receiver.signal(Signal::SIGSTOP);
        let (code, said) = clone.join().unwrap();
        receiver.signal(Signal::SIGCONT);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("got no work done for 30 seconds"), "{said}");
    });
    receiver.wait_for("result=failed exit=4");
    let (code, said) = end(&agent.pass("clone", &image, &receiver, "db", &[]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(&image).unwrap(), fs::read(receiver.image("db")).unwrap());
}

#[test]
fn no_more_moves_than_a_limit_lets_through() {
    let agent = Agent::new();
    let entry = agent.entry("prod1", "*", BOTH);
    let narrow = entry.clone() + "bandwidth = \"4MiB/s\"\n";
    let receiver = Receiver::start(&["wide", "typed"], &entry);
    let bytes = 8 << 20;
    let image = agent.image("volume", bytes, 1);
    let content: Vec<u8> = (0..bytes / 32).flat_map(|at: usize| *blake3::hash(&at.to_le_bytes()).as_bytes()).collect();
    fs::write(&image, content).unwrap();
    let time = |replica: &str, more: &[&str]| {
        let began = Instant::now();
        let (code, said) = end(&agent.pass("clone", &image, &receiver, replica, more));
        assert_eq!(code, Some(0), "{said}");
        began.elapsed()
    };
    // Two seconds, less what may go at once at first.
    let least = Duration::from_millis(1700);
    assert!(time("typed", &["--bandwidth", "4MiB/s"]) > least);
    receiver.reconfigure(&["wide", "typed", "client", "process"], &narrow);
    receiver.wait_for("configuration reloaded");
    assert!(time("client", &[]) > least);
    receiver.reconfigure(&["wide", "typed", "client", "process"], &format!("bandwidth = [{{ limit = \"4MiB/s\" }}]\n{entry}"));
    let until = Instant::now() + HANGS;
    while receiver.log().matches("configuration reloaded").count() < 2 {
        assert!(Instant::now() < until, "{}", receiver.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(time("process", &[]) > least);
}
