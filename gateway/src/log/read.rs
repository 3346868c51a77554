//! Reading a shard: a range, or the tail as it grows. Nothing that is not durable is ever seen.

use super::error::ReadError;
use crate::record::{Gap, Number, Record};

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The oldest record still there (Kinesis TRIM_HORIZON).
    Oldest,
    /// Behind the newest durable record (LATEST).
    Latest,
    /// This number, or the next that exists. What is missing in front of it comes as a gap.
    At(Number),
    /// The first record that arrived at or after this time, in ms since 1970.
    Time(u64),
}

/// What a reader meets, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Record(Record),
    /// Numbers that are gone, with the reason (promise P5).
    Gap(Gap),
}

/// Reads one shard in order.
pub struct Reader;

impl Reader {
    /// The next entries, up to `records_max` and `bytes_max` of payload (at least one if there is one); empty at the tail.
    /// Reads from memory at once and from disk on a blocking thread.
    pub async fn next(&mut self, _records_max: usize, _bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        unimplemented!()
    }

    /// The same for a thread that may block.
    pub fn next_blocking(&mut self, _records_max: usize, _bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        unimplemented!()
    }

    /// Returns when [`Reader::next`] would return something, or the stream is deleted. Cancel-safe.
    pub async fn ready(&mut self) {
        unimplemented!()
    }

    /// The number the next entry will have at least.
    pub fn position(&self) -> Number {
        unimplemented!()
    }
}
