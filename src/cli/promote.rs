//! `blockferry promote REPLICA`.

use super::arguments::{Common, PromoteOptions};
use super::clone::state_dir;
use super::output::Output;
use crate::attempt::find_replica;
use crate::error::{Error, Kind, Result};
use crate::receiver::promotion;
use serde_json::json;

/// Makes a replica usable without its source.
pub fn run(common: &Common, options: &PromoteOptions, output: &Output) -> Result<()> {
    let (mut site, _) = find_replica(&state_dir(common)?, &options.replica, common.io.into())?;
    let disk = site.open_disk(true)?.ok_or_else(|| Error::new(Kind::Usage, format!("{} is gone", site.name())))?;
    let record = promotion::promote(&*site, disk)?;
    output.line(
        || json!({"type": "summary", "command": "promote", "replica": site.name(), "generation": record.generation, "epoch": record.epoch}),
    );
    output.text(format!("{}: promoted at generation {}; it may be written to now", site.name(), record.generation));
    output.text("  as long as nothing is written, its source goes on by itself at the next clone");
    Ok(())
}
