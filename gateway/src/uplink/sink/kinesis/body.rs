//! The bodies of requests, written by hand into one buffer: at hundreds of thousands of records a second a value tree for
//! each of them would cost more than the rest of the way. Pure.

use super::key_and_hash;
use crate::record::{HashKey, HeaderId, NewRecord, Record, StreamName};
use crate::uplink::kpl::{self, Aggregate};
use crate::uplink::lanes::{FORMAT, GAP_LANE, LANES};
use crate::uplink::sink::{Group, Identity, Kind, Outgoing, Relay, Request};
use crate::wire::blocks::{Blocks, producer_id};
use crate::wire::{self, BatchWriter};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::Write;

pub const JSON: &str = "application/x-amz-json-1.1";

pub fn list_shards(stream: &str, token: Option<&str>) -> Vec<u8> {
    let body = match token {
        Some(token) => serde_json::json!({ "NextToken": token, "MaxResults": 1000 }),
        None => serde_json::json!({ "StreamName": stream, "MaxResults": 1000 }),
    };
    body.to_string().into_bytes()
}

/// One entry for each group: an aggregated record, in the shard the group is for.
pub fn aggregates(stream: &str, request: &Request, who: &Identity, record_bytes_max: usize) -> Vec<u8> {
    let mut body = Body::begin(stream, request);
    for group in &request.groups {
        match aggregate(group, who) {
            Some((aggregated, key)) if group.records.len() > 1 || aggregated.len() + key.len() <= record_bytes_max => {
                let hash = group.records[0].record.hash();
                body.entry(&aggregated, &key, Some(hash));
                body.end_entry();
            }
            // Too large with the frame around it, or an aggregate already: as it is.
            _ => group.records.iter().for_each(|out| body.plain_entry(&out.record)),
        }
    }
    body.finish()
}

fn aggregate(group: &Group, who: &Identity) -> Option<(Vec<u8>, String)> {
    let first = &group.records.first()?.record;
    if first.data.starts_with(&kpl::MAGIC) {
        return None;
    }
    let prefix = who.prefix(group.id.shard);
    let texts: Vec<_> = group.records.iter().map(|out| key_and_hash(&out.record)).collect();
    let mut aggregate = Aggregate::default();
    for (out, (key, hash)) in group.records.iter().zip(&texts) {
        let id = (out.kind == Kind::Record).then(|| who.id_of(&prefix, &out.record));
        aggregate.add(key, *hash, &out.record.data, id.as_deref());
    }
    Some((aggregate.finish(), texts[0].0.clone().into_owned()))
}

/// One entry for each record.
pub fn plain(stream: &str, request: &Request) -> Vec<u8> {
    let mut body = Body::begin(stream, request);
    request.groups.iter().flat_map(|group| group.records.iter()).for_each(|out| body.plain_entry(&out.record));
    body.finish()
}

/// One entry for each record, with its number, its headers and its origin, so that it is stored once.
pub fn headwater(stream: &str, request: &Request, who: &Identity) -> Vec<u8> {
    let mut body = Body::begin(stream, request);
    for group in &request.groups {
        let (producer, prefix) = (producer_of(group, request, who), who.prefix(group.id.shard));
        for out in group.records.iter() {
            let (key, hash) = key_and_hash(&out.record);
            body.entry(&out.record.data, &key, hash);
            body.headwater_member(is_numbered(group, out).then_some(producer), out, &prefix, who);
            body.end_entry();
        }
    }
    body.finish()
}

/// Whether the request fits the bounds of the compact batch.
pub fn fits_batch(request: &Request) -> bool {
    let groups = request.groups.len();
    let (mut records, mut bytes, mut headers) = (0, 0, 0);
    for out in request.groups.iter().flat_map(|group| group.records.iter()) {
        records += 1;
        bytes += BatchWriter::record_bytes_max(out.record.key.len(), &out.record.headers, out.record.data.len());
        headers = headers.max(out.record.headers.len());
    }
    let lanes = groups * (wire::ORIGIN_BYTES_MAX.min(256) + 32);
    groups <= wire::LANES_MAX
        && records <= wire::RECORDS_MAX
        && headers <= wire::HEADERS_MAX
        && bytes + lanes <= wire::BATCH_BYTES_MAX
}

pub fn batch(stream: &str, request: &Request, who: &Identity) -> std::io::Result<Vec<u8>> {
    let stream = StreamName::new(stream).map_err(std::io::Error::other)?;
    let bytes = request.groups.iter().map(|group| group.bytes).sum();
    let mut writer = BatchWriter::new(&stream, bytes);
    for group in &request.groups {
        let lane = writer.lane(producer_of(group, request, who), FORMAT, &who.prefix(group.id.shard));
        for out in group.records.iter() {
            let record = &out.record;
            let new = NewRecord {
                key: &record.key,
                explicit_hash: record.explicit_hash,
                producer: None,
                headers: &record.headers,
                data: &record.data,
            };
            match is_numbered(group, out) {
                true => writer.record(lane, record.number, needs_origin(out), &new),
                false => writer.unnumbered(&new),
            }
        }
    }
    writer.finish()
}

/// Blocks as they are stored.
pub fn blocks(stream: &str, relay: &Relay, who: &Identity) -> std::io::Result<Vec<u8>> {
    let request = Blocks {
        stream: StreamName::new(stream).map_err(std::io::Error::other)?,
        origin: who.prefix(relay.shard),
        range: relay.range,
        lanes: LANES,
        epoch: FORMAT,
        from: relay.from,
        blocks: relay.blocks.clone(),
    };
    Ok(request.encode())
}

