//! Kinesis Data Streams, and every gateway that speaks its wire: the shard map, one request, its answer.
//!
//! How records are packed depends on who answers: KPL aggregates for Kinesis (or single records, if switched off), records
//! with producer numbers and headers for another Headwater, as `PutRecords` or, if it offers it, as the compact batch of
//! `wire`. Who it is stands in the headers of every answer, so the first question, the shard map, settles it.

pub(super) mod answer;
mod body;

use super::{Answer, Fault, Identity, Limits, Relay, Relayed, Request, Sink, SinkFuture, Taken};
use crate::problem::Problem;
use crate::record::{HashKey, Record};
use crate::units::{ByteSize, Span};
use crate::uplink::aws::{Aws, AwsConfig, CredentialSource, KINESIS, trust};
use crate::uplink::config::{Common, Sending};
use crate::uplink::http::{Bounds, HttpClient, HttpError};
use crate::uplink::kpl;
use crate::uplink::map::ShardMap;
use crate::wire;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Longest partition key, in characters.
const KEY_CHARS_MAX: usize = 256;
/// Bytes of one request before base64. Kinesis allows 10 MiB, but older servers 5, and memory is dear here.
const REQUEST_BYTES_MAX: usize = 2 << 20;
const REQUEST_RECORDS_MAX: usize = 500;
const REQUESTS_IN_FLIGHT_MAX: usize = 8;
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The thinnest link that a record of any size gets through, in bytes a second.
const LINK_BYTES_PER_S_MIN: f64 = 4096.0;
/// Pages of a shard map: 1,000 shards each.
const MAP_PAGES_MAX: usize = 20;

/// A stream in Kinesis or in another Headwater.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct KinesisConfig {
    #[serde(flatten)]
    pub common: Common,
    #[serde(flatten)]
    pub sending: Sending,
    /// The stream there; `{stream}` stands for the name of the stream here.
    pub target: String,
    #[serde(flatten)]
    pub aws: AwsConfig,
    /// Pack many records into one as the Kinesis Producer Library does. Never done for another Headwater.
    pub aggregate: bool,
    /// Most bytes of one aggregated record.
    pub aggregate_bytes: ByteSize,
    /// Largest record the stream there takes, its partition key included.
    pub max_record_bytes: ByteSize,
    /// How long an answer may take.
    pub timeout: Span,
}

impl Default for KinesisConfig {
    fn default() -> Self {
        KinesisConfig {
            common: Common::default(),
            sending: Sending::default(),
            target: "{stream}".into(),
            aws: AwsConfig::default(),
            aggregate: true,
            aggregate_bytes: ByteSize(50 << 10),
            max_record_bytes: ByteSize::mib(1),
            timeout: Span::secs(15),
        }
    }
}

impl KinesisConfig {
    pub(in crate::uplink) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        if crate::record::StreamName::new(&self.target.replace("{stream}", "x")).is_err() {
            problem("target", "name the stream there: 1 to 128 letters, digits, '_', '.' or '-', or \"{stream}\"");
        }
        if self.aggregate_bytes.0 < 1024 || self.aggregate_bytes.0 > 900 << 10 {
            problem("aggregate_bytes", "write \"1 KiB\" to \"900 KiB\"; or aggregate = false");
        }
        if self.aggregate_bytes.0 * 2 > self.max_record_bytes.0 {
            problem("aggregate_bytes", "write at most half of max_record_bytes: the packing takes room too");
        }
        if self.max_record_bytes.0 < 1024 || self.max_record_bytes.0 > 10 << 20 {
            problem("max_record_bytes", "write \"1 KiB\" to \"10 MiB\", as the stream there allows");
        }
        if self.timeout < Span::ms(100) || self.timeout > Span::secs(600) {
            problem("timeout", "write \"100 ms\" to \"10 min\"");
        }
    }
}

/// Who answers, and so how records are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    /// Kinesis, aggregated.
    Aggregate = 0,
    /// Kinesis, one entry a record.
    Plain = 1,
    /// A Headwater, by `PutRecords`.
    Headwater = 2,
    /// A Headwater that offers the compact batch.
    Batch = 3,
}

pub struct KinesisSink {
    config: KinesisConfig,
    target: String,
    who: Identity,
    http: HttpClient,
    aws: OnceCell<Aws>,
    mode: AtomicU8,
}

