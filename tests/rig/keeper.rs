//! A host with a real `blockferry agent`: its configuration, its log, its books. The process ends with the test.

use super::receiver::{Agent, PROGRAM, Receiver};
use blockferry::agent::book::{JobBook, Shelf};
use blockferry::agent::daemon::socket::{Question, ask};
use blockferry::error::Kind;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that happens by itself; on a busy machine it takes its time.
const LIMIT: Duration = Duration::from_secs(180);

/// The host.
pub struct Keeper {
    /// Its folder, state and key.
    pub host: Agent,
    child: Option<Child>,
}

#[allow(dead_code)]
impl Keeper {
    pub fn new() -> Keeper {
        Keeper { host: Agent::new(), child: None }
    }

    /// A host whose receiver is this one: agent and receiver share their state.
    pub fn with_state(receiver: &Receiver) -> Keeper {
        Keeper { host: Agent::beside(&receiver.state()), child: None }
    }

    /// An entry for a receiver of this configuration.
    pub fn receiver(name: &str, receiver: &Receiver) -> String {
        format!("[[receiver]]\nname = \"{name}\"\naddress = \"{}\"\npin = \"{}\"\n", receiver.address, receiver.pin)
    }

    /// A job with these lines; `volumes` are files in the folder, each named like its replica.
    pub fn job(&self, name: &str, receivers: &[&str], volumes: &[&str], lines: &str) -> String {
        let volumes: Vec<String> =
            volumes.iter().map(|volume| format!("{{ source = \"{}\", replica = \"{volume}\" }}", self.path(volume).display())).collect();
        format!("[[job]]\nname = \"{name}\"\nreceivers = {receivers:?}\nvolumes = [{}]\n{lines}\n", volumes.join(", "))
    }

    pub fn configure(&self, text: &str) {
        fs::write(self.path("agent.toml"), text).expect("write the configuration");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.host.folder.path().join(name)
    }

    pub fn shelf(&self) -> Shelf {
        Shelf::open(&self.host.state).expect("the books")
    }

    pub fn book(&self, job: &str) -> JobBook {
        self.shelf().read(job).expect("a book")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_remove("BLOCKFERRY_STATE_DIR").env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.arg("--state-dir").arg(self.host.state.path()).args(arguments).arg("--config").arg(self.path("agent.toml"));
        command.stdin(Stdio::null());
        command
    }

    /// A command with this host's state and configuration: its exit code, and what it said.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        super::receiver::end(&self.command(arguments).output().expect("run blockferry"))
    }

    /// The same in the background.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run blockferry")
    }

    /// Starts the agent and waits until it looks after its jobs.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with these options.
    pub fn start_with(&mut self, options: &[&str]) {
        assert!(self.child.is_none());
        let log = File::options().create(true).append(true).open(self.path("agent.log")).expect("a log");
        let seen = self.log().len();
        self.child = Some(
            self.command(&[&["agent", "--verbose"], options].concat()).stdout(Stdio::null()).stderr(log).spawn().expect("start the agent"),
        );
        self.wait("the agent is ready", || self.log()[seen..].contains("agent of "));
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("an agent");
        kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).expect("a signal to the agent");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("an agent");
        child.kill().and_then(|()| child.wait()).expect("the agent's end");
    }

    /// Asks it to stop and waits for its end: its exit code, and how long it took.
    pub fn stop(&mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().expect("an agent");
        loop {
            if let Some(status) = child.try_wait().expect("wait for the agent") {
                return (status.code(), began.elapsed());
            }
            if began.elapsed() > LIMIT {
                let _ = child.kill();
                panic!("the agent does not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the agent, and again while it is too busy to answer.
    #[track_caller]
    fn answer(&self, question: &Question) -> Value {
        let until = Instant::now() + LIMIT;
        loop {
            match ask(&self.shelf(), question) {
                Err(error) if error.kind() == Kind::Transient && Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
                answer => return answer.expect("an answer").expect("an agent"),
            }
        }
    }

    /// What the agent says of a job on its socket.
    pub fn seen(&self, job: &str) -> Value {
        let all = self.answer(&Question::Status);
        all["jobs"].as_array().expect("jobs").iter().find(|seen| seen["job"] == job).cloned().unwrap_or(Value::Null)
    }

    /// The phase of the job's first transfer, or nothing.
    pub fn phase(&self, job: &str) -> String {
        self.seen(job)["run"]["transfers"][0]["phase"].as_str().unwrap_or_default().to_owned()
    }

    /// Asks the agent for a run; gives the time before it was asked.
    pub fn ask_for_run(&self, job: &str) -> u64 {
        let before = blockferry::attempt::now_ms();
        self.answer(&Question::Run { job: job.to_owned() });
        before
    }

    /// Waits until this is so.
    #[track_caller]
    pub fn wait(&self, what: &str, mut so: impl FnMut() -> bool) {
        let until = Instant::now() + LIMIT;
        while !so() {
            assert!(Instant::now() < until, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a run of the job that began after now and left all its replicas current.
    #[track_caller]
    pub fn wait_current(&self, job: &str) {
        self.wait_current_since(job, blockferry::attempt::now_ms());
    }

    /// The same of a run that began at this time or later.
    #[track_caller]
    pub fn wait_current_since(&self, job: &str, since_ms: u64) {
        self.wait(&format!("{job} is current"), || self.book(job).last_success_ms.is_some_and(|success| success >= since_ms));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Overwrites a piece of a file, durably: what reads it next goes past the page cache.
#[allow(dead_code)]
pub fn edit(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("a file to edit");
    file.write_all_at(bytes, offset).and_then(|()| file.sync_all()).expect("an edit");
}
