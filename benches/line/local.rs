//! Both ends on this host: scans, increments, first copies.

use crate::measure::{alternate, installed, run, shell};
use crate::table::{Figures, Goal};
use crate::volume::Volume;
use crate::{Bench, READ_ONLY, data, words};
use blockferry::disk::Disk;
use blockferry::disk::raw::{Access, RawDisk};
use blockferry::disk::scan::{Piece, Scan};
use blockferry::extent::Geometry;
use blockferry::limits::EXTENT_BYTES_DEFAULT;
use blockferry::ring::Choice;
use std::fs;
use std::path::Path;

pub fn rows(bench: &mut Bench) {
    if bench.table.wants(&["P1", "P2", "P6", "P9"]) {
        let (a, b) = (bench.volume("a", 1), bench.volume("b", 2));
        let target = bench.volume("target", 3);
        if bench.table.wants(&["P6"]) {
            bench.guarded("P6", |bench| first_copy(bench, &a, &b, &target));
        }
        if bench.table.wants(&["P1", "P9"]) {
            bench.guarded("P1", |bench| unchanged(bench, &a, &target));
        }
    }
    if bench.table.wants(&["P2"]) {
        bench.guarded("P2", in_memory);
    }
    if bench.table.wants(&["P3", "P5"]) {
        bench.guarded("P3", increment);
    }
}

/// What `--read-only PATH` does in a process of its own: our reader, and nothing behind it.
pub fn read_only(path: &Path) {
    let mut disk = RawDisk::open(path, Access::Read, Choice::Auto).expect("the volume opens");
    let geometry = Geometry::new(disk.bytes(), EXTENT_BYTES_DEFAULT).expect("a valid size");
    let mut scan = Scan::new(&mut disk, geometry).expect("buffers");
    while let Some(piece) = scan.next_piece().expect("the volume is read") {
        if let Piece::Chunk(chunk) = piece {
            scan.recycle(chunk);
        }
    }
}

fn reader(path: &str) -> Vec<String> {
    let bench = std::env::current_exe().expect("this program").display().to_string();
    words(&[&bench, READ_ONLY, path])
}

