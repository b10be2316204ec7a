//! The stream, versions 1 to 4: the frames that travel on the wire and lie in the journal
//! (docs/format/stream.md).
//!
//! A greeting line, then frames: a 32-byte header with its own CRC, then a body. The header's
//! `body_check` covers the first `checked_bytes` of the body: all of it, except the payload of a Data
//! frame whose extents are whole, since their digests prove that payload anyway.

use super::codec::{Reader, Writer, crc};
use super::lane::LANE_TOKEN_BYTES;
use crate::digest::{Algorithm, Digest, Secret, checksum};
use crate::error::{Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::limits::*;
use std::ops::Range;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Oldest and newest stream version this program speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=4;

/// The first version that knows Part frames.
pub const PARTS_SINCE: u16 = 3;

/// The first version that knows further connections.
pub const LANES_SINCE: u16 = 4;

const MAGIC: [u8; 4] = *b"BFfr";
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
const _: () = assert!(HEADER_BYTES == 32);
const _: () = assert!(size_of::<DataHead>() == 24);

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// Sender → receiver: who I am and what I hold.
    Hello = 1,
    /// Receiver → sender: what I hold and how I will take the rest.
    Welcome = 2,
    /// Receiver → sender: no, and why.
    Refuse = 3,
    /// Sender → receiver: list the digests of everything you hold.
    Survey = 4,
    /// Receiver → sender: digests of extents I hold.
    Have = 5,
    /// Receiver → sender: that was the list.
    HaveEnd = 6,
    /// Sender → receiver: frames of this generation follow.
    Begin = 7,
    /// Changed blocks of some extents.
    Data = 8,
    /// Extents that are all zero.
    Zero = 9,
    /// Sender → receiver: so far the volume is scanned.
    Mark = 10,
    /// Sender → receiver: that was all; this is the root it must have.
    End = 11,
    /// Receiver → sender: send these extents whole.
    Need = 12,
    /// Receiver → sender: committed.
    Ack = 13,
    /// Either way: I give up, and why.
    Abort = 14,
    /// Journal only: all of the delta is in front of me.
    Seal = 15,
    /// Either way, from version 2 on: I am at work, and this much of it is done.
    Pulse = 16,
    /// Sender → receiver, from version 3 on: the next Survey is about these extents alone.
    Part = 17,
    /// Receiver → sender, from version 4 on: you may open further connections for what you send.
    Lanes = 18,
    /// Sender → receiver, from version 4 on: what I send from here on comes in pieces over those.
    Spread = 19,
}

impl FrameKind {
    fn from_wire(code: u16) -> Option<FrameKind> {
        use FrameKind::*;
        [Hello, Welcome, Refuse, Survey, Have, HaveEnd, Begin, Data, Zero, Mark, End, Need, Ack, Abort, Seal, Pulse, Part, Lanes, Spread]
            .into_iter()
            .find(|kind| *kind as u16 == code)
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FrameHeader {
    magic: [u8; 4],
    kind: U16,
    flags: U16,
    body_bytes: U32,
    checked_bytes: U32,
    body_check: U64,
    reserved: U32,
    crc: U32,
}

/// A header that may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: FrameKind,
    /// Length of the body.
    pub body_bytes: usize,
    /// How much of it `check` covers.
    pub checked_bytes: usize,
    check: u64,
    /// The header's own CRC; since it covers `check`, it stands for the whole frame in a seal.
    pub crc: u32,
}

impl Header {
    /// Bytes of header and body.
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes
    }
}

/// Reads the header at the front of `bytes`. `None`: it is not all there yet.
pub fn header(bytes: &[u8]) -> Result<Option<Header>> {
    let Ok((raw, _)) = FrameHeader::read_from_prefix(bytes) else { return Ok(None) };
    let damaged = |how: &str| Error::malformed(format!("damaged frame header: {how}"));
    if raw.magic != MAGIC {
        return Err(damaged("it does not begin with the frame mark"));
    }
    if crc(&bytes[..HEADER_BYTES - 4]) != raw.crc.get() {
        return Err(damaged("its CRC does not match"));
    }
    let kind = FrameKind::from_wire(raw.kind.get()).ok_or_else(|| damaged(&format!("unknown kind {}", raw.kind)))?;
    let (body_bytes, checked_bytes) = (raw.body_bytes.get() as usize, raw.checked_bytes.get() as usize);
    if body_bytes > FRAME_BODY_BYTES_MAX || checked_bytes > body_bytes || raw.flags.get() != 0 || raw.reserved.get() != 0 {
        return Err(damaged("its lengths or flags are out of bounds"));
    }
    if kind != FrameKind::Data && checked_bytes != body_bytes {
        return Err(damaged("only a data payload may go unchecked"));
    }
    Ok(Some(Header { kind, body_bytes, checked_bytes, check: raw.body_check.get(), crc: raw.crc.get() }))
}

