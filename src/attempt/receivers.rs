//! The way to a receiver daemon: TLS to the host whose key is pinned.

use super::delivery::{Errand, Host};
use crate::error::{Error, Kind, Result};
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::pin::Pin;
use crate::progress::Progress;
use crate::state::pairing::{self, KnownReceiver};
use crate::state::{StateDir, keys};
use crate::transport::lanes::Outward;
use crate::transport::tls::{self, OwnKey, Protocol, Raw, Tls};
use crate::transport::{Wire, tcp};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// This host's key, made at first use.
pub fn own_key(state: &StateDir) -> Result<OwnKey> {
    OwnKey::new(&keys::own_key(state.path())?)
}

/// The key that the receiver at this address has: what was typed, or what pairing wrote down.
pub fn pin_of(state: &StateDir, address: &str, typed: Option<Pin>) -> Result<Pin> {
    let address = tcp::with_port(address);
    let known = || pairing::list::<KnownReceiver>(state.path()).map(|all| all.into_iter().find(|one| one.address == address));
    match typed {
        Some(pin) => Ok(pin),
        None => known()?.map(|receiver| receiver.pin).ok_or_else(|| {
            let message = format!(
                "no key is known for the receiver {address}: pair with it (`blockferry pair accept TOKEN`), or name its key with --pin"
            );
            Error::new(Kind::Usage, message)
        }),
    }
}

/// Connects to the holder of `pin`. Its handshake may take as long again as the connection, and ten seconds at least.
pub fn connect(host: &Host, address: &str, pin: Pin, protocol: Protocol, stop: &Arc<AtomicBool>) -> Result<Tls> {
    let key = own_key(&host.state)?;
    let socket = tcp::connect(address, host.terms.connect, stop)?;
    let raw = Raw {
        socket,
        peer: address.to_owned(),
        limit: host.terms.connect.max(HANDSHAKE_TIMEOUT),
        choice: host.choice,
        stop: Arc::clone(stop),
    };
    tls::connect(raw, &key, pin, protocol)
}

/// A session's wire to the receiver at `address`, with the further connections that are asked for where what is
/// sent is worth them. It has proven its key: its greeting is not waited for any longer than anything else.
pub fn wire(host: &Host, address: &str, errand: &Errand, progress: &Progress) -> Result<Wire> {
    let pin = pin_of(&host.state, address, errand.pin)?;
    let tls = connect(host, address, pin, Protocol::Session, &progress.stop)?;
    let (again, to) = (host.clone(), address.to_owned());
    let open = move |stop: &Arc<AtomicBool>| connect(&again, &to, pin, Protocol::Lane, stop);
    let transport =
        Outward::new(tls, errand.connection_count(), errand.connections.told().is_some(), Arc::new(open), Arc::clone(&progress.stop));
    Wire::on_terms(Box::new(transport), &host.terms, Some(host.terms.stall))
}
