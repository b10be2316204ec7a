//! `blockferry clone SRC DST`.

use super::arguments::{CloneOptions, Common, PassOptions, RemoteOptions, SnapshotOptions};
use super::bar::Bar;
use super::output::Output;
use super::signals;
use crate::agent::changes::{Change, add_change};
use crate::agent::outcome::LegResult;
use crate::attempt::{self, Errand, Host, Job, Place, Remote};
use crate::disk::guard;
use crate::error::{Error, Kind, Result};
use crate::format::stream::Purpose;
use crate::progress::Progress;
use crate::schedule::Table;
use crate::sender::Shards;
use crate::state::StateDir;
use crate::transport::lanes::Connections;
use crate::transport::pace::Limiter;
use crate::transport::{Pace, Terms};
use std::time::Instant;

/// Runs one clone, or says what it would do.
pub fn run(common: &Common, options: &CloneOptions, output: &Output) -> Result<()> {
    let job = job(common, &options.src, &options.dst, Some(&options.pass), &options.snapshot, &options.remote)?;
    warn_if_live(&job, output);
    let stop = signals::stop_flag()?;
    let (here, there) = (Progress::new(stop.clone()), Progress::new(stop));
    let began = Instant::now();
    let bar = Bar::show(output, &here, &there);
    let report = attempt::clone(&job, &here, &there, &mut |_| {});
    drop(bar);
    let what = if options.pass.dry_run { "plan" } else { "clone" };
    let (from, to) = (options.src.to_string(), options.dst.to_string());
    if let Some(file) = common.log_file.as_deref().filter(|_| !options.pass.dry_run) {
        let result = match &report {
            // The snapshot's own moment is in the record; the line has none.
            Ok(report) => LegResult::of(report, 0),
            Err(error) => LegResult::Failed { failure: error.into() },
        };
        let seconds = began.elapsed().as_secs_f64();
        add_change(
            file,
            &Change { at_ms: attempt::now_ms(), names: Vec::new(), source: from.clone(), replica: &to, result: &result, seconds },
        );
    }
    output.summary(what, &from, &to, &report?, began.elapsed());
    Ok(())
}

/// The job that the options describe.
pub fn job(
    common: &Common,
    src: &Place,
    dst: &Place,
    pass: Option<&PassOptions>,
    snapshot: &SnapshotOptions,
    remote: &RemoteOptions,
) -> Result<Job> {
    let connections = pass.and_then(|pass| pass.connections.told()).unwrap_or(1);
    if connections > 1 && !matches!(dst, Place::Receiver { .. }) {
        let message =
            format!("--connections {connections}: only a receiver takes several, blockferry://HOST/REPLICA; {dst} is reached by one");
        return Err(Error::new(Kind::Usage, message));
    }
    let reached = Remote { shell: remote.rsh.clone(), program: remote.remote_program.clone() };
    let errand = Errand {
        purpose: if pass.is_some_and(|pass| pass.dry_run) { Purpose::Plan } else { Purpose::Replicate },
        resync: pass.is_some_and(|pass| pass.resync),
        overwrite: pass.is_some_and(|pass| pass.overwrite),
        compress: pass.and_then(|pass| pass.compress),
        shards: pass.map_or(Shards::Auto, |pass| pass.shards),
        connections: pass.map_or(Connections::Auto, |pass| pass.connections),
        extent_bytes: pass.and_then(|pass| pass.extent_size),
        algorithm: pass.and_then(|pass| pass.hash).map(Into::into),
        pin: remote.pin,
        ..Errand::new(dst.clone(), reached)
    };
    let host = Host { state: state_dir(common)?, choice: common.io.into(), terms: terms(remote) };
    Ok(Job { source: src.clone(), errand, snapshots: snapshot.policy(), host })
}

/// What connections to other hosts are held to.
pub fn terms(remote: &RemoteOptions) -> Terms {
    Terms { stall: remote.stall_timeout, pace: Pace::new([Limiter::new(Table::from(remote.bandwidth))]), ..Terms::default() }
}

/// The state directory of this run.
pub fn state_dir(common: &Common) -> Result<StateDir> {
    StateDir::open(&common.state_dir.clone().unwrap_or_else(StateDir::default_path))
}

/// A mounted source that is read without a snapshot changes meanwhile: the replica then mixes moments. Not silently.
pub fn warn_if_live(job: &Job, output: &Output) {
    if let Place::Local(path) = &job.source
        && !attempt::will_snapshot(path, &job.snapshots)
        && let Ok(Some(at)) = guard::mounted_at(path)
    {
        output.warn(&format!("{} is mounted at {at} and may change while it is read; what arrives then mixes moments. Use a logical volume, of which a snapshot can be made, or unmount it", path.display()));
    }
}
