//! One delta in, one generation out: deframer → prover → journal or device → committer.
//!
//! [`receive`] is one of the two functions that know the order. Nothing is written to the replica
//! before its extent is proven, and in journal mode not before the whole delta is durable.

mod committer;
mod journaler;
pub mod promotion;
mod prover;
mod recovery;
mod site;
mod survey;
mod target;

pub use journaler::Walk;
pub use site::{Replicas, Site};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::extent::Geometry;
use crate::failpoint;
use crate::format::manifest::About;
use crate::format::stream::{Ack, Baseline, Begin, End, Frame, FrameKind, Header, Hello, Message, Mode, Offer, Purpose, Welcome};
use crate::limits::*;
use crate::progress::{Phase, Progress};
use crate::state::manifest::{self, Damage, Draft, Manifest};
use crate::state::{JOURNAL, MANIFEST, ReplicaRecord, Stage};
use crate::transport::Wire;
use crate::transport::wire::unexpected;
use committer::{Commit, checked_range};
use journaler::Journaler;
use prover::{Prover, device_runs};
use recovery::Found;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use target::Target;

/// What a session came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The commit; none for plan and verify.
    pub ack: Option<Ack>,
    /// What the sender counted, from its End.
    pub end: Option<End>,
    /// Who sent, as it called itself.
    pub source: String,
}

/// Serves one session. Whatever ends it, what was received and proven is durable before this returns.
pub fn receive(wire: &mut Wire, replicas: &mut dyn Replicas, progress: &Progress) -> Result<Received> {
    let result = greet(wire).and_then(|hello| Session::open(wire, replicas, progress, *hello)?.run());
    if let Err(error) = &result {
        wire.abort(error);
    }
    result
}

fn greet(wire: &mut Wire) -> Result<Box<Hello>> {
    wire.greet()?;
    match wire.hear()? {
        Message::Hello(hello) => Ok(hello),
        _ => Err(Error::malformed("the sender did not introduce itself")),
    }
}

/// What the replica holds when a session begins.
enum Held {
    /// Nothing is known; the target is to be made.
    Absent,
    /// Nothing is known of what is there.
    Foreign,
    /// An unfinished first copy and what its manifest says of it.
    Initializing(Manifest),
    /// A committed generation and its manifest.
    Clean(Manifest),
    /// The same, with an unfinished journal over it.
    Overlaid(Box<(Draft, Journaler)>),
}

struct Session<'a> {
    wire: &'a mut Wire,
    site: Box<dyn Site>,
    progress: &'a Progress,
    hello: Hello,
    geometry: Geometry,
    hasher: Hasher,
    record: Option<ReplicaRecord>,
    target: Option<Target>,
    mode: Mode,
}

