//! Video by plain URL on the console's port: what the player page asks for, and anybody with a browser or ffplay.
//!
//! `/video/streams`, and below `/video/NAME/`: `live.m3u8`, `playlist.m3u8`, `master.m3u8`, `init/`, `fragment/`, `part/`,
//! `clip.mp4`, `image.jpg`, `timeline`, `marks`. Times are milliseconds since 1970, by the producer's clock. The console has
//! judged who may ask.

use super::Media;
use super::archive::Select;
use super::clip;
use super::index::{self, By};
use super::marks::NewMark;
use super::pictures::{Format, Wanted};
use super::play::{self, LIVE_FRAGMENTS, Links, Shape};
use super::send::SendRange;
use super::shape::{Kind, Refusal, json_response};
use super::stream::Camera;
use crate::http::{Answering, Body, Guest, Input, Wants};
use bytes::Bytes;
use headwater_video::{codecs, hls};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Response, request};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const PLAYLIST: &str = "application/vnd.apple.mpegurl";
const MP4: &str = "video/mp4";
/// Ranges of a timeline.
const RANGES_MAX: usize = 2_000;
const BODY_BYTES_MAX: usize = 16 << 10;
/// Somebody is sending if the newest fragment is not older than this, in milliseconds, or one is being built.
const LIVE_MS: u64 = 30_000;
/// A blocked playlist is answered after so many target durations at the latest.
const BLOCKED_TARGETS_MAX: u64 = 3;

/// Video as a guest of the console.
pub struct ConsoleDoor(pub Media);

impl Guest for ConsoleDoor {
    fn wants(&self, method: &Method, path: &str) -> Option<Wants> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let writes = matches!(*method, Method::POST | Method::DELETE) && path.contains("/marks");
        let sends = *method == Method::POST && path.ends_with("/send");
        (path.starts_with("/video/") && (reads || writes || sends)).then_some(Wants::Whole(BODY_BYTES_MAX))
    }

    fn answer(&self, head: request::Parts, input: Input) -> Answering<'_> {
        Box::pin(async move {
            let body = match input {
                Input::Whole(body) => body,
                Input::Stream(_) => Default::default(),
            };
            let mut response = self.0.page(&head, &body).await.unwrap_or_else(|refusal| {
                self.0.inner.metrics.reject("video", refusal.kind.label());
                refusal.page()
            });
            response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
            response
        })
    }
}

/// What stands behind the question mark.
pub struct Query<'a>(pub &'a str);

impl Query<'_> {
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let wrong = || Refusal::invalid(format!("{name} is a number, as in ?{name}=1767225600000"));
        self.text(name).map(|text| text.parse().map_err(|_| wrong())).transpose()
    }

    fn range(&self) -> Result<(i64, i64), Refusal> {
        let (from, to) = (self.number("from")?.unwrap_or(i64::MIN), self.number("to")?.unwrap_or(i64::MAX));
        if to < from { Err(Refusal::invalid("`to` is before `from`")) } else { Ok((from, to)) }
    }
}

