//! The envelope in which a device's records travel to a gateway, shared by both: `no_std`, no allocation, no panics.
//!
//! ```text
//! envelope: kind u8 | epoch varint | first varint | count varint | body
//!   kind 1  plain     count times: length varint, bytes                each is a record as it stands
//!   kind 2  readings  a table: columns once, then rows of deltas       each row is a record, a JSON object
//!   kind 3  chunk     a part of a blob: see [`Chunk`]                  count is 1
//! ```
//!
//! An envelope is the payload of one MQTT PUBLISH with the content type [`CONTENT_TYPE`]. Its records have the numbers
//! `first..first + count` of the device's `epoch`; one PUBACK says that all of them are on the gateway's disk. Numbers
//! of an epoch only rise, and what was numbered once never changes its number, so a gateway that has kept a record knows
//! it again (promise P3). Varints are LEB128 of at most 64 bits; everything read is bounded by the bytes that are there.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![no_std]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod chunk;
mod envelope;
pub mod firmware;
mod hello;
mod losses;
mod readings;
mod varint;

pub use chunk::{CHUNK_HEADER_BYTES_MAX, Chunk, crc32};
pub use envelope::{ENVELOPE_HEADER_BYTES_MAX, Envelope, Kind, Plain, RECORDS_MAX, plain};
pub use hello::{HELLO_BYTES, Hello};
pub use losses::{LOSSES_BYTES, LOSSES_TOPIC, Losses};
pub use readings::{
    COLUMNS_MAX, Column, ColumnType, Json, NAME_BYTES_MAX, Null, ROW_TEXT_BYTES_MAX, Row, Rows, SCALE_MAX, Table,
    TableError, TableWriter, Value,
};
pub use varint::{VARINT_BYTES_MAX, read as read_varint, unzigzag, write as write_varint, zigzag};

/// MQTT 5 content type of a PUBLISH that holds an envelope.
pub const CONTENT_TYPE: &str = "application/vnd.headwater.v1";

/// Root of the topics between a gateway and its devices: `$headwater/d/{client id}/...`.
pub const TOPIC_ROOT: &str = "$headwater/d/";

/// Why bytes are not what they should be. They came from a stranger, or through one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end in the middle of a field.
    Short,
    /// A kind, type or version that this version does not know.
    Unknown,
    /// A number that cannot be: too large, or zero where something has to be.
    Range,
    /// Bytes are left behind the last field.
    Trailing,
    /// A checksum that does not fit.
    Checksum,
    /// Text that is not UTF-8.
    Text,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Malformed::Short => "ends in the middle of a field",
            Malformed::Unknown => "is of a kind or version that is not known here",
            Malformed::Range => "has a number that is out of range",
            Malformed::Trailing => "has bytes behind its last field",
            Malformed::Checksum => "has a checksum that does not fit",
            Malformed::Text => "has text that is not UTF-8",
        })
    }
}

impl core::error::Error for Malformed {}
