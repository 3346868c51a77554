//! A file while it is made: fragments in, bytes of the next part out, and the lines of its index. One fragment is held back until
//! the next is known, so that its last picture lasts until then. Pure.
//!
//! Law: a part ends where a fragment ends, and says which number the file goes on with: from the parts that are stored a file goes
//! on as if it had never been interrupted.

use super::Format;
use super::plan::{self, Last};
use super::row::{Begun, Hole, Line, Part, TrackLine};
use crate::record::{Number, Record};
use crate::uplink::sink::Identity;
use crate::uplink::sink::video::assemble::Fragment;
use bytes::{Bytes, BytesMut};
use headwater_video::media::MS;
use headwater_video::mp4::{Clip, Place};
use headwater_video::{Tracks, codecs, matroska};

/// S3 takes 10,000 parts.
const PARTS_MAX: usize = 9_990;
/// Fragments of a file: its index is in memory.
const FRAGMENTS_MAX: usize = 50_000;
/// Losses that an index tells one by one.
const HOLES_MAX: usize = 1_000;

#[derive(Debug)]
pub struct File {
    pub begun: Begun,
    /// Once it is uploaded in parts.
    pub upload_id: Option<String>,
    pub parts: Vec<Part>,
    /// The part that is being filled.
    open: Part,
    bytes: BytesMut,
    sending: Bytes,
    offset: u64,
    fragments: usize,
    held: Option<Fragment>,
}

/// A fragment that cannot be written, and why.
#[derive(Debug)]
pub struct Refused(pub Vec<Record>, pub String);

/// Where a file stands in the configuration.
pub struct Wanted<'a> {
    pub bucket: &'a str,
    pub prefix: &'a str,
    pub format: Format,
    pub every_ms: i64,
    pub who: &'a Identity,
}

impl File {
    /// A file that begins with this fragment, which is not written yet.
    pub fn begin(fragment: &Fragment, at: &Wanted) -> Result<File, String> {
        let tracks = parse(fragment)?.tracks;
        let mp4 = if at.format == Format::Mp4 { Clip::begin(&tracks).ok() } else { None };
        let (format, head) = match mp4 {
            Some((_, head)) => (Format::Mp4, Bytes::from(head)),
            None => (Format::Mkv, fragment.head()),
        };
        let (media, first) = (&fragment.media, fragment.first());
        let slot_ms = plan::slot_ms(media.start_ms, at.every_ms);
        let begun = Begun {
            bucket: at.bucket.to_owned(),
            key: plan::key(at.prefix, at.who, media.start_ms, slot_ms, first),
            wanted: at.format,
            format,
            every_ms: at.every_ms,
            slot_ms,
            head_id: media.head_id,
            head_bytes: head.len() as u64,
            first,
            arrival_ms: fragment.arrival_ms(),
            tracks: lines_of(&tracks),
            codecs: codecs::names(&tracks).unwrap_or_default(),
        };
        let mut file = File::resume(begun, None, Vec::new());
        file.append(&head);
        Ok(file)
    }

    /// A file of which these parts are stored.
    pub fn resume(begun: Begun, upload_id: Option<String>, parts: Vec<Part>) -> File {
        let open = parts.last().map_or_else(
            || Part { next: begun.first, last_next: begun.first, ..Part::default() },
            |last| Part {
                lines: Vec::new(),
                holes: Vec::new(),
                counted: (0, 0),
                bytes: 0,
                etag: String::new(),
                sha256: String::new(),
                ..last.clone()
            },
        );
        let offset = parts.iter().map(|part| part.bytes).sum();
        let fragments = parts.iter().map(|part| part.lines.len()).sum();
        File {
            begun,
            upload_id,
            parts,
            open,
            bytes: BytesMut::new(),
            sending: Bytes::new(),
            offset,
            fragments,
            held: None,
        }
    }

    /// The number it goes on with.
    pub fn next(&self) -> Number {
        self.open.next
    }

    /// It is the same that the configuration asks for now.
    pub fn suits(&self, at: &Wanted) -> bool {
        let begun = &self.begun;
        begun.bucket == at.bucket && begun.wanted == at.format && begun.every_ms == at.every_ms
    }

    /// All that it will have is in it.
    pub fn is_sealed(&self) -> bool {
        self.parts.last().is_some_and(|part| part.sealed)
    }

    pub fn is_empty(&self) -> bool {
        self.fragments == 0 && self.held.is_none()
    }

    fn last(&self) -> Option<Last> {
        match &self.held {
            Some(held) => Some(Last {
                slot_ms: self.begun.slot_ms,
                head_id: self.begun.head_id,
                start_ms: held.media.start_ms,
                end_ms: held.end_ms(),
            }),
            None if self.fragments > 0 => Some(self.open.last(&self.begun)),
            None => None,
        }
    }

    /// Whether the fragment goes into it.
    pub fn takes(&self, fragment: &Fragment) -> bool {
        let has_room = self.parts.len() < PARTS_MAX && self.fragments + 1 < FRAGMENTS_MAX;
        has_room && self.last().is_none_or(|last| plan::goes_on(&last, &fragment.media, self.begun.every_ms))
    }

    /// How long its last fragment is, in milliseconds.
    pub fn last_duration_ms(&self) -> u64 {
        self.last().map_or(0, |last| last.end_ms.saturating_sub(last.start_ms).unsigned_abs())
    }

    pub fn ends_ms(&self) -> i64 {
        self.begun.slot_ms.saturating_add(self.begun.every_ms)
    }

