//! A stream: a name, settings, and shards that cover the key space.

use super::shard::Shard;
use crate::record::{HashKey, ShardIndex, StreamName};
use crate::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most shards of one stream.
pub const SHARDS_MAX: u32 = 1024;
/// Most streams of one gateway.
pub const STREAMS_MAX: usize = 1024;

/// What gives way when a stream is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The oldest records go; the gap ledger tells.
    #[default]
    DropOldest,
    /// New records are refused.
    Reject,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    pub shards: u32,
    pub retention: Span,
    /// Bytes on disk; `None`: what the box's budget gives.
    pub max_bytes: Option<ByteSize>,
    pub on_full: OnFull,
}

impl Default for StreamSettings {
    fn default() -> Self {
        StreamSettings { shards: 4, retention: Span::days(7), max_bytes: None, on_full: OnFull::DropOldest }
    }
}

pub struct Stream {
    pub id: u32,
    pub name: StreamName,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl Stream {
    pub fn settings(&self) -> StreamSettings {
        unimplemented!()
    }
    pub fn shards(&self) -> Arc<[Arc<Shard>]> {
        unimplemented!()
    }
    pub fn shard(&self, _index: ShardIndex) -> Option<Arc<Shard>> {
        unimplemented!()
    }
    /// The open shard whose range holds the hash.
    pub fn shard_for(&self, _hash: HashKey) -> Arc<Shard> {
        unimplemented!()
    }
    pub fn is_deleted(&self) -> bool {
        unimplemented!()
    }
    /// Records that can be read, over all shards.
    pub fn record_count(&self) -> u64 {
        unimplemented!()
    }
    /// Bytes on disk.
    pub fn size_bytes(&self) -> u64 {
        unimplemented!()
    }
}
