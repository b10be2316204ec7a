//! Finds out what the receiver holds (DESIGN §4): who we are, what it answers, and what of it has to
//! be listed because our own manifest does not describe it.

use super::Pass;
use super::bookmark::HaveView;
use crate::digest::{Digest, Hasher};
use crate::disk::scan::Scan;
use crate::error::{Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::manifest::About;
use crate::format::stream::{Baseline, Frame, Have, Hello, Message, Offer, PARTS_SINCE, Purpose, Welcome};
use crate::limits::{PART_RANGES_MAX, SEED_SAMPLES};
use crate::part::bytes_of;
use crate::progress::{Phase, Progress};
use crate::state::manifest::{self, Damage, Manifest};
use crate::state::{Files, MANIFEST, SourceRecord};
use crate::transport::Wire;
use crate::transport::wire::unexpected;
use std::ops::Range;

/// Of the samples that are not zero, one in this many has to match before hashing the whole target is worth it.
const SEED_PART: usize = 4;

/// What both sides know after the handshake.
pub struct Agreed {
    /// The receiver's answer.
    pub welcome: Welcome,
    /// What it holds.
    pub have: HaveView,
    /// The manifest the next one is drafted over.
    pub base: Option<Manifest>,
    /// Whether that manifest describes what the receiver holds.
    pub uses_base: bool,
    /// The relationship's part of every manifest header.
    pub about: About,
    /// The generation that had been committed without our knowing.
    pub adopted: Option<u64>,
    /// The extents that are looked at, where it is not all of them.
    pub parts: Option<Vec<Range<u64>>>,
}

/// Greets, introduces and listens until it is known what the receiver holds.
pub fn shake_hands(pass: &mut Pass<'_>, wire: &mut Wire, geometry: Geometry, hasher: &Hasher) -> Result<Agreed> {
    let version = wire.greet()?;
    let parts = match pass.order.purpose {
        Purpose::Verify => pass.order.part.ranges(&geometry),
        Purpose::Replicate | Purpose::Plan => None,
    };
    let about = about(pass.record, geometry);
    let base = match pass.record.generation {
        0 => None,
        generation => manifest::load(pass.files, generation, &pass.record.root, &geometry, hasher, Damage::Unknown)?,
    };
    let root = if base.is_some() { pass.record.root } else { Digest::UNKNOWN };
    let hello =
        Hello { overwrite: pass.order.overwrite, rehash: pass.order.resync, ..hello(pass.record, pass.target, pass.order.purpose, root) };
    wire.say(&Message::Hello(Box::new(hello)))?;
    let Message::Welcome(welcome) = wire.hear()? else {
        return Err(Error::malformed("the receiver did not answer the greeting with a welcome"));
    };

    let have = HaveView::new(welcome.baseline, geometry, hasher);
    let mut agreed = Agreed { uses_base: welcome.baseline == Baseline::Yours, welcome, have, base, about, adopted: None, parts };
    // A dry run moves no cursor: the digests that the receiver lists tell it the same.
    if !agreed.uses_base && pass.order.purpose == Purpose::Replicate {
        adopt_unacknowledged(pass, &mut agreed, hasher, wire)?;
    }
    let mut samples = Vec::new();
    let mut sink = |agreed: &mut Agreed, have: &Have<'_>| match agreed.welcome.offer {
        Offer::Samples => add_samples(&mut samples, have),
        _ => agreed.have.list(pass.files, &about, have),
    };
    hear_list(wire, pass.files, pass.progress, &mut agreed, &mut sink)?;
    let survey = match agreed.welcome.offer {
        Offer::Nothing => false,
        Offer::Listing => !agreed.uses_base,
        Offer::Samples => seeded(pass, &geometry, hasher, &samples)?,
    };
    if survey {
        pass.progress.enter(Phase::Survey, agreed.parts.as_ref().map_or(geometry.volume_bytes(), |parts| bytes_of(parts, &geometry)));
        ask(wire, version, agreed.parts.as_deref())?;
        let mut listed = 0;
        let progress = pass.progress;
        hear_list(wire, pass.files, progress, &mut agreed, &mut |agreed, have| {
            let upto = match agreed.parts {
                None => geometry.bytes_range(0..have.first_extent.saturating_add(1).min(geometry.extents())).end,
                Some(_) => listed,
            };
            listed += (have.entries.len() / have.entry_bytes * geometry.extent_bytes()) as u64;
            progress.scanned_bytes.store(upto, std::sync::atomic::Ordering::Relaxed);
            agreed.have.list(pass.files, &about, have)
        })?;
    }
    if !agreed.uses_base && pass.order.purpose == Purpose::Replicate {
        // Our manifest describes something else, or nothing: the next one is made from scratch.
        agreed.base = Some(Manifest::create(pass.files, MANIFEST, about, hasher, Damage::Refuse)?);
    }
    Ok(agreed)
}

