//! The jobs that a command is about: agent.toml, what is remembered of them, and which of them were named.

use super::arguments::{AgentConfigOption, Common, JobsOption};
use super::configured::state_dir;
use crate::agent::book::Shelf;
use crate::agent::config::{AgentConfig, Job};
use crate::error::{Error, Kind, Result};

/// agent.toml and the state that goes with it.
pub fn open(common: &Common, option: &AgentConfigOption) -> Result<(AgentConfig, Shelf)> {
    let config = AgentConfig::load(&option.config)?;
    let shelf = Shelf::open(&state_dir(common, Some(&config))?)?;
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
