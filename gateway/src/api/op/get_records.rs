//! GetRecords: the next records of a shard.
//!
//! Gaps are stepped over, as Kinesis steps over what has expired. Shards never close here, so there is always a next
//! iterator and never a child.

use super::shown::{Bytes, Seconds, sequence};
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::date::format_java;
use crate::api::error::{ApiError, Kind};
use crate::api::sequence::Sequence;
use crate::api::shape::{Flag, Integer, Text};
use crate::api::token::{AGE_MS_MAX, Issued, Iterator, TokenError};
use crate::http::{Budget, Charge, OverBudget};
use crate::log::{Entry, Position, ReadError, Reader, Stream};
use crate::record::{Record, shard_id};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use std::sync::Arc;

const RECORDS_MAX: i32 = 10_000;
/// Keys, headers and data of one answer, in bytes: headers take memory also where nobody asked for them.
const ANSWER_BYTES_MAX: usize = 10 << 20;
/// Read in one step; an answer takes several, each within the budget of the door.
const STEP_BYTES: usize = 1 << 20;
/// What a byte of data costs until the answer is made: itself, and its base64.
const BYTE_COST: usize = 3;
/// Bytes of an answer to so many bytes of data: base64, and what stands around it.
const fn answer_bytes(data: usize) -> usize {
    data / 2 * 3
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    shard_iterator: Option<Text<'a>>,
    limit: Option<Integer>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    dry_run: Option<Flag>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    records: Vec<Shown>,
    next_shard_iterator: String,
    millis_behind_latest: u64,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut checks = Checks::default();
    checks.range(request.limit, "limit", 1, RECORDS_MAX);
    checks.present(&request.shard_iterator, "shardIterator");
    if let Some(iterator) = &request.shard_iterator {
        checks.length(iterator, "shardIterator", 1, 512);
    }
    checks.stream_arn(&request.stream_arn);
    checks.finish()?;
    let iterator = iterator(call, request.shard_iterator.as_deref().unwrap_or_default())?;
    let (stream, mut reader) = open(call, &request, &iterator).await?;
    if request.dry_run == Some(Flag(true)) {
        return Err(ApiError::dry_run());
    }
    let most = request.limit.map_or(RECORDS_MAX, |limit| limit.0).unsigned_abs() as usize;
    let mut charge = call.take_charge();
    let page = read(call, &mut reader, &mut charge, most).await;
    call.put_charge(charge);
    let page = page.map_err(|error| told(call, &iterator, error))?;
    let newest = stream.shard(iterator.shard).map_or(0, |shard| shard.newest());
    let now_ms = call.door.clock.now().wall_ms;
    let behind = match page.records.last() {
        Some(last) if page.next <= newest => now_ms.saturating_sub(last.arrival_ms).max(1),
        _ => 0,
    };
    let next = Iterator { from: Position::At(page.next), ..iterator };
    let with_headers = call.wants_headers;
    Ok(Answer {
        records: page
            .records
            .into_iter()
            .map(|record| Shown { sequence: sequence(&stream, next.shard, record.number), record, with_headers })
            .collect(),
        next_shard_iterator: call.door.tokens.iterator(call.door.issued(), &next),
        millis_behind_latest: behind,
    })
}

fn iterator(call: &Call<'_>, text: &str) -> Result<Iterator, ApiError> {
    let now = call.door.issued();
    call.door.tokens.read_iterator(now, text).map_err(|error| match error {
        TokenError::Foreign => ApiError::invalid("Invalid ShardIterator."),
        TokenError::Expired(issued) => ApiError::new(Kind::ExpiredIterator, expired(issued, now)),
    })
}

fn expired(issued: Issued, now: Issued) -> String {
    format!(
        "Iterator expired. The iterator was created at time {} while right now it is {} which is further in the future \
         than the tolerated delay of {AGE_MS_MAX} milliseconds.",
        format_java(issued.wall_ms / 1000),
        format_java(now.wall_ms / 1000)
    )
}

