//! What a player may have before it is on disk: the parts of the fragment that is being built, for low-latency HLS.
//!
//! A preview and no promise: the fragment itself is played from the log once it is durable, and its parts are the same
//! frames at the same times. One producer at a time has the preview, the one that came last. Parts are made while somebody
//! asks for them, and for a while after. Memory is bounded; a fragment that outgrows its bound has no further parts.

use super::play::TIME_BASE_NS;
use crate::record::Number;
use bytes::Bytes;
use headwater_video::media::MS;
use headwater_video::mp4::{self, PartCutter, Timing};
use headwater_video::{Frame, Tracks};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How long a part is at the most, in milliseconds.
pub const PART_MS: u64 = 250;
/// Nobody is watching any more when nobody has asked for so long, in milliseconds.
const WATCHED_MS: u64 = 30_000;
/// Fragments whose parts are kept: a player may ask for those of the last two, and one is being built.
const FRAGMENTS_MAX: usize = 4;
/// Parts of a fragment: twice what 20 seconds have.
const PARTS_MAX: usize = 160;
/// Parts of a stream in memory, in bytes.
const BYTES_MAX: usize = 12 << 20;

#[derive(Debug, Default)]
pub struct Live {
    state: Mutex<State>,
    /// Until when parts are made, by the clock that never jumps.
    watched_until_ms: AtomicU64,
    /// Counts changes: a playlist that waits looks again.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has the preview; counts up.
    producer: u64,
    /// Producers at work; of them all one has the preview.
    producers: u32,
    /// Of the newest fragment that had a preview; counts up.
    newest: u64,
    fragments: VecDeque<Preview>,
    cutter: Option<PartCutter>,
    /// Frames of the fragment being built that the cutter has.
    fed: usize,
    delay_ms: u16,
}

