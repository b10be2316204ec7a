//! Loop devices and mounts that go away with the test, also when it panics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Whether tests may make loop devices. In CI a missing root is a failure, not a reason to skip.
pub fn is_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs root, and CI has to have it");
    eprintln!("{test}: skipped, loop devices need root");
    false
}

/// Runs a command that has to succeed; its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|cause| panic!("{program}: {cause}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain text")
}

/// A loop device over a file.
pub struct Loop(pub PathBuf);

impl Loop {
    /// Attaches a file.
    #[allow(dead_code)]
    pub fn over(file: &Path, sector_bytes: u32) -> Loop {
        Loop::attach(file, sector_bytes, "--direct-io=on")
    }

    /// Attaches a file that must see one request after the other: the kernel's worker waits for each.
    #[allow(dead_code)]
    pub fn one_by_one(file: &Path) -> Loop {
        Loop::attach(file, 512, "--direct-io=off")
    }

    /// Hosts have few loop devices and several tests want one: waits for a free one.
    fn attach(file: &Path, sector_bytes: u32, direct: &str) -> Loop {
        let sector = sector_bytes.to_string();
        let arguments = ["-f", "-P", "--show", direct, "-b", &sector, text(file)];
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let output = Command::new("losetup").args(arguments).output().expect("losetup");
            if output.status.success() {
                return Loop(String::from_utf8_lossy(&output.stdout).trim().into());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(Instant::now() < end, "losetup {}: {said}", file.display());
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The flag outlives the file that was attached: whoever gets this device next would find it read-only.
        let _ = Command::new("blockdev").arg("--setrw").arg(&self.0).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mounted device.
#[allow(dead_code)]
pub struct Mounted<'a>(pub &'a Path);

#[allow(dead_code)]
impl Mounted<'_> {
    pub fn new<'a>(device: &Path, at: &'a Path) -> Mounted<'a> {
        run("mount", &[text(device), text(at)]);
        Mounted(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Somebody who is just going away may still have a foot in the door.
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if Command::new("umount").arg(self.0).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        // A test that goes on would read what is not on the device yet.
        assert!(std::thread::panicking(), "{} is still mounted", self.0.display());
        eprintln!("{} is still mounted", self.0.display());
    }
}