/// A notice in the place of a refused record comes after others of its lane have gone on: by its number it would be taken
/// for an old one.
fn is_numbered(group: &Group, out: &Outgoing) -> bool {
    out.kind == Kind::Record || group.lane == GAP_LANE
}

fn needs_origin(out: &Outgoing) -> bool {
    out.kind == Kind::Record && out.record.header(HeaderId::Origin).is_none()
}

fn producer_of(group: &Group, request: &Request, who: &Identity) -> u128 {
    let upstream = request.map.shards().get(group.upstream).map_or("", |shard| shard.id.as_str());
    producer_id(&who.prefix(group.id.shard), group.lane, LANES, upstream)
}

struct Body {
    text: Vec<u8>,
    first: bool,
}

impl Body {
    fn begin(stream: &str, request: &Request) -> Self {
        let bytes: usize = request.groups.iter().map(|group| group.bytes + group.records.len() * 96).sum();
        let mut text = Vec::with_capacity(bytes * 4 / 3 + 256);
        text.extend_from_slice(b"{\"StreamName\":");
        put_text(&mut text, stream);
        text.extend_from_slice(b",\"Records\":[");
        Body { text, first: true }
    }

    /// Opens an entry; [`Body::end_entry`] closes it.
    fn entry(&mut self, data: &[u8], key: &str, hash: Option<HashKey>) {
        if !std::mem::take(&mut self.first) {
            self.text.push(b',');
        }
        self.text.extend_from_slice(b"{\"Data\":\"");
        put_base64(&mut self.text, data);
        self.text.extend_from_slice(b"\",\"PartitionKey\":");
        put_text(&mut self.text, key);
        if let Some(HashKey(hash)) = hash {
            // Writing into a Vec cannot fail.
            let _ = write!(self.text, ",\"ExplicitHashKey\":\"{hash}\"");
        }
    }

    fn headwater_member(&mut self, producer: Option<u128>, out: &Outgoing, prefix: &str, who: &Identity) {
        let number = out.record.number;
        self.text.extend_from_slice(b",\"Headwater\":{");
        if let Some(id) = producer {
            let _ = write!(self.text, "\"Producer\":\"{id:032x}\",\"Epoch\":{FORMAT},\"Sequence\":{number},");
        }
        self.text.extend_from_slice(b"\"Headers\":[");
        let mut first = true;
        if needs_origin(out) {
            let id = who.id_of(prefix, &out.record);
            put_header(&mut self.text, &mut first, HeaderId::Origin as u8, id.as_bytes());
        }
        for header in &out.record.headers {
            put_header(&mut self.text, &mut first, header.id as u8, &header.value);
        }
        self.text.extend_from_slice(b"]}");
    }

    fn plain_entry(&mut self, record: &Record) {
        let (key, hash) = key_and_hash(record);
        self.entry(&record.data, &key, hash);
        self.end_entry();
    }

    fn end_entry(&mut self) {
        self.text.push(b'}');
    }

    fn finish(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"]}");
        self.text
    }
}

fn put_header(text: &mut Vec<u8>, first: &mut bool, id: u8, value: &[u8]) {
    if !std::mem::take(first) {
        text.push(b',');
    }
    let _ = write!(text, "[{id},\"");
    put_base64(text, value);
    text.extend_from_slice(b"\"]");
}

fn put_base64(text: &mut Vec<u8>, data: &[u8]) {
    let start = text.len();
    text.resize(start + data.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(data, &mut text[start..]).unwrap_or(0);
    text.truncate(start + written);
}

fn put_text(text: &mut Vec<u8>, value: &str) {
    // A string into a Vec: it cannot fail.
    let _ = serde_json::to_writer(text, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::map::ShardMap;
    use crate::uplink::sink::GroupId;
    use crate::wire::BatchReader;
    use std::sync::Arc;

    // By its number the other side would take it for an old record of its lane, and a loss would not be told.
    #[test]
    fn p5_a_notice_in_the_place_of_a_record_has_no_number() {
        let who = Identity { gateway: "g".into(), incarnation: 1, stream: StreamName::new("s").unwrap() };
        for (lane, kind, numbered) in [(3, Kind::Record, true), (3, Kind::Gap, false), (GAP_LANE, Kind::Gap, true)] {
            let record = Record {
                number: 5,
                arrival_ms: 0,
                key: "k".into(),
                explicit_hash: None,
                producer: None,
                headers: Vec::new(),
                data: "x".into(),
            };
            let records = Arc::new(vec![Outgoing { kind, record }]);
            let group = Group { id: GroupId { shard: 0, track: 0 }, lane, upstream: 0, records, bytes: 2 };
            let request = Request { groups: vec![group], map: Arc::new(ShardMap::whole()) };
            let put: serde_json::Value = serde_json::from_slice(&headwater("s", &request, &who)).unwrap();
            assert_eq!(put["Records"][0]["Headwater"].get("Sequence").is_some(), numbered, "{lane} {kind:?}");
            let sent = wire::inflate(&batch("s", &request, &who).unwrap(), wire::BATCH_BYTES_MAX).unwrap();
            let sent = BatchReader::open(sent).unwrap().next().unwrap().unwrap();
            assert_eq!(sent.producer.is_some(), numbered, "{lane} {kind:?}");
        }
    }
}
