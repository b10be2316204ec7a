//! The io_uring engine: one submission entry per run, a list of our own for what does not fit, and
//! owned buffers until the kernel is done with them.
//!
//! The one invariant that all `unsafe` here rests on: memory named by an entry belongs to a slot (or
//! is the engine's zero buffer), and a slot is emptied only after the completions of all its entries
//! were seen. Dropping the engine keeps it by waiting; where waiting itself fails, it leaks.
//!
//! Entries die with the thread that submitted them, so an engine may be built anywhere but has to be
//! used from a thread that lives as long as its requests. Deliberately not used: SQPOLL (costs a
//! core), DEFER_TASKRUN and COOP_TASKRUN (bind the ring to one thread), registered buffers (they fault a whole
//! pool in, and gained nothing where it lies on huge pages).

use super::zeroing::{STEP_BYTES, Way, Ways, ZERO_BUFFER_BYTES};
use super::{Action, AlignedBuf, Completion, Engine, Request, Run, buffer_of, check};
use crate::limits::{RING_ENTRIES, STOP_POLL};
use io_uring::{IoUring, opcode, squeue, types};
use nix::libc::{self, EAGAIN, EBUSY, EINTR, ETIME};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest transfer of one entry: its length field has 32 bits and the kernel cuts at 2 GiB.
const ENTRY_BYTES_MAX: u64 = 1 << 30;
/// The name of entries that only cancel others.
const CANCEL: u64 = u64::MAX;

/// What a slot's entries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Read,
    Write,
    Zero(Way),
    Flush,
    Receive,
    Transmit,
}

impl Work {
    fn is_stream(self) -> bool {
        matches!(self, Work::Receive | Work::Transmit)
    }
}

/// What is left of one run.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: usize,
    offset: u64,
    bytes: u64,
}

impl Piece {
    fn advance(&mut self, bytes: u64) {
        self.at += bytes as usize;
        self.offset += bytes;
        self.bytes -= bytes;
    }
}

/// One request in flight.
#[derive(Debug)]
struct Slot {
    token: u64,
    file: Arc<File>,
    buffer: Option<AlignedBuf>,
    work: Work,
    pieces: Vec<Piece>,
    unfinished: usize,
    moved: u64,
    error: Option<io::Error>,
    /// A non-blocking stream said EAGAIN: the next entry waits until it is ready.
    poll_first: bool,
}

/// One entry: a piece of a slot.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    slot: u32,
    piece: u32,
}

impl Ticket {
    fn to_user_data(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.piece)
    }

    fn from_user_data(data: u64) -> Ticket {
        Ticket { slot: (data >> 32) as u32, piece: data as u32 }
    }
}

/// An io_uring with its requests in flight.
pub(super) struct Uring {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// Entries that found no room in the kernel's queue.
    backlog: VecDeque<Ticket>,
    /// Entries in the queue or in the kernel.
    entries: usize,
    done: VecDeque<Completion>,
    ways: Ways,
    zeros: Option<AlignedBuf>,
    closing: bool,
}