/// Writes the header of a frame whose body already lies behind it in `frame`.
///
/// # Panics
/// When `frame` is shorter than header and body: a bug of the caller.
pub fn write_header(frame: &mut [u8], kind: FrameKind, body_bytes: usize, checked_bytes: usize) {
    let check = checksum(&frame[HEADER_BYTES..HEADER_BYTES + checked_bytes]);
    let mut raw = FrameHeader {
        magic: MAGIC,
        kind: U16::new(kind as u16),
        flags: U16::ZERO,
        body_bytes: U32::new(body_bytes as u32),
        checked_bytes: U32::new(checked_bytes as u32),
        body_check: U64::new(check),
        reserved: U32::ZERO,
        crc: U32::ZERO,
    };
    raw.crc = U32::new(crc(&raw.as_bytes()[..HEADER_BYTES - 4]));
    frame[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
}

/// A small frame as bytes of its own.
pub fn encode(frame: &Message) -> Vec<u8> {
    let (kind, body) = frame.body();
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&body);
    write_header(&mut bytes, kind, body.len(), body.len());
    bytes
}

/// Reads the body of a frame whose header is believed. `body` has exactly `header.body_bytes`.
pub fn decode<'a>(header: &Header, body: &'a [u8]) -> Result<Frame<'a>> {
    if checksum(&body[..header.checked_bytes]) != header.check {
        return Err(Error::malformed(format!("damaged {:?} frame: its check does not match", header.kind)));
    }
    match header.kind {
        FrameKind::Data => Data::decode(body, header.checked_bytes).map(Frame::Data),
        FrameKind::Have => Have::decode(body).map(Frame::Have),
        kind => Message::decode(kind, body).map(Frame::Message),
    }
}

/// A frame that was read.
#[derive(Debug)]
pub enum Frame<'a> {
    /// Changed blocks.
    Data(Data<'a>),
    /// Digests the receiver holds.
    Have(Have<'a>),
    /// Everything small.
    Message(Message),
}

// ---------------------------------------------------------------------------------------------
// Data

/// How a Data frame's payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DataHead {
    first_extent: U64,
    extents: U32,
    plain_bytes: U32,
    payload_bytes: U32,
    bitmap_bytes: U16,
    encoding: u8,
    reserved: u8,
}

/// Bytes of one extent's line in a Data frame's table: distance, digest, block bitmap.
const fn line_bytes(bitmap_bytes: usize) -> usize {
    4 + 16 + bitmap_bytes
}

/// Bytes of the block bitmap for this geometry.
pub fn bitmap_bytes(geometry: &Geometry) -> usize {
    geometry.blocks_per_extent().div_ceil(8)
}

/// Which blocks of one extent travel, and what the whole extent is afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentLine<'a> {
    /// The extent.
    pub extent: ExtentIndex,
    /// Its digest once the blocks are in place.
    pub digest: Digest,
    /// One bit a block, lowest first.
    pub bitmap: &'a [u8],
}

impl ExtentLine<'_> {
    /// The runs of neighbouring blocks that travel, as block numbers within the extent.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let blocks = self.bitmap.len() * 8;
        let set = |block: usize| self.bitmap[block / 8] >> (block % 8) & 1 == 1;
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at..blocks).find(|block| set(*block))?;
            let end = (start..blocks).find(|block| !set(*block)).unwrap_or(blocks);
            at = end;
            Some(start..end)
        })
    }

    /// Whether all blocks travel.
    pub fn is_whole(&self, geometry: &Geometry) -> bool {
        self.bitmap.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() == geometry.blocks_of(self.extent)
    }

    /// Bytes of the blocks that travel.
    pub fn plain_bytes(&self, geometry: &Geometry) -> usize {
        self.runs().map(|run| run_bytes(geometry, self.extent, &run)).sum()
    }
}

/// Bytes of a run of blocks of this extent.
pub fn run_bytes(geometry: &Geometry, extent: ExtentIndex, run: &Range<usize>) -> usize {
    (run.end * BLOCK_BYTES).min(geometry.bytes_of(extent)).saturating_sub(run.start * BLOCK_BYTES)
}

/// Changed blocks of up to `FRAME_EXTENTS_MAX` extents in ascending order.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    first_extent: u64,
    table: &'a [u8],
    bitmap_bytes: usize,
    /// Bytes of the blocks before packing.
    pub plain_bytes: usize,
    /// How the payload is packed.
    pub encoding: Encoding,
    /// The packed blocks.
    pub payload: &'a [u8],
}

