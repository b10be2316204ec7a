//! Part of a volume, for a look that is not to read all of it: a slice, or a sample. Pure arithmetic over extents.

use crate::extent::Geometry;
use crate::limits::SAMPLE_RANGES_MAX;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Which extents are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    #[default]
    Full,
    /// One of several parts of the same size that together are the volume.
    Slice(Slice),
    /// So many, chosen by chance.
    Sample {
        /// How many.
        extents: u32,
        /// The same seed chooses the same extents.
        seed: u64,
    },
}

/// `number` of `of`, counted from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// From 1 to `of`.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl FromStr for Slice {
    type Err = String;

    fn from_str(text: &str) -> Result<Slice, String> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=10_000).contains(&of) && (1..=of).contains(&number) => Ok(Slice { number, of }),
            _ => Err(format!("\"{text}\" is no slice: 2/4 is the second of four")),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Full => f.write_str("full"),
            Part::Slice(slice) => write!(f, "slice {}/{}", slice.number, slice.of),
            Part::Sample { extents, seed } => write!(f, "sample of {extents} extents, seed {seed}"),
        }
    }
}

impl Part {
    /// The extents as ascending ranges; `None`: all. A slice of a volume with fewer extents than slices may be empty.
    pub fn ranges(&self, geometry: &Geometry) -> Option<Vec<Range<u64>>> {
        let all = geometry.extents();
        match *self {
            Part::Full => None,
            Part::Slice(Slice { number, of }) => {
                // In 128 bits: extents × slices may not fit in 64.
                let border = |number: u32| (u128::from(all) * u128::from(number) / u128::from(of)) as u64;
                let range = border(number - 1)..border(number);
                Some(if range.is_empty() { Vec::new() } else { vec![range] })
            }
            Part::Sample { extents, .. } if u64::from(extents) >= all => Some(std::iter::once(0..all).collect()),
            Part::Sample { extents, seed } => Some(join(&draw(u64::from(extents), all, seed))),
        }
    }
}

/// Bytes of these extents.
pub fn bytes_of(ranges: &[Range<u64>], geometry: &Geometry) -> u64 {
    ranges.iter().map(|range| geometry.bytes_range(range.clone())).map(|bytes| bytes.end - bytes.start).sum()
}

/// Draws `count` different numbers below `all`. Where most are wanted, those that are left out are drawn.
fn draw(count: u64, all: u64, seed: u64) -> BTreeSet<u64> {
    let mut state = seed;
    let mut some = |count: u64| {
        let mut drawn = BTreeSet::new();
        while (drawn.len() as u64) < count {
            drawn.insert(((u128::from(next(&mut state)) * u128::from(all)) >> 64) as u64);
        }
        drawn
    };
    if count <= all / 2 {
        return some(count);
    }
    let left_out = some(all - count);
    (0..all).filter(|number| !left_out.contains(number)).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): any seed will do, zero included.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn join(numbers: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == *number => last.end += 1,
            _ => ranges.push(*number..number + 1),
        }
    }
    ranges
}

/// Why a sample cannot be so large, if it cannot.
pub fn check_sample(extents: u32) -> Result<(), String> {
    if extents == 0 || extents as usize > SAMPLE_RANGES_MAX {
        return Err(format!("a sample has from 1 to {SAMPLE_RANGES_MAX} extents; --slice reads a larger part"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_extent_once() {
        for (extents, of) in [(100u64, 4u32), (7, 3), (2, 5), (1, 1), (1 << 36, 10_000)] {
            let geometry = Geometry::new(extents * 4096, 4096).unwrap();
            let mut at = 0;
            for number in 1..=of {
                for range in Part::Slice(Slice { number, of }).ranges(&geometry).unwrap() {
                    assert_eq!(range.start, at);
                    at = range.end;
                }
            }
            assert_eq!(at, extents);
        }
    }

    #[test]
    fn a_sample_has_its_size_and_its_seed_repeats_it() {
        let geometry = Geometry::new(1000 * 65536 - 512, 65536).unwrap();
        for extents in [1, 10, 499, 501, 999, 1000, 5000] {
            let ranges = |seed| Part::Sample { extents, seed }.ranges(&geometry).unwrap();
            let count: u64 = ranges(7).iter().map(|range| range.end - range.start).sum();
            assert_eq!(count, u64::from(extents).min(1000));
            assert!(ranges(7).windows(2).all(|pair| pair[0].end < pair[1].start) && ranges(7).iter().all(|range| range.end <= 1000));
            assert_eq!(ranges(7), ranges(7));
            assert!(extents >= 1000 || ranges(7) != ranges(8));
        }
        assert_eq!(bytes_of(&[0..1, 999..1000], &geometry), 2 * 65536 - 512);
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "4", "0/4", "5/4", "1/0", "1/20000", "a/b"] {
            assert!(text.parse::<Slice>().unwrap_err().contains("2/4 is the second of four"), "{text}");
        }
        assert_eq!("2/4".parse(), Ok(Slice { number: 2, of: 4 }));
        assert!(check_sample(0).is_err() && check_sample(1).is_ok() && check_sample(u32::MAX).is_err());
    }
}
