//! The sender's end: lanes are opened while the pass goes on, and carry its buffers from then on.
//!
//! The buffers lie in one queue; the lane that is free first takes the next. A lane's thread makes its connection, since
//! a ring is used by one thread; that there are fewer lanes than were wanted, or none, is no failure.

use super::Lanes;
use crate::error::{Error, Kind, Result};
use crate::format::lane::{JOINED, Join, PieceHead};
use crate::format::stream::LaneOffer;
use crate::limits::{HANDSHAKE_TIMEOUT, LANE_LOOK, LANE_PIECES_SPARE, LANES_FROM_BYTES, LINGER, STOP_POLL, TRANSPORT_BUFFER_BYTES};
use crate::log;
use crate::ring::AlignedBuf;
use crate::transport::spare::Spare;
use crate::transport::tls::Tls;
use crate::transport::{Inbox, Pace, Transport, Turn};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Makes a further connection to the same receiver; the flag ends its waits.
pub type Open = Arc<dyn Fn(&Arc<AtomicBool>) -> Result<Tls> + Send + Sync>;

/// What the session's thread and those of its lanes share.
struct Fan {
    state: Mutex<State>,
    /// Lanes wait here for pieces.
    work: Condvar,
    /// The session waits here for lanes to get on.
    moved: Condvar,
    /// Ends every wait of a lane.
    over: Arc<AtomicBool>,
}

struct State {
    queue: VecDeque<(PieceHead, AlignedBuf)>,
    free: Spare,
    next: u64,
    /// Lanes that are neither open nor given up.
    opening: usize,
    open: usize,
    /// Why the last one that was given up was.
    why_not: String,
    /// Lanes that have something on its way.
    busy: usize,
    seen: Seen,
    failure: Option<(Kind, String)>,
}

/// What shows that lanes get on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Counts whatever shows that the receiver takes what is sent.
    moves: u64,
    /// Counts how often a limit of our own held a lane back.
    paced: u64,
}

impl State {
    fn check(&self) -> Result<()> {
        self.failure.as_ref().map_or(Ok(()), |(kind, message)| Err(Error::new(*kind, message.clone())))
    }

    fn is_flushed(&self) -> bool {
        self.queue.is_empty() && self.busy == 0
    }
}

impl Fan {
    fn new(lanes: usize) -> Fan {
        let state = State {
            queue: VecDeque::new(),
            free: Spare::new(lanes + LANE_PIECES_SPARE, TRANSPORT_BUFFER_BYTES),
            next: 0,
            opening: lanes,
            open: 0,
            why_not: String::new(),
            busy: 0,
            seen: Seen::default(),
            failure: None,
        };
        Fan { state: Mutex::new(state), work: Condvar::new(), moved: Condvar::new(), over: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One lane from its connection to its end.
    fn lane(&self, open: &Open, offer: &LaneOffer, pace: &Pace) {
        let _bug = Bug(self);
        let mut tls = match join(open, offer, &self.over) {
            Ok(tls) => tls,
            Err(error) => {
                let mut state = self.state();
                (state.opening, state.why_not) = (state.opening - 1, error.chain());
                return;
            }
        };
        tls.pace(pace);
        let mut state = self.state();
        (state.opening, state.open, state.busy) = (state.opening - 1, state.open + 1, state.busy + 1);
        drop(state);
        if let Err(error) = self.carry(&mut tls) {
            self.fail(error.kind(), error.chain());
        }
    }

    /// Sends piece after piece, until there is nothing more to send.
    fn carry(&self, tls: &mut Tls) -> Result<()> {
        while !self.is_over() {
            let piece = if tls.has_room()? { self.state().queue.pop_front() } else { None };
            if let Some((head, buffer)) = piece {
                let sent = tls.send_both(&head.encode(), &buffer[..head.bytes]);
                let mut state = self.state();
                state.free.put(buffer);
                state.seen.moves += 1;
                drop(state);
                self.moved.notify_all();
                sent?;
            } else if tls.is_flushed()? {
                self.rest();
            } else {
                let turn = tls.turn(None, LANE_LOOK)?;
                let mut state = self.state();
                match turn {
                    Turn::Sent => state.seen.moves += 1,
                    Turn::Paced => state.seen.paced += 1,
                    _ => continue,
                }
                drop(state);
                self.moved.notify_all();
            }
        }
        Ok(())
    }

    /// Waits for a piece, or for the end.
    fn rest(&self) {
        let mut state = self.state();
        state.busy -= 1;
        self.moved.notify_all();
        while state.queue.is_empty() && !self.is_over() {
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy += 1;
    }

    fn fail(&self, kind: Kind, message: String) {
        self.state().failure.get_or_insert((kind, message));
        self.moved.notify_all();
        // The others say goodbye: the receiver then ends the session, and says why if it knows.
        self.end();
    }

    /// Waits until lanes got on since `seen`, or one failed. What there is to see then, and whether all has left.
    fn wait(&self, seen: Seen, limit: Duration) -> (Seen, bool) {
        let state = self.state();
        let still = |state: &mut State| state.seen == seen && state.failure.is_none() && !state.is_flushed();
        let (state, _) = self.moved.wait_timeout_while(state, limit, still).unwrap_or_else(PoisonError::into_inner);
        (state.seen, state.is_flushed())
    }

    /// Whether something is on its way, and may arrive.
    fn is_at_work(&self) -> bool {
        let state = self.state();
        !state.is_flushed() && state.failure.is_none()
    }

    fn end(&self) {
        // Under the lock: a lane that is about to wait would miss it.
        let _state = self.state();
        self.over.store(true, Ordering::Relaxed);
        self.work.notify_all();
    }
}

/// A bug of ours that ends a lane's thread must not leave its session waiting.
struct Bug<'a>(&'a Fan);

impl Drop for Bug<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Kind::Failed, "the thread of a connection ended in a panic".to_owned());
        }
    }
}

