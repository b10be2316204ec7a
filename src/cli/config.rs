//! `blockferry config check|example|show`.

use super::arguments::{ConfigAction, ConfigOptions};
use super::output::Output;
use crate::error::Result;
use crate::serve::config::{EXAMPLE, ReceiverConfig};

/// Checks, explains or shows a configuration. Of a good one `check` says nothing.
pub fn run(options: &ConfigOptions, output: &Output) -> Result<()> {
    match &options.action {
        ConfigAction::Check(file) => ReceiverConfig::load(&file.config)?.warnings().iter().for_each(|word| output.warn(word)),
        ConfigAction::Example(_) => output.text(EXAMPLE.trim_end()),
        ConfigAction::Show(file) => output.text(ReceiverConfig::load(&file.config)?.show()?.trim_end()),
    }
    Ok(())
}
