//! The jobs of agent.toml, for commands that look at them: of the file that is named, or of the one in its usual
//! place where there is one.

use super::arguments::Common;
use crate::agent::book::Shelf;
use crate::agent::config::{AGENT_TOML, AgentConfig, Job};
use crate::error::Result;
use crate::state::StateDir;
use std::path::Path;

/// What a look needs.
#[derive(Debug)]
pub struct Configured {
    /// The configuration, where there is one.
    pub config: Option<AgentConfig>,
    /// The books.
    pub shelf: Shelf,
}

impl Configured {
    /// `config`: the file that was named. `--state-dir` goes before what the file says.
    pub fn find(common: &Common, config: Option<&Path>) -> Result<Configured> {
        let usual = Path::new(AGENT_TOML);
        let config = match config {
            Some(path) => Some(AgentConfig::load(path)?),
            None if usual.exists() => Some(AgentConfig::load(usual)?),
            None => None,
        };
        let state = state_dir(common, config.as_ref())?;
        Ok(Configured { config, shelf: Shelf::look(&state) })
    }

    /// The jobs of these names, all where none is named.
    pub fn jobs(&self, names: &[String]) -> Result<Vec<Job>> {
        match &self.config {
            Some(config) if names.is_empty() => Ok(config.jobs.clone()),
            Some(config) => names.iter().map(|name| config.job(name).cloned()).collect(),
            None if names.is_empty() => Ok(Vec::new()),
            // Read once more for what it says: the file is not there.
            None => AgentConfig::load(Path::new(AGENT_TOML)).map(|config| config.jobs),
        }
    }
}

/// The state directory: what was typed goes before what is written, and that before what goes without saying.
pub fn state_dir(common: &Common, config: Option<&AgentConfig>) -> Result<StateDir> {
    let of_config = config.and_then(|config| config.state_dir.clone());
    StateDir::open(&common.state_dir.clone().or(of_config).unwrap_or_else(StateDir::default_path))
}
