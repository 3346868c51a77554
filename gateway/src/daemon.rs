//! The composition root: the only place that knows all parts. It builds them, joins them, and owns the order of start and
//! stop; it does nothing else.
//!
//! Start: log, streams, uplink, console, AWS door, MQTT; then one `headwater ready ...` line on stderr with the addresses
//! that were chosen, `/readyz` and `READY=1`. Stop: the doors first, so that nothing new comes in, then the uplink, then
//! the log, all within one bound. Whatever was acknowledged is on disk before any of this.

mod chunks;
mod devices;
mod notify;

use crate::api::Api;
use crate::clock::Clock;
use crate::config::{Config, DEFAULT_STREAM};
use crate::console::{self, Console};
use crate::http::Guest;
use crate::log::{CreateError, Log, StreamSettings};
use crate::media::{AwsDoor, ConsoleDoor, Media};
use crate::metrics::{CardLife, Metrics};
use crate::mqtt::{ChunkDoor, Mqtt};
use crate::record::StreamName;
use crate::units::Listen;
use crate::uplink::{SinkConfig, Uplink};
use anyhow::{Context, Result};
use notify::Notify;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Threads that may block on a disk for a reader, at most.
const BLOCKING_THREADS_MAX: usize = 16;
/// Stack of a worker, in bytes: sessions and parsers are loops, not recursions.
const WORKER_STACK_BYTES: usize = 512 << 10;

/// Runs a gateway until it is told to stop. Blocking; this is `headwater run`.
pub fn run(config: &Config, stop_within: Duration) -> Result<()> {
    raise_descriptor_limit();
    let clock = Clock::system();
    let metrics = Metrics::new();
    let log = open(config, &clock, &metrics)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK_BYTES)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("the runtime could not be started")?;
    let started = runtime.block_on(Daemon::start(config, log.clone(), clock, metrics.clone())).map_err(advise);
    let has_started = started.is_ok();
    let served = started.and_then(|daemon| runtime.block_on(serve(daemon, stop_within)));
    log.close(*served.as_ref().unwrap_or(&stop_within));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if has_started {
        eprintln!("{}", stopped_line(&metrics));
    }
    served.map(|_| ())
}

/// A shell's soft limit on open files is for programs that use select(); what the hard one allows is ours.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Where it cannot be raised, the MQTT door makes do with what there is, and says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Says what to do about an address that cannot be had.
fn advise(error: anyhow::Error) -> anyhow::Error {
    let kind = error.chain().find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
    match kind {
        Some(std::io::ErrorKind::AddrInUse) => {
            error.context("an address is taken: stop what listens there, or name another (see `headwater run --help`)")
        }
        Some(std::io::ErrorKind::PermissionDenied) => {
            error.context("an address is not allowed: ports below 1024 want root, or CAP_NET_BIND_SERVICE")
        }
        _ => error,
    }
}

/// Opens the log and makes the streams of the configuration. Blocking.
pub fn open(config: &Config, clock: &Clock, metrics: &Arc<Metrics>) -> Result<Log> {
    let log = Log::open(config.data.options(), clock.clone(), metrics.clone())
        .with_context(|| format!("the log in {} could not be opened", config.data.dir.display()))?;
    let made = make_streams(config, &log);
    if made.is_err() {
        log.close(Duration::from_secs(5));
    }
    made.map(|()| log)
}

fn make_streams(config: &Config, log: &Log) -> Result<()> {
    let mut wanted = vec![];
    if !config.streams.iter().any(|stream| stream.name == DEFAULT_STREAM) {
        wanted.push((StreamName::new(DEFAULT_STREAM)?, StreamSettings::default()));
    }
    for stream in &config.streams {
        wanted.push(stream.settings()?);
    }
    for (name, settings) in wanted {
        match log.stream(name.as_str()).map(|stream| stream.settings()) {
            None => {
                log.create_stream(&name, settings).with_context(|| format!("stream {name}"))?;
            }
            // The configuration updates a stream that is there; it never reshards or deletes one. The default stream
            // may have been changed by hand, so without a section of its own it is left alone.
            Some(_) if !config.streams.iter().any(|stream| stream.name == name.as_str()) => {}
            Some(there) => {
                if there.shards != settings.shards {
                    tracing::warn!(
                        stream = %name, has = there.shards, configured = settings.shards,
                        "the number of shards of a stream that exists is left as it is"
                    );
                }
                let settings = StreamSettings { shards: there.shards, ..settings };
                if settings != there {
                    log.update_stream(&name, settings)
                        .map_err(|error: CreateError| error)
                        .with_context(|| format!("stream {name}"))?;
                }
            }
        }
    }
    Ok(())
}

/// A gateway that runs.
pub struct Daemon {
    log: Log,
    mqtt: Mqtt,
    media: Media,
    /// `None` where the configuration turned it off.
    api: Option<Api>,
    console: Option<Console>,
    uplink: Uplink,
    ready: watch::Sender<bool>,
}

