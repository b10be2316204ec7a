//! What the types of agent.toml do not say: names that are found, pairs that are one job's alone.

use super::typed::{AgentFile, JobEntry, Metrics, NotifyEntry};
use crate::limits::STALL_TIMEOUT_MIN;
use crate::settings::check_name;
use crate::transport::tcp;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// The job that is wrong, if one is, and what is.
type Wrong = (Option<String>, String);

/// Whether all of it makes sense together.
pub fn check(file: &AgentFile) -> Result<(), Wrong> {
    let mut names = BTreeSet::new();
    if let Some(folder) = file.state_dir.as_ref().filter(|folder| !folder.is_absolute()) {
        return Err((None, format!("state_dir = \"{}\" is not an absolute path", folder.display())));
    }
    file.metrics.as_ref().map_or(Ok(()), check_metrics).map_err(|what| (None, what))?;
    for receiver in &file.receivers {
        check_name("receiver", &receiver.name).map_err(|what| (None, what))?;
        if let Some(address) = receiver.address.as_ref().filter(|address| port_of(&tcp::with_port(address)).is_none()) {
            return Err((None, format!("receiver \"{}\": address = \"{address}\" has a port that is none", receiver.name)));
        }
        if !names.insert(&receiver.name) {
            return Err((None, format!("two receivers are called \"{}\"", receiver.name)));
        }
    }
    if file.max_runs == Some(0) {
        return Err((None, "max_runs must not be zero".to_owned()));
    }
    let (mut jobs, mut replicas) = (BTreeSet::new(), BTreeSet::new());
    for job in &file.jobs {
        check_name("job", &job.name).map_err(|what| (None, what))?;
        if !jobs.insert(&job.name) {
            return Err((None, format!("two jobs are called \"{}\"", job.name)));
        }
        check_job(job).map_err(|what| (Some(job.name.clone()), what))?;
        for (receiver, volume) in job.receivers.iter().flat_map(|receiver| job.volumes.iter().map(move |volume| (receiver, volume))) {
            if !replicas.insert((receiver.clone(), volume.replica.clone())) {
                let what = format!("replica \"{}\" at {receiver} is the replica of two volumes", volume.replica);
                return Err((Some(job.name.clone()), what));
            }
        }
    }
    Ok(())
}

fn check_metrics(metrics: &Metrics) -> Result<(), String> {
    if let Some(listen) = metrics.listen.as_ref().filter(|listen| port_of(listen).is_none()) {
        return Err(format!("[metrics] listen = \"{listen}\" is not of the form \"ADDRESS:PORT\" with a port of 65535 at most"));
    }
    match metrics.textfile.as_ref().filter(|file| !file.is_absolute()) {
        Some(file) => Err(format!("[metrics] textfile = \"{}\" is not an absolute path", file.display())),
        None => Ok(()),
    }
}

/// The port of `ADDRESS:PORT`, where that is what it is.
fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':').filter(|(host, _)| !host.is_empty())?;
    let is_plain = !host.contains(':') || host.starts_with('[') && host.ends_with(']');
    port.parse().ok().filter(|_| is_plain)
}

/// Whoever runs a job stands in a folder of his own: a source that went by it would be another one each time.
fn is_found_from_anywhere(source: &Path) -> bool {
    let names_of_lvm2 = || source.components().count() == 2 && source.components().all(|part| matches!(part, Component::Normal(_)));
    source.is_absolute() || names_of_lvm2()
}

fn check_job(job: &JobEntry) -> Result<(), String> {
    let nothing = [("receivers", job.receivers.is_empty()), ("volumes", job.volumes.is_empty())];
    if let Some((what, _)) = nothing.iter().find(|(_, is_empty)| *is_empty) {
        return Err(format!("{what} names nothing"));
    }
    if job.receivers.iter().collect::<BTreeSet<_>>().len() != job.receivers.len() {
        return Err("receivers names one twice".to_owned());
    }
    if job.volumes.iter().any(|volume| volume.source.as_os_str().is_empty() || volume.replica.is_empty()) {
        return Err("a volume has a source and a replica".to_owned());
    }
    if let Some(volume) = job.volumes.iter().find(|volume| !is_found_from_anywhere(&volume.source)) {
        return Err(format!("source \"{}\" is neither an absolute path nor a logical volume as vg/name", volume.source.display()));
    }
    if job.max_concurrent == Some(0) {
        return Err("max_concurrent must not be zero".to_owned());
    }
    if job.every.is_some_and(|span| span.0.is_zero()) {
        return Err("every must not be zero: continuous = true runs back to back".to_owned());
    }
    if job.pause.is_some() && !job.continuous {
        return Err("pause is the time between the passes of a continuous job: continuous = true is missing".to_owned());
    }
    if job.stall_timeout.is_some_and(|span| span.0 < STALL_TIMEOUT_MIN) {
        return Err(format!("stall_timeout must be {} s at least: a busy peer says so every two", STALL_TIMEOUT_MIN.as_secs()));
    }
    if job.hooks.iter().any(|hook| hook.run.is_empty()) {
        return Err("a hook runs nothing".to_owned());
    }
    job.notify.iter().try_for_each(check_notify)?;
    if let Some(retry) = &job.retry
        && (retry.initial.0.is_zero() || retry.max < retry.initial || !(0.0..=1.0).contains(&retry.jitter))
    {
        return Err("retry: initial is more than zero, max no less, jitter from 0 to 1".to_owned());
    }
    Ok(())
}

fn check_notify(entry: &NotifyEntry) -> Result<(), String> {
    if entry.on.is_empty() {
        return Err("notify: on names nothing".to_owned());
    }
    match (&entry.exec, &entry.webhook, &entry.mail) {
        (Some(exec), None, None) if exec.is_empty() => Err("notify: exec runs nothing".to_owned()),
        (Some(_), None, None) => Ok(()),
        (None, Some(url), None) => match url.parse::<ureq::http::Uri>() {
            Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => Ok(()),
            _ => Err("notify: webhook is an address that begins with https:// or http://".to_owned()),
        },
        // What follows a line break would be a header of the mail.
        (None, None, Some(address)) if address.is_empty() || address.chars().any(char::is_control) => {
            Err("notify: mail is an address, or a name that the local mail server knows".to_owned())
        }
        (None, None, Some(_)) => Ok(()),
        _ => Err("notify: one of exec, webhook and mail says how".to_owned()),
    }
}
