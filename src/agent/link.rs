//! The way to another host: a remote shell that runs blockferry there and carries the stream on its
//! standard input and output.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::REMOTE_SHELL_GRACE;
use crate::ring::Choice;
use crate::transport::stream::Stream;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Between two looks at whether the remote shell has ended.
const PAUSE: Duration = Duration::from_millis(10);

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
    /// than a closed pipe does. One that does not end is killed: over a dead link ssh waits for its
    /// connection's end, for hours where nobody told it to look.
    pub fn close<T>(self, result: Result<T>) -> Result<T> {
        self.close_within(REMOTE_SHELL_GRACE, result)
    }

    fn close_within<T>(mut self, grace: Duration, result: Result<T>) -> Result<T> {
        let what = || "wait for the remote shell";
        let until = Instant::now() + grace;
        let failed = loop {
            match self.child.try_wait().context(Kind::Failed, what)? {
                Some(status) => break (!status.success()).then_some(status),
                None if Instant::now() < until => std::thread::sleep(PAUSE),
                None => {
                    // It may have ended in this very moment; that is what is wanted.
                    let _ = self.child.kill();
                    self.child.wait().context(Kind::Failed, what)?;
                    break None; // it knows nothing that we do not
                }
            }
        };
        match (result, failed) {
            (Err(error), Some(status)) if error.kind() == Kind::Transient && !error.is_from_peer() => {
                let message = format!("the remote shell to {} ended with {status}", self.host);
                Err(Error::because(Kind::Transient, message, error.chain()))
            }
            (result, _) => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_does_not_end_is_killed_and_the_result_stands() {
        let hanging = || Link { child: Command::new("sleep").arg("600").spawn().unwrap(), host: "far".to_owned() };
        let began = Instant::now();
        hanging().close_within(Duration::from_millis(50), Ok(())).unwrap();
        let cut: Result<()> = Err(Error::new(Kind::Transient, "no byte moved"));
        let error = hanging().close_within(Duration::from_millis(50), cut).unwrap_err();
        assert_eq!(error.kind(), Kind::Transient);
        assert_eq!(error.chain(), "no byte moved");
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
