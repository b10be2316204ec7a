//! One source, one replica, one state directory for each side, and the real binary between them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A run that takes longer hangs.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// What it runs ends with its status in a file: the caller may be dead by then. So may this shell, which is killed when its
/// command takes long to end: the shell below it waits for the command. Input goes over descriptor 3, since a background
/// command's own is /dev/null.
const RSH: &str = "#!/bin/sh
: >\"$0.started\"
shift
exec 3<&0
(
    sh -c \"$*\" <&3 3<&-
    status=$?
    echo $status >\"$0.status\"
    exit $status
) &
exec 3<&-
wait $!
";

/// Seeded numbers (splitmix64).
pub struct Dice(pub u64);

#[allow(dead_code)]
impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.roll().to_le_bytes()[..part.len()]));
    }
}

/// The seed of a random test and how to repeat it: `BLOCKFERRY_SEED=…`.
#[allow(dead_code)]
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("BLOCKFERRY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| getrandom::u64().expect("random numbers"));
    eprintln!("repeat with: BLOCKFERRY_SEED={seed} cargo test --features failpoints --test {test} -- --nocapture");
    seed
}

/// What a run came to.
pub struct Run {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

#[allow(dead_code)]
impl Run {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    #[track_caller]
    pub fn succeeds(&self) -> &Run {
        assert!(self.status.success(), "{}: {}{}", self.status, self.out, self.err);
        self
    }

    /// Asserts the exit code, and that the message names all of these.
    #[track_caller]
    pub fn fails(&self, codes: &[i32], words: &[&str]) -> &Run {
        assert!(codes.contains(&self.code()), "{} instead of one of {codes:?}: {}{}", self.status, self.out, self.err);
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "no \"{word}\" in: {}{}", self.out, self.err);
        }
        self
    }

    /// The JSON lines of this type.
    pub fn lines(&self, kind: &str) -> Vec<serde_json::Value> {
        let lines = self.out.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["type"] == kind).collect()
    }
}

/// Waits for a child whose output goes to files.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The bench; its folder goes with it.
pub struct Ferry {
    _folder: tempfile::TempDir,
    pub source: PathBuf,
    pub target: PathBuf,
    pub here: PathBuf,
    pub there: PathBuf,
}

#[allow(dead_code)]
impl Ferry {
    pub fn new() -> Ferry {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("a folder");
        let at = |name: &str| root.join(name);
        fs::write(at("rsh"), RSH).expect("a remote shell");
        fs::set_permissions(at("rsh"), fs::Permissions::from_mode(0o755)).expect("a remote shell");
        Ferry { source: at("source.img"), target: at("replica.img"), here: at("here"), there: at("there"), _folder: folder }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.source.with_file_name(name)
    }

    /// The binary with these arguments and this state directory.
    pub fn program(&self, state: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        command.env_remove("BLOCKFERRY_FAILPOINT").env_remove("BLOCKFERRY_STATE_DIR").stdin(Stdio::null());
        command.arg("--state-dir").arg(state).args(arguments);
        command
    }

    /// A clone with both ends in one process.
    pub fn local(&self, options: &[&str]) -> Command {
        let mut command = self.program(&self.here, &["clone", "--json"]);
        command.args(options).arg(&self.source).arg(&self.target);
        command
    }

    /// A clone whose receiver is a process of its own, with its own state directory and fail point.
    pub fn push(&self, options: &[&str], failpoint_there: &str) -> Command {
        for name in ["rsh.started", "rsh.status"] {
            let _ = fs::remove_file(self.at(name));
        }
        let mut command = self.program(&self.here, &["clone", "--json"]);
        let set = if failpoint_there.is_empty() { String::new() } else { format!("BLOCKFERRY_FAILPOINT={failpoint_there}") };
        // Without a value of its own the far end must not inherit ours.
        let program =
            format!("env -u BLOCKFERRY_FAILPOINT {set} {} --state-dir {}", env!("CARGO_BIN_EXE_blockferry"), self.there.display());
        command.arg("--rsh").arg(self.at("rsh")).arg("--remote-program").arg(program).args(options);
        command.arg(&self.source).arg(format!("there:{}", self.target.display()));
        command
    }

