//! A real data base at work: PostgreSQL on an ext4 image, 3 000 transactions of pgbench between two passes.

use crate::local::number;
use crate::measure::{alternate, installed, run, shell};
use crate::table::Goal;
use crate::volume::{Loop, Mounted};
use crate::{Bench, PROGRAM, words};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const WIRE: &str = "wire bytes after 3 000 pgbench transactions / zstd -1 of the blocks";
const TIME: &str = "the same pass, speed / rsync --inplace";
const READ: &str = "the same pass, time / reading the volume";

pub fn rows(bench: &mut Bench) {
    if !bench.table.wants(&["P11", "P12"]) {
        return;
    }
    let tools = pg_tools();
    let missing = match &tools {
        _ if !nix::unistd::geteuid().is_root() => Some("mounting an image needs root"),
        None => Some("PostgreSQL is not installed (package postgresql)"),
        _ if !installed("mkfs.ext4") || !installed("zstd") || !installed("rsync") => Some("mkfs.ext4, zstd or rsync is not installed"),
        _ => None,
    };
    match (missing, tools) {
        (None, Some(tools)) => measure(bench, &tools),
        (why, _) => {
            let why = why.unwrap_or("nothing to run");
            bench.table.skipped("P11", WIRE, Goal::AtMost(1.2), why);
            bench.table.skipped("P12", TIME, Goal::AtLeast(30.0), why);
            bench.table.skipped("P12", READ, Goal::AtMost(1.3), why);
        }
    }
}

/// Where Debian keeps the newest server's programs.
fn pg_tools() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|folder| folder.join("initdb").exists() && folder.join("pgbench").exists());
    found.sort();
    found.pop()
}

fn measure(bench: &mut Bench, tools: &Path) {
    let (image, at) = (bench.path("pg.img"), bench.path("pg"));
    File::create(&image).and_then(|file| file.set_len((bench.mib as u64) << 20)).expect("an image");
    fs::create_dir_all(&at).expect("a mount point");
    let (image_word, at_word) = (image.display().to_string(), at.display().to_string());
    run(&words(&["mkfs.ext4", "-q", "-F", &image_word]));
    // The server refuses to be root.
    let user = |line: &str| shell(&format!("cd / && setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '{line}' >/dev/null"));
    let (pg, data) = (tools.display(), format!("{at_word}/data"));
    let server = |work: &str, first: bool| {
        let device = Loop::over(&image, 512);
        let mounted = Mounted::new(&device.0, &at);
        if first {
            shell(&format!("chown 65534:65534 {at_word}"));
            user(&format!("{pg}/initdb -D {data} -A trust -U bench"));
        }
        user(&format!("{pg}/pg_ctl -D {data} -w -l {data}/log -o \"-k {data} -h \\\"\\\"\" start"));
        user(&format!("{pg}/pgbench -h {data} -U bench {work} postgres"));
        user(&format!("{pg}/pg_ctl -D {data} -w -m fast stop"));
        drop(mounted);
        drop(device);
    };
    // The folders above have to let another user through.
    let above: Vec<String> = at.ancestors().skip(1).map(|folder| folder.display().to_string()).collect();
    shell(&format!("chmod o+x {} 2>/dev/null || true", above.join(" ")));
    server("-i -q -s 10", true);

    let (target, before) = (bench.word("pg.replica"), bench.path("pg.before"));
    let shim = bench.path("shell.sh");
    fs::write(&shim, "shift\nexec sh -c \"$*\"\n").expect("a script");
    let remote = format!("{PROGRAM} --state-dir {}", bench.word("far"));
    let ours = {
        let rsh = format!("--rsh=sh {}", shim.display());
        let remote = format!("--remote-program={remote}");
        bench.clone("state", &image_word, &format!("here:{target}"), &[&rsh, &remote, "--json", "--compress=1"])
    };
    bench.forget("state");
    run(&ours);
    let other = bench.word("pg.other");
    let rsync = words(&["rsync", "--inplace", "--no-whole-file", &image_word, &other]);
    run(&rsync);
    let read = words(&["dd", &format!("if={image_word}"), "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    let transactions = || server("-n -c 4 -t 750", false);

    fs::copy(&image, &before).expect("room for a copy");
    transactions();
    let wire = number(&run(&ours).printed, "wire_bytes");
    let packed = packed_difference(&before, &image, &bench.path("pg.changed"));
    let _ = fs::remove_file(&before);
    bench.table.figure("P11", WIRE, Goal::AtMost(1.2), wire / packed as f64);

    // Local to local, as rsync is.
    bench.forget("state");
    let local = bench.clone("local", &image_word, &bench.word("pg.local"), &[]);
    run(&local);
    let we = || {
        transactions();
        run(&local).seconds
    };
    let figures = alternate(
        bench.slow_rounds(),
        || 1.0 / we(),
        || {
            transactions();
            1.0 / run(&rsync).seconds
        },
    );
    bench.table.figures("P12", TIME, Goal::AtLeast(30.0), figures);
    let figures = alternate(bench.slow_rounds(), we, || run(&read).seconds);
    bench.table.figures("P12", READ, Goal::AtMost(1.3), figures);
    for name in ["pg.img", "pg.replica", "pg.other", "pg.local"] {
        let _ = fs::remove_file(bench.path(name));
    }
}

/// Bytes that zstd -1 makes of exactly the 4 KiB blocks that differ.
fn packed_difference(old: &Path, new: &Path, changed: &Path) -> u64 {
    let (old, new) = (File::open(old).expect("the copy"), File::open(new).expect("the image"));
    let (mut before, mut after, mut differing) = ([0; 4096], [0; 4096], Vec::new());
    let mut at = 0;
    while new.read_exact_at(&mut after, at).is_ok() && old.read_exact_at(&mut before, at).is_ok() {
        if before != after {
            differing.extend_from_slice(&after);
        }
        at += 4096;
    }
    fs::write(changed, differing).expect("room for the changes");
    let packed = shell(&format!("zstd -q -1 -c {} | wc -c", changed.display())).printed;
    packed.trim().parse().expect("a count")
}
