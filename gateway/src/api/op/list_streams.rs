//! ListStreams: all streams by name, a page at a time.

use super::shown::{PROVISIONED, Seconds, StreamModeDetails};
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::{ApiError, Kind};
use crate::api::shape::{Integer, Text};
use crate::api::token::TokenError;
use serde::{Deserialize, Serialize};

const STREAMS_PER_PAGE: i32 = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    limit: Option<Integer>,
    #[serde(borrow)]
    exclusive_start_stream_name: Option<Text<'a>>,
    #[serde(borrow)]
    next_token: Option<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answer {
    stream_names: Vec<String>,
    has_more_streams: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    stream_summaries: Vec<Summary>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_status: &'static str,
    stream_mode_details: StreamModeDetails,
    stream_creation_timestamp: Seconds,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Answer, ApiError> {
    let mut checks = Checks::default();
    checks.range(request.limit, "limit", 1, 10_000);
    checks.start_stream_name(&request.exclusive_start_stream_name);
    checks.token(&request.next_token);
    checks.finish()?;
    let after = match &request.next_token {
        Some(token) => Some(read_token(call, token)?),
        None => request.exclusive_start_stream_name.as_deref().map(str::to_owned),
    };
    let most = request.limit.map_or(STREAMS_PER_PAGE, |limit| limit.0).unsigned_abs() as usize;
    let mut streams = call.door.log.streams();
    streams.retain(|stream| !stream.is_deleted() && after.as_deref().is_none_or(|after| stream.name.as_str() > after));
    let more = streams.len() > most;
    streams.truncate(most);
    let next_token = streams
        .last()
        .filter(|_| more)
        .map(|last| call.door.tokens.streams_after(call.door.issued(), last.name.as_str()));
    Ok(Answer {
        stream_names: streams.iter().map(|stream| stream.name.to_string()).collect(),
        has_more_streams: more,
        next_token,
        stream_summaries: streams
            .iter()
            .map(|stream| Summary {
                stream_name: stream.name.to_string(),
                stream_arn: call.door.account.arn(&stream.name),
                stream_status: "ACTIVE",
                stream_mode_details: PROVISIONED,
                stream_creation_timestamp: Seconds(stream.created_ms),
            })
            .collect(),
    })
}

fn read_token(call: &Call<'_>, token: &str) -> Result<String, ApiError> {
    call.door.tokens.read_streams_after(call.door.issued(), token).map_err(|error| match error {
        TokenError::Foreign => ApiError::invalid("Invalid NextToken."),
        TokenError::Expired(_) => ApiError::new(Kind::ExpiredNextToken, "NextToken is expired."),
    })
}
