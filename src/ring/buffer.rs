//! Page-aligned buffers for O_DIRECT, on huge pages where the kernel has them
//! (twice the speed on virtual disks: fewer segments per request).

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of an arena on huge pages: one of them.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From this size on an arena lies on huge pages. The first byte used of one costs all of it, so that a few buffers,
/// of which a small session uses one, are better off without.
const HUGE_ARENA_BYTES: usize = 4 << 20;
/// Alignment of each buffer: the largest logical block size in use.
const PAGE_BYTES: usize = 4096;

/// Anonymous memory that several buffers share; unmapped when the last of them is gone.
#[derive(Debug)]
pub(super) struct Arena {
    map: NonNull<c_void>,
    map_bytes: usize,
    start: NonNull<u8>,
}

// SAFETY: the arena is plain memory; each part of it is reached only through the one `AlignedBuf`
// that owns it, so moving or sharing the handle between threads cannot make two writers meet.
unsafe impl Send for Arena {}
// SAFETY: as above; the arena itself hands out no references.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(bytes: usize) -> io::Result<Arc<Arena>> {
        let huge = bytes >= HUGE_ARENA_BYTES;
        let map_bytes = if huge { bytes + HUGE_PAGE_BYTES } else { bytes };
        let length = NonZeroUsize::new(map_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice aliases nothing.
        let map = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)? };
        let skip = if huge { map.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        // SAFETY: `skip` is below HUGE_PAGE_BYTES and the mapping is that much longer than the arena.
        let start = unsafe { map.cast::<u8>().add(skip) };
        if huge {
            // SAFETY: the range lies inside the mapping just made. Advice only: a refusal changes nothing but speed.
            let _ = unsafe { madvise(start.cast(), bytes, MmapAdvise::MADV_HUGEPAGE) };
        }
        Ok(Arc::new(Arena { map, map_bytes, start }))
    }

    /// Where its memory begins, for the kernel.
    pub(super) fn address(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; every buffer in it held an `Arc` of this arena, so none is left.
        let _ = unsafe { munmap(self.map, self.map_bytes) };
    }
}

/// A page-aligned buffer with one owner: whoever holds it, or the kernel through the ring.
#[derive(Debug)]
pub struct AlignedBuf {
    arena: Arc<Arena>,
    at: usize,
    bytes: usize,
}

impl AlignedBuf {
    /// A buffer of its own, zeroed; `bytes` is rounded up to a page.
    pub fn new(bytes: usize) -> io::Result<AlignedBuf> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        Ok(AlignedBuf { arena: Arena::new(bytes)?, at: 0, bytes })
    }

    /// The arena it lies in and its place there.
    pub(super) fn place(&self) -> (&Arc<Arena>, usize) {
        (&self.arena, self.at)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `at..at + bytes` lies in the arena (checked where buffers are made), the memory is
        // initialised (anonymous mappings are zeroed) and only this buffer reaches it.
        unsafe { std::slice::from_raw_parts(self.arena.start.as_ptr().add(self.at), self.bytes) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.arena.start.as_ptr().add(self.at), self.bytes) }
    }
}

/// A fixed set of equal buffers in one arena: the bound on memory and, when it runs empty, the back-pressure.
#[derive(Debug)]
pub struct Pool {
    arena: Arc<Arena>,
    free: Vec<AlignedBuf>,
    buffer_bytes: usize,
}

impl Pool {
    /// `count` buffers of `buffer_bytes` (rounded up to a page) each.
    pub fn new(count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        let buffer_bytes = buffer_bytes.max(1).next_multiple_of(PAGE_BYTES);
        let arena = Arena::new(count * buffer_bytes)?;
        let free = (0..count).rev().map(|i| AlignedBuf { arena: arena.clone(), at: i * buffer_bytes, bytes: buffer_bytes }).collect();
        Ok(Pool { arena, free, buffer_bytes })
    }

    /// A free buffer, if there is one. Its content is whatever was last in it.
    pub fn take(&mut self) -> Option<AlignedBuf> {
        self.free.pop()
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: AlignedBuf) {
        debug_assert!(Arc::ptr_eq(&self.arena, &buffer.arena), "a buffer goes back to the pool it came from");
        self.free.push(buffer);
    }

    /// Whether every buffer is in use.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Bytes of each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_a_pool_are_aligned_and_apart() {
        let mut pool = Pool::new(5, 70_000).unwrap();
        let mut all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 5);
        for (i, buffer) in all.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr() as usize % PAGE_BYTES, 0);
            buffer.fill(i as u8);
        }
        assert!(all.iter().enumerate().all(|(i, buffer)| buffer.iter().all(|byte| *byte == i as u8)));
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let mut pool = Pool::new(4, 1 << 20).unwrap();
        let mut buffer = pool.take().unwrap();
        drop(pool);
        buffer.fill(7);
        assert_eq!(buffer[1 << 19], 7);
    }
}
