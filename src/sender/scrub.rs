//! Compares what the receiver's device holds with what was replicated to it: the digests of the last generation, which
//! lie here. The source is not read, so that it may be written to meanwhile, and no snapshot is made.

use super::bookmark::HaveView;
use super::handshake::{ask, hello};
use super::look::Found;
use super::{Outcome, Purpose};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::stream::{Baseline, Counts, End, Frame, Message};
use crate::log;
use crate::part::{Part, bytes_of};
use crate::progress::{Phase, Progress};
use crate::state::manifest::{self, Damage, Manifest};
use crate::state::{Files, SourceRecord};
use crate::transport::Wire;
use crate::transport::wire::unexpected;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// What a scrub works with.
pub struct Scrub<'a> {
    /// The relationship's folder at the sender.
    pub files: &'a dyn Files,
    /// The relationship, of which something was replicated.
    pub record: &'a SourceRecord,
    /// How the receiver knows the replica.
    pub target: &'a str,
    /// Which extents are looked at.
    pub part: Part,
    /// Where to count, and whether to stop.
    pub progress: &'a Progress,
    /// Told each range of bytes that differs.
    pub on_difference: &'a mut dyn FnMut(Range<u64>),
}

/// Runs one scrub over `wire`. Nothing is written on either side.
pub fn scrub(scrub: &mut Scrub<'_>, wire: &mut Wire) -> Result<Outcome> {
    match run(scrub, wire) {
        Err(error) if error.kind() == Kind::Transient => Err(wire.explain(error)),
        Err(error) => {
            wire.abort(&error);
            Err(error)
        }
        done => done,
    }
}

fn run(scrub: &mut Scrub<'_>, wire: &mut Wire) -> Result<Outcome> {
    let record = scrub.record;
    let geometry = record.geometry()?;
    let hasher = Hasher::new(record.algorithm, &record.secret);
    let lost = || Error::new(Kind::Failed, "the digests of what was replicated are lost here: the next run brings them back");
    let mut base = manifest::load(scrub.files, record.generation, &record.root, &geometry, &hasher, Damage::Unknown)?.ok_or_else(lost)?;
    scrub.progress.enter(Phase::Connect, geometry.volume_bytes());
    let version = wire.greet()?;
    wire.say(&Message::Hello(Box::new(hello(record, scrub.target, Purpose::Verify, record.root))))?;
    let Message::Welcome(welcome) = wire.hear()? else {
        return Err(Error::malformed("the receiver did not answer the greeting with a welcome"));
    };
    let Message::HaveEnd = wire.hear()? else { return Err(Error::malformed("the receiver lists what nobody asked for")) };
    if welcome.generation != record.generation {
        let message = format!(
            "the replica is at generation {}, and this host knows of {}: the next run settles that, or says why it cannot",
            welcome.generation, record.generation
        );
        return Err(Error::new(Kind::Failed, message));
    }
    let parts = scrub.part.ranges(&geometry);
    ask(wire, version, parts.as_deref())?;
    let parts = parts.unwrap_or_else(|| std::iter::once(0..geometry.extents()).collect());
    scrub.progress.enter(Phase::Survey, bytes_of(&parts, &geometry));
    let mut listing = Listing {
        zeros: HaveView::new(Baseline::Yours, geometry, &hasher),
        expected: parts.into(),
        found: Found::new(geometry, &mut *scrub.on_difference),
        unknown: 0,
        bytes: 0,
        geometry,
    };
    while listing.hear(wire, &mut base)? {
        scrub.progress.stop_if_asked()?;
        scrub.progress.scanned_bytes.store(listing.bytes, Relaxed);
    }
    if let Some(range) = listing.expected.front() {
        return Err(Error::malformed(format!("the receiver did not list extents {} to {}", range.start, range.end - 1)));
    }
    if listing.unknown > 0 {
        log::warning(format!("{} extents were not compared: their digests are damaged here; the next run asks for them", listing.unknown));
    }
    let counts = Counts { read_bytes: listing.bytes, ..listing.found.close() };
    wire.put(&Message::End(End { generation: 0, root: Digest::UNKNOWN, counts }))?;
    wire.flush()?;
    Ok(Outcome { ack: None, mode: welcome.mode, counts, adopted: None, exertion: None })
}

/// What the receiver lists, compared as it comes.
struct Listing<'a> {
    geometry: Geometry,
    zeros: HaveView,
    /// What is still to be listed, in this order: a receiver that leaves something out has not proven it.
    expected: VecDeque<Range<u64>>,
    found: Found<'a>,
    /// Extents of which our own manifest knows nothing.
    unknown: u64,
    bytes: u64,
}

impl Listing<'_> {
    /// Takes one frame; `false`: it was the last.
    fn hear(&mut self, wire: &mut Wire, base: &mut Manifest) -> Result<bool> {
        let Some(header) = wire.next_frame()? else {
            return Err(Error::new(Kind::Transient, format!("{} closed the connection", wire.peer())));
        };
        let goes_on = match wire.frame(&header)? {
            Frame::Have(have) => {
                let entries = have.entries.chunks_exact(have.entry_bytes);
                let extents = self.take(have.first_extent, entries.len() as u64)?;
                for (extent, entry) in extents.zip(entries) {
                    self.compare(ExtentIndex(extent), &entry[..16], base)?;
                }
                true
            }
            Frame::Message(Message::Zero { first, count }) => {
                let extents = self.take(first, count)?;
                let mut differ = Vec::new();
                self.zeros.not_zero(Some(base), extents, &mut differ)?;
                for extent in differ.into_iter().flatten() {
                    if base.entry(ExtentIndex(extent))?.digest.is_known() {
                        self.found.extents(extent..extent + 1);
                    } else {
                        self.unknown += 1;
                    }
                }
                true
            }
            Frame::Message(Message::HaveEnd) => false,
            Frame::Message(Message::Refuse(refusal) | Message::Abort(refusal)) => return Err(wire.said(refusal)),
            _ => return Err(unexpected(header.kind)),
        };
        wire.done(&header);
        Ok(goes_on)
    }

    fn compare(&mut self, extent: ExtentIndex, listed: &[u8], base: &mut Manifest) -> Result<()> {
        let digest = base.entry(extent)?.digest;
        if !digest.is_known() {
            self.unknown += 1;
        } else if digest.0 != listed {
            self.found.extents(extent.0..extent.0 + 1);
        }
        Ok(())
    }

    /// The next extents, which have to be those that were asked for.
    fn take(&mut self, first: u64, count: u64) -> Result<Range<u64>> {
        let extents = first..first.saturating_add(count);
        match self.expected.front_mut() {
            Some(expected) if expected.start == first && extents.end <= expected.end => {
                expected.start = extents.end;
                if expected.is_empty() {
                    self.expected.pop_front();
                }
                let bytes = self.geometry.bytes_range(extents.clone());
                self.bytes += bytes.end - bytes.start;
                Ok(extents)
            }
            _ => Err(Error::malformed(format!("the receiver lists extents {first} to {} out of turn", extents.end.saturating_sub(1)))),
        }
    }
}
