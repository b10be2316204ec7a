//! TCP connections: made and taken with time limits, and set so that a peer that vanished is noticed.

use crate::error::{Context, Error, Kind, Result};
use crate::limits::{KEEPALIVE_IDLE, KEEPALIVE_PROBES, STOP_POLL};
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The port where none is named.
pub const PORT: u16 = 7420;

/// Connects to `HOST` or `HOST:PORT`, trying every address of that name for up to `limit` each. The stop flag
/// ends the wait: neither a name server nor a dead host can be asked to hurry, so both are waited for in a thread
/// that nobody has to outlive.
pub fn connect(address: &str, limit: Duration, stop: &AtomicBool) -> Result<TcpStream> {
    let (told, result) = channel();
    let address = with_port(address);
    let thread = std::thread::Builder::new().name("connect".to_owned());
    thread.spawn(move || told.send(try_each(&address, limit))).context(Kind::Failed, || "start a thread to connect in")?;
    loop {
        match result.recv_timeout(STOP_POLL) {
            Ok(connected) => return connected,
            Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(RecvTimeoutError::Timeout) => return Err(Error::interrupted()),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Failed, "the connecting thread is gone")),
        }
    }
}

fn try_each(address: &str, limit: Duration) -> Result<TcpStream> {
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

/// Sets a connection up: small frames go at once, and a peer whose kernel is gone is noticed also while nothing is
/// sent. There is no TCP_USER_TIMEOUT: it would end a connection whose peer takes no byte for that long because it
/// works, which the wire's patience tells apart.
pub fn tune(socket: &TcpStream) -> Result<()> {
    let place = || "set up a connection";
    // An accepted socket may have it from its listener.
    socket.set_nonblocking(false).context(Kind::Failed, place)?;
    socket.set_nodelay(true).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::KeepAlive, &true).context(Kind::Failed, place)?;
    let idle = KEEPALIVE_IDLE.as_secs() as u32;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &(idle / 3)).context(Kind::Failed, place)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES).context(Kind::Failed, place)
}

/// `[::1]`, `::1`, `host` and `host:7420` all name a host and a port.
pub fn with_port(address: &str) -> String {
    with_default_port(address, &PORT.to_string())
}

/// The same with another port for an address that names none.
pub fn with_default_port(address: &str, port: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => {
            !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match address {
        _ if has_port => address.to_owned(),
        _ if address.contains(':') && !address.starts_with('[') => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
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
        assert_eq!((with_default_port("dr1", "99"), with_default_port("dr1:1", "99")), ("dr1:99".into(), "dr1:1".into()));
    }

    #[test]
    fn the_stop_flag_ends_a_connect_that_nobody_answers() {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket};
        use std::os::fd::AsRawFd;
        let full = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(full.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&full, Backlog::new(0).unwrap()).unwrap();
        let address = getsockname::<SockaddrIn>(full.as_raw_fd()).unwrap().to_string();
        // Nobody takes these: from some point on a new one gets no answer.
        let limit = Duration::from_millis(300);
        let crowd: Vec<_> = std::iter::from_fn(|| connect(&address, limit, &AtomicBool::new(false)).ok()).take(64).collect();
        assert!(crowd.len() < 64);
        let stopped = connect(&address, Duration::from_secs(60), &AtomicBool::new(true)).unwrap_err();
        assert_eq!(stopped.kind(), Kind::Interrupted);
    }

    #[test]
    fn a_connection_is_made_and_a_closed_port_is_transient() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let socket = connect(&address, Duration::from_secs(5), &AtomicBool::new(false)).unwrap();
        assert!(socket.nodelay().unwrap());
        drop(listener);
        let refused = connect(&address, Duration::from_secs(5), &AtomicBool::new(false)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Transient);
        assert!(refused.chain().contains(&address), "{}", refused.chain());
    }
}
