//! Figures for Prometheus, computed from the state directory at the moment of the scrape: no counter of ours can
//! say 0 for a month while nothing works, and a restart loses nothing.
//!
//! The text format (0.0.4) is written by hand: it is a dozen lines, every figure is a gauge of the moment, and the
//! textfile collector of node_exporter reads just that, not the OpenMetrics that the usual crate writes.
//! Names and labels: docs/monitoring/README.md.

mod exporter;
mod sheet;
mod tables;

pub use exporter::{Exporter, Source};
pub use sheet::{Sample, Sheet};
pub use tables::names;

use crate::error::{Context, Kind, Result};
use crate::state::{Files, HostFiles};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces a file for the textfile collector of node_exporter: it sees the old figures or the new ones, never half.
/// The collector runs as somebody else and must be able to read it.
pub fn write_textfile(path: &Path, sheet: &Sheet) -> Result<()> {
    let place = || format!("write the figures to {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("it names no file").context(Kind::Usage, place)?;
    HostFiles::new(folder).replace(name, sheet.text().as_bytes())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).context(Kind::Failed, place)
}
