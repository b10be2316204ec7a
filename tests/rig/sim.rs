//! Simulated storage of one side: files and devices that keep live and durable bytes apart.
//!
//! Every change is an operation with a number, and the power can go before any of them. What survives is
//! what was synced and a random part of the rest, in random order, its last write torn at a sector.
//! Names are kept apart in the same way: a name that was not synced may be there or not.

use blockferry::disk::{Action, AlignedBuf, Completion, Disk, Request};
use blockferry::error::{Context, Error, Kind, Result};
use blockferry::format::stream::Hello;
use blockferry::identity::Identity;
use blockferry::receiver::{Apply, Replicas, Site};
use blockferry::state::journals::Room;
use blockferry::state::{Files, JOURNAL, StateFile};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// The name of the replica's device in its store.
pub const DEVICE: &str = "device";
/// The name of the volume in its store.
pub const VOLUME: &str = "volume";
const SECTOR: usize = 512;
/// Larger files there are none here, as on any file system at some size.
const FILE_BYTES_MAX: u64 = 1 << 28;

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]));
    }
}

/// A change that is not durable yet.
#[derive(Clone)]
struct Change {
    effect: Effect,
    /// Its completion was taken before the flush: only such a write is promised by it.
    reaped: bool,
    ticket: u64,
}

#[derive(Clone)]
enum Effect {
    Write(u64, Arc<[u8]>),
    Zero(Range<u64>),
    Resize(u64),
}

impl Effect {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Effect::Write(offset, bytes) => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
            Effect::Zero(range) => {
                let end = (range.end as usize).min(content.len());
                content[(range.start as usize).min(end)..end].fill(0);
            }
            Effect::Resize(bytes) => content.resize(*bytes as usize, 0),
        }
    }

    /// What a power cut in the middle of it leaves: some of its sectors.
    fn apply_torn(&self, content: &mut Vec<u8>, random: &mut Random) {
        match self {
            Effect::Write(offset, bytes) => {
                let sectors = bytes.len().div_ceil(SECTOR) as u64;
                let (from, to) = (random.below(sectors) as usize * SECTOR, random.below(sectors + 1) as usize * SECTOR);
                let range = from.min(to)..from.max(to).min(bytes.len());
                if !range.is_empty() {
                    Effect::Write(*offset + range.start as u64, bytes[range].into()).apply(content);
                }
            }
            Effect::Zero(range) => {
                let sectors = (range.end - range.start) / SECTOR as u64;
                Effect::Zero(range.start..range.start + random.below(sectors + 1) * SECTOR as u64).apply(content);
            }
            Effect::Resize(_) => {}
        }
    }
}

#[derive(Clone, Default)]
struct Inode {
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<Change>,
}

impl Inode {
    fn settled(content: Arc<Vec<u8>>) -> Inode {
        Inode { live: content.clone(), durable: content, pending: Vec::new() }
    }

    fn change(&mut self, effect: Effect, reaped: bool, ticket: u64) {
        effect.apply(Arc::make_mut(&mut self.live));
        self.pending.push(Change { effect, reaped, ticket });
    }

    fn sync(&mut self) {
        if self.pending.iter().all(|change| change.reaped) {
            self.durable = self.live.clone();
            self.pending.clear();
            return;
        }
        let durable = Arc::make_mut(&mut self.durable);
        self.pending.retain(|change| {
            if change.reaped {
                change.effect.apply(durable);
            }
            !change.reaped
        });
    }

    /// What a power cut leaves.
    fn survivor(&self, random: &mut Random) -> Inode {
        if self.pending.is_empty() {
            return Inode::settled(self.durable.clone());
        }
        // All, none, or each with its own chance: the corners are where the bugs are.
        let chance = [0, 1, 2, 3, 4][random.below(5) as usize];
        let mut kept: Vec<&Effect> = self.pending.iter().filter(|_| random.below(4) < chance).map(|change| &change.effect).collect();
        if random.coin() {
            for at in (1..kept.len()).rev() {
                kept.swap(at, random.below(at as u64 + 1) as usize);
            }
        }
        let mut content = Vec::clone(&self.durable);
        let torn = if random.coin() { kept.pop() } else { None };
        kept.iter().for_each(|effect| effect.apply(&mut content));
        if let Some(effect) = torn {
            effect.apply_torn(&mut content, random);
        }
        Inode::settled(Arc::new(content))
    }
}

