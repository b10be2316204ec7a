//! The ways to make a range read as zeros, from the cheapest to the one that always works; both engines share them.
//!
//! On a block device PUNCH_HOLE means "zero, unmap where that is safe, no fallback" and still promises
//! zeros (BLKDISCARD does not); ZERO_RANGE zeroes without unmapping; writing zeros is what is left.

use nix::libc::{EINVAL, EOPNOTSUPP, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use std::collections::HashMap;
use std::os::fd::RawFd;

/// Longest range of one fallocate: nobody can interrupt the kernel inside one, so it has to end soon.
pub(super) const STEP_BYTES: u64 = 1 << 30;
/// Zeros written at a time where the kernel offers nothing better.
pub(super) const ZERO_BUFFER_BYTES: usize = 1 << 20;

/// A way to zero a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    PunchHole,
    ZeroRange,
    WriteZeros,
}

impl Way {
    /// The mode for fallocate; `None`: zeros have to be written.
    pub(super) fn mode(self) -> Option<i32> {
        match self {
            Way::PunchHole => Some(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
            Way::ZeroRange => Some(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE),
            Way::WriteZeros => None,
        }
    }

    fn next(self) -> Option<Way> {
        match self {
            Way::PunchHole => Some(Way::ZeroRange),
            Way::ZeroRange => Some(Way::WriteZeros),
            Way::WriteZeros => None,
        }
    }
}

/// What an engine learned about its files. Keyed by descriptor, so it is bounded by their number; a
/// number that comes back for another file costs at worst a dearer way, never a wrong byte.
#[derive(Debug, Default)]
pub(super) struct Ways(HashMap<RawFd, Way>);

impl Ways {
    /// The cheapest way not yet known to fail.
    pub(super) fn first(&self, file: RawFd) -> Way {
        self.0.get(&file).copied().unwrap_or(Way::PunchHole)
    }

    /// The way to try after `way` failed with `errno`; `None`: the failure is real. EOPNOTSUPP is
    /// about the file and remembered; EINVAL may be about this range's alignment only.
    pub(super) fn after(&mut self, file: RawFd, way: Way, errno: i32) -> Option<Way> {
        if errno != EOPNOTSUPP && errno != EINVAL {
            return None;
        }
        let next = way.next()?;
        if errno == EOPNOTSUPP {
            self.0.insert(file, next);
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_way_is_not_tried_twice_but_a_misaligned_range_spoils_nothing() {
        let mut ways = Ways::default();
        assert_eq!(ways.after(3, Way::PunchHole, EINVAL), Some(Way::ZeroRange));
        assert_eq!(ways.first(3), Way::PunchHole);
        assert_eq!(ways.after(3, Way::PunchHole, EOPNOTSUPP), Some(Way::ZeroRange));
        assert_eq!(ways.first(3), Way::ZeroRange);
        assert_eq!(ways.after(3, Way::ZeroRange, nix::libc::EIO), None);
        assert_eq!(ways.after(3, Way::WriteZeros, EOPNOTSUPP), None);
        assert_eq!(ways.first(4), Way::PunchHole);
    }
}
