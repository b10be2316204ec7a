//! Runs another program with a time limit and gives back how it ended and what it said: lvm2's tools, hooks, and
//! what is called to tell somebody something.
//! duct starts it; what is said here is when it is ended, and how much of its words is kept.
//!
//! Each program has a process group of its own: one that hangs is stopped together with what it started, because a
//! grandchild that keeps the pipe open would make us wait as well. The group is asked first and killed later: lvm2
//! holds signals back while devices are suspended, so that asking cannot leave a volume suspended, while killing can.
//! A program that ended by itself may leave a daemon behind that still has the pipes; that one is left alone.

use crate::limits::{HELPER_DRAIN, HELPER_STOP_GRACE};
use duct::{Expression, Handle};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A program to run.
pub struct Call<'a> {
    expression: Expression,
    line: String,
    input: &'a [u8],
    limit: Duration,
    grace: Duration,
    keep_bytes: usize,
    stop: Option<&'a AtomicBool>,
    slow: Option<Slow<'a>>,
}

/// After how long something is to be said of a program that still runs, and by whom.
type Slow<'a> = (Duration, &'a dyn Fn());

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself.
    Exited(ExitStatus),
    /// It was ended at its time limit, the hard way where `killed`.
    TooLong {
        /// Asking did not help.
        killed: bool,
    },
    /// It was ended because we are to stop.
    Stopped,
}

/// What became of a program.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub how: How,
    /// The last that it printed.
    pub output: Vec<u8>,
    /// The last that it complained of.
    pub errors: Vec<u8>,
    /// Whether it printed more than is kept.
    pub cut: bool,
}

impl<'a> Call<'a> {
    /// Of `program` with `args`, for at most `limit`; the last `keep_bytes` of what it prints are kept.
    pub fn new<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>, limit: Duration, keep_bytes: usize) -> Call<'a> {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let words = std::iter::once(program.as_os_str()).chain(args.iter().map(|arg| arg.as_os_str())).map(|word| word.to_string_lossy());
        let line = shell_words::join(words);
        // As a word and not as a path, which duct would take for one of the working folder: PATH is searched.
        let expression = duct::cmd(program.as_os_str(), args).unchecked().before_spawn(|command| {
            command.process_group(0);
            Ok(())
        });
        Call { expression, line, input: &[], limit, grace: HELPER_STOP_GRACE, keep_bytes, stop: None, slow: None }
    }

    /// With this in its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Call<'a> {
        self.expression = self.expression.env(name, value.as_ref());
        self
    }

    /// With this on its standard input.
    pub fn input(mut self, input: &'a [u8]) -> Call<'a> {
        self.input = input;
        self
    }

    /// Killed so long after it was asked to end.
    pub fn grace(mut self, grace: Duration) -> Call<'a> {
        self.grace = grace;
        self
    }

    /// Ended when this is set.
    pub fn until(mut self, stop: &'a AtomicBool) -> Call<'a> {
        self.stop = Some(stop);
        self
    }

    /// `tell` is called once, where it still runs after so long.
    pub fn slow(mut self, after: Duration, tell: &'a dyn Fn()) -> Call<'a> {
        self.slow = Some((after, tell));
        self
    }

    /// The command as one could type it.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Runs it to its end. An error: it could not be started.
    pub fn run(&mut self) -> io::Result<Ended> {
        let ((output, to_output), (errors, to_errors)) = (io::pipe()?, io::pipe()?);
        let mut expression = self.expression.stdout_file(to_output).stderr_file(to_errors);
        let mut to_input = None;
        if self.input.is_empty() {
            expression = expression.stdin_null();
        } else {
            let (from, to) = io::pipe()?;
            (expression, to_input) = (expression.stdin_file(from), Some(to));
        }
        let handle = expression.start()?;
        // Our copies of the program's ends: a pipe that is left open here would never come to its end.
        drop(expression);
        Running::new(handle, self, to_input, output, errors)?.wait()
    }
}

impl Ended {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        matches!(self.how, How::Exited(status) if status.success())
    }

    /// What it had to say, as one line: its complaints, or else what it printed.
    pub fn words(&self) -> String {
        let errors = words_of(&self.errors);
        if errors.is_empty() { words_of(&self.output) } else { errors }
    }
}

/// The lines trimmed, joined by semicolons.
pub fn words_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Where administrators' tools live when the PATH of a cron job or a service does not say so.
const SYSTEM_FOLDERS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/usr/lib"];

/// The file of a tool of this host, if it is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// One end of a pipe to the program; gone once it is closed.
struct Tail<R> {
    pipe: Option<R>,
    kept: Vec<u8>,
    keep_bytes: usize,
    cut: bool,
}

