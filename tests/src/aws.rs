//! The Kinesis API as bytes: enough HTTP/1.1 and JSON 1.1 to read a stream back, with nothing retried behind a test's back.
//!
//! The clients people use (boto3, the AWS CLI, the SDK for JavaScript) have tests of their own in `clients.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// An answer that is not a 200: its status and what it says.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub body: String,
}

/// A record as GetRecords gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub sequence: String,
    pub key: String,
    pub data: Vec<u8>,
}

/// Calls `operation`; panics when nobody answers.
pub fn call(api: SocketAddr, operation: &str, body: &Value) -> Result<Value, Refused> {
    let (status, text) = try_call(api, operation, body).unwrap_or_else(|e| panic!("{operation}: {e}"));
    match status {
        200 if text.is_empty() => Ok(Value::Null),
        200 => Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{operation}: {e} in {text}"))),
        status => Err(Refused { status, body: text }),
    }
}

/// The same where the gateway may be gone: status and body.
pub fn try_call(api: SocketAddr, operation: &str, body: &Value) -> io::Result<(u16, String)> {
    let body = body.to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: Kinesis_20131202.{operation}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    request(api, &head, body.as_bytes())
}

/// Status and body of a plain GET.
pub fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    request(addr, &head, b"").unwrap_or_else(|e| panic!("GET {path}: {e}"))
}

pub fn request(addr: SocketAddr, head: &str, body: &[u8]) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse_answer(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an HTTP answer cut short"))
}

fn parse_answer(answer: &[u8]) -> Option<(u16, String)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &answer[end + 4..];
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunk(body)?,
        false => body.to_vec(),
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return None;
    }
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

fn unchunk(mut from: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = from.windows(2).position(|two| two == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&from[..line]).ok()?.trim(), 16).ok()?;
        from = &from[line + 2..];
        if length == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(from.get(..length)?);
        from = from.get(length + 2..)?;
    }
}

/// Creates a stream and waits until it is ACTIVE.
pub fn create_stream(api: SocketAddr, name: &str, shards: u32) {
    call(api, "CreateStream", &json!({"StreamName": name, "ShardCount": shards}))
        .unwrap_or_else(|refused| panic!("CreateStream {name}: {refused:?}"));
    let active = crate::tools::eventually(Duration::from_secs(10), || {
        let about = call(api, "DescribeStreamSummary", &json!({"StreamName": name}));
        about.is_ok_and(|about| about["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")
    });
    assert!(active, "{name} did not become ACTIVE");
}

/// Ids of a stream's shards.
pub fn shards(api: SocketAddr, stream: &str) -> Vec<String> {
    let listed = call(api, "ListShards", &json!({"StreamName": stream}))
        .unwrap_or_else(|refused| panic!("ListShards {stream}: {refused:?}"));
    let shards = listed["Shards"].as_array().cloned().unwrap_or_default();
    shards.iter().filter_map(|shard| Some(shard["ShardId"].as_str()?.to_owned())).collect()
}

/// Everything of a shard behind the sequence number, or all of it, up to what is durable now.
pub fn read_shard(api: SocketAddr, stream: &str, shard: &str, after: Option<&str>) -> Vec<Got> {
    let mut ask = json!({"StreamName": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"});
    if let Some(after) = after {
        ask["ShardIteratorType"] = "AFTER_SEQUENCE_NUMBER".into();
        ask["StartingSequenceNumber"] = after.into();
    }
    let iterator = call(api, "GetShardIterator", &ask).unwrap_or_else(|e| panic!("GetShardIterator {ask}: {e:?}"));
    let mut iterator = iterator["ShardIterator"].clone();
    let mut all = Vec::new();
    loop {
        let answer = call(api, "GetRecords", &json!({"ShardIterator": iterator, "Limit": 10_000}))
            .unwrap_or_else(|refused| panic!("GetRecords {stream} {shard}: {refused:?}"));
        let records = answer["Records"].as_array().map_or(&[][..], Vec::as_slice);
        all.extend(records.iter().map(got));
        let at_tail = answer["MillisBehindLatest"].as_u64().unwrap_or(0) == 0;
        if answer["NextShardIterator"].is_null() || (at_tail && records.is_empty()) {
            return all;
        }
        iterator = answer["NextShardIterator"].clone();
    }
}

/// The whole stream, shard after shard.
pub fn read_stream(api: SocketAddr, stream: &str) -> Vec<Got> {
    shards(api, stream).iter().flat_map(|shard| read_shard(api, stream, shard, None)).collect()
}

fn got(record: &Value) -> Got {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    Got { sequence: text("SequenceNumber"), key: text("PartitionKey"), data: unblob(&text("Data")) }
}

/// Base64 as the API wants it.
pub fn blob(data: &[u8]) -> String {
    STANDARD.encode(data)
}

/// Bytes of the API's base64.
pub fn unblob(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap_or_else(|e| panic!("{e} in {text:?}"))
}
