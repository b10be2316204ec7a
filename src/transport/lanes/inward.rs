//! The receiver's end: pieces come over lanes, each with a thread that decrypts, and go on in their order.
//!
//! Numbers ascend on each lane, and each lane has buffers of its own. So the piece that everything waits for is always
//! the first on its lane and finds a free one: no lane waits for another without end.

use super::Lanes;
use super::order::Order;
use crate::error::{Context, Error, Kind, Result};
use crate::format::lane::{JOIN_BYTES, JOINED, Join, LANE_TOKEN_BYTES, PIECE_HEAD_BYTES, PieceHead};
use crate::format::stream::LaneOffer;
use crate::limits::{LANE_LOOK, LANE_PIECES, STOP_POLL, TRANSPORT_BUFFER_BYTES};
use crate::ring::AlignedBuf;
use crate::transport::tls::Tls;
use crate::transport::{Inbox, Pace, Transport, Turn};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a session and its lanes tell one another beside pieces.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes of pieces that came and that the session has not heard of.
    came: AtomicUsize,
    /// A limit of our own held a lane back since the session looked.
    paced: AtomicBool,
    /// The session is over.
    over: AtomicBool,
}

/// What a lane tells its session.
enum Told {
    /// It is there; this is the way back for its buffers.
    Joined(Sender<AlignedBuf>),
    /// A piece came on the lane of this place.
    Piece { lane: usize, number: u64, buffer: AlignedBuf, bytes: usize },
    /// The lane of this place ended, with the peer's goodbye or without; whether anything came before.
    Ended { lane: usize, begun: bool, result: Result<()> },
}

/// The places of a session's lanes.
pub struct Seats {
    most: usize,
    given: Mutex<usize>,
    shared: Arc<Shared>,
    told: Sender<Told>,
}

/// A lane's place in its session.
pub struct Seat {
    lane: usize,
    shared: Arc<Shared>,
    told: Sender<Told>,
    empties: Receiver<AlignedBuf>,
}

/// Where a session takes what its lanes bring.
pub struct Gather {
    shared: Arc<Shared>,
    heard: Receiver<Told>,
    lanes: Vec<Lane>,
    order: Order<Piece>,
    spread: bool,
}

struct Lane {
    empties: Sender<AlignedBuf>,
    /// Pieces that wait here.
    waiting: usize,
    end: Option<End>,
}

/// How a lane ended.
enum End {
    Goodbye,
    /// Cut before it brought anything: it may be one that the sender had given up before.
    Unused(Error),
    Failed(Error),
}

struct Piece {
    lane: usize,
    buffer: AlignedBuf,
    bytes: usize,
}

/// `most` places, and where what comes to them is gathered.
pub fn gathering(most: usize) -> (Seats, Gather) {
    let ((told, heard), shared) = (channel(), Arc::<Shared>::default());
    let gather = Gather { shared: Arc::clone(&shared), heard, lanes: Vec::new(), order: Order::default(), spread: false };
    (Seats { most, given: Mutex::new(0), shared, told }, gather)
}

impl Seats {
    /// A place, where one is free. The session knows of it before the peer does.
    pub fn take(&self) -> Option<Seat> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if *given == self.most {
            return None;
        }
        let (back, empties) = channel();
        self.told.send(Told::Joined(back)).ok()?;
        *given += 1;
        Some(Seat { lane: *given - 1, shared: Arc::clone(&self.shared), told: self.told.clone(), empties })
    }
}

/// The session that a further connection asks for.
pub fn joined(tls: &mut Tls) -> Result<[u8; LANE_TOKEN_BYTES]> {
    let mut bytes = [0; JOIN_BYTES];
    let mut filled = 0;
    while filled < JOIN_BYTES {
        match tls.turn_into(&mut bytes[filled..], STOP_POLL)? {
            Turn::Received(more) => filled += more,
            Turn::Closed => return Err(Error::new(Kind::Transient, format!("{} connected and left", tls.peer()))),
            _ => {}
        }
    }
    Ok(Join::decode(&bytes)?.token)
}

impl Seat {
    /// Tells the peer that it is in, and takes in what comes until it ends or the session does.
    pub fn serve(self, mut tls: Tls) {
        let mut begun = false;
        let result = tls.send_both(&[JOINED], &[]).and_then(|()| self.carry(&mut tls, &mut begun));
        // Before the goodbye, which may take its time.
        let _ = self.told.send(Told::Ended { lane: self.lane, begun, result });
    }