/// A fragment's parts as far as they are known.
#[derive(Clone, Debug)]
pub struct Preview {
    id: u64,
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
        state.producers += 1;
        (state.cutter, state.fed) = (None, 0);
        // What was being built will not be whole.
        state.fragments.retain(|preview| preview.whole);
        state.producer
    }

    /// A producer ends.
    pub fn leave(&self, producer: u64) {
        let mut state = self.lock();
        state.producers = state.producers.saturating_sub(1);
        if state.producer == producer {
            (state.cutter, state.fed) = (None, 0);
            // All that was whole has come to the log by now, or never will.
            state.fragments.retain(|preview| preview.whole && preview.number.is_some());
        }
        drop(state);
        self.tell();
    }

    /// Whether somebody is sending.
    pub fn is_on(&self) -> bool {
        self.lock().producers > 0
    }

    /// Somebody wants parts.
    pub fn want(&self, now_ms: u64) {
        self.watched_until_ms.store(now_ms.saturating_add(WATCHED_MS), Ordering::Relaxed);
    }

    /// Whether parts are to be made. Those nobody asks for any more are forgotten.
    pub fn is_watched(&self, now_ms: u64) -> bool {
        match self.watched_until_ms.load(Ordering::Relaxed) {
            0 => false,
            until_ms if now_ms < until_ms => true,
            _ => {
                self.watched_until_ms.store(0, Ordering::Relaxed);
                let mut state = self.lock();
                (state.cutter, state.fed) = (None, 0);
                state.fragments = VecDeque::new();
                false
            }
        }
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
    /// preview: nobody could have seen it before it is durable. Gives the preview's id.
    pub fn end(&self, producer: u64, frames: &[Frame], offset_ms: i64) -> Option<u64> {
        let mut state = self.lock();
        if state.producer != producer || state.fed == 0 {
            return None;
        }
        state.feed(frames, offset_ms);
        state.fed = 0;
        if let Some(part) = state.cutter.as_mut().and_then(|cutter| cutter.finish(None)) {
            state.add(part, offset_ms);
        }
        let last = state.fragments.back_mut()?;
        last.whole = true;
        Some(last.id)
    }

    /// The fragment that was dropped, or could not be kept, has no preview.
    pub fn drop_building(&self, producer: u64) {
        let mut state = self.lock();
        if state.producer == producer {
            (state.cutter, state.fed) = (None, 0);
            state.fragments.retain(|preview| preview.whole);
        }
    }

    /// The log has it under this number.
    pub fn number(&self, preview: Option<u64>, number: Number) {
        let Some(id) = preview else { return };
        if let Some(preview) = self.lock().fragments.iter_mut().find(|preview| preview.id == id) {
            preview.number = Some(number);
        }
    }

    /// The log does not take it, or has it already.
    pub fn discard(&self, preview: Option<u64>) {
        if let Some(id) = preview {
            self.lock().fragments.retain(|preview| preview.id != id);
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
        self.newest += 1;
        let (id, tracks_of) = (self.newest, tracks.clone());
        let preview = Preview { id, tracks: tracks_of, start_ms, number: None, whole: false, parts: Vec::new() };
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
        if preview.parts.len() >= PARTS_MAX {
            self.cutter = None;
            return false;
        }
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
        let id = live.end(me, &frames, 0);
        live.number(id, 7);
        let preview = live.parts_of(7).unwrap();
        let pictures: usize =
            preview.parts.iter().map(|part| part.bytes.windows(7).filter(|w| *w == b"picture").count()).sum();
        assert_eq!((pictures, preview.whole), (25, true));
        assert_eq!(preview.parts.iter().map(|part| part.duration_ms).sum::<u64>(), 1000);
        assert_eq!(live.end(me, &frames, 0), None, "a fragment that came at once has no preview");
        assert!(live.behind(7).is_none());
    }

    /// The fault: every frame of a second on a clock of nanoseconds was a part, and each counted all before it.
    #[test]
    fn a_fragment_has_so_many_parts_and_no_more() {
        let live = Live::default();
        let mut track = tracks().0[0].clone();
        track.default_duration_ns = 1_000_000_000;
        let tracks = Arc::new(Tracks(vec![track]));
        let data = Bytes::from_static(b"picture");
        let frame = |at: i64| Frame { track: 1, pts_ns: at, duration_ns: None, keyframe: at == 0, data: data.clone() };
        let frames: Vec<Frame> = (0..20_000).map(frame).collect();
        let me = live.take_over();
        let began = std::time::Instant::now();
        live.feed(me, &tracks, &frames[..10_000], 0, 0);
        live.feed(me, &tracks, &frames, 0, 0);
        live.number(live.end(me, &frames, 0), 7);
        assert_eq!(live.parts_of(7).unwrap().parts.len(), PARTS_MAX);
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    }

    /// The fault: a preview was known by the time of its keyframe and the record by that of the picture shown first, so a
    /// fragment with leading pictures kept its preview without a number, and was listed as the newest long after.
    #[test]
    fn leading_pictures_do_not_hide_which_fragment_a_preview_is_of() {
        let (live, tracks) = (Live::default(), tracks());
        let frame = |ms: i64, keyframe| Frame {
            track: 1,
            pts_ns: ms * MS,
            duration_ns: None,
            keyframe,
            data: Bytes::from_static(b"picture"),
        };
        let me = live.take_over();
        for at in 0..3 {
            let start = 1000 * at + 80;
            let frames = [frame(start, true), frame(start - 40, false), frame(start + 500, false)];
            live.feed(me, &tracks, &frames, 0, 80);
            let id = live.end(me, &frames, 0);
            live.number(id, at as u64 + 1);
        }
        assert!(live.behind(3).is_none(), "all of them are in the log");
        assert!((1..=3).all(|number| live.parts_of(number).is_some()));
    }

    #[test]
    fn parts_are_made_while_somebody_asks_for_them() {
        let live = Live::default();
        assert!(!live.is_watched(5));
        live.want(5);
        assert!(live.is_watched(6) && live.is_watched(30_004) && !live.is_watched(30_005) && !live.is_watched(6));
    }
}
