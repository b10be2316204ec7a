//! A stream over two descriptors: the two ends of a pipe pair (ssh, stdio) or one socket twice.
//!
//! Bytes go through a ring of its own. One buffer is on its way at a time, because two writes in
//! flight on one stream may pass each other; the others queue behind it.

use super::spare::Spare;
use super::{Inbox, Pace, Transport, Turn};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{BLOCK_BYTES, STOP_POLL, TRANSMIT_BYTES, TRANSPORT_BUFFER_BYTES, TRANSPORT_BUFFERS};
use crate::ring::{self, Action, AlignedBuf, Choice, Completion, Engine, Request};
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a pipe is asked to hold: what an unprivileged process may have.
const PIPE_BYTES: i32 = 1 << 20;

const TRANSMIT: u64 = 1;
const RECEIVE: u64 = 2;

/// A time by which a stream's waits end; whoever holds a clone may set it or take it away.
#[derive(Clone, Debug, Default)]
pub struct Deadline(Arc<Mutex<Option<(Instant, &'static str)>>>);

impl Deadline {
    /// From now on the peer has `limit` for `what`.
    pub fn set(&self, limit: Duration, what: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now() + limit, what));
    }

    /// The peer may take its time again.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn missed(&self) -> Option<&'static str> {
        let set = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.filter(|(until, _)| Instant::now() >= *until).map(|(_, what)| what)
    }
}

/// One end of a connection over two descriptors.
pub struct Stream {
    peer: String,
    reader: Arc<File>,
    writer: Arc<File>,
    engine: Box<dyn Engine>,
    free: Spare,
    /// What waits: buffers with the part of each that is not sent.
    queue: VecDeque<(AlignedBuf, Range<usize>)>,
    /// What is left of the buffer on its way, behind the piece that the engine has.
    sending: Option<Range<usize>>,
    receiving: bool,
    received: Option<Completion>,
    pace: Pace,
    /// The next piece and the time from which it may be sent, where there is a limit.
    granted: Option<(Instant, usize)>,
    /// When the next bytes may be taken in.
    receive_at: Option<Instant>,
    send_failure: Option<(Kind, String)>,
    deadline: Deadline,
    stop: Arc<AtomicBool>,
}

impl Stream {
    /// A stream that reads from `reader` and writes to `writer`. Waits end when `stop` is set.
    pub fn new(peer: String, reader: File, writer: File, choice: Choice, stop: Arc<AtomicBool>) -> Result<Stream> {
        Stream::with_buffers(TRANSPORT_BUFFER_BYTES, peer, reader, writer, choice, stop)
    }

