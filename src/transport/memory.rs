//! Two ends in one process: a local clone. Filled buffers change owner; nothing is copied.

use super::{Inbox, Transport, Turn};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{STOP_POLL, TRANSPORT_BUFFER_BYTES, TRANSPORT_BUFFERS};
use crate::ring::AlignedBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// One end of an in-process connection.
pub struct Memory {
    peer: String,
    free: Vec<AlignedBuf>,
    /// Buffers that the peer has not taken yet.
    on_their_way: usize,
    full_out: Sender<(AlignedBuf, usize)>,
    empty_back: Receiver<AlignedBuf>,
    full_in: Receiver<(AlignedBuf, usize)>,
    empty_out: Sender<AlignedBuf>,
    stop: Arc<AtomicBool>,
}

/// Two connected ends. Both give up waiting when `stop` is set.
pub fn pair(stop: &Arc<AtomicBool>) -> Result<(Memory, Memory)> {
    let ((a_full, b_in), (b_full, a_in)) = (channel(), channel());
    let ((a_empty, a_back), (b_empty, b_back)) = (channel(), channel());
    Ok((
        Memory::end("the receiver", (a_full, a_in), (b_empty, a_back), stop)?,
        Memory::end("the sender", (b_full, b_in), (a_empty, b_back), stop)?,
    ))
}

type Buffers<T> = (Sender<T>, Receiver<T>);

impl Memory {
    fn end(peer: &str, full: Buffers<(AlignedBuf, usize)>, empty: Buffers<AlignedBuf>, stop: &Arc<AtomicBool>) -> Result<Memory> {
        let buffer = |_| AlignedBuf::new(TRANSPORT_BUFFER_BYTES).context(Kind::Failed, || "allocate transport buffers");
        let free = (0..TRANSPORT_BUFFERS).map(buffer).collect::<Result<_>>()?;
        let ((full_out, full_in), (empty_out, empty_back)) = (full, empty);
        Ok(Memory { peer: peer.into(), free, on_their_way: 0, full_out, empty_back, full_in, empty_out, stop: stop.clone() })
    }

    fn gone(&self) -> Error {
        Error::new(Kind::Transient, format!("{} is gone", self.peer))
    }

    /// Waits on a channel; the other end's death and the stop flag end the wait.
    fn take<T>(&self, channel: &Receiver<T>) -> Result<Option<T>> {
        loop {
            match channel.recv_timeout(STOP_POLL) {
                Ok(item) => return Ok(Some(item)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => return Err(Error::interrupted()),
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
        if let Some(buffer) = self.free.pop() {
            return Ok(buffer);
        }
        let back = self.take(&self.empty_back)?.ok_or_else(|| self.gone())?;
        self.on_their_way -= 1;
        Ok(back)
    }

    fn is_idle(&mut self) -> Result<bool> {
        while let Ok(back) = self.empty_back.try_recv() {
            self.free.push(back);
            self.on_their_way -= 1;
        }
        Ok(self.on_their_way == 0)
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.on_their_way += 1;
        self.full_out.send((buffer, bytes)).map_err(|_| self.gone())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, _: Duration) -> Result<Turn> {
        let Some(inbox) = inbox else { return Ok(Turn::Nothing) };
        let Some((buffer, bytes)) = self.take(&self.full_in)? else { return Ok(Turn::Closed) };
        let spare = inbox.exchange(buffer, bytes)?;
        // The peer may have finished: its empties have no taker then.
        if let Some(spare) = spare {
            let _ = self.empty_out.send(spare);
        }
        Ok(Turn::Received(bytes))
    }
}
