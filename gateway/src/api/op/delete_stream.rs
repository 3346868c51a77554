//! DeleteStream: gone when it is answered. There are no consumers to enforce anything on.

use super::Nothing;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::ApiError;
use crate::api::shape::{Flag, Text};
use crate::log::DeleteError;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(rename = "EnforceConsumerDeletion")]
    _enforce_consumer_deletion: Option<Flag>,
}

pub async fn run(call: &Call<'_>, request: Request<'_>) -> Result<Nothing, ApiError> {
    let mut checks = Checks::default();
    checks.stream_name(&request.stream_name);
    checks.stream_arn(&request.stream_arn);
    checks.finish()?;
    let name = call.stream(&request.stream_name, &request.stream_arn)?.name.clone();
    let log = call.door.log.clone();
    let deleted = tokio::task::spawn_blocking(move || log.delete_stream(&name)).await.map_err(ApiError::internal)?;
    match deleted {
        Ok(()) => Ok(Nothing),
        Err(DeleteError::NotFound(name)) => Err(call.door.account.stream_not_found(name.as_str())),
        Err(error) => Err(error.into()),
    }
}
