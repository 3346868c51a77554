//! The fragments that a stream keeps, read back from the log: the index follows the log, and a fragment's bytes are read when
//! somebody wants them. What is not durable is not here.

use super::index::{Entry, Index};
use crate::log::{Entry as LogEntry, Log, Position, ReadError, Reader, Stream};
use crate::record::Number;
use crate::wire::media::Media;
use bytes::{Bytes, BytesMut};
use headwater_video::{Fragment, matroska};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};

/// Records looked at in one go while the index catches up.
const LOOK_RECORDS: usize = 2_000;
const LOOK_BYTES: usize = 4 << 20;

/// One stream's fragments. Shared by all who read the stream.
pub struct Archive {
    log: Log,
    pub stream: Arc<Stream>,
    followed: Mutex<Followed>,
}

struct Followed {
    index: Index,
    /// `None` before the first look.
    reader: Option<Reader>,
}

#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    #[error("the fragment is not there any more")]
    Gone,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the stored fragment cannot be read: {0}")]
    Damaged(String),
}

/// A fragment as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub media: Media,
    /// A Matroska file: head, then clusters.
    pub bytes: Bytes,
    /// Name and value of what its producer tagged it with.
    pub tags: Vec<(String, String)>,
}

impl Stored {
    /// EBML, Segment, Info and Tracks.
    pub fn head(&self) -> Bytes {
        self.bytes.slice(..(self.media.head_bytes as usize).min(self.bytes.len()))
    }

    pub fn clusters(&self) -> Bytes {
        self.bytes.slice((self.media.head_bytes as usize).min(self.bytes.len())..)
    }

    pub fn fragment(&self) -> Result<Fragment, FragmentError> {
        matroska::read_fragment(&self.bytes).map_err(|error| FragmentError::Damaged(error.to_string()))
    }
}

impl Archive {
    pub fn new(log: Log, stream: Arc<Stream>) -> Archive {
        Archive { log, stream, followed: Mutex::new(Followed { index: Index::default(), reader: None }) }
    }

    /// The index as the log is now. It is locked until dropped: take from it what is needed, and let go.
    pub async fn index(&self) -> Result<Looked<'_>, ReadError> {
        let mut followed = self.followed.lock().await;
        followed.catch_up(&self.log, &self.stream).await?;
        if let Some(shard) = self.stream.shard(0) {
            followed.index.trim(shard.oldest());
        }
        Ok(Looked(followed))
    }

    /// Returns when there are records behind `number`, or the stream is deleted. Cancel-safe.
    pub async fn changed(&self, number: Number) -> Result<(), ReadError> {
        let mut reader = self.log.reader(&self.stream, 0, Position::At(number + 1))?;
        reader.ready().await;
        Ok(())
    }

    /// Reads a fragment's parts and puts them together.
    pub async fn read(&self, entry: &Entry) -> Result<Stored, FragmentError> {
        let mut reader = self.log.reader(&self.stream, 0, Position::At(entry.number))?;
        let mut whole: Option<Stored> = None;
        let mut bytes = BytesMut::new();
        for part in 0..entry.parts {
            let found = reader.next(1, 1).await?;
            let Some(LogEntry::Record(record)) = found.into_iter().next() else { return Err(FragmentError::Gone) };
            let media = Media::of(&record).filter(|media| media.part == part && media.parts == entry.parts);
            let Some(media) = media.filter(|_| record.number == entry.number + u64::from(part)) else {
                return Err(FragmentError::Gone);
            };
            if entry.parts == 1 {
                let tags = tags_of(&record);
                return Ok(Stored { media, bytes: record.data, tags });
            }
            whole.get_or_insert_with(|| Stored { media, bytes: Bytes::new(), tags: tags_of(&record) });
            bytes.extend_from_slice(&record.data);
        }
        let mut whole = whole.ok_or(FragmentError::Gone)?;
        whole.bytes = bytes.freeze();
        Ok(whole)
    }
}

fn tags_of(record: &crate::record::Record) -> Vec<(String, String)> {
    let users = record.headers.iter().filter_map(|header| header.as_user());
    users.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The index, locked.
pub struct Looked<'a>(MutexGuard<'a, Followed>);

impl std::ops::Deref for Looked<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.0.index
    }
}

impl Followed {
    async fn catch_up(&mut self, log: &Log, stream: &Arc<Stream>) -> Result<(), ReadError> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => log.reader(stream, 0, Position::Oldest)?.heads_only(),
        };
        let looked = loop {
            match reader.next(LOOK_RECORDS, LOOK_BYTES).await {
                Ok(entries) if entries.is_empty() => break Ok(()),
                Ok(entries) => entries.iter().for_each(|entry| {
                    if let LogEntry::Record(record) = entry {
                        self.index.add(record);
                    }
                }),
                Err(error) => break Err(error),
            }
        };
        self.reader = Some(reader);
        looked
    }
}
