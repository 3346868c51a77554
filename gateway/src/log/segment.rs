//! Segments: the folded records of a stream, in redb databases of bounded size. Only the newest of a stream is written.
//!
//! A segment has a table of blocks keyed by (shard, first number) and a table of notes: its extent, and a copy of what the
//! state database knew of the stream when the segment was begun, so that a lost state can be rebuilt. Retention deletes
//! whole files. This file knows one segment; `store.rs` knows them all.

use super::block::{self, Block, BlockError};
use super::disk::{Disk, DiskFile, Mode, Store as Backend, Written};
use super::recover::shielded;
use crate::record::{Number, ShardIndex};
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const BLOCKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("blocks");
const NOTES: TableDefinition<&str, &[u8]> = TableDefinition::new("notes");
const EXTENT: &str = "extent";
const COPY: &str = "copy";
/// How much redb keeps of an open segment in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Half of it may hold pages of an unfinished transaction; what does not fit is written early and then again, because
    /// inserting a value moves its neighbour. A fold of 8 MiB raw fits compressed.
    Write,
    /// Readers take each block once, so only the tree's upper pages are worth keeping.
    Read,
}

impl Cache {
    fn bytes(self) -> usize {
        match self {
            Cache::Write => 6 << 20,
            Cache::Read => 512 << 10,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardExtent {
    pub first: Number,
    pub last: Number,
    pub first_stamp: u64,
    pub last_stamp: u64,
}

/// What a segment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// All groups up to here are in this segment or an earlier one, as far as its stream goes.
    pub folded_group: u64,
    pub shards: BTreeMap<ShardIndex, ShardExtent>,
    /// Bytes of the blocks.
    pub bytes: u64,
    /// Bytes of the large values that its records refer to.
    #[serde(default)]
    pub blob_bytes: u64,
    pub records: u64,
    pub payload: u64,
}

impl Extent {
    /// Enters a block; one that replaces an under-filled one before it only moves the end.
    pub fn add(&mut self, head: &block::Head) {
        self.shards
            .entry(head.shard)
            .and_modify(|extent| {
                extent.last = head.last();
                extent.last_stamp = head.last_stamp;
            })
            .or_insert(ShardExtent {
                first: head.first,
                last: head.last(),
                first_stamp: head.first_stamp,
                last_stamp: head.last_stamp,
            });
    }

    pub fn newest_stamp(&self) -> u64 {
        self.shards.values().map(|shard| shard.last_stamp).max().unwrap_or(0)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Redb(Box<redb::Error>),
    #[error("numbers {from} to {to} of shard {shard}: {source}")]
    Block { shard: ShardIndex, from: Number, to: Number, source: BlockError },
    #[error("the segment has no readable extent")]
    NoExtent,
    #[error("number {number} of shard {shard} is not in the segment that says so")]
    Missing { shard: ShardIndex, number: Number },
}

/// How often a file is read before an error that may pass is taken for damage.
pub const READ_ATTEMPTS: u32 = 3;

/// Whether an error is the disk's refusal, which may pass, and not damage.
pub fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    !matches!(error.kind(), InvalidData | UnexpectedEof | NotFound)
}

impl SegmentError {
    /// Whether the disk refused, which may pass, rather than gave something that is no database.
    pub fn may_pass(&self) -> bool {
        match self {
            SegmentError::Io(error) => may_pass(error),
            SegmentError::Redb(error) => match &**error {
                redb::Error::Io(error) => may_pass(error),
                redb::Error::PreviousIo => true,
                _ => false,
            },
            SegmentError::Block { .. } | SegmentError::NoExtent | SegmentError::Missing { .. } => false,
        }
    }

    fn kind(&self) -> Option<std::io::ErrorKind> {
        match self {
            SegmentError::Io(error) => Some(error.kind()),
            SegmentError::Redb(error) => match &**error {
                redb::Error::Io(error) => Some(error.kind()),
                _ => None,
            },
            SegmentError::Block { .. } | SegmentError::NoExtent | SegmentError::Missing { .. } => None,
        }
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self.kind(), Some(StorageFull | QuotaExceeded))
    }

    /// Whether, after it was asked again and again, the file is at fault; else it is the machine around it.
    pub fn is_damage(&self) -> bool {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        !self.is_full() && !matches!(self.kind(), Some(PermissionDenied | ReadOnlyFilesystem))
    }
}

impl<E: Into<redb::Error>> From<E> for SegmentError
where
    E: RedbError,
{
    fn from(error: E) -> Self {
        SegmentError::Redb(Box::new(error.into()))
    }
}

/// redb's errors, by name: a blanket `Into<redb::Error>` would overlap with `io::Error`.
pub trait RedbError {}
impl RedbError for redb::DatabaseError {}
impl RedbError for redb::TransactionError {}
impl RedbError for redb::TableError {}
impl RedbError for redb::StorageError {}
impl RedbError for redb::CommitError {}
impl RedbError for redb::SetDurabilityError {}

pub struct Segment {
    stream: u32,
    database: Shut,
    file: Arc<dyn DiskFile>,
}

/// What one fold writes into a segment.
pub struct Write<'a> {
    pub blocks: &'a [(block::Head, Vec<u8>)],
    pub extent: &'a Extent,
    /// The state's copy, when the segment is begun or a start has found what it does not say.
    pub copy: Option<&'a [u8]>,
}

