//! What players get: playlists over the index, init segments and media segments made from stored fragments when asked for.
//!
//! Nothing is converted before somebody wants it, and nothing is kept twice: a segment is remuxed in a millisecond. Times in
//! the segments are the producer's, since 1970, so that any two segments of a stream fit each other, whoever asks for them.

use super::ack::fragment_number;
use super::archive::FragmentError;
use super::index::{By, Entry, Index};
use super::live::{PART_MS, Preview};
use super::readers::Place;
use super::shape::{Kind, Refusal};
use super::stream::Camera;
use bytes::Bytes;
use headwater_video::hls::{self, LowLatency, MediaPlaylist, Part, Segment, Variant};
use headwater_video::media::MS;
use headwater_video::mp4::{self, Timing};
use headwater_video::{Tracks, codecs};
use std::fmt::{self, Display};

/// Added to all times in segments, in nanoseconds: a stream that counts from 0 may decode pictures before that.
pub const TIME_BASE_NS: i64 = 10_000_000_000;
/// Fragments of a live playlist.
pub const LIVE_FRAGMENTS: usize = 8;
/// Whole fragments whose parts a low-latency playlist lists.
const WITH_PARTS: usize = 2;

/// How the links of a playlist are written.
#[derive(Clone, Copy, Debug)]
pub enum Links<'a> {
    /// Below the playlist's own folder: `fragment/NUMBER.m4s`.
    Plain,
    /// As AWS' sessions have them, with the session's token.
    Session(&'a str),
}

pub struct FragmentLink<'a>(Links<'a>, u64);

impl Display for FragmentLink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Links::Plain => write!(f, "fragment/{}.m4s", self.1),
            Links::Session(token) => {
                let number = fragment_number(self.1);
                write!(f, "getMP4MediaFragment.mp4?FragmentNumber={number}&SessionToken={token}")
            }
        }
    }
}

impl Links<'_> {
    fn init(self, head_id: u64) -> String {
        match self {
            Links::Plain => format!("init/{head_id:016x}.mp4"),
            Links::Session(token) => format!("getMP4InitFragment.mp4?Head={head_id:016x}&SessionToken={token}"),
        }
    }

    /// What a playlist or a manifest says of one fragment, in bytes, and a little more.
    pub fn bytes_a_fragment(self) -> usize {
        match self {
            Links::Plain => 160,
            Links::Session(token) => 256 + token.len(),
        }
    }

    fn part(ordinal: u64, part: usize) -> String {
        format!("part/{ordinal}.{part}.m4s")
    }
}

/// What stands around the segments of a playlist.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub kind: hls::Kind,
    pub ended: bool,
    /// Discontinuities are told.
    pub breaks: bool,
    /// Each fragment with its time, by this clock.
    pub dates: Option<By>,
}

/// Links to the init segments that a list of fragments needs; mostly one.
struct Heads(Vec<(u64, String)>);

impl Heads {
    fn of<'a>(entries: impl Iterator<Item = &'a Entry>, links: Links<'_>) -> Heads {
        let mut heads: Vec<(u64, String)> = Vec::new();
        for entry in entries {
            if heads.iter().all(|(id, _)| *id != entry.head_id) {
                heads.push((entry.head_id, links.init(entry.head_id)));
            }
        }
        Heads(heads)
    }

    fn link(&self, head_id: u64) -> &str {
        self.0.iter().find(|(id, _)| *id == head_id).map_or("", |(_, link)| link)
    }
}

/// A playlist of stored fragments.
pub fn playlist(entries: &[(u64, Entry)], shape: Shape, links: Links<'_>, target_s: u64) -> String {
    let mut out = String::with_capacity(entries.len() * 96 + 256);
    let heads = Heads::of(entries.iter().map(|(_, entry)| entry), links);
    let playlist = MediaPlaylist {
        target_duration_s: target_s.max(longest_s(entries)),
        media_sequence: entries.first().map_or(0, |(ordinal, _)| *ordinal),
        discontinuity_sequence: if shape.breaks && shape.kind == hls::Kind::Live { breaks_before(entries) } else { 0 },
        kind: shape.kind,
        ended: shape.ended,
        low_latency: None,
    };
    let segments = entries.iter().enumerate().map(|(at, (_, entry))| Segment {
        uri: Some(FragmentLink(links, entry.number)),
        duration_ns: u64::from(entry.duration_ms) * MS as u64,
        program_date_time_ms: shape.dates.map(|by| by.ms(entry)),
        discontinuity: shape.breaks && at > 0 && entry.discontinuity,
        map: heads.link(entry.head_id),
        map_range: None,
        byte_range: None,
        gap: false,
        parts: &[],
    });
    hls::media(&mut out, &playlist, segments);
    out
}