impl<'a> Data<'a> {
    fn decode(body: &'a [u8], checked_bytes: usize) -> Result<Data<'a>> {
        let malformed = |how: &str| Error::malformed(format!("malformed Data frame: {how}"));
        let (head, rest) = DataHead::read_from_prefix(body).map_err(|_| malformed("it ends too early"))?;
        let (extents, bitmap_bytes) = (head.extents.get() as usize, usize::from(head.bitmap_bytes.get()));
        if extents == 0 || extents > FRAME_EXTENTS_MAX || bitmap_bytes == 0 {
            return Err(malformed("its extent count or bitmap size is out of bounds"));
        }
        let table_bytes = extents * line_bytes(bitmap_bytes);
        if head.payload_bytes.get() as usize != rest.len().saturating_sub(table_bytes) || rest.len() < table_bytes {
            return Err(malformed("its lengths do not add up"));
        }
        let (table, payload) = rest.split_at(table_bytes);
        if checked_bytes < size_of::<DataHead>() + table_bytes || head.reserved != 0 {
            return Err(malformed("its table is not covered by its check"));
        }
        let plain_bytes = head.plain_bytes.get() as usize;
        let encoding = match head.encoding {
            0 if payload.len() == plain_bytes => Encoding::Stored,
            1 => Encoding::Zstd,
            _ => return Err(malformed("its encoding is unknown or does not fit its length")),
        };
        if plain_bytes > FRAME_PLAIN_BYTES_MAX {
            return Err(malformed("its payload is too large"));
        }
        Ok(Data { first_extent: head.first_extent.get(), table, bitmap_bytes, plain_bytes, encoding, payload })
    }

    /// The table's lines in order.
    pub fn lines(&self) -> impl Iterator<Item = ExtentLine<'a>> + use<'a> {
        let first = self.first_extent;
        self.table.chunks_exact(line_bytes(self.bitmap_bytes)).map(move |line| {
            let distance = u32::from_le_bytes([line[0], line[1], line[2], line[3]]);
            let mut digest = Digest::UNKNOWN;
            digest.0.copy_from_slice(&line[4..20]);
            // Checked against the geometry before use; wrapping only keeps a lying peer from a panic.
            ExtentLine { extent: ExtentIndex(first.wrapping_add(u64::from(distance))), digest, bitmap: &line[20..] }
        })
    }

    /// Everything that can be checked without the data: order, range, bitmaps and sums. Where a line is
    /// not whole, or a check covers only the table, `checked_bytes` must cover the payload.
    pub fn check(&self, geometry: &Geometry, header: &Header) -> Result<()> {
        let malformed = |extent: ExtentIndex, how: &str| Error::malformed(format!("malformed Data frame at extent {extent}: {how}"));
        let mut next = self.first_extent;
        let mut plain_bytes = 0;
        let mut whole = true;
        if self.bitmap_bytes != bitmap_bytes(geometry) {
            return Err(malformed(ExtentIndex(next), "its bitmaps are those of another extent size"));
        }
        for line in self.lines() {
            if line.extent.0 < next || line.extent.0 >= geometry.extents() {
                return Err(malformed(line.extent, "out of order or beyond the end of the volume"));
            }
            next = line.extent.0 + 1;
            let last = line.runs().last().map_or(0, |run| run.end);
            if last == 0 || last > geometry.blocks_of(line.extent) || !line.digest.is_known() {
                return Err(malformed(line.extent, "no blocks, blocks beyond its end, or no digest"));
            }
            plain_bytes += line.plain_bytes(geometry);
            whole &= line.is_whole(geometry);
        }
        if plain_bytes != self.plain_bytes {
            return Err(malformed(ExtentIndex(self.first_extent), "its blocks do not add up to its payload"));
        }
        if !whole && header.checked_bytes != header.body_bytes {
            return Err(malformed(ExtentIndex(self.first_extent), "a payload of single blocks must be checked"));
        }
        Ok(())
    }
}

/// Builds the table of a Data frame.
#[derive(Debug, Default)]
pub struct DataTable {
    first_extent: u64,
    bitmap_bytes: usize,
    lines: Vec<u8>,
    extents: usize,
}

impl DataTable {
    /// An empty table for this geometry.
    pub fn new(geometry: &Geometry) -> DataTable {
        DataTable { bitmap_bytes: bitmap_bytes(geometry), ..DataTable::default() }
    }

    /// Adds the next extent; extents come in ascending order, less than 2³² apart.
    pub fn push(&mut self, extent: ExtentIndex, digest: &Digest, bitmap: &[u8]) {
        if self.extents == 0 {
            self.first_extent = extent.0;
        }
        self.lines.extend_from_slice(&((extent.0 - self.first_extent) as u32).to_le_bytes());
        self.lines.extend_from_slice(&digest.0);
        self.lines.extend_from_slice(&bitmap[..self.bitmap_bytes]);
        self.extents += 1;
    }

    /// Whether another extent fits.
    pub fn takes(&self, extent: ExtentIndex) -> bool {
        self.extents == 0 || (self.extents < FRAME_EXTENTS_MAX && extent.0 - self.first_extent <= u64::from(u32::MAX))
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.extents == 0
    }

    /// Forgets all extents.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.extents = 0;
    }

