//! Two ends in one process: a local clone. Filled buffers change owner; nothing is copied.

use super::{Inbox, Transport, Turn};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{STOP_POLL, TRANSPORT_BUFFER_BYTES, TRANSPORT_BUFFERS};
use crate::ring::AlignedBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

/// One end of an in-process connection.
pub struct Memory {
    peer: String,
    full_out: Sender<(AlignedBuf, usize)>,
    empty_back: Receiver<AlignedBuf>,
    full_in: Receiver<(AlignedBuf, usize)>,
    empty_out: Sender<AlignedBuf>,
    stop: Arc<AtomicBool>,
}

/// Two connected ends. Both give up waiting when `stop` is set.
pub fn pair(stop: &Arc<AtomicBool>) -> Result<(Memory, Memory)> {
    let (a_full, b_in) = channel();
    let (b_full, a_in) = channel();
    let (a_empty, a_back) = empties()?;
    let (b_empty, b_back) = empties()?;
    let a =
        Memory { peer: "the receiver".into(), full_out: a_full, empty_back: a_back, full_in: a_in, empty_out: b_empty, stop: stop.clone() };
    let b =
        Memory { peer: "the sender".into(), full_out: b_full, empty_back: b_back, full_in: b_in, empty_out: a_empty, stop: stop.clone() };
    Ok((a, b))
}

/// The channel that brings one end's buffers back, with all of them in it.
fn empties() -> Result<(Sender<AlignedBuf>, Receiver<AlignedBuf>)> {
    let (sender, receiver) = channel();
    for _ in 0..TRANSPORT_BUFFERS {
        let buffer = AlignedBuf::new(TRANSPORT_BUFFER_BYTES).context(Kind::Failed, || "allocate transport buffers")?;
        let _ = sender.send(buffer);
    }
    Ok((sender, receiver))
}

impl Memory {
    fn gone(&self) -> Error {
        Error::new(Kind::Transient, format!("{} is gone", self.peer))
    }

    /// Waits on a channel; the other end's death and the stop flag end the wait.
    fn take<T>(&self, channel: &Receiver<T>) -> Result<Option<T>> {
        loop {
            match channel.recv_timeout(STOP_POLL) {
                Ok(item) => return Ok(Some(item)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => return Err(super::stream::interrupted()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Transport for Memory {
    fn peer(&self) -> &str {
        &self.peer
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.take(&self.empty_back)?.ok_or_else(|| self.gone())
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.full_out.send((buffer, bytes)).map_err(|_| self.gone())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>) -> Result<Turn> {
        let Some(inbox) = inbox else { return Ok(Turn::Nothing) };
        let Some((buffer, bytes)) = self.take(&self.full_in)? else { return Ok(Turn::Closed) };
        let spare = if inbox.unread().is_empty() {
            inbox.swap(buffer, bytes)
        } else {
            inbox.append(&buffer[..bytes])?;
            Some(buffer)
        };
        // The peer may have finished: its empties have no taker then.
        if let Some(spare) = spare {
            let _ = self.empty_out.send(spare);
        }
        Ok(Turn::Received(bytes))
    }
}