#[derive(Clone, Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: u64,
    die_at: Option<u64>,
    dead: bool,
    ticket: u64,
    /// How the receiver is configured; a crash does not change it.
    apply: Apply,
}

impl World {
    /// Counts an operation; from the chosen one on nothing happens any more.
    fn step(&mut self) -> io::Result<()> {
        self.dead |= self.die_at.is_some_and(|die_at| self.operations >= die_at);
        if self.dead {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }

    fn bytes(&self, inode: usize) -> u64 {
        self.inodes[inode].live.len() as u64
    }

    fn resize(&mut self, inode: usize, bytes: u64) -> io::Result<()> {
        if bytes > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.step()?;
        self.inodes[inode].change(Effect::Resize(bytes), true, 0);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.step()?;
        self.durable_names = self.names.clone();
        Ok(())
    }

    /// A new file under this name; one that is there is emptied.
    fn create(&mut self, name: &str) -> io::Result<usize> {
        self.step()?;
        if let Some(inode) = self.names.get(name) {
            self.inodes[*inode].change(Effect::Resize(0), true, 0);
            return Ok(*inode);
        }
        self.inodes.push(Inode::default());
        self.names.insert(name.to_owned(), self.inodes.len() - 1);
        Ok(self.inodes.len() - 1)
    }

    fn sync(&mut self, inode: usize) -> io::Result<()> {
        self.step()?;
        self.inodes[inode].sync();
        Ok(())
    }
}

/// The storage of one side. Clones share it.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<World>>);

impl Store {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics while it holds the storage")
    }

    /// A store of its own with the same live and durable bytes, not dying: what `kill -9` leaves, since
    /// the caches outlive the process.
    pub fn fork(&self) -> Store {
        let mut world = World { operations: 0, die_at: None, dead: false, ..self.world().clone() };
        // The kernel completes what was in flight; from then on a flush promises it.
        world.inodes.iter_mut().flat_map(|inode| &mut inode.pending).for_each(|change| change.reaped = true);
        Store(Arc::new(Mutex::new(world)))
    }

    /// The power goes before this operation, counted from now.
    pub fn die_at(&self, operation: u64) {
        let mut world = self.world();
        world.operations = 0;
        world.die_at = Some(operation);
    }

    /// How increments reach the device from now on.
    pub fn set_apply(&self, apply: Apply) {
        self.world().apply = apply;
    }

    /// Whether they go straight onto it.
    pub fn applies_directly(&self) -> bool {
        self.world().apply == Apply::Direct
    }

