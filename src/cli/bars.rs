//! Progress of a run: a bar for each transfer under way, or a line a minute, or JSON lines.

use super::bar::{Display, Name, TICK, busier};
use super::output::Output;
use crate::agent::bench::{Bench, Transfer};
use indicatif::{MultiProgress, ProgressBar};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

/// A running display; dropped = cleared.
pub struct Bars {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bars {
    /// Shows what this bench is busy with.
    pub fn show(output: &Output, bench: &Arc<Bench>) -> Bars {
        if output.quiet {
            return Bars { end: None, thread: None };
        }
        let (end, ended) = channel();
        let (json, terminal, bench) = (output.json, output.is_terminal(), Arc::clone(bench));
        let thread = std::thread::spawn(move || {
            let all = terminal.then(MultiProgress::new);
            let mut shown: Vec<(Arc<Transfer>, Display)> = Vec::new();
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let now = bench.board.transfers();
                shown.retain(|(transfer, display)| {
                    let stays = now.iter().any(|other| Arc::ptr_eq(other, transfer));
                    if !stays {
                        display.clear();
                    }
                    stays
                });
                for transfer in now {
                    if !shown.iter().any(|(other, _)| Arc::ptr_eq(other, &transfer)) {
                        let bar = all.as_ref().map(|all| all.add(ProgressBar::new(0)));
                        shown.push((Arc::clone(&transfer), Display::new(json, bar, Some(name(&transfer)))));
                    }
                }
                for (transfer, display) in &mut shown {
                    display.draw(busier(&transfer.here, &transfer.there));
                }
            }
            shown.iter().for_each(|(_, display)| display.clear());
        });
        Bars { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn name(transfer: &Transfer) -> Name {
    Name { job: transfer.job.clone(), source: transfer.source.display().to_string(), receiver: transfer.receiver.clone() }
}
