//! What can go wrong at the log's doors, one enum an operation.

use super::frame;
use super::journal::ScanError;
use super::segment::SegmentError;
use crate::record::StreamName;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{dir}: another headwater is running on this data directory; stop it or name another with --data")]
    Locked { dir: PathBuf },
    #[error(
        "{path}: written by a newer headwater (format {found}, this one reads up to {known}); upgrade, or name another directory with --data"
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("a data budget of {given} is too small; 64 MiB is the least (max_bytes in [data])")]
    Budget { given: crate::units::ByteSize },
    #[error("{0}")]
    Store(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The group was not committed; nothing of the batch may be acknowledged. It may be sent again.
    #[error("the log could not be written: {0}")]
    Failed(String),
    /// The log is closing; nothing was taken.
    #[error("the gateway is stopping")]
    Closed,
}

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("the stream {0} exists already")]
    Exists(StreamName),
    #[error("there is no stream {0}")]
    NotFound(StreamName),
    #[error("{0} shards: 1 to {max} are allowed", max = super::stream::SHARDS_MAX)]
    Shards(u32),
    #[error("{0} streams exist; that is the most")]
    TooMany(usize),
    #[error(transparent)]
    Append(#[from] AppendError),
}

#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("there is no stream {0}")]
    NotFound(StreamName),
    #[error(transparent)]
    Append(#[from] AppendError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the stream has no shard {0}")]
    NoShard(u32),
    #[error("the stream is being deleted")]
    Deleted,
    #[error("a segment could not be read: {0}")]
    Store(String),
}

// What recovery meets, as an `OpenError`. Paths are relative to the data directory until `OpenError::within`.

pub(super) fn io_error(path: &str) -> impl Fn(io::Error) -> OpenError {
    let path = PathBuf::from(path);
    move |source| OpenError::Io { path: path.clone(), source }
}

pub(super) fn store_error(error: SegmentError) -> OpenError {
    OpenError::Store(error.to_string())
}

pub(super) fn scan_error(error: ScanError) -> OpenError {
    match error {
        ScanError::Io(source) => OpenError::Io { path: super::journal::DIR.into(), source },
        ScanError::Newer(version) => OpenError::Newer {
            path: super::journal::DIR.into(),
            found: u32::from(version),
            known: u32::from(frame::VERSION),
        },
    }
}
