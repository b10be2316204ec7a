//! How hard a pass compresses: a fixed level, or what [`Chooser`] makes of where the time goes. Keeps the books of
//! that for the summary.

use super::level::{Bottleneck, Chooser, Window};
use super::packer::{Compress, Packed};
use crate::limits::{COMPRESS_SAMPLE_RUNS, COMPRESS_WINDOW, COMPRESS_WINDOW_BYTES};
use crate::log;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How hard the blocks of a pass were compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exertion {
    /// What was asked for.
    pub compress: Compress,
    /// Plain bytes by the level they were packed with; `None`: stored without a try.
    pub plain_bytes: BTreeMap<Option<i32>, u64>,
    /// What held the pass up for most of the time. `None`: it was too short to say, or nobody asked.
    pub bottleneck: Option<Bottleneck>,
    /// How often the level changed.
    pub moves: u32,
}

impl Exertion {
    /// The level of most of the bytes.
    pub fn level(&self) -> Option<i32> {
        self.plain_bytes.iter().max_by_key(|(_, bytes)| **bytes).and_then(|(level, _)| *level)
    }
}

/// How hard runs are packed.
pub struct Effort {
    compress: Compress,
    chooser: Chooser,
    window: Window,
    began: Instant,
    /// What had been waited for room to send by then.
    waited: Duration,
    runs: u64,
    plain_bytes: BTreeMap<Option<i32>, u64>,
    held: [Duration; Bottleneck::ALL.len()],
    others_moves: u32,
}

impl Effort {
    /// At the beginning of a pass. `waited`: so long the wire waited for room until now.
    pub fn new(compress: Compress, waited: Duration) -> Effort {
        Effort {
            compress,
            chooser: Chooser::default(),
            window: Window::default(),
            began: Instant::now(),
            waited,
            runs: 0,
            plain_bytes: BTreeMap::new(),
            held: Default::default(),
            others_moves: 0,
        }
    }

    /// The level for the next run. `None`: it is stored.
    pub fn level(&mut self) -> Option<i32> {
        match self.compress {
            Compress::None => None,
            Compress::Level(level) => Some(level),
            Compress::Auto => {
                self.runs += 1;
                // Data that was not worth it, or too slow, may be so no more.
                let sample = self.runs.is_multiple_of(COMPRESS_SAMPLE_RUNS).then_some(Chooser::reference()).flatten();
                self.chooser.level().or(sample)
            }
        }
    }

    /// So long a read was waited for.
    pub fn read(&mut self, took: Duration) {
        self.window.reading += took;
    }

    /// A run was packed with `level`. `waited`: so long the wire waited for room until now.
    pub fn packed(&mut self, packed: &Packed, level: Option<i32>, took: Duration, waited: Duration) {
        *self.plain_bytes.entry(level).or_default() += packed.plain_bytes as u64;
        if self.compress != Compress::Auto {
            return;
        }
        self.window.plain_bytes += packed.plain_bytes as u64;
        self.window.wire_bytes += packed.frame_bytes as u64;
        if level.is_some() {
            self.window.tried_bytes += packed.plain_bytes as u64;
            self.window.packed_bytes += packed.payload_bytes as u64;
            self.window.packing += took;
        }
        let elapsed = self.began.elapsed();
        if self.window.plain_bytes < COMPRESS_WINDOW_BYTES || elapsed < COMPRESS_WINDOW {
            return;
        }
        self.window.elapsed = elapsed;
        self.window.sending = waited.saturating_sub(self.waited);
        let before = self.chooser.level();
        let held = self.chooser.window(&self.window);
        let after = self.chooser.level();
        if before != after {
            let name = |level: Option<i32>| level.map_or_else(|| "none".to_owned(), |level| level.to_string());
            let Window { plain_bytes, wire_bytes, packing, sending, reading, .. } = self.window;
            log::debug(|| {
                format!(
                    "compress: {} -> {}; {} held up {plain_bytes} bytes ({wire_bytes} on the wire) for {elapsed:.2?}: packing {packing:.2?}, sending {sending:.2?}, reading {reading:.2?}",
                    name(before),
                    name(after),
                    held.word(),
                )
            });
        }
        self.held[held as usize] += elapsed;
        (self.window, self.began, self.waited) = (Window::default(), Instant::now(), waited);
    }

    /// Adds what another shard of the same pass did.
    pub fn add(&mut self, other: &Effort) {
        for (level, bytes) in &other.plain_bytes {
            *self.plain_bytes.entry(*level).or_default() += bytes;
        }
        self.held.iter_mut().zip(other.held).for_each(|(held, other)| *held += other);
        self.others_moves += other.chooser.moves();
    }

    /// What it came to; none where nothing was packed.
    pub fn exertion(&self) -> Option<Exertion> {
        let longest = Bottleneck::ALL.into_iter().max_by_key(|held| self.held[*held as usize]);
        let bottleneck = longest.filter(|held| !self.held[*held as usize].is_zero());
        let moves = self.chooser.moves() + self.others_moves;
        let exertion = Exertion { compress: self.compress, plain_bytes: self.plain_bytes.clone(), bottleneck, moves };
        (!self.plain_bytes.is_empty()).then_some(exertion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(payload_bytes: usize) -> Packed {
        Packed { frame_bytes: payload_bytes + 100, plain_bytes: 1 << 18, payload_bytes }
    }

    #[test]
    fn a_level_that_was_asked_for_is_kept_and_counted() {
        let mut effort = Effort::new(Compress::Level(7), Duration::ZERO);
        assert_eq!(effort.exertion(), None);
        for _ in 0..100 {
            assert_eq!(effort.level(), Some(7));
            effort.packed(&packed(1 << 17), Some(7), Duration::from_secs(9), Duration::ZERO);
        }
        let all =
            Exertion { compress: Compress::Level(7), plain_bytes: BTreeMap::from([(Some(7), 100 << 18)]), bottleneck: None, moves: 0 };
        assert_eq!((effort.exertion(), all.level()), (Some(all.clone()), Some(7)));
        assert_eq!(Effort::new(Compress::None, Duration::ZERO).level(), None);
    }

    /// A link that takes 12 MB/s of what is packed: a lighter level shows that it is the link, a harder one helps it.
    #[test]
    fn waiting_to_send_makes_auto_pack_harder() {
        let mut effort = Effort::new(Compress::Auto, Duration::from_secs(5));
        let mut waited = Duration::from_secs(5);
        for turn in 0.. {
            if effort.level() > Some(1) {
                break;
            }
            assert!(turn < 100_000, "it stays at {:?}", effort.level());
            let payload_bytes = if effort.level() == Some(1) { 60_000 } else { 120_000 };
            let sent = Duration::from_nanos(payload_bytes as u64 * 80);
            // As if it had been waited for.
            effort.began -= sent;
            waited += sent;
            effort.packed(&packed(payload_bytes), effort.chooser.level(), Duration::from_micros(100), waited);
        }
        let exertion = effort.exertion().unwrap();
        assert_eq!((exertion.moves, exertion.bottleneck), (2, Some(Bottleneck::Link)), "{exertion:?}");
    }
}
