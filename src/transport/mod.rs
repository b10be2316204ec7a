//! An authenticated stream of bytes to the peer, both ways.
//!
//! Order and integrity in transit are the stream's business; what the bytes mean is not. A sender
//! hands over filled buffers and waits only when all of them are on their way: that is the
//! back-pressure of a slow link.

mod inbox;
pub mod memory;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod wire;

pub use inbox::Inbox;
pub use wire::Wire;

use crate::error::Result;
use crate::ring::AlignedBuf;

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
    fn receive(&mut self, inbox: &mut Inbox) -> Result<bool>;
}
