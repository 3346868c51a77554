//! What a producer sends, on its way to the log: bytes of Matroska become fragments as they are stored. Pure.
//!
//! Two kinds of producers come: those that say what their clock means (`PutMedia`), whose word is kept, and those that only
//! stream (ffmpeg, a camera), whose clock is anchored to this box's when they begin, and anew when it jumps or has drifted
//! away. Nothing is decoded; what is wrong with the bytes is the producer's error, by Kinesis Video's names.

use crate::wire::media::{Media, PART_BYTES_MAX, head_id};
use bytes::Bytes;
use headwater_video::fragment::{FragmentError, Fragmenter, Limits};
use headwater_video::matroska::{self, Event, Fault, ParseError, Parser};
use headwater_video::media::MS;
use headwater_video::{Fragment, Frame, Tracks, mp4};
use std::collections::VecDeque;
use std::sync::Arc;

/// A clock anchored to ours may be wrong by this much before it is anchored anew, in milliseconds: a camera that loses a
/// second a day is followed, one that waits for a keyframe is not disturbed.
const DRIFT_MS: i64 = 5_000;
/// So long a clock may be ahead by more, in milliseconds, and by how much that may change in it if it is to be called steady.
const AHEAD_FOR_MS: u64 = 60_000;
const STEADY_MS: u64 = 1_000;
/// Fragments of pictures that are all keyframes are at least so long, in nanoseconds.
const KEYFRAMES_ONLY_NS: u64 = 900_000_000;

/// What a producer's times mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timecodes {
    /// Milliseconds since 1970.
    Absolute,
    /// Since this moment, milliseconds since 1970.
    Since(i64),
    /// Nothing: pictures are taken when they come.
    Anchored,
}

/// A fragment as it goes to the log.
#[derive(Clone, Debug)]
pub struct Ready {
    pub media: Media,
    pub bytes: Bytes,
    pub tags: Vec<(String, String)>,
    /// The same fragment thinned out to its first picture, where it is time for one.
    pub thin: Option<Box<Ready>>,
    /// The producer's own name for it: its first time, in milliseconds, as it came.
    pub timecode_ms: i64,
    /// For the preview: the last of them may have come together with the fragment's end.
    pub frames: Vec<Frame>,
    /// Which preview it had, if somebody was watching.
    pub preview: Option<u64>,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A fragment has begun; its first picture is there.
    Begun {
        timecode_ms: i64,
    },
    Done(Box<Ready>),
    /// A fragment was dropped for this.
    Dropped {
        timecode_ms: Option<i64>,
        error: FragmentError,
    },
}

/// By Kinesis Video's numbers: `AckErrorCode` of PutMedia.
pub fn error_id(error: &ParseError) -> (u16, &'static str) {
    match error.fault {
        Fault::TooManyTracks => (4005, "MORE_THAN_ALLOWED_TRACKS_FOUND"),
        Fault::UnknownTrack(_) => (4010, "TRACK_NUMBER_MISMATCH"),
        _ => (4006, "INVALID_MKV_DATA"),
    }
}

pub fn dropped_id(error: &FragmentError) -> (u16, &'static str) {
    match error {
        FragmentError::TooLarge { .. } | FragmentError::TooManyFrames { .. } => (4001, "MAX_FRAGMENT_SIZE_REACHED"),
        FragmentError::TooLong { .. } => (4002, "MAX_FRAGMENT_DURATION_REACHED"),
    }
}

pub struct Intake {
    parser: Parser,
    events: VecDeque<Event>,
    cutter: Cutter,
}

impl Intake {
    pub fn new(timecodes: Timecodes) -> Intake {
        Intake { parser: Parser::new(), events: VecDeque::new(), cutter: Cutter::new(timecodes) }
    }

    /// Takes bytes as they come. What was whole before a mistake in them is there to be cut all the same.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        let mut events = Vec::new();
        let parsed = self.parser.push(bytes, &mut events);
        self.events.extend(events);
        parsed
    }

    /// The producer has ended: what it had begun is whole if it ended well.
    pub fn finish(&mut self) -> Result<(), ParseError> {
        let mut events = Vec::new();
        let parsed = self.parser.finish(&mut events);
        self.events.extend(events);
        parsed
    }

    /// Cuts with the next of what came; `false`: there is no more of it. One at a time, since each fragment has a head of its
    /// own, and a few bytes may hold thousands of fragments.
    pub fn cut(&mut self, now_ms: u64, steps: &mut Vec<Step>) -> bool {
        let Some(event) = self.events.pop_front() else { return false };
        self.cutter.push(event, now_ms, steps);
        true
    }

    pub fn thin(&mut self, every_ms: Option<i64>) {
        self.cutter.thin(every_ms);
    }

    pub fn cutter(&self) -> &Cutter {
        &self.cutter
    }

    pub fn cutter_mut(&mut self) -> &mut Cutter {
        &mut self.cutter
    }

    /// Bytes that have come of what is not whole yet, and are in no frame.
    pub fn held_bytes(&self) -> usize {
        self.parser.held_bytes()
    }
}

