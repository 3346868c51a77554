//! The manifest for DASH players (ISO/IEC 23009-1), as text: an MPD, with a new Period at each discontinuity.
//!
//! The segments are fMP4 from `mp4`. An AdaptationSet has all tracks in its files, as HLS has them, or one: ffmpeg's
//! demuxer takes only the first track of a file, and dash.js wants them apart, so a track a set is what plays
//! everywhere. `mp4` writes the segments of one track if it is given [`crate::Tracks`] with this track alone, and all
//! frames. Pure.

use crate::mp4::VIDEO_TIMESCALE;
use crate::text;
use std::fmt::{Display, Write};

/// A manifest, without its periods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mpd {
    pub kind: Kind,
    /// What a player has before it begins, in nanoseconds: a segment's length or two.
    pub min_buffer_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing changes. How long all of it is, in nanoseconds.
    Static { duration_ns: u64 },
    Dynamic {
        /// Milliseconds since 1970: when time 0 of the first period was, and when this was written, which players set clocks by.
        availability_start_ms: i64,
        publish_ms: i64,
        /// How soon to ask again, and how far back segments are kept, in nanoseconds.
        minimum_update_ns: u64,
        time_shift_buffer_ns: Option<u64>,
    },
}

/// What plays through without a discontinuity.
#[derive(Clone, Debug, PartialEq)]
pub struct Period<'a, U, S> {
    /// Distinct, and the same each time a live manifest is written.
    pub id: &'a str,
    /// From time 0 of the manifest, in nanoseconds.
    pub start_ns: u64,
    pub sets: Vec<AdaptationSet<'a, U, S>>,
}

/// Files that play together with those of the other sets, in one rendition.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptationSet<'a, U, S> {
    /// Time in the segments (their `tfdt`) at which the period begins, in nanoseconds: presentationTimeOffset.
    pub media_start_ns: u64,
    pub init_uri: &'a str,
    /// As [`crate::codecs::names`] gives them.
    pub codecs: &'a str,
    /// Audio alone has none.
    pub size: Option<(u32, u32)>,
    /// Bits a second.
    pub bandwidth: u64,
    pub addressing: Addressing<'a, U>,
    pub segments: S,
}

/// How a player makes a segment's URI.
#[derive(Clone, Debug, PartialEq)]
pub enum Addressing<'a, U> {
    /// A template with `$Number$` or `$Time$`.
    Template { media: &'a str, start_number: u64 },
    /// A URI a segment.
    List(Vec<U>),
}

/// Start in the segment's own time (its `tfdt`), and length, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start_ns: u64,
    pub duration_ns: u64,
}

/// The manifest of these periods, appended to `out`.
pub fn mpd<'a, U: Display, S: IntoIterator<Item = Segment>>(
    out: &mut String,
    mpd: &Mpd,
    periods: impl IntoIterator<Item = Period<'a, U, S>>,
) {
    out.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\"");
    // isoff-main: the live profile has no segment lists, and no muxed tracks.
    out.push_str(" profiles=\"urn:mpeg:dash:profile:isoff-main:2011\"");
    attribute_duration(out, "minBufferTime", mpd.min_buffer_ns);
    kind(out, &mpd.kind);
    out.push_str(">\n");
    for one in periods {
        period(out, one);
    }
    clock(out, &mpd.kind);
    out.push_str("</MPD>\n");
}

/// UTCTiming (5.8.4.11, 5.8.5.7): a live manifest tells the time, so that a player whose clock is off knows which segments are
/// there. Without it dash.js asks a server in the internet, which a player beside the gateway may not reach.
fn clock(out: &mut String, kind: &Kind) {
    if let Kind::Dynamic { publish_ms, .. } = kind {
        out.push_str("<UTCTiming schemeIdUri=\"urn:mpeg:dash:utc:direct:2014\"");
        attribute_date(out, "value", *publish_ms);
        out.push_str("/>\n");
    }
}

fn kind(out: &mut String, kind: &Kind) {
    match kind {
        Kind::Static { duration_ns } => {
            out.push_str(" type=\"static\"");
            attribute_duration(out, "mediaPresentationDuration", *duration_ns);
        }
        Kind::Dynamic { availability_start_ms, publish_ms, minimum_update_ns, time_shift_buffer_ns } => {
            out.push_str(" type=\"dynamic\"");
            attribute_date(out, "availabilityStartTime", *availability_start_ms);
            attribute_date(out, "publishTime", *publish_ms);
            attribute_duration(out, "minimumUpdatePeriod", *minimum_update_ns);
            if let Some(depth_ns) = time_shift_buffer_ns {
                attribute_duration(out, "timeShiftBufferDepth", *depth_ns);
            }
        }
    }
}

