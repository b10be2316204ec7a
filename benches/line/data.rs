//! The volumes that are measured: the same bytes for the same seed, made of what disks hold, and the way
//! they change.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// Bytes of one kind before the next begins.
const REGION_MIB: usize = 16;

/// xorshift64: fast, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

/// Words in a random order: compresses about as text does.
pub fn text(random: &mut Random, bytes: &mut [u8]) {
    const WORDS: [&str; 16] = [
        "extent ",
        "block ",
        "journal ",
        "replica ",
        "the ",
        "of ",
        "and ",
        "is ",
        "generation ",
        "commit ",
        "a ",
        "device ",
        "to ",
        "sync ",
        "never ",
        "torn\n",
    ];
    let mut at = 0;
    while at < bytes.len() {
        let mut draw = random.next();
        // Every fifth word is a number of its own: real text repeats less than a list of sixteen words.
        let number = format!("{} ", draw >> 40);
        for place in 0..5 {
            let word = if place == 4 { number.as_bytes() } else { WORDS[(draw & 15) as usize].as_bytes() };
            draw >>= 4;
            let fits = word.len().min(bytes.len() - at);
            bytes[at..at + fits].copy_from_slice(&word[..fits]);
            at += fits;
        }
    }
}

/// Pages of a database, 8 KiB each: a header, rows that resemble each other from the end on, room between.
pub fn pages(random: &mut Random, bytes: &mut [u8]) {
    bytes.fill(0);
    for page in bytes.chunks_mut(8192) {
        let length = page.len();
        let head = random.next().to_le_bytes();
        page[..8].copy_from_slice(&head);
        let rows = (40 + random.next() % 30) as usize;
        for row in 0..rows {
            let at = length - (row + 1) * 100;
            page[24 + row * 4..28 + row * 4].copy_from_slice(&(at as u32).to_le_bytes());
            let text = format!("{:>10}|{:>10}|", random.next() >> 34, random.next() >> 34);
            page[at..at + 8].copy_from_slice(&head);
            page[at + 8..at + 8 + text.len()].copy_from_slice(text.as_bytes());
        }
    }
}

/// Writes a volume: regions of random bytes, text, zeros and database pages, in turn.
pub fn write_volume(path: &Path, mib: usize, seed: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(MIB, File::options().write(true).create(true).truncate(false).open(path)?);
    let (mut random, mut piece) = (Random::new(seed), vec![0; MIB]);
    for at in 0..mib {
        match at / REGION_MIB % 4 {
            0 => random.fill(&mut piece),
            1 => text(&mut random, &mut piece),
            2 => piece.fill(0),
            _ => pages(&mut random, &mut piece),
        }
        out.write_all(&piece)?;
    }
    out.flush()?;
    out.into_inner()?.sync_all()
}

/// Rewrites one 4 KiB block in a hundred, each round others. Returns how many.
pub fn change(path: &Path, mib: usize, round: u64) -> Result<u64> {
    let file = File::options().write(true).open(path)?;
    let (mut random, mut block) = (Random::new(round + 1_000_000), [0; BLOCK]);
    let changed = (mib * MIB / BLOCK / 100) as u64;
    for at in 0..changed {
        random.fill(&mut block);
        let place = at * 100 + random.next() % 100;
        file.write_all_at(&block, place * BLOCK as u64)?;
    }
    file.sync_all()?;
    Ok(changed)
}
