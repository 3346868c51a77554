//! A log with records in it, an uplink, and the audit of what arrived.

use headwater::clock::Clock;
use headwater::log::{Batch, Log, Options, Placement, Stream, StreamSettings};
use headwater::metrics::Metrics;
use headwater::record::{NewRecord, StreamName};
use headwater::units::{ByteSize, Span};
use headwater::uplink::{SinkConfig, Uplink};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub log: Log,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub stream: Arc<Stream>,
    pub uplink: Option<Uplink>,
    /// Records sent for each key.
    pub sent: HashMap<String, u64>,
}

pub const STREAM: &str = "telemetry";

impl Rig {
    pub fn new(shards: u32) -> Self {
        Self::with_clock(shards, Clock::system())
    }

    pub fn with_clock(shards: u32, clock: Clock) -> Self {
        let _ = tracing_subscriber::fmt().with_max_level(level()).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let log = open(dir.path(), &clock, &metrics);
        let settings = StreamSettings { shards, ..StreamSettings::default() };
        let stream = log.create_stream(&StreamName::new(STREAM).unwrap(), settings).unwrap();
        Rig { dir, log, clock, metrics, stream, uplink: None, sent: HashMap::new() }
    }

    pub async fn start(&mut self, toml: &str) {
        let sinks = [serde_json::from_value::<SinkConfig>(config(toml)).unwrap()];
        let uplink = Uplink::start(&sinks, self.log.clone(), self.clock.clone(), self.metrics.clone()).await;
        self.uplink = Some(uplink.unwrap());
    }

    pub async fn stop(&mut self) {
        if let Some(uplink) = self.uplink.take() {
            uplink.stop(Duration::from_secs(2)).await;
        }
    }

