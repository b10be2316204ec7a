//! What a run prints: text for people, or JSON lines; one error chain at the end, and the exit code.

use super::arguments::Common;
use super::signals;
use crate::attempt::Report;
use crate::error::{Error, Kind, Result};
use crate::format::stream::{Counts, Mode};
use crate::log;
use crate::sender::{Bottleneck, Exertion};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

/// Version of the JSON lines.
const SCHEMA: u32 = 1;

/// The first thing that could not be printed.
static UNPRINTED: OnceLock<std::io::Error> = OnceLock::new();

/// Where a run prints to.
#[derive(Debug)]
pub struct Output {
    /// JSON lines on standard output instead of text.
    pub json: bool,
    /// Neither progress nor summary.
    pub quiet: bool,
    /// We are the far end of somebody's remote shell, which shows him our standard error: what the other end has
    /// been told is said there.
    pub far_end: bool,
}

impl Output {
    /// As the options say. JSON begins with its hello.
    pub fn new(common: &Common) -> Output {
        Output::begin(common.json, common.quiet)
    }

    /// Says hello in JSON.
    pub fn begin(json: bool, quiet: bool) -> Output {
        let output = Output { json, quiet, far_end: false };
        output.line(|| json!({"type": "hello", "schema": SCHEMA, "program": "blockferry", "version": env!("CARGO_PKG_VERSION")}));
        output
    }

    /// Whether a progress bar can be drawn.
    pub fn is_terminal(&self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// A JSON line, in JSON mode.
    pub fn line(&self, value: impl FnOnce() -> Value) {
        if self.json {
            print(&value().to_string());
        }
    }

    /// A line of text, in text mode.
    pub fn text(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            print(text.as_ref());
        }
    }

    /// A word of warning, on standard error.
    pub fn warn(&self, text: &str) {
        log::warning(text);
    }

    /// The summary of a pass.
    pub fn summary(&self, what: &str, from: &str, to: &str, report: &Report, took: Duration) {
        let counts = &report.counts;
        let healed = report.ack.map_or(0, |ack| ack.healed_extents);
        self.line(|| {
            json!({
                "type": "summary", "command": what, "source": from, "target": to,
                "generation": report.ack.map(|ack| ack.generation),
                "root": report.ack.map(|ack| ack.root.to_string()),
                "mode": mode(report.mode), "adopted_generation": report.adopted,
                "read_bytes": counts.read_bytes, "changed_extents": counts.changed_extents,
                "zero_extents": counts.zero_extents, "sent_blocks": counts.sent_blocks,
                "plain_bytes": counts.plain_bytes, "wire_bytes": counts.wire_bytes,
                "written_bytes": report.ack.map(|ack| ack.written_bytes),
                "healed_extents": healed, "compress": report.exertion.as_ref().map(exertion), "seconds": took.as_secs_f64(),
            })
        });
        if let Some(generation) = report.adopted {
            self.text(format!("generation {generation} had been committed before; only its acknowledgement was lost"));
        }
        self.text(headline(from, to, report));
        self.text(figures(counts, report, took));
        if let Some(line) = report.exertion.as_ref().and_then(effort) {
            self.text(line);
        }
        if healed > 0 {
            self.text(format!("  {healed} extents had rotted on the replica and were sent whole: look after that device"));
        }
    }

    /// The end: the error, if any, once, and the exit code.
    pub fn finish(&self, result: Result<()>) -> u8 {
        let result = result.and_then(|()| {
            UNPRINTED.get().map_or(Ok(()), |cause| Err(Error::because(Kind::Failed, "print the result", cause.to_string())))
        });
        let code = match &result {
            Ok(()) => 0,
            Err(error) if error.kind() == Kind::Interrupted => signals::exit_code(),
            Err(error) => error.kind().exit_code(),
        };
        if let Err(error) = &result {
            self.line(|| json!({"type": "error", "kind": format!("{:?}", error.kind()).to_lowercase(), "message": error.chain()}));
            let is_said = self.far_end && error.is_known_to_peer();
            // Differences are a result, already printed, not an error of the run.
            if UNPRINTED.get().is_some() || !self.json && !is_said && (error.kind() != Kind::Differs || !self.quiet) {
                log::error(error.chain());
            }
        }
        self.line(|| json!({"type": "exit", "code": code}));
        code
    }
}

/// Prints a line. A closed pipe (`| head`) ends the printing, not the run; any other failure is told at the end.
pub fn print(text: &str) {
    if let Err(cause) = writeln!(std::io::stdout(), "{text}")
        && cause.kind() != ErrorKind::BrokenPipe
    {
        UNPRINTED.get_or_init(|| cause);
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Nothing => "none",
        Mode::Direct => "direct",
        Mode::Journal => "journal",
    }
}

fn headline(from: &str, to: &str, report: &Report) -> String {
    let Some(ack) = &report.ack else { return format!("{from} → {to}: nothing was written") };
    let how = match (report.mode, report.counts.changed_extents) {
        (_, 0) => "nothing changed",
        (Mode::Direct, _) if ack.generation > 1 => "changes, straight onto the device",
        (Mode::Direct, _) => "first copy",
        _ => "changes",
    };
    format!("{from} → {to}: generation {} ({how})", ack.generation)
}

fn figures(counts: &Counts, report: &Report, took: Duration) -> String {
    let verb = if report.ack.is_some() { "sent" } else { "would send" };
    let blocks = format!("{verb} {} blocks ({})", counts.sent_blocks, HumanBytes(counts.plain_bytes));
    let zeros = if counts.zero_extents > 0 { format!(", {} extents as zeros", counts.zero_extents) } else { String::new() };
    let wire = match counts.wire_bytes {
        0 => String::new(),
        bytes => format!(" in {} on the wire (ratio {:.2})", HumanBytes(bytes), counts.plain_bytes as f64 / bytes as f64),
    };
    format!(
        "  read {}, {} extents differ, {blocks}{wire}{zeros}, took {:.2} s",
        HumanBytes(counts.read_bytes),
        counts.changed_extents,
        took.as_secs_f64()
    )
}

fn level(level: Option<i32>) -> String {
    level.map_or_else(|| "none".to_owned(), |level| level.to_string())
}

fn exertion(exertion: &Exertion) -> Value {
    let plain: BTreeMap<String, u64> = exertion.plain_bytes.iter().map(|(at, bytes)| (level(*at), *bytes)).collect();
    json!({
        "setting": exertion.compress.to_string(), "level": level(exertion.level()), "moves": exertion.moves,
        "bottleneck": exertion.bottleneck.map(Bottleneck::word), "plain_bytes_by_level": plain,
    })
}

/// What `--compress auto` decided, where the run was long enough for a decision.
fn effort(exertion: &Exertion) -> Option<String> {
    let bottleneck = match exertion.bottleneck? {
        Bottleneck::Cpu => "this host's CPU",
        Bottleneck::Source => "reading the source",
        Bottleneck::Link => "the link",
        Bottleneck::Receiver => "the receiver",
    };
    let how = exertion.level().map_or("most blocks not compressed".to_owned(), |level| format!("most blocks compressed at level {level}"));
    Some(format!("  {how}: {bottleneck} was the bottleneck"))
}

/// The error that ends a verification that found something.
pub fn differs(message: String) -> Error {
    Error::new(Kind::Differs, message)
}
