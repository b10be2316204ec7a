//! What a cut, a flipped bit or a failing device leaves behind must never make the next run believe
//! something: the line from sender to receiver, broken at chosen places and run again.

use blockferry::digest::{Algorithm, Digest};
use blockferry::disk::raw::{Access, RawDisk};
use blockferry::disk::{Action, Completion, Disk, Request, identity};
use blockferry::error::{Error, Kind, Result};
use blockferry::format::stream::{Hello, Mode, Purpose};
use blockferry::identity::Identity;
use blockferry::progress::Progress;
use blockferry::receiver::{self, Apply, Replicas, Site};
use blockferry::ring::{AlignedBuf, Choice};
use blockferry::sender::{self, Compress, Order, Outcome, Pass};
use blockferry::state::journals::Room;
use blockferry::state::{Files, HostFiles, JOURNAL, MANIFEST, SourceRecord};
use blockferry::transport::{Inbox, Transport, Turn, Wire, memory};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};
use uuid::Uuid;

const EXTENT: usize = 65536;

/// What goes wrong in a run.
#[derive(Clone, Copy, Default)]
struct Trouble {
    /// The connection ends after so many bytes from the sender.
    cut_at: Option<usize>,
    /// The lowest bit of this byte from the sender is flipped.
    flip_at: Option<usize>,
    /// The replica's device refuses every write after so many.
    writes_left: Option<usize>,
}

struct Rough {
    /// Gone when the connection is cut, for both directions.
    inner: Option<memory::Memory>,
    trouble: Trouble,
    sent: usize,
}

impl Rough {
    fn alive(&mut self) -> Result<&mut memory::Memory> {
        self.inner.as_mut().ok_or_else(|| Error::new(Kind::Transient, "cut by the test"))
    }
}

impl Transport for Rough {
    fn peer(&self) -> &str {
        "the receiver"
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.alive()?.outgoing()
    }

    fn send(&mut self, mut buffer: AlignedBuf, bytes: usize) -> Result<()> {
        let from = self.sent;
        self.sent += bytes;
        if let Some(at) = self.trouble.flip_at.filter(|at| (from..self.sent).contains(at)) {
            buffer[at - from] ^= 1;
        }
        let cut_at = self.trouble.cut_at.filter(|at| *at < self.sent);
        self.alive()?.send(buffer, cut_at.map_or(bytes, |at| at - from))?;
        if cut_at.is_some() {
            self.inner = None;
        }
        self.alive().map(|_| ())
    }

    fn flush(&mut self) -> Result<()> {
        self.alive()?.flush()
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        self.alive().and_then(|inner| inner.turn(inbox, limit))
    }
}

/// A device that fails.
struct Failing {
    inner: RawDisk,
    writes_left: usize,
    reads_left: usize,
}

impl Disk for Failing {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn submit(&mut self, request: Request) -> Result<()> {
        if matches!(request.action, Action::Write(..)) {
            if self.writes_left == 0 {
                return Err(Error::new(Kind::Storage, "refused by the test"));
            }
            self.writes_left -= 1;
        }
        if matches!(request.action, Action::Read(..)) {
            if self.reads_left == 0 {
                return Err(Error::new(Kind::Storage, "refused by the test"));
            }
            self.reads_left -= 1;
        }
        self.inner.submit(request)
    }

    fn wait(&mut self) -> Result<Option<Completion>> {
        self.inner.wait()
    }

    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        self.inner.data_range(from)
    }

    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.inner.resize(bytes)
    }
}

struct Place {
    folder: PathBuf,
    files: HostFiles,
    writes_left: usize,
}

impl Place {
    fn target(&self) -> PathBuf {
        self.folder.join("target")
    }
}

impl Replicas for Place {
    fn find(&mut self, _hello: &Hello) -> Result<Box<dyn Site>> {
        Ok(Box::new(Place { folder: self.folder.clone(), files: self.files.clone(), writes_left: self.writes_left }))
    }
}

