//! `blockferry resync REPLICA`.

use super::arguments::{Common, ResyncOptions};
use super::clone::state_dir;
use super::output::Output;
use crate::agent::find_replica;
use crate::error::Result;
use serde_json::json;

/// Marks a replica: its next session reads the device instead of trusting the manifest.
pub fn run(common: &Common, options: &ResyncOptions, output: &Output) -> Result<()> {
    let (site, mut record) = find_replica(&state_dir(common)?, &options.replica, common.io.into())?;
    record.rehash = true;
    record.store(site.files())?;
    output.line(|| json!({"type": "summary", "command": "resync", "replica": site.name(), "relationship": record.relationship}));
    output.text(format!("{}: the next clone reads it anew and sends what differs", site.name()));
    Ok(())
}