    /// Bytes of frame header, head and table: where the payload begins in a frame.
    pub fn payload_at(&self) -> usize {
        HEADER_BYTES + size_of::<DataHead>() + self.lines.len()
    }

    /// Completes a frame whose payload already lies at `payload_at`; returns the frame's length.
    pub fn write(&self, frame: &mut [u8], plain_bytes: usize, payload_bytes: usize, encoding: Encoding, whole: bool) -> usize {
        let head = DataHead {
            first_extent: U64::new(self.first_extent),
            extents: U32::new(self.extents as u32),
            plain_bytes: U32::new(plain_bytes as u32),
            payload_bytes: U32::new(payload_bytes as u32),
            bitmap_bytes: U16::new(self.bitmap_bytes as u16),
            encoding: encoding as u8,
            reserved: 0,
        };
        let table_at = HEADER_BYTES + size_of::<DataHead>();
        frame[HEADER_BYTES..table_at].copy_from_slice(head.as_bytes());
        frame[table_at..self.payload_at()].copy_from_slice(&self.lines);
        let table_bytes = self.payload_at() - HEADER_BYTES;
        let body_bytes = table_bytes + payload_bytes;
        write_header(frame, FrameKind::Data, body_bytes, if whole { table_bytes } else { body_bytes });
        HEADER_BYTES + body_bytes
    }
}

// ---------------------------------------------------------------------------------------------
// Have

/// Digests, and maybe fingerprints, of neighbouring extents.
#[derive(Clone, Copy, Debug)]
pub struct Have<'a> {
    /// The first extent.
    pub first_extent: u64,
    /// Bytes of one entry: a digest and, where they are known, the fingerprints.
    pub entry_bytes: usize,
    /// The entries; an all-zero digest means unknown.
    pub entries: &'a [u8],
}

impl<'a> Have<'a> {
    fn decode(body: &'a [u8]) -> Result<Have<'a>> {
        let mut reader = Reader::new("Have frame", body);
        let (first_extent, entry_bytes, count) = (reader.u64()?, reader.u32()? as usize, reader.u32()? as usize);
        let entries = reader.rest();
        let fits = entry_bytes >= 16 && count <= HAVE_ENTRIES_MAX && entry_bytes <= FRAME_BODY_BYTES_MAX;
        if !fits || count * entry_bytes != entries.len() {
            return Err(Error::malformed("malformed Have frame: its lengths do not add up"));
        }
        Ok(Have { first_extent, entry_bytes, entries })
    }

    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u64(self.first_extent).u32(self.entry_bytes as u32).u32((self.entries.len() / self.entry_bytes) as u32);
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(&writer.finish());
        bytes.extend_from_slice(self.entries);
        let body_bytes = bytes.len() - HEADER_BYTES;
        write_header(&mut bytes, FrameKind::Have, body_bytes, body_bytes);
        bytes
    }
}

// ---------------------------------------------------------------------------------------------
// Messages

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Bring the replica to the next generation.
    Replicate = 1,
    /// Only find out what would be sent.
    Plan = 2,
    /// Hash the replica and list the digests; write nothing.
    Verify = 3,
}

/// Who the sender is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the session is for.
    pub purpose: Purpose,
    /// The operator allows an unknown target's content to be overwritten.
    pub overwrite: bool,
    /// Hash the replica anew instead of trusting its manifest.
    pub rehash: bool,
    /// Identity of the relationship.
    pub relationship: Uuid,
    /// The sender's epoch.
    pub epoch: Uuid,
    /// The sender's cursor: the last generation it saw committed, 0 for none.
    pub generation: u64,
    /// Root of the sender's manifest of that generation; unknown where it has none.
    pub root: Digest,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Size of an extent.
    pub extent_bytes: u32,
    /// How content is named.
    pub algorithm: Algorithm,
    /// The relationship's hash secret.
    pub secret: Secret,
    /// Where the replica is: a path or a configured name.
    pub target: String,
    /// How messages call the source.
    pub source: String,
}

/// How the receiver will take the delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Nothing will be written.
    Nothing = 0,
    /// Straight to the device; the replica is initializing.
    Direct = 1,
    /// Journal, seal, apply.
    Journal = 2,
}

/// What the receiver's view starts from, before the listed digests are laid over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Baseline {
    /// The sender's own manifest describes it.
    Yours = 1,
    /// Nothing is known.
    Unknown = 2,
    /// Everything is zero.
    Zeros = 3,
}

/// What the receiver can say of its content when it is asked with a Survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Offer {
    /// Nothing that the sender could use.
    Nothing = 0,
    /// The digests that come with the welcome are samples of a target without a record: where they
    /// match the source, it is worth letting the receiver hash all of it.
    Samples = 1,
    /// All digests, from its manifest.
    Listing = 2,
}

