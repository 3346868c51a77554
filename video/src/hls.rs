//! Playlists for HLS players (RFC 8216 and rfc8216bis), as text: which renditions there are, and which segments of
//! one.
//!
//! Media is fMP4 from `mp4`. What a playlist lists and when it is asked again is the gateway's matter; delta updates
//! (EXT-X-SKIP) and rendition reports are not written. URIs are to be percent-encoded; what would end a line or a
//! quoted string is dropped. Pure.

use crate::text;
use std::fmt::{Display, Write};

/// A rendition of the master playlist.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant<'a> {
    pub uri: &'a str,
    /// Bits a second: the highest of a segment, and on the whole.
    pub bandwidth: u64,
    pub average_bandwidth: Option<u64>,
    /// As [`crate::codecs::names`] gives them.
    pub codecs: &'a str,
    pub resolution: Option<(u32, u32)>,
    /// Pictures in a thousand seconds: 29,970 is 29.970 a second.
    pub frame_rate_milli: Option<u32>,
}

/// A playlist of segments, without the segments.
#[derive(Clone, Debug, PartialEq)]
pub struct MediaPlaylist<'a> {
    /// No segment, rounded to whole seconds, is longer; see [`target_duration_s`]. A live playlist may never change
    /// it.
    pub target_duration_s: u64,
    /// Number of the first segment.
    pub media_sequence: u64,
    /// How many discontinuities have left the playlist at its front.
    pub discontinuity_sequence: u64,
    pub kind: Kind,
    /// No segment will come after these.
    pub ended: bool,
    pub low_latency: Option<LowLatency<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Segments leave at the front.
    Live,
    /// Segments are only added.
    Event,
    /// Nothing changes.
    Vod,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LowLatency<'a> {
    /// No part is longer, and but for the last of a segment none is shorter than 85 % of it.
    pub part_target_ns: u64,
    /// How far from the end a player stays: at least twice, better three times the part target.
    pub part_hold_back_ns: u64,
    /// The server holds a request for a playlist until it has the part asked for.
    pub can_block_reload: bool,
    /// The part that comes next.
    pub preload_hint: Option<&'a str>,
}

/// A segment, or what there is of one: without a URI only its parts are listed, and it must be the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment<'a, U> {
    pub uri: Option<U>,
    pub duration_ns: u64,
    /// Milliseconds since 1970 at its start.
    pub program_date_time_ms: Option<i64>,
    /// Does not continue the segment before.
    pub discontinuity: bool,
    /// The init segment that it needs; written where it changes.
    pub map: &'a str,
    /// Where in that file it stands; the same for all segments of one map.
    pub map_range: Option<ByteRange>,
    pub byte_range: Option<ByteRange>,
    /// Listed as lost: players skip its time.
    pub gap: bool,
    pub parts: &'a [Part<'a>],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub length: u64,
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Part<'a> {
    pub uri: &'a str,
    pub duration_ns: u64,
    /// Begins with a keyframe.
    pub independent: bool,
    pub byte_range: Option<ByteRange>,
}

/// The target duration for segments that are never longer than this: rounded to whole seconds, at least 1.
pub fn target_duration_s(longest_ns: u64) -> u64 {
    (longest_ns / 1_000_000_000 + u64::from(longest_ns % 1_000_000_000 >= 500_000_000)).max(1)
}

/// The playlist of renditions.
pub fn master<'a>(variants: impl IntoIterator<Item = Variant<'a>>) -> String {
    let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    for variant in variants {
        stream_inf(&mut out, &variant);
    }
    out
}

/// RFC 8216 4.3.4.2.
fn stream_inf(out: &mut String, variant: &Variant) {
    tag_number(out, "#EXT-X-STREAM-INF:BANDWIDTH=", variant.bandwidth);
    if let Some(average) = variant.average_bandwidth {
        tag_number(out, ",AVERAGE-BANDWIDTH=", average);
    }
    quoted(out, ",CODECS=", &variant.codecs);
    if let Some((width, height)) = variant.resolution {
        tag_number(out, ",RESOLUTION=", width.into());
        tag_number(out, "x", height.into());
    }
    if let Some(rate) = variant.frame_rate_milli {
        tag_number(out, ",FRAME-RATE=", u64::from(rate) / 1000);
        out.push('.');
        text::digits(out, u64::from(rate), 3);
    }
    line(out, "\n", &variant.uri);
}