impl Site for Place {
    fn name(&self) -> &str {
        "the target"
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn open_disk(&mut self, _write: bool) -> Result<Option<Box<dyn Disk>>> {
        if !self.target().exists() {
            return Ok(None);
        }
        let inner = RawDisk::open(&self.target(), Access::Write, Choice::Auto)?;
        Ok(Some(Box::new(Failing { inner, writes_left: self.writes_left, reads_left: usize::MAX })))
    }

    fn make_disk(&mut self, bytes: u64) -> Result<Box<dyn Disk>> {
        let inner = RawDisk::create(&self.target(), bytes, Choice::Auto)?;
        Ok(Box::new(Failing { inner, writes_left: self.writes_left, reads_left: usize::MAX }))
    }

    fn identity(&self) -> Result<Identity> {
        identity::of(&self.target())
    }

    fn apply(&self) -> Apply {
        Apply::Auto
    }

    fn open_journal(&self) -> Result<Option<Box<dyn Disk>>> {
        let path = self.files.folder().join(JOURNAL);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(RawDisk::open(&path, Access::Write, Choice::Auto)?)))
    }

    fn journal_place(&self) -> String {
        JOURNAL.to_owned()
    }

    fn make_journal(&self) -> Result<Box<dyn Disk>> {
        let path = self.files.folder().join(JOURNAL);
        let _ = fs::remove_file(&path);
        Ok(Box::new(RawDisk::create(&path, 0, Choice::Auto)?))
    }

    fn remove_journal(&self) -> Result<()> {
        self.files.remove(JOURNAL)
    }

    fn discard_journal(&self) -> Result<()> {
        self.files.discard(JOURNAL)
    }

    fn journal_room(&self, _volume_bytes: u64) -> Result<Room> {
        Ok(Room { bytes: 1 << 40, bound: "there is room".to_owned() })
    }

    fn more_room(&self) -> String {
        "there is enough".to_owned()
    }

    fn now_ms(&self) -> u64 {
        1
    }
}

/// A source, a target and what both sides remember.
struct Pair {
    folder: tempfile::TempDir,
    record: SourceRecord,
    shards: usize,
    /// The last shard's disk refuses every read after so many.
    reads_left: Option<usize>,
}

impl Pair {
    fn new(content: &[u8]) -> Pair {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sender")).unwrap();
        fs::create_dir(folder.path().join("receiver")).unwrap();
        fs::write(folder.path().join("source"), content).unwrap();
        let record = SourceRecord {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 0,
            root: Digest::UNKNOWN,
            source: identity::of(&folder.path().join("source")).unwrap(),
            target: "target".into(),
            volume_bytes: content.len() as u64,
            extent_bytes: EXTENT as u32,
            algorithm: Algorithm::Xxh3,
            secret: [7; 192],
            changed_bytes: None,
            source_time_ms: 0,
        };
        Pair { folder, record, shards: 1, reads_left: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Changes the source.
    fn write(&self, at: usize, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.path("source")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at as u64).unwrap();
    }

    fn run(&mut self, trouble: Trouble) -> Result<Outcome> {
        let progress = Progress::new(Default::default());
        let (ours, theirs) = memory::pair(&progress.stop).unwrap();
        let rough = Rough { inner: Some(ours), trouble, sent: 0 };
        let receiver_files = HostFiles::new(&self.path("receiver"));
        let mut place =
            Place { folder: self.folder.path().to_owned(), files: receiver_files, writes_left: trouble.writes_left.unwrap_or(usize::MAX) };
        thread::scope(|scope| {
            let receiving = scope.spawn(move || receiver::receive(&mut Wire::new(Box::new(theirs))?, &mut place, &Progress::default()));
            let sent = self.send(rough, &progress);
            let received = receiving.join().expect("the receiver does not panic");
            received.and(sent)
        })
    }

    fn send(&mut self, transport: Rough, progress: &Progress) -> Result<Outcome> {
        let files = HostFiles::new(&self.folder.path().join("sender"));
        let mut source = RawDisk::open(&self.folder.path().join("source"), Access::Read, Choice::Auto)?;
        let mut further: Vec<Box<dyn Disk>> = Vec::new();
        for shard in 1..self.shards {
            let inner = RawDisk::open(&self.folder.path().join("source"), Access::Read, Choice::Auto)?;
            let reads_left = self.reads_left.filter(|_| shard + 1 == self.shards).unwrap_or(usize::MAX);
            further.push(Box::new(Failing { inner, writes_left: 0, reads_left }));
        }
        let order = Order {
            purpose: Purpose::Replicate,
            compress: Compress::None,
            overwrite: false,
            resync: false,
            source_time_ms: 1,
            part: Default::default(),
        };
        let mut pass = Pass {
            source: &mut source,
            further: &mut further,
            files: &files,
            target: "target",
            record: &mut self.record,
            order,
            watch: &mut |_| Ok(()),
            progress,
            on_difference: &mut |_| {},
        };
        sender::send(&mut pass, &mut Wire::new(Box::new(transport))?)
    }

    fn expect_equal(&self, after: &str) {
        let differing = differing(&self.path("source"), &self.path("target"));
        assert!(differing.is_empty(), "{after}: committed, but these blocks differ: {differing:?}");
    }
}

fn differing(a: &Path, b: &Path) -> Vec<usize> {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    assert_eq!(a.len(), b.len());
    a.chunks(4096).zip(b.chunks(4096)).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect()
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| step()).collect()
}

