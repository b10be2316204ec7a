//! A real block device or image file, past the page cache where the kernel allows it.
//!
//! Two descriptors lead to the same inode: a direct one for all that is aligned, and a buffered one
//! for the rest (the tail of a file, odd runs) and for file systems without O_DIRECT. The kernel
//! keeps them coherent: a direct transfer first writes back or drops the cached pages it touches.
//! What it does not promise is order between a buffered and a direct write *in flight at once inside
//! one page*; the line above never makes such a pair, because its runs are whole 4 KiB blocks and
//! only the last block of a volume may be short.

use super::{Action, Completion, Disk, Request, Run, guard};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::DISK_SILENCE;
use crate::log;
use crate::ring::ioctl::{self, DirectAlignment};
use crate::ring::{self, AlignedBuf, Choice, Engine};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Alignment that suits every file system which does not say what it wants.
const CAREFUL_ALIGNMENT: u32 = 4096;

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only; others may use the device meanwhile.
    Read,
    /// Reading and writing. Block devices are claimed: the kernel refuses where they are mounted or held.
    Write,
}

/// A block device or image file with its engine.
pub struct RawDisk {
    name: String,
    engine: Box<dyn Engine>,
    buffered: Arc<File>,
    direct: Option<(Arc<File>, DirectAlignment)>,
    bytes: u64,
    is_device: bool,
    logical_block: u32,
    physical_block: u32,
    zeroes_cheaply: bool,
    /// Requests that reach beyond the end are answered here.
    refused: VecDeque<Completion>,
}

impl RawDisk {
    /// Opens a block device or a regular file.
    pub fn open(path: &Path, access: Access, choice: Choice) -> Result<RawDisk> {
        let kind = fs::metadata(path).context(Kind::Usage, || format!("open {}", path.display()))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::new(Kind::Usage, format!("{} is neither a block device nor a regular file", path.display())));
        }
        let write = access == Access::Write;
        let claim = if write && kind.is_block_device() { libc::O_EXCL } else { 0 };
        let opened = OpenOptions::new().read(true).write(write).custom_flags(claim).open(path);
        let file = opened.map_err(|cause| open_error(path, access, cause))?;
        if write && kind.is_block_device() && ioctl::is_read_only(&file).unwrap_or(false) {
            let name = path.display();
            let hint = "or leave it to the receiver whose replica it is (readonly = true in its receiver.toml)";
            return Err(Error::new(
                Kind::Refused,
                format!("{name} is set read-only: `blockdev --setrw {name}` (a logical volume: `lvchange -prw`), {hint}"),
            ));
        }
        RawDisk::over(path, file, access, kind.is_block_device(), choice)
    }

    /// Makes a new empty file that nobody but its owner may read. It is durable once it and its folder were synced.
    pub fn create_unnamed(path: &Path, choice: Choice) -> Result<RawDisk> {
        RawDisk::over(path, create_new(path)?, Access::Write, false, choice)
    }

    /// Makes a new image file of this size, all of it a hole. Nobody but its owner may read it.
    pub fn create(path: &Path, bytes: u64, choice: Choice) -> Result<RawDisk> {
        let file = create_new(path)?;
        let sized = file.set_len(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder_of(path));
        if sized.is_err() {
            let _ = fs::remove_file(path);
        }
        sized.context(Kind::Storage, || format!("create image file {}", path.display()))?;
        RawDisk::over(path, file, Access::Write, false, choice)
    }

    fn over(path: &Path, file: File, access: Access, is_device: bool, choice: Choice) -> Result<RawDisk> {
        let what = || format!("examine {}", path.display());
        let bytes =
            if is_device { ioctl::device_bytes(&file) } else { file.metadata().map(|found| found.len()) }.context(Kind::Failed, what)?;
        let told = ioctl::direct_alignment(&file).ok().flatten();
        let logical_block = match (is_device, told) {
            (true, _) => ioctl::logical_block(&file).context(Kind::Failed, what)?,
            (false, Some(told)) if told.offset > 0 => told.offset,
            (false, _) => CAREFUL_ALIGNMENT,
        };
        let physical_block = if is_device { ioctl::physical_block(&file).unwrap_or(logical_block) } else { logical_block };
        let memory = told.filter(|told| told.memory > 0).map_or(logical_block, |told| told.memory);
        let alignment = DirectAlignment { memory, offset: logical_block };
        let refuses_direct = told.is_some_and(|told| told.offset == 0);
        let direct = if refuses_direct { None } else { open_direct(&file, access, alignment, bytes) };
        let engine = ring::open(choice).context(Kind::Failed, || format!("open an i/o engine for {}", path.display()))?;
        Ok(RawDisk {
            name: path.display().to_string(),
            engine,
            buffered: Arc::new(file),
            direct: direct.map(|file| (Arc::new(file), alignment)),
            bytes,
            is_device,
            logical_block,
            physical_block,
            zeroes_cheaply: !is_device || super::stack::zeroes_cheaply(path),
            refused: VecDeque::new(),
        })
    }

    /// Bytes of a logical block: the smallest aligned transfer.
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Bytes of a physical block: what the device writes without reading first.
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// Whether aligned transfers go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// What is said of a disk that does not answer.
    fn silence(&self) -> String {
        let why = match super::stack::suspended(Path::new(&self.name)) {
            Some(name) => format!("{name} is suspended, and `dmsetup resume {name}` wakes it"),
            None => "the kernel's log (dmesg) may say why".to_owned(),
        };
        let (name, waiting, seconds) = (&self.name, self.engine.in_flight(), DISK_SILENCE.as_secs());
        format!("{name} has not answered for {seconds} s (requests on their way: {waiting}): {why}; this run waits for it")
    }

    /// The descriptor that can take this request as a whole.
    fn file_for(&self, action: &Action) -> &Arc<File> {
        match &self.direct {
            Some((file, alignment)) if is_aligned(action, *alignment) => file,
            _ => &self.buffered,
        }
    }
}

fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(|cause| {
        let kind = if cause.kind() == io::ErrorKind::AlreadyExists { Kind::Refused } else { Kind::Storage };
        Error::because(kind, format!("create file {}", path.display()), cause)
    })
}

/// The reason in words, and what to do, for a failed open.
fn open_error(path: &Path, access: Access, cause: io::Error) -> Error {
    let name = path.display();
    let purpose = if access == Access::Write { "writing" } else { "reading" };
    match cause.raw_os_error() {
        Some(libc::EBUSY) => {
            let holder = guard::holder(path).ok().flatten();
            let reason = holder.unwrap_or_else(|| format!("{name} is claimed by another program (fuser -v {name} names it)"));
            Error::because(Kind::Refused, format!("open {name} for {purpose}: {reason}"), cause)
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            let write = format!("is it read-only (`blockdev --getro {name}`; `blockdev --setrw {name}` ends that), or is root needed?");
            let hint = if access == Access::Write { write } else { "is root needed?".to_owned() };
            Error::because(Kind::Refused, format!("open {name} for {purpose} ({hint})"), cause)
        }
        _ => Error::because(Kind::Failed, format!("open {name} for {purpose}"), cause),
    }
}

/// From here on a crash leaves the new file under its name.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// A second, direct descriptor of the same inode; `None` where the file system refuses it at open or,
/// as some do, only at the first transfer. A claim made by the first descriptor stays with it.
fn open_direct(file: &File, access: Access, alignment: DirectAlignment, bytes: u64) -> Option<File> {
    let same_inode = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new().read(true).write(access == Access::Write).custom_flags(libc::O_DIRECT).open(same_inode).ok()?;
    let unit = alignment.offset as usize;
    if bytes < unit as u64 {
        return Some(direct);
    }
    let mut probe = AlignedBuf::new(unit).ok()?;
    match direct.read_at(&mut probe[..unit], 0) {
        Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => None,
        _ => Some(direct),
    }
}

