//! What a player may have before it is on disk: the parts of the fragment that is being built, for low-latency HLS.
//!
//! A preview and no promise: the fragment itself is played from the log once it is durable, and its parts are the same
//! frames at the same times. One producer at a time has the preview, the one that came last. Memory is bounded; a fragment
//! that outgrows its bound has no further parts.

use super::play::TIME_BASE_NS;
use crate::record::Number;
use bytes::Bytes;
use headwater_video::media::MS;
use headwater_video::mp4::{self, PartCutter, Timing};
use headwater_video::{Frame, Tracks};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How long a part is at the most, in milliseconds.
pub const PART_MS: u64 = 250;
/// Fragments whose parts are kept: a player may ask for those of the last two, and one is being built.
const FRAGMENTS_MAX: usize = 4;
/// Parts of a stream in memory, in bytes.
const BYTES_MAX: usize = 12 << 20;

#[derive(Debug, Default)]
pub struct Live {
    state: Mutex<State>,
    /// Counts changes: a playlist that waits looks again.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has the preview; counts up.
    producer: u64,
    fragments: VecDeque<Preview>,
    cutter: Option<PartCutter>,
    /// Frames of the fragment being built that the cutter has.
    fed: usize,
    delay_ms: u16,
}

/// A fragment's parts as far as they are known.
#[derive(Clone, Debug)]
pub struct Preview {
    pub tracks: Arc<Tracks>,
    /// By the producer's clock.
    pub start_ms: i64,
    /// Known once the log has it.
    pub number: Option<Number>,
    /// No further part will come.
    pub whole: bool,
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug)]
pub struct Part {
    pub bytes: Bytes,
    pub duration_ms: u64,
    pub independent: bool,
}

impl Live {
    /// A producer begins; it has the preview from now on.
    pub fn take_over(&self) -> u64 {
        let mut state = self.lock();
        state.producer += 1;
        (state.cutter, state.fed) = (None, 0);
        // What was being built will not be whole.
        state.fragments.retain(|preview| preview.whole);
        state.producer
    }

    /// A producer ends.
    pub fn leave(&self, producer: u64) {
        let mut state = self.lock();
        if state.producer == producer {
            (state.cutter, state.fed) = (None, 0);
            state.fragments.retain(|preview| preview.whole);
        }
        drop(state);
        self.tell();
    }

    /// Whether somebody is sending.
    pub fn is_on(&self) -> bool {
        self.lock().cutter.is_some()
    }

    /// The frames of the fragment that is being built; those known already are passed over.
    pub fn feed(&self, producer: u64, tracks: &Arc<Tracks>, frames: &[Frame], offset_ms: i64, delay_ms: u16) {
        let mut state = self.lock();
        if state.producer != producer || frames.len() <= state.fed {
            return;
        }
        if state.fed == 0 {
            let start_ms = (frames[0].pts_ns / MS).saturating_add(offset_ms);
            state.begin(tracks, start_ms, delay_ms);
        }
        let grown = state.feed(frames, offset_ms);
        drop(state);
        if grown {
            self.tell();
        }
    }

    /// The fragment is whole, and these are all of its frames; `offset_ms` as before. One that came whole at once has no
    /// preview: nobody could have seen it before it is durable.
    pub fn end(&self, producer: u64, frames: &[Frame], offset_ms: i64) {
        let mut state = self.lock();
        if state.producer != producer || state.fed == 0 {
            return;
        }
        state.feed(frames, offset_ms);
        state.fed = 0;
        if let Some(part) = state.cutter.as_mut().and_then(|cutter| cutter.finish(None)) {
            state.add(part, offset_ms);
        }
        if let Some(last) = state.fragments.back_mut() {
            last.whole = true;
        }
    }

    /// The fragment that was dropped, or could not be kept, has no preview.
    pub fn drop_building(&self, producer: u64) {
        let mut state = self.lock();
        if state.producer == producer {
            (state.cutter, state.fed) = (None, 0);
            state.fragments.retain(|preview| preview.whole);
        }
    }

    /// The log has the oldest whole fragment that had no number yet.
    pub fn number(&self, producer: u64, start_ms: i64, number: Number) {
        let mut state = self.lock();
        if state.producer == producer
            && let Some(preview) = state.fragments.iter_mut().find(|p| p.number.is_none() && p.start_ms == start_ms)
        {
            preview.number = Some(number);
        }
    }

