//! `blockferry receiver`: listens, lets paired hosts in, and serves each in a thread of its own.
//!
//! What costs memory comes after what proves a key: a connection begins as a thread and some
//! 40 KB, and of those the oldest goes when there are too many. Whatever happens in one session,
//! the others and the daemon go on.

use super::config::{Grant, ReceiverConfig};
use super::descriptors;
use super::lanes::Desk;
use super::pairing;
use super::refusals::Refusals;
use super::served::{Busy, Client, Served};
use super::sessions::{Connection, Sessions};
use crate::attempt::{self, HostReplicas, find_replica, guard_replica};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{LANES_JOINING_MAX, LANES_MAX, PAIRINGS_MAX, REVOKE_CHECK, STOP_POLL};
use crate::log;
use crate::pin::Pin;
use crate::progress::Progress;
use crate::receiver::{self, Received};
use crate::ring::Choice;
use crate::state::pairing::{self as lists, Enrolled};
use crate::state::{StateDir, keys};
use crate::transport::lanes::{self, Inward};
use crate::transport::pace::Limiter;
use crate::transport::stream::Deadline;
use crate::transport::tls::{self, OwnKey, Protocol, Raw, Tls};
use crate::transport::{Pace, Terms, Transport, Wire, tcp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the daemon is started with.
pub struct Daemon {
    /// The configuration.
    pub config: ReceiverConfig,
    /// Where it came from, to be read again.
    pub config_path: PathBuf,
    /// What we remember.
    pub state: StateDir,
    /// Which engine moves the bytes.
    pub choice: Choice,
    /// Ends the daemon and its sessions at a resumable point.
    pub stop: Arc<AtomicBool>,
    /// Asks for the configuration to be read again.
    pub reload: Arc<AtomicBool>,
}

/// What the daemon tells whoever started it.
#[derive(Clone, Copy, Debug)]
pub enum Milestone<'a> {
    /// Connections are taken here, under this key.
    Listening(SocketAddr, &'a Pin),
    /// The configuration is read again: connections wait for a moment.
    Reloading,
    /// That is over, whatever came of it.
    Reloaded,
    /// No more connections are taken; sessions end at a point to go on from.
    Stopping,
}

/// What the threads share.
struct Shared {
    config: Mutex<Arc<ReceiverConfig>>,
    state: StateDir,
    key: OwnKey,
    choice: Choice,
    busy: Arc<Busy>,
    open: Sessions,
    refusals: Mutex<Refusals>,
    /// What all sessions together may move, and those of a client.
    limiter: Arc<Limiter>,
    client_limiters: Mutex<BTreeMap<String, Arc<Limiter>>>,
    /// Where further connections find their sessions.
    desk: Desk,
    sessions: AtomicUsize,
    lanes: AtomicUsize,
    joining: AtomicUsize,
    pairings: AtomicUsize,
    handshakes: Mutex<VecDeque<(u64, TcpStream)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the log says of a session. What a peer calls things is escaped.
fn line(client: &str, from: &str, served: &Served, progress: &Progress, began: Instant, result: &Result<Received>) -> String {
    let (replica, operation) = served.asked();
    let received = progress.sent_bytes.load(Ordering::Relaxed);
    let result = match result {
        Ok(Received { ack: Some(ack), .. }) => format!("result=committed generation={}", ack.generation),
        Ok(_) => "result=done".to_owned(),
        Err(error) => format!("result=failed exit={} reason={:?}", error.kind().exit_code(), error.chain()),
    };
    let seconds = began.elapsed().as_secs_f64();
    format!("session client={client} from={from} replica={replica:?} op={operation} received={received} seconds={seconds:.1} {result}")
}

/// One session on standard input and output for a client of the configuration: what a forced command of ssh
/// runs. The peer reads our standard error, so the log line goes to syslog.
pub fn serve_one(
    config: ReceiverConfig,
    state: &StateDir,
    client: &str,
    choice: Choice,
    stall: Option<Duration>,
    progress: &Progress,
) -> Result<()> {
    let began = Instant::now();
    let entry = config.clients.iter().find(|entry| entry.name == client);
    let tables = std::iter::once(&config.bandwidth).chain(entry.map(|entry| &entry.bandwidth));
    let pace = Pace::new(tables.map(|table| Limiter::new(table.clone())));
    let terms = Terms { stall: stall.unwrap_or(config.stall_timeout), pace, ..Terms::default() };
    let mut wire = attempt::stdio(choice, &terms, progress)?;
    let Some(entry) = entry else {
        let error = Error::new(Kind::Refused, format!("there is no client {client:?} in the receiver's configuration"));
        attempt::excuse(&mut wire, &error);
        return Err(error);
    };
    let peer = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let from = peer.split(' ').next().filter(|from| !from.is_empty()).unwrap_or("stdio").to_owned();
    let client = Client { name: client.to_owned(), from: from.clone(), grants: entry.allow.clone() };
    let host = HostReplicas::new(state.clone(), choice).with_journals(config.journals());
    let mut served = Served::new(Arc::new(config.clone()), client.clone(), Arc::default(), host, Deadline::default(), Default::default());
    let result = receiver::receive(&mut wire, &mut served, progress);
    let line = line(&client.name, &from, &served, progress, began, &result);
    // Facility daemon, level info. Where no syslog listens, nobody asked for its lines.
    let told = std::os::unix::net::UnixDatagram::unbound();
    let _ = told.and_then(|socket| socket.send_to(format!("<30>blockferry[{}]: {line}", std::process::id()).as_bytes(), "/dev/log"));
    result.map(|_| ())
}

/// One of a number that is limited; dropped = given back, also where a bug of ours ends a session.
struct Counted<'a>(&'a AtomicUsize);

impl Counted<'_> {
    /// Counts one more; with it, how many there are now.
    fn one(counter: &AtomicUsize) -> (Counted<'_>, usize) {
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        (Counted(counter), count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Daemon {
    /// Serves until the stop flag is set and every session has ended. `inherited`: sockets that systemd listens on
    /// for us; where there are none, the configured address is listened on.
    pub fn run(self, inherited: Vec<TcpListener>, tell: impl Fn(Milestone<'_>)) -> Result<()> {
        let key = OwnKey::new(&keys::own_key(self.state.path())?)?;
        descriptors::allow(&self.config).iter().for_each(log::warning);
        self.config.warnings().iter().for_each(log::warning);
        recover_all(&self.config, &self.state, self.choice, &self.stop);
        for stray in self.config.journals().strays(&self.state).unwrap_or_default() {
            log::warning(format!(
                "{}: a journal that no replica in {} has: remove it if no other receiver does",
                stray.display(),
                self.state.path().display()
            ));
        }
        let listeners = if inherited.is_empty() { vec![tcp::listen(&self.config.listen)?] } else { inherited };
        for listener in &listeners {
            listener.set_nonblocking(true).context(Kind::Failed, || "set up the listening socket")?;
        }
        let shared = Arc::new(Shared {
            limiter: Limiter::new(self.config.bandwidth.clone()),
            client_limiters: Mutex::default(),
            config: Mutex::new(Arc::new(self.config)),
            state: self.state,
            key,
            choice: self.choice,
            busy: Arc::default(),
            open: Sessions::default(),
            refusals: Mutex::new(Refusals::new(Instant::now())),
            desk: Desk::default(),
            sessions: AtomicUsize::new(0),
            lanes: AtomicUsize::new(0),
            joining: AtomicUsize::new(0),
            pairings: AtomicUsize::new(0),
            handshakes: Mutex::default(),
        });
        for listener in &listeners {
            let address = listener.local_addr().context(Kind::Failed, || "ask for the listening address")?;
            tell(Milestone::Listening(address, shared.key.pin()));
        }
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        let mut number = 0;
        let mut checked = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if checked.elapsed() >= REVOKE_CHECK {
                checked = Instant::now();
                shared.look_after();
            }
            if self.reload.swap(false, Ordering::Relaxed) {
                tell(Milestone::Reloading);
                shared.reload(&self.config_path);
                tell(Milestone::Reloaded);
            }
            threads.retain(|thread| !thread.is_finished());
            let mut waiting: Vec<PollFd<'_>> = listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
            // A signal ends the wait: the flags are looked at again.
            let _ = poll(&mut waiting, PollTimeout::try_from(STOP_POLL).unwrap_or(PollTimeout::ZERO));
            for listener in &listeners {
                match listener.accept() {
                    Ok((socket, from)) => {
                        number += 1;
                        threads.extend(shared.begin(number, socket, from));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        // Out of descriptors, or a connection that was gone at once: neither ends the daemon.
                        log::warning(format!("take a connection: {error}"));
                        std::thread::sleep(STOP_POLL);
                    }
                }
            }
        }
        drop(listeners);
        tell(Milestone::Stopping);
        shared.open.stop_all();
        while !threads.is_empty() {
            tell(Milestone::Stopping);
            std::thread::sleep(STOP_POLL);
            threads.retain(|thread| !thread.is_finished());
        }
        Ok(())
    }
}

/// Takes a connection off the list, also where a bug of ours ends its thread.
struct Over<'a>(&'a Shared, u64);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.open.end(self.1);
    }
}

