//! Headwater's own block operation: a shard's blocks as another gateway has stored them. See `wire::blocks`.
//!
//! The blocks of one request are in order, and the sender waits for the answer before it sends the next of that shard: so
//! the numbers of a producer only rise, as in a batch.

use super::batch::status;
use super::door::{Door, Session, heavy};
use super::error::{ApiError, Kind};
use crate::http::Charge;
use crate::log::{Batch, BlocksWeight, RelayLimits, Relaying, Stream};
use crate::record::{HashKey, ShardIndex, shard_id};
use crate::wire::blocks::{self, Blocks, lane_of, producer_id};
use bytes::Bytes;
use std::collections::HashMap;

const LIMITS: RelayLimits = RelayLimits {
    records_max: blocks::RECORDS_MAX,
    raw_bytes_max: blocks::RAW_BYTES_MAX,
    log_bytes_max: blocks::LOG_BYTES_MAX,
};

pub async fn run(door: &Door, session: &Session, body: &Bytes, charge: &mut Charge) -> Result<Vec<u8>, ApiError> {
    let sent = Blocks::decode(body).map_err(|error| malformed(&error))?;
    let weight = BlocksWeight::of(&sent.blocks);
    let unpacked = sent.unpacked_bytes_max(weight.records, weight.raw_bytes_max, weight.raw_bytes);
    door.budget.raise(charge, body.len() + unpacked).await?;
    let (mut batch, payload) = heavy(body.len() * 8, || fill(door, &sent))?;
    let placements = session.commit(&door.log, &mut batch).await?;
    let statuses: Vec<_> = placements.iter().map(status).collect();
    Ok(blocks::encode_blocks_answer(payload, &statuses))
}

/// The batch for the log, and the payload of its records. A block that cannot be taken whole is none of ours: its sender
/// has other ways for what is in it.
fn fill(door: &Door, sent: &Blocks) -> Result<(Batch, u64), ApiError> {
    let name = sent.stream.as_str();
    let stream = door.log.stream(name).filter(|stream| !stream.is_deleted());
    let stream = stream.ok_or_else(|| door.account.stream_not_found(name))?;
    let mut known = Producers { sent, ids: HashMap::new(), names: names(&stream) };
    let producer = |hash, shard| known.id(hash, shard);
    let relaying = Relaying::new(&stream, &sent.origin, sent.epoch, sent.from, LIMITS, producer);
    let mut relaying = relaying.map_err(|error| malformed(&error))?;
    relaying.push(&sent.blocks).map_err(|error| malformed(&error))?;
    Ok(relaying.finish())
}

fn malformed(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(Kind::Serialization, error.to_string())
}

fn names(stream: &Stream) -> Vec<(ShardIndex, String)> {
    stream.shards().iter().map(|shard| (shard.index, shard_id(shard.index))).collect()
}

/// The producers of one request, each named once.
struct Producers<'a> {
    sent: &'a Blocks,
    ids: HashMap<(u16, ShardIndex), u128>,
    names: Vec<(ShardIndex, String)>,
}

impl Producers<'_> {
    fn id(&mut self, hash: HashKey, shard: ShardIndex) -> u128 {
        let Blocks { origin, range, lanes, .. } = self.sent;
        let lane = lane_of(hash, *range, *lanes);
        let name = self.names.iter().find(|(index, _)| *index == shard).map_or("", |(_, name)| name.as_str());
        *self.ids.entry((lane, shard)).or_insert_with(|| producer_id(origin, lane, *lanes, name))
    }
}
