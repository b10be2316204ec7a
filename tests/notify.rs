//! Somebody is told, on every way, and is told later where a way fails: against real programs and a small real server.

use blockferry::agent::book::Shelf;
use blockferry::agent::config::{AgentConfig, Job, Occasion};
use blockferry::agent::notify::{self, Event};
use blockferry::state::StateDir;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A folder with an agent.toml and a state directory.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(notify: &str) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.configure(notify);
        place
    }

    fn configure(&self, notify: &str) {
        let text = format!(
            "[[receiver]]\nname = \"here\"\nlocal = true\n[[job]]\nname = \"db\"\nreceivers = [\"here\"]\n\
             volumes = [{{ source = \"/srv/a.img\", replica = \"/srv/b.img\" }}]\n{notify}"
        );
        std::fs::write(self.path("agent.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn open(folder: &Path) -> (Shelf, Job) {
        let shelf = Shelf::open(&StateDir::open(&folder.join("state")).unwrap()).unwrap();
        (shelf, AgentConfig::load(&folder.join("agent.toml")).unwrap().jobs.remove(0))
    }

    fn tell(&self, events: &[Event]) -> usize {
        let (shelf, job) = Place::open(self.folder.path());
        notify::tell(&shelf, &job, events);
        shelf.read("db").unwrap().untold.len()
    }

    /// The same in a process of its own, with another environment; the number of notifications that still wait, and
    /// the log.
    fn tell_elsewhere(&self, environment: &[(&str, &str)]) -> (usize, String) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "in_an_environment_of_its_own", "--ignored", "--nocapture", "--test-threads=1"]);
        child.env("NOTIFY_TEST_FOLDER", self.folder.path()).envs(environment.iter().copied());
        let ended = child.output().unwrap();
        let log = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{log}");
        (Place::open(self.folder.path()).0.read("db").unwrap().untold.len(), log)
    }
}

/// The other half of [`Place::tell_elsewhere`].
#[test]
#[ignore = "run by the other tests"]
fn in_an_environment_of_its_own() {
    let Some(folder) = std::env::var_os("NOTIFY_TEST_FOLDER") else { return };
    let (shelf, job) = Place::open(Path::new(&folder));
    notify::tell(&shelf, &job, &[failed("no route")]);
}

fn failed(message: &str) -> Event {
    Event { what: Occasion::Failed, message: message.into(), run_id: Some("r7".into()), exit: Some(4), ends: Vec::new() }
}

/// A web server that answers each request with one of these lines in turn, the last of them for ever.
fn server(answers: &'static [&'static str], tls: Option<Arc<rustls::ServerConfig>>) -> (u16, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let answer = answers[at.min(answers.len() - 1)];
            let request = match &tls {
                None => serve(stream, answer),
                Some(config) => serve(rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream), answer),
            };
            if let Some(request) = request
                && sender.send(request).is_err()
            {
                return;
            }
        }
    });
    (port, receiver)
}

/// One request: its head, and its body.
fn serve(stream: impl Read + Write, answer: &str) -> Option<(String, Value)> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let mut body = vec![0; length?];
    stream.read_exact(&mut body).ok()?;
    let text = "words of the server";
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    stream.get_mut().write_all(answer.as_bytes()).ok()?;
    stream.get_mut().flush().ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

/// What takes longer hangs, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_program_gets_environment_and_json() {
    let place = Place::new("");
    let script = place.script(
        "page",
        "cat > \"$(dirname \"$0\")/json\"; env | grep ^BLOCKFERRY_ > \"$(dirname \"$0\")/env\"; echo $1 >> \"$(dirname \"$0\")/env\"",
    );
    place.configure(&format!("[[job.notify]]\non = [\"failed\"]\nexec = [\"/bin/sh\", \"{}\", \"on-call\"]", script.display()));
    assert_eq!(place.tell(&[failed("no route")]), 0);
    let json: Value = serde_json::from_str(&place.read("json")).unwrap();
    assert_eq!((json["event"].as_str(), json["job"].as_str(), json["run_id"].as_str()), (Some("failed"), Some("db"), Some("r7")));
    let environment = place.read("env");
    for line in ["BLOCKFERRY_EVENT=failed", "BLOCKFERRY_JOB=db", "BLOCKFERRY_MESSAGE=no route", "BLOCKFERRY_EXIT=4", "on-call"] {
        assert!(environment.lines().any(|found| found == line), "{line} in {environment}");
    }
}

