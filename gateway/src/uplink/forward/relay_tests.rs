//! Blocks and lanes by turns into the door of another Headwater, over a sink that fails in every way it can.

use super::super::{Forwarder, Setup, Through};
use crate::api::{Api, ApiConfig};
use crate::clock::Clock;
use crate::log::{Batch, Log, OnFull, Options, Placement, Stream, StreamSettings};
use crate::metrics::{Metrics, OperationLabel};
use crate::record::{HeaderId, NewRecord, Record, StreamName};
use crate::units::ByteSize;
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
                // A full stream: nothing of it was stored.
                4 => {
                    let stored = Ok(Taken::Some(vec![false; relay.records()]));
                    return Relayed { stored, map_is_stale: false };
                }
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

/// A log of `here` whose records of these thousands are folded, as a backlog is.
fn folded(here: &std::path::Path, clock: &Clock, shards: u32, thousands: std::ops::Range<u32>) -> (Log, Arc<Stream>) {
    let log = open(here, clock);
    let stream = log.create_stream(&StreamName::new("s").unwrap(), StreamSettings { shards, ..Default::default() });
    let stream = stream.unwrap();
    thousands.for_each(|part| put(&log, &stream, part * 1000..(part + 1) * 1000));
    drop(stream);
    log.close(Duration::from_secs(10));
    let log = open(here, clock);
    let stream = log.stream("s").unwrap();
    log.register_sink("up", std::slice::from_ref(&stream), true);
    (log, stream)
}

/// A forwarder to the API at `to`, over what `wrap` makes of its sink, and what stops it.
fn forwarder(
    (log, stream): (&Log, &Arc<Stream>),
    to: std::net::SocketAddr,
    clock: &Clock,
    cap: Option<u64>,
    wrap: impl FnOnce(KinesisSink) -> Arc<dyn Sink>,
) -> (Forwarder, watch::Sender<bool>) {
    let who =
        Identity { gateway: log.gateway_id().to_owned(), incarnation: log.incarnation(), stream: stream.name.clone() };
    let config: KinesisConfig = serde_json::from_value(serde_json::json!({
        "name": "up", "endpoint": format!("http://{to}"), "credentials": "none", "timeout": "5 s"
    }))
    .unwrap();
    let (stop, stopped) = watch::channel(false);
    let forwarder = Forwarder::new(Setup {
        log: log.clone(),
        stream: stream.clone(),
        config: Through {
            sink: wrap(KinesisSink::new(&config, who.clone())),
            common: config.common.clone(),
            sending: config.sending.clone(),
        },
        who,
        clock: clock.clone(),
        metrics: Metrics::new(),
        budget: Arc::new(Mutex::new(Budget::new(cap, clock.now().mono_ms))),
        trouble: Default::default(),
        stop: stopped,
    });
    (forwarder, stop)
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

    let (log, stream) = folded(here.path(), &clock, 2, 0..150);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let flaky = |inner| Arc::new(Flaky { inner, turn: Mutex::new(fastrand::Rng::with_seed(seed)) }) as Arc<dyn Sink>;
    let (forwarder, stop) = forwarder((&log, &stream), api.local_addr(), &clock, None, flaky);
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
}

// Blocks and batches that a full stream refuses are answered record by record: such an answer is no success.
#[tokio::test(flavor = "multi_thread")]
async fn p4_what_a_full_stream_of_another_headwater_refuses_is_sent_again_until_it_has_room() {
    let clock = Clock::system();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = StreamName::new("s").unwrap();
    let upstream = open(there.path(), &clock);
    let full = StreamSettings {
        shards: 1,
        max_bytes: Some(ByteSize::mib(1)),
        on_full: OnFull::Reject,
        ..StreamSettings::default()
    };
    let target = upstream.create_stream(&name, full.clone()).unwrap();
    let before = until_full(&upstream, &target).await;
    let config = ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..ApiConfig::default() };
    let api = Api::start(&config, upstream.clone(), clock.clone(), Metrics::new()).await.unwrap();

    let (log, stream) = folded(here.path(), &clock, 1, 1..21);
    let (forwarder, stop) = forwarder((&log, &stream), api.local_addr(), &clock, None, |sink| Arc::new(sink));
    let running = tokio::spawn(forwarder.run());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(log.cursor("up", &stream, 0).next, 1, "nothing of it is there");
    assert_eq!(upstream.records(&target).unwrap().len(), before);
    upstream.update_stream(&name, StreamSettings { max_bytes: None, ..full }).unwrap();
    for _ in 0..300 {
        if log.cursor("up", &stream, 0).next > stream.shard(0).unwrap().newest() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.send(true).unwrap();
    running.await.unwrap();
    let records = upstream.records(&target).unwrap();
    let ids: HashSet<_> = records[before..].iter().map(|record| record.header(HeaderId::Origin).unwrap()).collect();
    assert_eq!((records.len() - before, ids.len()), (20_000, 20_000), "each once");
}

/// Fills a stream that rejects; how many records it has then.
async fn until_full(log: &Log, stream: &Arc<Stream>) -> usize {
    let data: Vec<u8> = (0..60_000).map(|_| fastrand::u8(..)).collect();
    for count in 0..10_000 {
        let mut batch = Batch::new();
        batch.push(stream, &NewRecord { key: b"k", data: &data, ..Default::default() }).unwrap();
        if matches!(log.appender().commit(&mut batch).await.unwrap()[0], Placement::Full { .. }) {
            return count;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it is never full");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_held_to_the_bandwidth_cap() {
    const BYTES_PER_S: u64 = 512 << 10;
    let clock = Clock::system();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (name, settings) = (StreamName::new("s").unwrap(), StreamSettings { shards: 1, ..Default::default() });
    let upstream = open(there.path(), &clock);
    let target = upstream.create_stream(&name, settings).unwrap();
    let (config, metrics) =
        (ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..ApiConfig::default() }, Metrics::new());
    let api = Api::start(&config, upstream.clone(), clock.clone(), metrics.clone()).await.unwrap();
    let (log, stream) = folded(here.path(), &clock, 1, 1..21);
    let begun = std::time::Instant::now();
    let (forwarder, stop) =
        forwarder((&log, &stream), api.local_addr(), &clock, Some(BYTES_PER_S), |sink| Arc::new(sink));
    let running = tokio::spawn(forwarder.run());
    while target.shard(0).unwrap().newest() < 20_000 {
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", target.shard(0).unwrap().newest());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    stop.send(true).unwrap();
    running.await.unwrap();
    let label = OperationLabel { operation: "HeadwaterBlocks", status: 200 };
    println!("{took:?} {} requests of blocks", metrics.api_requests.get_or_create(&label).get());
    assert!(metrics.api_requests.get_or_create(&label).get() > 3);
    // Two megabytes and more, of which a second's worth was in hand.
    assert!(took > Duration::from_secs(2), "{took:?}");
}