/// What the receiver holds and how it will go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The replica's epoch.
    pub epoch: Uuid,
    /// Its committed generation, 0 for none.
    pub generation: u64,
    /// The root of that generation.
    pub root: Digest,
    /// How the delta will be taken.
    pub mode: Mode,
    /// What the view starts from.
    pub baseline: Baseline,
    /// What a Survey would bring.
    pub offer: Offer,
}

/// A refusal or a reason to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the other side may branch on.
    pub kind: Kind,
    /// The whole chain of messages.
    pub message: String,
}

/// Frames of a generation follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The generation that End will complete.
    pub generation: u64,
    /// When the snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
}

/// What one side counted in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Bytes read from the source, holes not counted.
    pub read_bytes: u64,
    /// Extents that differ from what the receiver held.
    pub changed_extents: u64,
    /// Blocks sent as data.
    pub sent_blocks: u64,
    /// Bytes of those blocks.
    pub plain_bytes: u64,
    /// Extents sent as zero.
    pub zero_extents: u64,
    /// Bytes that went on the wire, headers included.
    pub wire_bytes: u64,
}

impl Counts {
    /// Adds what another part of the same pass counted.
    pub fn add(&mut self, other: &Counts) {
        self.read_bytes += other.read_bytes;
        self.changed_extents += other.changed_extents;
        self.sent_blocks += other.sent_blocks;
        self.plain_bytes += other.plain_bytes;
        self.zero_extents += other.zero_extents;
        self.wire_bytes += other.wire_bytes;
    }
}

/// The last word of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The generation.
    pub generation: u64,
    /// The root it must have.
    pub root: Digest,
    /// What the sender counted.
    pub counts: Counts,
}

/// The receiver's commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The committed generation.
    pub generation: u64,
    /// Its root.
    pub root: Digest,
    /// Extents that had rotted on the replica and were sent again whole.
    pub healed_extents: u64,
    /// Bytes written onto the replica.
    pub written_bytes: u64,
}

/// All of a delta is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The generation it makes.
    pub generation: u64,
    /// The root it makes.
    pub root: Digest,
    /// Number of frames before it.
    pub frames: u64,
    /// Check over the header CRCs of those frames in order.
    pub chain: u64,
    /// When the generation's snapshot was taken: milliseconds since 1970.
    pub source_time_ms: u64,
}

/// The small frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Box<Hello>),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// No, and why.
    Refuse(Refusal),
    /// List everything.
    Survey,
    /// The list is complete.
    HaveEnd,
    /// See [`Begin`].
    Begin(Begin),
    /// Extents `first..first + count` are zero.
    Zero {
        /// First extent.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Scanned so far, in bytes of the volume.
    Mark(u64),
    /// See [`End`].
    End(End),
    /// Send these extents whole.
    Need(Vec<u64>),
    /// See [`Ack`].
    Ack(Ack),
    /// I give up, and why.
    Abort(Refusal),
    /// See [`Seal`].
    Seal(Seal),
    /// Work done so far, in bytes of whatever it is about; only growth means anything.
    Pulse(u64),
    /// The next Survey is about these ranges of extents and those of the Part frames before: ascending, none empty.
    Part(Vec<Range<u64>>),
    /// See [`LaneOffer`].
    Lanes(LaneOffer),
    /// What follows comes in pieces over so many further connections.
    Spread(u32),
}

/// What the sender may open beside this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneOffer {
    /// What a further connection begins with, to be known as this session's.
    pub token: [u8; LANE_TOKEN_BYTES],
    /// How many there may be.
    pub most: u32,
}

impl Message {
    fn body(&self) -> (FrameKind, Vec<u8>) {
        let mut w = Writer::default();
        let kind = match self {
            Message::Hello(hello) => {
                hello.write(&mut w);
                FrameKind::Hello
            }
            Message::Welcome(welcome) => {
                w.uuid(&welcome.epoch).u64(welcome.generation).digest(&welcome.root);
                w.u8(welcome.mode as u8).u8(welcome.baseline as u8).u8(welcome.offer as u8);
                FrameKind::Welcome
            }
            Message::Refuse(refusal) => {
                w.u8(refusal.kind as u8).string(&refusal.message);
                FrameKind::Refuse
            }
            Message::Survey => FrameKind::Survey,
            Message::HaveEnd => FrameKind::HaveEnd,
            Message::Begin(begin) => {
                w.u64(begin.generation).u64(begin.source_time_ms);
                FrameKind::Begin
            }
            Message::Zero { first, count } => {
                w.u64(*first).u64(*count);
                FrameKind::Zero
            }
            Message::Mark(bytes) => {
                w.u64(*bytes);
                FrameKind::Mark
            }
            Message::End(end) => {
                w.u64(end.generation).digest(&end.root);
                let c = &end.counts;
                w.u64(c.read_bytes).u64(c.changed_extents).u64(c.sent_blocks);
                w.u64(c.plain_bytes).u64(c.zero_extents).u64(c.wire_bytes);
                FrameKind::End
            }
            Message::Need(extents) => {
                w.u32(extents.len() as u32);
                extents.iter().for_each(|extent| {
                    w.u64(*extent);
                });
                FrameKind::Need
            }
            Message::Ack(ack) => {
                w.u64(ack.generation).digest(&ack.root).u64(ack.healed_extents).u64(ack.written_bytes);
                FrameKind::Ack
            }
            Message::Abort(refusal) => {
                w.u8(refusal.kind as u8).string(&refusal.message);
                FrameKind::Abort
            }
            Message::Seal(seal) => {
                w.u64(seal.generation).digest(&seal.root).u64(seal.frames).u64(seal.chain).u64(seal.source_time_ms);
                FrameKind::Seal
            }
            Message::Pulse(work) => {
                w.u64(*work);
                FrameKind::Pulse
            }
            Message::Part(ranges) => {
                w.u32(ranges.len() as u32);
                ranges.iter().for_each(|range| {
                    w.u64(range.start).u64(range.end - range.start);
                });
                FrameKind::Part
            }
            Message::Lanes(lanes) => {
                w.raw(&lanes.token).u32(lanes.most);
                FrameKind::Lanes
            }
            Message::Spread(lanes) => {
                w.u32(*lanes);
                FrameKind::Spread
            }
        };
        (kind, w.finish())
    }

