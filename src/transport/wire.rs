//! A transport that speaks frames: greeting, whole frames in, frames packed into buffers out.

use super::patience::Patience;
use super::{Inbox, Lanes, Terms, Transport, Turn};
use crate::error::{Error, Kind, Result};
use crate::format::stream::{self, Frame, FrameKind, HEADER_BYTES, Header, LANES_SINCE, Message, Refusal};
use crate::limits::*;
use crate::progress::Witness;
use crate::ring::AlignedBuf;
use std::time::{Duration, Instant};

/// The stream version from which a busy side pulses, so that a silent one counts as gone.
const PULSING: u16 = 2;

/// One end of a session.
pub struct Wire {
    transport: Box<dyn Transport>,
    inbox: Inbox,
    out: Option<(AlignedBuf, usize)>,
    /// A frame larger than a transport buffer is made here and then cut into pieces.
    large: Vec<u8>,
    large_bytes: usize,
    sent_bytes: u64,
    /// Time that was waited for room to send.
    waited: Duration,
    /// What both speak; 0 before the greeting.
    version: u16,
    /// How long the peer may go without progress, and without a greeting.
    limit: Option<Duration>,
    greeting_limit: Option<Duration>,
    patience: Patience,
    /// The peer is given up: it is neither asked nor told any more.
    gave_up: bool,
    /// Bytes of frames on their way that no pulse has told of.
    came: usize,
    /// What we got done, and when the peer was last told anything.
    work: u64,
    told: Instant,
}

impl Wire {
    /// Frames over this transport, with endless patience: for two ends in one process.
    pub fn new(transport: Box<dyn Transport>) -> Result<Wire> {
        let inbox = Inbox::new(TRANSPORT_BUFFER_BYTES)?;
        let now = Instant::now();
        Ok(Wire {
            transport,
            inbox,
            out: None,
            large: Vec::new(),
            large_bytes: 0,
            sent_bytes: 0,
            waited: Duration::ZERO,
            version: 0,
            limit: None,
            greeting_limit: None,
            patience: Patience::default(),
            gave_up: false,
            came: 0,
            work: 0,
            told: now,
        })
    }

    /// The same to another host: gives the peer up that does not get on, or says nothing for as long as `greeting`.
    pub fn on_terms(transport: Box<dyn Transport>, terms: &Terms, greeting: Option<Duration>) -> Result<Wire> {
        let mut wire = Wire { limit: Some(terms.stall), greeting_limit: greeting, ..Wire::new(transport)? };
        wire.transport.pace(&terms.pace);
        Ok(wire)
    }

    /// How messages call the other end.
    pub fn peer(&self) -> &str {
        self.transport.peer()
    }

    /// Bytes of all frames put on the wire.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Time that was waited for room to send: a link, or a peer, that takes no more.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Sends our greeting line, reads the peer's, and agrees on a version.
    pub fn greet(&mut self) -> Result<u16> {
        let greeting = stream::greeting();
        self.room(greeting.len())?[..greeting.len()].copy_from_slice(greeting.as_bytes());
        self.filled(greeting.len())?;
        self.push()?;
        self.patience.set(self.greeting_limit);
        let line = self.line()?;
        self.patience.progress();
        self.version = stream::agree(&line)?;
        // One that never pulses may be busy for hours without a word.
        self.patience.set(self.limit.filter(|_| self.version >= PULSING));
        Ok(self.version)
    }

    /// One turn of waiting; ends the wait where the peer does not get on.
    fn turn(&mut self, receive: bool) -> Result<Turn> {
        if let Some(limit) = self.patience.lost() {
            return Err(self.give_up(limit));
        }
        let begun = Instant::now();
        let turn = self.transport.turn(receive.then_some(&mut self.inbox), STOP_POLL)?;
        self.patience.turned(turn, begun.elapsed());
        Ok(turn)
    }