impl<R: Read + AsFd> Tail<R> {
    fn new(pipe: Option<R>, keep_bytes: usize) -> io::Result<Tail<R>> {
        pipe.as_ref().map_or(Ok(()), unblock)?;
        Ok(Tail { pipe, kept: Vec::new(), keep_bytes, cut: false })
    }

    /// Takes in what is there, at most a few buffers of it: the clock is looked at in between.
    fn pump(&mut self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..16 {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(bytes) => self.keep(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > self.keep_bytes {
            self.cut = true;
            self.kept.drain(..self.kept.len() - self.keep_bytes);
        }
    }
}

/// Why a program is being ended.
#[derive(Clone, Copy, PartialEq)]
enum Why {
    TooLong,
    Stopped,
}

/// A program that runs.
struct Running<'a> {
    handle: Handle,
    group: Pid,
    input: &'a [u8],
    to_input: Option<PipeWriter>,
    output: Tail<PipeReader>,
    errors: Tail<PipeReader>,
    limit: Instant,
    grace: Duration,
    stop: Option<&'a AtomicBool>,
    began: Instant,
    /// Gone once it was told.
    slow: Option<Slow<'a>>,
    /// Being ended: why, since when, and whether by force.
    ending: Option<(Why, Instant, bool)>,
}

impl<'a> Running<'a> {
    fn new(
        handle: Handle,
        call: &Call<'a>,
        to_input: Option<PipeWriter>,
        output: PipeReader,
        errors: PipeReader,
    ) -> io::Result<Running<'a>> {
        let first = handle.pids().first().copied().ok_or_else(|| io::Error::other("it has no process"))?;
        let group = Pid::from_raw(i32::try_from(first).map_err(io::Error::other)?);
        to_input.as_ref().map_or(Ok(()), unblock)?;
        let (output, errors) = (Tail::new(Some(output), call.keep_bytes)?, Tail::new(Some(errors), call.keep_bytes)?);
        let began = Instant::now();
        Ok(Running {
            handle,
            group,
            input: call.input,
            to_input,
            output,
            errors,
            limit: began + call.limit,
            grace: call.grace,
            stop: call.stop,
            began,
            slow: call.slow,
            ending: None,
        })
    }

    fn wait(mut self) -> io::Result<Ended> {
        let mut gone_since = None;
        let mut nap = Duration::from_millis(1);
        let gone = loop {
            self.feed();
            self.output.pump();
            self.errors.pump();
            let quiet = self.output.pipe.is_none() && self.errors.pipe.is_none();
            // Not yet taken in as ended: until then nobody else can get its number, and the group is surely ours.
            if gone_since.is_none() && self.is_gone()? {
                gone_since = Some(Instant::now());
            }
            match gone_since {
                Some(_) if quiet => break true,
                // What still has the pipes was left behind on purpose.
                Some(since) if self.ending.is_none() && since.elapsed() >= HELPER_DRAIN => break true,
                _ => {}
            }
            if gone_since.is_none()
                && let Some((_, tell)) = self.slow.take_if(|(after, _)| self.began.elapsed() >= *after)
            {
                tell();
            }
            if !self.press() {
                break gone_since.is_some();
            }
            nap = if quiet || gone_since.is_some() { (nap * 2).min(Duration::from_millis(50)) } else { Duration::from_millis(50) };
            self.sleep(nap);
        };
        let status = if gone { Some(self.handle.wait()?.status) } else { None };
        let how = match (self.ending, status) {
            (None, Some(status)) => How::Exited(status),
            (Some((Why::Stopped, ..)), _) => How::Stopped,
            (Some((_, _, killed)), _) => How::TooLong { killed },
            (None, None) => How::TooLong { killed: true },
        };
        Ok(Ended { how, cut: self.output.cut || self.errors.cut, output: self.output.kept, errors: self.errors.kept })
    }

