//! A Kinesis upstream that fails as real ones do, and keeps what it accepted: the judge of what the uplink sends.
//!
//! It speaks ListShards, DescribeStreamSummary, CreateStream, PutRecord and PutRecords of JSON 1.1 over HTTP/1.1, in memory.
//! Faults come by chance from one seed, or are switched on and off by the test. What it accepted is read back as a consumer
//! with KCL would see it: aggregates taken apart, sub-records that lie outside their shard dropped, parents before children.

use crate::aggregate::{self, hash_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// Chances of each fault, per request unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Per connection: closed as soon as it is accepted.
    pub refuse: f64,
    /// The whole request: ProvisionedThroughputExceededException.
    pub throttle: f64,
    /// Per record: the same.
    pub throttle_record: f64,
    /// Per record: InternalFailure.
    pub fail_record: f64,
    pub error_500: f64,
    pub deny_403: f64,
    /// Never answered.
    pub hang: f64,
    /// Nothing stored, half an answer, closed.
    pub close_midway: f64,
    /// Stored, and then closed without an answer.
    pub lose_answer: f64,
    /// Stored, and half an answer.
    pub half_answer: f64,
}

impl Faults {
    pub fn none() -> Self {
        Faults::default()
    }
}

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub shard: usize,
    pub key: String,
    pub data: Vec<u8>,
    /// The record id that came as a tag of an aggregate.
    pub id: Option<String>,
}

struct Shard {
    id: String,
    range: (u128, u128),
    parent: Option<String>,
    open: bool,
    records: Vec<Stored>,
}

#[derive(Clone)]
struct Stored {
    key: String,
    data: Vec<u8>,
}

#[derive(Default)]
struct Stream {
    shards: Vec<Shard>,
}