fn is_aligned(action: &Action, to: DirectAlignment) -> bool {
    let unit = u64::from(to.offset);
    // Buffers begin on a page, so the place inside the buffer decides about the address.
    let run_fits = |run: &Run| {
        run.offset.is_multiple_of(unit) && (run.bytes as u64).is_multiple_of(unit) && (run.at as u64).is_multiple_of(u64::from(to.memory))
    };
    match action {
        Action::Read(_, runs) | Action::Write(_, runs) => runs.iter().all(run_fits),
        Action::Zero { offset, bytes } => offset.is_multiple_of(unit) && bytes.is_multiple_of(unit),
        // One fdatasync covers both descriptors: it syncs the inode's pages and then the device's cache.
        Action::Flush | Action::Receive(..) | Action::Transmit(..) => false,
    }
}

/// The errno of a request that reaches beyond `end`, the same that memory gives. Checked here because
/// a file would quietly grow and a device would quietly cut.
fn beyond_end(action: &Action, end: u64) -> Option<io::Error> {
    let beyond = |offset: u64, bytes: u64| offset.checked_add(bytes).is_none_or(|stop| stop > end);
    let any_beyond = |runs: &[Run]| runs.iter().any(|run| beyond(run.offset, run.bytes as u64));
    match action {
        Action::Read(_, runs) if any_beyond(runs) => Some(io::ErrorKind::UnexpectedEof.into()),
        Action::Write(_, runs) if any_beyond(runs) => Some(io::Error::from_raw_os_error(libc::ENOSPC)),
        Action::Zero { offset, bytes } if beyond(*offset, *bytes) => Some(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => None,
    }
}

impl Disk for RawDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn submit(&mut self, request: Request) -> Result<()> {
        if let Some(cause) = beyond_end(&request.action, self.bytes) {
            let buffer = match request.action {
                Action::Read(buffer, _) | Action::Write(buffer, _) => Some(buffer),
                _ => None,
            };
            self.refused.push_back(Completion { token: request.token, result: Err(cause), buffer });
            return Ok(());
        }
        let file = self.file_for(&request.action).clone();
        self.engine.submit(&file, request).context(Kind::Storage, || format!("queue i/o on {}", self.name))
    }

    fn wait(&mut self) -> Result<Option<Completion>> {
        if let Some(done) = self.refused.pop_front() {
            return Ok(Some(done));
        }
        let mut told: Option<Instant> = None;
        loop {
            let done = self.engine.wait(Some(DISK_SILENCE)).context(Kind::Storage, || format!("wait for i/o on {}", self.name))?;
            if done.is_some() || self.engine.in_flight() == 0 {
                if let Some(told) = told {
                    log::info(format!("{} answers again after {} s", self.name, (DISK_SILENCE + told.elapsed()).as_secs()));
                }
                return Ok(done);
            }
            // The kernel owns the buffers until it answers: giving up is not ours, saying what is waited for is.
            if told.is_none() {
                log::warning(self.silence());
                told = Some(Instant::now());
            }
        }
    }

    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        if from >= self.bytes {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some(from..self.bytes));
        }
        let start = match lseek(&*self.buffered, from as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => return Ok(None),
            // A file system that cannot tell holes: everything may be data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some(from..self.bytes)),
            Err(cause) => return Err(Error::because(Kind::Storage, format!("look for data at {from:#x} of {}", self.name), cause)),
        };
        if start >= self.bytes {
            return Ok(None);
        }
        let end = lseek(&*self.buffered, start as i64, Whence::SeekHole).map_or(self.bytes, |end| end as u64);
        Ok(Some(start..end.min(self.bytes)))
    }

    fn resize(&mut self, bytes: u64) -> Result<()> {
        if self.is_device {
            let hint = "grow the device itself, for example with lvextend";
            return Err(Error::new(Kind::Refused, format!("{} has {} bytes, {bytes} are needed: {hint}", self.name, self.bytes)));
        }
        self.buffered.set_len(bytes).context(Kind::Storage, || format!("resize {} to {bytes} bytes", self.name))?;
        self.bytes = bytes;
        Ok(())
    }

    fn zeroes_cheaply(&self) -> bool {
        self.zeroes_cheaply
    }
}
