//! Reads a shard ahead of its lanes: at most two chunks, so that the disk works while the last chunk is packed.

use crate::log::{Entry, Log, Position, ReadError, Reader, Stream};
use crate::record::{Number, ShardIndex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

const CHUNKS_MAX: usize = 2;
const CHUNK_RECORDS_MAX: usize = 4096;
const CHUNK_BYTES_MAX: usize = 256 << 10;
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Entries of a shard, in order. Dropping it lets the reader read on.
pub struct Chunk {
    /// Which of the forwarder's shards.
    pub at: usize,
    pub entries: Vec<Entry>,
    _room: OwnedSemaphorePermit,
}

/// A reader at work; it ends when this is dropped.
pub struct Feed {
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
        into: mpsc::Sender<Chunk>,
    ) -> Self {
        let at_tail = Arc::new(AtomicBool::new(false));
        let feeding = Feeding { log: log.clone(), stream: stream.clone(), at, shard, at_tail: at_tail.clone(), into };
        Feed { at_tail, task: tokio::spawn(feeding.run(from)).abort_handle() }
    }

    /// Everything that is durable was read.
    pub fn at_tail(&self) -> bool {
        self.at_tail.load(Ordering::Relaxed)
    }
}

struct Feeding {
    log: Log,
    stream: Arc<Stream>,
    at: usize,
    shard: ShardIndex,
    at_tail: Arc<AtomicBool>,
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
            let entries = reader.next(CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX).await?;
            if entries.is_empty() {
                if self.stream.is_deleted() {
                    return Ok(());
                }
                self.at_tail.store(true, Ordering::Relaxed);
                reader.ready().await;
                continue;
            }
            self.at_tail.store(false, Ordering::Relaxed);
            *from = reader.position();
            if self.into.send(Chunk { at: self.at, entries, _room: permit }).await.is_err() {
                return Ok(());
            }
        }
    }
}
