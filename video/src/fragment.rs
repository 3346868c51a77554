//! Cuts a stream into fragments: each begins with a keyframe of the leading track, wherever the clusters are.
//!
//! It keeps one fragment, the one that is being built, within [`Limits`]; frames before the first keyframe are dropped and
//! counted. A clock that jumps, other tracks, or a fragment that grew too long ends what was built, and the next one begins
//! at the next keyframe and says that something is between them. So a wrong time costs a fragment, never makes one of a
//! week. A frame of another track goes into the fragment that is open when it comes, though it may be shown before that
//! one's first picture. It does not know what a fragment is called or where it goes. Pure.

use crate::matroska::{Event, TAGS_MAX};
use crate::media::{FRAGMENT_BYTES_MAX, Fragment, Frame, Tracks};
use std::sync::Arc;
use thiserror::Error;

/// The leading track's clock may run ahead this far from one frame to the next, in nanoseconds.
pub const JUMP_FORWARD_NS: i64 = 10_000_000_000;
/// It may fall back this far, in nanoseconds. Pictures that are shown in another order than decoded are no fall.
pub const JUMP_BACK_NS: i64 = 1_000_000_000;

/// How much a fragment may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub duration_ns_max: u64,
    /// Bytes of its frames. A keyframe alone may have more: its own bound is the parser's.
    pub bytes_max: usize,
    pub frames_max: usize,
    /// A keyframe that comes sooner than this after the fragment's first does not cut. 0: every keyframe cuts, which makes
    /// a fragment of every frame where all are keyframes (MJPEG, audio alone).
    pub duration_ns_min: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            duration_ns_max: 20_000_000_000,
            bytes_max: FRAGMENT_BYTES_MAX,
            // 20 s of 240 pictures and twice 400 packets a second are 20,800.
            frames_max: 1 << 16,
            duration_ns_min: 0,
        }
    }
}

/// A fragment outgrew a limit: it is dropped, and the next one begins at the next keyframe. Kinesis Video's error ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FragmentError {
    /// 4001 MAX_FRAGMENT_SIZE_REACHED.
    #[error("a fragment of more than {bytes_max} bytes without a keyframe")]
    TooLarge { bytes_max: usize },
    /// 4001 too, for frames that are many and small.
    #[error("a fragment of more than {frames_max} frames without a keyframe")]
    TooManyFrames { frames_max: usize },
    /// 4002 MAX_FRAGMENT_DURATION_REACHED.
    #[error("more than {} s without a keyframe: have one every second or two", duration_ns_max / 1_000_000_000)]
    TooLong { duration_ns_max: u64 },
}

/// Takes a parser's events, gives fragments.
#[derive(Debug)]
pub struct Fragmenter {
    limits: Limits,
    tracks: Arc<Tracks>,
    lead: Option<u8>,
    building: Option<Building>,
    clock: Option<Clock>,
    /// A Segment began, and no frame of it has come yet.
    fresh_segment: bool,
    /// What the next fragment will say.
    discontinuity: bool,
    next_tags: Vec<(String, String)>,
    frames_dropped: u64,
    tags_dropped: u64,
}

#[derive(Debug)]
struct Building {
    fragment: Fragment,
    bytes: usize,
    /// When its keyframe is shown.
    start_ns: i64,
}

/// The leading track's clock within the fragment being built.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// The latest time so far.
    latest_ns: i64,
    /// No picture of this fragment is shown before: leading pictures of an open group stand between the fragment before
    /// and this one's keyframe.
    floor_ns: i64,
}

impl Fragmenter {
    pub fn new(limits: Limits) -> Fragmenter {
        Fragmenter {
            limits,
            tracks: Arc::default(),
            lead: None,
            building: None,
            clock: None,
            fresh_segment: false,
            discontinuity: false,
            next_tags: Vec::new(),
            frames_dropped: 0,
            tags_dropped: 0,
        }
    }

    /// Takes an event; gives the fragment that it ended.
    pub fn push(&mut self, event: Event) -> Result<Option<Fragment>, FragmentError> {
        match event {
            Event::Frame(frame) => {
                let duration_ns = frame.duration_ns.map(|said| said.min(self.limits.duration_ns_max));
                self.frame(Frame { duration_ns, ..frame })
            }
            Event::Tracks(tracks) => {
                let tracks = self.within_limits(tracks);
                Ok(self.new_tracks(tracks))
            }
            Event::Tags(tags) => {
                self.tag(tags);
                Ok(None)
            }
            Event::NewSegment => {
                self.fresh_segment = true;
                Ok(None)
            }
            Event::ClusterStart { .. } | Event::ClusterEnd => Ok(None),
        }
    }

    /// The input is over: gives what was being built.
    pub fn finish(&mut self) -> Option<Fragment> {
        self.building.take().map(|building| building.fragment)
    }

    /// The frames of the fragment that is being built; none before its keyframe.
    pub fn building(&self) -> &[Frame] {
        self.building.as_ref().map_or(&[], |building| &building.fragment.frames)
    }

    /// Bytes of the frames of the fragment that is being built.
    pub fn building_bytes(&self) -> usize {
        self.building.as_ref().map_or(0, |building| building.bytes)
    }

    /// The tracks that were announced last; none before.
    pub fn tracks(&self) -> &Arc<Tracks> {
        &self.tracks
    }

    /// Frames that are in no fragment: before a keyframe, of a fragment that outgrew its limits, or far off the clock.
    pub fn frames_dropped(&self) -> u64 {
        self.frames_dropped
    }

    /// Tags that were too many for their fragment.
    pub fn tags_dropped(&self) -> u64 {
        self.tags_dropped
    }

