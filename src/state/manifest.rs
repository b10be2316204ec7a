//! Manifests on disk: read page by page, changed page by page, never loaded whole.
//!
//! A committed manifest is never changed in place while it is the only copy. A pass writes the pages
//! it changes, whole, into a second file of the same layout (`manifest.next`, sparse); when that is
//! sealed it is copied into the first. A crash before the seal leaves the old manifest; a crash after
//! it leaves everything that is needed to copy again.

use super::files::{Files, StateFile};
use super::{MANIFEST, NEXT};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::extent::{ExtentIndex, Geometry};
use crate::failpoint;
use crate::format::manifest::*;
use crate::limits::{FORGET_PAGES, PAGE_EXTENTS, PAGES_CACHED};
use crate::progress::{Alone, Witness};
use std::collections::BTreeSet;
use std::ops::Range;
use zerocopy::IntoBytes;

/// What a damaged page counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// An error.
    Refuse,
    /// Extents that nothing is known of: for manifests that are hints.
    Unknown,
}

struct Page {
    number: u64,
    bytes: Vec<u8>,
    dirty: bool,
}

/// A part of the table, with the range of its entries that are not written yet.
struct Slice {
    number: u64,
    entries: Vec<Digest>,
    dirty: Range<usize>,
    /// It is known to have changed: it is touched, and its digest is not known.
    marked: bool,
}

impl Slice {
    fn set(&mut self, at: usize, digest: Digest) {
        if self.entries[at] != digest {
            self.entries[at] = digest;
            self.dirty = if self.dirty.is_empty() { at..at + 1 } else { self.dirty.start.min(at)..self.dirty.end.max(at + 1) };
        }
    }
}

/// One manifest file.
pub struct Manifest {
    file: Box<dyn StateFile>,
    about: About,
    layout: Layout,
    hasher: Hasher,
    damage: Damage,
    slice: Option<Slice>,
    /// The digests of the table's slices as far as they are known: a root is made anew from those that changed.
    names: Vec<Digest>,
    /// Slices of the table that may say anything, where the file was made here; the others need not be read.
    touched: Option<BTreeSet<u64>>,
    /// Most recently used first.
    pages: Vec<Page>,
    blocks: Vec<Digest>,
}

impl Manifest {
    /// An empty, unsealed manifest: every extent is unknown.
    pub fn create(files: &dyn Files, name: &str, about: About, hasher: &Hasher, damage: Damage) -> Result<Manifest> {
        let file = files.create(name)?;
        let about = About { sealed: false, ..about };
        file.write_at(&about.encode(), 0)?;
        Ok(Manifest { touched: Some(BTreeSet::new()), ..Manifest::over(file, about, hasher, damage) })
    }

    /// Opens a manifest. `None`: there is none, or its header cannot be believed.
    pub fn open(files: &dyn Files, name: &str, hasher: &Hasher, damage: Damage) -> Result<Option<Manifest>> {
        let Some(file) = files.open(name)? else { return Ok(None) };
        let mut block = [0; HEADER_BYTES];
        file.read_at(&mut block, 0)?;
        Ok(About::decode(&block).ok().map(|about| Manifest::over(file, about, hasher, damage)))
    }

