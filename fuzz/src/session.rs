//! Whole receiving sessions against a model: whatever a sender says, the replica is what its record says, and a
//! sender that keeps to the rules gets its generation committed.
//!
//! The bytes tell up to three sessions with one replica: who the sender says it is, which frames it sends, where it
//! lies, where the line is cut, where the power goes.

use super::bytes::Bytes;
use super::sim::{DEVICE, Random, SimReplicas, SimSite, Store};
use super::stream::{KINDS, frame};
use blockferry::digest::{Algorithm, Digest, Hasher};
use blockferry::disk::AlignedBuf;
use blockferry::error::Result;
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::manifest::About;
use blockferry::format::stream::*;
use blockferry::limits::TRANSPORT_BUFFER_BYTES;
use blockferry::progress::Progress;
use blockferry::receiver::{self, Apply, Received, Site};
use blockferry::state::manifest::{Damage, Draft, Manifest};
use blockferry::state::{JOURNAL, ReplicaRecord, Stage};
use blockferry::transport::{Inbox, Transport, Turn, Wire};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use uuid::Uuid;

/// Two blocks.
pub const EXTENT: usize = 8192;
/// 24 extents and a tail of one block and one sector.
pub const VOLUME: usize = 24 * EXTENT + 4096 + 512;
/// The device is larger: what lies behind the volume is nobody's business.
const DEVICE_BYTES: usize = VOLUME + 2 * EXTENT;
const EXTENTS: u64 = 25;
const OPS_MAX: usize = 48;

pub fn geometry() -> Geometry {
    Geometry::new(VOLUME as u64, EXTENT as u32).expect("a geometry")
}

pub fn hasher() -> Hasher {
    Hasher::new(Algorithm::Xxh3, &[7; 192])
}

/// The root of a volume of this content.
pub fn root_of(content: &[u8]) -> Digest {
    let about = About {
        relationship: Uuid::nil(),
        epoch: Uuid::nil(),
        generation: 0,
        root: Digest::UNKNOWN,
        sealed: false,
        algorithm: Algorithm::Xxh3,
        geometry: geometry(),
    };
    let store = Store::default();
    let empty = Manifest::create(&store, "manifest", about, &hasher(), Damage::Refuse).expect("no fault is planned");
    let mut draft = Draft::new(&store, empty).expect("no fault is planned");
    let mut blocks = Vec::new();
    for (extent, data) in content.chunks(EXTENT).enumerate() {
        let digest = hasher().extent(data, &mut blocks);
        draft.set(ExtentIndex(extent as u64), &digest, &blocks).expect("no fault is planned");
    }
    draft.root().expect("no fault is planned")
}

fn hello() -> Hello {
    Hello {
        purpose: Purpose::Replicate,
        overwrite: true,
        rehash: false,
        relationship: Uuid::from_u128(1),
        epoch: Uuid::from_u128(2),
        generation: 0,
        root: Digest::UNKNOWN,
        volume_bytes: VOLUME as u64,
        extent_bytes: EXTENT as u32,
        algorithm: Algorithm::Xxh3,
        secret: [7; 192],
        target: "/simulated".into(),
        source: "/volume".into(),
    }
}

/// What a sender is about to say, and what the volume is by then.
pub struct Speech {
    pub said: Vec<u8>,
    pub content: Vec<u8>,
    /// Extents that this delta touched: what comes of them again comes whole.
    touched: BTreeSet<u64>,
    /// Plain bytes and zero extents said so far.
    counted: (u64, u64),
    /// It keeps to the rules so far.
    pub honest: bool,
}

impl Speech {
    pub fn new(content: Vec<u8>) -> Speech {
        Speech { said: Vec::new(), content, touched: BTreeSet::new(), counted: (0, 0), honest: true }
    }

    pub fn say(&mut self, message: &Message) {
        self.said.extend(encode(message));
    }

