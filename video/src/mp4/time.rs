//! Nanoseconds to ticks of a track, and back.
//!
//! Both round to the nearest, so that ticks that became nanoseconds become the same ticks again, at any rate of pictures
//! or samples (a tick must be longer than a nanosecond). Pure.

use crate::codecs::AacConfig;
use crate::{Codec, Kind, Track};

/// Ticks a second of video.
pub const VIDEO_TIMESCALE: u32 = 90_000;
/// Ticks a second of audio that does not say its rate, and of Opus, whose clock is always this (RFC 7845 4).
const AUDIO_TIMESCALE: u32 = 48_000;
const SECOND_NS: i128 = 1_000_000_000;

/// Ticks a second of the track: [`VIDEO_TIMESCALE`], or the sample rate.
pub fn timescale(track: &Track) -> u32 {
    match (&track.codec, track.kind) {
        (Codec::Opus, _) => AUDIO_TIMESCALE,
        (_, Kind::Audio) if track.sample_rate > 0 => track.sample_rate,
        (Codec::Aac, _) => match AacConfig::parse(&track.private) {
            Ok(config) if config.sample_rate > 0 => config.sample_rate,
            _ => AUDIO_TIMESCALE,
        },
        (_, Kind::Audio) => AUDIO_TIMESCALE,
        _ => VIDEO_TIMESCALE,
    }
}

pub(crate) fn to_ticks(ns: i128, timescale: u32) -> i128 {
    (ns * i128::from(timescale) * 2 + SECOND_NS).div_euclid(2 * SECOND_NS)
}

/// Saturates: a time that does not fit is one that a reader refuses or a fragmenter cuts at.
pub(super) fn to_ns(ticks: i128, timescale: u32) -> i64 {
    let scale = i128::from(timescale.max(1));
    let ns = ticks.saturating_mul(2 * SECOND_NS).saturating_add(scale).div_euclid(2 * scale);
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}