    pub fn is_dead(&self) -> bool {
        self.world().dead
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// What a power cut right now leaves, in a store of its own.
    pub fn crash(&self, random: &mut Random) -> Store {
        let world = self.world();
        let mut after = World { apply: world.apply, ..World::default() };
        let mut moved: BTreeMap<usize, usize> = BTreeMap::new();
        let mut names: Vec<&String> = world.names.keys().chain(world.durable_names.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let (live, durable) = (world.names.get(name), world.durable_names.get(name));
            let Some(inode) = (if live == durable || random.coin() { durable } else { live }) else { continue };
            let at = *moved.entry(*inode).or_insert_with(|| {
                after.inodes.push(world.inodes[*inode].survivor(random));
                after.inodes.len() - 1
            });
            after.names.insert(name.clone(), at);
        }
        after.durable_names = after.names.clone();
        Store(Arc::new(Mutex::new(after)))
    }

    /// What an orderly end of the process leaves: all of it, since the page cache outlives it.
    pub fn settle(&self) -> Store {
        let world = self.world();
        let inodes = world.inodes.iter().map(|inode| Inode::settled(inode.live.clone())).collect();
        let after =
            World { inodes, names: world.names.clone(), durable_names: world.names.clone(), apply: world.apply, ..World::default() };
        Store(Arc::new(Mutex::new(after)))
    }

    /// Distinguishes what two crashes left.
    pub fn fingerprint(&self) -> u64 {
        let world = self.world();
        let mut all = Vec::new();
        for (name, inode) in &world.names {
            all.extend_from_slice(name.as_bytes());
            all.extend_from_slice(&blockferry::digest::checksum(&world.inodes[*inode].live).to_le_bytes());
        }
        blockferry::digest::checksum(&all)
    }

    /// The live content of a file.
    pub fn content(&self, name: &str) -> Option<Arc<Vec<u8>>> {
        let world = self.world();
        world.names.get(name).map(|inode| world.inodes[*inode].live.clone())
    }

    /// Puts a file there from outside, durably.
    pub fn put(&self, name: &str, content: Arc<Vec<u8>>) {
        let mut world = self.world();
        let inode = world.inodes.len();
        world.inodes.push(Inode::settled(content));
        world.names.insert(name.to_owned(), inode);
        world.durable_names.insert(name.to_owned(), inode);
    }

    /// Loses a file from outside, durably.
    pub fn lose(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.durable_names.remove(name);
    }

    /// Flips one bit from outside.
    pub fn flip(&self, name: &str, bit: u64) {
        let mut content = Vec::clone(&self.content(name).expect("a file to damage"));
        content[bit as usize / 8] ^= 1 << (bit % 8);
        self.put(name, Arc::new(content));
    }

    pub fn names(&self) -> Vec<String> {
        self.world().names.keys().cloned().collect()
    }

    /// Opens a device or the journal.
    pub fn disk(&self, name: &str) -> Option<SimDisk> {
        let inode = *self.world().names.get(name)?;
        Some(SimDisk { store: self.clone(), inode, name: name.to_owned(), in_flight: Vec::new(), random: Random(7) })
    }
}

/// A device of a store.
pub struct SimDisk {
    store: Store,
    inode: usize,
    name: String,
    in_flight: Vec<(Completion, Vec<Range<u64>>, u64)>,
    random: Random,
}

impl SimDisk {
    /// The kernel keeps no order between requests in flight, so two that touch the same bytes are a bug.
    fn assert_apart(&self, ranges: &[Range<u64>]) {
        for (_, writing, _) in &self.in_flight {
            let meet = writing.iter().any(|one| ranges.iter().any(|other| one.start < other.end && other.start < one.end));
            assert!(!meet, "a request on {} meets a write that is in flight: {ranges:?} and {writing:?}", self.name);
        }
    }

    fn perform(&mut self, action: Action, ticket: u64) -> (io::Result<usize>, Option<AlignedBuf>, Vec<Range<u64>>) {
        let ranges = |runs: &[blockferry::disk::Run]| -> Vec<Range<u64>> {
            runs.iter().map(|run| run.offset..run.offset + run.bytes as u64).collect()
        };
        match action {
            Action::Read(mut buffer, runs) => {
                self.assert_apart(&ranges(&runs));
                let world = self.store.world();
                let live = &world.inodes[self.inode].live;
                for run in &runs {
                    let Some(from) = live.get(run.offset as usize..run.offset as usize + run.bytes) else {
                        return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer), Vec::new());
                    };
                    buffer[run.at..run.at + run.bytes].copy_from_slice(from);
                }
                (Ok(runs.iter().map(|run| run.bytes).sum()), Some(buffer), Vec::new())
            }
            Action::Write(buffer, runs) => {
                let touched = ranges(&runs);
                self.assert_apart(&touched);
                let mut world = self.store.world();
                for run in &runs {
                    assert!(run.offset + run.bytes as u64 <= world.bytes(self.inode), "a write beyond the end of {}", self.name);
                    if let Err(off) = world.step() {
                        return (Err(off), Some(buffer), touched);
                    }
                    world.inodes[self.inode].change(Effect::Write(run.offset, buffer[run.at..run.at + run.bytes].into()), false, ticket);
                }
                (Ok(runs.iter().map(|run| run.bytes).sum()), Some(buffer), touched)
            }
            Action::Zero { offset, bytes } => {
                let range = offset..offset + bytes;
                self.assert_apart(std::slice::from_ref(&range));
                let mut world = self.store.world();
                assert!(range.end <= world.bytes(self.inode), "zeros beyond the end of {}", self.name);
                if let Err(off) = world.step() {
                    return (Err(off), None, vec![range]);
                }
                world.inodes[self.inode].change(Effect::Zero(range.clone()), false, ticket);
                (Ok(0), None, vec![range])
            }
            Action::Flush => (self.store.world().sync(self.inode).map(|()| 0), None, Vec::new()),
            Action::Receive(buffer, _) | Action::Transmit(buffer, _) => (Err(io::ErrorKind::Unsupported.into()), Some(buffer), Vec::new()),
        }
    }
}