/// Completes what a crash left, so that every replica is a whole generation before its source comes back.
fn recover_all(config: &ReceiverConfig, state: &StateDir, choice: Choice, stop: &AtomicBool) {
    for replica in config.replicas.iter().take_while(|_| !stop.load(Ordering::Relaxed)) {
        let recover = || -> Result<()> {
            let path = replica.device.path();
            if !path.exists() {
                return Ok(());
            }
            let (mut site, record) = match find_replica(state, &path.display().to_string(), choice) {
                Ok(found) => found,
                // Never copied to.
                Err(error) if error.kind() == Kind::Usage => return Ok(()),
                Err(error) => return Err(error),
            };
            if record.promotion.is_none()
                && let Some(disk) = site.open_disk(true)?
            {
                receiver::recover(&*site, disk)?;
            }
            Ok(())
        };
        if let Err(error) = recover() {
            log::error(format!("recover replica {}: {}", replica.name, error.chain()));
        }
    }
    guard_all(config, state, choice);
}

/// Makes devices refuse writes that do so between sessions: a reboot forgets it, and so does a receiver that was killed.
fn guard_all(config: &ReceiverConfig, state: &StateDir, choice: Choice) {
    for replica in config.replicas.iter().filter(|replica| replica.readonly) {
        let path = replica.device.path();
        if path.exists()
            && let Err(error) = guard_replica(state, &path, choice)
        {
            log::warning(format!("replica {}: {}", replica.name, error.chain()));
        }
    }
}

