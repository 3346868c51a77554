//! Bytes kept: durable, sharded, ordered streams on one disk.
//!
//! A producer fills a [`Batch`], hands it to its [`Appender`] and waits for the ticket; the committer writes everything that
//! came in while the last sync ran as one group into the journal, syncs, and only then tells (promise P1). Folding moves
//! the journal into redb blocks off the hot path. Readers see nothing that is not durable. See `docs/durability.md`.
//!
//! Way of a record: `batch` -> `shard` (number) -> `committer` -> `journal` (sync) -> `ack`; then `fold` -> `block` ->
//! `segment`; out through `read` and `cursor`; away through `retain`. `recover` runs once, before all of this.
//! Nothing here knows of MQTT, HTTP or upstreams. redb is named in this folder alone.

mod ack;
mod batch;
mod cursor;
pub mod disk;
mod encode;
mod error;
mod read;
mod schema;
mod shard;
mod stream;

pub use ack::{Appender, Ticket};
pub use batch::{Batch, INLINE_BYTES_MAX, Placement, PushError};
pub use cursor::CursorState;
pub use error::{AppendError, CreateError, DeleteError, OpenError, ReadError};
pub use read::{Entry, Position, Reader};
pub use schema::Table;
pub use shard::Shard;
pub use stream::{OnFull, Stream, StreamSettings};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{Gap, ShardIndex, StreamName};
use crate::units::{ByteSize, Span};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// What a log is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    pub dir: PathBuf,
    /// One budget for the whole directory.
    pub max_bytes: ByteSize,
    /// Commits of less than a page allowed per second before they wait for company.
    pub thin_commits_per_s: u32,
    /// How long they then wait.
    pub linger: Span,
}

/// The log of one gateway. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner;

impl Log {
    /// Opens or creates the log in `options.dir`: takes the lock, recovers, starts the committer and its helpers.
    /// Blocking; call before the runtime takes connections.
    pub fn open(_options: Options, _clock: Clock, _metrics: Arc<Metrics>) -> Result<Log, OpenError> {
        unimplemented!()
    }

    /// Commits what is pending, folds within `bound`, stops the threads, releases the lock. Blocking.
    pub fn close(&self, _bound: std::time::Duration) {
        unimplemented!()
    }

    /// Stable random name of this gateway, part of every record id.
    pub fn gateway_id(&self) -> &str {
        unimplemented!()
    }
    pub fn incarnation(&self) -> u32 {
        unimplemented!()
    }

    /// `None` while the log commits; else why it does not (full disk, I/O error), for `/readyz` and the console.
    pub fn trouble(&self) -> Option<String> {
        unimplemented!()
    }

    // Streams.

    /// Durable when it returns. Blocking for one commit.
    pub fn create_stream(&self, _name: &StreamName, _settings: StreamSettings) -> Result<Arc<Stream>, CreateError> {
        unimplemented!()
    }
    /// Changes retention, max_bytes and on_full of a stream; the shard count is left alone. Durable when it returns.
    pub fn update_stream(&self, _name: &StreamName, _settings: StreamSettings) -> Result<(), CreateError> {
        unimplemented!()
    }
    /// Durable when it returns. Shard ids and numbers of a stream made again under the name are above the old ones.
    pub fn delete_stream(&self, _name: &StreamName) -> Result<(), DeleteError> {
        unimplemented!()
    }
    pub fn stream(&self, _name: &str) -> Option<Arc<Stream>> {
        unimplemented!()
    }
    /// All streams, by name.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        unimplemented!()
    }

    // In.

    /// A door for one producer: its batches are committed in the order it hands them in.
    pub fn appender(&self) -> Appender {
        unimplemented!()
    }

    // Out.

    /// A reader of one shard. Many may read at once; each costs what it holds in hand.
    pub fn reader(&self, _stream: &Arc<Stream>, _shard: ShardIndex, _from: Position) -> Result<Reader, ReadError> {
        unimplemented!()
    }
    /// The gap ledger of a stream, by shard and number.
    pub fn gaps(&self, _stream: &Stream) -> Vec<Gap> {
        unimplemented!()
    }
    /// Enters records that a destination refused for good (reason `Rejected`) into the ledger, with the next commit.
    pub fn record_gap(&self, _stream: &Stream, _gap: Gap) {
        unimplemented!()
    }

    // Cursors of sinks.

    /// Names a sink and the streams it forwards, before its first cursor. A required sink holds retention until delivered.
    pub fn register_sink(&self, _sink: &str, _streams: &[Arc<Stream>], _required: bool) {
        unimplemented!()
    }
    /// Where a sink stands; a new sink stands at the oldest record.
    pub fn cursor(&self, _sink: &str, _stream: &Stream, _shard: ShardIndex) -> CursorState {
        unimplemented!()
    }
    /// Moves a sink's cursor. Seen at once by retention and metrics; durable with the next commit, within a second.
    pub fn move_cursor(&self, _sink: &str, _stream: &Stream, _shard: ShardIndex, _to: CursorState) {
        unimplemented!()
    }

    // State of other parts that must be durable with the records (MQTT sessions and the like). In memory, so reads are cheap.

    pub fn state(&self, _table: Table, _key: &[u8]) -> Option<Bytes> {
        unimplemented!()
    }
    /// All entries whose key starts with `prefix`, in key order.
    pub fn state_scan(&self, _table: Table, _prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        unimplemented!()
    }
}