impl Disk for SimDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> u64 {
        self.store.world().bytes(self.inode)
    }

    fn submit(&mut self, request: Request) -> Result<()> {
        let ticket = {
            let mut world = self.store.world();
            world.ticket += 1;
            world.ticket
        };
        let (result, buffer, ranges) = self.perform(request.action, ticket);
        self.in_flight.push((Completion { token: request.token, result, buffer }, ranges, ticket));
        Ok(())
    }

    /// Completions come in any order.
    fn wait(&mut self) -> Result<Option<Completion>> {
        if self.in_flight.is_empty() {
            return Ok(None);
        }
        let at = self.random.below(self.in_flight.len() as u64) as usize;
        let (done, ranges, ticket) = self.in_flight.swap_remove(at);
        if !ranges.is_empty() {
            let mut world = self.store.world();
            world.inodes[self.inode].pending.iter_mut().filter(|change| change.ticket == ticket).for_each(|change| change.reaped = true);
        }
        Ok(Some(done))
    }

    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        let world = self.store.world();
        let live = &world.inodes[self.inode].live;
        let is_zero = |at: usize| blockferry::digest::is_zero(&live[at..(at + 4096).min(live.len())]);
        let mut starts = (from as usize..live.len()).step_by(4096);
        let Some(start) = starts.find(|at| !is_zero(*at)) else { return Ok(None) };
        let end = starts.find(|at| is_zero(*at)).unwrap_or(live.len());
        Ok(Some(start as u64..end as u64))
    }

    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.store.world().resize(self.inode, bytes).context(Kind::Storage, || "resize")
    }
}

struct SimFile {
    store: Store,
    inode: usize,
    /// The file's name is not durable yet.
    unnamed: Mutex<bool>,
}

impl StateFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let world = self.store.world();
        let live = &world.inodes[self.inode].live;
        let from = (offset as usize).min(live.len());
        let bytes = buffer.len().min(live.len() - from);
        buffer[..bytes].copy_from_slice(&live[from..from + bytes]);
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut world = self.store.world();
        world.step().context(Kind::Storage, || "write")?;
        world.inodes[self.inode].change(Effect::Write(offset, bytes.into()), true, 0);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut world = self.store.world();
        world.sync(self.inode).context(Kind::Storage, || "sync")?;
        if std::mem::take(&mut *self.unnamed.lock().expect("no panic in here")) {
            world.sync_names().context(Kind::Storage, || "sync the folder")?;
        }
        Ok(())
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        self.store.world().resize(self.inode, bytes).context(Kind::Storage, || "resize")
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.store.world().bytes(self.inode))
    }
}

impl Files for Store {
    fn place(&self) -> String {
        "the simulated folder".to_owned()
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn StateFile>>> {
        let found = self.world().names.get(name).copied();
        Ok(found.map(|inode| Box::new(SimFile { store: self.clone(), inode, unnamed: Mutex::new(false) }) as Box<dyn StateFile>))
    }

    fn create(&self, name: &str) -> Result<Box<dyn StateFile>> {
        let inode = self.world().create(name).context(Kind::Storage, || format!("make {name}"))?;
        Ok(Box::new(SimFile { store: self.clone(), inode, unnamed: Mutex::new(true) }))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.content(name).map(|content| Vec::clone(&content)))
    }

