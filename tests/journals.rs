//! Journals where receiver.toml wants them: how much they take, and that none is lost when that changes.

#[path = "rig/receiver.rs"]
mod receiver;

use receiver::{Agent, Receiver, end};
use std::fs;
use std::path::{Path, PathBuf};

const BYTES: usize = 40 << 20;
const BOTH: &str = "\"push\", \"verify\"";

/// A receiver with journals in a folder of its own, and a replica of generation 1 whose source changed since.
struct Stand {
    agent: Agent,
    receiver: Receiver,
    image: PathBuf,
}

impl Stand {
    fn new() -> Stand {
        let agent = Agent::new();
        let receiver = Receiver::start(&["db"], &agent.entry("prod1", "*", BOTH));
        let image = agent.image("volume", BYTES, 1);
        let stand = Stand { agent, receiver, image };
        assert_eq!(stand.push().0, Some(0));
        stand.agent.image("volume", BYTES, 2);
        stand
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.receiver.folder().join(name)
    }

    /// The configuration with this journal table.
    fn rest(&self, dir: &str, more: &str) -> String {
        let journal = format!("journal = {{ dir = \"{}\"{more} }}\n", self.dir(dir).display());
        journal + &self.agent.entry("prod1", "*", BOTH)
    }

    fn reload(&self, dir: &str, more: &str) {
        let before = self.receiver.log().matches("configuration reloaded").count();
        self.receiver.reconfigure(&["db"], &self.rest(dir, more));
        let reloaded = || self.receiver.log().matches("configuration reloaded").count() > before;
        assert!((0..6000).any(|_| reloaded() || (std::thread::sleep(std::time::Duration::from_millis(20)), false).1));
    }

    fn push(&self) -> (Option<i32>, String) {
        end(&self.agent.pass("clone", &self.image, &self.receiver, "db", &["--compress", "none", "--json"]))
    }

    fn sent_blocks(said: &str) -> usize {
        let line = said.lines().find(|line| line.contains("\"summary\"")).expect("a summary");
        let found: serde_json::Value = serde_json::from_str(line).expect("JSON");
        found["sent_blocks"].as_u64().expect("a count") as usize
    }

    /// The folder of the replica's record.
    fn replica(&self) -> PathBuf {
        let mut all = fs::read_dir(self.receiver.state().join("replicas")).expect("replicas");
        all.next().expect("a replica").expect("a folder").path()
    }

    fn holds(&self, seed: u8) -> bool {
        let expected: Vec<u8> = (0..BYTES).map(|at| (at / 4096 * 31 + at % 251) as u8 ^ seed).collect();
        fs::read(self.receiver.image("db")).expect("the replica") == expected
    }
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn journals_stop_at_their_limit_and_go_on_with_more_where_they_lie() {
    let stand = Stand::new();
    stand.reload("a", ", max = \"16MiB\"");
    let (code, said) = stand.push();
    assert_eq!(code, Some(10), "{said}");
    for words in
        ["No space left for the journal of", "of the 16.0 MiB that journal.max allows", "needs at least", "journal.reserve", "is untouched"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(stand.holds(1), "something was written");
    assert_eq!(files(&stand.dir("a")), 1);
    let taken = fs::metadata(stand.replica().join("journal")).expect("the journal").len();
    assert!(taken <= 16 << 20 && taken > 8 << 20, "{taken}");
    // It lies in the old folder by now, and is found and told there.
    stand.reload("b", "");
    let (code, said) = end(&stand.receiver.run(&["doctor"]));
    assert!(code == Some(1) && said.contains(&stand.dir("a").display().to_string()) && said.contains("was cut after"), "{said}");
    let (code, said) = stand.push();
    assert_eq!(code, Some(0), "{said}");
    assert!(stand.holds(2));
    assert!(Stand::sent_blocks(&said) < (BYTES - (8 << 20)) / 4096, "what came was sent again: {said}");
    assert_eq!((files(&stand.dir("a")), files(&stand.dir("b"))), (0, 0));
    assert!(fs::symlink_metadata(stand.replica().join("journal")).is_err());
}

#[test]
fn what_stays_free_is_looked_at_before_the_first_byte() {
    let stand = Stand::new();
    stand.reload("a", ", reserve = \"4000PiB\"");
    let (code, said) = stand.push();
    assert_eq!(code, Some(10), "{said}");
    assert!(said.contains("4000.0 PiB stay free") && said.contains("It has 0 bytes so far"), "{said}");
    assert!(stand.holds(1) && files(&stand.dir("a")) == 0);
    let (_, said) = end(&stand.receiver.run(&["doctor"]));
    assert!(!said.contains("journal"), "{said}");
}

#[test]
fn a_journal_that_is_given_up_goes_where_it_lies() {
    let stand = Stand::new();
    stand.reload("a", ", max = \"16MiB\"");
    assert_eq!(stand.push().0, Some(10));
    let (code, said) = end(&stand.receiver.run(&["doctor", "--fix", "--drop-journals"]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(files(&stand.dir("a")), 0);
    assert!(fs::symlink_metadata(stand.replica().join("journal")).is_err());
    stand.reload("a", "");
    assert_eq!(stand.push().0, Some(0));
    assert!(stand.holds(2));
}

#[test]
fn a_journal_whose_file_system_is_away_is_told_and_costs_a_resend_only() {
    let mut stand = Stand::new();
    stand.reload("a", ", max = \"16MiB\"");
    assert_eq!(stand.push().0, Some(10));
    fs::rename(stand.dir("a"), stand.dir("away")).expect("unmounted");
    let (code, said) = end(&stand.receiver.run(&["doctor"]));
    assert!(code == Some(1) && said.contains("is not mounted"), "{said}");
    stand.reload("b", "");
    assert_eq!(stand.push().0, Some(0));
    assert!(stand.holds(2));
    // It is back, and nothing leads to it any more.
    fs::rename(stand.dir("away"), stand.dir("a")).expect("mounted");
    stand.receiver.configure(&["db"], &stand.rest("a", ""));
    assert_eq!(stand.receiver.stop(), Some(0));
    stand.receiver.restart();
    let log = stand.receiver.wait_for("a journal that no replica in");
    assert!(log.contains(&stand.dir("a").display().to_string()), "{log}");
}

/// The receiver dies between the generations; by its next start the configuration names another folder.
#[cfg(feature = "failpoints")]
#[test]
fn a_commit_that_was_cut_is_completed_from_a_journal_elsewhere() {
    for failpoint in ["receiver.journal-created", "receiver.next-sealed", "receiver.apply-halfway", "receiver.committed"] {
        let mut stand = Stand::new();
        assert_eq!(stand.receiver.stop(), Some(0));
        stand.receiver.configure(&["db"], &stand.rest("a", ""));
        stand.receiver.restart_here(failpoint);
        assert_eq!(stand.push().0, Some(4), "{failpoint}");
        stand.receiver.wait_for_death();
        assert_eq!(files(&stand.dir("a")), 1, "{failpoint}");
        stand.receiver.configure(&["db"], &stand.rest("b", ""));
        stand.receiver.restart_here("");
        let whole = failpoint != "receiver.journal-created";
        assert!(stand.holds(if whole { 2 } else { 1 }), "{failpoint}");
        assert_eq!(files(&stand.dir("a")), usize::from(!whole), "{failpoint}");
        assert_eq!(stand.push().0, Some(0), "{failpoint}");
        assert!(stand.holds(2), "{failpoint}");
        assert_eq!((files(&stand.dir("a")), files(&stand.dir("b"))), (0, 0), "{failpoint}");
    }
}
