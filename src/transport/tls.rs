//! TLS 1.3 with pinned raw public keys (RFC 7250) over a [`Stream`]: both ends prove to hold the key they
//! are known by, and there is no certificate, no authority and no other way in.
//!
//! The handshake runs on the bare socket under one time limit, so that a peer that proves nothing costs a
//! thread and some 40 KB (measured, 200 connections). Only then do buffers and a ring come to it. An end of the stream without the peer's
//! close_notify is a cut, whoever made it.

use super::stream::{Deadline, Stream};
use super::{Inbox, Pace, Transport, Turn};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{BLOCK_BYTES, LINGER, STOP_POLL, TLS_EXTRA_BYTES, TRANSPORT_BUFFER_BYTES};
use crate::pin::Pin;
use crate::ring::{AlignedBuf, Choice};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, AlwaysResolvesServerRawPublicKeys};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Connection, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Encrypted bytes taken in at once: each turn decrypts them all, which takes ten times as long as a turn costs.
const SEALED_BYTES: usize = TRANSPORT_BUFFER_BYTES / 2;

/// What a connection is for; told in the clear at its beginning (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A session of frames, for paired hosts.
    Session,
    /// A further connection of a session, for paired hosts.
    Lane,
    /// A token is handed in by a host that is not paired yet.
    Pairing,
}

impl Protocol {
    const ALL: [Protocol; 3] = [Protocol::Session, Protocol::Lane, Protocol::Pairing];

    fn name(self) -> &'static [u8] {
        match self {
            Protocol::Session => b"blockferry/1",
            Protocol::Lane => b"blockferry-lane/1",
            Protocol::Pairing => b"blockferry-pairing/1",
        }
    }
}

/// This host's key.
#[derive(Clone)]
pub struct OwnKey {
    key: Arc<CertifiedKey>,
    pin: Pin,
}

impl OwnKey {
    /// From an Ed25519 key as PKCS#8.
    pub fn new(pkcs8: &[u8]) -> Result<OwnKey> {
        let wrong = || "read this host's key";
        let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).context(Kind::Failed, wrong)?;
        let public = key.public_key().ok_or_else(|| Error::new(Kind::Failed, "this host's key has no public half"))?;
        let pin = Pin::of(public.as_ref());
        let public = CertificateDer::from(public.as_ref().to_vec());
        Ok(OwnKey { key: Arc::new(CertifiedKey::new(vec![public], key)), pin })
    }

    /// What others know it by.
    pub fn pin(&self) -> &Pin {
        &self.pin
    }
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnKey({})", self.pin)
    }
}

/// Whether a connection for this protocol may come from who holds the key of this name.
pub type Admit = Arc<dyn Fn(Protocol, &Pin) -> bool + Send + Sync>;

