//! The jobs that a command is about: agent.toml, what is remembered of them, and which of them were named.

use super::arguments::{AgentConfigOption, Common, JobsOption};
use crate::agent::book::Shelf;
use crate::agent::config::{AgentConfig, Job};
use crate::error::{Error, Kind, Result};
use crate::state::StateDir;

/// agent.toml and the state that goes with it.
pub fn open(common: &Common, option: &AgentConfigOption) -> Result<(AgentConfig, Shelf)> {
    let config = AgentConfig::load(&option.config)?;
    // What was typed goes before what is written, and that before what goes without saying.
    let path = common.state_dir.clone().or_else(|| config.state_dir.clone()).unwrap_or_else(StateDir::default_path);
    let shelf = Shelf::open(&StateDir::open(&path)?)?;
    Ok((config, shelf))
}

/// The jobs that were named, each once, in the order of the command line; all of them in that of the file.
pub fn named<'a>(config: &'a AgentConfig, option: &JobsOption) -> Result<Vec<&'a Job>> {
    if option.all && config.jobs.is_empty() {
        return Err(Error::new(Kind::Usage, format!("{} has no job", option.config.config.display())));
    }
    let mut jobs: Vec<&Job> = if option.all { config.jobs.iter().collect() } else { Vec::new() };
    for name in &option.jobs {
        let job = config.job(name)?;
        if !jobs.iter().any(|other| other.name == job.name) {
            jobs.push(job);
        }
    }
    Ok(jobs)
}
