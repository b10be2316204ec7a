//! What the agent gives out about itself while it runs: the page that Prometheus scrapes, and the file for the
//! textfile collector. Replication does not wait for either, and a port that is taken stops none of it.

use super::alarms::{Listed, listed};
use crate::agent::book::Shelf;
use crate::agent::config::AgentConfig;
use crate::agent::health::Look;
use crate::agent::metrics::{Exporter, Sheet, write_textfile};
use crate::error::Result;
use crate::limits::FIGURES_INTERVAL;
use crate::log;
use jiff::tz::TimeZone;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// The exporter and the textfile, as the configuration has them.
#[derive(Default)]
pub struct Figures {
    exporter: Option<(String, Exporter)>,
    /// The jobs that are configured.
    pub jobs: Listed,
    looked: Option<Instant>,
    said: Option<String>,
}

impl Figures {
    /// Another configuration: with the next look.
    pub fn take_over(&mut self, config: &AgentConfig) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&config.jobs);
        self.looked = None;
    }

    /// Does what its time has come for.
    pub fn look(&mut self, config: &AgentConfig, shelf: &Shelf, zone: &TimeZone) {
        if self.looked.is_some_and(|looked| looked.elapsed() < FIGURES_INTERVAL) {
            return;
        }
        self.looked = Some(Instant::now());
        let failed = self.listen(config, shelf).and_then(|()| write(config, shelf, zone)).err().map(|error| error.chain());
        if failed.is_some() && failed != self.said {
            log::error(failed.as_deref().unwrap_or_default());
        }
        self.said = failed;
    }

    fn listen(&mut self, config: &AgentConfig, shelf: &Shelf) -> Result<()> {
        let wanted = config.metrics.as_ref().and_then(|metrics| metrics.listen.clone());
        if self.exporter.as_ref().map(|(address, _)| address) == wanted.as_ref() {
            return Ok(());
        }
        // The old one lets go of its port first.
        self.exporter = None;
        let Some(address) = wanted else { return Ok(()) };
        let jobs = Arc::clone(&self.jobs);
        let exporter = Exporter::start(&address, shelf.clone(), move || listed(&jobs))?;
        log::info(format!("figures for Prometheus at http://{}/metrics", exporter.address()));
        self.exporter = Some((address, exporter));
        Ok(())
    }
}

fn write(config: &AgentConfig, shelf: &Shelf, zone: &TimeZone) -> Result<()> {
    match config.metrics.as_ref().and_then(|metrics| metrics.textfile.as_ref()) {
        Some(path) => write_textfile(path, &Sheet::of(&Look::now(shelf, &config.jobs, zone)?)),
        None => Ok(()),
    }
}
