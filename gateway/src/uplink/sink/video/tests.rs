//! The forwarder over a real log, against an upstream that speaks PutMedia and fails as the test says.

use super::*;
use crate::clock::Clock;
use crate::log::{Batch, Log, Options, Stream, StreamKind, StreamSettings, Table};
use crate::metrics::Metrics;
use crate::record::{Header, HeaderId, NewRecord, Record, StreamName};
use crate::uplink::budget::Budget;
use crate::uplink::figures::Trouble;
use crate::uplink::setup::Setup;
use crate::uplink::sink::Identity;
use crate::wire::media::{Mark, Media, Wanted, head_id};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// EBML without a word, and a Segment that never ends.
const HEAD: &[u8] =
    &[0x1a, 0x45, 0xdf, 0xa3, 0x80, 0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
/// Another: with a Void element in it.
const OTHER_HEAD: &[u8] =
    &[0x1a, 0x45, 0xdf, 0xa3, 0x80, 0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xec, 0x80];

/// A fragment as it is stored: a head of a few bytes, a cluster with a time and noise.
pub fn records(number: u64, start_ms: i64, bytes: usize, part_bytes: usize, head: &[u8]) -> Vec<Record> {
    let size = |bytes: usize| (bytes as u64 | 1 << 56).to_be_bytes();
    let mut body = vec![0xe7, 0x88];
    body.extend(start_ms.to_be_bytes());
    body.push(0xec);
    body.extend(size(bytes));
    body.extend(std::iter::repeat_n(start_ms as u8, bytes));
    let whole = [head, &[0x1f, 0x43, 0xb6, 0x75][..], &size(body.len())[..], &body[..]].concat();
    let parts = whole.chunks(part_bytes).count() as u8;
    let media = Media {
        part: 0,
        parts,
        discontinuity: false,
        start_ms,
        duration_ms: 1000,
        bytes: whole.len() as u32,
        head_bytes: head.len() as u32,
        head_id: head_id(head),
        delay_ms: 0,
    };
    let record = |(part, data): (usize, &[u8])| Record {
        number: number + part as u64,
        arrival_ms: 1000,
        key: "cam".into(),
        explicit_hash: None,
        producer: None,
        headers: vec![
            Media { part: part as u8, ..media }.header(),
            Header::new(HeaderId::ContentType, "video/x-matroska"),
        ],
        data: Bytes::copy_from_slice(data),
    };
    whole.chunks(part_bytes).enumerate().map(record).collect()
}

/// A fragment that came whole.
#[derive(Clone, Copy, Debug)]
struct Came {
    connection: usize,
    /// On this connection, from 0.
    at: usize,
    timecode: i64,
}

#[derive(Clone, Debug)]
enum Act {
    /// Kept, and said so.
    Persist,
    /// Kept, and not said.
    Keep,
    Say(String),
    Cut,
    Hang,
}

type Script = dyn Fn(Came) -> Vec<Act> + Send + Sync;
type Cut = dyn Fn(usize) -> Option<usize> + Send + Sync;

#[derive(Default)]
struct Seen {
    kept: Vec<(usize, i64)>,
    connections: usize,
    bytes: usize,
}

struct Upstream {
    address: String,
    seen: Arc<Mutex<Seen>>,
}

fn persisted(timecode: i64) -> String {
    format!("{{\"EventType\":\"PERSISTED\",\"FragmentTimecode\":{timecode},\"FragmentNumber\":\"1\"}}")
}

fn error(timecode: &str, id: u32) -> String {
    format!("{{\"EventType\":\"ERROR\",{timecode}\"ErrorId\":{id},\"ErrorCode\":\"NO\"}}")
}

impl Upstream {
    /// `cut`: connection and bytes of its body after which it breaks.
    async fn start(
        cut: impl Fn(usize) -> Option<usize> + Send + Sync + 'static,
        script: impl Fn(Came) -> Vec<Act> + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let cut: Arc<Cut> = Arc::new(cut);
        let script: Arc<Script> = Arc::new(script);
        let (told, to) = (seen.clone(), address.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (seen, cut, script, to) = (told.clone(), cut.clone(), script.clone(), to.clone());
                tokio::spawn(async move { drop(serve(tcp, seen, &*cut, &*script, &to).await) });
            }
        });
        Upstream { address, seen }
    }

    /// Times of what it kept, in the order of the first.
    fn kept(&self) -> Vec<i64> {
        let mut kept: Vec<i64> = Vec::new();
        for (_, timecode) in &self.seen.lock().unwrap().kept {
            if !kept.contains(timecode) {
                kept.push(*timecode);
            }
        }
        kept
    }
}

