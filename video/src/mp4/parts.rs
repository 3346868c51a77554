//! Cuts a fragment into parts while it still comes in, for players that want it early (rfc8216bis 6.2.2, LL-HLS).
//!
//! The decode times of a part must be those that the whole fragment gives the same frames: a player may go on from
//! parts to whole segments. Decode times are presentation times, sorted (see `media.rs`), so a cut is right exactly
//! where all frames before it are shown before all frames after it: then the sorted times of the part are a slice of
//! those of the whole.
//!
//! What comes after is not known yet, so the cut is made in front of a frame of the leading track that is shown later
//! than all before it. Without B-frames that is every frame, and the cutter holds back one frame. With B-frames it is
//! every anchor (`I0 P4 B2 B1 B3 | P8 ...`), as encoders send the B-frames between two anchors before the anchor
//! after them. An encoder that does otherwise sends a frame that is shown before the cut; then presentation times
//! stay right and decode times still never run back ([`Timing::decode_floor_ns`]), but they differ a little from
//! those of the whole. Pure.

use super::media::Timing;
use crate::media::FRAGMENT_BYTES_MAX;
use crate::{Frame, Tracks};

/// Frames of one fragment that can be sent before the rest of it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub frames: Vec<Frame>,
    /// Begins with a keyframe of the leading track.
    pub independent: bool,
    pub start_ns: i64,
    pub duration_ns: u64,
    /// On the stream's clock; give it to [`super::part`], with an offset.
    pub timing: Timing,
}

/// Collects the frames of one fragment. Its memory is a part, and at most a fragment if there is nowhere to cut.
#[derive(Debug)]
pub struct PartCutter {
    lead: u8,
    default_duration_ns: u64,
    target_ns: u64,
    frames: Vec<Frame>,
    bytes: usize,
    /// Of the leading track's frames in `frames`: first and last to be shown.
    shown: Option<(i64, i64)>,
    /// Up to where the parts before reach.
    floor_ns: Option<i64>,
    /// When the frame of the leading track was shown that came before.
    before_ns: i64,
    /// The shortest time between two frames of the leading track, one decoded after the other; 0: not known yet.
    shortest_ns: u64,
    /// Whether any frame was shown before one that was decoded earlier.
    reordered: bool,
}

impl PartCutter {
    /// Cuts parts that are not longer than `target_ns`, where there is a place to cut. HLS wants all but the last of
    /// a segment to be at least 85 % of it: a target a little over a whole number of frames, or of groups of
    /// B-frames, gives that.
    pub fn new(tracks: &Tracks, target_ns: u64) -> PartCutter {
        let lead = tracks.lead();
        PartCutter {
            lead: lead.map_or(0, |track| track.number),
            default_duration_ns: lead.map_or(0, |track| track.default_duration_ns),
            target_ns,
            frames: Vec::new(),
            bytes: 0,
            shown: None,
            floor_ns: None,
            before_ns: 0,
            shortest_ns: 0,
            reordered: false,
        }
    }

    /// Takes the next frame of the fragment, and gives the part that it closes.
    pub fn push(&mut self, frame: Frame) -> Option<Part> {
        let part = if frame.track == self.lead { self.push_lead(&frame) } else { None };
        self.bytes = self.bytes.saturating_add(frame.data.len());
        self.frames.push(frame);
        part
    }

    /// The rest of the fragment, when the next one begins or the stream ends. The cutter is then ready for the next
    /// fragment.
    pub fn finish(&mut self, next_start_ns: Option<i64>) -> Option<Part> {
        let part = self.cut(next_start_ns);
        self.floor_ns = None;
        part
    }

    fn push_lead(&mut self, frame: &Frame) -> Option<Part> {
        let before_ns = std::mem::replace(&mut self.before_ns, frame.pts_ns);
        let Some((first, last)) = self.shown else {
            self.shown = Some((frame.pts_ns, frame.pts_ns));
            return None;
        };
        let later = frame.pts_ns > last;
        self.reordered |= !later;
        self.saw_step(before_ns.abs_diff(frame.pts_ns));
        // With this frame the part would last until the frame's own end: cut before it, if that were too long.
        let with = frame.pts_ns.abs_diff(first).saturating_add(self.step_ns(frame, last));
        let part = if later && (with > self.target_ns || self.bytes > FRAGMENT_BYTES_MAX / 2) {
            self.cut(Some(self.next_decode_ns(frame, last)))
        } else {
            None
        };
        self.shown = match self.shown {
            Some((first, last)) => Some((first.min(frame.pts_ns), last.max(frame.pts_ns))),
            None => Some((frame.pts_ns, frame.pts_ns)),
        };
        part
    }

    /// When the frame after the cut is decoded: without B-frames when it is shown; with them a frame comes between.
    fn next_decode_ns(&self, frame: &Frame, last: i64) -> i64 {
        match self.reordered {
            true => frame.pts_ns.min(last.saturating_add_unsigned(self.step_ns(frame, last))),
            false => frame.pts_ns,
        }
    }

    /// How long a frame lasts that begins at `frame`, as far as one can know.
    fn step_ns(&self, frame: &Frame, last: i64) -> u64 {
        match frame.duration_ns {
            Some(duration) => duration,
            None if self.default_duration_ns > 0 => self.default_duration_ns,
            None if self.reordered && self.shortest_ns > 0 => self.shortest_ns,
            None => frame.pts_ns.abs_diff(last),
        }
    }

    fn saw_step(&mut self, step_ns: u64) {
        if step_ns > 0 && (self.shortest_ns == 0 || step_ns < self.shortest_ns) {
            self.shortest_ns = step_ns;
        }
    }

    fn cut(&mut self, next_start_ns: Option<i64>) -> Option<Part> {
        let frames = std::mem::take(&mut self.frames);
        self.bytes = 0;
        let shown = self.shown.take();
        let lead = frames.iter().find(|frame| frame.track == self.lead);
        let independent = lead.is_some_and(|frame| frame.keyframe);
        let (start_ns, last_ns) = shown.or(frames.first().map(|frame| (frame.pts_ns, frame.pts_ns)))?;
        let end_ns = next_start_ns.unwrap_or(last_ns.saturating_add_unsigned(self.default_duration_ns));
        let timing = Timing { next_start_ns, decode_floor_ns: self.floor_ns, ..Timing::default() };
        self.floor_ns = self.floor_ns.max(Some(last_ns));
        Some(Part { frames, independent, start_ns, duration_ns: end_ns.max(start_ns).abs_diff(start_ns), timing })
    }
}
