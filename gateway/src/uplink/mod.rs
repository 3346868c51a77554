//! Bytes out: every sink has its own position in the log and forwards at its own pace.
//!
//! Way of a record: `feed` reads a shard -> `lanes` (order, what may leave) -> `batch` (one request) -> `sink` -> its answer
//! -> `lanes` -> the cursor in the log. `forward` joins them with `budget` and the upstream's `map`; `gap` tells of
//! losses, `dead` keeps what is refused for good. Pure parts: `batch`,
//! `budget`, `gap`, `kpl`, `lanes`, `map`, `pace`, `progress`.
//! Nothing here knows of MQTT sessions or the API; the codec shared with the door of another Headwater is `wire`.

pub mod aws;
mod batch;
mod budget;
mod config;
mod dead;
mod feed;
mod figures;
mod forward;
mod gap;
pub mod http;
mod iot;
pub mod kpl;
mod lanes;
mod map;
mod pace;
mod progress;
mod setup;
pub mod sink;
mod tls;

pub use config::{Common, SinkConfig};
pub use gap::{CONTENT_TYPE as GAP_CONTENT_TYPE, KEY as GAP_KEY};
pub use kpl::ID_TAG;

use crate::clock::Clock;
use crate::log::{Log, Stream, StreamKind};
use crate::metrics::Metrics;
use budget::Budget;
use config::Sending;
use figures::Trouble;
use forward::{Forwarder, Through};
use setup::Setup;
use sink::file::FileForwarder;
use sink::kinesis::KinesisSink;
use sink::mqtt::MqttSink;
use sink::video::VideoForwarder;
use sink::video_s3::S3VideoForwarder;
use sink::{Identity, Sink};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often a sink looks for streams that came or went.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum UplinkStartError {
    #[error("{0}")]
    Config(crate::problem::Problem),
}

/// What a sink has to say about one stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SinkStatus {
    pub sink: String,
    pub stream: String,
    /// Why it holds; `None` while it flows.
    pub trouble: Option<String>,
}

/// All sinks at work.
pub struct Uplink {
    stop: watch::Sender<bool>,
    sinks: Vec<JoinHandle<()>>,
    board: Board,
}

/// Where the sinks write what holds them.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<(String, String), Trouble>>>);

impl Board {
    pub fn status(&self) -> Vec<SinkStatus> {
        let status = |((sink, stream), trouble): (&(String, String), &Trouble)| SinkStatus {
            sink: sink.clone(),
            stream: stream.clone(),
            trouble: trouble.get(),
        };
        self.lock().iter().map(status).collect()
    }

    fn add(&self, sink: &str, stream: &Stream) -> Trouble {
        let trouble = Trouble::default();
        self.lock().insert((sink.to_owned(), stream.name.to_string()), trouble.clone());
        trouble
    }

