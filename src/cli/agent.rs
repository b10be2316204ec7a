//! `blockferry agent`.

use super::arguments::{AgentConfigOption, Common};
use super::{jobs, signals};
use crate::agent::bench::Bench;
use crate::agent::daemon::{Daemon, Sign};
use crate::agent::run;
use crate::error::Result;
use crate::limits::STOP_EXTENSION;
use crate::log;
use sd_notify::NotifyState;
use std::sync::Arc;

/// Looks after the jobs of agent.toml until a signal.
pub fn run(common: &Common, option: &AgentConfigOption) -> Result<()> {
    let (config, shelf) = jobs::open(common, option)?;
    let (stop, reload) = (signals::stop_flag()?, signals::reload_flag()?);
    let state = shelf.state().path().display().to_string();
    let ready = format!("agent of {state}, {} jobs", config.jobs.len());
    let mut bench = Bench::new(shelf, common.io.into());
    bench.change_log.clone_from(&common.log_file);
    let bench = Arc::new(bench);
    let daemon = Daemon { config, config_path: option.config.clone(), bench, run: run::run, stop, reload };
    let mut status = String::new();
    let mut stopping = false;
    daemon.run(&mut |sign| {
        // Where no systemd listens, nobody is told.
        let _ = match sign {
            Sign::Ready => {
                log::info(&ready);
                sd_notify::notify(false, &[NotifyState::Ready])
            }
            Sign::Stopping => {
                stopping = true;
                sd_notify::notify(false, &[NotifyState::Stopping])
            }
            Sign::Alive(words) => {
                // A commit that is under way may take its time: systemd waits as long as we say so.
                if stopping {
                    let _ = sd_notify::notify(false, &[NotifyState::ExtendTimeoutUsec(STOP_EXTENSION.as_micros() as u32)]);
                }
                if words != status {
                    status.clone_from(&words);
                    let _ = sd_notify::notify(false, &[NotifyState::Status(&words)]);
                }
                sd_notify::notify(false, &[NotifyState::Watchdog])
            }
        };
    })?;
    log::info("agent stopped");
    Ok(())
}
