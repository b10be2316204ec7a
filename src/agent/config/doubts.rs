//! What of agent.toml is allowed and deserves a word: it may be right tomorrow, or from another folder.

use super::job::{Job, Receiver, Volume, Way};
use crate::attempt::device_of;
use std::path::Path;

/// In words, job by job.
pub fn doubts(jobs: &[Job]) -> Vec<String> {
    jobs.iter().flat_map(|job| missing(job).chain(relative(job)).map(|what| format!("job \"{}\": {what}", job.name))).collect()
}

/// A disk may come later, and a mistyped name never.
fn missing(job: &Job) -> impl Iterator<Item = String> {
    let is_missing = |volume: &&Volume| !device_of(&volume.source).exists();
    let word = |volume: &Volume| format!("its source {} does not exist, or is not active, on this host now", volume.source.display());
    job.volumes.iter().filter(is_missing).map(word)
}

/// A run by hand finds it from the folder it is started in, the agent from another.
fn relative(job: &Job) -> impl Iterator<Item = String> {
    let local = job.receivers.iter().filter(|receiver| matches!(receiver.way, Way::Local));
    let pairs = local.flat_map(|receiver| job.volumes.iter().map(move |volume| (receiver, volume)));
    let word = |(receiver, volume): (&Receiver, &Volume)| {
        format!(
            "its replica \"{}\" at {} is a path of this host and not an absolute one: it is looked for in the folder that each run is started in",
            volume.replica, receiver.name
        )
    };
    pairs.filter(|(_, volume)| !Path::new(&volume.replica).is_absolute()).map(word)
}

#[cfg(test)]
mod tests {
    use super::super::AgentConfig;

    #[test]
    fn a_source_that_is_not_there_and_a_replica_that_depends_on_the_folder_get_a_word_and_are_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        std::fs::write(&there, "x").unwrap();
        let text = |source: &str, replica: &str| {
            let receivers = "[[receiver]]\nname = \"here\"\nlocal = true\n[[receiver]]\nname = \"far\"\nssh = \"far\"\n";
            let volumes = format!("volumes = [{{ source = \"{source}\", replica = \"{replica}\" }}]");
            format!("{receivers}[[job]]\nname = \"db\"\nreceivers = [\"far\", \"here\"]\n{volumes}\n")
        };
        let said = |source: &str, replica: &str| AgentConfig::parse(&[("a.toml".into(), text(source, replica))]).unwrap().warnings();
        let there = there.to_str().unwrap();
        assert_eq!(said(there, "/srv/r"), [] as [String; 0]);
        let both = said("no-such-vg/db", "r");
        assert!(both[0].starts_with("job \"db\": its source no-such-vg/db does not exist"), "{both:?}");
        assert!(both.len() == 2 && both[1].contains("replica \"r\" at here is a path of this host"), "{both:?}");
    }
}