    fn over(file: Box<dyn StateFile>, about: About, hasher: &Hasher, damage: Damage) -> Manifest {
        let layout = Layout::new(&about.geometry);
        Manifest {
            file,
            about,
            layout,
            hasher: hasher.clone(),
            damage,
            slice: None,
            names: Vec::new(),
            touched: None,
            pages: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// What the manifest says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where its pages lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn geometry(&self) -> Geometry {
        self.about.geometry
    }

    fn slice_pages(&self, slice: u64) -> usize {
        (self.layout.pages - slice * SLICE_PAGES as u64).min(SLICE_PAGES as u64) as usize
    }

    fn slice_of(&mut self, page: u64) -> Result<&mut Slice> {
        let number = page / SLICE_PAGES as u64;
        if self.slice.as_ref().is_none_or(|slice| slice.number != number) {
            self.write_slice()?;
            let mut entries = self.slice.take().map_or_else(Vec::new, |slice| slice.entries);
            entries.clear();
            entries.resize(self.slice_pages(number), Digest::UNKNOWN);
            if self.may_hold(number) {
                self.file.read_at(entries.as_mut_bytes(), self.layout.table_at(number * SLICE_PAGES as u64))?;
            }
            self.slice = Some(Slice { number, entries, dirty: 0..0, marked: false });
        }
        self.slice.as_mut().ok_or_else(|| Error::new(Kind::Failed, "a manifest slice vanished"))
    }

    /// Writes what changed of the slice at hand, and no more: of a large volume's table, a change touches one line.
    fn write_slice(&mut self) -> Result<()> {
        let Some(slice) = &mut self.slice else { return Ok(()) };
        let dirty = std::mem::replace(&mut slice.dirty, 0..0);
        if !dirty.is_empty() {
            let first = slice.number * SLICE_PAGES as u64 + dirty.start as u64;
            self.file.write_at(slice.entries[dirty].as_bytes(), self.layout.table_at(first))?;
        }
        Ok(())
    }

    fn may_hold(&self, slice: u64) -> bool {
        self.touched.as_ref().is_none_or(|touched| touched.contains(&slice))
    }

    /// The first slice from `slice` on that may say anything.
    fn next_slice(&self, slice: u64) -> Option<u64> {
        let found = self.touched.as_ref().map_or(Some(slice), |touched| touched.range(slice..).next().copied());
        found.filter(|slice| *slice < self.slices())
    }

    fn slices(&self) -> u64 {
        self.layout.pages.div_ceil(SLICE_PAGES as u64)
    }

    /// How many pages from the first on say just this, up to the end of a slice of the table. Pages that are changed
    /// in memory end the run.
    pub fn run_of(&mut self, pages: Range<u64>, said: Digest) -> Result<u64> {
        let slice = pages.start / SLICE_PAGES as u64;
        let changed = self.pages.iter().filter(|page| page.dirty && pages.contains(&page.number)).map(|page| page.number).min();
        let end = pages.end.min((slice + 1) * SLICE_PAGES as u64).min(changed.unwrap_or(u64::MAX));
        if !self.may_hold(slice) && self.slice.as_ref().is_none_or(|at_hand| at_hand.number != slice) {
            return Ok(if said == PAGE_UNKNOWN { end - pages.start } else { 0 });
        }
        let first = slice * SLICE_PAGES as u64;
        let entries = &self.slice_of(pages.start)?.entries[(pages.start - first) as usize..(end - first) as usize];
        Ok(entries.iter().take_while(|entry| **entry == said).count() as u64)
    }

    /// The table's word on a page: its digest, `PAGE_ZERO` or `PAGE_UNKNOWN`.
    pub fn page_digest(&mut self, page: u64) -> Result<Digest> {
        // A page that is changed in memory has no digest yet, but it is there.
        if self.pages.iter().any(|cached| cached.number == page && cached.dirty) {
            self.write_page(page)?;
        }
        Ok(self.slice_of(page)?.entries[(page % SLICE_PAGES as u64) as usize])
    }

    /// Whether anything is known of a page, without computing its digest.
    fn holds(&mut self, page: u64) -> Result<bool> {
        if self.pages.iter().any(|cached| cached.number == page && cached.dirty) {
            return Ok(true);
        }
        Ok(self.slice_of(page)?.entries[(page % SLICE_PAGES as u64) as usize] != PAGE_UNKNOWN)
    }

    fn set_page_digest(&mut self, page: u64, digest: Digest) -> Result<()> {
        let number = page / SLICE_PAGES as u64;
        let slice = self.slice_of(page)?;
        slice.set((page % SLICE_PAGES as u64) as usize, digest);
        if std::mem::replace(&mut slice.marked, true) {
            return Ok(());
        }
        if let Some(name) = self.names.get_mut(number as usize) {
            *name = Digest::UNKNOWN;
        }
        if let Some(touched) = &mut self.touched {
            touched.insert(number);
        }
        Ok(())
    }

    /// The bytes of a page whose extents are all zero.
    fn zero_page(&mut self, page: u64) -> Vec<u8> {
        let (geometry, layout) = (self.geometry(), self.layout);
        let mut bytes = vec![0; layout.page_bytes];
        let mut of = usize::MAX;
        let mut digest = Digest::UNKNOWN;
        for (at, extent) in layout.extents(&geometry, page).enumerate() {
            let extent_bytes = geometry.bytes_of(ExtentIndex(extent));
            if extent_bytes != of {
                digest = self.hasher.zero_extent(extent_bytes, &mut self.blocks);
                of = extent_bytes;
            }
            write_entry(&mut bytes[at * layout.entry_bytes..][..layout.entry_bytes], &digest, &self.blocks);
        }
        bytes
    }

    fn read_page(&mut self, page: u64) -> Result<Vec<u8>> {
        let digest = self.slice_of(page)?.entries[(page % SLICE_PAGES as u64) as usize];
        if digest == PAGE_ZERO {
            return Ok(self.zero_page(page));
        }
        let mut bytes = vec![0; self.layout.page_bytes];
        if digest == PAGE_UNKNOWN {
            return Ok(bytes);
        }
        self.file.read_at(&mut bytes, self.layout.page_at(page))?;
        if self.hasher.digest(&bytes) == digest {
            return Ok(bytes);
        }
        match self.damage {
            Damage::Unknown => Ok(vec![0; self.layout.page_bytes]),
            Damage::Refuse => Err(Error::malformed(format!(
                "page {page} of the manifest is damaged (the replica itself need not be): run again with --resync, which reads the replica anew and sends what differs"
            ))),
        }
    }

    /// Brings a page to the front of the cache.
    fn page(&mut self, number: u64) -> Result<&mut Page> {
        match self.pages.iter().position(|page| page.number == number) {
            Some(at) => self.pages[..=at].rotate_right(1),
            None => {
                let bytes = self.read_page(number)?;
                self.put_page(number, bytes, false)?;
            }
        }
        Ok(&mut self.pages[0])
    }

    fn put_page(&mut self, number: u64, bytes: Vec<u8>, dirty: bool) -> Result<()> {
        while self.pages.len() >= PAGES_CACHED {
            let last = self.pages[self.pages.len() - 1].number;
            self.write_page(last)?;
            self.pages.pop();
        }
        self.pages.insert(0, Page { number, bytes, dirty });
        Ok(())
    }

    /// Writes a changed page and its line in the table. A page of zero extents is only a mark, so that
    /// equal content has an equal root however it came about.
    fn write_page(&mut self, number: u64) -> Result<()> {
        let Some(at) = self.pages.iter().position(|page| page.number == number && page.dirty) else { return Ok(()) };
        self.pages[at].dirty = false;
        let bytes = std::mem::take(&mut self.pages[at].bytes);
        let digest = if bytes.iter().all(|byte| *byte == 0) {
            PAGE_UNKNOWN
        } else if bytes == self.zero_page(number) {
            PAGE_ZERO
        } else {
            self.file.write_at(&bytes, self.layout.page_at(number))?;
            self.hasher.digest(&bytes)
        };
        self.pages[at].bytes = bytes;
        self.set_page_digest(number, digest)
    }

    /// What is known of an extent.
    pub fn entry(&mut self, extent: ExtentIndex) -> Result<Entry<'_>> {
        let (page, at) = self.layout.place(extent);
        let bytes = self.layout.entry_bytes;
        Ok(Entry::new(&self.page(page)?.bytes[at * bytes..][..bytes]))
    }

