//! PutRecord: one record, durable when it is answered.

use super::put::{self, Entry, Extra, Put};
use super::shown::ShardId;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::{ApiError, Kind};
use crate::api::sequence::Sequence;
use crate::api::shape::{Blob, Flag, Shape, Text};
use crate::log::Batch;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow)]
    sequence_number_for_ordering: Option<Text<'a>>,
    dry_run: Option<Flag>,
    #[serde(borrow)]
    data: Option<Blob<'a>>,
    #[serde(borrow)]
    explicit_hash_key: Option<Text<'a>>,
    #[serde(borrow)]
    partition_key: Option<Text<'a>>,
    #[serde(borrow)]
    headwater: Option<Shape<Extra<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    shard_id: ShardId,
    sequence_number: Sequence,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let Request { data, explicit_hash_key, partition_key, headwater, .. } = request;
    let entry = Entry { data, explicit_hash_key, partition_key, headwater };
    let mut checks = Checks::default();
    checks.sequence(&request.sequence_number_for_ordering, "sequenceNumberForOrdering");
    entry.check(&mut checks, |member| member);
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    let mut buffer = Vec::new();
    if !checks.is_clean() {
        entry.check_blob(&mut buffer)?;
    }
    checks.finish()?;
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    // The numbers of a shard always rise, so a number that is one is all that has to be asked for.
    if let Some(text) = request.sequence_number_for_ordering.as_deref()
        && Sequence::parse(text).is_err()
    {
        return Err(ApiError::invalid(format!(
            "ExclusiveMinimumSequenceNumber {text} used in PutRecord on stream {} under account {} is invalid.",
            stream.name, call.door.account.id
        )));
    }
    let mut batch = Batch::new();
    entry.push(&stream, &mut batch, &mut buffer)?;
    if request.dry_run == Some(Flag(true)) {
        return Err(ApiError::dry_run());
    }
    drop((entry, buffer));
    match put::commit(call, &stream, batch).await?.pop() {
        Some(Put::Stored(shard, sequence_number)) => Ok(Answer { shard_id: ShardId(shard), sequence_number }),
        Some(Put::Full(shard)) => Err(ApiError::new(Kind::ProvisionedThroughputExceeded, put::full(&stream, shard))),
        None => Err(ApiError::internal("the log answered for another number of records")),
    }
}