/// Connects, shows the token and waits for the word that it is good.
fn join(open: &Open, offer: &LaneOffer, over: &Arc<AtomicBool>) -> Result<Tls> {
    let mut tls = open(over)?;
    tls.deadline().set(HANDSHAKE_TIMEOUT, "its word on a further connection");
    tls.send_both(&Join { token: offer.token }.encode(), &[])?;
    let mut answer = [0];
    loop {
        match tls.turn_into(&mut answer, STOP_POLL)? {
            Turn::Received(_) if answer == [JOINED] => break,
            Turn::Received(_) | Turn::Closed => {
                return Err(Error::new(Kind::Transient, format!("{} takes no further connection", tls.peer())));
            }
            _ => {}
        }
    }
    tls.deadline().clear();
    Ok(tls)
}

/// A session's connection at the sender, and the lanes beside it.
pub struct Outward {
    control: Tls,
    open: Open,
    wanted: usize,
    /// Whether somebody asked for them, who is told when there are fewer.
    told: bool,
    pace: Pace,
    stop: Arc<AtomicBool>,
    sent_bytes: u64,
    offer: Option<LaneOffer>,
    fan: Option<Arc<Fan>>,
    threads: Vec<JoinHandle<()>>,
    /// What is sent goes over the lanes.
    spread: bool,
    /// The other end was told, or is about to be.
    said: bool,
    seen: Seen,
    /// When what the receiver says was last looked at while lanes get on.
    looked: Instant,
    /// When the stop flag was first seen.
    stopped: Option<Instant>,
}

impl Outward {
    /// A connection beside which as many others are `wanted`; fewer than two are none. `told`: somebody
    /// asked for them, and is told when there are fewer. Waits end when `stop` is set.
    pub fn new(control: Tls, wanted: usize, told: bool, open: Open, stop: Arc<AtomicBool>) -> Outward {
        Outward {
            control,
            open,
            told,
            wanted: if wanted < 2 { 0 } else { wanted },
            pace: Pace::default(),
            stop,
            sent_bytes: 0,
            offer: None,
            fan: None,
            threads: Vec::new(),
            spread: false,
            said: false,
            seen: Seen::default(),
            looked: Instant::now(),
            stopped: None,
        }
    }

    /// The lanes, where what is sent goes over them.
    fn fan(&self) -> Option<&Fan> {
        self.fan.as_deref().filter(|_| self.spread)
    }

    fn word(&self, text: &str) {
        if self.told { log::warning(text) } else { log::debug(|| text) }
    }

    /// Starts to open lanes, where they are wanted and offered.
    fn start(&mut self) {
        let wanted = std::mem::take(&mut self.wanted);
        let Some(offer) = self.offer.filter(|offer| offer.most >= 2) else {
            self.word(&format!("{} takes one connection of a session only: {wanted} were asked for", self.control.peer()));
            return;
        };
        let lanes = wanted.min(offer.most as usize);
        if lanes < wanted {
            self.word(&format!("{} takes {lanes} connections of a session at most: {wanted} were asked for", self.control.peer()));
        }
        let fan = Arc::new(Fan::new(lanes));
        for number in 0..lanes {
            let (lanes, open, pace) = (Arc::clone(&fan), Arc::clone(&self.open), self.pace.clone());
            let spawned = std::thread::Builder::new().name(format!("lane {number}")).spawn(move || lanes.lane(&open, &offer, &pace));
            match spawned {
                Ok(thread) => self.threads.push(thread),
                Err(cause) => {
                    let mut state = fan.state();
                    (state.opening, state.why_not) = (state.opening - 1, cause.to_string());
                }
            }
        }
        self.fan = Some(fan);
    }
}

