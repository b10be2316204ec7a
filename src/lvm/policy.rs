//! How much room a classic snapshot gets, and what stays free in its volume group.
//!
//! A classic snapshot keeps the old content of every chunk the origin changes while the snapshot
//! lives. Too small and it overflows, which ends the run; too large and others cannot have theirs.
//!
//! Worked example: `changed:2x`, 3 GiB changed last time, a volume of 100 GiB: 6 GiB and one per
//! cent for the table of moved chunks, rounded up to the group's extents. On the first run nothing
//! is known of the changes: a tenth of the volume, 10 GiB. Where little changed last time the store has
//! a cushion, 512 MiB or a quarter of what the group has to spare: a burst of writes must not fill it before the
//! next look finds that it needs more.

use crate::error::{Error, Kind, Result};
use crate::limits::{COW_BYTES_MIN, COW_CUSHION, COW_FIRST_PERCENT};
use crate::lvm::report::Vg;
use crate::settings::amount::{about, exact, parse_bytes};
use crate::settings::{Share as Room, by_text};
use std::fmt;
use std::str::FromStr;

/// Room for a classic snapshot, and what happens when it runs short.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How large the COW store is made.
    pub size: CowSize,
    /// What the volume group keeps.
    pub min_vg_free: Room,
    /// Whether a snapshot that fills up is given more.
    pub extend: bool,
}

impl Default for Policy {
    /// Twice what changed last time, 5 % of the group kept, extended when it fills up.
    fn default() -> Policy {
        Policy { size: CowSize::Changed { hundredths: 200 }, min_vg_free: Room::Percent(5), extend: true }
    }
}

/// Size of a COW store: `changed:2x`, `origin:10%`, `free:50%` or `fixed:8GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CowSize {
    /// A multiple of what changed between the last two snapshots; a tenth of the origin while that is unknown.
    Changed {
        /// The factor, in hundredths.
        hundredths: u32,
    },
    /// A share of the origin, in per cent.
    Origin(u8),
    /// A share of what the group has free above what it keeps, in per cent.
    Free(u8),
    /// So many bytes.
    Fixed(u64),
}

impl Policy {
    /// With twice the room that was not enough.
    pub fn larger(&self, cow_bytes: u64) -> Policy {
        Policy { size: CowSize::Fixed(cow_bytes.saturating_mul(2)), ..self.clone() }
    }

    /// The COW store for a volume of `origin_bytes`, or why the group cannot give it.
    /// `changed_bytes`: what changed between the last two snapshots, if known.
    pub fn cow_bytes(&self, origin_bytes: u64, changed_bytes: Option<u64>, vg: &Vg) -> Result<u64> {
        let spare = vg.free_bytes.saturating_sub(self.min_vg_free.of(vg.bytes));
        let wanted = match (self.size, changed_bytes) {
            (CowSize::Changed { hundredths }, Some(changed)) => with_table(changed.saturating_mul(u64::from(hundredths)) / 100),
            (CowSize::Changed { .. }, None) => with_table(share(origin_bytes, COW_FIRST_PERCENT)),
            (CowSize::Origin(percent), _) => with_table(share(origin_bytes, percent)),
            (CowSize::Free(percent), _) => share(spare, percent) / vg.extent_bytes.max(1) * vg.extent_bytes.max(1),
            (CowSize::Fixed(bytes), _) => bytes,
        };
        let cushion = if matches!(self.size, CowSize::Changed { .. }) { COW_CUSHION.min(spare / 4) } else { 0 };
        let bytes = wanted.max(COW_BYTES_MIN).max(cushion).min(largest_cow(origin_bytes)).next_multiple_of(vg.extent_bytes.max(1));
        if bytes <= spare { Ok(bytes) } else { Err(self.no_room(bytes, vg)) }
    }

