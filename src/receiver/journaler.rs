//! The journal: proven frames are appended and synced now and then; a walk reads them back.
//!
//! Bytes that were synced are never written again (each sync pads to 4 KiB), so that a torn write can
//! only hurt what was not promised yet.

use crate::disk::{Action, AlignedBuf, Disk, Pool, Request, Run};
use crate::error::{Context, Error, Kind, Result};
use crate::format::journal::{ALIGN_BYTES, Belongs, Chain, Item, align, item};
use crate::format::stream::{self, Frame, FrameKind, HEADER_BYTES, Header, Message, Seal};
use crate::limits::CHUNK_BYTES;
use crate::transport::Inbox;

/// Buffers of a journal writer: what is in flight is a journal's whole stream, and below a huge page together.
const BUFFERS: usize = 3;
/// Bytes of each.
const BUFFER_BYTES: usize = CHUNK_BYTES / 2;
/// Room of a walk for what it read: one read, behind the front of a frame of the usual size.
const WALK_BYTES: usize = CHUNK_BYTES + CHUNK_BYTES / 2;

/// Appends to a journal.
pub struct Journaler {
    disk: Box<dyn Disk>,
    pool: Pool,
    buffer: Option<AlignedBuf>,
    /// Bytes in the buffer that are not written yet.
    filled: usize,
    /// Where the buffer begins in the file.
    at: u64,
    in_flight: usize,
    synced: u64,
    chain: Chain,
}

impl Journaler {
    /// Begins a journal on an empty file. Nothing of it is durable before the first checkpoint.
    pub fn create(disk: Box<dyn Disk>, belongs: &Belongs) -> Result<Journaler> {
        let mut journal = Journaler::at(disk, 0, Chain::default())?;
        journal.append_bytes(&belongs.encode())?;
        journal.write_out()?;
        Ok(journal)
    }

    /// Goes on behind what a walk found; what lies after `end` is cut off first. Frames that no sync padded
    /// may have the front of the next one behind them in their last 4 KiB: it would be taken for a frame
    /// when the journal is walked again, so it becomes padding.
    pub fn resume(mut disk: Box<dyn Disk>, end: u64, chain: Chain) -> Result<Journaler> {
        disk.resize(align(end))?;
        let begun = end % ALIGN_BYTES as u64;
        if begun > 0 {
            let last = end - begun;
            let buffer = AlignedBuf::new(ALIGN_BYTES).context(Kind::Failed, || "allocate a journal buffer")?;
            let mut buffer = crate::disk::read(&mut *disk, buffer, last, ALIGN_BYTES)?;
            buffer[begun as usize..ALIGN_BYTES].fill(0);
            crate::disk::perform(&mut *disk, Action::Write(buffer, vec![Run { at: 0, offset: last, bytes: ALIGN_BYTES }]))?;
        }
        crate::disk::flush(&mut *disk)?;
        // From here on a crash cannot bring the cut tail back behind new frames.
        Journaler::at(disk, align(end), chain)
    }

    fn at(disk: Box<dyn Disk>, at: u64, chain: Chain) -> Result<Journaler> {
        let pool = Pool::new(BUFFERS, BUFFER_BYTES).context(Kind::Failed, || "allocate journal buffers")?;
        Ok(Journaler { disk, pool, buffer: None, filled: 0, at, in_flight: 0, synced: at, chain })
    }

    /// Bytes so far, padding included.
    pub fn bytes(&self) -> u64 {
        self.at + self.filled as u64
    }

    /// Bytes that a crash now would cost.
    pub fn unsynced(&self) -> u64 {
        self.bytes() - self.synced
    }

    /// Appends a proven frame.
    pub fn append(&mut self, header: &Header, frame: &[u8]) -> Result<()> {
        self.append_bytes(frame)?;
        self.chain.add(header);
        Ok(())
    }

