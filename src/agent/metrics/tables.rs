//! Which figures there are: a row for each, with its name, its meaning, and where it comes from. Base units:
//! seconds, bytes, seconds since 1970.

use super::sheet::Sheet;
use crate::agent::health::{Activity, Level, Look, PairHealth, Seen};
use crate::state::{ReplicaRecord, SourceRecord, Stage};

/// A figure of a `T`; `None` where it has none now.
struct Row<T> {
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<f64>,
}

/// A volume at a receiver.
struct Pair {
    health: PairHealth,
    record: Option<SourceRecord>,
}

const HOST: &[Row<Look>] = &[
    Row {
        name: "blockferry_agent_up",
        help: "Whether an agent keeps the schedules of this host.",
        value: |look| flag(look.agent.is_some()),
    },
    Row { name: "blockferry_jobs", help: "Jobs that are configured.", value: |look| Some(look.jobs.len() as f64) },
    Row {
        name: "blockferry_unreadable_records",
        help: "Pairs whose record cannot be read; their figures are missing.",
        value: |look| Some(look.unreadable.len() as f64),
    },
];

const JOB: &[Row<Seen>] = &[
    Row {
        name: "blockferry_job_health",
        help: "0 ok, 1 warning, 2 critical, 3 unknown; blockferry_job_reason says why.",
        value: |job| Some(f64::from(job.health.health.nagios())),
    },
    Row {
        name: "blockferry_job_lag_seconds",
        help: "How old the oldest replica of the job is: now minus the moment up to which it holds what its source held.",
        value: |job| seconds(job.health.lag_ms),
    },
    Row {
        name: "blockferry_job_current_timestamp_seconds",
        help: "That moment: time() - this is the lag also while nobody computes these figures.",
        value: |job| seconds(job.health.lag_ms.map(|lag| job.now_ms.saturating_sub(lag))),
    },
    Row {
        name: "blockferry_job_lag_warning_seconds",
        help: "The lag beyond which that is a warning.",
        value: |job| seconds(job.health.limits.lag_warning_ms),
    },
    Row {
        name: "blockferry_job_lag_critical_seconds",
        help: "The lag beyond which it is critical.",
        value: |job| seconds(job.health.limits.lag_critical_ms),
    },
    Row { name: "blockferry_job_running", help: "Whether a run is under way.", value: |job| flag(is_running(job)) },
    Row {
        name: "blockferry_job_running_since_timestamp_seconds",
        help: "Since when.",
        value: |job| job.book.running.as_ref().filter(|_| is_running(job)).and_then(|running| seconds(Some(running.started_ms))),
    },
    Row {
        name: "blockferry_job_paused",
        help: "Whether an operator stopped the schedule.",
        value: |job| flag(job.health.has(crate::agent::health::Code::Paused)),
    },
    Row {
        name: "blockferry_job_next_run_timestamp_seconds",
        help: "When the next run is due by itself.",
        value: |job| seconds(job.book.next_due_ms),
    },
    Row {
        name: "blockferry_job_last_run_timestamp_seconds",
        help: "When the last run ended.",
        value: |job| seconds(job.book.last.as_ref().map(|last| last.finished_ms)),
    },
    Row {
        name: "blockferry_job_last_run_duration_seconds",
        help: "How long it took.",
        value: |job| seconds(job.book.last.as_ref().map(|last| last.finished_ms.saturating_sub(last.started_ms))),
    },
    Row {
        name: "blockferry_job_last_run_exit_code",
        help: "Its exit code: 0 done, 4 transient, 6 operator needed; docs/OPERATING.md has the others.",
        value: |job| job.book.last.as_ref().map(|last| last.failure.as_ref().map_or(0.0, |failure| f64::from(failure.exit))),
    },
    Row {
        name: "blockferry_job_last_success_timestamp_seconds",
        help: "When the last run began in which every replica became current.",
        value: |job| seconds(job.book.last_success_ms),
    },
    Row { name: "blockferry_job_failures", help: "Runs since then that failed.", value: |job| Some(f64::from(job.book.failures)) },
    Row {
        name: "blockferry_job_skipped_ticks_total",
        help: "Ticks of the schedule that passed while a run was under way.",
        value: |job| Some(job.book.skipped_ticks as f64),
    },
    Row {
        name: "blockferry_job_verify_last_timestamp_seconds",
        help: "When the last slice of verification ended.",
        value: |job| seconds(job.book.verify.last_ms),
    },
    Row {
        name: "blockferry_job_verify_whole_timestamp_seconds",
        help: "When every slice of a round had been compared without a difference.",
        value: |job| seconds(job.book.verify.whole_ms),
    },
];

const PAIR: &[Row<Pair>] = &[
    Row {
        name: "blockferry_pair_health",
        help: "0 ok, 1 warning, 2 critical, 3 unknown, of one volume at one receiver.",
        value: |pair| Some(f64::from(pair.health.health.nagios())),
    },
    Row { name: "blockferry_pair_lag_seconds", help: "How old this replica is.", value: |pair| seconds(pair.health.lag_ms) },
    Row {
        name: "blockferry_pair_current_timestamp_seconds",
        help: "The moment it is from: that of its snapshot, or up to which its source is known to be unchanged since.",
        value: |pair| seconds(pair.health.source_time_ms.max(pair.health.unchanged_ms)),
    },
    Row {
        name: "blockferry_pair_generation",
        help: "The last generation that the receiver committed; 0 for none.",
        value: |pair| Some(pair.health.generation as f64),
    },
    Row {
        name: "blockferry_pair_source_timestamp_seconds",
        help: "When the snapshot of that generation was taken.",
        value: |pair| seconds(pair.health.source_time_ms),
    },
    Row { name: "blockferry_pair_failures", help: "Tries in a row that failed.", value: |pair| Some(f64::from(pair.health.failures)) },
    Row {
        name: "blockferry_pair_volume_bytes",
        help: "Size of the volume.",
        value: |pair| pair.record.as_ref().map(|record| record.volume_bytes as f64),
    },
    Row {
        name: "blockferry_pair_changed_bytes",
        help: "Bytes of the extents that the last pass found changed.",
        value: |pair| pair.record.as_ref().and_then(|record| record.changed_bytes).map(|bytes| bytes as f64),
    },
];

