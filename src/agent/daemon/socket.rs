//! The agent's socket: `STATE/agent/socket`, for who may enter that folder. One line of JSON there, one back.
//!
//! It carries questions and wishes that only the process of a run can answer; what holds (pauses, outcomes) is
//! in the books, with an agent or without one.

use crate::agent::book::Shelf;
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{ASK_TIMEOUT, ASKERS_MAX, QUESTION_BYTES_MAX, STOP_POLL};
use crate::log;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

const SOCKET: &str = "socket";

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command", deny_unknown_fields)]
pub enum Question {
    /// What every job does.
    Status,
    /// Begin a run of this job as soon as there is room.
    Run {
        /// Its name.
        job: String,
    },
    /// Stop the run of this job at a point to go on from.
    Abort {
        /// Its name.
        job: String,
    },
    /// Read agent.toml again.
    Reload,
}

/// The answer: what was asked for, or an error.
pub type Answer = Result<Value>;

/// A question with a way back.
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes.
    pub answer: Sender<Answer>,
}

/// A socket's path, also below a folder whose name is longer than an address may be.
struct Address {
    path: PathBuf,
    _folder: Option<File>,
}

impl Address {
    fn of(folder: &Path) -> Result<Address> {
        let path = folder.join(SOCKET);
        // sockaddr_un holds 108 bytes with the zero behind them.
        if path.as_os_str().len() < 108 {
            return Ok(Address { path, _folder: None });
        }
        let folder = File::open(folder).context(Kind::Failed, || format!("open {}", folder.display()))?;
        Ok(Address { path: format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()).into(), _folder: Some(folder) })
    }
}

/// The listening socket; its name goes with it.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens. Whoever calls this holds the agent's lock, so a socket that is there is a dead agent's.
    pub fn listen(shelf: &Shelf) -> Result<Socket> {
        let path = shelf.folder().join(SOCKET);
        let place = || format!("listen on {}", path.display());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(Kind::Failed, place),
            _ => {}
        }
        let address = Address::of(&shelf.folder())?;
        let listener = UnixListener::bind(&address.path).context(Kind::Failed, place)?;
        // The folder around it is closed to others already; this says so of the socket too.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).context(Kind::Failed, place)?;
        listener.set_nonblocking(true).context(Kind::Failed, place)?;
        Ok(Socket { path, listener })
    }

    /// Takes questions and hands them to `asked` until `stop`. A stranger's nonsense, or one who says nothing, costs
    /// one of a few threads for a moment.
    pub fn serve(&self, stop: &AtomicBool, asked: impl Fn(Asked) + Send + Sync + 'static) {
        let (asked, open) = (Arc::new(asked), Arc::new(AtomicUsize::new(0)));
        while !stop.load(Ordering::Relaxed) {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        log::warning(format!("take a question on {}: {error}", self.path.display()));
                    }
                    std::thread::sleep(STOP_POLL);
                    continue;
                }
            };
            if open.fetch_add(1, Ordering::Relaxed) >= ASKERS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (asked, open) = (Arc::clone(&asked), Arc::clone(&open));
            std::thread::spawn(move || {
                // Whoever went away before the answer does not want it.
                let _ = reply(&stream, &*asked);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn reply(stream: &UnixStream, asked: &dyn Fn(Asked)) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(QUESTION_BYTES_MAX)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => {
            let (answer, answered) = channel();
            asked(Asked { question, answer });
            answered.recv_timeout(ASK_TIMEOUT).unwrap_or_else(|_| Err(Error::new(Kind::Transient, "the agent is too busy to answer")))
        }
        Err(error) => Err(Error::new(Kind::Usage, format!("the agent does not understand this: {error}"))),
    };
    let said = match answer {
        Ok(value) => json!({"ok": true, "answer": value}),
        Err(error) => json!({"ok": false, "exit": error.kind().exit_code(), "message": error.chain()}),
    };
    let mut stream = stream;
    stream.write_all(format!("{said}\n").as_bytes())
}

/// What comes back.
#[derive(Deserialize)]
struct Said {
    ok: bool,
    #[serde(default)]
    answer: Value,
    #[serde(default)]
    exit: u8,
    #[serde(default)]
    message: String,
}

