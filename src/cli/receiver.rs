//! `blockferry receiver`.

use super::arguments::{Common, ReceiverOptions};
use super::clone::state_dir;
use super::output::Output;
use super::pair::state_of;
use super::signals;
use crate::attempt::{self, HostReplicas};
use crate::error::{Context, Kind, Result};
use crate::limits::STALL_TIMEOUT;
use crate::log;
use crate::progress::Progress;
use crate::receiver;
use crate::serve::config::ReceiverConfig;
use crate::serve::{self, Daemon};
use crate::transport::Terms;
use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Serves one session on standard input and output, or paired hosts until a signal.
pub fn run(common: &Common, options: &ReceiverOptions, output: &Output) -> Result<()> {
    if options.stdio {
        return one_session(common, options);
    }
    let config = ReceiverConfig::load(&options.config)?;
    let state = state_of(common, Some(&config))?;
    let (stop, reload) = (signals::stop_flag()?, signals::reload_flag()?);
    // A socket that systemd listens on for us.
    let inherited = ListenFd::from_env().take_tcp_listener(0).context(Kind::Usage, || "take over the socket of systemd")?;
    let daemon = Daemon { config, config_path: options.config.clone(), state, choice: common.io.into(), stop, reload };
    let result = daemon.run(inherited, |address, pin| {
        if !output.quiet {
            log::info(format!("listening on {address}, key {pin}"));
        }
        let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    });
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    result
}

fn one_session(common: &Common, options: &ReceiverOptions) -> Result<()> {
    let progress = Progress::new(signals::stop_flag()?);
    let choice = common.io.into();
    if let Some(client) = &options.client {
        let config = ReceiverConfig::load(&options.config)?;
        let state = state_of(common, Some(&config))?;
        return serve::serve_one(config, &state, client, choice, options.stall_timeout, &progress);
    }
    let terms = Terms { stall: options.stall_timeout.unwrap_or(STALL_TIMEOUT), ..Terms::default() };
    let mut wire = attempt::stdio(choice, &terms, &progress)?;
    let state = state_dir(common).inspect_err(|error| attempt::excuse(&mut wire, error))?;
    let mut replicas = HostReplicas::new(state, choice);
    receiver::receive(&mut wire, &mut replicas, &progress)?;
    Ok(())
}