/// A database that may be closed although its file is damaged: redb writes to it then, and may panic where it is dropped.
struct Shut(Option<Database>);

impl std::ops::Deref for Shut {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        let database = self.0.take();
        // What it would have written is not needed: a commit was durable before, or failed.
        let _ = shielded(move || {
            drop(database);
            Ok(())
        });
    }
}

impl Segment {
    pub fn open(
        disk: &dyn Disk,
        (stream, path): (u32, &str),
        create: bool,
        cache: Cache,
        written: Written,
    ) -> Result<Segment, SegmentError> {
        let file = disk.open(path, if create { Mode::Create } else { Mode::Existing })?;
        let database = redb::Builder::new()
            .set_cache_size(cache.bytes())
            .create_with_backend(Backend::new(file.clone(), written))?;
        Ok(Segment { stream, database: Shut(Some(database)), file })
    }

    /// Durable when it returns.
    pub fn write(&self, write: &Write<'_>) -> Result<(), SegmentError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        {
            let mut blocks = transaction.open_table(BLOCKS)?;
            for (head, block) in write.blocks {
                blocks.insert(key(head.shard, head.first).as_slice(), block.as_slice())?;
            }
            let mut notes = transaction.open_table(NOTES)?;
            notes.insert(EXTENT, &sealed(&super::state::to_json(write.extent))[..])?;
            if let Some(copy) = write.copy {
                notes.insert(COPY, &sealed(copy)[..])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub fn extent(&self) -> Result<Extent, SegmentError> {
        self.note(EXTENT)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(SegmentError::NoExtent)
    }

    pub fn copy(&self) -> Result<Option<Vec<u8>>, SegmentError> {
        self.note(COPY)
    }

    /// `None` also when it is not what was written: redb does not check what it reads.
    fn note(&self, name: &str) -> Result<Option<Vec<u8>>, SegmentError> {
        let read = self.database.begin_read()?;
        let notes = read.open_table(NOTES)?;
        Ok(notes.get(name)?.and_then(|value| unsealed(value.value())))
    }

    /// The block that holds `number`, or the first behind it in the segment. `last` is the shard's last number here.
    pub fn block_from(&self, shard: ShardIndex, number: Number, last: Number) -> Result<Option<Block>, SegmentError> {
        self.found_from(shard, number, last, |stored| Block::open(stored).map(|block| (block.head.clone(), block)))
    }

    /// The same as it is stored, its checksum verified.
    pub fn stored_from(
        &self,
        shard: ShardIndex,
        number: Number,
        last: Number,
    ) -> Result<Option<(block::Head, Bytes)>, SegmentError> {
        self.found_from(shard, number, last, |stored| {
            let head = block::read_head(stored)?;
            Ok((head.clone(), (head, Bytes::copy_from_slice(stored))))
        })
    }

    /// `read` returns the block's head beside what is made of it.
    fn found_from<T>(
        &self,
        shard: ShardIndex,
        number: Number,
        last: Number,
        read: impl Fn(&[u8]) -> Result<(block::Head, T), BlockError>,
    ) -> Result<Option<T>, SegmentError> {
        let open = |from: Number, to: Number, stored: &[u8]| {
            read(stored)
                .and_then(|(head, found)| self.check_place(&head, shard, from).map(|()| (head.last(), found)))
                .map_err(|source| SegmentError::Block { shard, from, to: to.max(from), source })
        };
        let transaction = self.database.begin_read()?;
        let blocks = transaction.open_table(BLOCKS)?;
        let mut before = blocks.range(key(shard, 0).as_slice()..=key(shard, number).as_slice())?;
        let mut behind =
            blocks.range(key(shard, number.saturating_add(1)).as_slice()..=key(shard, u64::MAX).as_slice())?;
        let next = behind.next().transpose()?;
        let end = next.as_ref().and_then(|(at, _)| shard_and_number(at.value())).map_or(last, |(_, first)| first - 1);
        if let Some((at, value)) = before.next_back().transpose()? {
            let from = shard_and_number(at.value()).map_or(number, |(_, from)| from);
            match open(from, end, value.value()) {
                Ok((last, _)) if last < number => {}
                found => return found.map(|(_, found)| Some(found)),
            }
        }
        match next {
            Some((at, value)) => {
                let from = shard_and_number(at.value()).map_or(number, |(_, from)| from);
                let end = behind.next().transpose()?.and_then(|(at, _)| shard_and_number(at.value()));
                let end = end.map_or(last, |(_, first)| first - 1);
                open(from, end, value.value()).map(|(_, found)| Some(found))
            }
            None => Ok(None),
        }
    }

    /// The stored bytes of the last block of a shard, to be merged while it is under-filled.
    pub fn last_block(&self, shard: ShardIndex) -> Result<Option<Block>, SegmentError> {
        let read = self.database.begin_read()?;
        let blocks = read.open_table(BLOCKS)?;
        let mut range = blocks.range(key(shard, 0).as_slice()..=key(shard, u64::MAX).as_slice())?;
        match range.next_back().transpose()? {
            Some((at, value)) => {
                let from = shard_and_number(at.value()).map_or(0, |(_, from)| from);
                let block = Block::open(value.value());
                let block = block.and_then(|block| self.check_place(&block.head, shard, from).map(|()| block));
                block.map(Some).map_err(|source| SegmentError::Block { shard, from, to: from, source })
            }
            None => Ok(None),
        }
    }

    /// Number of the first record of the first block whose end is at or after a time.
    pub fn block_at(
        &self,
        shard: ShardIndex,
        late_enough: &dyn Fn(u64) -> bool,
    ) -> Result<Option<Number>, SegmentError> {
        let read = self.database.begin_read()?;
        let blocks = read.open_table(BLOCKS)?;
        for row in blocks.range(key(shard, 0).as_slice()..=key(shard, u64::MAX).as_slice())? {
            let (_, value) = row?;
            if let Ok(head) = block::peek(value.value())
                && late_enough(head.last_stamp)
            {
                return Ok(Some(head.first));
            }
        }
        Ok(None)
    }

    /// Checks every block; returns the heads of the good ones and the places of the damaged.
    pub fn verify(&self) -> Result<Verified, SegmentError> {
        let read = self.database.begin_read()?;
        let blocks = read.open_table(BLOCKS)?;
        let mut verified = Verified::default();
        for row in blocks.iter()? {
            let (at, value) = row?;
            match block::read_head(value.value()) {
                Ok(head) if head.stream == self.stream && key(head.shard, head.first) == *at.value() => {
                    verified.good.push(head)
                }
                _ => verified.damaged.extend(shard_and_number(at.value())),
            }
        }
        Ok(verified)
    }

    /// A block under another's key, or of another stream, is the tree's damage.
    fn check_place(&self, head: &block::Head, shard: ShardIndex, first: Number) -> Result<(), BlockError> {
        let is_here = (head.stream, head.shard, head.first) == (self.stream, shard, first);
        is_here.then_some(()).ok_or(BlockError::Damaged)
    }

    pub fn file_bytes(&self) -> u64 {
        self.file.len().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
pub struct Verified {
    pub good: Vec<block::Head>,
    pub damaged: Vec<(ShardIndex, Number)>,
}

/// A note with its checksum in front.
fn sealed(note: &[u8]) -> Vec<u8> {
    [&xxh3_64(note).to_be_bytes(), note].concat()
}

fn unsealed(stored: &[u8]) -> Option<Vec<u8>> {
    let (sum, note) = stored.split_first_chunk::<8>()?;
    (xxh3_64(note).to_be_bytes() == *sum).then(|| note.to_vec())
}

fn key(shard: ShardIndex, number: Number) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&shard.to_be_bytes());
    key[4..].copy_from_slice(&number.to_be_bytes());
    key
}

fn shard_and_number(key: &[u8]) -> Option<(ShardIndex, Number)> {
    Some((u32::from_be_bytes(key.get(..4)?.try_into().ok()?), u64::from_be_bytes(key.get(4..12)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn a_fold_writes_little_more_than_its_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open_root(dir.path()).unwrap();
        let written = Written::default();
        let segment = Segment::open(&disk, (1, "x.redb"), true, Cache::Write, written.clone()).unwrap();
        let mut first = 1;
        for fold in 0..4 {
            let mut blocks = Vec::new();
            let mut extent = Extent::default();
            for n in 0..40 {
                let head = block::Head {
                    stream: 1,
                    shard: n / 10,
                    first,
                    count: 10,
                    raw_len: 10,
                    first_stamp: 0,
                    last_stamp: 0,
                };
                extent.add(&head);
                blocks.push((head, vec![7; (32 << 10) - 256]));
                first += 10;
            }
            let before = written.bytes();
            segment.write(&Write { blocks: &blocks, extent: &extent, copy: None }).unwrap();
            let ratio = (written.bytes() - before) as f64 / f64::from(40 * (32 << 10));
            // The first fold begins the file.
            assert!(ratio < 1.1 || fold == 0, "{ratio}");
        }
    }

    // A reader was given the records of another shard under the numbers it asked for.
    #[test]
    fn a_block_under_anothers_key_or_of_another_stream_is_damage() {
        let disk = super::super::disk::sim::SimDisk::new(1);
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        let mut block = |stream: u32, shard: ShardIndex, first: Number| {
            let mut builder = block::Builder::new(stream, shard);
            builder.push(first, 4, 5, &[7; 100]);
            builder.finish(&mut zstd).unwrap()
        };
        let mut at = |shard, first| block::Head { shard, first, ..block(1, 0, 1).0 };
        let heads = [at(0, 1), at(0, 5), at(1, 1), at(2, 1)];
        let stored = [block(1, 0, 1), block(1, 0, 9), block(1, 0, 1), block(2, 2, 1)].map(|(_, stored)| stored);
        let blocks: Vec<_> = heads.into_iter().zip(stored).collect();
        let segment = Segment::open(&*disk.mount(), (1, "x.redb"), true, Cache::Write, Written::default()).unwrap();
        segment.write(&Write { blocks: &blocks, extent: &Extent::default(), copy: None }).unwrap();
        assert!(segment.block_from(0, 1, 8).unwrap().is_some());
        for (shard, number) in [(0, 5), (0, 7), (1, 1), (2, 3)] {
            let read = segment.block_from(shard, number, 8).map(|block| block.map(|block| block.head));
            assert!(matches!(read, Err(SegmentError::Block { .. })), "{shard} {number}: {read:?}");
            let stored = segment.stored_from(shard, number, 8).map(|found| found.map(|(head, _)| head));
            assert!(matches!(stored, Err(SegmentError::Block { .. })), "{shard} {number}: {stored:?}");
        }
        let verified = segment.verify().unwrap();
        assert_eq!((verified.good.len(), verified.damaged), (1, vec![(0, 5), (1, 1), (2, 1)]));
    }
}
