//! The way to another host: a remote shell that runs blockferry there and carries the stream on its
//! standard input and output.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{GREETING_TIMEOUT, LINK_CLOSE_TIMEOUT, STALL_TIMEOUT};
use crate::ring::Choice;
use crate::transport::stream::Stream;
use crate::transport::{Terms, Wire};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How other hosts are reached.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The remote shell and its options, as in `rsync --rsh`; words are split as a shell does.
    pub shell: String,
    /// How blockferry is called there, options included.
    pub program: String,
}

impl Default for Remote {
    fn default() -> Remote {
        Remote { shell: "ssh".to_owned(), program: "blockferry".to_owned() }
    }
}

/// A running remote shell.
pub struct Link {
    child: Child,
    host: String,
    stop: Arc<AtomicBool>,
}

impl Remote {
    /// Runs `SHELL HOST PROGRAM arguments…` and gives the wire to it.
    pub fn connect(
        &self,
        host: &str,
        arguments: &[&str],
        choice: Choice,
        terms: &Terms,
        stop: &Arc<AtomicBool>,
    ) -> Result<(Link, Result<Wire>)> {
        let words = shell_words::split(&self.shell).context(Kind::Usage, || format!("read --rsh \"{}\"", self.shell))?;
        let (shell, options) = words.split_first().ok_or_else(|| Error::new(Kind::Usage, "--rsh is empty"))?;
        // The remote end is a shell's command line: each argument is quoted for it.
        let remote = std::iter::once(self.program.clone()).chain(arguments.iter().map(|word| shell_words::quote(word).into_owned()));
        let remote = remote.collect::<Vec<_>>().join(" ");
        let mut command = Command::new(shell);
        command.args(options).arg(host).arg(&remote).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context(Kind::Usage, || format!("run the remote shell {shell} (--rsh chooses another)"))?;
        let pipes = child.stdout.take().zip(child.stdin.take());
        let (output, input) = pipes.ok_or_else(|| Error::new(Kind::Failed, "the remote shell has no pipes"))?;
        let link = Link { child, host: host.to_owned(), stop: Arc::clone(stop) };
        let (reader, writer) = (File::from(OwnedFd::from(output)), File::from(OwnedFd::from(input)));
        let stream = Stream::new(host.to_owned(), reader, writer, choice, stop.clone());
        // Where there is a terminal, the shell may be asking somebody for a password, and he may end it.
        let greeting = File::open("/dev/tty").is_err().then_some(GREETING_TIMEOUT);
        Ok((link, stream.and_then(|stream| Wire::on_terms(Box::new(stream), terms, greeting))))
    }
}

/// What the other end is told of our patience, so that it has no less; nothing where it is what everybody has.
pub fn stall_argument(terms: &Terms) -> Option<String> {
    (terms.stall != STALL_TIMEOUT).then(|| format!("--stall-timeout={}ms", terms.stall.as_millis()))
}

impl Link {
    /// Waits for the remote shell after the stream is closed. Its own failure explains ours better
    /// than a closed pipe does.
    pub fn close<T>(mut self, result: Result<T>) -> Result<T> {
        let Some(status) = self.end()? else { return result };
        let stopped = self.stop.load(Ordering::Relaxed);
        match result {
            // Ctrl-C reaches the whole foreground group: the shell that it ended is no failure of the network.
            Err(error) if stopped && error.kind() == Kind::Transient => Err(Error::interrupted()),
            // A signal that stopped the other end is none to us: the next try may find it running again.
            Err(error) if !stopped && error.is_from_peer() && error.kind() == Kind::Interrupted => Err(error.with_kind(Kind::Transient)),
            Err(error) if !status.success() && error.kind() == Kind::Transient && !error.is_from_peer() => {
                let message = format!("the remote shell to {} ended with {status}", self.host);
                Err(Error::because(Kind::Transient, message, error.chain()))
            }
            other => other,
        }
    }

    /// How the shell ended. One that waits for a link that is dead is killed after a while: `None`, which explains nothing.
    fn end(&mut self) -> Result<Option<ExitStatus>> {
        let place = || "wait for the remote shell";
        let deadline = Instant::now() + LINK_CLOSE_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context(Kind::Failed, place)? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended just now; then there is nothing to kill.
        let _ = self.child.kill();
        self.child.wait().context(Kind::Failed, place)?;
        Ok(None)
    }
}
