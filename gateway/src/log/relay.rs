//! Stored blocks on their way from one gateway to another: compressed once, by the fold that made them.
//!
//! The sender reads them as they are ([`super::Reader::next_blocks`]). Here the receiver checks one, inflates it once and
//! puts its records into a batch for its own shards: a key is hashed once a block, a record is copied once and nothing is
//! allocated for it. Which producer a record's number belongs to says the caller: it knows the other gateway's lanes.

use super::batch::{Batch, INLINE_BYTES_MAX};
use super::block;
use super::encode::{self, Malformed, Parts};
use super::producer::{self, Span};
use super::stream::Stream;
use crate::record::{HEADERS_BYTES_MAX, HashKey, Number, PARTITION_KEY_BYTES_MAX, Producer, ShardIndex, put_decimal};
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A block as it is stored, its checksum verified.
#[derive(Clone, Debug)]
pub struct StoredBlock {
    pub first: Number,
    pub last: Number,
    /// Arrival of the first record, in ms since 1970.
    pub arrival_ms: u64,
    /// Of its records before compression.
    pub raw_bytes: u32,
    pub bytes: Bytes,
}

impl StoredBlock {
    /// Records, and their bytes before compression.
    pub fn weight(&self) -> (u64, u64) {
        (self.last + 1 - self.first, u64::from(self.raw_bytes))
    }
}

/// What blocks come to when they are inflated, as their heads say. They are held to it when they are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlocksWeight {
    pub records: u64,
    pub raw_bytes: usize,
    /// The largest of them.
    pub raw_bytes_max: usize,
}

impl BlocksWeight {
    pub fn of<B: AsRef<[u8]>>(blocks: &[B]) -> Self {
        let heads = blocks.iter().filter_map(|block| block::peek(block.as_ref()).ok());
        heads.fold(BlocksWeight::default(), |sum, head| BlocksWeight {
            records: sum.records + u64::from(head.count),
            raw_bytes: sum.raw_bytes.saturating_add(head.raw_len as usize),
            raw_bytes_max: sum.raw_bytes_max.max(head.raw_len as usize),
        })
    }
}

/// What the blocks of one request may come to.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    pub records_max: usize,
    /// Of the inflated blocks.
    pub raw_bytes_max: usize,
    /// Of their records in the batch, where each has its producer and its origin.
    pub log_bytes_max: usize,
}

/// Why a block cannot be taken as it is. The sender has its records by other ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Block(#[from] block::BlockError),
    #[error("a block has {0} bytes when inflated; {1} are left of what a request may have")]
    TooLarge(usize, usize),
    #[error("the records are more than {0}, or take more than {1} bytes in the log")]
    TooMany(usize, usize),
    #[error("a block begins at {0} where {1} comes next")]
    Apart(Number, Number),
    #[error("record {0} is malformed or over a bound")]
    Record(Number),
    #[error("the value of record {0} is not in the block")]
    Large(Number),
}

/// Puts the blocks of one shard of another gateway into a batch, in order.
pub struct Relaying<'a, F> {
    stream: &'a Arc<Stream>,
    batch: Batch,
    /// The producer of a key's records towards one of our shards.
    producer: F,
    epoch: u32,
    /// What the records' ids begin with, and then the number in decimal.
    origin: Vec<u8>,
    origin_prefix: usize,
    next: Number,
    limits: RelayLimits,
    raw_left: usize,
    log_bytes_left: usize,
    has_reserved: bool,
    raw: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
    payload: u64,
}

/// Where the records of a key go: the part of the batch, and the producer's span there.
#[derive(Clone, Copy)]
struct Place {
    part: usize,
    span: usize,
}

impl<'a, F: FnMut(HashKey, ShardIndex) -> u128> Relaying<'a, F> {
    /// Takes records from number `from` on.
    pub fn new(
        stream: &'a Arc<Stream>,
        origin: &str,
        epoch: u32,
        from: Number,
        limits: RelayLimits,
        producer: F,
    ) -> std::io::Result<Self> {
        Ok(Relaying {
            stream,
            batch: Batch::new(),
            producer,
            epoch,
            origin: origin.as_bytes().to_vec(),
            origin_prefix: origin.len(),
            next: from,
            limits,
            raw_left: limits.raw_bytes_max,
            log_bytes_left: limits.log_bytes_max,
            has_reserved: false,
            raw: Vec::new(),
            zstd: zstd::bulk::Decompressor::new()?,
            payload: 0,
        })
    }

    /// Takes blocks as they are stored.
    pub fn push<B: AsRef<[u8]>>(&mut self, blocks: &[B]) -> Result<(), RelayError> {
        let raw_len = |block: &B| block::peek(block.as_ref()).map_or(0, |head| head.raw_len as usize);
        let mut left: usize = blocks.iter().map(raw_len).sum();
        for block in blocks {
            let raw_len = raw_len(block);
            self.push_block(block.as_ref())?;
            left -= raw_len;
            self.reserve(raw_len, left);
        }
        Ok(())
    }