    /// The same with outgoing buffers of another size.
    pub fn with_buffers(
        buffer_bytes: usize,
        peer: String,
        reader: File,
        writer: File,
        choice: Choice,
        stop: Arc<AtomicBool>,
    ) -> Result<Stream> {
        let engine = ring::open(choice).context(Kind::Failed, || format!("open an i/o engine for the connection to {peer}"))?;
        // Fewer turns per megabyte. Sockets and limited users answer with an error that means nothing.
        for end in [&reader, &writer] {
            let _ = fcntl(end, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        }
        Ok(Stream {
            peer,
            reader: Arc::new(reader),
            writer: Arc::new(writer),
            engine,
            free: Spare::new(TRANSPORT_BUFFERS, buffer_bytes),
            queue: VecDeque::new(),
            sending: None,
            receiving: false,
            received: None,
            pace: Pace::default(),
            granted: None,
            receive_at: None,
            send_failure: None,
            deadline: Deadline::default(),
            stop,
        })
    }

    /// The handle to this stream's deadline; there is none until one is set.
    pub fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    /// Tells the peer's kernel that nothing more follows, where the writer is a socket.
    pub fn shut_down(&mut self) {
        let _ = nix::sys::socket::shutdown(self.writer.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    }

    /// Starts the next piece when none is on its way.
    fn start_next(&mut self) -> Result<()> {
        if self.sending.is_some() {
            return Ok(());
        }
        let Some(waiting) = self.queue.front().map(|(_, part)| part.len()) else { return Ok(()) };
        let now = Instant::now();
        let (at, bytes) = *self.granted.get_or_insert_with(|| {
            let bytes = waiting.min(self.pace.piece(now).unwrap_or(TRANSMIT_BYTES));
            (now + self.pace.take(bytes, now), bytes)
        });
        if now < at {
            return Ok(());
        }
        self.granted = None;
        let Some((buffer, part)) = self.queue.pop_front() else { return Ok(()) };
        let end = part.end.min(part.start + bytes);
        let request = Request { token: TRANSMIT, action: Action::Transmit(buffer, part.start..end) };
        self.engine.submit(&self.writer, request).context(Kind::Failed, || format!("send to {}", self.peer))?;
        self.sending = Some(end..part.end);
        Ok(())
    }

    /// Takes one completion, or looks at the stop flag and the deadline. Whether some of what is sent was taken, or
    /// a limit holds something back.
    fn step(&mut self, limit: Duration) -> Result<Turn> {
        if let Some(what) = self.deadline.missed() {
            return Err(Error::new(Kind::Transient, format!("{} took too long for {what}: connection given up", self.peer)));
        }
        let held = self.held();
        let limit = held.map_or(limit, |held| held.min(limit));
        if self.engine.in_flight() == 0 && held.is_some() {
            std::thread::sleep(limit);
        }
        match self.engine.wait(Some(limit)).context(Kind::Failed, || format!("wait for {}", self.peer))? {
            Some(done) => return Ok(if self.take(done)? { Turn::Sent } else { Turn::Nothing }),
            None if self.stop.load(Ordering::Relaxed) => return Err(Error::interrupted()),
            None => {}
        }
        self.start_next()?;
        Ok(if held.is_some() { Turn::Paced } else { Turn::Nothing })
    }

    /// How long a limit holds back what could move otherwise.
    fn held(&self) -> Option<Duration> {
        let sending = self.granted.filter(|_| self.sending.is_none()).map(|(at, _)| at);
        let now = Instant::now();
        // One that is due waits for who wants it, and holds nothing back.
        let receiving = self.receive_at.filter(|at| !self.receiving && *at > now);
        let until = [sending, receiving].into_iter().flatten().min()?;
        Some(until.saturating_duration_since(now))
    }

    fn take(&mut self, done: Completion) -> Result<bool> {
        if done.token == RECEIVE {
            self.receiving = false;
            let bytes = *done.result.as_ref().unwrap_or(&0);
            let now = Instant::now();
            let wait = self.pace.take(bytes, now);
            self.receive_at = (!wait.is_zero()).then(|| now + wait);
            self.received = Some(done);
            return Ok(false);
        }
        match (self.sending.take(), done.buffer) {
            (Some(rest), Some(buffer)) if !rest.is_empty() && done.result.is_ok() => self.queue.push_front((buffer, rest)),
            (_, Some(buffer)) => self.free.put(buffer),
            _ => {}
        }
        let sent = done.result.is_ok();
        if let Err(cause) = done.result {
            // Not raised here: the peer may have said why before it hung up, and `receive` still reads that.
            self.send_failure = Some((Kind::Transient, format!("connection to {} lost while sending: {}", self.peer, plain(&cause))));
            for (buffer, _) in self.queue.drain(..) {
                self.free.put(buffer);
            }
        }
        self.start_next()?;
        Ok(sent)
    }

    /// Takes what the engine has done by now, without waiting.
    fn catch_up(&mut self) -> Result<()> {
        while let Some(done) = self.engine.wait(Some(Duration::ZERO)).context(Kind::Failed, || format!("wait for {}", self.peer))? {
            self.take(done)?;
        }
        self.start_next()
    }

    fn is_sending(&self) -> bool {
        self.sending.is_some() || !self.queue.is_empty()
    }

    fn check_sending(&self) -> Result<()> {
        match &self.send_failure {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }

    /// Lends the inbox's buffer to the ring, with room behind what is unread.
    fn start_receive(&mut self, inbox: &mut Inbox) -> Result<()> {
        if inbox.room() == 0 {
            inbox.reserve(inbox.unread().len() + BLOCK_BYTES)?;
        }
        let (buffer, at) = inbox.lend().ok_or_else(|| Error::new(Kind::Failed, "the inbox's buffer is still lent out"))?;
        let end = self.pace.piece(Instant::now()).map_or(buffer.len(), |piece| buffer.len().min(at + piece));
        let request = Request { token: RECEIVE, action: Action::Receive(buffer, at..end) };
        self.engine.submit(&self.reader, request).context(Kind::Failed, || format!("receive from {}", self.peer))?;
        self.receiving = true;
        Ok(())
    }
}

/// A stream's failure in the words of a person.
fn plain(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::WriteZero => "the peer closed it".to_owned(),
        _ => cause.to_string(),
    }
}

impl Transport for Stream {
    fn peer(&self) -> &str {
        &self.peer
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        loop {
            self.check_sending()?;
            if let Some(buffer) = self.free.take()? {
                return Ok(buffer);
            }
            // Otherwise the caller holds all of them, and would wait for itself.
            if !self.is_sending() {
                return Err(Error::new(Kind::Failed, "every transport buffer is in the sender's own hands"));
            }
            self.step(STOP_POLL)?;
        }
    }

    fn pace(&mut self, pace: &Pace) {
        self.pace = pace.clone();
    }

    fn has_room(&mut self) -> Result<bool> {
        self.catch_up()?;
        self.check_sending()?;
        Ok(!self.free.is_empty())
    }

    fn is_idle(&mut self) -> Result<bool> {
        self.catch_up()?;
        Ok(!self.is_sending())
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        if let Err(lost) = self.check_sending() {
            self.free.put(buffer);
            return Err(lost);
        }
        self.queue.push_back((buffer, 0..bytes));
        self.start_next()
    }

    fn flush(&mut self) -> Result<()> {
        while self.is_sending() {
            self.step(STOP_POLL)?;
        }
        self.check_sending()
    }

    fn is_flushed(&mut self) -> Result<bool> {
        self.catch_up()?;
        self.check_sending()?;
        Ok(!self.is_sending())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        let Some(inbox) = inbox else { return self.step(limit) };
        // A wait that ended otherwise left its receive with the engine: it is taken up again.
        if !self.receiving && self.received.is_none() && self.receive_at.is_none_or(|at| Instant::now() >= at) {
            self.receive_at = None;
            self.start_receive(inbox)?;
        }
        let turn = if self.received.is_none() { self.step(limit)? } else { Turn::Nothing };
        let Some(done) = self.received.take() else { return Ok(turn) };
        let buffer = done.buffer.ok_or_else(|| Error::new(Kind::Failed, "a receive came back without its buffer"))?;
        let bytes = *done.result.as_ref().unwrap_or(&0);
        inbox.give_back(buffer, bytes);
        match done.result {
            Ok(0) => Ok(Turn::Closed),
            Ok(bytes) => Ok(Turn::Received(bytes)),
            Err(cause) => Err(Error::because(Kind::Transient, format!("connection to {} lost while receiving", self.peer), cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// What hangs would take longer.
    const HANGS: Duration = Duration::from_secs(30);

    const BOTH: [Choice; 2] = [Choice::Uring, Choice::Blocking];

    fn file(end: impl Into<OwnedFd>) -> File {
        File::from(end.into())
    }

    fn stop() -> Arc<AtomicBool> {
        Arc::default()
    }

    fn over_socket(choice: Choice, socket: UnixStream, stop: &Arc<AtomicBool>) -> Stream {
        let other = socket.try_clone().unwrap();
        Stream::new("peer".into(), file(socket), file(other), choice, stop.clone()).unwrap()
    }

    fn socket_pair(choice: Choice) -> (Stream, Stream) {
        let (a, b) = UnixStream::pair().unwrap();
        (over_socket(choice, a, &stop()), over_socket(choice, b, &stop()))
    }

    fn pipe_pair(choice: Choice) -> (Stream, Stream) {
        let ((a_in, b_out), (b_in, a_out)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let make = |reader: File, writer: File| Stream::new("peer".into(), reader, writer, choice, stop()).unwrap();
        (make(file(a_in), file(a_out)), make(file(b_in), file(b_out)))
    }

    /// Buffer `i` is filled with its number and has a length of its own.
    fn send_numbered(stream: &mut Stream, count: usize) {
        for i in 0..count {
            let mut buffer = stream.outgoing().unwrap();
            let bytes = TRANSPORT_BUFFER_BYTES - i * 1001;
            buffer[..bytes].fill(i as u8);
            stream.send(buffer, bytes).unwrap();
        }
        stream.flush().unwrap();
    }

    fn receive_numbered(stream: &mut Stream, count: usize) {
        let mut inbox = Inbox::new(300_000).unwrap();
        for i in 0..count {
            let mut left = TRANSPORT_BUFFER_BYTES - i * 1001;
            while left > 0 {
                if inbox.unread().is_empty() {
                    assert!(stream.receive(&mut inbox).unwrap());
                }
                let bytes = inbox.unread().len().min(left);
                assert!(inbox.unread()[..bytes].iter().all(|byte| *byte == i as u8), "buffer {i} arrived out of order");
                inbox.consume(bytes);
                left -= bytes;
            }
        }
    }

    #[test]
    fn large_buffers_arrive_in_order_over_sockets_and_pipes() {
        for choice in BOTH {
            for (mut a, mut b) in [socket_pair(choice), pipe_pair(choice)] {
                thread::scope(|scope| {
                    scope.spawn(move || send_numbered(&mut a, 30));
                    receive_numbered(&mut b, 30);
                    assert!(!b.receive(&mut Inbox::new(4096).unwrap()).unwrap(), "the end of the sender is the end of the stream");
                });
            }
        }
    }

    #[test]
    fn receiving_goes_on_while_sending() {
        for choice in BOTH {
            for (mut a, mut b) in [socket_pair(choice), pipe_pair(choice)] {
                thread::scope(|scope| {
                    scope.spawn(move || {
                        let first = a.outgoing().unwrap();
                        a.send(first, TRANSPORT_BUFFER_BYTES).unwrap();
                        receive_numbered(&mut a, 5);
                        a.flush().unwrap();
                    });
                    // This end sends before it takes anything: only a full-duplex peer lets it finish.
                    send_numbered(&mut b, 5);
                    let mut inbox = Inbox::new(TRANSPORT_BUFFER_BYTES).unwrap();
                    while inbox.unread().len() < TRANSPORT_BUFFER_BYTES {
                        assert!(b.receive(&mut inbox).unwrap());
                    }
                });
            }
        }
    }

    #[test]
    fn a_closing_peer_ends_sending_but_its_last_words_are_heard() {
        for choice in BOTH {
            let (a_in, b_out) = io::pipe().unwrap();
            let (b_in, a_out) = io::pipe().unwrap();
            let mut a = Stream::new("peer".into(), file(a_in), file(a_out), choice, stop()).unwrap();
            io::Write::write_all(&mut file(b_out), b"refused").unwrap();
            drop(b_in);
            let lost = loop {
                match a.outgoing().and_then(|buffer| a.send(buffer, TRANSPORT_BUFFER_BYTES)) {
                    Ok(()) => {}
                    Err(lost) => break lost,
                }
            };
            assert_eq!(lost.kind(), Kind::Transient);
            assert!(lost.chain().starts_with("connection to peer lost while sending"), "{}", lost.chain());
            let mut inbox = Inbox::new(4096).unwrap();
            assert!(a.receive(&mut inbox).unwrap());
            assert_eq!(inbox.unread(), b"refused");
            assert!(!a.receive(&mut inbox).unwrap());
        }
    }

    #[test]
    fn the_stop_flag_ends_a_wait_and_the_wait_can_be_resumed() {
        for choice in BOTH {
            let (socket, other) = UnixStream::pair().unwrap();
            let stop = stop();
            let mut a = over_socket(choice, socket, &stop);
            let mut inbox = Inbox::new(4096).unwrap();
            stop.store(true, Ordering::Relaxed);
            let begun = Instant::now();
            assert_eq!(a.receive(&mut inbox).unwrap_err().kind(), Kind::Interrupted);
            assert!(begun.elapsed() < HANGS);
            io::Write::write_all(&mut &other, b"late").unwrap();
            assert!(a.receive(&mut inbox).unwrap());
            assert_eq!(inbox.unread(), b"late");
            let _pending = a.receive(&mut inbox).unwrap_err();
            let dropping = Instant::now();
            drop(a);
            assert!(dropping.elapsed() < HANGS, "a pending receive holds up the drop");
        }
    }

    #[test]
    fn what_came_while_sending_waits_for_room_is_there_afterwards() {
        for choice in BOTH {
            let (socket, other) = UnixStream::pair().unwrap();
            let mut a = over_socket(choice, socket, &stop());
            let mut inbox = Inbox::new(4096).unwrap();
            while a.has_room().unwrap() {
                let buffer = a.outgoing().unwrap();
                a.send(buffer, TRANSPORT_BUFFER_BYTES).unwrap();
            }
            assert!(!a.is_flushed().unwrap());
            io::Write::write_all(&mut &other, b"busy").unwrap();
            while inbox.is_lent() || inbox.unread().is_empty() {
                assert!(!matches!(a.turn(Some(&mut inbox), STOP_POLL).unwrap(), Turn::Closed));
            }
            assert_eq!(inbox.unread(), b"busy");
            // With a receive under way, room comes back as the peer takes what was sent.
            let taking = thread::spawn(move || io::copy(&mut &other, &mut io::sink()).unwrap());
            while !a.is_flushed().unwrap() {
                a.turn(Some(&mut inbox), STOP_POLL).unwrap();
            }
            assert!(inbox.is_lent() && a.has_room().unwrap());
            a.shut_down();
            assert_eq!(taking.join().unwrap(), (TRANSPORT_BUFFERS * TRANSPORT_BUFFER_BYTES) as u64);
        }
    }

    #[test]
    fn a_full_pipe_does_not_hold_up_the_drop() {
        for choice in BOTH {
            let (mut a, _b) = pipe_pair(choice);
            for _ in 0..TRANSPORT_BUFFERS {
                let buffer = a.outgoing().unwrap();
                a.send(buffer, TRANSPORT_BUFFER_BYTES).unwrap();
            }
            thread::sleep(Duration::from_millis(50));
            let dropping = Instant::now();
            drop(a);
            assert!(dropping.elapsed() < HANGS, "a pending transmit holds up the drop");
        }
    }

    #[test]
    fn a_stream_works_in_another_thread_than_the_one_that_made_it() {
        for choice in BOTH {
            let (mut a, mut b) = thread::spawn(move || socket_pair(choice)).join().unwrap();
            thread::scope(|scope| {
                scope.spawn(move || send_numbered(&mut a, 5));
                receive_numbered(&mut b, 5);
            });
        }
    }
}