async fn serve(
    mut tcp: TcpStream,
    seen: Arc<Mutex<Seen>>,
    cut: &(dyn Fn(usize) -> Option<usize> + Send + Sync),
    script: &Script,
    address: &str,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("POST /getDataEndpoint") {
        let body = format!("{{\"DataEndpoint\":\"{address}\"}}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        return tcp.write_all(answer.as_bytes()).await;
    }
    assert!(
        head.contains("x-amzn-fragment-timecode-type: ABSOLUTE") && head.contains("x-amzn-stream-name: cam"),
        "{head}"
    );
    let connection = {
        let mut seen = seen.lock().unwrap();
        seen.connections += 1;
        seen.connections - 1
    };
    tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    let (mut media, mut bytes, mut at, mut open) = (Vec::new(), 0, 0, None);
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(tcp.read_u8().await?);
        }
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        let most = cut(connection).map_or(usize::MAX, |most| most.saturating_sub(bytes));
        let chunk = if most < size { &mut chunk[..most] } else { &mut chunk[..] };
        tcp.read_exact(chunk).await?;
        if most < size {
            return Ok(());
        }
        bytes += size;
        seen.lock().unwrap().bytes += size;
        media.extend_from_slice(&chunk[..size]);
        while let Some(begun) = next_cluster(&mut media) {
            let Some(before) = open.replace(begun) else { continue };
            if !act(&mut tcp, &seen, script, Came { connection, at, timecode: before }).await? {
                return Ok(());
            }
            at += 1;
        }
        if size == 0 {
            if let Some(timecode) = open
                && !act(&mut tcp, &seen, script, Came { connection, at, timecode }).await?
            {
                return Ok(());
            }
            return tcp.write_all(b"0\r\n\r\n").await;
        }
    }
}

/// Takes the next whole element off; the time of a cluster that is one.
fn next_cluster(media: &mut Vec<u8>) -> Option<i64> {
    loop {
        let id_bytes = media.first()?.leading_zeros() as usize + 1;
        let size_bytes = media.get(id_bytes)?.leading_zeros() as usize + 1;
        let field = media.get(id_bytes..id_bytes + size_bytes)?;
        let unknown = field[0] == 0x01 && field[1..].iter().all(|byte| *byte == 0xff);
        let mask = if size_bytes == 8 { 0 } else { 0xff >> size_bytes };
        let size = field[1..].iter().fold(usize::from(field[0] & mask), |sum, byte| sum << 8 | usize::from(*byte));
        let header = id_bytes + size_bytes;
        if unknown {
            media.drain(..header);
            continue;
        }
        let content = media.get(header..header + size)?;
        let is_cluster = media[..id_bytes] == [0x1f, 0x43, 0xb6, 0x75];
        let timecode = is_cluster.then(|| i64::from_be_bytes(content[2..10].try_into().unwrap()));
        media.drain(..header + size);
        if timecode.is_some() {
            return timecode;
        }
    }
}

/// `false` when the connection is cut.
async fn act(tcp: &mut TcpStream, seen: &Mutex<Seen>, script: &Script, came: Came) -> std::io::Result<bool> {
    for act in script(came) {
        let line = match act {
            Act::Persist | Act::Keep => {
                seen.lock().unwrap().kept.push((came.connection, came.timecode));
                if matches!(act, Act::Keep) {
                    continue;
                }
                persisted(came.timecode)
            }
            Act::Say(line) => line,
            Act::Cut => return Ok(false),
            Act::Hang => std::future::pending().await,
        };
        tcp.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
    }
    Ok(true)
}

