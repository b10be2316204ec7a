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
    let state = state_dir(common).inspect_err(|error| agent::excuse(&mut wire, error))?;
    let mut replicas = HostReplicas::new(state, choice);
    receiver::receive(&mut wire, &mut replicas, &progress)?;
    Ok(())
}
