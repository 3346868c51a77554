//! Fragments to Matroska, and one such file back to its fragment.
//!
//! ```text
//! write_fragment = head (EBML, Segment of unknown size, Info, Tracks), tags, cluster: a file that plays alone
//! a live answer  = head, then tags and cluster of each fragment: one Segment that never ends
//! ```
//! Times are kept in ticks of [`TICK_NS`], rounded to the nearest: what players expect, what nearly every muxer writes, and
//! exact for input that came in such ticks. Finer times lose up to half a tick; the order of frames, which is that of
//! decoding, is never changed. A fragment's `discontinuity` is not in the file. Pure.

use super::ids;
use super::parse::{Event, Fault, ParseError, Parser};
use crate::ebml::{
    begin_master, end_master, put_binary, put_float, put_master, put_size, put_text, put_uint, put_unknown,
};
use crate::media::{Fragment, Frame, Kind, Track, Tracks};

/// Nanoseconds of a tick in what is written: TimestampScale.
pub const TICK_NS: i64 = 1_000_000;
const APP: &str = "Headwater";

/// A file of this fragment alone. `offset_ns` is added to every time, for example to make it one since 1970.
pub fn write_fragment(fragment: &Fragment, offset_ns: i64) -> Vec<u8> {
    let mut out = head(&fragment.tracks);
    out.extend_from_slice(&tags(&fragment.tags));
    put_clusters(&mut out, fragment, offset_ns);
    out
}

/// What a file begins with: the EBML header and a Segment of unknown size with its Info and Tracks.
pub fn head(tracks: &Tracks) -> Vec<u8> {
    let mut out = Vec::new();
    put_master(&mut out, ids::EBML, |out| {
        put_uint(out, ids::EBML_VERSION, 1);
        put_uint(out, ids::EBML_READ_VERSION, 1);
        put_uint(out, ids::EBML_MAX_ID_LENGTH, 4);
        put_uint(out, ids::EBML_MAX_SIZE_LENGTH, 8);
        put_text(out, ids::DOC_TYPE, "matroska");
        put_uint(out, ids::DOC_TYPE_VERSION, 4);
        put_uint(out, ids::DOC_TYPE_READ_VERSION, 2);
    });
    put_unknown(&mut out, ids::SEGMENT);
    put_master(&mut out, ids::INFO, |out| {
        put_uint(out, ids::TIMESTAMP_SCALE, TICK_NS.unsigned_abs());
        put_text(out, ids::MUXING_APP, APP);
        put_text(out, ids::WRITING_APP, APP);
    });
    put_master(&mut out, ids::TRACKS, |out| tracks.0.iter().for_each(|track| put_track(out, track)));
    out
}

fn put_track(out: &mut Vec<u8>, track: &Track) {
    put_master(out, ids::TRACK_ENTRY, |out| {
        put_uint(out, ids::TRACK_NUMBER, track.number.into());
        put_uint(out, ids::TRACK_UID, track.number.into());
        // RFC 9559 section 5.1.4.1.3: 33 is metadata, the nearest to "no player knows it".
        let kind = match track.kind {
            Kind::Video => 1,
            Kind::Audio => 2,
            Kind::Other => 33,
        };
        put_uint(out, ids::TRACK_TYPE, kind);
        put_uint(out, ids::FLAG_LACING, 0);
        put_text(out, ids::LANGUAGE, "und");
        put_text(out, ids::CODEC_ID, track.codec.id());
        if !track.name.is_empty() {
            put_text(out, ids::NAME, &track.name);
        }
        if !track.private.is_empty() {
            put_binary(out, ids::CODEC_PRIVATE, &track.private);
        }
        let times = [
            (ids::DEFAULT_DURATION, track.default_duration_ns),
            (ids::CODEC_DELAY, track.codec_delay_ns),
            (ids::SEEK_PRE_ROLL, track.seek_preroll_ns),
        ];
        times.iter().filter(|(_, ns)| *ns > 0).for_each(|(id, ns)| put_uint(out, *id, *ns));
        put_kind(out, track);
    });
}

fn put_kind(out: &mut Vec<u8>, track: &Track) {
    if track.kind == Kind::Video || track.width > 0 || track.height > 0 {
        put_master(out, ids::VIDEO, |out| {
            put_uint(out, ids::PIXEL_WIDTH, track.width.into());
            put_uint(out, ids::PIXEL_HEIGHT, track.height.into());
        });
    }
    if track.sample_rate > 0 || track.channels > 0 {
        put_master(out, ids::AUDIO, |out| {
            put_float(out, ids::SAMPLING_FREQUENCY, track.sample_rate.into());
            put_uint(out, ids::CHANNELS, track.channels.into());
        });
    }
}