impl KinesisSink {
    pub fn new(config: &KinesisConfig, who: Identity) -> Self {
        let mode = if config.aggregate { Mode::Aggregate } else { Mode::Plain };
        KinesisSink {
            target: config.target.replace("{stream}", who.stream.as_str()),
            http: HttpClient::new(trust(&config.aws.ca)),
            config: config.clone(),
            who,
            aws: OnceCell::new(),
            mode: AtomicU8::new(mode as u8),
        }
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Aggregate,
            1 => Mode::Plain,
            2 => Mode::Headwater,
            _ => Mode::Batch,
        }
    }

    /// Another Headwater answered last, and requests are made for one.
    fn knows_headwater(&self) -> bool {
        matches!(self.mode(), Mode::Headwater | Mode::Batch)
    }

    /// Learns from an answer's headers who answered; `true` if it is somebody else than before.
    fn note_who_answers(&self, headers: &HeaderMap) -> Result<bool, Fault> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mode = match text(wire::GATEWAY_HEADER) {
            Some(gateway) if gateway == self.who.gateway && self.target == self.who.stream.as_str() => {
                let why = "the endpoint is this gateway's own stream: records would go in circles";
                return Err(Fault::Denied(why.into()));
            }
            Some(_) if text(wire::OFFER_HEADER) == Some(wire::OFFER) => Mode::Batch,
            Some(_) => Mode::Headwater,
            None if self.config.aggregate => Mode::Aggregate,
            None => Mode::Plain,
        };
        Ok(self.mode.swap(mode as u8, Ordering::Relaxed) != mode as u8)
    }

    async fn aws(&self) -> &Aws {
        self.aws.get_or_init(|| async { Aws::find(KINESIS, &self.config.aws, self.http.clone()).await }).await
    }

    /// One exchange: signs, sends, learns who answers, sorts errors out.
    async fn ask(
        &self,
        target: Option<&str>,
        content_type: &str,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Response<Bytes>, Fault> {
        let aws = self.aws().await;
        let mut request = http::Request::post(format!("{}/", aws.endpoint.trim_end_matches('/')))
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::USER_AGENT, concat!("headwater/", env!("CARGO_PKG_VERSION")));
        if let Some(target) = target {
            request = request.header("x-amz-target", format!("Kinesis_20131202.{target}"));
        }
        if aws.signs() {
            request = request.header("x-amz-content-sha256", reqsign_core::hash::hex_sha256(&body));
        }
        let request = request.body(Bytes::from(body)).map_err(|error| Fault::Broken(error.to_string()))?;
        let (mut head, body) = request.into_parts();
        if let Err(error) = aws.sign(&mut head).await {
            // Where they come from, files and certificates among it, may have been renewed.
            aws.forget_credentials().await;
            let advice = match self.config.aws.credentials {
                CredentialSource::Chain => {
                    "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, or write credentials = \"none\" where none \
                     are wanted"
                }
                _ => "",
            };
            return Err(Fault::Denied(format!("has no usable credentials: {error}{advice}")));
        }
        let bounds = Bounds { within, answer_bytes_max: ANSWER_BYTES_MAX };
        let sent = self.http.send(http::Request::from_parts(head, body), bounds).await;
        let response = sent.map_err(|error| match error {
            HttpError::Absent { .. } => Fault::Absent(error.to_string()),
            HttpError::Connect { .. } | HttpError::Address(_) => Fault::Unreachable(error.to_string()),
            _ => Fault::Broken(error.to_string()),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let fault = answer::fault(response.status(), response.body());
        if matches!(fault, Fault::Denied(_)) {
            aws.forget_credentials().await;
        }
        // A form for another Headwater, refused by somebody else: that says nothing about the records in it.
        let by_others = !response.headers().contains_key(wire::GATEWAY_HEADER);
        let is_form = response.status() == StatusCode::BAD_REQUEST;
        Err(match fault {
            Fault::Refused(why) if by_others && is_form && self.knows_headwater() => Fault::Broken(why),
            fault => fault,
        })
    }

    /// A request that takes too long is made smaller the next time, down to one record; that one gets the time it takes.
    fn time_for(&self, request: &Request, body_bytes: usize) -> Duration {
        let is_one = matches!(&request.groups[..], [group] if group.records.len() == 1);
        let extra_s = if is_one { body_bytes as f64 / LINK_BYTES_PER_S_MIN } else { 0.0 };
        self.config.timeout.0 + Duration::from_secs_f64(extra_s)
    }

    async fn ask_for_map(&self) -> Result<ShardMap, Fault> {
        let (mut shards, mut token) = (Vec::new(), None);
        for _ in 0..MAP_PAGES_MAX {
            let body = body::list_shards(&self.target, token.as_deref());
            let response = self.ask(Some("ListShards"), body::JSON, body, self.config.timeout.0).await?;
            self.note_who_answers(response.headers())?;
            let page = answer::shards(response.body())?;
            shards.extend(page.open);
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        ShardMap::new(shards).map_err(|error| Fault::Broken(error.to_string()))
    }

    async fn send_once(&self, request: &Request) -> Result<Answer, Fault> {
        let mode = self.mode();
        if mode == Mode::Batch && body::fits_batch(request) {
            return self.send_batch(request).await;
        }
        let body = match mode {
            Mode::Aggregate => body::aggregates(&self.target, request, &self.who, self.record_bytes_max()),
            Mode::Plain => body::plain(&self.target, request),
            Mode::Headwater | Mode::Batch => body::headwater(&self.target, request, &self.who),
        };
        let within = self.time_for(request, body.len());
        let response = self.ask(Some("PutRecords"), body::JSON, body, within).await?;
        let changed = self.note_who_answers(response.headers())?;
        let entries = answer::put_records(response.body())?;
        let mut answer = match mode {
            Mode::Aggregate => answer::per_group(request, &entries)?,
            Mode::Plain => answer::per_record(request, &entries)?,
            Mode::Headwater | Mode::Batch => answer::all_or_nothing(request, &entries)?,
        };
        answer.map_is_stale |= changed;
        Ok(answer)
    }

    async fn send_batch(&self, request: &Request) -> Result<Answer, Fault> {
        let count = request.groups.iter().map(|group| group.records.len()).sum();
        let body = body::batch(&self.target, request, &self.who).map_err(|error| Fault::Broken(error.to_string()))?;
        let within = self.time_for(request, body.len());
        let response = self.ask(None, wire::CONTENT_TYPE, body, within).await?;
        let changed = self.note_who_answers(response.headers())?;
        let statuses = wire::decode_answer(response.body(), count).map_err(|error| Fault::Broken(error.to_string()))?;
        let mut answer = answer::statuses(request, &statuses);
        answer.map_is_stale |= changed;
        Ok(answer)
    }

    async fn relay_once(&self, relay: &Relay) -> Result<(Taken, bool), Fault> {
        let body = body::blocks(&self.target, relay, &self.who).map_err(|error| Fault::Broken(error.to_string()))?;
        let response = self.ask(None, wire::blocks::CONTENT_TYPE, body, self.config.timeout.0).await?;
        let changed = self.note_who_answers(response.headers())?;
        let answer = wire::blocks::decode_blocks_answer(response.body(), relay.records());
        let (payload, statuses) = answer.map_err(|error| Fault::Broken(error.to_string()))?;
        Ok((answer::taken(payload, &statuses), changed))
    }

    fn record_bytes_max(&self) -> usize {
        self.config.max_record_bytes.0 as usize
    }
}

impl Sink for KinesisSink {
    fn limits(&self) -> Limits {
        let aggregate = Limits {
            group_records_max: REQUEST_RECORDS_MAX,
            group_bytes_max: self.config.aggregate_bytes.0.min(self.config.max_record_bytes.0 / 2) as usize,
            distinct_keys: false,
            alone: Some(kpl::MAGIC),
            headers_max: usize::MAX,
            record_overhead: kpl::ENTRY_OVERHEAD + self.who.stream.as_str().len() + self.who.gateway.len(),
            entry_per_record: false,
            request_entries_max: REQUEST_RECORDS_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            requests_in_flight_max: REQUESTS_IN_FLIGHT_MAX,
            blocks: false,
        };
        let single = Limits {
            group_bytes_max: REQUEST_BYTES_MAX / 4,
            alone: None,
            record_overhead: 64,
            entry_per_record: true,
            ..aggregate
        };
        match self.mode() {
            Mode::Aggregate => aggregate,
            Mode::Plain => Limits { group_records_max: 64, distinct_keys: true, ..single },
            Mode::Headwater => single,
            Mode::Batch => Limits {
                request_entries_max: wire::RECORDS_MAX / 2,
                request_bytes_max: wire::BATCH_BYTES_MAX / 4,
                group_bytes_max: wire::BATCH_BYTES_MAX / 8,
                headers_max: wire::HEADERS_MAX,
                blocks: true,
                ..single
            },
        }
    }

    fn map(&self) -> SinkFuture<'_, Result<ShardMap, Fault>> {
        Box::pin(self.ask_for_map())
    }

    fn send(&self, request: Request) -> SinkFuture<'_, Answer> {
        Box::pin(async move {
            match self.send_once(&request).await {
                Ok(answer) => answer,
                Err(fault) => Answer::all(&request, fault),
            }
        })
    }

    fn relay(&self, relay: Arc<Relay>) -> SinkFuture<'_, Relayed> {
        Box::pin(async move {
            match self.relay_once(&relay).await {
                Ok((taken, map_is_stale)) => Relayed { stored: Ok(taken), map_is_stale },
                Err(fault) => Relayed { stored: Err(fault), map_is_stale: false },
            }
        })
    }

    fn refusal(&self, record: &Record) -> Option<String> {
        if self.knows_headwater() {
            return None;
        }
        let chars = String::from_utf8_lossy(&record.key).chars().count();
        if chars > KEY_CHARS_MAX {
            return Some(format!("its partition key has {chars} characters; Kinesis takes {KEY_CHARS_MAX}"));
        }
        let bytes = record.key.len() + record.data.len();
        (bytes > self.record_bytes_max())
            .then(|| format!("it has {bytes} bytes; the stream there takes {}", self.config.max_record_bytes))
    }
}

/// The partition key as text, and the hash to name with it: a key that is no text keeps its own place by its hash.
fn key_and_hash(record: &Record) -> (std::borrow::Cow<'_, str>, Option<HashKey>) {
    match std::str::from_utf8(&record.key) {
        Ok(key) => (key.into(), record.explicit_hash),
        Err(_) => (String::from_utf8_lossy(&record.key), Some(record.hash())),
    }
}
