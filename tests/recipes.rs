//! What docs/OPERATING.md says to type for two hosts, typed: against a real sshd, and between two paired hosts. A line
//! is taken from the page itself; only hosts, users, ports and places are put in, so that the page cannot go astray.

#[path = "rig/ferry.rs"]
mod ferry;
#[path = "rig/sshd.rs"]
mod sshd;

use ferry::{Ended, Ferry, PROGRAM, equal, noise};
use sshd::Sshd;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: &str = include_str!("../docs/OPERATING.md");

/// What comes behind the first section, which a case of vm-tests types as a whole.
fn recipes() -> &'static str {
    let at = PAGE.find("## A first copy").expect("the page has its recipes");
    &PAGE[at..]
}
const BYTES: usize = 1 << 20;

/// Two hosts in one folder: what the page types on either finds its program, its state and its places.
struct Stage {
    ferry: Ferry,
}

impl Stage {
    fn new() -> Stage {
        let ferry = Ferry::new();
        fs::create_dir(ferry.path("bin")).unwrap();
        symlink(PROGRAM, ferry.path("bin/blockferry")).unwrap();
        ferry.image("volume", &noise(1, BYTES));
        Stage { ferry }
    }

    fn sshd(&self) -> Sshd {
        Sshd::start(self.ferry.folder.path(), &self.ferry.path("bin"), &format!("BLOCKFERRY_STATE_DIR={}", self.ferry.name("there")))
    }

    /// The line of the page that begins with `begins` and has `within` in it, with other words put in.
    #[track_caller]
    fn line(&self, begins: &str, within: &str, instead: &[(&str, &str)]) -> String {
        let mut found = recipes().lines().filter(|line| line.starts_with(begins) && line.contains(within));
        let line = found.next().unwrap_or_else(|| panic!("docs/OPERATING.md has no line `{begins}…{within}…`"));
        instead.iter().fold(line.to_owned(), |line, (word, other)| {
            assert!(line.contains(word), "docs/OPERATING.md has no {word} in `{line}`");
            line.replace(word, other)
        })
    }

