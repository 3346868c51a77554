//! The short way of a backlog to another Headwater: blocks as they are stored, instead of records through the lanes.
//!
//! A shard goes one way at a time: blocks leave when its lanes are empty, and records enter its lanes when no blocks are
//! under way. Blocks are one request a shard at most, so order is kept. Whatever is not stored whole falls back: its shard
//! is read again as records, from the low mark on; what was stored is known there, and to the receiver by the numbers of
//! the producers, which are the same both ways.

use super::{Back, Flight, Forwarder, Sent};
use crate::log::StoredBlock;
use crate::record::Number;
use crate::uplink::feed::{BlocksWanted, Chunk, Feed};
use crate::uplink::sink::{Fault, Relay, Relayed, Taken};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Tries of the same blocks before their records go through the lanes.
const TRIES_MAX: u32 = 3;
/// Records behind blocks that were not taken which go through the lanes before blocks are tried again: at first, and, as it
/// doubles each time, at most. Short in tests, so that they go both ways many times.
pub const DETOUR: u64 = if cfg!(test) { 200 } else { 4 << 10 };
const DETOUR_MAX: u64 = if cfg!(test) { 800 } else { 1 << 20 };

/// Blocks of a shard that wait to be sent, or for their answer.
pub struct Relaying {
    pub relay: Arc<Relay>,
    pub in_flight: bool,
    /// Records, and their bytes before compression.
    pub weight: (u64, u64),
    tries: u32,
}

impl Forwarder {
    /// Puts a chunk of blocks on its way; `false` if it has to wait or is to be read again as records.
    pub(super) fn take_in_blocks(&mut self, at: usize, chunk: Chunk) -> bool {
        let (shard, lanes) = (&mut self.shards[at], &self.lanes[at]);
        let Some(last) = chunk.blocks.last().map(|block| block.last) else { return true };
        let progress = lanes.progress();
        let is_ragged = progress.acknowledged_above() > 0 || chunk.from < progress.next();
        let is_wanted = self.blocks_wanted.load(Ordering::Relaxed);
        if !is_wanted || lanes.is_stuck() || (lanes.is_empty() && is_ragged) {
            // The lanes' trouble is not the blocks'.
            let detour = shard.detour;
            self.read_as_records(at, chunk.from, last);
            self.shards[at].detour = detour;
            return false;
        }
        if !lanes.is_empty() || lanes.is_telling_a_gap() {
            shard.inbox.push_front(chunk);
            return false;
        }
        let weights = chunk.blocks.iter().map(StoredBlock::weight);
        let weight = weights.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let relay = Relay {
            shard: shard.index,
            range: shard.range,
            from: chunk.from,
            to: last,
            arrival_ms: chunk.blocks[0].arrival_ms,
            blocks: chunk.blocks.into_iter().map(|block| block.bytes).collect(),
        };
        shard.relaying = Some(Relaying { relay: Arc::new(relay), in_flight: false, weight, tries: 0 });
        true
    }

    /// Sends the blocks of one shard; `false` if none wait.
    pub(super) fn send_blocks(&mut self, bytes_max: usize, now_ms: u64) -> bool {
        let waits = |at: &usize| self.shards[*at].relaying.as_ref().is_some_and(|relaying| !relaying.in_flight);
        let count = self.shards.len();
        let Some(at) = (1..=count).map(|step| (self.turn + step) % count).find(waits) else { return false };
        self.turn = at;
        let Some(relaying) = &mut self.shards[at].relaying else { return false };
        let (relay, bytes) = (relaying.relay.clone(), relaying.relay.bytes());
        if bytes > bytes_max || !self.blocks_wanted.load(Ordering::Relaxed) {
            // The link is too thin for what one answer would cost, and records go in smaller pieces; or somebody else
            // answers now, who knows records alone.
            self.read_as_records(at, relay.from, relay.to);
            return true;
        }
        relaying.in_flight = true;
        relaying.tries += 1;
        self.setup.budget(|budget| budget.spend(bytes));
        let sink = self.setup.config.sink.clone();
        let task = self.requests.spawn(async move { Back::Blocks(sink.relay(relay).await) });
        self.in_flight.insert(task.id(), Flight { what: Sent::Blocks(at), bytes, since_ms: now_ms });
        true
    }

    pub(super) fn relayed(&mut self, at: usize, answer: Relayed, bytes: usize, since_ms: u64) {
        let now_ms = self.now_ms();
        let Some(relaying) = &mut self.shards[at].relaying else { return };
        relaying.in_flight = false;
        let (relay, tries) = (relaying.relay.clone(), relaying.tries);
        if answer.map_is_stale {
            self.map_is_stale(now_ms);
        }
        match answer.stored {
            Ok(taken) => {
                self.pace.answered(bytes, now_ms.saturating_sub(since_ms));
                self.recovered();
                self.refused_in_row = 0;
                self.settle_blocks(at, &relay, taken);
            }
            Err(Fault::Refused(why)) => {
                tracing::debug!(
                    shard = relay.shard,
                    from = relay.from,
                    why,
                    "blocks are refused, their records are sent"
                );
                self.read_as_records(at, relay.from, relay.to);
            }
            Err(fault) => {
                if matches!(fault, Fault::Broken(_) | Fault::Unreachable(_)) {
                    self.pace.failed(bytes);
                }
                self.hold_request(now_ms, &fault);
                self.figures.retried(1);
                if tries >= TRIES_MAX && matches!(fault, Fault::Broken(_)) {
                    self.read_as_records(at, relay.from, relay.to);
                }
            }
        }
    }

    fn settle_blocks(&mut self, at: usize, relay: &Relay, taken: Taken) {
        match taken {
            Taken::All(payload) => {
                self.lanes[at].pass(relay.to);
                self.figures.stored(relay.records() as u64, payload);
                (self.shards[at].relaying, self.shards[at].detour) = (None, DETOUR);
            }
            Taken::Some(stored) => {
                let numbers = (relay.from..).zip(&stored).filter(|(_, stored)| **stored).map(|(number, _)| number);
                self.lanes[at].pass_some(numbers);
                self.figures.stored(stored.iter().filter(|stored| **stored).count() as u64, 0);
                self.read_as_records(at, relay.from, relay.to);
            }
        }
    }

    /// Reads a shard anew `from` what comes behind its lanes, as records up to `to` and somewhat further. What is
    /// acknowledged is known.
    fn read_as_records(&mut self, at: usize, from: Number, to: Number) {
        let detour = self.shards[at].detour;
        self.shards[at].detour = (detour * 2).min(DETOUR_MAX);
        let blocks = self.blocks_wanted(to + detour);
        let (log, stream, sender) = (&self.setup.log, &self.setup.stream, self.sender.clone());
        let shard = &mut self.shards[at];
        shard.relaying = None;
        shard.inbox.clear();
        shard.feed = Feed::start(log, stream, at, shard.index, from, Some(blocks), sender);
    }

    pub(super) fn blocks_wanted(&self, from: Number) -> BlocksWanted {
        let memory = self.setup.config.sending.memory.0 as usize / self.shards.len().max(1);
        BlocksWanted { wanted: self.blocks_wanted.clone(), from, memory }
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
