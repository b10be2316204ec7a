//! Decides what has to travel: nothing, a zero, or some blocks of an extent.

use super::hasher::HashedExtent;
use crate::digest::{Digest, is_zero};
use crate::format::manifest::Entry;

/// What an extent's comparison came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver holds exactly this.
    Unchanged,
    /// It is all zero, which the receiver does not hold.
    Zero,
    /// The blocks marked in the bitmap differ.
    Changed,
}

/// Compares an extent with what the receiver is believed to hold. `bitmap` receives one bit a block.
pub fn compare(extent: &HashedExtent<'_>, held: &Entry<'_>, zero: Digest, bitmap: &mut Vec<u8>) -> Verdict {
    if held.digest == extent.digest {
        return Verdict::Unchanged;
    }
    // The digest says which extents are worth the look; only the bytes decide.
    if extent.digest == zero && is_zero(extent.data) {
        return Verdict::Zero;
    }
    mark_changed_blocks(extent, held, bitmap);
    Verdict::Changed
}

fn mark_changed_blocks(extent: &HashedExtent<'_>, held: &Entry<'_>, bitmap: &mut Vec<u8>) {
    let blocks = extent.blocks.len();
    bitmap.clear();
    bitmap.resize(blocks.div_ceil(8), 0);
    let mut any = false;
    for (at, block) in extent.blocks.iter().enumerate() {
        if !held.digest.is_known() || held.fingerprint(at) != block.fingerprint() {
            bitmap[at / 8] |= 1 << (at % 8);
            any = true;
        }
    }
    // The extent differs and no fingerprint does: one of them lies. Send all of it.
    if !any {
        mark_all_blocks(blocks, bitmap);
    }
}

/// Marks every block.
pub fn mark_all_blocks(blocks: usize, bitmap: &mut Vec<u8>) {
    bitmap.clear();
    bitmap.resize(blocks.div_ceil(8), 0xff);
    if let (Some(last), rest @ 1..) = (bitmap.last_mut(), blocks % 8) {
        *last = (1 << rest) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Hasher};
    use crate::extent::ExtentIndex;
    use crate::format::manifest::write_entry;

    fn verdict(data: &[u8], held: &[u8]) -> (Verdict, Vec<u8>) {
        let hasher = Hasher::new(Algorithm::Xxh3, &[1; 192]);
        let (mut blocks, mut bitmap) = (Vec::new(), Vec::new());
        let mut entry = vec![0; 16 + 4 * 16];
        if !held.is_empty() {
            let digest = hasher.extent(held, &mut blocks);
            write_entry(&mut entry, &digest, &blocks);
        }
        let zero = hasher.zero_extent(data.len(), &mut blocks);
        let digest = hasher.extent(data, &mut blocks);
        let extent = HashedExtent { index: ExtentIndex(0), data, digest, blocks: &blocks };
        let verdict = compare(&extent, &Entry::new(&entry), zero, &mut bitmap);
        (verdict, bitmap)
    }

    #[test]
    fn exactly_the_blocks_that_differ_are_marked() {
        let held = vec![7; 65536];
        let mut data = held.clone();
        assert_eq!(verdict(&data, &held).0, Verdict::Unchanged);
        data[4096] = 1;
        data[65535] = 1;
        assert_eq!(verdict(&data, &held), (Verdict::Changed, vec![0b10, 0x80]));
    }

    #[test]
    fn an_unknown_extent_travels_whole_and_a_zero_one_not_at_all() {
        assert_eq!(verdict(&[7; 65536], &[]), (Verdict::Changed, vec![0xff, 0xff]));
        assert_eq!(verdict(&[7; 4608], &[]), (Verdict::Changed, vec![0b11]));
        assert_eq!(verdict(&[0; 65536], &[7; 65536]).0, Verdict::Zero);
        assert_eq!(verdict(&[0; 65536], &[0; 65536]).0, Verdict::Unchanged);
    }

    #[test]
    fn a_lying_fingerprint_makes_the_whole_extent_travel() {
        let hasher = Hasher::new(Algorithm::Xxh3, &[1; 192]);
        let mut blocks = Vec::new();
        let data = vec![3; 65536];
        let digest = hasher.extent(&data, &mut blocks);
        let mut entry = vec![0; 16 + 4 * 16];
        write_entry(&mut entry, &Digest([9; 16]), &blocks);
        let mut bitmap = Vec::new();
        let extent = HashedExtent { index: ExtentIndex(0), data: &data, digest, blocks: &blocks };
        assert_eq!(compare(&extent, &Entry::new(&entry), Digest::UNKNOWN, &mut bitmap), Verdict::Changed);
        assert_eq!(bitmap, [0xff, 0xff]);
    }
}
