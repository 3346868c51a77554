//! The forwarder over a real log, against a sink that answers as the test says.

use super::*;
use crate::clock::Clock;
use crate::log::{Log, Options, Stream, StreamSettings};
use crate::metrics::Metrics;
use crate::record::{NewRecord, Record, StreamName};
use crate::units::ByteSize;
use crate::uplink::budget::Budget;
use crate::uplink::config::Sending;
use crate::uplink::figures::Trouble;
use crate::uplink::sink::{Identity, Limits, SinkFuture};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use tokio::sync::{Notify, watch};

type Script = Box<dyn Fn(usize, Request) -> SinkFuture<'static, Answer> + Send + Sync>;

/// Two requests at once, one group each.
struct Scripted {
    script: Script,
    sent: AtomicUsize,
}

impl Sink for Scripted {
    fn limits(&self) -> Limits {
        Limits {
            group_records_max: 10,
            group_bytes_max: 1 << 20,
            distinct_keys: false,
            alone: None,
            headers_max: usize::MAX,
            record_overhead: 0,
            entry_per_record: false,
            request_entries_max: 1,
            request_bytes_max: 1 << 20,
            requests_in_flight_max: 2,
            blocks: false,
        }
    }

    fn map(&self) -> SinkFuture<'_, Result<ShardMap, Fault>> {
        Box::pin(async { Ok(ShardMap::whole()) })
    }

    fn send(&self, request: Request) -> SinkFuture<'_, Answer> {
        (self.script)(self.sent.fetch_add(1, Ordering::Relaxed), request)
    }

    fn refusal(&self, _: &Record) -> Option<String> {
        None
    }
}

/// All groups with this outcome.
fn each(request: &Request, outcome: &Outcome) -> Answer {
    let outcomes = request.groups.iter().map(|_| outcome.clone()).collect();
    Answer { outcomes, map_is_stale: false, whole: None }
}

/// A log with one shard and records of two keys in it, by turns.
async fn log_with(dir: &std::path::Path, records: usize, data: &[u8]) -> (Log, Arc<Stream>) {
    let log = Log::open(Options::new(dir), Clock::system(), Metrics::new()).unwrap();
    let settings = StreamSettings { shards: 1, ..Default::default() };
    let stream = log.create_stream(&StreamName::new("s").unwrap(), settings).unwrap();
    let mut batch = crate::log::Batch::new();
    for n in 0..records {
        let key = if n % 2 == 0 { b"a" } else { b"b" };
        batch.push(&stream, &NewRecord { key, data, ..Default::default() }).unwrap();
    }
    log.appender().commit(&mut batch).await.unwrap();
    log.register_sink("up", std::slice::from_ref(&stream), true);
    (log, stream)
}

fn forwarder(
    log: &Log,
    stream: &Arc<Stream>,
    sink: &Arc<Scripted>,
    sending: Sending,
) -> (Forwarder, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let forwarder = Forwarder::new(Setup {
        log: log.clone(),
        stream: stream.clone(),
        config: Through { sink: sink.clone(), common: Common { name: "up".into(), ..Common::default() }, sending },
        who: Identity { gateway: "g".into(), incarnation: 1, stream: stream.name.clone() },
        clock: Clock::system(),
        metrics: Metrics::new(),
        budget: Arc::new(Mutex::new(Budget::new(None, 0))),
        trouble: Trouble::default(),
        stop: stopped,
    });
    (forwarder, stop)
}

