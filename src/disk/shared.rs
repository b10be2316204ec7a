//! One device read once for several readers that go through it side by side, each at its own pace.
//!
//! A [`Share`] is a disk to read; [`Shared::serve`] does the reads of all shares on the one real disk. What was
//! read stays in a window until every share has taken it, so that readers of one pace cost one read. Memory is
//! bounded by the window: a share that falls behind it has its chunks read once more, and a share that
//! runs ahead is held back a little, a tenth of its time at most, before that is done to the others.
//!
//! ```text
//!  share A ─ wants 5 ─┐                       ┌─ copy of 5 ─► A
//!  share B ─ wants 5 ─┴► window (5: read) ◄───┤
//!                            ▲                └─ copy of 5 ─► B, the last one: 5 leaves the window
//!                          serve ─► disk
//! ```

use super::{Action, AlignedBuf, Completion, Disk, Request, Run};
use crate::error::{Error, Kind, Result};
use crate::limits::{READ_DEPTH, SHARED_BRAKE, SHARED_BRAKE_ONCE, SHARED_WINDOW};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Place and length of a read: shares that ask for the same get the same.
type Place = (u64, usize);

/// A device that several read.
pub struct Shared {
    name: String,
    bytes: u64,
    state: Mutex<State>,
    /// Something was read, taken or asked for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    window: BTreeMap<Place, Slot>,
    /// Ranges of data that are asked for, and found, by share.
    asked: BTreeMap<usize, u64>,
    found: BTreeMap<usize, Result<Option<Range<u64>>>>,
    /// The shares, each with the end of what it has taken.
    shares: BTreeMap<usize, u64>,
    /// Buffers to read into.
    free: Vec<AlignedBuf>,
    next_share: usize,
    read_bytes: u64,
    closed: bool,
    /// What ended the reading, where something did.
    failed: Option<(Kind, String)>,
}

struct Slot {
    content: Content,
    /// The shares that will want it or wait for it.
    wanted_by: BTreeSet<usize>,
    /// Shares that wait for it now: it is not given up under them.
    waiting: usize,
}

enum Content {
    Wanted,
    Reading,
    Ready(Arc<AlignedBuf>),
    Failed(io::ErrorKind, Option<i32>, String),
}

/// What the serving thread does next.
enum Work {
    Find { share: usize, from: u64 },
    Read { place: Place, buffer: AlignedBuf },
    Reap,
    End,
}

impl State {
    /// Read, not taken by all, and nobody is waiting for it at this moment.
    fn idle(&self) -> impl Iterator<Item = Place> {
        self.window.iter().filter(|(_, slot)| matches!(slot.content, Content::Ready(_)) && slot.waiting == 0).map(|(place, _)| *place)
    }

    fn drop_slot(&mut self, place: &Place) {
        if let Some(Slot { content: Content::Ready(buffer), .. }) = self.window.remove(place) {
            self.give_back(buffer);
        }
    }

    /// A buffer that nobody copies from any more is read into again.
    fn give_back(&mut self, buffer: Arc<AlignedBuf>) {
        self.free.extend(Arc::into_inner(buffer));
    }

    /// A share no longer wants this.
    fn taken(&mut self, place: &Place, share: usize) {
        let Some(slot) = self.window.get_mut(place) else { return };
        slot.wanted_by.remove(&share);
        if slot.wanted_by.is_empty() && !matches!(slot.content, Content::Reading) {
            self.drop_slot(place);
        }
    }

    /// Makes room for one more: the lowest place goes, which only a share that fell behind still wants.
    fn evict(&mut self) {
        while self.window.len() >= SHARED_WINDOW {
            let Some(place) = self.idle().next() else { return };
            self.drop_slot(&place);
        }
    }

    fn want(&mut self, place: Place, share: usize) {
        let slot = self.window.entry(place).or_insert_with(|| {
            let ahead = self.shares.iter().filter(|(_, at)| **at <= place.0).map(|(share, _)| *share);
            Slot { content: Content::Wanted, wanted_by: ahead.collect(), waiting: 0 }
        });
        slot.wanted_by.insert(share);
    }
}