/// Whole seconds that no fragment is longer than.
pub fn longest_s(entries: &[(u64, Entry)]) -> u64 {
    let longest = entries.iter().map(|(_, entry)| entry.duration_ms).max().unwrap_or(0);
    hls::target_duration_s(u64::from(longest) * MS as u64)
}

/// RFC 8216 6.2.2: how many discontinuities have left a live playlist at its front; the first fragment's own is not listed.
fn breaks_before(entries: &[(u64, Entry)]) -> u64 {
    entries.first().map_or(0, |(_, entry)| u64::from(entry.breaks))
}

/// The newest fragments of a stream.
pub fn newest(index: &Index, most: usize) -> Vec<(u64, Entry)> {
    let mut entries: Vec<_> = index.all().rev().take(most).map(|(ordinal, entry)| (ordinal, *entry)).collect();
    entries.reverse();
    entries
}

/// A live playlist whose last fragments are listed part by part, the one that is being built among them.
pub fn low_latency(camera: &Camera, entries: &[(u64, Entry)], target_s: u64) -> String {
    let newest = entries.last();
    let building = camera.live.behind(newest.map_or(0, |(_, entry)| entry.number));
    let next = newest.map_or(0, |(ordinal, _)| ordinal + 1);
    let heads = Heads::of(entries.iter().map(|(_, entry)| entry), Links::Plain);
    let with_parts = entries.len().saturating_sub(WITH_PARTS);
    let mut links: Vec<Vec<(String, u64, bool)>> = Vec::new();
    for (at, (ordinal, entry)) in entries.iter().enumerate() {
        let preview = if at >= with_parts { camera.live.parts_of(entry.number) } else { None };
        links.push(preview.map_or(Vec::new(), |preview| part_links(*ordinal, &preview)));
    }
    links.push(building.as_ref().map_or(Vec::new(), |preview| part_links(next, preview)));
    let parts: Vec<Vec<Part<'_>>> = links
        .iter()
        .map(|links| {
            links
                .iter()
                .map(|(uri, duration_ns, independent)| Part {
                    uri,
                    duration_ns: *duration_ns,
                    independent: *independent,
                    byte_range: None,
                })
                .collect()
        })
        .collect();
    let segments = entries.iter().zip(&parts).enumerate().map(|(at, ((_, entry), parts))| Segment {
        uri: Some(FragmentLink(Links::Plain, entry.number)),
        duration_ns: u64::from(entry.duration_ms) * MS as u64,
        program_date_time_ms: Some(entry.start_ms),
        discontinuity: at > 0 && entry.discontinuity,
        map: heads.link(entry.head_id),
        map_range: None,
        byte_range: None,
        gap: false,
        parts: &parts[..],
    });
    // What comes has the head of what came: a preview begins only when a fragment of its tracks was whole.
    let map = newest.map_or("", |(_, entry)| heads.link(entry.head_id));
    let open = building.as_ref().filter(|preview| !preview.parts.is_empty()).map(|preview| Segment {
        uri: None,
        duration_ns: 0,
        program_date_time_ms: Some(preview.start_ms),
        discontinuity: false,
        map,
        map_range: None,
        byte_range: None,
        gap: false,
        parts: parts.last().map_or(&[][..], |parts| &parts[..]),
    });
    // Behind the last part of a whole fragment comes the first of the next one.
    let hint = match &building {
        Some(preview) if preview.whole => Links::part(next + 1, 0),
        building => Links::part(next, building.as_ref().map_or(0, |preview| preview.parts.len())),
    };
    let part_ns = PART_MS * MS as u64;
    let low = LowLatency {
        part_target_ns: part_ns,
        part_hold_back_ns: 3 * part_ns,
        can_block_reload: true,
        preload_hint: building.is_some().then_some(&hint[..]),
    };
    let playlist = MediaPlaylist {
        target_duration_s: target_s.max(longest_s(entries)),
        media_sequence: entries.first().map_or(0, |(ordinal, _)| *ordinal),
        discontinuity_sequence: breaks_before(entries),
        kind: hls::Kind::Live,
        ended: false,
        low_latency: Some(low),
    };
    let mut out = String::new();
    hls::media(&mut out, &playlist, segments.chain(open));
    out
}

fn part_links(ordinal: u64, preview: &Preview) -> Vec<(String, u64, bool)> {
    let link = |(at, part): (usize, &super::live::Part)| {
        (Links::part(ordinal, at), part.duration_ms * MS as u64, part.independent)
    };
    preview.parts.iter().enumerate().map(link).collect()
}

