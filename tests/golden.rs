//! The formats stay what they are: bytes made today from fixed values are the bytes in `tests/golden`,
//! and those bytes still mean the values.
//!
//! A golden file is text: `# what follows`, then sixteen bytes a line behind their offset; lines of
//! zeros are left out and `end` closes a section. `BLOCKFERRY_BLESS=1 cargo test --test golden` writes
//! them anew: right only for a version that was never released.

use blockferry::digest::{Algorithm, Digest, Hasher, Secret};
use blockferry::disk::ram::RamDisk;
use blockferry::error::Kind;
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::journal::{ALIGN_BYTES, Belongs, Chain, align};
use blockferry::format::lane::{Join, PieceHead};
use blockferry::format::manifest::{About, PAGE_ZERO};
use blockferry::format::stream::{self, *};
use blockferry::receiver::Walk;
use blockferry::state::manifest::{self, Damage, Draft, Manifest};
use blockferry::state::{HostFiles, MANIFEST};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use uuid::Uuid;

/// A titled run of bytes.
type Section = (String, Vec<u8>);

fn to_text(intro: &str, sections: &[Section]) -> String {
    let mut text = format!("# {intro}\n");
    for (title, bytes) in sections {
        let _ = writeln!(text, "\n# {title}");
        for (line, bytes) in bytes.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "{:08x}  {}", 16 * line, hex.join(" "));
        }
        let _ = writeln!(text, "{:08x}  end", bytes.len());
    }
    text
}

fn from_text(text: &str) -> Vec<Section> {
    let mut sections = Vec::new();
    let (mut title, mut bytes) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            title = words.to_owned();
        } else if let Some((offset, hex)) = line.split_once("  ") {
            bytes.resize(usize::from_str_radix(offset, 16).expect("an offset"), 0);
            match hex {
                "end" => sections.push((std::mem::take(&mut title), std::mem::take(&mut bytes))),
                _ => bytes.extend(hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))),
            }
        }
    }
    sections
}

/// The golden sections, after comparing them with those made now.
fn golden(name: &str, intro: &str, now: &[Section]) -> Vec<Section> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = to_text(intro, now);
    if std::env::var_os("BLOCKFERRY_BLESS").is_some() {
        fs::write(&path, &text).expect("the golden file is written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}; BLOCKFERRY_BLESS=1 makes it", path.display()));
    let sections = from_text(&golden);
    for ((title, now), (golden_title, golden)) in now.iter().zip(&sections) {
        assert_eq!(title, golden_title, "{name}: the sections are others");
        assert!(
            now == golden,
            "{name}, {title}: the bytes made today are not the golden ones:\n{}",
            to_text("made today", &[(title.clone(), now.clone())])
        );
    }
    assert_eq!(text, golden, "{name}: the sections or their layout differ");
    sections
}

fn secret() -> Secret {
    std::array::from_fn(|at| at as u8)
}

fn uuid(low: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | low)
}

fn digest(first: u8) -> Digest {
    Digest(std::array::from_fn(|at| first + at as u8))
}

/// Ten extents of 16 KiB and one of 4 KiB + 512 bytes.
fn geometry() -> Geometry {
    Geometry::new(10 * 16384 + 4608, 16384).unwrap()
}

// ---------------------------------------------------------------------------------------------
// Digests

#[test]
fn digests_name_the_same_content_for_ever() {
    let content: Vec<u8> = (0..16384u32).map(|at| (at * 7 + at / 251) as u8).collect();
    let now: Vec<Section> = [Algorithm::Xxh3, Algorithm::Blake3]
        .into_iter()
        .flat_map(|algorithm| {
            let hasher = Hasher::new(algorithm, &secret());
            let mut blocks = Vec::new();
            let extent = hasher.extent(&content, &mut blocks);
            let zero = hasher.zero_extent(16384, &mut Vec::new());
            [("a block", blocks[1]), ("an extent of four blocks", extent), ("an extent of zeros", zero), ("no byte", hasher.digest(&[]))]
                .map(|(what, digest)| (format!("{algorithm:?}: {what}"), digest.0.to_vec()))
        })
        .collect();
    golden("digest-v1.hex", "digests of 16 KiB, byte i = 7 i + i/251, under the secret 00 01 02 ... bf", &now);
}

// ---------------------------------------------------------------------------------------------
// Stream