    /// Ends what has to end. `false`: even killing it did not help, which a process in uninterruptible sleep
    /// outlives; it must not take us with it.
    fn press(&mut self) -> bool {
        let now = Instant::now();
        let why = match self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Some(Why::Stopped),
            _ => (now >= self.limit).then_some(Why::TooLong),
        };
        match (self.ending, why) {
            (None, Some(why)) => self.end(why, Signal::SIGTERM),
            (Some((why, since, false)), _) if now >= since + self.grace => self.end(why, Signal::SIGKILL),
            (Some((_, since, true)), _) if now >= since + self.grace => return false,
            _ => {}
        }
        true
    }

    fn end(&mut self, why: Why, signal: Signal) {
        // It may have ended in this very moment; that is what is wanted.
        let _ = killpg(self.group, signal);
        self.ending = Some((why, Instant::now(), signal == Signal::SIGKILL));
    }

    fn is_gone(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group), flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands over input as fast as it is taken. A program that does not want it has no need to read it.
    fn feed(&mut self) {
        while let Some(pipe) = &mut self.to_input {
            match pipe.write(self.input) {
                Ok(bytes) if bytes < self.input.len() => self.input = &self.input[bytes..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => self.to_input = None,
            }
        }
    }

    /// Until something can be read or written, at most this long.
    fn sleep(&self, nap: Duration) {
        let mut all = Vec::with_capacity(3);
        all.extend(self.output.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        all.extend(self.errors.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        all.extend(self.to_input.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        let nap = PollTimeout::try_from(nap).unwrap_or(PollTimeout::ZERO);
        // Woken early is no harm: everything is looked at anew.
        let _ = poll(&mut all, nap);
    }
}

fn unblock(pipe: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell<'a>(script: &str, limit: Duration) -> Call<'a> {
        Call::new(Path::new("/bin/sh"), ["-c", script], limit, 4096).grace(Duration::from_millis(300))
    }

    #[test]
    fn what_it_says_and_how_it_ends_come_back() {
        let ended = shell("read word; echo got $word; echo \"$WHY\" >&2; exit 3", LONG).env("WHY", "so").input(b"this\n").run().unwrap();
        assert_eq!((ended.output.as_slice(), ended.errors.as_slice()), (&b"got this\n"[..], &b"so\n"[..]));
        assert!(matches!(ended.how, How::Exited(status) if status.code() == Some(3)) && !ended.success());
        assert_eq!(ended.words(), "so");
    }

    #[test]
    fn a_bare_name_is_looked_for_where_programs_are() {
        assert!(Call::new(Path::new("true"), [""; 0], LONG, 4096).run().unwrap().success());
        assert!(Call::new(Path::new("no-such-program-anywhere"), [""; 0], LONG, 4096).run().is_err());
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_what_it_started() {
        let began = Instant::now();
        let ended = shell("sleep 600 & sleep 600", Duration::from_millis(100)).grace(LONG).run().unwrap();
        assert_eq!(ended.how, How::TooLong { killed: false });
        // As long as it takes to come so far.
        let deaf = |limit| shell("trap '' TERM; echo here; sleep 600 & sleep 600; sleep 600", limit).run().unwrap();
        let ended = (0..8).map(|n| deaf(Duration::from_millis(300 << n))).find(|ended| !ended.output.is_empty()).unwrap();
        assert_eq!((ended.how, ended.output.as_slice()), (How::TooLong { killed: true }, &b"here\n"[..]));
        assert!(began.elapsed() < LONG * 5, "a grandchild kept the pipe open");
    }

    #[test]
    fn one_that_takes_long_is_told_of_once_and_one_that_does_not_is_not() {
        let told = std::cell::Cell::new(0);
        let tell = || told.set(told.get() + 1);
        assert!(shell("true", LONG).slow(LONG, &tell).run().unwrap().success());
        assert_eq!(told.get(), 0);
        // It waits until it was told of.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("told");
        let tell = || {
            tell();
            std::fs::write(&file, "").unwrap();
        };
        let waits = format!("while [ ! -e {} ]; do sleep 0.1; done; sleep 0.5", file.display());
        assert!(shell(&waits, LONG).slow(Duration::from_millis(100), &tell).run().unwrap().success());
        assert_eq!(told.get(), 1);
    }

    #[test]
    fn a_stop_ends_it_early() {
        let stop = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                stop.store(true, Ordering::Relaxed);
            });
            shell("sleep 600", LONG).until(&stop).run().unwrap()
        });
        assert_eq!(ended.how, How::Stopped);
    }

    #[test]
    fn a_daemon_that_a_program_leaves_behind_is_not_waited_for_and_not_ended() {
        let ended = shell("sleep 600 & echo $!", LONG).run().unwrap();
        assert!(ended.success(), "{:?}", ended.how);
        let daemon = Pid::from_raw(String::from_utf8(ended.output).unwrap().trim().parse().unwrap());
        nix::sys::signal::kill(daemon, Signal::SIGTERM).unwrap();
    }

    #[test]
    fn the_last_of_a_flood_is_kept_and_input_that_nobody_reads_is_no_failure() {
        let flood = vec![b'x'; 1 << 20];
        let ended = shell("head -c 3000000 /dev/zero; echo end", LONG).input(&flood).run().unwrap();
        assert!(ended.success() && ended.cut && ended.output.len() == 4096 && ended.output.ends_with(b"end\n"));
        let ended = shell("wc -c", LONG).input(&flood).run().unwrap();
        assert_eq!(ended.words(), "1048576");
    }

    #[test]
    fn what_is_not_there_cannot_be_started() {
        let error = Call::new(Path::new("/nowhere/tool"), ["a b"], LONG, 10).run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(Call::new(Path::new("/nowhere/tool"), ["a b"], LONG, 10).line(), "/nowhere/tool 'a b'");
        assert!(find("sh").is_some() && find("a-tool-that-nobody-has").is_none());
    }
}
