//! The forwarder over a real log, against a bucket that fails as the test says.

use super::*;
use crate::clock::Clock;
use crate::log::{Batch, Log, Options, Position, Stream, StreamKind, StreamSettings, Table};
use crate::metrics::Metrics;
use crate::record::{Header, HeaderId, NewRecord, StreamName};
use crate::uplink::budget::Budget;
use crate::uplink::figures::Trouble;
use crate::uplink::setup::Setup;
use crate::uplink::sink::Identity;
use crate::wire::media::{Mark, Media, head_id};
use bytes::Bytes;
use headwater_video::{Codec, Fragment, Frame, Kind, Track, Tracks, matroska};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Ten in the morning of some day.
const TEN: i64 = 1_785_578_400_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Do,
    /// It is done, and the connection breaks before the answer.
    Lose,
    Cut,
    Say(u16, &'static str),
    Hang,
}

type Script = dyn Fn(usize, &str) -> Act + Send + Sync;

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, (String, BTreeMap<usize, Vec<u8>>)>,
    /// What was asked, as in `PUT cam/...?partNumber=1&...`.
    asked: Vec<String>,
    made: usize,
    /// Objects of video that were written over.
    twice: usize,
}

struct S3 {
    address: String,
    bucket: Arc<Mutex<Bucket>>,
    script: Arc<Mutex<Arc<Script>>>,
}

impl S3 {
    async fn start(script: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> S3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (bucket, script) = (Arc::<Mutex<Bucket>>::default(), Arc::new(Mutex::new(Arc::new(script) as Arc<Script>)));
        let (of, by) = (bucket.clone(), script.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (bucket, script) = (of.clone(), by.clone());
                tokio::spawn(async move { drop(serve(tcp, bucket, script).await) });
            }
        });
        S3 { address, bucket, script }
    }

    fn now(&self, script: impl Fn(usize, &str) -> Act + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    fn asked(&self, what: &str) -> usize {
        self.bucket.lock().unwrap().asked.iter().filter(|asked| asked.contains(what)).count()
    }

    fn files(&self, extension: &str) -> Vec<(String, Vec<u8>)> {
        let bucket = self.bucket.lock().unwrap();
        let files = bucket.objects.iter().filter(|(key, _)| key.ends_with(extension));
        files.map(|(key, bytes)| (key.clone(), bytes.clone())).collect()
    }

    /// The files' indexes, by the number of their first record.
    fn indexes(&self) -> Vec<serde_json::Value> {
        let files = self.files(".json").into_iter();
        let mut all: Vec<serde_json::Value> = files.map(|(_, json)| serde_json::from_slice(&json).unwrap()).collect();
        all.sort_by_key(|index| index["first"].as_u64());
        all
    }

    /// Every fragment's number, in the order of files and of what is in them; and that it stands where the index says.
    fn numbers(&self) -> Vec<u64> {
        let (mut numbers, bucket) = (Vec::new(), self.bucket.lock().unwrap());
        let mut indexes: Vec<_> = bucket.objects.iter().filter(|(key, _)| key.ends_with(".json")).collect();
        let read = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
        indexes.sort_by_key(|(_, json)| read(json)["first"].as_u64());
        for (key, json) in indexes {
            let index = read(json);
            let format = index["format"].as_str().unwrap();
            let Some(file) = bucket.objects.get(&key.replace(".json", &format!(".{format}"))) else { continue };
            assert_eq!(index["bytes"].as_u64().unwrap(), file.len() as u64, "{key}");
            let mut at = index["head_bytes"].as_u64().unwrap();
            for fragment in index["fragments"].as_array().unwrap() {
                let number = |name: &str| fragment[name].as_u64().unwrap();
                assert_eq!(number("offset"), at, "{key}");
                let bytes = &file[at as usize..(at + number("length")) as usize];
                match format {
                    "mp4" => assert_eq!(&bytes[4..8], b"moof"),
                    _ => assert_eq!(bytes[..4], [0x1f, 0x43, 0xb6, 0x75]),
                }
                // Each has its own bytes in it.
                let mark = format!("fragment at {}", fragment["start_ms"]);
                assert!(bytes.windows(mark.len()).any(|window| window == mark.as_bytes()), "{key}: {mark}");
                at += number("length");
                numbers.push(number("number"));
            }
            assert_eq!(at, file.len() as u64, "{key}");
        }
        numbers
    }
}