fn messages() -> Vec<Message> {
    let refusal = |kind, message: &str| Refusal { kind, message: message.into() };
    vec![
        Message::Hello(Box::new(Hello {
            purpose: Purpose::Replicate,
            overwrite: true,
            rehash: false,
            relationship: uuid(1),
            epoch: uuid(2),
            generation: 3,
            root: digest(0x10),
            volume_bytes: 10 * 16384 + 4608,
            extent_bytes: 16384,
            algorithm: Algorithm::Blake3,
            secret: secret(),
            target: "/dev/vg/replica".into(),
            source: "höst:/dev/vg/volume".into(),
        })),
        Message::Welcome(Welcome {
            epoch: uuid(2),
            generation: 3,
            root: digest(0x10),
            mode: Mode::Journal,
            baseline: Baseline::Yours,
            offer: Offer::Listing,
        }),
        Message::Refuse(refusal(Kind::Refused, "no")),
        Message::Survey,
        Message::HaveEnd,
        Message::Begin(Begin { generation: 4, source_time_ms: 1_700_000_000_123 }),
        Message::Zero { first: 5, count: 3 },
        Message::Mark(0x0001_0203_0405_0607),
        Message::End(End {
            generation: 4,
            root: digest(0x20),
            counts: Counts { read_bytes: 1, changed_extents: 2, sent_blocks: 3, plain_bytes: 4, zero_extents: 5, wire_bytes: 6 },
        }),
        Message::Need(vec![7, 9]),
        Message::Ack(Ack { generation: 4, root: digest(0x20), healed_extents: 1, written_bytes: 4608 }),
        Message::Abort(refusal(Kind::Interrupted, "stopped")),
        Message::Seal(seal(Chain::default())),
    ]
}

fn seal(chain: Chain) -> Seal {
    Seal { generation: 4, root: digest(0x20), frames: chain.frames, chain: chain.value, source_time_ms: 1_700_000_000_123 }
}

/// 4096 bytes of 0xab as a zstd frame of one RLE block, made by hand: no compressor's taste is in it.
const ZSTD_BLOCK: [u8; 12] = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x03, 0x80, 0x00, 0xab, 0];
const ZSTD_BYTES: usize = 11;

/// Extents with their bitmaps, the payload, and its length when unpacked.
fn data(lines: &[(u64, u8)], payload: &[u8], plain_bytes: usize, encoding: Encoding, whole: bool) -> Vec<u8> {
    let mut table = DataTable::new(&geometry());
    lines.iter().for_each(|(extent, bitmap)| table.push(ExtentIndex(*extent), &digest(0x30 + *extent as u8), &[*bitmap]));
    let at = table.payload_at();
    let mut frame = vec![0; at + payload.len()];
    frame[at..].copy_from_slice(payload);
    assert_eq!(table.write(&mut frame, plain_bytes, payload.len(), encoding, whole), frame.len());
    frame
}

/// The last extent whole: a block and a short one.
fn whole_data() -> Vec<u8> {
    let payload: Vec<u8> = (0..4608).map(|at| if at % 512 < 16 { at as u8 ^ 0x5a } else { 0 }).collect();
    data(&[(10, 0b11)], &payload, 4608, Encoding::Stored, true)
}

/// One block of extent 2.
fn packed_data() -> Vec<u8> {
    data(&[(2, 0b0100)], &ZSTD_BLOCK[..ZSTD_BYTES], 4096, Encoding::Zstd, false)
}

fn have_entries() -> Vec<u8> {
    [digest(0x40).0.as_slice(), &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0], &digest(0x50).0, &[0; 16]].concat()
}

fn name_of(frame: &[u8]) -> String {
    format!("{:?}", stream::header(frame).unwrap().expect("a header").kind)
}

fn read(bytes: &[u8]) -> (Header, Frame<'_>) {
    let header = stream::header(bytes).unwrap().expect("a header");
    assert_eq!(header.frame_bytes(), bytes.len());
    (header, stream::decode(&header, &bytes[HEADER_BYTES..]).unwrap())
}

fn lines(data: &Data<'_>) -> Vec<(u64, Digest, Vec<u8>)> {
    data.lines().map(|line| (line.extent.0, line.digest, line.bitmap.to_vec())).collect()
}