/// Asks for digests: of all extents, or of these.
pub fn ask(wire: &mut Wire, version: u16, parts: Option<&[Range<u64>]>) -> Result<()> {
    if let Some(parts) = parts {
        if version < PARTS_SINCE {
            let message = format!(
                "{} speaks stream version {version} and can only be verified as a whole; parts need {PARTS_SINCE}: update it, or leave --sample and --slice out",
                wire.peer()
            );
            return Err(Error::new(Kind::Refused, message));
        }
        // A part of a tiny volume may be empty, which is not the same as all of it.
        if parts.is_empty() {
            wire.put(&Message::Part(Vec::new()))?;
        }
        parts.chunks(PART_RANGES_MAX).try_for_each(|some| wire.put(&Message::Part(some.to_vec())))?;
    }
    wire.say(&Message::Survey)
}

fn about(record: &SourceRecord, geometry: Geometry) -> About {
    About {
        relationship: record.relationship,
        epoch: record.epoch,
        generation: record.generation,
        root: record.root,
        sealed: false,
        algorithm: record.algorithm,
        geometry,
    }
}

/// Who we are, of this pair.
pub fn hello(record: &SourceRecord, target: &str, purpose: Purpose, root: Digest) -> Hello {
    Hello {
        purpose,
        overwrite: false,
        rehash: false,
        relationship: record.relationship,
        epoch: record.epoch,
        generation: record.generation,
        root,
        volume_bytes: record.volume_bytes,
        extent_bytes: record.extent_bytes,
        algorithm: record.algorithm,
        secret: record.secret,
        target: target.to_owned(),
        source: record.source.path.display().to_string(),
    }
}

/// A lost acknowledgement: the receiver is one generation ahead and its root is that of our sealed
/// draft. The cursor moves and nothing is sent for it.
fn adopt_unacknowledged(pass: &mut Pass<'_>, agreed: &mut Agreed, hasher: &Hasher, wire: &mut Wire) -> Result<()> {
    let (generation, root) = (agreed.welcome.generation, agreed.welcome.root);
    if generation != pass.record.generation + 1 || !root.is_known() {
        return Ok(());
    }
    let base = match agreed.base.take() {
        Some(base) => Some(base),
        None => Manifest::open(pass.files, MANIFEST, hasher, Damage::Refuse)?,
    };
    let Some(base) = base.filter(|base| base.about().geometry == agreed.about.geometry) else { return Ok(()) };
    let mut draft = match manifest::sealed_draft(pass.files, base, generation, &root)? {
        Ok(draft) => draft,
        Err(base) => {
            agreed.base = Some(base);
            return Ok(());
        }
    };
    if draft.root()? != root {
        // The draft lay over a manifest that is lost.
        return Ok(());
    }
    let sealed = About { epoch: agreed.welcome.epoch, generation, root, ..agreed.about };
    super::adopt(pass.record, pass.files, draft, &sealed, pass.record.source_time_ms, wire)?;
    agreed.base = manifest::load(pass.files, generation, &root, &agreed.about.geometry, hasher, Damage::Unknown)?;
    agreed.uses_base = agreed.base.is_some();
    agreed.adopted = Some(generation);
    agreed.have.set_baseline(if agreed.uses_base { Baseline::Yours } else { agreed.welcome.baseline });
    Ok(())
}

