//! What stands beside a file: which fragment is where in it, as JSON, and for MP4 as a playlist that plays it from the bucket. Pure.

use super::Format;
use super::plan::name;
use super::row::{Begun, Hole, Line, Part, TrackLine};
use crate::record::Number;
use crate::uplink::sink::Identity;
use headwater_video::hls::{self, ByteRange, MediaPlaylist, Segment};
use headwater_video::media::MS;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Written<'a> {
    headwater: &'static str,
    gateway: &'a str,
    incarnation: u32,
    stream: &'a str,
    file: &'a str,
    format: Format,
    bytes: u64,
    from_ms: i64,
    to_ms: i64,
    /// First record of the file, and the first that is in no file up to here.
    first: Number,
    next: Number,
    codecs: &'a str,
    tracks: &'a [TrackLine],
    head_bytes: u64,
    fragments: Vec<&'a Line>,
    gaps: Vec<&'a Hole>,
    parts: Vec<Piece<'a>>,
}

#[derive(Serialize)]
struct Piece<'a> {
    bytes: u64,
    sha256: &'a str,
}

/// What is asked of an index that is there already.
#[derive(Deserialize, Debug, PartialEq, Eq)]
pub struct Told {
    gateway: String,
    incarnation: u32,
    stream: String,
    first: Number,
    pub next: Number,
}

impl Told {
    pub fn read(json: &[u8]) -> Option<Told> {
        serde_json::from_slice(json).ok()
    }

    /// It is of a file that this gateway made from the same records.
    pub fn is_ours(&self, who: &Identity, first: Number) -> bool {
        let ours = (who.gateway.as_str(), who.incarnation, who.stream.as_str(), first);
        ours == (self.gateway.as_str(), self.incarnation, self.stream.as_str(), self.first) && self.next > first
    }
}

fn lines(parts: &[Part]) -> impl Iterator<Item = &Line> {
    parts.iter().flat_map(|part| &part.lines)
}

pub fn json(begun: &Begun, parts: &[Part], who: &Identity) -> Vec<u8> {
    let file = name(&begun.key, begun.format);
    let written = Written {
        headwater: "video",
        gateway: &who.gateway,
        incarnation: who.incarnation,
        stream: who.stream.as_str(),
        file: file.rsplit('/').next().unwrap_or_default(),
        format: begun.format,
        bytes: parts.iter().map(|part| part.bytes).sum(),
        from_ms: lines(parts).next().map_or(0, |line| line.start_ms),
        to_ms: lines(parts).map(|line| line.start_ms.saturating_add(line.duration_ms.into())).max().unwrap_or(0),
        first: begun.first,
        next: parts.last().map_or(begun.first, |part| part.next),
        codecs: &begun.codecs,
        tracks: &begun.tracks,
        head_bytes: begun.head_bytes,
        fragments: lines(parts).collect(),
        gaps: parts.iter().flat_map(|part| &part.holes).collect(),
        parts: parts.iter().map(|part| Piece { bytes: part.bytes, sha256: &part.sha256 }).collect(),
    };
    // Numbers and strings: it cannot fail.
    serde_json::to_vec(&written).unwrap_or_default()
}

/// A playlist of the file's fragments, by their place in it.
pub fn playlist(begun: &Begun, parts: &[Part]) -> String {
    let file = name(&begun.key, begun.format);
    let file = file.rsplit('/').next().unwrap_or_default();
    let longest_ms = lines(parts).map(|line| line.duration_ms).max().unwrap_or(0);
    let playlist = MediaPlaylist {
        target_duration_s: hls::target_duration_s(u64::from(longest_ms) * MS as u64),
        media_sequence: 0,
        discontinuity_sequence: 0,
        kind: hls::Kind::Vod,
        ended: true,
        low_latency: None,
    };
    let segments = lines(parts).enumerate().map(|(at, line)| Segment {
        uri: Some(file),
        duration_ns: u64::from(line.duration_ms) * MS as u64,
        program_date_time_ms: Some(line.start_ms),
        discontinuity: at > 0 && line.discontinuity,
        map: file,
        map_range: Some(ByteRange { length: begun.head_bytes, offset: 0 }),
        byte_range: Some(ByteRange { length: line.length, offset: line.offset }),
        gap: false,
        parts: &[],
    });
    let mut out = String::new();
    hls::media(&mut out, &playlist, segments);
    out
}