fn period<U: Display, S: IntoIterator<Item = Segment>>(out: &mut String, period: Period<U, S>) {
    out.push_str("<Period");
    attribute(out, "id", &period.id);
    attribute_duration(out, "start", period.start_ns);
    out.push_str(">\n");
    for (index, set) in period.sets.into_iter().enumerate() {
        adaptation_set(out, index, set);
    }
    out.push_str("</Period>\n");
}

fn adaptation_set<U: Display, S: IntoIterator<Item = Segment>>(
    out: &mut String,
    index: usize,
    set: AdaptationSet<U, S>,
) {
    let mime = if set.size.is_some() { "video/mp4" } else { "audio/mp4" };
    out.push_str("<AdaptationSet segmentAlignment=\"true\" startWithSAP=\"1\"");
    attribute(out, "mimeType", &mime);
    out.push_str(">\n<Representation");
    attribute(out, "id", &index);
    attribute(out, "codecs", &set.codecs);
    attribute(out, "bandwidth", &set.bandwidth);
    if let Some((width, height)) = set.size {
        attribute(out, "width", &width);
        attribute(out, "height", &height);
    }
    out.push_str(">\n");
    segments(out, set);
    out.push_str("</Representation>\n</AdaptationSet>\n");
}

/// SegmentTemplate or SegmentList, each with a SegmentTimeline (5.3.9.2 to 5.3.9.6).
fn segments<U: Display, S: IntoIterator<Item = Segment>>(out: &mut String, set: AdaptationSet<U, S>) {
    let element = match &set.addressing {
        Addressing::Template { .. } => "SegmentTemplate",
        Addressing::List(_) => "SegmentList",
    };
    let _ = write!(out, "<{element}");
    attribute(out, "timescale", &VIDEO_TIMESCALE);
    attribute(out, "presentationTimeOffset", &ticks(set.media_start_ns));
    if let Addressing::Template { media, start_number } = &set.addressing {
        attribute(out, "initialization", &set.init_uri);
        attribute(out, "media", media);
        attribute(out, "startNumber", start_number);
    }
    out.push_str(">\n");
    if let Addressing::List(_) = &set.addressing {
        out.push_str("<Initialization");
        attribute(out, "sourceURL", &set.init_uri);
        out.push_str("/>\n");
    }
    timeline(out, set.segments);
    if let Addressing::List(uris) = &set.addressing {
        for uri in uris {
            out.push_str("<SegmentURL");
            attribute(out, "media", uri);
            out.push_str("/>\n");
        }
    }
    let _ = writeln!(out, "</{element}>");
}

/// Segments of one length, one after another, are one `S` that is repeated.
fn timeline(out: &mut String, segments: impl IntoIterator<Item = Segment>) {
    struct Run {
        start: u64,
        duration: u64,
        repeats: u64,
    }
    let write = |out: &mut String, run: &Run| {
        out.push_str("<S");
        attribute(out, "t", &run.start);
        attribute(out, "d", &run.duration);
        if run.repeats > 0 {
            attribute(out, "r", &run.repeats);
        }
        out.push_str("/>\n");
    };
    out.push_str("<SegmentTimeline>\n");
    let mut open: Option<Run> = None;
    for segment in segments {
        let start = ticks(segment.start_ns);
        // From the rounded end: then segments that join in nanoseconds join in ticks.
        let duration = ticks(segment.start_ns.saturating_add(segment.duration_ns)).saturating_sub(start);
        match &mut open {
            Some(run) if run.duration == duration && run.start + (run.repeats + 1) * duration == start => {
                run.repeats += 1;
            }
            _ => {
                open.iter().for_each(|run| write(out, run));
                open = Some(Run { start, duration, repeats: 0 });
            }
        }
    }
    open.iter().for_each(|run| write(out, run));
    out.push_str("</SegmentTimeline>\n");
}

fn ticks(ns: u64) -> u64 {
    u64::try_from(crate::mp4::to_ticks(ns.into(), VIDEO_TIMESCALE)).unwrap_or(0)
}

fn attribute(out: &mut String, name: &str, value: &impl Display) {
    let _ = write!(out, " {name}=\"");
    let _ = write!(Escaped(out), "{value}");
    out.push('"');
}

fn attribute_duration(out: &mut String, name: &str, ns: u64) {
    let _ = write!(out, " {name}=\"PT");
    text::seconds(out, ns);
    out.push_str("S\"");
}

fn attribute_date(out: &mut String, name: &str, unix_ms: i64) {
    let _ = write!(out, " {name}=\"");
    text::date_time(out, unix_ms);
    out.push('"');
}

/// What an attribute of XML may have; control characters have no place in a URI and are dropped.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for char in text.chars() {
            match char {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\u{fffe}' | '\u{ffff}' => {}
                char if char.is_control() => {}
                char => self.0.push(char),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