impl Shared {
    fn config(&self) -> Arc<ReceiverConfig> {
        Arc::clone(&locked(&self.config))
    }

    /// Takes a changed configuration over for sessions that begin from now on; a bad one changes nothing.
    fn reload(&self, path: &std::path::Path) {
        match ReceiverConfig::load(path) {
            Ok(new) => {
                new.warnings().iter().for_each(log::warning);
                self.limiter.set(new.bandwidth.clone());
                for (name, limiter) in locked(&self.client_limiters).iter() {
                    let entry = new.clients.iter().find(|entry| entry.name == *name);
                    limiter.set(entry.map_or_else(Default::default, |entry| entry.bandwidth.clone()));
                }
                let mut config = locked(&self.config);
                if (&new.listen, &new.state_dir) != (&config.listen, &config.state_dir) {
                    log::warning("listen and state_dir change with a restart, not with a reload");
                }
                *config = Arc::new(new);
                drop(config);
                guard_all(&self.config(), &self.state, self.choice);
                log::info("configuration reloaded");
            }
            Err(error) => log::error(format!("the configuration stays as it was: {}", error.chain())),
        }
    }

    /// What is done every now and then: sessions whose client lost its rights end, and strangers are counted.
    fn look_after(&self) {
        self.open.revoke(|pin, asked| match self.client(pin) {
            Ok(None) => false,
            // A list that cannot be read takes nobody's rights away in the middle of a session.
            Err(_) => true,
            Ok(Some((_, grants))) => asked.is_none_or(|(replica, operation)| {
                grants.iter().any(|grant| grant.covers(replica, operation)) && self.config().replica(replica).is_some()
            }),
        });
        if let Some(line) = locked(&self.refusals).summary(Instant::now()) {
            log::warning(line);
        }
    }

