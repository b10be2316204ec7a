//! A replica in its own right (I5): promoted without its source, and what happens when the source
//! comes back (I6).
//!
//! A promotion starts a new epoch and remembers the generation it grew from. While it stands, nothing
//! is written by a session. If the device was not written meanwhile, the source takes the new epoch over
//! quietly; if it was, an operator names the epoch and generation that are thrown away.

use super::site::Site;
use super::survey::{self, Scanned};
use super::target::Target;
use crate::digest::Hasher;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::extent::ExtentIndex;
use crate::format::stream::Hello;
use crate::progress::{Progress, Witness};
use crate::state::manifest::{self, Damage};
use crate::state::{Promotion, ReplicaRecord, Stage};
use uuid::Uuid;

/// Makes a replica usable in its own right: completes a commit that was cut, drops an unfinished
/// journal, starts a new epoch. Refuses one that is no complete generation.
pub fn promote(site: &dyn Site, disk: Box<dyn Disk>) -> Result<ReplicaRecord> {
    super::recover(site, disk)?;
    let missing = || Error::new(Kind::Usage, format!("{} has no record here", site.name()));
    let mut record = ReplicaRecord::load(site.files())?.ok_or_else(missing)?;
    if record.stage != Stage::Clean {
        let cut = match record.generation {
            0 => "its first copy was never finished".to_owned(),
            last => format!(
                "an increment over generation {last} that went straight onto it (apply = \"direct\") was cut; only its source can complete it"
            ),
        };
        let message = format!("{} is no complete generation: {cut}", site.name());
        return Err(Error::new(Kind::Operator, message));
    }
    if record.promotion.is_none() {
        // What was received of a next generation is given up: its base is about to change.
        site.remove_journal()?;
        record.promotion = Some(Promotion { from_epoch: record.epoch, from_generation: record.generation, time_ms: site.now_ms() });
        record.epoch = Uuid::now_v7();
        record.store(site.files())?;
    }
    Ok(record)
}

/// What a promotion's writes are called when they are thrown away: `epoch:generation`.
pub fn name_of(record: &ReplicaRecord) -> String {
    format!("{}:{}", record.epoch, record.generation)
}

/// Throws away what was written since a promotion: the next session reads the replica anew and makes it
/// follow its source again. `named` must be what [`name_of`] says.
pub fn discard(site: &dyn Site, record: &mut ReplicaRecord, named: &str) -> Result<()> {
    let Some(promotion) = record.promotion else {
        return Err(Error::new(Kind::Usage, format!("{} is not promoted: there is nothing to discard", site.name())));
    };
    if named != name_of(record) {
        let message = format!("{} is {}, not {named}: nothing was discarded", site.name(), name_of(record));
        return Err(Error::new(Kind::Refused, message));
    }
    record.epoch = promotion.from_epoch;
    record.promotion = None;
    record.rehash = true;
    record.store(site.files())
}

/// Extents of a promoted replica that are not what its committed generation says. `None`: its manifest
/// is lost, so that nobody can tell.
pub fn extents_written(
    site: &dyn Site,
    record: &ReplicaRecord,
    target: &mut Target,
    progress: &Progress,
    witness: &mut dyn Witness,
) -> Result<Option<u64>> {
    let geometry = record.geometry()?;
    let hasher = Hasher::new(record.algorithm, &record.secret);
    let Some(mut manifest) = manifest::load(site.files(), record.generation, &record.root, &geometry, &hasher, Damage::Refuse)? else {
        return Ok(None);
    };
    let mut written = 0;
    let mut blocks = Vec::new();
    survey::hash_device(target, geometry, &hasher, progress, &mut |scanned| {
        witness.worked(scanned.bytes(&geometry))?;
        match scanned {
            Scanned::Extent(extent, digest, _) => written += u64::from(manifest.entry(extent)?.digest != *digest),
            Scanned::Zeros(extents) => {
                for extent in extents.map(ExtentIndex) {
                    let zero = hasher.zero_extent(geometry.bytes_of(extent), &mut blocks);
                    written += u64::from(manifest.entry(extent)?.digest != zero);
                }
            }
        }
        Ok(())
    })?;
    Ok(Some(written))
}

/// The replica went its own way.
pub fn diverged(site: &dyn Site, record: &ReplicaRecord, written: Option<u64>) -> Error {
    let since = record.promotion.map_or(0, |promotion| promotion.from_generation);
    let what = written.map_or("it cannot be told what".to_owned(), |extents| format!("{extents} extents"));
    let message = format!(
        "{} was promoted at generation {since} and written to since ({what}): nothing is sent. To throw that away, on the replica's host: `blockferry resync --discard {} {}`",
        site.name(),
        name_of(record),
        site.name()
    );
    Error::new(Kind::Operator, message)
}

/// Two histories that never met.
pub fn no_common_epoch(site: &dyn Site, record: &ReplicaRecord, hello: &Hello) -> Error {
    let message = format!(
        "{} follows another history of its source (epoch {}, the sender has {}): one of the two was restored from an old copy of its state. Find out which side is right; `clone --overwrite` under a fresh --state-dir makes the replica follow this sender",
        site.name(),
        record.epoch,
        hello.epoch
    );
    Error::new(Kind::Operator, message)
}
