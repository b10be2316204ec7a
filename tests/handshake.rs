//! Every row of the handshake table (docs/RELIABILITY.md), with the real program: what each side
//! remembers decides what travels, what is refused, and what a person is told.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: usize = 1 << 20;

/// A source, a replica and the state between them.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    /// A pair whose first generation is committed.
    fn committed() -> Pair {
        let pair = Pair { folder: tempfile::tempdir().unwrap() };
        let content: Vec<u8> = (0..4 * MIB as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        fs::write(pair.source(), content).unwrap();
        assert_eq!(pair.clone(&[]).generation, 1);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source.img")
    }

    fn replica(&self) -> PathBuf {
        self.path("replica.img")
    }

    fn half(&self, side: &str) -> PathBuf {
        fs::read_dir(self.path("state").join(side)).unwrap().next().unwrap().unwrap().path()
    }

    fn program(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        command.arg("--state-dir").arg(self.path("state")).args(arguments).output().unwrap()
    }

    /// A clone that must succeed; the figures of its summary.
    fn clone(&self, options: &[&str]) -> Figures {
        let (source, replica) = (self.source(), self.replica());
        let output = self.program(&[&["clone", "--json"], options, &[source.to_str().unwrap(), replica.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(fs::read(self.source()).unwrap(), fs::read(self.replica()).unwrap(), "the replica is the source");
        Figures::of(&output)
    }

    /// A clone that must be refused: its exit code and message.
    fn refused(&self) -> (i32, String) {
        let (source, replica) = (self.source(), self.replica());
        let output = self.program(&["clone", source.to_str().unwrap(), replica.to_str().unwrap()]);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn change(&self, file: &Path, offset: usize) {
        fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(b"changed", offset as u64).unwrap();
    }
}

#[derive(Debug)]
struct Figures {
    generation: u64,
    sent_blocks: u64,
    adopted: Option<u64>,
}

impl Figures {
    fn of(output: &Output) -> Figures {
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let summary =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).find(|line| line["type"] == "summary");
        let summary = summary.expect("a summary");
        Figures {
            generation: summary["generation"].as_u64().unwrap(),
            sent_blocks: summary["sent_blocks"].as_u64().unwrap(),
            adopted: summary["adopted_generation"].as_u64(),
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn same_generation_and_root_is_an_increment() {
    let pair = Pair::committed();
    pair.change(&pair.source(), 100_000);
    let run = pair.clone(&[]);
    assert_eq!((run.generation, run.sent_blocks, run.adopted), (2, 1, None));
}

#[test]
fn another_relationship_is_refused_and_taken_over_only_by_word() {
    let pair = Pair::committed();
    fs::remove_dir_all(pair.half("sources")).unwrap();
    let (code, message) = pair.refused();
    assert_eq!(code, 8);
    assert!(message.contains("is the replica of") && message.contains("--overwrite"), "{message}");
    let run = pair.clone(&["--overwrite"]);
    assert_eq!((run.generation, run.sent_blocks), (1, 0), "what is equal already does not travel");
}

#[test]
fn a_lost_acknowledgement_is_adopted_and_costs_no_data() {
    let pair = Pair::committed();
    let half = pair.half("sources");
    copy_folder(&half, &pair.path("before"));
    pair.change(&pair.source(), 1_000_000);
    assert_eq!(pair.clone(&[]).sent_blocks, 1);
    // The receiver has committed generation 2; the sender's record of before knows only of 1, and the
    // sealed draft is what the sender had made durable before it sent its End.
    let (record, manifest) = (fs::read(half.join("record")).unwrap(), fs::read(half.join("manifest")).unwrap());
    copy_folder(&pair.path("before"), &half);
    fs::write(half.join("manifest.next"), manifest).unwrap();
    let run = pair.clone(&[]);
    assert_eq!((run.adopted, run.generation, run.sent_blocks), (Some(2), 3, 0));
    assert_ne!(fs::read(half.join("record")).unwrap(), record);
}

#[test]
fn a_lost_bookmark_is_listed_by_the_receiver() {
    let pair = Pair::committed();
    fs::remove_file(pair.half("sources").join("manifest")).unwrap();
    pair.change(&pair.source(), 2_000_000);
    let run = pair.clone(&[]);
    assert_eq!((run.generation, run.sent_blocks), (2, 1));
}

#[test]
fn a_replica_without_its_manifest_is_read_anew() {
    let pair = Pair::committed();
    fs::remove_file(pair.half("replicas").join("manifest")).unwrap();
    pair.change(&pair.source(), 2_000_000);
    let run = pair.clone(&[]);
    assert_eq!((run.generation, run.sent_blocks), (2, 1));
}

#[test]
fn a_promotion_without_a_write_is_no_divergence() {
    let pair = Pair::committed();
    let replica = pair.replica();
    assert!(pair.program(&["promote", replica.to_str().unwrap()]).status.success());
    pair.change(&pair.source(), 5000);
    let run = pair.clone(&[]);
    assert_eq!((run.generation, run.sent_blocks), (2, 1));
    assert_eq!(pair.clone(&[]).generation, 3, "the new epoch is the pair's own now");
}

#[test]
fn a_promotion_that_was_written_to_is_kept_until_its_name_is_said() {
    let pair = Pair::committed();
    let replica = pair.replica();
    let replica_name = replica.to_str().unwrap();
    assert!(pair.program(&["promote", replica_name]).status.success());
    pair.change(&replica, 3_000_000);
    let kept = fs::read(&replica).unwrap();

    let (code, message) = pair.refused();
    assert_eq!(code, 6);
    assert!(message.contains("1 extents") && message.contains("resync --discard"), "{message}");
    let name = message.split("--discard ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(pair.program(&["resync", replica_name]).status.code(), Some(6));
    assert_eq!(pair.program(&["resync", "--discard", "00000000-0000-0000-0000-000000000000:1", replica_name]).status.code(), Some(8));
    assert_eq!(fs::read(&replica).unwrap(), kept, "nothing was written meanwhile");

    assert!(pair.program(&["resync", "--discard", name, replica_name]).status.success());
    let run = pair.clone(&[]);
    assert_eq!((run.generation, run.sent_blocks), (2, 1));
}

#[test]
fn histories_without_a_common_epoch_are_left_to_an_operator() {
    let pair = Pair::committed();
    let half = pair.half("sources");
    copy_folder(&half, &pair.path("before"));
    // A promotion that the source took over, and then a source restored from before it.
    let replica = pair.replica();
    assert!(pair.program(&["promote", replica.to_str().unwrap()]).status.success());
    pair.clone(&[]);
    copy_folder(&pair.path("before"), &half);
    let (code, message) = pair.refused();
    assert_eq!(code, 6);
    assert!(message.contains("another history"), "{message}");
}

#[test]
fn a_foreign_write_is_refused_before_anything_is_written_and_repaired_by_differences() {
    let pair = Pair::committed();
    let replica = pair.replica();
    pair.change(&replica, 10);
    pair.change(&pair.source(), 3_000_000);
    let before = fs::read(&replica).unwrap();
    let (code, message) = pair.refused();
    assert_eq!(code, 8);
    assert!(message.contains("extent 0") && message.contains("verify --repair"), "{message}");
    assert_eq!(fs::read(&replica).unwrap(), before);
    let run = pair.clone(&["--resync"]);
    assert_eq!((run.generation, run.sent_blocks), (2, 2));
}
