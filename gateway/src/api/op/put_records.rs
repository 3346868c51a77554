//! PutRecords: up to 500 records in one commit, each answered in its place, durable when they are answered.

use super::put::{self, Entry, Put};
use super::shown::ShardId;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::door::heavy;
use crate::api::error::ApiError;
use crate::api::sequence::Sequence;
use crate::api::shape::{Flag, List, Shape, Text};
use crate::log::Batch;
use serde::{Deserialize, Serialize};

const RECORDS_MAX: usize = 500;
/// Data and keys of one request, in bytes.
const REQUEST_BYTES_MAX: usize = 10 << 20;
/// How AWS shows a member of the list when there are too many, and how many of them we show.
const MEMBER: &str = "com.amazonaws.kinesis.v20131202.PutRecordsRequestEntry@c965e310";
const MEMBERS_SHOWN: usize = 3;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    records: Option<List<Shape<Entry<'a>>, RECORDS_MAX>>,
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    dry_run: Option<Flag>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    failed_record_count: usize,
    records: Vec<Outcome>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    #[serde(rename_all = "PascalCase")]
    Stored { sequence_number: Sequence, shard_id: ShardId },
    #[serde(rename_all = "PascalCase")]
    Refused { error_code: &'static str, error_message: String },
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut buffer = Vec::new();
    heavy(call.body.len(), || check(&request, &mut buffer))?;
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    let entries = request.records.as_ref().map_or(&[][..], |list| &list.members);
    let mut batch = Batch::new();
    heavy(call.body.len(), || {
        entries.iter().try_for_each(|Shape(entry)| entry.push(&stream, &mut batch, &mut buffer))
    })?;
    if request.dry_run == Some(Flag(true)) {
        return Err(ApiError::dry_run());
    }
    drop((request, buffer));
    let records: Vec<_> = put::commit(call, &stream, batch)
        .await?
        .into_iter()
        .map(|put| match put {
            Put::Stored(shard, sequence_number) => Outcome::Stored { sequence_number, shard_id: ShardId(shard) },
            Put::Full(shard) => Outcome::Refused {
                error_code: "ProvisionedThroughputExceededException",
                error_message: put::full(&stream, shard),
            },
        })
        .collect();
    let failed_record_count = records.iter().filter(|outcome| matches!(outcome, Outcome::Refused { .. })).count();
    Ok(Answer { failed_record_count, records })
}

fn check(request: &Request<'_>, buffer: &mut Vec<u8>) -> Result<(), ApiError> {
    let mut checks = Checks::default();
    checks.present(&request.records, "records");
    let mut bytes = 0;
    if let Some(list) = &request.records {
        let shown = || format!("[{}]", vec![MEMBER; list.count.min(MEMBERS_SHOWN)].join(", "));
        if list.count == 0 {
            checks.fail(shown(), "records", "Member must have length greater than or equal to 1");
        }
        if list.count > RECORDS_MAX {
            checks.fail(
                shown(),
                "records",
                format_args!("Member must have length less than or equal to {RECORDS_MAX}"),
            );
        }
        for (at, Shape(entry)) in list.members.iter().enumerate() {
            entry.check(&mut checks, |member| InList { at: at + 1, member });
            bytes += entry.bytes();
        }
    }
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    if !checks.is_clean() {
        for Shape(entry) in request.records.iter().flat_map(|list| &list.members) {
            entry.check_blob(buffer)?;
        }
    }
    checks.finish()?;
    if bytes > REQUEST_BYTES_MAX {
        return Err(ApiError::invalid("Records size exceeds 10 MB limit"));
    }
    Ok(())
}

/// `records.3.member.data`
struct InList {
    at: usize,
    member: &'static str,
}

impl std::fmt::Display for InList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "records.{}.member.{}", self.at, self.member)
    }
}
