//! A media segment: `moof` says when and how long each frame is, `mdat` has them.
//!
//! Matroska has presentation times only. Decode times are the presentation times of the frames, sorted: the first
//! frame to decode has the earliest of them, and so on; the composition offset, signed, is what is missing to the
//! frame's own time. So a decoder gets its frames in order and at their pace, no clock has to be guessed, and
//! fragments, whose presentation times do not mingle, join: one ends where the next begins.
//!
//! ffmpeg, and players built on it, read negative offsets of a fragmented MP4 as if all of the track came later by
//! the most negative one (`dts_shift` in its `mov.c`; seen with 5.1, also in files of its own): B-frames then make
//! pictures 40 to 120 ms late against the sound. Who cares gives [`Timing::decode_delay_ns`], by which pictures are
//! decoded earlier: no offset is negative then. Readers that keep to the specification need none. Pure.

use super::boxes::Boxes;
use super::init::carried;
use super::time::to_ticks;
use super::{Mp4Error, SAMPLES_MAX, timescale};
use crate::media::FRAGMENT_BYTES_MAX;
use crate::{Fragment, Frame, Kind, Track, Tracks};

/// Where a segment stands in time. All in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Added to presentation times, so that none is negative.
    pub offset_ns: i64,
    /// When the leading track goes on (on the stream's clock), if it is known: its last frame lasts until then.
    pub next_start_ns: Option<i64>,
    /// By this pictures are decoded before they are shown; the same for a whole stream, and not more than `offset_ns`
    /// leaves room for. [`reorder_ns`] of its first fragment is right.
    pub decode_delay_ns: u64,
    /// The leading track is not decoded before this (on the stream's clock). Only [`super::PartCutter`] needs it.
    pub decode_floor_ns: Option<i64>,
}

/// Longest decode delay, in nanoseconds: sixteen pictures, the most a decoder keeps, at ten a second are 1.6 s. A
/// broken time asks for more.
const REORDER_NS_MAX: i64 = 2_000_000_000;

/// ISO/IEC 14496-12 8.8.3.1. Depends on no other sample.
const SYNC: u32 = 0x0200_0000;
/// Depends on others, and is no sync sample.
const NON_SYNC: u32 = 0x0101_0000;

/// The decode delay with which no picture of the fragment is shown before it is decoded, in nanoseconds. 0 without
/// B-frames.
pub fn reorder_ns(fragment: &Fragment) -> u64 {
    let Some(video) = fragment.tracks.video() else { return 0 };
    let shown: Vec<i64> = fragment.of_track(video.number).map(|frame| frame.pts_ns).collect();
    let mut decoded = shown.clone();
    decoded.sort_unstable();
    let delays = decoded.iter().zip(shown).map(|(decoded, shown)| decoded.saturating_sub(shown));
    delays.max().unwrap_or(0).clamp(0, REORDER_NS_MAX).unsigned_abs()
}

/// The media segment of a fragment; `sequence` grows from segment to segment.
pub fn media(fragment: &Fragment, sequence: u32, timing: Timing) -> Result<Vec<u8>, Mp4Error> {
    part(&fragment.tracks, &fragment.frames, sequence, timing)
}

/// The same with some of a fragment's frames. Decode times are consistent with those of the whole if the frames
/// before the cut are all shown before those after it; [`super::PartCutter`] cuts there.
pub fn part(tracks: &Tracks, frames: &[Frame], sequence: u32, timing: Timing) -> Result<Vec<u8>, Mp4Error> {
    let bytes: usize = frames.iter().map(|frame| frame.data.len()).sum();
    if frames.len() > SAMPLES_MAX || bytes > FRAGMENT_BYTES_MAX {
        return Err(Mp4Error::TooLarge);
    }
    let lead = tracks.lead().map(|track| track.number);
    let mut runs = Vec::new();
    for track in carried(tracks) {
        let timing = if lead == Some(track.number) {
            timing
        } else {
            Timing { next_start_ns: None, decode_floor_ns: None, ..timing }
        };
        runs.extend(run(track, frames, timing)?);
    }
    if runs.is_empty() {
        return Err(Mp4Error::NoFrame);
    }
    Ok(write(&runs, sequence, bytes + frames.len() * 16 + 256))
}

/// A track's frames in decoding order, in ticks.
struct Run<'a> {
    track: &'a Track,
    decode_time: u64,
    samples: Vec<Sample<'a>>,
}

struct Sample<'a> {
    frame: &'a Frame,
    duration: u32,
    composition: i32,
}

