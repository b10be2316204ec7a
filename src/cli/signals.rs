//! The first SIGINT or SIGTERM asks the run to stop at a resumable point; the second ends it at once.

use crate::error::{Context, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Installs the handlers; the flag is set by the first signal.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let received = RECEIVED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        let place = || "install a signal handler";
        // In this order: the second signal finds the flag set and ends the process.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop)).context(Kind::Failed, place)?;
        flag::register_usize(signal, Arc::clone(received), signal as usize).context(Kind::Failed, place)?;
        flag::register(signal, Arc::clone(&stop)).context(Kind::Failed, place)?;
    }
    Ok(stop)
}

/// Installs the handler of SIGHUP: the flag is set by each, and whoever acts on it takes it down.
pub fn reload_flag() -> Result<Arc<AtomicBool>> {
    let reload = Arc::new(AtomicBool::new(false));
    flag::register(SIGHUP, Arc::clone(&reload)).context(Kind::Failed, || "install a signal handler")?;
    Ok(reload)
}

/// 128 and the number of the signal that stopped the run.
pub fn exit_code() -> u8 {
    let signal = RECEIVED.get().map_or(0, |received| received.load(Ordering::Relaxed));
    if signal == 0 { Kind::Interrupted.exit_code() } else { 128 + signal as u8 }
}
