//! GetClip: what came between two times as one MP4, made while it is sent.

use super::Call;
use super::sessions::{check_retention, clip_range};
use crate::http::Body;
use crate::media::archive::Select;
use crate::media::clip;
use crate::media::index::{Entry, Once};
use crate::media::shape::{FragmentSelector, Kind, Refusal, StreamRef, read};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    #[serde(flatten)]
    stream: StreamRef,
    clip_fragment_selector: FragmentSelector,
}

pub async fn get_clip(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: Request = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    let now_ms = call.media.inner.clock.now().wall_ms as i64;
    let (by, from, to) = clip_range(&request.clip_fragment_selector, now_ms)?;
    check_retention(call, &camera)?;
    let mut place = call.media.inner.readers.place_soon().await?;
    let what = Select { by, from_ms: from, to_ms: to, showing: false };
    let found = camera.selected(what, size_of::<Entry>(), &mut place).await?;
    let mut once = Once::new(by);
    let entries: Vec<Entry> = found.into_iter().map(|(_, entry)| entry).filter(|entry| once.is_new(entry)).collect();
    if entries.is_empty() {
        return Err(Refusal::new(Kind::NotFound, "There is no fragment that begins in the requested time"));
    }
    let mut response = Response::new(clip::start(camera, entries, place).await?);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    Ok(response)
}
