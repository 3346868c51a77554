//! GetHLSStreamingSessionURL and GetDASHStreamingSessionURL: a URL that a player can open, checked as AWS documents it.

use super::Call;
use crate::http::Body;
use crate::media::index::{By, Index};
use crate::media::session::{Breaks, Issued, Mode, Protocol, Session};
use crate::media::shape::{FragmentSelector, Kind, Refusal, SelectorType, StreamRef, answer, read};
use crate::media::stream::Camera;
use headwater_video::codecs;
use http::Response;
use serde::Deserialize;

/// How long a session may last, in seconds.
const EXPIRES_S: std::ops::RangeInclusive<u32> = 300..=43_200;
/// Fragments of a playlist or manifest.
const FRAGMENTS: std::ops::RangeInclusive<u32> = 1..=5_000;
/// The same unless the request says: of what is live, and of what was recorded.
const LIVE_FRAGMENTS: u16 = 5;
const RECORDED_FRAGMENTS: u16 = 1_000;
/// Longest range, in milliseconds: a day.
pub const RANGE_MS_MAX: i64 = 86_400_000;
/// A stream is live if a fragment came within so many milliseconds.
const LIVE_MS: u64 = 30_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    #[serde(flatten)]
    stream: StreamRef,
    #[serde(default = "live")]
    playback_mode: PlaybackMode,
    #[serde(rename = "HLSFragmentSelector", alias = "DASHFragmentSelector")]
    selector: Option<Selector>,
    container_format: Option<String>,
    discontinuity_mode: Option<DiscontinuityMode>,
    display_fragment_timestamp: Option<Display>,
    display_fragment_number: Option<Display>,
    expires: Option<u32>,
    #[serde(alias = "MaxManifestFragmentResults")]
    max_media_playlist_fragment_results: Option<u32>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum PlaybackMode {
    Live,
    LiveReplay,
    OnDemand,
}

