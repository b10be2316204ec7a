//! `metrics.listen`: a server of one page. HTTP/1.1 as far as a scrape needs it: one request, one answer, closed. A
//! caller has a few seconds and a few kilobytes; more callers than a few are sent away at once, so that whoever holds
//! connections open holds nothing else up.

use super::sheet::Sheet;
use crate::agent::book::Shelf;
use crate::agent::config::Job;
use crate::agent::health::Look;
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{LINGER, METRICS_CALLERS_MAX, METRICS_REQUEST_BYTES_MAX, METRICS_TIMEOUT};
use nix::sys::socket::{Shutdown, shutdown};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a scrape looks at.
pub type Source = dyn Fn() -> Result<Sheet> + Send + Sync;

/// The server; ends when it is dropped.
#[derive(Debug)]
pub struct Exporter {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens at `ADDRESS:PORT`. `jobs` is asked at each scrape: a configuration may be read again meanwhile.
    pub fn start(address: &str, shelf: Shelf, jobs: impl Fn() -> Vec<Job> + Send + Sync + 'static) -> Result<Exporter> {
        let (zone, _) = crate::settings::local_time_zone();
        Exporter::serve(address, Arc::new(move || Ok(Sheet::of(&Look::now(&shelf, &jobs(), &zone)?))))
    }

    /// The same with any source of figures.
    pub fn serve(address: &str, source: Arc<Source>) -> Result<Exporter> {
        let place = || format!("listen for scrapes at {address} ([metrics] listen)");
        let listener = Arc::new(TcpListener::bind(address).context(Kind::Failed, place)?);
        let address = listener.local_addr().context(Kind::Failed, place)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, stopping) = (Arc::clone(&listener), Arc::clone(&stop));
        let run = move || accept(&accepting, &stopping, &source);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(run).context(Kind::Failed, place)?;
        Ok(Exporter { listener, address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Linux ends an accept that waits at a listener that is shut down.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, source: &Arc<Source>) {
    let callers = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut caller, _)) = listener.accept() else {
            // Out of files, say: not a loop that fills a processor.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let (source, callers) = (Arc::clone(source), Arc::clone(&callers));
        if callers.fetch_add(1, Ordering::Relaxed) >= METRICS_CALLERS_MAX {
            callers.fetch_sub(1, Ordering::Relaxed);
            let _ = caller.set_nonblocking(true);
            let _ = caller.write(response("503 Service Unavailable", "text/plain", "too many callers at once\n", true).as_bytes());
            continue;
        }
        let counted = Arc::clone(&callers);
        let answer = move || {
            // A caller that went away is nobody's failure.
            let _ = answer(&mut caller, &*source);
            counted.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("scrape".into()).spawn(answer).is_err() {
            callers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(caller: &mut TcpStream, source: &Source) -> std::io::Result<()> {
    caller.set_write_timeout(Some(METRICS_TIMEOUT))?;
    let text = match read_request(caller)? {
        Some(request) => respond(&request, source),
        None => response("400 Bad Request", "text/plain", "no request of HTTP/1.1\n", true),
    };
    caller.write_all(text.as_bytes())?;
    caller.shutdown(std::net::Shutdown::Write)?;
    // Bytes left unread would turn the close into a reset, which may overtake the answer.
    caller.set_read_timeout(Some(LINGER))?;
    let mut rest = [0; 1024];
    (0..METRICS_REQUEST_BYTES_MAX / rest.len()).try_for_each(|_| match caller.read(&mut rest) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        other => other.map(drop),
    })
}

/// The head of a request. `None` where it is too long or does not end.
fn read_request(caller: &mut TcpStream) -> std::io::Result<Option<String>> {
    let end = Instant::now() + METRICS_TIMEOUT;
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while head.len() < METRICS_REQUEST_BYTES_MAX {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        caller.set_read_timeout(Some(left))?;
        let bytes = caller.read(&mut piece)?;
        head.extend_from_slice(&piece[..bytes]);
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(String::from_utf8(head).ok());
        }
        if bytes == 0 {
            break;
        }
    }
    Ok(None)
}

fn respond(request: &str, source: &Source) -> String {
    let mut words = request.lines().next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let with_body = method != "HEAD";
    let say = |status: &str, text: &str| response(status, "text/plain; charset=utf-8", text, with_body);
    if !version.starts_with("HTTP/1.") {
        return say("400 Bad Request", "no request of HTTP/1.1\n");
    }
    if !["GET", "HEAD"].contains(&method) {
        return say("405 Method Not Allowed", "GET /metrics\n");
    }
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => match source() {
            Ok(sheet) => response("200 OK", "text/plain; version=0.0.4; charset=utf-8", &sheet.text(), with_body),
            Err(error) => say("500 Internal Server Error", &format!("{}\n", Error::chain(&error))),
        },
        "/" => say("200 OK", "blockferry: the figures are at /metrics\n"),
        _ => say("404 Not Found", "the figures are at /metrics\n"),
    }
}

fn response(status: &str, kind: &str, body: &str, with_body: bool) -> String {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    if with_body { head + body } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter() -> Exporter {
        let source = || {
            let mut sheet = Sheet::default();
            sheet.family("x_seconds", "X.");
            sheet.add(&[], 1.5);
            Ok(sheet)
        };
        Exporter::serve("127.0.0.1:0", Arc::new(source)).unwrap()
    }

    fn ask(exporter: &Exporter, request: &str) -> String {
        let mut stream = TcpStream::connect(exporter.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    }

    #[test]
    fn a_scrape_gets_the_figures_and_anything_else_a_word() {
        let exporter = exporter();
        let page = ask(&exporter, "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\n")
                && page.ends_with("\r\n\r\n# HELP x_seconds X.\n# TYPE x_seconds gauge\nx_seconds 1.5\n"),
            "{page}"
        );
        let status = |request: &str| ask(&exporter, request).split(' ').nth(1).unwrap_or_default().to_owned();
        assert_eq!(status("GET /etc/passwd HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(status("nonsense\r\n\r\n"), "400");
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(METRICS_REQUEST_BYTES_MAX))), "400");
        assert!(ask(&exporter, "HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    }

    #[test]
    fn who_holds_connections_open_is_sent_away_and_the_server_ends_with_its_owner() {
        let exporter = exporter();
        let idle: Vec<TcpStream> = (0..METRICS_CALLERS_MAX).map(|_| TcpStream::connect(exporter.address()).unwrap()).collect();
        // The idle ones are counted once they were accepted, and let go of once that was noticed: some way off on a busy host.
        let until = |wanted: &str, request: &str| {
            let give_up = Instant::now() + METRICS_TIMEOUT * 4;
            let mut said = String::new();
            while !said.starts_with(wanted) && Instant::now() < give_up {
                said = ask(&exporter, request);
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(said.starts_with(wanted), "{said:?} is not {wanted}");
        };
        until("HTTP/1.1 503", "");
        drop(idle);
        until("HTTP/1.1 200", "GET / HTTP/1.1\r\n\r\n");
        let address = exporter.address();
        drop(exporter);
        assert!(TcpStream::connect(address).is_err());
    }
}
