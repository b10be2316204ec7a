//! How many files and sockets the daemon may have open: enough for all the sessions that its configuration allows,
//! where the host lets it.

use super::config::ReceiverConfig;
use crate::limits::{HANDSHAKE_DESCRIPTORS, LANE_DESCRIPTORS, SESSION_DESCRIPTORS};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside those of connections: standard streams, sockets to listen on, the configuration, the log.
const OTHERS: u64 = 32;

/// What the configuration may need at once.
fn needed(config: &ReceiverConfig) -> u64 {
    config.sessions_max as u64 * SESSION_DESCRIPTORS
        + config.connections_max as u64 * LANE_DESCRIPTORS
        + config.handshakes_max as u64 * HANDSHAKE_DESCRIPTORS
        + OTHERS
}

/// Raises the limit of this process to what its host allows: by custom a process begins with 1024, which is for those
/// that use select(2). A word of warning where that is not enough.
pub fn allow(config: &ReceiverConfig) -> Option<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let raised = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let needed = needed(config);
    (raised < needed).then(|| {
        format!(
            "{} sessions may need {needed} open files, {raised} are allowed here: lower sessions_max, or raise the limit (LimitNOFILE= of the unit, ulimit -Hn)",
            config.sessions_max
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_fits_what_systemd_allows_by_default() {
        let config = ReceiverConfig::parse("", "empty").unwrap();
        assert!(needed(&config) <= 512 << 10);
        let many = ReceiverConfig::parse("sessions_max = 4096", "many").unwrap();
        assert!(needed(&many) > needed(&config) && needed(&many) <= 512 << 10);
    }
}
