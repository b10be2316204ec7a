//! Pairing: a token that the receiver prints and the agent hands in, once.
//!
//! The token names the receiver's address and key, so the agent knows whom it talks to before it says
//! the secret; the secret shows the receiver that this key belongs to who was invited. The receiver
//! keeps only a hash of it, and the first one to hand it in takes it.

use super::config::Grant;
use crate::attempt::now_ms;
use crate::attempt::{Host, connect, own_key};
use crate::error::{Context, Error, Kind, Result};
use crate::format::codec::{Reader, Writer, crc};
use crate::limits::{INVITES_MAX, PAIRING_MESSAGE_BYTES_MAX};
use crate::pin::Pin;
use crate::progress::Progress;
use crate::settings::check_name;
use crate::state::StateDir;
use crate::state::pairing::{self, Enrolled, Invite, KnownReceiver};
use crate::transport::tls::{Protocol, Tls};
use crate::transport::{Inbox, Transport, tcp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a token begins with: its kind and version.
const PREFIX: &str = "blockferry-pair-1-";
const SECRET_BYTES: usize = 32;

/// What a receiver gives to a future client, out of band.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where the receiver is.
    pub address: String,
    /// Its key.
    pub pin: Pin,
    /// What shows that the bearer was invited.
    secret: [u8; SECRET_BYTES],
    /// The replicas it opens; `*` stands for anything.
    pub replica: String,
    /// Until when: milliseconds since 1970.
    pub expires_ms: u64,
}

impl Token {
    /// One word to be pasted, with a check against a piece left behind.
    pub fn write(&self) -> String {
        let mut body = Writer::default();
        body.string(&self.address).raw(self.pin.bytes()).raw(&self.secret).string(&self.replica).u64(self.expires_ms);
        let body = body.finish();
        let check = crc(&body).to_le_bytes();
        body.iter().chain(&check).fold(PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// Reads what `write` made.
    pub fn read(text: &str) -> Result<Token> {
        let damaged = || Error::new(Kind::Usage, "this is no whole token: copy all of what `blockferry pair invite` printed, in one piece");
        let digits = text.trim().strip_prefix(PREFIX).ok_or_else(damaged)?;
        if digits.len() > 2 * PAIRING_MESSAGE_BYTES_MAX || digits.len() % 2 != 0 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(damaged());
        }
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect();
        let bytes = bytes.ok_or_else(damaged)?;
        let (body, check) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc(body).to_le_bytes() != *check {
            return Err(damaged());
        }
        let mut reader = Reader::new("pairing token", body);
        let token = Token {
            address: reader.string()?,
            pin: Pin::from_bytes(reader.array()?),
            secret: reader.array()?,
            replica: reader.string()?,
            expires_ms: reader.u64()?,
        };
        reader.finish()?;
        Ok(token)
    }
}

/// Written to the receiver by who holds a token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    secret: String,
    name: String,
}

/// The receiver's answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Enrolled { name: String },
    Refused { reason: String },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secret is random and long: one round of a hash is enough to keep it.
fn hash_of(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// At the receiver: a token for one agent, valid for `time`.
pub fn invite(state: &StateDir, address: &str, replica: &str, time: Duration) -> Result<Token> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).context(Kind::Failed, || "ask the system for a random secret")?;
    let expires_ms = now_ms().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let token = Token { address: tcp::with_port(address), pin: *own_key(state)?.pin(), secret, replica: replica.to_owned(), expires_ms };
    pairing::change(state.path(), |invites: &mut Vec<Invite>| {
        invites.retain(|invite| invite.expires_ms > now_ms());
        if invites.len() >= INVITES_MAX {
            let message = format!("{INVITES_MAX} invitations are open already: `blockferry pair revoke --invites` takes them back");
            return Err(Error::new(Kind::Refused, message));
        }
        invites.push(Invite { secret_hash: hash_of(&hex(&secret)), replica: replica.to_owned(), expires_ms });
        Ok(())
    })?;
    Ok(token)
}

/// Whether anybody is invited: without that, nobody unknown comes through the handshake.
pub fn is_anybody_invited(state: &StateDir) -> bool {
    pairing::list::<Invite>(state.path()).is_ok_and(|invites| invites.iter().any(|invite| invite.expires_ms > now_ms()))
}

