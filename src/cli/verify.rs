//! `blockferry verify SRC DST`.

use super::arguments::{Common, VerifyOptions};
use super::bar::Bar;
use super::clone::{job, warn_if_live};
use super::output::{Output, differs};
use super::signals;
use crate::attempt;
use crate::error::Result;
use crate::limits::EXTENT_BYTES_DEFAULT;
use crate::progress::Progress;
use indicatif::HumanBytes;
use serde_json::json;
use std::ops::Range;
use std::time::Instant;

/// Compares; with `--repair` sends what differs.
pub fn run(common: &Common, options: &VerifyOptions, output: &Output) -> Result<()> {
    let mut job = job(common, &options.src, &options.dst, None, &options.snapshot, &options.remote)?;
    warn_if_live(&job, output);
    let stop = signals::stop_flag()?;
    let (here, there) = (Progress::new(stop.clone()), Progress::new(stop));
    let began = Instant::now();
    let extent_bytes = u64::from(job.errand.extent_bytes.unwrap_or(EXTENT_BYTES_DEFAULT));
    let (mut ranges, mut bytes) = (0u64, 0u64);
    let mut told = |range: Range<u64>| {
        ranges += 1;
        bytes += range.end - range.start;
        let (first, last) = (range.start / extent_bytes, (range.end - 1) / extent_bytes);
        let extents = if first == last { format!("extent {first}") } else { format!("extents {first} to {last}") };
        output.line(|| {
            json!({
                "type": "difference", "offset": range.start, "bytes": range.end - range.start,
                "first_extent": first, "last_extent": last,
            })
        });
        output.text(format!("differs: {} bytes at {:#x} ({extents})", range.end - range.start, range.start));
    };
    let bar = Bar::show(output, &here, &there);
    let report = attempt::verify(&job, &here, &there, &mut told);
    drop(bar);
    let report = report?;
    let (from, to) = (options.src.to_string(), options.dst.to_string());
    let (extents, read) = (report.counts.changed_extents, report.counts.read_bytes);
    output.line(|| {
        json!({
            "type": "summary", "command": "verify", "source": from, "target": to, "read_bytes": read,
            "differing_extents": extents, "differing_ranges": ranges, "differing_bytes": bytes,
            "repaired": false, "seconds": began.elapsed().as_secs_f64(),
        })
    });
    if extents == 0 {
        output.text(format!("{from} = {to}: equal; read {} of the source, took {:.2} s", HumanBytes(read), began.elapsed().as_secs_f64()));
        return Ok(());
    }
    let message = format!("{from} ≠ {to}: {extents} extents differ, {} in {ranges} ranges", HumanBytes(bytes));
    if !options.repair {
        return Err(differs(format!("{message}; `blockferry verify --repair` sends just that")));
    }
    output.text(&message);
    job.errand.resync = true;
    let began = Instant::now();
    let bar = Bar::show(output, &here, &there);
    let report = attempt::clone(&job, &here, &there, &mut |_| {});
    drop(bar);
    output.summary("repair", &from, &to, &report?, began.elapsed());
    Ok(())
}
