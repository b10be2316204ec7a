//! Questions about a device or file that only an ioctl or statx answers, as safe functions.

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_read!(size_in_bytes, 0x12, 114, u64);
    nix::ioctl_read_bad!(logical_block, nix::request_code_none!(0x12, 104), nix::libc::c_int);
    nix::ioctl_read_bad!(physical_block, nix::request_code_none!(0x12, 123), nix::libc::c_uint);
    nix::ioctl_none_bad!(flush_buffers, nix::request_code_none!(0x12, 97));
    nix::ioctl_read_bad!(read_only, nix::request_code_none!(0x12, 94), nix::libc::c_int);
    nix::ioctl_write_ptr_bad!(set_read_only, nix::request_code_none!(0x12, 93), nix::libc::c_int);
}

/// Bytes of a block device (BLKGETSIZE64).
pub(crate) fn device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel writes one u64 into a local.
    unsafe { raw::size_in_bytes(file.as_raw_fd(), &mut bytes)? };
    Ok(bytes)
}

/// Logical block size of a block device (BLKSSZGET): the unit of direct I/O.
pub(crate) fn logical_block(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel writes one int into a local.
    unsafe { raw::logical_block(file.as_raw_fd(), &mut bytes)? };
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Physical block size of a block device (BLKPBSZGET): what it writes without reading first.
pub(crate) fn physical_block(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel writes one unsigned int into a local.
    unsafe { raw::physical_block(file.as_raw_fd(), &mut bytes)? };
    Ok(bytes)
}

/// Whether a block device refuses writes (BLKROGET).
pub(crate) fn is_read_only(file: &File) -> io::Result<bool> {
    let mut flag = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel writes one int into a local.
    unsafe { raw::read_only(file.as_raw_fd(), &mut flag)? };
    Ok(flag != 0)
}

/// Makes a block device refuse writes, or take them again (BLKROSET).
pub(crate) fn set_read_only(file: &File, read_only: bool) -> io::Result<()> {
    let flag = nix::libc::c_int::from(read_only);
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel reads one int from a local.
    unsafe { raw::set_read_only(file.as_raw_fd(), &flag)? };
    Ok(())
}

/// Writes out what the page cache holds for a block device, that of the file system mounted on it included (BLKFLSBUF).
pub(crate) fn flush_buffers(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call takes no argument.
    unsafe { raw::flush_buffers(file.as_raw_fd())? };
    Ok(())
}

/// What O_DIRECT asks of addresses and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlignment {
    pub(crate) memory: u32,
    pub(crate) offset: u32,
}

/// The alignment of direct I/O (statx with STATX_DIOALIGN, Linux 6.1). `Ok(None)`: the kernel or file
/// system does not say. An offset alignment of 0 says that direct I/O is not supported.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    // SAFETY: statx is plain numbers, for which all zeros is a valid value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, the path is an empty C string, and the
    // kernel writes one statx into a local.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut answer) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let told = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then_some(DirectAlignment { memory: answer.stx_dio_mem_align, offset: answer.stx_dio_offset_align }))
}
