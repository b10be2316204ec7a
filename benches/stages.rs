//! GB/s per core of the pure stages: hash, compare, zero test, compress, frame, manifest. `cargo bench --bench stages`.
//!
//! Read the figures as ratios: the machine is shared. Each line is the best and the median of several
//! rounds over data that does not fit the near caches; of the manifest, GB of the volume that it describes.
//! `BLOCKFERRY_VECTORS=portable` takes the run-time vector code out. `--json` prints JSON lines.

#[path = "line/data.rs"]
#[allow(dead_code)]
mod data;

use blockferry::digest::{Algorithm, Digest, Hasher, checksum, is_zero};
use blockferry::extent::{ExtentIndex, Geometry};
use blockferry::format::manifest::About;
use blockferry::format::stream::{self, DataTable, Encoding, Frame, HEADER_BYTES};
use blockferry::state::HostFiles;
use blockferry::state::manifest::{Damage, Draft, Manifest};
use data::Random;
use std::hint::black_box;
use std::time::Instant;
use uuid::Uuid;

const BYTES: usize = 256 << 20;
const EXTENT: usize = 64 << 10;
const ROUNDS: usize = 7;

fn main() {
    let json = std::env::args().any(|word| word == "--json");
    let stages = Stages { json };
    if !json {
        println!("{:<44} {:>9} {:>9}", "stage", "best GB/s", "median");
    }
    let mut random = vec![0; BYTES];
    Random::new(1).fill(&mut random);
    stages.hashes(&random);
    stages.compression(&random);
    stages.frames(&random);
    stages.manifests();
}

struct Stages {
    json: bool,
}

impl Stages {
    fn hashes(&self, random: &[u8]) {
        for (name, algorithm) in [("hash extents, xxh3", Algorithm::Xxh3), ("hash extents, blake3", Algorithm::Blake3)] {
            let hasher = Hasher::new(algorithm, &std::array::from_fn(|at| at as u8));
            let mut blocks = Vec::new();
            self.measure(name, random.len(), || {
                random.chunks(EXTENT).for_each(|extent| {
                    black_box(hasher.extent(extent, &mut blocks));
                })
            });
        }
        self.measure("checksum of frames", random.len(), || {
            random.chunks(EXTENT * 4).for_each(|frame| {
                black_box(checksum(frame));
            })
        });
        // Written to once: fresh zeros are all one page of the kernel.
        let mut zeros = vec![1u8; BYTES];
        zeros.fill(0);
        self.measure("zero test, all zero", BYTES, || {
            black_box(zeros.chunks(EXTENT).filter(|extent| is_zero(extent)).count());
        });
    }

    fn compression(&self, random: &[u8]) {
        let (mut text, mut pages) = (vec![0; BYTES / 8], vec![0; BYTES / 8]);
        data::text(&mut Random::new(2), &mut text);
        data::pages(&mut Random::new(3), &mut pages);
        for (what, plain) in [("text", &text[..]), ("database pages", &pages), ("noise", &random[..BYTES / 8])] {
            for level in [-5, 1, 3] {
                let mut zstd = zstd::bulk::Compressor::new(level).expect("zstd starts");
                let mut packed = vec![0; zstd::zstd_safe::compress_bound(EXTENT * 4)];
                self.measure(&format!("zstd {level}, {what}"), plain.len(), || {
                    plain.chunks(EXTENT * 4).for_each(|run| drop(black_box(zstd.compress_to_buffer(run, &mut packed[..]))));
                });
            }
            let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd starts");
            let packed: Vec<Vec<u8>> = plain.chunks(EXTENT * 4).map(|run| zstd.compress(run).expect("it packs")).collect();
            let mut unpacker = zstd::bulk::Decompressor::new().expect("zstd starts");
            let mut room = vec![0; EXTENT * 4];
            self.measure(&format!("unzstd, {what}"), plain.len(), || {
                packed.iter().for_each(|run| drop(black_box(unpacker.decompress_to_buffer(run, &mut room[..]))));
            });
        }
    }