struct State {
    streams: BTreeMap<String, Stream>,
    faults: Faults,
    random: fastrand::Rng,
    /// How often each fault struck, by name.
    struck: HashMap<&'static str, u64>,
    requests: u64,
    /// PutRecords and PutRecord that stored everything they brought.
    puts: u64,
    sequence: u64,
    /// Partition keys whose records are refused with a ValidationException for the whole request.
    poison: HashSet<String>,
    /// Keys whose records are throttled, always.
    stuck: HashSet<String>,
    /// The answer to what names no operation.
    unknown: (u16, &'static str),
}

/// The upstream at work; ends when it is dropped.
pub struct Upstream {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub async fn start(seed: u64) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), seed).await
    }

    pub async fn start_at(at: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State {
            streams: BTreeMap::new(),
            faults: Faults::none(),
            random: fastrand::Rng::with_seed(seed),
            struck: HashMap::new(),
            requests: 0,
            puts: 0,
            sequence: 1,
            poison: HashSet::new(),
            stuck: HashSet::new(),
            unknown: (404, "UnknownOperationException"),
        }));
        let task = tokio::spawn(listen(listener, state.clone())).abort_handle();
        Upstream { endpoint, state, task }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    pub fn create_stream(&self, name: &str, shards: u32) {
        self.state().streams.insert(name.to_owned(), Stream::new(shards));
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Records of this key are refused for good from now on, with the request they stand in.
    pub fn poison(&self, key: &str) {
        self.state().poison.insert(key.to_owned());
    }

    /// Records of this key (or aggregates that begin with it) are throttled until [`Upstream::release`].
    pub fn hold(&self, key: &str) {
        self.state().stuck.insert(key.to_owned());
    }

    pub fn release(&self, key: &str) {
        self.state().stuck.remove(key);
    }

    /// What is answered to a request that names no operation.
    pub fn answer_unknown(&self, status: u16, kind: &'static str) {
        self.state().unknown = (status, kind);
    }

    /// Splits an open shard in the middle.
    pub fn split(&self, stream: &str, shard: usize) {
        let (from, to) = self.state().streams[stream].shards[shard].range;
        self.split_at(stream, shard, from + (to - from) / 2);
    }

    /// Splits an open shard after a point of its range.
    pub fn split_at(&self, stream: &str, shard: usize, middle: u128) {
        let mut state = self.state();
        let shards = &mut state.streams.get_mut(stream).expect("the stream").shards;
        let (from, to) = shards[shard].range;
        shards[shard].open = false;
        let parent = shards[shard].id.clone();
        for range in [(from, middle), (middle + 1, to)] {
            shards.push(Shard::new(shards.len(), range, Some(parent.clone())));
        }
    }

    /// Merges two open shards that touch.
    pub fn merge(&self, stream: &str, left: usize, right: usize) {
        let mut state = self.state();
        let shards = &mut state.streams.get_mut(stream).expect("the stream").shards;
        assert_eq!(shards[left].range.1 + 1, shards[right].range.0, "they touch");
        let range = (shards[left].range.0, shards[right].range.1);
        (shards[left].open, shards[right].open) = (false, false);
        let parent = shards[left].id.clone();
        shards.push(Shard::new(shards.len(), range, Some(parent)));
    }

    /// First and last hash key of a shard.
    pub fn range(&self, stream: &str, shard: usize) -> (u128, u128) {
        self.state().streams[stream].shards[shard].range
    }

    /// Sub-records of aggregates that lie outside their shard: a consumer never sees them.
    pub fn astray(&self, stream: &str) -> usize {
        let state = self.state();
        let astray = |shard: &Shard| {
            let subs = shard.records.iter().filter_map(|record| aggregate::split(&record.data)).flatten();
            subs.filter(|sub| !(shard.range.0..=shard.range.1).contains(&sub.hash())).count()
        };
        state.streams[stream].shards.iter().map(astray).sum()
    }

    /// Indexes of the open shards.
    pub fn open_shards(&self, stream: &str) -> Vec<usize> {
        let state = self.state();
        let shards = state.streams[stream].shards.iter().enumerate();
        shards.filter(|(_, shard)| shard.open).map(|(at, _)| at).collect()
    }

    /// How often each fault struck.
    pub fn struck(&self) -> HashMap<&'static str, u64> {
        self.state().struck.clone()
    }

    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Records as stored, aggregates not taken apart.
    pub fn stored(&self, stream: &str) -> usize {
        self.state().streams[stream].shards.iter().map(|shard| shard.records.len()).sum()
    }

    /// And their sizes in bytes, keys included.
    pub fn sizes(&self, stream: &str) -> Vec<usize> {
        let state = self.state();
        let records = state.streams[stream].shards.iter().flat_map(|shard| &shard.records);
        records.map(|record| record.key.len() + record.data.len()).collect()
    }

    /// What a consumer sees, shard after shard, parents first.
    pub fn seen(&self, stream: &str) -> Vec<Seen> {
        let state = self.state();
        let mut seen = Vec::new();
        for (at, shard) in state.streams[stream].shards.iter().enumerate() {
            for record in &shard.records {
                match aggregate::split(&record.data) {
                    None => seen.push(Seen { shard: at, key: record.key.clone(), data: record.data.clone(), id: None }),
                    Some(subs) => {
                        let inside = |sub: &aggregate::Sub| (shard.range.0..=shard.range.1).contains(&sub.hash());
                        seen.extend(subs.into_iter().filter(inside).map(|sub| Seen {
                            shard: at,
                            id: sub.tag("headwater-id").map(str::to_owned),
                            key: sub.key,
                            data: sub.data,
                        }));
                    }
                }
            }
        }
        seen
    }
}

impl Stream {
    fn new(count: u32) -> Self {
        let step = u128::MAX / u128::from(count);
        let range = |at: u32| {
            let from = step * u128::from(at) + u128::from(at > 0);
            (from, if at + 1 == count { u128::MAX } else { step * u128::from(at + 1) })
        };
        Stream { shards: (0..count).map(|at| Shard::new(at as usize, range(at), None)).collect() }
    }

    fn shard_for(&mut self, hash: u128) -> &mut Shard {
        let holds = |shard: &&mut Shard| shard.open && (shard.range.0..=shard.range.1).contains(&hash);
        self.shards.iter_mut().find(holds).expect("open shards cover the key space")
    }
}

impl Shard {
    fn new(at: usize, range: (u128, u128), parent: Option<String>) -> Self {
        Shard { id: format!("shardId-{at:012}"), range, parent, open: true, records: Vec::new() }
    }

