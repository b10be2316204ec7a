//! `blockferry doctor`: names each leftover, what it is and what completes it; fixes what is safe and
//! leaves the rest alone.

#[path = "rig/stand.rs"]
mod ferry;

use ferry::{Dice, Ferry, Run, make_image};
use std::fs::{self, File};
use std::path::PathBuf;

const VOLUME_BYTES: u64 = 4 << 20;

/// A pair with one generation, and the folders of its halves.
fn pair() -> (Ferry, PathBuf, PathBuf) {
    let ferry = Ferry::new();
    make_image(&ferry.source, VOLUME_BYTES, &mut Dice(5));
    ferry.run(ferry.local(&[])).succeeds();
    let folder = |side: &str| fs::read_dir(ferry.here.join(side)).unwrap().next().unwrap().unwrap().path();
    let (source, replica) = (folder("sources"), folder("replicas"));
    (ferry, source, replica)
}

fn kinds(run: &Run, line: &str) -> Vec<String> {
    let mut kinds: Vec<String> = run.lines(line).iter().map(|line| line["what"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

#[test]
fn a_sound_state_directory_has_nothing_to_show() {
    let (ferry, ..) = pair();
    let found = ferry.doctor(&ferry.here, &[]);
    assert_eq!((found.code(), found.lines("leftover").len()), (0, 0));
    let text = ferry.run(ferry.program(&ferry.here, &["doctor"]));
    assert_eq!(text.succeeds().out, format!("nothing is left over in {}\n", ferry.here.display()));
}

#[test]
fn orphans_are_named_and_fixed_and_the_pair_goes_on() {
    let (ferry, source, replica) = pair();
    fs::write(source.join("have"), "x").unwrap();
    fs::write(source.join("record.new"), "half a reco").unwrap();
    fs::write(replica.join("manifest.next"), "torn").unwrap();
    fs::write(replica.join("journal"), vec![0; 5000]).unwrap();
    fs::create_dir(ferry.here.join("verify-01a200d3-4fff-7109-b632-6812481829fd")).unwrap();
    fs::create_dir(ferry.here.join("replicas/01a200d3-4fff-7109-b632-6812481829fd")).unwrap();
    let expected = ["beside", "listing", "no-pair", "stray-draft", "stray-journal", "verification"];
    let found = ferry.doctor(&ferry.here, &[]);
    assert_eq!((found.code(), kinds(&found, "leftover")), (1, expected.map(str::to_owned).to_vec()), "{}", found.out);
    let journal = found.lines("leftover").into_iter().find(|line| line["what"] == "stray-journal").unwrap();
    assert_eq!((journal["bytes"].as_u64(), journal["place"].as_str()), (Some(5000), replica.join("journal").to_str()));
    // Looking changes nothing.
    assert!(source.join("have").exists() && replica.join("journal").exists());
    let text = ferry.run(ferry.program(&ferry.here, &["doctor"]));
    text.fails(&[1], &["6 things are left over", "`blockferry doctor --fix` sees to 6 of them", "→"]);
    let fixed = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!((fixed.code(), kinds(&fixed, "fixed").len()), (0, 6), "{}", fixed.out);
    ferry.nothing_is_left(&ferry.here);
    ferry.run(ferry.local(&[])).succeeds();
}

#[test]
fn what_needs_an_operator_is_told_and_left() {
    let (ferry, source, replica) = pair();
    let away = ferry.at("away.img");
    fs::rename(&ferry.target, &away).unwrap();
    let gone = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!((gone.code(), kinds(&gone, "leftover")), (1, vec!["device-gone".to_owned()]), "{}", gone.out);
    fs::rename(&away, &ferry.target).unwrap();
    fs::write(replica.join("record"), "not a record").unwrap();
    let damaged = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!((damaged.code(), kinds(&damaged, "leftover")), (1, vec!["damaged".to_owned()]), "{}", damaged.out);
    // A journal without its record may be all that is left of a generation.
    fs::remove_file(replica.join("record")).unwrap();
    fs::write(replica.join("journal"), vec![0; 5000]).unwrap();
    let bereft = ferry.doctor(&ferry.here, &["--fix", "--drop-journals"]);
    assert_eq!((bereft.code(), kinds(&bereft, "leftover")), (1, vec!["damaged".to_owned()]), "{}", bereft.out);
    assert!(replica.join("journal").exists() && source.join("record").exists());
}

#[test]
fn a_pair_in_use_is_passed_over() {
    let (ferry, source, _) = pair();
    fs::write(source.join("have"), "x").unwrap();
    let lock = File::options().write(true).open(source.join("lock")).unwrap();
    lock.lock().unwrap();
    let found = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!((found.code(), found.lines("busy").len()), (0, 1), "{}", found.out);
    assert!(source.join("have").exists());
    drop(lock);
    assert_eq!(kinds(&ferry.doctor(&ferry.here, &["--fix"]), "fixed"), ["listing"]);
}

/// The replica's device is another one now: nothing is applied onto it, whatever the journal says.
#[cfg(feature = "failpoints")]
#[test]
fn a_commit_is_completed_on_the_paired_device_only() {
    let (ferry, ..) = pair();
    ferry::change_image(&ferry.source, &mut Dice(6));
    let mut cut = ferry.local(&[]);
    cut.env("BLOCKFERRY_FAILPOINT", "receiver.apply-halfway");
    assert!(ferry.run(cut).was_killed());
    assert!(kinds(&ferry.doctor(&ferry.here, &[]), "leftover").contains(&"applying".to_owned()));
    let away = ferry.at("away.img");
    fs::rename(&ferry.target, &away).unwrap();
    fs::write(&ferry.target, vec![7; VOLUME_BYTES as usize]).unwrap();
    let refused = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!(refused.code(), 1);
    assert!(refused.err.contains("is not the device that was paired"), "{}", refused.err);
    assert!(fs::read(&ferry.target).unwrap().iter().all(|byte| *byte == 7), "a foreign device was written");
    fs::rename(&away, &ferry.target).unwrap();
    // Only the sender's question, whether generation 2 was committed, is left: it asks with its next run.
    let fixed = ferry.doctor(&ferry.here, &["--fix"]);
    assert_eq!((kinds(&fixed, "fixed"), kinds(&fixed, "leftover")), (vec!["applying".to_owned()], vec!["unacknowledged".to_owned()]));
    ferry::assert_same(&ferry.source, &ferry.target, "completed without the source");
    assert_eq!(ferry.generation(&ferry.here), (2, "clean".to_owned()));
    ferry.run(ferry.local(&[])).succeeds();
    ferry.nothing_is_left(&ferry.here);
}

#[cfg(feature = "failpoints")]
#[test]
fn an_unfinished_journal_is_kept_until_it_is_given_up() {
    let (ferry, _, replica) = pair();
    ferry::change_image(&ferry.source, &mut Dice(6));
    let mut cut = ferry.local(&[]);
    cut.env("BLOCKFERRY_FAILPOINT", "receiver.journal-created");
    assert!(ferry.run(cut).was_killed());
    let kept = ferry.doctor(&ferry.here, &["--fix"]);
    assert!(kinds(&kept, "leftover").contains(&"unfinished-journal".to_owned()), "{}", kept.out);
    assert!(replica.join("journal").exists());
    let dropped = ferry.doctor(&ferry.here, &["--fix", "--drop-journals"]);
    assert_eq!(kinds(&dropped, "fixed"), ["unfinished-journal"], "{}", dropped.out);
    ferry.run(ferry.local(&[])).succeeds();
    ferry::assert_same(&ferry.source, &ferry.target, "sent again");
    ferry.nothing_is_left(&ferry.here);
}
