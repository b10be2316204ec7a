//! GB/s per core of the pure stages: hash, compare, zero test, compress, frame. `cargo bench --bench stages`.
//!
//! Read the figures as ratios: the machine is shared. Each line is the best and the median of several
//! rounds over data that does not fit the near caches.

use blockferry::digest::{Algorithm, Hasher, checksum, is_zero};
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::stream::{self, DataTable, Encoding, Frame, HEADER_BYTES};
use std::hint::black_box;
use std::time::Instant;

const BYTES: usize = 256 << 20;
const EXTENT: usize = 64 << 10;
const ROUNDS: usize = 7;

fn main() {
    let random = noise(BYTES);
    let text = words(BYTES / 8);
    let zeros = vec![0u8; BYTES];
    let secret = std::array::from_fn(|at| at as u8);
    println!("{:<44} {:>9} {:>9}", "stage", "best GB/s", "median");
    for (name, algorithm) in [("hash extents, xxh3", Algorithm::Xxh3), ("hash extents, blake3", Algorithm::Blake3)] {
        let hasher = Hasher::new(algorithm, &secret);
        let mut blocks = Vec::new();
        measure(name, &random, |data| {
            data.chunks(EXTENT).for_each(|extent| {
                black_box(hasher.extent(extent, &mut blocks));
            })
        });
    }
    measure("checksum of frames", &random, |data| {
        data.chunks(EXTENT * 4).for_each(|frame| {
            black_box(checksum(frame));
        })
    });
    measure("zero test, all zero", &zeros, |data| {
        black_box(data.chunks(EXTENT).filter(|extent| is_zero(extent)).count());
    });
    for level in [-5, 1, 3] {
        let mut zstd = zstd::bulk::Compressor::new(level).expect("zstd starts");
        let mut packed = vec![0; zstd::zstd_safe::compress_bound(EXTENT * 4)];
        measure(&format!("zstd {level}, words"), &text, |data| {
            data.chunks(EXTENT * 4).for_each(|run| drop(black_box(zstd.compress_to_buffer(run, &mut packed[..]))));
        });
    }
    frames(&random);
}

/// Frame encode and decode, payload stored.
fn frames(data: &[u8]) {
    let geometry = Geometry::new(BYTES as u64, EXTENT as u32).expect("a valid size");
    let hasher = Hasher::new(Algorithm::Xxh3, &[1; 192]);
    let digest = hasher.digest(b"any");
    let mut table = DataTable::new(&geometry);
    (0..4).for_each(|extent| table.push(ExtentIndex(extent), &digest, &[0xff, 0xff]));
    let at = table.payload_at();
    let mut frame = vec![0; at + 4 * EXTENT];
    for (name, whole) in [("frame encode, whole extents", true), ("frame encode, single blocks", false)] {
        measure(name, data, |data| {
            for run in data.chunks(4 * EXTENT) {
                frame[at..].copy_from_slice(run);
                black_box(table.write(&mut frame, run.len(), run.len(), Encoding::Stored, whole));
            }
        });
    }
    measure("frame decode and check", data, |data| {
        for _ in data.chunks(4 * EXTENT) {
            let header = stream::header(&frame).expect("a good header").expect("all of it");
            let Ok(Frame::Data(data)) = stream::decode(&header, &frame[HEADER_BYTES..]) else { panic!("no data frame") };
            black_box(data.check(&geometry, &header).is_ok());
        }
    });
}

fn measure(name: &str, data: &[u8], mut work: impl FnMut(&[u8])) {
    work(data);
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            work(black_box(data));
            data.len() as f64 / began.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:<44} {:>9.2} {:>9.2}", rates[ROUNDS - 1], rates[ROUNDS / 2]);
}

/// Incompressible bytes, the same each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data
}

/// Words in a random order: compresses about as text does.
fn words(bytes: usize) -> Vec<u8> {
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
        "torn ",
    ];
    noise(bytes).iter().flat_map(|byte| WORDS[usize::from(byte & 15)].bytes()).take(bytes).collect()
}