    fn decode(kind: FrameKind, body: &[u8]) -> Result<Message> {
        let mut r = Reader::new("message", body);
        let message = match kind {
            FrameKind::Hello => Message::Hello(Box::new(Hello::read(&mut r)?)),
            FrameKind::Welcome => Message::Welcome(Welcome {
                epoch: r.uuid()?,
                generation: r.u64()?,
                root: r.digest()?,
                mode: one_of(r.u8()?, &[Mode::Nothing, Mode::Direct, Mode::Journal], |mode| mode as u8)?,
                baseline: one_of(r.u8()?, &[Baseline::Yours, Baseline::Unknown, Baseline::Zeros], |base| base as u8)?,
                offer: one_of(r.u8()?, &[Offer::Nothing, Offer::Samples, Offer::Listing], |offer| offer as u8)?,
            }),
            FrameKind::Refuse => Message::Refuse(Refusal { kind: Kind::from_wire(r.u8()?), message: r.string()? }),
            FrameKind::Survey => Message::Survey,
            FrameKind::HaveEnd => Message::HaveEnd,
            FrameKind::Begin => Message::Begin(Begin { generation: r.u64()?, source_time_ms: r.u64()? }),
            FrameKind::Zero => Message::Zero { first: r.u64()?, count: r.u64()? },
            FrameKind::Mark => Message::Mark(r.u64()?),
            FrameKind::Pulse => Message::Pulse(r.u64()?),
            FrameKind::Lanes => Message::Lanes(LaneOffer { token: r.array()?, most: r.u32()? }),
            FrameKind::Spread => Message::Spread(r.u32()?),
            FrameKind::End => Message::End(End {
                generation: r.u64()?,
                root: r.digest()?,
                counts: Counts {
                    read_bytes: r.u64()?,
                    changed_extents: r.u64()?,
                    sent_blocks: r.u64()?,
                    plain_bytes: r.u64()?,
                    zero_extents: r.u64()?,
                    wire_bytes: r.u64()?,
                },
            }),
            FrameKind::Need => {
                let count = r.u32()? as usize;
                if count > NEED_EXTENTS_MAX {
                    return Err(Error::malformed("malformed Need frame: it asks for too many extents"));
                }
                Message::Need((0..count).map(|_| r.u64()).collect::<Result<_>>()?)
            }
            FrameKind::Part => {
                let count = r.u32()? as usize;
                if count > PART_RANGES_MAX {
                    return Err(Error::malformed("malformed Part frame: it has too many ranges"));
                }
                let mut ranges = Vec::with_capacity(count);
                for _ in 0..count {
                    let (first, extents) = (r.u64()?, r.u64()?);
                    let end = first.checked_add(extents).filter(|_| extents > 0);
                    ranges.push(first..end.ok_or_else(|| Error::malformed("malformed Part frame: a range is empty or has no end"))?);
                }
                Message::Part(ranges)
            }
            FrameKind::Ack => {
                Message::Ack(Ack { generation: r.u64()?, root: r.digest()?, healed_extents: r.u64()?, written_bytes: r.u64()? })
            }
            FrameKind::Abort => Message::Abort(Refusal { kind: Kind::from_wire(r.u8()?), message: r.string()? }),
            FrameKind::Seal => {
                Message::Seal(Seal { generation: r.u64()?, root: r.digest()?, frames: r.u64()?, chain: r.u64()?, source_time_ms: r.u64()? })
            }
            FrameKind::Data | FrameKind::Have => return Err(Error::malformed("a data frame is no message")),
        };
        r.finish()?;
        Ok(message)
    }
}

