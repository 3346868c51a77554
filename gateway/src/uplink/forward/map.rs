//! How the upstream divides the key space, as far as the forwarder knows: asked for, followed, asked for anew.

use super::{Forwarder, LANDED_MAX, Map};
use crate::backoff::Backoff;
use crate::uplink::lanes::Verdict;
use crate::uplink::map::ShardMap;
use crate::uplink::sink::{Fault, Group};
use std::sync::Arc;
use tokio::task::{JoinError, JoinSet};

impl Forwarder {
    /// The map is asked for anew, but not before `from_ms`.
    pub(super) fn map_is_stale(&mut self, from_ms: u64) {
        if matches!(self.map, Map::Known(_)) {
            self.map = Map::Wanted(from_ms);
        }
    }

    pub(super) fn follow_map(&mut self, now_ms: u64) {
        if matches!(self.map, Map::Wanted(from) if from <= now_ms) {
            let sink = self.setup.config.sink.clone();
            let mut asked = JoinSet::new();
            asked.spawn(async move { sink.map().await });
            self.map = Map::Asked(asked);
        }
    }

    pub(super) async fn mapped(&mut self, answer: Result<Result<ShardMap, Fault>, JoinError>) {
        let now_ms = self.now_ms();
        let answer = answer.unwrap_or_else(|error| Err(Fault::Broken(error.to_string())));
        match answer {
            Err(fault) => {
                self.hold(now_ms, &fault);
                self.map = Map::Wanted(self.hold_until_ms);
            }
            Ok(map) => {
                let map = Arc::new(map);
                // That the map can be had says nothing about requests, which may have failed while it could be had too.
                if !self.request_failed {
                    self.recovered();
                }
                self.lanes.iter_mut().for_each(|lanes| lanes.follow(&map));
                self.map = Map::Known(map.clone());
                self.linger_until_ms = Some(now_ms);
                for (group, shard) in std::mem::take(&mut self.landed) {
                    self.settle_landed(group, &shard, &map, now_ms).await;
                }
            }
        }
    }

    /// Of an aggregate that landed in another shard, consumers see the records that belong there; the others go again.
    async fn settle_landed(&mut self, group: Group, shard: &str, map: &ShardMap, now_ms: u64) {
        let Some(at) = self.shards.iter().position(|own| own.index == group.id.shard) else { return };
        let id = group.id;
        let index = map.named(shard);
        let stored: Vec<bool> =
            group.records.iter().map(|out| index.is_some_and(|index| map.holds(index, out.record.hash()))).collect();
        drop(group);
        let verdict = if stored.contains(&false) {
            let landings = self.lanes[at].landed_astray(id);
            // A shard that even the fresh map does not know may be how this destination names things. Of one that it
            // knows, consumers see nothing that lies outside, however often it lands there.
            match (index, landings) {
                (None, LANDED_MAX..) => Verdict::Stored,
                (Some(_), 1) => Verdict::Partly(&stored, 0),
                _ => Verdict::Partly(&stored, Backoff::DEFAULT.wait_ms(landings + 2, fastrand::u64(..))),
            }
        } else {
            Verdict::Stored
        };
        let finished = self.lanes[at].finish(id, verdict, now_ms);
        self.figures.stored(finished.records, finished.payload_bytes);
    }
}