    /// Sets the entry of an extent.
    pub fn set(&mut self, extent: ExtentIndex, digest: &Digest, blocks: &[Digest]) -> Result<()> {
        let (page, at) = self.layout.place(extent);
        let bytes = self.layout.entry_bytes;
        let page = self.page(page)?;
        write_entry(&mut page.bytes[at * bytes..][..bytes], digest, blocks);
        page.dirty = true;
        Ok(())
    }

    /// Sets an entry from its bytes, or from a digest alone.
    pub fn set_bytes(&mut self, extent: ExtentIndex, entry: &[u8]) -> Result<()> {
        let (page, at) = self.layout.place(extent);
        let bytes = self.layout.entry_bytes;
        let page = self.page(page)?;
        let slot = &mut page.bytes[at * bytes..][..bytes];
        let given = entry.len().min(bytes);
        slot[..given].copy_from_slice(&entry[..given]);
        slot[given..].fill(0);
        page.dirty = true;
        Ok(())
    }

    /// Sets a range of extents to zero: whole pages by their mark alone.
    pub fn set_zeros(&mut self, extents: Range<u64>) -> Result<()> {
        let geometry = self.geometry();
        let mut blocks = std::mem::take(&mut self.blocks);
        for page in pages_touched(&extents) {
            let of_page = self.layout.extents(&geometry, page);
            let part = extents.start.max(of_page.start)..extents.end.min(of_page.end);
            if part == of_page {
                self.pages.retain(|cached| cached.number != page);
                self.set_page_digest(page, PAGE_ZERO)?;
                continue;
            }
            for extent in part.map(ExtentIndex) {
                let digest = self.hasher.zero_extent(geometry.bytes_of(extent), &mut blocks);
                self.set(extent, &digest, &blocks)?;
            }
        }
        self.blocks = blocks;
        Ok(())
    }

