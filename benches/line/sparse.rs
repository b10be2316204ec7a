//! A volume of 64 TiB that is nearly all hole: what a pass costs must follow what changed.

use crate::local::number;
use crate::measure::{run, wait_and_watch};
use crate::table::Goal;
use crate::{Bench, words};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

const BYTES: u64 = 64 << 40;
const EXTENTS: u64 = 1000;
const BLOCK: usize = 4096;

pub fn rows(bench: &mut Bench) {
    if !bench.table.wants(&["P8"]) {
        return;
    }
    // tmpfs knows such a file; ext4 ends at 16 TiB.
    let folder = Path::new("/dev/shm").join(format!("blockferry-sparse-{}", std::process::id()));
    let (memory, goal) = ("peak memory, both ends, 64 TiB sparse, first copy, MiB", Goal::AtMost(48.0));
    if fs::create_dir(&folder).is_err() {
        return bench.table.skipped("P8", memory, goal, "there is no /dev/shm");
    }
    let (source, target) = (folder.join("source"), folder.join("target"));
    let file = File::create(&source).expect("a source");
    if file.set_len(BYTES).is_err() {
        return bench.table.skipped("P8", memory, goal, "/dev/shm takes no file of 64 TiB");
    }
    file.write_all_at(&[7; BLOCK], 1 << 40).expect("a block");
    bench.forget("state");
    let command = bench.clone("state", &word(&source), &word(&target), &[]);
    let start =
        |command: &[String]| Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn().expect("the program starts");
    bench.table.figure("P8", memory, goal, wait_and_watch(&mut start(&command)) as f64 / 1024.0);

    // Two passes, one of them over nothing that changed: what the second writes more is the changes' own.
    let still = written_by(|| drop(run(&command)));
    for at in 0..EXTENTS {
        file.write_all_at(&[at as u8 + 1; BLOCK], BYTES / EXTENTS * at).expect("a block");
    }
    let peak = std::cell::Cell::new(0);
    let written = written_by(|| peak.set(wait_and_watch(&mut start(&command))));
    bench.table.figure("P8", "the same, 1 000 extents changed, MiB", goal, peak.get() as f64 / 1024.0);
    // Each change lies on a page of its own, which both ends write into their draft and into their manifest.
    let pages = (written - still) / (20 << 10) as f64;
    let what = "manifest bytes written, 1 000 extents changed in 64 TiB, in pages / extent";
    bench.table.figure("P8", what, Goal::AtMost(6.0), pages / EXTENTS as f64);
    let told = run(&words(&[&command[0], "--json"]).into_iter().chain(command[2..].iter().cloned()).collect::<Vec<_>>());
    assert_eq!(number(&told.printed, "changed_extents") as u64, 0, "everything arrived");
    drop(file);
    let _ = fs::remove_dir_all(folder);
}

fn word(path: &Path) -> String {
    path.display().to_string()
}

/// Bytes of manifests and records that `work` wrote: the kernel counts what children of this process write by
/// plain calls, and everything else goes through a ring.
fn written_by(work: impl FnOnce()) -> f64 {
    let count = || {
        let all = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let line = all.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.and_then(|bytes| bytes.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let before = count();
    work();
    count() - before
}