    /// Another step for a store of `now` bytes: doubled, as far as it is of use and the group has room.
    /// `None`: there is nothing to give.
    pub fn step_bytes(&self, now: u64, origin_bytes: u64, vg: &Vg) -> Option<u64> {
        let spare = vg.free_bytes.saturating_sub(self.min_vg_free.of(vg.bytes));
        let useful = largest_cow(origin_bytes).next_multiple_of(vg.extent_bytes.max(1)).saturating_sub(now);
        let step = now.min(useful).min(spare) / vg.extent_bytes.max(1) * vg.extent_bytes.max(1);
        (self.extend && step > 0).then_some(step)
    }

    fn no_room(&self, bytes: u64, vg: &Vg) -> Error {
        let kept = match self.min_vg_free.of(vg.bytes) {
            0 => String::new(),
            kept => format!(" and keeps {} (min_vg_free)", about(kept)),
        };
        let message = format!(
            "a snapshot needs {} (policy {}), but volume group {name} has {} free{kept}: \
             add a disk with `vgextend {name}`, or choose a smaller COW size",
            about(bytes),
            self.size,
            about(vg.free_bytes),
            name = vg.name,
        );
        Error::new(Kind::Snapshot, message)
    }
}

/// A chunk of 4 KiB costs 16 bytes in the table, and each table its own chunk: one per cent covers it.
fn with_table(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 100)
}

/// A store in which every chunk of the origin has its place cannot overflow; more is wasted.
fn largest_cow(origin_bytes: u64) -> u64 {
    with_table(origin_bytes).saturating_add(1 << 20)
}

fn share(whole: u64, percent: u8) -> u64 {
    (u128::from(whole) * u128::from(percent) / 100) as u64 // percent is at most 100, so it fits
}

fn parse_percent(text: &str) -> Option<u8> {
    text.strip_suffix('%')?.trim().parse().ok().filter(|percent| *percent <= 100)
}

/// `2x`, `1.5x`, `0.25x` in hundredths.
fn parse_factor(text: &str) -> Option<u32> {
    let factor: f64 = text.strip_suffix('x')?.parse().ok()?;
    let hundredths = (factor * 100.0).round();
    (1.0..=100_000.0).contains(&hundredths).then_some(hundredths as u32)
}

by_text!(CowSize);

impl FromStr for CowSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<CowSize> {
        let parsed = match text.split_once(':') {
            Some(("changed", factor)) => parse_factor(factor).map(|hundredths| CowSize::Changed { hundredths }),
            Some(("origin", percent)) => parse_percent(percent).filter(|percent| *percent > 0).map(CowSize::Origin),
            Some(("free", percent)) => parse_percent(percent).filter(|percent| *percent > 0).map(CowSize::Free),
            Some(("fixed", bytes)) => parse_bytes(bytes).filter(|bytes| *bytes > 0).map(CowSize::Fixed),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Error::new(Kind::Usage, format!("`{text}` is no snapshot size: write changed:2x, origin:10%, free:50% or fixed:8GiB"))
        })
    }
}

