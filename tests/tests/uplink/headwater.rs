//! Against another Headwater: its real door, and a link between them that loses answers.

use crate::rig::{Audit, Rig, STREAM, open};
use headwater::api::{Api, ApiConfig};
use headwater::clock::Clock;
use headwater::log::{Batch, Log, Stream, StreamSettings};
use headwater::metrics::Metrics;
use headwater::record::{Header, HeaderId, NewRecord, Record, StreamName};
use headwater_tests::proxy::Proxy;
use headwater_tests::upstream::Upstream;
use std::sync::Arc;
use std::time::Duration;

pub struct Site {
    _dir: tempfile::TempDir,
    log: Log,
    pub stream: Arc<Stream>,
    clock: Clock,
    metrics: Arc<Metrics>,
    api: Option<Api>,
}

impl Site {
    pub fn record_count(&self) -> u64 {
        self.log.record_count(&self.stream)
    }

    async fn start(shards: u32) -> Self {
        Self::with(shards, ApiConfig::default()).await
    }

    pub async fn with(shards: u32, config: ApiConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::system(), Metrics::new());
        let log = open(dir.path(), &clock, &metrics);
        let settings = StreamSettings { shards, ..StreamSettings::default() };
        let stream = log.create_stream(&StreamName::new(STREAM).unwrap(), settings).unwrap();
        let mut site = Site { _dir: dir, log, stream, clock, metrics, api: None };
        site.open(ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config }).await;
        site
    }

    async fn open(&mut self, config: ApiConfig) {
        let api = Api::start(&config, self.log.clone(), self.clock.clone(), self.metrics.clone()).await;
        self.api = Some(api.unwrap());
    }

    /// Closes the door and opens it again at the same address.
    pub async fn reopen(&mut self, config: ApiConfig) {
        let listen = self.addr();
        self.api.take().unwrap().stop(Duration::from_secs(1)).await;
        self.open(ApiConfig { listen: listen.into(), ..config }).await;
    }

    /// Closes the door; something else may listen at its address then.
    pub async fn close(&mut self) {
        self.api.take().unwrap().stop(Duration::from_secs(1)).await;
    }

    pub fn addr(&self) -> std::net::SocketAddr {
        self.api.as_ref().unwrap().local_addr()
    }

    fn records(&self) -> Vec<Record> {
        self.log.records(&self.stream).unwrap()
    }
}

pub fn audit(rig: &Rig, site: &Site) -> Audit {
    let records = site.records();
    let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let arrived: Vec<_> = records
        .iter()
        .map(|record| (text(&record.key), record.data.clone(), record.header(HeaderId::Origin).map(text)))
        .collect();
    assert!(arrived.iter().all(|(_, _, id)| id.is_some()), "every record carries the id of its first gateway");
    rig.audit(arrived.iter().map(|(key, data, id)| (key.as_str(), &data[..], id.as_deref())))
}