    /// Writes what is changed in memory. Not durable yet.
    pub fn write(&mut self) -> Result<()> {
        let dirty: Vec<u64> = self.pages.iter().filter(|page| page.dirty).map(|page| page.number).collect();
        dirty.into_iter().try_for_each(|page| self.write_page(page))?;
        self.write_slice()
    }

    /// The root over what is known now.
    pub fn root(&mut self) -> Result<Digest> {
        self.write()?;
        self.name_slices()?;
        Ok(root_of(&self.hasher, &self.geometry(), self.names.iter()))
    }

    /// Finds the digests of the slices of which they are not known.
    fn name_slices(&mut self) -> Result<()> {
        let hasher = self.hasher.clone();
        self.names.resize(self.slices() as usize, Digest::UNKNOWN);
        for slice in 0..self.slices() {
            if !self.names[slice as usize].is_known() {
                let at_hand = self.slice_of(slice * SLICE_PAGES as u64)?;
                at_hand.marked = false;
                self.names[slice as usize] = hasher.over(&at_hand.entries);
            }
        }
        Ok(())
    }

    fn write_header(&mut self, about: About) -> Result<()> {
        self.about = About { sealed: true, ..about };
        self.file.write_at(&self.about.encode(), 0)
    }

    /// Reads every page against the table and the table against the root.
    pub fn check(&mut self) -> Result<()> {
        for page in 0..self.layout.pages {
            self.read_page(page)?;
        }
        let root = self.root()?;
        if self.about.sealed && root != self.about.root {
            return Err(Error::malformed(format!("the manifest's table does not make its root: {root} instead of {}", self.about.root)));
        }
        Ok(())
    }
}

/// The pages that a range of extents lies on.
fn pages_touched(extents: &Range<u64>) -> Range<u64> {
    extents.start / PAGE_EXTENTS as u64..extents.end.div_ceil(PAGE_EXTENTS as u64)
}

/// The next generation's manifest while it is being made: the pages that change, over a base.
pub struct Draft {
    base: Manifest,
    next: Manifest,
}

impl Draft {
    /// Starts the next generation over `base`.
    pub fn new(files: &dyn Files, base: Manifest) -> Result<Draft> {
        let next = Manifest::create(files, NEXT, base.about, &base.hasher.clone(), base.damage)?;
        Ok(Draft { base, next })
    }

    /// The generation under it.
    pub fn base(&mut self) -> &mut Manifest {
        &mut self.base
    }

    /// The pages that changed, in order, as far as they are from `page` on: the next one at or after it.
    pub fn changed_page(&mut self, from: u64) -> Result<Option<u64>> {
        let mut page = from;
        self.next.write()?;
        while let Some(slice) = self.next.next_slice(page / SLICE_PAGES as u64) {
            page = page.max(slice * SLICE_PAGES as u64);
            let in_slice = (page % SLICE_PAGES as u64) as usize;
            let slice = self.next.slice_of(page)?;
            if let Some(found) = slice.entries[in_slice..].iter().position(|entry| *entry != PAGE_UNKNOWN) {
                return Ok(Some(page + found as u64));
            }
            page = (page / SLICE_PAGES as u64 + 1) * SLICE_PAGES as u64;
        }
        Ok(None)
    }

