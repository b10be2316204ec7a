//! The way to a receiver daemon: TLS to the host whose key is pinned.

use crate::error::{Error, Kind, Result};
use crate::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use crate::pin::Pin;
use crate::progress::Progress;
use crate::ring::Choice;
use crate::state::pairing::{self, KnownReceiver};
use crate::state::{StateDir, keys};
use crate::transport::tls::{self, OwnKey, Protocol, Raw, Tls};
use crate::transport::{Wire, tcp};
use std::sync::Arc;

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

/// Connects to the holder of `pin`.
pub fn connect(state: &StateDir, address: &str, pin: Pin, protocol: Protocol, choice: Choice, progress: &Progress) -> Result<Tls> {
    let key = own_key(state)?;
    let socket = tcp::connect(address, CONNECT_TIMEOUT)?;
    let raw = Raw { socket, peer: address.to_owned(), limit: HANDSHAKE_TIMEOUT, choice, stop: Arc::clone(&progress.stop) };
    tls::connect(raw, &key, pin, protocol)
}

/// A session's wire to the receiver at `address`.
pub fn wire(state: &StateDir, address: &str, typed: Option<Pin>, choice: Choice, progress: &Progress) -> Result<Wire> {
    let pin = pin_of(state, address, typed)?;
    Wire::new(Box::new(connect(state, address, pin, Protocol::Session, choice, progress)?))
}
