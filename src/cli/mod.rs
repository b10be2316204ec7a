//! Words typed by a person: the command line, what it prints, and the exit code.

mod arguments;
mod bar;
mod clone;
mod config;
mod manifest;
mod output;
mod pair;
mod promote;
mod receiver;
mod resync;
mod sender;
mod signals;
mod status;
mod verify;

pub use arguments::Arguments;

use arguments::Command;
use clap::Parser;
use output::Output;
use std::process::ExitCode;

/// The whole program: parses, runs, reports the end once.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(&arguments.common);
    let result = match arguments.command {
        Command::Clone(options) => clone::run(&arguments.common, &options, &output),
        Command::Verify(options) => verify::run(&arguments.common, &options, &output),
        Command::Status => status::run(&arguments.common, &output),
        Command::Promote(options) => promote::run(&arguments.common, &options, &output),
        Command::Resync(options) => resync::run(&arguments.common, &options, &output),
        Command::Manifest(options) => manifest::run(&options, &output),
        Command::Pair(options) => pair::run(&arguments.common, &options, &output),
        Command::Config(options) => config::run(&options, &output),
        Command::Receiver(options) => receiver::run(&arguments.common, &options, &output),
        Command::Sender(options) => sender::run(&arguments.common, &options),
    };
    ExitCode::from(output.finish(result))
}
