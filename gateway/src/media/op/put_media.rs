//! PutMedia, and the plain POST that ffmpeg and GStreamer can speak: a body without end becomes fragments while it comes.
//!
//! PutMedia answers while it reads: acknowledgements go out as the fragments come in. The plain form answers once, at the end.
//! A producer that sends nothing for `video.idle_timeout` is given up; what it had begun is not kept, for nobody knows what
//! was missing.

use crate::http::{Body, Stream};
use crate::media::Media;
use crate::media::ack::{Ack, fragment_number};
use crate::media::intake::{Intake, Timecodes, error_id};
use crate::media::producer::{Kept, Producer, ProducerError};
use crate::media::shape::{Refusal, StreamRef, json_response, parse_moment};
use bytes::Bytes;
use headwater_video::matroska::ParseError;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

/// A PutMedia connection without a byte for so long hears so.
const IDLE_AFTER: Duration = Duration::from_secs(15);
/// No camera's clock is later: the year 2100, in milliseconds. Milliseconds taken for seconds are.
const LATEST_MS: i64 = 4_102_444_800_000;

pub async fn put_media(media: &Media, headers: &HeaderMap, mut body: Incoming) -> Result<Response<Body>, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let stream = StreamRef {
        stream_name: header("x-amzn-stream-name").map(str::to_owned),
        stream_arn: header("x-amzn-stream-arn").map(str::to_owned),
    };
    let start = header("x-amzn-producer-start-timestamp");
    let start = start
        .map(|text| parse_moment(text).ok_or_else(|| Refusal::invalid("x-amzn-producer-start-timestamp is no time")));
    let timecodes = match (header("x-amzn-fragment-timecode-type").unwrap_or("ABSOLUTE"), start.transpose()?) {
        ("ABSOLUTE", _) => Timecodes::Absolute,
        ("RELATIVE", Some(LATEST_MS..)) => {
            return Err(Refusal::invalid(
                "x-amzn-producer-start-timestamp is in seconds since 1970: this is after 2100",
            ));
        }
        ("RELATIVE", Some(start_ms)) => Timecodes::Since(start_ms),
        ("RELATIVE", None) => return Err(Refusal::invalid("RELATIVE timecodes want x-amzn-producer-start-timestamp")),
        (other, _) => {
            return Err(Refusal::invalid(format!(
                "x-amzn-fragment-timecode-type {other:?} is not ABSOLUTE or RELATIVE"
            )));
        }
    };
    let name = stream.name()?;
    let is_there = media.is_there_for_producer(name)?;
    let place = media.producer_place()?;
    // A client that asked first (Expect: 100-continue) is told to go on when its body is read, and not after an answer.
    let first = timeout(media.inner.config.idle_timeout.0, next(&mut body)).await;
    let first = first.map_err(|_| Refusal::invalid("No media came"))?;
    let (to, answer) = Body::stream();
    let answer = json_response(String::new()).map(|_| answer);
    if let (false, Err(error)) = (is_there, look_at(&first)) {
        let (id, code) = error_id(&error);
        tokio::spawn(async move { to.send(Ack::Error { timecode_ms: None, id, code }.line()).await });
        return Ok(answer);
    }
    let camera = media.camera_for_producer(name).await?;
    let (producer, acks) = Producer::begin(camera, media.inner.clock.clone());
    tokio::spawn(forward(acks, to));
    tokio::spawn(acknowledged(media.clone(), producer, timecodes, first, body, place));
    Ok(answer)
}

/// What is no Matroska from its beginning makes no stream.
fn look_at(first: &Option<Result<Bytes, ()>>) -> Result<(), ParseError> {
    match first {
        Some(Ok(bytes)) => Intake::new(Timecodes::Anchored).push(bytes),
        _ => Ok(()),
    }
}

/// Lines of one moment travel together.
async fn forward(mut acks: mpsc::Receiver<Ack>, to: Stream) {
    while let Some(ack) = acks.recv().await {
        let mut lines = ack.line();
        while let Ok(more) = acks.try_recv() {
            lines.push_str(&more.line());
        }
        if to.send(lines).await.is_err() {
            // A camera that does not read sends on all the same.
            while acks.recv().await.is_some() {}
            return;
        }
    }
}

async fn acknowledged(
    media: Media,
    mut producer: Producer,
    timecodes: Timecodes,
    first: Option<Result<Bytes, ()>>,
    mut body: Incoming,
    _place: OwnedSemaphorePermit,
) {
    let mut intake = Intake::new(timecodes);
    intake.thin(media.inner.shared.thin_every_ms);
    if let Err(ended) = take(&media, &mut producer, &mut intake, first, &mut body).await {
        ended.tell(&producer);
    }
    if let Err(error) = producer.end().await {
        tracing::warn!(%error, "a producer's fragments could not be kept");
    }
}

