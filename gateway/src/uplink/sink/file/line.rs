//! A record as one line of JSON. Pure.

use crate::record::{Gap, HeaderId, Record, ShardIndex};
use crate::uplink::gap;
use crate::uplink::sink::Identity;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes as text where they are UTF-8, else in the field with `_base64`.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    stream: &'a str,
    shard: ShardIndex,
    number: u64,
    /// Arrival at the gateway, milliseconds since 1970.
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    properties: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

pub fn put_record(into: &mut Vec<u8>, record: &Record, shard: ShardIndex, id: &str, stream: &str) {
    let content_type = record.header(HeaderId::ContentType).and_then(|value| std::str::from_utf8(value).ok());
    let (key, key_base64) = text_or_base64(&record.key);
    let (data, data_base64) = text_or_base64(&record.data);
    let line = Line {
        id,
        stream,
        shard,
        number: record.number,
        time: record.arrival_ms,
        key,
        key_base64,
        topic: record.topic(),
        content_type,
        properties: record.headers.iter().filter_map(|header| header.as_user()).collect(),
        data,
        data_base64,
    };
    // Strings and numbers into a Vec: it cannot fail.
    let _ = serde_json::to_writer(&mut *into, &line);
    into.push(b'\n');
}

pub fn put_gap(into: &mut Vec<u8>, gap: &Gap, who: &Identity) {
    into.extend_from_slice(&gap::text(gap, who));
    into.push(b'\n');
}

fn text_or_base64(bytes: &Bytes) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GapReason, Header, StreamName};

    #[test]
    fn data_is_text_where_it_is_text_and_base64_where_it_is_not() {
        let mut record = Record {
            number: 7,
            arrival_ms: 5,
            key: Bytes::from_static(b"k"),
            explicit_hash: None,
            producer: None,
            headers: vec![Header::new(HeaderId::Topic, "a/b"), Header::user("unit", "C")],
            data: Bytes::from_static(b"{\"t\":1}"),
        };
        let mut lines = Vec::new();
        put_record(&mut lines, &record, 2, "hw1/g/1/s/2/7", "s");
        record.data = Bytes::from_static(&[0xff]);
        record.headers.clear();
        put_record(&mut lines, &record, 2, "hw1/g/1/s/2/7", "s");
        let expected = concat!(
            r#"{"id":"hw1/g/1/s/2/7","stream":"s","shard":2,"number":7,"time":5,"key":"k","topic":"a/b","properties":{"unit":"C"},"data":"{\"t\":1}"}"#,
            "\n",
            r#"{"id":"hw1/g/1/s/2/7","stream":"s","shard":2,"number":7,"time":5,"key":"k","data_base64":"/w=="}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }

    #[test]
    fn a_gap_is_a_line_of_its_own() {
        let who = Identity { gateway: "g".into(), incarnation: 1, stream: StreamName::new("s").unwrap() };
        let gap = Gap { shard: 2, from: 3, to: 7, reason: GapReason::Expired, from_ms: 5, to_ms: 9 };
        let mut lines = b"before\n".to_vec();
        put_gap(&mut lines, &gap, &who);
        let expected = concat!(
            "before\n",
            r#"{"headwater":"gap","gateway":"g","stream":"s","shard":2,"from":3,"to":7,"count":5,"reason":"expired","from_time":5,"to_time":9}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}