/// A frame of four whole extents of which the last is damaged on the way: the first three are proven, but
/// nothing of the frame is on the device. The checkpoint that the broken session makes must not claim them.
#[test]
fn a_frame_that_fails_in_its_last_extent_leaves_no_claim_on_the_first() {
    for flip_at in [100_000, 400_000, 700_000, 1_000_000] {
        let mut pair = Pair::new(&noise(20 * EXTENT, 1));
        let error = pair.run(Trouble { flip_at: Some(flip_at), ..Trouble::default() }).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed, "{}", error.chain());
        let outcome = pair.run(Trouble::default()).unwrap();
        assert_eq!(outcome.mode, Mode::Direct);
        pair.expect_equal(&format!("flipped at {flip_at}"));
    }
}

/// The device fails in the middle of a first copy, so that no checkpoint follows the writes. The next run
/// must neither call them foreign nor believe that what was there before still is.
#[test]
fn a_first_copy_that_ended_without_a_checkpoint_goes_on() {
    for back_to_zero in [false, true] {
        let mut pair = Pair::new(&noise(40 * EXTENT, 2));
        let error = pair.run(Trouble { writes_left: Some(1), ..Trouble::default() }).unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{}", error.chain());
        assert!(
            !differing(&pair.path("target"), &{
                let empty = pair.path("empty");
                fs::write(&empty, vec![0; 40 * EXTENT]).unwrap();
                empty
            })
            .is_empty()
        );
        if back_to_zero {
            pair.write(0, &vec![0; 4 * EXTENT]);
        }
        pair.run(Trouble::default()).unwrap();
        pair.expect_equal("after a failing device");
    }
}

/// An unfinished journal changes a block of an extent; the sender's manifest is lost, and the source goes
/// back on that block and changes another. A block proven against the device must not be laid over the
/// journal's older frame.
#[test]
fn a_lost_bookmark_over_an_unfinished_journal_makes_no_mixture() {
    for cut_at in (300..8600).step_by(415) {
        for lost in [false, true] {
            let mut pair = Pair::new(&noise(20 * EXTENT, 3));
            pair.run(Trouble::default()).unwrap();
            pair.expect_equal("first copy");
            let before = fs::read(pair.path("source")).unwrap();
            pair.write(3 * EXTENT + 4096, &noise(4096, 4));
            pair.write(7 * EXTENT, &noise(4096, 5));
            pair.run(Trouble { cut_at: Some(cut_at), ..Trouble::default() }).unwrap_err();
            pair.write(3 * EXTENT + 4096, &before[3 * EXTENT + 4096..][..4096]);
            pair.write(3 * EXTENT + 8192, &noise(4096, 6));
            if lost {
                fs::remove_file(pair.path("sender").join(MANIFEST)).unwrap();
            }
            let outcome = pair.run(Trouble::default()).unwrap();
            assert_eq!(outcome.mode, Mode::Journal);
            pair.expect_equal(&format!("cut at {cut_at}, bookmark lost: {lost}"));
        }
    }
}

