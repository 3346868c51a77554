//! What a player gets with a session's token: `/hls/v1/...` and `/dash/v1/...` on the AWS port, by AWS's names.
//!
//! Who has the URL may watch, as with AWS: nobody signs these requests, and pages of any origin may make them. They see the
//! fragments of their session's range and nothing else of the gateway.

use super::Media;
use super::archive::Select;
use super::index::{By, Entry};
use super::manifest;
use super::pages::Query;
use super::play::{self, Links, Shape};
use super::readers::Place;
use super::session::{Breaks, Issued, Mode, Protocol, Session, Shown};
use super::shape::{Kind, Refusal};
use super::stream::Camera;
use crate::http::Body;
use crate::log::{Batch, Table};
use bytes::Bytes;
use headwater_video::hls;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL,
    CONTENT_TYPE,
};
use http::{HeaderValue, Method, Response, StatusCode, request};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;

const PLAYLIST: &str = "application/x-mpegURL";
const MANIFEST: &str = "application/dash+xml";
const MP4: &str = "video/mp4";
/// Of the table `Media`: what session tokens are signed with.
const KEY_ROW: &[u8] = b"k";
const KEY_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Master,
    Playlist,
    Manifest,
    Init,
    Fragment,
}

fn page(path: &str) -> Option<(Protocol, Page)> {
    let (protocol, file) = match path.strip_prefix("/hls/v1/") {
        Some(file) => (Protocol::Hls, file),
        None => (Protocol::Dash, path.strip_prefix("/dash/v1/")?),
    };
    let page = match (protocol, file) {
        (Protocol::Hls, "getHLSMasterPlaylist.m3u8") => Page::Master,
        (Protocol::Hls, "getHLSMediaPlaylist.m3u8") => Page::Playlist,
        (Protocol::Dash, "getDASHManifest.mpd") => Page::Manifest,
        (_, "getMP4InitFragment.mp4") => Page::Init,
        (_, "getMP4MediaFragment.mp4") => Page::Fragment,
        _ => return None,
    };
    Some((protocol, page))
}

pub fn is_page(method: &Method, path: &str) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) && page(path).is_some()
}

impl Media {
    /// The answer to a request of a player; `None` if the path is no session's.
    pub async fn session_page(&self, head: &request::Parts) -> Option<Response<Body>> {
        let page = page(head.uri.path()).filter(|_| is_page(&head.method, head.uri.path()))?;
        let mut response = if head.method == Method::OPTIONS {
            let mut response = Response::new(Body::from(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        } else {
            let query = Query(head.uri.query().unwrap_or_default());
            self.show(page, &query).await.unwrap_or_else(|refusal| {
                self.inner.metrics.reject("video", refusal.kind.label());
                refusal.page()
            })
        };
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, OPTIONS"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        Some(response)
    }

    async fn show(&self, (protocol, page): (Protocol, Page), query: &Query<'_>) -> Result<Response<Body>, Refusal> {
        let token =
            query.text("SessionToken").ok_or_else(|| denied("a SessionToken is required: ask for a new URL"))?;
        let key =
            self.session_key_if_any()?.ok_or_else(|| denied(&super::session::SessionError::Foreign.to_string()))?;
        let now = self.issued();
        let session = Session::open(&key, token, &now).map_err(|error| denied(&error.to_string()))?;
        if session.protocol != protocol {
            return Err(denied("the SessionToken is of another kind of session"));
        }
        let camera = self.camera(&session.stream)?;
        if camera.stream().id != session.stream_id {
            return Err(Refusal::new(Kind::NotFound, "The stream of this session was deleted"));
        }
        match page {
            Page::Master => {
                let mut place = self.inner.readers.place_soon().await?;
                let entries = shown(&camera, &session, &now, 0, &mut place).await?.entries;
                let (_, last) = entries.last().ok_or_else(nothing)?;
                let tracks = camera.tracks(last.head_id).await?;
                let link = format!("getHLSMediaPlaylist.m3u8?SessionToken={token}");
                Ok(text(PLAYLIST, play::master(&tracks, play::bits_a_second(&entries), &link)?))
            }
            Page::Playlist => {
                let mut place = self.inner.readers.place_soon().await?;
                let written = playlist(&camera, &session, token, &now, &mut place).await?;
                Ok(place.keep(text(PLAYLIST, written)))
            }
            Page::Manifest => {
                let mut place = self.inner.readers.place_soon().await?;
                // Its fragments once more, in runs.
                let each = Links::Session(token).bytes_a_fragment() + size_of::<Entry>();
                let shown = shown(&camera, &session, &now, each, &mut place).await?;
                let runs = manifest::runs(&session, &shown, &*camera.archive.index().await?);
                if runs.is_empty() {
                    return Err(nothing());
                }
                let written = manifest::manifest(&camera, &session, &shown, &runs, token, now.wall_ms).await?;
                Ok(place.keep(text(MANIFEST, written)))
            }
            Page::Init => {
                let head = query.text("Head").and_then(|id| u64::from_str_radix(id, 16).ok());
                let head =
                    head.ok_or_else(|| Refusal::invalid("Head names the init segment, as the playlist has it"))?;
                Ok(media(match query.number("Track")? {
                    Some(track) => camera.track_init(head, track).await?,
                    None => camera.init_segment(head).await?,
                }))
            }
            Page::Fragment => {
                let mut place = self.inner.readers.place_soon().await?;
                let segment = fragment(&camera, &session, query, &mut place).await?;
                Ok(place.keep(media(segment)))
            }
        }
    }

    pub(super) fn issued(&self) -> Issued {
        Issued::new(self.inner.clock.now(), self.inner.clock.boot_id())
    }

    /// The key of sessions, made by whoever needs it first.
    pub(super) async fn session_key(&self) -> Result<hmac::Key, Refusal> {
        let _one = self.inner.changing.lock().await;
        if let Some(key) = self.session_key_if_any()? {
            return Ok(key);
        }
        let mut bytes = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| Refusal::new(Kind::Internal, "The system has no randomness for a session's key"))?;
        let mut batch = Batch::new();
        batch.put_state(Table::Media, KEY_ROW.to_vec(), Some(bytes.to_vec().into()));
        self.commit(&mut batch).await?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }

    fn session_key_if_any(&self) -> Result<Option<hmac::Key>, Refusal> {
        let row = self.inner.log.state(Table::Media, KEY_ROW);
        match row {
            None => Ok(None),
            Some(row) if row.len() == KEY_BYTES => Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, &row))),
            Some(_) => Err(Refusal::new(Kind::Internal, "The key of sessions is damaged")),
        }
    }
}

