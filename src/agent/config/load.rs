//! Reading agent.toml and what lies in conf.d beside it.

use super::check::check;
use super::doubts::doubts;
use super::job::Job;
use super::span::Span;
use super::typed::{AgentFile, Defaults, Metrics, RetryEntry, SnapshotEntry};
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{AGENT_RUNS_DEFAULT, CONNECT_TIMEOUT, QUIET_WAIT_MAX, RETRY_INITIAL, RETRY_MAX, STALL_TIMEOUT, TRANSFERS_DEFAULT};
use crate::sender::{Compress, Shards};
use crate::settings::parse;
use crate::transport::lanes::Connections;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is in effect.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The state directory; `--state-dir` goes before it.
    pub state_dir: Option<PathBuf>,
    /// Runs at once.
    pub max_runs: usize,
    /// Where figures are given out.
    pub metrics: Option<Metrics>,
    /// What is replicated, in the order of the files.
    pub jobs: Vec<Job>,
    /// All of it as it would be typed, defaults included.
    typed: AgentFile,
}

impl AgentConfig {
    /// Reads and checks agent.toml and, in the order of their names, `conf.d/*.toml` beside it.
    pub fn load(path: &Path) -> Result<AgentConfig> {
        let hint = || format!("read {} (`blockferry config example` prints one to begin with)", path.display());
        let mut texts = vec![(path.to_owned(), std::fs::read_to_string(path).context(Kind::Usage, hint)?)];
        let folder = path.parent().unwrap_or(Path::new("")).join("conf.d");
        if folder.is_dir() {
            let what = || format!("read {}", folder.display());
            let mut pieces: Vec<PathBuf> =
                std::fs::read_dir(&folder).context(Kind::Usage, what)?.flatten().map(|entry| entry.path()).collect();
            pieces.retain(|piece| piece.extension().is_some_and(|ending| ending == "toml"));
            pieces.sort();
            for piece in pieces {
                let text = std::fs::read_to_string(&piece).context(Kind::Usage, || format!("read {}", piece.display()))?;
                texts.push((piece, text));
            }
        }
        let texts: Vec<(String, String)> = texts.into_iter().map(|(path, text)| (path.display().to_string(), text)).collect();
        AgentConfig::parse(&texts)
    }

    /// Reads and checks the texts of files, each with its name.
    pub fn parse(texts: &[(String, String)]) -> Result<AgentConfig> {
        let mut all = AgentFile::default();
        // Where each job and each receiver was typed: a mistake is named with its file.
        let mut places = BTreeMap::new();
        for (name, text) in texts {
            let file: AgentFile = parse(text, name)?;
            file.jobs.iter().for_each(|job| {
                places.entry(job.name.clone()).or_insert_with(|| name.clone());
            });
            merge(&mut all, file).map_err(|what| Error::new(Kind::Usage, format!("{name}: {what}")))?;
        }
        complete(&mut all);
        let first = texts.first().map_or("agent.toml", |(name, _)| name);
        check(&all).map_err(|(job, what)| {
            let (place, job) = match job {
                Some(job) => (places.get(&job).map_or(first, String::as_str), format!("job \"{job}\": ")),
                None => (first, String::new()),
            };
            Error::new(Kind::Usage, format!("{place}: {job}{what}"))
        })?;
        let mut jobs = Vec::new();
        for entry in &all.jobs {
            let place = places.get(&entry.name).map_or(first, String::as_str);
            let wrong = |what| Error::new(Kind::Usage, format!("{place}: job \"{}\": {what}", entry.name));
            jobs.push(Job::from_entry(entry, &all.receivers).map_err(wrong)?);
        }
        Ok(AgentConfig {
            state_dir: all.state_dir.clone(),
            max_runs: all.max_runs.unwrap_or(AGENT_RUNS_DEFAULT),
            metrics: all.metrics.clone(),
            jobs,
            typed: all,
        })
    }

