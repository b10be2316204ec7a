//! The engine for hosts without io_uring: a few threads with pread and pwrite, and one thread for
//! each direction of a stream, so that a peer who is silent never holds up a disk.

use super::zeroing::{STEP_BYTES, Ways, ZERO_BUFFER_BYTES};
use super::{Action, AlignedBuf, Completion, Engine, Request, Run, buffer_of, check};
use crate::limits::{BLOCKING_THREADS, STOP_POLL};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What poll promises a pipe to take without blocking.
const PIPE_STEP_BYTES: usize = libc::PIPE_BUF;

type Job = (Arc<File>, Request);

/// The three kinds of work that must not wait for each other.
const DISK: usize = 0;
const RECEIVE: usize = 1;
const TRANSMIT: usize = 2;

/// Jobs of one kind, and whether more may come.
#[derive(Default)]
struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    changed: Condvar,
}

impl Queue {
    /// A thread that panicked held the lock only to move a job: the list is whole.
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Job>, bool)> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, job: Job) {
        self.lock().0.push_back(job);
        self.changed.notify_one();
    }

    /// The next job; `None`: the queue is closed and empty.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.0.pop_front() {
                return Some(job);
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().1 = true;
        self.changed.notify_all();
    }
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    queues: [Queue; 3],
    /// Ends waits on streams.
    stop: AtomicBool,
    ways: Mutex<Ways>,
}

/// Threads that block, started when they are first needed.
pub(super) struct Blocking {
    shared: Arc<Shared>,
    threads: [Vec<JoinHandle<()>>; 3],
    finished: Sender<Completion>,
    completions: Receiver<Completion>,
    in_flight: usize,
}

impl Blocking {
    pub(super) fn new() -> Blocking {
        let (finished, completions) = channel();
        Blocking { shared: Arc::default(), threads: Default::default(), finished, completions, in_flight: 0 }
    }

    /// One more thread where that may help: disks profit from several, a stream has an order.
    fn start_thread(&mut self, kind: usize) -> io::Result<()> {
        let wanted = if kind == DISK { BLOCKING_THREADS.min(self.in_flight + 1) } else { 1 };
        if self.threads[kind].len() >= wanted {
            return Ok(());
        }
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        let started = thread::Builder::new().name("blockferry-io".into()).spawn(move || work(&shared, kind, &finished));
        match started {
            Ok(thread) => self.threads[kind].push(thread),
            // Fewer threads are slower, none at all is an error.
            Err(cause) if self.threads[kind].is_empty() => return Err(cause),
            Err(_) => {}
        }
        Ok(())
    }
}

impl Engine for Blocking {
    fn submit(&mut self, file: &Arc<File>, request: Request) -> io::Result<()> {
        if let Err(cause) = check(&request.action) {
            let failed = Completion { token: request.token, result: Err(cause), buffer: buffer_of(request.action) };
            let _ = self.finished.send(failed);
            self.in_flight += 1;
            return Ok(());
        }
        let kind = match request.action {
            Action::Receive(..) => RECEIVE,
            Action::Transmit(..) => TRANSMIT,
            _ => DISK,
        };
        self.start_thread(kind)?;
        self.shared.queues[kind].put((file.clone(), request));
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Completion>> {
        if self.in_flight == 0 {
            return Ok(None);
        }
        let done = match timeout {
            None => self.completions.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(limit) => self.completions.recv_timeout(limit),
        };
        match done {
            Ok(done) => {
                self.in_flight -= 1;
                Ok(Some(done))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the engine's threads are gone")),
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.queues.iter().for_each(Queue::close);
        for thread in self.threads.iter_mut().flat_map(std::mem::take) {
            let _ = thread.join();
        }
    }
}

/// A thread's life: take a job, do it, hand it back.
fn work(shared: &Shared, kind: usize, finished: &Sender<Completion>) {
    while let Some((file, request)) = shared.queues[kind].take() {
        let (result, buffer) = perform(shared, &file, request.action);
        // The engine may be gone: then nobody waits for this.
        let _ = finished.send(Completion { token: request.token, result, buffer });
    }
}

fn perform(shared: &Shared, file: &File, action: Action) -> (io::Result<usize>, Option<AlignedBuf>) {
    match action {
        Action::Read(mut buffer, runs) => {
            (each_run(&runs, |run| read(file, &mut buffer[run.at..run.at + run.bytes], run.offset)), Some(buffer))
        }
        Action::Write(buffer, runs) => (each_run(&runs, |run| write(file, &buffer[run.at..run.at + run.bytes], run.offset)), Some(buffer)),
        Action::Zero { offset, bytes } => (zero(shared, file, offset, bytes).map(|()| 0), None),
        Action::Flush => (file.sync_data().map(|()| 0), None),
        Action::Receive(mut buffer, part) => (receive(shared, file, &mut buffer[part]), Some(buffer)),
        Action::Transmit(buffer, part) => (transmit(shared, file, &buffer[part]), Some(buffer)),
    }
}

/// Does every run, also after one failed, as io_uring would; the first error counts.
fn each_run(runs: &[Run], mut transfer: impl FnMut(&Run) -> io::Result<()>) -> io::Result<usize> {
    let mut failed = None;
    for run in runs {
        if let Err(cause) = transfer(run) {
            failed.get_or_insert(cause);
        }
    }
    failed.map_or_else(|| Ok(runs.iter().map(|run| run.bytes).sum()), Err)
}

/// Whether a transfer ended early for a reason that passes.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Interrupted | ErrorKind::WouldBlock)
}

fn read(file: &File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                into = &mut into[bytes..];
                offset += bytes as u64;
            }
            Err(cause) if passes(cause.kind()) => thread::yield_now(),
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn write(file: &File, mut from: &[u8], mut offset: u64) -> io::Result<()> {
    while !from.is_empty() {
        match file.write_at(from, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                from = &from[bytes..];
                offset += bytes as u64;
            }
            Err(cause) if passes(cause.kind()) => thread::yield_now(),
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn ways(shared: &Shared) -> MutexGuard<'_, Ways> {
    shared.ways.lock().unwrap_or_else(PoisonError::into_inner)
}

fn zero(shared: &Shared, file: &File, mut offset: u64, mut bytes: u64) -> io::Result<()> {
    let mut way = ways(shared).first(file.as_raw_fd());
    let mut zeros = None;
    while bytes > 0 {
        let step = bytes.min(STEP_BYTES);
        let result = match way.mode() {
            Some(mode) => fallocate(file, FallocateFlags::from_bits_retain(mode), offset as i64, step as i64).map_err(io::Error::from),
            None => write_zeros(file, &mut zeros, offset, step),
        };
        match result {
            Ok(()) => {
                offset += step;
                bytes -= step;
            }
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => {
                let next = cause.raw_os_error().and_then(|errno| ways(shared).after(file.as_raw_fd(), way, errno));
                way = next.ok_or(cause)?;
            }
        }
    }
    Ok(())
}

fn write_zeros(file: &File, zeros: &mut Option<AlignedBuf>, offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = match zeros {
        Some(zeros) => zeros,
        None => zeros.insert(AlignedBuf::new(ZERO_BUFFER_BYTES)?),
    };
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(zeros.len() as u64);
        write(file, &zeros[..step as usize], offset + at)?;
        at += step;
    }
    Ok(())
}

/// Waits until a stream is ready; the engine's end ends the wait.
fn ready(shared: &Shared, file: &File, what: PollFlags) -> io::Result<()> {
    loop {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let limit = PollTimeout::try_from(STOP_POLL).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(file.as_fd(), what)], limit) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        }
    }
}