/// The playlist of a rendition's segments, appended to `out`.
pub fn media<'a, U: Display>(
    out: &mut String,
    playlist: &MediaPlaylist,
    segments: impl IntoIterator<Item = Segment<'a, U>>,
) {
    out.push_str("#EXTM3U\n#EXT-X-VERSION:");
    let version_at = out.len();
    out.push('7');
    head(out, playlist);
    let (mut map, mut gaps) = (None, false);
    for one in segments {
        if one.discontinuity {
            out.push_str("#EXT-X-DISCONTINUITY\n");
        }
        if map != Some(one.map) {
            map = Some(one.map);
            quoted(out, "#EXT-X-MAP:URI=", &one.map);
            if let Some(range) = one.map_range {
                out.push_str(",BYTERANGE=\"");
                byte_range(out, range);
                out.push('"');
            }
            out.push('\n');
        }
        gaps |= one.gap;
        segment(out, &one);
    }
    foot(out, playlist);
    // rfc8216bis 8: 7 for what fMP4 needs (EXT-X-MAP: 6), 8 for EXT-X-GAP, 9 for low latency.
    let version = match (&playlist.low_latency, gaps) {
        (Some(_), _) => "9",
        (None, true) => "8",
        (None, false) => "7",
    };
    out.replace_range(version_at..version_at + 1, version);
}

fn head(out: &mut String, playlist: &MediaPlaylist) {
    tag_number(out, "\n#EXT-X-TARGETDURATION:", playlist.target_duration_s);
    if let Some(low) = &playlist.low_latency {
        // rfc8216bis 4.4.3.8: PART-HOLD-BACK is required where there are parts.
        out.push_str("\n#EXT-X-SERVER-CONTROL:");
        out.push_str(if low.can_block_reload { "CAN-BLOCK-RELOAD=YES," } else { "" });
        tag_seconds(out, "PART-HOLD-BACK=", low.part_hold_back_ns);
        tag_seconds(out, "\n#EXT-X-PART-INF:PART-TARGET=", low.part_target_ns);
    }
    tag_number(out, "\n#EXT-X-MEDIA-SEQUENCE:", playlist.media_sequence);
    if playlist.discontinuity_sequence > 0 {
        tag_number(out, "\n#EXT-X-DISCONTINUITY-SEQUENCE:", playlist.discontinuity_sequence);
    }
    out.push_str(match playlist.kind {
        Kind::Live => "",
        Kind::Event => "\n#EXT-X-PLAYLIST-TYPE:EVENT",
        Kind::Vod => "\n#EXT-X-PLAYLIST-TYPE:VOD",
    });
    out.push_str("\n#EXT-X-INDEPENDENT-SEGMENTS\n");
}

fn segment<U: Display>(out: &mut String, segment: &Segment<U>) {
    if let Some(ms) = segment.program_date_time_ms {
        out.push_str("#EXT-X-PROGRAM-DATE-TIME:");
        text::date_time(out, ms);
        out.push('\n');
    }
    for one in segment.parts {
        part(out, one);
    }
    let Some(uri) = &segment.uri else { return };
    if segment.gap {
        out.push_str("#EXT-X-GAP\n");
    }
    tag_seconds(out, "#EXTINF:", segment.duration_ns);
    out.push(',');
    if let Some(range) = segment.byte_range {
        out.push_str("\n#EXT-X-BYTERANGE:");
        byte_range(out, range);
    }
    line(out, "\n", uri);
}

/// rfc8216bis 4.4.4.9.
fn part(out: &mut String, part: &Part) {
    tag_seconds(out, "#EXT-X-PART:DURATION=", part.duration_ns);
    quoted(out, ",URI=", &part.uri);
    if let Some(range) = part.byte_range {
        out.push_str(",BYTERANGE=\"");
        byte_range(out, range);
        out.push('"');
    }
    out.push_str(if part.independent { ",INDEPENDENT=YES\n" } else { "\n" });
}

fn foot(out: &mut String, playlist: &MediaPlaylist) {
    if playlist.ended {
        out.push_str("#EXT-X-ENDLIST\n");
    } else if let Some(uri) = playlist.low_latency.as_ref().and_then(|low| low.preload_hint) {
        quoted(out, "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=", &uri);
        out.push('\n');
    }
}

fn byte_range(out: &mut String, range: ByteRange) {
    text::number(out, range.length);
    tag_number(out, "@", range.offset);
}

fn tag_number(out: &mut String, tag: &str, value: u64) {
    out.push_str(tag);
    text::number(out, value);
}

fn tag_seconds(out: &mut String, tag: &str, ns: u64) {
    out.push_str(tag);
    text::seconds(out, ns);
}

fn quoted(out: &mut String, tag: &str, value: &impl Display) {
    out.push_str(tag);
    out.push('"');
    clean(out, value);
    out.push('"');
}

fn line(out: &mut String, before: &str, value: &impl Display) {
    out.push_str(before);
    clean(out, value);
    out.push('\n');
}

/// RFC 8216 4.2: a quoted string has neither quotes nor ends of lines; neither has a URI.
fn clean(out: &mut String, value: &impl Display) {
    struct Clean<'a>(&'a mut String);
    impl Write for Clean<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | b'"')) {
                self.0.extend(text.chars().filter(|char| !matches!(char, '\r' | '\n' | '"')));
            } else {
                self.0.push_str(text);
            }
            Ok(())
        }
    }
    let _ = write!(Clean(out), "{value}");
}

#[cfg(test)]
mod tests;