    /// The job of this name.
    pub fn job(&self, name: &str) -> Result<&Job> {
        self.jobs.iter().find(|job| job.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.jobs.iter().map(|job| job.name.as_str()).collect();
            Error::new(
                Kind::Usage,
                format!("there is no job \"{name}\"; there is {}", if names.is_empty() { "none".into() } else { names.join(", ") }),
            )
        })
    }

    /// What is allowed but deserves a word.
    pub fn warnings(&self) -> Vec<String> {
        doubts(&self.jobs)
    }

    /// What is in effect, as one file.
    pub fn show(&self) -> Result<String> {
        toml::to_string(&self.typed).context(Kind::Failed, || "write the configuration")
    }
}

/// Adds a file to what was read before it. What can be said once is said in one file only.
fn merge(all: &mut AgentFile, file: AgentFile) -> Result<(), String> {
    fn once<T>(what: &str, all: &mut Option<T>, new: Option<T>) -> Result<(), String> {
        match (&all, new) {
            (Some(_), Some(_)) => Err(format!("{what} is set in a file before this one already")),
            (None, Some(value)) => {
                *all = Some(value);
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }
    once("state_dir", &mut all.state_dir, file.state_dir)?;
    once("max_runs", &mut all.max_runs, file.max_runs)?;
    once("[metrics]", &mut all.metrics, file.metrics)?;
    let mut defaults = (!all.defaults.is_empty()).then(|| std::mem::take(&mut all.defaults));
    once("[defaults]", &mut defaults, (!file.defaults.is_empty()).then_some(file.defaults))?;
    all.defaults = defaults.unwrap_or_default();
    all.receivers.extend(file.receivers);
    all.jobs.extend(file.jobs);
    Ok(())
}

/// Fills in what was not typed: `[defaults]` first, then those of the program.
pub fn complete(file: &mut AgentFile) {
    file.max_runs.get_or_insert(AGENT_RUNS_DEFAULT);
    let built_in = Defaults {
        compress: Some(Compress::Auto),
        shards: Some(Shards::Auto),
        connections: Some(Connections::Auto),
        connect_timeout: Some(Span(CONNECT_TIMEOUT)),
        stall_timeout: Some(Span(STALL_TIMEOUT)),
        retry: Some(RetryEntry { initial: Span(RETRY_INITIAL), max: Span(RETRY_MAX), jitter: 0.3 }),
        bandwidth: None,
        max_concurrent: Some(TRANSFERS_DEFAULT),
        persistent: Some(true),
        random_delay: None,
        idle_too: Some(false),
        snapshot: None,
        notify: Vec::new(),
    };
    let defaults = file.defaults.clone();
    for job in &mut file.jobs {
        for from in [&defaults, &built_in] {
            job.compress = job.compress.or(from.compress);
            job.shards = job.shards.or(from.shards);
            job.connections = job.connections.or(from.connections);
            job.connect_timeout = job.connect_timeout.or(from.connect_timeout);
            job.stall_timeout = job.stall_timeout.or(from.stall_timeout);
            job.retry = job.retry.or(from.retry);
            job.bandwidth = job.bandwidth.take().or_else(|| from.bandwidth.clone());
            job.max_concurrent = job.max_concurrent.or(from.max_concurrent);
            job.persistent = job.persistent.or(from.persistent);
            job.random_delay = job.random_delay.or(from.random_delay);
            job.idle_too = job.idle_too.or(from.idle_too);
            job.snapshot = overlay(job.snapshot.take(), from.snapshot.as_ref());
            if job.notify.is_empty() {
                job.notify.clone_from(&from.notify);
            }
        }
        if job.quiet_after.is_some() {
            job.quiet_wait_max.get_or_insert(Span(QUIET_WAIT_MAX));
        }
    }
}

/// A job that says one thing of its snapshots keeps the rest of the defaults.
fn overlay(own: Option<SnapshotEntry>, from: Option<&SnapshotEntry>) -> Option<SnapshotEntry> {
    match (own, from) {
        (Some(own), Some(from)) => Some(SnapshotEntry {
            when: own.when.or(from.when),
            size: own.size.or(from.size),
            min_vg_free: own.min_vg_free.or(from.min_vg_free),
            on_overflow: own.on_overflow.or(from.on_overflow),
        }),
        (own, from) => own.or_else(|| from.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::EXAMPLE;
    use super::*;
    use crate::agent::config::{Trigger, Way};
    use std::time::Duration;

    fn one(text: &str) -> Result<AgentConfig> {
        AgentConfig::parse(&[("a.toml".to_owned(), text.to_owned())])
    }

    const LEAST: &str = r#"
        [[receiver]]
        name = "dr1"
        address = "dr1.example"
        [[job]]
        name = "db"
        receivers = ["dr1"]
        volumes = [{ source = "/dev/vg0/db", replica = "db" }]
    "#;

    #[test]
    fn the_example_is_valid_and_survives_being_shown() {
        let config = one(EXAMPLE).unwrap();
        let names: Vec<&str> = config.jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["db", "web", "usb", "chain"]);
        assert_eq!(config.jobs[0].volumes.len(), 2);
        assert_eq!(config.jobs[0].receivers.len(), 2);
        let shown = config.show().unwrap();
        let again = one(&shown).unwrap();
        assert_eq!(again.show().unwrap(), shown);
    }

    #[test]
    fn what_is_not_typed_has_a_default() {
        let config = one(LEAST).unwrap();
        let job = config.job("db").unwrap();
        assert_eq!((&job.trigger, job.max_concurrent, job.retry.initial), (&Trigger::Manual, TRANSFERS_DEFAULT, Duration::from_secs(30)));
        assert!(matches!(&job.receivers[0].way, Way::Daemon { address, pin: None } if address == "dr1.example"));
        let with = one(&format!("[defaults]\nmax_concurrent = 7\nsnapshot = {{ size = \"fixed:8GiB\" }}\n{LEAST}snapshot = {{ on_overflow = \"retry-larger\" }}\n")).unwrap();
        assert_eq!(with.jobs[0].max_concurrent, 7);
        assert_eq!(with.jobs[0].snapshot.snapshots.policy.size.to_string(), "fixed:8GiB");
        assert!(config.job("dv").unwrap_err().chain().contains("there is db"));
    }

    #[test]
    fn a_volume_says_whether_it_may_be_idle_before_its_job_does_and_the_job_before_all() {
        let said = |defaults: &str, job: &str, volume: &str| {
            let text = LEAST.replace("replica = \"db\"", &format!("replica = \"db\"{volume}"));
            one(&format!("{defaults}{text}{job}\n")).unwrap().jobs[0].volumes[0].idle_too
        };
        let (all, job, not) = ("[defaults]\nidle_too = true\n", "idle_too = true", ", idle_too = false");
        assert!(!said("", "", "") && said(all, "", "") && said("", job, "") && said("", "", ", idle_too = true"));
        assert!(!said(all, "idle_too = false", "") && !said(all, job, not));
    }

    #[test]
    fn a_mistake_is_named_with_its_file_line_and_job() {
        let said = |from: &str, to: &str| {
            assert!(EXAMPLE.contains(from), "{from}");
            one(&EXAMPLE.replacen(from, to, 1)).unwrap_err().chain()
        };
        let unknown = said("random_delay", "random_dealy");
        assert!(unknown.starts_with("a.toml:") && unknown.ends_with("did you mean `random_delay`?"), "{unknown}");
        assert!(
            said("receivers = [\"dr1\", \"dr2\"]", "receivers = [\"dr9\"]").contains("job \"db\": there is no [[receiver]] called \"dr9\"")
        );
        assert!(said("name = \"web\"", "name = \"db\"").contains("two jobs are called \"db\""));
        assert!(said("slice = \"1/4\"", "slice = \"4\"").contains("is not of the form \"1/4\""));
        assert!(said("*-*-* *:0/15", "*-*-* *:0/150").contains("is no calendar"));
        assert!(said("cron = \"0 2 * * *\"", "cron = \"0 2 * *\"").starts_with("a.toml:"));
        assert!(said("to = \"06:00\"", "to = \"26:00\"").contains("is no time of day"));
        assert!(said("limit = \"20MiB/s\"", "limit = \"20MiB\"").contains("is no rate"));
        assert!(said("stall_timeout = \"2min\"", "stall_timeout = \"2s\"").contains("job \"db\": stall_timeout must be 5 s at least"));
        assert!(said("\"lag-critical\"", "\"lag-critcal\"").contains("did you mean `lag-critical`?"));
        let page = "exec = [\"/usr/local/bin/page\"]";
        assert!(said(page, "webhook = \"chat.example/x\"").contains("job \"db\": notify: webhook is an address"));
        assert!(said(page, "mail = \"root\\nBcc: all\"").contains("job \"db\": notify: mail is an address"));
        assert!(said(page, "mail = \"root\"\nexec = [\"x\"]").contains("one of exec, webhook and mail"));
        let listen = "listen = \"127.0.0.1:9742\"";
        for wrong in ["127.0.0.1", "127.0.0.1:97420", ":9742", "127.0.0.1:", "::1:9742"] {
            assert!(said(listen, &format!("listen = \"{wrong}\"")).contains("is not of the form \"ADDRESS:PORT\""), "{wrong}");
        }
        assert!(said(listen, "textfile = \"figures.prom\"").contains("textfile = \"figures.prom\" is not an absolute path"));
        assert!(said("\"/var/lib/blockferry\"", "\"blockferry\"").contains("state_dir = \"blockferry\" is not an absolute path"));
        assert!(said("dr1.example:7420", "dr1.example:74200").contains("receiver \"dr1\": address = \"dr1.example:74200\" has a port"));
        for wrong in ["vm.img", "./images/vm.img", "srv/images/vm.img", "../vm.img"] {
            assert!(said("/srv/images/vm.img", wrong).contains("job \"usb\": source \""), "{wrong}");
        }
        let twice = LEAST.replace("name = \"db\"", "name = \"db\"\nevery = \"1h\"\ncron = \"0 * * * *\"");
        assert!(one(&twice).unwrap_err().chain().contains("only one of"));
        let two_ways = LEAST.replace("address = \"dr1.example\"", "address = \"dr1.example\"\nssh = \"x\"");
        assert!(one(&two_ways).unwrap_err().chain().contains("receiver \"dr1\": one of address, ssh and local"));
        let again = LEAST.replace("[{ source", "[{ source = \"/dev/vg0/other\", replica = \"db\" }, { source");
        assert!(one(&again).unwrap_err().chain().contains("is the replica of two volumes"));
    }

    #[test]
    fn pieces_are_merged_and_what_is_said_twice_is_a_mistake() {
        let piece = LEAST
            .replace("[[receiver]]\n        name = \"dr1\"\n        address = \"dr1.example\"", "")
            .replace("\"db\"", "\"web\"")
            .replace("vg0/db", "vg0/web");
        let files = |a: &str, b: &str| AgentConfig::parse(&[("a.toml".into(), a.into()), ("conf.d/b.toml".into(), b.into())]);
        assert_eq!(files(LEAST, &piece).unwrap().jobs.len(), 2);
        let wrong = files(LEAST, &piece.replace("dr1", "dr3")).unwrap_err().chain();
        assert!(wrong.starts_with("conf.d/b.toml: job \"web\""), "{wrong}");
        let twice = files(&format!("max_runs = 1\n{LEAST}"), "max_runs = 2").unwrap_err().chain();
        assert_eq!(twice, "conf.d/b.toml: max_runs is set in a file before this one already");
    }
}