impl Hello {
    fn write(&self, w: &mut Writer) {
        w.u8(self.purpose as u8).u8(u8::from(self.overwrite)).u8(u8::from(self.rehash));
        w.uuid(&self.relationship).uuid(&self.epoch).u64(self.generation).digest(&self.root);
        w.u64(self.volume_bytes).u32(self.extent_bytes).u8(self.algorithm as u8).secret(&self.secret);
        w.string(&self.target).string(&self.source);
    }

    fn read(r: &mut Reader<'_>) -> Result<Hello> {
        Ok(Hello {
            purpose: one_of(r.u8()?, &[Purpose::Replicate, Purpose::Plan, Purpose::Verify], |purpose| purpose as u8)?,
            overwrite: boolean(r.u8()?)?,
            rehash: boolean(r.u8()?)?,
            relationship: r.uuid()?,
            epoch: r.uuid()?,
            generation: r.u64()?,
            root: r.digest()?,
            volume_bytes: r.u64()?,
            extent_bytes: r.u32()?,
            algorithm: one_of(r.u8()?, &[Algorithm::Xxh3, Algorithm::Blake3], |algorithm| algorithm as u8)?,
            secret: r.secret()?,
            target: r.string()?,
            source: r.string()?,
        })
    }
}

fn one_of<T: Copy>(code: u8, all: &[T], number: impl Fn(T) -> u8) -> Result<T> {
    all.iter()
        .copied()
        .find(|value| number(*value) == code)
        .ok_or_else(|| Error::malformed(format!("malformed message: unknown code {code}")))
}

fn boolean(code: u8) -> Result<bool> {
    one_of(code, &[false, true], u8::from)
}

// ---------------------------------------------------------------------------------------------
// Greeting

/// The readable first line of each direction, newline included: program, its version, stream versions.
pub fn greeting() -> String {
    format!("blockferry {} stream {}-{}\n", env!("CARGO_PKG_VERSION"), VERSIONS.start(), VERSIONS.end())
}

