//! Buffers of a connection. Each is made when it is first needed and lies alone: a receiver, which answers with a
//! few bytes, keeps a few pages, where one arena for all of them would be a huge page from its first byte on.

use crate::error::{Context, Kind, Result};
use crate::ring::AlignedBuf;

/// Those that are free, and how many may still be made.
#[derive(Debug)]
pub struct Spare {
    free: Vec<AlignedBuf>,
    unmade: usize,
    buffer_bytes: usize,
}

impl Spare {
    /// So many buffers of this size, none of them made.
    pub fn new(count: usize, buffer_bytes: usize) -> Spare {
        Spare { free: Vec::new(), unmade: count, buffer_bytes }
    }

    /// Whether all are out.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty() && self.unmade == 0
    }

    /// A free one, if there is one; the one that was used last goes first.
    pub fn take(&mut self) -> Result<Option<AlignedBuf>> {
        if self.free.is_empty() && self.unmade > 0 {
            let made = AlignedBuf::new(self.buffer_bytes).context(Kind::Failed, || "allocate transport buffers")?;
            self.unmade -= 1;
            return Ok(Some(made));
        }
        Ok(self.free.pop())
    }

    /// Gives one back.
    pub fn put(&mut self, buffer: AlignedBuf) {
        self.free.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_back_goes_before_one_that_is_not_made() {
        let mut spare = Spare::new(3, 4096);
        let mut first = spare.take().unwrap().unwrap();
        first[0] = 7;
        spare.put(first);
        assert_eq!(spare.take().unwrap().unwrap()[0], 7);
        assert_eq!(std::iter::from_fn(|| spare.take().unwrap()).count(), 2);
        assert!(spare.is_empty());
    }
}