    fn described(&self) -> Value {
        let mut numbers = json!({ "StartingSequenceNumber": "1" });
        if !self.open {
            numbers["EndingSequenceNumber"] = json!("9");
        }
        let mut shard = json!({
            "ShardId": self.id,
            "HashKeyRange": { "StartingHashKey": self.range.0.to_string(), "EndingHashKey": self.range.1.to_string() },
            "SequenceNumberRange": numbers,
        });
        if let Some(parent) = &self.parent {
            shard["ParentShardId"] = json!(parent);
        }
        shard
    }
}

async fn listen(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if state.lock().expect("no test panics with it").strikes("refuse", |faults| faults.refuse) {
            continue;
        }
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, &state));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hung up on purpose")
    }
}

impl std::error::Error for HangUp {}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Result<Response<Answer>, HangUp> {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map_err(|_| HangUp)?.to_bytes();
    let is_put = operation.starts_with("Put");
    let fate = {
        let mut state = state.lock().expect("no test panics with it");
        state.requests += 1;
        state.fate(is_put)
    };
    match fate {
        Fate::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Err(HangUp)
        }
        Fate::Answer(status, body) => Ok(Answer::whole(status, body)),
        Fate::CloseMidway => Ok(Answer::half(br#"{"FailedRecordCount":0,"Records":[{"Seq"#.as_slice().into())),
        Fate::Serve(after) => {
            let (status, value) = state.lock().expect("no test panics with it").serve(&operation, &body);
            match after {
                After::Nothing => Ok(Answer::whole(status, value.to_string())),
                After::LoseAnswer => Err(HangUp),
                After::HalfAnswer => Ok(Answer::half(value.to_string().into())),
            }
        }
    }
}

enum Fate {
    Answer(u16, String),
    Hang,
    CloseMidway,
    Serve(After),
}

enum After {
    Nothing,
    LoseAnswer,
    HalfAnswer,
}

impl State {
    fn strikes(&mut self, name: &'static str, chance: impl Fn(&Faults) -> f64) -> bool {
        let strikes = self.random.f64() < chance(&self.faults);
        if strikes {
            *self.struck.entry(name).or_default() += 1;
        }
        strikes
    }

    fn fate(&mut self, is_put: bool) -> Fate {
        let error = |kind: &str| json!({ "__type": kind, "message": "by order of the test" }).to_string();
        if self.strikes("deny_403", |faults| faults.deny_403) {
            return Fate::Answer(403, error("AccessDeniedException"));
        }
        if self.strikes("error_500", |faults| faults.error_500) {
            return Fate::Answer(500, error("InternalFailure"));
        }
        if self.strikes("throttle", |faults| faults.throttle) {
            return Fate::Answer(400, error("ProvisionedThroughputExceededException"));
        }
        if self.strikes("hang", |faults| faults.hang) {
            return Fate::Hang;
        }
        if self.strikes("close_midway", |faults| faults.close_midway) {
            return Fate::CloseMidway;
        }
        if is_put && self.strikes("lose_answer", |faults| faults.lose_answer) {
            return Fate::Serve(After::LoseAnswer);
        }
        if is_put && self.strikes("half_answer", |faults| faults.half_answer) {
            return Fate::Serve(After::HalfAnswer);
        }
        Fate::Serve(After::Nothing)
    }

    fn serve(&mut self, operation: &str, body: &[u8]) -> (u16, Value) {
        if operation.is_empty() {
            return (self.unknown.0, json!({ "__type": self.unknown.1 }));
        }
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return (400, json!({ "__type": "SerializationException" }));
        };
        let name = body["StreamName"].as_str().unwrap_or_default().to_owned();
        if operation == "CreateStream" {
            let shards = body["ShardCount"].as_u64().unwrap_or(1) as u32;
            self.streams.insert(name, Stream::new(shards));
            return (200, json!({}));
        }
        if !self.streams.contains_key(&name) {
            return (400, json!({ "__type": "ResourceNotFoundException", "message": format!("no stream {name}") }));
        }
        match operation {
            "ListShards" => {
                let shards: Vec<_> = self.streams[&name].shards.iter().map(Shard::described).collect();
                (200, json!({ "Shards": shards }))
            }
            "DescribeStreamSummary" => {
                let open = self.streams[&name].shards.iter().filter(|shard| shard.open).count();
                let summary = json!({ "StreamName": name, "StreamStatus": "ACTIVE", "OpenShardCount": open });
                (200, json!({ "StreamDescriptionSummary": summary }))
            }
            "PutRecord" => match self.check(std::slice::from_ref(&body)) {
                Some(problem) => (400, problem),
                None => (200, self.put(&name, &body)),
            },
            "PutRecords" => self.put_records(&name, &body),
            _ => (400, json!({ "__type": "UnknownOperationException" })),
        }
    }