impl Media {
    async fn page(&self, head: &request::Parts, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let path = head.uri.path().strip_prefix("/video/").unwrap_or_default();
        let query = Query(head.uri.query().unwrap_or_default());
        if path == "streams" {
            return self.streams_page().await;
        }
        let (name, what) = path.split_once('/').unwrap_or((path, ""));
        let camera = self.camera(&decode(name))?;
        let (folder, file) = what.split_once('/').unwrap_or(("", what));
        match (folder, file) {
            ("", "timeline") => self.timeline(&camera, &query).await,
            ("", "live.m3u8") => self.live(&camera, &query).await,
            ("", "playlist.m3u8") => self.recorded(&camera, &query).await,
            ("", "master.m3u8") => master(&camera).await,
            ("", "clip.mp4") => {
                let (from, to) = query.range()?;
                clip::respond(self, camera, (from, to), head.method == Method::HEAD).await
            }
            ("", "image.jpg") => self.image(&camera, &query).await,
            ("", "marks") => self.marks_page(camera.name(), head, &query, body).await,
            ("marks", id) if head.method == Method::DELETE => {
                self.unmark(camera.name(), id).await?;
                Ok(json_response("{}\n".into()))
            }
            ("", "send") => send_page(self, camera.name(), head, body).await,
            ("init", file) => {
                let id =
                    file.strip_suffix(".mp4").and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or_else(nothing)?;
                Ok(media(camera.init_segment(id).await?))
            }
            ("fragment", file) => {
                let number = file.strip_suffix(".m4s").and_then(|n| n.parse().ok()).ok_or_else(nothing)?;
                let mut place = self.inner.readers.place_soon().await?;
                let segment = camera.media_segment(number, &mut place).await?;
                Ok(place.keep(media(segment)))
            }
            ("part", file) => self.part_page(&camera, file).await,
            _ => Err(nothing()),
        }
    }

    async fn streams_page(&self) -> Result<Response<Body>, Refusal> {
        let now_ms = self.inner.clock.now().wall_ms;
        let mut streams = Vec::new();
        for camera in self.cameras() {
            streams.push(row(&camera, now_ms).await?);
        }
        Ok(json_response(serde_json::json!({ "now_ms": now_ms, "streams": streams }).to_string()))
    }

    async fn timeline(&self, camera: &Camera, query: &Query<'_>) -> Result<Response<Body>, Refusal> {
        let (from, to) = query.range()?;
        let mut place = self.inner.readers.place_soon().await?;
        let shown = camera.selected(Select::showing(from, to), 0, &mut place).await?;
        let ranges = index::ranges(shown.iter().map(|(_, entry)| entry), RANGES_MAX);
        let marks = self.marks(camera.name(), from, to)?;
        Ok(place.keep(json_response(serde_json::json!({ "ranges": ranges, "marks": marks }).to_string())))
    }

    /// rfc8216bis 6.2.5.2: a request for what is not there yet waits for it.
    async fn live(&self, camera: &Arc<Camera>, query: &Query<'_>) -> Result<Response<Body>, Refusal> {
        if query.text("ll") == Some("0") {
            let entries = play::newest(&*camera.archive.index().await?, LIVE_FRAGMENTS);
            let target_s = camera.target_s(play::longest_s(&entries));
            let shape = Shape { kind: hls::Kind::Live, ended: false, breaks: true, dates: Some(By::Producer) };
            return Ok(text(PLAYLIST, play::playlist(&entries, shape, Links::Plain, target_s)));
        }
        let wanted: Option<u64> = query.number("_HLS_msn")?;
        let part: Option<usize> = query.number("_HLS_part")?;
        camera.live.want(self.inner.clock.now().mono_ms);
        let mut changes = camera.live.watch();
        let look = async {
            loop {
                changes.borrow_and_update();
                let entries = play::newest(&*camera.archive.index().await?, LIVE_FRAGMENTS);
                let next = entries.last().map_or(0, |(ordinal, _)| ordinal + 1);
                let newest = entries.last().map_or(0, |(_, entry)| entry.number);
                let parts = camera.live.behind(newest).map_or(0, |preview| preview.parts.len());
                let there = match (wanted, part) {
                    (Some(msn), Some(part)) => msn < next || (msn == next && part < parts),
                    (Some(msn), None) => msn < next,
                    (None, _) => true,
                };
                if wanted.is_some_and(|msn| msn > next + 2) {
                    return Err(Refusal::invalid("_HLS_msn is too far ahead"));
                }
                if there || changes.changed().await.is_err() {
                    return Ok::<_, Refusal>(entries);
                }
            }
        };
        let bound = Duration::from_secs(BLOCKED_TARGETS_MAX * camera.target_s(1));
        let entries = match timeout(bound, look).await {
            Ok(entries) => entries?,
            Err(_) => play::newest(&*camera.archive.index().await?, LIVE_FRAGMENTS),
        };
        let target_s = camera.target_s(play::longest_s(&entries));
        Ok(text(PLAYLIST, play::low_latency(camera, &entries, target_s)))
    }

