//! A lane: a further connection of a session, which carries pieces of what the sender sends
//! (docs/format/lane.md).
//!
//! It begins with a [`Join`], which the receiver answers with [`JOINED`]; then pieces follow without gaps, each a
//! [`PieceHead`] and its bytes. Pieces in the order of their numbers, over all lanes of the session, are the stream
//! behind its Spread frame.

use super::codec::crc;
use crate::error::{Error, Result};
use crate::limits::TRANSPORT_BUFFER_BYTES;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the number that tells one session from another.
pub const LANE_TOKEN_BYTES: usize = 16;

/// What a lane begins with.
pub const JOIN_BYTES: usize = size_of::<RawJoin>();

/// Bytes in front of each piece.
pub const PIECE_HEAD_BYTES: usize = size_of::<RawPiece>();

/// The receiver's one byte of answer: the lane is this session's from now on.
pub const JOINED: u8 = 1;

const MAGIC: [u8; 4] = *b"BFln";
const VERSION: u16 = 1;
const _: () = assert!(JOIN_BYTES == 28 && PIECE_HEAD_BYTES == 16);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawJoin {
    magic: [u8; 4],
    version: U16,
    reserved: U16,
    token: [u8; LANE_TOKEN_BYTES],
    crc: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPiece {
    number: U64,
    bytes: U32,
    crc: U32,
}

/// The session that a lane belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// What the receiver offered it with.
    pub token: [u8; LANE_TOKEN_BYTES],
}

impl Join {
    /// As bytes.
    pub fn encode(&self) -> [u8; JOIN_BYTES] {
        let mut raw = RawJoin { magic: MAGIC, version: U16::new(VERSION), reserved: U16::ZERO, token: self.token, crc: U32::ZERO };
        raw.crc = U32::new(crc(&raw.as_bytes()[..JOIN_BYTES - 4]));
        zerocopy::transmute!(raw)
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; JOIN_BYTES]) -> Result<Join> {
        let raw: RawJoin = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC || raw.version.get() != VERSION || raw.reserved.get() != 0 || crc(&bytes[..JOIN_BYTES - 4]) != raw.crc.get() {
            return Err(Error::malformed("a further connection does not begin as one of ours does"));
        }
        Ok(Join { token: raw.token })
    }
}

/// What stands in front of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// Its place among all pieces of the session, from 0 on.
    pub number: u64,
    /// Its length, from 1 to [`TRANSPORT_BUFFER_BYTES`].
    pub bytes: usize,
}

impl PieceHead {
    /// As bytes.
    pub fn encode(&self) -> [u8; PIECE_HEAD_BYTES] {
        let mut raw = RawPiece { number: U64::new(self.number), bytes: U32::new(self.bytes as u32), crc: U32::ZERO };
        raw.crc = U32::new(crc(&raw.as_bytes()[..PIECE_HEAD_BYTES - 4]));
        zerocopy::transmute!(raw)
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; PIECE_HEAD_BYTES]) -> Result<PieceHead> {
        let raw: RawPiece = zerocopy::transmute!(*bytes);
        let head = PieceHead { number: raw.number.get(), bytes: raw.bytes.get() as usize };
        if crc(&bytes[..PIECE_HEAD_BYTES - 4]) != raw.crc.get() {
            return Err(Error::malformed("damaged head of a piece: its CRC does not match"));
        }
        if !(1..=TRANSPORT_BUFFER_BYTES).contains(&head.bytes) {
            return Err(Error::malformed(format!("a piece of {} bytes: from 1 to {TRANSPORT_BUFFER_BYTES} are allowed", head.bytes)));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_and_head_read_back_and_no_flipped_bit_passes() {
        let (join, head) = (Join { token: [9; 16] }, PieceHead { number: 1 << 40, bytes: 4097 });
        assert_eq!((Join::decode(&join.encode()).unwrap(), PieceHead::decode(&head.encode()).unwrap()), (join, head));
        for bit in 0..8 * JOIN_BYTES {
            let mut broken = join.encode();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Join::decode(&broken).is_err(), "bit {bit}");
        }
        for bit in 0..8 * PIECE_HEAD_BYTES {
            let mut broken = head.encode();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(PieceHead::decode(&broken).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_piece_of_nothing_and_one_that_fits_no_buffer_are_refused() {
        for (bytes, good) in [(0, false), (1, true), (TRANSPORT_BUFFER_BYTES, true), (TRANSPORT_BUFFER_BYTES + 1, false)] {
            assert_eq!(PieceHead::decode(&PieceHead { number: 0, bytes }.encode()).is_ok(), good, "{bytes}");
        }
    }
}