/// The highest version both sides speak, from the peer's greeting without its newline.
pub fn agree(line: &str) -> Result<u16> {
    let foreign = || {
        let shown: String = line.chars().take(80).collect();
        Error::new(
            Kind::Refused,
            format!("the peer is not blockferry: it said \"{}\" (does its login shell print something?)", shown.escape_debug()),
        )
    };
    let mut words = line.split(' ');
    let (Some("blockferry"), Some(_), Some("stream"), Some(range), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(foreign());
    };
    let (low, high) = range.split_once('-').ok_or_else(foreign)?;
    let (low, high): (u16, u16) = (low.parse().map_err(|_| foreign())?, high.parse().map_err(|_| foreign())?);
    let highest = high.min(*VERSIONS.end());
    if highest < low.max(*VERSIONS.start()) {
        let message = format!(
            "the peer speaks stream versions {low} to {high}, this program {} to {}: update the older one",
            VERSIONS.start(),
            VERSIONS.end()
        );
        return Err(Error::new(Kind::Refused, message));
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(10 * 65536 + 512, 65536).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Frame<'_>> {
        let header = header(bytes)?.ok_or_else(|| Error::malformed("short"))?;
        if bytes.len() != header.frame_bytes() {
            return Err(Error::malformed("length"));
        }
        let frame = decode(&header, &bytes[HEADER_BYTES..])?;
        if let Frame::Data(data) = &frame {
            data.check(&geometry(), &header)?;
        }
        Ok(frame)
    }

    fn hello() -> Message {
        Message::Hello(Box::new(Hello {
            purpose: Purpose::Replicate,
            overwrite: true,
            rehash: false,
            relationship: Uuid::from_u128(1),
            epoch: Uuid::from_u128(2),
            generation: 3,
            root: Digest([4; 16]),
            volume_bytes: 5,
            extent_bytes: 65536,
            algorithm: Algorithm::Blake3,
            secret: [6; 192],
            target: "/dev/vg/replica".into(),
            source: "host:/dev/vg/volume".into(),
        }))
    }

    fn data(extents: &[(u64, u8)], whole: bool) -> Vec<u8> {
        let geometry = geometry();
        let mut table = DataTable::new(&geometry);
        let mut plain_bytes = 0;
        for (extent, low) in extents {
            let bitmap = [*low, if whole { 0xff } else { 0 }];
            table.push(ExtentIndex(*extent), &Digest([9; 16]), &bitmap);
            plain_bytes += ExtentLine { extent: ExtentIndex(*extent), digest: Digest([9; 16]), bitmap: &bitmap }.plain_bytes(&geometry);
        }
        let mut frame = vec![0x5a; table.payload_at() + plain_bytes];
        let bytes = table.write(&mut frame, plain_bytes, plain_bytes, Encoding::Stored, whole);
        assert_eq!(bytes, frame.len());
        frame
    }

    #[test]
    fn every_message_reads_back() {
        let refusal = Refusal { kind: Kind::Refused, message: "no".into() };
        let all = [
            hello(),
            Message::Welcome(Welcome {
                epoch: Uuid::from_u128(1),
                generation: 2,
                root: Digest([3; 16]),
                mode: Mode::Journal,
                baseline: Baseline::Zeros,
                offer: Offer::Samples,
            }),
            Message::Refuse(refusal.clone()),
            Message::Survey,
            Message::HaveEnd,
            Message::Begin(Begin { generation: 8, source_time_ms: 9 }),
            Message::Zero { first: 1, count: 2 },
            Message::Mark(77),
            Message::End(End { generation: 1, root: Digest([2; 16]), counts: Counts { read_bytes: 3, ..Counts::default() } }),
            Message::Need(vec![5, 6]),
            Message::Ack(Ack { generation: 1, root: Digest([2; 16]), healed_extents: 3, written_bytes: 4 }),
            Message::Abort(refusal),
            Message::Seal(Seal { generation: 1, root: Digest([1; 16]), frames: 2, chain: 3, source_time_ms: 4 }),
            Message::Pulse(5),
            Message::Part(vec![0..1, 7..9]),
            Message::Lanes(LaneOffer { token: [7; 16], most: 4 }),
            Message::Spread(3),
        ];
        for message in all {
            let bytes = encode(&message);
            assert!(matches!(read(&bytes).unwrap(), Frame::Message(back) if back == message), "{message:?}");
        }
    }

    #[test]
    fn a_part_without_extents_or_without_an_end_is_refused() {
        for (first, extents) in [(3u64, 0u64), (u64::MAX, 2)] {
            let mut w = Writer::default();
            w.u32(1).u64(first).u64(extents);
            assert!(Message::decode(FrameKind::Part, &w.finish()).is_err(), "{first} {extents}");
        }
    }

    #[test]
    fn data_lines_give_their_runs() {
        let frame = data(&[(2, 0b1100_0101), (9, 1)], false);
        let Frame::Data(data) = read(&frame).unwrap() else { panic!("not data") };
        let lines: Vec<_> = data.lines().collect();
        assert_eq!(lines[0].runs().collect::<Vec<_>>(), [0..1, 2..3, 6..8]);
        assert_eq!((lines[0].extent, lines[1].extent), (ExtentIndex(2), ExtentIndex(9)));
        assert_eq!(data.plain_bytes, 5 * 4096);
    }

    #[test]
    fn the_last_block_may_be_short() {
        let frame = data(&[(10, 1)], false);
        let Frame::Data(data) = read(&frame).unwrap() else { panic!("not data") };
        assert_eq!(data.plain_bytes, 512);
        assert!(data.lines().next().unwrap().is_whole(&geometry()));
    }

    #[test]
    fn lies_about_extents_are_refused() {
        // A table cannot say "earlier"; a distance that would wrap around is beyond the end.
        for (what, extents) in [("order", [3, 2 + (1 << 32)]), ("twice", [3, 3]), ("beyond", [3, 11])] {
            let mut table = DataTable::new(&geometry());
            extents.iter().for_each(|extent| table.push(ExtentIndex(*extent), &Digest([9; 16]), &[1, 0]));
            let mut frame = vec![0; table.payload_at() + 2 * 4096];
            table.write(&mut frame, 2 * 4096, 2 * 4096, Encoding::Stored, false);
            assert!(read(&frame).is_err(), "{what}");
        }
        assert!(read(&data(&[(10, 2)], false)).is_err(), "a block beyond the short extent's end");
        assert!(read(&data(&[(1, 0)], false)).is_err(), "no block at all");
    }

    #[test]
    fn a_flipped_bit_anywhere_but_in_a_proven_payload_is_found() {
        for frame in [encode(&hello()), data(&[(2, 5), (4, 255)], false), data(&[(3, 0xff)], true)] {
            let checked = header(&frame).unwrap().unwrap().checked_bytes + HEADER_BYTES;
            for bit in 0..checked * 8 {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&broken).is_err(), "bit {bit} of {}", frame.len() * 8);
            }
        }
    }

    #[test]
    fn versions_agree_on_the_highest_in_common() {
        assert_eq!(agree(greeting().trim_end()).unwrap(), 4);
        assert_eq!(agree("blockferry 9.0 stream 1-7").unwrap(), 4);
        assert_eq!(agree("blockferry 0.1.0 stream 1-3").unwrap(), 3);
        assert_eq!(agree("blockferry 0.1.0 stream 1-2").unwrap(), 2);
        assert_eq!(agree("blockferry 0.1.0 stream 1-1").unwrap(), 1);
        let refusal = agree("blockferry 9.0 stream 5-7").unwrap_err();
        assert!(refusal.to_string().contains("5 to 7") && refusal.to_string().contains("1 to 4"));
        assert!(agree("Welcome to host!").unwrap_err().to_string().contains("Welcome to host!"));
    }
}
