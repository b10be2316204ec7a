//! Asks the kernel to move bytes: the only room with `unsafe` in it.
//!
//! An engine owns a request's buffer while the kernel may touch it and gives it back with the
//! completion, so that no other code can read or free it meanwhile. Two engines keep the same
//! promises: `uring` (io_uring) and `blocking` (a few threads with pread and pwrite) for hosts that
//! forbid io_uring. Short transfers, EAGAIN, EINTR and full queues end in here.

mod blocking;
mod buffer;
pub(crate) mod ioctl;
mod uring;
mod zeroing;

pub use buffer::{AlignedBuf, Pool};

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Once};
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
    /// Take what a stream has into this part of the buffer: at least one byte, 0 bytes = the peer closed.
    Receive(AlignedBuf, Range<usize>),
    /// Put this part of the buffer on a stream, all of it.
    Transmit(AlignedBuf, Range<usize>),
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

/// Tells the operator, once per process, that io_uring is missing, why that is likely so, and how to silence this.
fn say_fallback_once(cause: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        crate::log::warning(fallback_message(cause, setting.as_deref()));
    });
}

/// `setting` is the content of `/proc/sys/kernel/io_uring_disabled`, where the kernel has it.
fn fallback_message(cause: &io::Error, setting: Option<&str>) -> String {
    let reason = match setting.map(str::trim) {
        Some(value @ ("1" | "2")) => format!("the sysctl kernel.io_uring_disabled is {value}"),
        _ => "a seccomp filter forbids it or the kernel is older than 5.11".to_owned(),
    };
    format!("io_uring is not available ({cause}; likely {reason}): using threads instead, which is slower; --io blocking silences this")
}

/// Whether a request stays inside its buffer. The engines hand raw addresses to the kernel after this.
fn check(action: &Action) -> io::Result<()> {
    let inside = |buffer: &AlignedBuf, at: usize, bytes: usize| at.checked_add(bytes).is_some_and(|end| end <= buffer.len());
    let valid = match action {
        Action::Read(buffer, runs) | Action::Write(buffer, runs) => runs.iter().all(|run| inside(buffer, run.at, run.bytes)),
        // A receive without room could not tell "nothing fits" from "the peer closed".
        Action::Receive(buffer, part) => part.start < part.end && part.end <= buffer.len(),
        Action::Transmit(buffer, part) => part.start <= part.end && part.end <= buffer.len(),
        Action::Zero { .. } | Action::Flush => true,
    };
    if valid { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "a request reaches beyond its buffer")) }
}

/// The buffer of a request that never started.
fn buffer_of(action: Action) -> Option<AlignedBuf> {
    match action {
        Action::Read(buffer, _) | Action::Write(buffer, _) | Action::Receive(buffer, _) | Action::Transmit(buffer, _) => Some(buffer),
        Action::Zero { .. } | Action::Flush => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fallback_names_the_sysctl_only_when_it_is_set() {
        let cause = io::Error::from_raw_os_error(1);
        assert!(fallback_message(&cause, Some("2\n")).contains("kernel.io_uring_disabled is 2"));
        assert!(fallback_message(&cause, Some("0\n")).contains("seccomp"));
        assert!(fallback_message(&cause, None).contains("--io blocking silences this"));
    }

    #[test]
    fn a_request_beyond_its_buffer_never_reaches_the_kernel() {
        for choice in [Choice::Uring, Choice::Blocking] {
            let mut engine = open(choice).unwrap();
            let file = Arc::new(tempfile::tempfile().unwrap());
            let runs = vec![Run { at: 4000, offset: 0, bytes: 97 }];
            engine.submit(&file, Request { token: 5, action: Action::Write(AlignedBuf::new(4096).unwrap(), runs) }).unwrap();
            let done = engine.wait(None).unwrap().unwrap();
            assert_eq!((done.token, done.result.unwrap_err().kind()), (5, io::ErrorKind::InvalidInput));
            assert!(done.buffer.is_some());
        }
    }

    #[test]
    fn reading_past_the_end_fails_after_the_other_runs_were_done() {
        for choice in [Choice::Uring, Choice::Blocking] {
            let mut engine = open(choice).unwrap();
            let file = Arc::new(tempfile::tempfile().unwrap());
            std::os::unix::fs::FileExt::write_all_at(&*file, &[7; 10_000], 0).unwrap();
            // The first run is cut short by the end, then finds nothing; the second is whole.
            let runs = vec![Run { at: 0, offset: 8192, bytes: 4096 }, Run { at: 4096, offset: 0, bytes: 4096 }];
            engine.submit(&file, Request { token: 1, action: Action::Read(AlignedBuf::new(8192).unwrap(), runs) }).unwrap();
            let done = engine.wait(None).unwrap().unwrap();
            assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let buffer = done.buffer.unwrap();
            assert!(buffer[..1808].iter().chain(&buffer[4096..]).all(|byte| *byte == 7));
            assert_eq!(engine.in_flight(), 0);
        }
    }
}
