//! Where volumes lie while they are measured: image files, or loop devices over them for root.

#[path = "../../tests/rig/loops.rs"]
#[allow(dead_code)]
mod loops;

pub use loops::{Loop, Mounted};

use std::path::{Path, PathBuf};
use std::process::Command;

/// A volume under measurement. Its device, if it has one, goes away with it.
pub struct Volume {
    /// The image file.
    pub file: PathBuf,
    device: Option<Loop>,
}

impl Volume {
    /// An image that exists, as a device where we may make one.
    pub fn over(file: PathBuf) -> Volume {
        let device = nix::unistd::geteuid().is_root().then(|| Loop::over(&file, 512));
        Volume { file, device }
    }

    /// What is read or written.
    pub fn path(&self) -> &Path {
        self.device.as_ref().map_or(&self.file, |device| &device.0)
    }

    /// The same as a word of a command line.
    pub fn word(&self) -> String {
        self.path().display().to_string()
    }

    /// What the page cache knows of it would be an advantage to whoever reads through it.
    pub fn forget(&self) {
        if self.device.is_some() {
            let _ = Command::new("blockdev").args(["--flushbufs", &self.word()]).status();
        } else {
            forget(&self.file);
        }
    }
}

/// Takes a file out of the page cache.
pub fn forget(file: &Path) {
    let _ = Command::new("dd").args([&format!("of={}", file.display()), "oflag=nocache", "conv=notrunc,fdatasync", "count=0"]).output();
}