    /// Closes the log and opens it again, as a restart does.
    pub async fn restart(&mut self, config: &str) {
        self.stop().await;
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close(Duration::from_secs(5))).await.unwrap();
        self.log = open(self.dir.path(), &self.clock, &self.metrics);
        self.stream = self.log.stream(STREAM).unwrap();
        self.start(config).await;
    }

    /// Puts `count` records, their keys in turn, each saying its key and its number within the key.
    pub async fn put(&mut self, count: usize, keys: usize) {
        self.put_padded(count, keys, 0).await;
    }

    /// The same with so many bytes that do not compress.
    pub async fn put_padded(&mut self, count: usize, keys: usize, pad: usize) {
        let keys: Vec<_> = (0..keys).map(|at| format!("dev-{at}")).collect();
        self.put_under(count, &keys, pad).await;
    }

    /// The same under keys of the test's choice.
    pub async fn put_under(&mut self, count: usize, keys: &[String], pad: usize) {
        let mut appender = self.log.appender();
        let mut left = count;
        while left > 0 {
            let mut batch = Batch::new();
            for at in 0..left.min(1000) {
                let key = keys[(left + at) % keys.len()].clone();
                let number = self.sent.entry(key.clone()).or_default();
                *number += 1;
                let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(pad).collect();
                let data = format!("{{\"k\":\"{key}\",\"n\":{number},\"pad\":\"{pad}\"}}");
                let record = NewRecord { key: key.as_bytes(), data: data.as_bytes(), ..Default::default() };
                batch.push(&self.stream, &record).unwrap();
            }
            left -= batch.len();
            let placements = appender.commit(&mut batch).await.unwrap();
            assert!(placements.iter().all(|placement| matches!(placement, Placement::Stored { .. })));
        }
    }

    /// Puts records until the stream had no room left for the first thousand of its only shard. No sink may hold them.
    pub async fn put_until_evicted(&mut self) {
        let settings = StreamSettings { max_bytes: Some(ByteSize::mib(8)), ..self.stream.settings() };
        self.log.update_stream(&self.stream.name, settings).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while self.stream.shards()[0].oldest() < 1000 {
            assert!(Instant::now() < until, "nothing is evicted");
            self.put_padded(1000, 10, 4000).await;
        }
    }

    /// Checks every field of the gap records of shard 0, of which all up to `delivered` had left before it was evicted;
    /// how many records they tell of.
    pub fn told_as_evicted(&self, gaps: &[serde_json::Value], delivered: u64) -> u64 {
        let (mut next, now_ms) = (delivered + 1, self.clock.now().wall_ms);
        for gap in gaps {
            let number = |key: &str| gap[key].as_u64().unwrap_or_else(|| panic!("no {key} in {gap}"));
            let (to, from_time, to_time) = (number("to"), number("from_time"), number("to_time"));
            let expected = serde_json::json!({
                "headwater": "gap", "gateway": self.log.gateway_id(), "stream": STREAM, "shard": 0,
                "from": next, "to": to, "count": to + 1 - next, "reason": "evicted",
                "from_time": from_time, "to_time": to_time,
            });
            assert_eq!(*gap, expected);
            let (earliest, latest) = (now_ms - 120_000, now_ms);
            assert!(earliest <= from_time && from_time <= to_time && to_time <= latest, "{gap}, now {now_ms}");
            next = to + 1;
        }
        next - delivered - 1
    }

    pub fn total(&self) -> u64 {
        self.sent.values().sum()
    }

    /// Records no cursor of the sink has passed.
    pub fn backlog(&self, sink: &str) -> u64 {
        let open = |shard: &Arc<headwater::log::Shard>| {
            let cursor = self.log.cursor(sink, &self.stream, shard.index);
            let above: u64 = cursor.done.iter().map(|(from, to)| to - from + 1).sum();
            (shard.newest() + 1).saturating_sub(cursor.next).saturating_sub(above)
        };
        self.stream.shards().iter().map(open).sum()
    }

    /// Waits until the sink's cursors have passed everything.
    pub async fn drained(&self, sink: &str, within: Duration) {
        let until = Instant::now() + within;
        while self.backlog(sink) > 0 {
            assert!(Instant::now() < until, "{} records left, {:?}", self.backlog(sink), self.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Why the first sink holds, if it does.
    pub fn trouble(&self) -> Option<String> {
        self.status().first().and_then(|status| status.trouble.clone())
    }

    /// Waits until the first sink holds and says this.
    pub async fn troubled(&self, says: &str, within: Duration) {
        let until = Instant::now() + within;
        while !self.trouble().is_some_and(|trouble| trouble.contains(says)) {
            assert!(Instant::now() < until, "no trouble with {says:?}: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A gauge of one sink and this stream, as `/metrics` shows it.
    pub fn figure(&self, name: &str, sink: &str) -> f64 {
        let line = format!("{name}{{sink=\"{sink}\",stream=\"{STREAM}\"}} ");
        let text = self.metrics.render();
        let value = text.lines().find_map(|told| told.strip_prefix(&line)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {line}in {text}"))
    }

    pub fn status(&self) -> Vec<headwater::uplink::SinkStatus> {
        self.uplink.as_ref().map(Uplink::status).unwrap_or_default()
    }

    /// Compares what arrived, in the order it is seen, with what was sent.
    pub fn audit<'a>(&self, arrived: impl Iterator<Item = (&'a str, &'a [u8], Option<&'a str>)>) -> Audit {
        let mut audit = Audit::default();
        let mut newest: HashMap<String, u64> = HashMap::new();
        let mut ids: HashMap<String, (String, u64)> = HashMap::new();
        let mut seen: HashMap<(String, u64), Option<String>> = HashMap::new();
        for (key, data, id) in arrived {
            let value: serde_json::Value = serde_json::from_slice(data).unwrap();
            if value["headwater"] == "gap" {
                audit.gaps.push(value);
                continue;
            }
            let number = value["n"].as_u64().unwrap();
            assert_eq!(value["k"], key);
            let place = (key.to_owned(), number);
            if let Some(id) = id {
                let first = ids.entry(id.to_owned()).or_insert_with(|| place.clone());
                assert_eq!(*first, place, "one id names one record");
            }
            if let Some(known) = seen.get(&place) {
                assert_eq!(known.as_deref(), id, "a duplicate carries the same record id");
                audit.duplicated += 1;
                continue;
            }
            seen.insert(place, id.map(str::to_owned));
            let last = newest.entry(key.to_owned()).or_default();
            if number < *last {
                audit.reordered += 1;
            }
            *last = number.max(*last);
        }
        audit.arrived = seen.len() as u64;
        audit.lost = self.total() - audit.arrived;
        audit
    }
}

/// A clock that runs sixty times as fast as the machine's, for waits that people measure in minutes.
pub struct Fast {
    pub clock: Clock,
    task: tokio::task::AbortHandle,
}

impl Fast {
    pub fn start() -> Self {
        const STEP_MS: u64 = 5;
        // In 2027: later than the gateway was built, so that it is believed.
        let clock = Clock::manual(1, 1_800_000_000_000);
        let moved = clock.clone();
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(STEP_MS));
            loop {
                tick.tick().await;
                moved.advance(STEP_MS * 60);
            }
        });
        Fast { clock, task: task.abort_handle() }
    }

    pub fn now_ms(&self) -> u64 {
        self.clock.now().mono_ms
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Audit {
    pub arrived: u64,
    pub lost: u64,
    /// Judged on the first occurrence of each record.
    pub reordered: u64,
    pub duplicated: u64,
    pub gaps: Vec<serde_json::Value>,
}

impl Audit {
    #[track_caller]
    pub fn nothing_lost_or_reordered(&self) {
        assert_eq!((self.lost, self.reordered), (0, 0), "{self:?}");
    }
}

pub fn open(dir: &Path, clock: &Clock, metrics: &Arc<Metrics>) -> Log {
    let options =
        Options { max_bytes: ByteSize::mib(512), thin_commits_per_s: 1000, linger: Span::ms(1), ..Options::new(dir) };
    Log::open(options, clock.clone(), metrics.clone()).unwrap()
}

/// A sink's section, as JSON.
fn config(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn level() -> tracing_subscriber::filter::LevelFilter {
    std::env::var("RUST_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(tracing_subscriber::filter::LevelFilter::WARN)
}
