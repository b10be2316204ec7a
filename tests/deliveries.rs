//! One snapshot for several receivers, through the door that the scheduled agent uses.

#[path = "rig/ferry.rs"]
mod ferry;

use blockferry::attempt::{self, Delivery, Errand, Host, Origin, Place, Reading, Remote, Replicated, Snapshots};
use blockferry::error::{Error, Kind};
use blockferry::progress::Progress;
use blockferry::ring::Choice;
use blockferry::state::StateDir;
use ferry::{Ferry, PROGRAM, change_blocks, equal, noise};
use std::path::Path;
use std::sync::Arc;

const MIB: usize = 1 << 20;

/// A source and the state of the host that replicates it.
struct Stand {
    ferry: Ferry,
    host: Host,
    source: String,
}

impl Stand {
    fn new(bytes: usize) -> Stand {
        let ferry = Ferry::new();
        let state = StateDir::open(&ferry.path("state")).expect("a state directory");
        let source = ferry.image("source", &noise(1, bytes));
        Stand { host: Host { state, choice: Choice::Auto, terms: Default::default() }, source, ferry }
    }

    fn place(&self, name: &str) -> Place {
        Place::Local(self.ferry.path(name))
    }

    /// The same place behind a remote shell.
    fn there(&self, name: &str) -> Place {
        Place::Remote { host: "there".to_owned(), path: self.ferry.name(name) }
    }

    fn remote(&self) -> Remote {
        let options = self.ferry.remote();
        Remote { shell: options[1].clone(), program: format!("{PROGRAM} --state-dir {}", self.ferry.name("remote")) }
    }

    fn open(&self) -> (Origin, Reading) {
        let origin = Origin::find(Path::new(&self.source)).expect("a source");
        let reading = origin.open(&self.host.state, &Snapshots::default(), None, Choice::Auto).expect("an open source");
        (origin, reading)
    }

    /// Replicates to these places, two at once; `change` says what else is asked.
    fn replicate(&self, targets: &[Place], change: impl Fn(usize, &mut Errand)) -> Replicated {
        self.replicate_at_once(2, targets, change)
    }

    fn replicate_at_once(&self, at_once: usize, targets: &[Place], change: impl Fn(usize, &mut Errand)) -> Replicated {
        let progress: Vec<(Arc<Progress>, Arc<Progress>)> = targets.iter().map(|_| Default::default()).collect();
        let deliveries: Vec<Delivery<'_>> = targets
            .iter()
            .zip(&progress)
            .enumerate()
            .map(|(at, (target, (here, there)))| {
                let mut errand = Errand::new(target.clone(), self.remote());
                change(at, &mut errand);
                Delivery { errand, here, there }
            })
            .collect();
        let (origin, reading) = self.open();
        let replicated = attempt::replicate(&self.host, &origin, reading, &deliveries, at_once);
        assert_eq!(replicated.deliveries.len(), targets.len());
        replicated
    }

    fn known(&self, target: &Place) -> Option<(u64, u64)> {
        let record = attempt::known(&self.host.state, Path::new(&self.source), target).expect("whole records");
        record.map(|record| (record.generation, record.source_time_ms))
    }
}

#[track_caller]
fn all_well(replicated: &Replicated) {
    let errors: Vec<String> = replicated.deliveries.iter().filter_map(|result| result.as_ref().err()).map(Error::chain).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(replicated.removed.is_ok());
}

#[test]
fn each_delivery_has_its_own_replica_cursor_and_result() {
    let stand = Stand::new(5 * MIB + 300);
    let targets = [stand.place("near"), stand.there("far")];
    let replicated = stand.replicate(&targets, |_, _| {});
    all_well(&replicated);
    equal(&stand.source, stand.ferry.path("near"));
    equal(&stand.source, stand.ferry.path("far"));
    // One falls behind, then both go on, each from where it stands.
    change_blocks(&stand.source, [3, 700]);
    all_well(&stand.replicate(&targets[..1], |_, _| {}));
    change_blocks(&stand.source, [900]);
    let replicated = stand.replicate(&targets, |_, _| {});
    all_well(&replicated);
    let sent: Vec<u64> = replicated.deliveries.iter().flatten().map(|report| report.counts.sent_blocks).collect();
    assert_eq!(sent, [1, 3]);
    assert_eq!(targets.iter().map(|target| stand.known(target).map(|known| known.0)).collect::<Vec<_>>(), [Some(3), Some(2)]);
    equal(&stand.source, stand.ferry.path("near"));
    equal(&stand.source, stand.ferry.path("far"));
}

#[test]
fn deliveries_at_once_read_the_source_once_and_each_arrives_whole() {
    let bytes = 48 * MIB;
    let stand = Stand::new(bytes);
    let targets = [stand.place("a"), stand.there("b"), stand.place("c"), stand.there("d")];
    let read_bytes = |try_number: u64| {
        change_blocks(&stand.source, [7 * try_number]);
        let replicated = stand.replicate_at_once(4, &targets, |_, _| {});
        all_well(&replicated);
        ["a", "b", "c", "d"].iter().for_each(|name| equal(&stand.source, stand.ferry.path(name)));
        // Each counts what it was given, as if it were alone.
        let counted: Vec<u64> = replicated.deliveries.iter().flatten().map(|report| report.counts.read_bytes).collect();
        assert_eq!(counted, [bytes as u64; 4]);
        replicated.read_bytes
    };
    // A receiver that starts late or stumbles reads some of it again, on a busy machine much; nothing like four times all of it.
    let mut tries = (0..3).map(read_bytes);
    assert!(tries.any(|read| read < 2 * bytes as u64), "three times more than twice as much was read");
    change_blocks(&stand.source, [1, 5000, 9000]);
    let replicated = stand.replicate_at_once(3, &targets, |_, _| {});
    all_well(&replicated);
    ["a", "b", "c", "d"].iter().for_each(|name| equal(&stand.source, stand.ferry.path(name)));
}

#[test]
fn a_delivery_that_is_refused_hurts_no_other_and_leaves_nothing() {
    let stand = Stand::new(3 * MIB);
    stand.ferry.image("foreign", &noise(2, 3 * MIB));
    let targets = [stand.place("foreign"), stand.place("good"), stand.place("source"), stand.there("good")];
    let replicated = stand.replicate(&targets, |at, errand| {
        if at == 3 {
            errand.remote.shell = "sh -c 'exit 7'".to_owned();
        }
    });
    let kinds: Vec<Option<Kind>> = replicated.deliveries.iter().map(|result| result.as_ref().err().map(Error::kind)).collect();
    assert_eq!(kinds, [Some(Kind::Refused), None, Some(Kind::Refused), Some(Kind::Transient)]);
    equal(&stand.source, stand.ferry.path("good"));
    assert_eq!((stand.known(&targets[0]), stand.known(&targets[2])), (None, None));
    assert_eq!(stand.known(&targets[3]).map(|known| known.0), Some(0));
}

#[test]
fn a_generation_is_as_old_as_its_snapshot_and_not_as_its_transfer() {
    let stand = Stand::new(MIB);
    let (origin, reading) = stand.open();
    let taken_ms = reading.taken_ms;
    std::thread::sleep(std::time::Duration::from_millis(30));
    let (here, there) = <(Arc<Progress>, Arc<Progress>)>::default();
    let target = stand.place("replica");
    let deliveries = [Delivery { errand: Errand::new(target.clone(), stand.remote()), here: &here, there: &there }];
    all_well(&attempt::replicate(&stand.host, &origin, reading, &deliveries, 2));
    assert_eq!(stand.known(&target), Some((1, taken_ms)));
}