    /// Something is durable that was not, or a part has come.
    pub fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn parts_of(&self, number: Number) -> Option<Preview> {
        self.lock().fragments.iter().find(|preview| preview.number == Some(number)).cloned()
    }

    /// The first fragment that is not durable yet, when `newest` is the newest that is.
    pub fn behind(&self, newest: Number) -> Option<Preview> {
        let state = self.lock();
        state.fragments.iter().find(|preview| preview.number.is_none_or(|number| number > newest)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, tracks: &Arc<Tracks>, start_ms: i64, delay_ms: u16) {
        while self.fragments.len() >= FRAGMENTS_MAX {
            self.fragments.pop_front();
        }
        let preview = Preview { tracks: tracks.clone(), start_ms, number: None, whole: false, parts: Vec::new() };
        self.fragments.push_back(preview);
        self.delay_ms = delay_ms;
        self.cutter = Some(PartCutter::new(tracks, PART_MS * MS as u64));
    }

    /// Cuts what is new of the fragment's frames into parts; whether there are more of them now.
    fn feed(&mut self, frames: &[Frame], offset_ms: i64) -> bool {
        let new: Vec<Frame> = frames.get(self.fed..).unwrap_or_default().to_vec();
        self.fed = frames.len();
        let mut grown = false;
        for frame in new {
            let part = self.cutter.as_mut().and_then(|cutter| cutter.push(frame));
            if let Some(part) = part {
                grown |= self.add(part, offset_ms);
            }
        }
        grown
    }

    fn add(&mut self, part: mp4::Part, offset_ms: i64) -> bool {
        let held: usize = self.fragments.iter().flat_map(|preview| &preview.parts).map(|part| part.bytes.len()).sum();
        let Some(preview) = self.fragments.back_mut() else { return false };
        let offset_ns = offset_ms.saturating_mul(MS).saturating_add(TIME_BASE_NS);
        let timing = Timing { offset_ns, decode_delay_ns: u64::from(self.delay_ms) * MS as u64, ..part.timing };
        // What MP4 does not carry has no preview.
        let Ok(bytes) = mp4::part(&preview.tracks, &part.frames, preview.parts.len() as u32, timing) else {
            return false;
        };
        if held + bytes.len() > BYTES_MAX {
            return false;
        }
        let duration_ms = part.duration_ns / MS as u64;
        preview.parts.push(Part { bytes: bytes.into(), duration_ms, independent: part.independent });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_video::{Codec, Kind, Track};

    fn tracks() -> Arc<Tracks> {
        // The shortest avcC there is: one SPS, one PPS.
        let private = Bytes::from_static(&[1, 66, 0, 30, 255, 225, 0, 4, 103, 66, 0, 30, 1, 0, 1, 104]);
        Arc::new(Tracks(vec![Track {
            number: 1,
            kind: Kind::Video,
            codec: Codec::H264,
            private,
            name: String::new(),
            width: 64,
            height: 36,
            sample_rate: 0,
            channels: 0,
            default_duration_ns: 40_000_000,
            codec_delay_ns: 0,
            seek_preroll_ns: 0,
        }]))
    }

    /// The fault: what came in one read with the next fragment's keyframe was in no part, so a low-latency player missed the
    /// last pictures of a fragment. The cause: only frames of the fragment being built were fed.
    #[test]
    fn frames_that_come_with_the_end_of_their_fragment_are_in_its_parts() {
        let (live, tracks) = (Live::default(), tracks());
        let frame = |at: i64| Frame {
            track: 1,
            pts_ns: at * 40 * MS,
            duration_ns: None,
            keyframe: at == 0,
            data: Bytes::from_static(b"picture"),
        };
        let frames: Vec<Frame> = (0..25).map(frame).collect();
        let me = live.take_over();
        live.feed(me, &tracks, &frames[..20], 0, 0);
        live.end(me, &frames, 0);
        live.number(me, 0, 7);
        let preview = live.parts_of(7).unwrap();
        let pictures: usize =
            preview.parts.iter().map(|part| part.bytes.windows(7).filter(|w| *w == b"picture").count()).sum();
        assert_eq!((pictures, preview.whole), (25, true));
        assert_eq!(preview.parts.iter().map(|part| part.duration_ms).sum::<u64>(), 1000);
        live.end(me, &frames, 0);
        assert!(live.behind(7).is_none(), "a fragment that came at once has no preview");
    }
}