/// At the agent: hands the token in under `name` and remembers the receiver. Returns the name enrolled: that of an earlier
/// pairing where there was one.
pub fn accept(host: &Host, token: &Token, name: &str, progress: &Progress) -> Result<String> {
    if token.expires_ms <= now_ms() {
        return Err(Error::new(Kind::Refused, "this token is expired: `blockferry pair invite` at the receiver prints a new one"));
    }
    let mut tls = connect(host, &token.address, token.pin, Protocol::Pairing, &progress.stop)?;
    tls.deadline().set(crate::limits::HANDSHAKE_TIMEOUT, "its answer");
    say(&mut tls, &Request { secret: hex(&token.secret), name: name.to_owned() })?;
    let name = match hear(&mut tls)? {
        Answer::Enrolled { name } => name,
        Answer::Refused { reason } => return Err(Error::by_peer(&token.address, Kind::Refused, reason)),
    };
    let known = KnownReceiver { address: token.address.clone(), pin: token.pin, paired_ms: now_ms() };
    pairing::change(host.state.path(), |all: &mut Vec<KnownReceiver>| {
        all.retain(|one| one.address != known.address);
        all.push(known);
        Ok(())
    })?;
    Ok(name)
}

/// At the receiver: takes a token in and enrols the key that the connection proved. What this returns is
/// for the log.
pub fn enrol(state: &StateDir, tls: &mut Tls, taken_names: &[String]) -> Result<Enrolled> {
    let result = hear::<Request>(tls).and_then(|request| redeem(state, tls.peer_pin()?, &request, taken_names));
    let answer = match &result {
        Ok(enrolled) => Answer::Enrolled { name: enrolled.name.clone() },
        Err(error) => Answer::Refused { reason: error.chain() },
    };
    let told = say(tls, &answer);
    let enrolled = result?;
    told?;
    Ok(enrolled)
}

/// Takes the invitation and writes the client down: in this order, so that a crash between the two costs a
/// token and never lets it be used twice.
fn redeem(state: &StateDir, key: Pin, request: &Request, taken_names: &[String]) -> Result<Enrolled> {
    check_name("client", &request.name).map_err(|what| Error::new(Kind::Refused, what))?;
    let clients: Vec<Enrolled> = pairing::list(state.path())?;
    // A name stands in logs and is what `pair revoke` takes: another token changes what its bearer may do, not what it is called.
    let known = clients.iter().find(|client| client.key == key).map(|client| client.name.clone());
    let is_taken = || taken_names.contains(&request.name) || clients.iter().any(|client| client.name == request.name);
    if known.is_none() && is_taken() {
        return Err(Error::new(Kind::Refused, format!("the name {} is taken: --name chooses another", request.name)));
    }
    let hash = hash_of(&request.secret);
    let invite = pairing::change(state.path(), |invites: &mut Vec<Invite>| {
        // Comparing hashes tells nobody anything of the secret, however long it takes.
        let found = invites.iter().position(|invite| invite.secret_hash == hash && invite.expires_ms > now_ms());
        let refused = || Error::new(Kind::Refused, "this token is used, expired or taken back: `blockferry pair invite` prints a new one");
        found.map(|at| invites.remove(at)).ok_or_else(refused)
    })?;
    let name = known.unwrap_or_else(|| request.name.clone());
    let enrolled = Enrolled { name, key, replicas: vec![invite.replica], since_ms: now_ms() };
    pairing::change(state.path(), |all: &mut Vec<Enrolled>| {
        match all.iter_mut().find(|one| one.key == key) {
            // Invited again: what it may have grows.
            Some(old) => {
                old.replicas.extend(enrolled.replicas.iter().filter(|new| !old.replicas.contains(new)).cloned().collect::<Vec<_>>())
            }
            None => all.push(enrolled.clone()),
        }
        Ok(())
    })?;
    Ok(enrolled)
}

/// What an enrolled client may do.
pub fn grants(client: &Enrolled) -> Vec<Grant> {
    client.replicas.iter().map(|replica| Grant::all(replica)).collect()
}

fn say<T: Serialize>(tls: &mut Tls, message: &T) -> Result<()> {
    let mut text = serde_json::to_vec(message).context(Kind::Failed, || "write a pairing message")?;
    text.push(b'\n');
    let mut buffer = tls.outgoing()?;
    let fits = text.len() <= PAIRING_MESSAGE_BYTES_MAX;
    let bytes = if fits { text.len() } else { 0 };
    buffer[..bytes].copy_from_slice(&text[..bytes]);
    tls.send(buffer, bytes)?;
    if fits { tls.flush() } else { Err(Error::new(Kind::Usage, "a pairing message is too long")) }
}

