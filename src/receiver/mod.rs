//! One delta in, one generation out: deframer → prover → journal or device → committer.
//!
//! [`receive`] is one of the two functions that know the order. Nothing is written to the replica
//! before its extent is proven, and in journal mode not before the whole delta is durable.

mod committer;
mod intake;
mod journaler;
pub mod promotion;
mod prover;
mod recovery;
mod site;
mod stock;
mod survey;
mod target;

pub use journaler::Walk;
pub use recovery::belongs;
pub use site::{Apply, Replicas, Site};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::extent::Geometry;
use crate::format::stream::{Ack, Baseline, End, Frame, Hello, Message, Mode, Offer, Purpose, Welcome};
use crate::progress::{Alone, Progress};
use crate::state::manifest::{Damage, Draft, Manifest};
use crate::state::{ReplicaRecord, Stage};
use crate::transport::Wire;
use crate::transport::wire::unexpected;
use journaler::Journaler;
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
    /// Before the site: the device is closed by the time the site makes it refuse writes.
    target: Option<Target>,
    site: Box<dyn Site>,
    progress: &'a Progress,
    hello: Hello,
    geometry: Geometry,
    hasher: Hasher,
    record: Option<ReplicaRecord>,
    mode: Mode,
}

impl<'a> Session<'a> {
    fn open(wire: &'a mut Wire, replicas: &mut dyn Replicas, progress: &'a Progress, hello: Hello) -> Result<Session<'a>> {
        let geometry = Geometry::new(hello.volume_bytes, hello.extent_bytes)?;
        let site = replicas.find(&hello)?;
        let record = ReplicaRecord::load(site.files())?;
        let hasher = Hasher::new(hello.algorithm, &hello.secret);
        let is_whole = record.as_ref().is_some_and(|record| record.stage != Stage::Initializing);
        let mode = match hello.purpose {
            Purpose::Plan | Purpose::Verify => Mode::Nothing,
            Purpose::Replicate if is_whole && site.apply() != Apply::Direct => Mode::Journal,
            Purpose::Replicate => Mode::Direct,
        };
        Ok(Session { wire, site, progress, hello, geometry, hasher, record, target: None, mode })
    }

    fn run(mut self) -> Result<Received> {
        let mut disk = self.site.open_disk(self.mode != Mode::Nothing)?;
        if self.record.is_none()
            && let Some(found) = &mut disk
            && found.bytes() < self.geometry.volume_bytes()
            && found.data_range(0)?.is_none()
        {
            // An image file that is one hole, too small, and has no record: a crash left it, which came after the
            // file was made, for a volume of another size maybe, and before anybody was told of it.
            match self.hello.purpose {
                Purpose::Replicate => {
                    found.resize(self.geometry.volume_bytes())?;
                    crate::disk::flush(&mut **found)?;
                }
                // It is as good as absent: a run would make it as large as it has to be.
                Purpose::Plan => disk = None,
                Purpose::Verify => {}
            }
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

    /// Hashes the device, or the parts of it that are asked for, and lists what it holds; keeps nothing.
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
        let mut parts = None;
        loop {
            self.progress.stop_if_asked()?;
            match self.wire.hear()? {
                Message::Part(ranges) => survey::add_parts(parts.get_or_insert_default(), ranges, &self.geometry)?,
                Message::Survey => break,
                _ => return Err(Error::malformed("the sender did not ask for the digests it wants to verify")),
            }
        }
        match parts {
            None => survey::list_device(self.wire, target, self.geometry, &self.hasher, self.progress)?,
            Some(parts) => survey::list_parts(self.wire, target, self.geometry, &self.hasher, &parts, self.progress)?,
        }
        self.wire.flush()?;
        // The sender compares now; it closes when it is done.
        while let Some(header) = self.wire.next_frame()? {
            self.progress.stop_if_asked()?;
            self.wire.done(&header);
        }
        Ok(self.received(None, None))
    }

    /// Tells the sender what is held, and what of it a survey would list.
    fn welcome(&mut self, mut held: Held) -> Result<Held> {
        let record = self.record.as_ref();
        let root = record.map_or(Digest::UNKNOWN, |record| if record.stage == Stage::Clean { record.root } else { Digest::UNKNOWN });
        let yours = root.is_known() && root == self.hello.root;
        if self.mode != Mode::Nothing {
            self.wire.offer_lanes()?;
        }
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
            self.progress.stop_if_asked()?;
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
                let mut manifest = draft.checkpoint(self.site.files(), self.wire)?.into_base();
                survey::list_manifest(self.wire, &mut manifest)?;
                Held::Initializing(manifest)
            }
            Held::Absent => return Err(Error::malformed("the sender asks what a target holds that does not exist")),
        };
        self.wire.say(&Message::HaveEnd)?;
        Ok(held)
    }
}

/// Completes what a crash left at a replica, without its sender: what `receiver` does at each start.
pub fn recover(site: &dyn Site, disk: Box<dyn crate::disk::Disk>) -> Result<Option<u64>> {
    let Some(mut record) = ReplicaRecord::load(site.files())? else { return Ok(None) };
    let geometry = record.geometry()?;
    let mut target = Target::new(disk, geometry)?;
    if recovery::is_applying(&record) {
        recovery::finish_applying(site, &mut record, &mut target, &mut Alone)?;
    } else if record.stage == Stage::Clean && !record.rehash {
        recovery::find_overlay(site, &mut record, &mut target, &mut Alone)?;
    }
    Ok((record.stage == Stage::Clean).then_some(record.generation))
}
