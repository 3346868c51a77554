//! A block: consecutive records of one shard, compressed together, as a segment keeps them. Pure.
//!
//! ```text
//! head  64 bytes: magic u32, version u8, flags u8, 0 u16, dictionary id u32 (0: none), stream u32, shard u32, first
//!       number u64, count u32, raw length u32, stored length u32, first stamp u64, last stamp u64, checksum u64 of all
//!       the rest
//! body  runs, zstd level 1: count varint, stamp zigzag varint (difference to the run before), length varint, records
//! ```
//! Numbers of a block have no gap. Fixed-width numbers are big-endian.

use super::encode::{put_varint, read_varint};
use super::window::Run;
use crate::record::{Number, ShardIndex};
use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

pub const HEAD_BYTES: usize = 64;
/// Lets a block be found in a file whose tree is damaged.
pub const MAGIC: [u8; 4] = *b"HWB1";
const VERSION: u8 = 1;
/// Largest raw body, in bytes: a single record may be this long, a block of several stops far below.
pub const RAW_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub stream: u32,
    pub shard: ShardIndex,
    pub first: Number,
    pub count: u32,
    pub raw_len: u32,
    pub first_stamp: u64,
    pub last_stamp: u64,
}

impl Head {
    pub fn last(&self) -> Number {
        self.first + u64::from(self.count) - 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("a block does not have its checksum")]
    Damaged,
    #[error("a block of format {0}, newer than this headwater reads")]
    Newer(u8),
}

/// Runs gathered for one block.
pub struct Builder {
    stream: u32,
    shard: ShardIndex,
    first: Number,
    count: u32,
    first_stamp: u64,
    last_stamp: u64,
    raw: BytesMut,
}

impl Builder {
    pub fn new(stream: u32, shard: ShardIndex) -> Self {
        Builder { stream, shard, first: 0, count: 0, first_stamp: 0, last_stamp: 0, raw: BytesMut::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn raw_len(&self) -> usize {
        self.raw.len()
    }

    pub fn next(&self) -> Number {
        self.first + u64::from(self.count)
    }

    /// `first` is the number of the run's first record; it continues the block.
    pub fn push(&mut self, first: Number, count: u32, stamp: u64, records: &[u8]) {
        if self.count == 0 {
            (self.first, self.first_stamp, self.last_stamp) = (first, stamp, stamp);
        }
        assert_eq!(first, self.next(), "block law: the numbers of a block have no gap");
        put_varint(&mut self.raw, u64::from(count));
        put_varint(&mut self.raw, zigzag(stamp.wrapping_sub(self.last_stamp) as i64));
        put_varint(&mut self.raw, records.len() as u64);
        self.raw.extend_from_slice(records);
        self.count += count;
        self.last_stamp = stamp;
    }

    /// The block as it is stored, leaving the builder empty.
    pub fn finish(&mut self, zstd: &mut zstd::bulk::Compressor<'_>) -> std::io::Result<(Head, Vec<u8>)> {
        let mut block = vec![0; HEAD_BYTES + zstd::zstd_safe::compress_bound(self.raw.len())];
        let length = zstd.compress_to_buffer(&self.raw[..], &mut block[HEAD_BYTES..])?;
        // A fold holds its blocks until they are written: not at the size they might have had.
        block.truncate(HEAD_BYTES + length);
        block.shrink_to_fit();
        let head = Head {
            stream: self.stream,
            shard: self.shard,
            first: self.first,
            count: self.count,
            raw_len: self.raw.len() as u32,
            first_stamp: self.first_stamp,
            last_stamp: self.last_stamp,
        };
        write_head(&head, &mut block);
        self.raw.clear();
        self.count = 0;
        Ok((head, block))
    }
}

fn write_head(head: &Head, block: &mut [u8]) {
    let stored = block.len() as u32;
    let mut out = &mut block[..HEAD_BYTES];
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u8(0);
    out.put_u16(0);
    out.put_u32(0);
    out.put_u32(head.stream);
    out.put_u32(head.shard);
    out.put_u64(head.first);
    out.put_u32(head.count);
    out.put_u32(head.raw_len);
    out.put_u32(stored);
    out.put_u64(head.first_stamp);
    out.put_u64(head.last_stamp);
    let checksum = checksum(block);
    block[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&checksum.to_be_bytes());
}

const CHECKSUM_AT: usize = HEAD_BYTES - 8;

fn checksum(block: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&block[..CHECKSUM_AT]);
    hash.update(&block[HEAD_BYTES..]);
    hash.digest()
}

/// Reads and checks the head of a stored block, and its checksum over everything.
pub fn read_head(block: &[u8]) -> Result<Head, BlockError> {
    let head = peek(block)?;
    let stored = u64::from_be_bytes(block[CHECKSUM_AT..HEAD_BYTES].try_into().map_err(|_| BlockError::Damaged)?);
    if stored != checksum(block) || head.count == 0 || head.raw_len as usize > RAW_BYTES_MAX {
        return Err(BlockError::Damaged);
    }
    Ok(head)
}

/// Bytes of the block that begins here, if one may begin here: for a search through a damaged file.
pub fn stored_len(at: &[u8]) -> Option<usize> {
    peek(at).ok()?;
    let length = u32::from_be_bytes(at.get(36..40)?.try_into().ok()?) as usize;
    (HEAD_BYTES..=2 * RAW_BYTES_MAX).contains(&length).then_some(length)
}

/// The head alone, unchecked: to find a place by time.
pub fn peek(block: &[u8]) -> Result<Head, BlockError> {
    let head = block.get(..HEAD_BYTES).ok_or(BlockError::Damaged)?;
    if head[..4] != MAGIC || head[4] != VERSION {
        let newer = head[..4] == MAGIC && head[4] > VERSION;
        return Err(if newer { BlockError::Newer(head[4]) } else { BlockError::Damaged });
    }
    let u32_at = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    Ok(Head {
        stream: u32_at(12),
        shard: u32_at(16),
        first: u64_at(20),
        count: u32_at(28),
        raw_len: u32_at(32),
        first_stamp: u64_at(40),
        last_stamp: u64_at(48),
    })
}

/// A block opened for reading.
#[derive(Clone, Debug)]
pub struct Block {
    pub head: Head,
    raw: Bytes,
}

impl Block {
    pub fn open(stored: &[u8]) -> Result<Block, BlockError> {
        let head = read_head(stored)?;
        let raw =
            zstd::bulk::decompress(&stored[HEAD_BYTES..], head.raw_len as usize).map_err(|_| BlockError::Damaged)?;
        match raw.len() == head.raw_len as usize {
            true => Ok(Block { head, raw: raw.into() }),
            false => Err(BlockError::Damaged),
        }
    }