    fn give_up(&mut self, limit: Duration) -> Error {
        self.gave_up = true;
        let (peer, seconds) = (self.peer(), limit.as_secs());
        let message = match self.version {
            0 => format!("{peer} said nothing for {seconds} seconds: is blockferry installed there?"),
            _ => format!(
                "{peer} moved no byte and got no work done for {seconds} seconds: connection given up; what came is kept and the next run goes on from there"
            ),
        };
        Error::new(Kind::Transient, message)
    }

    /// Takes what is the connection's own business from the front of what came: pulses, and the words about further
    /// connections. The header behind them, where there is one.
    fn take_own(&mut self) -> Result<Option<Header>> {
        while !self.inbox.is_lent() {
            let Some(header) = stream::header(self.inbox.unread())? else {
                self.inbox.reserve(HEADER_BYTES)?;
                return Ok(None);
            };
            let since = match header.kind {
                FrameKind::Pulse => PULSING,
                FrameKind::Lanes | FrameKind::Spread => LANES_SINCE,
                _ => return Ok(Some(header)),
            };
            if self.version < since {
                return Err(unexpected(header.kind));
            }
            self.inbox.reserve(header.frame_bytes())?;
            if self.inbox.unread().len() < header.frame_bytes() {
                return Ok(None);
            }
            let frame = self.frame(&header)?;
            let message = if let Frame::Message(message) = frame { message } else { return Err(unexpected(header.kind)) };
            self.done(&header);
            match message {
                Message::Pulse(work) => self.patience.pulsed(work, header.frame_bytes()),
                // An offer that nobody here can take up is let go by.
                Message::Lanes(offer) => self.transport.lanes().map_or(Ok(()), |lanes| lanes.offered(offer))?,
                Message::Spread(lanes) if self.inbox.unread().is_empty() => self.lanes(header.kind)?.gather(lanes)?,
                _ => return Err(unexpected(header.kind)),
            }
        }
        Ok(None)
    }

    fn lanes(&mut self, kind: FrameKind) -> Result<&mut dyn Lanes> {
        self.transport.lanes().ok_or_else(|| unexpected(kind))
    }

    /// Offers the sender further connections, where there are any to be had and it knows what they are.
    pub fn offer_lanes(&mut self) -> Result<()> {
        let offer = self.transport.lanes().filter(|_| self.version >= LANES_SINCE).and_then(|lanes| lanes.offer());
        offer.map_or(Ok(()), |offer| self.put(&Message::Lanes(offer)))
    }

    /// Where further connections are open by now, what follows goes over them. Only between two frames.
    fn spread(&mut self) -> Result<()> {
        let Some(lanes) = self.transport.lanes().and_then(|lanes| lanes.opened()) else { return Ok(()) };
        let frame = stream::encode(&Message::Spread(lanes));
        self.sent_bytes += frame.len() as u64;
        self.append(&frame)?;
        // From now on nobody looks after what this connection still has to send.
        self.flush()?;
        self.lanes(FrameKind::Spread)?.spread()
    }