async fn serve(tcp: TcpStream, bucket: Arc<Mutex<Bucket>>, script: Arc<Mutex<Arc<Script>>>) -> std::io::Result<()> {
    let mut tcp = BufReader::new(tcp);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (line, headers) = head.split_once("\r\n").unwrap();
        let line = line.replace("/film/", "").replace(" HTTP/1.1", "");
        let headers = headers.to_ascii_lowercase();
        let value = |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert!(value("transfer-encoding").is_none(), "S3 wants to know the length");
        let length = value("content-length").map_or(0, |length| length.parse().unwrap());
        let at = {
            let mut bucket = bucket.lock().unwrap();
            bucket.asked.push(line.clone());
            bucket.asked.len() - 1
        };
        let script = script.lock().unwrap().clone();
        let act = script(at, &line);
        if act == Act::Cut {
            return Ok(());
        }
        let mut body = vec![0; length];
        tcp.read_exact(&mut body).await?;
        let only_new = value("if-none-match") == Some("*");
        let (status, more, answer) = match act {
            Act::Say(status, code) => (status, String::new(), format!("<Error><Code>{code}</Code></Error>")),
            Act::Hang => std::future::pending().await,
            _ => bucket.lock().unwrap().act(&line, body, only_new),
        };
        if act == Act::Lose {
            return Ok(());
        }
        let length = answer.len();
        let answer = if line.starts_with("HEAD") { String::new() } else { answer };
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{more}\r\n{answer}");
        tcp.write_all(text.as_bytes()).await?;
    }
}

impl Bucket {
    fn act(&mut self, line: &str, body: Vec<u8>, only_new: bool) -> (u16, String, String) {
        let (method, rest) = line.split_once(' ').unwrap();
        let (key, query) = rest.split_once('?').unwrap_or((rest, ""));
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let no = |status, code: &str| (status, String::new(), format!("<Error><Code>{code}</Code></Error>"));
        let ok = |text: String| (200, String::new(), text);
        match (method, value("uploadId")) {
            ("HEAD" | "GET", None) => match self.objects.get(key) {
                Some(bytes) => ok(String::from_utf8_lossy(bytes).into_owned()),
                None => no(404, "NoSuchKey"),
            },
            ("POST", None) => {
                self.made += 1;
                let id = format!("u{}", self.made);
                self.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
                ok(format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"))
            }
            ("PUT", None) if only_new && self.objects.contains_key(key) => no(412, "PreconditionFailed"),
            ("PUT", None) => {
                let before = self.objects.insert(key.to_owned(), body);
                self.twice += usize::from(before.is_some() && !key.ends_with(".json") && !key.ends_with(".m3u8"));
                ok(String::new())
            }
            ("PUT", Some(id)) => match self.uploads.get_mut(id) {
                Some((_, parts)) => {
                    let number = value("partNumber").unwrap().parse().unwrap();
                    parts.insert(number, body);
                    (200, format!("etag: \"{id}-{number}\"\r\n"), String::new())
                }
                None => no(404, "NoSuchUpload"),
            },
            ("POST", Some(_)) if only_new && self.objects.contains_key(key) => no(412, "PreconditionFailed"),
            ("POST", Some(id)) => match self.uploads.remove(id) {
                Some((of, parts)) => {
                    assert_eq!(of, key);
                    let listed = String::from_utf8_lossy(&body).matches("<Part>").count();
                    let bytes = parts.range(..=listed).flat_map(|(_, part)| part.iter().copied()).collect();
                    self.twice += usize::from(self.objects.insert(key.to_owned(), bytes).is_some());
                    ok("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>".into())
                }
                None => no(404, "NoSuchUpload"),
            },
            ("DELETE", Some(id)) => match self.uploads.remove(id) {
                Some(_) => (204, String::new(), String::new()),
                None => no(404, "NoSuchUpload"),
            },
            _ => no(400, "What"),
        }
    }
}

/// A fragment of sound with its own bytes in it.
fn fragment(start_ms: i64, bytes: usize, rate: u32, discontinuity: bool) -> (Media, Bytes) {
    let track = Track {
        number: 1,
        kind: Kind::Audio,
        codec: Codec::Opus,
        private: Bytes::from_static(b"OpusHead\x01\x01\x38\x01\x80\xbb\x00\x00\x00\x00\x00"),
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: rate,
        channels: 1,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    };
    let frame = |at: i64| Frame {
        track: 1,
        pts_ns: (start_ms + at * 500) * 1_000_000,
        duration_ns: None,
        keyframe: true,
        data: [format!("fragment at {start_ms}").into_bytes(), vec![start_ms as u8; bytes / 2]].concat().into(),
    };
    let tracks = Arc::new(Tracks(vec![track]));
    let made = Fragment { tracks: tracks.clone(), frames: vec![frame(0), frame(1)], discontinuity, tags: vec![] };
    let (whole, head) = (matroska::write_fragment(&made, 0), matroska::head(&tracks));
    let media = Media {
        part: 0,
        parts: 1,
        discontinuity,
        start_ms,
        duration_ms: 1000,
        bytes: whole.len() as u32,
        head_bytes: head.len() as u32,
        head_id: head_id(&head),
        delay_ms: 0,
    };
    (media, whole.into())
}

struct Site {
    log: Log,
    /// The forwarder's: it goes fifty times as fast while the test waits.
    clock: Clock,
    stream: Arc<Stream>,
    trouble: Trouble,
    stop: Option<watch::Sender<bool>>,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(Options::new(dir.path()), Clock::system(), Metrics::new()).unwrap();
        let settings = StreamSettings { shards: 1, kind: StreamKind::Video, ..Default::default() };
        let stream = log.create_stream(&StreamName::new("cam").unwrap(), settings).unwrap();
        let letters = StreamSettings { shards: 1, ..Default::default() };
        log.create_stream(&StreamName::new("letters").unwrap(), letters).unwrap();
        log.register_sink("up", std::slice::from_ref(&stream), true);
        let clock = Clock::manual(1, TEN as u64 + 86_400_000);
        Site { log, clock, stream, trouble: Trouble::default(), stop: None, _dir: dir }
    }

