//! The way to another host: a remote shell that runs blockferry there and carries the stream on its
//! standard input and output.

use crate::error::{Context, Error, Kind, Result};
use crate::ring::Choice;
use crate::transport::stream::Stream;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How other hosts are reached.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The remote shell and its options, as in `rsync --rsh`; words are split as a shell does.
    pub shell: String,
    /// How blockferry is called there, options included.
    pub program: String,
}

/// A running remote shell.
pub struct Link {
    child: Child,
    host: String,
}

impl Remote {
    /// Runs `SHELL HOST PROGRAM arguments…` and gives the stream to it.
    pub fn connect(&self, host: &str, arguments: &[&str], choice: Choice, stop: &Arc<AtomicBool>) -> Result<(Link, Stream)> {
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
        let link = Link { child, host: host.to_owned() };
        let (reader, writer) = (File::from(OwnedFd::from(output)), File::from(OwnedFd::from(input)));
        let stream = Stream::new(host.to_owned(), reader, writer, choice, stop.clone())?;
        Ok((link, stream))
    }
}

impl Link {
    /// Waits for the remote shell after the stream is closed. Its own failure explains ours better
    /// than a closed pipe does.
    pub fn close<T>(mut self, result: Result<T>) -> Result<T> {
        let status = self.child.wait().context(Kind::Failed, || "wait for the remote shell")?;
        match result {
            Err(error) if !status.success() && error.kind() == Kind::Transient && !error.is_from_peer() => {
                let message = format!("the remote shell to {} ended with {status}", self.host);
                Err(Error::because(Kind::Transient, message, error.chain()))
            }
            other => other,
        }
    }
}
