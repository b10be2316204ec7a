//! What `--json` prints is what docs/schemas says: real output of the program is held to every file there, key by key.

#[path = "rig/ferry.rs"]
mod ferry;
#[path = "rig/schema.rs"]
mod schema;

use ferry::{Ferry, change_blocks, noise};
use schema::Schemas;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;

#[test]
fn every_command_has_a_schema_and_every_schema_a_command() {
    let help = Ferry::new().run(&["--help"]).stdout;
    let listed = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let commands: BTreeSet<&str> =
        listed.lines().filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    // Those that print no JSON lines of their own: a daemon's log is no result.
    let silent = BTreeSet::from(["agent", "help", "receiver"]);
    let schemas = Schemas::load();
    let described: BTreeSet<&str> = schemas.commands().into_iter().collect();
    assert_eq!(described, &commands - &silent);
}

#[test]
fn what_is_printed_is_what_is_described() {
    let schemas = Schemas::load();
    let ferry = Ferry::new();
    let (source, target) = (ferry.image("source", &noise(1, 3 << 20)), ferry.name("target"));
    let config = ferry.name("agent.toml");
    let job = |name: &str, lines: &str| {
        format!(
            "[[job]]\nname = \"{name}\"\nreceivers = [\"here\"]\n{lines}\nvolumes = [{{ source = \"{source}\", replica = \"{target}{name}\" }}]\n"
        )
    };
    let text = format!(
        "[[receiver]]\nname = \"here\"\nlocal = true\n{}{}",
        job("", "every = \"1h\"").replace("name = \"\"", "name = \"db\""),
        job("web", "")
    );
    fs::write(&config, text).unwrap();
    let mut seen = BTreeSet::new();
    let mut check = |code: i32, arguments: &[&str]| {
        let ended = ferry.json(arguments);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        for line in ended.lines() {
            schemas.check(arguments[0], &line).unwrap_or_else(|what| panic!("docs/schemas/{what}"));
            seen.insert(format!("{} {}", arguments[0], line["type"].as_str().unwrap()));
        }
        ended
    };
    check(0, &["clone", &source, &target, "--dry-run"]);
    check(0, &["clone", &source, &target]);
    check(8, &["clone", &source, &source]);
    change_blocks(&source, [7, 300]);
    check(7, &["verify", &source, &target]);
    check(0, &["verify", &source, &target, "--repair"]);
    check(0, &["manifest", "show", ferry.pair("state", "replicas").join("manifest").to_str().unwrap()]);
    check(0, &["manifest", "check", ferry.pair("state", "replicas").join("manifest").to_str().unwrap()]);
    let held = fs::File::options().write(true).open(ferry.pair("state", "replicas").join("lock")).unwrap();
    held.lock().unwrap();
    check(0, &["doctor"]);
    drop(held);
    fs::write(ferry.pair("state", "replicas").join("manifest.next"), "left").unwrap();
    check(1, &["doctor"]);
    check(0, &["doctor", "--fix"]);
    check(0, &["resync", &target]);
    check(0, &["pair", "key"]);
    check(0, &["pair", "invite", "--replica", "db", "--address", "localhost:1"]);
    check(0, &["pair", "list"]);
    check(2, &["config", "check", "--receiver", "--config", "/no/receiver.toml"]);

    // A job that nothing is known of, and one of which everything is: every key of it has a value.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let folder = ferry.path("state/agent/jobs/db");
    fs::create_dir_all(&folder).unwrap();
    let failure = json!({"exit": 4, "message": "dr1 is away"});
    let leg = json!({"source": source, "receiver": "here", "replica": target, "tried_ms": now, "failure": failure, "failures": 2});
    let book = |paused: serde_json::Value| {
        json!({
            "version": 1, "last": {"run_id": "r", "started_ms": now, "finished_ms": now, "failure": failure}, "last_success_ms": now,
            "failures": 2, "next_due_ms": now + 60_000, "next_why": "retry", "skipped_ticks": 3, "paused": paused, "legs": [leg],
            "verify": {"done": 1, "last_ms": now, "whole_ms": null, "failure": null},
        })
    };
    fs::create_dir_all(ferry.path("state/agent/jobs/old")).unwrap();
    for paused in [json!(null), json!({"since_ms": now, "until_ms": now + 60_000, "by": "ann", "reason": "move"})] {
        fs::write(folder.join("book.json"), book(paused).to_string()).unwrap();
        check(0, &["status", "--config", &config]);
    }
    check(1, &["monitor", "--config", &config]);
    check(0, &["metrics", "--config", &config]);
    jobs(&ferry, &mut check);
    let line = |started: u64, result: serde_json::Value, failure: serde_json::Value| {
        let mut leg = json!({"source": source, "receiver": "here", "replica": target, "relationship": null, "seconds": 0.5});
        leg.as_object_mut().unwrap().extend(result.as_object().unwrap().clone());
        json!({"run_id": "r", "job": "db", "cause": "schedule", "started_ms": started, "finished_ms": started + 5, "legs": [leg], "failure": failure}).to_string() + "\n"
    };
    let amounts = json!({"read_bytes": 1, "changed_extents": 1, "sent_blocks": 1, "plain_bytes": 1, "wire_bytes": 1, "written_bytes": 1, "healed_extents": 0});
    let mut committed = json!({"result": "committed", "generation": 2, "source_time_ms": now, "mode": "journal"});
    committed.as_object_mut().unwrap().extend(amounts.as_object().unwrap().clone());
    let history = line(now, committed, json!(null))
        + &line(now + 1, json!({"result": "idle", "generation": 2}), json!(null))
        + &line(now + 2, json!({"result": "failed", "exit": 4, "message": "no"}), json!(null))
        + &line(now + 3, json!({"result": "passed-over", "why": "an operator is waited for"}), failure);
    fs::write(ferry.path("state/agent/history.jsonl"), history).unwrap();
    check(0, &["history", "--config", &config]);
    check(0, &["promote", &target]);
    check(0, &["status"]);

    // Every kind of line that is described has been seen, but for those that take a second host or long work.
    let of_schemas: BTreeSet<String> = schemas.kinds();
    let elsewhere = [
        "pair client",
        "pair receiver",
        "pair summary",
        "clone progress",
        "verify progress",
        "run progress",
        "plan progress",
        "plan removed",
    ];
    let unseen: Vec<&String> =
        of_schemas.difference(&seen).filter(|kind| !elsewhere.contains(&kind.as_str()) && !kind.ends_with(" error")).collect();
    assert!(unseen.is_empty(), "described and never seen: {unseen:?}");
}