async fn open(call: &Call<'_>, request: &Request<'_>, iterator: &Iterator) -> Result<(Arc<Stream>, Reader), ApiError> {
    if request
        .stream_arn
        .as_deref()
        .and_then(crate::api::arn::name_in)
        .is_some_and(|name| name != iterator.stream.as_str())
    {
        return Err(ApiError::invalid("The StreamARN does not match the stream of the ShardIterator."));
    }
    let stream = call.door.log.stream(iterator.stream.as_str()).filter(|stream| stream.id == iterator.stream_id);
    let stream = stream.ok_or_else(|| no_shard(call, iterator))?;
    let (shard, from) = (iterator.shard, iterator.from);
    let reader = match from {
        // A moment is looked for on disk.
        Position::Time(_) => {
            let (log, stream) = (call.door.log.clone(), stream.clone());
            let opened = tokio::task::spawn_blocking(move || log.reader(&stream, shard, from));
            opened.await.map_err(ApiError::internal)?
        }
        _ => call.door.log.reader(&stream, shard, from),
    };
    let reader = reader.map_err(|error| told(call, iterator, error.into()))?;
    Ok((stream, reader))
}

fn no_shard(call: &Call<'_>, iterator: &Iterator) -> ApiError {
    call.door.account.shard_not_found(&shard_id(iterator.shard), iterator.stream.as_str())
}

#[derive(Debug, thiserror::Error)]
enum PageError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
}

fn told(call: &Call<'_>, iterator: &Iterator, error: PageError) -> ApiError {
    match error {
        PageError::Read(ReadError::NoShard(_) | ReadError::Deleted) => no_shard(call, iterator),
        PageError::Read(error) => error.into(),
        PageError::OverBudget(error) => error.into(),
    }
}

struct Page {
    records: Vec<Record>,
    /// The number to go on from.
    next: u64,
}

/// Reads until the answer is full, the shard is read to its end or, with something in hand, the budget is short.
async fn read(call: &Call<'_>, reader: &mut Reader, charge: &mut Charge, most: usize) -> Result<Page, PageError> {
    let mut records = Vec::new();
    let mut bytes = 0;
    while records.len() < most && bytes < ANSWER_BYTES_MAX {
        match room(&call.door.budget, charge, bytes, records.is_empty()).await {
            Err(_) if !records.is_empty() => break,
            room => room?,
        }
        let entries = reader.next(most - records.len(), STEP_BYTES.min(ANSWER_BYTES_MAX - bytes)).await?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            let Entry::Record(record) = entry else { continue };
            bytes += record.weight();
            // The last step may read one record that is larger than what was left.
            if bytes > ANSWER_BYTES_MAX && !records.is_empty() {
                return Ok(Page { next: record.number, records });
            }
            records.push(record);
        }
    }
    Ok(Page { records, next: reader.position() })
}

/// Room for the next step. Nobody waits for those who take their time to read: with something in hand, that is answered.
async fn room(budget: &Budget, charge: &mut Charge, bytes: usize, waits: bool) -> Result<(), OverBudget> {
    let next = bytes + STEP_BYTES;
    match waits {
        true => budget.raise_answer(charge, answer_bytes(next)).await?,
        false => budget.try_raise_answer(charge, answer_bytes(next))?,
    }
    budget.raise(charge, next * BYTE_COST).await
}

struct Shown {
    sequence: Sequence,
    record: Record,
    with_headers: bool,
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Members<'a> {
            sequence_number: Sequence,
            approximate_arrival_timestamp: Seconds,
            data: Bytes<'a>,
            partition_key: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            headwater: Option<Extra<'a>>,
        }
        let record = &self.record;
        Members {
            sequence_number: self.sequence,
            approximate_arrival_timestamp: Seconds(record.arrival_ms),
            data: Bytes(&record.data),
            partition_key: &String::from_utf8_lossy(&record.key),
            headwater: Extra::of(record).filter(|_| self.with_headers),
        }
        .serialize(s)
    }
}

/// What Kinesis has no place for, for a client that asked.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Extra<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    producer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    headers: Headers<'a>,
}

impl<'a> Extra<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        let producer = record.producer;
        (producer.is_some() || !record.headers.is_empty()).then(|| Extra {
            producer: producer.map(|producer| format!("{:032x}", producer.id)),
            epoch: producer.map(|producer| producer.epoch),
            sequence: producer.map(|producer| producer.sequence),
            headers: Headers(&record.headers),
        })
    }
}

struct Headers<'a>(&'a [crate::record::Header]);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut list = s.serialize_seq(Some(self.0.len()))?;
        for header in self.0 {
            list.serialize_element(&(header.id as u8, Bytes(&header.value)))?;
        }
        list.end()
    }
}