    /// The exit status of the far end of the last push, as a shell says it; waits for its end. `None`: the
    /// near end died before it called for it.
    pub fn status_there(&self) -> Option<i32> {
        if !self.at("rsh.started").exists() {
            return None;
        }
        let end = Instant::now() + RUN_LIMIT;
        loop {
            let text = fs::read_to_string(self.at("rsh.status")).unwrap_or_default();
            if let (Ok(status), true) = (text.trim().parse(), text.ends_with('\n')) {
                return Some(status);
            }
            assert!(Instant::now() < end, "the far end does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs to the end; the output lies in files so that a process left behind keeps no pipe of ours open.
    #[track_caller]
    pub fn run(&self, mut command: Command) -> Run {
        let (out, err) = (self.at("run.out"), self.at("run.err"));
        let file = |path: &Path| File::create(path).expect("an output file");
        let mut child = command.stdout(file(&out)).stderr(file(&err)).spawn().expect("the binary runs");
        let Some(status) = wait(&mut child, RUN_LIMIT) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} hangs: {}", fs::read_to_string(&err).unwrap_or_default());
        };
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        Run { status, out: read(&out), err: read(&err) }
    }

    /// `doctor --json` on a state directory.
    pub fn doctor(&self, state: &Path, options: &[&str]) -> Run {
        let mut command = self.program(state, &["doctor", "--json"]);
        command.args(options);
        self.run(command)
    }

    /// The generation of the only replica in a state directory, and its stage in words.
    pub fn generation(&self, state: &Path) -> (u64, String) {
        let shown = self.run(self.program(state, &["status", "--json"]));
        let replicas = shown.succeeds().lines("replica");
        assert!(replicas.len() <= 1, "{}", shown.out);
        replicas.first().map_or((0, "none".to_owned()), |line| {
            (line["generation"].as_u64().expect("a number"), line["stage"].as_str().expect("a text").to_owned())
        })
    }

    /// Asserts that nothing but locks, manifests and records is left in a state directory.
    #[track_caller]
    pub fn nothing_is_left(&self, state: &Path) {
        let found = self.doctor(state, &[]);
        assert_eq!(found.code(), 0, "{}{}", found.out, found.err);
        assert!(found.lines("busy").is_empty(), "a lock is leaked: {}", found.out);
        for entry in fs::read_dir(state).expect("a state directory").flatten() {
            let name = entry.file_name();
            let known = ["lock", "agent", "sources", "replicas"];
            assert!(known.iter().any(|known| name == *known), "{name:?} is left in {}", state.display());
            // The books of jobs are looked for by `status`, which makes their folder.
            if name == "lock" || name == "agent" {
                continue;
            }
            for pair in fs::read_dir(entry.path()).expect("a folder").flatten() {
                for file in fs::read_dir(pair.path()).expect("a pair's folder").flatten() {
                    let name = file.file_name();
                    assert!(
                        ["lock", "record", "manifest"].iter().any(|known| name == *known),
                        "{name:?} is left in {}",
                        pair.path().display()
                    );
                }
            }
        }
    }
}

/// A file of `bytes`, a hole but for seeded data in about half of it.
#[allow(dead_code)]
pub fn make_image(path: &Path, bytes: u64, dice: &mut Dice) {
    let file = File::create(path).expect("an image");
    file.set_len(bytes).expect("an image");
    let mut piece = vec![0; 64 << 10];
    for at in (0..bytes / piece.len() as u64).filter(|at| at % 4 < 2) {
        dice.fill(&mut piece);
        file.write_all_at(&piece, at * piece.len() as u64).expect("an image");
    }
}

/// Changes single blocks, a longer run and a run of zeros, in place.
#[allow(dead_code)]
pub fn change_image(path: &Path, dice: &mut Dice) {
    let file = File::options().write(true).open(path).expect("the image");
    let blocks = file.metadata().expect("the image").len() / 4096;
    let mut block = [0; 4096];
    for _ in 0..64 {
        dice.fill(&mut block);
        file.write_all_at(&block, dice.below(blocks) * 4096).expect("the image");
    }
    let mut run = vec![0; 1 << 20];
    let start = |dice: &mut Dice| dice.below(blocks - run_blocks()) * 4096;
    let at = start(dice);
    file.write_all_at(&run, at).expect("the image");
    dice.fill(&mut run);
    let at = start(dice);
    file.write_all_at(&run, at).expect("the image");
}

fn run_blocks() -> u64 {
    (1 << 20) / 4096
}

/// Asserts that two files or devices hold the same first `bytes`.
#[allow(dead_code)]
#[track_caller]
pub fn assert_same(a: &Path, b: &Path, what: &str) {
    if let Some(at) = first_difference(a, b) {
        panic!("{what}: {} and {} differ at {at:#x}", a.display(), b.display());
    }
}

/// The first byte that differs; the shorter of the two decides how far is compared.
#[allow(dead_code)]
pub fn first_difference(a: &Path, b: &Path) -> Option<u64> {
    let read = |path: &Path| fs::read(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    let (a, b) = (read(a), read(b));
    assert!(!a.is_empty() && !b.is_empty(), "nothing to compare");
    a.iter().zip(&b).position(|(a, b)| a != b).map(|at| at as u64)
}