/// What a player may have now, once there is room for it and for `each` bytes of every fragment.
pub async fn shown(
    camera: &Camera,
    session: &Session,
    now: &Issued,
    each: usize,
    place: &mut Place,
) -> Result<Shown, Refusal> {
    let Session { mode, by, from, to, .. } = *session;
    match mode {
        Mode::Live => {
            place.hold(session.most() * (size_of::<(u64, Entry)>() + each)).await?;
            Ok(session.live(&*camera.archive.index().await?))
        }
        Mode::Replay | Mode::OnDemand => {
            let what = Select { by, from_ms: from, to_ms: to, showing: false };
            Ok(session.recorded(camera.selected(what, each, place).await?, now))
        }
    }
}

async fn playlist(
    camera: &Arc<Camera>,
    session: &Session,
    token: &str,
    now: &Issued,
    place: &mut Place,
) -> Result<String, Refusal> {
    let links = Links::Session(token);
    let shown = shown(camera, session, now, links.bytes_a_fragment(), place).await?;
    if shown.entries.is_empty() {
        return Err(nothing());
    }
    let shape = Shape {
        kind: if session.mode == Mode::OnDemand { hls::Kind::Vod } else { hls::Kind::Live },
        ended: shown.ended,
        breaks: session.breaks != Breaks::Never,
        dates: session.dates.then_some(session.by),
    };
    let target_s = match session.mode {
        Mode::OnDemand => 1,
        Mode::Live | Mode::Replay => camera.target_s(play::longest_s(&shown.entries)),
    };
    Ok(play::playlist(&shown.entries, shape, links, target_s))
}

async fn fragment(
    camera: &Camera,
    session: &Session,
    query: &Query<'_>,
    place: &mut Place,
) -> Result<Vec<u8>, Refusal> {
    let gone = || Refusal::new(Kind::NotFound, "The fragment is not of this session, or not there any more");
    let number: Option<u64> = match session.protocol {
        Protocol::Hls => query.number("FragmentNumber")?,
        Protocol::Dash => {
            let start = query.number("Time")?.and_then(manifest::start_ms).ok_or_else(gone)?;
            let what = Select { by: By::Producer, from_ms: start, to_ms: start, showing: false };
            let found = camera.selected(what, 0, place).await?;
            let mut fits = found.iter().map(|(_, entry)| entry).filter(|entry| session.covers(entry));
            // Of what a producer sent again a recorded session has the first, a live one the last.
            let fits = if session.mode == Mode::Live { fits.next_back() } else { fits.next() };
            fits.map(|entry| entry.number)
        }
    };
    let found = camera.archive.entry(number.ok_or_else(gone)?).await?;
    let (ordinal, entry, next) = found.filter(|(_, entry, _)| session.covers(entry)).ok_or_else(gone)?;
    match query.number("Track")? {
        Some(track) => camera.track_segment(&entry, next.as_ref(), ordinal as u32, track, place).await,
        None => camera.media_segment(entry.number, place).await,
    }
}

fn denied(says: &str) -> Refusal {
    Refusal::new(Kind::AccessDenied, says)
}

fn nothing() -> Refusal {
    Refusal::new(Kind::NotFound, "Nothing is recorded of the session's time")
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn media(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(MP4, body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=300"));
    response
}