#[test]
fn what_could_not_be_told_is_told_with_the_next_run_and_only_once() {
    let place = Place::new("");
    let script =
        place.script("page", "cd \"$(dirname \"$0\")\"; [ -e works ] || { echo no line >&2; exit 1; }; echo $BLOCKFERRY_MESSAGE >> told");
    place.configure(&format!("[[job.notify]]\non = [\"failed\", \"recovered\"]\nexec = [\"/bin/sh\", \"{}\"]", script.display()));
    assert_eq!(place.tell(&[failed("first")]), 1);
    // The next run went well, and nothing is to be told of it; the way works again.
    std::fs::write(place.path("works"), "").unwrap();
    assert_eq!(place.tell(&[]), 0);
    assert_eq!(place.tell(&[]), 0);
    assert_eq!(place.read("told"), "first\n");
    let recovered = Event { what: Occasion::Recovered, message: "well".into(), run_id: None, exit: None, ends: vec![Occasion::Failed] };
    assert_eq!(place.tell(&[failed("second"), recovered]), 0);
    assert_eq!(place.read("told"), "first\nsecond\nwell\n");
}

#[test]
fn a_web_server_gets_json_and_its_refusal_is_tried_again() {
    let (port, requests) = server(&["503 Service Unavailable", "302 Found", "204 No Content"], None);
    let place = Place::new(&format!("[[job.notify]]\non = [\"failed\"]\nwebhook = \"http://127.0.0.1:{port}/hooks/secret?x=1\""));
    assert_eq!(place.tell(&[failed("no route")]), 1, "503");
    assert_eq!(place.tell(&[]), 1, "a redirection is no answer");
    assert_eq!(place.tell(&[]), 0);
    for _ in 0..3 {
        let (head, json) = requests.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("POST /hooks/secret?x=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
        assert_eq!((json["message"].as_str(), json["exit"].as_u64()), (Some("no route"), Some(4)));
    }
}

#[test]
fn nobody_at_the_other_end_costs_a_word_and_no_secret() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::new(&format!("[[job.notify]]\non = [\"failed\"]\nwebhook = \"http://127.0.0.1:{port}/hooks/secret\""));
    let began = Instant::now();
    let (waiting, log) = place.tell_elsewhere(&[]);
    assert_eq!(waiting, 1);
    assert!(log.contains(&format!("tell webhook 127.0.0.1:{port} that job db failed: ")) && !log.contains("secret"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// A key and a certificate of its own for 127.0.0.1.
fn certificate(place: &Place) -> Arc<rustls::ServerConfig> {
    let (key, certificate) = (place.path("key.pem"), place.path("cert.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl: see tests/needs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_protocol_versions(&[&rustls::version::TLS12]).unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(chain, PrivateKeyDer::from_pem_file(&key).unwrap()).unwrap())
}

#[test]
fn https_is_told_what_a_trusted_certificate_may_hear_and_nothing_else() {
    let place = Place::new("");
    let (port, requests) = server(&["200 OK"], Some(certificate(&place)));
    place.configure(&format!("[[job.notify]]\non = [\"failed\"]\nwebhook = \"https://127.0.0.1:{port}/x\""));
    let (waiting, log) = place.tell_elsewhere(&[]);
    assert_eq!(waiting, 1);
    assert!(log.contains("certificate"), "{log}");
    let trusted = place.path("cert.pem");
    let (waiting, log) = place.tell_elsewhere(&[("SSL_CERT_FILE", trusted.to_str().unwrap())]);
    assert_eq!(waiting, 0, "{log}");
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap().1["count"], 2, "what waited is told once, as it is now");
    assert!(requests.try_recv().is_err());
}

#[test]
fn a_mail_goes_to_the_sendmail_of_the_host() {
    let place = Place::new("[[job.notify]]\non = [\"failed\"]\nmail = \"root@example\"");
    std::fs::create_dir(place.path("bin")).unwrap();
    place.script("bin/sendmail", "cd \"$(dirname \"$0\")/..\"; echo \"$@\" > arguments; cat > mail");
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let (waiting, log) = place.tell_elsewhere(&[("PATH", &path)]);
    assert_eq!(waiting, 0, "{log}");
    assert_eq!(place.read("arguments"), "-i -t\n");
    let mail = place.read("mail");
    assert!(mail.starts_with("To: root@example\nSubject: blockferry on "), "{mail}");
    assert!(mail.contains(": job db failed\n") && mail.contains("\n\nno route\n\n"), "{mail}");
}

#[test]
fn a_server_that_never_answers_holds_a_run_up_no_longer_than_its_limit() {
    // Bound, and accepted from when all is over: the kernel completes the connection, and nobody answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let place = Place::new(&format!("[[job.notify]]\non = [\"failed\", \"operator-needed\"]\nwebhook = \"http://127.0.0.1:{port}/x\""));
    let began = Instant::now();
    let operator = Event { what: Occasion::OperatorNeeded, ..failed("promoted") };
    assert_eq!(place.tell(&[failed("no route"), operator]), 2);
    assert!(began.elapsed() < 3 * blockferry::limits::NOTIFY_TIMEOUT, "{:?}", began.elapsed());
    listener.set_nonblocking(true).unwrap();
    listener.accept().expect("the one that was not answered");
    let again = listener.accept().map(drop).map_err(|cause| cause.kind());
    assert_eq!(again, Err(ErrorKind::WouldBlock), "both waited on the same way, which is asked once");
}