/// What the index of a stream says of its head: codecs and size.
pub fn master(tracks: &Tracks, bits_a_second: u64, uri: &str) -> Result<String, Refusal> {
    let codecs = codecs::names(tracks).map_err(mp4::Mp4Error::from)?;
    let resolution = tracks.video().map(|video| (video.width, video.height)).filter(|(width, _)| *width > 0);
    let variant = Variant {
        uri,
        bandwidth: bits_a_second.max(1),
        average_bandwidth: None,
        codecs: &codecs,
        resolution,
        frame_rate_milli: None,
    };
    Ok(hls::master([variant]))
}

/// The highest rate of a few fragments, in bits a second.
pub fn bits_a_second(entries: &[(u64, Entry)]) -> u64 {
    let rate = |entry: &Entry| u64::from(entry.bytes) * 8_000 / u64::from(entry.duration_ms.max(1));
    entries.iter().map(|(_, entry)| rate(entry)).max().unwrap_or(0)
}

impl Camera {
    /// Tracks of the fragments that have this head.
    pub async fn tracks(&self, head_id: u64) -> Result<std::sync::Arc<Tracks>, Refusal> {
        if let Some(known) = self.head(head_id) {
            return Ok(known);
        }
        let entry = {
            let index = self.archive.index().await?;
            index.all().rev().find(|(_, entry)| entry.head_id == head_id).map(|(_, entry)| *entry)
        };
        let entry = entry.ok_or_else(|| Refusal::new(Kind::NotFound, "There is no fragment that begins so"))?;
        let tracks = self.archive.read(&entry).await?.fragment()?.tracks;
        self.learn(head_id, tracks.clone());
        Ok(tracks)
    }

    pub async fn init_segment(&self, head_id: u64) -> Result<Vec<u8>, Refusal> {
        Ok(mp4::init(&*self.tracks(head_id).await?)?)
    }

    pub async fn media_segment(&self, number: u64, place: &mut Place) -> Result<Vec<u8>, Refusal> {
        let (ordinal, entry, next) = self.archive.entry(number).await?.ok_or(FragmentError::Gone)?;
        place.hold_fragment(&entry).await?;
        let fragment = self.archive.read(&entry).await?.fragment()?;
        Ok(mp4::media(&fragment, ordinal as u32, timing(&entry, next.as_ref()))?)
    }

    /// One track of it, as DASH has them.
    pub async fn track_segment(
        &self,
        entry: &Entry,
        next: Option<&Entry>,
        sequence: u32,
        track: u8,
        place: &mut Place,
    ) -> Result<Vec<u8>, Refusal> {
        place.hold_fragment(entry).await?;
        let mut fragment = self.archive.read(entry).await?.fragment()?;
        let timing = match fragment.tracks.lead().is_some_and(|lead| lead.number == track) {
            true => timing(entry, next),
            // Where pictures go on says nothing of sound.
            false => timing(entry, None),
        };
        fragment.tracks = std::sync::Arc::new(one_track(&fragment.tracks, track)?);
        Ok(mp4::media(&fragment, sequence, timing)?)
    }

    pub async fn track_init(&self, head_id: u64, track: u8) -> Result<Vec<u8>, Refusal> {
        Ok(mp4::init(&one_track(&*self.tracks(head_id).await?, track)?)?)
    }

    /// A part of the newest fragments.
    pub async fn part(&self, ordinal: u64, part: usize) -> Result<Bytes, Refusal> {
        let (number, newest, next) = {
            let index = self.archive.index().await?;
            let newest = index.last().map_or(0, |entry| entry.number);
            (index.at(ordinal).map(|entry| entry.number), newest, index.next_ordinal())
        };
        let preview = match number {
            Some(number) => self.live.parts_of(number),
            None if ordinal == next => self.live.behind(newest),
            None => None,
        };
        let part = preview.and_then(|preview| preview.parts.get(part).cloned());
        part.map(|part| part.bytes)
            .ok_or_else(|| Refusal::new(Kind::NotFound, "There is no such part, or not any more"))
    }
}

fn one_track(tracks: &Tracks, number: u8) -> Result<Tracks, Refusal> {
    let track =
        tracks.get(number).ok_or_else(|| Refusal::new(Kind::NotFound, format!("There is no track {number}")))?;
    Ok(Tracks(vec![track.clone()]))
}

/// Where the segment of a fragment stands, and where the next one goes on if it does.
pub fn timing(entry: &Entry, next: Option<&Entry>) -> Timing {
    let next = next.filter(|next| !next.discontinuity).map(|next| next.start_ms.saturating_mul(MS));
    Timing {
        offset_ns: TIME_BASE_NS,
        next_start_ns: next,
        decode_delay_ns: u64::from(entry.delay_ms) * MS as u64,
        decode_floor_ns: None,
    }
}
