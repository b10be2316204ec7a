//! The pairs that are remembered here: what this host sends, and what it holds.

use crate::agent::health::{Look, promoted};
use crate::cli::output::Output;
use crate::cli::when::{local, utc};
use crate::state::{ReplicaRecord, Side, SourceRecord, Stage, StateDir};
use jiff::tz::TimeZone;
use serde_json::json;

/// Lists sources and replicas with their generation.
pub fn show(look: &Look, state: &StateDir, zone: &TimeZone, output: &Output) {
    look.sources.iter().for_each(|record| show_source(record, zone, output));
    look.replicas.iter().for_each(|record| show_replica(record, state, zone, output));
    if look.sources.is_empty() && look.replicas.is_empty() && look.jobs.is_empty() {
        output.text(format!("no pairs in {}: `blockferry clone SRC DST` makes one", state.path().display()));
    }
}

fn show_source(record: &SourceRecord, zone: &TimeZone, output: &Output) {
    output.line(|| {
        json!({
            "type": "source", "relationship": record.relationship, "source": record.source.path, "target": record.target,
            "generation": record.generation, "source_time": utc(record.source_time_ms),
        })
    });
    let at = if record.generation == 0 {
        "not yet copied".to_owned()
    } else {
        format!("generation {} of {}", record.generation, local(record.source_time_ms, zone))
    };
    output.text(format!("source  {} → {}: {at}", record.source.path.display(), record.target));
    output.text(format!("        relationship {}", record.relationship));
}

fn show_replica(record: &ReplicaRecord, state: &StateDir, zone: &TimeZone, output: &Output) {
    let stage = match (&record.stage, record.rehash) {
        _ if record.promotion.is_some() => "promoted: its source is not followed while this stands",
        (Stage::Initializing, _) if record.generation > 0 => {
            "initializing: an increment straight onto the device is not complete, and until it is the replica is no generation; run the clone again"
        }
        (Stage::Initializing, _) => "initializing: the first copy is not complete; run the clone again",
        (Stage::Applying { .. }, _) => "applying: cut while committing; the next clone completes it",
        (Stage::Clean, true) => "clean, to be read anew by the next clone",
        (Stage::Clean, false) => "clean",
    };
    output.line(|| {
        json!({
            "type": "replica", "relationship": record.relationship, "source": record.source, "target": record.target.path,
            "generation": record.generation, "stage": stage, "source_time": utc(record.source_time_ms),
            "committed_time": utc(record.committed_time_ms), "healed_extents": record.healed_extents,
            "state": state.folder(Side::Replicas, &record.relationship), "promoted": record.promotion.is_some(),
        })
    });
    let at = if record.generation == 0 {
        String::new()
    } else {
        format!("generation {} of {}, ", record.generation, local(record.source_time_ms, zone))
    };
    output.text(format!("replica {} ← {}: {at}{stage}", record.target.path.display(), record.source));
    if let Some(reason) = promoted(record) {
        output.text(format!("        {}: {}", reason.code, reason.message));
    }
    if record.healed_extents > 0 {
        output.text(format!("        {} extents had rotted and were healed", record.healed_extents));
    }
    output.text(format!("        relationship {}", record.relationship));
}