    /// Changed blocks of some extents, and maybe a lie about them.
    pub fn data(&mut self, bytes: &mut Bytes<'_>) {
        let (geometry, hasher) = (geometry(), hasher());
        let (how, lie) = (bytes.u8(), bytes.u8());
        let mut extent = u64::from(bytes.u8()) % EXTENTS;
        let mut table = DataTable::new(&geometry);
        let (mut plain, mut names, mut whole) = (Vec::new(), Vec::new(), true);
        for _ in 0..1 + how % 4 {
            let (mut bitmap, seed) = (bytes.u8() & 3, bytes.u8());
            if bitmap == 0 || self.touched.contains(&extent) {
                bitmap = 3;
            }
            let at = extent as usize * EXTENT;
            let end = (at + EXTENT).min(VOLUME);
            for block in (0..2).filter(|block| bitmap >> block & 1 == 1) {
                let range = at + block * 4096..(at + (block + 1) * 4096).min(end);
                match seed {
                    0..=127 => self.content[range.clone()].fill(seed),
                    _ => Random(u64::from(seed) << 8 | extent).fill(&mut self.content[range.clone()]),
                }
                plain.extend_from_slice(&self.content[range]);
            }
            let mut digest = hasher.extent(&self.content[at..end], &mut names);
            if lie == 1 {
                digest.0[seed as usize % 16] ^= 1;
            }
            whole &= bitmap == 3;
            table.push(ExtentIndex(extent), &digest, &[bitmap]);
            self.touched.insert(extent);
            extent += 1 + u64::from(how >> 6);
            if extent >= EXTENTS {
                break;
            }
        }
        let (mut encoding, mut payload) = match how & 4 {
            0 => (Encoding::Stored, plain.clone()),
            _ => (Encoding::Zstd, zstd::bulk::compress(&plain, 1).expect("zstd packs anything")),
        };
        let mut plain_bytes = plain.len();
        match lie {
            2 => plain_bytes = usize::from(bytes.u16()) * 16,
            3 => encoding = if encoding == Encoding::Zstd { Encoding::Stored } else { Encoding::Zstd },
            4 => payload.truncate(usize::from(bytes.u16())),
            5 => payload = zstd::bulk::compress(&vec![0; 1 << 22], 1).expect("zstd packs anything"),
            6 => {
                let at = usize::from(bytes.u16()) % payload.len();
                payload[at] ^= 1;
            }
            _ => {}
        }
        let mut frame = vec![0; table.payload_at()];
        frame.extend_from_slice(&payload);
        let unchecked = if lie == 7 { !whole } else { whole && how & 8 != 0 };
        let length = table.write(&mut frame, plain_bytes, payload.len(), encoding, unchecked);
        self.said.extend_from_slice(&frame[..length]);
        self.counted.0 += plain.len() as u64;
        self.honest &= !(1..=7).contains(&lie);
    }

    pub fn zeros(&mut self, bytes: &mut Bytes<'_>) {
        let (first, count) = (bytes.number(), bytes.number());
        self.say(&Message::Zero { first, count });
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= EXTENTS => {
                self.content[first as usize * EXTENT..(end as usize * EXTENT).min(VOLUME)].fill(0);
                self.touched.extend(first..end);
                self.counted.1 += count;
            }
            _ => self.honest = false,
        }
    }
}

/// Says all of it in pieces, and hears nothing.
struct Script {
    said: Vec<u8>,
    at: usize,
    piece: usize,
    spare: Vec<AlignedBuf>,
}

impl Transport for Script {
    fn peer(&self) -> &str {
        "the fuzzer"
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        Ok(self.spare.pop().unwrap_or_else(|| AlignedBuf::new(TRANSPORT_BUFFER_BYTES).expect("memory")))
    }

    fn send(&mut self, buffer: AlignedBuf, _bytes: usize) -> Result<()> {
        self.spare.push(buffer);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, _: Duration) -> Result<Turn> {
        let Some(inbox) = inbox else { return Ok(Turn::Nothing) };
        let piece = self.piece.min(self.said.len() - self.at);
        if piece == 0 {
            return Ok(Turn::Closed);
        }
        inbox.append(&self.said[self.at..self.at + piece])?;
        self.at += piece;
        Ok(Turn::Received(piece))
    }
}

/// One session with a replica.
fn speak(store: &Store, said: Vec<u8>, piece: usize) -> Result<Received> {
    let mut wire = Wire::new(Box::new(Script { said, at: 0, piece, spare: Vec::new() }))?;
    receiver::receive(&mut wire, &mut SimReplicas(store.clone()), &Progress::default())
}

/// A replica of generation 1, and its content.
pub fn replicated() -> (Store, Vec<u8>) {
    static BASE: OnceLock<(Store, Vec<u8>)> = OnceLock::new();
    let (store, content) = BASE.get_or_init(|| {
        let _ = nix::sys::prctl::set_thp_disable(true);
        let store = Store::default();
        store.put(DEVICE, Arc::new(vec![0; DEVICE_BYTES]));
        let mut speech = Speech::new(vec![0; VOLUME]);
        speech.said.extend(greeting().into_bytes());
        speech.say(&Message::Hello(Box::new(hello())));
        speech.say(&Message::Begin(Begin { generation: 1, source_time_ms: 1 }));
        for extent in 0..EXTENTS as u8 {
            speech.data(&mut Bytes(&[4, 0, extent, 3, 120 + extent]));
        }
        end(&mut speech, 1);
        let content = std::mem::take(&mut speech.content);
        let committed = speak(&store, speech.said, 1 << 16).expect("an honest sender is heard");
        assert_eq!(committed.ack.map(|ack| ack.generation), Some(1));
        (store.settle(), content)
    });
    (store.fork(), content.clone())
}

