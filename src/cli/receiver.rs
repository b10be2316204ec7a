//! `blockferry receiver`.

use super::arguments::{Common, ReceiverOptions};
use super::clone::state_dir;
use super::signals;
use crate::agent::{self, HostReplicas};
use crate::error::Result;
use crate::progress::Progress;
use crate::receiver;

/// Serves one session on standard input and output.
pub fn run(common: &Common, _options: &ReceiverOptions) -> Result<()> {
    let progress = Progress::new(signals::stop_flag()?);
    let choice = common.io.into();
    let mut wire = agent::stdio(choice, &progress)?;
    let mut replicas = HostReplicas::new(state_dir(common)?, choice);
    receiver::receive(&mut wire, &mut replicas, &progress)?;
    Ok(())
}
