//! The door of the log: a batch of records as a producer hands it in, already encoded, sorted by shard. Pure.
//!
//! A batch is filled without a lock and copied once; the log gives numbers to whole runs of it at a time.

use super::encode;
use super::group::control_bytes;
use super::producer::{self, Span};
use super::schema::Table;
use super::shard::Shard;
use super::stream::Stream;
use crate::record::{
    DATA_BYTES_MAX, HEADERS_BYTES_MAX, HashKey, NewRecord, Number, PARTITION_KEY_BYTES_MAX, ShardIndex,
};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Values above this go to a blob file instead of the journal, in bytes.
pub const INLINE_BYTES_MAX: usize = 64 << 10;

/// Where a record of a batch went, in the order the records were pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Will be durable under this number once the ticket is.
    Stored { shard: ShardIndex, number: Number },
    /// The producer sent this number before (promise P3): it is kept already, or will be once the ticket is durable.
    Duplicate { shard: ShardIndex },
    /// Refused: the stream is full and its policy is `reject`.
    Full { shard: ShardIndex },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    #[error("the partition key has {0} bytes; 1 to {PARTITION_KEY_BYTES_MAX} are allowed")]
    Key(usize),
    #[error("the value has {0} bytes; at most {DATA_BYTES_MAX} are allowed")]
    Data(usize),
    #[error("the headers have {0} bytes; at most {HEADERS_BYTES_MAX} are allowed")]
    Headers(usize),
    #[error("the stream is being deleted")]
    Deleted,
}

/// Records of one shard, in order, encoded one after the other.
pub(super) struct Part {
    pub stream: Arc<Stream>,
    pub shard: Arc<Shard>,
    pub count: u32,
    pub payload: u64,
    pub bytes: BytesMut,
    /// Whether a record's value lies in a blob file.
    pub has_blobs: bool,
    /// The stream is full and takes none of it.
    pub refused: bool,
    /// `refused` was judged for the whole batch, and stands.
    pub judged: bool,
    /// What the part holds of each producer: empty for most.
    pub producers: Vec<Span>,
}

/// A large value that has to reach its blob file before the batch may enter a group.
pub(super) struct Large {
    pub part: usize,
    /// Where in the part's bytes the blob reference is to be filled in.
    pub offset: usize,
    pub data: Bytes,
}

/// A row's value, made of what became of the batch's records; `None` removes the row.
type OnPlaces = Box<dyn FnOnce(&[Placement]) -> Option<Bytes> + Send>;