    async fn put(&self, fragments: impl IntoIterator<Item = (Media, Bytes)>) {
        let mut batch = Batch::new();
        for (media, bytes) in fragments {
            let headers = [media.header(), Header::user("door", "open")];
            let new = NewRecord { key: b"cam", headers: &headers, data: &bytes, ..Default::default() };
            batch.push(&self.stream, &new).unwrap();
        }
        self.log.appender().commit(&mut batch).await.unwrap();
    }

    /// A fragment a second.
    async fn film(&self, from_ms: i64, seconds: i64, bytes: usize) {
        self.put((0..seconds).map(|second| fragment(from_ms + second * 1000, bytes, 48_000, false))).await;
    }

    fn start(&mut self, s3: &S3, toml: &str) -> tokio::task::JoinHandle<()> {
        let text = format!(
            "name = \"up\"\nbucket = \"film\"\ndead_letter = \"letters\"\ncredentials = \"none\"\ntimeout = \"500 ms\"\n\
             part_bytes = \"20 KiB\"\nendpoint = \"{}\"\n{toml}",
            s3.address
        );
        let config: S3VideoConfig = toml::from_str(&text).unwrap();
        let (stop, stopped) = watch::channel(false);
        self.stop = Some(stop);
        let forwarder = S3VideoForwarder::new(Setup {
            log: self.log.clone(),
            stream: self.stream.clone(),
            config,
            who: Identity { gateway: "g".into(), incarnation: 1, stream: self.stream.name.clone() },
            clock: self.clock.clone(),
            metrics: Metrics::new(),
            budget: Arc::new(Mutex::new(Budget::new(None, 0))),
            trouble: self.trouble.clone(),
            stop: stopped,
        });
        tokio::spawn(forwarder.run())
    }

    fn at(&self) -> u64 {
        self.log.cursor("up", &self.stream, 0).next
    }

    fn rows(&self) -> usize {
        self.log.state_scan(Table::Uplink, b"").len()
    }