/// Asks the agent of this state directory. `None`: there is none.
pub fn ask(shelf: &Shelf, question: &Question) -> Result<Option<Value>> {
    let path = shelf.folder().join(SOCKET);
    let place = || format!("ask the agent at {}", path.display());
    let address = match Address::of(&shelf.folder()) {
        Ok(address) => address,
        Err(_) => return Ok(None),
    };
    let mut stream = match UnixStream::connect(&address.path) {
        Ok(stream) => stream,
        // A file that nobody listens on is a dead agent's.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error).context(Kind::Failed, place),
    };
    let mut said = String::new();
    // Longer than the agent takes for an answer, so that its own word about that arrives.
    let limit = Some(ASK_TIMEOUT + Duration::from_secs(2));
    stream
        .set_read_timeout(limit)
        .and_then(|()| stream.set_write_timeout(limit))
        .and_then(|()| stream.write_all(format!("{}\n", json!(question)).as_bytes()))
        .and_then(|()| stream.read_to_string(&mut said).map(|_| ()))
        .context(Kind::Transient, place)?;
    let said: Said = serde_json::from_str(&said).context(Kind::Transient, place)?;
    if said.ok { Ok(Some(said.answer)) } else { Err(Error::new(Kind::from_wire(said.exit), said.message)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    fn shelf(folder: &Path) -> Shelf {
        Shelf::open(&StateDir::open(folder).unwrap()).unwrap()
    }

    fn served(shelf: &Shelf, ask_it: impl FnOnce()) {
        let socket = Socket::listen(shelf).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            socket.serve(&flag, |asked| {
                let answer = match asked.question {
                    Question::Abort { job } => Err(Error::new(Kind::Usage, format!("no job {job}"))),
                    _ => Ok(json!(7)),
                };
                asked.answer.send(answer).unwrap();
            })
        });
        ask_it();
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }

    #[test]
    fn answers_and_errors_come_back_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(folder.path());
        assert_eq!(ask(&shelf, &Question::Status).unwrap(), None);
        served(&shelf, || {
            let mode = std::fs::metadata(shelf.folder().join(SOCKET)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(ask(&shelf, &Question::Status).unwrap(), Some(json!(7)));
            let error = ask(&shelf, &Question::Abort { job: "db".into() }).unwrap_err();
            assert_eq!((error.kind(), error.chain().as_str()), (Kind::Usage, "no job db"));
        });
        assert!(!shelf.folder().join(SOCKET).exists());
    }

    #[test]
    fn a_dead_agents_socket_is_nobody_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(folder.path());
        drop(UnixListener::bind(shelf.folder().join(SOCKET)).unwrap());
        assert_eq!(ask(&shelf, &Question::Status).unwrap(), None);
        served(&shelf, || assert_eq!(ask(&shelf, &Question::Reload).unwrap(), Some(json!(7))));
    }

    #[test]
    fn a_folder_with_a_long_name_has_a_socket_too() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(&folder.path().join("x".repeat(120)));
        served(&shelf, || assert_eq!(ask(&shelf, &Question::Status).unwrap(), Some(json!(7))));
    }

    #[test]
    fn nonsense_is_bounded_and_answered() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(folder.path());
        served(&shelf, || {
            for nonsense in ["{}\n".to_owned(), "\n".to_owned(), "{\"command\":\"dance\"}\n".to_owned(), "x".repeat(1 << 20)] {
                let mut stream = UnixStream::connect(shelf.folder().join(SOCKET)).unwrap();
                let _ = stream.write_all(nonsense.as_bytes());
                let mut said = String::new();
                let _ = stream.read_to_string(&mut said);
                assert!(said.is_empty() && nonsense.len() > 4096 || said.contains("does not understand"), "{said}");
            }
            // Many who say nothing: those that are too many are closed, and later ones are served again.
            let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(shelf.folder().join(SOCKET)).unwrap()).collect();
            drop(silent);
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while ask(&shelf, &Question::Status).is_err() {
                assert!(std::time::Instant::now() < until);
            }
        });
    }
}