    /// Gives the base up and forgets the changes.
    pub fn into_base(self) -> Manifest {
        self.base
    }

    /// What is known of an extent now.
    pub fn entry(&mut self, extent: ExtentIndex) -> Result<Entry<'_>> {
        let (page, _) = self.next.layout.place(extent);
        if self.next.holds(page)? { self.next.entry(extent) } else { self.base.entry(extent) }
    }

    /// Sets an extent's entry; writes nothing where it is that already.
    pub fn set(&mut self, extent: ExtentIndex, digest: &Digest, blocks: &[Digest]) -> Result<()> {
        let entry = self.entry(extent)?;
        let same = entry.digest == *digest && blocks.iter().enumerate().all(|(at, block)| entry.fingerprint(at) == block.fingerprint());
        if same {
            return Ok(());
        }
        self.own_page(self.next.layout.place(extent).0)?;
        self.next.set(extent, digest, blocks)
    }

    /// Copies the base's page into the draft unless it is there.
    fn own_page(&mut self, page: u64) -> Result<()> {
        if !self.next.holds(page)? {
            let bytes = self.base.page(page)?.bytes.clone();
            self.next.pages.retain(|cached| cached.number != page);
            self.next.put_page(page, bytes, true)?;
        }
        Ok(())
    }

    /// Sets a range of extents to zero: whole pages by their mark alone.
    pub fn set_zeros(&mut self, extents: Range<u64>) -> Result<()> {
        let (geometry, layout) = (self.base.geometry(), self.base.layout);
        let pages = pages_touched(&extents);
        let mut page = pages.start;
        while page < pages.end {
            // Of a sparse volume most of the base says zero already, and the draft nothing.
            let still = self.base.run_of(page..pages.end, PAGE_ZERO)?;
            let still = if still > 0 { self.next.run_of(page..page + still, PAGE_UNKNOWN)? } else { 0 };
            if still > 0 {
                page += still;
                continue;
            }
            let of_page = layout.extents(&geometry, page);
            let part = extents.start.max(of_page.start)..extents.end.min(of_page.end);
            page += 1;
            if part != of_page {
                self.own_page(page - 1)?;
            }
            self.next.set_zeros(part)?;
        }
        Ok(())
    }

    /// Direct copies: before the device is written at extents that the base, a hint, knows, the base forgets
    /// them durably. Without this a crash between write and flush leaves a torn extent under its old name,
    /// and a source that went back to the old content would not send it.
    ///
    /// It forgets whole pages, which the draft keeps and the next checkpoint gives back: one sync a page and
    /// not one a frame. Pages of zeros (a new file's) go a window at once, as they cost nothing to tell again:
    /// a first copy of 1 GiB into a new file syncs 33 times and not some 4100 times, in under a third of the time.
    pub fn forget(&mut self, extents: impl Iterator<Item = ExtentIndex>) -> Result<()> {
        let mut forgotten = false;
        for extent in extents {
            forgotten |= self.forget_page(self.base.layout.place(extent).0)?;
        }
        self.forgotten(forgotten)
    }

    /// The same for a range that becomes zero; where the base says zero, that stays true.
    pub fn forget_zeroed(&mut self, extents: Range<u64>) -> Result<()> {
        let mut forgotten = false;
        for page in pages_touched(&extents) {
            if self.base.page_digest(page)? != PAGE_ZERO {
                forgotten |= self.forget_page(page)?;
            }
        }
        self.forgotten(forgotten)
    }

    fn forget_page(&mut self, touched: u64) -> Result<bool> {
        let known = self.base.page_digest(touched)?;
        if known == PAGE_UNKNOWN {
            return Ok(false);
        }
        let window = if known == PAGE_ZERO { FORGET_PAGES } else { 1 };
        for page in touched..(touched + window).min(self.base.layout.pages) {
            if self.base.page_digest(page)? == known {
                self.own_page(page)?;
                self.base.pages.retain(|cached| cached.number != page);
                self.base.set_page_digest(page, PAGE_UNKNOWN)?;
            }
        }
        Ok(true)
    }

    fn forgotten(&mut self, forgotten: bool) -> Result<()> {
        if forgotten {
            self.base.write()?;
            self.base.file.sync()?;
            // From here on a crash leaves these pages unknown: their extents travel again.
        }
        Ok(())
    }

    /// The root that base and changes make together.
    pub fn root(&mut self) -> Result<Digest> {
        self.base.write()?;
        self.base.name_slices()?;
        self.next.write()?;
        let hasher = self.base.hasher.clone();
        let (mut names, mut merged, mut from) = (self.base.names.clone(), Vec::new(), 0);
        while let Some(slice) = self.next.next_slice(from) {
            let page = slice * SLICE_PAGES as u64;
            merged.clone_from(&self.base.slice_of(page)?.entries);
            for (entry, next) in merged.iter_mut().zip(&self.next.slice_of(page)?.entries) {
                if *next != PAGE_UNKNOWN {
                    *entry = *next;
                }
            }
            names[slice as usize] = hasher.over(&merged);
            from = slice + 1;
        }
        Ok(root_of(&hasher, &self.base.geometry(), names.iter()))
    }

    /// Makes the draft durable as this generation, and with its name those of all files in its folder: the journal's
    /// too. From here on it may be installed, again and again.
    ///
    /// One sync for pages and header together: before it returned, no record and no peer calls this generation
    /// committed, and nobody believes a draft unasked. What is believed later is checked: the table by the root, the
    /// pages by the table.
    pub fn seal(&mut self, about: About) -> Result<()> {
        self.next.write()?;
        self.next.write_header(about)?;
        // From here on a crash leaves the old manifest and all that is needed to make the new one of it.
        self.next.file.sync()
    }

    /// Copies the changed pages into the base, which becomes the sealed draft's generation.
    /// `recorded` must already name that generation: a crash in here is finished by [`load`].
    pub fn install(mut self, files: &dyn Files, witness: &mut dyn Witness) -> Result<Manifest> {
        let about = self.next.about;
        debug_assert!(about.sealed, "only a sealed draft may be installed");
        if self.copy_pages(witness)? {
            self.base.write()?;
            // From here on a crash leaves the new pages under the old header, and the draft.
            self.base.file.sync()?;
            witness.step();
        }
        self.base.write_header(about)?;
        self.base.file.sync()?;
        // From here on a crash leaves the new manifest.
        failpoint::reach("manifest.installed");
        // The draft is not needed any more. One that a crash brings back is of a generation that nobody asks for.
        drop(self.next);
        files.discard(NEXT)?;
        Ok(self.base)
    }

    /// Direct copies: lets the base, which is unsealed and only a hint until its first commit, know what
    /// the device is known to hold durably, and starts an empty draft over it.
    pub fn checkpoint(mut self, files: &dyn Files, witness: &mut dyn Witness) -> Result<Draft> {
        self.next.write()?;
        self.copy_pages(witness)?;
        self.base.write()?;
        self.base.file.sync()?;
        drop(self.next);
        Draft::new(files, self.base)
    }

    /// Whether there were any. A witness that went away changes nothing.
    fn copy_pages(&mut self, witness: &mut dyn Witness) -> Result<bool> {
        let layout = self.base.layout;
        let mut from = 0;
        while let Some(page) = self.changed_page(from)? {
            let digest = self.next.page_digest(page)?;
            if digest != PAGE_ZERO {
                let bytes = self.next.read_page(page)?;
                self.base.file.write_at(&bytes, layout.page_at(page))?;
                let _ = witness.worked(bytes.len() as u64);
            }
            self.base.pages.retain(|cached| cached.number != page);
            self.base.set_page_digest(page, digest)?;
            failpoint::reach("manifest.install-halfway");
            from = page + 1;
        }
        Ok(from > 0)
    }
}