impl Daemon {
    /// Starts all parts over an open log. When it returns, every listener is bound.
    pub async fn start(config: &Config, log: Log, clock: Clock, metrics: Arc<Metrics>) -> Result<Daemon> {
        let (ready, seen) = watch::channel(false);
        let uplink = Uplink::start(&config.sinks, log.clone(), clock.clone(), metrics.clone())
            .await
            .context("the uplink could not be started")?;
        let devices = console::Devices::default();
        let account = (config.api.region.clone(), config.api.account.clone());
        let media = Media::start(&config.video, log.clone(), clock.clone(), metrics.clone(), account);
        media.mark_by(&config.marks, crate::mqtt::topic_matches);
        let for_video = config.sinks.iter().filter(|sink| sink.is_for_video()).map(SinkConfig::common);
        media.sent_by(for_video.map(|sink| (sink.name.clone(), sink.streams.clone())).collect());
        let console = match config.console.listen {
            Listen::At(_) => {
                let card = CardLife::watch(&config.data.dir, clock.clone());
                let board = uplink.board();
                let sinks = Box::new(move || serde_json::json!(board.status()));
                let guest = Some(Arc::new(ConsoleDoor(media.clone())) as Arc<dyn Guest>);
                let others = console::Others { sinks, devices: devices.clone(), guest };
                Some(Console::start(&config.console, log.clone(), metrics.clone(), card, others, seen).await?)
            }
            Listen::Off => None,
        };
        log.begin_aging();
        let api = match config.api.listen {
            Listen::At(_) => {
                let guest = Some(Arc::new(AwsDoor(media.clone())) as Arc<dyn Guest>);
                Some(Api::start_with(&config.api, log.clone(), clock.clone(), metrics.clone(), guest).await?)
            }
            Listen::Off => None,
        };
        let chunks = Some(Arc::new(chunks::Door(media.clone())) as Arc<dyn ChunkDoor>);
        let mqtt =
            Mqtt::start(&config.mqtt, &config.routes, &config.allows, log.clone(), clock, metrics, chunks).await?;
        let kept = mqtt.devices().keep_firmware_in(config.data.dir.join("firmware"));
        kept.context("the directory for devices' firmware")?;
        media.pull(&config.cameras);
        // Nobody else fills it.
        let _ = devices.set(Box::new(devices::Door(mqtt.devices())));
        ready.send_replace(true);
        Ok(Daemon { log, mqtt, media, api, console, uplink, ready })
    }

    /// The line that tests, scripts and people wait for: `headwater ready mqtt=127.0.0.1:1883 ... gateway=...`.
    pub fn ready_line(&self) -> String {
        let mut line = "headwater ready".to_owned();
        let listeners = [
            ("mqtt", self.mqtt.local_addr()),
            ("mqtts", self.mqtt.tls_local_addr()),
            ("api", self.api.as_ref().map(Api::local_addr)),
            ("console", self.console.as_ref().map(Console::local_addr)),
        ];
        for (name, address) in listeners {
            if let Some(address) = address {
                let _ = write!(line, " {name}={address}");
            }
        }
        let _ = write!(line, " gateway={}", self.log.gateway_id());
        line
    }

    /// Stops the parts in order; returns what is left of the bound for the log. Each part takes what the one before it
    /// left over, and a small share of its own in any case.
    pub async fn stop(self, bound: Duration) -> Duration {
        let started = Instant::now();
        let share = |most: Duration| bound.saturating_sub(started.elapsed()).min(most).max(bound / 20);
        self.ready.send_replace(false);
        let api = async {
            if let Some(api) = self.api {
                api.stop(share(bound / 3)).await;
            }
        };
        // Producers first: what they have handed in is acknowledged while their connections last.
        self.media.stop(share(bound / 4)).await;
        tokio::join!(self.mqtt.stop(share(bound / 3)), api);
        self.uplink.stop(share(bound / 3)).await;
        if let Some(console) = self.console {
            console.stop(share(bound / 10)).await;
        }
        bound.saturating_sub(started.elapsed()).max(bound / 4)
    }
}

/// Serves until a signal ends it; returns what is left of the bound for closing the log.
async fn serve(daemon: Daemon, stop_within: Duration) -> Result<Duration> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let notify = Notify::from_env();
    eprintln!("{}", daemon.ready_line());
    notify.tell("READY=1");
    let mut beat = tokio::time::interval(notify.beat());
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                tracing::warn!("SIGHUP: reloading a configuration while running is not there yet; restart to apply it");
            }
            _ = beat.tick() => match daemon.log.commit_hangs_for().filter(|hangs| *hangs >= notify.watchdog()) {
                None => notify.tell("WATCHDOG=1"),
                Some(hangs) => tracing::error!(for_s = hangs.as_secs(), "a commit hangs; the watchdog is not told that all is well"),
            },
        }
    }
    tracing::info!(within_ms = stop_within.as_millis() as u64, "stopping");
    notify.tell("STOPPING=1");
    tokio::select! {
        left = daemon.stop(stop_within) => Ok(left),
        _ = terminate.recv() => anyhow::bail!("stopped by a second signal before everything was drained; nothing acknowledged is lost"),
        _ = interrupt.recv() => anyhow::bail!("stopped by a second signal before everything was drained; nothing acknowledged is lost"),
    }
}

/// The counters at the end, for whoever measures: `headwater stopped commits=... journal_bytes=...`.
fn stopped_line(metrics: &Metrics) -> String {
    format!(
        "headwater stopped commits={} folds={} journal_bytes={} segment_bytes={} blob_bytes={} window_bytes={}",
        metrics.commits.get(),
        metrics.folds.get(),
        metrics.journal_written.get(),
        metrics.segments_written.get(),
        metrics.blobs_written.get(),
        metrics.window_size.get(),
    )
}