fn sink(endpoint: std::net::SocketAddr) -> String {
    format!(r#"{{"type":"kinesis","name":"site","endpoint":"http://{endpoint}","credentials":"none","timeout":"3 s"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_another_headwater_stores_every_record_once_though_answers_are_lost() {
    let site = Site::start(3).await;
    let proxy = Proxy::start(site.addr()).await;
    proxy.lose_answers(30);
    let mut rig = Rig::new(2);
    rig.put(20_000, 100).await;
    rig.start(&sink(proxy.addr)).await;
    for _ in 0..20 {
        rig.put(500, 100).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    proxy.lose_answers(0);
    rig.drained("site", Duration::from_secs(60)).await;
    assert!(proxy.lost() > 3, "{}", proxy.lost());
    assert_eq!(audit(&rig, &site), Audit { arrived: rig.total(), ..Audit::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_backlog_of_blocks_is_stored_once_though_answers_are_lost() {
    let site = Site::start(3).await;
    let proxy = Proxy::start(site.addr()).await;
    proxy.lose_answers(30);
    let mut rig = Rig::new(2);
    rig.put(300_000, 100).await;
    // Closing the log folds it all.
    rig.restart(&sink(proxy.addr)).await;
    for _ in 0..10 {
        rig.put(500, 100).await;
        rig.put_padded(1, 3, 70_000).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    proxy.lose_answers(0);
    rig.drained("site", Duration::from_secs(60)).await;
    assert!(proxy.lost() > 3, "{}", proxy.lost());
    assert_eq!(audit(&rig, &site), Audit { arrived: rig.total(), ..Audit::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_restart_in_the_middle_duplicates_nothing_in_another_headwater() {
    let site = Site::start(2).await;
    let mut rig = Rig::new(3);
    rig.put(30_000, 60).await;
    let config = sink(site.addr());
    rig.start(&config).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        rig.restart(&config).await;
        rig.put(1000, 60).await;
    }
    rig.drained("site", Duration::from_secs(60)).await;
    assert_eq!(audit(&rig, &site), Audit { arrived: rig.total(), ..Audit::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_sites_keeps_the_id_of_the_first() {
    let last = Site::start(1).await;
    let middle = Site::start(2).await;
    let mut rig = Rig::new(1);
    rig.put(500, 10).await;
    rig.start(&sink(middle.addr())).await;
    let onward: headwater::uplink::SinkConfig = serde_json::from_str(&sink(last.addr())).unwrap();
    let (clock, metrics) = (Clock::system(), Metrics::new());
    let uplink = headwater::uplink::Uplink::start(&[onward], middle.log.clone(), clock, metrics).await.unwrap();
    while last.record_count() < 500 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    uplink.stop(Duration::from_secs(2)).await;
    assert_eq!(audit(&rig, &last), Audit { arrived: 500, ..Audit::default() });
    let prefix = format!("hw1/{}/", rig.log.gateway_id());
    let from_first = |record: &Record| record.header(HeaderId::Origin).unwrap().starts_with(prefix.as_bytes());
    assert!(last.records().iter().all(from_first));
}

/// A record with more headers than the batch form takes made its whole request go by PutRecords, where the door refused it for
/// more than 64: it was looked for by halves, and buried. It goes alone now, and the door takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_hundreds_of_user_properties_arrives_among_others() {
    let site = Site::start(2).await;
    let mut rig = Rig::new(1);
    rig.put(300, 10).await;
    let headers: Vec<_> = (0..250).map(|at| Header::user(&format!("name-{at}"), "value")).collect();
    let data = br#"{"k":"dev-0","n":31}"#;
    let large = NewRecord { key: b"dev-0", data, headers: &headers, ..NewRecord::default() };
    let mut batch = Batch::new();
    batch.push(&rig.stream, &large).unwrap();
    rig.log.appender().commit(&mut batch).await.unwrap();
    rig.sent.insert("dev-0".into(), 31);
    rig.put(300, 10).await;
    rig.start(&sink(site.addr())).await;
    rig.drained("site", Duration::from_secs(20)).await;
    assert_eq!(audit(&rig, &site), Audit { arrived: 601, ..Audit::default() });
    let carried = |record: &Record| record.headers.iter().filter(|header| header.as_user().is_some()).count();
    assert_eq!(site.records().iter().map(carried).max(), Some(250));
    assert!(rig.log.gaps(&rig.stream).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_never_forwarded_to_itself() {
    let site = Site::start(1).await;
    let onto_itself: headwater::uplink::SinkConfig = serde_json::from_str(&sink(site.addr())).unwrap();
    let metrics = Metrics::new();
    let uplink =
        headwater::uplink::Uplink::start(&[onto_itself], site.log.clone(), Clock::system(), metrics).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = uplink.status();
    assert!(status[0].trouble.as_deref().unwrap_or_default().contains("in circles"), "{status:?}");
}

/// Who answers was learnt from successes alone: an upstream that took the place of a Headwater and knows no batches was sent
/// them again for ever, and one that calls them malformed was taken to refuse the records. Now the shard map is asked for
/// after a request that failed, and its answer tells.
#[tokio::test(flavor = "multi_thread")]
async fn what_takes_the_place_of_another_headwater_is_recognised() {
    for (status, kind) in [(404, "UnknownOperationException"), (400, "SerializationException")] {
        let mut site = Site::start(1).await;
        let addr = site.addr();
        let mut rig = Rig::new(1);
        rig.put(500, 10).await;
        rig.start(&sink(addr)).await;
        rig.drained("site", Duration::from_secs(20)).await;
        site.close().await;
        let upstream = Upstream::start_at(addr, 30).await;
        upstream.answer_unknown(status, kind);
        upstream.create_stream(STREAM, 1);
        rig.put(500, 10).await;
        rig.drained("site", Duration::from_secs(20)).await;
        assert_eq!(upstream.seen(STREAM).len(), 500, "nothing is buried");
        assert_eq!(rig.trouble(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_under_way_are_sent_as_records_to_what_takes_the_place_of_another_headwater() {
    let mut site = Site::start(1).await;
    let addr = site.addr();
    let mut rig = Rig::new(1);
    rig.put(200_000, 10).await;
    // Closing the log folds it all.
    rig.restart(&sink(addr)).await;
    while site.record_count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.close().await;
    let stored = site.record_count();
    assert!(stored < 200_000, "all of it went before the door was closed");
    let upstream = Upstream::start_at(addr, 31).await;
    upstream.create_stream(STREAM, 1);
    rig.drained("site", Duration::from_secs(60)).await;
    assert!(upstream.seen(STREAM).len() as u64 + stored >= rig.total());
    assert_eq!(rig.trouble(), None);
}

/// Not a benchmark (`headwater bench drain` is): it fails when something waits that should not.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_drains_without_waiting_for_anything() {
    let site = Site::start(4).await;
    let mut rig = Rig::new(4);
    rig.put(400_000, 200).await;
    let began = std::time::Instant::now();
    rig.start(&sink(site.addr())).await;
    while site.record_count() < 400_000 {
        assert!(began.elapsed() < Duration::from_secs(100), "{} arrived", site.record_count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let per_s = 400_000.0 / began.elapsed().as_secs_f64();
    rig.drained("site", Duration::from_secs(5)).await;
    println!("{per_s:.0} records/s, cursors after {:?}", began.elapsed());
    assert!(per_s > 5_000.0, "{per_s}");
    assert_eq!(site.record_count(), 400_000);
}

/// Set for the child of the test below, so that no other test sees the credentials.
const SIGNED_CHILD: &str = "HEADWATER_TEST_SIGNED_CHILD";

/// The credentials come from the environment and from a profile that is named, and the door checks every signature.
#[test]
fn signed_requests_are_taken_and_wrong_ones_hold_the_sink() {
    let dir = tempfile::tempdir().unwrap();
    let profiles = dir.path().join("credentials");
    let profile = |name: &str, secret: &str| {
        format!("[{name}]\naws_access_key_id = AKIDTEST\naws_secret_access_key = {secret}\n")
    };
    std::fs::write(&profiles, profile("good", "secret") + &profile("bad", "wrong")).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "headwater::signed_child", "--ignored", "--nocapture"])
        .env(SIGNED_CHILD, "1")
        .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_SHARED_CREDENTIALS_FILE", &profiles)
        .env("AWS_CONFIG_FILE", dir.path().join("none"))
        .output()
        .unwrap();
    // A name that matches no test would succeed too.
    let ran = text(&child.stdout).contains("1 passed");
    assert!(child.status.success() && ran, "{}{}", text(&child.stdout), text(&child.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by signed_requests_are_taken_and_wrong_ones_hold_the_sink, with credentials in its environment"]
async fn signed_child() {
    if std::env::var_os(SIGNED_CHILD).is_none() {
        return;
    }
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "AKIDTEST secret\n").unwrap();
    let site = Site::with(2, ApiConfig { keys_file: Some(keys.path().to_owned()), ..ApiConfig::default() }).await;
    let sink = |more: &str| {
        let endpoint = site.addr();
        format!(r#"{{"type":"kinesis","name":"site","endpoint":"http://{endpoint}"{more}}}"#)
    };
    let mut rig = Rig::new(1);
    rig.put(1000, 10).await;
    rig.start(&sink(r#","profile":"bad""#)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.status()[0].trouble.as_deref().unwrap_or_default().contains("denies"), "{:?}", rig.status());
    assert_eq!((rig.backlog("site"), site.record_count()), (1000, 0));
    for more in ["", r#","profile":"good""#] {
        rig.stop().await;
        rig.put(1000, 10).await;
        rig.start(&sink(more)).await;
        rig.drained("site", Duration::from_secs(20)).await;
    }
    assert_eq!(audit(&rig, &site), Audit { arrived: 3000, ..Audit::default() });
}
