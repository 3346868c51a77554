//! The pages themselves: what the log and the metrics say, as text.

use crate::log::{CursorState, Log, Stream, Table};
use crate::metrics::{CardLife, Metrics, StreamLabel};
use crate::record::{Number, ShardIndex, shard_id};
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use std::sync::Arc;

const PROMETHEUS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

pub struct Page {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Page {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        let body: String = body.into();
        Page { status, content_type: TEXT, body: body.into() }
    }
}

/// The process answers. A full disk does not get better by a restart, so it is no matter of health but of readiness.
pub fn healthz() -> Page {
    Page::text(StatusCode::OK, "ok\n")
}

/// Whether a client that comes now can have a record made durable.
pub fn readyz(started: bool, trouble: Option<String>) -> Page {
    match (started, trouble) {
        (false, _) => Page::text(StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n"),
        (true, Some(_)) => Page::text(StatusCode::SERVICE_UNAVAILABLE, "the log does not commit; /status says why\n"),
        (true, None) => Page::text(StatusCode::OK, "ready\n"),
    }
}

pub fn metrics(log: &Log, metrics: &Metrics, card: &CardLife) -> Page {
    card.show(metrics);
    // Streams that are gone shall not be shown with their last figures.
    metrics.stream_size.clear();
    metrics.stream_records.clear();
    for stream in log.streams() {
        let label = StreamLabel { stream: stream.name.to_string() };
        metrics.stream_size.get_or_create(&label).set(stream.size_bytes() as i64);
        metrics.stream_records.get_or_create(&label).set(log.record_count(&stream) as i64);
    }
    Page { status: StatusCode::OK, content_type: PROMETHEUS, body: metrics.render().into() }
}

#[derive(Serialize)]
struct Status {
    gateway: String,
    incarnation: u32,
    version: &'static str,
    ready: bool,
    trouble: Option<String>,
    streams: Vec<StreamStatus>,
    sinks: serde_json::Value,
    cursors: Vec<CursorStatus>,
}

#[derive(Serialize)]
struct StreamStatus {
    name: String,
    created_ms: u64,
    records: u64,
    bytes: u64,
    retention: String,
    max_bytes: Option<String>,
    on_full: crate::log::OnFull,
    /// Lines of the gap ledger.
    gaps: usize,
    shards: Vec<ShardStatus>,
}

#[derive(Serialize)]
struct ShardStatus {
    id: String,
    /// The lowest number still there, and the newest durable one; numbers start at 1.
    oldest: Number,
    newest: Number,
}

/// How far a sink is in a shard.
#[derive(Serialize)]
struct CursorStatus {
    sink: String,
    stream: String,
    shard: String,
    next: Number,
    /// Ranges acknowledged above `next`.
    done: Vec<(Number, Number)>,
}

pub fn status(log: &Log, sinks: serde_json::Value, ready: bool) -> Page {
    let status = Status {
        gateway: log.gateway_id().to_owned(),
        incarnation: log.incarnation(),
        version: env!("CARGO_PKG_VERSION"),
        ready,
        trouble: log.trouble(),
        streams: log.streams().iter().map(|stream| stream_status(log, stream)).collect(),
        sinks,
        cursors: cursors(log),
    };
    match serde_json::to_string_pretty(&status) {
        Ok(body) => Page { status: StatusCode::OK, content_type: JSON, body: (body + "\n").into() },
        Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn stream_status(log: &Log, stream: &Arc<Stream>) -> StreamStatus {
    let settings = stream.settings();
    let shards = stream.shards();
    let shown =
        shards.iter().map(|s| ShardStatus { id: shard_id(s.index), oldest: s.oldest(), newest: s.newest() }).collect();
    StreamStatus {
        name: stream.name.to_string(),
        created_ms: stream.created_ms,
        records: log.record_count(stream),
        bytes: stream.size_bytes(),
        retention: settings.retention.to_string(),
        max_bytes: settings.max_bytes.map(|bytes| bytes.to_string()),
        on_full: settings.on_full,
        gaps: log.gaps(stream).len(),
        shards: shown,
    }
}

/// All cursors that have become durable at least once, where they stand now.
fn cursors(log: &Log) -> Vec<CursorStatus> {
    let kept = log.state_scan(Table::Cursors, b"");
    kept.iter()
        .filter_map(|(key, _)| {
            let (sink, stream, shard) = cursor_key(key)?;
            let CursorState { next, done } = log.cursor(&sink, &*log.stream(&stream)?, shard);
            Some(CursorStatus { sink, stream, shard: shard_id(shard), next, done })
        })
        .collect()
}

/// Sink name, 0, stream name, 0, shard.
fn cursor_key(key: &[u8]) -> Option<(String, String, ShardIndex)> {
    let (rest, shard) = key.split_last_chunk::<4>()?;
    let mut names = rest.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let (sink, stream) = (names.next()?, names.next()?);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some((text(sink)?, text(stream)?, ShardIndex::from_be_bytes(*shard)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_ready_when_it_started_and_its_log_commits() {
        assert_eq!(readyz(false, None).status, 503);
        assert_eq!(readyz(true, Some("disk full".into())).status, 503);
        assert_eq!(readyz(true, None).status, 200);
        let page = readyz(true, Some("/secret/path".into()));
        assert!(!String::from_utf8_lossy(&page.body).contains("secret"), "probes carry no token");
    }

    #[test]
    fn a_cursor_is_named_by_its_key() {
        assert_eq!(cursor_key(b"cloud\0tele\0\0\0\0\x07"), Some(("cloud".into(), "tele".into(), 7)));
        for noise in [&b""[..], b"a", b"\0\0\0\0", b"cloud\0\0\0\0"] {
            assert_eq!(cursor_key(noise), None, "{noise:?}");
        }
    }
}