/// AES-GCM first where the CPU has AES, ChaCha20 first elsewhere.
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::{self, cipher_suite};
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    let (aes, big, chacha) =
        (cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
    let cipher_suites = if has_aes { vec![aes, big, chacha] } else { vec![chacha, aes, big] };
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

/// Judges the peer's key; remembers which one it showed, for the message.
struct Judge {
    provider: Arc<CryptoProvider>,
    admits: Box<dyn Fn(&Pin) -> bool + Send + Sync>,
    shown: Arc<Mutex<Option<Pin>>>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

impl Judge {
    fn judge(&self, key: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let pin = Pin::of(key.as_ref());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(pin);
        if (self.admits)(&pin) { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.provider.signature_verification_algorithms)
    }
}

/// TLS 1.2 is not compiled in; should it ever be, its signatures are refused.
fn never() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// What the messages of a connection name.
struct Names {
    peer: String,
    own: Pin,
    /// The receiver's pin, at the end that connects.
    pinned: Option<Pin>,
    shown: Arc<Mutex<Option<Pin>>>,
}

impl Names {
    fn shown(&self) -> Option<Pin> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A failure of TLS in the words of whoever has to do something about it.
    fn failure(&self, cause: rustls::Error) -> Error {
        let (peer, own) = (&self.peer, &self.own);
        let shown = self.shown().map_or("no key".to_owned(), |pin| format!("the key {pin}"));
        match (&cause, self.pinned) {
            (rustls::Error::InvalidCertificate(_), Some(pinned)) => Error::new(
                Kind::Refused,
                format!(
                    "{peer} has {shown}, but {pinned} is pinned for it: another host answers there, or its key was made anew (then pair again)"
                ),
            ),
            (rustls::Error::InvalidCertificate(_), None) => {
                Error::new(Kind::Refused, format!("{peer} has {shown}, which is not paired with this receiver"))
            }
            (rustls::Error::AlertReceived(AlertDescription::AccessDenied), Some(_)) => Error::new(
                Kind::Refused,
                format!(
                    "{peer} does not know this host's key {own}: `blockferry pair invite` there and `blockferry pair accept` here make it known"
                ),
            ),
            (rustls::Error::AlertReceived(AlertDescription::AccessDenied), None) => {
                Error::new(Kind::Refused, format!("{peer} expects another key here than {own}"))
            }
            (rustls::Error::AlertReceived(alert), _) => Error::new(Kind::Refused, format!("{peer} refused the connection: {alert:?}")),
            (rustls::Error::DecryptError, _) => {
                Error::new(Kind::Transient, format!("what came from {peer} was changed on its way: connection given up"))
            }
            _ => Error::because(Kind::Refused, format!("{peer} does not speak TLS as we do"), cause),
        }
    }

    /// The same once the handshake is over: both ends spoke TLS, so that what is none now was changed between them, and
    /// the peer's complaint of it says the same of what went there.
    fn damage(&self, cause: rustls::Error) -> Error {
        use AlertDescription::{BadRecordMac, DecodeError, RecordOverflow, UnexpectedMessage};
        use rustls::Error::{AlertReceived, InappropriateMessage, InvalidMessage, PeerMisbehaved, PeerSentOversizedRecord};
        let way = match cause {
            AlertReceived(BadRecordMac | DecodeError | RecordOverflow | UnexpectedMessage) => "went to",
            InvalidMessage(_) | PeerSentOversizedRecord | PeerMisbehaved(_) | InappropriateMessage { .. } => "came from",
            other => return self.failure(other),
        };
        let message = format!("what {way} {} was changed on its way: connection given up", self.peer);
        Error::because(Kind::Transient, message, cause)
    }

    fn io(&self, cause: io::Error, limit: Duration) -> Error {
        match cause.kind() {
            io::ErrorKind::TimedOut => Error::new(
                Kind::Transient,
                format!("{} did not complete the TLS handshake in {:.1} seconds", self.peer, limit.as_secs_f64()),
            ),
            io::ErrorKind::Other => Error::interrupted(),
            _ => Error::because(Kind::Transient, format!("connection to {} lost in the TLS handshake", self.peer), cause),
        }
    }

    fn cut(&self) -> Error {
        Error::new(Kind::Transient, format!("the connection to {} was cut: it ended without a goodbye", self.peer))
    }
}

/// A socket under one time limit; the stop flag ends it with an error of kind `Other`.
struct Timed<'a> {
    socket: &'a TcpStream,
    until: Instant,
    stop: &'a AtomicBool,
}

impl Timed<'_> {
    fn turn(&mut self, mut work: impl FnMut(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Other.into());
            }
            let wait = Some(left.min(STOP_POLL));
            self.socket.set_read_timeout(wait)?;
            self.socket.set_write_timeout(wait)?;
            match work(self.socket) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
                other => return other,
            }
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.turn(|mut socket| socket.read(buffer))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.turn(|mut socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket on its way to a [`Tls`]: how long it may take, what moves its bytes later, and what stops it.
pub struct Raw {
    /// The connection.
    pub socket: TcpStream,
    /// How messages call the other end.
    pub peer: String,
    /// Time for the whole handshake.
    pub limit: Duration,
    /// Which engine moves the bytes.
    pub choice: Choice,
    /// Ends every wait.
    pub stop: Arc<AtomicBool>,
}

/// Connects as who holds `own`, to who holds the key that `pinned` names.
pub fn connect(raw: Raw, own: &OwnKey, pinned: Pin, protocol: Protocol) -> Result<Tls> {
    let provider = provider();
    let names = Names { peer: raw.peer.clone(), own: own.pin, pinned: Some(pinned), shown: Arc::default() };
    let judge = Judge { provider: provider.clone(), admits: Box::new(move |pin| *pin == pinned), shown: names.shown.clone() };
    let place = || "set up TLS";
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context(Kind::Failed, place)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own.key.clone())));
    config.alpn_protocols = vec![protocol.name().to_vec()];
    config.enable_sni = false;
    // No name is ever checked; TLS only wants to be given one.
    let name = ServerName::try_from("blockferry").context(Kind::Failed, place)?;
    let connection = ClientConnection::new(Arc::new(config), name).context(Kind::Failed, place)?;
    let until = Instant::now() + raw.limit;
    Tls::shake_hands(raw, connection.into(), names, protocol, until)
}