    fn append_bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut buffer = self.take_buffer()?;
            let room = buffer.len() - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == buffer.len() {
                self.write(buffer)?;
            } else {
                self.buffer = Some(buffer);
            }
        }
        Ok(())
    }

    fn take_buffer(&mut self) -> Result<AlignedBuf> {
        if let Some(buffer) = self.buffer.take() {
            return Ok(buffer);
        }
        loop {
            match self.pool.take() {
                Some(buffer) => return Ok(buffer),
                None => self.reap()?,
            }
        }
    }

    fn write(&mut self, buffer: AlignedBuf) -> Result<()> {
        let run = Run { at: 0, offset: self.at, bytes: self.filled };
        self.at += self.filled as u64;
        if self.disk.bytes() < self.at {
            self.disk.resize(self.at)?;
        }
        self.filled = 0;
        self.in_flight += 1;
        self.disk.submit(Request { token: self.at, action: Action::Write(buffer, vec![run]) })
    }

    fn reap(&mut self) -> Result<()> {
        let done = self.disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a journal write vanished"))?;
        self.in_flight -= 1;
        if let Some(buffer) = done.buffer {
            self.pool.put(buffer);
        }
        let name = self.disk.name();
        let advice = "the replica is untouched; make room there, or see how much a run would send with --dry-run";
        done.result.context(Kind::Storage, || format!("write the journal {name} at {} bytes ({advice})", self.at))?;
        Ok(())
    }

    /// Pads and writes what is gathered, and waits for it.
    fn write_out(&mut self) -> Result<()> {
        if let Some(mut buffer) = self.buffer.take() {
            let padded = self.filled.next_multiple_of(ALIGN_BYTES);
            buffer[self.filled..padded].fill(0);
            self.filled = padded;
            self.write(buffer)?;
        }
        while self.in_flight > 0 {
            self.reap()?;
        }
        Ok(())
    }

    /// Pads, writes and syncs. From here on a crash keeps every frame appended so far, once the journal's name is
    /// durable.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.write_out()?;
        if let Err(error) = crate::disk::flush(&mut *self.disk) {
            // A second sync would prove nothing: the kernel reports a lost write once. The journal is given
            // up, so that the next attempt stages the delta anew instead of going on behind it.
            let _ = self.disk.resize(0);
            return Err(error);
        }
        self.synced = self.at;
        Ok(())
    }

    /// Ends the journal: all of the delta is in it. Durable when this returns; gives the file back to be
    /// read.
    pub fn seal(mut self, mut seal: Seal) -> Result<Box<dyn Disk>> {
        (seal.frames, seal.chain) = (self.chain.frames, self.chain.value);
        self.append_bytes(&stream::encode(&Message::Seal(seal)))?;
        self.checkpoint()?;
        Ok(self.disk)
    }
}

/// Where a walk over a journal stands.
pub struct Walk {
    disk: Box<dyn Disk>,
    spare: Option<AlignedBuf>,
    inbox: Inbox,
    /// Position of the first unread byte in the file.
    at: u64,
    /// Position up to which the file was read.
    read: u64,
    /// End of the last good frame.
    end: u64,
    chain: Chain,
}

impl Walk {
    /// Reads the header of a journal.
    pub fn open(mut disk: Box<dyn Disk>) -> Result<(Belongs, Walk)> {
        if disk.bytes() < ALIGN_BYTES as u64 {
            return Err(Error::malformed("the journal ends within its header"));
        }
        let buffer = AlignedBuf::new(CHUNK_BYTES).context(Kind::Failed, || "allocate a journal buffer")?;
        let buffer = crate::disk::read(&mut *disk, buffer, 0, ALIGN_BYTES)?;
        let belongs = Belongs::decode(&buffer)?;
        let at = ALIGN_BYTES as u64;
        let walk = Walk { disk, spare: Some(buffer), inbox: Inbox::new(WALK_BYTES)?, at, read: at, end: at, chain: Chain::default() };
        Ok((belongs, walk))
    }

    /// The next frame. `None`: the file ends here in good order. An error of kind `Failed`: damage, or
    /// the torn tail of a journal that was not synced.
    pub fn next_frame(&mut self) -> Result<Option<Header>> {
        loop {
            match item(self.inbox.unread()) {
                Ok(Some(Item::Padding)) => self.skip_padding()?,
                Ok(Some(Item::Frame(header))) => {
                    while self.inbox.unread().len() < header.frame_bytes() {
                        if !self.read_more()? {
                            return Err(self.damaged("it ends within a frame"));
                        }
                    }
                    return Ok(Some(header));
                }
                Ok(None) if self.read_more()? => {}
                Ok(None) if self.inbox.unread().is_empty() => return Ok(None),
                Ok(None) => return Err(self.damaged("it ends within a frame's header")),
                Err(error) => return Err(self.damaged(&error.chain())),
            }
        }
    }

