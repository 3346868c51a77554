//! DescribeStreamSummary: a stream without its shards.

use super::shown::{EnhancedMetrics, NO_METRICS, PROVISIONED, Seconds, StreamModeDetails, retention_hours};
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::ApiError;
use crate::api::shape::Text;
use crate::record::DATA_BYTES_MAX;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    stream_description_summary: Summary,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_status: &'static str,
    stream_mode_details: StreamModeDetails,
    retention_period_hours: u64,
    stream_creation_timestamp: Seconds,
    enhanced_monitoring: [EnhancedMetrics; 1],
    encryption_type: &'static str,
    open_shard_count: usize,
    consumer_count: u32,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_size_in_kib: usize,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut checks = Checks::default();
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    checks.finish()?;
    let stream = call.stream(&request.stream_name, &request.stream_arn)?;
    Ok(Answer {
        stream_description_summary: Summary {
            stream_name: stream.name.to_string(),
            stream_arn: call.door.account.arn(&stream.name),
            stream_status: "ACTIVE",
            stream_mode_details: PROVISIONED,
            retention_period_hours: retention_hours(&stream),
            stream_creation_timestamp: Seconds(stream.created_ms),
            enhanced_monitoring: NO_METRICS,
            encryption_type: "NONE",
            open_shard_count: stream.shards().len(),
            consumer_count: 0,
            max_record_size_in_kib: DATA_BYTES_MAX >> 10,
        },
    })
}