impl Shared {
    /// Of a device of this name and size.
    pub fn new(name: &str, bytes: u64) -> Shared {
        Shared { name: name.to_owned(), bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reader. Those that begin together share every read.
    pub fn share(&self) -> Share<'_> {
        let mut state = self.locked();
        let number = state.next_share;
        state.next_share += 1;
        state.shares.insert(number, 0);
        Share { shared: self, number, queue: VecDeque::new(), began: Instant::now(), braked: Duration::ZERO }
    }

    /// Bytes that were read of the disk, for all shares together.
    pub fn read_bytes(&self) -> u64 {
        self.locked().read_bytes
    }

    /// No share will ask any more: [`serve`](Shared::serve) ends.
    pub fn close(&self) {
        self.locked().closed = true;
        self.changed.notify_all();
    }

    /// Reads what the shares ask for, until [`close`](Shared::close). What ends it early is told to every share.
    pub fn serve(&self, disk: &mut dyn Disk) {
        let _ending = Ending(self);
        if let Err(error) = self.serve_all(disk) {
            self.locked().failed = Some((error.kind(), error.chain()));
        }
    }

    fn serve_all(&self, disk: &mut dyn Disk) -> Result<()> {
        let mut reading = BTreeMap::new();
        let mut next_token = 0;
        loop {
            match self.next_work(reading.len())? {
                Work::Find { share, from } => {
                    let found = disk.data_range(from);
                    self.locked().found.insert(share, found);
                }
                Work::Read { place, buffer } => {
                    let run = Run { at: 0, offset: place.0, bytes: place.1 };
                    disk.submit(Request { token: next_token, action: Action::Read(buffer, vec![run]) })?;
                    reading.insert(next_token, place);
                    next_token += 1;
                    continue;
                }
                Work::Reap => {
                    let done = disk.wait()?.ok_or_else(|| Error::new(Kind::Failed, "a read vanished"))?;
                    let place = reading.remove(&done.token).ok_or_else(|| Error::new(Kind::Failed, "a read came back twice"))?;
                    self.arrived(place, done);
                }
                Work::End => return Ok(()),
            }
            self.changed.notify_all();
        }
    }

    fn next_work(&self, in_flight: usize) -> Result<Work> {
        let mut state = self.locked();
        loop {
            if let Some((share, from)) = state.asked.pop_first() {
                return Ok(Work::Find { share, from });
            }
            let wanted = || state.window.iter().find(|(_, slot)| matches!(slot.content, Content::Wanted)).map(|(place, _)| *place);
            if in_flight < READ_DEPTH
                && let Some(place) = wanted()
            {
                let fits = state.free.iter().position(|buffer| buffer.len() >= place.1);
                let buffer = match fits {
                    Some(at) => state.free.swap_remove(at),
                    // One of another size is let go for it: there are never more than the window and what is in hand.
                    None => {
                        state.free.pop();
                        AlignedBuf::new(place.1).map_err(|cause| Error::because(Kind::Failed, "allocate a read buffer", cause))?
                    }
                };
                if let Some(slot) = state.window.get_mut(&place) {
                    slot.content = Content::Reading;
                }
                return Ok(Work::Read { place, buffer });
            }
            if in_flight > 0 {
                return Ok(Work::Reap);
            }
            if state.closed {
                return Ok(Work::End);
            }
            state = self.wait(state);
        }
    }

    fn arrived(&self, place: Place, done: Completion) {
        let mut state = self.locked();
        state.read_bytes += place.1 as u64;
        let content = match (done.result, done.buffer) {
            (Ok(_), Some(buffer)) => Content::Ready(Arc::new(buffer)),
            (Ok(_), None) => Content::Failed(io::ErrorKind::Other, None, "a read came back without its buffer".to_owned()),
            (Err(cause), buffer) => {
                state.free.extend(buffer);
                Content::Failed(cause.kind(), cause.raw_os_error(), cause.to_string())
            }
        };
        if let Some(slot) = state.window.get_mut(&place) {
            slot.content = content;
            if slot.wanted_by.is_empty() {
                state.drop_slot(&place);
            }
        }
    }
}

/// Whatever ends the serving thread, nobody waits for it after that.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.0.locked();
        if !state.closed && state.failed.is_none() {
            state.failed = Some((Kind::Failed, "the reading ended".to_owned()));
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// One reader's view of the device.
pub struct Share<'a> {
    shared: &'a Shared,
    number: usize,
    queue: VecDeque<(u64, AlignedBuf, Vec<Run>)>,
    began: Instant,
    braked: Duration,
}

impl Share<'_> {
    /// The window is full of what others have not taken yet: gives them a moment, as long as that costs little.
    fn brake<'g>(&mut self, mut state: MutexGuard<'g, State>, place: Place) -> MutexGuard<'g, State>
    where
        Self: 'g,
    {
        let began = Instant::now();
        while state.window.len() >= SHARED_WINDOW && !state.window.contains_key(&place) && state.failed.is_none() {
            let budget = (SHARED_BRAKE + self.began.elapsed() / 10).saturating_sub(self.braked + began.elapsed());
            let left = budget.min(SHARED_BRAKE_ONCE.saturating_sub(began.elapsed()));
            if left.is_zero() {
                state.evict();
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.braked += began.elapsed();
        state
    }

    /// Waits for the content of a place and copies it.
    fn take(&mut self, place: Place, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.locked();
        let buffer = loop {
            if let Some((_, message)) = &state.failed {
                return Err(io::Error::other(message.clone()));
            }
            // Given up while this share was behind: once more.
            state.want(place, self.number);
            let slot = state.window.get_mut(&place).ok_or_else(|| io::Error::other("a read vanished"))?;
            match &slot.content {
                Content::Ready(buffer) => break Arc::clone(buffer),
                Content::Failed(kind, code, message) => {
                    let error = code.map_or_else(|| io::Error::new(*kind, message.clone()), io::Error::from_raw_os_error);
                    state.taken(&place, self.number);
                    return Err(error);
                }
                Content::Wanted | Content::Reading => {
                    slot.waiting += 1;
                    self.shared.changed.notify_all();
                    state = self.shared.wait(state);
                    if let Some(slot) = state.window.get_mut(&place) {
                        slot.waiting -= 1;
                    }
                }
            }
        };
        drop(state);
        into[..place.1].copy_from_slice(&buffer[..place.1]);
        let mut state = self.shared.locked();
        state.taken(&place, self.number);
        state.give_back(buffer);
        if let Some(at) = state.shares.get_mut(&self.number) {
            *at = (*at).max(place.0 + place.1 as u64);
        }
        drop(state);
        self.shared.changed.notify_all();
        Ok(place.1)
    }
}

impl Disk for Share<'_> {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn bytes(&self) -> u64 {
        self.shared.bytes
    }

    fn submit(&mut self, request: Request) -> Result<()> {
        let Action::Read(buffer, runs) = request.action else {
            return Err(Error::new(Kind::Failed, format!("{} is only read here", self.shared.name)));
        };
        for run in &runs {
            let (shared, place) = (self.shared, (run.offset, run.bytes));
            let mut state = self.brake(shared.locked(), place);
            state.want(place, self.number);
        }
        self.shared.changed.notify_all();
        self.queue.push_back((request.token, buffer, runs));
        Ok(())
    }

    fn wait(&mut self) -> Result<Option<Completion>> {
        let Some((token, mut buffer, runs)) = self.queue.pop_front() else { return Ok(None) };
        let mut result = Ok(0);
        for run in &runs {
            let Some(into) = buffer.get_mut(run.at..run.at + run.bytes) else {
                result = Err(io::ErrorKind::InvalidInput.into());
                break;
            };
            match self.take((run.offset, run.bytes), into) {
                Ok(bytes) => result = result.map(|sum| sum + bytes),
                Err(cause) => {
                    result = Err(cause);
                    break;
                }
            }
        }
        Ok(Some(Completion { token, result, buffer: Some(buffer) }))
    }

    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        let mut state = self.shared.locked();
        state.asked.insert(self.number, from);
        self.shared.changed.notify_all();
        loop {
            if let Some(found) = state.found.remove(&self.number) {
                return found;
            }
            if let Some((kind, message)) = &state.failed {
                return Err(Error::new(*kind, message.clone()));
            }
            state = self.shared.wait(state);
        }
    }

    fn resize(&mut self, _: u64) -> Result<()> {
        Err(Error::new(Kind::Failed, format!("{} is only read here", self.shared.name)))
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.locked();
        state.shares.remove(&self.number);
        let wanted: Vec<Place> =
            state.window.iter().filter(|(_, slot)| slot.wanted_by.contains(&self.number)).map(|(place, _)| *place).collect();
        wanted.iter().for_each(|place| state.taken(place, self.number));
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::ram::RamDisk;
    use crate::disk::scan::{Piece, Scan};
    use crate::extent::Geometry;

    const MIB: usize = 1 << 20;

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at / 4096 + at / MIB) as u8 | 1).collect()
    }

    type Reader<'a> = Box<dyn FnOnce(Share<'_>) + Send + 'a>;

    /// Scans all of a share; `pause` is called before each piece with its number.
    fn scan(share: &mut Share<'_>, expected: &[u8], mut pause: impl FnMut(usize)) {
        let geometry = Geometry::new(expected.len() as u64, 65536).unwrap();
        let mut scan = Scan::new(share, geometry).unwrap();
        let (mut at, mut pieces) = (0, 0);
        loop {
            pause(pieces);
            pieces += 1;
            match scan.next_piece().unwrap() {
                Some(Piece::Chunk(chunk)) => {
                    assert_eq!(chunk.offset as usize, at);
                    assert!(chunk.data() == &expected[at..at + chunk.bytes], "the chunk at {at:#x} is another's");
                    at += chunk.bytes;
                    scan.recycle(chunk);
                }
                Some(Piece::Hole(extents)) => at = geometry.bytes_range(extents).end as usize,
                None => break,
            }
        }
        assert_eq!(at, expected.len());
    }

    /// Serves these readers; gives the bytes that were read of the disk and the largest window.
    fn serve(disk: &mut dyn Disk, readers: Vec<Reader<'_>>) -> u64 {
        let shared = Shared::new("ram", disk.bytes());
        let shares: Vec<Share<'_>> = readers.iter().map(|_| shared.share()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| shared.serve(disk));
            let running: Vec<_> = readers.into_iter().zip(shares).map(|(reader, share)| scope.spawn(move || reader(share))).collect();
            let ended: Vec<_> = running.into_iter().map(|thread| thread.join()).collect();
            shared.close();
            ended.into_iter().for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        });
        assert!(shared.locked().window.is_empty(), "something stayed in the window");
        shared.read_bytes()
    }

    #[test]
    fn readers_of_one_pace_cost_one_read() {
        let data = content(40 * MIB + 3 * 65536);
        let mut disk = RamDisk::new("ram", data.clone());
        let reader = || -> Reader<'_> { Box::new(|mut share| scan(&mut share, &data, |_| {})) };
        let mut reads = || serve(&mut disk, vec![reader(), reader(), reader()]);
        // Threads are not started in one instant, so a chunk or two may be read twice; never all of them. One of three tries: a
        // thread that the machine holds up is waited for not too long.
        let read: Vec<u64> = (0..3).map(|_| reads()).collect();
        assert!(read.iter().any(|read| *read < data.len() as u64 * 5 / 4), "{read:?} bytes were read for {} bytes", data.len());
    }

    #[test]
    fn a_slow_reader_gets_the_same_bytes_and_holds_the_fast_one_back_only_a_little() {
        let data = content(64 * MIB);
        let mut disk = RamDisk::new("ram", data.clone());
        let (told, heard) = std::sync::mpsc::channel::<()>();
        let data = &data;
        let read = serve(
            &mut disk,
            vec![
                Box::new(move |mut share| {
                    scan(&mut share, data, |_| {});
                    drop(told);
                }),
                // Does not go on at all before the fast one is through.
                Box::new(move |mut share| {
                    scan(&mut share, data, |piece| {
                        if piece == 3 {
                            let _ = heard.recv();
                        }
                    });
                }),
            ],
        );
        assert!(read > data.len() as u64, "the window cannot have held all of it");
    }

    #[test]
    fn a_reader_that_gives_up_half_way_hinders_nobody() {
        let data = content(48 * MIB);
        let mut disk = RamDisk::new("ram", data.clone());
        let data = &data;
        serve(
            &mut disk,
            vec![
                Box::new(|mut share| {
                    let buffer = AlignedBuf::new(MIB).unwrap();
                    super::super::read(&mut share, buffer, 0, MIB).unwrap();
                    let more = AlignedBuf::new(MIB).unwrap();
                    let run = Run { at: 0, offset: MIB as u64, bytes: MIB };
                    share.submit(Request { token: 1, action: Action::Read(more, vec![run]) }).unwrap();
                }),
                Box::new(move |mut share| scan(&mut share, data, |_| {})),
            ],
        );
    }

    #[test]
    fn a_read_that_fails_fails_for_each_with_its_own_error() {
        let mut disk = RamDisk::new("ram", content(MIB));
        let reader = || -> Reader<'_> {
            Box::new(|mut share| {
                let buffer = AlignedBuf::new(MIB).unwrap();
                let error = super::super::read(&mut share, buffer, MIB as u64 / 2, MIB).unwrap_err();
                assert!(error.chain().contains("of ram"), "{}", error.chain());
                // What is there can still be read.
                super::super::read(&mut share, AlignedBuf::new(4096).unwrap(), 0, 4096).unwrap();
            })
        };
        serve(&mut disk, vec![reader(), reader()]);
    }
}
