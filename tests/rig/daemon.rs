//! A block device that can fail, be slow, vanish, or write down every write: a node graph of
//! `qemu-storage-daemon`, exported over FUSE and attached as a loop device.

use super::loops::Loop;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(120);
/// For its last writes, also on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Whether the daemon is installed. In CI its absence is a failure.
pub fn is_installed(test: &str) -> bool {
    let found = Command::new("qemu-storage-daemon").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("CI").is_none(), "{test} needs qemu-storage-daemon (qemu-utils), and CI has to have it");
    if !found {
        eprintln!("{test}: skipped, there is no qemu-storage-daemon (package qemu-utils)");
    }
    found
}

/// A running daemon and the device over it. Everything is detached and ended on drop.
pub struct Daemon {
    device: Option<Loop>,
    child: Child,
    export: PathBuf,
}

#[allow(dead_code)]
impl Daemon {
    /// Exports `base` through `nodes`, of which the last is called `top` and those below stand on `r0`.
    /// The device has the same identity whenever this is called with the same base.
    pub fn start(base: &Path, nodes: &[String]) -> Daemon {
        let export = base.with_extension("export");
        File::create(&export).expect("a mount point");
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("driver=file,node-name=f0,filename={}", base.display()));
        command.args(["--blockdev", "driver=raw,node-name=r0,file=f0"]);
        for node in nodes {
            command.args(if node.starts_with("throttle-group") { ["--object", node] } else { ["--blockdev", node] });
        }
        let mount = format!("type=fuse,id=e0,node-name=top,mountpoint={},writable=on", export.display());
        let said = File::create(base.with_extension("daemon")).expect("a log");
        let child = command.arg("--export").arg(mount).stdin(Stdio::null()).stderr(said).spawn().expect("qemu-storage-daemon starts");
        let mut daemon = Daemon { device: None, child, export };
        let bytes = fs::metadata(base).expect("the base image").len();
        let end = Instant::now() + START_LIMIT;
        while fs::metadata(&daemon.export).map_or(0, |found| found.len()) != bytes {
            let gone = daemon.child.try_wait().expect("the daemon");
            let said = fs::read_to_string(base.with_extension("daemon")).unwrap_or_default();
            assert!(gone.is_none() && Instant::now() < end, "qemu-storage-daemon: {gone:?} {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
        // QEMU up to at least 10.0 takes the next request into the buffer of a write that is under way: with
        // `losetup --direct-io=on`, eight threads of plain pwrite got 53 of 128 pieces of 128 KiB wrong, and
        // none one by one. What the device holds would be the bed's fault, not ours.
        daemon.device = Some(Loop::one_by_one(&daemon.export));
        daemon
    }

    /// One that writes down every write in `log`, as dm-log-writes does.
    pub fn logging(base: &Path, log: &Path) -> Daemon {
        File::create(log).expect("a log");
        let file = format!("driver=file,node-name=l0,filename={}", log.display());
        Daemon::start(base, &[file, "driver=blklogwrites,node-name=top,file=r0,log=l0,log-sector-size=512".to_owned()])
    }

    /// One without a fault.
    pub fn plain(base: &Path) -> Daemon {
        Daemon::start(base, &["driver=raw,node-name=top,file=r0".to_owned()])
    }

    /// One that fails as `inject` says: the body of a blkdebug `inject-error`.
    pub fn failing(base: &Path, inject: &str) -> Daemon {
        Daemon::start(
            base,
            &[format!(r#"{{"driver":"blkdebug","node-name":"top","image":"r0","inject-error":[{{"event":"none",{inject}}}]}}"#)],
        )
    }

    /// One that takes no more than this many bytes a second.
    pub fn slow(base: &Path, bytes_per_second: u64) -> Daemon {
        let group = format!("throttle-group,id=g0,x-bps-total={bytes_per_second}");
        Daemon::start(base, &[group, "driver=throttle,node-name=top,file=r0,throttle-group=g0".to_owned()])
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.device.as_ref().expect("the device is attached").0
    }

    /// kill -9: the device vanishes under whoever uses it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in good order: what it wrote is complete.
    pub fn stop(mut self) {
        if !self.ends() {
            self.kill();
            panic!("qemu-storage-daemon does not end: what it wrote is cut");
        }
    }

    /// Detaches the device and asks the daemon to end. Whether it did.
    fn ends(&mut self) -> bool {
        self.device = None;
        let is_over = |child: &mut Child| !child.try_wait().is_ok_and(|status| status.is_none());
        if is_over(&mut self.child) {
            return true;
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + END_LIMIT;
        while Instant::now() < end && !is_over(&mut self.child) {
            std::thread::sleep(Duration::from_millis(10));
        }
        is_over(&mut self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.ends();
        self.kill();
        // A killed daemon leaves its mount behind.
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.export).stderr(Stdio::null()).status();
    }
}
