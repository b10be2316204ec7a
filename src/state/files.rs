//! A folder of small files with the only two ways we change them: in place with an explicit sync, or
//! replaced as a whole. The trait is the seam for the crash tests' simulated storage.

use crate::error::{Context, Kind, Result};
use crate::failpoint;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A folder of files.
pub trait Files: Send {
    /// How messages call the folder.
    fn place(&self) -> String;

    /// Opens a file to read and change. `None`: there is none.
    fn open(&self, name: &str) -> Result<Option<Box<dyn StateFile>>>;

    /// Makes a file, empty; one of that name is replaced by nothing. Durable with the file's first sync.
    fn create(&self, name: &str) -> Result<Box<dyn StateFile>>;

    /// The whole content of a small file.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Replaces a file: afterwards, and after any crash, it is wholly the old or wholly the new content.
    fn replace(&self, name: &str, content: &[u8]) -> Result<()>;

    /// Removes a file if it is there. Durable when this returns.
    fn remove(&self, name: &str) -> Result<()>;

    /// Removes a file that nobody believes any more, if it is there: a crash may bring it back.
    fn discard(&self, name: &str) -> Result<()>;

    /// Makes durable which files there are.
    fn sync_names(&self) -> Result<()>;
}

/// One open file.
pub trait StateFile: Send {
    /// Fills as much of `buffer` as the file has at `offset`; returns how much.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;

    /// Writes all of it.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Makes what was written durable, and the file's name too. A failure is final: what was written
    /// since the last sync counts as lost.
    fn sync(&self) -> Result<()>;

    /// Cuts or extends with zeros.
    fn resize(&self, bytes: u64) -> Result<()>;

    /// Its length.
    fn bytes(&self) -> Result<u64>;
}

/// A folder of the host's file system.
#[derive(Clone, Debug)]
pub struct HostFiles {
    folder: PathBuf,
}

struct HostFile {
    file: File,
    path: PathBuf,
    /// The file's name is not durable yet: the next sync includes the folder.
    unnamed: AtomicBool,
}

impl HostFiles {
    /// The files of this folder.
    pub fn new(folder: &Path) -> HostFiles {
        HostFiles { folder: folder.to_owned() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn sync_folder(&self) -> Result<()> {
        sync_folder(&self.folder)
    }
}

/// Bytes of a file system.
pub(super) struct Space {
    /// What it holds in all.
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

/// How much room there is on the file system of a folder.
pub(super) fn space(folder: &Path) -> Result<Space> {
    let stat = nix::sys::statvfs::statvfs(folder).context(Kind::Storage, || format!("ask for the free space of {}", folder.display()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size() as u64);
    Ok(Space { total: bytes(stat.blocks() as u64), free: bytes(stat.blocks_available() as u64) })
}

pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|dir| dir.sync_all()).context(Kind::Storage, || format!("sync the folder {}", folder.display()))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Files for HostFiles {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn StateFile>>> {
        let path = self.folder.join(name);
        match options().open(&path) {
            Ok(file) => Ok(Some(Box::new(HostFile { file, path, unnamed: AtomicBool::new(false) }))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(Kind::Storage, || format!("open {}", path.display())),
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn StateFile>> {
        let path = self.folder.join(name);
        let file = options().create(true).truncate(true).open(&path).context(Kind::Storage, || format!("make {}", path.display()))?;
        Ok(Box::new(HostFile { file, path, unnamed: AtomicBool::new(true) }))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.folder.join(name);
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(Kind::Storage, || format!("read {}", path.display())),
        }
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let write = || -> std::io::Result<()> {
            let mut file = options().create(true).truncate(true).open(&beside)?;
            file.write_all(content)?;
            // From here on a crash leaves the old file, or the old file and a whole new one beside it.
            file.sync_all()?;
            failpoint::reach("record.written-beside");
            std::fs::rename(&beside, &path)?;
            failpoint::reach("record.renamed");
            Ok(())
        };
        write().context(Kind::Storage, || format!("replace {}", path.display()))?;
        // From here on a crash leaves the new file.
        self.sync_folder()
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => self.sync_folder(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context(Kind::Storage, || format!("remove {}", path.display())),
        }
    }

    fn discard(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(Kind::Storage, || format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn sync_names(&self) -> Result<()> {
        self.sync_folder()
    }
}

impl StateFile for HostFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(Kind::Storage, || format!("read {} at {offset:#x}", self.path.display())),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).context(Kind::Storage, || format!("write {} at {offset:#x}", self.path.display()))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().context(Kind::Storage, || format!("sync {}", self.path.display()))?;
        match self.path.parent() {
            Some(folder) if self.unnamed.swap(false, Ordering::Relaxed) => sync_folder(folder),
            _ => Ok(()),
        }
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).context(Kind::Storage, || format!("resize {}", self.path.display()))
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().context(Kind::Storage, || format!("ask for the size of {}", self.path.display()))?.len())
    }
}