    /// Types a line into a shell.
    fn types(&self, line: &str, shell: &str) -> Ended {
        let path = format!("{}:{}", self.ferry.name("bin"), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("PATH", path).env("BLOCKFERRY_STATE_DIR", self.ferry.name("here")).env("LC_ALL", "C");
        if !shell.is_empty() {
            command.env("BLOCKFERRY_RSH", shell);
        }
        Ended::of(command.stdin(Stdio::null()).output().expect("sh runs"))
    }
}

#[track_caller]
fn succeeds(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// It failed, for one reason that is told in one place.
#[track_caller]
fn says_once(ended: &Ended, code: i32, reason: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.stderr.matches(reason).count(), 1, "{reason:?} is to be said once:\n{}", ended.stderr);
    let ours = ended.stderr.lines().filter(|line| line.starts_with("blockferry: ")).count();
    assert_eq!(ours, 1, "one line tells it:\n{}", ended.stderr);
}

#[test]
fn clones_to_a_host_with_a_shell_go_as_the_page_says() {
    if !sshd::is_installed("clones_to_a_host_with_a_shell_go_as_the_page_says") {
        return;
    }
    let stage = Stage::new();
    let (sshd, volume) = (stage.sshd(), stage.ferry.name("volume"));
    let user = format!("{}@dr1", sshd.user);

    let replica = stage.ferry.name("replica");
    let plain = stage.line(
        "blockferry clone /dev/vg0/db ",
        "root@dr1:",
        &[("/dev/vg0/db-replica", &replica), ("/dev/vg0/db", &volume), ("root@dr1", &user)],
    );
    succeeds(&stage.types(&plain, &sshd.shell));
    equal(&volume, &replica);
    let again = stage.types(&plain, &sshd.shell);
    succeeds(&again);
    assert!(again.stdout.contains("nothing changed"), "{again:?}");

    let (replica, port, key) = (stage.ferry.name("replica2"), sshd.port.to_string(), sshd.key.display().to_string());
    let with_options = stage.line(
        "blockferry clone -e ",
        "root@dr1:",
        &[
            ("'ssh ", &format!("'{} ", sshd.shell)),
            ("2222", &port),
            ("/root/.ssh/repl", &key),
            ("/dev/vg0/db-replica", &replica),
            ("/dev/vg0/db", &volume),
            ("root@dr1", &user),
        ],
    );
    succeeds(&stage.types(&with_options, ""));
    equal(&volume, &replica);

    let (replica, program, state) = (stage.ferry.name("replica3"), stage.ferry.name("bin/blockferry"), stage.ferry.name("srv"));
    let elsewhere = stage.line(
        "blockferry clone --remote-program ",
        "root@dr1:",
        &[
            ("/opt/bin/blockferry", &program),
            ("/srv/ferry", &state),
            ("/srv/db.img", &replica),
            ("/dev/vg0/db", &volume),
            ("root@dr1", &user),
        ],
    );
    succeeds(&stage.types(&elsewhere, &sshd.shell));
    equal(&volume, &replica);
    assert!(fs::exists(&state).unwrap(), "the other state directory is used");

    // And the other way round.
    let back = stage.ferry.name("back");
    succeeds(&stage.types(&format!("blockferry clone {user}:{replica} {back}"), &sshd.shell));
    equal(&volume, &back);
}

#[test]
fn what_goes_wrong_over_ssh_is_said_once() {
    if !sshd::is_installed("what_goes_wrong_over_ssh_is_said_once") {
        return;
    }
    let stage = Stage::new();
    let (sshd, volume) = (stage.sshd(), stage.ferry.name("volume"));
    let clone = |host: &str, replica: &str| stage.types(&format!("blockferry clone {volume} {host}:{replica}"), &sshd.shell);
    let host = format!("{}@dr1", sshd.user);
    // A target that holds something else.
    let full = stage.ferry.image("full", &noise(7, BYTES));
    says_once(&clone(&host, &full), 8, "--overwrite");
    // A folder that is not there.
    says_once(&clone(&host, &stage.ferry.name("no/such")), 2, "no/such");
    // The program is not there.
    let missing = stage.types(&format!("blockferry clone --remote-program blockfairy {volume} {host}:/x"), &sshd.shell);
    says_once(&missing, 4, "is blockferry installed there?");
    // The key is not let in: ssh says why, and we what ended.
    sshd.authorize("");
    let refused = clone(&host, "/x");
    says_once(&refused, 4, "Permission denied");
    assert!(refused.stderr.contains("the remote shell to"), "{}", refused.stderr);
}

#[test]
fn a_forced_command_goes_as_the_page_says_and_opens_nothing_else() {
    if !sshd::is_installed("a_forced_command_goes_as_the_page_says_and_opens_nothing_else") {
        return;
    }
    let stage = Stage::new();
    let (sshd, volume, config) = (stage.sshd(), stage.ferry.name("volume"), stage.ferry.name("receiver.toml"));
    let entries =
        ["db-data", "web"].map(|name| format!("[[replica]]\nname = \"{name}\"\ndevice = {{ file = \"{}\" }}\n", stage.ferry.name(name)));
    let client = "[[client]]\nname = \"prod1\"\nallow = [{ replica = \"db-*\" }]\n";
    fs::write(&config, format!("state_dir = \"{}\"\n{client}{}", stage.ferry.name("there"), entries.concat())).unwrap();
    let forced = stage.line(
        "restrict,command=",
        "--client prod1",
        &[("--client prod1", &format!("--client prod1 --config {config}")), ("ssh-ed25519 AAAA… root@prod1", &sshd.public())],
    );
    sshd.authorize(&forced);
    let host = format!("{}@dr1.example", sshd.user);
    let clone = stage.line("blockferry clone ", "repl@dr1.example:db-data", &[("/dev/vg0/db-data", &volume), ("repl@dr1.example", &host)]);
    for _ in 0..2 {
        succeeds(&stage.types(&clone, &sshd.shell));
        equal(&volume, stage.ferry.path("db-data"));
    }
    // Whatever is asked for: names that are granted, and nothing else.
    for target in ["web", "nothing", "/etc/passwd", &stage.ferry.name("web")] {
        says_once(&stage.types(&format!("blockferry clone {volume} {host}:{target}"), &sshd.shell), 8, "prod1 may not push to");
    }
    let stolen = stage.ferry.name("stolen");
    says_once(&stage.types(&format!("blockferry clone {host}:db-data {stolen}"), &sshd.shell), 8, "command is forced");
    assert!(!fs::exists(&stolen).unwrap());
    let shell = stage.types(&format!("{} {host} cat {volume}", sshd.shell), "");
    assert!(shell.code == Some(8) && shell.stdout.is_empty() && shell.stderr.contains("command is forced"), "{shell:?}");
    // The configuration is not there, or has a mistake.
    sshd.authorize(&forced.replace(&config, "/nowhere/receiver.toml"));
    says_once(&stage.types(&clone, &sshd.shell), 2, "read /nowhere/receiver.toml");
    // A client that the configuration does not know.
    sshd.authorize(&forced.replace("prod1", "prod2"));
    says_once(&stage.types(&clone, &sshd.shell), 8, "there is no client");
}

/// A receiver that ends with the test.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_hosts_are_paired_as_the_page_says() {
    let stage = Stage::new();
    let (config, volume) = (stage.ferry.name("etc/receiver.toml"), stage.ferry.name("volume"));
    let etc = [("/etc/blockferry", stage.ferry.name("etc"))];
    let etc: Vec<(&str, &str)> = etc.iter().map(|(word, other)| (*word, other.as_str())).collect();
    succeeds(&stage.types(&stage.line("mkdir -p", "/etc/blockferry", &etc), ""));
    let example = stage.line("blockferry config example --receiver", ">", &etc);
    succeeds(&stage.types(&example, ""));
    // What is served is said: the page's replica as an image file, on a port of ours.
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("0.0.0.0:7420", "127.0.0.1:0").replace("/var/lib/blockferry", &stage.ferry.name("there"));
    let text = text.replace("{ lv = \"vgdr/db-data\" }", &format!("{{ file = \"{}\" }}", stage.ferry.name("db-data")));
    // Now and then CI runs at an hour with a limit; and an image file is never refused writes.
    fs::write(
        &config,
        text.lines().filter(|line| !line.starts_with("bandwidth") && !line.starts_with("readonly")).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let check = stage.line("blockferry config check --receiver", "", &[]) + &format!(" --config {config}");
    let checked = stage.types(&check, "");
    assert!(checked.code == Some(0) && checked.stdout.is_empty() && checked.stderr.is_empty(), "{checked:?}");

    let log = fs::File::create(stage.ferry.path("log")).unwrap();
    let mut receiver = Command::new(PROGRAM);
    receiver.args(["receiver", "--config", &config]).env_remove("BLOCKFERRY_STATE_DIR").stdin(Stdio::null()).stderr(log);
    let _serving = Serving(receiver.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(120);
    let address = loop {
        let log = fs::read_to_string(stage.ferry.path("log")).unwrap();
        if let Some((address, _)) = log.split_once("listening on ").and_then(|(_, rest)| rest.split_once(", key ")) {
            break address.to_owned();
        }
        assert!(Instant::now() < until, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    };

    let invite = stage.line("blockferry pair invite", "--address dr1.example", &[("dr1.example", &address)]);
    let invite = invite.split('#').next().unwrap().trim().to_owned() + &format!(" --config {config}");
    let invite = invite.replace("blockferry pair", "env -u BLOCKFERRY_STATE_DIR blockferry pair");
    let invited = stage.types(&invite, "");
    succeeds(&invited);
    assert!(invited.stderr.contains("blockferry pair accept TOKEN"), "{invited:?}");
    let token = invited.stdout.trim();
    let accept = stage.line("blockferry pair accept", "", &[("blockferry-pair-1-…", token)]);
    let accepted = stage.types(&accept, "");
    succeeds(&accepted);
    assert!(accepted.stdout.contains("blockferry clone SRC blockferry://"), "{accepted:?}");
    let clone = stage.line("blockferry clone ", "blockferry://dr1.example", &[("/dev/vg0/db-data", &volume), ("dr1.example", &address)]);
    succeeds(&stage.types(&clone, ""));
    equal(&volume, stage.ferry.path("db-data"));
}
