//! The control plane: CreateStream, DescribeStream, ListStreams, DeleteStream, UpdateStream, UpdateDataRetention,
//! GetDataEndpoint and the tags. A stream of video is a stream of the log whose kind says so.

use super::Call;
use crate::http::Body;
use crate::media::shape::{Kind, Moment, Refusal, StreamRef, answer, arn, read};
use crate::media::stream::{Camera, Settings, TAGS_MAX};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

type Answered = Result<Response<Body>, Refusal>;

/// Longest tag key and value, in bytes: AWS counts 128 and 256 characters.
const TAG_KEY_BYTES_MAX: usize = 512;
const TAG_VALUE_BYTES_MAX: usize = 1024;
/// Streams on a page, unless the request says.
const PAGE_STREAMS: usize = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    stream_name: String,
    device_name: Option<String>,
    media_type: Option<String>,
    kms_key_id: Option<String>,
    #[serde(default)]
    data_retention_in_hours: u32,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

pub async fn create_stream(call: &Call<'_>) -> Answered {
    let request: Create = read(call.body)?;
    check_tags(&request.tags, 0)?;
    let settings = Settings {
        device_name: request.device_name,
        media_type: request.media_type,
        kms_key: request.kms_key_id,
        retention_hours: Some(request.data_retention_in_hours),
        tags: request.tags,
        ..Settings::default()
    };
    let camera = call.media.create(&request.stream_name, settings).await?;
    answer(&serde_json::json!({ "StreamARN": call.arn(&camera) }))
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StreamInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_name: Option<String>,
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    kms_key_id: String,
    version: String,
    status: &'static str,
    creation_time: Moment,
    data_retention_in_hours: u64,
}

fn info(call: &Call<'_>, camera: &Camera) -> StreamInfo {
    let settings = call.media.settings(camera.name());
    let stream = camera.stream();
    let hours = settings.retention_hours.map(u64::from);
    StreamInfo {
        stream_name: camera.name().to_owned(),
        stream_arn: call.arn(camera),
        version: settings.shown_version(),
        status: "ACTIVE",
        creation_time: Moment(stream.created_ms as i64),
        data_retention_in_hours: hours.unwrap_or(stream.settings().retention.as_ms() / 3_600_000),
        kms_key_id: settings.kms_key.unwrap_or_else(|| "alias/aws/kinesisvideo".into()),
        device_name: settings.device_name,
        media_type: settings.media_type,
    }
}

pub async fn describe_stream(call: &Call<'_>) -> Answered {
    let request: StreamRef = read(call.body)?;
    let camera = call.media.camera(request.name()?)?;
    answer(&serde_json::json!({ "StreamInfo": info(call, &camera) }))
}

/// DescribeImageGenerationConfiguration and DescribeNotificationConfiguration: nobody can have set one.
pub async fn no_configuration(call: &Call<'_>) -> Answered {
    let request: StreamRef = read(call.body)?;
    call.media.camera(request.name()?)?;
    answer(&serde_json::json!({}))
}

pub async fn no_mapped_resource(call: &Call<'_>) -> Answered {
    let request: StreamRef = read(call.body)?;
    call.media.camera(request.name()?)?;
    answer(&serde_json::json!({ "MappedResourceConfigurationList": [] }))
}

