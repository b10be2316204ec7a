//! One stream of bytes over several connections.
//!
//! A session begins on one connection. What a sender has to say may be more than that one carries: a long link whose
//! window is lost with each packet, a fast one whose encryption takes a core. So the receiver offers lanes, further
//! connections that show the session's token, and the sender opens some while it goes on. When they are open it says
//! Spread, and from there on its buffers travel as numbered pieces, each on the lane that is free first, and the receiver
//! takes them in the order of their numbers. Answers stay on the first connection.
//!
//! Above, nothing changes: the frames, their order, the proof and the commit are what they are on one connection. A lane
//! that dies ends the session as a cut does. Each lane is a thread with a ring and a TLS state of its own, and holds no
//! more than a few buffers: the back-pressure of a slow link is that of its slowest lane.

mod inward;
mod order;
mod outward;

pub use inward::{Gather, Inward, Seat, Seats, gathering, joined};
pub use outward::{Open, Outward};

use super::wire::unexpected;
use crate::error::{Error, Kind, Result};
use crate::format::stream::{FrameKind, LaneOffer};
use crate::limits::LANES_MAX;
use crate::settings::Several;

/// How many connections carry what a session sends.
pub type Connections = Several<LANES_MAX>;

/// What a transport does when the frames speak of lanes. Each end has its half; the other half is a peer's mistake.
pub trait Lanes {
    /// What the sender may be offered, if anything.
    fn offer(&mut self) -> Option<LaneOffer> {
        None
    }

    /// The receiver offers lanes.
    fn offered(&mut self, _: LaneOffer) -> Result<()> {
        Err(unexpected(FrameKind::Lanes))
    }

    /// Whether lanes are open that are not used yet, and how many.
    fn opened(&mut self) -> Option<u32> {
        None
    }

    /// What is sent from now on goes over those. All that was sent before has left.
    fn spread(&mut self) -> Result<()> {
        Err(Error::new(Kind::Failed, "there are no lanes to send over"))
    }

    /// What comes from now on comes over so many lanes.
    fn gather(&mut self, _: u32) -> Result<()> {
        Err(unexpected(FrameKind::Spread))
    }
}
