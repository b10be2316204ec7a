//! `blockferry status`: the pairs that are remembered here.

use super::arguments::Common;
use super::clone::state_dir;
use super::output::Output;
use crate::error::Result;
use crate::state::{HostFiles, ReplicaRecord, Side, SourceRecord, Stage, StateDir};
use serde_json::json;

/// Lists sources and replicas with their generation.
pub fn run(common: &Common, output: &Output) -> Result<()> {
    let state = state_dir(common)?;
    let mut any = false;
    for relationship in state.relationships(Side::Sources)? {
        let files = HostFiles::new(&state.folder(Side::Sources, &relationship));
        let Some(record) = SourceRecord::load(&files)? else { continue };
        any = true;
        show_source(&record, output);
    }
    for relationship in state.relationships(Side::Replicas)? {
        let files = HostFiles::new(&state.folder(Side::Replicas, &relationship));
        let Some(record) = ReplicaRecord::load(&files)? else { continue };
        any = true;
        show_replica(&record, &state, output);
    }
    if !any {
        output.text(format!("no pairs in {}: `blockferry clone SRC DST` makes one", state.path().display()));
    }
    Ok(())
}

fn show_source(record: &SourceRecord, output: &Output) {
    output.line(|| {
        json!({
            "type": "source", "relationship": record.relationship, "source": record.source.path, "target": record.target,
            "generation": record.generation, "source_time": time(record.source_time_ms),
        })
    });
    let at = if record.generation == 0 {
        "not yet copied".to_owned()
    } else {
        format!("generation {} of {}", record.generation, time(record.source_time_ms))
    };
    output.text(format!("source  {} → {}: {at}", record.source.path.display(), record.target));
    output.text(format!("        relationship {}", record.relationship));
}

fn show_replica(record: &ReplicaRecord, state: &StateDir, output: &Output) {
    let stage = match (&record.stage, record.rehash) {
        _ if record.promotion.is_some() => "promoted: its source is not followed while this stands",
        (Stage::Initializing, _) => "initializing: the first copy is not complete; run the clone again",
        (Stage::Applying { .. }, _) => "applying: cut while committing; the next clone completes it",
        (Stage::Clean, true) => "clean, to be read anew by the next clone",
        (Stage::Clean, false) => "clean",
    };
    output.line(|| {
        json!({
            "type": "replica", "relationship": record.relationship, "source": record.source, "target": record.target.path,
            "generation": record.generation, "stage": stage, "source_time": time(record.source_time_ms),
            "committed_time": time(record.committed_time_ms), "healed_extents": record.healed_extents,
            "state": state.folder(Side::Replicas, &record.relationship),
        })
    });
    let at = if record.generation == 0 {
        String::new()
    } else {
        format!("generation {} of {}, ", record.generation, time(record.source_time_ms))
    };
    output.text(format!("replica {} ← {}: {at}{stage}", record.target.path.display(), record.source));
    if record.healed_extents > 0 {
        output.text(format!("        {} extents had rotted and were healed", record.healed_extents));
    }
    output.text(format!("        relationship {}", record.relationship));
}

fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    format!("{stamp:.0}")
}
