//! Video in and out: from a camera to durable fragments, to a player and upstream.
//!
//! ```text
//! PutMedia, POST, RTSP, chunks over MQTT -> intake: fragments cut at keyframes -> keep -> the log (PERSISTED = on disk)
//! log -> archive: an index of fragments -> GetMedia, ListFragments, HLS, DASH, clips, images
//! frames not durable yet -> live: parts for low-latency HLS
//! ```
//! A fragment is a record of a stream with one shard: retention, the gap ledger, cursors and sinks are the log's, and there is
//! no second store. Containers are `headwater-video`'s matter. Requests come as a guest of the AWS port and of the console
//! (`http::Guest`), whose hosts have judged who may ask. Pure parts: `index`, `intake`, `ack`, `session`.

mod ack;
mod archive;
mod chunks;
mod clip;
mod config;
mod door;
mod index;
mod intake;
mod keep;
mod live;
mod manifest;
mod marks;
mod op;
mod pages;
mod pictures;
mod play;
mod producer;
mod readers;
mod rtsp;
mod rules;
mod send;
mod session;
mod sessions;
mod shape;
mod stream;
#[cfg(test)]
mod tests;

pub use chunks::{ChunkError, Taken};
pub use config::{CameraConfig, VideoConfig};
pub use door::AwsDoor;
pub use pages::ConsoleDoor;
pub use rules::MarkConfig;

use crate::clock::Clock;
use crate::http::Budget;
use crate::log::{Batch, CreateError, DeleteError, Log, OnFull, StreamKind, StreamSettings, Table};
use crate::metrics::Metrics;
use crate::record::StreamName;
use crate::units::Span;
use crate::wire::media::{Mark, Wanted};
use pictures::Decoder;
use readers::Readers;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use stream::{Camera, Settings, Shared, settings_key};
use tokio::sync::{Semaphore, watch};

/// Fragments that the indexes of all streams hold together, 48 bytes each: a day of eight cameras that cut every second.
const INDEX_ENTRIES_MAX: usize = 700_000;

/// How the name of a stream of thinned out pictures ends.
const THIN: &str = ".thin";

/// Video, running. Cheap to clone.
#[derive(Clone)]
pub struct Media {
    inner: Arc<Inner>,
}

struct Inner {
    log: Log,
    clock: Clock,
    metrics: Arc<Metrics>,
    config: VideoConfig,
    /// Region and account, as ARNs show them.
    account: (String, String),
    cameras: Mutex<HashMap<String, Arc<Camera>>>,
    chunks: chunks::Chunks,
    producers: Arc<Semaphore>,
    readers: Readers,
    /// Changing what the control plane knows: one at a time.
    changing: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// Sinks that take video on demand, each with the streams it takes; no streams: all.
    senders: OnceLock<Vec<(String, Vec<String>)>>,
    rules: OnceLock<rules::Rules>,
    stop: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("there is no video stream {0:?}")]
    NotFound(String),
    #[error("{0:?} is a stream of records, not of video")]
    NotVideo(String),
    #[error(transparent)]
    Name(#[from] crate::record::BadStreamName),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Delete(#[from] DeleteError),
    #[error("the change could not be kept: {0}")]
    Keep(String),
}

impl Media {
    pub fn start(
        config: &VideoConfig,
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
        account: (String, String),
    ) -> Media {
        let inner = Inner {
            log,
            clock,
            metrics,
            config: config.clone(),
            account,
            cameras: Mutex::default(),
            chunks: chunks::Chunks::default(),
            producers: Arc::new(Semaphore::new(config.max_producers as usize)),
            readers: Readers::new(config.max_readers, config.reader_memory.0),
            changing: tokio::sync::Mutex::default(),
            shared: Arc::new(Shared {
                memory: Budget::new(config.memory.0),
                thin_every_ms: config.thin_every.map(|every| every.as_ms() as i64),
            }),
            decoder: Decoder::find(),
            senders: OnceLock::new(),
            rules: OnceLock::new(),
            stop: watch::channel(false).0,
        };
        Media { inner: Arc::new(inner) }
    }