    /// Waits until the transport says so. What a busy peer says meanwhile is heard: it may get on without taking a
    /// byte, and it may have given up.
    fn wait_until(&mut self, done: fn(&mut dyn Transport) -> Result<bool>) -> Result<()> {
        while !done(&mut *self.transport)? {
            let ahead = self.take_own()?;
            if let Some(header) = ahead.filter(|header| header.kind == FrameKind::Abort)
                && self.inbox.unread().len() >= header.frame_bytes()
                && let Frame::Message(Message::Abort(refusal)) = self.frame(&header)?
            {
                return Err(self.said(refusal));
            }
            if self.turn(ahead.is_none_or(|header| header.kind == FrameKind::Abort))? == Turn::Closed {
                return Err(Error::new(Kind::Transient, format!("{} closed the connection", self.peer())));
            }
        }
        // It took what was sent before, also where no turn said so.
        self.patience.progress();
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        loop {
            let unread = self.inbox.unread();
            let shown = &unread[..unread.len().min(GREETING_BYTES_MAX)];
            if let Some(end) = shown.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&shown[..end]).into_owned();
                self.inbox.consume(end + 1);
                return Ok(line);
            }
            if shown.len() == GREETING_BYTES_MAX {
                return Ok(String::from_utf8_lossy(shown).into_owned());
            }
            if self.turn(true)? == Turn::Closed {
                let said = String::from_utf8_lossy(self.inbox.unread()).into_owned();
                let what = if said.is_empty() { "nothing".to_owned() } else { format!("\"{}\"", said.escape_debug()) };
                let message = format!("{} closed the connection after saying {what}: is blockferry installed there?", self.peer());
                return Err(Error::new(Kind::Transient, message));
            }
        }
    }

    /// Room for a frame of up to `bytes`, in one piece. What is in the buffer so far goes off when it
    /// would not fit behind it.
    pub fn room(&mut self, bytes: usize) -> Result<&mut [u8]> {
        self.spread()?;
        self.large_bytes = 0;
        if bytes > TRANSPORT_BUFFER_BYTES {
            self.large.resize(bytes, 0);
            self.large_bytes = bytes;
            return Ok(&mut self.large);
        }
        self.space(bytes)
    }

    /// Room for a frame, or for a piece of one, that fits a buffer.
    fn space(&mut self, bytes: usize) -> Result<&mut [u8]> {
        if self.out.as_ref().is_some_and(|(buffer, filled)| filled + bytes > buffer.len()) {
            self.push()?;
        }
        let (buffer, filled) = match self.out.take() {
            Some(out) => out,
            None => {
                let begun = Instant::now();
                self.wait_until(|transport| transport.has_room())?;
                let buffer = self.transport.outgoing()?;
                self.waited += begun.elapsed();
                (buffer, 0)
            }
        };
        let (buffer, filled) = self.out.insert((buffer, filled));
        Ok(&mut buffer[*filled..])
    }

    /// The first `bytes` bytes of the room are a frame now.
    pub fn filled(&mut self, bytes: usize) -> Result<()> {
        self.sent_bytes += bytes as u64;
        if self.large_bytes > 0 {
            let large = std::mem::take(&mut self.large);
            let sent = large[..bytes].chunks(TRANSPORT_BUFFER_BYTES).try_for_each(|piece| self.append(piece));
            self.large = large;
            return sent;
        }
        if let Some((_, filled)) = &mut self.out {
            *filled += bytes;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.space(bytes.len())?[..bytes.len()].copy_from_slice(bytes);
        if let Some((_, filled)) = &mut self.out {
            *filled += bytes.len();
        }
        Ok(())
    }

    /// Adds a frame that is bytes already.
    pub fn put_bytes(&mut self, frame: &[u8]) -> Result<()> {
        self.room(frame.len())?[..frame.len()].copy_from_slice(frame);
        self.filled(frame.len())
    }

    /// Adds a small frame.
    pub fn put(&mut self, message: &Message) -> Result<()> {
        self.put_bytes(&stream::encode(message))
    }

    /// Sends what was added.
    pub fn push(&mut self) -> Result<()> {
        let Some((buffer, filled)) = self.out.take() else { return Ok(()) };
        // Less is a trickle, which tells a peer nothing: it needs the pulse as well.
        if filled >= BLOCK_BYTES {
            self.told = Instant::now();
        }
        self.transport.send(buffer, filled)
    }

    /// Sends what was added where nothing is on its way: who is at the other end has nothing to do.
    pub fn push_if_idle(&mut self) -> Result<()> {
        if self.out.is_some() && self.transport.is_idle()? { self.push() } else { Ok(()) }
    }

    /// Sends a small frame at once.
    pub fn say(&mut self, message: &Message) -> Result<()> {
        self.put(message)?;
        self.push()
    }

    /// Sends what was added and waits until it left this process.
    pub fn flush(&mut self) -> Result<()> {
        self.push()?;
        self.wait_until(|transport| transport.is_flushed())
    }

    /// Tells the peer why we stop, if it still listens.
    pub fn abort(&mut self, error: &Error) {
        if self.gave_up {
            return;
        }
        // What is half made in the buffer is whole frames; the peer may use or drop them.
        let refusal = Refusal { kind: error.kind(), message: error.chain() };
        if self.say(&Message::Abort(refusal)).and_then(|()| self.flush()).is_ok() {
            error.tell();
        }
    }

    /// Waits for the next whole frame. `None`: the peer closed between two frames.
    pub fn next_frame(&mut self) -> Result<Option<Header>> {
        loop {
            let ahead = self.take_own()?;
            if let Some(header) = ahead {
                self.inbox.reserve(header.frame_bytes())?;
                if self.inbox.unread().len() >= header.frame_bytes() {
                    return Ok(Some(header));
                }
            }
            match self.turn(true)? {
                Turn::Closed if self.inbox.unread().is_empty() => return Ok(None),
                Turn::Closed => return Err(Error::new(Kind::Transient, format!("{} closed the connection within a frame", self.peer()))),
                Turn::Received(bytes) if ahead.is_some() => self.comes(bytes),
                Turn::Coming(bytes) => self.comes(bytes),
                _ => {}
            }
        }
    }

    /// On a slow link the peer has a megabyte in its kernel's hands and sees nothing of it go: that its bytes come is told, and
    /// that whole frames of them are dealt with, of which many may come in one turn and each may take a while.
    /// Where that fails, what the peer says is still heard. Not of a trickle: the peer's kernel takes our pulse, which would
    /// be progress, and a frame could take for ever.
    pub fn comes(&mut self, bytes: usize) {
        self.came += bytes;
        if self.came >= BLOCK_BYTES {
            let came = std::mem::take(&mut self.came);
            let _ = self.worked(came as u64);
        }
    }

    /// The bytes of the frame that `next_frame` announced.
    pub fn bytes(&self, header: &Header) -> &[u8] {
        &self.inbox.unread()[..header.frame_bytes()]
    }

    /// The frame that `next_frame` announced.
    pub fn frame(&self, header: &Header) -> Result<Frame<'_>> {
        stream::decode(header, &self.bytes(header)[HEADER_BYTES..])
    }

    /// The frame that `next_frame` announced is dealt with.
    pub fn done(&mut self, header: &Header) {
        self.inbox.consume(header.frame_bytes());
    }

    /// The next frame as a small message; the peer's Refuse and Abort become errors of their kind.
    pub fn hear(&mut self) -> Result<Message> {
        let Some(header) = self.next_frame()? else {
            return Err(Error::new(Kind::Transient, format!("{} closed the connection", self.peer())));
        };
        let message = match self.frame(&header)? {
            Frame::Message(message) => message,
            _ => return Err(unexpected(header.kind)),
        };
        self.done(&header);
        match message {
            Message::Refuse(refusal) | Message::Abort(refusal) => Err(self.said(refusal)),
            message => Ok(message),
        }
    }

    /// The peer's refusal as our error. It will be printed: what a terminal would obey is taken out.
    pub fn said(&self, refusal: Refusal) -> Error {
        let plain = |letter: char| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter };
        Error::by_peer(self.peer(), refusal.kind, refusal.message.chars().map(plain).collect())
    }

    /// After a send failed: the peer may have said why before it went.
    pub fn explain(&mut self, error: Error) -> Error {
        if self.gave_up {
            return error;
        }
        while let Ok(Some(header)) = self.next_frame() {
            if let Ok(Frame::Message(Message::Refuse(refusal) | Message::Abort(refusal))) = self.frame(&header) {
                return self.said(refusal);
            }
            self.done(&header);
        }
        error
    }
}