/// Answers as who holds `own`; only who `admit` lets in comes through.
pub fn accept(raw: Raw, own: &OwnKey, admit: Admit) -> Result<Tls> {
    let provider = provider();
    let names = Names { peer: raw.peer.clone(), own: own.pin, pinned: None, shown: Arc::default() };
    let until = Instant::now() + raw.limit;
    let mut timed = Timed { socket: &raw.socket, until, stop: &raw.stop };
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        match acceptor.read_tls(&mut timed) {
            Ok(0) => return Err(Error::new(Kind::Transient, format!("{} connected and left", raw.peer))),
            Ok(_) => {}
            Err(cause) => return Err(names.io(cause, raw.limit)),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((cause, mut alert)) => {
                let _ = alert.write_all(&mut timed);
                last_words(&raw.socket);
                return Err(names.failure(cause));
            }
        }
    };
    let asked = accepted
        .client_hello()
        .alpn()
        .and_then(|mut names| names.find_map(|name| Protocol::ALL.into_iter().find(|one| one.name() == name)));
    let protocol = asked.unwrap_or(Protocol::Session);
    let judge = Judge { provider: provider.clone(), admits: Box::new(move |pin| admit(protocol, pin)), shown: names.shown.clone() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context(Kind::Failed, || "set up TLS")?
        .with_client_cert_verifier(Arc::new(judge))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own.key.clone())));
    config.alpn_protocols = vec![protocol.name().to_vec()];
    // Nothing is ever resumed; and tickets nobody reads turn a close into a reset.
    config.send_tls13_tickets = 0;
    let connection = match accepted.into_connection(Arc::new(config)) {
        Ok(connection) => connection,
        Err((cause, mut alert)) => {
            let _ = alert.write_all(&mut timed);
            last_words(&raw.socket);
            return Err(names.failure(cause));
        }
    };
    Tls::shake_hands(raw, connection.into(), names, protocol, until)
}

