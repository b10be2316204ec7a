//! Runs one lvm2 command and gives back what it printed.
//!
//! Each command has a time limit (src/program.rs says how it is kept).
//!
//! Output is asked for as JSON with fixed units; nothing is read from columns made for people.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{LVM_OUTPUT_BYTES_MAX, LVM_SILENCE, LVM_TIMEOUT};
use crate::log;
use crate::program::{self, Call, How, words_of};
use nix::unistd::geteuid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs lvm2 commands. The seam where tests put captured output in place of the tools.
pub trait Tools: Send + Sync {
    /// Runs `lvm ARGS…` and gives its standard output.
    fn lvm(&self, args: &[&str]) -> Result<String>;

    /// An error where the kernel has no device-mapper. lvs reads the volumes from the disks and calls all
    /// of them inactive then; activating one would be the wrong advice.
    fn need_device_mapper(&self) -> Result<()>;
}

/// The lvm2 tools of this host.
pub struct Lvm2;

impl Tools for Lvm2 {
    fn lvm(&self, args: &[&str]) -> Result<String> {
        if !geteuid().is_root() {
            return Err(Error::new(Kind::Usage, "LVM snapshots need root: run blockferry as root, or read a copy with --snapshot never"));
        }
        run(&find_tool("lvm")?, args, LVM_TIMEOUT)
    }

    fn need_device_mapper(&self) -> Result<()> {
        let Ok(drivers) = fs::read_to_string("/proc/misc") else { return Ok(()) }; // then lvm2 will say it
        if drivers.lines().any(|line| line.ends_with(" device-mapper")) {
            Ok(())
        } else {
            Err(Error::new(Kind::Snapshot, NO_DEVICE_MAPPER))
        }
    }
}

const NO_DEVICE_MAPPER: &str =
    "this kernel has no device-mapper, so LVM cannot make snapshots: load it with `modprobe -a dm-mod dm-snapshot`";

fn find_tool(name: &str) -> Result<PathBuf> {
    program::find(name).ok_or_else(|| Error::new(Kind::Usage, format!("the command `{name}` was not found: install the package lvm2")))
}

/// Runs `program` and gives its standard output; anything but exit code 0 is an error that carries
/// its standard error.
fn run(program: &Path, args: &[&str], limit: Duration) -> Result<String> {
    // Our sockets and devices are open in the child's eyes.
    let call = Call::new(program, args, limit, LVM_OUTPUT_BYTES_MAX).env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let line = call.line().to_owned();
    let tell = || log::warning(silence(&line, limit));
    let mut call = call.slow(LVM_SILENCE, &tell);
    let began = Instant::now();
    let started = call.run();
    log::debug(|| format!("`{}` took {:.2} s", call.line(), began.elapsed().as_secs_f64()));
    let ended = started.context(Kind::Snapshot, || format!("start `{}`", call.line()))?;
    match ended.how {
        How::Exited(status) if status.success() && ended.cut => {
            Err(failure(call.line(), &format!("more than {} MiB of output", LVM_OUTPUT_BYTES_MAX >> 20), &ended.errors))
        }
        How::Exited(status) if status.success() => Ok(String::from_utf8_lossy(&ended.output).into_owned()),
        How::Exited(status) => Err(failure(call.line(), &status.to_string(), &ended.errors)),
        How::TooLong { killed: true } => {
            let killed = format!(
                "no end within {} s, killed; look for suspended devices with `dmsetup info -c` and wake them with `dmsetup resume`",
                limit.as_secs()
            );
            Err(failure(call.line(), &killed, &ended.errors))
        }
        How::TooLong { .. } | How::Stopped => {
            Err(failure(call.line(), &format!("no end within {} s, stopped", limit.as_secs()), &ended.errors))
        }
    }
}

/// What is said of a command that has not ended. Which device to wake is not: a command that makes a snapshot suspends
/// some itself.
fn silence(line: &str, limit: Duration) -> String {
    let (silent, limit) = (LVM_SILENCE.as_secs(), limit.as_secs());
    format!(
        "`{line}` has not ended for {silent} s: `dmsetup info -c` shows suspended devices, and the kernel's log (dmesg) disks that do not \
         answer; it is ended after {limit} s"
    )
}

/// The error of a failed command: what was run, how it ended, and all it said.
fn failure(line: &str, ended: &str, stderr: &[u8]) -> Error {
    let said = words_of(stderr);
    if no_device_mapper(&said) {
        return Error::because(Kind::Snapshot, NO_DEVICE_MAPPER, Error::new(Kind::Snapshot, format!("`{line}`: {said}")));
    }
    let said = if said.is_empty() { "it printed no reason".to_owned() } else { said };
    Error::because(Kind::Snapshot, format!("`{line}` ({ended})"), Error::new(Kind::Snapshot, said))
}

fn no_device_mapper(said: &str) -> bool {
    said.contains("/dev/mapper/control: open failed") || said.contains("Is device-mapper driver missing from kernel?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<String> {
        run(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn output_comes_back_and_the_environment_is_plain() {
        let text = shell("echo $LC_ALL $LVM_SUPPRESS_FD_WARNINGS; echo aside >&2", LVM_TIMEOUT).unwrap();
        assert_eq!(text, "C 1\n");
    }

    #[test]
    fn a_failure_carries_the_whole_stderr() {
        let error = shell("echo '  first reason' >&2; echo second >&2; exit 5", LVM_TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), Kind::Snapshot);
        assert!(error.chain().ends_with("(exit status: 5): first reason; second"), "{}", error.chain());
    }

    #[test]
    fn a_hanging_tool_is_stopped_with_what_it_started() {
        let error = shell("sleep 600 & sleep 600; echo never", Duration::from_millis(200)).unwrap_err();
        assert!(error.chain().contains("stopped"), "{}", error.chain());
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = find_tool("lvm-that-nobody-has").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.chain().contains("install the package lvm2"));
    }

    #[test]
    fn a_kernel_without_device_mapper_is_said_in_one_sentence() {
        let said = b"  /dev/mapper/control: open failed: No such device\n  Failure to communicate with kernel device-mapper driver.\n";
        let error = failure("lvm lvcreate", "exit status: 5", said);
        assert!(error.to_string().starts_with("this kernel has no device-mapper"), "{error}");
        assert!(error.chain().contains("open failed: No such device"));
    }
}