/// The peer is told every now and then, where it understands that and there is room for it: it waits for us. Within
/// one process nobody's patience ends, and who pulses there would wait for a buffer that only a look of the other frees.
impl Witness for Wire {
    fn worked(&mut self, bytes: u64) -> Result<()> {
        self.work = self.work.saturating_add(bytes.max(1));
        if self.limit.is_none() || self.gave_up || self.version < PULSING || self.told.elapsed() < PULSE_INTERVAL {
            return Ok(());
        }
        self.told = Instant::now();
        // Where there is none, bytes are on their way and say as much.
        if self.out.is_none() && !self.transport.has_room()? {
            return Ok(());
        }
        self.say(&Message::Pulse(self.work))
    }
}

/// A frame that has no place here.
pub fn unexpected(kind: FrameKind) -> Error {
    Error::malformed(format!("the peer sent a {kind:?} frame where it has no place"))
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::super::stream::Stream;
    use super::*;
    use crate::ring::Choice;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn wire(socket: UnixStream, limit: Duration) -> Wire {
        let other = socket.try_clone().unwrap();
        let file = |socket: UnixStream| File::from(OwnedFd::from(socket));
        let stream = Stream::new("peer".into(), file(socket), file(other), Choice::Auto, Default::default()).unwrap();
        Wire::on_terms(Box::new(stream), &Terms { stall: limit, ..Terms::default() }, Some(limit)).unwrap()
    }

    /// Two ends that greeted each other, for which they had time.
    fn pair(limit: Duration) -> (Wire, Wire) {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (wire(a, limit), wire(b, limit));
        (a.greeting_limit, b.greeting_limit) = (None, None);
        thread::scope(|scope| {
            scope.spawn(|| b.greet().unwrap());
            a.greet().unwrap();
        });
        (a, b)
    }

    const SOON: Duration = Duration::from_secs(2);
    /// Pulses of a busy peer come faster than this, also on a machine that has other things to do.
    const LATER: Duration = Duration::from_secs(10);

    /// Pulses with growing work.
    fn work_until(wire: &mut Wire, end: Instant) {
        for work in 1.. {
            wire.say(&Message::Pulse(work)).unwrap();
            thread::sleep(LATER / 100);
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn is_given_up(near: &mut Wire) {
        let lost = near.next_frame().unwrap_err();
        assert_eq!(lost.kind(), Kind::Transient, "{}", lost.chain());
        assert!(lost.chain().contains("got no work done"), "{}", lost.chain());
        // Neither the reason is waited for nor is ours told: each would take as long again.
        let begun = Instant::now();
        near.abort(&lost);
        let told = near.explain(lost);
        assert!(begun.elapsed() < 2 * SOON && told.chain().contains("got no work done"));
    }

    #[test]
    fn a_silent_peer_and_one_that_pulses_without_work_are_given_up() {
        let (mut near, _far) = pair(2 * SOON);
        is_given_up(&mut near);
        let (mut near, mut far) = pair(2 * SOON);
        far.say(&Message::Pulse(9)).unwrap();
        let pulsing = thread::spawn(move || while far.say(&Message::Pulse(9)).is_ok() {});
        is_given_up(&mut near);
        drop(near);
        pulsing.join().unwrap();
    }

    #[test]
    fn a_peer_at_work_is_waited_for_and_so_is_one_that_cannot_pulse() {
        let (mut near, mut far) = pair(LATER);
        let begun = Instant::now();
        let working = thread::spawn(move || {
            work_until(&mut far, begun + LATER + SOON);
            far.say(&Message::HaveEnd).unwrap();
        });
        assert_eq!(near.hear().unwrap(), Message::HaveEnd);
        working.join().unwrap();

        let (near, mut old) = UnixStream::pair().unwrap();
        let mut near = wire(near, SOON);
        std::io::Write::write_all(&mut old, b"blockferry 0.1.0 stream 1-1\n").unwrap();
        assert_eq!(near.greet().unwrap(), 1);
        let late = thread::spawn(move || {
            thread::sleep(2 * SOON);
            std::io::Write::write_all(&mut old, &stream::encode(&Message::HaveEnd)).unwrap();
            old
        });
        assert_eq!(near.hear().unwrap(), Message::HaveEnd);
        // Nor is it told what it does not understand, or may it say so.
        std::io::Write::write_all(&mut late.join().unwrap(), &stream::encode(&Message::Pulse(1))).unwrap();
        near.told -= 2 * PULSE_INTERVAL;
        let before = near.sent_bytes();
        near.worked(1).unwrap();
        assert_eq!(near.sent_bytes(), before);
        assert!(near.hear().unwrap_err().chain().contains("Pulse"));
    }

    #[test]
    fn a_small_frame_stands_in_for_no_pulse_and_a_block_does() {
        for (bytes, pulses) in [(40, true), (BLOCK_BYTES, false)] {
            let (mut near, _far) = pair(LATER);
            near.told -= 2 * PULSE_INTERVAL;
            near.put_bytes(&vec![0; bytes]).and_then(|()| near.push()).unwrap();
            let before = near.sent_bytes();
            near.worked(1).unwrap();
            assert_eq!(near.sent_bytes() > before, pulses, "{bytes} bytes");
        }
    }

    #[test]
    fn who_took_what_was_sent_has_the_whole_limit_for_its_answer() {
        let (mut near, mut far) = pair(LATER);
        let slow = thread::spawn(move || {
            for _ in 0..2 {
                thread::sleep(LATER * 6 / 10);
                far.say(&Message::HaveEnd).unwrap();
            }
            far
        });
        assert_eq!(near.hear().unwrap(), Message::HaveEnd);
        near.say(&Message::Mark(1)).unwrap();
        assert_eq!(near.hear().unwrap(), Message::HaveEnd);
        drop(slow.join().unwrap());
    }

    #[test]
    fn a_peer_that_takes_no_byte_is_given_up_unless_it_works() {
        let fill = |near: &mut Wire| loop {
            if let Err(error) = near.put_bytes(&[0; TRANSPORT_BUFFER_BYTES]) {
                return error;
            }
        };
        let (mut near, _far) = pair(SOON);
        assert!(fill(&mut near).chain().contains("got no work done"));

        let (mut near, mut far) = pair(LATER);
        let begun = Instant::now();
        let working = thread::spawn(move || {
            work_until(&mut far, begun + LATER + SOON);
            // And what it says at last is heard though nothing was taken.
            far.abort(&Error::new(Kind::Storage, "the disk is full"));
            far
        });
        let said = fill(&mut near);
        assert!(said.is_from_peer() && said.chain().contains("disk is full"), "{}", said.chain());
        drop(working.join().unwrap());
    }

    /// Pulses that nobody counts once filled the few buffers of a local clone: the receiver, zeroing for a while,
    /// waited for one that only the sender's next look could free, and the sender for the receiver.
    #[test]
    fn two_ends_in_one_process_do_not_pulse_at_each_other() {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let (near, far) = memory::pair(&stop).unwrap();
        let (mut near, mut far) = (Wire::new(Box::new(near)).unwrap(), Wire::new(Box::new(far)).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| far.greet().unwrap());
            near.greet().unwrap();
        });
        let before = near.sent_bytes();
        let (done, wait) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10 * TRANSPORT_BUFFERS {
                    near.told -= 2 * PULSE_INTERVAL;
                    if near.worked(1).is_err() {
                        break;
                    }
                }
                done.send(near.sent_bytes()).unwrap();
            });
            let sent = wait.recv_timeout(Duration::from_secs(20));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(sent, Ok(before), "the worker waits for a peer that is not listening");
        });
    }

    #[test]
    fn one_that_does_not_greet_is_asked_after() {
        let (near, _far) = UnixStream::pair().unwrap();
        let silent = wire(near, SOON).greet().unwrap_err();
        assert!(silent.kind() == Kind::Transient && silent.chain().contains("said nothing for"), "{}", silent.chain());
    }

    #[test]
    fn what_a_peer_says_commands_no_terminal() {
        let (near, far) = memory::pair(&Default::default()).unwrap();
        let (mut near, mut far) = (Wire::new(Box::new(near)).unwrap(), Wire::new(Box::new(far)).unwrap());
        far.abort(&Error::new(Kind::Refused, "no\u{1b}[2J\u{9b}A\nnever"));
        let said = near.hear().unwrap_err();
        assert_eq!(said.kind(), Kind::Refused);
        assert!(said.chain().ends_with("no\u{fffd}[2J\u{fffd}A\nnever"), "{:?}", said.chain());
    }
}