/// Every end that a volume of a job can come to.
fn jobs(ferry: &Ferry, check: &mut dyn FnMut(i32, &[&str]) -> ferry::Ended) {
    let config = ferry.name("jobs.toml");
    let (near, taken) = (ferry.image("near", &noise(4, 1 << 20)), ferry.image("taken", &noise(5, 1 << 20)));
    let away = ferry.name("away");
    let volume = |source: &str, replica: &str| format!("{{ source = \"{source}\", replica = \"{replica}\" }}");
    let text = format!(
        "[[receiver]]\nname = \"here\"\nlocal = true\n[[job]]\nname = \"jobs\"\nreceivers = [\"here\"]\nvolumes = [{}, {}, {}]\n[[job.hook]]\nrun = [\"true\"]\n",
        volume(&near, &ferry.name("near.copy")),
        volume(&near, &taken),
        volume(&away, &ferry.name("away.copy")),
    );
    fs::write(&config, text).unwrap();
    check(3, &["plan", "jobs", "--config", &config]);
    check(3, &["run", "jobs", "--scheduled", "--config", &config]);
    check(3, &["run", "jobs", "--scheduled", "--config", &config]);
    check(0, &["plan", "jobs", "--brief", "--scheduled", "--config", &config]);
    check(0, &["pause", "jobs", "--for", "1h", "--reason", "move", "--config", &config]);
    check(0, &["resume", "jobs", "--config", &config]);
    check(0, &["abort", "jobs", "--config", &config]);
    check(2, &["run", "nope", "--config", &config]);
}

/// The checker must be able to say no.
#[test]
fn a_line_that_is_not_described_is_found() {
    let schemas = Schemas::load();
    let said = |line: serde_json::Value| schemas.check("monitor", &line).unwrap_err();
    let good = json!({"type": "summary", "command": "monitor", "health": "ok", "message": "m", "performance": ["'a'=1s;;;0"]});
    assert_eq!(schemas.check("monitor", &good), Ok(()));
    let with = |key: &str, value: serde_json::Value| {
        let mut line = good.clone();
        line[key] = value;
        line
    };
    assert!(said(with("health", json!("fine"))).contains("is none of"));
    assert!(said(with("lag", json!(1))).contains("the key lag is not described"));
    assert!(said(with("performance", json!([1]))).contains("is not of the type"));
    assert!(said(json!({"type": "summary", "command": "monitor", "health": "ok", "message": "m"})).contains("performance is missing"));
    assert!(said(json!({"type": "frob"})).contains("is not"));
    assert!(
        schemas
            .check(
                "status",
                &json!({"type": "source", "relationship": "x", "source": "", "target": "", "generation": 1, "source_time": ""})
            )
            .is_err()
    );
}