    fn damaged(&self, how: &str) -> Error {
        Error::malformed(format!("the journal {} is damaged at byte {}: {how}", self.disk.name(), self.at))
    }

    fn skip_padding(&mut self) -> Result<()> {
        let next = align(self.at + 1);
        while self.at < next {
            let skip = ((next - self.at) as usize).min(self.inbox.unread().len());
            if self.inbox.unread()[..skip].iter().any(|byte| *byte != 0) {
                return Err(self.damaged("its padding is not zero"));
            }
            self.inbox.consume(skip);
            self.at += skip as u64;
            if self.at < next && !self.read_more()? {
                break;
            }
        }
        Ok(())
    }

    fn read_more(&mut self) -> Result<bool> {
        let bytes = (self.disk.bytes().saturating_sub(self.read)).min(CHUNK_BYTES as u64) as usize;
        let Some(buffer) = self.spare.take().filter(|_| bytes > 0) else { return Ok(false) };
        let buffer = crate::disk::read(&mut *self.disk, buffer, self.read, bytes)?;
        self.inbox.append(&buffer[..bytes])?;
        self.read += bytes as u64;
        self.spare = Some(buffer);
        Ok(true)
    }

    /// The frame that `next_frame` announced.
    pub fn frame(&self, header: &Header) -> Result<Frame<'_>> {
        stream::decode(header, &self.inbox.unread()[HEADER_BYTES..header.frame_bytes()]).map_err(|error| self.damaged(&error.chain()))
    }

    /// The frame that `next_frame` announced is good.
    pub fn done(&mut self, header: &Header) {
        self.inbox.consume(header.frame_bytes());
        self.at += header.frame_bytes() as u64;
        self.end = self.at;
        if header.kind != FrameKind::Seal {
            self.chain.add(header);
        }
    }

    /// End of the last good frame.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The check over the good frames so far.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// The file, to append to it or to walk again.
    pub fn into_disk(self) -> Box<dyn Disk> {
        self.disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::disk::ram::RamDisk;
    use crate::extent::Geometry;
    use crate::format::stream::Refusal;
    use uuid::Uuid;

    fn belongs() -> Belongs {
        Belongs {
            relationship: Uuid::nil(),
            epoch: Uuid::nil(),
            base_generation: 1,
            base_root: Digest([1; 16]),
            geometry: Geometry::new(1 << 30, 65536).unwrap(),
            algorithm: Algorithm::Xxh3,
        }
    }

    #[test]
    fn frames_come_back_across_checkpoints_and_the_chain_closes() {
        let mut journal = Journaler::create(Box::new(RamDisk::new("journal", Vec::new())), &belongs()).unwrap();
        for first in 0..40_000u64 {
            let frame = stream::encode(&Message::Zero { first, count: 1 });
            let header = stream::header(&frame).unwrap().unwrap();
            journal.append(&header, &frame).unwrap();
            if first % 777 == 0 {
                journal.checkpoint().unwrap();
            }
        }
        let seal = Seal { generation: 2, root: Digest([2; 16]), frames: 0, chain: 0, source_time_ms: 0 };
        let (found, mut walk) = Walk::open(journal.seal(seal).unwrap()).unwrap();
        assert_eq!(found, belongs());
        let mut next = 0;
        while let Some(header) = walk.next_frame().unwrap() {
            match walk.frame(&header).unwrap() {
                Frame::Message(Message::Zero { first, .. }) => {
                    assert_eq!(first, next);
                    next += 1;
                }
                Frame::Message(Message::Seal(seal)) => assert_eq!((seal.frames, seal.chain), (walk.chain().frames, walk.chain().value)),
                _ => panic!("a frame nobody wrote"),
            }
            walk.done(&header);
        }
        assert_eq!(next, 40_000);
    }

    /// A frame of so many bytes, which no Zero frame has.
    fn long_frame(bytes: usize) -> Vec<u8> {
        (0..bytes)
            .rev()
            .map(|text| stream::encode(&Message::Abort(Refusal { kind: Kind::Failed, message: "x".repeat(text) })))
            .find(|frame| frame.len() == bytes)
            .unwrap()
    }

    /// Frames have any length, so a checkpoint may leave a single byte to the next 4 KiB.
    #[test]
    fn padding_of_every_length_is_told_from_a_frame() {
        for left in (0..8).chain([31, 32, 33]) {
            let mut journal = Journaler::create(Box::new(RamDisk::new("journal", Vec::new())), &belongs()).unwrap();
            let frame = long_frame(ALIGN_BYTES - left);
            let mut kinds = Vec::new();
            for round in 0..3 {
                journal.append(&stream::header(&frame).unwrap().unwrap(), &frame).unwrap();
                journal.checkpoint().unwrap();
                zeros(&mut journal, 0..1);
                kinds.extend([FrameKind::Abort, FrameKind::Zero]);
                if round == 1 {
                    // A cut behind the long frame, and a run that goes on from there.
                    let mut disk = journal.disk;
                    disk.resize((ALIGN_BYTES * 4 - left) as u64).unwrap();
                    let (_, mut walk) = Walk::open(disk).unwrap();
                    while let Some(header) = walk.next_frame().unwrap() {
                        walk.done(&header);
                    }
                    let (end, chain) = (walk.end(), walk.chain());
                    journal = Journaler::resume(walk.into_disk(), end, chain).unwrap();
                    kinds.pop();
                }
                journal.checkpoint().unwrap();
            }
            let seal = Seal { generation: 2, root: Digest([2; 16]), frames: 0, chain: 0, source_time_ms: 0 };
            kinds.push(FrameKind::Seal);
            let (_, mut walk) = Walk::open(journal.seal(seal).unwrap()).unwrap();
            let mut seen = Vec::new();
            while let Some(header) = walk.next_frame().unwrap() {
                seen.push(header.kind);
                walk.done(&header);
            }
            assert_eq!(seen, kinds, "{left} bytes of padding");
        }
    }

    fn zeros(journal: &mut Journaler, extents: std::ops::Range<u64>) {
        for first in extents {
            let frame = stream::encode(&Message::Zero { first, count: 1 });
            journal.append(&stream::header(&frame).unwrap().unwrap(), &frame).unwrap();
        }
    }

    fn walk_all(disk: Box<dyn Disk>) -> (Vec<u64>, Walk) {
        let (_, mut walk) = Walk::open(disk).unwrap();
        let mut seen = Vec::new();
        while let Ok(Some(header)) = walk.next_frame() {
            match walk.frame(&header) {
                Ok(Frame::Message(Message::Zero { first, .. })) => seen.push(first),
                Ok(Frame::Message(Message::Seal(_))) => {}
                other => panic!("a frame nobody wrote: {other:?}"),
            }
            walk.done(&header);
        }
        (seen, walk)
    }

    /// kill -9 after an unsynced chunk went out: the file ends within a frame, in the middle of a 4 KiB block
    /// whose front is good frames. What is appended behind them must be found by the apply, or the replica
    /// stays torn with a journal that cannot complete it.
    #[test]
    fn a_journal_cut_within_a_frame_goes_on_behind_the_last_whole_one() {
        for cut in [1, 31, 32, 40, 47, 48, 1000, 4000] {
            let mut journal = Journaler::create(Box::new(RamDisk::new("journal", Vec::new())), &belongs()).unwrap();
            zeros(&mut journal, 0..300);
            journal.checkpoint().unwrap();
            let mut disk = journal.disk;
            disk.resize(ALIGN_BYTES as u64 + 300 * 48 - cut).unwrap();
            let whole = 300 - cut.div_ceil(48);
            let (seen, walk) = walk_all(disk);
            assert_eq!(seen, (0..whole).collect::<Vec<_>>(), "cut by {cut}");
            let (end, chain) = (walk.end(), walk.chain());
            let mut journal = Journaler::resume(walk.into_disk(), end, chain).unwrap();
            zeros(&mut journal, whole..400);
            let seal = Seal { generation: 2, root: Digest([2; 16]), frames: 0, chain: 0, source_time_ms: 0 };
            let (seen, walk) = walk_all(journal.seal(seal).unwrap());
            assert_eq!(seen, (0..400).collect::<Vec<_>>(), "cut by {cut}");
            assert_eq!(walk.chain().frames, 400);
        }
    }
}
