//! CreateStream: durable and ACTIVE when it is answered.

use super::Nothing;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::{ApiError, Kind};
use crate::api::shape::{Integer, Shape, Text};
use crate::log::{CreateError, StreamSettings};
use crate::record::StreamName;
use crate::units::{ByteSize, Span};
use serde::Deserialize;

/// What AWS gives a stream that names neither: a day, and four shards on demand.
const RETENTION: Span = Span::days(1);
const ON_DEMAND_SHARDS: i32 = 4;
const SHARDS_MAX: i32 = 100_000;
const RECORD_KIB_MAX: i32 = 10_240;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    shard_count: Option<Integer>,
    #[serde(borrow)]
    stream_mode_details: Option<Shape<Mode<'a>>>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_size_in_kib: Option<Integer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mode<'a> {
    #[serde(borrow)]
    stream_mode: Option<Text<'a>>,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Nothing, ApiError> {
    let (name, shards) = checked(&request)?;
    let settings =
        StreamSettings { shards, retention: RETENTION, max_bytes: None::<ByteSize>, ..StreamSettings::default() };
    let log = call.door.log.clone();
    let created = {
        let name = name.clone();
        tokio::task::spawn_blocking(move || log.create_stream(&name, settings)).await.map_err(ApiError::internal)?
    };
    match created {
        Ok(_) => Ok(Nothing),
        Err(CreateError::Exists(name)) => Err(ApiError::new(
            Kind::ResourceInUse,
            format!("Stream {name} under account {} already exists.", call.door.account.id),
        )),
        Err(error) => Err(error.into()),
    }
}

fn checked(request: &Request<'_>) -> Result<(StreamName, u32), ApiError> {
    let mode = request.stream_mode_details.as_ref().map(|details| &details.0.stream_mode);
    let on_demand = mode.is_some_and(|mode| mode.as_deref() == Some("ON_DEMAND"));
    let mut checks = Checks::default();
    if !on_demand {
        checks.present(&request.shard_count, "shardCount");
    }
    checks.range(request.shard_count, "shardCount", 1, SHARDS_MAX);
    checks.present(&request.stream_name, "streamName");
    checks.stream_name(&request.stream_name);
    checks.range(request.max_record_size_in_kib, "maxRecordSizeInKiB", 1024, RECORD_KIB_MAX);
    if let Some(mode) = mode {
        checks.present(mode, "streamModeDetails.streamMode");
        checks.one_of(mode, "streamModeDetails.streamMode", &["PROVISIONED", "ON_DEMAND"]);
    }
    checks.finish()?;
    if on_demand && request.shard_count.is_some() {
        return Err(ApiError::validation("ShardCount is not expected when StreamMode=ON_DEMAND"));
    }
    let Integer(shards) = request.shard_count.unwrap_or(Integer(ON_DEMAND_SHARDS));
    let name = request.stream_name.as_deref().unwrap_or_default();
    let name = StreamName::new(name).map_err(|error| ApiError::validation(error.to_string()))?;
    Ok((name, shards.unsigned_abs()))
}
