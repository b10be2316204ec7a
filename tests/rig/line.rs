//! Two simulated sides and the wire between them, which can be cut, lied on, and listened to.

use crate::sim::{DEVICE, Random, SimReplicas, SimSite, Store, VOLUME};
use blockferry::digest::{Algorithm, Digest};
use blockferry::disk::AlignedBuf;
use blockferry::error::{Error, Kind, Result};
use blockferry::format::stream::{self, Frame, FrameKind, HEADER_BYTES, Message, Purpose};
use blockferry::identity::Identity;
use blockferry::progress::Progress;
use blockferry::receiver::{self, Received, Site};
use blockferry::sender::{self, Compress, Order, Outcome, Pass};
use blockferry::state::{HAVE, JOURNAL, NEXT, ReplicaRecord, SourceRecord, Stage};
use blockferry::transport::memory::{self, Memory};
use blockferry::transport::{Inbox, Transport, Turn, Wire};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// What is done to the bytes that leave one end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault {
    /// The connection ends after this many bytes.
    pub cut: Option<u64>,
    /// This bit arrives flipped.
    pub flip: Option<u64>,
    /// The connection ends instead of an Ack.
    pub lose_ack: bool,
}

/// How a run is done and disturbed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub resync: bool,
    /// Sender to receiver.
    pub forth: Fault,
    /// Receiver to sender.
    pub back: Fault,
}

/// One end of the wire. It goes dead with its side's storage: a process without power says nothing.
struct Tap {
    inner: Option<Memory>,
    store: Store,
    fault: Fault,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn alive(&mut self) -> Result<&mut Memory> {
        if self.store.is_dead() {
            self.inner = None;
        }
        self.inner.as_mut().ok_or_else(|| Error::new(Kind::Transient, "the line is cut"))
    }
}

impl Transport for Tap {
    fn peer(&self) -> &str {
        "the other side"
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.alive()?.outgoing()
    }

    fn send(&mut self, mut buffer: AlignedBuf, bytes: usize) -> Result<()> {
        self.alive()?;
        let mut said = self.said.lock().expect("no panic in here");
        let before = said.len() as u64;
        said.extend_from_slice(&buffer[..bytes]);
        drop(said);
        if self.fault.lose_ack && matches!(stream::header(&buffer[..bytes]), Ok(Some(header)) if header.kind == FrameKind::Ack) {
            self.inner = None;
        }
        if let Some(byte) = self.fault.flip.map(|bit| bit / 8).filter(|byte| (before..before + bytes as u64).contains(byte)) {
            buffer[(byte - before) as usize] ^= 1 << (self.fault.flip.unwrap_or(0) % 8);
        }
        match self.fault.cut.filter(|cut| *cut < before + bytes as u64) {
            None => self.alive()?.send(buffer, bytes),
            Some(cut) => {
                let left = cut.saturating_sub(before) as usize;
                if left > 0 {
                    self.alive()?.send(buffer, left)?;
                }
                self.inner = None;
                Err(Error::new(Kind::Transient, "the line is cut"))
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.alive()?.flush()
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        match self.alive() {
            Ok(inner) => inner.turn(inbox, limit),
            Err(_) => Ok(Turn::Closed),
        }
    }
}

/// What a run came to, and what was put on the wire.
pub struct Ran {
    pub sent: Result<Outcome>,
    pub received: Result<Received>,
    pub forth: Vec<u8>,
    pub back: Vec<u8>,
}

impl Ran {
    pub fn ended_well(&self) -> bool {
        self.sent.is_ok() && self.received.is_ok()
    }

    pub fn why(&self) -> String {
        let text = |error: Option<&Error>| error.map_or("ok".to_owned(), |error| format!("{:?}: {}", error.kind(), error.chain()));
        format!("sender {}; receiver {}", text(self.sent.as_ref().err()), text(self.received.as_ref().err()))
    }

    /// The worse of the two ends' errors: what an operator would read.
    pub fn asks_for_resync(&self) -> bool {
        self.why().contains("--resync") || self.why().contains("--repair")
    }

    /// Extents of the data and zero frames that lie wholly in the first `bytes` bytes.
    pub fn extents_sent(&self, bytes: u64) -> BTreeSet<u64> {
        let mut extents = BTreeSet::new();
        for (start, end) in frames(&self.forth) {
            if end as u64 > bytes {
                break;
            }
            let header = stream::header(&self.forth[start..end]).expect("our own frame").expect("a whole one");
            match stream::decode(&header, &self.forth[start + HEADER_BYTES..end]).expect("our own frame") {
                Frame::Data(data) => extents.extend(data.lines().map(|line| line.extent.0)),
                Frame::Message(Message::Zero { first, count }) => extents.extend(first..first + count),
                _ => {}
            }
        }
        extents
    }
}

/// Where the whole frames of one direction lie, after its greeting.
pub fn frames(said: &[u8]) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let Some(line) = said.iter().position(|byte| *byte == b'\n') else { return all };
    let mut at = line + 1;
    while let Ok(Some(header)) = stream::header(&said[at..]) {
        let end = at + header.frame_bytes();
        if end > said.len() {
            break;
        }
        all.push((at, end));
        at = end;
    }
    all
}

/// A committed generation as the tests know it.
#[derive(Clone)]
pub struct Generation {
    pub number: u64,
    pub root: Digest,
    pub content: Arc<Vec<u8>>,
}

/// A volume and its replica.
pub struct Pair {
    pub source: Store,
    pub replica: Store,
}

impl Pair {
    /// A relationship before its first copy; the target does not exist.
    pub fn new(content: Vec<u8>, extent_bytes: u32, algorithm: Algorithm) -> Pair {
        let pair = Pair { source: Store::default(), replica: Store::default() };
        let record = SourceRecord {
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 0,
            root: Digest::UNKNOWN,
            source: Identity { stable: "simulated".into(), path: "/volume".into(), bytes: content.len() as u64, is_device: false },
            target: "/simulated".into(),
            volume_bytes: content.len() as u64,
            extent_bytes,
            algorithm,
            secret: [7; 192],
            source_time_ms: 0,
            changed_bytes: None,
        };
        record.store(&pair.source).expect("no fault is planned");
        pair.write_volume(content);
        Pair { source: pair.source.settle(), replica: pair.replica }
    }

