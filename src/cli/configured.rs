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
        let of_config = config.as_ref().and_then(|config| config.state_dir.clone());
        let state = common.state_dir.clone().or(of_config).unwrap_or_else(StateDir::default_path);
        Ok(Configured { config, shelf: Shelf::look(&StateDir::open(&state)?) })
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
