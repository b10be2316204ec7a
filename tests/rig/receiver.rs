//! A real `blockferry receiver` with its configuration, state and images in one folder, and agents with keys
//! of their own: on loopback, or on hosts that the test makes. Everything ends with the test, also when it panics.

use blockferry::attempt::own_key;
use blockferry::pin::Pin;
use blockferry::state::StateDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_blockferry");
/// What takes longer hangs, also on a busy machine.
const HANGS: Duration = Duration::from_secs(120);
/// How long a session may need for its end when its run has ended already, on a busy machine.
const LINGERS: Duration = Duration::from_secs(60);

/// Where processes run.
#[derive(Clone)]
pub struct Host {
    /// Words in front of their command lines.
    pub through: Vec<String>,
    /// What a receiver listens on there.
    pub listen: String,
}

impl Host {
    #[allow(dead_code)]
    /// This one, on loopback.
    pub fn here() -> Host {
        Host { through: Vec::new(), listen: "127.0.0.1:0".to_owned() }
    }

    fn program(&self) -> Command {
        let mut words = self.through.iter().map(String::as_str).chain([PROGRAM]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).env_remove("BLOCKFERRY_STATE_DIR").stdin(Stdio::null());
        command
    }
}

/// A running receiver.
pub struct Receiver {
    child: Child,
    folder: tempfile::TempDir,
    host: Host,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// Its key.
    pub pin: Pin,
}

impl Receiver {
    #[allow(dead_code)]
    /// Serves image files of these names; `rest` goes in front of them.
    pub fn start(replicas: &[&str], rest: &str) -> Receiver {
        Receiver::start_at(Host::here(), replicas, rest)
    }

    /// The same on that host.
    pub fn start_at(host: Host, replicas: &[&str], rest: &str) -> Receiver {
        let folder = tempfile::tempdir().expect("a folder");
        configure(folder.path(), &host, replicas, rest);
        let (child, address, pin) = spawn(folder.path(), &host, "");
        Receiver { child, folder, host, address, pin }
    }

    #[allow(dead_code)]
    pub fn image(&self, replica: &str) -> PathBuf {
        self.folder.path().join(format!("{replica}.img"))
    }

    #[allow(dead_code)]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    /// Waits until the log has this in it.
    #[allow(dead_code)]
    pub fn wait_for(&self, words: &str) -> String {
        self.wait_for_times(words, 1)
    }