/// What is held of a backlog of 4 MB behind a request of the first key that never comes back after two
/// seconds: bytes in hand, and bytes from the first record that is not acknowledged.
async fn held_behind_a_stuck_request(sending: Sending) -> (usize, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (log, stream) = log_with(dir.path(), 4_000, &[b'x'; 1_000]).await;
    let script: Script = Box::new(|at, request| {
        Box::pin(async move {
            match at {
                0 => std::future::pending().await,
                _ => each(&request, &Outcome::Stored),
            }
        })
    });
    let sink = Arc::new(Scripted { script, sent: AtomicUsize::new(0) });
    let (mut forwarder, _stop) = forwarder(&log, &stream, &sink, sending);
    let until = tokio::time::Instant::now() + Duration::from_secs(2);
    while tokio::time::timeout_at(until, forwarder.turn()).await.is_ok() {}
    (forwarder.lanes[0].held_bytes(), forwarder.lanes[0].progress().window_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_stuck_key_holds_no_more_than_the_memory_and_the_window_of_its_sink() {
    let bound = ByteSize(256 << 10);
    let chunk = 256 << 10;
    let (held, _) = held_behind_a_stuck_request(Sending { memory: bound, ..Sending::default() }).await;
    assert!((100_000..(256 << 10) + chunk).contains(&held), "{held}");
    let (_, window) = held_behind_a_stuck_request(Sending { window: bound, ..Sending::default() }).await;
    assert!((100_000..(256 << 10) + chunk as u64).contains(&window), "{window}");
}

struct Run {
    _dir: tempfile::TempDir,
    log: Log,
    stream: Arc<Stream>,
    sink: Arc<Scripted>,
    trouble: Trouble,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Run {
    /// Two records in two lanes, on their way.
    async fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, stream) = log_with(dir.path(), 2, b"x").await;
        let sink = Arc::new(Scripted { script, sent: AtomicUsize::new(0) });
        let (forwarder, stop) = forwarder(&log, &stream, &sink, Sending::default());
        let trouble = forwarder.setup.trouble.clone();
        let running = tokio::spawn(forwarder.run());
        Run { _dir: dir, log, stream, sink, trouble, stop, running }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}: {} sent, {:?}", self.sink.sent.load(Ordering::Relaxed), self.trouble.get());
    }

    fn sent(&self) -> usize {
        self.sink.sent.load(Ordering::Relaxed)
    }
}

/// What was acknowledged while the last requests were waited for was saved when all had come back: where one hung until it
/// was given up, everything else of the drain was sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_while_it_stops_is_saved_though_another_request_hangs() {
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let run = Run::start(Box::new(move |at, request| {
        let released = released.clone();
        Box::pin(async move {
            match at {
                0 => std::future::pending().await,
                _ => released.notified().await,
            }
            each(&request, &Outcome::Stored)
        })
    }))
    .await;
    run.until("two requests", |run| run.sent() == 2).await;
    run.stop.send(true).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    release.notify_one();
    run.until("a cursor", |run| {
        let cursor = run.log.cursor("up", &run.stream, 0);
        cursor.next == 2 || cursor.done == [(2, 2)]
    })
    .await;
    run.running.abort();
}

/// A watch that nobody can write to any more is ready at once, always: the forwarder span.
#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_nobody_is_left_to_stop_it() {
    let run = Run::start(Box::new(|_, request| Box::pin(async move { each(&request, &Outcome::Stored) }))).await;
    run.until("sent", |run| run.sent() == 2).await;
    drop(run.stop);
    tokio::time::timeout(Duration::from_secs(5), run.running).await.unwrap().unwrap();
}

/// Every answer that was one cleared the trouble, though all that was sent was refused in it: "holds" and "flows again" by
/// turns, and requests at full width.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stores_nothing_of_what_it_answers_has_not_come_back() {
    let run = Run::start(Box::new(|at, request| {
        Box::pin(async move {
            match at {
                0..2 => Answer::all(&request, Fault::Throttled),
                2..8 => each(&request, &Outcome::Failed(Fault::Throttled)),
                _ => each(&request, &Outcome::Stored),
            }
        })
    }))
    .await;
    run.until("six requests", |run| run.sent() >= 6).await;
    assert!(run.trouble.get().is_some());
    run.until("all sent", |run| run.log.cursor("up", &run.stream, 0).next == 3).await;
    assert_eq!(run.trouble.get(), None);
}

/// The shard map is asked for after each failure: that it can be had must not make the next wait a first one again.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_fail_wait_ever_longer_though_the_map_can_be_had() {
    let run = Run::start(Box::new(|_, request| {
        Box::pin(async move { Answer::all(&request, Fault::Broken("by the test".into())) })
    }))
    .await;
    run.until("a failure", |run| run.trouble.get().is_some()).await;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(run.trouble.get().is_some(), "nothing went well");
    }
    assert!((4..30).contains(&run.sent()), "{} requests in 3 s", run.sent());
}