    /// The same steps as on a host: write beside, sync, rename, sync the folder.
    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let mut world = self.world();
        let beside = format!("{name}.new");
        let steps = |world: &mut World| -> io::Result<()> {
            let inode = world.create(&beside)?;
            world.step()?;
            world.inodes[inode].change(Effect::Write(0, content.into()), true, 0);
            world.sync(inode)?;
            world.step()?;
            world.names.remove(&beside);
            world.names.insert(name.to_owned(), inode);
            world.sync_names()
        };
        steps(&mut world).context(Kind::Storage, || format!("replace {name}"))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut world = self.world();
        if !world.names.contains_key(name) {
            return Ok(());
        }
        let steps = |world: &mut World| -> io::Result<()> {
            world.step()?;
            world.names.remove(name);
            world.sync_names()
        };
        steps(&mut world).context(Kind::Storage, || format!("remove {name}"))
    }

    fn discard(&self, name: &str) -> Result<()> {
        let mut world = self.world();
        if world.names.contains_key(name) {
            world.step().context(Kind::Storage, || format!("remove {name}"))?;
            world.names.remove(name);
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<()> {
        self.world().sync_names().context(Kind::Storage, || "sync the folder")
    }
}

/// A replica in a store.
pub struct SimSite(pub Store);

impl Site for SimSite {
    fn name(&self) -> &str {
        "the replica"
    }

    fn files(&self) -> &dyn Files {
        &self.0
    }

    fn open_disk(&mut self, _write: bool) -> Result<Option<Box<dyn Disk>>> {
        Ok(self.0.disk(DEVICE).map(|disk| Box::new(disk) as Box<dyn Disk>))
    }

    fn make_disk(&mut self, bytes: u64) -> Result<Box<dyn Disk>> {
        let made = (|| {
            let mut world = self.0.world();
            let inode = world.create(DEVICE)?;
            world.resize(inode, bytes)?;
            world.sync(inode)?;
            world.sync_names()
        })();
        made.context(Kind::Storage, || "make the replica")?;
        self.0.disk(DEVICE).map(|disk| Box::new(disk) as Box<dyn Disk>).ok_or_else(|| Error::new(Kind::Failed, "it was just made"))
    }

    fn identity(&self) -> Result<Identity> {
        Ok(Identity { stable: "simulated".into(), path: "/simulated".into(), bytes: 0, is_device: false })
    }

    fn apply(&self) -> Apply {
        self.0.world().apply
    }

    fn open_journal(&self) -> Result<Option<Box<dyn Disk>>> {
        Ok(self.0.disk(JOURNAL).map(|disk| Box::new(disk) as Box<dyn Disk>))
    }

    fn journal_place(&self) -> String {
        JOURNAL.to_owned()
    }

    fn make_journal(&self) -> Result<Box<dyn Disk>> {
        // As on a host: not durable before the first sync of the names.
        self.0.discard(JOURNAL)?;
        self.0.world().create(JOURNAL).context(Kind::Storage, || "make the journal")?;
        self.open_journal()?.ok_or_else(|| Error::new(Kind::Failed, "it was just made"))
    }

    fn remove_journal(&self) -> Result<()> {
        self.0.remove(JOURNAL)
    }

    fn discard_journal(&self) -> Result<()> {
        self.0.discard(JOURNAL)
    }

    fn journal_room(&self, _volume_bytes: u64) -> Result<Room> {
        Ok(Room { bytes: 1 << 40, bound: "there is room".to_owned() })
    }

    fn more_room(&self) -> String {
        "simulate more".to_owned()
    }

    fn now_ms(&self) -> u64 {
        1
    }
}

/// Gives every sender the one replica of a store.
pub struct SimReplicas(pub Store);

impl Replicas for SimReplicas {
    fn find(&mut self, _hello: &Hello) -> Result<Box<dyn Site>> {
        Ok(Box::new(SimSite(self.0.clone())))
    }
}