    /// Forgets the streams of a sink that are gone.
    fn keep(&self, sink: &str, streams: &[Arc<Stream>]) {
        let is_there = |name: &str| streams.iter().any(|stream| stream.name.as_str() == name);
        self.lock().retain(|(of, stream), _| of != sink || is_there(stream));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Trouble>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Uplink {
    /// Starts every sink at its cursors. An upstream that is not there is no error: it is waited for.
    pub async fn start(
        sinks: &[SinkConfig],
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Uplink, UplinkStartError> {
        if let Some(problem) = SinkConfig::check_all(sinks).into_iter().next() {
            return Err(UplinkStartError::Config(problem));
        }
        let (stop, stopped) = watch::channel(false);
        let board = Board::default();
        let running = sinks.iter().map(|config| {
            let cap = Some(config.common().max_bytes_per_s.0).filter(|rate| *rate > 0);
            let running = Running {
                config: config.clone(),
                log: log.clone(),
                clock: clock.clone(),
                metrics: metrics.clone(),
                budget: Arc::new(Mutex::new(Budget::new(cap, clock.now().mono_ms))),
                board: board.clone(),
                stop: stopped.clone(),
                forwarders: HashMap::new(),
            };
            // Before anything may expire.
            running.register();
            tokio::spawn(running.run())
        });
        Ok(Uplink { sinks: running.collect(), stop, board })
    }

    /// The state of every sink and stream, by their names.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.board.status()
    }

    /// What stays readable while the sinks work.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Stops sending, waits for what is in flight within `bound`, and saves the cursors.
    pub async fn stop(self, bound: Duration) {
        let _ = self.stop.send(true);
        let until = tokio::time::Instant::now() + bound;
        for mut sink in self.sinks {
            if tokio::time::timeout_at(until, &mut sink).await.is_err() {
                // The cursor was saved a moment ago; the rest is sent again.
                sink.abort();
            }
        }
    }
}

/// It was told to stop, or nobody is left who could tell it.
fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// One sink: a forwarder for each stream it wants and that exists.
struct Running {
    config: SinkConfig,
    log: Log,
    clock: Clock,
    metrics: Arc<Metrics>,
    budget: Arc<Mutex<Budget>>,
    board: Board,
    stop: watch::Receiver<bool>,
    /// By stream id: a stream made again under its name is another.
    forwarders: HashMap<u32, Forwarding>,
}

struct Forwarding(JoinHandle<()>);

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    async fn run(mut self) {
        while !is_stopped(&self.stop) {
            self.follow_streams();
            let _ = tokio::time::timeout(LOOK_EVERY, self.stop.changed()).await;
        }
        for (_, mut forwarding) in std::mem::take(&mut self.forwarders) {
            let _ = (&mut forwarding.0).await;
        }
    }

    fn follow_streams(&mut self) {
        self.forwarders.retain(|_, forwarding| !forwarding.0.is_finished());
        let streams = self.wanted();
        self.board.keep(&self.config.common().name, &streams);
        let new: Vec<_> = streams.iter().filter(|stream| !self.forwarders.contains_key(&stream.id)).cloned().collect();
        if new.is_empty() {
            return;
        }
        self.register();
        for stream in new {
            let forwarding = Forwarding(self.forward(&stream));
            self.forwarders.insert(stream.id, forwarding);
        }
    }

    fn register(&self) {
        let common = self.config.common();
        self.log.register_sink(&common.name, &self.wanted(), common.required);
    }

    fn wanted(&self) -> Vec<Arc<Stream>> {
        let common = self.config.common();
        let wanted = |stream: &Arc<Stream>| {
            let name = stream.name.as_str();
            let is_any = common.streams.is_empty() && self.config.dead_letter().is_none_or(|letters| name != letters);
            let is_kind = !self.config.is_for_video() || stream.settings().kind == StreamKind::Video;
            !stream.is_deleted() && is_kind && (is_any || common.streams.iter().any(|wanted| wanted == name))
        };
        self.log.streams().into_iter().filter(wanted).collect()
    }

    fn forward(&self, stream: &Arc<Stream>) -> JoinHandle<()> {
        let through = |sink: Arc<dyn Sink>, sending: &Sending| {
            let through = Through { sink, common: self.config.common().clone(), sending: sending.clone() };
            tokio::spawn(Forwarder::new(self.setup(stream, through)).run())
        };
        match &self.config {
            SinkConfig::Kinesis(config) => {
                through(Arc::new(KinesisSink::new(config, self.who(stream))), &config.sending)
            }
            SinkConfig::Mqtt(config) => through(Arc::new(MqttSink::new(config, self.who(stream))), &config.sending),
            SinkConfig::File(config) => tokio::spawn(FileForwarder::new(self.setup(stream, config.clone())).run()),
            SinkConfig::S3Video(config) => {
                tokio::spawn(S3VideoForwarder::new(self.setup(stream, config.clone())).run())
            }
            SinkConfig::KinesisVideo(config) => {
                tokio::spawn(VideoForwarder::new(self.setup(stream, config.clone())).run())
            }
        }
    }

    fn who(&self, stream: &Stream) -> Identity {
        Identity {
            gateway: self.log.gateway_id().to_owned(),
            incarnation: self.log.incarnation(),
            stream: stream.name.clone(),
        }
    }

    fn setup<C>(&self, stream: &Arc<Stream>, config: C) -> Setup<C> {
        Setup {
            log: self.log.clone(),
            stream: stream.clone(),
            config,
            who: self.who(stream),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            budget: self.budget.clone(),
            trouble: self.board.add(&self.config.common().name, stream),
            stop: self.stop.clone(),
        }
    }
}
