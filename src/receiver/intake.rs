//! Takes the frames of one generation: proves each, keeps it in the journal or on the device, makes it
//! durable now and then, and hands the whole to the committer.

use super::committer::{self, Commit, checked_range};
use super::journaler::Journaler;
use super::prover::{Prover, device_runs};
use super::target::Target;
use super::{Held, Received, Session, Site, recovery};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::format::stream::{Ack, Begin, End, Frame, FrameKind, Header, Message, Mode};
use crate::limits::*;
use crate::progress::Phase;
use crate::settings::amount::about;
use crate::state::manifest::Draft;
use crate::state::{ReplicaRecord, Stage};
use crate::transport::wire::unexpected;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

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
    /// Plain bytes and zero extents that came, as the sender's End has to count them.
    came: (u64, u64),
    /// Bytes written straight to the device since its last flush, and when that was.
    unflushed: u64,
    flushed: Instant,
    /// How long the journal may become before room is asked for again.
    journal_may_reach: u64,
    /// Direct mode: the draft may say more than was written. Such a draft is never made durable.
    ahead: bool,
}

impl Intake {
    /// Appends a proven frame to the journal of this pass, which is made with the first one.
    fn keep(&mut self, site: &dyn Site, record: &ReplicaRecord, header: &Header, frame: &[u8]) -> Result<()> {
        let bytes = self.journal.as_ref().map_or(0, Journaler::bytes) + frame.len() as u64 + JOURNAL_SLACK_BYTES;
        if bytes > self.journal_may_reach {
            self.make_room(site, record, bytes)?;
        }
        let journal = match self.journal.take() {
            Some(journal) => journal,
            None => {
                let made = Journaler::create(site.make_journal()?, &recovery::belongs(record)?)?;
                failpoint::reach("receiver.journal-created");
                made
            }
        };
        self.journal.insert(journal).append(header, frame)
    }

    /// Stops before the journal fills the file system it lies on, or takes more than it may: before its first
    /// byte, and before each next window. What a whole delta will need is known to nobody yet.
    fn make_room(&mut self, site: &dyn Site, record: &ReplicaRecord, wanted: u64) -> Result<()> {
        let mut held = 0;
        if let Some(journal) = &mut self.journal {
            // Then all of it counts as taken, and what came is kept if this is its end.
            journal.checkpoint()?;
            site.files().sync_names()?;
            failpoint::reach("receiver.journal-checkpoint");
            held = journal.bytes();
        }
        let room = site.journal_room(record.volume_bytes)?;
        if held + room.bytes >= wanted {
            self.journal_may_reach = held + room.bytes.min(JOURNAL_WINDOW_BYTES);
            return Ok(());
        }
        let message = format!(
            "No space left for the journal of {}: {}. It has {} so far and needs at least {} more. The replica is untouched and what came is kept: {}; --dry-run tells how much a run would send",
            site.name(),
            room.bound,
            about(held),
            about(wanted - held - room.bytes),
            site.more_room(),
        );
        Err(Error::new(Kind::Storage, message))
    }
}

/// Before the first byte of an increment goes straight onto the device. From here on a crash leaves a replica
/// that counts as no generation: its manifest, which forgets what is about to be written, is a hint, as in a
/// first copy that was cut.
fn give_up_generation(site: &dyn Site, record: &mut ReplicaRecord) -> Result<()> {
    if record.stage == Stage::Initializing {
        return Ok(());
    }
    let begun = ReplicaRecord { stage: Stage::Initializing, ..record.clone() };
    begun.store(site.files())?;
    *record = begun;
    Ok(())
}