    pub fn fork(&self) -> Pair {
        Pair { source: self.source.fork(), replica: self.replica.fork() }
    }

    /// Both processes end in good order.
    pub fn settle(&self) -> Pair {
        Pair { source: self.source.settle(), replica: self.replica.settle() }
    }

    pub fn volume(&self) -> Arc<Vec<u8>> {
        self.source.content(VOLUME).expect("a source has its volume")
    }

    /// The next snapshot. A volume that grew is noticed as the agent does.
    pub fn write_volume(&self, content: Vec<u8>) {
        if let Some(mut record) = self.source_record().filter(|record| record.volume_bytes != content.len() as u64) {
            record.volume_bytes = content.len() as u64;
            record.store(&self.source).expect("no fault is planned");
        }
        self.source.put(VOLUME, Arc::new(content));
    }

    pub fn device(&self) -> Option<Arc<Vec<u8>>> {
        self.replica.content(DEVICE)
    }

    pub fn source_record(&self) -> Option<SourceRecord> {
        SourceRecord::load(&self.source).expect("the source's record is whole")
    }

    pub fn replica_record(&self) -> Option<ReplicaRecord> {
        ReplicaRecord::load(&self.replica).expect("the replica's record is whole")
    }

    /// One run of both sides.
    pub fn run(&self, plan: &Plan) -> Ran {
        let (near, far) = memory::pair(&Arc::new(AtomicBool::new(false))).expect("memory for a line");
        let (forth, back) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let near = Tap { inner: Some(near), store: self.source.clone(), fault: plan.forth, said: forth.clone() };
        let far = Tap { inner: Some(far), store: self.replica.clone(), fault: plan.back, said: back.clone() };
        let (sent, received) = std::thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                let mut wire = Wire::new(Box::new(far))?;
                receiver::receive(&mut wire, &mut SimReplicas(self.replica.clone()), &Progress::default())
            });
            let sent = self.send(near, plan.resync);
            (sent, receiving.join().expect("the receiver panicked"))
        });
        let take = |said: Arc<Mutex<Vec<u8>>>| std::mem::take(&mut *said.lock().expect("no panic in here"));
        Ran { sent, received, forth: take(forth), back: take(back) }
    }

    fn send(&self, near: Tap, resync: bool) -> Result<Outcome> {
        let mut wire = Wire::new(Box::new(near))?;
        let mut record = self.source_record().expect("a paired source");
        let mut volume = self.source.disk(VOLUME).expect("a source has its volume");
        let progress = Progress::default();
        let order = Order {
            purpose: Purpose::Replicate,
            compress: Compress::Auto,
            overwrite: true,
            resync,
            source_time_ms: 5,
            part: Default::default(),
        };
        let mut pass = Pass {
            source: &mut volume,
            further: &mut [],
            files: &self.source,
            record: &mut record,
            target: "/simulated",
            order,
            watch: &mut |_| Ok(()),
            progress: &progress,
            on_difference: &mut |_| {},
        };
        sender::send(&mut pass, &mut wire)
    }

    /// One run that has to work and leave both sides alike and tidy.
    pub fn run_clean(&self) -> Ran {
        let ran = self.run(&Plan::default());
        assert!(ran.ended_well(), "a clean run failed: {}", ran.why());
        self.assert_alike();
        ran
    }

    /// The replica is the source, both records say so, and nothing is left over.
    pub fn assert_alike(&self) {
        assert!(self.device() == Some(self.volume()), "the replica differs from the source at {:?}", self.first_difference());
        let (source, replica) = (self.source_record().expect("a source record"), self.replica_record().expect("a replica record"));
        assert_eq!(replica.stage, Stage::Clean);
        assert_eq!((source.generation, source.root), (replica.generation, replica.root));
        assert!(!replica.rehash, "a finished run leaves a manifest to trust");
        for (store, names) in [(&self.source, [HAVE, NEXT]), (&self.replica, [JOURNAL, NEXT])] {
            assert!(names.iter().all(|name| store.content(name).is_none()), "left over: {:?}", store.names());
        }
    }

    fn first_difference(&self) -> Option<usize> {
        let (device, volume) = (self.device()?, self.volume());
        device.chunks(512).zip(volume.chunks(512)).position(|(one, other)| one != other).map(|sector| sector * 512)
    }

    /// The generation that both sides hold now.
    pub fn generation(&self) -> Generation {
        let record = self.replica_record().expect("a replica record");
        Generation { number: record.generation, root: record.root, content: self.device().expect("a replica") }
    }

    /// What the receiver does at its start.
    pub fn recover(&self) -> Result<Option<u64>> {
        let mut site = SimSite(self.replica.clone());
        match site.open_disk(true)? {
            Some(disk) => receiver::recover(&site, disk),
            None => Ok(None),
        }
    }
}

/// Random bytes of which some are runs of text, so that some frames are packed and some stored.
pub fn content(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut content = vec![0; bytes];
    for block in content.chunks_mut(4096) {
        if random.below(3) == 0 {
            block.fill(random.next() as u8 | 1);
        } else {
            random.fill(block);
        }
    }
    content
}