fn live() -> PlaybackMode {
    PlaybackMode::Live
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum DiscontinuityMode {
    Always,
    Never,
    OnDiscontinuity,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Display {
    Always,
    Never,
}

/// Both members of a selector may be missing, of a live session.
#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Selector {
    fragment_selector_type: Option<SelectorType>,
    timestamp_range: Option<crate::media::shape::TimestampRange>,
}

pub async fn hls(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let url = url(call, Protocol::Hls, "hls/v1/getHLSMasterPlaylist.m3u8").await?;
    answer(&serde_json::json!({ "HLSStreamingSessionURL": url }))
}

pub async fn dash(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let url = url(call, Protocol::Dash, "dash/v1/getDASHManifest.mpd").await?;
    answer(&serde_json::json!({ "DASHStreamingSessionURL": url }))
}

async fn url(call: &Call<'_>, protocol: Protocol, page: &str) -> Result<String, Refusal> {
    let request: Request = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    let mut session = request.session(protocol, &camera, call.media.issued())?;
    check_retention(call, &camera)?;
    session.from = session.from.max(first_of_live(&session, &*camera.archive.index().await?)?);
    let mut place = call.media.inner.readers.place_soon().await?;
    let shown = crate::media::sessions::shown(&camera, &session, &session.issued, 0, &mut place).await?;
    let none = || Refusal::new(Kind::NotFound, "There is no fragment of the requested time");
    let head = shown.entries.first().map(|(_, entry)| entry.head_id).ok_or_else(none)?;
    let tracks = camera.tracks(head).await?;
    codecs::names(&tracks).map_err(headwater_video::mp4::Mp4Error::from)?;
    let token = session.seal(&call.media.session_key().await?);
    Ok(format!("{}/{page}?SessionToken={token}", call.endpoint()))
}

/// Who keeps nothing has nothing to play but by plain URL: so AWS has it.
pub fn check_retention(call: &Call<'_>, camera: &Camera) -> Result<(), Refusal> {
    match call.media.settings(camera.name()).retention_hours {
        Some(0) => Err(Refusal::new(
            Kind::NoDataRetention,
            "The stream keeps no data: raise DataRetentionInHours with UpdateDataRetention",
        )),
        _ => Ok(()),
    }
}

/// A live session sees nothing older than what it begins with.
fn first_of_live(session: &Session, index: &Index) -> Result<i64, Refusal> {
    if session.mode != Mode::Live {
        return Ok(i64::MIN);
    }
    let newest = index.last().filter(|last| last.server_ms.saturating_add(LIVE_MS) >= session.issued.wall_ms);
    newest.ok_or_else(|| {
        Refusal::new(Kind::NotFound, "No fragment came within the last 30 seconds: the stream is not live")
    })?;
    let first = index.all().rev().take(usize::from(session.fragments_max)).last();
    Ok(first.map_or(0, |(_, entry)| entry.number as i64))
}

impl Request {
    fn session(&self, protocol: Protocol, camera: &Camera, issued: Issued) -> Result<Session, Refusal> {
        self.check_format(protocol)?;
        let selector = self.selector.unwrap_or_default();
        let by = selector.fragment_selector_type.map_or(By::Server, By::from);
        let (mode, from, to) = self.range(selector, by, issued.wall_ms as i64)?;
        let breaks = match (self.discontinuity_mode, by) {
            _ if protocol == Protocol::Dash => Breaks::OnDiscontinuity,
            (Some(DiscontinuityMode::Always), _) | (None, By::Server) => Breaks::Always,
            (Some(DiscontinuityMode::Never), _) | (None, By::Producer) => Breaks::Never,
            (Some(DiscontinuityMode::OnDiscontinuity), _) => Breaks::OnDiscontinuity,
        };
        let expires = self.expires.unwrap_or(*EXPIRES_S.start());
        if !EXPIRES_S.contains(&expires) {
            return Err(Refusal::invalid("Expires is 300 to 43200 seconds"));
        }
        let most = match (self.max_media_playlist_fragment_results, mode) {
            (Some(most), _) if !FRAGMENTS.contains(&most) => {
                return Err(Refusal::invalid(
                    "A playlist has 1 to 5000 fragments: MaxMediaPlaylistFragmentResults, MaxManifestFragmentResults",
                ));
            }
            (Some(most), _) => most as u16,
            (None, Mode::OnDemand) => RECORDED_FRAGMENTS,
            (None, Mode::Live | Mode::Replay) => LIVE_FRAGMENTS,
        };
        Ok(Session {
            stream: camera.name().to_owned(),
            stream_id: camera.stream().id,
            protocol,
            mode,
            by,
            breaks,
            dates: self.display_fragment_timestamp == Some(Display::Always),
            fragments_max: most,
            from,
            to,
            lasts_s: expires as u16,
            issued,
        })
    }

    fn check_format(&self, protocol: Protocol) -> Result<(), Refusal> {
        match self.container_format.as_deref() {
            None | Some("FRAGMENTED_MP4") => {}
            Some("MPEG_TS") => {
                return Err(Refusal::new(
                    Kind::UnsupportedMediaType,
                    "ContainerFormat MPEG_TS is not offered: use FRAGMENTED_MP4",
                ));
            }
            Some(other) => return Err(Refusal::invalid(format!("ContainerFormat {other:?} is not FRAGMENTED_MP4"))),
        }
        let shows = self.display_fragment_timestamp == Some(Display::Always)
            || self.display_fragment_number == Some(Display::Always);
        if protocol == Protocol::Dash && shows {
            return Err(Refusal::invalid(
                "A manifest shows no fragment's time or number here: leave DisplayFragmentTimestamp and DisplayFragmentNumber at NEVER",
            ));
        }
        Ok(())
    }

    fn range(&self, selector: Selector, by: By, now_ms: i64) -> Result<(Mode, i64, i64), Refusal> {
        let range = selector.timestamp_range.unwrap_or_default();
        let (start, end) = (range.start_timestamp.map(|at| at.0), range.end_timestamp.map(|at| at.0));
        let mode = match self.playback_mode {
            PlaybackMode::Live if start.is_some() || end.is_some() => {
                return Err(Refusal::invalid("TimestampRange is not for PlaybackMode LIVE"));
            }
            PlaybackMode::Live => return Ok((Mode::Live, i64::MIN, i64::MAX)),
            PlaybackMode::LiveReplay => Mode::Replay,
            PlaybackMode::OnDemand => Mode::OnDemand,
        };
        if selector.fragment_selector_type.is_none() {
            return Err(Refusal::invalid(
                "FragmentSelectorType and TimestampRange are required unless PlaybackMode is LIVE",
            ));
        }
        let start = start.ok_or_else(|| Refusal::invalid("StartTimestamp is required unless PlaybackMode is LIVE"))?;
        match (mode, end) {
            (Mode::Replay, None) => Ok((mode, start, i64::MAX)),
            (_, None) => Err(Refusal::invalid("EndTimestamp is required for PlaybackMode ON_DEMAND")),
            (_, Some(end)) => check_range(by, start, end, now_ms).map(|()| (mode, start, end)),
        }
    }
}

fn check_range(by: By, start: i64, end: i64, now_ms: i64) -> Result<(), Refusal> {
    match end.checked_sub(start) {
        Some(1..=RANGE_MS_MAX) if by == By::Server && end > now_ms => {
            Err(Refusal::invalid("EndTimestamp of SERVER_TIMESTAMP is in the past"))
        }
        Some(1..=RANGE_MS_MAX) => Ok(()),
        _ => Err(Refusal::invalid("EndTimestamp is later than StartTimestamp, by 24 hours at the most")),
    }
}

/// The range of a clip: as of a recorded session.
pub fn clip_range(selector: &FragmentSelector, now_ms: i64) -> Result<(By, i64, i64), Refusal> {
    let (by, start, end) = selector.range()?;
    check_range(by, start, end, now_ms).map(|()| (by, start, end))
}