    /// Waits until the log has this in it so many times.
    #[allow(dead_code)]
    pub fn wait_for_times(&self, words: &str, times: usize) -> String {
        let until = Instant::now() + HANGS;
        loop {
            let log = self.log();
            if log.matches(words).count() >= times {
                return log;
            }
            assert!(Instant::now() < until, "the receiver did not say {words:?} {times} times:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes another configuration and asks for it.
    #[allow(dead_code)]
    pub fn reconfigure(&self, replicas: &[&str], rest: &str) {
        configure(self.folder.path(), &self.host, replicas, rest);
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
        let until = Instant::now() + HANGS;
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
        (self.child, self.address, self.pin) = spawn(self.folder.path(), &self.host, "");
    }

    /// kill -9.
    #[allow(dead_code)]
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The same on the port it had; it dies at this fail point if there is one.
    #[allow(dead_code)]
    pub fn restart_here(&mut self, failpoint: &str) {
        let file = self.folder.path().join("receiver.toml");
        let text = fs::read_to_string(&file).expect("the configuration");
        fs::write(&file, text.replace("127.0.0.1:0", &self.address)).expect("write the configuration");
        (self.child, self.address, self.pin) = spawn(self.folder.path(), &self.host, failpoint);
    }

    /// Waits for the end of one that dies.
    #[allow(dead_code)]
    pub fn wait_for_death(&mut self) {
        let until = Instant::now() + HANGS;
        while self.is_alive() {
            assert!(Instant::now() < until, "the receiver lives:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes another configuration for the next start.
    #[allow(dead_code)]
    pub fn configure(&self, replicas: &[&str], rest: &str) {
        configure(self.folder.path(), &self.host, replicas, rest);
    }

    /// Its folder.
    #[allow(dead_code)]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its own command line: `blockferry --state-dir … arguments`.
    #[allow(dead_code)]
    pub fn run(&self, arguments: &[&str]) -> Output {
        command(&self.host, &self.state(), arguments).output().expect("run blockferry")
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

    #[allow(dead_code)]
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait for the receiver").is_none()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

fn configure(folder: &Path, host: &Host, replicas: &[&str], rest: &str) {
    let mut text = format!("listen = \"{}\"\nstate_dir = \"{}\"\n{rest}\n", host.listen, folder.join("state").display());
    for replica in replicas {
        let path = folder.join(format!("{replica}.img"));
        text += &format!("[[replica]]\nname = \"{replica}\"\ndevice = {{ file = \"{}\" }}\n", path.display());
    }
    fs::write(folder.join("receiver.toml"), text).expect("write the configuration");
}

fn spawn(folder: &Path, host: &Host, failpoint: &str) -> (Child, String, Pin) {
    let log = fs::File::create(folder.join("log")).expect("a log");
    let mut command = host.program();
    command.args(["receiver", "--config"]).arg(folder.join("receiver.toml")).stdout(Stdio::null()).stderr(log);
    if !failpoint.is_empty() {
        command.env("BLOCKFERRY_FAILPOINT", failpoint);
    }
    let mut child = command.spawn().expect("start the receiver");
    let until = Instant::now() + HANGS;
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

fn command(host: &Host, state: &Path, arguments: &[&str]) -> Command {
    let mut command = host.program();
    command.arg("--state-dir").arg(state).args(arguments);
    command
}

/// A command on its way; killed with the test.
#[allow(dead_code)]
pub struct Running(Option<Child>);

#[allow(dead_code)]
impl Running {
    /// Its process.
    pub fn process(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    pub fn is_over(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        self.0.take().expect("it runs").wait_with_output().expect("wait for blockferry")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A host that sends.
pub struct Agent {
    pub folder: tempfile::TempDir,
    pub state: StateDir,
    pub pin: Pin,
    host: Host,
}

impl Agent {
    #[allow(dead_code)]
    pub fn new() -> Agent {
        Agent::at(Host::here())
    }

    /// One on that host.
    pub fn at(host: Host) -> Agent {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(&folder.path().join("state")).expect("a state directory");
        let pin = *own_key(&state).expect("a key").pin();
        Agent { folder, state, pin, host }
    }

    /// One whose state is a receiver's, with a folder of its own.
    #[allow(dead_code)]
    pub fn beside(state: &Path) -> Agent {
        let state = StateDir::open(state).expect("a state directory");
        let pin = *own_key(&state).expect("a key").pin();
        Agent { folder: tempfile::tempdir().expect("a folder"), state, pin, host: Host::here() }
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

    /// Runs it to its end. The session of a run before it may still have the replica: that one's end is waited for.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let until = Instant::now() + LINGERS;
        loop {
            let output = self.run_once(arguments);
            let (code, said) = end(&output);
            if code != Some(5) || !said.contains("in use by a session") || Instant::now() > until {
                return output;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs it to its end, which may be that somebody has the replica.
    pub fn run_once(&self, arguments: &[&str]) -> Output {
        command(&self.host, self.state.path(), arguments).output().expect("run blockferry")
    }

    /// Starts it; standard output and error are pipes.
    #[allow(dead_code)]
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = command(&self.host, self.state.path(), arguments);
        Running(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start blockferry")))
    }

    /// `clone` or `verify` of an image to a replica of the receiver.
    #[allow(dead_code)]
    pub fn pass(&self, verb: &str, image: &Path, receiver: &Receiver, replica: &str, more: &[&str]) -> Output {
        let words = words(verb, image, receiver, replica, more);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, told at once that somebody has the replica.
    #[allow(dead_code)]
    pub fn pass_once(&self, verb: &str, image: &Path, receiver: &Receiver, replica: &str) -> Output {
        let words = words(verb, image, receiver, replica, &[]);
        self.run_once(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, started.
    #[allow(dead_code)]
    pub fn start_pass(&self, verb: &str, image: &Path, receiver: &Receiver, replica: &str, more: &[&str]) -> Running {
        let words = words(verb, image, receiver, replica, more);
        self.start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn words(verb: &str, image: &Path, receiver: &Receiver, replica: &str, more: &[&str]) -> Vec<String> {
    let target = format!("blockferry://{}/{replica}", receiver.address);
    let pin = receiver.pin.to_string();
    let fixed = [verb, image.to_str().expect("plain text"), &target, "--pin", &pin];
    fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

/// The exit code and what was said.
#[allow(dead_code)]
pub fn end(output: &Output) -> (Option<i32>, String) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
