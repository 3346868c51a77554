//! What becomes of records that the destination refuses for good: a letter and an entry in the ledger, a notice upstream in
//! their place; or, where no letter can be kept, nothing but waiting.

use super::Forwarder;
use crate::backoff::Backoff;
use crate::log::Entry;
use crate::record::Record;
use crate::uplink::gap;
use crate::uplink::lanes::Finished;
use crate::uplink::sink::{Fault, GroupId, Kind, Outcome, Outgoing};

/// Single records refused in a row before it is taken for a fault of the destination and everything is held.
pub const IN_ROW_MAX: u32 = 16;
/// After so long a letter that could not be kept is tried again.
const KEEP_AGAIN_MS: u64 = 1_000;

impl Forwarder {
    pub(super) async fn note(&mut self, finished: Finished, at: usize, id: GroupId, outcome: Outcome, now_ms: u64) {
        self.figures.stored(finished.records, finished.payload_bytes);
        let Some(dead) = finished.dead else { return };
        let why = match &outcome {
            Outcome::Failed(fault) => fault.to_string(),
            _ => String::new(),
        };
        if self.refused_in_row >= IN_ROW_MAX {
            // So many in a row are no accident of the records: nothing is dropped until the destination takes something.
            self.hold(now_ms, &Fault::Broken(format!("it refuses everything: {why}")));
            self.lanes[at].replace(id, dead.clone(), Some(dead));
            return;
        }
        let told = match dead.kind {
            Kind::Record => match self.bury(at, &dead.record, &why).await {
                Some(record) => Some(Outgoing { kind: Kind::Gap, record }),
                // It waits in its place, and holds its lane alone.
                None => {
                    let wait_ms = Backoff::DEFAULT.wait_ms(self.lanes[at].failures(id) + 1, fastrand::u64(..));
                    return self.lanes[at].put_back(id, dead, now_ms + wait_ms);
                }
            },
            // Not even the notice is taken: the ledger has it.
            Kind::Gap => None,
        };
        self.refused_in_row += 1;
        self.lanes[at].replace(id, dead, told);
    }

    /// `false` if its letter cannot be kept now.
    pub(super) async fn take_in_refused(&mut self, at: usize, record: Record, why: &str, now_ms: u64) -> bool {
        if self.lanes[at].progress().is_done(record.number) {
            return true;
        }
        match self.bury(at, &record, why).await {
            Some(told) => self.lanes[at].push(Kind::Gap, told),
            None => {
                let shard = &mut self.shards[at];
                shard.begun.push_front(Entry::Record(record));
                shard.held_until_ms = now_ms + KEEP_AGAIN_MS;
                return false;
            }
        }
        true
    }

    /// What takes the place of a record refused for good; `None` if its letter cannot be kept now.
    async fn bury(&mut self, at: usize, record: &Record, why: &str) -> Option<Record> {
        let gap = self.dead.bury(self.shards[at].index, record, &self.setup.who, why).await.ok()?;
        self.figures.dead();
        Some(gap::in_place_of(record, &gap, &self.setup.who))
    }
}
