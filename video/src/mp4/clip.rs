//! One MP4 of many fragments: an init segment, then a media segment a fragment. Players and editors open such a file
//! like any MP4. One fragment at a time is in memory.
//!
//! Decode times begin at 0, and what is shown by as much later as the first fragment's B-frames ask for: then no
//! composition offset is negative, which ffmpeg would misread (see `media.rs`). Where the stream broke off (another
//! clock, or something missing) the clip goes on without a gap. Pure.

use super::init::carried;
use super::media::Timing;
use super::{Mp4Error, init, media, reorder_ns};
use crate::{Fragment, Tracks};

/// Writes a clip piece by piece: [`Clip::begin`], then [`Clip::push`] for each fragment, one after another in one
/// file.
#[derive(Debug)]
pub struct Clip {
    tracks: Tracks,
    at: Place,
}

/// How far a clip is: enough to go on with it after its writer is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of the last segment written.
    pub sequence: u32,
    /// Clock of the clip minus that of the stream, once there is one.
    pub offset_ns: Option<i64>,
    pub decode_delay_ns: u64,
    /// On the clip's clock: where the last fragment began, and where all of it ended.
    pub start_ns: i64,
    pub end_ns: i64,
}

impl Clip {
    /// The clip, and the bytes it begins with.
    pub fn begin(tracks: &Tracks) -> Result<(Clip, Vec<u8>), Mp4Error> {
        Ok((Clip::resume(tracks, Place::default()), init(tracks)?))
    }

    /// A clip that was begun before, and is at this place.
    pub fn resume(tracks: &Tracks, at: Place) -> Clip {
        Clip { tracks: tracks.clone(), at }
    }

    pub fn place(&self) -> Place {
        self.at
    }

    /// The bytes that go on with this fragment. `next_start_ns` as in [`Timing`].
    pub fn push(&mut self, fragment: &Fragment, next_start_ns: Option<i64>) -> Result<Vec<u8>, Mp4Error> {
        if *fragment.tracks != self.tracks {
            return Err(Mp4Error::TracksChanged);
        }
        let (first, last) = span_ns(fragment).ok_or(Mp4Error::NoFrame)?;
        if self.at.offset_ns.is_none() {
            self.at.decode_delay_ns = reorder_ns(fragment);
            self.at.end_ns = i64::try_from(self.at.decode_delay_ns).unwrap_or(0);
        }
        let goes_on = |offset: &i64| !fragment.discontinuity && first.saturating_add(*offset) >= self.at.start_ns;
        let offset_ns = self.at.offset_ns.filter(goes_on).unwrap_or(self.at.end_ns.saturating_sub(first));
        let timing =
            Timing { offset_ns, next_start_ns, decode_delay_ns: self.at.decode_delay_ns, decode_floor_ns: None };
        let bytes = media(fragment, self.at.sequence.saturating_add(1), timing)?;
        self.at.sequence = self.at.sequence.saturating_add(1);
        self.at.offset_ns = Some(offset_ns);
        self.at.start_ns = first.saturating_add(offset_ns);
        self.at.end_ns = self.at.end_ns.max(last.saturating_add(offset_ns));
        Ok(bytes)
    }

    /// How long the clip is until now, in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.at.end_ns.max(0).unsigned_abs().saturating_sub(self.at.decode_delay_ns)
    }
}

/// When the first frame of any track that is carried is shown, and when the last ends.
fn span_ns(fragment: &Fragment) -> Option<(i64, i64)> {
    let frames = || carried(&fragment.tracks).flat_map(|track| fragment.of_track(track.number));
    let first = frames().map(|frame| frame.pts_ns).min()?;
    let last = frames().map(|frame| frame.pts_ns.saturating_add_unsigned(frame.duration_ns.unwrap_or(0))).max()?;
    Some((first, last.max(fragment.start_ns().saturating_add_unsigned(fragment.duration_ns()))))
}
