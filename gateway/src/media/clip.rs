//! A range of a stream as one MP4 file, made while it is sent: no more than a fragment of it is ever in memory.

use super::Media;
use super::archive::Select;
use super::index::Entry;
use super::readers::Place;
use super::shape::{Kind, Refusal};
use super::stream::Camera;
use crate::http::{Body, Stream};
use headwater_video::media::MS;
use headwater_video::mp4::Clip;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderValue, Response};
use std::sync::Arc;

/// Most fragments of a clip: more than a day of one a second, and their list is in memory until the last of it is sent. AWS takes
/// 200 and 100 MB, since it makes the file before it sends it.
const FRAGMENTS_MAX: usize = 100_000;

/// A file for download; only its head if that is all that is asked for.
pub async fn respond(
    media: &Media,
    camera: Arc<Camera>,
    range: (i64, i64),
    head_only: bool,
) -> Result<Response<Body>, Refusal> {
    let mut place = media.inner.readers.place_soon().await?;
    let found = camera.selected(Select::showing(range.0, range.1), size_of::<Entry>(), &mut place).await?;
    let entries: Vec<Entry> = found.into_iter().map(|(_, entry)| entry).collect();
    let name = format!("{}-{}.mp4", camera.name(), entries.first().map_or(0, |first| first.start_ms));
    let body = if head_only {
        check(&camera, &entries).await?;
        Body::from("")
    } else {
        start(camera, entries, place).await?
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    // A stream's name has letters, digits and a few signs that a quoted string may have.
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Whether the fragments make one file.
async fn check(camera: &Camera, entries: &[Entry]) -> Result<(), Refusal> {
    let first = entries.first().ok_or_else(|| Refusal::new(Kind::NotFound, "Nothing is recorded of that time"))?;
    if entries.len() > FRAGMENTS_MAX {
        let says =
            format!("A clip has {FRAGMENTS_MAX} fragments at the most, not {}: ask for less time", entries.len());
        return Err(Refusal::invalid(says));
    }
    if let Some(other) = entries.iter().find(|entry| entry.head_id != first.head_id) {
        let says = format!(
            "The camera's settings changed at {} ms: ask for what was before and what came after apart",
            other.start_ms
        );
        return Err(Refusal::invalid(says));
    }
    camera.init_segment(first.head_id).await.map(drop)
}

/// A body that has all of the fragments, in order.
pub async fn start(camera: Arc<Camera>, entries: Vec<Entry>, mut place: Place) -> Result<Body, Refusal> {
    check(&camera, &entries).await?;
    let tracks = camera.tracks(entries.first().map_or(0, |entry| entry.head_id)).await?;
    let (clip, head) = Clip::begin(&tracks)?;
    place.lower(entries.len() * size_of::<Entry>());
    let (stream, body) = Body::stream();
    tokio::spawn(send(camera, entries, clip, head, stream, place));
    Ok(body)
}

/// Whether `next` goes on where `entry` ends, of those that are in the clip.
fn goes_on(entry: &Entry, next: &Entry) -> bool {
    !next.discontinuity && entry.joins(next)
}

async fn send(camera: Arc<Camera>, entries: Vec<Entry>, mut clip: Clip, head: Vec<u8>, to: Stream, place: Place) {
    // Half a clip must not look like a whole one.
    if let Err(gone) = to.send(head).await {
        return to.break_off(gone);
    }
    for (at, entry) in entries.iter().enumerate() {
        let next = entries.get(at + 1).filter(|next| goes_on(entry, next)).map(|next| next.start_ms.saturating_mul(MS));
        let part = async {
            let mut room = place.room_for(entry).await.map_err(|refusal| refusal.to_string())?;
            let stored = camera.archive.read(entry).await.map_err(|error| error.to_string())?;
            let mut fragment = stored.fragment().map_err(|error| error.to_string())?;
            // Across a hole, or a clock that jumped, the clip goes on without it: no file is a week long.
            fragment.discontinuity |= at.checked_sub(1).is_some_and(|before| !goes_on(&entries[before], entry));
            let part = clip.push(&fragment, next).map_err(|error| error.to_string())?;
            room.lower(part.len());
            Ok::<_, String>(room.hold(part))
        };
        match part.await {
            Ok(bytes) => {
                if let Err(gone) = to.send(bytes).await {
                    return to.break_off(gone);
                }
            }
            Err(error) => return to.break_off(error),
        }
    }
}
