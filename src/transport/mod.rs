//! An authenticated stream of bytes to the peer, both ways.
//!
//! Order and integrity in transit are the stream's business; what the bytes mean is not. A sender
//! hands over filled buffers and waits only when all of them are on their way: that is the
//! back-pressure of a slow link.

mod inbox;
pub mod lanes;
pub mod memory;
pub mod pace;
mod patience;
mod spare;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod wire;

pub use inbox::Inbox;
pub use lanes::Lanes;
pub use pace::Pace;
pub use wire::Wire;

use crate::error::Result;
use crate::limits::{CONNECT_TIMEOUT, STALL_TIMEOUT, STOP_POLL};
use crate::ring::AlignedBuf;
use std::time::Duration;

/// What a connection to another host is held to.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long the peer may go without progress.
    pub stall: Duration,
    /// How fast bytes may move.
    pub pace: Pace,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms { connect: CONNECT_TIMEOUT, stall: STALL_TIMEOUT, pace: Pace::default() }
    }
}

/// What one turn of waiting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something came and lies in the inbox: so many bytes more than were told of.
    Received(usize),
    /// So many bytes came of something that is not whole enough yet to lie there.
    Coming(usize),
    /// The peer closed its end.
    Closed,
    /// The peer's side took some of what was sent.
    Sent,
    /// A limit of our own held bytes back, which says nothing of the peer.
    Paced,
    /// The turn is over, or what happened is the transport's own business.
    Nothing,
}

/// One end of a connection.
pub trait Transport: Send {
    /// How messages call the other end.
    fn peer(&self) -> &str;

    /// An empty buffer to fill; waits while all of them are on their way.
    fn outgoing(&mut self) -> Result<AlignedBuf>;

    /// Sends the first `bytes` bytes of a buffer that `outgoing` gave. Buffers arrive in order.
    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()>;

    /// Waits until everything sent has left this process.
    fn flush(&mut self) -> Result<()>;

    /// Waits for bytes from the peer and adds them to the inbox. `false`: the peer closed its end.
    fn receive(&mut self, inbox: &mut Inbox) -> Result<bool> {
        loop {
            match self.turn(Some(inbox), STOP_POLL)? {
                Turn::Received(_) => return Ok(true),
                Turn::Closed => return Ok(false),
                Turn::Coming(_) | Turn::Sent | Turn::Paced | Turn::Nothing => {}
            }
        }
    }

    /// From now on bytes move no faster than this. Within one process they move as they like.
    fn pace(&mut self, _: &Pace) {}

    /// Whether `outgoing` and `send` go through without waiting for the peer. A transport that never looks
    /// at the clock says yes and waits where it has to.
    fn has_room(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Whether nothing sent before holds up what is sent now. A transport that cannot tell says no.
    fn is_idle(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Whether everything sent has left this process.
    fn is_flushed(&mut self) -> Result<bool> {
        self.flush().map(|()| true)
    }

    /// Waits for what was sent to go on and, where there is an inbox, for bytes from the peer: for no longer than
    /// `limit`, `STOP_POLL` at most, where the transport looks at the clock at all.
    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn>;

    /// The same transport as one that can have further connections, where it can.
    fn lanes(&mut self) -> Option<&mut dyn Lanes> {
        None
    }
}
