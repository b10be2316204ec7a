//! Progress: a bar on a terminal, one line a minute elsewhere, JSON lines when asked. One thread
//! reads the run's counters ten times a second; the run itself never waits for it.

use super::output::{Output, print};
use crate::log;
use crate::progress::{Phase, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) const TICK: Duration = Duration::from_millis(100);
const JSON_EVERY: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(60);

/// A running display; dropped = cleared.
pub struct Bar {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bar {
    /// Shows a run whose two ends count in `here` and `there` (the same one where the other end is remote).
    pub fn show(output: &Output, here: &Arc<Progress>, there: &Arc<Progress>) -> Bar {
        if output.quiet {
            return Bar { end: None, thread: None };
        }
        let (end, ended) = channel();
        let (json, terminal) = (output.json, output.is_terminal());
        let (here, there) = (Arc::clone(here), Arc::clone(there));
        let thread = std::thread::spawn(move || {
            let bar = terminal.then(|| ProgressBar::new(0));
            let mut display = Display::new(json, bar, None);
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                display.draw(busier(&here, &there));
            }
            display.clear();
        });
        Bar { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a transfer of a run is called, beside others of the same time.
pub(super) struct Name {
    pub(super) job: String,
    pub(super) source: String,
    pub(super) receiver: String,
}

/// While the sender only waits, the receiver's work is the one to show.
pub(super) fn busier<'a>(here: &'a Progress, there: &'a Progress) -> &'a Progress {
    match here.phase() {
        Phase::Connect | Phase::Commit if there.phase() != Phase::Connect => there,
        _ => here,
    }
}

pub(super) struct Display {
    json: bool,
    bar: Option<ProgressBar>,
    name: Option<Name>,
    phase: Option<Phase>,
    since: Instant,
    printed: Instant,
    told_stop: bool,
}

impl Display {
    /// On this bar where there is a terminal. `name`: which of several.
    pub(super) fn new(json: bool, bar: Option<ProgressBar>, name: Option<Name>) -> Display {
        let which = name.as_ref().map(|name| format!("{} → {}: ", name.source, name.receiver)).unwrap_or_default();
        if let Some(bar) = &bar {
            let which = which.replace('{', "{{").replace('}', "}}");
            let style = ProgressStyle::with_template(&format!(
                "{which}{{prefix:>11}} {{wide_bar}} {{percent:>3}}% {{bytes}}/{{total_bytes}} {{binary_bytes_per_sec}} {{eta}} {{msg}}",
            ));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        Display { json, bar, name, phase: None, since: Instant::now(), printed: Instant::now(), told_stop: false }
    }

    pub(super) fn draw(&mut self, progress: &Progress) {
        let phase = progress.phase();
        let (total, scanned) = (progress.total_bytes.load(Relaxed), progress.scanned_bytes.load(Relaxed));
        let (changed, sent) = (progress.changed_bytes.load(Relaxed), progress.sent_bytes.load(Relaxed));
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            self.since = Instant::now();
            if let Some(bar) = &self.bar {
                bar.reset();
                bar.set_prefix(phase.word());
            }
        }
        if progress.stopped() && !self.told_stop {
            self.told_stop = true;
            let text = "stopping at a point to go on from; a second signal ends at once";
            match &self.bar {
                Some(bar) => bar.println(text),
                None => log::info(text),
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(scanned);
            bar.set_message(format!("· changed {} · sent {}", HumanBytes(changed), HumanBytes(sent)));
            return;
        }
        let every = if self.json { JSON_EVERY } else { LINE_EVERY };
        if self.printed.elapsed() < every {
            return;
        }
        self.printed = Instant::now();
        if self.json {
            let mut line = json!({
                "type": "progress", "phase": phase.word(), "total_bytes": total, "scanned_bytes": scanned,
                "changed_bytes": changed, "sent_bytes": sent, "seconds": self.since.elapsed().as_secs_f64(),
            });
            if let Some(Name { job, source, receiver }) = &self.name {
                line["job"] = json!(job);
                line["source"] = json!(source);
                line["receiver"] = json!(receiver);
            }
            print(&line.to_string());
        } else {
            let percent = (scanned * 100).checked_div(total).unwrap_or(0);
            let which = self.name.as_ref().map(|name| format!("{} → {}: ", name.source, name.receiver)).unwrap_or_default();
            log::info(format!(
                "{which}{} {percent} % of {}, changed {}, sent {}",
                phase.word(),
                HumanBytes(total),
                HumanBytes(changed),
                HumanBytes(sent)
            ));
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