impl<'a> Session<'a> {
    fn open(wire: &'a mut Wire, replicas: &mut dyn Replicas, progress: &'a Progress, hello: Hello) -> Result<Session<'a>> {
        let geometry = Geometry::new(hello.volume_bytes, hello.extent_bytes)?;
        let site = replicas.find(&hello)?;
        let record = ReplicaRecord::load(site.files())?;
        let hasher = Hasher::new(hello.algorithm, &hello.secret);
        let mode = match hello.purpose {
            Purpose::Plan | Purpose::Verify => Mode::Nothing,
            Purpose::Replicate if record.as_ref().is_some_and(|record| record.stage != Stage::Initializing) => Mode::Journal,
            Purpose::Replicate => Mode::Direct,
        };
        Ok(Session { wire, site, progress, hello, geometry, hasher, record, target: None, mode })
    }

    fn run(mut self) -> Result<Received> {
        let mut disk = self.site.open_disk(self.mode != Mode::Nothing)?;
        if let Some(disk) = &mut disk
            && self.mode == Mode::Direct
            && self.record.is_none()
            && disk.bytes() == 0
        {
            // A crash while the image file was made leaves it empty: it is made now.
            disk.resize(self.geometry.volume_bytes())?;
            crate::disk::flush(&mut **disk)?;
        }
        self.target = disk.map(|disk| Target::new(disk, self.geometry)).transpose()?;
        if self.hello.purpose == Purpose::Verify {
            return self.verify();
        }
        let held = self.take_stock()?;
        let draft = self.welcome(held)?;
        self.listen(draft)
    }

    fn target(&mut self) -> Result<&mut Target> {
        self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))
    }

    fn received(&self, ack: Option<Ack>, end: Option<End>) -> Received {
        Received { ack, end, source: self.hello.source.clone() }
    }

    /// Hashes the device and lists everything; keeps nothing.
    fn verify(&mut self) -> Result<Received> {
        let name = self.site.name().to_owned();
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Refused, format!("{name} does not exist")))?;
        let welcome = Welcome {
            epoch: self.hello.epoch,
            generation: self.record.as_ref().map_or(0, |record| record.generation),
            root: Digest::UNKNOWN,
            mode: Mode::Nothing,
            baseline: Baseline::Unknown,
            offer: Offer::Listing,
        };
        self.wire.say(&Message::Welcome(welcome))?;
        self.wire.say(&Message::HaveEnd)?;
        match self.wire.hear()? {
            Message::Survey => survey::list_device(self.wire, target, self.geometry, &self.hasher, self.progress)?,
            _ => return Err(Error::malformed("the sender did not ask for the digests it wants to verify")),
        }
        self.wire.flush()?;
        // The sender compares now; it closes when it is done.
        while let Some(header) = self.wire.next_frame()? {
            self.wire.done(&header);
        }
        Ok(self.received(None, None))
    }

    /// Finds out what the replica holds, completing or dropping what the last run left.
    fn take_stock(&mut self) -> Result<Held> {
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
            match recovery::finish_applying(&*self.site, &mut record, target) {
                // The replica is torn beyond its journal; the operator asked for a resync: what it holds is read anew.
                Err(error) if error.kind() == Kind::Operator && self.hello.rehash => {
                    // The manifest that lies there describes another time than the torn device.
                    (record.stage, record.rehash) = (Stage::Initializing, true);
                    record.store(self.site.files())?;
                    self.site.files().remove(JOURNAL)?;
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
        let differing = promotion::extents_written(&*self.site, record, target, self.progress)?;
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
        let manifest = draft.checkpoint(self.site.files())?.into_base();
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
            found = recovery::find_overlay(&*self.site, record, target)?;
        }
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        match found {
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
        self.site.files().remove(JOURNAL)?;
        let mut draft = self.hash_replica(record, Damage::Refuse)?;
        let root = draft.root()?;
        draft.seal(About { root, ..self.about(record) })?;
        let manifest = draft.install(self.site.files())?;
        record.root = root;
        record.rehash = false;
        record.store(self.site.files())?;
        Ok(Held::Clean(manifest))
    }

    fn hash_replica(&mut self, record: &ReplicaRecord, damage: Damage) -> Result<Draft> {
        self.progress.enter(Phase::Survey, self.geometry.volume_bytes());
        let empty = Manifest::create(self.site.files(), MANIFEST, self.about(record), &self.hasher, damage)?;
        let mut draft = Draft::new(self.site.files(), empty)?;
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        survey::draft_device(target, self.geometry, &self.hasher, self.progress, &mut draft)?;
        Ok(draft)
    }

    /// Tells the sender what is held, and what of it a survey would list.
    fn welcome(&mut self, mut held: Held) -> Result<Held> {
        let record = self.record.as_ref();
        let root = record.map_or(Digest::UNKNOWN, |record| if record.stage == Stage::Clean { record.root } else { Digest::UNKNOWN });
        let yours = root.is_known() && root == self.hello.root;
        let mut welcome = Welcome {
            epoch: record.map_or(self.hello.epoch, |record| record.epoch),
            generation: record.map_or(0, |record| record.generation),
            root,
            mode: self.mode,
            baseline: if yours { Baseline::Yours } else { Baseline::Unknown },
            offer: if yours { Offer::Nothing } else { Offer::Listing },
        };
        match &mut held {
            Held::Absent => (welcome.baseline, welcome.offer) = (Baseline::Zeros, Offer::Nothing),
            Held::Foreign => {
                // The samples come behind the welcome that announces them; where all are zero, none do.
                welcome.offer = Offer::Samples;
                self.wire.put(&Message::Welcome(welcome.clone()))?;
                let (geometry, hasher) = (self.geometry, self.hasher.clone());
                let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
                survey::list_samples(self.wire, target, geometry, &hasher)?;
                self.wire.say(&Message::HaveEnd)?;
                return Ok(held);
            }
            Held::Overlaid(overlay) => {
                self.wire.put(&Message::Welcome(welcome))?;
                survey::list_overlay(self.wire, &mut overlay.0)?;
                self.wire.say(&Message::HaveEnd)?;
                return Ok(held);
            }
            Held::Initializing(_) | Held::Clean(_) => {}
        }
        self.wire.put(&Message::Welcome(welcome))?;
        self.wire.say(&Message::HaveEnd)?;
        Ok(held)
    }

    /// Waits for what the sender makes of it: a survey first, or the pass, or nothing at all (a plan).
    fn listen(mut self, mut held: Held) -> Result<Received> {
        loop {
            let Some(header) = self.wire.next_frame()? else {
                return if self.mode == Mode::Nothing { Ok(self.received(None, None)) } else { Err(self.cut()) };
            };
            let message = match self.wire.frame(&header)? {
                Frame::Message(message) => message,
                _ => return Err(unexpected(header.kind)),
            };
            self.wire.done(&header);
            match message {
                Message::Survey => held = self.survey(held)?,
                Message::Begin(begin) if self.mode != Mode::Nothing => return self.pass(held, begin),
                Message::End(end) if self.mode == Mode::Nothing => return Ok(self.received(None, Some(end))),
                Message::Abort(refusal) => return Err(self.wire.said(refusal)),
                _ => return Err(unexpected(header.kind)),
            }
        }
    }

    fn cut(&self) -> Error {
        Error::new(
            Kind::Transient,
            format!("{} closed the connection before the end; what came is kept and the next run goes on from there", self.wire.peer()),
        )
    }

    fn survey(&mut self, held: Held) -> Result<Held> {
        let held = match held {
            Held::Clean(mut manifest) => {
                survey::list_manifest(self.wire, &mut manifest)?;
                Held::Clean(manifest)
            }
            Held::Initializing(mut manifest) => {
                survey::list_manifest(self.wire, &mut manifest)?;
                Held::Initializing(manifest)
            }
            Held::Overlaid(mut overlay) => {
                // The later word counts: what the journal holds is told again, over its base.
                survey::list_manifest(self.wire, overlay.0.base())?;
                survey::list_overlay(self.wire, &mut overlay.0)?;
                Held::Overlaid(overlay)
            }
            Held::Foreign if self.mode == Mode::Nothing => {
                let (geometry, hasher) = (self.geometry, self.hasher.clone());
                let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
                survey::list_device(self.wire, target, geometry, &hasher, self.progress)?;
                return Ok(Held::Foreign);
            }
            Held::Foreign => {
                let record = self.new_record()?;
                let draft = self.hash_replica(&record, Damage::Unknown)?;
                let mut manifest = draft.checkpoint(self.site.files())?.into_base();
                survey::list_manifest(self.wire, &mut manifest)?;
                Held::Initializing(manifest)
            }
            Held::Absent => return Err(Error::malformed("the sender asks what a target holds that does not exist")),
        };
        self.wire.say(&Message::HaveEnd)?;
        Ok(held)
    }

    fn new_record(&self) -> Result<ReplicaRecord> {
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

    /// Takes the frames of one generation.
    fn pass(mut self, held: Held, begin: Begin) -> Result<Received> {
        let expected = self.record.as_ref().map_or(0, |record| record.generation) + 1;
        if begin.generation != expected {
            return Err(Error::new(Kind::Refused, format!("the sender begins generation {}, but {expected} comes next", begin.generation)));
        }
        if self.target.is_none() {
            self.target = Some(Target::new(self.site.make_disk(self.geometry.volume_bytes())?, self.geometry)?);
        }
        let (mut record, is_new) = match self.record.take() {
            Some(record) => (record, false),
            None => (self.new_record()?, true),
        };
        let (draft, journal) = match held {
            Held::Overlaid(overlay) => (overlay.0, Some(overlay.1)),
            Held::Clean(manifest) | Held::Initializing(manifest) => (Draft::new(self.site.files(), manifest)?, None),
            // The empty manifest is durable before a record says that it holds hints: one of an older
            // time that lay there must not be believed.
            Held::Foreign => (self.empty_draft(&record)?.checkpoint(self.site.files())?, None),
            Held::Absent => {
                let mut draft = self.empty_draft(&record)?;
                draft.set_zeros(0..self.geometry.extents())?;
                (draft.checkpoint(self.site.files())?, None)
            }
        };
        if is_new {
            record.store(self.site.files())?;
            failpoint::reach("receiver.record-created");
        }
        // From here on the target belongs to this relationship.
        self.progress.enter(Phase::Transfer, self.geometry.volume_bytes());
        let mut intake = Intake {
            prover: Prover::new(self.geometry, &self.hasher)?,
            draft: Some(draft),
            journal,
            unproven: BTreeSet::new(),
            healed: BTreeSet::new(),
            rounds: 0,
            unflushed: 0,
        };
        let taken = self.take_frames(&mut intake, &mut record, &begin);
        if let Err(error) = &taken
            && error.kind() != Kind::Storage
        {
            // Whatever cut the stream, what came is made durable for the next run. Where that fails too,
            // less is kept; the first error is the one to report.
            let _ = self.checkpoint(&mut intake);
        }
        taken
    }

    fn empty_draft(&self, record: &ReplicaRecord) -> Result<Draft> {
        let empty = Manifest::create(self.site.files(), MANIFEST, self.about(record), &self.hasher, Damage::Unknown)?;
        Draft::new(self.site.files(), empty)
    }

    fn take_frames(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, begin: &Begin) -> Result<Received> {
        loop {
            let Some(header) = self.wire.next_frame()? else { return Err(self.cut()) };
            match header.kind {
                FrameKind::Data => self.take_data(intake, record, &header)?,
                _ => match self.wire.frame(&header)? {
                    Frame::Message(Message::Zero { first, count }) => self.take_zero(intake, record, &header, first, count)?,
                    Frame::Message(Message::Mark(bytes)) => self.progress.scanned_bytes.store(bytes, Relaxed),
                    Frame::Message(Message::End(end)) => {
                        self.wire.done(&header);
                        match self.end(intake, record, begin, end)? {
                            Some(received) => return Ok(received),
                            None => continue,
                        }
                    }
                    Frame::Message(Message::Abort(refusal) | Message::Refuse(refusal)) => return Err(self.wire.said(refusal)),
                    _ => return Err(unexpected(header.kind)),
                },
            }
            self.progress.sent_bytes.fetch_add(header.frame_bytes() as u64, Relaxed);
            self.wire.done(&header);
        }
    }

    fn take_data(&mut self, intake: &mut Intake, record: &ReplicaRecord, header: &Header) -> Result<()> {
        let Frame::Data(data) = self.wire.frame(header)? else { return Err(unexpected(header.kind)) };
        data.check(&self.geometry, header)?;
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        let draft = intake.draft.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the draft is gone"))?;
        let mut buffer = target.buffer()?;
        intake.prover.unpack(&data, &mut buffer)?;
        self.progress.changed_bytes.fetch_add(data.plain_bytes as u64, Relaxed);
        let unproven = intake.prover.prove(&data, &buffer[..data.plain_bytes], target, draft, self.mode == Mode::Journal)?;
        if !unproven.is_empty() {
            target.put(buffer);
            // The frame as a whole is refused, so that what is kept is proven to the last block.
            intake.healed.extend(unproven.iter().map(|extent| extent.0));
            intake.unproven.extend(data.lines().map(|line| line.extent.0));
            if intake.unproven.len() > NEED_EXTENTS_MAX {
                let message = format!(
                    "{} differs from its manifest in too many places: run again with --resync, which reads it anew and sends what differs",
                    target.name()
                );
                return Err(Error::new(Kind::Refused, message));
            }
            return Ok(());
        }
        data.lines().for_each(|line| {
            intake.unproven.remove(&line.extent.0);
        });
        if self.mode == Mode::Direct {
            intake.unflushed += data.plain_bytes as u64;
            draft.forget(data.lines().map(|line| line.extent))?;
            target.write(buffer, device_runs(&data, &self.geometry))?;
        } else {
            target.put(buffer);
            let frame = self.wire.bytes(header);
            journal(&mut intake.journal, &*self.site, record)?.append(header, frame)?;
        }
        self.checkpoint_if_due(intake)
    }

    fn take_zero(&mut self, intake: &mut Intake, record: &ReplicaRecord, header: &Header, first: u64, count: u64) -> Result<()> {
        let extents = checked_range(&self.geometry, first, count)?;
        let draft = intake.draft.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the draft is gone"))?;
        draft.set_zeros(extents.clone())?;
        if self.mode == Mode::Direct {
            let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
            draft.forget_zeroed(extents.clone())?;
            target.zero(extents)?;
        } else {
            let frame = self.wire.bytes(header);
            journal(&mut intake.journal, &*self.site, record)?.append(header, frame)?;
        }
        self.checkpoint_if_due(intake)
    }

    fn checkpoint_if_due(&mut self, intake: &mut Intake) -> Result<()> {
        let due = match &intake.journal {
            Some(journal) => journal.unsynced() >= JOURNAL_CHECKPOINT_BYTES,
            None => intake.unflushed >= DIRECT_CHECKPOINT_BYTES,
        };
        if due { self.checkpoint(intake) } else { Ok(()) }
    }

    /// Makes what came so far durable. From here on a cut costs only what comes after.
    fn checkpoint(&mut self, intake: &mut Intake) -> Result<()> {
        if self.mode == Mode::Direct {
            self.target()?.flush()?;
            failpoint::reach("receiver.direct-checkpoint-flushed");
            // The manifest follows the flush: what it says is on the device, is.
            if let Some(draft) = intake.draft.take() {
                intake.draft = Some(draft.checkpoint(self.site.files())?);
            }
            intake.unflushed = 0;
            failpoint::reach("receiver.direct-checkpoint-installed");
        } else if let Some(journal) = &mut intake.journal {
            self.check_room(journal.bytes())?;
            let journal = intake.journal.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the journal is gone"))?;
            journal.checkpoint()?;
            failpoint::reach("receiver.journal-checkpoint");
        }
        Ok(())
    }

    /// Stops before the journal fills the file system it lies on.
    fn check_room(&self, journal_bytes: u64) -> Result<()> {
        let free = self.site.files().free_bytes()?;
        if free >= JOURNAL_RESERVE_BYTES + JOURNAL_CHECKPOINT_BYTES.min(journal_bytes) {
            return Ok(());
        }
        let message = format!(
            "no room for the journal in {}: it has {journal_bytes} bytes so far and {free} are left there. The replica is untouched. Make room, or choose another --state-dir; --dry-run tells how much a run would send",
            self.site.files().place()
        );
        Err(Error::new(Kind::Storage, message))
    }

    /// The sender is done: ask again for what could not be proven, or commit.
    fn end(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, begin: &Begin, end: End) -> Result<Option<Received>> {
        if end.generation != begin.generation {
            return Err(Error::malformed("the sender ends another generation than it began"));
        }
        if !intake.unproven.is_empty() {
            intake.rounds += 1;
            if intake.rounds > NEED_ROUNDS_MAX {
                return Err(Error::new(Kind::Storage, format!("{} does not keep what is written to it", self.site.name())));
            }
            let extents: Vec<u64> = intake.unproven.iter().copied().collect();
            self.wire.say(&Message::Need(extents))?;
            return Ok(None);
        }
        let mut draft = intake.draft.take().ok_or_else(|| Error::new(Kind::Failed, "the draft is gone"))?;
        let root = draft.root()?;
        if root != end.root {
            return Err(self.wrong_root(record, &end, root));
        }
        let commit = Commit { generation: end.generation, root, source_time_ms: begin.source_time_ms };
        self.progress.enter(Phase::Commit, self.geometry.volume_bytes());
        record.healed_extents += intake.healed.len() as u64;
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        match intake.journal.take() {
            Some(journal) => committer::seal_and_commit(&*self.site, record, &commit, draft, journal, target)?,
            None => committer::commit_direct(&*self.site, record, &commit, draft, target)?,
        }
        let ack =
            Ack { generation: commit.generation, root, healed_extents: intake.healed.len() as u64, written_bytes: target.written_bytes() };
        // The commit stands whether or not the sender hears of it: its next handshake finds out.
        let _ = self.wire.say(&Message::Ack(ack)).and_then(|()| self.wire.flush());
        Ok(Some(self.received(Some(ack), Some(end))))
    }

    /// Both sides hold proven extents but not the same volume: one of the two manifests is wrong. The
    /// device decides at the next run; nothing of this delta is kept.
    fn wrong_root(&self, record: &mut ReplicaRecord, end: &End, root: Digest) -> Error {
        record.rehash = true;
        let remembered = record.store(self.site.files()).and_then(|()| self.site.files().remove(JOURNAL));
        let message = format!(
            "{}: the delta makes root {root}, the source has {}. The replica stays generation {}; the next run reads it anew and sends what differs",
            self.site.name(),
            end.root,
            record.generation
        );
        match remembered {
            Ok(()) => Error::new(Kind::Failed, message),
            Err(cause) => Error::because(Kind::Failed, message, cause),
        }
    }
}

/// What a pass has taken in so far.
struct Intake {
    prover: Prover,
    draft: Option<Draft>,
    journal: Option<Journaler>,
    /// Extents to be asked for again.
    unproven: BTreeSet<u64>,
    /// Extents whose own content on the replica was wrong.
    healed: BTreeSet<u64>,
    rounds: u32,
    /// Bytes written straight to the device since its last flush.
    unflushed: u64,
}

/// The journal of this pass; made with the first frame that needs it.
fn journal<'j>(journal: &'j mut Option<Journaler>, site: &dyn Site, record: &ReplicaRecord) -> Result<&'j mut Journaler> {
    if journal.is_none() {
        *journal = Some(Journaler::create(site.make_journal()?, &recovery::belongs(record)?)?);
        failpoint::reach("receiver.journal-created");
    }
    journal.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the journal is gone"))
}

/// Completes what a crash left at a replica, without its sender: what `receiver` does at each start.
pub fn recover(site: &dyn Site, disk: Box<dyn crate::disk::Disk>) -> Result<Option<u64>> {
    let Some(mut record) = ReplicaRecord::load(site.files())? else { return Ok(None) };
    let geometry = record.geometry()?;
    let mut target = Target::new(disk, geometry)?;
    if recovery::is_applying(&record) {
        recovery::finish_applying(site, &mut record, &mut target)?;
    } else if record.stage == Stage::Clean && !record.rehash {
        recovery::find_overlay(site, &mut record, &mut target)?;
    }
    Ok((record.stage == Stage::Clean).then_some(record.generation))
}