    fn put_records(&mut self, name: &str, body: &Value) -> (u16, Value) {
        let entries = body["Records"].as_array().cloned().unwrap_or_default();
        if let Some(problem) = self.check(&entries) {
            return (400, problem);
        }
        // Kinesis promises no order within a request and stores what it can: so does this.
        let results: Vec<_> = entries.iter().map(|entry| self.put(name, entry)).collect();
        let failed = results.iter().filter(|result| result.get("ErrorCode").is_some()).count();
        self.puts += u64::from(failed == 0);
        (200, json!({ "FailedRecordCount": failed, "Records": results }))
    }

    /// The validations that refuse a request as a whole.
    fn check(&self, entries: &[Value]) -> Option<Value> {
        let invalid = |message: String| Some(json!({ "__type": "ValidationException", "message": message }));
        if entries.is_empty() || entries.len() > 500 {
            return invalid(format!("{} records", entries.len()));
        }
        let mut bytes = 0;
        for entry in entries {
            let (Some(key), Some(data)) = (entry["PartitionKey"].as_str(), decoded(entry)) else {
                return invalid("an entry without key or data".into());
            };
            let size = key.len() + data.len();
            bytes += size;
            if key.is_empty() || key.chars().count() > 256 || size > 1 << 20 {
                return invalid(format!("a record of {size} bytes under a key of {}", key.len()));
            }
            let keys =
                aggregate::split(&data).map_or(vec![key.to_owned()], |subs| subs.into_iter().map(|s| s.key).collect());
            if keys.iter().any(|key| self.poison.contains(key)) {
                return invalid("a record nobody wants".into());
            }
        }
        if bytes > 5 << 20 { invalid(format!("{bytes} bytes")) } else { None }
    }

    fn put(&mut self, name: &str, entry: &Value) -> Value {
        let key = entry["PartitionKey"].as_str().unwrap_or_default().to_owned();
        let data = decoded(entry).unwrap_or_default();
        let is_stuck = match aggregate::split(&data) {
            Some(subs) => subs.iter().any(|sub| self.stuck.contains(&sub.key)),
            None => self.stuck.contains(&key),
        };
        if is_stuck || self.strikes("throttle_record", |faults| faults.throttle_record) {
            return json!({ "ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow down" });
        }
        if self.strikes("fail_record", |faults| faults.fail_record) {
            return json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "Internal service failure." });
        }
        let hash = match entry["ExplicitHashKey"].as_str() {
            Some(hash) => hash.parse().unwrap_or(0),
            None => hash_of(&key),
        };
        self.sequence += 1;
        let sequence = self.sequence;
        let shard = self.streams.get_mut(name).expect("it exists").shard_for(hash);
        shard.records.push(Stored { key, data });
        json!({ "SequenceNumber": format!("{sequence:056}"), "ShardId": shard.id })
    }
}

fn decoded(entry: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(entry["Data"].as_str()?).ok()
}

/// An answer, or the first half of one.
struct Answer {
    left: Option<Bytes>,
    promised: u64,
    broken: bool,
}

impl Answer {
    fn whole(status: u16, body: String) -> Response<Answer> {
        let body = Bytes::from(body);
        let answer = Answer { promised: body.len() as u64, left: Some(body), broken: false };
        let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.1");
        response.body(answer).expect("a response")
    }

    fn half(body: Bytes) -> Response<Answer> {
        let promised = body.len() as u64 + 1;
        let half = body.slice(..body.len() / 2);
        Response::new(Answer { left: Some(half), promised, broken: true })
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HangUp;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HangUp>>> {
        match self.left.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.broken => Poll::Ready(Some(Err(HangUp))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none() && !self.broken
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