    fn refused(&self, from: &SocketAddr, line: impl FnOnce() -> String) {
        if locked(&self.refusals).one(&from.to_string(), Instant::now()) {
            log::warning(line());
        }
    }

    /// The limits of a client's session.
    fn pace(&self, config: &ReceiverConfig, client: &str) -> Pace {
        let table = config.clients.iter().find(|entry| entry.name == client).map(|entry| entry.bandwidth.clone());
        let mut all = locked(&self.client_limiters);
        let own = all.entry(client.to_owned()).or_insert_with(|| Limiter::new(table.unwrap_or_default()));
        Pace::new([Arc::clone(&self.limiter), Arc::clone(own)])
    }

    /// Gives a new connection its thread; the oldest one without a key may have to go for it.
    fn begin(self: &Arc<Shared>, number: u64, socket: TcpStream, from: SocketAddr) -> Option<JoinHandle<()>> {
        let handle = socket.try_clone().ok()?;
        {
            let mut handshakes = locked(&self.handshakes);
            handshakes.push_back((number, handle));
            if handshakes.len() > self.config().handshakes_max
                && let Some((_, oldest)) = handshakes.pop_front()
            {
                let _ = oldest.shutdown(Shutdown::Both);
            }
        }
        let shared = Arc::clone(self);
        let connection = self.open.begin(number);
        let thread = std::thread::Builder::new().name(format!("from {from}"));
        let spawned = thread.spawn(move || {
            let _over = Over(&shared, number);
            shared.serve(number, &connection, socket, from);
        });
        if spawned.is_err() {
            self.left_handshake(number);
            self.open.end(number);
        }
        spawned.ok()
    }

    fn left_handshake(&self, number: u64) {
        locked(&self.handshakes).retain(|(other, _)| *other != number);
    }

    fn serve(self: &Arc<Shared>, number: u64, connection: &Connection, socket: TcpStream, from: SocketAddr) {
        let config = self.config();
        let tls = self.handshake(&config, connection, socket, from);
        self.left_handshake(number);
        match tls {
            // Somebody knocked and left, or was too slow: not worth a line each.
            Err(error) if matches!(error.kind(), Kind::Transient | Kind::Interrupted) => {}
            Err(error) => self.refused(&from, || format!("refused from={from}: {}", error.chain())),
            Ok(tls) if tls.protocol() == Protocol::Pairing => self.pair(&config, tls, from),
            Ok(tls) => {
                let Ok(pin) = tls.peer_pin() else { return };
                self.open.proved(number, pin);
                if tls.protocol() == Protocol::Lane {
                    return self.lane(&config, &pin, tls);
                }
                self.session(&config, connection, &pin, tls, from);
            }
        }
    }

    fn handshake(self: &Arc<Shared>, config: &ReceiverConfig, connection: &Connection, socket: TcpStream, from: SocketAddr) -> Result<Tls> {
        tcp::tune(&socket)?;
        let shared = Arc::clone(self);
        let admit = move |protocol, pin: &Pin| shared.admits(protocol, pin);
        let raw =
            Raw { socket, peer: from.to_string(), limit: config.handshake_timeout, choice: self.choice, stop: connection.stop.clone() };
        tls::accept(raw, &self.key, Arc::new(admit))
    }

    fn admits(&self, protocol: Protocol, pin: &Pin) -> bool {
        match protocol {
            Protocol::Session | Protocol::Lane => match self.client(pin) {
                Ok(client) => client.is_some(),
                Err(error) => {
                    log::error(error.chain());
                    false
                }
            },
            Protocol::Pairing => pairing::is_anybody_invited(&self.state),
        }
    }

    /// Whose key this is and what it may do. The list of the enrolled is read each time: another process may
    /// have revoked one.
    fn client(&self, pin: &Pin) -> Result<Option<(String, Vec<Grant>)>> {
        let config = self.config();
        if let Some(client) = config.clients.iter().find(|client| client.key == Some(*pin)) {
            return Ok(Some((client.name.clone(), client.allow.clone())));
        }
        let enrolled = lists::list::<Enrolled>(self.state.path())?;
        Ok(enrolled.iter().find(|client| client.key == *pin).map(|client| (client.name.clone(), pairing::grants(client))))
    }