/// Closes our half and takes in what still comes, so that what was said last is not lost to a reset.
fn last_words(mut socket: &TcpStream) {
    let until = Instant::now() + LINGER;
    let _ = socket.shutdown(Shutdown::Write);
    let mut sink = [0; BLOCK_BYTES];
    while Instant::now() < until {
        let _ = socket.set_read_timeout(Some(STOP_POLL));
        match socket.read(&mut sink) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// One end of an encrypted connection.
pub struct Tls {
    stream: Stream,
    connection: Connection,
    names: Names,
    protocol: Protocol,
    /// Received and not yet decrypted.
    sealed: Inbox,
    /// The one buffer that is filled before it is encrypted.
    plain: Option<AlignedBuf>,
    /// What is told once the bytes before it are taken.
    late: Option<Error>,
}

impl Tls {
    fn shake_hands(raw: Raw, mut connection: Connection, names: Names, protocol: Protocol, until: Instant) -> Result<Tls> {
        let mut timed = Timed { socket: &raw.socket, until, stop: &raw.stop };
        loop {
            while connection.wants_write() {
                connection.write_tls(&mut timed).map_err(|cause| names.io(cause, raw.limit))?;
            }
            if !connection.is_handshaking() {
                break;
            }
            match connection.read_tls(&mut timed) {
                Ok(0) => return Err(names.cut()),
                Ok(_) => {}
                Err(cause) => return Err(names.io(cause, raw.limit)),
            }
            if let Err(cause) = connection.process_new_packets() {
                // The alert tells the peer why.
                while connection.wants_write() && connection.write_tls(&mut timed).is_ok() {}
                last_words(&raw.socket);
                return Err(names.failure(cause));
            }
        }
        let place = || format!("take over the connection to {}", raw.peer);
        raw.socket.set_read_timeout(None).context(Kind::Failed, place)?;
        raw.socket.set_write_timeout(None).context(Kind::Failed, place)?;
        let other = raw.socket.try_clone().context(Kind::Failed, place)?;
        let (reader, writer) = (File::from(OwnedFd::from(raw.socket)), File::from(OwnedFd::from(other)));
        // One buffer of ours, encrypted, fits one of the stream's: what finds room here is sent without waiting.
        let stream = Stream::with_buffers(TRANSPORT_BUFFER_BYTES + TLS_EXTRA_BYTES, raw.peer, reader, writer, raw.choice, raw.stop)?;
        connection.set_buffer_limit(None);
        let sealed = Inbox::new(SEALED_BYTES)?;
        let plain = AlignedBuf::new(TRANSPORT_BUFFER_BYTES).context(Kind::Failed, || "allocate transport buffers")?;
        Ok(Tls { stream, connection, names, protocol, sealed, plain: Some(plain), late: None })
    }

    /// The name of the key that the other end proved to hold.
    pub fn peer_pin(&self) -> Result<Pin> {
        self.names.shown().ok_or_else(|| Error::new(Kind::Refused, format!("{} showed no key", self.names.peer)))
    }

    /// What the connection is for.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The handle to the deadline of the stream below.
    pub fn deadline(&self) -> Deadline {
        self.stream.deadline()
    }

    /// Hands everything that is encrypted to the stream, in its large buffers.
    fn pump(&mut self) -> Result<()> {
        while self.connection.wants_write() {
            let mut buffer = self.stream.outgoing()?;
            let mut filled = 0;
            while self.connection.wants_write() && filled < buffer.len() {
                let place = || "fill a buffer with encrypted bytes";
                filled += self.connection.write_tls(&mut Cursor::new(&mut buffer[filled..])).context(Kind::Failed, place)?;
            }
            self.stream.send(buffer, filled)?;
        }
        Ok(())
    }

    /// Decrypts what came into this room. How many bytes there were; an error behind some of them is told next time.
    fn open(&mut self, room: &mut [u8]) -> Result<usize> {
        if let Some(late) = self.late.take() {
            return Err(late);
        }
        let mut filled = 0;
        while filled < room.len() {
            match self.open_some(&mut room[filled..]) {
                Ok(Some(bytes)) => filled += bytes,
                Ok(None) => break,
                Err(error) if filled > 0 => {
                    self.late = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Some of what is decrypted, or none yet because there is more to decrypt. `None`: that was all.
    fn open_some(&mut self, room: &mut [u8]) -> Result<Option<usize>> {
        match self.connection.reader().read(room) {
            Ok(bytes) if bytes > 0 => return Ok(Some(bytes)),
            // Nothing decrypted is left, or the peer said goodbye.
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::because(Kind::Transient, format!("receive from {}", self.names.peer), error)),
        }
        let mut sealed = self.sealed.unread();
        let before = sealed.len();
        if before == 0 || self.connection.read_tls(&mut sealed).context(Kind::Failed, || "take in encrypted bytes")? == 0 {
            return Ok(None);
        }
        let taken = before - sealed.len();
        self.sealed.consume(taken);
        self.connection.process_new_packets().map_err(|cause| self.names.damage(cause))?;
        Ok(Some(0))
    }

    /// One turn of waiting for bytes of the peer, which go to this room: see [`Transport::turn`].
    pub fn turn_into(&mut self, room: &mut [u8], limit: Duration) -> Result<Turn> {
        let bytes = self.open(room)?;
        if bytes > 0 {
            return Ok(Turn::Received(bytes));
        }
        if self.peer_said_goodbye() {
            return Ok(Turn::Closed);
        }
        // Answers of TLS itself: an alert, a new key. Where nothing can be sent any more, the peer may have said why.
        if self.connection.wants_write() && self.stream.has_room().unwrap_or(false) {
            match self.pump() {
                Err(error) if error.kind() != Kind::Transient => return Err(error),
                _ => {}
            }
        }
        if !self.sealed.unread().is_empty() {
            return Ok(Turn::Nothing);
        }
        match self.stream.turn(Some(&mut self.sealed), limit)? {
            Turn::Closed => Err(self.names.cut()),
            // Opened at once: who stood still himself, and not the peer, must not give it up with its words in his hands.
            Turn::Received(_) => Ok(match self.open(room)? {
                0 => Turn::Nothing,
                bytes => Turn::Received(bytes),
            }),
            other => Ok(other),
        }
    }

    /// Sends both, one behind the other. Where there is room ([`Transport::has_room`]) for what fits a buffer, nothing is waited for.
    pub fn send_both(&mut self, head: &[u8], body: &[u8]) -> Result<()> {
        let mut writer = self.connection.writer();
        let taken = writer.write_all(head).and_then(|()| writer.write_all(body));
        taken.context(Kind::Failed, || format!("encrypt what goes to {}", self.names.peer))?;
        self.pump()
    }

    fn peer_said_goodbye(&mut self) -> bool {
        matches!(self.connection.process_new_packets(), Ok(state) if state.peer_has_closed())
    }
}

impl Transport for Tls {
    fn peer(&self) -> &str {
        &self.names.peer
    }

    fn outgoing(&mut self) -> Result<AlignedBuf> {
        self.plain.take().ok_or_else(|| Error::new(Kind::Failed, "every transport buffer is in the sender's own hands"))
    }

    fn send(&mut self, buffer: AlignedBuf, bytes: usize) -> Result<()> {
        let sent = self.send_both(&[], &buffer[..bytes]);
        self.plain = Some(buffer);
        sent
    }

    fn flush(&mut self) -> Result<()> {
        self.pump()?;
        self.stream.flush()
    }

    fn pace(&mut self, pace: &Pace) {
        self.stream.pace(pace);
    }

    fn has_room(&mut self) -> Result<bool> {
        self.stream.has_room()
    }

    fn is_idle(&mut self) -> Result<bool> {
        self.stream.is_idle()
    }

    fn is_flushed(&mut self) -> Result<bool> {
        if self.connection.wants_write() && self.stream.has_room()? {
            self.pump()?;
        }
        Ok(self.stream.is_flushed()? && !self.connection.wants_write())
    }

    fn turn(&mut self, inbox: Option<&mut Inbox>, limit: Duration) -> Result<Turn> {
        let Some(inbox) = inbox else { return self.stream.turn(None, limit) };
        if inbox.room() == 0 {
            inbox.reserve(inbox.unread().len() + BLOCK_BYTES)?;
        }
        let Some((mut buffer, at)) = inbox.lend() else { return Err(Error::new(Kind::Failed, "the inbox's buffer is still lent out")) };
        let turn = self.turn_into(&mut buffer[at..], limit);
        inbox.give_back(buffer, if let Ok(Turn::Received(bytes)) = turn { bytes } else { 0 });
        turn
    }
}

impl Drop for Tls {
    /// Says goodbye and takes in what the peer still sends, for a short while: see [`LINGER`].
    fn drop(&mut self) {
        self.stream.deadline().set(LINGER, "the goodbye");
        self.connection.send_close_notify();
        if self.pump().and_then(|()| self.stream.flush()).is_err() {
            return;
        }
        self.stream.shut_down();
        while let Ok(true) = self.stream.receive(&mut self.sealed) {
            let bytes = self.sealed.unread().len();
            self.sealed.consume(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tcp;
    use super::*;
    use crate::limits::HANDSHAKE_TIMEOUT;
    use std::thread;

    fn key() -> OwnKey {
        let key = ring_crypto::signature::Ed25519KeyPair::generate_pkcs8(&ring_crypto::rand::SystemRandom::new()).unwrap();
        OwnKey::new(key.as_ref()).unwrap()
    }

    fn raw(socket: TcpStream, peer: &str, choice: Choice) -> Raw {
        Raw { socket, peer: peer.into(), limit: HANDSHAKE_TIMEOUT, choice, stop: Arc::default() }
    }

    fn only(pin: Pin) -> Admit {
        Arc::new(move |_, shown| *shown == pin)
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = tcp::listen("127.0.0.1:0").unwrap();
        let near = tcp::connect(&listener.local_addr().unwrap().to_string(), HANDSHAKE_TIMEOUT, &AtomicBool::new(false)).unwrap();
        let (far, _) = listener.accept().unwrap();
        tcp::tune(&far).unwrap();
        (near, far)
    }

    /// An agent and a receiver, connected.
    fn pair_of(choice: Choice) -> (Tls, Tls) {
        let ((near, far), (agent, receiver)) = (sockets(), (key(), key()));
        let (pinned, admitted) = (*receiver.pin(), *agent.pin());
        let taking = thread::spawn(move || accept(raw(far, "agent", choice), &receiver, only(admitted)).unwrap());
        let made = connect(raw(near, "receiver", choice), &agent, pinned, Protocol::Session).unwrap();
        let taken = taking.join().unwrap();
        assert_eq!((taken.peer_pin().unwrap(), made.peer_pin().unwrap()), (admitted, pinned));
        (made, taken)
    }

    fn pattern(at: usize) -> u8 {
        (at * 7 + at / 4099) as u8
    }

    const MANY: usize = 9 << 20;

    fn give(tls: &mut Tls) {
        let mut at = 0;
        while at < MANY {
            let mut buffer = tls.outgoing().unwrap();
            let bytes = (MANY - at).min(TRANSPORT_BUFFER_BYTES - 77);
            buffer[..bytes].iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(at + i));
            tls.send(buffer, bytes).unwrap();
            at += bytes;
        }
        tls.flush().unwrap();
    }

    fn take(tls: &mut Tls) {
        let (mut inbox, mut at) = (Inbox::new(300_000).unwrap(), 0);
        while at < MANY {
            assert!(tls.receive(&mut inbox).unwrap());
            let unread = inbox.unread();
            assert!(unread.iter().enumerate().all(|(i, byte)| *byte == pattern(at + i)), "around byte {at}");
            at += unread.len();
            inbox.consume(unread.len());
        }
        assert_eq!(at, MANY);
    }

    #[test]
    fn megabytes_travel_both_ways_and_the_goodbye_is_heard() {
        for choice in [Choice::Uring, Choice::Blocking] {
            let (mut agent, mut receiver) = pair_of(choice);
            assert_eq!(receiver.protocol(), Protocol::Session);
            thread::scope(|scope| {
                scope.spawn(move || {
                    give(&mut agent);
                    take(&mut agent);
                });
                take(&mut receiver);
                give(&mut receiver);
                assert!(!receiver.receive(&mut Inbox::new(4096).unwrap()).unwrap(), "the end of the agent is a clean end");
            });
        }
    }

    /// A turn that brings nothing is what patience counts; one of who stood still before it must not.
    #[test]
    fn what_came_while_nobody_looked_comes_with_the_first_turn() {
        for choice in [Choice::Uring, Choice::Blocking] {
            let (mut agent, mut receiver) = pair_of(choice);
            receiver.send_both(b"mean", b"while").and_then(|()| receiver.flush()).unwrap();
            assert_eq!(agent.turn_into(&mut [0; 64], Duration::from_secs(60)).unwrap(), Turn::Received(9));
        }
    }

    #[test]
    fn an_unknown_agent_is_refused_and_both_ends_say_why() {
        let ((near, far), (agent, receiver)) = (sockets(), (key(), key()));
        let (pinned, own) = (*receiver.pin(), *agent.pin());
        let taking = thread::spawn(move || accept(raw(far, "agent", Choice::Auto), &receiver, Arc::new(|_, _| false)).err().unwrap());
        // The agent learns it with the first byte it waits for: TLS 1.3 lets it speak before.
        let mut made = connect(raw(near, "dr1", Choice::Auto), &agent, pinned, Protocol::Session).unwrap();
        let buffer = made.outgoing().unwrap();
        made.send(buffer, 4096).unwrap();
        let there = made.receive(&mut Inbox::new(4096).unwrap()).unwrap_err();
        let here = taking.join().unwrap();
        assert_eq!((here.kind(), there.kind()), (Kind::Refused, Kind::Refused));
        assert!(here.chain().contains(&own.to_string()) && here.chain().contains("not paired"), "{}", here.chain());
        assert!(there.chain().contains(&own.to_string()) && there.chain().contains("pair invite"), "{}", there.chain());
    }

    #[test]
    fn a_receiver_with_another_key_is_refused_and_both_ends_say_why() {
        let ((near, far), (agent, receiver)) = (sockets(), (key(), key()));
        let (wrong, real) = (*key().pin(), *receiver.pin());
        let taking = thread::spawn(move || accept(raw(far, "agent", Choice::Auto), &receiver, Arc::new(|_, _| true)).err().unwrap());
        let here = connect(raw(near, "dr1", Choice::Auto), &agent, wrong, Protocol::Session).err().unwrap();
        let there = taking.join().unwrap();
        assert_eq!((here.kind(), there.kind()), (Kind::Refused, Kind::Refused));
        assert!(here.chain().contains(&real.to_string()) && here.chain().contains(&wrong.to_string()), "{}", here.chain());
        assert!(there.chain().contains("expects another key"), "{}", there.chain());
    }

    #[test]
    fn a_key_is_judged_by_what_it_is_for() {
        let ((near, far), (agent, receiver)) = (sockets(), (key(), key()));
        let pinned = *receiver.pin();
        let only_pairing: Admit = Arc::new(|protocol, _| protocol == Protocol::Pairing);
        let taking = thread::spawn(move || accept(raw(far, "agent", Choice::Auto), &receiver, only_pairing).unwrap().protocol());
        let made = connect(raw(near, "receiver", Choice::Auto), &agent, pinned, Protocol::Pairing).unwrap();
        drop(made);
        assert_eq!(taking.join().unwrap(), Protocol::Pairing);
    }

    #[test]
    fn a_cut_is_no_end() {
        let (mut agent, receiver) = pair_of(Choice::Auto);
        // The receiver's kernel closes without TLS knowing.
        let mut receiver = std::mem::ManuallyDrop::new(receiver);
        receiver.stream.shut_down();
        let cut = agent.receive(&mut Inbox::new(4096).unwrap()).unwrap_err();
        assert_eq!(cut.kind(), Kind::Transient);
        assert!(cut.chain().contains("without a goodbye"), "{}", cut.chain());
    }

    #[test]
    fn a_flipped_bit_on_the_way_is_noticed() {
        let (mut agent, receiver) = pair_of(Choice::Auto);
        let mut receiver = std::mem::ManuallyDrop::new(receiver);
        receiver.connection.writer().write_all(b"what is meant").unwrap();
        let mut record = Vec::new();
        receiver.connection.write_tls(&mut record).unwrap();
        let last = record.len() - 20;
        record[last] ^= 1;
        let mut buffer = receiver.stream.outgoing().unwrap();
        buffer[..record.len()].copy_from_slice(&record);
        receiver.stream.send(buffer, record.len()).unwrap();
        receiver.stream.flush().unwrap();
        let changed = agent.receive(&mut Inbox::new(4096).unwrap()).unwrap_err();
        assert_eq!(changed.kind(), Kind::Transient);
        assert!(changed.chain().contains("changed on its way"), "{}", changed.chain());
        // The other end hears a complaint, and is as free to try again.
        agent.flush().unwrap();
        let told = receiver.receive(&mut Inbox::new(4096).unwrap()).unwrap_err();
        assert_eq!(told.kind(), Kind::Transient);
        assert!(told.chain().contains("went to") && told.chain().contains("changed on its way"), "{}", told.chain());
    }

    #[test]
    fn silence_trickles_and_other_protocols_end_the_handshake() {
        let limit = Duration::from_millis(1500);
        let talks: [fn(&TcpStream); 3] = [
            |_| {},
            // A TLS record header that promises more, a byte at a time.
            |mut socket| {
                for byte in [22, 3, 1, 1, 0, 1].into_iter().chain(std::iter::repeat_n(0, 20)) {
                    let _ = socket.write_all(&[byte]);
                    thread::sleep(Duration::from_millis(100));
                }
            },
            |mut socket| {
                let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
            },
        ];
        // Who speaks something else is told apart at once; a limit of a minute is for a machine that stands still.
        let ends = [("did not complete", limit), ("did not complete", limit), ("does not speak TLS", Duration::from_secs(60))];
        for (talk, (words, limit)) in talks.into_iter().zip(ends) {
            let (near, far) = sockets();
            let begun = Instant::now();
            let talking = thread::spawn(move || {
                talk(&near);
                near
            });
            let mut far = raw(far, "agent", Choice::Auto);
            far.limit = limit;
            let failed = accept(far, &key(), Arc::new(|_, _| true)).err().unwrap();
            assert!(failed.chain().contains(words), "{}", failed.chain());
            assert!(begun.elapsed() < limit + LINGER + Duration::from_secs(30), "{:?}", begun.elapsed());
            drop(talking.join());
        }
        // And a receiver that never answers.
        let (near, _far) = sockets();
        let mut near = raw(near, "dr1", Choice::Auto);
        near.limit = limit;
        let silent = connect(near, &key(), *key().pin(), Protocol::Session).err().unwrap();
        assert_eq!(silent.kind(), Kind::Transient);
        assert!(silent.chain().contains("did not complete"), "{}", silent.chain());
    }

    #[test]
    fn the_last_words_arrive_though_the_other_end_still_sends() {
        let (mut agent, mut receiver) = pair_of(Choice::Auto);
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut inbox = Inbox::new(4096).unwrap();
                assert!(receiver.receive(&mut inbox).unwrap());
                let mut buffer = receiver.outgoing().unwrap();
                buffer[..4].copy_from_slice(b"no!\n");
                receiver.send(buffer, 4).unwrap();
            });
            let lost = loop {
                match agent.outgoing().and_then(|buffer| agent.send(buffer, TRANSPORT_BUFFER_BYTES)) {
                    Ok(()) => {}
                    Err(lost) => break lost,
                }
            };
            assert_eq!(lost.kind(), Kind::Transient);
            let mut inbox = Inbox::new(4096).unwrap();
            assert!(agent.receive(&mut inbox).unwrap());
            assert_eq!(inbox.unread(), b"no!\n");
        });
    }
}
