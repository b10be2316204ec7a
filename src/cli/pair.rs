//! `blockferry pair key|invite|accept|list|revoke`.

use super::arguments::{AcceptOptions, Common, InviteOptions, PairAction, PairOptions, RevokeOptions};
use super::clone::state_dir;
use super::output::Output;
use super::signals;
use crate::attempt::{Host, own_key};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::serve::config::ReceiverConfig;
use crate::serve::pairing;
use crate::state::StateDir;
use crate::state::pairing::{self as lists, Enrolled, Invite, KnownReceiver};
use crate::transport::{Terms, tcp};
use serde_json::json;

/// Makes two hosts known to each other.
pub fn run(common: &Common, options: &PairOptions, output: &Output) -> Result<()> {
    let config = options.config.exists().then(|| ReceiverConfig::load(&options.config)).transpose()?;
    let state = state_of(common, config.as_ref())?;
    match &options.action {
        PairAction::Key => {
            let key = own_key(&state)?;
            output.line(|| json!({"type": "key", "key": key.pin()}));
            output.text(key.pin().to_string());
            Ok(())
        }
        PairAction::Invite(invite) => invite_one(&state, config.as_ref(), invite, output),
        PairAction::Accept(accept) => accept_one(&state, accept, common, output),
        PairAction::List => list(&state, config.as_ref(), output),
        PairAction::Revoke(revoke) => revoke_one(&state, revoke, output),
    }
}

/// The state directory that the daemon of this configuration has.
pub fn state_of(common: &Common, config: Option<&ReceiverConfig>) -> Result<StateDir> {
    match (&common.state_dir, config.and_then(|config| config.state_dir.as_deref())) {
        (None, Some(configured)) => StateDir::open(configured),
        _ => state_dir(common),
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "localhost".to_owned())
}

fn invite_one(state: &StateDir, config: Option<&ReceiverConfig>, options: &InviteOptions, output: &Output) -> Result<()> {
    let port = config.map(|config| tcp::with_port(&config.listen)).and_then(|listen| Some(listen.rsplit_once(':')?.1.to_owned()));
    let mut address = options.address.clone().unwrap_or_else(hostname);
    if let Some(port) = port {
        address = tcp::with_default_port(&address, &port);
    }
    let token = pairing::invite(state, &address, &options.replica, options.expires)?;
    output.line(|| json!({"type": "token", "token": token.write(), "address": token.address, "replica": token.replica, "expires_ms": token.expires_ms}));
    output.text(token.write());
    output.warn(&format!(
        "at the sending host: blockferry pair accept TOKEN; once, until {}, for {} at {}",
        time(token.expires_ms),
        token.replica,
        token.address
    ));
    Ok(())
}

fn accept_one(state: &StateDir, options: &AcceptOptions, common: &Common, output: &Output) -> Result<()> {
    let token = pairing::Token::read(&options.token)?;
    let wish = options.name.clone().unwrap_or_else(|| hostname().split('.').next().unwrap_or_default().to_owned());
    let progress = Progress::new(signals::stop_flag()?);
    let host = Host { state: state.clone(), choice: common.io.into(), terms: Terms::default() };
    let name = pairing::accept(&host, &token, &wish, &progress)?;
    if name != wish {
        let way_out = format!("`blockferry pair revoke {name}` there and another invitation make it {wish}");
        output.warn(&format!("{} knows this host as {name} already, and so it stays: {way_out}", token.address));
    }
    output.line(|| json!({"type": "summary", "command": "pair", "receiver": token.address, "pin": token.pin, "name": name, "replica": token.replica}));
    output.text(format!("paired with {} as {name}: blockferry clone SRC blockferry://{}/{}", token.address, token.address, token.replica));
    Ok(())
}

fn list(state: &StateDir, config: Option<&ReceiverConfig>, output: &Output) -> Result<()> {
    for client in config.iter().flat_map(|config| &config.clients) {
        output.line(|| json!({"type": "client", "name": client.name, "key": client.key, "from": "receiver.toml"}));
        let key = client.key.map_or("through ssh".to_owned(), |key| key.to_string());
        output.text(format!("client   {} {key} (receiver.toml)", client.name));
    }
    for client in lists::list::<Enrolled>(state.path())? {
        output.line(|| json!({"type": "client", "name": client.name, "key": client.key, "replicas": client.replicas, "from": "pair"}));
        output.text(format!("client   {} {} {} since {}", client.name, client.key, client.replicas.join(" "), time(client.since_ms)));
    }
    for invite in lists::list::<Invite>(state.path())?.iter().filter(|invite| invite.expires_ms > crate::attempt::now_ms()) {
        output.line(|| json!({"type": "invitation", "replica": invite.replica, "expires_ms": invite.expires_ms}));
        output.text(format!("invited  {} until {}", invite.replica, time(invite.expires_ms)));
    }
    for receiver in lists::list::<KnownReceiver>(state.path())? {
        output.line(|| json!({"type": "receiver", "address": receiver.address, "pin": receiver.pin}));
        output.text(format!("receiver {} {}", receiver.address, receiver.pin));
    }
    Ok(())
}

fn revoke_one(state: &StateDir, options: &RevokeOptions, output: &Output) -> Result<()> {
    if options.invites {
        let open = lists::change(state.path(), |all: &mut Vec<Invite>| Ok(std::mem::take(all).len()))?;
        output.text(format!("{open} invitations taken back"));
    }
    let Some(name) = &options.name else { return Ok(()) };
    let clients = lists::change(state.path(), |all: &mut Vec<Enrolled>| {
        let before = all.len();
        all.retain(|client| client.name != *name && client.key.to_string() != *name);
        Ok(before - all.len())
    })?;
    let address = tcp::with_port(name);
    let receivers = lists::change(state.path(), |all: &mut Vec<KnownReceiver>| {
        let before = all.len();
        all.retain(|receiver| receiver.address != address);
        Ok(before - all.len())
    })?;
    if clients + receivers == 0 {
        let message =
            format!("{name} is paired with nobody here: `blockferry pair list` shows who is; clients of receiver.toml are removed there");
        return Err(Error::new(Kind::Usage, message));
    }
    output.text(format!("{name} is not paired any more; where it has a session, the daemon ends it at a point to go on from"));
    Ok(())
}

fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    format!("{stamp:.0}")
}