    async fn part_page(&self, camera: &Camera, file: &str) -> Result<Response<Body>, Refusal> {
        let name = file.strip_suffix(".m4s").and_then(|name| name.split_once('.')).ok_or_else(nothing)?;
        let (Ok(ordinal), Ok(part)) = (name.0.parse::<u64>(), name.1.parse::<usize>()) else { return Err(nothing()) };
        // The part that was hinted at is asked for before it is there.
        let mut changes = camera.live.watch();
        let look = async {
            loop {
                changes.borrow_and_update();
                match camera.part(ordinal, part).await {
                    Err(refusal) if refusal.kind == Kind::NotFound && changes.changed().await.is_ok() => {}
                    found => return found,
                }
            }
        };
        let found = timeout(Duration::from_secs(camera.target_s(1)), look).await;
        Ok(media(found.map_err(|_| Refusal::new(Kind::NotFound, "There is no such part"))??))
    }

    async fn image(&self, camera: &Camera, query: &Query<'_>) -> Result<Response<Body>, Refusal> {
        let at: Option<i64> = query.number("at")?;
        let mut place = self.inner.readers.place_soon().await?;
        let entry = match at {
            None => camera.archive.index().await?.last().copied(),
            Some(at) => {
                let what = Select::showing(at, at.saturating_add(1));
                camera.selected(what, 0, &mut place).await?.pop().map(|(_, entry)| entry)
            }
        };
        let entry = entry.ok_or_else(|| Refusal::new(Kind::NotFound, "There is no picture of that time"))?;
        let wanted = Wanted {
            format: Format::Jpeg,
            width: query.number("width")?,
            height: None,
            quality: 4,
            keyframe_only: true,
        };
        let wanted = Wanted { width: wanted.width.map(|width: u32| width.clamp(16, 3840)), ..wanted };
        place.hold_fragment(&entry).await?;
        let stored = camera.archive.read(&entry).await?;
        let picture = self.inner.decoder.picture(&entry, &stored, at.unwrap_or(i64::MAX), wanted).await?;
        let mut response = Response::new(Body::from(picture));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("image/jpeg"));
        response.headers_mut().insert(HeaderName::from_static("x-headwater-time-ms"), entry.start_ms.into());
        Ok(place.keep(response))
    }

    async fn recorded(&self, camera: &Camera, query: &Query<'_>) -> Result<Response<Body>, Refusal> {
        let (from, to) = query.range()?;
        let mut place = self.inner.readers.place_soon().await?;
        let links = Links::Plain;
        let entries = camera.selected(Select::showing(from, to), links.bytes_a_fragment(), &mut place).await?;
        if entries.is_empty() {
            return Err(Refusal::new(Kind::NotFound, "Nothing is recorded of that time"));
        }
        let shape = Shape { kind: hls::Kind::Vod, ended: true, breaks: true, dates: Some(By::Producer) };
        Ok(place.keep(text(PLAYLIST, play::playlist(&entries, shape, links, 1))))
    }

    async fn marks_page(
        &self,
        stream: &str,
        head: &request::Parts,
        query: &Query<'_>,
        body: &[u8],
    ) -> Result<Response<Body>, Refusal> {
        if head.method != Method::POST {
            let (from, to) = query.range()?;
            return Ok(json_response(serde_json::json!({ "marks": self.marks(stream, from, to)? }).to_string()));
        }
        is_json(head)?;
        let new: NewMark =
            serde_json::from_slice(body).map_err(|error| Refusal::invalid(format!("no mark: {error}")))?;
        let mark = self.mark(stream, &new).await?;
        Ok(json_response(serde_json::json!(mark).to_string() + "\n"))
    }
}

