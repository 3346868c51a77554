//! Reads fragmented MP4 that a device sends: an init segment, and media segments.
//!
//! Lengths and counts are checked against what is there before anything is kept; a segment has at most
//! [`super::SAMPLES_MAX`] frames and [`FRAGMENT_BYTES_MAX`](crate::media::FRAGMENT_BYTES_MAX) bytes. Edit lists are
//! not applied: times are those of `tfdt` and `trun`. Frames are slices of what was given, not copies. Pure.

mod cursor;
mod init;
mod media;

pub use init::read_init;
pub use media::read_media;

use crate::{Tracks, media::TRACKS_MAX};
use std::sync::Arc;

/// What an init segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Numbered from 1 in their order.
    pub tracks: Arc<Tracks>,
    /// For each of them, what media segments refer to.
    timing: Vec<TrackTiming>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TrackTiming {
    /// track_ID of the file.
    id: u32,
    /// Ticks a second, not 0.
    timescale: u32,
    defaults: Defaults,
}

/// Of a sample that does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Defaults {
    duration: u32,
    size: u32,
    flags: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("MP4: the bytes end within {0}")]
    Truncated(&'static str),
    #[error("MP4: {0} is missing")]
    Missing(&'static str),
    #[error("MP4: {0}")]
    Invalid(&'static str),
    #[error("MP4: more than {TRACKS_MAX} tracks")]
    TooManyTracks,
    #[error("MP4: more frames or bytes than a fragment may have")]
    TooLarge,
    #[error("MP4: frames of track {0}, which the init segment does not have")]
    UnknownTrack(u32),
}
