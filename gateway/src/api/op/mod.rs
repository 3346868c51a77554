//! The operations, one file each: request and answer as AWS's model has them, and `run`.
//!
//! They see typed members only, never the form they came in. What several of them share stands in `put` (records on their
//! way in) and `shown` (shards, records and numbers as answers show them).

pub mod create_stream;
pub mod delete_stream;
pub mod describe_stream;
pub mod describe_stream_summary;
pub mod get_records;
pub mod get_shard_iterator;
pub mod list_shards;
pub mod list_streams;
mod put;
pub mod put_record;
pub mod put_records;
mod shown;

use serde::Serialize;

/// The answer of an operation that has none: an empty body.
#[derive(Serialize)]
pub struct Nothing;
