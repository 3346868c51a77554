//! The command against a gateway's API in this process: parts among all else a stream holds, over the wire and into files.

use super::*;
use crate::api::{Api, ApiConfig};
use crate::clock::Clock;
use crate::log::{Log, Options};
use crate::metrics::Metrics;
use crate::uplink::aws::CredentialSource;
use crate::uplink::kpl::Aggregate;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use headwater_wire::{Chunk, ENVELOPE_HEADER_BYTES_MAX, plain};

struct Gateway {
    api: Api,
    clock: Clock,
    dir: tempfile::TempDir,
}

impl Gateway {
    async fn start(shards: u32) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::manual(1, 1_800_000_000_000), Metrics::new());
        let log = Log::open(Options::new(dir.path()), clock.clone(), metrics.clone()).unwrap();
        let config = ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..ApiConfig::default() };
        let api = Api::start(&config, log, clock.clone(), metrics).await.unwrap();
        let gateway = Gateway { api, clock, dir };
        let create = json!({"StreamName": "s", "ShardCount": shards});
        gateway.client().call("CreateStream", create).await.unwrap();
        gateway
    }

    fn client(&self) -> Client {
        Client::Gateway(self.api.local_addr().to_string())
    }

    /// The same API, asked as Kinesis would be.
    async fn as_kinesis(&self) -> Client {
        let settings = AwsConfig {
            endpoint: format!("http://{}/", self.api.local_addr()),
            region: "eu-west-1".into(),
            credentials: CredentialSource::None,
            ..AwsConfig::default()
        };
        Client::Kinesis(Box::new(Kinesis::find(&settings).await))
    }

    async fn put(&self, records: &[(&str, Vec<u8>)]) {
        for records in records.chunks(500) {
            let entry = |(key, data): &(&str, Vec<u8>)| json!({"Data": STANDARD.encode(data), "PartitionKey": key});
            let entries: Vec<_> = records.iter().map(entry).collect();
            let put = json!({"StreamName": "s", "Records": entries});
            let answer = self.client().call("PutRecords", put).await.unwrap();
            assert_eq!(answer["FailedRecordCount"], 0);
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(self.out()).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap_or_default()))
            .collect();
        files.sort();
        files
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    blobs: Blobs,
}

/// The command as a user types it: what it counts, and its lines.
async fn run(client: &Client, args: &[&str]) -> (Counts, Vec<String>) {
    let blobs = Line::parse_from([&["blobs", "s"], args].concat()).blobs;
    let mut lines = Vec::new();
    let tell = |told: &Told| {
        lines.push(as_text(told));
        assert_eq!(as_json(told)["device"], told.blob.device);
        Ok(())
    };
    let start = start_of(&blobs.from).unwrap().unwrap();
    let counts = blobs.gather(client, &start, Bounds::default(), tell, |_, _| {}).await.unwrap();
    (counts, lines)
}

fn envelope(kind: Kind, epoch: u32, first: u64, body: &[u8]) -> Vec<u8> {
    let mut head = [0; ENVELOPE_HEADER_BYTES_MAX];
    let length = Envelope { kind, epoch, first, count: 1, body: &[] }.write_head(&mut head).unwrap();
    [&head[..length], body].concat()
}

/// The parts of a blob, as a device's SDK sends them.
fn parts(id: u32, blob: &[u8], part_bytes: usize) -> Vec<Vec<u8>> {
    let part = |(at, bytes): (usize, &[u8])| {
        let mut head = [0; headwater_wire::CHUNK_HEADER_BYTES_MAX];
        let chunk = Chunk { offset: (at * part_bytes) as u64, total: blob.len() as u64, bytes };
        let length = chunk.write_head(&mut head).unwrap();
        envelope(Kind::Chunk, id, at as u64 + 1, &[&head[..length], bytes].concat())
    };
    blob.chunks(part_bytes).enumerate().map(part).collect()
}