type Sink<'a> = dyn FnMut(&mut Agreed, &Have<'_>) -> Result<()> + 'a;

/// Takes Have frames up to the end of the list.
fn hear_list(wire: &mut Wire, files: &dyn Files, progress: &Progress, agreed: &mut Agreed, sink: &mut Sink<'_>) -> Result<()> {
    loop {
        progress.stop_if_asked()?;
        let Some(header) = wire.next_frame()? else {
            return Err(Error::new(Kind::Transient, format!("{} closed the connection", wire.peer())));
        };
        match wire.frame(&header)? {
            Frame::Have(have) => sink(agreed, &have)?,
            Frame::Message(Message::Zero { first, count }) => agreed.have.list_zeros(files, &agreed.about, first, count)?,
            Frame::Message(Message::HaveEnd) => {
                wire.done(&header);
                return Ok(());
            }
            Frame::Message(Message::Refuse(refusal) | Message::Abort(refusal)) => return Err(wire.said(refusal)),
            _ => return Err(unexpected(header.kind)),
        }
        wire.done(&header);
    }
}

/// Notes what a receiver lists of a target without a record: a few samples, never more than were agreed.
fn add_samples(samples: &mut Vec<(ExtentIndex, Digest)>, have: &Have<'_>) -> Result<()> {
    let entries = have.entries.chunks_exact(have.entry_bytes);
    if samples.len() + entries.len() > SEED_SAMPLES {
        return Err(Error::malformed(format!("the receiver samples more than {SEED_SAMPLES} extents")));
    }
    samples.extend(entries.enumerate().map(|(at, entry)| {
        let mut digest = Digest::UNKNOWN;
        digest.0.copy_from_slice(&entry[..16]);
        (ExtentIndex(have.first_extent.saturating_add(at as u64)), digest)
    }));
    Ok(())
}

/// Whether a target without a record seems to hold a copy of the source already.
fn seeded(pass: &mut Pass<'_>, geometry: &Geometry, hasher: &Hasher, samples: &[(ExtentIndex, Digest)]) -> Result<bool> {
    let (mut told, mut same) = (0, 0);
    let mut blocks = Vec::new();
    let mut scan = Scan::new(pass.source, *geometry)?;
    for (extent, digest) in samples.iter().filter(|(extent, digest)| digest.is_known() && extent.0 < geometry.extents()) {
        if *digest == hasher.zero_extent(geometry.bytes_of(*extent), &mut blocks) {
            continue;
        }
        let raw = scan.extent(*extent).map_err(super::at_the_source)?;
        told += 1;
        same += usize::from(hasher.extent(raw.data(), &mut blocks) == *digest);
        scan.recycle(raw);
    }
    Ok(same > 0 && same * SEED_PART >= told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_samples_without_end_is_not_listened_to() {
        let mut samples = Vec::new();
        let entries = vec![7; 16 * SEED_SAMPLES];
        let have = |count: usize| Have { first_extent: 3, entry_bytes: 16, entries: &entries[..16 * count] };
        add_samples(&mut samples, &have(SEED_SAMPLES - 1)).unwrap();
        add_samples(&mut samples, &have(1)).unwrap();
        assert_eq!((samples.len(), samples[1]), (SEED_SAMPLES, (ExtentIndex(4), Digest([7; 16]))));
        assert!(add_samples(&mut samples, &have(1)).is_err());
        assert_eq!(samples.len(), SEED_SAMPLES);
    }
}