    /// Makes room for `left` bytes of blocks, as many for each shard as the first of them brought: what grows by doubling
    /// stays up to twice its size in the log's window.
    fn reserve(&mut self, raw_len: usize, left: usize) {
        if std::mem::replace(&mut self.has_reserved, true) || raw_len == 0 {
            return;
        }
        for part in &mut self.batch.parts {
            let more = (part.bytes.len() as u64 * left.min(self.raw_left) as u64 / raw_len as u64) as usize;
            part.bytes.reserve((more + more / 32).min(self.log_bytes_left));
        }
    }

    fn push_block(&mut self, stored: &[u8]) -> Result<(), RelayError> {
        let head = block::read_head(stored)?;
        if head.first > self.next || head.last() < self.next {
            return Err(RelayError::Apart(head.first, self.next));
        }
        let raw_len = head.raw_len as usize;
        self.raw_left = self.raw_left.checked_sub(raw_len).ok_or(RelayError::TooLarge(raw_len, self.raw_left))?;
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(raw_len, 0);
        let inflated = self.zstd.decompress_to_buffer(&stored[block::HEAD_BYTES..], &mut raw[..]);
        if inflated.ok() != Some(raw_len) {
            return Err(block::BlockError::Damaged.into());
        }
        self.push_runs(&head, &raw)?;
        self.raw = raw;
        Ok(())
    }

    /// The batch, and the payload of its records in bytes.
    pub fn finish(self) -> (Batch, u64) {
        (self.batch, self.payload)
    }

    fn push_runs(&mut self, head: &block::Head, raw: &[u8]) -> Result<(), RelayError> {
        let mut places: HashMap<&[u8], Place, KeyHash> = HashMap::with_hasher(KeyHash::new());
        let (mut rest, mut number) = (raw, head.first);
        while !rest.is_empty() {
            let (count, mut records) = block::take_run(&mut rest).ok_or(RelayError::Record(number))?;
            for _ in 0..count {
                let (parts, length) = encode::parts(records).map_err(|Malformed| RelayError::Record(number))?;
                if number > head.last() {
                    return Err(RelayError::Record(number));
                }
                if number >= self.next {
                    self.push_record(number, &parts, &mut places)?;
                }
                records = &records[length..];
                number += 1;
            }
            if !records.is_empty() {
                return Err(RelayError::Record(number));
            }
        }
        if number != head.last() + 1 {
            return Err(RelayError::Record(number));
        }
        self.next = number;
        Ok(())
    }

    fn push_record<'b>(
        &mut self,
        number: Number,
        parts: &Parts<'b>,
        places: &mut HashMap<&'b [u8], Place, KeyHash>,
    ) -> Result<(), RelayError> {
        let Some(data) = parts.data else { return Err(RelayError::Large(number)) };
        self.write_origin(number);
        let is_key = (1..=PARTITION_KEY_BYTES_MAX).contains(&parts.key.len());
        let headers = parts.headers_weight + if parts.has_origin { 0 } else { self.origin.len() + 8 };
        if !is_key || data.len() > INLINE_BYTES_MAX || headers > HEADERS_BYTES_MAX {
            return Err(RelayError::Record(number));
        }
        let place = match (parts.explicit_hash, places.get(parts.key)) {
            (None, Some(place)) => *place,
            (explicit, _) => {
                let place = self.place(parts.key, explicit, number);
                if explicit.is_none() {
                    places.insert(parts.key, place);
                }
                place
            }
        };
        let too_many = RelayError::TooMany(self.limits.records_max, self.limits.log_bytes_max);
        if self.batch.order.len() >= self.limits.records_max {
            return Err(too_many);
        }
        let part = &mut self.batch.parts[place.part];
        let span = &mut part.producers[place.span];
        let producer = Producer { sequence: number, ..span.last };
        if span.last.sequence != number {
            span.add(producer);
        }
        self.batch.order.push((place.part as u32, part.count));
        part.count += 1;
        part.payload += data.len() as u64;
        self.payload += data.len() as u64;
        let before = part.bytes.len();
        encode::put_relayed(&mut part.bytes, parts, &producer, &self.origin);
        let taken = part.bytes.len() - before;
        self.log_bytes_left = self.log_bytes_left.checked_sub(taken).ok_or(too_many)?;
        Ok(())
    }

    /// Begins the span of a producer, if need be, with the number that is about to be pushed.
    fn place(&mut self, key: &[u8], explicit: Option<HashKey>, number: Number) -> Place {
        let hash = HashKey::of(key);
        let shard = self.stream.shard_for(explicit.unwrap_or(hash));
        let id = (self.producer)(hash, shard.index);
        let part = self.batch.part_of(self.stream, &shard);
        let spans: &mut Vec<Span> = &mut self.batch.parts[part].producers;
        let span = producer::note_span(spans, Producer { id, epoch: self.epoch, sequence: number });
        Place { part, span }
    }

    fn write_origin(&mut self, number: Number) {
        self.origin.truncate(self.origin_prefix);
        put_decimal(&mut self.origin, number);
    }
}

/// A short hash for short keys, seeded: who sends keys that collide has to guess.
#[derive(Clone, Copy)]
struct KeyHash(u64);

impl KeyHash {
    fn new() -> Self {
        KeyHash(fastrand::u64(..))
    }
}

impl BuildHasher for KeyHash {
    type Hasher = KeyHash;

    fn build_hasher(&self) -> KeyHash {
        *self
    }
}

impl Hasher for KeyHash {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
