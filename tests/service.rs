//! `blockferry receiver` under systemd, played by the test: sockets that somebody else listens on, and what is told
//! through NOTIFY_SOCKET. The real binary, started as a unit starts it.

#[path = "rig/receiver.rs"]
mod receiver;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receiver::{Agent, PROGRAM, end};
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(120);

/// Whoever starts the daemon and listens to it.
struct Manager {
    child: Child,
    told: UnixDatagram,
    folder: PathBuf,
}

impl Manager {
    /// Starts the receiver with these sockets as descriptors 3 and up; `rest` is in its configuration.
    fn start(folder: &Path, sockets: Vec<OwnedFd>, rest: &str) -> Manager {
        let _ = fs::remove_file(folder.join("notify"));
        let told = UnixDatagram::bind(folder.join("notify")).unwrap();
        told.set_read_timeout(Some(HANGS)).unwrap();
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstate_dir = \"{0}/state\"\n{rest}\n[[replica]]\nname = \"db\"\ndevice = {{ file = \"{0}/db.img\" }}\n",
            folder.display()
        );
        fs::write(folder.join("receiver.toml"), config).unwrap();
        // The shell has the process id that LISTEN_PID must name, and keeps it when it becomes the daemon.
        let count = sockets.len();
        let (first, second) = match count {
            0 => ("", ""),
            1 => ("3<&0", ""),
            _ => ("3<&0", "4<&1"),
        };
        // The customary limit of open files, which is less than many sessions need.
        let line = format!("ulimit -Sn 256; exec {first} {second} </dev/null >/dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\"");
        let mut ends = sockets.into_iter().map(Stdio::from).chain([Stdio::null(), Stdio::null()]);
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new("sh")
            .args(["-c", &line, "sh", PROGRAM, "receiver", "--config"])
            .arg(folder.join("receiver.toml"))
            .env_remove("BLOCKFERRY_STATE_DIR")
            .env("NOTIFY_SOCKET", folder.join("notify"))
            .stdin(ends.next().unwrap())
            .stdout(ends.next().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Manager { child, told, folder: folder.to_owned() }
    }

    /// The next datagram.
    fn hears(&self) -> String {
        let mut words = [0; 4096];
        let bytes = self.told.recv(&mut words).unwrap_or_else(|cause| panic!("nothing was told ({cause}):\n{}", self.log()));
        String::from_utf8_lossy(&words[..bytes]).into_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn ends(&mut self) -> Option<i32> {
        let until = Instant::now() + HANGS;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A clone to the replica that the manager's daemon serves.
fn clone(agent: &Agent, image: &Path, address: &str, pin: &str) -> (Option<i32>, String) {
    end(&agent.run(&["clone", image.to_str().unwrap(), &format!("blockferry://{address}/db"), "--pin", pin]))
}

/// The key, from the line about listening.
fn pin(manager: &Manager) -> String {
    let log = manager.log();
    let (_, rest) = log.split_once(", key ").unwrap_or_else(|| panic!("no key: {log}"));
    rest.lines().next().unwrap().to_owned()
}

#[test]
fn an_inherited_socket_is_served_and_every_turn_of_its_life_is_told() {
    let (agent, folder) = (Agent::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let kept = listener.try_clone().unwrap();
    let mut manager = Manager::start(folder.path(), vec![listener.into()], &agent.entry("prod1", "*", "\"push\""));
    let ready = manager.hears();
    assert!(ready.lines().any(|line| line == "READY=1") && ready.contains(&format!("STATUS=listening on {address}")), "{ready}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", manager.child.id())).unwrap();
    let files: Vec<&str> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "it may open as many files as its host allows: {files:?}");
    let image = agent.image("volume", 1 << 20, 1);
    let (code, said) = clone(&agent, &image, &address, &pin(&manager));
    assert_eq!(code, Some(0), "{said}");

    manager.signal(Signal::SIGHUP);
    let reloading = manager.hears();
    assert!(reloading.lines().any(|line| line == "RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(manager.hears().lines().any(|line| line == "READY=1"), "a reload that is over is told");
    // One that fails is over, too, and the daemon serves on.
    fs::write(manager.folder.join("receiver.toml"), "listn = 1").unwrap();
    manager.signal(Signal::SIGHUP);
    assert!(manager.hears().contains("RELOADING=1") && manager.hears().contains("READY=1"));
    let (code, said) = clone(&agent, &image, &address, &pin(&manager));
    assert_eq!(code, Some(0), "{said}");

    manager.signal(Signal::SIGTERM);
    assert!(manager.hears().contains("STOPPING=1"));
    assert_eq!(manager.ends(), Some(0), "{}", manager.log());
    // The socket is systemd's: it listens on, and who comes now waits for the next start.
    drop(std::net::TcpStream::connect(kept.local_addr().unwrap()).unwrap());
}

#[test]
fn who_comes_before_the_daemon_is_served_by_it() {
    let (agent, folder) = (Agent::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let entry = agent.entry("prod1", "*", "\"push\"");
    let mut first = Manager::start(folder.path(), vec![listener.try_clone().unwrap().into()], &entry);
    first.hears();
    let pin = pin(&first);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends(), Some(0), "{}", first.log());
    let image = agent.image("volume", 1 << 20, 1);
    let target = format!("blockferry://{address}/db");
    let is_served = || {
        // Nobody is there; the socket is.
        let waiting = agent.start(&["clone", image.to_str().unwrap(), &target, "--pin", &pin]);
        std::thread::sleep(Duration::from_millis(300));
        let mut second = Manager::start(folder.path(), vec![listener.try_clone().unwrap().into()], &entry);
        second.hears();
        let (code, said) = end(&waiting.wait());
        assert!(matches!(code, Some(0 | 4)), "{code:?} {said}");
        second.signal(Signal::SIGTERM);
        assert_eq!(second.ends(), Some(0), "{}", second.log());
        code == Some(0)
    };
    // A client that waits for its handshake gives up after a while, which the start of a daemon on a busy machine may take
    // once or twice.
    assert!((0..3).any(|_| is_served()), "nobody was served who came before the daemon");
}

#[test]
fn all_inherited_sockets_are_served() {
    let (agent, folder) = (Agent::new(), tempfile::tempdir().unwrap());
    let listeners = ["127.0.0.1:0", "127.0.0.1:0"].map(|address| TcpListener::bind(address).unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let manager = Manager::start(folder.path(), listeners.map(Into::into).into(), &agent.entry("prod1", "*", "\"push\""));
    manager.hears();
    let image = agent.image("volume", 1 << 20, 1);
    for address in &addresses {
        let (code, said) = clone(&agent, &image, address, &pin(&manager));
        // To the agent the second is another place, so the replica there is another pair's: the receiver says so.
        assert!(code == Some(0) || said.contains("is the replica of"), "{said}");
    }
}

#[test]
fn a_socket_of_another_kind_is_a_mistake_of_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let mut manager = Manager::start(folder.path(), vec![listener.into()], "");
    assert_eq!(manager.ends(), Some(2), "{}", manager.log());
    assert!(manager.log().contains("ListenStream=ADDRESS:PORT"), "{}", manager.log());
}
