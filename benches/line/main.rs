//! Whole runs against what else is installed, in turn, round by round: `cargo bench --bench line`.
//!
//! The rows are P1 to P13 of docs/PERFORMANCE.md, with their goals. Read ratios, not times: each row alternates us and the
//! other and prints the median with the smallest and the largest; no row fails on a time. A peer that is not
//! installed is left out and named. As root the volumes are loop devices, otherwise image files.
//!
//! | setting | what it does |
//! |---|---|
//! | `BENCH_GIB` | GiB of a volume (1) |
//! | `BENCH_ROUNDS` | rounds of a row (5; slow rows take 3) |
//! | `BENCH_AGENTS` | agents of P10 (200) |
//! | `BENCH_DIR` | where volumes on disk lie (under target) |
//! | `BENCH_PEER_<NAME>` | a shell line that brings `$DST` to what `$SRC` is: another peer of the increment row |
//! | `BENCH_PEER_DELTA` | the same over a compressed link: the peer of P4 |
//! | `--json`, `-- P3 P6` | JSON lines; these rows only |

mod data;
mod link;
mod local;
mod measure;
mod postgres;
mod sparse;
mod table;
mod volume;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use table::{Goal, Table};
use volume::Volume;

/// The program under measurement.
const PROGRAM: &str = env!("CARGO_BIN_EXE_blockferry");
/// The first word that turns this bench into a reader that hashes nothing.
const READ_ONLY: &str = "--read-only";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the rows share.
struct Bench {
    folder: PathBuf,
    mib: usize,
    rounds: usize,
    table: Table,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [first, path] = &words[..]
        && first == READ_ONLY
    {
        return local::read_only(Path::new(path));
    }
    let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let folder = parent.join("bench");
    // What a run that broke left may still be mounted.
    measure::shell(&format!("umount {}/pg 2>/dev/null; true", folder.display()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for the volumes");
    let only = words.iter().filter(|word| !word.starts_with('-')).cloned().collect();
    let table = Table::new(words.iter().any(|word| word == "--json"), only);
    let mut bench = Bench { folder, mib: setting("BENCH_GIB", 1) * 1024, rounds: setting("BENCH_ROUNDS", 5), table };
    local::rows(&mut bench);
    link::rows(&mut bench);
    bench.guarded("P11", postgres::rows);
    bench.guarded("P8", sparse::rows);
    bench.table.finish();
    let _ = fs::remove_dir_all(&bench.folder);
}

impl Bench {
    /// One broken row takes none of the others with it.
    fn guarded(&mut self, name: &'static str, rows: impl FnOnce(&mut Bench)) {
        let ended = catch_unwind(AssertUnwindSafe(|| rows(self)));
        if let Err(panic) = ended {
            let told = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let told = told.unwrap_or_default();
            self.table.skipped(name, "the rest of these rows", Goal::Open, format!("broke: {}", told.lines().next().unwrap_or("?")));
        }
    }

    fn gb(&self) -> f64 {
        (self.mib << 20) as f64 / 1e9
    }

    fn slow_rounds(&self) -> usize {
        self.rounds.min(3)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A volume on the disk, every block of it written. What others made of a target's content does not matter.
    fn volume(&self, name: &str, seed: u64) -> Volume {
        if !self.path(name).exists() {
            data::write_volume(&self.path(name), self.mib, seed).expect("room for a volume");
        }
        Volume::over(self.path(name))
    }

    /// `clone SOURCE TARGET` with a state of this name.
    fn clone(&self, state: &str, source: &str, target: &str, options: &[&str]) -> Vec<String> {
        let state = self.word(state);
        let fixed = [PROGRAM, "-q", "--state-dir", &state, "clone", "--snapshot=never"];
        fixed.iter().chain(options).copied().chain([source, target]).map(str::to_owned).collect()
    }

    fn forget(&self, state: &str) {
        let _ = fs::remove_dir_all(self.path(state));
    }
}

/// Words of a command line.
fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}