fn hear<T: for<'de> Deserialize<'de>>(tls: &mut Tls) -> Result<T> {
    let mut inbox = Inbox::new(PAIRING_MESSAGE_BYTES_MAX)?;
    loop {
        if let Some(end) = inbox.unread().iter().position(|byte| *byte == b'\n') {
            return serde_json::from_slice(&inbox.unread()[..end]).map_err(|_| Error::malformed("a pairing message that makes no sense"));
        }
        if inbox.unread().len() >= PAIRING_MESSAGE_BYTES_MAX {
            return Err(Error::malformed("a pairing message that does not end"));
        }
        if !tls.receive(&mut inbox)? {
            return Err(Error::new(Kind::Transient, format!("{} closed the connection before it answered", tls.peer())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            address: "dr1.example:7420".into(),
            pin: Pin::of(b"key"),
            secret: [7; SECRET_BYTES],
            replica: "db-*".into(),
            expires_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_a_piece_of_one_is_not() {
        let text = token().write();
        assert_eq!(Token::read(&format!(" {text}\n")).unwrap(), token());
        assert!(text.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'-'), "no shell takes offence: {text}");
        for at in 0..text.len() {
            assert!(Token::read(&text[..at]).is_err(), "{at}");
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert!(Token::read(std::str::from_utf8(&other).unwrap()).is_err(), "{at}");
        }
    }

    #[test]
    fn a_secret_opens_once_and_is_nowhere_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let token = invite(&state, "dr1", "db-*", Duration::from_secs(60)).unwrap();
        assert!(is_anybody_invited(&state));
        let secret = hex(&token.secret);
        let kept = std::fs::read_to_string(folder.path().join("pairing/invites.json")).unwrap();
        assert!(!kept.contains(&secret));
        let request = |name: &str, secret: &str| Request { secret: secret.to_owned(), name: name.to_owned() };
        let (one, two) = (Pin::of(b"1"), Pin::of(b"2"));
        let taken = ["prod1".to_owned()];
        for (name, secret) in [("prod2", "00"), ("prod1", &secret), ("a b", &secret)] {
            assert_eq!(redeem(&state, one, &request(name, secret), &taken).unwrap_err().kind(), Kind::Refused);
        }
        let enrolled = redeem(&state, one, &request("prod2", &secret), &taken).unwrap();
        assert!(grants(&enrolled)[0].covers("db-data", crate::serve::config::Operation::Push));
        let again = redeem(&state, two, &request("prod3", &secret), &taken).unwrap_err();
        assert!(again.chain().contains("is used"), "{}", again.chain());
        assert!(!is_anybody_invited(&state));
    }

    #[test]
    fn a_host_that_is_invited_again_keeps_its_name_and_may_do_more() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let redeem = |key: &Pin, name: &str, replica: &str| {
            let token = invite(&state, "dr1", replica, Duration::from_secs(60)).unwrap();
            redeem(&state, *key, &Request { secret: hex(&token.secret), name: name.into() }, &["web".to_owned()])
        };
        let (one, two) = (Pin::of(b"1"), Pin::of(b"2"));
        redeem(&one, "prod1", "db").unwrap();
        redeem(&two, "prod2", "db").unwrap();
        // A name that others have is no hindrance to who has one already.
        for name in ["host7", "web", "prod2"] {
            assert_eq!(redeem(&one, name, &format!("{name}-*")).unwrap().name, "prod1", "{name}");
        }
        let all: Vec<Enrolled> = pairing::list(state.path()).unwrap();
        assert_eq!(all.iter().map(|client| client.name.as_str()).collect::<Vec<_>>(), ["prod1", "prod2"]);
        assert_eq!(all[0].replicas, ["db", "host7-*", "web-*", "prod2-*"]);
        assert_eq!(redeem(&Pin::of(b"3"), "prod1", "db").unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn an_expired_secret_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let token = invite(&state, "dr1", "*", Duration::ZERO).unwrap();
        assert!(!is_anybody_invited(&state));
        let request = Request { secret: hex(&token.secret), name: "late".into() };
        assert_eq!(redeem(&state, Pin::of(b"1"), &request, &[]).unwrap_err().kind(), Kind::Refused);
    }
}