    /// Takes a token in.
    fn pair(&self, config: &ReceiverConfig, mut tls: Tls, from: SocketAddr) {
        tls.deadline().set(config.handshake_timeout, "its token");
        let names: Vec<String> = config.clients.iter().map(|client| client.name.clone()).collect();
        let (_counted, count) = Counted::one(&self.pairings);
        if count <= PAIRINGS_MAX {
            match pairing::enrol(&self.state, &mut tls, &names) {
                Ok(client) => log::info(format!(
                    "paired client={} key={} from={from} replicas={}",
                    client.name,
                    client.key,
                    client.replicas.join(",")
                )),
                Err(error) => self.refused(&from, || format!("refused pairing from={from}: {:?}", error.chain())),
            }
        }
        drop(tls);
    }

    /// A further connection of a session, for as long as that has it. Whatever is wrong with it is the session's to tell, or
    /// the peer's, whose session goes on without.
    fn lane(&self, config: &ReceiverConfig, pin: &Pin, mut tls: Tls) {
        tls.deadline().set(config.handshake_timeout, "its token");
        // Those that have not shown theirs keep no place from those that have.
        let token = {
            let (_counted, count) = Counted::one(&self.joining);
            if count > LANES_JOINING_MAX { None } else { lanes::joined(&mut tls).ok() }
        };
        let (_counted, count) = Counted::one(&self.lanes);
        if count <= config.connections_max
            && let Some(token) = token
            && let Ok(Some((name, _))) = self.client(pin)
            && let Some(seat) = self.desk.seat(&token, pin)
        {
            tls.deadline().clear();
            tls.pace(&self.pace(config, &name));
            seat.serve(tls);
        }
    }

    /// One session and its line in the log.
    fn session(&self, config: &Arc<ReceiverConfig>, connection: &Connection, pin: &Pin, tls: Tls, from: SocketAddr) {
        let began = Instant::now();
        let Ok(Some((name, grants))) = self.client(pin) else { return };
        let progress = Progress::new(connection.stop.clone());
        let deadline = tls.deadline();
        deadline.set(config.handshake_timeout, "its first frame");
        let host = HostReplicas::new(self.state.clone(), self.choice).with_journals(config.journals());
        let client = Client { name: name.clone(), from: from.to_string(), grants };
        let mut served = Served::new(Arc::clone(config), client, Arc::clone(&self.busy), host, deadline, Arc::clone(&connection.asked));
        let (counted, count) = Counted::one(&self.sessions);
        let terms = Terms { stall: config.stall_timeout, pace: self.pace(config, &name), ..Terms::default() };
        let result = self.desk.open(*pin, LANES_MAX.min(config.connections_max)).and_then(|(_entry, offer, gather)| {
            let offer = Some(offer).filter(|offer| offer.most > 0);
            let transport = Inward::new(tls, offer, gather, connection.stop.clone());
            // Until its first frame the deadline above holds.
            let mut wire = Wire::on_terms(Box::new(transport), &terms, None)?;
            if count > config.sessions_max {
                return self.turn_away(&mut wire, config.sessions_max);
            }
            receiver::receive(&mut wire, &mut served, &progress)
        });
        let result = match result {
            Err(error) if connection.revoked.load(Ordering::Relaxed) && error.kind() == Kind::Interrupted => {
                Err(Error::new(Kind::Refused, format!("{name} may not do this any more: its rights were taken away")))
            }
            other => other,
        };
        let line = line(&name, &from.to_string(), &served, &progress, began, &result);
        // Who reads it finds the replica and the place free.
        drop((served, counted));
        log::info(line);
    }

    /// Tells a peer too many that it may come back.
    fn turn_away(&self, wire: &mut Wire, most: usize) -> Result<Received> {
        let error = Error::new(Kind::Transient, format!("the receiver serves {most} sessions already: try again later"));
        let _ = wire.greet();
        wire.abort(&error);
        Err(error)
    }
}