/// The committed manifest that the record names, finishing an installation that a crash cut short.
/// `None`: it is lost, or its table is not what the record says. `damage` is about its pages.
pub fn load(
    files: &dyn Files,
    generation: u64,
    root: &Digest,
    geometry: &Geometry,
    hasher: &Hasher,
    damage: Damage,
) -> Result<Option<Manifest>> {
    let fits = |about: &About| about.sealed && about.generation == generation && about.root == *root && about.geometry == *geometry;
    let base = Manifest::open(files, MANIFEST, hasher, damage)?.filter(|base| base.about.geometry == *geometry);
    let Some(mut base) = base else { return Ok(None) };
    if fits(&base.about) {
        return Ok((base.root()? == *root).then_some(base));
    }
    let Some(next) = Manifest::open(files, NEXT, hasher, Damage::Refuse)?.filter(|next| fits(&next.about)) else { return Ok(None) };
    let mut draft = Draft { base, next };
    // Checked before the base's header claims it: a draft over another base would be believed next time.
    if draft.root()? != *root {
        return Ok(None);
    }
    match draft.install(files, &mut Alone) {
        // A draft that rotted is a manifest lost, not a replica lost.
        Err(error) if error.kind() == Kind::Failed => Ok(None),
        installed => installed.map(Some),
    }
}

