//! Words typed by a person: the command line, what it prints, and the exit code.

mod abort;
mod agent;
mod arguments;
mod bar;
mod bars;
mod clone;
mod config;
mod configured;
mod doctor;
mod history;
mod jobs;
mod legs;
mod manifest;
mod metrics;
mod monitor;
mod output;
mod pair;
mod pause;
mod plan;
mod promote;
mod receiver;
mod resync;
mod run;
mod sender;
mod signals;
mod status;
mod text;
mod verify;
mod when;

pub use arguments::Arguments;

use crate::agent::health::Level;
use crate::error::{Error, Kind};
use crate::log;
use arguments::Command;
use clap::{CommandFactory, Parser};
use output::Output;
use std::process::ExitCode;

/// The whole program: parses, runs, reports the end once.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(not_understood(&error)),
    };
    log::set_verbose(arguments.common.verbose);
    let far_end =
        matches!(&arguments.command, Command::Receiver(options) if options.stdio) || matches!(arguments.command, Command::Sender(_));
    let output = Output { far_end, ..Output::new(&arguments.common) };
    let result = match arguments.command {
        Command::Clone(options) => clone::run(&arguments.common, &options, &output),
        Command::Run(options) => run::run(&arguments.common, &options, &output),
        Command::Plan(options) => plan::run(&arguments.common, &options, &output),
        Command::Agent(options) => agent::run(&arguments.common, &options),
        Command::Abort(options) => abort::run(&arguments.common, &options, &output),
        Command::Pause(options) => pause::pause(&arguments.common, &options, &output),
        Command::Resume(options) => pause::resume(&arguments.common, &options, &output),
        Command::Verify(options) => verify::run(&arguments.common, &options, &output),
        Command::Status(options) => status::run(&arguments.common, &options, &output),
        Command::History(options) => history::run(&arguments.common, &options, &output),
        // Its exit codes are those of monitoring plug-ins.
        Command::Monitor(options) => return ExitCode::from(monitor::run(&arguments.common, &options, &output)),
        Command::Metrics(options) => metrics::run(&arguments.common, &options, &output),
        Command::Promote(options) => promote::run(&arguments.common, &options, &output),
        Command::Resync(options) => resync::run(&arguments.common, &options, &output),
        Command::Doctor(options) => doctor::run(&arguments.common, &options, &output),
        Command::Manifest(options) => manifest::run(&options, &output),
        Command::Pair(options) => pair::run(&arguments.common, &options, &output),
        Command::Config(options) => config::run(&arguments.common, &options, &output),
        Command::Receiver(options) => receiver::run(&arguments.common, &options, &output),
        Command::Sender(options) => sender::run(&arguments.common, &options),
    };
    ExitCode::from(output.finish(result))
}

/// Help and version on standard output; what cannot be understood as text, or as the JSON lines that the
/// caller expects where `--json` stands anywhere in it.
fn not_understood(error: &clap::Error) -> u8 {
    let json = std::env::args_os().any(|argument| argument == "--json");
    // As far as it can be understood.
    let typed = || Arguments::command().ignore_errors(true).try_get_matches();
    if error.use_stderr() && typed().is_ok_and(|matches| matches.subcommand_name() == Some("monitor")) {
        // To a monitoring system 2 would be an alarm about the volumes.
        let _ = error.print();
        return Level::Unknown.nagios();
    }
    if !json || !error.use_stderr() {
        // A closed pipe (`--help | head`) is no failure.
        let _ = error.print();
        return if error.use_stderr() { Kind::Usage.exit_code() } else { 0 };
    }
    let message = error.to_string();
    let message = message.trim().trim_start_matches("error: ");
    Output::begin(true, false).finish(Err(Error::new(Kind::Usage, message)))
}