struct Rig {
    _dir: tempfile::TempDir,
    log: Log,
    stream: Arc<Stream>,
    clock: Clock,
    trouble: Trouble,
    stop: Option<watch::Sender<bool>>,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let log = Log::open(Options::new(dir.path()), clock.clone(), Metrics::new()).unwrap();
        let settings = StreamSettings { shards: 1, kind: StreamKind::Video, ..Default::default() };
        let stream = log.create_stream(&StreamName::new("cam").unwrap(), settings).unwrap();
        log.create_stream(&StreamName::new("letters").unwrap(), StreamSettings { shards: 1, ..Default::default() })
            .unwrap();
        log.register_sink("up", std::slice::from_ref(&stream), true);
        Rig { _dir: dir, log, stream, clock, trouble: Trouble::default(), stop: None }
    }

    /// Fragments of these times, in parts of 3,000 bytes.
    async fn put(&self, times: impl IntoIterator<Item = i64>, bytes: usize, head: &[u8]) {
        let mut batch = Batch::new();
        for time in times {
            for record in records(1, time, bytes, 3_000.max(bytes / 4), head) {
                let new = NewRecord { key: b"cam", headers: &record.headers, data: &record.data, ..Default::default() };
                batch.push(&self.stream, &new).unwrap();
            }
        }
        self.log.appender().commit(&mut batch).await.unwrap();
    }

    fn start(&mut self, upstream: &Upstream, toml: &str) -> tokio::task::JoinHandle<()> {
        let text = format!(
            "name = \"up\"\ndead_letter = \"letters\"\ncredentials = \"none\"\ntimeout = \"1 s\"\nidle = \"200 ms\"\nendpoint = \"{}\"\n{toml}",
            upstream.address
        );
        let config: KinesisVideoConfig = toml::from_str(&text).unwrap();
        let (stop, stopped) = watch::channel(false);
        self.stop = Some(stop);
        let forwarder = VideoForwarder::new(Setup {
            log: self.log.clone(),
            stream: self.stream.clone(),
            who: Identity { gateway: "g".into(), incarnation: 1, stream: self.stream.name.clone() },
            clock: self.clock.clone(),
            metrics: Metrics::new(),
            budget: Arc::new(Mutex::new(Budget::new(
                Some(config.common.max_bytes_per_s.0).filter(|cap| *cap > 0),
                self.clock.now().mono_ms,
            ))),
            trouble: self.trouble.clone(),
            stop: stopped,
            config,
        });
        tokio::spawn(forwarder.run())
    }

    async fn drained(&self) {
        let newest = self.stream.shard(0).unwrap().newest();
        let until = Instant::now() + Duration::from_secs(60);
        while self.log.cursor("up", &self.stream, 0).next <= newest {
            assert!(
                Instant::now() < until,
                "at {:?} of {newest}: {:?}",
                self.log.cursor("up", &self.stream, 0),
                self.trouble.get()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn row(&self, key: String, row: impl serde::Serialize) {
        let mut batch = Batch::new();
        batch.put_state(Table::Media, key.into_bytes(), Some(serde_json::to_vec(&row).unwrap().into()));
        self.log.appender().commit(&mut batch).await.unwrap();
    }

    fn letters(&self) -> usize {
        self.log.records(&self.log.stream("letters").unwrap()).unwrap().len()
    }
}

const FIRST: i64 = 1_700_000_000_000;

fn times(count: i64) -> Vec<i64> {
    (0..count).map(|at| FIRST + at * 1_000).collect()
}

/// Sends fragments to the upstream and checks that it keeps all of them, each first one in order.
async fn sends(count: i64, upstream: &Upstream) -> Rig {
    let mut rig = Rig::new();
    rig.put(times(count), 10_000, HEAD).await;
    rig.start(upstream, "");
    rig.drained().await;
    assert_eq!(upstream.kept(), times(count));
    assert_eq!(rig.letters(), 0);
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_go_in_order_over_one_connection_and_the_last_is_stored_too() {
    let upstream = Upstream::start(|_| None, |_| vec![Act::Persist]).await;
    let rig = sends(20, &upstream).await;
    assert_eq!(upstream.seen.lock().unwrap().connections, 1);
    assert_eq!(rig.trouble.get(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_at_any_byte_costs_nothing() {
    for cut in [0, 1, 17, 18, 5_000, 10_040, 10_100, 25_000, 70_000, 99_999] {
        let upstream = Upstream::start(move |connection| (connection < 2).then_some(cut), |_| vec![Act::Persist]).await;
        sends(12, &upstream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_that_are_lost_doubled_late_or_lies_move_nothing_wrong() {
    // An answer that is lost after the fragment was kept.
    let upstream = Upstream::start(
        |_| None,
        |came| match came.connection < 3 && came.at == 2 {
            true => vec![Act::Keep, Act::Cut],
            false => vec![Act::Persist],
        },
    )
    .await;
    sends(12, &upstream).await;
    // A connection that breaks may take answers along that were on their way.
    let kept = upstream.seen.lock().unwrap().kept.len();
    assert!((15..=24).contains(&kept), "what was kept and not told is sent once more: {kept}");
    // Twice, of others, of none, of what is still to come.
    let lies = |came: Came| {
        let says = [came.timecode - 1_000, came.timecode + 50_000, FIRST * 3, -1].map(|lie| Act::Say(persisted(lie)));
        [vec![Act::Persist, Act::Say(persisted(came.timecode))], says.to_vec()].concat()
    };
    sends(12, &Upstream::start(|_| None, lies).await).await;
    // Pairs in the wrong order.
    let swapped = |came: Came| match came.timecode / 1_000 % 2 {
        0 if came.connection == 0 => vec![Act::Keep],
        _ if came.connection == 0 => vec![Act::Persist, Act::Say(persisted(came.timecode - 1_000))],
        _ => vec![Act::Persist],
    };
    sends(12, &Upstream::start(|_| None, swapped).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_acknowledges_is_left_and_its_fragments_wait() {
    let silent = |came: Came| if came.connection < 2 { vec![Act::Hang] } else { vec![Act::Persist] };
    let upstream = Upstream::start(|_| None, silent).await;
    sends(6, &upstream).await;
    let deaf = |came: Came| match came.connection < 2 {
        true => vec![Act::Say("{\"EventType\":\"IDLE\"}".into()), Act::Hang],
        false => vec![Act::Persist],
    };
    sends(6, &Upstream::start(|_| None, deaf).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fragment_that_is_never_acknowledged_is_sent_again_and_memory_is_bounded() {
    let upstream = Upstream::start(
        |_| None,
        |came| match came.connection == 0 && came.at == 1 {
            true => Vec::new(),
            false => vec![Act::Persist],
        },
    )
    .await;
    let mut rig = Rig::new();
    rig.put(times(200), 1_000, HEAD).await;
    rig.start(&upstream, "");
    rig.drained().await;
    let mut kept = upstream.kept();
    kept.sort_unstable();
    assert_eq!(kept, times(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_waited_for_and_drop_nothing() {
    for id in [4000, 4003, 4004, 4500, 5000, 5001, 7777] {
        let busy = move |came: Came| match came.connection < 2 && came.at == 1 {
            true => vec![Act::Say(error(&format!("\"FragmentTimecode\":{},", came.timecode), id)), Act::Cut],
            false => vec![Act::Persist],
        };
        sends(5, &Upstream::start(|_| None, busy).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_refused_for_good_is_a_letter_and_the_rest_goes_on() {
    // Once named in the error, once not: then it is found by sending one at a time.
    for named in [true, false] {
        let bad = FIRST + 3_000;
        let upstream = Upstream::start(
            |_| None,
            move |came| match came.timecode == bad {
                true if named => vec![Act::Say(error(&format!("\"FragmentTimecode\":{bad},"), 4006))],
                true => vec![Act::Say(error("", 4006)), Act::Cut],
                false => vec![Act::Persist],
            },
        )
        .await;
        let mut rig = Rig::new();
        rig.put(times(8), 10_000, HEAD).await;
        rig.start(&upstream, "");
        rig.drained().await;
        let expected: Vec<i64> = times(8).into_iter().filter(|time| *time != bad).collect();
        let mut kept = upstream.kept();
        kept.sort_unstable();
        assert_eq!(kept, expected, "named: {named}");
        assert_eq!(rig.letters(), 4, "its parts");
        let ledger = rig.log.gaps(&rig.stream);
        assert_eq!(ledger.iter().map(|gap| gap.count()).sum::<u64>(), 4, "{ledger:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_refuses_everything_is_waited_for() {
    let upstream = Upstream::start(
        |_| None,
        |came| vec![Act::Say(error(&format!("\"FragmentTimecode\":{},", came.timecode), 4006))],
    )
    .await;
    let mut rig = Rig::new();
    rig.put(times(40), 100, HEAD).await;
    rig.start(&upstream, "");
    let until = Instant::now() + Duration::from_secs(30);
    while !rig.trouble.get().is_some_and(|trouble| trouble.contains("refuses everything")) {
        assert!(Instant::now() < until, "{:?}", rig.trouble.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rig.letters() <= 16, "{}", rig.letters());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tracks_and_a_clock_that_went_back_have_a_connection_of_their_own() {
    let upstream = Upstream::start(|_| None, |_| vec![Act::Persist]).await;
    let mut rig = Rig::new();
    rig.put(times(3), 10_000, HEAD).await;
    rig.put([FIRST + 10_000, FIRST + 11_000], 10_000, OTHER_HEAD).await;
    rig.put([FIRST - 50_000, FIRST - 49_000], 10_000, OTHER_HEAD).await;
    // No fragment at all, and a gap in the parts.
    let mut batch = Batch::new();
    batch.push(&rig.stream, &NewRecord { key: b"cam", data: b"hello", ..Default::default() }).unwrap();
    let torn = records(1, FIRST + 90_000, 10_000, 3_000, HEAD).remove(2);
    batch
        .push(&rig.stream, &NewRecord { key: b"cam", headers: &torn.headers, data: &torn.data, ..Default::default() })
        .unwrap();
    rig.log.appender().commit(&mut batch).await.unwrap();
    rig.put([FIRST + 99_000], 10_000, OTHER_HEAD).await;
    rig.start(&upstream, "");
    rig.drained().await;
    let seen = upstream.seen.lock().unwrap();
    let at = |connection| seen.kept.iter().filter(|(of, _)| *of == connection).count();
    assert_eq!((seen.connections, at(0), at(1), at(2)), (3, 3, 2, 3));
    assert_eq!(rig.letters(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was_and_a_stop_waits_for_the_last() {
    let upstream = Upstream::start(|_| None, |_| vec![Act::Persist]).await;
    let mut rig = Rig::new();
    rig.put(times(5), 10_000, HEAD).await;
    let task = rig.start(&upstream, "");
    while upstream.seen.lock().unwrap().kept.len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.stop.take().unwrap().send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    rig.put((5..9).map(|at| FIRST + at * 1_000), 10_000, HEAD).await;
    rig.start(&upstream, "");
    rig.drained().await;
    assert_eq!(
        upstream.seen.lock().unwrap().kept.iter().map(|(_, time)| *time).collect::<Vec<_>>(),
        times(9),
        "nothing twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_on_bandwidth_holds() {
    let upstream = Upstream::start(|_| None, |_| vec![Act::Persist]).await;
    let mut rig = Rig::new();
    rig.put(times(6), 100_000, HEAD).await;
    let began = Instant::now();
    rig.start(&upstream, "max_bytes_per_s = \"200 KiB\"");
    rig.drained().await;
    // A second's worth is in hand at first.
    assert!(began.elapsed() > Duration::from_millis(1_500), "{:?}", began.elapsed());
    assert_eq!(upstream.seen.lock().unwrap().connections, 1, "a cap is no fault of the other side");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_mark_covers_goes_and_nothing_is_passed_over_too_early() {
    let upstream = Upstream::start(|_| None, |_| vec![Act::Persist]).await;
    let mut rig = Rig::new();
    rig.put(times(10), 1_000, HEAD).await;
    rig.start(&upstream, "only = \"marked\"\nmark_within = \"2 s\"");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.log.cursor("up", &rig.stream, 0).next, 1, "a mark may still come");
    let mark = Mark { id: "1".into(), from_ms: FIRST + 3_500, to_ms: FIRST + 5_001, name: String::new() };
    rig.row(format!("{}1", Mark::prefix("cam")), &mark).await;
    rig.drained().await;
    assert_eq!(upstream.kept(), [3, 4, 5].map(|at| FIRST + at * 1_000));
    assert_eq!(rig.letters(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_fragments_go_on_demand_though_the_cursor_is_past_them() {
    let broken = |came: Came| if came.connection == 1 { vec![Act::Cut] } else { vec![Act::Persist] };
    let upstream = Upstream::start(|_| None, broken).await;
    let mut rig = Rig::new();
    rig.put(times(10), 1_000, HEAD).await;
    rig.start(&upstream, "only = \"marked\"\nmark_within = \"0 s\"");
    rig.drained().await;
    assert!(upstream.kept().is_empty());
    let key = format!("{}{:020}", Wanted::prefix("up", "cam"), FIRST);
    rig.row(key.clone(), Wanted { from_ms: FIRST, to_ms: FIRST + 9_000, runs: vec![(2, 4), (7, 7)] }).await;
    let until = Instant::now() + Duration::from_secs(30);
    while rig.log.state(Table::Media, key.as_bytes()).is_some() {
        assert!(Instant::now() < until, "{:?}", rig.trouble.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(upstream.kept(), [1, 2, 3, 6].map(|at| FIRST + at * 1_000));
}
