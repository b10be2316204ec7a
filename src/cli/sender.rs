//! `blockferry sender --stdio`: the far end of a pull.

use super::arguments::{Common, RemoteOptions, SenderOptions};
use super::clone::job;
use super::signals;
use crate::attempt::{self, Place};
use crate::error::Result;
use crate::progress::Progress;
use crate::settings::Rate;

/// Sends a volume of this host over standard input and output.
pub fn run(common: &Common, options: &SenderOptions) -> Result<()> {
    let progress = Progress::new(signals::stop_flag()?);
    // Neither end is reached through a shell from here.
    let remote = RemoteOptions {
        rsh: String::new(),
        remote_program: String::new(),
        stall_timeout: options.stall_timeout,
        bandwidth: Rate::Unlimited,
        pin: None,
    };
    let target = Place::Remote { host: String::new(), path: options.target.clone() };
    let job = job(common, &Place::Local(options.source.clone()), &target, Some(&options.pass), &options.snapshot, &remote)?;
    attempt::serve_sender(&job, &options.target, &options.label, &progress)?;
    Ok(())
}