/// The sealed draft of this generation and root over the committed base, if one is there.
pub fn sealed_draft(files: &dyn Files, base: Manifest, generation: u64, root: &Digest) -> Result<Result<Draft, Manifest>> {
    let next = Manifest::open(files, NEXT, &base.hasher.clone(), Damage::Refuse)?;
    Ok(match next.filter(|next| next.about.sealed && next.about.generation == generation && next.about.root == *root) {
        Some(next) if next.about.geometry == base.about.geometry => Ok(Draft { base, next }),
        _ => Err(base),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::state::HostFiles;
    use uuid::Uuid;

    fn about(bytes: u64) -> About {
        About {
            relationship: Uuid::nil(),
            epoch: Uuid::nil(),
            generation: 0,
            root: Digest::UNKNOWN,
            sealed: false,
            algorithm: Algorithm::Xxh3,
            geometry: Geometry::new(bytes, 65536).unwrap(),
        }
    }

    fn hasher() -> Hasher {
        Hasher::new(Algorithm::Xxh3, &[3; 192])
    }

    fn entry(hasher: &Hasher, seed: u8, blocks: usize) -> (Digest, Vec<Digest>) {
        let blocks: Vec<Digest> = (0..blocks).map(|block| hasher.digest(&[seed, block as u8])).collect();
        (hasher.over(&blocks), blocks)
    }

    fn fill(draft: &mut Draft, extents: Range<u64>, seed: u8) {
        let hasher = hasher();
        for extent in extents {
            let extent = ExtentIndex(extent);
            let blocks = draft.base.geometry().blocks_of(extent);
            let (digest, blocks) = entry(&hasher, seed.wrapping_add(extent.0 as u8), blocks);
            draft.set(extent, &digest, &blocks).unwrap();
        }
    }

    #[test]
    fn a_crash_at_any_step_of_the_installation_leaves_the_old_or_the_new_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        let about = about(1500 * 65536 + 512);
        let base = Manifest::create(&files, MANIFEST, about, &hasher(), Damage::Refuse).unwrap();
        let mut draft = Draft::new(&files, base).unwrap();
        fill(&mut draft, 0..1501, 1);
        let first = About { generation: 1, root: draft.root().unwrap(), ..about };
        draft.seal(first).unwrap();
        let base = draft.install(&files, &mut Alone).unwrap();

        let mut draft = Draft::new(&files, base).unwrap();
        fill(&mut draft, 250..260, 9);
        let second = About { generation: 2, root: draft.root().unwrap(), ..about };
        assert_ne!(first.root, second.root);
        draft.seal(second).unwrap();
        // Installed half-way: the pages are torn and the header is the old one.
        draft.base.file.write_at(&[0xee; 3000], draft.base.layout.page_at(1)).unwrap();
        drop(draft);
        let mut found =
            load(&files, 2, &second.root, &about.geometry, &hasher(), Damage::Refuse).unwrap().expect("generation 2 is completed");
        found.check().unwrap();
        assert_eq!(found.root().unwrap(), second.root);
        assert!(load(&files, 1, &first.root, &about.geometry, &hasher(), Damage::Refuse).unwrap().is_none());
    }

    #[test]
    fn a_page_of_zero_extents_is_only_a_mark_however_it_came_about() {
        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        let about = about(700 * 65536);
        let roots: Vec<Digest> = [true, false]
            .into_iter()
            .map(|at_once| {
                let base = Manifest::create(&files, MANIFEST, about, &hasher(), Damage::Refuse).unwrap();
                let mut draft = Draft::new(&files, base).unwrap();
                fill(&mut draft, 0..10, 5);
                if at_once {
                    draft.set_zeros(0..700).unwrap();
                } else {
                    (0..700).rev().for_each(|extent| draft.set_zeros(extent..extent + 1).unwrap());
                }
                assert_eq!(draft.next.page_digest(1).unwrap(), PAGE_ZERO);
                draft.root().unwrap()
            })
            .collect();
        assert_eq!(roots[0], roots[1]);
    }

    #[test]
    fn a_root_made_from_what_changed_is_that_of_the_whole_table_and_little_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        // Some three slices of the table, and a half.
        let about = about(230 << 30);
        let pages = Layout::new(&about.geometry).pages;
        let mut base = Manifest::create(&files, MANIFEST, about, &hasher(), Damage::Refuse).unwrap();
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for generation in 1..9 {
            let mut draft = Draft::new(&files, base).unwrap();
            if generation == 1 {
                draft.set_zeros(0..about.geometry.extents()).unwrap();
            }
            for _ in 0..20 {
                let (first, count) = (random(about.geometry.extents() - 400), random(400));
                match random(3) {
                    0 => draft.set_zeros(first..first + count).unwrap(),
                    _ => fill(&mut draft, first..first + 3, generation as u8),
                }
                if random(4) == 0 {
                    draft.root().unwrap();
                }
            }
            let sealed = About { generation, root: draft.root().unwrap(), ..about };
            draft.seal(sealed).unwrap();
            let next = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.path().join(NEXT)).unwrap()) * 512;
            assert!(generation == 1 || next < 60 * (20 << 10) + (256 << 10), "{next} bytes for at most 60 pages");
            draft.install(&files, &mut Alone).unwrap();
            base =
                load(&files, generation, &sealed.root, &about.geometry, &hasher(), Damage::Refuse).unwrap().expect("it is the generation");
            assert_eq!(base.run_of(0..pages, PAGE_UNKNOWN).unwrap(), 0);
        }
    }

    /// Counts how often it is told.
    struct Told(u32);

    impl Witness for Told {
        fn worked(&mut self, _: u64) -> Result<()> {
            self.0 += 1;
            Ok(())
        }
    }

    #[test]
    fn a_flipped_bit_in_a_page_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let files = HostFiles::new(folder.path());
        let about = about(300 * 65536);
        let base = Manifest::create(&files, MANIFEST, about, &hasher(), Damage::Refuse).unwrap();
        let mut draft = Draft::new(&files, base).unwrap();
        fill(&mut draft, 0..300, 1);
        let sealed = About { generation: 1, root: draft.root().unwrap(), ..about };
        draft.seal(sealed).unwrap();
        let mut told = Told(0);
        let manifest = draft.install(&files, &mut told).unwrap();
        assert!(told.0 >= 2, "who waits for it is told of each of its two pages");
        let at = manifest.layout.page_at(1) + 40;
        let mut byte = [0];
        manifest.file.read_at(&mut byte, at).unwrap();
        manifest.file.write_at(&[byte[0] ^ 1], at).unwrap();
        let mut again = load(&files, 1, &sealed.root, &about.geometry, &hasher(), Damage::Refuse).unwrap().unwrap();
        assert!(again.entry(ExtentIndex(0)).is_ok());
        assert!(again.entry(ExtentIndex(280)).is_err());
        assert!(again.check().is_err());
    }
}
