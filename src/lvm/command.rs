//! Runs one lvm2 command and gives back what it printed.
//!
//! Each command has a time limit and a process group of its own: a tool that hangs (a dead disk
//! below a volume group makes every scan wait) is stopped together with what it started, because a
//! grandchild that keeps the pipe open would make us wait as well. The group is asked first and
//! killed later: lvm2 holds signals back while devices are suspended, so that asking cannot leave a
//! volume suspended, while killing can.
//!
//! Output is asked for as JSON with fixed units; nothing is read from columns made for people.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{HELPER_STOP_GRACE, LVM_TIMEOUT};
use duct::Handle;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Where administrators' tools live when the PATH of a cron job or a service does not say so.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

fn find_tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::new(Kind::Usage, format!("the command `{name}` was not found: install the package lvm2")))
}

/// Runs `program` and gives its standard output; anything but exit code 0 is an error that carries
/// its standard error.
fn run(program: &Path, args: &[&str], limit: Duration) -> Result<String> {
    let line = shell_words::join(std::iter::once(&*program.to_string_lossy()).chain(args.iter().copied()));
    let handle = duct::cmd(program, args)
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1") // our sockets and devices are open in the child's eyes
        .stdin_null()
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .before_spawn(|command| {
            command.process_group(0);
            Ok(())
        })
        .start()
        .context(Kind::Snapshot, || format!("start `{line}`"))?;
    let Some(output) = handle.wait_timeout(limit).context(Kind::Snapshot, || format!("wait for `{line}`"))? else {
        return Err(stop(&handle, &line, limit));
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(&line, &output.status.to_string(), &output.stderr))
}

/// Ends a command that took too long: asks its group, waits, kills its group.
fn stop(handle: &Handle, line: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs();
    signal_group(handle, Signal::SIGTERM);
    if let Ok(Some(output)) = handle.wait_timeout(HELPER_STOP_GRACE) {
        return failure(line, &format!("no end within {seconds} s, stopped"), &output.stderr);
    }
    signal_group(handle, Signal::SIGKILL);
    // A process in uninterruptible sleep outlives even this; it must not take us with it.
    let stderr = match handle.wait_timeout(HELPER_STOP_GRACE) {
        Ok(Some(output)) => output.stderr.clone(),
        _ => Vec::new(),
    };
    let killed =
        format!("no end within {seconds} s, killed; look for suspended devices with `dmsetup info -c` and wake them with `dmsetup resume`");
    failure(line, &killed, &stderr)
}

fn signal_group(handle: &Handle, signal: Signal) {
    for pid in handle.pids() {
        if let Ok(pid) = i32::try_from(pid) {
            // It may have ended in this very moment; that is what is wanted.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
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

/// Standard error as one line: the lines trimmed, joined by semicolons.
fn words_of(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn no_device_mapper(said: &str) -> bool {
    said.contains("/dev/mapper/control: open failed") || said.contains("Is device-mapper driver missing from kernel?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

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
        let start = Instant::now();
        let error = shell("sleep 600 & sleep 600; echo never", Duration::from_millis(200)).unwrap_err();
        assert!(start.elapsed() < HELPER_STOP_GRACE, "the grandchild kept the pipe open");
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
