//! The real binary with a folder of its own: images in it, the state beside them, and what a run said.

use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_blockferry");
/// The unit of sending.
pub const BLOCK: usize = 4096;

/// A folder with images and state, and the engine its runs use.
pub struct Ferry {
    pub folder: TempDir,
    pub engine: &'static str,
}

#[allow(dead_code)]
impl Ferry {
    pub fn new() -> Ferry {
        Ferry { folder: tempfile::tempdir().expect("a folder"), engine: "auto" }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub fn name(&self, name: &str) -> String {
        self.path(name).to_str().expect("test paths are plain text").to_owned()
    }

    /// Makes an image.
    pub fn image(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).expect("an image");
        self.name(name)
    }

    /// Makes an image that is one hole.
    pub fn hole(&self, name: &str, bytes: u64) -> String {
        File::create(self.path(name)).and_then(|file| file.set_len(bytes)).expect("an image");
        self.name(name)
    }

    /// The folder of the only pair's sender (`sources`) or receiver (`replicas`) in a state directory.
    pub fn pair(&self, state: &str, side: &str) -> PathBuf {
        let entries = fs::read_dir(self.path(state).join(side)).expect("a state directory");
        let found: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        assert_eq!(found.len(), 1, "one pair was expected: {found:?}");
        found[0].clone()
    }

    /// A command line with this folder's state.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--state-dir", &self.name("state"), "--io", self.engine]).args(arguments);
        command.env_remove("BLOCKFERRY_STATE_DIR").env_remove("BLOCKFERRY_RSH").env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs it and says what came.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().expect("the program runs"))
    }

    /// Runs it with `--json` and checks the frame of what it prints.
    pub fn json(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(&[arguments, &["--json"]].concat());
        ended.check_json();
        ended
    }

    /// `clone` that has to succeed; its summary.
    pub fn clone(&self, source: &str, target: &str, options: &[&str]) -> Summary {
        self.json(&[&["clone", source, target], options].concat()).summary()
    }

    /// Starts it; standard output and error are pipes.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    /// Options for HOST:PATH: a remote shell that runs its command here, with the state directory `remote`.
    pub fn remote(&self) -> Vec<String> {
        let script = self.path("rsh.sh");
        // Read by sh, not executed: a script that another test's fork still has open would be "busy".
        fs::write(&script, "shift\nexec sh -c \"$*\"\n").expect("a script");
        self.remote_through(&format!("sh {}", script.display()))
    }

    /// The same with another remote shell.
    pub fn remote_through(&self, shell: &str) -> Vec<String> {
        let program = format!("{PROGRAM} --state-dir {} --io {}", self.name("remote"), self.engine);
        ["--rsh", shell, "--remote-program", &program].map(str::to_owned).to_vec()
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[allow(dead_code)]
impl Ended {
    pub fn of(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what is printed is text");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The JSON lines.
    pub fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// First a hello, last the exit code that the process ended with.
    pub fn check_json(&self) {
        let lines = self.lines();
        let (first, last) = (lines.first().expect("a hello"), lines.last().expect("an exit"));
        assert_eq!((&first["type"], &first["schema"]), (&"hello".into(), &1.into()), "{self:?}");
        assert_eq!((&last["type"], last["code"].as_i64().map(|code| code as i32)), (&"exit".into(), self.code), "{self:?}");
    }

    /// The lines of one type.
    pub fn of_type(&self, kind: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["type"] == kind).collect()
    }

    /// The one summary of a run that succeeded.
    pub fn summary(&self) -> Summary {
        assert_eq!(self.code, Some(0), "{self:?}");
        let mut found = self.of_type("summary");
        assert_eq!(found.len(), 1, "{self:?}");
        Summary(found.remove(0))
    }

    /// It failed with this code and said this, without a second story about it.
    #[track_caller]
    pub fn says(&self, code: i32, words: &[&str]) -> &Ended {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "not said: {word}\n{}", self.stderr);
        }
        self
    }
}

/// The figures of a run.
#[derive(Debug)]
pub struct Summary(pub Value);

#[allow(dead_code)]
impl Summary {
    #[track_caller]
    pub fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key} in {}", self.0))
    }

    /// Blocks, zero extents and written bytes are none.
    #[track_caller]
    pub fn sent_nothing(&self) {
        for key in ["changed_extents", "sent_blocks", "zero_extents", "plain_bytes", "written_bytes"] {
            assert_eq!(self.count(key), 0, "{key} in {}", self.0);
        }
    }
}

/// Bytes that do not shrink and are never zero for long; another seed gives other bytes everywhere.
#[allow(dead_code)]
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Overwrites a piece of a file or device. Durable, because what reads it next goes past the page cache.
#[allow(dead_code)]
pub fn edit(path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("a file to edit");
    file.write_all_at(bytes, offset).and_then(|()| file.sync_all()).expect("an edit");
}

/// Inverts the first byte of each of these blocks.
#[allow(dead_code)]
pub fn change_blocks(path: impl AsRef<Path>, blocks: impl IntoIterator<Item = u64>) {
    let file = File::options().read(true).write(true).open(path).expect("a file to edit");
    for block in blocks {
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * BLOCK as u64).expect("a block");
        file.write_all_at(&[!byte[0]], block * BLOCK as u64).expect("a block");
    }
    file.sync_all().expect("a sync");
}

/// The files have the same size and bytes. Not `assert_eq`: megabytes are no message.
#[track_caller]
#[allow(dead_code)]
pub fn equal(a: impl AsRef<Path>, b: impl AsRef<Path>) {
    let (left, right) = (fs::read(&a).expect("a file"), fs::read(&b).expect("a file"));
    let first = left.iter().zip(&right).position(|(left, right)| left != right);
    assert!(
        left == right,
        "{} and {}: {} and {} bytes, first difference at {first:?}",
        a.as_ref().display(),
        b.as_ref().display(),
        left.len(),
        right.len()
    );
}

/// Bytes that the file takes on its file system.
#[allow(dead_code)]
pub fn allocated(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

/// What changes when somebody writes to a file or replaces it.
#[allow(dead_code)]
pub fn traces(path: impl AsRef<Path>) -> (u64, u64, u64, i64, i64) {
    let found = fs::metadata(path).expect("a file");
    (found.ino(), found.len(), found.blocks(), found.mtime(), found.mtime_nsec())
}

/// How many blocks of `a` stand in `b` at the same place.
#[allow(dead_code)]
pub fn blocks_in_common(a: impl AsRef<Path>, b: impl AsRef<Path>) -> u64 {
    let (a, b) = (fs::read(a).expect("a file"), fs::read(b).expect("a file"));
    a.chunks(BLOCK).zip(b.chunks(BLOCK)).filter(|(a, b)| a == b).count() as u64
}
