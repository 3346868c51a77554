//! What waits to be forwarded, for `/metrics`: records, bytes and age.

use super::{FIGURES_EVERY_MS, Forwarder, Shard};
use crate::log::{Entry, StoredBlock};
use crate::uplink::feed::Chunk;
use crate::uplink::figures::Backlog;
use crate::uplink::sink::weight;

impl Forwarder {
    pub(super) fn show(&mut self, now_ms: u64) {
        if now_ms < self.figures_at_ms {
            return;
        }
        self.figures_at_ms = now_ms + FIGURES_EVERY_MS;
        let mut backlog = Backlog::default();
        for (shard, lanes) in self.shards.iter().zip(&self.lanes) {
            let newest = self.setup.stream.shard(shard.index).map_or(0, |shard| shard.newest());
            let progress = lanes.progress();
            let behind = self.setup.log.records_between(&self.setup.stream, shard.index, progress.next(), newest);
            backlog.records += behind.saturating_sub(progress.acknowledged_above());
            for (records, bytes) in [lanes.held(), shard.read_ahead()] {
                backlog.in_hand = (backlog.in_hand.0 + records, backlog.in_hand.1 + bytes);
            }
            let oldest = lanes.oldest_arrival_ms().or_else(|| shard.oldest_arrival_ms());
            backlog.oldest_arrival_ms = [backlog.oldest_arrival_ms, oldest].into_iter().flatten().min();
        }
        self.figures.backlog(backlog, self.setup.clock.now().wall_ms);
    }
}

impl Shard {
    /// Arrival of the oldest record that was read and is not in a lane yet.
    fn oldest_arrival_ms(&self) -> Option<u64> {
        let relayed = self.relaying.as_ref().map(|relaying| relaying.relay.arrival_ms);
        let begun = || self.begun.iter().find_map(arrival_ms);
        let read = |chunk: &Chunk| {
            let block = chunk.blocks.first().map(|block| block.arrival_ms);
            block.or_else(|| chunk.entries.iter().find_map(arrival_ms))
        };
        relayed.or_else(begun).or_else(|| self.inbox.iter().find_map(read))
    }

    /// Records that were read and are not in a lane yet, and what they weigh.
    fn read_ahead(&self) -> (u64, u64) {
        let relayed = self.relaying.iter().map(|relaying| relaying.weight);
        let blocks = self.inbox.iter().flat_map(|chunk| &chunk.blocks).map(StoredBlock::weight);
        let entries = self.begun.iter().chain(self.inbox.iter().flat_map(|chunk| &chunk.entries));
        let records = entries.filter_map(|entry| match entry {
            Entry::Record(record) => Some((1, weight(record) as u64)),
            Entry::Gap(_) => None,
        });
        relayed.chain(blocks).chain(records).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

fn arrival_ms(entry: &Entry) -> Option<u64> {
    match entry {
        Entry::Record(record) => Some(record.arrival_ms),
        Entry::Gap(_) => None,
    }
}