impl Uring {
    /// A ring, or the reason why this host has none.
    pub(super) fn new() -> io::Result<Uring> {
        let ring = IoUring::builder().build(RING_ENTRIES)?;
        // Waiting with a time limit came with Linux 5.11, after every operation used here.
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring of this kernel is too old"));
        }
        Ok(Uring {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            entries: 0,
            done: VecDeque::new(),
            ways: Ways::default(),
            zeros: None,
            closing: false,
        })
    }

    /// Files a request under a slot and its pieces in the backlog.
    fn file_request(&mut self, file: &Arc<File>, request: Request) {
        let piece = |run: &Run| Piece { at: run.at, offset: run.offset, bytes: run.bytes as u64 };
        let pieces_of = |runs: &[Run]| runs.iter().filter(|run| run.bytes > 0).map(piece).collect::<Vec<_>>();
        let (work, buffer, pieces) = match request.action {
            Action::Read(buffer, runs) => (Work::Read, Some(buffer), pieces_of(&runs)),
            Action::Write(buffer, runs) => (Work::Write, Some(buffer), pieces_of(&runs)),
            Action::Zero { offset, bytes } => {
                let pieces = if bytes > 0 { vec![Piece { at: 0, offset, bytes }] } else { Vec::new() };
                (Work::Zero(self.ways.first(file.as_raw_fd())), None, pieces)
            }
            Action::Flush => (Work::Flush, None, vec![Piece { at: 0, offset: 0, bytes: 0 }]),
            Action::Receive(buffer, part) => {
                (Work::Receive, Some(buffer), vec![Piece { at: part.start, offset: 0, bytes: part.len() as u64 }])
            }
            Action::Transmit(buffer, part) => {
                let pieces = if part.is_empty() { Vec::new() } else { vec![Piece { at: part.start, offset: 0, bytes: part.len() as u64 }] };
                (Work::Transmit, Some(buffer), pieces)
            }
        };
        if pieces.is_empty() {
            self.done.push_back(Completion { token: request.token, result: Ok(0), buffer });
            return;
        }
        let unfinished = pieces.len();
        let slot =
            Slot { token: request.token, file: file.clone(), buffer, work, pieces, unfinished, moved: 0, error: None, poll_first: false };
        let place = self.place(slot);
        self.backlog.extend((0..unfinished as u32).map(|piece| Ticket { slot: place, piece }));
    }

    fn place(&mut self, slot: Slot) -> u32 {
        match self.free.pop() {
            Some(place) => {
                self.slots[place as usize] = Some(slot);
                place
            }
            None => {
                self.slots.push(Some(slot));
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Moves the backlog into the kernel's queue as far as it has room for the entries and their completions.
    fn pump(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            if self.entries >= self.ring.params().cq_entries() as usize {
                break;
            }
            if self.ring.submission().is_full() {
                self.enter()?;
                if self.ring.submission().is_full() {
                    break;
                }
            }
            let Some(ticket) = self.backlog.pop_front() else { break };
            let entry = match self.entry(ticket) {
                Ok(entry) => entry,
                Err(cause) => {
                    self.finish_piece(ticket, Some(cause));
                    continue;
                }
            };
            self.push(&entry);
        }
        self.enter()
    }

    /// Puts an entry on the queue, which has room.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry names memory of a slot or of the zero buffer (or none), and both stay until its
        // completion was seen: the invariant of this file.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the caller made sure of room in the queue");
        self.entries += 1;
    }

    /// Tells the kernel about the queue. "Busy" and "interrupted" mean later, not never.
    fn enter(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(cause) if is_passing(&cause) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// The entry for what is left of a piece.
    fn entry(&mut self, ticket: Ticket) -> io::Result<squeue::Entry> {
        let Some(slot) = self.slots[ticket.slot as usize].as_ref() else { unreachable!("a ticket names a slot in use") };
        if matches!(slot.work, Work::Zero(Way::WriteZeros)) && self.zeros.is_none() {
            self.zeros = Some(AlignedBuf::new(ZERO_BUFFER_BYTES)?);
        }
        let fd = types::Fd(slot.file.as_raw_fd());
        let piece = slot.pieces[ticket.piece as usize];
        let bytes = piece.bytes.min(ENTRY_BYTES_MAX) as u32;
        // `check` made sure that `at + bytes` lies in the buffer. The address comes from the arena: a
        // slice of the buffer must not exist while the kernel fills another piece of it.
        let address = slot.buffer.as_ref().map_or(std::ptr::null_mut(), |buffer| {
            let (arena, at) = buffer.place();
            arena.address().wrapping_add(at + piece.at)
        });
        // An offset of -1 is "where the stream is": right for sockets, pipes and terminals.
        let stream = u64::MAX;
        let entry = match slot.work {
            Work::Receive if slot.poll_first => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            Work::Transmit if slot.poll_first => opcode::PollAdd::new(fd, libc::POLLOUT as u32).build(),
            Work::Read => opcode::Read::new(fd, address, bytes).offset(piece.offset).build(),
            Work::Write => opcode::Write::new(fd, address, bytes).offset(piece.offset).build(),
            Work::Receive => opcode::Read::new(fd, address, bytes).offset(stream).build(),
            Work::Transmit => opcode::Write::new(fd, address, bytes).offset(stream).build(),
            Work::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Zero(way) => match (way.mode(), &self.zeros) {
                (Some(mode), _) => opcode::Fallocate::new(fd, piece.bytes.min(STEP_BYTES)).offset(piece.offset).mode(mode).build(),
                (None, Some(zeros)) => {
                    let bytes = piece.bytes.min(zeros.len() as u64) as u32;
                    opcode::Write::new(fd, zeros.as_ptr(), bytes).offset(piece.offset).build()
                }
                (None, None) => unreachable!("the zero buffer was made above"),
            },
        };
        Ok(entry.user_data(ticket.to_user_data()))
    }

    /// Takes every completion the kernel has.
    fn reap(&mut self) {
        loop {
            let Some((data, result)) = self.ring.completion().next().map(|entry| (entry.user_data(), entry.result())) else { return };
            self.entries -= 1;
            if data != CANCEL {
                self.settle(Ticket::from_user_data(data), result);
            }
        }
    }

    /// One entry ended: the piece is done, goes on, is tried again, or failed.
    fn settle(&mut self, ticket: Ticket, result: i32) {
        let Some(slot) = self.slots[ticket.slot as usize].as_mut() else { unreachable!("a completion names a slot in use") };
        let piece = &mut slot.pieces[ticket.piece as usize];
        let again = !(self.closing && slot.work.is_stream());
        if std::mem::take(&mut slot.poll_first) && result >= 0 && again {
            return self.backlog.push_back(ticket);
        }
        if result < 0 {
            let errno = -result;
            if again && (errno == EAGAIN || errno == EINTR) {
                slot.poll_first = errno == EAGAIN && slot.work.is_stream();
                return self.backlog.push_back(ticket);
            }
            if let Work::Zero(way) = slot.work
                && let Some(next) = self.ways.after(slot.file.as_raw_fd(), way, errno)
            {
                slot.work = Work::Zero(next);
                return self.backlog.push_back(ticket);
            }
            return self.finish_piece(ticket, Some(io::Error::from_raw_os_error(errno)));
        }
        let moved = match slot.work {
            Work::Zero(way) if way.mode().is_some() => piece.bytes.min(STEP_BYTES),
            _ => result as u64,
        };
        piece.advance(moved);
        if !matches!(slot.work, Work::Zero(_)) {
            slot.moved += moved;
        }
        match slot.work {
            Work::Receive | Work::Flush => self.finish_piece(ticket, None),
            _ if piece.bytes == 0 => self.finish_piece(ticket, None),
            Work::Read if moved == 0 => self.finish_piece(ticket, Some(io::ErrorKind::UnexpectedEof.into())),
            _ if moved == 0 => self.finish_piece(ticket, Some(io::ErrorKind::WriteZero.into())),
            // Short: the rest follows, unless the engine is going away.
            _ if again => self.backlog.push_back(ticket),
            _ => self.finish_piece(ticket, Some(io::Error::from_raw_os_error(libc::ECANCELED))),
        }
    }

    /// A piece has ended; its request ends with its last piece, under the first error that occurred.
    fn finish_piece(&mut self, ticket: Ticket, error: Option<io::Error>) {
        let Some(slot) = self.slots[ticket.slot as usize].as_mut() else { unreachable!("a ticket names a slot in use") };
        slot.error = slot.error.take().or(error);
        slot.unfinished -= 1;
        if slot.unfinished > 0 {
            return;
        }
        if let Some(slot) = self.slots[ticket.slot as usize].take() {
            self.free.push(ticket.slot);
            let result = slot.error.map_or(Ok(slot.moved as usize), Err);
            self.done.push_back(Completion { token: slot.token, result, buffer: slot.buffer });
        }
    }

    /// Waits in the kernel for one completion or the end of the time.
    fn block(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let timespec = limit.map(types::Timespec::from);
        let args = timespec.iter().fold(types::SubmitArgs::new(), |args, limit| args.timespec(limit));
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(cause) if cause.raw_os_error() == Some(ETIME) || is_passing(&cause) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// Takes streams out of the backlog and asks the kernel to end those it waits for.
    fn cancel_streams(&mut self) -> io::Result<()> {
        let is_stream = |ticket: &Ticket| self.slots[ticket.slot as usize].as_ref().is_some_and(|slot| slot.work.is_stream());
        let (dropped, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.backlog).into_iter().partition(is_stream);
        self.backlog = kept;
        for ticket in dropped {
            self.finish_piece(ticket, Some(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        for place in 0..self.slots.len() {
            if !self.slots[place].as_ref().is_some_and(|slot| slot.work.is_stream()) {
                continue;
            }
            if self.ring.submission().is_full() {
                self.enter()?;
            }
            if !self.ring.submission().is_full() {
                let stream = Ticket { slot: place as u32, piece: 0 };
                self.push(&opcode::AsyncCancel::new(stream.to_user_data()).build().user_data(CANCEL));
            }
        }
        Ok(())
    }

    /// Ends streams and waits for everything else, the backlog included.
    fn drain(&mut self) -> io::Result<()> {
        while self.entries > 0 || !self.backlog.is_empty() {
            self.cancel_streams()?;
            self.pump()?;
            if self.entries > 0 {
                // A cancel can miss an operation that is just running: it is repeated.
                self.block(Some(STOP_POLL))?;
            }
            self.reap();
        }
        Ok(())
    }
}

/// Failures of entering the kernel that pass by taking completions or trying again.
fn is_passing(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(EINTR | EAGAIN | EBUSY))
}

impl Engine for Uring {
    fn submit(&mut self, file: &Arc<File>, request: Request) -> io::Result<()> {
        if let Err(cause) = check(&request.action) {
            self.done.push_back(Completion { token: request.token, result: Err(cause), buffer: buffer_of(request.action) });
            return Ok(());
        }
        self.file_request(file, request);
        self.pump()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Completion>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            self.reap();
            // Freed room is used before a completion is handed out: the caller may take its time with it.
            if !self.backlog.is_empty() {
                self.pump()?;
            }
            if let Some(done) = self.done.pop_front() {
                return Ok(Some(done));
            }
            if self.in_flight() == 0 {
                return Ok(None);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.block(left)?;
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.closing = true;
        if self.drain().is_err() && self.entries > 0 {
            // The kernel may still write to these buffers: memory lost is better than memory corrupted.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.zeros.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn stream_file(stream: UnixStream) -> Arc<File> {
        Arc::new(File::from(OwnedFd::from(stream)))
    }

    #[test]
    fn a_non_blocking_stream_is_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (ours, mut ring) = (stream_file(ours), Uring::new().unwrap());
        ring.submit(&ours, Request { token: 1, action: Action::Receive(AlignedBuf::new(4096).unwrap(), 6..4096) }).unwrap();
        assert!(ring.wait(Some(Duration::from_millis(30))).unwrap().is_none());
        std::io::Write::write_all(&mut &theirs, b"hello").unwrap();
        let done = ring.wait(None).unwrap().unwrap();
        assert_eq!(done.result.unwrap(), 5);
        assert_eq!(&done.buffer.unwrap()[6..11], b"hello");
    }

    #[test]
    fn zeros_are_written_where_the_kernel_offers_nothing_better() {
        let (file, mut ring) = (Arc::new(tempfile::tempfile().unwrap()), Uring::new().unwrap());
        std::os::unix::fs::FileExt::write_all_at(&*file, &vec![7; 3 << 20], 0).unwrap();
        for way in [Way::PunchHole, Way::ZeroRange] {
            ring.ways.after(file.as_raw_fd(), way, libc::EOPNOTSUPP);
        }
        ring.submit(&file, Request { token: 1, action: Action::Zero { offset: 5, bytes: (2 << 20) + 9 } }).unwrap();
        assert_eq!(ring.wait(None).unwrap().unwrap().result.unwrap(), 0);
        assert!(ring.zeros.is_some(), "the third way needs its buffer");
        let seen = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let zeros = 5..5 + (2 << 20) + 9;
        assert!(seen.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 7 }));
    }
}