fn run<'a>(track: &'a Track, frames: &'a [Frame], timing: Timing) -> Result<Option<Run<'a>>, Mp4Error> {
    let frames: Vec<&Frame> = frames.iter().filter(|frame| frame.track == track.number).collect();
    let ticks = |ns: i64| to_ticks(i128::from(ns) + i128::from(timing.offset_ns), timescale(track));
    let delay = match track.kind {
        Kind::Video => to_ticks(timing.decode_delay_ns.into(), timescale(track)),
        _ => 0,
    };
    let floor = timing.decode_floor_ns.map_or(i128::MIN, ticks);
    let mut decode: Vec<i128> = frames.iter().map(|frame| ticks(frame.pts_ns).max(floor) - delay).collect();
    decode.sort_unstable();
    let (Some(first), Some(last)) = (decode.first(), decode.last()) else { return Ok(None) };
    let end = (ticks(end_ns(track, &frames, timing.next_start_ns)) - delay).max(*last);
    let sample = |(index, frame): (usize, &&'a Frame)| {
        let time = decode.get(index)?;
        let next = decode.get(index + 1).unwrap_or(&end);
        Some(Sample {
            frame,
            duration: u32::try_from(next - time).ok()?,
            composition: i32::try_from(ticks(frame.pts_ns) - time).ok()?,
        })
    };
    let samples: Option<Vec<_>> = frames.iter().enumerate().map(sample).collect();
    match (samples, u64::try_from(*first)) {
        (Some(samples), Ok(decode_time)) => Ok(Some(Run { track, decode_time, samples })),
        _ => Err(Mp4Error::Time { track: track.number }),
    }
}

/// When the last frame to be shown ends: where the next fragment begins if that is known, else after what the frame
/// says, the track says, or the step before it was.
fn end_ns(track: &Track, frames: &[&Frame], next_start_ns: Option<i64>) -> i64 {
    let mut times: Vec<i64> = frames.iter().map(|frame| frame.pts_ns).collect();
    times.sort_unstable();
    let last = times.last().copied().unwrap_or(0);
    if let Some(next) = next_start_ns.filter(|next| *next > last) {
        return next;
    }
    let said = frames.iter().find(|frame| frame.pts_ns == last).and_then(|frame| frame.duration_ns);
    let default = Some(track.default_duration_ns).filter(|duration| *duration > 0);
    let step = match times.as_slice() {
        [.., before, last] => last.abs_diff(*before),
        _ => 0,
    };
    last.saturating_add_unsigned(said.or(default).unwrap_or(step))
}

fn write(runs: &[Run], sequence: u32, capacity: usize) -> Vec<u8> {
    let mut b = Boxes::with_capacity(capacity);
    // Where each run's data offset stands, to be set once the length of the moof is known.
    let mut offsets = Vec::new();
    b.open(b"moof", |b| {
        b.full(b"mfhd", 0, 0, |b| b.u32(sequence));
        runs.iter().for_each(|run| offsets.push(traf(b, run)));
    });
    // 8: the head of the mdat.
    let mut at = b.len() + 8;
    for (run, place) in runs.iter().zip(offsets) {
        b.patch(place, at as u32);
        at += run.samples.iter().map(|sample| sample.frame.data.len()).sum::<usize>();
    }
    b.open(b"mdat", |b| {
        for sample in runs.iter().flat_map(|run| &run.samples) {
            b.bytes(&sample.frame.data);
        }
    });
    b.finish()
}

/// ISO/IEC 14496-12 8.8.6 to 8.8.8 and 8.8.12. Returns where the data offset stands.
fn traf(b: &mut Boxes, run: &Run) -> usize {
    /// tfhd: offsets count from the moof; samples have flags by default.
    const BASE_IS_MOOF: u32 = 0x02_0000;
    const DEFAULT_FLAGS: u32 = 0x20;
    /// trun: what it has, for itself and for each sample.
    const DATA_OFFSET: u32 = 0x1;
    const DURATION: u32 = 0x100;
    const SIZE: u32 = 0x200;
    const FLAGS: u32 = 0x400;
    const COMPOSITION: u32 = 0x800;

    let video = run.track.kind == Kind::Video;
    let shifted = run.samples.iter().any(|sample| sample.composition != 0);
    let has = DATA_OFFSET | DURATION | SIZE | if video { FLAGS } else { 0 } | if shifted { COMPOSITION } else { 0 };
    let mut place = 0;
    b.open(b"traf", |b| {
        b.full(b"tfhd", 0, BASE_IS_MOOF | DEFAULT_FLAGS, |b| {
            b.u32(run.track.number.into());
            b.u32(if video { NON_SYNC } else { SYNC });
        });
        b.full(b"tfdt", 1, 0, |b| b.u64(run.decode_time));
        b.full(b"trun", 1, has, |b| {
            b.u32(run.samples.len() as u32);
            place = b.len();
            b.u32(0);
            for sample in &run.samples {
                b.u32(sample.duration);
                b.u32(sample.frame.data.len() as u32);
                if video {
                    b.u32(if sample.frame.keyframe { SYNC } else { NON_SYNC });
                }
                if shifted {
                    b.u32(sample.composition as u32);
                }
            }
        });
    });
    place
}
