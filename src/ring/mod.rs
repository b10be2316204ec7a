//! Asks the kernel to move bytes: the only room with `unsafe` in it.
//!
//! An engine owns a request's buffer while the kernel may touch it and gives it back with the
//! completion, so that no other code can read or free it meanwhile. Two engines keep the same
//! promises: `uring` (io_uring) and `blocking` (a few threads with pread and pwrite) for hosts that
//! forbid io_uring. Short transfers, EAGAIN, EINTR and full queues end in here.

mod blocking;
mod buffer;
mod uring;

pub use buffer::{AlignedBuf, Pool};

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// One piece of a transfer: `bytes` bytes between `at` in the buffer and `offset` on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the piece lies in the buffer.
    pub at: usize,
    /// Where it lies on the file or device.
    pub offset: u64,
    /// How long it is.
    pub bytes: usize,
}

/// What the kernel is asked to do.
#[derive(Debug)]
pub enum Action {
    /// Fill pieces of the buffer. Reading past the end is an error (`UnexpectedEof`).
    Read(AlignedBuf, Vec<Run>),
    /// Write pieces of the buffer.
    Write(AlignedBuf, Vec<Run>),
    /// Make a byte range read as zeros, keeping the file's size; blocks are freed where that is safe.
    Zero {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Make all completed writes durable (fdatasync: device cache included).
    Flush,
    /// Take what a stream has into `buffer[at..]`: at least one byte, 0 bytes = the peer closed.
    Receive(AlignedBuf, usize),
    /// Put `buffer[..bytes]` on a stream, all of it.
    Transmit(AlignedBuf, usize),
}

/// An action under the caller's own name for it.
#[derive(Debug)]
pub struct Request {
    /// Given back with the completion.
    pub token: u64,
    /// What to do.
    pub action: Action,
}

/// The end of a request: its buffer comes back whatever happened.
#[derive(Debug)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// Bytes moved in all pieces together (0 for `Zero` and `Flush`).
    pub result: io::Result<usize>,
    /// The request's buffer.
    pub buffer: Option<AlignedBuf>,
}

/// Moves bytes between buffers and files, many requests at a time, completions in any order.
///
/// Dropping an engine cancels what waits on a stream, waits for all else, and only then lets go of buffers.
pub trait Engine: Send {
    /// Queues a request. Never blocks for the transfer itself; errors of the transfer come with the completion.
    fn submit(&mut self, file: &Arc<File>, request: Request) -> io::Result<()>;

    /// The next completion; waits up to `timeout` (`None` = as long as it takes). `Ok(None)`: the time
    /// is over, or nothing is in flight.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Completion>>;

    /// Requests submitted whose completion was not yet taken.
    fn in_flight(&self) -> usize;

    /// Tells the kernel about buffers that will be used again and again. A speed-up, never needed:
    /// where it fails (RLIMIT_MEMLOCK) nothing is said.
    fn register(&mut self, pool: &Pool);
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring where the kernel allows it.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads with pread and pwrite.
    Blocking,
}

/// Opens an engine. `Auto` falls back to `blocking` and says so once per process on stderr, naming the cause.
pub fn open(choice: Choice) -> io::Result<Box<dyn Engine>> {
    match choice {
        Choice::Blocking => Ok(Box::new(blocking::Blocking::new())),
        Choice::Uring => Ok(Box::new(uring::Uring::new()?)),
        Choice::Auto => match uring::Uring::new() {
            Ok(ring) => Ok(Box::new(ring)),
            Err(cause) => {
                say_fallback_once(&cause);
                Ok(Box::new(blocking::Blocking::new()))
            }
        },
    }
}