impl Lanes for Outward {
    fn offered(&mut self, offer: LaneOffer) -> Result<()> {
        self.offer = Some(offer);
        Ok(())
    }

    fn opened(&mut self) -> Option<u32> {
        if self.wanted > 0 && self.sent_bytes >= LANES_FROM_BYTES {
            self.start();
        }
        let fan = self.fan.as_ref().filter(|_| !self.said)?;
        let (opening, open, why_not) = {
            let state = fan.state();
            (state.opening, state.open, state.why_not.clone())
        };
        if opening > 0 {
            return None;
        }
        let peer = self.control.peer();
        if !why_not.is_empty() {
            self.word(&format!("{open} further connections to {peer} are open: {why_not}"));
            fan.state().why_not.clear();
        }
        if open < 2 {
            fan.end();
            self.fan = None;
            return None;
        }
        log::debug(|| format!("what is sent to {peer} goes over {open} connections from now on"));
        self.said = true;
        Some(open as u32)
    }

    fn spread(&mut self) -> Result<()> {
        self.spread = true;
        Ok(())
    }
}

impl Transport for Outward {
    fn peer(&self) -> &str {
        self.control.peer()
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        if self.fan().is_none() {
            return self.control.outgoing();
        }
        loop {
            if let Some(fan) = self.fan() {
                let mut state = fan.state();
                state.check()?;
                if let Some(buffer) = state.free.take()? {
                    return Ok(buffer);
                }
            }
            self.turn(None, STOP_POLL)?;
        }
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.sent_bytes += bytes as u64;
        let Some(fan) = self.fan() else { return self.control.send(buffer, bytes) };
        let mut state = fan.state();
        if let Err(lost) = state.check() {
            state.free.put(buffer);
            return Err(lost);
        }
        let head = PieceHead { number: state.next, bytes };
        state.next += 1;
        state.queue.push_back((head, buffer));
        drop(state);
        fan.work.notify_one();
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.fan().is_none() {
            return self.control.flush();
        }
        while !self.is_flushed()? {
            self.turn(None, STOP_POLL)?;
        }
        Ok(())
    }

    fn pace(&mut self, pace: &Pace) {
        self.pace = pace.clone();
        self.control.pace(pace);
    }

    fn has_room(&mut self) -> Result<bool> {
        let Some(fan) = self.fan() else { return self.control.has_room() };
        let state = fan.state();
        state.check()?;
        Ok(!state.free.is_empty())
    }

    fn is_idle(&mut self) -> Result<bool> {
        let Some(fan) = self.fan() else { return self.control.is_idle() };
        let state = fan.state();
        Ok(state.queue.is_empty() && state.busy < state.open)
    }

    fn is_flushed(&mut self) -> Result<bool> {
        let Some(fan) = self.fan() else { return self.control.is_flushed() };
        let state = fan.state();
        state.check()?;
        Ok(state.is_flushed())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        let seen = self.seen;
        let Some((now, is_flushed)) = self.fan().filter(|fan| fan.is_at_work()).map(|fan| fan.wait(seen, limit)) else {
            return self.control.turn(inbox, limit);
        };
        // Last words wait behind what is on its way: for lanes that get on, not for long, and for no limit of our own.
        if self.stop.load(Ordering::Relaxed) {
            let since = *self.stopped.get_or_insert_with(Instant::now);
            if !is_flushed && (now.moves == seen.moves || now.paced != seen.paced || since.elapsed() >= LINGER) {
                return Err(Error::interrupted());
            }
            self.seen = now;
            return Ok(Turn::Sent);
        }
        // What the receiver says meanwhile is heard: its pulses would fill the way for its last words.
        if now == seen || self.looked.elapsed() >= STOP_POLL {
            self.looked = Instant::now();
            let said = self.control.turn(inbox, Duration::ZERO)?;
            if now == seen || said != Turn::Nothing {
                return Ok(said);
            }
        }
        self.seen = now;
        Ok(if now.moves != seen.moves { Turn::Sent } else { Turn::Paced })
    }

    fn lanes(&mut self) -> Option<&mut dyn Lanes> {
        Some(self)
    }
}

impl Drop for Outward {
    fn drop(&mut self) {
        if let Some(fan) = &self.fan {
            fan.end();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