#[test]
fn stream_version_1_is_what_it_was() {
    let have = Have { first_extent: 8, entry_bytes: 32, entries: &have_entries() }.encode();
    let mut now: Vec<Section> = messages().iter().map(stream::encode).map(|frame| (name_of(&frame), frame)).collect();
    now.push(("Data: one block of extent 2, zstd, all of it checked".into(), packed_data()));
    now.push(("Data: extent 10 whole (two blocks, the second short), stored, its payload proven by the digest".into(), whole_data()));
    now.push(("Have: extents 8 and 9 with fingerprints".into(), have));
    let golden = golden("stream-v1.hex", "stream version 1: one frame of every kind, 11 extents of 16 KiB, docs/format/stream.md", &now);

    let (small, large) = golden.split_at(messages().len());
    for (message, (title, bytes)) in messages().iter().zip(small) {
        assert!(matches!(read(bytes).1, Frame::Message(back) if back == *message), "{title}");
    }
    let (header, Frame::Data(packed)) = read(&large[0].1) else { panic!("not data") };
    packed.check(&geometry(), &header).unwrap();
    assert_eq!(lines(&packed), [(2, digest(0x32), vec![0b0100])]);
    assert_eq!(zstd::bulk::decompress(packed.payload, packed.plain_bytes).unwrap(), [0xab; 4096]);
    let (header, Frame::Data(whole)) = read(&large[1].1) else { panic!("not data") };
    whole.check(&geometry(), &header).unwrap();
    assert_eq!((lines(&whole), whole.plain_bytes, whole.encoding), (vec![(10, digest(0x3a), vec![0b11])], 4608, Encoding::Stored));
    assert_eq!(header.checked_bytes, 24 + 21);
    let (_, Frame::Have(have)) = read(&large[2].1) else { panic!("not a Have") };
    assert_eq!((have.first_extent, have.entry_bytes, have.entries), (8, 32, have_entries().as_slice()));
}

/// Version 2 is version 1 and one frame more.
#[test]
fn stream_version_2_is_what_it_was() {
    let pulse = Message::Pulse(0x0001_0203_0405_0607);
    let now = [(name_of(&stream::encode(&pulse)), stream::encode(&pulse))];
    let golden = golden("stream-v2.hex", "stream version 2: the frame that version 1 has not, docs/format/stream.md", &now);
    assert!(matches!(read(&golden[0].1).1, Frame::Message(back) if back == pulse));
    assert_eq!(stream::agree("blockferry 0.1.0 stream 1-2").unwrap(), 2);
}

/// Version 3 is version 2 and one frame more.
#[test]
fn stream_version_3_is_what_it_was() {
    let part = Message::Part(vec![2..3, 0x0102..0x0105]);
    let now = [(name_of(&stream::encode(&part)), stream::encode(&part))];
    let golden = golden("stream-v3.hex", "stream version 3: the frame that version 2 has not, docs/format/stream.md", &now);
    assert!(matches!(read(&golden[0].1).1, Frame::Message(back) if back == part));
    assert_eq!(stream::agree("blockferry 0.1.0 stream 1-3").unwrap(), 3);
}

/// Version 4 is version 3 and two frames more.
#[test]
fn stream_version_4_is_what_it_was() {
    let frames = [Message::Lanes(LaneOffer { token: [0x21; 16], most: 0x0304 }), Message::Spread(0x0102)];
    let now = frames.clone().map(|frame| (name_of(&stream::encode(&frame)), stream::encode(&frame)));
    let golden = golden("stream-v4.hex", "stream version 4: the frames that version 3 has not, docs/format/stream.md", &now);
    for (frame, (_, bytes)) in frames.iter().zip(&golden) {
        assert!(matches!(read(bytes).1, Frame::Message(back) if back == *frame));
    }
    assert_eq!(stream::agree("blockferry 0.1.0 stream 1-4").unwrap(), 4);
}

#[test]
fn lane_version_1_is_what_it_was() {
    let (join, head) = (Join { token: [0x21; 16] }, PieceHead { number: 0x0102_0304_0506_0708, bytes: 0x0f_0001 });
    let now = [("Join".to_owned(), join.encode().to_vec()), ("the head of a piece".to_owned(), head.encode().to_vec())];
    let golden = golden(
        "lane-v1.hex",
        "lane version 1: what a further connection begins with, and what stands before each piece, docs/format/lane.md",
        &now,
    );
    let bytes = |at: usize| golden[at].1.as_slice();
    assert_eq!(Join::decode(bytes(0).try_into().unwrap()).unwrap(), join);
    assert_eq!(PieceHead::decode(bytes(1).try_into().unwrap()).unwrap(), head);
}

#[test]
fn the_greeting_of_version_1_is_still_understood() {
    assert_eq!(stream::agree("blockferry 0.1.0 stream 1-1").unwrap(), 1);
    assert!(stream::greeting().starts_with("blockferry ") && stream::greeting().ends_with('\n'));
}

// ---------------------------------------------------------------------------------------------
// Journal

fn belongs() -> Belongs {
    Belongs {
        relationship: uuid(1),
        epoch: uuid(2),
        base_generation: 3,
        base_root: digest(0x10),
        geometry: geometry(),
        algorithm: Algorithm::Xxh3,
    }
}