async fn send_page(media: &Media, stream: &str, head: &request::Parts, body: &[u8]) -> Result<Response<Body>, Refusal> {
    is_json(head)?;
    let asked: SendRange = serde_json::from_slice(body)
        .map_err(|error| Refusal::invalid(format!("send {{\"from_ms\": ..., \"to_ms\": ...}}: {error}")))?;
    let sending = media.send(stream, &asked).await?;
    Ok(json_response(serde_json::json!(sending).to_string() + "\n"))
}

/// A form of a foreign page cannot say this.
fn is_json(head: &request::Parts) -> Result<(), Refusal> {
    let is_json = head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if is_json { Ok(()) } else { Err(Refusal::invalid("send application/json")) }
}

#[derive(Serialize)]
struct Row {
    name: String,
    live: bool,
    playable: bool,
    codecs: String,
    video: Option<String>,
    width: u32,
    height: u32,
    fragments: usize,
    oldest_ms: i64,
    newest_ms: i64,
    bytes: u64,
}

async fn row(camera: &Camera, now_ms: u64) -> Result<Row, Refusal> {
    let (fragments, fragment_bytes, first, last) = {
        let index = camera.archive.index().await?;
        (index.len(), index.bytes(), index.first().copied(), index.last().copied())
    };
    let tracks = match last {
        Some(last) => camera.tracks(last.head_id).await.ok(),
        None => None,
    };
    let names = tracks.as_ref().and_then(|tracks| codecs::names(tracks).ok());
    let video = tracks.as_ref().and_then(|tracks| tracks.video().cloned());
    Ok(Row {
        name: camera.name().to_owned(),
        live: camera.live.is_on() || last.is_some_and(|last| last.server_ms + LIVE_MS > now_ms),
        playable: names.is_some(),
        codecs: names.unwrap_or_default(),
        width: video.as_ref().map_or(0, |video| video.width),
        height: video.as_ref().map_or(0, |video| video.height),
        video: video.map(|video| short_name(&video.codec).to_owned()),
        fragments,
        oldest_ms: first.map_or(0, |first| first.start_ms),
        newest_ms: last.map_or(0, |last| last.end_ms()),
        // The stream's size is of what was folded into its segments, and the newest may not be.
        bytes: camera.stream().size_bytes().max(fragment_bytes),
    })
}

fn short_name(codec: &headwater_video::Codec) -> &str {
    use headwater_video::Codec;
    match codec {
        Codec::H264 => "h264",
        Codec::Hevc => "hevc",
        Codec::Av1 => "av1",
        Codec::Mjpeg => "mjpeg",
        other => other.id(),
    }
}

async fn master(camera: &Camera) -> Result<Response<Body>, Refusal> {
    let entries = play::newest(&*camera.archive.index().await?, LIVE_FRAGMENTS);
    let (_, last) = entries.last().ok_or_else(|| Refusal::new(Kind::NotFound, "Nothing is recorded yet"))?;
    let tracks = camera.tracks(last.head_id).await?;
    Ok(text(PLAYLIST, play::master(&tracks, play::bits_a_second(&entries), "live.m3u8")?))
}

fn nothing() -> Refusal {
    let says = "there are live.m3u8, playlist.m3u8, master.m3u8, clip.mp4, image.jpg, timeline, marks and send below /video/STREAM/";
    Refusal::new(Kind::NotFound, says)
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn media(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MP4));
    // A number names the same bytes for ever.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    response
}

/// A stream's name may hold nothing that has to be encoded, but browsers may encode it all the same.
fn decode(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        let pair = (byte == b'%').then(|| rest.as_str_pair()).flatten();
        bytes.push(pair.unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

trait Pair {
    fn as_str_pair(&mut self) -> Option<u8>;
}

impl Pair for std::str::Bytes<'_> {
    /// The byte that two hexadecimal digits name.
    fn as_str_pair(&mut self) -> Option<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(self.next()?)?, digit(self.next()?)?);
        Some((high << 4 | low) as u8)
    }
}
