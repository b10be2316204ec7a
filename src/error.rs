//! The one error type: what a program branches on (`Kind`) and what a person reads (the chain).
//!
//! A message names operation, object and place; the chain adds the cause. Each kind is one exit
//! code of the command line.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Result with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it. The number is the exit code and the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Any failure without a kind of its own.
    Failed = 1,
    /// Wrong command line or configuration.
    Usage = 2,
    /// Some volumes of a run failed.
    Partial = 3,
    /// Network or busy peer: trying again may help.
    Transient = 4,
    /// Another run holds the lock.
    Locked = 5,
    /// Promoted or diverged: an operator has to decide.
    Operator = 6,
    /// Verification found differences.
    Differs = 7,
    /// Refused by a guard, a key, a permission, an identity or a version.
    Refused = 8,
    /// The source snapshot cannot be made, overflowed or was lost.
    Snapshot = 9,
    /// I/O error or no space on the replica device or the journal.
    Storage = 10,
    /// Stopped by a signal at a resumable point.
    Interrupted = 130,
}

impl Kind {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    /// The kind a peer named; an unknown code counts as a plain failure.
    pub fn from_wire(code: u8) -> Kind {
        use Kind::*;
        [Usage, Partial, Transient, Locked, Operator, Differs, Refused, Snapshot, Storage, Interrupted]
            .into_iter()
            .find(|kind| *kind as u8 == code)
            .unwrap_or(Failed)
    }
}

/// An error with its kind, one sentence of ours, and the cause below it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    from_peer: bool,
    /// The peer has been told.
    told: AtomicBool,
}

impl Error {
    /// The error of a run that was asked to stop.
    pub fn interrupted() -> Error {
        Error::new(Kind::Interrupted, "stopped by a signal")
    }

    /// An error without a deeper cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None, from_peer: false, told: AtomicBool::new(false) }
    }

    /// An error with its cause.
    pub fn because(kind: Kind, message: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error { kind, message: message.into(), source: Some(source.into()), from_peer: false, told: AtomicBool::new(false) }
    }

    /// Bytes from outside that do not mean what they should. `what` names the format and the place.
    pub fn malformed(what: impl Into<String>) -> Error {
        Error::new(Kind::Failed, what)
    }

    /// What a caller may branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the peer said went wrong on its side.
    pub fn by_peer(peer: &str, kind: Kind, message: String) -> Error {
        Error { kind, message: peer.to_owned(), source: Some(message.into()), from_peer: true, told: AtomicBool::new(true) }
    }

    /// Whether this only repeats what the peer said.
    pub fn is_from_peer(&self) -> bool {
        self.from_peer
    }

    /// The peer was told of this error.
    pub fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// Whether the peer knows of this error: then it is the peer's to say it to whoever waits there.
    pub fn is_known_to_peer(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// The same error under another kind.
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }

    /// Message and causes, joined by colons, as printed once at the end of a run.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Puts our sentence above a cause.
pub trait Context<T> {
    /// Wraps the cause; `message` is only built on failure.
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|cause| Error::because(kind, message(), cause))
    }
}

/// `Result<_, Error>` keeps its kind when a sentence is put above it.
pub trait Within<T> {
    /// Wraps one of our own errors without changing its kind.
    fn within<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Within<T> for Result<T> {
    fn within<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|cause| {
            let told = AtomicBool::new(cause.is_known_to_peer());
            Error { told, ..Error::because(cause.kind(), message(), cause) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_reads_from_the_operation_to_the_cause() {
        let io = std::io::Error::from_raw_os_error(28);
        let error = Result::<(), _>::Err(io).context(Kind::Storage, || "apply extent 7 at 0x70000 on /dev/x").unwrap_err();
        assert_eq!(error.chain(), "apply extent 7 at 0x70000 on /dev/x: No space left on device (os error 28)");
        assert_eq!(error.kind().exit_code(), 10);
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for code in 0..=255u8 {
            let kind = Kind::from_wire(code);
            assert!(kind as u8 == code || kind == Kind::Failed);
        }
    }
}