    /// Tells which sinks there are to send old video when somebody asks for it. Once, before anybody asks.
    pub fn sent_by(&self, senders: Vec<(String, Vec<String>)>) {
        let _ = self.inner.senders.set(senders);
    }

    /// Ends producers and players; what producers handed in whole is kept.
    pub async fn stop(&self, bound: Duration) {
        self.inner.stop.send_replace(true);
        let all = self.inner.config.max_producers;
        let _ = tokio::time::timeout(bound, self.inner.producers.acquire_many(all)).await;
    }

    fn stopped(&self) -> watch::Receiver<bool> {
        self.inner.stop.subscribe()
    }

    /// A video stream that is there.
    pub fn camera(&self, name: &str) -> Result<Arc<Camera>, StreamError> {
        let stream = self.inner.log.stream(name).ok_or_else(|| StreamError::NotFound(name.to_owned()))?;
        if stream.settings().kind != StreamKind::Video {
            return Err(StreamError::NotVideo(name.to_owned()));
        }
        let mut cameras = self.inner.cameras.lock().unwrap_or_else(PoisonError::into_inner);
        cameras.retain(|_, camera| !camera.stream().is_deleted());
        let camera = cameras.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Camera::new(self.inner.log.clone(), stream.clone(), self.inner.shared.clone()))
        });
        if !Arc::ptr_eq(camera.stream(), &stream) {
            *camera = Arc::new(Camera::new(self.inner.log.clone(), stream, self.inner.shared.clone()));
        }
        let camera = camera.clone();
        let each = INDEX_ENTRIES_MAX / cameras.len().max(1);
        cameras.values().for_each(|camera| camera.archive.hold_at_most(each));
        Ok(camera)
    }

    /// All video streams, by name.
    pub fn cameras(&self) -> Vec<Arc<Camera>> {
        let streams = self.inner.log.streams();
        let names = streams.iter().filter(|stream| stream.settings().kind == StreamKind::Video);
        names.filter_map(|stream| self.camera(stream.name.as_str()).ok()).collect()
    }

    /// Whether a producer's stream is there, or may be made.
    fn is_there_for_producer(&self, name: &str) -> Result<bool, StreamError> {
        match self.camera(name) {
            Err(StreamError::NotFound(_)) if self.inner.config.create => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// The same, made if it is not there and the configuration allows it.
    async fn camera_for_producer(&self, name: &str) -> Result<Arc<Camera>, StreamError> {
        let camera = self.camera_or_new(name).await?;
        if self.inner.config.thin_every.is_some() && !name.ends_with(THIN) {
            camera.thin_out_to(self.thin_stream(&format!("{name}{THIN}")).await?.stream().clone());
        }
        Ok(camera)
    }

    /// The stream of thinned out pictures, made if it is not there.
    async fn thin_stream(&self, name: &str) -> Result<Arc<Camera>, StreamError> {
        if let Ok(camera) = self.camera(name) {
            return Ok(camera);
        }
        let hours = self.inner.config.thin_retention.as_ms().div_ceil(3_600_000);
        let settings = Settings { retention_hours: u32::try_from(hours).ok(), ..Settings::default() };
        match self.create(name, settings).await {
            Err(StreamError::Create(CreateError::Exists(_))) => self.camera(name),
            made => made,
        }
    }

    async fn camera_or_new(&self, name: &str) -> Result<Arc<Camera>, StreamError> {
        match self.camera(name) {
            Err(StreamError::NotFound(_)) if self.inner.config.create => {}
            found => return found,
        }
        match self.create(name, Settings::default()).await {
            // Two producers at once: the other made it.
            Ok(_) | Err(StreamError::Create(CreateError::Exists(_))) => self.camera(name),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, name: &str, settings: Settings) -> Result<Arc<Camera>, StreamError> {
        let _one = self.inner.changing.lock().await;
        let stream = StreamName::new(name)?;
        let retention = self.retention_of(&settings);
        let on_full = OnFull::DropOldest;
        let kind = StreamKind::Video;
        let made = StreamSettings { shards: 1, retention, max_bytes: None, on_full, kind };
        let log = self.inner.log.clone();
        blocking(move || log.create_stream(&stream, made)).await??;
        self.keep_settings(name, &settings).await?;
        self.camera(name)
    }

    /// Changes what is known of a stream, and its retention with it.
    async fn change(&self, name: &str, change: impl FnOnce(&mut Settings)) -> Result<Settings, StreamError> {
        let _one = self.inner.changing.lock().await;
        let camera = self.camera(name)?;
        let mut settings = self.settings(name);
        change(&mut settings);
        settings.version += 1;
        let now = camera.stream().settings();
        let wanted = match settings.retention_hours {
            Some(_) => StreamSettings { retention: self.retention_of(&settings), ..now.clone() },
            None => now.clone(),
        };
        if wanted != now {
            let (log, stream) = (self.inner.log.clone(), camera.stream().name.clone());
            blocking(move || log.update_stream(&stream, wanted)).await??;
        }
        self.keep_settings(name, &settings).await?;
        Ok(settings)
    }

    /// In a task of its own: who asks may go away, and what belongs to the stream goes with it all the same.
    async fn delete(&self, name: &str) -> Result<(), StreamError> {
        let (media, name) = (self.clone(), name.to_owned());
        let deleted = tokio::spawn(async move { media.delete_all(&name).await }).await;
        deleted.map_err(|error| StreamError::Keep(error.to_string()))?
    }

    async fn delete_all(&self, name: &str) -> Result<(), StreamError> {
        let _one = self.inner.changing.lock().await;
        let camera = self.camera(name)?;
        let (log, stream) = (self.inner.log.clone(), camera.stream().name.clone());
        blocking(move || log.delete_stream(&stream)).await??;
        let mut batch = Batch::new();
        batch.put_state(Table::Media, settings_key(name), None);
        self.forget_chunks(name, &mut batch);
        // A stream of the same name begins without the marks of this one, and without what was to be sent of it.
        let senders = self.inner.senders.get().map_or(&[][..], Vec::as_slice);
        let wishes = senders.iter().map(|(sink, _)| Wanted::prefix(sink, name));
        for prefix in wishes.chain([Mark::prefix(name)]) {
            for (key, _) in self.inner.log.state_scan(Table::Media, prefix.as_bytes()) {
                batch.put_state(Table::Media, key, None);
            }
        }
        self.commit(&mut batch).await
    }

    fn settings(&self, name: &str) -> Settings {
        let row = self.inner.log.state(Table::Media, &settings_key(name));
        row.and_then(|row| serde_json::from_slice(&row).ok()).unwrap_or_default()
    }

    async fn keep_settings(&self, name: &str, settings: &Settings) -> Result<(), StreamError> {
        let mut batch = Batch::new();
        let row = serde_json::to_vec(settings).map_err(|error| StreamError::Keep(error.to_string()))?;
        batch.put_state(Table::Media, settings_key(name), Some(row.into()));
        self.commit(&mut batch).await
    }

    async fn commit(&self, batch: &mut Batch) -> Result<(), StreamError> {
        let committed = self.inner.log.appender().commit(batch).await;
        committed.map(drop).map_err(|error| StreamError::Keep(error.to_string()))
    }

    fn retention_of(&self, settings: &Settings) -> Span {
        match settings.retention_hours {
            None => self.inner.config.retention,
            // AWS keeps nothing then but what players of the moment need.
            Some(0) => Span::secs(300),
            Some(hours) => Span::secs(u64::from(hours) * 3_600),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StreamError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StreamError::Keep(error.to_string()))
}