fn end(speech: &mut Speech, generation: u64) {
    let root = root_of(&speech.content);
    let (plain_bytes, zero_extents) = speech.counted;
    speech.say(&Message::End(End { generation, root, counts: Counts { plain_bytes, zero_extents, ..Counts::default() } }));
}

fn record_of(store: &Store) -> Option<ReplicaRecord> {
    ReplicaRecord::load(store).expect("a record is whole at any time")
}

fn device_of(store: &Store) -> Arc<Vec<u8>> {
    store.content(DEVICE).unwrap_or_default()
}

/// I1 and I2: what claims to be a generation is one, byte for byte.
pub fn check(store: &Store) {
    let Some(record) = record_of(store) else { return };
    let device = device_of(store);
    if record.stage == Stage::Clean && !record.rehash && record.volume_bytes == VOLUME as u64 && record.generation > 0 {
        assert!(root_of(&device[..VOLUME]) == record.root, "the replica is not what its record says");
    }
    let recovered = store.fork();
    let mut site = SimSite(recovered.clone());
    if let Some(disk) = site.open_disk(true).expect("a device opens") {
        let was_initializing = record.stage == Stage::Initializing;
        let found = receiver::recover(&site, disk);
        // A volume that grew on the peer's word is larger than the device, until somebody makes that grow.
        let grown = record.volume_bytes > device.len() as u64;
        let found = found.unwrap_or_else(|error| {
            assert!(grown, "it cannot be recovered: {}", error.chain());
            None
        });
        assert!(grown || was_initializing == found.is_none(), "recovery changes what is whole");
        let after = record_of(&recovered).expect("a record stays");
        if !grown && after.stage == Stage::Clean && !after.rehash && after.volume_bytes == VOLUME as u64 && after.generation > 0 {
            let device = device_of(&recovered);
            assert!(root_of(&device[..VOLUME]) == after.root, "what was recovered is not what its record says");
        }
    }
}

/// Up to three sessions.
pub fn run(data: &[u8]) {
    committed(data);
}

/// The same; how many of them made a generation.
pub fn committed(data: &[u8]) -> u64 {
    let mut bytes = Bytes(data);
    let (mut store, mut content) = replicated();
    let how = bytes.u8();
    match how & 3 {
        0 | 1 => {}
        2 => (store, content) = (Store::default(), vec![0; VOLUME]),
        _ => {
            // Something of nobody's is on the device.
            store = Store::default();
            let mut found = vec![0; DEVICE_BYTES];
            Random(u64::from(how)).fill(&mut found[EXTENT..2 * EXTENT]);
            store.put(DEVICE, Arc::new(found));
        }
    }
    if how & 4 != 0 {
        store.set_apply(Apply::Direct);
    }
    for _ in 0..3 {
        if bytes.is_empty() {
            break;
        }
        content = session(&store, content, &mut bytes);
        let mut random = Random(bytes.u64());
        store = match bytes.u8() % 4 {
            0 | 1 => store.settle(),
            2 => store.fork(),
            _ => store.crash(&mut random),
        };
        check(&store);
    }
    let last = record_of(&store).map_or(0, |record| record.generation);
    last - if how & 3 < 2 { 1 } else { 0 }
}