fn receive(shared: &Shared, mut file: &File, into: &mut [u8]) -> io::Result<usize> {
    loop {
        ready(shared, file, PollFlags::POLLIN)?;
        match file.read(into) {
            Err(cause) if passes(cause.kind()) => {}
            result => return result,
        }
    }
}

fn transmit(shared: &Shared, file: &File, from: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < from.len() {
        ready(shared, file, PollFlags::POLLOUT)?;
        match write_some(file, &from[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => sent += bytes,
            Err(cause) if passes(cause.kind()) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(sent)
}

/// Writes what a stream takes now. A plain write on a blocking pipe or socket would wait until all
/// is taken, and the stop flag would not be seen.
fn write_some(mut file: &File, from: &[u8]) -> io::Result<usize> {
    let kind = file.metadata()?.file_type();
    if !kind.is_fifo() && !kind.is_socket() {
        return file.write(from);
    }
    match write_without_waiting(file, from) {
        // Pipes learned it late. What poll promised them is one PIPE_BUF.
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => file.write(&from[..from.len().min(PIPE_STEP_BYTES)]),
        result => result,
    }
}

/// pwritev2 with RWF_NOWAIT at the stream's own position (-1).
fn write_without_waiting(file: &File, from: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the kernel only reads the one
    // borrowed slice that `part` names.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::super::zeroing::Way;
    use super::*;

    #[test]
    fn zeros_are_written_where_the_kernel_offers_nothing_better() {
        let (file, shared) = (tempfile::tempfile().unwrap(), Shared::default());
        file.write_all_at(&vec![7; 3 << 20], 0).unwrap();
        for way in [Way::PunchHole, Way::ZeroRange] {
            ways(&shared).after(file.as_raw_fd(), way, libc::EOPNOTSUPP);
        }
        zero(&shared, &file, 5, (2 << 20) + 9).unwrap();
        let seen = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let zeros = 5..5 + (2 << 20) + 9;
        assert!(seen.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 7 }));
    }

    #[test]
    fn a_silent_stream_holds_up_neither_disk_nor_the_other_direction() {
        let (file, mut engine) = (Arc::new(tempfile::tempfile().unwrap()), Blocking::new());
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = Arc::new(File::from(std::os::fd::OwnedFd::from(ours)));
        let page = || AlignedBuf::new(4096).unwrap();
        engine.submit(&ours, Request { token: 1, action: Action::Receive(page(), 0..4096) }).unwrap();
        engine.submit(&ours, Request { token: 2, action: Action::Transmit(page(), 0..9) }).unwrap();
        engine.submit(&file, Request { token: 3, action: Action::Write(page(), vec![Run { at: 0, offset: 0, bytes: 4096 }]) }).unwrap();
        let mut tokens: Vec<u64> = (0..2).map(|_| engine.wait(None).unwrap().unwrap().token).collect();
        tokens.sort_unstable();
        assert_eq!((tokens, engine.in_flight()), (vec![2, 3], 1));
        theirs.write_all(b"x").unwrap();
        assert_eq!(engine.wait(None).unwrap().unwrap().result.unwrap(), 1);
    }
}
