//! Where a shard's frames go: a wire of its own, or one that all shards of a pass put their frames on.
//!
//! A frame says where its extents belong, so the frames of several shards may lie on the wire in any order. One on its
//! own packs straight into the wire's buffer. Of several, one has the wire; the others pack in memory of their own,
//! which is the work, and hand over what came of it: a few frames each, then they wait. That is the back-pressure.

use crate::error::{Error, Kind, Result};
use crate::format::stream::{Message, encode};
use crate::limits::{SHARD_FRAMES_WAITING, STOP_POLL};
use crate::progress::Witness;
use crate::transport::Wire;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Takes frames.
pub trait Outlet {
    /// Takes one frame: `fill` makes it in a room of at least `bound` bytes and says how long it became.
    fn frame(&mut self, bound: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<()>;

    /// Takes a small frame.
    fn put(&mut self, message: &Message) -> Result<()>;

    /// So much of the volume is done: the peer may have to be told that we are at work.
    fn worked(&mut self, bytes: u64) -> Result<()>;

    /// How long frames waited for room.
    fn waited(&self) -> Duration;

    /// Bytes that were put through here.
    fn sent_bytes(&self) -> u64;
}

impl Outlet for Wire {
    fn frame(&mut self, bound: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        let bytes = fill(self.room(bound)?)?;
        self.filled(bytes)?;
        // A proof takes reads: the receiver begins with it while the scan goes on.
        self.push_if_idle()
    }

    fn put(&mut self, message: &Message) -> Result<()> {
        Wire::put(self, message)
    }

    fn worked(&mut self, bytes: u64) -> Result<()> {
        Witness::worked(self, bytes)
    }

    fn waited(&self) -> Duration {
        Wire::waited(self)
    }

    fn sent_bytes(&self) -> u64 {
        Wire::sent_bytes(self)
    }
}

/// Where shards on other threads lay their frames for the one that has the wire.
pub struct Relay {
    /// Memory of frames that are on the wire by now.
    spare: Mutex<Vec<Vec<u8>>>,
    /// Work that the peer was not told of yet.
    worked: AtomicU64,
}

/// A frame on its way to the wire, and how much of it is the frame.
type Parcel = (Vec<u8>, usize);

/// The end that has the wire, and the one to make the others from.
pub fn relay<'a>(relay: &'a Relay, wire: &'a mut Wire, shards: usize) -> (Collector<'a>, Handed<'a>) {
    let (to, from) = sync_channel(shards * SHARD_FRAMES_WAITING);
    (Collector { relay, wire, from }, Handed { relay, to, sent_bytes: 0, waited: Duration::ZERO })
}

impl Relay {
    /// Nothing is on its way.
    pub fn new() -> Relay {
        Relay { spare: Mutex::default(), worked: AtomicU64::new(0) }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outlet of the shard that has the wire: it puts the others' frames on it between its own. Only this thread may:
/// what a thread submitted to a ring, the kernel takes back when the thread ends.
pub struct Collector<'a> {
    relay: &'a Relay,
    wire: &'a mut Wire,
    from: Receiver<Parcel>,
}

impl Collector<'_> {
    fn take(&mut self, (frame, bytes): Parcel) -> Result<()> {
        self.wire.put_bytes(&frame[..bytes])?;
        self.relay.spare().push(frame);
        self.wire.push_if_idle()
    }

    fn take_waiting(&mut self) -> Result<()> {
        while let Ok(parcel) = self.from.try_recv() {
            self.take(parcel)?;
        }
        Ok(())
    }

    /// Takes what the others still lay down, until the last of them is done.
    pub fn finish(mut self) -> Result<()> {
        loop {
            match self.from.recv_timeout(STOP_POLL) {
                Ok(parcel) => self.take(parcel)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.worked(0)?;
        }
    }
}

impl Outlet for Collector<'_> {
    fn frame(&mut self, bound: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        self.take_waiting()?;
        Outlet::frame(self.wire, bound, fill)
    }

    fn put(&mut self, message: &Message) -> Result<()> {
        self.wire.put(message)
    }

    fn worked(&mut self, bytes: u64) -> Result<()> {
        self.take_waiting()?;
        match bytes + self.relay.worked.swap(0, Relaxed) {
            0 => Ok(()),
            worked => Witness::worked(self.wire, worked),
        }
    }

    fn waited(&self) -> Duration {
        self.wire.waited()
    }

    fn sent_bytes(&self) -> u64 {
        self.wire.sent_bytes()
    }
}

/// The outlet of another shard.
#[derive(Clone)]
pub struct Handed<'a> {
    relay: &'a Relay,
    to: SyncSender<Parcel>,
    sent_bytes: u64,
    waited: Duration,
}

impl Handed<'_> {
    fn hand(&mut self, frame: Vec<u8>, bytes: usize) -> Result<()> {
        let begun = Instant::now();
        let handed = self.to.send((frame, bytes));
        self.waited += begun.elapsed();
        self.sent_bytes += bytes as u64;
        handed.map_err(|_| Error::new(Kind::Failed, "the shard that has the wire is gone"))
    }
}

impl Outlet for Handed<'_> {
    fn frame(&mut self, bound: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        let mut frame = self.relay.spare().pop().unwrap_or_default();
        if frame.len() < bound {
            frame.resize(bound, 0);
        }
        let bytes = fill(&mut frame)?;
        self.hand(frame, bytes)
    }

    fn put(&mut self, message: &Message) -> Result<()> {
        let frame = encode(message);
        let bytes = frame.len();
        self.hand(frame, bytes)
    }

    fn worked(&mut self, bytes: u64) -> Result<()> {
        self.relay.worked.fetch_add(bytes, Relaxed);
        Ok(())
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }
}
