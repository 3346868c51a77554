//! Reads a shard ahead of its lanes: at most two chunks, so that the disk works while the last chunk is packed.

use crate::log::{Entry, Log, Position, ReadError, Reader, StoredBlock, Stream};
use crate::record::{Number, ShardIndex};
use crate::wire::blocks;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

const CHUNKS_MAX: usize = 2;
const CHUNK_RECORDS_MAX: usize = 4096;
const CHUNK_BYTES_MAX: usize = 256 << 10;
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Blocks of a chunk, inflated, in bytes: what a request may have.
const BLOCKS_RAW_MAX: usize = blocks::RAW_BYTES_MAX / 2;
/// Blocks of a chunk as they are stored, in bytes: at least one has room.
const BLOCKS_STORED: (usize, usize) = (64 << 10, 256 << 10);

/// Entries of a shard, in order, or blocks as they are stored. Dropping it lets the reader read on.
pub struct Chunk {
    /// Which of the forwarder's shards.
    pub at: usize,
    /// The feed it comes from: one that was replaced is not heard any more.
    pub feed: u64,
    /// Number of the first entry or record; a block may begin before it.
    pub from: Number,
    pub entries: Vec<Entry>,
    pub blocks: Vec<StoredBlock>,
    _room: OwnedSemaphorePermit,
}

/// Whether and from where on blocks may be read as they are stored.
#[derive(Clone)]
pub struct BlocksWanted {
    pub wanted: Arc<AtomicBool>,
    pub from: Number,
    /// Memory for the blocks of this shard.
    pub memory: usize,
}

/// A reader at work; it ends when this is dropped.
pub struct Feed {
    pub id: u64,
    at_tail: Arc<AtomicBool>,
    task: tokio::task::AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    pub fn start(
        log: &Log,
        stream: &Arc<Stream>,
        at: usize,
        shard: ShardIndex,
        from: Number,
        blocks: Option<BlocksWanted>,
        into: mpsc::Sender<Chunk>,
    ) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let at_tail = Arc::new(AtomicBool::new(false));
        let (log, stream) = (log.clone(), stream.clone());
        let feeding = Feeding { id, log, stream, at, shard, at_tail: at_tail.clone(), blocks, into };
        Feed { id, at_tail, task: tokio::spawn(feeding.run(from)).abort_handle() }
    }

    /// Everything that is durable was read.
    pub fn at_tail(&self) -> bool {
        self.at_tail.load(Ordering::Relaxed)
    }
}

struct Feeding {
    id: u64,
    log: Log,
    stream: Arc<Stream>,
    at: usize,
    shard: ShardIndex,
    at_tail: Arc<AtomicBool>,
    blocks: Option<BlocksWanted>,
    into: mpsc::Sender<Chunk>,
}

impl Feeding {
    async fn run(self, mut from: Number) {
        loop {
            let ended = match self.log.reader(&self.stream, self.shard, Position::At(from)) {
                Ok(reader) => self.read(reader, &mut from).await,
                Err(error) => Err(error),
            };
            match ended {
                // The forwarder is gone, or the stream: nothing to read for.
                Ok(()) | Err(ReadError::Deleted | ReadError::NoShard(_)) => return,
                Err(error) => {
                    tracing::warn!(stream = %self.stream.name, shard = self.shard, %error, "uplink cannot read, tries again");
                    tokio::time::sleep(READ_AGAIN_AFTER).await;
                }
            }
        }
    }

    async fn read(&self, mut reader: Reader, from: &mut Number) -> Result<(), ReadError> {
        let room = Arc::new(Semaphore::new(CHUNKS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
            let began = reader.position();
            let blocks = self.blocks(&mut reader).await?;
            let entries = match blocks.is_empty() {
                true => reader.next(CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX).await?,
                false => Vec::new(),
            };
            if entries.is_empty() && blocks.is_empty() {
                if self.stream.is_deleted() {
                    return Ok(());
                }
                self.at_tail.store(true, Ordering::Relaxed);
                reader.ready().await;
                continue;
            }
            self.at_tail.store(false, Ordering::Relaxed);
            *from = reader.position();
            let chunk = Chunk { at: self.at, feed: self.id, from: began, entries, blocks, _room: permit };
            if self.into.send(chunk).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn blocks(&self, reader: &mut Reader) -> Result<Vec<StoredBlock>, ReadError> {
        let is_wanted =
            |blocks: &&BlocksWanted| blocks.wanted.load(Ordering::Relaxed) && reader.position() >= blocks.from;
        match self.blocks.as_ref().filter(is_wanted) {
            // One is in flight, two wait, one is being read.
            Some(blocks) => {
                let stored = (blocks.memory / 4).clamp(BLOCKS_STORED.0, BLOCKS_STORED.1);
                reader.next_blocks(stored, BLOCKS_RAW_MAX).await
            }
            None => Ok(Vec::new()),
        }
    }
}
