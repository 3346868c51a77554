//! GetMedia and GetMediaForFragmentList: fragments as Matroska, one after the other, each with the tags that say which it is.
//!
//! Each fragment comes with its own head, as AWS sends them: EBML, Segment, Tracks, Tags, Cluster. GetMedia goes on for as long
//! as its client reads, and waits for what is not there yet; it sends nothing that is not on disk.

use super::Call;
use crate::http::{Body, Gone, Stream};
use crate::media::Media;
use crate::media::ack::{fragment_number, parse_fragment_number};
use crate::media::archive::{FragmentError, Stored};
use crate::media::index::{By, Entry};
use crate::media::readers::Place;
use crate::media::shape::{Kind, Moment, Refusal, StreamRef, read};
use crate::media::stream::Camera;
use headwater_video::matroska;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde::Deserialize;
use std::sync::Arc;

/// Most fragments of one list.
const LIST_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    #[serde(flatten)]
    stream: StreamRef,
    start_selector: Selector,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Selector {
    start_selector_type: SelectorType,
    after_fragment_number: Option<String>,
    start_timestamp: Option<Moment>,
    continuation_token: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum SelectorType {
    FragmentNumber,
    ServerTimestamp,
    ProducerTimestamp,
    Now,
    Earliest,
    ContinuationToken,
}

/// Where reading begins.
enum Start {
    /// Behind this record.
    After(u64),
    At(By, i64),
    Earliest,
    Now,
}

impl Selector {
    fn start(&self) -> Result<Start, Refusal> {
        let number = |text: &Option<String>, name: &str| {
            let number = text.as_deref().and_then(parse_fragment_number);
            number
                .map(Start::After)
                .ok_or_else(|| Refusal::invalid(format!("{name} is required and is a fragment number")))
        };
        let time = |by| {
            let at = self.start_timestamp.ok_or_else(|| Refusal::invalid("StartTimestamp is required"))?;
            Ok(Start::At(by, at.0))
        };
        match self.start_selector_type {
            SelectorType::FragmentNumber => number(&self.after_fragment_number, "AfterFragmentNumber"),
            SelectorType::ContinuationToken => number(&self.continuation_token, "ContinuationToken"),
            SelectorType::ServerTimestamp => time(By::Server),
            SelectorType::ProducerTimestamp => time(By::Producer),
            SelectorType::Now => Ok(Start::Now),
            SelectorType::Earliest => Ok(Start::Earliest),
        }
    }
}

pub async fn get_media(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: Request = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    let place = call.media.inner.readers.place()?;
    let start = request.start_selector.start()?;
    // The record behind which reading begins.
    let after = match start {
        Start::After(number) => number,
        Start::Earliest => 0,
        // The newest that is there, so that a player has a picture at once; AWS does the same.
        Start::Now => camera.archive.index().await?.last().map_or(0, |last| last.number - 1),
        Start::At(by, ms) => match camera.archive.first_at(by, ms).await? {
            Some(entry) => entry.number - 1,
            None => camera.archive.index().await?.last().map_or(0, |last| last.next_number() - 1),
        },
    };
    let (stream, body) = Body::stream();
    tokio::spawn(follow(call.media.clone(), camera, after, stream, place));
    Ok(media_response(body))
}

/// Sends what is there and then what comes, until the client is gone or the gateway stops.
async fn follow(media: Media, camera: Arc<Camera>, mut after: u64, to: Stream, place: Place) {
    let mut stopped = media.stopped();
    while !camera.stream().is_deleted() {
        // First the end: what comes while we look is not waited for.
        let newest = camera.stream().shard(0).map_or(after, |shard| shard.newest());
        match camera.archive.behind(after).await {
            Err(error) => return to.break_off(error),
            Ok(Some((entry, behind_ms))) => {
                after = entry.next_number() - 1;
                if let Err(gone) = send(&camera, &entry, Some(behind_ms), &to, &place).await {
                    return to.break_off(gone);
                }
            }
            Ok(None) => tokio::select! {
                changed = camera.archive.changed(newest) => if changed.is_err() { return },
                () = to.gone() => return,
                _ = stopped.wait_for(|stop| *stop) => return,
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListRequest {
    #[serde(flatten)]
    stream: StreamRef,
    fragments: Vec<String>,
}

pub async fn get_media_for_fragment_list(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: ListRequest = read(call.body)?;
    let camera = call.media.camera(request.stream.name()?)?;
    if request.fragments.is_empty() || request.fragments.len() > LIST_MAX {
        return Err(Refusal::invalid(format!("Fragments has 1 to {LIST_MAX} fragment numbers")));
    }
    let mut entries = Vec::with_capacity(request.fragments.len());
    for text in &request.fragments {
        let number = parse_fragment_number(text);
        let number = number.ok_or_else(|| Refusal::invalid(format!("{text:?} is no fragment number")))?;
        let entry = camera.archive.entry(number).await?.map(|(_, entry, _)| entry);
        entries.push(entry.ok_or_else(|| Refusal::new(Kind::NotFound, format!("There is no fragment {text}")))?);
    }
    // In the order of time, whatever the order asked for: so AWS has it.
    entries.sort_unstable_by_key(|entry| entry.number);
    entries.dedup_by_key(|entry| entry.number);
    let place = call.media.inner.readers.place()?;
    let (stream, body) = Body::stream();
    tokio::spawn(async move {
        for entry in entries {
            // Some of the list must not look like all of it.
            if let Err(gone) = send(&camera, &entry, None, &stream, &place).await {
                return stream.break_off(gone);
            }
        }
    });
    Ok(media_response(body))
}

fn media_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("video/webm"));
    response
}

/// Sends one fragment; one that retention took meanwhile is left out, and its number says so.
async fn send(camera: &Camera, entry: &Entry, behind_ms: Option<u64>, to: &Stream, place: &Place) -> Result<(), Gone> {
    // Others that do not read have lost their connections before that.
    let mut room = place.room_for(entry).await.map_err(|_| Gone)?;
    match camera.archive.read(entry).await {
        Ok(stored) => {
            let tagged = tagged(entry, &stored, behind_ms);
            drop(stored);
            room.lower(tagged.len());
            to.send(room.hold(tagged)).await
        }
        Err(FragmentError::Gone) => Ok(()),
        Err(error) => {
            tracing::warn!(stream = camera.name(), number = entry.number, %error, "a fragment could not be read");
            Ok(())
        }
    }
}

/// Head, tags, clusters.
fn tagged(entry: &Entry, stored: &Stored, behind_ms: Option<u64>) -> Vec<u8> {
    let number = fragment_number(entry.number);
    let seconds = |ms: i64| format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000));
    let tag = |name: &str, value: String| (name.to_owned(), value);
    let mut tags = vec![tag("AWS_KINESISVIDEO_FRAGMENT_NUMBER", number.clone())];
    let (server, producer) = (seconds(entry.server_ms as i64), seconds(entry.start_ms));
    match behind_ms {
        Some(behind_ms) => tags.extend([
            tag("AWS_KINESISVIDEO_SERVER_TIMESTAMP", server),
            tag("AWS_KINESISVIDEO_PRODUCER_TIMESTAMP", producer),
            tag("AWS_KINESISVIDEO_MILLIS_BEHIND_NOW", behind_ms.to_string()),
            tag("AWS_KINESISVIDEO_CONTINUATION_TOKEN", number),
        ]),
        // The archive's operation spells them otherwise.
        None => tags.extend([
            tag("AWS_KINESISVIDEO_SERVER_SIDE_TIMESTAMP", server),
            tag("AWS_KINESISVIDEO_PRODUCER_SIDE_TIMESTAMP", producer),
        ]),
    }
    tags.extend(stored.tags.iter().cloned());
    let mut bytes = Vec::with_capacity(stored.bytes.len() + 1024);
    bytes.extend_from_slice(&stored.head());
    bytes.extend_from_slice(&matroska::tags(&tags));
    bytes.extend_from_slice(&stored.clusters());
    bytes
}