/// Header; two frames and the padding of a sync; one frame, the seal and the padding.
fn journal() -> Vec<u8> {
    let mut file = belongs().encode().to_vec();
    let mut chain = Chain::default();
    let mut append = |file: &mut Vec<u8>, frames: &[Vec<u8>]| {
        for frame in frames {
            chain.add(&stream::header(frame).unwrap().expect("a header"));
            file.extend_from_slice(frame);
        }
        chain
    };
    append(&mut file, &[packed_data(), stream::encode(&Message::Zero { first: 5, count: 3 })]);
    file.resize(align(file.len() as u64) as usize, 0);
    let chain = append(&mut file, &[whole_data()]);
    file.extend_from_slice(&stream::encode(&Message::Seal(seal(chain))));
    file.resize(align(file.len() as u64) as usize, 0);
    file
}

#[test]
fn journal_version_1_is_what_it_was() {
    let now = [("the file: header, Data, Zero, padding; Data, Seal, padding".to_owned(), journal())];
    let golden = golden("journal-v1.hex", "journal version 1: a sealed delta of three frames, docs/format/journal.md", &now);
    let file = golden[0].1.clone();
    assert_eq!(file.len() % ALIGN_BYTES, 0);
    let (found, mut walk) = Walk::open(Box::new(RamDisk::new("golden journal", file))).unwrap();
    assert_eq!(found, belongs());
    let mut kinds = Vec::new();
    while let Some(header) = walk.next_frame().unwrap() {
        kinds.push(header.kind);
        if let Frame::Message(Message::Seal(found)) = walk.frame(&header).unwrap() {
            assert_eq!(found, seal(walk.chain()));
        }
        walk.done(&header);
    }
    assert_eq!(kinds, [FrameKind::Data, FrameKind::Zero, FrameKind::Data, FrameKind::Seal]);
}

// ---------------------------------------------------------------------------------------------
// Manifest

/// A page of content, a page of zeros, and a page of three extents of which the last is short.
fn manifest_about() -> About {
    About {
        relationship: uuid(1),
        epoch: uuid(2),
        generation: 4,
        root: Digest::UNKNOWN,
        sealed: false,
        algorithm: Algorithm::Xxh3,
        geometry: Geometry::new(514 * 4096 + 512, 4096).unwrap(),
    }
}

/// What an extent of the golden volume holds; `None`: zeros.
fn content(extent: u64) -> Option<Vec<u8>> {
    let bytes = manifest_about().geometry.bytes_of(ExtentIndex(extent));
    (!(3..512).contains(&extent)).then(|| (0..bytes).map(|at| at as u8 ^ (extent as u8 + 1)).collect())
}

fn manifest_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let files = HostFiles::new(folder.path());
    let hasher = Hasher::new(Algorithm::Xxh3, &secret());
    let about = manifest_about();
    let base = Manifest::create(&files, MANIFEST, about, &hasher, Damage::Refuse).unwrap();
    let mut draft = Draft::new(&files, base).unwrap();
    draft.set_zeros(0..about.geometry.extents()).unwrap();
    let mut blocks = Vec::new();
    for extent in 0..about.geometry.extents() {
        if let Some(data) = content(extent) {
            let digest = hasher.extent(&data, &mut blocks);
            draft.set(ExtentIndex(extent), &digest, &blocks).unwrap();
        }
    }
    let root = draft.root().unwrap();
    draft.seal(About { root, ..about }).unwrap();
    drop(draft.install(&files, &mut blockferry::progress::Alone).unwrap());
    fs::read(folder.path().join(MANIFEST)).unwrap()
}

#[test]
fn manifest_version_1_is_what_it_was() {
    let now = [("the file: header; table of three pages; page 0, a hole, page 2".to_owned(), manifest_file())];
    let intro = "manifest version 1: 515 extents of 4 KiB, 0-2 and 512-514 not zero, the last 512 bytes long, docs/format/manifest.md";
    let golden = golden("manifest-v1.hex", intro, &now);

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(MANIFEST), &golden[0].1).unwrap();
    let files = HostFiles::new(folder.path());
    let hasher = Hasher::new(Algorithm::Xxh3, &secret());
    let root = Manifest::open(&files, MANIFEST, &hasher, Damage::Refuse).unwrap().expect("a manifest").about().root;
    let mut found =
        manifest::load(&files, 4, &root, &manifest_about().geometry, &hasher, Damage::Refuse).unwrap().expect("the golden generation");
    assert_eq!(*found.about(), About { sealed: true, root, ..manifest_about() });
    found.check().unwrap();
    assert_eq!(found.page_digest(1).unwrap(), PAGE_ZERO);
    let mut blocks = Vec::new();
    for extent in 0..515 {
        let data = content(extent).unwrap_or_else(|| vec![0; 4096]);
        let digest = hasher.extent(&data, &mut blocks);
        let entry = found.entry(ExtentIndex(extent)).unwrap();
        assert_eq!((entry.digest, entry.fingerprint(0)), (digest, blocks[0].fingerprint()), "extent {extent}");
    }
}