/// What fragments of the same tracks have in common.
#[derive(Clone)]
pub struct Head {
    pub tracks: Arc<Tracks>,
    bytes: Bytes,
    pub id: u64,
    /// So far in front of its showing a picture is decoded. It must stay what it was while fragments continue each other.
    pub delay_ms: u16,
}

impl Head {
    /// That of a fragment's tracks; how long pictures wait for others is taken from this fragment, the first of them.
    pub fn of(fragment: &Fragment) -> Head {
        let bytes = Bytes::from(matroska::head(&fragment.tracks));
        let delay_ms = u16::try_from(mp4::reorder_ns(fragment).div_ceil(MS as u64)).unwrap_or(u16::MAX);
        Head { tracks: fragment.tracks.clone(), id: head_id(&bytes), bytes, delay_ms }
    }

    /// The fragment as it goes to the log; `offset_ms` makes its times milliseconds since 1970.
    pub fn seal(&self, fragment: Fragment, offset_ms: i64, discontinuity: bool) -> Ready {
        let timecode_ms = to_ms(fragment.start_ns());
        let duration_ms = fragment.duration_ns() / MS as u64;
        let mut bytes = Vec::with_capacity(self.bytes.len() + fragment.bytes() + 64 * fragment.frames.len() + 256);
        bytes.extend_from_slice(&self.bytes);
        bytes.extend_from_slice(&matroska::cluster(&fragment, offset_ms.saturating_mul(MS)));
        let media = Media {
            part: 0,
            parts: u8::try_from(bytes.len().div_ceil(PART_BYTES_MAX).max(1)).unwrap_or(u8::MAX),
            discontinuity,
            start_ms: timecode_ms.saturating_add(offset_ms),
            duration_ms: u32::try_from(duration_ms).unwrap_or(u32::MAX),
            bytes: bytes.len() as u32,
            head_bytes: self.bytes.len() as u32,
            head_id: self.id,
            delay_ms: self.delay_ms,
        };
        let Fragment { tags, frames, .. } = fragment;
        Ready { media, bytes: bytes.into(), tags, thin: None, timecode_ms, frames, preview: None }
    }
}

/// As Matroska keeps it, to the nearest: RTSP and MP4 have parts of a millisecond, and the index says what the bytes say.
fn to_ms(ns: i64) -> i64 {
    ns.saturating_add(MS / 2).div_euclid(MS)
}

/// Which pictures are kept for longer: one in so many milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thinner {
    every_ms: Option<i64>,
    last_ms: Option<i64>,
}

impl Thinner {
    pub fn new(every_ms: Option<i64>) -> Thinner {
        Thinner { every_ms, last_ms: None }
    }

    /// The first picture of a fragment alone, shown until the next one that is kept, if it is time for one.
    pub fn picture(&mut self, head: &Head, fragment: &Fragment, offset_ms: i64) -> Option<Ready> {
        let every_ms = self.every_ms?;
        let lead = fragment.tracks.lead()?.number;
        let frame = fragment.of_track(lead).next()?;
        let at_ms = to_ms(frame.pts_ns).saturating_add(offset_ms);
        let since = self.last_ms.map_or(i64::MAX, |last| at_ms.saturating_sub(last));
        if (0..every_ms).contains(&since) {
            return None;
        }
        self.last_ms = Some(at_ms);
        let shown_ns = u64::try_from(every_ms.saturating_mul(MS)).ok();
        let picture = Fragment {
            frames: vec![Frame { duration_ns: shown_ns, ..frame.clone() }],
            tracks: fragment.tracks.clone(),
            discontinuity: fragment.discontinuity,
            tags: Vec::new(),
        };
        Some(head.seal(picture, offset_ms, since > 2 * every_ms))
    }
}

/// From events to fragments with times that mean something. RTSP and chunks come in here, without a container.
pub struct Cutter {
    fragmenter: Fragmenter,
    timecodes: Timecodes,
    /// Added to the producer's times, in milliseconds; `None` until the first frame.
    offset_ms: Option<i64>,
    /// Since when an anchored clock is ahead of ours, and by how much it was then, in milliseconds.
    ahead: Option<(u64, i64)>,
    /// Where the last fragment ended, in milliseconds since 1970.
    ended_ms: Option<i64>,
    has_begun: bool,
    /// Nothing is known of what came before: another connection, another producer.
    is_first: bool,
    head: Option<Head>,
    thinner: Thinner,
}

impl Cutter {
    pub fn new(timecodes: Timecodes) -> Cutter {
        let fragmenter = Fragmenter::new(Limits { duration_ns_min: KEYFRAMES_ONLY_NS, ..Limits::default() });
        Cutter {
            fragmenter,
            timecodes,
            offset_ms: None,
            ahead: None,
            ended_ms: None,
            has_begun: false,
            is_first: true,
            head: None,
            thinner: Thinner::default(),
        }
    }

    /// Thins out from now on.
    pub fn thin(&mut self, every_ms: Option<i64>) {
        self.thinner.every_ms = every_ms;
    }

