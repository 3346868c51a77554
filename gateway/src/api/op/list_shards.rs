//! ListShards: the shards of a stream, a page at a time. KCL's first call, with a filter.

use super::shown::{ShownShard, shards_after};
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::{ApiError, Kind};
use crate::api::shape::{Integer, Moment, Shape, Text};
use crate::api::token::{ShardsAfter, TokenError};
use crate::log::Stream;
use crate::record::shard_id;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const SHARDS_PER_PAGE: i32 = 1000;
const FILTERS: [&str; 6] =
    ["AFTER_SHARD_ID", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST", "AT_TIMESTAMP", "FROM_TIMESTAMP"];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow)]
    next_token: Option<Text<'a>>,
    #[serde(borrow)]
    exclusive_start_shard_id: Option<Text<'a>>,
    max_results: Option<Integer>,
    stream_creation_timestamp: Option<Moment>,
    #[serde(borrow)]
    shard_filter: Option<Shape<Filter<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    shard_id: Option<Text<'a>>,
    timestamp: Option<Moment>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    shards: Vec<ShownShard>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    check(&request)?;
    let (stream, after) = match &request.next_token {
        Some(token) => go_on(call, &request, token)?,
        None => begin(call, &request)?,
    };
    let most = request.max_results.map_or(SHARDS_PER_PAGE, |most| most.0).unsigned_abs() as usize;
    let (shards, more) = shards_after(&stream, after.as_deref(), most);
    let next_token = more.map(|after| {
        let at = ShardsAfter { stream: stream.name.clone(), stream_id: stream.id, after };
        call.door.tokens.shards_after(call.door.issued(), &at)
    });
    Ok(Answer { shards, next_token })
}

fn check(request: &Request<'_>) -> Result<(), ApiError> {
    let mut checks = Checks::default();
    checks.shard_id(&request.exclusive_start_shard_id, "exclusiveStartShardId");
    checks.range(request.max_results, "maxResults", 1, 10_000);
    checks.token(&request.next_token);
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    if let Some(Shape(filter)) = &request.shard_filter {
        checks.present(&filter.r#type, "shardFilter.type");
        checks.one_of(&filter.r#type, "shardFilter.type", &FILTERS);
        checks.shard_id(&filter.shard_id, "shardFilter.shardId");
    }
    checks.finish()
}

fn begin(call: &Call<'_>, request: &Request<'_>) -> Result<(Arc<Stream>, Option<String>), ApiError> {
    if request.stream_name.is_none() && request.stream_arn.is_none() {
        return Err(ApiError::invalid("Either NextToken or StreamName should be provided."));
    }
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    // The moment of creation tells a stream from an earlier one of the same name; clients send it to the second or finer.
    let created_s = (stream.created_ms / 1000) as i64;
    if request.stream_creation_timestamp.is_some_and(|Moment(ms)| ms.div_euclid(1000) != created_s) {
        return Err(call.door.account.stream_not_found(stream.name.as_str()));
    }
    let after = match (&request.exclusive_start_shard_id, filtered(request)?) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("ExclusiveStartShardId and ShardFilter cannot be provided together."));
        }
        (Some(after), None) => Some(after.to_string()),
        (None, after) => after,
    };
    Ok((stream, after))
}

/// The shard a filter begins behind. Shards never close here, so every other filter means all of them.
fn filtered(request: &Request<'_>) -> Result<Option<String>, ApiError> {
    let Some(Shape(filter)) = &request.shard_filter else { return Ok(None) };
    let kind = filter.r#type.as_deref().unwrap_or_default();
    let (needs_shard, needs_time) = (kind == "AFTER_SHARD_ID", kind.ends_with("_TIMESTAMP"));
    let wrong = |says: &str| Err(ApiError::invalid(format!("{says} ShardFilterType {kind}.")));
    match (&filter.shard_id, filter.timestamp) {
        (None, _) if needs_shard => wrong("ShardId must be provided for"),
        (Some(_), _) if !needs_shard => wrong("ShardId must not be provided for"),
        (_, None) if needs_time => wrong("Timestamp must be provided for"),
        (_, Some(_)) if !needs_time => wrong("Timestamp must not be provided for"),
        (shard, _) => Ok(shard.as_ref().map(|shard| shard.to_string())),
    }
}

fn go_on(call: &Call<'_>, request: &Request<'_>, token: &str) -> Result<(Arc<Stream>, Option<String>), ApiError> {
    let together = [
        ("StreamName", request.stream_name.is_some()),
        ("StreamARN", request.stream_arn.is_some()),
        ("StreamCreationTimestamp", request.stream_creation_timestamp.is_some()),
        ("ExclusiveStartShardId", request.exclusive_start_shard_id.is_some()),
        ("ShardFilter", request.shard_filter.is_some()),
    ];
    if let Some((member, _)) = together.iter().find(|(_, given)| *given) {
        return Err(ApiError::invalid(format!("NextToken and {member} cannot be provided together.")));
    }
    let at = call.door.tokens.read_shards_after(call.door.issued(), token).map_err(|error| match error {
        TokenError::Foreign => ApiError::invalid("Invalid NextToken."),
        TokenError::Expired(_) => ApiError::new(Kind::ExpiredNextToken, "NextToken is expired."),
    })?;
    let stream = call.stream_named(at.stream.as_str())?;
    if stream.id != at.stream_id {
        return Err(call.door.account.stream_not_found(at.stream.as_str()));
    }
    Ok((stream, Some(shard_id(at.after))))
}
