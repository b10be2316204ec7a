//! A block device, or a file that stands for one, that we may read or write.
//!
//! The trait is the seam of the house: the line above runs the same over a raw device, over memory,
//! and over the simulated storage of the crash tests.

pub mod guard;
pub mod identity;
pub mod ram;
pub mod raw;
pub mod readonly;
pub mod scan;
pub mod shared;
mod stack;
pub mod writes;

pub use crate::ring::{Action, AlignedBuf, Completion, Pool, Request, Run};

use crate::error::{Context, Error, Kind, Result};
use std::ops::Range;

/// A device with its requests in flight.
pub trait Disk: Send {
    /// How messages call it: usually its path.
    fn name(&self) -> &str;

    /// Its size in bytes.
    fn bytes(&self) -> u64;

    /// Queues a request. What goes wrong with the transfer comes with its completion.
    fn submit(&mut self, request: Request) -> Result<()>;

    /// The next completion; waits for it. `None`: nothing is in flight.
    fn wait(&mut self) -> Result<Option<Completion>>;

    /// The first range at or after `from` that may hold something else than zeros; `None`: only
    /// zeros are left. Devices that cannot tell give all that is left.
    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>>;

    /// Makes a file longer or shorter. Devices refuse.
    fn resize(&mut self, bytes: u64) -> Result<()>;

    /// Whether a range is zeroed without writing it. Where it is not, as on thin volumes, zeros cost time and
    /// room, and it pays to look first whether they are there.
    fn zeroes_cheaply(&self) -> bool {
        true
    }
}

/// Runs one request on a disk with nothing else in flight, and waits for it.
pub fn perform(disk: &mut dyn Disk, action: Action) -> Result<Option<AlignedBuf>> {
    disk.submit(Request { token: 0, action })?;
    let done = disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a request vanished"))?;
    let name = disk.name();
    done.result.context(Kind::Storage, || format!("i/o on {name}"))?;
    Ok(done.buffer)
}

/// Reads `bytes` at `offset` into the front of the buffer, and waits for it.
pub fn read(disk: &mut dyn Disk, buffer: AlignedBuf, offset: u64, bytes: usize) -> Result<AlignedBuf> {
    let name = disk.name().to_owned();
    disk.submit(Request { token: 0, action: Action::Read(buffer, vec![Run { at: 0, offset, bytes }]) })?;
    let done = disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a request vanished"))?;
    done.result.context(Kind::Storage, || format!("read {bytes} bytes at {offset:#x} of {name}"))?;
    done.buffer.ok_or_else(|| Error::new(Kind::Failed, "a read came back without its buffer"))
}

/// Makes every completed write durable. A failure is final: what was written since the last
/// successful flush counts as lost, whatever a second flush would say (the kernel reports a lost
/// write only once).
pub fn flush(disk: &mut dyn Disk) -> Result<()> {
    let name = disk.name().to_owned();
    disk.submit(Request { token: 0, action: Action::Flush })?;
    let done = disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a request vanished"))?;
    done.result.context(Kind::Storage, || format!("flush {name}"))?;
    Ok(())
}