    /// Its runs, in order. They share the block's memory.
    pub fn runs(&self) -> Runs {
        Runs { rest: self.raw.clone(), next: self.head.first, stamp: self.head.first_stamp }
    }
}

/// Takes a run off the front of an inflated body: how many records, and their bytes.
pub fn take_run<'a>(body: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let mut varint = || {
        let (value, used) = read_varint(body)?;
        *body = &body[used..];
        Some(value)
    };
    let (count, _stamp, length) = (varint()?, varint()?, varint()?);
    let (records, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
    *body = rest;
    Some((u32::try_from(count).ok().filter(|count| *count > 0)?, records))
}

/// Runs of a block; stops at the end, or early if the content is not what the head promised.
pub struct Runs {
    rest: Bytes,
    next: Number,
    stamp: u64,
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let count = u32::try_from(self.varint()?).ok()?;
        self.stamp = self.stamp.wrapping_add(unzigzag(self.varint()?) as u64);
        let length = self.varint()? as usize;
        if length > self.rest.len() || count == 0 {
            return None;
        }
        let bytes = self.rest.split_to(length);
        let first = self.next;
        self.next += u64::from(count);
        Some(Run { first, count, stamp: self.stamp, bytes, group: 0, producers: [].into() })
    }
}

impl Runs {
    fn varint(&mut self) -> Option<u64> {
        let (value, used) = read_varint(&self.rest)?;
        let _ = self.rest.split_to(used);
        Some(value)
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(runs: &[(u32, u64, Vec<u8>)]) -> (Head, Vec<u8>) {
        let mut builder = Builder::new(1, 2);
        let mut first = 10;
        for (count, stamp, bytes) in runs {
            builder.push(first, *count, *stamp, bytes);
            first += u64::from(*count);
        }
        builder.finish(&mut zstd::bulk::Compressor::new(1).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn a_block_reads_back_what_was_written(
            runs in prop::collection::vec((1u32..5, any::<u64>(), prop::collection::vec(any::<u8>(), 0..100)), 1..20),
        ) {
            let (head, stored) = block(&runs);
            let opened = Block::open(&stored).unwrap();
            prop_assert_eq!(&opened.head, &head);
            let read: Vec<_> = opened.runs().map(|run| (run.count, run.stamp, run.bytes.to_vec())).collect();
            prop_assert_eq!(read, runs);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let (_, mut stored) = block(&[(3, 5, vec![1; 500])]);
            let at = at.index(stored.len());
            stored[at] ^= 1 << bit;
            prop_assert!(Block::open(&stored).is_err());
        }

        #[test]
        fn noise_is_no_block(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Block::open(&noise).is_err());
        }
    }
}
