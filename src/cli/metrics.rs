//! `blockferry metrics`: the figures for Prometheus, once.

use super::arguments::{Common, MetricsOptions};
use super::configured::Configured;
use super::output::Output;
use crate::agent::health::Look;
use crate::agent::metrics::{Sheet, write_textfile};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// Prints them, or replaces a file.
pub fn run(common: &Common, options: &MetricsOptions, output: &Output) -> Result<()> {
    let configured = Configured::find(common, options.config.as_deref())?;
    let (zone, _) = crate::settings::local_time_zone();
    let sheet = Sheet::of(&Look::now(&configured.shelf, &configured.jobs(&[])?, &zone)?);
    if let Some(path) = &options.textfile {
        return write_textfile(path, &sheet);
    }
    for sample in sheet.samples() {
        let labels: Map<String, Value> = sample.labels.iter().map(|(label, value)| ((*label).to_owned(), value.as_str().into())).collect();
        output.line(|| json!({"type": "metric", "name": sample.name, "labels": labels, "value": sample.value}));
    }
    output.text(sheet.text().trim_end());
    Ok(())
}