/// A Tags element for the Segment; empty for no tags, as Tags without a Tag are not allowed.
pub fn tags(tags: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    if tags.is_empty() {
        return out;
    }
    put_master(&mut out, ids::TAGS, |out| {
        put_master(out, ids::TAG, |out| {
            put_binary(out, ids::TARGETS, &[]);
            for (name, value) in tags {
                put_master(out, ids::SIMPLE_TAG, |out| {
                    put_text(out, ids::TAG_NAME, name);
                    put_text(out, ids::TAG_STRING, value);
                });
            }
        });
    });
    out
}

/// The frames, as one Cluster of known size; as several if their times are farther apart than a block can say. Nothing
/// for a fragment without frames.
pub fn cluster(fragment: &Fragment, offset_ns: i64) -> Vec<u8> {
    let mut out = Vec::new();
    put_clusters(&mut out, fragment, offset_ns);
    out
}

fn put_clusters(out: &mut Vec<u8>, fragment: &Fragment, offset_ns: i64) {
    // A block's head takes at most 13 bytes, a group's what is left of 40.
    out.reserve(fragment.bytes() + fragment.frames.len() * 40 + 64);
    let ticks: Vec<i64> =
        fragment.frames.iter().map(|frame| to_ticks(frame.pts_ns.saturating_add(offset_ns))).collect();
    let mut from = 0;
    while from < ticks.len() {
        // A Cluster's Timestamp is unsigned. Blocks reach 32 s before it; a time before -32 s is written as -32 s.
        let base = ticks[from].max(0);
        let fitting = ticks[from..].iter().take_while(|ticks| i16::try_from(**ticks - base).is_ok()).count();
        let to = from + fitting.max(1);
        let body = begin_master(out, ids::CLUSTER);
        put_uint(out, ids::TIMESTAMP, base.unsigned_abs());
        for (index, frame) in fragment.frames.iter().enumerate().take(to).skip(from) {
            let before = fragment.frames[..index].iter().rposition(|before| before.track == frame.track);
            let reference = before.map_or(0, |before| relative(ticks[before], ticks[index]));
            put_frame(out, frame, relative(ticks[index], base), reference);
        }
        end_master(out, body);
        from = to;
    }
}

fn to_ticks(ns: i64) -> i64 {
    ns.saturating_add(TICK_NS / 2).div_euclid(TICK_NS)
}

/// `ticks - base` as far as a block can say it. Both are nanoseconds divided by a million: their difference fits.
fn relative(ticks: i64, base: i64) -> i16 {
    (ticks - base).clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// A SimpleBlock, or a BlockGroup for a frame that says how long it lasts, which a SimpleBlock cannot.
fn put_frame(out: &mut Vec<u8>, frame: &Frame, time: i16, reference: i16) {
    let Some(duration_ns) = frame.duration_ns else {
        return put_block(out, ids::SIMPLE_BLOCK, frame, time, if frame.keyframe { 0x80 } else { 0 });
    };
    let body = begin_master(out, ids::BLOCK_GROUP);
    put_block(out, ids::BLOCK, frame, time, 0);
    let tick = TICK_NS.unsigned_abs();
    put_uint(out, ids::BLOCK_DURATION, duration_ns.saturating_add(tick / 2) / tick);
    if !frame.keyframe {
        put_binary(out, ids::REFERENCE_BLOCK, &reference.to_be_bytes());
    }
    end_master(out, body);
}

fn put_block(out: &mut Vec<u8>, id: u32, frame: &Frame, time: i16, flags: u8) {
    let [high, low] = time.to_be_bytes();
    crate::ebml::put_id(out, id);
    put_size(out, frame.data.len() as u64 + 4);
    out.extend_from_slice(&[frame.track | 0x80, high, low, flags]);
    out.extend_from_slice(&frame.data);
}

/// Reads what [`write_fragment`] wrote: all its frames as one fragment, wherever keyframes are.
pub fn read_fragment(input: &[u8]) -> Result<Fragment, ParseError> {
    let mut parser = Parser::new();
    let mut events = Vec::new();
    parser.push(input, &mut events)?;
    parser.finish(&mut events)?;
    let mut fragment = Fragment { tracks: Default::default(), frames: vec![], discontinuity: false, tags: vec![] };
    for event in events {
        match event {
            Event::Tracks(tracks) if fragment.frames.is_empty() || tracks == fragment.tracks => {
                fragment.tracks = tracks;
            }
            Event::Tracks(_) => return Err(Fault::SecondTracks.at(parser.bytes())),
            Event::Tags(tags) => fragment.tags.extend(tags),
            Event::Frame(frame) => fragment.frames.push(frame),
            Event::NewSegment | Event::ClusterStart { .. } | Event::ClusterEnd => {}
        }
    }
    Ok(fragment)
}
