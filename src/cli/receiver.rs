//! `blockferry receiver`.

use super::arguments::{Common, ReceiverOptions};
use super::clone::state_dir;
use super::output::Output;
use super::pair::state_of;
use super::signals;
use crate::attempt::{self, HostReplicas};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{STALL_TIMEOUT, STOP_EXTENSION};
use crate::log;
use crate::progress::Progress;
use crate::receiver;
use crate::serve::config::ReceiverConfig;
use crate::serve::{self, Daemon, Milestone};
use crate::transport::Terms;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::net::TcpListener;

/// Serves one session on standard input and output, or paired hosts until a signal.
pub fn run(common: &Common, options: &ReceiverOptions, output: &Output) -> Result<()> {
    if options.stdio {
        return one_session(common, options);
    }
    let config = ReceiverConfig::load(&options.config)?;
    let state = state_of(common, Some(&config))?;
    let (stop, reload) = (signals::stop_flag()?, signals::reload_flag()?);
    let daemon = Daemon { config, config_path: options.config.clone(), state, choice: common.io.into(), stop, reload };
    daemon.run(inherited()?, |milestone| match milestone {
        Milestone::Listening(address, pin) => {
            if !output.quiet {
                log::info(format!("listening on {address}, key {pin}"));
            }
            notify(&[NotifyState::Ready, NotifyState::Status(&format!("listening on {address}"))]);
        }
        // Type=notify-reload wants to know when that was.
        Milestone::Reloading => match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        },
        Milestone::Reloaded => notify(&[NotifyState::Ready]),
        // One that commits is waited for.
        Milestone::Stopping => notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(STOP_EXTENSION.as_micros() as u32)]),
    })
}

/// Tells systemd, where it started us.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(false, states);
}

/// Sockets that systemd listens on for us. One that is no TCP socket is a mistake of the .socket unit.
fn inherited() -> Result<Vec<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    let count = sockets.len();
    let take = |at| {
        let place = || format!("take over socket {} of systemd (a .socket unit for this needs ListenStream=ADDRESS:PORT)", at + 1);
        sockets.take_tcp_listener(at).context(Kind::Usage, place)
    };
    Ok((0..count).map(take).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn one_session(common: &Common, options: &ReceiverOptions) -> Result<()> {
    let progress = Progress::new(signals::stop_flag()?);
    let choice = common.io.into();
    if let Some(asked) = other_command() {
        let message = format!(
            "this ssh key's command is forced: it takes copies in with `blockferry receiver` and does nothing else, so there is no {asked:?}"
        );
        let error = Error::new(Kind::Refused, message);
        // One of us waits to hear that; anybody else reads it on our standard error.
        if asked.split_whitespace().any(|word| word == "sender") {
            attempt::excuse(&mut attempt::stdio(choice, &Terms::default(), &progress)?, &error);
        }
        return Err(error);
    }
    if let Some(client) = &options.client {
        let read = ReceiverConfig::load(&options.config).and_then(|config| Ok((state_of(common, Some(&config))?, config)));
        // Said to the peer, who would only see that nothing answers.
        let (state, config) = read.inspect_err(|error| {
            let _ = attempt::stdio(choice, &Terms::default(), &progress).map(|mut wire| attempt::excuse(&mut wire, error));
        })?;
        return serve::serve_one(config, &state, client, choice, options.stall_timeout, &progress);
    }
    let terms = Terms { stall: options.stall_timeout.unwrap_or(STALL_TIMEOUT), ..Terms::default() };
    let mut wire = attempt::stdio(choice, &terms, &progress)?;
    let state = state_dir(common).inspect_err(|error| attempt::excuse(&mut wire, error))?;
    let mut replicas = HostReplicas::new(state, choice);
    receiver::receive(&mut wire, &mut replicas, &progress)?;
    Ok(())
}

/// What the client asked sshd for, where a forced command runs us instead of something else: a pull, for one, has a
/// receiver at its own end, and two receivers would wait for each other.
fn other_command() -> Option<String> {
    let asked = std::env::var("SSH_ORIGINAL_COMMAND").ok()?;
    let is_ours = ["receiver", "--stdio"].iter().all(|ours| asked.split_whitespace().any(|word| word == *ours));
    (!is_ours).then_some(asked)
}