    async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is() {
            assert!(Instant::now() < until, "{what}: at {}, {:?}", self.at(), self.trouble.get());
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.clock.advance(500);
        }
    }

    async fn drained(&self) {
        let newest = self.stream.shard(0).unwrap().newest();
        self.until("drained", || self.at() > newest).await;
        self.until("the rows are gone", || self.rows() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_end_with_the_hour_and_the_tracks_and_each_has_its_index() {
    for format in ["mp4", "mkv"] {
        let (s3, mut site) = (S3::start(|_, _| Act::Do).await, Site::new());
        // Three before eleven and two behind, then other tracks, then a camera whose clock was set back.
        site.film(TEN + 3_597_000, 5, 100).await;
        site.put([fragment(TEN + 3_602_000, 100, 44_100, true)]).await;
        site.put([fragment(TEN + 3_601_000, 100, 44_100, true)]).await;
        let running = site.start(&s3, &format!("format = \"{format}\""));
        site.drained().await;
        running.abort();
        assert_eq!(s3.numbers(), [1, 2, 3, 4, 5, 6, 7]);
        let counts: Vec<_> = s3.indexes().iter().map(|one| one["fragments"].as_array().unwrap().len()).collect();
        assert_eq!(counts, [3, 2, 1, 1]);
        let keys: Vec<String> = s3.files(format).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys[0], format!("cam/2026/08/01/10/cam-20260801T105957.000Z-1-1.{format}"));
        let first = &s3.indexes()[0];
        assert_eq!(first["fragments"][0]["tags"], serde_json::json!([["door", "open"]]));
        assert_eq!((first["codecs"].as_str(), first["next"].as_u64()), (Some("opus"), Some(4)));
        assert_eq!(s3.files("m3u8").len(), if format == "mp4" { 4 } else { 0 });
        if format == "mp4" {
            let playlist = String::from_utf8(s3.files("m3u8")[0].1.clone()).unwrap();
            let head = first["head_bytes"].as_u64().unwrap();
            assert!(playlist.contains(&format!("-1-1.mp4\",BYTERANGE=\"{head}@0\"")), "{playlist}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_every_fragment_is_in_one_object_whatever_fails_and_whenever_it_is_killed() {
    for seed in 0..6u64 {
        let faults = Mutex::new(fastrand::Rng::with_seed(seed));
        let faulty = move |_: usize, _: &str| match faults.lock().unwrap().u8(..14) {
            0 => Act::Lose,
            1 => Act::Cut,
            2 => Act::Say(503, "SlowDown"),
            3 => Act::Say(500, "InternalError"),
            4 => Act::Say(409, "ConditionalRequestConflict"),
            _ => Act::Do,
        };
        let (s3, mut site) = (S3::start(faulty).await, Site::new());
        let mut chance = fastrand::Rng::with_seed(seed);
        for hour in 0..4 {
            site.film(TEN + hour * 3_600_000, 8 + hour * 6, 4_000).await;
        }
        for _ in 0..8 {
            let running = site.start(&s3, if seed % 2 == 0 { "" } else { "format = \"mkv\"" });
            tokio::time::sleep(Duration::from_millis(chance.u64(..250))).await;
            running.abort();
            let _ = running.await;
        }
        s3.now(|_, _| Act::Do);
        let running = site.start(&s3, if seed % 2 == 0 { "" } else { "format = \"mkv\"" });
        site.drained().await;
        running.abort();
        let newest = site.stream.shard(0).unwrap().newest();
        assert_eq!(s3.numbers(), (1..=newest).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(s3.bucket.lock().unwrap().twice, 0, "seed {seed}");
        assert_eq!(s3.indexes().len(), 4, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_part_that_is_stored_is_never_sent_again() {
    let hold = |_: usize, line: &str| if line.contains("partNumber=4") { Act::Hang } else { Act::Do };
    let (s3, mut site) = (S3::start(hold).await, Site::new());
    site.film(TEN, 40, 4_000).await;
    let running = site.start(&s3, "");
    site.until("three parts", || site.rows() == 4).await;
    running.abort();
    let _ = running.await;
    s3.now(|_, _| Act::Do);
    let running = site.start(&s3, "");
    site.drained().await;
    running.abort();
    for part in 1..4 {
        assert_eq!(s3.asked(&format!("partNumber={part}&")), 1, "part {part}");
    }
    assert_eq!((s3.asked("uploads="), s3.numbers().len()), (1, 40));
    let again = s3.files(".mp4").remove(0).1;
    // The same as of one that nothing happened to.
    let (smooth, mut other) = (S3::start(|_, _| Act::Do).await, Site::new());
    other.film(TEN, 40, 4_000).await;
    let running = other.start(&smooth, "");
    other.drained().await;
    running.abort();
    assert!(smooth.files(".mp4").remove(0).1 == again);
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_completed_file_whose_answer_and_rows_are_lost_is_known_by_its_index() {
    let lose = |_: usize, line: &str| match line.starts_with("POST") && line.contains("?uploadId=") {
        true => Act::Lose,
        false => Act::Do,
    };
    let (s3, mut site) = (S3::start(lose).await, Site::new());
    site.film(TEN, 20, 4_000).await;
    let running = site.start(&s3, "");
    site.until("it is there", || !s3.files(".mp4").is_empty()).await;
    running.abort();
    let _ = running.await;
    // As if the state had been rebuilt: neither rows nor cursor.
    let mut batch = Batch::new();
    for (key, _) in site.log.state_scan(Table::Uplink, b"") {
        batch.put_state(Table::Uplink, key, None);
    }
    site.log.appender().commit(&mut batch).await.unwrap();
    site.film(TEN + 20_000, 5, 4_000).await;
    s3.now(|_, _| Act::Do);
    let running = site.start(&s3, "");
    site.drained().await;
    running.abort();
    assert_eq!((s3.numbers(), s3.bucket.lock().unwrap().twice), ((1..=25).collect::<Vec<_>>(), 0));
    assert_eq!(s3.indexes().len(), 2, "what came later is a file of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_taken_away_is_made_again_from_the_log() {
    let (s3, mut site) =
        (S3::start(|_, line| if line.contains("partNumber=3&") { Act::Hang } else { Act::Do }).await, Site::new());
    site.film(TEN, 30, 4_000).await;
    let running = site.start(&s3, "");
    site.until("two parts", || site.rows() == 3).await;
    s3.bucket.lock().unwrap().uploads.clear();
    s3.now(|_, _| Act::Do);
    site.drained().await;
    running.abort();
    assert_eq!((s3.numbers().len(), s3.asked("uploads="), s3.asked("partNumber=1&")), (30, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_missing_or_forbidden_is_waited_for_and_said() {
    let (s3, mut site) = (S3::start(|_, _| Act::Say(403, "AccessDenied")).await, Site::new());
    site.film(TEN, 3, 100).await;
    let running = site.start(&s3, "");
    let says = |text: &str| site.trouble.get().is_some_and(|says| says.contains(text));
    site.until("denied", || says("AccessDenied") || says("denies access")).await;
    s3.now(|_, line| if line.starts_with("HEAD") { Act::Say(404, "") } else { Act::Say(404, "NoSuchBucket") });
    site.until("missing", || says("there is no bucket \"film\"; make it")).await;
    assert_eq!(site.at(), 1);
    s3.now(|_, _| Act::Do);
    site.drained().await;
    running.abort();
    assert_eq!((s3.numbers(), site.trouble.get()), (vec![1, 2, 3], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_video_goes_to_the_letters_and_the_index_tells_of_it() {
    let (s3, mut site) = (S3::start(|_, _| Act::Do).await, Site::new());
    site.film(TEN, 2, 100).await;
    let mut batch = Batch::new();
    batch.push(&site.stream, &NewRecord { key: b"cam", data: b"no video", ..Default::default() }).unwrap();
    site.log.appender().commit(&mut batch).await.unwrap();
    site.film(TEN + 2_000, 2, 100).await;
    let running = site.start(&s3, "");
    site.drained().await;
    running.abort();
    assert_eq!(s3.numbers(), [1, 2, 4, 5]);
    let index = s3.indexes().remove(0);
    assert_eq!(index["gaps"], serde_json::json!([{ "from": 3, "to": 3, "reason": "rejected" }]));
    assert_eq!(index["fragments"][2]["discontinuity"], true);
    let letters = site.log.stream("letters").unwrap();
    let kept = site.log.reader(&letters, 0, Position::Oldest).unwrap().next_blocking(9, 1 << 20).unwrap();
    let [crate::log::Entry::Record(letter)] = &kept[..] else { panic!("{kept:?}") };
    assert!(letter.data == "no video" && letter.header(HeaderId::Origin).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_now_is_complete_when_its_time_is_over_and_the_stream_is_quiet() {
    let (s3, mut site) = (S3::start(|_, _| Act::Do).await, Site::new());
    site.film(site.clock.now().wall_ms as i64, 1, 100).await;
    let running = site.start(&s3, "every = \"1 min\"");
    site.until("begun", || s3.asked("HEAD") > 0).await;
    assert_eq!(site.at(), 1);
    site.drained().await;
    running.abort();
    assert_eq!(s3.numbers(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_marked_is_in_files_and_the_rest_holds_nothing_up() {
    let (s3, mut site) = (S3::start(|_, _| Act::Do).await, Site::new());
    site.film(TEN, 6, 100).await;
    let mark = Mark { id: "1".into(), from_ms: TEN + 2_500, to_ms: TEN + 4_000, name: String::new() };
    let mut batch = Batch::new();
    let key = Mark::prefix("cam") + &mark.id;
    batch.put_state(Table::Media, key.into_bytes(), Some(serde_json::to_vec(&mark).unwrap().into()));
    site.log.appender().commit(&mut batch).await.unwrap();
    let running = site.start(&s3, "only = \"marked\"\nmark_within = \"1 s\"");
    site.drained().await;
    running.abort();
    assert_eq!(s3.numbers(), [3, 4]);
    assert_eq!(s3.indexes()[0]["next"], 7, "what was passed over is seen to");
}
