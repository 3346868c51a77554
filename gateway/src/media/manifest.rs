//! A session's DASH manifest: a period a run of fragments that continue each other, in it an AdaptationSet a track.
//!
//! On the manifest's clock a recorded session begins at 0, a replay when it was asked for, and a live one is when its
//! fragments came by this box's clock, so that a player's idea of "now" fits even if the camera's clock is years off. A
//! period begins where its run began, though the window has left that behind: a live manifest must say the same each time.

use super::index::{Entry, Index};
use super::play::{self, TIME_BASE_NS};
use super::session::{Mode, Session, Shown};
use super::shape::{Kind, Refusal};
use super::stream::Camera;
use headwater_video::dash::{self, AdaptationSet, Addressing, Mpd, Period, Segment};
use headwater_video::media::MS;
use headwater_video::{Track, Tracks, codecs};
use std::sync::Arc;

/// What is said of sound, in bits a second: only what players compare renditions by, and there is one.
const AUDIO_BANDWIDTH: u64 = 128_000;
/// Ticks of a millisecond, and of what is added to all times in segments, in a manifest's time.
const TICKS_PER_MS: i64 = 90;
const TIME_BASE_MS: i64 = TIME_BASE_NS / MS;

/// Fragments one after another, and when their period begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub entries: Vec<Entry>,
    pub id: u64,
    /// On the manifest's clock, in milliseconds.
    pub starts_ms: u64,
    /// The producer's time of that moment.
    pub media_ms: i64,
}

/// The periods of what a session shows. The index is asked where the first one began.
pub fn runs(session: &Session, shown: &Shown, index: &Index) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut passed_ms = shown.begun_ms;
    for (at, (place, entry)) in shown.entries.iter().enumerate() {
        if at == 0 || entry.discontinuity {
            let starts_ms = match session.mode {
                Mode::OnDemand => passed_ms,
                Mode::Replay => session.issued.wall_ms.saturating_add(passed_ms),
                Mode::Live => 0,
            };
            let id = if session.mode == Mode::Live { entry.breaks.into() } else { *place };
            runs.push(Run { entries: Vec::new(), id, starts_ms, media_ms: entry.start_ms });
            if let (Mode::Live, Some(run)) = (session.mode, runs.last_mut()) {
                let first = began(index, *place, entry);
                run.starts_ms = first.server_ms.saturating_sub(u64::from(first.duration_ms));
                run.media_ms = first.start_ms;
            }
        }
        if let Some(run) = runs.last_mut() {
            run.entries.push(*entry);
        }
        passed_ms += u64::from(entry.duration_ms);
    }
    runs
}

/// The fragment that the run of this one began with.
fn began(index: &Index, ordinal: u64, entry: &Entry) -> Entry {
    let mut first = *entry;
    let mut at = ordinal;
    while !first.discontinuity
        && let Some(before) = at.checked_sub(1).and_then(|before| index.at(before))
    {
        (first, at) = (*before, at - 1);
    }
    first
}

/// The tracks that MP4 carries.
fn carried(tracks: &Tracks) -> impl Iterator<Item = (&Track, String)> {
    use headwater_video::Kind::{Audio, Video};
    let media = tracks.0.iter().filter(|track| matches!(track.kind, Video | Audio));
    media.filter_map(|track| Some((track, codecs::name(track).ok()?)))
}

/// What an AdaptationSet borrows.
struct Written {
    init: String,
    media: String,
    codec: String,
    size: Option<(u32, u32)>,
}

pub async fn manifest(
    camera: &Camera,
    session: &Session,
    shown: &Shown,
    runs: &[Run],
    token: &str,
    now_ms: u64,
) -> Result<String, Refusal> {
    let mut sets: Vec<(String, Vec<Written>)> = Vec::new();
    for run in runs {
        let Some(first) = run.entries.first() else { continue };
        let tracks: Arc<Tracks> = camera.tracks(first.head_id).await?;
        let written = carried(&tracks).map(|(track, codec)| Written {
            init: format!("getMP4InitFragment.mp4?Head={:016x}&Track={}&SessionToken={token}", first.head_id, track.number),
            media: format!("getMP4MediaFragment.mp4?Time=$Time$&Track={}&SessionToken={token}", track.number),
            codec,
            size: tracks.video().filter(|video| video.number == track.number).map(|video| (video.width, video.height)),
        });
        let written: Vec<Written> = written.collect();
        if written.is_empty() {
            return Err(Refusal::new(Kind::UnsupportedMediaType, "No track of the stream can be played from MP4"));
        }
        sets.push((run.id.to_string(), written));
    }
    let bandwidth = play::bits_a_second(&shown.entries).max(1);
    let periods = runs.iter().zip(&sets).map(|(run, (id, written))| Period {
        id,
        start_ns: run.starts_ms.saturating_mul(MS as u64),
        sets: written.iter().map(|set| adaptation_set(run, set, bandwidth)).collect(),
    });
    let mut out = String::new();
    dash::mpd(&mut out, &head(session, shown, now_ms), periods);
    Ok(out)
}

fn head(session: &Session, shown: &Shown, now_ms: u64) -> Mpd {
    let length_ms: u64 = shown.entries.iter().map(|(_, entry)| u64::from(entry.duration_ms)).sum();
    let longest_ms = shown.entries.iter().map(|(_, entry)| u64::from(entry.duration_ms)).max().unwrap_or(1000);
    let ns = |ms: u64| ms.saturating_mul(MS as u64);
    let kind = match session.mode {
        Mode::OnDemand => dash::Kind::Static { duration_ns: ns(length_ms) },
        Mode::Live | Mode::Replay => dash::Kind::Dynamic {
            availability_start_ms: 0,
            publish_ms: now_ms as i64,
            minimum_update_ns: ns(longest_ms.max(500)),
            time_shift_buffer_ns: Some(ns(length_ms)),
        },
    };
    Mpd { kind, min_buffer_ns: ns(longest_ms) }
}

fn adaptation_set<'a>(run: &'a Run, set: &'a Written, bandwidth: u64) -> AdaptationSet<'a, String, impl Iterator<Item = Segment> + use<'a>> {
    let segments = run.entries.iter().enumerate().map(|(at, entry)| {
        let next = run.entries.get(at + 1).map(|next| next.start_ms);
        let end_ms = next.filter(|next| *next > entry.start_ms).unwrap_or(entry.end_ms());
        Segment { start_ns: media_ns(entry.start_ms), duration_ns: media_ns(end_ms).saturating_sub(media_ns(entry.start_ms)) }
    });
    AdaptationSet {
        media_start_ns: media_ns(run.media_ms),
        init_uri: &set.init,
        codecs: &set.codec,
        size: set.size,
        bandwidth: if set.size.is_some() { bandwidth } else { AUDIO_BANDWIDTH },
        // By $Time$ no number is used, but ffmpeg 5.1 counts the timeline from it: with 1 it leaves out the first segment.
        addressing: Addressing::Template { media: &set.media, start_number: 0 },
        segments,
    }
}

fn media_ns(ms: i64) -> u64 {
    u64::try_from(ms.saturating_add(TIME_BASE_MS)).unwrap_or(0).saturating_mul(MS as u64)
}

/// The fragment's start that a `$Time$` means.
pub fn start_ms(time: u64) -> Option<i64> {
    let time = i64::try_from(time).ok()?;
    (time % TICKS_PER_MS == 0).then_some(time / TICKS_PER_MS - TIME_BASE_MS)
}