fn picture(seed: u64, length: usize) -> Vec<u8> {
    let mut noise = fastrand::Rng::with_seed(seed);
    [0xff, 0xd8, 0xff].into_iter().chain(std::iter::repeat_with(|| noise.u8(..)).take(length - 3)).collect()
}

/// What is no part of a blob, and must be passed over.
fn other_records() -> Vec<Vec<u8>> {
    let mut body = [0; 32];
    let length = plain(b"bytes", &mut body).unwrap();
    let mut damaged = parts(1, b"damaged", 7).remove(0);
    *damaged.last_mut().unwrap() ^= 1;
    let behind_its_end = [&[9, 8, 0, 0, 0, 0][..], b"bytes"].concat();
    vec![
        br#"{"t":21.5}"#.to_vec(),
        vec![],
        vec![3],
        vec![3; 300],
        envelope(Kind::Plain, 1, 1, &body[..length]),
        envelope(Kind::Readings, 1, 1, b"no table"),
        envelope(Kind::Chunk, 1, 1, &behind_its_end),
        damaged,
        [&kpl::MAGIC[..], b"no aggregate"].concat(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_back_whole_from_among_all_else() {
    let gateway = Gateway::start(3).await;
    let (one, two, lost) = (picture(1, 100_000), picture(2, 70_001), picture(3, 5_000));
    let mut records = Vec::new();
    let (mut of_one, mut of_two) = (parts(7, &one, 480).into_iter(), parts(1, &two, 1_000).into_iter());
    loop {
        let (a, b) = (of_one.next(), of_two.next());
        if a.is_none() && b.is_none() {
            break;
        }
        records.extend(a.map(|part| ("cam-1", part)));
        records.extend(b.map(|part| ("../cam 2", part)));
    }
    records.extend(parts(8, &lost, 480).into_iter().skip(1).map(|part| ("cam-1", part)));
    let others = other_records();
    let step = records.len() / others.len();
    for (at, other) in others.into_iter().enumerate() {
        records.insert(at * (step + 1), ("cam-1", other));
    }
    gateway.put(&records).await;

    let out = gateway.out();
    let args = ["--out", out.to_str().unwrap()];
    let files = [("%2E.%2Fcam%202-1.jpg".to_owned(), two), ("cam-1-7.jpg".to_owned(), one)];
    let expected = Counts { records: records.len() as u64, parts: 209 + 71 + 10, whole: 2, written: 2, incomplete: 1 };
    let (counts, mut lines) = run(&gateway.client(), &args).await;
    assert_eq!((counts, gateway.files()), (expected, files.to_vec()));
    lines.sort();
    let shown = out.display();
    assert_eq!(lines[0], format!("../cam 2 1 70001 bytes {shown}/%2E.%2Fcam%202-1.jpg"));
    assert_eq!(lines[1], format!("cam-1 7 100000 bytes {shown}/cam-1-7.jpg"));
    let why = "incomplete (the stream has no more of it): 4520 are there, missing 0..480";
    assert_eq!(lines[2], format!("cam-1 8 5000 bytes {why}"));

    let (counts, lines) = run(&gateway.as_kinesis().await, &args).await;
    assert_eq!((counts.whole, counts.written), (2, 0));
    assert!(lines.iter().any(|line| line.ends_with("cam-1-7.jpg, which was there")), "{lines:?}");
    assert_eq!(gateway.files(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_listed_by_device_and_from_a_time() {
    let gateway = Gateway::start(1).await;
    let records: Vec<_> =
        ["a", "b"].iter().flat_map(|key| parts(7, b"picture", 3).into_iter().map(|p| (*key, p))).collect();
    gateway.put(&records).await;
    let client = gateway.client();
    let (counts, mut lines) = run(&client, &[]).await;
    lines.sort();
    assert_eq!((counts.parts, counts.written, lines), (6, 0, vec!["a 7 7 bytes".into(), "b 7 7 bytes".to_owned()]));
    let (counts, lines) = run(&client, &["--device", "b"]).await;
    assert_eq!((counts.records, counts.parts, lines), (6, 3, vec!["b 7 7 bytes".to_owned()]));
    gateway.clock.advance(5_000);
    assert_eq!(run(&client, &["--from", "@1800000001"]).await.0, Counts::default());
    assert!(!gateway.out().exists());
}

/// As a sink packs them for Kinesis, and once more: it sends a batch again whose answer was lost.
#[tokio::test(flavor = "multi_thread")]
async fn parts_inside_aggregated_records_are_found() {
    let gateway = Gateway::start(1).await;
    let (one, two) = (picture(1, 20_000), picture(2, 9_000));
    let (of_one, of_two) = (parts(7, &one, 480), parts(7, &two, 480));
    let mut records = Vec::new();
    for (at, part) in of_one.iter().enumerate() {
        let mut aggregate = Aggregate::default();
        aggregate.add("cam-1", None, part, Some("hw1/edge/1/s/0/5"));
        aggregate.add("cam-1", None, br#"{"t":21.5}"#, None);
        if let Some(part) = of_two.get(at) {
            aggregate.add("cam-2", None, part, None);
        }
        records.push(("another key", aggregate.finish()));
    }
    let again = records[10..20].to_vec();
    records.splice(20..20, again);
    gateway.put(&records).await;
    let (counts, _) = run(&gateway.client(), &["--out", gateway.out().to_str().unwrap()]).await;
    let expected = Counts { records: 52, parts: 42 + 19 + 19, whole: 2, written: 2, incomplete: 0 };
    assert_eq!(counts, expected);
    assert_eq!(gateway.files(), [("cam-1-7.jpg".to_owned(), one), ("cam-2-7.jpg".to_owned(), two)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_has_a_blob_as_soon_as_its_last_part_is_there() {
    let gateway = Gateway::start(2).await;
    let parts: Vec<_> = parts(7, b"picture", 3).into_iter().map(|part| ("cam", part)).collect();
    gateway.put(&parts[..2]).await;
    let out = gateway.out();
    let blobs = Line::parse_from(["blobs", "s", "--follow", "--out", out.to_str().unwrap()]).blobs;
    let start = start_of(&blobs.from).unwrap().unwrap();
    let client = gateway.client();
    let enough = |told: &Told| anyhow::bail!("{}", as_text(told));
    let follow = blobs.gather(&client, &start, Bounds::default(), enough, |_, _| {});
    let later = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(gateway.files().len(), 1, "the gathering directory alone");
        gateway.put(&parts[2..]).await;
    };
    let (followed, ()) = tokio::join!(follow, later);
    assert_eq!(followed.unwrap_err().to_string(), format!("cam 7 7 bytes {}/cam-7.bin", out.display()));
    assert_eq!(gateway.files(), [("cam-7.bin".to_owned(), b"picture".to_vec())], "an error cleans up as the end does");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_told_and_leaves_nothing_behind() {
    let gateway = Gateway::start(1).await;
    let start = start_of("oldest").unwrap().unwrap();
    let out = gateway.out();
    let blobs = Line::parse_from(["blobs", "none", "--out", out.to_str().unwrap()]).blobs;
    for client in [gateway.client(), gateway.as_kinesis().await] {
        let error = blobs.gather(&client, &start, Bounds::default(), |_| Ok(()), |_, _| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("ResourceNotFoundException"), "{error:#}");
        assert!(!out.exists());
    }
    gateway.put(&parts(7, b"picture", 3).into_iter().map(|part| ("cam", part)).collect::<Vec<_>>()).await;
    std::fs::write(&out, "a file where the directory should be").unwrap();
    let blobs = Line::parse_from(["blobs", "s", "--out", out.to_str().unwrap()]).blobs;
    let error = blobs.gather(&gateway.client(), &start, Bounds::default(), |_| Ok(()), |_, _| {}).await.unwrap_err();
    assert!(error.to_string().contains("out/.headwater-blobs"), "{error:#}");
}
