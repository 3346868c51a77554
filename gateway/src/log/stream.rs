//! A stream: a name, settings, and shards that cover the key space.

use super::shard::Shard;
use crate::record::{HashKey, Number, ShardIndex, StreamName};
use crate::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

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

/// What a stream holds: video gives way first when the box is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum StreamKind {
    #[default]
    Records,
    Video,
}

impl StreamKind {
    fn is_records(&self) -> bool {
        *self == StreamKind::Records
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    pub shards: u32,
    pub retention: Span,
    /// Bytes on disk; `None`: what the box's budget gives.
    pub max_bytes: Option<ByteSize>,
    pub on_full: OnFull,
    /// Left out for records, so that an earlier version reads what it wrote.
    #[serde(default, skip_serializing_if = "StreamKind::is_records")]
    pub kind: StreamKind,
}

impl Default for StreamSettings {
    fn default() -> Self {
        let (max_bytes, kind) = (None, StreamKind::Records);
        StreamSettings { shards: 4, retention: Span::days(7), max_bytes, on_full: OnFull::DropOldest, kind }
    }
}

/// A stream as the state database keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Definition {
    pub name: String,
    pub created_ms: u64,
    /// The first number of each shard; above those of an earlier stream of the name.
    pub first_number: Number,
    pub settings: StreamSettings,
}

impl Definition {
    /// Of a stream whose own is lost: it is named after its id.
    pub fn adopted(
        id: u32,
        shards: u32,
        first_number: Number,
        now_ms: u64,
        taken: impl Fn(&str) -> bool,
    ) -> Definition {
        let mut name = format!("recovered-{id}");
        while taken(&name) {
            name.push('x');
        }
        let settings = StreamSettings { shards: shards.clamp(1, SHARDS_MAX), ..StreamSettings::default() };
        Definition { name, created_ms: now_ms, first_number, settings }
    }
}

pub struct Stream {
    pub id: u32,
    pub name: StreamName,
    /// Milliseconds since 1970; a stream made again under the name has a later second.
    pub created_ms: u64,
    settings: RwLock<StreamSettings>,
    shards: Arc<[Arc<Shard>]>,
    deleted: AtomicBool,
    /// Bytes on disk, kept by the store.
    pub(super) size: AtomicU64,
    /// Id of the next segment; an id is not used twice, so that a late row about an old one cannot hit a new one.
    pub(super) next_segment: AtomicU32,
    /// Whether new records are refused for want of room; set by retention.
    pub(super) full: AtomicBool,
    /// The copy of the state in the newest segment does not say what a start found: the next fold writes it anew.
    pub(super) copy_is_old: AtomicBool,
}

impl Stream {
    pub(super) fn new(id: u32, name: StreamName, definition: &Definition) -> Self {
        let count = definition.settings.shards.max(1);
        let shards = (0..count)
            .map(|index| Arc::new(Shard::new(index, even_range(index, count), definition.first_number)))
            .collect();
        Stream {
            id,
            name,
            created_ms: definition.created_ms,
            settings: RwLock::new(definition.settings.clone()),
            shards,
            deleted: AtomicBool::new(false),
            size: AtomicU64::new(0),
            next_segment: AtomicU32::new(1),
            full: AtomicBool::new(false),
            copy_is_old: AtomicBool::new(false),
        }
    }

    pub fn settings(&self) -> StreamSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_settings(&self, settings: StreamSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub fn shards(&self) -> Arc<[Arc<Shard>]> {
        self.shards.clone()
    }

    pub fn shard(&self, index: ShardIndex) -> Option<Arc<Shard>> {
        self.shards.get(index as usize).cloned()
    }

    /// The open shard whose range holds the hash.
    pub fn shard_for(&self, hash: HashKey) -> Arc<Shard> {
        let at = self.shards.partition_point(|shard| shard.range.1 < hash);
        self.shards[at.min(self.shards.len() - 1)].clone()
    }

    /// Whether it is full and takes nothing.
    pub fn refuses(&self) -> bool {
        self.full.load(Ordering::Relaxed) && self.settings().on_full == OnFull::Reject
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(super) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// Bytes on disk.
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
}

/// Range `index` of `count` equal ranges of the key space; the last takes the remainder.
fn even_range(index: u32, count: u32) -> (HashKey, HashKey) {
    let width = u128::MAX / u128::from(count);
    // 2^128 / count, without overflow: (2^128 - 1) / count, plus one where count divides 2^128.
    let width = if u128::MAX % u128::from(count) == u128::from(count) - 1 { width.wrapping_add(1) } else { width };
    let first = width.wrapping_mul(u128::from(index));
    let last = if index + 1 == count { u128::MAX } else { width.wrapping_mul(u128::from(index) + 1).wrapping_sub(1) };
    (HashKey(first), HashKey(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_the_key_space_without_gap_or_overlap() {
        for count in [1, 2, 3, 4, 7, 64, 1000] {
            let ranges: Vec<_> = (0..count).map(|index| even_range(index, count)).collect();
            assert_eq!(ranges[0].0, HashKey(0));
            assert_eq!(ranges.last().unwrap().1, HashKey::MAX);
            assert!(ranges.windows(2).all(|pair| pair[0].1.0 + 1 == pair[1].0.0), "{count}");
        }
        // As AWS splits a stream of two.
        assert_eq!(even_range(1, 2).0.0, 1 << 127);
    }
}