const REPLICA: &[Row<ReplicaRecord>] = &[
    Row {
        name: "blockferry_replica_generation",
        help: "The committed generation of a replica of this host; 0 for none.",
        value: |record| Some(record.generation as f64),
    },
    Row {
        name: "blockferry_replica_source_timestamp_seconds",
        help: "When the snapshot of that generation was taken.",
        value: |record| seconds((record.generation > 0).then_some(record.source_time_ms)),
    },
    Row {
        name: "blockferry_replica_committed_timestamp_seconds",
        help: "When it was committed.",
        value: |record| seconds((record.generation > 0).then_some(record.committed_time_ms)),
    },
    Row {
        name: "blockferry_replica_clean",
        help: "Whether the replica is exactly that generation; 0 during the first copy and while a commit is under way.",
        value: |record| flag(record.stage == Stage::Clean),
    },
    Row {
        name: "blockferry_replica_promoted",
        help: "Whether it was promoted: its source is not followed.",
        value: |record| flag(record.promotion.is_some()),
    },
    Row { name: "blockferry_replica_volume_bytes", help: "Size of the volume.", value: |record| Some(record.volume_bytes as f64) },
    Row {
        name: "blockferry_replica_healed_extents_total",
        help: "Extents that had rotted on this replica and were healed.",
        value: |record| Some(record.healed_extents as f64),
    },
];

/// Not `job`: a scrape has a label of that name for itself and would call ours `exported_job`.
const JOB_LABEL: &str = "blockferry_job";
const INFO: (&str, &str) = ("blockferry_build_info", "Always 1; the program's version.");
const REASON: (&str, &str) = ("blockferry_job_reason", "1 for each reason of the job's health; docs/OPERATING.md has them.");

/// The names of all figures.
pub fn names() -> Vec<&'static str> {
    let mut names = vec![INFO.0, REASON.0];
    names.extend(HOST.iter().map(|row| row.name));
    names.extend(JOB.iter().map(|row| row.name));
    names.extend(PAIR.iter().map(|row| row.name));
    names.extend(REPLICA.iter().map(|row| row.name));
    names
}

impl Sheet {
    /// The figures of a look.
    pub fn of(look: &Look) -> Sheet {
        let mut sheet = Sheet::default();
        sheet.family(INFO.0, INFO.1);
        sheet.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        sheet.rows(HOST, &[(Vec::new(), look)]);
        let jobs: Vec<_> = look.jobs.iter().map(|job| (vec![(JOB_LABEL, job.health.job.clone())], job)).collect();
        sheet.rows(JOB, &jobs);
        sheet.family(REASON.0, REASON.1);
        for job in &look.jobs {
            let mut reasons: Vec<(&str, Level)> = job.health.reasons.iter().map(|reason| (reason.code.word(), reason.level)).collect();
            // Two pairs may have the same reason: one sample, of the worst.
            reasons.sort_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
            reasons.dedup_by_key(|reason| reason.0);
            for (code, level) in reasons {
                sheet.add(&[(JOB_LABEL, &job.health.job), ("reason", code), ("level", level.word())], 1.0);
            }
        }
        let pairs: Vec<(Vec<(&str, String)>, Pair)> = look.jobs.iter().flat_map(pairs_of).collect();
        let borrowed: Vec<_> = pairs.iter().map(|(labels, pair)| (labels.clone(), pair)).collect();
        sheet.rows(PAIR, &borrowed);
        let replica = |record: &ReplicaRecord| {
            vec![
                ("replica", record.target.path.display().to_string()),
                ("source", record.source.clone()),
                ("relationship", record.relationship.to_string()),
            ]
        };
        let replicas: Vec<_> = look.replicas.iter().map(|record| (replica(record), record)).collect();
        sheet.rows(REPLICA, &replicas);
        sheet
    }

    fn rows<T>(&mut self, rows: &[Row<T>], things: &[(Vec<(&'static str, String)>, &T)]) {
        for row in rows {
            self.family(row.name, row.help);
            for (labels, thing) in things {
                let labels: Vec<(&'static str, &str)> = labels.iter().map(|(label, value)| (*label, value.as_str())).collect();
                if let Some(value) = (row.value)(thing) {
                    self.add(&labels, value);
                }
            }
        }
    }
}

fn pairs_of(job: &Seen) -> impl Iterator<Item = (Vec<(&'static str, String)>, Pair)> {
    job.health.pairs.iter().zip(&job.records).map(|(health, record)| {
        let labels = vec![
            (JOB_LABEL, job.health.job.clone()),
            ("receiver", health.receiver.clone()),
            ("source", health.source.display().to_string()),
            ("replica", health.replica.clone()),
        ];
        (labels, Pair { health: health.clone(), record: record.clone() })
    })
}

fn is_running(job: &Seen) -> bool {
    matches!(job.health.activity, Activity::Running { .. } | Activity::QuietWait { .. })
}

fn flag(value: bool) -> Option<f64> {
    Some(f64::from(u8::from(value)))
}

fn seconds(ms: Option<u64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1000.0)
}