    /// Takes the next fragment and writes the one before it.
    pub fn push(&mut self, fragment: Fragment) -> Result<(), Refused> {
        let next = (!fragment.media.discontinuity).then(|| fragment.media.start_ms.saturating_mul(MS));
        self.open.next = fragment.first();
        let written = self.write(next);
        self.held = Some(fragment);
        written
    }

    /// Numbers up to `next` are seen to, and are in no file.
    pub fn pass(&mut self, next: Number) {
        if self.held.is_none() {
            self.open.next = next;
        }
    }

    pub fn hole(&mut self, hole: Hole) {
        let holes = &mut self.open.holes;
        let has_room = holes.len() < HOLES_MAX;
        match holes.last_mut() {
            Some(last) if holes_join(last, &hole) => last.to = hole.to,
            _ if has_room => holes.push(hole),
            _ => {}
        }
    }

    /// No fragment comes behind the last; everything below `next` is seen to.
    pub fn close(&mut self, next: Number) -> Result<(), Refused> {
        let written = self.write(None);
        self.open.next = next;
        written
    }

    pub fn is_full(&self, part_bytes: u64) -> bool {
        self.bytes.len() as u64 >= part_bytes
    }

    /// Bytes in memory.
    pub fn in_memory(&self) -> usize {
        self.bytes.len() + self.sending.len()
    }

    /// The bytes of the part that is being filled. They stay until [`File::stored`], and nothing is written meanwhile.
    pub fn part(&mut self) -> Bytes {
        if self.sending.is_empty() {
            self.sending = std::mem::take(&mut self.bytes).freeze();
        }
        self.sending.clone()
    }

    /// The destination has what [`File::part`] gave.
    pub fn stored(&mut self, etag: String, sha256: String, sealed: bool) -> &Part {
        let bytes = std::mem::take(&mut self.sending).len() as u64;
        let part = Part { etag, sha256, bytes, sealed, ..std::mem::take(&mut self.open) };
        self.open = Part {
            next: part.next,
            place: part.place,
            last_ms: part.last_ms,
            last_next: part.last_next,
            ..Part::default()
        };
        self.parts.push(part);
        &self.parts[self.parts.len() - 1]
    }

    /// All of it is stored, and everything below `next` is seen to: which part is the last, and its row.
    pub fn seal(&mut self, next: Number) -> (usize, Part) {
        let at = self.parts.len().saturating_sub(1);
        self.open.next = next;
        let Some(last) = self.parts.last_mut() else { return (at, Part::default()) };
        // What was lost behind its last fragment is told with it.
        last.holes.append(&mut self.open.holes);
        (last.sealed, last.next) = (true, next);
        (at, last.clone())
    }

    /// Records and payload of what is in it.
    pub fn counted(&self) -> (u64, u64) {
        let all = self.parts.iter().chain([&self.open]);
        all.fold((0, 0), |sum, part| (sum.0 + part.counted.0, sum.1 + part.counted.1))
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.offset += bytes.len() as u64;
    }

    fn write(&mut self, next_start_ns: Option<i64>) -> Result<(), Refused> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let breaks = self.fragments > 0 && (held.media.discontinuity || self.open.last_next != held.first());
        let offset = self.offset;
        match self.begun.format {
            Format::Mkv => held.body().for_each(|bytes| self.append(&bytes)),
            Format::Mp4 => match clip(&held, self.open.place(), breaks, next_start_ns) {
                Ok((bytes, place)) => {
                    self.append(&bytes);
                    self.open.set_place(place);
                }
                Err(why) => return Err(Refused(held.records, why)),
            },
        }
        self.fragments += 1;
        self.open.last_ms = (held.media.start_ms, held.end_ms());
        self.open.last_next = held.next();
        self.open.counted.0 += held.records.len() as u64;
        self.open.counted.1 += u64::from(held.media.bytes);
        self.open.lines.push(Line {
            number: held.first(),
            start_ms: held.media.start_ms,
            duration_ms: held.media.duration_ms,
            offset,
            length: self.offset - offset,
            discontinuity: breaks,
            tags: held.tags().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        });
        Ok(())
    }
}

fn holes_join(last: &Hole, next: &Hole) -> bool {
    last.reason == next.reason && last.to + 1 == next.from
}

fn parse(fragment: &Fragment) -> Result<headwater_video::Fragment, String> {
    let whole: Vec<u8> = fragment.records.iter().flat_map(|record| record.data.iter().copied()).collect();
    matroska::read_fragment(&whole).map_err(|error| format!("it cannot be read: {error}"))
}

/// The bytes that go on with a fragment, and where the MP4 is behind them.
fn clip(held: &Fragment, at: Place, breaks: bool, next_start_ns: Option<i64>) -> Result<(Vec<u8>, Place), String> {
    let mut fragment = parse(held)?;
    fragment.discontinuity = breaks;
    let mut clip = Clip::resume(&fragment.tracks, at);
    let bytes = clip.push(&fragment, next_start_ns).map_err(|error| format!("it cannot be written as MP4: {error}"))?;
    Ok((bytes, clip.place()))
}

fn lines_of(tracks: &Tracks) -> Vec<TrackLine> {
    let line = |track: &headwater_video::Track| TrackLine {
        number: track.number,
        codec: track.codec.id().to_owned(),
        width: track.width,
        height: track.height,
        sample_rate: track.sample_rate,
    };
    tracks.0.iter().map(line).collect()
}