/// P1: nothing changed, against reading alone. Speeds, so that more is better. P9: what it costs the CPU.
fn unchanged(bench: &mut Bench, source: &Volume, target: &Volume) {
    bench.forget("state");
    run(&bench.clone("state", &source.word(), &target.word(), &["--overwrite"]));
    let ours = bench.clone("state", &source.word(), &target.word(), &[]);
    let mut user = Vec::new();
    let mut we = || {
        let spent = run(&ours);
        user.push(spent.user_seconds);
        1.0 / spent.seconds
    };
    let plain = reader(&source.word());
    let figures = alternate(bench.rounds, &mut we, || 1.0 / run(&plain).seconds);
    bench.table.figures("P1", "nothing changed, speed / our own reader's", Goal::AtLeast(0.97), figures);
    let name = format!("--filename={}", source.word());
    let fio = |more: &[&str]| {
        let fixed = ["fio", "--name=r", &name, "--rw=read", "--direct=1", "--bs=1M", "--iodepth=8", "--ioengine=io_uring", "--readonly"];
        words(&[&fixed, more].concat())
    };
    let kinds = [
        ("nothing changed, speed / fio's 1M x 8", Goal::AtLeast(1.5), fio(&[])),
        ("nothing changed, speed / fio's, huge pages", Goal::AtLeast(0.95), fio(&["--iomem=mmaphuge", "--fixedbufs=1"])),
    ];
    // As root they can be had for the time of the row.
    let _huge = HugePages::set_aside();
    for (what, goal, command) in kinds {
        if !installed("fio") {
            bench.table.skipped("P1", what, goal, "fio is not installed");
        } else if what.contains("huge") && HugePages::count() < HUGE_PAGES_WANTED {
            bench.table.skipped("P1", what, goal, "no huge pages are set aside (vm.nr_hugepages)");
        } else {
            let figures = alternate(bench.rounds, &mut we, || 1.0 / run(&command).seconds);
            bench.table.figures("P1", what, goal, figures);
        }
    }
    let dd = words(&["dd", &format!("if={}", source.word()), "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    let figures = alternate(bench.rounds, &mut we, || 1.0 / run(&dd).seconds);
    bench.table.figures("P1", "nothing changed, speed / dd iflag=direct", Goal::Open, figures);
    let gb = bench.gb();
    bench.table.figures(
        "P9",
        "user CPU of an unchanged scan, seconds / GB",
        Goal::AtMost(0.05),
        Figures::of(user.into_iter().map(|seconds| seconds / gb).collect()),
    );
}

/// Huge pages as the kernel sets them aside: enough for fio's buffers, given back with this.
struct HugePages(u64);

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
const HUGE_PAGES_WANTED: u64 = 8;

impl HugePages {
    fn count() -> u64 {
        fs::read_to_string(HUGE_PAGES).ok().and_then(|pages| pages.trim().parse().ok()).unwrap_or(0)
    }

    fn set_aside() -> HugePages {
        let before = HugePages(HugePages::count());
        if before.0 < HUGE_PAGES_WANTED {
            let _ = fs::write(HUGE_PAGES, HUGE_PAGES_WANTED.to_string());
        }
        before
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.0.to_string());
    }
}

/// P2: the same where the disk is as fast as memory.
fn in_memory(bench: &mut Bench) {
    let (goal, what) = (Goal::AtLeast(0.85), "nothing changed, loop over tmpfs, speed / our own reader's");
    let folder = Path::new("/dev/shm").join(format!("blockferry-bench-{}", std::process::id()));
    if fs::create_dir(&folder).is_err() {
        return bench.table.skipped("P2", what, goal, "there is no /dev/shm");
    }
    let file = folder.join("source");
    data::write_volume(&file, bench.mib, 4).expect("room in memory");
    let source = Volume::over(file);
    let target = bench.volume("target", 3);
    bench.forget("state");
    run(&bench.clone("state", &source.word(), &target.word(), &["--overwrite"]));
    let ours = bench.clone("state", &source.word(), &target.word(), &[]);
    let plain = reader(&source.word());
    let figures = alternate(bench.rounds, || 1.0 / run(&ours).seconds, || 1.0 / run(&plain).seconds);
    bench.table.figures("P2", what, goal, figures);
    drop(source);
    let _ = fs::remove_dir_all(folder);
}

/// P3: one block in a hundred rewritten, image file to image file; journal, flushes and proofs on. P5: what
/// of it would go over a wire.
fn increment(bench: &mut Bench) {
    let (source, target, other) = (bench.path("src.img"), bench.word("dst.img"), bench.word("other.img"));
    data::write_volume(&source, bench.mib, 5).expect("room for the source");
    let source_word = source.display().to_string();
    bench.forget("state");
    let ours = bench.clone("state", &source_word, &target, &[]);
    run(&ours);
    fs::copy(&source, &other).expect("room for the peer's copy");
    shell("sync");
    let round = std::cell::Cell::new(0);
    let change = || {
        round.set(round.get() + 1);
        data::change(&source, bench.mib, round.get()).expect("the source changes")
    };
    let mut peers =
        vec![("rsync".to_owned(), Goal::Open, format!("rsync --inplace --no-whole-file {source_word} {other} && sync {other}"))];
    let named =
        std::env::vars().filter_map(|(name, line)| Some((name.strip_prefix("BENCH_PEER_")?.to_lowercase().replace('_', "-"), line)));
    peers.extend(named.filter(|(name, _)| name != "delta").map(|(name, line)| (name, Goal::AtMost(1.0), line)));
    if peers.len() == 1 {
        let what = "1 % of the blocks changed, time / blocksync-fast's";
        bench.table.skipped("P3", what, Goal::AtMost(1.0), "BENCH_PEER_BLOCKSYNC_FAST names no command");
    }
    for (name, goal, line) in peers {
        let what = format!("1 % of the blocks changed, time / {name}'s");
        if name == "rsync" && !installed("rsync") {
            bench.table.skipped("P3", what, goal, "rsync is not installed");
            continue;
        }
        let line = format!("export SRC={source_word} DST={other}; {line}");
        // Ours reads past the page cache; what it holds of the source is the other's advantage.
        for (cold, which) in [(false, ""), (true, ", the source not in the page cache")] {
            let fresh = || {
                change();
                if cold {
                    crate::volume::forget(&source);
                }
            };
            let we = || {
                fresh();
                run(&ours).seconds
            };
            let figures = alternate(bench.slow_rounds(), we, || {
                fresh();
                shell(&line).seconds
            });
            bench.table.figures("P3", what.clone() + which, goal, figures);
        }
    }
    run(&ours);
    let read = words(&["dd", &format!("if={source_word}"), "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    let we = || {
        change();
        run(&ours).seconds
    };
    let figures = alternate(bench.rounds, we, || run(&read).seconds);
    bench.table.figures("P3", "1 % of the blocks changed, time / dd reading", Goal::Open, figures);
    let changed = change();
    let told = run(&bench.clone("state", &source_word, &target, &["--json"])).printed;
    let wire = number(&told, "wire_bytes");
    bench.table.figure("P5", "bytes on the wire, not compressed / bytes changed", Goal::AtMost(1.05), wire / (changed * 4096) as f64);
}

/// A figure of the summary among JSON lines.
pub fn number(lines: &str, name: &str) -> f64 {
    let summary = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    summary.filter(|line| line["type"] == "summary").find_map(|line| line[name].as_f64()).expect("a summary with that figure")
}

/// P6: everything copied, manifest and flush included. The two sources differ everywhere, so that whoever copies
/// one over the other has to write it all.
fn first_copy(bench: &mut Bench, a: &Volume, b: &Volume, target: &Volume) {
    let peers = [
        ("nbdcopy", vec!["nbdcopy", "--flush"]),
        ("qemu-img", vec!["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]),
        ("dd", vec!["dd", "bs=1M", "iflag=direct", "oflag=direct", "conv=fsync,notrunc", "status=none"]),
    ];
    for (name, front) in peers {
        let what = format!("first copy, device to device, time / {name}'s");
        let goal = if name == "dd" { Goal::Open } else { Goal::AtMost(1.0) };
        if !installed(name) {
            bench.table.skipped("P6", what, goal, format!("{name} is not installed"));
            continue;
        }
        let ours = bench.clone("state", &a.word(), &target.word(), &["--overwrite"]);
        let ends = if name == "dd" { [format!("if={}", b.word()), format!("of={}", target.word())] } else { [b.word(), target.word()] };
        let command: Vec<String> = words(&front).into_iter().chain(ends).collect();
        let figures = alternate(
            bench.slow_rounds(),
            || {
                bench.forget("state");
                a.forget();
                shell("sync");
                run(&ours).seconds
            },
            || {
                b.forget();
                shell("sync");
                run(&command).seconds
            },
        );
        bench.table.figures("P6", what, goal, figures);
    }
}