pub async fn describe_storage(call: &Call<'_>) -> Answered {
    let request: StreamRef = read(call.body)?;
    let camera = call.media.camera(request.name()?)?;
    answer(&serde_json::json!({
        "StreamName": camera.name(),
        "StreamARN": call.arn(&camera),
        "StreamStorageConfiguration": { "DefaultStorageTier": "HOT" },
    }))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct List {
    max_results: Option<usize>,
    next_token: Option<String>,
    stream_name_condition: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Condition {
    comparison_value: Option<String>,
}

pub async fn list_streams(call: &Call<'_>) -> Answered {
    let request: List = read(call.body)?;
    let most = request.max_results.unwrap_or(PAGE_STREAMS).clamp(1, PAGE_STREAMS);
    let after = request.next_token.as_deref().map(after_token).transpose()?;
    let prefix = request.stream_name_condition.and_then(|condition| condition.comparison_value).unwrap_or_default();
    let wanted = |name: &str| name.starts_with(&prefix) && after.as_deref().is_none_or(|after| name > after);
    let mut cameras = call.media.cameras();
    cameras.retain(|camera| wanted(camera.name()));
    let more = cameras.len() > most;
    cameras.truncate(most);
    let next = cameras.last().filter(|_| more).map(|last| STANDARD.encode(last.name()));
    let infos: Vec<_> = cameras.iter().map(|camera| info(call, camera)).collect();
    let mut said = serde_json::json!({ "StreamInfoList": infos });
    if let Some(token) = next {
        said["NextToken"] = token.into();
    }
    answer(&said)
}

fn after_token(token: &str) -> Result<String, Refusal> {
    let name = STANDARD.decode(token).ok().and_then(|name| String::from_utf8(name).ok());
    name.ok_or_else(|| Refusal::invalid("NextToken is not one of ours"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versioned {
    #[serde(flatten)]
    stream: StreamRef,
    current_version: Option<String>,
    device_name: Option<String>,
    media_type: Option<String>,
}

/// Whoever names a version means the stream as it was then.
fn check_version(call: &Call<'_>, name: &str, version: Option<&str>) -> Result<(), Refusal> {
    let now = call.media.settings(name).shown_version();
    match version {
        Some(version) if version != now => {
            Err(Refusal::new(Kind::VersionMismatch, format!("CurrentVersion is {now}, not {version}")))
        }
        _ => Ok(()),
    }
}

pub async fn delete_stream(call: &Call<'_>) -> Answered {
    let request: Versioned = read(call.body)?;
    let name = request.stream.name()?;
    call.media.camera(name)?;
    check_version(call, name, request.current_version.as_deref())?;
    call.media.delete(name).await?;
    answer(&serde_json::json!({}))
}

pub async fn update_stream(call: &Call<'_>) -> Answered {
    let request: Versioned = read(call.body)?;
    let name = request.stream.name()?;
    call.media.camera(name)?;
    let version = request.current_version.as_deref();
    check_version(call, name, Some(version.ok_or_else(|| Refusal::invalid("CurrentVersion is required"))?))?;
    call.media
        .change(name, |settings| {
            settings.device_name = request.device_name.clone().or(settings.device_name.take());
            settings.media_type = request.media_type.clone().or(settings.media_type.take());
        })
        .await?;
    answer(&serde_json::json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retention {
    #[serde(flatten)]
    stream: StreamRef,
    current_version: String,
    operation: String,
    data_retention_change_in_hours: u32,
}

pub async fn update_data_retention(call: &Call<'_>) -> Answered {
    let request: Retention = read(call.body)?;
    let name = request.stream.name()?;
    let camera = call.media.camera(name)?;
    check_version(call, name, Some(&request.current_version))?;
    let now = call.media.settings(name).retention_hours;
    let now = now.unwrap_or((camera.stream().settings().retention.as_ms() / 3_600_000) as u32);
    let by = request.data_retention_change_in_hours;
    let hours = match request.operation.as_str() {
        "INCREASE_DATA_RETENTION" => now.checked_add(by),
        "DECREASE_DATA_RETENTION" => now.checked_sub(by),
        other => {
            return Err(Refusal::invalid(format!("Operation {other:?} is not INCREASE_ or DECREASE_DATA_RETENTION")));
        }
    };
    let hours = hours.filter(|hours| by > 0 && *hours <= 87_600);
    let hours = hours
        .ok_or_else(|| Refusal::invalid(format!("{now} hours cannot be changed by {by}: 0 to 87600 are possible")))?;
    call.media.change(name, |settings| settings.retention_hours = Some(hours)).await?;
    answer(&serde_json::json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(flatten)]
    stream: StreamRef,
    #[serde(rename = "APIName")]
    api_name: String,
}

const APIS: [&str; 8] = [
    "PUT_MEDIA",
    "GET_MEDIA",
    "LIST_FRAGMENTS",
    "GET_MEDIA_FOR_FRAGMENT_LIST",
    "GET_HLS_STREAMING_SESSION_URL",
    "GET_DASH_STREAMING_SESSION_URL",
    "GET_CLIP",
    "GET_IMAGES",
];

pub async fn get_data_endpoint(call: &Call<'_>) -> Answered {
    let request: Endpoint = read(call.body)?;
    call.media.camera(request.stream.name()?)?;
    if !APIS.contains(&request.api_name.as_str()) {
        return Err(Refusal::invalid(format!("APIName {:?} is none of {}", request.api_name, APIS.join(", "))));
    }
    answer(&serde_json::json!({ "DataEndpoint": call.endpoint() }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tagging {
    #[serde(flatten)]
    stream: StreamRef,
    tags: Tags,
}

/// TagStream has a map, TagResource a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tags {
    Map(BTreeMap<String, String>),
    List(Vec<Tag>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

pub async fn tag(call: &Call<'_>) -> Answered {
    let request: Tagging = read(call.body)?;
    let name = request.stream.name()?;
    call.media.camera(name)?;
    let tags = match request.tags {
        Tags::Map(map) => map,
        Tags::List(list) => list.into_iter().map(|tag| (tag.key, tag.value)).collect(),
    };
    let there = call.media.settings(name).tags;
    check_tags(&tags, there.keys().filter(|key| !tags.contains_key(*key)).count())?;
    call.media.change(name, |settings| settings.tags.extend(tags)).await?;
    answer(&serde_json::json!({}))
}

fn check_tags(tags: &BTreeMap<String, String>, others: usize) -> Result<(), Refusal> {
    if tags.len() + others > TAGS_MAX {
        return Err(Refusal::new(Kind::TagsPerResourceExceeded, format!("A stream has at most {TAGS_MAX} tags")));
    }
    let fits = |(key, value): (&String, &String)| {
        (1..=TAG_KEY_BYTES_MAX).contains(&key.len()) && value.len() <= TAG_VALUE_BYTES_MAX && !key.starts_with("aws:")
    };
    match tags.iter().all(fits) {
        true => Ok(()),
        false => Err(Refusal::invalid("A tag has a key of 1 to 128 characters, not aws:, and a value of up to 256")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Untagging {
    #[serde(flatten)]
    stream: StreamRef,
    tag_key_list: Vec<String>,
}

pub async fn untag(call: &Call<'_>) -> Answered {
    let request: Untagging = read(call.body)?;
    let name = request.stream.name()?;
    call.media.camera(name)?;
    call.media.change(name, |settings| settings.tags.retain(|key, _| !request.tag_key_list.contains(key))).await?;
    answer(&serde_json::json!({}))
}

pub async fn list_tags(call: &Call<'_>) -> Answered {
    let request: StreamRef = read(call.body)?;
    let name = request.name()?;
    call.media.camera(name)?;
    answer(&serde_json::json!({ "Tags": call.media.settings(name).tags }))
}

impl Call<'_> {
    fn arn(&self, camera: &Camera) -> String {
        arn(&self.media.inner.account, camera.name(), camera.stream().created_ms)
    }
}
