//! Received bytes that are not yet understood: one contiguous buffer, so that a frame is always a slice.

use crate::error::{Context, Kind, Result};
use crate::ring::AlignedBuf;

/// A window into one buffer: `start..end` is received and unread.
#[derive(Debug)]
pub struct Inbox {
    buffer: Option<AlignedBuf>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// An inbox that holds at least `bytes`.
    pub fn new(bytes: usize) -> Result<Inbox> {
        let buffer = AlignedBuf::new(bytes).context(Kind::Failed, || format!("allocate {bytes} bytes to receive into"))?;
        Ok(Inbox { buffer: Some(buffer), start: 0, end: 0 })
    }

    /// What is received and unread.
    pub fn unread(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// Marks the first `bytes` unread bytes as read.
    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.end, "only unread bytes can be consumed");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Makes sure that `bytes` unread bytes can lie in one piece, moving or growing as needed.
    pub fn reserve(&mut self, bytes: usize) -> Result<()> {
        let capacity = self.buffer.as_deref().map_or(0, <[u8]>::len);
        if self.start + bytes <= capacity {
            return Ok(());
        }
        if bytes > capacity {
            let mut larger = AlignedBuf::new(bytes).context(Kind::Failed, || format!("allocate {bytes} bytes to receive into"))?;
            larger[..self.end - self.start].copy_from_slice(self.unread());
            self.buffer = Some(larger);
        } else if let Some(buffer) = self.buffer.as_deref_mut() {
            buffer.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, self.end - self.start);
        Ok(())
    }

    /// Free bytes behind the unread ones.
    pub fn room(&self) -> usize {
        self.buffer.as_deref().map_or(0, <[u8]>::len) - self.end
    }

    /// Adds bytes by copying; makes room as needed.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.reserve(self.end - self.start + bytes.len())?;
        let end = self.end;
        if let Some(buffer) = self.buffer.as_deref_mut() {
            buffer[end..end + bytes.len()].copy_from_slice(bytes);
        }
        self.end += bytes.len();
        Ok(())
    }

    /// Takes a whole buffer over, whose first `bytes` bytes came, and gives a free one back. Where nothing is unread, no byte is
    /// copied.
    pub fn exchange(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<Option<AlignedBuf>> {
        if !self.unread().is_empty() {
            self.append(&buffer[..bytes])?;
            return Ok(Some(buffer));
        }
        (self.start, self.end) = (0, bytes);
        Ok(self.buffer.replace(buffer))
    }

    /// Whether its own buffer is larger than this one.
    pub fn is_larger_than(&self, buffer: &AlignedBuf) -> bool {
        self.buffer.as_deref().map_or(0, <[u8]>::len) > buffer.len()
    }

    /// Lends the buffer to an engine that receives behind the unread bytes; `(buffer, where to)`.
    pub fn lend(&mut self) -> Option<(AlignedBuf, usize)> {
        self.buffer.take().map(|buffer| (buffer, self.end))
    }

    /// Whether an engine has the buffer: nothing can be seen or added until it comes back.
    pub fn is_lent(&self) -> bool {
        self.buffer.is_none()
    }

    /// Takes the buffer back with `bytes` more in it.
    pub fn give_back(&mut self, buffer: AlignedBuf, bytes: usize) {
        self.buffer = Some(buffer);
        self.end += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_bytes_survive_moving_and_growing() {
        let mut inbox = Inbox::new(4096).unwrap();
        inbox.append(&[1; 3000]).unwrap();
        inbox.consume(2000);
        inbox.append(&[2; 3000]).unwrap();
        assert_eq!(inbox.unread()[..1000], [1; 1000]);
        inbox.append(&[3; 9000]).unwrap();
        assert_eq!(inbox.unread().len(), 13_000);
        assert_eq!(inbox.unread()[999..1001], [1, 2]);
        inbox.consume(13_000);
        assert!(inbox.unread().is_empty());
    }
}
