//! The door in front of a real log, driven over a real socket: every test reads as the trace of a client.

mod bounds;
mod from_headwater;

use super::*;
use crate::log::{OnFull, Options, StreamSettings};
use crate::record::{Header, HeaderId, NewRecord, StreamName};
use crate::units::{ByteSize, Span};
use crate::wire::{self, BatchWriter, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::Path;
use tokio::net::TcpStream;

const WALL_MS: u64 = 1_800_000_000_000;

struct Gateway {
    api: Option<Api>,
    log: Log,
    clock: Clock,
    metrics: Arc<Metrics>,
    dir: tempfile::TempDir,
}

impl Gateway {
    async fn start() -> Self {
        Self::with(ApiConfig::default()).await
    }

    async fn with(config: ApiConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::manual(1, WALL_MS), Metrics::new());
        let log = open(dir.path(), &clock, &metrics);
        let mut gateway = Gateway { api: None, log, clock, metrics, dir };
        gateway.listen(config).await;
        gateway
    }

    async fn listen(&mut self, config: ApiConfig) {
        let config = ApiConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config };
        let api = Api::start(&config, self.log.clone(), self.clock.clone(), self.metrics.clone()).await.unwrap();
        self.api = Some(api);
    }

    async fn restart(&mut self) {
        self.api.take().unwrap().stop(Duration::from_secs(5)).await;
        self.log.close(Duration::from_secs(5));
        self.log = open(self.dir.path(), &self.clock, &self.metrics);
        self.listen(ApiConfig::default()).await;
    }

    async fn client(&self) -> Client {
        let socket = TcpStream::connect(self.api.as_ref().unwrap().local_addr()).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Client { sender, headers: HeaderMap::new() }
    }
}

fn open(dir: &Path, clock: &Clock, metrics: &Arc<Metrics>) -> Log {
    let options = Options { max_bytes: ByteSize::mib(256), linger: Span::ms(1), ..Options::new(dir) };
    Log::open(options, clock.clone(), metrics.clone()).unwrap()
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// Sent with every request.
    headers: HeaderMap,
}

struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answered {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Answered {
        request.headers_mut().insert("host", "x".parse().unwrap());
        self.sender.ready().await.unwrap();
        let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn post(&mut self, operation: &str, body: impl Into<Bytes>) -> Answered {
        let mut request = Request::post("/")
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
            .body(Full::new(body.into()))
            .unwrap();
        request.headers_mut().extend(self.headers.clone());
        self.send(request).await
    }

    /// Calls an operation that must succeed.
    async fn call(&mut self, operation: &str, request: Value) -> Value {
        let answer = self.post(operation, request.to_string()).await;
        assert_eq!(answer.status, 200, "{operation}: {}", answer.text());
        if answer.body.is_empty() { Value::Null } else { serde_json::from_slice(&answer.body).unwrap() }
    }

    async fn create(&mut self, name: &str, shards: u32) {
        assert_eq!(self.call("CreateStream", json!({"StreamName": name, "ShardCount": shards})).await, Value::Null);
    }

    async fn put(&mut self, stream: &str, key: &str, data: &str) -> Value {
        let request = json!({"StreamName": stream, "PartitionKey": key, "Data": STANDARD.encode(data)});
        self.call("PutRecord", request).await
    }

    async fn iterator(&mut self, request: Value) -> String {
        self.call("GetShardIterator", request).await["ShardIterator"].as_str().unwrap().to_owned()
    }

    async fn read(&mut self, iterator: &str) -> Value {
        self.call("GetRecords", json!({"ShardIterator": iterator})).await
    }

    /// Data of all records from an iterator on.
    async fn texts(&mut self, iterator: &str) -> Vec<String> {
        let page = self.read(iterator).await;
        let records = page["Records"].as_array().unwrap();
        records
            .iter()
            .map(|record| String::from_utf8(STANDARD.decode(record["Data"].as_str().unwrap()).unwrap()).unwrap())
            .collect()
    }
}

fn oldest(stream: &str, shard: u32) -> Value {
    json!({"StreamName": stream, "ShardId": shard.to_string(), "ShardIteratorType": "TRIM_HORIZON"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_read_back_at_the_number_it_was_put_at() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let first = client.put("s", "pump-7", "one").await;
    let second = client.put("s", "pump-7", "two").await;
    assert_eq!(first["ShardId"], "shardId-000000000000");
    let iterator = client.iterator(oldest("s", 0)).await;
    let page = client.read(&iterator).await;
    let records = page["Records"].as_array().unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["SequenceNumber"], first["SequenceNumber"]);
    assert_eq!(records[1]["SequenceNumber"], second["SequenceNumber"]);
    assert!(first["SequenceNumber"].as_str() < second["SequenceNumber"].as_str());
    assert_eq!(records[0]["PartitionKey"], "pump-7");
    assert_eq!(records[0]["Data"], STANDARD.encode("one"));
    let arrival = records[0]["ApproximateArrivalTimestamp"].as_f64().unwrap();
    assert!((arrival - WALL_MS as f64 / 1000.0).abs() < 60.0, "{arrival}");
    assert_eq!(page["MillisBehindLatest"], 0);
    let next = client.read(page["NextShardIterator"].as_str().unwrap()).await;
    assert_eq!(next["Records"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn put_records_answers_each_record_in_its_place() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 4).await;
    let high = u128::MAX.to_string();
    let records: Vec<_> = (0..500)
        .map(|n| match n % 2 {
            0 => json!({"Data": STANDARD.encode(format!("{n}")), "PartitionKey": "k", "ExplicitHashKey": "0"}),
            _ => json!({"Data": STANDARD.encode(format!("{n}")), "PartitionKey": "k", "ExplicitHashKey": high}),
        })
        .collect();
    let answer = client.call("PutRecords", json!({"StreamName": "s", "Records": records})).await;
    assert_eq!(answer["FailedRecordCount"], 0);
    let results = answer["Records"].as_array().unwrap();
    assert_eq!(results.len(), 500);
    for (n, result) in results.iter().enumerate() {
        let shard = if n % 2 == 0 { "shardId-000000000000" } else { "shardId-000000000003" };
        assert_eq!(result["ShardId"], shard, "record {n}");
    }
    let iterator = client.iterator(oldest("s", 3)).await;
    let expected: Vec<_> = (0..500).filter(|n| n % 2 == 1).map(|n| n.to_string()).collect();
    assert_eq!(client.texts(&iterator).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_five_iterator_types_begin_where_they_say() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    client.put("s", "k", "a").await;
    gateway.clock.advance(60_000);
    let b = client.put("s", "k", "b").await["SequenceNumber"].clone();
    let base = |kind: &str| json!({"StreamName": "s", "ShardId": "shardId-000000000000", "ShardIteratorType": kind});
    let with = |kind: &str, member: &str, value: Value| {
        let mut request = base(kind);
        request[member] = value;
        request
    };
    let horizon = client.iterator(base("TRIM_HORIZON")).await;
    let latest = client.iterator(base("LATEST")).await;
    let at = client.iterator(with("AT_SEQUENCE_NUMBER", "StartingSequenceNumber", b.clone())).await;
    let after = client.iterator(with("AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber", b)).await;
    let later = (WALL_MS + 30_000) as f64 / 1000.0;
    let time = client.iterator(with("AT_TIMESTAMP", "Timestamp", json!(later))).await;
    client.put("s", "k", "c").await;
    assert_eq!(client.texts(&horizon).await, ["a", "b", "c"]);
    assert_eq!(client.texts(&latest).await, ["c"]);
    assert_eq!(client.texts(&at).await, ["b", "c"]);
    assert_eq!(client.texts(&after).await, ["c"]);
    assert_eq!(client.texts(&time).await, ["b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_behind_is_told_how_far() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    client.put("s", "k", "a").await;
    client.put("s", "k", "b").await;
    gateway.clock.advance(5_000);
    let iterator = client.iterator(oldest("s", 0)).await;
    let page = client.call("GetRecords", json!({"ShardIterator": iterator, "Limit": 1})).await;
    assert_eq!(page["Records"].as_array().unwrap().len(), 1);
    let behind = page["MillisBehindLatest"].as_u64().unwrap();
    assert!((5_000..6_000).contains(&behind), "{behind}");
    let page = client.read(page["NextShardIterator"].as_str().unwrap()).await;
    assert_eq!((page["Records"].as_array().unwrap().len(), &page["MillisBehindLatest"]), (1, &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_shards_are_listed_a_page_at_a_time() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    for name in ["a", "b", "c"] {
        client.create(name, 3).await;
    }
    let page = client.call("ListStreams", json!({"Limit": 2})).await;
    assert_eq!((&page["StreamNames"], &page["HasMoreStreams"]), (&json!(["a", "b"]), &json!(true)));
    assert_eq!(page["StreamSummaries"][0]["StreamARN"], "arn:aws:kinesis:us-east-1:000000000000:stream/a");
    let page = client.call("ListStreams", json!({"NextToken": page["NextToken"]})).await;
    assert_eq!((&page["StreamNames"], &page["HasMoreStreams"]), (&json!(["c"]), &json!(false)));
    assert!(page.get("NextToken").is_none());
    let page = client.call("ListStreams", json!({"ExclusiveStartStreamName": "a"})).await;
    assert_eq!(page["StreamNames"], json!(["b", "c"]));

    let ids = |page: &Value| {
        let shards = page["Shards"].as_array().unwrap();
        shards.iter().map(|shard| shard["ShardId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let page = client.call("ListShards", json!({"StreamName": "b", "MaxResults": 2})).await;
    assert_eq!(ids(&page), ["shardId-000000000000", "shardId-000000000001"]);
    assert_eq!(page["Shards"][0]["HashKeyRange"]["StartingHashKey"], "0");
    let page = client.call("ListShards", json!({"NextToken": page["NextToken"]})).await;
    assert_eq!(ids(&page), ["shardId-000000000002"]);
    assert_eq!(page["Shards"][0]["HashKeyRange"]["EndingHashKey"], u128::MAX.to_string());
    assert!(page.get("NextToken").is_none());
    let filter = json!({"Type": "AFTER_SHARD_ID", "ShardId": "shardId-000000000001"});
    let page = client.call("ListShards", json!({"StreamName": "b", "ShardFilter": filter})).await;
    assert_eq!(ids(&page), ["shardId-000000000002"]);
    for kind in ["AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST"] {
        let page = client.call("ListShards", json!({"StreamName": "b", "ShardFilter": {"Type": kind}})).await;
        assert_eq!(ids(&page).len(), 3, "{kind}");
    }

    let request = json!({"StreamName": "b", "Limit": 1, "ExclusiveStartShardId": "shardId-000000000000"});
    let description = client.call("DescribeStream", request).await["StreamDescription"].take();
    assert_eq!(ids(&description), ["shardId-000000000001"]);
    assert_eq!(description["HasMoreShards"], true);
    assert_eq!(description["RetentionPeriodHours"], 24);
    assert_eq!(description["StreamStatus"], "ACTIVE");
    assert_eq!(description["EncryptionType"], "NONE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_named_by_name_or_arn_and_gone_when_deleted() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 2).await;
    // An ARN from AWS names the stream of the same name here.
    let arn = json!({"StreamARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/s"});
    let summary = client.call("DescribeStreamSummary", arn.clone()).await["StreamDescriptionSummary"].take();
    assert_eq!((&summary["StreamName"], &summary["OpenShardCount"]), (&json!("s"), &json!(2)));
    let iterator = client.iterator(oldest("s", 0)).await;
    client.call("DeleteStream", arn).await;
    let refused = client.post("DescribeStreamSummary", r#"{"StreamName":"s"}"#).await;
    assert_eq!(
        (refused.status, refused.text()),
        (400, r#"{"__type":"ResourceNotFoundException","message":"Stream s under account 000000000000 not found."}"#)
    );
    let refused = client.post("GetRecords", json!({"ShardIterator": iterator}).to_string()).await;
    assert!(
        refused.text().contains("Shard shardId-000000000000 in stream s under account 000000000000 does not exist")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_worded_as_aws_words_them() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let a_sequence = client.put("s", "k", "x").await["SequenceNumber"].as_str().unwrap().to_owned();
    let of_shard_1 = Sequence { shard: 1, ..Sequence::parse(&a_sequence).unwrap() }.to_string();
    let of_another_time = Sequence { created_s: 7, ..Sequence::parse(&a_sequence).unwrap() }.to_string();
    let iterator = |kind: &str, sequence: &str| json!({"StreamName": "s", "ShardId": "0", "ShardIteratorType": kind, "StartingSequenceNumber": sequence});
    let entries = |count: usize| vec![json!({"Data": "", "PartitionKey": "k"}); count];
    let one = |n: &str| format!("1 validation error detected: Value {n}");
    let many = "com.amazonaws.kinesis.v20131202.PutRecordsRequestEntry@c965e310";
    let table: Vec<(&str, Value, &str, String)> = vec![
        ("CreateStream", json!({"StreamName": "s", "ShardCount": 1}), "ResourceInUseException", "Stream s under account 000000000000 already exists.".into()),
        ("CreateStream", json!({"StreamName": "t"}), "ValidationException", one("null at 'shardCount' failed to satisfy constraint: Member must not be null")),
        ("CreateStream", json!({"StreamName": "t", "ShardCount": 0}), "ValidationException", one("'0' at 'shardCount' failed to satisfy constraint: Member must have value greater than or equal to 1")),
        ("CreateStream", json!({"StreamName": "t", "ShardCount": 5000}), "LimitExceededException", "5000 shards: 1 to 1024 are allowed".into()),
        ("CreateStream", json!({"StreamName": "t", "ShardCount": 1, "StreamModeDetails": {"StreamMode": "ON_DEMAND"}}), "ValidationException", "ShardCount is not expected when StreamMode=ON_DEMAND".into()),
        ("CreateStream", json!({"StreamName": "a b", "ShardCount": 1}), "ValidationException", one("'a b' at 'streamName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+")),
        ("DescribeStream", json!({}), "InvalidArgumentException", "Either StreamName or StreamARN should be provided.".into()),
        ("DescribeStream", json!({"StreamName": "none"}), "ResourceNotFoundException", "Stream none under account 000000000000 not found.".into()),
        ("DescribeStream", json!({"StreamName": "s", "Limit": 10001}), "ValidationException", one("'10001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 10000")),
        ("DescribeStreamSummary", json!({"StreamARN": "arn:x"}), "ValidationException", one(r"'arn:x' at 'streamARN' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:aws.*:kinesis:.*:\d{12}:stream/\S+")),
        ("ListShards", json!({}), "InvalidArgumentException", "Either NextToken or StreamName should be provided.".into()),
        ("ListShards", json!({"StreamName": "s", "NextToken": "x"}), "InvalidArgumentException", "NextToken and StreamName cannot be provided together.".into()),
        ("ListShards", json!({"NextToken": "x"}), "InvalidArgumentException", "Invalid NextToken.".into()),
        ("ListShards", json!({"StreamName": "s", "ShardFilter": {"Type": "ALL"}}), "ValidationException", one("'ALL' at 'shardFilter.type' failed to satisfy constraint: Member must satisfy enum value set: [AFTER_SHARD_ID, AT_TRIM_HORIZON, FROM_TRIM_HORIZON, AT_LATEST, AT_TIMESTAMP, FROM_TIMESTAMP]")),
        ("ListShards", json!({"StreamName": "s", "StreamCreationTimestamp": 1}), "ResourceNotFoundException", "Stream s under account 000000000000 not found.".into()),
        ("ListStreams", json!({"NextToken": "x"}), "InvalidArgumentException", "Invalid NextToken.".into()),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "0", "ShardIteratorType": "NEVER"}), "ValidationException", one("'NEVER' at 'shardIteratorType' failed to satisfy constraint: Member must satisfy enum value set: [AFTER_SEQUENCE_NUMBER, LATEST, AT_TIMESTAMP, AT_SEQUENCE_NUMBER, TRIM_HORIZON]")),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "x", "ShardIteratorType": "LATEST"}), "ResourceNotFoundException", "Could not find shard x in stream s under account 000000000000.".into()),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "9", "ShardIteratorType": "LATEST"}), "ResourceNotFoundException", "Shard shardId-000000000009 in stream s under account 000000000000 does not exist".into()),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "0", "ShardIteratorType": "AT_SEQUENCE_NUMBER"}), "InvalidArgumentException", "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or (2) TRIM_HORIZON or LATEST and no StartingSequenceNumber. Request specified AT_SEQUENCE_NUMBER and no StartingSequenceNumber.".into()),
        ("GetShardIterator", iterator("LATEST", "1"), "InvalidArgumentException", "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or (2) TRIM_HORIZON or LATEST and no StartingSequenceNumber. Request specified LATEST and also a StartingSequenceNumber.".into()),
        ("GetShardIterator", iterator("AT_SEQUENCE_NUMBER", "1"), "InvalidArgumentException", "StartingSequenceNumber 1 used in GetShardIterator on shard shardId-000000000000 in stream s under account 000000000000 is invalid.".into()),
        ("GetShardIterator", iterator("AT_SEQUENCE_NUMBER", &of_shard_1), "InvalidArgumentException", "Invalid StartingSequenceNumber. It encodes shardId-000000000001, while it was used in a call to a shard with shardId-000000000000".into()),
        ("GetShardIterator", iterator("AT_SEQUENCE_NUMBER", &of_another_time), "InvalidArgumentException", format!("StartingSequenceNumber {of_another_time} used in GetShardIterator on shard shardId-000000000000 in stream s under account 000000000000 is invalid because it did not come from this stream.")),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "0", "ShardIteratorType": "AT_TIMESTAMP"}), "InvalidArgumentException", "Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP. Current request has no timestamp parameter.".into()),
        ("GetShardIterator", json!({"StreamName": "s", "ShardId": "0", "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1_900_000_000}), "InvalidArgumentException", format!("The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. timestampInMillis: 1900000000000, currentTimestampInMillis: {}", gateway.clock.now().wall_ms)),
        ("GetRecords", json!({"ShardIterator": "AAAA"}), "InvalidArgumentException", "Invalid ShardIterator.".into()),
        ("GetRecords", json!({}), "ValidationException", one("null at 'shardIterator' failed to satisfy constraint: Member must not be null")),
        ("PutRecord", json!({"StreamName": "none", "PartitionKey": "k", "Data": ""}), "ResourceNotFoundException", "Stream none under account 000000000000 not found.".into()),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "k".repeat(257), "Data": ""}), "ValidationException", one(&format!("'{}' at 'partitionKey' failed to satisfy constraint: Member must have length less than or equal to 256", "k".repeat(257)))),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "k", "Data": "abc"}), "SerializationException", "'abc' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: 3".into()),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "", "Data": "a"}), "SerializationException", "'a' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: 1".into()),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "k", "Data": "", "ExplicitHashKey": "340282366920938463463374607431768211456"}), "InvalidArgumentException", "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was 340282366920938463463374607431768211456".into()),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "k", "Data": "", "SequenceNumberForOrdering": "5"}), "InvalidArgumentException", "ExclusiveMinimumSequenceNumber 5 used in PutRecord on stream s under account 000000000000 is invalid.".into()),
        ("PutRecord", json!({"StreamName": "s", "PartitionKey": "k", "Data": "", "DryRun": true}), "DryRunOperationException", "Request would have succeeded, but DryRun flag is set.".into()),
        ("PutRecords", json!({"StreamName": "s", "Records": []}), "ValidationException", one("'[]' at 'records' failed to satisfy constraint: Member must have length greater than or equal to 1")),
        ("PutRecords", json!({"StreamName": "s", "Records": entries(501)}), "ValidationException", one(&format!("'[{many}, {many}, {many}]' at 'records' failed to satisfy constraint: Member must have length less than or equal to 500"))),
        ("PutRecords", json!({"StreamName": "s", "Records": [{"PartitionKey": "k"}]}), "ValidationException", one("null at 'records.1.member.data' failed to satisfy constraint: Member must not be null")),
        ("PutRecords", json!({"StreamName": "s", "Records": 5}), "SerializationException", "Expected list or null".into()),
        ("SplitShard", json!({}), "UnknownOperationException", "SplitShard is not offered by this Headwater yet; docs/kinesis.md lists what is.".into()),
        ("Nonsense", json!({}), "UnknownOperationException", "X-Amz-Target names no operation of Kinesis_20131202.".into()),
    ];
    for (operation, request, kind, says) in table {
        let answer = client.post(operation, request.to_string()).await;
        let member =
            if matches!(kind, "SerializationException" | "UnknownOperationException") { "Message" } else { "message" };
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body, json!({"__type": kind, member: says}), "{operation} {request}");
        assert_eq!(answer.status, 400, "{operation} {request}");
    }
    // Nothing of all this was stored.
    let iterator = client.iterator(oldest("s", 0)).await;
    assert_eq!(client.texts(&iterator).await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_operation_is_refused_as_aws_does() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    let ask = |method: &str, content_type: &str, target: &str, body: &'static str| {
        Request::builder()
            .method(method)
            .uri("/")
            .header("content-type", content_type)
            .header("x-amz-target", target)
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .unwrap()
    };
    let json11 = "application/x-amz-json-1.1";
    let target = "Kinesis_20131202.ListStreams";
    for (request, status, contains) in [
        (ask("GET", "", "", ""), 403, "<AccessDeniedException>"),
        (ask("POST", "text/plain", "", "{}"), 403, "Unable to determine service/operation name to be authorized"),
        (ask("POST", "application/x-amz-cbor-1.1", target, "{}"), 404, "<UnknownOperationException/>"),
        (ask("POST", "application/json", target, "{}"), 404, "com.amazon.coral.service#UnknownOperationException"),
        (ask("POST", json11, "", "{}"), 400, r#""__type":"UnknownOperationException""#),
        (ask("POST", json11, "DynamoDB_20120810.ListTables", "{}"), 400, r#""__type":"UnknownOperationException""#),
        (ask("POST", json11, target, ""), 400, r#""__type":"SerializationException""#),
        (ask("POST", json11, target, "{"), 400, r#""__type":"SerializationException""#),
        (ask("POST", "application/x-amz-json-1.1; charset=utf-8", target, "{}"), 200, r#""StreamNames":[]"#),
    ] {
        let shown = format!("{request:?}");
        let answer = client.send(request).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        assert!(answer.text().contains(contains), "{shown}: {}", answer.text());
        assert_eq!(answer.headers["x-headwater-gateway"], gateway.log.gateway_id());
        assert_eq!(answer.headers["x-headwater-batch"], "2");
        assert_eq!(answer.headers["x-amzn-requestid"].len(), 36);
    }
    let text = gateway.metrics.render();
    assert!(text.contains(r#"headwater_api_requests_total{operation="ListStreams",status="200"} 1"#), "{text}");
    assert!(text.contains(r#"headwater_rejects_total{part="api",reason="unknown_operation"} 2"#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_a_web_page_on_the_box_gets_nothing() {
    let mut gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.headers.insert("origin", "http://127.0.0.1:3000".parse().unwrap());
    let answer = client.post("ListStreams", "{}").await;
    assert!(answer.text().contains("AccessDeniedException"), "{}", answer.text());
    gateway.listen(ApiConfig { insecure_no_signature: true, ..ApiConfig::default() }).await;
    let mut client = gateway.client().await;
    client.headers.insert("origin", "http://127.0.0.1:3000".parse().unwrap());
    assert_eq!(client.post("ListStreams", "{}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_told_so() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    let answer = client.post("PutRecords", vec![b' '; (15 << 20) + 1]).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let data = STANDARD.encode(vec![7; (10 << 20) - 1]);
    let request = json!({"StreamName": "s", "Records": [{"Data": data, "PartitionKey": "k"}]});
    let answer = client.call("PutRecords", request).await;
    assert_eq!(answer["FailedRecordCount"], 0);
    let request = json!({"StreamName": "s", "Records": [{"Data": data, "PartitionKey": "kk"}]});
    let answer = client.post("PutRecords", request.to_string()).await;
    assert!(answer.text().contains("Records size exceeds 10 MB limit"), "{}", answer.text());
    let iterator = client.iterator(oldest("s", 0)).await;
    let page = client.read(&iterator).await;
    assert_eq!(page["Records"][0]["Data"].as_str().map(str::len), Some(data.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iterator_expires_after_five_minutes_and_survives_a_restart() {
    let mut gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    client.put("s", "k", "kept").await;
    let iterator = client.iterator(oldest("s", 0)).await;
    drop(client);
    gateway.restart().await;
    let mut client = gateway.client().await;
    assert_eq!(client.texts(&iterator).await, ["kept"]);
    gateway.clock.advance(300_001);
    let answer = client.post("GetRecords", json!({"ShardIterator": iterator}).to_string()).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["__type"], "ExpiredIteratorException");
    let says = body["message"].as_str().unwrap();
    assert!(says.starts_with("Iterator expired. The iterator was created at time Fri Jan 15 08:00:"), "{says}");
    assert!(
        says.ends_with("which is further in the future than the tolerated delay of 300000 milliseconds."),
        "{says}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_that_rejects_says_so_record_by_record() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    let settings = StreamSettings {
        shards: 1,
        max_bytes: Some(ByteSize::mib(4)),
        on_full: OnFull::Reject,
        ..StreamSettings::default()
    };
    let log = gateway.log.clone();
    let name = StreamName::new("small").unwrap();
    tokio::task::spawn_blocking(move || log.create_stream(&name, settings)).await.unwrap().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut refused = None;
    for _ in 0..200 {
        // Nothing that compression could make room for.
        let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(256 << 10).collect();
        let records = vec![json!({"Data": STANDARD.encode(&data), "PartitionKey": "k"}); 2];
        let answer = client.call("PutRecords", json!({"StreamName": "small", "Records": records})).await;
        if answer["FailedRecordCount"] != 0 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("100 MiB went into 4 MiB");
    let last = refused["Records"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["ErrorCode"], "ProvisionedThroughputExceededException");
    assert_eq!(
        last["ErrorMessage"],
        "Stream small is full and refuses new records for shardId-000000000000 (on_full = \"reject\")."
    );
    let answer =
        client.post("PutRecord", json!({"StreamName": "small", "PartitionKey": "k", "Data": ""}).to_string()).await;
    assert!(answer.text().contains("ProvisionedThroughputExceededException"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_access_keys_nobody_gets_in_unsigned() {
    let key = AccessKey { id: "AKID".into(), secret: "secret".into() };
    let gateway = Gateway::with(ApiConfig { access_keys: vec![key], ..ApiConfig::default() }).await;
    let mut client = gateway.client().await;
    let answer = client.post("ListStreams", "{}").await;
    assert_eq!(
        (answer.status, answer.text()),
        (400, r#"{"__type":"MissingAuthenticationTokenException","Message":"Missing Authentication Token"}"#)
    );
    let mut batch = Request::post("/").body(Full::new(Bytes::new())).unwrap();
    batch.headers_mut().insert("content-type", wire::CONTENT_TYPE.parse().unwrap());
    assert_eq!(client.send(batch).await.status, 400);
    // Nor with a key of ours and a signature that is not: on the short ways of another Headwater as on AWS's.
    let date = super::date::format_basic(WALL_MS / 1000);
    let scope = format!("{}/eu-west-1/kinesis/aws4_request", &date[..8]);
    let forged = format!(
        "AWS4-HMAC-SHA256 Credential=AKID/{scope}, SignedHeaders=host;x-amz-date, Signature={}",
        "0".repeat(64)
    );
    for content_type in ["application/x-amz-json-1.1", wire::CONTENT_TYPE, wire::blocks::CONTENT_TYPE] {
        let request = Request::post("/").header("content-type", content_type).header("authorization", &forged);
        let request = request.header("x-amz-date", &date).body(Full::new(Bytes::from_static(b"{}"))).unwrap();
        let answer = client.send(request).await;
        assert!(answer.text().contains("InvalidSignatureException"), "{content_type}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iterator_of_a_deleted_stream_does_not_read_the_one_made_again_under_its_name() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    client.put("s", "k", "old").await;
    let iterator = client.iterator(oldest("s", 0)).await;
    client.call("DeleteStream", json!({"StreamName": "s"})).await;
    client.create("s", 1).await;
    client.put("s", "k", "new").await;
    let refused = client.post("GetRecords", json!({"ShardIterator": iterator}).to_string()).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("ResourceNotFoundException"), "{}", refused.text());
}