    fn frame(&mut self, frame: Frame) -> Result<Option<Fragment>, FragmentError> {
        let leads = self.lead == Some(frame.track);
        let watched = leads || self.fresh_segment;
        self.fresh_segment = false;
        let ended = if watched && self.jumps(&frame, leads) { self.break_off() } else { None };
        if leads && frame.keyframe && self.may_begin(&frame) {
            // The one before was broken off, or is whole: never both.
            let whole = self.finish();
            self.begin(frame);
            return Ok(ended.or(whole));
        }
        if self.building.is_none() || (!leads && self.strays(&frame)) {
            self.frames_dropped = self.frames_dropped.saturating_add(1);
            return Ok(ended);
        }
        self.add(frame, leads).map(|()| ended)
    }

    /// Whether the stream's clock is another one now.
    fn jumps(&self, frame: &Frame, leads: bool) -> bool {
        let Some(clock) = self.clock else { return false };
        // A keyframe is shown after all before it; between keyframes the order of pictures is free.
        let after = if leads && !frame.keyframe { clock.floor_ns } else { clock.latest_ns };
        frame.pts_ns > clock.latest_ns.saturating_add(JUMP_FORWARD_NS)
            || frame.pts_ns < after.saturating_sub(JUMP_BACK_NS)
    }

    /// Whether a frame of another track is too far off the leading one to be of this fragment.
    fn strays(&self, frame: &Frame) -> bool {
        self.clock.is_some_and(|clock| {
            frame.pts_ns > clock.latest_ns.saturating_add(JUMP_FORWARD_NS)
                || frame.pts_ns < clock.floor_ns.saturating_sub(JUMP_FORWARD_NS)
        })
    }

    /// Whether a keyframe cuts here: it does not so soon that `duration_ns_min` forbids it, unless it would not fit.
    fn may_begin(&self, frame: &Frame) -> bool {
        let Some(building) = &self.building else { return true };
        let since_ns = u64::try_from(frame.pts_ns.saturating_sub(building.start_ns)).unwrap_or(0);
        since_ns >= self.limits.duration_ns_min || self.outgrown(building, frame, true).is_some()
    }

    fn begin(&mut self, frame: Frame) {
        let (bytes, start_ns) = (frame.data.len(), frame.pts_ns);
        let floor_ns = self.clock.map_or(start_ns, |clock| clock.latest_ns.min(start_ns));
        self.clock = Some(Clock { latest_ns: start_ns, floor_ns });
        let fragment = Fragment {
            tracks: self.tracks.clone(),
            frames: vec![frame],
            discontinuity: std::mem::take(&mut self.discontinuity),
            tags: std::mem::take(&mut self.next_tags),
        };
        self.building = Some(Building { fragment, bytes, start_ns });
    }

    fn add(&mut self, frame: Frame, leads: bool) -> Result<(), FragmentError> {
        let Some(building) = &self.building else { return Ok(()) };
        if let Some(error) = self.outgrown(building, &frame, leads) {
            let lost = building.fragment.frames.len() as u64 + 1;
            self.frames_dropped = self.frames_dropped.saturating_add(lost);
            self.break_off();
            return Err(error);
        }
        if let Some(clock) = self.clock.as_mut().filter(|_| leads) {
            clock.latest_ns = clock.latest_ns.max(frame.pts_ns);
        }
        if let Some(building) = &mut self.building {
            building.bytes += frame.data.len();
            building.fragment.frames.push(frame);
        }
        Ok(())
    }

    /// The limit that this frame would break.
    fn outgrown(&self, building: &Building, frame: &Frame, leads: bool) -> Option<FragmentError> {
        let Limits { duration_ns_max, bytes_max, frames_max, .. } = self.limits;
        let lasts = u64::try_from(frame.pts_ns.saturating_sub(building.start_ns)).unwrap_or(0);
        if leads && lasts > duration_ns_max {
            Some(FragmentError::TooLong { duration_ns_max })
        } else if building.bytes.saturating_add(frame.data.len()) > bytes_max {
            Some(FragmentError::TooLarge { bytes_max })
        } else if building.fragment.frames.len() >= frames_max {
            Some(FragmentError::TooManyFrames { frames_max })
        } else {
            None
        }
    }

    /// Ends what is being built; what follows does not continue it.
    fn break_off(&mut self) -> Option<Fragment> {
        self.discontinuity = true;
        self.clock = None;
        self.finish()
    }

    /// A frame lasts as long as it says, and a fragment must not last for weeks because of that.
    fn within_limits(&self, mut tracks: Arc<Tracks>) -> Arc<Tracks> {
        let most = self.limits.duration_ns_max;
        if tracks.0.iter().any(|track| track.default_duration_ns > most) {
            for track in &mut Arc::make_mut(&mut tracks).0 {
                track.default_duration_ns = track.default_duration_ns.min(most);
            }
        }
        tracks
    }

    fn new_tracks(&mut self, tracks: Arc<Tracks>) -> Option<Fragment> {
        if self.tracks == tracks {
            return None;
        }
        let first = self.tracks.0.is_empty();
        let ended = if first { None } else { self.break_off() };
        self.lead = tracks.lead().map(|track| track.number);
        self.tracks = tracks;
        ended
    }

    /// Tags belong to the fragment being built; those before any, and those at the head of a new Segment, to the next.
    fn tag(&mut self, tags: Vec<(String, String)>) {
        let place = match &mut self.building {
            Some(building) if !self.fresh_segment => &mut building.fragment.tags,
            _ => &mut self.next_tags,
        };
        for tag in tags {
            if place.len() < TAGS_MAX {
                place.push(tag);
            } else {
                self.tags_dropped = self.tags_dropped.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
