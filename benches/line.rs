//! Whole runs against what else is installed, in turn, round by round: `cargo bench --bench line`.
//!
//! Each row alternates us and the other and prints the median of the ratios, with the smallest and the
//! largest. Sizes are small enough for a laptop (`BENCH_MIB`, default 1024; `BENCH_ROUNDS`, default 5). A peer
//! that is not installed is left out and named. `BENCH_PEER_<NAME>='command'` adds one to the increment
//! row: it is run by sh with SRC and DST in its environment. No row fails on a time.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const MIB: usize = 1 << 20;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Bench {
    folder: PathBuf,
    mib: usize,
    rounds: usize,
}

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder under target");
    let bench = Bench { folder, mib: setting("BENCH_MIB", 1024), rounds: setting("BENCH_ROUNDS", 5) };
    bench.make_source();
    println!("{:<48} {:>7} {:>7} {:>7}   (our time / the other's; below 1 is faster)", "row", "median", "min", "max");
    bench.first_copy();
    bench.unchanged();
    bench.increment();
    bench.memory();
    let _ = fs::remove_dir_all(&bench.folder);
}

impl Bench {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Random, text-like, zero and page-like quarters, the same each time.
    fn make_source(&self) {
        let mut content = vec![0u8; self.mib * MIB];
        let quarter = content.len() / 4;
        fill(&mut content[..quarter], 1);
        content[quarter..2 * quarter].iter_mut().enumerate().for_each(|(at, byte)| *byte = b"never torn, "[at % 12]);
        for (at, page) in content[3 * quarter..].chunks_mut(8192).enumerate() {
            let used = page.len() / 2;
            fill(&mut page[..used], at as u64 + 7);
        }
        fs::write(self.path("src"), content).expect("room for the source");
        sync();
    }

    /// One per cent of the 4 KiB blocks, rewritten.
    fn change(&self, round: usize) -> usize {
        let file = fs::OpenOptions::new().write(true).open(self.path("src")).expect("the source");
        let blocks = self.mib * 256;
        let mut block = [0; 4096];
        for at in 0..blocks / 100 {
            fill(&mut block, (round * blocks + at) as u64 + 1);
            let place = (at * 100 + (at * 37 + round * 11) % 100) * 4096;
            file.write_all_at(&block, place as u64).expect("a block");
        }
        sync();
        blocks / 100
    }

    fn clone(&self, target: &str, options: &[&str]) -> Vec<String> {
        let (state, source, target) = (self.path("state"), self.path("src"), self.path(target));
        let fixed = [env!("CARGO_BIN_EXE_blockferry"), "-q", "--state-dir", &state, "clone"];
        fixed.iter().chain(options).copied().chain([source.as_str(), target.as_str()]).map(str::to_owned).collect()
    }

    /// P6: a first copy, manifest and flush included.
    fn first_copy(&self) {
        let fresh = || {
            let _ = fs::remove_dir_all(self.path("state"));
            let _ = fs::remove_file(self.path("dst"));
            let _ = fs::remove_file(self.path("other"));
            sync();
        };
        let (source, other) = (self.path("src"), self.path("other"));
        let copy = format!("if={source}");
        let to = format!("of={other}");
        let peers = [
            ("nbdcopy", vec!["nbdcopy", "--flush", &source, &other]),
            ("qemu-img", vec!["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &source, &other]),
            ("dd", vec!["dd", &copy, &to, "bs=1M", "conv=fsync", "status=none"]),
        ];
        for (name, command) in peers {
            let target_exists = name != "dd";
            let before_peer = || {
                fresh();
                if target_exists {
                    fs::File::create(&other).and_then(|file| file.set_len((self.mib * MIB) as u64)).expect("a target");
                }
            };
            self.compare(&format!("first copy against {name}"), name, (&fresh, &self.clone("dst", &[])), (&before_peer, &owned(&command)));
        }
    }

    /// P1: nothing changed, against a reader without any hashing.
    fn unchanged(&self) {
        run(&self.clone("dst", &["--overwrite"]));
        let source = self.path("src");
        let read = format!("if={source}");
        let nothing = || {};
        let dd = owned(&["dd", &read, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
        self.compare("nothing changed against dd iflag=direct", "dd", (&nothing, &self.clone("dst", &[])), (&nothing, &dd));
        let name = format!("--filename={source}");
        let fio =
            owned(&["fio", "--name=r", &name, "--rw=read", "--direct=1", "--bs=1M", "--iodepth=8", "--ioengine=io_uring", "--readonly"]);
        self.compare("nothing changed against fio 1M x 8", "fio", (&nothing, &self.clone("dst", &[])), (&nothing, &fio));
    }

    /// P3: one per cent of the blocks changed; journal, flushes and verification on.
    fn increment(&self) {
        let round = std::cell::Cell::new(0);
        let change = || {
            round.set(round.get() + 1);
            self.change(round.get());
        };
        let (source, other) = (self.path("src"), self.path("other"));
        let _ = fs::copy(&source, &other);
        let rsync = owned(&["rsync", "--inplace", "--no-whole-file", "-B", "4096", &source, &other]);
        self.compare("1 % of blocks changed against rsync --inplace", "rsync", (&change, &self.clone("dst", &[])), (&change, &rsync));
        for (name, command) in
            std::env::vars().filter_map(|(name, command)| Some((name.strip_prefix("BENCH_PEER_")?.to_lowercase(), command)))
        {
            let script = owned(&["env", &format!("SRC={source}"), &format!("DST={other}"), "sh", "-c", &command]);
            self.compare(&format!("1 % of blocks changed against {name}"), "sh", (&change, &self.clone("dst", &[])), (&change, &script));
        }
    }

    /// P8: the largest resident set of a first copy.
    fn memory(&self) {
        let _ = fs::remove_dir_all(self.path("state"));
        let _ = fs::remove_file(self.path("dst"));
        let command = self.clone("dst", &[]);
        let output = Command::new("/usr/bin/time").args(["-f", "%M"]).args(&command).output();
        match output {
            Ok(output) => println!("peak memory of a first copy: {} KiB", String::from_utf8_lossy(&output.stderr).trim()),
            Err(_) => println!("peak memory: /usr/bin/time is not installed (package time)"),
        }
    }

    fn compare(&self, row: &str, tool: &str, ours: (&dyn Fn(), &[String]), other: (&dyn Fn(), &[String])) {
        if Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .stdout(Stdio::null())
            .status()
            .map_or(true, |status| !status.success())
        {
            println!("{row:<48} {tool} is not installed");
            return;
        }
        let mut ratios: Vec<f64> = (0..self.rounds)
            .map(|_| {
                (ours.0)();
                let we = run(ours.1);
                (other.0)();
                we / run(other.1)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        println!("{row:<48} {:>7.2} {:>7.2} {:>7.2}", ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Seconds of one run.
fn run(command: &[String]) -> f64 {
    let began = Instant::now();
    let output = Command::new(&command[0]).args(&command[1..]).output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    began.elapsed().as_secs_f64()
}

fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

fn sync() {
    nix::unistd::sync();
}
