//! Fragmented MP4 (ISO/IEC 14496-12), which browsers play: written from fragments, and read when a device sends it.
//!
//! ```text
//! Tracks -> init   Fragment -> media   some frames -> part   Fragment, Fragment, ... -> Clip, one file
//! bytes of an init -> read_init -> Init; Init and bytes of a segment -> read_media -> Fragment
//! ```
//! Frames are copied, never looked at. Boxes are written by hand: they are few, and each function shows its layout.
//! It is no general MP4 library: files with their samples in a `moov`, edit lists and encryption are not read. Pure.

mod boxes;
mod clip;
mod entry;
mod init;
mod media;
mod parts;
mod read;
mod time;

pub use clip::{Clip, Place};
pub use init::init;
pub use media::{Timing, media, part, reorder_ns};
pub use parts::{Part, PartCutter};
pub use read::{Init, ReadError, read_init, read_media};
pub(crate) use time::to_ticks;
pub use time::{VIDEO_TIMESCALE, timescale};

use crate::codecs::CodecError;

/// Most frames of a segment: twenty seconds of 240 pictures and 400 packets of audio a second are 12,800.
pub const SAMPLES_MAX: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mp4Error {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("no track that MP4 carries")]
    NoTrack,
    #[error("no frame of a track that MP4 carries")]
    NoFrame,
    #[error("track {track}: {what}")]
    Track { track: u8, what: &'static str },
    #[error("track {track}: a frame is decoded before time 0 of the file, or too far from the frame before")]
    Time { track: u8 },
    #[error("more than {SAMPLES_MAX} frames, or more bytes than a fragment may have")]
    TooLarge,
    #[error("the tracks changed: a clip has one set of tracks")]
    TracksChanged,
}

#[cfg(test)]
mod tests;