/// Shards put their frames on one wire in whatever order. Wherever it is cut, what came is kept, and the next run, with
/// as many shards or another number, ends with the source. `BLOCKFERRY_SEED` draws other lots.
#[test]
fn several_shards_cut_anywhere_go_on_and_end_alike() {
    let first: u64 = std::env::var("BLOCKFERRY_SEED").map_or(1, |seed| seed.parse().unwrap());
    for seed in first..first + 8 {
        println!("repeat: BLOCKFERRY_SEED={seed} cargo test --test resume several_shards_cut");
        let mut lots = noise(4096, seed * 7 + 1).into_iter().map(usize::from);
        let mut lot = |most: usize| (lots.next().unwrap() << 16 | lots.next().unwrap() << 8 | lots.next().unwrap()) % most;
        let mut content = noise(21 * (1 << 20) + 512, seed);
        let hole = lot(15 << 20);
        content[hole..hole + (5 << 20)].fill(0);
        let mut pair = Pair::new(&content);
        for round in 0..3 {
            let mut cuts = 0;
            loop {
                pair.shards = 2 + lot(3);
                // The later tries get further, so that the story ends.
                let cut_at = Some(lot(24 << 20) * (1 + cuts)).filter(|_| cuts < 4);
                let run = pair.run(Trouble { cut_at, ..Trouble::default() });
                match run {
                    Ok(outcome) => {
                        assert_eq!(outcome.ack.map(|ack| ack.generation), Some(round + 1));
                        break;
                    }
                    Err(error) => assert!(cut_at.is_some() && error.kind() == Kind::Transient, "seed {seed}: {}", error.chain()),
                }
                cuts += 1;
            }
            pair.expect_equal(&format!("seed {seed}, round {round}"));
            for _ in 0..200 {
                pair.write(lot(21 << 20), &[round as u8 + 1; 3]);
            }
            pair.write(lot(15 << 20), &vec![0; 3 << 20]);
        }
        // An unchanged run of several shards sends nothing, and one shard agrees with what several made.
        pair.run(Trouble::default()).unwrap();
        for shards in [3, 1] {
            pair.shards = shards;
            let counts = pair.run(Trouble::default()).unwrap().counts;
            assert_eq!((counts.changed_extents, counts.sent_blocks), (0, 0), "{shards} shards");
            assert!(counts.read_bytes <= (21 << 20) + 512, "{counts:?}");
        }
    }
}

#[test]
fn several_shards_count_what_one_counts() {
    let content = noise(21 << 20, 5);
    let mut counted = Vec::new();
    for shards in [1, 4] {
        let mut pair = Pair::new(&content);
        pair.shards = shards;
        let first = pair.run(Trouble::default()).unwrap().counts;
        for at in 0..300 {
            pair.write(at * 70_000, b"changed");
        }
        pair.write(3 << 20, &vec![0; 2 << 20]);
        let then = pair.run(Trouble::default()).unwrap().counts;
        pair.expect_equal("counted");
        counted.push(
            [first, then]
                .map(|counts| (counts.read_bytes, counts.changed_extents, counts.sent_blocks, counts.plain_bytes, counts.zero_extents)),
        );
    }
    assert_eq!(counted[0], counted[1]);
}

/// One shard's disk fails: the pass fails with its error, nothing is committed, and the next run goes on.
#[test]
fn a_shard_that_cannot_read_ends_the_pass_and_the_next_one_goes_on() {
    // One of three tries: where the others are through before its thread starts, it has nothing to read.
    let failing = (0..3).find_map(|_| {
        let mut pair = Pair::new(&noise(40 << 20, 9));
        (pair.shards, pair.reads_left) = (3, Some(0));
        pair.run(Trouble::default()).err().map(|failed| (pair, failed))
    });
    let (mut pair, failed) = failing.expect("the shard never came to read");
    assert!(failed.chain().contains("refused by the test") && failed.kind() == Kind::Failed, "{}", failed.chain());
    assert_eq!(pair.record.generation, 0);
    pair.reads_left = None;
    pair.run(Trouble::default()).unwrap();
    pair.expect_equal("after a failed shard");
}
