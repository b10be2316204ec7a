//! The table of health: what is known on the left, what is said of it on the right.

use super::*;
use crate::agent::book::{JobBook, LastRun, LegBook, Paused, Running, VerifyBook};
use crate::agent::config::{AgentConfig, Job};
use crate::digest::{Algorithm, Digest, SECRET_BYTES};
use crate::identity::Identity;

const MINUTE: u64 = 60_000;
/// 2026-11-27 12:00 UTC, a Friday.
const NOW: u64 = 1_795_780_800_000;

/// What is known; everything is well until a line of the table changes it.
struct Story {
    job: Job,
    book: JobBook,
    pairs: Vec<Pair>,
    around: Around,
}

fn story(lines: &str) -> Story {
    let text = format!(
        "[[receiver]]\nname = \"dr1\"\naddress = \"dr1\"\n[[job]]\nname = \"db\"\nreceivers = [\"dr1\"]\nvolumes = [{{ source = \"/dev/a\", replica = \"a\" }}]\n{lines}\n"
    );
    let job = AgentConfig::parse(&[("a.toml".into(), text)]).unwrap().jobs.remove(0);
    let pair = Pair { source: "/dev/a".into(), receiver: "dr1".into(), replica: "a".into(), record: Some(record(10)), ..Pair::default() };
    let around = Around { now_ms: NOW, zone: TimeZone::UTC, runner: None, agent: Some(1) };
    let book = JobBook { last: Some(ended(10, 1, None)), next_due_ms: Some(NOW + 50 * MINUTE), ..JobBook::default() };
    Story { job, book, pairs: vec![pair], around }
}

fn hourly() -> Story {
    story("every = \"1h\"")
}

/// A pair whose last generation is so many minutes old, and which was made four weeks ago.
fn record(minutes: u64) -> SourceRecord {
    let made = uuid::Timestamp::from_unix(uuid::NoContext, NOW / 1000 - 28 * 86_400, 0);
    SourceRecord {
        relationship: Uuid::new_v7(made),
        epoch: Uuid::from_u128(2),
        generation: 3,
        root: Digest([4; 16]),
        source: Identity { stable: "dev".into(), path: "/dev/a".into(), bytes: 1 << 20, is_device: true },
        target: "blockferry://dr1/a".into(),
        volume_bytes: 1 << 20,
        extent_bytes: 65536,
        algorithm: Algorithm::Xxh3,
        secret: [7; SECRET_BYTES],
        source_time_ms: NOW - minutes * MINUTE,
        changed_bytes: None,
    }
}

fn ended(minutes_ago: u64, took: u64, failure: Option<Failure>) -> LastRun {
    let started_ms = NOW - minutes_ago * MINUTE;
    LastRun { run_id: "r".into(), started_ms, finished_ms: started_ms + took * MINUTE, failure }
}

fn failure(exit: u8, message: &str) -> Failure {
    Failure { exit, message: message.into() }
}

impl Story {
    fn with(mut self, change: impl FnOnce(&mut Story)) -> Story {
        change(&mut self);
        self
    }

    fn aged(self, minutes: u64) -> Story {
        self.with(|story| story.pairs[0].record = Some(record(minutes)))
    }

    /// The transfer failed `times` times, the last time like this.
    fn failed(self, exit: u8, message: &str, times: u32) -> Story {
        self.with(|story| {
            let leg = serde_json::json!({
                "source": "/dev/a", "receiver": "dr1", "replica": "a", "tried_ms": NOW - MINUTE,
                "failure": failure(exit, message), "failures": times,
            });
            let leg: LegBook = serde_json::from_value(leg).unwrap();
            story.book.legs.push(leg);
            story.book.last = Some(ended(1, 0, Some(failure(exit, message))));
            story.book.failures = times;
        })
    }

    fn health(&self) -> Health {
        assess(&self.job, Ok(&self.book), &self.pairs, &self.around)
    }

    /// `level data: codes → command`.
    fn line(&self) -> String {
        let health = self.health();
        let codes: Vec<&str> = health.reasons.iter().map(|reason| reason.code.word()).collect();
        let command = health.next_command.as_deref().unwrap_or("-");
        format!("{} {}: {} → {command}", health.health, health.data.words(), if codes.is_empty() { "-".into() } else { codes.join(" ") })
    }
}

