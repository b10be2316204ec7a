//! How jobs are, as the real binary tells it: `status`, `monitor` and `metrics` over real pairs and books that were
//! written by hand.

#[path = "rig/ferry.rs"]
mod ferry;

use ferry::{Ended, Ferry, noise};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60_000;

/// An agent.toml with two jobs of this host: `db`, every hour, whose replica is there, and `web`, by hand, whose
/// replica is not.
struct Site {
    ferry: Ferry,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock of our days").as_millis() as u64
}

impl Site {
    fn new() -> Site {
        let ferry = Ferry::new();
        let (db, web) = (ferry.image("db", &noise(1, 300_000)), ferry.image("web", &noise(2, 300_000)));
        let (db_replica, web_replica) = (ferry.name("db-replica"), ferry.name("web-replica"));
        let text = format!(
            "[[receiver]]\nname = \"here\"\nlocal = true\n\
             [[job]]\nname = \"db\"\nreceivers = [\"here\"]\nevery = \"1h\"\nvolumes = [{{ source = \"{db}\", replica = \"{db_replica}\" }}]\n\
             [[job]]\nname = \"web\"\nreceivers = [\"here\"]\nvolumes = [{{ source = \"{web}\", replica = \"{web_replica}\" }}]\n"
        );
        fs::write(ferry.path("agent.toml"), text).unwrap();
        ferry.clone(&db, &db_replica, &[]);
        Site { ferry }
    }

    /// A command about this configuration.
    fn run(&self, arguments: &[&str]) -> Ended {
        self.ferry.run(&[arguments, &["--config", &self.ferry.name("agent.toml")]].concat())
    }

    fn json(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(&[arguments, &["--json"]].concat());
        ended.check_json();
        ended
    }

    fn job(&self, name: &str) -> Value {
        let jobs = self.json(&["status"]).of_type("job");
        jobs.into_iter().find(|job| job["job"] == name).expect("the job")
    }

    /// Writes a job's book, and with it the folder.
    fn book(&self, job: &str, mut book: Value) -> PathBuf {
        let folder = self.ferry.path("state").join("agent/jobs").join(job);
        fs::create_dir_all(&folder).unwrap();
        book["version"] = 1.into();
        fs::write(folder.join("book.json"), book.to_string()).unwrap();
        folder
    }

    /// A transfer of `db` that failed.
    fn failed(&self, exit: u8, message: &str) {
        let failure = json!({"exit": exit, "message": message});
        let leg = json!({
            "source": self.ferry.name("db"), "receiver": "here", "replica": self.ferry.name("db-replica"), "tried_ms": now_ms(),
            "failure": failure, "failures": 3,
        });
        let last = json!({"run_id": "r", "started_ms": now_ms() - MINUTE, "finished_ms": now_ms(), "failure": failure});
        let due = now_ms() + 30 * MINUTE;
        self.book("db", json!({"legs": [leg], "last": last, "failures": 3, "next_due_ms": due, "next_why": "retry"}));
    }

    /// Makes the replica of `db` so much older.
    fn age(&self, minutes: u64) {
        let path = self.ferry.pair("state", "sources").join("record");
        let text = fs::read_to_string(&path).unwrap();
        let (_, body) = text.split_once('\n').unwrap();
        let mut record: Value = serde_json::from_str(body).unwrap();
        record["source_time_ms"] = (now_ms() - minutes * MINUTE).into();
        let body = serde_json::to_string_pretty(&record).unwrap() + "\n";
        let check = crc32c::crc32c(body.as_bytes());
        fs::write(&path, format!("blockferry source record 1 crc32c {check:08x}\n{body}")).unwrap();
    }
}

