//! One snapshot, several receivers: each delivery has a pair, a cursor and a result of its own, and shares nothing
//! with the others but what is read. Deliveries that run at once read the snapshot once (`disk::shared`).

use super::delivery::{Delivery, Errand, Host, Pair};
use super::reading::{Origin, Reading, Watching};
use super::sources::Source;
use super::way::carry;
use crate::disk::Disk;
use crate::disk::shared::Shared;
use crate::error::{Error, Kind, Result};
use crate::format::stream::{Ack, Counts, Mode, Purpose};
use crate::sender::{Exertion, Outcome, Pass};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The receiver's commit; none for plan and verify.
    pub ack: Option<Ack>,
    /// How the delta was taken.
    pub mode: Mode,
    /// What the sender counted.
    pub counts: Counts,
    /// A generation whose acknowledgement had been lost was adopted first.
    pub adopted: Option<u64>,
    /// How hard the blocks were compressed, where they were sent from here.
    pub exertion: Option<Exertion>,
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Report {
        let Outcome { ack, mode, counts, adopted, exertion } = outcome;
        Report { ack, mode, counts, adopted, exertion }
    }
}

/// What became of a snapshot.
#[derive(Debug)]
pub struct Replicated {
    /// One result for each delivery, in their order.
    pub deliveries: Vec<Result<Report>>,
    /// Bytes that were read of the source, for all of them together.
    pub read_bytes: u64,
    /// The snapshot could not be removed: what was delivered is committed all the same.
    pub removed: Result<()>,
}

/// The source's half of a pair, found or made, and locked for one delivery.
pub(super) struct Half {
    source: Source,
    target: String,
}

impl Half {
    /// Takes the half. `snapshot_bytes`: the size of the snapshot where it is made already.
    pub fn open(host: &Host, origin: &Origin, pair: Pair, errand: &Errand, snapshot_bytes: Option<u64>) -> Result<Half> {
        let remember = errand.purpose == Purpose::Replicate;
        let Pair { label, target, known } = pair;
        let source = Source::open(&host.state, &origin.path, &label, known, errand.wishes(), snapshot_bytes, remember)?;
        Ok(Half { source, target })
    }

    /// What the pair's last increment changed.
    pub fn changed_bytes(&self) -> Option<u64> {
        self.source.record.changed_bytes
    }

    /// Runs a pass of this half over what `opened` reads.
    pub fn pass(
        &mut self,
        delivery: &Delivery<'_>,
        mut opened: Opened<'_>,
        on_difference: &mut dyn FnMut(Range<u64>),
        run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    ) -> Result<Outcome> {
        run(&mut Pass {
            source: opened.disk,
            further: &mut opened.further,
            files: &self.source.files,
            record: &mut self.source.record,
            target: &self.target,
            order: delivery.errand.order(opened.taken_ms),
            watch: &mut |when| opened.watch.check(when),
            progress: delivery.here,
            on_difference,
        })
    }

    /// Ends the delivery. A plan, or a refusal at the first contact, leaves nothing behind.
    pub fn settle(self, errand: &Errand, result: Result<Outcome>) -> Result<Report> {
        let never_paired = self.source.is_new && self.source.record.generation == 0;
        let refused =
            matches!(&result, Err(error) if matches!(error.kind(), Kind::Refused | Kind::Usage | Kind::Operator | Kind::Snapshot));
        if never_paired && (refused || errand.purpose != Purpose::Replicate) {
            self.source.forget();
        }
        result.map(Report::from)
    }
}

/// What one delivery reads.
pub(super) struct Opened<'a> {
    /// The snapshot, or this delivery's share of it.
    pub disk: &'a mut dyn Disk,
    /// The same, for further shards.
    pub further: Vec<Box<dyn Disk>>,
    /// The watch over it.
    pub watch: Watching<'a>,
    /// When it was taken: milliseconds since 1970.
    pub taken_ms: u64,
}