/// Records on their way in. Records of one batch and shard keep the order they were pushed in.
#[derive(Default)]
pub struct Batch {
    pub(super) parts: Vec<Part>,
    /// Per record: which part, and which record of that part.
    pub(super) order: Vec<(u32, u32)>,
    pub(super) control: Vec<(Table, Bytes, Option<Bytes>)>,
    pub(super) on_places: Vec<(Table, Bytes, OnPlaces)>,
    pub(super) large: Vec<Large>,
    /// See [`Batch::take_numbered_as_one`].
    pub(super) as_one: bool,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty() && self.control.is_empty() && self.on_places.is_empty()
    }

    /// Number of records pushed.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Bytes held, encoded.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum::<usize>()
            + self.large.iter().map(|l| l.data.len()).sum::<usize>()
    }

    /// Bytes of the changes of state in a frame, at most; of those that depend on records, what is known before.
    pub(super) fn control_bytes(&self) -> usize {
        let known = self.control.iter().map(|(_, key, value)| control_bytes(key, value.as_ref()));
        known.chain(self.on_places.iter().map(|(_, key, _)| control_bytes(key, None))).sum()
    }

    /// Adds a record to the shard its key hashes to.
    pub fn push(&mut self, stream: &Arc<Stream>, record: &NewRecord<'_>) -> Result<(), PushError> {
        self.push_hashed(stream, record.hash(), record)
    }

    /// The same for a caller who has hashed the key before.
    pub fn push_hashed(
        &mut self,
        stream: &Arc<Stream>,
        hash: HashKey,
        record: &NewRecord<'_>,
    ) -> Result<(), PushError> {
        if record.key.is_empty() || record.key.len() > PARTITION_KEY_BYTES_MAX {
            return Err(PushError::Key(record.key.len()));
        }
        if record.data.len() > DATA_BYTES_MAX {
            return Err(PushError::Data(record.data.len()));
        }
        let headers: usize = record.headers.iter().map(|h| h.value.len() + 8).sum();
        if headers > HEADERS_BYTES_MAX {
            return Err(PushError::Headers(headers));
        }
        if stream.is_deleted() {
            return Err(PushError::Deleted);
        }
        let shard = stream.shard_for(hash);
        let at = self.part_of(stream, &shard);
        let part = &mut self.parts[at];
        self.order.push((at as u32, part.count));
        if let Some(producer) = record.producer {
            producer::note_span(&mut part.producers, producer);
        }
        part.count += 1;
        part.payload += record.data.len() as u64;
        if record.data.len() > INLINE_BYTES_MAX {
            part.has_blobs = true;
            let offset = encode::put_with_blob(&mut part.bytes, record);
            self.large.push(Large { part: at, offset, data: Bytes::copy_from_slice(record.data) });
        } else {
            encode::put(&mut part.bytes, record);
        }
        Ok(())
    }

    /// The part of a shard, begun if there is none.
    pub(super) fn part_of(&mut self, stream: &Arc<Stream>, shard: &Arc<Shard>) -> usize {
        if let Some(at) = self.parts.iter().position(|part| Arc::ptr_eq(&part.shard, shard)) {
            return at;
        }
        self.parts.push(Part {
            stream: stream.clone(),
            shard: shard.clone(),
            count: 0,
            payload: 0,
            bytes: BytesMut::new(),
            has_blobs: false,
            refused: false,
            judged: false,
            producers: Vec::new(),
        });
        self.parts.len() - 1
    }

    /// The numbered records of this batch are taken all or none, and become durable together: a producer's higher number in
    /// one shard then says that its lower ones are in theirs. What no group holds is judged once and becomes durable in
    /// parts; see [`super::Log::numbered_bytes_max`].
    pub fn take_numbered_as_one(&mut self) {
        self.as_one = true;
    }

    /// A change of the gateway's own state (sessions, cursors) that becomes durable in the same commit as the records.
    /// `None` removes the key.
    pub fn put_state(&mut self, table: Table, key: impl Into<Bytes>, value: Option<Bytes>) {
        self.control.push((table, key.into(), value));
    }

    /// The same for a change that depends on what becomes of the records: `value` is asked once all have their places, in
    /// push order, and records and change are durable together or not at all. It is asked under the log's lock: quickly.
    pub fn put_state_on_places(
        &mut self,
        table: Table,
        key: impl Into<Bytes>,
        value: impl FnOnce(&[Placement]) -> Option<Bytes> + Send + 'static,
    ) {
        self.on_places.push((table, key.into(), Box::new(value)));
    }
}

/// Numbered records are refused all or none: what a part that comes later got would be called stored by its number, and
/// with it what an earlier one did not get.
pub(super) fn judge_as_one(parts: &mut [Part]) {
    let numbered = || parts.iter().filter(|part| !part.producers.is_empty());
    let refused = numbered().any(|part| part.refused || part.stream.refuses());
    for part in parts.iter_mut().filter(|part| !part.producers.is_empty()) {
        (part.refused, part.judged) = (refused, true);
    }
}

/// Pieces of a part, each at most `bytes_max` long unless a single record is longer.
pub(super) fn cut(part: Part, bytes_max: usize) -> Vec<Part> {
    let mut pieces = Vec::new();
    let mut rest = part.bytes;
    let is_numbered = !part.producers.is_empty();
    let mut left = part.count;
    while left > 0 {
        let (mut length, mut count, mut own) = (0, 0, Vec::new());
        while count < left {
            let next = encode::skip(&rest[length..]).unwrap_or(rest.len() - length);
            if count > 0 && length + next > bytes_max {
                break;
            }
            if let Some(producer) = is_numbered.then(|| encode::producer(&rest[length..length + next])).flatten() {
                producer::note_span(&mut own, producer);
            }
            (length, count) = (length + next, count + 1);
        }
        let payload = part.payload * u64::from(count) / u64::from(part.count);
        let (stream, shard) = (part.stream.clone(), part.shard.clone());
        let (has_blobs, refused, judged) = (part.has_blobs, part.refused, part.judged);
        let bytes = rest.split_to(length);
        pieces.push(Part { stream, shard, count, payload, bytes, has_blobs, refused, judged, producers: own });
        left -= count;
    }
    pieces
}