fn codes(job: &Value) -> Vec<&str> {
    job["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

#[test]
fn status_tells_of_each_job_how_old_it_is_what_is_wrong_and_what_to_type() {
    let site = Site::new();
    let text = site.run(&["status"]).stdout;
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["JOB", "HEALTH", "DATA", "LAG", "NOW"]);
    assert_eq!(rows[1][..3], ["db", "warning", "current"], "{text}");
    assert!(text.contains("! agent-not-running: ") && text.contains("→ systemctl start blockferry-agent"), "{text}");
    assert!(text.contains("! never-copied: ") && text.contains("  → blockferry run web\n"), "{text}");
    // The pairs below, as ever.
    assert!(text.contains("\nsource  ") && text.contains("\nreplica "), "{text}");
    let long = text.lines().filter(|line| !line.contains('/')).find(|line| line.chars().count() > 80);
    assert_eq!(long, None, "{text}");

    let (db, web) = (site.job("db"), site.job("web"));
    assert_eq!((&db["data"], &db["role"], &db["activity"]["is"]), (&"current".into(), &"source".into(), &"idle".into()));
    assert!(db["lag_ms"].as_u64().unwrap() < 5 * MINUTE && db["lag_warning_ms"].as_u64().unwrap() == 90 * MINUTE, "{db}");
    assert_eq!(db["pairs"][0]["generation"], 1);
    assert!(db["pairs"][0]["source_time"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&web["data"], &web["lag_ms"], codes(&web)), (&"never-copied".into(), &Value::Null, vec!["never-copied"]));
    assert_eq!(web["next_command"], "blockferry run web");
    // One job alone: nothing of the others, nothing of the pairs.
    let one = site.run(&["status", "web"]).stdout;
    assert!(one.contains("web ") && !one.contains("db ") && !one.contains("relationship"), "{one}");
    site.run(&["status", "wbe"]).says(2, &["there is no job \"wbe\"; there is db, web"]);
    // Who looks leaves nothing behind.
    assert!(!site.ferry.path("state/agent").exists());
    // A configuration that is named must be there.
    site.ferry.run(&["status", "--config", "/no/agent.toml"]).says(2, &["/no/agent.toml"]);
}

#[test]
fn lag_failures_and_operators_needed_reach_the_one_line_of_monitor() {
    let site = Site::new();
    let monitor = |arguments: &[&str]| {
        let ended = site.run(&[&["monitor"], arguments].concat());
        assert_eq!((ended.stderr.as_str(), ended.stdout.lines().count()), ("", 1), "{ended:?}");
        (ended.code.unwrap(), ended.stdout)
    };
    site.age(100);
    let (code, line) = monitor(&["db"]);
    assert!(code == 1 && line.starts_with("BLOCKFERRY WARNING - db lag-warning: "), "{line}");
    let (lag, limits) = line.split_once(" | 'db'=").and_then(|(_, data)| data.split_once("s;")).unwrap();
    assert!((6000..6300).contains(&lag.parse().unwrap()) && limits.starts_with("5400;10800;0"), "{line}");
    site.age(200);
    let (code, line) = monitor(&[]);
    assert!(code == 2 && line.starts_with("BLOCKFERRY CRITICAL - db lag-critical: "), "{line}");
    assert!(line.ends_with("'web'=U;;;0\n"), "{line}");
    site.age(0);
    site.failed(6, "it was promoted | there: `blockferry resync --discard e:1 /r`");
    let (code, line) = monitor(&["db"]);
    assert!(code == 2 && line.contains("operator-needed") && line.matches('|').count() == 1, "{line}");
    let job = site.job("db");
    assert_eq!((&job["data"], &job["next_command"]), (&"diverged".into(), &"blockferry resync --discard e:1 /r".into()));
    assert_eq!(job["activity"]["is"], "retrying");
    assert_eq!(job["last_error"]["exit"], 6);
}

#[test]
fn monitor_says_unknown_where_it_cannot_look() {
    let site = Site::new();
    let unknown = |ended: Ended, word: &str| {
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(word), "{ended:?}");
    };
    unknown(site.run(&["monitor", "nobody"]), "BLOCKFERRY UNKNOWN - there is no job");
    unknown(site.run(&["monitor", "--frob"]), "--frob");
    unknown(site.ferry.run(&["monitor", "--config", "/no/agent.toml"]), "BLOCKFERRY UNKNOWN - read /no/agent.toml");
    unknown(Ferry::new().run(&["monitor"]), "nothing to look at");
    // A book that is damaged hides no alarm and is none.
    let folder = site.book("web", json!({}));
    fs::write(folder.join("book.json"), "{").unwrap();
    unknown(site.run(&["monitor", "web"]), "state-unreadable");
    // On a receiver's host there are no jobs, but replicas.
    let ended = site.ferry.run(&["monitor"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "BLOCKFERRY OK - 1 replica\n"));
    assert_eq!(site.ferry.run(&["promote", &site.ferry.name("db-replica")]).code, Some(0));
    let ended = site.ferry.run(&["monitor"]);
    assert!(ended.code == Some(1) && ended.stdout.starts_with("BLOCKFERRY WARNING - promoted: "), "{ended:?}");
}

