//! `blockferry resync REPLICA`.

use super::arguments::{Common, ResyncOptions};
use super::clone::state_dir;
use super::output::Output;
use crate::attempt::find_replica;
use crate::error::{Error, Kind, Result};
use crate::receiver::promotion;
use serde_json::json;

/// Marks a replica: its next session reads the device instead of trusting the manifest. What was
/// written since a promotion is only thrown away by its name.
pub fn run(common: &Common, options: &ResyncOptions, output: &Output) -> Result<()> {
    let (site, mut record) = find_replica(&state_dir(common)?, &options.replica, common.io.into())?;
    match (&options.discard, record.promotion) {
        (Some(named), _) => promotion::discard(&*site, &mut record, named)?,
        (None, Some(promoted)) => {
            let message = format!(
                "{} was promoted at generation {}: following its source again would lose what was written since. If it may: `blockferry resync --discard {} {}`",
                site.name(),
                promoted.from_generation,
                promotion::name_of(&record),
                site.name()
            );
            return Err(Error::new(Kind::Operator, message));
        }
        (None, None) => {
            record.rehash = true;
            record.store(site.files())?;
        }
    }
    output.line(|| json!({"type": "summary", "command": "resync", "replica": site.name(), "relationship": record.relationship}));
    output.text(format!("{}: the next clone reads it anew and sends what differs", site.name()));
    Ok(())
}
