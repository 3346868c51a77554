//! How answers show what the log keeps. Pure.

use crate::api::sequence::Sequence;
use crate::log::{Shard, Stream};
use crate::record::{HashKey, Number, ShardIndex, shard_id};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

/// A moment in seconds since 1970, with three decimals.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.0 as f64 / 1000.0)
    }
}

/// Bytes: base64 in a text form, plain in a binary one.
pub struct Bytes<'a>(pub &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_str(&STANDARD.encode(self.0)) } else { s.serialize_bytes(self.0) }
    }
}

/// `shardId-000000000007`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardId(pub ShardIndex);

impl Serialize for ShardId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut text = *b"shardId-000000000000";
        let mut rest = self.0;
        for digit in text[8..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        s.serialize_str(std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
    }
}

struct Decimal(HashKey);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0.0)
    }
}

/// A shard of a description or a list.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ShownShard {
    shard_id: ShardId,
    hash_key_range: HashKeyRange,
    sequence_number_range: SequenceNumberRange,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HashKeyRange {
    starting_hash_key: Decimal,
    ending_hash_key: Decimal,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SequenceNumberRange {
    starting_sequence_number: Sequence,
}

impl ShownShard {
    fn new(stream: &Stream, shard: &Shard) -> Self {
        let (from, to) = shard.range;
        ShownShard {
            shard_id: ShardId(shard.index),
            hash_key_range: HashKeyRange { starting_hash_key: Decimal(from), ending_hash_key: Decimal(to) },
            sequence_number_range: SequenceNumberRange {
                starting_sequence_number: sequence(stream, shard.index, shard.first_number()),
            },
        }
    }
}

/// The shards behind an id, at most so many, and the last of them if more follow.
pub fn shards_after(stream: &Stream, after: Option<&str>, most: usize) -> (Vec<ShownShard>, Option<ShardIndex>) {
    let shards = stream.shards();
    let mut rest = shards.iter().filter(|shard| after.is_none_or(|after| shard_id(shard.index).as_str() > after));
    let mut last = None;
    let shown = rest
        .by_ref()
        .take(most)
        .map(|shard| {
            last = Some(shard.index);
            ShownShard::new(stream, shard)
        })
        .collect();
    let more = rest.next().is_some();
    (shown, last.filter(|_| more))
}

pub fn sequence(stream: &Stream, shard: ShardIndex, number: Number) -> Sequence {
    Sequence::new(stream.created_ms, shard, number)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamModeDetails {
    pub stream_mode: &'static str,
}

/// Every stream here has the shards it was given.
pub const PROVISIONED: StreamModeDetails = StreamModeDetails { stream_mode: "PROVISIONED" };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EnhancedMetrics {
    pub shard_level_metrics: [&'static str; 0],
}

/// Shard metrics are in `/metrics` here, not in another service.
pub const NO_METRICS: [EnhancedMetrics; 1] = [EnhancedMetrics { shard_level_metrics: [] }];

/// Retention in whole hours, rounded up.
pub fn retention_hours(stream: &Stream) -> u64 {
    stream.settings().retention.as_ms().div_ceil(3_600_000)
}
