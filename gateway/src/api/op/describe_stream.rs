//! DescribeStream: a stream and its shards, a page at a time.

use super::shown::{EnhancedMetrics, NO_METRICS, PROVISIONED, Seconds, ShownShard, StreamModeDetails};
use super::shown::{retention_hours, shards_after};
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::ApiError;
use crate::api::shape::{Integer, Text};
use serde::{Deserialize, Serialize};

/// Shards of one page, whatever limit above it is asked for.
const SHARDS_PER_PAGE: i32 = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    limit: Option<Integer>,
    #[serde(borrow)]
    exclusive_start_shard_id: Option<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    stream_description: Description,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_status: &'static str,
    stream_mode_details: StreamModeDetails,
    shards: Vec<ShownShard>,
    has_more_shards: bool,
    retention_period_hours: u64,
    stream_creation_timestamp: Seconds,
    enhanced_monitoring: [EnhancedMetrics; 1],
    encryption_type: &'static str,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut checks = Checks::default();
    checks.range(request.limit, "limit", 1, 10_000);
    checks.shard_id(&request.exclusive_start_shard_id, "exclusiveStartShardId");
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    checks.finish()?;
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    let most = request.limit.map_or(SHARDS_PER_PAGE, |limit| limit.0.min(SHARDS_PER_PAGE));
    let (shards, more) =
        shards_after(&stream, request.exclusive_start_shard_id.as_deref(), most.unsigned_abs() as usize);
    Ok(Answer {
        stream_description: Description {
            stream_name: stream.name.to_string(),
            stream_arn: call.door.account.arn(&stream.name),
            stream_status: "ACTIVE",
            stream_mode_details: PROVISIONED,
            shards,
            has_more_shards: more.is_some(),
            retention_period_hours: retention_hours(&stream),
            stream_creation_timestamp: Seconds(stream.created_ms),
            enhanced_monitoring: NO_METRICS,
            encryption_type: "NONE",
        },
    })
}