    fn carry(&self, tls: &mut Tls, begun: &mut bool) -> Result<()> {
        let (mut head, mut last, mut made) = ([0; PIECE_HEAD_BYTES], None, 0);
        while self.fill(tls, &mut head, begun, None)? {
            let PieceHead { number, bytes } = PieceHead::decode(&head)?;
            if last.replace(number).is_some_and(|last| number <= last) {
                return Err(Error::malformed(format!("piece {number} came behind a later one on its connection")));
            }
            let Some(mut buffer) = self.buffer(&mut made)? else { break };
            let piece = |buffer| Told::Piece { lane: self.lane, number, buffer, bytes };
            if !self.fill(tls, &mut buffer[..bytes], begun, Some(&self.shared.came))? || self.told.send(piece(buffer)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Fills the whole room, and counts what comes. `false`: the peer said goodbye, or the session is over.
    fn fill(&self, tls: &mut Tls, room: &mut [u8], begun: &mut bool, came: Option<&AtomicUsize>) -> Result<bool> {
        let mut filled = 0;
        while filled < room.len() {
            match tls.turn_into(&mut room[filled..], STOP_POLL)? {
                Turn::Received(bytes) => {
                    filled += bytes;
                    *begun = true;
                    came.map(|came| came.fetch_add(bytes, Ordering::Relaxed));
                }
                Turn::Closed => return Ok(false),
                Turn::Paced => self.shared.paced.store(true, Ordering::Relaxed),
                Turn::Coming(_) | Turn::Sent | Turn::Nothing if self.shared.over.load(Ordering::Relaxed) => return Ok(false),
                Turn::Coming(_) | Turn::Sent | Turn::Nothing => {}
            }
        }
        Ok(true)
    }

    /// A buffer for the next piece: one of its own that came back, or a new one. `None`: the session is over.
    fn buffer(&self, made: &mut usize) -> Result<Option<AlignedBuf>> {
        if let Ok(back) = self.empties.try_recv() {
            return Ok(Some(back));
        }
        if *made < LANE_PIECES {
            *made += 1;
            return AlignedBuf::new(TRANSPORT_BUFFER_BYTES).map(Some).context(Kind::Failed, || "allocate transport buffers");
        }
        Ok(self.empties.recv().ok())
    }
}

/// A place that nobody served, or whose thread ended in a panic, brings nothing more.
impl Drop for Seat {
    fn drop(&mut self) {
        let bug = || Error::new(Kind::Failed, "the thread of a connection ended in a panic");
        let result = if std::thread::panicking() { Err(bug()) } else { Ok(()) };
        let _ = self.told.send(Told::Ended { lane: self.lane, begun: false, result });
    }
}

impl Gather {
    /// What came by now, without waiting.
    fn catch_up(&mut self) -> Result<()> {
        while let Ok(told) = self.heard.try_recv() {
            self.hear(told)?;
        }
        Ok(())
    }

    fn hear(&mut self, told: Told) -> Result<()> {
        match told {
            Told::Joined(empties) => self.lanes.push(Lane { empties, waiting: 0, end: None }),
            Told::Piece { lane, number, buffer, bytes } => {
                self.lane(lane)?.waiting += 1;
                self.order.put(number, Piece { lane, buffer, bytes })?;
            }
            // Told when nothing before it is left to deliver: the end of the pass may be.
            Told::Ended { lane, begun, result } => {
                self.lane(lane)?.end.get_or_insert(match result {
                    Ok(()) => End::Goodbye,
                    Err(error) if begun || error.kind() != Kind::Transient => End::Failed(error),
                    Err(error) => End::Unused(error),
                });
            }
        }
        Ok(())
    }

    fn lane(&mut self, lane: usize) -> Result<&mut Lane> {
        self.lanes.get_mut(lane).ok_or_else(|| Error::new(Kind::Failed, "a lane spoke before it joined"))
    }

    /// The next piece goes to the inbox, where it is there. What is told of its bytes is what was not told while they came.
    fn deliver(&mut self, inbox: &mut Inbox) -> Result<Option<Turn>> {
        let Some(Piece { lane, buffer, bytes }) = self.order.next() else { return Ok(None) };
        // Large frames have made the inbox grow: what it has then stays its own, or each lane would have as much one day.
        let spare = if inbox.is_larger_than(&buffer) {
            inbox.append(&buffer[..bytes])?;
            Some(buffer)
        } else {
            inbox.exchange(buffer, bytes)?
        };
        let lane = self.lane(lane)?;
        lane.waiting -= 1;
        // A lane that ended takes none.
        let _ = spare.map(|spare| lane.empties.send(spare));
        Ok(Some(Turn::Received(self.shared.came.swap(0, Ordering::Relaxed))))
    }

    /// Nothing can be delivered. Whether nothing ever will be.
    fn outlook(&mut self) -> Result<Option<Turn>> {
        if let Some(End::Failed(error)) = self.lanes.iter_mut().find_map(|lane| lane.end.take_if(|end| matches!(end, End::Failed(_)))) {
            return Err(error);
        }
        let alive = || self.lanes.iter().filter(|lane| lane.end.is_none());
        if alive().any(|lane| lane.waiting < LANE_PIECES) {
            return Ok(None);
        }
        let (is_alive, awaited) = (alive().next().is_some(), self.order.awaited());
        let cut = self.lanes.iter_mut().find_map(|lane| lane.end.take_if(|end| matches!(end, End::Unused(_))));
        match cut {
            Some(End::Unused(error)) => Err(error),
            _ if is_alive => Err(Error::malformed(format!("piece {awaited} is missing among those behind it"))),
            _ => Ok(Some(Turn::Closed)),
        }
    }

    /// What is there already, without waiting.
    fn ready(&mut self, inbox: &mut Inbox) -> Result<Option<Turn>> {
        self.catch_up()?;
        match self.deliver(inbox)? {
            Some(turn) => Ok(Some(turn)),
            None => self.outlook(),
        }
    }

    fn wait(&mut self, inbox: &mut Inbox, limit: Duration, stop: &AtomicBool) -> Result<Turn> {
        match self.heard.recv_timeout(limit) {
            Ok(told) => self.hear(told)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) if stop.load(Ordering::Relaxed) => {
                return Err(Error::interrupted());
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        Ok(self.deliver(inbox)?.unwrap_or_else(|| self.progress()))
    }

    /// What shows that lanes get on, though no piece is whole or has its turn.
    fn progress(&self) -> Turn {
        match self.shared.came.swap(0, Ordering::Relaxed) {
            0 if self.shared.paced.swap(false, Ordering::Relaxed) => Turn::Paced,
            0 => Turn::Nothing,
            bytes => Turn::Coming(bytes),
        }
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

/// A session's connection at the receiver, and what its lanes bring.
pub struct Inward {
    control: Tls,
    offer: Option<LaneOffer>,
    gather: Gather,
    stop: Arc<AtomicBool>,
}

impl Inward {
    /// A connection that offers lanes, whose pieces are gathered there. Waits end when `stop` is set.
    pub fn new(control: Tls, offer: Option<LaneOffer>, gather: Gather, stop: Arc<AtomicBool>) -> Inward {
        Inward { control, offer, gather, stop }
    }
}

impl Lanes for Inward {
    fn offer(&mut self) -> Option<LaneOffer> {
        self.offer
    }

    fn gather(&mut self, lanes: u32) -> Result<()> {
        self.gather.catch_up()?;
        if self.gather.spread || lanes == 0 || lanes as usize > self.gather.lanes.len() {
            let there = self.gather.lanes.len();
            return Err(Error::malformed(format!("the sender goes over to {lanes} further connections, of {there} that are there")));
        }
        self.gather.spread = true;
        Ok(())
    }
}

impl Transport for Inward {
    fn peer(&self) -> &str {
        self.control.peer()
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.control.outgoing()
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.control.send(buffer, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.control.flush()
    }

    fn pace(&mut self, pace: &Pace) {
        self.control.pace(pace);
    }

    fn has_room(&mut self) -> Result<bool> {
        self.control.has_room()
    }

    fn is_idle(&mut self) -> Result<bool> {
        self.control.is_idle()
    }

    fn is_flushed(&mut self) -> Result<bool> {
        self.control.is_flushed()
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        let inbox = match inbox {
            Some(inbox) if self.gather.spread => inbox,
            // The sender has gone over before its word of it is here: where lanes share a link with what lies before that
            // word, they may get all of it for a while.
            other => {
                return Ok(match self.control.turn(other, limit)? {
                    Turn::Nothing => self.gather.progress(),
                    turn => turn,
                });
            }
        };
        if let Some(turn) = self.gather.ready(inbox)? {
            return Ok(turn);
        }
        // Answers on their way are looked after, too. That they cannot go is told where one is to be sent: the peer's last words
        // may be on their way here.
        if self.control.is_flushed().unwrap_or(true) {
            return self.gather.wait(inbox, limit, &self.stop);
        }
        match self.gather.wait(inbox, LANE_LOOK, &self.stop)? {
            Turn::Nothing => self.control.turn(None, Duration::ZERO),
            other => Ok(other),
        }
    }

    fn lanes(&mut self) -> Option<&mut dyn Lanes> {
        Some(self)
    }
}