impl fmt::Display for CowSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            CowSize::Changed { hundredths } => write!(f, "changed:{}x", f64::from(hundredths) / 100.0),
            CowSize::Origin(percent) => write!(f, "origin:{percent}%"),
            CowSize::Free(percent) => write!(f, "free:{percent}%"),
            CowSize::Fixed(bytes) => write!(f, "fixed:{}", exact(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    const EXTENT: u64 = 4 << 20;

    fn group(gib: u64, free_gib: u64) -> Vg {
        Vg { name: "vg0".to_owned(), bytes: gib * GIB, free_bytes: free_gib * GIB, extent_bytes: EXTENT }
    }

    fn policy(size: &str, min_vg_free: &str) -> Policy {
        Policy { size: size.parse().unwrap(), min_vg_free: min_vg_free.parse().unwrap(), extend: true }
    }

    #[test]
    fn each_policy_has_its_size() {
        let vg = group(1000, 200);
        let bytes = |size: &str, changed| policy(size, "5%").cow_bytes(100 * GIB, changed, &vg).unwrap();
        let plus = |bytes: u64| with_table(bytes).next_multiple_of(EXTENT);
        assert_eq!(bytes("changed:2x", Some(3 * GIB)), plus(6 * GIB));
        assert_eq!(bytes("changed:2x", None), plus(10 * GIB));
        assert_eq!(bytes("origin:20%", Some(3 * GIB)), plus(20 * GIB));
        assert_eq!(bytes("free:50%", None), 75 * GIB); // half of 200 less the 50 that are kept
        assert_eq!(bytes("fixed:8GiB", None), 8 * GIB);
    }

    #[test]
    fn a_store_is_never_tiny_and_never_larger_than_of_use() {
        let vg = group(1000, 500);
        let quiet = |vg: &Vg| policy("changed:2x", "0%").cow_bytes(100 * GIB, Some(0), vg).unwrap();
        assert_eq!(quiet(&vg), COW_CUSHION);
        assert_eq!(quiet(&group(1000, 1)), GIB / 4, "a cushion leaves room for others");
        assert_eq!(quiet(&Vg { free_bytes: 24 << 20, ..vg.clone() }), COW_BYTES_MIN);
        let most = policy("fixed:400GiB", "0%").cow_bytes(GIB, None, &vg).unwrap();
        assert!(most > GIB && most < GIB + GIB / 50, "{most}");
    }

    #[test]
    fn a_group_without_room_says_what_is_missing() {
        let error = policy("fixed:8GiB", "5%").cow_bytes(100 * GIB, None, &group(100, 10)).unwrap_err();
        assert_eq!(error.kind(), Kind::Snapshot);
        let text = error.chain();
        for word in ["8.0 GiB", "fixed:8GiB", "vg0", "10.0 GiB free", "keeps 5.0 GiB", "vgextend vg0"] {
            assert!(text.contains(word), "{word} is missing in: {text}");
        }
    }

    #[test]
    fn a_step_doubles_until_the_group_or_the_use_ends() {
        let policy = policy("origin:10%", "10GiB");
        assert_eq!(policy.step_bytes(2 * GIB, 100 * GIB, &group(100, 50)), Some(2 * GIB));
        assert_eq!(policy.step_bytes(8 * GIB, 100 * GIB, &group(100, 13)), Some(3 * GIB));
        assert_eq!(policy.step_bytes(8 * GIB, 100 * GIB, &group(100, 10)), None);
        assert_eq!(policy.step_bytes(102 * GIB, 100 * GIB, &group(1000, 500)), None);
        assert_eq!(Policy { extend: false, ..policy }.step_bytes(GIB, 100 * GIB, &group(100, 50)), None);
    }

    #[test]
    fn what_is_printed_is_what_was_typed() {
        for text in ["changed:2x", "changed:1.5x", "origin:10%", "free:50%", "fixed:8GiB", "fixed:1536MiB", "fixed:1000"] {
            assert_eq!(text.parse::<CowSize>().unwrap().to_string(), text);
        }
        for text in ["5%", "0%", "8GiB", "1000"] {
            assert_eq!(text.parse::<Room>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_examples() {
        for text in
            ["", "2x", "changed:0x", "changed:-1x", "changed:NaNx", "origin:0%", "origin:101%", "fixed:", "fixed:8PB", "fixed:99999999TiB"]
        {
            let error = text.parse::<CowSize>().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.chain().contains("changed:2x"));
        }
        assert!("101%".parse::<Room>().is_err());
    }

    proptest! {
        #[test]
        fn no_size_overflows_or_takes_what_is_kept(origin: u64, changed: Option<u64>, free: u64, percent in 0u8..=100, factor in 1u32..100_000) {
            let vg = Vg { name: String::new(), bytes: free, free_bytes: free, extent_bytes: EXTENT };
            let policy = Policy { size: CowSize::Changed { hundredths: factor }, min_vg_free: Room::Percent(percent), extend: true };
            if let Ok(bytes) = policy.cow_bytes(origin >> 4, changed, &vg) {
                prop_assert!(bytes <= free - share(free, percent));
                prop_assert_eq!(bytes % EXTENT, 0);
            }
        }
    }
}
