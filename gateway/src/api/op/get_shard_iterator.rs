//! GetShardIterator: where to begin reading a shard.

use super::shown::sequence;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::ApiError;
use crate::api::sequence::Sequence;
use crate::api::shape::{Flag, Moment, Text};
use crate::api::token::Iterator;
use crate::log::{Position, Shard, Stream};
use crate::record::{Number, ShardIndex, shard_id};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const TYPES: [&str; 5] = ["AFTER_SEQUENCE_NUMBER", "LATEST", "AT_TIMESTAMP", "AT_SEQUENCE_NUMBER", "TRIM_HORIZON"];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow)]
    shard_id: Option<Text<'a>>,
    #[serde(borrow)]
    shard_iterator_type: Option<Text<'a>>,
    #[serde(borrow)]
    starting_sequence_number: Option<Text<'a>>,
    timestamp: Option<Moment>,
    dry_run: Option<Flag>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    shard_iterator: String,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut checks = Checks::default();
    checks.present(&request.shard_id, "shardId");
    checks.shard_id(&request.shard_id, "shardId");
    checks.present(&request.shard_iterator_type, "shardIteratorType");
    checks.one_of(&request.shard_iterator_type, "shardIteratorType", &TYPES);
    checks.sequence(&request.starting_sequence_number, "startingSequenceNumber");
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    checks.finish()?;
    let (stream, shard) = find(call, &request)?;
    let from = position(call, &request, &stream, &shard)?;
    if request.dry_run == Some(Flag(true)) {
        return Err(ApiError::dry_run());
    }
    let iterator = Iterator { stream: stream.name.clone(), stream_id: stream.id, shard: shard.index, from };
    Ok(Answer { shard_iterator: call.door.tokens.iterator(call.door.issued(), &iterator) })
}

fn find(call: &Call<'_>, request: &Request<'_>) -> Result<(Arc<Stream>, Arc<Shard>), ApiError> {
    let id = request.shard_id.as_deref().unwrap_or_default();
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    let account = &call.door.account;
    let Some(index) = index_in(id) else {
        return Err(ApiError::not_found(format!(
            "Could not find shard {id} in stream {} under account {}.",
            stream.name, account.id
        )));
    };
    let shard = stream.shard(index).ok_or_else(|| account.shard_not_found(&shard_id(index), stream.name.as_str()))?;
    Ok((stream, shard))
}

/// AWS takes `shardId-000000000007`, `shardId-7`, `x-7` and `7` for the same.
fn index_in(id: &str) -> Option<ShardIndex> {
    let digits = id.split('-').nth(1).filter(|part| !part.is_empty()).unwrap_or(id);
    let index = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?;
    index.filter(|index| *index <= i32::MAX as u32)
}

fn position(call: &Call<'_>, request: &Request<'_>, stream: &Stream, shard: &Shard) -> Result<Position, ApiError> {
    let kind = request.shard_iterator_type.as_deref().unwrap_or_default();
    match (kind, request.starting_sequence_number.as_deref()) {
        ("AT_SEQUENCE_NUMBER", Some(text)) => Ok(Position::At(number(call, text, stream, shard)?.max(1))),
        ("AFTER_SEQUENCE_NUMBER", Some(text)) => Ok(Position::At(number(call, text, stream, shard)?.saturating_add(1))),
        ("TRIM_HORIZON", None) => Ok(Position::Oldest),
        // Pinned now: what arrives between this call and the first read is behind the iterator.
        ("LATEST", None) => Ok(Position::At(shard.newest() + 1)),
        ("AT_TIMESTAMP", None) => time(call, request.timestamp),
        (_, given) => {
            let given = if given.is_some() { "also a" } else { "no" };
            Err(ApiError::invalid(format!(
                "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or \
                 (2) TRIM_HORIZON or LATEST and no StartingSequenceNumber. Request specified {kind} and {given} \
                 StartingSequenceNumber."
            )))
        }
    }
}

fn time(call: &Call<'_>, timestamp: Option<Moment>) -> Result<Position, ApiError> {
    let Some(Moment(ms)) = timestamp else {
        return Err(ApiError::invalid(
            "Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP. Current request has no \
             timestamp parameter.",
        ));
    };
    let now_ms = call.door.clock.now().wall_ms;
    let ms = u64::try_from(ms).unwrap_or(0);
    if ms > now_ms {
        return Err(ApiError::invalid(format!(
            "The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. timestampInMillis: \
             {ms}, currentTimestampInMillis: {now_ms}"
        )));
    }
    Ok(Position::Time(ms))
}

fn number(call: &Call<'_>, text: &str, stream: &Stream, shard: &Shard) -> Result<Number, ApiError> {
    let used = format!(
        "StartingSequenceNumber {text} used in GetShardIterator on shard {} in stream {} under account {}",
        shard_id(shard.index),
        stream.name,
        call.door.account.id
    );
    let Ok(given) = Sequence::parse(text) else { return Err(ApiError::invalid(format!("{used} is invalid."))) };
    if given.shard != shard.index {
        return Err(ApiError::invalid(format!(
            "Invalid StartingSequenceNumber. It encodes {}, while it was used in a call to a shard with {}",
            shard_id(given.shard),
            shard_id(shard.index)
        )));
    }
    if given != sequence(stream, shard.index, given.number) {
        return Err(ApiError::invalid(format!("{used} is invalid because it did not come from this stream.")));
    }
    Ok(given.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_named_in_long_and_in_short() {
        for id in ["shardId-000000000007", "shardId-7", "x-7", "7"] {
            assert_eq!(index_in(id), Some(7), "{id}");
        }
        for id in ["", "shardId-", "shardId-a", "shardId-99999999999", "x"] {
            assert_eq!(index_in(id), None, "{id}");
        }
    }
}