/// Why a producer's body was given up.
enum Ended {
    Wrong(ProducerError),
    Broken,
    Idle,
    Stopping,
}

impl Ended {
    fn tell(&self, producer: &Producer) {
        let error = |id, code| Ack::Error { timecode_ms: None, id, code };
        match self {
            Ended::Wrong(ProducerError::Parse(error)) => producer.tell_of(error),
            Ended::Wrong(ProducerError::Keep(_)) => {}
            Ended::Wrong(ProducerError::Memory) => producer.tell(error(5000, "INTERNAL_ERROR")),
            Ended::Broken | Ended::Idle => producer.tell(error(4000, "STREAM_READ_ERROR")),
            Ended::Stopping => producer.tell(error(4003, "MAX_CONNECTION_DURATION_REACHED")),
        }
    }
}

/// Reads to the end of the body.
async fn take(
    media: &Media,
    producer: &mut Producer,
    intake: &mut Intake,
    first: Option<Result<Bytes, ()>>,
    body: &mut Incoming,
) -> Result<(), Ended> {
    let mut stopped = media.stopped();
    let idle = media.inner.config.idle_timeout.0;
    let mut piece = first;
    loop {
        match piece {
            None => return producer.finish(intake).await.map_err(Ended::Wrong),
            Some(Err(())) => return Err(Ended::Broken),
            Some(Ok(bytes)) => producer.push(intake, &bytes).await.map_err(Ended::Wrong)?,
        }
        let mut quiet = Duration::ZERO;
        piece = loop {
            let step = IDLE_AFTER.min(idle - quiet);
            tokio::select! {
                came = timeout(step, next(body)) => match came {
                    Ok(piece) => break piece,
                    Err(_) => {
                        quiet += step;
                        if quiet >= idle {
                            return Err(Ended::Idle);
                        }
                        producer.tell(Ack::Idle);
                    }
                },
                _ = stopped.wait_for(|stop| *stop) => return Err(Ended::Stopping),
            }
        };
    }
}

/// The next bytes; `None` at the end. Cancel-safe.
async fn next(body: &mut Incoming) -> Option<Result<Bytes, ()>> {
    loop {
        match body.frame().await? {
            Err(_) => return Some(Err(())),
            Ok(frame) => match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                _ => {}
            },
        }
    }
}

/// `POST /streams/{name}/media`: the clock is anchored to ours, and the answer says what was kept.
///
/// The work is a task of its own: ffmpeg hangs up as soon as it has sent the end, and the server then drops the request, which
/// used to cost the last fragment.
pub async fn post_media(media: &Media, name: &str, body: Incoming) -> Result<Response<Body>, Refusal> {
    let is_there = media.is_there_for_producer(name)?;
    let place = media.producer_place()?;
    let (media, name) = (media.clone(), name.to_owned());
    let kept = tokio::spawn(async move {
        let _place = place;
        post(&media, &name, is_there, body).await
    });
    let kept = kept.await.map_err(|error| Refusal::new(crate::media::shape::Kind::Internal, error.to_string()))??;
    let last = kept.last.map(fragment_number);
    let mut said =
        serde_json::json!({ "fragments": kept.fragments, "bytes": kept.bytes, "dropped": kept.dropped, "last": last });
    if let Some(error) = kept.dropped_for {
        said["dropped_for"] = error.to_string().into();
    }
    Ok(json_response(format!("{said}\n")))
}

async fn post(media: &Media, name: &str, is_there: bool, mut body: Incoming) -> Result<Kept, Refusal> {
    let first = timeout(media.inner.config.idle_timeout.0, next(&mut body)).await.unwrap_or(Some(Err(())));
    if !is_there {
        look_at(&first).map_err(|error| Refusal::invalid(error.to_string()))?;
    }
    let camera = media.camera_for_producer(name).await?;
    let (mut producer, _) = Producer::begin(camera, media.inner.clock.clone());
    let mut intake = Intake::new(Timecodes::Anchored);
    intake.thin(media.inner.shared.thin_every_ms);
    let ended = take(media, &mut producer, &mut intake, first, &mut body).await;
    let kept = producer.end().await;
    match (ended, &kept) {
        (Err(Ended::Wrong(error)), Ok(kept)) => {
            Err(Refusal::invalid(format!("{error}. Fragments kept before it: {}", kept.fragments)))
        }
        (Err(Ended::Wrong(error)), Err(_)) => Err(Refusal::invalid(error.to_string())),
        (Ok(()), Ok(Kept { fragments: 0, last: None, dropped_for: Some(error), .. })) => {
            Err(Refusal::invalid(format!("No fragment was kept: {error}")))
        }
        (Err(Ended::Stopping), _) => Err(Refusal::new(crate::media::shape::Kind::Internal, "The gateway is stopping")),
        // A camera whose connection breaks hears nothing any more.
        _ => kept.map_err(|error| Refusal::new(crate::media::shape::Kind::Internal, error.to_string())),
    }
}