impl Session<'_> {
    /// Takes the frames of one generation.
    pub(super) fn pass(mut self, held: Held, begin: Begin) -> Result<Received> {
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
            Held::Foreign => (self.empty_draft(&record)?.checkpoint(self.site.files(), self.wire)?, None),
            Held::Absent => {
                let mut draft = self.empty_draft(&record)?;
                draft.set_zeros(0..self.geometry.extents())?;
                (draft.checkpoint(self.site.files(), self.wire)?, None)
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
            came: (0, 0),
            unflushed: 0,
            flushed: Instant::now(),
            journal_may_reach: 0,
            ahead: false,
        };
        let taken = self.take_frames(&mut intake, &mut record, &begin);
        if let Err(error) = &taken
            && error.kind() != Kind::Storage
        {
            // Whatever cut the stream, what came is made durable for the next run. Where that fails too,
            // less is kept; the first error is the one to report.
            if intake.ahead {
                intake.draft = None;
            }
            let _ = self.checkpoint(&mut intake);
        }
        taken
    }

    fn take_frames(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, begin: &Begin) -> Result<Received> {
        loop {
            self.progress.stop_if_asked()?;
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
            // Many small frames may come in one turn, and each may take many reads.
            self.wire.comes(header.frame_bytes());
        }
    }

    fn take_data(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, header: &Header) -> Result<()> {
        let Frame::Data(data) = self.wire.frame(header)? else { return Err(unexpected(header.kind)) };
        data.check(&self.geometry, header)?;
        let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
        let draft = intake.draft.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the draft is gone"))?;
        // Its proof may read the device, which must not lag behind what is gathered.
        if !data.lines().all(|line| line.is_whole(&self.geometry)) {
            target.write_gathered()?;
        }
        let first = data.lines().next().map_or(0, |line| self.geometry.offset(line.extent));
        let mut room = target.room(data.plain_bytes, first)?;
        let direct = self.mode == Mode::Direct;
        self.progress.changed_bytes.fetch_add(data.plain_bytes as u64, Relaxed);
        intake.came.0 += data.plain_bytes as u64;
        let ahead = &mut intake.ahead;
        let proven = intake.prover.unpack(&data, room.bytes()).and_then(|()| {
            *ahead = direct;
            let unproven = intake.prover.prove(&data, &room.bytes()[..data.plain_bytes], target, draft, !direct)?;
            if direct && unproven.is_empty() {
                give_up_generation(&*self.site, record)?;
                draft.forget(data.lines().map(|line| line.extent))?;
            }
            Ok(unproven)
        });
        let unproven = match proven {
            Ok(unproven) => unproven,
            Err(error) => {
                // What other frames gathered in it is written all the same: the draft knows of them.
                target.put(room);
                return Err(error);
            }
        };
        if !unproven.is_empty() {
            intake.ahead = false;
            target.put(room);
            // The frame as a whole is refused, so that what is kept is proven to the last block.
            intake.healed.extend(unproven.iter().map(|extent| extent.0));
            intake.unproven.extend(data.lines().map(|line| line.extent.0));
            if intake.unproven.len() > NEED_EXTENTS_MAX || intake.healed.len() > NEED_EXTENTS_MAX {
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
        if direct {
            intake.unflushed += data.plain_bytes as u64;
            target.write(room, data.plain_bytes, device_runs(&data, &self.geometry))?;
            intake.ahead = false;
        } else {
            target.put(room);
            let frame = self.wire.bytes(header);
            intake.keep(&*self.site, record, header, frame)?;
        }
        self.checkpoint_if_due(intake)
    }

    fn take_zero(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, header: &Header, first: u64, count: u64) -> Result<()> {
        let extents = checked_range(&self.geometry, first, count)?;
        intake.came.1 += count;
        let draft = intake.draft.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the draft is gone"))?;
        intake.ahead = self.mode == Mode::Direct;
        draft.set_zeros(extents.clone())?;
        if self.mode == Mode::Direct {
            let target = self.target.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the replica's device is not open"))?;
            give_up_generation(&*self.site, record)?;
            draft.forget_zeroed(extents.clone())?;
            target.zero(extents, self.wire)?;
            intake.ahead = false;
        } else {
            let frame = self.wire.bytes(header);
            intake.keep(&*self.site, record, header, frame)?;
        }
        self.checkpoint_if_due(intake)
    }

    fn checkpoint_if_due(&mut self, intake: &mut Intake) -> Result<()> {
        let due = match &intake.journal {
            Some(journal) => journal.unsynced() >= JOURNAL_CHECKPOINT_BYTES,
            None if intake.flushed.elapsed() < DIRECT_CHECKPOINT_TIME => intake.unflushed >= DIRECT_CHECKPOINT_BYTES_MAX,
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
                intake.draft = Some(draft.checkpoint(self.site.files(), self.wire)?);
            }
            (intake.unflushed, intake.flushed) = (0, Instant::now());
            failpoint::reach("receiver.direct-checkpoint-installed");
        } else if let Some(journal) = &mut intake.journal {
            journal.checkpoint()?;
            // It may be new: its content is durable, its name has to be, too.
            self.site.files().sync_names()?;
            failpoint::reach("receiver.journal-checkpoint");
        }
        Ok(())
    }

    /// The sender is done: ask again for what could not be proven, or commit.
    fn end(&mut self, intake: &mut Intake, record: &mut ReplicaRecord, begin: &Begin, end: End) -> Result<Option<Received>> {
        if end.generation != begin.generation {
            return Err(Error::malformed("the sender ends another generation than it began"));
        }
        let counted = (end.counts.plain_bytes, end.counts.zero_extents);
        if counted != intake.came {
            let message = format!(
                "the sender counts {} bytes and {} zero extents, but {} and {} came: nothing of this generation is committed",
                counted.0, counted.1, intake.came.0, intake.came.1
            );
            return Err(Error::malformed(message));
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
            Some(journal) => committer::seal_and_commit(&*self.site, record, &commit, draft, journal, target, self.wire)?,
            None => committer::commit_direct(&*self.site, record, &commit, draft, target, self.wire)?,
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
        let remembered = record.store(self.site.files()).and_then(|()| self.site.remove_journal());
        let message = format!(
            "{}: the delta makes root {root}, the source has {}. {}; the next run reads it anew and sends what differs",
            self.site.name(),
            end.root,
            match self.mode {
                Mode::Direct => "The replica is no complete generation".to_owned(),
                _ => format!("The replica stays generation {}", record.generation),
            }
        );
        match remembered {
            Ok(()) => Error::new(Kind::Failed, message),
            Err(cause) => Error::because(Kind::Failed, message, cause),
        }
    }
}
