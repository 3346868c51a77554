//! Matroska (RFC 9559) as a camera sends it and as it is kept.
//!
//! ```text
//! bytes, cut anywhere -> parse (which element is where) -> header (Info, Tracks, Tags) | block (frames, lacing) -> Event
//! Fragment -> write -> a file of its own -> read_fragment -> the same Fragment
//! ```
//! It reads forward only: no seeking, no Cues, no check of CRC-32. A frame's bytes are copied once, into an allocation of
//! their own. Pure.

mod block;
mod header;
pub mod ids;
mod parse;
mod write;

pub use header::{TAG_NAME_BYTES_MAX, TAG_VALUE_BYTES_MAX, TAGS_MAX};
pub use parse::{Event, FRAME_BYTES_MAX, Fault, MASTER_BYTES_MAX, ParseError, Parser, TRACKS_BYTES_MAX};
pub use write::{TICK_NS, cluster, head, read_fragment, tags, write_fragment};

#[cfg(test)]
mod tests;
