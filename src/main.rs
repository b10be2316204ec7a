//! Parse, dispatch, print the error chain once, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    blockferry::cli::main()
}
