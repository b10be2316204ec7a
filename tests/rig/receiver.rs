//! A real `blockferry receiver` on loopback with its configuration, state and images in one folder, and
//! agents with keys of their own. Everything ends with the test, also when it panics.

use blockferry::attempt::own_key;
use blockferry::pin::Pin;
use blockferry::state::StateDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_blockferry");

/// A running receiver.
pub struct Receiver {
    child: Child,
    folder: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// Its key.
    pub pin: Pin,
}

impl Receiver {
    /// Serves image files of these names; `rest` goes in front of them.
    pub fn start(replicas: &[&str], rest: &str) -> Receiver {
        let folder = tempfile::tempdir().expect("a folder");
        configure(folder.path(), replicas, rest);
        let (child, address, pin) = spawn(folder.path());
        Receiver { child, folder, address, pin }
    }

    pub fn image(&self, replica: &str) -> PathBuf {
        self.folder.path().join(format!("{replica}.img"))
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    /// Waits until the log has this in it.
    pub fn wait_for(&self, words: &str) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let log = self.log();
            if log.contains(words) {
                return log;
            }
            assert!(Instant::now() < until, "the receiver never said {words:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes another configuration and asks for it.
    #[allow(dead_code)]
    pub fn reconfigure(&self, replicas: &[&str], rest: &str) {
        configure(self.folder.path(), replicas, rest);
        self.signal(nix::sys::signal::Signal::SIGHUP);
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("a signal to the receiver");
    }

    /// Asks it to stop and waits for its end.
    #[allow(dead_code)]
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            match self.child.try_wait().expect("wait for the receiver") {
                Some(status) => return status.code(),
                None => assert!(Instant::now() < until, "the receiver does not stop:\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again where it stopped.
    #[allow(dead_code)]
    pub fn restart(&mut self) {
        (self.child, self.address, self.pin) = spawn(self.folder.path());
    }

    /// Its own command line: `blockferry --state-dir … arguments`.
    #[allow(dead_code)]
    pub fn run(&self, arguments: &[&str]) -> Output {
        run(&self.state(), arguments)
    }

    /// How many threads it has.
    #[allow(dead_code)]
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(0, Iterator::count)
    }

    /// Its process.
    #[allow(dead_code)]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait for the receiver").is_none()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(folder: &Path, replicas: &[&str], rest: &str) {
    let mut text = format!("listen = \"127.0.0.1:0\"\nstate_dir = \"{}\"\n{rest}\n", folder.join("state").display());
    for replica in replicas {
        let path = folder.join(format!("{replica}.img"));
        text += &format!("[[replica]]\nname = \"{replica}\"\ndevice = {{ file = \"{}\" }}\n", path.display());
    }
    fs::write(folder.join("receiver.toml"), text).expect("write the configuration");
}

fn spawn(folder: &Path) -> (Child, String, Pin) {
    let log = fs::File::create(folder.join("log")).expect("a log");
    let mut command = Command::new(PROGRAM);
    command.args(["receiver", "--config"]).arg(folder.join("receiver.toml"));
    command.env_remove("BLOCKFERRY_STATE_DIR").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().expect("start the receiver");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let log = fs::read_to_string(folder.join("log")).expect("the log");
        if let Some((_, rest)) = log.split_once("listening on ")
            && let Some((words, _)) = rest.split_once('\n')
            && let Some((address, pin)) = words.split_once(", key ")
        {
            return (child, address.to_owned(), pin.parse().expect("a pin"));
        }
        if Instant::now() > until || child.try_wait().expect("wait for the receiver").is_some() {
            let _ = child.kill();
            panic!("the receiver does not listen:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn run(state: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).arg("--state-dir").arg(state).args(arguments).stdin(Stdio::null()).output().expect("run blockferry")
}

/// A host that sends.
pub struct Agent {
    pub folder: tempfile::TempDir,
    pub state: StateDir,
    pub pin: Pin,
}

impl Agent {
    pub fn new() -> Agent {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(&folder.path().join("state")).expect("a state directory");
        let pin = *own_key(&state).expect("a key").pin();
        Agent { folder, state, pin }
    }

    /// An entry for receiver.toml that gives these operations on these replicas.
    pub fn entry(&self, name: &str, replicas: &str, operations: &str) -> String {
        format!("[[client]]\nname = \"{name}\"\nkey = \"{}\"\nallow = [{{ replica = \"{replicas}\", ops = [{operations}] }}]\n", self.pin)
    }

    /// An image with this in every block.
    #[allow(dead_code)]
    pub fn image(&self, name: &str, bytes: usize, seed: u8) -> PathBuf {
        let path = self.folder.path().join(name);
        let content: Vec<u8> = (0..bytes).map(|at| (at / 4096 * 31 + at % 251) as u8 ^ seed).collect();
        fs::write(&path, content).expect("write an image");
        path
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        run(self.state.path(), arguments)
    }

    /// `clone` or `verify` of an image to a replica of the receiver.
    #[allow(dead_code)]
    pub fn pass(&self, verb: &str, image: &Path, receiver: &Receiver, replica: &str, more: &[&str]) -> Output {
        let target = format!("blockferry://{}/{replica}", receiver.address);
        let pin = receiver.pin.to_string();
        let mut arguments = vec![verb, image.to_str().expect("plain text"), &target, "--pin", &pin];
        arguments.extend(more);
        self.run(&arguments)
    }
}

/// The exit code and what was said.
pub fn end(output: &Output) -> (Option<i32>, String) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
