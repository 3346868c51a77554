//! Our boxes through `mp4-atom`, our reader through noise, and both through ffmpeg.

mod ffmpeg;
mod reading;
mod writing;

use crate::codecs::OpusHead;
use crate::media::{Fragment, Frame, MS, Track, Tracks};
use crate::{Codec, Kind};
use bytes::Bytes;
use std::sync::Arc;

pub(super) const AVCC: &[u8] =
    b"\x01\x64\x00\x1f\xff\xe1\x00\x08\x67\x64\x00\x1f\xac\xd9\x40\x50\x01\x00\x04\x68\xeb\xe3\xcb";

pub(super) fn track(number: u8, codec: Codec, private: &[u8]) -> Track {
    let audio = matches!(codec, Codec::Aac | Codec::Opus);
    Track {
        number,
        kind: if audio { Kind::Audio } else { Kind::Video },
        codec,
        private: Bytes::copy_from_slice(private),
        name: String::new(),
        width: if audio { 0 } else { 640 },
        height: if audio { 0 } else { 480 },
        sample_rate: if audio { 48000 } else { 0 },
        channels: if audio { 2 } else { 0 },
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    }
}

pub(super) fn opus_head() -> Vec<u8> {
    OpusHead { channels: 2, pre_skip: 312, input_rate: 44100, gain: -256, family: 0, mapping: vec![] }.private()
}

/// H.264 with number 1, Opus with 2.
pub(super) fn tracks() -> Tracks {
    Tracks(vec![track(1, Codec::H264, AVCC), track(2, Codec::Opus, &opus_head())])
}

pub(super) fn frame(track: u8, pts_ms: i64, keyframe: bool) -> Frame {
    Frame { track, pts_ns: pts_ms * MS, duration_ns: None, keyframe, data: vec![pts_ms as u8; 5].into() }
}

/// Frames of video shown at these milliseconds, in decoding order.
pub(super) fn video(times_ms: &[i64]) -> Vec<Frame> {
    times_ms.iter().enumerate().map(|(index, time)| frame(1, *time, index == 0)).collect()
}

pub(super) fn fragment(frames: Vec<Frame>) -> Fragment {
    Fragment { tracks: Arc::new(tracks()), frames, discontinuity: false, tags: vec![] }
}
