//! `blockferry config check|example|show`: of agent.toml, and with `--receiver` of receiver.toml.

use super::arguments::{ConfigAction, ConfigFile, ConfigOptions};
use super::output::Output;
use crate::agent::config::{self as agent, AgentConfig};
use crate::error::Result;
use crate::serve::config::{self as serve, ReceiverConfig};
use std::path::PathBuf;

/// Checks, explains or shows a configuration. Of a good one `check` says nothing.
pub fn run(options: &ConfigOptions, output: &Output) -> Result<()> {
    match &options.action {
        ConfigAction::Check(file) if file.receiver => {
            ReceiverConfig::load(&path(file))?.warnings().iter().for_each(|word| output.warn(word));
        }
        ConfigAction::Check(file) => drop(AgentConfig::load(&path(file))?),
        ConfigAction::Example(file) if file.receiver => output.text(serve::EXAMPLE.trim_end()),
        ConfigAction::Example(_) => output.text(agent::EXAMPLE.trim_end()),
        ConfigAction::Show(file) if file.receiver => output.text(ReceiverConfig::load(&path(file))?.show()?.trim_end()),
        ConfigAction::Show(file) => output.text(AgentConfig::load(&path(file))?.show()?.trim_end()),
    }
    Ok(())
}

fn path(file: &ConfigFile) -> PathBuf {
    let default = if file.receiver { serve::RECEIVER_TOML } else { agent::AGENT_TOML };
    file.config.clone().unwrap_or_else(|| default.into())
}