    pub fn push(&mut self, event: Event, now_ms: u64, steps: &mut Vec<Step>) {
        let had = self.fragmenter.building().first().map(|frame| frame.pts_ns);
        match self.fragmenter.push(event) {
            Ok(Some(fragment)) => {
                self.done(fragment, now_ms, steps);
                self.has_begun = false;
            }
            Ok(None) => {}
            Err(error) => {
                steps.push(Step::Dropped { timecode_ms: had.map(to_ms), error });
                self.has_begun = false;
            }
        }
        if let Some(first) = self.fragmenter.building().first().filter(|_| !self.has_begun) {
            self.has_begun = true;
            steps.push(Step::Begun { timecode_ms: to_ms(first.pts_ns) });
        }
    }

    pub fn finish(&mut self, now_ms: u64, steps: &mut Vec<Step>) {
        if let Some(fragment) = self.fragmenter.finish() {
            self.done(fragment, now_ms, steps);
        }
        self.has_begun = false;
    }

    /// The fragment that is being built: its tracks and frames, and what to add to their times, in milliseconds.
    pub fn building(&self, now_ms: u64) -> (&Arc<Tracks>, &[Frame], i64) {
        let frames = self.fragmenter.building();
        let newest = frames.last().map_or(0, |frame| frame.pts_ns / MS);
        (self.fragmenter.tracks(), frames, self.offset(newest, now_ms))
    }

    pub fn building_bytes(&self) -> usize {
        self.fragmenter.building_bytes()
    }

    fn offset(&self, newest_ms: i64, now_ms: u64) -> i64 {
        match self.timecodes {
            Timecodes::Absolute => 0,
            Timecodes::Since(start_ms) => start_ms,
            Timecodes::Anchored => self.offset_ms.unwrap_or((now_ms as i64).saturating_sub(newest_ms)),
        }
    }

    fn done(&mut self, fragment: Fragment, now_ms: u64, steps: &mut Vec<Step>) {
        let timecode_ms = to_ms(fragment.start_ns());
        let duration_ms = i64::try_from(fragment.duration_ns()).unwrap_or(i64::MAX) / MS;
        let end_ms = timecode_ms.saturating_add(duration_ms);
        let mut discontinuity = fragment.discontinuity || std::mem::take(&mut self.is_first);
        if self.timecodes == Timecodes::Anchored {
            // It is over when the next one begins, so now is its end.
            let anchored = (now_ms as i64).saturating_sub(end_ms);
            if fragment.discontinuity || self.is_adrift(anchored, now_ms) {
                // A further Segment of what comes faster than it plays: the times up to there are taken.
                let free = self.ended_ms.filter(|_| fragment.discontinuity);
                let free = free.map_or(anchored, |ended_ms| ended_ms.saturating_sub(timecode_ms));
                self.offset_ms = Some(anchored.max(free));
                self.ahead = None;
                discontinuity = true;
            }
        }
        let offset_ms = self.offset(end_ms, now_ms);
        self.ended_ms = Some(end_ms.saturating_add(offset_ms));
        // The head is that of the whole fragment: one picture says nothing of the order of others.
        let head = self.head_of(&fragment);
        let thin = self.thinner.picture(&head, &fragment, offset_ms).map(Box::new);
        let ready = head.seal(fragment, offset_ms, discontinuity);
        steps.push(Step::Done(Box::new(Ready { thin, ..ready })));
    }

    /// Whether an anchored clock has to be anchored anew. One that fell behind ours: the producer was silent. One that is
    /// ahead may be a file that comes faster than it plays, or what a slow disk held up, and its times must not come twice: it
    /// is adrift only if it stays ahead by the same for a while.
    fn is_adrift(&mut self, anchored: i64, now_ms: u64) -> bool {
        let Some(offset) = self.offset_ms else { return true };
        let ahead_ms = offset.saturating_sub(anchored);
        if ahead_ms.unsigned_abs() <= DRIFT_MS as u64 {
            self.ahead = None;
            return false;
        }
        match self.ahead {
            _ if ahead_ms < 0 => true,
            Some((since_ms, _)) if now_ms.saturating_sub(since_ms) < AHEAD_FOR_MS => false,
            Some((_, then_ms)) if ahead_ms.abs_diff(then_ms) < STEADY_MS => true,
            _ => {
                self.ahead = Some((now_ms, ahead_ms));
                false
            }
        }
    }

    fn head_of(&mut self, fragment: &Fragment) -> Head {
        let tracks = &fragment.tracks;
        if let Some(known) = self.head.as_ref().filter(|known| Arc::ptr_eq(&known.tracks, tracks)) {
            return known.clone();
        }
        let head = Head::of(fragment);
        self.head = Some(head.clone());
        head
    }

    /// Frames that are in no fragment.
    pub fn frames_dropped(&self) -> u64 {
        self.fragmenter.frames_dropped()
    }

    /// Decode delay of the tracks, once a fragment of them was whole, in milliseconds.
    pub fn delay_ms(&self) -> Option<u16> {
        self.head.as_ref().filter(|head| Arc::ptr_eq(&head.tracks, self.fragmenter.tracks())).map(|head| head.delay_ms)
    }
}
