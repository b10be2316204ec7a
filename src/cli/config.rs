//! `blockferry config check|example|show`: of agent.toml, and with `--receiver` of receiver.toml.

use super::arguments::{Common, ConfigAction, ConfigFile, ConfigOptions};
use super::output::Output;
use crate::agent::config::{self as agent, AgentConfig, Job, Trigger};
use crate::attempt::replica_named;
use crate::error::{Error, Kind, Result};
use crate::serve::config::{self as serve, ReceiverConfig};
use crate::state::StateDir;
use std::path::{Path, PathBuf};

/// Checks, prints or shows a configuration. Of a good one `check` says nothing.
pub fn run(common: &Common, options: &ConfigOptions, output: &Output) -> Result<()> {
    match &options.action {
        ConfigAction::Check(file) if file.receiver => {
            ReceiverConfig::load(&path(file))?.warnings().iter().for_each(|word| output.warn(word));
        }
        ConfigAction::Check(file) => check_agent(common, &path(file), output)?,
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

fn check_agent(common: &Common, path: &Path, output: &Output) -> Result<()> {
    let config = AgentConfig::load(path)?;
    config.warnings().iter().for_each(|word| output.warn(word));
    let after = |job: &Job| match &job.trigger {
        Trigger::After(name) => Some((job.name.clone(), name.clone())),
        _ => None,
    };
    let root = common.state_dir.clone().or(config.state_dir.clone()).unwrap_or_else(StateDir::default_path);
    config.jobs.iter().filter_map(after).try_for_each(|(job, name)| check_upstream(path, &root, &job, &name, output))
}

/// A job that comes after a replica which this host does not hold never runs. What it holds is in the receiver.toml beside
/// agent.toml, and in the state directory what has ever come: by a device's name, too, where a first copy through ssh is still
/// to be. So a name is known to be wrong only where there is a receiver.toml that lacks it.
fn check_upstream(path: &Path, root: &Path, job: &str, name: &str, output: &Output) -> Result<()> {
    let receiver = path.with_file_name("receiver.toml");
    let served = receiver.exists().then(|| ReceiverConfig::load(&receiver)).transpose()?;
    let is_served =
        served.as_ref().is_some_and(|served| served.replicas.iter().any(|it| it.name == name || it.device.path() == Path::new(name)));
    if is_served || was_received(root, name).unwrap_or(false) {
        return Ok(());
    }
    let what = format!("job \"{job}\": after = \"replica:{name}\": this host has no replica of this name");
    if served.is_some() && !Path::new(name).is_absolute() {
        return Err(Error::new(Kind::Usage, format!("{}: {what}, and {} serves none", path.display(), receiver.display())));
    }
    output.warn(&format!("{what} yet: the job waits until one comes"));
    Ok(())
}

/// Whether a replica of this name has been here. A check makes no state directory.
fn was_received(root: &Path, name: &str) -> Result<bool> {
    if !root.join("replicas").exists() {
        return Ok(false);
    }
    Ok(replica_named(&StateDir::open(root)?, name)?.is_some())
}
