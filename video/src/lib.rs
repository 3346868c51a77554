//! Video between a camera and a player: containers in, fragments, containers and playlists out.
//!
//! ```text
//! bytes of a camera -> matroska::Parser -> fragment::Fragmenter -> Fragment, cut at a keyframe
//! Fragment -> matroska::write (what is kept, and read back) | mp4 (what browsers play) -> hls, dash (lists of them)
//! ```
//! Nothing here opens a socket, reads a clock, or keeps more than its bounds say; input may be cut anywhere, and whatever a
//! stranger sends is an error, never a panic. What is in a frame is never looked at, but for the few bytes of a codec's
//! configuration that a playlist has to name. Pure.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![forbid(unsafe_code)]

pub mod codecs;
pub mod dash;
pub mod ebml;
pub mod fragment;
pub mod hls;
pub mod jpeg;
pub mod matroska;
pub mod media;
pub mod mp4;
pub mod text;

pub use media::{Codec, Fragment, Frame, Kind, Track, Tracks};

#[cfg(test)]
mod testing;