    /// Frame encode and decode, payload stored.
    fn frames(&self, data: &[u8]) {
        let geometry = Geometry::new(BYTES as u64, EXTENT as u32).expect("a valid size");
        let hasher = Hasher::new(Algorithm::Xxh3, &[1; 192]);
        let digest = hasher.digest(b"any");
        let mut table = DataTable::new(&geometry);
        (0..4).for_each(|extent| table.push(ExtentIndex(extent), &digest, &[0xff, 0xff]));
        let at = table.payload_at();
        let mut frame = vec![0; at + 4 * EXTENT];
        for (name, whole) in [("frame encode, whole extents", true), ("frame encode, single blocks", false)] {
            self.measure(name, data.len(), || {
                for run in data.chunks(4 * EXTENT) {
                    frame[at..].copy_from_slice(run);
                    black_box(table.write(&mut frame, run.len(), run.len(), Encoding::Stored, whole));
                }
            });
        }
        self.measure("frame decode and check", data.len(), || {
            for _ in data.chunks(4 * EXTENT) {
                let header = stream::header(&frame).expect("a good header").expect("all of it");
                let Ok(Frame::Data(data)) = stream::decode(&header, &frame[HEADER_BYTES..]) else { panic!("no data frame") };
                black_box(data.check(&geometry, &header).is_ok());
            }
        });
    }

    /// A manifest of 16 GiB: written anew, read through, and compared with an unchanged volume.
    fn manifests(&self) {
        let folder = tempfile::tempdir().expect("a folder");
        let files = HostFiles::new(folder.path());
        let geometry = Geometry::new(16 << 30, EXTENT as u32).expect("a valid size");
        let hasher = Hasher::new(Algorithm::Xxh3, &[1; 192]);
        let about = About {
            relationship: Uuid::nil(),
            epoch: Uuid::nil(),
            generation: 0,
            root: Digest::UNKNOWN,
            sealed: false,
            algorithm: Algorithm::Xxh3,
            geometry,
        };
        let blocks: Vec<Digest> = (0..16u8).map(|block| hasher.digest(&[block; 64])).collect();
        let named = |extent: u64| hasher.digest(&extent.to_le_bytes());
        let bytes = geometry.volume_bytes() as usize;
        let create = || Manifest::create(&files, "manifest", about, &hasher, Damage::Refuse).expect("a manifest");
        self.measure("manifest pages written", bytes, || {
            let mut manifest = create();
            (0..geometry.extents()).for_each(|extent| manifest.set(ExtentIndex(extent), &named(extent), &blocks).expect("it is set"));
            manifest.write().expect("it is written");
        });
        let mut manifest = Manifest::open(&files, "manifest", &hasher, Damage::Refuse).expect("a manifest").expect("the one just made");
        self.measure("manifest pages read", bytes, || {
            (0..geometry.extents()).for_each(|extent| {
                black_box(manifest.entry(ExtentIndex(extent)).expect("an entry"));
            });
        });
        let mut draft = Draft::new(&files, manifest).expect("a draft");
        self.measure("compare with the manifest, unchanged", bytes, || {
            (0..geometry.extents()).for_each(|extent| draft.set(ExtentIndex(extent), &named(extent), &blocks).expect("it is compared"));
        });
    }

    fn measure(&self, name: &str, bytes: usize, mut work: impl FnMut()) {
        work();
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                work();
                bytes as f64 / began.elapsed().as_secs_f64() / 1e9
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        let (best, median) = (rates[ROUNDS - 1], rates[ROUNDS / 2]);
        if self.json {
            println!("{}", serde_json::json!({"type": "stage", "stage": name, "best": best, "median": median}));
        } else {
            println!("{name:<44} {best:>9.2} {median:>9.2}");
        }
    }
}
