//! Chunks over MQTT: a message is a fragment, and its PUBACK says that it is on disk (promise P1).
//!
//! ```text
//! video/{stream}/init      what its chunks need to be understood, kept in the state
//! video/{stream}/{number}  a chunk; numbers count up from 0 or 1, so that what is missing is seen
//! video/{stream}/mark      a mark, as the console's API takes it
//! ```
//! What a message becomes goes into the batch of its connection, records and changes of state together. A stream that has to
//! be made is the only thing to wait for, and bytes that are wrong make none. What is in memory here is a copy of rows of
//! `Table::Media`: `i/{stream}` is the init, `q/{stream}/{client}` a publisher, `q/{stream}/{client}/{0 to 63}` its last
//! chunks. Who may publish is judged before.

mod follow;
mod read;

use super::intake::{Head, Ready, Thinner};
use super::shape::Refusal;
use super::stream::Camera;
use super::{Media, StreamError, THIN};
use crate::log::{Batch, Placement, PushError, Table};
use crate::metrics::StreamLabel;
use crate::wire::media::PART_BYTES_MAX;
use bytes::{BufMut, Bytes, BytesMut};
use follow::{Came, Place, Publisher, chunk_row, chunk_slot, kept_chunk};
use headwater_video::media::MS;
use read::{Init, ReadFault};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// Streams whose inits and publishers are in memory; those of others are read from the state again.
const FEEDS_MAX: usize = 256;
/// Publishers of one stream that are told apart. The one that was silent longest makes room.
const PUBLISHERS_MAX: usize = 8;
/// Longest mark, in bytes of JSON.
const MARK_BYTES_MAX: usize = 4 << 10;
/// A stream that could not be made is not tried again for so long, in milliseconds.
const RETRY_MS: u64 = 10_000;
/// A burst of gaps ends when so long none was logged, in milliseconds.
const QUIET_MS: u64 = 10_000;

/// What became of a message.
pub enum Taken {
    /// A record, the last of the batch.
    Stored,
    /// A change of state in the batch.
    Noted,
    /// It is on disk already.
    Kept,
    /// Nothing yet: its stream is being made.
    Later(Pin<Box<dyn Future<Output = ()> + Send>>),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(transparent)]
    Read(#[from] ReadFault),
    #[error("{0}")]
    Stream(String),
    #[error("{0}")]
    Mark(String),
    #[error("a chunk is more than {PART_BYTES_MAX} bytes as a record: cut it shorter")]
    TooLarge,
    #[error(transparent)]
    Push(#[from] PushError),
}

impl ChunkError {
    /// The chunk may be good, and came too early.
    pub fn is_order(&self) -> bool {
        matches!(self, ChunkError::Read(ReadFault::BeforeInit))
    }

    /// Names it in the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            ChunkError::Read(ReadFault::BeforeInit) => "chunk_before_init",
            ChunkError::Read(_) => "chunk_malformed",
            ChunkError::Stream(_) => "chunk_stream",
            ChunkError::Mark(_) => "chunk_mark",
            ChunkError::TooLarge | ChunkError::Push(_) => "chunk_too_large",
        }
    }
}

#[derive(Default)]
pub struct Chunks {
    feeds: Mutex<HashMap<String, Arc<Mutex<Feed>>>>,
}

/// What is known of a stream that gets chunks.
#[derive(Default)]
struct Feed {
    /// Of the stream in the log that the rest is about; `None`: nothing was read yet.
    stream: Option<(u32, u64)>,
    /// With the hash of its bytes.
    init: Option<(u64, Init)>,
    publishers: HashMap<u64, Known>,
    head: Option<Head>,
    /// `None`: nothing has come that could be thinned out.
    thinner: Option<Thinner>,
    used_ms: u64,
    /// Why it could not be made, and when.
    failed: Option<(u64, String)>,
    gap_logged_ms: Option<u64>,
}

#[derive(Default)]
struct Known {
    publisher: Publisher,
    used_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Init,
    Mark,
    Chunk(u64),
}

/// Stream, and what of it, by the topic.
fn parse<'a>(prefix: &str, topic: &'a str) -> Option<(&'a str, What)> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix('/')?;
    let (stream, what) = rest.split_once('/')?;
    let what = match what {
        "init" => What::Init,
        "mark" => What::Mark,
        number if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => What::Chunk(number.parse().ok()?),
        _ => return None,
    };
    (!stream.is_empty()).then_some((stream, what))
}

