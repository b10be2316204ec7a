//! TCP connections: made and taken with time limits, and set so that a peer that vanished is noticed.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{KEEPALIVE_IDLE, KEEPALIVE_PROBES, STALL_TIMEOUT};
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The port where none is named.
pub const PORT: u16 = 7420;

/// Connects to `HOST` or `HOST:PORT`, trying every address of that name for up to `limit` each.
pub fn connect(address: &str, limit: Duration) -> Result<TcpStream> {
    let address = with_port(address);
    let found = address.to_socket_addrs().context(Kind::Transient, || format!("find the address of {address}"))?;
    let mut last = Error::new(Kind::Transient, format!("{address} has no address"));
    for one in found {
        match TcpStream::connect_timeout(&one, limit) {
            Ok(socket) => {
                tune(&socket)?;
                return Ok(socket);
            }
            Err(cause) => last = Error::because(Kind::Transient, format!("connect to {address} ({one})"), cause),
        }
    }
    Err(last)
}

/// Listens on `ADDRESS` or `ADDRESS:PORT`.
pub fn listen(address: &str) -> Result<TcpListener> {
    let address = with_port(address);
    TcpListener::bind(&address).context(Kind::Failed, || format!("listen on {address}"))
}

/// Sets a connection up: small frames go at once, and a peer without a sign of life is noticed.
pub fn tune(socket: &TcpStream) -> Result<()> {
    let place = || "set up a connection";
    // An accepted socket may have it from its listener.
    socket.set_nonblocking(false).context(Kind::Failed, place)?;
    socket.set_nodelay(true).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::KeepAlive, &true).context(Kind::Failed, place)?;
    let idle = KEEPALIVE_IDLE.as_secs() as u32;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &(idle / 3)).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES).context(Kind::Failed, place)?;
    // What was sent and is not acknowledged for this long ends the connection.
    setsockopt(socket, sockopt::TcpUserTimeout, &(STALL_TIMEOUT.as_millis() as u32)).context(Kind::Failed, place)
}

/// `[::1]`, `::1`, `host` and `host:7420` all name a host and a port.
pub fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => {
            !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match address {
        _ if has_port => address.to_owned(),
        _ if address.contains(':') && !address.starts_with('[') => format!("[{address}]:{PORT}"),
        _ => format!("{address}:{PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_ours() {
        for (typed, meant) in
            [("dr1", "dr1:7420"), ("dr1:99", "dr1:99"), ("::1", "[::1]:7420"), ("[::1]", "[::1]:7420"), ("[::1]:5", "[::1]:5")]
        {
            assert_eq!(with_port(typed), meant);
        }
    }

    #[test]
    fn a_connection_is_made_and_a_closed_port_is_transient() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let socket = connect(&address, Duration::from_secs(5)).unwrap();
        assert!(socket.nodelay().unwrap());
        drop(listener);
        let refused = connect(&address, Duration::from_secs(5)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Transient);
        assert!(refused.chain().contains(&address), "{}", refused.chain());
    }
}
