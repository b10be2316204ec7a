//! What the replica holds when a session begins: its record, its manifest, an unfinished journal, or
//! nothing that anybody knows of. Completes or drops what the last run left, and finds out who may go on.

use super::recovery::{self, Found};
use super::{Held, Session, promotion, survey};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::format::manifest::About;
use crate::format::stream::Mode;
use crate::progress::Phase;
use crate::state::manifest::{self, Damage, Draft, Manifest};
use crate::state::{MANIFEST, ReplicaRecord, Stage};

impl Session<'_> {
    /// Finds out what the replica holds, completing or dropping what the last run left.
    pub(super) fn take_stock(&mut self) -> Result<Held> {
        let plan = self.mode == Mode::Nothing;
        let Some(mut record) = self.record.clone() else {
            return Ok(if self.target.is_some() { Held::Foreign } else { Held::Absent });
        };
        self.check_fits(&record)?;
        let Some(target) = self.target.as_mut() else {
            let message = format!(
                "{} is gone, but a record of it exists in {}: bring it back, or make it anew with --overwrite",
                self.site.name(),
                self.site.files().place()
            );
            return Err(Error::new(Kind::Refused, message));
        };
        if recovery::is_applying(&record) {
            if plan {
                let message = format!("{} has an unfinished commit: run it once for real, which completes it", self.site.name());
                return Err(Error::new(Kind::Operator, message));
            }
            self.progress.enter(Phase::Commit, self.geometry.volume_bytes());
            match recovery::finish_applying(&*self.site, &mut record, target, self.wire) {
                // The replica is torn beyond its journal; the operator asked for a resync: what it holds is read anew.
                Err(error) if error.kind() == Kind::Operator && self.hello.rehash => {
                    // The manifest that lies there describes another time than the torn device.
                    (record.stage, record.rehash) = (Stage::Initializing, true);
                    record.store(self.site.files())?;
                    self.site.remove_journal()?;
                    self.mode = Mode::Direct;
                }
                other => other?,
            }
        }
        if self.geometry.volume_bytes() > record.volume_bytes && !plan {
            record.volume_bytes = self.geometry.volume_bytes();
            record.rehash = true;
            record.store(self.site.files())?;
        }
        self.check_epoch(&mut record)?;
        let held = match record.stage {
            Stage::Initializing => self.stock_initializing(&mut record)?,
            _ => self.stock_clean(&mut record)?,
        };
        self.record = Some(record);
        Ok(held)
    }

    /// The guard between a relationship's two halves (I4).
    fn check_fits(&self, record: &ReplicaRecord) -> Result<()> {
        let hello = &self.hello;
        let name = self.site.name();
        let refuse = |what: String| Err(Error::new(Kind::Refused, format!("{name}: {what}")));
        if record.relationship != hello.relationship {
            return refuse(format!("it is the replica of {} ({}), not of this source", record.source, record.relationship));
        }
        if record.extent_bytes != hello.extent_bytes || record.algorithm != hello.algorithm || record.secret != hello.secret {
            return refuse("extent size, digest or secret differ from those it was paired with".to_owned());
        }
        if hello.volume_bytes < record.volume_bytes {
            return refuse(format!(
                "the volume shrank from {} to {} bytes: that is never replicated",
                record.volume_bytes, hello.volume_bytes
            ));
        }
        Ok(())
    }

    /// Whose history goes on here. A promotion without a write is no divergence: the sender takes the new
    /// epoch over. Anything else is for an operator.
    fn check_epoch(&mut self, record: &mut ReplicaRecord) -> Result<()> {
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        let Some(promotion) = record.promotion else {
            if record.epoch == self.hello.epoch {
                return Ok(());
            }
            return Err(promotion::no_common_epoch(&*self.site, record, &self.hello));
        };
        if promotion.from_epoch != self.hello.epoch && record.epoch != self.hello.epoch {
            return Err(promotion::no_common_epoch(&*self.site, record, &self.hello));
        }
        self.progress.enter(Phase::Survey, self.geometry.volume_bytes());
        let differing = promotion::extents_written(&*self.site, record, target, self.progress, self.wire)?;
        if differing != Some(0) {
            return Err(promotion::diverged(&*self.site, record, differing));
        }
        if self.mode != Mode::Nothing {
            record.promotion = None;
            record.store(self.site.files())?;
        }
        Ok(())
    }

    fn about(&self, record: &ReplicaRecord) -> About {
        About {
            relationship: record.relationship,
            epoch: record.epoch,
            generation: record.generation,
            root: record.root,
            sealed: false,
            algorithm: record.algorithm,
            geometry: self.geometry,
        }
    }

    /// An unfinished first copy: its manifest is a hint of what is there already.
    fn stock_initializing(&mut self, record: &mut ReplicaRecord) -> Result<Held> {
        let found = Manifest::open(self.site.files(), MANIFEST, &self.hasher, Damage::Unknown)?;
        let found = found.filter(|found| found.about().geometry == self.geometry && !self.hello.rehash && !record.rehash);
        if let Some(mut manifest) = found {
            let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
            survey::check_samples(target, &mut manifest, &self.hasher)?;
            return Ok(Held::Initializing(manifest));
        }
        if self.mode == Mode::Nothing {
            return Ok(Held::Foreign);
        }
        let draft = self.hash_replica(record, Damage::Unknown)?;
        let manifest = draft.checkpoint(self.site.files(), self.wire)?.into_base();
        record.rehash = false;
        record.store(self.site.files())?;
        Ok(Held::Initializing(manifest))
    }

    /// A committed generation, maybe with a journal over it, maybe to be read anew.
    fn stock_clean(&mut self, record: &mut ReplicaRecord) -> Result<Held> {
        if self.mode == Mode::Nothing {
            let loaded = manifest::load(self.site.files(), record.generation, &record.root, &self.geometry, &self.hasher, Damage::Refuse)?;
            return Ok(loaded.filter(|_| !record.rehash).map_or(Held::Foreign, Held::Clean));
        }
        let mut found = Found::Nothing(None);
        if !record.rehash && !self.hello.rehash {
            let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
            found = recovery::find_overlay(&*self.site, record, target, self.wire)?;
        }
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        match found {
            Found::Overlay(overlay) if self.mode == Mode::Direct => {
                // The operator gave journals up, for room maybe: what this one holds is sent again.
                self.site.remove_journal()?;
                let mut manifest = overlay.0.into_base();
                survey::check_samples(target, &mut manifest, &self.hasher)?;
                Ok(Held::Clean(manifest))
            }
            Found::Overlay(mut overlay) => {
                survey::check_samples(target, overlay.0.base(), &self.hasher)?;
                Ok(Held::Overlaid(overlay))
            }
            Found::Nothing(Some(mut manifest)) => {
                survey::check_samples(target, &mut manifest, &self.hasher)?;
                Ok(Held::Clean(*manifest))
            }
            Found::Nothing(None) => self.reread_clean(record),
        }
    }

    /// The manifest is lost, or the operator does not trust it: the device is hashed, and the generation's
    /// root becomes what is really there.
    fn reread_clean(&mut self, record: &mut ReplicaRecord) -> Result<Held> {
        // A crash in here leads here again: the flag stands until the new manifest is sealed.
        record.rehash = true;
        record.store(self.site.files())?;
        self.site.remove_journal()?;
        let mut draft = self.hash_replica(record, Damage::Refuse)?;
        let root = draft.root()?;
        draft.seal(About { root, ..self.about(record) })?;
        let manifest = draft.install(self.site.files(), self.wire)?;
        record.root = root;
        record.rehash = false;
        record.store(self.site.files())?;
        Ok(Held::Clean(manifest))
    }

    pub(super) fn hash_replica(&mut self, record: &ReplicaRecord, damage: Damage) -> Result<Draft> {
        self.progress.enter(Phase::Survey, self.geometry.volume_bytes());
        let empty = Manifest::create(self.site.files(), MANIFEST, self.about(record), &self.hasher, damage)?;
        let mut draft = Draft::new(self.site.files(), empty)?;
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        survey::draft_device(target, self.geometry, &self.hasher, self.progress, &mut draft, self.wire)?;
        Ok(draft)
    }

    pub(super) fn new_record(&self) -> Result<ReplicaRecord> {
        Ok(ReplicaRecord {
            relationship: self.hello.relationship,
            epoch: self.hello.epoch,
            generation: 0,
            root: Digest::UNKNOWN,
            stage: Stage::Initializing,
            rehash: false,
            source: self.hello.source.clone(),
            target: self.site.identity()?,
            volume_bytes: self.hello.volume_bytes,
            extent_bytes: self.hello.extent_bytes,
            algorithm: self.hello.algorithm,
            secret: self.hello.secret,
            source_time_ms: 0,
            committed_time_ms: 0,
            healed_extents: 0,
            promotion: None,
        })
    }

    pub(super) fn empty_draft(&self, record: &ReplicaRecord) -> Result<Draft> {
        let empty = Manifest::create(self.site.files(), MANIFEST, self.about(record), &self.hasher, Damage::Unknown)?;
        Draft::new(self.site.files(), empty)
    }
}