fn init_key(stream: &str) -> Vec<u8> {
    format!("i/{stream}").into_bytes()
}

fn publishers_prefix(stream: &str) -> String {
    format!("q/{stream}/")
}

fn publisher_key(stream: &str, client: u64) -> Vec<u8> {
    format!("q/{stream}/{client:016x}").into_bytes()
}

/// A row belongs to one life of its stream: made again under its name it begins anew.
fn row_of(life: (u32, u64), value: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(12 + value.len());
    row.put_u32(life.0);
    row.put_u64(life.1);
    row.put_slice(value);
    row.freeze()
}

fn value_of(life: (u32, u64), row: &[u8]) -> Option<&[u8]> {
    row.strip_prefix(&life.0.to_be_bytes())?.strip_prefix(&life.1.to_be_bytes())
}

fn lock(feed: &Mutex<Feed>) -> MutexGuard<'_, Feed> {
    feed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Media {
    /// Whether a message to the topic is video's.
    pub fn wants_chunk(&self, topic: &str) -> bool {
        let prefix = &self.inner.config.mqtt_prefix;
        !prefix.is_empty() && parse(prefix, topic).is_some()
    }

    /// Takes a message of a client; all that becomes of it is in the batch, or nothing.
    pub fn take_chunk(
        &self,
        client: &str,
        topic: &str,
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<Taken, ChunkError> {
        let parsed = parse(&self.inner.config.mqtt_prefix, topic);
        let (name, what) = parsed.ok_or_else(|| ChunkError::Stream("this is no topic of video".into()))?;
        if what == What::Mark {
            return self.take_mark(name, payload, batch);
        }
        let now_ms = self.inner.clock.now().wall_ms;
        let camera = match self.camera(name) {
            Err(StreamError::NotFound(_)) if self.inner.config.create => {
                match what {
                    What::Chunk(_) => _ = read::read_chunk(None, payload, now_ms)?,
                    What::Init | What::Mark => _ = read::read_init(payload)?,
                }
                return self.make(name, now_ms);
            }
            found => found.map_err(|error| ChunkError::Stream(error.to_string()))?,
        };
        let feed = self.feed(name, now_ms);
        let mut feed = lock(&feed);
        self.read_feed(&mut feed, &camera);
        match what {
            What::Chunk(number) => {
                self.put_chunk(&mut feed, &camera, xxh3_64(client.as_bytes()), number, payload, batch)
            }
            What::Init | What::Mark => self.put_init(&mut feed, &camera, payload, batch),
        }
    }

    fn put_init(
        &self,
        feed: &mut Feed,
        camera: &Camera,
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<Taken, ChunkError> {
        let init = read::read_init(payload)?;
        let hash = xxh3_64(payload);
        if feed.init.as_ref().is_none_or(|(known, _)| *known != hash) {
            (feed.init, feed.head) = (Some((hash, init)), None);
        }
        // Even if it is there already: its answer waits for this.
        batch.put_state(Table::Media, init_key(camera.name()), Some(row_of(life(camera), payload)));
        Ok(Taken::Noted)
    }

    fn put_chunk(
        &self,
        feed: &mut Feed,
        camera: &Camera,
        client: u64,
        number: u64,
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<Taken, ChunkError> {
        let now = self.inner.clock.now();
        let now_ms = now.wall_ms;
        let (life, key) = (life(camera), publisher_key(camera.name(), client));
        let init = feed.init.as_ref().map_or(0, |(hash, _)| *hash);
        let hash = xxh3_64(payload);
        let known = feed.publishers.get(&client).map(|known| known.publisher.clone());
        let mut publisher = known.unwrap_or_else(|| self.kept_publisher(life, &key));
        let mut place = publisher.place(number, hash, init);
        let chunk_key = [&key[..], format!("/{}", chunk_slot(number)).as_bytes()].concat();
        if place == Place::Repeated {
            let row = self.inner.log.state(Table::Media, &chunk_key);
            if row.as_deref().and_then(|row| kept_chunk(value_of(life, row)?)) == Some((number, hash)) {
                self.inner.metrics.video_chunks_repeated.get_or_create(&label(camera)).inc();
                return Ok(Taken::Kept);
            }
            // It was handed to the log, and may never have come to the disk: only what the disk has counts.
            publisher = self.kept_publisher(life, &key);
            place = publisher.place(number, hash, init);
        }
        let fragment = read::read_chunk(feed.init.as_ref().map(|(_, init)| init), payload, now_ms)?;
        let start_ms = fragment.start_ns() / MS;
        let duration_ms = i64::try_from(fragment.duration_ns() / MS as u64).unwrap_or(0);
        let end_ms = start_ms.saturating_add(duration_ms);
        let came = Came { number, hash, init, start_ms, end_ms, untimed: !now.trusted };
        let mut next = publisher.clone();
        let taken = next.take(place, came, now_ms);
        let head = match &feed.head {
            Some(head) if head.tracks == fragment.tracks => head.clone(),
            _ => {
                let mut made = Head::of(&fragment);
                if publisher.head.0 == made.id {
                    made.delay_ms = publisher.head.1;
                }
                made
            }
        };
        next.head = (head.id, head.delay_ms);
        let mut thinner = feed.thinner.unwrap_or(Thinner::new(self.inner.shared.thin_every_ms));
        let thin = thinner.picture(&head, &fragment, taken.offset_ms);
        let ready = head.seal(fragment, taken.offset_ms, taken.discontinuity);
        if ready.bytes.len() > PART_BYTES_MAX {
            return Err(ChunkError::TooLarge);
        }
        let at = batch.len();
        super::keep::push(batch, camera.stream(), &ready)?;
        let row = row_of(life, &chunk_row(number, hash));
        batch.put_state(Table::Media, key, Some(row_of(life, &next.encode())));
        batch.put_state_on_places(Table::Media, chunk_key, move |placements| {
            matches!(placements.get(at), Some(Placement::Stored { .. })).then_some(row)
        });
        self.make_room(feed, camera, client, batch);
        feed.publishers.insert(client, Known { publisher: next, used_ms: now_ms });
        (feed.head, feed.thinner) = (Some(head), Some(thinner));
        if let Some(thin) = thin.filter(|_| !camera.name().ends_with(THIN)) {
            self.keep_thin(camera.name(), thin);
        }
        self.tell_missing(feed, camera, taken.missing, now_ms);
        Ok(Taken::Stored)
    }

    /// Keeps a picture for longer. A copy: no answer waits for it.
    fn keep_thin(&self, name: &str, thin: Ready) {
        let (media, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let kept = async {
                let camera = media.camera_for_producer(&name).await.map_err(|error| error.to_string())?;
                let Some(mut keeper) = camera.thin_keeper() else { return Ok(()) };
                keeper.put(&[thin]).await.map(drop).map_err(|error| error.to_string())
            };
            if let Err(error) = kept.await {
                tracing::warn!(stream = name, error, "a thinned out picture could not be kept");
            }
        });
    }

    /// Counts what is missing before a chunk, and says so once a burst.
    fn tell_missing(&self, feed: &mut Feed, camera: &Camera, missing: u64, now_ms: u64) {
        if missing == 0 {
            return;
        }
        self.inner.metrics.video_chunks_missing.get_or_create(&label(camera)).inc_by(missing);
        if feed.gap_logged_ms.is_none_or(|logged| now_ms.saturating_sub(logged) >= QUIET_MS) {
            feed.gap_logged_ms = Some(now_ms);
            tracing::warn!(stream = %camera.name(), missing, "a camera's chunks are missing: their numbers are left out");
        }
    }

    fn make_room(&self, feed: &mut Feed, camera: &Camera, client: u64, batch: &mut Batch) {
        if feed.publishers.len() < PUBLISHERS_MAX || feed.publishers.contains_key(&client) {
            return;
        }
        let silent = feed.publishers.iter().min_by_key(|(_, known)| known.used_ms).map(|(client, _)| *client);
        if let Some(silent) = silent {
            feed.publishers.remove(&silent);
            let key = publisher_key(camera.name(), silent);
            for (key, _) in self.inner.log.state_scan(Table::Media, &key) {
                batch.put_state(Table::Media, key, None);
            }
        }
    }

    /// What the disk has of a publisher.
    fn kept_publisher(&self, life: (u32, u64), key: &[u8]) -> Publisher {
        let rows = self.inner.log.state_scan(Table::Media, key);
        let mut values = rows.iter().filter_map(|(found, row)| Some((found.len() == key.len(), value_of(life, row)?)));
        // Its own row is the shortest of those that begin like it, so the first.
        let Some((true, own)) = values.next() else { return Publisher::default() };
        Publisher::decode(own, values.filter_map(|(_, row)| kept_chunk(row))).unwrap_or_default()
    }

    fn feed(&self, name: &str, now_ms: u64) -> Arc<Mutex<Feed>> {
        let mut feeds = self.inner.chunks.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if feeds.len() >= FEEDS_MAX && !feeds.contains_key(name) {
            // One that is being used is younger than all that are not.
            let oldest = feeds.iter().min_by_key(|(_, feed)| feed.try_lock().map_or(u64::MAX, |feed| feed.used_ms));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                feeds.remove(&oldest);
            }
        }
        let feed = feeds.entry(name.to_owned()).or_default().clone();
        drop(feeds);
        lock(&feed).used_ms = now_ms;
        feed
    }

    /// Reads what an earlier life of this process, or of this feed, has kept.
    fn read_feed(&self, feed: &mut Feed, camera: &Camera) {
        let life = life(camera);
        if feed.stream == Some(life) {
            return;
        }
        *feed = Feed { stream: Some(life), used_ms: feed.used_ms, ..Feed::default() };
        let init = self.inner.log.state(Table::Media, &init_key(camera.name()));
        let init = init.as_deref().and_then(|row| value_of(life, row));
        feed.init = init.and_then(|bytes| Some((xxh3_64(bytes), read::read_init(bytes).ok()?)));
        let prefix = publishers_prefix(camera.name());
        let rows = self.inner.log.state_scan(Table::Media, prefix.as_bytes());
        let own = rows.iter().filter(|(key, _)| !key[prefix.len()..].contains(&b'/')).take(PUBLISHERS_MAX);
        for (key, _) in own {
            let client =
                std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            if let Some(client) = client {
                let publisher = self.kept_publisher(life, key);
                feed.publishers.insert(client, Known { publisher, used_ms: 0 });
            }
        }
    }

    /// Makes a stream for its first message, in a task of its own: the connection may go while it is being made.
    fn make(&self, name: &str, now_ms: u64) -> Result<Taken, ChunkError> {
        let feed = self.feed(name, now_ms);
        if let Some((at_ms, says)) = &lock(&feed).failed
            && now_ms.saturating_sub(*at_ms) < RETRY_MS
        {
            return Err(ChunkError::Stream(says.clone()));
        }
        let (media, name) = (self.clone(), name.to_owned());
        let making = tokio::spawn(async move {
            let made = media.camera_for_producer(&name).await;
            let now_ms = media.inner.clock.now().wall_ms;
            lock(&feed).failed = made.err().map(|error| (now_ms, error.to_string()));
        });
        Ok(Taken::Later(Box::pin(async move {
            // The message is looked at again, whatever came of it.
            let _ = making.await;
        })))
    }

    fn take_mark(&self, name: &str, payload: &[u8], batch: &mut Batch) -> Result<Taken, ChunkError> {
        if payload.len() > MARK_BYTES_MAX {
            return Err(ChunkError::Mark(format!("a mark has at most {MARK_BYTES_MAX} bytes")));
        }
        let new = match payload.is_empty() {
            true => serde_json::from_slice(b"{}"),
            false => serde_json::from_slice(payload),
        };
        let new =
            new.map_err(|error| ChunkError::Mark(format!("a mark is JSON such as {{\"name\": \"door\"}}: {error}")))?;
        self.put_mark(name, &new, batch).map_err(|Refusal { says, .. }| ChunkError::Mark(says))?;
        Ok(Taken::Noted)
    }

    /// What is kept of a stream's chunks goes with it.
    pub(super) fn forget_chunks(&self, name: &str, batch: &mut Batch) {
        batch.put_state(Table::Media, init_key(name), None);
        for (key, _) in self.inner.log.state_scan(Table::Media, publishers_prefix(name).as_bytes()) {
            batch.put_state(Table::Media, key, None);
        }
        self.inner.chunks.feeds.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn life(camera: &Camera) -> (u32, u64) {
    (camera.stream().id, camera.stream().created_ms)
}

fn label(camera: &Camera) -> StreamLabel {
    StreamLabel { stream: camera.name().to_owned() }
}

#[cfg(test)]
mod tests;