/// One session told by the bytes; what the volume is afterwards.
fn session(store: &Store, content: Vec<u8>, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let (before, device_before) = (record_of(store), device_of(store));
    let generation = before.as_ref().map_or(0, |record| record.generation);
    // Only of these is it known what the receiver compares with.
    let clean = before.as_ref().is_some_and(|record| record.stage == Stage::Clean && !record.rehash && record.promotion.is_none());
    let known = clean && store.content(JOURNAL).is_none() && device_before.get(..VOLUME) == Some(&content[..])
        || before.is_none() && device_before.iter().all(|byte| *byte == 0);
    let mut speech = Speech::new(content);
    speech.honest = known;
    introduce(&mut speech, before.as_ref(), bytes);
    let (mut begun, mut ended) = (false, false);
    for _ in 0..OPS_MAX {
        if bytes.is_empty() || ended && speech.honest {
            break;
        }
        match bytes.u8() % 17 {
            0 if !begun => {
                let offset = bytes.u8();
                let next = (generation + 1).wrapping_add(u64::from(offset / 32));
                speech.say(&Message::Begin(Begin { generation: next, source_time_ms: 5 }));
                begun = true;
                speech.honest &= offset < 32;
            }
            0..=5 => {
                speech.honest &= begun;
                speech.data(bytes);
            }
            6 | 7 => {
                speech.honest &= begun;
                speech.zeros(bytes);
            }
            8 => {
                speech.honest &= begun;
                let scanned = bytes.number();
                speech.say(&Message::Mark(scanned));
            }
            9 | 10 => {
                speech.honest &= begun;
                end(&mut speech, generation + 1);
                ended = true;
            }
            11 => {
                speech.say(&Message::Survey);
                speech.honest = false;
            }
            12 => {
                let how = bytes.u8();
                let root = if how & 1 == 0 { root_of(&speech.content) } else { Digest([how; 16]) };
                // Without what was counted, at least where something was.
                let generation = if how & 2 == 0 { generation + 1 } else { bytes.number() };
                let bogus = End { generation, root, counts: Counts { plain_bytes: 1, ..Counts::default() } };
                speech.say(&Message::End(bogus));
                speech.honest = false;
            }
            13 => {
                let length = bytes.u8();
                speech.said.extend_from_slice(bytes.take(length.into()));
                speech.honest &= length == 0;
            }
            14 => {
                let (kind, unchecked, length) = (KINDS[bytes.u8() as usize % KINDS.len()], bytes.u8(), bytes.u8());
                speech.said.extend(frame(kind, bytes.take(length.into()), unchecked.into()));
                speech.honest = false;
            }
            15 => {
                let worked = bytes.number();
                speech.say(&Message::Pulse(worked));
            }
            // The line is cut here.
            _ => break,
        }
    }
    let piece = 1 + usize::from(bytes.u16());
    let result = speak(store, speech.said, piece);
    let after = record_of(store);
    if speech.honest && ended {
        let received = result.unwrap_or_else(|error| panic!("an honest sender was refused: {}", error.chain()));
        assert_eq!(received.ack.map(|ack| ack.generation), Some(generation + 1));
        assert!(device_of(store)[..VOLUME] == speech.content, "the replica is not what the sender has");
    }
    let now = device_of(store);
    let grew = after.as_ref().is_some_and(|record| record.volume_bytes > VOLUME as u64);
    assert!(
        grew || now.get(VOLUME..) == device_before.get(VOLUME..) || device_before.is_empty(),
        "something behind the volume was written"
    );
    if let (Some(before), Some(after)) = (&before, &after) {
        let same = (before.generation, &before.stage) == (after.generation, &after.stage) && after.stage == Stage::Clean;
        assert!(!same || now == device_before, "no generation was made, and yet the replica changed");
        assert!(after.generation == before.generation || after.generation == before.generation + 1, "a session makes one generation");
    }
    // What the replica holds is what the next session goes on from.
    now.get(..VOLUME).map_or_else(|| vec![0; VOLUME], <[u8]>::to_vec)
}

/// The greeting and who the sender says it is.
fn introduce(speech: &mut Speech, record: Option<&ReplicaRecord>, bytes: &mut Bytes<'_>) {
    let how = bytes.u8();
    if how == 255 {
        let length = bytes.u8();
        speech.said.extend_from_slice(bytes.take(length.into()));
        speech.honest = false;
        return;
    }
    speech.said.extend(greeting().into_bytes());
    let mut hello = hello();
    hello.generation = record.map_or(0, |record| record.generation);
    if how & 1 == 0 {
        hello.root = record.map_or(Digest::UNKNOWN, |record| record.root);
    }
    let lie = if how & 6 == 6 { 1 + bytes.u8() % 12 } else { 0 };
    match lie {
        1 => hello.purpose = Purpose::Plan,
        2 => hello.purpose = Purpose::Verify,
        3 => hello.rehash = true,
        4 => hello.relationship = Uuid::from_u128(9),
        5 => hello.epoch = Uuid::from_u128(9),
        6 => hello.volume_bytes = bytes.number().wrapping_mul(512),
        7 => hello.extent_bytes = 1 << (bytes.u8() % 32),
        8 => hello.secret[0] ^= 1,
        9 => hello.algorithm = Algorithm::Blake3,
        10 => hello.generation = bytes.number(),
        11 => hello.volume_bytes += EXTENT as u64,
        12 => hello.overwrite = false,
        _ => {}
    }
    speech.honest &= lie == 0 || lie == 12;
    speech.say(&Message::Hello(Box::new(hello)));
}