/// A look takes no lock, waits for none and keeps nobody from taking one.
#[test]
fn who_looks_waits_for_nobody_and_sees_who_runs() {
    let site = Site::new();
    let started = now_ms() - MINUTE;
    let folder = site.book("db", json!({"running": {"run_id": "r", "pid": std::process::id(), "started_ms": started}}));
    let lock = |path: PathBuf| {
        let file = fs::File::options().create(true).truncate(true).write(true).open(path).unwrap();
        file.lock().unwrap();
        std::io::Write::write_all(&mut &file, format!("{}\n", std::process::id()).as_bytes()).unwrap();
        file
    };
    let _held =
        [lock(folder.join("lock")), lock(site.ferry.path("state/agent/lock")), lock(site.ferry.pair("state", "sources").join("lock"))];
    let began = std::time::Instant::now();
    let job = site.job("db");
    assert_eq!((&job["activity"]["is"], job["activity"]["pid"].as_u64()), (&"running".into(), Some(u64::from(std::process::id()))));
    assert_eq!(site.run(&["monitor", "db"]).code, Some(1));
    // Who waits for a lock does so for a minute.
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[test]
fn a_run_that_waits_for_its_volumes_to_be_idle_says_so() {
    let site = Site::new();
    let text = fs::read_to_string(site.ferry.path("agent.toml")).unwrap();
    fs::write(site.ferry.path("agent.toml"), text.replace("every = \"1h\"", "every = \"1h\"\nquiet_after = \"10s\"")).unwrap();
    let mut run = site.ferry.start(&["run", "db", "--config", &site.ferry.name("agent.toml")]);
    let mut seen = Vec::new();
    while run.try_wait().unwrap().is_none() {
        seen.push(site.job("db")["activity"]["is"].as_str().unwrap().to_owned());
        assert!(seen.len() < 1000, "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(run.wait().unwrap().success() && seen.iter().any(|activity| activity == "quiet-wait"), "{seen:?}");
    assert_ne!(site.job("db")["activity"]["is"], "quiet-wait");
}

#[test]
fn jobs_that_are_gone_from_the_configuration_are_named() {
    let site = Site::new();
    site.book("old", json!({}));
    let text = site.run(&["status"]).stdout;
    assert!(text.contains("not-configured: job old is in no configuration any more") && text.contains("agent/jobs/old\n"), "{text}");
    assert_eq!(site.json(&["status"]).of_type("note")[0]["code"], "not-configured");
    // And are no alarm: 1 is that of the agent that does not run.
    assert_eq!(site.run(&["monitor", "db"]).code, Some(1));
}

#[test]
fn figures_are_those_of_the_moment_and_replace_their_file() {
    let site = Site::new();
    let text = site.run(&["metrics"]).stdout;
    assert!(text.contains("\nblockferry_job_health{blockferry_job=\"db\"} 1\n") && text.contains("\nblockferry_agent_up 0\n"), "{text}");
    let file = site.ferry.name("figures.prom");
    fs::write(&file, "old").unwrap();
    assert_eq!(site.run(&["metrics", "--textfile", &file]).code, Some(0));
    let written = fs::read_to_string(&file).unwrap();
    assert!(
        written.contains("blockferry_job_reason{blockferry_job=\"db\",reason=\"agent-not-running\",level=\"warning\"} 1\n"),
        "{written}"
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let metrics = site.json(&["metrics"]).of_type("metric");
    let lag = metrics
        .iter()
        .find(|metric| metric["name"] == "blockferry_pair_lag_seconds" && metric["labels"]["blockferry_job"] == "db")
        .unwrap();
    assert!(lag["value"].as_f64().unwrap() < 300.0 && lag["labels"]["receiver"] == "here", "{lag}");
    site.run(&["metrics", "--textfile", "/no/such/folder/x"]).says(10, &["/no/such/folder"]);
}

#[test]
fn watching_looks_again_until_a_signal_comes() {
    let site = Site::new();
    let config = site.ferry.name("agent.toml");
    let mut child = site.ferry.start(&["status", "db", "--watch", "1", "--config", &config]);
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    let (sender, tables) = channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        while printed.read_line(&mut text).unwrap() > 0 {
            if text.matches("JOB ").count() >= 2 {
                let _ = sender.send(());
            }
        }
        text
    });
    let looked_again = tables.recv_timeout(Duration::from_secs(120)).is_ok();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < until || child.kill().is_err(), "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(child.wait().unwrap().success());
    let text = reader.join().unwrap();
    assert!(looked_again && !text.contains('\x1b'), "{text}");
    assert_eq!(site.run(&["status", "--watch", "0"]).code, Some(2));
}
