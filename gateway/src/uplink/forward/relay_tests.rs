//! Blocks and lanes by turns into the door of another Headwater, over a sink that fails in every way it can.

use super::super::{Forwarder, Setup};
use crate::api::{Api, ApiConfig};
use crate::clock::Clock;
use crate::log::{Batch, Log, Options, Stream, StreamSettings};
use crate::metrics::{Metrics, OperationLabel};
use crate::record::{HeaderId, NewRecord, Record, StreamName};
use crate::uplink::budget::Budget;
use crate::uplink::map::ShardMap;
use crate::uplink::sink::kinesis::{KinesisConfig, KinesisSink};
use crate::uplink::sink::{Answer, Fault, Identity, Limits, Relay, Relayed, Request, Sink, SinkFuture, Taken};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// What it does to a request, in turn.
struct Flaky {
    inner: KinesisSink,
    turn: Mutex<fastrand::Rng>,
}

impl Flaky {
    fn roll(&self, sides: u8) -> u8 {
        self.turn.lock().unwrap().u8(..sides)
    }
}

fn broken() -> Fault {
    Fault::Broken("by the test".into())
}

impl Sink for Flaky {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn map(&self) -> SinkFuture<'_, Result<ShardMap, Fault>> {
        self.inner.map()
    }

    fn send(&self, request: Request) -> SinkFuture<'_, Answer> {
        Box::pin(async move {
            let lost = self.roll(12) == 0;
            let answer = self.inner.send(request.clone()).await;
            if lost { Answer::all(&request, broken()) } else { answer }
        })
    }

    fn relay(&self, relay: Arc<Relay>) -> SinkFuture<'_, Relayed> {
        Box::pin(async move {
            let roll = self.roll(8);
            let failed = |fault| Relayed { stored: Err(fault), map_is_stale: false };
            match roll {
                0 => return failed(broken()),
                1 => return failed(Fault::Refused("by the test".into())),
                _ => {}
            }
            let count = relay.records();
            let answer = self.inner.relay(relay).await;
            match roll {
                2 => failed(broken()),
                // Less than was stored, so that the rest is told a second time.
                3 if answer.stored.is_ok() => {
                    let stored = (0..count).map(|_| self.roll(2) == 0).collect();
                    Relayed { stored: Ok(Taken::Some(stored)), map_is_stale: true }
                }
                _ => answer,
            }
        })
    }

    fn refusal(&self, record: &Record) -> Option<String> {
        self.inner.refusal(record)
    }
}

fn open(dir: &std::path::Path, clock: &Clock) -> Log {
    Log::open(Options::new(dir), clock.clone(), Metrics::new()).unwrap()
}

fn put(log: &Log, stream: &Arc<Stream>, numbers: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    for n in numbers {
        // Now and then one that a block does not hold.
        let pad = if n % 50_021 == 0 { 70_000 } else { 150 };
        let data = format!("{n} {}", (0..pad).map(|_| fastrand::alphanumeric()).collect::<String>());
        let key = format!("dev-{}", n % 53);
        batch.push(stream, &NewRecord { key: key.as_bytes(), data: data.as_bytes(), ..Default::default() }).unwrap();
    }
    log.appender().commit_blocking(&mut batch).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_p4_blocks_and_lanes_by_turns_lose_reorder_and_duplicate_nothing() {
    let clock = Clock::system();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let upstream = open(there.path(), &clock);
    let target =
        upstream.create_stream(&StreamName::new("s").unwrap(), StreamSettings { shards: 3, ..Default::default() });
    let (target, metrics) = (target.unwrap(), Metrics::new());
    let config = ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..ApiConfig::default() };
    let api = Api::start(&config, upstream.clone(), clock.clone(), metrics.clone()).await.unwrap();

    let log = open(here.path(), &clock);
    log.create_stream(&StreamName::new("s").unwrap(), StreamSettings { shards: 2, ..Default::default() }).unwrap();
    (0..150).for_each(|part| put(&log, &log.stream("s").unwrap(), part * 1000..(part + 1) * 1000));
    log.close(Duration::from_secs(10));
    let log = open(here.path(), &clock);
    let stream = log.stream("s").unwrap();
    let who =
        Identity { gateway: log.gateway_id().to_owned(), incarnation: log.incarnation(), stream: stream.name.clone() };
    let config: KinesisConfig = serde_json::from_value(serde_json::json!({
        "name": "up", "endpoint": format!("http://{}", api.local_addr()), "credentials": "none", "timeout": "5 s"
    }))
    .unwrap();
    log.register_sink("up", std::slice::from_ref(&stream), true);
    let (stop, stopped) = watch::channel(false);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let sink =
        Flaky { inner: KinesisSink::new(&config, who.clone()), turn: Mutex::new(fastrand::Rng::with_seed(seed)) };
    let forwarder = Forwarder::new(Setup {
        log: log.clone(),
        stream: stream.clone(),
        sink: Arc::new(sink),
        common: config.common.clone(),
        sending: config.sending.clone(),
        who,
        clock: clock.clone(),
        metrics: Metrics::new(),
        budget: Arc::new(Mutex::new(Budget::new(None, 0))),
        trouble: Default::default(),
        stop: stopped,
    });
    let running = tokio::spawn(forwarder.run());
    for part in 150..160 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (log, stream) = (log.clone(), stream.clone());
        tokio::task::spawn_blocking(move || put(&log, &stream, part * 1000..(part + 1) * 1000)).await.unwrap();
    }
    for _ in 0..600 {
        if stream.shards().iter().all(|shard| log.cursor("up", &stream, shard.index).next > shard.newest()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.send(true).unwrap();
    running.await.unwrap();

    let label = OperationLabel { operation: "HeadwaterBlocks", status: 200 };
    let relayed = metrics.api_requests.get_or_create(&label).get();
    assert!(relayed > 3, "{relayed} requests of blocks");
    let (mut ids, mut last): (HashSet<Bytes>, HashMap<Bytes, u32>) = Default::default();
    let records = upstream.records(&target).unwrap();
    for record in &records {
        assert!(ids.insert(record.header(HeaderId::Origin).unwrap().clone()), "no id twice");
        let n: u32 = std::str::from_utf8(&record.data).unwrap().split(' ').next().unwrap().parse().unwrap();
        let expected = last.get(&record.key).map_or(n % 53, |before| before + 53);
        assert_eq!(n, expected, "in order, and none is missing");
        last.insert(record.key.clone(), n);
    }
    assert_eq!(records.len(), 160_000);
    assert_eq!(target.record_count(), 160_000);
}
