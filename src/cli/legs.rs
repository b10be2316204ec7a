//! What a run of a job came to, leg by leg, as text or as JSON lines.

use super::output::Output;
use super::when::moments;
use crate::agent::outcome::{Amounts, Leg, LegResult, RunReport};
use crate::log;
use indicatif::HumanBytes;
use serde_json::json;

/// Shows a run. `command`: which one it was.
pub fn show(output: &Output, command: &str, report: &RunReport) {
    for leg in &report.legs {
        output.line(|| {
            let mut line = serde_json::to_value(leg).unwrap_or_default();
            (line["type"], line["job"]) = (json!("leg"), json!(report.job));
            moments(&mut line);
            line
        });
        let way = format!("{} → {} at {}", leg.source.display(), leg.replica, leg.receiver);
        match &leg.result {
            LegResult::Committed { generation, mode, amounts, .. } => {
                let how = match (amounts.changed_extents, mode.as_str()) {
                    (0, _) => "nothing changed",
                    (_, "direct") => "first copy",
                    _ => "changes",
                };
                output.text(format!("{way}: generation {generation} ({how})"));
                output.text(figures("sent", amounts, leg));
            }
            LegResult::Idle { generation } => output.text(format!("{way}: generation {generation} is current (nothing was written since)")),
            LegResult::Planned { amounts } => output.text(figures("would send", amounts, leg)),
            LegResult::Failed { failure } if !output.json && !output.quiet => log::error(format!("{way}: {}", failure.message)),
            LegResult::Failed { .. } => {}
            LegResult::PassedOver { why } => output.text(format!("{way}: passed over: {why}")),
        }
    }
    output.line(|| summary(command, report));
}

/// The last line of a job: how many legs came to what, and what was moved.
fn summary(command: &str, report: &RunReport) -> serde_json::Value {
    let count = |is: fn(&LegResult) -> bool| report.legs.iter().filter(|leg| is(&leg.result)).count();
    let amounts = report.legs.iter().filter_map(|leg| leg.result.amounts());
    let sum = |of: fn(&Amounts) -> u64| amounts.clone().map(of).sum::<u64>();
    let mut line = json!({
        "type": "summary", "command": command, "job": report.job, "run_id": report.run_id, "cause": report.cause,
        "started_ms": report.started_ms, "finished_ms": report.finished_ms,
        "committed": count(|result| matches!(result, LegResult::Committed { .. })),
        "idle": count(|result| matches!(result, LegResult::Idle { .. })),
        "failed": count(|result| matches!(result, LegResult::Failed { .. })),
        "passed_over": count(|result| matches!(result, LegResult::PassedOver { .. })),
        "read_bytes": sum(|amounts| amounts.read_bytes), "plain_bytes": sum(|amounts| amounts.plain_bytes),
        "wire_bytes": sum(|amounts| amounts.wire_bytes), "failure": report.verdict(),
    });
    moments(&mut line);
    line
}

fn figures(verb: &str, amounts: &Amounts, leg: &Leg) -> String {
    let wire = match amounts.wire_bytes {
        0 => String::new(),
        bytes => format!(" in {} on the wire (ratio {:.2})", HumanBytes(bytes), amounts.plain_bytes as f64 / bytes as f64),
    };
    format!(
        "  read {}, {} extents differ, {verb} {} blocks ({}){wire}, took {:.2} s",
        HumanBytes(amounts.read_bytes),
        amounts.changed_extents,
        amounts.sent_blocks,
        HumanBytes(amounts.plain_bytes),
        leg.seconds
    )
}