#[test]
fn every_state_has_one_level_its_reasons_and_the_command_to_type() {
    let away = "send to dr1: Connection refused";
    let promoted = "the replica was promoted. On the replica's host: `blockferry resync --discard e:3 /dev/r`";
    for (story, expected) in [
        (hourly(), "ok current: - → -"),
        (hourly().aged(90), "ok current: - → -"),
        (hourly().aged(91), "warning behind: lag-warning → blockferry run db"),
        (hourly().aged(181), "critical behind: lag-critical → blockferry run db"),
        // Who runs already needs not be told to run.
        (hourly().aged(181).with(|story| story.around.runner = Some(7)), "critical behind: lag-critical → -"),
        (story(""), "ok current: - → -"),
        (story("").aged(100_000), "ok current: - → -"),
        (story("rpo = \"2h\"").aged(121), "warning behind: lag-warning → blockferry run db"),
        (story("").failed(4, away, 1), "warning behind: failing → blockferry run db"),
        // Nothing else would ever say that a job without a promise has been failing for a month.
        (story("").failed(4, away, 3), "critical behind: failing → blockferry run db"),
        (hourly().failed(4, away, 30), "warning current: failing → blockferry run db"),
        (hourly().aged(181).failed(4, away, 30), "critical behind: lag-critical failing → blockferry run db"),
        (hourly().failed(10, "write: No space left", 1), "warning current: failing → blockferry doctor"),
        (hourly().failed(6, promoted, 1), "critical diverged: operator-needed → blockferry resync --discard e:3 /dev/r"),
        (hourly().failed(8, "the key is not known", 1), "critical current: refused → blockferry plan db"),
        (hourly().failed(2, "no such device", 1), "critical current: refused → blockferry config check"),
        (hourly().with(|story| story.pairs[0].record = None), "warning never copied: never-copied → blockferry run db"),
        (
            hourly().with(|story| story.pairs[0].record = Some(SourceRecord { generation: 0, ..record(5) })),
            "warning first copy unfinished: first-copy-unfinished → blockferry run db",
        ),
        (hourly().with(|story| story.around.agent = None), "warning current: agent-not-running → systemctl start blockferry-agent"),
        (story("rpo = \"2h\"").with(|story| story.around.agent = None), "ok current: - → -"),
        (
            hourly().with(|story| story.pairs[0].unreadable = Some("the source record is damaged".into())),
            "unknown unknown: state-unreadable → -",
        ),
        (
            hourly().with(|story| story.book.running = Some(Running { run_id: "r".into(), pid: 7, started_ms: NOW })),
            "warning current: run-died → blockferry doctor",
        ),
        (hourly().with(|story| story.book.last = Some(ended(70, 61, None))), "warning current: runs-too-long → -"),
        // A hook that failed: no transfer was tried.
        (
            hourly().with(|story| story.book.last = Some(ended(1, 0, Some(failure(1, "hook pg.sh: exit status 3"))))),
            "warning current: failing → blockferry run db",
        ),
    ] {
        assert_eq!(story.line(), expected, "{:#?}", story.health().reasons);
    }
}

#[test]
fn a_pause_is_no_alarm_and_silences_none() {
    let pause =
        |until_ms| move |story: &mut Story| story.book.paused = Some(Paused { since_ms: 1, until_ms, by: "ann".into(), reason: None });
    assert_eq!(hourly().with(pause(None)).line(), "ok current: paused → -");
    assert_eq!(hourly().aged(91).with(pause(None)).line(), "warning behind: lag-warning paused → blockferry resume db");
    assert!(matches!(hourly().with(pause(None)).health().activity, Activity::Paused { until_ms: None, .. }));
    assert_eq!(hourly().with(pause(Some(NOW))).line(), "ok current: - → -");
    let told = &hourly().with(pause(Some(NOW + MINUTE))).health().reasons[0];
    assert_eq!(told.message, "paused by ann until 2026-11-27 12:01:00 UTC");
}

#[test]
fn lag_counts_from_the_last_moment_at_which_an_idle_volume_was_as_its_replica() {
    let current = |generation, minutes: u64| {
        let unchanged_ms = NOW - minutes * MINUTE;
        let text =
            format!("{{\"version\":1,\"generation\":{generation},\"boot_id\":\"b\",\"counted\":\"c\",\"unchanged_ms\":{unchanged_ms}}}");
        Some(serde_json::from_str::<Current>(&text).unwrap())
    };
    let lag = |generation, minutes| hourly().aged(500).with(|story| story.pairs[0].current = current(generation, minutes)).health().lag_ms;
    assert_eq!(lag(3, 20), Some(20 * MINUTE));
    // It speaks of a generation before, or of nothing newer.
    assert_eq!(lag(2, 20), Some(500 * MINUTE));
    assert_eq!(lag(3, 600), Some(500 * MINUTE));
    // The clock was put back behind the snapshot.
    let ahead = hourly().with(|story| story.around.now_ms = NOW - 60 * MINUTE).health();
    assert_eq!((ahead.lag_ms, ahead.health), (Some(0), Level::Ok));
}