impl<'a> Opened<'a> {
    /// All of a reading, for one errand.
    pub fn whole(reading: &'a mut Reading, errand: &Errand) -> Result<Opened<'a>> {
        let taken_ms = reading.taken_ms;
        let further = (1..errand.shard_count()).map(|_| reading.again()).collect::<Result<_>>()?;
        let (disk, watch) = reading.parts();
        Ok(Opened { disk, further, watch, taken_ms })
    }
}

/// Brings every delivery's replica to what `reading`, a snapshot of `origin`, holds, and removes the snapshot.
/// `at_once`: so many deliveries run side by side and share what is read; the others follow and read again.
///
/// A delivery that fails hurts none of the others. A snapshot that overflows fails all that are not committed yet,
/// with [`Kind::Snapshot`]. The generation's time is the moment of the snapshot, whenever the transfer begins.
pub fn replicate(host: &Host, origin: &Origin, mut reading: Reading, deliveries: &[Delivery<'_>], at_once: usize) -> Replicated {
    let (deliveries, read_bytes) = match deliveries.len().min(at_once) {
        0 | 1 => one_by_one(host, origin, &mut reading, deliveries),
        workers => together(host, origin, &mut reading, deliveries, workers),
    };
    Replicated { deliveries, read_bytes, removed: reading.remove() }
}

fn one_by_one(host: &Host, origin: &Origin, reading: &mut Reading, deliveries: &[Delivery<'_>]) -> (Vec<Result<Report>>, u64) {
    let results: Vec<_> =
        deliveries.iter().map(|delivery| deliver(host, origin, Opened::whole(reading, &delivery.errand)?, delivery)).collect();
    let read_bytes = results.iter().flatten().map(|report| report.counts.read_bytes).sum();
    (results, read_bytes)
}

fn together(
    host: &Host,
    origin: &Origin,
    reading: &mut Reading,
    deliveries: &[Delivery<'_>],
    workers: usize,
) -> (Vec<Result<Report>>, u64) {
    let taken_ms = reading.taken_ms;
    let (disk, watch) = reading.parts();
    let shared = Shared::new(disk.name(), disk.bytes());
    let results: Vec<Mutex<Option<Result<Report>>>> = deliveries.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    let work = |mut share| {
        // One share for all deliveries of a worker would begin the second behind the first; each has its own.
        while let Some((delivery, result)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            deliveries.get(at).zip(results.get(at))
        } {
            let disk: &mut dyn Disk = &mut share;
            let done = deliver(host, origin, Opened { disk, further: Vec::new(), watch, taken_ms }, delivery);
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            share = shared.share();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| shared.serve(disk));
        // All shares are there before the first reads: what it reads is kept for the others.
        let shares: Vec<_> = (0..workers).map(|_| shared.share()).collect();
        let running: Vec<_> = shares.into_iter().map(|share| scope.spawn(|| work(share))).collect();
        let ended: Vec<_> = running.into_iter().map(|worker| worker.join()).collect();
        shared.close();
        ended.into_iter().for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    let lost = || Err(Error::new(Kind::Failed, "a delivery ended without a result"));
    let results = results.into_iter().map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(lost));
    (results.collect(), shared.read_bytes())
}

fn deliver(host: &Host, origin: &Origin, opened: Opened<'_>, delivery: &Delivery<'_>) -> Result<Report> {
    if delivery.errand.purpose == Purpose::Verify {
        return Err(Error::new(Kind::Failed, "a verification delivers nothing"));
    }
    let watch = opened.watch;
    let pair = Pair::of(&host.state, &origin.path, &delivery.errand.target)?;
    let mut half = Half::open(host, origin, pair, &delivery.errand, Some(opened.disk.bytes()))?;
    let result = half.pass(delivery, opened, &mut |_| {}, |pass| carry(host, delivery, pass));
    let result = watch.explain(result);
    half.settle(&delivery.errand, result)
}
