//! One snapshot, several receivers: each delivery has a pair, a cursor and a result of its own, and shares nothing
//! with the others but what is read.

use super::delivery::{Delivery, Errand, Host, Pair};
use super::reading::{Origin, Reading};
use super::sources::Source;
use super::way::carry;
use crate::error::{Error, Kind, Result};
use crate::format::stream::{Ack, Counts, Mode, Purpose};
use crate::sender::{Outcome, Pass};
use std::ops::Range;

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
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Report {
        Report { ack: outcome.ack, mode: outcome.mode, counts: outcome.counts, adopted: outcome.adopted }
    }
}

/// What became of a snapshot.
#[derive(Debug)]
pub struct Replicated {
    /// One result for each delivery, in their order.
    pub deliveries: Vec<Result<Report>>,
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

    /// Runs a pass of this half over the snapshot.
    pub fn pass(
        &mut self,
        delivery: &Delivery<'_>,
        reading: &mut Reading,
        on_difference: &mut dyn FnMut(Range<u64>),
        run: impl FnOnce(&mut Pass<'_>) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let order = delivery.errand.order(reading.taken_ms);
        let (disk, mut watch) = reading.parts();
        run(&mut Pass {
            source: disk,
            files: &self.source.files,
            record: &mut self.source.record,
            target: &self.target,
            order,
            watch: &mut watch,
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

/// Brings every delivery's replica to what `reading`, a snapshot of `origin`, holds, and removes the snapshot.
///
/// A delivery that fails hurts none of the others. A snapshot that overflows fails all that are not committed yet,
/// with [`Kind::Snapshot`]. The generation's time is the moment of the snapshot, whenever the transfer begins.
pub fn replicate(host: &Host, origin: &Origin, mut reading: Reading, deliveries: &[Delivery<'_>]) -> Replicated {
    let deliveries = deliveries.iter().map(|delivery| deliver(host, origin, &mut reading, delivery)).collect();
    Replicated { deliveries, removed: reading.remove() }
}

fn deliver(host: &Host, origin: &Origin, reading: &mut Reading, delivery: &Delivery<'_>) -> Result<Report> {
    if delivery.errand.purpose == Purpose::Verify {
        return Err(Error::new(Kind::Failed, "a verification delivers nothing"));
    }
    let pair = Pair::of(&host.state, &origin.path, &delivery.errand.target)?;
    let mut half = Half::open(host, origin, pair, &delivery.errand, Some(reading.bytes()))?;
    let result = half.pass(delivery, reading, &mut |_| {}, |pass| carry(host, delivery, pass));
    let result = reading.explain(result);
    half.settle(&delivery.errand, result)
}