#[test]
fn the_job_is_as_far_as_the_worst_of_its_pairs() {
    let two = hourly().aged(5).with(|story| {
        story.pairs.push(Pair { receiver: "dr2".into(), record: Some(record(91)), ..story.pairs[0].clone() });
        story.pairs.push(Pair { receiver: "dr3".into(), record: None, ..story.pairs[0].clone() });
    });
    let health = two.health();
    assert_eq!((health.lag_ms, health.data, health.health), (Some(91 * MINUTE), Data::NeverCopied, Level::Warning));
    assert_eq!(health.limits.lag_warning_ms, Some(90 * MINUTE));
    let each: Vec<(Data, Level)> = health.pairs.iter().map(|pair| (pair.data, pair.health)).collect();
    assert_eq!(each, [(Data::Current, Level::Ok), (Data::Behind, Level::Warning), (Data::NeverCopied, Level::Warning)]);
}

#[test]
fn what_is_going_on_has_a_name() {
    let activity = |change: fn(&mut Story)| hourly().with(change).health().activity;
    assert_eq!(activity(|story| story.book.next_due_ms = None), Activity::Idle);
    let due = Activity::Waiting { until_ms: NOW + 50 * MINUTE, why: None };
    assert_eq!(activity(|_| ()), due);
    assert_eq!(activity(|story| story.book.next_why = Some("retry".into())), Activity::Retrying { until_ms: NOW + 50 * MINUTE });
    assert_eq!(activity(|story| story.around.runner = Some(7)), Activity::Running { pid: 7, since_ms: None });
    let quiet = |since_ms: u64| {
        hourly().with(|story| {
            story.around.runner = Some(7);
            story.book.running = Some(serde_json::from_str(&format!("{{\"run_id\":\"r\",\"pid\":7,\"started_ms\":{NOW}}}")).unwrap());
            story.book.quiet_since_ms = Some(since_ms);
        })
    };
    assert_eq!(quiet(NOW + 1).health().activity, Activity::QuietWait { pid: 7, since_ms: Some(NOW + 1) });
    // Of a run that was killed while it waited.
    assert_eq!(quiet(NOW - 1).health().activity, Activity::Running { pid: 7, since_ms: Some(NOW) });
    assert_eq!(story("after = \"replica:x\"").health().role, Role::Relay);
}

#[test]
fn verification_that_is_late_or_found_something_is_told() {
    let weekly = "every = \"1h\"\n[job.verify]\nschedule = \"Sun 03:00\"\nslice = \"1/4\"";
    let days_ago = |days: u64| NOW - days * 24 * 60 * MINUTE;
    let verified =
        |last_ms, failure| story(weekly).with(|story| story.book.verify = VerifyBook { last_ms, failure, ..VerifyBook::default() });
    assert_eq!(verified(Some(days_ago(5)), None).line(), "ok current: - → -");
    assert_eq!(verified(Some(days_ago(12)), None).line(), "warning current: verify-overdue → blockferry verify db");
    // Never, and the pair is four weeks old.
    assert_eq!(verified(None, None).line(), "warning current: verify-overdue → blockferry verify db");
    let found = Some(failure(7, "2 ranges differ"));
    assert_eq!(verified(Some(days_ago(5)), found).line(), "critical current: verify-mismatch → blockferry verify --repair db");
    let clean_elsewhere = verified(Some(days_ago(5)), None).with(|story| story.book.verify.differed = true);
    assert_eq!(clean_elsewhere.line(), "critical current: verify-mismatch → blockferry verify --repair db");
    let away = Some(failure(4, "dr1 is away"));
    assert_eq!(verified(Some(days_ago(5)), away).line(), "warning current: verify-failing → blockferry verify db");
}

#[test]
fn a_book_that_cannot_be_read_is_unknown_and_hides_no_alarm() {
    let story = hourly().aged(181);
    let health = assess(&story.job, Err("read book.json: it is damaged"), &story.pairs, &story.around);
    assert_eq!(health.health, Level::Critical);
    assert!(health.has(Code::StateUnreadable) && health.has(Code::LagCritical));
    assert_eq!(health.worst().map(|reason| reason.code), Some(Code::LagCritical));
}
