//! What the sender believes the receiver holds, extent by extent: the view that the snapshot is
//! compared with.
//!
//! The base is the sender's own manifest where its root is the receiver's, else nothing or zeros; what
//! the receiver listed lies over it. A wrong belief costs a resend, never a wrong byte: the receiver
//! proves every extent.

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::format::manifest::{About, Entry, PAGE_UNKNOWN, PAGE_ZERO, write_entry};
use crate::format::stream::{Baseline, Have};
use crate::limits::PAGE_EXTENTS;
use crate::state::manifest::{Damage, Manifest};
use crate::state::{Files, HAVE};
use std::ops::Range;

/// The receiver's content as far as it is known here.
pub struct HaveView {
    baseline: Baseline,
    listed: Option<Manifest>,
    zero: ZeroEntry,
}

/// The entry of an all-zero extent, remade only when the length changes (the last extent's may).
struct ZeroEntry {
    hasher: Hasher,
    geometry: Geometry,
    of_bytes: usize,
    entry: Vec<u8>,
    blocks: Vec<Digest>,
}

impl ZeroEntry {
    fn of(&mut self, extent: ExtentIndex) -> Entry<'_> {
        let bytes = self.geometry.bytes_of(extent);
        if bytes != self.of_bytes {
            let digest = self.hasher.zero_extent(bytes, &mut self.blocks);
            write_entry(&mut self.entry, &digest, &self.blocks);
            self.of_bytes = bytes;
        }
        Entry::new(&self.entry)
    }
}

impl HaveView {
    /// A view with nothing listed yet.
    pub fn new(baseline: Baseline, geometry: Geometry, hasher: &Hasher) -> HaveView {
        let entry = vec![0; 16 + 4 * geometry.blocks_per_extent()];
        let zero = ZeroEntry { hasher: hasher.clone(), geometry, of_bytes: 0, entry, blocks: Vec::new() };
        HaveView { baseline, listed: None, zero }
    }

    /// What the receiver begins with, as it was welcomed or adopted.
    pub fn set_baseline(&mut self, baseline: Baseline) {
        self.baseline = baseline;
    }

    /// Lays what the receiver listed over the base.
    pub fn list(&mut self, files: &dyn Files, about: &About, have: &Have<'_>) -> Result<()> {
        let extents = self.zero.geometry.extents();
        let listed = self.listing(files, about)?;
        for (at, entry) in have.entries.chunks_exact(have.entry_bytes).enumerate() {
            let extent = have.first_extent.saturating_add(at as u64);
            if extent < extents {
                listed.set_bytes(ExtentIndex(extent), entry)?;
            }
        }
        Ok(())
    }

    /// The receiver listed these extents as zero.
    pub fn list_zeros(&mut self, files: &dyn Files, about: &About, first: u64, count: u64) -> Result<()> {
        let extents = self.zero.geometry.extents();
        let range = first.min(extents)..first.saturating_add(count).min(extents);
        self.listing(files, about)?.set_zeros(range)
    }

    fn listing(&mut self, files: &dyn Files, about: &About) -> Result<&mut Manifest> {
        if self.listed.is_none() {
            self.listed = Some(Manifest::create(files, HAVE, *about, &self.zero.hasher, Damage::Unknown)?);
        }
        self.listed.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the listing vanished"))
    }

    /// What is believed of an extent; `base` is the sender's manifest.
    pub fn entry<'a>(&'a mut self, base: Option<&'a mut Manifest>, extent: ExtentIndex) -> Result<Entry<'a>> {
        if let Some(listed) = &mut self.listed
            && listed.entry(extent)?.digest.is_known()
        {
            return listed.entry(extent);
        }
        match (self.baseline, base) {
            (Baseline::Yours, Some(base)) => base.entry(extent),
            (Baseline::Zeros, _) => Ok(self.zero.of(extent)),
            _ => Ok(Entry::new(&[0; 16])),
        }
    }

    /// The zero extent's own entry.
    pub fn zero_entry(&mut self, extent: ExtentIndex) -> Entry<'_> {
        self.zero.of(extent)
    }

    /// Of a range of zero extents, those that the receiver is not known to hold as zero, as ranges;
    /// whole manifest pages of zeros are passed over without a look at their extents.
    pub fn not_zero(&mut self, mut base: Option<&mut Manifest>, extents: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        let mut push = |range: Range<u64>| match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        };
        let mut at = extents.start;
        while at < extents.end {
            let page = at / PAGE_EXTENTS as u64;
            if let (None, Baseline::Yours, Some(base)) = (&self.listed, self.baseline, base.as_deref_mut()) {
                // Of a sparse volume's pages nearly all are.
                let zeros = base.run_of(page..extents.end.div_ceil(PAGE_EXTENTS as u64), PAGE_ZERO)?;
                if zeros > 0 {
                    at = (page + zeros) * PAGE_EXTENTS as u64;
                    continue;
                }
            }
            let part = at..((page + 1) * PAGE_EXTENTS as u64).min(extents.end);
            at = part.end;
            match self.whole_page(base.as_deref_mut(), page)? {
                Some(true) => {}
                Some(false) => push(part),
                None => {
                    for extent in part {
                        let zero = self.zero.of(ExtentIndex(extent)).digest;
                        if self.entry(base.as_deref_mut(), ExtentIndex(extent))?.digest != zero {
                            push(extent..extent + 1);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// `Some(true)`: all of the page is zero at the receiver; `Some(false)`: nothing of it is known;
    /// `None`: look at each extent.
    fn whole_page(&mut self, base: Option<&mut Manifest>, page: u64) -> Result<Option<bool>> {
        if let Some(listed) = &mut self.listed {
            match listed.page_digest(page)? {
                PAGE_ZERO => return Ok(Some(true)),
                PAGE_UNKNOWN => {}
                _ => return Ok(None),
            }
        }
        Ok(match (self.baseline, base) {
            (Baseline::Zeros, _) => Some(true),
            (Baseline::Yours, Some(base)) => match base.page_digest(page)? {
                PAGE_ZERO => Some(true),
                PAGE_UNKNOWN => Some(false),
                _ => None,
            },
            _ => Some(false),
        })
    }
}
